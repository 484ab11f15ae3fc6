"""`autobatcher journal` where one may read, and not write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autobatcher.core.outcomes import Answer
from autobatcher.journal import JournalledRequest, SqliteJournal

pytestmark = pytest.mark.skipif(not hasattr(os, "setuid"), reason="this system has other permissions")

NOBODY = 65534

SCRIPT = """
import os, sys, tempfile
from typer.testing import CliRunner
from autobatcher.cli import build_app
from autobatcher.journal import SqliteJournal

app, runner = build_app(), CliRunner()
with tempfile.TemporaryDirectory() as other:  # imports what it takes, to which the other user may have no access
    SqliteJournal(f"{other}/run.db").close()
    assert runner.invoke(app, ["journal", f"{other}/run.db"]).exit_code == 0
    assert runner.invoke(app, ["journal", "none.db"]).exit_code != 0
folder = os.path.dirname(sys.argv[1])
if os.geteuid() == 0:  # whom no permission binds
    os.setuid(int(sys.argv[2]))
assert not os.access(folder, os.W_OK)
result = runner.invoke(app, ["journal", sys.argv[1]])
print(result.output)
sys.exit(result.exit_code)
"""

CRASH = """
import os, signal, sys
from autobatcher.core.outcomes import Answer
from autobatcher.journal import SqliteJournal
SqliteJournal(sys.argv[1]).answered([(bytes(15) + bytes([1]), 0, Answer(200, "r", b"{}"))])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())  # below one that everybody may enter
    path = folder / "run.db"
    journal = SqliteJournal(path)
    requests = [JournalledRequest(bytes(15) + bytes([n]), 0, f"c-{n}", b"{}") for n in range(3)]
    journal.begin("http://x/", "/v1/x", "m", requests, 9)
    journal.answered([(bytes(16), 0, Answer(200, "r", b"{}"))])
    journal.close()
    yield path
    folder.chmod(0o755)
    shutil.rmtree(folder)


def shown(path: Path) -> tuple[int, str]:
    """By the command, to somebody who may only read."""
    for file in path.parent.iterdir():
        file.chmod(0o444)
    path.parent.chmod(0o555)
    command = [sys.executable, "-c", SCRIPT, str(path), str(NOBODY)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if "PermissionError" in done.stderr and "setuid" in done.stderr:
        pytest.skip("this process cannot become another user's")
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def crash(path: Path) -> None:
    """Leave the latest answer in SQLite's log."""
    subprocess.run([sys.executable, "-c", CRASH, path], check=False, timeout=60)
    assert Path(f"{path}-wal").stat().st_size


def test_a_journal_in_a_folder_that_one_may_only_read(path: Path) -> None:
    code, said = shown(path)
    assert code == 0, said
    assert "1 answered" in said


def test_one_that_is_in_use_or_was_left_by_a_crash(path: Path) -> None:
    crash(path)
    code, said = shown(path)
    assert code == 0, said
    assert "2 answered" in said


def test_what_cannot_be_seen_there_is_said_and_not_left_out(path: Path) -> None:
    crash(path)
    Path(f"{path}-shm").unlink()
    code, said = shown(path)
    assert code == 4, said
    assert "run.db-wal" in said
    assert "read-only" in said
