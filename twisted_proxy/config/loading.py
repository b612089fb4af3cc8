"""From what was set, wherever, to one `Config`; or to one error that holds everything that is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from twisted_proxy.config import settings
from twisted_proxy.config.model import BUILT_IN, DEFAULT_HOST, DEFAULT_PORT, RULES, Config, ProviderConfig
from twisted_proxy.config.routes import faults
from twisted_proxy.config.settings import SETTINGS, Setting, field_of
from twisted_proxy.config.sources import (
    Findings,
    Given,
    Problem,
    Rank,
    read_arguments,
    read_dotenv,
    read_environment,
)
from twisted_proxy.config.values import tcp_endpoint
from twisted_proxy.config.yaml_file import PROVIDER_KEYS, read_yaml


class ConfigError(Exception):
    """The configuration is wrong. ``str()`` of it is the message, with every problem of every source."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        title = f"claude-proxy: the configuration has {count} problem{'s' if count > 1 else ''}"
        return "\n".join([title, *(f"  {problem}" for problem in self.problems)])


@attrs.frozen
class Effective:
    """A setting, its value for people (a secret masked), and where that came from."""

    setting: Setting
    value: str
    source: str


@attrs.frozen
class Shown:
    """Something that only ``config.yaml`` can say, for people: its place there, its value, and where that came from."""

    name: str
    value: str
    source: str


@attrs.frozen
class Loaded:
    """A configuration, and how it came to be. Each warning is about something that has no effect."""

    config: Config
    settings: tuple[Effective, ...]
    structures: tuple[Shown, ...]
    """Providers of other names, key by key, and routes."""
    warnings: tuple[str, ...]


@attrs.frozen
class _Value:
    value: Any
    rank: Rank
    where: str


_Values: TypeAlias = dict[Setting, _Value]


def load(
    arguments: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    directory: str | os.PathLike[str] = ".",
) -> Loaded:
    """Read command-line ``arguments``, ``environ`` (default: the process's), and the files of ``directory``.

    The files are ``.env`` and ``config.yaml``. The name of another one, in ``--config`` or ``CONFIG_PATH``,
    is relative to the process's working directory, or to ``.env`` when it stands there. Raises `ConfigError`.
    """
    directory = Path(directory)
    found = read_arguments(arguments).findings
    found.add(read_environment(os.environ if environ is None else environ))
    found.add(read_dotenv(directory / ".env"))
    values: _Values = {}
    problems = [*found.problems, *_take(found.given, values)]
    file = _read_file(directory, found.given, values)
    problems += [*file.problems, *_take(file.given, values)]
    problems += _conflicts(values)
    problems += _faults(file)
    if problems:
        raise ConfigError(problems)
    listen, warnings = _listen(values)
    used = values | {settings.LISTEN: listen}
    config = _build(used, file)
    warnings += _database(values)
    return Loaded(
        config=config,
        settings=tuple(_effective(setting, used) for setting in SETTINGS),
        structures=(*_providers(config, file), *_routes(config)),
        warnings=(*found.warnings, *file.warnings, *warnings),
    )


def _take(given: Iterable[Given], values: _Values) -> Iterator[Problem]:
    """Read each text into ``values``, and check those too that a higher source hides: wrong is wrong."""
    for entry in given:
        kind = entry.setting.kind
        try:
            value = kind.parse(entry.text)
        except ValueError as error:
            yield Problem(entry.where, f"{entry.setting.quote(entry.text)} {kind.explain(str(error))}")
            continue
        before = values.get(entry.setting)
        if before is not None and before.rank > entry.rank:
            continue
        if kind.many:
            value = (*before.value, value) if before is not None and before.rank == entry.rank else (value,)
        values[entry.setting] = _Value(value, entry.rank, entry.where)


def _read_file(directory: Path, given: Iterable[Given], values: _Values) -> Findings:
    named = values.get(settings.CONFIG_PATH)
    if named is not None:
        # Joined to a directory, an absolute path stays as it is.
        path = (directory if named.rank is Rank.DOTENV else Path()) / named.value
        return read_yaml(path, named_by=named.where)
    if any(entry.setting is settings.CONFIG_PATH for entry in given):
        return Findings()  # A file was named, wrongly: that is a problem already, and no other file is meant.
    return read_yaml(directory / "config.yaml")


