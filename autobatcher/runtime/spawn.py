"""The only place that knows asyncio from trio."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import sniffio

if TYPE_CHECKING:
    import trio

T = TypeVar("T")


def current_loop() -> Any:
    """A hashable that stands for the running event loop; None outside of one."""
    if sniffio.thread_local.name == "trio":  # which trio sets while its tasks run, also as a guest of asyncio
        return _trio().lowlevel.current_trio_token()
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def is_dead(loop: Any) -> bool:
    """Whether this loop (from `current_loop`) will never run again."""
    if isinstance(loop, asyncio.AbstractEventLoop):
        return loop.is_closed()
    try:
        loop.run_sync_soon(_nothing)
    except Exception:  # noqa: BLE001 -- RunFinishedError; importing trio's name for it is not worth it
        return True
    return False


def call_soon_in(loop: Any, function: Callable[[], object]) -> None:
    """Have another thread's loop call `function`; a loop that is over is left alone."""
    schedule = (
        loop.call_soon_threadsafe if isinstance(loop, asyncio.AbstractEventLoop) else loop.run_sync_soon
    )
    try:
        schedule(function)
    except Exception:  # noqa: BLE001 -- closed in the meantime: nothing is left to be told
        return


class Reply(Protocol[T]):
    """What one caller waits for: set at most once, in the loop of the waiter."""

    def set(self, value: T) -> None:
        """Wake the waiter; of no effect when it has gone, or there is a value."""

    def wait(self) -> Awaitable[T]:
        """The value, as soon as it is set."""


class _AsyncioReply(asyncio.Future[Any]):
    """A future with another face: a wrapper around one would cost each waiting call its memory."""

    __slots__ = ()

    def set(self, value: Any) -> None:
        if not self.done():
            self.set_result(value)

    def wait(self) -> Awaitable[Any]:
        return self


class _TrioReply:
    __slots__ = ("_set", "_task", "_value")

    def __init__(self) -> None:
        self._set = False
        self._task: trio.lowlevel.Task | None = None
        self._value: Any = None

    def set(self, value: Any) -> None:
        if self._set:
            return
        self._value = value
        self._set = True
        if self._task is not None:
            _trio().lowlevel.reschedule(self._task)
            self._task = None

    async def wait(self) -> Any:
        lowlevel = _trio().lowlevel
        if self._set:
            await lowlevel.checkpoint()
            return self._value

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._task = None
            aborted: trio.lowlevel.Abort = lowlevel.Abort.SUCCEEDED
            return aborted

        self._task = lowlevel.current_task()
        await lowlevel.wait_task_rescheduled(abort)
        return self._value


def replies() -> Callable[[], Reply[Any]]:
    """Makes replies for the current backend."""
    if sniffio.current_async_library() == "trio":
        return _TrioReply
    return functools.partial(_AsyncioReply, loop=asyncio.get_running_loop())


def clock() -> Callable[[], float]:
    """Tells the time of the running event loop, in seconds."""
    if sniffio.current_async_library() == "trio":
        now: Callable[[], float] = _trio().current_time
        return now
    return asyncio.get_running_loop().time


def spawn_root(function: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """Start a task that belongs to no caller: it outlives the one that starts it and inherits no context.

    `function` must not raise: under trio that would end the program. Returns a function that waits for its end.
    """
    if sniffio.current_async_library() == "trio":
        return _spawn_trio(function)

    async def run() -> None:
        await function()

    loop = asyncio.get_running_loop()
    task = contextvars.Context().run(loop.create_task, run())

    async def join() -> None:
        await asyncio.wait({task})

    return join


def _spawn_trio(function: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    trio = _trio()
    done = trio.Event()

    async def run() -> None:
        try:
            await function()
        finally:
            done.set()

    trio.lowlevel.spawn_system_task(run)
    join: Callable[[], Awaitable[None]] = done.wait
    return join


def _trio() -> Any:
    return sys.modules["trio"]  # running under it, so it is loaded


def _nothing() -> None:
    return None
