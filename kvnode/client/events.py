"""Server-sent events, taken apart as they arrive (WHATWG HTML §9.2)."""

from __future__ import annotations

from typing import Final, NamedTuple

from kvnode.errors import RemoteProtocolError

BLOCK_BYTES_MAX: Final = 64 * 1024 * 1024
"""A longer event is refused: nobody sends one."""


class Event(NamedTuple):
    """One block of a stream."""

    name: str
    """Empty: none was given."""
    id: str
    """Empty: none was given; the last one goes on to count."""
    data: str
    comment: str


class EventParser:
    """Cuts a stream of bytes into events; knows nothing of sockets."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes; return the events that they complete.

        Raises:
            RemoteProtocolError: It is no stream of events.
        """
        if b"\n" not in data:  # a part of a large event: joined once, when its end is there
            self._keep(data)
            return []
        text = b"".join((*self._parts, data))
        self._parts, self._size = [], 0
        *blocks, rest = text.split(b"\n\n")
        if rest:
            self._keep(rest)
        return [_parse(block) for block in blocks]

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > BLOCK_BYTES_MAX:
            raise RemoteProtocolError(f"an event of more than {BLOCK_BYTES_MAX} bytes")
        self._parts.append(data)


def _parse(block: bytes) -> Event:
    fields: dict[str, list[str]] = {"event": [], "id": [], "data": [], "": []}
    try:
        lines = block.decode().split("\n")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError("an event is no UTF-8") from error
    for line in lines:
        name, _, value = line.partition(":")
        if name in fields:
            fields[name].append(value.removeprefix(" "))
    name, event_id = (fields[key][-1] if fields[key] else "" for key in ("event", "id"))
    return Event(name, event_id, "\n".join(fields["data"]), "\n".join(fields[""]))
