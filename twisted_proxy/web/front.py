"""What the HTTP face knows of the proxy that it belongs to, and what is forwarded."""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import attrs
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.web.http_headers import Headers

from ..config import Config
from ..relay.flight import Flight, Tap, Verdict
from ..runtime import Drain, Gauge
from ..wire import ids, target
from .credentials import sent_credential
from .limits import BodyMemory, CredentialLimits, Refusal

MAX_PAGE_BODY_BYTES = 1024 * 1024
"""Body of a request that is for us, not for an upstream."""

PROXIED_ROOTS = frozenset({b"/v1", b"/api"})
MESSAGE_PATHS = frozenset({b"/v1/messages", b"/v1/messages/count_tokens"})


OWN_API = frozenset(
    {
        b"cache-breaks",
        b"conversations",
        b"in-flight",
        b"live",
        b"login",
        b"logout",
        b"requests",
        b"sessions",
        b"usage",
        b"viewer",
    }
)
"""What below ``/api`` is the dashboard's. Everything else there is Anthropic's."""


def is_own_api(local: target.Target) -> bool:
    """Whether a target is the dashboard's API, also where none is served: what is said to it goes nowhere else."""
    if local.root != b"/api":
        return False
    segment = local.path.split(b"/", 3)[2] if local.path.count(b"/") > 1 else b""
    return unquote_to_bytes(segment) in OWN_API


def is_proxied(local: target.Target) -> bool:
    """Whether a target is forwarded: all below ``/v1``, and of ``/api`` what is not ours."""
    return local.root in PROXIED_ROOTS and not is_own_api(local)


def no_record(flight: Flight, fields: Headers, peer: IAddress) -> None:
    """Nothing is recorded."""


def no_count(flight: Flight, now: float) -> None:
    """Nothing is counted."""


def _nothing_to_cut(reason: str, verdict: Verdict) -> None:
    """It is over."""


@attrs.frozen(kw_only=True)
class Front:
    """What connections need to know of the proxy that they belong to."""

    config: Config
    clock: IReactorTime
    gauge: Gauge
    drain: Drain
    wall_clock: Callable[[], float]
    """Seconds since the Unix epoch."""
    record: Callable[[Flight, Headers, IAddress], Tap | None] = no_record
    """Begins to record a request below ``/v1`` whose header block is in: its fields, and who sent it."""
    forwards: Callable[[target.Target], bool] = is_proxied
    """Whether a target is for an upstream."""
    count: Callable[[Flight, float], None] = no_count
    """Counts a request that is over, for the metrics. The time is of the reactor's clock, in seconds."""
    bodies: BodyMemory = attrs.field(
        init=False, default=attrs.Factory(lambda self: BodyMemory(self.config.max_bodies_bytes), takes_self=True)
    )
    limits: CredentialLimits = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda self: CredentialLimits(
                self.config.limit_concurrent, self.config.limit_requests_per_minute, self.clock.seconds
            ),
            takes_self=True,
        ),
    )

    def new_request_id(self) -> str:
        return ids.request_id(int(self.wall_clock() * 1000), os.urandom(10))

    def new_flight(
        self,
        method: bytes,
        local: target.Target,
        request_id: str,
        fields: Headers,
        peer: IAddress,
        on_cut: Callable[[str, Verdict], None],
    ) -> Flight:
        """A flight of now, counted, and recorded where it is to be."""
        flight = Flight(
            request_id=request_id,
            method=method.decode("ascii", "replace"),
            path=local.path.decode("ascii"),
            query=local.query,
            received_at=self.clock.seconds(),
            on_cut=on_cut,
        )
        if local.root == b"/v1":
            flight.tap = self.record(flight, fields, peer)
        self.gauge.enter(flight)
        return flight

    def limit(self, flight: Flight, fields: Headers) -> Refusal | None:
        """Count a flight towards the limits of its credential; or say why it is refused."""
        if not self.limits.active:
            return None
        entered = self.limits.enter(sent_credential(fields))
        if isinstance(entered, Refusal):
            return entered
        flight.leave = entered
        return None

    def close(self, flight: Flight, verdict: Verdict) -> None:
        """
        Log a flight that is over, and count it no longer, which may end the drain.

        :param verdict: where nobody has found one.
        """
        flight.verdict = flight.verdict or verdict
        now = self.clock.seconds()
        try:
            flight.log_access(now)
            self.count(flight, now)
            if flight.tap is not None:
                flight.tap.closed(flight, now)
        finally:
            flight.readable = None
            # Both know the flight: only the garbage collector would find them.
            flight.tap = None
            flight.on_cut = _nothing_to_cut
            flight.body_gone()
            flight.leave()
            self.gauge.leave(flight)

    def body_limit(self, local: target.Target | None) -> int:
        """How many bytes the body of a request for this target may have."""
        if local is None or not self.forwards(local):
            return MAX_PAGE_BODY_BYTES
        if local.path in MESSAGE_PATHS:
            return self.config.max_message_bytes
        return self.config.max_body_bytes
