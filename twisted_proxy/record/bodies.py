"""
Bodies in a database: their recipes, and the parts and runs that these share.

A part is there as long as something refers to it: ``refs`` is the number of times that it stands in recipes of bodies
and in runs, a run's that of recipes. It is exact after every transaction.
"""

# ruff: noqa: S608 - what is put into a statement is placeholders, and names of our own

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
from twisted.logger import Logger

from . import blobs
from .database import Transaction
from .exchange import Body, Role, StoredBody
from .rows import pack_marks, storable, unpack_marks

log = Logger()

V = TypeVar("V")
Shared = TypeVar("Shared", blobs.Part, blobs.Run)

VALUES = 500
"""In one list of a statement."""

ROWS = 100
"""In one INSERT."""

STATEMENT_BYTES = 1024 * 1024
"""Of values in one statement, more or less; a single one may be longer."""

AHEAD = 32 * 1024 * 1024
"""Bytes of parts that are compressed before the transaction begins: while it lasts, nobody else writes."""

PART_WEIGHT = 150
"""Bytes that a part takes beside its data. Measured, for SQLite."""

BODY_WEIGHT = 100


@attrs.define
class Tally:
    """By how much a transaction changes the totals, in bytes."""

    bodies: int = 0
    others: int = 0


@attrs.frozen(kw_only=True)
class Split:
    """A body that is ready to be written."""

    role: Role
    size: int
    content_type: str | None
    content_encoding: str | None
    marks: bytes | None
    recipe: blobs.Recipe


def split(body: Body) -> Split:
    """Takes milliseconds for each megabyte."""
    return Split(
        role=body.role,
        size=body.content.size,
        content_type=storable(body.content_type),
        content_encoding=storable(body.content_encoding),
        marks=blobs.compress(pack_marks(body.marks)) if body.marks else None,
        recipe=blobs.split(body.content),
    )


async def known_parts(transaction: Transaction, bodies: Iterable[Split]) -> set[bytes]:
    """The hashes of those of their parts and runs that are there already, except parts of runs that are."""
    direct = {item.hash: item for body in bodies for item in _references(body.recipe.items)}
    known = await _known(transaction, direct)
    inner = {part.hash for item in direct.values() if item.hash not in known for part in _parts_of(item)}
    return known | await _known(transaction, inner - direct.keys())


async def _known(transaction: Transaction, hashes: Collection[bytes]) -> set[bytes]:
    known: set[bytes] = set()
    for some in chunks(sorted(hashes)):
        known.update(
            row[0] for row in await transaction.execute(f"SELECT hash FROM parts WHERE hash IN ({marks(some)})", *some)
        )
    return known


def compress_unknown(bodies: Iterable[Split], known: Collection[bytes]) -> dict[bytes, bytes]:
    """By hash, what is to be stored of parts that are not there, up to `AHEAD` bytes of them."""
    compressed: dict[bytes, bytes] = {}
    size = 0
    for body in bodies:
        if body.recipe.size > blobs.MAX_SPLIT:
            continue  # read in order, once, where it is written
        for item in _references(body.recipe.items):
            if item.hash in known:
                continue
            for part in (item,) if isinstance(item, blobs.Part) else _parts_of(item):
                if part.hash in known or part.hash in compressed:
                    continue
                size += part.size
                if size > AHEAD:
                    return compressed
                compressed[part.hash] = blobs.compress(part.load())
    return compressed


