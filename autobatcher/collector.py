"""What a client and its copies share: one driver for each event loop they are used in."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from autobatcher.core.engine import Engine
from autobatcher.core.outcomes import Closed, Outcome
from autobatcher.core.retry import PollSchedule
from autobatcher.core.window import Limits
from autobatcher.logs import left_out, log_event, log_left_out
from autobatcher.runtime.driver import Driver
from autobatcher.runtime.spawn import call_soon_in, current_loop, is_dead
from autobatcher.runtime.upstream import Upstream

if TYPE_CHECKING:
    import openai

    from autobatcher.options import BatchOptions
    from autobatcher.runtime.pool import HttpPool


class Collector:
    """Gathers calls into batches, in whatever event loop they come from.

    Args:
        client: makes the Files and Batches calls.
        options: when windows close, and what batches are created with.
        pool: gives up a loop's connections when the loop ends; None leaves that to another collector.
    """

    def __init__(self, client: openai.AsyncOpenAI, options: BatchOptions, pool: HttpPool | None) -> None:
        metadata = None if options.batch_metadata is None else dict(options.batch_metadata)
        self._upstream = Upstream(client, options.completion_window, metadata)
        self._limits = Limits(requests=options.batch_size, seconds=options.batch_window_seconds)
        self._polls = PollSchedule(options.poll_interval_seconds)
        self._pool = pool
        self._drivers: dict[Any, Driver] = {}
        self._dependants: weakref.WeakSet[Collector] = weakref.WeakSet()
        self._told = False
        self.closed = False

    def adopt(self, other: Collector) -> None:
        """Close `other`, which uses the same connections, together with this one."""
        self._dependants.add(other)

    def note_left_out(self, headers: Any, query: Mapping[str, object]) -> None:
        """Say once in the log that what a call gives with its HTTP request has no place in a line."""
        if not self._told and (names := left_out(headers, query)):
            self._told = True
            log_left_out(names)

    async def submit(self, endpoint: str, model: str, body: bytes, weight: int) -> Outcome:
        """What becomes of one request; arguments and errors as for `Driver.submit`."""
        if self.closed:
            return Closed(None)
        loop = current_loop()
        driver = self._drivers.get(loop)
        if driver is None:
            self._drivers = {key: value for key, value in self._drivers.items() if not is_dead(key)}
            driver = self._drivers[loop] = Driver(
                Engine(self._limits, self._polls),
                self._upstream,
                log_event,
                functools.partial(self._release, loop),
            )
        return await driver.submit(endpoint, model, body, weight)

    async def close(self) -> None:
        """Give every waiting caller an error and end all tasks; those of other loops end by themselves."""
        self.closed = True
        for dependant in list(self._dependants):
            await dependant.close()
        here = current_loop()
        for loop, driver in list(self._drivers.items()):
            if loop is here:
                driver.stop()
                with anyio.CancelScope(shield=True):
                    await driver.stopped()
            else:
                call_soon_in(loop, driver.stop)

    async def _release(self, loop: Any) -> None:
        self._drivers.pop(loop, None)
        if self._pool is not None:
            await self._pool.release(loop)
