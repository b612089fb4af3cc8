"""Anthropic's error envelope, and the status of each failure (https://docs.claude.com/en/api/errors)."""

from __future__ import annotations

import json

STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}

_TYPE_OF_STATUS = {status: kind for kind, status in STATUS_OF_TYPE.items()}


def type_of_status(status: int) -> str:
    """The ``error.type`` that goes with a status; other 4xx are the request's fault, other 5xx the API's."""
    return _TYPE_OF_STATUS.get(status, "invalid_request_error" if status < 500 else "api_error")


def status_of_type(error_type: str) -> int:
    """The status that goes with an ``error.type``; 500 for one that is not known."""
    return STATUS_OF_TYPE.get(error_type, 500)


def envelope(error_type: str, message: str, request_id: str | None) -> bytes:
    """``{"type":"error","error":{"type","message"},"request_id"}`` as UTF-8 JSON."""
    body: dict[str, object] = {"type": "error", "error": {"type": error_type, "message": message}}
    if request_id is not None:
        body["request_id"] = request_id
    return json.dumps(body, separators=(",", ":")).encode("ascii")


def event(error_type: str, message: str, request_id: str | None) -> bytes:
    """The same as a server-sent ``error`` event, for a stream that must end in the middle."""
    return b"event: error\ndata: " + envelope(error_type, message, request_id) + b"\n\n"
