"""How callers reach the client: the ways of frameworks, tracers and wrappers, each of which has to end in a batch.

On the embedded server in process, in virtual time: a window is a second of the clock, however slow the machine, so
that what is asked together is one batch and nothing else.
"""

from __future__ import annotations

import enum
import functools
import inspect
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import openai
import pydantic
import pytest
from openai.resources.chat import AsyncCompletions
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ParsedChatCompletion
from openai.types.responses import Response

from autobatcher import BatchOpenAI
from autobatcher._http import httpx
from autobatcher.local import LocalBatchAPI, LocalConfig, serve_in_thread

pytestmark = [
    pytest.mark.anyio,
    # The SDK stops reading a stream at its "[DONE]" and leaves its generators to trio, of whomever the stream comes.
    pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2?)\\.:ResourceWarning"),
]

BASE_URL = "http://local/v1"


class City(pydantic.BaseModel):
    name: str


def function(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"name": name, "parameters": parameters}


CHAT_TOOLS: Any = [{"type": "function", "function": function("weather")}]
RESPONSE_TOOLS: Any = [{"type": "function", "strict": False, **function("weather")}]


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


@pytest.fixture
async def api() -> AsyncIterator[LocalBatchAPI]:
    """A server that nobody may ask for an answer at once; a test that does clears the counter."""
    async with LocalBatchAPI(LocalConfig(clock=lambda: 1_700_000_000 + anyio.current_time())) as api:
        yield api
        assert not api.realtime_calls


async def client_of(api: LocalBatchAPI, **options: Any) -> BatchOpenAI:
    settings: dict[str, Any] = {"api_key": "k", "base_url": BASE_URL, "http_client": api.http_client()}
    client = BatchOpenAI(**{**settings, **options})
    # The SDK looks up the platform in a thread before its first call, which takes real time, not virtual.
    await client.models.list()
    return client


@pytest.fixture
async def client(api: LocalBatchAPI) -> AsyncIterator[BatchOpenAI]:
    async with await client_of(api) as client:
        yield client


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def ask(client: openai.AsyncOpenAI, text: str, **more: Any) -> Awaitable[Any]:
    return client.chat.completions.create(model="m", messages=said(text), **more)


def text_of(answer: ChatCompletion) -> str:
    return str(answer.choices[0].message.content)


async def together(*calls: Awaitable[Any]) -> list[Any]:
    """asyncio.gather on either backend."""
    results: list[Any] = [None] * len(calls)

    async def run(index: int, call: Awaitable[Any]) -> None:
        results[index] = await call

    async with anyio.create_task_group() as tasks:
        for index, call in enumerate(calls):
            tasks.start_soon(run, index, call)
    return results


async def lines(client: openai.AsyncOpenAI) -> list[list[dict[str, Any]]]:
    """The lines of each batch, oldest first."""
    batches = [batch async for batch in client.batches.list()]
    contents = [await client.files.content(batch.input_file_id) for batch in reversed(batches)]
    return [[json.loads(line) for line in content.content.splitlines()] for content in contents]


async def sizes(client: openai.AsyncOpenAI) -> list[int]:
    """How many requests each batch has, oldest first."""
    return [len(batch) for batch in await lines(client)]


# --- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [openai.omit, openai.NOT_GIVEN, None], ids=["omit", "not_given", "none"])
@pytest.mark.parametrize("resource", ["chat.completions", "embeddings", "responses"])
async def test_create_with_every_other_argument_left_out(
    client: BatchOpenAI, resource: str, nothing: Any
) -> None:
    create = functools.reduce(getattr, resource.split("."), client).create  # type: ignore[attr-defined] # of a resource
    given: dict[str, Any] = {
        "model": "m",
        **({"messages": said("x")} if "chat" in resource else {"input": "x"}),
    }
    sent_with = {"extra_headers", "extra_query", "extra_body", "timeout"}
    names = inspect.signature(create).parameters.keys() - given.keys() - sent_with
    left_out = dict.fromkeys(names, nothing)
    if nothing is None:  # where null means something, it is sent, as the SDK does
        left_out = {name: None for name in ("user", "store", "tools", "metadata") if name in names}
    how = {
        "extra_headers": {"User-Agent": "framework/1"},
        "extra_query": None,
        "extra_body": {},
        "timeout": 600,
    }
    answer = await create(**given, **left_out, **how)
    assert isinstance(answer, (ChatCompletion, CreateEmbeddingResponse, Response))
    ((line,),) = await lines(client)
    added = {"encoding_format": "base64"} if resource == "embeddings" else {}  # by the SDK, which decodes it
    assert line["body"] == {**given, **(left_out if nothing is None else {}), **added}
    assert len(names) > (2 if resource == "embeddings" else 20)


