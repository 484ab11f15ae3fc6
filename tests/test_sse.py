"""A finished answer survives its stream: the SDK's own accumulators give it back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from autobatcher import sse
from autobatcher._http import httpx

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
LOGPROBS: dict[str, Any] = {
    "content": [{"token": "hi", "logprob": -0.5, "bytes": None, "top_logprobs": []}],
    "refusal": None,
}
CALLS = [
    {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": '{"a": "é"}'}}
    for number, name in enumerate(["one", "two"])
]


def completion(*choices: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "system_fingerprint": "fp",
        "service_tier": "default",
        "usage": USAGE,
        "choices": [{"index": index, **choice} for index, choice in enumerate(choices)],
        **extra,
    }


def choice(finish: str = "stop", logprobs: Any = None, **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": None, **message}
    return {"message": message, "finish_reason": finish, "logprobs": logprobs}


def response(*output: dict[str, Any], status: str = "completed", **extra: Any) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 7,
        "model": "m",
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "output": list(output),
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 8,
        },
        **extra,
    }


def message(*content: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": list(content),
    }


def text(value: str, **extra: Any) -> dict[str, Any]:
    return {"type": "output_text", "text": value, "annotations": [], "logprobs": [], **extra}


CITATION = {"type": "url_citation", "url": "https://e.org/", "title": "t", "start_index": 0, "end_index": 1}
REASONING = {
    "id": "rs_1",
    "type": "reasoning",
    "summary": [{"type": "summary_text", "text": "thought"}],
    "content": [{"type": "reasoning_text", "text": "thinking"}],
    "status": "completed",
}
CALL = {
    "id": "fc_1",
    "type": "function_call",
    "call_id": "call_1",
    "name": "one",
    "arguments": '{"a":1}',
    "status": "completed",
}
SEARCH = {
    "id": "ws_1",
    "type": "web_search_call",
    "status": "completed",
    "action": {"type": "search", "query": "q"},
}


def sdk(endpoint: str, answer: dict[str, Any]) -> openai.OpenAI:
    """The SDK's client before a server that streams this answer."""

    def handle(request: httpx.Request) -> httpx.Response:
        body = b"".join(sse.encode(endpoint, answer, json.loads(request.content)))
        return httpx.Response(200, content=body, headers={"content-type": "text/event-stream"})

    http = httpx.Client(transport=httpx.MockTransport(handle))
    return openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=http, max_retries=0)


def streamed_chat(answer: dict[str, Any]) -> dict[str, Any]:
    with (
        sdk("/v1/chat/completions", answer) as client,
        client.chat.completions.stream(
            model="m",
            messages=[{"role": "user", "content": "x"}],
            stream_options={"include_usage": True},
        ) as stream,
    ):
        stream.until_done()
        return stream.current_completion_snapshot.to_dict()


def without_empty(value: Any) -> Any:
    """Without what the SDK's accumulator adds or leaves out: nulls, `parsed`, the index of a tool call."""
    if isinstance(value, dict):
        skipped = {"parsed", "parsed_arguments"} | ({"index"} if "function" in value else set())
        kept = {key: without_empty(item) for key, item in value.items() if key not in skipped}
        return {key: item for key, item in kept.items() if item is not None and item != []}
    return [without_empty(item) for item in value] if isinstance(value, list) else value


CHATS = {
    "text": completion(choice(content="hello\u2028 you\n\nthere")),
    "empty": completion(choice(content="")),
    "nothing": completion(choice()),
    "refusal": completion(choice(refusal="no")),
    "calls": completion(choice("tool_calls", tool_calls=CALLS)),
    "text and calls": completion(choice("tool_calls", content="hi", tool_calls=CALLS)),
    "several choices": completion(choice(content="a"), choice("length", content="b"), choice(refusal="c")),
    "logprobs": completion(choice(content="hi", logprobs=LOGPROBS)),
    "logprobs without content": completion(choice("tool_calls", tool_calls=CALLS, logprobs=LOGPROBS)),
    "reasoning": completion(choice(content="hi", reasoning_content="why", vendor={"a": [1]})),
    "filtered": completion(choice("content_filter", content="")),
}


@pytest.mark.parametrize("name", CHATS)
def test_the_sdk_accumulates_the_chat_completion(name: str) -> None:
    assert without_empty(streamed_chat(CHATS[name])) == without_empty(CHATS[name])


def test_absent_content_stays_null_and_empty_content_stays_empty() -> None:
    assert streamed_chat(CHATS["calls"])["choices"][0]["message"]["content"] is None
    assert streamed_chat(CHATS["empty"])["choices"][0]["message"]["content"] == ""


