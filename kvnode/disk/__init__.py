"""Everything that is fsynced, and nothing else.

A node answers for what it said before it crashed: its votes, its entries, its identity. This package
keeps those promises. It knows bytes, files and syncs; it does not know elections, keys or sockets.

Vocabulary:

- *File system*: the seam ``files.FileSystem``. All code here writes through it, so that the simulator
  can put a faulty disk below the very same code.
- *Segment*: one preallocated file of the log. *Frame*: the unit of a sync inside it, one or more
  entries with one checksum. *Seal*: the frame that closes a segment.
- *Base*: where the log starts; a small file that also names the first segment that counts.
- *Hard state*: term and vote, in two copies; with them the log's *synced end*.
- *Journal*: log, base and hard state behind one queue. *Group commit*: calls that wait together share
  one sync.
- *At rest*: the synced end is noted. What is lost before it is damage, never torn.
- *Torn*: written partly when the machine stopped, so never reported durable. *Damaged*: anything else
  that is not what was written.
- *Set aside*: the data of a removed or damaged incarnation, moved away and never deleted.
- *Mark*: the file that remembers damage which a running node came across (``quarantine``).
- *Milestone*: a numbered row in the state engine, by which a hole in its past is noticed.

Invariants:

- What was reported durable is found again after any crash, or opening fails and says which file and
  where. Nothing durable is ever dropped silently (RC-1, RC-2, RC-71).
- Nothing is overwritten in place, except the two copies of the hard state, one after the other.
- A frame is synced before the next one is written, so at most the last one can be torn (RC-71).
- New files are whole and synced before they get their name (RC-9).
- Replacing the base is the one step that makes ``compact`` and ``reset`` true (RC-37).
- After the first error nothing more is written, and no sync is tried again (RC-8).
- A missing or unreadable file is an error where data were, never an empty beginning (RC-50, RC-73).
- What ``open`` returns is durable, also when the process before died between a write and its sync.

What it does not do: it does not repair damage (a damaged node is rebuilt from its peers, and this
package only moves its data out of the way; decision 0008), it does not
cache entries (the core keeps them), and it does not decide what to compact or when.

``DESIGN.md`` beside this file has the formats and what every crash point leaves.
"""
