"""Conversations out of requests: who follows whom, and how."""

from __future__ import annotations

import json
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import attrs
import pytest
from twisted.internet.defer import Deferred

from tests.memory_store import MemoryStore
from tests.spooled import BEGAN, INSTANCE, assistant, exchange_id, message, user
from twisted_proxy.record.conversations import CONTINUED, Asked, Conversations, Place, gist
from twisted_proxy.record.exchange import Body, BytesContent, Exchange, Link, Record, Role
from twisted_proxy.record.identity import chains_of
from twisted_proxy.record.store import StoreUnavailable

T = TypeVar("T")


def result(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine gives that waits for nothing."""
    found: list[T] = []
    failed: list[Any] = []
    Deferred.fromCoroutine(work).addCallbacks(found.append, failed.append)
    if failed:
        failed[0].raiseException()
    return found[0]


class Proxy:
    """Places requests, and writes what it knows to the store after each."""

    def __init__(self, store: MemoryStore | None = None, *, remembered: int = 100) -> None:
        self.store = store or MemoryStore()
        self.conversations = Conversations(self.store, remembered=remembered)
        self.places: dict[int, Place] = {}

    def ask(
        self,
        number: int,
        messages: Sequence[object],
        *,
        answer: str | None = "…",
        session: str | None = "s1",
        agent: str | None = None,
        **more: Any,
    ) -> Place:
        raw = [json.dumps(each).encode() for each in messages]
        asked = Asked(id=exchange_id(number), session=session, agent=agent, messages=raw, chains=chains_of(raw), **more)
        place = self.places[number] = result(self.conversations.place(asked))
        bodies: tuple[Body, ...] = ()
        if answer is not None:
            told = json.dumps(message(number, answer)).encode()
            self.conversations.answered(asked.id, f"msg_{number}", told)
            bodies = (Body(role=Role.ANSWER, content=BytesContent(told)),)
        exchange = Exchange(
            id=asked.id,
            instance=INSTANCE,
            received_at=BEGAN + number,
            method="POST",
            path="/v1/messages",
            verdict="complete",
            session=session,
            agent=agent,
            message_id=None if answer is None else f"msg_{number}",
            conversation=place.conversation,
            parent=place.parent,
            link=place.link,
            messages=place.messages,
            chain=place.chain,
        )
        result(self.store.write([Record(exchange=exchange, bodies=bodies)]))
        return place

    def restarted(self) -> Proxy:
        """Another one, with the same store, that remembers nothing."""
        return Proxy(self.store)


def follows(place: Place, parent: int, link: Link) -> bool:
    """Whether a place is behind the exchange with a number, in that way."""
    return (place.parent, place.link) == (exchange_id(parent), link)


def is_new(number: int, place: Place) -> bool:
    """Whether it begins a conversation."""
    return (place.conversation, place.parent, place.link) == (exchange_id(number), None, None)


HELLO = [user("hello")]
HELLO_AGAIN = [*HELLO, assistant("hi"), user("how are you?")]
THIRD = [*HELLO_AGAIN, assistant("well"), user("good")]


@pytest.fixture(params=["remembered", "stored"])
def kind(request: pytest.FixtureRequest) -> str:
    """Whether what came before is remembered, or known by the store only."""
    return str(request.param)


def later(proxy: Proxy, kind: str) -> Proxy:
    return proxy if kind == "remembered" else proxy.restarted()


class TestContinuing:
    def test_a_request_that_has_all_messages_of_another_and_more_continues_it(self, kind: str) -> None:
        """It is in the conversation of the first, behind the last."""
        proxy = Proxy()
        assert is_new(1, proxy.ask(1, HELLO, answer="hi"))
        second = later(proxy, kind).ask(2, HELLO_AGAIN, answer="well")
        assert follows(second, 1, Link.CONTINUES)
        third = later(proxy, kind).ask(3, THIRD)
        assert follows(third, 2, Link.CONTINUES)
        assert second.conversation == third.conversation == exchange_id(1)

    def test_how_many_messages_are_known_is_said(self) -> None:
        """What a search has to look at is what the parent did not have."""
        proxy = Proxy()
        assert proxy.ask(1, HELLO, answer="hi").known == 0
        assert proxy.ask(2, HELLO_AGAIN).known == 1
        assert proxy.ask(3, HELLO_AGAIN).known == 3

    def test_the_usual_request_does_not_ask_the_store(self) -> None:
        """From the second request of a conversation on, its parent is remembered."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.store.asked.clear()
        proxy.ask(2, HELLO_AGAIN, answer="well")
        proxy.ask(3, THIRD)
        assert set(proxy.store.asked) == {"write"}

    def test_moved_markers_and_other_spelling_do_not_matter(self, kind: str) -> None:
        """The next request need not have the same bytes."""
        proxy = Proxy()
        marked = {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}
        proxy.ask(1, [{"role": "user", "content": [marked]}], answer="hi")
        assert follows(later(proxy, kind).ask(2, HELLO_AGAIN), 1, Link.CONTINUES)

    def test_what_another_process_recorded_between_is_found_in_the_store(self) -> None:
        """A remembered turn is not taken for the last where more than one answer came after it."""
        ours, theirs = Proxy(), None
        ours.ask(1, HELLO, answer="hi")
        theirs = Proxy(ours.store)
        theirs.ask(2, HELLO_AGAIN, answer="well")
        assert follows(ours.ask(3, THIRD), 2, Link.CONTINUES)

    def test_a_long_conversation_is_found_without_what_is_between(self, kind: str) -> None:
        """More prefixes than the store answers at once."""
        proxy = Proxy()
        messages: list[Any] = HELLO
        proxy.ask(1, messages, answer="0")
        for number in range(150):
            messages = [*messages, assistant(str(number)), user(str(number))]
        assert follows(later(proxy, kind).ask(2, messages), 1, Link.CONTINUES)

    def test_only_what_came_before_counts(self) -> None:
        """Entries that are read again find their successors in the store, and do not follow them."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO_AGAIN)
        again = proxy.restarted()
        assert again.ask(1, HELLO, answer="hi") == proxy.places[1]
        assert again.ask(2, HELLO_AGAIN) == proxy.places[2]

    def test_asking_twice_for_one_request_changes_nothing(self) -> None:
        """A place is the same when the rest of a batch failed."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        assert proxy.ask(2, HELLO_AGAIN) == proxy.ask(2, HELLO_AGAIN)


class TestRepeating:
    def test_the_same_messages_again_repeat_the_first(self, kind: str) -> None:
        """A retry, and the retry of a retry."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO_AGAIN, answer=None)
        assert follows(later(proxy, kind).ask(3, HELLO_AGAIN, answer=None), 2, Link.REPEATS)
        assert follows(later(proxy, kind).ask(4, HELLO_AGAIN, answer="well"), 2, Link.REPEATS)

    def test_the_next_request_goes_on_behind_the_one_that_was_answered(self, kind: str) -> None:
        """And that is no fork."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer=None)
        proxy.ask(2, HELLO, answer="hi")
        assert follows(later(proxy, kind).ask(3, HELLO_AGAIN), 2, Link.CONTINUES)

    def test_of_two_answers_the_one_that_it_quotes_counts(self) -> None:
        """The same asked twice, and the first answer gone on with."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO, answer="hello to you")
        assert follows(proxy.ask(3, HELLO_AGAIN), 1, Link.CONTINUES)

    def test_a_retry_of_a_continuation_is_no_fork(self, kind: str) -> None:
        """It has the same messages."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO_AGAIN, answer=None)
        proxy.ask(3, HELLO_AGAIN, answer="well")
        assert follows(later(proxy, kind).ask(4, THIRD), 3, Link.CONTINUES)


class TestForking:
    def test_a_second_other_continuation_forks(self, kind: str) -> None:
        """The first one continues."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO_AGAIN)
        other = later(proxy, kind).ask(3, [*HELLO, assistant("hi"), user("no, wait")])
        assert follows(other, 1, Link.FORKS)
        assert other.conversation == exchange_id(1)

    def test_a_fork_is_gone_on_with(self, kind: str) -> None:
        """Behind it, not behind what it left."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO_AGAIN)
        fork = [*HELLO, assistant("hi"), user("no, wait")]
        proxy.ask(3, fork, answer="yes?")
        assert follows(later(proxy, kind).ask(4, [*fork, assistant("yes?"), user("x")]), 3, Link.CONTINUES)

    def test_an_agent_that_starts_with_a_conversation_forks_it(self, kind: str) -> None:
        """And the conversation goes on without being one."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO_AGAIN, answer="well")
        agent = later(proxy, kind).ask(3, [*HELLO_AGAIN, assistant("well"), user("task")], agent="a1")
        assert follows(agent, 2, Link.FORKS)

    def test_the_same_session_and_agent_are_preferred(self, kind: str) -> None:
        """Of two that have the same messages."""
        proxy = Proxy()
        for number, agent in ((1, None), (2, "a1"), (3, "a2")):
            proxy.ask(number, HELLO, answer="hi", agent=agent)
            proxy.ask(number + 10, HELLO_AGAIN, answer="well", agent=agent)
        assert follows(later(proxy, kind).ask(20, THIRD, agent="a1"), 12, Link.CONTINUES)


class TestStandingAlone:
    def test_single_questions_of_other_sessions_have_nothing_to_do_with_each_other(self, kind: str) -> None:
        """Every client checks its quota with the same words."""
        proxy = Proxy()
        proxy.ask(1, [user("quota")], session="s1")
        assert is_new(2, later(proxy, kind).ask(2, [user("quota")], session="s2"))
        assert is_new(3, later(proxy, kind).ask(3, [user("quota")], session="s1", agent="a1"))

    def test_nor_do_those_without_a_session(self, kind: str) -> None:
        """Of a program that says none, each is its own."""
        proxy = Proxy()
        proxy.ask(1, [user("quota")], session=None)
        assert is_new(2, later(proxy, kind).ask(2, [user("quota")], session=None))

    def test_the_same_question_in_a_session_is_asked_again(self, kind: str) -> None:
        """Titles are asked for twice within milliseconds."""
        proxy = Proxy()
        proxy.ask(1, [user("title?")])
        assert follows(later(proxy, kind).ask(2, [user("title?")]), 1, Link.REPEATS)

    def test_one_common_message_is_not_enough_without_a_session(self, kind: str) -> None:
        """Two programs that begin alike."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi", session=None)
        other = [*HELLO, assistant("something else"), user("x")]
        assert is_new(2, later(proxy, kind).ask(2, other, session=None))

    def test_the_answer_that_comes_next_is(self, kind: str) -> None:
        """A conversation by its answers, in whichever form the client sends them back."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi", session=None)
        sent_back = {"role": "assistant", "content": "hi"}
        place = later(proxy, kind).ask(2, [*HELLO, sent_back, user("x")], session=None)
        assert follows(place, 1, Link.CONTINUES)

    def test_a_single_question_without_session_does_not_ask_the_store(self) -> None:
        """There is nothing that it could be told."""
        proxy = Proxy()
        proxy.ask(1, HELLO, session=None)
        assert proxy.store.asked == ["write"]


class TestCompacting:
    def test_the_words_of_a_compaction_tell_it(self, kind: str) -> None:
        """Behind the newest request of the session, titles and the like left aside."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO_AGAIN, answer="well")
        proxy.ask(3, [user("title?")], answer="A title")
        proxy.ask(4, HELLO, agent="a1")
        place = later(proxy, kind).ask(5, [user(f"{CONTINUED}. The conversation is summarized below: …")])
        assert follows(place, 2, Link.COMPACTS)
        assert place.conversation == exchange_id(1)
        assert place.known == 0

    def test_the_header_tells_it(self, kind: str) -> None:
        """Whatever the first message says."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO_AGAIN, answer="well")
        assert follows(later(proxy, kind).ask(3, [user("summary")], compacted=True), 2, Link.COMPACTS)

    def test_the_summary_tells_it(self) -> None:
        """It is what the session's compaction was answered."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        compaction = [*HELLO, assistant("hi"), user("Summarize.")]
        proxy.ask(2, compaction, answer="<analysis>…</analysis><summary>They greeted each other.</summary>")
        place = proxy.ask(3, [user("Before: They greeted each other."), assistant("ok"), user("go on")])
        assert follows(place, 2, Link.COMPACTS)

    def test_where_only_the_middle_was_replaced_the_header_tells_it(self) -> None:
        """That is not a fork of the conversation's beginning."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, HELLO_AGAIN, answer="well")
        proxy.ask(3, THIRD, answer="yes")
        shortened = [*HELLO, assistant("hi"), user("[cleared]"), assistant("well"), user("good"), user("next")]
        assert follows(proxy.ask(4, shortened, compacted=True), 3, Link.COMPACTS)

    def test_what_comes_after_it_continues(self, kind: str) -> None:
        """Each of those requests has the words, and the header."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        summary = [user(f"{CONTINUED}.")]
        proxy.ask(2, summary, answer="ok", compacted=True)
        place = later(proxy, kind).ask(3, [*summary, assistant("ok"), user("x")], compacted=True)
        assert follows(place, 2, Link.CONTINUES)

    def test_in_a_session_that_nobody_knows_it_begins_one(self) -> None:
        """What was before was not recorded."""
        proxy = Proxy()
        proxy.ask(1, HELLO)
        assert is_new(2, proxy.ask(2, [user(f"{CONTINUED}.")], session="other"))


