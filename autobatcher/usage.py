"""What answers have used: tokens, and what those cost, by model and completion window."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from autobatcher.prices import Prices


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


def added(left: Mapping[Bought, Tokens], right: Mapping[Bought, Tokens]) -> dict[Bought, Tokens]:
    """Both together."""
    sums = dict(left)
    for bought, tokens in right.items():
        sums[bought] = Tokens(*map(int.__add__, sums.get(bought, Tokens()), tokens))
    return sums


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


def _tokens(given: int) -> int:
    return given if 0 < given <= MOST else 0


class Meter:
    """Counts the tokens of answers, in whatever thread they come."""

    def __init__(self) -> None:
        self._sums: dict[Bought, list[int]] = {}
        self._lock = threading.Lock()

    def counter(self, base_url: str, window: str | None) -> Callable[[str, Iterable[bytes]], None]:
        """What counts the bodies of successful answers to requests of a model; one that does not say is a request."""
        known: dict[str, list[int]] = {}

        def count(model: str, bodies: Iterable[bytes]) -> None:
            requests = prompts = completions = cached = 0
            for body in bodies:
                requests += 1
                usage = _usage(body)
                if usage is None:
                    continue
                prompts += _tokens(usage.prompt_tokens or usage.input_tokens)
                completions += _tokens(usage.completion_tokens or usage.output_tokens)
                details = usage.prompt_tokens_details or usage.input_tokens_details
                if details is not None:
                    cached += _tokens(details.cached_tokens or 0)
            with self._lock:
                sums = known.get(model)
                if sums is None:
                    sums = known[model] = self._sums.setdefault(Bought(base_url, model, window), [0] * 4)
                for place, more in enumerate((requests, prompts, completions, cached)):
                    sums[place] += more

        return count

    @property
    def counts(self) -> dict[Bought, Tokens]:
        """All that were counted until now."""
        with self._lock:
            return {bought: Tokens(*sums) for bought, sums in self._sums.items()}


@dataclass(frozen=True)
class UsageLine:
    """What the answers of one model have used that were bought at one server in one way.

    Attributes:
        model: as the requests name it.
        base_url: the server.
        completion_window: of the batches; None: in real time.
        requests: how many answers there are.
        prompt_tokens: of what was asked (the input, of embeddings and responses).
        completion_tokens: of what was answered.
        cached_tokens: those of the prompts that the server had from before.
    """

    model: str
    base_url: str
    completion_window: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prices: Prices = field(repr=False, compare=False)

    @property
    def cost(self) -> float | None:
        """What it cost, in USD, by the prices that are known; None if this one is unknown."""
        return self._cost(self.completion_window)

    @property
    def realtime_cost(self) -> float | None:
        """What the same would have cost in real time, in USD; None if that price is unknown."""
        return self._cost(None)

    def _cost(self, window: str | None) -> float | None:
        price = self.prices.of(self.model, base_url=self.base_url, window=window)
        return None if price is None else price.cost(self.prompt_tokens, self.completion_tokens)


@dataclass(frozen=True)
class Usage:
    """What answers have used and cost, as of now.

    Prices are those of `autobatcher.prices`: of the package genai-prices, if that is installed, and of a small table of
    batch prices. They are looked up when a cost is asked for. Cached tokens are taken for full price.

    Attributes:
        lines: by model, server and completion window, in the order in which the first answers came.
    """

    lines: tuple[UsageLine, ...]

    @classmethod
    def of(cls, counts: Mapping[Bought, Tokens], prices: Prices | None = None) -> Usage:
        """From what a meter has counted; `prices` may have overrides."""
        prices = prices or Prices()
        return cls(
            tuple(
                UsageLine(bought.model, bought.base_url, bought.window, *tokens, prices)
                for bought, tokens in counts.items()
            )
        )

    @property
    def requests(self) -> int:
        """How many answers there are."""
        return sum(line.requests for line in self.lines)

    @property
    def prompt_tokens(self) -> int:
        """Of all lines."""
        return sum(line.prompt_tokens for line in self.lines)

    @property
    def completion_tokens(self) -> int:
        """Of all lines."""
        return sum(line.completion_tokens for line in self.lines)

    @property
    def cached_tokens(self) -> int:
        """Of all lines."""
        return sum(line.cached_tokens for line in self.lines)

    @property
    def cost(self) -> float | None:
        """Of all lines, in USD; None if that of any is unknown."""
        return total(line.cost for line in self.lines)

    @property
    def realtime_cost(self) -> float | None:
        """What all would have cost in real time, in USD; None if that of any line is unknown."""
        return total(line.realtime_cost for line in self.lines)

    @property
    def saved(self) -> float | None:
        """What all would have cost more in real time, in USD; None if one of the two is unknown."""
        cost, realtime = self.cost, self.realtime_cost
        return None if cost is None or realtime is None else realtime - cost


def total(costs: Iterable[float | None]) -> float | None:
    """The sum of costs; None if any is unknown."""
    known = list(costs)
    return None if None in known else math.fsum(cost for cost in known if cost is not None)