async def test_a_timeout_on_the_call_does_not_bound_the_wait_for_its_batch(client: BatchOpenAI) -> None:
    started = anyio.current_time()
    assert "slow" in text_of(await ask(client, "slow", timeout=0.001))
    assert anyio.current_time() - started >= 1  # the window's


# --- raw responses ----------------------------------------------------------------------------------------------


async def test_a_raw_response_as_the_normal_path(client: BatchOpenAI) -> None:
    async def through_raw(text: str) -> ChatCompletion:
        raw = await client.chat.completions.with_raw_response.create(model="m", messages=said(text))
        answer = raw.parse()
        assert raw.status_code == raw.http_response.status_code == 200
        assert raw.headers["x-request-id"] == raw.request_id == answer._request_id
        assert raw.headers["content-type"] == "application/json"
        assert raw.http_response.json()["id"] == json.loads(raw.text)["id"] == answer.id
        assert raw.retries_taken == 0
        assert raw.elapsed.total_seconds() >= 1  # the window's
        assert str(raw.url) == f"{BASE_URL}/chat/completions"
        assert raw.method == "POST"
        assert raw.parse() is answer
        return answer

    answers = await together(*(through_raw(f"<{n}>") for n in range(5)))
    assert [text_of(answer) for answer in answers] == [f"You said: <{n}>." for n in range(5)]
    assert len({answer._request_id for answer in answers}) == 5
    assert await sizes(client) == [5]


