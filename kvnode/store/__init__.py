"""The replicated state: an ordered map of keys, its indexes, and nothing that could differ by node.

The replica hands committed entries over in index order (``Store.apply_batch``); the store executes
them and answers with results that are equal on every node. Reads look at this node's state at this
moment; whether that is fresh enough has been decided by whoever asks.

Vocabulary
    *entry*: an index and maybe a command. *Record*: a row's bytes. *Raw key*: a table byte and a key.
    *Grave*, tombstone: what a deletion leaves, so that the index of a list does not fall (spec §2.3);
    one for a key, one for a whole deleted *tree*. *Mark*: 16 bytes of hash of one record; the
    *digest* is the sum of all marks. *Meta*: applied index, table indexes, counters and digest, in
    one record. *Change*: what one entry did to one key; the *window* is what is kept of them, *floor* where
    it begins. *Engine*: the ordered map of bytes below, in memory or RocksDB; *batch*: what it
    writes atomically. *Dump*, *load*: the state as chunks, and back.

Invariants
    - One call of ``apply_batch`` is one engine batch: the changes, the applied index and the digest
      are on disk together or not at all (RC-6). What a crash loses is a suffix of the batches, which
      the Raft log replays (RC-10).
    - Entries are applied once, without gaps, in order; a gap, a repetition or an unknown command
      stops the node (RC-29, RC-75).
    - Results, records and digest depend on the entries alone: no clock, no chance, no set order, and
      not on where batches begin and end (RC-28).
    - Indexes come from the log: ``create_index <= modify_index <= kv_index <= applied_index``. A write
      that changes nothing moves none of them and is told to no listener (spec §2.1).
    - A key is locked by a session that exists, and is let go in the very entry that ends it. A lock that
      stands in the log behind the end of a session, and was proposed without knowing of it, is refused
      while there is a lock-delay (RC-62).
    - A key that expires is deleted only by a command that names the index at which its time began: never
      after it was written anew.
    - A write with an idempotency key is executed once, and its result told to every later one (RC-58).
    - A session ends in the very entry in which one of its checks turns critical or is removed, or its node is
      deregistered. Each kind of read of the registry has an index, which never falls.
    - A transaction is one entry and one index; if any operation fails, nothing of it remains (RC-66).
    - Every change above ``history_floor`` is kept, at most one per key and entry: a reader that goes on
      from its last one misses none and sees none twice. What is trimmed is trimmed by an entry.
    - The digest counts keys, sessions, lock-delays and graves, is kept per write and known for the last
      32,768 indexes, so that nodes compare themselves at a common index (RC-74).
    - A restore is staged in rows that no read sees, and takes effect at one entry, by a fresh engine in the
      place of the old one (``restore``). The index of a read is never below that of the last restore.
    - An engine with rows but without the meta record is no store: never "empty" (RC-50).

Not here, on purpose: time (tombstones, sessions and lock-delays end by a command that the leader
proposes, or at the word of a command that it has judged),
locking in the sense of threads (one task owns the store), waiting (``on_change`` tells who waits),
syncs (the replica decides when to flush), JSON and URLs.

Where to read on: ``kv``, ``locks``, ``txn``, ``registry``, ``control``, ``own`` and ``once`` say what each
command does, ``history`` what is kept of it, ``tables`` how a batch sees itself, ``records`` and
``registry_records`` what is stored, ``reads``, ``registry_reads``, ``snapshot``, ``checks``; ``DESIGN.md``
has the reasons and the measurements.
"""
