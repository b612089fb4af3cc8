"""Content addressing: exact, whatever the body, and small, where bodies repeat each other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from unittest import mock

import attrs
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conversations import Session, code, dump, prose
from twisted_proxy.record import blobs, dictionary
from twisted_proxy.record.blobs import (
    Damaged,
    Literal,
    Part,
    Recipe,
    Run,
    assemble,
    compress,
    decompress,
    encode,
    encode_run,
    needs,
    references,
    split,
)
from twisted_proxy.record.exchange import PIECE, BytesContent

ROW = 110
"""Bytes that a row takes in a database beside its data, its places in indexes included."""


@attrs.define
class Shelf:
    """A store in memory, as the docstring of `blobs` says how."""

    ids: dict[bytes, int] = attrs.field(factory=dict)
    rows: dict[int, bytes] = attrs.field(factory=dict)
    recipes: list[bytes] = attrs.field(factory=list)
    runs: int = 0

    def put(self, body: bytes) -> Counter[str]:
        """Keep a body; how many parts and runs are new, and the bytes of the parts."""
        recipe = split(BytesContent(body))
        new: Counter[str] = Counter(parts=0, runs=0, size=0)
        for item in recipe.items:
            if isinstance(item, Part):
                self._put_part(item, new)
            elif isinstance(item, Run) and item.hash not in self.ids:
                for part in item.items:
                    if isinstance(part, Part):
                        self._put_part(part, new)
                self._put(item.hash, encode_run(item, self.ids))
                new["runs"] += 1
        self.recipes.append(encode(recipe, self.ids))
        self.runs += new["runs"]
        return new

    def _put_part(self, part: Part, new: Counter[str]) -> None:
        if part.hash not in self.ids:
            self._put(part.hash, compress(part.load()))
            new["parts"] += 1
            new["size"] += part.size

    def _put(self, key: bytes, data: bytes) -> None:
        # With gaps, as where others write at the same time.
        self.ids[key] = 1 + 7 * len(self.ids)
        self.rows[self.ids[key]] = data

    def get(self, recipe: bytes) -> bytes:
        """Rebuild what was kept under a recipe, from what it says that it needs."""
        wanted = needs(recipe)
        fetched = {each: self.rows[each] for each in wanted.runs}
        parts = {*wanted.parts, *(part for run in fetched.values() for part in needs(run).parts)}
        fetched |= {each: decompress(self.rows[each]) for each in parts}
        pieces = list(assemble(recipe, fetched))
        assert all(len(piece) <= PIECE for piece in pieces)
        return b"".join(pieces)

    @property
    def size(self) -> int:
        stored = (*self.rows.values(), *self.recipes)
        return sum(map(len, stored)) + ROW * len(stored)


def kept(body: bytes) -> bytes:
    """What is got back of a body."""
    shelf = Shelf()
    shelf.put(body)
    return shelf.get(shelf.recipes[0])


def is_cut(body: bytes) -> bool:
    """Whether a body is looked into, and the pieces come to what it is without the check at the end."""
    recipe = blobs._split_request(body)
    return recipe is not None and b"".join(recipe.pieces()) == body


MARKER = {"cache_control": {"type": "ephemeral"}}


def text(value: str, *, marked: bool = False) -> dict[str, Any]:
    return {"type": "text", "text": value, **(MARKER if marked else {})}


def user(content: object) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: object) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def request(messages: list[Any], **more: object) -> bytes:
    return dump({"model": "claude-opus-5", "messages": messages, "max_tokens": 100, **more})


def said(number: int) -> str:
    """200 characters that nothing else has."""
    return f"{number} " + prose()[200 * number :][:200]


def exchanged(count: int) -> list[Any]:
    """A conversation of so many messages."""
    return [(assistant if number % 2 else user)([text(said(number))]) for number in range(count)]


# -- exact

NAMES = st.sampled_from(["role", "content", "text", "type", "messages", "tools", "system", "cache_control", "a", ""])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | NAMES
)
VALUES = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(NAMES, each, max_size=3), max_leaves=6
)
TEXTS = st.text(max_size=20) | st.sampled_from(['","cache_control":{"type":"ephemeral"}', "x" * 200, "é\\\n" * 100])
BLOCKS = st.builds(
    lambda block, marker, first: {**marker, **block} if first else {**block, **marker},
    st.builds(text, TEXTS) | st.dictionaries(NAMES, VALUES, max_size=3),
    st.sampled_from([{}, {}, MARKER, {"cache_control": {"type": "ephemeral", "ttl": "1h"}}, {"cache_control": None}]),
    st.booleans(),
)
MESSAGES = (
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["user", "assistant", "system", "tool", "odd"]),
        TEXTS | st.lists(BLOCKS, max_size=3),
    )
    | VALUES
)
REQUESTS = st.builds(
    lambda more, messages, system, tools, last: {
        **more,
        "messages": messages,
        "system": system,
        "tools": tools,
        **last,
    },
    st.dictionaries(NAMES, VALUES, max_size=2),
    st.builds(lambda more, few: [*few, *exchanged(more)], st.sampled_from([0, 20]), st.lists(MESSAGES, max_size=4)),
    TEXTS | st.lists(BLOCKS, max_size=3),
    st.lists(BLOCKS, max_size=3),
    st.dictionaries(NAMES, VALUES, max_size=2),
)
SPELLINGS = st.sampled_from(
    [
        {"separators": (",", ":")},
        {"separators": (",", ":"), "ensure_ascii": False},
        {},
        {"indent": 2},
        {"indent": "\t \r\n", "separators": (" , ", " :\t")},
    ]
)
BODIES = st.builds(lambda value, spelling: json.dumps(value, **spelling).encode(errors="replace"), REQUESTS, SPELLINGS)


@given(BODIES)
def test_requests(body: bytes) -> None:
    """Any request, however spelled, is looked into and rebuilt exactly."""
    with mock.patch.object(blobs, "_LARGE", 300):
        assert is_cut(body)
        assert kept(body) == body


@given(st.data())
@settings(max_examples=40)
def test_conversations_that_change(data: st.DataObject) -> None:
    """Each request of a conversation, whatever changes between two of them, anywhere."""
    messages = exchanged(data.draw(st.integers(0, 70)))
    shelf = Shelf()
    bodies = []
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(messages)))
        messages[place : place + data.draw(st.integers(0, 3))] = data.draw(st.lists(MESSAGES, max_size=2))
        order = data.draw(st.permutations(["model", "messages", "system"]))
        parts = {"model": "m", "messages": messages, "system": [text("s", marked=True)]}
        body = dump({name: parts[name] for name in order})
        assert is_cut(body)
        bodies.append(body)
        shelf.put(body)
    assert [shelf.get(recipe) for recipe in shelf.recipes] == bodies


@given(st.binary(max_size=300) | BODIES, st.data())
def test_anything(body: bytes, data: st.DataObject) -> None:
    """Bytes that are no JSON, and requests with a few bytes changed, are rebuilt exactly."""
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 20)))
        insert = data.draw(st.binary(max_size=4) | st.sampled_from([b'"', b"{", b"[", b"]", b",", b"\\", b"}"]))
        body = body[:start] + insert + body[end:]
    assert kept(body) == body


MANY = 100_000

ODD_BODIES = {
    "empty": b"",
    "space": b" \n",
    "NUL": request([user("\0" * 200)]) + b"\0",
    "lone surrogates": b'{"messages":[{"role":"user","content":"\\ud800' + b"x" * 300 + b'\\udc00"}]}',
    "NaN": b'{"messages":[NaN,Infinity,-Infinity]}',
    "numbers": b'{"messages":[1e400,-0,1E5,' + b"9" * 5000 + b'],"a":0.10}',
    "depth": b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "depth of a message": request([user(said(1)), 1]).replace(
        b",1]", b"," + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"]"
    ),
    "names twice": b'{"messages":[{"role":"user","role":"user","content":"a"}],"messages":[],"messages":[1]}',
    "escaped names": b'{"\\u006dessages":[{"\\u0072ole":"user","content":"' + b"x" * 300 + b'"}]}',
    "BOM": b"\xef\xbb\xbf" + request(exchanged(3)),
    "trailing garbage": request(exchanged(3)) + b"}]x",
    "cut off": request(exchanged(3))[:-7],
    "not UTF-8": request(exchanged(3)).replace(b"the", b"\xff\xfe"),
    "UTF-16": request(exchanged(3)).decode().encode("utf-16"),
    "array": dump(exchanged(20)),
    "string": dump(said(1)),
    "lists of other things": dump({"messages": {"a": [1]}, "tools": "x" * 300, "system": None}),
    "commas": b'{"messages":[,{},,],"a":1,}',
    "only a marker": b'{"messages":[{"cache_control":{"type":"ephemeral"}}],"cache_control":{"type":"ephemeral"}}',
    "markers and nothing else": b'{"cache_control":null,"cache_control":{"a":"}"}   ,  "cache_control":{}}',
    "space at a marker": b'{"messages":[{"a":1 ,\n"cache_control" : {"type" : "x"}  }, {  "cache_control":{},"a":2}]}',
    "much space at a marker": b'{"messages":[{"a":1' + b" " * 300 + b',"cache_control"' + b" " * 300 + b":{}}]}",
    "much space": b" " * MANY + b'{"messages":' + b" " * MANY + b"[" + b" " * MANY + b"]}" + b" " * MANY,
    "a space in each gap": request(exchanged(3)).replace(b'","', b'"' + b" " * 40 + b',"'),
    "a million tiny messages": b'{"messages":[' + b"{}," * 1_000_000 + b"{}]}",
    "many numbers": b'{"messages":[' + b"1," * MANY + b"1]}",
    "many members": b"{" + b",".join(b'"%d":1' % number for number in range(MANY)) + b"}",
    "many blocks": request([user([text("x")] * MANY)] * 2),
    "many blocks in a run": request([user([text(said(1))] * 2000)] * 20),
    "many blocks of some size": request([user([text(said(1) * 2)] * 4000)] * 3),
    "many markers": request([user([text("x", marked=True)] * 5000)]),
    "many names of markers": b'{"messages":["' + b'","cache_control","' * MANY + b'"]}',
    "no end of markers": b'"cache_control":{"a' * MANY,
    "no end of a marker": b'{"a":1,"cache_control":{' + b'"a":"b",' * MANY,
    "no end of a string": b'{"messages":[{"role":"user","content":"' + b'\\"' * MANY,
    "braces": b"{" * MANY,
    "quotes": b'{"' + b'\\"' * MANY + b'":1}',
}


@pytest.mark.parametrize("body", ODD_BODIES.values(), ids=ODD_BODIES)
def test_odd_bodies(body: bytes) -> None:
    """What a parser may stumble over is rebuilt exactly, and its recipe is small enough to be read."""
    shelf = Shelf()
    shelf.put(body)
    assert shelf.get(shelf.recipes[0]) == body
    items = split(BytesContent(body)).items
    runs = [item for item in items if isinstance(item, Run)]
    assert max(len(items), *(len(run.items) for run in runs), 0) <= blobs._MAX_ITEMS


def test_a_marker_in_a_string_is_text() -> None:
    """What looks like a marker in what somebody wrote is taken for what it is."""
    body = request([user('{"a":1,"cache_control":{"type":"ephemeral"}}'), user([text("b", marked=True)])])
    recipe = split(BytesContent(body))
    assert [insert for _, insert in recipe.inserts] == [b',"cache_control":{"type":"ephemeral"}']
    assert b"".join(recipe.pieces()) == body


def test_a_mistake_does_not_cost_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """If what a body was cut into is not the body, it is kept as it is."""
    body = request(exchanged(3))
    monkeypatch.setattr(blobs, "_split_request", lambda body: Recipe(len(body), (Literal(body[:-1] + b"]"),)))
    assert kept(body) == body


def test_a_mistake_in_a_run_does_not_cost_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same inside of a run."""

    def wrong(body: bytes, position: int, start: int, end: int, items: list[Any]) -> None:
        items.append(Literal(body[start:end]))

    monkeypatch.setattr(blobs, "_split_element", wrong)
    body = request([], tools=[{"name": f"t{number} {random.Random(1).random()}"} for number in range(16)])
    assert kept(body) == body


