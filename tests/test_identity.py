"""When messages are the same, and how far conversations are."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conversations import Session, dump
from twisted_proxy.record.identity import SIZE, chains_of

MARKER = {"cache_control": {"type": "ephemeral"}}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def user(content: object, **more: object) -> bytes:
    return dump({"role": "user", "content": content, **more})


def assistant(*content: object) -> bytes:
    return dump({"role": "assistant", "content": list(content)})


def is_same(first: bytes, second: bytes) -> bool:
    return chains_of([first]) == chains_of([second])


CALL = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1, "b": [1, 2]}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("x")]}

SAME = {
    "a string and a list of one text": (user("a"), user([text("a")])),
    "a marker": (user([text("a")]), user([{**text("a"), **MARKER}])),
    "a marker before the rest": (user([text("a")]), user([{**MARKER, **text("a")}])),
    "a marker on a string's list": (user("a"), user([{**text("a"), **MARKER}])),
    "a marker inside of a block": (user([RESULT]), user([{**RESULT, "content": [{**text("x"), **MARKER}]}])),
    "a marker of another kind": (user("a"), user([{**text("a"), "cache_control": {"type": "x", "ttl": ["1h"]}}])),
    "no marker": (user("a"), user([{**text("a"), "cache_control": None}])),
    "a marker on the message": (user("a"), user("a", **MARKER)),
    "a hundred markers": (user([text("a")] * 100), user([{**text("a"), **MARKER}] * 100)),
    "order": (user([CALL]), user([dict(reversed(CALL.items()))])),
    "order of the members": (user("a"), b'{"content":"a","role":"user"}'),
    "space": (user([CALL]), json.dumps({"role": "user", "content": [CALL]}, indent=2).encode()),
    "escapes": (user("é/\n"), b'{"role":"user","content":"\\u00e9\\/\\u000a"}'),
    "escaped names": (user("a"), b'{"r\\u006fle":"user","content":"a"}'),
    "a name twice": (user("a"), b'{"role":"user","content":"b","content":"a"}'),
    "an exponent": (b'{"role":"user","content":[1E5]}', b'{"role":"user","content":[1e+5]}'),
}

OTHER = {
    "role": (user("a"), assistant(text("a"))),
    "no role": (user("a"), b'{"content":"a"}'),
    "text": (user("a"), user("b")),
    "space in a text": (user("a"), user("a ")),
    "normal form": (user("\u00e9"), user("e\u0301")),
    "more blocks": (user("a"), user([text("a"), text("")])),
    "blocks' order": (user([text("a"), text("b")]), user([text("b"), text("a")])),
    "one text of two": (user([text("a"), text("b")]), user("ab")),
    "a text that is not plain": (user("a"), user([{**text("a"), "citations": []}])),
    "input": (user([CALL]), user([{**CALL, "input": {"a": 1, "b": [2, 1]}}])),
    "numbers and strings": (user([1]), user(["1"])),
    "null": (user([None]), user([False])),
    "nothing and null": (user([]), user([None])),
    "nothing said": (user([]), user("")),
    "nothing said by another": (user([]), assistant()),
    "a large integer": (user([2**64]), user([2**64 + 1])),
    "a very large integer": (user([int("1" + "0" * 400)]), user([int("1" + "0" * 399 + "1")])),
    "more digits than a double has": (b'{"content":[1.00000000000000001]}', b'{"content":[1.0]}'),
    "more than a double has": (b'{"content":[1e400]}', b'{"content":[1e401]}'),
    "OpenAI's members": (user("a", tool_call_id="call_1"), user("a", tool_call_id="call_2")),
    "calls": (user(None, tool_calls=[{"id": "1"}]), user(None, tool_calls=[{"id": "2"}])),
    "a block and a member": (user([{"name": "x"}]), user([], name="x")),
    "content that is no list": (user({"a": 1}), user([{"a": 1}])),
    "not JSON": (b'{"role":"user","content":"a"', b'{"role":"user","content":"b"'),
    "not JSON, in space": (b"NaN", b" NaN"),
    "no object": (b"[1]", b"[2]"),
    "a lone surrogate": (b'{"role":"user","content":"\\ud800"}', b'{"role":"user","content":"\\ud801"}'),
    "not UTF-8": (b'{"role":"user","content":"\xff"}', b'{"role":"user","content":"\xfe"}'),
    "too deep": (b"[" * 5000 + b"1" + b"]" * 5000, b"[" * 5000 + b"2" + b"]" * 5000),
    "too many digits": (b'{"content":[%b]}' % (b"9" * 5000), b'{"content":[%b]}' % (b"9" * 4999 + b"8")),
    "too large an exponent": (b'{"content":[1e99999999999999999999]}', b'{"content":[1e99999999999999999998]}'),
}


@pytest.mark.parametrize("pair", SAME.values(), ids=SAME)
def test_the_same(pair: tuple[bytes, bytes]) -> None:
    """What says the same is the same, however it is written."""
    assert is_same(*pair)


@pytest.mark.parametrize("pair", OTHER.values(), ids=OTHER)
def test_others(pair: tuple[bytes, bytes]) -> None:
    """What says something else is not; what cannot be read is what its bytes are."""
    assert not is_same(*pair)
    for message in pair:
        assert is_same(message, bytes(message))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3),
    max_leaves=8,
)


def shuffled(value: Any, order: random.Random) -> Any:
    """The same value with its members in another order."""
    if isinstance(value, list):
        return [shuffled(each, order) for each in value]
    if isinstance(value, dict):
        members = [(name, shuffled(each, order)) for name, each in value.items()]
        order.shuffle(members)
        return dict(members)
    return value


@given(
    st.dictionaries(st.sampled_from(["role", "content", "x"]) | st.text(max_size=3), VALUES, max_size=3),
    st.integers(0, 99),
)
def test_spelling(message: dict[str, Any], seed: int) -> None:
    """No other order, space or escape makes another message."""
    again = shuffled(message, random.Random(seed))
    assert is_same(dump(message), dump(again))
    assert is_same(dump(message), json.dumps(again, indent="\t").encode())


@given(st.binary())
def test_anything(data: bytes) -> None:
    """No message is refused."""
    (chain,) = chains_of([data])
    assert len(chain) == SIZE


class TestChains:
    def test_one_for_each_message(self) -> None:
        """Each covers all up to its message, so all are different, even if the messages are not."""
        messages = [user("a"), assistant(text("b")), user("a"), assistant(text("b"))]
        chains = chains_of(messages)
        assert len(set(chains)) == 4
        for length in range(4):
            assert chains_of(messages[:length]) == chains[:length]

    def test_order(self) -> None:
        """The same messages in another order are another conversation."""
        first, second = user("a"), assistant(text("b"))
        assert chains_of([first, second])[-1] != chains_of([second, first])[-1]

    def test_no_messages(self) -> None:
        """There is nothing to hash."""
        assert chains_of([]) == ()

    def test_the_next_request(self) -> None:
        """It goes on where the one before ended, although that has its marker on another block."""
        first = [user("a"), assistant(text("b")), user([{**text("c"), **MARKER}])]
        second = [user("a"), assistant(text("b")), user("c"), assistant(CALL), user([{**RESULT, **MARKER}])]
        assert chains_of(second)[:3] == chains_of(first)

    def test_merged_messages(self) -> None:
        """What came in several messages of one role may come in one."""
        first = [user("a"), assistant(text("b")), assistant(CALL), user([RESULT])]
        second = [user("a"), assistant(text("b"), CALL), user([RESULT])]
        assert chains_of(first)[-1] == chains_of(second)[-1]
        assert chains_of(first)[-2] == chains_of(second)[-2]

    def test_roles_are_not_merged(self) -> None:
        """Only of one role."""
        first = [user([text("a"), text("b")])]
        assert chains_of(first)[-1] != chains_of([user("a"), assistant(text("b"))])[-1]

    def test_tool_messages_are_not_merged(self) -> None:
        """OpenAI's results stay with the calls that they belong to."""
        one, two = ({"role": "tool", "tool_call_id": each} for each in ("1", "2"))
        first = [dump({**one, "content": "a"}), dump({**two, "content": "b"})]
        second = [dump({**one, "content": "b"}), dump({**two, "content": "a"})]
        assert chains_of(first)[-1] != chains_of(second)[-1]

    def test_a_session(self) -> None:
        """Each request of an agent's session goes on where the one before ended, and nowhere else."""
        chains = [chains_of([dump(each) for each in json.loads(body)["messages"]]) for body in Session(200).bodies(40)]
        for number, earlier in enumerate(chains):
            for later in chains[number + 1 :]:
                assert earlier[-1] in later
                assert later[-1] not in earlier

    def test_what_is_remembered_changes_nothing(self) -> None:
        """More messages than are remembered, asked for twice, in any order."""
        messages = [user([text(f"{number} " + "x" * 500_000)]) for number in range(80)]
        first = [chains_of([message]) for message in messages]
        assert [chains_of([message]) for message in reversed(messages)] == first[::-1]
        assert len(set(first)) == 80
