"""Virtual time on both backends, with clocks that can leap, as a laptop's does when it wakes."""

from __future__ import annotations

import asyncio
import functools
import random
import selectors
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import anyio
import trio
import trio.testing

Jump = Callable[[float], None]
"""Moves the clock forward by so many seconds at once."""

REAL_SECONDS = 60.0
"""More than a hundred times what a world takes: what takes longer goes round in a circle, or waits for nothing."""


class HangsError(BaseException):
    """A world took real time without end; no exception that the code under test might take for its own affair."""


class _Selector(selectors.SelectSelector):
    """Moves its loop's clock forward instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:  # nothing is scheduled: only a real file descriptor can wake the loop
            return super().select(None)
        self.now += max(timeout, 0)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, selector: _Selector) -> None:
        self._virtual = selector
        super().__init__(selector)

    def time(self) -> float:
        return self._virtual.now


def run(backend: str, seed: int, main: Callable[[Jump], Awaitable[None]]) -> None:
    """Run `main` from time 0 to its end; whatever is random in the scheduler follows from the seed."""
    with _no_longer_than(REAL_SECONDS):
        if backend == "asyncio":
            selector = _Selector()

            def jump(seconds: float) -> None:
                selector.now += seconds

            options: dict[str, Any] = {"loop_factory": functools.partial(_Loop, selector)}
            anyio.run(main, jump, backend="asyncio", backend_options=options)
            return
        clock = trio.testing.MockClock(autojump_threshold=0)
        with _seeded_trio(seed):
            anyio.run(main, clock.jump, backend="trio", backend_options={"clock": clock})


@contextmanager
def _seeded_trio(seed: int) -> Iterator[None]:
    """Trio runs the tasks that are ready in random order; with its own switch and a seed, in the same each time."""
    scheduler: Any = trio._core._run
    before = scheduler._ALLOW_DETERMINISTIC_SCHEDULING
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    state = scheduler._r.getstate()
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._r.setstate(state)
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = before


@contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise HangsError(f"the world was not over after {seconds:.0f} real seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def wall_clock(now: Callable[[], float]) -> Iterator[None]:
    """Unix time is what `now` says: the ages of what an earlier run noted are reckoned by it."""
    before = time.time
    vars(time)["time"] = now
    try:
        yield
    finally:
        vars(time)["time"] = before


def seeded_globals(seed: int) -> random.Random:
    """Seed the jitter of the code under test, which comes from the global generator; a generator for the rest."""
    random.seed(seed)
    return random.Random(seed)
