"""How requests and answers are kept: many in a row, by columns, and found by indexes that last a connection.

A row of its own for each, with an index on random keys, costs several times as much; and a first run, which asks for
nothing that it has written, needs no index. A later run makes them as it starts, which takes some seconds for millions.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import orjson

from autobatcher.core.outcomes import Answer, LooseJson
from autobatcher.errors import JournalError
from autobatcher.journal.store import JournalledRequest

REQUESTS = 2**19
ANSWERS = 2**18
"""Bytes after which another row is begun: one of answers is read whole for each of them that is looked up."""

IN_MEMORY = 2**25
"""Bytes of rows of answers that are kept at hand: answers that came together are asked for together."""

KEY = 16
"""Bytes of a key."""

TABLES = """
CREATE TABLE request_groups (
    id INTEGER PRIMARY KEY,
    batch INTEGER NOT NULL REFERENCES batches (number),
    position INTEGER NOT NULL,
    keys BLOB NOT NULL,
    numbers TEXT NOT NULL,
    custom_ids TEXT NOT NULL,
    bodies TEXT NOT NULL
);
CREATE TABLE answer_groups (
    id INTEGER PRIMARY KEY,
    answered_at REAL NOT NULL,
    keys BLOB NOT NULL,
    numbers TEXT NOT NULL,
    statuses TEXT NOT NULL,
    request_ids TEXT NOT NULL,
    bodies TEXT NOT NULL
);
CREATE VIEW requests AS
SELECT batch, position + each.key AS position, lower(hex(substr(keys, 16 * each.key + 1, 16))) AS key,
    json_extract(numbers, '$[' || each.key || ']') AS n,
    json_extract(custom_ids, '$[' || each.key || ']') AS custom_id, value AS body
FROM request_groups, json_each(bodies) AS each;
CREATE VIEW answers AS
SELECT lower(hex(substr(keys, 16 * each.key + 1, 16))) AS key, json_extract(numbers, '$[' || each.key || ']') AS n,
    json_extract(statuses, '$[' || each.key || ']') AS status,
    json_extract(request_ids, '$[' || each.key || ']') AS request_id, value AS body, answered_at
FROM answer_groups, json_each(bodies) AS each;
"""
"""What is looked at without the bodies stands before them: SQLite does not read on."""

INSERT_REQUESTS = """
INSERT INTO request_groups (batch, position, keys, numbers, custom_ids, bodies)
VALUES (?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT))
"""

INSERT_ANSWERS = """
INSERT INTO answer_groups (answered_at, keys, numbers, statuses, request_ids, bodies)
VALUES (?, ?, CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT))
"""

_INDEXES = """
CREATE TEMP TABLE request_index (
    key BLOB, n INTEGER, batch INTEGER, position INTEGER, custom_id TEXT, PRIMARY KEY (key, n)
) WITHOUT ROWID;
CREATE TEMP TABLE answer_index (
    key BLOB, n INTEGER, id INTEGER, place INTEGER, PRIMARY KEY (key, n)
) WITHOUT ROWID;
PRAGMA temp.cache_size = -65536;
"""
"""Of requests the last batch that they were in, of answers the first that came."""

_integers = msgspec.json.Decoder(list[int]).decode
_texts = msgspec.json.Decoder(list[str]).decode
_optional_texts = msgspec.json.Decoder(list[str | None]).decode


def request_groups(number: int, requests: Iterable[JournalledRequest]) -> Iterator[tuple[Any, ...]]:
    """What `INSERT_REQUESTS` takes: rows of a bounded size of the requests of a batch."""
    start = 0
    group: list[JournalledRequest] = []
    size = 0
    for request in requests:
        group.append(request)
        size += len(request.body)
        if size > REQUESTS:
            yield number, start, *_request_columns(group)
            start += len(group)
            group, size = [], 0
    if group:
        yield number, start, *_request_columns(group)


def _request_columns(group: list[JournalledRequest]) -> tuple[bytes, ...]:
    return columns(
        [request.key for request in group],
        [request.n for request in group],
        [request.custom_id for request in group],
        [request.body for request in group],
    )


def answer_groups(now: float, answers: Iterable[tuple[bytes, int, Answer]]) -> Iterator[tuple[Any, ...]]:
    """What `INSERT_ANSWERS` takes: the same of answers."""
    given = tuple(answers)
    if not given:
        return
    keys, numbers, group = zip(*given, strict=True)
    whole = keys, numbers, *zip(*group, strict=True)
    start = size = 0
    for end, length in enumerate(map(len, whole[-1]), 1):
        size += length
        if size > ANSWERS or end == len(given):
            yield now, *columns(*(column[start:end] for column in whole))
            start, size = end, 0


def columns(keys: Sequence[bytes], *columns: Sequence[Any]) -> tuple[bytes, ...]:
    """The keys one after the other; the others, of which the last is of JSON texts, as arrays of JSON."""
    return (b"".join(keys), *map(orjson.dumps, columns[:-1]), _lines(columns[-1]))


def _lines(bodies: Sequence[bytes]) -> bytes:
    """An array of bodies, each on a line, so that each comes back as it was, whether or not JSON's decoders like it."""
    if LooseJson in map(type, bodies):
        bodies = [_kept(body) if type(body) is LooseJson else body for body in bodies]
    return b"[\n%b\n]" % b"\n,".join(bodies)


