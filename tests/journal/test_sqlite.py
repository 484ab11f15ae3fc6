"""The file: who may use it, and what is refused."""

from __future__ import annotations

import gc
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from autobatcher import BatchOpenAI, JournalError
from autobatcher.core.outcomes import Answer, LooseJson
from autobatcher.journal import JournalledRequest, SqliteJournal
from autobatcher.journal.reading import summary
from autobatcher.journal.sqlite import PAGE, VERSION


def fill(journal: SqliteJournal, count: int = 3) -> int:
    requests = [JournalledRequest(bytes(15) + bytes([n]), 0, f"c-{n}", b'{"n":1}') for n in range(count)]
    return journal.begin("http://x/", "/v1/x", "m", requests, 9)


def content(path: Path) -> dict[str, bytes]:
    """Of a journal's files."""
    files = (path.with_name(path.name + ending) for ending in ("", "-wal"))
    return {file.name: file.read_bytes() for file in files if file.exists()}


def refused(path: Path, match: str) -> None:
    before = content(path)
    with pytest.raises(JournalError, match=match):
        SqliteJournal(path)
    assert content(path) == before


def test_another_process_is_told_at_once(path: Path) -> None:
    journal = SqliteJournal(path)
    script = "import sys; from autobatcher import BatchOpenAI; BatchOpenAI(api_key='k', journal=sys.argv[1])"
    second = subprocess.run(
        [sys.executable, "-c", script, path], check=False, capture_output=True, text=True, timeout=60
    )
    assert second.returncode
    assert "JournalError" in second.stderr
    assert "another process is using this journal" in second.stderr
    journal.close()
    SqliteJournal(path).close()


def test_another_name_of_the_file_has_the_same_lock(path: Path, tmp_path: Path) -> None:
    journal = SqliteJournal(path)
    link = tmp_path / "link.db"
    link.symlink_to(path)
    script = "import sys; from autobatcher.journal import SqliteJournal; SqliteJournal(sys.argv[1])"
    second = subprocess.run(
        [sys.executable, "-c", script, link], check=False, capture_output=True, text=True, timeout=60
    )
    assert "another process is using this journal" in second.stderr
    journal.close()


def test_clients_of_one_process_share_it(path: Path) -> None:
    clients = [BatchOpenAI(api_key="k", journal=name) for name in (path, str(path))]
    del clients
    gc.collect()
    SqliteJournal(path).close()  # it is free when the last of them has gone


