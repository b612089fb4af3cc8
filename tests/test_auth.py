"""Who may look at the dashboard, and who may not."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from tests.dashboard import Dashboard, dashboard
from tests.memory import Answer, Client
from tests.store_contract import awaited, exchange_id
from twisted_proxy import cli
from twisted_proxy.config import DashboardConfig
from twisted_proxy.config.passwords import Hashed
from twisted_proxy.siblings import Alone
from twisted_proxy.web.api.app import Door, Route
from twisted_proxy.web.api.calls import Refusal
from twisted_proxy.web.api.logins import (
    MOST_ATTEMPTS,
    MOST_ATTEMPTS_OF_ALL,
    MOST_SESSIONS,
    SESSION_IDLE,
    WINDOW,
    Attempts,
)

PASSWORD = "correct horse"
TOKEN = "token-0123456789abcdef"
AWAY = {"Host": "proxy.example"}
CHEAP = str(Hashed(salt=b"salt" * 4, digest=Hashed.of(PASSWORD, b"salt" * 4).digest))


@pytest.fixture
def open_board(tmp_path: Path) -> Iterator[Dashboard]:
    """With neither password nor token."""
    with dashboard(tmp_path) as made:
        yield made


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Dashboard]:
    """With a password and a token, asked from elsewhere."""
    with dashboard(tmp_path, dashboard=DashboardConfig(password=PASSWORD, token=TOKEN)) as made:
        made.headers = dict(AWAY)
        yield made


def routes(board: Dashboard) -> tuple[Route, ...]:
    return board.proxy.service.dashboards.main.routes


def example(rule: str) -> str:
    """A target that a rule matches."""
    return re.sub("<[^>]*>", exchange_id(1), rule)


def refused(board: Dashboard, route: Route, headers: dict[str, str], peer: object = None) -> Answer:
    """What a route says at once, with all that it could want but the right to ask."""
    client = board.proxy.client() if peer is None else _client_from(board, peer)
    lines = [f"{route.method} {example(route.rule)} HTTP/1.1", *[f"{k}: {v}" for k, v in headers.items()]]
    client.send("\r\n".join([*lines, "Content-Type: application/json", "Content-Length: 2", "", "{}"]).encode())
    return client.answer(route.method)


def _client_from(board: Dashboard, peer: Any) -> Client:
    client = board.proxy.client()
    client.channel._peer = peer
    return client


class TestDefaultDeny:
    """Every route there is."""

    def test_every_route_is_shut_from_elsewhere(self, open_board: Dashboard) -> None:
        """Without password and token, who does not ask directly from this host gets 403 and words."""
        for route in routes(open_board):
            answer = refused(open_board, route, AWAY)
            if route.door is Door.EVERYBODY:
                assert answer.status == 200, route
            else:
                assert answer.status == 403, route
                assert "DASHBOARD_PASSWORD" in answer.json["error"]["message"]

    def test_every_route_wants_a_login(self, closed: Dashboard) -> None:
        """With a password, nothing but what is needed to log in is to be had without: 401."""
        for route in routes(closed):
            if route.door is Door.VIEWERS:
                for headers in (AWAY, {"Host": "localhost"}, {**AWAY, "Cookie": "claude_proxy_session=x"}):
                    assert refused(closed, route, headers).status == 401, route
        assert {route.name for route in routes(closed) if route.door is Door.VISITORS} == {"getViewer", "logIn"}
        assert {route.rule for route in routes(closed) if route.door is Door.EVERYBODY} == {
            "/openapi.json",
            "/openapi.yaml",
        }

    def test_what_is_not_there_is_shut_too(self, open_board: Dashboard, closed: Dashboard) -> None:
        """Who may not look is not told what there is."""
        for target in ("/api/requests/x/y/z", "/api/live/x", "/api/%72equests", "/api/usage/nothing"):
            for board, status in ((open_board, 403), (closed, 401)):
                assert board.send("GET", target, AWAY).answer("GET").status == status
            assert open_board.send("GET", target).answer("GET").status in (404, 503, 0)

    def test_changing_needs_more(self, open_board: Dashboard) -> None:
        """Each route that is no GET wants the CSRF token, but of a script."""
        changing = [route for route in routes(open_board) if route.method != "GET" and route.door is Door.VIEWERS]
        assert len(changing) >= 4
        for route in changing:
            for given in ({}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": "\xe9"}):
                answer = refused(open_board, route, {"Host": "localhost", **given})
                assert (answer.status, "X-CSRF-Token" in answer.json["error"]["message"]) == (403, True)

    def test_the_proxied_are_not_asked(self, closed: Dashboard) -> None:
        """``/v1`` and what is Anthropic's of ``/api`` go upstream, from wherever; health is for everybody."""
        for target in ("/v1/messages", "/v1/models", "/api/hello", "/api/event_logging/batch"):
            closed.send("POST", target, AWAY, b"{}")
            assert closed.proxy.upstream.written.startswith(b"POST " + target.encode())
        for target in ("/health", "/livez", "/openapi.json"):
            assert closed.send("GET", target, AWAY).answer("GET").status == 200
        answer = closed.send("HEAD", "/", AWAY).answer("HEAD")
        assert (answer.status, answer.header("Content-Type")) == (200, "application/json")

    def test_nothing_of_ours_goes_upstream(self, closed: Dashboard) -> None:
        """Not even what is not there, or is spelled in another way: a token is in it."""
        for target in ("/api/requests/x/y", "/api/%6cive", "/api/viewer?x", "/api/usage/"):
            closed.send("GET", target, {**AWAY, "Authorization": f"Bearer {TOKEN}"})
        assert closed.proxy.endpoint.attempts == 0


