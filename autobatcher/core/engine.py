"""What to do next: events go in, effects come out, and the clock's reading is an argument.

Every accepted request is in exactly one place, a window or a batch, until it is settled or abandoned; whatever
ends a batch settles all that are left in it. So each request settles once, and none is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from autobatcher.core.jsonl import MalformedLineError, decode_line
from autobatcher.core.lifecycle import MOVES, TERMINAL_STATUSES, BatchState
from autobatcher.core.outcomes import (
    Answer,
    BatchProblem,
    CallFailed,
    Closed,
    LineFailed,
    Outcome,
    Unanswered,
)
from autobatcher.core.retry import PollSchedule
from autobatcher.core.window import Limits, Request, Window, check_fits_any
from autobatcher.events import BatchSettled, BatchSubmitted, Event


@dataclass(frozen=True)
class Snapshot:
    """A batch as the server describes it."""

    id: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    problems: tuple[BatchProblem, ...] = ()


@dataclass(slots=True, eq=False)
class Batch:
    """A closed window on its way."""

    endpoint: str
    model: str
    requests: dict[str, Request]
    closed_at: float
    size: int
    state: BatchState = BatchState.UPLOADING
    created_at: float = 0.0
    poll_at: float | None = None
    snapshot: Snapshot | None = None
    answered: int = 0
    failed: int = 0

    @property
    def id(self) -> str | None:
        """The server's id, once it has given one."""
        return None if self.snapshot is None else self.snapshot.id

    def move(self, state: BatchState) -> None:
        """Go to the next state; a move that the table does not have is a defect."""
        if state not in MOVES[self.state]:
            raise AssertionError(f"a batch does not go from {self.state} to {state}")
        self.state = state


# Events: what the runtime reports.


@dataclass(frozen=True)
class Uploaded:
    """The input file is at the server."""

    batch: Batch
    file_id: str


@dataclass(frozen=True)
class Created:
    """The batch exists."""

    batch: Batch
    snapshot: Snapshot


@dataclass(frozen=True)
class Polled:
    """The server was asked how the batch stands."""

    batch: Batch
    snapshot: Snapshot


@dataclass(frozen=True)
class LinesRead:
    """Whole lines of a result file, without their newlines."""

    batch: Batch
    lines: Sequence[bytes]


@dataclass(frozen=True)
class Fetched:
    """All result files were read to their end."""

    batch: Batch


@dataclass(frozen=True)
class StepFailed:
    """A call failed. `passing`: the same call may well succeed later."""

    batch: Batch
    cause: object
    passing: bool


Report = Uploaded | Created | Polled | LinesRead | Fetched | StepFailed


# Effects: what the runtime is to do.


@dataclass(frozen=True)
class Upload:
    """Upload the batch's requests as a file."""

    batch: Batch


@dataclass(frozen=True)
class Create:
    """Create the batch from its file."""

    batch: Batch
    file_id: str


@dataclass(frozen=True)
class Poll:
    """Ask how the batch stands."""

    batch: Batch
    batch_id: str


@dataclass(frozen=True)
class Fetch:
    """Read these result files."""

    batch: Batch
    file_ids: tuple[str, ...]


@dataclass(frozen=True)
class Settle:
    """Answer one caller."""

    request: Request
    outcome: Outcome


@dataclass(frozen=True)
class Publish:
    """Tell those who watch."""

    event: Event


@dataclass(frozen=True)
class Warn:
    """Something at the server is odd, and nobody's call is affected by it."""

    message: str


@dataclass(frozen=True)
class Rearm:
    """`next_wakeup` is earlier than it was."""


Call = Upload | Create | Poll | Fetch
Effect = Call | Settle | Publish | Warn | Rearm


@dataclass
class Engine:
    """All decisions of one client in one event loop."""

    limits: Limits = field(default_factory=Limits)
    polls: PollSchedule = field(default_factory=PollSchedule)
    windows: dict[tuple[str, str], Window] = field(default_factory=dict)
    batches: dict[int, Batch] = field(default_factory=dict)

    def accept(self, request: Request, now: float) -> list[Effect]:
        """Put a request into its window.

        Raises:
            OversizedError: it fits into no file.
        """
        effects: list[Effect] = []
        key = (request.endpoint, request.model)
        window = self.windows.get(key)
        if window is None or not window.fits(request):
            check_fits_any(request, self.limits)
            if window is not None:
                effects += self._submit(key, now)
            window = self.windows[key] = Window(self.limits, now + self.limits.seconds)
            effects.append(Rearm())
        window.add(request)
        if window.full:
            effects += self._submit(key, now)
        return effects

    def abandon(self, request: Request) -> None:
        """The caller has left: its request goes with it while it is not sent; its answer is dropped later."""
        window = self.windows.get((request.endpoint, request.model))
        if window is not None:
            window.discard(request)

    def next_wakeup(self) -> float | None:
        """When `wake` has something to do, or None."""
        times = [window.closes_at for window in self.windows.values()]
        times += [batch.poll_at for batch in self.batches.values() if batch.poll_at is not None]
        return min(times, default=None)

    def wake(self, now: float) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        for key in [key for key, window in self.windows.items() if window.closes_at <= now]:
            effects += self._submit(key, now)
        for batch in self.batches.values():
            if batch.poll_at is not None and batch.poll_at <= now and batch.id is not None:
                batch.poll_at = None
                batch.move(BatchState.POLLING)
                effects.append(Poll(batch, batch.id))
        return effects

    def handle(self, report: Report, now: float) -> list[Effect]:
        """Go on from what the runtime reports."""
        if id(report.batch) not in self.batches:  # settled by `close` while the call was under way
            return []
        match report:
            case Uploaded(batch, file_id):
                batch.move(BatchState.CREATING)
                return [Create(batch, file_id)]
            case Created(batch, snapshot):
                batch.snapshot = snapshot
                batch.created_at = now
                self._wait(batch, now)
                submitted = BatchSubmitted(
                    snapshot.id, batch.endpoint, batch.model, len(batch.requests), batch.size
                )
                return [Publish(submitted)]
            case Polled(batch, snapshot):
                return self._polled(batch, snapshot, now)
            case LinesRead(batch, lines):
                return self._read(batch, lines)
            case Fetched(batch):
                return self._settle_rest(batch, self._unanswered(batch), now)
            case StepFailed(batch, cause, passing):
                if passing and batch.state in (BatchState.POLLING, BatchState.FETCHING):
                    # The batch is paid for: look again later, and read again what was not read to its end.
                    self._wait(batch, now)
                    return []
                return self._settle_rest(batch, CallFailed(cause), now)

    def close(self, now: float) -> list[Effect]:
        """Settle whoever still waits; batches stay at the server."""
        effects: list[Effect] = []
        for window in self.windows.values():
            effects += [Settle(request, Closed(None)) for request in window.requests.values()]
        self.windows.clear()
        for batch in list(self.batches.values()):
            effects += self._settle_rest(batch, Closed(batch.id), now)
        return effects

    def _submit(self, key: tuple[str, str], now: float) -> list[Effect]:
        window = self.windows.pop(key)
        if not window.requests:  # every caller has left
            return []
        endpoint, model = key
        batch = Batch(endpoint, model, window.requests, closed_at=now, size=window.size)
        self.batches[id(batch)] = batch
        return [Upload(batch)]

    def _wait(self, batch: Batch, now: float) -> None:
        batch.move(BatchState.WAITING)
        batch.poll_at = now + self.polls.interval(now - batch.created_at)

    def _polled(self, batch: Batch, snapshot: Snapshot, now: float) -> list[Effect]:
        batch.snapshot = snapshot
        if snapshot.status not in TERMINAL_STATUSES:
            self._wait(batch, now)
            return []
        file_ids = tuple(file_id for file_id in (snapshot.output_file_id, snapshot.error_file_id) if file_id)
        if not file_ids:
            return self._settle_rest(batch, self._unanswered(batch), now)
        batch.move(BatchState.FETCHING)
        return [Fetch(batch, file_ids)]

    def _read(self, batch: Batch, lines: Sequence[bytes]) -> list[Effect]:
        effects: list[Effect] = []
        for line in lines:
            try:
                custom_id, outcome = decode_line(line)
            except MalformedLineError as error:
                effects.append(
                    Warn(f"batch {batch.id}: a result line of {len(line)} bytes is malformed: {error}")
                )
                continue
            request = batch.requests.pop(custom_id, None)
            if request is None:  # read before, doubled, or nobody's
                continue
            if isinstance(outcome, LineFailed):
                outcome = LineFailed(outcome.code, outcome.message, batch.id)
            effects.append(self._settle(batch, request, outcome))
        return effects

    @staticmethod
    def _settle(batch: Batch, request: Request, outcome: Outcome) -> Settle:
        if isinstance(outcome, Answer) and outcome.status < 400:  # noqa: PLR2004 -- HTTP's errors begin here
            batch.answered += 1
        else:
            batch.failed += 1
        return Settle(request, outcome)

    @staticmethod
    def _unanswered(batch: Batch) -> Unanswered:
        if batch.snapshot is None:
            raise AssertionError("only a batch that exists ends without an answer")
        return Unanswered(batch.snapshot.id, batch.snapshot.status, batch.snapshot.problems)

    def _settle_rest(self, batch: Batch, outcome: Outcome, now: float) -> list[Effect]:
        if isinstance(outcome, Closed):
            batch.state = (
                BatchState.SETTLED
            )  # from anywhere: the one end that is not a step of the batch's own
        else:
            batch.move(BatchState.SETTLED)
        del self.batches[id(batch)]
        batch.poll_at = None
        effects: list[Effect] = [self._settle(batch, request, outcome) for request in batch.requests.values()]
        batch.requests = {}
        status = "not submitted" if batch.snapshot is None else batch.snapshot.status
        settled = BatchSettled(
            batch.id,
            batch.endpoint,
            batch.model,
            status,
            answered=batch.answered,
            failed=batch.failed,
            duration=now - batch.closed_at,
        )
        effects.append(Publish(settled))
        return effects
