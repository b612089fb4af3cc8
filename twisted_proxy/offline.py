"""Commands that work on the store, without a proxy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from twisted_proxy.config import RecordConfig
from twisted_proxy.record.opening import store_of
from twisted_proxy.record.store import RecordStore

T = TypeVar("T")


def with_store(config: RecordConfig, work: Callable[[RecordStore], Awaitable[T]], *, to_read: bool = False) -> T:
    """
    What some work with the configured store gives. Runs a reactor, so that it can be called once in a process.

    :param to_read: the store is used as it is, and not made where there is none.
    :raises StoreError: the store cannot be opened, or fails.
    """
    from twisted.internet import task

    db_path = str(Path(config.db_path).absolute())
    results: list[T] = []
    failures: list[BaseException] = []

    async def main(running: Any) -> None:
        store = store_of(running, db_path=db_path, database_url=config.database_url)
        try:
            await (store.open_to_read() if to_read else store.open())
            results.append(await work(store))
        except Exception as failure:  # noqa: BLE001 - for the caller, in whose stack frame it belongs
            failures.append(failure)
        finally:
            await store.close()

    with suppress(SystemExit):
        task.react(main)
    if failures:
        raise failures[0]
    if not results:
        raise KeyboardInterrupt
    return results[0]
