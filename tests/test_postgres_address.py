"""Where a PostgreSQL database is: connection URIs, and names that are looked up without blocking."""

from __future__ import annotations

from typing import Any, cast

import attrs
import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorPluggableNameResolver, IResolutionReceiver

from twisted_proxy.record.postgres_address import Place, look_up, parse_address


def test_one_host() -> None:
    """Host and port are the place, all else goes to libpq, with defaults for what the URI does not say."""
    address = parse_address(
        "postgresql://proxy:se%2Fcret@db.example:5433/records?sslmode=verify-full&keepalives_idle=7"
    )
    assert address.places == (Place("db.example", "", "5433"),)
    assert address.parameters["user"] == "proxy"
    assert address.parameters["password"] == address.password == "se/cret"
    assert address.parameters["dbname"] == "records"
    assert address.parameters["sslmode"] == "verify-full"
    assert address.parameters["keepalives_idle"] == "7"
    assert address.parameters["keepalives_interval"] == "5"
    assert "target_session_attrs" not in address.parameters
    assert not {"host", "hostaddr", "port"} & address.parameters.keys()


def test_several_hosts() -> None:
    """Each is a place; one port is for all of them; and of several servers it is the one that takes writes."""
    address = parse_address("postgres://a,b,[::1]/records?port=5433")
    assert address.places == tuple(Place(host, "", "5433") for host in ("a", "b", "::1"))
    assert address.parameters["target_session_attrs"] == "read-write"
    assert parse_address("postgres://a:1,b/r?target_session_attrs=any").parameters["target_session_attrs"] == "any"
    assert parse_address("postgres://a:1,b:2/r").places == (Place("a", "", "1"), Place("b", "", "2"))


def test_addresses_and_sockets_are_not_looked_up() -> None:
    """Nor is a host whose address is given: it only says what a certificate has to name."""
    address = parse_address("postgresql://db.example/r?hostaddr=192.0.2.1")
    assert address.places == (Place("db.example", "192.0.2.1", ""),)
    assert not address.places[0].needs_lookup
    assert not parse_address("postgresql:///r?host=/run/postgresql").places[0].needs_lookup
    assert parse_address("postgresql://db.example/r").places[0].needs_lookup


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://proxy:sekret@host/db", "does not begin with postgresql://"),
        ("sekret", "does not begin with postgresql://"),
        ("host=h password=sekret", "does not begin with postgresql://"),
        ("postgresql://", "not understood"),
        ("postgresql://proxy:sekret%zz@host/db", "not understood"),
        ("postgresql://proxy:pass@host/db?sekret=1", "not understood"),
        ("postgresql://proxy:pass@[sekret/db", "not understood"),
        ("postgresql://proxy:pa@sekret@host/db", "second @"),
        ("postgresql://proxy:p@host:sekret/db", "port"),
        ("postgresql://proxy:p@host:70000/sekret", "port"),
        ("postgresql://proxy:sekret@a:1,b:2,c:3/db?hostaddr=192.0.2.1,192.0.2.2", "as many"),
        ("postgresql://proxy:sekret@/db", "neither a host nor"),
        ("postgresql://a,/db?user=sekret", "neither a host nor"),
        ("postgresql://proxy:sekret@host/db?service=records", "service"),
    ],
)
def test_what_is_none(url: str, why: str) -> None:
    """The error says what is wrong, and shows nothing of the URL: a password may be anywhere in one that is wrong."""
    with pytest.raises(ValueError, match=why) as raised:
        parse_address(url)
    assert "sekret" not in str(raised.value)
    # What a traceback would show with it:
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None or raised.value.__suppress_context__


def test_names_for_people() -> None:
    """What messages call it says which database it is, and holds no user, password or parameter."""
    address = parse_address("postgresql://proxy:sekret@a:1,b:2/records?application_name=sekret")
    assert address.name == "the PostgreSQL database records at a:1 or b:2"
    assert "sekret" not in repr(address)
    assert parse_address("postgresql://h?user=u").name == "the PostgreSQL database at h"
    assert parse_address("postgresql:///r?host=/run/pg").name == "the PostgreSQL database r at /run/pg"


@attrs.define
class Resolver:
    """A reactor, and its resolver, that answer when they are told to."""

    asked: dict[str, IResolutionReceiver] = attrs.field(factory=dict)

    @property
    def nameResolver(self) -> Resolver:
        return self

    def resolveHostName(self, receiver: IResolutionReceiver, name: str, *arguments: object) -> None:
        self.asked[name] = receiver

    def answer(self, name: str, *addresses: IPv4Address | IPv6Address) -> None:
        for address in addresses:
            self.asked[name].addressResolved(address)
        self.asked[name].resolutionComplete()


def looked_up(resolver: Resolver, *places: Place) -> list[Any]:
    found: list[Any] = []
    reactor = cast("IReactorPluggableNameResolver", resolver)
    Deferred.fromCoroutine(look_up(reactor, places)).addBoth(found.append)
    return found


def test_look_up() -> None:
    """A name becomes its addresses, each once and in their order; what needs no name server asks none."""
    resolver = Resolver()
    v4, v6 = IPv4Address("TCP", "192.0.2.1", 0), IPv6Address("TCP", "2001:db8::1", 0)
    found = looked_up(resolver, Place("/run/pg", "", "1"), Place("192.0.2.9", "", "2"), Place("db.example", "", "3"))
    assert found == []
    assert list(resolver.asked) == ["db.example"]
    resolver.answer("db.example", v6, v4, v6)
    assert found == [
        [
            Place("/run/pg", "", "1"),
            Place("192.0.2.9", "192.0.2.9", "2"),
            Place("db.example", "2001:db8::1", "3"),
            Place("db.example", "192.0.2.1", "3"),
        ]
    ]


def test_look_up_of_an_unknown_name() -> None:
    """A name without addresses is no place; others are tried all the same."""
    resolver = Resolver()
    found = looked_up(resolver, Place("gone.example", "", ""), Place("db.example", "", ""))
    resolver.answer("gone.example")
    resolver.answer("db.example", IPv4Address("TCP", "192.0.2.1", 0))
    assert found == [[Place("db.example", "192.0.2.1", "")]]
