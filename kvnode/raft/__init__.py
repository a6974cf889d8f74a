"""The Raft core: a value-in, value-out machine.

Nothing in this package touches a clock, a disk, a socket or a generator that was not handed in. The
driver feeds it messages (``RawNode.step``), time (``tick``), proposals (``propose``,
``propose_membership``), reads (``read_index``) and completions (``advance``), and takes out one
``Ready`` at a time: what to save, what to send, what to apply. The same inputs in the same order give
the same outputs, so that a whole cluster can be replayed from a seed.

Vocabulary (one name per concept): term, index, ``LogId`` = index@term; role; voter and learner;
propose → append → commit → apply; ``stable`` = on this node's disk; base = where the log begins after
compaction; read round = a numbered heartbeat round that confirms leadership for waiting reads.

Rooms:

- ``types``, ``messages``: the values.
- ``quorum``: arithmetic of majorities.
- ``log``: the log in memory, and which part of it is stable, committed, handed out.
- ``progress``: what a leader knows about one follower.
- ``core``: the state of one node and its transitions of role.
- ``election``, ``replication``, ``read_index``, ``confchange``: the four parts of the protocol, as
  functions over ``Core``.
- ``rawnode``: the door; everything outside uses only this.

Invariants, each kept in one place:

- A message that depends on a term, a vote or an entry leaves after that is durable
  (``Core.send``, ``RawNode.advance``; RC-1 to RC-4).
- A completion of a write counts only for what is still in the log (``RaftLog.stable_to``; RC-5).
- Only entries of the leader's own term are committed by counting (``replication.advance_commit``; RC-21).
- The log never changes at or below the commit index (``RaftLog.append_after``; RC-24).
- Only what is stable *here* is handed out to be applied, so the store never leads the log (RC-10).
- A read is confirmed by a round that began after it arrived, in a term whose no-op is committed
  (``read_index``; RC-22, RC-30, RC-31).
- One uncommitted membership change at a time, one voter at a time, in effect when appended, rolled
  back with the log (``confchange``; RC-42, RC-43, thesis §4.1).

Left out on purpose: joint consensus (one voter at a time is enough and smaller), leader leases for
reads (they trust clocks), forwarding of proposals (the driver does it), entries read back from disk
(the retained log is held in memory and its size is bounded by compaction).
"""

from kvnode.raft.core import RaftConfig, Tracer
from kvnode.raft.rawnode import RawNode, ReadState, Ready

__all__ = ["RaftConfig", "RawNode", "ReadState", "Ready", "Tracer"]
