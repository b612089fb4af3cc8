"""Journal entries: encoded, framed, read again."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_proxy.record import entries
from twisted_proxy.record.entries import BadEntry, Closed, Kind, Noted, Opened
from twisted_proxy.record.exchange import PIECE, Link, Role

KEY = bytes(range(16))

texts = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(0, 2**63)
pairs = st.lists(st.tuples(texts, texts)).map(tuple)

opened = st.builds(
    Opened,
    received_at=numbers,
    method=texts,
    path=texts,
    query=st.none() | texts,
    client=st.none() | texts,
    request_headers=pairs,
    credential=st.none() | texts,
    keep=st.sampled_from(["full", "metadata"]),
)
closed = st.builds(
    Closed,
    verdict=texts,
    status=st.none() | numbers,
    first_event_us=st.none() | numbers,
    last_byte_us=st.none() | numbers,
    request_bytes=numbers,
    error_message=st.none() | texts,
    lost=st.none() | texts,
    incomplete=st.lists(st.sampled_from(["request", "answer"])).map(tuple),
)
fields: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "status": st.none() | numbers,
        "model": texts,
        "stream": st.booleans(),
        "response_headers": pairs,
        "rate_limits": st.dictionaries(texts, texts),
        "usage": st.dictionaries(texts, st.none() | numbers | st.lists(texts)),
        "link": st.sampled_from(Link),
        "chain": st.binary(),
    },
)
small = opened | closed | fields.map(Noted)


def kind_of(entry: entries.Small) -> Kind:
    return {Opened: Kind.OPENED, Closed: Kind.CLOSED, Noted: Kind.NOTED}[type(entry)]


def whole(frame: entries.Frame) -> bytes:
    return b"".join(frame)


class TestEntries:
    @given(small)
    def test_what_is_encoded_is_decoded(self, entry: entries.Small) -> None:
        """Every entry comes back equal, with the types that its fields have in `Exchange`."""
        payload = entries.encode(entry)
        again = entries.decode(kind_of(entry), payload)
        assert again == entry
        assert type(again) is type(entry)

    @given(st.sampled_from(Kind), st.binary())
    def test_whatever_is_decoded_is_an_entry_or_bad(self, kind: Kind, payload: bytes) -> None:
        """Bytes that are no entry are a `BadEntry` and nothing else."""
        with contextlib.suppress(BadEntry):
            assert isinstance(entries.decode(kind, payload), Opened | Closed | Noted)

    def test_half_a_character_does_not_cost_the_entry(self) -> None:
        """UTF-8 has no lone surrogates; paths and messages of others may."""
        payload = entries.encode(
            Opened(received_at=1, method="POST", path="/v1/\udc80", request_headers=(("a", "\ud800"),))
        )
        again = entries.decode(Kind.OPENED, payload)
        assert isinstance(again, Opened)
        assert again.path == "/v1/?"
        assert again.request_headers == (("a", "?"),)

    def test_a_note_is_about_a_field(self) -> None:
        """A name that no field has is a mistake, found where it is made."""
        with pytest.raises(ValueError, match="an exchange has no statsu"):
            entries.encode(Noted({"statsu": 200}))

    def test_an_entry_has_a_size(self) -> None:
        """What a reader would take for damage is not written."""
        with pytest.raises(ValueError, match="longer than"):
            entries.encode(Noted({"error_message": "x" * entries.MAX_PAYLOAD}))

    def test_fields_of_a_later_version_are_left_out(self) -> None:
        """A slot may be read by an older version than the one that wrote it."""
        payload = msgspec.msgpack.encode({"status": 200, "invented_later": [1]})
        assert entries.decode(Kind.NOTED, payload) == Noted({"status": 200})


class TestIds:
    @given(st.binary(min_size=16, max_size=16))
    def test_a_key_stands_for_an_id(self, key: bytes) -> None:
        """Sixteen bytes are enough for an id of ours."""
        assert entries.exchange_key(entries.exchange_id(key)) == key

    @pytest.mark.parametrize("text", ["", "req_", "req_12", "req_" + "z" * 32, "req_" + "0" * 34])
    def test_other_ids_are_refused(self, text: str) -> None:
        """What has no key is a ValueError."""
        with pytest.raises(ValueError):
            entries.exchange_key(text)


class TestFrames:
    @given(small)
    def test_a_frame_is_what_it_says(self, entry: entries.Small) -> None:
        """The header tells kind, exchange and length, and whether the payload is intact."""
        payload = entries.encode(entry)
        data = whole(entries.frame(kind_of(entry), KEY, payload))
        head = entries.read_head(data)
        assert head is not None
        assert (head.kind, head.key, head.length) == (kind_of(entry), KEY, len(payload))
        assert head.size == len(data)
        assert entries.is_intact(head, data[entries.HEADER.size :])
        assert not entries.is_intact(head, data[entries.HEADER.size :] + b"x")

    def test_the_format_is_this_one(self) -> None:
        """Slots outlive the version that wrote them: these bytes are for ever."""
        data = whole(entries.frame(Kind.NOTED, KEY, b"\x80"))
        assert data.hex() == "01000000" + "2efc3777" + "02" + KEY.hex() + "80"
        (bulk,) = entries.bulk_frames(Kind.ANSWER, KEY, [b"ab", b"c"], [5, 6])
        assert whole(bulk)[entries.HEADER.size :] == struct.pack("<III", 2, 2, 1) + struct.pack("<QQ", 5, 6) + b"abc"

    @given(st.lists(st.binary(max_size=40)), st.sampled_from(list(entries.KINDS)), st.booleans(), st.data())
    def test_bulk_data_keeps_its_bytes_and_times(
        self, pieces: list[bytes], role: Role, marked: bool, data: st.DataObject
    ) -> None:
        """Whatever the pieces, the frames have all of their bytes, in order, with the time of each."""
        times = data.draw(st.lists(numbers, min_size=len(pieces), max_size=len(pieces))) if marked else None
        found = b""
        marks: list[tuple[int, int]] = []
        for frame in entries.bulk_frames(entries.KINDS[role], KEY, pieces, times):
            raw = whole(frame)
            head = entries.read_head(raw)
            assert head is not None
            assert entries.ROLES[head.kind] is role
            payload = raw[entries.HEADER.size :]
            assert entries.is_intact(head, payload)
            found += payload[entries.marks_size(payload) :]
            marks += entries.read_marks(payload)
        assert found == b"".join(pieces)
        assert marks == ([] if times is None else list(zip(map(len, pieces), times, strict=True)))

    def test_a_large_piece_is_cut_and_not_copied(self) -> None:
        """The frames of a large body are views of the bytes that came."""
        body = bytes(2 * PIECE + 5)
        frames = list(entries.bulk_frames(Kind.REQUEST, KEY, [body], None))
        assert [len(data) for _, data in frames] == [PIECE, PIECE, 5]
        assert all(isinstance(data, memoryview) and data.obj is body for _, data in frames)

    def test_a_piece_that_is_cut_keeps_its_time(self) -> None:
        """Both halves came when the piece came."""
        frames = list(entries.bulk_frames(Kind.ANSWER, KEY, [b"x" * (PIECE - 1), b"yz"], [1, 2]))
        marks = [entries.read_marks(whole(frame)[entries.HEADER.size :]) for frame in frames]
        assert marks == [((PIECE - 1, 1), (1, 2)), ((1, 2),)]

    def test_many_small_pieces_are_several_frames(self) -> None:
        """No frame has more marks than its length allows."""
        pieces = [b"x"] * (entries.MAX_MARKS + 1)
        frames = [whole(each) for each in entries.bulk_frames(Kind.ANSWER, KEY, pieces, range(len(pieces)))]
        heads = [entries.read_head(each) for each in frames]
        assert all(head is not None for head in heads)
        assert sum(len(entries.read_marks(each[entries.HEADER.size :])) for each in frames) == len(pieces)

    def test_a_clock_that_was_set_back_costs_nothing(self) -> None:
        """A time before the request's is its time."""
        (frame,) = entries.bulk_frames(Kind.ANSWER, KEY, [b"a", b"b"], [-5, 3])
        assert entries.read_marks(whole(frame)[entries.HEADER.size :]) == ((1, 0), (1, 3))

    @pytest.mark.parametrize(
        "header",
        [
            entries.HEADER.pack(entries.MAX_PAYLOAD + 1, 0, Kind.NOTED, KEY),
            entries.HEADER.pack(1, 0, 0, KEY),
            entries.HEADER.pack(1, 0, 99, KEY),
            entries.HEADER.pack(3, 0, Kind.ANSWER, KEY),
            bytes(entries.HEADER.size),
        ],
        ids=["too long", "kind 0", "kind 99", "no room for marks", "zeros"],
    )
    def test_what_cannot_be_a_header_is_none(self, header: bytes) -> None:
        """A reader that stands in the wrong place learns it, most often at once."""
        assert entries.read_head(header) is None
