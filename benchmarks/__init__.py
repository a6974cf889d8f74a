"""The benchmarks: kvnode beside etcd and Consul, on one machine, under the same load.

What it is. `make bench` runs `benchmarks/run.py`: it starts a three-node cluster of every system it
finds, all on loopback and all on one file system, and drives them in turn with `wrk` from one Lua
script that replays the same keys and the same values. `docs/benchmarks.md` is for people who want to
run it or to read its figures; this is for people who change it.

Vocabulary.

- *system*: kvnode, etcd or Consul; *cluster*: three node processes of one system.
- *workload*: `put` or `get`; *target*: `leader` (all connections to the leader) or `any` (spread
  evenly over the three nodes).
- *cell*: one workload, target and number of connections. *measurement*: one wrk run in one cell on one
  system. *round*: one measurement of the cell on each system, back to back.
- *tag*: twelve characters at the head of every value that say which measurement wrote it.
- *void*: a measurement that saw one error or whose writes are not all there afterwards. It is shown as
  void and its figures enter no median.

Invariants.

- One system is under load at a time, and the systems take turns within each round, so that a slow
  minute of the machine meets them all. Ratios are taken within a round and only then summarized.
- Equal work: the same keys, values, key order and connections for every system; keep-alive for all;
  reads are linearizable everywhere; every system keeps its own default durability (all three sync
  before they acknowledge).
- A figure is published only together with the proof that the work was done: answers are checked one
  by one in the warm-up, their mean size in every measurement, and after a put every key is read back.
- Every wait has a deadline; every process we started is stopped by its pid, on every way out.

Not done, and why: no tuning of any system (defaults are what people run); no remote client (the machine
is one); no gRPC for etcd, whose JSON gateway is the one interface that plain HTTP clients share.
"""
