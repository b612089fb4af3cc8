"""Top-level members of a JSON body as raw bytes."""

from __future__ import annotations

import json
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from twisted_proxy.wire.body import MAX_MODEL_LENGTH, Summary, get_member, peek, replace_member

DEEP = b"[" * 100_000 + b"]" * 100_000

NOT_AN_OBJECT = [
    b"",
    b" ",
    b"null",
    b"true",
    b"12",
    b'"stream"',
    b"[]",
    b'[{"stream":false}]',
    b"{",
    b"}",
    b'{"stream"',
    b'{"stream":',
    b'{"stream":false',
    b'{"stream":false,',
    b'{"stream":false,}',
    b'{,"stream":false}',
    b'{"stream" false}',
    b"{stream:false}",
    b"{'stream':false}",
    b'{"stream":False}',
    b'{"stream":false}{}',
    b'{"stream":false} x',
    b'{"stream":false}\0',
    b'{"stream":false,"x":01}',
    b'{"stream":false,"x":1.}',
    b'{"stream":false,"x":.1}',
    b'{"stream":false,"x":+1}',
    b'{"stream":false,"x":-}',
    b'{"stream":false,"x":1e}',
    b'{"stream":false,"x":NaN}',
    b'{"stream":false,"x":[-Infinity]}',
    b'{"stream":false,"x":[1,]}',
    b'{"stream":false,"x":[}]}',
    b'{"stream":false,"x":{"y" 1}}',
    b'{"stream":false,"x":"\n"}',
    b'{"stream":false,"x":["\x01"]}',
    b'{"stream":false,"x":"\\q"}',
    b'{"stream":false,"x":["\\u12"]}',
    b'{"stream":false,"x":"\\ud800"}',
    b'{"stream":false,"x":"\xff"}',
    b'{"stream":false,"x":["\xc3"]}',
    b'{"stream":false,"x":{"\xff":1}}',
    b'{"stream":false,"\xff":1}',
    b'{"stream":false,"x":"\xed\xa0\x80"}',
    b'{"stream":false,"x":"' + b"a" * 16383 + b'\xc3"}',
    b'\xef\xbb\xbf{"stream":false}',
    '{"stream":false}'.encode("utf-16"),
    b'{"stream":false,"x":' + DEEP + b"}",
    b'{"stream":false,"x":' + DEEP[:100_000],
    b'{"stream":false,"x":' + b'{"a":' * 100_000,
    DEEP,
    b'{"stream":false,' + b",".join(b'"%d":0' % i for i in range(2000)) + b"}",
]


