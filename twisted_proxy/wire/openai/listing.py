"""``GET /v1/models``: OpenAI's list in Anthropic's shape, and the other way round."""

from __future__ import annotations

import datetime
from collections.abc import Callable

from twisted_proxy.wire.openai import raw
from twisted_proxy.wire.openai.refusal import bad_answer

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def add_to_anthropic_list(body: bytes, openai_body: bytes, *, is_routed: Callable[[str], bool]) -> bytes:
    """
    Anthropic's list with the other provider's models behind its own, each as ``ModelInfo``. A page that is not the
    last one (``has_more``) is returned as it is, so that each model is listed once.

    :param body: Anthropic's answer; its members keep their text.
    :param openai_body: the other provider's answer.
    :param is_routed: whether a model of that name would reach that provider.
    :raises Untranslatable: if either is no list of models.
    """
    try:
        page = raw.members(body)
        if page.get("has_more") == b"true":
            return body
        own = raw.items(page.get("data", b"[]"))
        known = {raw.string_or(raw.members(each).get("id")) for each in own}
        added = [(name, model) for name, model in _models(openai_body) if name not in known and is_routed(name)]
    except raw.MalformedError as e:
        raise bad_answer(f"A provider's list of models cannot be read: {e}.") from e
    if not added:
        return body
    page["data"] = raw.array([*own, *(_model_info(name, model) for name, model in added)])
    if not own:
        page["first_id"] = raw.quote(added[0][0])
    page["last_id"] = raw.quote(added[-1][0])
    return raw.obj({"data": page.pop("data"), "has_more": b"false", **page})


def to_openai_list(body: bytes) -> bytes:
    """
    Anthropic's list in OpenAI's shape, ``{"object":"list","data":[…]}``. Of a list with more pages, this one.

    :raises Untranslatable: if it is no list of models.
    """
    try:
        models = []
        for item in raw.items(raw.members(body).get("data", b"[]")):
            model = raw.members(item)
            entry = {
                "id": model.get("id", b'""'),
                "object": b'"model"',
                "created": raw.number(_seconds(raw.string_or(model.get("created_at")))),
                "owned_by": b'"anthropic"',
            }
            models.append(raw.obj(entry))
    except raw.MalformedError as e:
        raise bad_answer(f"The API's list of models cannot be read: {e}.") from e
    return raw.obj({"object": b'"list"', "data": raw.array(models)})


def join_openai_lists(*bodies: bytes) -> bytes:
    """
    OpenAI's lists as one, each model once, as it stands in the first list that has it.

    :raises Untranslatable: if one is no list of models.
    """
    try:
        models: dict[str, bytes] = {}
        for body in bodies:
            for item in raw.items(raw.members(body).get("data", b"[]")):
                models.setdefault(raw.string_or(raw.members(item).get("id")), item)
    except raw.MalformedError as e:
        raise bad_answer(f"A provider's list of models cannot be read: {e}.") from e
    return raw.obj({"object": b'"list"', "data": raw.array(models.values())})


def _models(body: bytes) -> list[tuple[str, dict[str, bytes]]]:
    models = [raw.members(item) for item in raw.items(raw.members(body).get("data", b"[]"))]
    return [(name, model) for model in models if (name := raw.string_or(model.get("id")))]


def _model_info(name: str, model: dict[str, bytes]) -> bytes:
    created = raw.whole_number(model.get("created")) or 0
    try:
        moment = _EPOCH + datetime.timedelta(seconds=created)
    except OverflowError:
        moment = _EPOCH  # what the API says of a date that it does not know
    return raw.obj(
        {
            "type": b'"model"',
            "id": raw.quote(name),
            "display_name": raw.quote(name),
            "created_at": raw.quote(moment.isoformat().replace("+00:00", "Z")),
            "lifecycle": b'"active"',
        }
    )


def _seconds(moment: str) -> int:
    try:
        parsed = datetime.datetime.fromisoformat(moment)
    except ValueError:
        return 0
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=datetime.UTC)
    return int(parsed.timestamp())
