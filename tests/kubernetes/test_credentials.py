"""Where the API server is, and what a pod's name says."""

from __future__ import annotations

from typing import Any

import pytest

from kvnode.agent_settings import kubernetes_doubts
from kvnode.config import Config
from kvnode.kubernetes import default_api
from kvnode.ports import Scale


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "https://kubernetes.default.svc"),
        (
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"},
            "https://10.0.0.1:6443",
        ),
        (
            {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": ""},
            "https://[fd00::1]:443",
        ),
    ],
)
def test_the_api_server_is_where_every_pod_is_told(environ: dict[str, str], url: str) -> None:
    assert default_api(environ) == url


@pytest.mark.parametrize(
    ("name", "ordinal"),
    [
        ("kv-0", 0),
        ("kv-12", 12),
        ("kv-read-1", None),
        ("kv", None),
        ("kv-", None),
        ("kv-01", None),
        ("kv-1x", None),
        ("kv--1", None),
        ("kv-٣", None),
        ("other-1", None),
        ("kv-99999999999", None),
    ],
)
def test_only_the_statefulsets_own_pods_have_an_ordinal(name: str, ordinal: int | None) -> None:
    assert Scale("kv", 3, 0).ordinal(name) == ordinal


def test_who_is_one_too_many() -> None:
    names = [f"kv-{n}" for n in range(5)]
    assert [n for n in names if Scale("kv", 3, 0).is_surplus(n)] == ["kv-3", "kv-4"]
    assert [n for n in names if Scale("kv", 3, 1).is_surplus(n)] == ["kv-4"]
    assert not Scale("kv", 3, 0).is_surplus("kv-read-4")


def test_nobody_is_too_many_where_everything_was_stopped() -> None:
    """Scaled to 0 and back, every member is still one."""
    assert not any(Scale("kv", 0, 0).is_surplus(f"kv-{n}") for n in range(5))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, ""),
        ({"kubernetes_statefulset": "kv"}, ""),
        ({"kubernetes_statefulset": "other"}, "never removed on scale-down"),
        ({"kubernetes_leader_label": True}, "no effect without --kubernetes-statefulset"),
    ],
)
def test_settings_that_cannot_work_are_said(settings: dict[str, Any], said: str) -> None:
    doubts = kubernetes_doubts(Config(node_name="kv-1", **settings))
    assert said in doubts
    assert bool(said) == bool(doubts)
