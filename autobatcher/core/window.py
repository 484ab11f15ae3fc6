"""When a window closes, and what fits into one file."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

MAX_LINES = 50_000
"""Requests in one batch; for embeddings, also inputs over all requests of one batch.

Source: https://platform.openai.com/docs/guides/batch, "Rate limits".
"""

MAX_BYTES = 200 * 10**6
"""Bytes of one input file (source: as for `MAX_LINES`)."""


GIVEN_BACK = -2
"""From which on numbers are counted down that requests have given back."""


class Terms(NamedTuple):
    """What a caller asks of its requests.

    Attributes:
        resubmits: whether one goes into another batch when its batch expires.
        patience: for how many seconds its caller waits at most; None: for as long as it takes.
    """

    resubmits: bool = True
    patience: float | None = None


class Request(msgspec.Struct, eq=False, gc=False):
    """An accepted request: its encoded line and whom to answer (both opaque to the core), and what it weighs.

    There may be a million, so the garbage collector is not to look at them, again and again. It need not as long as
    whoever drops one that has a `reply` or a `place` sets these to None, for they lead back to it.
    """

    custom_id: str
    endpoint: str
    model: str
    line: Any
    size: int
    """Of the line in bytes."""
    reply: Any = None
    weight: int = 1
    """What counts towards `MAX_LINES`: 1, or the number of inputs of an embeddings request."""
    retries_left: int = 0
    """How many more times it is sent when its answer is an error that may pass."""
    losses: int = 0
    """How often its batch left it unanswered."""
    sent: int = 0
    """How often it was in a batch before."""
    tokens: float = 0.0
    """Estimated, if anybody counts them."""
    key: bytes = b""
    """In a journal, what it shares with equal requests; empty without one."""
    n: int = -1
    """In a journal, which of the equal requests it is; -1 while it has no number, `GIVEN_BACK` - n if it has given n back."""
    named: bool = False
    """In a journal, whether that number was given with it, and is its own for good."""
    wanted: bool = True
    """Whether its caller waits; in a journal, an answer that nobody waits for is kept for a later call."""
    resubmits: bool = True
    """Whether it goes into another batch when its batch expires."""
    patience: float | None = None
    """For how many seconds its caller waits at most, if there is a limit."""
    accepted_at: float | None = None
    """When its caller came with it."""
    host: Any = None
    """Who follows it, if that is not whom its caller asked."""
    place: Any = None
    """The window or the batch that it is in; None once it is settled."""

    def __repr__(self) -> str:
        """Without the line, which holds the prompt."""
        return f"Request({self.custom_id!r}, {self.endpoint!r}, {self.model!r}, {self.size} bytes)"


class Limits(msgspec.Struct, frozen=True):
    """When a window is full or over.

    Attributes:
        requests: the number of requests that closes a window.
        seconds: how long a window stays open after its first request.
        weight: the most lines (embedding inputs) of one file.
        size: the most bytes of one file.
        tokens: the most estimated prompt tokens of one file, unless a single request has more; None: any number.
    """

    requests: int = 1000
    seconds: float = 1.0
    weight: int = MAX_LINES
    size: int = MAX_BYTES
    tokens: float | None = None


class OversizedError(ValueError):
    """A request that fits into no file."""


class Window(msgspec.Struct, eq=False):
    """The requests of one (endpoint, model) that will share a file."""

    limits: Limits
    closes_at: float
    requests: dict[str, Request] = msgspec.field(default_factory=dict)
    size: int = 0
    weight: int = 0
    tokens: float = 0.0

    def fits(self, request: Request) -> bool:
        """Whether the request may still join."""
        limits = self.limits
        return (
            self.size + request.size <= limits.size
            and self.weight + request.weight <= limits.weight
            and (limits.tokens is None or not self.requests or self.tokens + request.tokens <= limits.tokens)
        )

    def add(self, request: Request) -> None:
        """Take the request in."""
        self.requests[request.custom_id] = request
        request.place = self
        self.size += request.size
        self.weight += request.weight
        self.tokens += request.tokens

    def discard(self, request: Request) -> None:
        """Let go of a request whose caller has left."""
        if self.requests.pop(request.custom_id, None) is not None:
            request.place = None
            self.size -= request.size
            self.weight -= request.weight
            self.tokens -= request.tokens

    @property
    def full(self) -> bool:
        """Whether nothing more can join, so that waiting on would be of no use."""
        limits = self.limits
        return (
            len(self.requests) >= limits.requests
            or self.weight >= limits.weight
            or self.size >= limits.size
            or (limits.tokens is not None and self.tokens >= limits.tokens)
        )


def check_fits_any(request: Request, limits: Limits) -> None:
    """Refuse what is too large for a file of its own.

    Raises:
        OversizedError: with the size and the limit in its message.
    """
    if request.size > limits.size:
        raise OversizedError(
            f"the request is {request.size:,} bytes as a line of a batch file; a file holds {limits.size:,}"
        )
    if request.weight > limits.weight:
        raise OversizedError(
            f"the request has {request.weight:,} inputs; a batch file holds {limits.weight:,}"
        )
