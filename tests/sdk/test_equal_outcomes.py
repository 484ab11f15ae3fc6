"""Every kind of call, made through a batch and at once: the outcomes are equal field by field.

The embedded server answers the same body with the same object, ids included, and its clock stands still. Realtime
streams, and chat's `parse`, have a "stream" in the body, which a line has not, so the ids in their answers are others;
nothing else may differ.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import openai
import pydantic
import pytest

from autobatcher import BatchOpenAI, RequestFailedError
from autobatcher.local import LocalBatchAPI, LocalConfig

# The SDK leaves its stream's generators to the garbage collector, of which trio warns, for realtime streams as well.
pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")]

Call = Callable[[openai.AsyncOpenAI], Awaitable[Any]]


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


# --- what is to be seen of an outcome --------------------------------------------------------------------------


def described(value: Any) -> Any:
    """All of a result, in values that compare equal only if their types are equal as well."""
    match value:
        case pydantic.BaseModel():
            return {
                "type": type(value),
                "set": sorted(value.model_fields_set),
                "fields": {
                    key: described(item) for key, item in value.__dict__.items() if key != "_request_id"
                },
                "extra": described(value.model_extra),
                "has request id": bool(getattr(value, "_request_id", None)),
            }
        case dict():
            return {key: described(item) for key, item in value.items()}
        case list() | tuple():
            return type(value), [described(item) for item in value]
        case Exception():
            return described_error(value)
        case _:
            return type(value), repr(value)


def described_error(error: Exception) -> dict[str, Any]:
    found = {"type": type(error), "str": str(error), "args": described(error.args)}
    for name in ("message", "code", "param", "status_code", "body", "completion"):
        if hasattr(error, name):
            found[name] = described(getattr(error, name))
    if isinstance(error, openai.APIError):
        found["error type"] = error.type
        found["request"] = error.request.method, str(error.request.url)
    if isinstance(error, openai.APIStatusError):
        found["has request id"] = bool(error.request_id)
        found["response"] = described_http(error.response)
        found["text"] = error.response.text
        found["json"] = error.response.json()
    return found


def described_http(response: Any) -> dict[str, Any]:
    """What is equal of two HTTP responses: all but the id, the time taken and the transport's headers."""
    return {
        "status": response.status_code,
        "content-type": response.headers["content-type"],
        "has request id": response.headers["x-request-id"].startswith("req_"),
        "url": str(response.url),
        "http version": response.http_version,
        "elapsed": isinstance(response.elapsed, dt.timedelta),
    }


def without_ids(value: Any) -> Any:
    """The description with the embedded server's ids, each the digest of a body, made equal."""
    match value:
        case str():
            return re.sub(r"(?<=_|-)[0-9a-f]{24}\b", "…", value)
        case dict():
            return {key: without_ids(item) for key, item in value.items()}
        case list() | tuple():
            return [without_ids(item) for item in value]
        case _:
            return value


def assert_equal(name: str, batched: Any, realtime: Any) -> None:
    got, expected = described(batched), described(realtime)
    if "chat parse" in name:
        got, expected = without_ids(got), without_ids(expected)
    assert got == expected


# --- arguments -------------------------------------------------------------------------------------------------


class Weather(pydantic.BaseModel):
    city: str
    celsius: float
    tags: list[str] = []


class GetWeather(pydantic.BaseModel):
    """Look the weather up."""

    city: str
    days: int


