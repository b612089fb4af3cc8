"""How a recorded request is written into a file. What somebody said is never more than text there."""

from __future__ import annotations

import base64
import html
import json
import re
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import attrs

from ... import __version__
from ...record import coding
from ...record.exchange import Exchange, StoredBody
from . import shapes
from .calls import show_time

Json = dict[str, Any]

NOT_SENT_AGAIN = frozenset(
    {
        "accept-encoding",
        "authorization",
        "connection",
        "content-length",
        "cookie",
        "host",
        "transfer-encoding",
        "x-api-key",
    }
)
"""Fields of a request that whoever sends it again makes himself."""


@attrs.frozen(kw_only=True)
class Shown:
    """
    What there is to be written.

    :ivar message: the answer as one message, content coding undone.
    :ivar known: how many of the request's messages were written before, with the request that this one follows.
    """

    exchange: Exchange
    request: StoredBody | None
    answer: StoredBody | None
    message: bytes | None
    known: int = 0


@attrs.frozen(kw_only=True)
class Format:
    """One kind of file: ``entry`` is called for each request, with its place among them."""

    content_type: str
    extension: str
    entry: Callable[[Shown, int], bytes]
    begin: Callable[[], bytes] = lambda: b""
    end: Callable[[], bytes] = lambda: b""


def _plain(body: StoredBody) -> bytes:
    return coding.decode(body.data, body.content_encoding).data


