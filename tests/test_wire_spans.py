"""Where members and elements stand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_proxy.wire.spans import MAX_ELEMENTS, MAX_MEMBERS, elements, members

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(), each, max_size=4),
    max_leaves=12,
)
SPELLINGS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{"separators": (",", ":")}, {}, {"indent": 1}, {"separators": (" ,\r\n\t", "\n: "), "ensure_ascii": False}]
)
SPACE = st.text(" \t\r\n", max_size=3)


@given(st.lists(st.tuples(st.text(), VALUES), max_size=5), SPELLINGS, SPACE, SPACE)
def test_members(pairs: list[tuple[str, Any]], spelling: dict[str, Any], before: str, after: str) -> None:
    """Each in order, those of one name too, with the place of the value and of nothing around it."""
    comma, colon = spelling.get("separators", (", ", ": "))
    object_ = comma.join(json.dumps(name) + colon + json.dumps(value, **spelling) for name, value in pairs)
    data = f"{before}{{{after}{object_}{before}}}{after}".encode()
    found = members(data)
    assert found is not None
    assert [name for name, _, _ in found] == [name for name, _ in pairs]
    for (_, start, end), (_, value) in zip(found, pairs, strict=True):
        assert data[start:end] == json.dumps(value, **spelling).encode()


@given(st.lists(VALUES, max_size=5), SPELLINGS, SPACE, st.binary(max_size=3), st.binary(max_size=3))
def test_elements(values: list[Any], spelling: dict[str, Any], space: str, before: bytes, after: bytes) -> None:
    """Each in order, in the middle of other data."""
    comma, _ = spelling.get("separators", (", ", ": "))
    array = f"{space}[{space}{comma.join(json.dumps(each, **spelling) for each in values)}{space}]{space}".encode()
    data = before + array + after
    found = elements(data, len(before), len(before) + len(array))
    assert found is not None
    assert [data[start:end] for start, end in found] == [json.dumps(each, **spelling).encode() for each in values]


@pytest.mark.parametrize(
    "data",
    [b"", b"1", b'"{}"', b"{", b"{}x", b'{"a":}', b'{"a":NaN}', b'{"a":"\\ud800"}', b"{'a':1}", b"[", b"[1,]", b"[1"],
)
def test_neither(data: bytes) -> None:
    """What is no JSON, or of another type, has neither."""
    assert members(data) is None
    assert elements(data) is None


def test_of_the_other_type() -> None:
    """An object has no elements, an array no members."""
    assert members(b"[]") is None
    assert elements(b"{}") is None


def test_strings_need_not_be_utf8() -> None:
    """They are not looked into."""
    assert members(b'{"a":"\xff"}') == [("a", 5, 8)]


def test_too_deep() -> None:
    """What the parser cannot follow has neither."""
    assert elements(b"[" * 5000 + b"]" * 5000) is None
    assert members(b'{"a":' * 5000 + b"1" + b"}" * 5000) is None


def test_too_many() -> None:
    """Exactly as many as are allowed, and no more."""
    pairs = [b'"a":1'] * MAX_MEMBERS
    assert len(members(b"{%b}" % b",".join(pairs)) or ()) == MAX_MEMBERS
    assert members(b"{%b}" % b",".join([*pairs, b'"b":1'])) is None
    values = [b"{}"] * MAX_ELEMENTS
    assert len(elements(b"[%b]" % b",".join(values)) or ()) == MAX_ELEMENTS
    assert elements(b"[%b]" % b",".join([*values, b"{}"])) is None


def test_a_large_array() -> None:
    """Of a megabyte and more, it must not have too many elements either, nor others than objects."""
    large = b'{"a":"%b"}' % (b"x" * 600_000)
    assert elements(b"[%b,%b]" % (large, large)) == [(1, 600_009), (600_010, 1_200_018)]
    assert elements(b"[%b,%b,1]" % (large, large)) is None
    assert elements(b"[%b]" % b",".join([b"{}"] * 1_000_000)) is None
