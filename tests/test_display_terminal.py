"""The display on a terminal: programs run in a pseudo-terminal, and the screen is read as an emulator shows it."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autobatcher.local import LocalConfig, serve_in_thread

pytest.importorskip("termios", reason="there are no pseudo-terminals here")
from tests.terminal import PATIENCE, Terminal

ID = re.compile(r"batch_[0-9a-f]{32}(?![0-9a-f])")
WAYS = [
    pytest.param("asyncio", 80, 24, id="asyncio-80x24"),
    pytest.param("asyncio", 120, 40, id="asyncio-120x40"),
    pytest.param("trio", 80, 24, id="trio-80x24"),
]

PROGRAM = """
import fcntl, logging, sys, termios
import anyio
from autobatcher import BatchOpenAI

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
logging.getLogger("autobatcher").addHandler(logging.NullHandler())
base_url, backend, ending = sys.argv[1:]
client = BatchOpenAI(
    base_url=base_url, api_key="local", progress=True,
    batch_size=20, batch_window_seconds=0.05, poll_interval_seconds=0.1,
)

async def ask(number, model="local-chat"):
    text = "[[error:400]]" if number == 7 else f"{number}"
    try:
        await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    except Exception:
        if number != 7:
            raise

async def burst(count):
    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(ask, number)
        if ending == "prints":
            for number in range(3):
                await anyio.sleep(0.3)
                print(f"line {number} of the program")
        if ending == "dies":
            await anyio.to_thread.run_sync(input)
            raise RuntimeError("the program's own fault")

async def main():
    await burst(60)
    print("the answers are here")
    if ending == "twice":
        input()
        await burst(20)
        print("all of them")
    if ending == "closes":
        await client.close()

anyio.run(main, backend=backend)
if ending != "closes":
    print("done with the client")
"""


@contextmanager
def running(
    ending: str,
    width: int = 80,
    height: int = 24,
    *,
    backend: str = "asyncio",
    latency: float = 0.1,
    output: Path | None = None,
) -> Iterator[Terminal]:
    config = LocalConfig(latency_seconds=latency, concurrency=4)
    with serve_in_thread(config) as server:
        command = [sys.executable, "-c", PROGRAM, server.base_url, backend, ending]
        if output is not None:
            command = ["sh", "-c", 'exec "$@" >"$0"', str(output), *command]
        with Terminal(command, width, height) as terminal:
            yield terminal


SUMMARY = "3 batches settled: 59 answered, 1 failed, 0 sent again"


@pytest.mark.parametrize(("backend", "width", "height"), WAYS)
def test_a_table_comes_along_and_a_summary_stays(backend: str, width: int, height: int) -> None:
    with running("closes", width, height, backend=backend) as terminal:
        terminal.until(lambda: len(set(ID.findall(terminal.text))) == 3 and "in_progress" in terminal.text)
        assert "done/failed/total" in terminal.text
        assert ("local-chat" in terminal.text) == (width == 120)  # the ids are whole, and the models give way
        assert terminal.screen.cursor.hidden
        terminal.until(lambda: terminal.done > 0)
        before = terminal.done
        terminal.until(lambda: terminal.done > before)
        terminal.until(lambda: "settled" in terminal.text)
        assert terminal.until_over() == 0
        assert terminal.text.splitlines() == [SUMMARY, "the answers are here"]
        assert not terminal.screen.cursor.hidden


def test_what_the_program_prints_meanwhile_stands_above() -> None:
    with running("prints") as terminal:
        terminal.until(lambda: "line 0 of the program" in terminal.text and bool(ID.search(terminal.text)))
        lines = terminal.text.splitlines()
        assert lines[0] == "line 0 of the program"
        assert terminal.until_over() == 0
        assert terminal.text.splitlines() == [
            *(f"line {number} of the program" for number in range(3)),
            SUMMARY,
            "the answers are here",
            "done with the client",
        ]


def test_what_goes_into_a_file_goes_there(tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    with running("closes", output=output) as terminal:
        terminal.until(lambda: bool(ID.search(terminal.text)))
        assert terminal.until_over() == 0
        assert terminal.text.splitlines() == [SUMMARY]
    assert output.read_text() == "the answers are here\n"


def test_while_nothing_is_under_way_the_terminal_is_the_programs_own() -> None:
    with running("twice") as terminal:
        terminal.until(lambda: "the answers are here" in terminal.text)
        assert not terminal.screen.cursor.hidden
        assert terminal.text.splitlines() == [SUMMARY, "the answers are here"]
        terminal.type(b"\n")
        terminal.until(lambda: bool(ID.search(terminal.text)))
        assert terminal.screen.cursor.hidden
        assert terminal.until_over() == 0
        assert "4 batches settled: 78 answered, 2 failed, 0 sent again\nall of them" in terminal.text
        assert not terminal.screen.cursor.hidden


def test_a_program_that_dies_leaves_the_terminal_in_order() -> None:
    with running("dies", 120, 40, latency=30) as terminal:
        terminal.until(lambda: bool(ID.search(terminal.text)) and terminal.screen.cursor.hidden)
        terminal.type(b"\n")
        assert terminal.until_over() == 1
        assert "the program's own fault" in terminal.text
        assert not terminal.screen.cursor.hidden


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_leaves_the_terminal_in_order_and_says_which_batches_go_on(backend: str) -> None:
    with running("closes", 120, 40, backend=backend, latency=30) as terminal:
        terminal.until(lambda: len(set(ID.findall(terminal.text))) == 3 and terminal.screen.cursor.hidden)
        terminal.type(b"\x03")
        assert terminal.until_over() in (1, 130, -signal.SIGINT)
        assert len(set(ID.findall(terminal.text))) == 3
        assert not terminal.screen.cursor.hidden


def test_a_terminal_that_goes_away_ends_the_display_and_not_the_program() -> None:
    with serve_in_thread(LocalConfig(latency_seconds=0.05, concurrency=4)) as server:
        command = [sys.executable, "-c", IN_BACKGROUND, server.base_url]
        with Terminal(command, 80, 24) as terminal:
            assert terminal.process.wait(PATIENCE) == 5


IN_BACKGROUND = """
import os, sys
import anyio
from autobatcher import BatchOpenAI

async def main():
    async with BatchOpenAI(
        base_url=sys.argv[1], api_key="local", progress=True, batch_size=5,
        batch_window_seconds=0.05, poll_interval_seconds=0.1,
    ) as client:
        async def ask(number):
            await client.chat.completions.create(
                model="local-chat", messages=[{"role": "user", "content": str(number)}]
            )
        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(ask, number)
            await anyio.sleep(0.3)
            for number in (1, 2):
                os.close(number)

anyio.run(main)
os._exit(5)
"""
