"""
A coding session through a real proxy: an upstream that tells prepared messages, and a client of Claude Code's shape.

The upstream keeps a prompt cache as the API does, block by block, so that what requests read, write and miss follows
from what they say.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import attrs

from tests.browser import KEY, recording
from tests.processes import Proxy
from tests.standin_messages import compact, message_events

Json = dict[str, Any]

FOLLOWS: Final = "This session is being continued from a previous conversation that ran out of context."
TOKEN: Final = 4
"""Characters of JSON that count as a token."""


def text(words: str) -> Json:
    """A block of text, as an answer has it."""
    return {"type": "text", "text": words, "citations": None}


def thinking(words: str) -> Json:
    return {"type": "thinking", "thinking": words, "signature": "c2lnbmF0dXJl" * 8}


def call(tool: str, call_id: str, **arguments: Any) -> Json:
    """A tool call."""
    return {"type": "tool_use", "id": call_id, "name": tool, "input": arguments}


def result(call_id: str, content: Any, *, is_error: bool = False) -> Json:
    """A tool's result."""
    return {
        "type": "tool_result",
        "tool_use_id": call_id,
        "content": content,
        **({"is_error": True} if is_error else {}),
    }


@attrs.frozen(kw_only=True)
class Told:
    """
    An answer.

    :ivar diagnostics: as the API's, of the prompt cache. :ivar output: its tokens; by default, of what it says.
    :ivar status: of an error, whose envelope is in `error`.
    :ivar before: seconds before its head. :ivar between: seconds between two events of a stream.
    :ivar gate: what is waited for before the event with the number `at`.
    """

    content: Sequence[Json] = ()
    stop_reason: str = "end_turn"
    diagnostics: Json | None = None
    output: int | None = None
    status: int = 200
    error: Json | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    before: float = 0
    between: float = 0
    gate: threading.Event | None = None
    at: int = 0


