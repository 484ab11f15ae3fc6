"""A forked child of a process that has a journal: it is told, and leaves the file and its locks to the parent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

COMMON = """
import asyncio, gc, os, signal, subprocess, sys
from autobatcher import BatchOpenAI, JournalError
from autobatcher.core.outcomes import Answer
from autobatcher.journal import JournalledRequest, SqliteJournal

path = sys.argv[1]
KEYS = [bytes(15) + bytes([n]) for n in range(5)]
ANSWER = Answer(200, "r", b"{}")

def refused(call):
    try:
        call()
    except JournalError as error:
        assert f"process {parent}, of which this one is a fork" in str(error), error
    else:
        raise AssertionError("it was not refused")

def wait_for(child):
    assert os.waitpid(child, 0)[1] == 0

parent = os.getpid()
"""


def run(script: str, path: Path) -> None:
    """In a process of its own, for a child ends as its parent would, with all that is registered for the end."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", COMMON + script, path],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_a_child_is_told_at_each_use(path: Path) -> None:
    run(
        """
journal = SqliteJournal(path)
journal.answered([(KEYS[0], 0, ANSWER)])
child = os.fork()
if not child:
    refused(lambda: journal.answer(KEYS[0], 0))
    refused(lambda: journal.open_batches("http://x/"))
    refused(lambda: journal.answered([(KEYS[1], 0, ANSWER)]))
    refused(lambda: SqliteJournal(path))
    sys.exit()
wait_for(child)
assert journal.answer(KEYS[1], 0) is None
journal.answered([(KEYS[1], 0, ANSWER)])
journal.close()
""",
        path,
    )


@pytest.mark.parametrize("given", ["path", "SqliteJournal(path)", "MemoryJournal()"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_calls_and_clients_of_a_child_are_refused(path: Path, given: str, backend: str) -> None:
    run(
        f"""
import anyio, openai
from tests.journal.memory import MemoryJournal

journal = {given}
client = BatchOpenAI(api_key="k", base_url="http://127.0.0.1:9/v1", journal=journal)
refused_calls = []

async def ask():
    try:
        await client.embeddings.create(model="m", input="x")
    except JournalError as error:
        refused_calls.append(str(error))

async def before():
    with anyio.move_on_after(0.01):  # so that there is a driver that the child has a copy of
        await client.embeddings.create(model="m", input="x")

anyio.run(before, backend={backend!r})
child = os.fork()
if not child:
    anyio.run(ask, backend={backend!r})
    assert f"process {{parent}}" in refused_calls[0]
    refused(lambda: BatchOpenAI(api_key="k", journal=journal))
    anyio.run(client.close, backend={backend!r})
    sys.exit()
wait_for(child)
anyio.run(client.close, backend={backend!r})
""",
        path,
    )


@pytest.mark.parametrize("end", ["journal.close()", "del journal; gc.collect()", "pass"])
def test_the_end_of_a_child_leaves_the_parent_its_lock(path: Path, end: str) -> None:
    run(
        f"""
journal = SqliteJournal(path)
child = os.fork()
if not child:
    {end}
    sys.exit()
wait_for(child)
second = "import sys; from autobatcher.journal import SqliteJournal; SqliteJournal(sys.argv[1])"
said = subprocess.run([sys.executable, "-c", second, path], capture_output=True, text=True).stderr
assert "another process is using this journal" in said, said
journal.answered([(KEYS[0], 0, ANSWER)])
journal.close()
""",
        path,
    )


@pytest.mark.parametrize("end", ["journal.close()", "del journal; gc.collect()", "pass"])
def test_a_child_that_outlives_its_parents_use_takes_nothing_from_the_next_run(path: Path, end: str) -> None:
    run(
        f"""
journal = SqliteJournal(path)
journal.answered([(KEYS[0], 0, ANSWER)])
ready, go = os.pipe()
child = os.fork()
if not child:
    os.read(ready, 1)
    {end}
    sys.exit()
journal.close()
later = '''
import os, signal, sys
from autobatcher.core.outcomes import Answer
from autobatcher.journal import SqliteJournal
SqliteJournal(sys.argv[1]).answered([(bytes(15) + bytes([1]), 0, Answer(200, "r", b"{{}}"))])
os.kill(os.getpid(), signal.SIGKILL)
'''
killed = subprocess.run([sys.executable, "-c", later, path], capture_output=True, text=True)
assert killed.returncode == -signal.SIGKILL, killed.stderr
os.write(go, b"x")
wait_for(child)
journal = SqliteJournal(path)
assert [journal.answer(key, 0) for key in KEYS[:3]] == [ANSWER, ANSWER, None]
journal.close()
""",
        path,
    )