# -- shared


def test_the_next_turn() -> None:
    """Only what was said since is new, although the marker has moved."""
    shelf = Shelf()
    messages = exchanged(7)
    shelf.put(request([*messages[:-1], user([text(said(6), marked=True)])], system=[text(said(90), marked=True)]))
    messages += [assistant([text(said(7))]), user([text(said(8), marked=True)])]
    assert shelf.put(request(messages, system=[text(said(90), marked=True)]))["parts"] == 2


@pytest.mark.parametrize("first", [False, True], ids=["behind", "before"])
def test_a_marker_moves(first: bool) -> None:
    """Also one that stands before the other members."""
    block = {**MARKER, **text(said(1))} if first else {**text(said(1)), **MARKER}
    shelf = Shelf()
    shelf.put(request([user([block]), user(said(2))]))
    assert shelf.put(request([user([text(said(1))]), user(said(2))]))["parts"] == 0


def test_a_list_of_one_text_shares_the_string() -> None:
    """And the other way round."""
    shelf = Shelf()
    shelf.put(request([{"role": "system", "content": [text(said(1), marked=True)]}, user(said(2))]))
    again = request([{"role": "system", "content": said(1)}, user([text(said(2))])])
    assert shelf.put(again)["parts"] == 0


def test_a_fork() -> None:
    """A conversation that goes on in another way shares all before that."""
    shelf = Shelf()
    shelf.put(request(exchanged(40)))
    forked = shelf.put(request([*exchanged(25), user(said(91))]))
    assert (forked["parts"], forked["runs"]) == (1, 0)


