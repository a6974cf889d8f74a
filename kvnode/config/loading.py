"""Reads the settings from flags, variables and files, and checks them as a whole."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kvnode.config import consul
from kvnode.config.declaration import Setting, Value
from kvnode.config.settings import SETTINGS, Config
from kvnode.config.values import convert
from kvnode.errors import SettingError


class Notice(NamedTuple):
    """Something that the operator should know and that does not stop the start."""

    event: str
    """A past-tense constant, as in log lines."""
    detail: str


class Loaded(NamedTuple):
    """What ``load`` found."""

    config: Config
    notices: tuple[Notice, ...]
    given: frozenset[str]
    """Names of the settings that were given somewhere, rather than left at their default."""


_BY_FLAG: dict[str, Setting] = {
    spelling: setting
    for setting in SETTINGS.values()
    for spelling in (setting.flag[2:], *setting.consul_flags)
}
_BY_MEMBER: dict[str, Setting] = {
    path: setting for setting in SETTINGS.values() for path in (setting.name, *setting.consul_json)
}
_NOT_SETTINGS = frozenset(
    "KVNODE_" + name
    for name in (
        "HTTP_ADDR", "HTTP_TOKEN", "HTTP_SSL", "HTTP_SSL_VERIFY", "CACERT", "CLIENT_CERT", "CLIENT_KEY",
    )
)  # fmt: skip
"""Variables of the command line's clients."""

# Kubernetes describes every Service to every pod by variables; a Service called kvnode gives
# KVNODE_PORT=tcp://10.0.0.1:8500, one called kvnode-http even KVNODE_HTTP_PORT (service links).
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")
_SERVICE_LINK_NAME = re.compile(r"KVNODE_(.*_)?(SERVICE_(HOST|PORT.*)|PORT(_\d+_.*)?)")


def load(argv: Sequence[str], environ: Mapping[str, str]) -> Loaded:
    """Read every setting: flags, then variables, then files, then defaults.

    Args:
        argv: What follows ``kvnode agent``. Both ``--flag value`` and Consul's ``-flag=value``.
        environ: The environment.

    Returns:
        A checked ``Config`` with the notices of what was skipped.

    Raises:
        SettingError: Something given cannot be used. The text says what, and where it was given.
    """
    notices: list[Notice] = []
    flags = _read_flags(argv, notices)
    variables = _read_variables(environ, notices)
    files: dict[str, Value] = {}
    for name in _paths(flags, variables):
        files |= _read_path(Path(name), notices)
    given = files | variables | flags
    _drop_cloud_joins(given, notices)
    config = _completed(given)
    _check(config)
    return Loaded(config, tuple(notices), frozenset(given))


def _paths(flags: Mapping[str, Value], variables: Mapping[str, Value]) -> tuple[str, ...]:
    paths = flags.get("config_file", variables.get("config_file", ()))
    assert isinstance(paths, tuple)
    return paths


# -- flags ------------------------------------------------------------------------------------------


