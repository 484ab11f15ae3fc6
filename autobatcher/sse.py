"""A finished answer as the stream of server-sent events that a realtime server would have sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def encode(endpoint: str, answer: dict[str, Any], request: dict[str, Any]) -> Iterator[bytes]:
    """The bytes of the stream; the end of `endpoint` decides between chat chunks and typed response events."""
    if endpoint.endswith("responses"):
        for event in response_events(answer):
            yield f"event: {event['type']}\ndata: {_dump(event)}\n\n".encode()
        return
    include_usage = bool((request.get("stream_options") or {}).get("include_usage"))
    for chunk in chat_chunks(answer, include_usage=include_usage):
        yield f"data: {_dump(chunk)}\n\n".encode()
    yield b"data: [DONE]\n\n"


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def chat_chunks(answer: dict[str, Any], *, include_usage: bool) -> Iterator[dict[str, Any]]:
    """`chat.completion.chunk` objects: role, content, each tool call, finish_reason, then usage if asked for."""
    base = {key: value for key, value in answer.items() if key not in ("object", "choices", "usage")}
    base["object"] = "chat.completion.chunk"
    if include_usage:
        base["usage"] = None
    for choice in answer.get("choices") or []:
        message = dict(choice.get("message") or {})
        index = choice.get("index", 0)
        calls = message.pop("tool_calls", None) or []
        deltas: list[dict[str, Any]] = [{"role": message.pop("role", "assistant"), "content": ""}]
        deltas += [{key: value} for key, value in message.items() if value is not None and value != []]
        deltas += [{"tool_calls": [{"index": number, **call}]} for number, call in enumerate(calls)]
        for number, delta in enumerate(deltas):
            logprobs = choice.get("logprobs") if number == 1 else None
            piece = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
            yield {**base, "choices": [piece]}
        ending = {"index": index, "delta": {}, "logprobs": None, "finish_reason": choice.get("finish_reason")}
        yield {**base, "choices": [ending]}
    if include_usage:
        yield {**base, "choices": [], "usage": answer.get("usage")}


def response_events(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Typed events in order, each with its sequence_number."""
    for number, event in enumerate(_response_events(answer)):
        yield {**event, "sequence_number": number}


def _response_events(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    started = {**answer, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": started}
    yield {"type": "response.in_progress", "response": started}
    for index, item in enumerate(answer.get("output") or []):
        where = {"output_index": index, "item_id": item.get("id", "")}
        opened = {**item, "status": "in_progress"} if "status" in item else dict(item)
        if item.get("type") == "message":
            opened["content"] = []
        elif item.get("type") == "function_call":
            opened["arguments"] = ""
        yield {"type": "response.output_item.added", "output_index": index, "item": opened}
        if item.get("type") == "message":
            for position, part in enumerate(item.get("content") or []):
                yield from _part_events(part, {**where, "content_index": position})
        elif item.get("type") == "function_call":
            arguments = item.get("arguments", "")
            prefix = "response.function_call_arguments"
            yield {"type": f"{prefix}.delta", **where, "delta": arguments}
            yield {"type": f"{prefix}.done", **where, "name": item.get("name", ""), "arguments": arguments}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    ending = answer.get("status") if answer.get("status") in ("incomplete", "failed") else "completed"
    yield {"type": f"response.{ending}", "response": answer}


def _part_events(part: dict[str, Any], where: dict[str, Any]) -> Iterator[dict[str, Any]]:
    key = "refusal" if part.get("type") == "refusal" else "text"
    name = "response.refusal" if key == "refusal" else "response.output_text"
    more = {} if key == "refusal" else {"logprobs": part.get("logprobs") or []}
    yield {"type": "response.content_part.added", **where, "part": {**part, key: ""}}
    yield {"type": f"{name}.delta", **where, "delta": part.get(key, ""), **more}
    yield {"type": f"{name}.done", **where, key: part.get(key, ""), **more}
    yield {"type": "response.content_part.done", **where, "part": part}
