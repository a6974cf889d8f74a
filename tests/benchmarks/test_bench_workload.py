"""The workload is the same for every system, and its proofs cannot be had without the work."""

import base64
import json

import pytest

from benchmarks.workload import (
    PREFIX,
    TAG_BYTES,
    VALUE_BYTES,
    VARIANTS,
    ConsulDialect,
    EtcdDialect,
    count_written,
    get_replay,
    key_name,
    key_order,
    least_written,
    make_tag,
    put_replay,
    seed_requests,
    value_for,
)

DIALECTS = [ConsulDialect(), EtcdDialect()]


def body_of(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            assert int(line.split(b":")[1]) == len(body), "a wrong length desynchronizes keep-alive"
    return body


def test_values_have_the_promised_size_and_begin_with_their_tag():
    tag = make_tag(12, "B")
    value = value_for(key_name(7), tag)
    assert (len(value), value[:TAG_BYTES]) == (VALUE_BYTES, tag.encode())


def test_base64_of_a_value_begins_with_base64_of_its_tag():
    """The proof of a get is looked for in a JSON body that holds the value in base64."""
    tag = make_tag(3, "A").encode()
    value = value_for(key_name(1), tag.decode())
    assert base64.b64encode(value).startswith(base64.b64encode(tag))


def test_key_order_visits_every_key_once_and_never_changes():
    order = key_order(1000)
    assert sorted(order) == list(range(1000))
    assert order == key_order(1000)
    assert order != sorted(order)


def test_consul_put_carries_the_raw_value():
    request = ConsulDialect().put("bench/1", b"hello")
    assert request.startswith(b"PUT /v1/kv/bench/1 HTTP/1.1\r\n")
    assert body_of(request) == b"hello"


def test_consul_get_asks_for_a_consistent_read():
    """Consul's default trusts a leader lease; the others would be compared with a weaker read."""
    assert ConsulDialect().get("bench/1").startswith(b"GET /v1/kv/bench/1?consistent HTTP/1.1\r\n")


def test_etcd_requests_carry_base64_and_no_serializable_flag():
    put = json.loads(body_of(EtcdDialect().put("bench/1", b"hello")))
    assert {name: base64.b64decode(text) for name, text in put.items()} == {
        "key": b"bench/1",
        "value": b"hello",
    }
    assert list(json.loads(body_of(EtcdDialect().get("bench/1")))) == ["key"]


def test_etcd_listing_covers_the_prefix_and_nothing_else():
    _, path, body = EtcdDialect().listing()
    message = {name: base64.b64decode(text).decode() for name, text in json.loads(body).items()}
    assert path == "/v3/kv/range"
    assert message["key"] <= PREFIX + "0" < PREFIX + "zzz" < message["range_end"]
    assert not message["key"] <= "bench0" < message["range_end"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_listing_gives_back_keys_and_bytes(dialect):
    key, value = key_name(3), value_for(key_name(3), make_tag(1, "A"))
    encoded = base64.b64encode(value).decode()
    if isinstance(dialect, EtcdDialect):
        row = {"key": base64.b64encode(key.encode()).decode(), "value": encoded}
        answer = json.dumps({"header": {}, "kvs": [row], "count": "1"})
    else:
        answer = json.dumps([{"Key": key, "Value": encoded}])
    assert dialect.parse_listing(answer.encode()) == {key: value}


def test_an_empty_etcd_listing_has_no_kvs_member():
    assert EtcdDialect().parse_listing(b'{"header":{}}') == {}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_pass_over_the_keys_writes_another_value(dialect):
    """Writing the value that is there already may be answered without doing anything."""
    replay = put_replay(dialect, 50, serial=4)
    assert len(replay.requests) == len(VARIANTS) * 50
    assert len(set(replay.requests)) == len(replay.requests)


def test_the_encoded_replay_can_be_cut_apart_again():
    replay = put_replay(ConsulDialect(), 3, serial=1)
    text, found = replay.encode(), []
    while text:
        length, _, rest = text.partition(b"\n")
        found.append(rest[: int(length)])
        text = rest[int(length) :]
    assert found == list(replay.requests)


def test_reads_ask_for_exactly_the_seeded_keys():
    seeded = {request.split(b" ")[1] for request in seed_requests(ConsulDialect(), 20, 1)}
    read = {
        request.split(b" ")[1].partition(b"?")[0]
        for request in get_replay(ConsulDialect(), 20, 1).requests
    }
    assert read == seeded


def test_only_whole_values_under_their_own_key_count_as_written():
    good, other, old, cut = (key_name(number) for number in range(4))
    rows = {
        good: value_for(good, make_tag(9, "B")),
        other: value_for(good, make_tag(9, "A")),
        old: value_for(old, make_tag(8, "A")),
        cut: value_for(cut, make_tag(9, "A"))[:-1],
    }
    assert count_written(rows, serial=9) == 1


@pytest.mark.parametrize(
    ("acknowledged", "threads", "least"),
    [(0, 1, 0), (500, 1, 500), (9_990, 1, 9_968), (50_000, 1, 9_968), (900, 3, 300)],
)
def test_least_written_leaves_room_only_for_requests_under_way(acknowledged, threads, least):
    assert least_written(acknowledged, 10_000, 32, threads) == least
