"""The command ``claude-proxy``: what is not serving, and a short way to serving."""

from __future__ import annotations

import getpass
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from twisted_proxy import __version__
from twisted_proxy.config import Config, ConfigError, describe, load, read_arguments
from twisted_proxy.relay import routing
from twisted_proxy.relay.agents import Agents, default_directories


@attrs.frozen
class Command:
    """One subcommand. ``run`` gets the arguments after its name and returns the exit status."""

    run: Callable[[Sequence[str]], int]
    summary: str
    operands: str = ""
    """What stands before the options."""


def check_config(arguments: Sequence[str]) -> int:
    """Print the effective configuration, a setting a line; or, on standard error, all that is wrong."""
    if _asked(arguments, "check-config"):
        return 0
    try:
        loaded = load(arguments)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    rows = [(entry.setting.option, entry.value, entry.source) for entry in loaded.settings]
    rows += [(entry.name, entry.value, entry.source) for entry in loaded.structures]
    names = max(len(name) for name, _, _ in rows)
    # One long value (a list of endpoints) must not push every source out of sight.
    values = min(max(len(value) for _, value, _ in rows), 40)
    for name, value, source in rows:
        print(f"{name:<{names}} = {value:<{values}}   ({source})")
    for warning in (*loaded.warnings, *_router(loaded.config).warnings()):
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _router(config: Config) -> routing.Router:
    agents = Agents(
        default_directories(), time.monotonic, lambda warning: print(f"warning: {warning}", file=sys.stderr)
    )
    return routing.Router(config, agents)


def explain_route(arguments: Sequence[str]) -> int:
    """Print where a request, in a file or recorded, would go, and why; ``-`` is standard input."""
    if _asked(arguments, "explain-route"):
        return 0
    if not arguments or (arguments[0].startswith("-") and arguments[0] != "-"):
        print(
            "claude-proxy explain-route: name a file with a request in JSON, or the id of a recorded one (req_…), "
            "before any option",
            file=sys.stderr,
        )
        return 2
    name, *options = arguments
    try:
        config = load(options).config
        if re.fullmatch(r"req_[0-9a-f]{32}", name):
            request = _recorded_request(config, name)
        else:
            content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
            request = routing.read_request(content)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"claude-proxy: {name} cannot be read: {error.strerror or type(error).__name__}", file=sys.stderr)
        return 1
    except (routing.BadRequestFile, _NotRecorded) as error:
        print(f"claude-proxy: {name} {error}", file=sys.stderr)
        return 1
    print(_router(config).explain(routing.request_facts(*request)))
    return 0


class _NotRecorded(Exception):
    """There is no such recorded request; ``str()`` says why."""


def _recorded_request(config: Config, exchange_id: str) -> tuple[str, Sequence[tuple[str, str]], bytes]:
    """Path, recorded headers and body."""
    from twisted_proxy.offline import with_store
    from twisted_proxy.record.coding import decode
    from twisted_proxy.record.exchange import Role
    from twisted_proxy.record.store import RecordStore, StoreError

    async def find(store: RecordStore) -> tuple[str, Sequence[tuple[str, str]], bytes]:
        exchange = await store.get(exchange_id)
        if exchange is None:
            raise _NotRecorded("is not in the store")
        body = await store.body(exchange_id, Role.REQUEST)
        if body is None:
            raise _NotRecorded("is recorded without its body (RECORD, RETENTION_BODIES): there is nothing to go by")
        return exchange.path, exchange.request_headers, decode(body.data, body.content_encoding).data

    try:
        return with_store(config.record, find, to_read=True)
    except StoreError as error:
        raise _NotRecorded(f"cannot be looked up: {error}") from None


