"""Recorded requests: lists, one of them, its bodies."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from ...record import coding
from ...record.exchange import Role, StoredBody
from ...record.sql import SqlStore
from ...record.store import Query
from . import shapes
from .app import Route
from .calls import Call, Refusal, Reply, answer_json, fit, valid_id
from .events import Timed, read_events
from .records import Records

MOST_COUNTED = 100_000
MOST_SKIPPED = 100_000
"""Requests before a page that is asked for by its number."""
MOST_FOLLOWERS = 100
MOST_MODELS = 100
"""Models that a part of a name may stand for."""
MOST_EVENTS = 5000

SANDBOX = "sandbox; default-src 'none'"
"""Of bodies, which may say anything: nobody's browser is to do what they say."""

_INLINE = ("application/json", "text/event-stream", "text/plain", "application/x-ndjson")


def not_found(exchange_id: str) -> Refusal:
    return Refusal(404, f"There is no record of {exchange_id}: not yet, not here, or it is kept no longer.")


class Requests:
    """``/api/requests``."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def routes(self) -> Sequence[Route]:
        one = "/api/requests/<exchange_id>"
        return (
            Route(method="GET", rule="/api/requests", name="listRequests", handler=self.page),
            Route(method="DELETE", rule="/api/requests", name="deleteRequests", handler=self.delete_all),
            Route(method="GET", rule=one, name="getRequest", handler=self.one),
            Route(method="GET", rule=f"{one}/request-body", name="getRequestBody", handler=self.request_body),
            Route(method="GET", rule=f"{one}/response-body", name="getResponseBody", handler=self.response_body),
            Route(method="GET", rule=f"{one}/message", name="getMessage", handler=self.message),
            Route(method="GET", rule=f"{one}/events", name="listEvents", handler=self.events),
        )

    async def page(self, call: Call) -> Reply:
        limit = call.limit()
        cursor = call.cursor()
        number = call.integer("page", least=1, most=10**9) or 1
        if cursor is not None:
            valid_id(cursor)
        skip = 0 if cursor is not None else (number - 1) * limit
        if skip > MOST_SKIPPED:
            raise Refusal(400, f"page: there is none behind the first {MOST_SKIPPED} requests; go on by cursor.")
        text = call.text("q", most=500)
        model = call.text("model", most=256)
        query = Query(
            text=text,
            since=call.time("since"),
            until=call.time("until"),
            session=call.text("session", most=256),
            agent=call.text("agent", most=256),
            conversation=call.text("conversation", most=256),
            request_class=call.text("requestClass", most=256),
            status=call.integer("status", least=100, most=999),
            verdict=call.text("verdict", most=64),
            in_flight=call.truth("inFlight"),
            path=call.text("endpoint", most=512),
            cost_at_least=call.integer("costAtLeast", least=0, most=10**18 - 1),
            cost_at_most=call.integer("costAtMost", least=0, most=10**18 - 1),
        )

        async def read(store: SqlStore) -> Reply:
            wanted = query
            if model is not None and model.lower() != "all":
                wanted = await _with_models(store, query, model)
            page = await store.page(wanted, limit=limit, before=cursor, skip=skip)
            items, cut_short = fit(page.exchanges, shapes.summary)
            if text is not None:
                for item in items:
                    item["snippet"] = await store.snippet(item["requestId"], text)
            following = items[-1]["requestId"] if cut_short or page.more else None
            value: dict[str, object] = {"requests": items, "nextCursor": following}
            if cursor is None:
                value["total"] = total = await store.count(wanted, at_most=MOST_COUNTED)
                value["totalIsAtLeast"] = total == MOST_COUNTED
            return answer_json(value)

        return await self._records.ask(read)

    async def delete_all(self, call: Call) -> Reply:
        deleted = await self._records.ask(lambda store: store.delete_all())
        return answer_json({"message": "Request history cleared", "deleted": deleted})

    async def one(self, call: Call, exchange_id: str) -> Reply:
        valid_id(exchange_id)

        async def read(store: SqlStore) -> Reply:
            exchange = await store.get(exchange_id)
            if exchange is None:
                raise not_found(exchange_id)
            sizes = await store.aggregates.sizes(exchange_id)
            followers = await store.followers(exchange_id)
            return answer_json(
                shapes.detail(exchange)
                | {
                    "bodies": [
                        {
                            "role": each.role.value,
                            "size": each.size,
                            "contentType": each.content_type,
                            "contentEncoding": each.content_encoding,
                        }
                        for each in sizes
                    ],
                    "followers": [turn.id for turn in followers[:MOST_FOLLOWERS]],
                }
            )

        return await self._records.ask(read)

    # Bodies

    async def request_body(self, call: Call, exchange_id: str) -> Reply:
        return await self._body(call, exchange_id, client=Role.REQUEST, upstream=Role.FORWARDED)

    async def response_body(self, call: Call, exchange_id: str) -> Reply:
        return await self._body(call, exchange_id, client=Role.ANSWER, upstream=Role.RECEIVED)

    async def _body(self, call: Call, exchange_id: str, *, client: Role, upstream: Role) -> Reply:
        wanted = upstream if call.choice("of", ("client", "upstream")) == "upstream" else client
        valid_id(exchange_id)
        body = await self._records.ask(lambda store: store.body(exchange_id, wanted))
        if body is None and wanted is upstream:
            # What went up, or came down, is what the client sent, or got.
            body = await self._records.ask(lambda store: store.body(exchange_id, client))
        if body is None:
            raise Refusal(404, f"No such body of {exchange_id} is kept (RECORD, RETENTION_BODIES), or there was none.")
        return _bytes_of(body, f"{exchange_id}-{wanted.value}")

    async def message(self, call: Call, exchange_id: str) -> Reply:
        valid_id(exchange_id)

        async def read(store: SqlStore) -> Reply:
            body = await store.body(exchange_id, Role.MESSAGE)
            if body is None:
                body = await store.body(exchange_id, Role.ANSWER)
                if body is None or not (body.content_type or "").lower().startswith("application/json"):
                    raise Refusal(404, f"The answer to {exchange_id} is not kept, or is no message.")
            decoded = await store.compute(coding.decode, body.data, body.content_encoding)
            if not decoded.data.lstrip().startswith(b"{"):
                raise Refusal(404, f"The answer to {exchange_id} is no message.")
            return Reply(body=decoded.data, fields={"Content-Security-Policy": SANDBOX})

        return await self._records.ask(read)

    async def events(self, call: Call, exchange_id: str) -> Reply:
        valid_id(exchange_id)
        limit = min(call.integer("limit", least=1, most=10**9) or 2000, MOST_EVENTS)
        cursor = call.cursor()
        if cursor is not None and (not cursor.isascii() or not cursor.isdigit() or len(cursor) > 12):
            raise Refusal(400, "cursor: this is none of this list.")
        start = int(cursor or 0)

        async def read(store: SqlStore) -> Reply:
            of, body = "client", await store.body(exchange_id, Role.ANSWER)
            if not _is_stream(body):
                of, body = "upstream", await store.body(exchange_id, Role.RECEIVED)
            if body is None or not _is_stream(body):
                raise Refusal(404, f"The answer to {exchange_id} is not kept, or was no stream.")
            found = await store.compute(read_events, body)
            items, more = fit(found[start:], _event, most=limit)
            following = str(start + len(items)) if more else None
            return answer_json({"of": of, "total": len(found), "events": items, "nextCursor": following})

        return await self._records.ask(read)


async def _with_models(store: SqlStore, query: Query, part: str) -> Query:
    """Names of models are few: those that have a part are found first."""
    folded = part.lower()
    names = [name for name in await store.aggregates.models() if folded in name.lower()]
    return attrs.evolve(query, models=tuple(names[:MOST_MODELS]))


def _is_stream(body: StoredBody | None) -> bool:
    return body is not None and (body.content_type or "").lower().startswith("text/event-stream")


def _event(event: Timed) -> dict[str, object]:
    return {
        "us": event.us,
        "event": event.name,
        "detail": event.detail,
        "index": event.index,
        "offset": event.offset,
        "length": event.length,
    }


def _bytes_of(body: StoredBody, name: str) -> Reply:
    content_type = body.content_type or "application/octet-stream"
    fields = {"Content-Security-Policy": SANDBOX}
    if not content_type.lower().startswith(_INLINE):
        fields["Content-Disposition"] = f'attachment; filename="{name}"'
    if body.content_encoding:
        fields["Content-Encoding"] = body.content_encoding
    return Reply(body=body.data, content_type=content_type, fields=fields)
