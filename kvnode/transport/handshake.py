"""Who may talk to whom: introductions and the reasons to refuse one. Pure, and in one place.

The dialler speaks first; the listener answers with its own ``HELLO`` or with ``REFUSED`` and a reason,
so that a stranger who says nothing sensible learns nothing. Both ends judge the other by the same
function. A ``HELLO`` may be sent again on an open connection (a node has just got its cluster id), and
is then judged again.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum, IntEnum
from typing import Any, Final, NamedTuple

from kvnode.errors import LocalProtocolError, RemoteProtocolError
from kvnode.ports import Hello
from kvnode.raft.types import NodeId
from kvnode.transport import framing

PROTOCOL: Final = 1
"""What this build speaks; goes into ``Hello.protocol``."""
PROTOCOL_OLDEST: Final = 1
"""The oldest one it still understands. A newer peer decides for itself whether it understands us."""

MAGIC: Final = "kvnode"
TEXT_LEN_MAX: Final = 512
NODE_ID_LEN_MAX: Final = 64
INT_LIMIT: Final = 2**63
BOOTS_MAX: Final = 4096
RUNS_MAX: Final = 64


_FIELDS_MIN: Final = 8
"""Fields of a ``Hello`` that the first builds had; those after them have defaults."""


class Lane(IntEnum):
    """What a connection is for. The numbers are on the wire."""

    FAST = 0
    """Heartbeats, votes and all replies: small, urgent, never behind anything else (RC-69)."""
    BULK = 1
    """Entries, requests and their answers."""
    ASK = 2
    """One request to whoever listens at an address, in any cluster state."""
    SNAPSHOT = 3
    """One snapshot."""


class Refusal(Enum):
    """Why an introduction was not accepted. The values are on the wire."""

    PROTOCOL = "protocol"
    """The peer's protocol version is too old for us."""
    CLUSTER = "cluster"
    """Both belong to a cluster, and not to the same one."""
    IDENTITY = "identity"
    """Another node than the one that was looked for: names move between machines (RC-53)."""
    SELF = "self"
    """We dialled ourselves."""
    REMOVED = "removed"
    """This incarnation was removed from the cluster and may not come back (RC-47)."""
    OLD_BOOT = "old boot"
    """A newer process of the same incarnation has been seen (RC-52, RC-54)."""
    ROLLED_BACK = "rolled back"
    """This incarnation has been seen with newer data: its volume is an old copy (RC-52, RC-54)."""
    DUPLICATE = "duplicate"
    """The same incarnation and boot number at two addresses: a cloned data directory (RC-52)."""
    SECRET = "secret"
    """No proof of the peer secret, or one that does not fit."""
    CERTIFICATE = "certificate"
    """The TLS certificate is not for a server of this cluster, or not for the one it says it is."""
    TLS = "tls"
    """A plain connection where TLS is required."""


class Greeting(NamedTuple):
    """A decoded ``HELLO`` frame."""

    hello: Hello
    lane: Lane
    expected: str
    """Node id that the dialler wants to reach; empty: anyone, or sent by the listener."""


class Refused(NamedTuple):
    """A decoded ``REFUSED`` frame."""

    refusal: Refusal | None
    """None: a reason that this build does not know."""
    text: str
    cluster_id: str
    """The refuser's cluster, empty when it has none."""


def hello_frame(hello: Hello, lane: Lane, expected: str = "") -> tuple[Any, ...]:
    """Return the frame that introduces ``hello``. New fields go to the end and are skipped by old
    builds.
    """
    return (framing.HELLO, MAGIC, int(lane), expected, *hello)


def check_hello(ours: Hello) -> None:
    """Check our own introduction as a peer would.

    Raises:
        LocalProtocolError: A peer would refuse it.
    """
    framing.pack_frame(hello_frame(ours, Lane.FAST, "x" * NODE_ID_LEN_MAX), framing.HELLO_BYTES_MAX)
    try:
        parse_hello(hello_frame(ours, Lane.FAST))
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from error


