"""The benchmark's server and this project's contestant work together; how quickly is not asserted here."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
CALLS = 50


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "server"]
    with subprocess.Popen(command, cwd=BENCHMARKS, stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"journal": True},
        {"measure": "parse"},
        {"measure": "raw"},
        {"measure": "embeddings"},
        {"spread": 0.3},
        {"profile": True},
    ],
    ids=str,
)
def test_every_answer_reaches_its_caller(url: str, options: dict[str, object]) -> None:
    settings = {"url": url, "calls": CALLS, "poll": 0.05, "delay": 0.1, **options}
    command = [sys.executable, "-m", "contestants.this_project", json.dumps(settings)]
    output = subprocess.run(command, cwd=BENCHMARKS, stdout=subprocess.PIPE, check=True)
    assert json.loads(output.stdout.splitlines()[-1])["right"] == CALLS
