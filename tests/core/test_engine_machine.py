"""The engine against a server, a network, callers and a clock that do anything at any time.

The server is honest in two things: a batch that it made is in its list after `LAG` seconds at the latest, and an
answer of BUSY or NOT_FOUND to a creation means that it made none.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from autobatcher.core.admission import Admission
from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.engine import Engine
from autobatcher.core.lifecycle import MOVES, TERMINAL_STATUSES, Step
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
from autobatcher.core.outcomes import Answer, BatchProblem, Closed, Failure, Outcome, Trouble
from autobatcher.core.retry import LOOK_UP_SECONDS, PollSchedule
from autobatcher.core.window import Limits, Request, Window
from autobatcher.events import BatchSettled, BatchSubmitted, Event, RequestsResent

C = TypeVar("C")

LAG = LOOK_UP_SECONDS - 1
"""Seconds after which the server's list has a batch at the latest."""

STATUSES = ["validating", "in_progress", "finalizing", "odd", "cancelling", *sorted(TERMINAL_STATUSES)]
CODES = [None, "bad", "token_limit_exceeded", "server_error", "model_not_found"]

troubles = st.sampled_from(Trouble)
retry_afters = st.none() | st.sampled_from([0.0, 0.3, 20.0, 1e6])
jumps = st.sampled_from([0.0, 0.1, 1.0, 5.0, 16.0, 61.0, 600.0, 7_200.0, 90_000.0])


@dataclass
class Made:
    """A batch at the server."""

    id: str
    at: float
    names: tuple[str, ...]
    cancelled: bool = False


@dataclass
class Server:
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    made: dict[str, Made] = field(default_factory=dict)
    """By file."""

    def make(self, file_id: str, now: float) -> Made:
        assert file_id not in self.made, "bought twice"
        batch = self.made[file_id] = Made(f"batch-of-{file_id}", now, self.files[file_id])
        return batch


def busy(world: World) -> bool:
    return bool(world.engine.batches or world.engine.windows)


def line(name: str, status: int) -> bytes:
    return json.dumps(
        {"custom_id": name, "response": {"status_code": status, "body": {"for": name}}}
    ).encode()


