"""The client for Azure on the embedded server, which speaks as Azure does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anyio
import openai
import pytest
from openai.types.chat import ChatCompletion

from autobatcher import BatchAzureOpenAI
from autobatcher.local import LocalConfig, Serving, serve_in_thread

pytestmark = pytest.mark.anyio

MESSAGES: Any = [{"role": "user", "content": "<hello>"}]


@pytest.fixture
def server() -> Iterator[Serving]:
    with serve_in_thread(LocalConfig(azure=True, api_key="right")) as serving:
        yield serving


def client_for(server: Serving, **options: Any) -> BatchAzureOpenAI:
    settings: dict[str, Any] = {
        "azure_endpoint": server.origin,
        "api_version": "2024-10-21",
        "api_key": "right",
        "batch_window_seconds": 0.1,
        "poll_interval_seconds": 0.02,
    }
    return BatchAzureOpenAI(**{**settings, **options})


async def lines_of(client: openai.AsyncAzureOpenAI) -> list[list[dict[str, Any]]]:
    """The lines of each batch's input, oldest batch first."""
    files = []
    async for batch in client.batches.list():
        content = await client.files.content(batch.input_file_id)
        files.append([json.loads(line) for line in content.content.splitlines()])
    return files[::-1]


async def test_models_are_deployments_and_share_batches(server: Serving) -> None:
    async with client_for(server) as client:
        assert isinstance(client, openai.AsyncAzureOpenAI)
        answers: list[str] = []

        async def ask(deployment: str, text: str) -> None:
            messages: Any = [{"role": "user", "content": text}]
            answer = await client.chat.completions.create(model=deployment, messages=messages)
            assert text in str(answer.choices[0].message.content)
            answers.append(answer.model)

        async with anyio.create_task_group() as tasks:
            for n in range(6):
                tasks.start_soon(ask, f"deployment-{n % 2}", f"<{n}>")
        files = await lines_of(client)
    assert sorted(answers) == ["deployment-0"] * 3 + ["deployment-1"] * 3
    assert sorted(len(lines) for lines in files) == [3, 3]
    assert {line["url"] for lines in files for line in lines} == {"/chat/completions"}
    assert not server.api.realtime_calls


@pytest.mark.parametrize("how", ["azure_deployment", "base_url"])
async def test_a_client_of_one_deployment_uses_it_whatever_the_model(server: Serving, how: str) -> None:
    place: dict[str, Any] = (
        {"azure_deployment": "mine"}
        if how == "azure_deployment"
        else {"azure_endpoint": None, "base_url": f"{server.origin}/openai/deployments/mine"}
    )
    async with client_for(server, **place) as client:
        copy = client.with_options(timeout=30)
        answer = await copy.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert answer.model == "mine"
        urgent = await client.unbatched.chat.completions.create(model="gpt-4o", messages=MESSAGES)
        assert urgent.model == "mine"
        assert [[line["body"]["model"] for line in lines] for lines in await lines_of(client)] == [["mine"]]
    assert server.api.realtime_calls.total() == 1


# The SDK stops reading at [DONE] and leaves its generators open, of which trio complains.
@pytest.mark.filterwarnings(
    "ignore:Async generator:ResourceWarning",
    "ignore:.*async_generator object:pytest.PytestUnraisableExceptionWarning",
)
async def test_streams_raw_responses_and_responses(server: Serving) -> None:
    async with client_for(server) as client:
        stream = await client.chat.completions.create(model="d", messages=MESSAGES, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        assert "<hello>" in text
        raw = await client.chat.completions.with_raw_response.create(model="d", messages=MESSAGES)
        assert raw.http_request.url.path == "/openai/deployments/d/chat/completions"
        assert raw.http_request.url.params["api-version"] == "2024-10-21"
        response = await client.responses.create(model="d", input="<hello>")
        assert "<hello>" in response.output_text
    assert not server.api.realtime_calls


async def test_entra_tokens_are_asked_for_by_http_calls_alone(server: Serving) -> None:
    asked: list[str] = []

    async def token() -> str:
        asked.append("")
        return "right"

    async with client_for(server, api_key=None, azure_ad_token_provider=token) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(lambda: client.chat.completions.create(model="d", messages=MESSAGES))
        calls = len(asked)
        assert len([batch async for batch in client.batches.list()]) == 1
    assert 4 <= calls < 50  # upload, creation, polls and a download
    async with client_for(server, api_key=None, azure_ad_token="right") as client:
        await client.chat.completions.create(model="d", messages=MESSAGES)


async def test_a_wrong_key_and_embeddings_raise_what_azure_says(server: Serving) -> None:
    async with client_for(server, api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="Access denied"):
            await client.chat.completions.create(model="d", messages=MESSAGES)
    async with client_for(server) as client:
        with pytest.raises(openai.BadRequestError):
            await client.embeddings.create(model="d", input="x")
        assert not server.api.realtime_calls
        await client.unbatched.embeddings.create(model="d", input="x")


async def test_copies_with_another_token_are_another_sender(server: Serving) -> None:
    async with client_for(server, api_key=None, azure_ad_token="right") as client:
        same = client.with_options(max_retries=0)
        other = client.with_options(azure_ad_token="another")
        async with anyio.create_task_group() as tasks:
            for sender in (client, same):
                tasks.start_soon(lambda it: it.chat.completions.create(model="d", messages=MESSAGES), sender)
        assert len([batch async for batch in client.batches.list()]) == 1
        with pytest.raises(openai.AuthenticationError):
            await other.chat.completions.create(model="d", messages=MESSAGES)


async def test_a_path_that_names_the_deployment_is_batched_as_well(server: Serving) -> None:
    async with client_for(server) as client:
        answer = await client.post(
            "/deployments/by-hand/chat/completions", body={"messages": MESSAGES}, cast_to=ChatCompletion
        )
    assert answer.model == "by-hand"
    assert not server.api.realtime_calls
