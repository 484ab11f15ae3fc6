"""The built-in model: whole OpenAI objects, the same for the same body, fitting the caller's schemas."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from collections.abc import Callable
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from autobatcher.local.model import DEFAULT_DIMENSIONS, MODELS, answer

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"


def chat(text: Any = "hello", **extra: Any) -> dict[str, Any]:
    return {"model": MODELS[0], "messages": [{"role": "user", "content": text}], **extra}


def ask(endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer, which must be a whole object of the API, and the same when asked again."""
    status, answered = answer(endpoint, body, now=1_700_000_000)
    assert status == 200, answered
    assert json.loads(json.dumps(answered)) == answered
    assert answer(endpoint.removeprefix("/v1"), json.loads(json.dumps(body)), now=1_700_000_000) == (
        200,
        answered,
    )
    if endpoint == CHAT:
        ChatCompletion.model_validate(answered, strict=True)
    elif endpoint == RESPONSES:
        Response.model_validate(answered)
    elif body.get("encoding_format") != "base64":
        CreateEmbeddingResponse.model_validate(answered, strict=True)
    return answered


def said(body: dict[str, Any]) -> Any:
    return ask(CHAT, body)["choices"][0]["message"]["content"]


def respond(given_input: Any = "hello", **extra: Any) -> dict[str, Any]:
    return ask(RESPONSES, {"model": MODELS[0], "input": given_input, **extra})


def structured(schema: Any, text: str = "hello") -> Any:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    return json.loads(said(chat(text, response_format=form)))


# Chat completions


def test_a_chat_answer_is_complete() -> None:
    answered = ask(CHAT, chat("what is it?"))
    assert answered["created"] == 1_700_000_000
    assert answered["model"] == MODELS[0]
    assert answered["choices"][0]["finish_reason"] == "stop"
    assert "what is it?" in answered["choices"][0]["message"]["content"]
    usage = answered["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@given(st.text(), st.text())
def test_answers_and_ids_differ_by_prompt(one: str, two: str) -> None:
    marked = [ask(CHAT, chat(re.sub(r"\[\[", "", text))) for text in (one, two)]
    assert (marked[0] == marked[1]) == (one == two)


def test_text_parts_are_read_and_all_messages_are_counted() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "u"}}]
    assert "one" in said(chat(parts))
    body = chat()
    longer = {**body, "messages": [{"role": "system", "content": "x" * 400}, *body["messages"]]}
    assert ask(CHAT, longer)["usage"]["prompt_tokens"] > ask(CHAT, body)["usage"]["prompt_tokens"] + 90


def test_n_gives_as_many_choices() -> None:
    assert [item["index"] for item in ask(CHAT, chat(n=3))["choices"]] == [0, 1, 2]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_cuts_the_answer(name: str) -> None:
    choice = ask(CHAT, chat("a b c d", **{name: 3}))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("You said: a", "length")
    assert ask(CHAT, chat("a", **{name: 3}))["choices"][0]["finish_reason"] == "stop"


TOOLS = [
    {
        "name": name,
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    for name in ("first", "second")
]
CHAT_TOOLS = [{"type": "function", "function": tool} for tool in TOOLS]
FLAT_TOOLS = [{"type": "function", **tool} for tool in TOOLS]


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        (None, "first"),
        ("auto", "first"),
        ("required", "first"),
        ({"type": "function", "function": {"name": "second"}}, "second"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": CHAT_TOOLS[1:]}}, "second"),
    ],
)
def test_a_tool_is_called(choice: Any, name: str) -> None:
    answered = ask(CHAT, chat("Oslo", tools=CHAT_TOOLS, tool_choice=choice))["choices"][0]
    call = answered["message"]["tool_calls"][0]
    assert (answered["finish_reason"], answered["message"]["content"]) == ("tool_calls", None)
    assert call["function"]["name"] == name
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}


