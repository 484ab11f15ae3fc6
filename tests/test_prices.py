"""What tokens cost."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from typing import Any

import genai_prices
import orjson
import pytest

import autobatcher.prices
from autobatcher.prices import OVERRIDDEN, Price, Prices, parse_override

OPENAI = "https://api.openai.com/v1/"
AZURE = "https://mine.openai.azure.com/openai/v1/"
GROQ = "https://api.groq.com/openai/v1"
DOUBLEWORD = "https://api.doubleword.ai/v1"
MISTRAL = "https://api.mistral.ai/v1"
LOCAL = "http://127.0.0.1:8000/v1/"


def pair(price: Price | None) -> tuple[float, float] | None:
    return None if price is None else (round(price.input, 6), round(price.output, 6))


def listed(model: str, provider: str) -> tuple[float, float]:
    used = genai_prices.Usage(input_tokens=10**6, output_tokens=10**6)
    found = genai_prices.calc_price(used, model, provider_id=provider)
    return float(found.input_price), float(found.output_price)


@pytest.mark.parametrize(
    ("model", "base_url", "provider"),
    [
        ("gpt-4o-mini", OPENAI, "openai"),
        ("gpt-4o-mini", None, "openai"),
        ("gpt-4o-mini", AZURE, "azure"),
        ("text-embedding-3-small", OPENAI, "openai"),
        ("openai/gpt-oss-20b", GROQ, "groq"),
    ],
)
def test_a_batch_of_24_hours_is_half_the_realtime_price(
    model: str, base_url: str | None, provider: str
) -> None:
    prices = Prices()
    realtime = prices.of(model, base_url=base_url)
    assert realtime is not None
    assert pair(realtime) == listed(model, provider)
    assert realtime.source == f"genai-prices {genai_prices.__version__}"
    batch = prices.of(model, base_url=base_url, window="24h")
    assert batch is not None
    assert pair(batch) == (realtime.input / 2, realtime.output / 2)
    assert "less 50% in batches: https://" in batch.source
    assert batch.date is not None
    assert prices.of(model, base_url=base_url, window="1h") is None


@pytest.mark.parametrize("prefix", ["Qwen/", "", "qwen/"])
@pytest.mark.parametrize(
    ("model", "realtime", "hour", "day"),
    [
        ("Qwen3-VL-30B-A3B-Instruct-FP8", (0.16, 0.80), (0.07, 0.30), (0.05, 0.20)),
        ("Qwen3-VL-235B-A22B-Instruct-FP8", (0.60, 1.20), (0.15, 0.55), (0.10, 0.40)),
    ],
)
def test_doublewords_models_have_a_price_for_each_window(
    prefix: str, model: str, realtime: Any, hour: Any, day: Any
) -> None:
    prices = Prices()
    for window, expected in ((None, realtime), ("1h", hour), ("24h", day), ("12h", None)):
        price = prices.of(prefix + model, base_url=DOUBLEWORD, window=window)
        assert pair(price) == expected
        assert price is None or (price.source.startswith("https://docs.doubleword.ai/") and price.date)
    assert prices.of(prefix + model, base_url=OPENAI, window="24h") is None
    assert prices.of(prefix + model, base_url=LOCAL, window="24h") is None


@pytest.mark.parametrize("window", [None, "24h", "1h"])
@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("gpt-4o-mini", LOCAL),
        ("gpt-4o-mini", "not an address"),
        ("no-such-model", OPENAI),
        ("", OPENAI),
        ("whisper-1", OPENAI),
    ],
)
def test_what_is_unknown_is_none(model: str, base_url: str, window: str | None) -> None:
    assert Prices().of(model, base_url=base_url, window=window) is None


def test_a_lookalike_of_a_providers_address_gets_no_discount() -> None:
    assert Prices().of("gpt-4o-mini", base_url="https://api.openai.com.example.org/", window="24h") is None


def test_a_provider_without_a_documented_discount_has_realtime_prices_alone() -> None:
    prices = Prices()
    assert pair(prices.of("mistral-small-latest", base_url=MISTRAL)) == listed(
        "mistral-small-latest", "mistral"
    )
    assert prices.of("mistral-small-latest", base_url=MISTRAL, window="24h") is None


def test_a_price_that_is_given_holds_everywhere() -> None:
    prices = Prices({"gpt-4o-mini": (3, 4), "free": (0, 0)})
    for base_url in (None, OPENAI, LOCAL):
        for window in (None, "24h", "1h", "7d"):
            assert prices.of("gpt-4o-mini", base_url=base_url, window=window) == (3, 4, OVERRIDDEN, None)
            assert prices.of("free", base_url=base_url, window=window) == (0, 0, OVERRIDDEN, None)


def test_the_cost_of_tokens_is_in_dollars() -> None:
    assert Price(2.5, 10, "x", None).cost(1_000_000, 100_000) == 3.5
    assert Price(0, 0, "x", None).cost(5, 5) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m=1,2", ("m", (1, 2))),
        ("Qwen/x=0.05,.2", ("Qwen/x", (0.05, 0.2))),
        ("a=b=1,2", ("a=b", (1, 2))),
        ("m=0,0", ("m", (0, 0))),
    ],
)
def test_an_override_is_read(text: str, expected: Any) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    "text", ["", "m", "m=", "m=1", "m=1,2,3", "=1,2", "m=a,b", "m=-1,2", "m=nan,1", "m=inf,1"]
)
def test_a_bad_override_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="MODEL=IN,OUT"):
        parse_override(text)


def test_every_entry_of_the_table_has_a_source_and_a_day() -> None:
    table = autobatcher.prices._table()
    said = [(entry.source, entry.date) for entry in table.discounts]
    said += [(entry.source, entry.date) for entry in table.models]
    for source, day in said:
        assert source.startswith("https://")
        assert date.fromisoformat(day) > date(2024, 4, 1)


def test_without_genai_prices_its_prices_are_unknown() -> None:
    code = """if True:
        import sys
        sys.modules["genai_prices"] = None
        from autobatcher.prices import Prices
        prices = Prices({"given": (1, 2)})
        doubleword = "https://api.doubleword.ai/v1"
        found = [
            prices.of("gpt-4o-mini"), prices.of("gpt-4o-mini", window="24h"), prices.of("given"),
            prices.of("Qwen/Qwen3-VL-30B-A3B-Instruct-FP8", base_url=doubleword, window="1h"),
        ]
        import orjson
        sys.stdout.buffer.write(orjson.dumps([price and [price.input, price.output] for price in found]))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert orjson.loads(done.stdout) == [None, None, [1, 2], [0.07, 0.3]]


def test_prices_are_not_imported_before_they_are_asked_for() -> None:
    code = "import sys, autobatcher; sys.exit('genai_prices' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