_AS_TEXT = b'" '
"""How a body ends that is no JSON, and is kept as a text of JSON with a space: no JSON that begins so ends so."""


def is_json(body: bytes) -> bool:
    """Whether a body, which Python has read as JSON, is JSON: NaN is not, and SQLite would read nothing beside it."""
    try:
        msgspec.json.decode(body)
    except msgspec.DecodeError:
        return b"NaN" not in body and b"Infinity" not in body
    return True


def _kept(body: bytes) -> bytes:
    return body if is_json(body) else orjson.dumps(body.decode()) + b" "


def _body(kept: bytes) -> bytes:
    if not (kept.startswith(b'"') and kept.endswith(_AS_TEXT)):
        return kept
    text: str = orjson.loads(kept)
    return text.encode()


def _bodies(lines: bytes) -> list[bytes]:
    first, *others = lines.split(b"\n")[1:-1]
    return [first, *(line[1:] for line in others)]


def _keys(joined: bytes, *columns: Sized) -> list[bytes]:
    """The keys of a row with these other columns.

    Raises:
        ValueError: they are not as many.
    """
    keys = [joined[start : start + KEY] for start in range(0, len(joined), KEY)]
    if any(len(column) != len(keys) for column in columns) or len(joined) % KEY:
        raise ValueError("the columns of a row differ in length")
    return keys


class Readable:
    """Around the reading of a file: says of what cannot be read there that it cannot be.

    Raises:
        JournalError: in place of what damaged bytes may raise.
    """

    def __init__(self, path: object) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise JournalError(f"{self._path}: {error}") from error
        if isinstance(error, (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)):
            raise JournalError(f"{self._path}: the journal is damaged: {error!r}") from error


class _Row(NamedTuple):
    """A row of answers; without names if there are answers in it that do not count."""

    names: list[tuple[bytes, int]]
    statuses: list[int]
    request_ids: list[str | None]
    bodies: list[bytes]
    size: int


