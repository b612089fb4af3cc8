"""Which store there is, by configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .sql import SqlStore


def store_of(reactor: Any, *, db_path: str, database_url: str | None = None) -> SqlStore:
    """
    A store, not opened yet: PostgreSQL where there is a URL, or else SQLite.

    :raises ValueError: the URL is none that PostgreSQL's library understands.
    """
    # Each of them only where it is used: they bring a driver and its libraries along.
    if database_url:
        from .postgres import postgres_store

        return postgres_store(reactor, database_url)
    from .sqlite import SqliteDriver

    return SqlStore(SqliteDriver(reactor, Path(db_path)))
