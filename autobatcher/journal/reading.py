"""A look into a journal's file that changes nothing, also while a client uses it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from autobatcher.errors import JournalError
from autobatcher.journal.groups import Indexes, Readable, is_json, requests_in
from autobatcher.journal.sqlite import VERSION, Time, check_header

STATES = ("answered", "at the server", "not answered")


@dataclass(frozen=True)
class Summary:
    """What a journal holds.

    Attributes:
        requests: counts by state: answered; at the server (in a batch that has not ended); not answered (the batch
            has ended, or was never made: the next run sends it again).
        batches: number, endpoint, model, batch_id, requests and answers of each, and whether it has ended.
        begun_at, answered_at: the first and the latest time in it, in Unix seconds; None if there is none.
        size: of its files in bytes.
    """

    requests: dict[str, int]
    batches: list[dict[str, Any]]
    begun_at: float | None
    answered_at: float | None
    size: int


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write.

    Raises:
        JournalError: this is no journal, or it cannot be read.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise JournalError(f"{path}: there is no such file")
    check_header(path)
    with Readable(path), closing(_connect(path)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version < VERSION:
            raise JournalError(
                f"{path}: a journal of an earlier version; a client that opens it brings it up to date"
            )
        yield db


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        db.execute("SELECT 1 FROM batches LIMIT 0")
    except sqlite3.Error as error:
        db.close()
        if os.access(path.parent, os.W_OK):
            raise
        # SQLite makes files beside those that it reads, unless it is told that nobody writes.
        log = Path(f"{path}-wal")
        if log.exists() and log.stat().st_size:
            raise JournalError(
                f"{path}: {error}: its folder is read-only, and what {log.name} holds can be read only where files can"
                " be made: copy the two into another folder, and read them there"
            ) from error
        db = sqlite3.connect(f"{path.as_uri()}?immutable=1", uri=True)
    return db


_STATES = """
SELECT CASE WHEN a.id IS NOT NULL THEN 0 WHEN ended_at IS NULL AND file_id IS NOT NULL THEN 1 ELSE 2 END, count(*)
FROM request_index JOIN batches ON number = batch LEFT JOIN answer_index AS a USING (key, n) GROUP BY 1
"""

_BATCHES = """
SELECT number, endpoint, model, batch_id, ended_at IS NOT NULL AS ended, count(r.n) AS requests, count(a.id) AS answers
FROM batches LEFT JOIN request_index AS r ON batch = number LEFT JOIN answer_index AS a USING (key, n)
GROUP BY number ORDER BY number
"""

_Batch = tuple[int, str, str, str | None, int, int, int]

_TIMES = "SELECT (SELECT min(begun_at) FROM batches), (SELECT max(answered_at) FROM answer_groups)"


def summary(path: str | os.PathLike[str]) -> Summary:
    """Count what is there.

    Raises:
        JournalError: this is no journal, or it cannot be read.
    """
    with reading(path) as db:
        Indexes(db).catch_up()
        counts = dict(db.execute(_STATES).fetchall())
        cursor = db.execute(_BATCHES)
        names = [column[0] for column in cursor.description]
        batches = [dict(zip(names, msgspec.convert(row, _Batch), strict=True)) for row in cursor]
        times = db.execute(_TIMES).fetchone()
        begun_at, answered_at = msgspec.convert(times, tuple[Time | None, Time | None])
    files = (Path(f"{Path(path).resolve()}{ending}") for ending in ("", "-wal"))
    return Summary(
        {state: counts.get(number, 0) for number, state in enumerate(STATES)},
        batches,
        begun_at,
        answered_at,
        sum(file.stat().st_size for file in files if file.exists()),
    )


def export(path: str | os.PathLike[str]) -> Iterator[str]:
    """All requests, in the order in which they were last sent, each with its answer or null: lines of JSON.

    Raises:
        JournalError: this is no journal, or it cannot be read.
    """
    with reading(path) as db:
        indexes = Indexes(db)
        indexes.catch_up()
        batches = {
            number: (base_url, endpoint)
            for number, base_url, endpoint in db.execute("SELECT number, base_url, endpoint FROM batches")
        }
        for batch, position, request in requests_in(db):
            name = request.key, request.n
            if indexes.place(*name) != (batch, position):
                continue  # it went into another batch
            base_url, endpoint = batches[batch]
            head = json.dumps(
                {
                    "custom_id": request.custom_id,
                    "base_url": base_url,
                    "url": endpoint,
                    "n": request.n,
                }
            )
            answer = indexes.answer(*name)
            response = "null"
            if answer is not None:
                told = json.dumps({"status_code": answer.status, "request_id": answer.request_id})
                said = answer.body.decode()
                if not is_json(answer.body):
                    said = json.dumps(said)
                response = f'{told[:-1]}, "body": {said}}}'
            # The bodies are JSON already: they go out as they came in.
            yield f'{head[:-1]}, "body": {request.body.decode()}, "response": {response}}}\n'
