"""What is in flight, and the drain: with a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from twisted_proxy.runtime import Drain, DrainEnd, DrainState, Gauge, Waiters


@attrs.frozen(eq=False, kw_only=True)
class Flying:
    """A request in flight."""

    request_id: str = "req_1"
    method: str = "POST"
    path: str = "/v1/messages"
    model: str | None = "claude-test"
    received_at: float = 0.0

    def cut(self, reason: str) -> None:
        raise AssertionError("cutting is not the gauge's or the drain's business")

    cut_by_hand = cut


@attrs.frozen
class Watched:
    """What became of a Deferred."""

    results: list[str] = attrs.field(factory=list)

    def __call__(self, deferred: Deferred[None]) -> Deferred[None]:
        deferred.addCallbacks(
            lambda result: self.results.append("fired" if result is None else repr(result)),
            lambda failure: self.results.append(failure.type.__name__),
        )
        return deferred

    @property
    def fired(self) -> bool:
        assert self.results in ([], ["fired"])
        return bool(self.results)


def watched(deferred: Deferred[None]) -> Watched:
    watch = Watched()
    watch(deferred)
    return watch


def lines_of(act: Callable[[], object]) -> list[str]:
    """The lines that are logged meanwhile."""
    with capturedLogs() as captured:
        act()
    return [formatEvent(event) for event in captured]


class TestWaiters:
    """Many callers who wait for one thing."""

    def test_each_has_its_own(self) -> None:
        """What one does with its Deferred, the others do not see."""
        waiters = Waiters()
        first, second = waiters.wait(), waiters.wait()
        assert first is not second
        first.addCallback(lambda _: "changed")
        late = watched(second)
        waiters.fire()
        assert late.fired

    def test_firing_is_over_when_it_is_over(self) -> None:
        """Who comes later waits for the next time; who was fired is not fired again."""
        waiters = Waiters()
        early = watched(waiters.wait())
        waiters.fire()
        late = watched(waiters.wait())
        assert early.fired
        assert not late.fired
        waiters.fire()
        assert late.fired

    def test_cancelling_one_leaves_the_others(self) -> None:
        """And the cancelled one fails at once, and once."""
        waiters = Waiters()
        deferreds = [waiters.wait() for _ in range(3)]
        watches = [watched(deferred) for deferred in deferreds]
        deferreds[1].cancel()
        assert [watch.results for watch in watches] == [[], ["CancelledError"], []]
        deferreds[1].cancel()
        waiters.fire()
        assert [watch.results for watch in watches] == [["fired"], ["CancelledError"], ["fired"]]
        deferreds[0].cancel()

    @given(st.integers(0, 5), st.integers(0, 5))
    def test_cancelling_while_they_fire(self, who: int, whom: int) -> None:
        """One waiter's callback cancels another, or itself: none is skipped, none is called twice."""
        waiters = Waiters()
        deferreds = [waiters.wait() for _ in range(6)]
        deferreds[who].addCallback(lambda _: deferreds[whom].cancel())
        watches = [watched(deferred) for deferred in deferreds]
        waiters.fire()
        expected = [["CancelledError" if whom == number > who else "fired"] for number in range(6)]
        assert [watch.results for watch in watches] == expected

    def test_waiting_while_they_fire(self) -> None:
        """A callback that waits again waits for the next time: no endless loop."""
        waiters = Waiters()
        again: list[Deferred[None]] = []
        waiters.wait().addCallback(lambda _: again.append(waiters.wait()))
        waiters.fire()
        assert len(again) == 1
        assert not again[0].called

    def test_a_callback_that_raises_does_not_harm_the_others(self) -> None:
        """Its failure is its own."""
        waiters = Waiters()
        failing, other = waiters.wait(), waiters.wait()
        failing.addCallback(lambda _: 1 / 0)
        late = watched(other)
        waiters.fire()
        assert late.fired
        failing.addErrback(lambda failure: failure.trap(ZeroDivisionError))


