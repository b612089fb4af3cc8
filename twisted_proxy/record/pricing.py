"""
What tokens cost, by a table of prices that is data: ``prices.json`` beside this module, and a file of the user's.

Such a file is ``{"prices": [entry, …]}``. An entry:

``models``
    Patterns of models' names, in lower case; ``*`` and ``?`` stand for any characters, or for one. The pattern with the
    most characters of its own decides.
``from``
    Optional, ``YYYY-MM-DD``: of entries for the same pattern, the latest that has begun (UTC) at the request's time
    counts.
``usd_per_million_tokens``
    ``input``, ``output``; optional ``cache_read``, ``cache_write_5m`` and ``cache_write_1h``: without a price of
    their own such tokens cost what input does.
``above``
    Optional ``{"prompt_tokens": n, "usd_per_million_tokens": {…}}``: the prices of all tokens when the prompt, with
    what the cache gave or took, has more than so many.
``usd_per_thousand``
    Optional ``{"web_search_requests": …}``.
``factors``
    Optional: by what all tokens' prices are multiplied, by `usage.Charge.modes`.
"""

from __future__ import annotations

import datetime
import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from importlib import resources
from pathlib import Path
from typing import Any

import attrs

from .usage import Charge

MODES = ("batch", "fast", "flex", "priority", "us")

_KINDS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")
_MAX_NANOUSD = 2**63 - 1
_NANOUSD_OF_ONE = 1000
"""A dollar for a million is so many 10⁻⁹ dollars for one."""


@attrs.frozen(kw_only=True)
class Cost:
    """
    :ivar nanousd: 10⁻⁹ US dollars.
    :ivar partial: something in it has no known price: it cost at least so much.
    """

    nanousd: int
    partial: bool


@attrs.frozen(kw_only=True)
class _Tokens:
    """US dollars for a million tokens of each kind."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal

    def cost(self, charge: Charge) -> Decimal:
        return (
            self.input * charge.input_tokens
            + self.output * charge.output_tokens
            + self.cache_read * charge.cache_read_tokens
            + self.cache_write_5m * charge.cache_write_5m_tokens
            + self.cache_write_1h * charge.cache_write_1h_tokens
        )


@attrs.frozen(kw_only=True)
class _Entry:
    patterns: tuple[tuple[int, re.Pattern[str]], ...]
    """How much of a name each says, and how to match it."""
    begins: datetime.date
    tokens: _Tokens
    above: int | None
    tokens_above: _Tokens | None
    web_search: Decimal | None
    factors: Mapping[str, Decimal]

    def matches(self, model: str) -> int | None:
        return max((size for size, pattern in self.patterns if pattern.fullmatch(model)), default=None)

    def cost(self, charge: Charge) -> Cost:
        tokens = self.tokens
        if self.tokens_above is not None and self.above is not None and charge.prompt_tokens > self.above:
            tokens = self.tokens_above
        cost = tokens.cost(charge) * _NANOUSD_OF_ONE
        partial = False
        for mode in sorted(charge.modes):
            if mode in self.factors:
                cost *= self.factors[mode]
            else:
                partial = True
        if charge.web_search_requests:
            if self.web_search is None:
                partial = True
            else:
                cost += self.web_search * charge.web_search_requests * 1_000_000
        return Cost(nanousd=int(cost.to_integral_value(ROUND_HALF_UP)), partial=partial)


@attrs.frozen(eq=False)
class Prices:
    """A table of prices, or several: a model that an earlier one names is priced by that."""

    _tables: Sequence[Sequence[_Entry]]
    _fitting: dict[str, Sequence[Sequence[tuple[int, _Entry]]]] = attrs.field(init=False, factory=dict)

    def cost(self, charges: Iterable[Charge], at: int, *, model: str | None = None) -> Cost | None:
        """
        What an answer cost.

        :param at: the request's time, microseconds since the Unix epoch.
        :param model: of charges that name none: what was asked for.
        :return: ``None`` where the price of nothing in it is known; or nothing was used.
        """
        nanousd = 0
        known = partial = False
        for charge in charges:
            name = charge.model or model
            entry = None if name is None else self._entry(name.lower(), at)
            if entry is None:
                partial = True
                continue
            known = True
            cost = entry.cost(charge)
            nanousd += cost.nanousd
            partial = partial or cost.partial
        return Cost(nanousd=nanousd, partial=partial) if known and nanousd <= _MAX_NANOUSD else None

    def _entry(self, model: str, at: int) -> _Entry | None:
        day = _day(at)
        for fitting in self._find(model):
            begun = [each for each in fitting if each[1].begins <= day]
            if begun:
                return max(begun, key=lambda each: (each[0], each[1].begins))[1]
        return None

    def _find(self, model: str) -> Sequence[Sequence[tuple[int, _Entry]]]:
        """Of each table the entries for a model, each with how much of the name its pattern says."""
        found = self._fitting.get(model)
        if found is None:
            found = [
                [(size, entry) for entry in table if (size := entry.matches(model)) is not None]
                for table in self._tables
            ]
            # Of names there are as many as clients and upstreams care to make up.
            if len(self._fitting) < _NAMES_REMEMBERED:
                self._fitting[model] = found
        return found


_NAMES_REMEMBERED = 1000


def shipped() -> Prices:
    """The prices that come with the package."""
    return Prices((_shipped(),))


def load(path: Path) -> Prices:
    """
    The prices of a file, and behind them, for models that it does not name, those of the package.

    :raises ValueError: it cannot be read, or is not of the form above; the text has a line for every problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: cannot be read: {e}") from e
    problems: list[str] = []
    entries = _read(text, problems)
    if problems:
        raise ValueError("\n".join(f"{path}: {problem}" for problem in problems))
    return Prices((entries, _shipped()))


