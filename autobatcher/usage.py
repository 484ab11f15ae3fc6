"""What answers have used: tokens, by model and completion window."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

import msgspec


class Tokens(NamedTuple):
    """Of some answers.

    Attributes:
        requests: how many answers there are.
        prompt: tokens of what was asked (the input, of embeddings and responses).
        completion: tokens of what was answered.
        cached: those of the prompts that the server had from before, if it says so.
    """

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    cached: int = 0


class Bought(NamedTuple):
    """How requests were bought.

    Attributes:
        base_url: the server.
        model: as the requests name it.
        window: the completion window of their batches; None: in real time.
    """

    base_url: str
    model: str
    window: str | None


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None


class _Metered(msgspec.Struct, gc=False):
    usage: _Usage | None = None


_decode = msgspec.json.Decoder(_Metered).decode

MOST = 10**9
"""More is no number of tokens."""


def _usage(body: bytes) -> _Usage | None:
    try:
        return _decode(body).usage
    except (ValueError, RecursionError):  # among them msgspec's own
        return None


def _some(count: int) -> int:
    return count if 0 < count <= MOST else 0


class Meter:
    """Counts the tokens of answers, in whatever thread they come."""

    def __init__(self) -> None:
        self._sums: dict[Bought, list[int]] = {}
        self._lock = threading.Lock()

    def counter(self, base_url: str, window: str | None) -> Callable[[str, bytes], None]:
        """What counts the body of a successful answer to a request of a model; one that does not say is a request."""
        known: dict[str, list[int]] = {}

        def count(model: str, body: bytes) -> None:
            usage = _usage(body)
            with self._lock:
                sums = known.get(model)
                if sums is None:
                    sums = known[model] = self._sums.setdefault(Bought(base_url, model, window), [0] * 4)
                sums[0] += 1
                if usage is not None:
                    sums[1] += _some(usage.prompt_tokens or usage.input_tokens)
                    sums[2] += _some(usage.completion_tokens or usage.output_tokens)
                    details = usage.prompt_tokens_details or usage.input_tokens_details
                    if details is not None:
                        sums[3] += _some(details.cached_tokens or 0)

        return count

    @property
    def counts(self) -> dict[Bought, Tokens]:
        """All that were counted until now."""
        with self._lock:
            return {bought: Tokens(*sums) for bought, sums in self._sums.items()}
