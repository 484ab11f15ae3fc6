"""When a window closes, and what fits into one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MAX_LINES = 50_000
"""Requests in one batch; for embeddings, also inputs over all requests of one batch.

Source: https://platform.openai.com/docs/guides/batch, "Rate limits".
"""

MAX_BYTES = 200 * 10**6
"""Bytes of one input file (source: as for `MAX_LINES`)."""


@dataclass(slots=True, eq=False)
class Request:
    """An accepted request: its encoded line, what it weighs, and whom to answer (opaque to the core)."""

    custom_id: str
    endpoint: str
    model: str
    line: bytes
    reply: Any
    weight: int = 1
    """What counts towards `MAX_LINES`: 1, or the number of inputs of an embeddings request."""


@dataclass(frozen=True)
class Limits:
    """When a window is full or over.

    Attributes:
        requests: the number of requests that closes a window.
        seconds: how long a window stays open after its first request.
        weight: the most lines (embedding inputs) of one file.
        size: the most bytes of one file.
    """

    requests: int = 1000
    seconds: float = 1.0
    weight: int = MAX_LINES
    size: int = MAX_BYTES


class OversizedError(ValueError):
    """A request that fits into no file."""


@dataclass(slots=True, eq=False)
class Window:
    """The requests of one (endpoint, model) that will share a file."""

    limits: Limits
    closes_at: float
    requests: dict[str, Request] = field(default_factory=dict)
    size: int = 0
    weight: int = 0

    def fits(self, request: Request) -> bool:
        """Whether the request may still join."""
        limits = self.limits
        return self.size + len(request.line) <= limits.size and self.weight + request.weight <= limits.weight

    def add(self, request: Request) -> None:
        """Take the request in."""
        self.requests[request.custom_id] = request
        self.size += len(request.line)
        self.weight += request.weight

    def discard(self, request: Request) -> None:
        """Let go of a request whose caller has left."""
        if self.requests.pop(request.custom_id, None) is not None:
            self.size -= len(request.line)
            self.weight -= request.weight

    @property
    def full(self) -> bool:
        """Whether nothing more can join, so that waiting on would be of no use."""
        limits = self.limits
        return (
            len(self.requests) >= limits.requests or self.weight >= limits.weight or self.size >= limits.size
        )


def check_fits_any(request: Request, limits: Limits) -> None:
    """Refuse what is too large for a file of its own.

    Raises:
        OversizedError: with the size and the limit in its message.
    """
    if len(request.line) > limits.size:
        raise OversizedError(
            f"the request is {len(request.line):,} bytes as a line of a batch file; a file holds {limits.size:,}"
        )
    if request.weight > limits.weight:
        raise OversizedError(
            f"the request has {request.weight:,} inputs; a batch file holds {limits.weight:,}"
        )
