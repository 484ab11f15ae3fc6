"""Disks that are full, and folders that may only be read: what the commands say, and that going on pays for nothing twice.

What stands for the full disk is the limit that the system puts on the size of a process's files.
"""

from __future__ import annotations

import csv
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autobatcher.local import LocalConfig, Serving, serve_in_thread
from tests.jobs.command import Ran, autobatcher, batch_file, environment, line, process
from tests.jobs.test_run_command import bought

resource = pytest.importorskip("resource", reason="this system has no limit for the size of files")

KILO = 1000
NOBODY = 65534


@pytest.fixture
def server() -> Iterator[Serving]:
    with serve_in_thread(LocalConfig()) as serving:
        yield serving


def texts(path: Path, count: int, size: int, unused: int = 0) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "unused"])
        writer.writerows([f"<{n}>{'x' * size}", "y" * unused] for n in range(count))
    return path


def told(ran: Ran, path: Path) -> None:
    assert ran.code == 4, ran.err
    assert str(path) in ran.err
    assert "run the same command again" in ran.err


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


ASK = ("--model", "m", "--prompt", "{text}", "--poll-interval", "0.05")


def test_no_room_for_requests_that_wait(server: Serving, tmp_path: Path) -> None:
    ask = ("run", texts(tmp_path / "in.csv", 5, 400 * KILO), "-o", tmp_path / "out.csv", *ASK)
    ran = process(server, *ask, file_size=1_000 * KILO)
    told(ran, Path(tempfile.gettempdir()))
    assert "make room" in ran.err
    assert "nothing is paid for twice" in ran.err
    assert autobatcher(server, *ask).code == 0
    assert bought(server) == 5


def test_no_room_for_the_journal(server: Serving, tmp_path: Path) -> None:
    ask = ("run", texts(tmp_path / "in.csv", 24, 25 * KILO), "-o", tmp_path / "out.csv", *ASK)
    told(process(server, *ask, file_size=1_000 * KILO), tmp_path / "out.csv.journal")
    assert not (tmp_path / "out.csv").exists()
    ran = autobatcher(server, *ask)
    assert ran.code == 0, ran.err
    assert bought(server) == 24


def test_no_room_for_the_results(server: Serving, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    ask = ("run", texts(tmp_path / "in.csv", 50, 4 * KILO, 20 * KILO), "-o", out, *ASK)
    told(process(server, *ask, file_size=900 * KILO), out)
    there = names(tmp_path)
    assert there <= {"in.csv", *(f"out.csv{ending}" for ending in (".partial", ".journal", ".journal.lock"))}
    assert autobatcher(server, *ask).code == 0
    assert bought(server) == 50
    before = out.read_bytes()
    told(process(server, *ask, "--overwrite", file_size=100 * KILO), tmp_path / "out.csv.partial")
    assert out.read_bytes() == before


def test_no_room_for_what_is_downloaded_or_prepared(server: Serving, tmp_path: Path) -> None:
    path = batch_file(tmp_path, [line("a", "x" * 200 * KILO), line("b", "[[error:400]]")])
    name = autobatcher(server, "submit", path).out.strip()
    autobatcher(server, "watch", name, "--poll-interval", "0.05")
    (batch,) = autobatcher(server, "status", name, "--json").objects
    there = names(tmp_path)
    full = 100 * KILO
    told(process(server, "results", name, "-o", tmp_path / "out", file_size=full), tmp_path / "out")
    told(process(server, "results", name, file_size=full), Path(tempfile.gettempdir()))
    get = ("files", "get", batch["input_file_id"], "-o", tmp_path / "out")
    told(process(server, *get, file_size=full), tmp_path / "out")
    told(
        process(server, "prepare", path, "-o", tmp_path / "b", file_size=full),
        tmp_path / "b" / "in-0001.jsonl",
    )
    assert names(tmp_path) == there


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no such device")
def test_no_room_for_stdout(server: Serving, tmp_path: Path) -> None:
    path = batch_file(tmp_path, [line("a")])
    name = autobatcher(server, "submit", path).out.strip()
    autobatcher(server, "watch", name, "--poll-interval", "0.05")
    for command in (
        ("list",),
        ("list", "--json"),
        ("results", name),
        ("validate", path, path, "--max-requests", 1, "--max-bytes", 1),
        ("estimate", path),
    ):
        ran = process(server, *command, stdout="/dev/full")
        assert ran.code == 4, (command, ran.err)
        assert f"<stdout>: {os.strerror(errno.ENOSPC)}" in ran.err
        assert "Exception" not in ran.err


SCRIPT = """
import json, os, sys
from typer.testing import CliRunner
from autobatcher.cli import build_app

app, runner = build_app(), CliRunner()
ask = ["--model", "m", "--prompt", "{text}", "--poll-interval", "0.05"]

def run(*command):
    result = runner.invoke(app, list(command))
    return [result.exit_code, result.stdout, result.stderr]

free, closed = sys.argv[1:3]
said = [run("run", f"{free}/in.csv", "-o", f"{free}/out.csv", *ask)]  # imports what it takes
assert said[0][0] == 0, said
said += [run("submit", f"{free}/in.jsonl")]
name = said[-1][1].strip()
run("watch", name, "--poll-interval", "0.05")
run("prepare", f"{free}/in.jsonl", "-o", f"{free}/batches")
run("journal", f"{free}/out.csv.journal", "--export", f"{free}/all.jsonl")
os.chmod(f"{free}/out.csv.journal", 0o644)  # else it is its owner's alone
if os.geteuid() == 0:  # whom no permission binds
    os.setuid(int(sys.argv[3]))
assert not os.access(closed, os.W_OK)
print(json.dumps([
    run("run", f"{free}/in.csv", "-o", f"{closed}/out.csv", *ask),
    run("results", name, "-o", f"{closed}/out.jsonl"),
    run("prepare", f"{free}/in.jsonl", "-o", closed),
    run("prepare", f"{free}/in.jsonl", "-o", f"{closed}/batches"),
    run("journal", f"{free}/out.csv.journal", "--export", f"{closed}/all.jsonl"),
    run("run", f"{closed}/secret.csv", "-o", f"{free}/other.csv", *ask),
    run("validate", f"{closed}/secret.csv"),
]))
"""


@pytest.fixture
def folders() -> Iterator[tuple[Path, Path]]:
    """One to write in, and one to read in; below one that everybody may enter."""
    free, closed = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    free.chmod(0o777)
    (closed / "secret.csv").write_text("text\na\n")
    (closed / "secret.csv").chmod(0)
    closed.chmod(0o555)
    yield free, closed
    closed.chmod(0o755)
    shutil.rmtree(free)
    shutil.rmtree(closed)


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="this system has other permissions")
def test_folders_that_may_only_be_read(server: Serving, folders: tuple[Path, Path]) -> None:
    free, closed = folders
    texts(free / "in.csv", 2, 10)
    batch_file(free, [line("a")])
    command = [sys.executable, "-c", SCRIPT, str(free), str(closed), str(NOBODY)]
    env = {**os.environ, **environment(server, "k"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=env)
    if "PermissionError" in done.stderr and "setuid" in done.stderr:
        pytest.skip("this process cannot become another user's")
    assert done.returncode == 0, done.stderr
    *written, read, checked = Ran(0, done.stdout, "").objects[0]
    for code, out, err in (read, checked):  # the command names what it may not
        assert (code, out) == (2, ""), err
        assert "secret.csv" in err
    for code, out, err in written:
        assert (code, out) == (4, ""), err
        assert str(closed) in err
        assert "see that it can be read and written, and run the same command again" in err
    assert names(closed) == {"secret.csv"}