def parse_hello(frame: tuple[Any, ...]) -> Greeting:
    """Read a ``HELLO`` frame.

    Raises:
        RemoteProtocolError: It is none, or a field has the wrong type or is out of bounds.
    """
    if len(frame) < 4 + _FIELDS_MIN or frame[0] != framing.HELLO or frame[1] != MAGIC:
        raise RemoteProtocolError("not an introduction")
    lane, expected, protocol, cluster_id, node_id, name, boot, address, http_address, expect = (
        frame[2 : 4 + _FIELDS_MIN]
    )
    runs, term, last_index = _parse_lineage(frame[4 + _FIELDS_MIN :])
    for text in (expected, cluster_id, node_id, name, address, http_address):
        if type(text) is not str or len(text) > TEXT_LEN_MAX:
            raise RemoteProtocolError("an introduction's text is missing or too long")
    for number in (lane, protocol, boot, expect, term, last_index, *runs):
        if type(number) is not int or not 0 <= number < INT_LIMIT:
            raise RemoteProtocolError("an introduction's number is missing or out of range")
    if not 0 < len(node_id) <= NODE_ID_LEN_MAX:
        raise RemoteProtocolError("an introduction without a node id")
    try:
        lane = Lane(lane)
    except ValueError as error:
        raise RemoteProtocolError(f"unknown lane {lane}") from error
    hello = Hello(
        protocol,
        cluster_id,
        NodeId(node_id),
        name,
        boot,
        address,
        http_address,
        expect,
        runs,
        term,
        last_index,
    )
    return Greeting(hello, lane, expected)


def _parse_lineage(fields: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any, Any]:
    """Read what the first builds did not say: runs, term and last index."""
    if len(fields) < 3:
        return (), 0, 0
    runs = fields[0]
    if type(runs) not in (tuple, list) or len(runs) > RUNS_MAX:
        raise RemoteProtocolError("an introduction's runs are malformed")
    return tuple(runs), fields[1], fields[2]


def refused_frame(refusal: Refusal, text: str, ours: Hello) -> tuple[Any, ...]:
    """Return the frame that refuses; it carries our cluster id, so that a ``removed`` from some other
    cluster cannot make a node give up its data.
    """
    return (framing.REFUSED, refusal.value, text[:TEXT_LEN_MAX], ours.cluster_id)


def parse_refused(frame: tuple[Any, ...]) -> Refused:
    """Read a ``REFUSED`` frame.

    Raises:
        RemoteProtocolError: It is none.
    """
    if len(frame) < 4 or any(type(t) is not str or len(t) > TEXT_LEN_MAX for t in frame[1:4]):
        raise RemoteProtocolError("malformed refusal")
    _, reason, text, cluster_id = frame[:4]
    try:
        refusal = Refusal(reason)
    except ValueError:
        refusal = None
    return Refused(refusal, text, cluster_id)


def judge(
    ours: Hello,
    theirs: Hello,
    *,
    lane: Lane,
    expected: str,
    removed: bool,
    rolled_back: bool = False,
) -> tuple[Refusal, str] | None:
    """Decide whether two nodes may talk on ``lane``; boot numbers are ``Boots``' business.

    Args:
        ours: How we introduce ourselves now.
        theirs: What the other side said.
        lane: The connection's purpose.
        expected: The node id that a dialler looks for; empty: anyone. Listeners pass the empty one
            and ask ``misdirected`` besides.
        removed: Whether the peer's incarnation is on our list of removed ones.
        rolled_back: Whether newer data of the peer's incarnation have been seen.

    Returns:
        None when they may, else the reason and a sentence for the log.
    """
    if theirs.protocol < PROTOCOL_OLDEST:
        return Refusal.PROTOCOL, f"protocol {theirs.protocol}, oldest supported {PROTOCOL_OLDEST}"
    if theirs.node_id == ours.node_id:
        return _judge_own_id(ours, theirs, lane)
    if ours.cluster_id and theirs.cluster_id and ours.cluster_id != theirs.cluster_id:
        return Refusal.CLUSTER, f"cluster {theirs.cluster_id}, ours is {ours.cluster_id}"
    if removed:
        return Refusal.REMOVED, "this incarnation was removed from the cluster"
    if rolled_back:
        return Refusal.ROLLED_BACK, (
            f"newer data of node {theirs.node_id} were seen than boot {theirs.boot} has: an old copy of "
            f"its volume was brought back, or two processes live on copies of it"
        )
    if expected and theirs.node_id != expected:
        return Refusal.IDENTITY, f"node {theirs.node_id} lives here, not {expected}"
    return None


