"""From a row to the body of a request."""

from __future__ import annotations

import base64
import datetime as dt
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatcher.jobs import InputError, Template
from autobatcher.jobs.template import EMBEDDINGS, RESPONSES

PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
WEBP = b"RIFF\x10\x00\x00\x00WEBP" + bytes(20)

SCHEMA = {"title": "A colour", "type": "object", "properties": {"name": {"type": "string"}}}
FUNCTION = {"name": "look", "parameters": {"type": "object"}}


def body(row: dict[str, Any], prompt: str = "{text}", folder: Path | str = ".", **fields: Any) -> Any:
    return json.loads(Template("m", prompt, **fields).body(row, folder))


def asked(row: dict[str, Any], prompt: str) -> Any:
    (message,) = body(row, prompt)["messages"]
    assert message["role"] == "user"
    return message["content"]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Say: {text}!", "Say: hi!"),
        ("{text}{text}", "hihi"),
        ('{{"a": {number}}} {text}', '{"a": 7} hi'),
        ("{{text}} {{{text}}}", "{text} {hi}"),
        ("{none}|{text}", "|hi"),
        ("{list}", '["é",null]'.replace(",", ", ")),
        ("{flag} {half}", "true 0.5"),
        ("{first name}", "Ada"),
        ("{text.upper} {text[0]} {text!r} {text:>9}", "a b c d"),
        ("{when}", "2026-01-02"),
        ("{bytes}", "é"),
        ("{braces}", "{text}"),
    ],
)
def test_columns_are_put_in_as_they_are_named(prompt: str, text: str) -> None:
    row = {
        "text": "hi",
        "number": 7,
        "none": None,
        "list": ["é", None],
        "flag": True,
        "half": 0.5,
        "first name": "Ada",
        "text.upper": "a",
        "text[0]": "b",
        "text!r": "c",
        "text:>9": "d",
        "when": dt.date(2026, 1, 2),
        "bytes": "é".encode(),
        "braces": "{text}",
    }
    assert asked(row, prompt) == text


@given(
    st.text(st.characters(codec="utf-8")),
    st.text(st.characters(exclude_characters="{}", codec="utf-8"), min_size=1),
)
def test_any_text_can_be_said_and_any_name_be_used(text: str, name: str) -> None:
    row = {name: text}
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert asked(row, f"{escaped}{{{name}}}") == text + text


@pytest.mark.parametrize("prompt", ["{", "}", "a {} b", "{text}}", "{{text}", '{text} {"a": {"b"}}'])
def test_a_brace_alone_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="names no column"):
        Template("m", prompt)


def test_a_prompt_without_a_column_is_refused() -> None:
    with pytest.raises(InputError, match="all rows would ask the same"):
        Template("m", "Say hi")
    assert Template("m", "What is it?", images=["file"]).columns == ("file",)


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    template = Template("m", "{text}", system="{tone}")
    with pytest.raises(InputError, match=r"there is no column 'tone'; there are 'text', 'b'$"):
        template.check(["text", "b"])
    with pytest.raises(InputError, match=r"there is no column 'text'; there is 'tone'$"):
        template.body({"tone": 1})


@pytest.mark.parametrize("value", ["a \ud83d b", ["\ud83d"]])
def test_half_of_a_surrogate_pair_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="surrogate"):
        Template("m", "{text}").body({"text": value})


def test_a_chat_has_the_system_first() -> None:
    assert body({"text": "hi", "tone": "kind"}, system="Be {tone}") == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "hi"}],
    }


def test_a_response_has_instructions_and_input() -> None:
    assert body({"text": "hi"}, system="Be kind", endpoint=RESPONSES) == {
        "model": "m",
        "instructions": "Be kind",
        "input": "hi",
    }


def test_an_embedding_has_an_input() -> None:
    made = body({"text": "hi"}, endpoint=EMBEDDINGS, settings={"dimensions": 8})
    assert made == {"model": "m", "input": "hi", "dimensions": 8}


@pytest.mark.parametrize("field", [{"system": "x"}, {"schema": {}}, {"tools": []}, {"images": ["a"]}])
def test_an_embedding_has_nothing_else(field: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="embeddings have"):
        Template("m", "{text}", endpoint=EMBEDDINGS, **field)


@pytest.mark.parametrize("as_file", [True, False])
def test_a_schema_is_the_form_of_the_answers(tmp_path: Path, as_file: bool) -> None:  # noqa: FBT001 -- a parameter of pytest
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA), "utf-8-sig")
    schema = path if as_file else SCHEMA
    form = {"name": "A_colour", "schema": SCHEMA, "strict": True}
    chat = body({"text": ""}, schema=schema)
    assert chat["response_format"] == {"type": "json_schema", "json_schema": form}
    response = body({"text": ""}, schema=schema, endpoint=RESPONSES)
    assert response["text"] == {"format": {"type": "json_schema", **form}}


@pytest.mark.parametrize("tools", [FUNCTION, [FUNCTION], [{"type": "function", "function": FUNCTION}]])
def test_tools_have_the_form_of_the_endpoint(tools: Any) -> None:
    assert body({"text": ""}, tools=tools)["tools"] == [{"type": "function", "function": FUNCTION}]
    response = body({"text": ""}, tools=tools, endpoint=RESPONSES)
    assert response["tools"] == [{"type": "function", **FUNCTION}]