def blocks_of(body: Mapping[str, Any]) -> list[tuple[bytes, int]]:
    """What the cache reads of a request, block by block, each as a hash and its tokens; all markers left out."""
    parts: list[Any] = [*body.get("tools", ())]
    system = body.get("system", ())
    parts += [part for part in system if "x-anthropic-billing-header" not in part["text"]]
    for message in body["messages"]:
        content = message["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts += [{"role": message["role"], **block} for block in blocks]
    found = []
    for part in parts:
        data = compact({name: value for name, value in part.items() if name != "cache_control"}).encode()
        found.append((hashlib.blake2b(data, digest_size=16).digest(), max(1, len(data) // TOKEN)))
    return found


class PromptCache:
    """Prefixes by model. It forgets nothing."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()
        self._lock = threading.Lock()

    def usage(self, body: Mapping[str, Any]) -> Json:
        """What a request reads and writes; it is known from now on."""
        running = str(body["model"]).encode()
        read = written = 0
        with self._lock:
            for digest, tokens in blocks_of(body):
                running = hashlib.blake2b(running + digest, digest_size=16).digest()
                if running in self._known:
                    read += tokens
                else:
                    self._known.add(running)
                    written += tokens
        return {
            "input_tokens": 3,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
            "service_tier": "standard",
        }


class Teller:
    """
    The upstream. A context manager.

    Whoever asks prepares the answer under the ``x-client-request-id`` that he sends; who prepares none is told "Yes.".

    :ivar bodies: what came, in order: the bytes of each request, and its headers by their names in lower case.
    """

    def __init__(self) -> None:
        teller = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                teller.bodies.append((data, {name.lower(): value for name, value in self.headers.items()}))
                teller.tell(self, json.loads(data), self.headers.get("x-client-request-id", ""))

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.bodies: list[tuple[bytes, dict[str, str]]] = []
        self._cache = PromptCache()
        self._prepared: dict[str, Told] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Teller:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def prepare(self, client_request_id: str, told: Told) -> None:
        """Answer the request with this id so, each time that it comes."""
        self._prepared[client_request_id] = told

    def tell(self, handler: BaseHTTPRequestHandler, body: Json, client_request_id: str) -> None:
        told = self._prepared.get(client_request_id, Told(content=[text("Yes.")]))
        time.sleep(told.before)
        if told.error is not None:
            self._whole(handler, told, {"type": "error", "error": told.error})
            return
        seed = hashlib.sha256(f"{client_request_id}{compact(body)}".encode()).hexdigest()
        message = {
            "id": f"msg_01{seed[:22]}",
            "type": "message",
            "role": "assistant",
            "model": body["model"],
            "content": list(told.content),
            "stop_reason": told.stop_reason,
            "stop_sequence": None,
            **({"diagnostics": told.diagnostics} if "diagnostics" in body else {}),
            "usage": {
                **self._cache.usage(body),
                "output_tokens": told.output or len(compact(told.content)) // TOKEN,
            },
        }
        if body.get("stream") is not True:
            self._whole(handler, told, message)
            return
        self._head(handler, told, "text/event-stream; charset=utf-8", {"Transfer-Encoding": "chunked"})
        for number, event in enumerate(message_events(message, size=12)):
            if told.gate is not None and number == told.at:
                told.gate.wait(60)
            data = f"event: {event['type']}\ndata: {compact(event)}\n\n".encode()
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            time.sleep(told.between)
        handler.wfile.write(b"0\r\n\r\n")

    def _whole(self, handler: BaseHTTPRequestHandler, told: Told, value: Json) -> None:
        data = compact(value).encode()
        self._head(handler, told, "application/json", {"Content-Length": str(len(data))})
        handler.wfile.write(data)

    def _head(self, handler: BaseHTTPRequestHandler, told: Told, content_type: str, more: Mapping[str, str]) -> None:
        handler.send_response(told.status)
        for name, value in {"Content-Type": content_type, **more, **told.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()


def recording_proxy(directory: Path, teller: Teller, **settings: str) -> Proxy:
    """A proxy before it, which records. A context manager."""
    return Proxy(directory, **recording(directory, ANTHROPIC_FORWARD_URL=teller.url, **settings))


TOOLS: Final[tuple[Json, ...]] = tuple(
    {
        "name": name,
        "description": f"{what} " * 12,
        "input_schema": {"type": "object", "properties": {each: {"type": "string"} for each in arguments.split()}},
    }
    for name, what, arguments in (
        ("Bash", "Runs a command in a shell and returns what it writes.", "command description"),
        ("Edit", "Replaces text in a file, exactly and once.", "file_path old_string new_string"),
        ("Read", "Reads a file, with line numbers.", "file_path offset limit"),
        ("Grep", "Searches files for a pattern.", "pattern path"),
        ("Task", "Starts an agent with a task of its own.", "description prompt subagent_type"),
        ("TodoWrite", "Keeps the list of what is to be done.", "todos"),
    )
)
SYSTEM: Final = "You are an interactive agent that helps users with software engineering tasks. " * 40


@attrs.define(kw_only=True, eq=False)
class Agent:
    """
    One conversation of Claude Code, main or of a subagent: what it sends follows from what was said.

    :ivar session: its UUID. :ivar prompt: of the user's prompt that goes on. :ivar agent: a subagent's id.
    :ivar system: blocks of text. :ivar parameters: more members of the body.
    """

    proxy: Proxy
    teller: Teller
    session: str
    prompt: str
    model: str = "claude-opus-4-5"
    request_class: str = "main"
    agent: str | None = None
    parent: str | None = None
    agent_type: str | None = None
    system: list[str] = attrs.field(factory=lambda: ["You are Claude Code.", SYSTEM])
    tools: list[Json] = attrs.field(factory=lambda: list(TOOLS))
    messages: list[Json] = attrs.field(factory=list)
    parameters: Json = attrs.field(factory=lambda: {"thinking": {"type": "adaptive"}})
    _previous: str | None = None
    _count: int = 0

    def body(self) -> Json:
        """What it would send now: the marker on the last block, and a first block that is another each time."""
        self._count += 1
        billing = f"x-anthropic-billing-header: cc_version=2.1.330; cch={self._count:05x};"
        marker = {"cache_control": {"type": "ephemeral"}}
        *earlier, last = self.messages
        content = last["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return {
            "model": self.model,
            "messages": [*earlier, {**last, "content": [*blocks[:-1], {**blocks[-1], **marker}]}],
            "system": [
                {"type": "text", "text": billing},
                *({"type": "text", "text": words, **marker} for words in self.system),
            ],
            "tools": self.tools,
            "metadata": {"user_id": compact({"device_id": "0" * 64, "account_uuid": "", "session_id": self.session})},
            "max_tokens": 32000,
            **self.parameters,
            "diagnostics": {"previous_message_id": self._previous},
            "stream": True,
        }

    def headers(self) -> dict[str, str]:
        said = {
            "x-claude-code-session-id": self.session,
            "x-claude-code-prompt-id": self.prompt,
            "x-claude-code-request-class": self.request_class,
            "x-claude-code-agent-id": self.agent,
            "x-claude-code-parent-agent-id": self.parent,
            "x-claude-code-agent-type": self.agent_type,
        }
        return {
            "content-type": "application/json",
            "anthropic-version": "2023-06-01",
            "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
            "user-agent": "claude-cli/2.1.330 (external, cli)",
            "x-app": "cli",
            "x-api-key": KEY,
            **{name: value for name, value in said.items() if value is not None},
        }

    def ask(self, *content: Json | str, told: Told) -> str:
        """
        Say something, and take what is told.

        :return: the proxy's id of the request.
        """
        said: Any = content[0] if len(content) == 1 and isinstance(content[0], str) else list(content)
        self.messages.append({"role": "user", "content": said})
        return self.send(told)

    def send(self, told: Told) -> str:
        """The same without anything new: what was said before goes on, or is sent again."""
        request = str(uuid.uuid4())
        self.teller.prepare(request, told)
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.port, timeout=60)
        try:
            headers = {**self.headers(), "x-client-request-id": request}
            connection.request("POST", "/v1/messages?beta=true", compact(self.body()).encode(), headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        assert answer.status == told.status, data
        if told.error is None:
            self.messages.append({"role": "assistant", "content": list(told.content)})
            self._previous = json.loads(data.partition(b"data: ")[2].partition(b"\n")[0])["message"]["id"]
        return str(answer.headers["x-proxy-request-id"])
