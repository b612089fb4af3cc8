"""The configuration as a value: what the rest of the program reads."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs

from twisted_proxy.config import values
from twisted_proxy.config.fields import checked
from twisted_proxy.config.routes import RouteRule, faults
from twisted_proxy.config.values import Keep

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3001
DEFAULT_URLS = {"anthropic": "https://api.anthropic.com", "openai": "https://api.openai.com"}
"""By the kind of provider."""


@attrs.frozen(kw_only=True)
class ProviderConfig:
    """One upstream. Times are in seconds.

    A field takes what its setting takes: ``idle_timeout="10m"`` works too. Anything else is a `ValueError`.
    """

    kind: str = checked(values.PROVIDER_KIND, "anthropic")
    """The API that it speaks: ``"anthropic"``, or ``"openai"``."""

    base_url: str = checked(
        values.BASE_URL,
        attrs.Factory(lambda self: DEFAULT_URLS[self.kind], takes_self=True),
    )
    """``http`` or ``https``; its path, kept without trailing slash, is put before each request's path.

    The default is the API of the company that `kind` names."""

    api_key: str | None = checked(values.API_KEY, None, secret=True)
    """Sent to this provider, and never to another. `None`: what the client sent, if that is meant for it."""

    version: str = checked(values.VERSION, "2023-06-01")
    """``anthropic-version`` of requests whose client sent none."""

    response_header_timeout: float = checked(values.SECONDS, 300.0)
    """From the last byte of the request to the response's headers. 0: no limit."""

    max_retries: int = checked(values.RETRIES, 3)
    """How often connecting is tried again, as long as nothing of the request has been sent."""

    idle_timeout: float = checked(values.SECONDS, 600.0)
    """Silence in the middle of a body, while the client reads. 0: no limit."""

    demote_nonstreaming: bool = checked(values.SWITCH, False)
    """Send a non-streaming ``POST /v1/messages`` upstream as a stream, and fold that into one message."""

    @property
    def is_set_up(self) -> bool:
        """Whether somebody has said anything of it that lets requests without a key of their own go there."""
        return self.api_key is not None or self.has_own_url

    @property
    def has_own_url(self) -> bool:
        """Whether it is another server than that of the company which `kind` names: it may want no key, or its own."""
        return self.base_url != DEFAULT_URLS[self.kind]


@attrs.frozen(kw_only=True)
class RecordConfig:
    """What is kept of the exchanges, where, and for how long. Times are in seconds, sizes in bytes.

    A relative path is relative to the working directory of the process that opens it: with ``twistd --rundir``,
    that one. An empty text is as good as `None`.
    """

    mode: str = checked(values.choice("full", "metadata", "off"), "full")
    """``"full"``: requests and answers with their bodies. ``"metadata"``: without. ``"off"``: nothing."""

    db_path: str = checked(values.PATH, "requests.db")
    """The file of the SQLite database; of no effect where there is a `database_url`."""

    database_url: str | None = checked(values.DATABASE_URL, None, secret=True)
    """A PostgreSQL database, instead of SQLite. Often holds a password."""

    spool_dir: str | None = checked(values.DIRECTORY, None)
    """Where exchanges wait for the database; `spool` says where that is when this is `None`."""

    spool_max_bytes: int = checked(values.SIZE, 4 * 2**30)
    """How much may wait there. Beyond, bodies are not kept."""

    retention_bodies: Keep = checked(values.KEEP, Keep())  # noqa: RUF009 (it is frozen)

    retention_metadata: Keep = checked(values.KEEP, Keep())  # noqa: RUF009 (it is frozen)
    """What goes by this takes its bodies along."""

    prices_file: str | None = checked(values.PATH, None)
    """Prices that override those shipped."""

    credential_key: str | None = checked(values.KEY, None, secret=True)
    """Key of the hashes that stand for credentials. `None`: a random one, kept in the spool directory."""

    @property
    def spool(self) -> str:
        """The spool directory in effect."""
        if self.spool_dir is not None:
            return self.spool_dir
        return "claude-proxy-spool" if self.database_url else f"{self.db_path}-spool"


@attrs.frozen(kw_only=True)
class DashboardConfig:
    """The dashboard, and who may look. An empty text is as good as `None`.

    Without password and token, only who asks directly from this host may look.
    """

    password: str | None = checked(values.PASSWORD, None, secret=True)
    """The password itself, or its hash (`config.passwords`)."""

    token: str | None = checked(values.TOKEN, None, secret=True)
    """For scripts: ``Authorization: Bearer``."""

    listen: tuple[str, ...] = checked(values.ENDPOINT, ())
    """Twisted endpoint strings; with any, the dashboard is there and nowhere else."""

    projects_dir: str | None = checked(values.DIRECTORY, None)
    """Where Claude Code keeps its transcripts. `None`: ``projects`` in its directory, ``~/.claude`` as a rule."""


@attrs.frozen(kw_only=True)
class SubagentConfig:
    """Agents whose requests ask another model than the one that their client names."""

    enable: bool = checked(values.SWITCH, True)
    """Whether `mappings` have any effect."""

    mappings: Mapping[str, str] = checked(values.MAPPING, {})
    """The model of each agent, by the agent's name."""

    @property
    def active(self) -> Mapping[str, str]:
        """The mappings that have an effect."""
        return self.mappings if self.enable else {}


