"""The engine, driven with events and no runtime."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatcher.core.engine import (
    Batch,
    Call,
    Create,
    Created,
    Effect,
    Engine,
    Fetch,
    Fetched,
    LinesRead,
    Poll,
    Polled,
    Publish,
    Report,
    Settle,
    Snapshot,
    StepFailed,
    Upload,
    Uploaded,
    Warn,
)
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
from autobatcher.core.window import Limits, Request
from autobatcher.events import BatchSettled, BatchSubmitted

T = TypeVar("T")

ENDPOINT = "/v1/chat/completions"


def make(custom_id: str, model: str = "m") -> Request:
    return Request(custom_id, ENDPOINT, model, f'{{"custom_id":"{custom_id}"}}\n'.encode(), reply=None)


def answer_line(custom_id: str, status: int = 200) -> bytes:
    response = {"status_code": status, "request_id": f"req-{custom_id}", "body": {"for": custom_id}}
    return json.dumps({"custom_id": custom_id, "response": response, "error": None}).encode()


def answer(custom_id: str, status: int = 200) -> Answer:
    return Answer(status, f"req-{custom_id}", json.dumps({"for": custom_id}).encode())


def only(effects: list[Effect], kind: type[T]) -> T:
    (effect,) = effects
    assert isinstance(effect, kind)
    return effect


def settled(effects: list[Effect]) -> dict[str, Outcome]:
    pairs = [(effect.request.custom_id, effect.outcome) for effect in effects if isinstance(effect, Settle)]
    assert len(dict(pairs)) == len(pairs), "a request is settled twice"
    return dict(pairs)


def published(effects: list[Effect]) -> list[object]:
    return [effect.event for effect in effects if isinstance(effect, Publish)]


def state_of(batch: Batch) -> BatchState:
    return batch.state  # a call, as type checkers take an attribute to stay what it was


def submit(engine: Engine, *custom_ids: str, model: str = "m", now: float = 0.0) -> Batch:
    """A batch of these requests, about to be uploaded."""
    for custom_id in custom_ids:
        engine.accept(make(custom_id, model), now)
    return only(engine.wake(now + engine.limits.seconds), Upload).batch


def reach(engine: Engine, batch: Batch, state: BatchState, now: float = 1.0) -> float:
    """Lead a batch that is about to be uploaded into a state; the time when it is there."""
    if state is BatchState.UPLOADING:
        return now
    engine.handle(Uploaded(batch, "file"), now)
    if state is BatchState.CREATING:
        return now
    engine.handle(Created(batch, Snapshot("b1", "validating")), now)
    if state is BatchState.WAITING:
        return now
    assert batch.poll_at is not None
    now = batch.poll_at
    engine.wake(now)
    if state is BatchState.FETCHING:
        engine.handle(Polled(batch, Snapshot("b1", "completed", "out", "err")), now)
    assert batch.state is state
    return now


def test_a_batch_goes_through_its_states_to_answers() -> None:
    engine = Engine()
    batch = submit(engine, "a", "b")
    assert state_of(batch) is BatchState.UPLOADING
    assert engine.next_wakeup() is None

    create = only(engine.handle(Uploaded(batch, "file"), 2.0), Create)
    assert (create.batch, create.file_id) == (batch, "file")
    assert state_of(batch) is BatchState.CREATING

    effects = engine.handle(Created(batch, Snapshot("b1", "validating")), 3.0)
    assert published(effects) == [BatchSubmitted("b1", ENDPOINT, "m", 2, batch.size)]
    assert state_of(batch) is BatchState.WAITING
    assert engine.next_wakeup() == 8.0
    assert engine.wake(7.9) == []

    poll = only(engine.wake(8.0), Poll)
    assert (poll.batch, poll.batch_id) == (batch, "b1")
    assert state_of(batch) is BatchState.POLLING
    assert engine.next_wakeup() is None

    assert engine.handle(Polled(batch, Snapshot("b1", "in_progress")), 8.5) == []
    assert state_of(batch) is BatchState.WAITING
    assert engine.next_wakeup() == 13.5
    only(engine.wake(13.5), Poll)

    fetch = only(engine.handle(Polled(batch, Snapshot("b1", "completed", "out", "err")), 14.0), Fetch)
    assert fetch.file_ids == ("out", "err")
    assert state_of(batch) is BatchState.FETCHING

    assert settled(engine.handle(LinesRead(batch, [answer_line("b")]), 14.5)) == {"b": answer("b")}
    assert settled(engine.handle(LinesRead(batch, [answer_line("a", 429)]), 14.6)) == {"a": answer("a", 429)}

    effects = engine.handle(Fetched(batch), 15.0)
    assert settled(effects) == {}
    assert published(effects) == [
        BatchSettled("b1", ENDPOINT, "m", "completed", answered=1, failed=1, duration=14.0)
    ]
    assert state_of(batch) is BatchState.SETTLED
    assert engine.batches == {}
    assert engine.next_wakeup() is None


def test_one_batch_does_not_hold_up_another() -> None:
    engine = Engine(Limits(requests=1))
    slow = only(engine.accept(make("a"), 0.0)[1:], Upload).batch
    quick = only(engine.accept(make("b"), 0.0)[1:], Upload).batch
    other = only(engine.accept(make("c", "n"), 0.0)[1:], Upload).batch
    reach(engine, other, BatchState.CREATING)
    reach(engine, quick, BatchState.FETCHING)
    assert settled(engine.handle(LinesRead(quick, [answer_line("b")]), 10.0)) == {"b": answer("b")}
    engine.handle(Fetched(quick), 10.0)
    assert (slow.state, other.state) == (BatchState.UPLOADING, BatchState.CREATING)
    assert list(engine.batches.values()) == [slow, other]
    assert settled(engine.handle(StepFailed(other, "no", passing=False), 11.0)) == {"c": CallFailed("no")}
    only(engine.handle(Uploaded(slow, "file"), 12.0), Create)


def test_polls_come_further_apart_as_the_batch_ages() -> None:
    engine = Engine()
    batch = submit(engine, "a")
    reach(engine, batch, BatchState.WAITING, now=0.0)
    intervals = []
    now = 0.0
    while now < 86_400:
        wakeup = engine.next_wakeup()
        assert wakeup is not None
        intervals.append(wakeup - now)
        now = wakeup
        only(engine.wake(now), Poll)
        assert engine.handle(Polled(batch, Snapshot("b1", "in_progress")), now) == []
    assert intervals[0] == 5
    assert intervals[-1] == pytest.approx(600)
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(intervals))


@pytest.mark.parametrize(
    "status", ["validating", "in_progress", "finalizing", "cancelling", "never heard of"]
)
def test_a_status_that_may_still_change_means_poll_on(status: str) -> None:
    engine = Engine()
    batch = submit(engine, "a")
    now = reach(engine, batch, BatchState.POLLING)
    assert engine.handle(Polled(batch, Snapshot("b1", status, "out")), now) == []
    assert state_of(batch) is BatchState.WAITING
    assert engine.next_wakeup() == now + 5


@pytest.mark.parametrize("status", sorted(TERMINAL_STATUSES))
def test_an_end_without_files_answers_nobody(status: str) -> None:
    engine = Engine()
    batch = submit(engine, "a", "b")
    now = reach(engine, batch, BatchState.POLLING)
    problems = (BatchProblem("invalid", "no", 1, "model"),)
    effects = engine.handle(Polled(batch, Snapshot("b1", status, problems=problems)), now)
    unanswered = Unanswered("b1", status, problems)
    assert settled(effects) == {"a": unanswered, "b": unanswered}
    assert published(effects) == [
        BatchSettled("b1", ENDPOINT, "m", status, answered=0, failed=2, duration=now - 1)
    ]
    assert engine.batches == {}


@pytest.mark.parametrize("status", sorted(TERMINAL_STATUSES))
@pytest.mark.parametrize(
    ("output", "error", "files"),
    [("out", None, ("out",)), (None, "err", ("err",)), ("out", "err", ("out", "err")), ("out", "", ("out",))],
)
def test_an_end_with_files_answers_whom_they_name(
    status: str, output: str | None, error: str | None, files: tuple[str, ...]
) -> None:
    engine = Engine()
    batch = submit(engine, "a", "b")
    now = reach(engine, batch, BatchState.POLLING)
    fetch = only(engine.handle(Polled(batch, Snapshot("b1", status, output, error)), now), Fetch)
    assert fetch.file_ids == files
    assert settled(engine.handle(LinesRead(batch, [answer_line("a")]), now)) == {"a": answer("a")}
    effects = engine.handle(Fetched(batch), now)
    assert settled(effects) == {"b": Unanswered("b1", status, ())}
    assert engine.batches == {}


def test_a_failed_line_names_the_batch() -> None:
    engine = Engine()
    batch = submit(engine, "a")
    now = reach(engine, batch, BatchState.FETCHING)
    line = b'{"custom_id":"a","response":null,"error":{"code":"c","message":"no"}}'
    assert settled(engine.handle(LinesRead(batch, [line]), now)) == {"a": LineFailed("c", "no", "b1")}
    (event,) = published(engine.handle(Fetched(batch), now))
    assert isinstance(event, BatchSettled)
    assert (event.answered, event.failed) == (0, 1)


@pytest.mark.parametrize(
    ("odd", "warnings"),
    [
        pytest.param([answer_line("a", 500)], 0, id="doubled"),
        pytest.param([answer_line("nobody")], 0, id="unknown"),
        pytest.param([b"{", b"", b'{"custom_id":"b"}', b"\xff"], 4, id="malformed"),
    ],
)
def test_odd_lines_affect_nobody(odd: list[bytes], warnings: int) -> None:
    engine = Engine()
    batch = submit(engine, "a", "b", "c")
    now = reach(engine, batch, BatchState.FETCHING)
    lines = [answer_line("a"), *odd, answer_line("b")]
    effects = engine.handle(LinesRead(batch, lines), now)
    assert settled(effects) == {"a": answer("a"), "b": answer("b")}
    warned = [effect.message for effect in effects if isinstance(effect, Warn)]
    assert len(warned) == warnings
    assert all("b1" in message for message in warned)
    assert settled(engine.handle(LinesRead(batch, odd), now)) == {}
    assert settled(engine.handle(Fetched(batch), now)) == {"c": Unanswered("b1", "completed", ())}


def test_a_line_of_another_batch_affects_neither() -> None:
    engine = Engine()
    batch, other = submit(engine, "a"), submit(engine, "b", model="n")
    now = reach(engine, batch, BatchState.FETCHING)
    assert engine.handle(LinesRead(batch, [answer_line("b")]), now) == []
    assert list(other.requests) == ["b"]


@pytest.mark.parametrize("state", [BatchState.POLLING, BatchState.FETCHING])
def test_a_failure_that_passes_makes_a_batch_wait_and_poll_again(state: BatchState) -> None:
    engine = Engine()
    batch = submit(engine, "a", "b")
    now = reach(engine, batch, state)
    if state is BatchState.FETCHING:
        assert settled(engine.handle(LinesRead(batch, [answer_line("a")]), now)) == {"a": answer("a")}
    assert engine.handle(StepFailed(batch, "503", passing=True), now) == []
    assert state_of(batch) is BatchState.WAITING
    assert engine.next_wakeup() == now + 5
    only(engine.wake(now + 5), Poll)
    only(engine.handle(Polled(batch, Snapshot("b1", "completed", "out")), now + 5), Fetch)
    expected = {"a": answer("a"), "b": answer("b")}
    if state is BatchState.FETCHING:  # read before
        del expected["a"]
    lines = [answer_line("a"), answer_line("b")]
    assert settled(engine.handle(LinesRead(batch, lines), now + 6)) == expected
    (event,) = published(engine.handle(Fetched(batch), now + 6))
    assert isinstance(event, BatchSettled)
    assert (event.answered, event.failed) == (2, 0)


@pytest.mark.parametrize(
    ("state", "passing", "batch_id", "status"),
    [
        (BatchState.UPLOADING, False, None, "not submitted"),
        (BatchState.UPLOADING, True, None, "not submitted"),
        (BatchState.CREATING, False, None, "not submitted"),
        (BatchState.CREATING, True, None, "not submitted"),
        (BatchState.POLLING, False, "b1", "validating"),
        (BatchState.FETCHING, False, "b1", "completed"),
    ],
)
def test_a_failure_that_stays_fails_every_call(
    state: BatchState, *, passing: bool, batch_id: str | None, status: str
) -> None:
    engine = Engine()
    batch = submit(engine, "a", "b")
    now = reach(engine, batch, state)
    cause = object()
    effects = engine.handle(StepFailed(batch, cause, passing=passing), now)
    assert settled(effects) == {"a": CallFailed(cause), "b": CallFailed(cause)}
    assert published(effects) == [
        BatchSettled(batch_id, ENDPOINT, "m", status, answered=0, failed=2, duration=now - 1)
    ]
    assert engine.batches == {}
    assert engine.next_wakeup() is None


@pytest.mark.parametrize("state", [state for state in BatchState if state is not BatchState.SETTLED])
def test_close_settles_everybody_once(state: BatchState) -> None:
    engine = Engine()
    batch = submit(engine, "a", "b")
    now = reach(engine, batch, state)
    batch_id = None if state in (BatchState.UPLOADING, BatchState.CREATING) else "b1"
    engine.accept(make("c"), now)
    assert settled(engine.close(now)) == {"a": Closed(batch_id), "b": Closed(batch_id), "c": Closed(None)}
    assert (engine.windows, engine.batches, engine.next_wakeup()) == ({}, {}, None)
    assert engine.close(now) == []
    late: list[Report] = [
        Uploaded(batch, "file"),
        Created(batch, Snapshot("b1", "validating")),
        Polled(batch, Snapshot("b1", "completed", "out")),
        LinesRead(batch, [answer_line("a")]),
        Fetched(batch),
        StepFailed(batch, "no", passing=True),
        StepFailed(batch, "no", passing=False),
    ]
    assert [effect for report in late for effect in engine.handle(report, now)] == []
    assert engine.wake(now + 1000) == []


def test_a_request_abandoned_in_its_window_is_not_sent() -> None:
    engine = Engine()
    gone = make("a")
    engine.accept(gone, 0.0)
    engine.accept(make("b"), 0.0)
    engine.abandon(gone)
    batch = only(engine.wake(1.0), Upload).batch
    assert list(batch.requests) == ["b"]
    assert batch.size == len(make("b").line)


def test_a_window_that_everybody_left_makes_no_batch() -> None:
    engine = Engine()
    gone = make("a")
    engine.accept(gone, 0.0)
    engine.abandon(gone)
    assert engine.wake(1.0) == []
    assert (engine.windows, engine.batches) == ({}, {})


def test_a_request_abandoned_on_its_way_holds_up_nobody() -> None:
    engine = Engine()
    gone = make("a")
    engine.accept(gone, 0.0)
    batch = submit(engine, "b")
    engine.abandon(gone)
    engine.accept(make("c"), 1.0)
    engine.abandon(gone)
    assert [list(window.requests) for window in engine.windows.values()] == [["c"]]
    now = reach(engine, batch, BatchState.FETCHING)
    effects = engine.handle(LinesRead(batch, [answer_line("a"), answer_line("b")]), now)
    assert settled(effects) == {"a": answer("a"), "b": answer("b")}


def test_every_state_is_in_the_table_and_a_move_outside_it_is_a_defect() -> None:
    assert set(MOVES) == set(BatchState)
    batch = submit(Engine(), "a")
    with pytest.raises(AssertionError, match=r"does not go from .*UPLOADING to .*POLLING"):
        batch.move(BatchState.POLLING)


STATUSES = ["validating", "in_progress", *sorted(TERMINAL_STATUSES)]


class World:
    """A server and callers that do anything at any time; counts what becomes of each request."""

    def __init__(self) -> None:
        self.engine = Engine(Limits(requests=3, seconds=1.0, size=100, weight=5))
        self.now = 0.0
        self.requests: list[Request] = []
        self.left: set[str] = set()
        self.calls: list[Call] = []
        self.settled: Counter[str] = Counter()

    def note(self, effects: list[Effect]) -> None:
        self.calls += [effect for effect in effects if isinstance(effect, (Upload, Create, Poll, Fetch))]
        self.settled.update(effect.request.custom_id for effect in effects if isinstance(effect, Settle))

    def accept(self, data: st.DataObject) -> None:
        request = make(f"r{len(self.requests)}", data.draw(st.sampled_from(["m", "n"])))
        request.weight = data.draw(st.integers(1, 5))
        self.requests.append(request)
        self.note(self.engine.accept(request, self.now))

    def abandon(self, data: st.DataObject) -> None:
        if self.requests:
            request = data.draw(st.sampled_from(self.requests))
            if any(request.custom_id in window.requests for window in self.engine.windows.values()):
                self.left.add(request.custom_id)
            self.engine.abandon(request)

    def wake(self, data: st.DataObject) -> None:
        self.now += data.draw(st.sampled_from([0.0, 0.5, 5.0, 600.0]))
        self.note(self.engine.wake(self.now))

    def report(self, data: st.DataObject) -> None:
        if self.calls:
            call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
            for report in self.reports_on(call, data):
                self.note(self.engine.handle(report, self.now))

    def reports_on(self, call: Call, data: st.DataObject) -> list[Report]:
        batch = call.batch
        reports: list[Report] = []
        if isinstance(call, Fetch):
            known = [request.custom_id for request in self.requests]
            lines = st.sampled_from([*known, "nobody"]).map(answer_line) | st.binary(max_size=4)
            reports.append(LinesRead(batch, data.draw(st.lists(lines, max_size=8))))
        if data.draw(st.integers(0, 3)) == 0:
            return [*reports, StepFailed(batch, "no", passing=data.draw(st.booleans()))]
        name = f"b{id(batch)}"
        match call:
            case Upload():
                reports.append(Uploaded(batch, "file"))
            case Create():
                reports.append(Created(batch, Snapshot(name, "validating")))
            case Poll():
                file_ids = st.sampled_from([None, "file"])
                status = data.draw(st.sampled_from(STATUSES))
                reports.append(
                    Polled(batch, Snapshot(name, status, data.draw(file_ids), data.draw(file_ids)))
                )
            case Fetch():
                reports.append(Fetched(batch))
        return reports


@given(st.data())
def test_whatever_happens_each_request_is_settled_once(data: st.DataObject) -> None:
    world = World()
    steps = st.sampled_from(
        [world.accept, world.accept, world.wake, world.report, world.report, world.abandon]
    )
    for step in data.draw(st.lists(steps, max_size=40)):
        step(data)
        assert all(count == 1 for count in world.settled.values())
    world.note(world.engine.close(world.now))
    expected = {request.custom_id for request in world.requests} - world.left
    assert world.settled == dict.fromkeys(expected, 1)
    while world.calls:  # late reports change nothing
        world.report(data)
    world.note(world.engine.wake(world.now + 10_000))
    assert world.settled == dict.fromkeys(expected, 1)
    assert (world.engine.windows, world.engine.batches) == ({}, {})