USER: Any = [{"role": "user", "content": "weather in Žďár\u2028🦙?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
CHAT_TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}}
    for name in ("first", "second")
]
NAMED: Any = {"type": "function", "function": {"name": "second"}}
TOOLS: Any = [{"type": "function", "name": "first", "parameters": SCHEMA, "strict": True}]
JSON_SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True},
}
AFTER_TOOL: Any = [
    *USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "first", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
]
TOOL_OUTPUT: Any = [
    {"role": "user", "content": "weather?"},
    {"type": "function_call", "call_id": "call_1", "name": "first", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
]


def said(text: str) -> Any:
    return [{"role": "user", "content": text}]


def chat(**arguments: Any) -> Call:
    return lambda client: client.chat.completions.create(**{"model": "m", "messages": USER, **arguments})


def chat_parse(**arguments: Any) -> Call:
    return lambda client: client.chat.completions.parse(**{"model": "m", "messages": USER, **arguments})


def embed(**arguments: Any) -> Call:
    return lambda client: client.embeddings.create(**{"model": "e", "input": "Žďár\u2028", **arguments})


def respond(**arguments: Any) -> Call:
    return lambda client: client.responses.create(**{"model": "m", "input": "weather?", **arguments})


def respond_parse(**arguments: Any) -> Call:
    return lambda client: client.responses.parse(
        **{"model": "m", "input": "weather?", "text_format": Weather, **arguments}
    )


async def beta_parse(client: openai.AsyncOpenAI) -> Any:
    if not hasattr(client.beta, "chat"):
        pytest.skip("this SDK has no beta.chat")
    return await client.beta.chat.completions.parse(model="m", messages=USER, response_format=Weather)


async def post(client: openai.AsyncOpenAI) -> Any:
    return await client.post(
        "/embeddings",
        body={"model": "e", "input": ["a", "b"], "encoding_format": "float"},
        cast_to=openai.types.CreateEmbeddingResponse,
    )


WHOLE: dict[str, Call] = {
    "chat": chat(),
    "chat, several": chat(n=2, temperature=0.5, user="u", metadata={"a": "b"}, seed=1),
    "chat, content parts": chat(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
    "chat, tools": chat(tools=CHAT_TOOLS),
    "chat, tool named": chat(tools=CHAT_TOOLS, tool_choice=NAMED),
    "chat, no tool": chat(tools=CHAT_TOOLS, tool_choice="none"),
    "chat, after a tool": chat(messages=AFTER_TOOL, tools=CHAT_TOOLS),
    "chat, json schema": chat(response_format=JSON_SCHEMA),
    "chat, json object": chat(response_format={"type": "json_object"}),
    "chat, refusal": chat(messages=said("[[refuse]]")),
    "chat, filter": chat(messages=said("[[filter]]")),
    "chat, length": chat(max_tokens=2),
    "chat, extra body": chat(extra_body={"max_completion_tokens": 1, "vendor": {"a": [None]}}),
    "chat parse": chat_parse(response_format=Weather),
    "chat parse, tool": chat_parse(tools=[openai.pydantic_function_tool(GetWeather)]),
    "chat parse, both": chat_parse(
        response_format=Weather, tools=[openai.pydantic_function_tool(GetWeather)], tool_choice="none"
    ),
    "chat parse, refusal": chat_parse(response_format=Weather, messages=said("[[refuse]]")),
    "chat parse, no format": chat_parse(),
    "beta chat parse": beta_parse,
    "embeddings": embed(),
    "embeddings, float": embed(encoding_format="float"),
    "embeddings, base64": embed(encoding_format="base64"),
    "embeddings, several": embed(input=["a", "b", "c"]),
    "embeddings, tokens": embed(input=[1, 2, 3]),
    "embeddings, several of tokens": embed(input=[[1, 2], [3]]),
    "embeddings, dimensions": embed(dimensions=7),
    "embeddings by post": post,
    "response": respond(),
    "response, instructions": respond(
        instructions="be brief", temperature=0.1, metadata={"a": "b"}, store=False
    ),
    "response, tools": respond(tools=TOOLS),
    "response, tool output": respond(input=TOOL_OUTPUT, tools=TOOLS),
    "response, refusal": respond(input="[[refuse]]"),
    "response, filter": respond(input="[[filter]]"),
    "response, incomplete": respond(max_output_tokens=1),
    "response, json object": respond(text={"format": {"type": "json_object"}}),
    "response parse": respond_parse(),
    "response parse, tools": respond_parse(tools=[openai.pydantic_function_tool(GetWeather)]),
    "response parse, refusal": respond_parse(input="[[refuse]]"),
}

STATUSES = [400, 401, 404, 409, 422, 429, 500, 503]
ERRORS: dict[str, Call] = {
    **{f"chat {status}": chat(messages=said(f"[[error:{status}]]")) for status in STATUSES},
    **{f"response {status}": respond(input=f"[[error:{status}]]") for status in STATUSES},
    **{
        f"chat parse {status}": chat_parse(messages=said(f"[[error:{status}]]"), response_format=Weather)
        for status in (400, 429)
    },
    "chat stream 429": chat(messages=said("[[error:429]]"), stream=True),
    "chat stream 500": chat(messages=said("[[error:500]]"), stream=True),
    "response stream 429": respond(input="[[error:429]]", stream=True),
    "response stream 400": respond(input="[[error:400]]", stream=True),
    "chat, no messages": chat(messages=[]),
    "chat, message without a role": chat(messages=[{"content": "x"}]),
    "chat, n of 0": chat(n=0),
    "chat, no such tool": chat(tools=CHAT_TOOLS[:1], tool_choice=NAMED),
    "chat, max_tokens of 0": chat(max_tokens=0),
    "embeddings, no input": embed(input=[]),
    "embeddings, wrong input": embed(input={"a": 1}),
    "embeddings, negative dimensions": embed(dimensions=-1),
    "response, no input": respond(input=[]),
    "chat parse, length": chat_parse(response_format=Weather, max_tokens=1),
    "chat parse, filter": chat_parse(response_format=Weather, messages=said("[[filter]]")),
    "response parse, cut short": respond_parse(max_output_tokens=1),
}
NEVER_SENT: dict[str, Call] = {
    "chat, messages left out": lambda client: client.chat.completions.create(model="m"),  # type: ignore[call-overload] # the point
    "embeddings, input left out": lambda client: client.embeddings.create(model="m"),  # type: ignore[call-arg] # the point
    "chat, no such argument": chat(no_such_argument=1),
    "chat, not to be encoded": chat(user=object()),
    "chat, create with a model class": chat(response_format=Weather),
    "chat parse, tool not strict": chat_parse(tools=[{"type": "function", "function": {"name": "f"}}]),
}


# --- raw responses ---------------------------------------------------------------------------------------------


async def raw_parts(raw: Any) -> dict[str, Any]:
    """All that code reads of a raw response; `parse` of the legacy ones is no coroutine."""
    return {
        "type": type(raw),
        "http": described_http(raw.http_response),
        "status": raw.status_code,
        "request": (raw.method, str(raw.url), str(raw.http_request.url)),
        "body": {
            key: value for key, value in json.loads(raw.http_request.content).items() if key != "stream"
        },
        "id": raw.request_id == raw.headers["x-request-id"],
        "text": raw.text,
        "json": raw.http_response.json(),
        "retries": raw.retries_taken,
        "closed": raw.is_closed,
        "parsed": raw.parse(),
        "parsed again": raw.parse(),
        "parsed to": attempted(lambda: raw.parse(to=dict[str, Any])),
    }


def attempted(action: Callable[[], Any]) -> Any:
    """Its result or its exception: the post parsers of some methods take no other type than their own."""
    try:
        return action()
    except Exception as error:  # noqa: BLE001 -- to be equal for both clients
        return error


def raw(resource: str, method: str, **arguments: Any) -> Call:
    async def call(client: openai.AsyncOpenAI) -> Any:
        view = find(client, resource).with_raw_response
        if not hasattr(view, method):
            pytest.skip(f"this SDK has no {resource}.with_raw_response.{method}")
        return await raw_parts(await getattr(view, method)(**{"model": "m", **arguments}))

    return call


def find(client: openai.AsyncOpenAI, resource: str) -> Any:
    found: Any = client
    for name in resource.split("."):
        found = getattr(found, name)
    return found


async def raw_of_the_whole_client(client: openai.AsyncOpenAI) -> Any:
    return await raw_parts(await client.with_raw_response.chat.completions.create(model="m", messages=USER))


RAW: dict[str, Call] = {
    "chat": raw("chat.completions", "create", messages=USER),
    "chat, tools": raw("chat.completions", "create", messages=USER, tools=CHAT_TOOLS, n=2),
    "chat parse": raw("chat.completions", "parse", messages=USER, response_format=Weather),
    "embeddings": raw("embeddings", "create", input=["a", "b"]),
    "response": raw("responses", "create", input="x"),
    "response parse": raw("responses", "parse", input="x", text_format=Weather),
    "client": raw_of_the_whole_client,
}
RAW_ERRORS: dict[str, Call] = {
    "chat": raw("chat.completions", "create", messages=said("[[error:429]]")),
    "chat parse": raw("chat.completions", "parse", messages=said("[[error:500]]"), response_format=Weather),
    "embeddings": raw("embeddings", "create", input={"a": 1}),
    "response": raw("responses", "create", input="[[error:404]]"),
    "response parse": raw("responses", "parse", input="[[error:422]]", text_format=Weather),
}


async def lines(response: Any) -> Any:
    return [line async for line in response.iter_lines()]


async def whole_bytes(response: Any) -> Any:
    return b"".join([part async for part in response.iter_bytes()])


async def small_bytes(response: Any) -> Any:
    return [part async for part in response.iter_bytes(16)]


async def small_text(response: Any) -> Any:
    return [part async for part in response.iter_text(16)]


async def parsed(response: Any) -> Any:
    return await response.parse()


READERS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "iter_lines": lines,
    "iter_bytes": whole_bytes,
    "iter_bytes in small parts": small_bytes,
    "iter_text in small parts": small_text,
    "read": lambda response: response.read(),
    "text": lambda response: response.text(),
    "json": lambda response: response.json(),
    "parse": parsed,
}


def streaming(resource: str, method: str, reader: str, **arguments: Any) -> Call:
    async def call(client: openai.AsyncOpenAI) -> Any:
        view = find(client, resource).with_streaming_response
        if not hasattr(view, method):
            pytest.skip(f"this SDK has no {resource}.with_streaming_response.{method}")
        async with getattr(view, method)(**{"model": "m", **arguments}) as response:
            http = response.http_response
            before = (response.is_closed, http.is_stream_consumed, hasattr(http, "_content"))
            result = await READERS[reader](response)
            after = (response.is_closed, http.is_stream_consumed, hasattr(http, "_content"))
            seen = {
                "type": type(response),
                "http": described_http(http),
                "status": response.status_code,
                "id": response.request_id == response.headers["x-request-id"],
                "before": before,
                "after": after,
                "result": result,
            }
        return {**seen, "closed at the end": response.is_closed}

    return call


STREAMED_ENDPOINTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("chat.completions", "create", {"messages": USER}),
    "chat parse": ("chat.completions", "parse", {"messages": USER, "response_format": Weather}),
    "embeddings": ("embeddings", "create", {"input": "x", "encoding_format": "float"}),
    "response": ("responses", "create", {"input": "x"}),
}
STREAMING = {
    f"{name}, {reader}": streaming(resource, method, reader, **arguments)
    for name, (resource, method, arguments) in STREAMED_ENDPOINTS.items()
    for reader in (READERS if name == "chat" else ["iter_lines", "parse"])
}
STREAMING_ERRORS = {
    "chat": streaming("chat.completions", "create", "text", messages=said("[[error:429]]")),
    "response": streaming("responses", "create", "text", input="[[error:500]]"),
}


