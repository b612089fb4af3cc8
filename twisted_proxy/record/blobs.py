"""
Content addressing: what the bodies of a conversation repeat is stored once.

Each request of a conversation repeats all that was said before. :func:`split` cuts a body into what is likely to come
again, which becomes parts, addressed by their hash, and the little that stands between. The body is then a recipe over
parts, from which its bytes are rebuilt exactly. Of a request of the Messages API, or of OpenAI's chat completions, the
parts are system blocks, tool definitions and messages; of anything else, pieces of a megabyte.

Three things keep what a turn adds small:

- ``cache_control`` markers, which move from turn to turn, are taken out first and put back last (`Recipe.inserts`).
- A message whose content is a string and one whose content is a list of that text share the string's part.
- 16 items of a list that are not going to change are a `Run`, which is addressed by its own hash. So a recipe over 500
  messages has some 40 references, and recipes do not grow with the square of a conversation's length.

How a store uses it. To write a body: ``recipe = split(content)``; look which of its items' hashes are known; give
each unknown part an id and keep ``compress(part.load())``; do the same for the parts of unknown runs, and then
give each unknown run an id and keep ``encode_run(run, ids)``; keep ``encode(recipe, ids)``. To read: :func:`needs` of
what :func:`encode` made tells the parts and runs that have to be fetched, :func:`needs` of these runs the other parts;
:func:`assemble` puts it together. To let go: :func:`references` tells what a body or a run no longer refers to.

There is no I/O here, and every function may be called from any thread. :func:`split` remembers the runs that came last,
so that the next turn takes less time.
"""

from __future__ import annotations

import hashlib
import re
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping

import attrs
import zstandard

from ..wire import spans
from .dictionary import DICTIONARY_1
from .exchange import PIECE, BytesContent, Content
from .following import Following
from .markers import take_markers

MAX_SPLIT = 64 * 1024 * 1024
"""Bytes of a body that is looked into; of a larger one no more than a piece is in memory at a time."""

_INLINE = 128
"""Fewer bytes stand in the recipe itself: if they are others in the next request, a row and a hash would cost more."""
_INLINE_MESSAGE = 32
"""The same of a message's content, which the next requests are going to repeat."""
_LARGE = 32 * 1024
"""Bytes of a message from which on its content blocks are parts of their own."""
_BLOCK = 256
"""Bytes that these must have on average: what is cut into less takes too long."""
_GROUP = 16
"""Elements of a list that make a run."""
_SETTLED = 2
"""So many elements must follow a run: the last message of a request may be written another way in the next one."""
_MAX_ITEMS = 20_000
"""In a recipe, or in a run."""
_HASH_SIZE = 20


class Damaged(Exception):
    """What is stored is not what was stored. The text says where this shows."""


# -- what a body is made of