class TestGauge:
    """How many, which ones, and when there are none."""

    def test_counts(self) -> None:
        """Entering counts, leaving does no longer."""
        gauge = Gauge()
        assert gauge.in_flight == 0
        one, other = Flying(), Flying()
        gauge.enter(one)
        gauge.enter(other)
        assert gauge.in_flight == 2
        gauge.leave(one)
        assert gauge.in_flight == 1
        gauge.leave(other)
        assert gauge.in_flight == 0

    def test_entering_or_leaving_twice(self) -> None:
        """Changes nothing, and neither does leaving without having entered: the count cannot go wrong."""
        gauge = Gauge()
        one, other, stranger = Flying(), Flying(), Flying()
        gauge.enter(one)
        gauge.enter(one)
        gauge.enter(other)
        assert gauge.in_flight == 2
        idle = watched(gauge.when_idle())
        for request in (one, one, stranger):
            gauge.leave(request)
        assert gauge.in_flight == 1
        assert not idle.fired
        gauge.leave(other)
        assert idle.fired
        gauge.leave(other)
        assert gauge.in_flight == 0

    def test_requests_that_look_alike_are_two(self) -> None:
        """They are told apart by identity."""
        gauge = Gauge()
        gauge.enter(Flying())
        gauge.enter(Flying())
        assert gauge.in_flight == 2

    def test_oldest(self) -> None:
        """The oldest first; all of them, or so many."""
        gauge = Gauge()
        requests = [Flying(request_id=f"req_{number}") for number in range(4)]
        for request in requests:
            gauge.enter(request)
        gauge.leave(requests[0])
        gauge.enter(requests[0])
        expected = [*requests[1:], requests[0]]
        assert gauge.oldest() == expected
        assert gauge.oldest(2) == expected[:2]
        assert gauge.oldest(0) == []
        assert gauge.oldest(9) == expected
        gauge.oldest().clear()
        assert gauge.in_flight == 4

    def test_when_idle(self) -> None:
        """At once if that is so, else as soon as it is; each caller its own Deferred."""
        gauge = Gauge()
        assert watched(gauge.when_idle()).fired
        request = Flying()
        gauge.enter(request)
        first, second = gauge.when_idle(), gauge.when_idle()
        assert first is not second
        watches = [watched(first), watched(second)]
        assert not any(watch.fired for watch in watches)
        gauge.leave(request)
        assert all(watch.fired for watch in watches)

    def test_idle_once_is_not_idle_for_ever(self) -> None:
        """Who asks when the next request is there waits for that one."""
        gauge = Gauge()
        first, second = Flying(), Flying()
        gauge.enter(first)
        gauge.leave(first)
        gauge.enter(second)
        idle = watched(gauge.when_idle())
        assert not idle.fired
        gauge.leave(second)
        assert idle.fired

    def test_a_caller_that_gives_up(self) -> None:
        """Leaves the others waiting."""
        gauge = Gauge()
        request = Flying()
        gauge.enter(request)
        impatient, patient = gauge.when_idle(), gauge.when_idle()
        watches = [watched(impatient), watched(patient)]
        impatient.cancel()
        gauge.leave(request)
        assert [watch.results for watch in watches] == [["CancelledError"], ["fired"]]

    def test_two_do_not_mix(self) -> None:
        """State belongs to an instance."""
        one, other = Gauge(), Gauge()
        request = Flying()
        one.enter(request)
        idle = watched(one.when_idle())
        assert other.in_flight == 0
        assert watched(other.when_idle()).fired
        other.enter(request)
        other.leave(request)
        assert one.in_flight == 1
        assert not idle.fired

    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=30))
    def test_any_order(self, steps: list[tuple[bool, int]]) -> None:
        """Whatever enters and leaves in whatever order, it is the set of those that are in."""
        gauge = Gauge()
        requests = [Flying() for _ in range(4)]
        inside: list[Flying] = []
        for entering, number in steps:
            request = requests[number]
            if entering:
                gauge.enter(request)
                inside += [request] if request not in inside else []
            else:
                idle = watched(gauge.when_idle())
                gauge.leave(request)
                inside = [each for each in inside if each is not request]
                assert idle.fired is (not inside)
            assert gauge.in_flight == len(inside)
            assert gauge.oldest() == inside


