"""Rounds against a real DNS server that misbehaves on demand."""

import asyncio
import shutil
import socket
import subprocess
import time

import pytest

from kvnode.discovery.dns import candidate_names, code_text, look_up, read_search
from tests.dns_server import RCODE
from tests.ports import free_ports

DNSMASQ = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin")


def pod(ordinal):
    return f"kvnode-{ordinal}.kvnode.default.svc.cluster.local:8300"


async def test_srv_by_full_name_sorted_by_ordinal(server, settings):
    """The answer's order is random; the seeds' is not."""
    server.pods("kvnode", 11)
    answer = await look_up(settings())
    assert [seed.address for seed in answer.seeds] == [pod(n) for n in range(11)]
    assert [seed.name for seed in answer.seeds][:2] == ["kvnode-0", "kvnode-1"]
    assert (answer.reason, answer.failed, answer.ttl_s) == ("", False, 5.0)
    assert server.queries == [("udp", "_raft._tcp.kvnode.default.svc.cluster.local", "SRV")]


async def test_a_service_name_asks_for_the_named_port(server, settings):
    server.pods("kvnode", 2)
    answer = await look_up(settings("kvnode.default.svc.cluster.local"))
    assert [seed.address for seed in answer.seeds] == [pod(0), pod(1)]


@pytest.mark.parametrize("name", ["kvnode", "kvnode.default", "_raft._tcp.kvnode"])
async def test_short_names_are_completed_by_the_search_path(server, settings, name):
    """Aiodns does not use it."""
    server.pods("kvnode", 2)
    answer = await look_up(settings(name))
    assert [seed.address for seed in answer.seeds] == [pod(0), pod(1)]


async def test_the_bare_name_counts_only_the_peer_port(server, settings):
    """It answers once per port: three pods with two ports give six records."""
    full = server.pods("kvnode", 3)
    del server.zone[f"_raft._tcp.{full}", "SRV"]
    answer = await look_up(settings())
    assert [seed.address for seed in answer.seeds] == [pod(0), pod(1), pod(2)]


async def test_addresses_are_the_fallback(server, settings):
    """A plain host list, IPv4 and IPv6, with the peer port."""
    server.add("kvnode.default.svc.cluster.local", "A", "10.0.0.2", "10.0.0.1")
    server.add("kvnode.default.svc.cluster.local", "AAAA", "fd00::1")
    answer = await look_up(settings())
    assert {seed.address for seed in answer.seeds} == {
        "10.0.0.1:8300",
        "10.0.0.2:8300",
        "[fd00::1]:8300",
    }
    assert {seed.name for seed in answer.seeds} == {""}


async def test_nobody_yet_is_no_failure(server, settings):
    """No endpoints: NXDOMAIN, the same as no such Service."""
    answer = await look_up(settings())
    assert answer.seeds == []
    assert not answer.failed
    assert "yet" in answer.reason


async def test_an_empty_answer_is_no_failure(server, settings):
    server.add("kvnode.default.svc.cluster.local", "A")
    answer = await look_up(settings())
    assert (answer.seeds, answer.failed) == ([], False)


async def test_denials_are_not_remembered(server, settings):
    """c-ares keeps them in the process for up to an hour: each round has its own resolver."""
    assert (await look_up(settings())).seeds == []
    server.pods("kvnode", 1)
    assert len((await look_up(settings())).seeds) == 1


@pytest.mark.parametrize("rcode", [RCODE.SERVFAIL, RCODE.REFUSED])
async def test_server_failure_is_a_failure(server, settings, rcode):
    server.pods("kvnode", 1)
    server.rcode = rcode
    answer = await look_up(settings())
    assert (answer.seeds, answer.failed) == ([], True)
    assert "failed" in answer.reason or "refused" in answer.reason


async def test_a_silent_server_times_out(server, settings):
    server.silent = True
    answer = await look_up(settings(query_timeout_s=0.1))
    assert (answer.seeds, answer.failed) == ([], True)
    assert "in time" in answer.reason


async def test_a_round_ends_in_time_whatever_its_queries_do(server, settings):
    server.silent = True
    started = time.monotonic()
    answer = await look_up(settings(query_timeout_s=60, round_timeout_s=0.5))
    assert (answer.seeds, answer.failed) == ([], True)
    assert time.monotonic() - started < 30


async def test_a_slow_server_is_waited_for(server, settings):
    server.pods("kvnode", 1)
    server.delay_s = 0.1
    assert len((await look_up(settings())).seeds) == 1


