"""Who may look."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.logger import Logger
from twisted.web.http import Request

from ...config.model import DashboardConfig
from ...config.passwords import PREFIX, SALT_BYTES, Hashed
from ...siblings import Siblings
from .calls import Refusal, Viewer
from .logins import SESSION_IDLE, Attempts, Sessions
from .peers import is_direct, name_of, refuse_other_sites

log = Logger()

COOKIE = b"claude_proxy_session"

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


class Guard:
    """
    Lets in, or says why not.

    :param seconds: the time, in seconds, of any clock that does not go back.
    :param compute: for what takes long.
    :param siblings: who else lets in.
    """

    def __init__(
        self, config: DashboardConfig, seconds: Callable[[], float], compute: Compute, siblings: Siblings
    ) -> None:
        self._config = config
        self._compute = compute
        self._attempts = Attempts(seconds, siblings)
        self._sessions = Sessions(seconds, siblings)
        self._hashed: Hashed | None = None
        self._hashing = 0
        self._local_csrf = siblings.secret

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
        refuse_other_sites(request)
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
        refuse_other_sites(request)
        viewer = self._recognise(request)
        if viewer is None:
            self.reach(request)
            return Viewer(login="required", csrf=None)
        return viewer

    def _recognise(self, request: Request) -> Viewer | None:
        bearer = _bearer(request)
        if bearer is not None and self._config.token is not None:
            peer = name_of(request)
            self._attempts.check(peer)
            if hmac.compare_digest(bearer, self._config.token.encode("ascii")):
                return Viewer(login="none", csrf=None)
            self._attempts.begin(peer)
            raise Refusal(401, "This is not the DASHBOARD_TOKEN.", {"WWW-Authenticate": "Bearer"})
        if self.has_login:
            value = request.getCookie(COOKIE)
            found = self._sessions.find(value) if value else None
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
        refuse_other_sites(request)
        if not self.has_login:
            self.reach(request)
            raise Refusal(403, "There is no password here (DASHBOARD_PASSWORD): nobody has to log in.")
        peer = name_of(request)
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
        return await self._begin(request)

    def _matches(self, password: str) -> bool:
        """In a thread."""
        assert self._config.password is not None
        if self._hashed is None:
            known = self._config.password
            self._hashed = (
                Hashed.parse(known) if known.startswith(PREFIX) else Hashed.of(known, secrets.token_bytes(SALT_BYTES))
            )
        return self._hashed.matches(password)

    async def _begin(self, request: Request) -> tuple[Viewer, str]:
        value, key, session = await self._sessions.begin()
        cookie = f"{COOKIE.decode('ascii')}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={int(SESSION_IDLE)}"
        if request.isSecure():
            cookie += "; Secure"
        return Viewer(login="done", csrf=session.csrf, session=key.hex()), cookie

    def log_out(self, viewer: Viewer) -> str:
        """
        End the viewer's session.

        :return: the value of ``Set-Cookie``.
        """
        if viewer.session is not None:
            self._sessions.end(bytes.fromhex(viewer.session))
        return f"{COOKIE.decode('ascii')}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"

    def when_ended(self, viewer: Viewer, act: Callable[[], None]) -> Callable[[], None]:
        """
        Call when the viewer's session ends; never, where there is none.

        :return: what makes that undone.
        """
        return (
            (lambda: None) if viewer.session is None else self._sessions.when_ended(bytes.fromhex(viewer.session), act)
        )


def _bearer(request: Request) -> bytes | None:
    given = request.requestHeaders.getRawHeaders(b"Authorization")
    if not given:
        return None
    scheme, _, token = given[0].strip().partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None
