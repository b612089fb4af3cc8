"""A request's body on its way up, at the pace of whoever takes it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.interfaces import IConsumer, IProducer, IPushProducer
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer
from zope.interface.verify import verifyObject

from twisted_proxy.relay import body as module
from twisted_proxy.relay.body import SLICE, BytesProducer

BODY = bytes(range(256)) * (SLICE // 64) + b"the end"
"""A little more than four slices, in which no slice is like its neighbour cut elsewhere."""


@implementer(IConsumer)
class Consumer:
    """
    Takes what it is given, and does as the test says while it takes it.

    :ivar while_writing: called within each `write`, when the piece is taken.
    """

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.while_writing: Callable[[], None] = lambda: None
        self.producer: IPushProducer | None = None
        self.writing = 0
        self.deepest = 0

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        assert self.producer is None
        assert streaming
        assert IPushProducer.providedBy(producer)
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        assert type(data) is bytes
        self.writing += 1
        self.deepest = max(self.deepest, self.writing)
        self.pieces.append(data)
        self.while_writing()
        self.writing -= 1

    @property
    def taken(self) -> bytes:
        return b"".join(self.pieces)


class Upload:
    """A producer, its consumer, and all that was heard of them, in order."""

    def __init__(self, body: bytes) -> None:
        self.heard: list[str] = []
        self.consumer = Consumer()
        self.producer = BytesProducer(
            body,
            sent=lambda: self.heard.append("sent"),
            progress=lambda moving: self.heard.append("moving" if moving else "held"),
        )

    def start(self) -> None:
        self.producer.startProducing(self.consumer).addCallbacks(
            lambda result: self.heard.append(f"done: {result}"),
            lambda failure: self.heard.append(f"failed: {failure.value}"),
        )

    def pause_after(self, pieces: int) -> None:
        """Hold back once so many pieces are taken."""
        consumer, producer = self.consumer, self.producer
        consumer.while_writing = lambda: producer.pauseProducing() if len(consumer.pieces) == pieces else None


def test_interfaces() -> None:
    """It is what Twisted calls a body's producer, and one that can be paused."""
    producer = Upload(b"x").producer
    assert verifyObject(IBodyProducer, producer)
    assert verifyObject(IPushProducer, producer)
    assert producer.length == 1


class TestSmall:
    """What fits into one slice."""

    @pytest.mark.parametrize("size", [1, 1000, SLICE])
    def test_written_once(self, size: int) -> None:
        """Whole, at once, without registering anything; then it is sent, and done."""
        body = b"x" * size
        upload = Upload(body)
        assert upload.producer.length == size
        upload.start()
        assert upload.consumer.pieces == [body]
        assert upload.consumer.producer is None
        assert upload.heard == ["sent", "done: None"]

    def test_empty(self) -> None:
        """A body of no bytes is one: it has a length, and an end."""
        upload = Upload(b"")
        assert upload.producer.length == 0
        upload.start()
        assert upload.consumer.taken == b""
        assert upload.heard == ["sent", "done: None"]

    def test_afterwards_nothing_happens(self) -> None:
        """Whatever a transport calls late."""
        upload = Upload(b"x")
        upload.start()
        upload.producer.pauseProducing()
        upload.producer.resumeProducing()
        upload.producer.stopProducing()
        assert upload.consumer.pieces == [b"x"]
        assert upload.heard == ["sent", "done: None"]


