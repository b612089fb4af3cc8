"""The dashboard as a resource: its routes, and what all of them have in common."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, cast

import attrs
from klein import Klein
from twisted.internet.defer import CancelledError
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.iweb import IRequest
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException

from ...wire import errors, target
from ..answers import OUR_MISTAKE, REQUEST_ID, reason_phrase, set_json_head
from ..front import is_own_api
from .access import Guard
from .calls import Answer, Call, Handler, Refusal, Reply, Viewer
from .site import INDEX, PROTECTION, Files, wants_html

log = Logger()


class Door(enum.Enum):
    """Who may come in."""

    EVERYBODY = "everybody"
    VISITORS = "visitors"
    """Who may look, or could after logging in."""
    VIEWERS = "viewers"
    """Who may look; to change something, with a CSRF token."""


@attrs.frozen(kw_only=True)
class Route:
    """
    One operation.

    :ivar rule: as Klein has it, ``/api/requests/<id>``.
    :ivar name: the operation's, in the OpenAPI document.
    """

    method: str
    rule: str
    name: str
    handler: Handler
    door: Door = Door.VIEWERS


class Dashboard:
    """
    Answers what is the dashboard's.

    :param files: the page's; ``None`` where there is no page.
    """

    def __init__(self, guard: Guard, routes: Sequence[Route], files: Files | None) -> None:
        self.routes = tuple(routes)
        self._guard = guard
        self._files = files

    @cached_property
    def _resource(self) -> IResource:
        # When somebody looks, and not before: Werkzeug compiles each rule, a millisecond each.
        app = Klein()
        for route in self.routes:
            app.route(route.rule, methods=[route.method], endpoint=route.name)(_named(partial(self._handle, route)))
        app.handle_errors(HTTPException)(_named(self._no_route))
        resource: IResource = app.resource()
        return resource

    def has(self, request: Request, local: target.Target) -> bool:
        """Whether this is for the dashboard."""
        path = local.path.decode("ascii")
        if path in ("/openapi.json", "/openapi.yaml"):
            return True
        if self._files is None:
            return False
        if is_own_api(local):
            return True
        if request.method not in (b"GET", b"HEAD"):
            return False
        if path == "/":
            return request.method == b"GET" and wants_html(request) and self._files.has(INDEX)
        return "/" not in path[1:] and self._files.has(path[1:])

    def render(self, request: Request, local: target.Target) -> object:
        path = local.path.decode("ascii")
        if self._files is not None and local.root != b"/api" and not path.startswith("/openapi."):
            return self._answer_file(request, self._files, path[1:] or INDEX)
        return self._resource.render(request)

    def _answer_file(self, request: Request, files: Files, name: str) -> bytes:
        try:
            self._guard.reach(request)
            found = files.answer(request, name)
            if found is None:
                raise Refusal(404, "There is no such file.")
        except Refusal as refusal:
            if wants_html(request):
                # For a person: words are enough.
                found = Reply(
                    body=refusal.message.encode() + b"\n",
                    status=refusal.status,
                    content_type="text/plain; charset=utf-8",
                    fields=refusal.fields,
                )
            else:
                found = _error(request, refusal)
        return _write_head(request, found)

    # What all routes have in common

    async def _handle(self, route: Route, request: IRequest, **arguments: str) -> bytes | None:
        asked = cast("Request", request)
        answer: Answer
        try:
            answer = await route.handler(Call(request=asked, viewer=self._let_in(route.door, asked)), **arguments)
        except Refusal as refusal:
            answer = _error(asked, refusal)
        except CancelledError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it is answered in JSON
            log.failure("{method} {path} failed", method=asked.method, path=asked.path)
            answer = _error(asked, Refusal(500, OUR_MISTAKE))
        if isinstance(answer, Reply):
            return _write_head(asked, answer)
        await answer.send(asked)
        return None

    def _let_in(self, door: Door, request: Request) -> Viewer:
        if door is Door.EVERYBODY:
            return Viewer(login="none", csrf=None)
        return self._guard.greet(request) if door is Door.VISITORS else self._guard.admit(request)

    def _no_route(self, request: IRequest, failure: Failure) -> bytes:
        """Klein found nothing; whoever may not look is not told so."""
        asked = cast("Request", request)
        problem = cast("HTTPException", failure.value)
        try:
            self._guard.admit(asked)
            fields = {name: value for name, value in problem.get_headers() if name.lower() == "allow"}
            message = {
                404: "There is nothing at this path; /openapi.json lists what there is.",
                405: "This path does not take that method; Allow says which ones.",
            }.get(problem.code or 500, problem.name)
            raise Refusal(404 if problem.code in (None, 308) else problem.code, message, fields)
        except Refusal as refusal:
            return _write_head(asked, _error(asked, refusal))


def _named(function: Any) -> Any:
    """Klein asks for the name of what it is given."""

    def handler(request: IRequest, *args: Any, **kwargs: Any) -> Any:
        return function(request, *args, **kwargs)

    return handler


def _error(request: Request, refusal: Refusal) -> Reply:
    request_id = request.responseHeaders.getRawHeaders(REQUEST_ID, [b""])[0].decode("ascii")
    body = errors.envelope(refusal.error_type, refusal.message, request_id or None)
    return Reply(body=body, status=refusal.status, fields=refusal.fields)


def set_head(request: Request, status: int, content_type: str | None, fields: dict[str, str]) -> None:
    """Prepare an answer of the dashboard whose body comes later."""
    set_json_head(request, status)
    headers = request.responseHeaders
    if content_type is None:
        headers.removeHeader(b"Content-Type")
    else:
        headers.setRawHeaders(b"Content-Type", [content_type.encode("latin-1", "replace")])
    for name, value in {**PROTECTION, **fields}.items():
        headers.setRawHeaders(name.encode("ascii"), [value.encode("latin-1", "replace")])
    request.setResponseCode(status, reason_phrase(status))


def _write_head(request: Request, reply: Reply) -> bytes:
    set_head(request, reply.status, reply.content_type, dict(reply.fields))
    if reply.status not in (204, 304):
        request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(reply.body)])
    return reply.body
