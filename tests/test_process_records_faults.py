"""
Records of a real proxy whose processes are killed, whose store is down, frozen, full or damaged, whose disk is full.

Whatever happens, no request fails or waits, and what can be recorded later is.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.postgresql import Database
from tests.processes import WAIT_LIMIT, Proxy, StandIn, proxy, wait_for
from tests.recorded import (
    Load,
    Reader,
    Records,
    describe,
    ended,
    frozen,
    is_dead,
    recorder_of,
    recording,
    segments,
    slots,
    wait_problem,
    wait_well,
)
from tests.sockets import Answer, Client, call, id_of, play, prompt
from twisted_proxy.record.exchange import INTERRUPTED, Role
from twisted_proxy.record.store import Query

SIGKILL, SIGTERM = signal.SIGKILL, signal.SIGTERM
MIB: Final = 1024 * 1024


def ask(running: Proxy, body: bytes | None = None, scenario: str = "auto") -> Answer:
    """A ``POST /v1/messages`` that is answered."""
    answer = call(running.port, "POST", "/v1/messages", [play(scenario)], body or prompt(stream=True))
    assert answer.status == 200
    return answer


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """Where a proxy of the test's directory keeps what is not stored."""
    return tmp_path / "requests.db-spool"


@pytest.fixture
def records(tmp_path: Path, reader: Reader) -> Records:
    """What the proxies of the test's directory have recorded in SQLite."""
    return Records(reader, tmp_path / "requests.db")


@contextmanager
def limited(pid: int, largest_file: int) -> Iterator[None]:
    """
    For the block a process can make no file larger than so many bytes: for it the disk is full, as far as any
    unprivileged test can fill one (``EFBIG`` instead of ``ENOSPC``).
    """
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


# -- killed


class TestKilled:
    """``kill -9``."""

    def test_the_proxy_in_the_middle_of_a_stream(
        self, tmp_path: Path, upstream: StandIn, records: Records, spool: Path
    ) -> None:
        """What passed until a second before is stored; what was open is interrupted; the next start repeats nothing."""
        with recording(tmp_path, upstream) as running, Client(running.port) as client:
            recorder = recorder_of(running)
            with ended(recorder):
                answers = [ask(running) for _ in range(3)]
                records.wait_complete(map(id_of, answers[:1]))
                client.ask("POST", "/v1/messages", [play("auto?count=20&gate=never@6")], prompt(stream=True))
                head = client.read_until(b"\r\n\r\n").decode().lower()
                # Without the sizes of the chunks.
                events = [re.sub(rb"(\r\n)?[0-9a-f]+\r\n", b"", client.read_until(b"\n\n")) for _ in range(6)]
                opened = head.partition("x-proxy-request-id: ")[2].split()[0]
                # This is the second that may be lost.
                time.sleep(1)
                running.kill()
                wait_for(lambda: is_dead(recorder), "the recorder stores the rest and ends", 30)
        expected = {**{id_of(each): "complete" for each in answers}, opened: INTERRUPTED}
        assert records.verdicts() == expected
        kept = records.kept(opened)[opened]
        assert kept.data(Role.ANSWER) == b"".join(events)
        assert kept.data(Role.MESSAGE)
        assert kept.exchange.cost_is_partial
        assert slots(spool) == []
        with recording(tmp_path, upstream) as running:
            expected[id_of(ask(running))] = "complete"
            assert running.stop() == -SIGTERM
        assert records.verdicts() == expected
        assert slots(spool) == []

    def test_the_recorder(self, tmp_path: Path, upstream: StandIn, records: Records, spool: Path) -> None:
        """Again and again, under requests: it is started again, and everything is there, once."""
        with recording(tmp_path, upstream) as running:
            with Load(running.port) as load:
                for _ in range(2):
                    recorder = recorder_of(running)
                    load.wait_answered(20)
                    os.kill(recorder, SIGKILL)
                    wait_for(lambda pid=recorder: is_dead(pid), "it is dead")  # type: ignore[misc]
                load.wait_answered(10)
            load.assert_prompt()
            records.wait_complete(load.ids)
            assert running.log.count("the recorder was killed by signal 9") == 2
            assert running.stop() == -SIGTERM
        assert records.verdicts() == dict.fromkeys(load.ids, "complete")
        assert slots(spool) == []

    def test_both(self, tmp_path: Path, upstream: StandIn, records: Records, spool: Path) -> None:
        """Under requests, with a spool of which nothing is stored: the next start stores it."""
        with recording(tmp_path, upstream) as running:
            recorder = recorder_of(running)
            first = id_of(ask(running))
            records.wait_complete([first])
            with ended(recorder), frozen(recorder), Client(running.port) as client:
                client.ask("POST", "/v1/messages", [play("auto?header_gate=never")], prompt())
                with Load(running.port) as load:
                    load.wait_answered(30)
                    time.sleep(1.2)
                    os.kill(recorder, SIGKILL)
                    killed = time.monotonic()
                    running.kill()
        assert len(slots(spool)) == 1
        with recording(tmp_path, upstream) as running:
            records.wait_complete(each.id for each in load.answered[:30])
            assert running.stop() == -SIGTERM
        verdicts = records.verdicts()
        old = {each.id for each in load.answered if each.began + each.seconds < killed - 1}
        assert len(old) >= 30
        assert {verdicts.get(each) for each in old} == {"complete"}
        assert set(verdicts.values()) == {"complete", INTERRUPTED}
        assert slots(spool) == []
        assert [path.name for path in spool.iterdir()] == ["credential-key"]


