"""`autobatcher files`: the server's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import openai
import typer

from autobatcher.cli.batches import as_object, say_retry, with_client
from autobatcher.cli.common import (
    EXIT_CODES,
    ApiKey,
    AsJson,
    BaseUrl,
    Overwrite,
    print_json,
    say,
    stdout_or,
    told,
)
from autobatcher.cli.tables import print_table, told_time
from autobatcher.display_state import counted
from autobatcher.jobs import files as jobs

COLUMNS = ("id", "purpose", "bytes", "created", "name")
SPARE = ("name", "created", "bytes")

files = typer.Typer(
    help="List, get and delete the server's files.\n\nExample: autobatcher files list",
    epilog=EXIT_CODES,
    no_args_is_help=True,
)


@files.command("list", epilog=EXIT_CODES)
def list_(
    *,
    purpose: Annotated[
        str | None, typer.Option(metavar="PURPOSE", help="Only these: batch, batch_output, ...")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The most files (default: all).", show_default=False)
    ] = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """List files.

    Example: autobatcher files list --purpose batch
    """

    async def run(client: openai.AsyncOpenAI) -> None:
        rows = []
        async for file in jobs.list_files(client, purpose, limit):
            if as_json:
                print_json(as_object(file))
                continue
            names = {"id": "id", "purpose": "purpose", "bytes": "bytes", "name": "filename"}
            row = {name: getattr(file, field, None) for name, field in names.items()}
            told_row = {name: "-" if value is None else str(value) for name, value in row.items()}
            rows.append({**told_row, "created": told_time(getattr(file, "created_at", None))})
        if rows:
            print_table(rows, COLUMNS, SPARE)
        elif not as_json:
            say("There are no files.")

    with_client(base_url, api_key, run)


@files.command(epilog=EXIT_CODES)
def get(
    file_id: Annotated[str, typer.Argument(metavar="ID", help="The file.")],
    *,
    to: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where it goes; - is stdout.")
    ] = Path("-"),
    overwrite: Overwrite = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Download a file.

    Example: autobatcher files get file-abc123 -o input.jsonl
    """

    async def run(client: openai.AsyncOpenAI) -> None:
        place = stdout_or(to)
        size = await jobs.get_file(client, file_id, place, overwrite=overwrite, on_retry=say_retry)
        if isinstance(place, Path):
            say(f"written: {place} ({counted(size, 'byte')})")

    with_client(base_url, api_key, run)


@files.command(epilog=EXIT_CODES)
def delete(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The files.")],
    *,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Delete files at the server.

    Example: autobatcher files delete file-abc123 file-def456
    """

    async def run(client: openai.AsyncOpenAI) -> int:
        code = 0
        for name in ids:
            try:
                with told():
                    deleted = await jobs.delete_file(client, name)
            except typer.Exit as failed:
                code = max(code, failed.exit_code)
                continue
            if as_json:
                print_json(as_object(deleted))
            say(f"deleted: {name}")
        return code

    with_client(base_url, api_key, run)
