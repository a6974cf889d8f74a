"""spec §6, §17 (16), (17) and (18): transactions."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from kvnode.errors import LeadershipLost, NoLeader
from tests.conformance.wire import Answer, Kv, Sessions, Wire, read_answer
from tests.http.fake_replica import FakeReplica

NOBODY = "6f1c2c1e-8a2b-4c37-9d55-0f9a6f0f8f11"
TAIL = '"Index":0,"LastContact":0,"KnownLeader":true,"ConsistencyLevel":""}'
HEX = "failed session lookup: index error: Invalid UUID: encoding/hex: invalid byte: U+007A 'z'"


class Txn:
    """Transactions on keys below a prefix of the test's own."""

    def __init__(self, kv: Kv) -> None:
        self.kv = kv
        self.prefix = kv.prefix

    def op(self, verb: str, key: str | None = None, value: str | None = None, **more: Any) -> Any:
        members: dict[str, Any] = {"Verb": verb, **more}
        if key is not None:
            members["Key"] = self.prefix + key
        if value is not None:
            members["Value"] = base64.b64encode(value.encode()).decode()
        return {"KV": members}

    async def __call__(self, *ops: Any, query: str = "") -> Answer:
        return await self.kv.wire("PUT", f"/v1/txn{query}", json.dumps(ops))

    async def ok(self, *ops: Any) -> list[dict[str, Any]]:
        answer = await self(*ops)
        assert answer.status == 200, answer
        assert answer.json["Errors"] is None
        return [result["KV"] for result in answer.json["Results"]]

    async def failed(self, *ops: Any) -> list[tuple[int, str]]:
        answer = await self(*ops)
        assert answer.status == 409, answer
        assert answer.headers["content-type"] == "application/json"
        assert answer.json["Results"] is None
        return [(e["OpIndex"], e["What"].replace(self.prefix, "")) for e in answer.json["Errors"]]

    def names(self, results: list[dict[str, Any]]) -> list[tuple[str, Any]]:
        return [(r["Key"].removeprefix(self.prefix), r["Value"]) for r in results]


@pytest.fixture
def txn(kv: Kv) -> Txn:
    return Txn(kv)


# --- what succeeds


async def test_a_writing_transaction(txn: Txn) -> None:
    """Spec §6: the body to the byte; writes carry none of the query headers."""
    answer = await txn(txn.op("set", "a", "1", Flags=7))
    index = int(answer.headers["x-kvnode-index"])
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.text == (
        f'{{"Results":[{{"KV":{{"LockIndex":0,"Key":"{txn.prefix}a","Flags":7,"Value":null,'
        f'"CreateIndex":{index},"ModifyIndex":{index}}}}}],"Errors":null}}'
    )
    assert "x-consul-knownleader" not in answer.headers
    assert (await txn.kv.entry("a"))["Value"] == "MQ=="


async def test_operations_see_each_other_and_share_an_index(txn: Txn) -> None:
    results = await txn.ok(
        txn.op("set", "a", "1"),
        txn.op("get", "a"),
        txn.op("cas", "b", "2", Index=0),
        txn.op("get-tree", ""),
        txn.op("delete", "a"),
        txn.op("check-not-exists", "a"),
        txn.op("get-or-empty", "a"),
    )
    assert txn.names(results) == [
        ("a", None),
        ("a", "MQ=="),
        ("b", None),
        ("a", "MQ=="),
        ("b", "Mg=="),
        ("a", None),
    ]
    assert len({r["ModifyIndex"] for r in results[:-1]}) == 1
    assert (results[-1]["CreateIndex"], results[-1]["ModifyIndex"]) == (0, 0)
    assert (await txn.kv.get("a")).status == 404


async def test_locks(txn: Txn, sessions: Sessions) -> None:
    session = await sessions.create()
    locked, checked = await txn.ok(
        txn.op("lock", "a", "1", Session=session.upper(), Flags=3),
        txn.op("check-session", "a", Session=session),
    )
    assert (locked["Session"], locked["LockIndex"], locked["Flags"]) == (session, 1, 3)
    assert checked == locked
    assert (await txn.kv.entry("a"))["Session"] == session
    (released,) = await txn.ok(txn.op("unlock", "a", "2", Session=session))
    assert "Session" not in released
    entry = await txn.kv.entry("a")
    assert (entry["Value"], entry["LockIndex"]) == ("Mg==", 1)


