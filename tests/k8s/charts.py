"""Runs helm and kubectl, and looks at what they print."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.fetch_tools import path_of

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "kvnode"
HERE = Path(__file__).parent

HELMS = (
    pytest.param("helm-3.17", marks=pytest.mark.slow),
    "helm-4",
)
"""The oldest and the newest that are supported; the plain run takes the newest."""
KUBECTLS = (
    pytest.param("kubectl-1.32", marks=pytest.mark.slow),
    "kubectl-1.37",
)
KUBERNETES = ("1.27", "1.32", "1.37")
"""The oldest that the chart says it supports, one between, the newest."""

CRDS = ("monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1", "cert-manager.io/v1")
"""APIs that not every cluster has; their objects have no schema here."""

Object = dict[str, Any]
COMPONENT = "app.kubernetes.io/component"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's where PyYAML has them: ten times as fast."""


def tool(name: str) -> Path:
    """Return a program's path, or skip the test."""
    found = path_of(name)
    if found is None:
        pytest.skip(f"{name} is not here; python scripts/fetch_tools.py fetches it")
    return found


def run(
    name: str, *arguments: str, input_text: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(tool(name)), *arguments], input=input_text, capture_output=True, text=True,
        check=False, timeout=60,
        # Nothing of this machine's: no repositories, plugins or clusters.
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "KUBECONFIG": "/nonexistent/config"},
    )  # fmt: skip


def helm(
    name: str,
    command: Sequence[str],
    values: Mapping[str, Any] | str = "",
    crds: Sequence[str] = CRDS,
) -> subprocess.CompletedProcess[str]:
    """Run one of helm's commands on the chart with these values."""
    text = values if isinstance(values, str) else yaml.safe_dump(dict(values))
    apis = [word for crd in crds for word in ("--api-versions", crd)]
    return run(name, *command, str(CHART), "--values", "-", *apis, input_text=text)


def render(
    name: str,
    values: Mapping[str, Any] | str = "",
    *,
    release: str = "kvnode",
    crds: Sequence[str] = CRDS,
) -> list[Object]:
    """Return the objects of a release, hooks included, sorted by kind and name."""
    text = values if isinstance(values, str) else yaml.safe_dump(dict(values))
    return parsed(_rendered(name, text, release, tuple(crds)))


@functools.cache
def _rendered(name: str, values: str, release: str, crds: tuple[str, ...]) -> str:
    done = helm(name, ("template", release, "--namespace", "default"), values, crds)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def kustomized(name: str, folder: str) -> str:
    """Return what kustomize makes of a folder below ``k8s``."""
    done = run(name, "kustomize", str(ROOT / "k8s" / folder))
    assert done.returncode == 0, done.stderr
    return done.stdout


def parsed(text: str) -> list[Object]:
    """Return the objects of a stream, lists taken apart, sorted by kind and name."""
    return sorted(_objects(text), key=lambda o: (o["kind"], o["metadata"]["name"]))


def _objects(text: str) -> Iterator[Object]:
    for document in yaml.load_all(text, LOADER):
        if document is None:
            continue
        if document["kind"] == "List":
            yield from document["items"]
        else:
            yield document


def the(objects: Sequence[Object], kind: str, name: str | None = None) -> Object:
    """Return the one object of that kind (and name)."""
    found = [o for o in objects if o["kind"] == kind and name in {None, o["metadata"]["name"]}]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def pod_specs(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Yield (owner, spec) of everything that runs."""
    for o in objects:
        name = f"{o['kind']}/{o['metadata']['name']}"
        if o["kind"] == "Pod":
            yield name, o["spec"]
        elif o["kind"] in {"StatefulSet", "Job", "Deployment"}:
            yield name, o["spec"]["template"]["spec"]
        elif o["kind"] == "CronJob":
            yield name, o["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def voters(objects: Sequence[Object]) -> Object:
    """Return the StatefulSet of the voters; manifests by others label nothing."""
    return the(
        [o for o in objects if labels_of(o).get(COMPONENT, "server") == "server"], "StatefulSet"
    )


def labels_of(o: Object) -> Object:
    """Return an object's labels."""
    return dict(o["metadata"].get("labels") or {})


def expanded(container: Object, **known: str) -> list[str]:
    """Return a container's arguments as the kubelet would give them: ``$(NAME)`` replaced."""
    values = dict(known)
    for variable in container.get("env", []):
        if "value" in variable:
            values.setdefault(variable["name"], variable["value"])
    return [
        re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], argument)
        for argument in container.get("args", [])
    ]


@functools.cache
def _first_error(text: str, version: str) -> str:
    import kubernetes_validate

    try:
        kubernetes_validate.validate(yaml.load(text, LOADER), version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return "no such kind in this version"
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return ""


def schema_errors(objects: Sequence[Object], version: str) -> list[str]:
    """Return what Kubernetes' own schemas say about the objects, strictly; CRDs are left out."""
    found = []
    for o in objects:
        if o["apiVersion"] in CRDS:
            continue
        error = _first_error(yaml.dump(o, Dumper=DUMPER), version)
        if error:
            found.append(f"{o['kind']}/{o['metadata']['name']} on {version}: {error}")
    return found
