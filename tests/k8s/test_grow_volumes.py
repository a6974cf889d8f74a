"""``scripts/grow-volumes.sh`` against a kubectl that only remembers what it was asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.k8s.charts import ROOT

KUBECTL = """#!/bin/sh
shift 2 # --namespace NAME
echo "$*" >> "$CALLS"
case "$*" in
"get pvc --output name") printf 'persistentvolumeclaim/%s\\n' $CLAIMS ;;
*storageClassName*) echo fast ;;
*allowVolumeExpansion*) echo "$EXPANDABLE" ;;
esac
"""


@pytest.fixture
def kubectl(tmp_path: Path) -> Path:
    path = tmp_path / "kubectl"
    path.write_text(KUBECTL)
    path.chmod(0o755)
    return path


def run(
    kubectl: Path, *words: str, claims: str = "", expandable: str = "true"
) -> tuple[int, list[str], str]:
    """Return the exit code, what changed anything, and what was said."""
    calls = kubectl.with_name("calls")
    done = subprocess.run(
        [str(ROOT / "scripts/grow-volumes.sh"), *words],
        env={"PATH": "/usr/bin:/bin", "KUBECTL": str(kubectl), "CALLS": str(calls), "CLAIMS": claims,
             "EXPANDABLE": expandable},
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    asked = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, [call for call in asked if not call.startswith("get ")], done.stderr


def test_claims_grow_before_the_statefulset_goes(kubectl: Path) -> None:
    """And only its own claims; its pods stay."""
    claims = "data-kvnode-0 data-kvnode-10 data-kvnode-x other data-kvnode-1 data-my-kvnode-0"
    code, changes, said = run(kubectl, "default", "kvnode", "5Gi", claims=claims)
    assert code == 0, said
    patch = '--type merge --patch {"spec":{"resources":{"requests":{"storage":"5Gi"}}}}'
    assert changes == [
        *(f"patch pvc data-kvnode-{n} {patch}" for n in (0, 10, 1)),
        "delete statefulset kvnode --cascade=orphan --ignore-not-found",
    ]
    assert "--set persistence.perPod.size=5Gi" in said


def test_nothing_is_touched_when_volumes_cannot_grow(kubectl: Path) -> None:
    code, changes, said = run(
        kubectl, "default", "kvnode", "5Gi", claims="data-kvnode-0", expandable=""
    )
    assert (code, changes) == (1, [])
    assert "does not allow" in said


@pytest.mark.parametrize(("words", "code"), [((), 2), (("default", "kvnode", "5Gi"), 1)])
def test_a_mistake_is_said(kubectl: Path, words: tuple[str, ...], code: int) -> None:
    found, changes, said = run(kubectl, *words, claims="other")
    assert (found, changes) == (code, [])
    assert said
