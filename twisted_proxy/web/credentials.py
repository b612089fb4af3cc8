"""
Which credential goes where.

A client's goes to the API that it is for, a provider's own to that provider, and none elsewhere.
"""

from __future__ import annotations

from twisted.web.http_headers import Headers

from ..config import ProviderConfig
from ..fields import fields_of
from ..relay.upstream import Upstream
from ..wire.headers import credential_of
from ..wire.openai.refusal import Untranslatable

_CLAUDE_KEY = b"sk-ant-"
_OAUTH_TOKEN = b"sk-ant-oat"
_OAUTH_BETA = b"oauth-2025-04-20"

AUTHORIZATION = b"Authorization"
API_KEY = b"X-Api-Key"


def is_claude_key(credential: bytes | None) -> bool:
    """Whether Anthropic gave it out."""
    return credential is not None and credential.startswith(_CLAUDE_KEY)


def is_openai_client(fields: Headers) -> bool:
    """
    Whether a client that asks for a path which both APIs have speaks OpenAI's.

    Anthropic's clients say a version, or send their key in a field of its own; OpenAI's do neither.
    """
    return (
        fields.hasHeader(AUTHORIZATION)
        and not fields.hasHeader(b"Anthropic-Version")
        and not fields.hasHeader(b"Anthropic-Beta")
        and not fields.hasHeader(API_KEY)
    )


def sent_credential(fields: Headers) -> bytes | None:
    """The client's credential, in whichever field it is."""
    return credential_of(fields_of(fields))


def set_own(fields: Headers, provider: ProviderConfig) -> None:
    """Replace the client's credential by the provider's own, where it has one."""
    if provider.api_key is not None:
        _set(fields, provider.kind, provider.api_key.encode("ascii"))


def for_anthropic(sent: Headers, fields: Headers, upstream: Upstream) -> None:
    """
    Set the credential of a request that an OpenAI client sent and that goes to Anthropic's API.

    :param sent: the client's fields. :param fields: those that go up.
    :raises Untranslatable: there is none that is for this upstream.
    """
    provider = upstream.provider
    credential = sent_credential(sent)
    if provider.api_key is not None:
        set_own(fields, provider)
    elif credential is not None and (is_claude_key(credential) or provider.has_own_url):
        _set(fields, "anthropic", credential)
    else:
        raise Untranslatable(
            "A Claude model needs a key of Anthropic: send it as 'Authorization: Bearer sk-ant-…' "
            f"(api_key of the OpenAI SDK), or configure providers.{upstream.provider_name}.api_key.",
            status=401,
            error_type="authentication_error",
        )


def for_openai(sent: Headers, fields: Headers, upstream: Upstream, *, from_openai_client: bool) -> None:
    """
    Set the credential of a request that goes to an API of OpenAI's kind: the provider's own; or, where it has none, the
    client's, if that is one of OpenAI's clients and the key is none of Anthropic's.

    :raises Untranslatable: there is none, and the provider needs one.
    """
    provider = upstream.provider
    for name in (AUTHORIZATION, API_KEY):
        fields.removeHeader(name)
    credential = sent_credential(sent)
    if provider.api_key is not None:
        set_own(fields, provider)
    elif from_openai_client and credential is not None and not is_claude_key(credential):
        _set(fields, "openai", credential)
    elif not provider.has_own_url:
        raise Untranslatable(
            f"The provider {upstream.provider_name} has no key: set OPENAI_API_KEY "
            f"(providers.{upstream.provider_name}.api_key). A key of Anthropic is not sent there.",
            status=401,
            error_type="authentication_error",
        )


def _set(fields: Headers, kind: str, credential: bytes) -> None:
    for name in (AUTHORIZATION, API_KEY):
        fields.removeHeader(name)
    if kind == "anthropic" and not credential.startswith(_OAUTH_TOKEN):
        fields.setRawHeaders(API_KEY, [credential])
        return
    fields.setRawHeaders(AUTHORIZATION, [b"Bearer " + credential])
    if kind == "anthropic":
        betas = b",".join(fields.getRawHeaders(b"Anthropic-Beta", ()))
        if _OAUTH_BETA not in betas:
            fields.setRawHeaders(b"Anthropic-Beta", [betas + b"," + _OAUTH_BETA if betas else _OAUTH_BETA])