class Bodies:
    """
    The bodies' tables, in one transaction.

    :param for_update: `Dialect.for_update`.
    :param tally: is told what changes.
    """

    def __init__(self, transaction: Transaction, for_update: str, tally: Tally) -> None:
        self._transaction = transaction
        self._for_update = for_update
        self._tally = tally

    async def write(self, bodies: Sequence[tuple[int, Split]], compressed: Mapping[bytes, bytes]) -> None:
        """
        Keep bodies, each with the number of its exchange, which has none in that role.

        :param compressed: of some of their parts what is to be stored.
        """
        wanted: Counter[bytes] = Counter()
        items: dict[bytes, blobs.Part | blobs.Run] = {}
        for _, body in bodies:
            for item in _references(body.recipe.items):
                wanted[item.hash] += 1
                items[item.hash] = item
        ids = await self._ids(items)
        runs = [item for item in items.values() if isinstance(item, blobs.Run) and item.hash not in ids]
        inner: dict[bytes, blobs.Part] = {}
        for run in runs:
            for part in _parts_of(run):
                wanted[part.hash] += 1
                inner[part.hash] = part
        ids.update(await self._ids(inner.keys() - ids.keys()))

        there = dict(ids)
        parts = {item.hash: item for item in items.values() if isinstance(item, blobs.Part)} | inner
        fresh = [part for part in parts.values() if part.hash not in there]
        for group in _groups(fresh, lambda part: part.size):
            data = await self._transaction.compute(_compress, group, compressed)
            await self._insert(group, data, wanted, ids, run=0)
        surplus: Counter[int] = Counter()
        for some in chunks(runs, ROWS):
            data = await self._transaction.compute(_encode_runs, some, ids)
            for run in await self._insert(some, data, wanted, ids, run=1):
                surplus.update(ids[part.hash] for part in _parts_of(run))
        await self._refer({part_id: wanted[hash_] for hash_, part_id in there.items()})
        await self._write_recipes(bodies, ids)
        await self._release(surplus)

    async def remove(self, numbers: Sequence[int]) -> None:
        """Delete all bodies of exchanges, and what nobody refers to any more."""
        await self.release(await self.take_recipes(numbers))

    async def take_recipes(self, numbers: Sequence[int]) -> list[bytes]:
        """Delete all bodies of exchanges, but what their recipes refer to only once these are :meth:`release`'d."""
        recipes: list[bytes] = []
        for some in chunks(numbers):
            for recipe, marks_of_it in await self._transaction.execute(
                f"DELETE FROM bodies WHERE exchange IN ({marks(some)}) RETURNING recipe, marks", *some
            ):
                recipes.append(recipe)
                self._tally.bodies -= len(recipe) + len(marks_of_it or b"")
                self._tally.others -= BODY_WEIGHT
        return recipes

    async def release(self, recipes: Sequence[bytes]) -> None:
        """What these referred to, they do no more."""
        if recipes:
            await self._release(await self._transaction.compute(_references_of, recipes))

    async def _ids(self, hashes: Collection[bytes]) -> dict[bytes, int]:
        """The ids of those that are there, which then stay for as long as this transaction."""
        ids: dict[bytes, int] = {}
        for some in chunks(sorted(hashes)):
            ids.update(
                await self._transaction.execute(
                    f"SELECT hash, id FROM parts WHERE hash IN ({marks(some)}) ORDER BY id{self._for_update}", *some
                )
            )
        return ids

    async def _insert(
        self,
        items: Sequence[Shared],
        data: Sequence[bytes],
        wanted: Mapping[bytes, int],
        ids: dict[bytes, int],
        *,
        run: int,
    ) -> list[Shared]:
        """Make rows, and note their ids. Returns those that somebody else has made in the meantime."""
        by_hash = {item.hash: (item, stored) for item, stored in zip(items, data, strict=True)}
        # In the order of hashes, so that of two who insert the same one waits, and not each for the other.
        rows = [(hash_, wanted[hash_], run, len(by_hash[hash_][1]), by_hash[hash_][1]) for hash_ in sorted(by_hash)]
        made = await insert(
            self._transaction,
            "parts (hash, refs, run, stored, data)",
            rows,
            "ON CONFLICT (hash) DO UPDATE SET refs = parts.refs + excluded.refs RETURNING hash, id, refs",
        )
        others: list[Shared] = []
        for hash_, part_id, refs in made:
            item, stored = by_hash[hash_]
            ids[hash_] = part_id
            if refs == wanted[hash_]:
                self._tally.bodies += len(stored)
                self._tally.others += PART_WEIGHT
            else:
                others.append(item)
        return others

    async def _write_recipes(self, bodies: Sequence[tuple[int, Split]], ids: Mapping[bytes, int]) -> None:
        recipes = await self._transaction.compute(_encode, [body for _, body in bodies], ids)
        rows = []
        for (number, body), recipe in zip(bodies, recipes, strict=True):
            self._tally.bodies += len(recipe) + len(body.marks or b"")
            self._tally.others += BODY_WEIGHT
            kinds = body.content_type, body.content_encoding
            rows.append((number, body.role.value, body.size, *kinds, body.marks, recipe))
        await insert(
            self._transaction,
            "bodies (exchange, role, size, content_type, content_encoding, marks, recipe)",
            rows,
        )

    async def _refer(self, more: Mapping[int, int]) -> None:
        for times, ids in _by_count(more).items():
            for some in chunks(ids):
                await self._transaction.execute(
                    f"UPDATE parts SET refs = refs + ? WHERE id IN ({marks(some)})", times, *some
                )

    async def _release(self, fewer: Mapping[int, int]) -> None:
        """Refer to these so many times less. A run that goes lets go of its parts."""
        while fewer:
            of_runs: list[bytes] = []
            if self._for_update:
                for some in chunks(sorted(fewer)):
                    await self._transaction.execute(
                        f"SELECT id FROM parts WHERE id IN ({marks(some)}) ORDER BY id{self._for_update}", *some
                    )
            for times, ids in _by_count(fewer).items():
                for some in chunks(ids):
                    await self._transaction.execute(
                        f"UPDATE parts SET refs = refs - ? WHERE id IN ({marks(some)})", times, *some
                    )
            for some in chunks(sorted(fewer)):
                for stored, data in await self._transaction.execute(
                    f"DELETE FROM parts WHERE id IN ({marks(some)}) AND refs <= 0 "
                    "RETURNING stored, CASE WHEN run = 1 THEN data END",
                    *some,
                ):
                    self._tally.bodies -= stored
                    self._tally.others -= PART_WEIGHT
                    if data is not None:
                        of_runs.append(data)
            fewer = await self._transaction.compute(_references_of, of_runs) if of_runs else {}


