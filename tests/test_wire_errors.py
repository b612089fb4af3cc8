"""Anthropic's error envelope, and request identifiers."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_proxy.wire.errors import STATUS_OF_TYPE, envelope, event, status_of_type, type_of_status
from twisted_proxy.wire.ids import request_id, uuid7

ANY_TEXT = st.text(st.characters(exclude_categories=()))


class TestTypes:
    """Which status goes with which type of error."""

    @pytest.mark.parametrize(
        ("status", "error_type"),
        [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (402, "billing_error"),
            (403, "permission_error"),
            (404, "not_found_error"),
            (409, "conflict_error"),
            (413, "request_too_large"),
            (429, "rate_limit_error"),
            (500, "api_error"),
            (504, "timeout_error"),
            (529, "overloaded_error"),
        ],
    )
    def test_table(self, status: int, error_type: str) -> None:
        """As the API documents them, in both directions."""
        assert type_of_status(status) == error_type
        assert status_of_type(error_type) == status

    def test_the_table_is_whole(self) -> None:
        """Each type has a status of its own, so that going there and back changes nothing."""
        assert len(set(STATUS_OF_TYPE.values())) == len(STATUS_OF_TYPE) == 11
        assert all(type_of_status(status_of_type(each)) == each for each in STATUS_OF_TYPE)

    @pytest.mark.parametrize("status", [405, 408, 411, 414, 415, 422, 431, 451, 499])
    def test_other_client_errors(self, status: int) -> None:
        """Other 4xx are the request's fault."""
        assert type_of_status(status) == "invalid_request_error"

    @pytest.mark.parametrize("status", [501, 502, 503, 505, 520, 599])
    def test_other_server_errors(self, status: int) -> None:
        """Other 5xx are the API's."""
        assert type_of_status(status) == "api_error"

    def test_unknown_types(self) -> None:
        """A type that does not exist yet is a failure of the API's."""
        assert status_of_type("some_future_error") == 500
        assert status_of_type("") == 500


class TestEnvelope:
    """The body of every error of ours."""

    def test_shape(self) -> None:
        """The API's shape, byte for byte."""
        assert envelope("api_error", "No.", "req_1") == (
            b'{"type":"error","error":{"type":"api_error","message":"No."},"request_id":"req_1"}'
        )

    def test_without_request_id(self) -> None:
        """It is left out, not null."""
        assert json.loads(envelope("api_error", "No.", None)) == {
            "type": "error",
            "error": {"type": "api_error", "message": "No."},
        }

    @given(ANY_TEXT, ANY_TEXT)
    def test_any_text(self, message: str, identifier: str) -> None:
        """Whatever stands in a message, it is JSON in UTF-8, on one line, and reads back."""
        raw = envelope("api_error", message, identifier)
        assert json.loads(raw.decode("utf-8")) == {
            "type": "error",
            "error": {"type": "api_error", "message": message},
            "request_id": identifier,
        }
        assert not set(raw) & {0x0A, 0x0D}

    @given(ANY_TEXT)
    def test_event(self, message: str) -> None:
        """As an event: one name, one line of data, one blank line, whatever the message holds."""
        raw = event("overloaded_error", message, "req_1")
        assert raw.split(b"\n") == [
            b"event: error",
            b"data: " + envelope("overloaded_error", message, "req_1"),
            b"",
            b"",
        ]
        assert b"\r" not in raw


class TestIds:
    """Identifiers are UUIDs of version 7 (RFC 9562 §5.7)."""

    def test_the_standard_s_example(self) -> None:
        """RFC 9562, appendix A.6."""
        # rand_a 0xCC3 and rand_b 0x18C4DC0C0C07398F, where version and variant go over what stands there.
        random = bytes.fromhex("0cc3 18c4dc0c0c07398f")
        assert uuid.UUID(int=uuid7(0x017F22E279B0, random)) == uuid.UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")

    @given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
    def test_fields(self, milliseconds: int, random: bytes) -> None:
        """Time, version and variant stand where they belong, and the rest is random."""
        made = uuid.UUID(int=uuid7(milliseconds, random))
        assert made.variant == uuid.RFC_4122
        assert made.version == 7
        assert made.int >> 80 == milliseconds
        drawn = int.from_bytes(random, "big")
        mask = (1 << 62) - 1 | 0xFFF << 64
        assert made.int & mask == drawn & mask

    @given(st.integers(0, 2**48 - 2), st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
    def test_order(self, milliseconds: int, one: bytes, other: bytes) -> None:
        """A later one is greater, as text, too."""
        assert request_id(milliseconds, one) < request_id(milliseconds + 1, other)

    def test_request_id(self) -> None:
        """In the shape of the API's: a prefix, letters and digits."""
        assert request_id(0x017F22E279B0, bytes(10)) == "req_017f22e279b070008000000000000000"

    def test_a_time_beyond_the_field(self) -> None:
        """Of a clock that is wrong only what fits is taken: nothing is raised, and the random bits stay whole."""
        assert uuid7(2**48 + 5, bytes(10)) == uuid7(5, bytes(10))
