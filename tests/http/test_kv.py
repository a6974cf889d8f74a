"""The KV routes as plain functions."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnode.http import HttpSettings, kv
from kvnode.http.entries import entry_json
from kvnode.http.messages import Response, json_string, prettify
from kvnode.http.query import NO_OPTIONS, parse_options
from kvnode.replica.facade import ReadView
from kvnode.store.commands import KvDelete, KvDeleteTree, KvSet
from kvnode.store.records import KVPair
from tests.http.fake_replica import FakeReplica

SETTINGS = HttpSettings(node_name="kvnode-0")


def parse(method: str, target: bytes, body: bytes = b"") -> kv.Operation | Response:
    path, _, query = target.partition(b"?")
    return kv.parse(method, path, query, body, SETTINGS)


@pytest.mark.parametrize(
    ("method", "target", "command"),
    [
        ("PUT", b"/v1/kv/a", KvSet(b"a", b"v")),
        ("POST", b"/v1/kv/a%20b?flags=7", KvSet(b"a b", b"v", 7)),
        ("PUT", b"/kv/a?cas=0", KvSet(b"a", b"v", 0, 0)),
        ("PUT", b"/v1/kv/%E7?cas=3&flags=1", KvSet(b"\xe7", b"v", 1, 3)),
        ("DELETE", b"/v1/kv/a/", KvDelete(b"a/")),
        ("DELETE", b"/v1/kv/a?cas=4", KvDelete(b"a", 4)),
        ("DELETE", b"/v1/kv/a?recurse", KvDeleteTree(b"a")),
        ("DELETE", b"/v1/kv/?recurse=1", KvDeleteTree(b"")),
    ],
)
def test_writes_become_commands(method: str, target: bytes, command: object) -> None:
    operation = parse(method, target, b"v")
    assert isinstance(operation, kv.Write)
    assert operation.command == command


def test_an_empty_query_costs_nothing() -> None:
    assert parse_options(b"") is NO_OPTIONS
    assert parse_options(b"stale") is parse_options(b"stale"), "remembered"


def test_long_queries_are_not_remembered() -> None:
    """A stranger must not fill the memory with queries (RC-67)."""
    query = b"x=" + b"a" * 200
    assert parse_options(query) is not parse_options(query)


keys = st.binary(min_size=1, max_size=30)
uint64 = st.integers(0, 2**64 - 1)


@given(keys, st.binary(max_size=50), uint64, uint64, st.sampled_from(["", "6f1c2c1e-8a2b"]))
def test_entries_are_json_with_the_exact_members(
    key: bytes, value: bytes, flags: int, index: int, session: str
) -> None:
    """Spec §4.1: built by hand, so it is compared with a real parser."""
    document = entry_json(KVPair(key, value, flags, 1, index, 2, session))
    entry = json.loads(document)
    names = ["LockIndex", "Key", "Flags", "Value", "Session", "CreateIndex", "ModifyIndex"]
    assert list(entry) == [name for name in names if session or name != "Session"]
    assert entry["Flags"] == flags
    assert entry["ModifyIndex"] == index
    assert (base64.b64decode(entry["Value"]) if value else entry["Value"]) == (value or None)
    assert not set(document) & set(b"<>&")


@given(keys)
def test_json_strings_round_trip_when_they_are_utf8(key: bytes) -> None:
    shown = json.loads(json_string(key))
    assert shown == "".join(
        c if not "\udc80" <= c <= "\udcff" else "\ufffd"
        for c in key.decode("utf-8", "surrogateescape")
    )


def test_line_separators_are_escaped_as_in_go() -> None:
    """Spec §1.4."""
    assert json_string("\u2028\u2029".encode()) == b'"\\u2028\\u2029"'


@given(st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s, max_size=3)))
def test_pretty_changes_only_the_layout(value: object) -> None:
    compact = json.dumps(value).encode()
    assert json.loads(prettify(compact)) == value
    assert prettify(b"[]") == b"[]\n"


def test_a_failing_store_is_an_answer_and_no_exception() -> None:
    """A completion must not raise into the replica."""
    replica = FakeReplica()
    answers: list[Response] = []
    operation = parse("GET", b"/v1/kv/a")
    assert isinstance(operation, kv.Read)

    def explode(key: bytes) -> None:
        raise RuntimeError(f"no {key!r}")

    class Broken:
        get = staticmethod(explode)

    replica.store = Broken()  # type: ignore[assignment]
    backend = kv.Backend(replica, None, None)  # type: ignore[arg-type]
    kv._read_done(operation, backend, answers.append, ReadView(True, 0), None)
    assert (answers[0].status, answers[0].body) == (500, b"internal error")
