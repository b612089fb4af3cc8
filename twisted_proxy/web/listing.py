"""``GET /v1/models`` where more than one provider has some: one list, in the shape that the client knows."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from ..relay.routing import provider_of
from ..relay.upstream import Upstream, UpstreamError
from ..wire import headers
from ..wire.openai import failures, listing
from ..wire.openai.refusal import Untranslatable
from ..wire.target import Target
from . import credentials
from .passage import Passage, remove_fields
from .translating import collect

log = Logger()

MODELS = b"/v1/models"
"""Path of the list; the whole of Anthropic's for an OpenAI client, whose SDK asks for one page."""
ALL_OF_ANTHROPIC = b"/v1/models?limit=1000"


@attrs.frozen
class _Fetched:
    response: IResponse
    body: bytes


def is_openai_client(fields: Headers) -> bool:
    """
    Whether a client that asks for a path which both APIs have speaks OpenAI's.

    Anthropic's clients say a version, or send their key in a field of its own; OpenAI's do neither.
    """
    return (
        fields.hasHeader(credentials.AUTHORIZATION)
        and not fields.hasHeader(b"Anthropic-Version")
        and not fields.hasHeader(b"Anthropic-Beta")
        and not fields.hasHeader(credentials.API_KEY)
    )


class Listing:
    """
    Answers for models.

    :param upstreams: by the name of their provider; ``anthropic`` and ``openai`` are two of them.
    """

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._anthropic = upstreams["anthropic"]
        self._openai = upstreams["openai"]

    def applies_to(self, passage: Passage, local: Target) -> bool:
        """Whether this request is not simply Anthropic's to answer."""
        if local.path != MODELS or passage.request.method != b"GET":
            return False
        return self._openai.provider.is_set_up or is_openai_client(passage.request.requestHeaders)

    async def answer(self, passage: Passage, local: Target) -> None:
        """
        Answer with a list.

        :raises UpstreamError: :raises Untranslatable: there is none; the latter only for an OpenAI client.
        """
        sent = passage.request.requestHeaders
        if is_openai_client(sent):
            await self._answer_openai(attrs.evolve(passage, openai_client=True), sent)
        else:
            await self._answer_anthropic(passage, local, sent)

    async def _answer_anthropic(self, passage: Passage, local: Target, sent: Headers) -> None:
        fields = sent.copy()
        remove_fields(fields, headers.not_upstream(fields.getRawHeaders(b"Connection", ())))
        fields.setRawHeaders(b"Accept-Encoding", [b"identity"])
        credentials.set_own(fields, self._anthropic.provider)
        if not fields.hasHeader(b"Anthropic-Version"):
            fields.setRawHeaders(b"Anthropic-Version", [self._anthropic.provider.version.encode("ascii")])
        passage = passage.towards(self._anthropic)
        own, others = await self._both(passage, local.raw, fields, sent, from_openai_client=False)
        own = _raised(own)
        body = own.body
        if own.response.code == 200 and isinstance(others, _Fetched) and others.response.code == 200:
            try:
                body = listing.add_to_anthropic_list(
                    body, others.body, is_routed=lambda model: provider_of(model) == "openai"
                )
            except Untranslatable as problem:
                self._complain(problem.message)
        elif not isinstance(others, _Fetched):
            self._complain(str(others))
        elif others.response.code != 200:
            self._complain(f"it answered with status {others.response.code}")
        passage.answered(own.response)
        passage.copy_head(own.response)
        passage.answer(body)

    async def _answer_openai(self, passage: Passage, sent: Headers) -> None:
        fields = Headers({b"Accept-Encoding": [b"identity"]})
        fields.setRawHeaders(b"Anthropic-Version", [self._anthropic.provider.version.encode("ascii")])
        problem: Untranslatable | None = None
        lists = []
        try:
            credentials.for_anthropic(sent, fields, self._anthropic)
        except Untranslatable as without_key:
            problem = without_key
            found: list[_Fetched | Exception] = [await self._others(passage, sent, from_openai_client=True)]
        else:
            own, others = await self._both(passage, ALL_OF_ANTHROPIC, fields, sent, from_openai_client=True)
            found = [own, others]
        for number, fetched in enumerate(found):
            is_claude = problem is None and number == 0
            if not isinstance(fetched, _Fetched):
                continue
            if fetched.response.code == 200:
                lists.append(listing.to_openai_list(fetched.body) if is_claude else fetched.body)
        if lists:
            passage.answer_json(listing.join_openai_lists(*lists), {})
            return
        first = found[0]
        if isinstance(first, Exception):
            raise first
        status, body = first.response.code, first.body
        if problem is None:
            status, body = failures.translate_to_openai(status, body)
        passage.answer_json(body, {}, status)

    async def _both(
        self, passage: Passage, target: bytes, fields: Headers, sent: Headers, *, from_openai_client: bool
    ) -> tuple[_Fetched | Exception, _Fetched | Exception]:
        others = Deferred.fromCoroutine(self._others(passage, sent, from_openai_client=from_openai_client))
        own: _Fetched | Exception
        try:
            own = await self._fetch(passage, self._anthropic, target, fields)
        except UpstreamError as problem:
            own = problem
        except CancelledError:
            others.cancel()
            await others
            raise
        return own, await others

    async def _others(self, passage: Passage, sent: Headers, *, from_openai_client: bool) -> _Fetched | Exception:
        fields = Headers({b"Accept-Encoding": [b"identity"]})
        try:
            credentials.for_openai(sent, fields, self._openai, from_openai_client=from_openai_client)
            return await self._fetch(passage, self._openai, MODELS, fields)
        except (Untranslatable, UpstreamError, CancelledError) as problem:
            return problem

    async def _fetch(self, passage: Passage, upstream: Upstream, target: bytes, fields: Headers) -> _Fetched:
        response = await upstream.send(b"GET", target, fields, None)
        return _Fetched(response, await collect(attrs.evolve(passage, upstream=upstream), response))

    def _complain(self, why: str) -> None:
        log.warn(
            "the models of {upstream} are missing in the list of models: {why}", upstream=self._openai.name, why=why
        )


def _raised(result: _Fetched | Exception) -> _Fetched:
    if isinstance(result, Exception):
        raise result
    return result
