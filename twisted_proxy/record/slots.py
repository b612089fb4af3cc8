"""
Slot directories: one below the spool's root for each process that records, and the locks that tell who is alive.

``owner.lock`` is held (flock) by the process that writes into the slot, ``reader.lock`` by the one that reads it. The
kernel lets go of both when their processes end, however they end: a slot whose locks are free is there to be adopted.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
from twisted.logger import Logger

log = Logger()

OWNER: Final = "owner.lock"
READER: Final = "reader.lock"
JOURNAL: Final = ".journal"
CHECKPOINT: Final = ".checkpoint"
UNFINISHED: Final = ".new"
DAMAGED: Final = ".damaged"
ABANDONED_AFTER: Final = 60.0
"""Seconds. A slot that was begun and not finished in that time never will be."""


def file_name(number: int, suffix: str) -> str:
    """The name of a slot's file: sorts by number."""
    return f"{number:012d}{suffix}"


def numbered(directory: Path, suffix: str) -> dict[int, Path]:
    """The files of one suffix, by number, in order. Other names are not ours."""
    found = {}
    for name in os.listdir(directory):  # noqa: PTH208 - several times a second; a `Path` for each would cost more
        stem = name.removesuffix(suffix)
        if stem != name and stem.isascii() and stem.isdigit():
            found[int(stem)] = directory / name
    return dict(sorted(found.items()))


@attrs.define(eq=False)
class Slot:
    """A slot directory, and the locks on it that this process holds."""

    path: Path
    _locks: list[int]

    @property
    def instance(self) -> str:
        """The id of the process that writes, or wrote, into it."""
        return self.path.name

    @classmethod
    def create(cls, root: Path, instance: str) -> Slot:
        """
        Make a slot, with ``root`` and what is above it, and hold its ``owner.lock``.

        :raises OSError: it cannot be made now.
        """
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whoever sees a slot sees it locked: it gets its name when that is done.
        unfinished = root / f".{instance}{UNFINISHED}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        for name in (OWNER, READER):
            os.close(os.open(unfinished / name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        lock = _lock(unfinished / OWNER)
        if lock is None:
            raise BlockingIOError(f"{unfinished} is in use by another process")
        try:
            unfinished.rename(root / instance)
        except OSError:
            os.close(lock)
            raise
        return cls(root / instance, [lock])

    @classmethod
    def attach(cls, root: Path, instance: str) -> Slot | None:
        """
        Hold the ``reader.lock`` of a slot whose owner may be alive. ``None``: it is not there, or has a reader.

        :raises OSError: it cannot be locked for another reason.
        """
        lock = _lock(root / instance / READER)
        return None if lock is None else cls(root / instance, [lock])

    @classmethod
    def adoptable(cls, root: Path) -> list[Slot]:
        """Hold both locks of every slot of this user that nobody holds: those of dead processes, the oldest first."""
        adopted = []
        try:
            paths = sorted(root.iterdir())
        except FileNotFoundError:
            return []
        for path in paths:
            with _spared(path):
                status = path.lstat()
                if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                    continue
                if path.name.startswith("."):
                    if path.name.endswith(UNFINISHED):
                        _sweep(path, status.st_mtime)
                    continue
                # This order: what removes a slot removes the owner's lock first and holds the reader's to the end.
                owner = _lock(path / OWNER)
                if owner is None:
                    continue
                reader = _lock(path / READER)
                if reader is None:
                    os.close(owner)
                    continue
                adopted.append(cls(path, [owner, reader]))
        return adopted

    @property
    def is_open_to_others(self) -> bool:
        """Whether other users may put a directory of theirs in its place."""
        mode = self.path.parent.stat().st_mode
        return bool(mode & (stat.S_IWGRP | stat.S_IWOTH)) and not mode & stat.S_ISVTX

    def release(self) -> None:
        """Let go of the locks. Idempotent."""
        self._locks, locks = [], self._locks
        for lock in locks:
            os.close(lock)

    def remove(self) -> None:
        """
        Delete the directory and all that is in it; then let go of the locks.

        :raises OSError: something could not be deleted. The locks are held still.
        """
        (self.path / OWNER).unlink(missing_ok=True)
        for path in self.path.iterdir():
            if path.name != READER:
                path.unlink(missing_ok=True)
        (self.path / READER).unlink(missing_ok=True)
        self.path.rmdir()
        self.release()


def _lock(path: Path) -> int | None:
    """A descriptor with an exclusive lock on a file; ``None``: it is not there, or locked."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its last holder may have removed it between our two calls.
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _sweep(path: Path, changed_at: float) -> None:
    """Delete what a process began that died before it had a slot."""
    if time.time() - changed_at < ABANDONED_AFTER:
        return
    lock = _lock(path / OWNER)
    try:
        if lock is not None or not (path / OWNER).exists():
            shutil.rmtree(path)
    finally:
        if lock is not None:
            os.close(lock)


@contextmanager
def _spared(path: Path) -> Iterator[None]:
    """One slot that cannot be looked at does not keep us from the others."""
    try:
        yield
    except FileNotFoundError:
        # Another process removed it while we looked.
        return
    except OSError as error:
        log.warn("spool: {path} cannot be taken over: {error}", path=path, error=error.strerror)
