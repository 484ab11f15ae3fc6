"""Does what the engine decides: one root task owns a task group, its children make the calls and report back."""

from __future__ import annotations

import itertools
import logging
import math
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import anyio

from autobatcher.core import engine as core
from autobatcher.core.jsonl import encode_line
from autobatcher.core.outcomes import CallFailed, Closed, Outcome
from autobatcher.core.window import Request
from autobatcher.events import Event
from autobatcher.runtime.spawn import Reply, new_reply, spawn_root
from autobatcher.runtime.upstream import Upstream, UpstreamError

_log = logging.getLogger("autobatcher")


class Driver:
    """The runtime of one client in one event loop; it lives until `stop`, or until its loop ends."""

    def __init__(
        self,
        engine: core.Engine,
        upstream: Upstream,
        publish: Callable[[Event], None],
        release: Callable[[], Awaitable[None]],
    ) -> None:
        self._engine = engine
        self._upstream = upstream
        self._publish = publish
        self._release = release
        self._ids = (f"{prefix}-{n}" for prefix in (uuid.uuid4().hex,) for n in itertools.count())
        self._calls: deque[core.Call] = deque()
        self._wake = anyio.Event()
        self._stopping = False
        self._join = spawn_root(self._run)

    async def submit(self, endpoint: str, model: str, body: bytes, weight: int) -> Outcome:
        """Put a request into the next batch and wait for what becomes of it.

        Args:
            endpoint: the line's url, such as "/v1/chat/completions".
            model: requests of different models go into different files.
            body: the request's JSON text, UTF-8.
            weight: what it counts towards the lines of a file.

        Raises:
            OversizedError: it fits into no file.
        """
        if self._stopping:
            return Closed(None)
        custom_id = next(self._ids)
        reply: Reply[Any] = new_reply()
        line = encode_line(custom_id, endpoint, body)
        request = Request(custom_id, endpoint, model, line, reply, weight)
        self._apply(self._engine.accept(request, anyio.current_time()))
        try:
            return cast("Outcome", await reply.wait())
        except BaseException:
            self._engine.abandon(request)
            raise

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or under way."""
        return not (self._engine.windows or self._engine.batches)

    def retire(self) -> None:
        """End the root task of an idle driver, and leave the loop its connections."""
        self._release = _nothing
        self.stop()

    def stop(self) -> None:
        """Settle every caller and end the root task."""
        self._stopping = True
        self._wake.set()

    async def stopped(self) -> None:
        """Wait for the end of the root task."""
        await self._join()

    async def _run(self) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                while not self._stopping:
                    self._wake = anyio.Event()
                    self._apply(self._engine.wake(anyio.current_time()))
                    while self._calls:
                        tasks.start_soon(self._perform, self._calls.popleft())
                    wakeup = self._engine.next_wakeup()
                    with anyio.CancelScope(deadline=math.inf if wakeup is None else wakeup):
                        await self._wake.wait()
                tasks.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001 -- a defect must not leave callers waiting
            _log.exception("the batching task failed; every waiting call gets the error")
            self._settle_all(CallFailed(error))
        finally:
            self._stopping = True
            self._apply(self._engine.close(anyio.current_time()))
            with anyio.CancelScope(shield=True):
                await self._release()

    def _settle_all(self, outcome: Outcome) -> None:
        for effect in self._engine.close(anyio.current_time()):
            if isinstance(effect, core.Settle):
                effect.request.reply.set(outcome)

    def _apply(self, effects: list[core.Effect]) -> None:
        for effect in effects:
            match effect:
                case core.Settle(request, outcome):
                    request.reply.set(outcome)
                case core.Publish(event):
                    self._publish(event)
                case core.Warn(message):
                    _log.warning("%s", message)
                case core.Rearm():
                    self._wake.set()
                case _:  # a call: only the root's children make them, in no caller's context
                    self._calls.append(effect)
                    self._wake.set()

    async def _perform(self, call: core.Call) -> None:
        try:
            match call:
                case core.Upload(batch):
                    self._report(await self._upstream.upload(batch))
                case core.Create(batch, file_id):
                    self._report(await self._upstream.create(batch, file_id))
                case core.Poll(batch, batch_id):
                    self._report(await self._upstream.poll(batch, batch_id))
                case core.Fetch(batch, file_ids):
                    for file_id in file_ids:
                        async for lines in self._upstream.read_lines(file_id):
                            self._report(core.LinesRead(batch, lines))
                    self._report(core.Fetched(batch))
        except UpstreamError as error:
            self._report(core.StepFailed(call.batch, error.cause, error.passing))
        except Exception as error:  # noqa: BLE001 -- a defect in one batch's call must not end the others
            _log.exception("batch %s: a call failed unexpectedly", call.batch.id)
            self._report(core.StepFailed(call.batch, error, passing=False))

    def _report(self, report: core.Report) -> None:
        self._apply(self._engine.handle(report, anyio.current_time()))
        self._wake.set()  # the next poll may be due before anything that was known until now


async def _nothing() -> None:
    return
