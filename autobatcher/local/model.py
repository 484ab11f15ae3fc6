"""The built-in model: deterministic answers, computed from the request alone.

Three marks in the last message's text are a test aid: `[[refuse]]` makes the model refuse, `[[filter]]` ends the
answer with `content_filter`, `[[error:429]]` (400 to 599) answers with that status.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
from typing import Any

MODELS: tuple[str, ...] = ("local-chat", "local-embedding")

DEFAULT_DIMENSIONS = 256
_MAX_DEPTH = 8
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
    """What the model has to say: text, a refusal, or a tool call."""

    def __init__(
        self, body: dict[str, Any], text: str, *, after_tool: bool, mark: str | None, chat: bool
    ) -> None:
        self.id = hashlib.blake2b(json.dumps(body, sort_keys=True).encode(), digest_size=12).hexdigest()
        self.finish = "content_filter" if mark == "filter" else "stop"
        self.refusal = "I can't help with that." if mark == "refuse" else None
        self.content: str | None = None
        self.call: tuple[str, str] | None = None
        self.prompt_tokens = max(1, len(text) // 4)
        tool = None if after_tool or self.refusal else _chosen_tool(body, chat=chat)
        if tool is not None:
            arguments = _instance(tool.get("parameters") or {"type": "object"}, text)
            self.call = (str(tool.get("name", "")), json.dumps(arguments))
            self.finish = "tool_calls"
        elif self.refusal is None:
            self.content = self._text(body, text, after_tool=after_tool, chat=chat)
        self.completion_tokens = max(1, len(self.content or self.refusal or (self.call or ("", ""))[1]) // 4)

    def _text(self, body: dict[str, Any], text: str, *, after_tool: bool, chat: bool) -> str:
        form = body.get("response_format") if chat else (body.get("text") or {}).get("format")
        kind = form.get("type") if isinstance(form, dict) else None
        if kind == "json_schema" and isinstance(form, dict):
            schema = (form.get("json_schema") or {}).get("schema") if chat else form.get("schema")
            return json.dumps(_instance(schema or {}, text), ensure_ascii=False)
        if kind == "json_object":
            return json.dumps({"answer": text}, ensure_ascii=False)
        said = f"The tool says: {text}." if after_tool else f"You said: {text}."
        most = (
            body.get("max_completion_tokens") or body.get("max_tokens")
            if chat
            else body.get("max_output_tokens")
        )
        words = said.split(" ")
        if isinstance(most, int) and 0 < most < len(words):
            self.finish = "length"
            return " ".join(words[:most])
        return said


def _last_chat_text(body: dict[str, Any]) -> tuple[str, bool]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise _BadRequestError("'messages' must be a non-empty array of messages", "messages")
    return _text_of(messages[-1].get("content")), messages[-1].get("role") == "tool"


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
    tools = [
        tool for tool in body.get("tools") or [] if isinstance(tool, dict) and tool.get("type") == "function"
    ]
    functions = [tool.get("function") or {} for tool in tools] if chat else tools
    if isinstance(choice, dict):
        name = (choice.get("function") or choice).get("name")
        functions = [function for function in functions if function.get("name") == name]
    return functions[0] if functions else None


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
    count = body.get("n") or 1
    if not isinstance(count, int) or not 1 <= count <= 128:  # noqa: PLR2004 -- OpenAI's limit
        raise _BadRequestError("'n' must be an integer from 1 to 128", "n")
    return {
        "id": f"chatcmpl-{turn.id}",
        "object": "chat.completion",
        "created": now,
        "model": body["model"],
        "choices": [
            {"index": index, "message": message, "logprobs": None, "finish_reason": turn.finish}
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
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
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
    if isinstance(given, str):
        inputs: list[Any] = [given]
    elif isinstance(given, list) and given:
        inputs = [given] if isinstance(given[0], int) else given
    else:
        raise _BadRequestError("'input' must be a string or a non-empty array", "input")
    dimensions = body.get("dimensions") or DEFAULT_DIMENSIONS
    if not isinstance(dimensions, int) or dimensions < 1:
        raise _BadRequestError("'dimensions' must be a positive integer", "dimensions")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _BadRequestError("'encoding_format' must be 'float' or 'base64'", "encoding_format")
    tokens = sum(max(1, len(item) // 4) if isinstance(item, str) else len(item) for item in inputs)
    vectors = [_unit_vector(json.dumps([body["model"], item]), dimensions) for item in inputs]
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector
            if encoding == "float"
            else base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode(),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def _unit_vector(text: str, dimensions: int) -> list[float]:
    raw = hashlib.shake_128(text.encode()).digest(2 * dimensions)
    values = [value + 0.5 for value in struct.unpack(f"<{dimensions}h", raw)]  # never all zero
    length = math.sqrt(sum(value * value for value in values))
    return [value / length for value in values]


def _instance(schema: Any, text: str) -> Any:
    """Something that satisfies a JSON schema; free strings in it come from `text`."""
    return _Instances(schema if isinstance(schema, dict) else {}, text).make(schema, 0)


_FORMATS = {
    "date": "2024-01-02",
    "date-time": "2024-01-02T03:04:05Z",
    "time": "03:04:05Z",
    "duration": "P1D",
    "email": "user@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class _Instances:
    def __init__(self, root: dict[str, Any], text: str) -> None:
        self._root = root
        self._text = text

    def make(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict):
            return self._text
        if "$ref" in schema:
            return self.make(
                {**self._resolve(schema["$ref"]), **{k: v for k, v in schema.items() if k != "$ref"}}, depth
            )
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][0]
        for key in ("anyOf", "oneOf"):
            if schema.get(key):
                # At depth, a null alternative ends a recursive schema.
                options = schema[key]
                ends = [item for item in options if isinstance(item, dict) and item.get("type") == "null"]
                return self.make(ends[0] if ends and depth > _MAX_DEPTH else options[0], depth)
        if schema.get("allOf"):
            merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
            for item in schema["allOf"]:
                part = self._resolve(item["$ref"]) if "$ref" in item else item
                properties = {**merged.get("properties", {}), **part.get("properties", {})}
                merged = {**merged, **part, **({"properties": properties} if properties else {})}
            return self.make(merged, depth)
        return self._typed(schema, depth)

    def _typed(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = "null" if "null" in kind and depth > _MAX_DEPTH else kind[0]
        if kind is None:
            kind = "object" if "properties" in schema else "array" if "items" in schema else "string"
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            count = max(
                schema.get("minItems", 0), 0 if depth > _MAX_DEPTH or schema.get("maxItems") == 0 else 1
            )
            return [self.make(schema.get("items", {}), depth + 1) for _ in range(count)]
        if kind in ("integer", "number"):
            return self._number(schema, integer=kind == "integer")
        if kind == "boolean":
            return True
        return None if kind == "null" else self._string(schema)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", [])
        properties = {
            name: item
            for name, item in (schema.get("properties") or {}).items()
            if name in required or depth <= _MAX_DEPTH
        }
        return {name: self.make(item, depth + 1) for name, item in properties.items()}

    @staticmethod
    def _number(schema: dict[str, Any], *, integer: bool) -> float:
        step = schema.get("multipleOf") or 1
        low = schema.get("minimum")
        if (above := schema.get("exclusiveMinimum")) is not None:
            low = above + (step if integer else 0.5)
        high = schema.get("maximum")
        if (below := schema.get("exclusiveMaximum")) is not None:
            high = below - (step if integer else 0.5)
        value: float = 1 if step == 1 else step
        if low is not None and value < low:
            value = math.ceil(low / step) * step if integer or step != 1 else low
        if high is not None and value > high:
            value = math.floor(high / step) * step if integer or step != 1 else high
        return int(value) if integer else value

    def _string(self, schema: dict[str, Any]) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        text = self._text or "x"
        if len(text) < (least := schema.get("minLength", 0)):
            text += "x" * (least - len(text))
        return text[: schema.get("maxLength", len(text))]

    def _resolve(self, reference: str) -> dict[str, Any]:
        found: Any = self._root
        for name in reference.removeprefix("#").strip("/").split("/"):
            if name:
                found = (
                    found.get(name.replace("~1", "/").replace("~0", "~"), {})
                    if isinstance(found, dict)
                    else {}
                )
        return found if isinstance(found, dict) else {}
