"""What tokens cost, as far as it is known.

Realtime prices are those in the package genai-prices, as it is installed: nothing is fetched. What batches cost is in
`prices.json` beside this module: discounts by provider, and models whose provider publishes a price for each window;
each with the address of the page that says so, and the day on which it did.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

TOKENS = 1_000_000
"""What prices are for."""

OVERRIDDEN = "given"
"""The source of prices that the caller has given."""


class Price(NamedTuple):
    """What a model's tokens cost.

    Attributes:
        input, output: USD per million tokens; `output` is 0 for models that answer without tokens (embeddings).
        source: where this was said: the address of a page, a package and its version, or "given".
        date: the day on which the page said so, as YYYY-MM-DD; None if the source has no day.
    """

    input: float
    output: float
    source: str
    date: str | None

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """In USD; tokens that the server had in its cache count like others, though most servers take less for them."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / TOKENS


class Prices:
    """Prices by model, server and completion window.

    Args:
        overrides: input and output price by model, in USD per million tokens: whatever the server and the window.
    """

    def __init__(self, overrides: Mapping[str, tuple[float, float]] = MappingProxyType({})) -> None:
        self._given = {
            model: Price(float(of_input), float(of_output), OVERRIDDEN, None)
            for model, (of_input, of_output) in overrides.items()
        }

    def of(self, model: str, *, base_url: str | None = None, window: str | None = None) -> Price | None:
        """The price of a model's tokens; None if it is unknown, as it is for servers that are nobody's known.

        A model with several prices, by the length of a prompt, has that of its short prompts.

        Args:
            model: as requests name it; on Azure, the deployment.
            base_url: the server; None: OpenAI.
            window: the completion window of batches, such as "24h"; None: in real time.
        """
        given = self._given.get(model)
        if given is not None:
            return given
        host = "api.openai.com" if base_url is None else urlsplit(base_url).hostname or ""
        for published in _table().models:
            if _is_at(host, published.hosts) and _last(model) == _last(published.model):
                pair = published.prices.get("realtime" if window is None else window)
                return None if pair is None else Price(*pair, published.source, published.date)
        if window is None:
            return _realtime(model, base_url)
        for discount in _table().discounts:
            if _is_at(host, discount.hosts) and window in discount.windows:
                return _reduced(_realtime(model, base_url), discount, 1 - discount.windows[window])
        return None


class _Discount(msgspec.Struct, frozen=True):
    provider: str
    hosts: tuple[str, ...]
    windows: dict[str, float]
    source: str
    date: str


class _Published(msgspec.Struct, frozen=True):
    provider: str
    hosts: tuple[str, ...]
    model: str
    prices: dict[str, tuple[float, float]]
    source: str
    date: str


class _Table(msgspec.Struct, frozen=True):
    discounts: tuple[_Discount, ...]
    models: tuple[_Published, ...]


@functools.cache
def _table() -> _Table:
    return msgspec.json.decode(Path(__file__).with_name("prices.json").read_bytes(), type=_Table)


def _is_at(host: str, hosts: tuple[str, ...]) -> bool:
    """Whether a host is among these; one with a dot in front stands for all below it."""
    return any(host.endswith(known) if known.startswith(".") else host == known for known in hosts)


def _last(model: str) -> str:
    return model.rpartition("/")[2].lower()


def _reduced(price: Price | None, discount: _Discount, factor: float) -> Price | None:
    if price is None:
        return None
    source = f"{price.source}, less {1 - factor:.0%} in batches: {discount.source}"
    return Price(price.input * factor, price.output * factor, source, discount.date)


def _realtime(model: str, base_url: str | None) -> Price | None:
    try:
        import genai_prices  # noqa: PLC0415 -- an extra, and large
    except ModuleNotFoundError:
        return None
    whose: dict[str, Any] = {"provider_id": "openai"} if base_url is None else {"provider_api_url": base_url}
    try:
        found = genai_prices.calc_price(genai_prices.Usage(), model, **whose).model_price
    except LookupError:
        return None
    of_input, of_output = _per_million(found.input_mtok), _per_million(found.output_mtok)
    if of_input is None:  # what is sold by the minute or the picture
        return None
    return Price(of_input, of_output or 0.0, f"genai-prices {genai_prices.__version__}", None)


def _per_million(price: Any) -> float | None:
    base = getattr(price, "base", price)  # of a price with tiers
    return None if base is None else float(base)


def parse_override(text: str) -> tuple[str, tuple[float, float]]:
    """A model and its two prices from "MODEL=IN,OUT".

    Raises:
        ValueError: it is nothing of the kind; the message says so.
    """
    model, equals, pair = text.rpartition("=")
    try:
        of_input, of_output = (float(part) for part in pair.split(","))
    except ValueError:
        of_input = of_output = math.nan
    if not (model and equals and 0 <= of_input < math.inf and 0 <= of_output < math.inf):
        raise ValueError(f"{text!r} is no MODEL=IN,OUT, such as my-model=0.15,0.60 (USD per million tokens)")
    return model, (of_input, of_output)