def test_no_tool_is_called_when_none_may_be_or_one_has_answered() -> None:
    assert "hello" in said(chat(tools=CHAT_TOOLS, tool_choice="none"))
    body = chat(tools=CHAT_TOOLS)
    body["messages"].append({"role": "tool", "tool_call_id": "c", "content": "12 degrees"})
    assert "12 degrees" in said(body)


def test_the_marks() -> None:
    choice = ask(CHAT, chat("please [[refuse]]", tools=CHAT_TOOLS))["choices"][0]
    assert choice["message"]["content"] is None
    assert choice["message"]["refusal"]
    assert ask(CHAT, chat("[[filter]]", tools=CHAT_TOOLS))["choices"][0]["finish_reason"] == "content_filter"
    assert respond("[[refuse]]")["output"][0]["content"][0]["type"] == "refusal"
    assert respond("[[filter]]")["incomplete_details"] == {"reason": "content_filter"}


@pytest.mark.parametrize(
    ("status", "code"), [(429, "rate_limit_exceeded"), (500, "server_error"), (503, "server_error")]
)
@pytest.mark.parametrize(("endpoint", "name"), [(CHAT, "messages"), (RESPONSES, "input")])
def test_the_error_mark(endpoint: str, name: str, status: int, code: str) -> None:
    body = {"model": "m", name: [{"role": "user", "content": f"[[error:{status}]]"}]}
    given_status, answered = answer(endpoint, body, now=0)
    assert given_status == status
    assert set(answered["error"]) == {"message", "type", "param", "code"}
    assert answered["error"]["code"] == code


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x"}]}, "model"),
        (CHAT, {"model": "m"}, "messages"),
        (CHAT, {"model": "m", "messages": []}, "messages"),
        (CHAT, {"model": "m", "messages": ["x"]}, "messages"),
        (CHAT, {"model": "m", "messages": [{"content": "x"}]}, "messages[0].role"),
        (CHAT, chat(7), "messages[0].content"),
        (CHAT, chat(n=0), "n"),
        (CHAT, chat(n=True), "n"),
        (CHAT, chat(max_tokens=0), "max_tokens"),
        (CHAT, chat(tools=7), "tools"),
        (CHAT, chat(tools=CHAT_TOOLS, tool_choice={"function": {"name": "third"}}), "tool_choice"),
        (CHAT, chat(response_format="json"), "response_format"),
        (CHAT, chat(response_format={"type": "json_schema"}), "response_format"),
        (RESPONSES, {"model": "m"}, "input"),
        (RESPONSES, {"model": "m", "input": []}, "input"),
        (RESPONSES, {"model": "m", "input": "x", "text": 7}, "text"),
        (RESPONSES, {"model": "m", "input": "x", "text": {"format": "json"}}, "text"),
        (RESPONSES, {"model": "m", "input": "x", "tools": [], "max_output_tokens": "7"}, "max_output_tokens"),
        (EMBEDDINGS, {"model": "m"}, "input"),
        (EMBEDDINGS, {"model": "m", "input": []}, "input"),
        (EMBEDDINGS, {"model": "m", "input": ""}, "input"),
        (EMBEDDINGS, {"model": "m", "input": ["x", [1]], "dimensions": -1}, "dimensions"),
        (EMBEDDINGS, {"model": "m", "input": [1, "x"]}, "input"),
        (EMBEDDINGS, {"model": "m", "input": "x", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_a_bad_body_is_a_400(endpoint: str, body: dict[str, Any], param: str) -> None:
    status, answered = answer(endpoint, body, now=0)
    assert status == 400
    assert answered["error"]["type"] == "invalid_request_error"
    assert answered["error"]["param"] == param
    assert answered["error"]["message"]


# Embeddings


@pytest.mark.parametrize(
    ("given_input", "count"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1, 2], [3], [4]], 3)]
)
def test_there_is_a_unit_vector_for_each_input(given_input: Any, count: int) -> None:
    answered = ask(EMBEDDINGS, {"model": MODELS[1], "input": given_input})
    vectors = [item["embedding"] for item in answered["data"]]
    assert [item["index"] for item in answered["data"]] == list(range(count))
    assert len({tuple(vector) for vector in vectors}) == count
    for vector in vectors:
        assert len(vector) == DEFAULT_DIMENSIONS
        assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-6)


