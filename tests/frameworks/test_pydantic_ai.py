"""Pydantic AI: `OpenAIProvider(openai_client=client)`. It runs on asyncio only."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from autobatcher import BatchOpenAI

pytestmark = pytest.mark.anyio


class City(BaseModel):
    name: str
    inhabitants: int


Model: TypeAlias = OpenAIChatModel | OpenAIResponsesModel


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest, client: BatchOpenAI) -> Model:
    made: Model = request.param("gpt-4o-mini", provider=OpenAIProvider(openai_client=client))
    return made


async def test_a_plain_call(model: Model) -> None:
    run = await Agent(model).run("hello")
    assert run.output == "You said: hello."
    assert run.usage.output_tokens > 0


async def test_concurrent_calls_share_batches(model: Model, client: BatchOpenAI) -> None:
    agent = Agent(model, instructions="Be brief.")
    runs = await asyncio.gather(*(agent.run(f"question {number}") for number in range(20)))
    assert [run.output for run in runs] == [f"You said: question {number}." for number in range(20)]
    assert len([batch async for batch in client.batches.list()]) <= 3


@pytest.mark.parametrize("form", [ToolOutput(City), NativeOutput(City)], ids=["tool", "native"])
async def test_a_structured_output(model: Model, form: Any) -> None:
    agent: Agent[None, City] = Agent(model, output_type=form)
    run = await agent.run("Oslo")
    assert run.output == City(name="Oslo", inhabitants=1)


async def test_a_tool_loop(model: Model, client: BatchOpenAI) -> None:
    def weather(city: str) -> str:
        return f"rain in {city}"

    run = await Agent(model, tools=[weather]).run("Oslo")
    assert run.output == "The tool says: rain in Oslo."
    assert len([batch async for batch in client.batches.list()]) == 2


async def test_a_stream(model: Model) -> None:
    async with Agent(model).run_stream("hello") as run:
        pieces = [piece async for piece in run.stream_text(delta=True)]
        assert await run.get_output() == "You said: hello."
        assert run.usage.output_tokens > 0
    assert "".join(pieces) == "You said: hello."


async def test_a_stream_through_a_tool(model: Model) -> None:
    def weather(city: str) -> str:
        return f"rain in {city}"

    async with Agent(model, tools=[weather]).run_stream("Oslo") as run:
        assert await run.get_output() == "The tool says: rain in Oslo."