# --- streams ---------------------------------------------------------------------------------------------------


def items(make: Call) -> Call:
    async def call(client: openai.AsyncOpenAI) -> Any:
        stream = await make(client)
        found = [described(item) async for item in stream]
        return {
            "type": type(stream),
            "http": described_http(stream.response),
            "items": found,
            "closed": stream.response.is_closed,
        }

    return call


def left_early(make: Call) -> Call:
    async def call(client: openai.AsyncOpenAI) -> Any:
        async with await make(client) as stream:
            first = described(await stream.__anext__())
            second = described(await stream.__anext__())
        return {"first": first, "second": second, "closed": stream.response.is_closed}

    return call


def raw_stream(make_arguments: dict[str, Any]) -> Call:
    async def call(client: openai.AsyncOpenAI) -> Any:
        raw = await client.chat.completions.with_raw_response.create(
            **{"model": "m", "messages": USER, "stream": True, **make_arguments}
        )
        stream: Any = raw.parse()
        found = [described(item) async for item in stream]
        return {"type": type(stream), "http": described_http(raw.http_response), "items": found}

    return call


def streaming_lines(resource: str, **arguments: Any) -> Call:
    async def call(client: openai.AsyncOpenAI) -> Any:
        view = find(client, resource).with_streaming_response
        async with view.create(**{"model": "m", "stream": True, **arguments}) as response:
            return [line async for line in response.iter_lines()]

    return call