@attrs.frozen
class Literal:
    """Bytes that stand in the recipe itself."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


@attrs.frozen(eq=False)
class Part:
    """
    Bytes that are stored once, however often they are referred to. At most `PIECE` of them.

    :ivar hash: 20 bytes; equal for equal bytes, and never that of a run.
    """

    hash: bytes
    size: int
    _source: bytes | _Pieces
    _start: int

    def load(self) -> bytes:
        """
        The bytes.

        :raises Damaged: the content no longer reads as it did when it was split; only if it is over `MAX_SPLIT`.
        """
        if isinstance(self._source, bytes):
            return self._source[self._start : self._start + self.size]
        data = self._source.at(self._start)
        if _hash(data) != self.hash:
            raise Damaged(f"the body's bytes from {self._start} on changed while they were stored")
        return data


@attrs.frozen(eq=False)
class Run:
    """
    Consecutive items that are stored once, as a list of references. None of them is a run.

    :ivar hash: 20 bytes; equal for equal items, and never that of a part.
    """

    hash: bytes
    size: int
    items: tuple[Literal | Part, ...]
    _source: bytes

    def load(self) -> bytes:
        """The bytes that its items come to."""
        return self._source


Item = Literal | Part | Run


@attrs.frozen(eq=False)
class Recipe:
    """
    How a body is put together.

    :ivar size: bytes of the body.
    :ivar items: joined in order, they are the body without its inserts.
    :ivar inserts: where in that a marker stood, and the marker; in order.
    """

    size: int
    items: tuple[Item, ...]
    inserts: tuple[tuple[int, bytes], ...] = ()

    def pieces(self) -> Iterator[bytes]:
        """The body, in order."""
        return _insert(map(_bytes_of, self.items), self.inserts)


def _bytes_of(item: Item) -> bytes:
    return item.data if isinstance(item, Literal) else item.load()


def _insert(pieces: Iterator[bytes], inserts: tuple[tuple[int, bytes], ...]) -> Iterator[bytes]:
    """`pieces` with each insert in its place."""
    position = 0
    waiting = iter(inserts)
    insert = next(waiting, None)
    for piece in pieces:
        start = 0
        while insert is not None and insert[0] < position + len(piece):
            cut = insert[0] - position
            yield piece[start:cut]
            yield insert[1]
            start = cut
            insert = next(waiting, None)
        yield piece[start:]
        position += len(piece)
    while insert is not None:
        if insert[0] > position:
            raise Damaged("a marker's place is behind the body's end")
        yield insert[1]
        insert = next(waiting, None)


# SHA-256, as processors have instructions for it. The last byte tells what was hashed, so that no part has the hash
# of a run, whatever its bytes.


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[: _HASH_SIZE - 1] + b"p"


def _hash_of_run(items: list[Literal | Part]) -> bytes:
    pieces = []
    for item in items:
        if isinstance(item, Part):
            pieces.append(item.hash)
        else:
            pieces += (b"l", struct.pack("<Q", len(item.data)), item.data)
    return hashlib.sha256(b"".join(pieces)).digest()[: _HASH_SIZE - 1] + b"r"


# -- splitting


def split(content: Content) -> Recipe:
    """
    Cut a body into what is likely to come again.

    Takes time in proportion to its size, whatever it is. A body over `MAX_SPLIT` is read piece by piece, here and
    again where its parts are loaded, which is best done in order.
    """
    if content.size > MAX_SPLIT:
        return _opaque(content)
    body = content.read()
    recipe = _split_request(body)
    # That it comes to something else would be a mistake in what is here. It must not cost the body.
    if recipe is None or not _is(body, recipe.pieces()):
        return _opaque(BytesContent(body))
    return recipe


def _is(body: bytes, pieces: Iterator[bytes]) -> bool:
    """Whether they come to `body`. Joined, they would take as much memory again."""
    position = 0
    for piece in pieces:
        if not body.startswith(piece, position):
            return False
        position += len(piece)
    return position == len(body)


def _opaque(content: Content) -> Recipe:
    """A body of which nothing is known but its bytes."""
    if isinstance(content, BytesContent):
        items: list[Literal | Part] = []
        _cut(content.data, 0, content.size, items)
        return Recipe(content.size, tuple(items))
    source = _Pieces(content)
    parts = []
    start = 0
    for data in source:
        parts.append(Part(_hash(data), len(data), source, start))
        start += len(data)
    return Recipe(start, tuple(parts))


class _Pieces:
    """A content in pieces of `PIECE` bytes, of which only the last has less, and of which one is in memory."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._reading = iter(self)
        self._next = 0

    def __iter__(self) -> Iterator[bytes]:
        held = bytearray()
        for data in self._content.pieces():
            held += data
            while len(held) >= PIECE:
                yield bytes(held[:PIECE])
                del held[:PIECE]
        if held:
            yield bytes(held)

    def at(self, start: int) -> bytes:
        """The piece that starts there, or less if there is less now than there was."""
        if start < self._next:
            self._reading = iter(self)
            self._next = 0
        for data in self._reading:
            found = self._next
            self._next += PIECE
            if found == start:
                return data
        return b""


# What an object has under these names, if it is a list, is cut at its elements. The value tells whether the list is
# taken to be settled as a whole, so that a run may be shorter than 16 and stand at the end.
_LISTS = {"messages": False, "system": False, "tools": True}


