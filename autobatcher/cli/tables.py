"""Tables of what the server has; ids are whole in them, to be copied, however narrow the screen is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from autobatcher.display_state import printable
from autobatcher.jobs.batches import Standing
from autobatcher.jobs.disk import naming

BATCH_COLUMNS = ("id", "status", "done/failed/total", "created", "endpoint", "file")
BATCH_SPARE = ("file", "endpoint", "created")
"""What a table of batches does without, where the screen is too narrow for all of it."""

GAP = 2


def batch_row(stands: Standing) -> dict[str, str]:
    """The cells of a batch's row."""
    counts = (stands.completed, stands.failed, stands.total)
    return {
        "id": stands.id,
        "status": stands.status,
        "done/failed/total": "/".join("-" if count is None else str(count) for count in counts),
        "created": told_time(stands.created_at),
        "endpoint": stands.endpoint or "-",
        "file": stands.input_file_id or "-",
    }


def told_time(seconds: object) -> str:
    """A moment, given in seconds since 1970, in local time; "-" if it is none."""
    if not isinstance(seconds, (int, float)) or not 0 < seconds < 2**33:
        return "-"
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def table(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str], spare: Sequence[str], width: int | None
) -> tuple[Table, int]:
    """A table that is no wider than so many characters if that can be had without these columns, and its width."""
    rows = [{name: printable(row[name]) for name in columns} for row in rows]
    widths = {name: max(cell_len(text) for text in (name, *(row[name] for row in rows))) for name in columns}
    names = list(columns)
    for name in spare:
        if width is None or _total(widths, names) <= width:
            break
        names.remove(name)
    made = Table(
        *(Column(name, no_wrap=True, min_width=widths[name]) for name in names), box=None, pad_edge=False
    )
    for row in rows:
        made.add_row(*(Text(row[name]) for name in names))
    return made, _total(widths, names)


def _total(widths: Mapping[str, int], names: Sequence[str]) -> int:
    return sum(widths[name] for name in names) + GAP * (len(names) - 1)


def print_table(rows: Sequence[Mapping[str, str]], columns: Sequence[str], spare: Sequence[str]) -> None:
    """A table on stdout; where that is no terminal, all of it."""
    console = Console()
    made, width = table(rows, columns, spare, console.width if console.is_terminal else None)
    console.width = max(console.width, width)
    put_rich(console, made, crop=False)


def put_rich(console: Console, made: RenderableType, **options: Any) -> None:
    """Something of rich's on stdout."""
    with naming("<stdout>"):
        console.print(made, **options)
