"""Seeds that found something, kept for good, with one line on what it was.

The simulator changes, and with it what a seed does; the line tells the story that the seed stood for.
"""

from __future__ import annotations

REGRESSIONS: dict[int, str] = {
    11: "requests that came back at once were forwarded again in a hot loop",
    44: "a second machine that expects one node founded a cluster of its own",
    156: "a pledge was released while the identity with the cluster id was being written",
    2010: "an uncommitted removal was told to the removed node, which set its data aside for good",
    220: "two new machines founded a second cluster while the first one was down",
}
