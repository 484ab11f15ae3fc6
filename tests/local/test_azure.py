"""The embedded server as Azure OpenAI, spoken to by the plain SDK."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import openai
import pytest

from autobatcher._http import httpx
from autobatcher.local import LocalBatchAPI, LocalConfig, Serving, serve_in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.anyio

DAY = 24 * 3600
CHAT = "/chat/completions"
MESSAGES: Any = [{"role": "user", "content": "Say it."}]
ENDED = {"completed", "failed", "expired", "cancelled"}


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


real_time = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve_in_thread(LocalConfig(azure=True, api_key="secret")) as serving:
        yield serving


def client_of(serving: Serving, **options: Any) -> openai.AsyncAzureOpenAI:
    settings: dict[str, Any] = {
        "api_key": "secret",
        "azure_endpoint": serving.origin,
        "api_version": "2024-10-21",
    }
    settings = {key: value for key, value in {**settings, **options}.items() if value is not None}
    client: openai.AsyncAzureOpenAI = openai.AsyncAzureOpenAI(**settings, max_retries=0)
    return client


@asynccontextmanager
async def in_process(**options: Any) -> AsyncIterator[tuple[openai.AsyncAzureOpenAI, LocalBatchAPI]]:
    settings = LocalConfig(azure=True, clock=lambda: 1_700_000_000 + anyio.current_time(), **options)
    async with (
        LocalBatchAPI(settings) as api,
        openai.AsyncAzureOpenAI(
            api_key="k",
            azure_endpoint="http://local",
            api_version="2024-10-21",
            http_client=api.http_client(),
            max_retries=0,
        ) as client,
    ):
        yield client, api


def line(custom_id: str, url: str = CHAT, model: str = "deployed", **body: Any) -> bytes:
    content = {"messages": MESSAGES} if url.endswith("completions") else {"input": "Say it."}
    request = {
        "custom_id": custom_id,
        "method": "POST",
        "url": url,
        "body": {"model": model, **content, **body},
    }
    return json.dumps(request).encode() + b"\n"


async def create(
    client: openai.AsyncAzureOpenAI, content: bytes, endpoint: Any = CHAT, **options: Any
) -> Any:
    file = await client.files.create(file=("f.jsonl", content), purpose="batch")
    options = {"completion_window": "24h", **options}
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, **options)


async def finished(client: openai.AsyncAzureOpenAI, batch: Any, *, every: float = 0.05) -> Any:
    while batch.status not in ENDED:
        await anyio.sleep(every)
        batch = await client.batches.retrieve(batch.id)
    return batch


async def read(client: openai.AsyncAzureOpenAI, file_id: str) -> list[dict[str, Any]]:
    content = (await client.files.content(file_id)).content
    return [json.loads(line) for line in content.splitlines()]


@real_time
async def test_a_batch_from_upload_to_download(server: Serving, anyio_backend: str) -> None:
    async with client_of(server) as client:
        content = line("good") + line("bad", messages=[])
        file = await client.files.create(file=("f.jsonl", content), purpose="batch")
        assert (file.status, file.bytes) == ("pending", len(content))
        assert (await client.files.retrieve(file.id)).status == "processed"
        endpoint: Any = CHAT
        batch = await client.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"job": "x"}
        )
        assert (batch.status, batch.endpoint, batch.output_file_id, batch.error_file_id) == (
            "validating",
            CHAT,
            "",
            "",
        )
        assert batch.expires_at == batch.created_at + DAY
        batch = await finished(client, batch)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)
        assert batch.output_file_id
        assert batch.error_file_id
        (answer,) = await read(client, batch.output_file_id)
        assert answer["custom_id"] == "good"
        assert answer["response"]["body"]["model"] == "deployed"
        (error,) = await read(client, batch.error_file_id)
        assert error["response"]["status_code"] == 400
        assert batch.id in [item.id async for item in client.batches.list(limit=1)]
        assert (await client.files.delete(file.id)).deleted


@real_time
@pytest.mark.parametrize("deployment", [None, "mine"])
async def test_realtime_calls_go_to_deployments(
    server: Serving, deployment: str | None, anyio_backend: str
) -> None:
    before = server.api.realtime_calls.copy()
    async with client_of(server, azure_deployment=deployment) as client:
        chat = await client.chat.completions.create(model="a", messages=MESSAGES)
        assert chat.model == (deployment or "a")
        assert chat.choices[0].message.content == "You said: Say it.."
        vectors = await client.embeddings.create(model="a", input="text")
        assert vectors.model == (deployment or "a")
        assert len(vectors.data[0].embedding) == 256
        response = await client.responses.create(model="a", input="Say it.")
        assert response.model == "a"
        assert response.output_text == "You said: Say it.."
        assert [model.id async for model in client.models.list()] == ["local-chat", "local-embedding"]
        batch = await finished(client, await create(client, line("a")))
        assert batch.status == "completed"
    assert server.api.realtime_calls - before == {
        "/v1/chat/completions": 1,
        "/v1/embeddings": 1,
        "/v1/responses": 1,
    }


async def test_streams() -> None:
    async with in_process() as (_, api), api.http_client(params={"api-version": "1"}) as client:
        for path, end in (
            ("deployments/d/chat/completions", b"[DONE]"),
            ("responses", b"response.completed"),
        ):
            body = {"model": "m", "messages": MESSAGES, "input": "Say it.", "stream": True}
            answer = await client.post(path, json=body)
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert end in answer.content


@real_time
async def test_keys_and_tokens(server: Serving, anyio_backend: str) -> None:
    for wrong in ({"api_key": "wrong"}, {"api_key": None, "azure_ad_token": "wrong"}):
        async with client_of(server, **wrong) as client:
            with pytest.raises(openai.AuthenticationError, match="invalid subscription key") as caught:
                await client.models.list()
            assert caught.value.code == "401"
            assert isinstance(caught.value.body, dict)
            assert set(caught.value.body) == {"code", "message"}
    async with client_of(server, api_key=None, azure_ad_token="secret") as client:
        assert (await client.models.list()).data
        assert (await client.chat.completions.create(model="a", messages=MESSAGES)).model == "a"


@real_time
async def test_nothing_is_found_without_a_version_or_elsewhere(server: Serving, anyio_backend: str) -> None:
    version = {"api-version": "2024-10-21"}
    async with httpx.AsyncClient(base_url=server.base_url, headers={"api-key": "secret"}) as client:
        for method, path, query in [
            ("GET", "files", {}),
            ("GET", "files", {"api-version": ""}),
            ("POST", "deployments/a/chat/completions", {}),
            ("GET", "nothing", version),
            ("POST", "chat/completions", version),
            ("DELETE", "batches", version),
        ]:
            answer = await client.request(method, path, params=query)
            assert answer.status_code == 404
            assert answer.json() == {"error": {"code": "404", "message": "Resource not found"}}
            assert answer.headers["x-request-id"]
        assert (await client.get("files", params=version)).status_code == 200
        assert (await client.get(f"{server.origin}/v1/files", params=version)).status_code == 404
        answer = await client.post("files", params=version, files={"file": b""}, data={"purpose": "batch"})
        assert answer.status_code == 201


@pytest.mark.parametrize("endpoint", [CHAT, "/v1/chat/completions", "/responses", "/v1/responses"])
@pytest.mark.parametrize("url", [CHAT, "/v1/chat/completions", "/responses", "/v1/responses"])
@pytest.mark.parametrize("latency", [0, 1])
async def test_the_lines_say_what_they_are_for(endpoint: str, url: str, latency: float) -> None:
    async with in_process(latency_seconds=latency) as (client, _):
        batch = await finished(client, await create(client, line("a", url), endpoint))
        assert (batch.status, batch.endpoint) == ("completed", endpoint)
        (answer,) = await read(client, batch.output_file_id)
        expected = "chat.completion" if url.endswith("completions") else "response"
        assert answer["response"]["body"]["object"] == expected
        assert await read(client, batch.error_file_id) == []


@pytest.mark.parametrize(
    ("content", "codes"),
    [
        (line("a", model="one") + line("b", model="two"), ["model_mismatch"]),
        (line("a") + line("b", "/v1/chat/completions"), ["url_mismatch"]),
        (line("a") + line("b", "/v1/responses"), ["url_mismatch"]),
        (line("a", "/embeddings"), ["url_mismatch"]),
        (line("a") + line("a"), ["duplicate_custom_id"]),
        (line(""), ["invalid_request"]),
        (b"", ["empty_file"]),
    ],
)
async def test_bad_inputs(content: bytes, codes: list[str]) -> None:
    async with in_process() as (client, api):
        batch = await finished(client, await create(client, content))
        assert batch.status == "failed"
        assert batch.errors.data is not None
        assert [error.code for error in batch.errors.data] == codes
        assert not api.executed


async def test_bad_batches() -> None:
    async with in_process() as (client, _):
        for options in (
            {"endpoint": "/embeddings"},
            {"endpoint": "/v1/embeddings"},
            {"endpoint": ["x"]},
            {"completion_window": "1h"},
            {"completion_window": ["24h"]},
        ):
            with pytest.raises(openai.BadRequestError):
                await create(client, line("a"), **options)


async def test_batches_do_not_expire() -> None:
    async with in_process(latency_seconds=30 * 3600, concurrency=1) as (client, api):
        # The SDK looks up the platform in a thread before its first call, which takes real time, not virtual.
        await client.models.list()
        batch = await create(client, line("a") + line("b"))
        await anyio.sleep(2 * DAY)
        batch = await client.batches.retrieve(batch.id)
        assert batch.status == "in_progress"
        assert batch.output_file_id == ""
        batch = await finished(client, batch, every=600)
        assert batch.status == "completed"
        assert batch.completed_at is not None
        assert batch.completed_at >= batch.created_at + 60 * 3600
        assert api.executed == {"a": 1, "b": 1}


async def test_cancelling() -> None:
    async with in_process(latency_seconds=10, concurrency=1) as (client, _):
        await client.models.list()
        batch = await create(client, line("a") + line("b"))
        await anyio.sleep(15)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        batch = await finished(client, batch)
        assert batch.status == "cancelled"
        assert len(await read(client, batch.output_file_id)) == 1


@real_time
async def test_an_upstream_is_spoken_to_as_always(anyio_backend: str) -> None:
    with serve_in_thread(LocalConfig(api_key="up")) as upstream:
        config = LocalConfig(azure=True, upstream=upstream.base_url, upstream_key="up")
        with serve_in_thread(config) as serving:
            async with client_of(serving) as client:
                for url in (CHAT, "/v1/responses"):
                    batch = await finished(client, await create(client, line("a", url)))
                    (answer,) = await read(client, batch.output_file_id)
                    assert answer["response"]["body"]["model"] == "deployed"
                chat = await client.chat.completions.create(model="meta/llama", messages=MESSAGES)
                assert chat.model == "meta/llama"
                assert (await client.embeddings.create(model="a", input="text")).model == "a"
        assert upstream.api.realtime_calls == {
            "/v1/chat/completions": 2,
            "/v1/responses": 1,
            "/v1/embeddings": 1,
        }


def test_addresses() -> None:
    for azure, path in ((False, "/v1"), (True, "/openai")):
        with serve_in_thread(LocalConfig(azure=azure)) as serving:
            assert serving.base_url == serving.origin + path
            assert serving.origin.startswith("http://127.0.0.1:")


def test_the_command_says_what_to_point_the_sdk_at() -> None:
    command = [sys.executable, "-m", "autobatcher", "local", "--azure", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            endpoint = process.stderr.readline().split("azure_endpoint=")[1].split()[0]
            with openai.AzureOpenAI(api_key="k", azure_endpoint=endpoint, api_version="2024-10-21") as client:
                assert client.models.list().data
        finally:
            process.terminate()
