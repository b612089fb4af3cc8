"""
Claude Code's own transcripts: ``projects/PROJECT/SESSION.jsonl`` in its directory, a line of JSON for each message.

All of this reads files, and belongs into a thread. Files grow while they are read. Nothing is written.
"""

from __future__ import annotations

import json
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import attrs
import msgspec

from .calls import MOST_IN_A_LIST, parse_time, show_time

Json = dict[str, Any]

MOST_LINE = 16 * 1024 * 1024
"""Bytes of a line that is looked at; a longer one counts as damaged."""
MOST_FILES = 20_000
"""Beyond, the files that changed longest ago are not looked at."""
MOST_REMEMBERED = 2000
"""Files of which it is kept what they say."""
MOST_FIRST = 200
"""Characters of a first message."""

_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


@attrs.frozen(kw_only=True)
class TranscriptFile:
    """
    A file.

    :ivar project: its directory, relative to where all of them are. :ivar session: its name, without ``.jsonl``.
    :ivar changed_at: microseconds since the Unix epoch.
    """

    path: Path
    project: str
    session: str
    changed_at: int
    size: int


@attrs.define(kw_only=True)
class Sketch:
    """
    What a file says, as far as it was read.

    Times are microseconds since the Unix epoch.
    """

    read: int = 0
    lines: int = 0
    damaged: int = 0
    first_at: int | None = None
    last_at: int | None = None
    first_message: str = ""


class _Line(msgspec.Struct):
    type: str = ""
    timestamp: str = ""
    message: msgspec.Raw = msgspec.Raw(b"")


_decode_line = msgspec.json.Decoder(_Line).decode


class BadCursor(ValueError):
    """It is none of this list."""


class Transcripts:
    """
    The files below one directory.

    :ivar problems: what could not be read when it was last looked, in words.
    """

    def __init__(self, directory: Callable[[], Path | None]) -> None:
        self._directory = directory
        self._sketches: OrderedDict[Path, Sketch] = OrderedDict()
        # Several threads may ask.
        self._lock = threading.Lock()
        self.problems: tuple[str, ...] = ()

    def files(self) -> list[TranscriptFile]:
        """All files, the one that changed last first."""
        root = self._directory()
        found: list[TranscriptFile] = []
        problems: list[str] = []
        if root is None or not root.is_dir():
            self.problems = ()
            return found

        def note(problem: OSError) -> None:
            problems.append(f"{problem.filename}: {problem.strerror}")

        for directory, _, names in os.walk(root, onerror=note):
            project = os.path.relpath(directory, root)
            if project == ".":
                continue
            for name in names:
                path = Path(directory, name)
                if path.suffix != ".jsonl":
                    continue
                try:
                    status = path.lstat()
                except OSError as problem:
                    note(problem)
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append(
                        TranscriptFile(
                            path=path,
                            project=_text(project),
                            session=_text(path.stem),
                            changed_at=status.st_mtime_ns // 1000,
                            size=status.st_size,
                        )
                    )
        self.problems = tuple(_text(each) for each in problems[:5])
        found.sort(key=lambda file: (file.changed_at, str(file.path)), reverse=True)
        return found[:MOST_FILES]

    def projects(self) -> Mapping[str, str]:
        """The project of each session; of files that are deeper, the one that they are below."""
        return {file.session: file.project.partition(os.sep)[0] for file in reversed(self.files())}

    def find(self, project: str, session: str | None = None) -> list[TranscriptFile]:
        """The files of a project, or the one of a session."""
        return [file for file in self.files() if file.project == project and session in (None, file.session)]

    def sketch(self, file: TranscriptFile) -> Sketch:
        """What a file says. Of one that has grown, only the rest is read."""
        with self._lock:
            known = self._sketches.pop(file.path, None)
            if known is None or known.read > file.size:
                known = Sketch()
            try:
                with file.path.open("rb") as stream:
                    stream.seek(known.read)
                    for line, size in _lines(stream):
                        _add(known, line)
                        known.read += size
            except OSError:
                pass  # it is gone, or not for us: what is known is all there is
            self._sketches[file.path] = known
            while len(self._sketches) > MOST_REMEMBERED:
                self._sketches.popitem(last=False)
            return known

    def summary(self, file: TranscriptFile) -> Json:
        """``ConversationSummary``."""
        sketch = self.sketch(file)
        first, last = _times(sketch, file)
        return {
            "id": file.session,
            "source": "transcript",
            "requestCount": sketch.lines,
            "startTime": show_time(first),
            "lastActivity": show_time(last),
            "duration": (last - first) // 1000,
            "firstMessage": sketch.first_message,
            "projectName": file.project,
            "session": file.session,
            "damagedLines": sketch.damaged,
        }

    def transcript(self, file: TranscriptFile, *, cursor: str | None = None, room: int = MOST_IN_A_LIST) -> Json:
        """
        ``Transcript``, from a cursor on, as much as there is room for.

        :param room: bytes.
        :raises BadCursor: the cursor is none.
        """
        start = 0 if cursor is None else _position(cursor)
        sketch = self.sketch(file)
        first, last = _times(sketch, file)
        messages: list[Json] = []
        following: int | None = None
        position = start
        with file.path.open("rb") as stream:
            stream.seek(start)
            for line, size in _lines(stream):
                message = None if line is None else _message(line)
                if message is not None:
                    length = len(json.dumps(message))
                    if length > MOST_IN_A_LIST // 2:
                        message |= {"message": None, "tooLarge": True}
                        length = len(json.dumps(message))
                    if room < length and (messages or cursor is None):
                        following = position
                        break
                    room -= length
                    messages.append(message)
                position += size
        return {
            "source": "transcript",
            "sessionId": file.session,
            "projectPath": file.project,
            "projectName": file.project,
            "messages": messages,
            "startTime": show_time(first),
            "endTime": show_time(last),
            "messageCount": sketch.lines,
            "damagedLines": sketch.damaged,
            "truncated": following is not None or start > 0,
            "nextCursor": None if following is None else str(following),
        }


