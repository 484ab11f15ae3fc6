"""What a batch does when all goes well at the wire: its steps, its answers, its end."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.lifecycle import MOVES, TERMINAL_STATUSES, Step
from autobatcher.core.messages import (
    Create,
    Created,
    Fetch,
    Fetched,
    LinesRead,
    Poll,
    Polled,
    Upload,
    Uploaded,
)
from autobatcher.core.outcomes import BatchProblem, CallFailed, LineFailed, Trouble, Unanswered
from autobatcher.core.retry import LINES, MAX_LOSSES, QUEUE, REREADS
from autobatcher.core.window import Limits, Request
from autobatcher.events import BatchProgressed, BatchSettled, BatchSubmitted, LinesIgnored, RequestsResent

if TYPE_CHECKING:
    from tests.core.conftest import Rig

ENDPOINT = "/v1/chat/completions"
DONE = Snapshot("b1", "completed", "out")


def step_of(batch: Batch) -> Step:
    return batch.step  # a call, as type checkers take an attribute to stay what it was


# --- the straight line -----------------------------------------------------------------------------------------


def test_a_batch_goes_through_its_steps_to_answers(rig: Rig) -> None:
    rig.ask("a", "b")
    assert rig.engine.next_wakeup() == 1.0
    assert rig.wake(0.99) == []
    batch = rig.next(Upload).batch
    assert rig.now == 1.0
    assert list(batch.entries) == ["a", "b"]
    assert rig.engine.next_wakeup() is None

    rig.now = 2.0
    rig.report(Uploaded(batch, "file-in"))
    create = rig.next(Create)
    assert (create.batch, create.file_id, rig.now) == (batch, "file-in", 2.0)

    rig.now = 3.0
    rig.report(Created(batch, Snapshot("b1", "validating")))
    assert rig.events == [BatchSubmitted("b1", ENDPOINT, "m", 2, 20)]
    poll = rig.next(Poll)
    assert (poll.batch, poll.batch_id, rig.now) == (batch, "b1", 8.0)
    assert rig.engine.next_wakeup() is None

    rig.now = 8.5
    rig.report(Polled(batch, Snapshot("b1", "in_progress", completed=1, total=2)))
    assert rig.next(Poll).batch is batch
    assert rig.now == 13.5

    rig.report(Polled(batch, Snapshot("b1", "in_progress", completed=1, total=2)))
    assert rig.next(Poll).batch is batch
    assert rig.now == 18.5

    rig.report(Polled(batch, Snapshot("b1", "completed", "out", "err", completed=1, failed=1, total=2)))
    fetch = rig.next(Fetch)
    assert (fetch.files, rig.now) == ((("out", 0), ("err", 0)), 18.5)

    rig.read(batch, rig.line("b"))
    assert rig.settled == {"b": rig.answer("b")}
    rig.read(batch, rig.line("a", 422), file_id="err")
    assert rig.settled == {"b": rig.answer("b"), "a": rig.answer("a", 422)}

    rig.now = 20.0
    rig.report(Fetched(batch))
    assert rig.events[1:] == [
        BatchProgressed("b1", ENDPOINT, "m", "in_progress", completed=1, failed=0, total=2),
        BatchProgressed("b1", ENDPOINT, "m", "completed", completed=1, failed=1, total=2),
        BatchSettled("b1", ENDPOINT, "m", "completed", answered=1, failed=1, resent=0, duration=19.0),
    ]
    assert batch.step is Step.SETTLED
    assert (rig.engine.batches, rig.engine.windows, rig.engine.next_wakeup()) == ({}, {}, None)
    assert rig.wake(100_000) == []


def test_one_batch_does_not_hold_up_another(rigs: type[Rig]) -> None:
    rig = rigs(limits=Limits(requests=1))
    rig.ask("slow")
    slow = rig.next(Upload).batch
    quick = rig.to(Step.FETCH, "quick").batch
    other = rig.to(Step.CREATE, "other", model="n")
    rig.read(quick, rig.line("quick"))
    rig.report(Fetched(quick))
    assert (slow.step, other.batch.step) == (Step.UPLOAD, Step.CREATE)
    rig.fail(other, Trouble.REFUSED)
    assert rig.settled == {"quick": rig.answer("quick"), "other": CallFailed("cause")}
    assert list(rig.engine.batches.values()) == [slow]
    rig.report(Uploaded(slow, "file"))
    assert rig.next(Create).batch is slow


def test_polls_come_further_apart_as_the_batch_ages(rig: Rig) -> None:
    call = rig.to(Step.POLL, "a")
    created = call.batch.created_at
    times = [rig.now]
    while rig.now - created < 86_400:
        rig.report(Polled(call.batch, Snapshot("b1", "in_progress")))
        rig.next(Poll)
        times.append(rig.now)
    intervals = [later - earlier for earlier, later in pairwise(times)]
    assert intervals[0] == 5
    assert intervals[-1] == pytest.approx(600)
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(intervals))
    assert len(times) <= 400


@pytest.mark.parametrize(
    "status", ["validating", "in_progress", "finalizing", "cancelling", "never heard of", "COMPLETED"]
)
def test_a_status_that_may_still_change_means_poll_on(rig: Rig, status: str) -> None:
    call = rig.to(Step.POLL, "a")
    rig.report(Polled(call.batch, Snapshot("b1", status)))
    assert rig.settled == {}
    before = rig.now
    rig.next(Poll)
    assert rig.now == before + 5


@pytest.mark.parametrize("status", sorted(TERMINAL_STATUSES))
@pytest.mark.parametrize(
    ("output", "error", "files"),
    [
        pytest.param("out", None, ("out",), id="output"),
        pytest.param(None, "err", ("err",), id="errors"),
        pytest.param("out", "err", ("out", "err"), id="both"),
        pytest.param("out", "", ("out",), id="empty id"),
    ],
)
def test_at_any_end_the_files_that_there_are_are_read(
    rig: Rig, status: str, output: str | None, error: str | None, files: tuple[str, ...]
) -> None:
    batch = rig.to(Step.POLL, "a").batch
    rig.report(Polled(batch, Snapshot("b1", status, output, error)))
    assert rig.next(Fetch).files == tuple((file, 0) for file in files)
    rig.read(batch, rig.line("a"))
    rig.report(Fetched(batch))
    assert rig.settled == {"a": rig.answer("a")}
    assert rig.said(BatchSettled)[0].status == status
    assert rig.engine.batches == {}


# --- files before the end --------------------------------------------------------------------------------------


def test_results_that_are_shown_early_are_read_at_each_poll_from_the_line_on_that_is_next(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a", "b", "c").batch
    early = Snapshot("b1", "in_progress", "out")
    rig.report(Polled(batch, early))
    assert rig.next(Fetch).files == (("out", 0),)
    rig.read(batch, rig.line("a"), resumes=True)
    rig.report(Fetched(batch))
    assert rig.settled == {"a": rig.answer("a")}
    rig.polled(batch, early)
    assert rig.next(Fetch).files == (("out", 1),)
    rig.read(batch, rig.line("b"), resumes=True)
    rig.report(Fetched(batch))
    rig.polled(batch, Snapshot("b1", "completed", "final", "err"))
    # the last reading is from the start, and of other files if the server names others
    assert rig.next(Fetch).files == (("final", 0), ("err", 0))
    rig.read(batch, rig.line("a"), rig.line("b"), rig.line("c"), file_id="final", resumes=True)
    rig.report(Fetched(batch))
    assert rig.settled == {name: rig.answer(name) for name in "abc"}
    (settled,) = rig.said(BatchSettled)
    assert (settled.answered, settled.failed, settled.resent) == (3, 0, 0)


def test_the_last_reading_begins_at_the_first_line_of_the_same_file(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a", "b").batch
    rig.report(Polled(batch, Snapshot("b1", "in_progress", "out")))
    rig.fetched(batch, rig.line("a"), resumes=True)
    rig.polled(batch, DONE)
    assert rig.next(Fetch).files == (("out", 0),)


def test_where_a_file_cannot_be_read_from_a_line_on_it_is_read_at_the_end(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a", "b").batch
    rig.report(Polled(batch, Snapshot("b1", "in_progress", "out")))
    rig.fetched(batch, rig.line("a"), resumes=False)
    for _ in range(3):
        rig.polled(batch, Snapshot("b1", "in_progress", "out"))
    rig.polled(batch, DONE)
    assert rig.next(Fetch).files == (("out", 0),)


def test_an_early_file_without_lines_is_looked_at_again(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a").batch
    for _ in range(3):
        rig.report(Polled(batch, Snapshot("b1", "in_progress", "out")))
        assert rig.next(Fetch).files == (("out", 0),)
        rig.report(Fetched(batch))
        rig.next(Poll)


def test_a_batch_whose_lines_were_all_read_early_is_not_waited_for(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a").batch
    rig.report(Polled(batch, Snapshot("b1", "in_progress", "out")))
    rig.fetched(batch, rig.line("a"), resumes=True)
    assert batch.step is Step.SETTLED
    assert rig.wake(100_000) == []


@pytest.mark.parametrize("resumes", [True, False])
def test_a_file_that_broke_off_is_read_on_where_that_can_be_done(rig: Rig, *, resumes: bool) -> None:
    call = rig.to(Step.FETCH, "a", "b", "c")
    batch = call.batch
    rig.read(batch, rig.line("a"), rig.line("b"), resumes=resumes)
    rig.fail(call, Trouble.PASSING)
    rig.polled(batch, Snapshot("b1", "completed", "out", "err"))
    assert rig.next(Fetch).files == (("out", 2 if resumes else 0), ("err", 0))
    rig.read(batch, rig.line("c"))
    rig.report(Fetched(batch))
    assert rig.settled == {name: rig.answer(name) for name in "abc"}


def test_a_server_that_refuses_the_place_in_a_file_is_asked_for_all_of_it(rig: Rig) -> None:
    call = rig.to(Step.FETCH, "a", "b")
    rig.read(call.batch, rig.line("a"), resumes=True)
    rig.fail(call, Trouble.REFUSED)
    rig.polled(call.batch, DONE)
    assert rig.next(Fetch).files == (("out", 0),)


# --- lines -----------------------------------------------------------------------------------------------------


def test_a_failed_line_names_the_batch(rig: Rig) -> None:
    batch = rig.to(Step.FETCH, "a", "b").batch
    rig.read(batch, rig.failed_line("a"), rig.failed_line("b", None))
    assert rig.settled == {"a": LineFailed("c", "no", "b1"), "b": LineFailed(None, "no", "b1")}
    rig.report(Fetched(batch))
    (settled,) = rig.said(BatchSettled)
    assert (settled.answered, settled.failed) == (0, 2)


@pytest.mark.parametrize(
    ("odd", "ignored"),
    [
        pytest.param([b'{"custom_id":"a","response":{"status_code":500,"body":{}}}'], [], id="doubled"),
        pytest.param(
            [b'{"custom_id":"nobody","response":{"status_code":200,"body":{}}}'],
            [LinesIgnored("b1", 1, "with an unknown custom_id")],
            id="unknown",
        ),
        pytest.param(
            [b"{", b"", b'{"custom_id":"b"}', b"\xff", b"[" * 100_000],
            [LinesIgnored("b1", 5, "malformed")],
            id="malformed",
        ),
        pytest.param(
            [b'{"custom_id":"b","response":{"status_code":0,"body":{}},"error":null}'],
            [LinesIgnored("b1", 1, "malformed")],
            id="status 0",
        ),
    ],
)
def test_odd_lines_affect_nobody(rig: Rig, odd: list[bytes], ignored: list[LinesIgnored]) -> None:
    batch = rig.to(Step.FETCH, "a", "b", "c").batch
    rig.read(batch, rig.line("a"), *odd, rig.line("b"))
    assert rig.settled == {"a": rig.answer("a"), "b": rig.answer("b")}
    assert rig.said(LinesIgnored) == ignored
    rig.read(batch, *odd)
    assert rig.settled.keys() == {"a", "b"}
    assert list(batch.requests) == [rig.requests["c"]]


def test_a_line_of_another_batch_affects_neither(rig: Rig) -> None:
    other = rig.to(Step.POLL, "b", model="n").batch
    batch = rig.to(Step.FETCH, "a").batch
    rig.read(batch, rig.line("b"))
    assert rig.settled == {}
    assert list(other.requests) == [rig.requests["b"]]
    assert rig.said(LinesIgnored) == [LinesIgnored("b1", 1, "with an unknown custom_id")]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 599])
def test_an_answer_that_may_pass_sends_its_request_again_as_often_as_it_allows(rig: Rig, status: int) -> None:
    batch = rig.to(Step.FETCH, "a", "b", retries_left=2).batch
    for resent in (1, 2):
        rig.read(batch, rig.line("b") if resent == 1 else b"", rig.line("a", status))
        assert "a" not in rig.settled
        rig.report(Fetched(batch))
        settled = rig.said(BatchSettled)[-1]
        assert (settled.answered, settled.failed, settled.resent) == (2 - resent, 0, 1)
        assert rig.said(RequestsResent)[-1] == RequestsResent(
            "b1", 1, "their lines hold errors that may pass"
        )
        before = rig.now
        batch = rig.to(Step.FETCH).batch  # of what is sent again
        assert list(batch.requests) == [rig.requests["a"]]
        assert batch.closed_at - before == LINES.delay(resent, 0.0) == 2 * resent
    rig.read(batch, rig.line("a", status))
    assert rig.settled == {"b": rig.answer("b"), "a": rig.answer("a", status)}
    rig.report(Fetched(batch))
    assert rig.engine.next_wakeup() is None


@pytest.mark.parametrize("status", [200, 201, 299, 301, 400, 401, 403, 404, 422, 499])
def test_any_other_answer_is_the_callers_at_once(rig: Rig, status: int) -> None:
    batch = rig.to(Step.FETCH, "a", retries_left=2).batch
    rig.read(batch, rig.line("a", status))
    assert rig.settled == {"a": rig.answer("a", status)}
    rig.report(Fetched(batch))
    (settled,) = rig.said(BatchSettled)
    assert (settled.answered, settled.failed) == ((1, 0) if status < 300 else (0, 1))


def test_requests_that_go_again_gather_apart_from_new_ones(rig: Rig) -> None:
    batch = rig.to(Step.FETCH, "a", "b", retries_left=5).batch
    rig.read(batch, rig.line("a", 500), rig.line("b", 429))
    rig.report(Fetched(batch))
    rig.ask("new")
    first, second = rig.next(Upload).batch, rig.next(Upload).batch
    assert [list(first.entries), list(second.entries)] == [["new"], ["a", "b"]]


def test_a_full_window_of_requests_that_go_again_waits_its_time_too(rigs: type[Rig]) -> None:
    rig = rigs(limits=Limits(requests=2))
    batch = rig.to(Step.FETCH, "a", "b", retries_left=5).batch
    rig.read(batch, rig.line("a", 500), rig.line("b", 500))
    rig.report(Fetched(batch))
    assert rig.engine.windows == {}
    before = rig.now
    assert list(rig.next(Upload).batch.entries) == ["a", "b"]
    assert rig.now == before + 2


def test_spread_shortens_the_wait_by_up_to_half(rigs: type[Rig]) -> None:
    rig = rigs(spread=1.0)
    batch = rig.to(Step.FETCH, "a", retries_left=5).batch
    rig.read(batch, rig.line("a", 500))
    rig.report(Fetched(batch))
    before = rig.now
    rig.next(Upload)
    assert rig.now == before + 1


# --- what an end leaves unanswered -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["completed", "expired"])
@pytest.mark.parametrize("output", [None, "out"])
def test_what_has_no_line_is_looked_for_again_and_then_sent_again(
    rig: Rig, status: str, output: str | None
) -> None:
    batch = rig.to(Step.POLL, "a", "b").batch
    last = Snapshot("b1", status, output)
    times = [rig.now]
    for look in range(REREADS + 1):
        if look:
            rig.next(Poll)
            times.append(rig.now)
        rig.report(Polled(batch, last))
        if output is not None:
            assert rig.next(Fetch).files == (("out", 0),)
            rig.read(batch, rig.line("b"))
            rig.report(Fetched(batch))
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits == [5, 10, 20, 40, 60, 60]
    assert rig.settled == ({} if output is None else {"b": rig.answer("b")})
    left = 2 if output is None else 1
    reason = f"the batch is {status} and holds no lines for them"
    assert rig.said(RequestsResent) == [RequestsResent("b1", left, reason)]
    (settled,) = rig.said(BatchSettled)
    assert (settled.answered, settled.failed, settled.resent) == (2 - left, 0, left)
    before = rig.now
    assert len(rig.next(Upload).batch.entries) == left
    assert rig.now == before + LINES.delay(1, 0.0)


def test_a_late_file_is_found_while_its_batch_is_looked_at_again(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a", "b").batch
    rig.report(Polled(batch, Snapshot("b1", "completed")))
    rig.polled(batch, Snapshot("b1", "completed", None, "err"))
    rig.fetched(batch, rig.line("b", 400), file_id="err")
    rig.polled(batch, Snapshot("b1", "completed", "out", "err"))
    assert rig.next(Fetch).files == (("out", 0), ("err", 0))
    rig.read(batch, rig.line("a"))
    rig.read(batch, rig.line("b", 400), file_id="err")
    rig.report(Fetched(batch))
    assert rig.settled == {"a": rig.answer("a"), "b": rig.answer("b", 400)}
    assert rig.said(RequestsResent) == []


def test_a_request_is_sent_again_only_so_often_when_its_batches_leave_it_unanswered(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a").batch
    for losses in range(1, MAX_LOSSES + 2):
        rig.report(Polled(batch, DONE))
        rig.fetched(batch)
        rig.refetched(batch, REREADS)
        if losses <= MAX_LOSSES:
            assert rig.settled == {}
            batch = rig.to(Step.POLL).batch
    assert rig.settled == {"a": Unanswered("b1", "completed", ())}
    (last,) = rig.said(BatchSettled)[-1:]
    assert (last.failed, last.resent) == (1, 0)
    assert rig.engine.next_wakeup() is None


def test_a_line_of_an_expired_batch_sends_its_request_again(rig: Rig) -> None:
    batch = rig.to(Step.FETCH, "a", "b").batch
    for _ in range(MAX_LOSSES):
        rig.read(batch, rig.failed_line("a", "batch_expired"), rig.line("b"))
        rig.report(Fetched(batch))
        assert "a" not in rig.settled
        batch = rig.to(Step.FETCH).batch
    rig.read(batch, rig.failed_line("a", "batch_expired", "late"))
    assert rig.settled["a"] == LineFailed("batch_expired", "late", "b1")
    assert rig.requests["a"].sent == MAX_LOSSES


def test_a_batch_that_others_cancelled_answers_what_it_has_and_fails_the_rest(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a", "b").batch
    last = Snapshot("b1", "cancelled", "out", problems=(BatchProblem("c", "m"),))
    rig.report(Polled(batch, last))
    rig.fetched(batch, rig.line("a"))
    rig.refetched(batch, REREADS, rig.line("a"))
    assert rig.settled == {"a": rig.answer("a"), "b": Unanswered("b1", "cancelled", last.problems)}
    assert rig.said(RequestsResent) == []


@pytest.mark.parametrize("first", ["in_progress", "cancelling", "cancelled"])
def test_what_was_cancelled_before_this_run_is_sent_again(rig: Rig, first: str) -> None:
    requests: dict[str, Request | None] = {
        name: Request(name, "/v1/x", "m", b"", 1, key=name.encode()) for name in "ab"
    }
    batch = Batch.restored_from(
        "/v1/x", "m", requests, number=1, file_id="f1", batch_id="b1", size=2, age=0.0, now=rig.now
    )
    rig.apply(rig.engine.restore(batch, rig.now))
    if first != "cancelled":
        rig.polled(batch, Snapshot("b1", first))
    rig.polled(batch, Snapshot("b1", "cancelled", "out"))
    rig.fetched(batch, rig.line("a"), rig.failed_line("b", "batch_cancelled"))
    assert rig.settled["a"] == rig.answer("a")
    if first == "in_progress":
        assert rig.settled["b"] == LineFailed("batch_cancelled", "no", "b1")
    else:
        assert list(rig.next(Upload).batch.entries) == ["b"]


# --- a batch fails as a whole ----------------------------------------------------------------------------------


def failed_for(*problems: BatchProblem, output: str | None = None) -> Snapshot:
    return Snapshot("b1", "failed", output, problems=problems)


def test_only_the_callers_of_named_lines_get_the_error(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a", "b", "c", "d").batch
    problems = (
        BatchProblem("bad", "no good", 2),
        BatchProblem("worse", None, 4),
        BatchProblem("bad", "again", 2),
        BatchProblem("bad", "there is no such line", 5),
        BatchProblem("bad", "nor this", 0),
        BatchProblem("bad", "which?", None),
    )
    rig.report(Polled(batch, failed_for(*problems)))
    assert rig.settled == {
        "b": LineFailed("bad", "no good", "b1"),
        "d": LineFailed("worse", "the server does not take this line", "b1"),
    }
    assert rig.said(RequestsResent) == [RequestsResent("b1", 2, "the batch failed for other lines")]
    before = rig.now
    again = rig.next(Upload).batch
    assert (list(again.entries), rig.now) == (["a", "c"], before)
    assert [rig.requests[name].sent for name in "ac"] == [1, 1]


def test_lines_are_counted_as_in_the_file_though_callers_have_left(rig: Rig) -> None:
    rig.ask("gone before", "a", "left", "b", "c")
    rig.leave("gone before")
    batch = rig.to(Step.POLL).batch
    rig.leave("left")
    rig.report(Polled(batch, failed_for(BatchProblem("bad", "no", 3))))  # of a, left, b, c
    assert rig.settled == {"b": LineFailed("bad", "no", "b1")}
    assert list(rig.next(Upload).batch.entries) == ["a", "c"]


def test_lines_are_counted_as_in_the_last_of_several_uploads(rig: Rig) -> None:
    call = rig.to(Step.UPLOAD, "a", "b", "c")
    rig.leave("a")
    rig.fail(call, Trouble.PASSING)
    batch = rig.to(Step.POLL).batch
    assert batch is call.batch
    rig.report(Polled(batch, failed_for(BatchProblem("bad", "no", 1))))
    assert rig.settled == {"b": LineFailed("bad", "no", "b1")}


def test_answers_of_a_failed_batch_reach_their_callers(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a", "b", "c").batch
    rig.report(Polled(batch, failed_for(BatchProblem("bad", "no", 1), output="out")))
    rig.fetched(batch, rig.line("a"))
    assert rig.settled == {"a": rig.answer("a")}  # and what it named was answered all the same
    assert list(rig.next(Upload).batch.entries) == ["b", "c"]


@pytest.mark.parametrize("code", ["server_error", "Internal_Error"])
def test_a_passing_failure_sends_the_requests_again_and_not_for_ever(rig: Rig, code: str) -> None:
    batch = rig.to(Step.POLL, "a", "b").batch
    failed = failed_for(BatchProblem(code, "sorry"))
    for sent in range(1, MAX_LOSSES + 1):
        rig.report(Polled(batch, failed))
        assert rig.settled == {}
        assert rig.said(RequestsResent)[-1] == RequestsResent("b1", 2, "the batch failed at the server")
        before = rig.now
        batch = rig.to(Step.POLL).batch
        assert batch.closed_at == before + LINES.delay(sent, 0.0)
    rig.report(Polled(batch, failed))
    unanswered = Unanswered("b1", "failed", failed.problems)
    assert rig.settled == {"a": unanswered, "b": unanswered}


@pytest.mark.parametrize(
    "problems",
    [
        pytest.param((), id="none"),
        pytest.param((BatchProblem("model_not_found", "no such model", 1),), id="of all lines"),
        pytest.param((BatchProblem(None, None),), id="nothing said"),
        pytest.param((BatchProblem("bad", "no", 3),), id="no such line"),
    ],
)
def test_any_other_failure_is_told_to_every_caller(rig: Rig, problems: tuple[BatchProblem, ...]) -> None:
    batch = rig.to(Step.POLL, "a", "b").batch
    rig.report(Polled(batch, failed_for(*problems)))
    unanswered = Unanswered("b1", "failed", problems)
    assert rig.settled == {"a": unanswered, "b": unanswered}
    assert rig.said(BatchSettled) == [
        BatchSettled("b1", ENDPOINT, "m", "failed", answered=0, failed=2, resent=0, duration=rig.now - 1)
    ]
    assert rig.engine.next_wakeup() is None


FULL = failed_for(BatchProblem("token_limit_exceeded", "full"))


def test_a_batch_that_alone_is_over_the_queues_limit_is_split_until_its_parts_are_taken(rig: Rig) -> None:
    batch = rig.to(Step.POLL, "a", "b", "c").batch
    rig.report(Polled(batch, FULL))
    assert rig.settled == {}
    assert rig.said(RequestsResent) == [RequestsResent("b1", 3, "the server's queue is full")]
    before = rig.now
    first = rig.next(Upload).batch
    assert (list(first.entries), rig.now - before) == (["a", "b"], QUEUE.first)
    # the other part does not try before this one has been taken in
    rig.report(Uploaded(first, "file"))
    rig.next(Create)
    rig.report(Created(first, Snapshot("b2", "validating")))
    rig.polled(first, Snapshot("b2", "validating"))
    rig.polled(first, Snapshot("b2", "in_progress"))
    second = rig.next(Upload).batch
    assert list(second.entries) == ["c"]
    # which finds the queue full, with the other in it: it waits for that
    rig.report(Uploaded(second, "file-2"))
    create, poll = rig.next_calls() + rig.next_calls()
    assert isinstance(create, Create)
    assert isinstance(poll, Poll)
    rig.report(Created(second, Snapshot("b3", "validating")))
    assert rig.next(Poll).batch is second
    rig.report(Polled(second, FULL))
    rig.report(Polled(first, Snapshot("b2", "completed", "out")))
    assert rig.next(Fetch).batch is first
    rig.read(first, rig.line("a"), rig.line("b"))
    before = rig.now
    rig.report(Fetched(first))
    third = rig.next(Upload).batch
    assert (list(third.entries), rig.now) == (["c"], before)
    assert rig.settled.keys() == {"a", "b"}


def test_a_single_request_waits_ever_longer_for_a_full_queue_and_gives_up_when_patience_ends(
    rigs: type[Rig],
) -> None:
    rig = rigs(patience=20_000)
    batch = rig.to(Step.POLL, "a").batch
    waits = []
    while True:
        rig.report(Polled(batch, FULL))
        if rig.settled:
            break
        before = rig.now
        rig.next(Upload)
        waits.append(rig.now - before)
        batch = next(iter(rig.engine.batches.values()))
        rig.report(Uploaded(batch, "file"))
        rig.next(Create)
        rig.report(Created(batch, Snapshot("b1", "validating")))
        rig.next(Poll)
    assert waits[:8] == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert 20_000 < rig.now < 25_000
    assert rig.settled == {"a": Unanswered("b1", "failed", FULL.problems)}


def test_patience_with_a_full_queue_begins_anew_after_it_took_something(rigs: type[Rig]) -> None:
    rig = rigs(patience=20_000)
    rig.report(Polled(rig.to(Step.POLL, "a").batch, FULL))
    batch = rig.to(Step.POLL).batch
    rig.report(Polled(batch, DONE))
    rig.fetched(batch, rig.line("a"))
    rig.wake(100_000)  # nobody asks for a long time
    rig.report(Polled(rig.to(Step.POLL, "b").batch, FULL))
    assert "b" not in rig.settled
    assert list(rig.next(Upload).batch.entries) == ["b"]


def test_a_full_queue_of_one_model_holds_up_no_other(rig: Rig) -> None:
    rig.report(Polled(rig.to(Step.POLL, "a").batch, FULL))
    before = rig.now
    rig.ask("b", model="n")
    assert list(rig.next(Upload).batch.entries) == ["b"]
    assert rig.now == before + 1


# --- the table of moves ----------------------------------------------------------------------------------------


def test_every_step_is_in_the_table_and_a_move_outside_it_is_a_defect(rig: Rig) -> None:
    assert set(MOVES) == set(Step)
    batch = rig.to(Step.UPLOAD, "a").batch
    with pytest.raises(AssertionError, match=r"does not go from .*UPLOAD to .*POLL"):
        batch.move(Step.POLL)


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("other", Step)
def test_a_batch_moves_as_the_table_says(rig: Rig, step: Step, other: Step) -> None:
    batch = rig.to(Step.UPLOAD, "a").batch
    batch.step = step
    if other in MOVES[step]:
        batch.move(other)
        assert step_of(batch) is other
    else:
        with pytest.raises(AssertionError, match="does not go"):
            batch.move(other)
        assert step_of(batch) is step


def test_a_report_that_does_not_belong_to_the_step_is_a_defect(rig: Rig) -> None:
    call = rig.to(Step.UPLOAD, "a")
    with pytest.raises(AssertionError, match="does not go"):
        rig.report(Created(call.batch, Snapshot("b1", "validating")))


def test_lines_for_a_settled_batch_change_nothing(rig: Rig) -> None:
    batch = rig.to(Step.FETCH, "a").batch
    rig.read(batch, rig.line("a"))
    rig.report(Fetched(batch))
    said = list(rig.events)
    rig.report(LinesRead(batch, "out", [rig.line("a")], 1))
    rig.report(Polled(batch, DONE))
    assert rig.events == said


def test_an_end_that_is_taken_back_is_none(rig: Rig) -> None:
    """A server of several replicas may say so."""
    batch = rig.to(Step.POLL, "a").batch
    rig.report(Polled(batch, Snapshot("b1", "completed")))
    for _ in range(2 * REREADS):
        assert rig.next(Poll).batch is batch
        rig.report(Polled(batch, Snapshot("b1", "in_progress", "out")))
        assert rig.next(Fetch).batch is batch
        rig.report(Fetched(batch))
    assert rig.settled == {}
    assert batch.step is Step.POLL
