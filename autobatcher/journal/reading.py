"""A look into a journal's file that changes nothing, also while a client uses it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatcher.errors import JournalError
from autobatcher.journal.sqlite import check_header

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
    path = Path(path)
    if not path.is_file():
        raise JournalError(f"{path}: there is no such file")
    check_header(path)
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            yield db
        finally:
            db.close()
    except sqlite3.Error as error:
        raise JournalError(f"{path}: {error}") from error


_STATES = """
SELECT CASE WHEN answers.request IS NOT NULL THEN 0 WHEN ended_at IS NULL AND file_id IS NOT NULL THEN 1 ELSE 2 END, count(*)
FROM requests JOIN batches ON batches.number = requests.batch LEFT JOIN answers USING (request) GROUP BY 1
"""

_BATCHES = """
SELECT number, endpoint, model, batch_id, ended_at IS NOT NULL AS ended, count(request) AS requests,
    count(answers.request) AS answers
FROM batches LEFT JOIN requests ON batch = number LEFT JOIN answers USING (request) GROUP BY number ORDER BY number
"""

_EXPORT = """
SELECT custom_id, base_url, endpoint, n, requests.body, status, request_id, answers.body
FROM requests JOIN batches ON batches.number = requests.batch LEFT JOIN answers USING (request) ORDER BY request
"""


def summary(path: str | os.PathLike[str]) -> Summary:
    """Count what is there.

    Raises:
        JournalError: this is no journal, or it cannot be read.
    """
    with reading(path) as db:
        counts = dict(db.execute(_STATES).fetchall())
        cursor = db.execute(_BATCHES)
        names = [column[0] for column in cursor.description]
        batches = [dict(zip(names, row, strict=True)) for row in cursor]
        (begun_at,) = db.execute("SELECT min(begun_at) FROM batches").fetchone()
        (answered_at,) = db.execute("SELECT max(answered_at) FROM answers").fetchone()
    files = (Path(f"{os.fspath(path)}{ending}") for ending in ("", "-wal"))
    return Summary(
        {state: counts.get(number, 0) for number, state in enumerate(STATES)},
        batches,
        begun_at,
        answered_at,
        sum(file.stat().st_size for file in files if file.exists()),
    )


def export(path: str | os.PathLike[str]) -> Iterator[str]:
    """All requests, in the order in which they first came, each with its answer or null: lines of JSON.

    Raises:
        JournalError: this is no journal, or it cannot be read.
    """
    with reading(path) as db:
        for custom_id, base_url, endpoint, n, body, status, request_id, answer in db.execute(_EXPORT):
            head = json.dumps({"custom_id": custom_id, "base_url": base_url, "url": endpoint, "n": n})
            response = "null"
            if status is not None:
                told = json.dumps({"status_code": status, "request_id": request_id})
                response = f'{told[:-1]}, "body": {answer}}}'
            # The bodies are JSON already: they go out as they came in.
            yield f'{head[:-1]}, "body": {body}, "response": {response}}}\n'
