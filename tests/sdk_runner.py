"""Drives the official Python SDKs, in a process of its own so that any installed version can be the one imported.

    python sdk_runner.py anthropic|openai

Each line of its input is a call, ``{"scenario": NAME, "base_url": …, "control_url": …, "arguments": {…}}``; each line
of its output that begins with ``RESULT `` is what that call showed: ``{"value": …}``, or ``{"raised": {…}}`` for an
error of the SDK, or ``{"crashed": …}`` for any other. `tests/node/run.mjs` is the same for Node.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import sys
import traceback
import urllib.request
from collections.abc import Callable
from typing import Any

JSON = dict[str, Any]

TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
]
QUESTION = [{"role": "user", "content": "How is the weather in Zürich? 🌦️"}]


def release(control_url: str, gate: str) -> None:
    """Open a gate of the stand-in."""
    request = urllib.request.Request(f"{control_url}/release?gate={gate}", method="POST")
    with urllib.request.urlopen(request, timeout=10) as response:
        response.read()


def described(error: BaseException) -> JSON:
    """What a program can see of an SDK's error."""
    return {
        "class": type(error).__name__,
        "family": [each.__name__ for each in type(error).__mro__],
        "status": getattr(error, "status_code", None),
        "type": getattr(error, "type", None),
        "request_id": getattr(error, "request_id", None),
        "body": getattr(error, "body", None),
    }


def plain(value: Any) -> Any:
    """A model of the SDK as the JSON that it came from."""
    return value.to_dict(mode="json")


def header_lines(headers: Any) -> list[list[str]]:
    """All headers of an answer, repeated ones apart."""
    return [[name.lower(), value] for name, value in headers.multi_items()]


