"""From a file of requests to a file of results, through the client's core, and on from where it was cut short."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import msgspec

from autobatcher.core.endpoints import model_name, weight
from autobatcher.core.outcomes import Answer, CallFailed, Outcome
from autobatcher.core.retry import is_success
from autobatcher.core.window import MAX_LINES, OversizedError
from autobatcher.errors import JournalError
from autobatcher.jobs.calls import reach
from autobatcher.jobs.disk import free_place, name_file, replacing
from autobatcher.jobs.items import InputError, Item, Source
from autobatcher.jobs.outputs import CUT_OFF, REFUSED, Results, parquet_library, shortcoming
from autobatcher.jobs.sources import files_below
from autobatcher.usage import Bought, Meter, Tokens

if TYPE_CHECKING:
    from autobatcher.client import Batching
    from autobatcher.collector import Collector
    from autobatcher.runtime.driver import Driver

IN_FLIGHT = 500_000
"""Requests that are under way at a time, each in some 800 bytes of memory: ten batches of the largest size."""

FULL_WINDOW_SECONDS = 7 * 86_400.0
"""A file is packed until it is full or the input is at its end, however slowly that is read."""

TABLES = (".csv", ".tsv", ".tab", ".parquet", ".pq")
"""Endings of files that nobody looks for lines of JSON in."""

TICK_SECONDS = 0.25
TURN_SECONDS = 0.01
"""For how long requests are read before all else in the event loop has its turn; images are large, and slow to read."""


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        read, size: bytes of the input that have been read, and that there are.
        requests: that have been read.
        complete: whether these are all.
        answered, failed: what became of them.
        cut_short: whether these are the last numbers, for the run is interrupted or has met an error. What is under way
            then is withdrawn, and has not failed.
    """

    read: int
    size: int
    requests: int
    complete: bool
    answered: int
    failed: int
    cut_short: bool = False


@dataclass(frozen=True)
class Finished:
    """What a run came to.

    Attributes:
        results: the file.
        requests: as many as there were in the input.
        answered, failed: what became of them.
        used: the tokens of the answers that this run bought, for `autobatcher.usage.Usage.of`.
        earlier: those of the answers that the journal had, and of batches that earlier runs had made, which may have had
            another completion window.
        refused: how many of the answered ones the model refused, in `message.refusal` or the like.
        cut_off: how many of the answered ones are not whole: their `finish_reason` is "length" or "content_filter", or
            their `status`, of responses, "incomplete".
        models: of the requests, in the order in which they come first.
    """

    results: Path
    requests: int
    answered: int
    failed: int
    used: Mapping[Bought, Tokens]
    earlier: Mapping[Bought, Tokens]
    refused: int = 0
    cut_off: int = 0
    models: tuple[str, ...] = ()


async def run(
    client: Batching,
    source: Source,
    results: str | os.PathLike[str],
    *,
    full: bool = False,
    overwrite: bool = False,
    batch_size: int = MAX_LINES,
    in_flight: int = IN_FLIGHT,
    on_progress: Callable[[Progress], object] = lambda _: None,
) -> Finished:
    """Answer all requests of a source.

    What is answered is in the journal: the client's, or `RESULTS.journal` beside the results. Run again after it was cut
    short, at whatever moment, it goes on from there. While it runs, `RESULTS.partial` has the answers as they come, as
    lines of a batch's output file; at the end there are the results, in the order of the input.

    Args:
        client: sends the batches; its options hold.
        source: where the requests come from, by `open_source`.
        results: the file: lines of a batch's output file; for tabular input its columns, and `answer` and `error`, in the
            form that the name's ending says (.csv, .jsonl, .parquet).
        full: whether to write lines of an output file for tabular input as well.
        overwrite: whether to replace `results`, if that is there.
        batch_size: the most requests of a batch.
        in_flight: the most requests under way at a time.
        on_progress: called about four times a second, and when the run ends, however it does.

    Raises:
        FileExistsError: `results` is there.
        InputError: the input is not what it should be, or has no requests; what comes before that place may be under
            way, and is kept. Or `RESULTS.partial` is there, and not of an earlier run; or `results` are lines, and are
            named as a table is.
        JournalError: the journal cannot be used, as when another run has it, or be written.
        openai.APIError: the server cannot be reached, or refuses everything.
        OSError: the results, or the requests that wait on disk, cannot be written.
    """
    path = Path(results)
    if path.suffix.lower() in TABLES and (full or source.columns is None):
        what = "whole answers" if full else "the results of a batch file"
        raise InputError(f"{path}: {what} are lines of JSON: name the file .jsonl")
    _free_place(path, source, overwrite=overwrite)
    options: dict[str, Any] = {"batch_size": batch_size, "batch_window_seconds": FULL_WINDOW_SECONDS}
    if client._options.journal is None:  # noqa: SLF001 -- this package's own client, here and below
        options["journal"] = _beside(path, ".journal")
    if source.columns is not None and not full and path.suffix.lower() == ".parquet":
        parquet_library()
    client = client._apart(**options)  # noqa: SLF001 -- so that its calls are counted from the first again
    try:
        job = await _run(
            client, source, path, full=full, overwrite=overwrite, in_flight=in_flight, on_progress=on_progress
        )
    finally:
        await client._collectors.close()  # noqa: SLF001 -- batches go on at the server, and are in the journal
    return Finished(
        path,
        job.requests,
        job.answered,
        job.failed,
        job.bought.counts,
        job.earlier.counts,
        job.shortcomings[REFUSED],
        job.shortcomings[CUT_OFF],
        tuple(job.models),
    )


