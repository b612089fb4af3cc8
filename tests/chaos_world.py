"""
What a chaos run happens to: two slots that share a store, the upstream, the database, the spool's disk; and the deeds.

A deed begins and ends something, heals what it hurt, and says when that was. Deeds of one kind come one after the
other, those of different kinds at the same time.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import attrs

from tests.chaos_accounts import FULL, HURRIED, ROLLED, SLOT, UPSTREAM, WORKER, Event
from tests.postgresql import Database
from tests.processes import CHECKOUT, Process, Proxy, StandIn, clean_environment, wait_for
from tests.sockets import free_port
from tests.test_process_records_faults import fill

SIGCONT, SIGKILL, SIGSTOP, SIGTERM = signal.SIGCONT, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM
MARK: Final = "CHAOS_SLOT"
"""A variable that all processes of a slot inherit, with its directory."""
POLL: Final = 0.2
"""Seconds between two looks at a slot's health."""
LAME_DUCK: Final = 2.0
"""Seconds: long enough to be seen by who looks for slots, on a machine that has other things to do."""
GONE: Final = 60.0
"""Seconds that a slot may take to end: the longest answer, and the records of all."""
DISK: Final = 512 * 1024 * 1024
"""Bytes: more than what comes while a database is away."""


def processes_of(directory: Path) -> dict[int, str]:
    """The command lines of all processes of a slot, by their pids."""
    found = {}
    mark = f"{MARK}={directory}".encode()
    for each in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (each / "environ").read_bytes().split(b"\0"):
                found[int(each.name)] = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


# The spool's disk


@attrs.frozen(kw_only=True)
class Disk:
    """
    Where the spool is.

    :ivar wrapper: what has to run a process for which the spool is there.
    :ivar inside: where this process sees it. :ivar real: whether it can be full.
    """

    spool: Path
    inside: Path
    wrapper: tuple[str, ...] = ()
    real: bool = False


@contextmanager
def disk(directory: Path) -> Iterator[Disk]:
    """A small file system for the spool, in a namespace that processes can enter; a directory where that may not be."""
    spool = directory / "spool"
    spool.mkdir()
    script = f'mount -t tmpfs -o size={DISK} spool "{spool}" && echo mounted && exec cat'
    command = ("unshare", "--map-root-user", "--mount", "sh", "-c", script)
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        yield Disk(spool=spool, inside=spool)
        return
    with Process(command, environment=clean_environment(), cwd=directory, stdin=True) as holder:
        try:
            holder.wait_for_line("^mounted$")
        except AssertionError:
            yield Disk(spool=spool, inside=spool)
            return
        enter = ("nsenter", "--target", str(holder.pid), "--user", "--mount", "--preserve-credentials")
        inside = Path(f"/proc/{holder.pid}/root") / spool.relative_to("/")
        wrapper = (*enter, "sh", "-c", 'cd "$0" && exec "$@"')
        yield Disk(spool=spool, inside=inside, wrapper=wrapper, real=True)


# The slots


class Slot:
    """A proxy on a port that it keeps through all its processes."""

    def __init__(self, name: str, directory: Path, disk: Disk, settings: Mapping[str, str]) -> None:
        directory.mkdir()
        self.name = name
        self.directory = directory
        self.port = free_port()
        self._disk = disk
        self._settings = {"PORT": str(self.port), MARK: str(directory), **settings}
        self.logs: list[list[str]] = []
        self.running: Proxy | None = None

    def start(self) -> Proxy:
        """Start a process, and wait until it listens. Raises `AssertionError`."""
        assert self.running is None
        wrapper = (*self._disk.wrapper, str(self.directory)) if self._disk.wrapper else ()
        self.running = Proxy(self.directory, wrapper=wrapper, **self._settings)
        self.logs.append(self.running.lines)
        return self.running

    def end(self, timeout: float = GONE) -> None:
        """Wait for the end of a process that was told to stop. Raises `AssertionError`."""
        assert self.running is not None
        status = self.running.wait(timeout)
        self.running.kill()
        self.running = None
        assert status == -SIGTERM, f"{self.name} exited with {status}"
        left = processes_of(self.directory)
        assert not left, f"{self.name} has ended, and these have not: {left}"

    def kill(self) -> None:
        """``kill -9``, of its workers as well. Its recorders go on to their end."""
        assert self.running is not None
        workers = self.workers()
        self.running.signal(SIGKILL)
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, SIGKILL)
        self.running.kill()
        self.running = None

    def recorders(self) -> list[int]:
        """The pids of its recorders."""
        return [pid for pid, command in processes_of(self.directory).items() if "twisted_proxy.record.main" in command]

    def workers(self) -> list[int]:
        """The pids of its workers; none where it is one process."""
        if self.running is None or self._settings.get("WORKERS", "1") == "1":
            return []
        children = Path(f"/proc/{self.running.pid}/task/{self.running.pid}/children")
        with suppress(FileNotFoundError):
            return [int(pid) for pid in children.read_text().split()]
        return []


