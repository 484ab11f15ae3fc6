"""What the proxy can be told."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})

MAX_WAITING = 10_000
"""Each takes a connection, and some 25 kB of memory while it waits: a machine for that many is a small one."""

MAX_BODY = 10_000_000
"""As long as the longest line that Doubleword takes in a batch file; OpenAI names no limit but that of the file."""


@dataclass(frozen=True)
class ServeConfig:
    """Settings of one proxy.

    Attributes:
        base_url: of the upstream, such as `https://api.openai.com/v1`; None: as `openai.AsyncOpenAI` finds it.
        api_key: for the upstream; None passes on what each caller sends. Never shown.
        serve_key: what callers must send; None lets everybody in. Never shown.
        journal: the file that keeps requests and answers; None: a temporary one, gone at the end.
        keep_alive_seconds: after that long, and as often, a caller that waits for JSON gets white space, with the
            status 200; None: never. Streams get comments that often, or every 15 s.
        max_body_bytes: of a batched request; a larger one is refused with 413.
        max_waiting: callers of batched paths at a time; one more is refused with 429.
        grace_seconds: once told to stop, for how long answers that come are still delivered.
        options: the batch options of the client, such as `batch_size`.

    Raises:
        ValueError: a value that makes no sense; the message says what is allowed.
    """

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    serve_key: str | None = field(default=None, repr=False)
    journal: str | os.PathLike[str] | None = None
    keep_alive_seconds: float | None = None
    max_body_bytes: int = MAX_BODY
    max_waiting: int = MAX_WAITING
    grace_seconds: float = 5.0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_waiting"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not (math.isfinite(self.grace_seconds) and self.grace_seconds >= 0):
            raise ValueError("grace_seconds must be a finite number, 0 or more")
        every = self.keep_alive_seconds
        if every is not None and not (math.isfinite(every) and every > 0):
            raise ValueError("keep_alive_seconds must be a finite number, more than 0")
        for name in ("api_key", "serve_key"):
            key = getattr(self, name)
            if key is not None and not (key and key.isascii() and key.isprintable() and key == key.strip()):
                raise ValueError(f"{name} must be of printable ASCII characters, without spaces around it")
