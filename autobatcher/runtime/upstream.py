"""The Files and Batches calls, through the SDK; its errors become the core's values here and nowhere else.

Each call goes out once: whether and when it is repeated is the engine's decision.
"""

from __future__ import annotations

import email.utils
import io
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
import openai

from autobatcher._http import httpx
from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.outcomes import BatchProblem, Failure, Trouble
from autobatcher.core.window import Request
from autobatcher.errors import AutobatcherError
from autobatcher.runtime.spool import LinesFile

if TYPE_CHECKING:
    from typing import TypeGuard

    from openai.types import Batch as ServerBatch

MAX_RESULT_LINE = 256 * 2**20
"""Bytes. A longer line is no answer to anything that fits into a batch file."""

MAX_TEXT = 2_000
"""Characters of a server's message that are kept."""

MAX_NAME = 200
"""Characters of an id, a status, a code or a param."""

MAX_PROBLEMS = 100_000

MAX_COUNT = 10**9
"""More is no number of requests."""

POLL_SECONDS = 30.0
"""After which a poll that has no answer is given up: the next one is not to be late for it."""

STILL_SECONDS = 600.0
"""After which a call is given up that makes no progress, or after twice the client's timeout: within that the SDK gives
up an answer of which no byte comes."""

MORE_LINES = 100_000
"""Lines that a result file may have beyond four for each request: then it is taken for endless."""

MAX_FILE = 2**36
"""Bytes after which the same is true."""

PAGE = 100
"""Batches on a page of the list, the most that OpenAI takes.

Source: https://platform.openai.com/docs/api-reference/batch/list
"""

MAX_PAGES = 1_000

TOGETHER = 2**19
"""Bytes of a result file that are handed on at once, if it has as many: each piece costs a transaction of a journal."""


class UpstreamError(Exception):
    """A call failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class OddAnswerError(AutobatcherError):
    """The server's answer to a call for a batch is none that could be understood."""


class Piece(msgspec.Struct, frozen=True):
    """Lines of a result file: `last` is the number of the last one, `resumes` whether the server honours `skip`."""

    lines: list[bytes]
    last: int
    resumes: bool


