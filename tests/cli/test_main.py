"""The entry point: words, versions and exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from kvnode import __version__
from kvnode.cli import agent_command, dev
from kvnode.cli.commands import app
from kvnode.cli.main import main, two_dashes, version_text
from kvnode.cli.supervisor import Plan, agent_argv, make_certificates, url
from kvnode.config import SETTINGS, SettingError


def test_the_first_line_of_version_is_ours() -> None:
    assert version_text("kvnode", ()).splitlines()[0] == f"kvnode v{__version__}"


def test_called_as_consul_the_first_line_is_consuls() -> None:
    """Suites that start a server themselves compare this line (spec §15)."""
    assert version_text("consul", ()).splitlines()[0] == "Consul v1.22.0"


def test_version_as_json() -> None:
    assert json.loads(version_text("kvnode", ("--output=json",)))["version"] == __version__


@pytest.mark.parametrize("words", [["version"], ["--version"]])
def test_a_link_called_consul_answers_as_consul(words: list[str], tmp_path: Path) -> None:
    link = tmp_path / "consul"
    link.write_text(f"#!{sys.executable}\nfrom kvnode.cli.main import main\nmain()\n")
    link.chmod(0o755)
    done = subprocess.run([link, *words], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Consul v1.22.0\n")


def test_consuls_single_dashes_become_two() -> None:
    given = ["kv", "put", "-http-addr=h:1", "-cas", "0", "-", "-5", "-o", "json", "--", "-x-y"]
    assert two_dashes(given) == [
        "kv", "put", "--http-addr=h:1", "--cas", "0", "-", "-5", "-o", "json", "--", "-x-y",
    ]  # fmt: skip


def test_the_help_names_every_command() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    for word in ("agent", "dev", "kv", "members", "operator", "version"):
        assert f" {word} " in text


@pytest.mark.parametrize(
    "words",
    [["kv", "get"], ["kv", "put"], ["kv", "delete"], ["kv", "list"], ["members"], ["dev"],
     ["operator", "raft", "list-peers"], ["operator", "raft", "remove-peer"],
     ["operator", "raft", "transfer-leader"]],
)  # fmt: skip
def test_every_help_has_an_example(words: list[str]) -> None:
    """Help must be enough to work by."""
    assert "Example" in CliRunner().invoke(app, [*words, "--help"]).output


def test_wrong_usage_is_exit_code_2() -> None:
    assert CliRunner().invoke(app, ["kv", "get"]).exit_code == 2
    assert CliRunner().invoke(app, ["nonsense"]).exit_code == 2


def test_the_agents_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert agent_command.run(["-help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {setting.flag}" in text for setting in SETTINGS.values())


def test_a_bad_setting_is_exit_code_2_and_names_the_flag(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert agent_command.run(["--data-dir=/x", "-http-port=many"]) == 2
    assert capsys.readouterr().err.startswith("kvnode agent: -http-port: 'many'")


def test_signals_wait_from_the_first_moment_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing what a node needs takes half a second."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    blocked: set[int] = set()

    def load(*_: object) -> NoReturn:
        blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        raise SettingError("enough")

    monkeypatch.setattr(agent_command, "load", load)
    assert agent_command.run([]) == 2
    assert blocked >= {signal.SIGTERM, signal.SIGINT}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_the_module_runs_as_the_command_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvnode", "version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("kvnode v")


def test_what_follows_the_dashes_reaches_every_node(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """``kvnode dev -- --log-level debug``: the parser took the flag for one of its own."""
    plans: list[Plan] = []

    def foreground(plan: Plan, *, to_files: bool) -> int:
        plans.append(plan)
        return 0

    monkeypatch.setattr(dev, "_foreground", foreground)
    with pytest.raises(SystemExit) as ended:
        main(["dev", "--data-dir", str(tmp_path), "--tls", "--", "--log-level", "debug"])
    assert ended.value.code == 0
    assert agent_argv(plans[0], 0)[-2:] == ["--log-level", "debug"]
    assert f"--tls-ca-file={tmp_path}/tls/ca.crt" in agent_argv(plans[0], 2)
    assert url(plans[0], 0) == "https://127.0.0.1:8500"
    made = sorted(path.name for path in (tmp_path / "tls").iterdir())
    assert made == ["ca.crt", "ca.key", "peer-secret", "tls.crt", "tls.key"]
    before = (tmp_path / "tls" / "ca.crt").read_bytes()
    make_certificates(plans[0])
    assert (tmp_path / "tls" / "ca.crt").read_bytes() == before, "the next start finds them"
