"""The recorder as a process of its own: killed, orphaned, signalled, out of its store's reach, and seen out."""

from __future__ import annotations

import functools
import json
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IPushProducer, ITransport
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent
from twisted.python.failure import Failure

from tests.processes import CHECKOUT, Process, clean_environment, wait_for
from tests.recorded import ended, is_dead
from tests.spooled import Spooled, exchange_id, user
from twisted_proxy.children import LAST_RESTART, LONG_ENOUGH, environment
from twisted_proxy.record import control
from twisted_proxy.record.exchange import INTERRUPTED
from twisted_proxy.record.main import Lines, prices_of
from twisted_proxy.record.process import WAKE_EVERY, RecorderProcess

LIMIT = 30.0
"""Seconds. Starting an interpreter on a busy machine takes some."""


class Parent(Process):
    """A process that records, with a recorder of its own (`tests.recording_parent`)."""

    def __init__(self, directory: Path, *, patience: float = 20.0, **settings: Any) -> None:
        self.directory = directory
        super().__init__(
            (sys.executable, "-m", "tests.recording_parent", directory, str(patience), json.dumps(settings)),
            environment=clean_environment(PYTHONPATH=str(CHECKOUT)),
            cwd=directory,
            stdin=True,
        )

    def __enter__(self) -> Parent:
        return self

    def tell(self, command: str) -> dict[str, Any]:
        start = len(self.lines)
        self.write_line(command)
        found: dict[str, Any] = json.loads(self.wait_for_line(r"^\{.*\}$", start=start, timeout=LIMIT).group())
        return found

    def status(self) -> dict[str, Any]:
        return self.tell("status")

    def recorder(self) -> int:
        """The pid of a recorder that is at work."""
        found = wait_for(
            lambda: (status := self.status())["pid"] is not None and status["problem"] is None and status,
            f"a recorder runs\n{self.log}",
            LIMIT,
        )
        return int(found["pid"])

    def stored(self) -> dict[str, str | None]:
        """The verdict of each exchange that is stored, by id."""
        database = self.directory / "requests.db"
        if not database.exists():
            return {}
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            try:
                return dict(connection.execute("SELECT id, verdict FROM exchanges").fetchall())
            except sqlite3.OperationalError:
                return {}

    def wait_stored(self, expected: dict[int, str | None]) -> None:
        wanted = {exchange_id(number): verdict for number, verdict in expected.items()}
        wait_for(lambda: self.stored() == wanted, f"{wanted} are stored\n{self.log}", LIMIT)

    def slots(self) -> list[Path]:
        return [path for path in (self.directory / "spool").iterdir() if path.is_dir()]


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    """A process that records into SQLite."""
    with Parent(tmp_path) as running:
        yield running


def test_what_passes_is_stored_and_at_the_end_nothing_is_left(parent: Parent) -> None:
    """Within seconds while it runs; all of it before the process ends. The slot is gone."""
    for number in range(1, 6):
        parent.tell(f"exchange {number}")
    parent.tell("open 6")
    parent.wait_stored({**dict.fromkeys(range(1, 6), "complete"), 6: None})
    pid = parent.recorder()
    for number in range(7, 30):
        parent.tell(f"exchange {number}")
    told = parent.tell("close")
    assert parent.wait(LIMIT) == 0
    assert told["closed"]
    assert (told["running"], told["problem"]) == (False, None)
    assert parent.stored() == {
        exchange_id(number): INTERRUPTED if number == 6 else "complete" for number in range(1, 30)
    }
    assert parent.slots() == []
    assert is_dead(pid)


def test_a_recorder_that_is_killed_is_replaced_and_stores_everything_once(parent: Parent) -> None:
    """Whatever it was doing."""
    for number in range(1, 40):
        parent.tell(f"exchange {number}")
        if number % 10 == 0:
            pid = parent.recorder()
            os.kill(pid, signal.SIGKILL)
            wait_for(functools.partial(is_dead, pid), "it is dead")
    parent.wait_stored(dict.fromkeys(range(1, 40), "complete"))
    assert parent.status()["restarts"] == 3
    assert "the recorder was killed by signal 9; it is started again in 0.5 s" in parent.log
    parent.tell("close")
    parent.wait(LIMIT)
    assert len(parent.stored()) == 39
    assert parent.slots() == []