STREAMS: dict[str, Call] = {
    "chat": items(chat(stream=True)),
    "chat, usage": items(chat(stream=True, stream_options={"include_usage": True})),
    "chat, no usage": items(chat(stream=True, stream_options={"include_usage": False})),
    "chat, several": items(chat(stream=True, n=2)),
    "chat, tools": items(chat(stream=True, tools=CHAT_TOOLS)),
    "chat, several tools and usage": items(
        chat(stream=True, n=2, tools=CHAT_TOOLS, stream_options={"include_usage": True})
    ),
    "chat, refusal": items(chat(stream=True, messages=said("[[refuse]]"))),
    "chat, filter": items(chat(stream=True, messages=said("[[filter]]"))),
    "chat, length": items(chat(stream=True, max_tokens=1)),
    "chat, left early": left_early(chat(stream=True)),
    "chat, raw": raw_stream({}),
    "chat, lines": streaming_lines("chat.completions", messages=USER),
    "response": items(respond(stream=True)),
    "response, tools": items(respond(stream=True, tools=TOOLS)),
    "response, refusal": items(respond(stream=True, input="[[refuse]]")),
    "response, incomplete": items(respond(stream=True, max_output_tokens=1)),
    "response, left early": left_early(respond(stream=True)),
    "response, lines": streaming_lines("responses", input="x"),
}


