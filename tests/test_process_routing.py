"""Routing in real processes: drained, held back and counted like everything else; the commands that explain it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.processes import CHECKOUT, WAIT_LIMIT, Proxy, StandIn, clean_environment, proxy, wait_for
from tests.recorded import Reader, Records
from tests.sockets import Answer, Client, call, events_logged, resident_bytes, wait_until_still

MIB: Final = 1 << 20
MESSAGES: Final = "/v1/messages"
CHAT: Final = "/v1/chat/completions"
KEY: Final = (("Authorization", "Bearer sk-ant-of-the-client"),)
REVIEWER: Final = "---\nname: code-reviewer\ndescription: Reviews.\n---\n"


def routing(directory: Path, upstream: StandIn, provider: StandIn, **settings: str) -> Proxy:
    more = {"OPENAI_BASE_URL": provider.url, "OPENAI_API_KEY": "sk-of-the-proxy", "HOME": str(directory / "home")}
    return proxy(directory, upstream, **{**more, **settings})


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, upstream: StandIn, provider: StandIn) -> Iterator[Proxy]:
    with routing(tmp_path_factory.mktemp("routing"), upstream, provider, MAX_RESPONSE_BYTES="1MiB") as found:
        yield found


def body(scenario: str, *, model: str = "gpt", **members: Any) -> bytes:
    messages = [{"role": "user", "content": "Hello"}]
    return json.dumps(
        {"model": f"{model}-standin-{scenario}", "max_tokens": 9, "messages": messages, **members}
    ).encode()


@contextmanager
def begun(running: Proxy, path: str, sent: bytes, **options: Any) -> Iterator[tuple[Client, bytes]]:
    """A client whose stream has begun, and what came so far."""
    with Client(running.port, **options) as client:
        client.ask("POST", path, KEY, sent)
        yield client, client.read_until(b"data: ")


def texts(answer: Answer) -> str:
    """What the deltas of a stream say, in either API."""
    found = []
    for line in answer.body.decode().splitlines():
        data = line.removeprefix("data: ")
        if data == line or data == "[DONE]":
            continue
        event = json.loads(data)
        found += [choice["delta"].get("content") or "" for choice in event.get("choices", ())]
        found.append(event.get("delta", {}).get("text", ""))
    return "".join(found)


def words(count: int) -> str:
    """What the stand-in says."""
    return "".join(f"word{number} " for number in range(count))


both_sides = pytest.mark.parametrize(("path", "model"), [(MESSAGES, "gpt"), (CHAT, "claude")])


def test_a_drain_waits_for_translated_streams(tmp_path: Path, upstream: StandIn, provider: StandIn) -> None:
    """They are counted, and complete before the process ends."""
    scenario = "auto?count=9&delta=6&gate=drain@5"
    with (
        routing(tmp_path, upstream, provider) as running,
        begun(running, MESSAGES, body(scenario, stream=True)) as one,
        begun(running, CHAT, body(scenario, model="claude", stream=True)) as other,
    ):
        assert running.in_flight() == 2
        running.signal(signal.SIGTERM)
        running.wait_for_line("draining: 2 in flight")
        for side in (upstream, provider):
            side.release("drain")
        for client, start in (one, other):
            answer = client.answer(already=start)
            assert answer.whole
            assert texts(answer) == words(9)
        assert running.wait() == -signal.SIGTERM
        lines = events_logged(running.lines, "access")
    assert {line["path"] for line in lines} == {MESSAGES, CHAT}
    assert {(line["status"], line["verdict"]) for line in lines} == {("200", "complete")}


@pytest.mark.parametrize("stream", [False, True])
@both_sides
def test_a_client_that_leaves(
    running: Proxy, upstream: StandIn, provider: StandIn, path: str, model: str, stream: bool
) -> None:
    """Stops whoever works for it, before the head of the answer and behind it; nothing stays counted."""
    side = provider if model == "gpt" else upstream
    mark = side.mark()
    scenario = "auto?count=9&delta=6&gate=never@5" if stream else "auto?header_gate=never"
    with Client(running.port) as client:
        client.ask("POST", path, KEY, body(scenario, model=model, stream=stream))
        if stream:
            client.read_until(b"data: ")
        else:
            side.wait_for(lambda seen: seen and seen[0].body_at, "the request is there", since=mark)
        client.reset()
        assert side.wait_closed(since=mark).closed_by == "rst"
    wait_for(lambda: running.in_flight() == 0, "nothing is in flight")


@both_sides
def test_a_client_that_does_not_read(
    running: Proxy, upstream: StandIn, provider: StandIn, path: str, model: str
) -> None:
    """Of 20 MB the process holds little: the rest waits with the provider, and comes whole in the end."""
    count = 2_000_000
    side = provider if model == "gpt" else upstream
    assert call(running.port, "POST", path, KEY, body("auto?count=9", model=model, stream=True)).whole
    before, mark = resident_bytes(running.pid), side.mark()
    sent = body(f"auto?count={count}&delta=8000", model=model, stream=True)
    with begun(running, path, sent, receive_buffer=8192, limit=60) as (client, start):
        taken = wait_until_still(lambda: sum(each.written for each in side.requests(mark)), limit=60)
        assert taken < 16 * MIB
        assert resident_bytes(running.pid) - before < 8 * MIB
        assert running.get("/health")[0] == 200
        client.widen()
        answer = client.answer(already=start)
    assert answer.whole
    assert texts(answer) == words(count)
    assert resident_bytes(running.pid) - before < 8 * MIB


@both_sides
def test_an_answer_that_is_too_large(running: Proxy, path: str, model: str) -> None:
    """What is translated whole may have MAX_RESPONSE_BYTES; no more of it is taken."""
    before = resident_bytes(running.pid)
    answer = call(running.port, "POST", path, KEY, body("auto?count=500000", model=model))
    assert answer.status == 502
    assert "MAX_RESPONSE_BYTES" in answer.json()["error"]["message"]
    assert resident_bytes(running.pid) - before < 8 * MIB
    wait_for(lambda: events_logged(running.lines, "forward_error", kind="too_large"), "the log tells it")


def test_an_agent_that_is_defined_while_it_runs(tmp_path: Path, upstream: StandIn, provider: StandIn) -> None:
    """Its mapping holds within about a second, and follows each change of the file."""
    prompt = "You are a careful reviewer."
    sent = body("auto", model="claude", system=[{"type": "text", "text": "Hi."}, {"type": "text", "text": prompt}])
    agents = tmp_path / ".claude" / "agents"

    def asked() -> str:
        marks = upstream.mark(), provider.mark()
        assert call(mapping.port, "POST", MESSAGES, (), sent).whole
        found = [upstream.requests(marks[0]), provider.requests(marks[1])]
        ((seen,),) = [each for each in found if each]
        return str(json.loads(seen.body)["model"])

    with routing(tmp_path, upstream, provider, SUBAGENT_MAPPINGS="code-reviewer:gpt-4o") as mapping:
        assert f"no file in {agents}" in mapping.log
        assert asked() == "claude-standin-auto"
        agents.mkdir(parents=True)
        (agents / "reviewer.md").write_text(REVIEWER + prompt + "\n")
        wait_for(lambda: asked() == "gpt-4o", "the agent is known")
        (agents / "reviewer.md").write_text(REVIEWER + "Another prompt.\n")
        wait_for(lambda: asked() == "claude-standin-auto", "the agent has another prompt")


# -- commands --------------------------------------------------------------------------------------------------

RULES: Final = """\
providers:
  local: {kind: openai, base_url: "http://127.0.0.1:9", api_key: sk-hush, max_retries: 0}