def _shipped() -> Sequence[_Entry]:
    problems: list[str] = []
    entries = _read(resources.files(__package__).joinpath("prices.json").read_text(encoding="utf-8"), problems)
    assert not problems, problems
    return entries


def _day(at: int) -> datetime.date:
    try:
        return (_EPOCH + datetime.timedelta(microseconds=at)).date()
    except OverflowError:
        return datetime.date.max


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

# Reading a table


def _read(text: str, problems: list[str]) -> Sequence[_Entry]:
    try:
        document = json.loads(text, parse_float=Decimal, parse_int=Decimal, parse_constant=str)
    except (ValueError, RecursionError) as e:
        problems.append(f"is not JSON: {e}")
        return ()
    if not isinstance(document, dict) or not isinstance(document.get("prices"), list):
        problems.append('must be an object with a list "prices"')
        return ()
    _unknown(document, ("about", "prices"), "the file", problems)
    entries = []
    for number, item in enumerate(document["prices"], 1):
        found: list[str] = []
        entry = _read_entry(item, found)
        problems += [f"entry {number}: {problem}" for problem in found]
        if entry is not None and not found:
            entries.append(entry)
    return entries


def _read_entry(item: object, problems: list[str]) -> _Entry | None:
    if not isinstance(item, dict):
        problems.append("must be an object")
        return None
    known = ("models", "from", "usd_per_million_tokens", "above", "usd_per_thousand", "factors")
    _unknown(item, known, "it", problems)
    patterns = item.get("models")
    if not isinstance(patterns, list) or not patterns or not all(isinstance(each, str) and each for each in patterns):
        problems.append('"models" must be a list of names or patterns')
        patterns = []
    tokens = _read_tokens(item.get("usd_per_million_tokens"), "", problems)
    above, tokens_above = _read_above(item.get("above"), problems)
    per_thousand = _numbers(item.get("usd_per_thousand", {}), "usd_per_thousand", ("web_search_requests",), problems)
    factors = _numbers(item.get("factors", {}), "factors", MODES, problems)
    begins = _read_date(item.get("from"), problems)
    if problems or tokens is None:
        return None
    return _Entry(
        patterns=tuple(_compile(pattern.lower()) for pattern in patterns),
        begins=begins,
        tokens=tokens,
        above=above,
        tokens_above=tokens_above,
        web_search=per_thousand.get("web_search_requests"),
        factors=factors,
    )


def _compile(pattern: str) -> tuple[int, re.Pattern[str]]:
    # No sets: `[1m]` is a part of names.
    literal = re.sub(r"[*?]", "", pattern)
    return len(literal), re.compile(fnmatch.translate(pattern.replace("[", "[[]")))


def _read_date(value: object, problems: list[str]) -> datetime.date:
    if value is None:
        return datetime.date.min
    try:
        if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII):
            return datetime.date.fromisoformat(value)
    except ValueError:
        pass
    problems.append('"from" must be a date, YYYY-MM-DD')
    return datetime.date.min


def _read_above(value: object, problems: list[str]) -> tuple[int | None, _Tokens | None]:
    if value is None:
        return None, None
    if not isinstance(value, dict):
        problems.append('"above" must be an object')
        return None, None
    _unknown(value, ("prompt_tokens", "usd_per_million_tokens"), '"above"', problems)
    limit = value.get("prompt_tokens")
    if not isinstance(limit, Decimal) or limit != limit.to_integral_value() or limit < 0:
        problems.append('"above": "prompt_tokens" must be a whole number')
        limit = Decimal()
    return int(limit), _read_tokens(value.get("usd_per_million_tokens"), '"above": ', problems)


def _read_tokens(value: object, where: str, problems: list[str]) -> _Tokens | None:
    name = "usd_per_million_tokens"
    numbers = _numbers(value, name, _KINDS, problems, where)
    missing = [kind for kind in ("input", "output") if kind not in numbers]
    if isinstance(value, dict) and (missing := [kind for kind in missing if kind not in value]):
        problems.append(f'{where}"{name}" has no {" and no ".join(missing)}')
    if "input" not in numbers or "output" not in numbers:
        return None
    prices = {kind: numbers.get(kind, numbers["input"]) for kind in _KINDS}
    return _Tokens(**prices)


def _numbers(
    value: object, name: str, known: Sequence[str], problems: list[str], where: str = ""
) -> Mapping[str, Decimal]:
    if not isinstance(value, dict):
        problems.append(f'{where}"{name}" must be an object')
        return {}
    _unknown(value, known, f'{where}"{name}"', problems)
    numbers = {}
    for key in known:
        number = value.get(key)
        if isinstance(number, Decimal) and 0 <= number <= _MAX_PRICE:
            numbers[key] = number
        elif number is not None or key in value:
            problems.append(f'{where}"{name}": "{key}" must be a number from 0 to {_MAX_PRICE}')
    return numbers


_MAX_PRICE = 1_000_000


def _unknown(value: Mapping[str, Any], known: Sequence[str], where: str, problems: list[str]) -> None:
    problems.extend(f"{where} has an unknown member {key[:64]!a}" for key in value if key not in known)
