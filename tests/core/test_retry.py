"""How often a batch is polled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatcher.core.retry import MAX_POLL_INTERVAL, PollSchedule

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
