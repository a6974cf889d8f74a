"""Random registrations on a real Consul and on kvnode, and the answers compared.

As ``test_against_consul``: indexes are renamed in the order of first sight. What Consul's agent does later
(it hands its own registrations to the catalog when it finds time) is left out: agent and catalog are
compared in sequences of their own, and an agent's sequence looks only at the agent.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.test_against_consul import COMPARED, Side
from tests.conformance.test_locks_against_consul import INDEX
from tests.conformance.wire import Answer, Wire

pytestmark = pytest.mark.chaos

NODES = ["n1", "n2", "n-3"]
SERVICES = ["web", "Web", "db"]
CHECKS = ["c1", "C2", "service:web"]
UUIDS = ["", "", "40e4a748-2192-161a-0510-9bf59fe950b5", "50e4a748-2192-161a-0510-9bf59fe950b5"]
UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ADDRESS = re.compile(rb'"(Address|lan|lan_ipv4|wan|wan_ipv4)":"(127\.0\.0\.1|10\.0\.0\.1)"')


class RegistrySide(Side):
    """One system; what tells the two servers apart is left out."""

    async def ask(self, method: str, target: str, body: bytes) -> tuple[Answer, object]:
        answer = await self.wire(method, target, body)
        headers = {n: v for n, v in answer.headers.items() if n in COMPARED}
        text = answer.body
        if answer.status == 200 and headers.get("content-type") == "application/json":
            document = without_servers(answer.json)
            if "passing" in target and isinstance(document, list):
                # Consul fills the place of an instance that does not pass with the last one.
                document.sort(key=lambda item: json.dumps(item.get("Service")))
            text = json.dumps(document, separators=(",", ":")).encode()
            text = INDEX.sub(lambda match: b"%b %d" % (match[1], self.rename(int(match[2]))), text)
        if answer.status >= 400:  # Consul says index 1, and that it knows no leader (spec §16)
            headers = {n: v for n, v in headers.items() if not n.startswith("x-consul-")}
        if "x-consul-index" in headers:
            headers["x-consul-index"] = str(self.rename(int(headers["x-consul-index"])))
        return answer, (answer.status, headers, text)


def without_servers(document: Any) -> Any:
    """Leave out the server, which each system describes in its own way; sort what Consul does not."""
    if isinstance(document, list):
        return [
            without_servers(item)
            for item in document
            if not (isinstance(item, dict) and is_server(item))
        ]
    if isinstance(document, dict):
        for item in document.values():
            if isinstance(item, dict) and "Weights" in item:
                item.pop("Datacenter", None)  # since Consul 1.9
            if isinstance(item, dict) and "CheckID" in item:
                # Consul's agent keeps them as they were; here they are the service's present ones.
                item.pop("ServiceTags", None)
                item.pop("ServiceName", None)
            if isinstance(item, dict) and "EnableTagOverride" in item:
                item.pop("Datacenter", None)  # newer Consuls name it (spec §10)
        if all(isinstance(value, list) for value in document.values()) and "Checks" not in document:
            return {name: sorted(tags) for name, tags in document.items()}  # catalog/services
        return document
    return document


def is_server(item: dict[str, Any]) -> bool:
    node = item["Node"]["Node"] if isinstance(item.get("Node"), dict) else item.get("Node")
    return node == "kvnode-0" and not item.get("CheckID", "x").startswith("c")


def wanted_difference(target: str, body: str, theirs: Answer, mine: Answer) -> bool:
    """Say what we do otherwise on purpose.

    Not asked: an id that goes to another service. Consul then moves only the index of the new one, and who
    waits for the old one is never told that it has lost an instance. And the very same check again, which in
    Consul 1.8.7 leaves the check alone and moves the index of all checks. Nor no tags after an empty list of
    them, which is a change there, nor a node's own id with its name in another case, which loses all that is
    registered on it.
    """
    if theirs.status == mine.status == 500 and b"primary index" in theirs.body:
        return True  # a service or check without a name: ours says so
    return theirs.status == mine.status == 400 and b"decode failed" in theirs.body


def node_members(chance: random.Random) -> dict[str, Any]:
    members: dict[str, Any] = {"Node": chance.choice(NODES), "Address": "10.1.1.1"}
    if chance.random() < 0.3:
        members["ID"] = chance.choice(UUIDS)
    if chance.random() < 0.3:
        members["NodeMeta"] = {"a": chance.choice("bc")}
    if chance.random() < 0.2:
        members["TaggedAddresses"] = {"lan": "10.1.1.2", "wan": "10.1.1.3"}
    if chance.random() < 0.3:
        members["SkipNodeUpdate"] = True
    if chance.random() < 0.05:
        del members[chance.choice(["Node", "Address"])]
    return members


def service_members(chance: random.Random) -> dict[str, Any]:
    # Each id stands for one service: see ``wanted_difference``.
    service = chance.choice(SERVICES)
    ids = {"web": ["", "web-1"], "Web": ["web", "web-1"], "db": ["", "x/y"]}
    members: dict[str, Any] = {"Service": service, "ID": chance.choice(ids[service])}
    if chance.random() < 0.5:
        members["Tags"] = chance.sample(["a", "B", "c"], chance.randint(1, 3))
    if chance.random() < 0.5:
        members["Port"] = chance.choice([0, 80])
    if chance.random() < 0.3:
        members["Meta"] = {"k": "v", "a": "<&>"}
    if chance.random() < 0.2:
        members["Address"] = chance.choice(["10.1.1.9", "0.0.0.0", "::", "host"])
    if chance.random() < 0.2:
        members["Weights"] = {"Passing": 3, "Warning": 2}
    if chance.random() < 0.2:
        members["EnableTagOverride"] = True
    if chance.random() < 0.2:
        members["TaggedAddresses"] = {"lan": {"Address": "h", "Port": 1}}
    if chance.random() < 0.05:
        members["Service"] = ""
    return members


def check_members(chance: random.Random) -> dict[str, Any]:
    members: dict[str, Any] = {"CheckID": chance.choice(CHECKS)}
    if chance.random() < 0.7:
        members["Name"] = chance.choice(["", "n", "ç"])
    if chance.random() < 0.8:
        members["Status"] = chance.choice(["passing", "warning", "critical", "odd", ""])
    members["Output"] = f"o{chance.random()}"
    if chance.random() < 0.3:
        members["Notes"] = "n"
    if chance.random() < 0.5:
        members["ServiceID"] = chance.choice(["web", "web-1", "db", "x/y", "none"])
    if chance.random() < 0.2:
        members["Definition"] = {
            "HTTP": "http://h/", "Interval": "5s", "Timeout": "1s", "Method": "PUT", "Body": "b",
            "Header": {"X": ["1", "2"]}, "TLSSkipVerify": True,
            "DeregisterCriticalServiceAfter": "1m30s",
        }  # fmt: skip
    if chance.random() < 0.1:
        members["Definition"] = {"TCP": "h:1", "Interval": "500ms"}
    return members


READS = [
    "/v1/catalog/nodes?filter=Node+==+n1", "/v1/catalog/nodes?filter=Meta.a+!=+b",
    "/v1/catalog/nodes?filter=Meta+is+empty+or+a+in+Meta",
    "/v1/catalog/service/web?filter=a+in+ServiceTags",
    "/v1/health/service/web?filter=Service.Meta.k+==+v+and+not+Service.Port+==+80",
    "/v1/health/service/db?filter=Node.Node+!=+n2",
    "/v1/health/service/web?filter=Checks.Status+==+passing",
    "/v1/health/state/any?filter=Status+!=+passing", "/v1/health/node/n1?filter=ServiceTags+is+empty",
    "/v1/catalog/node/n1?filter=Service+==+web", "/v1/catalog/service/web?filter=ServiceMeta+is+not+empty",
    "/v1/catalog/nodes", "/v1/catalog/nodes?node-meta=a:b", "/v1/catalog/services",
    "/v1/catalog/services?node-meta=a:c", "/v1/catalog/node/n1", "/v1/catalog/node/n2",
    "/v1/catalog/node/N1", "/v1/catalog/service/web", "/v1/catalog/service/WEB",
    "/v1/catalog/service/db?tag=a", "/v1/catalog/service/web?tag=a&tag=b",
    "/v1/catalog/service/web?node-meta=a:b", "/v1/catalog/service/none",
    "/v1/catalog/node-services/n1", "/v1/catalog/connect/web",
    "/v1/health/node/n1", "/v1/health/node/none", "/v1/health/checks/web", "/v1/health/checks/db",
    "/v1/health/checks/web?node-meta=a:b", "/v1/health/state/any", "/v1/health/state/passing",
    "/v1/health/state/critical?node-meta=a:c", "/v1/health/state/odd", "/v1/health/service/web",
    "/v1/health/service/web?passing", "/v1/health/service/web?passing=0",
    "/v1/health/service/web?passing=x", "/v1/health/service/db?tag=a&passing=true",
    "/v1/health/service/web?pretty", "/v1/health/service/none", "/v1/health/connect/db",
    "/v1/catalog/nodes?near=_agent", "/v1/catalog/service/", "/v1/health/node/",
    "/v1/health/state/", "/v1/health/checks/", "/v1/health/service/", "/v1/catalog/node/",
    "/v1/catalog/nodes?dc=x", "/v1/catalog/nodes?stale", "/v1/catalog/nodes?stale&consistent",
    "/v1/health/service/web?index=1", "/v1/catalog/nodes?wait=1", "/v1/catalog/datacenters",
]  # fmt: skip


def catalog_requests(seed: int, count: int) -> Iterator[tuple[str, str, str]]:
    """Make up registrations, deregistrations and reads: mostly sensible, some not."""
    chance = random.Random(seed)
    for _ in range(count):
        match chance.choices(["register", "deregister", "bad"], [8, 3, 1])[0]:
            case "register":
                members = node_members(chance)
                if chance.random() < 0.6:
                    members["Service"] = service_members(chance)
                if chance.random() < 0.5:
                    members["Check"] = check_members(chance)
                if chance.random() < 0.2:
                    members["Checks"] = [check_members(chance) for _ in range(2)]
                yield "PUT", "/v1/catalog/register", json.dumps(members)
            case "deregister":
                members = {"Node": chance.choice(NODES)}
                if chance.random() < 0.4:
                    members["ServiceID"] = chance.choice(["web", "web-1", "db", "x/y", "none"])
                elif chance.random() < 0.7:
                    members["CheckID"] = chance.choice([*CHECKS, "none"])
                yield "PUT", "/v1/catalog/deregister", json.dumps(members)
            case _:
                path = chance.choice(["register", "deregister"])
                body = chance.choice(
                    ["", "x", "[]", "{}", '{"Node":1}', '{"Node":"n1","Address":2}']
                )
                yield "PUT", f"/v1/catalog/{path}", body
        for target in chance.sample(READS, 3):
            yield "GET", target, ""


def agent_check(chance: random.Random) -> dict[str, Any]:
    members: dict[str, Any] = {"TTL": chance.choice(["1h", "1h", "60m0s", "0s", "x"])}
    if chance.random() < 0.4:
        members["Name"] = chance.choice(["n", "ç"])
    if chance.random() < 0.4:
        members["Status"] = chance.choice(["passing", "warning", "critical", "odd"])
    if chance.random() < 0.3:
        members["notes"] = "n"
    if chance.random() < 0.1:
        members |= {"HTTP": "http://127.0.0.1:1/"}
    if chance.random() < 0.1:
        members = {"tcp": "127.0.0.1:1", "Interval": "1h"}
    return members


def agent_requests(seed: int, count: int) -> Iterator[tuple[str, str, str]]:
    """Make up what a service says to its agent."""
    chance = random.Random(seed)
    checks = [*CHECKS, "service:db", "service:web-1", "service:x/y", "service:web-1:1", "none"]
    for _ in range(count):
        match chance.choices(
            ["service", "check", "report", "drop", "maintenance"], [4, 2, 5, 2, 2]
        )[0]:
            case "service":
                members = service_members(chance)
                members["Name"] = members.pop("Service")
                for old, new in (("EnableTagOverride", "enable_tag_override"),
                                 ("TaggedAddresses", "tagged_addresses")):  # fmt: skip
                    if old in members and chance.random() < 0.5:
                        members[new] = members.pop(old)
                if chance.random() < 0.4:
                    members["Check"] = agent_check(chance)
                    members["Check"]["CheckID"] = chance.choice(CHECKS)
                if chance.random() < 0.2:
                    members["checks"] = [agent_check(chance) for _ in range(2)]
                flag = chance.choice(["", "", "?replace-existing-checks=true"])
                yield "PUT", f"/v1/agent/service/register{flag}", json.dumps(members)
            case "check":
                members = agent_check(chance)
                if chance.random() < 0.4:
                    members[chance.choice(["ID", "id"])] = chance.choice(CHECKS)
                if chance.random() < 0.3:
                    members["ServiceID"] = chance.choice(["web-1", "none"])
                yield "PUT", "/v1/agent/check/register", json.dumps(members)
            case "report":
                check = chance.choice(checks)
                report = chance.choice(["pass", "warn", "fail"])
                note = chance.choice(["", "?note=hello", "?note=%3C%26"])
                yield "PUT", f"/v1/agent/check/{report}/{check}{note}", ""
                status = chance.choice(["passing", "warning", "critical", "odd", ""])
                body = json.dumps({"Status": status, "Output": "o"})
                yield "PUT", f"/v1/agent/check/update/{check}", body
            case "drop":
                yield "PUT", f"/v1/agent/check/deregister/{chance.choice(checks)}", ""
                name = chance.choice(["web-1", "x/y", "db", "none", ""])
                yield "PUT", f"/v1/agent/service/deregister/{name}", ""
            case _:
                query = chance.choice(["enable=true", "enable=false", "enable=true&reason=r", "",
                                       "enable=x", "enable=0", "reason=r"])  # fmt: skip
                name = chance.choice(["web-1", "x/y", "none", ""])
                where = chance.choice(["maintenance", f"service/maintenance/{name}"])
                yield "PUT", f"/v1/agent/{where}?{query}", ""
        yield "GET", "/v1/agent/services", ""
        yield "GET", "/v1/agent/checks", ""
        yield "GET", f"/v1/agent/service/{chance.choice(['none', ''])}", ""


async def synchronised(consul: Wire) -> None:
    """Wait until Consul's agent has told the catalog of its own node, which moves indexes."""
    async with asyncio.timeout(60):
        while True:
            found = (await consul("GET", "/v1/catalog/node/kvnode-0")).json
            await consul.close()
            if found and found["Node"]["TaggedAddresses"]:
                return
            await asyncio.sleep(0.1)