class Health:
    """
    Which slots a balancer would ask: those whose ``/health`` said 200 when it last looked. A context manager.

    :param slots: that are asked in turn.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._up: set[int] = set()
        self._turn = 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(slot,), daemon=True) for slot in slots]

    def __enter__(self) -> Health:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _watch(self, slot: Slot) -> None:
        while not self._over.is_set():
            running = slot.running
            try:
                well = running is not None and running.get("/health")[0] == 200
            except (OSError, ValueError):
                well = False
            if well:
                self._up.add(slot.port)
            else:
                self._up.discard(slot.port)
            self._over.wait(POLL)

    def is_up(self, slot: Slot) -> bool:
        return slot.port in self._up

    def port(self) -> int:
        """One that is up, as soon as there is one."""
        up: list[int] = wait_for(lambda: sorted(self._up), "there is a slot to ask", 30)
        self._turn += 1
        return up[self._turn % len(up)]


# The upstream


class Upstream:
    """The stand-in, on a port that it keeps. A context manager."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._port = free_port()
        self._process: Process | None = None
        self._standin: StandIn | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Upstream:
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()

    def start(self) -> None:
        arguments = (sys.executable, "-m", "tests.standin", "--port", str(self._port))
        environment = clean_environment(PYTHONPATH=str(CHECKOUT))
        self._process = Process(arguments, environment=environment, cwd=self._directory, stdin=True)
        self._standin = StandIn(self._process, None)

    def kill(self) -> None:
        process, self._process, self._standin = self._process, None, None
        if process is not None:
            process.kill()

    def forget(self) -> None:
        """What it has seen, which nobody asks it about."""
        if self._standin is not None:
            with suppress(OSError):
                self._standin.reset()


# The deeds

Deed = Callable[[random.Random], None]


