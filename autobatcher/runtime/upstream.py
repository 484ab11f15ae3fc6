"""The Files and Batches calls, through the SDK; its errors become the core's values here and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import openai

from autobatcher._http import httpx
from autobatcher.core import engine
from autobatcher.core.outcomes import BatchProblem
from autobatcher.errors import AutobatcherError

if TYPE_CHECKING:
    from openai.types import Batch


class UpstreamError(Exception):
    """A call failed; `cause` is the SDK's error, `passing` tells whether the same call may well succeed later."""

    def __init__(self, cause: Exception, *, passing: bool) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.passing = passing


@dataclass(frozen=True)
class Upstream:
    """Calls at one server.

    Attributes:
        careful: the same as `client`, without retries.
        client: makes the calls and retries uploads and reads as its `max_retries` says.
        completion_window: passed on with each batch.
        metadata: attached to each batch.
    """

    client: openai.AsyncOpenAI
    careful: openai.AsyncOpenAI
    completion_window: str
    metadata: dict[str, str] | None

    async def upload(self, batch: engine.Batch) -> engine.Uploaded:
        """Upload a batch's lines as one file."""
        content = b"".join([request.line for request in batch.requests.values()])
        try:
            file = await self.client.files.create(file=("batch.jsonl", content), purpose="batch")
            file_id = _text(file, "id", "an upload")
        except Exception as error:
            raise _translate(error) from error
        return engine.Uploaded(batch, file_id)

    async def create(self, batch: engine.Batch, file_id: str) -> engine.Created:
        """Create a batch. Never sent twice: after a lost answer a second one would be paid as well."""
        options: dict[str, Any] = {} if self.metadata is None else {"metadata": self.metadata}
        try:
            created = await self.careful.batches.create(
                input_file_id=file_id,
                endpoint=batch.endpoint,  # type: ignore[arg-type] # servers take more than the SDK lists
                completion_window=self.completion_window,  # type: ignore[arg-type] # likewise
                **options,
            )
            return engine.Created(batch, _snapshot(created))
        except Exception as error:
            raise _translate(error) from error

    async def poll(self, batch: engine.Batch, batch_id: str) -> engine.Polled:
        """Ask how a batch stands."""
        try:
            return engine.Polled(batch, _snapshot(await self.client.batches.retrieve(batch_id)))
        except Exception as error:
            raise _translate(error, paid=True) from error

    async def read_lines(self, file_id: str) -> AsyncIterator[list[bytes]]:
        r"""The lines of a file, in groups as they arrive. Split at `\n` only: others may stand inside a line."""
        rest = b""
        try:
            async with self.client.files.with_streaming_response.content(file_id) as response:
                async for chunk in response.iter_bytes():
                    *lines, rest = (rest + chunk if rest else chunk).split(b"\n")
                    if lines:
                        yield [line for line in lines if line.strip()]
        except Exception as error:
            raise _translate(error, paid=True) from error
        if rest.strip():
            yield [rest]


_PASSING_STATUSES = frozenset({408, 409, 429})


def _translate(error: Exception, *, paid: bool = False) -> UpstreamError:
    """`paid`: the batch exists, so that whatever is not the server's clear refusal is looked past."""
    match error:
        case openai.APIStatusError():
            passing = error.status_code in _PASSING_STATUSES or error.status_code >= 500  # noqa: PLR2004 -- HTTP
        case openai.APIConnectionError() | httpx.TransportError():
            passing = True
        case _:
            passing = paid
    return UpstreamError(error, passing=passing)


def _text(answer: object, name: str, what: str) -> str:
    """A field that must be there; the SDK lets anything pass for an object of its types, a proxy's page included."""
    value = getattr(answer, name, None)
    if not isinstance(value, str) or not value:
        raise AutobatcherError(f"the server's answer to {what} has no {name}")
    return value


def _snapshot(batch: Batch) -> engine.Snapshot:
    batch_id, status = _text(batch, "id", "a batch call"), _text(batch, "status", "a batch call")
    listed = (batch.errors.data if batch.errors is not None else None) or []
    return engine.Snapshot(
        id=batch_id,
        status=status,
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        problems=tuple(BatchProblem(item.code, item.message, item.line, item.param) for item in listed),
    )
