"""What a running proxy says of itself, for a terminal. Asked over HTTP, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TextIO
from urllib.parse import urlsplit

import attrs

from twisted_proxy.config import Config
from twisted_proxy.config.values import endpoint_url

SERVING: Final = 0
UNREACHABLE: Final = 1
DRAINING: Final = 2
"""Exit statuses."""

TIMEOUT: Final = 5.0
"""Seconds that the proxy has for an answer."""
EVERY: Final = 1.0
"""Seconds between two looks of `watch`."""
MAX_ANSWER: Final = 16 * 1024 * 1024
"""Bytes that are read of one answer."""
SHOWN: Final = 20
"""Requests that are shown, the oldest ones."""

CLEAR: Final = "\x1b[H\x1b[2J\x1b[3J"
"""ECMA-48: the cursor goes home, what is shown goes away, and what is scrolled out as well."""


class BadTarget(Exception):
    """There is nothing to ask; ``str()`` says why, and what to do."""


class Unreachable(Exception):
    """No answer of a proxy came; ``str()`` says what came instead."""


@attrs.frozen(kw_only=True)
class Target:
    """
    A proxy.

    :ivar url: its base URL, without slash at the end. :ivar api_url: where its dashboard is.
    :ivar token: ``DASHBOARD_TOKEN``.
    """

    url: str
    api_url: str
    token: str | None = attrs.field(default=None, repr=False)


def target(config: Config, url: str | None) -> Target:
    """
    The proxy at ``url``; without one, that which ``config`` would make, if it listens where this host can ask it.

    :raises BadTarget: there is none.
    """
    token = config.dashboard.token
    if url is not None:
        url = _checked(url if "://" in url else f"http://{url}")
        return Target(url=url, api_url=url, token=token)
    found = _first_url(config.listen)
    if found is None:
        raise BadTarget(
            f"claude-proxy status: by the configuration, the proxy listens at {' '.join(config.listen)}, "
            "which is no URL: name one, such as http://127.0.0.1:3001"
        )
    return Target(url=found, api_url=_first_url(config.dashboard.listen) or found, token=token)


def _first_url(endpoints: Sequence[str]) -> str | None:
    return next((url for url in map(endpoint_url, endpoints) if url is not None), None)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        well = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        well = False
    if not well or parts.username is not None or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", url):
        # Without the URL: there may be a password in it.
        raise BadTarget("claude-proxy status: that is no URL of a proxy; one is, for example, http://127.0.0.1:3001")
    return url.rstrip("/")


# Asking


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Whoever redirects is no proxy of ours, and is not to learn the token."""

    def redirect_request(self, *_: object) -> None:
        return None


# The environment's proxies are for the way out of this host, or network.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect).open


