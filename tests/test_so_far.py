"""What a slot has of an answer that is still coming."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.spooled import Spooled, exchange_id
from twisted_proxy.record.exchange import Role
from twisted_proxy.record.so_far import read_so_far

MOST = 1000


@pytest.fixture
def spooled(tmp_path: Path) -> Spooled:
    return Spooled(tmp_path)


def test_over_segments(spooled: Spooled) -> None:
    """In order, over several files, of those that are asked for and of the body that is asked for."""
    spooled.opened(1)
    spooled.bulk(1, Role.REQUEST, b"request")
    spooled.bulk(1, Role.ANSWER, b"one", b"two", times=[10, 20])
    spooled.bulk(2, Role.ANSWER, b"other", times=[10])
    spooled.rotate()
    spooled.bulk(1, Role.ANSWER, b"three", times=[30])
    spooled.bulk(1, Role.RECEIVED, b"more", times=[30])
    found = read_so_far(spooled.path, {exchange_id(1): Role.ANSWER, exchange_id(3): Role.ANSWER}, MOST)
    assert bytes(found[exchange_id(1)].data) == b"onetwothree"
    assert found[exchange_id(1)].until(20) == b"onetwo"
    assert found[exchange_id(1)].until(5) == b""
    assert not found[exchange_id(3)].data


def test_behind_a_checkpoint(spooled: Spooled) -> None:
    """A checkpoint stands for the files before it, also while they are still there."""
    spooled.opened(1)
    spooled.bulk(1, Role.ANSWER, b"one", times=[10])
    first = spooled.path / "000000000001.journal"
    (spooled.path / "000000000001.checkpoint").write_bytes(first.read_bytes())
    spooled.rotate()
    spooled.bulk(1, Role.ANSWER, b"two", times=[20])
    found = read_so_far(spooled.path, {exchange_id(1): Role.ANSWER}, MOST)
    assert bytes(found[exchange_id(1)].data) == b"onetwo"


def test_too_large(spooled: Spooled) -> None:
    """A body that is larger than is wanted is left out, and no other."""
    spooled.bulk(1, Role.ANSWER, b"x" * MOST, times=[10])
    spooled.bulk(1, Role.ANSWER, b"x", times=[20])
    spooled.bulk(2, Role.ANSWER, b"y", times=[20])
    assert set(read_so_far(spooled.path, {exchange_id(n): Role.ANSWER for n in (1, 2)}, MOST)) == {exchange_id(2)}


def test_damage(spooled: Spooled, tmp_path: Path) -> None:
    """Of what is damaged, or not there, nothing is known; half of a frame at the end is not there yet."""
    spooled.bulk(1, Role.ANSWER, b"one", times=[10])
    segment = spooled.path / "000000000001.journal"
    whole = segment.read_bytes()
    segment.write_bytes(whole + whole[:20])
    wanted = {exchange_id(1): Role.ANSWER}
    assert bytes(read_so_far(spooled.path, wanted, MOST)[exchange_id(1)].data) == b"one"
    segment.write_bytes(whole[:-1] + b"X")
    assert read_so_far(spooled.path, wanted, MOST) == {}
    segment.write_bytes(b"\xff" * 100)
    assert read_so_far(spooled.path, wanted, MOST) == {}
    assert read_so_far(tmp_path / "none", wanted, MOST) == {}
