"""The little of Anthropic's and OpenAI's APIs that the SDKs need, as answers to requests. No I/O, no clock.

The same request is answered with the same bytes, ids and dates included, so that what a client gets through a relay can
be compared with what it gets without.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import attrs

from tests.corpus import BY_NAME, FAILURES
from tests.standin_messages import (
    JSON,
    Dialect,
    Event,
    anthropic_events,
    blocks,
    compact,
    identifier,
    message,
    openai_completion,
    openai_events,
)
from tests.standin_plan import EOLS, Answer, Headers, Scenario, ScenarioError, parse_scenario

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}

MODELS = ("claude-opus-4-7", "claude-sonnet-4-6", "claude-haiku-4-5")
OPENAI_MODELS = ("gpt-4o", "o3", "whisper-1")


CHAT_COMPLETIONS = "/v1/chat/completions"


@attrs.frozen(kw_only=True)
class Request:
    """A request as it came: the target raw, the headers in order and as written."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.target.partition("?")[2])

    def header(self, name: str) -> str | None:
        """The first value of a header, by its lower-case name."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return None

    def json(self) -> JSON:
        """The body as a JSON object; empty when it is none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


def scenario_of(request: Request) -> Scenario:
    """What the request asks the stand-in to do. Raises `ScenarioError`."""
    line = request.header("x-standin")
    if line is not None:
        return parse_scenario(line)
    model = request.json().get("model")
    found = SCENARIO_MODEL.match(model) if isinstance(model, str) else None
    return parse_scenario(found[1]) if found else Scenario()


SCENARIO_MODEL = re.compile(r"(?:claude-|gpt-)?standin-(.*)", re.DOTALL)
"""A scenario as a model, which a relay may have to know for one of either provider."""

STREAM_MEMBER = re.compile(rb'"stream":\s*(?:true|false)\s*,\s*|,\s*"stream":\s*(?:true|false)')


def seed(request: Request) -> bytes:
    """What ids are made of: the body without its ``stream``, as a message has the same id streamed and whole."""
    return STREAM_MEMBER.sub(b"", request.body, count=1)


def request_id(request: Request) -> str:
    """The id of the answer to this request."""
    return identifier("req", f"{request.method} {request.path}\n".encode() + seed(request))


def common_headers(request: Request) -> Headers:
    """What Anthropic's answers carry beside the body. The rate-limit headers are the ones that Claude Code reads."""
    return (
        ("Date", "Mon, 02 Nov 2026 10:00:00 GMT"),
        ("Server", "stand-in"),
        ("request-id", request_id(request)),
        ("anthropic-organization-id", "00000000-0000-4000-8000-000000000000"),
        ("anthropic-ratelimit-unified-status", "allowed_warning"),
        ("anthropic-ratelimit-unified-5h-utilization", "0.73"),
        ("anthropic-ratelimit-unified-5h-reset", "1793620800"),
        ("anthropic-ratelimit-requests-remaining", "49"),
        ("Vary", "Accept-Encoding"),
        ("Vary", "Origin"),
        ("Set-Cookie", "__cf_bm=one; HttpOnly; Path=/"),
        ("Set-Cookie", "_cfuvid=two; HttpOnly; Path=/"),
        ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
        ("X-Empty", ""),
    )


def json_answer(request: Request, value: object, *, status: int = 200, more: Headers = ()) -> Answer:
    """A value as a JSON answer."""
    headers = (("Content-Type", "application/json"), *common_headers(request), *more)
    return Answer(status=status, headers=headers, pieces=(compact(value).encode(),))


def openai_envelope(kind: str, text: str) -> JSON:
    """OpenAI's error body; what tells errors apart is the code."""
    return {"error": {"message": text, "type": "invalid_request_error", "param": None, "code": kind}}


def error_envelope(request: Request, status: int, kind: str, text: str) -> JSON:
    """Anthropic's error body."""
    return {"type": "error", "error": {"type": kind, "message": text}, "request_id": request_id(request)}


def error_answer(request: Request, scenario: Scenario) -> Answer:
    """An error of any status, with its retry headers."""
    status = scenario.status or 500
    kind = scenario.type or ERROR_TYPES.get(status, "api_error")
    more = []
    if scenario.retry_after:
        more.append(("retry-after", scenario.retry_after))
    if scenario.retry_after_ms:
        more.append(("retry-after-ms", scenario.retry_after_ms))
    if scenario.should_retry:
        more.append(("x-should-retry", scenario.should_retry))
    if scenario.body:
        headers = (("Content-Type", "text/html"), *common_headers(request), *more)
        return Answer(status=status, headers=headers, pieces=(scenario.body.encode(),))
    envelope = error_envelope(request, status, kind, scenario.message)
    if request.path == CHAT_COMPLETIONS:
        envelope = openai_envelope(scenario.type, scenario.message)
    return json_answer(request, envelope, status=status, more=tuple(more))


