"""
What a chaos run must not have done: each request that was asked, and each record, beside what had happened meanwhile.

Values in, words out: no I/O. An account that cannot fail would show nothing; `tests.test_chaos` feeds it lies.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import attrs

from tests.chaos_load import Attempt
from tests.load import ECHO
from tests.recorded import Kept
from twisted_proxy.record.exchange import INTERRUPTED, Role

LOSS: Final = 2.0
"""Seconds before a ``kill -9`` from which the last may be missing in the records: a flush, and a loaded machine."""


@attrs.frozen(kw_only=True)
class Event:
    """
    Something that was done to the proxies, or to what they need.

    :ivar slots: the ports of those that it concerned; empty: all.
    :ivar began: and ``ended``, of `time.monotonic`.
    """

    what: str
    began: float
    ended: float
    slots: frozenset[int] = frozenset()

    def concerns(self, attempt: Attempt, before: float = 0.0) -> bool:
        """Whether it happened while the request was open, or so many seconds after it."""
        meets = self.began <= attempt.ended + before and attempt.began <= self.ended
        return meets and (not self.slots or attempt.slot in self.slots)


UPSTREAM: Final = "upstream killed"
SLOT: Final = "slot killed"
WORKER: Final = "worker killed"
HURRIED: Final = "slot told twice"
FULL: Final = "spool full"
ROLLED: Final = "slot rolled"
KILLS: Final = (SLOT, WORKER)
ENDS: Final = (*KILLS, HURRIED, ROLLED)
CAUSES: Final = (UPSTREAM, SLOT, WORKER, HURRIED)
"""What may be the cause of an error that a client sees. Databases, disks and recorders may not."""


def judge(attempt: Attempt, events: Iterable[Event]) -> tuple[str, str]:
    """
    What became of a request, and what is wrong about that (empty: nothing).

    It is ``complete``; ``left`` by its client; or a visible error: ``told``, ``cut``, ``nothing`` (of it), ``refused``.
    """
    happened = {event.what for event in events if event.what in CAUSES and event.concerns(attempt)}
    if attempt.ending == "left":
        return "left", ""
    if attempt.wrong:
        return "wrong", attempt.wrong
    if attempt.equal:
        return "complete", ""
    if attempt.ending == "whole" and attempt.status >= 400:
        if "balancer" in attempt.error:
            return "told", "" if happened & {*KILLS, HURRIED} else "the balancer had no slot, and none was killed"
        return "told", "" if attempt.ask.faulty or happened else "an error without a cause"
    if attempt.ending == "cut":
        return "cut", "" if attempt.ask.faulty or happened else "cut without a cause"
    if attempt.ending in ("nothing", "refused"):
        if attempt.kept and attempt.ending == "nothing":
            # Of an idle connection nobody can know; it is asked again, and that is judged.
            return "asked again", ""
        return attempt.ending, "" if happened & {*KILLS, HURRIED} else "not even an answer, and no slot was killed"
    return attempt.ending, f"{attempt.ending} after {attempt.ended - attempt.began:.1f} s"


VERDICTS: Final[Mapping[str, frozenset[str]]] = {
    "complete": frozenset({"complete"}),
    # An error event of the upstream is, to who wanted no stream, the answer.
    "told": frozenset({"failed", "drained", "complete"}),
    "cut": frozenset({"truncated", "silent", "drained", "failed"}),
    "left": frozenset({"client_gone", "complete", "truncated", "silent", "failed", "drained"}),
    "nothing": frozenset({"client_gone", "drained", "failed"}),
    "asked again": frozenset({"client_gone"}),
}
"""What a record may say of a request, by what its client saw."""


def may_be_lost(attempt: Attempt, events: Iterable[Event]) -> bool:
    """Whether the process that served a request may have ended before it could write down what it knew of it."""
    full = [event for event in events if event.what == FULL]
    for end in events:
        if end.what not in ENDS:
            continue
        # With a full disk all stays in memory, at its end for some seconds.
        without = [each.began for each in full if each.began <= end.ended and end.began <= each.ended + LOSS]
        if end.what in KILLS or without:
            since = min([end.began, *without])
            if end.concerns(attempt, end.began - since + LOSS):
                return True
    return False


def judge_record(attempt: Attempt, became: str, kept: Kept | None, events: Sequence[Event]) -> tuple[str, str]:
    """
    What the store has of a request, and what is wrong about that (empty: nothing).

    :param became: as `judge` calls it.
    """
    killed = may_be_lost(attempt, events)
    if kept is None:
        if attempt.id is None:
            return "not there, and nobody was told an id", ""
        if killed:
            return "not there: its process was killed, or ended with a full disk", ""
        return "not there", "its id was told, and there is no record of it"
    found = kept.exchange
    if attempt.id is not None and found.id != attempt.id:
        return "another", f"its id is {found.id}"
    if found.verdict == INTERRUPTED and killed:
        return "interrupted", ""
    problem = ""
    if found.verdict not in VERDICTS.get(became, frozenset()):
        problem = f"{became} for its client, {found.verdict!r} in its record"
    elif became in ("complete", "told", "cut") and found.status != attempt.status:
        problem = f"status {attempt.status} for its client, {found.status} in its record"
    if found.lost is not None:
        if not killed and not any(event.what == FULL for event in events):
            problem = problem or f"not all is there ({found.lost}), with a disk that never was full"
        return "not whole", problem
    return "whole", problem or _compare(attempt, became, kept)


def _compare(attempt: Attempt, became: str, kept: Kept) -> str:
    """What is wrong with the bodies of a record that says to have them."""
    asked = kept.data(Role.REQUEST) or b""
    body = attempt.ask.body
    # Who goes, and who is sent away by a slot that stops, may have sent a part of it.
    partly = became not in ("complete", "told", "cut") or kept.exchange.verdict == "drained"
    if not body.startswith(asked) or (asked != body and not partly):
        return f"its request has {len(asked)} bytes, and {len(body)} were sent, or others"
    if became not in ("complete", "cut", "told"):
        return ""
    answer = kept.data(Role.ANSWER) or b""
    # What was written before a cut may not have arrived.
    arrived = answer if became != "cut" else answer[: attempt.length]
    if hashlib.sha256(arrived).hexdigest() != attempt.digest:
        return f"its answer has {len(answer)} bytes, and {attempt.length} came, or others"
    forwarded = kept.data(Role.FORWARDED)
    if became == "complete" and forwarded is not None and attempt.ask.scenario != ECHO and kept.exchange.status == 200:
        told = attrs.evolve(attempt.ask, stream=True).answers(forwarded)[1]
        if kept.data(Role.RECEIVED) != told:
            return "what was received from the upstream is not what that sent"
    return ""


@attrs.define(kw_only=True)
class Account:
    """
    What came of a run.

    :ivar done: what was done, how often.
    :ivar became: how many requests, by what became of them. :ivar stored: the same of their records.
    :ivar failures: in words, each with its time and id.
    """

    began: float
    done: Counter[str] = attrs.field(factory=Counter)
    became: Counter[str] = attrs.field(factory=Counter)
    stored: Counter[str] = attrs.field(factory=Counter)
    failures: list[str] = attrs.field(factory=list)

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Whatever is not as it should be in the block is a failure."""
        try:
            yield
        except AssertionError as error:
            self.failures.append(f"{what}: {error}")

    def add(
        self,
        attempts: Sequence[Attempt],
        events: Sequence[Event],
        records: Mapping[str, Sequence[str]],
        read: Callable[[Sequence[str]], Mapping[str, Kept]],
    ) -> None:
        """
        Judge all of them.

        :param records: the ids of all records, by the ``User-Agent`` that they have.
        :param read: gives records with their bodies, by id.
        """
        of_nobody = set(records) - {attempt.name for attempt in attempts}
        for name in sorted(of_nobody):
            self.failures.append(f"records of nobody: {name}: {records[name]}")
        for start in range(0, len(attempts), 20):
            some = attempts[start : start + 20]
            kept = read([each for attempt in some for each in records.get(attempt.name, ())])
            for attempt in some:
                ids = records.get(attempt.name, ())
                self._add(attempt, events, [kept[each] for each in ids])

    def _add(self, attempt: Attempt, events: Sequence[Event], kept: Sequence[Kept]) -> None:
        became, problem = judge(attempt, events)
        self.became[f"{became}: {attempt.error}" if attempt.error else became] += 1
        problems = [problem]
        if len(kept) > 1:
            problems.append(f"{len(kept)} records: {[each.exchange.id for each in kept]}")
        state, problem = judge_record(attempt, became, kept[0] if kept else None, events)
        self.stored[state] += 1
        problems.append(f"record: {problem}" if problem else "")
        said = "; ".join(filter(None, problems))
        if said:
            when = f"{attempt.began - self.began:.2f} to {attempt.ended - self.began:.2f} s"
            self.failures.append(f"{when}: {said}: {attempt}")
