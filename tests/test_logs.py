"""Log lines: one event a line, and fields that machines read back."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogEvent, Logger, LogLevel, capturedLogs, formatEvent, formatEventAsClassicLogText
from twisted.python.failure import Failure

from twisted_proxy import logs
from twisted_proxy.logs import JSONObserver, logfmt, logfmt_value, rfc3339

PAIR = re.compile(r'([a-z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^ ="\\\x00-\x1f]+))(?: |$)')
NASTY = [
    'gpt" status=200 x="',
    "a\nforward_error request_id=req_forged",
    "a\r\nb",
    "a b",
    "a=b",
    'a"b',
    "a\\",
    "\\n",
    "",
    "-",
    "{line}",
    "{0.__class__}",
    "\x1b[31mred\x1b[0m",
    "\x00",
    "\x7f",
    "\u2028\u2029\x85",
    "naïve €",
    "\ud800",
    "\N{GRINNING FACE}",
]
ANY_TEXT = st.text(st.characters(exclude_categories=()))


def read_logfmt(line: str) -> dict[str, str]:
    """As a strict reader has it (Go's go-logfmt): no `=` and no `"` in a bare value. The whole line, or it fails."""
    found: dict[str, str] = {}
    place = 0
    while place < len(line):
        pair = PAIR.match(line, place)
        assert pair is not None, f"not logfmt from here: {line[place:]!r}"
        key, quoted, bare = pair.groups()
        assert key not in found
        found[key] = bare if quoted is None else json.loads(f'"{quoted}"')
        place = pair.end()
    return found


class TestLogfmt:
    """Pairs that split back into the fields."""

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (None, "-"),
            (True, "true"),
            (False, "false"),
            (0, "0"),
            (-12, "-12"),
            (200, "200"),
            (0.0, "0.000"),
            (1.23456, "1.235"),
            (-0.5, "-0.500"),
            (1e6, "1000000.000"),
            ("", '""'),
            ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5@20250929"),
            ("req_0123", "req_0123"),
            ("/v1/messages", "/v1/messages"),
            ("2025-01-01,context-1m-2025-08-07", "2025-01-01,context-1m-2025-08-07"),
            ("beta=true&api_key=***", '"beta=true&api_key=***"'),
            ("a b", '"a b"'),
            ('a"b', '"a\\"b"'),
            ("a\\b", '"a\\\\b"'),
            ("a\nb", '"a\\nb"'),
            ("a\tb", '"a\\tb"'),
            ("\x1b[31m", '"\\u001b[31m"'),
            ("é", '"\\u00e9"'),
            ("\u2028", '"\\u2028"'),
            ("\ud800", '"\\ud800"'),
            (b"bytes", "\"b'bytes'\""),
        ],
    )
    def test_value(self, value: object, text: str) -> None:
        """Bare where it is plain, else quoted with JSON's escapes."""
        assert logfmt_value(value) == text

    def test_pairs(self) -> None:
        """In the order in which they are given."""
        fields: dict[str, object] = {
            "request_id": "req_1",
            "model": None,
            "stream": True,
            "elapsed": 1.5,
            "query": "",
            "status": 502,
        }
        assert logfmt(fields) == 'request_id=req_1 model=- stream=true elapsed=1.500 query="" status=502'
        assert logfmt({}) == ""

    @pytest.mark.parametrize("model", NASTY)
    def test_an_untrusted_model(self, model: str) -> None:
        """Whatever a client calls its model, it stays that field's value, on that line."""
        line = logfmt({"request_id": "req_1", "model": model, "status": 502})
        assert read_logfmt(line) == {"request_id": "req_1", "model": model, "status": "502"}
        assert line.isprintable() or model == "\x7f"

    @given(st.dictionaries(st.text("abc_", min_size=1, max_size=8), ANY_TEXT, max_size=6))
    def test_any_text(self, fields: dict[str, object]) -> None:
        """The line splits back into the fields, and never holds a line end or another byte than ASCII."""
        line = logfmt(fields)
        assert read_logfmt(line) == fields
        assert len(line.splitlines()) <= 1
        assert line.isascii()

    @given(
        st.dictionaries(
            st.text("abc_", min_size=1, max_size=8),
            st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | ANY_TEXT | st.binary(),
            max_size=6,
        )
    )
    def test_any_values(self, fields: dict[str, object]) -> None:
        """As many pairs as there are fields, under their names."""
        assert list(read_logfmt(logfmt(fields))) == list(fields)


class TestLines:
    """What the two functions log."""

    def test_info_and_error(self) -> None:
        """A word, then the fields; at their levels; and the fields beside, for machines."""
        for act, level in ((logs.info, LogLevel.info), (logs.error, LogLevel.error)):
            with capturedLogs() as captured:
                act("access", {"path": "/v1/messages", "status": 200})
            assert len(captured) == 1
            assert formatEvent(captured[0]) == "access path=/v1/messages status=200"
            assert captured[0]["log_level"] is level
            assert captured[0]["log_namespace"] == "twisted_proxy.logs"

    @pytest.mark.parametrize("model", NASTY)
    def test_one_event_is_one_line_of_text(self, model: str) -> None:
        """Through Twisted's own formatting, too: nothing is taken for a format, nothing ends the line."""
        with capturedLogs() as captured:
            logs.error("forward_error", {"model": model, "status": 502})
        text = formatEventAsClassicLogText(captured[0])
        assert text is not None
        assert text.endswith("\n")
        assert len(text.splitlines()) == 1
        assert read_logfmt(text[text.index("model=") :].rstrip("\n")) == {"model": model, "status": "502"}


