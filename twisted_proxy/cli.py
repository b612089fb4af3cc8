"""The command ``claude-proxy``: what is not serving, and a short way to serving."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import attrs

from twisted_proxy import __version__
from twisted_proxy.config import ConfigError, describe, load, read_arguments


@attrs.frozen
class Command:
    """One subcommand. ``run`` gets the arguments after its name and returns the exit status."""

    run: Callable[[Sequence[str]], int]
    summary: str


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
    names = max(len(name) for name, _, _ in rows)
    # One long value (a list of endpoints) must not push every source out of sight.
    values = min(max(len(value) for _, value, _ in rows), 40)
    for name, value, source in rows:
        print(f"{name:<{names}} = {value:<{values}}   ({source})")
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
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
}


def _asked(arguments: Sequence[str], command: str) -> bool:
    wants = read_arguments(arguments).wants
    if wants == "help":
        print(f"Usage: claude-proxy {command} [options]\n\n{COMMANDS[command].summary}\n\n{describe()}", end="")
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