def test_an_early_message_changes() -> None:
    """What stands behind it is shared all the same."""
    shelf = Shelf()
    shelf.put(request(exchanged(60)))
    changed = exchanged(60)
    changed[3] = assistant("[old result cleared]" + said(92))
    new = shelf.put(request(changed))
    assert (new["parts"], new["runs"]) == (1, 1)


def test_a_run_is_settled() -> None:
    """The last messages are in none yet: the next request may have them in another form."""
    # Of its own, so that none of its runs is known.
    messages = [user(f"{said(number)} of this test") for number in range(34)]
    runs = [stored([request(messages[:count])]).runs for count in (16, 17, 18, 33, 34)]
    assert runs == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("order", [("model", "messages", "system"), ("system", "model", "messages")])
def test_what_is_known_is_not_looked_into_again(order: tuple[str, ...]) -> None:
    """Runs that came before are compared, wherever the messages stand, and behind a change that is not in them."""

    def runs(count: int, changed: str) -> list[Run]:
        members = {"model": "m", "messages": exchanged(count), "system": [text(changed, marked=True)]}
        items = split(BytesContent(dump({name: members[name] for name in order}))).items
        return [item for item in items if isinstance(item, Run)]

    first, second = runs(40, "a"), runs(60, "b")
    assert (len(first), len(second)) == (2, 3)
    assert all(one is other for one, other in zip(first, second, strict=False))


