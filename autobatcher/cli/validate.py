"""`autobatcher validate`: what is wrong with batch files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autobatcher.cli.common import AsJson, print_json, put, say, told
from autobatcher.cli.prepare import MaxBytes, MaxRequests
from autobatcher.core.window import MAX_BYTES, MAX_LINES
from autobatcher.display_state import counted
from autobatcher.jobs.checking import Problem
from autobatcher.jobs.checking import validate as problems_of

SHOWN = 100
"""Problems of a file that people are shown; the rest is counted."""


def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Batch files.")],
    *,
    max_requests: MaxRequests = MAX_LINES,
    max_bytes: MaxBytes = MAX_BYTES,
    as_json: AsJson = False,
) -> None:
    """Find every problem of batch files, with its line.

    Shows the first 100 of a file and counts the rest; --json has all. Warnings are for what some servers take.

    Exits with 0 if there are no errors, with 1 if there are.

    Example: autobatcher validate batches/*.jsonl
    """
    errors = 0
    with told():
        for path in paths:
            errors += _check(path, max_requests, max_bytes, as_json=as_json)
    raise typer.Exit(1 if errors else 0)


def _check(path: Path, max_requests: int, max_bytes: int, *, as_json: bool) -> int:
    """Print a file's problems, and give the number of errors."""
    count = errors = 0
    for problem in problems_of(path, max_requests=max_requests, max_bytes=max_bytes):
        count += 1
        errors += problem.severity == "error"
        if as_json:
            print_json({"file": str(path), **problem._asdict()})
        elif count <= SHOWN:
            put(_told(path, problem))
    if count > SHOWN and not as_json:
        put(f"{path}: and {count - SHOWN:,} more")
    say(f"{path}: {counted(errors, 'error')}, {counted(count - errors, 'warning')}")
    return errors


def _told(path: Path, problem: Problem) -> str:
    place = str(path) if problem.line is None else f"{path}:{problem.line}"
    return f"{place}: {problem.severity}: {problem.message}"
