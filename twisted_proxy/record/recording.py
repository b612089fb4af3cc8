"""What the proxy's own process does to keep what passes: choose what may be kept, and hand it to the journal."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.web.http_headers import Headers

from ..fields import fields_of
from ..runtime import ReceivedRequest
from ..wire import headers, target
from ..wire.body import Summary
from .digest import read_answer
from .entries import Closed, Opened
from .excerpt import Excerpt
from .exchange import Role
from .journal import Tap

log = Logger()

KEY_BYTES = 32
CREDENTIAL_BYTES = 10


class _Value(Protocol):
    @property
    def value(self) -> str: ...


class Passing(ReceivedRequest, Protocol):
    """
    What a recording asks about a request: `relay.flight.Flight` knows it.

    Times are of the reactor's clock, in seconds.
    """

    @property
    def query(self) -> bytes | None: ...
    @property
    def body_bytes(self) -> int: ...
    @property
    def sent_bytes(self) -> int: ...
    @property
    def status(self) -> int | None: ...
    @property
    def first_byte_at(self) -> float | None: ...
    @property
    def verdict(self) -> _Value | None: ...
    @property
    def demoted(self) -> bool: ...
    @property
    def error(self) -> tuple[str, str] | None: ...
    @property
    def summary(self) -> Summary | None: ...


class Recording:
    """
    Begins to record requests.

    :param journal: opens a tap into the journal.
    :param bodies: whether bodies are kept, where their path allows it.
    :param key: of the hashes that stand for credentials.
    :param wall_clock: seconds since the Unix epoch.
    """

    def __init__(
        self,
        journal: Callable[[str, Opened], Tap],
        *,
        bodies: bool,
        key: bytes,
        wall_clock: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._bodies = bodies
        self._key = key
        self._wall_clock = wall_clock

    def begin(self, passing: Passing, fields: Headers, peer: IAddress) -> ExchangeTap:
        """Record a request from now on, when its header block is in."""
        path = passing.path.encode("ascii")
        keeps = target.keeps_bodies(path)
        pairs = list(fields_of(fields))
        tap = self._journal(
            passing.request_id,
            Opened(
                received_at=int(self._wall_clock() * 1e6),
                method=passing.method,
                path=passing.path,
                query=target.loggable_query(passing.query) or None,
                client=getattr(peer, "host", None),
                request_headers=headers.recorded_request(pairs),
                credential=self._name_credential(pairs),
                keep="full" if self._bodies and keeps else "metadata",
            ),
        )
        if not keeps:
            return ExchangeTap(tap, passing.received_at)
        return FullTap(tap, passing.received_at) if self._bodies else ExcerptTap(tap, passing.received_at)

    def _name_credential(self, fields: Iterable[tuple[bytes, bytes]]) -> str | None:
        credential = headers.credential_of(fields)
        if credential is None:
            return None
        return hashlib.blake2b(credential, key=self._key, digest_size=CREDENTIAL_BYTES).hexdigest()


class ExchangeTap:
    """Records when and how, and nothing of what is said (`relay.flight.Tap`). Base of those that record more."""

    def __init__(self, tap: Tap, received_at: float) -> None:
        self._tap = tap
        self._received_at = received_at

    def asked(self, data: bytes) -> None:
        """Not kept."""

    def read(self, now: float) -> None:
        self._tap.note(body_read_us=self._us(now))

    def forwarded(self, data: bytes) -> None:
        """Not kept."""

    def routed(self, provider: str, model: str | None) -> None:
        self._tap.note(provider=provider, routed_model=model)

    def connected(self, now: float) -> None:
        self._tap.note(connected_us=self._us(now))

    def head(self, status: int, fields: Headers, now: float) -> None:
        self._tap.note(
            status=status,
            headers_us=self._us(now),
            response_headers=headers.recorded_response(fields_of(fields)),
        )

    def received(self, data: bytes, now: float) -> None:
        """Not kept."""

    def answered(self, data: bytes, now: float) -> None:
        """Not kept."""

    def closed(self, passing: Passing, now: float) -> None:
        self._tap.note(demoted=passing.demoted)
        first = passing.first_byte_at
        error_type, error_message = passing.error or (None, None)
        self._tap.close(
            Closed(
                verdict="failed" if passing.verdict is None else passing.verdict.value,
                status=passing.status,
                first_event_us=None if first is None else self._us(first),
                last_byte_us=self._us(now),
                request_bytes=passing.body_bytes,
                response_bytes=passing.sent_bytes,
                error_type=error_type,
                error_message=error_message,
            )
        )

    def _us(self, now: float) -> int:
        return int((now - self._received_at) * 1e6)


class FullTap(ExchangeTap):
    """Records all of it."""

    def asked(self, data: bytes) -> None:
        self._tap.bulk(Role.REQUEST, data)

    def forwarded(self, data: bytes) -> None:
        self._tap.bulk(Role.FORWARDED, data)

    def received(self, data: bytes, now: float) -> None:
        self._tap.marked(Role.RECEIVED, data, self._us(now))

    def answered(self, data: bytes, now: float) -> None:
        # The hot path: what `_us` does, without the call.
        self._tap.marked(Role.ANSWER, data, int((now - self._received_at) * 1e6))


class ExcerptTap(ExchangeTap):
    """Records what the request asked for and what the answer cost, without a byte of either outside memory."""

    def __init__(self, tap: Tap, received_at: float) -> None:
        super().__init__(tap, received_at)
        self._excerpt = Excerpt(event_stream=False)
        self._content_type: str | None = None
        self._folded = False

    def head(self, status: int, fields: Headers, now: float) -> None:
        super().head(status, fields, now)
        content_type = fields.getRawHeaders(b"Content-Type", [b""])[0]
        self._content_type = content_type.decode("latin-1")
        self._excerpt = Excerpt(event_stream=headers.is_event_stream(content_type))

    def received(self, data: bytes, now: float) -> None:
        self._folded = True
        self._excerpt.append(data)

    def answered(self, data: bytes, now: float) -> None:
        if not self._folded:
            self._excerpt.append(data)

    def closed(self, passing: Passing, now: float) -> None:
        summary = passing.summary
        if summary is not None and summary.well_formed:
            self._tap.note(model=summary.model, stream=summary.stream)
        told = read_answer(self._excerpt.read(), self._content_type, passing.status, passing.path)
        self._tap.note(
            message_id=told.message_id,
            stop_reason=told.stop_reason,
            usage=told.usage,
            input_tokens=told.input_tokens,
            output_tokens=told.output_tokens,
            cache_read_tokens=told.cache_read_tokens,
            cache_write_5m_tokens=told.cache_write_5m_tokens,
            cache_write_1h_tokens=told.cache_write_1h_tokens,
            cost_is_partial=told.usage is not None and not told.complete,
            error_type=told.error_type,
        )
        super().closed(passing, now)


def read_key(directory: Path) -> bytes:
    """
    The key of the hashes that stand for credentials, made at its first use.

    Where the directory cannot be written to, or what is there is no key, one for this process only; it is logged that
    nobody can be told apart beyond it.
    """
    path = directory / "credential-key"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            _make_key(path)
            key = path.read_bytes()
        if len(key) != KEY_BYTES:
            raise OSError(f"it has {len(key)} bytes instead of {KEY_BYTES}; delete it, and another one is made")
        return key
    except OSError as problem:
        log.warn(
            "no key for the hashes that stand for credentials in {path}: {problem}; "
            "this process uses one of its own (CREDENTIAL_KEY sets one)",
            path=str(path),
            problem=str(problem),
        )
        return secrets.token_bytes(KEY_BYTES)


def _make_key(path: Path) -> None:
    """
    Make a key, unless somebody else does so first: that one is everybody's. Nobody reads half of one.

    :raises OSError: it cannot be made; nothing is left of it.
    """
    made = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            os.write(descriptor, secrets.token_bytes(KEY_BYTES))
            # Before it has its name: a host that loses power must not leave an empty key behind.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()
