"""The table of settings, from which the options, ``--help``, the checks and the documentation come.

A new setting is one line here, and the field of ``Config`` that it fills.
"""

from __future__ import annotations

import enum
import textwrap
from collections.abc import Iterator
from typing import Any, TypeAlias

import attrs

from twisted_proxy.config import values
from twisted_proxy.config.model import DEFAULT_HOST, DEFAULT_PORT, Config
from twisted_proxy.config.values import Kind


@attrs.frozen(eq=False)
class Setting:
    """One thing that can be set, and where.

    ``fields`` are the places in `Config` that it fills, dotted. A setting without any is used while loading.
    """

    env: str
    """Its name in the environment and in ``.env``."""
    yaml: str
    """Its place in ``config.yaml``, dotted; empty when it has none."""
    kind: Kind[Any]
    fields: tuple[str, ...]
    meaning: str
    secret: bool = attrs.field(kw_only=True, default=False)
    """Its value is never shown, and never repeated in a message."""
    option: str = attrs.field(kw_only=True)
    """Its name on the command line, without ``--``."""
    default: str = attrs.field(kw_only=True)
    """The default, in words."""

    @option.default
    def _option(self) -> str:
        return self.env.lower().replace("_", "-")

    @default.default
    def _default(self) -> str:
        value = field_of(Config(), self.fields[0])
        return "none" if value is None or (self.kind.many and not value) else self.show(value)

    def show(self, value: Any) -> str:
        """``value`` for people; a secret only as being there."""
        if self.secret:
            return "***"
        return " ".join(map(self.kind.show, value)) if self.kind.many else self.kind.show(value)

    def quote(self, text: str) -> str:
        """A refused ``text`` for a message; of a secret, nothing."""
        return "the value" if self.secret else self.kind.quote(text)


def field_of(config: Config, place: str) -> Any:
    """The value at the dotted ``place``."""
    found: Any = config
    for name in place.split("."):
        found = getattr(found, name)
    return found


S = Setting
V = values

