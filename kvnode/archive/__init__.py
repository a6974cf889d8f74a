"""Consul's snapshot archive: written so that Consul restores it, and read when Consul wrote it (spec §8).

What it is
----------
A file is gzip of tar of ``meta.json``, ``state.bin`` and ``SHA256SUMS``. ``container`` knows that layer,
``state`` the records inside ``state.bin``, ``save`` makes both from a view of the store, and ``load`` turns
the records into the pieces of a restore (``kvnode.store.restore``). Everything here blocks and runs in
a thread; nothing here knows HTTP, Raft or an event loop.

What rides along
----------------
Consul ends its process at a record type that it does not know, and refuses a further member of the tar. It
ignores members of maps that it does not know (tried on 1.8.7: the header, keys, sessions, ``meta.json``). So
what only kvnode has is a member ``Kvnode`` of those maps: the TTL of a key beside the key, lock-delays in the
header. Whoever restores our archive into Consul loses these and nothing else.

Invariants
----------
- An archive is not trusted. Every length is bounded before it is believed, no name in it is ever a path,
  nothing of it is unpacked anywhere but into one nameless file, and all of it has been checked before the
  first piece is handed out.
- Whatever is wrong is a ``BadArchive`` with a sentence, never another exception.
- What Consul has and kvnode does not (ACLs, intentions, configuration entries…) is skipped and counted.

What it does not hold: membership, the cluster's id, terms and votes. ``meta.json`` names members and term,
because Consul does, and nobody reads them back.
"""

from kvnode.archive.container import Container, Meta, open_container, write_container
from kvnode.archive.load import Loaded, load
from kvnode.archive.save import Saved, save_state

__all__ = [
    "Container",
    "Loaded",
    "Meta",
    "Saved",
    "load",
    "open_container",
    "save_state",
    "write_container",
]
