"""Bringing a database's schema up to date, by the numbered files that stand beside this one."""

from __future__ import annotations

import re
from importlib.resources import files

import attrs

from .database import Transaction
from .store import SchemaTooNew

_FILE = re.compile(r"(\d{4})_\w+\.sql")
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)


@attrs.frozen(kw_only=True)
class Migration:
    """
    A step from one version of the schema to the next.

    :ivar version: that it leads to.
    """

    version: int
    name: str
    statements: tuple[str, ...]


def migrations(database: str) -> tuple[Migration, ...]:
    """All that there are for a database (`Dialect.name`), the first first. Version n is what the first n make."""
    found = []
    for file in (files(__package__) / "schema" / database).iterdir():
        if (match := _FILE.fullmatch(file.name)) is not None:
            text = _COMMENT.sub("", file.read_text(encoding="utf-8"))
            statements = (statement.strip() for statement in re.split(r";[ \t]*$", text, flags=re.MULTILINE))
            found.append(
                Migration(
                    version=int(match[1]),
                    name=file.name,
                    statements=tuple(statement for statement in statements if statement),
                )
            )
    found.sort(key=lambda migration: migration.version)
    assert [migration.version for migration in found] == list(range(1, len(found) + 1)), "versions have no gaps"
    return tuple(found)


async def migrate(transaction: Transaction, steps: tuple[Migration, ...], label: str) -> None:
    """
    Take the steps that were not taken yet.

    :param transaction: in which nobody else does the same.
    :raises SchemaTooNew: more were taken than there are here.
    """
    await transaction.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER PRIMARY KEY)")
    version = await version_of(transaction)
    check(version, steps, label)
    for step in steps[version:]:
        for statement in step.statements:
            await transaction.execute(statement)
        await transaction.execute("INSERT INTO schema_version (version) VALUES (?)", step.version)


async def version_of(transaction: Transaction) -> int:
    """The schema's version; 0 if nothing was made yet."""
    row = (await transaction.execute("SELECT max(version) FROM schema_version")).first
    return row[0] or 0 if row is not None else 0


def check(version: int, steps: tuple[Migration, ...], label: str) -> None:
    """:raises SchemaTooNew: a version is higher than the steps lead to."""
    if version > len(steps):
        raise SchemaTooNew(
            f"{label} has schema version {version}, this program knows {len(steps)}: a newer claude-proxy has changed "
            "it. Run that version, or give this one a database of its own"
        )