class World(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.numbers = itertools.count()
        self.server = Server()
        self.requests: dict[str, Request] = {}
        self.left: set[str] = set()
        self.late: set[str] = set()
        self.settled: dict[str, Outcome] = {}
        self.calls: list[Call] = []
        self.events: list[Event] = []
        self.steps: dict[int, tuple[Batch, Step]] = {}
        self.begun: dict[Upload, tuple[str, ...]] = {}
        """The lines of the uploads whose turn has come."""
        self.cancelling: set[str] = set()
        self.ended: set[str] = set()
        self.closed = False
        self.giving_up = False

    @initialize(
        max_batches=st.none() | st.integers(1, 3),
        max_tokens=st.none() | st.sampled_from([1, 30, 1_000]),
        patience=st.sampled_from([10.0, 3_600.0, 86_400.0]),
        spread=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def begin(self, max_batches: int | None, max_tokens: int | None, patience: float, spread: float) -> None:
        self.engine = Engine(
            Limits(requests=4, seconds=1.0, size=100, weight=6, tokens=max_tokens),
            PollSchedule(5.0),
            Admission(max_batches, max_tokens),
            patience,
            lambda: spread,
        )
        self.max_batches = max_batches

    # What comes out.

    def settle(self, name: str, outcome: Outcome) -> None:
        assert name not in self.settled, "settled twice"
        assert name not in self.left, "settled after its caller had left"
        self.settled[name] = outcome
        if isinstance(outcome, Answer):
            assert json.loads(outcome.body)["for"] == name, "somebody else's answer"

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Settle(request, outcome):
                    self.settle(request.custom_id, outcome)
                case Late(_, body):
                    name = json.loads(body)["for"]
                    assert name in self.left, "counted, and not left"
                    assert name not in self.late, "counted twice"
                    self.late.add(name)
                case Publish(event):
                    self.events.append(event)
                    if isinstance(event, BatchSettled):
                        self.check_end(event)
                case Ended(batch):
                    assert id(batch) not in self.engine.batches
                case call:
                    assert not any(call.batch is other.batch for other in self.calls), "two calls for a batch"
                    if isinstance(call, Create):
                        assert call.file_id not in self.server.made, "about to be bought twice"
                    if isinstance(call, (Poll, Cancel)):
                        assert call.batch.file_id is not None
                        assert call.batch_id == self.server.made[call.batch.file_id].id
                    if isinstance(call, Cancel):
                        self.cancelling.add(call.batch_id)
                    self.calls.append(call)

    def check_end(self, event: BatchSettled) -> None:
        """A batch that goes on for nobody is cancelled."""
        if event.batch_id is None or self.closed or self.giving_up or event.failed:
            return
        (requests,) = {
            found.requests
            for found in self.events
            if isinstance(found, BatchSubmitted) and found.batch_id == event.batch_id
        }
        if event.answered + event.resent < requests:
            assert event.batch_id in self.cancelling | self.ended, "it is paid for, and nobody wants it"

    def wake(self) -> None:
        self.apply(self.engine.wake(self.now))
        wakeup = self.engine.next_wakeup()
        assert wakeup is None or wakeup > self.now, "a busy loop"

    def report(self, report: Report) -> None:
        snapshot = getattr(report, "snapshot", None)
        if snapshot is not None and snapshot.status in TERMINAL_STATUSES:
            self.ended.add(snapshot.id)
        self.apply(self.engine.handle(report, self.now))

    def fail(self, batch: Batch, trouble: Trouble, retry_after: float | None) -> None:
        self.giving_up = True  # for patience may be over
        self.report(Failed(batch, Failure(trouble, "cause", trouble.value, retry_after)))
        self.giving_up = False

    def pick(self, data: st.DataObject, kind: type[C] = Call) -> C | None:  # type: ignore[assignment] # any of them
        """One of the calls under way; if there is none, time passes until there is."""
        while not self.calls:
            wakeup = self.engine.next_wakeup()
            if wakeup is None:
                return None
            self.now = max(self.now, wakeup)
            self.wake()
        found = [call for call in self.calls if isinstance(call, kind)]
        if not found:
            return None
        call = data.draw(st.sampled_from(found), label="call")
        self.calls.remove(call)
        return call

    # Callers.

    @precondition(lambda self: not self.closed and len(self.requests) < 40)
    @rule(
        count=st.integers(1, 5),
        model=st.sampled_from("mmn"),
        size=st.sampled_from([1, 1, 60]),
        weight=st.sampled_from([1, 1, 4]),
        retries=st.integers(0, 2),
    )
    def accept(self, count: int, model: str, size: int, weight: int, retries: int) -> None:
        for _ in range(count):
            name = f"r{next(self.numbers)}"
            request = Request(name, "/v1/x", model, b"", size, weight=weight, retries_left=retries)
            self.requests[name] = request
            self.engine.accept(request, self.now)

    @precondition(lambda self: len(self.settled) + len(self.left) < len(self.requests))
    @rule(data=st.data(), everybody=st.sampled_from([False] * 9 + [True]))
    def abandon(self, data: st.DataObject, *, everybody: bool) -> None:
        names = list(self.requests) if everybody else [data.draw(st.sampled_from(list(self.requests)))]
        for name in names:
            if name not in self.settled:
                self.left.add(name)
            self.apply(self.engine.abandon(self.requests[name], self.now))

    # The clock.

    @precondition(lambda self: busy(self) or self.closed or len(self.requests) >= 40)
    @rule(seconds=jumps)
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.wake()

    # The server and the network.

    @precondition(busy)
    @rule(data=st.data(), trouble=troubles, retry_after=retry_afters)
    def a_call_fails(self, data: st.DataObject, trouble: Trouble, retry_after: float | None) -> None:
        call = self.pick(data)
        if call is None:
            return
        if isinstance(call, Upload):
            self.uploaded(call)  # the file may well be there
        if (
            isinstance(call, Create)
            and trouble in (Trouble.PASSING, Trouble.ODD)
            and data.draw(st.booleans())
        ):
            self.server.make(call.file_id, self.now)
        if isinstance(call, Fetch) and data.draw(st.booleans()):
            self.read_some(call, data)
        self.fail(call.batch, trouble, retry_after)
        self.wake()

    @precondition(busy)
    @rule(data=st.data())
    def a_creation_is_lost_and_its_batch_shows_late(self, data: st.DataObject) -> None:
        """All that a list may keep back, it does."""
        call = self.pick(data, Create)
        if call is None:
            return
        made = self.server.make(call.file_id, self.now)
        self.fail(call.batch, data.draw(st.sampled_from([Trouble.PASSING, Trouble.ODD])), None)
        while call.batch.step is Step.LOOK_UP:
            self.now += data.draw(st.sampled_from([3.0, 16.0, 40.0, 300.0]))
            self.wake()
            for look in [other for other in self.calls if other.batch is call.batch]:
                assert isinstance(look, LookUp)
                self.calls.remove(look)
                self.report(LookedUp(call.batch, self.listed(call.file_id, lags=True)))
        if call.batch.step is not Step.SETTLED:
            assert call.batch.id == made.id, "made again"
        self.wake()

    @precondition(busy)
    @rule(data=st.data())
    def a_call_succeeds(self, data: st.DataObject) -> None:
        call = self.pick(data)
        match call:
            case Upload(batch=batch):
                self.report(Uploaded(batch, self.uploaded(call)))
            case Create(batch, file_id):
                made = self.server.make(file_id, self.now)
                self.report(Created(batch, Snapshot(made.id, "validating")))
            case LookUp(batch, file_id):
                self.report(LookedUp(batch, self.listed(file_id, lags=data.draw(st.booleans()))))
            case Poll(batch, batch_id):
                self.report(Polled(batch, self.any_snapshot(batch_id, batch, data)))
            case Fetch(batch):
                self.read_some(call, data)
                self.report(Fetched(batch))
            case Cancel(batch):
                self.cancelled(batch)
                self.report(Cancelled(batch))
        self.wake()

    @precondition(lambda self: any(isinstance(call, Fetch) for call in self.calls))
    @rule(data=st.data())
    def some_lines_arrive(self, data: st.DataObject) -> None:
        fetches = [call for call in self.calls if isinstance(call, Fetch)]
        self.read_some(data.draw(st.sampled_from(fetches)), data)

    @precondition(busy)
    @rule(data=st.data())
    def the_server_keeps_to_its_word(self, data: st.DataObject) -> None:
        """A batch has ended so, and these are its lines, however often it is asked."""
        call = self.pick(data, Poll)
        if call is None:
            return
        batch = call.batch
        status = data.draw(st.sampled_from(sorted(TERMINAL_STATUSES)))
        problems = data.draw(st.lists(self.problems(batch), max_size=2))
        names = data.draw(st.sets(st.sampled_from(list(batch.entries))))
        said = Snapshot(call.batch_id, status, "out" if names else None, None, tuple(problems))
        self.report(Polled(batch, said))
        for _ in range(100):
            self.wake()
            for mine in [call for call in self.calls if call.batch is batch]:
                self.calls.remove(mine)
                match mine:
                    case Poll():
                        self.report(Polled(batch, said))
                    case Fetch():
                        self.report(LinesRead(batch, "out", [line(name, 200) for name in names], len(names)))
                        self.report(Fetched(batch))
                    case _:
                        raise AssertionError(mine)
            if batch.step is Step.SETTLED:
                return
            if batch.due is not None:
                self.now = max(self.now, batch.due)
        raise AssertionError("it does not believe the server")

    @precondition(lambda self: busy(self) and not self.closed)
    @rule(data=st.data(), sure=st.integers(0, 9))
    def a_call_has_a_defect(self, data: st.DataObject, sure: int) -> None:
        if sure:  # rarely
            return
        call = self.pick(data)
        if call is not None:
            self.giving_up = True
            self.apply(self.engine.give_up(call.batch, "defect", self.now))
            self.giving_up = False
            self.wake()

    @precondition(busy)
    @rule(data=st.data())
    def a_call_succeeds_as_it_should(self, data: st.DataObject) -> None:
        call = self.pick(data)
        if call is not None:
            self.serve_well(call)
            self.wake()

    @precondition(lambda self: any(isinstance(call, Upload) for call in self.calls))
    @rule(data=st.data())
    def the_turn_of_an_upload_comes(self, data: st.DataObject) -> None:
        uploads = [call for call in self.calls if isinstance(call, Upload)]
        self.begin_upload(data.draw(st.sampled_from(uploads)))

    def begin_upload(self, call: Upload) -> None:
        """From now on the file's lines are what they are; who leaves has one all the same."""
        if call not in self.begun:
            lines = tuple(request.custom_id for request in call.batch.lines())
            assert lines == tuple(call.batch.entries)
            self.begun[call] = lines

    def uploaded(self, call: Upload) -> str:
        self.begin_upload(call)
        file_id = f"file-{next(self.numbers)}"
        lines = self.server.files[file_id] = self.begun.pop(call)
        if call.batch.step is Step.UPLOAD:
            assert lines == tuple(call.batch.entries)
        return file_id

    def listed(self, file_id: str, *, lags: bool) -> Snapshot | None:
        made = self.server.made.get(file_id)
        if made is None or (lags and self.now - made.at < LAG):
            return None
        return Snapshot(made.id, "in_progress")

    def cancelled(self, batch: Batch) -> None:
        assert batch.file_id is not None
        made = self.server.made[batch.file_id]
        assert not made.cancelled, "cancelled twice"
        waiting = [request.custom_id for request in batch.requests]
        assert not waiting or self.closed, "somebody still waits for it"
        made.cancelled = True

    def problems(self, batch: Batch) -> st.SearchStrategy[BatchProblem]:
        lines = st.none() | st.integers(-1, len(batch.entries) + 1)
        return st.builds(BatchProblem, st.sampled_from(CODES), st.none(), lines)

    def any_snapshot(self, batch_id: str, batch: Batch, data: st.DataObject) -> Snapshot:
        files = st.sampled_from([None, "", "out", "out", "err", "other"])
        return Snapshot(
            batch_id,
            data.draw(st.sampled_from(STATUSES)),
            data.draw(files),
            data.draw(files),
            tuple(data.draw(st.lists(self.problems(batch), max_size=2))),
        )

    def read_some(self, call: Fetch, data: st.DataObject) -> None:
        """Lines of this batch and of others, of nobody, doubled, damaged, in any order; or none."""
        file_id, skip = data.draw(st.sampled_from(call.files)) if call.files else ("out", 0)
        names = st.sampled_from([*call.batch.entries, *itertools.islice(self.requests, 3), "nobody"])
        good = st.builds(line, names, st.sampled_from([200, 200, 200, 400, 429, 500]))
        expired = names.map(
            lambda name: json.dumps({"custom_id": name, "error": {"code": "batch_expired"}}).encode()
        )
        cut = good.map(lambda whole: whole[: len(whole) // 2])
        lines = data.draw(st.lists(st.one_of(good, good, expired, cut, st.binary(max_size=4)), max_size=6))
        resumes = data.draw(st.booleans())
        last = (skip if resumes else 0) + len(lines)
        live = call.batch.step is not Step.SETTLED
        self.report(LinesRead(call.batch, file_id, lines, last, resumes))
        for name in call.batch.entries if live else ():
            if line(name, 200) in lines or line(name, 400) in lines:
                assert (
                    name in self.settled or name in self.left or self.requests[name].place is not call.batch
                )

    def serve_well(self, call: Call) -> None:
        batch = call.batch
        match call:
            case Upload():
                self.report(Uploaded(batch, self.uploaded(call)))
            case Create(_, file_id):
                self.report(Created(batch, Snapshot(self.server.make(file_id, self.now).id, "validating")))
            case LookUp(_, file_id):
                self.report(LookedUp(batch, self.listed(file_id, lags=False)))
            case Poll(_, batch_id):
                self.report(Polled(batch, Snapshot(batch_id, "completed", "out")))
            case Fetch(_, files):
                file_id, skip = files[0]
                lines = [line(name, 200) for name in batch.entries]
                self.report(LinesRead(batch, file_id, lines[skip:], len(lines), resumes=True))
                self.report(Fetched(batch))
            case Cancel():
                self.cancelled(batch)
                self.report(Cancelled(batch))

    # The end.

    @precondition(lambda self: busy(self) and not self.closed)
    @rule(cancel=st.booleans(), sure=st.integers(0, 15))
    def close(self, *, cancel: bool, sure: int) -> None:
        if sure:  # rarely
            return
        self.closed = True
        self.apply(self.engine.close(self.now, cancel=cancel))
        assert self.settled.keys() | self.left == self.requests.keys()
        if not cancel:  # what goes on is cancelled, for its callers had left before
            assert all(batch.gone for batch in self.engine.batches.values())

    # What always holds.

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        places: dict[str, list[Window | Batch]] = {name: [] for name in self.requests}
        for window in self.engine.windows.values():
            for name, request in window.requests.items():
                places[name].append(window)
                assert request.custom_id == name
            requests = window.requests.values()
            assert window.size == sum(request.size for request in requests)
            assert window.weight == sum(request.weight for request in requests)
        for batch in self.engine.batches.values():
            inside = list(batch.requests)
            assert batch.waiting == len(inside)
            for request in inside:
                places[request.custom_id].append(batch)
            if len(inside) == len(batch.entries):
                assert batch.size == sum(request.size for request in inside)
        for name, found in places.items():
            if name in self.settled or name in self.left:
                assert found == []
            else:
                assert len(found) == 1
                assert self.requests[name].place is found[0]

    @invariant()
    def what_is_under_way_is_known(self) -> None:
        under_way = {id(call.batch) for call in self.calls if call.batch.step is not Step.SETTLED}
        for key, batch in self.engine.batches.items():
            assert key == id(batch)
            assert batch.step is not Step.SETTLED
            if batch.step is not Step.QUEUED:
                assert (batch.due is None) == (key in under_way)
            if batch.file_id is not None and batch.file_id in self.server.made and batch.snapshot is None:
                assert batch.step in (Step.CREATE, Step.LOOK_UP)
            if (
                not batch.waiting
            ):  # only what is under way, or is to be found or cancelled, goes on for nobody
                assert batch.due is None or batch.step in (Step.LOOK_UP, Step.CANCEL)

    @invariant()
    def limits_hold(self) -> None:
        at_server = [batch for batch in self.engine.batches.values() if batch.step is not Step.QUEUED]
        if self.max_batches is not None:
            assert len(at_server) <= self.max_batches
        for batch in self.engine.batches.values():
            assert len(batch.entries) <= 4

    @invariant()
    def moves_are_legal(self) -> None:
        reachable = closure()
        for key, batch in self.engine.batches.items():
            _, before = self.steps.get(key, (batch, Step.QUEUED))
            assert batch.step is before or batch.step in reachable[before]
        self.steps = {
            key: (batch, batch.step) for key, batch in self.engine.batches.items()
        }  # ids stay taken

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(20 * (len(self.requests) + len(self.engine.batches) + 1)):
            while self.calls:
                self.serve_well(self.calls.pop())
            self.wake()
            if not self.calls:
                wakeup = self.engine.next_wakeup()
                if wakeup is None:
                    break
                self.now = wakeup
        assert (self.engine.windows, self.engine.batches, self.calls) == ({}, {}, []), "it does not end"
        assert self.settled.keys() | self.left == self.requests.keys(), "somebody is forgotten"
        if self.closed:
            assert self.engine.close(self.now) == []
        self.count()

    def count(self) -> None:
        """The events add up: what was settled outside of a batch was closed."""
        ended = [event for event in self.events if isinstance(event, BatchSettled)]
        told = sum(event.answered + event.failed for event in ended)
        closed = [outcome for outcome in self.settled.values() if isinstance(outcome, Closed)]
        assert len(self.settled) - len(closed) <= told <= len(self.settled)
        resent = sum(event.requests for event in self.events if isinstance(event, RequestsResent))
        assert resent == sum(event.resent for event in ended)
        assert resent == sum(request.sent for request in self.requests.values())
        submitted = {event.batch_id for event in self.events if isinstance(event, BatchSubmitted)}
        assert {event.batch_id for event in ended} - {None} == submitted


def closure() -> dict[Step, set[Step]]:
    """From each step, all that can follow."""
    reachable = {step: set(MOVES[step]) for step in Step}
    for _ in Step:
        for found in reachable.values():
            found |= {further for step in found for further in reachable[step]}
    return reachable


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=300, stateful_step_count=60)
