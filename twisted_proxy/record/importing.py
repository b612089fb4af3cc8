"""
The Go program's database, https://github.com/seifghazi/claude-code-proxy: SQLite, one table ``requests``.

It keeps a request as the JSON that it makes of what it knows of one, not as it came: members that it has no name for
(``metadata``, ``thinking``, …) are gone, and bytes differ. Of a streamed answer it keeps the ``data:`` lines, of which
the stream is made again; of others the JSON, or the text. Grades of prompts have no place here and stay behind.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import attrs
import msgspec
from msgspec import Raw

from ..wire import claude_code, headers, ids, target
from . import digest, pricing
from .conversations import Asked, Conversations
from .digest import AnswerDigest
from .exchange import INTERRUPTED, Body, BytesContent, Exchange, Record, Role
from .identity import chains_of
from .store import RecordStore, StoreError, StoreUnavailable

INSTANCE = "import"
"""`Exchange.instance` of what comes from there."""

REMADE = "imported: the request's body, and an answer's, were made again from what the program kept that recorded them"
"""`Exchange.lost` of what comes from there."""

_BATCH = 64
_BATCH_BYTES = 16 * 1024 * 1024
_SAY_EVERY = 1000
_ROWS_AT_ONCE = 256
_BUSY_SECONDS = 30.0

_NEEDED = ("id", "timestamp", "method", "endpoint", "headers", "body")
# Later versions of the program have more columns than databases that an earlier one made.
_OPTIONAL = ("user_agent", "content_type", "response", "model", "original_model", "routed_model", "created_at")


class NotImportable(ValueError):
    """The file is no database of the Go program, or cannot be read; the text says which, and what to do."""


@attrs.frozen(kw_only=True)
class Summary:
    """
    What came of an import.

    :ivar rows: that the table has.
    :ivar imported: that are in the store now, whether this import brought them or one before.
    :ivar skipped: how many are not, by the reason in words.
    """

    rows: int
    imported: int
    skipped: Mapping[str, int]


async def import_database(
    path: Path,
    store: RecordStore,
    say: Callable[[str], None],
    *,
    prices: pricing.Prices | None = None,
) -> Summary:
    """
    Bring all that is in a database of the Go program into a store that is open.

    The file is only read, a few rows at a time, and may be in use by that program. Ids come from its own, so that a
    second import brings what is new, and the answers that were missing.

    :param say: is told how far it is, in words.
    :param prices: those of the package by default.
    :raises NotImportable: see there.
    :raises StoreUnavailable: of the store; what was imported before stays. Import again.
    """
    skipped: Counter[str] = Counter()
    imported = size = 0
    prices = prices or pricing.shipped()
    conversations = Conversations(store)
    with closing(_open(path)) as database:
        columns = _columns(path, database)
        (rows,) = _query(path, database, "SELECT count(*) FROM requests").fetchone()
        say(f"{path}: {rows} requests")
        batch: list[Record] = []
        for seen, row in enumerate(_rows(path, database, columns), 1):
            read = row if isinstance(row, _Damaged) else _read(row, prices)
            if isinstance(read, _Damaged):
                skipped[read.reason] += 1
            else:
                batch.append(await read.record(conversations))
                size += sum([body.content.size for body in read.bodies])
            if len(batch) >= _BATCH or size >= _BATCH_BYTES:
                imported += await _write(store, batch, skipped)
                batch, size = [], 0
            if seen % _SAY_EVERY == 0:
                say(f"{seen} of {rows}")
        imported += await _write(store, batch, skipped)
    return Summary(rows=rows, imported=imported, skipped=dict(skipped))


async def _write(store: RecordStore, batch: Sequence[Record], skipped: Counter[str]) -> int:
    if not batch:
        return 0
    try:
        await store.write(batch)
    except StoreUnavailable:
        raise
    except StoreError as e:
        if len(batch) == 1:
            skipped[f"the store refuses it: {e}"] += 1
            return 0
    else:
        return len(batch)
    # One of them it is: the others shall not suffer from it.
    return sum([await _write(store, [record], skipped) for record in batch])


# Reading


@attrs.frozen
class _Damaged:
    reason: str


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise NotImportable(f"{path}: there is no such file")
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    database = _connect(path, uri)
    try:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as e:
        database.close()
        # In WAL mode readers, too, write: beside the file. Where they may not, and no program has it open, there is
        # another way.
        refused = e.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY"))
        if not refused or path.with_name(path.name + "-wal").exists():
            raise NotImportable(f"{path}: cannot be read: {e}") from e
        return _connect(path, uri + "&immutable=1")
    except sqlite3.DatabaseError as e:
        database.close()
        raise NotImportable(f"{path}: is no SQLite database, or is damaged: {e}") from e
    return database


def _connect(path: Path, uri: str) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
    except sqlite3.Error as e:
        raise NotImportable(f"{path}: cannot be opened: {e}") from e
    # Text that is no UTF-8 would be an exception, for all rows that are read with it.
    database.text_factory = bytes
    return database


def _query(path: Path, database: sqlite3.Connection, statement: str, *parameters: object) -> sqlite3.Cursor:
    try:
        return database.execute(statement, parameters)
    except sqlite3.Error as e:
        raise NotImportable(f"{path}: cannot be read: {e}") from e


def _columns(path: Path, database: sqlite3.Connection) -> Sequence[str]:
    there = {row[1].decode("utf-8", "replace") for row in _query(path, database, "PRAGMA table_info(requests)")}
    if not there:
        raise NotImportable(f"{path}: has no table 'requests'; is it the Go program's requests.db?")
    if missing := [name for name in _NEEDED if name not in there]:
        raise NotImportable(
            f"{path}: its table 'requests' has no column {', '.join(missing)}; is it the Go program's requests.db?"
        )
    return [*_NEEDED, *[name for name in _OPTIONAL if name in there]]


def _rows(
    path: Path, database: sqlite3.Connection, columns: Sequence[str]
) -> Iterator[Mapping[str, object] | _Damaged]:
    """All rows in the order in which they came. Nothing is locked while one is looked at."""
    names = ", ".join(columns)
    last = -1
    while True:
        numbers = [
            number
            for (number,) in _query(
                path, database, "SELECT rowid FROM requests WHERE rowid > ? ORDER BY rowid LIMIT ?", last, _ROWS_AT_ONCE
            )
        ]
        if not numbers:
            return
        for number in numbers:
            try:
                row = database.execute(f"SELECT {names} FROM requests WHERE rowid = ?", (number,)).fetchone()  # noqa: S608 - names of ours
            except sqlite3.DatabaseError as e:
                yield _Damaged(f"the database cannot read it: {e}")
                continue
            if row is not None:
                yield dict(zip(columns, row, strict=True))
        last = numbers[-1]


# Making records


class _Response(msgspec.Struct, rename="camel"):
    """``ResponseLog`` of the Go program."""

    status_code: int
    headers: dict[str, list[str]] | None = None
    body: Raw = Raw()
    body_text: str = ""
    response_time: int = 0
    """Milliseconds."""
    streaming_chunks: list[str] | None = None


class _Event(msgspec.Struct):
    type: str = ""


_decode_headers = msgspec.json.Decoder(dict[str, list[str]] | None).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_REFUSED = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
_EVENT_NAME = re.compile(r"[a-z][a-z_]{0,63}")
_NOT_PRINTABLE_ASCII = re.compile(r"[^ -~]+")

# Of the bodies as they were on the wire; these here are others, and not encoded.
_OF_THE_WIRE = frozenset({"content-encoding", "content-length", "transfer-encoding"})


@attrs.frozen(kw_only=True)
class _Read:
    """
    A row as it was read.

    :ivar message: the answer as JSON, where there is one.
    """

    exchange: Exchange
    bodies: tuple[Body, ...]
    messages: Sequence[bytes]
    message: bytes | None

    async def record(self, conversations: Conversations) -> Record:
        """What is to be stored of it, put where it belongs. Rows come in order."""
        exchange, new = self.exchange, self.messages
        if self.messages:
            place = await conversations.place(
                Asked(
                    id=exchange.id,
                    session=exchange.session,
                    agent=exchange.agent,
                    messages=self.messages,
                    chains=chains_of(self.messages),
                )
            )
            conversations.answered(exchange.id, exchange.message_id, self.message)
            exchange = attrs.evolve(
                exchange,
                conversation=place.conversation,
                parent=place.parent,
                link=place.link,
                messages=place.messages,
                chain=place.chain,
            )
            # A search finds the rest by the exchanges before.
            new = self.messages[place.known :]
        text = digest.text_of_exchange(new, self.message)
        return Record(exchange=exchange, bodies=self.bodies, text=text or None)


def _read(row: Mapping[str, object], prices: pricing.Prices) -> _Read | _Damaged:
    """
    :param row: by the columns' names; text as bytes.
    """
    identifier = _text(row["id"])
    if not identifier:
        return _Damaged("it has no id")
    received_at = _time(_text(row["timestamp"])) or _time(_text(row.get("created_at")))
    if received_at is None:
        return _Damaged("its timestamp cannot be read")
    method, path = _text(row["method"]), _text(row["endpoint"])
    if not method.isalpha() or not re.fullmatch(r"/[!-~]{0,2047}", path):
        return _Damaged("its method or endpoint is none")
    try:
        request_headers = headers.recorded_request(_fields(_decode_headers(_bytes(row["headers"]))))
    except _REFUSED:
        return _Damaged("its headers are not JSON")
    body = _bytes(row["body"])
    if not _is_json(body):
        return _Damaged("its body is not JSON")
    path, _, query = path.partition("?")
    request = digest.read_request(body)
    response, lost = _response(_bytes(row.get("response")))
    answer, content_type = (b"", None) if response is None else _answer(response)
    told = None
    if response is not None:
        told = digest.read_answer(answer, content_type, response.status_code, path)
    asked = _word(row.get("original_model")) or _word(row.get("model")) or request.model
    routed = _word(row.get("routed_model"))
    exchange = Exchange(
        id=_exchange_id(identifier, received_at),
        instance=INSTANCE,
        received_at=received_at,
        method=method[:32].upper(),
        path=path,
        query=target.loggable_query(query.encode()) or None,
        request_bytes=len(body),
        request_headers=_without_wire(request_headers),
        user_agent=dict(reversed(request_headers)).get("user-agent"),
        routed_model=routed if routed != asked else None,
        lost=f"{REMADE}; {lost}" if lost else REMADE,
    )
    fields = digest.request_fields(claude_code.from_recorded(request_headers), request) | {"model": asked}
    if response is not None and told is not None:
        fields |= digest.answer_fields(told, prices, at=received_at, model=routed or asked)
        fields |= _ending(response, len(answer), told)
    else:
        # What comes with another import replaces it.
        fields["verdict"] = INTERRUPTED
    if not target.keeps_bodies(path.encode()):
        return _Read(exchange=attrs.evolve(exchange, **fields), bodies=(), messages=(), message=None)
    return _Read(
        exchange=attrs.evolve(exchange, **fields),
        bodies=_bodies(body, _text(row.get("content_type")), answer, content_type, told),
        messages=request.messages,
        message=(told and told.message) or answer or None,
    )


def _exchange_id(identifier: str, received_at: int) -> str:
    """The same for the same row, and in the order of time."""
    return ids.request_id(received_at // 1000, hashlib.sha256(b"imported\0" + identifier.encode()).digest())


def _response(column: bytes) -> tuple[_Response | None, str]:
    if not column:
        return None, ""
    try:
        return _decode_response(column), ""
    except _REFUSED:
        return None, "its answer could not be read"


def _answer(response: _Response) -> tuple[bytes, str]:
    """The answer's body and type."""
    if response.streaming_chunks:
        return b"".join([_event(chunk) for chunk in response.streaming_chunks]), "text/event-stream"
    kinds = [each[0] for name, each in (response.headers or {}).items() if name.lower() == "content-type" and each]
    body = response.body_text.encode("utf-8", "replace") or bytes(response.body)
    is_json = _is_json(body)
    content_type = kinds[0] if kinds and is_json == ("json" in kinds[0]) else None
    return body, content_type or ("application/json" if is_json else "text/plain")


