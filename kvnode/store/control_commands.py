"""Commands about the cluster itself: how it looks after its members, and events for its users.

See ``commands`` for what holds for all of them. These have the numbers from 20 on.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from kvnode.store.fields import INT64_MAX, is_text, is_uint64

EVENTS_KEPT: Final = 256
"""The newest events; an older one is forgotten when another comes (spec §12). Never to be changed:
it decides what an entry does."""


class AutopilotSet(NamedTuple):
    """Set how the leader looks after the members (spec §9). Result: True; False when ``cas`` is not the
    ModifyIndex of what is set now, which is 0 before anything was.
    """

    cleanup_dead_servers: bool
    """Whether members that have been silent for long are removed."""
    last_contact_threshold_ns: int
    """A member is unhealthy when it was last heard longer ago."""
    max_trailing_logs: int
    """A member is unhealthy when it is further behind, in entries."""
    min_quorum: int
    """As many voters must remain when dead ones are removed."""
    server_stabilization_ns: int
    """For how long a learner must keep up before it becomes a voter."""
    redundancy_zone_tag: str
    """Kept, and without a meaning here; so are the next two."""
    disable_upgrade_migration: bool
    upgrade_version_tag: str
    cas: int | None = None
    """None: unconditional."""


class EventFire(NamedTuple):
    """Tell everybody who watches (spec §12). Result: True.

    The entry's index is the event's ``LTime``. Limits on its parts are judged before the log.
    """

    event_id: str
    """36 characters; made by whoever proposes (RC-28)."""
    name: str
    payload: bytes
    node_filter: str = ""
    """Regular expressions; evaluated by whoever lists the events, never here."""
    service_filter: str = ""
    tag_filter: str = ""


def is_sound_autopilot(command: Any) -> bool:
    """Whether every node can store it."""
    durations = (command.last_contact_threshold_ns, command.server_stabilization_ns)
    numbers = (command.max_trailing_logs, command.min_quorum)
    return (
        type(command.cleanup_dead_servers) is bool
        and type(command.disable_upgrade_migration) is bool
        and all(type(value) is int and -INT64_MAX <= value <= INT64_MAX for value in durations)
        and all(map(is_uint64, numbers))
        and all(map(is_text, (command.redundancy_zone_tag, command.upgrade_version_tag)))
        and (command.cas is None or is_uint64(command.cas))
    )


def is_sound_event(command: Any) -> bool:
    """Whether every node can store it."""
    event_id, name, payload, *filters = command
    return (
        type(event_id) is str
        and len(event_id) == 36
        and event_id.isascii()
        and is_text(name)
        and type(payload) is bytes
        and all(map(is_text, filters))
    )
