"""The numbers that a display shows, from events and a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from autobatcher.events import (
    BatchNotCancelled,
    BatchProgressed,
    BatchSettled,
    BatchSubmitted,
    CallRetried,
    Event,
    LinesIgnored,
    RealtimeCalled,
    RequestsOverdue,
    RequestsResent,
)

if TYPE_CHECKING:
    from autobatcher.jobs.running import Progress

PACE_SECONDS = 300.0
"""A rate is of the last minutes, or of the last two reports where they are further apart."""

LEAST_SPAN = 1.0
"""What grew within less time tells no rate."""

SPACING = 5.0
"""Reports that are closer together count as one, so that a rate is of few numbers."""

PROBLEMS = 5
"""Of which the last are kept."""


@dataclass(frozen=True)
class Row:
    """A batch under way.

    Attributes:
        id, model, status: as the server and the requests name them, without control characters.
        completed, failed, total: its requests, by the server's count; `total` is what was sent where it gives none.
        rate: requests a second; None: not known.
        left: seconds until all are through, at this rate; None: not known.
        age: seconds since this program first heard of it.
    """

    id: str
    model: str
    status: str
    completed: int
    failed: int
    total: int
    rate: float | None
    left: float | None
    age: float


@dataclass(frozen=True)
class Overall:
    """How far all is.

    Attributes:
        packing: whether the input is still being read; then `rate` is in bytes a second, and `left` until it is read.
        read, size: bytes of the input; 0 where there is none.
        answered, failed: what became of the requests.
        done: requests that the server is through with, or more, if there are answers to more.
        total: requests that there are; while packing, those that have been read.
        rate: requests a second; None: not known.
        left: seconds until the end; None: not known.
    """

    packing: bool
    read: int
    size: int
    answered: int
    failed: int
    done: int
    total: int
    rate: float | None
    left: float | None


@dataclass(frozen=True)
class Settled:
    """The batches that are over: how many they are, and what became of their requests.

    `realtime` counts the requests that realtime calls answered in their place.
    """

    batches: int = 0
    answered: int = 0
    failed: int = 0
    resent: int = 0
    realtime: int = 0


@dataclass(frozen=True)
class Problem:
    """What did not go as planned: when, on the state's clock, and what."""

    at: float
    text: str


@dataclass(frozen=True)
class Frame:
    """All that there is to see at a moment; `rows` begin with the batch that was last heard of."""

    overall: Overall
    rows: list[Row]
    settled: Settled
    problems: list[Problem]


class Pace:
    """How fast a count grows."""

    def __init__(self, now: float, count: int) -> None:
        self._reports = deque([(now, count)])

    def add(self, now: float, count: int) -> None:
        """The count at a moment. Of a wait before it first grows, only the end counts.

        What it falls by, as when requests are to be sent again, says nothing of how fast it grows.
        """
        reports = self._reports
        last = reports[-1][1]
        if count < last:
            self._reports = deque((at, before - (last - count)) for at, before in reports)
            return
        if count == last and len(reports) == 1:
            reports.clear()
        elif count == last:
            return
        elif len(reports) > 1 and now - reports[-2][0] < SPACING:
            reports.pop()
        reports.append((now, count))
        while len(reports) > 2 and reports[1][0] < now - PACE_SECONDS:  # noqa: PLR2004 -- two make a rate
            reports.popleft()

    def rate(self, now: float) -> float | None:
        """By the second; None where too little is known, or nothing has been heard for too long."""
        (first, before), (last, after) = self._reports[0], self._reports[-1]
        if last - first < LEAST_SPAN or now - last > max(PACE_SECONDS, last - first):
            return None
        return (after - before) / (last - first)

    def left(self, now: float, total: int) -> float | None:
        """Seconds until the count is there; None: not known, or later than was to be expected."""
        rate = self.rate(now)
        if rate is None:
            return None
        last, count = self._reports[-1]
        left = (total - count) / rate - (now - last)
        return left if left >= 0 else None


class _Batch:
    __slots__ = ("completed", "failed", "model", "pace", "since", "status", "total")

    def __init__(self, model: str, total: int, now: float) -> None:
        self.model = printable(model)
        self.status = "submitted"
        self.completed = self.failed = 0
        self.total = total
        self.since = now
        self.pace = Pace(now, 0)

    @property
    def done(self) -> int:
        return self.completed + self.failed

    def row(self, batch_id: str, now: float) -> Row:
        rate, left = self.pace.rate(now), self.pace.left(now, self.total)
        age = max(now - self.since, 0.0)
        if self.done >= self.total > 0:
            left = None
        return Row(
            printable(batch_id),
            self.model,
            self.status,
            self.completed,
            self.failed,
            self.total,
            rate,
            left,
            age,
        )


