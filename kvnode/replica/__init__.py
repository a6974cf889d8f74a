"""The driver: one node's raft core, log, store and peers, put together.

``Replica`` is synchronous call-back code over the ports of ``kvnode.ports``. The agent gives it the
event loop, the disk's threads and TCP; the simulator gives it virtual time, a faulty disk and a faulty
network, and runs the very same code.

Vocabulary: a *turn* takes everything that came in since the last one; the *desk* holds every open
request; *hopped* marks what a peer forwarded; a *pledge* binds an empty node to one cluster while it is
being bootstrapped.

Rooms:

- ``facade``: what the rooms above may ask, and the values that they get.
- ``replica``: the turn, and the calls from above and from the transport.
- ``intake``: requests come in. ``requests``: the desk, which knows all open ones. ``forwarding``: the one
  hop to the leader. ``service``: what peers may ask.
- ``formation``: how an empty node bootstraps or joins. ``stewardship``: the leader admits, promotes,
  replaces and removes.
- ``scaling``: members that the StatefulSet does not want any more. ``departure``: how a node stops, and is
  removed before when it will not come back.
- ``applier``: committed entries reach the store; the end of a restore swaps it.
- ``snapshots``, ``recovery``, ``upkeep``, ``history``: streams, the start, compaction, reaping and trimming.
- ``autopilot``: the leader's judgement of the members; who was silent for too long is given up.
- ``comparison``: do all members hold the same data? ``administration``: what operators ask.
- ``lineage``: whose volume is an old copy. ``listener``: what the transport tells.
- ``peers``: whom to stay connected with.
- ``sessions``: renewals on their way. ``session_timers``: the leader's clocks. ``lock_delays``: how long ago
  sessions ended, noted by every node.
- ``expiry``: the leader's clocks of keys.
- ``registrar``: members as nodes of the registry, and their health. ``check_timers``: the leader's clocks
  of checks. ``deadlines``: many of them.
- ``addresses``, ``status``, ``pods``, ``codec``, ``settings``.

Invariants:

- The order of ``Ready``: saved before what depends on it leaves; applied only when durable here
  (``Replica._handle``, ``Replica._saved``).
- Each request is answered once, and an error says whether it may have taken effect
  (``requests.Desk``; RC-58).
- A request is forwarded once (RC-59), and retried inside only when it was certainly not appended.
- Discovery gives addresses to try. It never adds, removes or counts a member (RC-56).
- A cluster is written only after every expected node has durably pledged itself to it (RC-55).
- While a snapshot is loaded, or a restore carried out, nothing is applied (RC-38).
- A key that expires is never deleted before its time is over, nor after it was written anew
  (``expiry``).
- A session is never ended before its TTL, and what one leader's clock says is not carried on to another
  (RC-61). A lock-delay may be lengthened, and is never shortened (RC-62).

- A member is removed for being scaled away only on a fresh, certain answer of the API server, when it asks
  for it or was silent for a grace, and while a majority of the others answers (``scaling``, ``departure``).

Left out on purpose: tasks and futures (completions are plain call-backs in the turn that decided
them), and read leases.
"""

from kvnode.replica.facade import (
    Consistency,
    MemberStatus,
    PodStatus,
    ReadView,
    ReplicaFacade,
    Status,
)
from kvnode.replica.replica import Replica
from kvnode.replica.settings import ReplicaSettings

__all__ = [
    "Consistency",
    "MemberStatus",
    "PodStatus",
    "ReadView",
    "Replica",
    "ReplicaFacade",
    "ReplicaSettings",
    "Status",
]
