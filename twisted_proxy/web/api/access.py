"""Who may look."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
from twisted.logger import Logger
from twisted.web.http import Request

from ...config.model import DashboardConfig
from ...config.passwords import PREFIX, SALT_BYTES, Hashed
from ..metrics import is_local
from .calls import Refusal, Viewer

log = Logger()

COOKIE = b"claude_proxy_session"

SESSION_IDLE = 7 * 24 * 3600.0
"""Seconds after which a session ends that nobody uses."""
MOST_SESSIONS = 1000
"""Beyond, the one that was used longest ago ends."""

WINDOW = 300.0
"""Seconds in which attempts are counted."""
MOST_ATTEMPTS = 10
"""Wrong passwords and tokens of one peer in that time."""
MOST_ATTEMPTS_OF_ALL = 100
MOST_PEERS = 10_000
"""That are remembered."""
MOST_HASHING = 8
"""Passwords that may be looked at at once: each takes 0.1 s in one thread."""

NO_LOGIN_HERE = (
    "The dashboard is only for who asks directly from this host, at a loopback address such as 127.0.0.1 or localhost. "
    "To look from elsewhere, set DASHBOARD_PASSWORD, or DASHBOARD_TOKEN for scripts."
)
ONLY_FOR_SCRIPTS = (
    "The dashboard wants Authorization: Bearer with DASHBOARD_TOKEN. To look with a browser, set DASHBOARD_PASSWORD."
)
LOGIN_NEEDED = "Log in first, or send Authorization: Bearer with DASHBOARD_TOKEN."

Compute = Callable[..., Awaitable[Any]]
"""Runs a function with arguments where it blocks nobody."""


@attrs.define
class _Session:
    csrf: str
    used_at: float
    on_end: dict[Callable[[], None], None] = attrs.Factory(dict)


@attrs.define
class _Attempts:
    since: float
    count: int = 0


class Attempts:
    """
    How often somebody guessed wrong.

    :param seconds: the time, in seconds, of any clock that does not go back.
    """

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._peers: OrderedDict[str, _Attempts] = OrderedDict()
        self._all = _Attempts(since=0.0)

    def check(self, peer: str) -> None:
        """
        :raises Refusal: too many, from there or altogether.
        """
        now = self._seconds()
        for attempts, most in ((self._peers.get(peer), MOST_ATTEMPTS), (self._all, MOST_ATTEMPTS_OF_ALL)):
            if attempts is not None and attempts.count >= most and now < attempts.since + WINDOW:
                wait = int(attempts.since + WINDOW - now) + 1
                raise Refusal(429, f"Too many attempts. Try again in {wait} seconds.", {"Retry-After": str(wait)})

    def begin(self, peer: str) -> None:
        """One more. Counted before it is known to be wrong, as many may come at once."""
        now = self._seconds()
        of_peer = self._peers.setdefault(peer, _Attempts(since=now))
        self._peers.move_to_end(peer)
        if len(self._peers) > MOST_PEERS:
            self._peers.popitem(last=False)
        for attempts in (of_peer, self._all):
            if now >= attempts.since + WINDOW:
                attempts.since, attempts.count = now, 0
            attempts.count += 1

    def succeed(self, peer: str) -> None:
        """The last one was right: neither it nor those before it count."""
        self._peers.pop(peer, None)
        self._all.count = max(0, self._all.count - 1)


class Guard:
    """
    Lets in, or says why not.

    :param seconds: the time, in seconds, of any clock that does not go back.
    :param compute: for what takes long.
    """

    def __init__(self, config: DashboardConfig, seconds: Callable[[], float], compute: Compute) -> None:
        self._config = config
        self._seconds = seconds
        self._compute = compute
        self._attempts = Attempts(seconds)
        self._hashed: Hashed | None = None
        self._hashing = 0
        # By the hash of what is in the cookie, so that no look-up tells how much of a guess is right.
        self._sessions: OrderedDict[bytes, _Session] = OrderedDict()
        self._local_csrf = secrets.token_urlsafe(32)

    @property
    def has_login(self) -> bool:
        return self._config.password is not None

    def reach(self, request: Request) -> None:
        """
        Whether somebody there could look, ever: who logs in, or who needs not. The page itself is for them.

        :raises Refusal: nobody could.
        """
        if not self.has_login and not self._is_open_to(request):
            raise Refusal(403, NO_LOGIN_HERE) if self._config.token is None else Refusal(401, ONLY_FOR_SCRIPTS)

    def admit(self, request: Request) -> Viewer:
        """
        Who asks.

        :raises Refusal: who may not.
        """
        _refuse_other_sites(request)
        viewer = self._recognise(request)
        if viewer is None:
            self.reach(request)
            raise Refusal(401, LOGIN_NEEDED)
        if request.method not in (b"GET", b"HEAD") and viewer.csrf is not None:
            given = request.requestHeaders.getRawHeaders(b"X-CSRF-Token", [b""])[0]
            if not hmac.compare_digest(given, viewer.csrf.encode("ascii")):
                raise Refusal(403, "What changes something needs X-CSRF-Token, with the csrfToken of GET /api/viewer.")
        return viewer

    def greet(self, request: Request) -> Viewer:
        """
        Who asks, or who might be after logging in.

        :raises Refusal: nobody from there.
        """
        _refuse_other_sites(request)
        viewer = self._recognise(request)
        if viewer is None:
            self.reach(request)
            return Viewer(login="required", csrf=None)
        return viewer

    def _recognise(self, request: Request) -> Viewer | None:
        bearer = _bearer(request)
        if bearer is not None and self._config.token is not None:
            peer = _name(request)
            self._attempts.check(peer)
            if hmac.compare_digest(bearer, self._config.token.encode("ascii")):
                return Viewer(login="none", csrf=None)
            self._attempts.begin(peer)
            raise Refusal(401, "This is not the DASHBOARD_TOKEN.", {"WWW-Authenticate": "Bearer"})
        if self.has_login:
            found = self._find(request)
            return None if found is None else Viewer(login="done", csrf=found[1].csrf, session=found[0].hex())
        if self._is_open_to(request):
            return Viewer(login="none", csrf=self._local_csrf)
        return None

    def _is_open_to(self, request: Request) -> bool:
        return self._config.password is None and self._config.token is None and is_direct(request)

    # Sessions

    async def log_in(self, request: Request, password: str) -> tuple[Viewer, str]:
        """
        Begin a session.

        :return: the viewer, and the value of ``Set-Cookie``.
        :raises Refusal: the password is wrong, or this is one attempt too many.
        """
        _refuse_other_sites(request)
        if not self.has_login:
            self.reach(request)
            raise Refusal(403, "There is no password here (DASHBOARD_PASSWORD): nobody has to log in.")
        peer = _name(request)
        self._attempts.check(peer)
        if self._hashing >= MOST_HASHING:
            raise Refusal(429, "Too many are logging in. Try again.", {"Retry-After": "2"})
        self._attempts.begin(peer)
        self._hashing += 1
        try:
            right = await self._compute(self._matches, password)
        finally:
            self._hashing -= 1
        if not right:
            log.warn("dashboard: a wrong password from {peer}", peer=peer)
            raise Refusal(401, "This is not the password.")
        self._attempts.succeed(peer)
        return self._begin(request)

    def _matches(self, password: str) -> bool:
        """In a thread."""
        assert self._config.password is not None
        if self._hashed is None:
            known = self._config.password
            self._hashed = (
                Hashed.parse(known) if known.startswith(PREFIX) else Hashed.of(known, secrets.token_bytes(SALT_BYTES))
            )
        return self._hashed.matches(password)

    def _begin(self, request: Request) -> tuple[Viewer, str]:
        value = secrets.token_urlsafe(32)
        key = _key(value.encode("ascii"))
        session = _Session(csrf=secrets.token_urlsafe(32), used_at=self._seconds())
        self._sessions[key] = session
        while len(self._sessions) > MOST_SESSIONS:
            self._end(next(iter(self._sessions)))
        cookie = f"{COOKIE.decode('ascii')}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={int(SESSION_IDLE)}"
        if request.isSecure():
            cookie += "; Secure"
        return Viewer(login="done", csrf=session.csrf, session=key.hex()), cookie

    def _find(self, request: Request) -> tuple[bytes, _Session] | None:
        value = request.getCookie(COOKIE)
        if not value:
            return None
        key = _key(value)
        session = self._sessions.get(key)
        if session is None:
            return None
        now = self._seconds()
        if now - session.used_at > SESSION_IDLE:
            self._end(key)
            return None
        session.used_at = now
        self._sessions.move_to_end(key)
        return key, session

    def log_out(self, viewer: Viewer) -> str:
        """
        End the viewer's session.

        :return: the value of ``Set-Cookie``.
        """
        if viewer.session is not None:
            self._end(bytes.fromhex(viewer.session))
        return f"{COOKIE.decode('ascii')}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"

    def when_ended(self, viewer: Viewer, act: Callable[[], None]) -> Callable[[], None]:
        """
        Call when the viewer's session ends; never, where there is none.

        :return: what makes that undone.
        """
        session = None if viewer.session is None else self._sessions.get(bytes.fromhex(viewer.session))
        if session is None:
            return lambda: None
        session.on_end[act] = None
        return lambda: session.on_end.pop(act, None)

    def _end(self, key: bytes) -> None:
        session = self._sessions.pop(key, None)
        if session is not None:
            for act in list(session.on_end):
                act()


def _key(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _bearer(request: Request) -> bytes | None:
    given = request.requestHeaders.getRawHeaders(b"Authorization")
    if not given:
        return None
    scheme, _, token = given[0].strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


_MORE_FORWARDED = (b"x-forwarded-", b"cf-connecting-", b"true-client-ip", b"x-client-ip", b"x-cluster-client-ip")


def is_direct(request: Request) -> bool:
    """`is_local`, and no field that any proxy might add."""
    return is_local(request) and not any(
        name.lower().startswith(_MORE_FORWARDED) for name, _ in request.requestHeaders.getAllRawHeaders()
    )


def _name(request: Request) -> str:
    """By what attempts are counted: an address, or an IPv6 network, all of which one peer may have."""
    host = str(getattr(request.getClientAddress(), "host", "local"))
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
    return host


def _refuse_other_sites(request: Request) -> None:
    """
    Refuse what a page of another site makes a browser send. Browsers say so (https://www.w3.org/TR/fetch-metadata/);
    those that do not say where a request that changes something comes from.
    """
    fields = request.requestHeaders
    site = fields.getRawHeaders(b"Sec-Fetch-Site", [b""])[0].strip().lower()
    origin = fields.getRawHeaders(b"Origin", [b""])[0].strip()
    foreign = site not in (b"", b"same-origin", b"none")
    if not site and origin:
        foreign = origin.partition(b"://")[2].lower() != fields.getRawHeaders(b"Host", [b""])[0].strip().lower()
    if foreign:
        raise Refusal(403, "A page of another site asks. The dashboard's API is for its own page, and for scripts.")
