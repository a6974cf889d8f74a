"""From the operator's settings to those of each part."""

from __future__ import annotations

import os
import socket

from kvnode import __version__
from kvnode.addresses import Address, parse_address
from kvnode.config import Config, SettingError
from kvnode.discovery import Discovery, DnsSettings
from kvnode.discovery.names import NameResolver
from kvnode.disk.rocks_engine import RocksSettings
from kvnode.http.context import HttpSettings
from kvnode.kubernetes import ApiServer, ApiSettings, default_api
from kvnode.ports import Scale
from kvnode.replica.settings import ReplicaSettings
from kvnode.transport.resolve import Resolve, ThreadResolver

_WILDCARDS = frozenset({"", "0.0.0.0", "::", "*"})


def discovery(config: Config) -> Discovery:
    """Where to look for other nodes.

    Raises:
        BadRequest: ``--retry-join`` holds what is no address.
    """
    dns = None
    if config.join_srv:
        name = config.join_srv
        if name.endswith(".svc"):
            name = f"{name}.{config.domain.strip('.')}."
        dns = DnsSettings(name=name, peer_port=config.peer_port, nameservers=config.dns_servers)
    return Discovery(retry_join=config.retry_join, peer_port=config.peer_port, dns=dns)


def resolver(config: Config) -> Resolve:
    """How names are looked up at each dial: by the system, after the DNS servers named, if any."""
    system = ThreadResolver()
    return NameResolver(config.dns_servers, system) if config.dns_servers else system


def replica_settings(config: Config) -> ReplicaSettings:
    """Bounds and times of the driver; the data directory exists already."""
    return ReplicaSettings(
        tick_s=config.tick_ms / 1000,
        election_ticks=config.election_timeout_ms // config.tick_ms,
        heartbeat_ticks=config.heartbeat_ms // config.tick_ms,
        read_replica=config.read_replica,
        read_replica_grace_s=config.read_replica_grace_s,
        expect=config.bootstrap_expect,
        has_discovery=bool(config.retry_join or config.join_srv),
        leader_wait_s=config.leader_wait_s,
        request_timeout_s=config.request_timeout_s,
        uncommitted_bytes_max=config.uncommitted_bytes_max,
        # What a client may store through the leader it may store through any other node.
        command_bytes_max=max(
            4 << 20,
            config.value_bytes_max + config.key_bytes_max + 1024,
            config.txn_bytes_max + 1024,
        ),
        log_entries_max=config.log_entries_max,
        log_bytes_max=min(config.log_bytes_max, volume_bytes(config.data_dir) // 4),
        history_entries_max=config.history_entries_max,
        # For a moment there may be twice as much, and while it is rewritten the engine holds old
        # and new tables at a time.
        history_bytes_max=min(config.history_bytes_max, volume_bytes(config.data_dir) // 32),
        once_age_s=config.idempotency_window_s,
        discovery_interval_s=config.discovery_interval_s,
        node_failure_s=config.node_failure_s,
        removal_timeout_s=config.removal_timeout_s,
        dead_server_grace_s=config.dead_server_grace_s,
        scaled_away_grace_s=config.scaled_away_grace_s,
    )


def kubernetes_doubts(config: Config) -> str:
    """What is given for Kubernetes and cannot work: a sentence for an operator; empty: nothing."""
    name = config.kubernetes_statefulset
    if not name and config.kubernetes_leader_label:
        return "--kubernetes-leader-label has no effect without --kubernetes-statefulset"
    if name and Scale(name, 0, 0).ordinal(config.node_name) is None:
        return (
            f"this node's name, {config.node_name}, is not that of a pod of the StatefulSet {name}: it is "
            "never removed on scale-down. --node-name must be the pod's name"
        )
    return ""


def api_server(config: Config) -> ApiServer | None:
    """Kubernetes' API server, where there is one to be asked."""
    if not config.kubernetes_statefulset:
        return None
    return ApiServer(
        ApiSettings(
            url=config.kubernetes_api or default_api(os.environ),
            statefulset=config.kubernetes_statefulset,
            namespace=config.kubernetes_namespace,
            pod=config.node_name,
            credentials=config.kubernetes_credentials,
        )
    )


def rocks_settings(config: Config) -> RocksSettings:
    """Follow a small volume down: the engine's own log preallocates more than one write buffer."""
    buffer = min(config.write_buffer_bytes, volume_bytes(config.data_dir) // 8)
    return RocksSettings(write_buffer_bytes=buffer, block_cache_bytes=config.block_cache_bytes)


def volume_bytes(path: str) -> int:
    """Return the size of the volume that a path is on."""
    volume = os.statvfs(path)
    return volume.f_frsize * volume.f_blocks


def http_settings(config: Config) -> HttpSettings:
    """Bounds and names of the HTTP port."""
    return HttpSettings(
        node_name=config.node_name,
        datacenter=config.datacenter,
        version=__version__,
        bootstrap_expect=config.bootstrap_expect,
        value_bytes_max=config.value_bytes_max,
        key_bytes_max=config.key_bytes_max,
        body_bytes_max=config.txn_bytes_max,
        txn_ops_max=config.txn_ops_max,
        event_bytes_max=config.event_bytes_max,
        txn_read_bytes_max=config.txn_read_bytes_max,
        list_bytes_max=config.list_bytes_max,
        url_bytes_max=config.url_bytes_max,
        copy_keys_max=config.copy_keys_max,
        copy_bytes_max=config.copy_bytes_max,
        idempotency_keys_max=config.idempotency_keys_max,
        key_ttl_min_ns=round(config.key_ttl_min_s * 1e9),
        session_ttl_min_ns=round(config.session_ttl_min_s * 1e9),
        connections_max=config.http_connections_max,
        streams_max=config.streams_max,
        upload_bytes_max=config.upload_bytes_max,
        close_grace_s=config.shutdown_s / 2,
        ui=config.ui,
        clients_verified=config.tls_verify_clients and config.tls_http,
    )


def peer_address(config: Config) -> Address:
    """Where peers find this node.

    Raises:
        SettingError: ``--advertise`` is no address.
    """
    given = config.advertise or (config.bind if config.bind not in _WILDCARDS else _own_address())
    try:
        return parse_address(given, config.peer_port)
    except ValueError as error:
        raise SettingError(f"--advertise: {error}") from error


def http_address(config: Config, port: int) -> str:
    """Where clients find this node, as far as it knows; empty without an HTTP server."""
    if port < 0:
        return ""
    host = config.client if config.client not in _WILDCARDS else peer_address(config).host
    return str(Address(host, port))


def _own_address() -> str:
    """Return the address that this machine's packets leave from; nothing is sent to find out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for documentation: routed like any other
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