async def test_deletions_return_nothing(txn: Txn) -> None:
    for key in ("a", "b/x", "b/y", "c"):
        await txn.kv.put(key, key)
    index = (await txn.kv.entry("c"))["ModifyIndex"]
    answer = await txn(
        txn.op("delete", "a"),
        txn.op("delete", "missing"),
        txn.op("delete-tree", "b/"),
        txn.op("delete-cas", "c", Index=index),
        txn.op("delete-cas", "missing", Index=5),
    )
    assert answer.text == '{"Results":[],"Errors":null}'
    assert (await txn.kv.get("", "recurse")).status == 404


async def test_checks_return_entries_without_values(txn: Txn) -> None:
    await txn.kv.put("a", "1")
    index = (await txn.kv.entry("a"))["ModifyIndex"]
    results = await txn.ok(
        txn.op("check-index", "a", Index=index), txn.op("check-session", "a", Session="")
    )
    assert txn.names(results) == [("a", None), ("a", None)]


async def test_an_identical_set_keeps_its_index(txn: Txn) -> None:
    """Spec §2.1."""
    (first,) = await txn.ok(txn.op("set", "a", "1"))
    (second,) = await txn.ok(txn.op("set", "a", "1"))
    assert second == first


# --- what fails


@pytest.mark.parametrize(
    ("verb", "key", "members", "what"),
    [
        ("cas", "a", {"Index": 1}, 'failed to set key "a", index is stale'),
        ("cas", "none", {"Index": 1}, 'failed to set key "none", index is stale'),
        ("lock", "a", {}, "missing session"),
        ("lock", "a", {"Session": NOBODY}, f'invalid session "{NOBODY}"'),
        (
            "lock",
            "a",
            {"Session": "x"},
            "failed session lookup: index error: UUID must be 36 characters",
        ),
        ("lock", "a", {"Session": "z" + NOBODY[1:]}, HEX),
        ("unlock", "a", {}, "missing session"),
        (
            "unlock",
            "a",
            {"Session": NOBODY},
            'failed to unlock key "a", lock isn\'t held, or is held by another session',
        ),
        (
            "unlock",
            "none",
            {"Session": "x"},
            'failed to unlock key "none", lock isn\'t held, or is held by another session',
        ),
        ("get", "none", {}, 'key "none" doesn\'t exist'),
        ("check-index", "none", {}, 'failed to check index, key "none" doesn\'t exist'),
        ("check-session", "none", {}, 'failed to check session, key "none" doesn\'t exist'),
        (
            "check-session",
            "a",
            {"Session": "x"},
            'failed session check for key "a", current session "" != "x"',
        ),
        ("check-not-exists", "a", {}, 'key "a" exists'),
        ("delete-cas", "a", {"Index": 1}, 'failed to delete key "a", index is stale'),
        ("nope", "a", {}, 'unknown KV verb "nope"'),
        ("SET", "a", {}, 'unknown KV verb "SET"'),
        ("", "a", {}, 'unknown KV verb ""'),
        ("get", 'q"z', {}, 'key "q\\"z" doesn\'t exist'),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("writes", [True, False])
async def test_every_failure_and_its_words(
    txn: Txn, verb: str, key: str, members: dict[str, Any], what: str, writes: bool
) -> None:
    """Spec §6, §17 (16): the rest of the transaction is taken back."""
    await txn.kv.put("a", "1")
    index = (await txn.kv.entry("a"))["ModifyIndex"]
    other = txn.op("set", "b", "2") if writes else txn.op("get", "a")
    # A key is quoted with the test's prefix in front of it.
    assert await txn.failed(other, txn.op(verb, key, **members), other) == [(1, what)]
    assert (await txn.kv.get("b")).status == 404
    assert (await txn.kv.entry("a"))["ModifyIndex"] == index


async def test_an_index_that_is_another_is_told(txn: Txn) -> None:
    await txn.kv.put("a", "1")
    index = (await txn.kv.entry("a"))["ModifyIndex"]
    (failure,) = await txn.failed(txn.op("check-index", "a", Index=1))
    assert failure == (
        0,
        f'failed index check for key "a", current modify index {index} != 1',
    )


async def test_locks_that_are_held_or_delayed(txn: Txn, sessions: Sessions) -> None:
    holder, other = await sessions.create(), await sessions.create()
    await txn.ok(txn.op("lock", "a", "1", Session=holder))
    lock = txn.op("lock", "a", "2", Session=other)
    assert await txn.failed(txn.op("get", "none"), lock) == [
        (0, 'key "none" doesn\'t exist'),
        (1, 'failed to lock key "a", lock is already held'),
    ]
    (failure,) = await txn.failed(txn.op("check-session", "a", Session=other))
    assert (
        failure[1] == f'failed session check for key "a", current session "{holder}" != "{other}"'
    )
    await sessions.destroy(holder)
    delayed = (1, 'failed to lock key "a" due to lock delay')
    assert await txn.failed(txn.op("get", "none"), lock) == [delayed], "looked at before all else"


async def test_all_failures_are_told(txn: Txn) -> None:
    """Spec §6: not only the first."""
    await txn.kv.put("a", "1")
    assert await txn.failed(
        txn.op("get", "none"),
        txn.op("set", "b", "1"),
        txn.op("check-not-exists", "a"),
        txn.op("nope", "a"),
        txn.op("get", "b"),
    ) == [
        (0, 'key "none" doesn\'t exist'),
        (2, 'key "a" exists'),
        (3, 'unknown KV verb "nope"'),
    ]
    assert (await txn.kv.get("b")).status == 404


async def test_missing_keys_are_told_alone(txn: Txn) -> None:
    """Spec §6: looked at before anything else."""
    failures = await txn.failed(
        txn.op("get", "none"), txn.op("set"), {"KV": {}}, txn.op("get-tree"), txn.op("nope")
    )
    assert failures == [(at, "Must provide key") for at in (1, 2, 3, 4)]


async def test_the_whole_tree_may_be_deleted(wire: Wire, fake: FakeReplica) -> None:
    """Spec §6: delete-tree is the one that needs no key."""
    await wire("PUT", "/v1/kv/a", "1")
    answer = await wire("PUT", "/v1/txn", '[{"KV":{"Verb":"delete-tree","Key":""}}]')
    assert (answer.status, fake.store.count()) == (200, 0)


async def test_the_catalog_is_not_part_of_it(txn: Txn) -> None:
    failures = await txn.failed(
        txn.op("get", "none"),
        {"Node": {"Verb": "get", "Node": {"Node": "n"}}},
        {"service": {"Verb": "set"}},
        {"Check": {"Verb": "get"}},
    )
    assert failures == [
        (1, "Node operations are not supported"),
        (2, "Service operations are not supported"),
        (3, "Check operations are not supported"),
    ]


# --- read-only transactions


@pytest.mark.parametrize("query", ["", "?consistent", "?stale"])
async def test_a_reading_transaction(txn: Txn, query: str) -> None:
    """Spec §6, §17 (17)."""
    await txn.kv.put("a", "1")
    answer = await txn(txn.op("get", "a"), query=query)
    while answer.status == 409 and query == "?stale":
        answer = await txn(txn.op("get", "a"), query=query)
    (entry,) = (await txn.kv.get("a")).json
    got = json.dumps(entry, separators=(",", ":"))
    expected = f'{{"Results":[{{"KV":{got}}}],"Errors":null,{TAIL}'
    if query != "?stale":
        assert answer.text == expected
        assert answer.headers["x-consul-lastcontact"] == "0"
    assert answer.text.startswith(expected[:-100])
    assert list(answer.json)[2:] == ["Index", "LastContact", "KnownLeader", "ConsistencyLevel"]
    assert answer.headers["x-consul-knownleader"] == "true"
    assert "x-consul-index" not in answer.headers


async def test_a_failed_reading_transaction_ends_alike(txn: Txn) -> None:
    answer = await txn(txn.op("get", "none"))
    assert answer.status == 409
    assert answer.text == (
        '{"Results":null,"Errors":[{"OpIndex":0,"What":"key \\"'
        + txn.prefix
        + 'none\\" doesn\'t exist"}],'
        + TAIL
    )
    assert answer.headers["x-consul-knownleader"] == "true"


@pytest.mark.parametrize("body", ["[]", "null", "[{}]", '[{"KV":null}]', "[null]", '[{"X":1}]'])
async def test_an_empty_transaction_reads(wire: Wire, body: str) -> None:
    answer = await wire("PUT", "/v1/txn", body)
    assert answer.status == 200
    assert answer.text == '{"Results":[],"Errors":null,' + TAIL


async def test_a_read_is_not_logged(txn: Txn, fake: FakeReplica) -> None:
    await txn.kv.put("a", "1")
    before = len(fake.commands)
    await txn.ok(txn.op("get", "a"), txn.op("check-not-exists", "b"))
    await txn(txn.op("set", "a", "2"), txn.op("nope", "a"))
    assert len(fake.commands) == before


@pytest.mark.parametrize(
    ("query", "status", "text"),
    [
        ("dc=other", 500, "No path to datacenter"),
        ("stale&consistent", 400, "Cannot specify ?stale with ?consistent, conflicting semantics."),
        ("index=abc", 400, "Invalid index"),
    ],
)
async def test_bad_options(txn: Txn, query: str, status: int, text: str) -> None:
    answer = await txn(txn.op("get-tree", "a"), query=f"?{query}")
    assert (answer.status, answer.text) == (status, text)
    written = await txn(txn.op("set", "a"), query=f"?{query}")
    assert written.status == (500 if status == 500 else 200), "a write has no use for it"


async def test_pretty(txn: Txn) -> None:
    answer = await txn(txn.op("delete", "a"), query="?pretty")
    assert answer.text == '{\n    "Results": [],\n    "Errors": null\n}\n'


# --- what cannot be read, and what is too much


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "EOF"),
        (" \n", "EOF"),
        ("[", "unexpected EOF"),
        ("{}", "json: cannot unmarshal object into Go value of type api.TxnOps"),
        ("5", "json: cannot unmarshal number into Go value of type api.TxnOps"),
        ("[5]", "json: cannot unmarshal number into Go value of type api.TxnOp"),
        (
            '[{"KV":5}]',
            "json: cannot unmarshal number into Go struct field TxnOp.KV of type api.KVTxnOp",
        ),
        (
            '[{"KV":{"Verb":5}}]',
            "json: cannot unmarshal number into Go struct field KVTxnOp.KV.Verb of type api.KVOp",
        ),
        (
            '[{"KV":{"Verb":"set","Key":"a","Value":5}}]',
            "json: cannot unmarshal number into Go struct field KVTxnOp.KV.Value of type []uint8",
        ),
        (
            '[{"KV":{"Verb":"set","Key":"a","Flags":-1}}]',
            "json: cannot unmarshal number -1 into Go struct field KVTxnOp.KV.Flags of type uint64",
        ),
        (
            '[{"KV":{"Verb":"set","Key":"a","Flags":18446744073709551616}}]',
            "json: cannot unmarshal number 18446744073709551616 into Go struct field "
            "KVTxnOp.KV.Flags of type uint64",
        ),
        (
            '[{"KV":{"Verb":"set","Key":"a","Flags":"1"}}]',
            "json: cannot unmarshal string into Go struct field KVTxnOp.KV.Flags of type uint64",
        ),
        ('[{"KV":{"Verb":"set","Key":"a","Value":"x"}}]', "illegal base64 data at input byte 0"),
        ('[{"KV":{"Verb":"set","Key":"a","Value":"MQ"}}]', "illegal base64 data at input byte 0"),
        ('[{"KV":{"Verb":"set","Key":"a","Value":"_-8="}}]', "illegal base64 data at input byte 0"),
        (
            '[{"KV":{"Verb":"set","Key":"a","Value":"\\u00e9"}}]',
            "illegal base64 data at input byte",
        ),
        ("[" * 100_000, ""),
    ],
    ids=lambda value: value[:40],
)
async def test_bodies_that_cannot_be_read(wire: Wire, body: str, reason: str) -> None:
    answer = await wire("PUT", "/v1/txn", body)
    assert answer.status == 400
    assert answer.text.startswith(f"Failed to parse body: {reason}")


