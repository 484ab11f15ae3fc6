"""How requests and answers are kept: many in a row, as an array of JSON, and found by indexes that last a connection.

A row of its own for each, with an index on random keys, costs several times as much; and a first run, which asks for
nothing that it has written, needs no index. A later run makes them as it starts, which takes some seconds for millions.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec
import orjson

from autobatcher.core.outcomes import Answer
from autobatcher.errors import JournalError
from autobatcher.journal.store import JournalledRequest

REQUESTS = 2**19
ANSWERS = 2**16
"""Bytes after which another row is begun: one of answers is read whole for each of them that is looked up."""

IN_MEMORY = 2**25
"""Bytes of rows of answers that are kept at hand: answers that came together are asked for together."""

TABLES = """
CREATE TABLE request_groups (
    id INTEGER PRIMARY KEY,
    batch INTEGER NOT NULL REFERENCES batches (number),
    position INTEGER NOT NULL,
    requests TEXT NOT NULL
);
CREATE TABLE answer_groups (
    id INTEGER PRIMARY KEY,
    answered_at REAL NOT NULL,
    answers TEXT NOT NULL
);
CREATE VIEW requests AS
SELECT batch, position + each.key AS position, json_extract(value, '$[0]') AS key, json_extract(value, '$[1]') AS n,
    json_extract(value, '$[2]') AS custom_id, json_extract(value, '$[3]') AS body
FROM request_groups, json_each(requests) AS each;
CREATE VIEW answers AS
SELECT json_extract(value, '$[0]') AS key, json_extract(value, '$[1]') AS n, json_extract(value, '$[2]') AS status,
    json_extract(value, '$[3]') AS request_id, json_extract(value, '$[4]') AS body, answered_at
FROM answer_groups, json_each(answers) AS each;
"""

_INDEXES = """
CREATE TEMP TABLE request_index (
    key BLOB, n INTEGER, batch INTEGER, position INTEGER, custom_id TEXT, PRIMARY KEY (key, n)
) WITHOUT ROWID;
CREATE TEMP TABLE answer_index (
    key BLOB, n INTEGER, id INTEGER, start INTEGER, PRIMARY KEY (key, n)
) WITHOUT ROWID;
PRAGMA temp.cache_size = -65536;
"""
"""Of requests the last batch that they were in, of answers the first that came."""

RequestHead = tuple[str, int, str]
"""The key in hexadecimal digits, n, custom_id."""

AnswerHead = tuple[str, int, int, str | None]
"""The key in hexadecimal digits, n, status, request_id."""

_request_head = msgspec.json.Decoder(RequestHead).decode
_answer_head = msgspec.json.Decoder(AnswerHead).decode


def request_groups(requests: Iterable[JournalledRequest]) -> Iterator[tuple[int, bytes]]:
    """The requests of a batch as JSON, in rows of a bounded size: the place of the first of each, and the row."""
    return _rows(
        (
            (b'["%b",%d,%b' % (key.hex().encode(), n, orjson.dumps(custom_id)), body)
            for key, n, custom_id, body in requests
        ),
        REQUESTS,
    )


def answer_groups(answers: Iterable[tuple[bytes, int, Answer]]) -> Iterator[tuple[int, bytes]]:
    """The same of answers."""
    return _rows(
        (
            (b'["%b",%d,%d,%b' % (key.hex().encode(), n, status, orjson.dumps(request_id)), _kept(body))
            for key, n, (status, request_id, body) in answers
        ),
        ANSWERS,
    )


def _rows(elements: Iterable[tuple[bytes, bytes]], most: int) -> Iterator[tuple[int, bytes]]:
    """Arrays of heads, each with its body on the next line.

    So it comes back as it was, whether or not JSON's decoders like it. A line break in a body stands between two
    tokens, and means nothing there.
    """
    packed: list[bytes] = []
    size = start = 0
    for position, (head, body) in enumerate(elements):
        if size > most:
            yield start, b"[\n%b\n]" % b"\n,".join(packed)
            packed, size, start = [], 0, position
        packed.append(b"%b,\n%b]" % (head, body.replace(b"\n", b" ")))
        size += len(body)
    if packed:
        yield start, b"[\n%b\n]" % b"\n,".join(packed)


_AS_TEXT = b",0"
"""After a body that is no JSON, and is kept as a text of JSON: nothing that is JSON ends so."""


def is_json(body: bytes) -> bool:
    """Whether a body, which Python has read as JSON, is JSON: NaN is not, and SQLite would read nothing beside it."""
    if b"NaN" not in body and b"Infinity" not in body:
        return True
    try:
        msgspec.json.decode(body)
    except msgspec.DecodeError:
        return False
    return True


def _kept(body: bytes) -> bytes:
    return body if is_json(body) else orjson.dumps(body.decode()) + _AS_TEXT


def _body(kept: bytes) -> bytes:
    if not kept.endswith(_AS_TEXT):
        return kept
    text: str = orjson.loads(kept.removesuffix(_AS_TEXT))
    return text.encode()


def _split(row: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Where each head begins, the head as an array, the body."""
    lines = row.split(b"\n")
    start = 2
    for head, body in zip(lines[1:-1:2], lines[2::2], strict=True):
        yield start, head.lstrip(b",")[:-1] + b"]", body[:-1]
        start += len(head) + len(body) + 2


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


