"""The journal: what taps take is in the slot's files, in order, whatever the disk does; nothing is lost untold."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent

from twisted_proxy.record import entries, journal, writer
from twisted_proxy.record.entries import Closed, Noted, Opened
from twisted_proxy.record.exchange import PIECE, Role
from twisted_proxy.record.journal import REPORT_EVERY, Journal, Tap
from twisted_proxy.record.slots import Slot
from twisted_proxy.record.spool import Bulk, Entry, SlotReader, SpoolContent

INSTANCE = "0" * 31 + "1"
PATIENCE = 20.0


class ThreadedClock(Clock):
    """A clock that takes calls from threads, and makes them when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: SimpleQueue[tuple[Callable[..., object], tuple[object, ...]]] = SimpleQueue()
        self.made = 0

    def callFromThread(self, call: Callable[..., object], *args: object) -> None:
        self._calls.put((call, args))

    def run_until(self, condition: Callable[[], object]) -> None:
        """Make the threads' calls until something is so."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            try:
                call, args = self._calls.get(timeout=deadline - time.monotonic())
            except (Empty, ValueError):
                raise AssertionError(f"not so after {PATIENCE} seconds") from None
            self.made += 1
            call(*args)


class Disk:
    """Makes files of a journal, of the kind that a test wants."""

    def __init__(self) -> None:
        self.full = self.hanging = False
        self._pipes: SimpleQueue[int] = SimpleQueue()

    def create(self, path: Path) -> int:
        if self.full:
            path.symlink_to("/dev/full")
            return os.open(path, os.O_WRONLY)
        if self.hanging:
            # Nobody reads it. It takes 64 KiB; then writing waits.
            os.mkfifo(path)
            other_end = os.open(path, os.O_RDWR)
            descriptor = os.open(path, os.O_WRONLY)
            self._pipes.put(other_end)
            if not self.hanging:
                self.answer()
            return descriptor
        return writer.create_file(path)

    def answer(self) -> None:
        """Let what hangs end, in an error. In any thread."""
        self.hanging = False
        with contextlib.suppress(Empty):
            while True:
                os.close(self._pipes.get_nowait())


class Bench:
    """A journal on a clock of its own, and what is found in its slot."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = ThreadedClock()
        self.disk = Disk()
        self.journals: list[Journal] = []

    def journal(self, *, start: bool = True, limit: int = 1 << 40, **settings: Any) -> Journal:
        made = Journal(self.clock, self.root, INSTANCE, limit=limit, create=self.disk.create, **settings)
        self.journals.append(made)
        if start:
            made.start()
        return made

    def open(self, made: Journal, number: int = 1) -> Tap:
        return made.open(name(number), Opened(received_at=number, method="POST", path="/v1/messages"))

    def flushed(self, made: Journal) -> None:
        """Let the flush timer pass, and all be written."""
        self.clock.advance(0.25)
        self.clock.run_until(lambda: not made.stats.pending_bytes)

    def retried(self) -> None:
        """Let a second pass, and the writer have tried again."""
        before = self.clock.made
        self.clock.advance(journal.RETRY_EVERY)
        self.clock.run_until(lambda: self.clock.made > before)

    def close(self, made: Journal, patience: float = 5.0) -> Deferred[None]:
        return Deferred.fromCoroutine(made.close(patience))

    def closed(self, made: Journal) -> None:
        done = self.close(made)
        self.clock.run_until(lambda: done.called)

    def entries(self) -> list[Entry]:
        slot = Slot(self.root / INSTANCE, [])
        return SlotReader(slot, live=False).read(1 << 30)

    def segments(self) -> list[str]:
        return sorted(path.name for path in (self.root / INSTANCE).glob("*.journal"))


def name(number: int) -> str:
    return entries.exchange_id(number.to_bytes(16, "big"))


def body(found: list[Entry], role: Role = Role.ANSWER, number: int = 1) -> SpoolContent:
    return SpoolContent(
        [
            entry.what.extent
            for entry in found
            if entry.exchange == name(number) and isinstance(entry.what, Bulk) and entry.what.role is role
        ]
    )


def kinds(found: list[Entry], number: int = 1) -> list[type]:
    return [type(entry.what) for entry in found if entry.exchange == name(number)]


def ends(found: list[Entry]) -> dict[str, Closed]:
    return {entry.exchange: entry.what for entry in found if isinstance(entry.what, Closed)}


