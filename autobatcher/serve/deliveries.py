"""Which of several equal requests a caller's is, also after a restart: the one whose answer nobody has got yet.

The client's journal has every answer, and gives it to whoever names the same request again. A proxy has callers that
ask the same anew, and want a new answer; and others that ask again because they lost their connection. So equal requests
are numbered. A caller gets the lowest number that no other caller waits for and whose answer was not delivered: its own
one of before, or a new one.
"""

from __future__ import annotations

import heapq
import logging
import os
import sqlite3

import msgspec

from autobatcher.errors import JournalError
from autobatcher.journal.private import make_private

_log = logging.getLogger("autobatcher")

_TABLES = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS numbers (name BLOB PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS undelivered (name BLOB, n INTEGER, PRIMARY KEY (name, n)) WITHOUT ROWID;
"""


class _Equal(msgspec.Struct):
    """The numbers of equal requests while anybody waits for one.

    Attributes:
        free: those that were not delivered, and nobody waits for; a heap.
        used: how many are waited for.
    """

    free: list[int]
    used: int = 0


class Deliveries:
    """The numbers of requests, in a file beside the journal, whose lock is theirs, too.

    Args:
        path: of the file.

    Raises:
        JournalError: it cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        try:
            make_private(self._path)
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            self._db.executescript(_TABLES)
        except sqlite3.Error as error:
            raise JournalError(f"{self._path}: {error}") from error
        self._names: dict[bytes, _Equal] = {}

    def take(self, name: bytes) -> int:
        """The number of a request for which a caller begins to wait; `name`: the same for equal requests.

        Raises:
            JournalError: it cannot be written down.
        """
        try:
            equal = self._names.get(name)
            if equal is None:
                rows = self._db.execute("SELECT n FROM undelivered WHERE name = ? ORDER BY n", (name,))
                equal = _Equal([n for (n,) in rows])
            n = heapq.heappop(equal.free) if equal.free else self._new(name)
        except sqlite3.Error as error:
            raise JournalError(f"{self._path}: {error}") from error
        self._names[name] = equal
        equal.used += 1
        return n

    def _new(self, name: bytes) -> int:
        row = self._db.execute("SELECT next FROM numbers WHERE name = ?", (name,)).fetchone()
        n: int = 0 if row is None else row[0]
        self._db.execute("BEGIN")
        try:
            self._db.execute("REPLACE INTO numbers VALUES (?, ?)", (name, n + 1))
            self._db.execute("INSERT INTO undelivered VALUES (?, ?)", (name, n))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return n

    def delivered(self, name: bytes, n: int) -> None:
        """The caller has the answer, or there is none to come."""
        try:
            self._db.execute("DELETE FROM undelivered WHERE name = ? AND n = ?", (name, n))
        except sqlite3.Error as error:  # then the next equal request gets the same answer
            _log.warning("%s: %s", self._path, error)
        self._drop(name, None)

    def given_back(self, name: bytes, n: int) -> None:
        """The caller is gone without its answer, which the next equal request gets."""
        self._drop(name, n)

    def _drop(self, name: bytes, n: int | None) -> None:
        equal = self._names[name]
        equal.used -= 1
        if n is not None:
            heapq.heappush(equal.free, n)
        if not equal.used:
            del self._names[name]  # what is free is in the file

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()
