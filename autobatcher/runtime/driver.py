"""Does what the engine decides: one root task owns a task group, its children make the calls and report back."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio

from autobatcher.core import messages as core
from autobatcher.core.batch import Batch
from autobatcher.core.engine import Engine
from autobatcher.core.outcomes import Closed, Outcome
from autobatcher.core.window import Request
from autobatcher.events import Event
from autobatcher.runtime.spawn import Reply, new_reply, spawn_root
from autobatcher.runtime.upstream import Upstream, UpstreamError

_log = logging.getLogger("autobatcher")

TRANSFERS = 4
"""Uploads at a time, and downloads: more would share the same line, and hold more of the files in memory."""

CANCEL_SECONDS = 30.0
"""For how long closing waits for the server to take the cancellations."""


class Driver:
    """The runtime of one client in one event loop; it lives until `stop`, or until its loop ends."""

    def __init__(
        self,
        engine: Engine,
        upstream: Upstream,
        publish: Callable[[Event], None],
        release: Callable[[], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._upstream = upstream
        self._publish = publish
        self._release = release
        self._calls: deque[core.Call] = deque()
        self._uploads = anyio.CapacityLimiter(TRANSFERS)
        self._downloads = anyio.CapacityLimiter(TRANSFERS)
        self._wake = anyio.Event()
        self._stopping = False
        self._cancelling = False
        self._join = spawn_root(self._run)

    async def submit(self, request: Request) -> Outcome:
        """Put a request into the next batch and wait for what becomes of it.

        Raises:
            OversizedError: it fits into no file.
        """
        if self._stopping:
            return Closed(None)
        reply: Reply[Any] = new_reply()
        request.reply = reply
        self._engine.accept(request, anyio.current_time())
        self._wake.set()
        try:
            return cast("Outcome", await reply.wait())
        except BaseException:
            self._apply(self._engine.abandon(request, anyio.current_time()))
            self._wake.set()
            raise

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or under way."""
        return not (self._engine.windows or self._engine.batches)

    def retire(self) -> None:
        """End the root task of an idle driver, and leave the loop its connections."""
        self._release = _nothing
        self.stop()

    def stop(self, *, cancel_batches: bool = False) -> None:
        """Settle every caller and end the root task; before that, cancel the batches that are at the server."""
        self._cancelling = cancel_batches
        self._stopping = True
        self._wake.set()

    async def stopped(self) -> None:
        """Wait for the end of the root task."""
        await self._join()

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                while not self._stopping:
                    await self._turn(tasks)
                if self._cancelling:
                    self._apply(self._engine.close(anyio.current_time(), cancel=True))
                    with anyio.move_on_after(CANCEL_SECONDS):
                        while self._engine.batches:
                            await self._turn(tasks)
                tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 -- a defect must not leave callers waiting
            _log.exception("the batching task failed; every waiting call gets the error")
            for batch in list(self._engine.batches.values()):
                self._apply(self._engine.give_up(batch, error, anyio.current_time()))
        finally:
            self._stopping = True
            self._apply(self._engine.close(anyio.current_time()))
            with anyio.CancelScope(shield=True):
                await self._release()

    async def _turn(self, tasks: anyio.abc.TaskGroup) -> None:
        """Do what is due, and wait until there is more to do."""
        self._wake = anyio.Event()
        self._apply(self._engine.wake(anyio.current_time()))
        while self._calls:
            tasks.start_soon(self._perform, self._calls.popleft())
        wakeup = self._engine.next_wakeup()
        with anyio.CancelScope(deadline=math.inf if wakeup is None else wakeup):
            await self._wake.wait()

    def _apply(self, effects: list[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Settle(request, outcome):
                    request.reply.set(outcome)
                case core.Publish(event):
                    self._publish(event)
                case _:  # a call: only the root's children make them, in no caller's context
                    self._calls.append(effect)

    async def _perform(self, call: core.Call) -> None:
        batch = call.batch
        try:
            if isinstance(call, core.Upload):
                await self._upload(batch)
            else:
                self._report(await self._made(call))
        except UpstreamError as error:
            self._report(core.Failed(batch, error.failure))
        except Exception as error:  # noqa: BLE001 -- a defect in one batch's call must not end the others
            _log.exception("batch %s: a call failed unexpectedly", batch.id)
            self._apply(self._engine.give_up(batch, error, anyio.current_time()))
            self._wake.set()

    async def _upload(self, batch: Batch) -> None:
        async with self._uploads:
            if lines := batch.lines():
                self._report(core.Uploaded(batch, await self._upstream.upload(lines)))

    async def _made(
        self, call: core.Create | core.LookUp | core.Poll | core.Fetch | core.Cancel
    ) -> core.Report:
        """Make a call; what came of it."""
        batch = call.batch
        match call:
            case core.Create(_, file_id):
                return core.Created(batch, await self._upstream.create(batch, file_id))
            case core.LookUp(_, file_id):
                return core.LookedUp(batch, await self._upstream.look_up(file_id))
            case core.Poll(_, batch_id):
                return core.Polled(batch, await self._upstream.poll(batch_id))
            case core.Fetch(_, files):
                async with self._downloads:
                    for file_id, skip in files:
                        await self._read(call, file_id, skip)
                return core.Fetched(batch)
            case core.Cancel(_, batch_id):
                await self._upstream.cancel(batch_id)
                return core.Cancelled(batch)

    async def _read(self, call: core.Fetch, file_id: str, skip: int) -> None:
        async for piece in self._upstream.read_lines(file_id, skip):
            self._report(core.LinesRead(call.batch, file_id, piece.lines, piece.last, piece.resumes))

    def _report(self, report: core.Report) -> None:
        self._apply(self._engine.handle(report, anyio.current_time()))
        self._wake.set()  # the next poll may be due before anything that was known until now


async def _nothing() -> None:
    return