def _text(name: str) -> str:
    """A file's name, which need not be text, as JSON takes it."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _position(cursor: str) -> int:
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 15:
        raise BadCursor
    return int(cursor)


def _times(sketch: Sketch, file: TranscriptFile) -> tuple[int, int]:
    first = file.changed_at if sketch.first_at is None else sketch.first_at
    return first, first if sketch.last_at is None else sketch.last_at


def _lines(stream: IO[bytes]) -> Iterator[tuple[bytes | None, int]]:
    """Whole lines, and how many bytes each takes; ``None`` for one that is too long. A last one may still grow."""
    while line := stream.readline(MOST_LINE + 1):
        size = len(line)
        if line.endswith(b"\n"):
            yield line, size
            continue
        if size <= MOST_LINE:
            return
        while part := stream.readline(MOST_LINE):
            size += len(part)
            if part.endswith(b"\n"):
                yield None, size
                break


def _add(sketch: Sketch, line: bytes | None) -> None:
    if line is not None and not line.strip():
        return
    try:
        read = None if line is None else _decode_line(line)
    except _REFUSED:
        read = _lenient(line or b"")
    if read is None:
        sketch.damaged += 1
        return
    sketch.lines += 1
    try:
        at = parse_time(read.timestamp)
    except ValueError:
        pass
    else:
        sketch.first_at = at if sketch.first_at is None else min(at, sketch.first_at)
        sketch.last_at = at if sketch.last_at is None else max(at, sketch.last_at)
    if read.type == "user" and not sketch.first_message and read.message:
        sketch.first_message = shorten(text_of(_value(bytes(read.message))))


def _lenient(line: bytes) -> _Line | None:
    """A line that is JSON in Python's view: lone surrogates, or members of other types than ours."""
    value = _value(line)
    if not isinstance(value, dict):
        return None
    kind, timestamp = value.get("type"), value.get("timestamp")
    return _Line(
        type=kind if isinstance(kind, str) else "",
        timestamp=timestamp if isinstance(timestamp, str) else "",
        message=msgspec.Raw(json.dumps(value.get("message")).encode("ascii")),
    )


def _value(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def text_of(message: Any) -> str:
    """The first text of a message: what somebody typed, not what was put in front of it for the model."""
    content = message.get("content") if isinstance(message, dict) else message
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(blocks, list):
        return ""
    texts = [
        block["text"].strip()
        for block in blocks
        if isinstance(block, dict) and block.get("type") == "text" and isinstance(block.get("text"), str)
    ]
    return next((text for text in texts if text and not text.startswith("<system-reminder>")), "")


def shorten(text: str) -> str:
    return text if len(text) <= MOST_FIRST else text[:MOST_FIRST] + "..."


_STRINGS = {
    "userType": "",
    "cwd": "",
    "sessionId": "",
    "version": "",
    "type": "",
    "uuid": "",
    "timestamp": "",
}


def _message(line: bytes) -> Json | None:
    """``TranscriptMessage``; ``None`` for a damaged line, and for an empty one."""
    value = _value(line)
    if not isinstance(value, dict):
        return None
    parent = value.get("parentUuid")
    message: Json = {"parentUuid": parent if isinstance(parent, str) else None}
    message["isSidechain"] = value.get("isSidechain") is True
    for name in _STRINGS:
        each = value.get(name)
        message[name] = each[:4096] if isinstance(each, str) else ""
    message["message"] = value.get("message")
    return message


def default_directory(configured: str | None, environ: Mapping[str, str]) -> Path | None:
    """Where the transcripts are; ``None``: nobody is at home."""
    if configured is not None:
        return Path(configured).expanduser()
    own = environ.get("CLAUDE_CONFIG_DIR")
    if own:
        return Path(own, "projects")
    try:
        return Path.home() / ".claude" / "projects"
    except RuntimeError:
        return None