class TestThreads:
    def test_a_thread_is_continued_behind_the_answer_that_it_names(self, kind: str) -> None:
        """Without the messages before."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        place = later(proxy, kind).ask(2, [user("how are you?")], behind="msg_1")
        assert follows(place, 1, Link.THREADS)
        assert place.conversation == exchange_id(1)
        third = later(proxy, kind).ask(3, [user("good")], behind="msg_2")
        assert (third.parent, third.conversation) == (exchange_id(2), exchange_id(1))

    def test_the_same_words_behind_another_answer_are_another_request(self) -> None:
        """Though they are all that is sent."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, [user("continue")], behind="msg_1")
        assert follows(proxy.ask(3, [user("continue")], behind="msg_2"), 2, Link.THREADS)

    def test_a_retry_repeats(self, kind: str) -> None:
        """The same words behind the same answer."""
        proxy = Proxy()
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, [user("continue")], behind="msg_1", answer=None)
        assert follows(later(proxy, kind).ask(3, [user("continue")], behind="msg_1"), 2, Link.REPEATS)

    def test_an_answer_that_nobody_knows_begins_a_conversation(self) -> None:
        """It was not recorded."""
        assert is_new(1, Proxy().ask(1, HELLO, behind="msg_0"))


class TestMemory:
    def test_only_so_many_are_remembered(self) -> None:
        """Those that were of use last, and everything that points to them."""
        proxy = Proxy(remembered=10)
        for number in range(1, 50):
            proxy.ask(number, [user(f"question {number}")], session=f"s{number}", answer=str(number))
        recent: Any = proxy.conversations._recent
        assert len(recent) == 10
        for index in (recent._by_chain, recent._by_message, recent._by_session):
            assert len(index) == 10

    def test_what_is_forgotten_is_found_in_the_store(self) -> None:
        """It only takes longer."""
        proxy = Proxy(remembered=1)
        proxy.ask(1, HELLO, answer="hi")
        proxy.ask(2, [user("other")], session="s2")
        assert follows(proxy.ask(3, HELLO_AGAIN), 1, Link.CONTINUES)

    def test_many_of_the_same_are_few(self) -> None:
        """A program that asks the same all day costs no time for that."""
        proxy = Proxy(remembered=1000)
        for number in range(1, 200):
            proxy.ask(number, HELLO, answer="hi")
        assert len(proxy.conversations._recent.at(chains_of([json.dumps(HELLO[0]).encode()])[0])) <= 32
        assert follows(proxy.ask(200, HELLO), 1, Link.REPEATS)