@dataclass(frozen=True)
class Upstream:
    """Calls at one server.

    Attributes:
        client: makes the calls; without retries.
        completion_window: passed on with each batch.
        metadata: attached to each batch.
    """

    client: openai.AsyncOpenAI
    completion_window: str
    metadata: dict[str, str] | None

    async def upload(self, requests: Iterable[Request]) -> str:
        """Upload the lines of requests as one file; its id."""
        lines = [request.line for request in requests]
        return await self.upload_file("batch.jsonl", lambda moves: LinesFile(lines, moves))

    async def upload_file(self, name: str, content: Callable[[Callable[[], None]], io.RawIOBase]) -> str:
        """Upload what can be read of a file, which gets a function to call whenever it is read; its id."""
        try:
            with self._moving() as moves:
                file: Any = content(moves)
                uploaded = await self.client.files.create(file=(name, file), purpose="batch")
            return _name(uploaded, "id", "an upload")
        except Exception as error:
            raise translated(error) from error

    async def create(self, batch: Batch, file_id: str) -> Snapshot:
        """Create a batch."""
        return _snapshot(await self.create_from(file_id, batch.endpoint))

    async def create_from(self, file_id: str, endpoint: str) -> ServerBatch:
        """Create a batch of a file; the server's object, of which `described` makes something."""
        options: dict[str, Any] = {} if self.metadata is None else {"metadata": self.metadata}
        try:
            with self._moving():
                created = await self.client.batches.create(
                    input_file_id=file_id,
                    endpoint=endpoint,  # type: ignore[arg-type] # servers take more than the SDK lists
                    completion_window=self.completion_window,  # type: ignore[arg-type] # likewise
                    **options,
                )
            _snapshot(created)
        except Exception as error:
            raise translated(error) from error
        return created

    async def look_up(self, file_id: str) -> Snapshot | None:
        """The batch that was made from a file, or None when a list of all batches does not have it."""
        found = await self.find_by_file(file_id)
        return None if found is None else _snapshot(found)

    async def find_by_file(self, file_id: str) -> ServerBatch | None:
        """The same as the server's object, of which `described` makes something."""
        try:
            after: str | openai.Omit = openai.omit
            seen = set()
            unclear = False
            for _ in range(MAX_PAGES):
                with self._moving():
                    page = await self.client.batches.list(after=after, limit=PAGE)
                listed = _listed(page)
                for item in listed:
                    if getattr(item, "input_file_id", None) == file_id:
                        _snapshot(item)
                        found: ServerBatch = item
                        return found
                    unclear |= not _is_of_another_file(item)
                if not listed or getattr(page, "has_more", None) is False:
                    break
                after = _name(listed[-1], "id", "a list of batches")
                if after in seen:
                    if getattr(page, "has_more", None) is None:
                        break  # the server knows no pages: this was the whole list once more
                    raise OddAnswerError("the server's list of batches goes round in a circle")  # noqa: TRY301
                seen.add(after)
            else:
                raise OddAnswerError("the server's list of batches has no end")  # noqa: TRY301 -- as the calls' errors
            if unclear:
                raise OddAnswerError("the server's list of batches has entries without input_file_id")  # noqa: TRY301
        except Exception as error:
            raise translated(error) from error
        return None

    async def poll(self, batch_id: str) -> Snapshot:
        """Ask how a batch stands."""
        return _snapshot(await self.retrieve(batch_id))

    async def retrieve(self, batch_id: str) -> ServerBatch:
        """The same as the server's object, of which `described` makes something."""
        try:
            usual = self.client.timeout
            timeout = min(usual, POLL_SECONDS) if isinstance(usual, (int, float)) else POLL_SECONDS
            with self._moving(2 * POLL_SECONDS):
                batch = await self.client.batches.retrieve(batch_id, timeout=timeout)
            if _snapshot(batch).id != batch_id:
                raise OddAnswerError("the server's answer to a poll is about another batch")  # noqa: TRY301
        except Exception as error:
            raise translated(error) from error
        return batch

    async def cancel(self, batch_id: str) -> str | None:
        """Cancel a batch; returns its status. One that has ended already is no error: None."""
        try:
            with self._moving():
                batch = await self.client.batches.cancel(batch_id)
            said = _optional_name(batch, "status")
            return "cancelling" if said is None else _status(said)
        except openai.ConflictError:
            return None
        except Exception as error:
            raise translated(error) from error

    async def read_lines(self, file_id: str, skip: int, requests: int) -> AsyncGenerator[Piece, None]:
        r"""The lines of a file from after the first `skip` on, some at a time, if the server can; else from the first.

        Split at `\n` only: the other line breaks may stand inside a line. When the file breaks off, the lines before
        that have been given, and what came of the next one is not. `requests`: how many the file may be about.

        Source for `skip` and X-Incomplete: https://github.com/doublewordai/control-layer, the files' content handler.
        """
        query = {"skip": skip} if skip else {}
        waiting: list[bytes] = []
        told = last = skip
        resumes = False
        try:
            async with self.client.files.with_streaming_response.content(
                file_id, extra_query=query
            ) as response:
                resumes = "x-incomplete" in response.headers
                splitter = _Splitter()
                start = told = last = skip if resumes else 0
                size = given = 0
                chunks = aiter(response.iter_bytes())
                since = anyio.current_time()
                # A scope for each, for none may be open when a generator yields.
                while (chunk := await self._next(chunks, since)) is not None:
                    size += len(chunk)
                    if last - start > 4 * requests + MORE_LINES or size > MAX_FILE:
                        raise OddAnswerError("a result file has no end")  # noqa: TRY301 -- as the calls' errors
                    if lines := splitter.feed(chunk):
                        last += len(lines)
                        if any(lines):
                            since = anyio.current_time()
                        waiting += [line for line in lines if line.strip()]
                    if size - given >= TOGETHER and last > told:
                        yield Piece(waiting, last, resumes)
                        waiting, told, given = [], last, size
                if last > told:
                    yield Piece(waiting, last, resumes)
                    told = last
                if (
                    rest := splitter.rest()
                ):  # a line that may be cut short: it counts when its newline was seen
                    yield Piece([rest], last, resumes)
        except Exception as error:
            if last > told:
                yield Piece(waiting, last, resumes)
            raise translated(error) from error

    async def read_bytes(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """A file as it is, in pieces."""
        try:
            async with self.client.files.with_streaming_response.content(file_id) as response:
                chunks = aiter(response.iter_bytes())
                while (chunk := await self._next(chunks, anyio.current_time())) is not None:
                    yield chunk
        except Exception as error:
            raise translated(error) from error

    @property
    def _still_seconds(self) -> float:
        """How long an answer may make no progress, though bytes of it trickle in."""
        usual = self.client.timeout
        read = getattr(usual, "read", usual)
        return max(STILL_SECONDS, 2 * read) if isinstance(read, (int, float)) else STILL_SECONDS

    @contextmanager
    def _moving(self, seconds: float | None = None) -> Iterator[Callable[[], None]]:
        """Cut a call short that makes no progress; the function that is given tells of some.

        Raises:
            openai.APITimeoutError: there was none for so many seconds.
        """
        most = self._still_seconds if seconds is None else seconds
        with anyio.move_on_after(most) as scope:
            yield lambda: setattr(scope, "deadline", anyio.current_time() + most)
        if scope.cancelled_caught:
            raise openai.APITimeoutError(httpx.Request("GET", self.client.base_url))

    async def _next(self, chunks: AsyncIterator[bytes], since: float) -> bytes | None:
        """The next chunk of a file, of which the last line came then; None at the end."""
        with self._moving(max(0.0, since + self._still_seconds - anyio.current_time())):
            return await anext(chunks, None)


class _Splitter:
    """Cuts chunks into lines; one that is too long is cut short, and so will be malformed."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._length = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that end in this chunk."""
        first, *others = chunk.split(b"\n")
        self._keep(first)
        if not others:
            return []
        lines = [b"".join(self._pieces), *others[:-1]]
        self._pieces, self._length = [], 0
        self._keep(others[-1])
        return lines

    def _keep(self, piece: bytes) -> None:
        if self._length < MAX_RESULT_LINE:
            self._pieces.append(piece)
            self._length += len(piece)

    def rest(self) -> bytes:
        """What came after the last newline."""
        return b"".join(self._pieces).strip()


def translated(error: Exception) -> UpstreamError:
    """What a failed call means, whichever call it was."""
    match error:
        case openai.APIStatusError():
            trouble, reason = _trouble(error), f"status {error.status_code}"
            if _is_name(error.code):
                reason += f", {error.code}"
            return UpstreamError(Failure(trouble, error, reason, _retry_after(error.response.headers)))
        case openai.APIConnectionError():
            cause = type(error.__cause__).__name__
            trouble = _BY_CAUSE.get(cause, Trouble.PASSING)
        case OddAnswerError() | openai.APIResponseValidationError():
            trouble = Trouble.ODD
        case (
            AttributeError() | TypeError() | ValueError() | RecursionError()
        ):  # the SDK's, over JSON of an unexpected form
            trouble = Trouble.ODD
        case httpx.HTTPError() | httpx.StreamError():  # what it sent is no HTTP, or does not decode
            trouble = Trouble.PASSING
        case openai.OpenAIError():  # such as that there is no key
            trouble = Trouble.REFUSED
        case _:  # such as of a callable that is to give the key: nobody knows whether it will next time
            trouble = Trouble.ODD
    return UpstreamError(Failure(trouble, error, _described(error)))


_BY_CAUSE = {
    "ConnectError": Trouble.BUSY,
    "ConnectTimeout": Trouble.BUSY,
    "PoolTimeout": Trouble.BUSY,
    "UnsupportedProtocol": Trouble.REFUSED,
    "LocalProtocolError": Trouble.REFUSED,
}
"""Of connection errors after which nothing was sent; by name, for the SDK works with two libraries that have them."""


def _described(error: BaseException) -> str:
    """The name of an error's class, and of its first cause's: its text may hold a key."""
    first = error
    for _ in range(_CAUSES):
        first = first.__cause__ or first.__context__ or first
    names = dict.fromkeys((type(error).__name__, type(first).__name__))
    return ", ".join(names)


_CAUSES = 10

_NO_FILE = re.compile(
    r"no such file|file\b.{0,300}\b(?:not found|not exist|not ready)", re.IGNORECASE | re.DOTALL
)


def _trouble(error: openai.APIStatusError) -> Trouble:
    status = error.status_code
    if status in (429, 503):
        return Trouble.BUSY
    if status in (408, 409) or status >= 500:  # noqa: PLR2004 -- HTTP's server errors
        return Trouble.PASSING
    if status == 404 or (status == 400 and _NO_FILE.search(error.message[:MAX_TEXT])):  # noqa: PLR2004 -- HTTP
        return Trouble.NOT_FOUND
    return Trouble.REFUSED


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds from a Retry-After header, which has seconds or a date, or from retry-after-ms.

    Source: https://www.rfc-editor.org/rfc/rfc9110#name-retry-after; the other is Azure's.
    """
    text = headers.get("retry-after", "")
    for seconds in (_number(headers.get("retry-after-ms", "")) / 1000, _number(text), _from_now(text)):
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _from_now(date: str) -> float:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return math.nan


def _name(answer: object, name: str, what: str) -> str:
    """A field that must be there; the SDK lets anything pass for an object of its types, a proxy's page included."""
    value = getattr(answer, name, None)
    if not _is_name(value):
        raise OddAnswerError(f"the server's answer to {what} has no {name}")
    return value


def _is_name(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _optional_name(answer: object, name: str) -> str | None:
    value = getattr(answer, name, None)
    return value if _is_name(value) else None


def _listed(page: object) -> list[Any]:
    listed = getattr(page, "data", None)
    if not isinstance(listed, list):
        raise OddAnswerError("the server's answer to a list of batches has no data")
    return listed


def _is_of_another_file(item: object) -> bool:
    """Whether an entry of a list is a batch that is not ours; Azure's batches of stored blobs have null for a file.

    Source: https://learn.microsoft.com/azure/foundry/openai/how-to/batch-blob-storage
    """
    file_id = getattr(item, "input_file_id", None)
    return _is_name(file_id) or (file_id is None and "input_file_id" in getattr(item, "model_fields_set", ()))


def described(batch: ServerBatch) -> Snapshot:
    """What can be made of the server's object.

    Raises:
        OddAnswerError: it has no id, or no status.
    """
    return _snapshot(batch)


def _snapshot(batch: ServerBatch) -> Snapshot:
    listed = getattr(getattr(batch, "errors", None), "data", None)
    problems = listed[:MAX_PROBLEMS] if isinstance(listed, list) else []
    return Snapshot(
        id=_name(batch, "id", "a batch call"),
        status=_status(_name(batch, "status", "a batch call")),
        output_file_id=_optional_name(batch, "output_file_id"),
        error_file_id=_optional_name(batch, "error_file_id"),
        problems=tuple(map(_problem, problems)),
        **{name: _count(batch, name) for name in ("completed", "failed", "total")},
    )


def _count(batch: ServerBatch, name: str) -> int:
    count = getattr(getattr(batch, "request_counts", None), name, None)
    return count if isinstance(count, int) and 0 <= count <= MAX_COUNT else 0


def _status(said: str) -> str:
    status = said.lower()
    return "cancelled" if status == "canceled" else status


def _problem(item: object) -> BatchProblem:
    code, message = getattr(item, "code", None), getattr(item, "message", None)
    line, param = getattr(item, "line", None), getattr(item, "param", None)
    return BatchProblem(
        None if code is None else str(code)[:MAX_NAME],
        None if message is None else str(message)[:MAX_TEXT],
        line if isinstance(line, int) and not isinstance(line, bool) else None,
        None if param is None else str(param)[:MAX_NAME],
    )
