"""
Words for PostgreSQL's full-text search, as literals of ``tsvector`` and ``tsquery``.

A ``tsvector`` holds no position above 16,383, at most 256 of a word, and a megabyte in all; phrases beyond that would
be missed silently. A text that needs more has several: each with the places of a run of its words, and all of its other
words without a place. https://www.postgresql.org/docs/current/textsearch-limitations.html
"""

from __future__ import annotations

from collections.abc import Sequence

from .words import MOST_SOUGHT

MOST_PLACES = 16_383
MOST_OF_A_WORD = 256
LARGEST_RUN = 400_000
LARGEST = 1_000_000
"""Bytes of one ``tsvector``; what is left of them behind a run is for the other words."""

_OVERLAP = MOST_SOUGHT - 1
"""Words that a run has in common with the next, so that no phrase falls between two."""


def _quoted(word: str) -> str:
    # Letters and digits are all that a word has, but not all of those are what PostgreSQL takes for such.
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"


def _size(word: str) -> int:
    """Bytes of a word in a ``tsvector``: its entry and text, aligned, and the number of places."""
    return len(word.encode("utf-8")) + 8


def _run(words: Sequence[str], start: int) -> tuple[dict[str, list[int]], int, int]:
    """The places of words from ``start`` on, as far as one ``tsvector`` has room; where they end; and their bytes."""
    places: dict[str, list[int]] = {}
    size = 0
    end = start
    for end in range(start, min(start + MOST_PLACES, len(words))):
        word = words[end]
        known = places.get(word)
        if known is None:
            known = places[word] = []
            size += _size(word)
        if len(known) == MOST_OF_A_WORD or size > LARGEST_RUN:
            return places, end, size
        known.append(end - start + 1)
        size += 2
    return places, end + 1, size


def literals(words: Sequence[str]) -> list[str]:
    """The ``tsvector`` of a text, or several: at least one."""
    made = []
    everything = dict.fromkeys(words)
    start = 0
    while True:
        places, end, size = _run(words, start)
        entries = [f"{_quoted(word)}:{','.join(map(str, at))}" if at else _quoted(word) for word, at in places.items()]
        for word in everything if len(places) < len(everything) else ():
            if word not in places:
                size += _size(word)
                if size > LARGEST:
                    break
                entries.append(_quoted(word))
        made.append(" ".join(entries))
        if end >= len(words):
            return made
        # A run of one word, again and again, is shorter than the overlap only if the limits are.
        start = max(end - _OVERLAP, start + 1)


def query(phrases: Sequence[Sequence[str]]) -> str:
    """The ``tsquery`` for texts that have all of these phrases."""
    return " & ".join("(" + " <-> ".join(map(_quoted, phrase)) + ")" for phrase in phrases)
