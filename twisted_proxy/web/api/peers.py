"""Who a peer is, and on whose behalf it asks, as far as a request shows."""

from __future__ import annotations

import ipaddress
import re

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.web.http import Request

from .calls import Refusal

_FORWARDED = (b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip")
_FORWARDED_BEGINNINGS = (b"x-forwarded-", b"cf-connecting-")
"""Whoever stands in front of us and adds these speaks for somebody else."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[0-9a-z.-]+)(:[0-9]*)?", re.IGNORECASE)


def is_direct(request: Request) -> bool:
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
    return not any(_is_forwarded(name.lower()) for name, _ in request.requestHeaders.getAllRawHeaders())


def _is_forwarded(name: bytes) -> bool:
    return name in _FORWARDED or name.startswith(_FORWARDED_BEGINNINGS)


def _is_loopback(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def name_of(request: Request) -> str:
    """By what attempts are counted: an address, or an IPv6 network, all of which one peer may have."""
    host = str(getattr(request.getClientAddress(), "host", "local"))
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return host


def refuse_other_sites(request: Request) -> None:
    """
    Refuse what a page of another site makes a browser send. Browsers say so (https://www.w3.org/TR/fetch-metadata/);
    those that do not say where a request that changes something comes from.
    """
    fields = request.requestHeaders
    site = fields.getRawHeaders(b"Sec-Fetch-Site", [b""])[0].strip().lower()
    origin = fields.getRawHeaders(b"Origin", [b""])[0].strip()
    foreign = site not in (b"", b"same-origin", b"none")
    if not site and origin:
        foreign = origin.partition(b"://")[2].lower() != fields.getRawHeaders(b"Host", [b""])[0].strip().lower()
    if foreign:
        raise Refusal(403, "A page of another site asks. The dashboard's API is for its own page, and for scripts.")
