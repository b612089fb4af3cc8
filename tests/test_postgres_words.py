"""Words as PostgreSQL is given them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_proxy.record import postgres_words
from twisted_proxy.record.postgres_words import literals, query

_ENTRY = re.compile(r"'((?:[^'\\\\]|''|\\\\.)*)'(?::([0-9,]+))?")


def places(literal: str) -> dict[str, list[int]]:
    """What a ``tsvector`` literal says."""
    return {
        match[1].replace("''", "'").replace("\\\\", "\\"): [int(each) for each in (match[2] or "").split(",") if each]
        for match in _ENTRY.finditer(literal)
    }


def has(literal: str, phrase: list[str]) -> bool:
    """Whether PostgreSQL would find a phrase in it; a single word needs no place."""
    known = places(literal)
    if any(word not in known for word in phrase):
        return False
    return len(phrase) == 1 or any(
        all(start + step in known[word] for step, word in enumerate(phrase)) for start in known[phrase[0]]
    )


def test_a_short_text() -> None:
    """One literal, with each word once and all of its places."""
    assert literals(["a", "b", "a"]) == ["'a':1,3 'b':2"]


def test_no_words() -> None:
    """A text without words has a row all the same."""
    assert literals([]) == [""]


def test_quotes() -> None:
    """Whatever a word is, it stays one word."""
    assert literals(["it's", "a\\b"]) == ["'it''s':1 'a\\\\b':2"]
    assert query([["it's"], ["a", "b"]]) == "('it''s') & ('a' <-> 'b')"


@pytest.mark.parametrize("words", [["same"] * 1000, [str(number) for number in range(40_000)]])
def test_the_limits(words: list[str]) -> None:
    """No place beyond the last that there is, no more of a word than fit; every word in every literal."""
    made = literals(words)
    assert len(made) > 1
    for literal in made:
        known = places(literal)
        assert known.keys() == set(words)
        assert max(max(at, default=0) for at in known.values()) <= 16_383
        assert max(len(at) for at in known.values()) <= 256


def test_too_many_different_words() -> None:
    """A megabyte is not exceeded; each word is found by itself, where its run is."""
    words = [f"{number:064d}" for number in range(20_000)]
    made = literals(words)
    for literal in made:
        assert sum(len(word) + 10 + 2 * len(at) for word, at in places(literal).items()) < 1024 * 1024
    assert set().union(*map(places, made)) == set(words)


@given(st.lists(st.sampled_from("abc"), max_size=60), st.data())
def test_every_phrase_is_in_one_literal(words: list[str], data: st.DataObject) -> None:
    """However a text is cut, no phrase of it falls between two literals, and none is found that is not there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgres_words, "MOST_PLACES", 12)
        patch.setattr(postgres_words, "MOST_OF_A_WORD", 5)
        patch.setattr(postgres_words, "_OVERLAP", 3)
        made = literals(words)
    for start in range(len(words)):
        for length in range(1, 5):
            phrase = words[start : start + length]
            assert any(has(literal, phrase) for literal in made)
    sought = data.draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=4))
    there = any(words[start : start + len(sought)] == sought for start in range(len(words)))
    assert any(has(literal, sought) for literal in made) is there
