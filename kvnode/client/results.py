"""What the client returns: plain values, parsed and checked once."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from kvnode.errors import RemoteProtocolError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class KVPair:
    """A stored key (Consul kv API)."""

    key: str
    value: bytes
    """Empty for an empty value, which the JSON writes as null."""
    flags: int
    """Any number below 2^64 that the writer gave; 0 when it gave none."""
    create_index: int
    modify_index: int
    """Log index of the last write; give it as ``cas`` to write only if nobody else did meanwhile."""
    lock_index: int
    """How often the key was locked."""
    session: str | None
    """Who holds the lock; None when nobody does."""
    ttl: str = ""
    """How long it lives, such as ``1h30m0s``; empty: until it is deleted, or nobody asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """A read's result with what the server said about it."""

    value: T
    index: int
    """Give it as ``index`` of the next read to wait for a change."""
    known_leader: bool
    last_contact_ms: int
    """How long ago the answering node last heard a leader; 0 for linearizable reads."""
    node: str
    """Name of the node that answered; empty when it does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """A part of a list."""

    items: tuple[T, ...]
    next_after: str | None
    """Give it as ``after`` for the next page; None: this was the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node of the cluster as ``/v1/agent/members`` shows it."""

    name: str
    address: str
    """Peer address, ``host:port``."""
    status: str
    """``alive``, ``leaving``, ``left``, ``failed`` or ``none``."""
    node_id: str
    datacenter: str
    build: str
    read_replica: bool = False
    """Never votes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftPeer:
    """A member of the Raft group as ``/v1/operator/raft/configuration`` shows it."""

    node_id: str
    name: str
    address: str
    leader: bool
    voter: bool
    last_index: int
    """How far its log reaches; 0 when the server does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one log entry did to one key."""

    event_id: str
    """Give it as ``since`` to go on behind this change; empty for an entry of the initial state."""
    index: int
    """Log index of the change."""
    key: str
    by: str
    """What did it, such as ``put`` or ``delete-tree``; ``initial`` for an entry of the initial state."""
    new: KVPair | None
    """None: there is no such key any more."""
    old: KVPair | None
    """None: there was no such key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """What a key was from one index on."""

    index: int
    by: str
    """What did it; empty when that is not known any more."""
    pair: KVPair | None
    """None: deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The newest revisions of a key."""

    revisions: tuple[Revision, ...]
    """The newest first."""
    complete: bool
    """Whether the server knows no older ones."""
    oldest_index: int
    """Where the window of changes that are kept begins."""


_STATUS = {0: "none", 1: "alive", 2: "leaving", 3: "left", 4: "failed"}


def parse_pairs(body: bytes) -> tuple[KVPair, ...]:
    """Parse the answer to a KV read.

    Raises:
        RemoteProtocolError: It is not what the API promises.
    """
    try:
        return tuple(_pair(item) for item in _array(body))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise RemoteProtocolError(f"not a list of pairs: {body[:200]!r}") from error


def parse_revisions(body: bytes) -> tuple[Revision, ...]:
    """Parse the answer to ``?history``.

    Raises:
        RemoteProtocolError: It is not what the API promises.
    """
    try:
        return tuple(
            Revision(index=int(item["Index"]), by=item["By"] or "", pair=_maybe(item["Entry"]))
            for item in _array(body)
        )
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise RemoteProtocolError(f"not a list of revisions: {body[:200]!r}") from error


def parse_change(event_id: str, data: str) -> Change:
    """Parse the data of an event of a change feed.

    Raises:
        RemoteProtocolError: It is not what the API promises.
    """
    try:
        item = json.loads(data)
        return Change(
            event_id=event_id,
            index=int(item["Index"]),
            key=str(item["Key"]),
            by=str(item["By"]),
            new=_maybe(item["New"]),
            old=_maybe(item["Old"]),
        )
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise RemoteProtocolError(f"not a change: {data[:200]!r}") from error


def parse_entry(data: str) -> Change:
    """Parse an entry of the state that a change feed begins with.

    Raises:
        RemoteProtocolError: It is not what the API promises.
    """
    try:
        pair = _pair(json.loads(data))
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise RemoteProtocolError(f"not an entry: {data[:200]!r}") from error
    return Change(
        event_id="", index=pair.modify_index, key=pair.key, by="initial", new=pair, old=None
    )


def _maybe(item: dict[str, Any] | None) -> KVPair | None:
    return None if item is None else _pair(item)


def parse_keys(body: bytes) -> tuple[str, ...]:
    """Parse the answer to ``?keys``.

    Raises:
        RemoteProtocolError: It is not what the API promises.
    """
    try:
        return tuple(str(item) for item in _array(body))
    except (TypeError, ValueError) as error:
        raise RemoteProtocolError(f"not a list of keys: {body[:200]!r}") from error


def parse_truth(body: bytes) -> bool:
    """Parse the ``true`` or ``false`` of a write.

    Raises:
        RemoteProtocolError: It is neither.
    """
    match body.strip():
        case b"true":
            return True
        case b"false":
            return False
        case other:
            raise RemoteProtocolError(f"neither true nor false: {other[:200]!r}")


def parse_number(body: bytes) -> int:
    """Parse one whole number.

    Raises:
        RemoteProtocolError: It is none.
    """
    try:
        return int(body)
    except ValueError as error:
        raise RemoteProtocolError(f"not a number: {body[:200]!r}") from error


def parse_text(body: bytes) -> str:
    """Parse one JSON string.

    Raises:
        RemoteProtocolError: It is none.
    """
    try:
        text = json.loads(body)
    except ValueError as error:
        raise RemoteProtocolError(f"not JSON: {body[:200]!r}") from error
    if not isinstance(text, str):
        raise RemoteProtocolError(f"not a text: {body[:200]!r}")
    return text


def parse_members(body: bytes) -> tuple[Member, ...]:
    """Parse ``/v1/agent/members``, sorted by name: the server gives them in no order.

    Raises:
        RemoteProtocolError: It is not what the API promises.
    """
    try:
        members = [_member(item) for item in _array(body)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RemoteProtocolError(f"not a list of members: {body[:200]!r}") from error
    return tuple(sorted(members, key=lambda member: member.name))


def parse_peers(body: bytes) -> tuple[RaftPeer, ...]:
    """Parse ``/v1/operator/raft/configuration``, sorted by name.

    Raises:
        RemoteProtocolError: It is not what the API promises.
    """
    try:
        peers = [_peer(item) for item in json.loads(body)["Servers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise RemoteProtocolError(f"not a configuration: {body[:200]!r}") from error
    return tuple(sorted(peers, key=lambda peer: peer.name))


def _array(body: bytes) -> list[Any]:
    items = json.loads(body)
    if not isinstance(items, list):
        raise TypeError("not an array")
    return items


def _pair(item: dict[str, Any]) -> KVPair:
    value = item["Value"]
    return KVPair(
        key=str(item["Key"]),
        value=b"" if value is None else base64.b64decode(value, validate=True),
        flags=int(item["Flags"]),
        create_index=int(item["CreateIndex"]),
        modify_index=int(item["ModifyIndex"]),
        lock_index=int(item["LockIndex"]),
        session=item.get("Session") or None,
        ttl=str(item.get("TTL", "")),
    )


def _member(item: dict[str, Any]) -> Member:
    tags: dict[str, str] = item.get("Tags") or {}
    # Addr and Port are the gossip address in Consul; the port that servers talk to is a tag.
    return Member(
        name=str(item["Name"]),
        address=f"{item['Addr']}:{tags.get('port', item['Port'])}",
        status=_STATUS.get(int(item["Status"]), "none"),
        node_id=str(tags.get("id", "")),
        datacenter=str(tags.get("dc", "")),
        build=str(tags.get("build", "")).partition(":")[0],
        read_replica=tags.get("read_replica") == "true",
    )


def _peer(item: dict[str, Any]) -> RaftPeer:
    return RaftPeer(
        node_id=str(item["ID"]),
        name=str(item["Node"]),
        address=str(item["Address"]),
        leader=bool(item["Leader"]),
        voter=bool(item["Voter"]),
        last_index=int(item.get("LastIndex", 0)),
    )
