"""
A process that records, and does nothing else: ``python -m tests.recording_parent DIRECTORY PATIENCE SETTINGS``.

It is told what to do by lines on its standard input, and answers each with a line of JSON:

``exchange N`` records a whole exchange, ``open N`` one that stays open, ``close`` ends recording and the process.
``status`` gives the recorder's pid and its status. The log is on standard error.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import attrs
from twisted.internet import stdio
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver
from twisted.protocols.basic import LineOnlyReceiver

from tests.spooled import BEGAN, exchange_id, message, user
from twisted_proxy.record import control
from twisted_proxy.record.entries import Closed, Opened
from twisted_proxy.record.exchange import Role
from twisted_proxy.record.journal import Journal
from twisted_proxy.record.process import RecorderProcess


class Commands(LineOnlyReceiver):
    delimiter = b"\n"

    def __init__(self, reactor: Any, directory: Path, patience: float, settings: dict[str, Any]) -> None:
        self.ended: Deferred[None] = Deferred()
        self.patience = patience
        instance = f"{os.getpid():032x}"
        spool = directory / "spool"
        # As the listening port of a proxy: nobody else may hold it.
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.journal = Journal(reactor, spool, instance, limit=2**30)
        self.process = RecorderProcess(
            reactor,
            control.Settings(
                **{
                    "spool": str(spool),
                    "instance": instance,
                    "host": "host",
                    "pid": os.getpid(),
                    "started_at": int(time.time() * 1e6),
                    "db_path": str(directory / "requests.db"),
                    **settings,
                }
            ),
        )
        self.journal.on_flushed = self.process.wake
        self.journal.start()
        self.process.start()

    def lineReceived(self, line: bytes) -> None:
        command, _, number = line.decode().partition(" ")
        match command:
            case "open" | "exchange":
                self.record(int(number), whole=command == "exchange")
                self.say({})
            case "status":
                status = attrs.asdict(self.process.status)
                self.say({"pid": self.process.pid, "port": self.listening.getsockname()[1], **status})
            case "close":
                Deferred.fromCoroutine(self.close()).chainDeferred(self.ended)

    def record(self, number: int, *, whole: bool) -> None:
        headers = (("x-claude-code-session-id", f"s{number}"),)
        opened = Opened(received_at=BEGAN + number, method="POST", path="/v1/messages", request_headers=headers)
        tap = self.journal.open(exchange_id(number), opened)
        tap.bulk(Role.REQUEST, json.dumps({"model": "m", "messages": [user(f"question {number}")]}).encode())
        tap.note(body_read_us=1)
        if whole:
            tap.note(status=200, response_headers=(("content-type", "application/json"),))
            tap.marked(Role.ANSWER, json.dumps(message(number, f"answer {number}")).encode(), 2)
            tap.close(Closed(verdict="complete", status=200))

    async def close(self) -> None:
        await self.journal.close()
        await self.process.close(self.patience)
        self.say({"closed": True, **attrs.asdict(self.process.status)})
        self.journal.release()

    def say(self, value: dict[str, Any]) -> None:
        # At once: the last line must be out before the reactor ends.
        os.write(1, json.dumps(value).encode() + b"\n")


async def run(reactor: Any, directory: str, patience: str, settings: str) -> None:
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    commands = Commands(reactor, Path(directory), float(patience), json.loads(settings))
    stdio.StandardIO(commands, reactor=reactor)
    await commands.ended


if __name__ == "__main__":
    react(run, sys.argv[1:])