def test_the_environment_names_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOBATCHER_JOURNAL", str(path))
    client = BatchOpenAI(api_key="k")
    assert path.exists()
    del client
    gc.collect()


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"run\.db: there is no folder .*such"):
        BatchOpenAI(api_key="k", journal=tmp_path / "no" / "such" / "run.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="has no such permissions")
def test_only_its_owner_may_read_it(path: Path) -> None:
    with closing(SqliteJournal(path)) as journal:
        fill(journal)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        endings = ("", ".lock", "-wal", "-shm")
        assert modes == {path.name + ending: 0o600 for ending in endings}
    path.chmod(0o640)
    with closing(SqliteJournal(path)):  # one that is there stays as its owner wants it
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_is_no_sqlite_file_is_refused(path: Path) -> None:
    path.write_text("a diary")
    refused(path, "no SQLite file")


def test_a_database_of_something_else_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE batches (x)")
    db.close()
    refused(path, "no journal of autobatcher")


def test_a_later_version_is_refused(path: Path) -> None:
    SqliteJournal(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()
    refused(path, "later version")


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user who may not write everywhere, if this is one who may."""
    if not hasattr(os, "geteuid") or os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_only_be_read_is_refused_at_once(path: Path) -> None:
    SqliteJournal(path).close()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # and not pytest's, which only its owner may enter
        folder.chmod(0o777)
        copy = folder / path.name
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o444)
        with unprivileged():
            refused(copy, "cannot be written")


@pytest.mark.parametrize("why", ["later version", "damaged"])
def test_what_is_refused_keeps_what_was_not_yet_in_the_file_itself(
    path: Path, tmp_path: Path, why: str
) -> None:
    journal = SqliteJournal(path)
    fill(journal, 250)
    journal.close()
    journal = SqliteJournal(path)
    fill(journal)
    other = sqlite3.connect(path)
    if why == "later version":
        other.execute(f"PRAGMA user_version = {VERSION + 1}")
    killed = tmp_path / "killed"
    killed.mkdir()
    for name, data in content(path).items():  # as after the end of a process that closed nothing
        (killed / name).write_bytes(data)
    other.close()
    journal.close()
    if why == "damaged":
        with (killed / path.name).open("r+b") as file:
            file.seek(-4 * PAGE, os.SEEK_END)
            file.write(os.urandom(4 * PAGE))
    assert len(content(killed / path.name)) == 2
    refused(killed / path.name, why)


@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_journal_is_refused(path: Path, damage: str) -> None:
    journal = SqliteJournal(path)
    fill(journal, 250)
    journal.close()
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[16384:32768] = os.urandom(16384)
    path.write_bytes(content)
    refused(path, "journal")


def test_a_full_disk_raises_where_it_matters_and_damages_nothing(path: Path) -> None:
    journal = SqliteJournal(path)
    fill(journal)
    journal._db.execute("PRAGMA max_page_count = 16")  # the only way to a small disk that needs no privileges
    large = [JournalledRequest(b"k" * 16, 0, "c-l", b'"' + b"x" * 10**6 + b'"')]
    with pytest.raises(JournalError, match="full"):
        journal.begin("http://x/", "/v1/x", "m", large, 9)
    answer = Answer(200, "r", b"{}")
    journal.answered([(bytes(16), 0, answer)])
    assert journal.answer(bytes(16), 0) == answer
    journal.close()
    journal = SqliteJournal(path)
    assert journal.answer(bytes(16), 0) == answer
    assert len(journal.open_batches("http://x/")) == 1
    journal.close()


def test_anybody_may_read_it_meanwhile(path: Path) -> None:
    journal = SqliteJournal(path)
    number = fill(journal)
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*), min(body), max(batch) FROM requests").fetchone() == (
        3,
        '{"n":1}',
        number,
    )
    db.close()
    journal.close()


def test_an_answer_with_nan_hides_no_other_from_sqlite(path: Path) -> None:
    journal = SqliteJournal(path)
    bodies = ['{"x":1}', '{"x":NaN}', '{"x":[-Infinity,"\\ud800"]}', '"NaN"', '{"x":"Infinity"}']
    journal.answered(
        (bytes(16), n, Answer(200, "r", LooseJson(body.encode()))) for n, body in enumerate(bodies)
    )
    journal.close()
    db = sqlite3.connect(path)
    found = [body for (body,) in db.execute("SELECT body FROM answers ORDER BY n")]
    db.close()
    assert found == [*bodies[:3], "NaN", bodies[4]]  # SQLite gives the text of a body that is one


def test_what_it_keeps(path: Path) -> None:
    journal = SqliteJournal(path)
    assert not journal.has_answers()
    first = fill(journal)
    journal.uploaded(first, "file-1")
    journal.created(first, "batch-1")
    key = bytes(16)
    answer = Answer(200, None, '{"text":"ü\\u0000\u2028"}'.encode())
    journal.answered([(key, 0, answer)])
    journal.answered([(key, 0, Answer(200, "later", b"{}"))])
    assert journal.answer(key, 0) == answer
    assert journal.answer(key, 1) is None
    (batch,) = journal.open_batches("http://x/")
    assert (batch.number, batch.file_id, batch.batch_id) == (first, "file-1", "batch-1")
    assert {position: entry[0] for position, entry in batch.requests.items()} == {1: "c-1", 2: "c-2"}
    assert journal.open_batches("http://y/") == []
    again = journal.begin(
        "http://x/", "/v1/x", "m", [JournalledRequest(bytes(15) + b"\x02", 0, "c-2", b'{"n":1}')], 7
    )
    moved: Any = {batch.number: list(batch.requests) for batch in journal.open_batches("http://x/")}
    assert moved == {first: [1], again: [0]}
    journal.ended(first)
    assert [batch.number for batch in journal.open_batches("http://x/")] == [again]
    journal.close()
    journal = SqliteJournal(path)
    assert journal.has_answers()
    assert journal.answer(key, 0) == answer
    assert [batch.number for batch in journal.open_batches("http://x/")] == [again]
    journal.close()


VERSION_1 = """
PRAGMA application_id = 1094871660;
PRAGMA user_version = 1;
CREATE TABLE batches (
    number INTEGER PRIMARY KEY, base_url TEXT NOT NULL, endpoint TEXT NOT NULL, model TEXT NOT NULL,
    begun_at REAL NOT NULL, file_id TEXT, batch_id TEXT, created_at REAL, ended_at REAL
);
CREATE INDEX open_batches ON batches (base_url) WHERE ended_at IS NULL;
CREATE TABLE request_groups (
    id INTEGER PRIMARY KEY, batch INTEGER NOT NULL REFERENCES batches (number), position INTEGER NOT NULL,
    requests TEXT NOT NULL
);
CREATE TABLE answer_groups (id INTEGER PRIMARY KEY, answered_at REAL NOT NULL, answers TEXT NOT NULL);
CREATE VIEW requests AS SELECT batch FROM request_groups;
CREATE VIEW answers AS SELECT answered_at FROM answer_groups;
INSERT INTO batches VALUES (1, 'http://x/', '/v1/x', 'm', 5.0, 'file-1', 'batch-1', 6.0, NULL);
"""


def test_a_journal_of_version_1_is_brought_up_to_date(path: Path) -> None:
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    keys = [bytes(15) + bytes([n]) for n in range(3)]
    elements = "\n,".join(f'["{key.hex()}",{n},"c-{n}",\n{{"n":{n}}}]' for n, key in enumerate(keys))
    first, last = elements.rsplit("\n,", 1)
    db.execute("INSERT INTO request_groups VALUES (1, 1, 0, ?)", (f"[\n{first}\n]",))
    db.execute("INSERT INTO request_groups VALUES (2, 1, 2, ?)", (f"[\n{last}\n]",))
    answer = f'["{keys[1].hex()}",1,200,null,\n{{"a": NaN}}]'
    db.execute("INSERT INTO answer_groups VALUES (1, 7.0, ?)", (f"[\n{answer}\n]",))
    db.commit()
    db.close()
    with pytest.raises(JournalError, match="earlier version"):
        summary(path)
    journal = SqliteJournal(path)
    assert journal.has_answers()
    assert journal.answer(keys[1], 1) == Answer(200, None, b'{"a": NaN}')
    (batch,) = journal.open_batches("http://x/")
    assert batch.requests == {0: ("c-0", keys[0], 0), 2: ("c-2", keys[2], 2)}
    assert 3 * len('{"n":0}') < batch.size < 400
    journal.close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT position, key, n, custom_id, body FROM requests").fetchall() == [
        (n, key.hex(), n, f"c-{n}", f'{{"n":{n}}}') for n, key in enumerate(keys)
    ]
    db.close()
    SqliteJournal(path).close()
