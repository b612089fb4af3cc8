"""Sessions: what they come to, and their trees of prompts, agents and requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ...record.exchange import Exchange
from ...record.sql import SqlStore
from . import shapes
from .app import Route
from .calls import Call, Refusal, Reply, answer_json, fit, show_time
from .conversations import number_of_cursor
from .records import Records
from .transcripts import Transcripts

Json = dict[str, Any]

MOST_REQUESTS = 2000
"""In one page of a tree."""


class Sessions:
    """
    ``/api/sessions``.

    :param compute: runs what reads files, where it blocks nobody.
    """

    def __init__(self, records: Records, transcripts: Transcripts, compute: Callable[..., Awaitable[Any]]) -> None:
        self._records = records
        self._transcripts = transcripts
        self._compute = compute

    def routes(self) -> Sequence[Route]:
        return (
            Route(method="GET", rule="/api/sessions", name="listSessions", handler=self.page),
            Route(method="GET", rule="/api/sessions/<session>", name="getSession", handler=self.one),
        )

    async def page(self, call: Call) -> Reply:
        limit = call.limit()
        cursor = call.cursor()
        before = None if cursor is None else number_of_cursor(cursor)
        since, until = call.time("since"), call.time("until")
        found = await self._records.ask(
            lambda store: store.aggregates.sessions(limit=limit + 1, before=before, since=since, until=until)
        )
        projects = await self._compute(self._transcripts.projects)
        items, more = fit(found, lambda group: shapes.session_summary(group, projects.get(group.key)), most=limit)
        return answer_json({"sessions": items, "nextCursor": str(found[len(items) - 1].last) if more else None})

    async def one(self, call: Call, session: str) -> Reply:
        cursor = call.cursor()
        after = None if cursor is None else number_of_cursor(cursor)
        projects = await self._compute(self._transcripts.projects)

        async def read(store: SqlStore) -> Reply:
            group = await store.aggregates.session(session)
            if group is None:
                raise Refusal(404, "There is no record of this session.")
            members = await store.aggregates.members("session", session, limit=MOST_REQUESTS + 1, after=after)
            taken, more = fit(members, _sized, most=MOST_REQUESTS)
            return answer_json(
                {
                    "session": group.key,
                    "startTime": show_time(group.first_at),
                    "lastActivity": show_time(group.last_at),
                    "project": projects.get(session),
                    "totals": shapes.totals(group.totals),
                    "prompts": tree([member[1] for member in members[: len(taken)]]),
                    "nextCursor": str(members[len(taken) - 1][0]) if more else None,
                }
            )

        return await self._records.ask(read)


def _sized(member: tuple[int, Exchange]) -> list[object]:
    """What a member adds to a tree, at most."""
    _, exchange = member
    return [
        exchange.prompt,
        exchange.agent,
        exchange.parent_agent,
        exchange.agent_type,
        shapes.session_request(exchange),
    ]


def tree(exchanges: Sequence[Exchange]) -> list[Json]:
    """Prompts, in each its agents, in each its requests; all in the order in which they began."""
    prompts: dict[str | None, Json] = {}
    agents: dict[tuple[str | None, str | None], Json] = {}
    for exchange in exchanges:
        at = show_time(exchange.received_at)
        prompt = prompts.setdefault(
            exchange.prompt, {"prompt": exchange.prompt, "startTime": at, "lastActivity": at, "agents": []}
        )
        prompt["lastActivity"] = at
        place = (exchange.prompt, exchange.agent)
        agent = agents.get(place)
        if agent is None:
            agent = agents[place] = {
                "agent": exchange.agent,
                "parentAgent": exchange.parent_agent,
                "agentType": exchange.agent_type,
                "requests": [],
            }
            prompt["agents"].append(agent)
        agent["requests"].append(shapes.session_request(exchange))
    return list(prompts.values())
