"""`autobatcher journal`: what a journal holds."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from autobatcher.cli.common import Overwrite, print_json, stdout_or, told
from autobatcher.cli.tables import put_rich
from autobatcher.display_state import seconds_text
from autobatcher.jobs.downloads import written
from autobatcher.journal.reading import Summary, export, summary


def journal(
    path: Annotated[Path, typer.Argument(help="The journal's file.", metavar="FILE")],
    *,
    to: Annotated[
        Path | None,
        typer.Option(
            "--export",
            metavar="FILE.jsonl",
            help="Write all requests, each with its answer or null, as lines of JSON; - is stdout.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
) -> None:
    """Show what a journal holds: requests by state, batches, age and size; or export it.

    It changes nothing, and may be used while a program uses the journal.

    Example: autobatcher journal run.db --export run.jsonl
    """
    with told():
        if to is not None:
            with written(stdout_or(to), overwrite=overwrite, even_if_empty=True) as file:
                file.writelines(line.encode() for line in export(path))
        elif as_json:
            print_json(dataclasses.asdict(summary(path)))
        else:
            _show(summary(path))


def _show(found: Summary) -> None:
    console = Console()
    for state, count in found.requests.items():
        put_rich(console, f"{count:>12,} {state}")
    if found.begun_at is not None:
        put_rich(
            console,
            f"{found.size:>12,} bytes\n"
            f"{'begun':>12} {_time(found.begun_at)}, {seconds_text(time.time() - found.begun_at)} ago\n"
            f"{'last answer':>12} {_time(found.answered_at)}",
        )
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for batch in found.batches:
        groups.setdefault((batch["endpoint"], batch["model"]), []).append(batch)
    for (endpoint, model), batches in groups.items():
        put_rich(console, f"\n{escape(endpoint)}, {escape(model or '-')}")
        put_rich(console, _table(batches))


def _table(batches: Sequence[Mapping[str, Any]]) -> Table:
    longest = max(len(batch["batch_id"] or "") for batch in batches)
    table = Table(
        Column("batch", no_wrap=True, min_width=longest),  # to be copied: whole, however narrow the screen
        *(Column(title, no_wrap=True) for title in ("requests", "answers", "state")),
        box=None,
        pad_edge=False,
    )
    for batch in batches:
        table.add_row(
            escape(batch["batch_id"] or "-"),
            f"{batch['requests']:,}",
            f"{batch['answers']:,}",
            "ended" if batch["ended"] else "open",
        )
    return table


def _time(seconds: float | None) -> str:
    return (
        "-" if seconds is None else dt.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
    )