def test_a_recorder_whose_parent_is_killed_stores_what_is_left_and_ends(parent: Parent) -> None:
    """What was in flight is interrupted; nothing stays in the spool."""
    pid = parent.recorder()
    with ended(pid):
        parent.tell("exchange 1")
        parent.tell("open 2")
        parent.wait_stored({1: "complete", 2: None})
        parent.kill()
        wait_for(lambda: is_dead(pid), "the recorder ends by itself", LIMIT)
    assert parent.stored() == {exchange_id(1): "complete", exchange_id(2): INTERRUPTED}
    assert parent.slots() == []


def test_what_the_dead_left_is_taken_on(tmp_path: Path) -> None:
    """Both processes died, or the store was out of reach: the next start stores it. A slot in use is left alone."""
    dead = Spooled(tmp_path / "spool", "d" * 32)
    dead.exchanged(1, [user("hello")], "hi")
    dead.asked(2, [user("more")])
    dead.die()
    living = Spooled(tmp_path / "spool", "e" * 32)
    living.exchanged(3, [user("hello")], "hi")
    with Parent(tmp_path) as parent:
        parent.wait_stored({1: "complete", 2: INTERRUPTED})
        wait_for(lambda: not dead.path.exists(), "the slot is removed")
        assert living.path.exists()
        assert "a proxy that is gone left records" in parent.log


def test_signals_to_the_whole_group_are_not_for_the_recorder(parent: Parent) -> None:
    """A terminal's Ctrl-C, and systemd's SIGTERM: the proxy has more to say."""
    pid = parent.recorder()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    parent.tell("exchange 1")
    parent.wait_stored({1: "complete"})
    assert parent.status()["pid"] == pid


def test_signals_do_not_end_one_that_just_starts(parent: Parent) -> None:
    """Not even before it has come to say so."""
    pid = parent.recorder()
    os.kill(pid, signal.SIGKILL)
    fresh = wait_for(lambda: (found := parent.status()["pid"]) not in (None, pid) and found, "the next one", LIMIT)
    os.kill(fresh, signal.SIGTERM)
    assert parent.recorder() == fresh


def test_the_recorder_holds_nothing_of_its_parent(parent: Parent) -> None:
    """No listening socket, which a successor could not open, and no lock, by which the dead would look alive."""
    pid = parent.recorder()

    def links() -> set[str]:
        return {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}

    wait_for(lambda: any(link.endswith("/reader.lock") for link in links()), "it reads", LIMIT)
    assert not any(link.endswith("/owner.lock") for link in links())
    listening = Path(f"/proc/{pid}/net/tcp").read_text()
    inode = next(line.split()[9] for line in listening.splitlines() if f":{parent.status()['port']:04X} " in line)
    assert f"socket:[{inode}]" not in links()


def test_the_settings_are_not_in_the_command_line(tmp_path: Path) -> None:
    """Everybody on the host can read that; and no line of the log has the password."""
    url = "postgresql://user:hunter2@127.0.0.1:1/none"
    with Parent(tmp_path, database_url=url) as parent:
        status = wait_for(
            lambda: (found := parent.status())["problem"] not in (None, "the store is not open yet") and found,
            "it says that the store is not there",
            LIMIT,
        )
        pid = status["pid"]
        assert b"hunter2" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"hunter2" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert "hunter2" not in status["problem"]
        assert "hunter2" not in parent.log
        assert "nothing is recorded at present, it waits in the spool" in parent.log


