"""Backends and clocks that every test can ask for."""

from __future__ import annotations

import asyncio
import selectors
import signal
from typing import Any

import hypothesis
import pytest
import trio.testing


class VirtualSelector(selectors.SelectSelector):
    """A selector that, instead of waiting, moves its loop's clock forward."""

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


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """An asyncio event loop in which waiting costs no time."""

    def __init__(self) -> None:
        self._virtual = VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


# A shell that starts the tests in the background has them ignore Ctrl-C, and so the programs that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow machine is no failing example.
hypothesis.settings.register_profile("noisy", deadline=None)
hypothesis.settings.load_profile("noisy")

REAL = [pytest.param("asyncio", id="asyncio"), pytest.param("trio", id="trio")]


@pytest.fixture(params=REAL)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Both backends, on the real clock; override with `virtual_backend` for virtual time."""
    return request.param


@pytest.fixture(params=["asyncio", "trio"])
def virtual_backend(request: pytest.FixtureRequest) -> Any:
    """Both backends on a virtual clock: hours of waiting pass in no time. Only for in-process tests."""
    if request.param == "asyncio":
        return "asyncio", {"loop_factory": VirtualClockLoop}
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
