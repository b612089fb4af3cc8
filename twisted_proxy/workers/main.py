"""
A worker's process: the proxy as `ProxyServer`, on sockets that it inherits, until the supervisor says that it is to
drain, or is gone.
"""

from __future__ import annotations

import signal
import sys
from typing import Any, Final

from twisted.internet import stdio
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.logger import Logger, globalLogBeginner

from ..listening import inheritor
from ..logs import observer
from ..service import ProxyServer
from . import control
from .member import Member

log = Logger()

NOT_FOR_US: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""A terminal and systemd send them to the whole group; the supervisor says when it is time."""


class WorkerServer(ProxyServer):
    """The proxy on inherited sockets, below a supervisor that takes its signals and says where it is."""

    def __init__(self, start: control.Start, reactor: Any, member: Member) -> None:
        descriptors = {each.endpoint: each.descriptor for each in start.sockets}
        super().__init__(
            control.load_config(start.config), reactor, listen=inheritor(reactor, descriptors), siblings=member
        )
        self._member = member

    def _announce(self) -> None:
        self._member.ready()


async def run(reactor: Any) -> None:
    """Serve until told to stop, and drained."""
    first: Deferred[control.Start | None] = Deferred()
    stop: Deferred[None] = Deferred()
    server: WorkerServer | None = None
    hurried = False

    def drain(lame_duck: bool) -> None:
        if server is not None and not lame_duck:
            server.drain.skip_lame_duck()
        if not stop.called:
            stop.callback(None)

    def hurry() -> None:
        nonlocal hurried
        hurried = True
        if server is not None:
            server.hurry()

    def ended() -> None:
        if not first.called:
            first.callback(None)
        elif not stop.called:
            log.error("the supervisor of this worker is gone: draining")
            drain(lame_duck=False)

    member = Member(started=first.callback, drain=drain, hurry=hurry, ended=ended)
    # Its types are those of another platform.
    standard_io: Any = stdio.StandardIO
    standard_io(member, stdin=control.FROM_SUPERVISOR, stdout=control.TO_SUPERVISOR, reactor=reactor)
    start = await first
    if start is None:
        return
    config = control.load_config(start.config)
    chosen = observer(config.log_format, sys.stdout, worker=start.place)
    globalLogBeginner.beginLoggingTo([chosen], redirectStandardIO=False, discardBuffer=True)
    server = WorkerServer(start, reactor, member)
    server.privilegedStartService()
    server.startService()
    await stop
    stopped = server.stopService()
    if hurried:
        server.hurry()
    await stopped


def main() -> None:
    """The process's entry."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_US)
    react(run)


if __name__ == "__main__":
    main()
