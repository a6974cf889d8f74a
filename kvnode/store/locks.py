"""What locks and sessions do to the data (spec §2.1, §4.2, §5.5). Deterministic: RC-28.

Time is judged by the leader, before the log: it refuses a lock while its own clock says that a
lock-delay runs, and proposes the end of a session whose TTL has passed. What is left to be decided here
is what the leader could not see yet: a lock that stands in the log *behind* the end of a session was
judged without it, and is refused for its lock-delay's sake (``KvLock.as_of``).
"""

from __future__ import annotations

from kvnode.errors import CorruptLog
from kvnode.store.commands import (
    KvLock,
    KvUnlock,
    ReapLockDelays,
    Result,
    SessionCreate,
    SessionDestroy,
)
from kvnode.store.kv import KEEP_TTL, drop_key, put_pair
from kvnode.store.own_commands import Refused, Why
from kvnode.store.records import (
    DELAY_ORDER,
    DELAYS,
    DELETE,
    HELD,
    KV,
    LOCK_DELAY_MAX_NS,
    SESSION_ID_CHARACTERS,
    SESSIONS,
    Cause,
    KVPair,
    Session,
    decode_delay,
    decode_key,
    decode_order_key,
    encode_session,
    key_range,
    order_stop,
)
from kvnode.store.registry_records import (
    CRITICAL,
    bound_keys,
    check_key,
    decode_check,
    node_key,
)
from kvnode.store.tables import Transaction


def lock_key(tx: Transaction, index: int, command: KvLock) -> Result:
    """Lock a key and set it. The holder may do it again: then only value and flags change."""
    key, value, session, flags, as_of = command
    old = tx.get(KV + key)
    pair = None if old is None else decode_key(KV + key, old)
    lock_index = take_lock(tx, key, pair, session, as_of)
    if lock_index is None or lock_index is False:  # which 0 is not
        return Result(lock_index, index)
    create = pair.create_index if pair is not None else index
    wanted = KVPair(key, value, flags, create, index, lock_index, session)
    return Result(True, index, put_pair(tx, wanted, pair, old, Cause.ACQUIRE))


def take_lock(
    tx: Transaction, key: bytes, pair: KVPair | None, session: str, as_of: int
) -> int | None:
    """Let a session hold a key, which is ``pair`` now; whoever asks writes the key afterwards.

    Returns:
        The LockIndex that the key has then; or, and nothing is done: False when another session holds
        it or its lock-delay runs, None when there is no such session.
    """
    holder = session.encode()
    if not exists(tx, holder):
        return None
    if pair is not None and pair.session == session:
        return pair.lock_index
    if pair is not None and pair.session:
        return False
    delay = tx.get(DELAYS + key)
    if delay is not None:
        if decode_delay(DELAYS + key, delay)[0] > as_of:
            return False
        tx.end_delay(DELAYS + key, delay)
    tx.overlay[HELD + holder + key] = b""
    return pair.lock_index + 1 if pair is not None else 1


def unlock_key(tx: Transaction, index: int, command: KvUnlock) -> Result:
    """Release a key that this session holds, and set it. LockIndex stays, and there is no lock-delay."""
    key, value, session, flags = command
    raw = KV + key
    old = tx.get(raw)
    pair = None if old is None else decode_key(raw, old)
    if pair is None or not session or pair.session != session:
        return Result(False, index)
    tx.overlay[HELD + session.encode() + key] = None
    wanted = KVPair(key, value, flags, pair.create_index, index, pair.lock_index, "")
    return Result(True, index, put_pair(tx, wanted, pair, old, Cause.RELEASE))


def exists(tx: Transaction, session_id: bytes) -> bool:
    """Whether there is a session with this id."""
    return len(session_id) == SESSION_ID_CHARACTERS and tx.get(SESSIONS + session_id) is not None


def create_session(tx: Transaction, index: int, command: SessionCreate) -> Result:
    """Begin a session, if its node and its checks are there and none is critical (spec §5.1)."""
    fields = command._asdict()
    refusal = _refusal(tx, command) if fields.pop("checked") else ""
    if refusal:
        return Result(Refused(Why.REGISTRY, key=refusal.encode()), index)
    session = Session(**fields, create_index=index, modify_index=index)
    raw = SESSIONS + session.session_id.encode("ascii")
    if tx.get(raw) is not None:
        return Result(False, index)
    for row in bound_keys(session):
        tx.overlay[row] = b""
    tx.put(raw, encode_session(raw, session), None)
    tx.sessions += 1
    tx.session_index = index
    tx.session_changes.append((index, session.session_id, session))
    return Result(True, index)


def _refusal(tx: Transaction, command: SessionCreate) -> str:
    if tx.get(node_key(command.node)) is None:
        return "Missing node registration"
    for check in (*command.node_checks, *(name for name, _ in command.service_checks)):
        raw = check_key(command.node, check)
        record = tx.get(raw)
        if record is None:
            return f"Missing check '{check}' registration"
        if decode_check(raw, record).status == CRITICAL:
            return f"Check '{check}' is in critical state"
    return ""


def destroy_session(tx: Transaction, index: int, command: SessionDestroy) -> Result:
    """End a session: what it holds is released or deleted, and cannot be locked for a while."""
    holder = command.session_id.encode("ascii")
    session = tx.session(holder)
    if session is None:
        return Result(True, index)
    raw = SESSIONS + holder
    old = tx.get(raw)
    assert old is not None, "it was just read"
    tx.remove(raw, old)
    delay_ns = min(session.lock_delay_ns, LOCK_DELAY_MAX_NS)
    held = sorted(row[1 + len(holder) :] for row, _ in tx.scan(*key_range(HELD, holder)))
    for key in held:
        _let_go(tx, index, key, session)
        if delay_ns > 0:
            tx.delay(key, index, delay_ns)
    for row in bound_keys(session):
        tx.overlay[row] = None
    tx.sessions -= 1
    tx.session_index = index
    tx.session_changes.append((index, command.session_id, None))
    return Result(True, index)


def _let_go(tx: Transaction, index: int, key: bytes, session: Session) -> None:
    raw = KV + key
    old = tx.get(raw)
    pair = None if old is None else decode_key(raw, old)
    if old is None or pair is None or pair.session != session.session_id:
        raise CorruptLog(f"session {session.session_id} should hold {key!r}, and does not")
    if session.behavior == DELETE:
        drop_key(tx, index, key, old, Cause.SESSION_END)
        return
    tx.overlay[HELD + session.session_id.encode("ascii") + key] = None
    wanted = pair._replace(session="", modify_index=index)
    put_pair(tx, wanted, pair, old, Cause.SESSION_END, KEEP_TTL)


def reap_delays(tx: Transaction, index: int, command: ReapLockDelays) -> Result:
    """Forget lock-delays that are over, oldest first; no index moves."""
    stop = order_stop(command.upto, DELAY_ORDER)
    for_ages = [decode_order_key(row) for row, _ in tx.scan(DELAY_ORDER, stop)]
    for _, raw in for_ages:
        old = tx.get(raw)
        if old is None:
            raise CorruptLog(f"the lock-delays' order names {raw!r}: not there")
        tx.end_delay(raw, old)
    return Result(len(for_ages), index)
