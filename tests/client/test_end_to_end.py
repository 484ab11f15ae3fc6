"""The client over real HTTP on loopback against the embedded server."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest

from autobatcher import AsyncOpenAI, BatchFailedError, BatchOpenAI, ClientClosedError
from autobatcher._http import httpx
from autobatcher.local import LocalConfig, Serving, serve_in_thread

pytestmark = pytest.mark.anyio

FAST: dict[str, Any] = {"batch_window_seconds": 0.2, "poll_interval_seconds": 0.02}


@pytest.fixture(params=[False, True], ids=["openai-like", "partial-results"])
def server(request: pytest.FixtureRequest) -> Iterator[Serving]:
    with serve_in_thread(LocalConfig(partial_results=request.param)) as serving:
        yield serving


@pytest.fixture
def plain_server() -> Iterator[Serving]:
    with serve_in_thread(LocalConfig()) as serving:
        yield serving


def client_for(server: Serving, **options: Any) -> BatchOpenAI:
    return BatchOpenAI(**{"api_key": "k", "base_url": server.base_url, **FAST, **options})


async def gather(*calls: Any) -> list[Any]:
    """asyncio.gather on either backend; exceptions are returned."""
    results: list[Any] = [None] * len(calls)

    async def run(index: int, call: Any) -> None:
        try:
            results[index] = await call
        except Exception as error:  # noqa: BLE001 -- returned to the test
            results[index] = error

    async with anyio.create_task_group() as tasks:
        for index, call in enumerate(calls):
            tasks.start_soon(run, index, call)
    return results


def ask(client: openai.AsyncOpenAI, text: str, **more: Any) -> Any:
    return client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **more)


async def test_a_thousand_calls_need_at_most_two_uploads_per_endpoint_and_model(server: Serving) -> None:
    async with client_for(server) as client:
        assert isinstance(client, openai.AsyncOpenAI)
        chats = [ask(client, f"question <{n}>") for n in range(900)]
        others = [
            client.chat.completions.create(model="other", messages=[{"role": "user", "content": f"<{n}>"}])
            for n in range(50)
        ]
        vectors = [client.embeddings.create(model="e", input=f"text {n}") for n in range(30)]
        responses = [client.responses.create(model="r", input=f"input <{n}>") for n in range(20)]
        results = await gather(*chats, *others, *vectors, *responses)
        batches = [batch async for batch in client.batches.list()]
    for n, chat in enumerate(results[:900]):
        assert f"<{n}>" in chat.choices[0].message.content
        assert isinstance(chat, openai.types.chat.ChatCompletion)
        assert chat._request_id
    for n, chat in enumerate(results[900:950]):
        assert f"<{n}>" in chat.choices[0].message.content
    assert len({tuple(vector.data[0].embedding) for vector in results[950:980]}) == 30
    for n, response in enumerate(results[980:]):
        assert f"<{n}>" in response.output_text
    keys = Counter(batch.endpoint for batch in batches)
    assert sum(batch.request_counts.total for batch in batches if batch.request_counts) == 1000
    assert keys["/v1/embeddings"] <= 2
    assert keys["/v1/responses"] <= 2
    assert keys["/v1/chat/completions"] <= 4  # two models
    assert not server.api.realtime_calls


async def test_tools_and_structured_outputs(server: Serving) -> None:
    schema: Any = {
        "type": "json_schema",
        "json_schema": {
            "name": "x",
            "schema": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        },
    }
    tool: Any = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
    }
    async with client_for(server) as client:
        structured, called = await gather(
            ask(client, "x", response_format=schema), ask(client, "y", tools=[tool])
        )
        assert '"a"' in structured.choices[0].message.content
        message = called.choices[0].message
        assert message.tool_calls[0].function.name == "f"
        result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "<the result>"}
        user: Any = {"role": "user", "content": "y"}
        final = await client.chat.completions.create(
            model="m", messages=[user, message, result], tools=[tool]
        )
    assert "<the result>" in str(final.choices[0].message.content)


async def test_a_failed_line_raises_for_its_caller_alone_what_realtime_raises(server: Serving) -> None:
    async with (
        client_for(server, max_retries=0) as client,
        openai.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0) as realtime,
    ):
        texts = ["fine", "[[error:429]]", "[[error:400]]", "[[error:500]]", "fine too"]
        batched = await gather(*(ask(client, text) for text in texts))
        direct = await gather(*(ask(realtime, text) for text in texts))
    for got, expected in zip(batched, direct, strict=True):
        assert type(got) is type(expected)
        if isinstance(expected, openai.APIStatusError):
            assert (got.status_code, got.code, got.body, got.message) == (
                expected.status_code,
                expected.code,
                expected.body,
                expected.message,
            )
            assert got.request_id
            assert got.response.json() == expected.response.json()
    assert [type(got) for got in batched[1:4]] == [
        openai.RateLimitError,
        openai.BadRequestError,
        openai.InternalServerError,
    ]


async def test_a_batch_that_fails_as_a_whole_says_why(plain_server: Serving) -> None:
    with serve_in_thread(LocalConfig(max_file_lines=2)) as small:
        async with client_for(small) as client:
            results = await gather(*(ask(client, str(n)) for n in range(3)))
    for error in results:
        assert isinstance(error, BatchFailedError)
        assert isinstance(error, openai.APIError)
        assert error.status == "failed"
        assert error.batch_id
        assert error.batch_id in str(error)
        assert error.errors[0].message
        assert error.errors[0].message in str(error)
    assert len({id(error) for error in results}) == 3


async def test_an_upload_that_is_refused_raises_the_same_error_for_each_caller() -> None:
    with serve_in_thread(LocalConfig(api_key="right")) as server:
        async with client_for(server, api_key="wrong") as client:
            results = await gather(*(ask(client, str(n)) for n in range(3)))
    assert [type(error) for error in results] == [openai.AuthenticationError] * 3
    assert len({id(error) for error in results}) == 3


async def test_without_async_with_and_with_an_http_client(plain_server: Serving) -> None:
    seen: list[str] = []

    async def note(request: httpx.Request) -> None:
        seen.append(request.url.path)

    http_client = httpx.AsyncClient(event_hooks={"request": [note]})
    client = client_for(plain_server, http_client=http_client)
    answer = await ask(client, "<hello>")
    assert "<hello>" in answer.choices[0].message.content
    assert "/v1/files" in seen
    await client.close()
    assert http_client.is_closed
    assert client.is_closed()


async def test_closing_settles_who_still_waits(anyio_backend: Any) -> None:
    with serve_in_thread(LocalConfig(latency_seconds=60)) as slow:
        client = client_for(slow, batch_window_seconds=0.05)
        errors: list[Exception] = []

        async def wait(text: str) -> None:
            try:
                await ask(client, text)
            except ClientClosedError as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for n in range(3):
                tasks.start_soon(wait, str(n))
            while not [batch async for batch in client.batches.list()]:  # noqa: ASYNC110 -- over HTTP
                await anyio.sleep(0.02)
            await anyio.sleep(0.1)
            await client.close()
        assert len(errors) == 3
        assert all("closed" in str(error) for error in errors)
        with pytest.raises(ClientClosedError):
            await ask(client, "late")


async def test_other_calls_are_the_sdks_own(plain_server: Serving) -> None:
    async with client_for(plain_server) as client:
        models = [model.id async for model in client.models.list()]
        file = await client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
        await client.files.delete(file.id)
    assert models


async def test_the_log_names_batches_and_no_keys_or_prompts(
    plain_server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="autobatcher")
    async with client_for(plain_server, api_key="very-secret-key") as client:
        await ask(client, "very private prompt")
    lines = [record for record in caplog.records if record.name == "autobatcher"]
    assert [record.levelno for record in lines if record.levelno != logging.DEBUG] == [logging.INFO] * 2
    assert "submitted" in lines[0].message
    assert {"completed: 1 of 1 completed, 0 failed" in line.message for line in lines[1:-1]} >= {True}
    assert "1 answered, 0 failed" in lines[-1].message
    assert "very" not in caplog.text


def test_one_client_in_one_event_loop_after_another(plain_server: Serving) -> None:
    client = AsyncOpenAI(api_key="k", base_url=plain_server.base_url, **FAST)

    async def work(text: str) -> str:
        await client.models.list()
        answers = await asyncio.gather(*(ask(client, f"{text} {n}") for n in range(5)))
        return str(answers[3].choices[0].message.content)

    for text in ("<first>", "<second>", "<third>"):
        assert f"{text} 3" in asyncio.run(work(text))
        gc.collect()

    async def end() -> None:
        await client.close()

    asyncio.run(end())
    gc.collect()


async def test_a_copy_shares_its_parents_batches_and_leaves_it_open(plain_server: Serving) -> None:
    async with client_for(plain_server) as client:
        copy = client.with_options(max_retries=0, timeout=30)
        first, second = await gather(ask(client, "<one>"), ask(copy, "<two>"))
        await copy.close()
        third = await ask(client, "<three>")
        batches = [batch async for batch in client.batches.list()]
    assert "<one>" in first.choices[0].message.content
    assert "<two>" in second.choices[0].message.content
    assert "<three>" in third.choices[0].message.content
    assert len(batches) == 2
