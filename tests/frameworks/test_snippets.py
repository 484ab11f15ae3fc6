"""The complete snippets of the documentation, run as they stand, as programs against the embedded server.

A snippet is a fenced Python block below the comment `<!-- run: NAME -->`; the same one may stand on several pages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from autobatcher.local import LocalConfig, serve_in_thread

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"^<!-- run: (?P<name>.+?) -->$", re.MULTILINE)
SNIPPET = re.compile(r"<!-- run: [^\n]+? -->\n+```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)

NAMED = "You said: Name a fruit..\nYou said: Name a tree..\n"
PRINTED = {
    "instructor": "I live in Oslo. I live in Oslo.\nIt is foggy in Lima. It is foggy in Lima.\n",
    "pydantic-ai": NAMED,
    "openai-agents": NAMED,
    "langchain-openai": NAMED,
}
"""What the built-in model makes each snippet print, by its name."""


def read() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for mark in MARK.finditer(text):
            snippet = SNIPPET.match(text, mark.start())
            assert snippet is not None, f"{page.name}: no Python block below {mark[0]}"
            yield mark["name"], snippet["code"]


SNIPPETS = list(dict.fromkeys(read()))
Snippet = tuple[str, str]
Ran = tuple["subprocess.CompletedProcess[str]", int, int]
"""The ended process, and how many requests the server got in realtime and in batches."""


def run(code: str, program: Path) -> Ran:
    program.write_text(code, encoding="utf-8")
    ours = ("OPENAI_", "LANGSMITH_", "LANGCHAIN_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    with serve_in_thread(LocalConfig()) as server:
        env |= {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": "k"}
        command = [sys.executable, str(program)]
        ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        return ended, server.api.realtime_calls.total(), sum(server.api.executed.values())


@pytest.fixture(scope="module")
def running(
    missing: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Snippet, Future[Ran]]]:
    """All of them at the same time, for they wait more than they work."""
    folder = tmp_path_factory.mktemp("snippets")
    with ThreadPoolExecutor(len(SNIPPETS)) as pool:
        yield {
            (name, code): pool.submit(run, code, folder / f"snippet_{number}.py")
            for number, (name, code) in enumerate(SNIPPETS)
            if not missing(code)
        }


def test_the_snippets_are_found() -> None:
    assert {name for name, _ in SNIPPETS} == set(PRINTED)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_a_snippet_runs(
    snippet: Snippet, running: dict[Snippet, Future[Ran]], missing: Callable[[str], list[str]]
) -> None:
    if snippet not in running:
        pytest.skip(f"not installed: {', '.join(missing(snippet[1]))}")
    ended, realtime, batched = running[snippet].result()
    # Nothing on stderr: no warning, and no complaint of a tracer that could not reach its service.
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, PRINTED[snippet[0]], "")
    assert (realtime, batched) == (0, 2)
