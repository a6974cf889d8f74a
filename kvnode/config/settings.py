"""The settings, one field each.

A field's name is the file's member; ``--`` and dashes make it the flag, ``KVNODE_`` and capitals the
variable. Units close the name (``_bytes``, ``_ms``, ``_s``) and so do bounds (``_max``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_type_hints

from kvnode.config.declaration import KINDS, Setting
from kvnode.config.declaration import setting as _setting
from kvnode.config.limits import LIMITS, Limits

_NODE = "Node"
_NETWORK = "Network"
_CLUSTER = "Cluster"
_KUBERNETES = "Kubernetes"
_SECURITY = "Security"
_LOGS = "Logs"
_TIMING = "Timing"
_STORAGE = "Storage"
_SECTIONS = (
    _NODE,
    _NETWORK,
    _CLUSTER,
    _KUBERNETES,
    _SECURITY,
    _LOGS,
    LIMITS,
    _TIMING,
    _STORAGE,
)
"""In the order of the documentation."""

_KIB = 1024
_MIB = 1024 * _KIB
_GIB = 1024 * _MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Limits):
    """Everything that can be set for one node; the bounds are in ``Limits``. Within a section, field order
    is the order of the documentation.
    """

    # -- node -----------------------------------------------------------------------------------
    node_name: str = _setting(
        "",
        "Name of this node: stable, unique in the cluster, the pod's name in Kubernetes. "
        "Empty: the host name.",
        section=_NODE,
        flags=("node",),
        json=("node_name",),
    )
    data_dir: str = _setting(
        "",
        "Directory of this node's log, state and identity. One process per directory. "
        "Required, except with --dev.",
        section=_NODE,
        json=("data_dir",),
    )
    datacenter: str = _setting(
        "dc1",
        "Name that the API reports as the datacenter; requests for any other are refused.",
        section=_NODE,
        json=("datacenter",),
    )
    config_file: tuple[str, ...] = _setting(
        (),
        "File to read settings from: TOML or JSON, repeatable, later ones win. A folder means its "
        "*.toml and *.json files in order of name. A missing one is reported and skipped.",
        section=_NODE,
        flags=("config-dir",),
    )
    dev: bool = _setting(
        False,
        "A cluster of one for trying things out: loopback only, data in a temporary directory that "
        "is removed at the end (unless --data-dir is given).",
        section=_NODE,
    )
    ui: bool = _setting(
        True, "Serve the web page at /ui/.", section=_NODE, json=("ui", "ui_config.enabled")
    )
    pid_file: str = _setting(
        "",
        "File to write the process id to; removed at the end.",
        section=_NODE,
        json=("pid_file",),
    )

    # -- network --------------------------------------------------------------------------------
    bind: str = _setting(
        "0.0.0.0",
        "Address that the peer port listens on.",
        section=_NETWORK,
        json=("bind_addr",),
    )
    client: str = _setting(
        "127.0.0.1",
        "Address that the HTTP port listens on. There are no access rules yet: give 0.0.0.0 only "
        "where the network is trusted, as inside a Kubernetes NetworkPolicy.",
        section=_NETWORK,
        json=("client_addr", "addresses.http"),
    )
    http_port: int = _setting(
        8500,
        "HTTP port. 0: any free one; -1: no HTTP server.",
        section=_NETWORK,
        lo=-1,
        hi=65535,
        json=("ports.http",),
    )
    peer_port: int = _setting(
        8300,
        "Port that other nodes talk to. 0: any free one.",
        section=_NETWORK,
        lo=0,
        hi=65535,
        flags=("server-port",),
        json=("ports.server",),
    )
    advertise: str = _setting(
        "",
        "Host, or host:port, at which other nodes reach this one. A name is looked up again at each "
        "connection. Empty: the bind address, or this machine's own address when that is 0.0.0.0.",
        section=_NETWORK,
        json=("advertise_addr",),
    )

    # -- cluster --------------------------------------------------------------------------------
    bootstrap_expect: int = _setting(
        0,
        "Number of nodes that found the cluster together. Used once, on empty directories; a node "
        "that holds data ignores it. 0: never found one, only join.",
        section=_CLUSTER,
        lo=0,
        hi=99,
        json=("bootstrap_expect",),
    )
    bootstrap: bool = _setting(
        False,
        "Found a cluster of one; the same as --bootstrap-expect=1.",
        section=_CLUSTER,
        json=("bootstrap",),
    )
    read_replica: bool = _setting(
        False,
        "Join as a read replica: a copy of the data that takes every request, never votes, never leads and "
        "counts in no majority. Looked at when the node joins; it stays what it joined as.",
        section=_CLUSTER,
        flags=("non-voting-server",),
        json=("read_replica", "non_voting_server"),
    )
    read_replica_grace_s: float = _setting(
        3600.0,
        "How long a read replica must have been silent before the leader removes it; it joins anew when it "
        "comes back. 0: never.",
        section=_CLUSTER,
        unit="s",
        lo=0,
        hi=31_536_000,
    )
    retry_join: tuple[str, ...] = _setting(
        (),
        "Host, or host:port, of another node; repeatable. The port is --peer-port when not given.",
        section=_CLUSTER,
        flags=("join",),
        json=("retry_join", "start_join"),
    )
    join_srv: str = _setting(
        "",
        "Full name whose SRV records list the nodes, such as "
        "_raft._tcp.kvnode.default.svc.cluster.local.",
        section=_CLUSTER,
    )
    domain: str = _setting(
        "cluster.local",
        "Domain of the Kubernetes cluster: completes a --join-srv name that ends in .svc.",
        section=_CLUSTER,
        json=("domain",),
    )
    dns_servers: tuple[str, ...] = _setting(
        (),
        "DNS servers to ask, host or host:port; repeatable. None: those of /etc/resolv.conf.",
        section=_CLUSTER,
    )

    # -- kubernetes -----------------------------------------------------------------------------
    kubernetes_statefulset: str = _setting(
        "",
        "Name of the StatefulSet that this node is a pod of. Members that it is scaled down by are then "
        "removed from the cluster. Needs a service account with a Role that may get this one object. "
        "Empty: the API server is not asked for anything.",
        section=_KUBERNETES,
    )
    kubernetes_namespace: str = _setting(
        "",
        "Its namespace. Empty: the service account's.",
        section=_KUBERNETES,
    )
    kubernetes_first_ordinal: int = _setting(
        0,
        "Lowest ordinal of the StatefulSet (spec.ordinals.start). A pod whose ordinal is not among the first "
        "--bootstrap-expect ones never founds a cluster.",
        section=_KUBERNETES,
        lo=0,
        hi=1_000_000,
    )
    kubernetes_api: str = _setting(
        "",
        "Address of the API server, https://host:port; http:// for a proxy beside the node, which gets no "
        "token. Empty: what Kubernetes tells every pod (KUBERNETES_SERVICE_HOST and _PORT).",
        section=_KUBERNETES,
    )
    kubernetes_credentials: str = _setting(
        "/var/run/secrets/kubernetes.io/serviceaccount",
        "Folder of the service account, with the files token, ca.crt and namespace; read again for each "
        "call.",
        section=_KUBERNETES,
    )
    kubernetes_leader_label: bool = _setting(
        False,
        "Show on this node's pod, by the label kvnode/leader (true, false), whether it leads: for a Service "
        "that selects the leader. The Role must let it patch pods. Needs --kubernetes-statefulset.",
        section=_KUBERNETES,
    )
    removal_timeout_s: float = _setting(
        30.0,
        "How long a stopping node that was scaled away, or told to leave, waits until it is removed, "
        "besides --shutdown-s. Keep the sum below the pod's grace period.",
        section=_KUBERNETES,
        unit="s",
        lo=0,
        hi=3600,
    )
    scaled_away_grace_s: float = _setting(
        15.0,
        "How long a member that was scaled away must have been silent before the leader removes it; for "
        "pods that died before they could ask for it.",
        section=_KUBERNETES,
        unit="s",
        lo=1,
        hi=86_400,
    )

    # -- security -------------------------------------------------------------------------------
    tls_cert_file: str = _setting(
        "",
        "This node's certificate, PEM, followed by its intermediates. With it both ports speak TLS. It "
        "must be good for servers and for clients, and for the host in --advertise or for "
        "--tls-server-name. Read again when it changes.",
        section=_SECURITY,
        json=("cert_file", "tls.defaults.cert_file", "tls.internal_rpc.cert_file"),
    )
    tls_key_file: str = _setting(
        "",
        "The certificate's private key, PEM, without a pass phrase. Read again when it changes.",
        section=_SECURITY,
        json=("key_file", "tls.defaults.key_file", "tls.internal_rpc.key_file"),
    )
    tls_ca_file: str = _setting(
        "",
        "Certificates, PEM, that every other node's must lead to, and those of HTTP clients. Several while "
        "one CA replaces another. Read again when it changes.",
        section=_SECURITY,
        json=("ca_file", "tls.defaults.ca_file", "tls.internal_rpc.ca_file"),
    )
    tls_server_name: str = _setting(
        "",
        "Name that every node's certificate must be for, whatever address it is dialled at. Empty: the host "
        "that is dialled.",
        section=_SECURITY,
        json=("server_name", "tls.defaults.server_name"),
    )
    tls_peers: str = _setting(
        "require",
        "What the certificate means for the peer port. require: TLS only; prefer: TLS where the other end "
        "has it, plain connections too, for the time of a change; off: the certificate is for the HTTP port "
        "alone.",
        section=_SECURITY,
        choices=("require", "prefer", "off"),
    )
    tls_http: bool = _setting(
        True,
        "Speak HTTPS on the HTTP port. Without effect while there is no --tls-cert-file.",
        section=_SECURITY,
    )
    tls_verify_clients: bool = _setting(
        False,
        "Serve only HTTP clients that show a certificate of --tls-ca-file. The routes under /health/ stay "
        "open, since probes show none.",
        section=_SECURITY,
        json=(
            "verify_incoming", "verify_incoming_https", "tls.defaults.verify_incoming",
            "tls.https.verify_incoming",
        ),
    )  # fmt: skip
    peer_secret_file: str = _setting(
        "",
        "File with the secret that all nodes share, 16 characters or more: whoever cannot prove it is "
        "refused on the peer port. Several lines: the first proves, all are accepted. Read again when it "
        "changes.",
        section=_SECURITY,
    )
    peer_secret: str = _setting(
        "",
        "The secret itself, rather as the variable than as a flag, which every user of the machine can read. "
        "Without effect beside --peer-secret-file.",
        section=_SECURITY,
        flags=("encrypt",),
        json=("encrypt",),
        secret=True,
    )

    # -- logs -----------------------------------------------------------------------------------
    log_level: str = _setting(
        "info",
        "Least severe event that is logged. Read again on SIGHUP.",
        section=_LOGS,
        choices=("trace", "debug", "info", "warn", "error"),
        json=("log_level",),
    )
    log_format: str = _setting(
        "auto",
        "json: one object per line; text: coloured key=value; auto: text on a terminal, else json.",
        section=_LOGS,
        choices=("auto", "json", "text"),
    )
    log_file: str = _setting(
        "",
        "File that gets every log line too, besides stderr. A folder, or a name that ends in /, means "
        "kvnode.log inside it.",
        section=_LOGS,
        json=("log_file",),
    )

    # -- timing ---------------------------------------------------------------------------------
    tick_ms: int = _setting(
        50, "Length of one tick of the Raft core.", section=_TIMING, unit="ms", lo=1, hi=1000
    )
    heartbeat_ms: int = _setting(
        100,
        "How often a leader says that it is there; a multiple of --tick-ms.",
        section=_TIMING,
        unit="ms",
        lo=1,
        hi=60_000,
    )
    election_timeout_ms: int = _setting(
        1000,
        "Silence of the leader after which the others vote; each node adds up to as much again by "
        "chance. At least three times --heartbeat-ms.",
        section=_TIMING,
        unit="ms",
        lo=3,
        hi=600_000,
    )
    leader_wait_s: float = _setting(
        7.0,
        "How long a request waits for a leader before it is refused.",
        section=_TIMING,
        unit="s",
        lo=0,
        hi=600,
        json=("performance.rpc_hold_timeout",),
    )
    request_timeout_s: float = _setting(
        10.0,
        "How long a write may take once it is in the log, or a request that was forwarded to the leader; "
        "then its outcome is unknown.",
        section=_TIMING,
        unit="s",
        lo=0.1,
        hi=600,
    )
    shutdown_s: float = _setting(
        20.0,
        "How long a stop may take: leadership is handed over and requests are finished. Keep it below "
        "the pod's grace period.",
        section=_TIMING,
        unit="s",
        lo=0,
        hi=3600,
    )
    session_ttl_min_s: float = _setting(
        10.0,
        "Shortest time to live that a session may ask for.",
        section=_TIMING,
        unit="s",
        lo=0,
        hi=86_400,
        json=("session_ttl_min",),
    )
    node_failure_s: float = _setting(
        60.0,
        "How long the leader may not hear a member before its check serfHealth turns critical, which ends "
        "the sessions that depend on it. Longer than a restart takes.",
        section=_TIMING,
        unit="s",
        lo=1,
        hi=86_400,
    )
    dead_server_grace_s: float = _setting(
        86_400.0,
        "Silence after which a member is removed, while the autopilot's CleanupDeadServers is on and only "
        "where no StatefulSet is known; 0: never. Of the voters fewer than half, rounded down, are given up.",
        section=_TIMING,
        unit="s",
        lo=0,
        hi=31_536_000,
    )
    key_ttl_min_s: float = _setting(
        1.0,
        "Shortest time to live that a key may ask for.",
        section=_TIMING,
        unit="s",
        lo=0,
        hi=86_400,
    )
    idempotency_window_s: float = _setting(
        600.0,
        "For how long a write with an Idempotency-Key is remembered, at least, unless there are too many.",
        section=_TIMING,
        unit="s",
        lo=1,
        hi=604_800,
    )
    discovery_interval_s: float = _setting(
        1.0,
        "Pause between two look-ups of the other nodes, while one is missing.",
        section=_TIMING,
        unit="s",
        lo=0.05,
        hi=3600,
    )

    # -- storage --------------------------------------------------------------------------------
    log_entries_max: int = _setting(
        20_000,
        "Log entries kept once they are in the state; above it the older half is dropped. A node that "
        "was away for longer gets a snapshot.",
        section=_STORAGE,
        lo=2,
        hi=100_000_000,
    )
    log_bytes_max: int = _setting(
        32 * _MIB,
        "The same in bytes; never more than a quarter of the volume.",
        section=_STORAGE,
        unit="bytes",
        lo=64 * _KIB,
        hi=64 * _GIB,
    )
    history_entries_max: int = _setting(
        100_000,
        "Changes of keys kept as history, for ?history, ?as_of and for feeds that resume; the oldest are "
        "forgotten. 0: no history, and feeds only from now on. The leader's setting counts.",
        section=_STORAGE,
        lo=0,
        hi=100_000_000,
    )
    history_bytes_max: int = _setting(
        64 * _MIB,
        "The same in bytes, counted with the old values; never more than a 32nd of the volume. "
        "0: no history.",
        section=_STORAGE,
        unit="bytes",
        lo=0,
        hi=64 * _GIB,
    )
    heal_corruption: bool = _setting(
        False,
        "When this node's data are found damaged at start, and a quorum of the others confirms a leader: "
        "set them aside (nothing is deleted), join as a new member, copy the leader's data. "
        "Once per directory. Otherwise such a node refuses to start.",
        section=_STORAGE,
    )
    write_buffer_bytes: int = _setting(
        16 * _MIB,
        "RocksDB's write buffer; never more than an eighth of the volume.",
        section=_STORAGE,
        unit="bytes",
        lo=64 * _KIB,
        hi=4 * _GIB,
    )
    block_cache_bytes: int = _setting(
        32 * _MIB,
        "RocksDB's block cache.",
        section=_STORAGE,
        unit="bytes",
        lo=64 * _KIB,
        hi=64 * _GIB,
    )


def _declared() -> Mapping[str, Setting]:
    hints = get_type_hints(Config)
    fields = sorted(
        dataclasses.fields(Config), key=lambda field: _SECTIONS.index(field.metadata["section"])
    )
    return MappingProxyType(
        {
            field.name: Setting(
                name=field.name,
                kind=KINDS[hints[field.name]],
                default=field.default,
                **field.metadata,
            )
            for field in fields
        }
    )


SETTINGS: Mapping[str, Setting] = _declared()
"""Every setting by name, in the order of the documentation."""
