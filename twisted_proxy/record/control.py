"""
What the proxy's process and its recorder tell each other: one JSON object a line, over the recorder's standard input
and output.

Never over its command line, which everybody on the host can read: the settings may hold a password.
"""

from __future__ import annotations

from typing import Final

import msgspec

MAX_LINE: Final = 1024 * 1024
"""Bytes of a line."""

STORE_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Seconds, between which the store's times are counted."""
MAX_USAGES: Final = 100
"""Models whose tokens are counted one by one; those of all others together."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, tag="settings"):
    """
    The first line to a recorder.

    :ivar spool: the directory of all slots.
    :ivar instance: the process that it records for: its slot has this name.
    :ivar pid: of that process. :ivar started_at: microseconds since the Unix epoch.
    :ivar db_path: where the SQLite database is, unless there is a ``database_url``.
    :ivar orphan_grace: seconds to store what is there after that process died.
    """

    spool: str
    instance: str
    host: str
    pid: int
    started_at: int
    db_path: str
    database_url: str | None = None
    prices_file: str | None = None
    keep_bodies_seconds: float | None = None
    keep_bodies_bytes: int | None = None
    keep_metadata_seconds: float | None = None
    keep_metadata_bytes: int | None = None
    orphan_grace: float = 30.0

    def __repr__(self) -> str:
        # No URL: whoever shows this does not think of the password.
        return f"<settings of the recorder of {self.instance}>"


class Flushed(msgspec.Struct, frozen=True, tag="flushed"):
    """There is more to read."""


class Close(msgspec.Struct, frozen=True, kw_only=True, tag="close"):
    """
    Nothing more will be written: read to the end, store that, and exit.

    :ivar grace: seconds after which what is not stored stays in the spool.
    """

    grace: float


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """
    What answers of one model were, since the recorder started.

    :ivar model: that was asked upstream; ``None`` for those that are counted together.
    :ivar tokens: by kind: ``input`` (without what the cache gave or took), ``output``, ``cache_read``,
        ``cache_write_5m``, ``cache_write_1h``.
    :ivar cost_nanousd: 10⁻⁹ US dollars; without the answers that are ``unpriced``.
    :ivar unpriced: answers with tokens whose price is not known.
    :ivar events: server-sent events; of answers whose bodies are not kept, none.
    """

    provider: str | None
    model: str | None
    tokens: dict[str, int]
    cost_nanousd: int
    unpriced: int
    events: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """
    How the recorder is. Counts are since it started.

    :ivar recorded: exchanges stored that were over.
    :ivar behind_bytes: what is in the spool and not stored, at most.
    :ivar problem: why the store does not take anything, in words; ``None`` while it does.
    :ivar incomplete: exchanges stored of which something was lost.
    :ivar interrupted: exchanges whose process ended before they did.
    :ivar damaged: segments with something that could not be read.
    :ivar opened: whether the store has been reached at all.
    :ivar usage: what the answers of ``recorded`` were.
    :ivar writes: batches that the store has kept, by the time that each took: up to each of `STORE_BOUNDS`, and above.
    :ivar writes_seconds: all these times together.
    """

    recorded: int = 0
    behind_bytes: int = 0
    problem: str | None = None
    incomplete: int = 0
    interrupted: int = 0
    damaged: int = 0
    opened: bool = False
    usage: tuple[Usage, ...] = ()
    writes: tuple[int, ...] = ()
    writes_seconds: float = 0.0


class Written(msgspec.Struct, frozen=True, tag="written"):
    """Exchanges that are in the store now, or are there anew."""

    ids: tuple[str, ...]


class Logged(msgspec.Struct, frozen=True, kw_only=True, tag="logged"):
    """
    Something for the log.

    :ivar level: a name of `twisted.logger.LogLevel`.
    """

    level: str
    text: str
    traceback: str | None = None


ToRecorder = Settings | Flushed | Close
FromRecorder = Status | Written | Logged

_encode = msgspec.json.Encoder().encode
_decode_to = msgspec.json.Decoder(ToRecorder).decode
_decode_from = msgspec.json.Decoder(FromRecorder).decode


def encode(message: ToRecorder | FromRecorder) -> bytes:
    """A message as a line, without its end."""
    return _encode(message)


def to_recorder(line: bytes) -> ToRecorder:
    """:raises msgspec.MsgspecError: this is none."""
    message: ToRecorder = _decode_to(line)
    return message


def from_recorder(line: bytes) -> FromRecorder:
    """:raises msgspec.MsgspecError: this is none."""
    message: FromRecorder = _decode_from(line)
    return message