def _event(line: str) -> bytes:
    """A server-sent event from its line; its name is always that of the data's type."""
    data = line.encode("utf-8", "replace")
    try:
        kind = _decode_event(data.partition(b":")[2]).type
    except _REFUSED:
        kind = ""
    return (b"event: %b\n" % kind.encode() if _EVENT_NAME.fullmatch(kind) else b"") + data + b"\n\n"


def _ending(response: _Response, size: int, told: AnswerDigest) -> dict[str, Any]:
    recorded = headers.recorded_response(_fields(response.headers))
    return {
        "verdict": "complete" if told.complete or told.error_type is not None else "truncated",
        "status": response.status_code if 100 <= response.status_code <= 999 else None,
        "last_byte_us": response.response_time * 1000 if 0 <= response.response_time < _A_YEAR else None,
        "response_bytes": size,
        "response_headers": _without_wire(recorded),
        "rate_limits": headers.rate_limits(recorded),
        "upstream_request_id": dict(reversed(recorded)).get("request-id"),
    }


_A_YEAR = 366 * 24 * 3600 * 1000


def _bodies(
    body: bytes, request_type: str, answer: bytes, content_type: str | None, told: AnswerDigest | None
) -> tuple[Body, ...]:
    bodies = [
        Body(
            role=Role.REQUEST,
            content=BytesContent(body),
            content_type=_NOT_PRINTABLE_ASCII.sub("", request_type)[:256] or "application/json",
        )
    ]
    if told is not None:
        bodies.append(Body(role=Role.ANSWER, content=BytesContent(answer), content_type=content_type))
        if told.message is not None:
            message = BytesContent(told.message)
            bodies.append(Body(role=Role.MESSAGE, content=message, content_type="application/json"))
    return tuple(bodies)


def _fields(values: Mapping[str, Sequence[str]] | None) -> Iterator[tuple[bytes, bytes]]:
    for name, each in (values or {}).items():
        for value in each:
            yield name.encode("latin-1", "replace"), value.encode("latin-1", "replace")


def _without_wire(fields: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple([field for field in fields if field[0] not in _OF_THE_WIRE])


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b"" if value is None else str(value).encode()


def _text(value: object) -> str:
    return _bytes(value).decode("utf-8", "replace")


def _word(value: object) -> str | None:
    return _NOT_PRINTABLE_ASCII.sub("", _text(value))[:256] or None


# RFC 3339 as the program writes it, and what its SQLite driver and SQLite itself make of a time.
_TIMESTAMP = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9})\d*)? ?(Z|[+-]\d{2}:?\d{2})?(?: .*)?", re.ASCII
)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _time(text: str) -> int | None:
    """Microseconds since the Unix epoch; a time without zone is UTC."""
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    try:
        moment = datetime.datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in (None, 'Z') else zone}")
    except ValueError:
        return None
    microseconds = int((fraction or "0").ljust(6, "0")[:6])
    since = (moment - _EPOCH) // datetime.timedelta(microseconds=1) + microseconds
    return since if since >= 0 else None
