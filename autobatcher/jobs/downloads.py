"""The results of a batch as files, and what it left unanswered as another batch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anyio
import msgspec
import openai
from openai.types import Batch

from autobatcher.core.jsonl import MalformedLineError, decode_line
from autobatcher.core.lifecycle import Step
from autobatcher.core.outcomes import Answer, Failure, Trouble
from autobatcher.core.retry import FILE_LAG, REREADS, is_success
from autobatcher.core.window import MAX_LINES
from autobatcher.errors import AutobatcherError
from autobatcher.events import CallRetried
from autobatcher.jobs.batches import Standing, list_batches, standing, status, submit
from autobatcher.jobs.calls import PATIENCE, OnRetry, Tries, error_of, silent
from autobatcher.jobs.disk import free_place, naming, replacing
from autobatcher.jobs.items import InputError
from autobatcher.runtime.upstream import Upstream, UpstreamError
from autobatcher.usage import Bought, Meter, Tokens, added

RETRY_OF = "retry_of"
"""The key in a batch's metadata under which there is the batch whose unanswered requests it has."""

LAG_MOST = 60.0
"""Seconds between readings of files that lag behind their batch."""

UNKNOWN_WINDOW = "24h"
"""What a batch is taken to have that does not say: all servers have it."""

LISTS_NOTHING = frozenset({404, 405, 501})
"""The statuses of servers that have no list of batches."""

CUT_SHORT = 3
"""How often a file is read again whose last line has no end."""

COPY = 2**20
"""Bytes that are copied at once."""


class NotEndedError(AutobatcherError):
    """A batch has not ended, and so it is not certain what it will leave unanswered."""


class RetriedError(AutobatcherError):
    """There is a batch already for what a batch left unanswered; `batch_id` is its id."""

    def __init__(self, batch_id: str, retried: str) -> None:
        super().__init__(f"{batch_id} was retried already, by {retried}")
        self.batch_id = retried


class UnreadError(AutobatcherError):
    """The result files of an ended batch lack answers that the server counts: they would be bought again.

    Attributes:
        batch_id: the batch.
        unread: how many answers are not there, as far as that is known.
    """

    def __init__(self, batch_id: str, unread: int) -> None:
        super().__init__(
            f"{batch_id}: by the server's counts {unread:,} more answered than its result files show: they may be late,"
            " and would be bought again"
        )
        self.batch_id, self.unread = batch_id, unread


@dataclass(frozen=True)
class Counts:
    """What the result files of a batch hold.

    Attributes:
        standing: how the batch stood.
        answered: lines with an answer.
        failed: lines with an error.
        malformed: lines that are neither.
        used: the tokens of the answers, by the models that they name, for `autobatcher.usage.Usage.of`.
    """

    standing: Standing
    answered: int
    failed: int
    malformed: int
    used: Mapping[Bought, Tokens]

    @property
    def lines(self) -> int:
        """All of them."""
        return self.answered + self.failed + self.malformed

    @property
    def missing(self) -> int | None:
        """Requests without a line; None if the server does not say how many there are."""
        total = self.standing.total
        return None if total is None else max(total - self.lines, 0)

    @property
    def unread(self) -> int:
        """Answers of an ended batch that the server counts and its files do not have (yet).

        Servers may count failed requests among the completed ones: then all lines are there, though fewer answers. One
        is unread at least where a batch is completed, nothing is counted, and there is no line.
        """
        stands, read = self.standing, self.answered + self.failed
        if not stands.ended:
            return 0
        if stands.completed is None:
            lost = stands.status == "completed" and not read and stands.total != 0
            return (stands.total or 1) if lost else 0
        due = stands.completed + (stands.failed or 0)
        due = due if stands.total is None else min(due, max(stands.total, stands.completed))
        return max(min(stands.completed - self.answered, due - read), 0)

    @property
    def all_answered(self) -> bool:
        """Whether the batch is completed and every request has an answer."""
        complete = self.standing.status == "completed" and not self.missing
        return complete and not self.failed and not self.malformed


