"""Writes what a journal collects into the segments of a slot, in a thread of its own."""

from __future__ import annotations

import enum
import errno
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import attrs
from twisted.logger import Logger
from twisted.python.failure import Failure

from . import entries
from .entries import Buffer, Frame, Kind
from .slots import JOURNAL, OWNER, Slot, file_name

log = Logger()

GATHER: Final = 1024 * 1024
"""Bytes that are framed before they are written."""
SLICE: Final = 0.0003
PAUSE: Final = 0.00005
"""
Seconds that the writer computes at a time, and then does not. A thread that only computes is asked for the
interpreter's lock after 5 ms (`sys.setswitchinterval`), by the reactor after each of its system calls.
"""
MAX_BUFFERS: Final = min(1024, os.sysconf("SC_IOV_MAX"))

Item = tuple[Kind, bytes, Sequence[bytes], Sequence[int] | None] | tuple[Kind, bytes, bytes, None]
"""Kind, exchange, and pieces of bulk data with their times, or the payload of an entry."""


@attrs.frozen(eq=False)
class Batch:
    """
    What was appended between two flushes. The writer takes items away as it writes them.

    :ivar size: bytes of memory.
    """

    items: deque[Item]
    size: int


class Order(enum.Enum):
    RETRY = enum.auto()
    ROTATE = enum.auto()
    """Begin another segment, so that this one can be deleted when all in it is stored."""
    STOP = enum.auto()


@attrs.frozen(kw_only=True)
class Report:
    """
    How writing goes.

    :ivar batches: how many are written, of those whose end was not reported yet: the oldest.
    :ivar spool_bytes: in the files of the slot; ``None`` where that is not known anew.
    :ivar problem: why the rest is not written, in words; ``None``: all is.
    :ivar ended: whether this is the last report.
    """

    batches: int
    spool_bytes: int | None = None
    problem: str | None = None
    ended: bool = False