class Indexes:
    """The tables `request_index` and `answer_index`, which are as new as the last call of `catch_up`.

    Args:
        db: a connection to a journal; it may be one that cannot write.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._seen = {"request": 0, "answer": 0}
        self._rows: OrderedDict[int, _Row] = OrderedDict()
        self._size = 0
        self._doubled: set[int] = set()
        self._last = 0, 0
        for statement in _INDEXES.split(";"):
            db.execute(statement)

    def catch_up(self) -> None:
        """Take in what was written since."""
        self._catch_up_answers()
        with self._at_once():
            rows = self._db.execute(
                "SELECT id, batch, position, keys, CAST(numbers AS BLOB), CAST(custom_ids AS BLOB) "
                "FROM request_groups WHERE id > ? ORDER BY id",
                (self._seen["request"],),
            )
            last, end = 0, 0
            for number, batch, first, keys, *columns in rows:
                if first != (end if batch == last else 0):
                    raise ValueError(f"the requests of batch {batch} are not in order")
                numbers, custom_ids = _integers(columns[0]), _texts(columns[1])
                found = _keys(keys, numbers, custom_ids)
                last, end = batch, first + len(found)
                self._db.executemany(
                    "INSERT OR REPLACE INTO request_index VALUES (?, ?, ?, ?, ?)",
                    zip(found, numbers, repeat(batch), range(first, end), custom_ids, strict=False),
                )
                self._seen["request"] = number

    def _catch_up_answers(self) -> None:
        with self._at_once():
            rows = self._db.execute(
                "SELECT id, keys, CAST(numbers AS BLOB) FROM answer_groups WHERE id > ? ORDER BY id",
                (self._seen["answer"],),
            )
            for number, keys, column in rows:
                numbers = _integers(column)
                found = _keys(keys, numbers)
                inserted = self._db.executemany(
                    "INSERT OR IGNORE INTO answer_index VALUES (?, ?, ?, ?)",
                    zip(found, numbers, repeat(number), range(len(found)), strict=False),
                )
                if inserted.rowcount < len(found):
                    self._doubled.add(number)
                self._seen["answer"] = number

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """In one transaction, which writes nothing to the journal."""
        before = dict(self._seen)
        self._db.execute("BEGIN")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._seen = before
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def place(self, key: bytes, n: int) -> tuple[int, int] | None:
        """The last batch of a request, and its place there."""
        found: tuple[int, int] | None = self._db.execute(
            "SELECT batch, position FROM request_index WHERE key = ? AND n = ?", (key, n)
        ).fetchone()
        return found

    def answer(self, key: bytes, n: int, newest: int = 0) -> Answer | None:
        """The answer to a request, if it is there; `newest`: the group up to which to catch up, if it has not."""
        if newest > self._seen["answer"]:
            self._catch_up_answers()
        number, place = self._last  # most often the next one is asked for next
        place += 1
        row = self._rows.get(number)
        if row is None or place >= len(row.names) or row.names[place] != (key, n):
            found: tuple[int, int] | None = self._db.execute(
                "SELECT id, place FROM answer_index WHERE key = ? AND n = ?", (key, n)
            ).fetchone()
            if found is None:
                return None
            number, place = found
            row = self._row(number)
        self._last = number, place
        return Answer(row.statuses[place], row.request_ids[place], _body(row.bodies[place]))

    def _row(self, number: int) -> _Row:
        row = self._rows.pop(number, None)
        if row is None:
            keys, numbers, statuses, request_ids, bodies = self._db.execute(
                "SELECT keys, CAST(numbers AS BLOB), CAST(statuses AS BLOB), CAST(request_ids AS BLOB), "
                "CAST(bodies AS BLOB) FROM answer_groups WHERE id = ?",
                (number,),
            ).fetchone()
            columns = _integers(numbers), _integers(statuses), _optional_texts(request_ids), _bodies(bodies)
            names = list(zip(_keys(keys, *columns), columns[0], strict=True))
            row = _Row([] if number in self._doubled else names, *columns[1:], len(bodies))
            self._size += row.size
        self._rows[number] = row  # the last one that was asked for
        while self._size > IN_MEMORY and len(self._rows) > 1:
            _, oldest = self._rows.popitem(last=False)
            self._size -= oldest.size
        return row


def requests_in(db: sqlite3.Connection) -> Iterator[tuple[int, int, JournalledRequest]]:
    """All requests, as they were sent: the number of the batch, the place in it, the request."""
    rows = db.execute(
        "SELECT batch, position, keys, CAST(numbers AS BLOB), CAST(custom_ids AS BLOB), CAST(bodies AS BLOB) "
        "FROM request_groups ORDER BY id"
    )
    for batch, first, keys, *columns in rows:
        numbers, custom_ids, bodies = _integers(columns[0]), _texts(columns[1]), _bodies(columns[2])
        group = zip(_keys(keys, numbers, custom_ids, bodies), numbers, custom_ids, bodies, strict=True)
        for position, (key, n, custom_id, body) in enumerate(group, first):
            yield batch, position, JournalledRequest(key, n, custom_id, _body(body))
