"""
A real PostgreSQL server for the tests, which start it, stop it and freeze it.

`server` runs one in a temporary directory. `Server.database` gives a user of its own to each test, who is no superuser,
has a password that no other text contains, and finds an empty schema: as good as an empty database, and made in a tenth
of the time. `postgresql` and `database` are fixtures.

The server's programs come from ``PATH`` or from where Debian puts them (``/usr/lib/postgresql/*/bin``). Where there are
none, tests are skipped, but fail where ``CI`` is set: a build that did not try PostgreSQL has shown nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import attrs
import psycopg2
import pytest
import trustme

from tests.processes import wait_for

INSTALL: Final = "On Debian: apt install postgresql. Elsewhere: put initdb and postgres into PATH."
START_LIMIT: Final = 30.0
ADMIN: Final = "postgres"
"""The superuser, and the database where nothing is."""
RECORDS: Final = "records"
"""The database of all `Database`."""

# Nothing here has to survive a power cut. No autovacuum: a test of how fast many rows are found says ANALYZE itself.
SETTINGS: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "shared_buffers": "32MB",
    "max_connections": "40",
    "max_wal_size": "256MB",
    "autovacuum": "off",
    "listen_addresses": "127.0.0.1",
    "lc_messages": "C",
    "log_line_prefix": "",
}

# Ends the server also when this process has gone without a word: then its end of the pipe is closed. A process that is
# stopped has to go on to see a signal.
RUN: Final = """
exec 3<&0
"$@" 3<&- </dev/null & server=$!
{ read -r _ <&3; kill -QUIT $server; kill -CONT $server; } & watch=$!
wait $server
kill $watch
"""


def programs() -> Path | None:
    """The directory of the newest ``initdb`` and ``postgres``, or ``None``."""
    in_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: int(each.parent.name), reverse=True)
    for directory in [*([Path(in_path).resolve().parent] if in_path else []), *debian]:
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return directory
    return None


def unprivileged() -> dict[str, Any]:
    """How a program is run as somebody else than root, which PostgreSQL refuses: keywords for `subprocess.Popen`."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise AssertionError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@attrs.frozen(kw_only=True)
class Database:
    """
    A database that is empty, as its user sees it.

    :ivar user: also the name of the schema that is all that the user sees.
    :ivar password: as it is; in the URL it is percent-encoded.
    """

    server: Server
    name: str
    user: str
    password: str

    @property
    def url(self) -> str:
        """For the user, over TCP."""
        return self.at(f"127.0.0.1:{self.server.port}")

    @property
    def socket_url(self) -> str:
        """The same over the Unix socket."""
        return self.at("") + f"?host={quote(str(self.server.socket_directory), safe='')}&port={self.server.port}"

    def at(self, authority: str) -> str:
        """The URL with another host and port."""
        return f"postgresql://{self.user}:{quote(self.password, safe='')}@{authority}/{self.name}"

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run statements as superuser, in the user's schema; the rows of the last, if it has any."""
        return self.server.query(statement, parameters, database=self.name, schema=self.user)


