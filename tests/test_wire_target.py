"""Which request targets may reach an upstream, and what of them may be logged and recorded."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from twisted_proxy.wire.target import QUERY_NAMES_TO_SHOW, BadTarget, Target, keeps_bodies, loggable_query, parse

ACCEPTED = [
    # What clients send.
    b"/",
    b"/v1",
    b"/v1/",
    b"/v1/messages",
    b"/v1/messages?beta=true",
    b"/v1/messages/count_tokens?beta=true",
    b"/v1/messages/batches/msgbatch_01AbC/results",
    b"/v1/models?limit=20&after_id=claude-3",
    b"/v1/models/claude-sonnet-4-5@20250929",
    b"/v1/files/file_01/content",
    b"/v1/organizations/usage_report/messages?starting_at=2025-01-01T00:00:00Z&group_by[]=model",
    b"/api/hello",
    b"/api/event_logging/batch",
    # Every character that a segment may hold (RFC 3986 §3.3).
    b"/abcxyz/ABCXYZ/0189/-._~",
    b"/!$&'()*+,;=:@",
    b"/a;b=c,d:e@f",
    b"/@host/",
    b"/user:password@host/",
    b"/http://host".replace(b"//", b"/"),
    # Percent encodings that mean a character of a segment, in either case.
    b"/%20",
    b"/%61%2E%62",
    b"/a%3Fb",
    b"/a%23b",
    b"/a%40b",
    b"/a%3ab",
    b"/a%25b",
    b"/%E2%82%AC",
    b"/%e2%82%ac",
    b"/%ff",
    b"/%80",
    # Encoded twice: once decoded, these are letters that nobody decodes again.
    b"/%252e%252e/x",
    b"/%252f",
    b"/%255c",
    b"/%2500",
    # Dots that are no dot segment.
    b"/...",
    b"/..a/b",
    b"/a..",
    b"/a../b",
    b"/.hidden",
    b"/.a",
    b"/a.",
    b"/a/.../b",
    b"/%2e%2e%2e",
    b"/.%2e.",
    b"/%2ea",
    b"/a;..",
    b"/a;/b",
    # A query may hold what a path may not: it goes up byte for byte, and names no place.
    b"/?",
    b"/v1?",
    b"/v1/?a",
    b"/v1?a=//b",
    b"/v1?a=../..",
    b"/v1?a=%2f%5c%2e%2e%00",
    b"/v1?a?b?c",
    b"/v1?a=b;c=d",
    b"/v1?a=@host",
    b"/v1?http://host/",
    b"/v1?a=%",
    b"/v1?a=%zz",
    b'/v1?[]{}|\\^`"<>',
]

NOT_ORIGIN_FORM = "begin with a single '/'"
NOT_PRINTABLE = "not printable ASCII"
FRAGMENT = "fragment"
EMPTY = "empty segment"
CHARACTER = "must be percent-encoded, or a broken percent encoding"
ESCAPE = "encoded slash, backslash or control"
DOTS = "'.' or '..' segment"

REFUSED = [
    # Other forms (RFC 9112 §3.2).
    (b"", NOT_ORIGIN_FORM),
    (b"*", NOT_ORIGIN_FORM),
    (b"v1/messages", NOT_ORIGIN_FORM),
    (b"?a", NOT_ORIGIN_FORM),
    (b"http://host/v1/messages", NOT_ORIGIN_FORM),
    (b"HTTPS://host/v1/messages", NOT_ORIGIN_FORM),
    (b"http:/v1", NOT_ORIGIN_FORM),
    (b"file:///etc/passwd", NOT_ORIGIN_FORM),
    (b"host:443", NOT_ORIGIN_FORM),
    (b"[::1]:443", NOT_ORIGIN_FORM),
    (b"@host/v1/messages", NOT_ORIGIN_FORM),
    (b"@host", NOT_ORIGIN_FORM),
    (b":80/v1", NOT_ORIGIN_FORM),
    (b".host/v1", NOT_ORIGIN_FORM),
    (b"\\v1", NOT_ORIGIN_FORM),
    (b"%2fv1", NOT_ORIGIN_FORM),
    (b"..", NOT_ORIGIN_FORM),
    (b" /v1", NOT_ORIGIN_FORM),
    (b"\t/v1", NOT_ORIGIN_FORM),
    (b"\0/v1", NOT_ORIGIN_FORM),
    (b"\xef\xbb\xbf/v1", NOT_ORIGIN_FORM),
    # Empty segments: a client may take the first for a host, a server may drop them.
    (b"//", EMPTY),
    (b"//host", EMPTY),
    (b"//host/v1/messages", EMPTY),
    (b"///", EMPTY),
    (b"//?a", EMPTY),
    (b"//@host/", EMPTY),
    (b"/v1//messages", EMPTY),
    (b"/v1/messages//", EMPTY),
    (b"/v1//", EMPTY),
    (b"/v1//?a", EMPTY),
    (b"/a//b", EMPTY),
    (b"/v1/http://host/", EMPTY),
    (b"//..//", EMPTY),
    # Dot segments, also encoded, also with path parameters, which some servers cut off first.
    (b"/.", DOTS),
    (b"/..", DOTS),
    (b"/./", DOTS),
    (b"/../", DOTS),
    (b"/../v1", DOTS),
    (b"/v1/.", DOTS),
    (b"/v1/..", DOTS),
    (b"/v1/../", DOTS),
    (b"/v1/../api", DOTS),
    (b"/v1/./messages", DOTS),
    (b"/v1/..?a", DOTS),
    (b"/v1/%2e", DOTS),
    (b"/v1/%2E%2E/x", DOTS),
    (b"/v1/%2e%2e", DOTS),
    (b"/v1/%2e%2E/x", DOTS),
    (b"/v1/.%2e/x", DOTS),
    (b"/v1/.%2E/x", DOTS),
    (b"/v1/%2e./x", DOTS),
    (b"/v1/%2E.", DOTS),
    (b"/v1/..;/x", DOTS),
    (b"/v1/..;a=b/x", DOTS),
    (b"/v1/.;/x", DOTS),
    (b"/v1/%2e%2e;/x", DOTS),
    # Encoded bytes that another server decodes before it splits the path.
    (b"/v1%2fmessages", ESCAPE),
    (b"/v1%2Fmessages", ESCAPE),
    (b"/v1/..%2fx", ESCAPE),
    (b"/v1/%2e%2e%2fx", ESCAPE),
    (b"/%2f", ESCAPE),
    (b"/%2f%2fhost", ESCAPE),
    (b"/v1/%5c", ESCAPE),
    (b"/v1/..%5C..", ESCAPE),
    (b"/%5c%5chost", ESCAPE),
    (b"/v1/%00", ESCAPE),
    (b"/v1/a%00b", ESCAPE),
    (b"/v1/%0d%0aX-A:b", ESCAPE),
    (b"/v1/%0D", ESCAPE),
    (b"/v1/%09", ESCAPE),
    (b"/v1/%1f", ESCAPE),
    (b"/v1/%1B", ESCAPE),
    (b"/v1/%7f", ESCAPE),
    (b"/v1/%7F", ESCAPE),
    (b"/v1/%25%2f", ESCAPE),
    # Raw bytes that do not belong there.
    (b"/v1\0", NOT_PRINTABLE),
    (b"/v1/\x01", NOT_PRINTABLE),
    (b"/v1/\t", NOT_PRINTABLE),
    (b"/v1/a b", NOT_PRINTABLE),
    (b"/v1/ HTTP/1.1", NOT_PRINTABLE),
    (b"/v1\r\nX-A: b", NOT_PRINTABLE),
    (b"/v1\n", NOT_PRINTABLE),
    (b"/v1\r", NOT_PRINTABLE),
    (b"/v1/\x7f", NOT_PRINTABLE),
    (b"/v1/\x80", NOT_PRINTABLE),
    (b"/v1/\xc3\xa9", NOT_PRINTABLE),
    (b"/v1/\xff", NOT_PRINTABLE),
    (b"/v1/\xe2\x88\x95", NOT_PRINTABLE),
    (b"/v1?a=\0", NOT_PRINTABLE),
    (b"/v1?a=b c", NOT_PRINTABLE),
    (b"/v1?a=\xc3\xa9", NOT_PRINTABLE),
    (b"/v1?a=b\r\nX-A: b", NOT_PRINTABLE),
    # A fragment stays with the client (RFC 9110 §7.1).
    (b"/#", FRAGMENT),
    (b"/v1#a", FRAGMENT),
    (b"/v1?a#b", FRAGMENT),
    (b"/#/../v1", FRAGMENT),
    # Not in the grammar of a path.
    (b"/v1\\messages", CHARACTER),
    (b"/\\host", CHARACTER),
    (b"/..\\", CHARACTER),
    (b"/v1/[a]", CHARACTER),
    (b"/v1/{id}", CHARACTER),
    (b"/v1/a|b", CHARACTER),
    (b"/v1/a^b", CHARACTER),
    (b"/v1/`a`", CHARACTER),
    (b'/v1/"a"', CHARACTER),
    (b"/v1/<a>", CHARACTER),
    (b"/%", CHARACTER),
    (b"/%2", CHARACTER),
    (b"/v1/100%", CHARACTER),
    (b"/%zz", CHARACTER),
    (b"/%2g", CHARACTER),
    (b"/%%2f", CHARACTER),
    (b"/%u002f", CHARACTER),
    (b"/%2/e", CHARACTER),
    (b"/%-1", CHARACTER),
]

SOME_PATHS = st.lists(
    st.sampled_from(
        ["/", "/", "a", ".", "..", "%2e", "%2E", "%2f", "%5c", "%00", "%", "@", ":", ";", "?", "#", "\\", " ", "é", "0"]
    ),
    max_size=10,
).map(lambda parts: "".join(parts).encode())


class TestParse:
    """Origin form, and segments that mean the same to everybody."""

    @pytest.mark.parametrize("raw", ACCEPTED)
    def test_accepted(self, raw: bytes) -> None:
        """As they are, byte for byte."""
        path, mark, query = raw.partition(b"?")
        assert parse(raw) == Target(raw, path, query if mark else None)

    @pytest.mark.parametrize(("raw", "why"), REFUSED)
    def test_refused(self, raw: bytes, why: str) -> None:
        """With a text for the client that says why."""
        with pytest.raises(BadTarget, match=re.escape(why)):
            parse(raw)

    def test_the_text_shows_nothing_of_the_target(self) -> None:
        """It goes into an answer, and the target may hold what should not be repeated."""
        with pytest.raises(BadTarget) as caught:
            parse(b"/secret\\")
        assert "secret" not in str(caught.value)

    def test_an_empty_query_is_one(self) -> None:
        """The `?` of the client goes up."""
        assert parse(b"/v1?").query == b""
        assert parse(b"/v1").query is None

    @given(SOME_PATHS)
    @example(b"/a/%2e%2e")
    @example(b"/a/..%2f")
    def test_what_passes_means_one_place(self, raw: bytes) -> None:
        """Decoded before splitting, split before decoding, or normalised: the segments are the same."""
        try:
            target = parse(raw)
        except BadTarget:
            return
        assert target.raw == raw
        split_first = [unquote(segment) for segment in target.path.split(b"/")]
        assert unquote(target.path).split(b"/") == split_first
        assert unquote(target.path).replace(b"\\", b"/").split(b"/") == split_first
        assert not {b".", b".."} & {segment.partition(b";")[0] for segment in split_first}
        assert b"" not in split_first[1:-1]
        assert split_first[0] == b""

    def test_a_long_target(self) -> None:
        """Length is the channel's business; no recursion, no blow-up."""
        assert parse(b"/" + b"a" * 60000).path == b"/" + b"a" * 60000
        assert parse(b"/a%20" * 10000).path == b"/a%20" * 10000
        with pytest.raises(BadTarget, match="percent"):
            parse(b"/a%20" * 10000 + b"%")


