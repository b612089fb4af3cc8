"""All that records, as the proxy's process has it: journal, recorder, and what begins a record."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from ..config import RecordConfig
from ..tally import Histogram
from ..wire import ids
from . import control
from .journal import Journal, JournalStats
from .process import RecorderProcess, RecorderStatus
from .recording import ExchangeTap, Passing, Recording, read_key

log = Logger()

CLOSE_TIMEOUT = 30.0
"""Seconds that the recorder has, at the end, to store what is in the spool."""
CLOSE_TIMEOUT_TROUBLED = 4.0
"""The same where the store takes nothing: the next start stores it."""


class Keeper:
    """
    Records what passes, from :meth:`start` to :meth:`close`.

    :param reactor: provides ``IReactorTime``, ``IReactorFromThreads`` and ``IReactorProcess``.
    :param config: whose mode is not ``off``.
    :param wall_clock: seconds since the Unix epoch.
    """

    def __init__(self, reactor: Any, config: RecordConfig, wall_clock: Callable[[], float]) -> None:
        self._reactor = reactor
        self._config = config
        self._wall_clock = wall_clock
        self._recording: Recording | None = None
        self._assemble()

    def _assemble(self) -> None:
        config = self._config
        now = self._wall_clock()
        self._spool = Path(config.spool).absolute()
        instance = f"{ids.uuid7(int(now * 1000), os.urandom(10)):032x}"
        self._slot = self._spool / instance
        self._journal = Journal(self._reactor, self._spool, instance, limit=config.spool_max_bytes)
        self._process = RecorderProcess(
            self._reactor,
            control.Settings(
                spool=str(self._spool),
                instance=instance,
                host=socket.gethostname(),
                pid=os.getpid(),
                started_at=int(now * 1e6),
                db_path=str(Path(config.db_path).absolute()),
                database_url=config.database_url,
                prices_file=None if config.prices_file is None else str(Path(config.prices_file).absolute()),
                keep_bodies_seconds=config.retention_bodies.seconds,
                keep_bodies_bytes=config.retention_bodies.bytes,
                keep_metadata_seconds=config.retention_metadata.seconds,
                keep_metadata_bytes=config.retention_metadata.bytes,
            ),
        )
        self._journal.on_flushed = self._process.wake

    def start(self) -> None:
        """Begin. Never fails: what cannot be had now is tried again, and the log says so."""
        # twistd makes its services in the directory and process where it was typed, and may start them in others: only
        # now a relative path, and our pid, are what they will be.
        self._assemble()
        configured = self._config.credential_key
        self._recording = Recording(
            self._journal.open,
            bodies=self._config.mode == "full",
            key=read_key(self._spool) if configured is None else configured.encode(),
            wall_clock=self._wall_clock,
        )
        self._journal.start()
        self._process.start()

    def begin(self, passing: Passing, fields: Headers, peer: IAddress) -> ExchangeTap | None:
        """Record a request; ``None`` before :meth:`start` and after :meth:`close`."""
        return None if self._recording is None else self._recording.begin(passing, fields, peer)

    @property
    def mode(self) -> str:
        """``full`` or ``metadata``."""
        return self._config.mode

    @property
    def slot(self) -> Path:
        """Where what passes is written, until it is stored."""
        return self._slot

    @property
    def spool_max_bytes(self) -> int:
        """How much may wait to be stored."""
        return self._config.spool_max_bytes

    @property
    def journal_stats(self) -> JournalStats:
        """How what passes gets into the spool."""
        return self._journal.stats

    @property
    def recorder_status(self) -> RecorderStatus:
        """How what is in the spool gets into the store."""
        return self._process.status

    @property
    def usage(self) -> tuple[control.Usage, ...]:
        """What the recorded answers were, by provider and model, since the start."""
        return self._process.usage

    @property
    def store_writes(self) -> Histogram:
        """Seconds that the store took for each batch that it has kept, since the start."""
        return self._process.store_writes

    def describe(self) -> dict[str, object]:
        """
        How recording is: ``{"status": "ok" | "failing", "problem": null | "…", "recorded": n, "behind_bytes": n,
        "spool_bytes": n, "lost_bodies": n, "lost_exchanges": n}``. Counts are since the start.
        """
        journal, process = self._journal.stats, self._process.status
        problem = journal.problem or process.problem
        return {
            "status": "ok" if problem is None else "failing",
            "problem": problem,
            "recorded": process.recorded,
            "behind_bytes": journal.pending_bytes + process.behind_bytes,
            "spool_bytes": journal.spool_bytes,
            "lost_bodies": journal.lost_bodies,
            "lost_exchanges": journal.lost_exchanges,
        }

    async def close(self) -> None:
        """Store what is there, for a bounded time; what is left stays in the spool for the next start."""
        if self._recording is None:
            return
        self._recording = None
        await self._journal.close()
        troubled = self._process.status.problem is not None
        await self._process.close(CLOSE_TIMEOUT_TROUBLED if troubled else CLOSE_TIMEOUT)
        self._journal.release()
