"""spec §2.2, §2.4 (parameters) and §3."""

from __future__ import annotations

import pytest

from kvnode import errors
from kvnode.replica.facade import Consistency, ReadView
from tests.conformance.wire import Kv, Wire
from tests.http.fake_replica import FakeReplica


@pytest.mark.parametrize(
    ("query", "effective"),
    [
        ("", "leader"),
        ("leader", "leader"),
        ("cached", "leader"),
        ("consistent", "consistent"),
        ("consistent=", "consistent"),
        ("stale", "stale"),
        ("stale=false", "stale"),
        ("max_stale=10s", "stale"),
        ("max_stale=0s", "leader"),
        ("max_stale=", "leader"),
        ("max_stale=-5s", "leader"),
    ],
)
async def test_consistency_modes(kv: Kv, query: str, effective: str) -> None:
    """Spec §3, §1.7."""
    await kv.put("a", "1")
    await kv.entry("a")  # a follower has applied it now, so a stale read finds it
    answer = await kv.get("a", query)
    assert answer.status == 200
    assert answer.headers["x-consul-effective-consistency"] == effective


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (
            "stale&consistent",
            "Cannot specify ?stale with ?consistent, conflicting semantics.",
        ),
        (
            "consistent&max_stale=1s",
            "Cannot specify ?stale with ?consistent, conflicting semantics.",
        ),
        (
            "cached&consistent",
            "Cannot specify ?cached with ?consistent, conflicting semantics.",
        ),
        ("max_stale=abc", 'Invalid max_stale value "abc"'),
        ("max_stale=10", 'Invalid max_stale value "10"'),
        ("index=-1", "Invalid index"),
        ("index=abc", "Invalid index"),
        ("index=1.5", "Invalid index"),
        ("index=18446744073709551616", "Invalid index"),
        ("wait=1", "Invalid wait time"),
        ("wait=abc", "Invalid wait time"),
        ("wait=10x", "Invalid wait time"),
        ("wait=abc&index=x", "Invalid wait time"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_bad_options_are_400(kv: Kv, method: str, query: str, text: str) -> None:
    """Spec §2.4, §3, §17 (7): checked on writes too, and nothing is stored."""
    answer = await kv.wire(method, kv.path("a", query), b"1" if method == "PUT" else b"")
    assert (answer.status, answer.text) == (400, text)
    assert (await kv.get("a")).status == 404


@pytest.mark.parametrize(
    "query",
    [
        "index=",
        "index=0",
        "wait=",
        "wait=0s",
        "wait=15000ms",
        "wait=9.97s",
        "wait=1h30m",
        "wait=-1s",
        "wait=.5s",
        "wait=1%C2%B5s",
        "wait=0",
        "index=0&wait=10m",
    ],
)
async def test_good_options_without_an_index_answer_at_once(kv: Kv, query: str) -> None:
    """Spec §1.3, §2.4: wait alone is ignored."""
    await kv.put("a", "1")
    assert (await kv.get("a", query)).status == 200


async def test_stale_works_without_a_leader_and_says_so(kv: Kv, fake: FakeReplica) -> None:
    """Spec §3, §17 (24); RC-35."""
    await kv.put("a", "1")
    fake.read_error = errors.NoLeader()
    fake.stale_view = ReadView(False, 11385)
    answer = await kv.get("a", "stale")
    assert answer.status == 200
    assert answer.headers["x-consul-knownleader"] == "false"
    assert answer.headers["x-consul-lastcontact"] == "11385"


async def test_max_stale_falls_back_to_the_leader(kv: Kv, fake: FakeReplica) -> None:
    """Spec §3: an answer older than allowed is not given."""
    await kv.put("a", "1")
    fake.stale_view = ReadView(True, 6000)
    assert (await kv.get("a", "max_stale=10s")).headers["x-consul-lastcontact"] == "6000"
    answer = await kv.get("a", "max_stale=5s")
    assert answer.headers["x-consul-effective-consistency"] == "leader"
    assert fake.reads[-2:] == [Consistency.STALE, Consistency.DEFAULT]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_no_leader_is_500_with_retry_after(kv: Kv, fake: FakeReplica, method: str) -> None:
    """Spec §3, §1.6, §17 (23): 500, since 503 is a hard failure for Patroni."""
    fake.read_error = fake.write_error = errors.NoLeader()
    answer = await kv.wire(method, kv.path("a"), b"1" if method == "PUT" else b"")
    assert (answer.status, answer.text) == (500, "No cluster leader")
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("error", "starts"),
    [
        (errors.LeadershipLost(), "leadership lost while committing log"),
        (errors.Timeout(), "timed out"),
        (errors.PeerUnreachable(took_effect="unknown"), "the leader cannot be reached"),
    ],
)
async def test_an_unknown_outcome_is_never_called_a_failure(
    kv: Kv, fake: FakeReplica, error: errors.NotNow, starts: str
) -> None:
    """Spec §3; RC-58."""
    fake.write_error = error
    answer = await kv.put("a", "1")
    assert answer.status == 500
    assert answer.text.startswith(starts)
    assert "outcome of this write is unknown" in answer.text
    assert "retry-after" not in answer.headers
    own = await kv.wire("PUT", f"/kv/{kv.prefix}a", b"1")
    assert own.status == 504
    assert "outcome of this write is unknown" in own.text


async def test_overload_is_500_under_v1_and_429_elsewhere(kv: Kv, fake: FakeReplica) -> None:
    """Design §6: 429 and 503 make Consul's clients drop their locks."""
    fake.write_error = errors.Overloaded("the proposal queue is full")
    answer = await kv.put("a", "1")
    assert answer.status == 500
    assert "nothing was stored" in answer.text
    assert "retry-after" in answer.headers
    own = await kv.wire("PUT", f"/kv/{kv.prefix}a", b"1")
    assert (own.status, own.headers["retry-after"]) == (429, "1")


async def test_no_answer_is_prefixed(kv: Kv, fake: FakeReplica) -> None:
    """Spec §1.6, §17 (26)."""
    fake.write_error = errors.LeadershipLost()
    assert not (await kv.put("a", "1")).text.startswith("rpc error")


async def test_status_needs_no_leader(wire: Wire, fake: FakeReplica) -> None:
    """Spec §3, §7."""
    fake.read_error = errors.NoLeader()
    fake.state = fake.state._replace(leader_id=None, leader_name="", leader_address="")
    answer = await wire("GET", "/v1/status/leader")
    assert (answer.status, answer.text) == (200, '""')
    assert len((await wire("GET", "/v1/status/peers")).json) == 2
    assert (await wire("GET", "/v1/agent/self")).status == 200
    assert (await wire("GET", "/v1/agent/members")).status == 200
    answer = await wire("GET", "/v1/operator/raft/configuration")
    assert (answer.status, answer.text) == (500, "No cluster leader")
    assert (await wire("GET", "/v1/operator/raft/configuration?stale")).status == 200
