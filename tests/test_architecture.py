"""Who may import what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import autobatcher

PACKAGE = Path(autobatcher.__file__).parent

IMPURE = (
    "time",
    "datetime",
    "random",
    "uuid",
    "os",
    "asyncio",
    "anyio",
    "trio",
    "openai",
    "sqlite3",
    "httpx",
    "httpx2",
    "sniffio",
)
CLIENT = (
    "autobatcher.core",
    "autobatcher.runtime",
    "autobatcher.client",
    "autobatcher.AsyncOpenAI",
    "autobatcher.BatchOpenAI",
)
EVENT_LOOPS = ("asyncio", "trio", "sniffio")


def imported(source: str, package: str) -> Iterator[str]:
    """The dotted names that a module of this package imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def below(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def imports_of(folder: Path) -> list[tuple[str, str]]:
    """All pairs of a file below the folder and a name that it imports."""
    pairs = []
    for path in sorted(folder.rglob("*.py")):
        file = path.relative_to(PACKAGE)
        package = ".".join(["autobatcher", *file.parent.parts])
        pairs += [(file.as_posix(), name) for name in imported(path.read_text("utf-8"), package)]
    assert pairs, f"nothing is imported below {folder}"
    return pairs


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import os.path, time", ["os.path", "time"]),
        ("from os import path as p", ["os.path"]),
        ("def f():\n    import anyio", ["anyio"]),
        ("from autobatcher import core", ["autobatcher.core"]),
        ("from . import a", ["autobatcher.local.a"]),
        ("from .a import b", ["autobatcher.local.a.b"]),
        ("from .. import client", ["autobatcher.client"]),
        ("from ..core.engine import Engine", ["autobatcher.core.engine.Engine"]),
    ],
)
def test_the_walk_finds_every_kind_of_import(source: str, names: list[str]) -> None:
    assert list(imported(source, "autobatcher.local")) == names


def test_the_core_knows_no_clock_randomness_io_event_loop_or_sdk() -> None:
    assert [pair for pair in imports_of(PACKAGE / "core") if below(pair[1], IMPURE)] == []


def test_the_core_knows_of_this_package_only_itself_and_the_events() -> None:
    allowed = ("autobatcher.core", "autobatcher.events")
    pairs = imports_of(PACKAGE / "core") + [
        ("events.py", name) for name in imported((PACKAGE / "events.py").read_text("utf-8"), "autobatcher")
    ]
    assert [pair for pair in pairs if below(pair[1], ("autobatcher",)) and not below(pair[1], allowed)] == []


def test_the_local_server_knows_nothing_of_the_client() -> None:
    assert [pair for pair in imports_of(PACKAGE / "local") if below(pair[1], CLIENT)] == []


def test_only_one_module_of_the_client_knows_event_loops() -> None:
    files = {
        file
        for file, name in imports_of(PACKAGE)
        if not file.startswith(("cli/", "local/", "serve/")) and below(name, EVENT_LOOPS)
    }
    assert files == {"runtime/spawn.py"}
