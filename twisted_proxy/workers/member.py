"""What a worker knows of the others: `Siblings`, over the pipes to the supervisor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

from ..siblings import Answerer, Answers, Hearer
from . import control

log = Logger()


class Member(Int32StringReceiver):
    """
    The worker's end of the pipes.

    :param started: takes the first message. :param drain: whether there is a lame duck to be. :param ended: the
        supervisor is gone.
    """

    MAX_LENGTH = control.MAX_MESSAGE

    def __init__(
        self,
        *,
        started: Callable[[control.Start], None],
        drain: Callable[[bool], None],
        hurry: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self._started = started
        self._drain = drain
        self._hurry = hurry
        self._ended = ended
        self._open = False
        self._answers = Answers()
        self._hearers: dict[str, list[Hearer]] = {}
        self._asked: dict[int, tuple[Deferred[list[Any]], str, Any]] = {}
        self._asked_so_far = 0
        self.place: int | None = None
        self.size = 1
        self.secret = ""

    # As a protocol

    def connectionMade(self) -> None:
        self._open = True

    def stringReceived(self, string: bytes) -> None:
        try:
            message = control.to_worker(string)
        except msgspec.MsgspecError as problem:
            # Without the message: it may hold the configuration.
            log.warn("a message of {size} bytes was not understood: {problem}", size=len(string), problem=problem)
            return
        match message:
            case control.Start():
                self.place, self.size, self.secret = message.place, message.size, message.secret
                self._started(message)
            case control.Drain():
                self._drain(message.lame_duck)
            case control.Hurry():
                self._hurry()
            case control.Question():
                self._send(control.Answer(message.number, self._answers.find(message.question, message.argument)))
            case control.Answered():
                asked = self._asked.pop(message.number, None)
                if asked is not None:
                    answered, question, argument = asked
                    # Nobody in time: then at least this one, who has the time now.
                    answered.callback(message.answers or self._answers.find(question, argument))
            case control.Told():
                for hearer in self._hearers.get(message.topic, ()):
                    try:
                        hearer(message.sender, message.message)
                    except Exception:  # noqa: BLE001 - the next message has nothing to do with it
                        log.failure("hearing of {topic} failed", topic=message.topic)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._open = False
        asked, self._asked = self._asked, {}
        for answered, question, argument in asked.values():
            answered.callback(self._answers.find(question, argument))
        self._ended()

    def ready(self) -> None:
        """Tell the supervisor that this worker serves."""
        self._send(control.Ready())

    def _send(self, message: control.FromWorker) -> None:
        if self._open:
            self.sendString(control.encode(message))

    # As `Siblings`

    def ask(self, question: str, argument: Any = None) -> Deferred[list[Any]]:
        answered: Deferred[list[Any]] = Deferred()
        if not self._open:
            answered.callback(self._answers.find(question, argument))
            return answered
        self._asked_so_far += 1
        self._asked[self._asked_so_far] = (answered, question, argument)
        self._send(control.Ask(self._asked_so_far, question, argument))
        return answered

    def answer(self, question: str, by: Answerer) -> None:
        self._answers.add(question, by)

    def tell(self, topic: str, message: Any, to: int | None = None) -> None:
        self._send(control.Tell(topic, message, to))

    def hear(self, topic: str, by: Hearer) -> None:
        self._hearers.setdefault(topic, []).append(by)
