"""The tables on stdout: plain text, wide enough not to wrap, one row per cell and system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.stats import Spread, Summary

_WIDTH = 190


def shown(spread: Spread | None, digits: int = 0) -> str:
    """Return ``median (least-greatest)``; a dash when there is nothing to show."""
    if spread is None:
        return "-"
    median, least, greatest = (f"{figure:,.{digits}f}" for figure in spread)
    return f"{median} ({least}-{greatest})"


def middle(spread: Spread | None, digits: int = 0) -> str:
    """Return the median alone, for what matters less."""
    return "-" if spread is None else f"{spread.median:,.{digits}f}"


def throughput_table(summaries: Sequence[Summary]) -> Table:
    """Return one row per cell and system, kvnode's with its ratios to the peers."""
    table = Table(
        title="Median of the rounds (least-greatest)", title_justify="left", box=box.SIMPLE_HEAD
    )
    for heading in ("load", "target", "conns", "system"):
        table.add_column(heading, no_wrap=True)
    for heading in ("requests/s", "p50 ms", "p99 ms", "CPU us/request", "busy others"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("kvnode/peer, within rounds", no_wrap=True)
    last = summaries[0].cell
    for summary in summaries:
        cell = summary.cell
        if last != cell:
            table.add_section()
        last = cell
        ratios = "  ".join(f"{peer} {shown(found, 2)}" for peer, found in summary.ratios.items())
        table.add_row(
            *(cell.workload, cell.target, str(cell.connections), summary.system),
            *(shown(summary.per_s), shown(summary.p50_ms, 2), shown(summary.p99_ms, 2)),
            *(middle(summary.cpu_us), middle(summary.foreign_cpu, 2)),
            f"{ratios}{'  VOID: ' + str(len(summary.voids)) if summary.voids else ''}".strip(),
        )
    return table


def memory_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return resident memory per node, fresh and loaded."""
    table = Table(
        title="Resident memory per node, MiB (leader first)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in (
        "system",
        "fresh",
        "loaded",
        "loaded, without mapped files",
        "keys",
        "disk MiB",
    ):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(
            row["system"],
            *(_mebibytes(row[name], field) for name, field in (
                ("fresh", "resident"), ("loaded", "resident"), ("loaded", "anonymous"),
            )),
            f"{row['keys']:,}",
            _mebibytes([{"all": kib} for kib in row["disk_kib"]], "all"),
        )  # fmt: skip
    return table


def _mebibytes(nodes: Sequence[Mapping[str, int]], field: str) -> str:
    return "  ".join(f"{node[field] / 1024:.0f}" for node in nodes)


def fact_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the machine, the versions, the disk and what idle clusters cost, a line each."""
    facts = report["facts"]
    sync = facts["fdatasync_ms"]
    lines = [
        f"{facts['cores']} cores ({facts['processor']}), Linux {facts['kernel']}, "
        f"Python {facts['python']}, commit {facts['commit']}, {report['started']}",
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        f"data on {facts['file_system']} ({facts['device']}), 4 KiB fdatasync "
        f"p50 {sync['p50']} ms, p99 {sync['p99']} ms",
    ]
    if idle := report["idle_cpu_percent"]:
        text = ", ".join(f"{name} {percent:.1f} %" for name, percent in idle.items())
        lines.append(f"processor time of idle clusters, of one core: {text}")
    return lines


def print_report(report: Mapping[str, Any], summaries: Sequence[Summary]) -> None:
    """Print the facts, the tables and every reason for which a measurement is void."""
    console = Console(width=_WIDTH, highlight=False, markup=False)
    for line in fact_lines(report):
        console.print(line)
    if summaries:
        console.print(throughput_table(summaries))
        for summary in summaries:
            for reason in dict.fromkeys(summary.voids):
                console.print(f"VOID {summary.system} {'/'.join(map(str, summary.cell))}: {reason}")
    if report["memory"]:
        console.print(memory_table(report["memory"]))
    for failure in report["failures"]:
        console.print(f"FAILED {failure}")


def markdown(report: Mapping[str, Any], summaries: Sequence[Summary]) -> str:
    """Return the same for docs/benchmarks.md, with the command that made it."""
    lines = [f"`{report['command']}`", "", *(f"- {line}" for line in fact_lines(report)), ""]
    lines += _markdown_table(throughput_table(summaries))
    lines += ["", "Resident memory per node in MiB, leader first:", ""]
    lines += _markdown_table(memory_table(report["memory"]))
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    """Return a table's cells, which are plain strings, between bars."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    aligned = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = [[str(column.header) for column in table.columns], aligned, *zip(*columns, strict=True)]
    return [f"| {' | '.join(row)} |" for row in rows]
