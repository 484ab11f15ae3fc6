"""Creating and cancelling batch objects."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from autobatcher.local.store import TERMINAL
from autobatcher.local.wire import ApiError, new_id

if TYPE_CHECKING:
    from autobatcher.local.dialects import Dialect
    from autobatcher.local.store import Store

_WINDOW = re.compile(r"([1-9][0-9]{0,8})([smhd])", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512  # https://platform.openai.com/docs/api-reference/batch/object


def window_seconds(window: Any) -> int:
    """Seconds of a completion window such as "24h", "7d", "30m" or "90s".

    OpenAI takes "24h" only, other services more.
    """
    match = _WINDOW.fullmatch(window) if isinstance(window, str) else None
    if match is None:
        raise ApiError(
            400,
            "'completion_window' must be a duration such as '24h'.",
            param="completion_window",
            code="invalid_value",
        )
    return int(match[1]) * _UNITS[match[2]]


def check_metadata(metadata: Any) -> dict[str, str] | None:
    """At most 16 pairs of strings, keys of at most 64 characters, values of at most 512."""
    if metadata is None:
        return None
    if not isinstance(metadata, dict) or len(metadata) > _MAX_PAIRS:
        raise ApiError(400, f"'metadata' must be an object of at most {_MAX_PAIRS} pairs.", param="metadata")
    for key, value in metadata.items():
        if len(key) > _MAX_KEY or not isinstance(value, str) or len(value) > _MAX_VALUE:
            message = f"'metadata' keys have at most {_MAX_KEY} characters, values are strings of at most {_MAX_VALUE}."
            raise ApiError(400, message, param=f"metadata.{key[:_MAX_KEY]}")
    return metadata


def output_lifetime(body: dict[str, Any]) -> int | None:
    """Seconds for which result files are kept, from `output_expires_after`; None: for ever."""
    given = body.get("output_expires_after")
    if given is None:
        return None
    seconds = given.get("seconds") if isinstance(given, dict) else None
    if not isinstance(seconds, int) or isinstance(seconds, bool) or not 0 < seconds < 2**40:
        raise ApiError(
            400, "'output_expires_after.seconds' must be an integer.", param="output_expires_after"
        )
    return seconds


def new_batch(body: dict[str, Any], store: Store, dialect: Dialect, *, now: int) -> dict[str, Any]:
    """A batch object for a creation request; only its input's content is checked later."""
    for name in ("input_file_id", "endpoint", "completion_window"):
        if body.get(name) is None:
            raise ApiError(
                400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
    input_file_id, endpoint, window = body["input_file_id"], body["endpoint"], body["completion_window"]
    if not isinstance(endpoint, str) or endpoint not in dialect.batched:
        known = ", ".join(dialect.batched)
        raise ApiError(400, f"'endpoint' must be one of {known}.", param="endpoint", code="invalid_value")
    if dialect.only_window not in (None, window):
        raise ApiError(
            400,
            f"'completion_window' must be '{dialect.only_window}'.",
            param="completion_window",
            code="invalid_value",
        )
    input_file = store.file(input_file_id, now) if isinstance(input_file_id, str) else None
    if input_file is None:
        raise ApiError(
            400, f"No such File object: {input_file_id}", param="input_file_id", code="invalid_value"
        )
    if input_file["purpose"] != "batch":
        raise ApiError(
            400, "The input file's purpose must be 'batch'.", param="input_file_id", code="invalid_value"
        )
    return {
        "id": new_id("batch_"),
        "object": "batch",
        "endpoint": endpoint,
        "model": None,
        "errors": None,
        "input_file_id": input_file_id,
        "completion_window": window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": now,
        "in_progress_at": None,
        "expires_at": now + window_seconds(window),
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": check_metadata(body.get("metadata")),
        **dialect.new_batch,
    }


def cancel_batch(batch: dict[str, Any], store: Store, *, now: int) -> dict[str, Any]:
    """Mark a batch as cancelling; 409 if it has ended or is about to."""
    if batch["status"] == "cancelling":
        return batch
    if batch["status"] in TERMINAL or batch["status"] == "finalizing":
        raise ApiError(409, f"Cannot cancel a batch with status '{batch['status']}'.")
    return store.update(batch["id"], status="cancelling", cancelling_at=now)
