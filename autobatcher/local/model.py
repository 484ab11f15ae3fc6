"""The built-in model: deterministic answers, computed from the request alone.

Three marks in the last message's text are a test aid: `[[refuse]]` makes the model refuse, `[[filter]]` ends the
answer with `content_filter`, `[[error:429]]` (400 to 599) answers with that status.
"""

from __future__ import annotations

import array
import base64
import hashlib
import json
import math
import re
import struct
import sys
from typing import Any

from autobatcher.local.instances import instance

MODELS: tuple[str, ...] = ("local-chat", "local-embedding")

DEFAULT_DIMENSIONS = 256
_MOST_DIMENSIONS = 8192
_MARK = re.compile(r"\[\[(refuse|filter|error:([45]\d\d))\]\]")
_CODES = {429: "rate_limit_exceeded", 401: "invalid_api_key", 404: "not_found"}


class _BadRequestError(ValueError):
    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def answer(endpoint: str, body: dict[str, Any], *, now: int) -> tuple[int, dict[str, Any]]:
    """Status and JSON body for a request to `endpoint` (its last path segments decide); `now` in Unix seconds."""
    try:
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise _BadRequestError("you must provide a model parameter", "model")  # noqa: TRY301 -- as its helpers do
        if endpoint.endswith("embeddings"):
            return 200, _embeddings(body)
        chat = endpoint.endswith("chat/completions")
        text, after_tool = _last_chat_text(body) if chat else _last_response_text(body)
        mark = _MARK.search(text)
        if mark is not None and mark[2]:
            return int(mark[2]), _error(int(mark[2]))
        turn = _Turn(body, text, after_tool=after_tool, mark=mark[1] if mark else None, chat=chat)
        return 200, (_chat if chat else _response)(body, turn, now)
    except _BadRequestError as error:
        return 400, {
            "error": {
                "message": str(error),
                "type": "invalid_request_error",
                "param": error.param,
                "code": None,
            }
        }


