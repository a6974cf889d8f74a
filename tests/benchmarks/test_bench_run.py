"""The options mean what their help says, and the facts and tables say what was found."""

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import report
from benchmarks.facts import parse_mountinfo, probe_fdatasync_ms
from benchmarks.run import parse_options
from benchmarks.stats import Cell, Sample, summarize
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
        ("/work/data", ("ext4", "/dev/vda")),
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


def test_the_table_shows_medians_ratios_and_voids():
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

    table = rendered([sample("kvnode", 2500), sample("etcd", 5000), sample("consul", 1, "errors")])
    assert "2,500 (2,500-2,500)" in table
    assert "etcd 0.50 (0.50-0.50)" in table
    assert "VOID: 1" in table
