"""Who may found a cluster at all, before anybody is asked (RC-55; decision 0006).

Pledges keep founders from founding two clusters at a time. They cannot know of a cluster that is down as a
whole: enough new, empty nodes with ``--bootstrap-expect`` would then found another. So whoever certainly
is no founder gets no licence, whatever its settings say, and only joins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from kvnode.config import Config
from kvnode.ports import Scale

_POD = re.compile(r"(.+)-(0|[1-9][0-9]{0,8})")


class Licence(NamedTuple):
    """How many nodes found the cluster together with this one; 0: it only joins."""

    expect: int
    ruled_out: str
    """Why the settings were overruled: a sentence for an operator; else empty."""


def licence(
    config: Config, environ: Mapping[str, str], host_name: str, *, set_aside: bool
) -> Licence:
    """Decide about this node.

    Args:
        config: Its settings.
        environ: The environment: Kubernetes tells every pod where the API server is.
        host_name: Of this machine; a pod's own name in a StatefulSet.
        set_aside: Whether data of an earlier incarnation are in its directory.
    """
    expect = config.bootstrap_expect
    if not expect:
        return Licence(0, "")
    if config.read_replica:
        return Licence(0, "a read replica founds no cluster")
    if set_aside:
        return Licence(
            0,
            "data of an earlier incarnation were set aside here: this node only joins. To found a new "
            "cluster, move them out of the directory",
        )
    if config.dev:  # alone by intention, in whatever pod
        return Licence(expect, "")
    ordinal = _ordinal(config, environ, host_name)
    if ordinal is not None and ordinal >= config.kubernetes_first_ordinal + expect:
        first = config.kubernetes_first_ordinal
        return Licence(
            0,
            f"{config.node_name} is not among the {expect} pods from ordinal {first} that found the cluster: "
            "it only joins. With spec.ordinals.start above 0, set kubernetes_first_ordinal to it",
        )
    return Licence(expect, "")


def _ordinal(config: Config, environ: Mapping[str, str], host_name: str) -> int | None:
    """The ordinal of a StatefulSet's pod; None: it is none, as far as can be seen.

    Outside Kubernetes a number at the end of a name may begin anywhere and means nothing.
    """
    if config.kubernetes_statefulset:
        return Scale(config.kubernetes_statefulset, 0, 0).ordinal(config.node_name)
    found = _POD.fullmatch(config.node_name)
    in_a_pod = "KUBERNETES_SERVICE_HOST" in environ and host_name == config.node_name
    return int(found[2]) if found and in_a_pod else None