def test_without_a_store_nothing_is_lost_and_the_end_is_not_waited_for(tmp_path: Path) -> None:
    """It stays in the spool, the log says so, and the next start stores it."""
    (tmp_path / "requests.db").mkdir()
    with Parent(tmp_path, patience=2) as parent:
        wait_for(lambda: parent.status()["problem"], "it says that the store cannot be had", LIMIT)
        parent.tell("exchange 1")
        wait_for(lambda: parent.status()["behind_bytes"], "it waits", LIMIT)
        parent.tell("close")
        assert parent.wait(LIMIT) == 0
        assert "the next start stores them" in parent.log
        assert len(parent.slots()) == 1
    (tmp_path / "requests.db").rmdir()
    with Parent(tmp_path) as parent:
        parent.wait_stored({1: "complete"})


def test_a_store_that_comes_later_gets_everything(tmp_path: Path) -> None:
    """It was not there at the start."""
    (tmp_path / "requests.db").mkdir()
    with Parent(tmp_path) as parent:
        wait_for(lambda: parent.status()["problem"], "it says that the store cannot be had", LIMIT)
        parent.tell("exchange 1")
        (tmp_path / "requests.db").rmdir()
        parent.wait_stored({1: "complete"})
        wait_for(lambda: parent.status()["problem"] is None, "all is well", LIMIT)


def test_a_frozen_recorder_is_ended_at_the_bound(tmp_path: Path) -> None:
    """The process does not wait for it for ever, and says what that means."""
    with Parent(tmp_path, patience=2) as parent:
        pid = parent.recorder()
        with ended(pid):
            os.kill(pid, signal.SIGSTOP)
            parent.tell("exchange 1")
            parent.tell("close")
            assert parent.wait(LIMIT) == 0
            assert is_dead(pid)
        assert "is ended after" in parent.log
    with Parent(tmp_path) as successor:
        successor.wait_stored({1: "complete"})


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    """Nothing is recorded, and everything is kept for the version that can."""
    with Parent(tmp_path) as parent:
        parent.tell("exchange 1")
        parent.wait_stored({1: "complete"})
        parent.tell("close")
        parent.wait(LIMIT)
    with closing(sqlite3.connect(tmp_path / "requests.db")) as database, database:
        database.execute("INSERT INTO schema_version (version) VALUES (9999)")
    with Parent(tmp_path, patience=2) as parent:
        wait_for(lambda: "9999" in str(parent.status()["problem"]), "it says which version it is", LIMIT)
        parent.tell("exchange 2")
        wait_for(lambda: parent.status()["behind_bytes"], "it waits", LIMIT)
        assert parent.status()["restarts"] == 0
        parent.tell("close")
        assert parent.wait(LIMIT) == 0
        assert list(parent.stored()) == [exchange_id(1)]
        assert len(parent.slots()) == 1


def test_what_is_past_its_time_is_deleted(tmp_path: Path) -> None:
    """In the background, from the start on."""
    with Parent(tmp_path) as parent:
        parent.tell("exchange 1")
        parent.wait_stored({1: "complete"})
        parent.tell("close")
        parent.wait(LIMIT)
    # The exchanges of these tests are older than a day.
    with Parent(tmp_path, keep_metadata_seconds=86400.0) as parent:
        parent.wait_stored({})


def test_what_was_in_flight_in_processes_that_were_not_heard_of_is_interrupted(tmp_path: Path) -> None:
    """Of a host that is gone, with its spool. A process that was heard of lately is left alone."""
    with Parent(tmp_path) as parent:
        parent.tell("exchange 1")
        parent.tell("exchange 2")
        parent.wait_stored({1: "complete", 2: "complete"})
        parent.tell("close")
        parent.wait(LIMIT)
    now = int(time.time() * 1e6)
    with closing(sqlite3.connect(tmp_path / "requests.db")) as database, database:
        for number, name, silent_for in ((1, "gone", 700), (2, "busy", 10)):
            database.execute("INSERT INTO instances VALUES (?, 'host', 1, 1, ?)", (name, now - silent_for * 1_000_000))
            database.execute(
                "UPDATE exchanges SET verdict = NULL, instance = ? WHERE id = ?", (name, exchange_id(number))
            )
    with Parent(tmp_path) as parent:
        parent.wait_stored({1: INTERRUPTED, 2: None})