class Server:
    """
    One server: made → running ⇄ stopped, running ⇄ frozen.

    Every method returns when what it promises is so, and raises `AssertionError` with the server's log otherwise.
    """

    def __init__(self, directory: Path, binaries: Path) -> None:
        self._binaries = binaries
        self._data = directory / "data"
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: list[int] = []
        self._numbers = itertools.count(1)
        self.socket_directory = directory
        self.port = free_port()
        self._as_user = unprivileged()
        if self._as_user:
            os.chown(directory, self._as_user["user"], self._as_user["group"])
        self._run(
            "initdb",
            *("--pgdata", self._data, "--username", ADMIN, "--auth-host", "scram-sha-256"),
            # Nobody else can enter the socket's directory.
            *("--auth-local", "trust"),
            *("--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"),
        )

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self._binaries / program, *arguments],
            capture_output=True,
            check=False,
            cwd="/",
            text=True,
            **self._as_user,
        )
        if done.returncode:
            raise AssertionError(f"{program} failed: {done.stderr or done.stdout}")

    @property
    def log(self) -> str:
        """What the server has written since its start, latest last."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    # Running

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it; a server that runs stays as it is."""
        if self._process is not None:
            return
        options = {**SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.socket_directory)}
        command = [str(self._binaries / "postgres"), "-D", str(self._data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", RUN, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                **self._as_user,
            )
        wait_for(self._is_ready, f"a PostgreSQL server that accepts connections: {self.log}", START_LIMIT)

    def _status(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []

    def _is_ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"PostgreSQL has ended: {self.log}")
        # The eighth line is what pg_ctl waits for.
        status = self._status()
        return len(status) >= 8 and status[7].strip() == "ready"

    @property
    def pid(self) -> int:
        """The process that all others of the server are children of."""
        return int(self._status()[0])

    def stop(self, mode: str = "fast") -> None:
        """
        Stop it, if it runs.

        :param mode: ``smart`` waits until all clients have gone, ``fast`` ends them, ``immediate`` is a crash.
        """
        if self._process is None:
            return
        self.thaw()
        how = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        os.kill(self.pid, how)
        try:
            self._process.wait(START_LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"PostgreSQL does not stop: {self.log}") from None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    @contextlib.contextmanager
    def tls(self) -> Iterator[Path]:
        """Within the block it speaks TLS, if it is asked to, for ``localhost``. Gives the file of the authority."""
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost")
        for name, blob in (("server.key", certificate.private_key_pem), ("server.crt", certificate.cert_chain_pems[0])):
            path = self._data / name
            path.write_bytes(blob.bytes())
            path.chmod(0o600)
            if self._as_user:
                os.chown(path, self._as_user["user"], self._as_user["group"])
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(authority.cert_pem.bytes())
            file.flush()
            self._set_tls("on")
            try:
                yield Path(file.name)
            finally:
                self.thaw()
                self._set_tls("off")

    def _set_tls(self, value: str) -> None:
        self.query(f"ALTER SYSTEM SET ssl = {value}")
        self.query("SELECT pg_reload_conf()")
        wait_for(lambda: self.query("SHOW ssl") == [(value,)], f"ssl = {value}: {self.log}")

    # Frozen: it accepts connections as far as the kernel does, and says nothing.

    def freeze(self) -> None:
        """Stop all its processes where they are (``SIGSTOP``)."""
        assert not self._frozen
        # The parent first: then there are no new ones.
        for pid in (self.pid, *self._children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self._frozen.append(pid)

    def _children(self) -> list[int]:
        parent = self.pid
        found = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
        pairs = (map(int, line.split()) for line in found.stdout.splitlines())
        return [pid for pid, its_parent in pairs if its_parent == parent]

    def thaw(self) -> None:
        """Let it go on, if it is frozen."""
        frozen, self._frozen = self._frozen, []
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # Databases

    def query(
        self, statement: str, parameters: Sequence[object] = (), *, database: str = ADMIN, schema: str = "public"
    ) -> list[tuple[Any, ...]]:
        """Run statements as superuser; the rows of the last, if it has any."""
        connection = psycopg2.connect(
            host=str(self.socket_directory),
            port=self.port,
            user=ADMIN,
            dbname=database,
            options=f"-c search_path={schema}",
        )
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        """An empty database; after the block the server runs, unfrozen, without it."""
        self.start()
        user = f"test_{next(self._numbers)}"
        # The odd characters have to be percent-encoded in a URL and quoted in a connection string.
        made = Database(server=self, name=RECORDS, user=user, password=f"sekret-'{secrets.token_urlsafe(9)}@:/% \\")
        self.query(f"CREATE ROLE {user} LOGIN PASSWORD %s", [made.password], database=RECORDS)
        self.query(
            f"CREATE SCHEMA {user} AUTHORIZATION {user}; ALTER ROLE {user} SET search_path = {user}", database=RECORDS
        )
        try:
            yield made
        finally:
            self.thaw()
            self.start()
            self.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [user])
            self.query(f"DROP SCHEMA IF EXISTS {user} CASCADE", database=RECORDS)
            self.query(f"DROP OWNED BY {user} CASCADE; DROP ROLE {user}", database=RECORDS)


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A running server of the test's own, gone with all its files after the block."""
    binaries = programs()
    if binaries is None:
        message = f"no PostgreSQL server is installed. {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    # Not pytest's directory: only its owner may enter that one, and the path of a socket has at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        made = Server(directory, binaries)
        made.start()
        made.query(f"CREATE DATABASE {RECORDS} TEMPLATE template0")
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """One server for all tests. Whoever stops or freezes it has a `database`, which sees to it that it goes on."""
    with server() as running:
        yield running


@pytest.fixture
def database(postgresql: Server) -> Iterator[Database]:
    """An empty database on `postgresql`."""
    with postgresql.database() as made:
        yield made