def told(logs: list[LogEvent], text: str) -> list[str]:
    return [line for line in map(formatEvent, logs) if text in line]


DONE = Closed(verdict="complete", status=200)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "spool")
    yield made
    made.disk.answer()
    for each in made.journals:
        thread = each._thread
        each._writer.queue.put(writer.Order.STOP)
        each.release()
        assert thread is not None
        thread.join(PATIENCE)
        assert not thread.is_alive()


class TestWriting:
    def test_what_taps_take_is_in_the_files(self, bench: Bench) -> None:
        """Each exchange with its beginning first and its end last, bodies and times as they were."""
        made = bench.journal()
        tap, other = bench.open(made), bench.open(made, 2)
        tap.bulk(Role.REQUEST, b"question")
        tap.note(body_read_us=5)
        tap.marked(Role.ANSWER, b"an", 10)
        bench.flushed(made)
        other.close(DONE)
        tap.marked(Role.ANSWER, b"swer", 20)
        tap.note(status=200, response_headers=(("a", "b"),))
        tap.close(DONE)
        bench.closed(made)
        found = bench.entries()
        assert kinds(found) == [Opened, Bulk, Bulk, Noted, Bulk, Noted, Closed]
        assert kinds(found, 2) == [Opened, Closed]
        assert body(found, Role.REQUEST).read() == b"question"
        assert body(found).read() == b"answer"
        assert [(mark.end, mark.us) for mark in body(found).marks()] == [(2, 10), (6, 20)]
        assert [entry.what.fields for entry in found if isinstance(entry.what, Noted)] == [
            {"body_read_us": 5},
            {"status": 200, "response_headers": (("a", "b"),)},
        ]
        assert made.stats == journal.JournalStats(
            pending_bytes=0,
            spool_bytes=sum((bench.root / INSTANCE / each).stat().st_size for each in bench.segments()),
            lost_bodies=0,
            lost_exchanges=0,
            problem="the process was ending",
        )

    def test_notes_between_two_flushes_are_one_entry(self, bench: Bench) -> None:
        """It follows the bodies that came before it; a later note is right; it alone is reason enough to flush."""
        made = bench.journal()
        tap = bench.open(made)
        bench.flushed(made)
        tap.note(body_read_us=5, status=100)
        tap.bulk(Role.REQUEST, b"question")
        tap.note(status=200)
        bench.flushed(made)
        tap.note(headers_us=7)
        bench.flushed(made)
        found = bench.entries()
        assert kinds(found) == [Opened, Bulk, Noted, Noted]
        assert [entry.what.fields for entry in found if isinstance(entry.what, Noted)] == [
            {"body_read_us": 5, "status": 200},
            {"headers_us": 7},
        ]

    def test_a_field_without_a_form_costs_no_other(self, bench: Bench) -> None:
        made = bench.journal()
        tap = bench.open(made)
        tap.note(body_read_us=5)
        tap.note(statsu=200)
        tap.note(headers_us=7)
        tap.close(DONE)
        bench.closed(made)
        found = bench.entries()
        noted = [entry.what.fields for entry in found if isinstance(entry.what, Noted)]
        assert noted == [{"body_read_us": 5}, {"headers_us": 7}]
        assert ends(found)[name(1)].lost == "1 notes not kept: a mistake in the program"

    def test_pieces_between_two_flushes_are_one_frame(self, bench: Bench) -> None:
        """Of one exchange and role; what came in two roles is told apart."""
        made = bench.journal()
        tap, other = bench.open(made), bench.open(made, 2)
        for index in range(50):
            tap.marked(Role.ANSWER, b"%d;" % index, index)
            other.marked(Role.ANSWER, b"x", index)
        tap.marked(Role.RECEIVED, b"y", 60)
        tap.bulk(Role.ANSWER, b"end")
        bench.flushed(made)
        found = bench.entries()
        assert kinds(found) == [Opened, Bulk, Bulk, Bulk]
        assert kinds(found, 2) == [Opened, Bulk]
        assert body(found).read() == b"".join(b"%d;" % index for index in range(50)) + b"end"
        assert body(found, Role.RECEIVED).read() == b"y"
        assert len(body(found, number=2).marks()) == 50

    def test_a_large_body_is_whole(self, bench: Bench) -> None:
        """Of more than one frame and more than one segment's buffers."""
        made = bench.journal()
        tap = bench.open(made)
        data = os.urandom(3 * PIECE + 17)
        tap.bulk(Role.REQUEST, data)
        bench.flushed(made)
        assert body(bench.entries(), Role.REQUEST).read() == data

    def test_it_is_written_after_a_quarter_of_a_second(self, bench: Bench) -> None:
        """Counted from the first thing that is pending; with nothing pending there is no timer, and it is told."""
        made = bench.journal()
        calls: list[int] = []
        made.on_flushed = lambda: calls.append(made.stats.pending_bytes)
        bench.clock.run_until(lambda: made.stats.spool_bytes == 0)
        assert bench.clock.getDelayedCalls() == []
        tap = bench.open(made)
        bench.clock.advance(0.2)
        tap.marked(Role.ANSWER, b"x", 1)
        assert made.stats.pending_bytes > 0
        bench.clock.advance(0.05)
        bench.clock.run_until(lambda: calls)
        assert calls == [0]
        assert kinds(bench.entries()) == [Opened, Bulk]

    def test_much_is_written_at_once(self, bench: Bench) -> None:
        """Four megabytes do not wait for the timer."""
        made = bench.journal()
        tap = bench.open(made)
        for _ in range(5):
            tap.marked(Role.ANSWER, bytes(PIECE), 1)
        bench.clock.run_until(lambda: made.stats.pending_bytes < 2 * PIECE)
        assert body(bench.entries()).size >= journal.FLUSH_AT - PIECE

    def test_nothing_comes_after_the_end(self, bench: Bench) -> None:
        """A tap that is closed does nothing."""
        made = bench.journal()
        tap = bench.open(made)
        tap.close(DONE)
        tap.close(DONE)
        tap.note(status=500)
        tap.bulk(Role.REQUEST, b"x")
        tap.marked(Role.ANSWER, b"x", 1)
        bench.closed(made)
        assert kinds(bench.entries()) == [Opened, Closed]

    def test_segments_are_of_one_size(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A segment grows past it by one frame at most; no frame is split."""
        monkeypatch.setattr(journal, "SEGMENT_BYTES", 3 * PIECE)
        made = bench.journal()
        tap = bench.open(made)
        data = os.urandom(10 * PIECE)
        tap.bulk(Role.REQUEST, data)
        tap.close(DONE)
        bench.closed(made)
        sizes = [(bench.root / INSTANCE / each).stat().st_size for each in bench.segments()]
        assert len(sizes) == 4
        assert all(3 * PIECE <= size <= 4 * PIECE + 1000 for size in sizes[:-1])
        assert body(bench.entries(), Role.REQUEST).read() == data

    def test_an_old_segment_has_a_successor(self, bench: Bench) -> None:
        """So that it can be deleted when what is in it is stored, also where nothing more happens."""
        made = bench.journal()
        bench.open(made).close(DONE)
        bench.flushed(made)
        bench.clock.advance(journal.ROTATE_EVERY)
        bench.clock.run_until(lambda: len(bench.segments()) == 2)
        assert bench.clock.getDelayedCalls() == []
        bench.open(made, 2).close(DONE)
        bench.closed(made)
        assert bench.segments() == ["000000000001.journal", "000000000002.journal"]
        assert list(ends(bench.entries())) == [name(1), name(2)]

    def test_mistakes_of_ours_do_not_reach_the_request(self, bench: Bench, logs: list[LogEvent]) -> None:
        """What has no form is logged with its traceback, and told in the record; the rest is kept."""
        made = bench.journal()
        tap = bench.open(made)
        tap.note(statsu=200)
        tap.note(usage={"a": object()})
        tap.marked(Role.ANSWER, b"x", 1)
        tap.close(DONE)
        nothing = made.open("not an id", Opened(received_at=1, method="GET", path="/"))
        nothing.marked(Role.ANSWER, b"x", 1)
        nothing.close(DONE)
        bench.closed(made)
        found = bench.entries()
        assert kinds(found) == [Opened, Bulk, Closed]
        assert ends(found)[name(1)].lost == "2 notes not kept: a mistake in the program"
        assert ends(found)[name(1)].incomplete == ()
        assert len([event for event in logs if "log_failure" in event]) == 3
        assert (made.stats.lost_bodies, made.stats.lost_exchanges) == (1, 1)

    def test_a_mistake_in_one_entry_costs_that_entry(self, bench: Bench, logs: list[LogEvent]) -> None:
        """What the writer cannot frame is left out, and others go on."""
        made = bench.journal()
        tap = bench.open(made)
        tap.marked(Role.ANSWER, b"x", "no time")  # type: ignore[arg-type]
        tap.close(DONE)
        bench.open(made, 2).close(DONE)
        bench.closed(made)
        found = bench.entries()
        assert kinds(found) == [Opened, Closed]
        assert kinds(found, 2) == [Opened, Closed]
        assert told(logs, f"an entry of {name(1)} is lost")


class TestBounds:
    def test_memory_is_bounded(self, bench: Bench, logs: list[LogEvent]) -> None:
        """Where the disk does not take it, bodies are left out beyond the bound, and the end of each says so."""
        bench.disk.hanging = True
        made = bench.journal(memory=1_000_000)
        first, second = bench.open(made), bench.open(made, 2)
        for index in range(3000):
            first.marked(Role.ANSWER, bytes(1000), index)
            assert made.stats.pending_bytes < 1_000_000 + 2000
        second.bulk(Role.REQUEST, bytes(500))
        second.note(status=200)
        assert made.stats.lost_bodies == 2
        assert made.stats.problem is not None
        assert "too slow" in made.stats.problem
        bench.clock.advance(0)
        (line,) = told(logs, "not whole")
        assert "0 requests are not recorded, 2 not whole" in line
        assert "too slow" in line

    def test_one_large_body_is_taken_while_there_is_room(self, bench: Bench) -> None:
        """It is in memory as long as its request is. Then nothing is taken until it is written."""
        bench.disk.hanging = True
        made = bench.journal(memory=1_000_000)
        tap = bench.open(made)
        tap.bulk(Role.REQUEST, bytes(3_000_000))
        assert made.stats.lost_bodies == 0
        bench.open(made, 2).bulk(Role.REQUEST, bytes(10))
        assert [made.stats.lost_bodies] == [1]

    def test_what_was_lost_is_told_in_the_end(self, bench: Bench) -> None:
        """Which bodies, how many bytes, why; and once something is missing, the rest of that exchange is left out."""
        made = bench.journal(memory=100_000, start=False)
        tap, whole = bench.open(made), bench.open(made, 2)
        tap.bulk(Role.REQUEST, bytes(150_000))
        tap.marked(Role.ANSWER, bytes(1000), 1)
        tap.bulk(Role.FORWARDED, bytes(10))
        made.start()
        bench.flushed(made)
        tap.marked(Role.ANSWER, bytes(2000), 2)
        whole.marked(Role.ANSWER, b"x", 3)
        tap.close(Closed(verdict="complete", lost="something else"))
        whole.close(DONE)
        bench.closed(made)
        found = bench.entries()
        end = ends(found)[name(1)]
        assert end.lost is not None
        assert end.lost.startswith(
            "something else; 3000 bytes of the answer body and 10 bytes of the forwarded body not kept: the disk of"
        )
        assert end.incomplete == ("answer", "forwarded")
        assert body(found, Role.REQUEST).size == 150_000
        assert ends(found)[name(2)] == DONE

    def test_entries_have_a_reserve(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond it exchanges are not opened, notes are left out; what is open is closed all the same."""
        monkeypatch.setattr(journal, "RESERVE", 5000)
        made = bench.journal(memory=10_000, start=False)
        tap = bench.open(made)
        tap.bulk(Role.REQUEST, bytes(12_000))
        taps = [bench.open(made, number) for number in range(2, 100)]
        assert 5 < 98 - made.stats.lost_exchanges < 12
        assert made.stats.pending_bytes < 16_000
        tap.note(status=200)
        for each in [tap, *taps]:
            each.close(DONE)
        made.start()
        bench.closed(made)
        found = bench.entries()
        assert kinds(found) == [Opened, Bulk, Closed]
        assert "1 notes not kept" in str(ends(found)[name(1)].lost)
        assert len(ends(found)) == 99 - made.stats.lost_exchanges

    def test_the_spool_is_bounded(self, bench: Bench, logs: list[LogEvent]) -> None:
        """Bodies stay out while it is full; when its reader has made room, those of new exchanges are kept again."""
        made = bench.journal(limit=200_000)
        tap = bench.open(made)
        for index in range(300):
            tap.marked(Role.ANSWER, bytes(1000), index)
            if not index % 10:
                bench.flushed(made)
        bench.flushed(made)
        assert 100_000 < made.stats.spool_bytes <= 201_000
        assert made.stats.lost_bodies == 1
        late = bench.open(made, 2)
        late.marked(Role.ANSWER, bytes(150_000), 1)
        late.close(DONE)
        bench.flushed(made)
        assert "the spool is full" in str(ends(bench.entries())[name(2)].lost)
        assert told(logs, "SPOOL_MAX_BYTES is 200000")
        for each in bench.segments():
            (bench.root / INSTANCE / each).unlink()
        bench.open(made, 3).close(DONE)
        bench.flushed(made)
        # Whoever looks now and then is to see it.
        assert "the spool is full" in str(made.stats.problem)
        bench.clock.advance(REPORT_EVERY)
        assert made.stats.problem is None
        again = bench.open(made, 4)
        again.marked(Role.ANSWER, bytes(1000), 1)
        again.close(DONE)
        bench.flushed(made)
        assert ends(bench.entries())[name(4)] == DONE

    def test_room_that_is_made_is_seen_without_a_write(self, bench: Bench) -> None:
        """What comes next after a while finds it, however large it is."""
        made = bench.journal(limit=200_000)
        bench.open(made).bulk(Role.REQUEST, bytes(150_000))
        bench.flushed(made)
        for each in bench.segments():
            (bench.root / INSTANCE / each).unlink()
        bench.retried()
        tap = bench.open(made, 2)
        tap.bulk(Role.REQUEST, bytes(150_000))
        tap.close(DONE)
        bench.flushed(made)
        assert ends(bench.entries())[name(2)] == DONE

    def test_some_of_the_disk_is_left_alone(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Less than 256 MiB free, of a disk that is large enough for that, counts as full; at the end it does not."""
        free = 300

        def look(_: Path) -> os.statvfs_result:
            return os.statvfs_result((2**20, 2**20, 10_000, free, free, 0, 0, 0, 0, 255))

        monkeypatch.setattr(os, "statvfs", look)
        made = bench.journal()
        bench.open(made).bulk(Role.REQUEST, b"x")
        bench.flushed(made)
        assert made.stats.problem is None
        free = 255
        bench.open(made, 2).bulk(Role.REQUEST, b"x")
        bench.clock.advance(0.25)
        bench.clock.run_until(lambda: made.stats.problem is not None)
        assert "almost full" in str(made.stats.problem)
        assert "SPOOL_DIR" in str(made.stats.problem)
        assert len(bench.segments()) == 1
        assert not kinds(bench.entries(), 2)
        bench.retried()
        free = 300
        bench.retried()
        assert made.stats.problem is None
        assert kinds(bench.entries(), 2) == [Opened, Bulk]
        free = 255
        tap = bench.open(made, 3)
        tap.bulk(Role.REQUEST, b"x")
        tap.close(DONE)
        bench.clock.advance(0.25)
        bench.clock.run_until(lambda: made.stats.problem is not None)
        bench.closed(made)
        assert ends(bench.entries())[name(3)] == DONE
        assert made.stats.lost_bodies == 0

    def test_losses_are_logged_every_ten_seconds_at_most(self, bench: Bench, logs: list[LogEvent]) -> None:
        """Each line has what was lost since the last one."""
        made = bench.journal(memory=1000, start=False)
        for number in range(1, 50):
            bench.open(made, number).bulk(Role.REQUEST, bytes(2000))
            bench.clock.advance(0.5)
        lines = told(logs, "not whole")
        assert len(lines) == 3
        counts = [int(line.split(" not whole")[0].split(", ")[-1]) for line in lines]
        assert sum(counts) <= made.stats.lost_bodies
        assert counts[1] == 20
        made.start()


class TestTrouble:
    def test_a_full_disk(self, bench: Bench, logs: list[LogEvent]) -> None:
        """What comes meanwhile is kept in memory, tried every second, written when there is room; told once, twice."""
        made = bench.journal()
        tap = bench.open(made)
        tap.marked(Role.ANSWER, b"before;", 1)
        bench.flushed(made)
        bench.disk.full = True
        # What is open is a file that works: the next one is not.
        bench.clock.advance(journal.ROTATE_EVERY)
        bench.clock.run_until(lambda: len(bench.segments()) == 2)
        for index in range(5):
            tap.marked(Role.ANSWER, b"meanwhile;", 2 + index)
            bench.clock.advance(0.25)
            bench.clock.run_until(lambda: made.stats.problem is not None)
        assert "No space left on device" in str(made.stats.problem)
        assert "SPOOL_DIR" in str(made.stats.problem)
        assert made.stats.pending_bytes > 50
        bench.retried()
        bench.retried()
        bench.disk.full = False
        tap.close(DONE)
        bench.retried()
        bench.flushed(made)
        assert made.stats.problem is None
        assert len(told(logs, "cannot write to")) == 1
        assert len(told(logs, "written again after")) == 1
        bench.closed(made)
        found = bench.entries()
        assert body(found).read() == b"before;" + 5 * b"meanwhile;"
        assert ends(found)[name(1)] == DONE

    def test_a_disk_that_fills_in_the_middle_of_an_entry(self, bench: Bench) -> None:
        """The torn entry is taken away, and written whole into another segment; nothing is there twice."""
        made = bench.journal()
        tap = bench.open(made)
        data = os.urandom(5 * PIECE)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PIECE + 1000, before[1]))
        try:
            tap.bulk(Role.REQUEST, data)
            bench.clock.run_until(lambda: made.stats.problem is not None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "File too large" in str(made.stats.problem)
        (first,) = bench.segments()
        assert (bench.root / INSTANCE / first).stat().st_size < 2 * PIECE + 1000
        assert body(bench.entries(), Role.REQUEST).read() == data[: 2 * PIECE]
        bench.retried()
        bench.flushed(made)
        assert len(bench.segments()) == 2
        assert body(bench.entries(), Role.REQUEST).read() == data

    def test_a_directory_that_cannot_be_made(self, bench: Bench, logs: list[LogEvent]) -> None:
        """Starting does not fail, and what comes before it can be made is in it."""
        bench.root.touch()
        made = bench.journal()
        bench.open(made).close(DONE)
        bench.clock.advance(0.25)
        bench.clock.run_until(lambda: made.stats.problem is not None)
        assert str(bench.root) in str(made.stats.problem)
        for _ in range(5):
            bench.retried()
        bench.root.unlink()
        bench.retried()
        bench.clock.run_until(lambda: not made.stats.pending_bytes)
        assert kinds(bench.entries()) == [Opened, Closed]
        assert len(told(logs, "cannot write to")) == 1

    def test_a_directory_that_is_deleted(self, bench: Bench, logs: list[LogEvent]) -> None:
        """It is made anew, locked, and told: what was in it is lost."""
        made = bench.journal()
        tap = bench.open(made)
        bench.flushed(made)
        shutil.rmtree(bench.root)
        tap.note(status=200)
        bench.flushed(made)
        bench.open(made, 2).close(DONE)
        bench.closed(made)
        assert told(logs, "was removed: what was not stored of it is lost")
        assert kinds(bench.entries(), 2) == [Opened, Closed]
        assert bench.segments() == ["000000000002.journal"]
        assert Slot.adoptable(bench.root) == []

    def test_a_disk_that_hangs(self, bench: Bench, logs: list[LogEvent]) -> None:
        """Nobody waits for it; it is told when nothing has moved for some seconds."""
        bench.disk.hanging = True
        made = bench.journal()
        bench.open(made).bulk(Role.REQUEST, bytes(200_000))
        bench.clock.advance(0.25)
        for _ in range(6):
            bench.clock.advance(1)
        assert "has not answered for" in str(made.stats.problem)
        assert len(told(logs, "has not answered for")) == 1

    def test_a_spool_for_everybody_is_told(self, bench: Bench, logs: list[LogEvent]) -> None:
        """Its operator may not know."""
        bench.root.mkdir()
        bench.root.chmod(0o777)
        made = bench.journal()
        bench.open(made)
        bench.flushed(made)
        assert told(logs, "may be written to by other users")


class TestClosing:
    def test_all_that_is_pending_is_written(self, bench: Bench) -> None:
        """Then the thread ends, no timer is left, and the slot stays this process's until it lets go."""
        made = bench.journal()
        tap = bench.open(made)
        tap.bulk(Role.REQUEST, bytes(300_000))
        tap.close(DONE)
        bench.closed(made)
        assert kinds(bench.entries()) == [Opened, Bulk, Closed]
        assert bench.clock.getDelayedCalls() == []
        assert made._thread is not None
        made._thread.join(PATIENCE)
        assert not made._thread.is_alive()
        assert Slot.adoptable(bench.root) == []
        reader = Slot.attach(bench.root, INSTANCE)
        assert reader is not None
        reader.release()
        made.release()
        (adopted,) = Slot.adoptable(bench.root)
        adopted.remove()
        assert list(bench.root.iterdir()) == []

    def test_closing_twice_is_closing(self, bench: Bench) -> None:
        """The second call has nothing to do."""
        made = bench.journal()
        bench.closed(made)
        bench.closed(made)

    def test_what_comes_later_is_counted(self, bench: Bench, logs: list[LogEvent]) -> None:
        """Nothing is dropped untold."""
        made = bench.journal()
        tap = bench.open(made)
        bench.closed(made)
        tap.marked(Role.ANSWER, b"x", 1)
        tap.close(DONE)
        bench.open(made, 2).close(DONE)
        bench.clock.advance(journal.REPORT_EVERY)
        assert (made.stats.lost_bodies, made.stats.lost_exchanges) == (1, 1)
        assert told(logs, "the process was ending")

    @pytest.mark.parametrize("trouble", ["hanging", "full"])
    def test_a_disk_that_takes_nothing_does_not_keep_the_process(
        self, bench: Bench, logs: list[LogEvent], trouble: str
    ) -> None:
        """After some seconds it is given up; what is not written is counted, logged."""
        setattr(bench.disk, trouble, True)
        made = bench.journal()
        bench.open(made)
        made.flush()
        for number in range(2, 5):
            bench.open(made, number).bulk(Role.REQUEST, bytes(100_000))
        done = bench.close(made, 5.0)
        for _ in range(4):
            bench.clock.advance(1)
        assert not done.called
        bench.clock.advance(1)
        assert done.called
        (line,) = told(logs, "given up with")
        assert "requests that are not written" in line
        assert 3 <= made.stats.lost_exchanges <= 4
        assert bench.clock.getDelayedCalls() == []

    def test_a_disk_that_recovers_in_time_gets_all(self, bench: Bench) -> None:
        """Closing tries again at once, and then each second."""
        bench.disk.full = True
        made = bench.journal()
        bench.open(made).close(DONE)
        bench.clock.advance(0.25)
        bench.clock.run_until(lambda: made.stats.problem is not None)
        bench.disk.full = False
        bench.closed(made)
        assert kinds(bench.entries()) == [Opened, Closed]
        assert not made.stats.lost_exchanges


CHILD = """
    import sys, time
    from pathlib import Path
    from twisted.internet import reactor
    from twisted_proxy.record.entries import Opened
    from twisted_proxy.record.exchange import Role
    from twisted_proxy.record.journal import Journal

    journal = Journal(reactor, Path(sys.argv[1]), sys.argv[2], limit=1 << 40)
    taps = [
        journal.open(f"req_{number:032x}", Opened(received_at=number, method="POST", path="/"))
        for number in range(20)
    ]
    count = 0

    def append():
        global count
        for tap in taps:
            tap.marked(Role.ANSWER, b"%d;" % count, count)
        count += 1
        print(count, time.monotonic(), flush=True)
        reactor.callLater(0.005, append)

    def begin():
        journal.start()
        append()

    reactor.callWhenRunning(begin)
    reactor.run()
"""


class TestKill:
    def test_a_process_that_is_killed_loses_its_last_second_at_most(self, tmp_path: Path) -> None:
        """All that it appended more than a second before is read by whoever adopts its slot, in order, whole."""
        command = [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path), INSTANCE]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            try:
                assert child.stdout is not None
                began = child.stdout.readline()
                # Long enough for something that is older than a second.
                time.sleep(1.6)
                killed_at = time.monotonic()
            finally:
                child.kill()
            lines = [began, *child.stdout.readlines()]
        appended = [int(line.split()[0]) for line in lines if float(line.split()[1]) < killed_at - 1]
        (slot,) = Slot.adoptable(tmp_path)
        found = SlotReader(slot, live=False).read(1 << 30)
        slot.release()
        for number in range(20):
            pieces = body(found, number=number).read().split(b";")
            assert pieces.pop() == b""
            assert [int(piece) for piece in pieces] == list(range(len(pieces)))
            assert len(pieces) >= appended[-1]
            assert len(body(found, number=number).marks()) == len(pieces)
