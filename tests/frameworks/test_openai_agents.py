"""openai-agents: `OpenAIResponsesModel(openai_client=client)`, or a default client for all. On asyncio only."""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import agents
import pytest
from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner
from pydantic import BaseModel

from autobatcher import BatchOpenAI

pytestmark = pytest.mark.anyio


class City(BaseModel):
    name: str
    inhabitants: int


Model: TypeAlias = OpenAIChatCompletionsModel | OpenAIResponsesModel


@pytest.fixture(autouse=True)
def _no_tracing() -> None:
    agents.set_tracing_disabled(disabled=True)  # traces go to a service of OpenAI


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(request: pytest.FixtureRequest, client: BatchOpenAI) -> Model:
    made: Model = request.param(model="gpt-4o-mini", openai_client=client)
    return made


async def test_a_plain_call(model: Model) -> None:
    result = await Runner.run(Agent(name="a", model=model), "hello")
    assert result.final_output == "You said: hello."
    assert result.context_wrapper.usage.output_tokens > 0


async def test_concurrent_calls_share_batches(model: Model, client: BatchOpenAI) -> None:
    agent = Agent(name="a", instructions="Be brief.", model=model)
    results = await asyncio.gather(*(Runner.run(agent, f"question {number}") for number in range(20)))
    assert [result.final_output for result in results] == [f"You said: question {n}." for n in range(20)]
    assert len([batch async for batch in client.batches.list()]) <= 3


async def test_a_provider_for_every_agent_of_a_run(client: BatchOpenAI) -> None:
    provider = agents.OpenAIProvider(openai_client=client)
    result = await Runner.run(
        Agent(name="a", model="gpt-4o-mini"), "hello", run_config=agents.RunConfig(model_provider=provider)
    )
    assert result.final_output == "You said: hello."
    assert [batch.endpoint async for batch in client.batches.list()] == ["/v1/responses"]


async def test_a_structured_output(model: Model) -> None:
    result = await Runner.run(Agent(name="a", model=model, output_type=City), "Oslo")
    assert result.final_output == City(name="Oslo", inhabitants=1)


def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


async def test_a_tool_loop(model: Model, client: BatchOpenAI) -> None:
    result = await Runner.run(Agent(name="a", model=model, tools=[agents.function_tool(weather)]), "Oslo")
    assert result.final_output == "The tool says: rain in Oslo."
    assert len([batch async for batch in client.batches.list()]) == 2


async def streamed(agent: Agent[Any], text: str) -> tuple[str, Any]:
    """The deltas of the text put together, and the final output."""
    result = Runner.run_streamed(agent, text)
    deltas = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    return "".join(deltas), result.final_output


async def test_a_stream(model: Model) -> None:
    assert await streamed(Agent(name="a", model=model), "hello") == ("You said: hello.",) * 2


async def test_a_stream_through_a_tool(model: Model) -> None:
    agent = Agent(name="a", model=model, tools=[agents.function_tool(weather)])
    assert await streamed(agent, "Oslo") == ("The tool says: rain in Oslo.",) * 2
