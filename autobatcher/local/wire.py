"""JSON in and out, ids, and errors in OpenAI's shape."""

from __future__ import annotations

import json
import uuid
from typing import Any, NoReturn

import msgspec

from autobatcher.wire import error_body

ENDPOINTS = ("/v1/chat/completions", "/v1/embeddings", "/v1/responses")
"""The endpoints that are answered, in batches and at once."""


class ApiError(Exception):
    """An answer with a status of 400 or more, in OpenAI's error shape."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(status, message, param=param, code=code)


def new_id(prefix: str) -> str:
    """An id that no other object has, such as `file-0f…`."""
    return prefix + uuid.uuid4().hex


def encode(value: Any) -> bytes:
    """Compact JSON on one line, UTF-8."""
    try:
        return msgspec.json.encode(value)
    except (ValueError, OverflowError):  # lone surrogates, integers over 64 bits
        return json.dumps(value, separators=(",", ":")).encode()


def decode(data: bytes) -> Any:
    """Parse JSON; raise ValueError for anything else."""
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError):  # msgspec is stricter than JSON about surrogates and integers
        pass
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