@attrs.define
class House:
    """A clock, a gauge and their drain."""

    timeout: float = 60.0
    lame_duck: float = 0.0
    start: float = 1000.0
    clock: Clock = attrs.field(factory=Clock)
    gauge: Gauge = attrs.field(factory=Gauge)
    drain: Drain = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.clock.advance(self.start)
        self.drain = Drain(self.clock, self.gauge, timeout=self.timeout, lame_duck=self.lame_duck)

    def enter(self, **about: object) -> Flying:
        request = Flying(received_at=self.clock.seconds(), **about)  # type: ignore[arg-type]
        self.gauge.enter(request)
        return request

    def pass_time(self, seconds: float) -> None:
        """In small steps, as a reactor does."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(0.25, end - self.clock.seconds()))

    def assert_over(self, end: DrainEnd) -> None:
        assert self.drain.state is DrainState.DONE
        assert self.drain.end is end
        assert self.drain.draining
        assert self.clock.getDelayedCalls() == []


class TestDrainEnds:
    """Each way to the end, and that nothing is left over behind it."""

    def test_serving(self) -> None:
        """Before it has begun, nothing runs."""
        house = House()
        assert house.drain.state is DrainState.SERVING
        assert not house.drain.draining
        assert house.drain.end is None
        assert house.clock.getDelayedCalls() == []

    @pytest.mark.parametrize("timeout", [60.0, 0.001])
    def test_with_nothing_in_flight(self, timeout: float) -> None:
        """Without lame duck it is over before `begin` returns."""
        house = House(timeout=timeout)
        done = watched(house.drain.begin())
        assert done.fired
        house.assert_over(DrainEnd.IDLE)

    def test_without_time(self) -> None:
        """It is over before `begin` returns, whatever is in flight."""
        house = House(timeout=0.0, lame_duck=5.0)
        house.enter()
        assert watched(house.drain.begin()).fired
        house.assert_over(DrainEnd.DEADLINE)

    def test_when_the_last_one_leaves(self) -> None:
        """At that moment, not at the next tick."""
        house = House()
        one, other = house.enter(), house.enter()
        done = watched(house.drain.begin())
        house.pass_time(3.3)
        house.gauge.leave(one)
        assert not done.fired
        assert house.drain.state is DrainState.DRAINING
        house.pass_time(0.1)
        house.gauge.leave(other)
        assert done.fired
        house.assert_over(DrainEnd.IDLE)

    def test_at_the_deadline(self) -> None:
        """Exactly then, and not before."""
        house = House(timeout=7.5)
        house.enter()
        done = watched(house.drain.begin())
        house.clock.pump([0.5] * 14)
        assert not done.fired
        house.clock.advance(0.5)
        assert done.fired
        house.assert_over(DrainEnd.DEADLINE)
        assert house.gauge.in_flight == 1

    def test_the_deadline_comes_before_the_lame_duck_is_over(self) -> None:
        """The ceiling is one."""
        house = House(timeout=5.0, lame_duck=30.0)
        house.enter()
        done = watched(house.drain.begin())
        house.pass_time(5.0)
        assert done.fired
        house.assert_over(DrainEnd.DEADLINE)

    def test_after_the_deadline_an_idle_gauge_changes_nothing(self) -> None:
        """It was the deadline."""
        house = House(timeout=5.0)
        request = house.enter()
        house.drain.begin()
        house.pass_time(5.0)
        house.gauge.leave(request)
        house.assert_over(DrainEnd.DEADLINE)

    @pytest.mark.parametrize("lame_duck", [0.0, 30.0])
    def test_hurried(self, lame_duck: float) -> None:
        """At once, whatever is in flight and whoever watches; once."""
        house = House(lame_duck=lame_duck)
        request = house.enter()
        done = watched(house.drain.begin())
        house.pass_time(2.0)
        house.drain.hurry()
        assert done.fired
        house.assert_over(DrainEnd.HURRIED)
        house.drain.hurry()
        house.gauge.leave(request)
        house.pass_time(100.0)
        house.assert_over(DrainEnd.HURRIED)

    def test_hurrying_what_has_not_begun(self) -> None:
        """Is nothing: the drain that comes later is a whole one."""
        house = House()
        house.drain.hurry()
        assert house.drain.state is DrainState.SERVING
        request = house.enter()
        done = watched(house.drain.begin())
        assert not done.fired
        house.gauge.leave(request)
        house.assert_over(DrainEnd.IDLE)

    def test_hurrying_what_is_over(self) -> None:
        """Does not change why it ended."""
        house = House()
        house.drain.begin()
        house.drain.hurry()
        house.assert_over(DrainEnd.IDLE)

    def test_requests_that_come_while_draining(self) -> None:
        """Are waited for like all others, also when the older ones have gone before them."""
        house = House()
        old = house.enter()
        done = watched(house.drain.begin())
        house.pass_time(2.0)
        new = house.enter()
        house.gauge.leave(old)
        house.pass_time(2.0)
        assert not done.fired
        house.gauge.leave(new)
        assert done.fired
        house.assert_over(DrainEnd.IDLE)

    def test_two_drains_do_not_mix(self) -> None:
        """One process may hold two proxies."""
        one, other = House(), House()
        one.enter()
        done = watched(one.drain.begin())
        assert not other.drain.draining
        assert watched(other.drain.begin()).fired
        other.assert_over(DrainEnd.IDLE)
        assert not done.fired
        one.drain.hurry()

    @pytest.mark.parametrize(("timeout", "lame_duck"), [(0.3, 0.0), (60.0, 0.3)])
    def test_a_rest_that_is_too_small_for_the_clock(self, timeout: float, lame_duck: float) -> None:
        """Where the clock's rounding leaves some nanoseconds to the end, it does not ask again without end."""
        house = House(timeout=timeout, lame_duck=lame_duck, start=1_000_000_000.1)
        if not lame_duck:
            house.enter()
        done = watched(house.drain.begin())
        house.clock.advance(0.3)
        house.clock.advance(0.001)
        assert done.fired
        house.assert_over(DrainEnd.IDLE if lame_duck else DrainEnd.DEADLINE)

    @settings(deadline=None)
    @given(
        start=st.floats(0, 2e9),
        timeout=st.floats(0, 100),
        lame_duck=st.floats(0, 100),
        leaves=st.none() | st.floats(0, 100),
    )
    def test_any_times(self, start: float, timeout: float, lame_duck: float, leaves: float | None) -> None:
        """It ends when it should, to the millisecond, however the times round; and leaves nothing behind."""
        house = House(timeout=timeout, lame_duck=lame_duck, start=start)
        request = house.enter()
        done = watched(house.drain.begin())
        if leaves is not None:
            house.clock.callLater(leaves, house.gauge.leave, request)
        expected = timeout if leaves is None else min(timeout, max(lame_duck, leaves))
        tolerance = 0.002
        if expected > tolerance:
            house.clock.advance(expected - tolerance)
            assert not done.fired
            house.clock.advance(2 * tolerance)
        else:
            house.clock.advance(expected + tolerance)
        assert done.fired
        if leaves is None or leaves > timeout + tolerance:
            assert house.drain.end is DrainEnd.DEADLINE
        elif leaves < timeout - tolerance:
            # Also where only the lame duck had to be waited for to the deadline: nothing is there to be cut.
            assert house.drain.end is DrainEnd.IDLE
        house.clock.advance(1000)
        assert house.clock.getDelayedCalls() == []


