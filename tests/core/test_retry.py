"""How often a batch is polled, how long to wait, and why a batch failed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatcher.core.outcomes import BatchProblem
from autobatcher.core.retry import (
    CALLS,
    LINES,
    MAX_POLL_INTERVAL,
    PASSING_CODES,
    QUEUE,
    QUEUE_CODES,
    WHOLE_CODES,
    Backoff,
    PollSchedule,
    WholeFailure,
    judge_failed,
    may_pass,
)

DAY = 86_400.0


def test_a_day_takes_at_most_400_polls() -> None:
    schedule = PollSchedule()
    age, polls = 0.0, 0
    while (age := age + schedule.interval(age)) <= DAY:
        polls += 1
    assert 100 <= polls <= 400


@given(st.floats(0, 10 * DAY))
def test_an_answer_is_found_soon_in_proportion_to_its_wait(age: float) -> None:
    assert 5 <= PollSchedule().interval(age) <= min(max(60.0, 0.02 * age), MAX_POLL_INTERVAL)


@given(st.floats(0, 10 * DAY), st.floats(0, 10 * DAY), st.floats(0.001, 10_000))
def test_intervals_do_not_shrink(age: float, later: float, first: float) -> None:
    schedule = PollSchedule(first)
    assert first <= schedule.interval(min(age, later)) <= schedule.interval(max(age, later))


@pytest.mark.parametrize(
    ("first", "age", "interval"),
    [
        (5.0, 0.0, 5.0),
        (5.0, 250.0, 5.0),
        (5.0, 1_000.0, 20.0),
        (5.0, 30_000.0, 600.0),
        (5.0, DAY, 600.0),
        (0.01, 1.0, 0.02),
        (900.0, 0.0, 900.0),
        (900.0, DAY, 900.0),
    ],
)
def test_interval(first: float, age: float, interval: float) -> None:
    assert PollSchedule(first).interval(age) == pytest.approx(interval)


# --- polls after failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "age", "latest"),
    [
        (5.0, 0.0, 60.0),
        (5.0, 3_000.0, 60.0),
        (5.0, 10_000.0, 200.0),
        (5.0, DAY, 1_728.0),
        (900.0, 0.0, 900.0),
        (0.001, 0.0, 60.0),
    ],
)
def test_latest(first: float, age: float, latest: float) -> None:
    assert PollSchedule(first).latest(age) == pytest.approx(latest)


@given(st.floats(0, 10 * DAY), st.floats(0.001, 10_000))
def test_a_poll_is_never_later_than_a_minute_or_a_fiftieth_of_the_age(age: float, first: float) -> None:
    schedule = PollSchedule(first)
    assert schedule.interval(age) <= schedule.latest(age) <= max(first, 60.0, 0.02 * age)


# --- backoff ---------------------------------------------------------------------------------------------------

BACKOFFS = [CALLS, LINES, QUEUE, Backoff(0.5, 7.0)]


@pytest.mark.parametrize("backoff", BACKOFFS)
def test_waits_double_up_to_the_most(backoff: Backoff) -> None:
    waits = [backoff.delay(failures, 0.0) for failures in range(1, 100)]
    assert waits[0] == backoff.first
    assert waits[-1] == backoff.most
    for earlier, later in pairwise(waits):
        assert later == min(2 * earlier, backoff.most)


@given(st.sampled_from(BACKOFFS), st.integers(1, 10**6), st.floats(0, 1))
def test_spread_takes_up_to_half_off(backoff: Backoff, failures: int, spread: float) -> None:
    whole = backoff.delay(failures, 0.0)
    assert whole / 2 <= backoff.delay(failures, spread) <= whole
    assert backoff.delay(failures, 1.0) == whole / 2


# --- why a batch failed ----------------------------------------------------------------------------------------


def problem(code: str | None = None, line: int | None = None) -> BatchProblem:
    return BatchProblem(code, "m", line)


@pytest.mark.parametrize(
    ("problems", "why"),
    [
        pytest.param([], WholeFailure.OTHER, id="nothing said"),
        pytest.param([problem()], WholeFailure.OTHER, id="no code"),
        pytest.param([problem("billing_hard_limit_reached")], WholeFailure.OTHER, id="another code"),
        pytest.param([problem("invalid_json_line", 1)], WholeFailure.LINES, id="a line"),
        pytest.param([problem(None, 3)], WholeFailure.LINES, id="a line without a code"),
        pytest.param([problem("x"), problem("y", 2)], WholeFailure.LINES, id="a line among others"),
        pytest.param([problem("x", 0)], WholeFailure.OTHER, id="line 0"),
        pytest.param([problem("x", 4)], WholeFailure.OTHER, id="a line beyond the last"),
        pytest.param([problem("x", -1)], WholeFailure.OTHER, id="line -1"),
        *(pytest.param([problem(code)], WholeFailure.QUEUE, id=code) for code in sorted(QUEUE_CODES)),
        *(pytest.param([problem(code)], WholeFailure.PASSING, id=code) for code in sorted(PASSING_CODES)),
        *(pytest.param([problem(code, 1)], WholeFailure.OTHER, id=code) for code in sorted(WHOLE_CODES)),
        pytest.param([problem("Token_Limit_Exceeded")], WholeFailure.QUEUE, id="capitals"),
        pytest.param([problem("token_limit_exceeded", 1)], WholeFailure.QUEUE, id="full, said of a line"),
        pytest.param(
            [problem("model_not_found", 1), problem("invalid", 2)], WholeFailure.OTHER, id="model and line"
        ),
        pytest.param([problem("server_error"), problem("bad", 2)], WholeFailure.LINES, id="passing and line"),
        pytest.param([problem("server_error"), problem("odd")], WholeFailure.PASSING, id="passing and other"),
    ],
)
def test_why_a_batch_of_three_lines_has_failed(problems: list[BatchProblem], why: WholeFailure) -> None:
    assert judge_failed(problems, 3) is why


def test_the_codes_are_lower_case_and_mean_one_thing() -> None:
    for codes in (QUEUE_CODES, PASSING_CODES, WHOLE_CODES):
        assert {code.lower() for code in codes} == codes
    assert not QUEUE_CODES & PASSING_CODES
    assert not QUEUE_CODES & WHOLE_CODES
    assert not PASSING_CODES & WHOLE_CODES


@given(
    st.lists(
        st.builds(
            BatchProblem,
            st.none()
            | st.text(max_size=5)
            | st.sampled_from(sorted(QUEUE_CODES | PASSING_CODES | WHOLE_CODES)),
            st.none() | st.text(max_size=5),
            st.none() | st.integers(),
        ),
        max_size=5,
    ),
    st.integers(1, 5),
)
def test_any_problems_are_judged(problems: list[BatchProblem], lines: int) -> None:
    why = judge_failed(problems, lines)
    assert judge_failed(problems[::-1], lines) is why
    if why is WholeFailure.LINES:
        assert any(item.line is not None and 1 <= item.line <= lines for item in problems)


@pytest.mark.parametrize("status", range(100, 600))
def test_which_answers_may_pass(status: int) -> None:
    assert may_pass(status) == (status in (408, 409, 429) or 500 <= status <= 599)
