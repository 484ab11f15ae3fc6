"""Which of several equal requests a call is."""

from __future__ import annotations

import random

from autobatcher.runtime.record import Record
from tests.journal.memory import MemoryJournal

KEY = b"k" * 16
COUNT = 2000


def test_numbers_that_are_given_back_come_again_lowest_first_and_need_no_search() -> None:
    compared = 0

    class Number(int):
        def __lt__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int(self) < int(other)  # type: ignore[call-overload,no-any-return] # only numbers come here

    numbers = Record(MemoryJournal(), owned=False).numbers
    taken = [numbers.take(KEY)[0] for _ in range(COUNT)]
    random.Random(1).shuffle(taken)
    for n in taken:
        numbers.give_back(KEY, Number(n))
    assert [numbers.take(KEY) for _ in range(COUNT)] == [(n, True) for n in range(COUNT)]
    assert numbers.take(KEY) == (COUNT, False)
    assert compared < 50 * COUNT