class TestLameDuck:
    """A minimum time of draining, so that a balancer sees it."""

    def test_a_minimum(self) -> None:
        """Also with nothing in flight it lasts so long, exactly."""
        house = House(lame_duck=5.5)
        done = watched(house.drain.begin())
        house.clock.pump([0.5] * 10)
        assert not done.fired
        house.clock.advance(0.5)
        assert done.fired
        house.assert_over(DrainEnd.IDLE)

    def test_idle_in_between_is_not_the_end(self) -> None:
        """What comes within the minimum is served to its end."""
        house = House(lame_duck=5.0)
        first = house.enter()
        done = watched(house.drain.begin())
        house.pass_time(2.0)
        house.gauge.leave(first)
        house.pass_time(2.0)
        second = house.enter()
        house.pass_time(4.0)
        assert not done.fired
        house.gauge.leave(second)
        assert done.fired
        house.assert_over(DrainEnd.IDLE)

    def test_skipped_beforehand(self) -> None:
        """SIGINT: nobody watches."""
        house = House(lame_duck=30.0)
        house.drain.skip_lame_duck()
        assert house.drain.state is DrainState.SERVING
        assert watched(house.drain.begin()).fired
        house.assert_over(DrainEnd.IDLE)

    def test_skipped_in_the_middle(self) -> None:
        """It ends there and then, not at the next tick."""
        house = House(lame_duck=30.0)
        done = watched(house.drain.begin())
        house.pass_time(3.3)
        assert not done.fired
        house.drain.skip_lame_duck()
        assert done.fired
        house.assert_over(DrainEnd.IDLE)

    def test_skipped_with_requests_in_flight(self) -> None:
        """They are waited for still; and there is one tick, not two."""
        house = House(lame_duck=30.0)
        request = house.enter()
        done = watched(house.drain.begin())
        house.pass_time(3.3)
        house.drain.skip_lame_duck()
        assert not done.fired
        assert len(house.clock.getDelayedCalls()) == 1
        house.pass_time(2.0)
        assert len(house.clock.getDelayedCalls()) == 1
        house.gauge.leave(request)
        assert done.fired
        house.assert_over(DrainEnd.IDLE)

    def test_skipped_when_it_is_over(self) -> None:
        """Changes nothing."""
        house = House()
        house.drain.begin()
        house.drain.skip_lame_duck()
        house.assert_over(DrainEnd.IDLE)


