"""How nodes talk: connections that are made, kept, checked and repaired by themselves.

The driver says whom to be connected with (``set_peers``), hands over messages, requests and snapshots,
and is called back. Everything about sockets, frames, names and refusals stays in here; ``DESIGN.md``
beside this file is the wire protocol.

Vocabulary:

- *frame*: a 4-byte length and a msgpack array; its first element is its *kind* (``framing``).
- *introduction*: the ``HELLO`` frame, both ways (``handshake``), wrapped into a *proof* of the peer secret
  where there is one (``secret``), inside TLS where there are certificates (``peer_tls``). A connection whose
  two ends accepted each other is *greeted*.
- *lane*: what a connection is for. *fast*: heartbeats, votes and replies. *bulk*: entries, requests and
  answers. *ask*: one question to whoever lives at an address. *snapshot*: one snapshot.
- *dialler* and *listener*: every node dials every peer, so two nodes share four connections. Raft
  messages and requests go from the dialler to the listener, answers and acknowledgements back.
- *stranger*: a connection that has not introduced itself.

Invariants:

- Heartbeats wait for nothing: the fast lane never carries data whose size a client chose (RC-69).
- Everything is bounded: a frame, an array, nesting, unsent bytes per lane, requests under way,
  connections, strangers, unfinished snapshots, remembered node ids, look-ups, log lines (RC-67).
- A slow, dead or hostile peer costs a constant amount of memory and its own connection, nothing else.
- Raft messages reach the driver only from a peer of the same cluster, or, while this node has no
  cluster, from one that the driver agreed to; and each names the peer it really came from.
- Identity is the node id that the other end states, never its address; addresses are resolved at each
  dial, and whoever answers must be the node that was looked for (RC-53).
- With a peer secret nothing is accepted before the other end proved it, not even a refusal that would cost
  this node its data; with certificates a node is heard only under one that names where it lives.
- Of one incarnation only the newest process is listened to (RC-52, RC-54).
- Completions are called exactly once, and never from inside the call that asked.
- What was given to a socket may have arrived: its error says ``took_effect="unknown"``; "no" is said
  only of what was never written (RC-58).
- ``send_snapshot`` succeeds only after the peer said, after the end, that all of it is durable.

Not done here: persistence of the boot numbers seen (a node that has just started believes the
first one it meets); resuming a broken snapshot; compression; any decision about membership.
"""

from kvnode.transport.handshake import PROTOCOL
from kvnode.transport.memory import MemoryNetwork, MemoryTransport
from kvnode.transport.metrics import PeerCounters, TransportMetrics
from kvnode.transport.settings import TransportSettings
from kvnode.transport.tcp import TcpTransport

__all__ = [
    "PROTOCOL",
    "MemoryNetwork",
    "MemoryTransport",
    "PeerCounters",
    "TcpTransport",
    "TransportMetrics",
    "TransportSettings",
]
