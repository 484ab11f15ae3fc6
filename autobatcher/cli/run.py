"""`autobatcher run`: from a file to answers."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer

from autobatcher import BatchOpenAI
from autobatcher.cli.batches import Metadata, parsed_metadata
from autobatcher.cli.common import (
    SOME_FAILED,
    STDOUT,
    USAGE,
    ApiKey,
    BaseUrl,
    MaxActiveBatches,
    MaxEnqueuedTokens,
    Window,
    connection,
    fail,
    print_json,
    run_async,
    say,
    told,
)
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
from autobatcher.cli.usage import (
    GivenPrices,
    earlier_lines,
    prices_of,
    say_unused,
    tokens_json,
    usage_json,
    usage_lines,
)
from autobatcher.core.window import MAX_LINES
from autobatcher.display import Display
from autobatcher.display_state import counted
from autobatcher.events import BatchProgressed, BatchSettled, BatchSubmitted, Event
from autobatcher.jobs.items import Source
from autobatcher.jobs.running import IN_FLIGHT, Finished, Progress
from autobatcher.jobs.running import run as run_job
from autobatcher.jobs.template import CHAT
from autobatcher.usage import Usage


def run(
    path: Input,
    results: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="RESULTS",
            help="The results: of a batch file lines of an output file, of a table its columns, answer and error, as"
            " .csv, .jsonl or .parquet. Beside it is RESULTS.journal, from which the same command goes on after it was"
            " cut short; delete that, when you are done.",
        ),
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
    full: Annotated[
        bool, typer.Option("--full", help="Of a table, too, the whole answers, as lines of an output file.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace RESULTS; what the journal has is not bought again.")
    ] = False,
    window: Window = "24h",
    metadata: Metadata = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_LINES, help="The most requests of a batch.")
    ] = MAX_LINES,
    max_active_batches: MaxActiveBatches = None,
    max_enqueued_tokens: MaxEnqueuedTokens = None,
    in_flight: Annotated[
        int,
        typer.Option(
            "--in-flight", min=1, help="The most requests under way at a time; each takes some memory."
        ),
    ] = IN_FLIGHT,
    poll_interval: Annotated[
        float, typer.Option("--poll-interval", min=0.01, help="Seconds between polls of a young batch.")
    ] = 5.0,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    price: GivenPrices = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what it came to as one JSON object.")
    ] = False,
) -> None:
    """Answer every request of a file, or every row of a table, at batch prices.

    What is answered is kept as it comes: interrupted and run again, it goes on where it was, and pays for nothing twice.

    Example: autobatcher run texts.csv -o answers.csv --model gpt-4o-mini --prompt "Summarise: {text}"
    """
    prices = prices_of(price)
    if str(results) == STDOUT:
        fail("results are a file, beside which there is a journal: not -", USAGE)
    with told():
        pairs = parsed_metadata(metadata or ())
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
    options = {
        **connection(base_url, api_key),
        "completion_window": window,
        "batch_metadata": pairs,
        "max_active_batches": max_active_batches,
        "max_enqueued_tokens": max_enqueued_tokens,
        "poll_interval_seconds": poll_interval,
    }
    job = _Job(
        source,
        results,
        {"full": full, "overwrite": overwrite, "batch_size": batch_size, "in_flight": in_flight},
    )
    try:
        done = run_async(
            lambda: job.work(options),
            then="run the same command again: nothing is paid for twice",
            interrupted=job.interrupted,
        )
    except typer.Exit as ended:
        if ended.exit_code == USAGE:
            job.refused()
        raise
    _tell(done, Usage.of(done.used, prices), Usage.of(done.earlier), as_json=as_json)
    say_unused(price, done.models)
    raise typer.Exit(SOME_FAILED if done.failed else 0)


class _Job:
    def __init__(self, source: Source, results: Path, options: dict[str, Any]) -> None:
        self._source, self._results, self._options = source, results, options
        self._last: Progress | None = None
        self._under_way: set[str] = set()

    async def work(self, client_options: dict[str, Any]) -> Finished:
        logging.getLogger("autobatcher").addHandler(logging.NullHandler())  # the display says it all
        display = Display()

        def note(progress: Progress) -> None:
            self._last = progress
            if not progress.cut_short:
                display.overall(progress)

        def show(event: Event) -> None:
            if self._cut_short:  # of batches that are let go of, which have not failed
                return
            if isinstance(event, (BatchSubmitted, BatchProgressed)):
                self._under_way.add(event.batch_id)
            elif isinstance(event, BatchSettled):
                self._under_way.discard(event.batch_id or "")
            display.show(event)

        try:
            async with BatchOpenAI(**client_options, on_event=show) as client:
                return await run_job(client, self._source, self._results, **self._options, on_progress=note)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: display.close(cut_short=self._cut_short))

    @property
    def _cut_short(self) -> bool:
        return self._last is not None and self._last.cut_short

    def interrupted(self) -> None:
        """What somebody is to know who has pressed Ctrl-C."""
        last = self._last
        if last is not None:
            say(f"interrupted: {last.answered:,} answered of {last.requests:,} that were read")
        say("the same command goes on from here; batches go on at the server meanwhile")

    def refused(self) -> None:
        """What somebody is to know whose input is faulty further down: what was read before may have been sent."""
        last = self._last
        if last is None or not last.cut_short or last.complete:
            return
        if self._source.columns is None:
            say(f"autobatcher validate {shlex.quote(str(self._source.path))} shows all problems")
        kept = [f"{counted(last.answered, 'answer')} in the journal"] if last.answered else []
        if self._under_way:
            number = len(self._under_way)
            kept.append(f"{number:,} {'batch' if number == 1 else 'batches'} under way at the server")
        if kept:
            say(f"{' and '.join(kept)}; the same command goes on from there")


def _tell(done: Finished, usage: Usage, earlier: Usage, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "results": str(done.results),
                "requests": done.requests,
                "answered": done.answered,
                "failed": done.failed,
                "refused": done.refused,
                "cut_off": done.cut_off,
                "usage": usage_json(usage),
                "earlier": tokens_json(earlier),
            }
        )
    short = {"refused": done.refused, "cut off": done.cut_off}
    told = ", ".join(f"{number:,} {name}" for name, number in short.items() if number)
    say(
        f"{counted(done.requests, 'request')}: {done.answered:,} answered{told and f' ({told})'},"
        f" {done.failed:,} failed; {done.results}"
    )
    for line in (*usage_lines(usage), *earlier_lines(earlier)):
        say(line)
