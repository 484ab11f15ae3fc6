"""A short form of `python -m tests.journal.replay`."""

from __future__ import annotations

from tests.journal.replay import measured


def test_the_answers_of_an_earlier_run_come_without_network() -> None:
    assert measured(2_500)["right"] == 2_500
