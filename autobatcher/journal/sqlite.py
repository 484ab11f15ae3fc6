"""The built-in journal: one SQLite file. Its tables are described in docs/journal.md."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import filelock
import msgspec

from autobatcher.core.outcomes import Answer
from autobatcher.errors import JournalError
from autobatcher.journal import version1
from autobatcher.journal.forks import check_process, keep_in_children
from autobatcher.journal.groups import (
    INSERT_ANSWERS,
    INSERT_REQUESTS,
    TABLES,
    Indexes,
    Readable,
    answer_groups,
    request_groups,
)
from autobatcher.journal.private import MODE, make_private
from autobatcher.journal.store import JournalledRequest, OpenBatch

APPLICATION_ID = 0x41426A6C
"""In the header of the file (source: https://www.sqlite.org/fileformat.html): "ABjl", so that it is known."""

VERSION = 2

PAGE = 2**15
"""Bytes; rows are large, and SQLite's usual quarter of this costs half as much again."""

_MAGIC = b"SQLite format 3\0"
_HEADER = 100

_SCHEMA = """
CREATE TABLE batches (
    number INTEGER PRIMARY KEY,
    base_url TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    model TEXT NOT NULL,
    begun_at REAL NOT NULL,
    size INTEGER NOT NULL,
    file_id TEXT,
    batch_id TEXT,
    created_at REAL,
    ended_at REAL
);
CREATE INDEX open_batches ON batches (base_url) WHERE ended_at IS NULL;
"""

_OPEN_BATCHES = """
SELECT number, endpoint, model, file_id, batch_id, created_at, size FROM batches
WHERE base_url = ? AND ended_at IS NULL ORDER BY number
"""

Time = Annotated[float, msgspec.Meta(ge=0, lt=2**37)]
"""Unix seconds of which a date can be made."""

_OpenBatchRow = tuple[int, str, str, str | None, str | None, Time | None, int]

_OPEN_REQUESTS = """
SELECT batch, position, custom_id, key, n FROM request_index JOIN batches ON number = batch
WHERE base_url = ? AND ended_at IS NULL
AND NOT EXISTS (SELECT 1 FROM answer_index AS a WHERE a.key = request_index.key AND a.n = request_index.n)
ORDER BY batch, position
"""


_open: weakref.WeakValueDictionary[Path, SqliteJournal] = weakref.WeakValueDictionary()
"""Also, in a forked child, what was open in the parent: SQLite would take the parent's locks on these files for ours."""


class SqliteJournal:
    """A journal in a file, which it makes if it is not there; one process at a time may have it, and no child of a fork.

    Args:
        path: the file, in a folder that is there. Beside it are a lock file, and while it is in use SQLite's own files.

    Raises:
        JournalError: another process has it, or had it when it forked; it is no journal, damaged, or of a later version of this package (then
            it is left as it is); it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()  # so that two names of one file have one lock
        # Reentrant, for the garbage collector may end a call that ends a batch inside of a write.
        self._mutex = threading.RLock()
        self._readable = Readable(path)
        self._synchronous = ""
        self._pid = os.getpid()
        if self.path in _open:
            check_process(_open[self.path]._pid, path)  # noqa: SLF001 -- of this class
        if not self.path.parent.is_dir():  # which the lock would make, with all above it
            raise JournalError(f"{path}: there is no folder {self.path.parent}")
        # Any thread may close it.
        self._lock = filelock.FileLock(f"{self.path}.lock", mode=MODE, thread_local=False)
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
        _open[self.path] = self
        keep_in_children(self)

    def _open(self) -> sqlite3.Connection:
        check_header(self.path)
        with self._readable:
            self._check()
            make_private(self.path)
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5)
            try:
                self._prepare(db)
                self._indexes = Indexes(db)
                (self._newest,) = db.execute("SELECT ifnull(max(id), 0) FROM answer_groups").fetchone()
            except BaseException:
                db.close()
                raise
        return db

    def _check(self) -> None:
        """Refuse what cannot be used, by a connection that cannot write: one that can moves the WAL when it is closed."""
        if not self.path.exists() or not self.path.stat().st_size or _beside(self.path, "-journal").exists():
            return  # or it was cut off when it was made, which SQLite takes back
        try:
            with self.path.open("r+b"):
                pass  # SQLite says nothing of a file that may only be read before it is to write it
        except OSError as error:
            raise JournalError(f"{self.path}: the journal cannot be written: {error}") from error
        how = "mode=ro" if _beside(self.path, "-wal").exists() else "immutable=1"  # which makes no file
        with closing(sqlite3.connect(f"{self.path.as_uri()}?{how}", uri=True)) as db:
            self._version(db)
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise JournalError(f"{self.path}: the journal is damaged: {found}")

    def _version(self, db: sqlite3.Connection) -> int:
        version: int
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise JournalError(f"{self.path}: a journal of a later version of autobatcher ({version})")
        return version

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = self._version(db)
        if not version:
            db.execute(f"PRAGMA page_size = {PAGE}")
        if version < VERSION:
            with _transaction(db):
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                if not version:
                    for statement in f"{_SCHEMA}{TABLES}".split(";"):
                        db.execute(statement)
                else:
                    version1.migrate(db)
                db.execute(f"PRAGMA user_version = {VERSION}")
        # Only now, so that the header, by which a journal is known, is in the file itself from the start.
        db.execute("PRAGMA journal_mode = WAL")

    @contextmanager
    def _writing(self, synchronous: str = "FULL") -> Iterator[sqlite3.Connection]:
        """A transaction; what NORMAL has written waits for the next that is FULL before it is on the disk itself."""
        check_process(self._pid, self.path)
        with self._mutex:
            try:
                if synchronous != self._synchronous:
                    self._db.execute(f"PRAGMA synchronous = {synchronous}")
                    self._synchronous = synchronous
                with _transaction(self._db):
                    yield self._db
            except sqlite3.Error as error:
                raise JournalError(f"{self.path}: {error}") from error

    def has_answers(self) -> bool:
        """As in `Journal`."""
        return bool(self._newest)

    def answer(self, key: bytes, n: int) -> Answer | None:
        """As in `Journal`."""
        check_process(self._pid, self.path)
        with self._mutex:
            try:
                return self._indexes.answer(key, n, self._newest)
            except Exception:
                with self._readable:  # which costs more than a look at the answer
                    raise

    def begin(
        self, base_url: str, endpoint: str, model: str, requests: Iterable[JournalledRequest], size: int
    ) -> int:
        """As in `Journal`."""
        with self._writing() as db:
            values = (base_url, endpoint, model, time.time(), size)
            row = db.execute(
                "INSERT INTO batches (base_url, endpoint, model, begun_at, size) VALUES (?, ?, ?, ?, ?)",
                values,
            )
            number = int(row.lastrowid or 0)
            db.executemany(INSERT_REQUESTS, request_groups(number, requests))
        return number

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
        with self._writing("NORMAL") as db:  # without power they are lost here, and not at the server
            db.executemany(INSERT_ANSWERS, answer_groups(time.time(), answers))
            (newest,) = db.execute("SELECT max(id) FROM answer_groups").fetchone()
        self._newest = newest or 0

    def ended(self, number: int) -> None:
        """As in `Journal`."""
        with self._writing() as db:
            db.execute("UPDATE batches SET ended_at = ? WHERE number = ?", (time.time(), number))

    def open_batches(self, base_url: str) -> list[OpenBatch]:
        """As in `Journal`."""
        check_process(self._pid, self.path)
        with self._mutex, self._readable:
            rows = msgspec.convert(
                self._db.execute(_OPEN_BATCHES, (base_url,)).fetchall(), list[_OpenBatchRow]
            )
            if not rows:
                return []
            self._indexes.catch_up()
            requests: dict[int, dict[int, tuple[str, bytes, int]]] = {}
            for batch, position, custom_id, key, n in self._db.execute(_OPEN_REQUESTS, (base_url,)):
                requests.setdefault(batch, {})[position] = (custom_id, key, n)
            return [OpenBatch(*row, requests.get(row[0], {})) for row in rows]

    def close(self) -> None:
        """As in `Journal`; in a forked child it does nothing."""
        if os.getpid() != self._pid:
            return
        with self._mutex:
            self._db.close()
            self._lock.release()
            _open.pop(self.path, None)


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


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


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