class TestLoopback:
    """Without password and token: directly, from this host."""

    @pytest.mark.parametrize("host", ["localhost", "localhost:3001", "127.0.0.1:3001", "127.8.9.1", "[::1]:3001"])
    @awaited
    async def test_may_look(self, open_board: Dashboard, host: str) -> None:
        assert (await open_board.ask("/api/requests", headers={"Host": host})).status == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"Host": "rebound.example"},
            {"Host": "localhost.evil.example"},
            {"Host": "127.0.0.1.evil.example"},
            {"Host": "192.168.1.5:3001"},
            {"Host": "localhost", "X-Forwarded-For": "10.0.0.1"},
            {"Host": "localhost", "X-Forwarded-Proto": "https"},
            {"Host": "localhost", "Forwarded": "for=10.0.0.1"},
            {"Host": "localhost", "X-Real-IP": "10.0.0.1"},
            {"Host": "localhost", "Via": "1.1 x"},
            {"Host": "localhost", "CF-Connecting-IP": "10.0.0.1"},
        ],
    )
    def test_may_not(self, open_board: Dashboard, headers: dict[str, str]) -> None:
        """Names that were made to lead here, and requests that somebody passed on, are refused."""
        assert open_board.send("GET", "/api/requests", headers).answer("GET").status == 403

    @pytest.mark.parametrize(
        "peer", [IPv4Address("TCP", "10.0.0.1", 1), IPv6Address("TCP", "2001:db8::1", 1), IPv6Address("TCP", "::", 1)]
    )
    def test_other_peers(self, open_board: Dashboard, peer: object) -> None:
        """From another host, whatever it says."""
        for route in routes(open_board):
            if route.door is not Door.EVERYBODY:
                assert refused(open_board, route, {"Host": "localhost"}, peer).status == 403

    @pytest.mark.parametrize(
        "peer", [IPv6Address("TCP", "::1", 1), IPv6Address("TCP", "::ffff:127.0.0.1", 1), UNIXAddress(None)]
    )
    def test_other_ways_of_being_here(self, open_board: Dashboard, peer: object) -> None:
        client = _client_from(open_board, peer)
        client.send(b"GET /api/viewer HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.answer("GET").status == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
        ],
    )
    @awaited
    async def test_pages_of_other_sites(self, open_board: Dashboard, headers: dict[str, str]) -> None:
        """A page from elsewhere in a browser here may neither read nor change."""
        for method, target in (("GET", "/api/requests"), ("DELETE", "/api/requests"), ("POST", "/api/login")):
            client = open_board.send(method, target, {**await open_board.csrf(), **headers})
            assert client.answer(method).status == 403
        own = {"Host": "localhost", "Origin": "http://localhost"}
        assert (await open_board.ask("/api/requests", headers=own)).status == 200

    def test_no_cors(self, open_board: Dashboard) -> None:
        """Nobody is invited."""
        headers = {"Host": "localhost", "Origin": "http://localhost", "Access-Control-Request-Method": "DELETE"}
        for method in ("OPTIONS", "GET"):
            answer = open_board.send(method, "/api/viewer", headers).answer(method)
            assert not [name for name, _ in answer.headers if name.startswith(b"access-control")]


