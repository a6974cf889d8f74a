"""What the chart repeats from elsewhere is current, and what it says about metrics is true."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvnode import __version__
from kvnode.config.settings import SETTINGS
from scripts import chart_docs
from tests.k8s.charts import CHART, ROOT, render, run, the
from tests.tls.conftest import Files

RULES = {"metrics": {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}}


def test_the_table_of_values_is_current() -> None:
    """``python scripts/chart_docs.py`` writes it."""
    assert (CHART / "README.md").read_text() == chart_docs.readme()


def test_the_schema_knows_the_agents_settings() -> None:
    """``python scripts/chart_docs.py`` writes them."""
    assert (CHART / "values.schema.json").read_text() == chart_docs.schema()


def test_what_the_chart_owns_are_settings() -> None:
    assert set(SETTINGS) >= chart_docs.OWNED


def test_every_value_is_in_the_schema() -> None:
    """Else a default would be refused, or a value could be given and misspelt."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert list(_unknown(values, schema, schema, "")) == []


def _unknown(
    values: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str
) -> Iterator[str]:
    if "$ref" in schema:
        schema = root["definitions"][schema["$ref"].rpartition("/")[2]]
    properties = schema.get("properties")
    if properties is None:
        return
    assert schema.get("additionalProperties") is False, f"{at or 'the root'} is not strict"
    for key, value in values.items():
        if key not in properties:
            yield f"{at}{key}"
        elif isinstance(value, dict):
            yield from _unknown(value, properties[key], root, f"{at}{key}.")


def test_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()


# -- metrics ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of all samples that a node's ``/metrics`` can have."""
    files = Files(tmp_path_factory.mktemp("tls"))
    files.issue()
    command = [sys.executable, "-m", "kvnode", "agent", "--dev", "--http-port=0", "--peer-port=0"]
    command += [f"--tls-{name}-file={getattr(files, name)}" for name in ("cert", "key", "ca")]
    command += ["--no-tls-http"]
    node = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        assert node.stderr is not None
        started = next(e for e in map(json.loads, node.stderr) if e["event"] == "node_started")
        address = f"http://{started['http_address']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
    finally:
        node.kill()
        node.wait()
        if node.stderr is not None:
            node.stderr.close()
    names: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE):
        names.add(name)
        if kind == "histogram":
            names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return names


def test_alerts_and_dashboard_use_metrics_that_exist(exported: set[str]) -> None:
    """An alert on a metric that nobody exports never fires."""
    objects = render("helm-4", RULES)
    alerts = [
        r["expr"] for g in the(objects, "PrometheusRule")["spec"]["groups"] for r in g["rules"]
    ]
    dashboard = json.loads(the(objects, "ConfigMap", "kvnode-dashboard")["data"]["kvnode.json"])
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(alerts) > 10
    assert len(panels) > 20
    # Names stand before a selector; in quotes are label values, among them the pods' names.
    used = set(re.findall(r"\b((?:kvnode|process)_\w+)\{", " ".join(alerts + panels)))
    assert used - exported == set()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The chart's rules as Prometheus reads them."""
    groups = the(render("helm-4", RULES), "PrometheusRule")["spec"]["groups"]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups}))
    return path


def test_promtool_takes_the_alerts(rules: Path) -> None:
    done = run("promtool", "check", "rules", str(rules))
    assert done.returncode == 0, done.stdout + done.stderr


