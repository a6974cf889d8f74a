"""What Consul's flags and JSON members mean here.

Consul has some two hundred settings; a manifest or a test suite written for it sets a dozen. Those that
mean something here are declared with the setting itself (``consul_flags``, ``consul_json``). This
module lists the rest that are known, so that they are skipped knowingly: silently where nothing is
lost, with a notice where the user asked for something that will not happen.
"""

from __future__ import annotations

SILENT_SWITCHES = frozenset(
    {"server", "disable-host-node-id", "rejoin", "enable-local-script-checks"}
)
"""Switches without effect whose absence nobody can notice: every node here is a server, and a node's
identity never comes from its host."""

IGNORED_SWITCHES = frozenset(
    {
        "enable-script-checks",
        "disable-keyring-file",
        "auto-reload-config",
        "syslog",
    }
)
"""Switches that are taken and reported as being without effect."""

IGNORED_VALUES = frozenset(
    {
        "advertise-wan",
        "allow-write-http-from",
        "alt-domain",
        "config-format",
        "default-query-time",
        "dns-port",
        "grpc-port",
        "grpc-tls-port",
        "hcl",
        "https-port",
        "join-wan",
        "log-rotate-bytes",
        "log-rotate-duration",
        "log-rotate-max-files",
        "max-query-time",
        "node-id",
        "node-meta",
        "primary-gateway",
        "protocol",
        "raft-protocol",
        "recursor",
        "retry-interval",
        "retry-join-wan",
        "retry-max",
        "segment",
        "serf-lan-allowed-cidrs",
        "serf-lan-bind",
        "serf-lan-port",
        "serf-wan-allowed-cidrs",
        "serf-wan-bind",
        "serf-wan-port",
        "ui-content-path",
        "ui-dir",
    }
)
"""Flags with a value that are taken and reported as being without effect."""

SILENT_MEMBERS = frozenset(
    {
        "server",
        "node_id",
        "node_meta",
        "disable_update_check",
        "disable_host_node_id",
        "skip_leave_on_interrupt",
        "leave_on_terminate",
        "rejoin_after_leave",
        "enable_debug",
        "primary_datacenter",
        "ports.dns",
        "ports.grpc",
        "ports.grpc_tls",
        "ports.serf_lan",
        "ports.serf_wan",
        "performance.raft_multiplier",
        "performance.leave_drain_time",
        "verify_outgoing",
        "verify_incoming_rpc",
        "tls.defaults.verify_outgoing",
        "tls.internal_rpc.verify_incoming",
        "tls.internal_rpc.verify_outgoing",
        "encrypt_verify_incoming",
        "encrypt_verify_outgoing",
    }
)
"""Members of a configuration file that are skipped without a word: nothing is lost by it."""