async def results(
    client: openai.AsyncOpenAI,
    batch_id: str,
    to: str | os.PathLike[str] | IO[bytes],
    *,
    errors_to: str | os.PathLike[str] | IO[bytes] | None = None,
    overwrite: bool = False,
    patience: float = PATIENCE,
    on_retry: OnRetry = silent,
) -> Counts:
    """Download the results of a batch: of one that goes on, those that the server shows already.

    Files are written under temporary names beside their own, and get these when they are whole. None is made for no
    lines.

    Args:
        client: reaches the server.
        batch_id: the batch.
        to: where the lines of the output file go: a file, or a stream that is open.
        errors_to: where those of the error file go, likewise; None: to the same place, after the others.
        overwrite: whether files that are there are replaced; one that would have no lines is deleted then.
        patience: seconds for which a download may fail on end, in ways that may pass.
        on_retry: is told of such failures, and of readings of files that lag behind their batch.

    Raises:
        FileExistsError: a file is there.
        InputError: that is no id; or both places are one file.
        OSError: a file cannot be written.
        openai.OpenAIError: the server cannot be reached, or does not know the batch or a file of it.
    """
    paths = [Path(place) for place in (to, errors_to) if isinstance(place, (str, os.PathLike))]
    if len(paths) > 1 and paths[0].resolve() == paths[1].resolve():
        raise InputError(f"{paths[1]}: errors cannot have a file of their own that is the results' file")
    for path in paths:
        free_place(path, overwrite=overwrite)
    batch = await status(client, batch_id)
    with written(to, overwrite=overwrite) as outputs:
        if errors_to is None:
            return await _Reader(client, batch, patience, on_retry).read_into(outputs, outputs)
        with written(errors_to, overwrite=overwrite) as errors:
            return await _Reader(client, batch, patience, on_retry).read_into(outputs, errors)


@contextmanager
def written(
    to: str | os.PathLike[str] | IO[bytes], *, overwrite: bool, even_if_empty: bool = False
) -> Iterator[IO[bytes]]:
    """A file to write to, which gets to its place at the end, unless an error ends it."""
    if not isinstance(to, (str, os.PathLike)):
        with naming(tempfile.gettempdir()), tempfile.TemporaryFile(prefix="autobatcher-") as file:
            yield file
            file.seek(0)
            with naming(getattr(to, "name", "the stream")):
                while piece := file.read(COPY):
                    to.write(piece)
                to.flush()
        return
    path = Path(to)
    free_place(path, overwrite=overwrite)
    with replacing(path) as temporary:
        with temporary.open("w+b") as file:
            yield file
            size = file.tell()
        free_place(path, overwrite=overwrite)
        if not size and not even_if_empty:
            temporary.unlink()
            path.unlink(missing_ok=True)


