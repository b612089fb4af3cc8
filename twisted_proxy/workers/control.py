"""
What the supervisor and a worker tell each other: msgpack, each message behind its length (four bytes, big-endian), over
two pipes.

Never over a command line, which everybody on the host can read: the configuration holds keys and passwords.
"""

from __future__ import annotations

import pickle
from typing import Any, Final

import msgspec

from ..config import Config

FROM_SUPERVISOR: Final = 0
TO_SUPERVISOR: Final = 3
"""Descriptors of a worker."""
FIRST_SOCKET: Final = 4

MAX_MESSAGE: Final = 256 * 1024 * 1024
"""Bytes. Whoever sends more is not one of us."""


class Socket(msgspec.Struct, frozen=True):
    """
    A listening socket that a worker inherits.

    :ivar endpoint: Twisted's description of what it is. :ivar dashboard: whether it is the dashboard's own.
    """

    descriptor: int
    endpoint: str
    dashboard: bool


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """
    The first message to a worker.

    :ivar member: what the others call it. :ivar place: 0 and above; whoever replaces it gets the same.
    :ivar size: how many places there are. :ivar secret: as in `Siblings`.
    """

    config: bytes
    member: int
    place: int
    size: int
    secret: str
    sockets: tuple[Socket, ...]

    def __repr__(self) -> str:
        # Without what is configured: that holds secrets.
        return f"<start of worker {self.place}>"


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag="drain"):
    """Serve what is in flight, and exit. :ivar lame_duck: whether somebody has to see that first."""

    lame_duck: bool


class Hurry(msgspec.Struct, frozen=True, tag="hurry"):
    """Wait no longer."""


class Question(msgspec.Struct, frozen=True, tag="question"):
    """To be answered with an `Answer` of the same number."""

    number: int
    question: str
    argument: Any


class Answered(msgspec.Struct, frozen=True, tag="answered"):
    """What all of them answered to an `Ask`."""

    number: int
    answers: list[Any]


class Told(msgspec.Struct, frozen=True, tag="told"):
    """Somebody else told something."""

    sender: int
    topic: str
    message: Any


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker serves."""


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """Ask all workers, the sender, too."""

    number: int
    question: str
    argument: Any


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """
    To a `Question`.

    :ivar found: the one answer; empty where there is none.
    """

    number: int
    found: list[Any]


class Tell(msgspec.Struct, frozen=True, tag="tell"):
    """Tell one member, or all others."""

    topic: str
    message: Any
    to: int | None


ToWorker = Start | Drain | Hurry | Question | Answered | Told
FromWorker = Ready | Ask | Answer | Tell

encode = msgspec.msgpack.Encoder().encode
_decode_to = msgspec.msgpack.Decoder(ToWorker).decode
_decode_from = msgspec.msgpack.Decoder(FromWorker).decode


def framed(message: ToWorker | FromWorker) -> bytes:
    """A message as it is written."""
    data = encode(message)
    return len(data).to_bytes(4, "big") + data


def to_worker(data: bytes) -> ToWorker:
    """:raises msgspec.MsgspecError: this is none."""
    message: ToWorker = _decode_to(data)
    return message


def from_worker(data: bytes) -> FromWorker:
    """:raises msgspec.MsgspecError: this is none."""
    message: FromWorker = _decode_from(data)
    return message


def dump_config(config: Config) -> bytes:
    """A configuration for a worker, which runs the same code."""
    return pickle.dumps(config)


def load_config(data: bytes) -> Config:
    """What `dump_config` made: nobody but the supervisor can write it."""
    config = pickle.loads(data)  # noqa: S301 (see above)
    assert isinstance(config, Config)
    return config
