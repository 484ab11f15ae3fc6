"""Worlds on each backend, a thousand where the environment says so, and the same world twice."""

from __future__ import annotations

import itertools
import os

import pytest

from tests.simulation.world import simulate

BACKENDS = ("asyncio", "trio")
WORLDS = int(os.environ.get("AUTOBATCHER_SIMULATION_WORLDS", "100"))
CHUNK = 50


FIRST = ("asyncio", 0)
"""The chunk that has a test of its own."""


def chunks(worlds: int) -> list[tuple[str, int]]:
    """Backend and first seed of all other chunks of so many worlds on each backend."""
    return [chunk for chunk in itertools.product(BACKENDS, range(0, worlds, CHUNK)) if chunk != FIRST]


def kinds_in(backend: str, first: int, *, stops: bool = False) -> set[str]:
    """The kinds of faults in a chunk of worlds, which are all well."""
    runs = [simulate(seed, backend, stops=stops) for seed in range(first, first + CHUNK)]
    wrong = {run.command: run.violations for run in runs if run.violations}
    assert not wrong
    return {kind for run in runs for kind in run.ledger.faults}


@pytest.mark.parametrize(("backend", "first"), chunks(WORLDS))
def test_worlds(backend: str, first: int) -> None:
    kinds_in(backend, first)


@pytest.mark.parametrize(("backend", "first"), chunks(WORLDS // 10))
def test_worlds_with_a_journal_and_stops(backend: str, first: int) -> None:
    kinds_in(backend, first, stops=True)


@pytest.mark.parametrize("stops", [False, True], ids=["", "stops"])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_seed_is_one_world(backend: str, seed: int, *, stops: bool) -> None:
    first, second = simulate(seed, backend, stops=stops), simulate(seed, backend, stops=stops)
    assert first.ledger.trace == second.ledger.trace
    assert first.ledger.faults == second.ledger.faults


def test_the_first_worlds_have_every_kind_of_fault() -> None:
    """So that no part of the plan is idle unnoticed."""
    kinds = kinds_in(*FIRST) | kinds_in(*FIRST, stops=True)
    for kind in ("upload", "create", "list", "poll", "content"):
        assert {f"{kind}: answer lost", f"{kind}: connection refused", f"{kind}: 500"} <= kinds
    assert {
        "create: done late",
        "create: no such file yet",
        "poll: no such batch",
        "poll: unknown status",
        "poll: odd file ids",
        "content: breaks off",
        "content: cut short",
        "line: missing",
        "line: malformed",
        "line: status 0",
        "line: late",
        "line: doubled",
        "line: beside a stranger",
        "line: error object",
        "batch: fails: lines",
        "batch: fails: queue",
        "batch: fails: passing",
        "batch: fails: otherwise",
        "batch: expires",
        "batch: is cancelled",
        "batch: files late",
        "batch: output file never shown",
        "clock: leaps",
        "realtime: 503",
        "realtime: connection refused",
        "realtime: slow",
        "stop: before begin",
        "stop: after begin",
        "stop: before uploaded",
        "stop: after uploaded",
        "stop: before created",
        "stop: after created",
        "stop: before answered",
        "stop: after answered",
        "stop: before ended",
        "stop: after ended",
    } <= kinds