class Indexes:
    """The tables `request_index` and `answer_index`, which are as new as the last call of `catch_up`.

    Args:
        db: a connection to a journal; it may be one that cannot write.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._seen = {"request": 0, "answer": 0}
        self._rows: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0
        for statement in _INDEXES.split(";"):
            db.execute(statement)

    def catch_up(self) -> None:
        """Take in what was written since."""
        self._catch_up_answers()
        with self._at_once():
            rows = self._db.execute(
                "SELECT id, batch, position, CAST(requests AS BLOB) FROM request_groups WHERE id > ? ORDER BY id",
                (self._seen["request"],),
            )
            last, end = 0, 0
            for number, batch, first, row in rows:
                if first != (end if batch == last else 0):
                    raise ValueError(f"the requests of batch {batch} are not in order")
                heads = [_request_head(head) for _, head, _ in _split(row)]
                last, end = batch, first + len(heads)
                self._db.executemany(
                    "INSERT OR REPLACE INTO request_index VALUES (?, ?, ?, ?, ?)",
                    (
                        (bytes.fromhex(key), n, batch, position, custom_id)
                        for position, (key, n, custom_id) in enumerate(heads, first)
                    ),
                )
                self._seen["request"] = number

    def _catch_up_answers(self) -> None:
        with self._at_once():
            rows = self._db.execute(
                "SELECT id, CAST(answers AS BLOB) FROM answer_groups WHERE id > ? ORDER BY id",
                (self._seen["answer"],),
            )
            for number, row in rows:
                heads = ((start, _answer_head(head)) for start, head, _ in _split(row))
                self._db.executemany(
                    "INSERT OR IGNORE INTO answer_index VALUES (?, ?, ?, ?)",
                    ((bytes.fromhex(key), n, number, start) for start, (key, n, _, _) in heads),
                )
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
        found: tuple[int, int] | None = self._db.execute(
            "SELECT id, start FROM answer_index WHERE key = ? AND n = ?", (key, n)
        ).fetchone()
        if found is None:
            return None
        number, start = found
        row = self._row(number)
        middle = row.index(b"\n", start)
        _, _, status, request_id = _answer_head(row[start : middle - 1].lstrip(b",") + b"]")
        return Answer(status, request_id, _body(row[middle + 1 : row.index(b"\n", middle + 1) - 1]))

    def _row(self, number: int) -> bytes:
        row = self._rows.pop(number, None)
        if row is None:
            (row,) = self._db.execute(
                "SELECT CAST(answers AS BLOB) FROM answer_groups WHERE id = ?", (number,)
            ).fetchone()
            self._size += len(row)
        self._rows[number] = row  # the last one that was asked for
        while self._size > IN_MEMORY and len(self._rows) > 1:
            _, oldest = self._rows.popitem(last=False)
            self._size -= len(oldest)
        return row


def requests_in(db: sqlite3.Connection) -> Iterator[tuple[int, int, RequestHead, bytes]]:
    """All requests, as they were sent: the number of the batch, the place in it, the head, the body."""
    rows = db.execute("SELECT batch, position, CAST(requests AS BLOB) FROM request_groups ORDER BY id")
    for batch, first, row in rows:
        for position, (_, head, body) in enumerate(_split(row), first):
            yield batch, position, _request_head(head), body
