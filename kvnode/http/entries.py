"""Stored keys and sessions as JSON (spec §4.1, §5.2).

A key's is built by hand: this is the hottest text of the node.
"""

from __future__ import annotations

from binascii import b2a_base64

from kvnode.http.golang import format_duration
from kvnode.http.messages import dump_json, json_string
from kvnode.store.records import DELETE, KVPair, Session


def entry_json(pair: KVPair) -> bytes:
    """Encode one entry; the order of the members is part of the contract (spec §1.4)."""
    key, value, flags, create_index, modify_index, lock_index, session = pair
    encoded = b'"%b"' % b2a_base64(value, newline=False) if value else b"null"
    if session:
        return (
            b'{"LockIndex":%d,"Key":%b,"Flags":%d,"Value":%b,"Session":"%b",'
            b'"CreateIndex":%d,"ModifyIndex":%d}'
            % (
                lock_index,
                json_string(key),
                flags,
                encoded,
                session.encode(),
                create_index,
                modify_index,
            )
        )
    return b'{"LockIndex":%d,"Key":%b,"Flags":%d,"Value":%b,"CreateIndex":%d,"ModifyIndex":%d}' % (
        lock_index,
        json_string(key),
        flags,
        encoded,
        create_index,
        modify_index,
    )


def timed_entry_json(pair: KVPair, ttl: tuple[int, int] | None) -> bytes:
    """Encode one entry for who asked for its time to live: two more members, if it has one.

    ``ttl``: the index at which its time began, and nanoseconds.
    """
    entry = entry_json(pair)
    if ttl is None:
        return entry
    since, ttl_ns = ttl
    return b'%b,"TTL":"%b","TTLIndex":%d}' % (entry[:-1], format_duration(ttl_ns).encode(), since)


def session_json(session: Session) -> bytes:
    """Encode one session; the order of the members is part of the contract (spec §5.2)."""
    services = [{"ID": name, "Namespace": space} for name, space in session.service_checks]
    return dump_json(
        {
            "ID": session.session_id,
            "Name": session.name,
            "Node": session.node,
            "LockDelay": session.lock_delay_ns,
            "Behavior": "delete" if session.behavior == DELETE else "release",
            "TTL": session.ttl,
            "NodeChecks": session.node_checks,
            "ServiceChecks": services or None,
            "CreateIndex": session.create_index,
            "ModifyIndex": session.modify_index,
        }
    )
