"""``GET /v1/models``, and one of them, where more than one provider has some: in the shape that the client knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import unquote_to_bytes

import attrs
from twisted.internet.defer import Deferred, TimeoutError
from twisted.logger import Logger
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from ..relay.routing import provider_of
from ..relay.upstream import FailureKind, Upstream, UpstreamError
from ..wire.openai import failures, listing, raw
from ..wire.openai.refusal import Untranslatable, bad_answer
from ..wire.target import Target
from . import credentials
from .passage import Passage
from .request_fields import keep_what_goes_up, new_fields, set_version
from .translating import collect

log = Logger()

MODELS = b"/v1/models"
"""Path of the list; each model is below it."""
ALL_OF_ANTHROPIC = b"/v1/models?limit=1000"
"""The whole of Anthropic's, for an OpenAI client: its SDK asks for one page."""

PATIENCE = 10.0
"""Seconds for which Anthropic's list, when it is here, waits for that of the other provider."""


def is_models_path(path: bytes) -> bool:
    """Whether it is the list, or one model."""
    return path == MODELS or path.startswith(MODELS + b"/")


def _asked_model(path: bytes) -> str | None:
    """The model that is asked for alone."""
    name = path[len(MODELS) + 1 :]
    return unquote_to_bytes(name).decode("utf-8", "replace") or None