def chat_helper(**arguments: Any) -> Call:
    async def call(client: openai.AsyncOpenAI) -> Any:
        async with client.chat.completions.stream(**{"model": "m", "messages": USER, **arguments}) as stream:
            events = [described(event) async for event in stream]
            return {"events": events, "final": await stream.get_final_completion()}

    return call


def response_helper(**arguments: Any) -> Call:
    async def call(client: openai.AsyncOpenAI) -> Any:
        async with client.responses.stream(**{"model": "m", "input": "x", **arguments}) as stream:
            events = [described(event) async for event in stream]
            return {"events": events, "final": await stream.get_final_response()}

    return call


async def chat_until_done(client: openai.AsyncOpenAI) -> Any:
    async with client.chat.completions.stream(model="m", messages=USER) as stream:
        same = await stream.until_done() is stream
        return same, stream.current_completion_snapshot


async def response_until_done(client: openai.AsyncOpenAI) -> Any:
    async with client.responses.stream(model="m", input="x") as stream:
        same = await stream.until_done() is stream
        return same, await stream.get_final_response()


HELPERS: dict[str, Call] = {
    "chat": chat_helper(),
    "chat, format": chat_helper(response_format=Weather),
    "chat, tool": chat_helper(tools=[openai.pydantic_function_tool(GetWeather)]),
    "chat, several": chat_helper(n=2, stream_options={"include_usage": True}),
    "chat, refusal": chat_helper(messages=said("[[refuse]]"), response_format=Weather),
    "chat, until done": chat_until_done,
    "response": response_helper(),
    "response, format": response_helper(text_format=Weather),
    "response, tool": response_helper(tools=[openai.pydantic_function_tool(GetWeather)]),
    "response, refusal": response_helper(input="[[refuse]]"),
    "response, until done": response_until_done,
}
HELPER_ERRORS: dict[str, Call] = {
    "chat": chat_helper(messages=said("[[error:429]]")),
    "chat, length": chat_helper(max_tokens=1, response_format=Weather),
    "chat, filter": chat_helper(messages=said("[[filter]]"), response_format=Weather),
    "response": response_helper(input="[[error:500]]"),
    "response, incomplete": response_helper(max_output_tokens=1),
}


# --- the comparison --------------------------------------------------------------------------------------------


async def outcome(call: Call, client: openai.AsyncOpenAI) -> Any:
    try:
        return await call(client)
    except Exception as error:  # noqa: BLE001 -- whatever it is, both clients have to raise it
        return error


async def both(call: Call, *, requests: int = 1) -> tuple[Any, Any]:
    """The realtime and the batched outcome; so many requests were answered, and none of the batched went realtime."""
    async with LocalBatchAPI(LocalConfig(clock=lambda: 1_700_000_000)) as api:
        async with BatchOpenAI(
            api_key="k", base_url="http://local/v1", http_client=api.http_client(), max_retries=0
        ) as client:
            await client.models.list()  # the SDK looks up the platform in a thread, in real time
            batched = await outcome(call, client)
        assert not api.realtime_calls
        assert sum(api.executed.values()) == requests
        async with openai.AsyncOpenAI(
            api_key="k", base_url="http://local/v1", http_client=api.http_client(), max_retries=0
        ) as client:
            realtime = await outcome(call, client)
        assert sum(api.realtime_calls.values()) == requests
    return realtime, batched


@pytest.mark.parametrize("name", WHOLE)
async def test_answers(name: str) -> None:
    realtime, batched = await both(WHOLE[name])
    assert_equal(name, batched, realtime)
    assert isinstance(realtime, pydantic.BaseModel)
    assert getattr(batched, "_request_id", None)
    assert without_ids(batched.model_dump_json(warnings=False)) == without_ids(
        realtime.model_dump_json(warnings=False)
    )


@pytest.mark.parametrize("name", ERRORS)
async def test_errors(name: str) -> None:
    realtime, batched = await both(ERRORS[name])
    assert_equal(name, batched, realtime)
    assert isinstance(realtime, Exception)
    if "parse, " not in name:
        assert isinstance(realtime, openai.APIStatusError)


