"""What to do next: reports go in, effects come out, and the clock's reading is an argument.

Every accepted request is in exactly one place, a window or a batch, until it is settled or abandoned; whatever
ends a batch settles all that are left in it, or sends them on. So each request settles once, and none is forgotten.

A call that failed goes out again from here and nowhere else: the batch stays at its step, with a later `due`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from autobatcher.core.admission import Admission
from autobatcher.core.batch import Batch, Snapshot, Stumbles
from autobatcher.core.jsonl import MalformedLineError, decode_line, prompt_tokens
from autobatcher.core.lifecycle import TERMINAL_STATUSES, Step
from autobatcher.core.messages import (
    Call,
    Cancel,
    Cancelled,
    Create,
    Created,
    Effect,
    Ended,
    Failed,
    Fetch,
    Fetched,
    Late,
    LinesRead,
    LookedUp,
    LookUp,
    Poll,
    Polled,
    Publish,
    Report,
    Settle,
    Upload,
    Uploaded,
)
from autobatcher.core.outcomes import (
    Answer,
    CallFailed,
    Closed,
    Failure,
    LineFailed,
    Outcome,
    Trouble,
    Unanswered,
)
from autobatcher.core.retry import (
    CALLS,
    FILE_LAG,
    FILE_LOOKS,
    ILLEGIBLE_REREADS,
    LATER,
    LINES,
    LOOK_UP_INTERVAL,
    LOOK_UP_SECONDS,
    LOST_SECONDS,
    LOST_TIMES,
    MAX_LOSSES,
    MAX_REFUSALS,
    MAX_RETRY_AFTER,
    MAX_SPENT,
    ODD_ANSWERS,
    REREADS,
    PollSchedule,
    WholeFailure,
    is_success,
    judge_failed,
    may_pass,
)
from autobatcher.core.window import Limits, Request, Window, check_fits_any
from autobatcher.events import (
    BatchNotCancelled,
    BatchProgressed,
    BatchSettled,
    BatchSubmitted,
    CallRetried,
    LinesIgnored,
    RequestsResent,
)

EXPIRED = "batch_expired"
"""The code of a line that its batch's completion window left unanswered.

Source: https://platform.openai.com/docs/guides/batch, "Batch expiration".
"""

CANCELLED = "batch_cancelled"
"""The code of a line that was not answered before its batch was cancelled.