@attrs.define(kw_only=True)
class World:
    """
    Everything that can be hurt.

    :ivar balanced: whether a balancer stands before the slots, so that no client knows whom it asked.
    :ivar events: what was done. :ivar failures: what went wrong when it was.
    :ivar say: tells what happens to who watches.
    """

    slots: Sequence[Slot]
    health: Health
    upstream: Upstream
    disk: Disk
    database: Database | None
    balanced: bool
    workers: int
    say: Callable[[str], None]
    events: list[Event] = attrs.field(factory=list)
    failures: list[str] = attrs.field(factory=list)
    _filled: threading.Event = attrs.field(factory=threading.Event)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def lanes(self) -> dict[str, dict[str, Deed]]:
        """The deeds, by name, of each lane: those of one come one after the other."""
        slots: dict[str, Deed] = {
            "SIGTERM": self.roll,
            "SIGTERM again": self.roll,
            "SIGTERM twice": self.hurry,
            "kill -9": self.kill_slot,
        }
        store: dict[str, Deed] = {
            "kill -9 of recorders": self.kill_recorders,
            "recorders frozen": self.freeze_recorders,
        }
        if self.workers > 1:
            slots["kill -9 of a worker"] = self.kill_worker
        if self.database is not None:
            store |= {
                "PostgreSQL stopped": lambda dice: self.stop_database(dice, "fast"),
                "PostgreSQL crashed": lambda dice: self.stop_database(dice, "immediate"),
                "PostgreSQL frozen": self.freeze_database,
            }
        rest: dict[str, Deed] = {"upstream killed": self.kill_upstream, "spool full": self.fill_spool}
        return {"slots": slots, "store": store, "rest": rest}

    @contextmanager
    def doing(self, what: str, *slots: Slot) -> Iterator[None]:
        """For the block something is done to these slots, or to all."""
        began = time.monotonic()
        self.say(f"{what} {' '.join(slot.name for slot in slots)}".rstrip())
        try:
            yield
        except AssertionError as error:
            with self._lock:
                self.failures.append(f"{what}: {error}")
        finally:
            concerned = frozenset() if self.balanced else frozenset(slot.port for slot in slots)
            with self._lock:
                self.events.append(Event(what=what, began=began, ended=time.monotonic(), slots=concerned))

    def _slot(self, dice: random.Random) -> Slot:
        """One of them, while all serve."""
        wait_for(lambda: all(map(self.health.is_up, self.slots)), "all slots serve", GONE)
        return dice.choice(self.slots)

    def _restart(self, slot: Slot) -> None:
        slot.start()
        wait_for(lambda: self.health.is_up(slot), f"{slot.name} serves again", GONE)

    def look(self) -> None:
        """Note that the spool has no room, where nobody filled it. Call it every second."""
        room = os.statvfs(self.disk.inside)
        if self.disk.real and room.f_bavail * 8 < room.f_blocks and not self._filled.is_set():
            with self.doing(FULL):
                time.sleep(0)

    def roll(self, dice: random.Random) -> None:
        slot = self._slot(dice)
        with self.doing(ROLLED, slot):
            assert slot.running is not None
            slot.running.signal(SIGTERM)
            slot.end()
        self._restart(slot)

    def hurry(self, dice: random.Random) -> None:
        slot = self._slot(dice)
        with self.doing(HURRIED, slot):
            assert slot.running is not None
            slot.running.signal(SIGTERM)
            slot.running.wait_for_line("draining: ")
            time.sleep(dice.random() * LAME_DUCK)
            slot.running.signal(SIGTERM)
            slot.end()
            # Until it is seen that it has gone.
            wait_for(lambda: not self.health.is_up(slot), "nobody asks it any more")
        self._restart(slot)

    def kill_slot(self, dice: random.Random) -> None:
        slot = self._slot(dice)
        with self.doing(SLOT, slot):
            slot.kill()
            wait_for(lambda: not processes_of(slot.directory), f"all of {slot.name} has ended", GONE)
            wait_for(lambda: not self.health.is_up(slot), "nobody asks it any more")
        self._restart(slot)

    def kill_worker(self, dice: random.Random) -> None:
        slot = self._slot(dice)
        with self.doing(WORKER, slot):
            before = slot.workers()
            os.kill(dice.choice(before), SIGKILL)

            def replaced() -> bool:
                now = slot.workers()
                return len(now) == len(before) and set(now) != set(before)

            wait_for(replaced, f"{slot.name} has another worker", GONE)

    def kill_recorders(self, dice: random.Random) -> None:
        slot = dice.choice(self.slots)
        with self.doing("recorder killed", slot):
            for pid in slot.recorders():
                with suppress(ProcessLookupError):
                    os.kill(pid, SIGKILL)

    def freeze_recorders(self, dice: random.Random) -> None:
        slot = dice.choice(self.slots)
        with self.doing("recorder frozen", slot):
            pids = slot.recorders()
            try:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, SIGSTOP)
                time.sleep(dice.uniform(0.5, 4))
            finally:
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(pid, SIGCONT)

    def stop_database(self, dice: random.Random, mode: str) -> None:
        assert self.database is not None
        server = self.database.server
        with self.doing(f"PostgreSQL stopped ({mode})"):
            server.stop(mode)
            time.sleep(dice.uniform(0, 6))
            server.start()

    def freeze_database(self, dice: random.Random) -> None:
        assert self.database is not None
        server = self.database.server
        with self.doing("PostgreSQL frozen"):
            server.freeze()
            try:
                time.sleep(dice.uniform(1, 8))
            finally:
                server.thaw()

    def kill_upstream(self, dice: random.Random) -> None:
        with self.doing(UPSTREAM):
            self.upstream.kill()
            time.sleep(dice.uniform(0, 2))
            self.upstream.start()

    def fill_spool(self, dice: random.Random) -> None:
        """A disk without room; or, where there is none that we may fill, recorders that let the spool grow."""
        if not self.disk.real:
            with self.doing(FULL):
                for _ in self.slots:
                    self.freeze_recorders(dice)
            return
        ballast = self.disk.inside / "ballast"
        with self.doing(FULL):
            self._filled.set()
            fill(ballast)
            try:
                time.sleep(dice.uniform(1, 5))
            finally:
                ballast.unlink()
                self._filled.clear()


class Lanes:
    """
    Deeds, each lane's in an order of its own. A context manager: leaving it waits for the end of what has begun.

    :param pause: seconds between two deeds of a lane, at most.
    """

    def __init__(self, world: World, seed: int, *, pause: float) -> None:
        self._world = world
        self._over = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run,
                # What records is the last to get a share of the machine; it is left some time to do so.
                args=(deeds, random.Random(f"{seed} {name}"), pause * 3 if name == "store" else pause),
                daemon=True,
            )
            for name, deeds in world.lanes().items()
        ]

    def __enter__(self) -> Lanes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, deeds: Mapping[str, Deed], dice: random.Random, pause: float) -> None:
        while True:
            deck = list(deeds)
            dice.shuffle(deck)
            for name in deck:
                if self._over.wait(dice.uniform(0.3, 1) * pause):
                    return
                try:
                    deeds[name](dice)
                except Exception as error:  # noqa: BLE001 - it is told
                    self._world.failures.append(f"{name}: {error!r}")
                    return
