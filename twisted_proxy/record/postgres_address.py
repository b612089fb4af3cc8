"""Where a PostgreSQL database is, and what libpq is told to get there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

import attrs
from psycopg2 import ProgrammingError
from psycopg2.extensions import parse_dsn
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IHostResolution, IReactorPluggableNameResolver, IResolutionReceiver
from zope.interface import implementer

_HOW = (
    "write it as postgresql://user:password@host:5432/database, with characters of the password that are not letters "
    "or digits percent-encoded"
)

_DEFAULTS = {
    "application_name": "claude-proxy",
    # A peer that is gone without a word is noticed in half a minute, whether we wait for it or it owes us an answer.
    "keepalives": "1",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "25000",
    # Kerberos libraries ask their servers while everything else waits.
    "gssencmode": "disable",
}
"""
Parameters where the URL says nothing. Of several servers it is the one that takes writes.
https://www.postgresql.org/docs/current/libpq-connect.html
"""


@attrs.frozen
class Place:
    """A server that may have the database: its name or the directory of its Unix socket; its IP address if known."""

    host: str
    hostaddr: str
    port: str

    def __str__(self) -> str:
        return f"{self.host or self.hostaddr}{':' if self.port else ''}{self.port}"

    @property
    def needs_lookup(self) -> bool:
        """Whether libpq would look the name up, and let everything wait meanwhile."""
        return not self.hostaddr and not self.host.startswith("/")


@attrs.frozen(kw_only=True)
class Address:
    """
    Where the database is, and how to enter.

    :ivar places: are tried in this order.
    :ivar parameters: everything else that libpq is told. Holds the password.
    :ivar name: what messages call it. Holds no credential.
    """

    places: tuple[Place, ...]
    parameters: Mapping[str, str] = attrs.field(repr=False)
    name: str

    @property
    def password(self) -> str | None:
        return self.parameters.get("password")


def parse_address(url: str) -> Address:
    """
    Take a connection URI apart, as libpq does: several hosts, ``sslmode`` and all other parameters but ``service``.

    :raises ValueError: it is none. The text says why and shows nothing of it, as any part may be of the password.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise ValueError(f"DATABASE_URL does not begin with postgresql://: {_HOW}")
    try:
        parameters: dict[str, str] = parse_dsn(url)
    except (ProgrammingError, UnicodeError):
        # Its text repeats a part of the URL, and so would a chained traceback.
        parameters = {}
    if not parameters:
        raise ValueError(f"DATABASE_URL is not understood by PostgreSQL's library: {_HOW}")
    if "service" in parameters:
        raise ValueError("DATABASE_URL names a service, whose file is not read: name host, port and database")
    hosts = parameters.pop("host", "").split(",")
    hostaddrs = parameters.pop("hostaddr", "").split(",")
    ports = parameters.pop("port", "").split(",")
    count = max(len(hosts), len(hostaddrs))
    if any("@" in host for host in hosts):
        raise ValueError(f"DATABASE_URL has a second @ before its host, probably in the password: {_HOW}")
    if any(port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536) for port in ports):
        raise ValueError("DATABASE_URL has a port that is not a number from 1 to 65535")
    if any(len(each) not in (1, count) for each in (hosts, hostaddrs, ports)):
        raise ValueError("DATABASE_URL does not have as many ports or addresses as hosts")
    places = tuple(
        Place(*(each[at if len(each) > 1 else 0] for each in (hosts, hostaddrs, ports))) for at in range(count)
    )
    if not all(place.host or place.hostaddr for place in places):
        # libpq would look for a variable, and then in a directory that depends on how it was built.
        raise ValueError(f"DATABASE_URL names neither a host nor the directory of a socket: {_HOW}")
    database = parameters.get("dbname")
    name = f"the PostgreSQL database {database + ' ' if database else ''}at {' or '.join(map(str, places))}"
    defaults = {**_DEFAULTS, "target_session_attrs": "read-write"} if count > 1 else _DEFAULTS
    return Address(places=places, parameters={**defaults, **parameters, "client_encoding": "UTF8"}, name=name)


@implementer(IResolutionReceiver)
class _Found:
    """The addresses of one name, as they come."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._addresses: list[str] = []
        self.all: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, (IPv4Address, IPv6Address)):
            self._addresses.append(address.host)

    def resolutionComplete(self) -> None:
        self.all.callback(self._addresses)


async def look_up(reactor: IReactorPluggableNameResolver, places: Iterable[Place]) -> list[Place]:
    """
    The same places with their IP addresses, several of one that has several, none of one that has none.

    Names are looked up by the reactor's resolver, as libpq waits for the answer in the calling thread.
    """
    found: list[Place] = []
    for place in places:
        if not place.needs_lookup:
            found.append(place)
            continue
        try:
            addresses = [str(ip_address(place.host))]
        except ValueError:
            receiver = _Found(place.host)
            reactor.nameResolver.resolveHostName(receiver, place.host)
            addresses = await receiver.all
        found += [attrs.evolve(place, hostaddr=address) for address in dict.fromkeys(addresses)]
    return found