def _split_request(body: bytes) -> Recipe | None:
    """A request's recipe; ``None`` if it is no JSON object, or has more members, messages … than anybody sends."""
    start = _known.start_of(body)
    # The rest is the request with fewer messages, and as good JSON as all of it.
    rest = b"".join((memoryview(body)[: start.head], memoryview(body)[start.end :])) if start.items else body
    stripped, inserts = take_markers(rest)
    members = spans.members(stripped)
    if members is None:
        return None
    items: list[Item] = []
    position = 0
    for member in members:
        if member.name in _LISTS and stripped[member.start] == 0x5B:  # "["
            before = member.name.encode()
            if start.items and member.start + 1 == start.head:
                _cut(stripped, position, start.head, items)
                position = start.head
                items += start.items
                before = start.last
            elif member.name == "messages":
                _known.add_head(stripped[: member.start + 1])
            cut = _split_list(stripped, position, member, before, items)
            if cut is None:
                return None
            position = cut
        # Each member for itself, so that a change of one leaves the others.
        _cut(stripped, position, member.end, items)
        position = member.end
    _cut(stripped, position, len(stripped), items)
    if len(items) > _MAX_ITEMS:
        return None
    left_out = start.end - start.head
    return Recipe(
        len(body), tuple(items), tuple((at + left_out if at > start.head else at, marker) for at, marker in inserts)
    )


def _split_list(body: bytes, position: int, member: spans.Member, before: bytes, items: list[Item]) -> int | None:
    """
    Cut a list, and what stands before it from `position` on.

    :param before: what `_Known` finds its first run by.
    :return: where its last element ends.
    """
    _cut(body, position, member.start + 1, items)
    position = member.start + 1
    start = _after_space(body, position)
    while (run := _known.run_at(before, body, start)) is not None:
        _cut(body, position, start, items)
        items.append(run)
        position = start + run.size
        before = run.hash
        start = _after_space(body, position)
    # What is not known yet, as a list of its own.
    rest = b"".join((b"[", memoryview(body)[start : member.end]))
    offset = start - 1
    elements = spans.elements(rest)
    if elements is None:
        return None
    for first in range(0, len(elements), _GROUP):
        group = elements[first : first + _GROUP]
        if _LISTS[member.name] or len(elements) - first >= _GROUP + _SETTLED:
            _cut(body, position, offset + group[0][0], items)
            run = _run(rest, group)
            items.append(run)
            position = offset + group[-1][1]
            _known.add_run(before, run)
            before = run.hash
        else:
            for start, end in group:
                _split_element(body, position, offset + start, offset + end, items)
                position = offset + end
    return position


def _run(array: bytes, elements: list[tuple[int, int]]) -> Run:
    first = elements[0][0]
    source = array[first : elements[-1][1]]
    items: list[Literal | Part] = []
    position = 0
    for start, end in elements:
        _split_element(source, position, start - first, end - first, items)
        position = end - first
    if len(items) > _MAX_ITEMS or b"".join(map(_bytes_of, items)) != source:
        items = []
        _cut(source, 0, len(source), items)
    return Run(_hash_of_run(items), len(source), tuple(items), source)


@attrs.frozen(kw_only=True)
class _Start:
    """
    What is known of a body: all that comes before its messages, ``body[:head]``, and the first of these,
    ``body[head:end]``. Without items it is nothing.
    """

    head: int = 0
    end: int = 0
    items: tuple[Literal | Run, ...] = ()
    last: bytes = b""


