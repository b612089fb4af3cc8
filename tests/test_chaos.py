"""The chaos run: a short one, and that its account finds what it is there to find."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.chaos import Plan, report, run
from tests.chaos_accounts import FULL, HURRIED, SLOT, UPSTREAM, Account, Event, judge
from tests.chaos_load import FAULTS, LEAVING, REQUEST_ID, Ask, Attempt, Load, invent, seen
from tests.processes import wait_for
from tests.recorded import Kept
from tests.sockets import Answer, RawUpstream, read_request
from twisted_proxy.record.exchange import Exchange, Role, StoredBody


@pytest.mark.timeout(300)
def test_a_short_run(tmp_path: Path) -> None:
    """Every request of some seconds is accounted for. What starts and ends two proxies, thrice, takes most of it."""
    plan = Plan(seconds=6, seed=5, clients=6, pause=1.5)
    account = run(plan, tmp_path, print)
    assert not account.failures, report(plan, account)
    assert account.done
    assert account.became["complete"] > 20
    assert account.stored["whole"] > 20


def test_a_seed_is_a_run() -> None:
    """The same seed asks the same; sooner or later there is every fault, and every way to leave."""

    def asked(seed: int) -> list[Ask]:
        dice = random.Random(seed)
        return [invent(dice, f"{seed}-{number}") for number in range(1000)]

    assert asked(1) == asked(1) != asked(2)
    assert {ask.leaves for ask in asked(1)} == {"", *LEAVING}
    assert sum(ask.faulty for ask in asked(1)) > len(FAULTS)
    assert asked(1)[0].body == asked(1)[0].body


# The account


ID = "req_0123456789abcdef0123456789abcdef"
ASK = Ask(name="7-1-1", scenario="auto?count=5", stream=True, size=2000)
FAULTY = attrs.evolve(ASK, scenario="auto?count=5&at=300&how=fin", faulty=True)
AS_JSON = attrs.evolve(ASK, stream=False)
EXPECTED = ASK.expected()[1]
LATER = Event(what=UPSTREAM, began=20.0, ended=21.0)
MEANWHILE = Event(what=UPSTREAM, began=0.5, ended=3.0)


def told(status: int, body: bytes, ending: Any = "whole", *, server: str = "claude-proxy/1") -> Answer:
    headers = [("server", server)] if status >= 400 else []
    if server != "balancer":
        headers.append((REQUEST_ID, ID))
    return Answer(status=status, headers=headers, body=body, ending=ending, interim=[])


def attempt(got: Answer | None = None, ask: Ask = ASK, **fields: Any) -> Attempt:
    """One that took from 1 to 2 s."""
    saw = seen(ask, got) if got is not None else {}
    return Attempt(**{"ask": ask, "number": 0, "slot": 1, "kept": False, "began": 1.0, "ended": 2.0, **saw, **fields})


ENVELOPE = b'{"type":"error","error":{"type":"api_error","message":"The upstream is gone."}}'


class TestRequests:
    """What a client saw."""

    @pytest.mark.parametrize(
        ("one", "events", "became"),
        [
            (attempt(told(200, EXPECTED)), [], "complete"),
            (attempt(told(200, EXPECTED[:100], "fin"), FAULTY), [], "cut"),
            (attempt(told(200, EXPECTED[:100], "rst")), [MEANWHILE], "cut"),
            (attempt(told(200, b"event: error\ndata: " + ENVELOPE + b"\n\n", "fin")), [MEANWHILE], "cut"),
            (attempt(told(502, ENVELOPE)), [LATER, MEANWHILE], "told"),
            (attempt(told(502, b"<html>", server="balancer")), [attrs.evolve(MEANWHILE, what=SLOT)], "told"),
            (attempt(ending="left"), [], "left"),
            (attempt(ending="nothing"), [attrs.evolve(MEANWHILE, what=SLOT, slots=frozenset({1}))], "nothing"),
            (attempt(ending="nothing", kept=True), [], "asked again"),
        ],
    )
    def test_what_may_be(self, one: Attempt, events: list[Event], became: str) -> None:
        """Complete and equal, or an error that it can see and that has a cause, or left."""
        assert judge(one, events) == (became, "")

    @pytest.mark.parametrize(
        ("one", "events", "words"),
        [
            (attempt(told(200, EXPECTED[:-5]), FAULTY), [MEANWHILE], "looks complete"),
            (attempt(told(200, EXPECTED + b"x")), [MEANWHILE], "looks complete"),
            (attempt(told(200, b"")), [MEANWHILE], "looks complete"),
            (attempt(told(200, AS_JSON.expected()[1][:-9]), AS_JSON), [MEANWHILE], "looks complete"),
            (attempt(told(200, b"x" + EXPECTED[1:100], "fin"), FAULTY), [MEANWHILE], "something else"),
            (attempt(told(201, EXPECTED)), [], "status 201"),
            (attempt(told(200, EXPECTED[:100], "fin")), [LATER], "cut without a cause"),
            (attempt(told(502, ENVELOPE)), [LATER], "without a cause"),
            (attempt(told(502, b"Bad Gateway"), FAULTY), [MEANWHILE], "without its envelope"),
            (attempt(told(503, b"<html>", server="balancer")), [MEANWHILE], "none was killed"),
            (attempt(ending="nothing"), [MEANWHILE], "not even an answer"),
            (attempt(ending="nothing"), [attrs.evolve(MEANWHILE, what=SLOT, slots=frozenset({2}))], "not even"),
            (attempt(ending="refused"), [MEANWHILE], "not even an answer"),
            (attempt(ending="hang"), [MEANWHILE], "hang"),
            (attempt(ending="nonsense", wrong="no HTTP"), [MEANWHILE], "no HTTP"),
        ],
    )
    def test_what_may_not_be(self, one: Attempt, events: list[Event], words: str) -> None:
        """Truncated but complete to look at, other bytes, a hang, an error that nothing explains."""
        assert words in judge(one, events)[1]

    def test_a_message_as_json_is_a_value(self) -> None:
        """However its JSON is written: it was folded from a stream. Another value is another message."""
        expected = AS_JSON.expected()[1]
        assert seen(AS_JSON, told(200, b"\n\n" + expected.replace(b":", b": ")))["equal"]
        assert seen(AS_JSON, told(200, expected.replace(b"word1", b"word2")))["wrong"]

    def test_clients_find_it(self) -> None:
        """An upstream that forgets the end of an answer, and says that this was all."""

        def lie(connection: Any) -> None:
            read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(EXPECTED) - 9) + EXPECTED[:-9])

        with (
            RawUpstream(lie) as upstream,
            Load(lambda: upstream.port, clients=1, seed=1, invent=lambda _, __: ASK) as load,
        ):
            wait_for(lambda: load.attempts, "a request is over")
        assert not load.broken
        assert "looks complete" in judge(load.attempts[0], [])[1]


COMPLETE = attempt(told(200, EXPECTED))


def kept(verdict: str = "complete", *, request: bytes = ASK.body, answer: bytes = EXPECTED, **fields: Any) -> Kept:
    made: dict[str, Any] = {"id": ID, "status": 200, "verdict": verdict, **fields}
    exchange = Exchange(instance="i", received_at=0, method="POST", path="/v1/messages", **made)
    bodies = {Role.REQUEST: request, Role.ANSWER: answer}
    blank: dict[str, Any] = {"content_type": None, "content_encoding": None, "marks": ()}
    stored = {role: StoredBody(role=role, data=data, **blank) for role, data in bodies.items()}
    return Kept(exchange=exchange, bodies=stored)


HURRY = Event(what=HURRIED, began=0.5, ended=3.0)
LOST = "9 bytes of the answer body not kept: the disk is full"
KILLED = Event(what=SLOT, began=3.0, ended=4.0, slots=frozenset({1}))


class TestRecords:
    """What the store has of it."""

    def account(self, one: Attempt, records: list[Kept], *events: Event, name: str | None = None) -> list[str]:
        account = Account(began=0)
        by_id = {f"{number}": record for number, record in enumerate(records)}
        account.add([one], events, {name or one.name: list(by_id)} if records else {}, lambda _: by_id)
        return account.failures

    @pytest.mark.parametrize(
        ("one", "records", "events"),
        [
            (COMPLETE, [kept()], []),
            (attempt(told(200, EXPECTED[:99], "fin"), FAULTY), [kept("truncated", request=FAULTY.body)], []),
            (
                attempt(told(529, ENVELOPE)),
                [kept("drained", status=529, request=ASK.body[:9], answer=ENVELOPE)],
                [HURRY],
            ),
            (attempt(ending="left"), [kept("client_gone", request=ASK.body[:9], answer=b"")], []),
            (attempt(ending="left"), [], []),
            (COMPLETE, [], [KILLED]),
            (COMPLETE, [kept("interrupted", answer=b"")], [KILLED]),
            (
                COMPLETE,
                [kept(answer=b"", lost="9 bytes of the answer body not kept")],
                [Event(what=FULL, began=0, ended=9)],
            ),
        ],
    )
    def test_what_may_be(self, one: Attempt, records: list[Kept], events: list[Event]) -> None:
        """One, which agrees; what is missing has a cause."""
        assert self.account(one, records, *events) == []

    @pytest.mark.parametrize(
        ("one", "records", "events", "words"),
        [
            (COMPLETE, [], [], "no record of it"),
            (COMPLETE, [], [attrs.evolve(KILLED, slots=frozenset({2}))], "no record of it"),
            (COMPLETE, [], [attrs.evolve(KILLED, began=9.0, ended=9.5)], "no record of it"),
            (COMPLETE, [kept(), kept()], [], "2 records"),
            (COMPLETE, [kept("truncated")], [], "'truncated' in its record"),
            (COMPLETE, [kept("interrupted")], [], "'interrupted' in its record"),
            (COMPLETE, [kept(status=502)], [], "502 in its record"),
            (COMPLETE, [kept(id="req_other")], [], "its id is req_other"),
            (COMPLETE, [kept(answer=EXPECTED[:-1])], [], "its answer has"),
            (COMPLETE, [kept(answer=EXPECTED.replace(b"word1", b"word2"))], [], "its answer has"),
            (COMPLETE, [kept(request=ASK.body[:-1])], [], "its request has"),
            (COMPLETE, [kept(answer=b"", lost=LOST)], [], "never was full"),
        ],
    )
    def test_what_may_not_be(self, one: Attempt, records: list[Kept], events: list[Event], words: str) -> None:
        """None, two, one that says something else, bodies that are others."""
        (said,) = self.account(one, records, *events)
        assert words in said
        assert ID in said

    def test_of_nobody(self) -> None:
        """A record of a request that nobody sent."""
        said = self.account(attempt(ending="left"), [kept()], name="somebody")
        assert said == ["records of nobody: somebody: ['0']"]