async def compare(consul: Wire, ours: Wire, asked: Iterator[tuple[str, str, str]]) -> list[str]:
    sides = [RegistrySide(Wire(consul.host, consul.port)), RegistrySide(ours)]
    differences = []
    for method, target, body in asked:
        (theirs, a), (mine, b) = [await side.ask(method, target, body.encode()) for side in sides]
        if a != b and not wanted_difference(target, body, theirs, mine):
            differences.append(f"{method} {target} {body}\n  consul {a}\n  kvnode {b}")
    await sides[0].wire.close()
    return differences


@pytest.mark.parametrize("seed", range(4))
async def test_random_registrations_have_the_same_answers(
    consul: Wire, ours: Wire, seed: int
) -> None:
    await synchronised(consul)
    # What is read before the first registration is the server's, whose age differs.
    for wire in (consul, ours):
        await wire("PUT", "/v1/catalog/register", b'{"Node":"n0","Address":"a"}')
        service = b'{"Node":"n0","Address":"a","Service":{"Service":"s"},"Check":{"Name":"c"}}'
        await wire("PUT", "/v1/catalog/register", service)
        await wire("PUT", "/v1/catalog/deregister", b'{"Node":"n0"}')
        await wire.close()
    differences = await compare(consul, ours, catalog_requests(seed, 400))
    assert not differences, f"{len(differences)} differences\n" + "\n".join(differences[:5])


@pytest.mark.parametrize("seed", range(4))
async def test_an_agent_is_told_and_tells_the_same(consul: Wire, ours: Wire, seed: int) -> None:
    differences = await compare(consul, ours, agent_requests(seed, 300))
    assert not differences, f"{len(differences)} differences\n" + "\n".join(differences[:10])
