"""Consul's own command line, unmodified, against three nodes (spec §13)."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clients.programs import ROOT, Program, Trio, find_consul, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def running(program: Program, *words: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Something in the background, interrupted at the end."""
    process = program.start(*words, output=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def text_of(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


# -- kv


def test_kv_put_get_delete(consul: Program) -> None:
    assert "Success! Data written to: cli/a" in consul("kv", "put", "-flags=7", "cli/a", "hello")
    assert consul("kv", "get", "cli/a") == "hello\n"
    detailed = consul("kv", "get", "-detailed", "cli/a")
    assert re.search(r"Flags\s+7\n", detailed)
    assert re.search(r"LockIndex\s+0\n", detailed)
    assert re.search(r"Session\s+-\n", detailed)
    consul("kv", "put", "cli/b", "-", stdin=b"from stdin")
    assert consul("kv", "get", "cli/b") == "from stdin\n"
    assert consul("kv", "get", "-keys", "cli/") == "cli/a\ncli/b\n"
    assert consul("kv", "get", "-recurse", "cli/") == "cli/a:hello\ncli/b:from stdin\n"
    assert "Error! No key exists at: cli/none" in consul("kv", "get", "cli/none", code=1)
    consul("kv", "delete", "-recurse", "cli/")
    assert consul("kv", "get", "-keys", "cli/") == ""


def test_kv_cas(consul: Program) -> None:
    consul("kv", "put", "cas/a", "1")
    refused = consul("kv", "put", "-cas", "-modify-index=1", "cas/a", "2", code=1)
    assert "Did not write to cas/a" in refused
    index = re.search(r"ModifyIndex\s+(\d+)", consul("kv", "get", "-detailed", "cas/a"))
    assert index is not None
    consul("kv", "put", "-cas", f"-modify-index={index[1]}", "cas/a", "2")
    assert "Did not delete" in consul(
        "kv", "delete", "-cas", f"-modify-index={index[1]}", "cas/a", code=1
    )
    assert consul("kv", "get", "cas/a") == "2\n"


def test_kv_odd_keys(consul: Program) -> None:
    for key in ("odd/with space", "odd/ç:ü", "odd/%2F", "odd/a?b=c&d"):
        consul("kv", "put", key, key)
        assert consul("kv", "get", key) == key + "\n"
    assert len(consul("kv", "get", "-keys", "odd/").splitlines()) == 4


def test_kv_export_and_import(consul: Program) -> None:
    for number in range(30):
        consul("kv", "put", f"-flags={number}", f"exp/{number:02}", f"v{number}")
    exported = consul("kv", "export", "exp/")
    assert len(json.loads(exported)) == 30
    consul("kv", "delete", "-recurse", "exp/")
    imported = consul("kv", "import", "-", stdin=exported.encode())
    assert imported.count("Imported: exp/") == 30
    assert json.loads(consul("kv", "export", "exp/")) == json.loads(exported)


def test_kv_acquire_and_release(consul: Program, trio: Trio) -> None:
    body = b'{"TTL":"60s","LockDelay":"0s"}'
    session = json.loads(trio.ask(consul.node, "PUT", "/v1/session/create", body)[1])["ID"]
    assert "Success! Lock acquired on: acq/a" in consul(
        "kv", "put", "-acquire", f"-session={session}", "acq/a", "1"
    )
    assert session in consul("kv", "get", "-detailed", "acq/a")
    assert "Success! Lock released on: acq/a" in consul(
        "kv", "put", "-release", f"-session={session}", "acq/a", "2"
    )
    assert consul("kv", "get", "acq/a") == "2\n"


# -- lock


def test_lock_lets_one_in_at_a_time(consul: Program, tmp_path: Path) -> None:
    """The second starts when the first has ended; the key is gone afterwards."""
    log = tmp_path / "order"
    script = f"echo in >> {log}; sleep 0.7; echo out >> {log}"
    processes = [
        consul.start("lock", "lock/one", script, output=tmp_path / f"lock-{n}") for n in range(3)
    ]
    for process in processes:
        assert process.wait(60) == 0
    assert text_of(log).split() == ["in", "out"] * 3
    assert consul("kv", "get", "-keys", "lock/one") == ""


def test_lock_gives_up_after_its_timeout(consul: Program, tmp_path: Path) -> None:
    with running(consul, "lock", "lock/held", "sleep 60", output=tmp_path / "holder"):
        wait_for(lambda: "lock/held/.lock" in consul("kv", "get", "-keys", "lock/held/"), "held")
        began = time.monotonic()
        said = consul("lock", "-timeout=1s", "lock/held", "true", code=1)
        assert "timeout during lock acquisition" in said
        assert time.monotonic() - began < 20


def test_a_semaphore_lets_two_in(consul: Program, tmp_path: Path) -> None:
    """``-n 2``: a key for each contender, and one for who may go in."""
    log = tmp_path / "order"
    script = f"echo in >> {log}; sleep 1; echo out >> {log}"
    processes = [
        consul.start("lock", "-n=2", "lock/two", script, output=tmp_path / f"sem-{n}")
        for n in range(4)
    ]
    for process in processes:
        assert process.wait(60) == 0
    inside = most = 0
    for word in text_of(log).split():
        inside += 1 if word == "in" else -1
        most = max(most, inside)
    assert most == 2
    assert inside == 0


def test_lock_survives_a_change_of_leader(consul: Program, trio: Trio, tmp_path: Path) -> None:
    done = tmp_path / "done"
    with running(
        consul, "lock", "lock/kept", f"sleep 4; touch {done}", output=tmp_path / "holder"
    ) as holder:
        wait_for(lambda: "lock/kept/.lock" in consul("kv", "get", "-keys", "lock/kept/"), "held")
        status, body = trio.ask(trio.leader, "POST", "/v1/operator/raft/transfer-leader")
        assert status == 200, body
        assert holder.wait(30) == 0
    assert done.exists()


def test_the_child_is_ended_when_the_lock_is_lost(
    consul: Program, trio: Trio, tmp_path: Path
) -> None:
    done = tmp_path / "done"
    with running(
        consul, "lock", "lock/lost", f"sleep 20; touch {done}", output=tmp_path / "holder"
    ) as holder:
        wait_for(lambda: "lock/lost/.lock" in consul("kv", "get", "-keys", "lock/lost/"), "held")
        pair = trio.json(consul.node, "/v1/kv/lock/lost/.lock")[0]
        trio.ask(consul.node, "PUT", f"/v1/session/destroy/{pair['Session']}")
        holder.wait(30)
    assert "signal: terminated" in text_of(tmp_path / "holder")
    assert not done.exists()


def test_kvnode_lock_and_consul_lock_exclude_each_other(consul: Program, tmp_path: Path) -> None:
    kvnode = Program([sys.executable, "-m", "kvnode"], consul.node, ROOT)
    log = tmp_path / "order"
    script = f"echo in >> {log}; sleep 0.7; echo out >> {log}"
    for limit in ("1", "2"):
        log.unlink(missing_ok=True)
        processes = [
            program.start(
                "lock", f"-n={limit}", f"lock/mixed-{limit}", script, output=tmp_path / f"{n}"
            )
            for n, program in enumerate((consul, kvnode, consul, kvnode))
        ]
        for process in processes:
            assert process.wait(60) == 0
        inside = most = 0
        for word in text_of(log).split():
            inside += 1 if word == "in" else -1
            most = max(most, inside)
        assert (most <= int(limit), inside) == (True, 0)
        assert text_of(log).split().count("in") == 4


# -- watch


def watched(consul: Program, output: Path, *words: str) -> Iterator[str]:
    """Append each state that a watch hands to its handler; yields what there is so far."""
    with running(consul, "watch", *words, f"cat >> {output}; echo >> {output}",
                 output=output.with_suffix(".log")):  # fmt: skip
        while True:
            yield text_of(output)


def test_watch_key(consul: Program, tmp_path: Path) -> None:
    consul("kv", "put", "watch/key", "first")
    out = tmp_path / "seen"
    states = watched(consul, out, "-type=key", "-key=watch/key")
    wait_for(lambda: "Zmlyc3Q=" in next(states), "the first value")
    consul("kv", "put", "watch/key", "second")
    wait_for(lambda: "c2Vjb25k" in next(states), "the second value")
    states.close()


def test_watch_keyprefix(consul: Program, tmp_path: Path) -> None:
    consul("kv", "put", "watch/tree/a", "1")
    states = watched(consul, tmp_path / "seen", "-type=keyprefix", "-prefix=watch/tree/")
    wait_for(lambda: "watch/tree/a" in next(states), "the first key")
    consul("kv", "put", "watch/tree/b", "2")
    wait_for(lambda: "watch/tree/b" in next(states), "the second key")
    consul("kv", "delete", "watch/tree/a")
    wait_for(lambda: "watch/tree/a" not in next(states).splitlines()[-1], "the key is gone")
    states.close()


def test_watch_event(consul: Program, tmp_path: Path) -> None:
    """Each event is handed over once."""
    consul("event", "-name=other", "before")
    out = tmp_path / "seen"
    states = watched(consul, out, "-type=event", "-name=deploy")
    wait_for(lambda: next(states), "the watch is there")
    for payload in ("one", "two"):
        assert re.search(r"Event ID: [0-9a-f-]{36}", consul("event", "-name=deploy", payload))
        code = {"one": "b25l", "two": "dHdv"}[payload]
        wait_for(lambda code=code: code in next(states), payload)  # type: ignore[misc]
    time.sleep(0.3)
    assert next(states).count("b25l") == 1
    states.close()


def test_watch_nodes_and_services(consul: Program, tmp_path: Path) -> None:
    nodes = json.loads(consul("watch", "-type=nodes"))
    assert sorted(node["Node"] for node in nodes) == ["kvnode-0", "kvnode-1", "kvnode-2"]
    assert "consul" in json.loads(consul("watch", "-type=services"))
    found = json.loads(consul("watch", "-type=service", "-service=consul"))
    assert len(found) == 3
    checks = json.loads(consul("watch", "-type=checks", "-state=passing"))
    assert {check["CheckID"] for check in checks} == {"serfHealth"}


# -- the cluster


def test_members_and_info(consul: Program, trio: Trio) -> None:
    members = consul("members")
    assert (
        len(re.findall(r"kvnode-\d\s+127\.0\.0\.1:\d+\s+alive\s+server\s+1\.22\.0", members)) == 3
    )
    detailed = consul("members", "-detailed")
    assert "role=consul" in detailed
    assert "kvnode-0.dc1" in consul("members", "-wan")

    def its_state() -> str:
        """As it says, once that is so: the node may have begun to lead."""
        info = consul("info")
        state = "Leader" if trio.leader is consul.node else "Follower"
        return info if f"state = {state}\n" in info else ""

    info = wait_for(its_state, "its state")
    for line in ("known_datacenters = 1", "server = true", "failed = 0"):
        assert line in info, line


def test_catalog(consul: Program) -> None:
    assert consul("catalog", "datacenters") == "dc1\n"
    assert len(re.findall(r"kvnode-\d", consul("catalog", "nodes"))) == 3
    assert "consul" in consul("catalog", "services").split()


def test_operator_raft(consul: Program, trio: Trio) -> None:
    peers = consul("operator", "raft", "list-peers")
    assert len(re.findall(r"kvnode-\d\s+[0-9a-f-]{36}\s+127\.0\.0\.1:\d+", peers)) == 3
    assert len(re.findall(r"\bleader\b", peers)) == 1
    assert len(re.findall(r"kvnode-\d", consul("operator", "raft", "list-peers", "-stale"))) == 3
    unknown = consul("operator", "raft", "remove-peer", "-id=none", code=1)
    assert 'id "none" was not found in the Raft configuration' in unknown
    unknown = consul("operator", "raft", "remove-peer", "-address=10.0.0.9:8300", code=1)
    assert 'address "10.0.0.9:8300" was not found in the Raft configuration' in unknown


def test_operator_autopilot(consul: Program) -> None:
    assert "CleanupDeadServers = true" in consul("operator", "autopilot", "get-config")
    assert "Configuration updated!" in consul(
        "operator", "autopilot", "set-config", "-max-trailing-logs=300",
        "-server-stabilization-time=2s", "-last-contact-threshold=1s",
    )  # fmt: skip
    config = consul("operator", "autopilot", "get-config")
    for line in (
        "CleanupDeadServers = true", "MaxTrailingLogs = 300", "ServerStabilizationTime = 2s",
        "LastContactThreshold = 1s",
    ):  # fmt: skip
        assert line in config


def test_event_reload_and_errors(consul: Program) -> None:
    assert "Event ID: " in consul("event", "-name=plain", "-node=kvnode", "payload")
    assert "regexp" in consul("event", "-name=plain", "-node=[", "x", code=1)
    assert "exceeds configured limit" in consul("event", "-name=plain", "x" * 600, code=1)
    assert "Configuration reload triggered" in consul("reload")
    assert "No node found with name 'nobody'" in consul("force-leave", "nobody", code=1)
    assert "Keyring is empty" in consul("keyring", "-list", code=1)


def test_force_leave_of_the_living_changes_nothing(consul: Program, trio: Trio) -> None:
    consul("force-leave", trio.followers[1].name)
    assert consul("members").count("alive") == 3


def test_join_of_a_member_is_no_news(consul: Program, trio: Trio) -> None:
    said = consul("join", f"127.0.0.1:{trio.nodes[0].peer_port}")
    assert "Successfully joined cluster by contacting 1 nodes" in said
    assert "Failed to join" in consul("join", "127.0.0.1:1", code=1)


def test_monitor(consul: Program, tmp_path: Path) -> None:
    out = tmp_path / "log"
    with running(consul, "monitor", "-log-level=debug", output=out):
        wait_for(
            lambda: consul("reload") and "settings_reloaded" in text_of(out), "a line of the log"
        )


def test_maint(consul: Program, trio: Trio) -> None:
    assert "Node maintenance is now enabled" in consul("maint", "-enable", "-reason=paint")
    shown = consul("maint")
    assert "Reason: paint" in shown
    assert "Node maintenance is now disabled" in consul("maint", "-disable")


def test_snapshot_save_inspect_restore(consul: Program, tmp_path: Path) -> None:
    """The command verifies the archive while it saves it."""
    consul("kv", "put", "snap/a", "before")
    file = str(tmp_path / "backup.snap")
    assert "Saved and verified snapshot to index" in consul("snapshot", "save", file)
    assert re.search(r"Size\s+\d+", consul("snapshot", "inspect", file))
    consul("kv", "put", "snap/a", "after")
    consul("kv", "put", "snap/b", "after")
    assert "Restored snapshot" in consul("snapshot", "restore", file)
    assert consul("kv", "get", "-recurse", "snap/") == "snap/a:before\n"
    damaged = tmp_path / "damaged.snap"
    content = bytearray(Path(file).read_bytes())
    content[len(content) // 2] ^= 0xFF
    damaged.write_bytes(content)
    consul("snapshot", "restore", str(damaged), code=1)
    assert consul("kv", "get", "-recurse", "snap/") == "snap/a:before\n"


def test_exec_reaches_every_agent_that_runs_one(consul: Program) -> None:
    """Nodes do not run commands for others, as Consul's do not by default: it ends with no answer."""
    said = consul("exec", "-wait=1s", "-wait-repl=1s", "true", code=None, timeout_s=30)
    assert "0 / 0 node(s) completed / acknowledged" in said


# -- a node that is gone


def test_remove_peer_force_leave_and_leave(tmp_path: Path) -> None:
    five = Trio(tmp_path, count=5)
    try:
        five.start()
        follower = five.followers
        consul = Program([find_consul()], five.leader, tmp_path)
        first, second = follower[0], follower[1]
        ids = {s["Node"]: s["ID"] for s in
               five.json(five.leader, "/v1/operator/raft/configuration")["Servers"]}  # fmt: skip
        first.kill()
        said = consul("operator", "raft", "remove-peer", f"-id={ids[first.name]}")
        assert "Removed peer with id" in said
        assert first.name not in consul("operator", "raft", "list-peers")
        second.kill()
        wait_for(
            lambda: re.search(rf"{second.name}\s+\S+\s+failed", consul("members")), "it is noticed"
        )

        def given_up() -> bool:
            consul("force-leave", second.name, code=None)
            return second.name not in consul("operator", "raft", "list-peers")

        wait_for(given_up, "it is gone")
        third = next(node for node in five.followers if node is not consul.node)
        leave = Program([find_consul()], third, tmp_path)
        assert "Graceful leave complete" in leave("leave")
        assert third.process is not None
        assert third.process.wait(60) == 0
        assert third.name not in consul("operator", "raft", "list-peers")
        assert consul("kv", "put", "still", "here")
    finally:
        five.stop()
