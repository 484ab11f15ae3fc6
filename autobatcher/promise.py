"""What the client needs of the resources before any is used: they import much, and are imported at their first use."""

from __future__ import annotations

import contextvars
import re
from collections.abc import Awaitable, Callable, Generator, Mapping
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


_ENCODING = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def plain_body(fields: Mapping[str, Any]) -> bytes | None:
    """The body as JSON text in UTF-8; None if it takes more to make, such as of pydantic objects and iterators.

    orjson writes NaN, which is no JSON and which the SDK refuses, as null: such a body is the SDK's to make, and with it
    each that has a null.
    """
    try:
        body = orjson.dumps(fields, option=_ENCODING)
    except TypeError:  # orjson's own
        return None
    return None if b"null" in body and _NULL.search(body) else body


_NULL = re.compile(rb"[:,\[]null")
"""As orjson writes it; in a text it may be something else, which then is the SDK's to make as well."""
