"""The configuration: what each source may say, which source wins, and what a person is told when something is wrong."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor

from twisted_proxy.config import (
    SETTINGS,
    Config,
    ConfigError,
    DashboardConfig,
    Keep,
    Loaded,
    Match,
    ProviderConfig,
    RecordConfig,
    RouteRule,
    Setting,
    SubagentConfig,
    describe,
    load,
    loading,
    settings,
    sources,
    yaml_file,
)
from twisted_proxy.config import values as kinds
from twisted_proxy.config.routes import CRITERIA, covers
from twisted_proxy.config.settings import DISREGARDED, GROUPS, field_of
from twisted_proxy.config.sources import looks_like
from twisted_proxy.config.values import (
    parse_base_url,
    parse_database_url,
    parse_endpoint,
    parse_host,
    parse_keep,
    parse_key,
    parse_seconds,
    parse_size,
    quote_url,
    show_keep,
    show_seconds,
    show_size,
    tcp_endpoint,
)
from twisted_proxy.config.yaml_file import PROVIDER_KEYS


@attrs.define
class Place:
    """A directory with configuration files, an environment and a command line."""

    path: Path

    def load(self, *arguments: str, env: Mapping[str, str] | None = None, **files: str) -> Loaded:
        """Load; ``yaml`` and ``dotenv`` are the text of the files."""
        for name, text in files.items():
            (self.path / {"yaml": "config.yaml", "dotenv": ".env"}[name]).write_text(text, encoding="utf-8")
        return load(arguments, env or {}, self.path)

    def problems(self, *arguments: str, env: Mapping[str, str] | None = None, **files: str) -> list[str]:
        """The problems that loading finds; there must be some."""
        with pytest.raises(ConfigError) as caught:
            self.load(*arguments, env=env, **files)
        found = [str(problem) for problem in caught.value.problems]
        message = str(caught.value).splitlines()
        assert message[1:] == [f"  {problem}" for problem in found]
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def sources_of(loaded: Loaded) -> dict[str, tuple[str, str]]:
    return {entry.setting.option: (entry.value, entry.source) for entry in loaded.settings}


class TestDurations:
    """Durations."""

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("300s", 300.0),
            ("10m", 600.0),
            ("1h30m", 5400.0),
            ("500ms", 0.5),
            ("300", 300.0),
            ("1.5", 1.5),
            (".5s", 0.5),
            ("1.5h", 5400.0),
            ("1h2m3s4ms", 3723.004),
            (" 5s ", 5.0),
            ("0", 0.0),
            (7, 7.0),
            (0.25, 0.25),
        ],
    )
    def test_read(self, text: object, seconds: float) -> None:
        """Every documented form is read, a number of seconds too."""
        assert parse_seconds(text) == pytest.approx(seconds)

    @pytest.mark.parametrize(
        "text",
        ["", " ", "-1", "-5s", "nan", "inf", "1e3", "10 m", "m", "5m1h", "1m1m", "10M", "5d", "٣s", "1_0", "5s\n5s",
         "481h", "9" * 400, True, None, [], -1, math.nan, math.inf, 1e300],
    )  # fmt: skip
    def test_refused(self, text: object) -> None:
        """Anything else is refused: negative, endless, too long for a timer, of the wrong type, or garbage."""
        with pytest.raises(ValueError, match=r"^(is|has) "):
            parse_seconds(text)

    @given(st.integers(0, 480 * 3600 * 1000).map(lambda n: n / 1000))
    def test_shown(self, seconds: float) -> None:
        """What is shown reads back as the same duration."""
        assert parse_seconds(show_seconds(seconds)) == pytest.approx(seconds)


class TestSizes:
    """Sizes."""

    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("512MiB", 512 * 2**20),
            ("32MB", 32_000_000),
            ("64KiB", 65536),
            ("1.5GiB", 3 * 2**29),
            ("8 kb", 8000),
            ("1000", 1000),
            ("7B", 7),
            (4096, 4096),
        ],
    )
    def test_read(self, text: object, size: int) -> None:
        """Every documented form is read."""
        assert parse_size(text) == size

    @pytest.mark.parametrize(
        "text", ["", "0", "-1", "5m", "5 MiBs", "MiB", "1e6", "2000GiB", "9" * 400, True, None, 0, -5, 2.5, "٣"]
    )
    def test_refused(self, text: object) -> None:
        """Zero, negative, without a unit that is known, or garbage."""
        with pytest.raises(ValueError, match=r"^(is|has) "):
            parse_size(text)

    @given(st.integers(1, 2**40))
    def test_shown(self, size: int) -> None:
        """What is shown reads back as the same size, exactly."""
        assert parse_size(show_size(size)) == size


class TestRetention:
    """How much is kept."""

    @pytest.mark.parametrize(
        ("text", "keep"),
        [
            ("keep", Keep()),
            ("30d", Keep(seconds=30 * 86400.0)),
            ("12h", Keep(seconds=12 * 3600.0)),
            ("1d12h30m", Keep(seconds=36.5 * 3600.0)),
            ("1.5d", Keep(seconds=36 * 3600.0)),
            ("1000h", Keep(seconds=1000 * 3600.0)),
            ("20GiB", Keep(bytes=20 * 2**30)),
            ("20 GB", Keep(bytes=20 * 10**9)),
            ("3TiB", Keep(bytes=3 * 2**40)),
            (" 30d  20 GiB ", Keep(seconds=30 * 86400.0, bytes=20 * 2**30)),
            ("7B 90s", Keep(seconds=90.0, bytes=7)),
            (Keep(bytes=5), Keep(bytes=5)),
        ],
    )
    def test_read(self, text: object, keep: Keep) -> None:
        """An age, beyond the longest timer too, a size, both in any order, or all."""
        assert parse_keep(text) == keep

    @pytest.mark.parametrize(
        "text",
        ["", "30", "0s", "0d", "500ms", "d", "-5d", "30D", "30d5d", "5d 6d", "5GiB 6GiB", "40000d", "2000TiB", "0B",
         "keep 5d", "forever", "5d, 6GiB", "1e3d", "٣d", None, 30, True],
    )  # fmt: skip
    def test_refused(self, text: object) -> None:
        """What has no unit, comes twice, or would keep nothing."""
        with pytest.raises(ValueError, match=r"^(is|has|holds) "):
            parse_keep(text)

    def test_a_keep_is_checked_too(self) -> None:
        """Nothing, or endless, is not what a program may ask for either."""
        for wrong in ({"seconds": 0.0}, {"seconds": math.nan}, {"bytes": 0}, {"bytes": 2**60}):
            with pytest.raises(ValueError, match="out of range"):
                Keep(**wrong)

    @given(
        st.none() | st.integers(1000, 36525 * 86400 * 1000).map(lambda n: n / 1000), st.none() | st.integers(1, 2**50)
    )
    def test_shown(self, seconds: float | None, size: int | None) -> None:
        """What is shown reads back the same."""
        read = parse_keep(show_keep(Keep(seconds=seconds, bytes=size)))
        assert read.bytes == size
        assert read.seconds == (seconds if seconds is None else pytest.approx(seconds, abs=1e-5))


class TestDatabaseUrl:
    """Where PostgreSQL is."""

    @pytest.mark.parametrize(
        "text",
        ["postgresql://host/db", "postgres://host", "postgresql://u:p%40ss@host:5432/db?sslmode=require",
         "postgresql://h1:1,h2:2/db", "postgresql:///db?host=/run/postgresql", "postgresql://u@/db?a=b&host=/tmp",
         "postgresql://%2Frun%2Fpostgresql/db", "postgresql://[::1]:5432/db", "postgresql:///db?hostaddr=127.0.0.1"],
    )  # fmt: skip
    def test_read(self, text: str) -> None:
        """A host, several, or the directory of a socket; the text stays as it is."""
        assert parse_database_url(text) == text

    @pytest.mark.parametrize(
        "text",
        ["", "host/db", "mysql://host/db", "postgresql:/host/db", "sqlite:///requests.db", "postgresql://",
         "postgresql:///db", "postgresql://u:p@/db", "postgresql:///db?host=", "postgresql://h/a b",
         "postgresql://h/a\x00b", "postgresql://h/%00", "postgresql://h/%zz", "postgresql://u:100%@h/d", None, 5],
    )  # fmt: skip
    def test_refused(self, text: object) -> None:
        """Another database, no server, and what libpq would cut off or read differently."""
        with pytest.raises(ValueError, match=r"^(has|holds|does|names) "):
            parse_database_url(text)


class TestKey:
    """A secret that hashes are made with."""

    @pytest.mark.parametrize("text", ["", "short", "x" * 15, "x" * 1025, "0123456789abcdef\0", "x" * 20 + "é", None, 5])
    def test_refused(self, text: object) -> None:
        """What can be guessed, or typed differently somewhere else."""
        with pytest.raises(ValueError, match=r"^(is|has|holds) "):
            parse_key(text)


class TestForwardUrl:
    """The upstream's URL."""

    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("https://api.anthropic.com", "https://api.anthropic.com"),
            ("https://api.anthropic.com/", "https://api.anthropic.com"),
            ("http://localhost:8080/claude/v2//", "http://localhost:8080/claude/v2"),
            ("HTTPS://Example.org", "https://Example.org"),
            ("http://[::1]:9/p", "http://[::1]:9/p"),
            ("http://10.0.0.1", "http://10.0.0.1"),
            ("http://host/a%20b/@x", "http://host/a%20b/@x"),
        ],
    )
    def test_read(self, text: str, url: str) -> None:
        """Scheme, host, port and a path are kept; a trailing slash is not."""
        assert parse_base_url(text) == url

    @pytest.mark.parametrize(
        "text",
        ["", "api.anthropic.com", "ftp://host", "https://", "https:///path", "https://host:0", "https://host:65536",
         "https://host:", "https://host:x", "https://:80", "https://u:p@host", "https://u@host", "https://@host",
         "https://host?x=1", "https://host/#f", "https://host/?", "https://ho st", "https://hö.de", "https://host\\x",
         "https://host/a/../b", "https://host/%zz", "https://host/\r\nX: 1", "https://[::1", "https://[::1]x",
         "https://[fe80::1%25eth0]", "https://256.1.1.1", "https://-host", "https://a..b", 5, None],
    )  # fmt: skip
    def test_refused(self, text: object) -> None:
        """No credentials, query or fragment, and nothing that is not a URL."""
        with pytest.raises(ValueError, match=r"^(has|holds|does) "):
            parse_base_url(text)

    @pytest.mark.parametrize(
        "text",
        ["https://user:hunter2@host/", "user:hunter2@host", "htps://us/er:hunter2@host", "https://u:hun?hunter2@host",
         "https://host/?key=hunter2", "https://host#hunter2", "https://a@b:hunter2@host/", "x?a=1\nhunter2"],
    )  # fmt: skip
    def test_quoted_without_secrets(self, text: str) -> None:
        """A refused URL is repeated without what may be a credential in it."""
        assert "hunter2" not in quote_url(text)