def import_history(arguments: Sequence[str]) -> int:
    """Bring the records of the Go program into the configured store."""
    if _asked(arguments, "import"):
        return 0
    if not arguments or arguments[0].startswith("-"):
        print("claude-proxy import: name the Go program's database, before any option", file=sys.stderr)
        return 2
    from twisted_proxy.offline import with_store
    from twisted_proxy.record.importing import NotImportable, Summary, import_database
    from twisted_proxy.record.pricing import load as load_prices
    from twisted_proxy.record.store import RecordStore, StoreError

    file, *options = arguments
    try:
        record = load(options).config.record
        prices = None if record.prices_file is None else load_prices(Path(record.prices_file))
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1

    async def bring(store: RecordStore) -> Summary:
        return await import_database(Path(file), store, lambda words: print(words, flush=True), prices=prices)

    try:
        with_store(record, bring)
    except (NotImportable, StoreError) as error:
        print(f"claude-proxy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("claude-proxy: stopped; what was imported stays, and importing again goes on", file=sys.stderr)
        return 130
    return 0


def status(arguments: Sequence[str]) -> int:
    """Print what a running proxy does; the exit status is one of `twisted_proxy.status`."""
    if _asked(arguments, "status"):
        return 0
    from twisted_proxy import status as looking

    left = list(arguments)
    url = left.pop(0) if left and not left[0].startswith("-") else None
    watching = "--watch" in left
    try:
        config = load([each for each in left if each != "--watch"]).config
        target = looking.target(config, url)
    except (ConfigError, looking.BadTarget) as error:
        print(error, file=sys.stderr)
        return looking.UNREACHABLE
    return looking.watch(target) if watching else looking.show(target)


def hash_password(arguments: Sequence[str]) -> int:
    """
    Ask for a password, or read it from standard input, and print what can stand in its place.

    Never as an argument: others see those.
    """
    if _asked(arguments, "hash-password"):
        return 0
    if arguments:
        print("claude-proxy hash-password: takes nothing; it asks for the password, or reads it", file=sys.stderr)
        return 2
    from twisted_proxy.config import passwords, values

    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Again: ") != password:
            print("claude-proxy: these are two different passwords", file=sys.stderr)
            return 1
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    try:
        if values.parse_password(password).startswith(passwords.PREFIX):
            raise ValueError("is a hash already")
    except ValueError as error:
        print(f"claude-proxy: the password {values.PASSWORD.explain(str(error))}", file=sys.stderr)
        return 1
    print(passwords.Hashed.of(password, os.urandom(passwords.SALT_BYTES)))
    return 0


def run(arguments: Sequence[str]) -> int:
    """``twistd -n claude-proxy``, in this process."""
    if _asked(arguments, "run"):
        return 0
    # Imported late: the other commands need nothing of Twisted.
    from twisted.scripts import twistd

    # Without a pid file two proxies can run in one directory, and nothing stale is left behind.
    sys.argv = ["twistd", "--nodaemon", "--pidfile=", "claude-proxy", *arguments]
    twistd.run()
    return 0


COMMANDS = {
    "run": Command(run, "serve in the foreground: twistd -n claude-proxy"),
    "check-config": Command(check_config, "print the effective configuration, and where each value comes from"),
    "explain-route": Command(
        explain_route, "say where a request, in a file or recorded, would go, and which rule says so", "FILE|ID "
    ),
    "status": Command(
        status,
        "show what a running proxy does, with --watch each second; exits with 0: serving, 1: unreachable, 2: draining",
        "[URL] [--watch] ",
    ),
    "import": Command(
        import_history, "bring the records of claude-code-proxy, the Go program, into the store", "FILE "
    ),
    "hash-password": Command(hash_password, "print the hash of a password, for DASHBOARD_PASSWORD"),
}


def _asked(arguments: Sequence[str], command: str) -> bool:
    wants = read_arguments(arguments).wants
    if wants == "help":
        known = COMMANDS[command]
        print(f"Usage: claude-proxy {command} {known.operands}[options]\n\n{known.summary}\n\n{describe()}", end="")
    elif wants == "version":
        _version()
    return wants is not None


def _version() -> None:
    print(f"claude-proxy {__version__}")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "Usage: claude-proxy COMMAND [options]",
            "",
            "A reverse proxy for the Anthropic API.",
            "",
            "Commands:",
            *lines,
            "",
            "claude-proxy COMMAND --help tells more. claude-proxy --version prints the version.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` (default: the process's) name; returns the exit status."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name == "--version":
        _version()
        return 0
    command = COMMANDS.get(name)
    if command is None:
        print(
            f"claude-proxy: there is no command {name!r}; the commands are {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    return command.run(rest)


if __name__ == "__main__":
    sys.exit(main())
