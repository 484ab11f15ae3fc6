"""instructor: `instructor.from_openai(client)`."""

from __future__ import annotations

from typing import Any

import anyio
import instructor
import pytest
from instructor.core import InstructorRetryException
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from autobatcher import BatchOpenAI

pytestmark = pytest.mark.anyio

MODES = [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.RESPONSES_TOOLS]


class City(BaseModel):
    name: str
    inhabitants: int


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def test_a_plain_call(client: BatchOpenAI) -> None:
    wrapped = instructor.from_openai(client)
    answer: Any = await wrapped.create(model="m", response_model=None, messages=said("hello"))
    assert isinstance(answer, ChatCompletion)
    assert answer.choices[0].message.content == "You said: hello."


async def test_concurrent_calls_share_batches(client: BatchOpenAI) -> None:
    wrapped = instructor.from_openai(client)
    cities: dict[int, City] = {}

    async def ask(number: int) -> None:
        cities[number] = await wrapped.create(model="m", response_model=City, messages=said(f"city {number}"))

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(ask, number)
    assert {number: city.name for number, city in cities.items()} == {n: f"city {n}" for n in range(20)}
    assert len([batch async for batch in client.batches.list()]) <= 3


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
async def test_a_structured_output(client: BatchOpenAI, mode: instructor.Mode) -> None:
    wrapped = instructor.from_openai(client, mode=mode)
    city = await wrapped.create(model="m", response_model=City, messages=said("Oslo"))
    assert isinstance(city, City)
    assert city.name == "Oslo"


async def test_a_structured_output_with_its_completion(client: BatchOpenAI) -> None:
    wrapped = instructor.from_openai(client)
    city, completion = await wrapped.create_with_completion(
        model="m", response_model=City, messages=said("Oslo")
    )
    assert city.name == "Oslo"
    assert isinstance(completion, ChatCompletion)


# With trio the SDK leaves the generators of a stream to the garbage collector, of which trio warns.
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_partial_object_streams(client: BatchOpenAI) -> None:
    wrapped = instructor.from_openai(client)
    stages = [
        city async for city in wrapped.create_partial(model="m", response_model=City, messages=said("Oslo"))
    ]
    assert stages[-1].name == "Oslo"
    assert stages[-1].inhabitants == 1


async def test_a_tool_loop(client: BatchOpenAI) -> None:
    wrapped = instructor.from_openai(client)
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    messages = said("Oslo")
    called: Any = await wrapped.create(model="m", response_model=None, messages=messages, tools=tools)
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert call.function.arguments == '{"city": "Oslo"}'
    said_by_model = called.choices[0].message.model_dump(include={"role", "content", "tool_calls"})
    messages += [said_by_model, {"role": "tool", "tool_call_id": call.id, "content": "rain in Oslo"}]
    answer: Any = await wrapped.create(model="m", response_model=None, messages=messages, tools=tools)
    assert answer.choices[0].message.content == "The tool says: rain in Oslo."


async def test_validation_that_fails_is_tried_again_in_a_batch_of_its_own(client: BatchOpenAI) -> None:
    class Strict(City):
        def model_post_init(self, _context: Any) -> None:
            raise ValueError("never good enough")

    wrapped = instructor.from_openai(client)
    with pytest.raises(InstructorRetryException, match="never good enough"):
        await wrapped.create(model="m", response_model=Strict, messages=said("Oslo"), max_retries=1)
    assert len([batch async for batch in client.batches.list()]) == 2
