"""What is wrong with a batch file, before a server says so a quarter of an hour after the upload."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from autobatcher.core.window import MAX_BYTES, MAX_LINES
from autobatcher.display_state import counted
from autobatcher.jobs.packing import weight_of
from autobatcher.jobs.reading import BOM, FirstLines, fault, not_utf8

MAX_CUSTOM_ID = 64
"""Bytes of a custom_id in UTF-8.

OpenAI's reference gives no limit. Doubleword's documentation does, and its server counts bytes and refuses control
characters and what is not ASCII (https://docs.doubleword.ai/batches/getting-started-with-batched-api;
`validate_custom_id` in https://github.com/doublewordai/control-layer/blob/main/dwctl/src/api/handlers/files.rs).
"""

KNOWN_OPERATIONS = frozenset(
    {
        "chat/completions",
        "completions",
        "embeddings",
        "images/edits",
        "images/generations",
        "moderations",
        "responses",
        "videos",
        # not at OpenAI
        "audio/transcriptions",
        "audio/translations",
        "messages",
        "rerank",
        "score",
    }
)
"""What follows the version in the urls that servers are known to take.

Sources: the parameter `endpoint` of https://platform.openai.com/docs/api-reference/batch/create;
https://console.groq.com/docs/batch (audio); https://openrouter.ai/docs/batch-quickstart (messages);
https://docs.vllm.ai/en/latest/examples/offline_inference/openai_batch.html (rerank, score).
"""

_URL = re.compile(r"(?P<version>/v[0-9][^/]*)?/(?P<operation>[^?#]*)")

_MOST_NAMES = 100
"""Different urls and models that are told apart and told of."""

_SHOWN = 80
"""Characters of a value in a message."""

_BREAKS = (
    (b"\r", "a carriage return"),
    ("\u0085".encode(), "U+0085"),
    ("\u2028".encode(), "U+2028"),
    ("\u2029".encode(), "U+2029"),
)


class Problem(NamedTuple):
    """Something that is wrong with a batch file.

    Attributes:
        line: its number, from 1; None if it is about the whole file.
        severity: "error", or "warning" for what some servers take.
        code: a name for the kind of problem, such as "duplicate_custom_id".
        message: for people.
        custom_id: of the line, if it has one.
    """

    line: int | None
    severity: Literal["error", "warning"]
    code: str
    message: str
    custom_id: str | None = None


def validate(
    path: str | os.PathLike[str], *, max_requests: int = MAX_LINES, max_bytes: int = MAX_BYTES
) -> Iterator[Problem]:
    """Find every problem of a batch file, in the order of its lines.

    A line is in memory at a time, and of all lines what `FirstLines` keeps, some 50 bytes each.

    Args:
        path: the file.
        max_requests: the most requests of a file, and of embeddings the most inputs.
        max_bytes: the most bytes of a file.

    Yields:
        Problems; none if the file is as it should be.

    Raises:
        OSError: the file cannot be read.
    """
    checker = _Checker(max_requests)
    size = 0
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, 1):
            size += len(line)
            yield from checker.line(number, line)
    yield from checker.end()
    if size > max_bytes:
        yield Problem(
            None, "error", "too_large", f"the file has {counted(size, 'byte')}, and may have {max_bytes:,}"
        )


class _Fault(NamedTuple):
    severity: Literal["error", "warning"]
    code: str
    message: str


def _error(code: str, message: str) -> _Fault:
    return _Fault("error", code, message)


def _warning(code: str, message: str) -> _Fault:
    return _Fault("warning", code, message)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


class _Checker:
    def __init__(self, max_requests: int) -> None:
        self._max_requests = max_requests
        self._seen = FirstLines()
        self._urls: dict[str, int] = {}
        self._models: dict[str, int] = {}
        self._requests = self._weight = 0

    def line(self, number: int, line: bytes) -> Iterator[Problem]:
        """What is wrong with a line."""
        if number == 1 and line.startswith(BOM):
            yield Problem(1, "error", "bom", "the file starts with a byte order mark")
            line = line.removeprefix(BOM)
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        if not line.strip():
            yield Problem(number, "warning", "blank_line", "the line is blank")
            return
        fields, faults = _parsed(line)
        faults += self._checked(number, fields)
        custom_id = None if fields is None else fields.get("custom_id")
        if isinstance(custom_id, str):
            custom_id = custom_id.encode(errors="backslashreplace").decode()
        else:
            custom_id = None
        for found in faults:
            yield Problem(number, *found, custom_id)

    def end(self) -> Iterator[Problem]:
        """What only the whole file shows."""
        if not self._requests:
            yield Problem(None, "error", "empty", "the file has no requests")

    def _checked(self, number: int, fields: dict[str, Any] | None) -> list[_Fault]:
        faults = list(self._counted(fields))
        if fields is not None:
            faults += self._of_custom_id(number, fields)
            faults += _of_method(fields)
            faults += self._of_url(number, fields)
            faults += self._of_body(number, fields)
        return faults

    def _counted(self, fields: dict[str, Any] | None) -> Iterator[_Fault]:
        before = self._weight
        self._requests += 1
        url, body = (None, None) if fields is None else (fields.get("url"), fields.get("body"))
        self._weight += weight_of(url, body) if isinstance(url, str) and isinstance(body, dict) else 1
        if before <= self._max_requests < self._weight:
            what = "request" if self._weight == self._requests else "input"
            yield _error(
                "too_many_requests",
                f"from here on the file has more than {counted(self._max_requests, what)}, the most that it may have",
            )

    def _of_custom_id(self, number: int, fields: Mapping[str, Any]) -> Iterator[_Fault]:
        if "custom_id" not in fields:
            yield _error("missing_custom_id", "there is no custom_id")
            return
        custom_id = fields["custom_id"]
        if not isinstance(custom_id, str):
            yield _error("wrong_custom_id", f"the custom_id is {_shown(custom_id)}, and should be a string")
            return
        if not custom_id:
            yield _error("empty_custom_id", "the custom_id is empty")
            return
        size = len(custom_id.encode(errors="replace"))
        if size > MAX_CUSTOM_ID:
            yield _error(
                "long_custom_id",
                f"the custom_id {_shown(custom_id)} has {size:,} bytes; servers take up to {MAX_CUSTOM_ID}",
            )
        if not (custom_id.isascii() and custom_id.isprintable()):
            yield _warning(
                "custom_id_characters",
                f"the custom_id {_shown(custom_id)} has characters that some servers refuse: other than printable ASCII",
            )
        first = self._seen.add(custom_id, number)
        if first is not None:
            yield _error("duplicate_custom_id", f"the custom_id {_shown(custom_id)} is that of line {first}")

    def _of_url(self, number: int, fields: Mapping[str, Any]) -> Iterator[_Fault]:
        if "url" not in fields:
            yield _error("missing_url", "there is no url")
            return
        url = fields["url"]
        if not isinstance(url, str):
            yield _error("wrong_url", f"the url is {_shown(url)}, and should be a string")
            return
        known = _URL.fullmatch(url)
        if known is None or known["operation"] not in KNOWN_OPERATIONS:
            yield _error(
                "unknown_url",
                f"the url {_shown(url)} is none that servers are known to take, such as '/v1/chat/completions'",
            )
        elif not known["version"]:
            yield _warning("url_without_version", f"the url {_shown(url)} has no version, such as '/v1'")
        if self._is_another(self._urls, url, number):
            first, line = next(iter(self._urls.items()))
            yield _error(
                "several_urls",
                f"the url {_shown(url)} is not {_shown(first)} of line {line}: a batch has one endpoint",
            )

    def _of_body(self, number: int, fields: Mapping[str, Any]) -> Iterator[_Fault]:
        if "body" not in fields:
            yield _error("missing_body", "there is no body")
            return
        body = fields["body"]
        if not isinstance(body, dict):
            yield _error("wrong_body", f"the body is {_shown(body)}, and should be an object")
            return
        model = body.get("model")
        if not isinstance(model, str) or not model:
            what = (
                f"the model is {_shown(model)}, and should be a name"
                if "model" in body
                else "there is no model"
            )
            yield _error("missing_model", what)
        elif self._is_another(self._models, model, number):
            first, line = next(iter(self._models.items()))
            yield _warning(
                "several_models",
                f"the model {_shown(model)} is not {_shown(first)} of line {line}: many servers want one a file",
            )
        if body.get("stream"):
            yield _error("stream", "the body asks for a stream; a batch answers whole")

    @staticmethod
    def _is_another(there: dict[str, int], name: str, number: int) -> bool:
        """Whether a name is new, and not the first: each is told once."""
        if name in there or len(there) >= _MOST_NAMES:
            return False
        there[name] = number
        return len(there) > 1


def _of_method(fields: Mapping[str, Any]) -> Iterator[_Fault]:
    if "method" not in fields:
        yield _error("missing_method", "there is no method")
    elif fields["method"] != "POST":
        yield _error("wrong_method", f"the method is {_shown(fields['method'])}, and should be 'POST'")


def _parsed(line: bytes) -> tuple[dict[str, Any] | None, list[_Fault]]:
    """The object on a line, if there is one, also where a strict reader would see none; and what is wrong with it."""
    faults = [
        _warning("line_break", f"the line has {name} in it, raw, at which some servers split it")
        for raw, name in _BREAKS
        if raw in line
    ]
    try:
        if not line.isascii():
            line.decode()
    except UnicodeDecodeError as error:
        return None, [*faults, _error("not_utf8", f"the line is {not_utf8(error)}")]
    try:
        loaded = msgspec.json.decode(line)
    except (ValueError, RecursionError) as error:  # among them msgspec's own
        loaded, code = _loosely(line)
        faults.append(_error(code, f"the line is {fault(line, error)}"))
        if code == "bad_json":
            return None, faults
    if not isinstance(loaded, dict):
        return None, [*faults, _error("not_object", f"the line is {_shown(loaded)}, and should be an object")]
    return loaded, faults


def _loosely(line: bytes) -> tuple[Any, str]:
    """What Python's json makes of what is no JSON in the strict sense, and why it is none."""
    constants: list[str] = []
    try:
        loaded = json.loads(line, parse_constant=constants.append)
        if constants:
            return loaded, "number"
        json.dumps(loaded, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return loaded, "lone_surrogate"
    except (ValueError, RecursionError):
        return None, "bad_json"
    return loaded, "number"