class TestReplaceMember:
    """One member is set, and every other byte stays."""

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b"{}", b'{"stream":true}'),
            (b" { } \n", b' {"stream":true } \n'),
            (b'{"a":1}', b'{"stream":true,"a":1}'),
            (b'\t{\r\n  "a": 1\n}', b'\t{"stream":true,\r\n  "a": 1\n}'),
            (b'{"stream":false}', b'{"stream":true}'),
            (b'{"stream":null}', b'{"stream":true}'),
            (b'{"stream":1e400}', b'{"stream":true}'),
            (b'{"stream":""}', b'{"stream":true}'),
            (b'{"stream":[{"}":"]"}]}', b'{"stream":true}'),
            (b'{"stream":true}', b'{"stream":true}'),
            (b'{ "stream" : false , "a" : 1 }', b'{ "stream" : true , "a" : 1 }'),
            (b'{"a":1,"stream":false}', b'{"a":1,"stream":true}'),
            (b'{"a":1,"stream":false\n}\n', b'{"a":1,"stream":true\n}\n'),
            # several times, in every spelling
            (b'{"stream":false,"stream":true}', b'{"stream":true,"stream":true}'),
            (b'{"stream":[1],"a":0,"stream":[1,2]}', b'{"stream":true,"a":0,"stream":true}'),
            (b'{"stream":12,"stream":123,"stream":12}', b'{"stream":true,"stream":true,"stream":true}'),
            (b'{"a":1,"str\\u0065am":false}', b'{"a":1,"str\\u0065am":true}'),
            (b'{"\\u0073\\u0074ream":0,"stream":1}', b'{"\\u0073\\u0074ream":true,"stream":true}'),
            # another member that comes twice
            (
                b'{"a":{"b":1,"stream":0},"a":12345678,"stream":0}',
                b'{"a":{"b":1,"stream":0},"a":12345678,"stream":true}',
            ),
            (b'{"a":1,"a":{"stream":0}}', b'{"stream":true,"a":1,"a":{"stream":0}}'),
            # not this member
            (b'{"a":{"stream":false}}', b'{"stream":true,"a":{"stream":false}}'),
            (
                b'{"a":"stream","Stream":0,"stream ":0,"":0}',
                b'{"stream":true,"a":"stream","Stream":0,"stream ":0,"":0}',
            ),
            (b'{"a":"\\"stream\\":false"}', b'{"stream":true,"a":"\\"stream\\":false"}'),
            (b'{"a\\\\":"\\\\","b\\"":"}","stream":0}', b'{"a\\\\":"\\\\","b\\"":"}","stream":true}'),
        ],
    )
    def test_table(self, body: bytes, expected: bytes) -> None:
        """Where it stands, in every form; where it does not, in front."""
        assert replace_member(body, "stream", b"true") == expected

    def test_spelling_of_everything_else(self) -> None:
        """What no parser gives back: numbers, escapes, white space, nested duplicates, the order of keys."""
        rest = (
            b'"z":1.0,"a":1e400,"n":[18446744073709551617,-0,1E+2,0.10],"d":{"k":1,"k":2},'
            b'"e":"\\u00e9\\/\\b\xc3\xa9\\ud83d\\ude00\xf0\x9f\x98\x80\x7f", "w" : [ 1 ,\r\n\t2 ]'
        )
        assert replace_member(b'{"stream":false,' + rest + b"}", "stream", b"true") == b'{"stream":true,' + rest + b"}"
        assert replace_member(b"{" + rest + b"}", "stream", b"true") == b'{"stream":true,' + rest + b"}"

    @pytest.mark.parametrize("body", NOT_AN_OBJECT, ids=lambda body: repr(body[:40]))
    def test_what_is_no_object_is_left_alone(self, body: bytes) -> None:
        """The API refuses it, and says why; nothing is changed, nothing is raised, at any depth."""
        assert replace_member(body, "stream", b"true") is None
        assert get_member(body, "stream") is None

    def test_nesting_of_a_few_hundred_levels(self) -> None:
        """Deep, but not beyond what the API takes: rewritten."""
        deep = b"[" * 300 + b"]" * 300
        assert replace_member(b'{"x":' + deep + b"}", "stream", b"true") == b'{"stream":true,"x":' + deep + b"}"

    @pytest.mark.parametrize("name", ["model", "ключ", 'a"b\\c\n', ""])
    def test_any_name(self, name: str) -> None:
        """A name is text; how it is written in JSON is not the caller's business."""
        body = replace_member(b'{"a":1}', name, b'"new"')
        assert body is not None
        assert json.loads(body) == {name: "new", "a": 1}
        assert replace_member(body, name, b'"new"') == body

    def test_no_copy_of_values(self) -> None:
        """Beside the result, a body of 8 MB takes next to nothing while it is rewritten."""
        body = b'{"messages":["' + "é".encode() * 4_000_000 + b'"],"stream":false}'
        replace_member(body, "stream", b"true")
        tracemalloc.start()
        try:
            assert replace_member(body, "stream", b"true") is not None
            assert tracemalloc.get_traced_memory()[1] < len(body) + 1_000_000
        finally:
            tracemalloc.stop()