def _get(url: str, token: str | None = None) -> Any:
    """
    JSON.

    :raises Unreachable: something else came. :raises urllib.error.HTTPError: with that status.
    """
    fields = {"Accept": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    try:
        with _open(urllib.request.Request(url, headers=fields), timeout=TIMEOUT) as answer:  # noqa: S310 (http or https)
            return json.loads(answer.read(MAX_ANSWER))
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as problem:
        raise Unreachable(f"cannot be reached: {_words(problem)}") from None
    except (ValueError, RecursionError):
        raise Unreachable("answers, but not as a claude-proxy does. Is the URL right?") from None


def _words(problem: BaseException) -> str:
    reason = problem.reason if isinstance(problem, urllib.error.URLError) else problem
    if isinstance(reason, ConnectionRefusedError):
        return "nothing listens there. Is it running?"
    if isinstance(reason, TimeoutError):
        return f"no answer within {TIMEOUT:g} s."
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {reason.verify_message}."
    if isinstance(reason, http.client.HTTPException | ConnectionError):
        return f"the connection ended without an answer that is HTTP ({type(reason).__name__})."
    if isinstance(reason, OSError):
        return f"{reason.strerror or reason}."
    return f"{reason}."


@attrs.frozen(kw_only=True)
class Seen:
    """
    What a proxy said.

    :ivar live: the answer of ``/livez``.
    :ivar requests: those in flight, the oldest first, as the API has them; ``None`` where it did not say.
    :ivar why_not: why it did not, in words.
    """

    live: Mapping[str, Any]
    requests: Sequence[Mapping[str, Any]] | None = None
    why_not: str | None = None

    @property
    def draining(self) -> bool:
        return self.live["draining"] is True


def ask(proxy: Target) -> Seen:
    """
    Ask a proxy what it does.

    :raises Unreachable: there is none.
    """
    try:
        live = _get(f"{proxy.url}/livez")
    except urllib.error.HTTPError as problem:
        problem.close()
        raise Unreachable(
            f"answers with status {problem.code}, not as a claude-proxy does. Is the URL right?"
        ) from None
    if not isinstance(live, dict) or not {"version", "in_flight", "draining", "recording"} <= live.keys():
        raise Unreachable("answers, but not as a claude-proxy does. Is the URL right?")
    if not live["in_flight"]:
        return Seen(live=live, requests=())
    try:
        found = _get(f"{proxy.api_url}/api/in-flight", proxy.token)
    except urllib.error.HTTPError as problem:
        problem.close()
        return Seen(live=live, why_not=_REFUSED.get(problem.code, f"/api/in-flight answers with status {problem.code}"))
    except Unreachable as problem:
        return Seen(live=live, why_not=f"/api/in-flight at {proxy.api_url} {problem}")
    requests = found.get("requests") if isinstance(found, dict) else None
    if not isinstance(requests, list) or not all(isinstance(each, dict) for each in requests):
        return Seen(live=live, why_not="/api/in-flight does not answer as it should")
    return Seen(live=live, requests=requests)


_REFUSED: Final = {
    401: "it wants DASHBOARD_TOKEN, here as well",
    403: "only who asks directly from its own host may see them, unless DASHBOARD_TOKEN is set, there and here",
    404: "it has no dashboard at this URL (DASHBOARD_LISTEN)",
}


# Showing


def describe(proxy: Target, seen: Seen, *, width: int) -> Iterator[str]:
    """What was seen, in lines of at most ``width`` characters."""
    for line in _lines(proxy, seen):
        yield line if len(line) <= width else line[: max(width - 1, 0)] + "…"


def _lines(proxy: Target, seen: Seen) -> Iterator[str]:
    live = seen.live
    state = "is draining" if seen.draining else "is serving"
    left = live.get("drain_seconds_left")
    if seen.draining and _is_number(left):
        state += f", for {_time(left)} at most"
    yield f"claude-proxy {_text(live['version'])} at {proxy.url} {state}"
    oldest = live.get("oldest_seconds")
    age = f", the oldest for {_time(oldest)}" if _is_number(oldest) else ""
    yield f"in flight: {_text(live['in_flight'])}{age}"
    yield f"recording: {_recording(live['recording'])}"
    workers = live.get("workers")
    if isinstance(workers, dict):
        yield f"workers: {_text(workers.get('running'))} of {_text(workers.get('configured'))}"
    if seen.requests:
        yield ""
        yield from _table(seen.requests[:SHOWN])
        more = len(seen.requests) - SHOWN
        if more > 0:
            yield f"and {more} more"
    elif seen.why_not is not None:
        yield f"which ones is not shown: {_text(seen.why_not)}"


def _recording(recording: object) -> str:
    if not isinstance(recording, dict):
        return "-"
    if recording.get("status") == "off":
        return "off"
    words = [_text(recording.get("status"))]
    if recording.get("problem"):
        words[0] += f" ({_text(recording['problem'])})"
    words.append(f"{_text(recording.get('recorded', 0))} recorded")
    behind = recording.get("behind_bytes", 0)
    words.append(f"{_size(behind)} to be stored" if behind else "all stored")
    for name, what in (("lost_exchanges", "not recorded"), ("lost_bodies", "without all of their bodies")):
        if recording.get(name):
            words.append(f"{_text(recording[name])} {what}")
    return ", ".join(words)


_COLUMNS: Final[tuple[tuple[str, Callable[[Mapping[str, Any]], str]], ...]] = (
    ("AGE", lambda request: _time(_seconds(request.get("ageMs")))),
    ("TTFT", lambda request: _time(_seconds(request.get("ttftMs")))),
    ("PHASE", lambda request: _text(request.get("phase"))),
    ("TOKENS", lambda request: _text(request.get("outputTokens"))),
    ("MODEL", lambda request: _text(request.get("model"))),
    ("ENDPOINT", lambda request: _text(request.get("endpoint"))),
    ("REQUEST", lambda request: _text(request.get("requestId"))),
)


def _table(requests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    rows = [[name for name, _ in _COLUMNS], *([cell(request) for _, cell in _COLUMNS] for request in requests)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _text(value: object) -> str:
    """What a proxy, or a client of it, wrote: without what a terminal would heed."""
    return "-" if value is None else "".join(each if each.isprintable() else "?" for each in str(value)[:200])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if _is_number(milliseconds) else None


def _time(seconds: Any) -> str:
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _size(count: Any) -> str:
    if not _is_number(count):
        return _text(count)
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


# The command


def show(proxy: Target, out: TextIO | None = None) -> int:
    """Print what a proxy does, once; what is wrong goes to standard error. Returns the exit status."""
    try:
        seen = ask(proxy)
    except Unreachable as problem:
        print(f"claude-proxy status: {proxy.url} {problem}", file=sys.stderr)
        return UNREACHABLE
    # Not of a terminal: whoever reads it wants all of it.
    out = out or sys.stdout
    width = shutil.get_terminal_size().columns if out.isatty() else 10_000
    print("\n".join(describe(proxy, seen, width=width)), file=out)
    return DRAINING if seen.draining else SERVING


def watch(proxy: Target, out: TextIO | None = None, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Print it again each second, until Ctrl-C. Returns the exit status of the last time."""
    out = out or sys.stdout
    status = UNREACHABLE
    try:
        while True:
            size = shutil.get_terminal_size()
            try:
                seen = ask(proxy)
                status = DRAINING if seen.draining else SERVING
                lines = list(describe(proxy, seen, width=size.columns))
            except Unreachable as problem:
                status = UNREACHABLE
                lines = [f"{proxy.url} {problem}"]
            # One write, so that nothing flickers; without the last line's end, which would scroll.
            text = "\n".join(lines[: size.lines] if out.isatty() else lines)
            out.write(f"{CLEAR}{text}" if out.isatty() else f"{text}\n\n")
            out.flush()
            sleep(EVERY)
    except KeyboardInterrupt:
        if out.isatty():
            out.write("\n")
        return status