def create_file(path: Path) -> int:
    """Make a new file to append to."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)


class Writer:
    """
    Writes batches, in order. What fails stays to be tried again, from the first entry on that is not in a file.

    After a failure it begins another segment: what was read of the last one, by whomever, never changes.

    :param min_free: bytes of the disk that are left alone; a tenth of it, if that is less.
    :param segment_bytes: from so many on, another segment is begun.
    :param create: makes a new file.
    :param tell: takes reports, and :param warn: what an operator should know, or a mistake of ours. Both are called in
        the writer's thread.
    :ivar queue: what it is to do.
    """

    def __init__(
        self,
        root: Path,
        instance: str,
        *,
        min_free: int,
        segment_bytes: int,
        create: Callable[[Path], int],
        tell: Callable[[Report], None],
        warn: Callable[[str, Failure | None], None],
    ) -> None:
        self.queue: SimpleQueue[Batch | Order] = SimpleQueue()
        self._root = root
        self._instance = instance
        self._min_free = min_free
        self._segment_bytes = segment_bytes
        self._create = create
        self._tell = tell
        self._warn = warn
        self._slot: Slot | None = None
        self._descriptor: int | None = None
        self._path = root / instance
        self._number = 0
        self._size = 0
        self._batches: deque[Batch] = deque()
        # Framed and not written, of the first batch: each with its size, and the sum of these.
        self._frames: deque[tuple[int, Frame]] = deque()
        self._framed = 0
        self._done = 0
        self._failed = False
        self._ending = False

    def run(self) -> None:
        """Make the slot, and write, until `Order.STOP`."""
        self._attempt()
        while (message := self.queue.get()) is not Order.STOP:
            if isinstance(message, Batch):
                self._batches.append(message)
                if self._failed:
                    continue
            self._attempt(rotate=message is Order.ROTATE)
        self._leave_segment()
        self._tell(Report(batches=self._done, ended=True))

    def use_all(self) -> None:
        """Leave nothing of the disk alone any more: what is in memory at the end is lost. In any thread."""
        self._ending = True

    def release(self) -> None:
        """Let go of the slot. In any thread, when the writer has ended or is given up."""
        if self._slot is not None:
            self._slot.release()

    def _attempt(self, *, rotate: bool = False) -> None:
        """Write what there is, and report."""
        try:
            self._prepare()
            while self._batches:
                self._write(self._batches[0].items)
                self._batches.popleft()
                self._done += 1
                if self._batches:
                    self._report()
            if rotate and self._descriptor is not None and self._size:
                self._leave_segment()
                self._enter_segment()
            self._report()
        except OSError as error:
            self._fail(error.strerror or str(error))
        except Exception as error:  # noqa: BLE001 - it is reported; this thread must go on
            self._warn("a mistake in the program", Failure())
            self._fail(str(error))
        else:
            self._failed = False

    def _fail(self, why: str) -> None:
        self._failed = True
        self._leave_segment(torn=True)
        self._tell(Report(batches=self._take_done(), problem=f"cannot write to {self._path} (SPOOL_DIR): {why}"))

    def _report(self) -> None:
        assert self._slot is not None
        spool_bytes = 0
        # Not `os.scandir`: its entries' `stat` keeps the interpreter's lock, for as long as a disk wants.
        for name in os.listdir(self._slot.path):  # noqa: PTH208 - `Path.iterdir` does the same
            try:
                spool_bytes += (self._slot.path / name).stat().st_size
            except FileNotFoundError:
                # Its reader was done with it.
                continue
        self._tell(Report(batches=self._take_done(), spool_bytes=spool_bytes))

    def _take_done(self) -> int:
        self._done, done = 0, self._done
        return done

    # Slot and segments

    def _prepare(self) -> None:
        """See to it that there is a slot, and that the segment is still in it."""
        if self._slot is not None and not (self._slot.path / OWNER).exists():
            self._warn(f"{self._slot.path} was removed: what was not stored of it is lost", None)
            self._slot.release()
            self._slot = None
        if self._descriptor is not None and (self._slot is None or not self._path.exists()):
            self._leave_segment()
        if self._slot is None:
            self._path = self._root / self._instance
            self._slot = Slot.create(self._root, self._instance)
            if self._slot.is_open_to_others:
                self._warn(f"{self._root} (SPOOL_DIR) may be written to by other users", None)

    def _enter_segment(self) -> int:
        assert self._slot is not None
        self._number += 1
        self._size = 0
        self._path = self._slot.path / file_name(self._number, JOURNAL)
        self._descriptor = self._create(self._path)
        return self._descriptor

    def _leave_segment(self, *, torn: bool = False) -> None:
        """
        Nothing more is written to it.

        :param torn: whether there may be a part of a frame at its end. A reader takes that for the end as well.
        """
        self._descriptor, descriptor = None, self._descriptor
        if descriptor is None:
            return
        try:
            try:
                if torn and self._size:
                    os.ftruncate(descriptor, self._size)
                elif torn:
                    self._path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)
        except OSError as error:
            # The disk that failed fails again; a torn entry at the end does no harm.
            log.debug("journal: {path} keeps a torn entry: {error}", path=self._path, error=error.strerror)

    # Writing

    def _write(self, items: deque[Item]) -> None:
        began = time.perf_counter()
        while items or self._frames:
            while items and self._framed < GATHER and 2 * len(self._frames) < MAX_BUFFERS:
                self._encode(*items.popleft())
                if time.perf_counter() - began > SLICE:
                    # One that is behind does not wait: what is in memory is bounded.
                    if self.queue.empty():
                        time.sleep(PAUSE)
                    began = time.perf_counter()
            self._write_frames()

    def _encode(self, kind: Kind, key: bytes, payload: bytes | Sequence[bytes], times: Sequence[int] | None) -> None:
        try:
            if isinstance(payload, bytes):
                frames = [entries.frame(kind, key, payload)]
            else:
                frames = list(entries.bulk_frames(kind, key, payload, times))
        except Exception:  # noqa: BLE001 - it is reported; the others' entries must go on
            self._warn(f"an entry of {entries.exchange_id(key)} is lost by a mistake in the program", Failure())
            return
        for frame in frames:
            size = sum(map(len, frame))
            self._frames.append((size, frame))
            self._framed += size

    def _check_room(self) -> None:
        """
        :raises OSError: after what is to be written, less of the disk would be free than is to be left alone.
        """
        assert self._slot is not None
        disk = os.statvfs(self._slot.path)
        left_alone = min(self._min_free, disk.f_blocks * disk.f_frsize // 10)
        if disk.f_bavail * disk.f_frsize - self._framed < left_alone:
            raise OSError(errno.ENOSPC, f"its disk is almost full: less than {left_alone} bytes are free")

    def _write_frames(self) -> None:
        """Write all of :attr:`_frames`. Those that are written whole are taken away, also when this fails."""
        while self._frames:
            if not self._ending:
                self._check_room()
            descriptor = self._enter_segment() if self._descriptor is None else self._descriptor
            buffers: list[Buffer] = []
            total = 0
            for size, frame in self._frames:
                if buffers and (len(buffers) + len(frame) > MAX_BUFFERS or self._size + total >= self._segment_bytes):
                    break
                buffers += frame
                total += size
            written = 0
            try:
                while written < total:
                    count = os.writev(descriptor, buffers)
                    if not count:
                        raise OSError(errno.EIO, "nothing was written")
                    written += count
                    if written < total:
                        buffers = _without(buffers, count)
            finally:
                self._take_away(written)
            if self._size >= self._segment_bytes:
                self._leave_segment()

    def _take_away(self, written: int) -> None:
        frames = self._frames
        while frames and frames[0][0] <= written:
            size, _ = frames.popleft()
            self._size += size
            self._framed -= size
            written -= size


def _without(buffers: list[Buffer], count: int) -> list[Buffer]:
    """What is left of buffers without the first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [memoryview(buffer)[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []
