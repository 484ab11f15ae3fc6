"""When to look again, when to try again, and when to give up."""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from autobatcher.core.outcomes import BatchProblem

MAX_POLL_INTERVAL = 600.0
"""Seconds. With a first interval of 5 s, growing to 2% of the batch's age, this makes 386 polls in 24 hours."""

POLL_GROWTH = 0.02

MAX_RETRY_AFTER = 3600.0
"""Seconds. A server's Retry-After is a request, and may be nonsense; beyond an hour it is asked again."""

LATER = 0.1
"""By what part of a Retry-After a client may come later than it was asked to."""

FILE_LOOKS = 6
"""How often a creation is repeated for a file that the server does not know: some see new files late."""

ODD_ANSWERS = 5
"""How often an answer to an upload or a look-up may be none that anybody could understand."""

LOOK_UP_SECONDS = 120.0
"""For how long no look may find a batch, after its creation's answer was lost, before it is certain that none was
made: the lost request may still be on its way, and lists may lag. After a crash too: a program is run again at once."""

LOOK_UP_INTERVAL = 15.0

FILE_LAG = 5.0
"""Seconds to the first reading again of result files that lack lines."""

LOST_SECONDS = 900.0
"""For how long the server may say on end that it does not know a batch, or refuses to tell, before it is believed; it has then said so at least `LOST_TIMES` times."""

LOST_TIMES = 5

MAX_SPENT = 7200.0
"""Seconds that can pass between two failures in a row and count as spent on them, with half of the patience as the
limit: more, and the machine slept."""

REREADS = 6
"""How often result files are read again when a batch has ended and lines are missing: files can lag statuses."""

ILLEGIBLE_REREADS = 20
"""The same while there is a file of which no line can be read: that is a proxy's page, rather than the server's file.
With a first interval of 5 s these take a quarter of an hour."""

MAX_LOSSES = 5
"""How often a request is sent again that its batch left unanswered: it may have been paid for each time."""


class PollSchedule(msgspec.Struct, frozen=True):
    """Polls are `first` seconds apart at the start, then 2% of the batch's age, at most 10 minutes.

    A `first` above 10 minutes stays what it is.
    """

    first: float = 5.0

    def interval(self, age: float) -> float:
        """Seconds from a poll of a batch of this age (seconds) to the next."""
        return max(self.first, min(age * POLL_GROWTH, MAX_POLL_INTERVAL))

    def latest(self, age: float) -> float:
        """Seconds within which a batch of this age is polled again, whatever a server asks for."""
        return max(self.interval(age), 60.0, age * POLL_GROWTH)


class Backoff(msgspec.Struct, frozen=True):
    """Seconds to wait, doubled with each failure in a row."""

    first: float
    most: float

    def delay(self, failures: int, spread: float) -> float:
        """The wait after this many failures in a row (1 or more); `spread`, 0 to 1, takes up to half off it."""
        return float(min(self.first * 2 ** min(failures - 1, 32), self.most)) * (1 - spread / 2)


CALLS = Backoff(1.0, 300.0)
"""Between tries of one call."""

LINES = Backoff(2.0, 600.0)
"""Between batches that hold the same request."""

QUEUE = Backoff(60.0, 3600.0)
"""Between tries at a server's full queue; while earlier batches of ours are in it, the longest, or until one ends."""


MAX_REFUSALS = 3
"""After how many refusals for a full queue a batch is split, though others of ours are in the queue: it may never be
alone."""


class WholeFailure(enum.Enum):
    """Why a server failed a batch as a whole."""

    LINES = "lines"
    """It names lines that it does not take."""
    QUEUE = "queue"
    """Too much is enqueued."""
    PASSING = "passing"
    """The server's own trouble."""
    OTHER = "other"


QUEUE_CODES = frozenset(
    {
        "token_limit_exceeded",
        "enqueued_token_limit_exceeded",
        "enqueued_tokens_limit_exceeded",
        "batch_limit_exceeded",
        "batch_queue_limit_exceeded",
        "queue_limit_exceeded",
        "too_many_batches",
        "too_many_requests",
        "rate_limit_exceeded",
    }
)
"""Source for the first: https://platform.openai.com/docs/guides/batch, "Rate limits", and Azure's
https://learn.microsoft.com/azure/foundry/openai/how-to/batch; the others are other servers' words for it."""

PASSING_CODES = frozenset(
    {
        "server_error",
        "internal_error",
        "internal_server_error",
        "internal_failure",
        "service_unavailable",
        "unavailable",
        "overloaded",
        "timeout",
    }
)

WHOLE_CODES = frozenset(
    {
        "model_not_found",
        "model_not_supported",
        "invalid_model",
        "mismatched_model",
        "deployment_not_found",
        "too_many_tasks",
        "too_many_lines",
        "file_too_large",
    }
)
"""What is said of one line, and is true of all: they share a model and a file."""


def judge_failed(problems: Sequence[BatchProblem], lines: int) -> WholeFailure:
    """Why a batch of this many lines has failed, by the errors that the server lists."""
    codes = {(problem.code or "").lower() for problem in problems}
    if codes & QUEUE_CODES:
        return WholeFailure.QUEUE
    if codes & WHOLE_CODES:
        return WholeFailure.OTHER
    if any(problem.line is not None and 1 <= problem.line <= lines for problem in problems):
        return WholeFailure.LINES
    if codes & PASSING_CODES:
        return WholeFailure.PASSING
    return WholeFailure.OTHER


def may_pass(status: int) -> bool:
    """Whether the same request may well succeed later after an answer of this HTTP status."""
    return status in (408, 409, 429) or status >= 500  # noqa: PLR2004 -- HTTP's server errors


def is_success(status: int) -> bool:
    """Whether an answer of this HTTP status is what was asked for."""
    return 200 <= status < 300  # noqa: PLR2004 -- HTTP's successes
