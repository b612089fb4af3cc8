"""What crosses the proxy, in each direction."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory import InMemoryProxy
from twisted_proxy.wire import headers
from twisted_proxy.wire.headers import (
    connection_options,
    credential_of,
    is_event_stream,
    not_downstream,
    not_upstream,
    rate_limits,
    recorded_request,
    recorded_response,
)

type_of_fields = list[tuple[bytes, bytes]]

HOP_BY_HOP = [
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
]
REQUEST_ONLY = [b"host", b"content-length", b"expect", b"accept-encoding"]
END_TO_END = [
    b"accept",
    b"anthropic-beta",
    b"anthropic-version",
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-type",
    b"cookie",
    b"date",
    b"forwarded",
    b"origin",
    b"range",
    b"request-id",
    b"server",
    b"set-cookie",
    b"user-agent",
    b"via",
    b"x-api-key",
    b"x-stainless-arch",
]
IDENTITY = (b"accept-encoding", b"identity")
VERSION = (b"anthropic-version", b"2023-06-01")
TOKENS = st.text("abcXYZ019-_.!#$%&'*+^`|~", min_size=1, max_size=10).map(str.encode)
VALUES = st.text([*map(chr, [*range(0x20, 0x7F), *range(0xA0, 0x100)])], max_size=12).map(
    lambda text: text.strip(" ").encode("latin-1")
)


def spellings(name: bytes) -> list[bytes]:
    return [name, name.title(), name.upper(), name.title().swapcase()]


def lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % field for field in fields)


def read_fields(message: bytes) -> type_of_fields:
    """The fields of a message on the wire, names in lower case."""
    found = []
    for line in message.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        name, _, value = line.partition(b": ")
        found.append((name.lower(), value))
    return found


def up(fields: Iterable[tuple[bytes, bytes]], target: bytes = b"/v1/models") -> type_of_fields:
    """What reaches the upstream of a client's fields; the upstream's name is checked, and left out."""
    proxy = InMemoryProxy()
    proxy.client().send(b"GET %b HTTP/1.1\r\nHost: proxy.test\r\n%b\r\n" % (target, lines(fields)))
    host, *rest = read_fields(proxy.upstream.written)
    assert host == (b"host", b"upstream.test")
    return rest


def down(fields: Iterable[tuple[bytes, bytes]]) -> type_of_fields:
    """What reaches the client of an upstream's fields; what every answer has is checked, and left out."""
    proxy = InMemoryProxy()
    client = proxy.client()
    client.send(b"GET /v1/models HTTP/1.1\r\nHost: proxy.test\r\n\r\n")
    proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n%b\r\n" % lines(fields))
    length, *rest = read_fields(client.written)
    assert length == (b"content-length", b"0")
    ours = [field for field in rest if field[0] == b"x-proxy-request-id"]
    assert len(ours) == 1
    return [field for field in rest if field not in ours]


