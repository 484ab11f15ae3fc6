"""A batch on its way: a value with its bookkeeping, and no decisions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import msgspec

from autobatcher.core.lifecycle import CANCELLED_STATUSES, MOVES, Step
from autobatcher.core.outcomes import BatchProblem, Trouble
from autobatcher.core.window import Request


class Snapshot(msgspec.Struct, frozen=True):
    """A batch as the server describes it."""

    id: str
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    problems: tuple[BatchProblem, ...] = ()
    completed: int = 0
    failed: int = 0
    total: int = 0

    @property
    def progress(self) -> tuple[str, int, int, int]:
        """How far it is."""
        return self.status, self.completed, self.failed, self.total

    @property
    def file_ids(self) -> tuple[str, ...]:
        """The result files that there are."""
        return tuple(file_id for file_id in (self.output_file_id, self.error_file_id) if file_id)


class Stumbles(msgspec.Struct):
    """Failures in a row of one of a batch's calls.

    Attributes:
        at: when the last one came.
        kind: how it failed.
        count: how many there are.
        spent: seconds since the first.
        alike: how many of the last ones failed in the same way.
        alike_spent: seconds since the first of these.
        planned: seconds until the next try, by plan.
    """

    at: float
    kind: Trouble
    count: int = 0
    spent: float = 0.0
    alike: int = 0
    alike_spent: float = 0.0
    planned: float = 0.0

    def add(self, kind: Trouble, now: float, most: float) -> None:
        """One more; of the time since the last, what was planned counts, and up to `most` seconds of the rest."""
        passed = min(now - self.at, self.planned + most)
        self.at = now
        self.count += 1
        self.spent += passed
        if kind is self.kind:
            self.alike += 1
            self.alike_spent += passed
        else:
            self.kind, self.alike, self.alike_spent = kind, 1, 0.0


class Batch(msgspec.Struct, eq=False):
    """A closed window on its way.

    Attributes:
        endpoint, model: of all its requests.
        entries: by custom_id, in the order of the file's lines: the request, or None once it is no longer here.
        waiting: how many requests are still here.
        gone: how many were left by their callers.
        left: the custom_ids of those of which no line was read since.
        size, tokens: sums over the requests.
        closed_at, created_at: when its window closed, and when it was made at the server.
        not_before: when it may be sent.
        step, due: see `Step`.
        file_id, snapshot: what the server said of it.
        refusals, refused_since: how often in a row the server's queue was full for its requests, and since when.
        doubt: why it is not known whether the creation made a batch; None when it is known.
        looks_since: when a look first found none.
        stumbles: the failures in a row of the calls that have not succeeded since, by step.
        read: how many lines of each result file were read.
        resumes: whether the server can send a file from a line on.
        final: whether its files are read for the end.
        rereads: how often they have been read again.
        legible, illegible: the files of which a line could be read, or could not be, since they were begun anew.
        answered, failed, resent: what became of its requests.
        number, noted: in the journal, if there is one; and how many requests it has there.
        restored: whether an earlier run made it.
        cancelled_before: whether it was cancelled before this run first saw it; None until then.
    """

    endpoint: str
    model: str
    entries: dict[str, Request | None]
    closed_at: float
    not_before: float
    waiting: int = 0
    gone: int = 0
    left: set[str] = msgspec.field(default_factory=set)
    size: int = 0
    tokens: float = 0.0
    created_at: float = 0.0
    step: Step = Step.QUEUED
    due: float | None = None
    file_id: str | None = None
    snapshot: Snapshot | None = None
    refusals: int = 0
    refused_since: float = 0.0
    doubt: object = None
    looks_since: float | None = None
    stumbles: dict[Step, Stumbles] = msgspec.field(default_factory=dict)
    read: dict[str, int] = msgspec.field(default_factory=dict)
    resumes: bool = True
    final: bool = False
    rereads: int = 0
    legible: set[str] = msgspec.field(default_factory=set)
    illegible: set[str] = msgspec.field(default_factory=set)
    answered: int = 0
    failed: int = 0
    resent: int = 0
    number: int | None = None
    noted: int = 0
    restored: bool = False
    cancelled_before: bool | None = False

    @classmethod
    def of(
        cls,
        endpoint: str,
        model: str,
        requests: dict[str, Request],
        *,
        closed_at: float,
        not_before: float,
    ) -> Batch:
        """A batch of these requests, each of which is in it from now on; they come by custom_id, in a dictionary that is its own."""
        batch = cls(endpoint, model, cast("dict[str, Request | None]", requests), closed_at, not_before)
        for request in requests.values():
            request.place = batch
            batch.size += request.size
            batch.tokens += request.tokens
        batch.waiting = len(batch.entries)
        return batch

    @classmethod
    def restored_from(
        cls,
        endpoint: str,
        model: str,
        entries: dict[str, Request | None],
        *,
        number: int,
        file_id: str | None,
        batch_id: str | None,
        size: int,
        age: float,
        now: float,
    ) -> Batch:
        """A batch that an earlier run made, `age` seconds ago if it is known to exist."""
        batch = cls(endpoint, model, entries, closed_at=now - age, not_before=now)
        batch.size = size
        batch.number, batch.restored, batch.cancelled_before = number, True, None
        for request in batch.requests:
            request.place = batch
            batch.waiting += 1
        batch.file_id = file_id
        batch.due = now
        if batch_id is None:
            batch.step = Step.LOOK_UP
        else:
            batch.step = Step.POLL
            batch.created_at = now - age
            batch.snapshot = Snapshot(batch_id, "unknown")
        return batch

    def __repr__(self) -> str:
        return f"Batch({self.id!r}, {self.endpoint!r}, {self.model!r}, {self.step}, {self.waiting} waiting)"

    @property
    def id(self) -> str | None:
        """The server's id, once it has given one."""
        return None if self.snapshot is None else self.snapshot.id

    @property
    def uncertain_file_id(self) -> str | None:
        """The input file, if it is not known whether there is a batch of it."""
        creating = self.step is Step.CREATE and self.due is None
        return self.file_id if self.snapshot is None and (creating or self.doubt is not None) else None

    @property
    def requests(self) -> Iterator[Request]:
        """Those that are still here, in the file's order."""
        return (request for request in self.entries.values() if request is not None)

    def see(self, snapshot: Snapshot) -> bool:
        """The server describes it so; whether it has come further."""
        before, self.snapshot = self.snapshot, snapshot
        if self.cancelled_before is None:
            self.cancelled_before = snapshot.status in CANCELLED_STATUSES
        return before is None or before.progress != snapshot.progress

    def note_legible(self, file_id: str, good: int, malformed: int) -> None:
        """So many lines of a file could be read, and so many not."""
        if good:
            self.legible.add(file_id)
        if malformed:
            self.illegible.add(file_id)

    def begin_anew(self) -> None:
        """Forget what was read of the result files, for they are to be read from their first line on."""
        for read in (self.read, self.legible, self.illegible):
            read.clear()

    def move(self, step: Step) -> None:
        """Go to the next step; a move that the table does not have is a defect."""
        if step not in MOVES[self.step]:
            raise AssertionError(f"a batch does not go from {self.step} to {step}")
        self.step = step

    def take(self, custom_id: str) -> Request | None:
        """Take a request out; None if it is not here, or no longer."""
        request = self.entries.get(custom_id)
        if request is not None:
            self.entries[custom_id] = None
            self.waiting -= 1
            request.place = None
        return request

    def take_all(self) -> list[Request]:
        """Take out all that are still here."""
        requests = list(self.requests)
        self.entries = dict.fromkeys(self.entries)
        self.waiting = 0
        for request in requests:
            request.place = None
        return requests

    def lines(self) -> tuple[Request, ...]:
        """What the file consists of that is made now, one line each; whoever has left is forgotten.

        The server's line numbers count these.
        """
        requests = tuple(self.requests)
        if len(requests) < len(self.entries):
            self.entries = {request.custom_id: request for request in requests}
            self.size = sum(request.size for request in requests)
            self.tokens = sum(request.tokens for request in requests)
            self.gone = 0
        return requests

    def stumble(self, kind: Trouble, now: float, most: float) -> Stumbles:
        """Note that this step's call failed; the time since it last did counts up to `most` seconds."""
        stumbles = self.stumbles.setdefault(self.step, Stumbles(now, kind))
        stumbles.add(kind, now, most)
        return stumbles
