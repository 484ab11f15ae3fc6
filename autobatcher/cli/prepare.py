"""`autobatcher prepare`: batch files from whatever there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from autobatcher.cli.common import STDOUT, USAGE, AsJson, fail, print_json, put, say, told
from autobatcher.cli.inputs import (
    Endpoint,
    Images,
    Input,
    Kind,
    Model,
    Prompt,
    Schema,
    Settings,
    System,
    Tools,
    source_of,
)
from autobatcher.core.window import MAX_BYTES, MAX_LINES
from autobatcher.display_state import counted
from autobatcher.jobs.items import Source
from autobatcher.jobs.packing import prepare as write_files
from autobatcher.jobs.template import CHAT

MaxRequests = Annotated[
    int, typer.Option("--max-requests", min=1, help="The most requests of a file (inputs, of embeddings).")
]
MaxBytes = Annotated[int, typer.Option("--max-bytes", min=1, help="The most bytes of a file.")]


def prepare(
    path: Input,
    to: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the batch files are to be.")
    ],
    *,
    model: Model = None,
    prompt: Prompt = None,
    system: System = None,
    schema: Schema = None,
    tools: Tools = None,
    images: Images = None,
    settings: Settings = None,
    endpoint: Endpoint = CHAT,
    kind: Kind = None,
    max_requests: MaxRequests = MAX_LINES,
    max_bytes: MaxBytes = MAX_BYTES,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace batch files of the same names.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make batch files of a table, or split a batch file: one endpoint and model a file, within the servers' limits.

    Prints the files' names.

    Example: autobatcher prepare texts.csv --model M --prompt "Summarise: {text}" -o batches
    """
    if str(to) == STDOUT:
        fail("batch files go into a folder: not -", USAGE)
    with told():
        source = source_of(
            path,
            model=model,
            prompt=prompt,
            system=system,
            schema=schema,
            tools=tools,
            images=images,
            settings=settings,
            endpoint=endpoint,
            kind=kind,
        )
        with reading(source) as moved:
            files = write_files(
                source,
                to,
                max_requests=max_requests,
                max_bytes=max_bytes,
                on_read=moved,
                overwrite=overwrite,
            )
        for file in files:
            if as_json:
                print_json({"file": str(file), "bytes": file.stat().st_size})
            else:
                put(file)
        size = sum(file.stat().st_size for file in files)
        say(f"{counted(len(files), 'batch file')}, {counted(size, 'byte')}")


@contextmanager
def reading(source: Source) -> Iterator[Callable[[int], object]]:
    """A bar on stderr, if that is a terminal, for the bytes of the source; it is moved by what this gives."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=source.size)
        yield lambda read: progress.update(task, completed=read)
