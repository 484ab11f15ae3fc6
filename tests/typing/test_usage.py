"""The client as users write it, for type checkers and at run time: the static types are those of the SDK's client.

mypy and pyright check what `assert_type` says, and that each `type: ignore` is needed; the tests run the same lines.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Literal

import openai
import pydantic
import pytest
from openai import AsyncStream
from openai._legacy_response import LegacyAPIResponse
from openai.types import CreateEmbeddingResponse
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessageParam,
    ParsedChatCompletion,
)
from openai.types.responses import ParsedResponse, Response, ResponseStreamEvent
from typing_extensions import assert_type

from autobatcher import AsyncOpenAI, BatchAzureOpenAI, BatchOpenAI
from autobatcher._http import httpx
from autobatcher.local import LocalBatchAPI

# The SDK leaves its stream's generators to the garbage collector, of which trio warns, for realtime streams as well.
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")]

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "weather?"}]


class Weather(pydantic.BaseModel):
    city: str
    celsius: float


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


@pytest.fixture
async def client() -> AsyncIterator[BatchOpenAI]:
    async with LocalBatchAPI() as api:
        async with BatchOpenAI(
            api_key="k", base_url="http://local/v1", http_client=api.http_client()
        ) as client:
            await client.models.list()  # the SDK looks up the platform in a thread, in real time
            yield client
        assert not api.realtime_calls


async def test_chat(client: BatchOpenAI) -> None:
    answer = await client.chat.completions.create(model="m", messages=MESSAGES)
    assert_type(answer, ChatCompletion)
    assert_type(answer.choices[0].message.content, str | None)
    assert type(answer) is ChatCompletion

    same = await client.chat.completions.create(model="m", messages=MESSAGES, stream=False)
    assert_type(same, ChatCompletion)
    assert type(same) is ChatCompletion


async def test_chat_stream(client: BatchOpenAI) -> None:
    stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
    assert_type(stream, AsyncStream[ChatCompletionChunk])
    assert type(stream) is AsyncStream
    async for chunk in stream:
        assert_type(chunk, ChatCompletionChunk)
        assert type(chunk) is ChatCompletionChunk


async def test_chat_stream_or_not(client: BatchOpenAI) -> None:
    either: bool = len(sys.argv) > 0
    result = await client.chat.completions.create(model="m", messages=MESSAGES, stream=either)
    assert_type(result, ChatCompletion | AsyncStream[ChatCompletionChunk])
    assert isinstance(result, AsyncStream)
    await result.close()


async def test_chat_parse(client: BatchOpenAI) -> None:
    answer = await client.chat.completions.parse(model="m", messages=MESSAGES, response_format=Weather)
    assert_type(answer, ParsedChatCompletion[Weather])
    assert_type(answer.choices[0].message.parsed, Weather | None)
    assert type(answer.choices[0].message.parsed) is Weather


async def test_chat_stream_helper(client: BatchOpenAI) -> None:
    async with client.chat.completions.stream(
        model="m", messages=MESSAGES, response_format=Weather
    ) as stream:
        final = await stream.get_final_completion()
    assert_type(final, ParsedChatCompletion[Weather])
    assert type(final.choices[0].message.parsed) is Weather


async def test_embeddings(client: BatchOpenAI) -> None:
    answer = await client.embeddings.create(model="e", input=["a", "b"])
    assert_type(answer, CreateEmbeddingResponse)
    assert_type(answer.data[0].embedding, list[float])
    assert type(answer.data[1].embedding[0]) is float


async def test_responses(client: BatchOpenAI) -> None:
    answer = await client.responses.create(model="m", input="x")
    assert_type(answer, Response)
    assert_type(answer.output_text, str)
    assert type(answer) is Response

    stream = await client.responses.create(model="m", input="x", stream=True)
    assert_type(stream, AsyncStream[ResponseStreamEvent])
    async for event in stream:
        assert_type(event.sequence_number, int)
        assert type(event.sequence_number) is int

    parsed = await client.responses.parse(model="m", input="x", text_format=Weather)
    assert_type(parsed, ParsedResponse[Weather])
    assert_type(parsed.output_parsed, Weather | None)
    assert type(parsed.output_parsed) is Weather


async def test_raw_and_streaming_responses(client: BatchOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="m", messages=MESSAGES)
    assert_type(raw, LegacyAPIResponse[ChatCompletion])
    answer = raw.parse()
    assert_type(answer, ChatCompletion)
    assert type(answer) is ChatCompletion
    async with client.embeddings.with_streaming_response.create(model="e", input="x") as response:
        vectors = await response.parse()
    assert_type(vectors, CreateEmbeddingResponse)
    assert type(vectors) is CreateEmbeddingResponse


async def test_copies(client: BatchOpenAI) -> None:
    patient = client.with_options(timeout=60, max_retries=5, batch_size=10, completion_window="1h")
    assert_type(patient, BatchOpenAI)
    assert_type(client.copy(batch_metadata={"a": "b"}), BatchOpenAI)
    assert_type(client.with_options(batch_metadata=None), BatchOpenAI)
    assert_type(client.unbatched, BatchOpenAI)
    assert type(client.unbatched.with_options(max_retries=0)) is BatchOpenAI
    async with client as entered:
        assert_type(entered, BatchOpenAI)
        assert entered is client


def wants_the_sdks(client: openai.AsyncOpenAI) -> Literal["taken"]:
    assert isinstance(client, openai.AsyncOpenAI)
    return "taken"


def wants_azures(client: openai.AsyncAzureOpenAI) -> Literal["taken"]:
    assert isinstance(client, openai.AsyncAzureOpenAI)
    return "taken"


async def test_the_clients_pass_for_the_sdks(client: BatchOpenAI) -> None:
    assert_type(AsyncOpenAI(api_key="k"), BatchOpenAI)
    assert wants_the_sdks(client) == "taken"
    assert wants_the_sdks(AsyncOpenAI(api_key="k")) == "taken"
    azure = BatchAzureOpenAI(api_key="k", azure_endpoint="https://a.test", api_version="v", batch_size=5)
    assert_type(azure.with_options(azure_ad_token="t", batch_window_seconds=2), BatchAzureOpenAI)
    assert_type(azure.unbatched, BatchAzureOpenAI)
    assert wants_the_sdks(azure) == "taken"
    assert wants_azures(azure) == "taken"


async def key() -> str:
    return "k"


async def test_the_constructor_takes_the_sdks_arguments_and_the_batch_options() -> None:
    client = BatchOpenAI(
        api_key=key,
        organization="o",
        project="p",
        webhook_secret="w",
        base_url=httpx.URL("http://local/v1"),
        websocket_base_url=None,
        timeout=openai.Timeout(10.0, read=5.0),
        max_retries=3,
        default_headers={"a": "b"},
        default_query={"a": 1},
        http_client=httpx.AsyncClient(),
        _strict_response_validation=True,
        batch_size=10,
        batch_window_seconds=1,
        poll_interval_seconds=0.5,
        completion_window="7d",
        batch_metadata={"team": "a"},
    )
    assert_type(client, BatchOpenAI)
    assert client.organization == "o"
    assert client.max_retries == 3
    await client.close()


if TYPE_CHECKING:
    # Arguments that only some SDKs have, and errors that type checkers have to find.

    def _since_openai_3(provider: Any) -> None:
        BatchOpenAI(admin_api_key="k", workload_identity=None, provider=provider, _enforce_credentials=False)
        BatchOpenAI().copy(admin_api_key="k", provider=openai.NOT_GIVEN, base_url=openai.NOT_GIVEN)

    async def _refused(client: BatchOpenAI) -> None:
        BatchOpenAI(batch_size="10")  # type: ignore[arg-type] # not a number
        BatchOpenAI(batch_metadata={"a": 1})  # type: ignore[dict-item] # values are str
        BatchOpenAI(completion_window=24)  # type: ignore[arg-type] # "24h"
        BatchOpenAI(max_retries="3")  # type: ignore[arg-type] # an argument of the SDK's
        BatchOpenAI("k")  # type: ignore[call-arg] # keyword only, as in the SDK
        BatchOpenAI(no_such_option=1)  # type: ignore[call-arg] # neither the SDK's nor ours
        client.with_options(batch_window_seconds="1")  # type: ignore[arg-type] # not a number
        client.with_options(no_such_option=1)  # type: ignore[call-arg] # neither the SDK's nor ours
        client.copy(timeout="1")  # type: ignore[arg-type] # an argument of the SDK's
        BatchAzureOpenAI(poll_interval_seconds="1")  # type: ignore[arg-type] # not a number
        await client.chat.completions.create(model="m")  # type: ignore[call-overload] # no messages
        await client.embeddings.create(model="e", input=1)  # type: ignore[arg-type] # not an input
        wants_azures(client)  # type: ignore[arg-type] # another client
        client.unbatched = client  # type: ignore[misc] # read only
