"""Streams of batched answers, whatever the server's answer: the SDK's accumulators give back the whole answer."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import openai
import pydantic
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autobatcher import BatchFailedError, BatchOpenAI
from autobatcher._http import httpx

# What pydantic says of an answer whose fields are not of the declared types.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")

Kind = Literal["chat", "responses"]
KINDS: list[Kind] = ["chat", "responses"]

bounded = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


# --- a server whose lines all have one body --------------------------------------------------------------------


@dataclass
class Server:
    body: bytes
    lines: list[bytes] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        match request.method, request.url.path:
            case "POST", "/v1/files":
                found = request.content.split(b"\n")
                self.lines += [part for part in found if part.startswith(b'{"custom_id"')]
                return httpx.Response(200, json={"id": "file-in", "object": "file"})
            case ("POST", "/v1/batches") | ("GET", "/v1/batches/batch_1"):
                batch = {"id": "batch_1", "object": "batch", "status": "completed"}
                return httpx.Response(200, json={**batch, "output_file_id": "file-out"})
            case "GET", "/v1/files/file-out/content":
                return httpx.Response(200, content=b"".join(self._results()))
            case other:
                raise AssertionError(other)

    def _results(self) -> Iterator[bytes]:
        for line in self.lines:
            custom_id = json.dumps(json.loads(line)["custom_id"]).encode()
            yield (
                b'{"id":"r","custom_id":%b,"error":null,"response":'
                b'{"status_code":200,"request_id":"req_5","body":%b}}\n' % (custom_id, self.body)
            )


@asynccontextmanager
async def client_of(body: Any) -> AsyncIterator[BatchOpenAI]:
    server = Server(body if isinstance(body, bytes) else json.dumps(body).encode())
    async with BatchOpenAI(
        api_key="k",
        base_url="http://server.test/v1",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=httpx.MockTransport(server)),
        batch_window_seconds=0,
        poll_interval_seconds=0.001,
    ) as client:
        yield client


def call(client: openai.AsyncOpenAI, kind: Kind, **arguments: Any) -> Any:
    if kind == "chat":
        return client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], **arguments
        )
    return client.responses.create(model="m", input="x", **arguments)


# --- finished answers ------------------------------------------------------------------------------------------


texts = st.text(max_size=12) | st.sampled_from(
    ["", "a\u2028b\u2029", "\x85", "line\n\nbreak\r\n", "data: [DONE]", "\x00\x7f", "žluť 🦙 \ufeff", '"\\']
)
some_text = texts.filter(bool)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
# Names that no SDK declares, so that none is taken for something else.
unknown = st.dictionaries(
    st.sampled_from(["vendor_a", "vendor_b", "reasoning_content"]), json_values, max_size=2
)

function_calls = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": texts, "arguments": texts}),
    }
)
custom_calls = st.fixed_dictionaries(
    {"type": st.just("custom"), "custom": st.fixed_dictionaries({"name": texts, "input": texts})}
)
tool_calls = st.lists(function_calls | custom_calls, max_size=3).map(
    lambda calls: [{"id": f"call_{number}", **call} for number, call in enumerate(calls)]
)
tokens = st.lists(
    st.fixed_dictionaries(
        {
            "token": texts,
            "logprob": st.floats(-9, 0),
            "bytes": st.none() | st.lists(st.integers(0, 255), max_size=3),
            "top_logprobs": st.just([]),
        }
    ),
    max_size=2,
)
logprobs = st.none() | st.fixed_dictionaries({"content": st.none() | tokens, "refusal": st.none() | tokens})
messages = st.builds(
    lambda known, extra: {"role": "assistant", **extra, **known},
    st.fixed_dictionaries(
        {"content": st.none() | texts, "refusal": st.none() | some_text},
        optional={"tool_calls": tool_calls, "annotations": st.just([])},
    ),
    unknown,
)
choices = st.lists(
    st.builds(
        lambda known, extra: {**extra, **known},
        st.fixed_dictionaries(
            {
                "finish_reason": st.sampled_from(["stop", "length", "tool_calls", "content_filter", "odd"]),
                "message": messages,
            },
            optional={"logprobs": logprobs},
        ),
        unknown,
    ),
    min_size=1,
    max_size=3,
).map(lambda found: [{"index": index, **choice} for index, choice in enumerate(found)])
completions = st.builds(
    lambda found, extra, order: {
        **extra,
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "system_fingerprint": "fp",
        "service_tier": "default",
        "choices": found if order else found[::-1],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
    },
    choices,
    unknown,
    st.booleans(),
)

citations = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("url_citation"),
            "url": texts,
            "title": texts,
            "start_index": st.just(0),
            "end_index": st.integers(0, 9),
        }
    ),
    max_size=2,
)
text_parts = st.fixed_dictionaries(
    {"type": st.just("output_text"), "text": texts, "annotations": citations, "logprobs": st.just([])}
)
refusals = st.fixed_dictionaries({"type": st.just("refusal"), "refusal": texts})
message_items = st.fixed_dictionaries(
    {
        "type": st.just("message"),
        "role": st.just("assistant"),
        "status": st.just("completed"),
        "content": st.lists(text_parts | refusals, max_size=2),
    }
)
call_items = st.fixed_dictionaries(
    {
        "type": st.just("function_call"),
        "name": texts,
        "arguments": texts,
        "status": st.just("completed"),
    }
)
reasoning_items = st.fixed_dictionaries(
    {
        "type": st.just("reasoning"),
        "summary": st.lists(
            st.fixed_dictionaries({"type": st.just("summary_text"), "text": texts}), max_size=2
        ),
    },
    optional={
        "content": st.lists(
            st.fixed_dictionaries({"type": st.just("reasoning_text"), "text": texts}), max_size=2
        ),
        "encrypted_content": st.none() | texts,
    },
)
search_items = st.fixed_dictionaries(
    {
        "type": st.just("web_search_call"),
        "status": st.just("completed"),
        "action": st.fixed_dictionaries({"type": st.just("search"), "query": texts}),
    }
)


def numbered(number: int, item: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    ids = {"id": f"item_{number}"}
    if item["type"] == "function_call":
        ids["call_id"] = f"call_{number}"
    return {**extra, **item, **ids}


outputs = st.lists(
    st.tuples(message_items | call_items | reasoning_items | search_items, unknown), max_size=3
).map(lambda items: [numbered(number, *item) for number, item in enumerate(items)])


def response(output: list[dict[str, Any]], extra: dict[str, Any]) -> dict[str, Any]:
    return {
        **extra,
        "id": "resp_1",
        "object": "response",
        "created_at": 7,
        "model": "m",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 8,
        },
    }


responses = st.builds(response, outputs, unknown)
CITATIONS = [
    {"type": "url_citation", "url": url, "title": "t", "start_index": 0, "end_index": 1} for url in "ab"
]
CITED = response(
    [
        {
            "type": "message",
            "id": "item_0",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": text, "annotations": CITATIONS, "logprobs": []}
                for text in ("Hi", "Ho")
            ],
        }
    ],
    {},
)


def shown(value: pydantic.BaseModel, *, without: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment] # never changed
    """Its fields, less those that are null or empty, which streams leave out."""
    found = value.model_dump(mode="json", warnings=False, exclude_unset=True)
    return {key: item for key, item in found.items() if item not in (None, []) and key not in without}


def shown_message(message: Any) -> dict[str, Any]:
    found = shown(message, without={"parsed"})
    for made in found.get("tool_calls", []):
        made.pop("index", None)  # what a stream has for the position
        if made["type"] == "custom":
            made.pop("function", None)  # the SDK's accumulator takes every call for a function's
        else:
            made["function"].pop("parsed_arguments", None)
    return found


@bounded
@given(answer=completions)
def test_the_stream_of_a_chat_completion_accumulates_to_it(answer: dict[str, Any]) -> None:
    async def both() -> tuple[Any, Any]:
        async with client_of(answer) as client:
            whole = call(client, "chat")
            return await asyncio.gather(whole, accumulated_chat(client, parsed=is_parsed(answer)))

    whole, streamed = asyncio.run(asyncio.wait_for(both(), 30))
    assert shown(streamed, without={"choices"}) == shown(whole, without={"choices"})
    expected = sorted(whole.choices, key=lambda choice: choice.index)
    assert [choice.index for choice in streamed.choices] == [choice.index for choice in expected]
    for got, choice in zip(streamed.choices, expected, strict=True):
        assert got.finish_reason == choice.finish_reason
        assert shown_message(got.message) == shown_message(choice.message)
        assert (got.message.content is None) == (choice.message.content is None)
        assert dumped_logprobs(got) == dumped_logprobs(choice)


def is_parsed(answer: dict[str, Any]) -> bool:
    """Whether the SDK gives a final completion: not of a cut one, and of calls of functions alone."""
    return not any(
        choice["finish_reason"] in ("length", "content_filter")
        or any(made["type"] == "custom" for made in choice["message"].get("tool_calls", []))
        for choice in answer["choices"]
    )


async def accumulated_chat(client: openai.AsyncOpenAI, *, parsed: bool) -> Any:
    async with client.chat.completions.stream(
        model="m", messages=[{"role": "user", "content": "x"}], stream_options={"include_usage": True}
    ) as stream:
        await stream.until_done()
        return await stream.get_final_completion() if parsed else stream.current_completion_snapshot


def dumped_logprobs(choice: Any) -> dict[str, Any]:
    return {} if choice.logprobs is None else shown(choice.logprobs)


@bounded
@given(answer=completions)
def test_the_chunks_of_a_chat_completion_leave_nothing_out(answer: dict[str, Any]) -> None:
    """What accumulators drop is in the chunks: fields of a choice that the SDK does not know."""

    async def chunks() -> list[Any]:
        async with client_of(answer) as client:
            return [chunk async for chunk in await call(client, "chat", stream=True)]

    found = asyncio.run(asyncio.wait_for(chunks(), 30))
    for choice in answer["choices"]:
        rest = {
            key: value for key, value in choice.items() if key not in ("message", "logprobs", "finish_reason")
        }
        (last,) = [
            item
            for chunk in found
            for item in chunk.choices
            if item.index == choice["index"] and item.finish_reason
        ]
        assert {key: getattr(last, key) for key in rest} == rest
        assert last.finish_reason == choice["finish_reason"]
    assert all(chunk.usage is None for chunk in found)
    assert {(chunk.id, chunk.object, chunk.model) for chunk in found} == {
        ("chatcmpl-1", "chat.completion.chunk", "m")
    }


@bounded
@given(answer=responses)
@example(answer=CITED)
def test_the_stream_of_a_response_accumulates_to_it(answer: dict[str, Any]) -> None:
    async def both() -> tuple[Any, Any, Any]:
        async with client_of(answer) as client:
            return await asyncio.gather(
                call(client, "responses"), accumulated_response(client), events_of(client)
            )

    whole, streamed, events = asyncio.run(asyncio.wait_for(both(), 30))
    assert shown(streamed, without={"output"}) == shown(whole, without={"output"})
    assert streamed.output_text == whole.output_text
    for got, item in zip(streamed.output, whole.output, strict=True):
        assert shown_item(got) == shown_item(item)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [shown(item) for item in done] == [shown(item) for item in whole.output]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    finished = [event.text for event in events if event.type == "response.output_text.done"]
    assert "".join(finished) == whole.output_text
    cited = [
        event.to_dict()["annotation"]
        for event in events
        if event.type == "response.output_text.annotation.added"
    ]
    assert cited == [
        citation
        for item in answer["output"]
        if item["type"] == "message"
        for part in item["content"]
        for citation in part.get("annotations", [])
    ]


async def accumulated_response(client: openai.AsyncOpenAI) -> Any:
    async with client.responses.stream(model="m", input="x") as stream:
        return await stream.get_final_response()


async def events_of(client: openai.AsyncOpenAI) -> list[Any]:
    return [event async for event in await call(client, "responses", stream=True)]


def shown_item(item: Any) -> dict[str, Any]:
    found = shown(item, without={"parsed_arguments"})
    for part in found.get("content", []):
        part.pop("parsed", None)
    return found


@bounded
@given(answer=responses, status=st.sampled_from(["incomplete", "failed"]))
def test_the_last_event_of_an_unfinished_response_holds_it(answer: dict[str, Any], status: str) -> None:
    answer = {**answer, "status": status, "usage": None}

    async def both() -> tuple[Any, Any]:
        async with client_of(answer) as client:
            return await asyncio.gather(call(client, "responses"), events_of(client))

    whole, events = asyncio.run(asyncio.wait_for(both(), 30))
    assert events[-1].type == f"response.{status}"
    assert events[-1].response.to_dict() == whole.to_dict()


# --- odd answers -----------------------------------------------------------------------------------------------


BASES: dict[Kind, dict[str, Any]] = {
    "chat": {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "logprobs": {"content": [], "refusal": None},
                "message": {
                    "role": "assistant",
                    "content": "Hi",
                    "refusal": None,
                    "annotations": [],
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                        {"id": "d", "type": "custom", "custom": {"name": "g", "input": "x"}},
                    ],
                },
            },
            {"index": 1, "finish_reason": "stop", "message": {"role": "assistant", "content": "Ho"}},
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    },
    "responses": {
        "id": "resp_1",
        "object": "response",
        "created_at": 1.0,
        "status": "completed",
        "model": "m",
        "error": None,
        "output": [
            {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "s"}]},
            {
                "type": "message",
                "id": "msg",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "Hi", "annotations": [{"type": "file_path"}]},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
            {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": "{}"},
        ],
        "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2},
    },
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container in a JSON value, with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in ((value, key), *places(value[key]))]


@st.composite
def altered(draw: st.DrawFn, base: dict[str, Any]) -> dict[str, Any]:
    """A JSON object in which some values are gone, null, or others; as often as not of a wrong type."""
    value = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 4))):
        found = places(value)
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        match draw(st.sampled_from(["drop", "null", "replace", "wrap"])):
            case "drop":
                del container[key]
            case "null":
                container[key] = None
            case "wrap":
                container[key] = [container[key]]
            case _:
                container[key] = draw(json_values)
    return value


PAGE = "<!doctype html>\n<html><body>\n<h1>502 Bad Gateway</h1>\n</body></html>\n"
NO_ANSWER: list[Any] = [
    PAGE,
    "",
    " ",
    None,
    0,
    [],
    [1],
    {},
    {"choices": None},
    {"choices": {}},
    {"choices": 3},
    {"choices": [None]},
    {"choices": ["x"]},
    {"choices": [{}]},
    {"choices": [{"message": "x"}]},
    {"choices": [{"message": {"tool_calls": [None]}}]},
    {"choices": [{"index": None}, {"index": "0"}]},
    {"choices": [{"index": [0]}, {}]},
    {"output": None},
    {"output": {"a": 1}},
    {"output": [None]},
    {"output": [{}]},
    {"output": [{"type": []}]},
    {"output": [{"type": "message", "content": "x"}]},
    {"output": [{"type": "message", "content": [{"type": {}}]}]},
    {"output": [{"type": "reasoning", "summary": [1]}]},
    {"error": {"message": "all is lost"}},
    {"error": "all is lost"},
    {"object": "error", "message": "x", "code": 400},
]
NO_ANSWERS = [json.dumps(value).encode() for value in NO_ANSWER]
NO_ANSWERS += [
    b'{"choices": [{"message": {"content": "\\ud83d"}}]}',
    b'{"choices": [{"message": {"content": NaN}}], "created": Infinity}',
    b'{"choices": [{"index": 1e999}]}',
    b'{"created": ' + b"9" * 5000 + b"}",
]


NESTED = b'{"choices": ' + b"[" * 3000 + b"]" * 3000 + b"}"
other_json: st.SearchStrategy[Any] = json_values.filter(lambda value: not isinstance(value, str))


async def streamed(body: bytes, kind: Kind) -> list[Any] | openai.OpenAIError:
    async with client_of(body) as client:
        try:
            return [item async for item in await call(client, kind, stream=True)]
        except openai.OpenAIError as error:
            return error


def check_odd(body: bytes, kind: Kind) -> list[Any] | openai.OpenAIError:
    """Iterate; anything else than items and the SDK's errors, a hang among it, fails the test."""
    result = asyncio.run(asyncio.wait_for(streamed(body, kind), 30))
    if isinstance(result, list):
        assert all(isinstance(item, pydantic.BaseModel) for item in result)
    return result


