"""
Reading a slot: entries as they are written, bodies as places in files, and letting go of files that nobody needs.

Files of a slot are deleted from the oldest on only. So what is there is always the end of the journal, perhaps with a
checkpoint before it, and an exchange whose first entry is gone was settled: a reader that starts again leaves it out.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import attrs
from twisted.logger import Logger

from . import entries
from .entries import BadEntry, Closed, Head, Kind, Noted, Opened
from .exchange import Mark, Role
from .slots import CHECKPOINT, DAMAGED, JOURNAL, UNFINISHED, Slot, file_name, numbered

log = Logger()

CHUNK: Final = 256 * 1024
"""Bytes that are read at a time. Data of bodies is skipped."""
HELD_BACK: Final = 4
"""So many files may be kept for nothing but exchanges that are still open, before a checkpoint replaces them."""
_BULK_START: Final = entries.HEADER.size + 4
_SHORTAGES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN})
"""Errors that say nothing about a file."""


class DamagedContent(Exception):
    """
    Bytes of a body are not there as they were written.

    The text says which file, and where.
    """


class Extent:
    """
    A frame's place. It changes when a checkpoint takes the place of the frame's file.

    :ivar size: bytes of a body in it.
    """

    __slots__ = ("_marks", "place", "size")

    def __init__(self, segment: SegmentReader, offset: int, marks: int, size: int) -> None:
        # One tuple, which is replaced as a whole: another thread may be reading.
        self.place = (segment, offset)
        self._marks = marks
        self.size = size

    @property
    def frame_size(self) -> int:
        """Bytes of the whole frame."""
        return entries.HEADER.size + self._marks + self.size

    def load(self) -> tuple[bytes, bytes, bytes]:
        """
        Header, marks (of an entry without data: its payload) and data, checked.

        :raises DamagedContent: they are not what was written.
        :raises OSError: the file is there, and cannot be read now.
        """
        while True:
            segment, offset = self.place
            try:
                descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if self.place == (segment, offset):
                    raise DamagedContent(f"{segment.path} is not there any more") from None
                continue
            break
        try:
            start = os.pread(descriptor, entries.HEADER.size + self._marks, offset)
            data = os.pread(descriptor, self.size, offset + len(start)) if self.size else b""
        finally:
            os.close(descriptor)
        header, marks = start[: entries.HEADER.size], start[entries.HEADER.size :]
        head = entries.read_head(header) if len(header) == entries.HEADER.size else None
        if head is None or not entries.is_intact(head, marks, data):
            raise DamagedContent(f"{segment.path} is damaged at byte {offset}")
        return header, marks, data


@attrs.frozen
class Bulk:
    """Data of a body. It is where it was written, not in memory, and checked when it is loaded."""

    role: Role
    extent: Extent


@attrs.frozen
class Entry:
    """An entry of the exchange with the id :attr:`exchange`."""

    exchange: str
    what: Opened | Noted | Closed | Bulk


@attrs.frozen
class SpoolContent:
    """
    A body (`exchange.Content`) that is in spool files.

    May be read by any thread, until its exchange is settled. :meth:`pieces`, :meth:`read` and :meth:`marks` read the
    files; what is wrong with them is a `DamagedContent`, or an `OSError`.
    """

    extents: Sequence[Extent]

    @property
    def size(self) -> int:
        return sum(extent.size for extent in self.extents)

    def pieces(self) -> Iterator[bytes]:
        for extent in self.extents:
            _, _, data = extent.load()
            if data:
                yield data

    def read(self) -> bytes:
        return b"".join(self.pieces())

    def marks(self) -> tuple[Mark, ...]:
        """When its bytes were there. None of data whose times were not kept."""
        found = []
        end = 0
        for extent in self.extents:
            _, marks, data = extent.load()
            start = end
            for length, us in entries.read_marks(marks):
                start += length
                found.append(Mark(end=start, us=us))
            end += len(data)
        return tuple(found)


class SegmentReader:
    """
    One file of a slot, read as it grows.

    :ivar offset: where the first frame begins that was not read.
    :ivar damage: what is wrong at :attr:`offset`, in words: nothing behind it can be read.
    :ivar unsettled: the exchanges that need the file.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.offset = 0
        self.damage: str | None = None
        self.unsettled: set[bytes] = set()
        self._descriptor: int | None = None

    def read(self, at_most: int) -> list[tuple[Head, Extent, bytes]]:
        """
        The next frames that are whole, with their places; and the payloads of those that are not bulk data.

        :raises OSError: one of `_SHORTAGES`.
        """
        found: list[tuple[Head, Extent, bytes]] = []
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            while len(found) < at_most and self.damage is None:
                size = os.fstat(self._descriptor).st_size
                chunk = os.pread(self._descriptor, CHUNK, self.offset)
                before = self.offset
                self._parse(self._descriptor, chunk, size, at_most, found)
                if self.offset == before:
                    break
        except OSError as error:
            if error.errno not in _SHORTAGES:
                self.damage = f"it cannot be read: {error.strerror}"
            elif not found:
                raise
        return found

    def _parse(
        self, descriptor: int, chunk: bytes, size: int, at_most: int, found: list[tuple[Head, Extent, bytes]]
    ) -> None:
        """Take the frames that begin in ``chunk``, which stands at :attr:`offset` of a file of ``size`` bytes."""
        start = self.offset
        while len(found) < at_most:
            position = self.offset - start
            if position + entries.HEADER.size > len(chunk):
                return
            head = entries.read_head(chunk, position)
            if head is None:
                self.damage = "no entry begins here"
                return
            if self.offset + head.size > size:
                return
            payload = b""
            if head.kind in entries.ROLES:
                if position + _BULK_START > len(chunk):
                    return
                marks = entries.marks_size(chunk, position + entries.HEADER.size)
                if marks > head.length:
                    self.damage = "an entry contradicts itself"
                    return
            else:
                if position + head.size > len(chunk):
                    if position:
                        return
                    # It is longer than a chunk.
                    chunk = os.pread(descriptor, head.size, self.offset)
                marks = head.length
                payload = chunk[position + entries.HEADER.size : position + head.size]
                if not entries.is_intact(head, payload):
                    self.damage = "an entry is not as it was written"
                    return
            found.append((head, Extent(self, self.offset, marks, head.length - marks), payload))
            self.offset += head.size

    def finish(self) -> None:
        """Nothing more is read from it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def file_size(self) -> int:
        """Bytes; 0 if nobody can tell: it is not there any more."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


