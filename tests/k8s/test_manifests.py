"""The plain manifests: the same cluster as the chart's, and arguments that the agent takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvnode.config.loading import Loaded, load
from tests.k8s.charts import (
    KUBECTLS,
    KUBERNETES,
    ROOT,
    Object,
    expanded,
    kustomized,
    parsed,
    pod_specs,
    render,
    run,
    schema_errors,
    the,
    tool,
)

FOLDERS = sorted(
    str(path.parent.relative_to(ROOT / "k8s"))
    for path in (ROOT / "k8s").rglob("kustomization.yaml")
    if "components" not in path.parts
)
PLAIN = sorted(
    str(path.relative_to(ROOT / "k8s"))
    for path in (ROOT / "k8s" / "examples").rglob("*.yaml")
    if not (path.parent / "kustomization.yaml").exists() or path.name == "volumes-by-hand.yaml"
)
HELM_LABELS = {"helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"}


def objects_in(place: str, kubectl: str = "kubectl-1.37") -> list[Object]:
    if place.endswith(".yaml"):
        return parsed((ROOT / "k8s" / place).read_text())
    return parsed(kustomized(kubectl, place))


def test_there_is_something_to_look_at() -> None:
    assert len(FOLDERS) >= 8
    assert len(PLAIN) >= 3


# -- the same cluster -------------------------------------------------------------------------------


@pytest.mark.parametrize("kubectl", KUBECTLS)
def test_base_is_what_the_chart_gives(kubectl: str) -> None:
    """Whoever changes one changes the other. Only helm's own labels and its test differ."""
    chart = [o for o in render("helm-4", crds=()) if "helm.sh/hook" not in annotations(o)]
    base = objects_in("base", kubectl)
    assert [normal(o) for o in base] == [normal(o) for o in chart]


def annotations(o: Object) -> dict[str, str]:
    return o["metadata"].get("annotations") or {}


def normal(o: Object) -> Object:
    """Without helm's labels and the namespace, which ``kubectl apply`` gives."""
    metadata = {key: value for key, value in o["metadata"].items() if key != "namespace"}
    metadata["labels"] = {k: v for k, v in metadata["labels"].items() if k not in HELM_LABELS}
    return o | {"metadata": metadata}


