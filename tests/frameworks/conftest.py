"""Frameworks that take an `AsyncOpenAI`, given the batching client instead, against the embedded server.

They come with the extra `frameworks`. Where one is missing its tests are skipped, with the reason; where
AUTOBATCHER_REQUIRE_FRAMEWORKS is 1, as in CI, it is an error.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from autobatcher import BatchOpenAI
from autobatcher.local import LocalConfig, Serving, serve_in_thread

LOOPBACK = {"127.0.0.1", "::1", "localhost"}

elsewhere: list[Any] = []
"""Where this process connected to, or what it looked up, beyond loopback."""


def note_connections(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in LOOPBACK:
        elsewhere.append(arguments[1])
    if event == "socket.getaddrinfo" and arguments[0] not in {None, *LOOPBACK}:
        elsewhere.append(arguments[0])


sys.addaudithook(note_connections)


def missing_from(code: str) -> list[str]:
    """What a module imports at its top that is not installed; nothing where all has to be there."""
    if os.environ.get("AUTOBATCHER_REQUIRE_FRAMEWORKS") == "1":
        return []
    imported: set[str] = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            imported.add(node.module)
    roots = {name.partition(".")[0] for name in imported}
    return sorted(name for name in roots if importlib.util.find_spec(name) is None)


@pytest.fixture(scope="session")
def missing() -> Callable[[str], list[str]]:
    return missing_from


class Skipped(pytest.Module):
    """A test module that cannot be imported here."""

    def collect(self) -> NoReturn:
        missing = missing_from(self.path.read_text(encoding="utf-8"))
        pytest.skip(f"not installed: {', '.join(missing)}, of the extra `frameworks`")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if not missing_from(module_path.read_text(encoding="utf-8")):
        return None
    skipped: pytest.Module = Skipped.from_parent(parent, path=module_path)
    return skipped


@pytest.fixture
def anyio_backend() -> str:
    """These frameworks run on asyncio only; a module whose framework runs on trio as well says so."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _nothing_leaves_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("OPENAI_", "LANGSMITH_", "LANGCHAIN_"))]:
        monkeypatch.delenv(name)
    elsewhere.clear()
    yield
    assert not elsewhere


@pytest.fixture
def config() -> LocalConfig:
    """The server's settings; a module, or a parameter, may have its own."""
    return LocalConfig()


@pytest.fixture
def server(config: LocalConfig) -> Iterator[Serving]:
    """An embedded server; each test that uses it shows that its calls went through batches, none in realtime."""
    with serve_in_thread(config) as serving:
        yield serving
        assert not serving.api.realtime_calls
        assert sum(serving.api.executed.values()) > 0


@pytest.fixture
async def client(server: Serving) -> AsyncIterator[BatchOpenAI]:
    async with BatchOpenAI(
        api_key="k", base_url=server.base_url, batch_window_seconds=0.2, poll_interval_seconds=0.02
    ) as client:
        yield client
