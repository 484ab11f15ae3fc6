"""What the embedded Batch API can be told."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from autobatcher.local.dialects import AZURE, OPENAI, Dialect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class LocalConfig:
    """Settings of one server; the defaults are OpenAI's documented limits.

    Attributes:
        db: SQLite file that survives a restart; None keeps everything in memory.
        upstream: Base URL of an OpenAI-compatible server that answers, such as
            `http://127.0.0.1:11434/v1`; None uses the built-in model.
        upstream_key: Bearer key for the upstream; never shown.
        concurrency: Most lines under way at once, over all batches.
        latency_seconds: How long the built-in model takes for a line or a realtime call.
        partial_results: Serve results before the end, as Doubleword's service does: output and error
            file ids from in_progress on, `?skip=N`, and several models per file.
        api_key: Key that clients must send; never shown.
        max_file_bytes: Largest batch input, 200 MB at OpenAI; a larger one fails validation.
        max_file_lines: Most requests in a batch, 50,000 at OpenAI.
        max_line_bytes: Longest line of a batch input, and largest JSON body of any call.
        max_upload_bytes: Largest upload, 512 MB at OpenAI; more is refused with 413.
        clock: Unix time in seconds.
        azure: Pose as Azure OpenAI, for clients such as `openai.AsyncAzureOpenAI`: paths below `/openai`,
            deployments for models, `api-version` required, and batches that do not expire. The limits stay.
    """

    db: str | Path | None = None
    upstream: str | None = None
    upstream_key: str | None = field(default=None, repr=False)
    concurrency: int = 64
    latency_seconds: float = 0.0
    partial_results: bool = False
    api_key: str | None = field(default=None, repr=False)
    max_file_bytes: int = 200_000_000
    max_file_lines: int = 50_000
    max_line_bytes: int = 10_000_000
    max_upload_bytes: int = 512_000_000
    clock: Callable[[], float] = time.time
    azure: bool = False

    @property
    def dialect(self) -> Dialect:
        """How the service is spoken to that the server poses as."""
        return AZURE if self.azure else OPENAI

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_file_bytes", "max_file_lines", "max_line_bytes", "max_upload_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not (math.isfinite(self.latency_seconds) and self.latency_seconds >= 0):
            raise ValueError("latency_seconds must be a finite number, 0 or more")
        if self.upstream is not None and not self.upstream.startswith(("http://", "https://")):
            raise ValueError("upstream must be a URL that starts with http:// or https://")
        if self.api_key == "":
            raise ValueError("api_key must not be empty")
