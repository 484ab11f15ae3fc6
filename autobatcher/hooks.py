"""Whether the SDK's methods are as the SDK made them: tracers replace them at run time, and subclasses override them.

Functions are told apart by identity alone, for a tracer's wrapper may pass itself off as equal to what it wraps, and
its attributes as its own.
"""

from __future__ import annotations

import operator
import os
import pathlib
from types import FunctionType, MethodType

import openai

_SDK = f"{pathlib.Path(openai.__file__).parent}{os.sep}"

_known_sdks: dict[int, object] = {}
"""By id; the functions stay, and so do the ids."""


def is_sdks(function: object) -> bool:
    """Whether the SDK's own code is all there is to a function."""
    if function is not None and _known_sdks.get(id(function)) is function:
        return True
    inner = function
    while type(inner) is FunctionType and inner.__code__.co_filename.startswith(_SDK):
        if not hasattr(inner, "__wrapped__"):
            _known_sdks[id(function)] = function
            return True
        inner = inner.__wrapped__
    return False


def function_of(method: object) -> object:
    """What a bound method calls; None for anything else that is called like one."""
    return method.__func__ if type(method) is MethodType else None


_ON_THE_WAY = (
    "_maybe_override_cast_to",
    "_build_request",
    "_build_headers",
    "_prepare_url",
    "_process_response",
    "_process_response_data",
)
"""What the SDK calls of its client for a batched call, from `request` to the answer."""

_REPLACED = frozenset(_ON_THE_WAY)
_CAST_TO, _REQUEST, _HEADERS, _URL, _RESPONSE, _DATA = (
    function if is_sdks(function) else None  # which is no method of any client
    for function in operator.attrgetter(*_ON_THE_WAY)(openai.AsyncOpenAI)
)


def is_hooked(client: openai.AsyncOpenAI) -> bool:
    """Whether somebody may be waiting on a call's way through the client's inner methods; asked for each call."""
    cls = type(client)
    return not (
        cls._build_request is _REQUEST
        and cls._process_response is _RESPONSE
        and cls._process_response_data is _DATA
        and cls._build_headers is _HEADERS
        and cls._prepare_url is _URL
        and cls._maybe_override_cast_to is _CAST_TO
        and client.__dict__.keys().isdisjoint(_REPLACED)
    )
