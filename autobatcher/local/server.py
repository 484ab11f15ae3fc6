"""The server as an object: it owns the store and the tasks that run batches."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from autobatcher._http import httpx
from autobatcher.local.answers import BuiltIn, Upstream
from autobatcher.local.app import build_app
from autobatcher.local.config import LocalConfig
from autobatcher.local.store import Store
from autobatcher.local.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

    from anyio.abc import TaskGroup
    from starlette.applications import Starlette
    from typing_extensions import Self


class LocalBatchAPI:
    """A Batch API in this process.

    While it is entered, batches run; `app` is the ASGI application, and serving it (its lifespan) enters it.

    Args:
        config: The settings.
        upstream_transport: How the upstream is reached, if not over sockets.

    Attributes:
        config: What it was made with.
        app: The ASGI application.
        realtime_calls: Calls to the endpoints that answer at once, by their path at OpenAI.
    """

    def __init__(
        self, config: LocalConfig | None = None, *, upstream_transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.config = LocalConfig() if config is None else config
        self._upstream_transport = upstream_transport
        self.realtime_calls: Counter[str] = Counter()
        self.app: Starlette = build_app(self)
        self._executed: Counter[str] = Counter()
        self._stack: AsyncExitStack | None = None
        self._store: Store | None = None
        self._tasks: TaskGroup | None = None
        self._worker: Worker | None = None
        self.upstream: Upstream | None = None

    @property
    def executed(self) -> Counter[str]:
        """How often a line was answered, by custom_id, since the server was entered."""
        return self._executed

    @property
    def store(self) -> Store:
        """The database of the entered server."""
        if self._store is None:
            raise RuntimeError("The server is not running: use `async with`.")
        return self._store

    async def __aenter__(self) -> Self:
        if self._stack is not None:
            raise RuntimeError("The server is running already.")
        config = self.config
        async with AsyncExitStack() as stack:
            self._store = Store(config.db)
            stack.callback(self._store.close)
            self.upstream = None
            if config.upstream is not None:
                self.upstream = Upstream(config, self._upstream_transport)
                stack.push_async_callback(self.upstream.aclose)
            source = self.upstream or (BuiltIn(config) if config.latency_seconds else None)
            self._worker = Worker(self._store, config, source)
            self._executed = self._worker.executed
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            for batch_id in self._store.unfinished():
                self._tasks.start_soon(self._worker.run, batch_id)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        stack, tasks = self._stack, self._tasks
        self._stack = self._store = self._tasks = self._worker = None
        if stack is None or tasks is None:
            return None
        tasks.cancel_scope.cancel()
        if isinstance(error, Exception):  # not the task group's affair, which would wrap it
            kind = error = traceback = None
        return await stack.__aexit__(kind, error, traceback)

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Starlette's lifespan: the server runs while it is served."""
        async with self:
            yield

    def start(self, batch_id: str) -> None:
        """Run a batch that is in the store."""
        if self._tasks is None or self._worker is None:
            raise RuntimeError("The server is not running: use `async with`.")
        self._tasks.start_soon(self._worker.run, batch_id)

    def cancel(self, batch_id: str) -> None:
        """Stop a batch that the store has as cancelling."""
        if self._worker is not None:
            self._worker.cancel(batch_id)

    def http_client(self, **options: Any) -> httpx.AsyncClient:
        """A client whose calls go straight to `app`; pass it to the SDK as `http_client`."""
        options.setdefault("base_url", f"http://local{self.config.dialect.prefix}")
        options.setdefault("transport", httpx.ASGITransport(app=self.app))
        return httpx.AsyncClient(**options)
