"""From a row of a table to the body of a request."""

from __future__ import annotations

import base64
import copy
import json
import mimetypes
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import orjson

from autobatcher.jobs.items import InputError
from autobatcher.jobs.reading import BOM, fault

CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"

ENDPOINTS = (CHAT, RESPONSES, EMBEDDINGS)
"""Those that requests can be made for from rows."""

_RESERVED = {
    "model": "--model says which model",
    "messages": "--prompt and --system make the messages",
    "input": "--prompt makes the input",
}

_SCHEMA_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_SCHEMA_NAME_LENGTH = 64
"""Letters, digits, `_` and `-`, at most 64 of them.

Source: https://platform.openai.com/docs/api-reference/chat/create, "response_format", "json_schema", "name".
"""

_IMAGE_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_WEBP = re.compile(rb"RIFF....WEBP", re.DOTALL)
_START_BYTES = 16

_TYPES = mimetypes.MimeTypes()  # Python's own, the same on every machine
for _kind in ("bmp", "heic", "heif"):  # but not in every version of it
    _TYPES.add_type(f"image/{_kind}", f".{_kind}")


class Pattern:
    """A text with names of columns in braces: "Summarise: {text}"; `{{` and `}}` are braces.

    What stands in the braces is the name as it is, whatever characters it has: nothing is looked up in a value, formatted
    or evaluated.

    Raises:
        InputError: a brace is alone, or nothing is between two.
    """

    _PARTS = re.compile(r"(\{\{|\}\}|\{[^{}]*\}|[{}])")

    def __init__(self, text: str) -> None:
        self._parts: list[tuple[str, str | None]] = []
        for part in self._PARTS.split(text):
            if part in {"{{", "}}"}:
                self._parts.append((part[0], None))
            elif part in {"{", "}", "{}"}:
                raise InputError(
                    f"{part!r} in {_shortened(text)!r} names no column: write {{column}}, and {{{{ or }}}} for a brace"
                )
            elif part.startswith("{"):
                self._parts.append(("", part[1:-1]))
            elif part:
                self._parts.append((part, None))
        self.columns = tuple(dict.fromkeys(name for _, name in self._parts if name is not None))

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text with the row's values."""
        return "".join(text if name is None else _as_text(_value(row, name)) for text, name in self._parts)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 -- what is easily read


def _value(row: Mapping[str, Any], name: str) -> Any:
    try:
        return row[name]
    except KeyError:
        raise InputError(f"there is no column {name!r}; there {_listed(row)}") from None


def _listed(columns: Iterable[str]) -> str:
    names = [repr(name) for name in columns]
    return ("is " if len(names) == 1 else "are ") + (", ".join(names) or "none")


def _as_text(value: Any) -> str:
    """Text as it is, None as nothing, what JSON has as JSON, and dates and the like as Python writes them."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise InputError("a value is bytes that are no UTF-8 text") from None
    if isinstance(value, (bool, int, float, list, tuple, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Fields of a body from texts such as "temperature=0.2": a value is JSON where it is some, otherwise text.

    Raises:
        InputError: a text is no NAME=VALUE, or a name is there twice.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not (name and equals):
            raise InputError(f"{text!r} is no NAME=VALUE")
        if name in settings:
            raise InputError(f"{name!r} is set twice")
        settings[name] = _json_or_text(value)
    return settings


def _json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):  # among them msgspec's own
        return text


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With objects in place of the dots in names."""
    fields: dict[str, Any] = {}
    for name, value in copy.deepcopy(dict(settings)).items():
        *outer, last = name.split(".")
        place: Any = fields
        for part in outer:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last in place or "" in {*outer, last}:
            raise InputError(f"the setting {name!r} has no place beside the others")
        place[last] = value
    for name, reason in _RESERVED.items():
        if name in fields:
            raise InputError(f"the field {name!r} cannot be set: {reason}")
    if fields.get("stream"):
        raise InputError("the field 'stream' cannot be true: a batch answers whole")
    return fields


