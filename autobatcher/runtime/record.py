"""A client's use of a journal: which of several equal requests a call is, and what is written when."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.jsonl import body_of, encode_line
from autobatcher.core.messages import Created, LookedUp, Report, Uploaded
from autobatcher.core.outcomes import Answer
from autobatcher.core.window import GIVEN_BACK, Request
from autobatcher.errors import JournalError
from autobatcher.journal import Journal, JournalledRequest, OpenBatch
from autobatcher.journal.forks import check_process
from autobatcher.runtime.numbers import Numbers
from autobatcher.runtime.spawn import is_dead
from autobatcher.runtime.spool import Line, whole

Unclaimed = dict[tuple[bytes, int], tuple[Request, Any]]
"""Each with what follows it."""


class Record:
    """One journal, shared by all that use it in this process.

    Args:
        journal: where things are kept.
        owned: whether it is closed with its last user.

    Attributes:
        given_back: how many batches were let go of before their end.
        users: how many have it open.
        abandoned: whether one that was never closed is gone.
        numbers: those of the calls of this run.
    """

    def __init__(self, journal: Journal, *, owned: bool) -> None:
        self.journal = journal
        self.owned = owned
        self.given_back = 0
        self.users = 0
        self.abandoned = False
        self.numbers = Numbers()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._held: dict[int, Any] = {}
        self._unclaimed: dict[Any, Unclaimed] = {}
        self._has_past = journal.has_answers()

    def check(self) -> None:
        """Refuse the use in a forked child."""
        check_process(self._pid, getattr(self.journal, "path", "the journal"))

    def take(self, request: Request) -> Answer | None:
        """Say which of the equal requests this one is, unless that is said; its answer, if that is there."""
        again = True
        if request.n < 0:
            with self._lock:
                request.n, again = self.numbers.take(request.key)
        # In a fresh journal, what nobody has asked before has no answer.
        return self.journal.answer(request.key, request.n) if again or self._has_past else None

    def retake(self, request: Request) -> None:
        """A request that has given its number back is answered after all: it has a number again."""
        if request.n < 0:
            with self._lock:
                request.n = self.numbers.retake(request.key, GIVEN_BACK - request.n)

    @property
    def runs(self) -> bool:
        """Whether an event loop that has used it may go on."""
        return not all(is_dead(loop) for loop in tuple(self._unclaimed))

    def go_on(self) -> None:
        """Begin another run, if all event loops of the last one are over."""
        with self._lock:
            if not self.runs:
                self.numbers = Numbers()
                self._has_past = self.journal.has_answers()

    def begin(self, base_url: str, batch: Batch, requests: Iterable[Request], loop: Any) -> None:
        """Note a batch and the lines of its file before the upload."""
        requests = tuple(requests)
        if batch.number is not None:  # an upload that failed, of as many or more
            if batch.noted == len(requests):
                return
            self.ended(batch.number)
        noted = (  # large bodies are on disk, and are not to be in memory together
            JournalledRequest(request.key, request.n, request.custom_id, body_of(whole(request.line)))
            for request in requests
        )
        with self._lock:  # else another loop could take it for one that nobody follows
            batch.number = self.journal.begin(base_url, batch.endpoint, batch.model, noted, batch.size)
            self._held[batch.number] = loop
        batch.noted = len(requests)

    def restore(self, base_url: str, loop: Any) -> list[OpenBatch]:
        """The batches of earlier runs, and of event loops that are over; they are the caller's from now on."""
        with self._lock:
            found = [
                batch
                for batch in self.journal.open_batches(base_url)
                if batch.number not in self._held or is_dead(self._held[batch.number])
            ]
            self._held.update((batch.number, loop) for batch in found)
            self._has_past |= bool(found)  # whose answers come whether they are asked for or not
        return found

    def ended(self, number: int) -> None:
        """Nothing more is to be expected of this batch."""
        self.journal.ended(number)
        self._held.pop(number, None)

    def give_back(self, number: int) -> None:
        """This batch is no longer followed: another may restore it."""
        if self._held.pop(number, None) is not None:
            self.given_back += 1

    def unclaimed(self, loop: Any) -> Unclaimed:
        """The requests that are followed in this event loop, and that nobody waits for, by key and number."""
        with self._lock:
            for other in [other for other in self._unclaimed if is_dead(other)]:
                self._unclaimed.pop(other, None)
            return self._unclaimed.setdefault(loop, {})