# fmt: off
GROUPS: tuple[tuple[str, tuple[Setting, ...]], ...] = (
    ("Configuration file", (
        S("CONFIG_PATH", "", V.PATH, (),
          "another file than config.yaml of the working directory; it must exist",
          option="config", default="config.yaml, if it is there"),
    )),
    ("Listening", (
        S("PORT", "server.port", V.PORT, (),
          "TCP port to listen on; 0: any free one", default=str(DEFAULT_PORT)),
        S("HOST", "server.host", V.HOST, (),
          "address to listen on", default=DEFAULT_HOST),
        S("LISTEN", "server.listen", V.ENDPOINT, ("listen",),
          "instead of the two above: where to listen, as Twisted endpoint strings (tcp:, ssl:, unix:, "
          "systemd:); repeat the option, separate by white space in the environment, write a list in YAML",
          default="from PORT and HOST"),
        S("WORKERS", "server.workers", V.WORKERS, ("workers",),
          "processes that serve there, below one that keeps them running; as many as there are cores to use"),
    )),
    ("Limits towards clients", (
        S("HEADER_TIMEOUT", "server.timeouts.header", V.SECONDS, ("header_timeout",),
          "the headers of a request must be here so long after their first byte; beyond: 408; 0: READ_TIMEOUT alone"),
        S("READ_TIMEOUT", "server.timeouts.read", V.SECONDS, ("read_timeout",),
          "a request's body that brings nothing for so long is answered 408; "
          "0: no limit"),
        S("WRITE_TIMEOUT", "server.timeouts.write", V.SECONDS, ("write_timeout",),
          "a client that takes nothing for so long, with something to receive, is cut; 0: no limit"),
        S("IDLE_TIMEOUT", "server.timeouts.idle", V.SECONDS, ("idle_timeout",),
          "a connection without a request is closed; longer than a balancer in front waits; 0: no limit"),
        S("MAX_BODY_BYTES", "server.max_body_bytes", V.SIZE, ("max_body_bytes", "max_message_bytes"),
          "largest request body; beyond: 413, before the body is read; where set, for messages too",
          default="512MiB; 32MiB on messages"),
        S("MAX_BODIES_BYTES", "server.max_bodies_bytes", V.SIZE, ("max_bodies_bytes",),
          "memory for all request bodies together; beyond: 529 with Retry-After; one that is alone always fits"),
        S("MAX_CONNECTIONS", "server.max_connections", V.COUNT, ("max_connections",),
          "connections of clients; beyond: 503 with Retry-After, but for /health, /livez and /metrics; 0: what the "
          "limit of descriptors allows, at most 16384"),
        S("LIMIT_CONCURRENT", "server.limits.concurrent", V.COUNT, ("limit_concurrent",),
          "requests of one credential at a time; beyond: 429 with Retry-After; 0: no limit"),
        S("LIMIT_REQUESTS_PER_MINUTE", "server.limits.requests_per_minute", V.COUNT, ("limit_requests_per_minute",),
          "requests of one credential within a minute; beyond: 429 with Retry-After; 0: no limit"),
    )),
    ("Anthropic", (
        S("ANTHROPIC_FORWARD_URL", "providers.anthropic.base_url", V.BASE_URL, ("anthropic.base_url",),
          "the API; a path in it is put before each request's path"),
        S("ANTHROPIC_VERSION", "providers.anthropic.version", V.VERSION, ("anthropic.version",),
          "anthropic-version of requests whose client sent none"),
        S("ANTHROPIC_RESPONSE_HEADER_TIMEOUT", "providers.anthropic.response_header_timeout", V.SECONDS,
          ("anthropic.response_header_timeout",),
          "from the last byte of a request to the response's headers; 0: no limit"),
        S("ANTHROPIC_MAX_RETRIES", "providers.anthropic.max_retries", V.RETRIES, ("anthropic.max_retries",),
          "repeats of connection attempts that sent nothing; never of what may have been received"),
        S("UPSTREAM_IDLE_TIMEOUT", "providers.anthropic.idle_timeout", V.SECONDS, ("anthropic.idle_timeout",),
          "silence in the middle of a response, while the client keeps up; 0: no limit"),
    )),
    ("OpenAI, and servers that speak its API", (
        S("OPENAI_API_KEY", "providers.openai.api_key", V.API_KEY, ("openai.api_key",),
          "its key; sent to this provider and to no other", secret=True),
        S("OPENAI_BASE_URL", "providers.openai.base_url", V.BASE_URL, ("openai.base_url",),
          "the server, without /v1; a path in it is put before each request's path"),
        S("OPENAI_RESPONSE_HEADER_TIMEOUT", "providers.openai.response_header_timeout", V.SECONDS,
          ("openai.response_header_timeout",),
          "from the last byte of a request to the response's headers; 0: no limit"),
        S("OPENAI_MAX_RETRIES", "providers.openai.max_retries", V.RETRIES, ("openai.max_retries",),
          "repeats of connection attempts that sent nothing; never of what may have been received"),
        S("OPENAI_IDLE_TIMEOUT", "providers.openai.idle_timeout", V.SECONDS, ("openai.idle_timeout",),
          "silence in the middle of a response, while the client keeps up; 0: no limit"),
    )),
    ("Agents that ask another model", (
        S("SUBAGENT_MAPPINGS", "subagents.mappings", V.MAPPING, ("subagents.mappings",),
          "the model of each agent, by the agent's name: code-reviewer:gpt-4o, with commas between; a mapping in YAML"),
        S("SUBAGENTS_ENABLE", "subagents.enable", V.SWITCH, ("subagents.enable",),
          "whether these mappings have an effect"),
    )),
    ("Demotion: non-streaming messages, sent upstream as streams", (
        S("ANTHROPIC_DEMOTE_NONSTREAMING", "providers.anthropic.demote_nonstreaming", V.SWITCH,
          ("anthropic.demote_nonstreaming",),
          "ask for a stream where the client did not, and fold it into one answer: it cannot time out"),
        S("DEMOTE_HEARTBEAT", "server.demote_heartbeat", V.SECONDS, ("demote_heartbeat",),
          "send the status line and then a blank so often while the answer grows; a failure can then only "
          "be a cut; 0: off"),
        S("MAX_RESPONSE_BYTES", "server.max_response_bytes", V.SIZE, ("max_response_bytes",),
          "largest folded answer; beyond: 502"),
    )),
    ("Records", (
        S("RECORD", "storage.record", V.choice("full", "metadata", "off"), ("record.mode",),
          "full: requests and answers with their bodies; metadata: without; off: nothing"),
        S("DB_PATH", "storage.db_path", V.PATH, ("record.db_path",),
          "the SQLite file that holds the records"),
        S("DATABASE_URL", "storage.database_url", V.DATABASE_URL, ("record.database_url",),
          "PostgreSQL instead of SQLite: postgresql://…", secret=True),
        S("SPOOL_DIR", "storage.spool_dir", V.DIRECTORY, ("record.spool_dir",),
          "directory in which exchanges wait for the database; with DATABASE_URL the default is "
          "claude-proxy-spool, otherwise it lies beside the file",
          default="DB_PATH-spool, or claude-proxy-spool"),
        S("SPOOL_MAX_BYTES", "storage.spool_max_bytes", V.SIZE, ("record.spool_max_bytes",),
          "how much may wait there; beyond, bodies are not kept, which is counted and logged"),
        S("RETENTION_BODIES", "storage.retention.bodies", V.KEEP, ("record.retention_bodies",),
          "how long, or how much, bodies are kept: keep, an age (30d), a size (20GiB), or both (30d 20GiB)"),
        S("RETENTION_METADATA", "storage.retention.metadata", V.KEEP, ("record.retention_metadata",),
          "the same for everything else; what goes takes its bodies along"),
        S("PRICES_FILE", "storage.prices_file", V.PATH, ("record.prices_file",),
          "a file of prices that override the built-in ones"),
        S("CREDENTIAL_KEY", "storage.credential_key", V.KEY, ("record.credential_key",),
          "key of the hashes that stand for credentials; where several hosts share a database, give all the same",
          secret=True, default="random, in the spool directory"),
    )),
    ("Dashboard", (
        S("DASHBOARD_PASSWORD", "dashboard.password", V.PASSWORD, ("dashboard.password",),
          "who knows it may look and change; the password, or its scrypt hash", secret=True),
        S("DASHBOARD_TOKEN", "dashboard.token", V.TOKEN, ("dashboard.token",),
          "for scripts, as Authorization: Bearer; without it and a password, only who asks directly from this host "
          "may look", secret=True),
        S("DASHBOARD_LISTEN", "dashboard.listen", V.ENDPOINT, ("dashboard.listen",),
          "endpoint strings of a listener of its own for page and API, which then are at no other",
          default="where LISTEN is"),
        S("CLAUDE_PROJECTS_DIR", "dashboard.projects_dir", V.DIRECTORY, ("dashboard.projects_dir",),
          "directory of Claude Code's own transcripts, which are shown beside the recorded conversations",
          default="~/.claude/projects"),
    )),
    ("Stopping", (
        S("DRAIN_TIMEOUT", "server.drain.timeout", V.SECONDS, ("drain_timeout",),
          "longest time for requests in flight after SIGTERM; what remains is cut"),
        S("DRAIN_LAME_DUCK", "server.drain.lame_duck", V.SECONDS, ("lame_duck",),
          "shortest time in which /health answers 503 before listening stops"),
    )),
    ("Logging", (
        S("LOG_FORMAT", "server.log_format", V.choice("text", "json"), ("log_format",),
          "text, or json with one event a line"),
    )),
)
# fmt: on

