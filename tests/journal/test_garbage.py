"""What the garbage collector takes: it runs wherever it likes, also inside of what it would have to wait for."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from autobatcher import JournalError
from autobatcher.core.window import Request
from autobatcher.journal import JournalledRequest, SqliteJournal
from autobatcher.runtime.record import Record
from tests.journal.memory import MemoryJournal
from tests.journal.stage import ask, client_of, executed, serving


def run(script: str, path: Path) -> None:
    """In a process of its own, which can be killed if it waits for ever."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, path],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr


def test_clients_that_are_never_closed_hinder_no_other(tmp_path: Path) -> None:
    run(
        """
import gc, sys
from autobatcher import BatchOpenAI
gc.set_threshold(1, 1, 1)
for n in range(30):
    BatchOpenAI(api_key="k", journal=f"{sys.argv[1]}/{n}.db")
""",
        tmp_path,
    )


def play(backend: Any, program: Callable[[], Awaitable[int]]) -> int:
    name, options = backend
    return anyio.run(program, backend=name, backend_options=options)


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()
    gc.collect()


collected = pytest.mark.parametrize("collected", [False, True])


@collected
@pytest.mark.usefixtures("no_collector")
def test_a_run_ends_with_the_loops_of_a_client_that_is_never_closed(
    path: Path, virtual_backend: Any, *, collected: bool
) -> None:
    async def program() -> int:
        async with serving() as api:
            await ask(client_of(api, path)[0], "<same>")
            return executed(api)

    assert play(virtual_backend, program) == 1
    if collected:
        gc.collect()
    assert play(virtual_backend, program) == 0


@collected
@pytest.mark.usefixtures("no_collector")
def test_it_goes_on_in_a_loop_in_which_a_client_is_taken(
    path: Path, virtual_backend: Any, *, collected: bool
) -> None:
    async def program() -> int:
        async with serving() as api:
            for _ in range(2):
                await ask(client_of(api, path)[0], "<same>")
                if collected:
                    gc.collect()
            async with client_of(api, path)[0] as client:
                await ask(client, "<same>")
            await ask(client_of(api, path)[0], "<same>")
            return executed(api)

    assert play(virtual_backend, program) == 4
    assert play(virtual_backend, program) == 0


def soon(function: Callable[[], object]) -> None:
    """Call a function, and fail if it waits for ever."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_a_call_that_it_ends_while_another_gets_its_number_gives_its_own_back() -> None:
    record = Record(MemoryJournal(), owned=False)

    class Key(bytes):
        """What is done with it is interrupted, as it may be by the collector anywhere."""

        def __hash__(self) -> int:
            for n in ended:
                record.numbers.give_back(bytes(self), n)
            ended.clear()
            return super().__hash__()

        def __eq__(self, other: object) -> bool:
            return super().__eq__(other)

    def take(key: bytes) -> int:
        request = Request("c", "/v1/x", "m", b"", 0, key=key)
        record.take(request)
        return request.n

    ended: list[int] = []
    assert [take(b"k" * 16) for _ in range(3)] == [0, 1, 2]
    ended.append(1)
    soon(lambda: take(Key(b"k" * 16)))
    assert not ended
    assert {take(b"k" * 16) for _ in range(2)} >= {1}


def test_what_it_ends_during_a_write_is_refused(path: Path) -> None:
    """A call that it ends may be the last of its batch, whose end is then to be written."""
    journal = SqliteJournal(path)
    errors: list[JournalError] = []

    def requests() -> Iterator[JournalledRequest]:
        try:
            journal.ended(1)
        except JournalError as error:
            errors.append(error)
        yield JournalledRequest(bytes(16), 0, "c", b"{}")

    soon(lambda: journal.begin("http://x/", "/v1/x", "m", requests(), 9))
    assert errors
    assert len(journal.open_batches("http://x/")) == 1
    journal.close()
