"""A short form of `python -m tests.journal.kill`."""

from __future__ import annotations

from tests.journal.kill import kill


def test_a_program_that_is_killed_buys_nothing_twice() -> None:
    assert kill(16, seed=1).kills.total() >= 16
