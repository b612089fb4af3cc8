"""Logging in and out, and what the page asks first."""

from __future__ import annotations

from collections.abc import Sequence

from ... import __version__
from .access import Guard
from .app import Door, Route
from .calls import Call, Refusal, Reply, Viewer, answer_json

MOST_PASSWORD = 1024


class Login:
    """
    ``/api/viewer``, ``/api/login``, ``/api/logout``.

    :param recording: what RECORD says.
    """

    def __init__(self, guard: Guard, recording: str) -> None:
        self._guard = guard
        self._recording = recording

    def routes(self) -> Sequence[Route]:
        return (
            Route(method="GET", rule="/api/viewer", name="getViewer", handler=self.viewer, door=Door.VISITORS),
            Route(method="POST", rule="/api/login", name="logIn", handler=self.log_in, door=Door.VISITORS),
            Route(method="POST", rule="/api/logout", name="logOut", handler=self.log_out),
        )

    async def viewer(self, call: Call) -> Reply:
        return answer_json(self._describe(call.viewer))

    async def log_in(self, call: Call) -> Reply:
        password = call.json().get("password")
        if not isinstance(password, str) or not 0 < len(password) <= MOST_PASSWORD:
            raise Refusal(400, f"password: the body needs it, a string of at most {MOST_PASSWORD} characters.")
        viewer, cookie = await self._guard.log_in(call.request, password)
        return answer_json(self._describe(viewer), Set_Cookie=cookie)

    async def log_out(self, call: Call) -> Reply:
        return Reply(status=204, content_type=None, fields={"Set-Cookie": self._guard.log_out(call.viewer)})

    def _describe(self, viewer: Viewer) -> dict[str, object]:
        return {
            "login": viewer.login,
            "csrfToken": viewer.csrf,
            "version": __version__,
            "recording": self._recording,
        }