def dialect_of(scenario: Scenario) -> Dialect:
    """How the scenario wants its events written."""
    return Dialect(
        eol=EOLS[scenario.eol],
        comments=scenario.comments,
        ids=scenario.ids,
        retry=scenario.retry,
        unterminated=scenario.unterminated,
    )


def event_stream(request: Request, scenario: Scenario, events: Iterator[Event]) -> Answer:
    """Events as an answer that is written one event at a time."""

    def told() -> Iterator[Event]:
        for index, event in enumerate(events):
            if index == scenario.error_at:
                kind = scenario.type or "overloaded_error"
                if request.path == CHAT_COMPLETIONS:
                    yield None, compact(openai_envelope(kind, scenario.message))
                else:
                    yield "error", compact(error_envelope(request, 529, kind, scenario.message))
                return
            yield event
            if index == 0 and scenario.huge:
                yield "ping", compact({"type": "ping", "padding": "x" * scenario.huge})

    headers = (
        ("Content-Type", "text/event-stream; charset=utf-8"),
        ("Cache-Control", "no-cache"),
        *common_headers(request),
    )
    return Answer(headers=headers, pieces=dialect_of(scenario).encode(told()), stream=True)


def quoted_tool_result(body: JSON) -> str | None:
    """The contents of the tool results that the last message of a conversation brings, if it brings some."""
    messages = body.get("messages") or [{}]
    content = messages[-1].get("content")
    if not isinstance(content, list):
        return None
    results = [block for block in content if isinstance(block, dict) and block.get("type") == "tool_result"]
    return " and ".join(compact(block.get("content")) for block in results) or None


def quoted_tool_messages(body: JSON) -> str | None:
    """The same in OpenAI's shape: the messages of the role ``tool`` at the end, if there are some."""
    results: list[str] = []
    for turn in reversed(body.get("messages") or []):
        if turn.get("role") != "tool":
            break
        results.insert(0, compact(turn.get("content")))
    return " and ".join(results) or None


def corpus_answer(request: Request, name: str, *, stream: bool) -> Answer:
    """An entry of `tests.corpus`, its bytes as they stand there."""
    if name not in BY_NAME:
        raise ScenarioError(f"the corpus has no {name!r}")
    entry = BY_NAME[name]
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"
    pieces = tuple(part for part in re.split(rb"(?<=\n\n)", entry.stream) if part) if stream else (entry.expected,)
    return Answer(headers=(("Content-Type", kind), *common_headers(request)), pieces=pieces, stream=stream)


def failure_answer(request: Request, name: str, *, stream: bool) -> Answer:
    """A stream of `tests.corpus` that is no message; for who asks for none, the error that it amounts to."""
    found = next((failure for failure in FAILURES if failure.name == name), None)
    if found is None:
        raise ScenarioError(f"the corpus has no failure {name!r}")
    if not stream:
        error = {"type": found.error_type, "message": "Overloaded"}
        return json_answer(request, {"type": "error", "error": error}, status=found.status)
    headers = (("Content-Type", "text/event-stream; charset=utf-8"), *common_headers(request))
    return Answer(headers=headers, pieces=(found.stream,), stream=True)


def messages_answer(request: Request, scenario: Scenario) -> Answer:
    """``POST /v1/messages``: with tools offered, first a call of them and then an answer that quotes the result."""
    body = request.json()
    result = quoted_tool_result(body)
    say = scenario.say
    if result is not None:
        say = "text"
    elif say == "text" and body.get("tools"):
        say = "tools"
    model = str(body.get("model", "none"))
    stream = body.get("stream") is True and not scenario.whole
    if say.startswith("corpus/"):
        return corpus_answer(request, say.removeprefix("corpus/"), stream=stream)
    if say.startswith("failure/"):
        return failure_answer(request, say.removeprefix("failure/"), stream=stream)
    whole = message(say, count=scenario.count, model=model, message_id=identifier("msg", seed(request)))
    if result is not None:
        whole["content"] = [{"type": "text", "text": f"The tool said {result}.", "citations": None}]
    if stream:
        return event_stream(request, scenario, anthropic_events(whole, size=scenario.delta))
    return json_answer(request, whole)


