"""Settings: one declaration each, four sources, Consul's spellings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvnode.config import SETTINGS, Config, SettingError, load
from kvnode.config.documentation import flags_help, markdown

REPOSITORY = Path(__file__).parent.parent
DIR = ("--data-dir=/d",)


def config(*argv: str, **environ: str) -> Config:
    return load((*DIR, *argv), environ).config


def sample(name: str) -> tuple[Any, str]:
    """A value other than the default, that fits with all other defaults, and its text."""
    setting = SETTINGS[name]
    fitting = {"tick_ms": 25, "heartbeat_ms": 150, "election_timeout_ms": 2000}
    match setting.kind:
        case "bool":
            return not setting.default, str(not setting.default).lower()
        case "list":
            return ("a", "b"), "a,b"
        case "str":
            value = setting.choices[0] if setting.choices else "x"
            if value == setting.default:
                value = setting.choices[1]
            return value, value
        case _:
            number = fitting.get(name, setting.default + 1)
            return number, str(number)


NOT_FILES = [name for name in SETTINGS if name not in ("config_file", "dev", "bootstrap")]


NEEDS = {
    "tls_cert_file": ("--tls-key-file=k", "--tls-ca-file=a"),
    "tls_key_file": ("--tls-cert-file=c", "--tls-ca-file=a"),
    "tls_verify_clients": ("--tls-cert-file=c", "--tls-key-file=k", "--tls-ca-file=a"),
}
"""What cannot be given alone."""


@pytest.mark.parametrize("name", NOT_FILES)
def test_every_setting_is_a_flag_a_variable_and_a_member(name: str, tmp_path: Path) -> None:
    """One declaration gives all three, so none can be forgotten."""
    setting = SETTINGS[name]
    value, text = sample(name)
    others = () if name == "data_dir" else DIR
    others += NEEDS.get(name, ())
    by_flag = load((*others, f"{setting.flag}={text}"), {})
    by_variable = load(others, {setting.variable: text})
    file = tmp_path / "c.json"
    file.write_text(json.dumps({name: value}))
    by_file = load((*others, "--config-file", str(file)), {})
    for loaded in (by_flag, by_variable, by_file):
        assert getattr(loaded.config, name) == value
        assert name in loaded.given
        assert loaded.notices == ()


def test_flags_win_over_variables_over_files_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("http_port = 1\npeer_port = 2\nkey_bytes_max = 3\n")
    found = config(
        f"--config-file={file}", "--http-port=10", KVNODE_HTTP_PORT="20", KVNODE_PEER_PORT="21"
    )
    assert (found.http_port, found.peer_port, found.key_bytes_max) == (10, 21, 3)
    assert found.datacenter == "dc1"


def test_the_consul_statefulset_manifest_is_understood(tmp_path: Path) -> None:
    """Kubernetes guide §7.1: nothing but the image changes."""
    argv = [
        "-server",
        "-bootstrap-expect=3",
        "-ui",
        "-config-file=/consul/nowhere",
        "-data-dir=/consul/data",
        "-log-file=/consul/log",
        "-bind=0.0.0.0",
        "-client=0.0.0.0",
        "-advertise=10.0.0.7",
        "-retry-join=consul-0.consul.ns.svc.cluster.local",
        "-retry-join=consul-1.consul.ns.svc.cluster.local",
        "-retry-join=consul-2.consul.ns.svc.cluster.local",
        "-domain=cluster.local",
        "-disable-host-node-id",
    ]
    loaded = load(argv, {})
    found = loaded.config
    assert found.bootstrap_expect == 3
    assert found.client == "0.0.0.0"
    assert found.advertise == "10.0.0.7"
    assert [join.split(".")[0] for join in found.retry_join] == ["consul-0", "consul-1", "consul-2"]
    assert [notice.event for notice in loaded.notices] == ["config_file_skipped"]


def test_consuls_suite_members_are_understood(tmp_path: Path) -> None:
    """Spec §15: what the client suites write into their configuration file."""
    file = tmp_path / "config.json"
    document = {
        "node_name": "n1", "node_id": "adf4238a-882b-9ddc-4a9d-5b6758e4159e",
        "node_meta": {"a": "b"}, "datacenter": "dc7", "data_dir": str(tmp_path), "server": True,
        "bootstrap": True, "bind_addr": "127.0.0.1", "advertise_addr": "127.0.0.1",
        "client_addr": "127.0.0.2", "addresses": {"http": "127.0.0.1"},
        "ports": {"http": 1234, "https": -1, "dns": 5, "grpc": -1, "serf_lan": 6, "server": 7},
        "performance": {"raft_multiplier": 1}, "log_level": "WARN", "session_ttl_min": "0.5s",
        "disable_update_check": True, "skip_leave_on_interrupt": True, "enable_debug": True,
        "primary_datacenter": "dc7", "acl": {"enabled": True, "tokens": {"initial": "x"}},
        "enable_script_checks": True, "connect": {"enabled": True}, "an_unknown_one": [1],
        "limits": {"kv_max_value_size": 1000, "txn_max_req_len": 2000},
    }  # fmt: skip
    file.write_text(json.dumps(document))
    loaded = load(["-config-file", str(file)], {})
    found = loaded.config
    assert (found.node_name, found.datacenter, found.data_dir) == ("n1", "dc7", str(tmp_path))
    assert (found.bind, found.advertise, found.client) == ("127.0.0.1",) * 3
    assert (found.http_port, found.peer_port, found.bootstrap_expect) == (1234, 7, 1)
    assert (found.log_level, found.session_ttl_min_s) == ("warn", 0.5)
    assert (found.value_bytes_max, found.txn_bytes_max) == (1000, 2000)
    ignored = {notice.detail.split()[0] for notice in loaded.notices}
    assert "an_unknown_one" in ignored
    assert "acl.enabled" in ignored, "somebody who asked for access rules must hear of it"
    assert not any(name.startswith(("ports.", "node_name", "limits.")) for name in ignored)


def test_dev_is_a_cluster_of_one_on_loopback() -> None:
    found = load(["-dev"], {}).config
    assert (found.dev, found.bootstrap_expect, found.bind) == (True, 1, "127.0.0.1")
    assert found.client == "127.0.0.1"


def test_a_config_folder_is_read_file_by_file(tmp_path: Path) -> None:
    """A manifest may mount a claim where -config-file points."""
    (tmp_path / "1.json").write_text('{"datacenter": "a", "log_level": "debug"}')
    (tmp_path / "2.toml").write_text('datacenter = "b"')
    (tmp_path / "note.txt").write_text("not ours")
    loaded = load((*DIR, f"-config-file={tmp_path}"), {})
    assert (loaded.config.datacenter, loaded.config.log_level) == ("b", "debug")
    assert loaded.notices[0].event == "config_folder_read"


@pytest.mark.parametrize(
    ("argv", "begins"),
    [
        (["--http-port=x"], "--http-port: 'x'"),
        (["--http-port=70000"], "--http-port: 70000 is above"),
        (["-server-port=-1"], "-server-port: -1 is below"),
        (["--log-level=loud"], "--log-level: 'loud' is none of"),
        (["--leader-wait-s=nan"], "--leader-wait-s: 'nan'"),
        (["--leader-wait-s=1e999"], "--leader-wait-s: inf s is above"),
        (["--tick-ms=1e999"], "--tick-ms: inf ms is above"),
        (["--tick-ms=1.5"], "--tick-ms: '1.5' is not a whole number"),
        (["--ui=perhaps"], "--ui: 'perhaps'"),
        (["--htp-port=1"], "--htp-port: no such flag; did you mean --http-port?"),
        (["stray"], "'stray': expected a flag"),
        (["--http-port"], "--http-port: a value must follow"),
        (["--no-data-dir"], "--no-data-dir: only switches"),
        (["--heartbeat-ms=75"], "--heartbeat-ms: 75 is not a multiple"),
        (["--election-timeout-ms=200"], "--election-timeout-ms: 200 is less than three times"),
        (["--bootstrap", "--bootstrap-expect=3"], "--bootstrap: founds"),
        (["--peer-port=8500"], "--peer-port: 8500 is the HTTP port"),
    ],
)
def test_a_bad_value_is_refused_by_name(argv: list[str], begins: str) -> None:
    with pytest.raises(SettingError) as caught:
        config(*argv)
    assert str(caught.value).startswith(begins)


def test_a_bad_variable_is_refused_by_its_own_name() -> None:
    with pytest.raises(SettingError, match=r"^KVNODE_HTTP_PORT: 'many'"):
        config(KVNODE_HTTP_PORT="many")


def test_the_data_directory_must_be_given() -> None:
    """A default would be another directory whenever the process starts elsewhere: empty data."""
    with pytest.raises(SettingError, match=r"^--data-dir"):
        load([], {})


@pytest.mark.parametrize("content", ["{", "[1]", '"x"', "\x00", '{"a":' * 100_000])
def test_a_broken_file_is_refused_by_its_name(content: str, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(content)
    with pytest.raises(SettingError, match=str(file)):
        config(f"--config-file={file}")


def test_kubernetes_service_links_are_no_settings() -> None:
    """A Service called kvnode-http puts KVNODE_HTTP_PORT=tcp://… into every pod."""
    links = {
        "KVNODE_HTTP_PORT": "tcp://10.0.0.1:8500",
        "KVNODE_PORT_8500_TCP_ADDR": "10.0.0.1",
        "KVNODE_SERVICE_HOST": "10.0.0.1",
        "KVNODE_HTTP_SERVICE_PORT_HTTP": "8500",
        "KVNODE_HTTP_PORT_8500_TCP": "tcp://10.0.0.1:8500",
        "KVNODE_PORT": "tcp://10.0.0.1:8500",
    }
    loaded = load(DIR, links)
    assert loaded.config.http_port == 8500
    assert [notice.detail.split("=")[0] for notice in loaded.notices] == ["KVNODE_HTTP_PORT"]