@attrs.frozen(kw_only=True)
class Found:
    """A body as it was found: all that it takes to put it together, compressed."""

    role: Role
    content_type: str | None
    content_encoding: str | None
    marks: bytes | None
    recipe: bytes
    parts: Mapping[int, bytes]
    runs: Mapping[int, bytes]

    def assemble(self) -> StoredBody:
        """
        Takes milliseconds for each megabyte.

        :raises blobs.Damaged: what is stored is not what was stored.
        """
        return StoredBody(
            role=self.role,
            data=b"".join(blobs.assemble(self.recipe, _Fetched(self.parts, self.runs))),
            content_type=self.content_type,
            content_encoding=self.content_encoding,
            marks=unpack_marks(blobs.decompress(self.marks, blobs.MAX_ENCODED)) if self.marks else (),
        )


class _Fetched(dict[int, bytes]):
    """Runs, and parts that are decompressed when it is their turn."""

    def __init__(self, parts: Mapping[int, bytes], runs: Mapping[int, bytes]) -> None:
        super().__init__(parts)
        self.update(runs)
        self._parts = parts

    def __getitem__(self, key: int) -> bytes:
        data = super().__getitem__(key)
        return blobs.decompress(data) if key in self._parts else data


async def find(transaction: Transaction, number: int, role: Role) -> Found | None:
    """
    A body and all that it needs.

    :raises blobs.Damaged: its recipe is none.
    """
    row = (
        await transaction.execute(
            "SELECT content_type, content_encoding, marks, recipe FROM bodies WHERE exchange = ? AND role = ?",
            number,
            role.value,
        )
    ).first
    if row is None:
        return None
    content_type, content_encoding, marks_of_it, recipe = row
    needs = await transaction.compute(blobs.needs, recipe)
    runs = await _fetch(transaction, needs.runs)
    wanted = dict.fromkeys(needs.parts)
    for of_run in await transaction.compute(lambda: [blobs.needs(run) for run in runs.values()]):
        wanted.update(dict.fromkeys(of_run.parts))
    return Found(
        role=role,
        content_type=content_type,
        content_encoding=content_encoding,
        marks=marks_of_it,
        recipe=recipe,
        parts=await _fetch(transaction, list(wanted)),
        runs=runs,
    )


