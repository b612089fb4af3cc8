"""A recorded request, sent again: through a connection of our own, in memory, as any client's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IProtocol, IReactorTime, ITransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ...record.exchange import Exchange, Role, StoredBody
from ...record.sql import SqlStore
from ...runtime import Drain
from ...wire import body as wire_body
from ..answers import to_json
from ..channel import ProxySite
from .app import Route
from .calls import Call, Refusal, Reply, answer_json, valid_id
from .formats import NOT_SENT_AGAIN
from .records import Records
from .requests import not_found

log = Logger()

_HOP_BY_HOP = frozenset({"expect", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "upgrade"})
_CREDENTIAL = re.compile(r"[!-~]{1,8192}", re.ASCII)
_MODEL = re.compile(r"[ -~]{1,256}", re.ASCII)


@implementer(ITransport)
class _Nowhere:
    """A transport whose other end takes everything and keeps nothing."""

    disconnecting = False

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.protocol: IProtocol | None = None

    def write(self, data: bytes) -> None:
        """It is recorded elsewhere."""

    def writeSequence(self, iovec: Any) -> None:
        """The same."""

    def loseConnection(self) -> None:
        if not self.disconnecting:
            self.disconnecting = True
            self._clock.callLater(0, self._lost)

    abortConnection = loseConnection

    def _lost(self) -> None:
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connectionLost(Failure(ConnectionDone()))

    def getPeer(self) -> IAddress:
        return IPv4Address("TCP", "127.0.0.1", 0)

    getHost = getPeer

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Nobody is ever told to wait."""

    def unregisterProducer(self) -> None:
        """The same."""

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Nothing is delayed."""


class Replay:
    """
    ``/api/requests/{id}/replay``.

    :param site: the proxy's, for such connections.
    """

    def __init__(self, records: Records, drain: Drain, clock: IReactorTime, site: Callable[[], ProxySite]) -> None:
        self._records = records
        self._drain = drain
        self._clock = clock
        self._make_site = site
        self._site: ProxySite | None = None

    def routes(self) -> Sequence[Route]:
        rule = "/api/requests/<exchange_id>/replay"
        return (Route(method="POST", rule=rule, name="replayRequest", handler=self.replay),)

    async def replay(self, call: Call, exchange_id: str) -> Reply:
        valid_id(exchange_id)
        asked = call.json()
        credentials = _credentials(asked)
        model = asked.get("model")
        if model is not None and not (isinstance(model, str) and _MODEL.fullmatch(model)):
            raise Refusal(400, "model: at most 256 printable characters of ASCII.")
        if self._drain.draining:
            raise Refusal(503, "The proxy is shutting down.", {"Retry-After": "5"})

        async def read(store: SqlStore) -> tuple[Exchange, StoredBody | None]:
            exchange = await store.get(exchange_id)
            if exchange is None:
                raise not_found(exchange_id)
            return exchange, await store.body(exchange_id, Role.REQUEST)

        exchange, body = await self._records.ask(read)
        if body is None and exchange.request_bytes:
            raise Refusal(404, f"The body of {exchange_id} is not kept, so that it cannot be sent again.")
        data = b"" if body is None else body.data
        if model is not None:
            changed = wire_body.replace_member(data, "model", to_json(model))
            if changed is None or (body is not None and body.content_encoding):
                raise Refusal(400, "model: the recorded body is not plain JSON, so that its model cannot be replaced.")
            data = changed
        sent = self._send(_head(exchange, credentials, len(data)), data)
        log.info("{request_id} is {replayed}, sent again from the dashboard", request_id=sent, replayed=exchange_id)
        return answer_json({"requestId": sent}, 202)

    def _send(self, head: bytes, data: bytes) -> str:
        """
        :return: the id of the new request.
        """
        if self._site is None:
            self._site = self._make_site()
        site: Any = self._site
        transport = _Nowhere(self._clock)
        channel: Any = site.buildProtocol(transport.getPeer())
        transport.protocol = channel
        ids: list[str] = []
        channel.requestFactory = _noting(channel.requestFactory, ids)
        channel.makeConnection(transport)
        channel.dataReceived(head)
        if data and not transport.disconnecting:
            channel.dataReceived(data)
        if not ids:
            raise Refusal(503, "The proxy did not take the request. Try again.", {"Retry-After": "1"})
        return ids[0]


def _noting(factory: Callable[..., Any], ids: list[str]) -> Callable[..., Any]:
    """A factory of requests that notes their ids."""

    def make(*arguments: Any) -> Any:
        request = factory(*arguments)
        ids.append(request.request_id)
        return request

    return make


def _credentials(asked: dict[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, field, before in (("apiKey", "x-api-key", ""), ("bearer", "authorization", "Bearer ")):
        value = asked.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not _CREDENTIAL.fullmatch(value):
            raise Refusal(400, f"{name}: printable characters of ASCII, without blanks.")
        found.append((field, before + value))
    return found


def _head(exchange: Exchange, credentials: list[tuple[str, str]], length: int) -> bytes:
    if exchange.query is not None and "***" in exchange.query:
        raise Refusal(400, "The request's query held what is not kept, so that it cannot be sent again.")
    target = exchange.path if not exchange.query else f"{exchange.path}?{exchange.query}"
    fields = [("host", "localhost")]
    fields += [
        (name, value)
        for name, value in exchange.request_headers
        if name not in NOT_SENT_AGAIN and name not in _HOP_BY_HOP
    ]
    fields += credentials
    if length or exchange.method not in ("GET", "HEAD"):
        fields.append(("content-length", str(length)))
    fields.append(("connection", "close"))
    lines = [f"{exchange.method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in fields], "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace")
