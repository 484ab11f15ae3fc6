"""A proxy on loopback in front of the embedded server, whose answers can be held back."""

from __future__ import annotations

import asyncio
import json
import selectors
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from autobatcher._http import httpx
from autobatcher.local import LocalConfig
from autobatcher.local import Serving as Upstream
from autobatcher.local import serve_in_thread as local_in_thread
from autobatcher.local.answers import answer_now
from autobatcher.serve import ServeConfig, Serving, serve_in_thread
from autobatcher.serving import listen, running_in_thread, settings

SOON = 60.0
"""Seconds by which what is to happen has happened, on a slow machine."""

QUICK = {"batch_window_seconds": 0.05, "poll_interval_seconds": 0.05}


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, f"not yet: {what}"
        time.sleep(0.01)


class _AtOnce(selectors.DefaultSelector):
    """Waits for nothing: when nothing is ready, the time is what was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout else timeout)
        if not ready and timeout:
            self.passed += timeout
        return ready


def in_virtual_time(main: Coroutine[Any, Any, None]) -> None:
    """Run it in a loop whose clock goes on when there is nothing else to do; all sockets are to be its own."""
    selector = _AtOnce()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.passed  # type: ignore[method-assign] # of this loop only
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


class Model:
    """A model that answers when it may, and counts what it was asked."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.asked: Counter[str] = Counter()
        self._unlimited = anyio.CapacityLimiter(1000)
        self.app = Starlette(routes=[Route("/v1/{path:path}", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked[prompt_of(body)] += 1
        await anyio.to_thread.run_sync(self.may_answer.wait, limiter=self._unlimited)
        status, answered, _ = answer_now(f"/v1/{request.path_params['path']}", body, now=int(time.time()))
        return JSONResponse(answered, status)


def prompt_of(body: dict[str, Any]) -> str:
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    return str(body["input"])


class Held:
    """An upstream whose batches go on until their model may answer."""

    def __init__(self, model: Model, upstream: Upstream) -> None:
        self.model = model
        self.upstream = upstream

    @property
    def base_url(self) -> str:
        return self.upstream.base_url

    def asked(self, prompt: str, times: int = 1) -> None:
        """Wait until the model was asked this, so often."""
        until(lambda: self.model.asked[prompt] >= times, f"{prompt!r} was asked {times} times")

    def answer(self) -> None:
        self.model.may_answer.set()


@pytest.fixture
def held() -> Iterator[Held]:
    model = Model()
    listener, origin = listen("127.0.0.1", 0)
    with ExitStack() as stack:
        stack.enter_context(listener)
        server = uvicorn.Server(settings(model.app, stop_seconds=1))
        stack.enter_context(running_in_thread(server, listener, "model"))
        stack.callback(model.may_answer.set)  # else batches hold up the end
        config = LocalConfig(upstream=f"{origin}/v1", upstream_key="none")
        yield Held(model, stack.enter_context(local_in_thread(config)))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with local_in_thread(LocalConfig()) as serving:
        yield serving


@contextmanager
def proxy(upstream: Held | Upstream | str, **options: Any) -> Iterator[Serving]:
    """A proxy in this process, in front of an upstream or of what has that base URL."""
    base_url = upstream if isinstance(upstream, str) else upstream.base_url
    options.setdefault("grace_seconds", 0.2)
    options["options"] = QUICK | options.get("options", {})
    with serve_in_thread(ServeConfig(base_url=base_url, **options)) as serving:
        yield serving


def chat(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"model": "local-chat", "messages": [{"role": "user", "content": prompt}], **fields}


def metrics(serving: Serving) -> dict[str, float]:
    """Each sample of /metrics, by its name and labels."""
    text = httpx.get(f"{serving.origin}/metrics", timeout=SOON).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}
