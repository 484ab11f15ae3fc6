"""The batch workflow by hand: `submit`, `list`, `status`, `watch`, `results`, `cancel`, `retry`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import openai
import typer
from openai.types import Batch
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from autobatcher.cli.common import (
    SERVER,
    SOME_FAILED,
    USAGE,
    ApiKey,
    AsJson,
    BaseUrl,
    Overwrite,
    connection,
    fail,
    print_json,
    put,
    run_async,
    say,
    stdout_or,
    told,
)
from autobatcher.cli.tables import BATCH_COLUMNS, BATCH_SPARE, batch_row, print_table, table
from autobatcher.cli.usage import GivenPrices, prices_of, say_unused, usage_lines
from autobatcher.display_state import counted, printable
from autobatcher.errors import AutobatcherError
from autobatcher.events import CallRetried
from autobatcher.jobs import batches, downloads
from autobatcher.jobs.batches import Changed, Standing, Update, standing
from autobatcher.jobs.items import InputError
from autobatcher.usage import Usage

MAX_PROBLEMS = 10
"""Errors of a batch that are told."""

BatchId = Annotated[str, typer.Argument(metavar="ID", help="The batch.")]
BatchIds = Annotated[list[str], typer.Argument(metavar="ID...", help="The batches.")]


def open_client(base_url: str | None, api_key: str | None) -> openai.AsyncOpenAI:
    """A client; the process ends with `USAGE` if there can be none."""
    arguments = connection(base_url, api_key)
    try:
        return openai.AsyncOpenAI(api_key=arguments["api_key"], base_url=arguments.get("base_url"))
    except Exception as error:  # noqa: BLE001 -- whatever is wrong with it
        fail(f"the server's URL cannot be used ({type(error).__name__})", USAGE)


def with_client(
    base_url: str | None,
    api_key: str | None,
    function: Callable[[openai.AsyncOpenAI], Awaitable[int | None]],
    **options: Any,
) -> None:
    """Run what uses a client, which gives the exit code; options are those of `run_async`."""
    client = open_client(base_url, api_key)

    async def run() -> int | None:
        async with client:
            return await function(client)

    code = run_async(run, **options)
    if code:
        raise typer.Exit(code)


def as_object(model: openai.BaseModel) -> dict[str, Any]:
    """The server's object, with all that it sent and nothing else."""
    return model.to_dict(mode="json", warnings=False)


def say_retry(retried: CallRetried) -> None:
    """A line about a failure that may pass."""
    name = "" if retried.batch_id is None else f"{printable(retried.batch_id)}: "
    again = f"again in {retried.delay:.0f} s" if retried.delay else "looking whether it had its effect"
    say(f"{name}{retried.step}: {printable(retried.reason)}; {again}")


def parsed_metadata(pairs: Sequence[str]) -> dict[str, str] | None:
    """Metadata from texts "key=value"; None for none.

    Raises:
        InputError: a text is none.
    """
    metadata: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--metadata takes key=value, not {pair!r}")
        if key in metadata:
            raise InputError(f"--metadata has {key!r} twice")
        metadata[key] = value
    return metadata or None


Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="KEY=VALUE",
        help="Attach this to the batch; may be given up to 16 times.",
        show_default=False,
    ),
]