Source: https://platform.openai.com/docs/api-reference/batch/request-output.
"""


class Engine(msgspec.Struct, eq=False):
    """All decisions of one client in one event loop.

    Args:
        limits: when windows close.
        polls: how often a batch is looked at.
        admission: how much may be at the server.
        patience: seconds for which a call may fail on end, in ways that may pass, before its batch is given up.
        keeps: whether answers that nobody waits for are kept: then a request that is at the server stays there when its
            caller leaves.
        spread: a number from 0 to 1 at each call, so that clients that were stopped together do not come back so.
    """

    limits: Limits = msgspec.field(default_factory=Limits)
    polls: PollSchedule = msgspec.field(default_factory=PollSchedule)
    admission: Admission = msgspec.field(default_factory=Admission)
    patience: float = 86_400.0
    spread: Callable[[], float] = lambda: 0.0
    keeps: bool = False
    windows: dict[tuple[str, str, int], Window] = msgspec.field(default_factory=dict)
    batches: dict[int, Batch] = msgspec.field(default_factory=dict)

    # Requests come and go.

    def accept(self, request: Request, now: float) -> None:
        """Put a request into its window.

        Raises:
            OversizedError: it fits into no file.
        """
        check_fits_any(request, self.limits)
        self._gather(request, now, now + self.limits.seconds)

    def abandon(self, request: Request, now: float) -> list[Effect]:
        """The caller has left: its request goes with it while it is not sent; its answer is dropped later."""
        place = request.place
        if (
            self.keeps
            and isinstance(place, Batch)
            and (place.step not in (Step.QUEUED, Step.UPLOAD) or _uploading(place))
        ):
            request.wanted = False
            return []
        return self.withdraw(request, now)

    def withdraw(self, request: Request, now: float) -> list[Effect]:
        """Let go of a request whose answer is of no use any more, whatever is kept."""
        place = request.place
        if isinstance(place, Window):
            place.discard(request)
            if not place.requests:
                del self.windows[_key(request)]
        elif isinstance(place, Batch):
            place.take(request.custom_id)
            place.gone += 1
            place.left.add(request.custom_id)
            return self._if_deserted(place, now)
        return []

    def restore(self, batch: Batch, now: float) -> list[Effect]:
        """Go on with a batch of an earlier run."""
        batch.tokens = self.admission.estimate(batch.model, batch.size)
        self.batches[id(batch)] = batch
        return self._if_deserted(batch, now)

    def _gather(self, request: Request, now: float, closes_at: float) -> None:
        self._estimate(request)
        key = _key(request)
        window = self.windows.get(key)
        if window is None or not window.fits(request):
            if window is not None:
                self._enqueue(key, now)
            window = self.windows[key] = Window(self.limits, closes_at)
        window.add(request)
        if window.full:
            self._enqueue(key, now)

    def _estimate(self, request: Request) -> None:
        """Whenever it is sent: one of an earlier run has no size before, and answers tell more by then."""
        request.tokens = self.admission.estimate(request.model, request.size)

    def _enqueue(self, key: tuple[str, str, int], now: float) -> None:
        window = self.windows.pop(key)
        endpoint, model, sent = key
        self._queue(endpoint, model, window.requests, now, window.closes_at if sent else now)

    def _queue(
        self, endpoint: str, model: str, requests: dict[str, Request], now: float, not_before: float
    ) -> Batch:
        batch = Batch.of(endpoint, model, requests, closed_at=now, not_before=not_before)
        batch.due = not_before
        self.batches[id(batch)] = batch
        return batch

    # Time passes.

    def flush(self, now: float) -> None:
        """Close the windows of requests that were not sent before: nothing more is to come soon."""
        for (_, _, sent), window in self.windows.items():
            if not sent:
                window.closes_at = now

    def next_wakeup(self) -> float | None:
        """When `wake` has something to do, or None."""
        times = [window.closes_at for window in self.windows.values()]
        times += [batch.due for batch in self.batches.values() if batch.due is not None]
        return min(times, default=None)

    def wake(self, now: float) -> list[Effect]:
        """Do what is due."""
        for key in [key for key, window in self.windows.items() if window.closes_at <= now]:
            self._enqueue(key, now)
        for batch in self.admission.choose(self.batches.values(), now):
            self._go(batch, Step.UPLOAD, now)
        return [
            self._call(batch)
            for batch in self.batches.values()
            if batch.step is not Step.QUEUED and batch.due is not None and batch.due <= now
        ]

    @staticmethod
    def _go(batch: Batch, step: Step, due: float) -> None:
        batch.move(step)
        batch.due = due

    def _call(self, batch: Batch) -> Call:
        batch.due = None
        match batch.step, batch.file_id, batch.snapshot:
            case Step.UPLOAD, _, _:
                return Upload(batch)
            case Step.CREATE, str(file_id), _:
                return Create(batch, file_id)
            case Step.LOOK_UP, str(file_id), _:
                return LookUp(batch, file_id)
            case Step.POLL, _, Snapshot(id=batch_id):
                return Poll(batch, batch_id)
            case Step.CANCEL, _, Snapshot(id=batch_id):
                return Cancel(batch, batch_id)
            case Step.FETCH, _, Snapshot(file_ids=file_ids):
                files = (
                    (file_id, batch.read.get(file_id, 0) if batch.resumes else 0) for file_id in file_ids
                )
                return Fetch(batch, tuple(files))
        raise AssertionError(f"no call is due for a batch at {batch.step}")

    # The runtime reports.

    def handle(self, report: Report, now: float) -> list[Effect]:
        """Go on from what the runtime reports."""
        batch = report.batch
        if batch.step is Step.SETTLED:  # by `close`, while the call was under way
            return []
        return self._on(report, now) + self._if_deserted(batch, now)

    def _on(self, report: Report, now: float) -> list[Effect]:
        batch = report.batch
        if isinstance(report, LinesRead):
            return self._read(report, now)
        if isinstance(report, Failed):
            return self._failed(batch, report.failure, now)
        batch.stumbles.pop(batch.step, None)
        match report:
            case Uploaded(_, file_id):
                batch.file_id = file_id
                if any(request.wanted for request in batch.requests):
                    self._go(batch, Step.CREATE, now)
                else:  # they have all left meanwhile, and nothing is bought yet
                    batch.take_all()
            case Created(_, snapshot) | LookedUp(_, Snapshot() as snapshot):
                return self._created(batch, snapshot, now)
            case LookedUp():
                return self._not_there(batch, now)
            case Polled(_, snapshot):
                return self._polled(batch, snapshot, now)
            case Fetched():
                return self._fetched(batch, now)
            case Cancelled(_, status):
                return self._cancelled(batch, status, now)
        return []

    def give_up(self, batch: Batch, cause: object, now: float) -> list[Effect]:
        """Settle everybody in this batch with an error that no rule provides for."""
        return [] if batch.step is Step.SETTLED else self._finish(batch, now, CallFailed(cause), over=False)

    def close(self, now: float, *, cancel: bool = False) -> list[Effect]:
        """Settle whoever still waits.

        Batches stay at the server, unless they are to be cancelled, or all of whose callers had left before: go on
        with these until `batches` is empty, or call `give_up_all`. None is cancelled that others wait for, or that is of
        an earlier run and that nobody here has asked for.
        """
        effects: list[Effect] = []
        for window in self.windows.values():
            for request in window.requests.values():
                request.place = None
                effects.append(Settle(request, Closed(None)))
        self.windows.clear()
        for batch in list(self.batches.values()):
            deserted = batch.gone and not batch.waiting
            cancels = deserted or (cancel and _is_of_its_own_callers(batch))
            if batch.step in (Step.QUEUED, Step.UPLOAD) or not cancels:
                closed = Closed(batch.id, file_id=batch.uncertain_file_id)
                effects += self._finish(batch, now, closed, over=False)
                continue
            closed = Closed(batch.id, cancelling=True, file_id=batch.uncertain_file_id)
            effects += [Settle(request, closed) for request in batch.take_all()]
            batch.gone += 1
            if batch.step is Step.LOOK_UP and batch.due is not None:  # there is little time left to find it
                batch.stumbles.clear()
                batch.due = now
            effects += self._if_deserted(batch, now)
        return effects

    def give_up_all(self, now: float) -> list[Effect]:
        """End what `close` has left."""
        return [
            effect
            for batch in list(self.batches.values())
            for effect in (Publish(BatchNotCancelled(batch.id)), *self._finish(batch, now, over=False))
        ]

    def forget(self) -> list[Request]:
        """Let go of all requests there are: the event loop is over, and nobody waits any more."""
        waiting = [request for window in self.windows.values() for request in window.requests.values()]
        waiting += [request for batch in self.batches.values() for request in batch.requests]
        for request in waiting:
            request.reply = request.place = request.host = None
        self.windows.clear()
        self.batches.clear()
        return waiting

    def _if_deserted(self, batch: Batch, now: float) -> list[Effect]:
        """End what nobody waits for, as soon as no call for it is under way that could buy anything."""
        under_way = batch.due is None and batch.step not in (Step.QUEUED, Step.UPLOAD)
        if batch.waiting or under_way or batch.step in (Step.SETTLED, Step.LOOK_UP, Step.CANCEL):
            return []  # what a creation made whose answer was lost has to be found, if only to be cancelled
        if batch.gone and batch.snapshot is not None and batch.snapshot.status not in TERMINAL_STATUSES:
            self._go(batch, Step.CANCEL, now)
            return []
        return self._finish(batch, now)

    def _created(self, batch: Batch, snapshot: Snapshot, now: float) -> list[Effect]:
        batch.see(snapshot)
        batch.created_at = now
        self._go(batch, Step.POLL, now + self.polls.interval(0.0))
        submitted = BatchSubmitted(snapshot.id, batch.endpoint, batch.model, len(batch.entries), batch.size)
        return [Publish(submitted)]

    def _cancelled(self, batch: Batch, status: str | None, now: float) -> list[Effect]:
        if status is not None and batch.snapshot is not None:
            batch.snapshot = msgspec.structs.replace(batch.snapshot, status=status)
        over = not self.keeps  # what it has answered, or yet does, is for the next run
        return self._finish(batch, now, over=over)

    def _not_there(self, batch: Batch, now: float) -> list[Effect]:
        if batch.looks_since is None:
            batch.looks_since = now
        left = batch.looks_since + LOOK_UP_SECONDS - now
        if left > 0:
            batch.due = now + min(left, LOOK_UP_INTERVAL)
            return []
        cause, batch.doubt, batch.looks_since = batch.doubt, None, None
        if not any(request.wanted for request in batch.requests):
            return self._finish(batch, now, Closed(None))
        tries = batch.stumbles.get(Step.CREATE)
        if tries is None:  # of an earlier run
            self._go(batch, Step.CREATE, now)
            return []
        if tries.spent > self.patience or (tries.kind is Trouble.ODD and tries.alike >= ODD_ANSWERS):
            return self._finish(batch, now, CallFailed(cause))
        self._go(batch, Step.CREATE, now + CALLS.delay(tries.count, self.spread()))
        return []

    def _poll_later(self, batch: Batch, now: float) -> None:
        self._go(batch, Step.POLL, now + self.polls.interval(now - batch.created_at))

    def _polled(self, batch: Batch, snapshot: Snapshot, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if batch.see(snapshot):
            effects.append(
                Publish(BatchProgressed(snapshot.id, batch.endpoint, batch.model, *snapshot.progress))
            )
        if snapshot.status in TERMINAL_STATUSES:
            if not batch.final:
                batch.begin_anew()
                batch.stumbles.pop(Step.FETCH, None)  # of looks before the end, on which nothing hung
            batch.final = True
            if not snapshot.file_ids:
                return effects + self._adds_up(batch, now)
            self._go(batch, Step.FETCH, now)
            return effects
        batch.final = False  # an end can be taken back, by a server of several minds
        if snapshot.file_ids and batch.resumes:
            self._go(batch, Step.FETCH, now)
        else:
            batch.due = now + self.polls.interval(now - batch.created_at)
        return effects

    def _fetched(self, batch: Batch, now: float) -> list[Effect]:
        if not batch.final:
            self._poll_later(batch, now)
            return []
        return self._adds_up(batch, now)

    # Answers.

    def _read(self, report: LinesRead, now: float) -> list[Effect]:
        batch = report.batch
        if report.last > batch.read.get(report.file_id, 0):
            batch.read[report.file_id] = report.last
            batch.stumbles.pop(Step.FETCH, None)
        batch.resumes = report.resumes
        effects: list[Effect] = []
        unknown = again = 0
        lines = list(filter(None, map(_decoded, report.lines)))
        malformed = len(report.lines) - len(lines)
        batch.note_legible(report.file_id, len(lines), malformed)
        for custom_id, outcome in lines:
            if custom_id not in batch.entries:
                unknown += not batch.restored  # of which only the unanswered lines are known
                continue
            request = batch.take(custom_id)
            if request is None:  # read before, doubled, or its caller has left
                effects += _late(batch, custom_id, outcome)
                continue
            try:
                settled = self._judge(batch, request, outcome, now)
            except Exception as error:  # noqa: BLE001 -- a defect over one line must not lose the others' answers
                settled = Settle(request, CallFailed(error))
            if settled is None:
                again += 1
            else:
                effects.append(settled)
        for count, why in ((malformed, "malformed"), (unknown, "with an unknown custom_id")):
            if count:
                effects.append(Publish(LinesIgnored(batch.id, count, why)))
        if again:
            batch.resent += again
            effects.append(Publish(RequestsResent(batch.id, again, "their lines hold errors that may pass")))
        return effects

    def _judge(self, batch: Batch, request: Request, outcome: Outcome, now: float) -> Settle | None:
        """What a line leads to; None if the request goes into another batch."""
        if self._goes_again(batch, request, outcome):
            self._send_again(request, now)
            return None
        return self._settle(batch, request, outcome)

    @staticmethod
    def _goes_again(batch: Batch, request: Request, outcome: Outcome) -> bool:
        """Whether this is no answer to settle with; counts against the request."""
        if not request.wanted:
            return False
        if isinstance(outcome, LineFailed):
            expired = outcome.code == EXPIRED and request.resubmits
            lost = expired or (outcome.code == CANCELLED and batch.cancelled_before)
            if lost and request.losses < MAX_LOSSES:
                request.losses += 1
                return True
        elif isinstance(outcome, Answer) and may_pass(outcome.status) and request.retries_left > 0:
            request.retries_left -= 1
            return True
        return False

    def _send_again(self, request: Request, now: float) -> None:
        request.sent += 1
        self._gather(request, now, now + LINES.delay(request.sent, self.spread()))

    def _settle(self, batch: Batch, request: Request, outcome: Outcome) -> Settle:
        if isinstance(outcome, LineFailed):
            outcome = LineFailed(outcome.code, outcome.message, batch.id)
        if isinstance(outcome, Answer) and is_success(outcome.status):
            batch.answered += 1
            if self.admission.max_tokens is not None and (tokens := prompt_tokens(outcome.body)):
                self.admission.measure(request.model, request.size, tokens)
        else:
            batch.failed += 1
        return Settle(request, outcome)

    # A batch ends.

    def _adds_up(self, batch: Batch, now: float) -> list[Effect]:
        """The batch has ended and what there is was read: go on with those that it left unanswered."""
        status = self._status(batch)
        if not batch.waiting:
            return self._finish(batch, now)
        most = ILLEGIBLE_REREADS if batch.illegible - batch.legible else REREADS
        if status != "failed" and batch.rereads < most:
            batch.rereads += 1
            batch.begin_anew()
            first = max(self.polls.first, FILE_LAG)
            due = now + min(first * 2 ** (batch.rereads - 1), self.polls.latest(0.0))
            if batch.step is Step.POLL:
                batch.due = due
            else:
                self._go(batch, Step.POLL, due)
            return []
        if status == "failed":
            return self._whole_failed(batch, now)
        if status == "cancelled" and not batch.cancelled_before:
            return self._finish(batch, now, self._unanswered(batch))
        effects = self._lost(batch, now, f"the batch is {status} and holds no lines for them")
        return effects + self._finish(batch, now, self._unanswered(batch))

    def _whole_failed(self, batch: Batch, now: float) -> list[Effect]:
        problems = () if batch.snapshot is None else batch.snapshot.problems
        unanswered = self._unanswered(batch)
        match judge_failed(problems, len(batch.entries)):
            case WholeFailure.LINES:
                effects: list[Effect] = []
                names = list(batch.entries)
                for problem in problems:
                    if problem.line is None or not 1 <= problem.line <= len(names):
                        continue
                    if (request := batch.take(names[problem.line - 1])) is not None:
                        said = LineFailed(
                            problem.code, problem.message or "the server does not take this line"
                        )
                        effects.append(self._settle(batch, request, said))
                # Some servers name one line at a time.
                sent = max((request.sent for request in batch.requests), default=0)
                pause = LINES.delay(sent, self.spread()) if sent else 0.0
                effects += self._again(batch, now, "the batch failed for other lines", pause=pause)
                return effects + self._finish(batch, now)
            case WholeFailure.PASSING:
                effects = self._lost(batch, now, "the batch failed at the server")
                return effects + self._finish(batch, now, unanswered)
            case WholeFailure.QUEUE:
                return self._queue_full(batch, now)
        return self._finish(batch, now, unanswered)

    def _queue_full(self, batch: Batch, now: float) -> list[Effect]:
        alone = not any(
            other.model == batch.model and other.snapshot is not None and other.snapshot.status != "failed"
            for other in self.batches.values()
        )
        effects: list[Effect] = []
        gate = self.admission.queue_full(batch.model, now, self.spread(), alone=alone)
        batch.refusals += 1
        batch.refused_since = batch.refused_since or now
        # One request alone that is refused while others go in may be more than the queue can ever hold; and so may a
        # batch with nothing else of ours in the queue.
        since = gate.since if alone else batch.refused_since
        if now - since <= self.patience or not (alone or batch.waiting == 1):
            splits = alone or batch.refusals % MAX_REFUSALS == 0
            parts = 2 if splits and batch.waiting > 1 else 1
            effects = self._again(batch, now, "the server's queue is full", parts=parts)
        return effects + self._finish(batch, now, self._unanswered(batch))

    def _again(
        self, batch: Batch, now: float, reason: str, *, parts: int = 1, pause: float = 0.0
    ) -> list[Effect]:
        """Send what is left of a batch as another, or as several."""
        requests = [request for request in batch.take_all() if request.wanted]
        if not requests:
            return []
        length = -(-len(requests) // parts)
        for start in range(0, len(requests), length):
            part = {request.custom_id: request for request in requests[start : start + length]}
            for request in part.values():
                request.sent += 1
                self._estimate(request)
            other = self._queue(batch.endpoint, batch.model, part, now, now + pause)
            other.refusals, other.refused_since = batch.refusals, batch.refused_since
        batch.resent += len(requests)
        return [Publish(RequestsResent(batch.id, len(requests), reason))]

    def _lost(self, batch: Batch, now: float, reason: str) -> list[Effect]:
        """Send on what this batch left unanswered, unless that has happened to it too often."""
        expired = self._status(batch) == "expired"
        lost = [
            request
            for request in batch.requests
            if request.wanted and request.losses < MAX_LOSSES and (request.resubmits or not expired)
        ]
        for request in lost:
            batch.take(request.custom_id)
            request.losses += 1
            self._send_again(request, now)
        batch.resent += len(lost)
        return [Publish(RequestsResent(batch.id, len(lost), reason))] if lost else []

    @staticmethod
    def _status(batch: Batch) -> str:
        if batch.snapshot is not None:
            return batch.snapshot.status
        file_id = batch.uncertain_file_id
        return "not submitted" if file_id is None else f"uncertain: there may be one of {file_id}"

    def _unanswered(self, batch: Batch) -> Unanswered:
        problems = () if batch.snapshot is None else batch.snapshot.problems
        return Unanswered(batch.id or "", self._status(batch), problems)

    def _finish(
        self, batch: Batch, now: float, outcome: Outcome | None = None, *, over: bool = True
    ) -> list[Effect]:
        """The one end of a batch; whoever is left in it gets this outcome. `over`: at the server as well."""
        effects: list[Effect] = []
        for request in batch.take_all():
            if outcome is None:
                raise AssertionError("a batch does not end with callers that wait and nothing to tell them")
            effects.append(self._settle(batch, request, outcome))
        status = self._status(batch)
        batch.move(Step.SETTLED)
        batch.due = None
        del self.batches[id(batch)]
        if batch.snapshot is not None and batch.snapshot.status != "failed":
            self.admission.ended(batch.model, now)
        settled = BatchSettled(
            batch.id,
            batch.endpoint,
            batch.model,
            status,
            answered=batch.answered,
            failed=batch.failed,
            resent=batch.resent,
            duration=now - batch.closed_at,
        )
        return [*effects, Publish(settled), *([Ended(batch)] if over else [])]

    # A call fails.

    def _failed(self, batch: Batch, failure: Failure, now: float) -> list[Effect]:
        """Decide where the batch goes from a failed call: the one place where calls are repeated."""
        step, trouble = batch.step, failure.trouble
        if step in (Step.POLL, Step.FETCH) and not batch.waiting:
            batch.due = now  # there is nothing to try again for
            return []
        self._drop_unwanted(batch)
        stumbles = batch.stumble(trouble, now, min(MAX_SPENT, self.patience / 2))
        if step is Step.CREATE and trouble in (Trouble.PASSING, Trouble.ODD):
            batch.doubt = failure.cause
            self._go(batch, Step.LOOK_UP, now)
            return [Publish(CallRetried(batch.id, step.value, failure.reason, 0.0))]
        early = step is Step.FETCH and not batch.final
        left = self.patience - stumbles.spent
        if not early and not (self._may_go_on(step, trouble, stumbles) and left >= 0):
            if step is Step.CANCEL:
                return [Publish(BatchNotCancelled(batch.id)), *self._finish(batch, now, over=False)]
            if batch.restored and trouble is Trouble.NOT_FOUND and step is not Step.LOOK_UP:
                reason = (
                    f"the server no longer knows this batch, in which {batch.waiting} were without an answer"
                )
                unasked = sum(not request.wanted for request in batch.requests)
                if unasked:
                    reason += f"; {unasked} of them are sent when they are asked for"
                effects = self._lost(batch, now, reason) or [Publish(RequestsResent(batch.id, 0, reason))]
                return effects + self._finish(batch, now, CallFailed(failure.cause))
            cause = failure.cause if step is not Step.LOOK_UP or batch.doubt is None else batch.doubt
            return self._finish(batch, now, CallFailed(cause), over=step in (Step.UPLOAD, Step.CREATE))
        # No sooner than asked; nor all that were told so in one moment.
        asked = min((failure.retry_after or 0.0) * (1 + self.spread() * LATER), MAX_RETRY_AFTER)
        delay = CALLS.delay(stumbles.count, self.spread())
        delay = max(delay, min(asked, left))  # when patience ends, it is tried for the last time
        if step in (Step.POLL, Step.FETCH):
            age = now - batch.created_at
            delay = max(min(delay, self.polls.latest(age)), self.polls.interval(age))
        if step is Step.FETCH:
            if trouble in (Trouble.REFUSED, Trouble.NOT_FOUND) and (
                not early or stumbles.alike >= FILE_LOOKS
            ):
                batch.resumes = False  # not from a line on, or not before the end
            batch.move(Step.POLL)
        batch.due = now + delay
        stumbles.planned = delay
        return [Publish(CallRetried(batch.id, step.value, failure.reason, delay))]

    @staticmethod
    def _drop_unwanted(batch: Batch) -> None:
        """An upload that is made again is without those that have left meanwhile."""
        if batch.step is not Step.UPLOAD:
            return
        for request in [request for request in batch.requests if not request.wanted]:
            batch.take(request.custom_id)
            batch.gone += 1

    @staticmethod
    def _may_go_on(step: Step, trouble: Trouble, stumbles: Stumbles) -> bool:
        """Whether a call may be repeated after this failure, if its time is not up."""
        match trouble:
            case Trouble.BUSY | Trouble.PASSING:
                return True
            case Trouble.ODD:
                return step not in (Step.UPLOAD, Step.LOOK_UP) or stumbles.alike < ODD_ANSWERS
            case Trouble.NOT_FOUND if step is Step.CREATE:
                return stumbles.alike < FILE_LOOKS
        # A batch that is paid for, or may be, is not given up on one word.
        return step not in (Step.UPLOAD, Step.CREATE) and not (
            stumbles.alike_spent >= LOST_SECONDS and stumbles.alike >= LOST_TIMES
        )


def _is_of_its_own_callers(batch: Batch) -> bool:
    waited_for = [request for request in batch.requests if request.wanted]
    return all(request.host is None for request in waited_for) and bool(waited_for or not batch.restored)


def _late(batch: Batch, custom_id: str, outcome: Outcome) -> list[Effect]:
    """What comes of the first line for a request whose caller has left, and of no other."""
    if custom_id not in batch.left:
        return []
    batch.left.discard(custom_id)
    if isinstance(outcome, Answer) and is_success(outcome.status):
        return [Late(batch.model, outcome.body)]
    return []


def _uploading(batch: Batch) -> bool:
    return batch.step is Step.UPLOAD and batch.due is None


def _decoded(line: bytes) -> tuple[str, Answer | LineFailed] | None:
    try:
        return decode_line(line)
    except MalformedLineError:
        return None


def _key(request: Request) -> tuple[str, str, int]:
    """Of its window: requests that were sent as often wait as long before they are sent again."""
    return request.endpoint, request.model, request.sent