def _judge_own_id(ours: Hello, theirs: Hello, lane: Lane) -> tuple[Refusal, str] | None:
    if theirs.boot == ours.boot and theirs.address == ours.address:
        # Asking every pod includes oneself; being one's own peer would be an error.
        return None if lane is Lane.ASK else (Refusal.SELF, "this is the node itself")
    if theirs.boot < ours.boot:
        return Refusal.OLD_BOOT, f"boot {theirs.boot}, this process is boot {ours.boot}"
    return Refusal.DUPLICATE, f"our own node id at {theirs.address}, boot {theirs.boot}"


def misdirected(ours: Hello, greeting: Greeting) -> tuple[Refusal, str] | None:
    """For a listener: whether the dialler looked for somebody else."""
    if greeting.expected and greeting.expected != ours.node_id:
        return Refusal.IDENTITY, f"node {ours.node_id} lives here, not {greeting.expected}"
    return None


class _Seen:
    __slots__ = ("address", "boot", "open")

    def __init__(self, boot: int, address: str) -> None:
        self.boot = boot
        self.address = address
        self.open = 0


class Boots:
    """The highest boot number seen of each incarnation (RC-52, RC-54).

    Kept in memory only; what has to outlive this process is the driver's business (``rolled_back``). At
    most ``BOOTS_MAX`` incarnations are remembered; those without an open connection go first.
    """

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        """Nobody has been seen."""
        self._seen: OrderedDict[NodeId, _Seen] = OrderedDict()

    def enter(self, hello: Hello) -> tuple[Refusal, str] | None:
        """Admit one connection of ``hello``, or say why not. Every admission needs one ``leave``."""
        seen = self._seen.get(hello.node_id)
        if seen is None:
            self._make_room()
            seen = self._seen[hello.node_id] = _Seen(hello.boot, hello.address)
        elif hello.boot < seen.boot:
            return Refusal.OLD_BOOT, f"boot {hello.boot}, seen boot {seen.boot}"
        elif hello.boot > seen.boot:
            seen = self._seen[hello.node_id] = _Seen(hello.boot, hello.address)
        elif hello.address != seen.address:
            if seen.open:
                return Refusal.DUPLICATE, f"boot {hello.boot} also lives at {seen.address}"
            seen.address = hello.address
        self._seen.move_to_end(hello.node_id)
        seen.open += 1
        return None

    def update(self, hello: Hello) -> None:
        """An admitted node introduced itself again: it may have a new address."""
        seen = self._seen.get(hello.node_id)
        if seen is not None and seen.boot == hello.boot:
            seen.address = hello.address

    def leave(self, hello: Hello) -> None:
        """One admitted connection of ``hello`` is gone."""
        seen = self._seen.get(hello.node_id)
        if seen is not None and seen.boot == hello.boot and seen.open:
            seen.open -= 1

    def is_outdated(self, hello: Hello) -> bool:
        """Whether a newer process of the same incarnation was admitted."""
        seen = self._seen.get(hello.node_id)
        return seen is not None and hello.boot < seen.boot

    def _make_room(self) -> None:
        if len(self._seen) < BOOTS_MAX:
            return
        oldest = next((i for i, seen in self._seen.items() if not seen.open), None)
        self._seen.pop(oldest if oldest is not None else next(iter(self._seen)))