def chat_answer(request: Request, scenario: Scenario) -> Answer:
    """``POST /v1/chat/completions``, in OpenAI's shape."""
    body = request.json()
    result = quoted_tool_messages(body)
    say = scenario.say
    if say == "text" and body.get("tools"):
        say = "tools"
    content, _ = blocks(say, scenario.count)
    if result is not None:
        content = [{"type": "text", "text": f"The tool said {result}."}]
    whole = openai_completion(
        content,
        count=scenario.count,
        model=str(body.get("model", "none")),
        completion_id=identifier("chatcmpl", request.body),
    )
    if body.get("stream") is True:
        options = body.get("stream_options") or {}
        events = openai_events(whole, size=scenario.delta, include_usage=options.get("include_usage") is True)
        return event_stream(request, scenario, events)
    return json_answer(request, whole, more=(("x-request-id", request_id(request)),))


def model_entry(name: str, *, openai: bool) -> JSON:
    """One model, in either API's shape."""
    if openai:
        return {"id": name, "object": "model", "created": 1_793_613_600, "owned_by": "stand-in"}
    return {"type": "model", "id": name, "display_name": name.title(), "created_at": "2026-11-02T10:00:00Z"}


def models_answer(request: Request, tail: str) -> Answer:
    """``GET /v1/models`` (paged by ``limit`` and ``after_id``) and ``/v1/models/{id}``."""
    # By the client, as a relay may add an Anthropic-Version to any request, and takes it from none.
    openai = "OpenAI" in (request.header("user-agent") or "") or request.header("anthropic-version") is None
    if tail:
        return json_answer(request, model_entry(tail, openai=openai))
    names = list(OPENAI_MODELS if openai else MODELS)
    after = request.query.get("after_id", [""])[0]
    if after in names:
        names = names[names.index(after) + 1 :]
    page = names[: int(request.query.get("limit", ["20"])[0])]
    data = [model_entry(name, openai=openai) for name in page]
    if openai:
        return json_answer(request, {"object": "list", "data": data})
    edges = {"first_id": page[0] if page else None, "last_id": page[-1] if page else None}
    return json_answer(request, {"data": data, "has_more": len(page) < len(names), **edges})


def file_entry(file_id: str, size: int) -> JSON:
    """An uploaded file's metadata."""
    return {
        "type": "file",
        "id": file_id,
        "filename": "upload.bin",
        "mime_type": "application/octet-stream",
        "size_bytes": size,
        "created_at": "2026-11-02T10:00:00Z",
        "downloadable": True,
    }


def file_content(file_id: str) -> bytes:
    """The content that a download of this file gives: 100,000 bytes of every value."""
    return (hashlib.sha256(file_id.encode()).digest() + bytes(range(256)))[:250] * 400


def uploaded_file(request: Request) -> bytes:
    """The content of the part of a multipart body that is a file; empty when there is none."""
    boundary = (request.header("content-type") or "").partition("boundary=")[2].strip('"')
    for part in request.body.split(b"--" + boundary.encode()):
        head, _, content = part.partition(b"\r\n\r\n")
        if b"filename=" in head:
            return content.removesuffix(b"\r\n")
    return b""


def files_answer(request: Request, tail: str) -> Answer:
    """``/v1/files``: upload (its id is made of the file's content), metadata, content, removal."""
    if request.method == "POST":
        payload = uploaded_file(request)
        return json_answer(request, file_entry(identifier("file", payload), len(payload)))
    file_id, _, rest = tail.partition("/")
    if request.method == "DELETE":
        return json_answer(request, {"id": file_id, "type": "file_deleted"})
    if rest == "content":
        headers = (("Content-Type", "application/octet-stream"), *common_headers(request))
        return Answer(headers=headers, pieces=(file_content(file_id),))
    return json_answer(request, file_entry(file_id, 100_000))


def batch_entry(request: Request, batch_id: str) -> JSON:
    """A message batch. Its `results_url` is absolute, as the API's is, and points where ``x-standin-base`` says."""
    base = request.header("x-standin-base") or f"http://{request.header('host')}"
    return {
        "id": batch_id,
        "type": "message_batch",
        "processing_status": "ended",
        "request_counts": {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 0},
        "created_at": "2026-11-02T10:00:00Z",
        "expires_at": "2026-11-03T10:00:00Z",
        "ended_at": "2026-11-02T10:01:00Z",
        "cancel_initiated_at": None,
        "archived_at": None,
        "results_url": f"{base}/v1/messages/batches/{batch_id}/results",
    }