def _read_flags(argv: Sequence[str], notices: list[Notice]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    rest = iter(argv)
    for argument in rest:
        if not argument.startswith("-") or argument.strip("-") == "":
            raise SettingError(f"{argument!r}: expected a flag")
        name, equals, value = argument.lstrip("-").partition("=")
        setting = _BY_FLAG.get(name)
        if setting is None:
            if name.startswith("no-") and (negated := _BY_FLAG.get(name[3:])) is not None:
                _negate(negated, argument, bool(equals), found)
            elif name == "log-json":
                # Consul's switch for what is a choice here.
                found["log_format"] = "text" if value in ("false", "0") else "json"
            else:
                _skip_consul_flag(name, bool(equals), rest, notices)
            continue
        if not equals:
            value = "true" if setting.kind == "bool" else _next(argument, rest)
        _put(found, setting, value, argument.partition("=")[0])
    return found


def _put(found: dict[str, Value], setting: Setting, value: str, where: str) -> None:
    """Store a flag's value; a repeated flag adds to a list and replaces anything else."""
    if setting.kind == "list":
        so_far = found.get(setting.name, ())
        assert isinstance(so_far, tuple)
        more = convert(setting, value, where)
        assert isinstance(more, tuple)
        found[setting.name] = so_far + more
    else:
        found[setting.name] = convert(setting, value, where)


def _next(argument: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise SettingError(f"{argument}: a value must follow")
    return value


def _negate(setting: Setting, argument: str, has_value: bool, found: dict[str, Value]) -> None:
    if setting.kind != "bool" or has_value:
        raise SettingError(f"{argument}: only switches can be negated, and without a value")
    found[setting.name] = False


def _skip_consul_flag(
    name: str, has_value: bool, rest: Iterator[str], notices: list[Notice]
) -> None:
    if name in consul.SILENT_SWITCHES:
        return
    if name in consul.IGNORED_SWITCHES or name in consul.IGNORED_VALUES:
        if name in consul.IGNORED_VALUES and not has_value:
            _next(f"-{name}", rest)
        notices.append(Notice("flag_ignored", f"-{name} is Consul's and has no effect here"))
        return
    near = difflib.get_close_matches(name, _BY_FLAG, n=1)
    hint = f"; did you mean --{near[0]}?" if near else ""
    raise SettingError(f"--{name}: no such flag{hint}")


# -- variables --------------------------------------------------------------------------------------


def _read_variables(environ: Mapping[str, str], notices: list[Notice]) -> dict[str, Value]:
    known = {setting.variable: setting for setting in SETTINGS.values()}
    found: dict[str, Value] = {}
    for name in sorted(environ):
        if not name.startswith("KVNODE_") or name in _NOT_SETTINGS:
            continue
        value = environ[name]
        setting = known.get(name)
        if setting is None:
            if not _SERVICE_LINK_NAME.fullmatch(name):
                notices.append(Notice("variable_ignored", f"{name} is no setting"))
        elif _SERVICE_LINK_VALUE.match(value):
            notices.append(
                Notice("variable_ignored", f"{name}={value} describes a Kubernetes Service")
            )
        elif value != "":  # An empty variable is how a manifest says "not set".
            found[setting.name] = convert(setting, value, name)
    return found


# -- files ------------------------------------------------------------------------------------------


def _read_path(path: Path, notices: list[Notice]) -> dict[str, Value]:
    """Read one file, or each file of a folder in order of name.

    A Consul manifest mounts a claim's folder where ``-config-file`` points; it may be empty, or not
    there at all. Both are reported and neither stops the start (Kubernetes guide §7.1).
    """
    try:
        if not path.is_dir():
            return _read_file(path, notices)
        children = sorted(path.iterdir())
    except OSError as error:
        notices.append(Notice("config_file_skipped", f"{path}: {error.strerror}"))
        return {}
    files = [child for child in children if child.suffix in (".json", ".toml", ".hcl")]
    notices.append(Notice("config_folder_read", f"{path} is a folder: {len(files)} files in it"))
    found: dict[str, Value] = {}
    for child in files:
        found |= _read_path(child, notices) if child.is_file() else {}
    return found


def _read_file(path: Path, notices: list[Notice]) -> dict[str, Value]:
    text = path.read_bytes()
    if path.suffix == ".hcl":
        notices.append(Notice("config_file_skipped", f"{path}: HCL is not read, use JSON or TOML"))
        return {}
    try:
        if path.suffix == ".toml":
            document: Any = tomllib.loads(text.decode())
        else:
            document = json.loads(text.decode() or "{}")
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise SettingError(f"{path}: expected an object with members")
    return _read_members(document, path, notices)


def _read_members(document: dict[str, Any], path: Path, notices: list[Notice]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    https: Value = 0
    for member, raw in _flattened(document, ""):
        where = f"{member} in {path}"
        if member == "ports.https":
            https = convert(SETTINGS["http_port"], raw, where)
            continue
        setting = _BY_MEMBER.get(member)
        if setting is None or member == "config_file":
            top = member.partition(".")[0]
            if member not in consul.SILENT_MEMBERS and top not in consul.SILENT_MEMBERS:
                notices.append(Notice("member_ignored", f"{where} has no effect here"))
        elif setting.kind == "list" and setting.name in found:
            # start_join and retry_join are one setting here.
            so_far, more = found[setting.name], convert(setting, raw, where)
            assert isinstance(so_far, tuple)
            assert isinstance(more, tuple)
            found[setting.name] = so_far + more
        else:
            found[setting.name] = convert(setting, raw, where)
    if found.get("http_port") == -1 and isinstance(https, int) and https > 0:
        # Consul serves HTTPS beside HTTP; a file that turns HTTP off means the one port that we have.
        found["http_port"] = https
    return found


def _flattened(document: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted members in the file's order; an object that is itself a setting stays whole."""
    for name, raw in document.items():
        member = prefix + name
        if isinstance(raw, dict) and member not in _BY_MEMBER and prefix.count(".") < 3:
            if raw:
                yield from _flattened(raw, member + ".")
        else:
            yield member, raw


def _drop_cloud_joins(given: dict[str, Value], notices: list[Notice]) -> None:
    """Drop Consul's ``provider=k8s …`` joins: they are no addresses."""
    joins = given.get("retry_join", ())
    assert isinstance(joins, tuple)
    kept = tuple(join for join in joins if "=" not in join)
    if kept != joins:
        given["retry_join"] = kept
        notices.append(
            Notice("join_ignored", "--retry-join: provider=… is not known here, use --join-srv")
        )


# -- the whole --------------------------------------------------------------------------------------


def _completed(given: Mapping[str, Any]) -> Config:
    """Fill in what one setting means for the others."""
    values = dict(given)
    if values.get("dev"):
        # Consul's -dev: alone, on loopback. What was given explicitly wins.
        values.setdefault("bind", "127.0.0.1")
        values.setdefault("bootstrap", True)
    if values.get("bootstrap"):
        if values.get("bootstrap_expect", 1) not in (0, 1):
            raise SettingError(
                "--bootstrap: founds a cluster of one; drop it or --bootstrap-expect"
            )
        values["bootstrap_expect"] = 1
    return Config(**values)


def _check(config: Config) -> None:
    """Check settings against each other.

    Raises:
        SettingError: Two settings do not fit together.
    """
    if not config.data_dir and not config.dev:
        raise SettingError("--data-dir: must be given (or --dev for a throw-away node)")
    if config.heartbeat_ms % config.tick_ms:
        raise SettingError(
            f"--heartbeat-ms: {config.heartbeat_ms} is not a multiple of "
            f"--tick-ms, {config.tick_ms}"
        )
    if config.election_timeout_ms < 3 * config.heartbeat_ms:
        raise SettingError(
            f"--election-timeout-ms: {config.election_timeout_ms} is less than three times "
            f"--heartbeat-ms, {config.heartbeat_ms}: one lost heartbeat would cost the leader"
        )
    if config.election_timeout_ms % config.tick_ms:
        raise SettingError(
            f"--election-timeout-ms: {config.election_timeout_ms} is not a multiple of "
            f"--tick-ms, {config.tick_ms}"
        )
    _check_tls(config)
    if config.peer_port and config.peer_port == config.http_port:
        raise SettingError(f"--peer-port: {config.peer_port} is the HTTP port too")


def _check_tls(config: Config) -> None:
    if bool(config.tls_cert_file) != bool(config.tls_key_file):
        missing = "--tls-key-file" if config.tls_cert_file else "--tls-cert-file"
        raise SettingError(f"{missing}: certificate and key are given together or not at all")
    if not config.tls_cert_file:
        if config.tls_verify_clients:
            raise SettingError("--tls-verify-clients: needs --tls-cert-file and --tls-key-file")
        return
    if config.tls_ca_file:
        return
    if config.tls_peers != "off":
        raise SettingError(
            "--tls-ca-file: must be given, since nodes verify each other's certificates (or --tls-peers=off, "
            "for HTTPS alone)"
        )
    if config.tls_verify_clients:
        raise SettingError("--tls-verify-clients: needs --tls-ca-file to verify them against")
