"""Exchanges as rows, marks as bytes, migrations as statements."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store_contract import BEGIN, exchange, full_exchange
from twisted_proxy.record import migrations
from twisted_proxy.record.exchange import Mark
from twisted_proxy.record.rows import (
    COLUMNS,
    first_number,
    from_row,
    next_number,
    number_of,
    number_of_id,
    pack_marks,
    storable,
    to_row,
    unpack_marks,
    whole,
)
from twisted_proxy.wire.ids import request_id

MARKS = st.lists(st.builds(lambda end, us: Mark(end=end, us=us), st.integers(0, 2**50), st.integers(0, 2**50)))


@given(MARKS)
def test_marks_come_back(marks: Sequence[Mark]) -> None:
    """Whatever they are, also if they go back."""
    assert unpack_marks(pack_marks(marks)) == tuple(marks)


def test_marks_are_small() -> None:
    """An event of a stream costs a few bytes."""
    marks = [Mark(end=160 * number, us=20_000 * number) for number in range(1000)]
    assert len(pack_marks(marks)) < 6 * len(marks)


def test_rows_come_back() -> None:
    """What is stored of an exchange makes the same exchange."""
    for each in (full_exchange(), exchange(1)):
        row, weight = to_row(each)
        assert len(row) == len(COLUMNS)
        assert weight > 1000
        assert from_row(row) == each


@pytest.mark.parametrize(
    "bad", ["", "req_", "req_" + "0" * 31, "req_" + "0" * 33, "req_" + "G" * 32, "req_" + "A" * 32]
)
def test_a_bad_id(bad: str) -> None:
    """is refused."""
    with pytest.raises(ValueError, match="hexadecimal"):
        to_row(exchange(1, id=bad))


@given(st.integers(0, 2**51), st.integers(0, 2**51), st.binary(min_size=10, max_size=10))
def test_numbers_sort_by_time(one: int, other: int, chance: bytes) -> None:
    """A later millisecond has the higher number; a number is 63 bits, and not less than the first of its moment."""
    exchanges = [exchange(1, id=request_id(at // 1000, chance), received_at=at) for at in sorted((one, other))]
    first, second = map(number_of, exchanges)
    assert 0 <= first_number(exchanges[0].received_at) <= first < 2**63
    assert first < second or exchanges[0].received_at // 1000 == exchanges[1].received_at // 1000
    assert number_of_id(exchanges[0].id) == first


def test_numbers_of_odd_times() -> None:
    """Times before 1970 and after 2109 have a number, too; each number has a next one."""
    for at in (-(10**18), -1, 0, 2**62):
        number = number_of(exchange(1, received_at=at))
        assert 0 <= number < 2**63
        assert number != next_number(number) < 2**63
    assert next_number(2**63 - 1) == 2**63 - 2


def test_storable() -> None:
    """Text without what no database takes is the same; numbers have 64 bits."""
    assert storable("aé\U0001f600") == "aé\U0001f600"
    assert storable("a\0\ud800é\udfff") == "a\ufffd\ufffdé\ufffd"
    assert storable(None) is None
    assert (whole(10**30), whole(-(10**30)), whole(5)) == (2**63 - 1, -(2**63 - 1), 5)


def test_ids_of_one_millisecond_differ() -> None:
    """Random bits of the id are in the number, so that two of a millisecond hardly ever meet."""
    numbers = {number_of(exchange(1, id=request_id(BEGIN // 1000, os.urandom(10)))) for _ in range(500)}
    assert len(numbers) > 490


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_migrations_are_read(database: str) -> None:
    """Each has statements that end where they should, without comments."""
    for step in migrations.migrations(database):
        assert step.statements
        for statement in step.statements:
            assert "--" not in statement
            assert statement.count("(") == statement.count(")")


def test_migrations_have_no_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is missing, or is there twice, is found at once."""
    directory = tmp_path / "schema" / "some"
    directory.mkdir(parents=True)
    monkeypatch.setattr(migrations, "files", lambda package: tmp_path)
    (directory / "0001_first.sql").write_text(
        "-- a; comment\nCREATE TABLE a (b TEXT);\n\nCREATE TABLE c (\n    d TEXT -- e\n);\n"
    )
    (directory / "README.md").write_text("not a migration")
    (step,) = migrations.migrations("some")
    assert (step.version, step.name, len(step.statements)) == (1, "0001_first.sql", 2)
    (directory / "0003_third.sql").write_text("SELECT 1;")
    with pytest.raises(AssertionError, match="gaps"):
        migrations.migrations("some")