class _Turn:
    """What the model has to say: text, a refusal, or a tool call; token counts are a quarter of the characters."""

    def __init__(
        self, body: dict[str, Any], text: str, *, after_tool: bool, mark: str | None, chat: bool
    ) -> None:
        self.id = hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=12).hexdigest()
        self.finish = "content_filter" if mark == "filter" else "stop"
        self.refusal = "I can't help with that." if mark == "refuse" else None
        self.content: str | None = None
        self.call: tuple[str, str] | None = None
        tool = _chosen_tool(body, chat=chat)
        most = _most_tokens(body, chat=chat)
        if tool is not None and not after_tool and mark is None:
            arguments = instance(tool.get("parameters") or {"type": "object"}, text)
            self.call = (str(tool.get("name", "")), json.dumps(arguments, ensure_ascii=False))
            self.finish = "tool_calls"
        elif self.refusal is None:
            self.content = self._text(body, text, after_tool=after_tool, chat=chat)
            words = self.content.split(" ")
            if most is not None and most < len(words):
                self.finish = "length"
                self.content = " ".join(words[:most])
        self.prompt_tokens = max(1, _characters(body.get("messages" if chat else "input")) // 4)
        self.completion_tokens = max(1, len(self.content or self.refusal or (self.call or ("", ""))[1]) // 4)

    @staticmethod
    def _text(body: dict[str, Any], text: str, *, after_tool: bool, chat: bool) -> str:
        name = "response_format" if chat else "text"
        form = body.get(name)
        if not chat and isinstance(form, dict):
            form = form.get("format")
        if form is not None and not isinstance(form, dict):
            raise _BadRequestError(f"'{name}' must be an object", name)
        kind = form.get("type") if form else None
        if form and kind == "json_schema":
            holder = form.get("json_schema") if chat else form
            if not isinstance(holder, dict) or not isinstance(holder.get("schema", {}), dict):
                raise _BadRequestError(f"'{name}' needs a JSON schema", name)
            return json.dumps(instance(holder.get("schema", {}), text), ensure_ascii=False)
        if kind == "json_object":
            return json.dumps({"answer": text}, ensure_ascii=False)
        return f"The tool says: {text}." if after_tool else f"You said: {text}."


def _most_tokens(body: dict[str, Any], *, chat: bool) -> int | None:
    """The limit on the answer in tokens, each of which is a word here."""
    for name in ("max_completion_tokens", "max_tokens") if chat else ("max_output_tokens",):
        most = body.get(name)
        if most is not None:
            if not isinstance(most, int) or isinstance(most, bool) or most < 1:
                raise _BadRequestError(f"'{name}' must be a positive integer", name)
            return most
    return None


def _characters(given: Any) -> int:
    if isinstance(given, list):
        return sum(
            len(_text_of(item.get("content") or item.get("output")))
            for item in given
            if isinstance(item, dict)
        )
    return len(given) if isinstance(given, str) else 0


def _last_chat_text(body: dict[str, Any]) -> tuple[str, bool]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise _BadRequestError("'messages' must be a non-empty array of messages", "messages")
    for position, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise _BadRequestError("each message needs a role", f"messages[{position}].role")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise _BadRequestError(
                "a message's content is a string or an array", f"messages[{position}].content"
            )
    return _text_of(messages[-1].get("content")), messages[-1]["role"] == "tool"


def _last_response_text(body: dict[str, Any]) -> tuple[str, bool]:
    given = body.get("input")
    if isinstance(given, str):
        return given, False
    if not isinstance(given, list) or not given or not isinstance(given[-1], dict):
        raise _BadRequestError("'input' must be a string or a non-empty array of items", "input")
    if given[-1].get("type") == "function_call_output":
        return _text_of(given[-1].get("output")), True
    return _text_of(given[-1].get("content")), False


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return ""


def _chosen_tool(body: dict[str, Any], *, chat: bool) -> dict[str, Any] | None:
    choice = body.get("tool_choice")
    if choice == "none":
        return None
    given = body.get("tools") or []
    if not isinstance(given, list):
        raise _BadRequestError("'tools' must be an array", "tools")
    tools = [tool for tool in given if isinstance(tool, dict) and tool.get("type") == "function"]
    functions = [tool.get("function") for tool in tools] if chat else tools
    known = {str(item.get("name")): item for item in functions if isinstance(item, dict)}
    name = _named(choice) if isinstance(choice, dict) else None
    if name is not None and name not in known:
        raise _BadRequestError(f"'tool_choice' names a tool that is not in 'tools': {name}", "tool_choice")
    return known[name] if name is not None else next(iter(known.values()), None)


def _named(choice: dict[str, Any]) -> str | None:
    """The function that a tool_choice names: {"name"}, {"function": {"name"}}, or the first of {"tools": [...]}."""
    allowed = choice.get("allowed_tools")  # the chat endpoint nests what the responses endpoint has flat
    for holder in (choice, choice.get("function"), allowed):
        if isinstance(holder, dict):
            if isinstance(holder.get("name"), str):
                return str(holder["name"])
            if (
                isinstance(holder.get("tools"), list)
                and holder["tools"]
                and isinstance(holder["tools"][0], dict)
            ):
                return _named(holder["tools"][0])
    return None


def _usage(turn: _Turn) -> tuple[int, int, int]:
    return turn.prompt_tokens, turn.completion_tokens, turn.prompt_tokens + turn.completion_tokens


def _chat(body: dict[str, Any], turn: _Turn, now: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": turn.content,
        "refusal": turn.refusal,
        "annotations": [],
    }
    if turn.call is not None:
        name, arguments = turn.call
        function = {"name": name, "arguments": arguments}
        message["tool_calls"] = [{"id": f"call_{turn.id}", "type": "function", "function": function}]
    prompt, completion, total = _usage(turn)
    count = 1 if body.get("n") is None else body["n"]
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 128:  # noqa: PLR2004 -- OpenAI's limit
        raise _BadRequestError("'n' must be an integer from 1 to 128", "n")
    return {
        "id": f"chatcmpl-{turn.id}",
        "object": "chat.completion",
        "created": now,
        "model": body["model"],
        "choices": [
            {"index": index, "message": {**message}, "logprobs": None, "finish_reason": turn.finish}
            for index in range(count)
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total},
        "service_tier": "default",
        "system_fingerprint": "fp_local",
    }


def _response(body: dict[str, Any], turn: _Turn, now: int) -> dict[str, Any]:
    incomplete = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(turn.finish)
    status = "incomplete" if incomplete else "completed"
    if turn.call is not None:
        name, arguments = turn.call
        item: dict[str, Any] = {
            "type": "function_call",
            "id": f"fc_{turn.id}",
            "call_id": f"call_{turn.id}",
            "name": name,
            "arguments": arguments,
            "status": status,
        }
    else:
        part: dict[str, Any] = (
            {"type": "output_text", "text": turn.content, "annotations": [], "logprobs": []}
            if turn.refusal is None
            else {"type": "refusal", "refusal": turn.refusal}
        )
        item = {
            "type": "message",
            "id": f"msg_{turn.id}",
            "role": "assistant",
            "status": status,
            "content": [part],
        }
    prompt, completion, total = _usage(turn)
    return {
        "id": f"resp_{turn.id}",
        "object": "response",
        "created_at": now,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": body["model"],
        "output": [item],
        "background": False,
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": body.get("reasoning") or {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}, **(body.get("text") or {})},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": [_echoed(tool) for tool in body.get("tools") or []],
        "top_logprobs": body.get("top_logprobs") or 0,
        "top_p": body.get("top_p", 1.0),
        "truncation": body.get("truncation") or "disabled",
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": total,
        },
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def _echoed(tool: Any) -> Any:
    """A function tool with its defaults filled in."""
    if isinstance(tool, dict) and tool.get("type") == "function":
        return {"description": None, "parameters": None, "strict": True, **tool}
    return tool


def _error(status: int) -> dict[str, Any]:
    code = _CODES.get(status) or ("server_error" if status >= 500 else "invalid_request")  # noqa: PLR2004 -- HTTP
    kind = "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004 -- HTTP
    return {
        "error": {
            "message": f"The request asked for status {status}.",
            "type": kind,
            "param": None,
            "code": code,
        }
    }


def _embeddings(body: dict[str, Any]) -> dict[str, Any]:
    given = body.get("input")
    inputs: list[Any] = (
        given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    )
    if not all(_is_embeddable(item) for item in inputs):
        raise _BadRequestError(
            "'input' must be a non-empty string, array of tokens, or array of those", "input"
        )
    dimensions = body.get("dimensions") or DEFAULT_DIMENSIONS
    if not isinstance(dimensions, int) or not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise _BadRequestError(f"'dimensions' must be an integer from 1 to {_MOST_DIMENSIONS}", "dimensions")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _BadRequestError("'encoding_format' must be 'float' or 'base64'", "encoding_format")
    tokens = sum(max(1, len(item) // 4) if isinstance(item, str) else len(item) for item in inputs)
    vectors = [_unit_vector(json.dumps([body["model"], item]), dimensions) for item in inputs]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector.tolist() if encoding == "float" else _base64(vector),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def _is_embeddable(item: Any) -> bool:
    if isinstance(item, list):
        return bool(item) and all(isinstance(token, int) and not isinstance(token, bool) for token in item)
    return isinstance(item, str) and item != ""


def _unit_vector(text: str, dimensions: int) -> array.array[float]:
    """Single precision, so that both encodings carry the same numbers."""
    raw = hashlib.shake_128(text.encode()).digest(2 * dimensions)
    values = [value + 0.5 for value in struct.unpack(f"<{dimensions}h", raw)]  # never all zero
    length = math.sqrt(sum(value * value for value in values))
    return array.array("f", [value / length for value in values])


def _base64(vector: array.array[float]) -> str:
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return base64.b64encode(vector).decode()