def test_tools_of_other_types_are_left_as_they_are() -> None:
    tools = [{"type": "web_search"}]
    assert body({"text": ""}, tools=tools, endpoint=RESPONSES)["tools"] == tools


@pytest.mark.parametrize(
    ("field", "content", "said"),
    [
        ("schema", "{", r"x\.json: not JSON: .* at character 2"),
        ("schema", "[]", r"x\.json: a JSON Schema is an object"),
        ("tools", "7", r"x\.json: tools are a list"),
        ("tools", "[7]", r"x\.json: a tool is an object, and not 7"),
        ("tools", "[{}]", r"x\.json: a function without a name"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, field: str, content: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content, "utf-8")
    fields: dict[str, Any] = {field: path}
    with pytest.raises(InputError, match=said):
        Template("m", "{text}", **fields)


def test_settings_are_json_or_text_and_nest() -> None:
    settings = [
        "temperature=0.2",
        'stop=["a", "b"]',
        "reasoning.effort=low",
        "reasoning.summary=auto",
        "user=a=b",
        "empty=",
        'quoted="5"',
        "seed=123456789012345678901234567890",
        "odd=NaN",
    ]
    made = body({"text": ""}, settings=settings)
    del made["model"], made["messages"]
    assert made == {
        "temperature": 0.2,
        "stop": ["a", "b"],
        "reasoning": {"effort": "low", "summary": "auto"},
        "user": "a=b",
        "empty": "",
        "quoted": "5",
        "seed": 123456789012345678901234567890,
        "odd": "NaN",
    }


def test_settings_go_beside_what_a_schema_makes_and_win() -> None:
    settings = {"text.verbosity": "low", "text.format.strict": False}
    made = body({"text": ""}, schema=SCHEMA, endpoint=RESPONSES, settings=settings)
    assert made["text"]["verbosity"] == "low"
    assert made["text"]["format"]["strict"] is False
    assert made["text"]["format"]["name"] == "A_colour"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["temperature"], "no NAME=VALUE"),
        (["=1"], "no NAME=VALUE"),
        (["a=1", "a=2"], "'a' is set twice"),
        (["a=1", "a.b=2"], r"'a\.b' has no place"),
        (["a.b=1", "a=2"], "'a' has no place"),
        (["a..b=1"], "has no place"),
        (["model=x"], "'model' cannot be set: --model"),
        (["messages=[]"], "'messages' cannot be set"),
        (["stream=true"], "a batch answers whole"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Template("m", "{text}", settings=settings)


def test_settings_that_were_given_stay_as_they_were() -> None:
    given_settings = {"a": {"b": 1}, "c.d": 2}
    Template("m", "{text}", settings=given_settings).body({"text": ""})
    assert given_settings == {"a": {"b": 1}, "c.d": 2}


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("a.png", PNG, "image/png"),
        ("a.png", JPEG, "image/jpeg"),
        ("a", WEBP, "image/webp"),
        ("a.gif", b"GIF89a....", "image/gif"),
        ("a.BMP", b"BM....", "image/bmp"),
        ("a.heic", b"....", "image/heic"),
    ],
)
def test_a_file_of_an_image_is_a_url_with_its_type(tmp_path: Path, name: str, data: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(data)
    made = body({"picture": name, "text": "hi"}, folder=tmp_path, images=["picture"])
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    assert made["messages"] == [
        {
            "role": "user",
            "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": url}}],
        }
    ]


def test_urls_are_left_as_they_are_and_nothing_is_no_image() -> None:
    row = {
        "text": "hi",
        "a": "https://x.example/a.png",
        "b": None,
        "c": "",
        "d": "data:image/png;base64,AA==",
    }
    made = body(row, images=["a", "b", "c", "d"], endpoint=RESPONSES)
    assert made["input"] == [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "hi"},
                {"type": "input_image", "image_url": row["a"]},
                {"type": "input_image", "image_url": row["d"]},
            ],
        }
    ]
    assert body({"text": "hi", "a": None}, images=["a"])["messages"][0]["content"] == "hi"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("none.png", r"none\.png' cannot be read: No such file"),
        ("text.txt", r"text\.txt' is no image"),
        ("empty.png", r"empty\.png' is no image"),
        (7, "and not 7"),
    ],
)
def test_an_image_that_is_none_is_refused(tmp_path: Path, value: Any, said: str) -> None:
    (tmp_path / "text.txt").write_text("hello", "utf-8")
    (tmp_path / "empty.png").touch()
    with pytest.raises(InputError, match=said):
        body({"text": "", "a": value}, folder=tmp_path, images=["a"])


def test_an_endpoint_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match="/v1/chat/completions"):
        Template("m", "{text}", endpoint="/v1/videos")
    with pytest.raises(InputError, match="no name"):
        Template("", "{text}")
    with pytest.raises(TypeError, match="a list of columns"):
        Template("m", "{text}", images="file")
