"""What is not translated, in words, and in the envelope of either API."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from twisted_proxy.wire import errors
from twisted_proxy.wire.openai import failures


class Untranslatable(Exception):
    """
    A request that has no counterpart in the other API (400), or an answer that cannot be read as what it should
    be (502, or what the error in it says).
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        error_type: str = "invalid_request_error",
        details: Mapping[str, str] | None = None,
    ) -> None:
        """
        :param message: for a person: what it is about, what is the matter, what to do.
        :param error_type: one of Anthropic's, see :mod:`twisted_proxy.wire.errors`.
        :param details: ``error.details``, which Anthropic's clients act upon.
        """
        super().__init__(message)
        self.message = message
        self.status = status
        self.error_type = error_type
        self.details = details

    def anthropic_body(self, request_id: str | None) -> bytes:
        """The answer's body, for an Anthropic client."""
        if self.details is None:
            return errors.envelope(self.error_type, self.message, request_id)
        error = {"type": self.error_type, "message": self.message, "details": dict(self.details)}
        body: dict[str, object] = {"type": "error", "error": error}
        if request_id is not None:
            body["request_id"] = request_id
        return msgspec.json.encode(body)

    def openai_answer(self) -> tuple[int, bytes]:
        """The answer's status and body, for an OpenAI client."""
        return failures.openai_error(self.status, self.error_type, self.message)


def bad_answer(message: str) -> Untranslatable:
    """The provider's answer is not what it should be."""
    return Untranslatable(message, status=502, error_type="api_error")
