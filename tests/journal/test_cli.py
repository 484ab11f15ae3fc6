"""`autobatcher journal`."""

from __future__ import annotations

import json
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from autobatcher.cli import build_app
from autobatcher.core.outcomes import Answer, LooseJson
from autobatcher.journal import JournalledRequest, SqliteJournal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.db"
    journal = SqliteJournal(path)
    requests = [JournalledRequest(bytes(15) + bytes([n]), 0, f"c-{n}", b'{"n":%d}' % n) for n in range(3)]
    journal.uploaded(journal.begin("http://x/", "/v1/x", "m", requests, 9), "file-1")
    journal.answered([(bytes(16), 0, Answer(200, "req-1", b'{"x":1}'))])
    journal.close()
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["journal", *map(str, arguments)])
    return result.exit_code, result.output


def test_it_shows_counts_and_batches(path: Path) -> None:
    code, said = run(path)
    assert code == 0
    assert "1 answered" in said
    assert "2 at the server" in said
    assert "open" in said


@pytest.mark.parametrize("columns", ["50", "80"])
def test_the_ids_of_batches_are_whole(path: Path, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    name = "batch_" + 32 * "0"
    journal = SqliteJournal(path)
    journal.created(journal.begin("http://x/", "/v1/chat/completions", "gpt-4o-mini-2024-07-18", [], 0), name)
    journal.close()
    assert name in run(path)[1]


def test_the_counts_as_json(path: Path) -> None:
    code, said = run(path, "--json")
    assert code == 0
    found = json.loads(said)
    assert found["requests"] == {"answered": 1, "at the server": 2, "not answered": 0}
    assert found["batches"][0]["requests"] == 3
    assert found["size"] > 0


def test_it_exports_requests_and_answers_and_overwrites_nothing(path: Path, tmp_path: Path) -> None:
    to = tmp_path / "out.jsonl"
    assert run(path, "--export", to)[0] == 0
    lines = [json.loads(line) for line in to.read_text("utf-8").splitlines()]
    assert [line["body"] for line in lines] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert lines[0]["response"] == {"status_code": 200, "request_id": "req-1", "body": {"x": 1}}
    assert lines[1]["response"] is None
    code, said = run(path, "--export", to)
    assert code == 2
    assert "--overwrite" in said
    assert run(path, "--export", to, "--overwrite")[0] == 0
    assert run(path, "--export", "-") == (0, to.read_text("utf-8"))


def test_it_exports_an_answer_with_nan_as_json(path: Path, tmp_path: Path) -> None:
    journal = SqliteJournal(path)
    journal.answered([(bytes(15) + b"\x01", 0, Answer(200, "req-2", LooseJson(b'{"x":NaN}')))])
    journal.close()
    assert run(path, "--export", tmp_path / "out.jsonl")[0] == 0
    _, line, _ = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert orjson.loads(line)["response"]["body"] == '{"x":NaN}'


def test_what_is_no_journal(tmp_path: Path) -> None:
    assert run(tmp_path / "none.db")[0] == 2
    other = tmp_path / "other.db"
    other.write_text("x")
    code, said = run(other)
    assert code == 2
    assert "no journal" in said
    assert other.read_text() == "x"
