"""One request below the proxied paths, as the gauge, the log and the drain know it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final, Protocol

import attrs
from twisted.web.http_headers import Headers

from .. import logs
from ..wire.body import Summary, peek
from ..wire.target import loggable_query


class Verdict(enum.Enum):
    """How a request ended. Nothing else decides what the client, the log, the record and the gauge are told."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    """The upstream's answer was cut short."""
    SILENT = "silent"
    """The upstream sent nothing for the idle timeout, in the middle of its answer."""
    CLIENT_GONE = "client_gone"
    CLIENT_STALLED = "client_stalled"
    """The client took nothing for the write timeout."""
    DRAINED = "drained"
    """Cut when the drain came to its end."""
    CUT = "cut"
    """Cut by somebody at the dashboard."""
    FAILED = "failed"
    """No answer came; the client got an error of ours."""
    REFUSED = "refused"
    """Not forwarded: the request was one that we do not accept."""


TOLD_WHEN_CUT: Final = {Verdict.DRAINED: (529, "overloaded_error"), Verdict.CUT: (500, "api_error")}
"""What the client of a request that is cut is told: a status, if there is one to choose yet, and a type of error."""


class Tap(Protocol):
    """
    Is handed what passes of one request, in order, and only puts it aside: nothing here may fail, wait or take long.

    Times are of the reactor's clock, in seconds.
    """

    def asked(self, data: bytes) -> None:
        """The client sent this of the request's body."""

    def read(self, now: float) -> None:
        """The request's body is here whole."""

    def forwarded(self, data: bytes) -> None:
        """The upstream is sent this as the request's body, which is not the client's."""

    def routed(self, provider: str, model: str | None) -> None:
        """The name of the provider that is asked, and of the model, if that is not the client's."""

    def connected(self, now: float) -> None:
        """The request begins to go upstream."""

    def head(self, status: int, fields: Headers, now: float) -> None:
        """The upstream's status and fields, as they came."""

    def received(self, data: bytes, now: float) -> None:
        """The upstream sent this of the answer's body, and the client gets something else."""

    def answered(self, data: bytes, now: float) -> None:
        """The client is sent this of the answer's body."""

    def closed(self, flight: Flight, now: float) -> None:
        """It is over. The last call."""


def _nothing() -> None:
    """Nothing is to be let go."""


@attrs.define(eq=False, kw_only=True)
class Flight:
    """
    A request in flight (`runtime.InFlightRequest`), filled in as it goes on.

    Times are of the reactor's clock, in seconds.

    :ivar query: as it came; it may hold secrets.
    :ivar readable: the request's body, as long as somebody may ask what it says, and where it can be read.
    :ivar body_bytes: of the request, as far as they came.
    :ivar sent_bytes: of the answer's body, as far as they were written.
    :ivar failure: why the upstream gave no answer, as `FailureKind` names it.
    :ivar on_cut: ends the answer visibly, with a reason for the client and a verdict of `TOLD_WHEN_CUT`.
    :ivar tap: where what passes is recorded, if it is.
    :ivar error: type and message of the error that the client was told by us.
    :ivar body_gone: lets go what is held for the request's body. More than one call changes nothing.
    :ivar leave: is called once, when it is over.
    """

    request_id: str
    method: str
    path: str
    query: bytes | None
    received_at: float
    on_cut: Callable[[str, Verdict], None]
    readable: bytes | None = None
    demoted: bool = False
    betas: str | None = None
    body_bytes: int = 0
    status: int | None = None
    sent_bytes: int = 0
    first_byte_at: float | None = None
    verdict: Verdict | None = None
    failure: str | None = None
    provider: str | None = None
    routed_model: str | None = None
    tap: Tap | None = None
    error: tuple[str, str] | None = None
    body_gone: Callable[[], None] = _nothing
    leave: Callable[[], None] = _nothing
    _summary: Summary | None = None

    @property
    def summary(self) -> Summary | None:
        """
        What the body says, read when it is first asked for: that takes most of a millisecond a megabyte.

        ``None`` where it cannot be read, or is gone.
        """
        if self._summary is None and self.readable is not None:
            self._summary = peek(self.readable)
        return self._summary

    @property
    def model(self) -> str | None:
        return None if self.summary is None else self.summary.model

    def forget_body(self) -> None:
        """Keep what the body says, and not the body."""
        self._summary = self.summary
        self.readable = None
        self.body_gone()

    def cut(self, reason: str) -> None:
        self.on_cut(reason, Verdict.DRAINED)

    def cut_by_hand(self, reason: str) -> None:
        self.on_cut(reason, Verdict.CUT)

    def log_access(self, now: float) -> None:
        """Write the access line of a request that is over."""
        ttft = None if self.first_byte_at is None else self.first_byte_at - self.received_at
        logs.info(
            "access",
            {
                "request_id": self.request_id,
                "method": self.method,
                "path": self.path,
                "status": self.status,
                "bytes": self.sent_bytes,
                "ttft": ttft,
                "elapsed": now - self.received_at,
                "verdict": (self.verdict or Verdict.FAILED).value,
                "demoted": self.demoted,
                "body_bytes": self.body_bytes,
            },
        )

    def log_forward_error(self, now: float, *, kind: str, ctx_err: str, status: int | None) -> None:
        """Write the line that says why a request could not be forwarded, or not to its end."""
        summary = self.summary
        logs.error(
            "forward_error",
            {
                "request_id": self.request_id,
                "model": None if summary is None else summary.model,
                "stream": None if summary is None else summary.stream,
                "body_bytes": self.body_bytes,
                "has_thinking": None if summary is None else summary.has_thinking,
                "anthropic_beta": self.betas,
                "query": loggable_query(self.query),
                "elapsed": now - self.received_at,
                "ctx_err": ctx_err,
                "kind": kind,
                "status": status,
                "demoted": self.demoted,
            },
        )