STORIES: dict[str, tuple[dict[str, str], str, set[str]]] = {
    # What is measured (one value each minute, x: for how long), after how long, what fires then.
    "a healthy cluster": (
        {
            'kvnode_raft_is_leader{pod="kvnode-0"}': "1x90",
            'kvnode_raft_is_leader{pod="kvnode-1"}': "0x90",
            'kvnode_raft_members{pod="kvnode-0"}': "3x90",
            'kvnode_raft_voters{pod="kvnode-0"}': "3x90",
            'kvnode_raft_peers_connected{pod="kvnode-0"}': "2x90",
            'kvnode_raft_term{pod="kvnode-0"}': "7x90",
            'kvnode_volume_free_bytes{pod="kvnode-0"}': "900000000x90",
        },
        "80m",
        set(),
    ),
    "nobody leads": (
        {
            'kvnode_raft_is_leader{pod="kvnode-0"}': "0x10",
            'kvnode_raft_is_leader{pod="kvnode-1"}': "0x10",
            'kvnode_raft_leader_lost_seconds{pod="kvnode-0"}': "60x10",
        },
        "5m",
        {"KvnodeNoLeader", "KvnodeNodeWithoutLeader"},
    ),
    "nobody can be scraped": ({}, "5m", {"KvnodeNoLeader"}),
    "one of three is gone": (
        {
            'kvnode_raft_is_leader{pod="kvnode-0"}': "1x30",
            'kvnode_raft_members{pod="kvnode-0"}': "3x30",
            'kvnode_raft_voters{pod="kvnode-0"}': "3x30",
            'kvnode_raft_peers_connected{pod="kvnode-0"}': "1x30",
        },
        "20m",
        {"KvnodeMemberUnreachable", "KvnodeNoFailureTolerated"},
    ),
    "one of five is gone": (
        {
            'kvnode_raft_is_leader{pod="kvnode-0"}': "1x30",
            'kvnode_raft_members{pod="kvnode-0"}': "5x30",
            'kvnode_raft_voters{pod="kvnode-0"}': "5x30",
            'kvnode_raft_peers_connected{pod="kvnode-0"}': "3x30",
        },
        "20m",
        {"KvnodeMemberUnreachable"},
    ),
    "four voters": (
        {
            'kvnode_raft_is_leader{pod="kvnode-0"}': "1x90",
            'kvnode_raft_members{pod="kvnode-0"}': "4x90",
            'kvnode_raft_voters{pod="kvnode-0"}': "4x90",
            'kvnode_raft_peers_connected{pod="kvnode-0"}': "3x90",
        },
        "80m",
        {"KvnodeEvenVoters"},
    ),
    "a certificate was not renewed": (
        {
            'kvnode_raft_is_leader{pod="kvnode-0"}': "1x90",
            'kvnode_tls_certificate_expiry_seconds{pod="kvnode-0"}': "500000x90",
            'kvnode_tls_ca_expiry_seconds{pod="kvnode-0"}': "90000000x90",
            'kvnode_peers_tls_refused_total{pod="kvnode-0"}': "3x90",
        },
        "80m",
        {"KvnodeCertificateExpires"},
    ),
    "a volume fills up": (
        {
            'kvnode_raft_is_leader{pod="kvnode-0"}': "1x90",
            'kvnode_volume_free_bytes{pod="kvnode-0"}': "100000000x90",
        },
        "10m",
        {"KvnodeVolumeFull"},
    ),
}


def test_alerts_fire_when_they_should(rules: Path, tmp_path: Path) -> None:
    """Prometheus' own evaluation of small stories."""
    groups = yaml.safe_load(rules.read_text())["groups"]
    names = [rule["alert"] for group in groups for rule in group["rules"]]
    cases = []
    for series, _, _ in STORIES.values():
        named = {name.replace("{", '{namespace="default",'): f"{v.partition('x')[0]}+0x{v.partition('x')[2]}"
                 for name, v in series.items()}  # fmt: skip
        cases.append({
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in named.items()],
        })  # fmt: skip
    # Only the names matter here, so each alert is asked whether any of it fires.
    for case, (_, moment, firing) in zip(cases, STORIES.values(), strict=True):
        case["promql_expr_test"] = [
            {
                "expr": f'count by (alertname) (ALERTS{{alertstate="firing",alertname="{name}"}})',
                "eval_time": moment,
                "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1}]
                if name in firing
                else [],
            }
            for name in names
        ]
    path = tmp_path / "stories.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": cases}))
    done = run("promtool", "test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
