"""Which of equal requests a caller's is."""

from __future__ import annotations

import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from autobatcher.errors import JournalError
from autobatcher.serve.deliveries import Deliveries

A, B = b"a" * 16, b"b" * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "served.db"


@pytest.fixture
def deliveries(path: Path) -> Iterator[Deliveries]:
    with closing(Deliveries(path)) as deliveries:
        yield deliveries


def test_those_who_wait_at_the_same_time_have_numbers_of_their_own(deliveries: Deliveries) -> None:
    assert [deliveries.take(A), deliveries.take(A), deliveries.take(B)] == [0, 1, 0]


@pytest.mark.skipif(os.name != "posix", reason="has no such permissions")
def test_only_its_owner_may_read_the_file(path: Path, deliveries: Deliveries) -> None:
    deliveries.take(A)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(("served.db", "served.db-wal", "served.db-shm"), 0o600)


def test_what_was_delivered_is_had_by_nobody_else(deliveries: Deliveries) -> None:
    deliveries.delivered(A, deliveries.take(A))
    assert deliveries.take(A) == 1


def test_what_was_not_delivered_is_the_next_ones(deliveries: Deliveries) -> None:
    first, second, _ = (deliveries.take(A) for _ in range(3))
    deliveries.given_back(A, second)
    deliveries.given_back(A, first)
    assert [deliveries.take(A) for _ in range(3)] == [0, 1, 3]


def test_after_a_restart_what_was_not_delivered_comes_first(path: Path) -> None:
    with closing(Deliveries(path)) as deliveries:
        for _ in range(4):
            deliveries.take(A)
        deliveries.delivered(A, 0)
        deliveries.delivered(A, 2)
    with closing(Deliveries(path)) as deliveries:
        assert [deliveries.take(A) for _ in range(3)] == [1, 3, 4]


def test_a_file_that_is_none(path: Path) -> None:
    path.write_text("no database" * 1000)
    with pytest.raises(JournalError, match="file is not a database"):
        Deliveries(path)


def test_one_that_cannot_be_written_costs_the_call_that_needs_it(path: Path) -> None:
    with closing(Deliveries(path)) as deliveries, closing(sqlite3.connect(path)) as other:
        n = deliveries.take(A)
        other.execute("BEGIN IMMEDIATE")
        deliveries._db.execute("PRAGMA busy_timeout = 0")
        with pytest.raises(JournalError):
            deliveries.take(B)
        deliveries.delivered(A, n)  # is not noted, and fails nobody
        other.rollback()
        assert deliveries.take(B) == 0
        assert deliveries.take(A) == n


class Numbers(RuleBasedStateMachine):
    """Callers come, get their answers, leave, and the proxy is started again."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.deliveries = Deliveries(f"{self.folder.name}/served.db")
        self.waiting: list[tuple[bytes, int]] = []
        self.open: set[tuple[bytes, int]] = set()
        self.delivered: set[tuple[bytes, int]] = set()

    @rule(name=st.sampled_from([A, B]))
    def come(self, name: bytes) -> None:
        left = [n for other, n in self.open - set(self.waiting) if other == name]
        taken = name, self.deliveries.take(name)
        assert taken not in self.waiting
        assert taken not in self.delivered
        assert not left or taken[1] == min(left)
        self.waiting.append(taken)
        self.open.add(taken)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), delivered=st.booleans())
    def go(self, data: st.DataObject, *, delivered: bool) -> None:
        one = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        if delivered:
            self.deliveries.delivered(*one)
            self.open.remove(one)
            self.delivered.add(one)
        else:
            self.deliveries.given_back(*one)

    @rule()
    def restart(self) -> None:
        self.deliveries.close()
        self.deliveries, self.waiting = Deliveries(f"{self.folder.name}/served.db"), []

    @invariant()
    def remembers_only_those_who_wait(self) -> None:
        assert self.deliveries._names.keys() == {name for name, _ in self.waiting}

    def teardown(self) -> None:
        self.deliveries.close()
        self.folder.cleanup()


TestNumbers = Numbers.TestCase
TestNumbers.settings = settings(max_examples=50, deadline=None)