def test_choices_stream_in_the_order_of_their_index() -> None:
    answer = completion(choice(content="a"), choice(content="b"))
    answer["choices"].reverse()
    assert [item["message"]["content"] for item in streamed_chat(answer)["choices"]] == ["a", "b"]


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("include_usage", [False, True])
def test_every_chunk_is_one_of_the_api(name: str, *, include_usage: bool) -> None:
    chunks = list(sse.chat_chunks(CHATS[name], include_usage=include_usage))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    finishes = [item["finish_reason"] for chunk in chunks for item in chunk["choices"]]
    expected = [item["finish_reason"] for item in CHATS[name]["choices"]]
    assert [finish for finish in finishes if finish] == expected
    if include_usage:
        assert [chunk["usage"] for chunk in chunks] == [None] * (len(chunks) - 1) + [USAGE]
        assert chunks[-1]["choices"] == []
    else:
        assert all("usage" not in chunk for chunk in chunks)


def test_the_index_of_a_tool_call_is_its_position() -> None:
    answer = completion(choice("tool_calls", tool_calls=[{**call, "index": None} for call in CALLS]))
    deltas = [chunk["choices"][0]["delta"] for chunk in sse.chat_chunks(answer, include_usage=False)]
    assert [call["index"] for delta in deltas for call in delta.get("tool_calls", [])] == [0, 1]


@given(content=st.text(), arguments=st.text(), refusal=st.none() | st.text(min_size=1))
def test_any_text_survives(content: str, arguments: str, refusal: str | None) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    answer = completion(choice("tool_calls", content=content, refusal=refusal, tool_calls=[call]))
    assert without_empty(streamed_chat(answer)) == without_empty(answer)


RESPONSES = {
    "text": response(message(text("hello\u2028 you"))),
    "empty": response(message(text(""))),
    "refusal": response(message({"type": "refusal", "refusal": "no"})),
    "parts": response(message(text("a"), text("b", annotations=[CITATION]))),
    "call": response(CALL),
    "everything": response(REASONING, SEARCH, message(text("a")), CALL),
    "nothing": response(),
}
UNFINISHED = {
    "incomplete": response(
        message(text("a")), status="incomplete", incomplete_details={"reason": "max_output_tokens"}
    ),
    "failed": response(status="failed", error={"code": "server_error", "message": "m"}, usage=None),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_the_sdk_accumulates_the_response(name: str) -> None:
    with (
        sdk("/v1/responses", RESPONSES[name]) as client,
        client.responses.stream(model="m", input="x") as stream,
    ):
        final = stream.get_final_response().to_dict()
    assert without_empty(final) == without_empty(RESPONSES[name])


@pytest.mark.parametrize("name", UNFINISHED)
def test_an_unfinished_response_ends_with_its_status(name: str) -> None:
    with (
        sdk("/v1/responses", UNFINISHED[name]) as client,
        client.responses.create(model="m", input="x", stream=True) as stream,
    ):
        last = list(stream)[-1]
    assert last.type == f"response.{name}"
    assert without_empty(last.to_dict()["response"]) == without_empty(UNFINISHED[name])


def rebuilt(events: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as only the deltas tell it: [{type of the item, text, refusal, arguments, ...}]."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            items.append({"type": event["item"]["type"]})
            assert event["output_index"] == len(items) - 1
        elif kind.endswith(".delta"):
            name = kind.removesuffix(".delta")
            items[event["output_index"]][name] = items[event["output_index"]].get(name, "") + event["delta"]
    return items


def test_the_deltas_alone_tell_the_output() -> None:
    assert rebuilt(sse.response_events(RESPONSES["everything"])) == [
        {"type": "reasoning", "reasoning_summary_text": "thought", "reasoning_text": "thinking"},
        {"type": "web_search_call"},
        {"type": "message", "output_text": "a"},
        {"type": "function_call", "function_call_arguments": '{"a":1}'},
    ]


@pytest.mark.parametrize("name", [*RESPONSES, *UNFINISHED])
def test_every_event_is_one_of_the_api_and_numbered(name: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    events = list(sse.response_events({**RESPONSES, **UNFINISHED}[name]))
    for event in events:
        adapter.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["error"] is None


@pytest.mark.parametrize(
    "endpoint", ["/v1/chat/completions", "/chat/completions", "http://h/a/chat/completions/"]
)
def test_a_chat_stream_ends_with_done(endpoint: str) -> None:
    parts = list(sse.encode(endpoint, CHATS["text"], {"stream_options": None}))
    assert all(part.startswith(b"data: ") and part.endswith(b"\n\n") for part in parts)
    assert all(part.count(b"\n") == 2 for part in parts)
    assert parts[-1] == b"data: [DONE]\n\n"


@pytest.mark.parametrize("endpoint", ["/v1/responses", "/responses", "http://h/a/responses/"])
def test_a_response_stream_names_its_events(endpoint: str) -> None:
    for part in sse.encode(endpoint, RESPONSES["everything"], {}):
        event, data, *rest = part.decode().split("\n")
        assert rest == ["", ""]
        assert event.removeprefix("event: ") == json.loads(data.removeprefix("data: "))["type"]
