"""What crosses the proxy, in each direction."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory import InMemoryProxy
from twisted_proxy.wire import headers
from twisted_proxy.wire.headers import connection_options, is_event_stream, not_downstream, not_upstream

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