async def test_garbage_is_a_failure(server, settings):
    server.garbage = True
    answer = await look_up(settings(query_timeout_s=0.1, round_timeout_s=0.5))
    assert (answer.seeds, answer.failed) == ([], True)


async def test_nobody_listening_is_a_failure(server, settings):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    nobody = (f"127.0.0.1:{port}",)
    answer = await look_up(settings(nameservers=nobody, query_timeout_s=0.3, round_timeout_s=0.5))
    assert (answer.seeds, answer.failed) == ([], True)


async def test_truncated_answers_go_over_tcp(server, settings):
    """From about twelve pods on; a NetworkPolicy must allow both."""
    server.pods("kvnode", 20)
    server.truncate = True
    assert len((await look_up(settings())).seeds) == 20
    assert ("tcp", "_raft._tcp.kvnode.default.svc.cluster.local", "SRV") in server.queries


async def test_foreign_and_useless_targets(server, settings):
    """A foreign pod is a seed like any other: its introduction tells. No host, no port: no seed."""
    name = "_raft._tcp.kvnode.default.svc.cluster.local"
    server.add_srv(name, ("other-0.other.svc", 8300), (".", 8300), ("kvnode-0.k", 0))
    answer = await look_up(settings())
    assert [seed.address for seed in answer.seeds] == ["other-0.other.svc:8300"]


@pytest.mark.parametrize("name", ["a" * 300, "..", "ü" * 70, "bad name", ""])
async def test_names_that_cannot_be_asked_for_do_no_harm(server, settings, name):
    """They come from settings; the node says why and lives on."""
    answer = await look_up(settings(name))
    assert answer.seeds == []
    assert answer.reason


def test_names_are_completed_like_a_stub_resolver_does():
    search = ("ns.svc.cluster.local", "svc.cluster.local.")
    assert candidate_names("kv", search) == [
        "kv.ns.svc.cluster.local",
        "kv.svc.cluster.local",
        "kv",
    ]
    assert candidate_names("_raft._tcp.kv", search)[0] == "_raft._tcp.kv.ns.svc.cluster.local"
    assert candidate_names("kv.ns", search)[0] == "kv.ns"
    assert candidate_names("kv.ns.svc.cluster.local.", search) == ["kv.ns.svc.cluster.local"]


def test_the_last_search_line_counts(tmp_path):
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 10.96.0.10\ndomain x\n# c\nsearch a.b c.d\noptions ndots:5\n")
    assert read_search(conf) == ("a.b", "c.d")
    assert read_search(tmp_path / "missing") == ()


def test_every_code_has_words():
    assert "yet" in code_text(4)
    assert code_text(999) == "look-up failed with code 999"


@pytest.mark.skipif(DNSMASQ is None, reason="dnsmasq is not installed")
async def test_with_a_real_name_server(tmp_path, settings):
    """dnsmasq: the same answers from somebody else's implementation."""
    async with asyncio.timeout(30):
        process, port = await start_dnsmasq(tmp_path, settings)
    try:
        answer = await look_up(settings(nameservers=(f"127.0.0.1:{port}",)))
        assert [seed.address for seed in answer.seeds] == [pod(0), pod(1), pod(2)]
        nobody = await look_up(settings("missing", nameservers=(f"127.0.0.1:{port}",)))
        assert (nobody.seeds, nobody.failed) == ([], False)
    finally:
        process.terminate()
        process.wait(5)


async def start_dnsmasq(tmp_path, settings):
    """Start it on a port that is free for UDP and TCP, once more if somebody was faster."""
    while True:
        [port] = free_ports(1)
        process = subprocess.Popen(  # noqa: ASYNC220
            dnsmasq_arguments(port, tmp_path / "pid"), stderr=subprocess.DEVNULL
        )
        while process.poll() is None:
            it = (f"127.0.0.1:{port}",)
            if (await look_up(settings(nameservers=it, query_timeout_s=0.3))).seeds:
                return process, port
        assert process.returncode == 2, "dnsmasq failed, and not because its port was taken"


def dnsmasq_arguments(port, pid_file):
    name = "_raft._tcp.kvnode.default.svc.cluster.local"
    arguments = [DNSMASQ, "--no-daemon", "--no-resolv", "--no-hosts", "--user=root"]
    arguments += [f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces"]
    arguments += ["--conf-file=", "--local=/cluster.local/", f"--pid-file={pid_file}"]
    for n in range(3):
        host = f"kvnode-{n}.kvnode.default.svc.cluster.local"
        arguments += [f"--srv-host={name},{host},8300", f"--host-record={host},127.0.0.{n + 1}"]
    return arguments
