"""What a deliberate bug is, and how it is put in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

Net = Literal["core", "cluster"]


@dataclass(frozen=True)
class Mutant:
    """One deliberate bug."""

    name: str
    rule: str
    net: Net
    seeds: int
    """Within so many seeds, from 1 on, it must be found."""
    patch: Callable[[], Any]
    """Makes the context manager that puts it in."""
    faults: tuple[str, ...] = ()
    """Cluster net: the faults of its runs, each of weight one; none: what the seed draws."""
    workloads: tuple[str, ...] = ()
    """Cluster net: who works, each with weight five; none: what the seed draws."""
    equivalent: str = ""
    """Why it does no harm, so that nothing can find it; if something does, this is no longer true."""


def replacing(owner: Any, name: str, value: Any) -> Callable[[], Any]:
    """Put ``value`` in place of an attribute."""
    return lambda: mock.patch.object(owner, name, value)
