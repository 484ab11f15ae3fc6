"""What every store has to do, for the built-in one and for one in memory."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autobatcher.core.outcomes import Answer, LooseJson
from autobatcher.journal import Journal, JournalledRequest, OpenBatch, SqliteJournal
from tests.journal.memory import MemoryJournal

URL = "http://x/"
ANSWER = Answer(200, "req-1", b'{"x":1}')

SIZE = 1_234
"""Of the files, in bytes: whatever the client says."""

Again = Callable[[], Journal]
"""The store as it is after the end of a process."""


@pytest.fixture(params=["sqlite", "memory"])
def again(request: pytest.FixtureRequest, path: Path) -> Iterator[Again]:
    last: list[Journal] = []

    def reopen() -> Journal:
        for journal in last:
            journal.close()
        if request.param == "sqlite":
            last[:] = [SqliteJournal(path)]
        elif not last:
            last.append(MemoryJournal())
        return last[0]

    yield reopen
    last[0].close()


@pytest.fixture
def journal(again: Again) -> Journal:
    return again()


def key(n: int) -> bytes:
    return n.to_bytes(16, "big")


def request_of(number: int, n: int = 0, body: bytes = b"{}") -> JournalledRequest:
    return JournalledRequest(key(number), n, f"c-{number}-{n}", body)


def begin(journal: Journal, *numbers: int, base_url: str = URL) -> int:
    return journal.begin(base_url, "/v1/e", "m", [request_of(number) for number in numbers], SIZE)


def places(journal: Journal, base_url: str = URL) -> dict[int, dict[int, tuple[str, bytes, int]]]:
    return {batch.number: dict(batch.requests) for batch in journal.open_batches(base_url)}


def entry(number: int, n: int = 0) -> tuple[str, bytes, int]:
    return f"c-{number}-{n}", key(number), n


def test_it_is_a_journal(journal: Journal) -> None:
    assert isinstance(journal, Journal)


def test_an_empty_one_has_nothing(journal: Journal) -> None:
    assert not journal.has_answers()
    assert journal.answer(key(1), 0) is None
    assert journal.open_batches(URL) == []


def test_a_batch_that_was_begun_is_open_and_has_its_lines_in_order(again: Again) -> None:
    number = begin(again(), 5, 3, 4)
    assert again().open_batches(URL) == [
        OpenBatch(number, "/v1/e", "m", None, None, None, SIZE, {0: entry(5), 1: entry(3), 2: entry(4)})
    ]
    assert not again().has_answers()


def test_each_batch_has_its_number_and_they_come_in_order(again: Again) -> None:
    numbers = [begin(again(), n) for n in range(5)]
    assert len(set(numbers)) == 5
    assert list(places(again())) == numbers


def test_the_servers_ids_are_kept(again: Again) -> None:
    first, second = begin(again(), 1), begin(again(), 2)
    again().uploaded(first, "file-1")
    before = time.time()
    again().created(first, "batch-1")
    after = time.time()
    done, begun = again().open_batches(URL)
    assert (done.number, done.file_id, done.batch_id) == (first, "file-1", "batch-1")
    assert done.created_at is not None
    assert before - 1e-3 <= done.created_at <= after + 1e-3
    assert (begun.number, begun.file_id, begun.batch_id, begun.created_at) == (second, None, None, None)


def test_an_answer_is_kept_and_its_request_is_open_no_more(again: Again) -> None:
    number = begin(again(), 1, 2, 3)
    again().answered([(key(2), 0, ANSWER)])
    assert again().has_answers()
    assert again().answer(key(2), 0) == ANSWER
    assert again().answer(key(1), 0) is None
    assert places(again()) == {number: {0: entry(1), 2: entry(3)}}


def test_answers_are_by_key_and_number(journal: Journal) -> None:
    journal.begin(URL, "/v1/e", "m", [request_of(1, n) for n in range(3)], SIZE)
    journal.answered((key(1), n, Answer(200, None, b"%d" % n)) for n in (0, 2))
    assert [journal.answer(key(1), n) for n in range(4)] == [
        Answer(200, None, b"0"),
        None,
        Answer(200, None, b"2"),
        None,
    ]


def test_the_first_answer_stays(journal: Journal) -> None:
    begin(journal, 1)
    journal.answered([(key(1), 0, ANSWER)])
    journal.answered([(key(1), 0, Answer(201, "later", b"2"))])
    assert journal.answer(key(1), 0) == ANSWER


@pytest.mark.parametrize("request_id", [None, "", "req-ü"])
@pytest.mark.parametrize("text", ['"\\u0000"', '"\\ud800"', '"ü\u2028😀"', " [1.0 , 1] ", "1" * 10**6])
def test_texts_come_back_byte_for_byte(again: Again, text: str, request_id: str | None) -> None:
    again().begin(URL, "/v1/ü", "m ü", [request_of(1, body=text.encode())], SIZE)
    answer = Answer(299, request_id, text.encode())
    assert [(batch.endpoint, batch.model) for batch in again().open_batches(URL)] == [("/v1/ü", "m ü")]
    again().answered([(key(1), 0, answer)])
    found = again().answer(key(1), 0)
    assert found == answer
    assert isinstance(found, Answer)


@pytest.mark.parametrize(
    "text", ['{"x":NaN}', "-Infinity", '{\n"x": "\\"NaN\\ud800ü",0}', '"NaN,0"', '"NaN",0']
)
def test_answers_that_only_python_reads_come_back_too(again: Again, text: str) -> None:
    bodies = [b'{"before":1}', LooseJson(text.encode()), b'"after"']
    again().answered((key(n), 0, Answer(200, "r", body)) for n, body in enumerate(bodies))
    for n, body in enumerate(bodies):
        assert again().answer(key(n), 0) == Answer(200, "r", body)


def test_the_first_of_two_answers_counts_in_whatever_order_they_are_asked_for(again: Again) -> None:
    first, second = Answer(200, "r", b'{"first":1}'), Answer(200, "r", b'{"second":2}')
    again().answered([(key(1), 0, first), (key(2), 0, first)])
    again().answered([(key(3), 0, second), (key(1), 0, second), (key(4), 0, second)])
    journal = again()
    assert [journal.answer(key(n), 0) for n in (3, 1, 4, 2)] == [second, first, second, first]


def test_thousands_are_found_in_any_order(again: Again) -> None:
    numbers = list(range(3000))
    body = b'{"text":"%b"}' % (b"x" * 1000)
    first = again().begin(URL, "/v1/e", "m", (request_of(number, body=body) for number in numbers), SIZE)
    for start in range(0, 2000, 500):
        again().answered(
            (key(n), 0, Answer(200, f"r-{n}", b'{"n":%d}' % n)) for n in range(start, start + 500)
        )
    journal = again()
    random.Random(1).shuffle(numbers)
    for number in numbers:
        expected = Answer(200, f"r-{number}", b'{"n":%d}' % number) if number < 2000 else None
        assert journal.answer(key(number), 0) == expected
    assert places(journal) == {first: {n: entry(n) for n in range(2000, 3000)}}


def test_a_request_that_goes_again_is_in_its_last_batch(again: Again) -> None:
    first = begin(again(), 1, 2, 3)
    renamed = JournalledRequest(key(2), 0, "renamed", b"{}")
    second = again().begin(URL, "/v1/e", "m", [request_of(4), renamed], SIZE)
    assert places(again()) == {
        first: {0: entry(1), 2: entry(3)},
        second: {0: entry(4), 1: ("renamed", key(2), 0)},
    }
    again().answered([(key(2), 0, ANSWER)])
    assert places(again()) == {first: {0: entry(1), 2: entry(3)}, second: {0: entry(4)}}


def test_an_answered_request_that_goes_again_keeps_its_answer(journal: Journal) -> None:
    begin(journal, 1)
    journal.answered([(key(1), 0, ANSWER)])
    second = begin(journal, 1, 2)
    assert journal.answer(key(1), 0) == ANSWER
    assert places(journal)[second] == {1: entry(2)}


def test_a_batch_that_has_ended_is_not_open(again: Again) -> None:
    first, second = begin(again(), 1), begin(again(), 2)
    again().ended(first)
    assert list(places(again())) == [second]
    third = begin(again(), 1)
    assert places(again()) == {second: {0: entry(2)}, third: {0: entry(1)}}


def test_a_batch_whose_requests_are_all_answered_is_open_until_it_has_ended(journal: Journal) -> None:
    number = begin(journal, 1)
    journal.answered([(key(1), 0, ANSWER)])
    assert places(journal) == {number: {}}
    journal.ended(number)
    assert places(journal) == {}


def test_servers_are_apart(journal: Journal) -> None:
    here, there = begin(journal, 1), begin(journal, 2, base_url="http://y/")
    assert (list(places(journal)), list(places(journal, "http://y/"))) == ([here], [there])


def test_a_group_of_answers_is_kept_whole_or_not_at_all(journal: Journal) -> None:
    begin(journal, 1, 2)

    def broken() -> Iterator[tuple[bytes, int, Answer]]:
        yield key(1), 0, ANSWER
        raise RuntimeError("it breaks off")

    with pytest.raises(RuntimeError, match="breaks off"):
        journal.answered(broken())
    assert not journal.has_answers()
    journal.answered([(key(2), 0, ANSWER)])
    assert journal.answer(key(2), 0) == ANSWER


def test_event_loops_in_several_threads_may_use_it(journal: Journal) -> None:
    errors: list[BaseException] = []

    def use(thread: int) -> None:
        try:
            for n in range(20):
                number = begin(journal, 1000 * thread + n)
                journal.uploaded(number, "f")
                journal.created(number, "b")
                journal.answered([(key(1000 * thread + n), 0, ANSWER)])
                journal.ended(number)
        except BaseException as error:  # noqa: BLE001 -- shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert journal.open_batches(URL) == []
    assert all(journal.answer(key(1000 * thread + n), 0) for thread in range(4) for n in range(20))


def test_another_thread_than_its_makers_may_close_it(again: Again) -> None:
    begin(again(), 1)
    errors: list[BaseException] = []

    def close() -> None:
        try:
            again()  # which closes the one before
        except BaseException as error:  # noqa: BLE001 -- shown by the assertion below
            errors.append(error)

    thread = threading.Thread(target=close)
    thread.start()
    thread.join()
    assert not errors
    assert len(places(again())) == 1
