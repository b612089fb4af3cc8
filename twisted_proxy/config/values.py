"""What a value of the configuration may be: the rule, how it is shown, and the words that explain it.

What is written down (an option, an environment variable, a scalar of ``config.yaml``) arrives as text; what a
program passes to ``Config`` arrives as a Python value. One `Kind` checks both.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import attrs

from twisted_proxy.config import passwords

T = TypeVar("T")

# epoll_wait(2) takes its timeout as a C int of milliseconds: a timer more than 24.8 days away, with none
# before it, raises OverflowError out of the reactor.
LONGEST = 480 * 3600.0


def _quoted(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 100 else f"{shown[:96]}…{shown[-1]}"


@attrs.frozen(kw_only=True)
class Kind(Generic[T]):
    """A kind of value.

    ``parse`` takes text or a Python value and returns the value; it raises `ValueError`, whose message is
    empty or says what is wrong without repeating the text. ``show`` is the inverse, for people. ``allowed``
    finishes the sentence "allowed: …". ``metavar`` stands for the value in ``--help``. ``quote`` is how a
    refused text may be repeated in a message.
    """

    parse: Callable[[Any], T]
    show: Callable[[T], str] = str
    allowed: str
    metavar: str
    quote: Callable[[str], str] = _quoted
    switch: bool = False
    """On the command line the argument may be left out, which means "true"."""
    many: bool = False
    """The setting takes a list; ``parse`` reads one item."""
    pairs: bool = False
    """With `many`: each item is a pair of a key and a value, and all together are a mapping.

    In one text, on the command line too, items are parted by commas or white space."""

    def split(self, text: str) -> list[str]:
        """The items that ``text`` holds: in the environment, in ``.env``, or as a scalar of YAML."""
        if not self.many:
            return [text]
        return [item for item in re.split(r"[,\s]+", text) if item] if self.pairs else text.split()

    def explain(self, reason: str) -> str:
        """Why a value was refused, and what is allowed instead."""
        return f"{reason or 'is not valid'}; allowed: {self.allowed}"


def as_text(value: object) -> str:
    """``value`` if it is text, stripped of surrounding white space; `ValueError` otherwise."""
    if not isinstance(value, str):
        raise ValueError("has the wrong type")
    return value.strip()


# -- durations -----------------------------------------------------------------------------------------------

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_SECONDS = re.compile(_NUMBER, re.ASCII)
_DURATION = re.compile(
    rf"(?:(?P<h>{_NUMBER})h)?(?:(?P<m>{_NUMBER})m)?(?:(?P<s>{_NUMBER})s)?(?:(?P<ms>{_NUMBER})ms)?", re.ASCII
)
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def parse_seconds(value: object) -> float:
    """Seconds, from a number of them or a text such as ``300s``, ``10m``, ``1h30m``, ``500ms``, ``1.5``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = as_text(value)
        if _SECONDS.fullmatch(text):
            seconds = float(text)
        elif text and (match := _DURATION.fullmatch(text)):
            seconds = math.fsum(float(match[unit] or 0) * size for unit, size in _UNITS.items())
        elif text.startswith("-"):
            raise ValueError("is negative")
        else:
            raise ValueError("is not a duration")
    if not math.isfinite(seconds):
        raise ValueError("is not a finite number")
    if seconds < 0:
        raise ValueError("is negative")
    if seconds > LONGEST:
        raise ValueError("is too long")
    return seconds


def show_seconds(seconds: float) -> str:
    """``5400.0`` → ``1h30m``, to the microsecond; `parse_seconds` reads it back."""
    if seconds != int(seconds):
        return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if n]
    return "".join(parts) or "0s"


SECONDS = Kind(
    parse=parse_seconds,
    show=show_seconds,
    allowed="a duration of 0 to 480h: 300s, 10m, 1h30m, 500ms, or bare seconds",
    metavar="TIME",
)

# -- sizes and counts ----------------------------------------------------------------------------------------

_SIZE = re.compile(rf"(?P<number>{_NUMBER})\s*(?P<unit>[a-z]*)", re.ASCII)
_SIZES = {"": 1, "b": 1} | {
    unit: factor
    for power, letter in enumerate("kmgt", 1)
    for unit, factor in ((f"{letter}b", 1000**power), (f"{letter}ib", 1024**power))
}
_LARGEST = 2**40


