"""What can become of one request, and of one call for a batch."""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec


class LooseJson(bytes):
    """A body that Python's json reads and strict readers do not, or may not: such as one with NaN in it."""

    __slots__ = ()


class Answer(NamedTuple):
    """The server's HTTP answer to this request; an error status included. `body` is JSON text in UTF-8, on one line."""

    status: int
    request_id: str | None
    body: bytes

    def __repr__(self) -> str:
        """Without the body, which is nobody's to see."""
        return f"Answer({self.status}, {self.request_id!r}, {len(self.body)} bytes)"


class LineFailed(msgspec.Struct, frozen=True):
    """The server answered with an error object in place of a response."""

    code: str | None
    message: str
    batch_id: str | None = None


class BatchProblem(msgspec.Struct, frozen=True):
    """One of the errors that a server lists for a batch; `line` counts from 1."""

    code: str | None
    message: str | None
    line: int | None = None
    param: str | None = None


class Unanswered(msgspec.Struct, frozen=True):
    """The batch ended without a line for this request."""

    batch_id: str
    status: str
    problems: tuple[BatchProblem, ...]


class CallFailed(msgspec.Struct, frozen=True):
    """A call that the whole batch depended on failed; `cause` belongs to the runtime and is only passed through."""

    cause: object


class Closed(msgspec.Struct, frozen=True):
    """The client was closed while the caller waited.

    `batch_id` is the batch at the server, if there is one; `cancelling`: the server is asked to cancel it; `file_id` is
    the input file, if it is uncertain whether there is a batch.
    """

    batch_id: str | None
    cancelling: bool = False
    file_id: str | None = None


class Overdue(msgspec.Struct, frozen=True):
    """There was no answer by the caller's deadline.

    `batch_id` is the batch that the request is in, if there is one; `age` are the seconds for which the caller has
    waited.
    """

    batch_id: str | None
    age: float


Outcome = Answer | LineFailed | Unanswered | CallFailed | Closed | Overdue


class Trouble(enum.Enum):
    """How a call for a batch failed."""

    REFUSED = "refused"
    """The server's clear no."""
    BUSY = "busy"
    """Nothing was done, for now: 429, 503, or no connection came about."""
    PASSING = "passing"
    """It may well succeed later, and may have had its effect already: lost connections, timeouts, 408, 409, 5xx."""
    NOT_FOUND = "not found"
    """What the call names is not there, or not there yet."""
    ODD = "odd"
    """An answer that is none: a proxy's page, an object without its id."""


class Failure(msgspec.Struct, frozen=True):
    """A failed call.

    Attributes:
        trouble: how it failed.
        cause: the exception; it belongs to the runtime and is only passed through.
        reason: a few words for the log, without anything of a request's.
        retry_after: seconds for which the server asks to be left alone, if it does.
    """

    trouble: Trouble
    cause: object
    reason: str
    retry_after: float | None = None