async def test_member_names_match_in_any_case(txn: Txn) -> None:
    """Spec §1.5; base64 may hold line ends, and something may follow the document."""
    members = {
        "verb": "set",
        "KEY": f"{txn.prefix}a",
        "vaLue": "MQ==\n",
        "flags": 2**64 - 1,
        "unknown": {},
    }
    body = json.dumps([{"kv": members}]) + " trailing"
    answer = await txn.kv.wire("PUT", "/v1/txn", body)
    assert answer.status == 200, answer
    entry = await txn.kv.entry("a")
    assert (entry["Value"], entry["Flags"]) == ("MQ==", 2**64 - 1)


async def test_too_many_operations(txn: Txn) -> None:
    """Spec §6, §14: Vault probes for 128."""
    assert (await txn(*[txn.op("get-or-empty", "a")] * 128)).status == 200
    answer = await txn(*[txn.op("get-or-empty", "a")] * 129)
    assert (answer.status, answer.text) == (
        413,
        "Transaction contains too many operations (129 > 128). The setting is txn_ops_max.",
    )


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_that_is_too_large(wire: Wire, txn: Txn, chunked: bool) -> None:
    """Spec §6, §17 (18)."""
    body = json.dumps([txn.op("set", "a", "x" * 500_000)]).encode()
    length = len(body)
    if chunked:
        reader, writer = await wire.connect()
        writer.write(b"PUT /v1/txn HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (length, body))
        answer = await read_answer(reader)
    else:
        answer = await wire("PUT", "/v1/txn", body)
    assert answer.status == 413
    shown = "" if chunked else f"({length} bytes)"
    assert answer.text.startswith(f"Request body{shown} too large, max size: 524288 bytes. See ")
    assert (await txn.kv.get("a")).status == 404


@pytest.mark.parametrize("verb", ["set", "get", "delete-tree"])
async def test_a_key_that_begins_with_a_slash(wire: Wire, verb: str) -> None:
    """Spec §4.4."""
    answer = await wire("PUT", "/v1/txn", json.dumps([{"KV": {"Verb": verb, "Key": "/a"}}]))
    assert answer.status == 400
    assert answer.text.startswith(
        "Invalid key in transaction: invalid key name, must not begin with"
    )


async def test_odd_keys_are_keys(txn: Txn) -> None:
    """Spec §4.4: everything else is accepted."""
    keys = ["ç", "a b", "a:b", "..", "a//b", "", "\u2028", "\U0001f600", "a\nb"]
    await txn.ok(*[txn.op("set", "/" + key, key) for key in keys])
    results = await txn.ok(*[txn.op("get", "/" + key) for key in keys])
    assert [base64.b64decode(r["Value"] or "").decode() for r in results] == keys


async def test_a_key_that_is_too_long(txn: Txn) -> None:
    answer = await txn(txn.op("set", "x" * 5000))
    assert answer.status == 400
    assert answer.text.startswith("Key is too long (")


async def test_other_methods(wire: Wire) -> None:
    answer = await wire("POST", "/v1/txn", "[]")
    assert (answer.status, answer.headers["allow"]) == (405, "OPTIONS,PUT")


# --- no leader, unknown outcomes


async def test_without_a_leader(txn: Txn, fake: FakeReplica) -> None:
    """Spec §3: a stale one is answered locally."""
    fake.write_error = fake.read_error = NoLeader()
    for op in (txn.op("set", "a"), txn.op("get-or-empty", "a"), txn.op("nope", "a")):
        answer = await txn(op)
        assert (answer.status, answer.text) == (500, "No cluster leader")
        assert answer.headers["retry-after"] == "1"
    stale = await txn(txn.op("get-or-empty", "a"), query="?stale")
    assert stale.status == 200


async def test_an_unknown_outcome_says_so(txn: Txn, fake: FakeReplica) -> None:
    """RC-58."""
    fake.write_error = LeadershipLost()
    answer = await txn(txn.op("set", "a"))
    assert answer.status == 500
    assert answer.text.startswith("leadership lost while committing log: the outcome")
