"""
Error bodies, from one API's envelope to the other's, each with the status that its clients know how to take.

https://docs.claude.com/en/api/errors, https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import re

import attrs
import msgspec

from twisted_proxy.wire import errors
from twisted_proxy.wire.openai import raw

_MAX_MESSAGE = 2000
"""Characters of a provider's own words that go on."""

# A provider that is not given the right key may say which one it was given.
_KEY = re.compile(r"\b(?:sk|pk|gsk|xai|sess|key)-[A-Za-z0-9_*.\-]{4,}|(?<=Bearer )\S+")

_TOO_LONG = re.compile(r"maximum context length is (\d+) tokens.*?(?:resulted in|requested|has) (?:about )?(\d+)", re.S)


@attrs.frozen(kw_only=True)
class Failure:
    """What went wrong, in Anthropic's terms."""

    status: int
    error_type: str
    message: str


def from_openai_error(status: int | None, body: bytes) -> Failure:
    """
    What an OpenAI-compatible server's error says. Known shapes of `body`: ``{"error": {…}}``,
    ``{"error": "…"}``, ``{"message": …}``, ``{"detail": …}``, a list of such, text.

    :param status: of the answer; ``None`` for an error in the middle of a stream.
    """
    error = _error_members(body)
    code = raw.string_or(error.get("code"))
    kind = raw.string_or(error.get("type"))
    message = raw.string_or(error.get("message")) or raw.string_or(error.get("detail"))
    if status is None:
        status = raw.whole_number(error.get("code")) or raw.whole_number(error.get("status"))
        if status is None or not 400 <= status < 600:
            status = _status_of(code, kind)
    if not message:
        message = _in_words(body) or f"The provider answered {status} and did not say why."
    message = _KEY.sub("…", message)[:_MAX_MESSAGE]
    if code == "context_length_exceeded" or "maximum context length" in message:
        return Failure(status=400, error_type="invalid_request_error", message=_too_long(message))
    if code in _QUOTA or kind in _QUOTA:
        return Failure(status=402, error_type="billing_error", message=message)
    if not 400 <= status < 600:
        return Failure(status=502, error_type="api_error", message=f"The provider answered {status}: {message}")
    if status == 422:
        status = 400
    elif status == 503:
        status = 529
    error_type = "timeout_error" if status == 408 else errors.type_of_status(status)
    return Failure(status=status, error_type=error_type, message=message)


_QUOTA = frozenset(("insufficient_quota", "billing_hard_limit_reached", "billing_not_active"))

_STATUS_OF_CODE = {
    "invalid_api_key": 401,
    "authentication_error": 401,
    "permission_error": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "requests": 429,
    "tokens": 429,
    "invalid_request_error": 400,
    "overloaded": 529,
    "overloaded_error": 529,
    "timeout": 504,
    "timeout_error": 504,
}


def _status_of(code: str, kind: str) -> int:
    return _STATUS_OF_CODE.get(code) or _STATUS_OF_CODE.get(kind) or 500


def _error_members(body: bytes) -> dict[str, bytes]:
    """The members of the error object, wherever it is; a bare text as ``message``."""
    try:
        if body.lstrip().startswith(b"["):
            body = raw.items(body)[0]
        found = raw.members(body)
        error = found.get("error")
        if error is None or error == b"null":
            return found
        if error.startswith(b'"'):
            return {**found, "message": error}
        return raw.members(error)
    except (raw.MalformedError, IndexError):
        return {}


def _in_words(body: bytes) -> str:
    """A body that is short plain text, as gateways send it."""
    if body.startswith(b'"'):
        return raw.string_or(body)
    text = body[:_MAX_MESSAGE].decode("utf-8", "replace").strip()
    if not text or text[0] in "<{[" or text == "null":
        return ""
    return "".join(char if char.isprintable() else " " for char in text)


def _too_long(message: str) -> str:
    # Anthropic's clients know this by its words, and compact the conversation.
    counts = _TOO_LONG.search(message)
    told = f": {counts[2]} tokens > {counts[1]} maximum" if counts else ""
    return f"prompt is too long{told} ({message})"


def translate_to_anthropic(status: int, body: bytes, request_id: str | None) -> tuple[int, bytes]:
    """An OpenAI-compatible server's error answer, as Anthropic's: status and body."""
    failure = from_openai_error(status, body)
    return failure.status, errors.envelope(failure.error_type, failure.message, request_id)


def from_anthropic_error(body: bytes) -> Failure:
    """What an error's body says, or an ``error`` event's data; the status is the one that goes with its type."""
    error = _error_members(body)
    error_type = raw.string_or(error.get("type")) or "api_error"
    message = raw.string_or(error.get("message")) or _in_words(body) or "The API did not say why."
    return Failure(status=errors.status_of_type(error_type), error_type=error_type, message=message)


def translate_to_openai(status: int, body: bytes) -> tuple[int, bytes]:
    """Anthropic's error answer, as OpenAI's: status and body."""
    failure = from_anthropic_error(body)
    return openai_error(status, failure.error_type, failure.message)


def openai_event(error_type: str, message: str) -> bytes:
    """The data of the event that ends a stream of chunks in the middle."""
    return openai_error(errors.status_of_type(error_type), error_type, message)[1]


def openai_error(status: int, error_type: str, message: str) -> tuple[int, bytes]:
    """
    :param status: as Anthropic has it; where it does not fit `error_type`, it wins.
    :param error_type: one of Anthropic's, or empty.
    """
    known = error_type if errors.STATUS_OF_TYPE.get(error_type) == status else errors.type_of_status(status)
    if known == "api_error":
        return status, openai_envelope("server_error", message, None)
    if known == "invalid_request_error":
        code = "context_length_exceeded" if message.startswith("prompt is too long") else None
        return status, openai_envelope("invalid_request_error", message, code)
    status, kind, code = _AS_OPENAI[known]
    return status, openai_envelope(kind, message, code)


_AS_OPENAI: dict[str, tuple[int, str, str]] = {
    "authentication_error": (401, "invalid_request_error", "invalid_api_key"),
    "billing_error": (429, "insufficient_quota", "insufficient_quota"),
    "permission_error": (403, "invalid_request_error", "permission_denied"),
    "not_found_error": (404, "invalid_request_error", "not_found"),
    "conflict_error": (409, "invalid_request_error", "conflict"),
    "request_too_large": (413, "invalid_request_error", "request_too_large"),
    "rate_limit_error": (429, "rate_limit_error", "rate_limit_exceeded"),
    "timeout_error": (504, "server_error", "timeout"),
    "overloaded_error": (503, "server_error", "overloaded"),
}


def openai_envelope(kind: str, message: str, code: str | None) -> bytes:
    """``{"error":{"message","type","param","code"}}`` as UTF-8 JSON."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})