class TestEndpoints:
    """Where to listen."""

    @pytest.mark.parametrize(
        "text",
        ["tcp:0", "tcp:3001:interface=127.0.0.1", r"tcp:3001:interface=\:\:1", "tcp:port=80",
         "unix:/run/p.sock:mode=660", "unix:address=/run/p", "ssl:443:privateKey=key.pem:certKey=cert.pem",
         "systemd:domain=INET:index=0"],
    )  # fmt: skip
    def test_read(self, text: str) -> None:
        """The four types, with what may follow."""
        assert parse_endpoint(text) == text

    @pytest.mark.parametrize(
        "text",
        ["", "3001", "tcp", "tcp:", "tcp:x", "tcp:-1", "tcp:65536", "tcp:interface=x", "ssl:x", "ssl:", "unix:",
         "unix:mode=1", "systemd:", "tls:443", "TCP:80", "http:80", "tcp:80\\", 80, None],
    )  # fmt: skip
    def test_refused(self, text: object) -> None:
        """Another type, no port, a port that is none, no path."""
        with pytest.raises(ValueError, match=r"^(is|has|says|names|ends) "):
            parse_endpoint(text)

    @pytest.mark.parametrize(
        ("host", "kind"),
        [
            ("127.0.0.1", TCP4ServerEndpoint),
            ("0.0.0.0", TCP4ServerEndpoint),
            ("localhost", TCP4ServerEndpoint),
            ("::", TCP4ServerEndpoint),
            ("::1", TCP4ServerEndpoint),
            ("fe80::1%eth0", TCP4ServerEndpoint),
            ("[::1]", TCP4ServerEndpoint),
        ],
    )
    def test_of_host_and_port(self, host: str, kind: type[TCP4ServerEndpoint | TCP6ServerEndpoint]) -> None:
        """Twisted binds the address that was meant, with the colons of IPv6 in it."""
        reactor = MemoryReactor()
        bare = parse_host(host)
        endpoint = serverFromString(reactor, parse_endpoint(tcp_endpoint(bare, 0)))
        assert isinstance(endpoint, kind)
        endpoint.listen(Factory())
        assert reactor.tcpServers[0][3] == host.strip("[]")

    @pytest.mark.parametrize(
        "host", ["", "a b", "256.0.0.1", "1.2.3", "[host]", "::g", "-x", "a..b", "x:80", 7, "a" * 64]
    )
    def test_host_refused(self, host: object) -> None:
        """What is neither an address nor a name."""
        with pytest.raises(ValueError, match=r"^(is|has) "):
            parse_host(host)


class TestConfig:
    """The value itself, as programs that embed the proxy make it."""

    def test_defaults(self) -> None:
        """``Config()`` is what the documentation promises."""
        config = Config()
        assert config.listen == ("tcp:3001:interface=127.0.0.1",)
        assert (config.read_timeout, config.write_timeout, config.idle_timeout) == (600.0, 600.0, 600.0)
        assert (config.max_body_bytes, config.max_message_bytes) == (512 * 2**20, 32 * 2**20)
        assert (config.drain_timeout, config.lame_duck, config.log_format) == (1920.0, 0.0, "text")
        assert (config.demote_heartbeat, config.max_response_bytes) == (0.0, 64 * 2**20)
        assert config.anthropic == ProviderConfig(
            base_url="https://api.anthropic.com",
            version="2023-06-01",
            response_header_timeout=300.0,
            max_retries=3,
            idle_timeout=600.0,
            demote_nonstreaming=False,
        )

    @pytest.mark.parametrize(
        ("made", "name"),
        [
            (lambda: Config(read_timeout=-1), "read_timeout"),
            (lambda: Config(listen="tcp:1"), "listen"),  # type: ignore[arg-type]
            (lambda: Config(listen=()), "listen"),
            (lambda: Config(listen=("x:1",)), "listen"),
            (lambda: Config(log_format="xml"), "log_format"),
            (lambda: Config(max_body_bytes=0), "max_body_bytes"),
            (lambda: ProviderConfig(base_url="https://u:hunter2@h"), "base_url"),
            (lambda: ProviderConfig(max_retries=True), "max_retries"),
            (lambda: Config(drain_timeout=5, lame_duck=6), "lame-duck"),
        ],
    )
    def test_refuses(self, made: Any, name: str) -> None:
        """A wrong value is a `ValueError` that names the field and does not repeat the value."""
        with pytest.raises(ValueError, match=name) as caught:
            made()
        assert "hunter2" not in str(caught.value)

    def test_normalizes(self) -> None:
        """What settings take, fields take: a list, a duration in words, a URL with a slash."""
        config = Config(listen=["tcp:0"], read_timeout="10m")  # type: ignore[arg-type]
        assert config.listen == ("tcp:0",)
        assert config.read_timeout == 600.0
        assert ProviderConfig(base_url="http://h/p/").base_url == "http://h/p"