@attrs.define(eq=False)
class _Held:
    """An exchange that is not settled: where its entries are, and whether the last of them is read."""

    extents: list[Extent] = attrs.field(factory=list)
    closed: bool = False


class SlotReader:
    """
    Reads a slot in order, its checkpoint first, as it grows; deletes what is settled. Entries of exchanges whose first
    one is not there are left out.

    All file access blocks. One thread at a time.

    :param slot: whose ``reader.lock`` is held.
    :param live: whether its owner may still append; see :meth:`owner_ended`.
    :raises OSError: what an earlier reader began cannot be finished.
    :ivar damaged: how many files were damaged.
    """

    def __init__(self, slot: Slot, *, live: bool) -> None:
        self._slot = slot
        self._live = live
        self._held: dict[bytes, _Held] = {}
        self._read: deque[SegmentReader] = deque()
        self._ahead: deque[SegmentReader] = deque()
        self._newest = 0
        self._stuck: Path | None = None
        self._weighed = 0
        self.damaged = 0
        self._recover()

    def _recover(self) -> None:
        """Do the rest of what a reader before us began: a checkpoint with its name replaces all up to its number."""
        directory = self._slot.path
        for path in numbered(directory, CHECKPOINT + UNFINISHED).values():
            path.unlink()
        checkpoints = list(numbered(directory, CHECKPOINT).items())
        if not checkpoints:
            return
        self._newest, newest = checkpoints.pop()
        for number, replaced in [*checkpoints, *numbered(directory, JOURNAL).items()]:
            if number <= self._newest:
                replaced.unlink()
        self._ahead.append(SegmentReader(newest, self._newest))

    # Reading

    def read(self, at_most: int = 1000) -> list[Entry]:
        """
        The next entries, at most so many, of those that are there now. Nothing that is in the files raises.

        :raises OSError: this process or its machine is short of something. Nothing is lost; try again later.
        """
        found: list[Entry] = []
        try:
            self._read_into(found, at_most)
        except OSError:
            # If it is still so, the next call says it.
            if not found:
                raise
        return found

    def _read_into(self, found: list[Entry], at_most: int) -> None:
        while len(found) < at_most and (self._ahead or self._discover()):
            segment = self._ahead[0]
            # What follows must be known before: then nothing can have been appended behind what is read here.
            complete = not self._live or len(self._ahead) > 1 or self._discover()
            frames = segment.read(at_most - len(found))
            for head, extent, payload in frames:
                entry = self._take(segment, head, extent, payload)
                if entry is not None:
                    found.append(entry)
            if segment.damage is not None:
                self._report_damage(segment)
            elif frames:
                continue
            elif complete:
                self._report_torn(segment)
            else:
                break
            segment.finish()
            self._read.append(self._ahead.popleft())

    def _discover(self) -> bool:
        """Whether there are segments that were not known before."""
        try:
            there = numbered(self._slot.path, JOURNAL)
        except FileNotFoundError:
            return False
        fresh = [SegmentReader(path, number) for number, path in there.items() if number > self._newest]
        if fresh:
            self._newest = fresh[-1].number
            self._ahead.extend(fresh)
        return bool(fresh)

    def _take(self, segment: SegmentReader, head: Head, extent: Extent, payload: bytes) -> Entry | None:
        what: Opened | Noted | Closed | Bulk
        held = self._held.get(head.key)
        if held is None and head.kind is not Kind.OPENED:
            return None
        try:
            role = entries.ROLES.get(head.kind)
            what = entries.decode(head.kind, payload) if role is None else Bulk(role, extent)
        except BadEntry as error:
            log.warn("spool: {path} byte {offset}: {error}", path=segment.path, offset=extent.place[1], error=error)
            return None
        if held is None:
            held = self._held[head.key] = _Held()
        held.extents.append(extent)
        held.closed = held.closed or head.kind is Kind.CLOSED
        segment.unsettled.add(head.key)
        return Entry(entries.exchange_id(head.key), what)

    def _report_damage(self, segment: SegmentReader) -> None:
        self.damaged += 1
        log.error(
            "spool: {path} is damaged at byte {offset} of {size}: {damage}. What follows in it is lost."
            " It will be kept as {kept}, and may be deleted.",
            path=segment.path,
            offset=segment.offset,
            size=segment.file_size,
            damage=segment.damage,
            kept=self._aside(segment),
        )

    def _report_torn(self, segment: SegmentReader) -> None:
        rest = segment.file_size - segment.offset
        if rest > 0:
            log.info(
                "spool: the last entry in {path} was not written to its end: {rest} bytes are left of it",
                path=segment.path,
                rest=rest,
            )

    def owner_ended(self) -> None:
        """Nothing will be appended any more: what is torn at the end stays so."""
        self._live = False

    @property
    def ended(self) -> bool:
        """Whether the owner ended, and all that it wrote is read: a :meth:`read` has found nothing more."""
        return not self._live and not self._ahead and not self._discover()

    @property
    def unread(self) -> int:
        """Bytes in the files that are not read yet."""
        self._discover()
        return sum(segment.file_size - segment.offset for segment in self._ahead)

    # Letting go

    def settle(self, exchanges: Iterable[str]) -> None:
        """
        Forget exchanges that are in the store for good; delete files that nothing else needs.

        Their contents can no longer be read.
        """
        for exchange in exchanges:
            key = entries.exchange_key(exchange)
            held = self._held.pop(key, None)
            if held is not None:
                for extent in held.extents:
                    extent.place[0].unsettled.discard(key)
        # The newest stays while its owner may append to it.
        while self._read and not self._read[0].unsettled and (self._ahead or len(self._read) > 1 or not self._live):
            if not self._delete(self._read[0]):
                break
            self._read.popleft()

    def _aside(self, segment: SegmentReader) -> Path:
        return self._slot.path.parent / f"{self._slot.instance}-{segment.path.name}{DAMAGED}"

    def _delete(self, segment: SegmentReader) -> bool:
        """Delete a file; one that is damaged is put aside. False: that cannot be done now."""
        try:
            if segment.damage is not None:
                segment.path.rename(self._aside(segment))
            else:
                segment.path.unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            if self._stuck != segment.path:
                self._stuck = segment.path
                log.warn(
                    "spool: {path} is not needed any more and cannot be deleted: {error}",
                    path=segment.path,
                    error=error.strerror,
                )
            return False
        return True

    def compact(self) -> bool:
        """
        Replace files that are kept for open exchanges alone by a checkpoint, if they are more than `HELD_BACK` and most
        of what is in them is not needed. To be called after :meth:`settle`.

        :return: whether that was done.
        """
        replaced = self._held_back_by_open()
        if len(replaced) <= HELD_BACK or replaced[-1].number == self._weighed:
            return False
        # To weigh costs time, too: once for each file that joins them.
        self._weighed = replaced[-1].number
        moved = self._extents_in(replaced)
        if 2 * sum(extent.frame_size for extent in moved) > sum(segment.file_size for segment in replaced):
            return False
        number = replaced[-1].number
        name = file_name(number, CHECKPOINT)
        checkpoint = SegmentReader(self._slot.path / name, number)
        unfinished = self._slot.path / (name + UNFINISHED)
        try:
            offsets = _write_checkpoint(unfinished, moved)
            unfinished.rename(checkpoint.path)
            _sync_directory(self._slot.path)
        except (OSError, DamagedContent) as error:
            unfinished.unlink(missing_ok=True)
            log.warn("spool: {path} cannot be written: {error}", path=checkpoint.path, error=error)
            return False
        # From here on the checkpoint is right, whatever becomes of the files that it replaces.
        for extent, offset in zip(moved, offsets, strict=True):
            extent.place = (checkpoint, offset)
        for segment in replaced:
            checkpoint.unsettled |= segment.unsettled
            self._delete(segment)
            self._read.popleft()
        self._read.appendleft(checkpoint)
        return True

    def _held_back_by_open(self) -> list[SegmentReader]:
        """The oldest files, as far as all in them that is not settled is open."""
        found = []
        for segment in self._read:
            newest = segment is self._read[-1] and not self._ahead
            if newest or any(self._held[key].closed for key in segment.unsettled):
                break
            found.append(segment)
        return found

    def _extents_in(self, segments: list[SegmentReader]) -> list[Extent]:
        """The entries that are in these files and needed, each exchange's in their order."""
        # By identity: files have no other.
        inside = set(map(id, segments))
        keys = sorted(set().union(*(segment.unsettled for segment in segments)))
        return [extent for key in keys for extent in self._held[key].extents if id(extent.place[0]) in inside]

    def close(self) -> None:
        """Close the files. The slot's locks are not touched."""
        for segment in self._ahead:
            segment.finish()


def _write_checkpoint(path: Path, extents: list[Extent]) -> list[int]:
    """Write frames into a new file, to the disk; return where each of them is in it."""
    offsets = []
    offset = 0
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        for extent in extents:
            offsets.append(offset)
            offset += sum(file.write(part) for part in extent.load())
        file.flush()
        os.fsync(file.fileno())
    return offsets


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
