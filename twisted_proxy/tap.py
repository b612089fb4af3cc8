"""What ``twistd`` needs of claude-proxy: its options, and the service that it runs.

This is the only module that imports the reactor.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NoReturn, TextIO, cast

from twisted.application.service import IService
from twisted.copyright import version as twisted_version
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.logfile import LogFile

from twisted_proxy import __version__
from twisted_proxy.config import SETTINGS, Config, ConfigError, describe, load, read_arguments

log = Logger()


class Options(usage.Options):
    """The options of ``twistd claude-proxy``, out of the table of settings.

    After parsing, ``config`` holds the `Config` and ``warnings`` what to tell about it.
    """

    # For the shell's completion, and for whoever looks an option up here; `parseOptions` does the reading.
    optParameters: ClassVar[list[list[str | None]]] = [
        [setting.option, None, None, setting.meaning] for setting in SETTINGS
    ]

    config: Config
    warnings: tuple[str, ...] = ()

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Read ``options`` (default: the process's arguments) and every other source of configuration.

        The inherited method stops at the first mistake, and ``twistd`` answers it with the whole help on
        standard output. Here all mistakes of all sources make one message on standard error, and the exit
        status is 1.
        """
        arguments = sys.argv[1:] if options is None else options
        wants = read_arguments(arguments).wants
        if wants == "help":
            print(self)
            raise SystemExit(0)
        if wants == "version":
            self.opt_version()
        try:
            loaded = load(arguments, directory=self._directory())
            self._check_prices(loaded.config)
        except (ConfigError, ValueError) as error:
            raise SystemExit(str(error)) from None
        self.config = loaded.config
        self.warnings = loaded.warnings

    def _check_prices(self, config: Config) -> None:
        """
        :raises ValueError: the file of prices is none; a line for each problem.
        """
        if config.record.mode != "off" and config.record.prices_file is not None:
            from twisted_proxy.record import pricing

            pricing.load(Path(self._directory(), config.record.prices_file))

    def _directory(self) -> str:
        # twistd changes to --rundir only after the options are read; for the person who gave it, it is the
        # working directory all the same.
        return "." if self.parent is None else str(self.parent.get("rundir", "."))

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        print(f"claude-proxy {__version__} (Twisted {twisted_version})")
        raise SystemExit(0)

    def getUsage(self, width: int | None = None) -> str:
        """The text of ``--help`` below the synopsis."""
        return describe(width or 80)


def makeService(options: Options) -> IService:
    """The service that serves, and drains when it is stopped."""
    # Not at the top of the module: `--help` needs neither, and each installs a reactor where there is none.
    from twisted.internet import reactor

    from twisted_proxy.service import ProxyServer
    from twisted_proxy.workers.supervisor import Supervisor

    for warning in options.warnings:
        log.warn("configuration: {warning}", warning=warning)
    serve = ProxyServer if options.config.workers == 1 else Supervisor
    return serve(options.config, reactor, log_file=log_file(options.parent or {}))


def log_file(twistd: Mapping[str, object]) -> TextIO | None:
    """Where ``twistd`` was told to log; ``None`` where it was told how, too (``--logger``, ``--syslog``)."""
    if twistd.get("logger") or twistd.get("syslog"):
        return None
    name = str(twistd.get("logfile") or ("" if twistd.get("nodaemon") else "twistd.log"))
    if name in ("", "-"):
        return sys.stdout
    file = LogFile.fromFullPath(str(Path(name).absolute()))

    def rotate(*_: object) -> None:
        from twisted.internet import reactor

        cast("IReactorFromThreads", reactor).callFromThread(file.rotate)

    # As twistd does for its own file.
    if signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
        signal.signal(signal.SIGUSR1, rotate)
    return cast("TextIO", file)