class TestLarge:
    """What does not."""

    def test_in_slices(self) -> None:
        """To a consumer that takes everything, all at once, in order."""
        upload = Upload(BODY)
        upload.start()
        assert [len(piece) for piece in upload.consumer.pieces] == [SLICE] * 4 + [len(b"the end")]
        assert upload.consumer.taken == BODY
        assert upload.heard == ["sent", "done: None"]

    @pytest.mark.parametrize("size", [SLICE + 1, 2 * SLICE - 1, 2 * SLICE, 2 * SLICE + 1])
    def test_around_the_slices(self, size: int) -> None:
        """Nothing is lost or sent twice where they meet, and no empty piece is written."""
        upload = Upload(BODY[:size])
        upload.start()
        assert upload.consumer.taken == BODY[:size]
        assert all(upload.consumer.pieces)
        assert upload.heard == ["sent", "done: None"]

    def test_at_the_consumer_s_pace(self) -> None:
        """One that holds back after each slice is given one at a time; and that it does is told."""
        upload = Upload(BODY)
        upload.consumer.while_writing = upload.producer.pauseProducing
        upload.start()
        for taken in range(1, 5):
            assert len(upload.consumer.pieces) == taken
            assert upload.heard == ["held", "moving"] * (taken - 1) + ["held"]
            upload.producer.resumeProducing()
        # The last one was taken, and holds it back as well: it is sent when that one is.
        assert upload.consumer.taken == BODY
        assert upload.heard == ["held", "moving"] * 4 + ["held"]
        upload.producer.resumeProducing()
        assert upload.heard == ["held", "moving"] * 5 + ["sent", "done: None"]

    def test_held_back_twice(self) -> None:
        """Is held back; going on twice is going on."""
        upload = Upload(BODY)
        upload.pause_after(2)
        upload.start()
        upload.producer.pauseProducing()
        assert upload.heard == ["held"]
        assert len(upload.consumer.pieces) == 2
        upload.producer.resumeProducing()
        upload.producer.resumeProducing()
        assert upload.consumer.taken == BODY
        assert upload.heard == ["held", "moving", "sent", "done: None"]

    def test_resumed_while_it_is_not_held(self) -> None:
        """Nothing is written twice."""
        upload = Upload(BODY)
        upload.consumer.while_writing = upload.producer.resumeProducing
        upload.start()
        assert upload.consumer.taken == BODY
        assert upload.heard == ["sent", "done: None"]

    def test_paused_and_resumed_within_write(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A consumer that sends at once does so with every slice of a gigabyte: the calls do not pile up."""
        monkeypatch.setattr(module, "SLICE", 16)
        slices = 4096
        upload = Upload(bytes(16) * slices)

        def at_once() -> None:
            upload.producer.pauseProducing()
            upload.producer.resumeProducing()

        upload.consumer.while_writing = at_once
        upload.start()
        assert upload.consumer.deepest == 1
        assert len(upload.consumer.pieces) == slices
        assert upload.heard == ["held", "moving"] * slices + ["sent", "done: None"]

    @settings(deadline=None, max_examples=50)
    @given(st.integers(SLICE + 1, len(BODY)), st.lists(st.sampled_from(["pause", "resume"]), max_size=12), st.data())
    def test_whatever_the_consumer_does(self, size: int, later: list[str], data: st.DataObject) -> None:
        """Pausing and resuming in and out of `write`: all bytes, in order, never nested; the end once, and last."""
        upload = Upload(BODY[:size])
        act = {"pause": upload.producer.pauseProducing, "resume": upload.producer.resumeProducing}
        inside = st.lists(st.sampled_from(sorted(act)), max_size=4)

        def within() -> None:
            for step in data.draw(inside):
                act[step]()

        upload.consumer.while_writing = within
        upload.start()
        for step in later:
            act[step]()
        upload.consumer.while_writing = lambda: None
        for _ in range(2):
            act["pause"]()
            act["resume"]()
        assert upload.consumer.taken == BODY[:size]
        assert upload.consumer.deepest == 1
        assert upload.heard[-2:] == ["sent", "done: None"]
        assert upload.heard.count("sent") == upload.heard.count("done: None") == 1
        assert upload.heard[:-2] == ["held", "moving"] * (len(upload.heard) // 2 - 1)


class TestStop:
    """When the body is not wanted any more."""

    def test_in_the_middle(self) -> None:
        """No further byte, and neither sent nor done: the Deferred of a stopped producer never fires."""
        upload = Upload(BODY)
        upload.pause_after(2)
        upload.start()
        upload.producer.stopProducing()
        upload.producer.resumeProducing()
        upload.producer.pauseProducing()
        upload.producer.stopProducing()
        assert upload.consumer.pieces == [BODY[:SLICE], BODY[SLICE : 2 * SLICE]]
        assert upload.heard == ["held"]

    def test_within_write(self) -> None:
        """The connection is lost while it takes a slice, perhaps the last one."""
        for last in range(1, 6):
            upload = Upload(BODY)
            consumer, producer = upload.consumer, upload.producer
            consumer.while_writing = lambda end=last, c=consumer, p=producer: (  # type: ignore[misc]
                p.stopProducing() if len(c.pieces) == end else None
            )
            upload.start()
            assert len(consumer.pieces) == last
            assert upload.heard == []

    def test_while_registering(self) -> None:
        """A connection that is gone says so at once."""
        upload = Upload(BODY)

        class Gone(Consumer):
            def registerProducer(self, producer: IProducer, streaming: bool) -> None:
                producer.stopProducing()

        upload.consumer = Gone()
        upload.start()
        assert upload.consumer.pieces == []
        assert upload.heard == []

    def test_after_the_end(self) -> None:
        """Changes nothing."""
        upload = Upload(BODY)
        upload.start()
        upload.producer.stopProducing()
        assert upload.heard == ["sent", "done: None"]


class Weighed(bytearray):
    """A body of which one can tell whether somebody still holds it; `bytes` cannot be asked."""


@pytest.mark.parametrize("how", ["sent", "stopped"])
@pytest.mark.parametrize("size", [1000, len(BODY)])
def test_the_body_is_let_go(how: str, size: int) -> None:
    """Half a gigabyte does not wait in memory for the answer to end."""
    body = Weighed(BODY[:size])
    producer = BytesProducer(body, sent=lambda: None, progress=lambda moving: None)  # type: ignore[arg-type]
    held = weakref.ref(body)
    del body
    consumer = Consumer()
    # What a transport takes is bytes of its own.
    consumer.write = lambda data: None  # type: ignore[method-assign]
    if how == "stopped":
        producer.stopProducing()
    else:
        producer.startProducing(consumer)
    gc.collect()
    assert held() is None
