"""What a proxy has recorded, read back out of its store; and requests that go on while something happens to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import attrs

from tests.processes import CHECKOUT, Proxy, StandIn, clean_environment, proxy, wait_for
from tests.sockets import call, prompt
from tests.store_reader import Answer, Question, pack, unpack
from twisted_proxy.record.exchange import Exchange, Role, StoredBody
from twisted_proxy.record.slots import JOURNAL
from twisted_proxy.record.store import Query

LIMIT: Final = 30.0
"""Seconds until something is in the store, on a machine that has other things to do."""
PROMPT: Final = 2.0
"""Seconds within which a request is answered whatever its record waits for."""


def recording(directory: Path, upstream: StandIn, **settings: str) -> Proxy:
    """A proxy that records, unless told otherwise into ``requests.db`` of its directory."""
    return proxy(directory, upstream, **{"RECORD": "full", **settings})


@attrs.frozen(kw_only=True)
class Kept:
    """An exchange as the store has it, with its bodies."""

    exchange: Exchange
    bodies: Mapping[Role, StoredBody]

    def data(self, role: Role) -> bytes | None:
        """The bytes of a body; ``None`` if there is none."""
        body = self.bodies.get(role)
        return None if body is None else body.data


class Reader:
    """The process that reads (`tests.store_reader`). A context manager: leaving it ends the process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            (sys.executable, "-m", "tests.store_reader"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
            env=clean_environment(PYTHONPATH=str(CHECKOUT)),
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def ask(self, question: Question) -> Answer:
        """Raises what the store does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(pack(question) + b"\n")
        self._process.stdin.flush()
        answer: Answer | BaseException = unpack(self._process.stdout.readline())
        if isinstance(answer, BaseException):
            raise answer
        return answer


class Records:
    """
    What is in a store. Each question opens it anew, and closes it.

    :param place: a SQLite file, or the URL of a PostgreSQL database.
    """

    def __init__(self, reader: Reader, place: Path | str) -> None:
        self._reader = reader
        self._file = place if isinstance(place, Path) else None
        self._url = place if isinstance(place, str) else None

    def _ask(self, **asked: Any) -> Answer:
        if self._file is not None and not self._file.exists():
            return {}
        return self._reader.ask(Question(db_path=str(self._file), database_url=self._url, **asked))

    def exchanges(self, query: Query | None = None) -> dict[str, Exchange]:
        """All that are meant, by id; none where there is no file."""
        return {name: exchange for name, (exchange, _) in self._ask(query=query or Query()).items()}

    def verdicts(self) -> dict[str, str | None]:
        """The verdict of every exchange, by id."""
        return {each.id: each.verdict for each in self.exchanges().values()}

    def kept(self, *ids: str) -> dict[str, Kept]:
        """Those of these exchanges that are there, with all their bodies."""
        found = self._ask(ids=ids)
        return {name: Kept(exchange=exchange, bodies=bodies) for name, (exchange, bodies) in found.items()}

    def wait_over(self, exchange_id: str) -> Kept:
        """One exchange as soon as it is stored with its end. Raises `AssertionError`."""

        def found() -> Kept | None:
            kept = self.kept(exchange_id).get(exchange_id)
            return None if kept is None or kept.exchange.verdict is None else kept

        kept: Kept = wait_for(found, f"{exchange_id} is stored with its verdict", LIMIT)
        return kept

    def wait_complete(self, ids: Iterable[str]) -> None:
        """Wait until all of these are stored, as complete. Raises `AssertionError`."""
        wanted = set(ids)

        def missing() -> dict[str, str | None]:
            verdicts = self.verdicts()
            return {each: verdicts.get(each) for each in wanted if verdicts.get(each) != "complete"}

        left: dict[str, str | None] = {}

        def done() -> bool:
            nonlocal left
            left = missing()
            return not left

        try:
            wait_for(done, "", LIMIT)
        except AssertionError:
            raise AssertionError(f"of {len(wanted)} exchanges these are not stored as complete: {left}") from None

    def wait_for(self, promise: Callable[[dict[str, Exchange]], object], what: str) -> dict[str, Exchange]:
        """All exchanges as soon as a promise holds for them. Raises `AssertionError`."""

        def found() -> dict[str, Exchange] | None:
            exchanges = self.exchanges()
            return exchanges if promise(exchanges) else None

        exchanges: dict[str, Exchange] = wait_for(found, what, LIMIT)
        return exchanges


# -- processes


def recorder_of(running: Proxy) -> int:
    """The pid of a proxy's recorder, once there is one. Raises `AssertionError`."""

    def found() -> int | None:
        listed = subprocess.run(
            ["ps", "--ppid", str(running.pid), "-o", "pid=,args="], capture_output=True, text=True, check=False
        )
        pids = [int(line.split()[0]) for line in listed.stdout.splitlines() if "twisted_proxy.record.main" in line]
        return pids[0] if pids else None

    return int(wait_for(found, f"a recorder runs\n{running.log}", LIMIT))


def is_dead(pid: int) -> bool:
    """Whether a process is not there any more, or as a zombie only."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


@contextmanager
def ended(pid: int) -> Iterator[None]:
    """See to it that a process which may outlive its parent does not outlive the test."""
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Stop a process for the block (``SIGSTOP``), if it is still there at its end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def describe(running: Proxy) -> dict[str, Any]:
    """How recording is, as ``/livez`` tells it."""
    found: dict[str, Any] = running.get("/livez")[1]["recording"]
    return found


def wait_problem(running: Proxy, words: str) -> str:
    """What ``/livez`` says is wrong, once it says something that has these words. Raises `AssertionError`."""

    def found() -> str | None:
        told = describe(running)
        assert (told["status"] == "failing") == (told["problem"] is not None)
        return told["problem"] if words in (told["problem"] or "") else None

    problem: str = wait_for(found, f"/livez tells of {words!r}, not of {describe(running)}\n{running.log}", LIMIT)
    return problem


def wait_well(running: Proxy) -> None:
    """Wait until ``/livez`` says that all is well. Raises `AssertionError`."""
    wait_for(lambda: describe(running)["status"] == "ok", f"/livez says that all is well\n{running.log}", LIMIT)


def slots(spool: Path) -> list[Path]:
    """The slot directories that are there."""
    return [path for path in spool.iterdir() if path.is_dir()]


def segments(spool: Path) -> list[Path]:
    """The files that hold what waits to be stored."""
    return sorted(spool.glob(f"*/*{JOURNAL}"))


# -- load


@attrs.frozen(kw_only=True)
class Answered:
    """One request of a `Load` that was answered."""

    id: str
    status: int
    seconds: float
    began: float
    """Of `time.monotonic`."""


class Load:
    """
    Requests, one after the other on a few threads, each on a connection of its own, while a test does something.

    A context manager: leaving it waits for those that are in flight.

    :ivar answered: those that were, whole.
    :ivar failed: what became of the others, in words.
    """

    def __init__(self, port: int, *, threads: int = 2, pause: float = 0.03, stream: bool = True) -> None:
        self.answered: list[Answered] = []
        self.failed: list[str] = []
        self._port = port
        self._pause = pause
        self._stream = stream
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(threads)]

    def _run(self, thread: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            self._one(f"request {thread}-{count}")
            self._stop.wait(self._pause)

    def _one(self, text: str) -> None:
        began = time.monotonic()
        try:
            answer = call(self._port, "POST", "/v1/messages", (), prompt(text, stream=self._stream))
        except (OSError, AssertionError) as error:
            self.failed.append(f"{text}: {error!r}")
            return
        seconds = time.monotonic() - began
        exchange_id = answer.header("x-proxy-request-id")
        if answer.whole and answer.status == 200 and exchange_id is not None:
            self.answered.append(Answered(id=exchange_id, status=answer.status, seconds=seconds, began=began))
        else:
            self.failed.append(f"{text}: {answer}")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Begin no more requests, and wait for those in flight."""
        self._stop.set()
        for thread in self._threads:
            thread.join(LIMIT)

    def wait_answered(self, more: int) -> None:
        """Wait until so many more requests are answered. Raises `AssertionError`."""
        target = len(self.answered) + more
        wait_for(lambda: len(self.answered) >= target, f"{more} more requests are answered: {self.failed}", LIMIT)

    @property
    def ids(self) -> set[str]:
        return {each.id for each in self.answered}

    def assert_prompt(self, baseline: Sequence[Answered] = ()) -> None:
        """No request failed, and none took longer than `PROMPT`, or than ten times as long as one of ``baseline``."""
        assert not self.failed
        allowed = max(PROMPT, 10 * max((each.seconds for each in baseline), default=0))
        slowest = max(each.seconds for each in self.answered)
        assert slowest < allowed, f"a request took {slowest:.2f} s; allowed are {allowed:.2f} s"