async def _run(
    client: Batching,
    source: Source,
    path: Path,
    *,
    full: bool,
    overwrite: bool,
    in_flight: int,
    on_progress: Callable[[Progress], object],
) -> _Job:
    read_again = source.columns is not None and not full
    before = _state(source.path) if read_again else None
    with Results(_beside(path, ".partial")) as partial:
        job = _Job(client, source, partial, in_flight, on_progress)
        await job.work()
        if job.unreached is not None and not job.answered:
            raise job.unreached
        if read_again and _state(source.path) != before:
            raise InputError(
                f"{source.path} was changed meanwhile, so that answers cannot be put beside its rows; they are in the"
                " journal, and the same command makes results of the input as it is now"
            )
        if job.requests:
            with replacing(path) as ordered:
                await anyio.to_thread.run_sync(
                    lambda: partial.write_ordered(ordered, source, path.suffix, full=full)
                )
                free_place(path, overwrite=overwrite)
    partial.path.unlink()
    if not job.requests:
        raise InputError(f"{source.path}: has no requests")
    return job


def _state(path: Path) -> int:
    """What changes when the input does, be it a file or those of a folder."""
    names = sorted(files_below(path)) if path.is_dir() else [""]
    stats = (path.joinpath(name).stat() for name in names)
    return hash((*names, *((found.st_size, found.st_mtime_ns, found.st_ino) for found in stats)))


def _free_place(path: Path, source: Source, *, overwrite: bool) -> None:
    free_place(path, overwrite=overwrite)
    if path.resolve() == source.path.resolve():
        raise InputError(f"{path}: the results would replace the input")
    if source.path.resolve() in path.resolve().parents:
        raise InputError(f"{path}: the results would be part of the input")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


class _Row:
    """What the core answers to in place of a caller; `bought`: by this run."""

    __slots__ = ("bought", "custom_id", "job", "model", "number")

    def __init__(self, job: _Job, number: int, custom_id: str, model: str) -> None:
        self.job, self.number, self.custom_id, self.model = job, number, custom_id, model
        self.bought = False

    def set(self, outcome: Outcome) -> None:
        self.job.settle(self, outcome)