# In memory


class FakeTransport:
    """What a child's protocol is connected to."""

    disconnecting = False

    def __init__(self, pid: int, protocol: ProcessProtocol) -> None:
        self.pid = pid
        self.protocol = protocol
        self.written = b""
        self.producer: Any = None
        self.signals: list[str] = []

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        assert streaming
        self.producer = producer

    def write(self, data: bytes) -> None:
        self.written += data

    def signalProcess(self, name: str) -> None:
        self.signals.append(name)

    @property
    def messages(self) -> list[control.ToRecorder]:
        return [control.to_recorder(line) for line in self.written.splitlines()]

    def say(self, *messages: control.FromRecorder) -> None:
        self.protocol.outReceived(b"".join([control.encode(message) + b"\n" for message in messages]))

    def die(self, signal_number: int | None = None, status: int | None = None) -> None:
        """End: killed, with a status, or well."""
        well = signal_number is None and not status
        reason = ProcessDone(0) if well else ProcessTerminated(status, signal_number)
        self.protocol.processEnded(Failure(reason))


class FakeReactor(Clock):
    """Time, and processes that do what they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.children: list[FakeTransport] = []
        self.environment: dict[str, str] = {}
        self.problem: OSError | None = None

    def spawnProcess(
        self, protocol: ProcessProtocol, executable: str, args: Sequence[str], env: dict[str, str], path: None
    ) -> None:
        if self.problem is not None:
            raise self.problem
        child = FakeTransport(100 + len(self.children), protocol)
        self.children.append(child)
        self.environment = env
        protocol.makeConnection(child)


SETTINGS = control.Settings(
    spool="/spool", instance="i", host="h", pid=1, started_at=2, db_path="/requests.db", database_url="postgresql://p"
)


@pytest.fixture
def reactor() -> FakeReactor:
    """A reactor in memory."""
    return FakeReactor()


@pytest.fixture
def process(reactor: FakeReactor) -> RecorderProcess:
    """A recorder that is started."""
    process = RecorderProcess(reactor, SETTINGS)
    process.start()
    return process


def test_the_settings_are_the_first_line(reactor: FakeReactor, process: RecorderProcess) -> None:
    """And the child can import what its parent does."""
    assert reactor.children[0].messages == [SETTINGS]
    assert reactor.environment["PYTHONPATH"].split(os.pathsep)[0] == str(CHECKOUT)


def test_the_path_of_a_child_is_absolute() -> None:
    """The working directory may be another by then."""
    entries = environment({"HOME": "/root"})["PYTHONPATH"].split(os.pathsep)
    assert all(entry.startswith("/") for entry in entries)
    assert len(set(entries)) == len(entries)


def test_wakes_are_gathered(reactor: FakeReactor, process: RecorderProcess) -> None:
    """One message for all within 50 ms; none to a recorder that does not read."""
    child = reactor.children[0]
    for _ in range(10):
        process.wake()
    reactor.advance(WAKE_EVERY)
    assert child.messages[1:] == [control.Flushed()]
    child.producer.pauseProducing()
    process.wake()
    reactor.advance(WAKE_EVERY)
    assert len(child.messages) == 2
    child.producer.resumeProducing()
    process.wake()
    reactor.advance(WAKE_EVERY)
    assert len(child.messages) == 3


def test_one_that_keeps_dying_is_started_ever_more_seldom(
    reactor: FakeReactor, process: RecorderProcess, logs: list[LogEvent]
) -> None:
    """From half a second to half a minute; each time the log has why, and its last words."""
    pauses = []
    for number in range(9):
        reactor.children[-1].protocol.errReceived(b"Traceback\nImportError: no module\n")
        reactor.children[-1].die(status=1)
        assert process.status.problem == "the recorder exited with status 1"
        before = reactor.seconds()
        while len(reactor.children) == number + 1:
            reactor.advance(0.5)
        pauses.append(reactor.seconds() - before)
    assert pauses == [0.5, 1, 2, 4, 8, 16, LAST_RESTART, LAST_RESTART, LAST_RESTART]
    line = next(formatEvent(event) for event in logs if event["log_level"].name == "error")
    assert line == (
        "the recorder exited with status 1; it is started again in 0.5 s\nTraceback\nImportError: no module"
    )
    assert process.status.restarts == 9
    reactor.advance(LONG_ENOUGH)
    reactor.children[-1].die(9)
    reactor.advance(0.5)
    assert len(reactor.children) == 11


def test_one_that_cannot_be_started_is_tried_again(reactor: FakeReactor) -> None:
    """Too many processes, no memory: recording comes later, and start() does not fail."""
    reactor.problem = OSError(11, "Resource temporarily unavailable")
    process = RecorderProcess(reactor, SETTINGS)
    process.start()
    assert "Resource temporarily unavailable" in str(process.status.problem)
    assert process.status.running is False
    process.wake()
    reactor.problem = None
    reactor.advance(0.5)
    assert process.status.running is True
    assert process.status.problem is None


def test_counts_go_on_across_restarts(reactor: FakeReactor, process: RecorderProcess) -> None:
    """They are of the proxy's life, not of one recorder's."""
    reactor.children[0].say(control.Status(recorded=5, incomplete=1, interrupted=2, damaged=1, behind_bytes=7))
    reactor.children[0].die(9)
    reactor.advance(0.5)
    reactor.children[1].say(control.Status(recorded=3))
    status = process.status
    assert (status.recorded, status.incomplete, status.interrupted, status.damaged) == (8, 1, 2, 1)
    assert status.behind_bytes == 0


def test_what_it_says_is_logged_with_its_level(
    reactor: FakeReactor, process: RecorderProcess, logs: list[LogEvent]
) -> None:
    """As are its standard error, and what is no message at all, in whichever pieces it comes."""
    child = reactor.children[0]
    child.say(
        control.Logged(level="error", text="{not} a format"), control.Logged(level="?", text="odd", traceback="T")
    )
    child.protocol.outReceived(b"hel")
    child.protocol.outReceived(b"lo\n")
    child.protocol.errReceived(b"\xff!\nrest")
    child.die()
    assert [(event["log_level"].name, formatEvent(event)) for event in logs[:5]] == [
        ("error", "recorder: {not} a format"),
        ("warn", "recorder: odd\nT"),
        ("warn", "recorder: hello"),
        ("warn", "recorder: \\xff!"),
        ("warn", "recorder: rest"),
    ]


def test_who_watches_is_told_and_cannot_do_harm(reactor: FakeReactor, logs: list[LogEvent]) -> None:
    """What it raises is logged."""
    told: list[Sequence[str]] = []

    def watch(ids: Sequence[str]) -> None:
        told.append(ids)
        raise ValueError("mine")

    RecorderProcess(reactor, SETTINGS, on_written=watch).start()
    reactor.children[0].say(control.Written(("a", "b")), control.Written(("c",)))
    assert told == [("a", "b"), ("c",)]
    assert len([event for event in logs if "log_failure" in event]) == 2


class TestLines:
    """The recorder's end of the pipe."""

    def lines(self) -> tuple[Lines, FakeTransport, list[control.ToRecorder]]:
        took: list[control.ToRecorder] = []
        lines = Lines(took.append, lambda: None)
        transport = FakeTransport(1, ProcessProtocol())
        lines.makeConnection(cast("ITransport", transport))
        return lines, transport, took

    def test_while_nobody_reads_little_is_kept(self) -> None:
        """The newest status, and what was logged."""
        lines, transport, _ = self.lines()
        lines.send(control.Status(recorded=1))
        transport.producer.pauseProducing()
        for number in range(2, 100):
            lines.send(control.Status(recorded=number))
            lines.send(control.Written((exchange_id(number),)))
        lines.send(control.Logged(level="warn", text="slow"))
        transport.producer.resumeProducing()
        assert [control.from_recorder(line) for line in transport.written.splitlines()] == [
            control.Status(recorded=1),
            control.Logged(level="warn", text="slow"),
            control.Status(recorded=99),
        ]

    def test_a_line_that_is_no_message_does_no_harm(self, logs: list[LogEvent]) -> None:
        """It is told of, and not shown: it might hold the settings."""
        lines, _, took = self.lines()
        lines.dataReceived(b'{"type":"settings","database_url":"postgresql://u:hunter2@h"}\n{"type":"flushed"}\n')
        assert took == [control.Flushed()]
        assert len(logs) == 1
        assert "hunter2" not in formatEvent(logs[0])

    def test_settings_do_not_show_the_password(self) -> None:
        """Wherever somebody shows them."""
        assert "postgresql" not in f"{SETTINGS} {SETTINGS!r}"


