"""What is handed to the journal of a request, whatever becomes of it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from tests import corpus
from tests.memory import LAST_CHUNK, STREAM_HEAD, InMemoryProxy, chunk
from twisted_proxy.record.entries import Closed, Opened
from twisted_proxy.record.exchange import Role
from twisted_proxy.record.journal import Tap
from twisted_proxy.record.recording import Recording, read_key

SECRET = "sk-ant-api03-0123456789abcdef"
BODY = b'{"model":"claude-test","stream":true,"messages":[]}'
MESSAGE_EVENTS = [
    corpus.start(),
    corpus.block(0, corpus.TEXT_BLOCK),
    corpus.text(0, "Hello", " there"),
    corpus.stop(0),
    corpus.end(),
]
STREAM = b"".join(MESSAGE_EVENTS)


@attrs.define
class JournalTap:
    """One exchange as the journal would have it."""

    exchange_id: str
    opened: Opened
    bodies: dict[Role, bytes] = attrs.Factory(dict)
    times: dict[Role, list[int]] = attrs.Factory(dict)
    notes: dict[str, Any] = attrs.Factory(dict)
    closings: list[Closed] = attrs.Factory(list)

    def bulk(self, role: Role, data: bytes) -> None:
        assert not self.closings
        self.bodies[role] = self.bodies.get(role, b"") + data

    def marked(self, role: Role, data: bytes, us: int) -> None:
        self.bulk(role, data)
        self.times.setdefault(role, []).append(us)

    def note(self, **fields: Any) -> None:
        assert not self.closings
        self.notes.update({name: value for name, value in fields.items() if value is not None})

    def close(self, closed: Closed) -> None:
        self.closings.append(closed)

    @property
    def closed(self) -> Closed:
        (only,) = self.closings
        return only


class FakeKeeper:
    """Begins records, into memory."""

    def __init__(self, *, bodies: bool = True) -> None:
        self.taps: list[JournalTap] = []
        self.begin = Recording(self._open, bodies=bodies, key=b"k" * 32, wall_clock=lambda: 1_700_000_000.5).begin

    def _open(self, exchange_id: str, opened: Opened) -> Tap:
        self.taps.append(JournalTap(exchange_id, opened))
        return cast("Tap", self.taps[-1])

    async def close(self) -> None:
        """There is nothing to store."""

    @property
    def only(self) -> JournalTap:
        (only,) = self.taps
        return only


def recorded(**options: Any) -> tuple[InMemoryProxy, FakeKeeper]:
    keeper = FakeKeeper(bodies=options.pop("bodies", True))
    return InMemoryProxy(keeper=keeper, **options), keeper


def test_an_exchange_is_there_from_its_headers_on() -> None:
    """A request that hangs in the middle of its body is seen, with what came of it."""
    proxy, keeper = recorded()
    client = proxy.client()
    client.send(b"POST /v1/messages?beta=true&key=hush HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + SECRET.encode())
    assert not keeper.taps
    client.send(b"\r\nAnthropic-Version: 2023-06-01\r\nCookie: a=hush\r\nContent-Length: 100\r\n\r\n")
    tap = keeper.only
    assert (tap.opened.method, tap.opened.path, tap.opened.query) == ("POST", "/v1/messages", "beta=true&key=***")
    assert (tap.opened.received_at, tap.opened.client) == (1_700_000_000_500_000, "127.0.0.1")
    assert dict(tap.opened.request_headers) == {"anthropic-version": "2023-06-01", "content-length": "100"}
    client.send(b"the beginning")
    assert tap.bodies == {Role.REQUEST: b"the beginning"}
    client.leave()
    assert (tap.closed.verdict, tap.closed.request_bytes, tap.closed.status) == ("client_gone", 13, None)


def test_the_credential_is_a_keyed_hash() -> None:
    """Equal ones have equal names, in whichever header; with another key it is another name; itself is nowhere."""
    proxy, keeper = recorded()
    for field in ("X-Api-Key: " + SECRET, "Authorization: Bearer " + SECRET, "X-Api-Key: another", "Accept: x"):
        name, _, value = field.partition(": ")
        proxy.client().request(headers=[(name, value)])
    names = [tap.opened.credential for tap in keeper.taps]
    assert names[0] == names[1] != names[2]
    assert names[3] is None
    assert SECRET not in repr(keeper.taps)


def test_a_stream_is_recorded_as_it_was_relayed() -> None:
    """Both bodies exactly, each piece of the answer with its time, and when each stage was reached."""
    proxy, keeper = recorded()
    client, upstream = proxy.asked(body=BODY)
    proxy.clock.advance(1)
    upstream.send(STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nRequest-Id: req_up\r\nSet-Cookie: a=hush\r\n\r\n"))
    for each in MESSAGE_EVENTS:
        proxy.clock.advance(0.5)
        upstream.send(chunk(each))
    upstream.send(LAST_CHUNK)
    tap = keeper.only
    assert client.answer().body == STREAM
    assert tap.bodies == {Role.REQUEST: BODY, Role.ANSWER: STREAM}
    assert tap.times[Role.ANSWER] == [1_000_000 + 500_000 * number for number in range(1, len(MESSAGE_EVENTS) + 1)]
    assert (tap.notes["body_read_us"], tap.notes["connected_us"], tap.notes["headers_us"]) == (0, 0, 1_000_000)
    assert (tap.notes["status"], tap.notes["provider"], tap.notes["demoted"]) == (200, "anthropic", False)
    assert ("request-id", "req_up") in tap.notes["response_headers"]
    assert "hush" not in repr(tap)
    closed = tap.closed
    assert (closed.verdict, closed.status) == ("complete", 200)
    assert closed.first_event_us == 1_500_000
    assert closed.last_byte_us == tap.times[Role.ANSWER][-1]
    assert (closed.request_bytes, closed.response_bytes) == (len(BODY), len(STREAM))


def test_of_a_demoted_request_all_four_bodies_are_kept() -> None:
    """What the client asked, what was sent, what came, and what the client got, heartbeats included."""
    asked = b'{"model":"claude-test","messages":[]}'
    proxy, keeper = recorded(anthropic_demote_nonstreaming=True, demote_heartbeat=10.0)
    client, upstream = proxy.asked(body=asked)
    upstream.send(STREAM_HEAD)
    proxy.clock.advance(10)
    upstream.send(chunk(STREAM) + LAST_CHUNK)
    tap = keeper.only
    answer = client.answer().body
    assert answer.startswith(b" {")
    assert tap.bodies[Role.REQUEST] == asked
    assert json.loads(tap.bodies[Role.FORWARDED]) == {"stream": True, **json.loads(asked)}
    assert tap.bodies[Role.RECEIVED] == STREAM
    assert tap.bodies[Role.ANSWER] == answer
    assert tap.notes["demoted"] is True


def test_an_error_of_ours_is_recorded_as_the_answer_that_it_is() -> None:
    """The envelope's bytes, and its type and message by themselves."""
    proxy, keeper = recorded(anthropic_max_retries=0)
    proxy.endpoint.failures.append(ConnectionRefusedError())
    client = proxy.client()
    client.request()
    tap = keeper.only
    answer = client.answer()
    assert answer.status == 502
    assert tap.bodies[Role.ANSWER] == answer.body
    assert (tap.closed.verdict, tap.closed.status, tap.closed.error_type) == ("failed", 502, "api_error")
    assert tap.closed.error_message == answer.json["error"]["message"]


