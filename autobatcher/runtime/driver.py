"""Does what the engine decides: one root task owns a task group, its children make the calls and report back."""

from __future__ import annotations

import functools
import logging
import math
import re
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeGuard

import anyio

from autobatcher.core import messages as core
from autobatcher.core.batch import Batch
from autobatcher.core.engine import Engine
from autobatcher.core.lifecycle import Step
from autobatcher.core.outcomes import Answer, CallFailed, Closed, Failure, Outcome, Overdue, Trouble
from autobatcher.core.retry import is_success
from autobatcher.core.window import Request
from autobatcher.errors import JournalError
from autobatcher.events import Event, RequestsOverdue
from autobatcher.runtime.deadlines import Deadlines
from autobatcher.runtime.record import Notes
from autobatcher.runtime.spawn import call_soon_in, clock, current_loop, replies, spawn_root
from autobatcher.runtime.upstream import Upstream, UpstreamError

_log = logging.getLogger("autobatcher")

TRANSFERS = 4
"""Uploads at a time, and downloads: more would share the same line, and hold more of the files in memory."""

AT_ONCE = 100
"""Answers of a journal that are given without a pause: some milliseconds."""

CANCEL_SECONDS = 30.0
"""For how long closing waits for the server to take the cancellations."""


class Driver:
    """The runtime of one client in one event loop; it lives until `stop`, or until its loop ends.

    Attributes:
        now: the time of the event loop, in seconds.
        publish: tells an event to those who watch.
        realtime: limits the realtime calls under way.
    """

    def __init__(
        self,
        engine: Engine,
        upstream: Upstream,
        *,
        publish: Callable[[Event], None],
        count: Callable[[str, Iterable[bytes]], None],
        count_realtime: Callable[[str, Iterable[bytes]], None],
        max_realtime_calls: int,
        release: Callable[[], Awaitable[None]],
        notes: Notes,
    ) -> None:
        self._engine = engine
        self._upstream = upstream
        self.publish = publish
        self._count = count
        self._count_realtime = count_realtime
        self.realtime = anyio.CapacityLimiter(max_realtime_calls)
        self._deadlines = Deadlines()
        self._release = release
        self._notes = notes
        self._calls: deque[core.Call] = deque()
        self._guests: set[Request] = set()
        self._elsewhere: set[Request] = set()
        self._at_once = 0
        self._looks: set[anyio.CancelScope] = set()
        self._uploads = anyio.CapacityLimiter(TRANSFERS)
        self._downloads = anyio.CapacityLimiter(TRANSFERS)
        self._wake = anyio.Event()
        self._stopping = False
        self._cancelling = False
        self._new_reply = replies()
        self.now = clock()
        self._restore()
        self._join = spawn_root(self._run)

    def _restore(self) -> None:
        now = self.now()
        for batch in self._notes.restored(now, self):
            self._apply(self._engine.restore(batch, now))
        self._wake.set()

    def submit(self, request: Request, reply: Any = None) -> Request:
        """Put a request into the next batch. Then wait for its `reply`, and call `leave` if that is cut short.

        Args:
            request: what is asked.
            reply: whose `set` is called with the outcome; None: one that can be waited for.

        Returns:
            The request to wait for: with a journal it may be the same one of an earlier caller or run.

        Raises:
            OversizedError: it fits into no file.
            JournalError: it cannot be looked up.
            OSError: it is large, and the disk is full.
        """
        reply = request.reply = reply or self._new_reply()
        again = request.accepted_at is not None
        if not again:
            request.accepted_at = self.now()
        if self._stopping:
            reply.set(Closed(None))
            return request
        if self._notes.adrift:
            self._restore()
        answer = self._notes.known(request)
        if answer is not None:
            self._at_once += 1
            if self._at_once % AT_ONCE:
                reply.set(answer)
            else:  # so that whatever is due in this loop has its turn
                call_soon_in(current_loop(), functools.partial(reply.set, answer))
            return request
        try:
            request = self._notes.joined(request, self)
            if request.place is None:
                self._engine.accept(request, self.now())
                self._wake.set()
        except BaseException:
            self._notes.left(request, self)
            raise
        if request.host is not None:
            self._guests.add(request)
        if request.patience is not None:
            (request.host or self).remind(request, again=again)
        return request

    def flush(self) -> None:
        """Send what waits for its batch to become full."""
        self._engine.flush(self.now())
        self._wake.set()

    def leave(self, request: Request) -> None:
        """Nobody waits for this request any more."""
        host = request.host
        if host is not None:
            self.settled(request)
            host.leave(request)
            return
        self._deadlines.remove(request)
        self._apply(self._engine.abandon(request, self.now()))
        self._notes.left(request, self)
        self._wake.set()

    def settled(self, request: Request) -> None:
        """A request of a caller of this driver's, which another one follows, needs no more following."""
        self._guests.discard(request)
        request.host = None

    def remind(self, request: Request, *, again: bool) -> None:
        """Tell the caller of a request when its patience is over, unless it has its outcome by then.

        Then the caller gets an `Overdue`; the request goes on all the same, with another reply. `again`: it was with
        another client before.
        """
        self._deadlines.add(request, again=again)
        self._wake.set()

    def answer(self, request: Request, answer: Answer) -> Outcome:
        """A realtime call has answered a request: its batch need not, unless only its answer would be kept.

        Returns:
            What its caller gets: the answer, or the error if it could not be written down, as with those of batches.
        """
        outcome: Outcome = answer
        if is_success(answer.status):
            self._count_realtime(request.model, (answer.body,))
        if self._notes.keeps and is_kept(answer):
            try:
                self._notes.retake(request)
                self._notes.keep([(request, answer)])
            except Exception as error:  # noqa: BLE001 -- as in `_written`
                outcome = CallFailed(error)
        if self._notes.keeps and not is_kept(answer):
            self.leave(request)
        else:
            (request.host or self).withdraw(request)
        return outcome

    def expect(self, request: Request, *, deadline: bool) -> None:
        """A request is in no batch any more, and its caller waits for a realtime call, until `expected`.

        Its new reply is set if this driver stops, and with `deadline` also when its caller's patience is over.
        """
        reply = request.reply = self._new_reply()
        if self._stopping:
            reply.set(Closed(None))
            return
        self._elsewhere.add(request)
        if deadline and request.patience is not None:
            self.remind(request, again=True)

    def expected(self, request: Request) -> None:
        """Nobody waits for a realtime call any more."""
        if request in self._elsewhere:
            self._elsewhere.discard(request)
            self._deadlines.remove(request)

    def withdraw(self, request: Request) -> None:
        """Let go of a request that this driver follows, and that is answered otherwise."""
        self._apply(self._engine.withdraw(request, self.now()))
        self._wake.set()

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or under way."""
        return not (self._engine.windows or self._engine.batches or self._guests or self._elsewhere)

    def retire(self) -> None:
        """End the root task of an idle driver, and leave the loop its connections."""
        self._release = _nothing
        self.stop()

    def forget(self) -> None:
        """Let go of everything: the event loop is over."""
        for request in self._engine.forget():
            self._notes.failed(request)
        self._guests.clear()

    def stop(self, *, cancel_batches: bool = False) -> None:
        """Settle every caller and end the root task; before that, cancel the batches that are at the server."""
        self._cancelling = cancel_batches
        self._stopping = True
        self._wake.set()

    async def stopped(self) -> None:
        """Wait for the end of the root task."""
        await self._join()

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                while not self._stopping:
                    await self._turn(tasks)
                await self._close(tasks)
                tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 -- a defect must not leave callers waiting
            _log.exception("the batching task failed; every waiting call gets the error")
            for batch in list(self._engine.batches.values()):
                self._apply(self._engine.give_up(batch, error, self.now()))
        finally:
            self._stopping = True
            self._dismiss_guests()
            self._notes.stop(self._engine.batches.values(), self)
            self._apply(self._engine.close(self.now()))
            self._apply(self._engine.give_up_all(self.now()))
            with anyio.CancelScope(shield=True):
                await self._release()

    async def _close(self, tasks: anyio.abc.TaskGroup) -> None:
        """Settle every caller; give the server some time to take cancellations."""
        self._dismiss_guests()
        batches = list(self._engine.batches.values())
        self._apply(self._engine.close(self.now(), cancel=self._cancelling))
        self._notes.stop([batch for batch in batches if batch.step is Step.SETTLED])
        for scope in self._looks:  # which may take long to answer, and nobody needs their answers
            scope.cancel()
        with anyio.move_on_after(CANCEL_SECONDS):
            while self._engine.batches:
                await self._turn(tasks)

    def _dismiss_guests(self) -> None:
        """Settle the callers of this driver whose requests another one follows, or nobody."""
        for request in [request for request in self._guests if request.place is not None]:
            reply = request.reply
            self.leave(request)
            reply.set(Closed(None))
        for request in self._elsewhere:
            request.reply.set(Closed(None))
        self._elsewhere.clear()

    async def _turn(self, tasks: anyio.abc.TaskGroup) -> None:
        """Do what is due, and wait until there is more to do."""
        self._wake = anyio.Event()
        self._apply(self._engine.wake(self.now()))
        while self._calls:
            tasks.start_soon(self._perform, self._calls.popleft())
        self._tell_overdue()
        wakeups = [at for at in (self._engine.next_wakeup(), self._deadlines.next) if at is not None]
        with anyio.CancelScope(deadline=min(wakeups, default=math.inf)):
            await self._wake.wait()

    def _tell_overdue(self) -> None:
        overdue: Counter[tuple[str | None, str, str]] = Counter()
        for request in self._deadlines.due(self.now()):
            batch_id = request.place.id if isinstance(request.place, Batch) else None
            overdue[batch_id, request.endpoint, request.model] += 1
            reply, request.reply = request.reply, self._new_reply()
            reply.set(Overdue(batch_id, self.now() - (request.accepted_at or 0.0)))
        for (batch_id, endpoint, model), requests in overdue.items():
            self.publish(RequestsOverdue(batch_id, endpoint, model, requests))

    def _apply(self, effects: list[core.Effect]) -> Exception | None:
        """Have the effects; the error, if there are answers among them that could not be written down."""
        lost = None
        if self._notes.keeps:
            effects, lost = self._written(effects)
        self._meter(effects)
        for effect in effects:
            if isinstance(effect, core.Settle):
                request, outcome = effect
                if request.patience is not None:
                    self._deadlines.remove(request)
                if request.reply is not None:
                    request.reply.set(outcome)
                else:
                    self._notes.dropped(request)
            elif isinstance(effect, core.Late):
                continue  # it is counted
            elif isinstance(effect, core.Ended):
                self._end(effect.batch)
            elif isinstance(effect, core.Publish):
                self.publish(effect.event)
            else:  # a call: only the root's children make them, in no caller's context
                self._calls.append(effect)
        return lost

    def _meter(self, effects: list[core.Effect]) -> None:
        """Count what the answers used, before anybody is told of them."""
        bought: dict[str, list[bytes]] = {}
        for effect in effects:
            if isinstance(effect, core.Settle):
                request, outcome = effect
                if isinstance(outcome, Answer) and is_success(outcome.status):
                    bought.setdefault(request.model, []).append(outcome.body)
            elif isinstance(effect, core.Late):
                bought.setdefault(effect.model, []).append(effect.body)
        for model, bodies in bought.items():
            self._count(model, bodies)

    def _written(self, effects: list[core.Effect]) -> tuple[list[core.Effect], Exception | None]:
        """Write the answers down before anybody has them; if that fails, the error is what their callers get."""
        answers: list[tuple[Request, Answer]] = []
        for effect in effects:
            if isinstance(effect, core.Settle):
                if is_kept(effect.outcome):
                    answers.append(effect)  # type: ignore[arg-type] # which is the two
                else:
                    self._notes.failed(effect.request)
        try:
            if answers:
                self._notes.keep(answers)
        except Exception as error:  # noqa: BLE001 -- a store of somebody's own may raise anything
            for request, _ in answers:
                self._notes.failed(request)
            lost = set(map(id, answers))
            failed = CallFailed(error)
            return [
                core.Settle(effect.request, failed)
                if isinstance(effect, core.Settle) and id(effect) in lost
                else effect
                for effect in effects
            ], error
        return effects, None

    def _end(self, batch: Batch) -> None:
        try:
            self._notes.ended(batch)
        except Exception as error:  # noqa: BLE001 -- nobody's call: the next run looks at the batch once more
            _log.warning("batch %s: its end is not in the journal: %s", batch.id or "-", error)

    async def _perform(self, call: core.Call) -> None:
        batch = call.batch
        try:
            self._report(await self._outcome(call))
        except JournalError as error:
            self._give_up(batch, error)
        except Exception as error:  # noqa: BLE001 -- a defect in one batch's call must not end the others
            _log.exception("batch %s: a call failed unexpectedly", batch.id)
            self._give_up(batch, error)

    async def _outcome(self, call: core.Call) -> core.Report:
        """Make a call, and say what came of it."""
        with anyio.CancelScope() as scope:
            if isinstance(call, core.Poll | core.Fetch):
                self._looks.add(scope)
            try:
                return await self._made(call)
            except UpstreamError as error:
                return core.Failed(call.batch, error.failure)
            finally:
                self._looks.discard(scope)
        return core.Failed(call.batch, Failure(Trouble.PASSING, None, "closing"))

    async def _made(self, call: core.Call) -> core.Report:
        batch = call.batch
        match call:
            case core.Upload():
                async with self._uploads:
                    lines = batch.lines()
                    if not lines:  # all have left while it waited for its turn, and the batch is settled
                        return core.Uploaded(batch, "")
                    self._notes.begin(batch, lines)
                    return core.Uploaded(batch, await self._upstream.upload(lines))
            case core.Create(_, file_id):
                return core.Created(batch, await self._upstream.create(batch, file_id))
            case core.LookUp(_, file_id):
                return core.LookedUp(batch, await self._upstream.look_up(file_id))
            case core.Poll(_, batch_id):
                return core.Polled(batch, await self._upstream.poll(batch_id))
            case core.Fetch(_, files):
                async with self._downloads:
                    failures = [await self._read(call, file_id, skip) for file_id, skip in files]
                failed = next(filter(None, failures), None)
                return core.Fetched(batch) if failed is None else core.Failed(batch, failed)
            case core.Cancel(_, batch_id):
                return core.Cancelled(batch, await self._upstream.cancel(batch_id))

    async def _read(self, call: core.Fetch, file_id: str, skip: int) -> Failure | None:
        """Report the lines of a file; how it failed, if it did."""
        try:
            async for piece in self._upstream.read_lines(file_id, skip, len(call.batch.entries)):
                self._report(core.LinesRead(call.batch, file_id, piece.lines, piece.last, piece.resumes))
        except UpstreamError as error:
            return error.failure
        return None

    def _give_up(self, batch: Batch, error: Exception) -> None:
        self._apply(self._engine.give_up(batch, error, self.now()))
        self._notes.stop([batch])
        self._wake.set()

    def _report(self, report: core.Report) -> None:
        self._notes.note(report)
        lost = self._apply(self._engine.handle(report, self.now()))
        if lost is not None:  # then the batch is given up here, so that a later call finds what was paid for
            raise lost
        if report.batch.step is Step.SETTLED:  # it may be given up here, and not over at the server
            self._notes.stop([report.batch])
        self._wake.set()  # the next poll may be due before anything that was known until now


def is_kept(outcome: Outcome) -> TypeGuard[Answer]:
    """Whether an outcome is one that a journal keeps: an answer, and no error.

    Some come with a status of success: the page of a proxy as a text, null, or an object that begins with an error.
    """
    return (
        isinstance(outcome, Answer)
        and is_success(outcome.status)
        and _AN_ANSWER.match(outcome.body) is not None
    )


_AN_ANSWER = re.compile(rb'\s*\{(?!\s*"error"\s*:\s*[{"])')


async def _nothing() -> None:
    return