def test_a_misspelt_variable_is_reported() -> None:
    loaded = load(DIR, {"KVNODE_BOOTSTRAP_EXPCT": "3", "KVNODE_HTTP_ADDR": "x"})
    assert [notice.event for notice in loaded.notices] == ["variable_ignored"]


@pytest.mark.parametrize(
    ("flag", "name", "value"),
    [
        ("--value-bytes-max=64KiB", "value_bytes_max", 65536),
        ("--value-bytes-max=1.5k", "value_bytes_max", 1536),
        ("--tick-ms=25ms", "tick_ms", 25),
        ("--election-timeout-ms=2s", "election_timeout_ms", 2000),
        ("--leader-wait-s=1m30s", "leader_wait_s", 90.0),
        ("--leader-wait-s=250ms", "leader_wait_s", 0.25),
    ],
)
def test_values_may_carry_units(flag: str, name: str, value: float) -> None:
    assert getattr(config(flag), name) == value


def test_switches_can_be_turned_off() -> None:
    assert config("--no-ui").ui is False
    assert config("-ui=false").ui is False
    assert config("-ui").ui is True


def test_consuls_flags_without_meaning_here_are_taken_with_their_values() -> None:
    loaded = load((*DIR, "-dns-port", "53", "-raft-protocol=3", "-syslog", "-log-json"), {})
    assert [notice.detail.split()[0] for notice in loaded.notices] == [
        "-dns-port",
        "-raft-protocol",
        "-syslog",
    ]
    assert loaded.config.log_format == "json"