class TestToken:
    """``Authorization: Bearer``, for scripts."""

    @awaited
    async def test_may_look_and_change(self, closed: Dashboard) -> None:
        """From anywhere, and without a CSRF token, which protects browsers."""
        headers = {**AWAY, "Authorization": f"bearer {TOKEN}"}
        assert (await closed.ask("/api/requests", headers=headers)).status == 200
        assert (await closed.ask("/api/requests", "DELETE", headers=headers)).json["deleted"] == 0
        assert (await closed.ask("/api/viewer", headers=headers)).json["login"] == "none"

    def test_wrong_ones_are_counted(self, closed: Dashboard) -> None:
        """After some, even the right one must wait; other peers need not."""
        wrong = {**AWAY, "Authorization": "Bearer guess"}
        for _ in range(MOST_ATTEMPTS):
            assert closed.send("GET", "/api/viewer", wrong).answer("GET").status == 401
        answer = closed.send("GET", "/api/viewer", {**AWAY, "Authorization": f"Bearer {TOKEN}"}).answer("GET")
        assert answer.status == 429
        assert 0 < int(answer.header("Retry-After") or 0) <= WINDOW + 1
        client = _client_from(closed, IPv4Address("TCP", "10.0.0.1", 1))
        client.send(f"GET /api/viewer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert client.answer("GET").status == 200
        closed.proxy.clock.advance(WINDOW + 1)
        assert (
            closed.send("GET", "/api/viewer", {**AWAY, "Authorization": f"Bearer {TOKEN}"}).answer("GET").status == 200
        )

    @pytest.fixture
    def without_password(self, tmp_path: Path) -> Iterator[Dashboard]:
        with dashboard(tmp_path, dashboard=DashboardConfig(token=TOKEN)) as made:
            yield made

    def test_token_alone(self, without_password: Dashboard) -> None:
        """With a token and no password, nobody gets in by being here: 401 says what there is."""
        for target, accept in (("/api/requests", "*/*"), ("/api/viewer", "*/*"), ("/", "text/html")):
            answer = without_password.send("GET", target, {"Host": "localhost", "Accept": accept}).answer("GET")
            assert (answer.status, b"DASHBOARD_TOKEN" in answer.body) == (401, True)


class TestPassword:
    """Logging in."""

    async def log_in(self, board: Dashboard, password: str = PASSWORD, **more: str) -> Answer:
        return await board.ask("/api/login", "POST", value={"password": password}, headers={**AWAY, **more})

    @pytest.mark.parametrize("configured", [PASSWORD, CHEAP])
    @awaited
    async def test_session(self, tmp_path: Path, closed: Dashboard, configured: str) -> None:
        """The password, or its hash, is configured: a session, in a cookie that no script and no other site sees."""
        closed.proxy.service.dashboards.main._guard._config = DashboardConfig(password=configured)
        assert (await closed.get("/api/viewer"))["login"] == "required"
        assert (await closed.get("/api/viewer"))["csrfToken"] is None
        answer = await self.log_in(closed)
        assert (answer.status, answer.json["login"]) == (200, "done")
        cookie, *attributes = (answer.header("Set-Cookie") or "").split("; ")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes)
        headers = {**AWAY, "Cookie": cookie}
        assert (await closed.ask("/api/requests", headers=headers)).status == 200
        assert (await closed.ask("/api/requests", "DELETE", headers=headers)).status == 403
        headers["X-CSRF-Token"] = answer.json["csrfToken"]
        assert (await closed.ask("/api/requests", "DELETE", headers=headers)).status == 200
        assert (await closed.ask("/api/viewer", headers=headers)).json["csrfToken"] == answer.json["csrfToken"]
        gone = await closed.ask("/api/logout", "POST", headers=headers)
        assert (gone.status, "Max-Age=0" in (gone.header("Set-Cookie") or "")) == (204, True)
        assert (await closed.ask("/api/requests", headers=headers)).status == 401

    @awaited
    async def test_wrong(self, closed: Dashboard, logs: list[dict[str, Any]]) -> None:
        """401; nothing of what was tried is logged; and after some, 429."""
        closed.proxy.service.dashboards.main._guard._matches = lambda password: False  # type: ignore[method-assign]
        for _ in range(MOST_ATTEMPTS):
            assert (await self.log_in(closed, "wrong horse")).status == 401
        assert (await self.log_in(closed)).status == 429
        assert "wrong horse" not in repr(logs)

    @awaited
    async def test_no_form_logs_in(self, closed: Dashboard) -> None:
        """What a page of another site can send without asking is refused."""
        for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"):
            answer = await closed.ask(
                "/api/login", "POST", headers={**AWAY, "Content-Type": kind}, content=b'{"password":"correct horse"}'
            )
            assert answer.status == 400
        assert (await self.log_in(closed, **{"Sec-Fetch-Site": "cross-site"})).status == 403
        for value in ({}, {"password": 1}, {"password": ""}, {"password": "x" * 1025}):
            assert (await closed.ask("/api/login", "POST", value=value)).status == 400

    @awaited
    async def test_without_a_password(self, open_board: Dashboard) -> None:
        """Nobody has to log in, and nobody can."""
        answer = await open_board.ask("/api/login", "POST", value={"password": "x"})
        assert answer.status == 403

    @awaited
    async def test_sessions_end(self, closed: Dashboard) -> None:
        """When nobody uses them; and when there are too many, the one that was used longest ago."""
        guard = closed.proxy.service.dashboards.main._guard
        guard._matches = lambda password: True  # type: ignore[method-assign]
        first = {**AWAY, "Cookie": ((await self.log_in(closed)).header("Set-Cookie") or "").split(";")[0]}
        second = {**AWAY, "Cookie": ((await self.log_in(closed)).header("Set-Cookie") or "").split(";")[0]}
        closed.proxy.clock.advance(SESSION_IDLE - 1)
        assert (await closed.ask("/api/viewer", headers=first)).json["login"] == "done"
        closed.proxy.clock.advance(2)
        assert (await closed.ask("/api/viewer", headers=first)).json["login"] == "done"
        assert (await closed.ask("/api/viewer", headers=second)).json["login"] == "required"
        for _ in range(MOST_SESSIONS):
            await self.log_in(closed)
        assert len(guard._sessions._sessions) == MOST_SESSIONS
        assert (await closed.ask("/api/viewer", headers=first)).json["login"] == "required"