async def test_parse_through_a_raw_response(client: BatchOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.parse(
        model="m", messages=said("Oslo"), response_format=City
    )
    answer = raw.parse()
    assert isinstance(answer, ParsedChatCompletion)
    assert answer.choices[0].message.parsed == City(name="Oslo")
    assert raw.headers["x-request-id"]
    assert await sizes(client) == [1]


async def test_raw_responses_of_the_other_resources(client: BatchOpenAI) -> None:
    vectors, response = await together(
        client.embeddings.with_raw_response.create(model="e", input=["a", "b"]),
        client.responses.with_raw_response.create(model="r", input="<hello>"),
    )
    assert len(vectors.parse().data[1].embedding) == 256
    assert response.parse().output_text == "You said: <hello>."
    assert vectors.headers["x-request-id"] != response.headers["x-request-id"]


# --- beta, where it was once --------------------------------------------------------------------------------------


def beta_completions(client: openai.AsyncOpenAI, method: str) -> Any:
    if not hasattr(client.beta, "chat") or not hasattr(client.beta.chat.completions, method):
        pytest.skip(f"this SDK has no beta.chat.completions.{method}")
    return client.beta.chat.completions


async def test_beta_parse(client: BatchOpenAI) -> None:
    beta = beta_completions(client, "parse")
    first, second = await together(
        beta.parse(model="m", messages=said("Oslo"), response_format=City),
        client.chat.completions.parse(model="m", messages=said("Rome"), response_format=City),
    )
    assert first.choices[0].message.parsed == City(name="Oslo")
    assert second.choices[0].message.parsed == City(name="Rome")
    assert await sizes(client) == [2]


async def test_beta_stream(client: BatchOpenAI) -> None:
    beta = beta_completions(client, "stream")
    async with beta.stream(model="m", messages=said("Oslo"), response_format=City) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= set(kinds)
    assert final.choices[0].message.parsed == City(name="Oslo")
    assert await sizes(client) == [1]


# --- streams ------------------------------------------------------------------------------------------------------


def gathered(chunks: list[Any]) -> dict[int, dict[str, Any]]:
    """What the deltas add up to, by choice, as frameworks add them up."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            known = choices.setdefault(choice.index, {"content": None, "calls": {}, "finish_reason": None})
            if choice.delta.role:
                known["role"] = choice.delta.role
            if choice.delta.content is not None:
                known["content"] = (known["content"] or "") + choice.delta.content
            for delta in choice.delta.tool_calls or []:
                call = known["calls"].setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += delta.id or ""
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""
            known["finish_reason"] = choice.finish_reason or known["finish_reason"]
    return choices


def whole(answer: ChatCompletion) -> dict[int, dict[str, Any]]:
    """The same of an answer that did not stream."""
    return {
        choice.index: {
            "role": choice.message.role,
            "content": choice.message.content,
            "calls": {
                index: {
                    "id": call.id,
                    "name": call.function.name,
                    "arguments": call.function.arguments,
                }
                for index, call in enumerate(choice.message.tool_calls or [])
                if call.type == "function"
            },
            "finish_reason": choice.finish_reason,
        }
        for choice in answer.choices
    }


@pytest.mark.parametrize(
    "more",
    [{}, {"tools": CHAT_TOOLS}, {"n": 3}, {"max_tokens": 2}, {"n": 2, "tools": CHAT_TOOLS}],
    ids=["text", "tools", "several", "cut", "several_with_tools"],
)
@pytest.mark.parametrize("usage", [True, False], ids=["usage", "no_usage"])
async def test_streaming_by_default_adds_up_to_the_answer(
    client: BatchOpenAI, more: dict[str, Any], *, usage: bool
) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    # The two share a batch: streaming is no matter of the line.
    stream, answer = await together(
        ask(client, "what is said", stream=True, **options, **more), ask(client, "what is said", **more)
    )
    assert isinstance(stream, openai.AsyncStream)
    assert stream.response.headers["content-type"].startswith("text/event-stream")
    chunks = [chunk async for chunk in stream]
    assert gathered(chunks) == whole(answer)
    assert {chunk.id for chunk in chunks} == {answer.id}
    assert [chunk.usage for chunk in chunks if chunk.usage] == ([answer.usage] if usage else [])
    if usage:
        assert chunks[-1].choices == []
    assert await sizes(client) == [2]
    assert not [line for batch in await lines(client) for line in batch if "stream" in line["body"]]


async def test_a_stream_of_a_response(client: BatchOpenAI) -> None:
    stream, answer = await together(
        client.responses.create(model="m", input="Oslo", tools=RESPONSE_TOOLS, stream=True),
        client.responses.create(model="m", input="Oslo", tools=RESPONSE_TOOLS),
    )
    events = [event async for event in stream]
    arguments = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(arguments) == answer.output[0].arguments
    assert events[-1].type == "response.completed"
    assert events[-1].response.output == answer.output
    assert await sizes(client) == [2]


async def test_a_stream_that_is_left_early(client: BatchOpenAI) -> None:
    stream = await ask(client, "hello", stream=True)
    async for chunk in stream:
        assert chunk.choices[0].delta.role == "assistant"
        break
    await stream.close()
    assert "again" in text_of(await ask(client, "again"))


# --- post -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["/embeddings", "embeddings", f"{BASE_URL}/embeddings"])
async def test_post(client: BatchOpenAI, url: str) -> None:
    posted, created = await together(
        client.post(url, body={"model": "e", "input": ["a"]}, cast_to=CreateEmbeddingResponse),
        client.embeddings.create(model="e", input=["a"], encoding_format="float"),
    )
    assert isinstance(posted, CreateEmbeddingResponse)
    assert posted.data == created.data
    assert await sizes(client) == [2]


async def test_post_to_another_place_is_no_affair_of_batches(client: BatchOpenAI, api: LocalBatchAPI) -> None:
    body = {"model": "e", "input": "a"}
    for url in ("http://elsewhere/v1/embeddings", "http://local/v1/embeddings?x=/v2"):
        posted = await client.post(url, body=body, cast_to=CreateEmbeddingResponse)
        assert posted.data[0].embedding
    assert await sizes(client) == [1]
    assert api.realtime_calls.total() == 1
    api.realtime_calls.clear()


# --- copies ---------------------------------------------------------------------------------------------------------


async def test_copies_as_frameworks_make_them_share_the_batch(client: BatchOpenAI) -> None:
    copies = [
        client.with_options(
            http_client=client._client, max_retries=5, timeout=openai.Timeout(30), _extra_kwargs={}
        ),
        client.with_options(max_retries=0),
        client.with_options(max_retries=0).with_options(timeout=1),
        client.copy(),
        client.copy(api_key="k", base_url=BASE_URL),
    ]
    assert all(isinstance(copy, openai.AsyncOpenAI) for copy in copies)
    assert copies[0].max_retries == 5
    answers = await together(*(ask(it, f"<{n}>") for n, it in enumerate([client, *copies])))
    assert [text_of(answer) for answer in answers] == [f"You said: <{n}>." for n in range(6)]
    assert await sizes(client) == [6]


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_copies_share_the_http_client_of_the_sdks_making_too() -> None:
    with serve_in_thread(LocalConfig()) as server:
        async with BatchOpenAI(
            api_key="k",
            base_url=server.base_url,
            batch_size=2,
            batch_window_seconds=60,
            poll_interval_seconds=0.1,
        ) as client:
            with anyio.fail_after(30):
                await together(
                    ask(client.with_options(http_client=client._client, _extra_kwargs={}), "one"),
                    ask(client.with_options(max_retries=0), "two"),
                )
            assert await sizes(client) == [2]
        assert not server.api.realtime_calls


@pytest.fixture
async def on_its_own() -> AsyncIterator[BatchOpenAI]:
    async with BatchOpenAI(api_key="k", base_url=BASE_URL) as client:
        assert client._client is client._client  # belongs to this loop from now on
        yield client


@pytest.fixture
def copy_of_a_fixture(on_its_own: BatchOpenAI) -> BatchOpenAI:
    """Made while a test runner has an event loop, and says so to sniffio, but does not run it."""
    return on_its_own.with_options(max_retries=0)


async def test_a_copy_made_between_two_runs_of_the_loop(
    on_its_own: BatchOpenAI, copy_of_a_fixture: BatchOpenAI
) -> None:
    assert copy_of_a_fixture._client is on_its_own._client


@pytest.mark.parametrize("other", [{"api_key": "another"}, {"organization": "o"}, {"project": "p"}])
async def test_another_identity_is_another_batch(
    client: BatchOpenAI, api: LocalBatchAPI, other: dict[str, Any]
) -> None:
    async with await client_of(api, **other) as second:
        await together(
            *(ask(client, str(n)) for n in range(2)),
            *(ask(second, str(n)) for n in range(3)),
            *(ask(client.with_options(**other), str(n)) for n in range(4)),
        )
    assert sorted(await sizes(client)) == [2, 3, 4]  # copies that send alike share


async def test_what_is_read_of_a_client(client: BatchOpenAI, api: LocalBatchAPI) -> None:
    http_client = client._client
    await ask(client, "hello")
    assert isinstance(client, openai.AsyncOpenAI)
    assert client._client is http_client
    assert isinstance(client._client, httpx.AsyncClient)
    assert str(client._base_url) == str(client.base_url) == f"{BASE_URL}/"
    assert client.api_key == "k"
    assert (client.organization, client.project) == (None, None)
    assert client.max_retries == openai.DEFAULT_MAX_RETRIES
    assert client.timeout == openai.DEFAULT_TIMEOUT
    assert client.default_headers["User-Agent"] == client.user_agent
    assert not client.is_closed()
    await client.close()
    assert client.is_closed()
    assert client.with_options(max_retries=0).is_closed()


# --- wrapped, captured, replaced ------------------------------------------------------------------------------------


async def test_create_that_was_captured_before_the_first_call(client: BatchOpenAI) -> None:
    bound = client.chat.completions.create
    partial: Any = functools.partial(client.chat.completions.create, model="m", temperature=0.5)

    @functools.wraps(client.chat.completions.create)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        answer = await bound(*args, **kwargs)
        return answer.choices[0].message

    resource = client.chat.completions
    first, second, third, fourth = await together(
        bound(model="m", messages=said("<1>")),
        partial(messages=said("<2>")),
        wrapped(model="m", messages=said("<3>")),
        resource.create(model="m", messages=said("<4>")),
    )
    assert [text_of(answer) for answer in (first, second, fourth)] == [f"You said: <{n}>." for n in (1, 2, 4)]
    assert third.content == "You said: <3>."
    assert await sizes(client) == [4]


Seen = list[tuple[dict[str, Any], Any]]
Replace = Callable[[BatchOpenAI, Seen, pytest.MonkeyPatch], None]


def on_the_client(client: BatchOpenAI, seen: Seen, _: pytest.MonkeyPatch) -> None:
    """As logfire does."""
    original = client.request

    async def request(*args: Any, **kwargs: Any) -> Any:
        answer = await original(*args, **kwargs)
        options = kwargs.get("options") or args[1]
        if options.url == "/chat/completions":
            seen.append((dict(options.json_data), answer))
        return answer

    client.request = request  # type: ignore[method-assign] # the way under test


def on_the_class(_: BatchOpenAI, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """As langfuse does."""
    original = AsyncCompletions.create

    async def create(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = await original(self, *args, **kwargs)
        seen.append((kwargs, answer))
        return answer

    monkeypatch.setattr(AsyncCompletions, "create", create)


def on_the_resource(client: BatchOpenAI, seen: Seen, _: pytest.MonkeyPatch) -> None:
    """As langsmith does."""
    original: Any = client.chat.completions.create

    async def create(*args: Any, **kwargs: Any) -> Any:
        answer = await original(*args, **kwargs)
        seen.append((kwargs, answer))
        return answer

    client.chat.completions.create = create  # type: ignore[method-assign] # the way under test


@pytest.mark.parametrize("replace", [on_the_client, on_the_class, on_the_resource])
async def test_a_wrapper_sees_call_and_answer_and_the_call_is_batched(
    client: BatchOpenAI, replace: Replace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ask(client, "before")
    seen: Seen = []
    replace(client, seen, monkeypatch)
    answers = await together(*(ask(client, f"<{n}>") for n in range(5)))
    assert [text_of(answer) for answer in answers] == [f"You said: <{n}>." for n in range(5)]
    by_text = {call["messages"][0]["content"]: answer for call, answer in seen}
    assert [by_text[f"<{n}>"] for n in range(5)] == answers
    assert {call["model"] for call, _ in seen} == {"m"}
    assert await sizes(client) == [1, 5]


@pytest.mark.parametrize("replace", [on_the_client, on_the_class, on_the_resource])
async def test_a_wrapper_may_change_the_call_and_sees_its_errors(
    client: BatchOpenAI, replace: Replace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Seen = []
    replace(client, seen, monkeypatch)
    with pytest.raises(openai.BadRequestError):
        await ask(client, "[[error:400]]")
    assert seen == []
    stream = await ask(client, "hello", stream=True)
    assert seen[0][1] is stream
    assert gathered([chunk async for chunk in stream])[0]["content"] == "You said: hello."


async def test_a_wrapper_on_the_client_sees_what_callers_ask_and_nothing_else(client: BatchOpenAI) -> None:
    original, urls = client.request, []

    async def request(*args: Any, **kwargs: Any) -> Any:
        urls.append((kwargs.get("options") or args[1]).url)
        return await original(*args, **kwargs)

    client.request = request  # type: ignore[method-assign] # the way under test
    await together(ask(client, "one"), client.embeddings.create(model="e", input="x"))
    assert sorted(urls) == ["/chat/completions", "/embeddings"]


async def test_a_wrapper_that_lets_few_calls_through_at_once_starves_no_batch(client: BatchOpenAI) -> None:
    original, few = client.request, anyio.Semaphore(2)

    async def request(*args: Any, **kwargs: Any) -> Any:
        async with few:
            return await original(*args, **kwargs)

    client.request = request  # type: ignore[method-assign] # the way under test
    with anyio.fail_after(3600):
        answers = await together(*(ask(client, f"<{n}>") for n in range(5)))
    assert [text_of(answer) for answer in answers] == [f"You said: <{n}>." for n in range(5)]
    client.request = original  # type: ignore[method-assign] # as it was
    assert await sizes(client) == [2, 2, 1]


# --- errors ---------------------------------------------------------------------------------------------------------


async def test_what_is_read_of_an_error(client: BatchOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(client, "[[error:429]]")
    error = caught.value
    assert type(error) is openai.RateLimitError
    assert error.status_code == error.response.status_code == 429
    assert error.response.json() == {"error": error.body}
    assert error.response.text == error.response.content.decode()
    assert error.response.headers["x-request-id"] == error.request_id
    assert error.response.request is error.request
    assert error.request.method == "POST"
    assert str(error.request.url) == f"{BASE_URL}/chat/completions"
    assert json.loads(error.request.content)["messages"] == said("[[error:429]]")
    assert (error.code, error.type, error.param) == ("rate_limit_exceeded", "invalid_request_error", None)
    assert "asked for status 429" in error.message


async def test_what_is_read_of_an_error_through_a_raw_response(client: BatchOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.with_raw_response.create(model="m", messages=said("[[error:400]]"))
    assert caught.value.response.json()["error"]["code"] == "invalid_request"


async def test_an_argument_that_cannot_be_encoded_fails_at_its_own_call(client: BatchOpenAI) -> None:
    async def bad() -> None:
        with pytest.raises(TypeError, match="not JSON serializable"):
            await ask(client, "bad", extra_body={"x": object()})
        failed.append(anyio.current_time())

    failed: list[float] = []
    started = anyio.current_time()
    first, _, second = await together(ask(client, "<1>"), bad(), ask(client, "<2>"))
    assert failed == [started]  # not when the window closed
    assert (text_of(first), text_of(second)) == ("You said: <1>.", "You said: <2>.")
    assert await sizes(client) == [2]


# --- conversations --------------------------------------------------------------------------------------------------


async def test_tool_loops_of_many_conversations_take_one_batch_for_each_wave(client: BatchOpenAI) -> None:
    questions, conversations = 2, 20

    async def converse(number: int) -> None:
        messages: list[Any] = []
        for question in range(questions):
            messages += said(f"city {number}-{question}")
            while True:
                answer = await ask_with_tools(messages)
                messages.append(answer)  # the object itself
                if not answer.tool_calls:
                    break
                for call in answer.tool_calls:
                    city = json.loads(call.function.arguments)["city"]
                    await anyio.sleep(number / conversations / 2)  # tools take their time, less than a window
                    result = f"rain in {city}"
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
            assert answer.content == f"The tool says: rain in city {number}-{question}."

    async def ask_with_tools(messages: list[Any]) -> Any:
        answer = await client.chat.completions.create(model="m", messages=messages, tools=CHAT_TOOLS)
        return answer.choices[0].message

    await together(*(converse(number) for number in range(conversations)))
    assert await sizes(client) == [conversations] * (2 * questions)
    lengths = Counter(len(line["body"]["messages"]) for batch in await lines(client) for line in batch)
    assert lengths == {1: 20, 3: 20, 5: 20, 7: 20}


async def test_tool_loops_of_responses_take_one_batch_for_each_wave(client: BatchOpenAI) -> None:
    conversations = 10

    async def converse(number: int) -> None:
        items: list[Any] = said(f"city {number}")
        response = await client.responses.create(model="m", input=items, tools=RESPONSE_TOOLS)
        calls = [item for item in response.output if item.type == "function_call"]
        assert [call.name for call in calls] == ["weather"]
        items += response.output  # the objects themselves
        for call in calls:
            result = f"rain in {json.loads(call.arguments)['city']}"
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": result})
        final = await client.responses.create(model="m", input=items, tools=RESPONSE_TOOLS)
        assert final.output_text == f"The tool says: rain in city {number}."

    await together(*(converse(number) for number in range(conversations)))
    assert await sizes(client) == [conversations] * 2
    sent = [line["body"]["input"] for line in (await lines(client))[1]]
    assert all(
        [item.get("type") for item in items][1:] == ["function_call", "function_call_output"]
        for items in sent
    )


async def test_fan_out_and_fan_in(client: BatchOpenAI) -> None:
    async def topic(name: str) -> str:
        parts = await together(*(ask(client, f"{name}{n}") for n in range(4)))
        summary = await ask(client, " ".join(text_of(part) for part in parts))
        return text_of(summary)

    summaries = await together(*(topic(name) for name in "abc"))
    final = text_of(await ask(client, " ".join(summaries)))
    assert all(f"{name}{n}" in final for name in "abc" for n in range(4))
    assert await sizes(client) == [12, 3, 1]


# Of parsed objects, which the SDK declares no type for.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
async def test_earlier_parsed_answers_go_back_as_the_sdk_sends_them(api: LocalBatchAPI) -> None:
    sent: list[httpx.Request] = []

    async def note(request: httpx.Request) -> None:
        sent.append(request)

    async with await client_of(api, http_client=api.http_client(event_hooks={"request": [note]})) as client:
        chat = await client.chat.completions.parse(model="m", messages=said("Oslo"), response_format=City)
        messages: Any = [*said("Oslo"), chat.choices[0].message, *said("and now?")]
        assert "and now?" in text_of(await client.chat.completions.create(model="m", messages=messages))
        await client.unbatched.chat.completions.create(model="m", messages=messages)
        chat_body = json.loads(sent[-1].content)
        response = await client.responses.parse(model="r", input="Oslo", text_format=City)
        assert response.output_parsed == City(name="Oslo")
        items: Any = [*said("Oslo"), *response.output, *said("and now?")]
        assert "and now?" in (await client.responses.create(model="r", input=items)).output_text
        await client.unbatched.responses.create(model="r", input=items)
        response_body = json.loads(sent[-1].content)
        bodies = [line["body"] for batch in await lines(client) for line in batch]
    assert bodies[1::2] == [chat_body, response_body]
    assert json.loads(chat_body["messages"][1]["content"]) == {"name": "Oslo"}
    assert json.loads(response_body["input"][1]["content"][0]["text"]) == {"name": "Oslo"}
    api.realtime_calls.clear()


# --- what a line has no place for -----------------------------------------------------------------------------------


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "autobatcher" and record.levelno == logging.WARNING
    ]


async def test_headers_and_query_of_a_call_are_named_in_one_warning_without_their_values(
    client: BatchOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = {"X-Tenant": "very-secret", "User-Agent": "framework/1"}
    for it in (client, client, client.with_options(max_retries=0), client.with_options(timeout=3)):
        await ask(it, "hello", extra_headers=secret, extra_query={"trace": "very-secret"})
    (line,) = warnings_in(caplog)
    assert "X-Tenant" in line
    assert "trace" in line
    assert "User-Agent" not in line
    own = [record.getMessage() for record in caplog.records if record.name.startswith("autobatcher")]
    assert not [text for text in own if "very-secret" in text]


async def test_what_says_nothing_of_the_answer_is_left_out_in_silence(
    client: BatchOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="autobatcher")
    await ask(client, "hello", extra_headers={"user-agent": "framework/1", "X-Stainless-Helper": "x"})
    await client.chat.completions.with_raw_response.create(model="m", messages=said("hello"), extra_query={})
    await client.chat.completions.parse(model="m", messages=said("hello"), response_format=City)
    await client.embeddings.create(model="e", input="x")
    await (await ask(client, "hello", stream=True)).close()
    assert warnings_in(caplog) == []


async def test_each_client_warns_for_itself(api: LocalBatchAPI, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        async with await client_of(api) as client:
            await ask(client, "hello", extra_headers={"X-Tenant": "t"})
    assert len(warnings_in(caplog)) == 2


# --- without batching -----------------------------------------------------------------------------------------------


async def test_the_unbatched_client_asks_at_once(client: BatchOpenAI, api: LocalBatchAPI) -> None:
    urgent = client.unbatched
    assert isinstance(urgent, BatchOpenAI)
    assert urgent._client is client._client
    started = anyio.current_time()
    assert text_of(await ask(urgent, "<now>")) == "You said: <now>."
    assert (await urgent.responses.create(model="r", input="<now>")).output_text == "You said: <now>."
    await urgent.embeddings.create(model="e", input="x")
    chunks = [chunk async for chunk in await ask(urgent, "<now>", stream=True)]
    assert gathered(chunks)[0]["content"] == "You said: <now>."
    parsed = await urgent.chat.completions.parse(model="m", messages=said("Oslo"), response_format=City)
    assert parsed.choices[0].message.parsed == City(name="Oslo")
    assert anyio.current_time() == started
    assert sorted(api.realtime_calls.values()) == [1, 1, 3]
    assert await sizes(client) == []
    api.realtime_calls.clear()


async def test_copies_of_the_unbatched_client_do_not_batch(client: BatchOpenAI, api: LocalBatchAPI) -> None:
    for copy in (client.unbatched.with_options(max_retries=0), client.with_options(timeout=9).unbatched):
        await ask(copy, "now")
        await ask(copy.copy(), "now")
        await ask(copy.unbatched, "now")
    assert api.realtime_calls.total() == 6
    api.realtime_calls.clear()
    assert "later" in text_of(await ask(client, "later"))
    assert await sizes(client) == [1]


async def test_closing_the_unbatched_client_leaves_the_client_open(
    client: BatchOpenAI, api: LocalBatchAPI
) -> None:
    async with client.unbatched as urgent:
        await ask(urgent, "now")
    assert not client.is_closed()
    assert not client._client.is_closed
    await ask(client.unbatched, "now")
    assert "later" in text_of(await ask(client, "later"))
    assert api.realtime_calls.total() == 2
    api.realtime_calls.clear()
    await client.close()
    assert client.unbatched.is_closed()


async def test_the_unbatched_client_sends_the_headers_of_a_call(caplog: pytest.LogCaptureFixture) -> None:
    sent: list[httpx.Request] = []

    async def note(request: httpx.Request) -> None:
        sent.append(request)

    async with LocalBatchAPI() as api:
        http_client = api.http_client(event_hooks={"request": [note]})
        async with await client_of(api, http_client=http_client) as client:
            await ask(client.unbatched, "x", extra_headers={"X-Tenant": "t"}, extra_query={"trace": "1"})
    assert sent[-1].headers["x-tenant"] == "t"
    assert sent[-1].url.params["trace"] == "1"
    assert warnings_in(caplog) == []


class Tenant(BatchOpenAI):
    """A subclass with a constructor of its own, which copies cannot call."""

    def __init__(self, tenant: str, api: LocalBatchAPI) -> None:
        super().__init__(
            api_key=tenant, base_url=BASE_URL, http_client=api.http_client(), batch_window_seconds=0.05
        )


async def test_a_subclass_with_another_constructor_batches(api: LocalBatchAPI) -> None:
    async with Tenant("k", api) as client:
        answer = await ask(client, "<hello>")
    assert "<hello>" in str(answer.choices[0].message.content)


async def test_a_key_that_is_set_later_is_the_one_that_calls_go_out_with(api: LocalBatchAPI) -> None:
    keys: list[str] = []

    async def note(request: httpx.Request) -> None:
        keys.append(request.headers["authorization"])

    http_client = api.http_client(event_hooks={"request": [note]})
    async with await client_of(api, http_client=http_client) as client:
        copy = client.with_options(timeout=4)
        copy.api_key = "tenant-2"
        await together(ask(copy, "one"), ask(client, "two"))
        assert set(keys) == {"Bearer k", "Bearer tenant-2"}
        assert sorted(await sizes(client)) == [1, 1]
        keys.clear()
        client.api_key = "tenant-3"
        await ask(copy, "three")
        assert set(keys) == {"Bearer tenant-2"}


async def test_copies_of_a_moment_leave_no_task_behind(client: BatchOpenAI) -> None:
    for number in range(20):
        await ask(client.with_options(default_headers={"x-trace": str(number)}), "hello")
    assert len(client._collectors._known) <= 2


class Model(str, enum.Enum):
    SMALL = "small"


async def test_an_enum_is_the_model_that_it_names(client: BatchOpenAI) -> None:
    models: list[Any] = [Model.SMALL, "small"]
    await together(*(client.chat.completions.create(model=model, messages=said("x")) for model in models))
    assert await sizes(client) == [2]


@pytest.mark.skipif(
    "content" not in inspect.signature(openai.AsyncOpenAI.post).parameters,
    reason="the first versions of openai 2 take no raw content",
)
async def test_raw_content_is_batched_as_well(client: BatchOpenAI) -> None:
    body = json.dumps({"model": "m", "messages": said("<hello>")}).encode()
    answer = await client.post("/chat/completions", content=body, cast_to=ChatCompletion)
    assert "<hello>" in str(answer.choices[0].message.content)
    with pytest.raises(TypeError, match="JSON object"):
        await client.post("/chat/completions", content=b"<xml/>", cast_to=ChatCompletion)