class TestPrecedence:
    """Options over environment over ``.env`` over ``config.yaml`` over defaults."""

    def test_each_over_the_next(self, place: Place) -> None:
        """With all sources set, taking away the highest uncovers the next."""
        yaml = "server: {timeouts: {read: 1s}}"
        dotenv = "READ_TIMEOUT=2s\n"
        env = {"READ_TIMEOUT": "3s"}
        assert place.load("--read-timeout=4s", env=env, yaml=yaml, dotenv=dotenv).config.read_timeout == 4
        assert place.load(env=env).config.read_timeout == 3
        loaded = place.load()
        assert loaded.config.read_timeout == 2
        assert sources_of(loaded)["read-timeout"] == ("2s", ".env: READ_TIMEOUT")
        (place.path / ".env").unlink()
        loaded = place.load()
        assert loaded.config.read_timeout == 1
        assert sources_of(loaded)["read-timeout"] == ("1s", "config.yaml: server.timeouts.read (line 1)")
        (place.path / "config.yaml").unlink()
        assert place.load().config == Config()

    def test_empty_is_unset(self, place: Place) -> None:
        """An empty variable, an empty line of ``.env``, a null or an empty text in YAML set nothing."""
        loaded = place.load(
            env={"PORT": "", "LISTEN": "  "},
            dotenv="READ_TIMEOUT=\nHOST\nIDLE_TIMEOUT=''\n",
            yaml="server: {port: , host: ~, timeouts: , log_format: ''}\nproviders:\n  anthropic:\n",
        )
        assert loaded.config == Config()

    def test_empty_option_is_wrong(self, place: Place) -> None:
        """Who writes an option means something by it."""
        assert len(place.problems("--port=", "--listen=", "--anthropic-forward-url", "")) == 3

    def test_environment_is_left_alone(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """``.env`` is read, not loaded into the process; the process's environment is the default source."""
        monkeypatch.delenv("READ_TIMEOUT", raising=False)
        monkeypatch.setenv("WRITE_TIMEOUT", "7s")
        (place.path / ".env").write_text("READ_TIMEOUT=5s\n")
        config = load((), None, place.path).config
        assert (config.read_timeout, config.write_timeout) == (5, 7)
        assert "READ_TIMEOUT" not in os.environ

    def test_every_setting_from_every_source(self, place: Place) -> None:
        """Each setting can be given as option, as variable, as line of ``.env`` and in YAML, and fills its field."""
        examples = {
            "CONFIG_PATH": None,
            "PORT": "4000",
            "HOST": "0.0.0.0",
            "LISTEN": "unix:/run/x",
            "ANTHROPIC_FORWARD_URL": "http://127.0.0.1:1/x",
            "ANTHROPIC_VERSION": "2030-01-01",
            "ANTHROPIC_MAX_RETRIES": "9",
            "ANTHROPIC_DEMOTE_NONSTREAMING": "true",
            "LOG_FORMAT": "json",
            "DRAIN_LAME_DUCK": "31s",
            "RECORD": "metadata",
            "DB_PATH": "other.db",
            "DATABASE_URL": "postgresql://user:hunter2@host/records",
            "SPOOL_DIR": "/var/spool/x",
            "RETENTION_BODIES": "30d 20GiB",
            "RETENTION_METADATA": "1d12h",
            "PRICES_FILE": "prices.json",
            "CREDENTIAL_KEY": "0123456789abcdef",
            "OPENAI_API_KEY": "sk-hunter2",
            "OPENAI_BASE_URL": "http://127.0.0.1:1/x",
            "OPENAI_MAX_RETRIES": "9",
            "SUBAGENT_MAPPINGS": "code-reviewer:gpt-4o,plan:o3",
            "SUBAGENTS_ENABLE": "false",
            "DASHBOARD_PASSWORD": "correct horse",
            "DASHBOARD_TOKEN": "0123456789abcdef",
            "DASHBOARD_LISTEN": "unix:/run/y",
            "CLAUDE_PROJECTS_DIR": "/srv/projects",
            "WORKERS": "4",
        }
        for setting in SETTINGS:
            text = examples.get(setting.env, "33" if setting.kind in (kinds.SECONDS, kinds.SIZE, kinds.COUNT) else "")
            if text is None:
                continue
            assert text, f"{setting.env} needs an example here"
            *sections, name = setting.yaml.split(".")
            nested = "".join(f"{'  ' * depth}{title}:\n" for depth, title in enumerate(sections))
            yaml = f"{nested}{'  ' * len(sections)}{name}: {text}\n"
            configs = [
                load([f"--{setting.option}={text}"], {}, place.path).config,
                load([f"--{setting.option}", text], {}, place.path).config,
                load([], {setting.env: text}, place.path).config,
                place.load(dotenv=f"export {setting.env}='{text}' # comment\n").config,
            ]
            (place.path / ".env").unlink()
            configs.append(place.load(yaml=yaml).config)
            (place.path / "config.yaml").unlink()
            assert all(config == configs[0] for config in configs), setting.env
            assert configs[0] != Config(), setting.env
            for field in setting.fields:
                assert field_of(configs[0], field) != field_of(Config(), field)

    def test_body_limit_sets_both(self, place: Place) -> None:
        """``MAX_BODY_BYTES``, where it is set, goes for messages too."""
        config = place.load(env={"MAX_BODY_BYTES": "100MB"}).config
        assert (config.max_body_bytes, config.max_message_bytes) == (100_000_000, 100_000_000)

    def test_switch_without_argument(self, place: Place) -> None:
        """A switch alone means true; its argument may follow after ``=`` or a blank."""
        option = "--anthropic-demote-nonstreaming"
        for arguments, on in (
            ([option], True),
            ([option, "--port=1"], True),
            ([option, "off"], False),
            ([f"{option}=no"], False),
        ):
            assert place.load(*arguments).config.anthropic.demote_nonstreaming is on

    def test_yaml_is_taken_as_written(self, place: Place) -> None:
        """A version that YAML takes for a date, a port in quotes, a duration that is a number, ``on``."""
        config = place.load(
            yaml='server: {port: "4001", timeouts: {read: 90, write: 1.5}}\n'
            "providers: {anthropic: {version: 2024-02-03, demote_nonstreaming: on, max_retries: 0}}\n"
        ).config
        assert config.listen == ("tcp:4001:interface=127.0.0.1",)
        assert (config.read_timeout, config.write_timeout) == (90, 1.5)
        assert (config.anthropic.version, config.anthropic.max_retries) == ("2024-02-03", 0)
        assert config.anthropic.demote_nonstreaming is True


class TestListen:
    """``listen`` against ``host`` and ``port``."""

    def test_host_and_port_from_different_sources(self, place: Place) -> None:
        """Each has its own precedence."""
        loaded = place.load("--port=1", env={"HOST": "::1"})
        assert loaded.config.listen == (r"tcp:1:interface=\:\:1",)
        assert sources_of(loaded)["listen"][1] == "from host and port"

    @pytest.mark.parametrize("arguments", [["--port=1"], []])
    def test_wins_over_its_own_source_and_lower_ones(self, place: Place, arguments: list[str]) -> None:
        """Endpoint strings say more than a port: beside one, they are what counts."""
        loaded = place.load("--listen=tcp:7", *arguments, env={"PORT": "2"}, yaml="server: {port: 3}")
        assert loaded.config.listen == ("tcp:7",)
        assert sources_of(loaded)["port"][1].endswith("not used, listen is set")
        assert loaded.warnings == ()

    def test_loses_to_a_higher_port(self, place: Place) -> None:
        """``--port`` of today beats the file's ``listen`` of last year, and that is said."""
        loaded = place.load("--port=1", yaml="server: {host: 0.0.0.0, listen: 'tcp:7'}")
        assert loaded.config.listen == ("tcp:1:interface=0.0.0.0",)
        words = "config.yaml: server.listen (line 1) has no effect: option --port comes first"
        assert loaded.warnings == (words,)

    def test_many(self, place: Place) -> None:
        """Repeated as an option, separated by white space in a variable, a list or a text in YAML."""
        two = ("tcp:1", "unix:/run/p")
        assert place.load("--listen", "tcp:1", "--listen=unix:/run/p").config.listen == two
        assert place.load(env={"LISTEN": " tcp:1\n unix:/run/p "}).config.listen == two
        assert place.load(dotenv='LISTEN="tcp:1 unix:/run/p"').config.listen == two
        (place.path / ".env").unlink()
        assert place.load(yaml="server:\n  listen:\n    - tcp:1\n    - unix:/run/p\n").config.listen == two
        assert place.load(yaml="server: {listen: 'tcp:1 unix:/run/p'}").config.listen == two
        assert place.load(yaml="server: {listen: ['unix:/a b']}").config.listen == ("unix:/a b",)

    def test_sources_do_not_mix(self, place: Place) -> None:
        """The endpoints of the highest source that has any are all of them."""
        loaded = place.load("--listen=tcp:1", env={"LISTEN": "tcp:2 tcp:3"}, yaml="server: {listen: [tcp:4]}")
        assert loaded.config.listen == ("tcp:1",)


class TestRecords:
    """Where the records go."""

    @pytest.mark.parametrize(
        ("made", "spool"),
        [
            (RecordConfig(), "requests.db-spool"),
            (RecordConfig(db_path="/var/lib/x.db"), "/var/lib/x.db-spool"),
            (RecordConfig(database_url="postgresql://h/d"), "claude-proxy-spool"),
            (RecordConfig(database_url="postgresql://h/d", spool_dir="s"), "s"),
            (RecordConfig(spool_dir=""), "requests.db-spool"),
        ],
    )
    def test_spool(self, made: RecordConfig, spool: str) -> None:
        """Beside the file of the database, where there is one and nothing else is said."""
        assert made.spool == spool

    def test_both_databases(self, place: Place) -> None:
        """The URL wins over the path, wherever each is set, and that is said without the URL."""
        url = "postgresql://u:hunter2@h/d"
        loaded = place.load("--db-path=x", env={"DATABASE_URL": url})
        assert loaded.config.record.database_url == url
        assert loaded.warnings == (
            "option --db-path has no effect: the records go to the database of environment DATABASE_URL",
        )
        assert place.load(yaml="storage: {db_path: requests.db}").warnings == ()
        assert place.load("--database-url", url, yaml="").warnings == ()

    def test_no_secret_is_shown(self, place: Place) -> None:
        """Neither as a setting in effect, nor in a message, nor in the `repr` of a `Config`."""
        env = {"DATABASE_URL": "postgresql://u:hunter2@h/d", "CREDENTIAL_KEY": "hunter2hunter2hunter2"}
        loaded = place.load(env=env)
        assert sources_of(loaded)["database-url"] == ("***", "environment DATABASE_URL")
        assert sources_of(loaded)["credential-key"] == ("***", "environment CREDENTIAL_KEY")
        assert "hunter2" not in repr(loaded)
        assert loaded.config.record.credential_key == "hunter2hunter2hunter2"
        wrong = place.problems(env={"DATABASE_URL": "mysql://u:hunter2@h/d", "CREDENTIAL_KEY": "hunter2"})
        assert "hunter2" not in "".join(wrong)
        with pytest.raises(ValueError, match="database_url") as caught:
            RecordConfig(database_url="mysql://u:hunter2@h/d")
        assert "hunter2" not in str(caught.value)


class TestProviders:
    """Providers under names of one's own."""

    YAML = """\
providers:
  openai: {api_key: sk-hunter1}
  local:
    kind: openai
    base_url: http://127.0.0.1:8000/x/
    api_key: hunter2
    response_header_timeout: 2m
    max_retries: 0
    idle_timeout: 90
  second:
    kind: anthropic
    version: 2024-01-01
    demote_nonstreaming: on
  nothing:
"""

    def test_read(self, place: Place) -> None:
        """Each has the values that its kind has; the built-in ones are always there."""
        config = place.load(yaml=self.YAML).config
        assert config.providers == {
            "anthropic": ProviderConfig(),
            "openai": ProviderConfig(kind="openai", api_key="sk-hunter1"),
            "local": ProviderConfig(
                kind="openai",
                base_url="http://127.0.0.1:8000/x",
                api_key="hunter2",
                response_header_timeout=120,
                max_retries=0,
                idle_timeout=90,
            ),
            "second": ProviderConfig(kind="anthropic", version="2024-01-01", demote_nonstreaming=True),
        }
        assert config.openai.base_url == "https://api.openai.com"
        assert config.providers["second"].base_url == "https://api.anthropic.com"

    def test_shown(self, place: Place) -> None:
        """Key by key, with where it stands, and the API key only as being there."""
        loaded = place.load(yaml=self.YAML)
        shown = {each.name: (each.value, each.source) for each in loaded.structures}
        assert shown["providers.local.base_url"] == (
            "http://127.0.0.1:8000/x", "config.yaml: providers.local.base_url (line 5)",
        )  # fmt: skip
        assert shown["providers.local.api_key"][0] == "***"
        assert shown["providers.second.api_key"] == ("none", "default")
        assert shown["providers.second.demote_nonstreaming"][0] == "true"
        assert "providers.local.version" not in shown
        assert "hunter" not in repr(loaded)

    @pytest.mark.parametrize(
        ("yaml", "words"),
        [
            ("{a b: {kind: openai}}", "providers.a b (line 1): is not a name"),
            ("{'*': {kind: openai}}", "providers.* (line 1): is not a name"),
            (
                "{local: {base_url: http://h}}",
                "providers.local (line 1): has no kind; it must say: anthropic or openai",
            ),
            ("{antropic: {base_url: http://h}}", "has no kind; did you mean anthropic?"),
            ("{local: {kind: gemini}}", "providers.local.kind (line 1): 'gemini' is not valid; allowed: anthropic or "),
            ("{local: {kind: [openai]}}", "providers.local.kind (line 1): is a list"),
            ("{local: {kind: openai, bas_url: x}}", "did you mean providers.local.base_url?"),
            ("{local: {kind: openai, version: x}}", "providers.local.version (line 1): is unknown"),
            (
                "{local: {kind: openai, api_key: 'hun ter2'}}",
                "providers.local.api_key (line 1): the value is not a key",
            ),
            ("{local: {kind: openai, base_url: 'http://u:hunter2@h'}}", "holds a user name or password"),
            ("{local: {kind: openai, kind: openai}}", "providers.local.kind (line 1): is there twice"),
            ("{local: [kind]}", "providers.local (line 1): is a list where a mapping is wanted"),
            ("{anthropic: {api_key: hunter2}}", "providers.anthropic.api_key (line 1): is unknown"),
            ("{anthropic: {kind: openai}}", "providers.anthropic.kind (line 1): is unknown"),
        ],
    )
    def test_wrong(self, place: Place, yaml: str, words: str) -> None:
        """One problem each, on its line, and no key repeated."""
        (problem,) = place.problems(yaml=f"providers: {yaml}\n")
        assert words in problem
        assert "hunter2" not in problem
        assert "hun ter2" not in problem

    def test_in_a_program(self) -> None:
        """A kind brings its URL; the built-in ones stay what they are."""
        assert ProviderConfig(kind="openai").base_url == "https://api.openai.com"
        assert ProviderConfig(kind="openai", base_url="http://h/").base_url == "http://h"
        assert "hunter2" not in repr(ProviderConfig(api_key="hunter2"))
        local = ProviderConfig(kind="openai")
        assert Config(other_providers={"local": local}).providers["local"] is local
        for wrong in (
            lambda: Config(openai=ProviderConfig()),
            lambda: Config(anthropic=ProviderConfig(kind="openai")),
            lambda: Config(other_providers={"openai": local}),
            lambda: Config(other_providers={"a b": local}),
            lambda: Config(other_providers={"local": "http://h"}),  # type: ignore[dict-item]
        ):
            with pytest.raises(ValueError, match=r"of another kind|no ProviderConfig|is not a name"):
                wrong()

    def test_set_up(self) -> None:
        """A key, or another server, which may need none."""
        assert not ProviderConfig(kind="openai").is_set_up
        assert ProviderConfig(kind="openai", api_key="x").is_set_up
        assert ProviderConfig(kind="openai", base_url="http://127.0.0.1:8000").is_set_up


class TestMappings:
    """Which agent asks which model."""

    @pytest.mark.parametrize("text", ["code-reviewer:gpt-4o,plan:qwen3:8b", " code-reviewer:gpt-4o , plan:qwen3:8b,"])
    def test_in_one_text(self, place: Place, text: str) -> None:
        """With commas or blanks between; only the first colon parts agent and model."""
        expected = {"code-reviewer": "gpt-4o", "plan": "qwen3:8b"}
        assert place.load(env={"SUBAGENT_MAPPINGS": text}).config.subagents.mappings == expected
        assert place.load(f"--subagent-mappings={text}").config.subagents.mappings == expected
        assert place.load(dotenv=f"SUBAGENT_MAPPINGS='{text}'").config.subagents.mappings == expected

    def test_as_a_mapping(self, place: Place) -> None:
        """As YAML has them; a null takes one away, and a higher source replaces all."""
        yaml = "subagents:\n  mappings:\n    code-reviewer: gpt-4o\n    plan: 'o3'\n    none: ~\n"
        loaded = place.load(yaml=yaml)
        assert loaded.config.subagents.mappings == {"code-reviewer": "gpt-4o", "plan": "o3"}
        assert sources_of(loaded)["subagent-mappings"][0] == "code-reviewer:gpt-4o plan:o3"
        assert place.load(env={"SUBAGENT_MAPPINGS": "a:b"}, yaml=yaml).config.subagents.mappings == {"a": "b"}

    def test_enable(self, place: Place) -> None:
        """They have an effect unless somebody says that they have none."""
        env = {"SUBAGENT_MAPPINGS": "a:b"}
        assert place.load(env=env).config.subagents.active == {"a": "b"}
        assert place.load(env=env, yaml="subagents: {enable: false}").config.subagents.active == {}

    @pytest.mark.parametrize(
        ("yaml", "words"),
        [
            ("{a: [1]}", "subagents.mappings.a (line 1): is a list; allowed: AGENT:MODEL"),
            ("{a: b, a: c}", "subagents.mappings.a (line 1): is there twice"),
            ("{'a:b': c}", "subagents.mappings.a:b (line 1): has a colon in its name"),
            ("{a: 'x y'}", "subagents.mappings.a (line 1): 'a:x y' is not the name of a model"),
            ("{'a b': x}", "'a b:x' has no name of an agent before the model"),
            ("'a:b c'", "'c' has no colon"),
            ("'a:b,a:c'", "subagents.mappings (line 1): names a twice; one must go"),
        ],
    )
    def test_wrong(self, place: Place, yaml: str, words: str) -> None:
        """One problem each, on its line."""
        (problem,) = place.problems(yaml=f"subagents: {{mappings: {yaml}}}\n")
        assert words in problem


class TestRoutes:
    """The rules of ``config.yaml``."""

    def test_read(self, place: Place) -> None:
        """A pattern or a list of them for each criterion, and what is set."""
        loaded = place.load(
            yaml="""\
routes:
  - match:
      model: [claude-opus-*, "claude-[fs]*"]
      agent_type: Explore
      agent: code-reviewer
      request_class: subagent
      session: 0192*
      path: /v1/messages
    provider: local
    model: qwen3
    headers: {X-Team: research, Authorization: Bearer hunter2, X-Number: 5}
  - {match: {model: claude-2*}, refuse: "Not any more.", headers: }
  - model: claude-haiku-4-5
providers: {local: {kind: openai, base_url: http://127.0.0.1:8000}}
"""
        )
        assert loaded.config.routes == (
            RouteRule(
                match=Match(
                    model=("claude-opus-*", "claude-[fs]*"),
                    agent_type=("Explore",),
                    agent=("code-reviewer",),
                    request_class=("subagent",),
                    session=("0192*",),
                    path=("/v1/messages",),
                ),
                provider="local",
                model="qwen3",
                headers={"X-Team": "research", "Authorization": "Bearer hunter2", "X-Number": "5"},
            ),
            RouteRule(match=Match(model=("claude-2*",)), refuse="Not any more."),
            RouteRule(model="claude-haiku-4-5"),
        )
        shown = [(each.name, each.value, each.source) for each in loaded.structures if each.name.startswith("routes")]
        assert shown == [
            (
                "routes.1",
                "model claude-opus-* or claude-[fs]*, agent_type Explore, agent code-reviewer, request_class subagent, "
                "session 0192*, path /v1/messages → provider local, model qwen3, "
                "headers X-Team, Authorization, X-Number",
                "config.yaml: routes.1 (line 2)",
            ),
            ("routes.2", "model claude-2* → refuse: Not any more.", "config.yaml: routes.2 (line 12)"),
            ("routes.3", "anything → model claude-haiku-4-5", "config.yaml: routes.3 (line 13)"),
        ]
        assert "hunter2" not in repr(loaded)

    @pytest.mark.parametrize(
        ("yaml", "words"),
        [
            ("5", "routes (line 1): is a single value where a list of rules is wanted"),
            ("{model: x}", "routes (line 1): is a mapping where a list"),
            ("[5]", "routes.1 (line 1): is a single value where a mapping is wanted; its keys are match, provider"),
            ("[~]", "routes.1 (line 1): is empty"),
            ("[{modle: x}]", "routes.1.modle (line 1): is unknown; did you mean routes.1.model?"),
            ("[{match: {modle: x}, model: y}]", "did you mean routes.1.match.model?"),
            ("[{match: {colour: x}, model: y}]", "routes.1.match has model, agent_type, agent, request_class, session"),
            ("[{match: x, model: y}]", "routes.1.match (line 1): is a single value where a mapping is wanted"),
            ("[{match: {model: 'a['}, model: y}]", "'a[' has a [ without its ]"),
            ("[{match: {model: ''}, model: y}]", "routes.1.match.model (line 1): '' is empty"),
            ("[{match: {model: []}, model: y}]", "routes.1.match.model (line 1): is an empty list"),
            ("[{match: {model: [a, [b]]}, model: y}]", "routes.1.match.model (line 1): is a list"),
            ("[{}]", "routes.1 (line 1): has no effect; it must set provider, model, headers or refuse"),
            ("[{match: {model: x}}]", "routes.1 (line 1): has no effect"),
            (
                "[{provider: nope}]",
                "routes.1.provider (line 1): there is no provider nope; there are anthropic, openai",
            ),
            ("[{model: 'a b'}]", "routes.1.model (line 1): 'a b' is not the name of a model"),
            ("[{refuse: no, model: x}]", "routes.1.refuse (line 1): stands beside provider, model or headers"),
            ("[{refuse: ''}]", "routes.1.refuse (line 1): '' is not a message"),
            ("[{headers: {Host: hunter2}}]", "routes.1.headers.Host (line 1): the value belongs to a header of the"),
            ("[{headers: {'a b': hunter2}}]", "routes.1.headers.a b (line 1): the value belongs to a name that no"),
            ('[{headers: {a: "hunter2\\n"}, model: x}, {model: "\\0"}]', "routes.2.model"),
            ('[{headers: {a: "hunter2\\r\\nX: y"}}]', "routes.1.headers.a (line 1): the value holds a character"),
            ("[{headers: {a: [hunter2]}}]", "routes.1.headers.a (line 1): is a list"),
            ("[{headers: {a: b, A: hunter2}}]", "routes.1.headers.A (line 1): is there twice"),
            ("[{model: x}, {model: y}]", "routes.2 (line 1): has no effect; whatever it matches, rule 1 matches first"),
        ],
    )
    def test_wrong(self, place: Place, yaml: str, words: str) -> None:
        """One problem each, on its line, and no header's value repeated."""
        (problem,) = place.problems(yaml=f"routes: {yaml}\n")
        assert words in problem
        assert "hunter2" not in problem

    def test_all_problems(self, place: Place) -> None:
        """A rule that cannot be read hides nothing of the others, and takes no blame for them."""
        found = place.problems(
            yaml="routes:\n- {match: {model: 'a['}, model: x}\n- {provider: nope}\n- {model: 'a b'}\n"
        )
        assert [problem.partition(":")[2].split(" (")[0] for problem in found] == [
            " routes.1.match.model",
            " routes.3.model",
            " routes.2.provider",
        ]

    def test_a_provider_that_is_wrong_is_there(self, place: Place) -> None:
        """What is wrong with a provider is said once, and not again of each rule that names it."""
        (problem,) = place.problems(yaml="providers: {a: {kind: x}}\nroutes: [{provider: a}]\n")
        assert "providers.a.kind" in problem

    def test_in_a_program(self) -> None:
        """The same checks hold for a `Config` that is made, without a file."""
        rule = RouteRule(provider="openai", headers={"X-A": "hunter2"}, where="here")
        assert Config(routes=[rule]).routes == (attrs.evolve(rule, where="there"),)
        for wrong in (
            lambda: Config(routes=[RouteRule(provider="nope")]),
            lambda: Config(routes=[RouteRule()]),
            lambda: Config(routes=["x"]),  # type: ignore[list-item]
            lambda: RouteRule(headers={"X-A": "hunter2\r\nX-B: y"}),
            lambda: RouteRule(headers={"X A": "hunter2"}),
            lambda: RouteRule(match=Match(model="claude-*")),  # type: ignore[arg-type]
        ):
            with pytest.raises((ValueError, TypeError)) as caught:
                wrong()
            assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize(
        ("wide", "narrow", "covered"),
        [
            (Match(), Match(model=("a",)), True),
            (Match(model=("a",)), Match(), False),
            (Match(model=("a*",)), Match(model=("ab*", "a")), True),
            (Match(model=("a*",)), Match(model=("ab*", "b")), False),
            (Match(model=("*a",)), Match(model=("*ba",)), False),
            (Match(model=("*",)), Match(), False),
            (Match(model=("a",)), Match(model=("a",), session=("*",)), True),
            (Match(model=("a",), session=("x",)), Match(model=("a",)), False),
            (Match(), Match(path=("/v1/messages",)), True),
            (Match(), Match(path=("/v1/files",)), False),
            (Match(path=("*",)), Match(), True),
            (Match(path=("/v1/messages",)), Match(), False),
        ],
    )
    def test_covers(self, wide: Match, narrow: Match, covered: bool) -> None:
        """Whether a later rule can be reached, as far as this can be seen from the patterns."""
        assert covers(wide, narrow) is covered


class TestConfigPath:
    """Another file than ``config.yaml``."""

    @pytest.mark.parametrize("how", ["option", "environment", "dotenv"])
    def test_named(self, place: Place, how: str) -> None:
        """It is read instead of ``config.yaml``, whoever names it."""
        other = place.path / "other.yaml"
        other.write_text("server: {port: 5}")
        (place.path / "config.yaml").write_text("server: {port: 6, nonsense: 7}")
        loaded = place.load(
            *([f"--config={other}"] if how == "option" else []),
            env={"CONFIG_PATH": str(other)} if how == "environment" else {},
            # Relative to the file that says so.
            **({"dotenv": "CONFIG_PATH=other.yaml"} if how == "dotenv" else {}),
        )
        assert loaded.config.listen == ("tcp:5:interface=127.0.0.1",)
        assert sources_of(loaded)["port"] == ("5", f"{other}: server.port (line 1)")

    def test_must_exist(self, place: Place) -> None:
        """Unlike ``config.yaml``, which need not."""
        path = place.path / "missing.yaml"
        assert place.problems(f"--config={path}") == [f"option --config: there is no file {path}"]

    def test_a_wrong_name_is_not_replaced(self, place: Place) -> None:
        """When the name is refused, ``config.yaml`` is not read in its place."""
        assert len(place.problems("--config=", yaml="nonsense: 1")) == 1

    def test_cannot_be_read(self, place: Place) -> None:
        """A directory under that name, for one."""
        (place.path / "config.yaml").mkdir()
        (place.path / ".env").mkdir()
        assert place.problems() == [
            ".env: cannot be read: Is a directory",
            "config.yaml: cannot be read: Is a directory",
        ]


class TestProblems:
    """What a person is told."""

    def test_all_in_one_message(self, place: Place) -> None:
        """Every problem of every source, each with its source, the value, and what is allowed; hidden values too."""
        found = place.problems(
            "--port=99999", "--prot", "1", "-n", "extra", "word", "--write-timeout",
            env={"READ_TIMEOUT": "soon", "LISTEN": "tcp:1 tls:2 tcp:x", "LOG_FORMAT": "xml"},
            dotenv="READ_TIMOUT=5s\nREAD_TIMEOUT=-5s\nthis is no line\nPORT=x\n",
            yaml="server:\n  prot: 1\n  timeouts: 5\n  port: [1]\n  host: {a: b}\nlisten: x\n",
        )  # fmt: skip
        sources = [problem.partition(": ")[0] for problem in found]
        assert sorted(sources) == sorted(
            ["option --prot", "command line", "command line", "option --write-timeout", "option --port",
             "environment READ_TIMEOUT", "environment LISTEN", "environment LISTEN", "environment LOG_FORMAT",
             ".env", ".env", ".env", ".env", *["config.yaml"] * 5],
        )  # fmt: skip
        assert "option --prot: is unknown; did you mean --port?" in found
        assert "environment READ_TIMEOUT: 'soon' is not a duration; allowed: " + kinds.SECONDS.allowed in found
        assert "environment LOG_FORMAT: 'xml' is not valid; allowed: text or json" in found
        assert ".env: READ_TIMOUT (line 1): is unknown; did you mean READ_TIMEOUT?" in found
        assert ".env: READ_TIMEOUT: '-5s' is negative; allowed: " + kinds.SECONDS.allowed in found
        assert ".env: line 3 cannot be read; a line is NAME=VALUE, or a comment after #" in found
        assert "config.yaml: server.prot (line 2): is unknown; did you mean server.port?" in found
        assert "config.yaml: listen (line 6): is unknown; did you mean server.listen?" in found
        assert (
            "config.yaml: server.timeouts (line 3): is a single value where a mapping is wanted; "
            "its keys are header, read, write, idle" in found
        )
        assert "config.yaml: server.port (line 4): is a list; allowed: " + kinds.PORT.allowed in found

    @pytest.mark.parametrize(
        ("yaml", "words"),
        [
            ("server:\n  port: 1\n  port: 2\n", "server.port (line 3): is there twice; first on line 2"),
            ("server: {port: 1}\nserver: {host: x}\n", "server (line 2): is there twice"),
            ("- 1\n", "the file (line 1): is a list where a mapping is wanted"),
            ("server: [\n", "is not YAML at line 2, column 1"),
            ("a: 1\n\tb: 2\n", "is not YAML at line 2, column 1"),
            ("a: 1\n---\nb: 2\n", "is not YAML at line 2, column 1"),
            ("a: *hunter2\n", "is not YAML at line 1, column 4: undefined or repeated anchor"),
            ("a: \x07\n", "is not YAML: a character"),
            ("[" * 600, "is not YAML: nested too deeply"),
            ("server: {? [a] : 1}\n", "server (line 1): has a key that is not a word"),
            ("server: {port: !!python/object:os.system 1}\n", "server.port (line 1): has a tag"),
            ("server: {listen: []}\n", "server.listen (line 1): is an empty list"),
            ("server: {listen: [tcp:1, '']}\n", "server.listen (line 1): '' is not of a known type"),
            ("server: {listen: [[tcp:1]]}\n", "server.listen (line 1): is a list"),
            ("read_timeout: 5\n", "did you mean server.timeouts.read?"),
            ("anthropic: {base_url: x}\n", "anthropic (line 1): is unknown"),
            ("providers: {anthropic: {api_key: hunter2}}\n", "providers.anthropic has base_url, version"),
            ("server: {timeouts: {reed: 1}}\n", "did you mean server.timeouts.read?"),
        ],
    )
    def test_yaml(self, place: Place, yaml: str, words: str) -> None:
        """Whatever is wrong with the file, the message says where, and repeats no key's value."""
        (problem, *more) = place.problems(yaml=yaml)
        assert words in problem
        assert not more
        assert "hunter2" not in problem

    def test_not_utf8(self, place: Place) -> None:
        """A file in another encoding is a problem, not a traceback."""
        (place.path / "config.yaml").write_bytes(b"server: \xff\n")
        (place.path / ".env").write_bytes(b"PORT=\xff\n")
        assert place.problems() == [".env: is not UTF-8 at byte 5", "config.yaml: is not UTF-8 at byte 8"]

    def test_byte_order_mark(self, place: Place) -> None:
        """Which editors on Windows write, and which is no part of the first name."""
        (place.path / "config.yaml").write_text("server: {port: 5}", encoding="utf-8-sig")
        (place.path / ".env").write_text("HOST=::1\n", encoding="utf-8-sig")
        assert place.load().config.listen == (r"tcp:5:interface=\:\:1",)

    def test_no_credential_of_a_url(self, place: Place) -> None:
        """From no source does a message repeat the user name and password of a URL."""
        url = "https://hunter1:hunter2@host/"
        for found in (
            place.problems(f"--anthropic-forward-url={url}"),
            place.problems(url),
            place.problems("--frobnicate", url),
            place.problems(f"--frobnicate={url}"),
            place.problems(env={"ANTHROPIC_FORWARD_URL": url}),
            place.problems(dotenv=f"ANTHROPIC_FORWARD_URL={url}\nsome words {url}\n"),
            place.problems(yaml=f"providers: {{anthropic: {{base_url: '{url}', bas_url: '{url}'}}}}"),
        ):
            assert "hunter" not in "\n".join(found)

    def test_conflict(self, place: Place) -> None:
        """A lame-duck time beyond the drain's ceiling is a problem of whoever set it last."""
        assert place.problems("--drain-lame-duck=1h", env={"DRAIN_TIMEOUT": "30m"}) == [
            "option --drain-lame-duck: the lame-duck time is longer than the drain may take: "
            "drain-lame-duck is 1h, drain-timeout is 30m"
        ]
        assert place.load("--drain-lame-duck=1h", "--drain-timeout=1h").config.lame_duck == 3600

    def test_unreadable_value_is_quoted(self, place: Place) -> None:
        """Control characters and endless values stay out of the terminal."""
        (problem,) = place.problems("--log-format=\x1b[31m" + "x" * 5000)
        assert problem.isprintable()
        assert len(problem) < 250

    def test_unknown_names_of_dotenv(self, place: Place) -> None:
        """``.env`` is shared with other programs: their names are theirs, also ``REDIS_URL`` and ``PORTS``."""
        others = ["REDIS_URL", "DB_HOST", "DB_PASS", "PORTS", "POST", "HOSTNAME", "ANTHROPIC_API_KEY"]
        assert place.load(dotenv="".join(f"{name}=x\n" for name in others)).config == Config()

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("PROT", "PORT"),
            ("port", "PORT"),
            ("Read-Timeout", "READ_TIMEOUT"),
            ("READTIMEOUT", "READ_TIMEOUT"),
            ("READ_TIMEOUTS", "READ_TIMEOUT"),
            ("RAED_TIMEOUT", "READ_TIMEOUT"),
            ("ANTHROPIC_FOWARD_ULR", "ANTHROPIC_FORWARD_URL"),
            ("LISTN", "LISTEN"),
        ],
    )
    def test_slips_of_dotenv(self, name: str, meant: str) -> None:
        """Other case, other separators, a letter wrong."""
        assert looks_like(name, meant)