@bounded
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_the_stream_of_an_odd_answer_ends_or_raises_the_sdks_error(kind: Kind, data: st.DataObject) -> None:
    check_odd(json.dumps(data.draw(altered(BASES[kind]))).encode(), kind)


@bounded
@given(kind=st.sampled_from(KINDS), value=other_json)
@example(kind="chat", value={"choices": {}, "index": 0})
def test_the_stream_of_any_json_ends_or_raises_the_sdks_error(kind: Kind, value: Any) -> None:
    check_odd(json.dumps(value).encode(), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", NO_ANSWERS, ids=lambda body: body[:40].decode(errors="replace"))
def test_the_stream_of_no_answer_ends_or_raises_the_sdks_error(body: bytes, kind: Kind) -> None:
    check_odd(body, kind)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_nested_beyond_every_stack_is_no_line_and_raises_in_the_end(kind: Kind) -> None:
    """It is looked for and bought a few times more, which takes virtual minutes."""
    result = await streamed(NESTED, kind)
    assert isinstance(result, BatchFailedError)
    assert result.status == "completed"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("body", [b"null", b"[]", b"0", b'{"choices":[1],"output":[1]}'], ids=bytes.decode)
def test_what_has_not_the_form_of_an_answer_is_no_valid_response(body: bytes, kind: Kind) -> None:
    error = check_odd(body, kind)
    assert isinstance(error, openai.APIResponseValidationError)
    assert isinstance(error, openai.APIError)
    assert error.status_code == 200
    assert error.response.content == body


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [{"message": "all is lost"}, "all is lost"], ids=["object", "text"])
def test_an_error_in_an_answer_of_status_200_is_raised_while_it_streams(error: Any, kind: Kind) -> None:
    """As the SDK does with an event that holds one."""
    result = check_odd(json.dumps({**BASES[kind], "error": error}).encode(), kind)
    if kind == "chat":
        assert type(result) is openai.APIError
        assert result.body == error
    else:  # an event of the Responses API holds the answer one level down, and the SDK lets it pass
        assert isinstance(result, list)
        assert result[-1].type == "response.completed"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("page", [PAGE, "", "upstream connect error", "a: b\n\nc"])
def test_a_page_streams_as_it_does_at_once(page: str, kind: Kind) -> None:
    def serve(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-type": "text/html"}, content=page.encode())

    async def realtime() -> list[Any]:
        async with openai.AsyncOpenAI(
            api_key="k",
            base_url="http://server.test/v1",
            max_retries=0,
            http_client=httpx.AsyncClient(transport=httpx.MockTransport(serve)),
        ) as client:
            return [item async for item in await call(client, kind, stream=True)]

    assert check_odd(json.dumps(page).encode(), kind) == asyncio.run(realtime()) == []