routes:
  - match: {agent_type: Explore, model: "claude-*"}
    provider: local
    model: qwen3
    headers: {X-Team: hush}
  - match: {model: claude-2*}
    refuse: Not any more.
subagents:
  mappings: {ghost: gpt-4o}
"""


def command(directory: Path, *arguments: str) -> tuple[int, list[str], str]:
    """The status of a ``claude-proxy`` command, its lines with single blanks, and what it complains of."""
    done = subprocess.run(
        [sys.executable, "-m", "twisted_proxy.cli", *arguments],
        cwd=directory,
        env=clean_environment(PYTHONPATH=str(CHECKOUT), HOME=str(directory / "home")),
        capture_output=True,
        text=True,
        timeout=WAIT_LIMIT * 3,
        check=False,
    )
    return done.returncode, [" ".join(line.split()) for line in done.stdout.splitlines()], done.stderr


def test_check_config_prints_the_rules(tmp_path: Path) -> None:
    """Providers, rules and mappings in effect, without secrets; and the mapping that nothing defines."""
    (tmp_path / "config.yaml").write_text(RULES)
    status, lines, complaints = command(tmp_path, "check-config")
    assert status == 0
    assert any(line.startswith("routes.1 = model claude-*, agent_type Explore → provider local") for line in lines)
    assert any(line.startswith("routes.2 = model claude-2* → refuse: Not any more.") for line in lines)
    assert "hush" not in "".join(lines)
    assert str(tmp_path / ".claude" / "agents") in complaints


def test_explain_route(tmp_path: Path, upstream: StandIn, reader: Reader) -> None:
    """Of a request in a file, and of the same one as a proxy has recorded it: which rule won, and why.

    One whose body is not kept, or that nobody has recorded, is told as that.
    """
    (tmp_path / "config.yaml").write_text(RULES)
    sent = json.loads(body("auto", model="claude"))
    fields = {"x-claude-code-agent-type": "Explore", "x-api-key": "sk-ant-hush"}
    (tmp_path / "request.json").write_text(json.dumps({"path": MESSAGES, "headers": fields, "body": sent}))
    with proxy(tmp_path, upstream, RECORD="full", HOME=str(tmp_path / "home")) as running:
        # Nobody is at the other provider's port: what is recorded is the request.
        answer = call(running.port, "POST", MESSAGES, tuple(fields.items()), json.dumps(sent).encode())
        assert answer.status == 502
        request_id = answer.header("x-proxy-request-id") or ""
        records = Records(reader, tmp_path / "requests.db")
        kept = records.wait_over(request_id)
        assert (kept.exchange.provider, kept.exchange.routed_model) == ("local", "qwen3")
        # The proxy goes on recording meanwhile.
        status, recorded, complaints = command(tmp_path, "explain-route", request_id)
        secret = call(running.port, "POST", "/v1/oauth/token", (), b"{}").header("x-proxy-request-id") or ""
        records.wait_over(secret)
        bodiless = command(tmp_path, "explain-route", secret)
    assert status == 0, complaints
    assert command(tmp_path, "explain-route", "request.json")[1] == recorded
    assert "routes.1 yes: model claude-standin-auto is like claude-* and agent type is Explore" in recorded
    assert "provider local (openai, http://127.0.0.1:9)" in recorded
    assert "asks for qwen3" in recorded
    assert "sets x-team" in [line.lower() for line in recorded]
    assert "hush" not in "".join(recorded)
    for (status, lines, complaints), why in (
        (bodiless, "is recorded without its body"),
        (command(tmp_path, "explain-route", f"req_{'0' * 32}"), "is not in the store"),
    ):
        assert (status, lines) == (1, [])
        assert why in complaints