def _conflicts(values: _Values) -> Iterator[Problem]:
    for rule in RULES:
        pair = [next(setting for setting in SETTINGS if name in setting.fields) for name in rule.fields]
        set_here = [values[setting] for setting in pair if setting in values]
        if set_here and rule.broken(*(_value(setting, values) for setting in pair)):
            stated = ", ".join(f"{setting.option} is {setting.show(_value(setting, values))}" for setting in pair)
            yield Problem(max(set_here, key=lambda value: value.rank).where, f"{rule.text}: {stated}")
    for setting, found in values.items():
        if setting.kind.pairs:
            names = [name for name, _ in found.value]
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield Problem(found.where, f"names {name} twice; one must go")


def _faults(file: Findings) -> Iterator[Problem]:
    rules = {number: given.rule for number, given in enumerate(file.routes, 1) if given.rule is not None}
    for fault in faults(rules, [*BUILT_IN, *file.providers]):
        where = file.routes[fault.number - 1].where
        yield Problem(where.get(fault.key, where[""]), fault.what)


def _value(setting: Setting, values: _Values) -> Any:
    return values[setting].value if setting in values else field_of(Config(), setting.fields[0])


def _listen(values: _Values) -> tuple[_Value, list[str]]:
    """Where to listen, and what is to be said about it.

    Endpoint strings hide the host and port of their own source and of lower ones, and are hidden by a host or
    port of a higher one: ``--port`` beats the ``listen`` of a file.
    """
    parts = [values[setting] for setting in (settings.PORT, settings.HOST) if setting in values]
    highest = max(parts, key=lambda part: part.rank, default=_Value(None, Rank.DEFAULT, "default"))
    listen = values.get(settings.LISTEN)
    if listen is not None and listen.rank >= highest.rank:
        return listen, []
    host = values[settings.HOST].value if settings.HOST in values else DEFAULT_HOST
    port = values[settings.PORT].value if settings.PORT in values else DEFAULT_PORT
    made = _Value((tcp_endpoint(host, port),), highest.rank, "from host and port")
    return made, [f"{listen.where} has no effect: {highest.where} comes first"] if listen else []


def _database(values: _Values) -> Iterator[str]:
    """What is to be said when both databases are set."""
    if settings.DB_PATH in values and settings.DATABASE_URL in values:
        path, url = values[settings.DB_PATH], values[settings.DATABASE_URL]
        yield f"{path.where} has no effect: the records go to the database of {url.where}"


def _providers(config: Config, file: Findings) -> Iterator[Shown]:
    for name, provider in config.other_providers.items():
        given = file.providers[name].values
        for key, kind in PROVIDER_KEYS[provider.kind].items():
            value = getattr(provider, key)
            shown = "none" if value is None else "***" if key == "api_key" else kind.show(value)
            yield Shown(f"providers.{name}.{key}", shown, given[key][1] if key in given else "default")


def _routes(config: Config) -> Iterator[Shown]:
    for number, rule in enumerate(config.routes, 1):
        yield Shown(f"routes.{number}", str(rule), rule.where)


def _build(values: _Values, file: Findings) -> Config:
    top: dict[str, Any] = {
        "routes": [given.rule for given in file.routes],
        "other_providers": {
            name: ProviderConfig(**{key: value for key, (value, _) in given.values.items()})
            for name, given in file.providers.items()
        },
    }
    sections: dict[str, dict[str, Any]] = {}
    for setting, found in values.items():
        for place in setting.fields:
            section, _, name = place.rpartition(".")
            (sections.setdefault(section, {}) if section else top)[name] = found.value
    default = Config()
    for section, fields in sections.items():
        top[section] = attrs.evolve(getattr(default, section), **fields)
    return Config(**top)


def _effective(setting: Setting, used: _Values) -> Effective:
    found = used.get(setting)
    value = setting.default if found is None else setting.show(found.value)
    source = "default" if found is None else found.where
    if setting in (settings.PORT, settings.HOST) and used[settings.LISTEN].where != "from host and port":
        source += "; not used, listen is set"
    return Effective(setting, value, source)
