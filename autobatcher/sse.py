"""A finished answer as the stream of server-sent events that a realtime server would have sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def encode(endpoint: str, answer: Any, request: Mapping[str, Any]) -> list[bytes]:
    """The events of the stream; the end of `endpoint` decides between chat chunks and typed response events.

    Raises:
        ValueError: the answer has not the form of the endpoint's.
    """
    try:
        return list(_encoded(endpoint, answer, request))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no answer to {endpoint} that could be streamed: {error}") from error


def _encoded(endpoint: str, answer: dict[str, Any], request: Mapping[str, Any]) -> Iterator[bytes]:
    if endpoint.rstrip("/").endswith("responses"):
        for event in response_events(answer):
            yield f"event: {event['type']}\ndata: {_dump(event)}\n\n".encode()
        return
    options = request.get("stream_options")
    include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    for chunk in chat_chunks(answer, include_usage=include_usage):
        yield f"data: {_dump(chunk)}\n\n".encode()
    yield b"data: [DONE]\n\n"


def _dump(value: dict[str, Any]) -> str:
    # ASCII only: readers of lines may break them at characters such as U+2028.
    return json.dumps(value, separators=(",", ":"))


def chat_chunks(answer: dict[str, Any], *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """`chat.completion.chunk` objects: role, content, each tool call, finish_reason, then usage if asked for."""
    base = {key: value for key, value in answer.items() if key not in ("object", "choices", "usage")}
    base["object"] = "chat.completion.chunk"
    if include_usage:
        base["usage"] = None
    choices = [{"index": position, **choice} for position, choice in enumerate(answer.get("choices") or [])]
    for choice in sorted(choices, key=lambda choice: choice["index"]):
        for piece in _choice_pieces(choice):
            yield {**base, "choices": [piece]}
    if include_usage:
        yield {**base, "choices": [], "usage": answer.get("usage")}


def _choice_pieces(choice: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The choice as a chunk carries it, once for each delta; whatever else it has comes with the finish_reason."""
    message = dict(choice.get("message") or {})
    calls = message.pop("tool_calls", None) or []
    content, refusal = message.pop("content", None), message.pop("refusal", None)
    opening = "" if isinstance(content, str) else None
    deltas: list[dict[str, Any]] = [
        {"role": message.pop("role", "assistant"), "content": opening, "refusal": None}
    ]
    deltas += [{key: value} for key, value in message.items() if value is not None and value != []]
    said = [{key: value} for key, value in (("content", content), ("refusal", refusal)) if value]
    deltas += said
    deltas += [{"tool_calls": [{**call, "index": number}]} for number, call in enumerate(calls)]
    logprobs = choice.get("logprobs")
    for delta in deltas:
        carried = logprobs if said and delta is said[0] else None
        yield {"index": choice["index"], "delta": delta, "logprobs": carried, "finish_reason": None}
    rest = {key: value for key, value in choice.items() if key != "message"}
    yield {**rest, "delta": {}, "logprobs": None if said else logprobs}


def response_events(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Typed events in order, each with its sequence_number."""
    for number, event in enumerate(_response_events(answer)):
        yield {**event, "sequence_number": number}


def _response_events(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    unknown_yet = ("usage", "incomplete_details", "error", "completed_at")
    started = {**answer, "status": "in_progress", "output": []}
    started.update({key: None for key in unknown_yet if key in answer})
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    for index, item in enumerate(answer.get("output") or []):
        where = {"output_index": index, "item_id": item.get("id") or ""}
        emptied: dict[str, Any] = _EMPTIED.get(item.get("type", ""), {})
        opened = {**item, **{key: value for key, value in emptied.items() if item.get(key) is not None}}
        if item.get("status") is not None:
            opened["status"] = "in_progress"
        yield {"type": "response.output_item.added", "output_index": index, "item": opened}
        if item.get("type") in _CALLS:
            yield from _call_events(item, where)
        elif item.get("type") in ("message", "reasoning"):
            for position, part in enumerate(item.get("summary") or []):
                yield from _summary_events(part, {**where, "summary_index": position})
            for position, part in enumerate(item.get("content") or []):
                yield from _part_events(part, {**where, "content_index": position})
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    ending = answer.get("status") if answer.get("status") in ("incomplete", "failed") else "completed"
    yield {"type": f"response.{ending}", "response": answer}


_CALLS = {
    "function_call": ("arguments", "response.function_call_arguments", None),
    "custom_tool_call": ("input", "response.custom_tool_call_input", None),
    "mcp_call": ("arguments", "response.mcp_call_arguments", "response.mcp_call"),
    "code_interpreter_call": (
        "code",
        "response.code_interpreter_call_code",
        "response.code_interpreter_call",
    ),
    "web_search_call": (None, "", "response.web_search_call"),
    "file_search_call": (None, "", "response.file_search_call"),
    "image_generation_call": (None, "", "response.image_generation_call"),
}
"""For each kind of call: the field that comes in pieces, the event of the pieces, and that of the call's progress.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""


def _call_events(item: dict[str, Any], where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    key, pieces, progress = _CALLS[item["type"]]
    if progress is not None:
        yield {"type": f"{progress}.in_progress", **where}
    if key is not None:
        text = item.get(key) or ""
        named = {"name": item.get("name", "")} if item["type"] == "function_call" else {}
        yield {"type": f"{pieces}.delta", **where, "delta": text}
        yield {"type": f"{pieces}.done", **where, **named, key: text}
    if progress is not None:
        failed = item["type"] == "mcp_call" and item.get("error") is not None
        yield {"type": f"{progress}.{'failed' if failed else 'completed'}", **where}


_EMPTIED: dict[str, dict[str, Any]] = {
    "message": {"content": []},
    **{kind: {key: ""} for kind, (key, _, _) in _CALLS.items() if key is not None},
    "reasoning": {"summary": [], "content": []},
}


def _summary_events(part: dict[str, Any], where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    text = part.get("text") or ""
    yield {"type": "response.reasoning_summary_part.added", **where, "part": {**part, "text": ""}}
    yield {"type": "response.reasoning_summary_text.delta", **where, "delta": text}
    yield {"type": "response.reasoning_summary_text.done", **where, "text": text}
    yield {"type": "response.reasoning_summary_part.done", **where, "part": part}


_PARTS = {
    "output_text": ("response.output_text", "text"),
    "refusal": ("response.refusal", "refusal"),
    "reasoning_text": ("response.reasoning_text", "text"),
}


def _part_events(part: dict[str, Any], where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    kind = part.get("type", "")
    if kind not in _PARTS:
        yield {"type": "response.content_part.added", **where, "part": part}
        yield {"type": "response.content_part.done", **where, "part": part}
        return
    name, key = _PARTS[kind]
    text = part.get(key) or ""
    emptied: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    more = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
    yield {"type": "response.content_part.added", **where, "part": {**part, key: "", **emptied}}
    yield {"type": f"{name}.delta", **where, "delta": text, **more}
    for number, annotation in enumerate(part.get("annotations") or []):
        yield {
            "type": "response.output_text.annotation.added",
            **where,
            "annotation_index": number,
            "annotation": annotation,
        }
    yield {"type": f"{name}.done", **where, key: text, **more}
    yield {"type": "response.content_part.done", **where, "part": part}
