"""What several processes of one proxy say together, and what they know of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from twisted_proxy.config import Config, DashboardConfig, ProviderConfig, RecordConfig
from twisted_proxy.metrics import families
from twisted_proxy.metrics.merging import Snapshot, lasting, merge, of_family, snapshot
from twisted_proxy.metrics.metrics import expose
from twisted_proxy.siblings import JOINED, LEFT, Answers
from twisted_proxy.web.api.calls import Refusal
from twisted_proxy.web.api.logins import MOST_ATTEMPTS, SESSION_IDLE, TOLD_EVERY, Attempts, Sessions
from twisted_proxy.web.family import together
from twisted_proxy.workers import control
from twisted_proxy.workers.counts import Retired, of_workers
from twisted_proxy.workers.member import Member
from twisted_proxy.workers.supervisor import share_of


class Group:
    """Siblings without processes: what one tells, the others hear at once."""

    def __init__(self, count: int) -> None:
        self.members = [Sibling(self, number) for number in range(count)]

    def join(self) -> Sibling:
        new = Sibling(self, len(self.members))
        others = list(self.members)
        self.members.append(new)
        for other in others:
            other.hears(JOINED, new.place, None)
        return new


class Sibling:
    secret = "secret"

    def __init__(self, group: Group, place: int) -> None:
        self._group = group
        self._answers = Answers()
        self._hearers: dict[str, list[Callable[[int, Any], None]]] = {}
        self.place = place
        self.told: list[str] = []

    @property
    def size(self) -> int:
        return len(self._group.members)

    def ask(self, question: str, argument: Any = None) -> Deferred[list[Any]]:
        found: list[Any] = []
        for each in self._group.members:
            if each is self or question in each._answers._by:
                found += each._answers.find(question, argument)
        return succeed(found)

    def answer(self, question: str, by: Callable[[Any], Any]) -> None:
        self._answers.add(question, by)

    def tell(self, topic: str, message: Any, to: int | None = None) -> None:
        self.told.append(topic)
        for each in self._group.members:
            if each is not self and to in (None, each.place):
                each.hears(topic, self.place, message)

    def hear(self, topic: str, by: Callable[[int, Any], None]) -> None:
        self._hearers.setdefault(topic, []).append(by)

    def hears(self, topic: str, sender: int, message: Any) -> None:
        for hearer in self._hearers.get(topic, ()):
            hearer(sender, message)


class TestMetrics:
    """The metrics of several processes as those of one."""

    def values(self, snapshots: list[Snapshot]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        _, page = expose(snapshots, "text/plain")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(page.decode())
            for sample in family.samples
        }

    @given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 100), min_size=1), min_size=1, max_size=5))
    def test_counts_are_added(self, counted: list[dict[str, int]]) -> None:
        """Each label value has the sum of what all of them have counted under it."""
        said = [of_family(families.UPSTREAM_RETRIES, [((name,), n) for name, n in each.items()]) for each in counted]
        sums = {name: sum(each.get(name, 0) for each in counted) for each in counted for name in each}
        assert self.values(said) == {
            (families.UPSTREAM_RETRIES.name, frozenset({("provider", name)})): total for name, total in sums.items()
        }

    @pytest.mark.parametrize(
        ("family", "values", "merged"),
        [
            (families.IN_FLIGHT, (2, 3), 5),
            (families.OLDEST, (2.5, 70), 70),
            (families.DRAINING, (0, 1), 1),
            (families.RECORDING_UP, (1, 0), 0),
        ],
    )
    def test_how_things_are(self, family: families.Family, values: tuple[float, ...], merged: float) -> None:
        """An age is that of the oldest; recording is up where it is up everywhere."""
        (found,) = self.values([of_family(family, [((), value)]) for value in values]).values()
        assert found == merged

    def test_processes_keep_their_own(self) -> None:
        """What Prometheus says of a process says nothing when it is added: each has its label."""
        said = []
        for worker in (0, 1):
            metric = Metric("process_open_fds", "Descriptors.", "gauge")
            metric.add_sample("process_open_fds", {}, 10 + worker)
            said.append(snapshot([metric], worker))
        assert self.values(said) == {
            ("process_open_fds", frozenset({("worker", "0")})): 10,
            ("process_open_fds", frozenset({("worker", "1")})): 11,
        }

    def test_what_the_dead_have_counted_stays(self) -> None:
        """Counters do not go back when a worker dies; gauges go with it."""
        retired = Retired()
        for _ in range(3):
            dead = [
                of_family(families.REQUEST_BYTES, [(("a", "m", "messages"), 7)]),
                of_family(families.SPOOL, [((), 9)]),
            ]
            retired.add(dead)
            retired.add([])
        assert [metric.name for metric in merge(retired.answer())] == ["claude_proxy_request_body_bytes"]
        (found,) = self.values(retired.answer()).values()
        assert found == 21
        assert self.values([lasting([])]) == {}

    def test_workers(self) -> None:
        """How many there are is said once, by the supervisor."""
        found = self.values(of_workers(1, 2, 3))
        assert {name: value for (name, _), value in found.items()} == {
            "claude_proxy_workers": 2,
            "claude_proxy_worker_restarts_total": 3,
        }


OFF = {"status": "off"}
WELL = {"status": "ok", "problem": None, "recorded": 1, "lost_bodies": 0}


def state(**more: Any) -> dict[str, Any]:
    none = {"in_flight": 0, "oldest_seconds": None, "draining": False, "drain_seconds_left": None, "recording": OFF}
    return none | more


class TestStates:
    """The states of several processes as that of one."""

    def test_sums(self) -> None:
        """In flight is what is so anywhere, the oldest the oldest of all."""
        states = [state(in_flight=2, oldest_seconds=1.5), state(), state(in_flight=1, oldest_seconds=9.0)]
        assert together(states) == state(in_flight=3, oldest_seconds=9.0)

    def test_draining(self) -> None:
        """It takes as long as the one that takes longest."""
        left = together([state(draining=True, drain_seconds_left=3.0), state(draining=True, drain_seconds_left=7.0)])
        assert (left["draining"], left["drain_seconds_left"]) == (True, 7.0)

    def test_recording(self) -> None:
        """It fails where it fails for one of them."""
        trouble = {"status": "failing", "problem": "no space", "recorded": 4, "lost_bodies": 2}
        found = together([state(recording=WELL), state(recording=trouble)])["recording"]
        assert found == {"status": "failing", "problem": "no space", "recorded": 5, "lost_bodies": 2}
        assert together([state(recording=WELL)] * 2)["recording"]["status"] == "ok"


class TestSessions:
    """Logins are known to all workers."""

    async def begin(self, sessions: Sessions) -> tuple[bytes, bytes]:
        value, key, _ = await sessions.begin()
        return value.encode(), key

    def test_begun_used_and_ended(self) -> None:
        """A session is known elsewhere before its cookie is given out, and ends everywhere."""
        clock, group = Clock(), Group(2)
        here, there = (Sessions(clock.seconds, each) for each in group.members)
        cookie, key = done(self.begin(here))
        found = there.find(cookie)
        assert found is not None
        ended: list[str] = []
        there.when_ended(key, lambda: ended.append("stream"))
        here.end(key)
        assert ended == ["stream"]
        assert there.find(cookie) is None

    def test_used_here_is_used_there(self) -> None:
        """It does not end for idleness where it is not used, as long as it is used somewhere."""
        clock, group = Clock(), Group(2)
        here, there = (Sessions(clock.seconds, each) for each in group.members)
        cookie, _ = done(self.begin(here))
        for _ in range(int(SESSION_IDLE / TOLD_EVERY) + 5):
            clock.advance(TOLD_EVERY + 1)
            assert here.find(cookie) is not None
        assert there.find(cookie) is not None
        clock.advance(SESSION_IDLE + 1)
        assert there.find(cookie) is None

    def test_a_new_worker_learns_them(self) -> None:
        """One that replaces a dead one knows who has logged in."""
        clock, group = Clock(), Group(1)
        here = Sessions(clock.seconds, group.members[0])
        cookie, _ = done(self.begin(here))
        assert Sessions(clock.seconds, group.join()).find(cookie) is not None

    def test_attempts(self) -> None:
        """Guesses count together, whichever worker they meet."""
        clock, group = Clock(), Group(2)
        here, there = (Attempts(clock.seconds, each) for each in group.members)
        for number in range(MOST_ATTEMPTS):
            (here, there)[number % 2].begin("10.0.0.1")
        for each in (here, there):
            with pytest.raises(Refusal, match="Too many"):
                each.check("10.0.0.1")
        here.succeed("10.0.0.1")
        there.check("10.0.0.1")


def done(coroutine: Any) -> Any:
    """What a coroutine returns that waits for nothing."""
    found: list[Any] = []
    Deferred.fromCoroutine(coroutine).addCallback(found.append)
    return found[0]


class Wire:
    """The pipes of a member, at their other end."""

    def __init__(self) -> None:
        self.started: list[control.Start] = []
        self.ended = 0
        self.sent = bytearray()
        self.member = Member(
            started=self.started.append, drain=lambda lame_duck: None, hurry=lambda: None, ended=self._end
        )
        self.member.makeConnection(self)

    def _end(self) -> None:
        self.ended += 1

    def write(self, data: bytes) -> None:
        self.sent += data

    def says(self) -> list[control.FromWorker]:
        found = []
        while self.sent:
            size = int.from_bytes(self.sent[:4], "big")
            found.append(control.from_worker(bytes(self.sent[4 : 4 + size])))
            del self.sent[: 4 + size]
        return found

    def give(self, message: control.ToWorker) -> None:
        self.member.dataReceived(control.framed(message))


class TestMember:
    """A worker's end of the pipes to the supervisor."""

    def test_asks_and_answers(self) -> None:
        """Questions go up and answers come back, each to its question; others' questions are answered."""
        wire = Wire()
        wire.member.answer("double", lambda number: number * 2)
        first, second = wire.member.ask("double", 1), wire.member.ask("double", 2)
        asked = wire.says()
        assert asked == [control.Ask(1, "double", 1), control.Ask(2, "double", 2)]
        wire.give(control.Question(7, "double", 4))
        assert wire.says() == [control.Answer(7, [8])]
        wire.give(control.Answered(2, [4, 4]))
        wire.give(control.Answered(1, [2]))
        assert (first.result, second.result) == ([2], [4, 4])

    def test_nobody_in_time(self) -> None:
        """Where nobody answered in time, not even this worker, it answers for itself now."""
        wire = Wire()
        wire.member.answer("who", lambda _: "me")
        asked = wire.member.ask("who")
        wire.give(control.Answered(1, []))
        assert asked.result == ["me"]

    def test_unknown_questions(self, logs: list[dict[str, Any]]) -> None:
        """What nobody can answer, or fails, is no answer, and the asker goes on."""
        wire = Wire()
        wire.member.answer("fails", lambda _: 1 / 0)
        wire.give(control.Question(1, "fails", None))
        assert wire.says() == [control.Answer(1, [])]
        assert any("log_failure" in event for event in logs)

    def test_hears(self, logs: list[dict[str, Any]]) -> None:
        """What is told reaches all who listen, though one of them fails."""
        wire = Wire()
        heard: list[tuple[int, Any]] = []
        wire.member.hear(LEFT, lambda member, message: [][0])
        wire.member.hear(LEFT, lambda member, message: heard.append((member, message)))
        wire.give(control.Told(3, LEFT, None))
        wire.give(control.Told(3, "of no interest", None))
        assert heard == [(3, None)]

    def test_without_a_supervisor(self) -> None:
        """When it is gone, what was asked is answered by this worker alone, and so is what is asked then."""
        wire = Wire()
        wire.member.answer("who", lambda _: "me")
        waiting = wire.member.ask("who")
        wire.member.connectionLost()
        assert wire.ended == 1
        assert waiting.result == ["me"]
        assert wire.member.ask("who").result == ["me"]
        wire.member.tell("anything", None)

    def test_pieces(self) -> None:
        """Messages come in whatever pieces the pipe makes of them; what is none is logged without what it holds."""
        wire = Wire()
        start = control.Start(config=control.dump_config(Config()), member=4, place=1, size=2, secret="s", sockets=())
        data = control.framed(start)
        for place in range(len(data)):
            wire.member.dataReceived(data[place : place + 1])
        assert wire.started == [start]
        assert (wire.member.place, wire.member.size, wire.member.secret) == (1, 2, "s")
        assert "s" not in repr(start).split()
        wire.member.stringReceived(b"\xc1 nonsense")


def test_share() -> None:
    """Each worker is allowed its part of what all are; 0 stays "as many as there can be"."""
    config = Config(workers=3, max_connections=10, max_bodies_bytes=300, record=RecordConfig(spool_max_bytes=301))
    share = share_of(config)
    assert (share.workers, share.max_connections, share.max_bodies_bytes) == (1, 4, 100)
    assert share.record.spool_max_bytes == 101
    assert share_of(Config(workers=2)).max_connections == 0


def test_configuration_crosses() -> None:
    """A worker has the configuration that the supervisor has, with its secrets, which no command line shows."""
    config = Config(
        workers=2,
        anthropic=ProviderConfig(base_url="http://127.0.0.1:1"),
        openai=ProviderConfig(kind="openai", api_key="sk-canary"),
        dashboard=DashboardConfig(password="correct horse"),
    )
    assert control.load_config(control.dump_config(config)) == config
    assert attrs.asdict(config)["openai"]["api_key"] == "sk-canary"
