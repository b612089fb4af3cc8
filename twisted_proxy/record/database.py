"""What a database is to a store: transactions, statements, and what is said differently in each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import attrs

T = TypeVar("T")


@attrs.frozen
class Rows:
    """
    What a statement gave.

    :ivar rows: the rows of a SELECT or RETURNING. Columns of bytes are ``bytes``.
    :ivar count: how many rows it changed, where it changed any.
    """

    rows: Sequence[tuple[Any, ...]] = ()
    count: int = 0

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def first(self) -> tuple[Any, ...] | None:
        return self.rows[0] if self.rows else None


class Transaction(Protocol):
    """A transaction that is under way, for as long as the function runs that was given it."""

    async def execute(self, statement: str, *parameters: object) -> Rows:
        """
        One statement. A ``?`` stands for each parameter: ``None``, ``int`` of 64 bits, ``float``, ``bool``, ``bytes``,
        or ``str`` that is `storable`. No statement has a question mark or a percent sign otherwise.

        :raises StoreUnavailable: the database is out of reach; the transaction is over.
        :raises StoreError: it refuses this statement; the transaction is over.
        """

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what takes time, where it blocks nobody."""


@attrs.frozen
class Words:
    """
    What an index is to find an exchange by.

    :ivar number: the exchange's.
    :ivar words: folded, in order, each a run of letters and digits of at most 64 characters (`words.indexed`).
    """

    number: int
    words: Sequence[str]


Phrases = Sequence[Sequence[str]]
"""A search: all of these must be there; each is one or more such words that follow one another."""


class Dialect(Protocol):
    """What one database says differently."""

    name: str
    """Of the directory below ``schema``, and for messages."""
    for_update: str
    """What follows a SELECT that locks its rows, or nothing."""
    match_condition: str
    """What stands in a WHERE for a search, with one parameter, which :meth:`match` makes."""
    gather: str
    """The function that makes a JSON array of the values of a group, nulls among them."""
    indexes: Mapping[str, str]
    """
    Which index has the exchanges with a value in a column, by the column's name, and by ``number`` the one with all
    that a query may ask for. Of these the store chooses by looking how many exchanges there are. Empty where the
    database knows that itself.
    """

    def source(self, *, search: bool, index: str | None) -> tuple[str, str]:
        """
        What stands after FROM to look through exchanges, and the column that has their number in that case.

        :param search: `match_condition` stands in the WHERE.
        :param index: the index that there is to go by; ``None``: none is known to be worth it.
        """

    def match(self, phrases: Phrases) -> str:
        """The parameter for a search for these. There is at least one phrase, and each has at least one word."""

    async def index(self, transaction: Transaction, documents: Sequence[Words]) -> None:
        """Add these to the index of words. None of them is in it."""

    async def unindex(self, transaction: Transaction, documents: Sequence[Words]) -> None:
        """Take these out of it again: the same words with which each was added."""

    async def announce(self, transaction: Transaction, exchange_ids: Sequence[str]) -> None:
        """Tell whoever watches, in whichever process, once the transaction is committed."""


class Driver(Protocol):
    """
    A way to one database. Every method may be called from the reactor's thread, and never blocks it.

    A connection that fails is closed; the next call makes a new one.
    """

    dialect: Dialect
    label: str
    """What it is a way to, for messages: no credential is in it."""

    async def transact(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """
        Do ``work`` in a read-write transaction, all or nothing. Each statement sees what others have committed before
        it, or before the transaction; rows that ``for_update`` locked stay as they are.

        :param work: awaits nothing but its transaction's methods. It may be called again, after a deadlock or a
            conflict with another writer: then nothing of the call before was done.
        :raises StoreUnavailable: not now; nothing was done, or it is not known whether it was (the connection was
            lost at the commit).
        """

    async def read(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """The same in a read-only snapshot, beside whatever is being written."""

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what takes time in a thread."""

    async def open(self, migrate: Callable[[Transaction], Awaitable[None]]) -> None:
        """
        Connect, and bring the schema up to date: ``migrate`` runs in a transaction of its own that shuts out every
        other process that migrates.
        """

    async def close(self) -> None:
        """Idempotent; ends within seconds, whatever the database does."""

    async def shrink(self) -> None:
        """Give a bounded amount of room that is free back to the file system, where the database does not itself."""

    def watch(self, notice: Callable[[Sequence[str]], None]) -> Callable[[], None]:
        """`RecordStore.watch`."""