# -- the database


class TestServer:
    """A real PostgreSQL that is not there, comes back, hangs, or refuses."""

    def test_down_at_the_start(self, tmp_path: Path, upstream: StandIn, reader: Reader, database: Database) -> None:
        """The proxy serves, /livez tells what is wrong, and when the server comes everything is stored."""
        database.server.stop()
        with recording(tmp_path, upstream, DATABASE_URL=database.url) as running:
            problem = wait_problem(running, "PostgreSQL")
            assert database.password not in problem
            with Load(running.port) as load:
                load.wait_answered(20)
                wait_for(lambda: describe(running)["behind_bytes"], "it is told how much waits")
            load.assert_prompt()
            assert running.get("/health")[0] == 200
            database.server.start()
            records = Records(reader, database.url)
            records.wait_complete(load.ids)
            wait_well(running)
            assert records.verdicts() == dict.fromkeys(load.ids, "complete")
            assert running.stop() == -SIGTERM
        assert slots(tmp_path / "claude-proxy-spool") == []

    def test_restarted_and_frozen(self, tmp_path: Path, upstream: StandIn, reader: Reader, database: Database) -> None:
        """Under requests: a crash of the server, then a server that says nothing for seconds."""
        with recording(tmp_path, upstream, DATABASE_URL=database.url) as running:
            records = Records(reader, database.url)
            with Load(running.port) as before:
                before.wait_answered(10)
            records.wait_complete(before.ids)
            with Load(running.port) as load:
                database.server.stop("immediate")
                wait_problem(running, "PostgreSQL")
                load.wait_answered(20)
                database.server.start()
                records.wait_complete(load.ids)
                database.server.freeze()
                wait_problem(running, "has not answered")
                load.wait_answered(10)
                assert describe(running)["behind_bytes"] > 0
                database.server.thaw()
                load.wait_answered(10)
            load.assert_prompt(before.answered)
            everything = load.ids | before.ids
            records.wait_complete(everything)
            wait_well(running)
            assert running.stop() == -SIGTERM
        assert records.verdicts() == dict.fromkeys(everything, "complete")

    def test_refusing(self, tmp_path: Path, upstream: StandIn, reader: Reader, database: Database) -> None:
        """No right to log in, then no connection left: said in words, without the password, and waited out."""
        user = database.user
        leave = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
        database.query(f"ALTER ROLE {user} NOLOGIN")
        with recording(tmp_path, upstream, DATABASE_URL=database.url) as running:
            assert user in wait_problem(running, "not permitted to log in")
            with Load(running.port) as load:
                load.wait_answered(10)
                database.query(f"ALTER ROLE {user} LOGIN")
                wait_well(running)
                database.query(f"ALTER ROLE {user} CONNECTION LIMIT 0")
                database.query(leave, [user])
                wait_problem(running, "too many connections")
                load.wait_answered(10)
            database.query(f"ALTER ROLE {user} CONNECTION LIMIT -1")
            load.assert_prompt()
            wait_well(running)
            assert running.stop() == -SIGTERM
        assert Records(reader, database.url).verdicts() == dict.fromkeys(load.ids, "complete")
        assert database.password not in running.log

    def test_several_proxies_share_one(
        self, tmp_path: Path, upstream: StandIn, reader: Reader, database: Database
    ) -> None:
        """Each records what it served; whoever is stopped leaves the others' in peace."""
        homes = [tmp_path / name for name in ("one", "two")]
        for home in homes:
            home.mkdir()
        settings = {"DATABASE_URL": database.url, "CREDENTIAL_KEY": "the same everywhere"}
        one, two = (recording(home, upstream, **settings) for home in homes)
        with one, two, Client(two.port) as client:
            client.ask("POST", "/v1/messages", [play("auto?header_gate=shared")], prompt())
            with Load(one.port) as first, Load(two.port) as second:
                first.wait_answered(15)
                second.wait_answered(15)
            assert one.stop() == -SIGTERM
            records = Records(reader, database.url)
            records.wait_complete(first.ids | second.ids)
            (open_,) = records.exchanges(Query(in_flight=True))
            upstream.release("shared")
            assert id_of(client.answer()) == open_
            assert two.stop() == -SIGTERM
        assert records.verdicts() == dict.fromkeys(first.ids | second.ids | {open_}, "complete")
        assert len({each.instance for each in records.exchanges().values()}) == 2