def _as_text(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _as_json(data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


# curl


def _curl_begin() -> bytes:
    return (
        b"#!/bin/sh\n"
        b"# Requests as they were recorded, without credentials: set ANTHROPIC_API_KEY, or put another header there.\n"
        b': "${ANTHROPIC_BASE_URL:=https://api.anthropic.com}"\n'
    )


def _curl_entry(shown: Shown, index: int) -> bytes:
    exchange = shown.exchange
    target = exchange.path
    if exchange.query and "***" not in exchange.query:
        target += f"?{exchange.query}"
    lines = [
        f"\n# {exchange.id} {show_time(exchange.received_at)}",
        f'curl --no-buffer -X {shlex.quote(exchange.method)} "$ANTHROPIC_BASE_URL"{shlex.quote(target)} \\',
    ]
    lines += [
        f"  -H {shlex.quote(f'{name}: {value}')} \\"
        for name, value in exchange.request_headers
        if name not in NOT_SENT_AGAIN
    ]
    lines.append('  -H "x-api-key: $ANTHROPIC_API_KEY"')
    if shown.request is None:
        if exchange.request_bytes:
            lines.insert(1, "# Its body is not kept.")
        return "\n".join([*lines, ""]).encode("utf-8", "replace")
    text = _as_text(shown.request.data)
    lines[-1] += " \\"
    # Nothing that is in the body can end it.
    end = f"END_{secrets.token_hex(8)}"
    if text is not None and "\0" not in text:
        # The line end behind it is one byte more than was sent, which JSON does not mind.
        lines += [f"  --data-binary @- <<'{end}'", text, end, ""]
    else:
        encoded = base64.encodebytes(shown.request.data).decode("ascii").rstrip("\n")
        lines += [f"  --data-binary @<(base64 -d <<'{end}'", encoded, end, ")", ""]
        lines[1] = "# Its body is no text; this takes bash.\n" + lines[1]
    return "\n".join(lines).encode("utf-8", "replace")


# HAR 1.2, http://www.softwareishard.com/blog/har-12-spec/


def _har_begin() -> bytes:
    creator = json.dumps({"name": "claude-proxy", "version": __version__})
    return f'{{"log":{{"version":"1.2","creator":{creator},"pages":[],"entries":['.encode("ascii")


def _har_headers(fields: tuple[tuple[str, str], ...]) -> list[Json]:
    return [{"name": name, "value": value} for name, value in fields]


def _har_text(body: StoredBody) -> Json:
    data = _plain(body)
    text = _as_text(data)
    if text is not None:
        return {"text": text}
    return {"text": base64.b64encode(data).decode("ascii"), "encoding": "base64"}


def _har_entry(shown: Shown, index: int) -> bytes:
    exchange = shown.exchange
    query = [part.partition("=") for part in (exchange.query or "").split("&") if part]
    request: Json = {
        "method": exchange.method,
        "url": f"https://api.anthropic.com{exchange.path}{'?' + exchange.query if exchange.query else ''}",
        "httpVersion": "HTTP/1.1",
        "cookies": [],
        "headers": _har_headers(exchange.request_headers),
        "queryString": [{"name": name, "value": value} for name, _, value in query],
        "headersSize": -1,
        "bodySize": exchange.request_bytes,
    }
    if shown.request is not None:
        request["postData"] = {
            "mimeType": shown.request.content_type or "application/octet-stream",
            **_har_text(shown.request),
        }
    content: Json = {"size": 0, "mimeType": "x-unknown"}
    if shown.answer is not None:
        content = {
            "size": len(shown.answer.data),
            "mimeType": shown.answer.content_type or "application/octet-stream",
            **_har_text(shown.answer),
        }
    entry = {
        "startedDateTime": show_time(exchange.received_at),
        "time": (exchange.last_byte_us or 0) / 1000,
        "request": request,
        "response": {
            "status": exchange.status or 0,
            "statusText": "",
            "httpVersion": "HTTP/1.1",
            "cookies": [],
            "headers": _har_headers(exchange.response_headers),
            "content": content,
            "redirectURL": "",
            "headersSize": -1,
            "bodySize": exchange.response_bytes,
        },
        "cache": {},
        "timings": _har_timings(exchange),
        "comment": exchange.id,
    }
    return (b"," if index else b"") + json.dumps(entry, separators=(",", ":")).encode("ascii")


def _har_timings(exchange: Exchange) -> Json:
    """Milliseconds; what a proxy cannot know of its client is -1. They add up to ``time``."""
    points = [0, exchange.body_read_us, exchange.connected_us, exchange.headers_us, exchange.last_byte_us]
    known: list[int] = []
    for point in points:
        known.append(max(known[-1] if known else 0, point if point is not None else (known[-1] if known else 0)))
    send, connect, wait, receive = [round((end - begin) / 1000, 3) for begin, end in pairwise(known)]
    return {"blocked": connect, "dns": -1, "connect": -1, "ssl": -1, "send": send, "wait": wait, "receive": receive}


# JSON lines


def _jsonl_entry(shown: Shown, index: int) -> bytes:
    entry = shapes.detail(shown.exchange) | {
        "request": None if shown.request is None else _told(_plain(shown.request)),
        "answer": None if shown.message is None else _told(shown.message),
    }
    return json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n"


def _told(data: bytes) -> Any:
    """JSON as it is, text as a string, anything else in base64."""
    value = _as_json(data)
    if value is not None:
        return value
    text = _as_text(data)
    return text if text is not None else {"base64": base64.b64encode(data).decode("ascii")}


# For reading


@attrs.frozen
class _Part:
    """Something that was said: its title, and text, or code in a language."""

    title: str
    text: str
    code: str | None = None


def _conversation(shown: Shown) -> Iterator[tuple[str, list[_Part]]]:
    """Who said what."""
    asked = _as_json(None if shown.request is None else _plain(shown.request))
    if isinstance(asked, dict):
        if shown.known == 0 and "system" in asked:
            yield "System", list(_parts(asked["system"]))
        messages = asked.get("messages")
        for message in (messages if isinstance(messages, list) else [])[shown.known :]:
            if isinstance(message, dict):
                parts = [*_parts(message.get("content")), *_calls(message)]
                yield str(message.get("role", "")).capitalize() or "Message", parts
    elif shown.request is not None:
        yield "Request", [_Part("", (_as_text(_plain(shown.request)) or "(no text)"), "")]
    answered = _as_json(shown.message)
    if isinstance(answered, dict):
        choices = answered.get("choices")
        if isinstance(choices, list):
            inner = [each.get("message") for each in choices if isinstance(each, dict)]
            for message in inner:
                if isinstance(message, dict):
                    yield "Assistant (answer)", [*_parts(message.get("content")), *_calls(message)]
        elif "content" in answered:
            yield "Assistant (answer)", list(_parts(answered["content"]))
        else:
            yield "Answer", [_Part("", json.dumps(answered, indent=2, ensure_ascii=False), "json")]
    elif shown.message is not None:
        yield "Answer", [_Part("", _as_text(shown.message) or "(no text)", "")]


def _calls(message: Mapping[str, Any]) -> Iterator[_Part]:
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        yield _Part("Tool call", json.dumps(call, indent=2, ensure_ascii=False), "json")


def _parts(content: Any) -> Iterator[_Part]:
    if isinstance(content, str):
        yield _Part("", content)
        return
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        kind = block.get("type")
        if kind == "text":
            yield _Part("", str(block.get("text", "")))
        elif kind == "thinking":
            yield _Part("Thinking", str(block.get("thinking", "")))
        elif kind in ("tool_use", "server_tool_use"):
            value = json.dumps(block.get("input"), indent=2, ensure_ascii=False)
            yield _Part(f"Tool: {block.get('name', '')}", value, "json")
        elif kind == "tool_result":
            inner = block.get("content")
            title = "Tool failed" if block.get("is_error") is True else "Tool result"
            for part in _parts(inner):
                yield _Part(title if not part.title else f"{title}: {part.title}", part.text, part.code or "")
        else:
            source = block.get("source")
            data = source.get("data") if isinstance(source, dict) else None
            if isinstance(source, dict) and isinstance(data, str):
                yield _Part(f"{kind}", f"({source.get('media_type', 'data')}, {len(data)} characters of base64)")
            else:
                yield _Part(f"{kind}", json.dumps(block, indent=2, ensure_ascii=False), "json")


def _facts(exchange: Exchange) -> list[tuple[str, str]]:
    model = exchange.routed_model or exchange.model or "-"
    if exchange.model and exchange.routed_model:
        model = f"{exchange.routed_model} (asked for as {exchange.model})"
    facts = [
        ("Time", show_time(exchange.received_at)),
        ("Request", f"{exchange.method} {exchange.path}"),
        ("Model", model),
        ("Result", f"{exchange.status or '-'}, {exchange.verdict or 'in flight'}"),
    ]
    if exchange.output_tokens is not None:
        written = (exchange.cache_write_5m_tokens or 0) + (exchange.cache_write_1h_tokens or 0)
        facts.append(
            (
                "Tokens",
                f"{exchange.input_tokens} in, {exchange.output_tokens} out, "
                f"{exchange.cache_read_tokens or 0} read from the cache, {written} written to it",
            )
        )
    if exchange.cost_nanousd is not None:
        facts.append(("Cost", f"{'at least ' if exchange.cost_is_partial else ''}${exchange.cost_nanousd / 1e9:.4f}"))
    for name, value in (("Session", exchange.session), ("Agent", exchange.agent)):
        if value is not None:
            facts.append((name, value))
    if exchange.error_type is not None:
        facts.append(("Error", f"{exchange.error_type}: {exchange.error_message or ''}"))
    if exchange.last_byte_us is not None:
        facts.append(("Time taken", f"{exchange.last_byte_us / 1e6:.2f} s"))
    return facts


_TICKS = re.compile("`+")
_CODE_CHARACTERS = re.compile(r"[`|\\<>\n\r]")


def _markdown_entry(shown: Shown, index: int) -> bytes:
    lines = [f"# {shown.exchange.id}", ""]
    lines += [f"- {name}: {_CODE_CHARACTERS.sub(' ', value)}" for name, value in _facts(shown.exchange)]
    lines.append("")
    for who, parts in _conversation(shown):
        lines += [f"## {_CODE_CHARACTERS.sub(' ', who)}", ""]
        for part in parts:
            if part.title:
                lines += [f"**{_CODE_CHARACTERS.sub(' ', part.title)}**", ""]
            if part.code is None:
                lines += [part.text, ""]
            else:
                fence = "`" * max(3, 1 + max([len(each) for each in _TICKS.findall(part.text)], default=0))
                lines += [f"{fence}{part.code}", part.text, fence, ""]
    return "\n".join([*lines, ""]).encode("utf-8", "replace")


_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0}"
    "section{border-left:3px solid #8888;padding-left:1rem;margin:1.5rem 0}"
    "h3{margin:.8rem 0 0;font-size:.9rem;opacity:.7}dl{display:grid;grid-template-columns:max-content 1fr;gap:0 1rem}"
    "dd{margin:0;overflow-wrap:anywhere}.code{font-family:ui-monospace,monospace;font-size:.85rem}"
)