class Notes:
    """What one driver does with a record; this one has none, and does nothing.

    Attributes:
        keeps: whether there is a record.
        adrift: whether there may be batches that nobody follows.
    """

    keeps = False
    adrift = False

    def known(self, request: Request) -> Answer | None:
        """Take the request's number; its answer, if that is there."""

    def retake(self, request: Request) -> None:
        """The request, whose batch has failed, is answered after all."""

    def joined(self, request: Request, driver: Any) -> Request:
        """The same request of an earlier caller, if that is on its way and nobody waits for it; else this one."""
        del driver
        return request

    def left(self, request: Request, driver: Any) -> None:
        """The caller of a request that this driver follows has left, or it was not accepted."""

    def begin(self, batch: Batch, requests: Iterable[Request]) -> None:
        """These requests are about to be uploaded."""

    def note(self, report: Report) -> None:
        """Something happened that a later run must know."""

    def keep(self, answers: list[tuple[Request, Answer]]) -> None:
        """These answers are about to reach their callers."""

    def ended(self, batch: Batch) -> None:
        """Nothing more is to be expected of a batch."""

    def failed(self, request: Request) -> None:
        """The request got no answer that is kept."""

    def dropped(self, request: Request) -> None:
        """The request, for which nobody waits, is on its way no more."""

    def restored(self, now: float, driver: Any) -> list[Batch]:
        """Batches to go on with."""
        del now, driver
        return []

    def stop(self, batches: Iterable[Batch], driver: Any = None) -> None:
        """These batches are no longer followed; nor is anything else, if the driver is told that does."""


class RecordedNotes(Notes):
    """Notes in a journal.

    Args:
        record: the journal.
        base_url: the server.
        loop: where the driver runs.
        keep: puts large lines on disk.
    """

    keeps = True

    def __init__(self, record: Record, base_url: str, loop: Any, keep: Callable[[bytes], Line]) -> None:
        self._record = record
        self._keep = keep
        self._base_url = base_url
        self._loop = loop
        self._unclaimed = record.unclaimed(loop)
        self._numbers = record.numbers  # as long as this loop lives, these are the record's
        self._seen = record.given_back

    @property
    def adrift(self) -> bool:  # type: ignore[override] # noqa: D102 -- as above, and the following
        return self._seen != self._record.given_back

    def known(self, request: Request) -> Answer | None:  # noqa: D102
        try:
            return self._record.take(request)
        except BaseException:
            self._release(request)
            raise

    def retake(self, request: Request) -> None:  # noqa: D102
        self._record.retake(request)

    def joined(self, request: Request, driver: Any) -> Request:  # noqa: D102
        if not self._unclaimed:
            return request
        name = request.key, request.n
        there, host = self._unclaimed.get(name, (request, driver))
        if there.place is not None and there.line is None:
            # Of an earlier run; its batch knows it by the name that it had there.
            body = body_of(whole(request.line))
            line = encode_line(there.custom_id, there.endpoint, body)
            kept = self._keep(line)  # which a full disk ends, and nothing has changed
            there.line, there.size = kept, len(line)
        self._unclaimed.pop(name, None)
        if there.place is None:  # settled since, without an answer
            return request
        there.reply = request.reply
        there.weight, there.retries_left, there.wanted = request.weight, request.retries_left, True
        there.resubmits = request.resubmits
        there.patience, there.accepted_at = request.patience, request.accepted_at
        there.host = None if host is driver else host
        return there

    def _release(self, request: Request) -> None:
        """Give a number back, once: another call may have it by the time that its caller, which failed, leaves."""
        if request.n >= 0 and not request.named:
            self._numbers.give_back(request.key, request.n)
            if request.place is None:
                request.n = GIVEN_BACK - request.n

    def left(self, request: Request, driver: Any) -> None:  # noqa: D102
        if request.reply is None:  # it has left before
            return
        self._release(request)
        if request.place is not None:
            request.reply = None
            self._unclaimed[request.key, request.n] = (request, driver)

    def begin(self, batch: Batch, requests: Iterable[Request]) -> None:  # noqa: D102
        self._record.begin(self._base_url, batch, requests, self._loop)

    def note(self, report: Report) -> None:  # noqa: D102
        match report:
            case Uploaded(Batch(number=int(number)), file_id):
                self._record.journal.uploaded(number, file_id)
            case Created(Batch(number=int(number)), Snapshot(id=batch_id)):
                self._record.journal.created(number, batch_id)
            case LookedUp(Batch(number=int(number)), Snapshot(id=batch_id)):
                self._record.journal.created(number, batch_id)

    def keep(self, answers: list[tuple[Request, Answer]]) -> None:  # noqa: D102
        self._record.journal.answered((request.key, request.n, answer) for request, answer in answers)

    def ended(self, batch: Batch) -> None:  # noqa: D102
        if batch.number is not None:
            self._record.ended(batch.number)

    def failed(self, request: Request) -> None:  # noqa: D102
        if request.wanted:
            self._release(request)

    def dropped(self, request: Request) -> None:  # noqa: D102
        self._unclaimed.pop((request.key, request.n), None)

    def restored(self, now: float, driver: Any) -> list[Batch]:  # noqa: D102
        batches = []
        before = self._record.given_back
        restored = self._record.restore(self._base_url, self._loop)
        self._seen = before  # not if that failed: then the next call tries it again
        for found in restored:
            batch = batch_of(found, now)
            if found.file_id is None:  # then it was not created either
                with contextlib.suppress(JournalError):  # then it is found once more
                    self.ended(batch)
                continue
            self._unclaimed.update(
                ((request.key, request.n), (request, driver)) for request in batch.requests
            )
            batches.append(batch)
        return batches

    def stop(self, batches: Iterable[Batch], driver: Any = None) -> None:  # noqa: D102
        for batch in batches:
            if batch.number is not None:
                self._record.give_back(batch.number)
        if driver is not None:
            for name in [name for name, (_, host) in self._unclaimed.items() if host is driver]:
                del self._unclaimed[name]


