"""Callers leave, and clients are closed: what becomes of their requests and batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.lifecycle import TERMINAL_STATUSES, Step
from autobatcher.core.messages import (
    Call,
    Cancel,
    Cancelled,
    Create,
    Created,
    Failed,
    Fetch,
    Fetched,
    LinesRead,
    LookedUp,
    LookUp,
    Poll,
    Polled,
    Report,
    Upload,
    Uploaded,
)
from autobatcher.core.outcomes import BatchProblem, Closed, Failure, LineFailed, Outcome, Trouble
from autobatcher.core.retry import LOOK_UP_SECONDS
from autobatcher.core.window import Limits
from autobatcher.events import BatchNotCancelled, BatchSettled, BatchSubmitted

if TYPE_CHECKING:
    from tests.core.conftest import Rig

RUNNING = Snapshot("b1", "in_progress")
DONE = Snapshot("b1", "completed", "out")
ON_THEIR_WAY = [Step.UPLOAD, Step.CREATE, Step.LOOK_UP, Step.POLL, Step.FETCH]


def ended(rig: Rig) -> bool:
    return (rig.engine.batches, rig.engine.windows, rig.engine.next_wakeup()) == ({}, {}, None)


# --- before anything is sent -----------------------------------------------------------------------------------


def test_who_leaves_a_window_is_not_sent(rig: Rig) -> None:
    rig.ask("a", "b", size=10)
    rig.leave("a")
    batch = rig.next(Upload).batch
    assert list(batch.entries) == ["b"]
    assert (batch.waiting, batch.size) == (1, 10)


def test_a_window_that_everybody_left_makes_no_batch(rig: Rig) -> None:
    rig.ask("a", "b")
    rig.leave("b", "a")
    assert ended(rig)  # at once
    assert rig.wake(1.0) == []
    assert rig.events == []


def test_who_leaves_a_batch_that_waits_its_turn_is_not_sent(rigs: type[Rig]) -> None:
    rig = rigs()
    rig.engine.admission.max_batches = 1
    first = rig.to(Step.POLL, "first").batch
    rig.ask("a", "b")
    assert rig.wake(1.0) == []
    rig.leave("a")
    rig.report(Polled(first, DONE))
    rig.fetched(first, rig.line("first"))
    second = rig.next(Upload).batch
    assert (list(second.entries), second.waiting, second.size, second.gone) == (["b"], 1, 10, 0)


def test_a_batch_that_waits_its_turn_ends_when_everybody_has_left(rigs: type[Rig]) -> None:
    rig = rigs()
    rig.engine.admission.max_batches = 1
    first = rig.to(Step.POLL, "first").batch
    rig.ask("a", "b")
    assert rig.wake(1.0) == []
    rig.leave("a")
    assert len(rig.engine.batches) == 2
    rig.leave("b")
    assert list(rig.engine.batches.values()) == [first]
    (settled,) = rig.said(BatchSettled)
    assert (settled.batch_id, settled.status, settled.answered, settled.failed) == (
        None,
        "not submitted",
        0,
        0,
    )


@pytest.mark.parametrize("late", [False, True])
def test_who_leaves_between_two_uploads_is_not_in_the_second(rig: Rig, *, late: bool) -> None:
    call = rig.to(Step.UPLOAD, "a", "b", "c")
    if late:
        rig.fail(call, Trouble.BUSY)
        rig.leave("b")
    else:
        rig.leave("b")
        rig.fail(call, Trouble.BUSY)
    batch = rig.next(Upload).batch
    assert batch is call.batch
    assert (list(batch.entries), batch.size, batch.waiting, batch.gone) == (["a", "c"], 20, 2, 0)


def test_leaving_twice_or_after_the_answer_does_nothing(rig: Rig) -> None:
    call = rig.to(Step.FETCH, "a", "b")
    rig.read(call.batch, rig.line("a"))
    rig.leave("a", "b", "b", "a")
    assert (call.batch.waiting, call.batch.gone) == (0, 1)
    rig.report(Fetched(call.batch))
    assert rig.settled == {"a": rig.answer("a")}


# --- one of several leaves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ON_THEIR_WAY)
def test_who_leaves_on_the_way_changes_nothing_for_the_others(rig: Rig, step: Step) -> None:
    call = rig.to(step, "a", "b")
    batch = call.batch
    rig.leave("a")
    if step is Step.UPLOAD:
        rig.report(Uploaded(batch, "file-in"))
        rig.next(Create)
    if step in (Step.UPLOAD, Step.CREATE):
        rig.report(Created(batch, RUNNING))
        rig.next(Poll)
    if step is Step.LOOK_UP:
        rig.report(LookedUp(batch, RUNNING))
        rig.next(Poll)
    if step is not Step.FETCH:
        rig.report(Polled(batch, DONE))
        rig.next(Fetch)
    rig.read(batch, rig.line("a"), rig.line("b"))
    rig.report(Fetched(batch))
    assert rig.settled == {"b": rig.answer("b")}
    assert ended(rig)


def test_an_answer_that_nobody_waits_for_is_not_sent_again(rig: Rig) -> None:
    batch = rig.to(Step.FETCH, "a", "b", retries_left=3).batch
    rig.leave("a")
    rig.read(batch, rig.line("a", 500), rig.line("b"))
    rig.report(Fetched(batch))
    assert ended(rig)


# --- all leave -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", sorted(TERMINAL_STATUSES))
def test_a_batch_that_has_ended_is_not_cancelled(rig: Rig, status: str) -> None:
    call = rig.to(Step.POLL, "a")
    rig.leave("a")
    assert rig.wake(10_000) == []  # the poll is under way
    rig.report(Polled(call.batch, Snapshot("b1", status, "out")))
    assert ended(rig)


def test_nothing_is_made_of_an_upload_that_nobody_waits_for_any_more(rig: Rig) -> None:
    call = rig.to(Step.UPLOAD, "a", "b")
    rig.leave("a", "b")
    assert ended(rig)  # at once: a file costs nothing
    rig.report(Uploaded(call.batch, "file-in"))
    assert rig.wake(10_000) == []
    (settled,) = rig.said(BatchSettled)
    assert (settled.batch_id, settled.answered, settled.failed) == (None, 0, 0)


def test_a_file_is_made_of_those_who_wait_when_its_turn_comes(rig: Rig) -> None:
    rig.ask("a", "b", "c", "d")
    (call,) = rig.engine.wake(1.0)
    assert isinstance(call, Upload)
    rig.leave("b")
    lines = call.batch.lines()
    assert [request.custom_id for request in lines] == list(call.batch.entries) == ["a", "c", "d"]
    assert (call.batch.size, call.batch.waiting, call.batch.gone) == (30, 3, 0)
    rig.leave("a")  # has a line, and keeps it
    assert (list(call.batch.entries), call.batch.waiting, call.batch.gone) == (["a", "c", "d"], 2, 1)
    rig.report(Uploaded(call.batch, "file-in"))
    rig.next(Create)
    rig.report(Created(call.batch, RUNNING))
    rig.polled(call.batch, Snapshot("b1", "failed", problems=(BatchProblem("bad", "no", 2),)))
    assert rig.settled == {"c": LineFailed("bad", "no", "b1")}


@pytest.mark.parametrize("trouble", Trouble)
def test_an_upload_is_not_repeated_for_nobody(rig: Rig, trouble: Trouble) -> None:
    call = rig.to(Step.UPLOAD, "a")
    rig.leave("a")
    rig.fail(call, trouble)
    assert ended(rig)


def test_who_leaves_while_the_upload_waits_for_its_next_try_ends_it(rig: Rig) -> None:
    rig.fail(rig.to(Step.UPLOAD, "a"), Trouble.BUSY)
    rig.leave("a")
    assert ended(rig)


def test_a_creation_under_way_is_cancelled_when_it_is_known(rig: Rig) -> None:
    call = rig.to(Step.CREATE, "a")
    rig.leave("a")
    assert rig.wake(10_000) == []
    rig.report(Created(call.batch, RUNNING))
    assert rig.next(Cancel).batch_id == "b1"
    rig.report(Cancelled(call.batch))
    assert ended(rig)
    assert len(rig.said(BatchSubmitted)) == 1


@pytest.mark.parametrize("trouble", [Trouble.BUSY, Trouble.NOT_FOUND, Trouble.REFUSED])
def test_a_creation_that_made_nothing_is_not_repeated_for_nobody(rig: Rig, trouble: Trouble) -> None:
    call = rig.to(Step.CREATE, "a")
    rig.leave("a")
    rig.fail(call, trouble)
    assert ended(rig)


@pytest.mark.parametrize("trouble", [Trouble.PASSING, Trouble.ODD])
def test_what_a_lost_creation_may_have_made_is_looked_for_if_only_to_be_cancelled(
    rig: Rig, trouble: Trouble
) -> None:
    call = rig.to(Step.CREATE, "a")
    rig.leave("a")
    rig.fail(call, trouble)
    rig.report(LookedUp(rig.next(LookUp).batch, None))
    rig.fail(rig.next(LookUp), Trouble.BUSY)
    rig.report(LookedUp(rig.next(LookUp).batch, Snapshot("b7", "validating")))
    assert rig.next(Cancel).batch_id == "b7"


def test_what_is_certainly_not_there_is_not_made_for_nobody(rig: Rig) -> None:
    look = rig.to(Step.LOOK_UP, "a")
    rig.report(LookedUp(look.batch, None))
    rig.leave("a")
    while not ended(rig):
        rig.report(LookedUp(rig.next(LookUp).batch, None))
    assert rig.now < LOOK_UP_SECONDS + 10


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "odd"])
def test_a_batch_is_cancelled_between_two_polls(rig: Rig, status: str) -> None:
    call = rig.to(Step.POLL, "a", "b")
    rig.report(Polled(call.batch, Snapshot("b1", status)))
    rig.leave("a")
    assert rig.wake() == []
    before = rig.now
    rig.leave("b")
    assert rig.next(Cancel).batch_id == "b1"
    assert rig.now == before
    rig.report(Cancelled(call.batch))
    assert ended(rig)


@pytest.mark.parametrize("trouble", Trouble)
def test_a_batch_is_cancelled_after_a_poll_that_was_under_way(rig: Rig, trouble: Trouble) -> None:
    call = rig.to(Step.POLL, "a")
    rig.leave("a")
    assert rig.wake(10_000) == []
    rig.fail(call, trouble)
    assert rig.next(Cancel).batch_id == "b1"


def test_a_batch_is_cancelled_though_patience_with_its_polls_is_over(rigs: type[Rig]) -> None:
    rig = rigs(patience=100.0)
    call = rig.to(Step.POLL, "a")
    rig.fail(call, Trouble.BUSY)
    call = rig.next(Poll)
    rig.leave("a")
    rig.now += 1_000
    rig.fail(call, Trouble.BUSY)
    assert rig.next(Cancel).batch_id == "b1"


def test_a_batch_is_cancelled_after_an_early_reading_that_was_under_way(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a", "b").batch
    rig.report(Polled(batch, Snapshot("b1", "in_progress", "out")))
    rig.next(Fetch)
    rig.leave("b")
    rig.read(batch, rig.line("a"), resumes=True)
    assert rig.wake(10_000) == []
    rig.report(Fetched(batch))
    assert rig.settled == {"a": rig.answer("a")}
    assert rig.next(Cancel).batch_id == "b1"  # for the other line is still to come, and nobody wants it


def test_a_last_reading_is_not_cancelled(rig: Rig) -> None:
    call = rig.to(Step.FETCH, "a")
    rig.leave("a")
    rig.fail(call, Trouble.PASSING)
    assert ended(rig)


# --- closing ---------------------------------------------------------------------------------------------------


def late_reports(call: Call) -> list[Report]:
    batch = call.batch
    return [
        Uploaded(batch, "file"),
        Created(batch, RUNNING),
        LookedUp(batch, RUNNING),
        LookedUp(batch, None),
        Polled(batch, DONE),
        LinesRead(batch, "out", [b'{"custom_id":"a","response":{"status_code":200}}'], 1),
        Fetched(batch),
        Cancelled(batch),
        *(Failed(batch, Failure(trouble, "cause", "reason")) for trouble in Trouble),
    ]


def uncertain(step: Step, *, waits: bool = False) -> str | None:
    """The file of which there may be a batch; `waits`: after a failure, for the next try."""
    return "file-in" if step is Step.LOOK_UP or (step is Step.CREATE and not waits) else None


@pytest.mark.parametrize("step", ON_THEIR_WAY)
def test_close_settles_everybody_once(rig: Rig, step: Step) -> None:
    call = rig.to(step, "a", "b")
    batch_id = "b1" if step in (Step.POLL, Step.FETCH) else None
    closed = Closed(batch_id, file_id=uncertain(step))
    rig.ask("c")
    rig.apply(rig.engine.close(rig.now))
    assert rig.settled == {"a": closed, "b": closed, "c": Closed(None)}
    assert ended(rig)
    assert rig.engine.close(rig.now) == []
    events = list(rig.events)
    for report in late_reports(call):
        rig.report(report)
    rig.leave("a", "b", "c")
    assert rig.wake(100_000) == []
    assert (ended(rig), rig.events) == (True, events)


def test_a_request_that_close_settled_is_in_no_place(rig: Rig) -> None:
    rig.ask("a")
    rig.apply(rig.engine.close(rig.now))
    assert rig.requests["a"].place is None


def test_close_settles_what_waits_its_turn_or_goes_again(rigs: type[Rig]) -> None:
    rig = rigs(limits=Limits(requests=2))
    rig.engine.admission.max_batches = 1
    batch = rig.to(Step.FETCH, "a", "b", retries_left=1).batch
    rig.ask("c", "d", "e")
    rig.read(batch, rig.line("a", 500), rig.line("b", 400))
    assert rig.wake() == []
    rig.apply(rig.engine.close(rig.now))
    assert rig.settled == {"b": rig.answer("b", 400), **dict.fromkeys("acde", Closed(None))}
    assert ended(rig)


@pytest.mark.parametrize("step", [Step.POLL, Step.FETCH])
@pytest.mark.parametrize("under_way", [True, False])
def test_close_leaves_batches_at_the_server_unless_it_is_to_cancel_them(
    rig: Rig, step: Step, *, under_way: bool
) -> None:
    call = rig.to(step, "a")
    if not under_way:
        rig.fail(call, Trouble.BUSY)
    rig.apply(rig.engine.close(rig.now))
    assert ended(rig)


RUNNING_REPORTS: dict[Step, Callable[[Batch], Report]] = {
    Step.CREATE: lambda batch: Created(batch, RUNNING),
    Step.LOOK_UP: lambda batch: LookedUp(batch, RUNNING),
    Step.POLL: lambda batch: Polled(batch, RUNNING),
    Step.FETCH: Fetched,
    Step.CANCEL: Cancelled,
}


def cancelled_at_close(rig: Rig, batch: Batch) -> None:
    assert rig.next(Cancel).batch_id == "b1"
    rig.report(Cancelled(batch))
    assert ended(rig)


@pytest.mark.parametrize("step", RUNNING_REPORTS)
def test_close_can_cancel_what_a_call_is_under_way_for(rig: Rig, step: Step) -> None:
    call = rig.to(step, "a", "b")
    batch = call.batch
    if step is Step.FETCH:  # one that reads early
        batch.snapshot, batch.final = Snapshot("b1", "in_progress", "out"), False
    rig.ask("c")
    batch_id = batch.id
    rig.apply(rig.engine.close(rig.now, cancel=True))
    left: dict[str, Outcome] = {"c": Closed(None)}
    if step is not Step.CANCEL:  # at which they have left
        left |= dict.fromkeys("ab", Closed(batch_id, cancelling=True, file_id=uncertain(step)))
    assert rig.settled == left
    assert rig.wake() == []
    rig.report(RUNNING_REPORTS[step](batch))
    if step is not Step.CANCEL:
        cancelled_at_close(rig, batch)
    assert ended(rig)


@pytest.mark.parametrize("step", RUNNING_REPORTS)
def test_close_can_cancel_what_waits_for_its_next_try(rig: Rig, step: Step) -> None:
    call = rig.to(step, "a", "b")
    batch = call.batch
    rig.fail(call, Trouble.BUSY)
    rig.apply(rig.engine.close(rig.now, cancel=True))
    if step is not Step.CANCEL:
        closed = Closed(batch.id, cancelling=True, file_id=uncertain(step, waits=True))
        assert rig.settled == dict.fromkeys("ab", closed)
    if step is Step.LOOK_UP:
        rig.report(LookedUp(rig.next(LookUp).batch, RUNNING))
    if step in (Step.LOOK_UP, Step.POLL, Step.CANCEL):
        cancelled_at_close(rig, batch)
    assert ended(rig)  # a creation that was refused made nothing; and of a fetch, the batch has ended


@pytest.mark.parametrize("under_way", [True, False])
def test_close_cancels_nothing_of_an_upload(rig: Rig, *, under_way: bool) -> None:
    call = rig.to(Step.UPLOAD, "a")
    if not under_way:
        rig.fail(call, Trouble.BUSY)
    rig.apply(rig.engine.close(rig.now, cancel=True))
    assert rig.settled == {"a": Closed(None)}
    assert ended(rig)


def test_what_could_not_be_cancelled_is_given_up(rig: Rig) -> None:
    rig.to(Step.POLL, "a")
    rig.apply(rig.engine.close(rig.now, cancel=True))
    assert rig.engine.batches != {}
    rig.apply(rig.engine.give_up_all(rig.now + 30))
    assert ended(rig)
    assert rig.settled == {"a": Closed("b1", cancelling=True)}
    assert rig.said(BatchNotCancelled) == [BatchNotCancelled("b1")]


@pytest.mark.parametrize("under_way", [True, False])
def test_close_goes_on_with_a_cancellation_that_callers_left_for(rig: Rig, *, under_way: bool) -> None:
    call = rig.to(Step.CANCEL, "a")
    if not under_way:
        rig.fail(call, Trouble.BUSY)
    rig.apply(rig.engine.close(rig.now))
    if not under_way:
        call = rig.next(Cancel)
    rig.report(Cancelled(call.batch))
    assert ended(rig)


def test_a_batch_whose_callers_have_left_reads_nothing_for_them_at_close(rig: Rig) -> None:
    call = rig.to(Step.FETCH, "a", "b")
    rig.apply(rig.engine.close(rig.now, cancel=True))
    rig.read(call.batch, rig.line("a"), rig.line("b", 500))
    rig.report(Fetched(call.batch))
    assert rig.settled == dict.fromkeys("ab", Closed("b1", cancelling=True))
    assert ended(rig)