class TestAttempts:
    """How often somebody may guess."""

    def test_of_all(self) -> None:
        """Many peers together are stopped, too."""
        now = [0.0]
        attempts = Attempts(lambda: now[0], Alone())
        for number in range(MOST_ATTEMPTS_OF_ALL):
            attempts.check(f"10.0.0.{number}")
            attempts.begin(f"10.0.0.{number}")
        with pytest.raises(Refusal, match="Too many"):
            attempts.check("10.9.9.9")
        now[0] = WINDOW + 1
        attempts.check("10.9.9.9")

    def test_right_ones_do_not_count(self) -> None:
        """Who knows the password may log in as often as he wants."""
        attempts = Attempts(lambda: 0.0, Alone())
        for _ in range(2 * MOST_ATTEMPTS_OF_ALL):
            attempts.check("10.0.0.1")
            attempts.begin("10.0.0.1")
            attempts.succeed("10.0.0.1")


class TestHashes:
    """What ``claude-proxy hash-password`` prints."""

    def test_round_trip(self) -> None:
        """A hash reads back, and fits its password alone; its representation tells nothing."""
        made = Hashed.of("päss", b"0123456789abcdef")
        again = Hashed.parse(str(made))
        assert (again, again.matches("päss"), again.matches("pass")) == (made, True, False)
        assert str(made).startswith("$scrypt$ln=15,r=8,p=1$")
        assert "0123" not in repr(made)

    def test_of_passlib(self) -> None:
        """The form is passlib's: this is from its documentation."""
        known = "$scrypt$ln=16,r=8,p=1$aM15713r3Xsvxbi31lqr1Q$nFNh2CVHVjNldFVKDHDlm4CbdRSCdEBsjjJxD+iCs5E"
        assert Hashed.parse(known).matches("password")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "$scrypt$",
            "$scrypt$ln=15,r=8,p=1$x$y",
            "$2b$12$abc",
            f"$scrypt$ln=40,r=8,p=1${'a' * 22}${'b' * 43}",
            f"$scrypt$ln=20,r=16,p=1${'a' * 22}${'b' * 43}",
        ],
    )
    def test_others(self, text: str) -> None:
        """What is none, or would take a gigabyte, is refused."""
        with pytest.raises(ValueError, match="scrypt"):
            Hashed.parse(text)