def batches_answer(request: Request, scenario: Scenario, tail: str) -> Answer:
    """``/v1/messages/batches``, its results as JSON lines."""
    batch_id, _, rest = tail.partition("/")
    if rest != "results":
        return json_answer(request, batch_entry(request, batch_id or identifier("msgbatch", request.body)))
    results: list[JSON] = [
        {
            "type": "succeeded",
            "message": message(say, count=scenario.count, model=MODELS[0], message_id=identifier("msg", say.encode())),
        }
        for say in ("unicode", "tools")
    ]
    results.append({"type": "errored", "error": error_envelope(request, 400, "invalid_request_error", "No.")})
    lines = tuple(
        (compact({"custom_id": f"request-{number}", "result": result}) + "\n").encode()
        for number, result in enumerate(results)
    )
    headers = (("Content-Type", "application/x-jsonl"), *common_headers(request))
    return Answer(headers=headers, pieces=lines, stream=True)


def session_events(scenario: Scenario) -> Iterator[Event]:
    """A stream with a vocabulary of its own, which a GET asks for."""
    yield "session.status_running", compact({"type": "session.status_running", "id": "evt_0"})
    for number in range(scenario.count):
        content = [{"type": "text", "text": f"word{number} "}]
        yield "agent.message", compact({"type": "agent.message", "id": f"evt_{number + 1}", "content": content})
    yield "session.status_idle", compact({"type": "session.status_idle", "id": "evt_last"})


def echo_answer(request: Request) -> Answer:
    """What arrived: the method, the raw target, the headers in order, and the body's length and SHA-256."""
    value: dict[str, Any] = {
        "method": request.method,
        "target": request.target,
        "headers": [list(pair) for pair in request.headers],
        "body_length": len(request.body),
        "body_sha256": hashlib.sha256(request.body).hexdigest(),
    }
    return json_answer(request, value)


def by_path(request: Request, scenario: Scenario) -> Answer:
    """The plain answer to a request."""
    path = request.path
    if path == "/v1/messages" and request.method == "POST":
        return messages_answer(request, scenario)
    if path == "/v1/messages/count_tokens":
        return json_answer(request, {"input_tokens": len(request.body)})
    if path == CHAT_COMPLETIONS:
        return chat_answer(request, scenario)
    if path == "/v1/messages/batches" or path.startswith("/v1/messages/batches/"):
        return batches_answer(request, scenario, path.removeprefix("/v1/messages/batches").lstrip("/"))
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return models_answer(request, path.removeprefix("/v1/models").lstrip("/"))
    if path == "/v1/files" or path.startswith("/v1/files/"):
        return files_answer(request, path.removeprefix("/v1/files").lstrip("/"))
    if path.startswith("/v1/sessions/") and path.endswith("/events/stream"):
        return event_stream(request, scenario, session_events(scenario))
    return echo_answer(request)


BLOCK = bytes(range(256)) * 256


def byte_pieces(size: int) -> Iterator[bytes]:
    """`size` bytes, all values in turn, 64 KiB at a time."""
    for start in range(0, size, len(BLOCK)):
        yield BLOCK[: min(len(BLOCK), size - start)]


def answer(request: Request, scenario: Scenario) -> Answer:
    """The answer that `scenario` gives to `request`."""
    match scenario.name:
        case "error":
            found = error_answer(request, scenario)
        case "echo":
            found = echo_answer(request)
        case "message":
            found = messages_answer(request, scenario)
        case "empty":
            found = Answer(status=scenario.status or 204, headers=common_headers(request))
        case "redirect":
            more = (("Location", scenario.location or f"http://{request.header('host')}/v1/elsewhere"),)
            found = json_answer(request, {"moved": True}, status=scenario.status or 307, more=more)
        case "bytes":
            headers = (("Content-Type", "application/octet-stream"), *common_headers(request))
            stream = scenario.framing in ("chunked", "close")
            found = Answer(headers=headers, pieces=byte_pieces(scenario.size), stream=stream)
        case _:
            found = by_path(request, scenario)
    if scenario.status and scenario.name not in ("error", "empty", "redirect"):
        found = attrs.evolve(found, status=scenario.status)
    extra = [(name, value) for name, _, value in (line.partition(":") for line in scenario.header)]
    if scenario.cookie:
        extra.append(("Set-Cookie", scenario.cookie))
    return attrs.evolve(found, headers=(*found.headers, *extra))


def refusal(request: Request, error: ScenarioError) -> Answer:
    """The answer to a scenario that nobody can play: no test can take it for what it asked for."""
    return Answer(
        status=599,
        headers=(("Content-Type", "text/plain"),),
        pieces=(f"stand-in: {error} (in a {request.method} of {request.path})\n".encode(),),
    )