def _merged(fields: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in over.items():
        there = merged.get(name)
        merged[name] = (
            _merged(there, value) if isinstance(there, dict) and isinstance(value, Mapping) else value
        )
    return merged


def _loaded(given: str | os.PathLike[str] | Any) -> tuple[Any, str]:
    """What a JSON file holds, or was given in its place; and the file's name."""
    if not isinstance(given, (str, os.PathLike)):
        return given, ""
    path = Path(given)
    try:
        return msgspec.json.decode(data := path.read_bytes().removeprefix(BOM)), f"{path}: "
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {fault(data, error)}") from None


@dataclass(frozen=True)
class Template:
    """How a row becomes a request.

    Attributes:
        model: of all requests.
        prompt: what the user says, with columns in braces: "Summarise: {text}". Write `{{` and `}}` for braces. A value
            that is no text is written as JSON, None as nothing.
        system: what the system says, likewise; None: nothing.
        schema: a JSON Schema that the answers are to have (strictly), or the path of a file with it; its title is
            its name.
        tools: OpenAI's tools, or the path of a file with them; functions may stand alone, without the object of the
            type "function" around them.
        images: columns that hold an image's file (a relative path starts in the input's folder) or URL; a row may
            have None or nothing there.
        settings: further fields of the body, such as {"temperature": 0.2}, or a list of texts such as
            "temperature=0.2", whose value is JSON where it is some, otherwise text. Dots in a name make objects:
            "reasoning.effort". They win over what is made of the other attributes.
        endpoint: one of `ENDPOINTS`.

    Raises:
        InputError: something cannot be used; a file's name is in the message.
        OSError: a file cannot be read.
        TypeError: `images` is a single text.
    """

    model: str
    prompt: str
    system: str | None = None
    schema: str | os.PathLike[str] | Mapping[str, Any] | None = None
    tools: str | os.PathLike[str] | Sequence[Mapping[str, Any]] | None = None
    images: Sequence[str] = ()
    settings: Mapping[str, Any] | Sequence[str] = field(default_factory=dict)
    endpoint: str = CHAT

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError("the model has no name")
        if isinstance(self.images, str):
            raise TypeError("images are a list of columns")
        if self.endpoint not in ENDPOINTS:
            raise InputError(
                f"no requests can be made for {self.endpoint!r}, only for {', '.join(ENDPOINTS)}"
            )
        if self.endpoint == EMBEDDINGS and (
            self.system is not None or self.schema is not None or self.tools is not None or self.images
        ):
            raise InputError("embeddings have a prompt, and no system text, schema, tools or images")
        _ = self._fields
        if not self.columns:
            raise InputError("the prompt names no column, such as {text}: all rows would ask the same")

    @cached_property
    def _prompt(self) -> Pattern:
        return Pattern(self.prompt)

    @cached_property
    def _system(self) -> Pattern | None:
        return None if self.system is None else Pattern(self.system)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that it takes."""
        system = () if self._system is None else self._system.columns
        return tuple(dict.fromkeys((*system, *self._prompt.columns, *self.images)))

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """What all bodies have after the model and the prompt."""
        fields: dict[str, Any] = {}
        if self.schema is not None:
            fields |= self._format(*_loaded(self.schema))
        if self.tools is not None:
            fields["tools"] = self._tools(*_loaded(self.tools))
        settings = self.settings
        return _merged(
            fields, _nested(settings if isinstance(settings, Mapping) else parse_settings(settings))
        )

    def _format(self, schema: Any, place: str) -> dict[str, Any]:
        if not isinstance(schema, Mapping):
            raise InputError(f"{place}a JSON Schema is an object")
        name = _SCHEMA_NAME.sub("_", str(schema.get("title") or "answer"))[:_SCHEMA_NAME_LENGTH]
        form: dict[str, Any] = {"name": name, "schema": schema, "strict": True}
        if self.endpoint == RESPONSES:
            return {"text": {"format": {"type": "json_schema", **form}}}
        return {"response_format": {"type": "json_schema", "json_schema": form}}

    def _tools(self, tools: Any, place: str) -> list[dict[str, Any]]:
        """In the endpoint's form: chat completions have the function in an object of its own, responses do not.

        Source: https://platform.openai.com/docs/guides/migrate-to-responses, "function definitions".
        """
        if isinstance(tools, Mapping):
            tools = [tools]
        if not isinstance(tools, Sequence) or isinstance(tools, str):
            raise InputError(f"{place}tools are a list of objects")
        return [self._tool(tool, place) for tool in tools]

    def _tool(self, tool: Any, place: str) -> dict[str, Any]:
        if not isinstance(tool, Mapping):
            raise InputError(
                f"{place}a tool is an object, and not {orjson.dumps(tool, default=str).decode()}"
            )
        if tool.get("type", "function") != "function":
            return dict(tool)
        function = tool.get("function", {name: value for name, value in tool.items() if name != "type"})
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(f"{place}a function without a name is no tool")
        if self.endpoint == RESPONSES:
            return {"type": "function", **function}
        return {"type": "function", "function": dict(function)}

    def check(self, columns: Iterable[str]) -> None:
        """Make sure that a table has the columns.

        Raises:
            InputError: it lacks one; the message names it and those that there are.
        """
        there = list(columns)
        for name in self.columns:
            if name not in there:
                raise InputError(f"there is no column {name!r}; there {_listed(there)}")

    def body(self, row: Mapping[str, Any], folder: str | os.PathLike[str] = ".") -> bytes:
        """The JSON text of a request's body for a row; `folder` is where relative paths of images start.

        Raises:
            InputError: the row lacks a column, or a value cannot be used.
        """
        prompt = self._prompt.fill(row)
        images = [url for name in self.images if (url := _image(_value(row, name), Path(folder))) is not None]
        body = {"model": self.model, **self._said(prompt, images, row), **self._fields}
        try:
            return orjson.dumps(body)
        except TypeError:  # such as an integer of more than 64 bits, or half of a surrogate pair
            return self._encoded(body)

    @staticmethod
    def _encoded(body: dict[str, Any]) -> bytes:
        try:
            return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except UnicodeEncodeError:
            raise InputError("a text has half of a surrogate pair") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"the settings are no JSON: {error}") from None

    def _said(self, prompt: str, images: list[str], row: Mapping[str, Any]) -> dict[str, Any]:
        system = None if self._system is None else self._system.fill(row)
        if self.endpoint == EMBEDDINGS:
            return {"input": prompt}
        if self.endpoint == RESPONSES:
            parts: list[dict[str, Any]] = [{"type": "input_text", "text": prompt}]
            parts += [{"type": "input_image", "image_url": url} for url in images]
            asked: Any = [{"role": "user", "content": parts}] if images else prompt
            return {"input": asked} if system is None else {"instructions": system, "input": asked}
        parts = [{"type": "text", "text": prompt}]
        parts += [{"type": "image_url", "image_url": {"url": url}} for url in images]
        messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        return {"messages": [*messages, {"role": "user", "content": parts if images else prompt}]}


def _image(value: Any, folder: Path) -> str | None:
    """The URL of an image: that which is given, or one that holds the file."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InputError(f"an image is a path or URL, and not {_shortened(_as_text(value))}")
    if value.lower().startswith(("http://", "https://", "data:")):
        return value
    path = folder / value
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(
            f"the image {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    kind = image_type(path, data[:_START_BYTES])
    if kind is None or not data:
        raise InputError(f"{str(path)!r} is no image")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_type(path: Path, start: bytes | None = None) -> str | None:
    """The MIME type of an image's file, by its first bytes or else its name; None if it is no image."""
    if start is None:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    for known, kind in _IMAGE_STARTS:
        if start.startswith(known):
            return kind
    if _WEBP.match(start):
        return "image/webp"
    named = _TYPES.guess_type(path.name, strict=False)[0]
    return named if named is not None and named.startswith("image/") else None