class TestRules:
    """The names, as sets."""

    @pytest.mark.parametrize("name", HOP_BY_HOP)
    def test_hop_by_hop_fields(self, name: bytes) -> None:
        """Stop here in both directions, though no `Connection` names them (RFC 9110 §7.6.1)."""
        assert name in not_upstream([])
        assert name in not_downstream([])

    @pytest.mark.parametrize("name", REQUEST_ONLY)
    def test_request_fields_that_are_ours(self, name: bytes) -> None:
        """Upwards they are written anew or answered here; downwards they pass."""
        assert name in not_upstream([])
        assert name not in not_downstream([])

    @pytest.mark.parametrize("name", END_TO_END)
    def test_all_others_cross(self, name: bytes) -> None:
        """In both directions."""
        assert name not in not_upstream([b"close"])
        assert name not in not_downstream([b"close"])

    def test_there_are_no_others(self) -> None:
        """The tables above are whole."""
        assert not_downstream([]) == headers.HOP_BY_HOP == set(HOP_BY_HOP)
        assert not_upstream([]) == {*HOP_BY_HOP, *REQUEST_ONLY}

    @pytest.mark.parametrize(
        ("values", "options"),
        [
            ([], set()),
            ([b""], set()),
            ([b", ,"], set()),
            ([b"close"], {b"close"}),
            ([b"Close"], {b"close"}),
            ([b"keep-alive, X-A"], {b"keep-alive", b"x-a"}),
            ([b"keep-alive,X-A\t, x-b "], {b"keep-alive", b"x-a", b"x-b"}),
            ([b"keep-alive", b"X-A", b"X-a"], {b"keep-alive", b"x-a"}),
        ],
    )
    def test_connection_options(self, values: list[bytes], options: set[bytes]) -> None:
        """Of all fields together, in lower case; empty list members are none (RFC 9110 §5.6.1)."""
        assert connection_options(values) == options
        assert not_upstream(values) == not_upstream([]) | options
        assert not_downstream(values) == not_downstream([]) | options

    def test_no_state_is_shared(self) -> None:
        """What one message names is not kept for the next."""
        assert b"x-a" in not_upstream([b"x-a"])
        assert b"x-a" not in not_upstream([])
        assert b"x-a" in not_downstream([b"x-a"])
        assert b"x-a" not in not_downstream([])

    @pytest.mark.parametrize(
        ("content_type", "expected"),
        [
            (b"text/event-stream", True),
            (b"text/event-stream; charset=utf-8", True),
            (b"text/event-stream;charset=utf-8", True),
            (b" Text/Event-Stream ; charset=utf-8", True),
            (b"text/event-streams", False),
            (b"text/event-stream, text/plain", False),
            (b"application/json; x=text/event-stream", False),
            (b"application/json", False),
            (b"", False),
            (None, False),
        ],
    )
    def test_is_event_stream(self, content_type: bytes | None, expected: bool) -> None:
        """By the media type alone, without its parameters and in any case."""
        assert is_event_stream(content_type) is expected


class TestOnTheWire:
    """The same through a whole proxy in memory."""

    # `Transfer-Encoding` frames the message: it is no field to play with.
    @pytest.mark.parametrize("name", [name for name in HOP_BY_HOP if name != b"transfer-encoding"])
    def test_hop_by_hop_fields_stop_here(self, name: bytes) -> None:
        """In any case, with fields before and after them that cross."""
        for spelled in spellings(name):
            fields = [(b"X-A", b"1"), (spelled, b"x"), (b"X-B", b"2")]
            assert up(fields) == [(b"x-a", b"1"), (b"x-b", b"2"), IDENTITY, VERSION]
            assert down(fields) == [(b"x-a", b"1"), (b"x-b", b"2")]

    @pytest.mark.parametrize(
        "named",
        [
            [b"X-Hop, X-Other"],
            [b"x-hop", b"X-OTHER"],
            [b"keep-alive, x-hop\t,, X-Other,"],
            [b"keep-alive", b"", b"x-other, x-hop"],
        ],
    )
    def test_fields_that_connection_names_stop_here(self, named: list[bytes]) -> None:
        """Named in one `Connection` field or several, before them or after."""
        connection = [(spelled, value) for spelled, value in zip(spellings(b"connection"), named, strict=False)]
        hops = [(b"X-Hop", b"1"), (b"x-Other", b"2"), (b"x-hop", b"3")]
        for fields in ([*connection, *hops, (b"X-Stays", b"4")], [*hops, (b"X-Stays", b"4"), *connection]):
            assert up(fields) == [(b"x-stays", b"4"), IDENTITY, VERSION]
            assert down(fields) == [(b"x-stays", b"4")]

    def test_connection_cannot_remove_what_is_ours(self) -> None:
        """Whatever a client or an upstream names, `identity`, the version, the length and our id are sent."""
        fields = [
            (b"Connection", b"accept-encoding, anthropic-version, host, content-length, x-proxy-request-id"),
            (b"Accept-Encoding", b"gzip"),
            (b"Anthropic-Version", b"1999-01-01"),
        ]
        assert up(fields) == [IDENTITY, VERSION]
        # `down` sees that length and id are there.
        assert down(fields) == []

    def test_repeated_fields_stay_apart_and_in_order(self) -> None:
        """They are not joined with commas: `Set-Cookie` could not be taken apart again (RFC 9110 §5.3)."""
        fields = [(b"Set-Cookie", b"b=2, x"), (b"set-cookie", b"a=1"), (b"SET-COOKIE", b"b=2, x"), (b"X-B", b"\xff")]
        expected = [(name.lower(), value) for name, value in fields]
        assert up(fields) == [*expected, IDENTITY, VERSION]
        assert down(fields) == expected

    @pytest.mark.parametrize("value", [b"gzip, br", b"identity", b""])
    def test_answers_are_asked_for_without_coding(self, value: bytes) -> None:
        """Once, whatever the client would take."""
        assert up([(b"accept-encoding", value), (b"ACCEPT-ENCODING", b"zstd")]) == [IDENTITY, VERSION]

    @pytest.mark.parametrize("name", spellings(b"anthropic-version"))
    @pytest.mark.parametrize("value", [b"2023-01-01", b"", b"nonsense"])
    def test_a_version_of_the_client_stays(self, name: bytes, value: bytes) -> None:
        """Whatever it says, and however it is spelled; none is added to it."""
        assert up([(name, value)]) == [(b"anthropic-version", value), IDENTITY]

    def test_the_version_is_added_where_there_is_none(self) -> None:
        """Below `/v1`, also where another name only begins so."""
        assert up([]) == [IDENTITY, VERSION]
        assert up([(b"Anthropic-Version-Next", b"x")]) == [(b"anthropic-version-next", b"x"), IDENTITY, VERSION]
        assert up([], target=b"/api/hello") == [IDENTITY]

    def test_downwards_nothing_is_added(self) -> None:
        """No `Server`, `Date` or `Content-Type` that the upstream did not send."""
        assert down([]) == []

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.tuples(TOKENS, VALUES), max_size=8), st.lists(TOKENS, max_size=3))
    def test_any_fields(self, fields: type_of_fields, named: list[bytes]) -> None:
        """Those that are named stop, all others cross, repeats in their order, every byte of the values."""
        sent = [*fields, (b"Connection", b",".join([b"keep-alive", *named]))]
        stops = {name.lower() for name in named}
        expected = sorted((name.lower(), value) for name, value in fields if name.lower() not in stops)
        for arrived in (down(sent), [field for field in up(sent) if field not in (IDENTITY, VERSION)]):
            assert sorted(arrived) == expected
            for each in {name for name, _ in expected}:
                of_name = [value for name, value in fields if name.lower() == each]
                assert [value for name, value in arrived if name == each] == of_name


