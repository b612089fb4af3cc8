"""The page that Prometheus reads, and who may."""

from __future__ import annotations

import ipaddress
import re

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.web.http import Request
from twisted.web.iweb import IRequest

from ..metrics.metrics import Metrics
from ..wire import errors
from .answers import REQUEST_ID, set_json, set_json_head
from .api.calls import Refusal

_FORWARDED = (b"Forwarded", b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Real-Ip", b"Via")
"""Whoever stands in front of us and adds these speaks for somebody else."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z.-]+)(:[0-9]*)?", re.IGNORECASE)


def is_local(request: Request) -> bool:
    """
    Whether a request comes from this host itself, by its peer's address, its ``Host``, and what it does not have: the
    fields that a proxy adds.

    ``Host`` must be a loopback one, too: a page from elsewhere in a browser here can make its own name lead to us.
    """
    peer = request.getClientAddress()
    if isinstance(peer, IPv4Address | IPv6Address):
        if not _is_loopback(peer.host):
            return False
    elif not isinstance(peer, UNIXAddress):
        return False
    hosts = request.requestHeaders.getRawHeaders(b"Host", [b""])
    named = _HOST.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
    if named is None or not (named[1].lower() == "localhost" or _is_loopback(named[1].strip("[]"))):
        return False
    return not any(request.requestHeaders.hasHeader(name) for name in _FORWARDED)


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def answer_metrics(request: IRequest, metrics: Metrics) -> bytes:
    """All of them, in the format that the client prefers."""
    accept = b",".join(request.requestHeaders.getRawHeaders(b"Accept", ())).decode("latin-1")
    content_type, body = metrics.expose(accept)
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
