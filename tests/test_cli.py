"""The two commands: ``claude-proxy``, and ``twistd claude-proxy`` as far as its options go."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import blockon
from twisted.application.service import IService, IServiceMaker
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs
from twisted.plugin import getPlugins
from twisted.python import usage

from tests.store_contract import exchange_id, record
from twisted_proxy import __version__, cli, tap
from twisted_proxy.config import SETTINGS, Config
from twisted_proxy.record.sql import SqlStore
from twisted_proxy.record.sqlite import SqliteDriver

reactor: Any = installed_reactor


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run to the end, in an environment without settings but ``env``."""
    ours = {setting.env for setting in SETTINGS}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    root = str(Path(__file__).parent.parent)
    clean |= {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=clean, capture_output=True, text=True, timeout=60, check=False
    )


TWISTD = "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"


class TestCheckConfig:
    """``claude-proxy check-config``."""

    def test_prints_every_setting_with_its_source(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """One line each, aligned: name, value, source."""
        (here / "config.yaml").write_text("server:\n  timeouts: {read: 90}\n")
        assert cli.main(["check-config", "--port=0"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        lines = out.splitlines()
        assert [line.split(" = ")[0].strip() for line in lines] == [setting.option for setting in SETTINGS]
        assert len({line.index(" = ") for line in lines}) == 1
        assert len({line.index("   (") for line in lines}) == 1
        words = [" ".join(line.split()) for line in lines]
        assert "port = 0 (option --port)" in words
        assert "read-timeout = 1m30s (config.yaml: server.timeouts.read (line 2))" in words
        assert "listen = tcp:0:interface=127.0.0.1 (from host and port)" in words
        assert "idle-timeout = 10m (default)" in words

    def test_warnings(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What has no effect is said on standard error; the output stays a table."""
        (here / "config.yaml").write_text("storage: {requests_dir: hunter2}\n")
        assert cli.main(["check-config"]) == 0
        out, err = capsys.readouterr()
        assert err == "warning: config.yaml: storage.requests_dir (line 1) has no effect in this version\n"
        assert "hunter2" not in out

    def test_problems(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """All of them on standard error, nothing on standard output, exit status 1."""
        assert cli.main(["check-config", "--port=x", "--hots", "y"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "option --port: 'x'" in err
        assert "did you mean --host?" in err

    def test_needs_no_twisted(self, here: Path) -> None:
        """It is quick: no reactor, no plugins."""
        code = (
            "import sys; from twisted_proxy import cli; assert cli.main(['check-config']) == 0; "
            "assert not [name for name in sys.modules if name.split('.')[0] == 'twisted'], 'twisted is loaded'"
        )
        done = run("-c", code, cwd=here)
        assert (done.returncode, done.stderr) == (0, "")

    def test_routes(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Providers and rules of the file follow the settings, without a secret; what will not work is a warning."""
        (here / "config.yaml").write_text(
            "providers: {local: {kind: openai, api_key: hunter2}}\n"
            "routes: [{match: {model: claude-*}, provider: local, model: qwen3, headers: {X-Key: hunter2}}]\n"
            "subagents: {mappings: {nobody: gpt-4o}}\n"
        )
        assert cli.main(["check-config"]) == 0
        out, err = capsys.readouterr()
        assert "hunter2" not in out
        words = [" ".join(line.split()) for line in out.splitlines()]
        assert "providers.local.api_key = *** (config.yaml: providers.local.api_key (line 1))" in words
        assert (
            "routes.1 = model claude-* → provider local, model qwen3, header X-Key (config.yaml: routes.1 (line 2))"
            in words
        )
        assert "warning: subagents.mappings has no effect for nobody (gpt-4o): no file in " in err
        assert str(here / ".claude" / "agents") in err


class TestExplainRoute:
    """``claude-proxy explain-route``."""

    @pytest.fixture(autouse=True)
    def rules(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A rule, a mapped agent, and its definition."""
        monkeypatch.setenv("HOME", str(here / "home"))
        (here / "config.yaml").write_text(
            "routes: [{match: {model: claude-2*}, refuse: Not any more.}]\n"
            "subagents: {mappings: {code-reviewer: gpt-4o}}\n"
        )
        agents = here / ".claude" / "agents"
        agents.mkdir(parents=True)
        (agents / "code-reviewer.md").write_text("---\nname: code-reviewer\n---\nYou review.\n")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ('{"model": "claude-2.1"}', "refused Not any more."),
            ('{"model": "claude-3"}', "because no rule matched, and claude-3 is of anthropic"),
            ('{"model": "claude-3", "system": "You review."}', "asks for gpt-4o"),
            ('{"path": "/v1/files", "body": {}}', "because no rule is about this path"),
        ],
    )
    def test_file(self, here: Path, content: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
        """A body, or a whole request: where it would go, and why."""
        (here / "request.json").write_text(content)
        assert cli.main(["explain-route", "request.json", "--openai-api-key=hunter2"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert "hunter2" not in out
        assert words in [" ".join(line.split()) for line in out.splitlines()]

    def test_standard_input(self, here: Path) -> None:
        """``-`` reads it; Twisted is not needed for it."""
        code = (
            "import sys; from twisted_proxy import cli; assert cli.main(['explain-route', '-']) == 0; "
            "assert not [name for name in sys.modules if name.split('.')[0] == 'twisted'], 'twisted is loaded'"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=here, input='{"model": "claude-2"}', capture_output=True, text=True,
            timeout=60, check=False, env={"PYTHONPATH": str(Path(__file__).parent.parent), "HOME": str(here)},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "Not any more." in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "status", "words"),
        [
            ([], 2, "name a file"),
            (["--port=1"], 2, "name a file"),
            (["missing.json"], 1, "claude-proxy: missing.json cannot be read: No such file or directory"),
            (["config.yaml"], 1, "claude-proxy: config.yaml is no JSON object"),
            (["config.yaml", "--prot=1"], 1, "option --prot: is unknown"),
        ],
    )
    def test_wrong(
        self, here: Path, arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """No file, none of that name, none that is a request, and a configuration that is wrong."""
        assert cli.main(["explain-route", *arguments]) == status
        out, err = capsys.readouterr()
        assert out == ""
        assert words in err


class TestExplainRecorded:
    """``claude-proxy explain-route`` with the id of a recorded request."""

    ASKED = ("-m", "twisted_proxy.cli", "explain-route", exchange_id(1))

    @pytest.fixture
    def file(self, here: Path) -> Path:
        """A store with one request."""
        file = here / "requests.db"

        async def fill() -> None:
            store = SqlStore(SqliteDriver(reactor, file))
            await store.open()
            await store.write([record(1, b'{"model":"claude-3"}')])
            await store.close()

        blockon(Deferred.fromCoroutine(fill()))
        return file

    def test_recorded(self, here: Path, file: Path) -> None:
        """Where it would go now; the store is only read."""
        before = file.read_bytes()
        done = run(*self.ASKED, cwd=here)
        assert (done.returncode, done.stderr) == (0, "")
        assert "claude-3 is of anthropic" in done.stdout
        assert file.read_bytes() == before

    @pytest.mark.parametrize(
        ("content", "words"),
        [(None, "there is no SQLite database"), (b"", "has no tables of this program yet")],
    )
    def test_no_store(self, here: Path, content: bytes | None, words: str) -> None:
        """It says so, and makes none."""
        if content is not None:
            (here / "requests.db").write_bytes(content)
        before = sorted(here.iterdir())
        done = run(*self.ASKED, cwd=here)
        assert (done.returncode, done.stdout) == (1, "")
        assert str(here / "requests.db") in done.stderr
        assert words in done.stderr
        assert sorted(here.iterdir()) == before


class TestCommand:
    """``claude-proxy`` itself."""

    @pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
    def test_help(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Without arguments too: every command with what it does."""
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        for name, command in cli.COMMANDS.items():
            assert name in out
            assert command.summary in out

    @pytest.mark.parametrize("arguments", [["--version"], ["check-config", "--version"], ["run", "--version"]])
    def test_version(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """The version of the package."""
        assert cli.main(arguments) == 0
        assert capsys.readouterr().out == f"claude-proxy {__version__}\n"

    @pytest.mark.parametrize("command", sorted(cli.COMMANDS))
    def test_help_of_a_command(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        """It lists every option, and does nothing else."""
        assert cli.main([command, "--port=x", "--help"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"Usage: claude-proxy {command} {cli.COMMANDS[command].operands}[options]\n")
        for setting in SETTINGS:
            assert f"  --{setting.option}" in out

    @pytest.mark.parametrize("name", ["serve", "--port=1", ""])
    def test_unknown(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        """An unknown command is answered with the known ones, and exit status 2."""
        assert cli.main([name]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "run, check-config, explain-route" in err

    def test_run_is_twistd(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """``run`` hands its arguments to ``twistd``, in the foreground and without a pid file."""
        import twisted.scripts.twistd

        seen = []
        monkeypatch.setattr(sys, "argv", [])
        monkeypatch.setattr(twisted.scripts.twistd, "run", lambda: seen.append(sys.argv))
        assert cli.main(["run", "--port", "0"]) == 0
        assert seen == [["twistd", "--nodaemon", "--pidfile=", "claude-proxy", "--port", "0"]]


class TestOptions:
    """`tap.Options`, in this process."""

    def test_config(self, here: Path) -> None:
        """After parsing, the configuration is there, defaults and all."""
        options = tap.Options()
        options.parseOptions([])
        assert options.config == Config()
        options.parseOptions(["--listen=unix:x", "--drain-timeout", "1m"])
        assert options.config == Config(listen=("unix:x",), drain_timeout=60)

    def test_wrong(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A wrong configuration ends the process with one message, which is not a usage error to ``twistd``."""
        (here / ".env").write_text("READ_TIMEOUT=soon\n")
        with pytest.raises(SystemExit) as caught:
            tap.Options().parseOptions(["--nope", "--port"])
        assert isinstance(caught.value.code, str)
        for words in ("option --nope", "option --port", ".env: READ_TIMEOUT"):
            assert words in caught.value.code
        assert capsys.readouterr() == ("", "")

    def test_rundir_is_the_working_directory(self, here: Path) -> None:
        """``twistd --rundir`` says where the files are, although ``twistd`` goes there later."""
        (here / "below").mkdir()
        (here / "below" / "config.yaml").write_text("server: {port: 7}")
        options = tap.Options()
        parent = usage.Options()
        parent["rundir"] = "below"
        options.parent = parent
        options.parseOptions([])
        assert options.config.listen == ("tcp:7:interface=127.0.0.1",)

    def test_known_to_completion(self) -> None:
        """Twisted's shell completion finds the options where it looks for them."""
        assert [row[0] for row in tap.Options.optParameters] == [setting.option for setting in SETTINGS]

    def test_make_service(self, here: Path) -> None:
        """The plugin leads to a service with this configuration; warnings are logged once."""
        (here / "config.yaml").write_text("storage: {requests_dir: x}\n")
        (maker,) = [each for each in getPlugins(IServiceMaker) if each.tapname == "claude-proxy"]
        options = maker.options()
        options.parseOptions(["--port=0"])
        with capturedLogs() as events:
            service = maker.makeService(options)
        assert IService.providedBy(service)
        told = [event["warning"] for event in events if event["log_namespace"] == "twisted_proxy.tap"]
        assert told == ["config.yaml: storage.requests_dir (line 1) has no effect in this version"]


class TestTwistd:
    """Real processes: what ``twistd`` makes of it cannot be seen otherwise."""

    def test_wrong_configuration(self, here: Path) -> None:
        """Exit status 1, the message on standard error alone, no traceback and no help page, no files left."""
        done = run("-c", TWISTD, "-n", "claude-proxy", "--port=x", cwd=here, DRAIN_TIMEOUT="long")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.splitlines()[0] == "claude-proxy: the configuration has 2 problems"
        assert len(done.stderr.splitlines()) == 3
        assert list(here.iterdir()) == []

    def test_help(self, here: Path) -> None:
        """``twistd claude-proxy --help`` documents every setting, and exits 0 without a reactor or a log."""
        done = run("-c", TWISTD, "claude-proxy", "--help", cwd=here)
        assert (done.returncode, done.stderr) == (0, "")
        for setting in SETTINGS:
            assert f"  --{setting.option}" in done.stdout
            assert setting.env in done.stdout

    def test_run_serves_and_leaves_nothing(self, here: Path) -> None:
        """``claude-proxy run`` serves where it was told to, ends on SIGTERM by that signal, and leaves no pid file."""
        root = str(Path(__file__).parent.parent)
        environment = {"PYTHONPATH": root, "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
        with (here / "log").open("w+") as log:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "twisted_proxy.cli",
                    "run", "--listen=unix:p.sock", "--log-format=json", "--record=off",
                ],
                cwd=here, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                deadline = time.monotonic() + 30
                # Asked again until it answers or has ended: there is nothing else to wait for.
                while (status := _livez(here / "p.sock")) is None and process.poll() is None:
                    assert time.monotonic() < deadline, (here / "log").read_text()
                    time.sleep(0.02)
                assert status == 200, (here / "log").read_text()
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == -signal.SIGTERM
            finally:
                process.kill()
                process.wait()
        assert {path.name for path in here.iterdir()} <= {"log", "p.sock", "p.sock.lock"}


def _livez(path: Path) -> int | None:
    """The status of ``GET /livez`` over the UNIX socket at ``path``, or `None` when nobody listens there."""
    connection = http.client.HTTPConnection("localhost")
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(10)
        try:
            raw.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        connection.sock = raw
        connection.request("GET", "/livez")
        return connection.getresponse().status