def test_a_refused_request_is_recorded() -> None:
    """A body over the limit: the refusal, and none of the body."""
    proxy, keeper = recorded(max_message_bytes=10, max_body_bytes=10)
    client = proxy.client()
    client.request(body=b"x" * 11)
    tap = keeper.only
    assert tap.bodies == {Role.ANSWER: client.answer().body}
    assert (tap.closed.verdict, tap.closed.status, tap.closed.error_type) == ("refused", 413, "request_too_large")


@pytest.mark.parametrize("ending", ["upstream", "client", "drain"])
def test_a_cut_stream_is_recorded_as_far_as_it_came(ending: str) -> None:
    """With the verdict of who cut it; the event that tells a client of the drain's end is in the answer, too."""
    proxy, keeper = recorded(drain_timeout=5.0)
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(MESSAGE_EVENTS[0]))
    if ending == "upstream":
        upstream.reset()
    elif ending == "client":
        client.leave()
    else:
        proxy.service.stopService()
        proxy.clock.pump([1.0] * 6)
    proxy.pump()
    tap = keeper.only
    assert tap.closed.verdict == {"upstream": "truncated", "client": "client_gone", "drain": "drained"}[ending]
    answer = tap.bodies[Role.ANSWER]
    assert answer.startswith(MESSAGE_EVENTS[0])
    assert (b"overloaded_error" in answer) == (ending == "drain")
    assert client.answer().body == answer


