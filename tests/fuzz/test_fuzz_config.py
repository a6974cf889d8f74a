"""Flags, variables and files that somebody mistyped, generated or cut off.

Law: a checked ``Config``, or ``SettingError`` that says where to look.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from kvnode.config import SETTINGS, Config, load
from kvnode.errors import SettingError
from tests.fuzz.machinery import CASES, QUICK_CASES, fuzz, mutate, seeds, text, value

WORDS = ("8500", "-1", "0", "1e999", "nan", "inf", "64MiB", "1.5s", "1m30s", "9" * 400, "9" * 5000,
         "1." * 30, "true", "off", "debug", "", "=", "a,b,,c", "provider=k8s x=y", "0x10", "١٢",
         "1" * 2000 + "q", "--data-dir", "1e400", "-0", "1_000")  # fmt: skip
FILE = {
    "node_name": "n-0",
    "data_dir": "d",
    "ports": {"http": 8500, "server": 8300, "dns": -1},
    "retry_join": ["a:8300", "b"],
    "limits": {"kv_max_value_size": "512KiB"},
    "performance": {"raft_multiplier": 1},
    "ui_config": {"enabled": True},
    "tick_ms": 50,
}
TOML = b"""
node_name = "n-0"
data_dir = "d"
retry_join = ["a:8300", "b"]
leader_wait_s = 7.5
[ports]
http = 8500
[limits]
kv_max_value_size = 524288
"""


def word(rng: random.Random) -> str:
    """A value as it may stand in a command line. A zero byte cannot."""
    chosen = rng.choice(WORDS) if rng.random() < 0.6 else text(rng)
    return chosen.replace("\0", "") or "x"


def flags(rng: random.Random) -> list[str]:
    names = [setting.flag[2:] for setting in SETTINGS.values() if setting.name != "config_file"]
    names += [
        "server",
        "ui",
        "bootstrap",
        "recursor",
        "log-json",
        "no-ui",
        "no-data-dir",
        "data",
        "x",
    ]
    found = ["--data-dir=d"] if rng.random() < 0.8 else []
    for _ in range(rng.randrange(4)):
        name = rng.choice(names)
        if rng.random() < 0.1:
            name = mutate(rng, name.encode()).decode("utf-8", "replace").replace("\0", "")
        dash = rng.choice(("--", "-", "---", ""))
        found += [f"{dash}{name}={word(rng)}"] if rng.random() < 0.6 else [dash + name, word(rng)]
    return found


def variables(rng: random.Random) -> dict[str, str]:
    names = [setting.variable for setting in SETTINGS.values() if setting.name != "config_file"]
    names += ["KVNODE_", "KVNODE_PORT", "KVNODE_HTTP_ADDR", "KVNODE_SERVICE_HOST", "HOME"]
    return {rng.choice(names): word(rng) for _ in range(rng.randrange(3))}


def file(rng: random.Random, directory: Path) -> list[str]:
    """A JSON or TOML file, sound or not; its flag."""
    dice = rng.random()
    if dice < 0.25:
        return []
    if dice < 0.45:
        path, data = directory / "c.toml", mutate(rng, TOML)
    elif dice < 0.65:
        path, data = directory / "c.json", mutate(rng, json.dumps(FILE).encode())
    elif dice < 0.97:
        document = dict(FILE)
        for _ in range(rng.randrange(1, 3)):
            member = rng.choice([*SETTINGS, *FILE, text(rng)])
            document[member] = value(rng, 4) if rng.random() < 0.7 else word(rng)
        path, data = directory / "c.json", json.dumps(document).encode()
    elif dice < 0.98:
        path = directory / "c.json"
        depth = rng.choice((100, 900, 980, 990, 1000, 5000))
        data = b'{"http_port":' + b"[" * depth + b"]" * depth + b"}"
    elif dice < 0.99:
        path, data = (
            directory / "c.json",
            b'{"tick_ms": ' + b"9" * rng.choice((300, 400, 6000)) + b"}",
        )
    else:
        path, data = directory / "c.toml", b"a = " + b"[" * rng.choice((100, 900, 5000))
    path.unlink(missing_ok=True)  # ext4 syncs what is truncated and written again
    path.write_bytes(data)
    return [f"--config-file={path}"]


@pytest.fixture
def case(tmp_path: Path):
    def run(rng: random.Random) -> None:
        argv = flags(rng) + file(rng, tmp_path)
        try:
            loaded = load(argv, variables(rng))
        except SettingError:
            return
        config = loaded.config
        assert isinstance(config, Config)
        for setting in SETTINGS.values():
            found = getattr(config, setting.name)
            assert isinstance(found, {"list": tuple, "int": int, "float": float, "str": str,
                                      "bool": bool}[setting.kind])  # fmt: skip
            if setting.lo is not None:
                assert setting.lo <= found
            if setting.hi is not None:
                assert found <= setting.hi

    return run


def test_what_an_operator_gives(case) -> None:
    fuzz(case, seeds()[0], QUICK_CASES)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_an_operator_gives_for_long(case) -> None:
    for seed in seeds():
        fuzz(case, seed, CASES // 2)
