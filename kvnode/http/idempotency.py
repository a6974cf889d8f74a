"""``Idempotency-Key``: a write that may be sent again, whatever became of its answer (RC-58).

The key travels into the log with a hash of the request, and the first result is kept there (``store.once``);
whoever sends the same request with the same key gets that result, from any node, also after a change of
leader or a restart. Another request with the same key is refused with 422.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from kvnode.http.messages import Response, own_text, text
from kvnode.http.paths import resolve
from kvnode.store.own_commands import FINGERPRINT_BYTES, ONCE_KEY_BYTES_MAX, Once

if TYPE_CHECKING:
    from kvnode.http.context import HttpSettings
    from kvnode.http.kv import Backend
    from kvnode.ports import Done
    from kvnode.replica.facade import ReplicaFacade
    from kvnode.store.commands import Command, Result

HEADER: Final = "Idempotency-Key"
RESULT_BYTES_MAX: Final = 16 * 1024
"""A larger result of a write, as of a transaction that reads much, is not kept."""


Stamp = Callable[["Command"], "Command"]
"""Wraps a command, so that it is executed once."""


def make(
    key: str, method: str, path: bytes, raw_query: bytes, body: bytes, settings: HttpSettings
) -> Stamp | Response:
    """Return the stamp of a request with a key, or the answer that refuses the key.

    The path is decoded; POST is PUT. Two requests are the same if path, query and body are.
    """
    given = key.strip(" \t")
    if (
        not given
        or len(given) > ONCE_KEY_BYTES_MAX
        or not (given.isascii() and given.isprintable())
    ):
        message = f"Invalid {HEADER}: 1 to {ONCE_KEY_BYTES_MAX} printable ASCII characters"
        return text(400, message) if path.startswith(b"/v1/") else own_text(400, message)
    verb = b"PUT" if method == "POST" else method.encode()
    whole = blake2b(digest_size=FINGERPRINT_BYTES)
    for part in (verb, path, raw_query, body):
        whole.update(len(part).to_bytes(8, "big") + part)
    return partial(_once, given.encode(), whole.digest(), settings.idempotency_keys_max)


def read(
    raw_key: bytes,
    method: str,
    raw_path: bytes,
    raw_query: bytes,
    body: bytes,
    settings: HttpSettings,
) -> Stamp | Response:
    """``make`` for a request as it came in."""
    path = resolve(method, raw_path, raw_query)
    if isinstance(path, Response):
        return path
    return make(raw_key.decode("latin-1"), method, path, raw_query, body, settings)


def _once(key: bytes, fingerprint: bytes, keys_max: int, command: Command) -> Command:
    return Once(key, fingerprint, keys_max, RESULT_BYTES_MAX, command)


def stamping(backend: Backend, stamp: Stamp) -> Backend:
    """Return the same backend, with a replica that stamps what is written through it."""
    return backend._replace(replica=_Stamping(backend.replica, stamp))


class _Stamping:
    """A replica that stamps what is written through it; the rest is the replica's own.

    So the routes' ``start`` need not know whether their request has a key.
    """

    def __init__(self, replica: ReplicaFacade, stamp: Stamp) -> None:
        """Write to ``replica``."""
        self._replica = replica
        self._stamp = stamp

    def write(self, command: Command, done: Done[Result]) -> None:
        """Replicate a command, once."""
        self._replica.write(self._stamp(command), done)

    def __getattr__(self, name: str) -> Any:
        """Everything else."""
        return getattr(self._replica, name)
