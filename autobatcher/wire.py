"""Errors in OpenAI's shape, which the embedded server and the proxy answer with."""

from __future__ import annotations

from typing import Any


def error_body(
    status: int,
    message: str,
    *,
    kind: str | None = None,
    param: str | None = None,
    code: str | None = None,
) -> dict[str, Any]:
    """OpenAI's error object: {"error": {"message", "type", "param", "code"}}; the status says the type, if none is given."""
    kind = kind or (
        "server_error" if status >= 500 else "invalid_request_error"  # noqa: PLR2004 -- HTTP's class
    )
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
