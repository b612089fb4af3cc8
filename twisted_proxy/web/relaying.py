"""A response on its way down: as it is, or event for event in another API's terms."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from ..relay.flight import Verdict
from ..relay.streaming import Relay, stop_body
from ..relay.translation import StreamTranslator, Translated
from ..relay.upstream import FailureKind, UpstreamError
from ..wire import headers
from .passage import Passage

_OF_THE_BODY = (b"Content-Encoding", b"Content-Length")


def is_event_stream(response: IResponse) -> bool:
    """Whether the body of a response is server-sent events."""
    return headers.is_event_stream(response.headers.getRawHeaders(b"Content-Type", [b""])[0])


def require_plain(response: IResponse) -> None:
    """
    Stop a response whose body is encoded, although it was asked for as it is.

    :raises UpstreamError: it is.
    """
    encoding = b",".join(response.headers.getRawHeaders(b"Content-Encoding", ())).strip().lower()
    if encoding not in (b"", b"identity"):
        stop_body(response)
        raise UpstreamError(
            FailureKind.ENCODED,
            f"The upstream encoded its answer ({encoding.decode('ascii', 'replace')[:64]}), "
            "although it was asked for identity: it cannot be read.",
        )


async def relay(passage: Passage, response: IResponse, translator: StreamTranslator | None = None) -> None:
    """Pass a response on as it comes, to its end or to a visible cut."""
    try:
        relaying = _begin(passage, response, translator)
    except Exception:
        # Nobody takes the body: its connection would stay, paused, for ever.
        stop_body(response)
        raise
    try:
        verdict = await relaying.verdict
    except CancelledError:
        relaying.stopProducing()
        verdict = Verdict.CLIENT_GONE
    if verdict in (Verdict.TRUNCATED, Verdict.SILENT):
        passage.log_incomplete(verdict, response.code)


def _begin(passage: Passage, response: IResponse, translator: StreamTranslator | None) -> Relay:
    """Set the head of the answer, and let its body flow."""
    event_stream = is_event_stream(response)
    framed = response.length is not UNKNOWN_LENGTH or response.headers.hasHeader(b"Transfer-Encoding")
    fields = passage.copy_head(response)
    if translator is not None:
        for name in _OF_THE_BODY:
            fields.removeHeader(name)
    relaying = Relay(
        passage.clock,
        passage.request,
        passage.flight,
        silence=passage.upstream.provider.idle_timeout,
        stall=passage.config.write_timeout,
        event_stream=event_stream,
        # A translator knows the end of what it reads.
        framed=framed or translator is not None,
        farewell=passage.farewell,
    )
    passage.flight.on_cut = relaying.kill
    # The head goes out with the bytes that came with it, and does not wait for later ones: `Relay.read_ended`.
    passage.request.write(b"")
    if translator is None:
        response.deliverBody(relaying)
    else:
        response.deliverBody(Translated(passage.clock, translator, relaying, passage.flight.tap))
    return relaying
