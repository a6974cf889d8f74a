"""Parts of Consul that have no counterpart here, and what its clients expect to hear of them.

Access rules are off, as on a Consul without them: every token is accepted and ignored, and whoever asks about
rules is told so (spec §1.6). There is no gossip, so nobody has network coordinates (spec §12).
"""

from __future__ import annotations

from typing import Final

from kvnode.http.messages import VARY, Request, Response, json_answer, text

_ACL: Final = b"/v1/acl/"
_ACL_PARTS: Final = frozenset(
    b"auth-method auth-methods authorize binding-rule binding-rules bootstrap clone create destroy info "
    b"list login logout policies policy replication role roles rules templated-policies templated-policy "
    b"token tokens update".split()
)
_DISABLED: Final = text(401, "ACL support disabled")


async def acl(request: Request) -> Response:
    """``/v1/acl/…``."""
    part = request.path[len(_ACL) :].partition(b"/")[0]
    return _DISABLED if part in _ACL_PARTS else Response(404, VARY)


async def agent_token(request: Request) -> Response:
    """``PUT /v1/agent/token/…``."""
    return _DISABLED


async def coordinate_datacenters(request: Request) -> Response:
    """``GET /v1/coordinate/datacenters``."""
    return json_answer([])


async def coordinate_nodes(request: Request) -> Response:
    """``GET /v1/coordinate/nodes``."""
    return json_answer(
        [], head=b"X-Consul-Index: 1\r\nX-Consul-KnownLeader: true\r\nX-Consul-LastContact: 0\r\n"
    )


async def coordinate_node(request: Request) -> Response:
    """``GET /v1/coordinate/node/<name>``."""
    return Response(404, VARY)