class TestSecrets:
    """A setting that is secret, as later ones will be."""

    @pytest.fixture
    def secret(self, monkeypatch: pytest.MonkeyPatch) -> Setting:
        kind = kinds.choice("hunter2")
        made = Setting("API_KEY", "server.api_key", kind, (), "a key", default="none", secret=True)
        table = (*SETTINGS, made)
        for module in (settings, sources, loading, yaml_file):
            monkeypatch.setattr(module, "SETTINGS", table)
        return made

    def test_masked(self, place: Place, secret: Setting) -> None:
        """It is shown as being there, and that is all."""
        loaded = place.load("--api-key=hunter2")
        assert sources_of(loaded)["api-key"] == ("***", "option --api-key")
        assert sources_of(place.load())["api-key"] == ("none", "default")

    def test_never_repeated(self, place: Place, secret: Setting) -> None:
        """No message of any source repeats it, not even where a blank slipped in before it."""
        for found in (
            place.problems("--api-key=wrong-key"),
            place.problems("--api-key=", "wrong-key"),
            place.problems("--api-key", "hunter2", "wrong-key"),
            place.problems("--api-kye", "wrong-key"),
            place.problems(env={"API_KEY": "wrong-key"}),
            place.problems(dotenv="API_KEY=wrong-key"),
            place.problems(yaml="server: {api_key: wrong-key}"),
        ):
            assert "wrong-key" not in "\n".join(found)


