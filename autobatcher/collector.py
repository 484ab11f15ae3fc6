"""What a client and its copies share: one driver for each event loop they are used in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
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


class Collectors:
    """The collectors of a client and its copies: one for each identity under which, and way in which, they send.

    Args:
        pool: their connections.
    """

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool
        self._known: list[tuple[object, Collector]] = []
        self._told = False
        self.closed = False

    def one(
        self, identity: object, options: BatchOptions, sender: Callable[..., openai.AsyncOpenAI]
    ) -> Collector:
        """The collector for an identity; `sender` makes the client that a new one works with."""
        for known, collector in self._known:
            if known == identity:
                return collector
        # Copies come and go, some for a single call; what they leave behind goes when the next one comes.
        self._known = [(known, collector) for known, collector in self._known if not collector.retire()]
        collector = Collector(sender, options, self._pool)
        collector.closed = self.closed
        self._known.append((identity, collector))
        return collector

    def note_left_out(self, headers: Any, query: Mapping[str, object]) -> None:
        """Say once in the log that what a call gives with its HTTP request has no place in a line."""
        if not self._told and (names := left_out(headers, query)):
            self._told = True
            log_left_out(names)

    def use(self, pool: HttpPool) -> None:
        """Have new collectors use other connections."""
        self._pool = pool

    async def close(self) -> None:
        """Close all of them."""
        self.closed = True
        for _, collector in self._known:
            await collector.close()


class Collector:
    """Gathers calls into batches, in whatever event loop they come from.

    Args:
        sender: makes clients, with attributes as given, for the Files and Batches calls.
        options: when windows close, and what batches are created with.
        pool: gives up a loop's connections when the loop ends.
    """

    def __init__(
        self, sender: Callable[..., openai.AsyncOpenAI], options: BatchOptions, pool: HttpPool
    ) -> None:
        metadata = None if options.batch_metadata is None else dict(options.batch_metadata)
        self._upstream = Upstream(sender(), sender(max_retries=0), options.completion_window, metadata)
        self._limits = Limits(requests=options.batch_size, seconds=options.batch_window_seconds)
        self._polls = PollSchedule(options.poll_interval_seconds)
        self._pool = pool
        self._drivers: dict[Any, Driver] = {}
        self.closed = False

    def retire(self) -> bool:
        """End the tasks, if nothing is waiting or under way; whether they are ended."""
        if not all(is_dead(loop) or driver.idle for loop, driver in self._drivers.items()):
            return False
        for loop, driver in self._drivers.items():
            if loop is current_loop():
                driver.retire()
            elif not is_dead(loop):
                call_soon_in(loop, driver.retire)
        return True

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
        await self._pool.release(loop)
