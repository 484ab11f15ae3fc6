"""What the client needs of the resources before any is used: they import much, and are imported at their first use."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Generator, Mapping
from math import isfinite
from typing import Any

import orjson

unwinding: contextvars.ContextVar[bool] = contextvars.ContextVar("autobatcher_unwinding", default=False)


class Promise:
    """The answer to come; nothing is sent before it is awaited."""

    __slots__ = ("_answer",)

    def __init__(self, answer: Callable[[], Awaitable[Any]]) -> None:
        self._answer = answer

    def __await__(self) -> Generator[Any, Any, Any]:
        """Send the request, and wait for its answer."""
        return self._answer().__await__()


def unwinds() -> bool:
    """Whether this call of `request` is to return a promise; true once."""
    asked = unwinding.get()
    if asked:
        unwinding.set(False)
    return asked


def plain_body(fields: Mapping[str, Any]) -> bytes | None:
    """The body as JSON text in UTF-8; None if it takes more to make, such as of pydantic objects and iterators.

    orjson takes more types than the SDK, which refuses enum members and UUIDs, and writes NaN, which is no JSON, as
    null. So only what is of Python's own types is left to it.
    """
    try:
        body = orjson.dumps(fields)
    except TypeError:  # orjson's own
        return None
    values: list[Any] = [fields]
    for value in values:  # which grows; there are no cycles, which orjson refuses
        kind = type(value)
        if kind is str:
            continue
        if kind is dict:
            values += value.values()
        elif kind is list or kind is tuple:
            values += value
        elif kind is float:
            if not isfinite(value):
                return None
        elif kind is not int and kind is not bool and value is not None:
            return None
    return body
