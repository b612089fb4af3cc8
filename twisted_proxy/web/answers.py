"""Answers of our own: JSON, and errors in the envelope that their client knows."""

from __future__ import annotations

import json

from twisted.web.http import RESPONSES, Request
from twisted.web.iweb import IRequest

from .. import __version__
from ..relay import routing
from ..wire import errors
from ..wire.openai import failures

REQUEST_ID = b"X-Proxy-Request-Id"
SERVER = f"claude-proxy/{__version__}".encode("ascii")


_PHRASES = {413: b"Content Too Large", 431: b"Request Header Fields Too Large", 529: b"Overloaded"}
"""Of statuses that Twisted does not know, or knows under an old name."""


_OPENAI_PATHS = frozenset(path.encode("ascii") for path in routing.OPENAI_PATHS)


def is_openai_path(path: bytes) -> bool:
    """Whether who asks for this path speaks OpenAI's API."""
    return path in _OPENAI_PATHS


def error_body(
    status: int, error_type: str, message: str, request_id: str, *, openai_client: bool
) -> tuple[int, bytes]:
    """
    Status and JSON of an error, as the client's API has them.

    :param error_type: one of Anthropic's, see `wire.errors`.
    """
    if openai_client:
        return failures.openai_error(status, error_type, message)
    return status, errors.envelope(error_type, message, request_id)


def reason_phrase(status: int) -> bytes:
    return _PHRASES.get(status) or RESPONSES.get(status, b"Unknown")


OUR_MISTAKE = "The proxy failed on this request. Its log says more."


def set_json(request: IRequest | Request, status: int, body: bytes) -> None:
    """Prepare an answer of ours; the body is for the caller to write, or to return."""
    set_json_head(request, status)
    request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])


def set_json_head(request: IRequest | Request, status: int) -> None:
    """Prepare an answer of ours whose length is set later."""
    request.setResponseCode(status, reason_phrase(status))
    headers = request.responseHeaders
    headers.setRawHeaders(b"Content-Type", [b"application/json"])
    headers.setRawHeaders(b"Cache-Control", [b"no-store"])
    # An upstream's head may stand here already; this body is not encoded.
    headers.removeHeader(b"Content-Encoding")
    headers.setRawHeaders(b"Server", [SERVER])


def set_error_head(request: Request, status: int, request_id: str) -> None:
    """Prepare an answer with an error envelope, which is to be written behind it."""
    set_json_head(request, status)
    request.responseHeaders.setRawHeaders(REQUEST_ID, [request_id.encode("ascii")])


def to_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def answer_error(
    request: Request, status: int, error_type: str, message: str, request_id: str, *, openai_client: bool = False
) -> None:
    """Answer with an error envelope, whole."""
    status, body = error_body(status, error_type, message, request_id, openai_client=openai_client)
    set_error_head(request, status, request_id)
    request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % len(body)])
    request.write(body)
    request.finish()
