"""Content codings undone, within bounds."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from twisted_proxy.record.coding import MAX_CODINGS, Decoded, decode


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "deflate": zlib.compress,
    "br": lambda data: bytes(brotli.compress(data, quality=2)),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}
TEXT = b"".join(b"line %d of a body that is encoded\n" % number for number in range(5000))
# Not even zstd puts all of it in one block.
LONG = b"".join(b"%d %x\n" % (number, hash((number, number))) for number in range(50_000))
BOMB = bytes(64 * 1024 * 1024)
LIMIT = 1024 * 1024

codings = pytest.mark.parametrize("coding", ENCODERS)


class TestWhole:
    """Bodies that are what their header says."""

    @codings
    def test_each(self, coding: str) -> None:
        """Comes back as it was, also when nothing was in it."""
        for data in (TEXT, b"x"):
            assert decode(ENCODERS[coding](data), coding) == Decoded(data=data)
        assert decode(ENCODERS[coding](b""), coding) == Decoded(data=b"")

    @pytest.mark.parametrize("name", ["GZIP", " x-gzip ", "identity, gzip", "gzip,", ",gzip,identity"])
    def test_names(self, name: str) -> None:
        """In any case; `identity` and empty elements say nothing (RFC 9110 §5.6.1)."""
        assert decode(gzip.compress(TEXT), name) == Decoded(data=TEXT)

    @pytest.mark.parametrize("name", [None, "", "identity", " , "])
    def test_not_encoded(self, name: str | None) -> None:
        """What is not encoded stays."""
        assert decode(TEXT, name) == Decoded(data=TEXT)

    @codings
    def test_no_body(self, coding: str) -> None:
        """An answer to HEAD names the coding of what it does not have."""
        assert decode(b"", coding) == Decoded(data=b"")

    def test_in_a_row(self) -> None:
        """The last that was applied is undone first."""
        encoded = ENCODERS["zstd"](ENCODERS["br"](ENCODERS["gzip"](TEXT)))
        assert decode(encoded, "gzip, br, zstd") == Decoded(data=TEXT)

    def test_deflate_without_zlib(self) -> None:
        """As some send it."""
        assert decode(raw_deflate(TEXT), "deflate") == Decoded(data=TEXT)

    def test_members_and_frames(self) -> None:
        """Several gzip members or zstd frames in a row are one body."""
        assert decode(gzip.compress(TEXT) + gzip.compress(b"more"), "gzip") == Decoded(data=TEXT + b"more")
        assert decode(gzip.compress(TEXT) + bytes(100), "gzip") == Decoded(data=TEXT)
        frames = ENCODERS["zstd"](TEXT) + ENCODERS["zstd"](b"more")
        assert decode(frames, "zstd") == Decoded(data=TEXT + b"more")

    @given(st.binary(max_size=2000), st.lists(st.sampled_from(list(ENCODERS)), max_size=MAX_CODINGS))
    def test_any(self, data: bytes, names: list[str]) -> None:
        """Any bytes through any codings come back."""
        encoded = data
        for name in names:
            encoded = ENCODERS[name](encoded)
        assert decode(encoded, ", ".join(names)) == Decoded(data=data)


class TestBounds:
    """Nobody vouches for what comes."""

    @codings
    def test_a_bomb(self, coding: str) -> None:
        """No more comes out than the limit; it is said why that is not all."""
        result = decode(ENCODERS[coding](BOMB), coding, limit=LIMIT)
        assert result == Decoded(data=bytes(LIMIT), problem=f"decoded it is larger than {LIMIT} bytes")

    def test_a_bomb_in_a_bomb(self) -> None:
        """The limit holds at each step."""
        result = decode(gzip.compress(gzip.compress(BOMB) * 100), "gzip, gzip", limit=LIMIT)
        assert len(result.data) == LIMIT
        assert result.problem is not None

    @codings
    def test_just_the_limit(self, coding: str) -> None:
        """The limit itself is allowed."""
        assert decode(ENCODERS[coding](bytes(LIMIT)), coding, limit=LIMIT) == Decoded(data=bytes(LIMIT))
        assert decode(ENCODERS[coding](bytes(LIMIT + 1)), coding, limit=LIMIT).problem is not None

    def test_too_many(self) -> None:
        """So many codings are nobody's."""
        result = decode(b"x", ",".join(["gzip"] * 5))
        assert result == Decoded(data=b"", problem="it is encoded 5 times; 4 are undone")

    def test_an_unknown_coding(self) -> None:
        """Nothing is given for what it is not."""
        result = decode(b"x", "gzip, sn\x1bappy" + "y" * 1000)
        assert result.data == b""
        assert result.problem is not None
        assert result.problem.startswith("its content coding 'sn\\x1bappyyy")
        assert len(result.problem) < 100


class TestBroken:
    """What there is of a body that was cut or damaged."""

    @codings
    def test_cut(self, coding: str) -> None:
        """As much as came, and that it ends early."""
        encoded = ENCODERS[coding](LONG)
        result = decode(encoded[: len(encoded) // 2], coding)
        assert len(LONG) // 4 < len(result.data) < len(LONG)
        assert LONG.startswith(result.data)
        assert result.problem == f"it ends in the middle of its {coding} data"

    @codings
    def test_another_thing(self, coding: str) -> None:
        """Nothing, and that it is not what it says."""
        result = decode(b'{"not": "encoded at all"}' * 10, coding)
        assert result == Decoded(data=b"", problem=f"it is not {coding}, from byte 0 of what is decoded on")

    def test_damaged(self) -> None:
        """What comes before the damage is there."""
        encoded = bytearray(gzip.compress(LONG))
        encoded[len(encoded) // 2 : len(encoded) // 2 + 200] = b"\xff" * 200
        result = decode(bytes(encoded), "gzip")
        assert result.problem is not None
        assert result.problem.startswith("it is not gzip, from byte ")
        assert LONG.startswith(result.data[: len(LONG) // 4])
        assert len(result.data) > len(LONG) // 4

    def test_cut_twice(self) -> None:
        """Through all codings."""
        encoded = gzip.compress(ENCODERS["zstd"](LONG))
        result = decode(encoded[: len(encoded) * 3 // 4], "zstd, gzip")
        assert result.problem is not None
        assert len(result.data) > len(LONG) // 4
        assert LONG.startswith(result.data)

    @given(st.sampled_from(list(ENCODERS)), st.binary(max_size=300), st.integers(0, 200), st.binary(max_size=20))
    def test_any_damage(self, coding: str, data: bytes, place: int, damage: bytes) -> None:
        """Nothing raises, and the limit holds."""
        encoded = ENCODERS[coding](data)
        broken = encoded[:place] + damage + encoded[place + len(damage) // 2 :]
        assert len(decode(broken, coding, limit=500).data) <= 500
        assert len(decode(damage, f"{coding}, {coding}", limit=500).data) <= 500