@pytest.mark.parametrize("kubectl", KUBECTLS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_every_kustomize_makes_the_same(folder: str, kubectl: str) -> None:
    assert objects_in(folder, kubectl) == objects_in(folder)


@pytest.mark.parametrize(
    "version", [*(pytest.param(v, marks=pytest.mark.slow) for v in KUBERNETES[:-1]), KUBERNETES[-1]]
)
@pytest.mark.parametrize("place", FOLDERS + PLAIN)
def test_objects_fit_the_schemas_of_kubernetes(place: str, version: str) -> None:
    assert schema_errors(objects_in(place), version) == []


# -- what the agent makes of them -------------------------------------------------------------------


def agents() -> list[Any]:
    """Every file with a container that runs ``kvnode agent``; no tool is needed for it."""
    return [
        pytest.param(path, id=str(path.relative_to(ROOT / "k8s")))
        for path in sorted((ROOT / "k8s").rglob("*.yaml"))
        if any("args" in container for container in containers(path))
    ]


def containers(path: Path) -> list[Object]:
    return [
        container
        for document in yaml.safe_load_all(path.read_text())
        if document and document["kind"] == "StatefulSet"
        for container in document["spec"]["template"]["spec"].get("containers", [])
    ]


def load_args(file: Path, pod: str, folder: Path) -> Loaded:
    (container,) = containers(file)
    words = expanded(
        container, POD_NAME=pod, PODNAME=pod, POD_NAMESPACE="default", NAMESPACE="default",
        PODIP="10.0.0.7", LOG_FORMAT="json",
    )  # fmt: skip
    assert words[0] == "agent"
    return load([word.replace("/etc/kvnode", str(folder)) for word in words[1:]], {})


def test_there_are_agents() -> None:
    assert len(agents()) >= 5


@pytest.mark.parametrize("file", agents())
def test_the_agent_takes_the_arguments(file: Path, tmp_path: Path) -> None:
    loaded = load_args(file, "kvnode-0", tmp_path)
    assert loaded.config.client == "0.0.0.0"
    assert loaded.config.data_dir.startswith("/")


def test_a_hand_written_consul_manifest_comes_up_as_three_servers(tmp_path: Path) -> None:
    """Kubernetes guide §7.1: nothing but the image is changed, so every flag of Consul's is taken."""
    loaded = load_args(ROOT / "k8s/examples/consul/consul.yaml", "consul-1", tmp_path)
    config = loaded.config
    assert config.bootstrap_expect == 3
    assert config.advertise == "10.0.0.7"
    assert config.retry_join == tuple(
        f"consul-{n}.consul.default.svc.cluster.local" for n in range(3)
    )
    assert (config.data_dir, config.log_file) == ("/consul/data", "/consul/log")
    assert config.http_port == 8500
    assert config.peer_port == 8300


@pytest.mark.parametrize("kubectl", KUBECTLS)
def test_the_files_of_the_configmap_example_are_settings(kubectl: str, tmp_path: Path) -> None:
    objects = objects_in("examples/configmap", kubectl)
    settings = next(
        o for o in objects if o["kind"] == "ConfigMap" and "node-settings" in o["metadata"]["name"]
    )
    for name, text in settings["data"].items():
        (tmp_path / name).write_text(text)
    config = load_args(ROOT / "k8s/examples/configmap/node.yaml", "config-0", tmp_path).config
    assert config.log_level == "debug"
    assert config.value_bytes_max == 1 << 20
    assert config.log_format == "json"


# -- the overlays -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", FOLDERS + PLAIN)
def test_every_image_has_a_tag(place: str) -> None:
    """Without one it is whatever "latest" is today, and pulled anew each time."""
    for owner, spec in pod_specs(objects_in(place)):
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["image"].endswith("kvnode:0.1.0"), owner


@pytest.mark.parametrize("place", [p for p in FOLDERS if p != "overlays/minikube"])
def test_pods_are_restricted(place: str) -> None:
    """Only minikube's folders need a container that is root, and Consul's manifest is not ours."""
    for owner, spec in pod_specs(objects_in(place)):
        assert spec["securityContext"]["runAsNonRoot"] is True, owner
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, owner


def test_the_minikube_overlay_has_a_volume_for_each_claim() -> None:
    objects = objects_in("overlays/minikube")
    spec = the(objects, "StatefulSet")["spec"]
    template = spec["volumeClaimTemplates"][0]
    claims = {f"{template['metadata']['name']}-kvnode-{n}" for n in range(spec["replicas"])}
    volumes = [o["spec"] for o in objects if o["kind"] == "PersistentVolume"]
    assert {volume["claimRef"]["name"] for volume in volumes} == claims
    assert {volume["storageClassName"] for volume in volumes} == {
        template["spec"]["storageClassName"]
    }


def test_the_shared_claim_has_a_folder_for_each_pod() -> None:
    objects = objects_in("overlays/nfs-shared")
    spec = the(objects, "StatefulSet")["spec"]
    assert "volumeClaimTemplates" not in spec
    mounts = {m["name"]: m for m in spec["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["data"]["subPathExpr"] == "$(POD_NAME)"
    volumes = {v["name"]: v for v in spec["template"]["spec"]["volumes"]}
    claim = the(objects, "PersistentVolumeClaim")
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_production_is_spread_and_closed() -> None:
    objects = objects_in("overlays/production")
    pod = the(objects, "StatefulSet")["spec"]["template"]["spec"]
    apart = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert [term["topologyKey"] for term in apart] == ["kubernetes.io/hostname"]
    zones = [c for c in pod["topologySpreadConstraints"] if c["topologyKey"].endswith("/zone")]
    assert [c["whenUnsatisfiable"] for c in zones] == ["DoNotSchedule"]
    assert all(rule["from"] for rule in the(objects, "NetworkPolicy")["spec"]["ingress"])
    assert {o["metadata"].get("namespace", "kvnode") for o in objects} == {"kvnode"}


def test_production_speaks_tls_everywhere() -> None:
    """A probe or a scrape by plain HTTP would find the node dead."""
    objects = objects_in("overlays/production")
    container = the(objects, "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    words = expanded(container, POD_NAME="kvnode-0", POD_NAMESPACE="kvnode")
    config = load(words[1:], {}).config
    folder = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}["tls"]
    assert config.tls_http
    for path in (config.tls_cert_file, config.tls_key_file, config.tls_ca_file):
        assert str(Path(path).parent) == folder
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert the(objects, "ServiceMonitor")["spec"]["endpoints"][0]["scheme"] == "https"
    names = the(objects, "Certificate")["spec"]["dnsNames"]
    assert "*." + config.advertise.partition(".")[2].partition(":")[0] in names


def test_kubectl_reads_what_is_applied_as_files() -> None:
    """``kubectl apply -f`` of the examples without a kustomization, as far as that goes offline."""
    tool("kubectl-1.37")
    for place in PLAIN:
        done = run(
            "kubectl-1.37", "label", "--local", "-f", str(ROOT / "k8s" / place), "a=b", "-o", "name"
        )
        assert done.returncode == 0, done.stderr