class TestCommand:
    """``claude-proxy hash-password``."""

    def test_reads_and_prints(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """The first line of standard input, where nobody types: its hash, and nothing else."""
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\nmore\n"))
        assert cli.main(["hash-password"]) == 0
        printed = capsys.readouterr().out
        assert Hashed.parse(printed.strip()).matches(PASSWORD)
        assert DashboardConfig(password=printed.strip()).password == printed.strip()

    @pytest.mark.parametrize("text", ["qwerty", "", "\x07" * 9, CHEAP])
    def test_refuses(self, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """What could not be configured, and a hash, which is not to be hashed again; it is not repeated."""
        monkeypatch.setattr("sys.stdin", io.StringIO(text + "\n"))
        assert cli.main(["hash-password"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "password" in captured.err
        assert len(text) < 5 or text not in captured.err

    def test_never_an_argument(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Others could see it."""
        assert cli.main(["hash-password", PASSWORD]) == 2
        assert PASSWORD not in capsys.readouterr().err

    def test_asks_twice(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """At a terminal; two different ones are none."""
        typed = iter([PASSWORD, PASSWORD, PASSWORD, "wrong horse"])
        monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
        monkeypatch.setattr("sys.stdin", io.StringIO())
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        assert cli.main(["hash-password"]) == 0
        assert cli.main(["hash-password"]) == 1


class TestPage:
    """The page itself, and what protects it."""

    def test_for_browsers(self, open_board: Dashboard) -> None:
        """HTML where the client names it; JSON for others, and for HEAD."""
        page = open_board.send("GET", "/", {"Host": "localhost", "Accept": "text/html,*/*;q=0.8"}).answer("GET")
        assert (page.status, page.header("Content-Type")) == (200, "text/html; charset=utf-8")
        for accept in ("*/*", "application/json"):
            other = open_board.send("GET", "/", {"Host": "localhost", "Accept": accept}).answer("GET")
            assert other.json["name"] == "claude-proxy"
        head = open_board.send("HEAD", "/", {**AWAY, "Accept": "text/html"}).answer("HEAD")
        assert (head.status, head.header("Content-Type")) == (200, "application/json")

    def test_policy(self, open_board: Dashboard) -> None:
        """Nothing inline, nothing from elsewhere, no frames, no sniffing, no referrer: on every answer."""
        for target in ("/", "/app.js", "/api/viewer", "/api/requests/x", "/api/requests/x/y/z", "/openapi.json"):
            headers = {"Host": "localhost", "Accept": "text/html"}
            answer = open_board.send("GET", target, headers).answer("GET")
            policy = answer.header("Content-Security-Policy") or ""
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.header("X-Content-Type-Options") == "nosniff"
            assert answer.header("Referrer-Policy") == "no-referrer"
            assert answer.header("X-Frame-Options") == "DENY"

    def test_files(self, open_board: Dashboard) -> None:
        """With their types, an ETag, and compressed for who takes that; nothing else of the directory or above it."""
        headers = {"Host": "localhost", "Accept-Encoding": "br, gzip"}
        script = open_board.send("GET", "/app.js", headers).answer("GET")
        assert (script.header("Content-Type"), script.header("Content-Encoding")) == (
            "text/javascript; charset=utf-8",
            "gzip",
        )
        tag = script.header("ETag") or ""
        again = open_board.send("GET", "/app.js", {**headers, "If-None-Match": f'"x", {tag}'}).answer("GET")
        assert (again.status, again.body) == (304, b"")
        plain = open_board.send("GET", "/app.js", {"Host": "localhost", "If-None-Match": tag}).answer("GET")
        assert (plain.status, plain.header("Content-Encoding")) == (200, None)
        assert open_board.send("HEAD", "/app.css").answer("HEAD").header("Content-Type") == "text/css; charset=utf-8"
        for target in (
            "/nothing.js",
            "/__init__.py",
            "/pages.py",
            "/.env",
            "/static/app.js",
            "/app.js/x",
            "/app%2ejs%00",
        ):
            assert open_board.send("GET", target).answer("GET").status in (400, 404), target

    def test_refusal_is_words(self, open_board: Dashboard) -> None:
        """A browser that may not look is told why."""
        answer = open_board.send("GET", "/", {**AWAY, "Accept": "text/html"}).answer("GET")
        assert (answer.status, answer.header("Content-Type")) == (403, "text/plain; charset=utf-8")
        assert b"DASHBOARD_PASSWORD" in answer.body

    def test_page_before_login(self, closed: Dashboard) -> None:
        """The page is there for who has to log in: it is what asks for the password."""
        assert closed.send("GET", "/", {**AWAY, "Accept": "text/html"}).answer("GET").status == 200


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Dashboard]:
    with dashboard(tmp_path, dashboard=DashboardConfig(listen=("tcp:0",))) as made:
        yield made


def test_own_listener(elsewhere: Dashboard) -> None:
    """With `DASHBOARD_LISTEN` the proxy's own listeners have neither page nor API, and send none of it upstream."""
    page = elsewhere.send("GET", "/", {"Host": "localhost", "Accept": "text/html"}).answer("GET")
    assert page.header("Content-Type") == "application/json"
    for target in ("/api/requests", "/api/viewer", "/api/live", "/app.js"):
        assert elsewhere.send("GET", target).answer("GET").status == 404
    assert elsewhere.proxy.endpoint.attempts == 0
    assert elsewhere.send("GET", "/openapi.json").answer("GET").status == 200