class _Job:
    def __init__(
        self,
        client: Batching,
        source: Source,
        partial: Results,
        in_flight: int,
        on_progress: Callable[[Progress], object],
    ) -> None:
        self._client = client
        self._source = source
        self._partial = partial
        self._in_flight = in_flight
        self._on_progress = on_progress
        self._pending = 0
        self._read = 0
        self._complete = False
        self._changed = anyio.Event()
        self._broken: Exception | None = None
        self._over = False
        self.models: dict[str, str] = {}
        self.requests = self.answered = self.failed = 0
        self.shortcomings: Counter[str | None] = Counter()
        self.unreached: Exception | None = None
        self.bought, self.earlier = Meter(), Meter()
        how = str(client.base_url), client._options.completion_window  # noqa: SLF001 -- as above
        self._count_bought, self._count_earlier = self.bought.counter(*how), self.earlier.counter(*how)

    async def work(self) -> None:
        """Read, submit, and wait for the last outcome."""
        collector = self._client._collector  # noqa: SLF001
        driver = self._client._collectors.driver(collector)  # noqa: SLF001
        assert driver is not None  # noqa: S101 -- it is nobody else's to close
        cut_short = True
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tick)
                await self._submit_all(collector, driver)
                driver.flush()
                await self._until_pending(0)
                tasks.cancel_scope.cancel()
            cut_short = False
        except Exception as group:  # noqa: BLE001 -- whatever it is
            error = _only(group)
            raise error from error.__cause__
        finally:
            self._over = True
            self._report(cut_short=cut_short)

    async def _submit_all(self, collector: Collector, driver: Driver) -> None:
        reached = False
        turn = time.monotonic() + TURN_SECONDS
        for item in self._source.items(self._moved):
            self._submit(item, collector, driver)
            if self._pending and not reached:
                reached = True
                await reach(self._client)  # later on, what fails is tried again for a long time
            if self._pending >= self._in_flight:
                driver.flush()  # what waits for a full file may be all there is
                await self._until_pending(self._in_flight * 9 // 10)
            if time.monotonic() >= turn:
                await anyio.lowlevel.checkpoint()
                turn = time.monotonic() + TURN_SECONDS
            self._check()
        self._complete = True

    def _submit(self, item: Item, collector: Collector, driver: Driver) -> None:
        try:
            fields = msgspec.json.decode(item.body)
        except ValueError as error:
            raise InputError(f"{self._source.path}: {item.custom_id}: the body is no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InputError(f"{self._source.path}: {item.custom_id}: the body is no JSON object")
        model = model_name(fields)
        model = self.models.setdefault(model, model)
        path = _below_version(item.url)
        row = _Row(self, self.requests, item.custom_id, model)
        self.requests += 1
        self._pending += 1
        try:
            entry = collector.entry(
                path,
                model,
                item.body,
                weight=weight(path, fields),
                retries=self._client.max_retries,
                fields=fields,
                on_disk=True,
            )
            followed = driver.submit(entry, row)
        except OversizedError as error:
            raise InputError(f"{self._source.path}: {item.custom_id}: {error}") from None
        except OSError as error:
            name_file(error, tempfile.gettempdir())  # where it waits
            raise
        row.bought = followed is entry and entry.place is not None  # else an earlier run has, or the journal

    def settle(self, row: _Row, outcome: Outcome) -> None:
        """The core's answer for a row."""
        if self._over:
            return
        self._pending -= 1
        if isinstance(outcome, Answer) and is_success(outcome.status):
            self.answered += 1
            count = self._count_bought if row.bought else self._count_earlier
            count(row.model, (outcome.body,))
            self.shortcomings[shortcoming(outcome.body)] += 1
        else:
            self.failed += 1
        if isinstance(outcome, CallFailed) and isinstance(outcome.cause, Exception):
            self.unreached = outcome.cause
            if isinstance(
                outcome.cause, JournalError
            ):  # what it cost is kept at the server, for the next run
                self._broken = outcome.cause
        try:
            self._partial.put(row.number, row.custom_id, outcome)
        except Exception as error:  # noqa: BLE001 -- the core is not to end by what its callers do
            self._broken = error
        self._changed.set()

    async def _until_pending(self, most: int) -> None:
        while self._pending > most:
            self._check()
            self._changed = anyio.Event()
            await self._changed.wait()
        self._check()

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _moved(self, read: int) -> None:
        self._read = read

    async def _tick(self) -> None:
        while True:
            self._tell()
            await anyio.sleep(TICK_SECONDS)

    def _tell(self) -> None:
        self._partial.flush()
        self._report()

    def _report(self, *, cut_short: bool = False) -> None:
        self._on_progress(
            Progress(
                self._source.size if self._complete else self._read,
                self._source.size,
                self.requests,
                self._complete,
                self.answered,
                self.failed,
                cut_short,
            )
        )


def _only(error: Exception) -> Exception:
    """What a task group raised, or the first of several such things."""
    while inner := getattr(error, "exceptions", None):
        error = inner[0]
    return error


def _below_version(url: str) -> str:
    """The path below the base URL that the url of a line names."""
    path = url.strip("/")
    first, _, rest = path.partition("/")
    return rest if rest and first[:1] == "v" and first[1:2].isdigit() else path
