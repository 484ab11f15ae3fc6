"""The batch workflow by hand: make batches of files, look at them, cancel them.

A batch is the server's object, as the SDK gives it; what it lacks or has wrong, `standing` makes up for.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec
import openai
from openai.types import Batch

from autobatcher.core.lifecycle import TERMINAL_STATUSES, Step
from autobatcher.core.outcomes import Trouble
from autobatcher.core.retry import LOOK_UP_INTERVAL, LOOK_UP_SECONDS, PollSchedule
from autobatcher.errors import AutobatcherError
from autobatcher.events import CallRetried
from autobatcher.jobs.calls import (
    PATIENCE,
    OnRetry,
    Tries,
    checked_id,
    error_of,
    name_of,
    paged,
    reach,
    silent,
    understood,
)
from autobatcher.jobs.items import InputError
from autobatcher.options import BatchOptions
from autobatcher.runtime.upstream import MAX_RESULT_LINE, Upstream, UpstreamError, described, translated

WATCHED_AT_ONCE = 8
"""Polls under way at a time."""


class UncertainError(AutobatcherError):
    """It is not known whether the server made a batch of a file; `file_id` is that file."""

    def __init__(self, file_id: str, cause: BaseException) -> None:
        super().__init__(
            f"it is not known whether a batch was made of {file_id} ({cause}); `autobatcher list` shows it if so"
        )
        self.file_id = file_id


@dataclass(frozen=True)
class Standing:
    """How a batch stands, as far as the server says so.

    Attributes:
        id: its id.
        status: the server's word in small letters, with "canceled" as "cancelled".
        completed, failed, total: the server's counts of requests; None where it gives none.
        endpoint: such as "/v1/chat/completions"; None if it is not said, as with the others below.
        created_at: seconds since 1970.
        input_file_id, output_file_id, error_file_id: its files; empty ids are None.
        problems: what the server lists as the batch's errors, as texts.
    """

    id: str
    status: str
    completed: int | None
    failed: int | None
    total: int | None
    endpoint: str | None
    created_at: float | None
    input_file_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    problems: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether it will not change any more."""
        return self.status in TERMINAL_STATUSES

    @property
    def all_answered(self) -> bool:
        """Whether it is completed, and the server counts no failed request."""
        short = self.total is not None and self.completed is not None and self.completed < self.total
        return self.status == "completed" and not self.failed and not short


def standing(batch: Batch) -> Standing:
    """How a batch stands.

    Raises:
        OddAnswerError: the server's object has no id, or no status.
    """
    snapshot = described(batch)
    created = getattr(batch, "created_at", None)
    endpoint, file_id = getattr(batch, "endpoint", None), getattr(batch, "input_file_id", None)
    return Standing(
        id=snapshot.id,
        status=snapshot.status,
        **{name: _count(batch, name) for name in ("completed", "failed", "total")},
        endpoint=endpoint if isinstance(endpoint, str) and endpoint else None,
        created_at=created if _is_time(created) else None,
        input_file_id=file_id if isinstance(file_id, str) and file_id else None,
        output_file_id=snapshot.output_file_id,
        error_file_id=snapshot.error_file_id,
        problems=tuple(
            ("" if problem.line is None else f"line {problem.line}: ")
            + (problem.message or problem.code or "no message")
            for problem in snapshot.problems
        ),
    )


def _count(batch: Batch, name: str) -> int | None:
    count = getattr(getattr(batch, "request_counts", None), name, None)
    return count if isinstance(count, int) and not isinstance(count, bool) and count >= 0 else None


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and 0 < value < 2**33


async def submit(
    client: openai.AsyncOpenAI,
    path: str | os.PathLike[str],
    *,
    window: str = "24h",
    metadata: Mapping[str, str] | None = None,
    endpoint: str | None = None,
    patience: float = PATIENCE,
    on_retry: OnRetry = silent,
    on_uploaded: Callable[[str], object] = silent,
    on_read: Callable[[int], object] = silent,
) -> Batch:
    """Upload a batch file and make a batch of it.

    One file becomes one batch: when the answer to the creation is lost, the server's batches are looked through for it
    for two minutes, before one is asked for again.

    Args:
        client: reaches the server.
        path: a batch file; of its content only the first line is looked at.
        window: within what time the batch is to be completed, as the server spells it: "24h", "1h".
        metadata: attached to the batch; at most 16 pairs, keys up to 64, values up to 512 characters.
        endpoint: of the batch; None: the url of the first line.
        patience: seconds for which a call may fail on end, in ways that may pass.
        on_retry: is told of failures that may pass.
        on_uploaded: called with the id of the uploaded file.
        on_read: called with how many bytes of the file have been read.

    Returns:
        The server's batch.

    Raises:
        InputError: the file is no batch file, or an option is none that servers take.
        OSError: the file cannot be read.
        UncertainError: nobody knows whether there is a batch.
        openai.OpenAIError: the server cannot be reached, or refuses.
    """
    check_options(window, metadata)
    if endpoint is None:
        endpoint = first_url(path)
    await reach(client)
    upstream = Upstream(
        client.with_options(max_retries=0), window, None if metadata is None else dict(metadata)
    )
    file_id = await _upload(upstream, Path(path), patience, on_retry, on_read)
    on_uploaded(file_id)
    return await _create(upstream, file_id, endpoint, patience, on_retry)