@attrs.frozen
class _Fetched:
    response: IResponse
    body: bytes


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
        if not is_models_path(local.path) or passage.request.method != b"GET":
            return False
        if passage.openai_client:
            return True
        model = _asked_model(local.path)
        return self._openai.provider.is_set_up and (model is None or provider_of(model) == "openai")

    async def answer(self, passage: Passage, local: Target) -> None:
        """
        Answer with a list, or with one model.

        :raises UpstreamError: :raises Untranslatable: there is none.
        """
        model = _asked_model(local.path)
        if model is not None:
            await self._answer_one(passage, local.path, of_openai=provider_of(model) == "openai")
        elif passage.openai_client:
            await self._answer_openai(passage)
        else:
            await self._answer_anthropic(passage, local)

    async def _answer_one(self, passage: Passage, path: bytes, *, of_openai: bool) -> None:
        passage = passage.towards(self._openai if of_openai else self._anthropic)
        fields = self._fields_for_openai(passage) if of_openai else self._fields_for_anthropic(passage)
        found = await self._fetch(passage, passage.upstream, path, fields)
        passage.answered(found.response)
        status, body = found.response.code, found.body
        if of_openai is not passage.openai_client:
            passage.received(body)
            if status == 200:
                body = _translate_one(body, to_openai=passage.openai_client)
            elif passage.openai_client:
                status, body = failures.translate_to_openai(status, body)
            else:
                status, body = failures.translate_to_anthropic(status, body, passage.flight.request_id)
        passage.answer_json(body, {}, status)

    async def _answer_anthropic(self, passage: Passage, local: Target) -> None:
        fields = passage.request.requestHeaders.copy()
        keep_what_goes_up(fields)
        credentials.set_own(fields, self._anthropic.provider)
        set_version(fields, self._anthropic.provider)
        passage = passage.towards(self._anthropic)
        own, others = await self._both(passage, local.raw, fields)
        if not isinstance(own, _Fetched):
            raise own
        passage.answered(own.response)
        body = own.body
        if own.response.code == 200 and isinstance(others, _Fetched) and others.response.code == 200:
            try:
                body = listing.add_to_anthropic_list(
                    body, others.body, is_routed=lambda model: provider_of(model) == "openai"
                )
            except Untranslatable as problem:
                others = problem
        self._complain_of(self._openai, others)
        if body is not own.body:
            passage.received(own.body)
        passage.copy_head(own.response)
        passage.answer(body)

    async def _answer_openai(self, passage: Passage) -> None:
        found: list[tuple[Upstream, _Fetched | Exception]] = []
        try:
            fields = self._fields_for_anthropic(passage)
        except Untranslatable:
            passage = passage.towards(self._openai)
            found.append((self._openai, await self._others(passage)))
        else:
            passage = passage.towards(self._anthropic)
            own, others = await self._both(passage, ALL_OF_ANTHROPIC, fields)
            found += [(self._anthropic, own), (self._openai, others)]
        self._answer_with(passage, found)

    def _answer_with(self, passage: Passage, found: list[tuple[Upstream, _Fetched | Exception]]) -> None:
        lists = []
        for upstream, fetched in found:
            if not isinstance(fetched, _Fetched) or fetched.response.code != 200:
                continue
            is_claude = upstream is self._anthropic
            lists.append(listing.to_openai_list(fetched.body) if is_claude else fetched.body)
        _, first = found[0]
        if isinstance(first, _Fetched):
            passage.answered(first.response)
            passage.received(first.body)
        if lists:
            body = listing.join_openai_lists(*lists)
            for upstream, fetched in found:
                self._complain_of(upstream, fetched)
            passage.answer_json(body, {})
            return
        if not isinstance(first, _Fetched):
            raise first
        status, body = first.response.code, first.body
        if passage.upstream is self._anthropic:
            status, body = failures.translate_to_openai(status, body)
        passage.answer_json(body, {}, status)

    async def _both(
        self, passage: Passage, target: bytes, fields: Headers
    ) -> tuple[_Fetched | Exception, _Fetched | Exception]:
        """Anthropic's list, and the others', which is not waited for much longer."""
        others = Deferred.fromCoroutine(self._others(passage))
        own: _Fetched | Exception
        try:
            try:
                own = await self._fetch(passage, self._anthropic, target, fields)
            except UpstreamError as problem:
                own = problem
            others.addTimeout(PATIENCE, passage.clock)
            try:
                return own, await others
            except TimeoutError:
                return own, UpstreamError(FailureKind.HEADER_TIMEOUT, f"it took more than {PATIENCE:g} s")
        finally:
            others.addErrback(lambda _: None)
            others.cancel()

    async def _others(self, passage: Passage) -> _Fetched | Exception:
        if passage.upstream is self._anthropic and not self._openai.provider.is_set_up:
            # The client's key is one for the other server.
            return Untranslatable("it is not set up")
        try:
            return await self._fetch(passage, self._openai, MODELS, self._fields_for_openai(passage))
        except (Untranslatable, UpstreamError) as problem:
            return problem

    def _fields_for_anthropic(self, passage: Passage) -> Headers:
        """
        :raises Untranslatable: the client has no key that is for it.
        """
        fields = new_fields()
        set_version(fields, self._anthropic.provider)
        credentials.for_anthropic(passage.request.requestHeaders, fields, self._anthropic)
        return fields

    def _fields_for_openai(self, passage: Passage) -> Headers:
        """
        :raises Untranslatable: there is no key that is for it.
        """
        fields = new_fields()
        sent = passage.request.requestHeaders
        credentials.for_openai(sent, fields, self._openai, from_openai_client=passage.openai_client)
        return fields

    async def _fetch(self, passage: Passage, upstream: Upstream, target: bytes, fields: Headers) -> _Fetched:
        response = await upstream.send(b"GET", target, fields, None)
        return _Fetched(response, await collect(attrs.evolve(passage, upstream=upstream), response, recorded=False))

    def _complain_of(self, upstream: Upstream, fetched: _Fetched | Exception) -> None:
        """Log that models are missing, where one would expect them."""
        if isinstance(fetched, _Fetched):
            if fetched.response.code == 200:
                return
            why = f"it answered with status {fetched.response.code}"
        elif not upstream.provider.is_set_up and upstream is self._openai:
            return
        else:
            why = str(fetched)
        log.warn("the models of {upstream} are missing in the list of models: {why}", upstream=upstream.name, why=why)


def _translate_one(model: bytes, *, to_openai: bool) -> bytes:
    """
    One model in the other API's shape.

    :raises Untranslatable: it is none.
    """
    among = b'{"data":[%b]}' % model
    whole = listing.to_openai_list(among) if to_openai else listing.add_to_anthropic_list(_NONE, among, is_routed=_any)
    models = raw.items(raw.members(whole)["data"])
    if not models:
        raise bad_answer("The provider's answer is no model.")
    return models[0]


_NONE = b'{"data":[]}'
_any: Callable[[str], bool] = bool