SETTINGS: tuple[Setting, ...] = tuple(setting for _, group in GROUPS for setting in group)

CONFIG_PATH, PORT, HOST, LISTEN, DB_PATH, DATABASE_URL = (
    next(setting for setting in SETTINGS if setting.env == name)
    for name in ("CONFIG_PATH", "PORT", "HOST", "LISTEN", "DB_PATH", "DATABASE_URL")
)

DISREGARDED: tuple[str, ...] = ("storage.requests_dir",)
"""Keys of the Go program's ``config.yaml`` that have no effect here: its users can keep their file."""


class Structure(enum.Enum):
    """What only ``config.yaml`` can say, as it takes more than a name and a value."""

    PROVIDER = "providers.*"
    """A provider, under whatever name."""
    ROUTES = "routes"


ANY = "*"
"""The key of a section in which names that are not in the table are free to choose."""

Leaf: TypeAlias = "Setting | Structure | None"
Tree: TypeAlias = "dict[str, Tree | Leaf]"


def yaml_tree() -> Tree:
    """What ``config.yaml`` may hold: sections, settings, structures, and `None` for a key that is disregarded."""
    tree: Tree = {}
    leaves: list[tuple[str, Leaf]] = [(setting.yaml, setting) for setting in SETTINGS if setting.yaml]
    leaves += [(structure.value, structure) for structure in Structure]
    leaves += [(place, None) for place in DISREGARDED]
    for place, leaf in leaves:
        *sections, name = place.split(".")
        section = tree
        for title in sections:
            below = section.setdefault(title, {})
            assert isinstance(below, dict), f"{place} lies below a setting"
            section = below
        assert name not in section, f"{place} is taken"
        section[name] = leaf
    return tree


PRECEDENCE = (
    "A setting is taken from the first of: the options below, the environment, the file .env, config.yaml, "
    "the default. Both files are looked for in the working directory."
)


def describe(width: int = 80) -> str:
    """All settings for ``--help``, ``width`` columns wide."""
    return "\n".join(_description(width)) + "\n"


def _description(width: int) -> Iterator[str]:
    yield from textwrap.wrap(PRECEDENCE, width)
    for title, group in GROUPS:
        yield ""
        yield f"{title}:"
        for setting in group:
            argument = f"[={setting.kind.metavar}]" if setting.kind.switch else f"={setting.kind.metavar}"
            yield f"  --{setting.option}{argument}"
            yield from textwrap.wrap(setting.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
            names = ", ".join(filter(None, (setting.env, setting.yaml)))
            yield f"      [{names}; default: {setting.default}]"
    yield ""
    yield "Other options:"
    yield "  --help, --version"
