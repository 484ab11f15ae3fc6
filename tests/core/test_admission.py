"""How much may be at the server at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatcher.core.admission import BYTES_PER_TOKEN, Admission
from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.lifecycle import UNVALIDATED_STATUSES, Step
from autobatcher.core.messages import Created, Fetched, Polled, Upload, Uploaded
from autobatcher.core.retry import QUEUE
from autobatcher.core.window import Limits, Request

if TYPE_CHECKING:
    from tests.core.conftest import Rig

RUNNING = Snapshot("b1", "in_progress")


def queued(name: str = "a", *, model: str = "m", tokens: float = 0.0, not_before: float = 0.0) -> Batch:
    request = Request(name, "/v1/embeddings", model, b"", 10, tokens=tokens)
    batch = Batch.of("/v1/embeddings", model, {name: request}, closed_at=0.0, not_before=not_before)
    batch.due = not_before
    return batch


def at_server(
    name: str = "x", *, model: str = "m", tokens: float = 0.0, status: str | None = "in_progress"
) -> Batch:
    batch = queued(name, model=model, tokens=tokens)
    batch.step = Step.UPLOAD if status is None else Step.POLL
    batch.snapshot = None if status is None else Snapshot("b", status)
    batch.due = None  # a call is under way
    return batch


# --- batches at a time -----------------------------------------------------------------------------------------


def test_without_limits_all_that_are_ready_are_sent() -> None:
    early, late, other = queued("a"), queued("b", not_before=9.0), queued("c", model="n")
    assert Admission().choose([at_server(), early, late, other], 5.0) == [early, other]
    assert late.due == 9.0
    assert Admission().choose([late], 9.0) == [late]


@pytest.mark.parametrize("status", [None, "validating", "in_progress", "cancelling"])
def test_so_many_batches_are_at_the_server_at_most(status: str | None) -> None:
    admission = Admission(max_batches=2)
    first, second, third = queued("a"), queued("b", model="n"), queued("c")
    assert admission.choose([at_server(status=status), first, second, third], 0.0) == [first]
    assert (second.due, third.due) == (None, None)
    assert admission.choose([first, second, third], 0.0) == [first, second]


def test_a_batch_that_waits_its_turn_goes_when_another_ends(rigs: type[Rig]) -> None:
    rig = rigs(admission=Admission(max_batches=1))
    first = rig.to(Step.FETCH, "a").batch
    rig.ask("b")
    assert rig.wake(1.0) == []
    assert rig.engine.next_wakeup() is None
    rig.read(first, rig.line("a"))
    rig.report(Fetched(first))
    before = rig.now
    assert list(rig.next(Upload).batch.entries) == ["b"]
    assert rig.now == before


@pytest.mark.parametrize("leave", [False, True])
def test_a_batch_that_ends_before_it_is_at_the_server_makes_room_too(rigs: type[Rig], *, leave: bool) -> None:
    rig = rigs(limits=Limits(requests=1), admission=Admission(max_batches=1))
    call = rig.to(Step.UPLOAD, "a")
    rig.ask("b", "c")
    assert rig.wake() == []
    if leave:
        rig.leave("b", "a")
        rig.report(Uploaded(call.batch, "file"))
    else:
        rig.apply(rig.engine.give_up(call.batch, "cause", rig.now))
    assert list(rig.next(Upload).batch.entries) == ["c" if leave else "b"]


# --- tokens ----------------------------------------------------------------------------------------------------


def test_nobody_estimates_what_nobody_limits() -> None:
    assert Admission().estimate("m", 4_000) == 0.0


def test_tokens_are_guessed_by_bytes_and_then_by_what_answers_say() -> None:
    admission = Admission(max_tokens=10_000)
    assert admission.estimate("m", 4_000) == 4_000 / BYTES_PER_TOKEN
    for _ in range(100):
        admission.measure("m", 1_000, 500)
    assert admission.estimate("m", 4_000) == pytest.approx(2_000, rel=0.03)
    assert admission.estimate("n", 4_000) == 4_000 / BYTES_PER_TOKEN


def test_one_odd_measure_does_not_spoil_the_guess() -> None:
    admission = Admission(max_tokens=10_000)
    admission.measure("m", 10, 100)
    assert admission.estimate("m", 4_000) < 1.2 * 4_000 / BYTES_PER_TOKEN


@given(
    measures=st.lists(st.tuples(st.integers(1, 10**8), st.integers(0, 10**9)), max_size=20),
    size=st.integers(0, 10**9),
)
def test_an_estimate_is_a_number_of_tokens(measures: list[tuple[int, int]], size: int) -> None:
    admission = Admission(max_tokens=1)
    for bytes_, tokens in measures:
        admission.measure("m", bytes_, tokens)
    assert 0 <= admission.estimate("m", size) < float("inf")


def test_a_models_tokens_at_the_server_are_limited_and_another_models_are_not() -> None:
    admission = Admission(max_tokens=100)
    running = at_server(tokens=60.0)
    fits, over, other = queued("a", tokens=40.0), queued("b", tokens=1.0), queued("c", model="n", tokens=90.0)
    assert admission.choose([running, fits, over, other], 0.0) == [fits, other]
    assert over.due is None


def test_a_smaller_batch_does_not_overtake() -> None:
    admission = Admission(max_tokens=100)
    large, small = queued("a", tokens=50.0), queued("b", tokens=5.0)
    assert admission.choose([at_server(tokens=60.0), large, small], 0.0) == []


def test_a_single_batch_over_the_limit_goes_alone() -> None:
    admission = Admission(max_tokens=100)
    huge, next_ = queued("a", tokens=1_000.0), queued("b", tokens=1.0)
    assert admission.choose([at_server(tokens=1.0), huge], 0.0) == []
    assert admission.choose([huge, next_], 0.0) == [huge]


def test_requests_are_weighed_at_their_acceptance_and_measured_at_their_answer(rigs: type[Rig]) -> None:
    rig = rigs(admission=Admission(max_tokens=3_000))
    batch = rig.to(Step.FETCH, "a", size=4_000).batch
    assert batch.tokens == 1_000
    rig.read(batch, rig.line("a", usage={"prompt_tokens": 2_000}))
    rig.report(Fetched(batch))
    rig.ask("b", "c", size=4_000)
    assert [rig.requests[name].tokens for name in "bc"] == [1_500, 1_500]
    rig.ask("d", size=4_000)
    first = rig.next(Upload).batch
    assert (list(first.entries), first.tokens) == (["b", "c", "d"], 4_500)


@pytest.mark.parametrize("status", [400, 500])
def test_errors_are_no_measure(rigs: type[Rig], status: int) -> None:
    rig = rigs(admission=Admission(max_tokens=3_000))
    batch = rig.to(Step.FETCH, "a", size=4_000).batch
    rig.read(batch, rig.line("a", status, usage={"prompt_tokens": 2_000}))
    rig.report(Fetched(batch))
    assert rig.engine.admission.estimate("m", 4_000) == 1_000


# --- full queues -----------------------------------------------------------------------------------------------


def test_after_a_full_queue_one_batch_at_a_time_tries_it() -> None:
    admission = Admission()
    admission.queue_full("m", 0.0, 0.0, alone=True)
    first, second, other = queued("a"), queued("b"), queued("c", model="n")
    assert admission.choose([first, second, other], 0.0) == [other]
    assert first.due == second.due == QUEUE.first
    assert admission.choose([first, second], QUEUE.first) == [first]
    for status in [*sorted(UNVALIDATED_STATUSES), "failed"]:
        assert admission.choose([at_server(status=status), second], 100.0) == []
    coming = at_server(status=None)
    assert admission.choose([coming, second], 100.0) == []
    coming.due = 100.0
    assert admission.choose([coming, second], 100.0) == []
    coming.due = 101.0  # its upload, say, has failed
    assert admission.choose([coming, second], 100.0) == [second]
    assert admission.choose([at_server(status="in_progress"), second], 100.0) == [second]


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0])
def test_alone_the_waits_grow_until_something_that_was_in_the_queue_has_ended(spread: float) -> None:
    admission = Admission()
    waits = [admission.queue_full("m", 0.0, spread, alone=True).until for _ in range(8)]
    assert waits == [QUEUE.delay(count, spread) for count in range(1, 9)]
    assert waits[-1] == 3_600 * (1 - spread / 2)
    admission.ended("m", 0.0)
    assert admission.queue_full("m", 0.0, spread, alone=True).until == QUEUE.delay(1, spread)


def test_in_company_the_end_of_another_opens_the_gate() -> None:
    admission = Admission()
    gate = admission.queue_full("m", 50.0, 0.0, alone=False)
    assert gate.until == 50.0 + QUEUE.most
    admission.ended("n", 60.0)
    assert gate.until == 50.0 + QUEUE.most
    admission.ended("m", 70.0)
    assert gate.until == 70.0
    admission.ended("m", 80.0)
    assert gate.until == 70.0


def test_what_is_said_of_models_without_a_gate_makes_none() -> None:
    admission = Admission()
    admission.ended("m", 0.0)
    assert admission.gates == {}


def test_patience_is_counted_from_the_first_refusal_after_a_batch_went_through() -> None:
    admission = Admission()
    admission.queue_full("m", 10.0, 0.0, alone=True)
    assert admission.queue_full("m", 20.0, 0.0, alone=True).since == 10.0
    assert admission.queue_full("m", 30.0, 0.0, alone=False).since == 10.0
    assert admission.queue_full("m", 40.0, 0.0, alone=True).since == 10.0
    admission.ended("m", 50.0)
    assert admission.queue_full("m", 60.0, 0.0, alone=True).since == 60.0


# --- whatever is at the server ---------------------------------------------------------------------------------

anything = st.tuples(
    st.sampled_from(["queued", None, "validating", "in_progress"]),
    st.sampled_from("mn"),
    st.floats(0, 100),
    st.sampled_from([0.0, 0.0, 7.0]),
)


@given(
    batches=st.lists(anything, max_size=12),
    max_batches=st.none() | st.integers(1, 6),
    max_tokens=st.none() | st.integers(1, 150),
    gates=st.dictionaries(st.sampled_from("mn"), st.booleans()),
)
def test_limits_hold_and_nothing_is_held_without_a_reason(
    batches: list[tuple[str | None, str, float, float]],
    max_batches: int | None,
    max_tokens: int | None,
    gates: dict[str, bool],
) -> None:
    admission = Admission(max_batches, max_tokens)
    for model, alone in gates.items():
        admission.queue_full(model, -100.0, 0.0, alone=alone)
    known = [
        queued(str(number), model=model, tokens=tokens, not_before=not_before)
        if status == "queued"
        else at_server(str(number), model=model, tokens=tokens, status=status)
        for number, (status, model, tokens, not_before) in enumerate(batches)
    ]
    chosen = admission.choose(known, 0.0)
    active = [batch for batch in known if batch.step is not Step.QUEUED]
    waiting = [batch for batch in known if batch.step is Step.QUEUED and batch not in chosen]
    assert all(batch.step is Step.QUEUED and batch.not_before <= 0.0 for batch in chosen)
    assert all(batch.due is None or batch.due > 0.0 for batch in waiting)
    if max_batches is not None and chosen:
        assert len(active) + len(chosen) <= max_batches
    for model in "mn":
        new = [batch for batch in chosen if batch.model == model]
        there = [batch for batch in active if batch.model == model]
        if max_tokens is not None and new and len(new + there) > 1:
            total = sum(batch.tokens for batch in new + there)
            free = [batch for batch in new + there if not batch.tokens]
            assert total <= max_tokens or len(new + there) - len(free) <= 1
        if model in gates:
            assert len(new) <= 1
    if not active and not gates:
        ready = [batch for batch in known if batch.not_before <= 0.0]
        assert bool(chosen) == bool(ready)


def test_the_tokens_of_a_batch_count_until_it_ends(rigs: type[Rig]) -> None:
    rig = rigs(limits=Limits(requests=1), admission=Admission(max_tokens=1_500))
    rig.ask("a", "b", size=4_000)
    first = rig.next(Upload).batch
    rig.report(Uploaded(first, "file"))
    rig.next_calls()
    rig.report(Created(first, RUNNING))
    rig.polled(first, RUNNING)
    rig.polled(first, Snapshot("b1", "completed", "out"))
    rig.fetched(first, rig.line("a"))
    second = rig.next(Upload).batch
    assert list(second.entries) == ["b"]


@pytest.mark.parametrize(
    ("status", "opens"), [("completed", True), ("expired", True), ("cancelled", True), ("failed", False)]
)
def test_the_end_of_a_batch_that_was_taken_in_opens_the_gate(
    rigs: type[Rig], status: str, *, opens: bool
) -> None:
    rig = rigs()
    batch = rig.to(Step.POLL, "a").batch
    gate = rig.engine.admission.queue_full("m", rig.now, 0.0, alone=False)
    rig.report(Polled(batch, Snapshot("b1", status, "out")))
    rig.fetched(batch, rig.line("a"))
    assert (gate.tries, gate.until) == ((0, rig.now) if opens else (1, rig.now + QUEUE.most))


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing"])
def test_a_batch_that_is_under_way_is_no_sign_of_room(rigs: type[Rig], status: str) -> None:
    rig = rigs()
    batch = rig.to(Step.POLL, "a").batch
    gate = rig.engine.admission.queue_full("m", rig.now, 0.0, alone=True)
    rig.report(Polled(batch, Snapshot("b1", status)))
    assert (gate.tries, gate.until) == (1, rig.now + QUEUE.first)