def _in_order(rules: Iterable[RouteRule]) -> tuple[RouteRule, ...]:
    return tuple(rules)


def _by_name(providers: Mapping[str, ProviderConfig]) -> dict[str, ProviderConfig]:
    return dict(providers)


@attrs.frozen(kw_only=True)
class Config:
    """All of the configuration. ``Config()`` holds the defaults. Times are in seconds, sizes in bytes.

    A field takes what its setting takes: ``read_timeout="10m"`` works too. Anything else is a `ValueError`.
    """

    listen: tuple[str, ...] = checked(values.ENDPOINT, (values.tcp_endpoint(DEFAULT_HOST, DEFAULT_PORT),))
    """Twisted endpoint strings."""

    workers: int = checked(values.WORKERS, 1)
    """Processes that listen there. More than one: each has its part of what is allowed to all."""

    header_timeout: float = checked(values.SECONDS, 15.0)
    """The headers of a request, from their first byte to their last. 0: no limit but the next one."""

    read_timeout: float = checked(values.SECONDS, 600.0)
    """Silence in the middle of a request, and the whole of one that comes in drops. 0: no limit."""

    write_timeout: float = checked(values.SECONDS, 600.0)
    """No progress towards a client that has something to receive. 0: no limit."""

    idle_timeout: float = checked(values.SECONDS, 600.0)
    """A kept-alive connection without a request. 0: no limit."""

    max_body_bytes: int = checked(values.SIZE, 512 * 2**20)
    """Of a request."""

    max_message_bytes: int = checked(values.SIZE, 32 * 2**20)
    """Of a request to ``/v1/messages``. ``MAX_BODY_BYTES``, where it is set, sets this too."""

    max_bodies_bytes: int = checked(values.SIZE, 2**30)
    """Of all request bodies in memory. One that is alone may be larger."""

    max_connections: int = checked(values.COUNT, 0)
    """Of clients. 0: what the limit of descriptors allows."""

    limit_concurrent: int = checked(values.COUNT, 0)
    """Requests of one credential in flight. 0: no limit."""

    limit_requests_per_minute: int = checked(values.COUNT, 0)
    """Requests of one credential in any 60 seconds. 0: no limit."""

    max_response_bytes: int = checked(values.SIZE, 64 * 2**20)
    """Of an answer that is folded into one message."""

    demote_heartbeat: float = checked(values.SECONDS, 0.0)
    """While an answer is folded, a blank goes to the client each so many seconds. 0: none."""

    drain_timeout: float = checked(values.SECONDS, 1920.0)
    """The longest that a drain may take."""

    lame_duck: float = checked(values.SECONDS, 0.0)
    """The shortest time in which a draining proxy still listens and answers ``/health`` with 503."""

    log_format: str = checked(values.choice("text", "json"), "text")

    anthropic: ProviderConfig = attrs.field(
        factory=ProviderConfig, validator=attrs.validators.instance_of(ProviderConfig)
    )

    openai: ProviderConfig = attrs.field(
        factory=lambda: ProviderConfig(kind="openai"), validator=attrs.validators.instance_of(ProviderConfig)
    )

    other_providers: Mapping[str, ProviderConfig] = attrs.field(factory=dict, converter=_by_name)
    """By name, beside those two."""

    routes: tuple[RouteRule, ...] = attrs.field(
        default=(),
        converter=_in_order,
        validator=attrs.validators.deep_iterable(attrs.validators.instance_of(RouteRule)),
    )
    """The first that matches a request counts."""

    subagents: SubagentConfig = attrs.field(
        factory=SubagentConfig, validator=attrs.validators.instance_of(SubagentConfig)
    )

    record: RecordConfig = attrs.field(factory=RecordConfig, validator=attrs.validators.instance_of(RecordConfig))

    dashboard: DashboardConfig = attrs.field(
        factory=DashboardConfig, validator=attrs.validators.instance_of(DashboardConfig)
    )

    @property
    def providers(self) -> dict[str, ProviderConfig]:
        """All providers by name; ``anthropic`` and ``openai`` are always there."""
        return {"anthropic": self.anthropic, "openai": self.openai, **self.other_providers}

    def __attrs_post_init__(self) -> None:
        for name in BUILT_IN:
            if getattr(self, name).kind != name:
                raise ValueError(f"{name}: the provider is of another kind")
        for name, provider in self.other_providers.items():
            values.parse_provider(name)
            if name in BUILT_IN or not isinstance(provider, ProviderConfig):
                raise ValueError(f"other_providers: {name} is built in, or no ProviderConfig")
        for fault in faults(dict(enumerate(self.routes, 1)), self.providers):
            raise ValueError(f"routes: rule {fault.number} {fault.what}")
        for rule in RULES:
            if rule.broken(*(getattr(self, name) for name in rule.fields)):
                raise ValueError(rule.text)


BUILT_IN = ("anthropic", "openai")
"""The providers that are always there."""


@attrs.frozen(kw_only=True)
class Rule:
    """Something that two fields of a `Config` must observe together."""

    fields: tuple[str, str]
    broken: Callable[[Any, Any], bool]
    """Given the values of the two fields."""
    text: str


RULES = (
    Rule(
        fields=("lame_duck", "drain_timeout"),
        broken=operator.gt,
        text="the lame-duck time is longer than the drain may take",
    ),
)
