"""Settings of the driver, in the units that it uses. ``kvnode.config`` maps the operator's to these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """All bounds are per node."""

    tick_s: float = 0.05
    """Length of the core's unit of time, seconds."""
    election_ticks: int = 20
    """Election time-outs are drawn from [election_ticks, 2 * election_ticks)."""
    heartbeat_ticks: int = 2
    read_replica: bool = False
    """Join as a learner that never becomes a voter. Looked at when the node joins, and never again."""
    read_replica_grace_s: float = 3600.0
    """A read replica that was silent for so long is removed; 0: never."""
    expect: int = 0
    """``--bootstrap-expect``; 0: never bootstrap, only join."""
    founding_ruled_out: str = ""
    """Why ``expect`` is 0 although the operator gave a number."""
    has_discovery: bool = True
    """Whether there is anywhere to look for peers; without, a cluster of one starts at once."""

    leader_wait_s: float = 7.0
    """How long a request is held while no leader is known, as Consul does (spec §3)."""
    request_timeout_s: float = 10.0
    """How long a forwarded request, or a write in the log, may take before its outcome is unknown."""
    read_index_timeout_s: float = 2.0
    """How long a leader may take to confirm a follower's reads, before they are asked again."""
    waiting_requests_max: int = 20_000
    waiting_bytes_max: int = 64 << 20
    """Requests that wait for a leader or for this turn's batch (RC-67)."""
    watchers_max: int = 50_000
    """Parked blocking queries."""
    forward_batch_bytes_max: int = 2 << 20
    """Writes in one forwarded frame."""
    uncommitted_bytes_max: int = 64 << 20
    command_bytes_max: int = 4 << 20
    """Largest command taken from a peer."""

    log_entries_max: int = 20_000
    log_bytes_max: int = 32 << 20
    """The retained log is compacted when it outgrows either; half is kept for slow followers."""
    snapshot_hold_s: float = 60.0
    """How long a snapshot stream may hold compaction back (RC-39)."""
    snapshot_pause_s: float = 1.0
    """Before a follower whose stream failed gets another one."""

    discovery_interval_s: float = 1.0
    """Pause between rounds of looking for peers, while somebody is missing."""
    promote_lag_entries: int = 200
    promote_stable_s: float = 1.0
    """A learner is promoted once it has stayed within this lag for this long (RC-44)."""
    commit_spread_s: float = 0.01
    """How soon followers learn a commit index that no other message carries."""
    node_failure_s: float = 60.0
    """A member that the leader has not heard for so long is unhealthy, and the sessions that depend on
    it end. Longer than a restart takes."""
    grave_age_s: float = 900.0
    grave_interval_s: float = 30.0
    """Tombstones are reaped after this age, in steps of the interval (spec §2.3)."""
    restore_idle_s: float = 300.0
    """What was staged for a restore is given up when for so long nothing was added."""
    history_entries_max: int = 100_000
    """Changes kept as history, counted by key and entry; 0: none."""
    history_bytes_max: int = 64 << 20
    """The same in bytes of the engine; 0: none."""
    once_age_s: float = 600.0
    """Idempotency keys are forgotten after this age, in steps of a twentieth of it."""
    compare_interval_s: float = 5.0
    """How often the leader compares its members' data (RC-74)."""
    dead_server_grace_s: float = 86_400.0
    """A member that was silent for so long is given up; 0: never (``autopilot``)."""
    disk_stall_s: float = 5.0
    """A leader whose oldest save has waited for this long hands over."""
    stop_wait_s: float = 3.0
    """How long a stopping leader waits for its successor."""

    removal_timeout_s: float = 30.0
    """How long a stopping node that was scaled away waits until it is removed."""
    scaled_away_grace_s: float = 15.0
    """A member that was scaled away is removed by the leader once it was silent for so long."""
    scale_interval_s: float = 5.0
    """Between two questions about the StatefulSet's size while a member is silent."""
    scale_check_s: float = 60.0
    """The same while nobody is: only so that missing rights are known before they are needed."""