class _Reader:
    """Reads the result files of one batch.

    Attributes:
        batch: as the server gave it last.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        batch: Batch,
        patience: float,
        on_retry: OnRetry,
        *,
        note: Callable[[str, bool], None] = lambda _name, _answered: None,
    ) -> None:
        self._upstream = Upstream(client.with_options(max_retries=0), "", None)
        self.batch, self._standing = batch, standing(batch)
        window: object = getattr(batch, "completion_window", None)
        self._bought_at = str(client.base_url), window if isinstance(window, str) else UNKNOWN_WINDOW
        self._measure_anew()
        self._patience, self._on_retry, self._note = patience, on_retry, note

    async def read_into(self, outputs: IO[bytes] | None, errors: IO[bytes] | None) -> Counts:
        """Write the lines of both files, and again while the ended batch has more answers; which it may name late."""
        starts = {file: file.tell() for file in (outputs, errors) if file is not None}
        for reread in range(REREADS + 1):
            for file, start in starts.items():
                _cut(file, start)
            counts = await self._read_once(outputs, errors)
            if not counts.unread or reread == REREADS:
                break
            delay = min(FILE_LAG * 2**reread, LAG_MOST)
            await self._wait(f"the files lack {counts.unread} of the answers", delay)
            await self._look_again()
        return counts

    async def _look_again(self) -> None:
        """Ask for the batch once more: the ids of its files may come late, too."""
        try:
            batch = await self._upstream.retrieve(self._standing.id)
        except UpstreamError as error:
            self._on_retry(CallRetried(self._standing.id, Step.POLL.value, error.failure.reason, 0.0))
            return
        if standing(batch).ended:
            self.batch, self._standing = batch, standing(batch)

    async def _read_once(self, outputs: IO[bytes] | None, errors: IO[bytes] | None) -> Counts:
        tally = {True: 0, False: 0, None: 0}
        used: dict[Bought, Tokens] = {}
        for file_id, file in (
            (self._standing.output_file_id, outputs),
            (self._standing.error_file_id, errors),
        ):
            if file_id is None:
                continue
            for kind, count in (await self._file(file_id, file)).items():
                tally[kind] += count
            used = added(used, self._meter.counts)
        return Counts(self._standing, tally[True], tally[False], tally[None], used)

    async def _file(self, file_id: str, to: IO[bytes] | None) -> dict[bool | None, int]:
        start = 0 if to is None else to.tell()
        tally: dict[bool | None, int] = {True: 0, False: 0, None: 0}
        self._measure_anew()
        async with aclosing(self.lines(file_id)) as pieces:
            async for lines in pieces:
                if lines is None:
                    tally = dict.fromkeys(tally, 0)
                    self._measure_anew()
                    if to is not None:
                        _cut(to, start)
                    continue
                for line in lines:
                    tally[self._judge(line)] += 1
                if to is not None and lines:
                    to.write(b"\n".join([*lines, b""]))
        return tally

    def _measure_anew(self) -> None:
        self._meter = Meter()
        self._count = self._meter.counter(*self._bought_at)

    def _judge(self, line: bytes) -> bool | None:
        """Whether a line holds an answer; None if it is neither that nor an error."""
        try:
            custom_id, outcome = decode_line(line)
        except MalformedLineError:
            return None
        answered = isinstance(outcome, Answer) and is_success(outcome.status)
        if isinstance(outcome, Answer) and answered:
            self._count(_model(outcome.body), (outcome.body,))
        self._note(custom_id, answered)
        return answered

    async def lines(self, file_id: str) -> AsyncGenerator[list[bytes] | None, None]:
        """The lines of a file, some at a time; None when it is read from its start again."""
        tries = Tries(Step.FETCH, self._patience, self._on_retry, self._standing.id)
        requests = max(self._standing.total or 0, MAX_LINES)
        read = furthest = cuts = 0
        resumes = False
        while True:
            asked = read if resumes else 0
            if read and not asked:
                read = 0
                yield None
            cut = False
            try:
                async with aclosing(self._upstream.read_lines(file_id, asked, requests)) as pieces:
                    async for piece in pieces:
                        resumes = piece.resumes
                        if asked and not resumes:  # any more: these are the first lines again
                            asked = read = 0
                            yield None
                        # A piece that ends where the one before it did is the rest after the last newline.
                        cut = piece.last == read and bool(piece.lines) and not _is_whole(piece.lines[-1])
                        if cut and cuts < CUT_SHORT:
                            break
                        read = piece.last
                        if read > furthest:
                            furthest = read
                            tries.succeeded()
                        yield piece.lines
            except UpstreamError as error:
                resumes = await self._may_resume(tries, error.failure, asked) and resumes
            else:
                if not cut or cuts >= CUT_SHORT:
                    return
                cuts += 1
                await self._wait("a file was cut short", float(cuts))

    async def _may_resume(self, tries: Tries, failure: Failure, asked: int) -> bool:
        """Wait for the next try of a download; whether it may go on from a line."""
        if asked and failure.trouble in (Trouble.REFUSED, Trouble.NOT_FOUND):
            return False
        if failure.trouble not in (Trouble.PASSING, Trouble.BUSY) or not tries.note(failure):
            raise error_of(failure)
        await tries.pause(failure)
        return True

    async def _wait(self, reason: str, delay: float) -> None:
        self._on_retry(CallRetried(self._standing.id, Step.FETCH.value, reason, delay))
        await anyio.sleep(delay)


class _Named(msgspec.Struct):
    model: str = ""


def _model(body: bytes) -> str:
    """The model that an answer says it is of."""
    try:
        return msgspec.json.decode(body, type=_Named).model
    except (ValueError, RecursionError):
        return ""


def _is_whole(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except ValueError:
        return False
    return True


def _cut(file: IO[bytes], size: int) -> None:
    file.seek(size)
    file.truncate()


@dataclass(frozen=True)
class Remaining:
    """What a batch left unanswered.

    Attributes:
        batch: the server's batch, which has ended.
        endpoint: of its requests.
        failed: requests whose line has an error.
        missing: requests without a line.
        answered: those with an answer.
    """

    batch: Batch
    endpoint: str | None
    failed: int
    missing: int
    answered: int

    @property
    def requests(self) -> int:
        """As many as there are lines to send again."""
        return self.failed + self.missing


class _Asked(msgspec.Struct):
    custom_id: str
    url: str | None = None


async def remaining(
    client: openai.AsyncOpenAI,
    batch_id: str,
    to: str | os.PathLike[str] | IO[bytes] | None = None,
    *,
    overwrite: bool = False,
    again: bool = False,
    patience: float = PATIENCE,
    on_retry: OnRetry = silent,
) -> Remaining:
    """The lines of a batch's input file whose requests failed, or have no answer.

    Args:
        client: reaches the server.
        batch_id: a batch that has ended.
        to: where the lines go: a file, or a stream that is open; None: they are only counted.
        overwrite: whether a file that is there is replaced.
        again: whether requests count as left whose answers the server counts, and does not show.
        patience: seconds for which a download may fail on end, in ways that may pass.
        on_retry: is told of such failures.

    Raises:
        NotEndedError: the batch has not ended.
        UnreadError: the result files still lack answers that the server counts, after some minutes of readings.
        FileExistsError: the file is there.
        InputError: that is no id; or the server's input file has a line that is no request.
        OSError: the file cannot be written.
        openai.OpenAIError: the server cannot be reached, or does not know the batch or a file of it.
    """
    batch = await status(client, batch_id)
    stands = standing(batch)
    if not stands.ended:
        raise NotEndedError(
            f"{stands.id} is {stands.status}: what it leaves unanswered is known at its end; cancel it, or wait"
        )
    if stands.input_file_id is None:
        raise InputError(f"{stands.id} has no input file")
    if isinstance(to, (str, os.PathLike)):
        free_place(Path(to), overwrite=overwrite)
    names: dict[str, bool] = {}

    def note(name: str, answered: bool) -> None:  # noqa: FBT001 -- a callback
        names[name] = answered or names.get(name, False)

    reader = _Reader(client, batch, patience, on_retry, note=note)
    counts = await reader.read_into(None, None)
    if counts.unread and not again:
        raise UnreadError(stands.id, counts.unread)
    if to is None:
        return await _remaining_of(reader, names, None)
    with written(to, overwrite=overwrite) as file:
        return await _remaining_of(reader, names, file)


async def _remaining_of(reader: _Reader, names: Mapping[str, bool], to: IO[bytes] | None) -> Remaining:
    batch = reader.batch
    file_id = str(batch.input_file_id)
    number = failed = missing = answered = 0
    url: str | None = None
    async with aclosing(reader.lines(file_id)) as pieces:
        async for lines in pieces:
            if lines is None:
                number = failed = missing = answered = 0
                if to is not None:
                    _cut(to, 0)
                continue
            for line in lines:
                number += 1
                asked = _asked(line, file_id, number)
                url = asked.url if url is None else url
                known = names.get(asked.custom_id)
                if known:
                    answered += 1
                    continue
                missing += known is None
                failed += known is False
                if to is not None:
                    to.write(line + b"\n")
    return Remaining(batch, standing(batch).endpoint or url, failed, missing, answered)


def _asked(line: bytes, file_id: str, number: int) -> _Asked:
    try:
        return msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"), type=_Asked)
    except ValueError as error:  # msgspec's own among them
        raise InputError(f"input file {file_id}: line {number} is no request ({error})") from None


async def retry(
    client: openai.AsyncOpenAI,
    batch_id: str,
    *,
    window: str | None = None,
    metadata: Mapping[str, str] | None = None,
    again: bool = False,
    patience: float = PATIENCE,
    on_retry: OnRetry = silent,
    on_uploaded: Callable[[str], object] = silent,
) -> Batch | None:
    """Send the requests of a batch that failed, or have no answer, in another batch.

    Args:
        client: reaches the server.
        batch_id: a batch that has ended.
        window: within what time the new batch is to be completed; None: as the old one.
        metadata: attached to the new batch, beside `retry_of`, the old one's id; None: that of the old one.
        again: whether to send them though there is a batch already that was made so, or though the server counts answers
            that it does not show.
        patience: seconds for which a call may fail on end, in ways that may pass.
        on_retry: is told of such failures.
        on_uploaded: called with the id of the uploaded file.

    Returns:
        The new batch; None if all requests have an answer.

    Raises:
        RetriedError: there is a batch already that has them.
        NotEndedError: the batch has not ended.
        UnreadError: the result files still lack answers that the server counts, after some minutes of readings.
        InputError: an option is none that servers take; or the server's input file has a line that is no request.
        UncertainError: nobody knows whether there is a batch.
        OSError: there is no room for a temporary file.
        openai.OpenAIError: the server cannot be reached, refuses, or does not know the batch or a file of it.
    """
    batch = await status(client, batch_id)
    name = standing(batch).id
    if not again and (earlier := await retry_of(client, batch)) is not None:
        raise RetriedError(name, earlier)
    given = _texts(getattr(batch, "metadata", None)) if metadata is None else metadata
    wanted = window or getattr(batch, "completion_window", None)
    with tempfile.TemporaryDirectory(prefix="autobatcher-") as folder:
        path = Path(folder) / f"retry-of-{name}.jsonl"
        left = await remaining(client, name, path, again=again, patience=patience, on_retry=on_retry)
        if not left.requests:
            return None
        return await submit(
            client,
            path,
            window=wanted if isinstance(wanted, str) and wanted else "24h",
            metadata={**given, RETRY_OF: name},
            endpoint=left.endpoint,
            patience=patience,
            on_retry=on_retry,
            on_uploaded=on_uploaded,
        )


def _texts(metadata: Any) -> dict[str, str]:
    given = metadata if isinstance(metadata, dict) else {}
    return {key: value for key, value in given.items() if isinstance(key, str) and isinstance(value, str)}


async def retry_of(client: openai.AsyncOpenAI, batch: Batch) -> str | None:
    """The id of a batch, not failed as a whole, that has what this one left unanswered; None if none is known.

    Lists have the newest first: what stands behind the batch itself is older.
    """
    name = standing(batch).id
    try:
        async with aclosing(list_batches(client, None)) as listed:
            async for other in listed:
                other_id = getattr(other, "id", None)
                if other_id == name:
                    return None
                made_of = _texts(getattr(other, "metadata", None)).get(RETRY_OF)
                if made_of == name and getattr(other, "status", None) != "failed":
                    return str(other_id)
    except openai.APIStatusError as error:
        if error.status_code not in LISTS_NOTHING:
            raise
    return None
