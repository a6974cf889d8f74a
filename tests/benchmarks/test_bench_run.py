"""The options mean what their help says, and the facts and tables say what was found."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.facts import parse_mountinfo, probe_fdatasync_ms
from benchmarks.processes import HarnessError
from benchmarks.run import benchmark, parse_options
from benchmarks.show import sample_from
from benchmarks.stats import Cell, Sample, summarize
from benchmarks.systems import Etcd
from benchmarks.turns import cells

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:25 / /dev/shm rw - tmpfs tmpfs rw
31 22 0:26 / /mnt/two\\040words rw - xfs /dev/vdb rw
"""


def test_defaults_measure_everything_on_the_leader():
    options = parse_options([])
    assert options.systems == ("kvnode", "etcd", "consul")
    assert (options.connections, options.targets) == ((1, 32, 128), ("leader",))
    assert options.only == ("put", "get", "memory")


def test_quick_is_shorter_and_still_takes_orders():
    options = parse_options(["--quick", "--seconds", "1"])
    assert (options.rounds, options.seconds, options.connections) == (2, 1, (1, 32))


@pytest.mark.parametrize(
    "argv",
    [["--systems", "redis"], ["--connections", "0"], ["--only", ""], ["--keys", "100"]],
    ids=str,
)
def test_wrong_options_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_options(argv)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


def test_any_node_rounds_connections_up_to_a_multiple_of_the_nodes():
    options = parse_options(["--targets", "any", "--only", "get", "--connections", "1,2,32"])
    assert cells(options) == [Cell("get", "any", 3), Cell("get", "any", 33)]


def test_memory_alone_puts_nothing_under_load():
    assert cells(parse_options(["--only", "memory"])) == []


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/mnt/data", ("ext4", "/dev/vda")),
        ("/dev/shm/x", ("tmpfs", "tmpfs")),
        ("/dev/shmx", ("ext4", "/dev/vda")),
        ("/mnt/two words/x", ("xfs", "/dev/vdb")),
    ],
)
def test_the_longest_mount_point_holds_the_path(path, found):
    assert parse_mountinfo(MOUNTS, path) == found


def test_the_sync_probe_leaves_nothing_behind(tmp_path: Path):
    probe = probe_fdatasync_ms(tmp_path, count=5)
    assert 0 < probe["p50"] <= probe["p99"]
    assert not list(tmp_path.iterdir())


def rendered(samples: list[Sample]) -> str:
    console = Console(width=190, highlight=False)
    with console.capture() as capture:
        console.print(report.throughput_table(summarize(samples)))
    return capture.get()


def sample(system: str, per_s: float, void: str | None = None) -> Sample:
    return Sample(
        cell=Cell("put", "leader", 32),
        system=system,
        round=0,
        per_s=per_s,
        p50_ms=1.5,
        p99_ms=9.25,
        cpu_us=300,
        foreign_cpu=0.1,
        void=void,
    )


def test_the_table_shows_medians_ratios_and_voids():
    table = rendered([sample("kvnode", 2500), sample("etcd", 5000), sample("consul", 1, "errors")])
    assert "2,500 (2,500-2,500)" in table
    assert "etcd 0.50 (0.50-0.50)" in table
    assert "VOID: 1" in table


def test_a_sample_comes_back_from_json_as_it_was():
    """The documents' tables are made from the file, not from the run."""
    before = sample("kvnode", 2500, "errors")
    row = {**asdict(before), "cell": before.cell._asdict(), "wrk": {}, "leader": 1}
    assert sample_from(json.loads(json.dumps(row))) == before


def test_markdown_names_the_command_and_has_one_row_per_system():
    raw = {
        "command": "benchmarks/run.py --quick",
        "started": "2026-01-01",
        "idle_cpu_percent": {},
        "memory": [],
        "facts": {
            **dict.fromkeys(("cores", "processor", "kernel", "python", "commit"), "?"),
            "file_system": "ext4",
            "device": "/dev/vda",
            "versions": {"etcd": "3"},
            "fdatasync_ms": {"p50": 0.1, "p99": 0.2},
        },
    }
    text = report.markdown(raw, summarize([sample("kvnode", 2500), sample("etcd", 5000)]))
    assert "`benchmarks/run.py --quick`" in text
    assert [line for line in text.splitlines() if line.startswith("| put |")] == [
        "| put | leader | 32 | kvnode | 2,500 (2,500-2,500) | 1.50 (1.50-1.50) |"
        " 9.25 (9.25-9.25) | 300 | 0.10 | etcd 0.50 (0.50-0.50) |",
        "| put | leader | 32 | etcd | 5,000 (5,000-5,000) | 1.50 (1.50-1.50) |"
        " 9.25 (9.25-9.25) | 300 | 0.10 |  |",
    ]


def test_a_system_that_does_not_start_is_noted_and_left_out(tmp_path, monkeypatch):
    class Broken(Etcd):
        def start(self) -> None:
            raise HarnessError("no disk")

    monkeypatch.setattr("benchmarks.run.SYSTEMS", {"etcd": Broken})
    raw = {"facts": {"versions": {"etcd": "3"}}, "failures": [], "memory": []}
    assert benchmark(parse_options(["--only", "put"]), tmp_path, raw) == []
    assert raw["failures"] == ["etcd did not start: no disk"]
