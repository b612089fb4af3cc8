"""
Log lines: one event a line, as text or JSON, and the fields of ours that machines read.

No line ever holds a credential, the value of a header or a body.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TextIO

import attrs
from twisted.logger import ILogObserver, LogEvent, Logger, formatEvent
from zope.interface import implementer

log = Logger()

# No `=`: readers of logfmt (Go's, Loki's) take one in a bare value for an error.
_PLAIN = re.compile(r"[A-Za-z0-9_.:/,+@*&?%~-]+")

_OWN_FIELDS = "claude_proxy_fields"


def logfmt_value(value: object) -> str:
    """
    A value as logfmt takes it: bare where it is plain, else quoted with JSON's escapes.

    ``None`` is ``-``; truth values are ``true`` and ``false``; floats have three decimals.
    """
    # By type, and the commonest first: every request has a line.
    kind = type(value)
    if kind is int:
        return str(value)
    if value is None:
        return "-"
    if kind is bool:
        return "true" if value else "false"
    if kind is float:
        return f"{value:.3f}"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def logfmt(fields: dict[str, object]) -> str:
    """``key=value`` pairs, separated by blanks."""
    return " ".join([f"{name}={logfmt_value(value)}" for name, value in fields.items()])


def level_of(event: LogEvent) -> str:
    return getattr(event.get("log_level"), "name", "info")


def text_of(event: LogEvent) -> str:
    """The line of an event, without its time."""
    # Ours are rendered already.
    return str(event["line"]) if _OWN_FIELDS in event else formatEvent(event)


def traceback_of(event: LogEvent) -> str | None:
    failure = event.get("log_failure")
    return None if failure is None else str(failure.getTraceback())


@implementer(ILogObserver)
@attrs.frozen
class JSONObserver:
    """
    Writes each event as one line of JSON.

    ``{"time": RFC 3339, "level", "logger", "message", …}``; events with fields of their own (access lines,
    ``forward_error``) have them beside, under their names. A failure's traceback is in ``traceback``; ``worker`` is the
    place of the worker that logs it, where there are any.
    """

    file: TextIO
    worker: int | None = None

    def __call__(self, event: LogEvent) -> None:
        record: dict[str, object] = {
            "time": rfc3339(event.get("log_time", 0.0)),
            "level": level_of(event),
            "logger": event.get("log_namespace", ""),
            "message": text_of(event),
        }
        if self.worker is not None:
            record["worker"] = self.worker
        fields = event.get(_OWN_FIELDS)
        if fields:
            for name, value in fields.items():
                record.setdefault(name, value)
        traceback = traceback_of(event)
        if traceback is not None:
            record["traceback"] = traceback
        self.file.write(json.dumps(record, default=str) + "\n")
        self.file.flush()


@implementer(ILogObserver)
@attrs.frozen
class TextObserver:
    """
    Writes each event as one line, ``TIME LEVEL TEXT``; a failure's traceback follows, indented.

    Twisted's own observer does the same at five times the cost, which a line a request makes felt. Lines that machines
    read are the same whoever logs them; others begin with the worker, where there are any.
    """

    file: TextIO
    worker: int | None = None

    def __call__(self, event: LogEvent) -> None:
        text = text_of(event)
        if self.worker is not None and _OWN_FIELDS not in event:
            text = f"worker {self.worker}: {text}"
        traceback = traceback_of(event)
        if traceback is not None:
            text = f"{text}\n{traceback}"
        if "\n" in text:
            text = text.rstrip("\n").replace("\n", "\n\t")
        self.file.write(f"{rfc3339(event.get('log_time', 0.0))} {level_of(event)} {text}\n")
        self.file.flush()


def observer(log_format: str, file: TextIO, *, worker: int | None = None) -> ILogObserver:
    """
    What writes events to a file.

    :param log_format: ``text`` or ``json``. :param worker: the place of the worker whose they are.
    """
    chosen: ILogObserver = JSONObserver(file, worker) if log_format == "json" else TextObserver(file, worker)
    return chosen


def use_observer(application: Any, log_format: str, file: TextIO | None) -> None:
    """Have ``twistd`` log what its application logs to a file; with ``None``, as it was told itself."""
    # twistd asks the application which observer it wants; other parents of a service have no say in it.
    if file is not None and hasattr(application, "setComponent"):
        application.setComponent(ILogObserver, observer(log_format, file))


@lru_cache(maxsize=4)
def _rfc3339_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def rfc3339(seconds: float) -> str:
    """A time since the Unix epoch as RFC 3339, in UTC with milliseconds."""
    milliseconds = int(seconds * 1000)
    return f"{_rfc3339_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


def info(event: str, fields: dict[str, object]) -> None:
    """Log ``event key=value …`` at level info."""
    log.info("{line}", line=f"{event} {logfmt(fields)}", **{_OWN_FIELDS: {"event": event, **fields}})


def error(event: str, fields: dict[str, object]) -> None:
    """Log ``event key=value …`` at level error."""
    log.error("{line}", line=f"{event} {logfmt(fields)}", **{_OWN_FIELDS: {"event": event, **fields}})