def test_consuls_tls_members_are_understood(tmp_path: Path) -> None:
    """Both of its spellings, and what it calls the gossip key."""
    file = tmp_path / "consul.json"
    old = {"cert_file": "c", "key_file": "k", "ca_file": "a"}
    rules = {"verify_incoming": True, "verify_outgoing": True}
    for document in (
        {**old, **rules, "encrypt": "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s="},
        {
            "tls": {"defaults": {**old, **rules}, "internal_rpc": {"verify_incoming": True}},
            "encrypt": "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=",
        },
    ):
        file.write_text(json.dumps(document))
        loaded = load((*DIR, f"--config-file={file}"), {})
        found = loaded.config
        assert loaded.notices == ()
        assert (found.tls_cert_file, found.tls_key_file, found.tls_ca_file) == ("c", "k", "a")
        assert found.tls_verify_clients
        assert found.peer_secret.startswith("pUqJ")


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        ({"http": -1, "https": 8501}, 8501),
        ({"https": 8501, "http": -1}, 8501),
        ({"https": 8501}, 8500),
        ({"http": 80, "https": 8501}, 80),
        ({"http": -1, "https": -1}, -1),
        ({"http": -1}, -1),
    ],
)
def test_consuls_https_port_is_ours_when_http_is_off(
    ports: dict[str, int], port: int, tmp_path: Path
) -> None:
    file = tmp_path / "consul.json"
    file.write_text(json.dumps({"ports": ports}))
    loaded = load((*DIR, f"--config-file={file}"), {})
    assert (loaded.config.http_port, loaded.notices) == (port, ())


def test_a_secret_is_shown_nowhere(tmp_path: Path) -> None:
    assert "hunter2" not in repr(config("-encrypt=hunter2"))
    file = tmp_path / "c.json"
    file.write_text('{"encrypt": ["hunter2"]}')
    with pytest.raises(SettingError) as error:
        config(f"--config-file={file}")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "missing"),
    [
        (("--tls-cert-file=c",), "--tls-key-file"),
        (("--tls-key-file=k",), "--tls-cert-file"),
        (("--tls-cert-file=c", "--tls-key-file=k"), "--tls-ca-file"),
        (("--tls-verify-clients",), "--tls-verify-clients"),
        (
            ("--tls-cert-file=c", "--tls-key-file=k", "--tls-peers=off", "--tls-verify-clients"),
            "--tls-verify-clients",
        ),
    ],
)
def test_half_of_tls_is_refused(flags: tuple[str, ...], missing: str) -> None:
    with pytest.raises(SettingError) as error:
        config(*flags)
    assert str(error.value).startswith(missing)
    config("--tls-cert-file=c", "--tls-key-file=k", "--tls-peers=off")


def test_cloud_joins_are_reported_not_dialled() -> None:
    loaded = load((*DIR, '-retry-join=provider=k8s label_selector="a=b,c=d"', "-join=h"), {})
    assert loaded.config.retry_join == ("h",)
    assert [notice.event for notice in loaded.notices] == ["join_ignored"]


def test_the_page_of_settings_is_current() -> None:
    """Undocumented settings fail the build."""
    stored = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert stored == markdown(), (
        "run: python -m kvnode.config.documentation > docs/configuration.md"
    )


def test_the_help_names_every_flag() -> None:
    text = flags_help()
    for setting in SETTINGS.values():
        assert f"  {setting.flag}" in text
