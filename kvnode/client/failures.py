"""From aiohttp's exceptions and HTTP's status codes to ``kvnode.errors``.

The one question is always whether the request may have been executed (RC-58). Only a connection that was
never made, and a server that says so, are a certain "no".
"""

from __future__ import annotations

import os
import re

import aiohttp

from kvnode.errors import (
    BadRequest,
    Compacted,
    KvnodeError,
    LeadershipLost,
    NoLeader,
    NotNow,
    Overloaded,
    PeerUnreachable,
    RemoteProtocolError,
    Timeout,
    TookEffect,
    ValueTooLarge,
)

_CERTAINLY_NOT = ("No cluster leader", "nothing was stored")
"""Texts that only a server writes which has not appended the request: kvnode says the second one with
every refusal that it is sure of, Consul and kvnode the first one after nobody could be given it."""


def from_exception(error: Exception, url: str) -> KvnodeError:
    """Translate what aiohttp raised while ``url`` was asked."""
    match error:
        case aiohttp.InvalidURL():
            return BadRequest(f"{url}: not an address")
        case aiohttp.ClientConnectorCertificateError():
            return PeerUnreachable(f"{url}: {_distrust(error.certificate_error)}", took_effect="no")
        case aiohttp.ClientConnectorSSLError():
            return PeerUnreachable(f"{url}: {_no_tls(error.os_error)}", took_effect="no")
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno or 0  # below 0: the resolver's, with a text of its own
            why = os.strerror(number) if number > 0 else error.os_error.strerror
            return PeerUnreachable(f"{url}: cannot connect: {why}", took_effect="no")
        case aiohttp.ConnectionTimeoutError():
            return PeerUnreachable(f"{url}: cannot connect in time", took_effect="no")
        case TimeoutError():
            return Timeout(f"{url}: no answer in time", took_effect="unknown")
        case (
            aiohttp.ClientPayloadError()
            | aiohttp.ClientOSError()
            | aiohttp.ServerDisconnectedError()
        ):
            return PeerUnreachable(f"{url}: the connection broke: {error}", took_effect="unknown")
        case _:
            return RemoteProtocolError(f"{url}: {error}")


def from_answer(status: int, body: bytes) -> KvnodeError:
    """Translate an answer whose status is an error, and not the 404 of a missing key."""
    text = body[:2000].decode(errors="replace").strip() or f"HTTP status {status}"
    took_effect: TookEffect = "no" if is_certainly_not(text) else "unknown"
    if status == 413:
        return ValueTooLarge(text)
    if status == 429:
        return Overloaded(text, took_effect="no")
    if status == 410:
        return _compacted(text)
    if status < 500:
        return BadRequest(text)
    if "No cluster leader" in text:
        return NoLeader(text)
    if "overloaded" in text:
        return Overloaded(text, took_effect=took_effect)
    if "leadership lost" in text:
        return LeadershipLost(text)
    if "invalid session" in text or "missing session" in text:
        return BadRequest(text)
    return NotNow(text, took_effect=took_effect)


def _compacted(text: str) -> BadRequest:
    """Read the numbers out of a refusal: an index outside of the window of history."""
    old = re.match(r"index (\d+) is compacted: the history begins at (\d+)", text)
    if old is not None:
        index, oldest = int(old[1]), int(old[2])
        return Compacted(index, oldest, max(index, oldest))
    ahead = re.match(r"index (\d+) lies in the future: this cluster is at (\d+)", text)
    if ahead is not None:
        return Compacted(int(ahead[1]), 0, int(ahead[2]))
    return BadRequest(text)


def is_certainly_not(text: str) -> bool:
    """Whether a refusal's text says that nothing happened."""
    return any(sure in text for sure in _CERTAINLY_NOT)


def _distrust(error: Exception) -> str:
    """Say what is wrong with the server's certificate, and what to do."""
    message = getattr(error, "verify_message", "") or str(error)
    if "mismatch" in message or "not valid for" in message:
        return f"its certificate is for another name ({message}); see --tls-server-name"
    return f"its certificate is not trusted ({message}); --ca-file names the CA that it leads to"


def _no_tls(error: OSError) -> str:
    reason = getattr(error, "reason", None) or str(error)
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return "it does not speak TLS; try http://"
    return f"no TLS connection: {reason.replace('_', ' ').lower()}"