def test_a_member_changes() -> None:
    """The other members are shared."""
    shelf = Shelf()
    more = {"metadata": {"user_id": said(93)}, "diagnostics": {"a": said(94)}}
    shelf.put(request(exchanged(2), **more))
    assert shelf.put(request(exchanged(2), **{**more, "diagnostics": {"a": said(95)}}))["parts"] == 1


def test_a_tool_more() -> None:
    """The tools before it are shared."""
    tools = [{"name": f"tool{number}", "description": said(number)} for number in range(20)]
    shelf = Shelf()
    shelf.put(request([], tools=tools[:18]))
    assert shelf.put(request([], tools=tools))["parts"] == 2


@pytest.mark.parametrize("kind", ["message", "run"])
def test_a_large_block_is_shared_though_its_neighbour_changes(kind: str) -> None:
    """As an image beside a text."""
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": random.Random(1).randbytes(90_000).hex()},
    }
    others = exchanged(20) if kind == "run" else []
    shelf = Shelf()
    shelf.put(request([user([text(said(1)), image, text(said(2))]), *others]))
    new = shelf.put(request([user([text(said(3)), image, text(said(4))]), *others]))
    assert new["parts"] == 2
    assert new["size"] < 1000


def test_a_large_part_is_cut() -> None:
    """No part has more than a megabyte; those of a value that grows are shared."""
    shelf = Shelf()
    data = random.Random(1).randbytes(2 * PIECE).hex()
    assert shelf.put(request([user(data[: 5 * PIECE // 2])]))["parts"] == 3
    # All but the two that were whole, of five.
    assert shelf.put(request([user(data)]))["parts"] == 3


def test_openai() -> None:
    """A chat completions request is cut by the same rules."""
    system = {"role": "system", "content": said(1)}
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": dump({"a": said(2)}).decode()}}
    messages = [
        system,
        user(said(3)),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": said(4)},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": said(5), "parameters": {}}}]
    shelf = Shelf()
    shelf.put(request(messages, tools=tools))
    assert shelf.put(request([*messages, assistant(said(6)), user(said(7))], tools=tools))["parts"] == 2


def test_the_same_body_twice() -> None:
    """Nothing is new, of whatever it is."""
    for body in (request(exchanged(40)), random.Random(2).randbytes(3 * PIECE), b"event: ping\n" * 1000):
        shelf = Shelf()
        shelf.put(body)
        new = shelf.put(body)
        assert (new["parts"], new["runs"]) == (0, 0)
        assert shelf.recipes[0] == shelf.recipes[1]


# -- small


def zstd(body: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=3).compress(body))


def stored(bodies: Iterable[bytes]) -> Shelf:
    shelf = Shelf()
    for body in bodies:
        shelf.put(body)
    return shelf


def test_a_session() -> None:
    """
    The 60 request bodies of a session, the last of which has 400 KB, take less than 1.8 times what that one takes
    compressed, rows included.
    """
    bodies = list(Session(tool_result=3600).bodies(60))
    assert 370_000 < len(bodies[-1]) < 430_000
    assert 45_000 < len(bodies[0]) < 60_000
    shelf = stored(bodies)
    assert shelf.size < 1.8 * zstd(bodies[-1])
    assert [shelf.get(recipe) for recipe in shelf.recipes] == bodies


def test_a_long_session() -> None:
    """A turn's recipe hardly grows with the messages before it: by four bytes for 16 of them."""
    shelf = stored(request(exchanged(count)) for count in (20, 116, 500))
    first, second, third = map(len, shelf.recipes)
    assert second <= first + 4 * (116 - 20) // 16
    assert third <= second + 4 * (500 - 116) // 16
    assert first < 200


def test_a_chat() -> None:
    """Of messages of a few words, what they take are their rows."""
    messages: list[Any] = []
    bodies = []
    for number in range(60):
        messages += [user(said(number)[:60]), assistant(said(number)[60:140])]
        bodies.append(request(messages[:-1], system=[text(prose()[:8000])]))
    assert stored(bodies).size < 7.5 * zstd(bodies[-1])
    assert sum(map(zstd, bodies)) > 40 * zstd(bodies[-1])


# -- parts and runs


def items_of(body: bytes) -> Iterator[Part | Run]:
    for item in split(BytesContent(body)).items:
        if not isinstance(item, Literal):
            yield item


def test_a_part_never_has_the_hash_of_a_run() -> None:
    """Even if its bytes are those that the run's hash is made of."""
    (run,) = (item for item in items_of(request(exchanged(18))) if isinstance(item, Run))
    pieces = b"".join(
        item.hash if isinstance(item, Part) else b"l" + len(item.data).to_bytes(8, "little") + item.data
        for item in run.items
    )
    (part,) = items_of(pieces)
    assert part.hash[:-1] == run.hash[:-1]
    assert part.hash != run.hash
    assert len(part.hash) == len(run.hash) == 20


def test_a_run_has_its_own_hash() -> None:
    """Runs of the same parts with other bytes between them are not the same."""
    hashes = set()
    for role in ("user", "assistant"):
        for content in ((said(1), said(2)), (said(2), said(1))):
            messages = [{"role": role, "content": each} for each in content * 8]
            hashes |= {item.hash for item in items_of(request([*messages, 1, 2]))}
    assert len(hashes) == 4


def test_a_run_loads_what_its_items_do() -> None:
    """Parts of it, and literals."""
    (run,) = (item for item in items_of(request(exchanged(18))) if isinstance(item, Run))
    assert b"".join(item.data if isinstance(item, Literal) else item.load() for item in run.items) == run.load()
    assert len(run.load()) == run.size
    assert len(exchanged(16)) == sum(isinstance(item, Part) for item in run.items)


def test_references() -> None:
    """Each as often as it is there, and not what a run refers to."""
    twice = text(said(1))
    recipe = split(BytesContent(request([*exchanged(16), twice, twice], system=[twice])))
    ids = {item.hash: 100 - number for number, item in enumerate(recipe.items) if not isinstance(item, Literal)}
    run = next(item for item in recipe.items if isinstance(item, Run))
    of_parts = {part.hash: 5 for part in run.items if isinstance(part, Part)}
    counts = references(encode(recipe, ids))
    assert counts == Counter(ids[item.hash] for item in recipe.items if not isinstance(item, Literal))
    assert sorted(counts.values()) == [1, 3]
    assert references(encode_run(run, of_parts)) == {5: 16}


def test_needs() -> None:
    """Each once, in the order in which they are used; parts and runs apart."""
    recipe = split(BytesContent(request([*exchanged(16), text(said(20)), text(said(21)), text(said(20))])))
    ids = {item.hash: 2**40 - number for number, item in enumerate(recipe.items) if not isinstance(item, Literal)}
    needed = needs(encode(recipe, ids))
    parts = [ids[item.hash] for item in recipe.items if isinstance(item, Part)]
    assert needed.parts == tuple(dict.fromkeys(parts))
    assert len(parts) == 3
    assert needed.runs == tuple(ids[item.hash] for item in recipe.items if isinstance(item, Run))


def test_an_id_is_missing() -> None:
    """To encode needs an id for each item."""
    with pytest.raises(KeyError):
        encode(split(BytesContent(request(exchanged(2)))), {})


# -- contents that are not looked into


@attrs.frozen
class Chunks:
    """A content that comes in pieces of any size, and counts how often it is read."""

    data: bytearray
    step: int
    reads: list[int] = attrs.field(factory=list)

    @property
    def size(self) -> int:
        return len(self.data)

    def pieces(self) -> Iterator[bytes]:
        self.reads.append(0)
        for start in range(0, len(self.data), self.step):
            self.reads[-1] += 1
            yield bytes(self.data[start : start + self.step])

    def read(self) -> bytes:
        raise AssertionError("all of it, in memory")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Chunks:
    """A content that counts as larger than what is looked into."""
    monkeypatch.setattr(blobs, "MAX_SPLIT", PIECE)
    return Chunks(bytearray(random.Random(3).randbytes(5 * PIECE // 2)), 300_007)


def test_a_large_content_is_read_piece_by_piece(large: Chunks) -> None:
    """Once to be cut and once to be loaded, in order, and never whole."""
    recipe = split(large)
    parts = [item for item in recipe.items if isinstance(item, Part)]
    assert [part.size for part in parts] == [PIECE, PIECE, PIECE // 2]
    assert b"".join(part.load() for part in parts) == large.data
    assert len(large.reads) == 2
    assert recipe.size == large.size


def test_a_large_content_is_loaded_in_any_order(large: Chunks) -> None:
    """At the price of reading it once more."""
    parts = [item for item in split(large).items if isinstance(item, Part)]
    for place in (2, 0, 0, 1, 2, 1):
        assert parts[place].load() == large.data[place * PIECE : (place + 1) * PIECE]


def test_a_large_content_has_the_parts_of_one_in_memory(large: Chunks) -> None:
    """Whichever way it comes, it is shared."""
    in_memory = split(BytesContent(bytes(large.data)))
    assert [item.hash for item in items_of(bytes(large.data))] == [
        item.hash for item in split(large).items if isinstance(item, Part)
    ]
    assert b"".join(in_memory.pieces()) == large.data


@pytest.mark.parametrize("change", ["other", "less"])
def test_a_large_content_changes(large: Chunks, change: str) -> None:
    """Nothing is stored under a hash that is not its own."""
    parts = [item for item in split(large).items if isinstance(item, Part)]
    if change == "other":
        large.data[-1] ^= 1
    else:
        del large.data[2 * PIECE :]
    parts[1].load()
    with pytest.raises(Damaged, match=f"bytes from {2 * PIECE} on changed"):
        parts[2].load()


# -- the stored form


def test_the_stored_form_stays() -> None:
    """What was stored once is read for ever. If this fails, stored bodies cannot be rebuilt any more."""
    assert hashlib.sha256(dictionary.DICTIONARY_1).hexdigest() == DICTIONARY_SHA256
    assert hashlib.sha256(b"\n".join(blobs._GLUE)).hexdigest() == GLUE_SHA256
    run, part = bytes.fromhex(STORED_RUN), bytes.fromhex(STORED_PART)
    assert decompress(part) == PART
    assert needs(run) == blobs.Needs(parts=(300, 7), runs=())
    recipe = bytes.fromhex(STORED_RECIPE)
    assert needs(recipe) == blobs.Needs(parts=(300,), runs=(2,))
    assert b"".join(assemble(recipe, {2: run, 300: PART, 7: b"seven"})) == STORED_BODY


PART = b'[{"type":"text","text":"a part, a part"}]' * 3
MARKED = PART.replace(b'"}', b'","cache_control":{"type":"ephemeral"}}', 1)
STORED_BODY = b'{"messages":[{"role":"user","content":%b} odd seven,%b]}' % (MARKED, PART)
DICTIONARY_SHA256 = "a850fcee9e1f8edab4b55981679fef50b8ba5d7b34bd4ca0215586f433dfcb2f"
GLUE_SHA256 = "dfa9dac0c3cc9286f31cd7faa246813f6c99fae5244ccedbed37bee917cc8d6a"
STORED_PART = "0128b52ffd247bbd0000586120706172742c20227d5d0300cf141a2b18af06e620a3fd68a1"
STORED_RUN = "0128b52ffd240f7900009f01002de2120514206f646420a61298ae7a62"
STORED_RECIPE = "0128b52ffd241aad000070cf02014d4d347b1301d212085d7d0100c971d9084857200d"


def recipe_of(*items: Literal | Part | Run, inserts: tuple[tuple[int, bytes], ...] = ()) -> Recipe:
    size = sum(item.size for item in items) + sum(len(data) for _, data in inserts)
    return Recipe(size, items, inserts)


def part_of(data: bytes) -> Part:
    (part,) = split(BytesContent(data)).items
    assert isinstance(part, Part)
    return part


@given(st.lists(st.binary(max_size=5)), st.lists(st.tuples(st.integers(0, 100), st.binary(max_size=5)), max_size=5))
def test_inserts(literals: list[bytes], inserts: list[tuple[int, bytes]]) -> None:
    """Each stands in its place, also at the start, at the end, between pieces, and behind another."""
    plain = b"".join(literals)
    places = tuple(sorted(((at % (len(plain) + 1), data) for at, data in inserts), key=lambda each: each[0]))
    expected = plain
    for at, data in reversed(places):
        expected = expected[:at] + data + expected[at:]
    recipe = recipe_of(*map(Literal, literals), inserts=places)
    assert b"".join(recipe.pieces()) == expected
    assert b"".join(assemble(encode(recipe, {}), {})) == expected


@given(st.lists(st.integers(0, 2**62), min_size=1))
def test_ids(ids: list[int]) -> None:
    """Of any size, in any order, as often as they come."""
    parts = [Part(bytes([number]), 1, b"x", 0) for number in range(len(ids))]
    encoded = encode(recipe_of(*parts), {bytes([number]): each for number, each in enumerate(ids)})
    assert references(encoded) == Counter(ids)
    assert needs(encoded).parts == tuple(dict.fromkeys(ids))


class TestDamage:
    """What is stored may be damaged: that is told, and nothing else is given in its place."""

    @given(st.binary())
    def test_anything(self, data: bytes) -> None:
        """No bytes make anything but `Damaged`."""
        for read in (needs, references, decompress, lambda each: list(assemble(each, {}))):
            for each in (data, compress(data)):
                with contextlib.suppress(Damaged):
                    read(each)

    @given(st.data())
    def test_a_recipe_is_changed(self, data: st.DataObject) -> None:
        """The length or a checksum shows it; or nothing depends on what was changed."""
        body = request(exchanged(3))
        shelf = Shelf()
        shelf.put(body)
        recipe = bytearray(shelf.recipes[0])
        recipe[data.draw(st.integers(0, len(recipe) - 1))] ^= data.draw(st.integers(1, 255))
        fetched = {each: decompress(row) for each, row in shelf.rows.items()}
        with contextlib.suppress(Damaged):
            assert b"".join(assemble(bytes(recipe), fetched)) == body

    def fetched(self) -> tuple[bytes, dict[int, bytes]]:
        part = part_of(b"x" * 200)
        return encode(recipe_of(part), {part.hash: 3}), {3: part.load()}

    def test_a_part_is_missing(self) -> None:
        """It says which."""
        encoded, _ = self.fetched()
        with pytest.raises(Damaged, match="part 3 is missing"):
            list(assemble(encoded, {}))

    def test_a_part_has_another_length(self) -> None:
        """It says how long the body should be."""
        encoded, fetched = self.fetched()
        with pytest.raises(Damaged, match="a body of 200 bytes came to 199"):
            list(assemble(encoded, {3: fetched[3][1:]}))

    def test_a_run_in_a_run(self) -> None:
        """However deep it would go."""
        run = Run(b"r", 1, (), b"x")
        encoded = encode(recipe_of(run), {b"r": 3})
        with pytest.raises(Damaged, match="run 3 is in a run"):
            list(assemble(encoded, {3: encoded}))

    def test_a_marker_behind_the_end(self) -> None:
        """Its place is nowhere."""
        encoded = encode(Recipe(4, (Literal(b"abc"),), ((4, b"m"),)), {})
        with pytest.raises(Damaged, match="behind the body's end"):
            list(assemble(encoded, {}))


def test_parts_are_asked_for_in_turn() -> None:
    """A mapping may read each part when it is its turn, so that a large body need not be in memory."""
    asked = []

    class Reading(Mapping[int, bytes]):
        def __getitem__(self, key: int) -> bytes:
            asked.append(key)
            return bytes([key]) * 200

        def __iter__(self) -> Iterator[int]:
            raise AssertionError

        def __len__(self) -> int:
            raise AssertionError

        def __contains__(self, key: object) -> bool:
            return True

    parts = [part_of(bytes([number]) * 200) for number in (5, 6)]
    pieces = assemble(encode(recipe_of(*parts), {parts[0].hash: 5, parts[1].hash: 6}), Reading())
    assert next(pieces) == b"\5" * 200
    assert asked == [5]
    assert next(pieces) == b"\6" * 200


class TestCompress:
    @given(st.binary() | st.text().map(str.encode) | st.integers(0, 3000).map(lambda size: b"a" * size))
    def test_exact(self, data: bytes) -> None:
        """Whatever it is, and hardly longer at worst."""
        compressed = compress(data)
        assert decompress(compressed) == data
        assert len(compressed) <= len(data) + 20

    def test_small(self) -> None:
        """Text to a third; what is typical of the API to less, however short."""
        assert len(compress(code()[:100_000].encode())) < 33_000
        block = b'{"type":"tool_use","id":"toolu_01AbCdEfGh","name":"Bash","input":{"command":"ls"}}'
        assert len(compress(block)) < len(block) / 2

    def test_the_limit(self) -> None:
        """Exactly as many bytes, and no more; and no more memory than that."""
        for data in (bytes(PIECE), random.Random(4).randbytes(PIECE)):
            assert decompress(compress(data)) == data
            with pytest.raises(Damaged, match=f"more than {PIECE} bytes"):
                decompress(compress(data + b"x"))
            assert decompress(compress(data + b"x"), PIECE + 1) == data + b"x"

    def test_a_frame_that_hides_its_size(self) -> None:
        """A few bytes that become a gigabyte are not opened."""
        writer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        frame = b"".join([writer.compress(bytes(PIECE)) for _ in range(100)]) + writer.flush()
        with pytest.raises(Damaged, match="more than"):
            decompress(b"\1" + frame)

    @given(st.data())
    def test_damage(self, data: st.DataObject) -> None:
        """A changed byte shows, unless nothing depends on it."""
        plain = prose()[:1000].encode()
        compressed = bytearray(compress(plain))
        compressed[data.draw(st.integers(0, len(compressed) - 1))] ^= data.draw(st.integers(1, 255))
        with contextlib.suppress(Damaged):
            assert decompress(bytes(compressed)) == plain

    def test_more_or_less(self) -> None:
        """Bytes that are missing or too many show."""
        compressed = compress(prose()[:1000].encode())
        for wrong in (b"", compressed[:1], compressed[:10], compressed[:-1], compressed + b"x", compressed * 2):
            with pytest.raises(Damaged):
                decompress(wrong)

    def test_a_checksum(self) -> None:
        """What only the checksum can tell shows."""
        compressed = bytearray(compress(random.Random(5).randbytes(1000)))
        compressed[500] ^= 1
        with pytest.raises(Damaged, match="cannot be decompressed"):
            decompress(bytes(compressed))
