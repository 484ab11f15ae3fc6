"""The client on the embedded server in process, where hours cost nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from autobatcher import BatchError, BatchOpenAI, ClientClosedError, RequestTooLargeError
from autobatcher.local import LocalBatchAPI, LocalConfig

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


@asynccontextmanager
async def running(
    config: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[BatchOpenAI, Any]]:
    settings = LocalConfig(clock=lambda: 1_700_000_000 + anyio.current_time(), **(config or {}))
    async with (
        LocalBatchAPI(settings) as api,
        BatchOpenAI(
            api_key="k", base_url="http://local/v1", http_client=api.http_client(), **options
        ) as client,
    ):
        # The SDK looks up the platform in a thread before its first call, which takes real time, not virtual.
        await client.models.list()
        yield client, api


async def ask(client: BatchOpenAI, text: str, model: str = "m") -> str:
    answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return str(answer.choices[0].message.content)


async def test_a_lone_request_goes_out_when_its_window_closes() -> None:
    async with running(batch_window_seconds=30) as (client, _):
        started = anyio.current_time()
        assert "hello" in await ask(client, "hello")
        assert 30 <= anyio.current_time() - started <= 60


async def test_twenty_hours_of_polling() -> None:
    async with running({"latency_seconds": 20 * 3600}) as (client, _):
        started = anyio.current_time()
        assert "hello" in await ask(client, "hello")
        assert 20 * 3600 <= anyio.current_time() - started <= 20 * 3600 * 1.02 + 60


async def test_a_request_that_expires_again_and_again_fails_its_caller_in_the_end() -> None:
    async with running({"latency_seconds": 30 * 3600}) as (client, _):
        with pytest.raises(BatchError, match="expired") as caught:
            await ask(client, "hello")
        batches = [batch async for batch in client.batches.list()]
        assert 2 <= len(batches) <= 10
        assert {batch.status for batch in batches} == {"expired"}
        assert caught.value.batch_id == batches[0].id  # the newest


async def test_a_slow_batch_holds_up_no_other() -> None:
    async with running({"latency_seconds": 3600, "concurrency": 1}, batch_window_seconds=1) as (client, api):
        done: list[str] = []

        async def note(text: str, model: str) -> None:
            await ask(client, text, model)
            done.append(text)

        async with anyio.create_task_group() as tasks:
            for n in range(5):
                tasks.start_soon(note, f"slow {n}", "a")
            await anyio.sleep(10)
            tasks.start_soon(note, "late", "b")
            await anyio.sleep(10)
            assert len([batch async for batch in client.batches.list()]) == 2
        assert sorted(done) == ["late", *(f"slow {n}" for n in range(5))]
        assert sum(api.executed.values()) == 6


async def test_a_caller_that_leaves_early_is_not_sent() -> None:
    async with running(batch_window_seconds=10) as (client, api):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client, "stays")
            with anyio.move_on_after(1):
                await ask(client, "leaves")
        assert sum(api.executed.values()) == 1


async def test_batch_size_closes_a_window_at_once() -> None:
    async with running(batch_size=4, batch_window_seconds=3600) as (client, _):
        started = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for n in range(8):
                tasks.start_soon(ask, client, str(n))
        assert anyio.current_time() - started < 3600
        assert len([batch async for batch in client.batches.list()]) == 2


async def test_too_many_inputs_for_any_file_fail_at_their_own_call() -> None:
    async with running() as (client, api):
        with pytest.raises(RequestTooLargeError, match="50,001 inputs"):
            await client.embeddings.create(model="e", input=["x"] * 50_001)
        assert "fine" in await ask(client, "fine")
        assert sum(api.executed.values()) == 1


async def test_metadata_and_window_reach_the_server() -> None:
    async with running(completion_window="1h", batch_metadata={"job": "x"}) as (client, _):
        await ask(client, "hello")
        (batch,) = [batch async for batch in client.batches.list()]
        assert batch.metadata == {"job": "x"}
        assert batch.completion_window == "1h"
        listed = await client.files.retrieve(batch.input_file_id)
        assert listed.purpose == "batch"


async def test_calls_of_several_senders_that_are_made_before_any_is_awaited() -> None:
    async with running() as (client, api):
        assert "warm" in await ask(client, "warm")
        senders = [client, client.with_options(completion_window="1h"), client]
        said: Any = [{"role": "user", "content": "hello"}]
        calls = [sender.chat.completions.create(model="m", messages=said) for sender in senders]
        answers: list[Any] = []

        async def note(call: Any) -> None:
            answers.append(await call)

        async with anyio.create_task_group() as tasks:
            for call in calls:
                tasks.start_soon(note, call)
        assert ["hello" in str(answer.choices[0].message.content) for answer in answers] == [True] * 3
        assert sum(api.executed.values()) == 4


async def test_closing_reaches_a_call_whose_sender_had_rested() -> None:
    async with running({"latency_seconds": 3600}) as (client, _):
        said: Any = [{"role": "user", "content": "hello"}]
        call = client.chat.completions.create(model="m", messages=said)
        client.with_options(completion_window="1h").chat.completions.create(model="m", messages=said).close()
        errors: list[Exception] = []

        async def note() -> None:
            with pytest.raises(ClientClosedError) as caught:
                await call
            errors.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(note)
            await anyio.sleep(60)
            await client.close()
        assert "goes on at the server" in str(errors[0])
