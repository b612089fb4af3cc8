"""Where a request goes: to an upstream, or to a page of ours."""

from __future__ import annotations

from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from ..wire import target
from .answers import REQUEST_ID, answer_error
from .api.app import Dashboard
from .counting import Counting
from .front import Front


@implementer(IResource)
class Tree:
    """
    The proxy as a resource, at the root of a site or at any depth of one.

    A leaf that decides by the raw target: Twisted's ``postpath`` is percent-decoded, an upstream must not be sent that.
    ``/v1`` stands beside Klein's rules, not below them, which saves their cost.
    """

    isLeaf = True

    def __init__(self, front: Front, proxied: Counting, pages: IResource, dashboard: Dashboard) -> None:
        self._front = front
        self._proxied = proxied
        self._pages = pages
        self._dashboard = dashboard

    def getChildWithDefault(self, name: bytes, request: Request) -> IResource:
        raise RuntimeError("a leaf has no children")

    def putChild(self, path: bytes, child: IResource) -> None:
        raise NotImplementedError("put what is yours beside the proxy, not below it")

    def render(self, request: Request) -> object:
        request_id = getattr(request, "request_id", None) or self._front.new_request_id()
        try:
            local = target.parse(request.uri).below(len(request.prepath or ()))
        except target.BadTarget as problem:
            answer_error(request, 400, "invalid_request_error", f"Bad request target: {problem}.", request_id)
            return NOT_DONE_YET
        if request.method == b"CONNECT":
            # A 2xx to it has no end that HTTP would show (RFC 9112 §6.3).
            answer_error(request, 405, "invalid_request_error", "This proxy makes no tunnels.", request_id)
            return NOT_DONE_YET
        if self._front.forwards(local):
            return self._proxied.render(request, local, request_id)
        request.responseHeaders.setRawHeaders(REQUEST_ID, [request_id.encode("ascii")])
        if self._dashboard.has(request, local):
            return self._dashboard.render(request, local)
        return self._pages.render(request)
