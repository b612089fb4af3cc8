"""Demotion's way down: the message that an event stream tells, as one JSON answer."""

from __future__ import annotations

from twisted.internet.protocol import Protocol
from twisted.internet.task import LoopingCall
from twisted.web.iweb import IResponse

from ..relay.demotion import Demotion
from ..relay.flight import Verdict
from ..relay.translation import StreamTranslator, Translated
from ..wire.message import ErrorEvent, MessageFold
from .passage import Passage
from .relaying import require_plain

_OF_A_STREAM = (b"Cache-Control", b"Content-Encoding", b"Content-Length", b"X-Accel-Buffering")
"""What upstreams say of event streams, beside their type."""


async def fold(passage: Passage, response: IResponse, translator: StreamTranslator | None = None) -> None:
    """
    Answer with the message that an event stream tells, or with the status of its ``error`` event.

    :param translator: makes Anthropic's events of the response's.
    :raises UpstreamError: there is none.
    :raises CancelledError: when cancelled; the upstream's connection is closed.
    """
    require_plain(response)
    fields = passage.copy_head(response)
    for name in _OF_A_STREAM:
        fields.removeHeader(name)
    fields.setRawHeaders(b"Content-Type", [b"application/json"])
    tap = passage.flight.tap
    folding = Demotion(
        passage.clock,
        MessageFold(max_bytes=passage.config.max_response_bytes),
        silence=passage.upstream.provider.idle_timeout,
        tap=tap if translator is None else None,
    )
    taking: Protocol = folding if translator is None else Translated(passage.clock, translator, folding, tap)
    heartbeat = LoopingCall(passage.write, b" ")
    heartbeat.clock = passage.clock
    if passage.config.demote_heartbeat:
        # The status is out with the first one: what goes wrong from then on can only be a visible cut.
        heartbeat.start(passage.config.demote_heartbeat, now=False)
    response.deliverBody(taking)
    try:
        outcome = await folding.outcome
    finally:
        if heartbeat.running:
            heartbeat.stop()
    if not isinstance(outcome, ErrorEvent):
        passage.answer(outcome.message)
        return
    passage.log_forward_error(outcome.error_type, status=outcome.status)
    if passage.request.startedWriting:
        passage.answer_error(Verdict.FAILED, outcome.status, outcome.error_type, outcome.message)
    else:
        passage.request.setResponseCode(outcome.status)
        passage.answer(outcome.body)