def test_prices_that_cannot_be_read_are_left_out(tmp_path: Path, logs: list[LogEvent]) -> None:
    """The shipped ones count, and the log says so."""
    assert prices_of(str(tmp_path / "none.json"))._find("claude-opus-4-5")
    assert "none.json" in formatEvent(logs[0])


def close(process: RecorderProcess, patience: float) -> list[object]:
    """Close it; the list has something as soon as that is done."""
    done: list[object] = []
    Deferred.fromCoroutine(process.close(patience)).addCallback(done.append)
    return done


class TestClosing:
    def test_it_is_told_and_waited_for(self, reactor: FakeReactor, process: RecorderProcess) -> None:
        """Nobody starts another one."""
        done = close(process, 10)
        assert reactor.children[0].messages[1:] == [control.Close(grace=5)]
        assert done == []
        reactor.children[0].die()
        assert done == [None]
        assert reactor.getDelayedCalls() == []
        process.start()
        process.wake()
        assert len(reactor.children) == 1

    def test_as_long_as_it_gets_on_it_may_go_on(self, reactor: FakeReactor, process: RecorderProcess) -> None:
        """To the bound, and no longer."""
        done = close(process, 30)
        child = reactor.children[0]
        for number in range(29):
            reactor.advance(1)
            child.say(control.Status(recorded=number, behind_bytes=1000))
        assert child.signals == []
        reactor.advance(1)
        assert child.signals == ["KILL"]
        child.die(9)
        assert done == [None]

    def test_one_that_does_not_is_ended_before(
        self, reactor: FakeReactor, process: RecorderProcess, logs: list[LogEvent]
    ) -> None:
        """The log says where the rest is."""
        reactor.children[0].say(control.Status(behind_bytes=1000))
        close(process, 30)
        reactor.advance(15)
        assert reactor.children[0].signals == []
        reactor.advance(3)
        assert reactor.children[0].signals == ["KILL"]
        assert formatEvent(logs[-1]) == (
            "the recorder (pid 100) is ended after 18 s without progress; about 1000 bytes stay in /spool, "
            "the next start stores them"
        )

    def test_one_that_dies_meanwhile_is_not_replaced(
        self, reactor: FakeReactor, process: RecorderProcess, logs: list[LogEvent]
    ) -> None:
        """What it did not do the next start does."""
        done = close(process, 30)
        reactor.children[0].die(11)
        assert done == [None]
        assert len(reactor.children) == 1
        assert "was killed by signal 11 before it was done; the next start" in str(formatEvent(logs[-1]))

    def test_between_two_lives_it_is_started_to_store_the_rest(
        self, reactor: FakeReactor, process: RecorderProcess
    ) -> None:
        """At once, and told so."""
        reactor.children[0].die(9)
        done = close(process, 10)
        assert reactor.children[1].messages == [SETTINGS, control.Close(grace=5)]
        reactor.children[1].die()
        assert done == [None]

    def test_without_one_there_is_nothing_to_wait_for(self, reactor: FakeReactor) -> None:
        """It was never started, or is closed already."""
        process = RecorderProcess(reactor, SETTINGS)
        assert close(process, 10) == [None]
        process.start()
        assert reactor.children == []
