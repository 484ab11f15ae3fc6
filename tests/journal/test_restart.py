"""The same program run again on the same journal: virtual time, and the embedded server in process."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest

from autobatcher import BatchOpenAI, ClientClosedError, RequestFailedError
from autobatcher._http import httpx
from autobatcher.local import LocalBatchAPI, LocalConfig

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")]

Act = Callable[[httpx.Request], "httpx.Response | None"]


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


class Wire(httpx.AsyncBaseTransport):
    """The way to the server: what comes before and after a call of a kind is the test's."""

    def __init__(self, api: LocalBatchAPI) -> None:
        self._inner = httpx.ASGITransport(app=api.app)
        self.calls: Counter[str] = Counter()
        self.before: dict[str, Callable[[], None]] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self.answers: dict[str, httpx.Response] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        kind = kind_of(request)
        self.calls[kind] += 1
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


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", ["upload", "create", "poll", "download"])
async def test_whatever_was_under_way_goes_on(path: Path, stage: str, when: str, *, partial: bool) -> None:
    async with serving(latency_seconds=60, partial_results=partial) as api:
        await stop_at(*client_of(api, path), stage, when)
        client, _ = client_of(api, path)
        async with client:
            results = await ask_all(client, TEXTS)
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert executed(api) == len(TEXTS)


async def test_what_waited_in_its_window_is_sent_by_the_next_run(path: Path) -> None:
    async with serving() as api:
        client, wire = client_of(api, path, batch_window_seconds=60)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_all, client, TEXTS)
            await anyio.sleep(1)
            await client.close()
        assert not wire.calls
        client, _ = client_of(api, path)
        async with client:
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1


async def test_results_that_arrived_while_nobody_was_there(path: Path) -> None:
    async with serving(latency_seconds=60) as api:
        await stop_at(*client_of(api, path), "create", "after")
        await anyio.sleep(3600)
        assert executed(api) == len(TEXTS)
        client, wire = client_of(api, path)
        async with client:
            assert "<two>" in await ask(client, "<two>")
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == len(TEXTS)
        assert not wire.calls["upload"]


async def test_finished_answers_need_no_network(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            first = await ask_all(client, TEXTS)
        client, wire = client_of(api, path)
        async with client:
            assert await ask_all(client, [*reversed(TEXTS)]) == [*reversed(first)]
        assert not wire.calls


async def test_a_lost_creation_is_looked_up_by_the_next_run(path: Path) -> None:
    async with serving(latency_seconds=60) as api:
        client, wire = client_of(api, path)

        wire.answers["list"] = httpx.Response(500)
        await stop_at(client, wire, "create", "after", lost=True)
        client, wire = client_of(api, path)
        async with client:
            results = await ask_all(client, TEXTS)
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert wire.calls["list"]
        assert not wire.calls["create"]
        assert executed(api) == len(TEXTS)


async def test_a_batch_that_the_server_no_longer_knows_is_sent_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="autobatcher")
    async with serving(latency_seconds=60) as old:
        await stop_at(*client_of(old, path), "poll", "after")
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            results = await ask_all(client, TEXTS)
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert executed(api) == len(TEXTS)
    assert "3 requests are sent again" in caplog.text
    assert "no longer knows" in caplog.text


async def test_lines_that_a_batch_fails_for_are_their_callers_after_a_restart_too(path: Path) -> None:
    async with serving() as api:
        client, wire = client_of(api, path)
        await stop_at(client, wire, "create", "after")
        lines = table(path, "SELECT body FROM requests ORDER BY position")  # trio starts tasks in any order
        client, wire = client_of(api, path)
        (batch,) = [batch async for batch in client.batches.list()]
        failed = batch.model_dump() | {
            "status": "failed",
            "output_file_id": None,
            "errors": {"data": [{"code": "bad", "message": "no", "line": 2}]},
        }
        wire.answers["poll"] = httpx.Response(200, json=failed)
        async with client, anyio.create_task_group() as tasks:
            results: list[str | Exception] = []

            async def note() -> None:
                results.extend(await ask_all(client, TEXTS))

            tasks.start_soon(note)
            while not wire.calls["upload"]:  # noqa: ASYNC110 -- virtual time
                await anyio.sleep(1)
            del wire.answers["poll"]
        for text, result in zip(TEXTS, results, strict=True):
            assert isinstance(result, RequestFailedError) if text in lines[1][0] else text in str(result)