# -- the disk


class TestFullDisk:
    """No room for the database, or for the spool."""

    def test_for_the_database(self, tmp_path: Path, upstream: StandIn, records: Records) -> None:
        """It waits in the spool, and is stored when there is room."""
        with recording(tmp_path, upstream) as running:
            recorder = recorder_of(running)
            records.wait_over(id_of(ask(running)))
            with Load(running.port) as load:
                with limited(recorder, 4096):
                    problem = wait_problem(running, "requests.db")
                    assert "disk" in problem
                    load.wait_answered(20)
                load.wait_answered(5)
            load.assert_prompt()
            wait_well(running)
            assert running.stop() == -SIGTERM
        assert set(records.verdicts().values()) == {"complete"}
        assert load.ids < records.verdicts().keys()
        assert {each.lost for each in records.exchanges().values()} == {None}

    def test_for_the_spool(self, tmp_path: Path, upstream: StandIn, records: Records) -> None:
        """It waits in memory, as long as that has room, and nothing is lost."""
        with recording(tmp_path, upstream) as running:
            records.wait_over(id_of(ask(running)))
            with Load(running.port) as load:
                with limited(running.pid, 1):
                    assert "SPOOL_DIR" in wait_problem(running, "cannot write")
                    load.wait_answered(20)
                load.wait_answered(5)
            load.assert_prompt()
            wait_well(running)
            told = describe(running)
            assert (told["lost_bodies"], told["lost_exchanges"]) == (0, 0)
            assert running.log.count("cannot write to") == 1
            assert "journal: written again" in running.log
            assert running.stop() == -SIGTERM
        assert load.ids < records.verdicts().keys()
        assert {each.lost for each in records.exchanges().values()} == {None}

    def test_the_bound_of_the_spool(self, tmp_path: Path, upstream: StandIn, records: Records, spool: Path) -> None:
        """What does not fit is counted, logged, and told in the record; every request is in the store all the same."""
        with recording(tmp_path, upstream, SPOOL_MAX_BYTES="3MiB") as running:
            records.wait_over(id_of(ask(running)))
            with frozen(recorder_of(running)):
                answers = [ask(running, prompt("x" * MIB, stream=True)) for _ in range(6)]
                told = wait_for(lambda: (found := describe(running))["lost_bodies"] and found, "/livez counts it")
                assert told["status"] == "failing"
                assert "SPOOL_MAX_BYTES" in told["problem"]
                assert sum(path.stat().st_size for path in segments(spool)) <= 3 * MIB
            kept = [records.wait_over(id_of(each)) for each in answers]
            wait_for(lambda: describe(running)["spool_bytes"] < 3 * MIB // 2, "it is seen that there is room again")
            after = records.wait_over(id_of(ask(running, prompt("x" * MIB, stream=True))))
            assert running.stop() == -SIGTERM
        lost = [each for each in kept if each.exchange.lost is not None]
        assert len(lost) == told["lost_bodies"]
        assert 3 <= len(lost) < len(kept)
        assert all("SPOOL_MAX_BYTES" in (each.exchange.lost or "") for each in lost)
        assert {each.exchange.verdict for each in kept} == {"complete"}
        assert {each.exchange.status for each in kept} == {200}
        assert after.exchange.lost is None
        assert "not whole" in running.log

    def test_a_file_system_that_is_full(self, tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
        """``ENOSPC`` for both, on a small file system that is mounted for this process alone."""
        with Proxy(tmp_path, wrapper=on_small_disk(tmp_path), **small_disk(tmp_path, upstream)) as running:
            inside = Path(f"/proc/{running.pid}/root") / (tmp_path / "small").relative_to("/")
            wait_for(lambda: (inside / "requests.db-wal").exists(), "the database is there", 30)
            ballast = inside / "ballast"
            with Load(running.port) as load:
                load.wait_answered(10)
                fill(ballast)
                wait_problem(running, "")
                load.wait_answered(20)
                ballast.unlink()
                load.wait_answered(5)
            load.assert_prompt()
            wait_for(lambda: describe(running)["recorded"] >= len(load.ids), "all are recorded", 30)
            told = describe(running)
            assert (told["status"], told["lost_bodies"], told["lost_exchanges"]) == ("ok", 0, 0)
            with frozen(recorder_of(running)):
                copy = tmp_path / "copy"
                copy.mkdir()
                for path in inside.glob("requests.db*"):
                    if path.is_file():
                        shutil.copy(path, copy)
            assert running.stop() == -SIGTERM
        assert Records(reader, copy / "requests.db").verdicts() == dict.fromkeys(load.ids, "complete")


SMALL: Final = 48 * MIB


def on_small_disk(directory: Path) -> tuple[str, ...]:
    """A wrapper under which ``small`` in a directory is a file system of its own. Skips where that is not allowed."""
    place = directory / "small"
    place.mkdir()
    script = f'mount -t tmpfs -o size={SMALL} small "{place}" && exec "$@"'
    wrapper = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this system does not let us mount a file system in a namespace of our own (unshare)")
    return wrapper


def small_disk(directory: Path, upstream: StandIn) -> dict[str, str]:
    """The settings of a proxy all of whose records are there."""
    database = str(directory / "small" / "requests.db")
    return {"ANTHROPIC_FORWARD_URL": upstream.url, "RECORD": "full", "DB_PATH": database}


def fill(path: Path) -> None:
    """Write to a file until there is no room."""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


# -- the file


class TestFile:
    """A SQLite file that is none, is damaged, cannot be had, or goes."""

    def test_something_else_is_in_its_place(self, tmp_path: Path, upstream: StandIn, records: Records) -> None:
        """It is left as it is, and said so; moved away, a new one takes everything."""
        path = tmp_path / "requests.db"
        garbage = b"This is no database. " * 1000
        path.write_bytes(garbage)
        with recording(tmp_path, upstream) as running:
            wait_problem(running, "requests.db")
            with Load(running.port) as load:
                load.wait_answered(10)
            load.assert_prompt()
            assert path.read_bytes() == garbage
            path.rename(tmp_path / "garbage")
            records.wait_complete(load.ids)
            wait_well(running)
            assert running.stop() == -SIGTERM
        assert records.verdicts() == dict.fromkeys(load.ids, "complete")

    @pytest.mark.parametrize("damage", ["overwritten", "truncated"])
    def test_damaged_while_it_is_written_to(
        self, tmp_path: Path, upstream: StandIn, records: Records, damage: str
    ) -> None:
        """What comes waits until the file is moved away; nothing of that is lost."""
        path = tmp_path / "requests.db"
        with recording(tmp_path, upstream) as running:
            records.wait_complete([id_of(ask(running)) for _ in range(5)])
            with frozen(recorder_of(running)):
                # In the log beside it there is all of it as yet: that has to go, too.
                for each in (path, path.with_name("requests.db-wal")):
                    size = each.stat().st_size
                    with each.open("r+b") as file:
                        if damage == "truncated":
                            file.truncate(size // 3)
                        else:
                            file.write(b"\xa5" * size)
                answers = [ask(running) for _ in range(5)]
            assert "move it away" in wait_problem(running, "requests.db")
            for each in tmp_path.glob("requests.db*"):
                if each.is_file():
                    each.rename(tmp_path / f"damaged-{each.name}")
            answers.append(ask(running))
            records.wait_complete(map(id_of, answers))
            wait_well(running)
            assert running.stop() == -SIGTERM
        assert records.verdicts() == {id_of(each): "complete" for each in answers}
        assert "Traceback" not in running.log

    def test_a_directory_that_is_not_there(self, tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
        """Nor the spool's, as something else is in its place: it waits in memory, until both can be had."""
        place = tmp_path / "records"
        spool = tmp_path / "spool"
        spool.write_bytes(b"in the way")
        path = place / "requests.db"
        with recording(tmp_path, upstream, DB_PATH=str(path), SPOOL_DIR=str(spool)) as running:
            wait_problem(running, "SPOOL_DIR")
            with Load(running.port) as load:
                load.wait_answered(10)
                spool.unlink()
                assert "directory" in wait_problem(running, str(path))
                load.wait_answered(10)
            load.assert_prompt()
            place.mkdir()
            Records(reader, path).wait_complete(load.ids)
            wait_well(running)
            assert running.stop() == -SIGTERM
        assert Records(reader, path).verdicts() == dict.fromkeys(load.ids, "complete")

    def test_a_directory_that_may_not_be_written_to(self, tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
        """Nothing can be made there; then it may, and everything is stored."""
        place = tmp_path / "records"
        place.mkdir(mode=0o500)
        path = place / "requests.db"
        # Root may write everywhere, unless it gives that up.
        wrapper = ("setpriv", "--bounding-set=-dac_override") if os.geteuid() == 0 else ()
        settings = {"ANTHROPIC_FORWARD_URL": upstream.url, "RECORD": "full", "DB_PATH": str(path)}
        with Proxy(tmp_path, wrapper=wrapper, **settings) as running:
            wait_problem(running, "requests.db")
            with Load(running.port) as load:
                load.wait_answered(10)
            load.assert_prompt()
            place.chmod(0o700)
            Records(reader, path).wait_complete(load.ids)
            wait_well(running)
            assert running.stop() == -SIGTERM
        assert Records(reader, path).verdicts() == dict.fromkeys(load.ids, "complete")

    def test_moved_away_while_it_is_written_to(
        self, tmp_path: Path, upstream: StandIn, reader: Reader, records: Records
    ) -> None:
        """A new one is made; each exchange is in one of the two."""
        with recording(tmp_path, upstream) as running:
            with Load(running.port) as load:
                load.wait_answered(10)
                wait_for(lambda: describe(running)["recorded"] >= 5, "some are stored", 30)
                (tmp_path / "requests.db").rename(tmp_path / "moved.db")
                load.wait_answered(10)
                wait_for(lambda: (tmp_path / "requests.db").exists(), "there is a new one", 30)
                load.wait_answered(10)
            load.assert_prompt()
            wait_well(running)
            assert running.stop() == -SIGTERM
        moved = Records(reader, tmp_path / "moved.db").verdicts()
        assert moved
        assert records.verdicts()
        assert load.ids <= moved.keys() | records.verdicts().keys()


# -- two proxies, and the end of one


class TestHandOver:
    """Two proxies on one file, one of which is told to go."""

    def test_both_record_into_it(self, tmp_path: Path, upstream: StandIn, records: Records, spool: Path) -> None:
        """Whatever either answered is there when it has gone, and nothing of the other is touched."""
        with recording(tmp_path, upstream) as old, Client(old.port) as client:
            client.ask("POST", "/v1/messages", [play("auto?header_gate=hand-over")], prompt())
            with Load(old.port) as first:
                first.wait_answered(10)
                with recording(tmp_path, upstream) as new, Load(new.port) as second:
                    first.wait_answered(15)
                    second.wait_answered(15)
                    old.signal(SIGTERM)
                    wait_for(lambda: "draining" in old.log, "it drains")
                    second.wait_answered(10)
                    upstream.release("hand-over")
                    last = id_of(client.answer())
                    assert old.wait(40) == -SIGTERM
                    at_its_end = records.verdicts()
                    second.wait_answered(10)
                    second.stop()
                    assert new.stop() == -SIGTERM
        assert {last: "complete", **dict.fromkeys(first.ids, "complete")}.items() <= at_its_end.items()
        assert second.failed == []
        assert records.verdicts() == dict.fromkeys(first.ids | second.ids | {last}, "complete")
        assert slots(spool) == []
        for log in (old.log, new.log):
            assert "nothing is recorded" not in log
            assert "Traceback" not in log


class TestStopping:
    """SIGTERM."""

    def test_under_load_everything_that_was_answered_is_stored(
        self, tmp_path: Path, upstream: StandIn, records: Records, spool: Path
    ) -> None:
        """Streams that end during the drain included; when the process has exited."""
        with recording(tmp_path, upstream) as running:
            recorder = recorder_of(running)
            with ThreadPoolExecutor(8) as pool, Load(running.port, threads=3, pause=0) as load:
                load.wait_answered(50)
                streams = [
                    pool.submit(ask, running, prompt(f"stream {number}", stream=True), "auto?count=10&interval=0.1")
                    for number in range(8)
                ]
                wait_for(lambda: running.in_flight() >= 8, "they are in flight")
                running.signal(SIGTERM)
                streamed = {id_of(each.result()) for each in streams}
                load.stop()
            assert running.wait(40) == -SIGTERM
            assert is_dead(recorder)
        # Those that came when nobody listened any more.
        turned_away = ("ConnectionRefused", "ConnectionReset", "BrokenPipe", "status=0")
        assert [each for each in load.failed if not any(words in each for words in turned_away)] == []
        assert records.verdicts() == dict.fromkeys(load.ids | streamed, "complete")
        assert slots(spool) == []
        kept = records.kept(*streamed)
        assert all((each.data(Role.ANSWER) or b"").endswith(b'"message_stop"}\n\n') for each in kept.values())

    def test_without_a_store_it_is_not_put_off(
        self, tmp_path: Path, upstream: StandIn, records: Records, spool: Path
    ) -> None:
        """Exit within seconds; the log says where the records are; the next start stores them."""
        blocking = tmp_path / "requests.db"
        blocking.mkdir()
        with recording(tmp_path, upstream) as running:
            wait_problem(running, "requests.db")
            answers = [ask(running) for _ in range(5)]
            began = time.monotonic()
            assert running.stop(20) == -SIGTERM
            assert time.monotonic() - began < WAIT_LIMIT
            assert "the next start stores them" in running.log
        assert len(slots(spool)) == 1
        blocking.rmdir()
        with recording(tmp_path, upstream) as running:
            records.wait_complete(map(id_of, answers))
            assert running.stop() == -SIGTERM
        assert records.verdicts() == {id_of(each): "complete" for each in answers}
        assert slots(spool) == []

    def test_in_a_hurry_it_is_still_stored(self, tmp_path: Path, upstream: StandIn, records: Records) -> None:
        """The second signal cuts what is in flight, and that is recorded, too."""
        with recording(tmp_path, upstream) as running, Client(running.port) as client:
            client.ask("POST", "/v1/messages", [play("auto?gate=never@3")], prompt(stream=True))
            start = client.read_until(b"content_block_start")
            running.signal(SIGTERM)
            wait_for(lambda: "draining: 1 in flight" in running.log, "it drains")
            running.signal(SIGTERM)
            answer = client.answer(already=start)
            assert running.wait(20) == -SIGTERM
        (kept,) = records.kept(*records.exchanges()).values()
        assert kept.exchange.verdict == "drained"
        assert kept.data(Role.ANSWER) == answer.body


def test_a_proxy_that_was_recording_into_another_place_is_not_missed(
    tmp_path: Path, upstream: StandIn, reader: Reader
) -> None:
    """What a spool holds goes to the database that is configured when it is read."""
    (tmp_path / "first.db").mkdir()
    shared = {"SPOOL_DIR": str(tmp_path / "spool")}
    with proxy(tmp_path, upstream, RECORD="full", DB_PATH=str(tmp_path / "first.db"), **shared) as running:
        wait_problem(running, "first.db")
        answer = ask(running)
        assert running.stop(20) == -SIGTERM
    with proxy(tmp_path, upstream, RECORD="full", DB_PATH=str(tmp_path / "second.db"), **shared) as running:
        Records(reader, tmp_path / "second.db").wait_over(id_of(answer))
