"""The fields that requests have on their way up, beside the credential."""

from __future__ import annotations

from twisted.web.http_headers import Headers

from ..config import ProviderConfig
from ..fields import remove_fields
from ..wire import headers


def new_fields() -> Headers:
    """Of a request of ours. What is answered must be bytes that we, every client and the record can read."""
    return Headers({b"Accept-Encoding": [b"identity"]})


def keep_what_goes_up(fields: Headers) -> None:
    """Of a client's fields, leave those that an upstream is sent; and ask for an answer as in :func:`new_fields`."""
    remove_fields(fields, headers.not_upstream(fields.getRawHeaders(b"Connection", ())))
    fields.setRawHeaders(b"Accept-Encoding", [b"identity"])


def set_version(fields: Headers, provider: ProviderConfig) -> None:
    """Name the version of Anthropic's API that is spoken, where the client named none."""
    if not fields.hasHeader(b"Anthropic-Version"):
        fields.setRawHeaders(b"Anthropic-Version", [provider.version.encode("ascii")])
