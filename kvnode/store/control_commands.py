"""Commands about the cluster itself: how it looks after its members, and events for its users.

See ``commands`` for what holds for all of them. These have the numbers from 20 on.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

EVENTS_KEPT: Final = 256
"""The newest events; an older one is forgotten when another comes (spec §12). Never to be changed:
it decides what an entry does."""
UINT64_MAX: Final = (1 << 64) - 1
INT64_MAX: Final = (1 << 63) - 1


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
        and all(type(value) is int and 0 <= value <= UINT64_MAX for value in numbers)
        and all(map(_is_text, (command.redundancy_zone_tag, command.upgrade_version_tag)))
        and (command.cas is None or (type(command.cas) is int and 0 <= command.cas <= UINT64_MAX))
    )


def is_sound_event(command: Any) -> bool:
    """Whether every node can store it."""
    event_id, name, payload, *filters = command
    return (
        type(event_id) is str
        and len(event_id) == 36
        and event_id.isascii()
        and _is_text(name)
        and type(payload) is bytes
        and all(map(_is_text, filters))
    )


def _is_text(value: object) -> bool:
    if type(value) is not str:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
