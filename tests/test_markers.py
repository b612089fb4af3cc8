"""Taking out markers, and where they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_proxy.record.markers import take_markers

MARKER = b'"cache_control":{"type":"ephemeral"}'


def restored(rest: bytes, taken: list[tuple[int, bytes]]) -> bytes:
    for at, marker in reversed(taken):
        rest = rest[:at] + marker + rest[at:]
    return rest


@pytest.mark.parametrize(
    ("body", "rest"),
    [
        (b"{}", b"{}"),
        (b"{%b}" % MARKER, b"{}"),
        (b'{"a":1,%b}' % MARKER, b'{"a":1}'),
        (b'{%b,"a":1}' % MARKER, b'{"a":1}'),
        (b'{"a":1,%b,"b":2}' % MARKER, b'{"a":1,"b":2}'),
        (b'{ %b ,\n"a":1}' % MARKER, b'{ "a":1}'),
        (b'{"a":1 ,\t%b }' % MARKER, b'{"a":1  }'),
        (b'{"a":1,"cache_control" :\n{ "type" : "ephemeral" , "ttl":"1h"} }', b'{"a":1 }'),
        (b'{"a":1,"cache_control":null}', b'{"a":1}'),
        (b'{"a":1,"cache_control":{}}', b'{"a":1}'),
        (b'{"a":1,"cache_control":{"a":"}","b":1}}', b'{"a":1}'),
        (b'[{%b},{"a":1,%b}]' % (MARKER, MARKER), b'[{},{"a":1}]'),
    ],
)
def test_taken(body: bytes, rest: bytes) -> None:
    """Wherever a marker stands, what is left is an object without it."""
    found, taken = take_markers(body)
    assert found == rest
    assert restored(found, taken) == body


@pytest.mark.parametrize(
    "body",
    [
        rb'{"a":",\"cache_control\":{\"type\":\"ephemeral\"}"}',
        b'["cache_control",{"a":"cache_control"}]',
        b'{"a":1,"cache_control":{"a":{}}}',
        b'{"a":1,"cache_control":[]}',
        b'{"a":1,"cache_control":"x"}',
        b'{"a":1,"cache_control":{"a":"\\""}}',
        b"%b" % MARKER,
        b"1 %b" % MARKER,
        b'{"a":1,%b"cache_control"%b:{}}' % (b" " * 100, b" " * 100),
    ],
)
def test_left(body: bytes) -> None:
    """What is something else, or nothing that the API knows, stays."""
    assert take_markers(body) == (body, [])


def test_as_many_as_may_be() -> None:
    """Those beyond 64 stay."""
    body = b",".join([b'{"a":1,%b}' % MARKER] * 100)
    rest, taken = take_markers(body)
    assert len(taken) == 64
    assert rest.count(MARKER) == 36
    assert restored(rest, taken) == body


NAMES = st.sampled_from(["a", "b", "cache_control"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.integers()
    | st.sampled_from(["", "cache_control", '","cache_control":{}', '{"cache_control":null}']),
    lambda each: (
        st.lists(each, max_size=4)
        | st.dictionaries(NAMES, each, max_size=4)
        | st.fixed_dictionaries({"cache_control": st.sampled_from([{"type": "ephemeral"}, {}, None])})
    ),
    max_leaves=10,
)


@given(VALUES, st.sampled_from([None, (",", ":"), (" , ", " : ")]), st.sampled_from([None, 2]))
def test_json_stays_json(value: Any, separators: tuple[str, str] | None, indent: int | None) -> None:
    """What is left of JSON is JSON, and can be put together again."""
    body = json.dumps(value, separators=separators, indent=indent).encode()
    rest, taken = take_markers(body)
    assert restored(rest, taken) == body
    assert without(json.loads(rest)) == without(value)


def without(value: Any) -> Any:
    """A value without markers."""
    if isinstance(value, dict):
        return {name: without(each) for name, each in value.items() if name != "cache_control"}
    return [without(each) for each in value] if isinstance(value, list) else value


@given(st.lists(st.sampled_from([MARKER, b'"cache_control"', b"{", b"}", b",", b":", b" ", b'"', b"null", b"x"])))
def test_anything(tokens: list[bytes]) -> None:
    """Whatever is taken of whatever it is, it can be put together again."""
    body = b"".join(tokens)
    assert restored(*take_markers(body)) == body