def unquote(data: bytes) -> bytes:
    """Percent-decode, once."""
    return re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), data)


class TestBelow:
    """A target as a resource in the middle of a tree sees it."""

    @pytest.mark.parametrize(
        ("raw", "depth", "expected"),
        [
            (b"/v1/messages", 0, b"/v1/messages"),
            (b"/claude/v1/messages", 1, b"/v1/messages"),
            (b"/a/b/v1/messages?c=/d", 2, b"/v1/messages?c=/d"),
            (b"/claude/", 1, b"/"),
            (b"/claude", 1, b"/"),
            (b"/claude?a", 1, b"/?a"),
            (b"/claude/?", 1, b"/?"),
            (b"/claude/v1/", 1, b"/v1/"),
            (b"/claude/v1/%20", 1, b"/v1/%20"),
            (b"/a%20b/v1", 1, b"/v1"),
            (b"/a", 2, b"/"),
        ],
    )
    def test_below(self, raw: bytes, depth: int, expected: bytes) -> None:
        """Without its first segments, the rest byte for byte."""
        assert parse(raw).below(depth) == parse(expected)

    @given(SOME_PATHS, st.integers(0, 4))
    def test_what_passed_still_passes(self, raw: bytes, depth: int) -> None:
        """No prefix that is taken away makes another kind of target of it."""
        try:
            below = parse(raw).below(depth)
        except BadTarget:
            return
        assert parse(below.raw) == below

    @pytest.mark.parametrize(
        ("raw", "expected"),
        [
            (b"/v1", True),
            (b"/v1/", True),
            (b"/v1?a", True),
            (b"/v1/messages", True),
            (b"/v12", False),
            (b"/v1beta/x", False),
            (b"/v1;a/x", False),
            (b"/V1/x", False),
            (b"/%761/x", False),
            (b"/api/v1", False),
            (b"/", False),
        ],
    )
    def test_is_below(self, raw: bytes, expected: bool) -> None:
        """By whole segments, in the bytes that are sent."""
        assert (parse(raw).root == b"/v1") is expected


