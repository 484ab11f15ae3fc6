"""The built-in journal: one SQLite file. Its tables are described in docs/journal.md."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from autobatcher.core.outcomes import Answer
from autobatcher.errors import JournalError
from autobatcher.journal.store import JournalledRequest, OpenBatch

APPLICATION_ID = 0x41426A6C
"""In the header of the file (source: https://www.sqlite.org/fileformat.html): "ABjl", so that it is known."""

VERSION = 1

_MAGIC = b"SQLite format 3\0"
_HEADER = 100

_SCHEMA = """
CREATE TABLE batches (
    number INTEGER PRIMARY KEY,
    base_url TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    begun_at REAL NOT NULL,
    file_id TEXT,
    batch_id TEXT,
    created_at REAL,
    ended_at REAL
);
CREATE INDEX open_batches ON batches (base_url) WHERE ended_at IS NULL;
CREATE TABLE requests (
    request INTEGER PRIMARY KEY,
    key BLOB NOT NULL,
    n INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    batch INTEGER NOT NULL REFERENCES batches (number),
    position INTEGER NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (key, n)
);
CREATE TABLE answers (
    request INTEGER PRIMARY KEY REFERENCES requests (request),
    status INTEGER NOT NULL,
    request_id TEXT,
    body TEXT NOT NULL,
    answered_at REAL NOT NULL
);
"""

MIGRATIONS: tuple[str, ...] = (_SCHEMA,)
"""MIGRATIONS[v] leads from version v to v + 1."""

_BEGIN_REQUEST = """
INSERT INTO requests (key, n, custom_id, batch, position, body) VALUES (?, ?, ?, ?, ?, CAST(? AS TEXT))
ON CONFLICT (key, n) DO UPDATE SET custom_id = excluded.custom_id, batch = excluded.batch, position = excluded.position
"""

_ANSWER = """
SELECT status, request_id, answers.body FROM requests JOIN answers USING (request) WHERE key = ? AND n = ?
"""

_ANSWERED = """
INSERT INTO answers (request, status, request_id, body, answered_at)
SELECT request, ?, ?, CAST(? AS TEXT), ? FROM requests WHERE key = ? AND n = ?
ON CONFLICT DO NOTHING
"""

_OPEN_REQUESTS = """
SELECT batch, position, custom_id, key, n FROM requests JOIN batches ON batches.number = requests.batch
WHERE base_url = ? AND ended_at IS NULL
AND NOT EXISTS (SELECT 1 FROM answers WHERE answers.request = requests.request)
ORDER BY batch, position
"""


class SqliteJournal:
    """A journal in a file, which it makes if it is not there; one process at a time may have it.

    Args:
        path: the file. Beside it are a lock file, and while it is in use SQLite's own files.

    Raises:
        JournalError: another process has it; it is no journal, damaged, or of a later version of this package (then
            it is left as it is); it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._mutex = threading.Lock()
        self._lock = filelock.FileLock(f"{os.fspath(path)}.lock")
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise JournalError(f"{path}: another process is using this journal") from None
        except OSError as error:
            raise JournalError(f"{path}: the journal cannot be locked: {error}") from error
        try:
            self._db = self._open()
        except BaseException:
            self._lock.release()
            raise

    def _open(self) -> sqlite3.Connection:
        check_header(self.path)
        try:
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5)
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: the journal cannot be opened: {error}") from error
        try:
            self._prepare(db)
        except sqlite3.Error as error:
            db.close()
            raise JournalError(f"{self.path}: the journal cannot be used: {error}") from error
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise JournalError(f"{self.path}: the journal is damaged: {found}")
        if version > VERSION:
            raise JournalError(f"{self.path}: a journal of a later version of autobatcher ({version})")
        if version < VERSION:
            with _transaction(db):
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                for migration in MIGRATIONS[version:]:
                    for statement in filter(str.strip, migration.split(";")):
                        db.execute(statement)
                db.execute(f"PRAGMA user_version = {VERSION}")
        # Only now, so that the header, by which a journal is known, is in the file itself from the start.
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.text_factory = bytes

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as db, _transaction(db):
            yield db

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._mutex:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise JournalError(f"{self.path}: {error}") from error

    def has_answers(self) -> bool:
        """As in `Journal`."""
        with self._reading() as db:
            return db.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None

    def answer(self, key: bytes, n: int) -> Answer | None:
        """As in `Journal`."""
        with self._reading() as db:
            row = db.execute(_ANSWER, (key, n)).fetchone()
        return None if row is None else Answer(row[0], _text(row[1]), row[2])

    def begin(self, base_url: str, endpoint: str, model: str, requests: Sequence[JournalledRequest]) -> int:
        """As in `Journal`."""
        with self._writing() as db:
            values = (base_url, endpoint, model, time.time())
            number = db.execute(
                "INSERT INTO batches (base_url, endpoint, model, begun_at) VALUES (?, ?, ?, ?)", values
            ).lastrowid
            db.executemany(
                _BEGIN_REQUEST,
                (
                    (request.key, request.n, request.custom_id, number, position, request.body)
                    for position, request in enumerate(requests)
                ),
            )
        return int(number or 0)

    def uploaded(self, number: int, file_id: str) -> None:
        """As in `Journal`."""
        with self._writing() as db:
            db.execute("UPDATE batches SET file_id = ? WHERE number = ?", (file_id, number))

    def created(self, number: int, batch_id: str) -> None:
        """As in `Journal`."""
        with self._writing() as db:
            values = (batch_id, time.time(), number)
            db.execute("UPDATE batches SET batch_id = ?, created_at = ? WHERE number = ?", values)

    def answered(self, answers: Iterable[tuple[bytes, int, Answer]]) -> None:
        """As in `Journal`."""
        now = time.time()
        with self._writing() as db:
            db.executemany(
                _ANSWERED,
                ((answer.status, answer.request_id, answer.body, now, key, n) for key, n, answer in answers),
            )

    def ended(self, number: int) -> None:
        """As in `Journal`."""
        with self._writing() as db:
            db.execute("UPDATE batches SET ended_at = ? WHERE number = ?", (time.time(), number))

    def open_batches(self, base_url: str) -> list[OpenBatch]:
        """As in `Journal`."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT number, endpoint, model, file_id, batch_id, created_at FROM batches"
                " WHERE base_url = ? AND ended_at IS NULL ORDER BY number",
                (base_url,),
            ).fetchall()
            if not rows:
                return []
            requests: dict[int, dict[int, tuple[str, bytes, int]]] = {}
            for batch, position, custom_id, key, n in db.execute(_OPEN_REQUESTS, (base_url,)):
                requests.setdefault(batch, {})[position] = (custom_id.decode(), key, n)
            return [
                OpenBatch(
                    number,
                    endpoint.decode(),
                    model.decode(),
                    _text(file_id),
                    _text(batch_id),
                    created_at,
                    requests.get(number, {}),
                )
                for number, endpoint, model, file_id, batch_id, created_at in rows
            ]

    def close(self) -> None:
        """As in `Journal`."""
        with self._mutex:
            self._db.close()
            self._lock.release()


def check_header(path: Path) -> None:
    """Refuse what is no journal before SQLite touches it."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER)
    except FileNotFoundError:
        return
    except OSError as error:
        raise JournalError(f"{path}: the journal cannot be read: {error}") from error
    if not header:
        return
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        raise JournalError(f"{path}: this is no journal, and no SQLite file")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise JournalError(f"{path}: this SQLite file is no journal of autobatcher")
    if int.from_bytes(header[60:64], "big") > VERSION:
        raise JournalError(f"{path}: a journal of a later version of autobatcher")


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # some errors, such as a full disk, have rolled it back already
            db.execute("ROLLBACK")
        raise


def _text(value: Any) -> str | None:
    return None if value is None else value.decode()