def parse_size(value: object, largest: int = _LARGEST) -> int:
    """Bytes, from a number of bytes or a text such as ``512MiB``, ``32MB``, ``64KiB``; at most ``largest``."""
    if isinstance(value, int) and not isinstance(value, bool):
        size: float = value
    else:
        match = _SIZE.fullmatch(as_text(value).lower())
        if match is None or match["unit"] not in _SIZES:
            raise ValueError("is not a size")
        number = match["number"]
        size = (int(number) if number.isdigit() else float(number)) * _SIZES[match["unit"]]
    if not 1 <= size <= largest:
        raise ValueError("is out of range")
    return int(size)


def show_size(size: int) -> str:
    """``33554432`` → ``32MiB``; `parse_size` reads it back."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


SIZE = Kind(
    parse=parse_size,
    show=show_size,
    allowed="a size of 1 byte to 1TiB: 512MiB, 32MB, 64KiB, or bare bytes",
    metavar="SIZE",
)

# -- what is kept --------------------------------------------------------------------------------------------


_OLDEST = 36525 * 86400.0
_MOST = 2**50


@attrs.frozen(kw_only=True)
class Keep:
    """How much of something is kept: what is older, or more, may go. `None` is no limit; ``Keep()`` keeps all."""

    seconds: float | None = None
    """Age: from one second to a hundred years."""
    bytes: int | None = None
    """All of it together: up to 2**50."""

    def __attrs_post_init__(self) -> None:
        if self.seconds is not None and not 1 <= self.seconds <= _OLDEST:
            raise ValueError("holds an age that is out of range")
        if self.bytes is not None and not 1 <= self.bytes <= _MOST:
            raise ValueError("holds a size that is out of range")


_DAYS = re.compile(rf"(?:(?P<d>{_NUMBER})d)?(?P<rest>.*)", re.ASCII | re.DOTALL)
# "20 GiB" is one word of a retention, "30d 20GiB" are two.
_APART = re.compile(r"(?<=[0-9.])\s+(?=[kmgt]?i?b\b)", re.ASCII | re.IGNORECASE)


def _parse_age(text: str) -> float:
    match = _DAYS.fullmatch(text)
    assert match is not None  # the pattern takes anything
    spent = _DURATION.fullmatch(match["rest"])
    if not spent or not text:
        raise ValueError("holds what is neither an age nor a size")
    days = float(match["d"] or 0) * 86400
    return math.fsum((days, *(float(spent[unit] or 0) * size for unit, size in _UNITS.items())))


def parse_keep(value: object) -> Keep:
    """``keep``, an age (``30d``, ``12h``), a size (``20GiB``), or both. An age needs a unit, and so does a size."""
    if isinstance(value, Keep):
        return value
    text = as_text(value)
    words = [] if text == "keep" else _APART.sub("", text).split() or [""]
    seconds: float | None = None
    size: int | None = None
    for word in words:
        if word.lower().endswith("b"):
            if size is not None:
                raise ValueError("holds two sizes")
            size = parse_size(word, _MOST)
        elif seconds is not None:
            raise ValueError("holds two ages")
        else:
            seconds = _parse_age(word)
    return Keep(seconds=seconds, bytes=size)


def show_keep(keep: Keep) -> str:
    """``Keep(seconds=2592000.0)`` → ``30d``; `parse_keep` reads it back."""
    words = []
    if keep.seconds is not None:
        days, rest = divmod(keep.seconds, 86400)
        words.append(f"{days:.0f}d" * bool(days) + (show_seconds(rest) if rest or not days else ""))
    if keep.bytes is not None:
        shown = show_size(keep.bytes)
        words.append(f"{shown}B" if shown.isdigit() else shown)
    return " ".join(words) or "keep"


KEEP = Kind(
    parse=parse_keep,
    show=show_keep,
    allowed="keep, an age of 1s to 36525d (30d, 12h, 1d12h), a size up to 1024TiB (20GiB, 500MB), or both "
    "with a blank between them",
    metavar="KEEP",
)


def whole(low: int, high: int) -> Callable[[object], int]:
    """A parser of whole numbers from ``low`` to ``high``."""

    def parse(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        else:
            text = as_text(value)
            # int() would take "1_000", "٣" and, past 4300 digits, raise words of its own.
            if not re.fullmatch(r"[+-]?[0-9]{1,20}", text):
                raise ValueError("is not a whole number")
            number = int(text)
        if not low <= number <= high:
            raise ValueError("is out of range")
        return number

    return parse


RETRIES = Kind(parse=whole(0, 100), allowed="a whole number from 0 to 100", metavar="COUNT")
COUNT = Kind(parse=whole(0, 1_000_000), allowed="a whole number from 0 to 1000000", metavar="COUNT")
WORKERS = Kind(parse=whole(1, 256), allowed="a whole number from 1 to 256", metavar="COUNT")
parse_port = whole(0, 65535)
PORT = Kind(parse=parse_port, allowed="a whole number from 0 to 65535 (0: any free port)", metavar="PORT")

# -- choices -------------------------------------------------------------------------------------------------

_SWITCH = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def parse_switch(value: object) -> bool:
    """A truth value, from a `bool` or one of the usual words."""
    if isinstance(value, bool):
        return value
    try:
        return _SWITCH[as_text(value).lower()]
    except KeyError:
        raise ValueError("") from None


SWITCH = Kind(
    parse=parse_switch,
    show=lambda on: "true" if on else "false",
    allowed="true or false (also yes, no, on, off, 1, 0)",
    metavar="true|false",
    switch=True,
)


def choice(*words: str) -> Kind[str]:
    """One of ``words``, exactly."""

    def parse(value: object) -> str:
        text = as_text(value)
        if text not in words:
            raise ValueError("")
        return text

    *rest, last = words
    return Kind(parse=parse, allowed=" or ".join((", ".join(rest), last)), metavar="|".join(words))


def matching(pattern: str, problem: str) -> Callable[[object], str]:
    """
    A parser of text that matches as a whole.

    :param problem: what is wrong with other text.
    """

    def parse(value: object) -> str:
        text = as_text(value)
        if not re.fullmatch(pattern, text):
            raise ValueError(problem)
        return text

    return parse


# -- names and places ----------------------------------------------------------------------------------------


# It is sent as it stands.
VERSION = Kind(
    parse=matching(r"[A-Za-z0-9._-]{1,64}", ""),
    allowed="a version such as 2023-06-01 (letters, digits, '.', '_', '-')",
    metavar="VERSION",
)


def parse_path(value: object) -> str:
    """The name of a file, not empty."""
    text = as_text(value)
    if not text or "\0" in text:
        raise ValueError("is not the name of a file")
    return text


PATH = Kind(parse=parse_path, allowed="the name of a file", metavar="PATH")
DIRECTORY = Kind(parse=parse_path, allowed="the name of a directory", metavar="PATH")

_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?", re.ASCII)


def parse_host(value: object) -> str:
    """The address to bind: an IP address (an IPv6 one may stand in brackets) or a name."""
    text = as_text(value)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        # A last label of digits only is an IPv4 address that went wrong, never a name (RFC 3696 §2).
        if not _NAME.fullmatch(text) or len(text) > 253 or text.rstrip(".").rpartition(".")[2].isdigit():
            raise ValueError("is neither an address nor a host name") from None
        return text
    return bare


HOST = Kind(
    parse=parse_host,
    allowed="an address such as 127.0.0.1, 0.0.0.0, ::1 or ::, or a host name",
    metavar="ADDRESS",
)


def quote_url(text: str) -> str:
    """``text`` for a message, without user name, password, query and fragment: each may hold a credential."""
    head, at, tail = text.rpartition("@")
    if at:
        scheme, separator, _ = head.partition("://")
        text = f"{scheme}{separator}***@{tail}" if separator else f"***@{tail}"
    return _quoted(re.sub(r"([?#]).+", r"\1***", text, flags=re.DOTALL))


def parse_base_url(value: object) -> str:
    """The URL below which an upstream lives: ``http`` or ``https``, a host, perhaps a port and a path.

    The path is a prefix, kept without trailing slash. User name and password, query and fragment are refused.
    """
    text = as_text(value)
    if not re.fullmatch(r"[!-~]+", text) or re.search(r'[\\"<>^`{|}]', text):
        raise ValueError("holds a character that no URL has")
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("http", "https"):
        raise ValueError("does not start with http:// or https://")
    if "?" in rest or "#" in rest:
        raise ValueError("has a query or a fragment")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise ValueError("holds a user name or password")
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?", authority)
    if not match or (match[2] and not 0 < int(match[2]) < 65536):
        raise ValueError("has no valid host and port")
    try:
        parse_host(match[1])
    except ValueError:
        raise ValueError("has no valid host") from None
    if any(segment in (".", "..") for segment in path.split("/")) or re.search(r"%(?![0-9A-Fa-f]{2})", path):
        raise ValueError("has no valid path")
    return f"{scheme}://{authority}{(slash + path).rstrip('/')}"


BASE_URL = Kind(
    parse=parse_base_url,
    allowed="http://HOST[:PORT][/PREFIX] or https://…, without user name, password, query and fragment",
    metavar="URL",
    quote=quote_url,
)

# -- the database, and what is secret ------------------------------------------------------------------------


def _nothing(_: str) -> str:
    return "the value"


def parse_database_url(value: object) -> str:
    """The URL of a PostgreSQL database, as libpq takes it, that says where the server is.

    libpq would take a URL without a host for a socket in a directory that depends on how it was built.
    """
    text = as_text(value)
    if any(character <= " " or character == "\x7f" for character in text):
        raise ValueError("holds a blank or a control character")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("postgres", "postgresql"):
        raise ValueError("does not start with postgresql:// or postgres://")
    if re.search(r"%(?![0-9A-Fa-f]{2})|%00", rest):
        raise ValueError("holds a % that begins no escape; write %25 for it")
    address, _, query = rest.partition("?")
    authority = address.partition("/")[0]
    if not authority.rpartition("@")[2] and not re.search(r"(?:^|&)host(?:addr)?=[^&]", query):
        raise ValueError("names neither a host nor the directory of a socket")
    return text


DATABASE_URL = Kind(
    parse=parse_database_url,
    allowed="postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE, or postgresql:///DATABASE?host=/DIRECTORY-OF-SOCKET",
    metavar="URL",
    quote=_nothing,
)


def parse_key(value: object) -> str:
    """A secret that cannot be found by trying: 16 to 1024 printable characters of ASCII."""
    text = as_text(value)
    if not re.fullmatch(r"[ -~]*", text):
        raise ValueError("holds a character that is not printable ASCII")
    if not 16 <= len(text) <= 1024:
        raise ValueError("is too short or too long")
    return text


KEY = Kind(parse=parse_key, allowed="16 to 1024 printable ASCII characters", metavar="KEY", quote=_nothing)


def parse_password(value: object) -> str:
    """A password, or the hash of one (`config.passwords`)."""
    text = as_text(value)
    if text.startswith(passwords.PREFIX):
        passwords.Hashed.parse(text)
    elif not text.isprintable():
        raise ValueError("holds a character that is not printable")
    elif not 8 <= len(text) <= 1024:
        raise ValueError("is too short or too long")
    return text


PASSWORD = Kind(
    parse=parse_password,
    allowed="8 to 1024 printable characters, or what claude-proxy hash-password printed",
    metavar="PASSWORD",
    quote=_nothing,
)


# What stands behind ``Bearer`` (RFC 6750 §2.1).
TOKEN = Kind(
    parse=matching(r"[A-Za-z0-9._~+/-]{16,1024}=*", "is not a token"),
    allowed="16 to 1024 letters, digits and -._~+/",
    metavar="TOKEN",
    quote=_nothing,
)

# -- providers and routes ------------------------------------------------------------------------------------


# It is sent as it stands.
API_KEY = Kind(
    parse=matching(r"[!-~]{1,4096}", "is not a key"),
    allowed="up to 4096 printable ASCII characters without blanks",
    metavar="KEY",
    quote=_nothing,
)


PROVIDER_KIND = choice("anthropic", "openai")


parse_provider = matching(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", "is not a name")
PROVIDER = Kind(
    parse=parse_provider,
    allowed="up to 63 letters, digits, '-' and '_', the first a letter or a digit",
    metavar="NAME",
)


# It is sent as it stands.
parse_model = matching(r"[!-~]{1,256}", "is not the name of a model")
MODEL = Kind(parse=parse_model, allowed="up to 256 printable ASCII characters without blanks", metavar="MODEL")


def parse_glob(value: object) -> str:
    """A pattern as of the shell: ``*``, ``?``, ``[abc]``, ``[!abc]``, and everything else for itself."""
    text = as_text(value)
    if not re.fullmatch(r"[ -~]{1,256}", text):
        raise ValueError("is empty, longer than 256 characters, or holds one that is not printable ASCII")
    if "[" in re.sub(r"\[!?\]?[^\]]*\]", "", text):
        raise ValueError("has a [ without its ]; write [[] for the character itself")
    return text


GLOB = Kind(parse=parse_glob, allowed="a pattern with *, ?, [abc] and [!abc]", metavar="PATTERN", many=True)


def parse_refusal(value: object) -> str:
    """What a client is told instead of an answer."""
    text = as_text(value)
    if not 1 <= len(text) <= 1000 or not text.isprintable():
        raise ValueError("is not a message")
    return text


REFUSAL = Kind(parse=parse_refusal, allowed="a message of up to 1000 printable characters", metavar="MESSAGE")


def _pair(value: object) -> tuple[str, str]:
    if isinstance(value, tuple) and len(value) == 2:
        return as_text(value[0]), as_text(value[1])
    key, colon, text = as_text(value).partition(":")
    if not colon:
        raise ValueError("has no colon")
    return key.strip(), text.strip()


_NOT_SETTABLE = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def parse_header(value: object) -> tuple[str, str]:
    """The name of a header and its value (RFC 9110 §5.1, §5.5), none that frames the message."""
    name, text = _pair(value)
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", name):
        raise ValueError("belongs to a name that no header has")
    if name.lower() in _NOT_SETTABLE:
        raise ValueError("belongs to a header of the connection or the body, which is the proxy's to write")
    if not re.fullmatch(r"[\t -~]{0,4096}", text):
        raise ValueError("holds a character other than printable ASCII, or is too long")
    return name, text


HEADER = Kind(
    parse=parse_header,
    show=lambda header: header[0],
    allowed="the name of a header and a value of up to 4096 printable ASCII characters",
    metavar="NAME:VALUE",
    quote=_nothing,
    many=True,
    pairs=True,
)


def parse_mapping(value: object) -> tuple[str, str]:
    """The name of an agent and that of a model, out of a pair or ``agent:model``."""
    agent, model = _pair(value)
    if not re.fullmatch(r"[^\s,:]{1,64}", agent) or not agent.isprintable():
        raise ValueError("has no name of an agent before the model")
    return agent, parse_model(model)


MAPPING = Kind(
    parse=parse_mapping,
    show=":".join,
    allowed="AGENT:MODEL such as code-reviewer:gpt-4o, several with commas between them",
    metavar="AGENT:MODEL",
    many=True,
    pairs=True,
)

# -- endpoints -----------------------------------------------------------------------------------------------


def tcp_endpoint(host: str, port: int) -> str:
    """The Twisted endpoint string that listens on ``host`` and ``port``: colons of an address are escaped."""
    return f"tcp:{port}:interface={_escape(host)}"


def endpoint_url(endpoint: str) -> str | None:
    """Where somebody on this host finds what listens at ``endpoint``, or `None` where no URL can say that."""
    kind, _, rest = endpoint.partition(":")
    if kind not in ("tcp", "ssl"):
        return None
    positional, named = _arguments(rest)
    port = int(positional[0] if positional else named["port"])
    if port == 0:
        return None
    host = named.get("interface", "")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (it is compared)
    return f"{'https' if kind == 'ssl' else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _escape(text: str) -> str:
    return re.sub(r"([\\:=])", r"\\\1", text)


def _arguments(description: str) -> tuple[list[str], dict[str, str]]:
    # The grammar of twisted.internet.endpoints.serverFromString: fields are separated by ":", a field is
    # "value" or "name=value", and a backslash takes the next character as it is.
    positional: list[str] = []
    named: dict[str, str] = {}
    for field in re.findall(r"(?:^|:)((?:\\.|[^\\:])*)", description, re.DOTALL):
        match = re.fullmatch(r"((?:\\.|[^\\=])*)=(.*)", field, re.DOTALL)
        if match:
            named[re.sub(r"\\(.)", r"\1", match[1])] = re.sub(r"\\(.)", r"\1", match[2])
        else:
            positional.append(re.sub(r"\\(.)", r"\1", field))
    return positional, named


def parse_endpoint(value: object) -> str:
    """One Twisted endpoint string of type ``tcp``, ``ssl``, ``unix`` or ``systemd``.

    Only the type and a port are checked here; what else a type takes is Twisted's to check, when listening.
    """
    text = as_text(value)
    if not re.fullmatch(r"(?:\\.|[^\\\0])*", text, re.DOTALL):
        raise ValueError("ends in the middle of an escape")
    kind, colon, rest = text.partition(":")
    if kind not in ("tcp", "ssl", "unix", "systemd"):
        raise ValueError("is not of a known type")
    if not colon or not rest:
        raise ValueError("says nothing after its type")
    positional, named = _arguments(rest)
    if kind in ("tcp", "ssl"):
        try:
            parse_port(positional[0] if positional else named.get("port", ""))
        except ValueError:
            raise ValueError("has no port from 0 to 65535") from None
    elif kind == "unix" and not (positional[0] if positional else named.get("address")):
        raise ValueError("names no path")
    return text


ENDPOINT = Kind(
    parse=parse_endpoint,
    allowed="a Twisted endpoint string: tcp:PORT[:interface=ADDRESS], ssl:PORT:privateKey=FILE:certKey=FILE, "
    "unix:PATH, systemd:domain=INET:index=NUMBER",
    metavar="ENDPOINT",
    many=True,
)
