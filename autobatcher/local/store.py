"""Files, batches and result lines in SQLite.

Every method is one short transaction, or a read, run inline: nothing here waits. Result lines are rows,
and the output and error files are those rows one after another, so that they can be read at any time.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from autobatcher.local.wire import decode, encode, new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
"""The statuses that a batch never leaves."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, purpose TEXT NOT NULL,
    filename TEXT NOT NULL, bytes INTEGER, created_at INTEGER NOT NULL, expires_at INTEGER,
    batch_id TEXT, is_error INTEGER
);
CREATE TABLE IF NOT EXISTS chunks (
    file_id TEXT NOT NULL, n INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (file_id, n)
);
CREATE TABLE IF NOT EXISTS batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, status TEXT NOT NULL,
    input_file_id TEXT NOT NULL, output_expires_after INTEGER, object BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS results (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, batch_id TEXT NOT NULL, line_number INTEGER NOT NULL,
    custom_id TEXT NOT NULL, is_error INTEGER NOT NULL, line BLOB NOT NULL,
    UNIQUE (batch_id, line_number)
);
CREATE INDEX IF NOT EXISTS results_by_file ON results (batch_id, is_error, seq);
"""

_FILE = """SELECT files.*, coalesce(bytes, (
    SELECT coalesce(sum(length(line) + 1), 0) FROM results
    WHERE results.batch_id = files.batch_id AND results.is_error = files.is_error)) AS size FROM files"""

_PAGE = 500


class Result(NamedTuple):
    """One answered line, ready for the output or error file (no newline at its end)."""

    line_number: int
    custom_id: str
    is_error: bool
    line: bytes


class Store:
    """One database; belongs to one thread and to one server at a time."""

    def __init__(self, path: str | Path | None) -> None:
        self._db = sqlite3.connect(":memory:" if path is None else path, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._purge_chunks()  # what an upload or a batch left behind when the process was stopped
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the database; the store is of no use afterwards."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # Files

    def add_chunk(self, file_id: str, n: int, data: bytes) -> None:
        """Keep part `n` of a file that is being uploaded."""
        self._db.execute("INSERT INTO chunks VALUES (?, ?, ?)", (file_id, n, data))

    def drop_chunks(self, file_id: str) -> None:
        """Forget an upload that did not succeed."""
        self._db.execute("DELETE FROM chunks WHERE file_id = ?", (file_id,))

    def add_file(
        self, file_id: str, *, purpose: str, filename: str, size: int, now: int, lifetime: int | None
    ) -> None:
        """Make an upload visible."""
        expires_at = None if lifetime is None else now + lifetime
        self._db.execute(
            "INSERT INTO files (id, purpose, filename, bytes, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
            (file_id, purpose, filename, size, now, expires_at),
        )

    def file(self, file_id: str, now: int) -> dict[str, Any] | None:
        """The file object, or None if there is no such file (any more)."""
        row = self._file_row(file_id, now)
        return None if row is None else _file_object(row)

    def _file_row(self, file_id: str, now: int) -> sqlite3.Row | None:
        query = f"{_FILE} WHERE id = ? AND (expires_at IS NULL OR expires_at > ?)"
        row: sqlite3.Row | None = self._db.execute(query, (file_id, now)).fetchone()
        return row

    def files(
        self, *, now: int, after: str | None, limit: int, purpose: str | None, newest_first: bool
    ) -> list[dict[str, Any]] | None:
        """A page of file objects, with one more than `limit` if there are more; None: no file `after`."""
        start = self._position("files", after, newest_first=newest_first)
        if start is None:
            return None
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        rows = self._db.execute(
            f"{_FILE} WHERE seq {sign} ? AND (expires_at IS NULL OR expires_at > ?)"
            f" AND (? IS NULL OR purpose = ?) ORDER BY seq {order} LIMIT ?",
            (start, now, purpose, purpose, limit + 1),
        )
        return [_file_object(row) for row in rows]

    def _position(self, table: str, after: str | None, *, newest_first: bool) -> int | None:
        if after is None:
            return 2**62 if newest_first else 0
        row = self._db.execute(f"SELECT seq FROM {table} WHERE id = ?", (after,)).fetchone()  # noqa: S608 -- our names
        return None if row is None else int(row["seq"])

    def delete_file(self, file_id: str) -> None:
        """Delete a file; what an unfinished batch still needs of it goes when that batch ends."""
        with self._transaction() as db:
            row = db.execute("SELECT batch_id, is_error FROM files WHERE id = ?", (file_id,)).fetchone()
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))
            if row is not None and row["batch_id"] is not None:
                batch = self.batch(row["batch_id"])
                if batch is not None and batch["status"] in TERMINAL:
                    db.execute("DELETE FROM results WHERE batch_id = ? AND is_error = ?", tuple(row))
            self._purge_chunks(file_id)

    def _purge_chunks(self, file_id: str | None = None) -> None:
        """Delete content that neither a file nor an unfinished batch needs: of one file, or of all."""
        marks = ", ".join(f"'{status}'" for status in sorted(TERMINAL))
        self._db.execute(
            "DELETE FROM chunks WHERE (? IS NULL OR file_id = ?)"  # noqa: S608 -- our own statuses
            " AND file_id NOT IN (SELECT id FROM files) AND file_id NOT IN"
            f" (SELECT input_file_id FROM batches WHERE status NOT IN ({marks}))",
            (file_id, file_id),
        )

    def chunks(self, file_id: str) -> Iterator[bytes]:
        """The parts of an uploaded file; no cursor stays open between them."""
        n = -1
        query = "SELECT n, data FROM chunks WHERE file_id = ? AND n > ? ORDER BY n LIMIT 1"
        while row := self._db.execute(query, (file_id, n)).fetchone():
            n = row["n"]
            yield row["data"]

    # Batches

    def add_batch(self, batch: dict[str, Any], *, output_expires_after: int | None) -> None:
        """Keep a new batch."""
        self._db.execute(
            "INSERT INTO batches (id, status, input_file_id, output_expires_after, object) VALUES (?, ?, ?, ?, ?)",
            (batch["id"], batch["status"], batch["input_file_id"], output_expires_after, encode(batch)),
        )

    def batch(self, batch_id: str) -> dict[str, Any] | None:
        """The batch object, or None."""
        row = self._db.execute("SELECT object FROM batches WHERE id = ?", (batch_id,)).fetchone()
        return None if row is None else decode(row["object"])

    def batches(self, *, after: str | None, limit: int) -> list[dict[str, Any]] | None:
        """A page, newest first, with one more than `limit` if there are more; None: no batch `after`."""
        start = self._position("batches", after, newest_first=True)
        if start is None:
            return None
        query = "SELECT object FROM batches WHERE seq < ? ORDER BY seq DESC LIMIT ?"
        return [decode(row["object"]) for row in self._db.execute(query, (start, limit + 1))]

    def unfinished(self) -> list[str]:
        """Ids of the batches that are not in a terminal status, oldest first."""
        rows = self._db.execute("SELECT id, status FROM batches ORDER BY seq").fetchall()
        return [row["id"] for row in rows if row["status"] not in TERMINAL]

    def update(self, batch_id: str, **changes: Any) -> dict[str, Any]:
        """Change fields of a batch, and return it."""
        with self._transaction():
            return self._update(batch_id, **changes)

    def _update(self, batch_id: str, **changes: Any) -> dict[str, Any]:
        batch = self.batch(batch_id)
        if batch is None:  # batches are never deleted
            raise LookupError(batch_id)
        batch.update(changes)
        self._db.execute(
            "UPDATE batches SET status = ?, object = ? WHERE id = ?",
            (batch["status"], encode(batch), batch_id),
        )
        if batch["status"] in TERMINAL:
            self._purge_chunks(batch["input_file_id"])
        return batch

    # Results

    def add_results(self, batch_id: str, results: Iterable[Result]) -> None:
        """Keep a group of answered lines and count them, in one transaction."""
        rows = [(batch_id, *result) for result in results]
        failed = sum(row[3] for row in rows)
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO results (batch_id, line_number, custom_id, is_error, line) VALUES (?, ?, ?, ?, ?)",
                rows,
            )
            batch = self.batch(batch_id) or {}
            counts = batch["request_counts"]
            counts["failed"] += failed
            counts["completed"] += len(rows) - failed
            self._update(batch_id, request_counts=counts)

    def answered(self, batch_id: str) -> set[int]:
        """Numbers of the lines that have a result."""
        rows = self._db.execute("SELECT line_number FROM results WHERE batch_id = ?", (batch_id,))
        return {row["line_number"] for row in rows}

    def add_result_files(self, batch_id: str, *, now: int, even_if_empty: bool) -> dict[str, str | None]:
        """Give a batch its output and error files, once; returns {"output_file_id": …, "error_file_id": …}."""
        found: dict[str, str | None] = {}
        with self._transaction() as db:
            batch = self.batch(batch_id) or {}
            query = "SELECT output_expires_after FROM batches WHERE id = ?"
            lifetime = db.execute(query, (batch_id,)).fetchone()["output_expires_after"]
            for is_error, name in ((False, "output"), (True, "error")):
                field = f"{name}_file_id"
                found[field] = batch[field]
                query = "SELECT 1 FROM results WHERE batch_id = ? AND is_error = ? LIMIT 1"
                if found[field] or not (even_if_empty or db.execute(query, (batch_id, is_error)).fetchone()):
                    continue
                found[field] = new_id("file-")
                db.execute(
                    "INSERT INTO files (id, purpose, filename, created_at, expires_at, batch_id, is_error)"
                    " VALUES (?, 'batch_output', ?, ?, ?, ?, ?)",
                    (
                        found[field],
                        f"{batch_id}_{name}.jsonl",
                        now,
                        None if lifetime is None else now + lifetime,
                        batch_id,
                        is_error,
                    ),
                )
            self._update(batch_id, **found)
        return found

    def result_file(self, file_id: str) -> tuple[str, bool] | None:
        """Batch and kind (whether errors) of an output or error file; None for an upload."""
        row = self._db.execute("SELECT batch_id, is_error FROM files WHERE id = ?", (file_id,)).fetchone()
        return None if row is None or row["batch_id"] is None else (row["batch_id"], bool(row["is_error"]))

    def count_results(self, batch_id: str, *, is_error: bool) -> int:
        """How many lines the file has by now."""
        query = "SELECT count(*) FROM results WHERE batch_id = ? AND is_error = ?"
        return int(self._db.execute(query, (batch_id, is_error)).fetchone()[0])

    def results(self, batch_id: str, *, is_error: bool, skip: int, stop: int) -> Iterator[bytes]:
        """Lines `skip` to `stop` of the file in pages; lines are only ever added at its end."""
        query = "SELECT seq, line FROM results WHERE batch_id = ? AND is_error = ? AND seq > ? ORDER BY seq LIMIT ? OFFSET ?"
        seq, offset, left = 0, skip, stop - skip
        while left > 0:
            rows = self._db.execute(query, (batch_id, is_error, seq, min(left, _PAGE), offset)).fetchall()
            if not rows:
                return
            seq, offset, left = rows[-1]["seq"], 0, left - len(rows)
            yield b"".join(row["line"] + b"\n" for row in rows)


def _file_object(row: sqlite3.Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["size"],
        "created_at": row["created_at"],
        "expires_at": row["expires_at"],
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "status_details": None,
    }
