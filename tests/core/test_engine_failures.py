"""A call fails: what the batch does next, when, and who is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from autobatcher.core.batch import Batch, Snapshot, Stumbles
from autobatcher.core.lifecycle import Step
from autobatcher.core.messages import (
    Cancel,
    Cancelled,
    Create,
    Created,
    Fetch,
    Fetched,
    LookedUp,
    LookUp,
    Poll,
    Polled,
    Upload,
    Uploaded,
)
from autobatcher.core.outcomes import CallFailed, Outcome, Trouble
from autobatcher.core.retry import (
    CALLS,
    FILE_LOOKS,
    LOOK_UP_INTERVAL,
    LOOK_UP_SECONDS,
    LOST_SECONDS,
    LOST_TIMES,
    MAX_RETRY_AFTER,
    MAX_SPENT,
    ODD_ANSWERS,
)
from autobatcher.events import BatchNotCancelled, BatchSettled, BatchSubmitted, CallRetried

if TYPE_CHECKING:
    from tests.core.conftest import Rig

PASSING, BUSY, REFUSED, NOT_FOUND, ODD = (
    Trouble.PASSING,
    Trouble.BUSY,
    Trouble.REFUSED,
    Trouble.NOT_FOUND,
    Trouble.ODD,
)
U, C, L, P, F, K, END = (
    Step.UPLOAD,
    Step.CREATE,
    Step.LOOK_UP,
    Step.POLL,
    Step.FETCH,
    Step.CANCEL,
    Step.SETTLED,
)

AFTER_THE_FIRST_FAILURE: dict[Step, dict[Trouble, tuple[Step, float | str]]] = {
    # the step that follows; then the seconds until its call, or the cause that everybody is told
    U: {BUSY: (U, 1), PASSING: (U, 1), ODD: (U, 1), REFUSED: (END, "cause"), NOT_FOUND: (END, "cause")},
    C: {BUSY: (C, 1), PASSING: (L, 0), ODD: (L, 0), REFUSED: (END, "cause"), NOT_FOUND: (C, 1)},
    L: {BUSY: (L, 1), PASSING: (L, 1), ODD: (L, 1), REFUSED: (L, 1), NOT_FOUND: (L, 1)},
    P: {BUSY: (P, 5), PASSING: (P, 5), ODD: (P, 5), REFUSED: (P, 5), NOT_FOUND: (P, 5)},
    F: {BUSY: (P, 5), PASSING: (P, 5), ODD: (P, 5), REFUSED: (P, 5), NOT_FOUND: (P, 5)},
    K: {BUSY: (K, 1), PASSING: (K, 1), ODD: (K, 1), REFUSED: (K, 1), NOT_FOUND: (K, 1)},
}
CASES = [
    pytest.param(step, trouble, id=f"{step.value}, {trouble.value}")
    for step in AFTER_THE_FIRST_FAILURE
    for trouble in Trouble
]
CALL_OF: dict[Step, type] = {U: Upload, C: Create, L: LookUp, P: Poll, F: Fetch, K: Cancel}


@pytest.mark.parametrize(("step", "trouble"), CASES)
def test_after_the_first_failure(rig: Rig, step: Step, trouble: Trouble) -> None:
    call = rig.to(step, "a", "b")
    batch = call.batch
    events = len(rig.events)
    rig.fail(call, trouble)
    then, told = AFTER_THE_FIRST_FAILURE[step][trouble]
    assert batch.step is then
    if isinstance(told, str):
        everybody: dict[str, Outcome] = {} if step is K else dict.fromkeys("ab", CallFailed(told))
        assert rig.settled == everybody
        (event,) = rig.events[events:]
        assert isinstance(event, BatchSettled)
        assert (event.batch_id, event.failed) == ("b1" if step is K else None, len(everybody))
        assert rig.engine.next_wakeup() is None
        return
    assert rig.settled == {}
    assert rig.events[events:] == [CallRetried(batch.id, step.value, trouble.value, told)]
    before = rig.now
    (again,) = rig.next_calls()
    assert isinstance(again, CALL_OF[then])
    assert (again.batch, rig.now - before) == (batch, told)


# --- how long to wait ------------------------------------------------------------------------------------------

PATIENT = [pytest.param(U, BUSY), pytest.param(U, PASSING), pytest.param(C, BUSY), pytest.param(L, PASSING)]


def waits_of(
    rig: Rig, step: Step, trouble: Trouble, times: int, retry_after: float | None = None
) -> list[float]:
    """The waits after so many failures in a row, from the first on."""
    call = rig.to(step, "a")
    waits = []
    for _ in range(times):
        before = rig.now
        rig.fail(call, trouble, retry_after)
        call = rig.next(type(call))
        waits.append(rig.now - before)
    return waits


@pytest.mark.parametrize(("step", "trouble"), PATIENT)
def test_waits_double_up_to_five_minutes(rig: Rig, step: Step, trouble: Trouble) -> None:
    waits = [1.0, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert waits_of(rig, step, trouble, 12) == waits


def test_spread_takes_up_to_half_off_a_wait(rigs: type[Rig]) -> None:
    assert waits_of(rigs(spread=1.0), U, BUSY, 4) == [0.5, 1, 2, 4]
    assert waits_of(rigs(spread=0.5), U, BUSY, 4) == [0.75, 1.5, 3, 6]


def test_success_ends_the_row(rig: Rig) -> None:
    call = rig.to(P, "a")
    for _ in range(6):
        rig.fail(call, BUSY)
        call = rig.next(Poll)
    rig.report(Polled(call.batch, Snapshot("b1", "in_progress")))
    before = rig.now
    rig.fail(rig.next(Poll), BUSY)
    rig.next(Poll)
    assert rig.now - before <= 10 + 5


@pytest.mark.parametrize(("step", "trouble"), PATIENT)
@pytest.mark.parametrize(
    ("asked", "waited"), [(0.0, None), (0.5, None), (30.0, 30.0), (3599.0, 3599.0), (1e9, MAX_RETRY_AFTER)]
)
def test_a_server_is_left_alone_as_long_as_it_asks_but_no_longer_than_an_hour(
    rig: Rig, step: Step, trouble: Trouble, asked: float, waited: float | None
) -> None:
    assert waits_of(rig, step, trouble, 1, asked) == [1 if waited is None else waited]


@pytest.mark.parametrize("trouble", Trouble)
@pytest.mark.parametrize("asked", [None, 3.0, 30.0, 1e9])
@pytest.mark.parametrize("step", [P, F])
def test_a_young_batch_is_polled_at_least_once_a_minute_whatever_the_server_asks(
    rig: Rig, step: Step, trouble: Trouble, asked: float | None
) -> None:
    call = rig.to(step, "a")
    for _ in range(12 if trouble not in (REFUSED, NOT_FOUND) else 4):
        before = rig.now
        rig.fail(call, trouble, asked)
        call = rig.next(Poll)
        assert 5 <= rig.now - before <= 60
        if asked is not None and 5 < asked < 60:
            assert rig.now - before >= asked
    assert rig.settled == {}


def test_an_old_batch_that_cannot_be_asked_is_asked_at_its_own_pace(rig: Rig) -> None:
    call = rig.to(P, "a")
    batch = call.batch
    rig.now = batch.created_at + 40_000
    rig.fail(call, BUSY)
    before = rig.now
    call = rig.next(Poll)
    assert rig.now - before == 600  # not sooner than after an answer
    rig.fail(call, BUSY, 1e9)
    before = rig.now
    rig.next(Poll)
    assert rig.now - before == pytest.approx(0.02 * (before - batch.created_at), rel=0.01)


# --- when to give up -------------------------------------------------------------------------------------------


def fail_until_settled(rig: Rig, step: Step, trouble: Trouble, limit: int = 5_000) -> int:
    """How many failures of this kind it takes; a creation that is in doubt is looked up and not found."""
    call = rig.to(step, "a", "b")
    for count in range(1, limit):
        rig.fail(call, trouble, cause=f"cause {count}")
        if rig.settled or (step is K and not rig.engine.batches):
            return count
        call = rig.next_calls()[0]
        while isinstance(call, LookUp) and step is C:
            rig.report(LookedUp(call.batch, None))
            if rig.settled:
                return count
            call = rig.next_calls()[0]
    raise AssertionError("it goes on for ever")


@pytest.mark.parametrize(
    ("step", "trouble"),
    [(U, BUSY), (U, PASSING), (C, BUSY), (L, BUSY), (L, PASSING), (P, BUSY), (P, PASSING), (P, ODD)],
)
@pytest.mark.parametrize("patience", [100.0, 86_400.0])
def test_a_call_is_repeated_for_as_long_as_patience_lasts(
    rigs: type[Rig], step: Step, trouble: Trouble, patience: float
) -> None:
    rig = rigs(patience=patience)
    count = fail_until_settled(rig, step, trouble)
    assert count > 3
    cause = "doubt" if step is L else f"cause {count}"
    assert rig.settled == dict.fromkeys("ab", CallFailed(cause))
    (settled,) = rig.said(BatchSettled)
    assert patience < settled.duration <= patience + 1_100
    assert rig.engine.next_wakeup() is None


@pytest.mark.parametrize(("step", "trouble"), [(U, REFUSED), (U, NOT_FOUND), (C, REFUSED)])
def test_a_clear_no_before_there_is_a_batch_is_final(rig: Rig, step: Step, trouble: Trouble) -> None:
    assert fail_until_settled(rig, step, trouble) == 1


@pytest.mark.parametrize("trouble", [REFUSED, NOT_FOUND])
def test_a_look_up_is_given_up_when_it_is_refused_for_long(rig: Rig, trouble: Trouble) -> None:
    """What everybody is told is why the look-up was needed."""
    assert fail_until_settled(rig, L, trouble, limit=100) >= LOST_TIMES
    assert set(rig.settled.values()) == {CallFailed("doubt")}
    (settled,) = rig.said(BatchSettled)
    assert LOST_SECONDS <= settled.duration <= 2 * LOST_SECONDS


def test_a_clear_no_that_is_said_after_others_is_final_too(rig: Rig) -> None:
    call: Upload | Create = rig.to(U, "a")  # type: ignore[assignment] # as the step says
    rig.fail(call, PASSING)
    rig.fail(rig.next(Upload), REFUSED, cause="no")
    assert rig.settled == {"a": CallFailed("no")}


def test_an_upload_that_is_answered_oddly_is_repeated_a_few_times(rig: Rig) -> None:
    assert fail_until_settled(rig, U, ODD) == ODD_ANSWERS
    assert rig.settled == dict.fromkeys("ab", CallFailed(f"cause {ODD_ANSWERS}"))


def test_a_look_up_that_is_answered_oddly_is_repeated_a_few_times(rig: Rig) -> None:
    assert fail_until_settled(rig, L, ODD) == ODD_ANSWERS
    assert rig.settled == dict.fromkeys("ab", CallFailed("doubt"))


def test_odd_answers_count_only_in_a_row(rig: Rig) -> None:
    call = rig.to(U, "a")
    for trouble in [ODD] * (ODD_ANSWERS - 1) + [BUSY] + [ODD] * (ODD_ANSWERS - 1):
        rig.fail(call, trouble)
        call = rig.next(Upload)
    rig.fail(call, ODD)
    assert rig.settled.keys() == {"a"}


def test_a_file_that_is_not_there_yet_is_asked_for_again_for_half_a_minute(rig: Rig) -> None:
    call = rig.to(C, "a", "b")
    before = rig.now
    for _ in range(FILE_LOOKS - 1):
        rig.fail(call, NOT_FOUND)
        call = rig.next(Create)
    assert rig.now - before == 1 + 2 + 4 + 8 + 16
    rig.fail(call, NOT_FOUND, cause="no such file")
    assert rig.settled == dict.fromkeys("ab", CallFailed("no such file"))


def test_a_file_that_comes_late_makes_a_batch(rig: Rig) -> None:
    call = rig.to(C, "a")
    for _ in range(FILE_LOOKS - 1):
        rig.fail(call, NOT_FOUND)
        call = rig.next(Create)
    rig.report(Created(call.batch, Snapshot("b1", "validating")))
    assert rig.next(Poll).batch_id == "b1"


@pytest.mark.parametrize("trouble", [REFUSED, NOT_FOUND])
def test_a_batch_that_is_paid_for_is_not_given_up_on_one_word(rig: Rig, trouble: Trouble) -> None:
    call = rig.to(P, "a", "b")
    before = rig.now
    count = 0
    while not rig.settled:
        count += 1
        rig.fail(call, trouble, cause=f"cause {count}")
        if not rig.settled:
            call = rig.next(Poll)
    assert count >= LOST_TIMES
    assert LOST_SECONDS <= rig.now - before <= LOST_SECONDS + 60
    assert rig.settled == dict.fromkeys("ab", CallFailed(f"cause {count}"))


@pytest.mark.parametrize("trouble", [REFUSED, NOT_FOUND])
def test_a_word_that_is_said_after_long_silences_has_to_be_repeated(rig: Rig, trouble: Trouble) -> None:
    call = rig.to(P, "a")
    for _ in range(LOST_TIMES - 1):
        rig.fail(call, trouble)
        assert rig.settled == {}
        rig.now += 5 * LOST_SECONDS
        call = rig.next(Poll)
    rig.fail(call, trouble)
    assert rig.settled == {"a": CallFailed("cause")}


def test_a_word_that_is_not_said_on_end_is_not_believed(rig: Rig) -> None:
    call = rig.to(P, "a")
    for count in range(200):
        rig.fail(call, BUSY if count % LOST_TIMES == 0 else NOT_FOUND)
        assert rig.settled == {}
        call = rig.next(Poll)


@pytest.mark.parametrize("trouble", [REFUSED, NOT_FOUND, PASSING, BUSY, ODD])
def test_a_file_that_can_never_be_read_does_not_hold_its_callers_for_ever(
    rigs: type[Rig], trouble: Trouble
) -> None:
    """The polls in between succeed, and must not make every failure of the file the first."""
    rig = rigs(patience=7_200.0)
    batch = rig.to(P, "a", "b").batch
    for _ in range(5_000):
        rig.report(Polled(batch, Snapshot("b1", "completed", "out")))
        rig.fail(rig.next(Fetch), trouble)
        if rig.settled:
            break
        rig.next(Poll)
    assert rig.settled == dict.fromkeys("ab", CallFailed("cause"))
    waited = rig.said(BatchSettled)[0].duration
    least = LOST_SECONDS if trouble in (REFUSED, NOT_FOUND) else 7_200.0
    assert least <= waited <= least + 1_000


@pytest.mark.parametrize("trouble", Trouble)
def test_a_file_that_cannot_be_read_before_the_end_costs_nobody_the_answer(
    rigs: type[Rig], trouble: Trouble
) -> None:
    rig = rigs(patience=600.0)
    batch = rig.to(P, "a", "b").batch
    fetches = 0
    while rig.now < 20_000:
        rig.report(Polled(batch, Snapshot("b1", "in_progress", "out")))
        (call,) = rig.next_calls()
        if isinstance(call, Fetch):
            fetches += 1
            rig.fail(call, trouble)
            rig.next(Poll)
    if trouble in (REFUSED, NOT_FOUND):  # and it is not asked for all the time
        assert fetches == FILE_LOOKS
    assert rig.settled == {}
    rig.report(Polled(batch, Snapshot("b1", "completed", "out")))
    rig.fetched(batch, rig.line("a"), rig.line("b"))
    assert rig.settled == {name: rig.answer(name) for name in "ab"}


def test_a_file_that_breaks_off_again_and_again_is_read_to_its_end(rigs: type[Rig]) -> None:
    """What comes of it is progress, however often it breaks off."""
    rig = rigs(patience=600.0)
    names = [f"r{number}" for number in range(300)]
    call = rig.to(F, *names)
    for name in names:
        assert isinstance(call, Fetch)
        rig.read(call.batch, rig.line(name), resumes=True)
        if name == names[-1]:
            break
        rig.fail(call, PASSING)
        rig.polled(call.batch, Snapshot("b1", "completed", "out"))
        call = rig.next(Fetch)
        assert call.files == (("out", len(rig.settled)),)
    rig.report(Fetched(call.batch))
    assert rig.settled.keys() == set(names)
    assert all(outcome == rig.answer(name) for name, outcome in rig.settled.items())


@pytest.mark.parametrize("trouble", [BUSY, PASSING, ODD, REFUSED, NOT_FOUND])
def test_a_cancellation_is_tried_as_patiently_as_other_calls(rigs: type[Rig], trouble: Trouble) -> None:
    rig = rigs(patience=7_200.0)
    before = rig.now
    fail_until_settled(rig, K, trouble)
    least = LOST_SECONDS if trouble in (REFUSED, NOT_FOUND) else 7_200.0
    assert least <= rig.now - before <= 1.3 * least
    assert rig.settled == {}
    assert rig.said(BatchNotCancelled) == [BatchNotCancelled("b1")]
    assert rig.ended == []


def test_a_cancellation_that_comes_through_ends_the_batch(rig: Rig) -> None:
    call = rig.to(K, "a")
    rig.fail(call, BUSY)
    rig.report(Cancelled(rig.next(Cancel).batch, "cancelling"))
    assert rig.engine.batches == {}
    assert [event.status for event in rig.said(BatchSettled)] == ["cancelling"]


# --- the clock jumps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "trouble"), [*PATIENT, pytest.param(P, BUSY), pytest.param(P, PASSING)])
def test_a_machine_that_slept_has_lost_no_patience_over_it(rig: Rig, step: Step, trouble: Trouble) -> None:
    call = rig.to(step, "a")
    for _ in range(10):
        rig.fail(call, trouble)
        rig.now += 7 * 86_400
        (call,) = rig.wake()
    assert rig.settled == {}


def test_what_counts_of_a_sleep_is_bounded() -> None:
    stumbles = Stumbles(at=0.0, kind=BUSY)
    stumbles.add(BUSY, 0.0, MAX_SPENT)
    stumbles.add(BUSY, 10.0, MAX_SPENT)
    stumbles.add(BUSY, 1e9, MAX_SPENT)
    assert (stumbles.count, stumbles.spent) == (3, 10 + MAX_SPENT)
    assert (stumbles.alike, stumbles.alike_spent) == (3, 10 + MAX_SPENT)
    stumbles.add(ODD, 1e9 + 5, MAX_SPENT)
    stumbles.add(ODD, 1e9 + 7, MAX_SPENT)
    assert (stumbles.count, stumbles.spent) == (5, 17 + MAX_SPENT)
    assert (stumbles.kind, stumbles.alike, stumbles.alike_spent) == (ODD, 2, 2.0)


def test_after_a_sleep_everything_that_is_due_goes_out_once(rig: Rig) -> None:
    first = rig.to(P, "a").batch
    rig.report(Polled(first, Snapshot("b1", "in_progress")))
    second = rig.to(P, "b", model="n").batch
    rig.report(Polled(second, Snapshot("b2", "in_progress")))
    rig.ask("c")
    calls = rig.wake(30 * 86_400)
    assert {(type(call), call.batch.model) for call in calls} == {(Poll, "m"), (Poll, "n"), (Upload, "m")}
    assert rig.wake() == []


# --- a creation whose answer was lost --------------------------------------------------------------------------


def lost(rig: Rig, *names: str, trouble: Trouble = PASSING) -> LookUp:
    call = rig.to(C, *names)
    rig.fail(call, trouble, cause="doubt")
    look = rig.next(LookUp)
    assert look.file_id == "file-in"
    return look


@pytest.mark.parametrize("trouble", [PASSING, ODD])
@pytest.mark.parametrize("status", ["validating", "in_progress", "completed"])
def test_the_batch_that_the_lost_creation_made_is_adopted(rig: Rig, trouble: Trouble, status: str) -> None:
    look = lost(rig, "a", "b", trouble=trouble)
    rig.report(LookedUp(look.batch, Snapshot("b7", status)))
    assert rig.said(BatchSubmitted) == [BatchSubmitted("b7", look.batch.endpoint, "m", 2, 20)]
    assert rig.next(Poll).batch_id == "b7"


def test_a_batch_that_turns_up_late_is_adopted(rig: Rig) -> None:
    look = lost(rig, "a")
    for _ in range(5):
        rig.report(LookedUp(look.batch, None))
        look = rig.next(LookUp)
    rig.report(LookedUp(look.batch, Snapshot("b7", "validating")))
    assert rig.next(Poll).batch_id == "b7"


def test_a_batch_is_made_again_when_it_has_certainly_not_been_made(rig: Rig) -> None:
    look = lost(rig, "a")
    before = rig.now
    looks = 0
    while True:
        rig.report(LookedUp(look.batch, None))
        looks += 1
        (call,) = rig.next_calls()
        if isinstance(call, Create):
            break
        assert isinstance(call, LookUp)
        look = call
    assert (call.batch, call.file_id) == (look.batch, "file-in")
    assert rig.now - before == LOOK_UP_SECONDS + CALLS.delay(1, 0.0)
    assert looks == LOOK_UP_SECONDS / LOOK_UP_INTERVAL + 1
    rig.report(Created(call.batch, Snapshot("b8", "validating")))
    assert rig.next(Poll).batch_id == "b8"


def test_one_look_after_a_long_sleep_is_not_enough(rig: Rig) -> None:
    look = lost(rig, "a")
    rig.now += 86_400
    rig.report(LookedUp(look.batch, None))
    rig.next(LookUp)


def test_looks_that_failed_are_no_looks(rig: Rig) -> None:
    look = lost(rig, "a")
    before = rig.now
    while rig.now - before < 2 * LOOK_UP_SECONDS:
        rig.fail(look, PASSING)
        look = rig.next(LookUp)
    rig.report(LookedUp(look.batch, None))
    rig.next(LookUp)


def test_each_lost_creation_is_looked_for_as_long(rig: Rig) -> None:
    look = lost(rig, "a")
    for tries in (1, 2, 3):
        before = rig.now
        call: LookUp | Create = look
        while isinstance(call, LookUp):
            rig.report(LookedUp(look.batch, None))
            (found,) = rig.next_calls()
            assert isinstance(found, (LookUp, Create))
            call = found
        assert rig.now - before == LOOK_UP_SECONDS + CALLS.delay(tries, 0.0)
        rig.fail(call, PASSING)
        look = rig.next(LookUp)


def test_a_busy_server_made_nothing(rig: Rig) -> None:
    """Nothing is looked up after an answer that says so."""
    rig.fail(rig.to(C, "a"), BUSY)
    rig.next(Create)


def test_patience_holds_over_creations_that_are_lost_and_not_found(rigs: type[Rig]) -> None:
    rig = rigs(patience=3_600.0)
    fail_until_settled(rig, C, PASSING, limit=1_000)
    assert all(isinstance(outcome, CallFailed) for outcome in rig.settled.values())
    (settled,) = rig.said(BatchSettled)
    assert 3_600 < settled.duration <= 3_600 + 2 * LOOK_UP_SECONDS


def test_patience_never_ends_between_a_lost_creation_and_its_look_up(rigs: type[Rig]) -> None:
    """What was paid for is to be found, if it is there."""
    rig = rigs(patience=1.0)
    call = rig.to(C, "a")
    for _ in range(4):  # of which the last is beyond patience
        rig.fail(call, BUSY, 30.0)
        if rig.settled:
            break
        call = rig.next(Create)
    assert rig.settled == {"a": CallFailed("cause")}

    rig = rigs(patience=40.0)
    call = rig.to(C, "a")
    rig.fail(call, BUSY, 30.0)
    call = rig.next(Create)
    rig.now += 30.0
    rig.fail(call, PASSING)
    rig.report(LookedUp(rig.next(LookUp).batch, Snapshot("b7", "validating")))
    assert rig.next(Poll).batch_id == "b7"


# --- causes ----------------------------------------------------------------------------------------------------


def test_everybody_is_told_the_last_cause(rigs: type[Rig]) -> None:
    rig = rigs(patience=10.0)
    count = fail_until_settled(rig, U, PASSING)
    assert rig.settled["a"] == rig.settled["b"] == CallFailed(f"cause {count}")


def test_give_up_settles_everybody_at_any_step(rigs: type[Rig]) -> None:
    for step in (U, C, L, P, F):
        rig = rigs()
        batch: Batch = rig.to(step, "a", "b").batch
        rig.apply(rig.engine.give_up(batch, "defect", rig.now))
        assert rig.settled == dict.fromkeys("ab", CallFailed("defect"))
        assert rig.engine.batches == {}
        assert rig.engine.give_up(batch, "defect", rig.now) == []
        assert rig.engine.handle(Uploaded(batch, "late"), rig.now) == []


def test_waits_are_those_that_the_events_tell(rig: Rig) -> None:
    waits = waits_of(rig, U, BUSY, 5)
    assert [event.delay for event in rig.said(CallRetried)] == waits
    assert waits == [CALLS.delay(count, 0.0) for count in range(1, 6)]
