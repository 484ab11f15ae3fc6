"""langchain-openai: `ChatOpenAI(root_async_client=client, async_client=client.chat.completions)`.

`root_async_client` alone is replaced by a client of its own making: it is kept only beside `async_client`. LangChain
runs on asyncio only.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from autobatcher import BatchOpenAI
from autobatcher.local import LocalConfig

pytestmark = pytest.mark.anyio


class City(BaseModel):
    name: str
    inhabitants: int


def model_on(client: BatchOpenAI, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="gpt-4o-mini",
        root_async_client=client,
        async_client=client.chat.completions,
        **settings,
    )


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest, client: BatchOpenAI) -> ChatOpenAI:
    return model_on(client, use_responses_api=request.param)


async def test_a_plain_call(model: ChatOpenAI) -> None:
    answer = await model.ainvoke("hello")
    assert answer.text == "You said: hello."
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


async def test_concurrent_calls_share_batches(model: ChatOpenAI, client: BatchOpenAI) -> None:
    answers = await model.abatch([f"question {number}" for number in range(20)])
    assert [answer.text for answer in answers] == [f"You said: question {number}." for number in range(20)]
    assert len([batch async for batch in client.batches.list()]) <= 3


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_a_structured_output(model: ChatOpenAI, method: Any) -> None:
    city = await model.with_structured_output(City, method=method).ainvoke("Oslo")
    assert city == City(name="Oslo", inhabitants=1)


def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


async def test_a_tool_loop(model: ChatOpenAI, client: BatchOpenAI) -> None:
    tools = {"weather": tool(weather)}
    bound = model.bind_tools(list(tools.values()))
    messages: list[BaseMessage] = [HumanMessage("Oslo")]
    answer = await bound.ainvoke(messages)
    while answer.tool_calls:
        messages.append(answer)
        for call in answer.tool_calls:
            result = await tools[call["name"]].ainvoke(call["args"])
            messages.append(ToolMessage(result, tool_call_id=call["id"]))
        answer = await bound.ainvoke(messages)
    assert answer.text == "The tool says: rain in Oslo."
    assert len([batch async for batch in client.batches.list()]) == 2


async def test_a_stream(model: ChatOpenAI) -> None:
    chunks = [chunk async for chunk in model.astream("hello")]
    assert all(isinstance(chunk, AIMessage) for chunk in chunks)
    assert "".join(chunk.text for chunk in chunks) == "You said: hello."


# LangChain dumps the SDK's events by a type that leaves out what was parsed; so it does with the realtime client.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning:pydantic.main")
async def test_a_stream_of_a_structured_output(model: ChatOpenAI) -> None:
    stages = [stage async for stage in model.with_structured_output(City).astream("Oslo")]
    assert stages[-1] == City(name="Oslo", inhabitants=1)


@pytest.mark.parametrize("config", [LocalConfig(latency_seconds=0.5)], ids=["slow"])
async def test_the_wait_for_a_batch_is_no_gap_in_a_stream(client: BatchOpenAI) -> None:
    model = model_on(client, stream_chunk_timeout=0.1)
    assert "".join([chunk.text async for chunk in model.astream("hello")]) == "You said: hello."


async def test_embeddings(client: BatchOpenAI) -> None:
    # Counting tokens would fetch the tokenizer's vocabulary.
    embeddings = OpenAIEmbeddings(
        model="text-embedding-3-small", async_client=client.embeddings, check_embedding_ctx_length=False
    )
    vectors = await embeddings.aembed_documents(["a", "b"])
    assert len(vectors) == 2
    assert vectors[0] != vectors[1]
    assert [batch.endpoint async for batch in client.batches.list()] == ["/v1/embeddings"]
