"""Every route as the OpenAPI description says, under whatever ``schemathesis`` makes of that description.

Laws: no 500 whose text the specification of Consul's API does not name; on our own routes none at all; no
status that the description does not name; a JSON answer has the form that it describes.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode

from kvnode.http.golang import parse_duration_ns, parse_query
from tests.chaos.processes import Node
from tests.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLES = int(os.environ.get("KVNODE_OPENAPI_EXAMPLES", "12"))
"""Per operation. Whoever asks for a number gets other examples in every run."""
DERANDOMIZE = "KVNODE_OPENAPI_EXAMPLES" not in os.environ
"""Else what fails on a commit fails again when the same files are run again. (Of these, because Hypothesis
draws on the constants in whatever modules are loaded.)"""
DOCUMENT = json.loads(resources.files("kvnode.http").joinpath("openapi.json").read_bytes())
LEFT_OUT = {
    "/v1/agent/leave": "ends the node",
    "/v1/operator/raft/peer": "could end the node",
    "/v1/agent/monitor": "has no end",
    "/v1/watch/{prefix}": "has no end",
}
CONSULS = re.compile(
    "|".join(
        (
            r"No cluster leader",  # spec §3
            r"server overloaded, .*",  # §1.6
            r"No path to datacenter",  # §1.2
            r'strconv\.Parse(Uint|Int): parsing ".*": (invalid syntax|value out of range)',  # §16
            r'invalid session ".*"|missing session',  # §4.2
            r"Missing node registration|Must provide Node",  # §5.1
            r"Missing check '.*' registration",
            r"Check '.*' is in critical state",
            r"Invalid Behavior setting '.*'",
            r"Invalid Session TTL '.*', must be between \[.*=.*\]",
            r"Session TTL '.*' invalid: .*",
            r"failed session lookup: index error: UUID must be 36 characters",  # §5.3
            r"failed to (decompress snapshot|read snapshot file): .*",  # §8
            r"there is no other voter to hand leadership to",  # §9
            r'(id|address) ".*" was not found in the Raft configuration',
            r"agent: No node found with name '.*'",  # §10
            r"1 error occurred:\n\t\* Failed to join .*",
            r"1 error occurred:\n\t\* .*: (No keyring to modify|Keyring is empty) .*",
            r"Must provide (node|address if SkipNodeUpdate is not set)",  # §11
            r"Bad node ID: .*",
            r"Must provide service name( with ID)?|Invalid service address",
            r'check node ".*" does not match node ".*"|ServiceID ".*" does not exist',
            r"failed inserting check: Must provide a check name or id",  # Consul's words are less clear
            r"Scripts are disabled on this agent from remote calls; .*",
            r"CheckID .* does not have associated TTL",
            r"Cannot provide .* filter without .* filter|Invalid (node|service|tag) filter: .*",  # §12
        )
    ),
    re.DOTALL,
)
"""The texts of 500 under ``/v1`` that Consul answers as well (spec §1.6 and where noted)."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One real node."""
    http, peer = free_ports(2)
    directory = tmp_path_factory.mktemp("described")
    made = Node("solo", directory, http, peer, ["--bootstrap-expect=1"])
    made.start()
    try:
        _ready(made.url)
        yield made.url
        assert made.is_running, made.log.read_text()[-2000:]
        for event in made.events():
            assert event.get("event") not in {"http_request_failed", "callback_failed"}, event
    finally:
        made.kill()


def _ready(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = {
    f"{operation.method.upper()} {operation.path}": operation
    for operation in (found.ok() for found in SCHEMA.get_all_operations())
    if operation.path not in LEFT_OUT
}


def bounded(case: Any) -> Any:
    """A blocking query must not block for minutes, as it does when ``wait`` is empty or long."""
    sent = requests.Request("GET", "http://node/", params=case.query).prepare()
    values = parse_query(urlsplit(sent.url).query.encode())
    if "index" in values:
        try:
            parse_duration_ns(values.get("wait", [""])[0] or "0")
        except ValueError:
            return case  # refused
        case.query["wait"] = "10ms"
    return case


def judge(operation: Any, case: Any, answer: Any) -> None:
    status, said = answer.status_code, answer.content.decode(errors="replace")
    if status >= 500:
        assert operation.path.startswith("/v1/"), f"{status} on a route of our own: {said!r}"
        assert status == 500
        assert CONSULS.fullmatch(said), f"500 that Consul does not know: {said!r}"
    described = operation.definition.raw["responses"]
    # A method or a path that means another route is not this operation any more.
    if status in {301, 307, 405} or (status == 404 and not case.path_parameters):
        return
    assert str(status) in described, f"{status} is not described: {said[:200]!r}"
    if status == 200 and answer.headers.get("Content-Type", "").startswith("application/json"):
        case.validate_response(answer, checks=[schemathesis.checks.response_schema_conformance])


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_keeps_to_its_description(node: str, name: str) -> None:
    operation = OPERATIONS[name]
    cases = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    if operation.query or operation.path_parameters or operation.body:
        cases |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=DERANDOMIZE,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases)
    def run(case: Any) -> None:
        with requests.Session() as session:
            answer = bounded(case).call(
                base_url=node, session=session, timeout=30, allow_redirects=False
            )
        judge(operation, case, answer)

    run()
