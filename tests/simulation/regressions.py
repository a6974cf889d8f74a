"""Seeds that found something, kept for good, with one line on what it was.

The simulator changes, and with it what a seed does; the line tells the story that the seed stood for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from tests.simulation.cluster import Simulation
from tests.simulation.swarm import draw

REGRESSIONS: dict[int, str] = {
    11: "requests that came back at once were forwarded again in a hot loop",
    44: "a second machine that expects one node founded a cluster of its own",
    156: "a pledge was released while the identity with the cluster id was being written",
    2010: "an uncommitted removal was told to the removed node, which set its data aside for good",
    600006: "a new leader's wait for its first commit was taken from the time of a check reported since",
    6009: "an uncommitted removal of the next leader was taken back, and nobody dialled it again",
    77000218: "a leader that missed its answers offered a follower snapshots that it did not need, for ever",
    63057385838: "the newest write of a log, turned to zeros at rest, was taken for one that a crash cut off",
    139554652: "the simulator tried one of a peer's addresses for a snapshot, twice the old one",
    299399239090: "the workload of locks remembered a lock-delay that the next lock had ended",
    299399239144: "the same, by another way",
    284874820192: "a request on its way when the clients stopped was not waited for",
    246938776313: "a promised node that its cluster had removed before it heard of it waited for ever",
    693362142: "the workload of sessions did not know of a node that became a member after its session",
    342931440343: "who was removed while a change of it was under way stayed in the catalog for a minute",
    342931439157: "the checker did not count a received snapshot on a disk whose log was still to be reset",
    146210523387: "the checker took a tail that a later leader replaced by older entries for a lost one",
    593751862: "the workload of blocking queries asked whoever is up while both of two were being restarted",
    717647990364: "a volume was wiped while another voter's was an old copy that nobody had noticed yet",
    324703084363: "a founder of one founded again on an emptied volume: decision 0006 says who may",
    220: "two new machines founded a second cluster while the first one was down",
}


class Case(NamedTuple):
    """A seed with a mix of its own."""

    seed: int
    faults: tuple[str, ...]
    settings: dict[str, Any]
    story: str


CASES: tuple[Case, ...] = (
    Case(
        74,
        ("wipe", "remove", "grow", "stop", "power", "transfer", "cut_isolate"),
        {"size": 3, "machines": 5, "pace_s": 0.5, "log_entries_max": 10, "seconds": 15.0},
        "a learner with an old membership could not answer a leader it did not know as a member",
    ),
)


def run_case(case: Case) -> None:
    """Run one seed with its own mix."""
    swarm = replace(draw(case.seed), faults=dict.fromkeys(case.faults, 2.0), **case.settings)
    Simulation(case.seed, swarm=swarm).run()