async def test_who_leaves_finds_the_answer_at_the_next_call(path: Path) -> None:
    async with serving(latency_seconds=60) as api:
        client, wire = client_of(api, path)
        async with client:
            with anyio.move_on_after(30):
                await ask(client, "<one>")
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1
        assert wire.calls["create"] == 1


async def test_samples_of_one_prompt_stay_as_many(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            await ask_all(client, ["<same>"] * 4)
        assert executed(api) == 4
        client, wire = client_of(api, path)
        async with client:
            await ask_all(client, ["<same>"] * 4)
            assert not wire.calls
            await ask(client, "<same>")
        assert executed(api) == 5


async def test_a_failed_call_gives_its_number_back(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path, max_retries=0)
        async with client:
            for _ in range(2):
                with pytest.raises(openai.BadRequestError):
                    await ask(client, "[[error:400]]")
        async with client_of(api, path)[0] as client:
            with pytest.raises(openai.BadRequestError):
                await ask(client, "[[error:400]]")
        assert executed(api) == 3
    rows = json.loads(json.dumps(table(path, "SELECT n FROM requests")))
    assert rows == [[0]]


def table(path: Path, query: str) -> list[tuple[Any, ...]]:
    import sqlite3  # noqa: PLC0415 -- any client will do

    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


async def test_what_makes_requests_equal(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            await client.post(
                "/chat/completions",
                cast_to=object,
                body={"model": "m", "messages": [{"role": "user", "content": "x"}]},
            )
        client, wire = client_of(api, path, batch_size=7, default_headers={"x-tenant": "other"})
        async with client:
            body: Any = {"messages": [{"content": "x", "role": "user"}], "model": "m"}
            await client.chat.completions.create(**body, extra_headers={"x-other": "1"}, timeout=3)
            assert not wire.calls
            await client.chat.completions.create(**body, temperature=1)
        assert executed(api) == 2
        async with client_of(api, path, base_url="http://other/v1")[0] as other:
            await other.chat.completions.create(**body)
        assert executed(api) == 3


async def test_every_kind_of_call_comes_back(path: Path) -> None:
    async with serving() as api:
        said: list[list[Any]] = []
        for _ in range(2):
            client, wire = client_of(api, path)
            async with client:
                vector = await client.embeddings.create(model="e", input="x")
                response = await client.responses.create(model="r", input="x")
                raw = await client.chat.completions.with_raw_response.create(
                    model="m", messages=[{"role": "user", "content": "x"}]
                )
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "y"}], stream=True
                )
                chunks = [chunk.model_dump() async for chunk in stream]
            said.append([vector.data[0].embedding, response.output_text, raw.request_id, chunks])
        assert said[0] == said[1]
        assert not wire.calls
        assert executed(api) == 4


async def test_copies_use_it_and_the_unbatched_client_does_not(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            await ask(client.with_options(timeout=9), "<one>")
            await ask(client.unbatched, "<one>")
            await ask(client.with_options(journal=None), "<one>")
        assert executed(api) == 2
        assert sum(api.realtime_calls.values()) == 1
        client, wire = client_of(api, path)
        async with client:
            await ask(client, "<one>")
        assert not wire.calls


async def test_closing_may_cancel_and_then_the_next_run_sends_again(path: Path) -> None:
    async with serving(latency_seconds=600) as api:
        client, wire = client_of(api, path, cancel_active_batches_on_close=True)
        await stop_at(client, wire, "poll", "after")
        client, _ = client_of(api, path)
        async with client:
            assert "<one>" in await ask(client, "<one>")
            statuses = [batch.status async for batch in client.batches.list()]
        assert sorted(statuses) == ["cancelled", "completed"]


async def test_a_closed_client_uses_it_no_more(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        await client.close()
        with pytest.raises(ClientClosedError):
            await ask(client, "<one>")