class AnthropicScenarios:
    """What is done with ``anthropic``. A method is a scenario; its parameters are the call's arguments."""

    def __init__(self, base_url: str, control_url: str) -> None:
        import anthropic

        self.sdk = anthropic
        self.base_url = base_url
        self.control_url = control_url

    def client(self, *, retries: int = 0, timeout: float = 30, key: str = "sk-ant-stand-in") -> Any:
        return self.sdk.Anthropic(base_url=self.base_url, api_key=key, max_retries=retries, timeout=timeout)

    def async_client(self) -> Any:
        return self.sdk.AsyncAnthropic(base_url=self.base_url, api_key="sk-ant-stand-in", max_retries=0, timeout=30)

    @staticmethod
    def request(scenario: str, *, tools: bool = False) -> JSON:
        more: JSON = {"tools": TOOLS} if tools else {}
        return {"model": f"standin-{scenario}", "max_tokens": 1000, "messages": QUESTION, **more}

    def create(self, scenario: str, retries: int = 0, timeout: float = 30, more: JSON | None = None) -> JSON:
        """One message, not streamed; `more` are parameters beside the usual ones, as ``stream``."""
        with self.client(retries=retries, timeout=timeout) as client:
            message = client.messages.create(**self.request(scenario), **(more or {}))
            return {"message": plain(message), "request_id": message._request_id}

    def stream(self, scenario: str, retries: int = 0, timeout: float = 30) -> JSON:
        """One message, folded by the SDK out of its stream."""
        with self.client(retries=retries, timeout=timeout) as client:
            with client.messages.stream(**self.request(scenario)) as stream:
                events = [event.type for event in stream]
                message = stream.get_final_message()
            return {"events": events, "message": plain(message), "request_id": stream.request_id}

    def raw_events(self, scenario: str) -> JSON:
        """The events of a stream as the SDK parses them, one by one."""
        with self.client() as client, client.messages.create(**self.request(scenario), stream=True) as stream:
            return {"events": [plain(event) for event in stream]}

    def raw_response(self, scenario: str, stream: bool = False) -> JSON:
        """Status, headers and body of an answer below the parsing."""
        with self.client() as client:
            raw = client.messages.with_raw_response.create(**self.request(scenario), stream=stream)
            body = raw.http_response.read()
            return {
                "status": raw.http_response.status_code,
                "headers": header_lines(raw.headers),
                "length": len(body),
                "sha256": hashlib.sha256(body).hexdigest(),
            }

    def paced(self, scenario: str, gates: list[str]) -> JSON:
        """Reads an event, and only then lets the stand-in send the next."""
        seen = []
        with self.client() as client, client.messages.create(**self.request(scenario), stream=True) as stream:
            waiting = iter(gates)
            for event in stream:
                seen.append(event.type)
                gate = next(waiting, None)
                if gate is not None:
                    release(self.control_url, gate)
        return {"events": seen}

    def conversation(self, stream: bool) -> JSON:
        """A call of a tool, its result, and the answer to that."""
        messages: list[JSON] = list(QUESTION)
        replies = []
        with self.client() as client:
            for _ in range(4):
                request = {**self.request("auto", tools=True), "messages": messages}
                if stream:
                    with client.messages.stream(**request) as open_stream:
                        reply = open_stream.get_final_message()
                else:
                    reply = client.messages.create(**request)
                replies.append(plain(reply))
                if reply.stop_reason != "tool_use":
                    break
                calls = [block for block in plain(reply)["content"] if block["type"] == "tool_use"]
                results = [
                    {
                        "type": "tool_result",
                        "tool_use_id": call["id"],
                        "content": json.dumps(call["input"], ensure_ascii=False),
                    }
                    for call in calls
                ]
                messages += [{"role": "assistant", "content": calls}, {"role": "user", "content": results}]
        return {"replies": replies}

    def beta(self) -> JSON:
        """A call of the beta API, which has a header and a query of its own."""
        with self.client() as client:
            message = client.beta.messages.create(
                **self.request("auto"), betas=["context-1m-2025-08-07", "message-threads-2026-08-12"]
            )
            return {"message": plain(message)}

    def bearer(self) -> JSON:
        """The other kind of credential."""
        with self.sdk.Anthropic(base_url=self.base_url, auth_token="token-stand-in", max_retries=0) as client:
            return {"message": plain(client.messages.create(**self.request("auto")))}

    def count_tokens(self) -> JSON:
        with self.client() as client:
            return plain(client.messages.count_tokens(model="claude-opus-4-7", messages=QUESTION))  # type: ignore[no-any-return]

    def models(self) -> JSON:
        """The list, over pages, and one model."""
        with self.client() as client:
            return {
                "all": [plain(each) for each in client.models.list(limit=2)],
                "one": plain(client.models.retrieve("claude-opus-4-7")),
            }

    def files(self, size: int) -> JSON:
        """Upload (multipart), metadata, download, removal."""
        content = bytes(range(256)) * (size // 256)
        with self.client() as client:
            files = client.beta.files
            uploaded = files.upload(file=("upload.bin", io.BytesIO(content), "application/octet-stream"))
            downloaded = files.download(uploaded.id).read()
            return {
                "uploaded": plain(uploaded),
                "metadata": plain(files.retrieve_metadata(uploaded.id)),
                "download": [len(downloaded), hashlib.sha256(downloaded).hexdigest()],
                "deleted": plain(files.delete(uploaded.id)),
            }

    def batches(self) -> JSON:
        """A batch and its results, JSON lines that are read as they come."""
        with self.client() as client:
            made = client.messages.batches.create(
                requests=[{"custom_id": "request-0", "params": self.request("auto")}],
                extra_headers={"x-standin-base": self.base_url},
            )
            results = client.messages.batches.results(made.id, extra_headers={"x-standin-base": self.base_url})
            return {"made": plain(made), "results": [plain(each) for each in results]}

    def compressed_request(self) -> JSON:
        """A request whose body is compressed."""
        body = gzip.compress(json.dumps(self.request("auto")).encode(), mtime=0)
        with self.client() as client:
            headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
            options = {"headers": headers}
            return client.post("/v1/echo", cast_to=object, content=body, options=options)  # type: ignore[no-any-return]

    def leave(self, scenario: str, events: int) -> JSON:
        """Breaks out of a stream after so many events."""
        seen = []
        with self.client() as client, client.messages.stream(**self.request(scenario)) as stream:
            for event in stream:
                seen.append(event.type)
                if len(seen) == events:
                    break
        return {"events": seen}

    def many(self, scenario: str, count: int, gate: str) -> JSON:
        """So many streams that are all open at once: the gate is released when each has shown an event."""

        async def one(client: Any, number: int) -> str:
            request = {**self.request(scenario), "messages": [{"role": "user", "content": f"Stream {number}"}]}
            text = ""
            first = True
            async with client.messages.stream(**request) as stream:
                async for event in stream:
                    if first:
                        first = False
                        begun.append(number)
                        if len(begun) == count:
                            await asyncio.to_thread(release, self.control_url, gate)
                    if event.type == "text":
                        text += event.text
                final = await stream.get_final_message()
            return f"{final.id} {final.stop_reason} {text}"

        async def all_of_them() -> list[str]:
            async with self.async_client() as client:
                return await asyncio.gather(*(one(client, number) for number in range(count)))

        begun: list[int] = []
        return {"streams": asyncio.run(all_of_them())}

    def truncations(self, scenarios: list[str], stream: bool = True) -> JSON:
        """Which of these answers, all of them cut, were taken for a success."""

        async def one(client: Any, scenario: str) -> str | None:
            async with room:
                try:
                    if stream:
                        async with client.messages.stream(**self.request(scenario)) as opened:
                            await opened.get_final_message()
                    else:
                        await client.messages.create(**self.request(scenario))
                except Exception as error:  # noqa: BLE001 - what is told apart is only success and failure
                    raised.add(type(error).__name__)
                    return None
            return scenario

        async def all_of_them() -> list[str | None]:
            async with self.async_client() as client:
                return await asyncio.gather(*(one(client, each) for each in scenarios))

        raised: set[str] = set()
        room = asyncio.Semaphore(16)
        taken = asyncio.run(all_of_them())
        return {"successes": [each for each in taken if each is not None], "raised": sorted(raised)}


class OpenAIScenarios:
    """What is done with ``openai``."""

    def __init__(self, base_url: str, control_url: str) -> None:
        import openai

        self.sdk = openai
        self.base_url = base_url
        self.control_url = control_url

    def client(self, *, retries: int = 0) -> Any:
        return self.sdk.OpenAI(base_url=f"{self.base_url}/v1", api_key="sk-stand-in", max_retries=retries, timeout=30)

    @staticmethod
    def request(scenario: str, *, tools: bool = False) -> JSON:
        function = {"name": "get_weather", "parameters": TOOLS[0]["input_schema"]}
        more: JSON = {"tools": [{"type": "function", "function": function}]} if tools else {}
        return {"model": f"gpt-standin-{scenario}", "messages": QUESTION, **more}

    def create(self, scenario: str, tools: bool = False, retries: int = 0) -> JSON:
        """One completion, not streamed."""
        with self.client(retries=retries) as client:
            completion = client.chat.completions.create(**self.request(scenario, tools=tools))
            return {"completion": plain(completion), "request_id": completion._request_id}

    def stream(self, scenario: str, tools: bool = False, include_usage: bool = False) -> JSON:
        """The chunks of a completion."""
        more: JSON = {"stream_options": {"include_usage": True}} if include_usage else {}
        with self.client() as client:
            request = self.request(scenario, tools=tools)
            with client.chat.completions.create(**request, **more, stream=True) as stream:
                return {"chunks": [plain(chunk) for chunk in stream]}

    def models(self) -> JSON:
        with self.client() as client:
            return {
                "all": [plain(each) for each in client.models.list()],
                "one": plain(client.models.retrieve("claude-opus-4-7")),
            }

    def leave(self, scenario: str, events: int) -> JSON:
        """Closes a stream after so many chunks."""
        seen = 0
        with self.client() as client, client.chat.completions.create(**self.request(scenario), stream=True) as stream:
            for _ in stream:
                seen += 1
                if seen == events:
                    break
        return {"events": seen}


def main() -> None:
    """Answer calls until the input ends."""

    def tell(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    kind = sys.argv[1]
    module = __import__(kind)
    scenarios: Callable[[str, str], Any] = {"anthropic": AnthropicScenarios, "openai": OpenAIScenarios}[kind]
    tell(f"READY {module.__version__}")
    for line in sys.stdin:
        call = json.loads(line)
        player = scenarios(call["base_url"], call["control_url"])
        try:
            result = {"value": getattr(player, call["scenario"])(**call["arguments"])}
        except Exception as error:  # noqa: BLE001 - it is told, not swallowed
            if type(error).__module__.startswith(("anthropic", "openai", "httpx", "httpcore")):
                result = {"raised": described(error)}
            else:
                result = {"crashed": traceback.format_exc()}
        tell("RESULT " + json.dumps(result).replace(call["base_url"], "BASE"))


if __name__ == "__main__":
    main()
