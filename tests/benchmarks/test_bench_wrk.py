"""wrk's figures are read from the script's own line, and errors make them void."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from benchmarks.processes import HarnessError
from benchmarks.workload import Replay
from benchmarks.wrk import WrkResult, parse_result, run_wrk, void_reason

OUTPUT = """Running 1s test @ http://127.0.0.1:1/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     5.57ms    1.28ms  22.03ms   88.63%
Requests/sec:   5143.00
RESULT {"duration_us":1000000,"requests":5000,"bytes":500000,"sent":5032,"bad":0,"first_bad":"",\
"connect":0,"read":0,"write":0,"status":0,"timeout":0,\
"mean_us":5571.2,"p50_us":5400,"p90_us":6000,"p99_us":9000,"p999_us":20000,"max_us":22030}
"""
GOOD = parse_result(OUTPUT)


def test_the_result_line_is_parsed():
    assert (GOOD.per_s, GOOD.p99_us, GOOD.answer_bytes) == (5000, 9000, 100)


def test_output_without_a_result_line_is_an_error():
    with pytest.raises(HarnessError, match="unable to connect"):
        parse_result("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_clean_run_is_not_void():
    assert void_reason(GOOD, 32, 100.0) is None


@pytest.mark.parametrize("name", ["bad", "connect", "read", "write", "status", "timeout"])
def test_one_error_of_any_kind_makes_a_run_void(name):
    assert name in (void_reason(replace(GOOD, **{name: 1}), 32, 100.0) or "")


def test_a_run_without_answers_is_void():
    assert void_reason(replace(GOOD, requests=0, sent=0), 32, None)


def test_more_unanswered_requests_than_connections_make_a_run_void():
    """Wrk silently reconnects when a server closes the connection instead of answering."""
    assert void_reason(replace(GOOD, sent=5033), 32, 100.0)


def test_answers_of_another_size_than_the_checked_ones_make_a_run_void():
    """The measured run does not look at bodies; an error of status 200 has another length."""
    assert void_reason(replace(GOOD, bytes=5000 * 60), 32, 100.0)
    assert void_reason(replace(GOOD, bytes=5000 * 105), 32, 100.0) is None


@contextmanager
def answering(body: bytes) -> Iterator[int]:
    """Serve ``body`` to every request on a loopback port, from a thread of its own."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            found.append((server.sockets[0].getsockname()[1], asyncio.get_running_loop(), done))
            started.set()
            await done.wait()

    found: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = []
    started, done = threading.Event(), asyncio.Event()
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    assert started.wait(5)
    port, loop, done = found[0]
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(5)


def drive(port: int, proof: str) -> WrkResult:
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return run_wrk([port], Replay([request] * 3, proof), connections=2, seconds=1, check=True)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_checked_answers_without_the_proof_are_counted_and_shown():
    with answering(b'say "no"') as port:
        result = drive(port, "true")
    assert result.bad == result.requests > 0
    assert result.first_bad == '200 say "no"'
    assert result.status == 0
    assert "say" in (void_reason(result, 2, None) or "")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_checked_answers_with_the_proof_are_good_and_none_is_lost():
    with answering(b"true") as port:
        result = drive(port, "true")
    assert void_reason(result, 2, None) is None
    assert 0 <= result.sent - result.requests <= 2
    assert result.p50_us <= result.p99_us <= result.max_us