def _html_begin() -> bytes:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>claude-proxy</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    ).encode("ascii")


def _html_entry(shown: Shown, index: int) -> bytes:
    pieces = [f"<article>\n<h1>{html.escape(shown.exchange.id)}</h1>\n<dl>"]
    pieces += [f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in _facts(shown.exchange)]
    pieces.append("</dl>\n")
    for who, parts in _conversation(shown):
        pieces.append(f"<section>\n<h2>{html.escape(who)}</h2>\n")
        for part in parts:
            if part.title:
                pieces.append(f"<h3>{html.escape(part.title)}</h3>\n")
            kind = "" if part.code is None else ' class="code"'
            pieces.append(f"<pre{kind}>{html.escape(part.text)}</pre>\n")
        pieces.append("</section>\n")
    pieces.append("</article>\n")
    return "".join(pieces).encode("utf-8", "replace")


FORMATS: Mapping[str, Format] = {
    "curl": Format(
        content_type="text/x-shellscript; charset=utf-8", extension="sh", begin=_curl_begin, entry=_curl_entry
    ),
    "har": Format(
        content_type="application/json",
        extension="har",
        begin=_har_begin,
        entry=_har_entry,
        end=lambda: b"]}}\n",
    ),
    "jsonl": Format(content_type="application/x-ndjson", extension="jsonl", entry=_jsonl_entry),
    "markdown": Format(content_type="text/markdown; charset=utf-8", extension="md", entry=_markdown_entry),
    "html": Format(
        content_type="text/html; charset=utf-8",
        extension="html",
        begin=_html_begin,
        entry=_html_entry,
        end=lambda: b"</body>\n</html>\n",
    ),
}