class TestGoProgram:
    """Whoever comes from the Go program keeps the file."""

    EXAMPLE = """\
server:
  port: 3001
  timeouts:
    read: 10m
    write: 10m
    idle: 10m
providers:
  anthropic:
    base_url: "https://api.anthropic.com"
    version: "2023-06-01"
    max_retries: 3
  openai:
    api_key: "sk-hunter2"
    # base_url: "https://api.openai.com"
storage:
  db_path: "requests.db"
  requests_dir: "requests"
subagents:
  enable: false
  mappings:
    code-reviewer: "hunter2"
"""

    def test_loads(self, place: Place) -> None:
        """What is its own has no effect, which is said, without the value; the rest means the same."""
        loaded = place.load(yaml=self.EXAMPLE)
        assert loaded.config == Config(
            openai=ProviderConfig(kind="openai", api_key="sk-hunter2"),
            subagents=SubagentConfig(enable=False, mappings={"code-reviewer": "hunter2"}),
        )
        assert loaded.config.subagents.active == {}
        places = [re.sub(r"^config\.yaml: (\S+) \(line \d+\).*", r"\1", warning) for warning in loaded.warnings]
        assert places == ["storage.requests_dir"]
        assert "hunter2" not in "".join(loaded.warnings)

    def test_sections_without_content(self, place: Place) -> None:
        """Its example has sections whose every line is commented out."""
        loaded = place.load(yaml="providers:\n  openai:\nsubagents:\n  mappings:\n")
        assert (loaded.config, loaded.warnings) == (Config(), ())