def submit(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Batch files (JSONL).")],
    *,
    window: Annotated[
        str, typer.Option(metavar="WINDOW", help="Within what time: 24h, 1h, or what the server takes.")
    ] = "24h",
    metadata: Metadata = None,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Upload batch files and make a batch of each; prints the batches' ids on stdout, one per line.

    Example: id=$(autobatcher submit requests.jsonl --window 1h --metadata job=nightly)
    """
    with told():
        pairs = parsed_metadata(metadata or ())
        batches.check_options(window, pairs)
        for number, file in enumerate(files):
            if file in files[:number]:
                raise InputError(f"{file} is given twice")
            batches.first_url(file)

    async def run(client: openai.AsyncOpenAI) -> None:
        for file in files:
            say(f"{file}:")
            with _uploading(file) as moved:
                batch = await batches.submit(
                    client,
                    file,
                    window=window,
                    metadata=pairs,
                    on_retry=say_retry,
                    on_uploaded=_say_uploaded,
                    on_read=moved,
                )
            _made(batch, as_json=as_json)

    with_client(base_url, api_key, run, then="submit the files for which no batch was printed")


def _say_uploaded(file_id: str) -> None:
    say(f"uploaded as {file_id}")


def _made(batch: Batch, *, as_json: bool) -> None:
    stands = standing(batch)
    say(f"{stands.id}: {stands.status}")
    if as_json:
        print_json(as_object(batch))
    else:
        put(stands.id)


@contextmanager
def _uploading(file: Path) -> Iterator[Callable[[int], None]]:
    """A progress bar, if stderr is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(printable(file.name), total=file.stat().st_size)
        yield lambda read: bar.update(task, completed=read)


def list_(
    *,
    limit: Annotated[int, typer.Option(min=1, help="The most batches.")] = 20,
    every: Annotated[bool, typer.Option("--all", help="All of them, however many.")] = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """List the server's batches, the newest first.

    Example: autobatcher list --limit 50
    """

    async def run(client: openai.AsyncOpenAI) -> None:
        rows = []
        async for batch in batches.list_batches(client, None if every else limit):
            if as_json:
                print_json(as_object(batch))
                continue
            try:
                rows.append(batch_row(standing(batch)))
            except AutobatcherError as error:
                say(f"autobatcher: left out: {error}")
        if rows:
            print_table(rows, BATCH_COLUMNS, BATCH_SPARE)
        elif not as_json:
            say("There are no batches.")

    with_client(base_url, api_key, run)


def status(
    ids: BatchIds, *, as_json: AsJson = False, base_url: BaseUrl = None, api_key: ApiKey = None
) -> None:
    """Show how batches stand now, and on stderr what the server says is wrong with them.

    Example: autobatcher status batch_abc123
    """

    async def run(client: openai.AsyncOpenAI) -> int:
        return await _for_each(ids, lambda name: batches.status(client, name), as_json=as_json)

    with_client(base_url, api_key, run)


def cancel(
    ids: BatchIds, *, as_json: AsJson = False, base_url: BaseUrl = None, api_key: ApiKey = None
) -> None:
    """Cancel batches, and show how they stand; what they have answered until then can be had with `results`.

    Example: autobatcher cancel batch_abc123
    """

    async def run(client: openai.AsyncOpenAI) -> int:
        return await _for_each(ids, lambda name: batches.cancel(client, name), as_json=as_json)

    with_client(base_url, api_key, run)


async def _for_each(ids: Sequence[str], function: Callable[[str], Awaitable[Batch]], *, as_json: bool) -> int:
    """Print what a function gives for each id; the exit code, after those that failed were told."""
    code, rows = 0, []
    for name in ids:
        try:
            with told():
                batch = await function(name)
                rows.append(standing(batch))
        except typer.Exit as failed:
            code = max(code, failed.exit_code)
            continue
        if as_json:
            print_json(as_object(batch))
    if rows and not as_json:
        print_table([batch_row(row) for row in rows], BATCH_COLUMNS, BATCH_SPARE)
    for row in rows:
        _say_problems(row)
    return code


def _say_problems(stands: Standing) -> None:
    for problem in stands.problems[:MAX_PROBLEMS]:
        say(f"{stands.id}: {printable(problem)}")
    if len(stands.problems) > MAX_PROBLEMS:
        say(f"{stands.id}: and {counted(len(stands.problems) - MAX_PROBLEMS, 'more error')}")


def watch(
    ids: BatchIds,
    *,
    poll_interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="Between two looks at a batch, at first.")
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per change.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Watch batches until all have ended.

    Exits with 1 unless all are completed without a failed request.

    Example: autobatcher watch batch_abc123 && autobatcher results batch_abc123 -o results.jsonl
    """

    async def run(client: openai.AsyncOpenAI) -> int:
        with _shown(as_json=as_json) as show:
            ended = [standing(batch) for batch in await batches.watch(client, ids, show, poll_interval)]
        for stands in ended:
            _say_problems(stands)
        return 0 if all(stands.all_answered for stands in ended) else SOME_FAILED

    with_client(base_url, api_key, run)


@contextmanager
def _shown(*, as_json: bool) -> Iterator[Callable[[Update], None]]:
    """What shows the updates of a watch: JSON on stdout, else a table that changes on a terminal, else lines."""
    console = Console(stderr=True)
    rows: dict[str, dict[str, str]] = {}

    def show_json(update: Update) -> None:
        if isinstance(update, Changed):
            print_json(as_object(update.batch))
        else:
            say_retry(update)

    def show_line(update: Update) -> None:
        if isinstance(update, Changed):
            row = batch_row(update.standing)
            say(f"{row['id']}: {printable(row['status'])} {row['done/failed/total']}")
        else:
            say_retry(update)

    if as_json or not console.is_terminal:
        yield show_json if as_json else show_line
        return
    with Live(console=console, auto_refresh=False) as live:

        def show_table(update: Update) -> None:
            if isinstance(update, Changed):
                rows[update.standing.id] = batch_row(update.standing)
                made, _ = table(list(rows.values()), BATCH_COLUMNS, BATCH_SPARE, console.width)
                live.update(made, refresh=True)
            else:
                say_retry(update)

        yield show_table


def results(
    batch_id: BatchId,
    *,
    to: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Where answers go; - is stdout.")
    ] = Path("-"),
    errors_to: Annotated[
        Path | None,
        typer.Option(
            "--errors",
            metavar="FILE",
            help="Where errors go; - is stdout (default: FILE.errors.jsonl beside the answers' FILE.jsonl; with stdout,"
            " there).",
        ),
    ] = None,
    overwrite: Overwrite = False,
    price: GivenPrices = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Download the results of a batch: its answers, and its errors beside them, as the server's lines.

    Of a batch that goes on, those that the server shows already. Exits with 1 unless every request has an answer.

    Example: autobatcher results batch_abc123 -o results.jsonl
    """
    prices = prices_of(price)
    place = stdout_or(to)
    if errors_to is None:
        errors_to = to.with_name(f"{to.stem}.errors{to.suffix}") if isinstance(place, Path) else to
    errors_place = stdout_or(errors_to)

    async def run(client: openai.AsyncOpenAI) -> int:
        counts = await downloads.results(
            client,
            batch_id,
            place,
            errors_to=None if errors_place is place else errors_place,
            overwrite=overwrite,
            on_retry=say_retry,
        )
        _say_counts(counts, [path for path in (place, errors_place) if isinstance(path, Path)])
        for line in usage_lines(Usage.of(counts.used, prices)):
            say(line)
        say_unused(price, (bought.model for bought in counts.used))
        return 0 if counts.all_answered else SOME_FAILED

    with_client(base_url, api_key, run)


def _say_counts(counts: downloads.Counts, paths: Sequence[Path]) -> None:
    parts = [f"{counts.answered:,} answered", f"{counts.failed:,} failed"]
    if counts.missing is not None:
        parts.append(f"{counts.missing:,} without a result")
    if counts.malformed:
        parts.append(f"{counted(counts.malformed, 'line')} of neither an answer nor an error")
    say(f"{counts.standing.id} is {printable(counts.standing.status)}: {', '.join(parts)}")
    for path in paths:
        if path.exists():
            say(f"written: {path}")
    _say_problems(counts.standing)


def retry(
    batch_id: BatchId,
    *,
    window: Annotated[
        str | None, typer.Option(metavar="WINDOW", help="As for `submit` (default: the batch's).")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--metadata",
            metavar="KEY=VALUE",
            help="As for `submit` (default: the batch's). The new batch has retry_of=ID as well.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    to: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the lines here, and submit nothing."),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Though the batch was retried already, or lacks answers that it counts."
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Send the requests of an ended batch that failed, or have no answer, in a new batch; prints its id on stdout.

    Example: autobatcher retry batch_abc123 --window 1h
    """
    with told():
        pairs = parsed_metadata(metadata or ())
        batches.check_options("24h" if window is None else window, pairs)

    async def run(client: openai.AsyncOpenAI) -> None:
        try:
            if dry_run or to is not None:
                place = None if dry_run or to is None else stdout_or(to)
                left = await downloads.remaining(
                    client, batch_id, place, overwrite=overwrite, again=again, on_retry=say_retry
                )
                _say_remaining(left, to if isinstance(place, Path) else None)
                return
            batch = await downloads.retry(
                client,
                batch_id,
                window=window,
                metadata=pairs,
                again=again,
                on_retry=say_retry,
                on_uploaded=_say_uploaded,
            )
        except downloads.RetriedError as error:
            fail(f"{error}; --again sends its requests once more", USAGE)
        except downloads.NotEndedError as error:
            fail(str(error), USAGE)
        except downloads.UnreadError as error:
            fail(f"{error}; try it later, or send them once more with --again", SERVER)
        if batch is None:
            say("All requests have an answer: there is nothing to retry.")
        else:
            _made(batch, as_json=as_json)

    with_client(base_url, api_key, run)


def _say_remaining(left: downloads.Remaining, path: Path | None) -> None:
    stands = standing(left.batch)
    say(
        f"{stands.id} is {printable(stands.status)}: {counted(left.requests, 'request')} to send again"
        f" ({left.failed:,} failed, {left.missing:,} without a result); {left.answered:,} answered"
    )
    if path is not None and path.exists():
        say(f"written: {path}")