_open: dict[str, Record] = {}
_open_lock = threading.Lock()
_gone: deque[Record] = deque()
"""Records whose users the garbage collector has taken, once for each; it may run inside of all that holds the lock."""


def open_record(given: str | os.PathLike[str] | Journal) -> Record:
    """The record of a journal, opened if it is not yet open in this process.

    Raises:
        JournalError: as from `SqliteJournal`.
    """
    with _open_lock:
        _sweep()
        name = str(id(given)) if isinstance(given, Journal) else os.path.realpath(given)
        record = _open.get(name)
        if record is None:
            from autobatcher.journal import SqliteJournal  # noqa: PLC0415 -- most programs have no journal

            record = _open[name] = (
                Record(given, owned=False)
                if isinstance(given, Journal)
                else Record(SqliteJournal(given), owned=True)
            )
        else:
            record.check()
            record.go_on()
        record.users += 1
        return record


def close_record(record: Record) -> None:
    """One user less; a file that nobody uses is closed, a store that was given is its giver's to close."""
    with _open_lock:
        record.users -= 1
        _sweep()


def drop_record(record: Record) -> None:
    """The same for a user that was never closed: called by the garbage collector, wherever that runs."""
    _gone.append(record)
    if _open_lock.acquire(blocking=False):  # else whoever has it may be waiting for this very call
        try:
            _sweep()
        finally:
            _open_lock.release()


def _sweep() -> None:
    """Close what nobody uses, and nobody will; what is gone without having been closed counts until its loops end."""
    while _gone:
        record = _gone.popleft()
        record.users -= 1
        record.abandoned = True
    for name, record in tuple(_open.items()):
        if not record.users and not (record.abandoned and record.runs):
            del _open[name]
            if record.owned:
                record.journal.close()


def batch_of(found: OpenBatch, now: float) -> Batch:
    """A batch as it goes on after a restart; nobody waits for its requests yet."""
    entries: dict[str, Request | None] = {}
    for position in range(max(found.requests, default=-1) + 1):
        if position in found.requests:
            custom_id, key, n = found.requests[position]
            entries[custom_id] = Request(
                custom_id, found.endpoint, found.model, None, 0, key=key, n=n, wanted=False
            )
        else:
            entries[f"line {position}"] = None  # answered before; those after it keep their places
    age = 0.0 if found.created_at is None else max(0.0, time.time() - found.created_at)
    return Batch.restored_from(
        found.endpoint,
        found.model,
        entries,
        number=found.number,
        file_id=found.file_id,
        batch_id=found.batch_id,
        size=found.size,
        age=age,
        now=now,
    )
