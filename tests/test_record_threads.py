"""Threads that take from one queue."""

from __future__ import annotations

import threading

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from tests.store_contract import awaited, until
from twisted_proxy.record.threads import Closed, Crew, Late, Progress

reactor = installed_reactor


def crew(size: int = 1, limit: float | None = None) -> Crew:
    return Crew(reactor, "test", size=size, limit=limit)  # type: ignore[arg-type]


@awaited
async def test_results_and_errors_come_back() -> None:
    """In the order in which they were asked for, from another thread, each to who asked."""
    workers = crew()
    me = threading.get_ident()
    first = workers.run(lambda progress: threading.get_ident())
    second = workers.run(lambda progress: 1 // 0)
    third = workers.run(lambda progress: threading.get_ident())
    other = await first
    assert other != me
    with pytest.raises(ZeroDivisionError):
        await second
    assert await third == other
    await workers.close(5)
    assert workers.threads == 0


@awaited
async def test_as_many_at_a_time_as_there_are_threads() -> None:
    """Calls that wait for each other all run; one more waits its turn."""
    workers = crew(size=3)
    meeting = threading.Barrier(3, timeout=10)
    running = [workers.run(lambda progress: meeting.wait()) for _ in range(6)]
    assert sorted([await each for each in running]) == [0, 0, 1, 1, 2, 2]
    assert workers.threads == 3
    await workers.close(5)


@awaited
async def test_what_makes_no_progress_is_late() -> None:
    """Who waits is told; the function learns it at its next sign of life; the next call gets the thread."""
    workers = crew(limit=0.05)
    go_on = threading.Event()
    told = threading.Event()
    interrupted: list[bool] = []

    def hang(progress: Progress) -> None:
        progress.beat()
        go_on.wait(10)
        try:
            progress.beat()
        except Late:
            told.set()
            raise

    hanging = workers.run(hang, on_late=lambda: interrupted.append(True))
    behind = workers.run(lambda progress: 1)
    with pytest.raises(Late) as late:
        await behind
    assert not late.value.begun
    with pytest.raises(Late) as late:
        await hanging
    assert late.value.begun
    assert interrupted == [True]
    go_on.set()
    await until(told.is_set)
    assert await workers.run(lambda progress: 2) == 2
    await workers.close(5)


@awaited
async def test_what_goes_on_is_not_late() -> None:
    """However long it takes, as long as it gives signs of life."""
    workers = crew(limit=0.03)
    pause = threading.Event()

    def long(progress: Progress) -> str:
        for _ in range(20):
            pause.wait(0.01)
            progress.beat()
        return "done"

    assert await workers.run(long) == "done"
    await workers.close(5)


@awaited
async def test_closing() -> None:
    """What waits is told, what runs as well at its next sign of life; a thread that hangs is not waited for."""
    workers = crew()
    go_on = threading.Event()
    began = threading.Event()

    def hang(progress: Progress) -> None:
        began.set()
        go_on.wait(10)

    running = workers.run(hang)
    waiting = workers.run(lambda progress: 1)
    await until(began.is_set)
    await workers.close(0.01)
    assert workers.threads == 1
    for each in (running, waiting, workers.run(lambda progress: 1)):
        with pytest.raises(Closed):
            await each
    go_on.set()
    await until(lambda: not workers.threads)
    await workers.close(5)


def test_closing_what_never_ran() -> None:
    """Ends at once; no thread was begun for nothing."""
    workers = Crew(Clock(), "test")  # type: ignore[arg-type]
    ended: Deferred[None] = workers.close(5)
    assert ended.called