def test_a_store_that_is_out_of_reach_is_not_taken_for_one_that_knows_nothing() -> None:
    """The request is placed when it is back."""
    proxy = Proxy()
    proxy.ask(1, HELLO, answer="hi")
    again = proxy.restarted()
    proxy.store.problem = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable, match="down"):
        again.ask(2, HELLO_AGAIN)
    proxy.store.problem = None
    assert follows(again.ask(2, HELLO_AGAIN), 1, Link.CONTINUES)


@pytest.mark.parametrize(
    "odd",
    [b"null", b"{}", b'{"role":5}', b'{"role":"user"}', b'{"role":"user","content":7}', b"[" * 3000 + b"]" * 3000],
)
def test_odd_messages_have_places(odd: bytes) -> None:
    """Whatever a client sends."""
    conversations = Conversations(MemoryStore())
    asked = Asked(
        id=exchange_id(1), session=None, agent=None, messages=[odd, odd, odd], chains=chains_of([odd, odd, odd])
    )
    assert result(conversations.place(asked)).conversation == exchange_id(1)
    again = result(conversations.place(attrs.evolve(asked, id=exchange_id(2))))
    assert again.link is Link.REPEATS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"content": "hi"}, {"content": [{"type": "text", "text": "hi"}]}),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"content": "ab"}),
        (
            {"content": [{"type": "thinking", "thinking": "…", "signature": "x"}, {"type": "text", "text": "hi"}]},
            {"content": "hi"},
        ),
        (
            {"content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}]},
            {"content": [{"type": "tool_use", "id": "t1", "name": "Bash", "input": {"a": 1}}]},
        ),
    ],
)
def test_the_gist_is_what_is_said_and_called(one: object, other: object) -> None:
    """Not its form, and not what was thought."""
    assert gist(json.dumps(one).encode()) == gist(json.dumps(other).encode()) is not None


@pytest.mark.parametrize(
    "nothing", [b"", b"null", b'{"content":[]}', b'{"content":" "}', b'{"content":[{"type":"x"}]}']
)
def test_what_says_nothing_has_no_gist(nothing: bytes) -> None:
    """Two such answers are not the same."""
    assert gist(nothing) is None