def test_both_encodings_carry_the_same_numbers() -> None:
    body = {"model": MODELS[1], "input": "a", "dimensions": 7}
    vector = ask(EMBEDDINGS, body)["data"][0]["embedding"]
    packed = ask(EMBEDDINGS, {**body, "encoding_format": "base64"})["data"][0]["embedding"]
    assert list(struct.unpack("<7f", base64.b64decode(packed))) == vector


# Responses


def test_a_response_is_complete() -> None:
    answered = respond("hello there", instructions="be kind", metadata={"a": "b"}, temperature=None)
    assert answered["output"][0]["content"][0]["text"] == "You said: hello there."
    assert (answered["status"], answered["instructions"]) == ("completed", "be kind")
    assert answered["metadata"] == {"a": "b"}


def test_a_response_to_items() -> None:
    assert (
        "hi"
        in respond([{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}])["output"][0][
            "content"
        ][0]["text"]
    )
    output = [{"type": "function_call_output", "call_id": "c", "output": "12 degrees"}]
    assert "12 degrees" in respond(output, tools=FLAT_TOOLS)["output"][0]["content"][0]["text"]


def test_a_response_calls_a_tool() -> None:
    answered = respond("Oslo", tools=FLAT_TOOLS, tool_choice={"type": "function", "name": "second"})
    item = answered["output"][0]
    assert (item["type"], item["name"], json.loads(item["arguments"])) == (
        "function_call",
        "second",
        {"city": "Oslo"},
    )


