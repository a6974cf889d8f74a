"""Figures from /proc are read right, and no child outlives its owner's wish."""

import signal
import socket
import sys

import pytest

from benchmarks.processes import (
    HarnessError,
    Memory,
    Process,
    free_ports,
    machine_busy_s,
    parse_busy_ticks,
    parse_stat_cpu_ticks,
    parse_status,
)

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('ready', flush=True); time.sleep(60)"
)


def test_cpu_ticks_survive_a_command_name_with_blanks_and_brackets():
    numbers = " ".join(["S", *map(str, range(4, 53))])
    assert parse_stat_cpu_ticks(f"123 (odd) name) {numbers}") == 14 + 15


def test_memory_is_told_in_kib_with_and_without_mapped_files():
    text = "Name:\tetcd\nVmRSS:\t   5120 kB\nRssAnon:\t    1024 kB\nRssFile:\t 4096 kB\n"
    assert parse_status(text) == Memory(resident=5120, anonymous=1024)


def test_idle_and_io_wait_are_not_busy():
    text = "cpu  1 2 4 100000 200000 8 16 32 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n"
    assert parse_busy_ticks(text) == 63


def test_free_ports_are_distinct_and_below_the_ephemeral_ones():
    ports = free_ports(9)
    assert len(set(ports)) == 9
    assert max(ports) < 32_768


def test_free_ports_leaves_out_a_port_in_use(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr("benchmarks.processes._PORTS", (port,))
        with pytest.raises(HarnessError):
            free_ports(1)


def test_own_figures_can_be_read(tmp_path):
    process = Process("sleeper", ["sleep", "60"], log=tmp_path / "log")
    try:
        assert process.alive
        assert process.cpu_s() >= 0
        memory = process.memory()  # once: it grows, since the program has only just begun
        assert memory.resident >= memory.anonymous
        assert machine_busy_s() > 0
    finally:
        process.stop()
    assert not process.alive


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    process = Process("stubborn", [sys.executable, "-c", STUBBORN], log=tmp_path / "log")
    while "ready" not in (tmp_path / "log").read_text():
        process.check_alive()
    process.stop(grace_s=0.1)
    assert not process.alive


def test_a_stopped_process_can_be_ended(tmp_path):
    """A paused peer must not survive the run: SIGTERM is not delivered before SIGCONT."""
    process = Process("paused", ["sleep", "60"], log=tmp_path / "log")
    process.signal(signal.SIGSTOP)
    process.stop(grace_s=5.0)
    assert not process.alive


def test_an_ended_process_is_reported_with_the_end_of_its_log(tmp_path):
    process = Process("brief", ["sh", "-c", "echo no disk; exit 3"], log=tmp_path / "log")
    process.stop()
    with pytest.raises(HarnessError, match="brief ended"):
        process.check_alive()
