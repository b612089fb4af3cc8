"""What a real proxy records, read back out of its store: bit for bit, as it comes, and never a credential."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest

from tests import test_importing as history
from tests.postgresql import Database
from tests.processes import CHECKOUT, LISTENING, Process, Proxy, StandIn, clean_environment, wait_for
from tests.recorded import (
    Reader,
    Records,
    describe,
    ended,
    frozen,
    is_dead,
    recorder_of,
    recording,
    segments,
    slots,
    wait_well,
)
from tests.sockets import Answer, Client, call, id_of, play, prompt, request_bytes
from twisted_proxy.record.entries import Kind, exchange_key
from twisted_proxy.record.exchange import Link, Role
from twisted_proxy.record.store import Query

OPUS: Final = "claude-opus-4-7"
KEY: Final = ("x-api-key", "sk-ant-api03-not-to-be-kept")
CLAUDE_CODE: Final = (
    KEY,
    ("user-agent", "claude-cli/2.1.300 (external, cli)"),
    ("anthropic-version", "2023-06-01"),
    ("anthropic-beta", "claude-code-20250219,interleaved-thinking-2025-05-14"),
    ("content-type", "application/json"),
    ("x-claude-code-session-id", "session-1"),
    ("x-claude-code-prompt-id", "prompt-1"),
    ("x-claude-code-agent-id", "agent-1"),
    ("x-claude-code-parent-agent-id", "agent-0"),
    ("x-claude-code-request-class", "subagent"),
    ("x-claude-code-agent-type", "Explore"),
    ("x-stainless-retry-count", "0"),
    ("x-not-listed", "private"),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the proxies that share one file."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def recorded(home: Path, upstream: StandIn) -> Iterator[Proxy]:
    """A proxy that records everything."""
    with recording(home, upstream, ANTHROPIC_MAX_RETRIES="0", MAX_BODY_BYTES="16MiB") as running:
        yield running


@pytest.fixture
def records(home: Path, reader: Reader) -> Records:
    """What it has recorded."""
    return Records(reader, home / "requests.db")


def ask(running: Proxy, body: bytes, scenario: str = "auto", *headers: tuple[str, str]) -> Answer:
    """A ``POST /v1/messages``."""
    return call(running.port, "POST", "/v1/messages", [play(scenario), *headers], body)


def messages(*texts: str) -> list[dict[str, Any]]:
    """A conversation, the user first."""
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


# -- what is kept


class TestBitForBit:
    """Each body as it was on its wire."""

    def test_a_relayed_stream(self, recorded: Proxy, records: Records) -> None:
        """Request, events with the times at which they came, the message that they tell, and all that is known."""
        body = prompt("How do swallows sleep?", stream=True)
        before = time.time()
        answer = ask(recorded, body, "auto?count=8&interval=0.03", *CLAUDE_CODE)
        after = time.time()
        whole = ask(recorded, prompt("How do swallows sleep?"), "auto?count=8")
        kept = records.wait_over(id_of(answer))
        assert kept.data(Role.REQUEST) == body
        assert kept.data(Role.ANSWER) == answer.body
        assert json.loads(kept.data(Role.MESSAGE) or b"") == whole.json()
        assert set(kept.bodies) == {Role.REQUEST, Role.ANSWER, Role.MESSAGE}

        exchange, told = kept.exchange, whole.json()
        assert (exchange.method, exchange.path, exchange.query) == ("POST", "/v1/messages", None)
        assert (exchange.status, exchange.verdict, exchange.lost) == (200, "complete", None)
        assert (exchange.client, exchange.provider) == ("127.0.0.1", "anthropic")
        assert (exchange.model, exchange.routed_model, exchange.stream, exchange.demoted) == (OPUS, None, True, False)
        assert (exchange.session, exchange.prompt) == ("session-1", "prompt-1")
        assert (exchange.agent, exchange.parent_agent) == ("agent-1", "agent-0")
        assert (exchange.request_class, exchange.agent_type) == ("subagent", "Explore")
        assert exchange.user_agent == "claude-cli/2.1.300 (external, cli)"
        assert (exchange.request_bytes, exchange.response_bytes) == (len(body), len(answer.body))
        assert (exchange.message_id, exchange.stop_reason) == (told["id"], told["stop_reason"])
        assert exchange.usage is not None
        assert exchange.usage["output_tokens"] == exchange.output_tokens == told["usage"]["output_tokens"]
        assert exchange.input_tokens == told["usage"]["input_tokens"]
        assert exchange.cost_nanousd is not None
        assert exchange.cost_nanousd > 0
        assert not exchange.cost_is_partial
        assert (exchange.error_type, exchange.error_message) == (None, None)
        assert exchange.upstream_request_id == answer.header("request-id")
        assert exchange.rate_limits is not None
        assert exchange.rate_limits["anthropic-ratelimit-unified-5h-utilization"] == "0.73"
        assert len(exchange.rate_limits) == 4

        # Times: in order, and on the right day.
        assert before - 0.001 <= exchange.received_at / 1e6 <= after
        times = [
            exchange.body_read_us,
            exchange.connected_us,
            exchange.headers_us,
            exchange.first_event_us,
            exchange.last_byte_us,
        ]
        known = [each for each in times if each is not None]
        assert len(known) == len(times)
        assert known == sorted(known)
        assert known[-1] <= (after - before) * 1e6 + 1000

        # The stream can be played again at its pace.
        marks = kept.bodies[Role.ANSWER].marks
        events = answer.body.count(b"\n\n")
        assert marks[-1].end == len(answer.body)
        assert [mark.end for mark in marks] == sorted({mark.end for mark in marks})
        assert [mark.us for mark in marks] == sorted(mark.us for mark in marks)
        assert marks[-1].us - marks[0].us >= 0.03e6 * (events - 1)
        assert len(marks) >= events / 2

    def test_headers_by_allow_list(self, recorded: Proxy, records: Records) -> None:
        """What is listed, as it came; nothing else, in neither direction."""
        kept = records.wait_over(id_of(ask(recorded, prompt("headers"), "auto", *CLAUDE_CODE)))
        request = dict(kept.exchange.request_headers)
        assert request["anthropic-beta"] == "claude-code-20250219,interleaved-thinking-2025-05-14"
        assert request["x-stainless-retry-count"] == "0"
        assert request["x-claude-code-agent-type"] == "Explore"
        assert not {"x-api-key", "authorization", "x-not-listed", "x-standin", "host", "cookie"} & request.keys()
        response = dict(kept.exchange.response_headers)
        assert response["content-type"] == "application/json"
        assert "anthropic-ratelimit-unified-status" in response
        assert not {"set-cookie", "vary", "strict-transport-security"} & response.keys()

    def test_the_same_credential_has_the_same_name(self, recorded: Proxy, records: Records) -> None:
        """In either header; another one has another; without any there is none."""

        sent = [[("x-api-key", "key-1")], [("authorization", "Bearer key-1")], [("x-api-key", "key-2")], []]
        answers = [ask(recorded, prompt("who"), "auto", *headers) for headers in sent]
        one, same, other, none = (records.wait_over(id_of(each)).exchange.credential for each in answers)
        assert one is not None
        assert re.fullmatch("[0-9a-f]{20}", one)
        assert one == same
        assert other not in (one, None)
        assert none is None

    def test_a_whole_answer(self, recorded: Proxy, records: Records) -> None:
        """JSON that is not streamed; no message beside it, as it is one."""
        body = prompt("whole")
        answer = ask(recorded, body)
        kept = records.wait_over(id_of(answer))
        assert {role: stored.data for role, stored in kept.bodies.items()} == {
            Role.REQUEST: body,
            Role.ANSWER: answer.body,
        }
        assert kept.exchange.output_tokens == answer.json()["usage"]["output_tokens"]
        assert kept.exchange.stream is False
        assert kept.exchange.cost_nanousd

    def test_a_demoted_request(self, recorded: Proxy, home: Path, upstream: StandIn, records: Records) -> None:
        """All four: asked, sent upstream, received, answered. By another proxy, into the same file."""
        mark = upstream.mark()
        with recording(home, upstream, ANTHROPIC_DEMOTE_NONSTREAMING="true") as demoting:
            body = prompt("demoted")
            answer = ask(demoting, body)
            kept = records.wait_over(id_of(answer))
        (seen,) = upstream.requests(mark)
        assert kept.data(Role.REQUEST) == body
        assert kept.data(Role.FORWARDED) == seen.body
        assert json.loads(seen.body)["stream"] is True
        received = kept.data(Role.RECEIVED)
        assert received is not None
        assert received.startswith(b"event: message_start\n")
        assert kept.data(Role.ANSWER) == answer.body
        assert kept.exchange.demoted
        assert kept.exchange.stream is False
        assert kept.exchange.output_tokens == answer.json()["usage"]["output_tokens"]

    def test_an_error_of_the_upstream(self, recorded: Proxy, records: Records) -> None:
        """With its type."""
        answer = ask(recorded, prompt("too much"), "error?status=529&retry_after=7")
        kept = records.wait_over(id_of(answer))
        assert kept.data(Role.ANSWER) == answer.body
        assert (kept.exchange.status, kept.exchange.verdict) == (529, "complete")
        assert kept.exchange.error_type == "overloaded_error"
        assert ("retry-after", "7") in kept.exchange.response_headers
        assert kept.exchange.cost_nanousd is None

    def test_an_error_of_the_proxy(self, recorded: Proxy, upstream: StandIn, records: Records) -> None:
        """The upstream hung up: what the client was told is the answer."""
        body = prompt("reset")
        answer = ask(recorded, body, "auto?wire_at=0&how=rst")
        assert answer.status == 502
        kept = records.wait_over(id_of(answer))
        assert kept.data(Role.REQUEST) == body
        assert kept.data(Role.ANSWER) == answer.body
        assert (kept.exchange.status, kept.exchange.verdict) == (502, "failed")
        assert kept.exchange.error_message == answer.json()["error"]["message"]

    def test_a_refused_request(self, recorded: Proxy, records: Records) -> None:
        """Its body is too large: it is there, with the refusal."""
        with Client(recorded.port) as client:
            client.send(b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
            answer = client.answer()
        assert answer.status == 413
        kept = records.wait_over(id_of(answer))
        assert (kept.exchange.status, kept.exchange.verdict) == (413, "refused")
        assert kept.exchange.error_type == "request_too_large"
        assert kept.data(Role.ANSWER) == answer.body

    def test_an_encoded_upload(self, recorded: Proxy, records: Records) -> None:
        """The encoded bytes are kept; what they say is known all the same."""
        body = gzip.compress(prompt("deep inside", stream=True))
        answer = ask(recorded, body, "message", ("content-encoding", "gzip"), ("content-type", "application/json"))
        kept = records.wait_over(id_of(answer))
        stored = kept.bodies[Role.REQUEST]
        assert (stored.data, stored.content_encoding) == (body, "gzip")
        assert (kept.exchange.model, kept.exchange.stream, kept.exchange.messages) == (OPUS, True, 1)

    def test_an_encoded_answer(self, recorded: Proxy, records: Records) -> None:
        """The same in the other direction, though it was not asked for."""
        answer = ask(recorded, prompt("packed"), "auto?gzip=1")
        kept = records.wait_over(id_of(answer))
        assert kept.data(Role.ANSWER) == answer.body
        assert kept.bodies[Role.ANSWER].content_encoding == "gzip"
        told = json.loads(gzip.decompress(answer.body))
        assert kept.exchange.output_tokens == told["usage"]["output_tokens"]

    def test_an_upload_that_is_broken_off(self, recorded: Proxy, records: Records) -> None:
        """What came of it is kept."""
        body = prompt("never to be finished " * 5000)
        whole = request_bytes("POST", "/v1/messages", [("x-claude-code-session-id", "broken-off")], body)
        sent = whole[: -len(body) // 2]
        with Client(recorded.port) as client:
            client.send(sent)
            seen = records.wait_for(
                lambda all_: any(each.session == "broken-off" for each in all_.values()), "it is seen arriving"
            )
            (arriving,) = (each for each in seen.values() if each.session == "broken-off")
            assert (arriving.verdict, arriving.body_read_us, arriving.status) == (None, None, None)
            client.finish()
            client.finish_reading()
        kept = records.wait_over(arriving.id)
        assert kept.exchange.verdict == "client_gone"
        assert kept.data(Role.REQUEST) == sent[len(whole) - len(body) :]
        assert kept.exchange.request_bytes == len(sent) - (len(whole) - len(body))

    @pytest.mark.parametrize("how", ["fin", "rst"])
    def test_a_stream_that_the_upstream_cuts(self, recorded: Proxy, records: Records, how: str) -> None:
        """As far as it came; the message as far as it is told; the cost as a lower bound."""
        answer = ask(recorded, prompt("cut", stream=True), f"auto?count=30&at=900&how={how}")
        assert not answer.whole
        kept = records.wait_over(id_of(answer))
        got = kept.data(Role.ANSWER)
        assert got is not None
        assert got == answer.body if how == "fin" else got.startswith(answer.body)
        assert kept.exchange.verdict == "truncated"
        partial = json.loads(kept.data(Role.MESSAGE) or b"")
        assert partial["role"] == "assistant"
        assert kept.exchange.cost_nanousd
        assert kept.exchange.cost_is_partial

    def test_a_stream_whose_client_leaves(self, recorded: Proxy, records: Records) -> None:
        """All that was written to it."""
        with Client(recorded.port) as client:
            client.ask("POST", "/v1/messages", [play("auto?count=30&gate=never@4")], prompt("gone", stream=True))
            head = client.read_until(b"\r\n\r\n")
            client.read_until(b"content_block_delta")
        found = re.search(rb"x-proxy-request-id: (\S+)", head, re.IGNORECASE)
        assert found is not None
        kept = records.wait_over(found[1].decode())
        assert kept.exchange.verdict == "client_gone"
        assert (kept.data(Role.ANSWER) or b"").count(b"\n\n") == 4

    def test_a_request_that_hangs_is_seen_hanging(self, recorded: Proxy, upstream: StandIn, records: Records) -> None:
        """With what its headers and its body say, while nobody answers it; and once, at its end."""
        body = json.dumps({"model": OPUS, "max_tokens": 9, "messages": messages("Hello?")}).encode()
        with Client(recorded.port) as client:
            headers = [play("auto?header_gate=records-hang"), ("x-claude-code-session-id", "hanging")]
            client.ask("POST", "/v1/messages", headers, body)

            def seen(all_: dict[str, Any]) -> bool:
                return any(each.session == "hanging" and each.model is not None for each in all_.values())

            hanging = [each for each in records.wait_for(seen, "it is seen").values() if each.session == "hanging"]
            (exchange,) = hanging
            assert (exchange.verdict, exchange.status, exchange.model, exchange.messages) == (None, None, OPUS, 1)
            assert exchange.body_read_us is not None
            assert list(records.exchanges(Query(in_flight=True, session="hanging"))) == [exchange.id]
            upstream.release("records-hang")
            answer = client.answer()
        kept = records.wait_over(exchange.id)
        assert id_of(answer) == exchange.id
        assert kept.data(Role.ANSWER) == answer.body
        assert len(records.exchanges(Query(session="hanging"))) == 1

    def test_methods_without_a_body(self, recorded: Proxy, records: Records) -> None:
        """Each request below /v1, whatever it is; of a query, the values that may be told."""
        with Client(recorded.port) as client:
            listed = client.call("GET", "/v1/models?limit=2&token=hush")
            headed = client.call("HEAD", "/v1/models")
            deleted = client.call("DELETE", "/v1/files/file_1")
        kept = records.wait_over(id_of(listed))
        assert kept.data(Role.REQUEST) is None
        assert kept.data(Role.ANSWER) == listed.body
        assert kept.exchange.query == "limit=2&token=***"
        assert records.wait_over(id_of(headed)).bodies == {}
        assert records.wait_over(id_of(deleted)).exchange.method == "DELETE"

    def test_what_is_ours_is_not_recorded(self, recorded: Proxy, records: Records) -> None:
        """Health checks come every second."""
        own = {id_of(call(recorded.port, "GET", path)) for path in ("/health", "/livez", "/", "/nothing")}
        records.wait_over(id_of(call(recorded.port, "GET", "/v1/models")))
        assert not own & records.exchanges().keys()


def _random(size: int) -> bytes:
    return random.Random(size).randbytes(size)


BOM: Final = b"\xef\xbb\xbf"
ODD: Final[dict[str, bytes]] = {
    "empty": b"",
    "a NUL in a string": b'{"model":"m","messages":[{"role":"user","content":"a\x00b"}]}',
    "an escaped NUL": b'{"model":"m\\u0000","messages":[{"role":"user","content":"a\\u0000b"}]}',
    "a lone surrogate": b'{"model":"m","messages":[{"role":"user","content":"\\ud83d and \\udc00"}]}',
    "a lone surrogate in the model": b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}',
    "NaN": b'{"model":"m","temperature":NaN,"messages":[{"role":"user","content":"x"}]}',
    "Infinity": b'{"model":"m","max_tokens":-Infinity,"messages":[]}',
    "a number out of range": b'{"model":"m","max_tokens":1e400,"messages":[{"role":"user","content":"x","n":1e400}]}',
    "a long number": b'{"model":"m","max_tokens":' + b"9" * 5000 + b',"messages":[]}',
    "deep": b'{"model":"m","messages":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep in a message": b'{"model":"m","messages":[{"role":"user","content":'
    + b'{"a":' * 5000
    + b"1"
    + b"}" * 5000
    + b"}]}",
    "deep and not closed": b"[" * 5000,
    "invalid UTF-8": b'{"model":"m","messages":[{"role":"user","content":"\xff\xfe\xed\xa0\x80"}]}',
    "a BOM": BOM + b'{"model":"m","messages":[{"role":"user","content":"x"}]}',
    "UTF-16": '{"model":"m","messages":[]}'.encode("utf-16"),
    "twice the same name": b'{"model":"a","model":"b","messages":[],"messages":[{"role":"user","content":"x"}]}',
    "cut in the middle": b'{"model":"m","messages":[{"role":"user","content":"hal',
    "more behind it": b'{"model":"m","messages":[]} trailing',
    "blanks": b' \r\n\t{ "model" :\t"m" , "messages" : [ { "role" : "user" , "content" : "x" } ] } \n',
    "no object": b"null",
    "the wrong types": b'{"model":7,"messages":{"role":[]},"stream":"yes","system":[1,null],"tools":3}',
    "random": _random(5 * 1024 * 1024),
}


class TestOddBodies:
    """Any body, JSON or not, valid or not, goes through, is kept, and comes back."""

    def test_each_comes_back(self, recorded: Proxy, records: Records) -> None:
        """As a request; and nothing of it is lost, or stops what comes after it."""
        asked = {}
        for name, body in ODD.items():
            # The stand-in need not understand it.
            asked[name] = id_of(ask(recorded, body, "bytes?size=2", *CLAUDE_CODE))
        last = id_of(ask(recorded, prompt("after all of them")))
        records.wait_over(last)
        for name, body in ODD.items():
            kept = records.wait_over(asked[name])
            assert (kept.data(Role.REQUEST) or b"") == body, name
            assert kept.exchange.request_bytes == len(body), name
            assert (kept.exchange.verdict, kept.exchange.lost) == ("complete", None), name
            assert kept.exchange.session == "session-1", name
        assert "Traceback" not in recorded.log

    def test_odd_answers(self, recorded: Proxy, records: Records) -> None:
        """Bytes that are no JSON though they say so, no event stream though they say so, and none at all."""
        scenarios = [
            "bytes?size=3000000&header=Content-Type:application/json",
            "bytes?size=70000&framing=chunked&header=Content-Type:text/event-stream",
            "bytes?size=0",
            "empty?status=204",
            "error?status=500&body=<html>%00</html>",
            "auto?huge=300000",
            "auto?eol=cr&comments=1&ids=1&retry=5&unterminated=1",
            "auto?error_at=3",
        ]
        answers = [ask(recorded, prompt("odd answer", stream=True), scenario) for scenario in scenarios]
        for scenario, answer in zip(scenarios, answers, strict=True):
            kept = records.wait_over(id_of(answer))
            assert (kept.data(Role.ANSWER) or b"") == answer.body, scenario
            assert kept.exchange.lost is None, scenario
        assert "Traceback" not in recorded.log


class TestConversations:
    """Which request continues which, by what they say."""

    def test_turns_forks_and_repeats(self, recorded: Proxy, records: Records) -> None:
        """Each turn names the one before it; what is asked twice, and what parts, show as such."""

        def turn(*texts: str) -> str:
            body = json.dumps({"model": OPUS, "max_tokens": 5, "messages": messages(*texts)}).encode()
            return id_of(ask(recorded, body, "auto", ("x-claude-code-session-id", "talk")))

        first = turn("A story, please.")
        second = turn("A story, please.", "Once upon a time", "Go on.")
        third = turn("A story, please.", "Once upon a time", "Go on.", "there was", "More.")
        other = turn("A story, please.", "Once upon a time", "No, another.")
        again = turn("A story, please.", "Once upon a time", "No, another.")
        records.wait_complete([first, second, third, other, again])
        found = records.exchanges(Query(session="talk"))
        assert {each.conversation for each in found.values()} == {first}
        links = {each.id: (each.parent, each.link) for each in found.values()}
        assert links == {
            first: (None, None),
            second: (first, Link.CONTINUES),
            third: (second, Link.CONTINUES),
            other: (first, Link.FORKS),
            again: (other, Link.REPEATS),
        }

    def test_a_search_finds_it(self, recorded: Proxy, records: Records) -> None:
        """By words of the question, and of the answer."""
        answer = ask(recorded, prompt("Why do Zürich's swifts never land?", stream=True), "auto?count=5")
        records.wait_over(id_of(answer))
        assert list(records.exchanges(Query(text='zurich "never land"'))) == [id_of(answer)]


class TestPlaces:
    """Where it is kept, of a process that changes its directory, or itself, at its start."""

    def twistd(self, directory: Path, upstream: StandIn, *options: str) -> Process:
        environment = clean_environment(PYTHONPATH=str(CHECKOUT), RECORD="full", ANTHROPIC_FORWARD_URL=upstream.url)
        twistd = Path(sys.executable).parent / "twistd"
        own = ("claude-proxy", "--listen=tcp:0:interface=127.0.0.1")
        arguments: tuple[str | Path, ...] = (sys.executable, twistd, *options, *own)
        return Process(arguments, environment=environment, cwd=directory)

    def test_another_working_directory(self, tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
        """``twistd --rundir``: everything is there, and nothing where it was typed."""
        there = tmp_path / "there"
        there.mkdir()
        with self.twistd(tmp_path, upstream, "-n", "--pidfile=", "--rundir=there") as running:
            port = int(running.wait_for_line(LISTENING).group(1))
            answer = call(port, "POST", "/v1/messages", [], prompt("elsewhere"))
            Records(reader, there / "requests.db").wait_over(id_of(answer))
            running.stop()
        assert list(tmp_path.iterdir()) == [there]

    def test_a_daemon(self, tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
        """``twistd`` without ``-n`` goes on as another process: that one records, and is named in the store."""
        with self.twistd(tmp_path, upstream, "--pidfile=daemon.pid", "--logfile=daemon.log") as running:
            assert running.wait(30) == 0
        log = tmp_path / "daemon.log"
        pid = int((tmp_path / "daemon.pid").read_text())
        with ended(pid):
            listening = wait_for(lambda: log.exists() and re.search(LISTENING, log.read_text()), "it listens", 30)
            answer = call(int(listening.group(1)), "POST", "/v1/messages", [], prompt("in the background"))
            Records(reader, tmp_path / "requests.db").wait_over(id_of(answer))
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: is_dead(pid), f"it has ended\n{log.read_text()}", 30)
        with closing(sqlite3.connect(tmp_path / "requests.db")) as database:
            assert database.execute("SELECT pid FROM instances").fetchall() == [(pid,)]
        assert slots(tmp_path / "requests.db-spool") == []


# -- what is never kept


class Secrets:
    """Words that nobody else uses, each sent in another place. Made anew for each test."""

    def __init__(self) -> None:
        self.all: dict[str, str] = {}

    def __call__(self, place: str) -> str:
        return self.all.setdefault(place, f"canary-{len(self.all)}-{secrets.token_hex(8)}")

    def key(self, place: str) -> str:
        """One in the shape of an API key."""
        return self.all.setdefault(place, f"sk-ant-api03-{secrets.token_hex(12)}")


def contents(paths: Iterable[Path]) -> Iterator[tuple[Path, bytes]]:
    """Files with their bytes. One that is gone before it is read was another moment's."""
    for path in paths:
        try:
            yield path, path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue


