"""Session, prompt, agent and kind of request, out of headers and body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_proxy.wire import claude_code, headers
from twisted_proxy.wire.claude_code import Origin, from_body, from_headers, from_recorded

SESSION = "0f0e0d0c-1111-4222-8333-944445555666"


def of_headers(**fields: str) -> Origin:
    """The origin of Claude Code's fields, named without their prefix."""
    values = {f"x-claude-code-{name.replace('_', '-')}".encode(): value.encode() for name, value in fields.items()}
    return from_headers(values.get)


def body(**members: Any) -> bytes:
    return json.dumps({"model": "claude-opus-5-5", **members, "messages": []}).encode()


class TestHeaders:
    """What is there at once."""

    def test_all(self) -> None:
        """Each field has its place."""
        assert of_headers(
            session_id=SESSION,
            prompt_id="prompt-1",
            agent_id="agent-2",
            parent_agent_id="agent-1",
            request_class="subagent",
            agent_type="Explore",
            context_compacted="manual",
        ) == Origin(
            session=SESSION,
            prompt="prompt-1",
            agent="agent-2",
            parent_agent="agent-1",
            request_class="subagent",
            agent_type="Explore",
            context_compacted="manual",
        )

    def test_none(self) -> None:
        """Nobody's request has no origin."""
        assert of_headers() == Origin()

    def test_the_other_prefix(self) -> None:
        """`x-claude-1p-request-class` says the same; where both are there, Claude Code's own counts."""
        fields = {b"x-claude-1p-request-class": b"main"}
        assert from_headers(fields.get).request_class == "main"
        fields[b"x-claude-code-request-class"] = b"auxiliary"
        assert from_headers(fields.get).request_class == "auxiliary"

    @pytest.mark.parametrize(
        ("sent", "kept"),
        [
            (b"  a b  ", "a b"),
            (b"caf\xc3\xa9-1", "caf-1"),
            (b"\x00\x1b[2J", "[2J"),
            (b"\xff\xfe", None),
            (b"", None),
            (b"x" * 5000, "x" * claude_code.MAX_ID_LENGTH),
        ],
    )
    def test_values_are_untrusted(self, sent: bytes, kept: str | None) -> None:
        """Printable ASCII is kept, and no more than a limit."""
        assert from_headers({b"x-claude-code-session-id": sent}.get).session == kept

    def test_as_recorded(self) -> None:
        """Recorded fields say the same as those that came; of several, the first counts."""
        fields = [
            (b"X-Claude-Code-Session-Id", b"one"),
            (b"x-claude-code-session-id", b"two"),
            (b"X-Claude-Code-Request-Class", b"main"),
        ]
        assert from_recorded(headers.recorded_request(fields)) == Origin(session="one", request_class="main")

    @given(st.lists(st.tuples(st.sampled_from(["session-id", "agent-id", "request-class"]), st.binary())))
    def test_any_values(self, fields: list[tuple[str, bytes]]) -> None:
        """Nothing raises, and what is kept is printable ASCII."""
        origin = from_headers({f"x-claude-code-{name}".encode(): value for name, value in fields}.get)
        for word in (origin.session, origin.agent, origin.request_class):
            assert word is None or (word.isascii() and word.isprintable())


class TestBody:
    """What comes later."""

    def test_user_id_as_an_object(self) -> None:
        """Since 2.1.247 it is JSON in a string."""
        user_id = json.dumps({"device_id": "d", "account_uuid": "a", "session_id": SESSION})
        assert from_body(body(metadata={"user_id": user_id})) == Origin(session=SESSION)

    def test_user_id_as_a_word(self) -> None:
        """Before, it was one word."""
        user_id = f"user_{'0' * 64}_account__session_{SESSION}"
        assert from_body(body(metadata={"user_id": user_id})) == Origin(session=SESSION)

    @pytest.mark.parametrize(
        "user_id", ["", "somebody", "{", "{}", '{"session_id": 5}', "user_1_account_2", 7, None, []]
    )
    def test_other_user_ids(self, user_id: object) -> None:
        """Everybody may put there what he likes."""
        assert from_body(body(metadata={"user_id": user_id})) == Origin()

    @pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null", b"\xff", b"[" * 5000, b'{"metadata":[1]}'])
    def test_no_body_of_claude_code(self, data: bytes) -> None:
        """What cannot be read says nothing."""
        assert from_body(data) == Origin()

    @given(st.binary())
    def test_any_bytes(self, data: bytes) -> None:
        """Nothing raises, wherever they stand."""
        for where in (data, b'{"metadata":' + data, b'{"metadata":{"user_id":' + data):
            from_body(where)


class TestBoth:
    """Headers and body together."""

    def test_headers_count_first(self) -> None:
        """The body fills in what they leave open."""
        of_body = Origin(session="b")
        assert Origin(session="h", prompt="x").merge(of_body) == Origin(session="h", prompt="x")
        assert Origin(prompt="x").merge(of_body) == Origin(session="b", prompt="x")
