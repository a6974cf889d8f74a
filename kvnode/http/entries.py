"""Stored keys as JSON (spec §4.1), built by hand: this is the hottest text of the node."""

from __future__ import annotations

from binascii import b2a_base64

from kvnode.http.messages import json_string
from kvnode.store.records import KVPair


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
