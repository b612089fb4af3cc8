"""
Words, as a search knows them: the same for every store, whatever its database makes of text.

A word is a run of letters and digits; in scripts that put no blanks between words each character is one. Case and the
accents of letters do not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice

LONGEST = 64
"""Characters of a word; what follows them does not count."""

MOST_INDEXED = 50_000
"""Words of one text that are found; of a longer one, those at the beginning."""

MOST_SOUGHT = 32
"""Words that one search looks for; what follows them does not count."""

# Thai, Lao, Myanmar, Khmer, kana, and the Han characters.
_ALONE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")
_ACCENTS = re.compile("[\u0300-\u036f]+")
_MOST_LOOKED_AT = 1000
_PHRASE_OR_WORD = re.compile(r'"([^"]*)"?|([^\s"]+)')


def fold(text: str) -> str:
    """Without case and accents."""
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return unicodedata.normalize("NFC", _ACCENTS.sub("", decomposed))


def split(text: str) -> Iterator[str]:
    """The words of a text, folded, in order."""
    return (match[0][:LONGEST] for match in _WORD.finditer(fold(text)))


def indexed(text: str) -> list[str]:
    """The words that a text is to be found by."""
    # No text needs all of its characters folded to give so many words; a cut one must not cost what a whole one does.
    return list(islice(split(text[: MOST_INDEXED * (LONGEST + 1)]), MOST_INDEXED))


def phrases(text: str) -> list[list[str]]:
    """
    What a `Query.text` asks for: all of these, each one or more words that follow one another.

    Whatever stands in it, it is understood: a quote that is not closed reaches to the end, and what has several words
    between blanks (``foo_bar``, ``don't``) is a phrase. None, if it has no letter or digit.
    """
    found: list[list[str]] = []
    left = MOST_SOUGHT
    for match in _PHRASE_OR_WORD.finditer(text):
        words = list(islice(split(match[1] or match[2] or ""), left))
        if words and words not in found:
            found.append(words)
            left -= len(words)
        if not left:
            break
    return found


def snippet(text: str, sought: Sequence[Sequence[str]], around: int) -> str | None:
    """
    So many characters on both sides of the first place where one of these phrases stands; where none does, of the
    first place of one of their words.
    """
    wanted = {word for phrase in sought for word in phrase}
    place: tuple[int, int] | None = None
    looked_at = 0
    for start, end, words in _places(text):
        if wanted.isdisjoint(words):
            continue
        if place is None:
            place = start, end
        if any(_stands_at(text, start, phrase) for phrase in sought):
            place = start, end
            break
        looked_at += 1
        if looked_at == _MOST_LOOKED_AT:
            break
    if place is None:
        return None
    return text[max(0, place[0] - around) : place[1] + around]


def _places(text: str) -> Iterator[tuple[int, int, list[str]]]:
    """Where the words of a text are that is not folded."""
    for match in re.finditer(rf"[{_ALONE}]|(?:[^\W_{_ALONE}]|[\u0300-\u036f])+", text):
        yield match.start(), match.end(), list(split(match[0]))


def _stands_at(text: str, start: int, phrase: Sequence[str]) -> bool:
    # What is between words may be long, but then it is not worth a better snippet.
    following = text[start : start + 4 * sum(len(word) + 1 for word in phrase) + 64]
    return list(islice(split(following), len(phrase))) == list(phrase)
