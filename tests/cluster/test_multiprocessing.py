"""A pool of processes through one proxy: the documentation's program, as it stands."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autobatcher.local import LocalConfig, serve_in_thread
from tests.cluster.parts import KEY, PROC, batches, bought, busiest, environment, proxy, snippet

ROWS = 400
WORKERS = 4
PATIENCE = 120.0

TEXTS = {str(number): f"text {number * number}" for number in range(ROWS)}


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    """The command that runs the program in its folder, which has the rows."""
    with (tmp_path / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "text"), *TEXTS.items()])
    (tmp_path / "program.py").write_text(snippet("processes"), encoding="utf-8")
    return [sys.executable, "program.py"]


def answers(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "answers.csv").open(newline="", encoding="utf-8") as file:
        return [tuple(row) for row in csv.reader(file)]


def right() -> list[tuple[str, str]]:
    return sorted((number, f"You said: {text}.") for number, text in TEXTS.items())


def test_the_calls_of_all_processes_share_batches(program: list[str], tmp_path: Path) -> None:
    with (
        serve_in_thread(LocalConfig()) as server,
        proxy(
            server.base_url,
            serve_key=KEY,
            journal=tmp_path / "calls.db",
            batch_size=ROWS,
            batch_window_seconds=30,
            poll_interval_seconds=0.05,
        ) as served,
    ):
        env = environment(**served.variables)
        for _ in range(2):  # the second run gets what the first one bought
            ended = subprocess.run(
                program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            assert (ended.returncode, ended.stderr) == (0, "")
            assert sorted(answers(tmp_path)) == right()
            assert batches(server) == [ROWS]
            assert bought(server) == ROWS
        assert not server.api.realtime_calls


@pytest.mark.skipif(not PROC.exists(), reason="finds the workers in /proc")
def test_after_a_killed_worker_another_run_gets_what_was_bought(program: list[str], tmp_path: Path) -> None:
    with (
        serve_in_thread(LocalConfig(latency_seconds=0.1, concurrency=8)) as server,
        proxy(
            server.base_url,
            serve_key=KEY,
            journal=tmp_path / "calls.db",
            batch_size=ROWS // 4,
            batch_window_seconds=1,
            poll_interval_seconds=0.05,
        ) as served,
    ):
        env = environment(**served.variables)
        with subprocess.Popen(program, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + PATIENCE
            while server.api.executed.total() < ROWS // 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert ROWS // 2 <= server.api.executed.total() < ROWS  # some answers are there, some are not
            os.kill(busiest(process.pid), signal.SIGKILL)
            _, complaint = process.communicate(timeout=PATIENCE)
            assert process.returncode != 0
            assert "BrokenProcessPool" in complaint
        ended = subprocess.run(
            program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert sorted(answers(tmp_path)) == right()
        assert bought(server) == ROWS
        assert not server.api.realtime_calls