class _Known:
    """
    The runs that came last, so that what a request repeats is compared, and not looked into again. Each is found by
    the run that stood before it in its list, and the first by the list's name.
    """

    MAX_HEADS = 16
    MAX_HEAD = 1024
    MAX_BYTES = 32 * 1024 * 1024
    """Of runs."""

    def __init__(self) -> None:
        self._heads: tuple[bytes, ...] = ()
        self._runs: Following[Run] = Following(most_bytes=self.MAX_BYTES)

    def start_of(self, body: bytes) -> _Start:
        head = next((head for head in self._heads if body.startswith(head)), b"")
        items: list[Literal | Run] = []
        before = b"messages"
        position = len(head)
        while head and (run := self.run_at(before, body, position)) is not None:
            items.append(run)
            before = run.hash
            position += run.size
            if body[position : position + 1] != b",":
                break
            items.append(_literal(b","))
            position += 1
        return _Start(head=len(head), end=position, items=tuple(items), last=before)

    def run_at(self, before: bytes, body: bytes, start: int) -> Run | None:
        """The run that stands at `start`, and is known to follow the one with the hash `before`."""
        return self._runs.find(before, lambda run: body.startswith(run.load(), start))

    def add_run(self, before: bytes, run: Run) -> None:
        self._runs.add(before, run, run.size + 200 * len(run.items))

    def add_head(self, head: bytes) -> None:
        """:param head: what stands before a request's messages."""
        if len(head) <= self.MAX_HEAD:
            self._heads = (head, *(other for other in self._heads if other != head))[: self.MAX_HEADS]


_known = _Known()


# What stands before a message's content, and before the text of a content that is one plain text; and what stands
# behind these.
_PREFIX = re.compile(
    rb'_,?_\{_"role"_:_"(?:user|assistant|system|tool)"_,_"content"_:_'
    rb'(\[_\{_"type"_:_"text"_,_"text"_:_(?="))?+'.replace(b"_", rb"[ \t\n\r]{0,16}+")
)
_TEXT_SUFFIX = b'"}]}'


def _split_element(body: bytes, position: int, start: int, end: int, items: list[Item] | list[Literal | Part]) -> None:
    """Cut an element of a list, and what stands before it from `position` on."""
    if end - start > _LARGE and _split_blocks(body, position, start, end, items):
        return
    prefix = _PREFIX.match(body, position, end)
    if prefix is None:
        _cut(body, position, start, items)
        _cut(body, start, end, items)
        return
    if prefix.start(1) < 0:
        core, suffix = prefix.end(), end - 1
    elif body.endswith(_TEXT_SUFFIX, prefix.end(), end):
        core, suffix = prefix.end(), end - len(_TEXT_SUFFIX) + 1
    else:
        core, suffix = prefix.start(1), end - 1
    items.append(_literal(body[position:core]))
    _cut(body, core, suffix, items, _INLINE_MESSAGE)
    items.append(_literal(body[suffix:end]))