SECRETS = st.text("abcXYZ019-_.~!$'()*+,:@%[]", min_size=12, max_size=40)
SECRET_WORDS = st.builds(lambda secret, padding: secret + padding, SECRETS, st.sampled_from(["", "=", "=="]))
UNKNOWN_NAMES = st.sampled_from(["api_key", "key", "token", "access_token", "Beta", "beta ", "", "limit[]", "%62eta"])


class TestLoggableQuery:
    """Names are shown, secrets are not."""

    @pytest.mark.parametrize(
        ("query", "shown"),
        [
            (None, ""),
            (b"", ""),
            (b"beta=true", "beta=true"),
            (b"beta", "beta"),
            (b"beta=", "beta="),
            (b"limit=20&after_id=msg_01-a.b&order=desc", "limit=20&after_id=msg_01-a.b&order=desc"),
            (b"beta=true&api_key=sk-ant-1", "beta=true&api_key=***"),
            (b"api_key=sk-ant-1&beta=true", "api_key=***&beta=true"),
            (b"api_key=sk-ant-1&api_key=sk-ant-2", "api_key=***&api_key=***"),
            (b"sk-ant-1", "***"),
            (b"beta=true&sk-ant-1", "beta=true&***"),
            (b"c2VjcmV0LTEyMzQ=", "***"),
            (b"c2VjcmV0LTEyMw==&beta=true", "***&beta=true"),
            (b"=sk-ant-1", "=***"),
            (b"a=b=sk-ant-1", "a=***"),
            (b"BETA=true", "BETA=***"),
            (b"beta=true;api_key=sk-ant-1", "beta=***"),
            (b"beta=true?api_key=sk-ant-1", "beta=***"),
            (b"beta=true%26api_key%3Dsk-ant-1", "beta=***"),
            (b"limit=api_key=sk-ant-1", "limit=***"),
            (b"limit=sk-ant-api03-0123456789abcdef&page=SK-ANT-0123456789abcdef", "limit=***&page=***"),
            (b"&&", "***&***&***"),
        ],
    )
    def test_shown(self, query: bytes | None, shown: str) -> None:
        """Values of known names, where they hold no second name; of others the name alone."""
        assert loggable_query(query) == shown

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("value"), UNKNOWN_NAMES, SECRETS),
                st.tuples(st.just("word"), st.just(""), SECRET_WORDS),
                st.tuples(st.just("hidden"), st.sampled_from(sorted(QUERY_NAMES_TO_SHOW)), SECRETS),
                st.tuples(st.just("known"), st.sampled_from(sorted(QUERY_NAMES_TO_SHOW)), st.just("true")),
            ),
            max_size=6,
        )
    )
    def test_no_secret_is_ever_shown(self, parts: list[tuple[str, str, str]]) -> None:
        """As the value of an unknown name, as a bare word, or as the second value in a known one's."""
        made = {"value": "{0}={1}", "word": "{1}", "hidden": "{0}=1;key={1}", "known": "{0}={1}"}
        query = "&".join(made[kind].format(name, value) for kind, name, value in parts)
        shown = loggable_query(query.encode())
        for kind, _, value in parts:
            if kind != "known":
                assert value.rstrip("=") not in shown
        assert shown.count("&") == query.count("&")

    @given(st.binary(max_size=60))
    def test_any_bytes(self, query: bytes) -> None:
        """Nothing is raised, and nothing of an unknown name's value gets by."""
        for part in loggable_query(query).split("&"):
            name, equals, value = part.partition("=")
            assert not equals or value == "***" or name in QUERY_NAMES_TO_SHOW

    def test_a_long_query_is_cut(self) -> None:
        """A log line stays a line; a value that is cut is still none of a known name."""
        assert len(loggable_query(b"limit=" + b"1" * 100000)) < 3000
        assert loggable_query(b"a=" + b"&a=".join([b"x" * 100] * 1000)).startswith("a=***&a=***")
        assert len(loggable_query(b"&" * 100000)) < 10000