class TestTable:
    """The table of settings, from which all else follows."""

    def test_every_field_has_a_setting(self) -> None:
        """Nothing in `Config` is out of a person's reach, and no setting fills a field that is not there."""
        sections = {"anthropic": ProviderConfig, "openai": ProviderConfig, "record": RecordConfig,
                    "dashboard": DashboardConfig, "subagents": SubagentConfig}  # fmt: skip
        # Only a file can say what takes more than a name and a value.
        fields = {field.name for field in attrs.fields(Config)} - {*sections, "other_providers", "routes"}
        for name, section in sections.items():
            fields |= {f"{name}.{field.name}" for field in attrs.fields(section)}
        # The built-in providers are of their kind; the first sends on what clients bring, the second has no versions.
        fields -= {"anthropic.kind", "anthropic.api_key", "openai.kind", "openai.version", "openai.demote_nonstreaming"}
        filled = [place for setting in SETTINGS for place in setting.fields]
        assert sorted(filled) == sorted(fields)

    def test_names_are_unique(self) -> None:
        """No two settings share a name anywhere."""
        for names in (
            [setting.env for setting in SETTINGS],
            [setting.option for setting in SETTINGS],
            [setting.yaml for setting in SETTINGS if setting.yaml] + list(DISREGARDED),
        ):
            assert len(set(names)) == len(names)

    def test_defaults_are_allowed(self) -> None:
        """What is printed as a default can be set, except where it is said in words."""
        in_words = {"MAX_BODY_BYTES", "SPOOL_DIR", "CREDENTIAL_KEY", "CLAUDE_PROJECTS_DIR"}
        for setting in SETTINGS:
            if setting.fields and not setting.kind.many and setting.env not in in_words and setting.default != "none":
                assert setting.kind.parse(setting.default) == field_of(Config(), setting.fields[0])

    def test_help_has_all(self) -> None:
        """``--help`` shows option, environment name, place in YAML, default and meaning of each setting."""
        text = describe(80)
        assert max(map(len, text.splitlines())) <= 110
        flat = " ".join(text.split())
        for setting in SETTINGS:
            assert f"--{setting.option}" in text
            assert setting.meaning in flat
            names = ", ".join(filter(None, (setting.env, setting.yaml)))
            assert f"[{names}; default: {setting.default}]" in flat

    def test_documentation_has_all(self) -> None:
        """The tables of ``docs/configuration.md`` are these settings, no more and no fewer, word for word."""
        document = Path(__file__).parent.parent / "docs" / "configuration.md"
        text = document.read_text(encoding="utf-8")
        expected = []
        for title, group in GROUPS:
            expected += [f"### {title}", "| environment | option | config.yaml | default | meaning |"]
            for setting in group:
                yaml = f"`{setting.yaml}`" if setting.yaml else ""
                expected.append(
                    f"| `{setting.env}` | `--{setting.option}` | {yaml} | {setting.default} | {setting.meaning} |"
                )
        written = [
            line
            for line in text.splitlines()
            if line.startswith(("### ", "| environment")) or re.match(r"\| `[A-Z_]+` ", line)
        ]
        assert written == expected, "write the tables as in `expected`"
        for disregarded in DISREGARDED:
            assert f"`{disregarded}`" in text
        for key in {*PROVIDER_KEYS["anthropic"], *PROVIDER_KEYS["openai"]}:
            assert re.search(rf"^\| `{key}` \|", text, re.MULTILINE), key
        for key in [f"match.{name}" for name in CRITERIA] + ["provider", "model", "headers", "refuse"]:
            assert re.search(rf"^\| `{key}` \|", text, re.MULTILINE), key

    def test_documented_examples_load(self, place: Place) -> None:
        """Each piece of YAML in the documentation is a configuration, and has an effect."""
        document = Path(__file__).parent.parent / "docs" / "configuration.md"
        examples = re.findall(r"^```yaml\n(.*?)^```$", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        assert len(examples) >= 3
        for example in examples:
            assert place.load(yaml=example).config != Config()

    def test_evolve_checks_too(self) -> None:
        """A changed copy of a `Config` is held to the same rules."""
        assert attrs.evolve(Config(), read_timeout=60).read_timeout == 60.0
        with pytest.raises(ValueError, match="read_timeout"):
            attrs.evolve(Config(), read_timeout=-1)

    def test_imports_nothing_of_twisted(self) -> None:
        """The configuration is usable where no reactor is wanted."""
        code = "import sys, twisted_proxy.config; print([m for m in sys.modules if m.partition('.')[0] == 'twisted'])"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert out.strip() == "[]"


def outcome(arguments: Sequence[str], environ: Mapping[str, str], directory: str | Path) -> str:
    try:
        return repr(load(arguments, environ, directory).config)
    except ConfigError as error:
        return str(error)


@given(st.lists(st.text(max_size=30), max_size=6), st.text(max_size=60))
def test_no_input_is_a_crash(arguments: list[str], text: str) -> None:
    """Whatever stands on the command line or in a variable: a configuration, or a `ConfigError` in plain words."""
    environ = {setting.env: text for setting in SETTINGS}
    assert outcome(arguments, environ, "/nonexistent")


@given(st.binary(max_size=80) | st.text("{}[]:,&*!|>'\"#-? \n\tab1", max_size=60).map(str.encode))
def test_no_file_is_a_crash(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Whatever the two files hold: a configuration, or a `ConfigError`."""
    directory = tmp_path_factory.getbasetemp() / "files"
    directory.mkdir(exist_ok=True)
    for name in (".env", "config.yaml"):
        (directory / name).write_bytes(content)
    assert outcome((), {}, directory)