def test_a_cut_response_is_incomplete() -> None:
    answered = respond("a b c d", max_output_tokens=3)
    assert (answered["status"], answered["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )


def test_a_response_fits_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    answered = respond(text={"format": {"type": "json_schema", "name": "s", "schema": schema}})
    assert json.loads(answered["output"][0]["content"][0]["text"]) == {"a": "hello"}


# Schemas


class Colour(Enum):
    RED = "red"


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["leaf"]
    when: datetime
    day: date
    key: UUID
    colour: Colour


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["node"]
    left: Node | Leaf
    right: Node | None
    children: list[Node]
    several: Annotated[list[int], Field(min_length=2, max_length=3)]
    distinct: Annotated[set[str], Field(min_length=3)]
    pair: tuple[int, str]
    by_name: dict[str, Leaf]
    ratio: Annotated[float, Field(gt=0.25, lt=0.3)]
    even: Annotated[int, Field(ge=7, multiple_of=2)]
    code: Annotated[str, Field(pattern=r"^[A-Z]{3}-\d{2,4}(x|y)?$")]
    short: Annotated[str, Field(min_length=2, max_length=4)]
    variant: Annotated[Node | Leaf, Field(discriminator="kind")]


def test_pydantic_accepts_the_instance_of_its_schema() -> None:
    instance = structured(Node.model_json_schema(), "the prompt")
    Node.model_validate_json(json.dumps(instance))
    assert set(instance) == set(Node.model_fields)
    assert instance["short"] == "the "


def test_a_schema_without_a_finite_instance_still_gets_an_answer() -> None:
    assert structured({"$ref": "#"}) == {}
    assert structured({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}) == {}
    many = {f"t{i}": {"anyOf": [{"$ref": f"#/$defs/t{j}"} for j in range(12)]} for i in range(12)}
    assert structured({"$ref": "#/$defs/t0", "$defs": many}) == {}


@pytest.mark.parametrize(
    "pattern",
    [
        r"^\d{3}-\d{4}$",
        r"^(?:foo|bar)+$",
        r"^[^a-z\]]{2}\.\w+@[\w.-]+$",
        r"^(?P<year>20[0-9]{2})(?=-)-(0[1-9]|1[0-2])$",
        r"^#[0-9a-fA-F]{6}$",
        r"^a*?b+?c{2,}\x41\u0042\t$",
        r"^.{5}$",
    ],
)
def test_strings_match_patterns(pattern: str) -> None:
    assert re.search(pattern, structured({"type": "string", "pattern": pattern}))


def test_a_pattern_and_a_length_are_both_kept() -> None:
    made = structured({"type": "string", "pattern": "^[ab]+$", "minLength": 11, "maxLength": 12})
    assert re.fullmatch("[ab]{11,12}", made)


def test_a_pattern_that_cannot_be_met_does_no_harm() -> None:
    assert structured({"type": "string", "pattern": r"^\p{L}("}) == "hello"


def valid(value: Any, schema: Any) -> bool:
    """A validator for what `schemas` draws."""
    checks: dict[str, Callable[[], bool]] = {
        "null": lambda: value is None,
        "boolean": lambda: isinstance(value, bool),
        "string": lambda: (
            isinstance(value, str)
            and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
        ),
        "integer": lambda: isinstance(value, int) and not isinstance(value, bool) and in_range(value, schema),
        "number": lambda: isinstance(value, (int, float)) and in_range(value, schema),
        "array": lambda: (
            isinstance(value, list)
            and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
            and all(valid(item, schema["items"]) for item in value)
        ),
        "object": lambda: (
            isinstance(value, dict)
            and value.keys() == schema["properties"].keys()
            and all(valid(value[name], item) for name, item in schema["properties"].items())
        ),
    }
    if "const" in schema:
        return bool(value == schema["const"])
    if "enum" in schema:
        return bool(value in schema["enum"])
    if "allOf" in schema:
        return all(valid(value, item) for item in schema["allOf"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return any(valid(value, item) for item in schema[key])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return any(checks[kind]() for kind in kinds)


def in_range(value: float, schema: dict[str, Any]) -> bool:
    return bool(
        schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf)
        and value % schema.get("multipleOf", value or 1) == 0
    )


@st.composite
def numbers(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(st.integers(-100, 100))
    step = draw(st.integers(1, 7))
    bounds = {
        "minimum": low,
        "exclusiveMinimum": low - 1,
        "maximum": low + 2 * step,
        "exclusiveMaximum": low + 2 * step + 1,
        "multipleOf": step,
    }
    names = draw(st.sets(st.sampled_from(sorted(bounds))))
    return {
        "type": draw(st.sampled_from(["integer", "number"])),
        **{name: bounds[name] for name in sorted(names)},
    }


STRINGS = st.builds(
    lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more},
    st.integers(0, 9),
    st.integers(0, 9),
)
SIMPLE = st.one_of(
    numbers(),
    STRINGS,
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": ["string", "null"]}]),
    st.builds(lambda value: {"const": value}, st.none() | st.integers() | st.text(max_size=3)),
    st.builds(
        lambda values: {"enum": values}, st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=3)
    ),
)


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.builds(
            lambda items, low, more: {
                "type": "array",
                "items": items,
                "minItems": low,
                "maxItems": low + more,
            },
            inner,
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        st.builds(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties),
                "additionalProperties": False,
            },
            st.dictionaries(st.text(max_size=3), inner, max_size=3),
        ),
        st.builds(
            lambda key, options: {key: options},
            st.sampled_from(["anyOf", "oneOf"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        st.builds(lambda item: {"allOf": [item, item]}, inner),
    )


@given(
    schema=st.recursive(SIMPLE, nested, max_leaves=8),
    text=st.text(max_size=20).filter(lambda t: "[[" not in t),
)
def test_an_instance_satisfies_its_schema(schema: dict[str, Any], text: str) -> None:
    assert valid(structured(schema, text), schema)


@given(schema=st.recursive(SIMPLE, nested, max_leaves=5))
def test_references_change_nothing(schema: dict[str, Any]) -> None:
    assert valid(structured({"$ref": "#/$defs/a~1b", "$defs": {"a/b": schema}}), schema)
