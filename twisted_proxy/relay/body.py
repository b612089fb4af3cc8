"""Request bodies on their way up."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

SLICE = 256 * 1024
"""A larger body goes up in slices of so many bytes, as the upstream takes them."""


@implementer(IBodyProducer, IPushProducer)
class BytesProducer:
    """
    A body that is in memory.

    :param begun: called when a connection is there and its first byte is about to go.
    :param sent: called when the last byte was handed to the transport.
    :param progress: called with ``False`` when the upstream stops taking bytes, and with ``True`` when it goes on.
    """

    def __init__(
        self,
        body: bytes,
        *,
        begun: Callable[[], None] = lambda: None,
        sent: Callable[[], None],
        progress: Callable[[bool], None],
    ) -> None:
        self.length = len(body)
        self._body = body
        self._position = 0
        self._begun = begun
        self._sent = sent
        self._progress = progress
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] | None = None
        self._held = False
        self._producing = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._begun()
        if self.length <= SLICE:
            consumer.write(self._body)
            self._body = b""
            self._sent()
            return succeed(None)
        self._consumer = consumer
        self._done = Deferred()
        done = self._done
        consumer.registerProducer(self, True)
        self._produce()
        return done

    def _produce(self) -> None:
        if self._producing:
            # Resumed from within `write`: the loop further up the stack goes on.
            return
        self._producing = True
        try:
            while self._consumer is not None and not self._held:
                piece = self._body[self._position : self._position + SLICE]
                if not piece:
                    self._finish()
                    return
                self._position += len(piece)
                self._consumer.write(piece)
        finally:
            self._producing = False

    def _finish(self) -> None:
        done, self._done = self._done, None
        self._release()
        self._sent()
        assert done is not None
        done.callback(None)

    def _release(self) -> None:
        self._consumer = None
        self._body = b""

    def pauseProducing(self) -> None:
        if not self._held and self._consumer is not None:
            self._held = True
            self._progress(False)

    def resumeProducing(self) -> None:
        if self._held and self._consumer is not None:
            self._held = False
            self._progress(True)
            self._produce()

    def stopProducing(self) -> None:
        """The body is not wanted any more; the Deferred does not fire (`IBodyProducer`)."""
        self._done = None
        self._release()
