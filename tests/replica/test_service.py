"""What peers may ask: nothing they send is trusted, and only members get what is for members."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.errors import KvnodeError, MembershipRefused, NotLeader, RemoteProtocolError
from kvnode.ports import Hello
from kvnode.raft.types import NodeId
from kvnode.replica.service import MEMBERS_ONLY, Service
from tests.replica.harness import Answers, Cluster


@pytest.fixture
def cluster() -> Cluster:
    found = Cluster(3).found()
    found.led_by(0)
    found.run(0.1)
    return found


def ask(cluster: Cluster, number: int, method: str, payload: Any, **sender: Any) -> Answers:
    machine = cluster.machines[number]
    answers = Answers()
    hello: Hello = cluster.machines[1].transport.hello._replace(**sender)
    Service(machine.replica).handle(
        hello,
        method,
        payload,
        lambda value: answers(value if value is not None else "nothing", None),
        lambda error: answers(None, error),
    )
    cluster.until(lambda: answers.calls)
    return answers


@pytest.mark.parametrize("method", sorted(MEMBERS_ONLY))
@pytest.mark.parametrize("cluster_id", ["", "another"])
def test_strangers_get_nothing_that_is_for_members(
    cluster: Cluster, method: str, cluster_id: str
) -> None:
    answers = ask(cluster, 0, method, None, cluster_id=cluster_id)
    assert isinstance(answers.error, NotLeader)


def test_an_unknown_method_is_refused(cluster: Cluster) -> None:
    assert ask(cluster, 0, "dance", None).error is not None


def test_everybody_may_ask_who_and_what_this_node_is(cluster: Cluster) -> None:
    assert ask(cluster, 0, "who", None, cluster_id="").value == [False, ""]
    role, term, applied, keys = ask(cluster, 0, "pod", None, cluster_id="").value
    assert (role, keys) == ("leader", 0)
    assert term > 0
    assert applied > 0


def test_a_leader_says_that_it_leads_when_a_quorum_confirms_it(cluster: Cluster) -> None:
    """Who may set its data aside depends on it: a leader's own word would not do."""
    leader = cluster.machines[0].replica
    assert ask(cluster, 0, "lead", None, cluster_id="").value == leader.raft.term
    assert isinstance(ask(cluster, 1, "lead", None, cluster_id="").error, NotLeader)
    for machine in cluster.machines[1:]:
        machine.kill()
    assert leader.is_leader
    assert ask(cluster, 0, "lead", None, cluster_id="").error is not None


def test_a_digest_is_told_for_an_index_that_is_known(cluster: Cluster) -> None:
    applied = cluster.machines[0].replica.store.applied_index
    assert len(ask(cluster, 0, "digest", applied).value) == 32
    for index in (applied + 1, -1, "1", None, True):
        assert ask(cluster, 0, "digest", index).value in ("", *[ask(cluster, 0, "digest", 1).value])


def test_members_are_told_where_others_were_heard(cluster: Cluster) -> None:
    answer = ask(cluster, 0, "where", ["n2", "nobody"]).value
    assert answer == [["n2", 1, "n2:1"]]
    for payload in (None, "n2", [1], ["n"] * 65):
        assert isinstance(ask(cluster, 0, "where", payload).error, RemoteProtocolError)


@pytest.mark.parametrize("method", ["join", "join_hop"])
@pytest.mark.parametrize(
    "payload", [None, [], ["a", "b"], [1, 2, 3], ["", "b", "c"], ["a" * 600, "b", "c"]]
)
def test_a_join_of_the_wrong_form_is_refused(cluster: Cluster, method: str, payload: Any) -> None:
    assert isinstance(ask(cluster, 0, method, payload).error, KvnodeError)


def test_a_join_is_passed_on_to_the_leader_once(cluster: Cluster) -> None:
    """RC-59."""
    new = {"node_id": NodeId("x"), "name": "x", "cluster_id": ""}
    answers = ask(cluster, 1, "join", ["x", "x", "x:1"], **new)
    assert answers.value == "n0"
    answers = ask(cluster, 1, "join_hop", ["y", "y", "y:1"])
    assert isinstance(answers.error, NotLeader)


def test_removing_somebody_unknown_is_refused(cluster: Cluster) -> None:
    for payload in ("stranger", ["stranger", 60]):
        assert isinstance(ask(cluster, 0, "remove", payload).error, MembershipRefused)
    for payload in (None, 5, [], ["n1"], ["n1", "60"], [1, 60]):
        assert isinstance(ask(cluster, 0, "remove", payload).error, RemoteProtocolError)


@pytest.mark.parametrize("payload", ["", None, 5, ["n1"]])
def test_a_transfer_without_a_target_goes_to_whoever_is_best(
    cluster: Cluster, payload: Any
) -> None:
    assert ask(cluster, 0, "transfer", payload).value in ("n1", "n2")


def test_a_stopped_node_says_so(cluster: Cluster) -> None:
    cluster.machines[0].replica.stopped = True
    answers = Answers()
    cluster.machines[1].transport.request(NodeId("n0"), "who", None, 1.0, answers)
    cluster.until(lambda: answers.calls)
    assert answers.effect == "no"
