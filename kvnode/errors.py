"""Every error that crosses a room's border, in one tree.

    KvnodeError
    ├── BadRequest                  the caller's fault; nothing was proposed
    │   ├── KeyTooLong
    │   ├── ValueTooLarge
    │   ├── BadArchive              a snapshot archive is damaged, foreign or hostile
    │   └── Compacted               an index outside the window of history that is kept
    ├── NotNow                      try again; ``took_effect`` says what became of the request
    │   ├── NotLeader(leader_id)    certainly not appended
    │   ├── NoLeader                certainly not appended
    │   ├── Overloaded              certainly not appended; a queue was full
    │   ├── DiskNearlyFull          certainly not appended; the volume's last space is kept (RC-70)
    │   ├── LeadershipLost          appended, then the leader changed: unknown
    │   ├── Timeout                 the deadline passed
    │   └── PeerUnreachable         the connection to a peer failed
    ├── SettingError                a flag, variable or file member cannot be used
    ├── MembershipRefused           a guard refused the change; nothing was appended
    ├── ApiServerFailed             Kubernetes' API server did not say what was asked; never "nothing"
    ├── ProtocolError
    │   ├── LocalProtocolError      our bug
    │   └── RemoteProtocolError     a bad peer; costs it the connection
    └── MustStop                    this node must stop
        ├── DiskFailed              a write or sync failed: never retried (RC-8)
        │   └── DiskFull            … because there is no space left (RC-70)
        ├── CorruptLog              a file is not what its checksum says (RC-71)
        │   ├── VolumeRolledBack    the volume is an old copy of itself (RC-54)
        │   └── StateDiverged       the data is not what the other members hold (RC-74)
        ├── DirectoryInUse          another process owns the data directory (RC-52)
        ├── ForeignDirectory        the directory belongs to another cluster or format
        ├── Removed                 the cluster removed this incarnation (RC-47)
        └── InvariantBroken         something that cannot happen did (RC-75)

A write has three outcomes: done, certainly not done, and *unknown* (RC-58). Errors of the *not now*
family carry the answer in ``took_effect``; a caller may retry blindly only on ``"no"``.
"""

from __future__ import annotations

from typing import Literal

TookEffect = Literal["no", "unknown"]


class KvnodeError(Exception):
    """Root of every error that kvnode raises on purpose."""


class BadRequest(KvnodeError):
    """The caller's fault. Nothing was proposed and nothing was stored."""


class KeyTooLong(BadRequest):
    """A key is longer than the configured bound."""


class ValueTooLarge(BadRequest):
    """A value is larger than the configured bound."""


class Compacted(BadRequest):
    """An index from which the history that is kept does not reach to the present.

    Attributes:
        index: What was asked for.
        oldest: The lowest index that could have been asked for.
        newest: The highest.
    """

    def __init__(self, index: int, oldest: int, newest: int) -> None:
        """Say what could have been asked for."""
        if index > newest:
            text = f"index {index} lies in the future: this cluster is at {newest}"
        else:
            text = f"index {index} is compacted: the history begins at {oldest}"
        super().__init__(text)
        self.index = index
        self.oldest = oldest
        self.newest = newest


class BadArchive(BadRequest):
    """A snapshot archive cannot be used; the text says why. Nothing was changed."""


class NotNow(KvnodeError):
    """The request cannot be answered now.

    Attributes:
        took_effect: ``"no"`` when the request was certainly not appended to the log, ``"unknown"``
            when it may have been.
    """

    took_effect: TookEffect = "no"

    def __init__(self, message: str = "", *, took_effect: TookEffect | None = None) -> None:
        """Keep the message; ``took_effect`` overrides the class's default."""
        super().__init__(message or self.__class__.__name__)
        if took_effect is not None:
            self.took_effect = took_effect


class NotLeader(NotNow):
    """This node does not lead. ``leader_id`` is who does, as far as it knows."""

    def __init__(self, leader_id: str | None = None) -> None:
        """Remember whom to ask instead."""
        super().__init__("not the leader")
        self.leader_id = leader_id


class NoLeader(NotNow):
    """No leader is known, and none appeared within the time allowed."""


class Overloaded(NotNow):
    """A bounded queue is full. Refused before anything was appended (RC-67)."""


class DiskNearlyFull(NotNow):
    """The volume is nearly full, so writes that add data are refused; the text says how full (RC-70)."""


class LeadershipLost(NotNow):
    """The entry was appended, but the leader changed before it was known to be committed."""

    took_effect: TookEffect = "unknown"


class Timeout(NotNow):
    """The deadline passed first."""

    took_effect: TookEffect = "unknown"


class PeerUnreachable(NotNow):
    """The connection to a peer could not be made, or broke."""


class SettingError(KvnodeError):
    """A flag, a variable or a file member cannot be used. The text begins with its name."""


class MembershipRefused(KvnodeError):
    """A guard refused a membership change (RC-43, RC-45). Nothing was appended."""


class ApiServerFailed(KvnodeError):
    """Kubernetes' API server could not be asked, or did not say. The text ends in what to do about it."""


class ProtocolError(KvnodeError):
    """Two ends disagree about the protocol."""


class LocalProtocolError(ProtocolError):
    """Our own code broke the protocol."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol. It costs it the connection, nothing else."""


class MustStop(KvnodeError):
    """The node cannot go on safely. The process ends with a non-zero code."""


class DiskFailed(MustStop):
    """A write or a sync failed. It is never retried: the kernel may have dropped the data (RC-8)."""


class DiskFull(DiskFailed):
    """No space left on the device, or a quota is used up (RC-70)."""


class CorruptLog(MustStop):
    """Durable data is not what its checksum says (RC-71, RC-73)."""


class VolumeRolledBack(CorruptLog):
    """This node's volume is older than what its peers have heard of it (RC-54): what it acknowledged and
    voted since is not there.
    """


class StateDiverged(CorruptLog):
    """This node's data is not what a majority of the members holds at the same index (RC-74)."""


class DirectoryInUse(MustStop):
    """Another process holds, or has taken over, the data directory (RC-52)."""


class ForeignDirectory(MustStop):
    """The data directory was written by another cluster, node or format version."""


class Removed(MustStop):
    """The cluster removed this incarnation. Its data is set aside at the next start (RC-47, RC-51).

    Attributes:
        served: Whether the node had served as a member since it started. If not, an old volume came
            back, and the agent may start over at once as a new incarnation.
    """

    def __init__(self, message: str, *, served: bool) -> None:
        """Keep the text and what the agent needs to decide."""
        super().__init__(message)
        self.served = served


class InvariantBroken(MustStop):
    """Something that cannot happen did. Going on could destroy data (RC-75)."""