async def _fetch(transaction: Transaction, ids: Sequence[int]) -> dict[int, bytes]:
    """Parts by their ids, not too many bytes at a time."""
    sizes: list[tuple[int, int]] = []
    for some in chunks(sorted(ids)):
        sizes += await transaction.execute(f"SELECT id, stored FROM parts WHERE id IN ({marks(some)})", *some)
    fetched: dict[int, bytes] = {}
    for group in _groups(sizes, lambda row: row[1]):
        some = [part_id for part_id, _ in group]
        fetched.update(await transaction.execute(f"SELECT id, data FROM parts WHERE id IN ({marks(some)})", *some))
    return fetched


# -- statements


def marks(values: Sequence[object]) -> str:
    """A placeholder for each value."""
    return ", ".join("?" * len(values))


def chunks(values: Sequence[V], size: int = VALUES) -> Iterator[Sequence[V]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def bytes_of(row: Sequence[object]) -> int:
    """How many bytes and characters a row has."""
    return sum(len(value) for value in row if isinstance(value, str | bytes))


async def insert(
    transaction: Transaction,
    into: str,
    rows: Iterable[Sequence[object]],
    then: str = "",
    *,
    size: Callable[[Sequence[Any]], int] = bytes_of,
) -> list[tuple[Any, ...]]:
    """
    Insert rows, as many at a time as a statement should have.

    :param into: table and columns. :param then: what stands behind the values. :param size: of a row, in bytes.
    :return: what they RETURN.
    """
    returned: list[tuple[Any, ...]] = []
    for some in _groups(rows, size):
        values = ", ".join(f"({marks(row)})" for row in some)
        returned += await transaction.execute(
            f"INSERT INTO {into} VALUES {values} {then}", *[value for row in some for value in row]
        )
    return returned


def _groups(values: Iterable[V], size: Callable[[V], int]) -> Iterator[list[V]]:
    """`values` in groups of at most `ROWS`, and `STATEMENT_BYTES` if it is more than one."""
    group: list[V] = []
    total = 0
    for value in values:
        total += size(value)
        if group and (len(group) == ROWS or total > STATEMENT_BYTES):
            yield group
            group, total = [], size(value)
        group.append(value)
    if group:
        yield group


def _by_count(counts: Mapping[int, int]) -> dict[int, list[int]]:
    by_count: defaultdict[int, list[int]] = defaultdict(list)
    for part_id in sorted(counts):
        if counts[part_id]:
            by_count[counts[part_id]].append(part_id)
    return by_count


# -- what takes time


def _references(items: Sequence[blobs.Item]) -> Iterator[blobs.Part | blobs.Run]:
    return (item for item in items if not isinstance(item, blobs.Literal))


def _parts_of(item: blobs.Part | blobs.Run) -> Iterator[blobs.Part]:
    """As often as they stand in a run."""
    return (part for part in item.items if isinstance(part, blobs.Part)) if isinstance(item, blobs.Run) else iter(())


def _compress(parts: Sequence[blobs.Part], compressed: Mapping[bytes, bytes]) -> list[bytes]:
    return [compressed.get(part.hash) or blobs.compress(part.load()) for part in parts]


def _encode_runs(runs: Sequence[blobs.Run], ids: Mapping[bytes, int]) -> list[bytes]:
    return [blobs.encode_run(run, ids) for run in runs]


def _encode(bodies: Sequence[Split], ids: Mapping[bytes, int]) -> list[bytes]:
    return [blobs.encode(body.recipe, ids) for body in bodies]


def _references_of(encoded: Sequence[bytes]) -> Counter[int]:
    references: Counter[int] = Counter()
    for each in encoded:
        try:
            references.update(blobs.references(each))
        except blobs.Damaged:
            # What it referred to stays for ever. That is no reason to keep what can be deleted.
            log.failure("A damaged recipe was deleted; the parts that it had stay")
    return references
