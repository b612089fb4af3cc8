"""Conversations: recorded ones, and Claude Code's transcripts beside them."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ...record import coding, digest
from ...record.aggregates import Group
from ...record.exchange import Role, StoredBody
from ...record.rows import first_number
from ...record.sql import SqlStore
from . import shapes
from .app import Route
from .calls import MOST_IN_A_LIST, Call, Refusal, Reply, answer_json, fit, show_time
from .records import Records
from .transcripts import BadCursor, TranscriptFile, Transcripts, shorten, text_of

Compute = Callable[..., Awaitable[Any]]

MOST_PAGES_DEEP = 2000
"""Conversations before a page that is asked for by its number."""
MOST_REMEMBERED = 5000
"""First messages that are kept."""
MOST_REQUESTS = 500


class Conversations:
    """
    ``/api/conversations``.

    :param compute: runs what reads files, where it blocks nobody.
    """

    def __init__(self, records: Records, transcripts: Transcripts, compute: Compute) -> None:
        self._records = records
        self._transcripts = transcripts
        self._compute = compute
        self._first_messages: OrderedDict[str, str] = OrderedDict()

    def routes(self) -> Sequence[Route]:
        base = "/api/conversations"
        return (
            Route(method="GET", rule=base, name="listConversations", handler=self.page),
            Route(method="GET", rule=f"{base}/project", name="listProjectConversations", handler=self.project),
            Route(method="GET", rule=f"{base}/<conversation>", name="getConversation", handler=self.one),
        )

    async def page(self, call: Call) -> Reply:
        limit = call.limit()
        cursor = call.cursor()
        number = call.integer("page", least=1, most=10**9) or 1
        source = call.choice("source", ("all", "recorded", "transcript")) or "all"
        session = call.text("session", most=256)
        before = None if cursor is None else number_of_cursor(cursor)
        skip = 0 if before is not None else (number - 1) * limit
        if skip > MOST_PAGES_DEEP:
            raise Refusal(400, f"page: there is none behind the first {MOST_PAGES_DEEP}; go on by cursor.")
        wanted = skip + limit + 1
        problems: list[str] = []
        found: list[tuple[int, TranscriptFile | Group]] = []
        if source != "recorded" and session is None:
            files = await self._compute(self._transcripts.files)
            problems += self._transcripts.problems
            numbered = [(first_number(file.changed_at), file) for file in files]
            found += [each for each in numbered if before is None or each[0] < before][:wanted]
        if source != "transcript":
            try:
                groups = await self._records.ask(
                    lambda store: store.aggregates.conversations(limit=wanted, before=before, session=session)
                )
                found += [(group.last, group) for group in groups]
            except Refusal as refusal:
                if source == "recorded":
                    raise
                problems.append(refusal.message)
        found.sort(key=lambda each: each[0], reverse=True)
        shown = [(at, await self._summary(each)) for at, each in found[skip : skip + limit]]
        items, cut_short = fit(shown, lambda each: each[1])
        more = cut_short or len(found) > skip + limit
        return answer_json(
            {
                "conversations": items,
                "nextCursor": str(shown[len(items) - 1][0]) if more else None,
                "problems": problems,
            }
        )

    async def _summary(self, found: TranscriptFile | Group) -> dict[str, Any]:
        if isinstance(found, TranscriptFile):
            summary: dict[str, Any] = await self._compute(self._transcripts.summary, found)
            return summary
        return {
            "id": found.key,
            "source": "recorded",
            "requestCount": found.totals.requests,
            "startTime": show_time(found.first_at),
            "lastActivity": show_time(found.last_at),
            "duration": (found.last_at - found.first_at) // 1000,
            "firstMessage": await self._first_message(found.key),
            "projectName": "",
            "session": found.session,
            "agent": found.agent,
            "model": found.models[0] if found.models else None,
            "costNanousd": found.totals.cost_nanousd,
        }

    async def _first_message(self, conversation: str) -> str:
        """Of a recorded conversation: what its first request asks."""
        known = self._first_messages.get(conversation)
        if known is not None:
            return known

        async def read(store: SqlStore) -> str:
            body = await store.body(conversation, Role.REQUEST)
            return "" if body is None else await store.compute(first_message, body)

        try:
            text = await self._records.ask(read)
        except Refusal:
            return ""  # a damaged body must not hide the others
        self._first_messages[conversation] = text
        while len(self._first_messages) > MOST_REMEMBERED:
            self._first_messages.popitem(last=False)
        return text

    async def project(self, call: Call) -> Reply:
        project = call.text("project", most=512)
        if project is None:
            raise Refusal(400, "project: the parameter is needed; GET /api/conversations has it as projectName.")

        def read() -> list[dict[str, Any]] | None:
            files = self._transcripts.find(project)
            if not files:
                return None
            found = []
            room = MOST_IN_A_LIST
            for file in files:
                try:
                    transcript = self._transcripts.transcript(file, room=max(0, room))
                except OSError:
                    continue
                # Without its messages it is small, but there may be many.
                room -= len(json.dumps(transcript))
                if room < -MOST_IN_A_LIST // 10:
                    break
                found.append(transcript)
            return found

        found = await self._compute(read)
        if found is None:
            raise Refusal(404, "There are no transcripts of this project.")
        return answer_json(found)

    async def one(self, call: Call, conversation: str) -> Reply:
        project = call.text("project", most=512)
        if project is not None:
            return await self._transcript(project, conversation, call.cursor())
        cursor = call.cursor()
        after = None if cursor is None else number_of_cursor(cursor)

        async def read(store: SqlStore) -> Reply:
            group = await store.aggregates.conversation(conversation)
            if group is None:
                raise Refusal(
                    404, "There is no such recorded conversation. A transcript needs its project, as the parameter."
                )
            members = await store.aggregates.members("conversation", conversation, limit=MOST_REQUESTS + 1, after=after)
            items, more = fit(members, lambda member: shapes.summary(member[1]), most=MOST_REQUESTS)
            return answer_json(
                {
                    "source": "recorded",
                    "id": group.key,
                    "session": group.session,
                    "requests": items,
                    "requestCount": group.totals.requests,
                    "startTime": show_time(group.first_at),
                    "endTime": show_time(group.last_at),
                    "costNanousd": group.totals.cost_nanousd,
                    "costIsPartial": bool(group.totals.partial or group.totals.unpriced),
                    "nextCursor": str(members[len(items) - 1][0]) if more else None,
                }
            )

        return await self._records.ask(read)

    async def _transcript(self, project: str, session: str, cursor: str | None) -> Reply:
        def read() -> dict[str, Any] | None:
            files = self._transcripts.find(project, session)
            return self._transcripts.transcript(files[0], cursor=cursor) if files else None

        try:
            found = await self._compute(read)
        except BadCursor:
            raise Refusal(400, "cursor: this is none of this list.") from None
        except OSError as problem:
            raise Refusal(404, f"The transcript cannot be read: {problem.strerror}.") from None
        if found is None:
            raise Refusal(404, "There is no such transcript in this project.")
        return answer_json(found)


def first_message(body: StoredBody) -> str:
    """What a request asks first, in a few words."""
    data = coding.decode(body.data, body.content_encoding).data
    for message in digest.read_request(data, body.content_type).messages[:4]:
        try:
            value = json.loads(message.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value.get("role") == "user":
            text = text_of(value)
            if text:
                return shorten(text)
    return ""


def number_of_cursor(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 19 or int(cursor) >= 2**63:
        raise Refusal(400, "cursor: this is none of this list.")
    return int(cursor)
