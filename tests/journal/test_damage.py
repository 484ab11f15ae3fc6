"""Files that SQLite can read and that hold what this package never wrote: they are refused as journals are."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autobatcher import JournalError
from autobatcher.core.outcomes import Answer, LooseJson
from autobatcher.journal import JournalledRequest, SqliteJournal
from autobatcher.journal.reading import export, summary
from autobatcher.runtime.record import batch_of

COLUMNS = [
    *(("batches", name) for name in ("base_url", "endpoint", "model", "begun_at", "file_id", "batch_id")),
    *(("batches", name) for name in ("number", "created_at", "ended_at")),
    *(
        ("request_groups", name)
        for name in ("id", "batch", "position", "keys", "numbers", "custom_ids", "bodies")
    ),
    *(
        ("answer_groups", name)
        for name in ("id", "answered_at", "keys", "numbers", "statuses", "request_ids", "bodies")
    ),
]

URL = "http://x/"
KEYS = [bytes([n]) * 16 for n in range(4)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run.db"
    journal = SqliteJournal(path)
    for first in (0, 2):
        requests = [JournalledRequest(KEYS[n], 0, f"c-{n}", b'{"n":%d}' % n) for n in (first, first + 1)]
        number = journal.begin(URL, "/v1/x", "m", requests, 9)
        journal.uploaded(number, "file-1")
        journal.created(number, "batch-1")
        journal.answered(
            [
                (KEYS[first], 0, Answer(200, "r", LooseJson(b'{"x":NaN}'))),
                (KEYS[0], 1, Answer(200, None, b"1")),
            ]
        )
    journal.close()
    return path


values = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(), st.binary())
splices = st.tuples(
    st.floats(0, 1), st.integers(0, 6), st.sampled_from([b"", b"\n", b",", b"]", b'"', b"\xff", b"9" * 20])
)
damage = st.tuples(st.sampled_from(COLUMNS), st.booleans(), st.one_of(values, splices))


def spoil(path: Path, column: tuple[str, str], *, all_rows: bool, value: Any) -> None:
    table, name = column
    db = sqlite3.connect(path)
    new = "?"
    if isinstance(value, tuple):  # something else in place of a part
        place, length, other = value
        (before,) = db.execute(f"SELECT ifnull(CAST({name} AS BLOB), x'') FROM {table}").fetchone()
        at = int(place * len(before))
        new, value = "CAST(? AS TEXT)", before[:at] + other + before[at + length :]
    where = "1" if all_rows else f"rowid = (SELECT max(rowid) FROM {table})"
    with suppress(sqlite3.IntegrityError), db:  # what SQLite does not take is in no file
        db.execute(f"UPDATE OR IGNORE {table} SET {name} = {new} WHERE {where}", (value,))
    db.close()


def use(path: Path) -> None:
    """All that reads a file."""
    found = summary(path)
    assert found.size > 0
    list(export(path))


def run(path: Path) -> None:
    journal = SqliteJournal(path)
    try:
        for batch in journal.open_batches(URL):
            batch_of(batch, 0.0)
        for key in KEYS:
            journal.answer(key, 0)
    finally:
        journal.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(damage)
@example((("answer_groups", "bodies"), True, b"[\n\n]"))
@example((("answer_groups", "statuses"), True, b"[200]"))
@example((("answer_groups", "keys"), True, b"0123456789"))
@example((("answer_groups", "keys"), True, 7))
@example((("request_groups", "custom_ids"), True, '["c"]'))
@example((("request_groups", "numbers"), True, f"[{2**63}]"))
@example((("request_groups", "position"), True, 2**62))
@example((("request_groups", "batch"), True, 7))
@example((("batches", "created_at"), True, "yesterday"))
@example((("batches", "created_at"), True, -1e300))
@example((("batches", "begun_at"), True, 1e300))
@example((("batches", "model"), True, b"m"))
def test_whatever_stands_in_a_column(tmp_path: Path, whole: Path, spoilt: tuple[Any, bool, Any]) -> None:
    path = tmp_path / "run.db"
    column, all_rows, value = spoilt
    for read in (use, run):
        for ending in ("", "-wal", "-shm"):
            Path(f"{path}{ending}").unlink(missing_ok=True)
        path.write_bytes(whole.read_bytes())
        spoil(path, column, all_rows=all_rows, value=value)
        try:
            read(path)
        except JournalError as error:
            assert "run.db" in str(error)  # noqa: PT017 -- it may be read, too


def test_a_body_on_more_than_one_line_gives_nobody_anothers_answer(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "run.db")
    journal.answered(
        [(KEYS[0], 0, Answer(200, "r", b'{\n"n":0}')), (KEYS[1], 0, Answer(200, "r", b'{"n":1}'))]
    )
    for key in KEYS[:2]:
        with pytest.raises(JournalError, match="damaged"):
            journal.answer(key, 0)
    journal.close()
