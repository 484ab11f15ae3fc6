"""Which of several equal requests a call is."""

from __future__ import annotations

import random
from collections import Counter

from autobatcher.core.window import Request
from autobatcher.runtime.numbers import IN_DICT
from autobatcher.runtime.record import Record, RecordedNotes
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


def test_numbers_are_right_past_the_keys_that_a_dict_counts() -> None:
    chance = random.Random(2)
    few = [chance.randbytes(16) for _ in range(20)]
    many = [chance.randbytes(16) for _ in range(IN_DICT + 60_000)]
    asked = [*few[:10], *many, *few * 300, *chance.sample(many, 50_000), *many[-40_000:]]
    numbers, counted = Record(MemoryJournal(), owned=False).numbers, Counter[bytes]()
    for key in asked:
        assert numbers.take(key) == (counted[key], False)
        counted[key] += 1
    numbers.give_back(many[-1], 0)
    numbers.give_back(few[-1], 299)
    assert numbers.take(many[-1]) == (0, True)
    assert numbers.take(few[-1]) == (299, True)
    assert numbers.take(few[-1]) == (300, False)


def test_a_number_is_given_back_once() -> None:
    record = Record(MemoryJournal(), owned=False)
    notes = RecordedNotes(record, "http://x/", None, lambda line: line)
    request = Request("c", "/v1/x", "m", b"", 0, key=KEY, reply=object(), place=object())
    notes.known(request)
    for _ in range(2):  # as a call does that is cancelled in the moment in which it is over
        notes.left(request, None)
    assert [record.numbers.take(KEY) for _ in range(2)] == [(0, True), (1, False)]


def test_who_is_answered_after_all_has_its_number_again_unless_another_has_it() -> None:
    record = Record(MemoryJournal(), owned=False)
    notes = RecordedNotes(record, "http://x/", None, lambda line: line)
    requests = [Request(f"{n}", "/v1/x", "m", b"", 0, key=KEY) for n in range(4)]
    for request in requests:
        notes.known(request)
    for request in requests[::2]:
        notes.failed(request)
    assert record.numbers.take(KEY) == (0, True)
    for request in requests:
        notes.retake(request)
    assert [request.n for request in requests] == [4, 1, 2, 3]