def check_options(window: str, metadata: Mapping[str, str] | None) -> None:
    """Make sure that a batch may be made with these.

    Raises:
        InputError: it may not.
    """
    try:
        BatchOptions(completion_window=window, batch_metadata=metadata)
    except (TypeError, ValueError) as error:
        text = str(error).replace("batch_metadata", "metadata").replace("completion_window", "window")
        raise InputError(text) from None


class _Line(msgspec.Struct):
    custom_id: str
    url: str
    body: dict[str, Any]


def first_url(path: str | os.PathLike[str]) -> str:
    """The url of the first line of a batch file.

    Raises:
        InputError: it is no batch file.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        number = 0
        while line := file.readline(MAX_RESULT_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                return msgspec.json.decode(line.removeprefix(b"\xef\xbb\xbf"), type=_Line).url
            except ValueError as error:  # msgspec's own among them
                raise InputError(
                    f"{path}: line {number} is no request of a batch file, an object with custom_id, method, url and"
                    f" body ({error}); `autobatcher validate` says more, `autobatcher prepare` makes such files"
                ) from None
    raise InputError(f"{path}: there are no requests in it")


class _Read(io.FileIO):
    """A file that says when it is read."""

    def __init__(self, path: Path, moves: Callable[[], None], on_read: Callable[[int], object]) -> None:
        super().__init__(path, "rb")
        self._moves, self._on_read = moves, on_read

    def read(self, size: int | None = -1, /) -> bytes:
        """Some bytes of it."""
        piece = super().read(-1 if size is None else size)
        self._moves()
        self._on_read(self.tell())
        return piece or b""


async def _upload(
    upstream: Upstream, path: Path, patience: float, on_retry: OnRetry, on_read: Callable[[int], object]
) -> str:
    tries = Tries(Step.UPLOAD, patience, on_retry)
    opened: list[_Read] = []

    def content(moves: Callable[[], None]) -> io.RawIOBase:
        opened.append(_Read(path, moves, on_read))
        return opened[-1]

    while True:
        try:
            return await upstream.upload_file(path.name, content)
        except UpstreamError as error:  # noqa: PERF203 -- a try takes seconds
            if isinstance(error.failure.cause, OSError):
                raise error.failure.cause from None
            await tries.again(error.failure)
        finally:
            for file in opened:
                file.close()


async def _create(
    upstream: Upstream, file_id: str, endpoint: str, patience: float, on_retry: OnRetry
) -> Batch:
    """Make a batch of a file, and of one file no more than one."""
    tries = Tries(Step.CREATE, patience, on_retry)
    while True:
        try:
            return await upstream.create_from(file_id, endpoint)
        except UpstreamError as error:
            failure = error.failure
        may = tries.note(failure)
        if failure.trouble in (Trouble.PASSING, Trouble.ODD):
            on_retry(CallRetried(None, Step.CREATE.value, failure.reason, 0.0))
            try:
                found = await _look_up(upstream, file_id, patience, on_retry)
            except UpstreamError as error:
                raise UncertainError(file_id, error) from error_of(failure)
            if found is not None:
                return found
        if not may:
            raise error_of(failure)
        await tries.pause(failure)


async def _look_up(upstream: Upstream, file_id: str, patience: float, on_retry: OnRetry) -> Batch | None:
    """The batch that was made of a file; None when none has shown up within two minutes of the first look.

    Raises:
        UpstreamError: nobody can tell.
    """
    tries = Tries(Step.LOOK_UP, patience, on_retry)
    first: float | None = None
    while True:
        try:
            found = await upstream.find_by_file(file_id)
        except UpstreamError as error:
            if not tries.note(error.failure):
                raise
            await tries.pause(error.failure)
            continue
        if found is not None:
            return found
        tries.succeeded()
        now = anyio.current_time()
        first = now if first is None else first
        left = first + LOOK_UP_SECONDS - now
        if left <= 0:
            return None
        await anyio.sleep(min(left, LOOK_UP_INTERVAL))


def list_batches(client: openai.AsyncOpenAI, limit: int | None = 20) -> AsyncGenerator[Batch, None]:
    """The server's batches, in its order: the newest first.

    Args:
        client: reaches the server.
        limit: the most batches; None: all.

    Raises:
        openai.OpenAIError: the server cannot be reached, refuses, or answers with what is no list.
    """
    return paged(client.batches.list, limit)


async def status(client: openai.AsyncOpenAI, batch_id: str) -> Batch:
    """How a batch stands now.

    Raises:
        InputError: that is no id.
        openai.OpenAIError: the server cannot be reached, or does not know the batch.
    """
    batch_id = checked_id(batch_id, "batch")
    with understood():
        batch = await client.batches.retrieve(batch_id)
        described(batch)
    return batch


async def cancel(client: openai.AsyncOpenAI, batch_id: str) -> Batch:
    """Cancel a batch; what it has answered until then is there. One that has ended already is no error.

    Returns:
        The server's batch, which may have ended in another way.

    Raises:
        InputError: that is no id.
        openai.OpenAIError: the server cannot be reached, or does not know the batch.
    """
    batch = await status(client, batch_id)
    if standing(batch).ended:
        return batch
    with understood():
        try:
            batch = await client.batches.cancel(batch_id.strip())
        except openai.ConflictError:
            return await status(client, batch_id)
    if name_of(batch) is None:  # such as an empty answer
        return await status(client, batch_id)
    return batch


@dataclass(frozen=True)
class Changed:
    """The server says of a batch what it has not said before; `batch` is its object."""

    standing: Standing
    batch: Batch


Update = Changed | CallRetried
"""What a watch tells: how a batch stands, or that a poll failed and will be made again."""


async def watch(
    client: openai.AsyncOpenAI,
    batch_ids: Iterable[str],
    on_update: Callable[[Update], object] = silent,
    poll_interval: float = 5.0,
    patience: float = PATIENCE,
) -> list[Batch]:
    """Look at batches until all have ended.

    Polls of a batch are `poll_interval` seconds apart at first, then 2% of the time for which it has been watched, at most
    10 minutes. A server that cannot be reached at first, or does not know a batch, is an error; later on, polls that fail
    are made again for as long as the client's core does it.

    Args:
        client: reaches the server.
        batch_ids: the batches; doubles count once.
        on_update: is told how each one stands at first, and whatever changes.
        poll_interval: seconds; more than 0.
        patience: seconds for which polls of a batch may fail on end, in ways that may pass.

    Returns:
        The server's batches as they ended, in the order of the ids.

    Raises:
        InputError: an id is none, or the interval.
        openai.OpenAIError: the server cannot be reached, or does not know a batch; the others are watched to their ends.
    """
    if not (math.isfinite(poll_interval) and poll_interval > 0):
        raise InputError(f"the poll interval must be more than 0 seconds, not {poll_interval}")
    names = list(dict.fromkeys(checked_id(name, "batch") for name in batch_ids))
    firsts = [await _first_look(client, name) for name in names]
    watching = _Watching(client, on_update, PollSchedule(poll_interval), patience)
    async with anyio.create_task_group() as tasks:
        for name, batch in zip(names, firsts, strict=True):
            tasks.start_soon(watching.follow, name, batch, tasks.cancel_scope)
    if watching.errors:
        raise watching.errors[0]
    return [watching.ends[name] for name in names]


async def _first_look(client: openai.AsyncOpenAI, batch_id: str) -> Batch | None:
    """A batch; None if the server is there, and busy or in trouble that may pass."""
    try:
        return await status(client, batch_id)
    except openai.APIStatusError as error:
        if translated(error).failure.trouble not in (Trouble.PASSING, Trouble.BUSY):
            raise
        return None


class _Watching:
    def __init__(
        self,
        client: openai.AsyncOpenAI,
        on_update: Callable[[Update], object],
        polls: PollSchedule,
        patience: float,
    ) -> None:
        self._upstream = Upstream(client.with_options(max_retries=0), "", None)
        self._on_update, self._polls, self._patience = on_update, polls, patience
        self._limiter = anyio.CapacityLimiter(WATCHED_AT_ONCE)
        self.ends: dict[str, Batch] = {}
        self.errors: list[Exception] = []

    async def follow(self, batch_id: str, batch: Batch | None, scope: anyio.CancelScope) -> None:
        """Look at a batch to its end; an error that is not about this batch alone ends all."""
        try:
            self.ends[batch_id] = await self._ended(batch_id, batch)
        except openai.OpenAIError as error:
            self.errors.append(error)
        except Exception as error:  # noqa: BLE001 -- raised by `watch`, and not in a group
            self.errors.insert(0, error)
            scope.cancel()

    async def _ended(self, batch_id: str, batch: Batch | None) -> Batch:
        began = anyio.current_time()
        tries = Tries(Step.POLL, self._patience, self._on_update, batch_id)
        batch = batch or await self._poll(batch_id, tries, began)
        stands = standing(batch)
        self._on_update(Changed(stands, batch))
        while not stands.ended:
            age = anyio.current_time() - began
            await anyio.sleep(self._polls.interval(age))
            batch = await self._poll(batch_id, tries, began)
            before, stands = stands, standing(batch)
            if stands != before:
                self._on_update(Changed(stands, batch))
        return batch

    async def _poll(self, batch_id: str, tries: Tries, began: float) -> Batch:
        while True:
            try:
                async with self._limiter:
                    batch = await self._upstream.retrieve(batch_id)
            except UpstreamError as error:  # noqa: PERF203 -- a try takes seconds
                if not tries.note(error.failure):
                    raise error_of(error.failure) from None
                age = anyio.current_time() - began
                least, most = self._polls.interval(age), self._polls.latest(age)
                await tries.pause(error.failure, least=least, most=most)
            else:
                tries.succeeded()
                return batch