def files_below(*directories: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file with its bytes."""
    return contents(path for directory in directories for path in directory.rglob("*") if path.is_file())


def found_in(data: bytes, words: dict[str, str]) -> list[str]:
    return [place for place, word in words.items() if word.encode() in data]


def assert_nowhere(words: dict[str, str], *directories: Path, besides: tuple[Path, ...] = ()) -> None:
    """None of the words stands in any file."""
    for path, data in files_below(*directories):
        assert path in besides or not found_in(data, words), (path, found_in(data, words))


def wait_spooled(directory: Path, answer: Answer) -> None:
    """Wait until the end of an exchange stands in a file."""
    closed = bytes([Kind.CLOSED]) + exchange_key(id_of(answer))
    wait_for(lambda: any(closed in data for _, data in files_below(directory)), "the journal is written")


def everything(records: Records) -> bytes:
    """All that the store tells, uncompressed: what a search of its files would not see."""
    told = []
    for kept in records.kept(*records.exchanges()).values():
        told.append(repr(kept.exchange).encode())
        told += [body.data for body in kept.bodies.values()]
    return b"\n".join(told)


def send_secrets(running: Proxy, secret: Secrets) -> list[Answer]:
    """Requests with a credential in every place where clients, and mistakes, put one."""
    body = prompt("nothing of this is secret", stream=True)
    answers = [
        ask(running, body, "auto", ("x-api-key", secret("x-api-key"))),
        ask(running, body, "auto", ("authorization", f"Bearer {secret('bearer')}")),
        ask(running, body, "auto", ("Authorization", f"Basic {secret('basic')}"), ("Cookie", f"s={secret('cookie')}")),
        ask(running, body, "auto", ("proxy-authorization", secret("proxy")), ("x-goog-api-key", secret("google"))),
        ask(running, body, "auto", ("x-auth-token", secret("token")), ("x-amz-security-token", secret("amazon"))),
        ask(running, body, "auto", ("cf-access-client-secret", secret("access")), ("api-key", secret("azure"))),
        # In the wrong place, but in the shape of a key.
        ask(running, body, "auto", ("user-agent", f"tool/1 {secret.key('user agent')}")),
        ask(running, body, "auto", ("x-stainless-helper", secret.key("sdk")), ("x-app", secret.key("app"))),
        ask(running, body, "auto", ("x-claude-code-session-id", secret.key("session"))),
        # Of the upstream.
        ask(running, body, f"auto?cookie=id={secret('set-cookie')}&header=X-Session-Token:{secret('answer header')}"),
        ask(running, body, f"redirect?location=https://x.test/?code={secret('location')}"),
    ]
    queries = (
        f"api_key={secret('query')}",
        f"beta=true&key={secret('second in the query')}",
        f"beta=true;token={secret('behind a semicolon')}",
        f"beta=true%26token={secret('behind an escape')}",
        secret("the whole query"),
        f"scope_id={secret.key('in a name that may be told')}",
        f"code={secret('oauth code')}&state={secret('oauth state')}",
    )
    answers += [call(running.port, "GET", f"/v1/models?{query}") for query in queries]
    paths = (
        "/v1/oauth/token",
        "/v1/%6Fauth/token",
        "/v1/vaults/vlt_1/credentials",
        "/v1/organizations/api_keys",
        "/v1/environments/env_1/work",
        "/v1/tunnels/t_1",
    )
    for path in paths:
        sent = json.dumps({"client_secret": secret(f"sent to {path}")}).encode()
        headers = [play(f"error?status=200&body={secret(f'answered by {path}')}"), ("x-api-key", secret("x-api-key"))]
        answers.append(call(running.port, "POST", path, headers, sent))
    return answers


class TestCredentials:
    """Whatever is kept, a credential that was sent is not, anywhere, at any time."""

    def test_sqlite(self, tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
        """Database, write-ahead log, spool, logs and temporary files, while it runs and afterwards."""
        secret = Secrets()
        temporary = tmp_path / "tmp"
        temporary.mkdir()
        control = {"body": "body-control-word"}
        with recording(tmp_path, upstream, TMPDIR=str(temporary), LOG_FORMAT="json") as running:
            recorder = recorder_of(running)
            records = Records(reader, tmp_path / "requests.db")
            records.wait_over(id_of(ask(running, prompt("first"))))
            # What comes now stays in the spool for as long as we look.
            with frozen(recorder), Client(running.port) as hanging:
                headers = [play("auto?header_gate=canary"), ("x-api-key", secret("hanging"))]
                hanging.ask("POST", "/v1/messages", headers, prompt(control["body"]))
                answers = send_secrets(running, secret)
                wait_spooled(tmp_path, answers[-1])
                assert_nowhere(secret.all, tmp_path)
                spooled = b"".join(path.read_bytes() for path in segments(tmp_path / "requests.db-spool"))
                assert found_in(spooled, control) == ["body"]
                upstream.release("canary")
                assert hanging.answer().status == 200
            for answer in answers:
                records.wait_over(id_of(answer))
            assert (tmp_path / "requests.db-wal").exists()
            assert_nowhere(secret.all, tmp_path)
            running.stop()
        assert_nowhere(secret.all, tmp_path)
        told = everything(records)
        assert found_in(told, secret.all) == []
        assert found_in(told, control) == ["body"]
        assert found_in(running.log.encode(), secret.all) == []
        assert len(running.log.splitlines()) > len(answers)
        # The places themselves are there, without what they held.
        paths = {each.path for each in records.exchanges().values()}
        assert {"/v1/oauth/token", "/v1/vaults/vlt_1/credentials", "/v1/organizations/api_keys"} <= paths
        for path in (tmp_path / "requests.db", *(tmp_path / "requests.db-spool").iterdir()):
            assert path.stat().st_mode & 0o077 == 0, path

    def test_postgresql(self, tmp_path: Path, upstream: StandIn, reader: Reader, database: Database) -> None:
        """All tables, as text; and the password of the URL in no log, file, command line or environment of ours."""
        secret = Secrets()
        password = {"as it is": database.password, "in the URL": database.url.split(":")[2].partition("@")[0]}
        dotenv = tmp_path / ".env"
        dotenv.write_text(f"DATABASE_URL={database.url}\n")
        with recording(tmp_path, upstream, TMPDIR=str(tmp_path)) as running:
            recorder = recorder_of(running)
            answers = send_secrets(running, secret)
            records = Records(reader, database.url)
            for answer in answers:
                records.wait_over(id_of(answer))
            seen = [
                *Path("/proc").glob("[0-9]*/cmdline"),
                *(Path(f"/proc/{pid}/environ") for pid in (running.pid, recorder)),
            ]
            for path, data in contents(seen):
                assert found_in(data, password) == [], path
            # What is wrong is told without it, too.
            database.query(f"ALTER ROLE {database.user} NOLOGIN")
            database.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [database.user])
            ask(running, prompt("while nobody may log in"))
            problem = wait_for(lambda: describe(running)["problem"], "/livez says that it cannot connect", 30)
            assert found_in(problem.encode(), password) == []
            database.query(f"ALTER ROLE {database.user} LOGIN")
            wait_well(running)
            running.stop()
        assert_nowhere(password | secret.all, tmp_path, besides=(dotenv,))
        assert found_in(running.log.encode(), password | secret.all) == []
        tables = database.query("SELECT tablename FROM pg_tables WHERE schemaname = %s", [database.user])
        dumped = b""
        for (table,) in tables:
            for (row,) in database.query(f"SELECT t::text FROM {table} t"):
                dumped += row.encode() + b"\n"
        assert len(tables) > 4
        assert id_of(answers[0]).encode() in dumped
        assert found_in(dumped, secret.all) == []
        assert found_in(everything(records), secret.all) == []


class TestModes:
    """``RECORD=metadata`` and ``RECORD=off``."""

    def test_metadata(self, tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
        """No byte of a body on any disk; model, tokens and cost all the same."""
        words = {"asked": "asked-control-word", "session": "session-1"}
        with recording(tmp_path, upstream, RECORD="metadata", TMPDIR=str(tmp_path)) as running:
            wait_well(running)
            with frozen(recorder_of(running)):
                streamed = ask(running, prompt("asked-control-word", stream=True), "auto?count=40", *CLAUDE_CODE)
                whole = ask(running, prompt("asked-control-word"), "auto", *CLAUDE_CODE)
                cut = ask(running, prompt("asked-control-word", stream=True), "auto?at=900&how=fin", *CLAUDE_CODE)
                words["answered"] = whole.json()["content"][0]["text"]
                wait_spooled(tmp_path, cut)
                bodies = {name: words[name] for name in ("asked", "answered")}
                assert_nowhere(bodies, tmp_path)
            records = Records(reader, tmp_path / "requests.db")
            found = {name: records.wait_over(id_of(each)) for name, each in (("stream", streamed), ("json", whole))}
            found["cut"] = records.wait_over(id_of(cut))
            running.stop()
        assert_nowhere(bodies, tmp_path)
        assert words["answered"].split()[0] in streamed.body.decode()
        for kept in found.values():
            assert kept.bodies == {}
            assert kept.exchange.model == OPUS
            assert kept.exchange.session == "session-1"
            assert kept.exchange.request_bytes > 0
            assert kept.exchange.cost_nanousd
        assert found["stream"].exchange.output_tokens
        assert found["json"].exchange.output_tokens == whole.json()["usage"]["output_tokens"]
        assert found["cut"].exchange.verdict == "truncated"
        assert found["cut"].exchange.cost_is_partial
        assert records.exchanges(Query(text="control")) == {}

    def test_off(self, tmp_path: Path, upstream: StandIn) -> None:
        """No file at all, and no second process."""
        with recording(tmp_path, upstream, RECORD="off", TMPDIR=str(tmp_path)) as running:
            assert ask(running, prompt("off", stream=True)).whole
            assert describe(running) == {"status": "off"}
            listed = subprocess.run(["ps", "--ppid", str(running.pid), "-o", "pid="], capture_output=True, check=False)
            assert listed.stdout.split() == []
            running.stop()
        assert list(tmp_path.iterdir()) == []


# -- the Go program's history


def claude_proxy(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, in a directory."""
    return subprocess.run(
        [sys.executable, "-m", "twisted_proxy.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=directory,
        env=clean_environment(PYTHONPATH=str(CHECKOUT), **environment),
    )


def make_history(path: Path, *rows: dict[str, Any]) -> None:
    """A database of the Go program."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(history.SCHEMA)
    history.insert(path, *rows)


class TestHistory:
    """``claude-proxy import``."""

    def test_twice(self, tmp_path: Path, reader: Reader) -> None:
        """What it brings is there once, however often it is brought; the database that it comes from is untouched."""
        old = tmp_path / "old.db"
        make_history(old, history.ROW, {**history.ROW, "id": "fedcba9876543210"})
        before = old.read_bytes()
        first = claude_proxy(tmp_path, "import", "old.db", DB_PATH="new.db")
        assert (first.returncode, first.stderr) == (0, "")
        records = Records(reader, tmp_path / "new.db")
        brought = records.exchanges()
        assert len(brought) == 2
        assert {each.model for each in brought.values()} == {history.SONNET}
        for kept in records.kept(*brought).values():
            assert json.loads(kept.data(Role.REQUEST) or b"") == history.BODY
        second = claude_proxy(tmp_path, "import", "old.db", DB_PATH="new.db")
        assert (second.returncode, second.stderr) == (0, "")
        assert records.exchanges() == brought
        assert old.read_bytes() == before
        assert_nowhere({"key": history.KEY}, tmp_path, besides=(old,))

    def test_where_it_is_already(self, tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
        """Its file lies at ``DB_PATH``: both live in it, and its rows come in while a proxy records."""
        make_history(tmp_path / "requests.db", history.ROW)
        records = Records(reader, tmp_path / "requests.db")
        with recording(tmp_path, upstream) as running:
            answer = ask(running, prompt("beside it", stream=True))
            records.wait_over(id_of(answer))
            done = claude_proxy(tmp_path, "import", "requests.db")
            assert (done.returncode, done.stderr) == (0, "")
            later = ask(running, prompt("after it"))
            records.wait_over(id_of(later))
            running.stop()
        found = records.exchanges()
        assert len(found) == 3
        assert {id_of(answer), id_of(later)} < found.keys()
        with closing(sqlite3.connect(tmp_path / "requests.db")) as database:
            assert database.execute("SELECT id FROM requests").fetchall() == [(history.ROW["id"],)]

    def test_words_for_what_is_no_such_database(self, tmp_path: Path) -> None:
        """On standard error, and no store is made of it."""
        (tmp_path / "some.db").write_bytes(b"not a database at all, only some text of some length")
        for name in ("some.db", "none.db"):
            done = claude_proxy(tmp_path, "import", name)
            assert done.returncode == 1
            assert name in done.stderr
            assert "Traceback" not in done.stderr
