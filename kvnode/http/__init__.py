"""The HTTP port: Consul's API under ``/v1``, our own routes beside it, and the web page.

What it is
----------
The only room that knows URLs and JSON. It turns requests into the replica's commands and reads, and
results into answers. The law for ``/v1`` is the specification of Consul's HTTP API (cited as
``spec §n``), the law for the rest is the design's section 6.

How it is built
---------------
::

    bytes ─► fast.py  (lean shell: GET PUT POST DELETE of the KV routes)  ─┐
        │                                                                  ├─► kv.parse ─► kv.start ─► replica
        └──► app.py   (aiohttp shell: every route, any odd request) ─► router ─► handlers ───────────► replica

``kv`` holds the KV routes as plain functions with call-backs, so both shells give the same answer to
the byte; ``session``, ``txn``, ``catalog`` and ``registration`` are built alike. ``decode`` reads JSON as
Go does, ``filters`` Consul's filter expressions. ``errors`` turns every error into an answer, in one place.
``operator``, ``agent``, ``events`` and ``monitor`` are what Consul's operators ask; ``absent`` answers for
the parts of Consul that are not here. ``golang``, ``session_ids`` and ``paths`` hold the pieces of Go that
show through Consul's API.
``server`` listens and closes. ``snapshot`` saves and restores by ``kvnode.archive``.

Two kinds of route are not one piece in and one piece out, in the aiohttp shell only. A handler may return a
``streams.Stream`` instead of a ``Response``: an asynchronous generator whose chunks are sent as the client
takes them (a snapshot; server-sent events, which are *endless*). A route with ``upload`` gets its body in
``Request.upload``, a nameless temporary file, however long it is and however it was sent.

Vocabulary
----------
- *shell*: code that reads requests from a socket and writes answers.
- *own route*: one that Consul does not have; its errors use the status codes that fit best.
- *head*: ready header lines as bytes, see ``messages.Response``.
- *gate*: the bounds on everything that clients can pile up.

What only kvnode has on the KV routes is in ``own_writes``; ``idempotency`` wraps a write so that it is
executed once, by a replica that it hands to the routes, so that they need not know.

Invariants
----------
- A write is proposed at most once per request, and only after the whole request was received, parsed
  and found good. Whoever gets a 4xx knows that nothing was stored.
- A write whose outcome is unknown says so in its text and is never reported as failed (RC-58).
- Under ``/v1`` nothing answers 429 or 503: these make Consul's clients drop their locks. Only where the code
  is the answer itself (``agent/health/service``, ``autopilot/health``) it is Consul's.
- The store is read inside the replica's read completion and nowhere else, synchronously (RC-35). An agent's
  own lists of services and checks are this node's state as it is, once it has what it has written.
- A stream ends with its proper end, or the connection is cut: nobody takes half for the whole. It stops
  when the client hangs up, and an endless one when the server closes.
- Everything a client can make us hold is bounded, in count and bytes, and every bound has an answer
  of its own (RC-67).
- ``X-Consul-Index`` is never 0 (RC-64).
- Every answer names the node in ``X-Kvnode-Node``.

What it does not do
-------------------
It does not know who leads: the replica forwards. It keeps no state between requests apart from
counters. It does not authenticate; tokens are accepted and ignored, as Consul does without ACLs.
"""

from kvnode.http.context import HttpContext, HttpSettings
from kvnode.http.server import HttpServer

__all__ = ["HttpContext", "HttpServer", "HttpSettings"]