def _split_blocks(body: bytes, position: int, start: int, end: int, items: list[Item] | list[Literal | Part]) -> bool:
    """Cut a large message at its content blocks; ``False`` if it has none, or too many."""
    source = body[start:end]
    members = spans.members(source) or ()
    for member in members:
        blocks = member.name == "content" and spans.elements(source, member.start, member.end, len(source) // _BLOCK)
        if blocks:
            for first, last in blocks:
                _cut(body, position, start + first, items)
                _cut(body, start + first, start + last, items)
                position = start + last
            _cut(body, position, end, items)
            return True
    return False


_SPACE = re.compile(rb"[ \t\n\r,]*+")


def _after_space(body: bytes, position: int) -> int:
    """Where the next element of a list starts, or the list ends."""
    found = _SPACE.match(body, position)
    assert found is not None
    return found.end()


def _cut(source: bytes, start: int, end: int, items: list[Item] | list[Literal | Part], inline: int = _INLINE) -> None:
    """``source[start:end]`` as a literal, or as as many parts as it takes."""
    if end - start < inline:
        if start < end:
            items.append(_literal(source[start:end]))
        return
    while start < end:
        after = min(start + PIECE, end)
        items.append(Part(_hash(source[start:after]), after - start, source, start))
        start = after


# -- the stored form
#
# compressed(<size> <number of inserts> (<offset, from the one before> <literal>)… <op>…), all numbers varints.
# An op is a number n and a tag: a literal of n bytes, that follow; a piece of glue by its number; a part or a run by
# its id, from the id of the reference before.

_LITERAL, _GLUE_NUMBER, _PART, _RUN = range(4)

_GLUE = (
    b",",
    b"}",
    b"}]}",
    *(
        comma + b'{"role":"%b","content":%b' % (role, text)
        for comma in (b",", b"")
        for role in (b"user", b"assistant", b"system", b"tool")
        for text in (b"", b'[{"type":"text","text":')
    ),
    b',"cache_control":{"type":"ephemeral"}',
    b',"cache_control":{"type":"ephemeral","ttl":"1h"}',
    b',"tools":[',
    b',"messages":[',
    b',"system":[',
    b"]",
)
"""Literals that stand in nearly every recipe. Stored recipes mean them by their place: add at the end only."""

_NUMBER_OF_GLUE = {data: number for number, data in enumerate(_GLUE)}
_GLUE_LITERALS = {data: Literal(data) for data in _GLUE}

MAX_ENCODED = 16 * 1024 * 1024
"""Bytes of a recipe, or a run, before it is compressed."""


def _literal(data: bytes) -> Literal:
    return _GLUE_LITERALS.get(data) or Literal(data)


def encode(recipe: Recipe, ids: Mapping[bytes, int]) -> bytes:
    """
    What is to be stored of a recipe.

    :param ids: by hash, for each part and run among the recipe's items; ids are not negative.
    """
    return _encode(recipe.size, recipe.inserts, recipe.items, ids)


def encode_run(run: Run, ids: Mapping[bytes, int]) -> bytes:
    """The same of a run."""
    return _encode(run.size, (), run.items, ids)


def _encode(
    size: int, inserts: tuple[tuple[int, bytes], ...], items: tuple[Item, ...], ids: Mapping[bytes, int]
) -> bytes:
    out = bytearray()
    _put(out, size)
    _put(out, len(inserts))
    last = 0
    for offset, data in inserts:
        _put(out, offset - last)
        _put_literal(out, data)
        last = offset
    last = 0
    for item in items:
        if isinstance(item, Literal):
            _put_literal(out, item.data)
        else:
            delta = ids[item.hash] - last
            last += delta
            zigzag = 2 * delta if delta >= 0 else -2 * delta - 1
            _put(out, zigzag << 2 | (_PART if isinstance(item, Part) else _RUN))
    return compress(bytes(out))


def _put_literal(out: bytearray, data: bytes) -> None:
    number = _NUMBER_OF_GLUE.get(data)
    if number is None:
        _put(out, len(data) << 2 | _LITERAL)
        out += data
    else:
        _put(out, number << 2 | _GLUE_NUMBER)


def _put(out: bytearray, number: int) -> None:
    """A varint: seven bits a byte, the lowest first; the eighth says that more follow."""
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


@attrs.frozen
class _Reference:
    id: int
    is_run: bool


@attrs.frozen
class _Decoded:
    size: int
    inserts: tuple[tuple[int, bytes], ...]
    ops: tuple[bytes | _Reference, ...]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def number(self) -> int:
        number = shift = 0
        while True:
            byte = self.data[self.position]
            self.position += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7
            if shift > 63:
                raise Damaged("a number in a recipe is too large")

    def op(self, last: int) -> bytes | _Reference:
        number = self.number()
        number, tag = number >> 2, number & 3
        if tag == _LITERAL:
            start = self.position
            self.position += number
            if self.position > len(self.data):
                raise IndexError
            return self.data[start : self.position]
        if tag == _GLUE_NUMBER:
            return _GLUE[number]
        delta = number >> 1 if not number & 1 else -(number + 1 >> 1)
        return _Reference(last + delta, tag == _RUN)


def _decode(encoded: bytes) -> _Decoded:
    reader = _Reader(decompress(encoded, MAX_ENCODED))
    try:
        size = reader.number()
        inserts = []
        last = 0
        for _ in range(reader.number()):
            last += reader.number()
            data = reader.op(0)
            if isinstance(data, _Reference):
                raise Damaged("a marker in a recipe is no literal")
            inserts.append((last, data))
        ops = []
        last = 0
        while reader.position < len(reader.data):
            op = reader.op(last)
            if isinstance(op, _Reference):
                last = op.id
            ops.append(op)
    except IndexError:
        raise Damaged("a recipe is cut off, or of a newer version") from None
    return _Decoded(size, tuple(inserts), tuple(ops))


def references(encoded: bytes) -> Counter[int]:
    """
    How often each part or run is referred to by what :func:`encode` or :func:`encode_run` made. Only by itself: what
    its runs refer to does not count.

    :raises Damaged: it is something else.
    """
    return Counter(op.id for op in _decode(encoded).ops if isinstance(op, _Reference))


@attrs.frozen(kw_only=True)
class Needs:
    """Ids of what has to be fetched, each once, in the order of need."""

    parts: tuple[int, ...]
    runs: tuple[int, ...]


def needs(encoded: bytes) -> Needs:
    """
    What :func:`encode` or :func:`encode_run` referred to. A run needs no runs.

    :raises Damaged: it is something else.
    """
    ops = [op for op in _decode(encoded).ops if isinstance(op, _Reference)]
    return Needs(
        parts=tuple(dict.fromkeys(op.id for op in ops if not op.is_run)),
        runs=tuple(dict.fromkeys(op.id for op in ops if op.is_run)),
    )


def assemble(encoded: bytes, fetched: Mapping[int, bytes]) -> Iterator[bytes]:
    """
    The body of which :func:`encode` made `encoded`, in order, at most `PIECE` bytes at a time.

    :param fetched: by id, a run as :func:`encode_run` made it, a part as it is, decompressed. Each is asked for when
        it is its turn, so that a mapping may read them then.
    :raises Damaged: something is missing, or of another length.
    """
    decoded = _decode(encoded)
    size = 0
    for piece in _insert(_fetch(decoded, fetched), decoded.inserts):
        size += len(piece)
        if piece:
            yield piece
    if size != decoded.size:
        raise Damaged(f"a body of {decoded.size} bytes came to {size}")


def _fetch(decoded: _Decoded, fetched: Mapping[int, bytes], *, is_run: bool = False) -> Iterator[bytes]:
    for op in decoded.ops:
        if isinstance(op, bytes):
            yield op
            continue
        if op.id not in fetched:
            raise Damaged(f"{'run' if op.is_run else 'part'} {op.id} is missing")
        data = fetched[op.id]
        if not op.is_run:
            yield data
        elif is_run:
            raise Damaged(f"run {op.id} is in a run")
        else:
            yield from _fetch(_decode(data), fetched, is_run=True)


# -- compression

_LEVEL = 3
_DICTIONARY = zstandard.ZstdCompressionDict(DICTIONARY_1, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
_DICTIONARY.precompute_compress(level=_LEVEL)

_FORM_1 = b"\1"
"""The first byte of what is compressed: behind it, a frame of zstd with the first dictionary."""


class _Codec(threading.local):
    """zstd's contexts: no two threads may use one at a time, and a new one is much dearer than a small part."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=_LEVEL, dict_data=_DICTIONARY, write_checksum=True).compress
        self.decompress = zstandard.ZstdDecompressor(dict_data=_DICTIONARY).decompress


_codec = _Codec()


def compress(data: bytes) -> bytes:
    """`data` in less space, where that is possible, and with a checksum. At worst it is some 20 bytes longer."""
    frame: bytes = _codec.compress(data)
    return _FORM_1 + frame


def decompress(data: bytes, limit: int = PIECE) -> bytes:
    """
    What :func:`compress` was given.

    :param limit: bytes that it may have, at most.
    :raises Damaged: it is not what :func:`compress` made, or has more bytes.
    """
    if data[:1] != _FORM_1:
        raise Damaged("what is stored is in a form that this version does not know")
    try:
        # The frame tells the size before anything is made of it.
        if not 0 <= zstandard.frame_content_size(data[1:19]) <= limit:
            raise Damaged(f"what is stored has more than {limit} bytes")
        decompressed: bytes = _codec.decompress(memoryview(data)[1:], allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damaged(f"what is stored cannot be decompressed ({error})") from error
    return decompressed
