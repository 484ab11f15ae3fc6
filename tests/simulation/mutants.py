"""Defects made by hand, to show that the verdict sees them: each breaks one promise of the package, from outside.

A mutant reaches into the package's own classes; when those change, it changes with them. That is its point: it says
which line of the package a promise hangs on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from autobatcher import collector
from autobatcher.core import engine
from autobatcher.core.admission import Admission
from autobatcher.core.batch import Batch
from autobatcher.core.engine import Engine
from autobatcher.core.lifecycle import Step
from autobatcher.core.messages import Created, Effect, LinesRead, LookedUp, Report, Settle, Uploaded
from autobatcher.core.outcomes import Answer, Failure, Overdue, Trouble
from autobatcher.core.retry import PollSchedule, WholeFailure, judge_failed
from autobatcher.core.window import Request
from autobatcher.runtime import driver, upstream
from autobatcher.runtime.deadlines import Deadlines
from autobatcher.runtime.driver import Driver
from autobatcher.runtime.record import RecordedNotes
from autobatcher.runtime.spawn import replies
from tests.simulation.plan import HOUR, REALTIME, LineFault, Plan, Stop, Storm

WITHIN = 300
"""Worlds that a mutant may survive."""

Change = tuple[Any, str, Any]
"""A class or module, the name of what is replaced there, and what by."""


@dataclass(frozen=True)
class Mutant:
    """A defect.

    Attributes:
        name: what is wrong.
        changes: what it puts in place of the right things.
        stops: whether it takes worlds with a journal and stops to see it.
        given: makes worlds ones in which it matters, for few are by chance; all else in them is as it is drawn.
    """

    name: str
    changes: tuple[Change, ...]
    stops: bool = False
    given: Callable[[Plan], None] = lambda _plan: None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """The package has the defect."""
        before = [(owner, name, vars(owner)[name]) for owner, name, _ in self.changes]
        try:
            for owner, name, value in self.changes:
                setattr(owner, name, value)
            yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)


def _gives_up(step: Step, *troubles: Trouble) -> tuple[Change, ...]:
    true = Engine._may_go_on

    def may_go_on(at: Step, trouble: Trouble, stumbles: Any) -> bool:
        return not (at is step and trouble in troubles) and true(at, trouble, stumbles)

    return ((Engine, "_may_go_on", staticmethod(may_go_on)),)


def _creates_again_at_once() -> tuple[Change, ...]:
    true = Engine._failed

    def failed(self: Engine, batch: Batch, failure: Failure, now: float) -> list[Effect]:
        if batch.step is Step.CREATE and failure.trouble in (Trouble.PASSING, Trouble.ODD):
            batch.due = now + 1
            return []
        return true(self, batch, failure, now)

    return ((Engine, "_failed", failed),)


def _reads(change: Callable[[Batch, list[Effect]], list[Effect]]) -> tuple[Change, ...]:
    true = Engine._read

    def read(self: Engine, report: LinesRead, now: float) -> list[Effect]:
        return change(report.batch, true(self, report, now))

    return ((Engine, "_read", read),)


def _one_error_for_all(batch: Batch, effects: list[Effect]) -> list[Effect]:
    for effect in effects:
        if isinstance(effect, Settle) and isinstance(effect.outcome, Answer) and effect.outcome.status >= 400:
            return effects + [Settle(request, effect.outcome) for request in batch.take_all()]
    return effects


def _settled_twice(_batch: Batch, effects: list[Effect]) -> list[Effect]:
    return [*effects, *(effect for effect in effects if isinstance(effect, Settle))]


def _last_of_a_double_wins() -> tuple[Change, ...]:
    true = Engine._read

    def read(self: Engine, report: LinesRead, now: float) -> list[Effect]:
        return true(self, msgspec.structs.replace(report, lines=report.lines[::-1]), now)

    return ((Engine, "_read", read),)


def _retries_without_counting() -> tuple[Change, ...]:
    true = Engine._goes_again

    def goes_again(batch: Batch, request: Request, outcome: Any) -> bool:
        left = request.retries_left
        again = true(batch, request, outcome)
        request.retries_left = left
        return again

    return ((Engine, "_goes_again", staticmethod(goes_again)),)


def _judges(wrong: WholeFailure) -> tuple[Change, ...]:
    def judge(problems: Any, lines: int) -> WholeFailure:
        judged = judge_failed(problems, lines)
        return WholeFailure.OTHER if judged is wrong else judged

    return ((engine, "judge_failed", judge),)


def _lets_deserted_batches_run() -> tuple[Change, ...]:
    true = Engine.abandon

    def abandon(self: Engine, request: Request, now: float) -> list[Effect]:
        place = request.place
        effects = true(self, request, now)
        if isinstance(place, Batch) and place.step is Step.CANCEL:
            place.step = Step.POLL
            place.gone = 0
            place.waiting = 1
        return effects

    return ((Engine, "abandon", abandon),)


def _closes_without_cancelling() -> tuple[Change, ...]:
    true = Engine.close

    def close(self: Engine, now: float, *, cancel: bool = False) -> list[Effect]:
        return true(self, now)

    return ((Engine, "close", close),)


def _counts_no_tokens() -> tuple[Change, ...]:
    return ((Admission, "estimate", lambda *_: 0.0),)


def _sends_again_what_was_cancelled() -> tuple[Change, ...]:
    true = Engine._status

    def status(batch: Batch) -> str:
        said = true(batch)
        return "expired" if said == "cancelled" else said

    return ((Engine, "_status", staticmethod(status)),)


def _settles_nobody(_self: Engine, _now: float, *, cancel: bool = False) -> list[Effect]:
    return []


def _does_not_close(self: Any) -> list[Any]:
    self.closed = True
    return []


async def _adopts_any(self: Any, _file_id: str) -> Any:
    try:
        page = await self.client.batches.list(limit=1)
        return next((upstream._snapshot(item) for item in upstream._listed(page)), None)
    except Exception as error:
        raise upstream.translated(error) from error


async def _takes_a_broken_file_for_whole(self: Any, file_id: str, skip: int, requests: int) -> Any:
    try:
        async for piece in _READ_LINES(self, file_id, skip, requests):
            yield piece
    except upstream.UpstreamError:
        return


_READ_LINES = upstream.Upstream.read_lines


def _slower(self: PollSchedule, age: float) -> float:
    return max(self.first, min(age * 0.1, 3600.0))


def _unlimited(self: Admission, batches: Any, now: float) -> list[Batch]:
    self.max_batches = None
    return _CHOOSE(self, batches, now)


_CHOOSE = Admission.choose


def _notes_no(*kinds: type[Report]) -> tuple[Change, ...]:
    true = RecordedNotes.note

    def note(self: RecordedNotes, report: Report) -> None:
        if not isinstance(report, kinds):
            true(self, report)

    return ((RecordedNotes, "note", note),)


def _notes_requests_late() -> tuple[Change, ...]:
    note, begin = RecordedNotes.note, RecordedNotes.begin
    late: dict[int, Any] = {}

    def begin_later(self: RecordedNotes, batch: Batch, requests: Any) -> None:
        late[id(batch)] = tuple(requests)

    def note_now(self: RecordedNotes, report: Report) -> None:
        if isinstance(report, Uploaded) and (requests := late.pop(id(report.batch), None)):
            begin(self, report.batch, requests)
        note(self, report)

    return ((RecordedNotes, "begin", begin_later), (RecordedNotes, "note", note_now))


def _keeps_late(self: Driver, effects: list[Effect]) -> tuple[list[Effect], None]:
    answers = [
        (effect.request, effect.outcome)
        for effect in effects
        if isinstance(effect, Settle)
        and isinstance(effect.outcome, Answer)
        and driver.is_kept(effect.outcome)
    ]
    if late := vars(self).pop("late", None):
        self._notes.keep(late)
    vars(self)["late"] = answers
    return effects, None


def _does_not_look_after_a_restart() -> tuple[Change, ...]:
    true = Batch.restored_from

    def restored(cls: type[Batch], *args: Any, **kwargs: Any) -> Batch:
        batch = true(*args, **kwargs)
        if batch.step is Step.LOOK_UP:
            batch.step = Step.CREATE
        return batch

    return ((Batch, "restored_from", classmethod(restored)),)


def _looks_once_after_a_restart() -> tuple[Change, ...]:
    true = Engine._not_there

    def not_there(self: Engine, batch: Batch, now: float) -> list[Effect]:
        if batch.restored:
            batch.looks_since = float("-inf")
        return true(self, batch, now)

    return ((Engine, "_not_there", not_there),)


def _follows_alone() -> tuple[Change, ...]:
    true = RecordedNotes.__init__

    def init(self: RecordedNotes, *args: Any) -> None:
        true(self, *args)
        self._unclaimed = {}

    return ((RecordedNotes, "__init__", init),)


def _keeps_all(outcome: Any) -> bool:
    return isinstance(outcome, Answer)


def _reminds_late() -> tuple[Change, ...]:
    true: Callable[[Deadlines], float | None] = vars(Deadlines)["next"].fget

    def later(self: Deadlines) -> float | None:
        at = true(self)
        return None if at is None else at + 20

    return ((Deadlines, "next", property(later)),)


def _keeps_reminders() -> tuple[Change, ...]:
    true = Driver._apply

    def apply(self: Driver, effects: list[Effect]) -> Exception | None:
        settled = [(e.request, e.request.patience) for e in effects if isinstance(e, Settle)]
        for request, _ in settled:
            request.patience = None
        try:
            return true(self, effects)
        finally:
            for request, patience in settled:
                request.patience = patience

    return ((Driver, "_apply", apply),)


def _starts_the_clock_again() -> tuple[Change, ...]:
    send_again, true = Engine._send_again, Deadlines.due

    def restart(self: Engine, request: Request, now: float) -> None:
        request.accepted_at = now
        send_again(self, request, now)

    def due(self: Deadlines, now: float) -> list[Request]:
        found = true(self, now)
        early = [request for request in found if (request.accepted_at or 0) + (request.patience or 0) > now]
        for request in early:
            self.add(request, again=True)
        return [request for request in found if request not in early]

    return ((Engine, "_send_again", restart), (Deadlines, "due", due))


def _hears_no_late_answer() -> tuple[Change, ...]:
    true = Driver._apply

    def apply(self: Driver, effects: list[Effect]) -> Exception | None:
        for effect in effects:
            if isinstance(effect, Settle) and (request := effect.request).patience is not None:
                late = (request.accepted_at or 0) + request.patience <= self.now()
                request.reply = replies()() if late and request.reply else request.reply
        return true(self, effects)

    return ((Driver, "_apply", apply),)


def _sends_expired_requests_again() -> tuple[Change, ...]:
    true = collector.Collector.entry

    def entry(self: Any, *args: Any, **kwargs: Any) -> Request:
        request = true(self, *args, **kwargs)
        request.resubmits = True
        return request

    return ((collector.Collector, "entry", entry),)


def _limits_no_realtime_calls() -> tuple[Change, ...]:
    true = Driver.__init__

    def init(self: Driver, *args: Any, **kwargs: Any) -> None:
        true(self, *args, **{**kwargs, "max_realtime_calls": 1000})

    return ((Driver, "__init__", init),)


def _keeps_no_realtime_answer(self: Driver, request: Request, answer: Answer) -> Answer:
    (request.host or self).withdraw(request)
    return answer


def _withdraws_all(self: Driver, request: Request) -> None:
    self._apply(self._engine.withdraw(request, self.now()))
    self._notes.left(request, self)


def _dismisses_no_callers_of_realtime_calls(self: Driver) -> None:
    self._elsewhere.clear()


def _batches(*fates: str) -> Callable[[Plan], None]:
    """All batches have one of these fates, as long as anything goes wrong."""

    def given(plan: Plan) -> None:
        plan.fate_rate, plan.fates = 1.0, dict.fromkeys(fates, 1.0)

    return given


def _failing(*kinds: str) -> Callable[[Plan], None]:
    """For an hour most of these calls fail."""

    def given(plan: Plan) -> None:
        plan.storms = [Storm(0.0, HOUR, 0.8, frozenset(kinds))]

    return given


def _lines_that_fail(status: int, *, of_each: int = 1) -> Callable[[Plan], None]:
    """For one caller in so many the model has nothing but this status, and callers share batches."""

    def given(plan: Plan) -> None:
        plan.options["batch_size"] = 1000
        faults = (LineFault(status),) * 50
        plan.callers = [
            caller if caller.number % of_each else replace(caller, line_faults=faults)
            for caller in plan.callers
        ]

    return given


def _leaving(plan: Plan) -> None:
    """Everybody leaves before the batches end."""
    _batches("expires")(plan)
    plan.callers = [replace(caller, leaves_after=100.0) for caller in plan.callers]


def _late(on_deadline: str, *, seconds: float = 100.0) -> Callable[[Plan], None]:
    """Batches take longer than their callers wait, of whom none leaves; one realtime call may be made at a time."""

    def given(plan: Plan) -> None:
        _batches("expires")(plan)
        plan.options["max_realtime_calls"] = 1
        plan.callers = [
            replace(caller, deadline=seconds, on_deadline=on_deadline, leaves_after=None)
            for caller in plan.callers
        ]

    return given


def _in_time(plan: Plan) -> None:
    """Deadlines are far away."""
    plan.callers = [replace(caller, deadline=HOUR) for caller in plan.callers]


def _lately(plan: Plan) -> None:
    """Batches answer soon after the deadlines, and before most realtime calls."""
    plan.storms.append(Storm(0.0, HOUR, 0.9, frozenset({REALTIME})))
    plan.slowest = 30.0
    plan.callers = [
        replace(caller, deadline=10.0, on_deadline="realtime", leaves_after=None) for caller in plan.callers
    ]


def _expiring(*, wanted: str, deadline: float | None = None) -> Callable[[Plan], None]:
    """Batches expire, and their callers want this then."""

    def given(plan: Plan) -> None:
        _batches("expires")(plan)
        plan.options["completion_window"] = "10m"
        plan.callers = [
            replace(caller, deadline=deadline, on_deadline="raise", on_expired=wanted, leaves_after=None)
            for caller in plan.callers
        ]

    return given


def _closing_after_an_end(plan: Plan) -> None:
    """The client is closed when batches have just expired, and realtime calls go on for a while."""
    _expiring(wanted="realtime")(plan)
    plan.close_at, plan.rate, plan.calm_at = 640.0, 0.0, HOUR
    plan.storms = [Storm(0.0, HOUR, 0.9, frozenset({REALTIME}))]
    plan.options.update(max_active_batches=None, max_enqueued_tokens=None, max_realtime_calls=1)
    plan.callers = [replace(caller, at=0.0) for caller in plan.callers]


def _closing(plan: Plan) -> None:
    """The client is closed in calm weather, while batches go on that are then to be cancelled."""
    _batches("expires")(plan)
    plan.close_at, plan.options["cancel_active_batches_on_close"] = 90.0, True
    plan.rate, plan.storms, plan.call_seconds = 0.0, [], 0.1
    plan.callers = [replace(caller, leaves_after=None) for caller in plan.callers]


def _few_tokens(plan: Plan) -> None:
    """Many more tokens are asked for at a time than are allowed."""
    plan.options.update(max_enqueued_tokens=60, batch_size=1)
    plan.callers = [replace(caller, at=0.0, padding=200) for caller in plan.callers]


def _one_at_a_time(plan: Plan) -> None:
    """One batch may go on at a time, and callers could have many."""
    plan.options.update(max_active_batches=1, batch_size=1)


def _spoiled_lines(plan: Plan) -> None:
    """Every second line of a result file is spoiled somehow."""
    plan.line_rate = 0.5


def _stopped_at_creations(plan: Plan) -> None:
    """The program is stopped when batches have been made, and knows of none."""
    plan.stops = [Stop(HOUR, "created", count, pause=1.0) for count in (1, 2)]


def _copies(plan: Plan) -> None:
    """Some calls are made through a copy of the client, in each run others."""
    plan.copies = True


MUTANTS = (
    Mutant("a creation whose answer was lost is repeated at once", _creates_again_at_once()),
    Mutant(
        "one look is enough to find no batch", ((engine, "LOOK_UP_SECONDS", 0.0),), given=_failing("create")
    ),
    Mutant(
        "a look-up adopts any batch", ((upstream.Upstream, "look_up", _adopts_any),), given=_failing("create")
    ),
    Mutant(
        "a line with an error ends its batch",
        _reads(_one_error_for_all),
        given=_lines_that_fail(422, of_each=2),
    ),
    Mutant("callers are settled twice", _reads(_settled_twice)),
    Mutant("the last line of a double wins", _last_of_a_double_wins(), given=_spoiled_lines),
    Mutant("a poll gives up at the first 5xx", _gives_up(Step.POLL, Trouble.PASSING)),
    Mutant("a poll gives up at the first 404", _gives_up(Step.POLL, Trouble.NOT_FOUND)),
    Mutant("a download gives up at the first failure", _gives_up(Step.FETCH, Trouble.PASSING)),
    Mutant("a lost upload is taken for refused", _gives_up(Step.UPLOAD, Trouble.PASSING)),
    Mutant("a file that is not found yet is fatal", _gives_up(Step.CREATE, Trouble.NOT_FOUND)),
    Mutant("missing lines are never sent again", ((Engine, "_lost", lambda *_: []),)),
    Mutant(
        "expired lines are never sent again", ((engine, "EXPIRED", "expired"),), given=_batches("expires")
    ),
    Mutant(
        "what somebody cancelled is sent again",
        _sends_again_what_was_cancelled(),
        given=_batches("cancelled"),
    ),
    Mutant("lines are retried without counting", _retries_without_counting(), given=_lines_that_fail(500)),
    Mutant("one reading of the files is enough", ((engine, "REREADS", 0),)),
    Mutant(
        "a broken download is taken for whole",
        ((upstream.Upstream, "read_lines", _takes_a_broken_file_for_whole), (engine, "REREADS", 1)),
    ),
    Mutant(
        "Retry-After is obeyed without a cap",
        ((engine, "MAX_RETRY_AFTER", float("inf")),),
        given=_failing("upload"),
    ),
    Mutant(
        "Retry-After is not heard", ((upstream, "_retry_after", lambda _: None),), given=_failing("upload")
    ),
    Mutant("polls wait for as long as the server wants", ((PollSchedule, "latest", lambda *_: 1e9),)),
    Mutant("polls come late", ((PollSchedule, "interval", _slower),)),
    Mutant("a batch that all have left goes on", _lets_deserted_batches_run(), given=_leaving),
    Mutant("a full queue fails its callers", _judges(WholeFailure.QUEUE), given=_batches("fails")),
    Mutant("lines that the server names fail all", _judges(WholeFailure.LINES), given=_batches("fails")),
    Mutant(
        "a server's own trouble fails its callers", _judges(WholeFailure.PASSING), given=_batches("fails")
    ),
    Mutant("closing leaves callers waiting", ((Engine, "close", _settles_nobody),), given=_closing),
    Mutant(
        "closing leaves its task running", ((collector.Collector, "close", _does_not_close),), given=_closing
    ),
    Mutant("closing does not cancel", _closes_without_cancelling(), given=_closing),
    Mutant("max_enqueued_tokens is not kept", _counts_no_tokens(), given=_few_tokens),
    Mutant("max_active_batches is not kept", ((Admission, "choose", _unlimited),), given=_one_at_a_time),
    Mutant("requests are noted after their upload", _notes_requests_late(), stops=True),
    Mutant("a file's id is not noted", _notes_no(Uploaded), stops=True),
    Mutant("a batch's id is not noted", _notes_no(Created, LookedUp), stops=True),
    Mutant(
        "answers are noted after their callers have them", ((Driver, "_written", _keeps_late),), stops=True
    ),
    Mutant(
        "batches of earlier runs are not taken up", ((RecordedNotes, "restored", lambda *_: []),), stops=True
    ),
    Mutant("nobody looks for a batch after a restart", _does_not_look_after_a_restart(), stops=True),
    Mutant(
        "one look is enough after a restart",
        _looks_once_after_a_restart(),
        stops=True,
        given=_stopped_at_creations,
    ),
    Mutant("what another client follows is not found", _follows_alone(), stops=True, given=_copies),
    Mutant("failures are remembered", ((driver, "is_kept", _keeps_all),), stops=True),
    Mutant("deadlines are told late", _reminds_late(), given=_late("raise")),
    Mutant("deadlines are not told", ((Driver, "remind", lambda *_, **__: None),), given=_late("raise")),
    Mutant("deadlines are told after the answer", _keeps_reminders(), given=_in_time),
    Mutant(
        "a request that is sent again has another deadline",
        _starts_the_clock_again(),
        given=_expiring(wanted="resubmit", deadline=900.0),
    ),
    Mutant(
        "a deadline does not say which batch it is about",
        ((driver, "Overdue", lambda _, age: Overdue(None, age)),),
        given=_late("raise"),
    ),
    Mutant(
        "what is answered in real time stays in its batch",
        ((Driver, "withdraw", lambda *_: None),),
        given=_late("realtime"),
    ),
    Mutant(
        "what is late leaves its batch though its answer would be kept",
        ((Driver, "leave", _withdraws_all),),
        stops=True,
        given=_late("raise"),
    ),
    Mutant("the batch's answer is not heard after the deadline", _hears_no_late_answer(), given=_lately),
    Mutant(
        "realtime answers are not kept",
        ((Driver, "answer", _keeps_no_realtime_answer),),
        stops=True,
        given=_late("realtime"),
    ),
    Mutant("realtime calls have no limit", _limits_no_realtime_calls(), given=_late("realtime")),
    Mutant(
        "what expires is sent again, whoever wants an error",
        _sends_expired_requests_again(),
        given=_expiring(wanted="raise"),
    ),
    Mutant(
        "what expires is sent again, whoever wants it in real time",
        _sends_expired_requests_again(),
        given=_expiring(wanted="realtime"),
    ),
    Mutant(
        "closing leaves those to themselves whose batches are over",
        ((Driver, "_dismiss_guests", _dismisses_no_callers_of_realtime_calls),),
        given=_closing_after_an_end,
    ),
)