class TestKeepsBodies:
    """Where bodies may be recorded."""

    @pytest.mark.parametrize(
        "path",
        [
            b"/v1/oauth/token",
            b"/v1/oauth",
            b"/v1/oauth/",
            b"/v1/vaults",
            b"/v1/vaults/vlt_01/credentials/cred_01",
            b"/v1/organizations/api_keys/apikey_01",
            b"/v1/tunnels/tun_01/reveal_token",
            b"/v1/environments/env_01/work/poll",
            b"/api/oauth/claude_cli/create_api_key",
            # As some server could read it.
            b"/V1/OAuth/token",
            b"/v1/%6fauth/token",
            b"/%761/%6F%61uth/token",
            b"/v1/%256fauth/token",
            b"/v1/%25256fauth/token",
            b"/v1/oauth;v=1/token",
            b"/v1/oauth%3Bv=1/token",
            b"/v1;a/oauth/token",
            b"/v1/%20oauth/token",
            b"/v1/oauth%20/token",
            b"/v1//oauth/token",
            b"//v1/vaults",
        ],
    )
    def test_not_where_secrets_are(self, path: bytes) -> None:
        """However it is spelled."""
        assert not keeps_bodies(path)

    @pytest.mark.parametrize(
        "path",
        [
            b"/v1/messages",
            b"/v1/messages/count_tokens",
            b"/v1/messages/batches/vaults/results",
            b"/v1/files/oauth",
            b"/v1/oauths",
            b"/v1/my-vaults",
            b"/v1/chat/completions",
            b"/v1",
            b"/",
            b"",
            b"/v1/%ff",
            b"/v1/%zz",
        ],
    )
    def test_elsewhere(self, path: bytes) -> None:
        """A name that only looks like one of those, or stands further down, is none."""
        assert keeps_bodies(path)

    @given(st.binary(max_size=40))
    def test_any_bytes(self, path: bytes) -> None:
        """Nothing raises; and what is one stays one, whatever follows."""
        keeps_bodies(path)
        assert not keeps_bodies(b"/v1/vaults/" + path)
