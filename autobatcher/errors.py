"""What the client raises.

An error that the server sent for one request is the openai class that the realtime call would have raised. All
others share one base, which is an `openai.OpenAIError`, so that code that catches the SDK's errors catches them::

    openai.OpenAIError
    └── AutobatcherError
        ├── ClientClosedError        the client was closed while the caller waited, or before it called
        ├── DeadlineError            (an openai.APITimeoutError) there was no answer by the deadline; carries batch_id
        ├── JournalError             the journal cannot be used, or could not be written
        ├── RequestTooLargeError     (a ValueError) the request fits into no batch file
        └── BatchError               (an openai.APIError) carries batch_id
            ├── RequestFailedError   the server put an error in place of this request's response
            └── BatchFailedError     the batch ended without an answer to this request
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import openai

from autobatcher.core.outcomes import BatchProblem

if TYPE_CHECKING:
    from autobatcher._http import httpx

__all__ = [
    "AutobatcherError",
    "BatchError",
    "BatchFailedError",
    "BatchProblem",
    "ClientClosedError",
    "DeadlineError",
    "JournalError",
    "RequestFailedError",
    "RequestTooLargeError",
]


MAX_DESCRIBED = 10
"""Errors of a failed batch that its exception's text tells; `errors` has them all."""


class AutobatcherError(openai.OpenAIError):
    """The base of this package's own errors."""


class ClientClosedError(AutobatcherError):
    """The client is closed. `batch_id` names the batch at the server that holds the request, if any."""

    def __init__(self, message: str, *, batch_id: str | None = None) -> None:
        super().__init__(message)
        self.batch_id = batch_id


class DeadlineError(AutobatcherError, openai.APITimeoutError):
    """There was no answer by the deadline (`deadline_seconds`).

    Attributes:
        batch_id: the batch that the request was in by then; None: it was in none yet.
        age: seconds from when the request was accepted.
    """

    def __init__(self, request: httpx.Request, *, batch_id: str | None, age: float) -> None:
        where = "it was in no batch yet" if batch_id is None else f"it is in batch {batch_id}"
        openai.APIConnectionError.__init__(
            self,
            message=f"no answer within {_seconds(age)} s, which is the deadline; {where}",
            request=request,
        )
        self.batch_id = batch_id
        self.age = age


class JournalError(AutobatcherError):
    """The journal cannot be used: another process has it, it is none, it is damaged, or its disk is full."""


class RequestTooLargeError(AutobatcherError, ValueError):
    """A single request exceeds what one batch file may hold."""


class BatchError(AutobatcherError, openai.APIError):
    """Something about a batch went wrong at the server; `batch_id` names the batch."""

    def __init__(
        self, message: str, request: httpx.Request, *, body: object | None, batch_id: str | None
    ) -> None:
        openai.APIError.__init__(self, message, request, body=body)
        self.batch_id = batch_id


class RequestFailedError(BatchError):
    """The server answered this request's line with an error object and no response; `code` may be None."""


class BatchFailedError(BatchError):
    """The batch ended without an answer to this request.

    Attributes:
        batch_id: the batch.
        status: the server's last word: failed, expired, cancelled, or completed (when the line is missing).
        errors: what the server lists as the batch's errors, each with code, message, line (from 1) and param.
        code: the code of the first of them.
    """

    def __init__(
        self, request: httpx.Request, *, batch_id: str, status: str, errors: tuple[BatchProblem, ...]
    ) -> None:
        said = "; ".join(_describe(problem) for problem in errors[:MAX_DESCRIBED])
        if len(errors) > MAX_DESCRIBED:
            said += f"; and {len(errors) - MAX_DESCRIBED:,} more"
        message = f"batch {batch_id} is {status} and holds no answer to this request"
        first = (
            {"code": errors[0].code, "message": errors[0].message, "param": errors[0].param}
            if errors
            else None
        )
        super().__init__(f"{message}: {said}" if said else message, request, body=first, batch_id=batch_id)
        self.status = status
        self.errors = errors


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f}" if seconds >= 1 else f"{seconds:.2g}"


def _describe(problem: BatchProblem) -> str:
    where = "" if problem.line is None else f"line {problem.line}: "
    return f"{where}{problem.message or 'no message'} ({problem.code or 'no code'})"
