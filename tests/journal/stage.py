"""Programs with a journal on the embedded server in process, in virtual time; what happens on the way is the test's."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import openai

from autobatcher import BatchOpenAI
from autobatcher._http import httpx
from autobatcher.local import LocalBatchAPI, LocalConfig


class Wire(httpx.AsyncBaseTransport):
    """The way to the server: what comes before and after a call of a kind is the test's."""

    def __init__(self, api: LocalBatchAPI) -> None:
        self._inner = httpx.ASGITransport(app=api.app)
        self.calls: Counter[str] = Counter()
        self.before: dict[str, Callable[[], None]] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self.answers: dict[str, httpx.Response] = {}
        self.seconds: dict[str, float] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        kind = kind_of(request)
        self.calls[kind] += 1
        await anyio.sleep(self.seconds.get(kind, 0))
        if kind in self.answers:
            return self.answers[kind]
        self.before.get(kind, lambda: None)()
        response = await self._inner.handle_async_request(request)
        await response.aread()
        self.after.get(kind, lambda: None)()
        return response


def kind_of(request: httpx.Request) -> str:
    match [request.method, *request.url.path.strip("/").split("/")[1:]]:
        case ["POST", "files"]:
            return "upload"
        case ["POST", "batches"]:
            return "create"
        case ["GET", "batches"]:
            return "list"
        case ["GET", "batches", _]:
            return "poll"
        case ["GET", "files", _, "content"]:
            return "download"
    return "other"


@asynccontextmanager
async def serving(**config: Any) -> AsyncIterator[LocalBatchAPI]:
    settings = LocalConfig(clock=lambda: 1_700_000_000 + anyio.current_time(), **config)
    async with LocalBatchAPI(settings) as api:
        yield api


def client_of(api: LocalBatchAPI, path: Any, **options: Any) -> tuple[BatchOpenAI, Wire]:
    wire = Wire(api)
    http_client = httpx.AsyncClient(transport=wire)
    client = BatchOpenAI(
        **{
            "api_key": "k",
            "base_url": "http://local/v1",
            "http_client": http_client,
            "journal": path,
            **options,
        }
    )
    client._platform = "Unknown"  # else the SDK looks it up in a thread, which takes real time
    return client, wire


async def ask(client: openai.AsyncOpenAI, text: str, model: str = "m") -> str:
    answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return str(answer.choices[0].message.content)


async def ask_all(client: openai.AsyncOpenAI, texts: list[str]) -> list[str | Exception]:
    results: list[str | Exception] = [ValueError()] * len(texts)

    async def note(index: int, text: str) -> None:
        try:
            results[index] = await ask(client, text)
        except Exception as error:  # noqa: BLE001 -- returned to the test
            results[index] = error

    async with anyio.create_task_group() as tasks:
        for index, text in enumerate(texts):
            tasks.start_soon(note, index, text)
    return results


TEXTS = ["<one>", "<two>", "<three>"]


def executed(api: LocalBatchAPI) -> int:
    return sum(api.executed.values())


async def stop_at(client: BatchOpenAI, wire: Wire, stage: str, when: str, *, lost: bool = False) -> None:
    """Run the program, and close the client when a call of a kind goes out, or when its answer is there, or lost."""
    stop = anyio.Event()

    def reached() -> None:
        stop.set()
        if lost:
            raise httpx.ReadError("the connection is lost")

    getattr(wire, when)[stage] = reached

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask_all, client, TEXTS)
        await stop.wait()
        await client.close()


def table(path: Path, query: str) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()
