"""The page that Prometheus reads."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.web.iweb import IRequest

from ..metrics.merging import Snapshot
from ..metrics.metrics import expose
from ..wire import errors
from .answers import REQUEST_ID, set_json, set_json_head
from .api.calls import Refusal


def answer_metrics(request: IRequest, snapshots: Sequence[Snapshot]) -> bytes:
    """All of them, in the format that the client prefers."""
    accept = b",".join(request.requestHeaders.getRawHeaders(b"Accept", ())).decode("latin-1")
    content_type, body = expose(snapshots, accept)
    set_json_head(request, 200)
    request.responseHeaders.setRawHeaders(b"Content-Type", [content_type.encode("ascii")])
    request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
    return body


def answer_refusal(request: IRequest, refusal: Refusal) -> bytes:
    """Who may not look is told why."""
    request_id = request.responseHeaders.getRawHeaders(REQUEST_ID, [b""])[0].decode("ascii")
    body = errors.envelope(refusal.error_type, refusal.message, request_id)
    set_json(request, refusal.status, body)
    for name, value in refusal.fields.items():
        request.responseHeaders.setRawHeaders(name.encode("ascii"), [value.encode("latin-1")])
    return body
