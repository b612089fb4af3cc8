"""Requests that go to another provider, or ask another model, or come from a client of the other API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import LogEvent

from tests import corpus
from tests.memory import LAST_CHUNK, STREAM_HEAD, Answer, Client, InMemoryProxy, UpstreamPeer, captured, chunk
from tests.test_recording import FakeKeeper
from twisted_proxy.config import Match, ProviderConfig, RouteRule, SubagentConfig
from twisted_proxy.record.exchange import Role

OPENAI = "http://openai.test"
OPENAI_KEY = "sk-openai-of-the-proxy"
CLAUDE_KEY = "sk-ant-api03-of-the-client"
ASKED: dict[str, Any] = {
    "model": "gpt-4o",
    "max_tokens": 100,
    "messages": [{"role": "user", "content": "Hello"}],
}
TOOLS: list[Any] = [{"name": "add", "description": "Adds.", "input_schema": {"type": "object", "properties": {}}}]


def routed(**options: Any) -> InMemoryProxy:
    options.setdefault("openai", ProviderConfig(kind="openai", base_url=OPENAI, api_key=OPENAI_KEY))
    return InMemoryProxy(**options)


def demoted() -> InMemoryProxy:
    return routed(openai=ProviderConfig(kind="openai", base_url=OPENAI, api_key=OPENAI_KEY, demote_nonstreaming=True))


def failures(logs: list[LogEvent]) -> list[LogEvent]:
    """What was logged with a traceback."""
    return [event for event in logs if "log_failure" in event]


def ask(proxy: InMemoryProxy, path: str = "/v1/messages", *, headers: Any = (), **members: Any) -> Client:
    client = proxy.client()
    fields = list(headers) or [("X-Api-Key", CLAUDE_KEY), ("Anthropic-Version", "2023-06-01")]
    client.request(target=path, body=json.dumps({**ASKED, **members}).encode(), headers=fields)
    return client


def openai(proxy: InMemoryProxy, number: int = -1) -> UpstreamPeer:
    return proxy.others[OPENAI].peers[number]


def sent(peer: UpstreamPeer) -> tuple[str, dict[str, str], bytes]:
    """Request line, fields by lower-case name, and body of what an upstream was sent."""
    head, _, body = peer.written.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    return line, {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}, body


def respond(peer: UpstreamPeer, value: object, status: int = 200, more: bytes = b"") -> None:
    body = json.dumps(value).encode()
    peer.send(
        b"HTTP/1.1 %d Whatever\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b"
        % (status, len(body), more, body)
    )


def completion(**message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-2024-11-20",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
                "message": {"role": "assistant", "content": None, **message},
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 5,
            "total_tokens": 35,
            "prompt_tokens_details": {"cached_tokens": 10},
        },
    }


def data(value: object) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


def pieces(*deltas: dict[str, Any], finish: str = "stop") -> list[bytes]:
    """A chat completion's stream."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    usage = {"prompt_tokens": 30, "completion_tokens": 5, "total_tokens": 35}
    return [*map(data, chunks), data({**head, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]


def events(answer: Answer) -> list[tuple[str, Any]]:
    found = []
    for block in answer.body.decode().strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append(
            (lines.get("event", ""), lines["data"] if lines["data"] == "[DONE]" else json.loads(lines["data"]))
        )
    return found


class TestAnthropicClient:
    """Its models are another provider's."""

    def test_a_request_and_its_answer_are_translated(self) -> None:
        """Its path, its key and its body are the provider's; what comes back is a message."""
        proxy = routed()
        client = ask(proxy, "/v1/messages?beta=true", tools=TOOLS)
        line, fields, body = sent(openai(proxy))
        assert line == "POST /v1/chat/completions HTTP/1.1"
        assert fields["authorization"] == f"Bearer {OPENAI_KEY}"
        assert fields["host"] == "openai.test"
        assert CLAUDE_KEY.encode() not in openai(proxy).written
        assert "anthropic-version" not in fields
        asked = json.loads(body)
        assert (asked["model"], asked["max_completion_tokens"]) == ("gpt-4o", 100)
        respond(
            openai(proxy),
            completion(
                tool_calls=[
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "add", "arguments": '{"n": 18446744073709551617}'},
                    }
                ]
            ),
        )
        answer = client.answer()
        assert (answer.status, answer.outcome) == (200, "complete")
        assert answer.header("content-type") == "application/json"
        message = answer.json
        assert (message["type"], message["stop_reason"]) == ("message", "tool_use")
        assert message["content"][0]["input"] == {"n": 18446744073709551617}
        assert message["usage"]["input_tokens"] == 20
        assert message["usage"]["cache_read_input_tokens"] == 10
        assert not proxy.endpoint.peers

    def test_a_stream_comes_as_it_grows(self) -> None:
        """Each piece of text is an event of its own, at once."""
        proxy = routed()
        client = ask(proxy, stream=True)
        assert json.loads(sent(openai(proxy))[2])["stream_options"] == {"include_usage": True}
        first, second, *rest = pieces({"role": "assistant", "content": "Hel"}, {"content": "lo"})
        openai(proxy).send(STREAM_HEAD + chunk(first))
        assert b'"Hel"' in client.answer().body
        assert b'"lo"' not in client.answer().body
        openai(proxy).send(chunk(second))
        assert b'"lo"' in client.answer().body
        openai(proxy).send(b"".join(map(chunk, rest)) + LAST_CHUNK)
        answer = client.answer()
        assert answer.outcome == "complete"
        names = [name for name, _ in events(answer) if name != "ping"]
        assert names == [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert proxy.in_flight == 0

    def test_a_stream_that_is_cut_looks_like_it(self) -> None:
        """An error event, and no proper end."""
        proxy = routed()
        client = ask(proxy, stream=True)
        openai(proxy).send(STREAM_HEAD + chunk(pieces({"content": "Hel"})[0]))
        openai(proxy).reset()
        answer = client.answer()
        assert answer.outcome == "cut"
        assert events(answer)[-1][0] == "error"
        proxy.pump()
        assert proxy.in_flight == 0

    def test_a_stream_that_ends_too_early_looks_like_it(self) -> None:
        """Also where HTTP's end was proper."""
        proxy = routed()
        client = ask(proxy, stream=True)
        openai(proxy).send(STREAM_HEAD + chunk(pieces({"content": "Hel"})[0]) + LAST_CHUNK)
        assert client.answer().outcome == "cut"

    def test_a_stream_that_stays_open_behind_its_end_holds_nobody(self) -> None:
        """The client has its answer; the connection is closed a little later."""
        proxy = routed()
        client = ask(proxy, stream=True)
        openai(proxy).send(STREAM_HEAD + b"".join(map(chunk, pieces({"content": "Hel"}))))
        assert client.answer().outcome == "complete"
        assert openai(proxy).closed_by is None
        proxy.clock.advance(10)
        assert openai(proxy).closed_by is not None

    @pytest.mark.parametrize("last", [b"data: {nonsense\n\n", data({"error": {"message": "Overloaded", "code": 503}})])
    def test_a_stream_that_goes_wrong_is_not_read_on(self, last: bytes) -> None:
        """What a provider makes of it is billed, and for nobody."""
        proxy = routed()
        client = ask(proxy, stream=True)
        openai(proxy).send(STREAM_HEAD + chunk(pieces({"content": "Hel"})[0]) + chunk(last))
        answer = client.answer()
        assert answer.outcome == "cut"
        assert events(answer)[-1][0] == "error"
        assert openai(proxy).closed_by is not None
        proxy.pump()
        assert proxy.in_flight == 0

    def test_the_end_behind_a_stream_is_read_although_its_client_holds_back(self) -> None:
        """The connection to the provider is free for the next request."""
        proxy = routed()
        client = ask(proxy, stream=True)
        first, *rest = pieces({"content": "Hel"})
        openai(proxy).send(STREAM_HEAD + chunk(first))
        client.hold()
        openai(proxy).send(b"".join(map(chunk, rest)))
        assert not openai(proxy).paused
        openai(proxy).send(LAST_CHUNK)
        client.go_on()
        assert client.answer().outcome == "complete"
        ask(proxy)
        assert len(proxy.others[OPENAI].peers) == 1

    def test_a_client_that_leaves_stops_the_provider(self) -> None:
        """Tokens are billed until then."""
        proxy = routed()
        client = ask(proxy, stream=True)
        openai(proxy).send(STREAM_HEAD + chunk(pieces({"content": "Hel"})[0]))
        client.leave()
        assert openai(proxy).closed_by == "reset"
        assert proxy.in_flight == 0

    def test_a_slow_client_holds_the_provider_back(self) -> None:
        """Backpressure passes the translation."""
        proxy = routed()
        client = ask(proxy, stream=True)
        first, second, *rest = pieces({"content": "Hel"}, {"content": "lo"})
        openai(proxy).send(STREAM_HEAD + chunk(first))
        client.hold()
        assert openai(proxy).paused
        client.go_on()
        assert not openai(proxy).paused
        openai(proxy).send(chunk(second) + b"".join(map(chunk, rest)) + LAST_CHUNK)
        assert client.answer().outcome == "complete"

    def test_an_error_is_anthropics(self) -> None:
        """Its envelope, its type, its status, and when to come again."""
        proxy = routed()
        client = ask(proxy)
        error = {"error": {"message": "Slow down", "type": "requests", "code": "rate_limit_exceeded"}}
        respond(openai(proxy), error, 429, b"Retry-After: 7\r\n")
        answer = client.answer()
        assert (answer.status, answer.header("retry-after")) == (429, "7")
        assert answer.json["error"] == {"type": "rate_limit_error", "message": "Slow down"}
        assert answer.json["request_id"] == answer.header("x-proxy-request-id")

    def test_the_providers_id_of_the_request_is_where_the_sdk_looks_for_it(self) -> None:
        """Beside its own place, and ours."""
        proxy = routed()
        client = ask(proxy)
        respond(openai(proxy), completion(content="Hi"), more=b"X-Request-Id: req_openai\r\n")
        assert client.answer().header("request-id") == "req_openai"

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_providers_cookie_stays_away(self, stream: bool) -> None:
        """The client would send it to whoever its next request goes to."""
        proxy = routed()
        client = ask(proxy, stream=stream)
        if stream:
            openai(proxy).send(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n"))
            openai(proxy).send(b"".join(map(chunk, pieces({"content": "Hi"}))) + LAST_CHUNK)
        else:
            respond(openai(proxy), completion(content="Hi"), more=b"Set-Cookie: a=b\r\n")
        assert client.answer().outcome == "complete"
        assert client.answer().all("set-cookie") == []

    @pytest.mark.parametrize("said", [b"<html>", b"{}", b"[1]"])
    def test_an_answer_that_is_none_is_a_502(self, said: bytes, logs: list[LogEvent]) -> None:
        """In words, in the log too, with the connection let go."""
        proxy = routed()
        client = ask(proxy)
        openai(proxy).send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
        answer = client.answer()
        assert (answer.status, answer.json["error"]["type"]) == (502, "api_error")
        assert proxy.in_flight == 0
        (line,) = captured(logs, "forward_error")
        assert "kind=malformed" in line
        assert "status=502" in line

    def test_a_stream_that_was_asked_for_and_is_none_is_a_502(self) -> None:
        """Its body is not waited for."""
        proxy = routed()
        client = ask(proxy, stream=True)
        openai(proxy).send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n")
        assert client.answer().status == 502
        assert openai(proxy).closed_by is not None

    def test_a_provider_that_is_down_is_a_502(self) -> None:
        """In Anthropic's envelope."""
        proxy = routed(openai=ProviderConfig(kind="openai", base_url=OPENAI, max_retries=0))
        proxy.others[OPENAI].failures.append(ConnectionRefusedError())
        answer = ask(proxy).answer()
        assert (answer.status, answer.json["error"]["type"]) == (502, "api_error")

    @pytest.mark.parametrize(
        "members",
        [{"thread": {"type": "continue", "previous_message_id": "msg_1"}}, {"mcp_servers": [{"url": "http://x"}]}],
    )
    def test_what_cannot_be_translated_is_refused_in_words(self, members: Any) -> None:
        """Nothing is sent; a continued thread says so in the way that clients act upon."""
        proxy = routed()
        answer = ask(proxy, **members).answer()
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")
        if "thread" in members:
            assert answer.json["error"]["details"] == {"error_code": "thread_unsupported_request"}
        assert not proxy.others[OPENAI].peers

    def test_tokens_are_estimated_and_it_is_said_so(self) -> None:
        """No upstream is asked."""
        proxy = routed()
        answer = ask(proxy, "/v1/messages/count_tokens").answer()
        assert (answer.status, answer.header("x-proxy-estimated")) == (200, "true")
        assert answer.json["input_tokens"] > 0
        assert proxy.in_flight == 0

    def test_without_a_key_it_says_which_one(self) -> None:
        """The client's own is not for this provider, and does not go there."""
        rule = RouteRule(match=Match(model=("x-*",)), provider="openai")
        proxy = InMemoryProxy(routes=(rule,))
        answer = ask(proxy, model="x-1").answer()
        assert (answer.status, answer.json["error"]["type"]) == (401, "authentication_error")
        assert "OPENAI_API_KEY" in answer.json["error"]["message"]
        assert not any(endpoint.peers for endpoint in proxy.others.values())

    def test_without_a_stream_one_is_asked_for_where_that_is_configured(self) -> None:
        """Demotion: what cannot time out is folded into the one answer."""
        proxy = demoted()
        client = ask(proxy)
        assert json.loads(sent(openai(proxy))[2])["stream"] is True
        openai(proxy).send(STREAM_HEAD + b"".join(map(chunk, pieces({"content": "Hel"}, {"content": "lo"}))))
        answer = client.answer()
        assert answer.header("content-type") == "application/json"
        assert answer.json["content"] == [{"type": "text", "text": "Hello"}]

    def test_a_server_that_gives_no_stream_for_it_is_understood(self) -> None:
        """The client did not ask for one."""
        proxy = demoted()
        client = ask(proxy)
        respond(openai(proxy), completion(content="Hello"))
        assert client.answer().json["content"] == [{"type": "text", "text": "Hello"}]

    def test_a_client_that_leaves_a_folded_stream_is_not_answered(self, logs: list[LogEvent]) -> None:
        """The provider is stopped, and nobody tries to tell the rest."""
        proxy = demoted()
        client = ask(proxy)
        openai(proxy).send(STREAM_HEAD + chunk(pieces({"content": "Hel"})[0]))
        client.leave()
        assert openai(proxy).closed_by == "reset"
        assert proxy.in_flight == 0
        assert not failures(logs)

    def test_a_claude_model_goes_its_way_untouched(self) -> None:
        """Byte for byte, with the client's own key."""
        proxy = routed()
        body = b'{ "model" : "claude-x", "n": 1e400 }'
        client = proxy.client()
        client.request(body=body, headers=[("X-Api-Key", CLAUDE_KEY)])
        _, fields, told = sent(proxy.upstream)
        assert told == body
        assert fields["x-api-key"] == CLAUDE_KEY
        assert OPENAI_KEY.encode() not in proxy.upstream.written

    def test_both_sides_bytes_are_recorded(self) -> None:
        """What the client sent and got, what the provider was sent and said; and who was asked for what."""
        keeper = FakeKeeper()
        proxy = routed(keeper=keeper, routes=(RouteRule(match=Match(model=("claude-*",)), model="gpt-4o-mini"),))
        client = ask(proxy, model="claude-x", stream=True)
        openai(proxy).send(STREAM_HEAD + b"".join(map(chunk, pieces({"content": "Hi"}))) + LAST_CHUNK)
        tap = keeper.only
        assert json.loads(tap.bodies[Role.REQUEST])["model"] == "claude-x"
        assert tap.bodies[Role.FORWARDED] == sent(openai(proxy))[2]
        assert tap.bodies[Role.RECEIVED] == b"".join(pieces({"content": "Hi"}))
        assert tap.bodies[Role.ANSWER] == client.answer().body
        assert (tap.notes["provider"], tap.notes["routed_model"]) == ("openai", "gpt-4o-mini")

    def test_the_drains_end_is_told(self) -> None:
        """By an event in the middle of the translated stream."""
        proxy = routed(drain_timeout=5.0)
        client = ask(proxy, stream=True)
        openai(proxy).send(STREAM_HEAD + chunk(pieces({"content": "Hel"})[0]))
        proxy.service.stopService()
        proxy.clock.pump([1.0] * 6)
        assert events(client.answer())[-1][1]["error"]["type"] == "overloaded_error"


class TestRules:
    """Where the configuration says so."""

    def test_a_model_is_replaced_and_no_other_byte(self) -> None:
        """On the native path."""
        proxy = routed(routes=(RouteRule(match=Match(model=("claude-a",)), model="claude-b"),))
        client = proxy.client()
        client.request(body=b'{ "n" :1e400,"model": "claude-a" ,"x":"\\u00e4"}')
        assert sent(proxy.upstream)[2] == b'{ "n" :1e400,"model": "claude-b" ,"x":"\\u00e4"}'

    def test_a_refusal_says_why(self) -> None:
        """And nothing is sent."""
        proxy = routed(routes=(RouteRule(match=Match(model=("claude-*",)), refuse="Not in this house."),))
        answer = ask(proxy, model="claude-x").answer()
        assert (answer.status, answer.json["error"]) == (
            403,
            {"type": "permission_error", "message": "Not in this house."},
        )

    def test_a_model_that_cannot_be_replaced_is_not_asked_for(self) -> None:
        """A body that is encoded is not read: 400, and not the model that the rule does not want."""
        rule = RouteRule(match=Match(session=("s",)), model="claude-b")
        proxy = InMemoryProxy(routes=(rule,))
        client = proxy.client()
        client.request(body=b"\x1f\x8b", headers=[("Content-Encoding", "gzip"), ("X-Claude-Code-Session-Id", "s")])
        answer = client.answer()
        assert answer.status == 400
        assert "claude-b" in answer.json["error"]["message"]
        assert not proxy.endpoint.peers

    def test_a_rule_about_the_list_of_models_holds(self) -> None:
        """Also where lists would be joined."""
        proxy = routed(routes=(RouteRule(match=Match(path=("/v1/models",)), refuse="No lists."),))
        answer = models(proxy, ("X-Api-Key", CLAUDE_KEY)).answer("GET")
        assert (answer.status, answer.json["error"]["message"]) == (403, "No lists.")
        proxy = routed(routes=(RouteRule(match=Match(path=("/v1/models",)), provider="openai"),))
        models(proxy, ("X-Api-Key", CLAUDE_KEY))
        assert sent(openai(proxy))[0] == "GET /v1/models?limit=1000 HTTP/1.1"
        assert not proxy.endpoint.peers

    def test_a_key_of_an_anthropic_client_stays_away_from_others(self) -> None:
        """Also one that does not look like Anthropic's, on a path that a rule sends there as it is."""
        rule = RouteRule(match=Match(path=("/v1/files",)), provider="openai")
        proxy = routed(openai=ProviderConfig(kind="openai", base_url=OPENAI), routes=(rule,))
        for field in ("X-Api-Key", "Authorization"):
            client = proxy.client()
            client.request("GET", "/v1/files", None, [(field, "gateway-key"), ("Anthropic-Version", "2023-06-01")])
            assert b"gateway-key" not in openai(proxy).written

    def test_a_provider_of_its_own_gets_its_own_key(self) -> None:
        """And the client's goes nowhere; headers of the rule go along."""
        other = ProviderConfig(kind="anthropic", base_url="http://other.test/base", api_key="sk-ant-other")
        rule = RouteRule(match=Match(model=("claude-x",)), provider="other", headers={"x-team": "blue"})
        proxy = routed(other_providers={"other": other}, routes=(rule,))
        ask(proxy, model="claude-x")
        line, fields, _ = sent(proxy.others["http://other.test/base"].peers[0])
        assert line == "POST /base/v1/messages HTTP/1.1"
        assert (fields["x-api-key"], fields["x-team"]) == ("sk-ant-other", "blue")
        assert CLAUDE_KEY not in str(fields)

    def test_an_agent_goes_where_it_is_mapped_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Known by its prompt, wherever its block stands."""
        agents = tmp_path / ".claude" / "agents"
        agents.mkdir(parents=True)
        (agents / "reviewer.md").write_text("---\nname: code-reviewer\n---\nYou review code.\n")
        monkeypatch.chdir(tmp_path)
        proxy = routed(subagents=SubagentConfig(mappings={"code-reviewer": "gpt-4o"}))
        system = [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cc_is_subagent=true;"},
            {"type": "text", "text": "You are Claude Code."},
            {"type": "text", "text": "You review code.\n\nNotes:\n- today"},
        ]
        ask(proxy, model="claude-x", system=system)
        assert json.loads(sent(openai(proxy))[2])["model"] == "gpt-4o"
        ask(proxy, model="claude-x", system=system[:2])
        assert json.loads(sent(proxy.upstream)[2])["model"] == "claude-x"

    def test_a_mapping_that_no_agent_has_is_told_at_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[LogEvent]
    ) -> None:
        """With the places that were looked at."""
        monkeypatch.chdir(tmp_path)
        proxy = routed(subagents=SubagentConfig(mappings={"ghost": "gpt-4o"}))
        proxy.service.startService()
        (warning,) = [event["warning"] for event in logs if "warning" in event]
        assert "ghost" in warning
        assert str(tmp_path / ".claude" / "agents") in warning


BEARER = [("Authorization", f"Bearer {CLAUDE_KEY}")]
CHAT = "/v1/chat/completions"


class TestOpenAIClient:
    """It speaks chat completions, and asks for Claude."""

    def test_a_claude_model_is_asked_in_its_own_api(self) -> None:
        """With the client's key as Anthropic's, and a version; the answer is a chat completion."""
        proxy = InMemoryProxy()
        client = ask(proxy, CHAT, headers=BEARER, model="claude-x")
        line, fields, body = sent(proxy.upstream)
        assert line == "POST /v1/messages HTTP/1.1"
        assert fields["x-api-key"] == CLAUDE_KEY
        assert fields["anthropic-version"] == "2023-06-01"
        assert json.loads(body)["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
        message = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": "Hi"}], "stop_sequence": None,
            "usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 2},
        }  # fmt: skip
        respond(proxy.upstream, message)
        answer = client.answer().json
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"]["content"] == "Hi"
        assert answer["usage"]["prompt_tokens"] == 8

    @pytest.mark.parametrize("usage", [False, True])
    def test_a_stream_is_chunks(self, usage: bool) -> None:
        """Data alone, ``[DONE]`` at the end, and usage for who asked for it."""
        proxy = InMemoryProxy()
        more = {"stream_options": {"include_usage": True}} if usage else {}
        client = ask(proxy, CHAT, headers=BEARER, model="claude-x", stream=True, **more)
        stream = corpus.start() + corpus.block(0, corpus.TEXT_BLOCK) + corpus.text(0, "Hi") + corpus.stop(0)
        proxy.upstream.send(STREAM_HEAD + chunk(stream + corpus.end()) + LAST_CHUNK)
        answer = client.answer()
        assert answer.outcome == "complete"
        found = events(answer)
        assert {name for name, _ in found} == {""}
        assert found[-1][1] == "[DONE]"
        said = [each["choices"][0]["delta"].get("content") for _, each in found[:-1] if each["choices"]]
        assert "".join(filter(None, said)) == "Hi"
        assert any(each.get("usage") for _, each in found[:-1]) == usage

    def test_an_openai_model_goes_its_way_untouched(self) -> None:
        """Byte for byte, with the provider's key in the place of the client's."""
        proxy = routed()
        body = b'{ "model":"gpt-4o","n":1e400}'
        client = proxy.client()
        client.request(target=CHAT + "?x=1", body=body, headers=[("Authorization", "Bearer sk-client")])
        line, fields, told = sent(openai(proxy))
        assert (line, told) == ("POST /v1/chat/completions?x=1 HTTP/1.1", body)
        assert fields["authorization"] == f"Bearer {OPENAI_KEY}"
        assert "anthropic-version" not in fields
        openai(proxy).send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert client.answer().body == b"{}"

    def test_without_a_key_of_the_provider_the_clients_own_goes_there(self) -> None:
        """But none of Anthropic's."""
        proxy = routed(openai=ProviderConfig(kind="openai", base_url=OPENAI))
        ask(proxy, CHAT, headers=[("Authorization", "Bearer sk-client")])
        assert sent(openai(proxy))[1]["authorization"] == "Bearer sk-client"
        ask(proxy, CHAT, headers=BEARER)
        assert "authorization" not in sent(openai(proxy))[1]
        proxy = InMemoryProxy()
        assert ask(proxy, CHAT, headers=BEARER).answer().status == 401
        assert not any(endpoint.peers for endpoint in proxy.others.values())

    @pytest.mark.parametrize(
        ("fields", "members", "status"),
        [
            ([("Authorization", "Bearer sk-openai")], {"model": "claude-x"}, 401),
            (BEARER, {"model": "claude-x", "n": 2}, 400),
            (BEARER, {"model": "claude-x", "messages": 7}, 400),
        ],
    )
    def test_errors_of_ours_are_openais(self, fields: Any, members: Any, status: int) -> None:
        """In its envelope, and in words."""
        proxy = InMemoryProxy(anthropic_base_url="https://api.anthropic.com")
        answer = ask(proxy, CHAT, headers=fields, **members).answer()
        assert answer.status == status
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}

    def test_another_method_is_told_which_one(self) -> None:
        """405 names what would do."""
        client = InMemoryProxy().client()
        client.request("GET", CHAT, None, BEARER)
        answer = client.answer("GET")
        assert (answer.status, answer.header("allow")) == (405, "POST")
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}

    @pytest.mark.parametrize(
        ("sends", "status"),
        [
            (b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n", 413),
            (b"POST %b?a=1 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
            (b"POST %b HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
            (b"POST %b HTTP/1.1\nHost: x\n\n", 400),
            (b"POST %b HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
            (b"\r\nPOST %b HTTP/1.1\r\nHo", 408),
            (b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{", 408),
        ],
    )
    def test_refusals_of_what_is_not_routed_are_openais(self, sends: bytes, status: int) -> None:
        """As far as the path can be seen; and for other paths they stay Anthropic's."""
        for path, members in ((CHAT, {"message", "type", "param", "code"}), ("/v1/messages", {"type", "message"})):
            proxy = InMemoryProxy(max_body_bytes=1000, max_message_bytes=1000, read_timeout=5.0)
            client = proxy.client()
            client.send(sends.replace(b"%b", path.encode()))
            proxy.clock.advance(6)
            answer = client.answer()
            assert answer.status == status
            assert set(answer.json["error"]) == members

    def test_the_drains_end_while_it_sends_is_openais(self) -> None:
        """503, as its SDK knows it."""
        proxy = InMemoryProxy(drain_timeout=5.0)
        client = proxy.client()
        client.send(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{".encode())
        waiting = ask(proxy, CHAT, headers=BEARER, model="claude-x")
        proxy.service.stopService()
        proxy.clock.pump([1.0] * 6)
        for each in (client, waiting):
            assert (each.answer().status, each.answer().json["error"]["code"]) == (503, "overloaded")

    def test_errors_of_the_upstream_are_openais(self) -> None:
        """Translated, with when to come again."""
        proxy = InMemoryProxy()
        client = ask(proxy, CHAT, headers=BEARER, model="claude-x")
        error = {"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down"}}
        respond(proxy.upstream, error, 429, b"Retry-After: 7\r\n")
        answer = client.answer()
        assert (answer.status, answer.header("retry-after")) == (429, "7")
        assert answer.json["error"]["message"] == "Slow down"
        assert answer.json["error"]["code"] == "rate_limit_exceeded"

    def test_a_dead_upstream_is_told_in_its_envelope(self) -> None:
        """502."""
        proxy = InMemoryProxy(anthropic_max_retries=0)
        proxy.endpoint.failures.append(ConnectionRefusedError())
        answer = ask(proxy, CHAT, headers=BEARER, model="claude-x").answer()
        assert answer.status == 502
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}

    def test_the_drains_end_is_told_in_its_way(self) -> None:
        """A chunk with an error, and a cut."""
        proxy = InMemoryProxy(drain_timeout=5.0)
        client = ask(proxy, CHAT, headers=BEARER, model="claude-x", stream=True)
        proxy.upstream.send(STREAM_HEAD + chunk(corpus.start()))
        proxy.service.stopService()
        proxy.clock.pump([1.0] * 6)
        name, value = events(client.answer())[-1]
        assert name == ""
        assert "shutting down" in value["error"]["message"]


ANTHROPIC_MODELS = {
    "data": [{"type": "model", "id": "claude-x", "display_name": "Claude X", "created_at": "2025-01-01T00:00:00Z"}],
    "has_more": False,
    "first_id": "claude-x",
    "last_id": "claude-x",
}
OPENAI_MODELS = {
    "object": "list",
    "data": [
        {"id": "gpt-4o", "object": "model", "created": 1, "owned_by": "openai"},
        {"id": "whisper-1", "object": "model", "created": 1, "owned_by": "openai"},
    ],
}


def models(proxy: InMemoryProxy, *headers: tuple[str, str]) -> Client:
    client = proxy.client()
    client.request("GET", "/v1/models?limit=1000", body=None, headers=list(headers))
    return client


class TestModels:
    """One list."""

    def test_without_another_provider_it_passes_through(self) -> None:
        """Byte for byte."""
        proxy = InMemoryProxy()
        client = models(proxy, ("X-Api-Key", CLAUDE_KEY))
        assert sent(proxy.upstream)[0] == "GET /v1/models?limit=1000 HTTP/1.1"
        proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n{ }")
        assert client.answer("GET").body == b"{ }"

    def test_models_that_can_be_asked_for_are_added(self) -> None:
        """In Anthropic's shape; those that no request would reach are not."""
        proxy = routed()
        client = models(proxy, ("X-Api-Key", CLAUDE_KEY))
        respond(openai(proxy), OPENAI_MODELS)
        respond(proxy.upstream, ANTHROPIC_MODELS, more=b"Request-Id: req_up\r\n")
        answer = client.answer("GET")
        assert [model["id"] for model in answer.json["data"]] == ["claude-x", "gpt-4o"]
        assert answer.json["last_id"] == "gpt-4o"
        assert answer.header("request-id") == "req_up"
        assert CLAUDE_KEY.encode() not in openai(proxy).written
        assert OPENAI_KEY.encode() not in proxy.upstream.written

    def test_without_the_other_list_the_one_is_enough(self, logs: list[LogEvent]) -> None:
        """It is logged."""
        proxy = routed()
        client = models(proxy, ("X-Api-Key", CLAUDE_KEY))
        respond(openai(proxy), {"error": {"message": "no"}}, 500)
        respond(proxy.upstream, ANTHROPIC_MODELS)
        assert client.answer("GET").json == ANTHROPIC_MODELS
        assert any("models of" in event.get("log_format", "") for event in logs)

    def test_an_error_of_anthropics_is_the_answer(self) -> None:
        """With its status and its bytes."""
        proxy = routed()
        client = models(proxy, ("X-Api-Key", "wrong"), ("Anthropic-Version", "2023-06-01"))
        respond(openai(proxy), OPENAI_MODELS)
        error = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
        respond(proxy.upstream, error, 401)
        answer = client.answer("GET")
        assert (answer.status, answer.json) == (401, error)

    def test_the_other_list_is_not_waited_for_too_long(self, logs: list[LogEvent]) -> None:
        """A provider that hangs keeps nobody from Anthropic's models."""
        proxy = routed()
        client = models(proxy, ("X-Api-Key", CLAUDE_KEY))
        respond(proxy.upstream, ANTHROPIC_MODELS)
        proxy.clock.advance(5)
        assert client.answer("GET").outcome == "cut" or not client.written
        proxy.clock.advance(6)
        assert client.answer("GET").json == ANTHROPIC_MODELS
        assert openai(proxy).closed_by == "reset"
        assert any(event.get("why") == "it took more than 10 s" for event in logs)

    @pytest.mark.parametrize("drained", [False, True])
    def test_a_wait_for_the_other_list_can_be_ended(self, drained: bool, logs: list[LogEvent]) -> None:
        """By the client, or the drain; then nobody answers any more."""
        proxy = routed(drain_timeout=5.0)
        client = models(proxy, ("X-Api-Key", CLAUDE_KEY))
        respond(proxy.upstream, ANTHROPIC_MODELS)
        if drained:
            proxy.service.stopService()
            proxy.clock.pump([1.0] * 6)
            assert client.answer("GET").status == 529
        else:
            client.leave()
        assert openai(proxy).closed_by == "reset"
        assert proxy.in_flight == 0
        assert not failures(logs)

    def test_what_anthropic_said_is_recorded(self) -> None:
        """And what the client got; the two upstreams' bytes are not mixed."""
        keeper = FakeKeeper()
        proxy = routed(keeper=keeper)
        client = models(proxy, ("X-Api-Key", CLAUDE_KEY))
        respond(openai(proxy), OPENAI_MODELS)
        respond(proxy.upstream, ANTHROPIC_MODELS)
        assert json.loads(keeper.only.bodies[Role.RECEIVED]) == ANTHROPIC_MODELS
        assert keeper.only.bodies[Role.ANSWER] == client.answer("GET").body
        assert (keeper.only.notes["provider"], keeper.only.notes["status"]) == ("anthropic", 200)

    def test_errors_are_in_an_openai_clients_envelope(self) -> None:
        """Ours, and Anthropic's."""
        proxy = InMemoryProxy(anthropic_max_retries=0)
        proxy.endpoint.failures.append(ConnectionRefusedError())
        answer = models(proxy, *BEARER).answer("GET")
        assert (answer.status, set(answer.json["error"])) == (502, {"message", "type", "param", "code"})
        client = models(proxy, *BEARER)
        error = {"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}}
        respond(proxy.upstream, error, 401)
        answer = client.answer("GET")
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key")

    def test_a_key_for_another_server_is_not_sent_to_openai(self) -> None:
        """Where nobody has said anything of OpenAI, a key that is not Anthropic's is one of the server that is set."""
        proxy = InMemoryProxy()
        client = models(proxy, ("Authorization", "Bearer gateway-key"))
        assert sent(proxy.upstream)[1]["x-api-key"] == "gateway-key"
        respond(proxy.upstream, ANTHROPIC_MODELS)
        assert [model["id"] for model in client.answer("GET").json["data"]] == ["claude-x"]
        assert not any(endpoint.peers for endpoint in proxy.others.values())

    def test_an_openai_key_gets_openais_list(self) -> None:
        """Anthropic is not asked with it."""
        server = ProviderConfig(kind="openai", base_url=OPENAI)
        proxy = routed(anthropic_base_url="https://api.anthropic.com", openai=server)
        client = models(proxy, ("Authorization", "Bearer sk-openai"))
        assert sent(openai(proxy))[1]["authorization"] == "Bearer sk-openai"
        respond(openai(proxy), OPENAI_MODELS)
        assert [model["id"] for model in client.answer("GET").json["data"]] == ["gpt-4o", "whisper-1"]
        assert not proxy.endpoint.peers

    def test_an_openai_client_gets_its_own_shape(self) -> None:
        """All that it can ask for, with the key that it has."""
        proxy = routed()
        client = models(proxy, *BEARER)
        assert sent(proxy.upstream)[1]["x-api-key"] == CLAUDE_KEY
        respond(proxy.upstream, ANTHROPIC_MODELS)
        respond(openai(proxy), OPENAI_MODELS)
        answer = client.answer("GET").json
        assert answer["object"] == "list"
        assert [model["id"] for model in answer["data"]] == ["claude-x", "gpt-4o", "whisper-1"]

    def test_a_client_that_leaves_ends_both(self) -> None:
        """No connection stays."""
        proxy = routed()
        client = models(proxy, *BEARER)
        client.leave()
        assert proxy.upstream.closed_by == "reset"
        assert openai(proxy).closed_by == "reset"
        assert proxy.in_flight == 0


def model(proxy: InMemoryProxy, name: str, *headers: tuple[str, str]) -> Client:
    client = proxy.client()
    client.request("GET", f"/v1/models/{name}", body=None, headers=list(headers))
    return client


class TestOneModel:
    """It is asked of whom it would be asked for an answer."""

    def test_claude_for_an_openai_client(self) -> None:
        """In its shape, with its key as Anthropic takes it."""
        proxy = InMemoryProxy()
        client = model(proxy, "claude-x", *BEARER)
        line, fields, _ = sent(proxy.upstream)
        assert line == "GET /v1/models/claude-x HTTP/1.1"
        assert (fields["x-api-key"], fields["anthropic-version"]) == (CLAUDE_KEY, "2023-06-01")
        respond(proxy.upstream, ANTHROPIC_MODELS["data"][0])  # type: ignore[index]
        assert client.answer("GET").json == {
            "id": "claude-x",
            "object": "model",
            "created": 1735689600,
            "owned_by": "anthropic",
        }

    def test_openais_for_an_anthropic_client(self) -> None:
        """In its shape, with the provider's key."""
        proxy = routed()
        client = model(proxy, "gpt-4o", ("X-Api-Key", CLAUDE_KEY))
        assert sent(openai(proxy))[0] == "GET /v1/models/gpt-4o HTTP/1.1"
        assert CLAUDE_KEY.encode() not in openai(proxy).written
        respond(openai(proxy), {"id": "gpt-4o", "object": "model", "created": 0, "owned_by": "openai"})
        found = client.answer("GET").json
        assert (found["type"], found["id"], found["created_at"]) == ("model", "gpt-4o", "1970-01-01T00:00:00Z")

    def test_what_is_of_ones_own_is_left_alone(self) -> None:
        """OpenAI's for OpenAI's clients, Claude for Anthropic's."""
        proxy = routed()
        client = model(proxy, "gpt-4o", ("Authorization", "Bearer sk-client"))
        respond(openai(proxy), {"id": "gpt-4o", "more": [1]})
        assert client.answer("GET").json == {"id": "gpt-4o", "more": [1]}
        model(proxy, "claude-x", ("X-Api-Key", CLAUDE_KEY))
        assert sent(proxy.upstream)[0] == "GET /v1/models/claude-x HTTP/1.1"
        proxy = InMemoryProxy()
        model(proxy, "gpt-4o", ("X-Api-Key", CLAUDE_KEY))
        assert sent(proxy.upstream)[0] == "GET /v1/models/gpt-4o HTTP/1.1"

    def test_errors_are_the_clients(self) -> None:
        """And so is what makes no sense."""
        proxy = routed()
        client = model(proxy, "claude-x", *BEARER)
        respond(proxy.upstream, {"type": "error", "error": {"type": "not_found_error", "message": "No."}}, 404)
        answer = client.answer("GET")
        assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
        for said, status in (({"error": {"message": "No."}}, 404), ({}, 200), ([], 200)):
            client = model(proxy, "gpt-4o", ("X-Api-Key", CLAUDE_KEY))
            respond(openai(proxy), said, status)
            answer = client.answer("GET")
            assert answer.status == (status if status != 200 else 502)
            assert answer.json["type"] == "error"
