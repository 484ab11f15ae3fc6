"""Brings a journal of version 1 to version 2: there, a row was one array of a head and a body for each request."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec

from autobatcher.core.outcomes import LooseJson
from autobatcher.journal.groups import INSERT_ANSWERS, INSERT_REQUESTS, TABLES, columns

_RENAME = """
DROP VIEW requests;
DROP VIEW answers;
ALTER TABLE request_groups RENAME TO old_requests;
ALTER TABLE answer_groups RENAME TO old_answers;
ALTER TABLE batches ADD COLUMN size INTEGER NOT NULL DEFAULT 0
"""

_SIZES = """
UPDATE batches SET size = ifnull((SELECT sum(length(CAST(requests AS BLOB))) FROM old_requests WHERE batch = number), 0)
"""


def migrate(db: sqlite3.Connection) -> None:
    """In the transaction that is open."""
    for statement in f"{_RENAME};{TABLES}".split(";"):
        db.execute(statement)
    rows = db.execute("SELECT batch, position, CAST(requests AS BLOB) FROM old_requests ORDER BY id")
    db.executemany(INSERT_REQUESTS, ((batch, position, *_columns(row)) for batch, position, row in rows))
    rows = db.execute("SELECT answered_at, CAST(answers AS BLOB) FROM old_answers ORDER BY id")
    db.executemany(INSERT_ANSWERS, ((answered_at, *_columns(row)) for answered_at, row in rows))
    db.execute(_SIZES)
    db.execute("DROP TABLE old_requests")
    db.execute("DROP TABLE old_answers")


def _columns(row: bytes) -> tuple[bytes, ...]:
    return columns(*zip(*_elements(row), strict=True))


def _elements(row: bytes) -> Iterator[tuple[Any, ...]]:
    """Each began with its key in hexadecimal digits, and had its body on a line of its own."""
    lines = row.split(b"\n")
    for head, body in zip(lines[1:-1:2], lines[2::2], strict=True):
        key, *others = msgspec.json.decode(head.lstrip(b",")[:-1] + b"]")
        yield bytes.fromhex(key), *others, LooseJson(body[:-1])