KEYS = st.one_of(st.sampled_from(["stream", "model", "", "a", "\\", '"', "strea", "é", "😀"]), st.text(max_size=5))
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["stream", '"stream":false', "}", "]", ",", "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
SPACE = st.text(alphabet=" \t\r\n", max_size=2)


@st.composite
def spelled(draw: st.DrawFn, text: str) -> str:
    """A JSON string that says `text`, escaped in any way."""
    pieces = []
    for char in text:
        plain = json.dumps(char, ensure_ascii=False)[1:-1]
        units = char.encode("utf-16-be")
        escaped = "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))
        pieces.append(draw(st.sampled_from([plain, escaped])))
    return '"' + "".join(pieces) + '"'


@st.composite
def objects(draw: st.DrawFn) -> list[tuple[str, str, str, str]]:
    """An object's members: name, what stands before the value, the value, what stands behind it."""
    members = []
    for name in draw(st.lists(KEYS.filter(str.isprintable), max_size=5)):
        key = draw(spelled(name))
        before = draw(SPACE) + key + draw(SPACE) + ":" + draw(SPACE)
        value = json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
        members.append((name, before, value, draw(SPACE)))
    return members


def join(members: list[tuple[str, str, str, str]], space: str) -> bytes:
    inside = ",".join(before + value + behind for _, before, value, behind in members)
    text = f"{space}{{{inside}{space if not members else ''}}}{space}"
    return text.encode("utf-8", "surrogatepass")


@given(objects(), SPACE, st.sampled_from(["stream", "model", "a"]))
def test_any_object(members: list[tuple[str, str, str, str]], space: str, name: str) -> None:
    """Outside the spans of the member's values not one byte changes, and a parser finds the member set."""
    assume(not any(0xD800 <= ord(char) < 0xE000 for member in members for char in "".join(member)))
    body = join(members, space)
    result = replace_member(body, name, b"[true]")
    assert result is not None
    assert json.loads(result) == {**json.loads(body), name: [True]}
    if name in [member[0] for member in members]:
        set_ = [(n, before, "[true]" if n == name else value, behind) for n, before, value, behind in members]
        assert result == join(set_, space)
        last = [value for n, _, value, _ in members if n == name][-1]
        assert get_member(body, name) == last.encode()
    else:
        added = b'"%b":[true]' % name.encode() + (b"," if members else b"")
        opening = len(space) + 1
        assert result == body[:opening] + added + body[opening:]
        assert get_member(body, name) is None


@given(objects(), st.integers(0, 400), st.binary(max_size=2))
def test_a_broken_body_is_never_changed(members: list[tuple[str, str, str, str]], at: int, noise: bytes) -> None:
    """Bytes put in or taken out: what Python's parser, told to be strict, refuses, is not touched."""
    body = join(members, "")
    at %= len(body) + 1
    broken = body[:at] + noise + body[at + 1 :]
    result = replace_member(broken, "stream", b"true")
    try:
        value = json.loads(broken.decode(), parse_constant=lambda constant: [][0])
        refused = not isinstance(value, dict)
        json.dumps(value, ensure_ascii=False).encode()  # no lone surrogate
    except (ValueError, IndexError):
        refused = True
    assert (result is None) is refused


class TestGetMember:
    """A member's value as raw JSON."""

    def test_get(self) -> None:
        """The last of its name, in its own spelling."""
        body = b'{"a" : 1.0 ,"b":[ 1e400 ],"\\u0061":{"x": 1} }'
        assert get_member(body, "a") == b'{"x": 1}'
        assert get_member(body, "b") == b"[ 1e400 ]"
        assert get_member(body, "c") is None
        assert get_member(b"{}", "c") is None


class TestPeek:
    """What routing and logs need."""

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b"{}", Summary(well_formed=True)),
            (b'{"model":"claude-opus-5"}', Summary(model="claude-opus-5", well_formed=True)),
            (b'{"model":null,"stream":null,"thinking":null}', Summary(well_formed=True)),
            (b'{"stream":true}', Summary(stream=True, well_formed=True)),
            (b'{"stream":false}', Summary(well_formed=True)),
            (b'{"str\\u0065am":true}', Summary(stream=True, well_formed=True)),
            (b'{"stream":false,"stream":true}', Summary(stream=True, well_formed=True)),
            (b'{"messages":[{"stream":true,"model":"x"}]}', Summary(well_formed=True)),
            (b'{"thinking":{"type":"enabled","budget_tokens":1024}}', Summary(has_thinking=True, well_formed=True)),
            (b'{"thinking":{"type":"adaptive"}}', Summary(has_thinking=True, well_formed=True)),
            (b'{"thinking":{"type":"disabled"}}', Summary(well_formed=True)),
            (b'{"thinking":{}}', Summary(has_thinking=True, well_formed=True)),
            (b'{"model":"a\\nb\\u0000c\\u00e9\\u202ed e\\u007f"}', Summary(model="abcd e", well_formed=True)),
            (b'{"model":"\\u00e9"}', Summary(well_formed=True)),
            (b'{"model":""}', Summary(well_formed=True)),
            (b'{"model":"' + b"m" * 1_000_000 + b'"}', Summary(model="m" * MAX_MODEL_LENGTH, well_formed=True)),
            # what the API refuses
            (b'{"stream":"true","model":"m"}', Summary()),
            (b'{"stream":1,"model":"m"}', Summary()),
            (b'{"model":["m"],"stream":true}', Summary()),
            (b'{"thinking":true,"stream":true}', Summary()),
            (b'{"model":"\xff","stream":true}', Summary()),
        ],
    )
    def test_table(self, body: bytes, expected: Summary) -> None:
        """Each field, and each way to have none."""
        assert peek(body) == expected

    @pytest.mark.parametrize(
        "body",
        # That strings nobody looks into are no UTF-8 is for replace_member to find out, and many members are no harm.
        [
            body
            for body in NOT_AN_OBJECT
            if (body.isascii() or body[:1] != b"{") and body[:20] != b'{"stream":false,"0":'
        ],
        ids=lambda body: repr(body[:40]),
    )
    def test_no_object(self, body: bytes) -> None:
        """Never raises, and says nothing of what is not JSON."""
        assert peek(body) == Summary()

    def test_default_recursion_limit_is_enough(self) -> None:
        """Near the interpreter's own limit it still returns."""

        def down(levels: int) -> Summary:
            return down(levels - 1) if levels else peek(b'{"x":' + DEEP + b"}")

        assert down(sys.getrecursionlimit() // 2) == Summary()
