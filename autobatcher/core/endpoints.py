"""Which calls are batched, and the url of their lines."""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Mapping
from typing import Any

BATCHED = frozenset({"chat/completions", "embeddings", "responses"})

_VERSION = re.compile(rb"/(v\d+[^/]*)/?$")


def batched_path(method: str, path: str) -> str | None:
    """The path below the base URL, without slashes around it, if such a call goes into a batch."""
    path = posixpath.normpath(path.partition("?")[0]).strip("/")
    return path if method.lower() == "post" and path in BATCHED else None


def model_name(body: Mapping[str, Any]) -> str:
    """The model that a body names, also by a member of an enum of str; empty if none."""
    model = body.get("model", "")
    return str.__str__(model) if isinstance(model, str) else str(model)


@functools.lru_cache(maxsize=64)
def line_url(base_path: bytes, path: str) -> str:
    """The url of a line: the API's version, which ends the path of the base URL ("v1" if none does), then the path.

    Servers name the operation this way whatever stands before the version: OpenAI and Doubleword (/v1), Groq
    (/openai/v1), Zhipu (/api/paas/v4).
    """
    version = _VERSION.search(base_path)
    return f"/{version[1].decode() if version else 'v1'}/{path}"


def weight(path: str, body: Mapping[str, Any]) -> int:
    """What a request counts towards the lines of a file: for embeddings its inputs, otherwise 1."""
    if path == "embeddings":
        inputs = body.get("input")
        if isinstance(inputs, (list, tuple)) and inputs and isinstance(inputs[0], (str, list, tuple)):
            return len(inputs)
    return 1
