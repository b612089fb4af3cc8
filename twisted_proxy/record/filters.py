"""From a query to a statement: which exchanges, and the way to them that looks at few others."""

# ruff: noqa: S608 - what is put into a statement is placeholders, and names of our own

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

from .database import Dialect, Transaction
from .rows import first_number, storable
from .store import Query

FEW = 500
"""Exchanges that may be looked at one by one. Where a filter leaves fewer, that is the quickest way."""

_COMPARED_WHOLE = ("session", "agent", "conversation", "request_class", "status", "verdict", "path")


@attrs.frozen
class Filter:
    """
    What must hold of an exchange.

    :ivar condition: ``{number}`` in it stands for the column with its number.
    :ivar column: which it compares, if an index of that column helps.
    :ivar whole: whether it has to be equal to one value: then that index gives the exchanges in order.
    """

    condition: str
    parameters: tuple[object, ...] = ()
    column: str | None = None
    whole: bool = False


@attrs.frozen
class Way:
    """
    Filters that must all hold.

    :ivar match: what `Dialect.match` made of the words that are sought, if any are.
    """

    filters: tuple[Filter, ...]
    match: str | None = None

    def narrowed(self, filters: Iterable[Filter]) -> Way:
        return attrs.evolve(self, filters=(*self.filters, *filters))


@attrs.frozen(kw_only=True)
class Chosen:
    """
    The pieces of a SELECT of exchanges' numbers.

    :ivar number: the column.
    """

    source: str
    number: str
    condition: str
    parameters: tuple[object, ...]


def filters_of(query: Query, match: str | None) -> tuple[Way, ...]:
    """A query as one way, or as several that have no exchange in common."""
    filters = []
    if query.since is not None:
        filters.append(Filter("received_at >= ?", (query.since,)))
        filters.append(Filter("{number} >= ?", (first_number(query.since),)))
    if query.until is not None:
        filters.append(Filter("received_at < ?", (query.until,)))
        filters.append(Filter("{number} < ?", (first_number(query.until + 999),)))
    for column in _COMPARED_WHOLE:
        value = getattr(query, column)
        if value is not None:
            value = storable(value) if isinstance(value, str) else value
            filters.append(Filter(f"{column} = ?", (value,), column, whole=True))
    if query.in_flight is not None:
        filters.append(
            Filter("verdict IS NULL", (), "verdict", whole=True) if query.in_flight else Filter("verdict IS NOT NULL")
        )
    if query.cost_at_least is not None:
        filters.append(Filter("cost_nanousd >= ?", (query.cost_at_least,), "cost_nanousd"))
    if query.cost_at_most is not None:
        filters.append(Filter("cost_nanousd <= ?", (query.cost_at_most,), "cost_nanousd"))
    if query.model is None and query.models is None:
        return (Way(tuple(filters), match),)
    models = set(query.models or ()) if query.model is None else {query.model}
    if query.model is not None and query.models is not None:
        models &= set(query.models)
    wanted = tuple(sorted(map(storable, models)))
    if not wanted:
        return ()
    one_of = f"IN ({', '.join('?' * len(wanted))})"
    asked = Filter(f"model {one_of}", wanted, "model", whole=len(wanted) == 1)
    routed = Filter(f"routed_model {one_of}", wanted, "routed_model", whole=len(wanted) == 1)
    otherwise = Filter(f"(model IS NULL OR model NOT {one_of})", wanted)
    return Way((*filters, asked), match), Way((*filters, routed, otherwise), match)


async def choose(transaction: Transaction, dialect: Dialect, way: Way) -> Chosen:
    """How to go a way."""
    source, number = dialect.source(search=way.match is not None, index=await _index(transaction, dialect, way))
    conditions = [each.condition.format(number=number) for each in way.filters]
    parameters = [parameter for each in way.filters for parameter in each.parameters]
    if way.match is not None:
        conditions.append(dialect.match_condition)
        parameters.append(way.match)
    return Chosen(
        source=source, number=number, condition=" AND ".join(conditions) or "1 = 1", parameters=tuple(parameters)
    )


async def _index(transaction: Transaction, dialect: Dialect, way: Way) -> str | None:
    """The index that leaves the fewest exchanges to look at; ``None`` if each leaves many."""
    filters = [each for each in way.filters if each.column in dialect.indexes]
    bounds = [each for each in way.filters if "{number}" in each.condition]
    best: str | None = None
    fewest = FEW
    for each in filters:
        assert each.column is not None
        index = dialect.indexes[each.column]
        found = await _count(transaction, dialect, index, [each, *bounds])
        if found < fewest:
            best, fewest = index, found
    if best is None and way.match is not None and len(way.filters) > len(bounds) + 1 and "number" in dialect.indexes:
        # Each alone leaves many; all together maybe not. Then it is quicker to look which of those have the words.
        every = dialect.indexes["number"]
        return every if await _count(transaction, dialect, every, way.filters) < FEW else None
    if best is None and way.match is None and len(way.filters) == len(bounds) + 1 and filters and filters[0].whole:
        # Nothing else is asked: in the order of this index, each exchange is one that is meant.
        return dialect.indexes[filters[0].column or ""]
    return best


async def _count(transaction: Transaction, dialect: Dialect, index: str, filters: Sequence[Filter]) -> int:
    """How many exchanges these leave, up to `FEW`."""
    source, number = dialect.source(search=False, index=index)
    condition = " AND ".join(each.condition.format(number=number) for each in filters)
    row = (
        await transaction.execute(
            f"SELECT count(*) FROM (SELECT {number} FROM {source} WHERE {condition} LIMIT ?) AS found",
            *[parameter for each in filters for parameter in each.parameters],
            FEW,
        )
    ).first
    return 0 if row is None else int(row[0])