@pytest.mark.parametrize("name", [name for name in ERRORS if re.search("[0-9]{3}$", name)])
async def test_the_requests_of_errors(name: str) -> None:
    realtime, batched = await both(ERRORS[name])
    for request in (realtime.request, batched.request, batched.response.request):
        assert request.headers["content-length"] == str(len(request.content))
    headers, expected = ({**error.request.headers} for error in (batched, realtime))
    body, expected_body = (json.loads(error.request.content) for error in (batched, realtime))
    if expected_body.pop("stream", None) is not None:  # of which a line says nothing
        del headers["content-length"], expected["content-length"]
    for found in (headers, expected):
        del found["user-agent"]  # it has the name of the client's class
    del expected["authorization"]
    assert headers == expected
    assert body == expected_body


@pytest.mark.parametrize("name", ["chat 400", "chat parse 429", "response 500", "embeddings, no input"])
async def test_the_time_an_error_took_is_that_of_its_batch(name: str) -> None:
    async with (
        LocalBatchAPI(LocalConfig()) as api,
        BatchOpenAI(
            api_key="k", base_url="http://local/v1", http_client=api.http_client(), max_retries=0
        ) as client,
    ):
        await client.models.list()
        for _ in range(2):
            began = anyio.current_time()
            error = await outcome(ERRORS[name], client)
            assert isinstance(error, openai.APIStatusError)
            took = anyio.current_time() - began
            assert 1 <= error.response.elapsed.total_seconds() <= took  # the window's, of the virtual time


@pytest.mark.parametrize("name", NEVER_SENT)
async def test_calls_that_are_never_sent(name: str) -> None:
    realtime, batched = await both(NEVER_SENT[name], requests=0)
    assert_equal(name, batched, realtime)
    assert isinstance(realtime, (TypeError, ValueError))


@pytest.mark.parametrize("name", RAW)
async def test_raw_responses(name: str) -> None:
    realtime, batched = await both(RAW[name])
    assert_equal(name, batched, realtime)
    assert realtime["status"] == 200


@pytest.mark.parametrize("name", RAW_ERRORS)
async def test_raw_errors(name: str) -> None:
    realtime, batched = await both(RAW_ERRORS[name])
    assert_equal(name, batched, realtime)
    assert isinstance(realtime, openai.APIStatusError)


@pytest.mark.parametrize("name", STREAMING)
async def test_streaming_responses(name: str) -> None:
    realtime, batched = await both(STREAMING[name])
    assert_equal(name, batched, realtime)
    assert batched["before"] == (False, False, False)
    assert batched["closed at the end"]


@pytest.mark.parametrize("name", STREAMING_ERRORS)
async def test_errors_of_streaming_responses(name: str) -> None:
    realtime, batched = await both(STREAMING_ERRORS[name])
    assert_equal(name, batched, realtime)
    assert isinstance(realtime, openai.APIStatusError)


@pytest.mark.parametrize("name", STREAMS)
async def test_streams(name: str) -> None:
    realtime, batched = await both(STREAMS[name])
    assert without_ids(batched) == without_ids(realtime)
    assert not isinstance(realtime, Exception)


@pytest.mark.parametrize("name", HELPERS)
async def test_stream_helpers(name: str) -> None:
    realtime, batched = await both(HELPERS[name])
    assert without_ids(described(batched)) == without_ids(described(realtime))
    assert not isinstance(realtime, Exception)


@pytest.mark.parametrize("name", HELPER_ERRORS)
async def test_errors_of_stream_helpers(name: str) -> None:
    realtime, batched = await both(HELPER_ERRORS[name])
    assert without_ids(described(batched)) == without_ids(described(realtime))
    assert isinstance(realtime, Exception)


async def test_a_request_that_no_batch_may_hold_fails_as_a_line() -> None:
    """The one known difference: a server checks the model of each line before any is answered."""
    realtime, batched = await both_without_a_model()
    assert isinstance(realtime, openai.BadRequestError)
    assert isinstance(batched, RequestFailedError)
    assert isinstance(batched, openai.APIError)
    assert batched.batch_id is not None
    assert "model" in batched.message


async def both_without_a_model() -> tuple[Any, Any]:
    call = chat(model="")
    async with LocalBatchAPI() as api:
        options: dict[str, Any] = {"api_key": "k", "base_url": "http://local/v1", "max_retries": 0}
        async with BatchOpenAI(**options, http_client=api.http_client()) as batching:
            await batching.models.list()
            batched = await outcome(call, batching)
        async with openai.AsyncOpenAI(**options, http_client=api.http_client()) as client:
            return await outcome(call, client), batched