class TestBegin:
    """Many may ask for the drain: signal handler, service, an embedding program."""

    def test_each_caller_has_its_own(self) -> None:
        """The second begins nothing anew, and both are told; so is who comes when it is over."""
        house = House(timeout=10.0)
        request = house.enter()
        first = house.drain.begin()
        house.pass_time(4.0)
        second = house.drain.begin()
        assert first is not second
        first.addCallback(lambda _: "changed")
        watches = [watched(second)]
        assert len(house.clock.getDelayedCalls()) == 1
        assert house.drain.remaining == 6.0
        house.gauge.leave(request)
        watches.append(watched(house.drain.begin()))
        assert all(watch.fired for watch in watches)
        house.assert_over(DrainEnd.IDLE)

    def test_giving_up_waiting_does_not_end_it(self) -> None:
        """Neither for the others nor for itself."""
        house = House()
        request = house.enter()
        impatient = house.drain.begin()
        patient = watched(house.drain.begin())
        left = watched(impatient)
        impatient.cancel()
        assert left.results == [CancelledError.__name__]
        assert house.drain.state is DrainState.DRAINING
        assert not patient.fired
        house.gauge.leave(request)
        assert patient.fired
        house.assert_over(DrainEnd.IDLE)

    def test_begin_when_told_that_it_is_over(self) -> None:
        """Asking once more from within the callback fires at once."""
        house = House()
        again: list[Watched] = []
        house.enter()
        house.drain.begin().addCallback(lambda _: again.append(watched(house.drain.begin())))
        house.drain.hurry()
        assert again[0].fired

    def test_remaining(self) -> None:
        """The whole timeout before it began, then what is left of it, and never less than nothing."""
        house = House(timeout=10.0)
        house.pass_time(5.0)
        assert house.drain.remaining == 10.0
        house.enter()
        house.drain.begin()
        house.pass_time(4.0)
        assert house.drain.remaining == 6.0
        house.pass_time(100.0)
        assert house.drain.remaining == 0.0


class TestReports:
    """What the log says meanwhile."""

    def test_begin_and_end(self) -> None:
        """How many there are, how long it may take, how long it took, and why it ended."""
        house = House(timeout=90.0, lame_duck=2.5)
        request = house.enter()
        assert lines_of(house.drain.begin) == ["draining: 1 in flight, for at least 2.5s and at most 90s"]
        house.pass_time(3.0)
        lines = lines_of(lambda: house.gauge.leave(request))
        assert lines == ["drained after 3.0s: nothing is in flight; 0 in flight"]

    def test_the_end_by_the_deadline(self) -> None:
        """Says what is cut."""
        house = House(timeout=4.0)
        house.enter()
        house.drain.begin()
        lines = lines_of(lambda: house.pass_time(4.0))
        assert lines == ["drained after 4.0s: the drain timeout has passed; 1 in flight"]

    def test_each_ten_seconds(self) -> None:
        """How many are in flight, and the five oldest ones; nothing between."""
        house = House(timeout=600.0)
        house.enter(request_id="req_0", model=None, method="GET", path="/v1/models")
        house.pass_time(2.0)
        for number in range(1, 7):
            house.enter(request_id=f"req_{number}")
        house.drain.begin()
        assert lines_of(lambda: house.pass_time(9.9)) == []
        expected = [
            "draining: 7 in flight",
            "draining: waiting for req_0 GET /v1/models model=- age=12s",
            *(
                f"draining: waiting for req_{number} POST /v1/messages model=claude-test age=10s"
                for number in range(1, 5)
            ),
        ]
        assert lines_of(lambda: house.pass_time(0.1)) == expected
        assert lines_of(lambda: house.pass_time(9.9)) == []
        assert lines_of(lambda: house.pass_time(0.1))[1].endswith("age=22s")
        house.drain.hurry()

    def test_for_as_long_as_it_takes(self) -> None:
        """One report each ten seconds, not one for each tick, and none after the end."""
        house = House(timeout=600.0)
        house.enter()
        house.drain.begin()
        lines = lines_of(lambda: house.pass_time(100.0))
        assert lines.count("draining: 1 in flight") == 10
        lines = lines_of(house.drain.hurry)
        assert lines == ["drained after 100.0s: it was told to stop at once; 1 in flight"]
        assert lines_of(lambda: house.pass_time(100.0)) == []

    def test_during_the_lame_duck(self) -> None:
        """Also while nothing is in flight, an operator sees that it goes on."""
        house = House(timeout=600.0, lame_duck=25.0)
        house.drain.begin()
        lines = lines_of(lambda: house.pass_time(25.0))
        assert lines == ["draining: 0 in flight"] * 2 + ["drained after 25.0s: nothing is in flight; 0 in flight"]

    def test_a_second_begin_is_quiet(self) -> None:
        """It has been said."""
        house = House()
        house.enter()
        house.drain.begin()
        assert lines_of(house.drain.begin) == []
        house.drain.hurry()