@pytest.mark.parametrize(
    "target", ["/v1/oauth/token", "/v1/%6fauth/token", "/V1/../v1/x", "/v1/vaults/v_1/credentials"]
)
def test_paths_that_carry_secrets_leave_no_bodies(target: str) -> None:
    """When and how, and nothing of what was said: not even to the journal."""
    proxy, keeper = recorded()
    client = proxy.client()
    client.request(target=target, body=b'{"token":"hush"}')
    if proxy.endpoint.peers:
        proxy.upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhush")
    for tap in keeper.taps:
        assert tap.opened.keep == "metadata"
        assert tap.bodies == {}
        assert (tap.closed.verdict, tap.closed.status) == ("complete", 200)
    assert "hush" not in repr(keeper.taps)


@pytest.mark.parametrize("demoted", [False, True])
def test_without_bodies_it_is_still_known_what_was_asked_and_what_it_cost(demoted: bool) -> None:
    """``RECORD=metadata``: model and usage are read in memory, and nothing that was said goes further."""
    proxy, keeper = recorded(bodies=False, anthropic_demote_nonstreaming=demoted)
    client, upstream = proxy.asked(body=BODY.replace(b"true", b"false") if demoted else BODY)
    upstream.send(STREAM_HEAD + b"".join(map(chunk, MESSAGE_EVENTS)) + LAST_CHUNK)
    assert client.answer().outcome == "complete"
    tap = keeper.only
    assert tap.bodies == {}
    assert (tap.notes["model"], tap.notes["stream"]) == ("claude-test", not demoted)
    assert tap.notes["usage"]["output_tokens"] == tap.notes["output_tokens"] > 0
    assert tap.notes["stop_reason"] == "end_turn"
    assert tap.notes["cost_is_partial"] is False


def test_without_bodies_the_cost_of_a_cut_answer_is_a_lower_bound() -> None:
    """It says so."""
    proxy, keeper = recorded(bodies=False)
    client, upstream = proxy.asked()
    upstream.send(STREAM_HEAD + chunk(MESSAGE_EVENTS[0]) + chunk(MESSAGE_EVENTS[1]))
    upstream.reset()
    proxy.pump()
    assert client.answer().outcome != "complete"
    assert keeper.only.notes["usage"]
    assert keeper.only.notes["cost_is_partial"] is True


def test_what_is_not_below_v1_is_not_recorded() -> None:
    """Neither our pages nor the editor's warm-up."""
    proxy, keeper = recorded()
    proxy.client().request("HEAD", "/api/hello", body=None)
    proxy.get("/")
    assert not keeper.taps


def test_the_key_of_the_credentials_names_is_made_once(tmp_path: Path) -> None:
    """Every process that uses the directory has the same, and nobody else may read it."""
    first = read_key(tmp_path / "spool")
    assert len(first) == 32
    assert read_key(tmp_path / "spool") == first
    assert (tmp_path / "spool" / "credential-key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "spool").iterdir()] == ["credential-key"]


def test_the_key_is_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    """A process that starts while the disk is full has the same key as the others."""
    first = read_key(tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    assert read_key(tmp_path) == first
    assert logs == []


def test_a_key_that_could_not_be_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logs: list[Any]
) -> None:
    """No file without a name that anybody knows, on a disk that is full already."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    assert len(read_key(tmp_path)) == 32
    assert list(tmp_path.iterdir()) == []
    assert "No space left" in logs[-1]["problem"]


def test_what_is_no_key_is_not_used_as_one(tmp_path: Path, logs: list[Any]) -> None:
    """With an empty one, everybody could tell which credential a hash stands for."""
    path = tmp_path / "credential-key"
    path.write_bytes(b"")
    assert len(read_key(tmp_path)) == 32
    assert path.read_bytes() == b""
    assert "delete it" in logs[-1]["problem"]


def test_without_a_place_for_the_key_there_is_one_for_this_process(tmp_path: Path, logs: list[Any]) -> None:
    """It is said so."""
    (tmp_path / "file").write_bytes(b"")
    assert len(read_key(tmp_path / "file")) == 32
    assert "CREDENTIAL_KEY" in logs[-1]["log_format"]