class State:
    """What is known of the batches of a client, or of a run.

    Args:
        clock: seconds, from any beginning.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._batches: dict[str, _Batch] = {}  # the one last heard of at the end
        self._progress: Progress | None = None
        self._problems: deque[Problem] = deque(maxlen=PROBLEMS)
        self._pace = Pace(clock(), 0)
        self._packing = Pace(clock(), 0)
        self.settled = Settled()

    def take(self, event: Event) -> None:
        """One more event."""
        now = self._clock()
        match event:
            case BatchSubmitted():
                self._batches[event.batch_id] = _Batch(event.model, event.requests, now)
            case BatchProgressed():
                self._progressed(event, now)
            case BatchSettled():
                self._settle(event)
            case RealtimeCalled():
                self.settled = replace(self.settled, realtime=self.settled.realtime + event.answered)
            case _:
                self._problems.append(Problem(now, problem_text(event)))
        self._pace.add(now, self._done)

    def note(self, progress: Progress) -> bool:
        """A run's own numbers; returns whether they are new."""
        if progress == self._progress:
            return False
        now = self._clock()
        self._progress = progress
        self._packing.add(now, progress.read)
        self._pace.add(now, self._done)
        return True

    def _progressed(self, event: BatchProgressed, now: float) -> None:
        batch = self._batches.pop(event.batch_id, None)
        if batch is None:  # an earlier run made it
            batch = _Batch(event.model, event.total, now)
            batch.pace = Pace(now, event.completed + event.failed)
        self._batches[event.batch_id] = batch
        batch.status = printable(event.status)
        batch.completed, batch.failed = event.completed, event.failed
        batch.total = event.total or batch.total
        batch.pace.add(now, batch.done)

    def _settle(self, event: BatchSettled) -> None:
        if event.batch_id is not None:
            self._batches.pop(event.batch_id, None)
        before = self.settled
        self.settled = replace(
            before,
            batches=before.batches + (event.batch_id is not None),
            answered=before.answered + event.answered,
            failed=before.failed + event.failed,
            resent=before.resent + event.resent,
        )

    @property
    def _ended(self) -> int:
        """Requests of which the end is known here."""
        progress = self._progress
        if progress is not None:
            return progress.answered + progress.failed
        return self.settled.answered + self.settled.failed

    @property
    def _done(self) -> int:
        under_way = sum(batch.done for batch in self._batches.values())
        done = max(self._ended, self.settled.answered + self.settled.failed + under_way)
        return done if self._progress is None else min(done, self._progress.requests)

    @property
    def active(self) -> bool:
        """Whether anything is under way."""
        progress = self._progress
        if progress is not None and not (progress.complete and self._ended >= progress.requests):
            return True
        return bool(self._batches)

    @property
    def overall(self) -> Overall:
        """How far all is, now."""
        now, progress, done = self._clock(), self._progress, self._done
        if progress is None:
            total = self._ended + sum(batch.total for batch in self._batches.values())
            read = size = 0
            answered, failed = self.settled.answered, self.settled.failed
        else:
            total, read, size = progress.requests, progress.read, progress.size
            answered, failed = progress.answered, progress.failed
        packing = progress is not None and not progress.complete
        pace, end = (self._packing, size) if packing else (self._pace, total)
        over = done >= total and not packing
        return Overall(
            packing,
            read,
            size,
            answered,
            failed,
            done,
            total,
            pace.rate(now),
            None if over else pace.left(now, end),
        )

    def row(self, batch_id: str) -> Row | None:
        """A batch that is under way."""
        batch = self._batches.get(batch_id)
        return None if batch is None else batch.row(batch_id, self._clock())

    def frame(self) -> Frame:
        """All that there is to see now."""
        now = self._clock()
        rows = [batch.row(batch_id, now) for batch_id, batch in reversed(self._batches.items())]
        return Frame(self.overall, rows, self.settled, list(self._problems))


def printable(text: str) -> str:
    """Without control characters, which a server may send, and a terminal would obey."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def problem_text(
    event: RequestsResent | RequestsOverdue | CallRetried | LinesIgnored | BatchNotCancelled,
) -> str:
    """A problem in words."""
    match event:
        case CallRetried():
            then = f"next try in {event.delay:.0f} s" if event.delay else "looking whether it was done"
            said = f"{event.step} failed ({event.reason}); {then}"
        case RequestsResent():
            said = f"{counted(event.requests, 'request')} sent again: {event.reason}"
        case RequestsOverdue():
            said = f"{counted(event.requests, 'request')} without an answer by the deadline"
        case LinesIgnored():
            said = f"{counted(event.lines, 'result line')} ignored: {event.reason}"
        case BatchNotCancelled():
            said = "could not be cancelled, and may go on at the server"
    return f"{named(event.batch_id)}: {printable(said)}"


def named(batch_id: str | None) -> str:
    """A batch in a line: by its id, which says by itself what it is, or is preceded by that; "batch -" without one."""
    text = printable(batch_id or "-")
    return text if text.startswith("batch") else f"batch {text}"


def counted(number: int, name: str) -> str:
    """Such as "1 request", "1,000 requests"."""
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def seconds_text(seconds: float | None) -> str:
    """Such as "-" (not known), "12s", "3m 20s", "1h 05m", "2d 04h"."""
    if seconds is None:
        return "-"
    whole = max(round(seconds), 0)
    for limit, unit, small, name, below in ((3600, 60, 1, "m", "s"), (86_400, 3600, 60, "h", "m")):
        if whole < unit:
            return f"{whole}s"
        if whole < limit:
            return f"{whole // unit}{name} {whole % unit // small:02}{below}"
    return f"{whole // 86_400}d {whole % 86_400 // 3600:02}h"


def rate_text(rate: float | None) -> str:
    """Such as "-" (not known), "1,234/s", "12.3/s", "5.0/min", "2.0/h"."""
    if rate is None:
        return "-"
    for name, factor in (("s", 1), ("min", 60), ("h", 3600)):
        shown = rate * factor
        if shown >= 1 or name == "h":
            break
    return f"{shown:,.0f}/{name}" if shown >= 100 else f"{shown:.1f}/{name}"  # noqa: PLR2004 -- three digits tell enough


def bytes_text(size: float) -> str:
    """Such as "812 B", "1.2 MB": in powers of 1000, as files are told."""
    for unit, name in ((1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"
