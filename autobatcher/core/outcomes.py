"""What can become of one request; turned into an object or an exception in its caller's own task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Answer(NamedTuple):
    """The server's HTTP answer to this request; an error status included. `body` is JSON text in UTF-8."""

    status: int
    request_id: str | None
    body: bytes


@dataclass(frozen=True)
class LineFailed:
    """The server answered with an error object in place of a response."""

    code: str | None
    message: str
    batch_id: str | None = None


@dataclass(frozen=True)
class BatchProblem:
    """One of the errors that a server lists for a batch; `line` counts from 1."""

    code: str | None
    message: str | None
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class Unanswered:
    """The batch ended without a line for this request."""

    batch_id: str
    status: str
    problems: tuple[BatchProblem, ...]


@dataclass(frozen=True)
class CallFailed:
    """A call that the whole batch depended on failed; `cause` belongs to the runtime and is only passed through."""

    cause: object


@dataclass(frozen=True)
class Closed:
    """The client was closed while the caller waited; `batch_id` is the batch left at the server, if there is one."""

    batch_id: str | None


Outcome = Answer | LineFailed | Unanswered | CallFailed | Closed
