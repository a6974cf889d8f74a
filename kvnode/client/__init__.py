"""A small asynchronous client for kvnode's HTTP API (and for Consul's: the routes are the same).

    async with KvnodeClient("http://localhost:8500") as kv:
        await kv.put("greeting", b"hello")
        pair = await kv.get("greeting")

Vocabulary: a *pair* is a stored key with its value and indexes (``KVPair``); *cas* is a write that only
happens if the pair still has a given ``modify_index``; *took_effect* says, for a request that failed,
whether it may have been executed all the same.

Invariants:

- A write of keys carries an ``Idempotency-Key``, and kvnode executes it once: so it is sent again until
  ``timeout_s`` has passed, whatever became of the tries before, unless ``idempotent`` is off. Whether the
  other side is a kvnode is found out first.
- Any other write is sent again only when it was certainly not executed (``took_effect == "no"``): the
  connection was never made, or the server says that there is no leader. Anything else is raised as
  *unknown* (RC-58): sending a compare-and-set twice would turn its success into a failure.
- A read is sent again, to the next of the given addresses, until ``timeout_s`` has passed.
- Every wait has an end: ``timeout_s``, plus the time that a blocking query asks the server to wait.
- Errors are those of ``kvnode.errors``; none of ``aiohttp``'s leaves this package.

``client.changes(prefix)`` follows a change feed (``feed``, ``events``): it goes on from its position at the
next address whenever a stream ends, without a gap and with nothing twice.

``load`` is something else beside it: a generator of load for ``kvnode bench``, with connections of its own.

What it does not do: cache, work in the background, or keep sessions alive. It knows nothing of kvnode's
inside; it imports ``kvnode.errors`` only.
"""

from kvnode.client.client import KvnodeClient
from kvnode.client.feed import ChangeFeed
from kvnode.client.results import Answer, Change, History, KVPair, Member, Page, RaftPeer, Revision
from kvnode.client.tls import ClientTls

__all__ = [
    "Answer",
    "Change",
    "ChangeFeed",
    "ClientTls",
    "History",
    "KVPair",
    "KvnodeClient",
    "Member",
    "Page",
    "RaftPeer",
    "Revision",
]