KEY = b"sk-ant-api03-0123456789abcdefghijklmnopqrstuvwxyz"


class TestRecorded:
    """What may be kept of them."""

    @pytest.mark.parametrize(
        "name",
        [
            b"Accept",
            b"Anthropic-Beta",
            b"Anthropic-Version",
            b"Content-Encoding",
            b"Content-Length",
            b"Content-Type",
            b"Idempotency-Key",
            b"Traceparent",
            b"User-Agent",
            b"X-App",
            b"X-Claude-1P-Request-Class",
            b"X-Claude-Code-Session-Id",
            b"X-Claude-Code-Whatever-Comes-Next",
            b"X-Client-Request-Id",
            b"X-Stainless-Retry-Count",
        ],
    )
    def test_of_a_request(self, name: bytes) -> None:
        """By lower-case name, whatever the case that it came in."""
        for spelled in spellings(name):
            assert recorded_request([(spelled, b"v")]) == ((name.lower().decode(), "v"),)

    @pytest.mark.parametrize(
        "name",
        [
            b"Anthropic-Organization-Id",
            b"Anthropic-RateLimit-Unified-5h-Utilization",
            b"CF-Ray",
            b"Content-Type",
            b"Date",
            b"OpenAI-Processing-Ms",
            b"Request-Id",
            b"Retry-After",
            b"Retry-After-Ms",
            b"Server",
            b"X-RateLimit-Remaining-Tokens",
            b"X-Should-Retry",
        ],
    )
    def test_of_an_answer(self, name: bytes) -> None:
        """By lower-case name, whatever the case that it came in."""
        for spelled in spellings(name):
            assert recorded_response([(spelled, b"v")]) == ((name.lower().decode(), "v"),)

    @pytest.mark.parametrize(
        "name",
        [
            b"Authorization",
            b"Cookie",
            b"Proxy-Authorization",
            b"Set-Cookie",
            b"X-Api-Key",
            b"X-Api-Key2",
            b"X-Auth-Token",
            b"X-Claude-Code",
            b"Anthropic-Admin-Key",
            b"X-Goog-Api-Key",
            b"X-Forwarded-For",
            b"X-Stainless",
            b"",
            b"\xff",
        ],
    )
    def test_nothing_else(self, name: bytes) -> None:
        """Neither credentials nor what nobody has listed, not even masked."""
        for spelled in spellings(name):
            assert recorded_request([(spelled, b"v")]) == ()
            assert recorded_response([(spelled, b"v")]) == ()

    def test_order_and_repeats(self) -> None:
        """As they came."""
        fields = [(b"X-App", b"2"), (b"cookie", b"c"), (b"accept", b"*"), (b"x-app", b"1")]
        assert recorded_request(fields) == (("x-app", "2"), ("accept", "*"), ("x-app", "1"))

    @pytest.mark.parametrize("value", [KEY, b"key=" + KEY, b"Bearer abc", b"curl (bearer\tabc)", b"SK-" + b"a" * 20])
    @pytest.mark.parametrize("name", [b"user-agent", b"x-claude-code-session-id", b"idempotency-key"])
    def test_a_key_in_the_wrong_place(self, name: bytes, value: bytes) -> None:
        """A field that has something like a key in it is not kept."""
        assert recorded_request([(name, value), (b"x-app", b"cli")]) == (("x-app", "cli"),)

    @pytest.mark.parametrize("value", [b"task-0123456789abcdefghij", b"sk-short", b"risk-" + b"a" * 30])
    def test_what_is_no_key(self, value: bytes) -> None:
        """A word that only has such letters stays."""
        assert recorded_request([(b"user-agent", value)]) == (("user-agent", value.decode()),)

    def test_values_are_untrusted(self) -> None:
        """Latin-1, printable, and of bounded length and number."""
        assert recorded_request([(b"user-agent", b"caf\xe9\x00\x1b\x85")]) == (
            ("user-agent", "café\ufffd\ufffd\ufffd"),
        )
        kept = recorded_request([(b"x-stainless-" + b"n" * 500, b"v" * 10_000)] * 1000)
        assert len(kept) == headers.MAX_RECORDED_FIELDS
        assert {(len(name), len(value)) for name, value in kept} == {
            (headers.MAX_RECORDED_NAME, headers.MAX_RECORDED_VALUE)
        }

    @given(st.lists(st.tuples(st.binary(), st.binary())))
    def test_any_fields(self, fields: type_of_fields) -> None:
        """Nothing raises, and what is kept was listed."""
        for name, value in (*recorded_request(fields), *recorded_response(fields)):
            assert name.startswith(("a", "c", "d", "i", "o", "r", "s", "t", "u", "x-"))
            assert name == name.lower()
            assert "\0" not in value

    def test_rate_limits(self) -> None:
        """The whole prefix, by name; `None` where there are none."""
        recorded = recorded_response(
            [
                (b"Anthropic-RateLimit-Requests-Remaining", b"5"),
                (b"anthropic-ratelimit-unified-5h-utilization", b"0.2"),
                (b"x-ratelimit-limit", b"9"),
            ]
        )
        assert rate_limits(recorded) == {
            "anthropic-ratelimit-requests-remaining": "5",
            "anthropic-ratelimit-unified-5h-utilization": "0.2",
        }
        assert rate_limits(recorded[-1:]) is None


class TestCredential:
    """Whose request it is."""

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ([], None),
            ([(b"X-Api-Key", KEY)], KEY),
            ([(b"Authorization", b"Bearer " + KEY)], KEY),
            ([(b"authorization", b"bearer  " + KEY + b" ")], KEY),
            ([(b"Authorization", KEY)], KEY),
            ([(b"Authorization", b"Bearer oauth"), (b"X-API-KEY", KEY)], KEY),
            ([(b"X-Api-Key", b" "), (b"Authorization", b"Bearer oauth")], b"oauth"),
            ([(b"Authorization", b"")], None),
            ([(b"Cookie", b"session=1"), (b"Proxy-Authorization", b"Basic eA==")], None),
        ],
    )
    def test_credential_of(self, fields: type_of_fields, expected: bytes | None) -> None:
        """The key, in whichever field: equal for equal keys."""
        assert credential_of(fields) == expected
