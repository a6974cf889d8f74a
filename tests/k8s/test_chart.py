"""The chart: what it makes of values, by both versions of helm, for three versions of Kubernetes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvnode.config.loading import load
from tests.k8s.charts import (
    CRDS,
    DUMPER,
    HELMS,
    HERE,
    KUBERNETES,
    Object,
    expanded,
    helm,
    pod_specs,
    render,
    schema_errors,
    the,
    voters,
)

SETS = sorted(path.stem for path in (HERE / "values").glob("*.yaml"))
WITHOUT_APIS = {"no-apis"}
FOREIGN_SECURITY = {"extras"}
"""Sets that take the security context away."""


def values_of(name: str) -> str:
    return (HERE / "values" / f"{name}.yaml").read_text()


def rendered(helm_name: str, name: str) -> list[Object]:
    return render(helm_name, values_of(name), crds=() if name in WITHOUT_APIS else CRDS)


def test_there_are_enough_sets_of_values() -> None:
    """An empty folder would let the tests below pass."""
    assert len(SETS) >= 12


@pytest.mark.parametrize("helm_name", HELMS)
def test_lint_finds_nothing(helm_name: str) -> None:
    done = helm(helm_name, ("lint", "--strict"), crds=())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("helm_name", HELMS)
@pytest.mark.parametrize("name", SETS)
def test_output_is_as_it_was(name: str, helm_name: str, request: pytest.FixtureRequest) -> None:
    """Golden files: a change to the templates shows what it changes for whom. Both helms agree."""
    path = HERE / "golden" / f"{name}.yaml"
    text = yaml.dump_all(rendered(helm_name, name), Dumper=DUMPER, width=120, sort_keys=True)
    if request.config.getoption("--rewrite-golden", default=False):
        path.write_text(text)
    assert text == path.read_text()


def test_there_is_no_golden_file_without_values() -> None:
    assert sorted(path.stem for path in (HERE / "golden").glob("*.yaml")) == SETS


@pytest.mark.parametrize(
    "version", [*(pytest.param(v, marks=pytest.mark.slow) for v in KUBERNETES[:-1]), KUBERNETES[-1]]
)
@pytest.mark.parametrize("name", SETS)
def test_objects_fit_the_schemas_of_kubernetes(name: str, version: str) -> None:
    """Strictly: a misspelt field would be dropped by the API server without a word."""
    assert schema_errors(rendered("helm-4", name), version) == []


@pytest.mark.parametrize("name", SETS)
def test_the_agent_takes_what_the_chart_gives_it(name: str, tmp_path: Path) -> None:
    """Flags and files as the pod sees them, read by the agent's own reader."""
    objects = rendered("helm-4", name)
    stateful = voters(objects)
    config = agent_config(objects, stateful, f"{stateful['metadata']['name']}-0", tmp_path)
    spec = stateful["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
    assert (config.http_port, config.peer_port) == (ports["http"], ports["raft"])
    assert config.data_dir in {mount["mountPath"] for mount in spec["volumeMounts"]}
    assert config.advertise.startswith(
        f"{config.node_name}.{stateful['spec']['serviceName']}.default.svc."
    )
    assert config.join_srv.startswith(f"_raft._tcp.{stateful['spec']['serviceName']}.default.svc.")
    assert not config.read_replica
    mounted = [mount["mountPath"] for mount in spec["volumeMounts"]]
    for path in (config.tls_cert_file, config.tls_ca_file, config.peer_secret_file):
        assert not path or str(Path(path).parent) in mounted
    if config.kubernetes_statefulset:
        assert config.kubernetes_statefulset == stateful["metadata"]["name"]
        assert config.kubernetes_credentials in mounted
    values = yaml.safe_load(values_of(name))
    expected = stateful["spec"]["replicas"] if values.get("bootstrap", True) else 0
    assert config.bootstrap_expect == expected
    # A pod that the chart has not counted founds nothing, whatever it finds when it starts.
    stranger = f"{stateful['metadata']['name']}-{stateful['spec']['replicas']}"
    assert agent_config(objects, stateful, stranger, tmp_path).bootstrap_expect == 0
    # Killed in the middle of handing over would be an election instead of a handover.
    grace = stateful["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    removal = config.removal_timeout_s if config.kubernetes_statefulset else 0
    assert config.shutdown_s + removal < grace


@pytest.mark.parametrize("name", ["readers", "readers-scaled"])
def test_read_replicas_find_the_voters_and_found_nothing(name: str, tmp_path: Path) -> None:
    """A reader that took part in a founding would be counted in it."""
    objects = rendered("helm-4", name)
    stateful = the(objects, "StatefulSet", "kvnode-read")
    config = agent_config(objects, stateful, "kvnode-read-0", tmp_path)
    assert config.read_replica
    assert config.bootstrap_expect == 0
    assert config.join_srv.startswith(f"_raft._tcp.{voters(objects)['spec']['serviceName']}.")
    assert config.advertise.startswith(f"kvnode-read-0.{stateful['spec']['serviceName']}.")
    assert config.kubernetes_statefulset == "kvnode-read"
    client = the(objects, "Service", "kvnode")["spec"]["selector"].items()
    labels = stateful["spec"]["template"]["metadata"]["labels"]
    assert not client <= labels.items(), "the voters' Service would lead to readers"
    scaler = [o for o in objects if o["kind"] == "HorizontalPodAutoscaler"]
    assert ("replicas" in stateful["spec"]) is not bool(scaler), "two would say how many"


@pytest.mark.parametrize("name", SETS)
def test_every_certificate_is_for_the_names_that_are_dialled(name: str) -> None:
    """Peers dial each other by the names of the headless Services, clients by the Service's."""
    objects = rendered("helm-4", name)
    names = []
    for o in objects:
        if o["kind"] == "Certificate":
            names = o["spec"]["dnsNames"]
        elif o["kind"] == "Job" and o["metadata"]["name"] == "kvnode-secrets":
            arguments = o["spec"]["template"]["spec"]["containers"][0]["args"]
            names = [word[11:] for word in arguments if word.startswith("--tls-name=")]
    if not names:
        return
    for o in objects:
        if o["kind"] == "StatefulSet":
            assert f"*.{o['spec']['serviceName']}.default.svc.cluster.local" in names
        elif o["kind"] == "Service" and o["spec"].get("clusterIP") != "None":
            assert {o["metadata"]["name"], f"{o['metadata']['name']}.default.svc"} <= set(names)


@pytest.mark.parametrize("name", SETS)
def test_a_role_allows_what_is_asked_and_nothing_wide(name: str) -> None:
    """Least privilege: one StatefulSet by name, Secrets by name but for making them."""
    objects = rendered("helm-4", name)
    for role in (o for o in objects if o["kind"] == "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert (
                "resourceNames" in rule
                or rule["verbs"] == ["create"]
                or (rule["resources"] == ["pods"] and name == "readers")
            )
    asks = [o for o in objects if o["kind"] == "Role" and o["metadata"]["name"] == "kvnode"]
    if name == "by-hand":
        assert not asks
    for o in objects:
        if o["kind"] == "StatefulSet" and asks:
            assert any(
                o["metadata"]["name"] in r.get("resourceNames", []) for r in asks[0]["rules"]
            )


def agent_config(objects: list[Object], stateful: Object, pod: str, folder: Path) -> Any:
    """Read the settings as the pod would: ConfigMaps laid out as files."""
    container = stateful["spec"]["template"]["spec"]["containers"][0]
    volumes = {v["name"]: v for v in stateful["spec"]["template"]["spec"]["volumes"]}
    words = expanded(container, POD_NAME=pod, POD_NAMESPACE="default")
    for mount in container["volumeMounts"]:
        config_map = volumes.get(mount["name"], {}).get("configMap")
        if config_map is None:
            continue
        place = folder / mount["name"]
        place.mkdir(exist_ok=True)
        for key, text in the(objects, "ConfigMap", config_map["name"])["data"].items():
            (place / key).write_text(text)
        words = [word.replace(mount["mountPath"], str(place)) for word in words]
    assert words[0] == "agent"
    environ = {v["name"]: v["value"] for v in container["env"] if "value" in v}
    loaded = load(words[1:], environ)
    ignored = [
        n
        for n in loaded.notices
        if n.event in {"flag_ignored", "member_ignored", "variable_ignored"}
    ]
    assert ignored == []
    return loaded.config


@pytest.mark.parametrize("name", SETS)
def test_selectors_find_the_pods(name: str) -> None:
    objects = rendered("helm-4", name)
    stateful = [o for o in objects if o["kind"] == "StatefulSet"]
    pods = {o["metadata"]["name"]: o["spec"]["template"]["metadata"]["labels"] for o in stateful}
    selectors = {
        (o["kind"], o["metadata"]["name"]): o["spec"]["selector"]
        for o in objects
        if o["kind"] in {"PodDisruptionBudget", "StatefulSet"}
    }
    selectors |= {
        ("Service", o["metadata"]["name"]): {"matchLabels": o["spec"]["selector"]}
        for o in objects
        if o["kind"] == "Service"
    }
    assert len(selectors) >= 3
    for (kind, owner), selector in selectors.items():
        assert selector["matchLabels"]
        # The leader wears its label only while it leads.
        worn = {"kvnode/leader": "true"} if owner.endswith("-leader") else {}
        chosen = [pod for pod, labels in pods.items() if matches(selector, labels | worn)]
        reads = [name for name in pods if name.endswith("-read")] if "-read" in owner else []
        assert chosen == (reads or [voters(objects)["metadata"]["name"]]), (kind, owner)
    for monitor in (o for o in objects if o["kind"] == "PodMonitor"):
        assert all(matches(monitor["spec"]["selector"], labels) for labels in pods.values())
    for monitor in (o for o in objects if o["kind"] == "ServiceMonitor"):
        chosen = [
            o["metadata"]["name"]
            for o in objects
            if o["kind"] == "Service"
            and matches(monitor["spec"]["selector"], o["metadata"]["labels"])
        ]
        assert sorted(chosen) == sorted(o["spec"]["serviceName"] for o in stateful), "each pod once"


def matches(selector: Object, labels: Object) -> bool:
    """Whether a LabelSelector chooses these labels."""
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", [])
    )


@pytest.mark.parametrize("name", SETS)
def test_pods_are_restricted(name: str) -> None:
    """The "restricted" Pod Security Standard, no token, and no variables of other Services."""
    for owner, spec in pod_specs(rendered("helm-4", name)):
        assert spec["automountServiceAccountToken"] is False, owner
        assert spec["enableServiceLinks"] is False, owner
        if name in FOREIGN_SECURITY:
            continue
        assert spec["securityContext"]["runAsNonRoot"] is True, owner
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, owner


@pytest.mark.parametrize("name", SETS)
def test_a_budget_never_forbids_every_drain(name: str) -> None:
    for budget in (o for o in rendered("helm-4", name) if o["kind"] == "PodDisruptionBudget"):
        assert "minAvailable" not in budget["spec"]
        assert str(budget["spec"]["maxUnavailable"]).rstrip("%") not in {"0", ""}


# -- upgrades ---------------------------------------------------------------------------------------


def test_more_replicas_restart_nobody() -> None:
    """The number of founders is not in the pods' template, and it is in the ConfigMap."""
    three, five = render("helm-4"), render("helm-4", {"replicas": 5})
    before, after = the(three, "StatefulSet"), the(five, "StatefulSet")
    assert before["spec"].pop("replicas") == 3
    assert after["spec"].pop("replicas") == 5
    assert before == after
    data = the(five, "ConfigMap", "kvnode-bootstrap")["data"]
    assert data == {f"kvnode-{n}.toml": "bootstrap_expect = 5\n" for n in range(5)}


def test_a_changed_setting_restarts_the_pods() -> None:
    one = render("helm-4", {"settings": {"log_level": "debug"}})
    other = render("helm-4", {"settings": {"log_level": "info"}})
    templates = [the(o, "StatefulSet")["spec"]["template"] for o in (one, other)]
    assert templates[0]["metadata"] != templates[1]["metadata"]
    assert templates[0]["spec"] == templates[1]["spec"]


def test_what_cannot_be_changed_later_holds_nothing_that_changes() -> None:
    """Selectors and claim templates are immutable: no version, no chart, no common labels in them."""
    spec = the(render("helm-4", {"commonLabels": {"team": "a"}}), "StatefulSet")["spec"]
    fixed = {
        "app.kubernetes.io/name": "kvnode",
        "app.kubernetes.io/instance": "kvnode",
        "app.kubernetes.io/component": "server",
    }
    assert spec["selector"]["matchLabels"] == fixed
    assert spec["volumeClaimTemplates"][0]["metadata"]["labels"] == fixed


def test_a_chart_of_another_version_restarts_nobody() -> None:
    """No label of the pods names the chart; the application's version is in the image."""
    template = the(render("helm-4"), "StatefulSet")["spec"]["template"]
    assert not [key for key in template["metadata"]["labels"] if "chart" in key or "version" in key]
    assert "annotations" not in template["metadata"]


def test_names_stay_within_what_kubernetes_allows() -> None:
    """A pod's revision label is the StatefulSet's name and eleven characters; at most 63."""
    objects = render("helm-4", release="r" * 53)
    name = the(objects, "StatefulSet")["metadata"]["name"]
    assert len(name) + 11 <= 63
    assert all(len(o["metadata"]["name"]) <= 63 for o in objects)


def test_two_releases_in_a_namespace_do_not_meet() -> None:
    one, other = render("helm-4", release="one"), render("helm-4", release="two")
    names = [{(o["kind"], o["metadata"]["name"]) for o in objects} for objects in (one, other)]
    assert not names[0] & names[1]
    selectors = [the(o, "StatefulSet")["spec"]["selector"]["matchLabels"] for o in (one, other)]
    assert selectors[0] != selectors[1]


def test_a_shared_claim_has_a_folder_for_each_pod() -> None:
    objects = rendered("helm-4", "shared-made")
    stateful = the(objects, "StatefulSet")["spec"]
    assert "volumeClaimTemplates" not in stateful
    mounts = stateful["template"]["spec"]["containers"][0]["volumeMounts"]
    assert {"name": "data", "mountPath": "/data", "subPathExpr": "$(POD_NAME)"} in mounts
    claim = the(objects, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert not [
        o for o in rendered("helm-4", "shared-claim") if o["kind"] == "PersistentVolumeClaim"
    ]


# -- what is refused --------------------------------------------------------------------------------

REFUSED = {
    "a misspelt value": ("replica: 3", "replica"),
    "a misspelt value inside": ("persistence: {perPod: {sise: 1Gi}}", "sise"),
    "a Secret without a name": ("tls: {enabled: true, source: existingSecret}", "existingSecret"),
    "an Issuer without a name": ("tls: {enabled: true, source: certManager}", "issuerRef"),
    "an unknown source of certificates": ("tls: {enabled: true, source: vault}", "source"),
    "a backup to nowhere": ("backup: {enabled: true, size: ''}", "backup"),
    "a schedule that is none": ("backup: {schedule: daily}", "schedule"),
    "a restore from nowhere": ("restore: {enabled: true}", "restore"),
    "a snapshot outside the claim": ("restore: {file: ../a.snap}", "file"),
    "a leader that may not say so": (
        "{leaderService: {enabled: true}, serviceAccount: {create: false}}",
        "leaderService",
    ),
    "a reader that votes": ("readReplicas: {voting: true}", "voting"),
    "too many pods": ("replicas: 100", "replicas"),
    "pods as text": ("replicas: three", "replicas"),
    "a budget of 0": ("podDisruptionBudget: {maxUnavailable: 0}", "maxUnavailable"),
    "a budget of 0%": ("podDisruptionBudget: {maxUnavailable: 0%}", "maxUnavailable"),
    "a size without a number": ("persistence: {perPod: {size: big}}", "size"),
    "an unknown mode of storage": ("persistence: {mode: nfs}", "mode"),
    "one folder for all pods": ("persistence: {shared: {subPathExpr: data}}", "subPathExpr"),
    "a folder outside the claim": (
        "persistence: {shared: {subPathExpr: ../$(POD_NAME)}}",
        "subPathExpr",
    ),
    "a port out of range": ("ports: {raft: 70000}", "raft"),
    "a setting that the agent does not know": ("settings: {colour: blue}", "colour"),
    "a setting that the chart gives": ("settings: {node_name: a}", "node_name"),
    "a setting out of range": ("settings: {value_bytes_max: 999999999}", "value_bytes_max"),
    "a flag that the chart gives": ("extraArgs: [--data-dir=/tmp]", "extraArgs"),
    "a name that is too long": ("fullnameOverride: " + "a" * 53, "fullnameOverride"),
    "a tag in the repository": ("image: {repository: 'kvnode:1'}", "repository"),
    "a half digest": ("image: {digest: 'sha256:00'}", "digest"),
    "an unknown policy": ("podDisruptionBudget: {unhealthyPodEvictionPolicy: Never}", "Policy"),
    "pods that are scraped twice": (
        "metrics: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}",
        "twice",
    ),
    "a grace period that is over before the handover": (
        "terminationGracePeriodSeconds: 20",
        "terminationGracePeriodSeconds",
    ),
    "the same in the agent's words": (
        "settings: {shutdown_s: 1m}",
        "terminationGracePeriodSeconds",
    ),
    "one port for two": ("ports: {http: 8300}", "8300"),
    "an Ingress without hosts": ("ingress: {enabled: true}", "ingress.hosts"),
    "a route without a gateway": ("httpRoute: {enabled: true}", "parentRefs"),
}


@pytest.mark.parametrize("helm_name", HELMS)
@pytest.mark.parametrize("what", REFUSED)
def test_is_refused(what: str, helm_name: str) -> None:
    """A value that would have no effect, or a bad one, stops the installation and is named."""
    values, named = REFUSED[what]
    done = helm(helm_name, ("template", "kvnode"), values)
    assert done.returncode != 0
    assert named in done.stderr


# -- NOTES ------------------------------------------------------------------------------------------

NOTED = {
    "replicas: 3": "of which 1 may fail",
    "replicas: 4": "an even number",
    "replicas: 1": "the only copy",
    "replicas: 0": "no pods",
    "persistence: {mode: ephemeral}": "everything is lost",
    "service: {type: LoadBalancer}": "no access rules",
    "bootstrap: false": "bootstrap is off",
    "membership: {automaticRemoval: false}": "remove-peer",
    "tls: {enabled: true, source: existingSecret, existingSecret: a}": "https://",
    "readReplicas: {enabled: true}": "kvnode-read",
    "backup: {enabled: true}": "create job",
    "metrics: {serviceMonitor: {enabled: true}}": "no monitoring.coreos.com/v1",
    "httpRoute: {enabled: true, parentRefs: [{name: a}]}": "no gateway.networking.k8s.io/v1",
}


@pytest.mark.parametrize("values", NOTED)
def test_notes_fit_the_values(values: str) -> None:
    said = notes(values)
    warned = [text for other, text in NOTED.items() if other != values and text in said]
    assert NOTED[values] in said
    assert warned in ([], ["of which 1 may fail"])


def notes(values: str) -> str:
    done = helm("helm-4", ("install", "kvnode", "--dry-run=client"), values, crds=())
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]
