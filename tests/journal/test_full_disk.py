"""A disk that is full: the error reaches whom it affects and nobody else, and what was paid for is not lost.

What stands for the full disk is the limit that the system puts on the size of a process's files: the journal's writes
fail half way, as they do on a full disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from autobatcher import BatchOpenAI, JournalError
from tests.journal.stage import Wire, ask, client_of, executed, serving, table

resource = pytest.importorskip("resource", reason="this system has no limit for the size of files")

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")]

KILO = 1000
LARGE = 25 * KILO
"""Bytes of a prompt, which its answer repeats: not large enough to wait in a file of its own."""


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process can grow beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def large(number: int) -> str:
    return f"<{number}>" + "x" * LARGE


async def outcomes(client: BatchOpenAI, questions: list[tuple[str, str]]) -> list[str | Exception]:
    """Of model and prompt."""
    results: list[str | Exception] = [ValueError()] * len(questions)

    async def note(index: int, model: str, text: str) -> None:
        try:
            results[index] = await ask(client, text, model)
        except JournalError as error:
            results[index] = error

    async with anyio.create_task_group() as tasks:
        for index, (model, text) in enumerate(questions):
            tasks.start_soon(note, index, model, text)
    return results


def intact(path: Path) -> bool:
    return table(path, "PRAGMA integrity_check") == [("ok",)]


async def test_requests_that_cannot_be_written_are_not_sent(path: Path) -> None:
    few = [("few", f"<{n}>") for n in range(5)]
    many = [("many", large(n)) for n in range(60)]
    async with serving() as api:
        client, wire = client_of(api, path)
        async with client:
            with files_end_at(1000 * KILO):
                results = await outcomes(client, [*few, *many])
                assert all(isinstance(result, JournalError) for result in results[5:])
                assert all(text in str(result) for (_, text), result in zip(few, results, strict=False))
                assert executed(api) == len(few)
                assert wire.calls["upload"] == 1
                assert "<later>" in await ask(client, "<later>")
            assert intact(path)
            results = await outcomes(client, many)  # the same program, when there is room again
            assert not any(isinstance(result, JournalError) for result in results)
        assert executed(api) == len(few) + len(many) + 1
        client, wire = client_of(api, path)
        async with client:
            again = await outcomes(client, [*few, *many])
            assert again[5:] == results
        assert not wire.calls


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("then", ["the same run", "the next run"])
async def test_answers_that_cannot_be_written_are_read_again(path: Path, then: str, *, partial: bool) -> None:
    questions = [("few", "<few>"), *(("many", large(n)) for n in range(25))]
    async with serving(latency_seconds=60, partial_results=partial) as api:
        client, wire = client_of(api, path)
        async with client:
            with files_end_at(1075 * KILO):
                results = await outcomes(client, questions)
            failed = [isinstance(result, JournalError) for result in results]
            assert not failed[0]
            assert any(failed)
            assert intact(path)
            if then == "the same run":
                await all_answered(client, [it for it, lost in zip(questions, failed, strict=True) if lost])
        if then == "the next run":
            client, wire = client_of(api, path)
            async with client:
                await all_answered(client, questions)
            assert not wire.calls["upload"]
        assert wire.calls["create"] <= 2
        assert executed(api) == len(questions)
        await without_network(*client_of(api, path), questions)


async def all_answered(client: BatchOpenAI, questions: list[tuple[str, str]]) -> None:
    results = await outcomes(client, questions)
    assert all(text in str(result) for (_, text), result in zip(questions, results, strict=True))


async def without_network(client: BatchOpenAI, wire: Wire, questions: list[tuple[str, str]]) -> None:
    async with client:
        await all_answered(client, questions)
    assert not wire.calls


@pytest.mark.parametrize("what", ["uploaded", "created"])
async def test_an_id_that_cannot_be_written_ends_its_batch_here_alone(path: Path, what: str) -> None:
    async with serving(latency_seconds=60) as api:
        client, wire = client_of(api, path)
        with sqlite3.connect(path) as db:  # makes the journal's files as large as they are to be
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        limits = files_end_at(1)
        kind = {"uploaded": "upload", "created": "create"}[what]
        wire.after[kind] = limits.__enter__
        async with client:
            with pytest.raises(JournalError):
                await ask(client, "<one>")
            limits.__exit__(None, None, None)
            del wire.after[kind]
            assert intact(path)
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1
        assert wire.calls["create"] == 1


async def test_a_large_request_of_an_earlier_run_that_finds_no_room_is_bought_once(path: Path) -> None:
    text = "x" * 100 * KILO  # waits in a file of its own
    async with serving(latency_seconds=600) as api:
        async with client_of(api, path)[0] as client:
            with anyio.move_on_after(60):
                await ask(client, text)
        client, wire = client_of(api, path)
        async with client:
            with files_end_at(150 * KILO), pytest.raises(OSError, match="too large"):
                await ask(client, text)
            assert text in await ask(client, text)
        assert executed(api) == 1
        assert not wire.calls["upload"]
