"""The dashboard, put together."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any

from ...config import Config
from ...record import pricing
from ...record.keeper import Keeper
from ...record.live import Live
from ...record.opening import store_of
from ...record.sql import SqlStore
from ...record.threads import Crew
from ...siblings import Siblings
from ..channel import ProxySite
from ..family import Family
from ..front import Front
from .access import Guard
from .app import Dashboard
from .cache import Cache
from .conversations import Conversations
from .exports import Exports
from .fan_in import FanIn
from .hub import Hub
from .in_flight import InFlight
from .live import LiveApi
from .login import Login
from .news import News
from .openapi import OpenApi
from .records import Records
from .replay import Replay
from .requests import Requests
from .sessions import Sessions
from .site import Files, packaged
from .transcripts import Transcripts, default_directory
from .usage import Usage

Compute = Callable[..., Awaitable[Any]]

CLOSE_TIMEOUT = 1.0
"""Seconds that threads have to end."""


class Dashboards:
    """
    All of the dashboard of one proxy.

    :param reactor: provides ``IReactorTime`` and ``IReactorFromThreads``.
    :param site: makes the proxy's site for requests that are sent again.
    :param store: makes the store that is read, in place of the configured one.
    :param compute: runs what takes long, in place of threads.
    :ivar guard: who may look.
    :ivar main: what the proxy's own listeners answer. :ivar own: what `DASHBOARD_LISTEN` does, if that is set.
    """

    def __init__(
        self,
        reactor: Any,
        config: Config,
        front: Front,
        keeper: Keeper | None,
        live: Live,
        site: Callable[[], ProxySite],
        family: Family,
        siblings: Siblings,
        *,
        store: Callable[[], SqlStore] | None = None,
        compute: Compute | None = None,
    ) -> None:
        self._crews: list[Crew] = []

        def thread(name: str) -> Compute:
            if compute is not None:
                return compute
            crew = Crew(reactor, name)
            self._crews.append(crew)
            return lambda function, *arguments: crew.run(lambda progress: function(*arguments))

        def now() -> int:
            return int(front.wall_clock() * 1e6)

        @cache
        def prices() -> pricing.Prices:
            file = config.record.prices_file
            return pricing.shipped() if file is None else pricing.load(Path(file))

        record = config.record
        make = store
        if make is None and record.mode != "off":

            def make() -> SqlStore:
                return store_of(reactor, db_path=str(Path(record.db_path).absolute()), database_url=record.database_url)

        files = thread("dashboard-files")
        self.guard = guard = Guard(config.dashboard, front.clock.seconds, thread("dashboard-passwords"), siblings)
        self._records = records = Records(reactor, make)
        transcripts = Transcripts(lambda: default_directory(config.dashboard.projects_dir, os.environ))
        in_flight = InFlight(reactor, live, front.gauge, front.wall_clock)
        self.hub = hub = Hub(reactor, live, in_flight, News(records), family, keeper, front.wall_clock, files)
        fan_in = FanIn(hub, siblings)
        parts = (
            Login(guard, record.mode),
            Requests(records),
            Cache(records, prices, now),
            Exports(records),
            Replay(records, front.drain, front.clock, site),
            LiveApi(hub, fan_in, guard, in_flight, family, siblings, front.clock),
            Conversations(records, transcripts, files),
            Sessions(records, transcripts, files),
            Usage(records, transcripts, files, now),
        )
        documents = OpenApi(files).routes()
        routes = [route for part in parts for route in part.routes()]
        whole = Dashboard(guard, [*documents, *routes], Files(packaged()))
        self.own = whole if config.dashboard.listen else None
        self.main = Dashboard(guard, documents, None) if config.dashboard.listen else whole

    def end_streams(self) -> None:
        """End what would not end by itself: those who watch."""
        self.hub.close()

    async def close(self) -> None:
        """Let go of threads and store."""
        self.hub.close()
        await self._records.close()
        for crew in self._crews:
            await crew.close(CLOSE_TIMEOUT)