class Flushing(io.StringIO):
    """A file that knows what of it is out."""

    flushed = ""

    def flush(self) -> None:
        self.flushed = self.getvalue()


def observed(*events: LogEvent) -> list[dict[str, Any]]:
    """What the observer writes of them, one line each, read back."""
    file = Flushing()
    observer = JSONObserver(file)
    for event in events:
        observer(event)
    assert file.flushed == file.getvalue(), "a line that is not out when the process dies is lost"
    assert file.getvalue().isascii()
    lines = file.getvalue().split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(events)
    return [json.loads(line) for line in lines]


def logged(act: str, *args: Any, **fields: Any) -> dict[str, Any]:
    """What the observer writes of one call of a logger."""
    events: list[LogEvent] = []
    logger = Logger(namespace="some.where", observer=events.append)  # type: ignore[arg-type]
    getattr(logger, act)(*args, **fields)
    return observed(*events)[0]


class TestJSONObserver:
    """One JSON object a line."""

    def test_an_event(self) -> None:
        """Time, level, logger, message; and no more."""
        event: LogEvent = {
            "log_time": 1_700_000_000.123,
            "log_level": LogLevel.warn,
            "log_namespace": "a.b",
            "log_format": "{what} is {state}",
            "what": "it",
            "state": "so",
            "log_source": object(),
        }
        assert observed(event) == [
            {"time": "2023-11-14T22:13:20.123Z", "level": "warn", "logger": "a.b", "message": "it is so"}
        ]

    def test_of_our_own(self) -> None:
        """The fields stand beside, under their names, with their types."""
        with capturedLogs() as captured:
            logs.info("access", {"status": 200, "ttft": 0.25, "model": None, "stream": True, "query": 'a="b'})
        (record,) = observed(captured[0])
        assert record.pop("time").endswith("Z")
        assert record == {
            "level": "info",
            "logger": "twisted_proxy.logs",
            "message": 'access status=200 ttft=0.250 model=- stream=true query="a=\\"b"',
            "event": "access",
            "status": 200,
            "ttft": 0.25,
            "model": None,
            "stream": True,
            "query": 'a="b',
        }

    def test_our_fields_do_not_hide_the_event_s(self) -> None:
        """A field of the name `time` or `level` is not taken for the event's."""
        with capturedLogs() as captured:
            logs.info("access", {"time": "forged", "level": "forged", "logger": "forged", "message": "forged"})
        (record,) = observed(captured[0])
        assert "forged" not in (record["time"], record["level"], record["logger"], record["message"])

    @pytest.mark.parametrize("level", ["debug", "info", "warn", "error", "critical"])
    def test_levels(self, level: str) -> None:
        """By their names."""
        record = logged(level, "hello {who}", who="you")
        assert (record["level"], record["logger"], record["message"]) == (level, "some.where", "hello you")

    def test_a_failure(self) -> None:
        """With its traceback, on the same line."""

        def fail() -> None:
            raise KeyError("nothing here")

        try:
            fail()
        except KeyError:
            record = logged("failure", "handling {path} failed", path="/v1")
        assert record["message"] == "handling /v1 failed"
        assert record["level"] == "critical"
        assert "in fail" in record["traceback"]
        assert "KeyError: 'nothing here'" in record["traceback"]

    def test_a_failure_without_a_traceback(self) -> None:
        """Is no reason to fail."""
        record = logged("failure", "it failed", Failure(ValueError("so")))
        assert "ValueError: so" in record["traceback"]

    @pytest.mark.parametrize("text", NASTY)
    def test_nasty_text(self, text: str) -> None:
        """Stays text."""
        record = logged("info", "model {model}", model=text)
        assert record["message"] == f"model {text}"

    @given(ANY_TEXT, ANY_TEXT)
    def test_any_text(self, text: str, value: str) -> None:
        """In the message and in a field, read back as it was."""
        with capturedLogs() as captured:
            logs.info("access", {"model": text, "query": value})
        (record,) = observed(captured[0])
        assert (record["model"], record["query"]) == (text, value)

    def test_incomplete_and_odd_events(self) -> None:
        """Nothing that some library logs is lost, or breaks the line."""
        odd = observed({}, {"log_format": "{missing}"}, {"log_format": None}, {"log_level": None, "log_time": 0})
        assert [record["time"] for record in odd] == ["1970-01-01T00:00:00.000Z"] * 4
        assert [record["level"] for record in odd] == ["info"] * 4
        assert "missing" in odd[1]["message"]

    def test_values_that_are_no_json(self) -> None:
        """Are written as text."""
        with capturedLogs() as captured:
            logs.info("access", {"peer": b"\xff", "level_of": LogLevel.info, "kinds": {1}})
        (record,) = observed(captured[0])
        assert record["peer"] == "b'\\xff'"
        assert record["level_of"] == "<LogLevel=info>"
        assert record["kinds"] == "{1}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000.0, "2023-11-14T22:13:20.000Z"),
        (1_700_000_000.0625, "2023-11-14T22:13:20.062Z"),
        (1_700_000_000.9999, "2023-11-14T22:13:20.999Z"),
        (951_782_400.5, "2000-02-29T00:00:00.500Z"),
        (4_102_444_800, "2100-01-01T00:00:00.000Z"),
    ],
)
def test_rfc3339(seconds: float, text: str) -> None:
    """In UTC, with milliseconds, which are cut off, not rounded: no second that has not begun is shown."""
    assert rfc3339(seconds) == text
