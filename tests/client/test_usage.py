"""What a client says that it has bought."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import openai
import pydantic
import pytest

from autobatcher import BatchOpenAI
from autobatcher.local import LocalConfig, Serving, serve_in_thread
from autobatcher.prices import Prices
from autobatcher.usage import Bought, Meter, Tokens, Usage

pytestmark = pytest.mark.anyio

MESSAGES: Any = [{"role": "user", "content": "Tell!"}]
OPENAI = "https://api.openai.com/v1/"


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve_in_thread(LocalConfig()) as serving:
        yield serving


def client_for(server: Serving, **options: Any) -> BatchOpenAI:
    fast = {"batch_window_seconds": 0.05, "poll_interval_seconds": 0.02}
    return BatchOpenAI(**{"api_key": "k", "base_url": server.base_url, **fast, **options})


class Point(pydantic.BaseModel):
    x: int


async def test_all_kinds_of_batched_calls_are_counted_by_model(server: Serving) -> None:
    async with client_for(server) as client:
        assert client.usage.lines == ()
        assert client.usage.cost == 0
        found: dict[str, Any] = {}

        async def keep(name: str, call: Any) -> None:
            found[name] = await call

        async with anyio.create_task_group() as tasks:
            chat = client.chat.completions
            tasks.start_soon(keep, "chat", chat.create(model="c", messages=MESSAGES))
            tasks.start_soon(keep, "parse", chat.parse(model="c", messages=MESSAGES, response_format=Point))
            tasks.start_soon(keep, "raw", chat.with_raw_response.create(model="c", messages=MESSAGES))
            tasks.start_soon(keep, "stream", chat.create(model="s", messages=MESSAGES, stream=True))
            tasks.start_soon(keep, "embeddings", client.embeddings.create(model="e", input=["a", "b c"]))
            tasks.start_soon(keep, "responses", client.responses.create(model="r", input="Tell!"))
        usage = client.usage
    lines = {line.model: line for line in usage.lines}
    assert lines.keys() == {"c", "s", "e", "r"}
    assert {(line.base_url, line.completion_window) for line in usage.lines} == {
        (f"{server.base_url}/", "24h")
    }
    used = [found["chat"].usage, found["parse"].usage, found["raw"].parse().usage]
    chats = lines["c"]
    assert (chats.requests, chats.prompt_tokens, chats.completion_tokens) == (
        3,
        sum(use.prompt_tokens for use in used),
        sum(use.completion_tokens for use in used),
    )
    assert lines["s"].completion_tokens > 0
    assert (lines["e"].prompt_tokens, lines["e"].completion_tokens) == (
        found["embeddings"].usage.prompt_tokens,
        0,
    )
    assert lines["r"].prompt_tokens == found["responses"].usage.input_tokens
    assert lines["r"].completion_tokens == found["responses"].usage.output_tokens
    assert (usage.requests, usage.prompt_tokens, usage.completion_tokens) == (
        6,
        sum(line.prompt_tokens for line in usage.lines),
        sum(line.completion_tokens for line in usage.lines),
    )
    assert usage.cost is None
    assert usage.saved is None


async def test_copies_count_together_and_windows_apart(server: Serving) -> None:
    async with client_for(server) as client:
        other = client.with_options(completion_window="1h")
        await client.chat.completions.create(model="m", messages=MESSAGES)
        await client.with_options(max_retries=1).chat.completions.create(model="m", messages=MESSAGES)
        await other.chat.completions.create(model="m", messages=MESSAGES)
        assert client.usage == other.usage
        assert [(line.completion_window, line.requests) for line in client.usage.lines] == [
            ("24h", 2),
            ("1h", 1),
        ]
        async with client_for(server) as another:
            assert another.usage.requests == 0


async def test_errors_and_calls_that_go_out_at_once_are_not_counted(server: Serving) -> None:
    async with client_for(server, max_retries=0) as client:
        with pytest.raises(openai.APIError):
            await client.chat.completions.create(model="", messages=MESSAGES)
        await client.unbatched.chat.completions.create(model="m", messages=MESSAGES)
        await client.models.list()
        assert client.usage.lines == ()


async def test_answers_of_a_journal_are_not_counted_again(server: Serving, tmp_path: Path) -> None:
    for bought in (1, 0):
        async with client_for(server, journal=tmp_path / "run.db") as client:
            await client.chat.completions.create(model="m", messages=MESSAGES)
            assert client.usage.requests == bought
    async with client_for(server, journal=tmp_path / "run.db") as client:
        await client.chat.completions.create(model="m", messages=MESSAGES)
        await client.chat.completions.create(model="m", messages=MESSAGES)  # equal, and not there yet
        assert client.usage.requests == 1


COUNTS = {
    Bought(OPENAI, "gpt-4o-mini", "24h"): Tokens(10, 2_000_000, 1_000_000, 500),
    Bought("https://api.doubleword.ai/v1/", "Qwen/Qwen3-VL-30B-A3B-Instruct-FP8", "1h"): Tokens(
        5, 1_000_000, 100_000
    ),
}


def test_costs_are_summed_and_compared_with_realtime() -> None:
    usage = Usage.of(COUNTS)
    first, second = usage.lines
    assert (first.requests, first.prompt_tokens, first.completion_tokens, first.cached_tokens) == (
        10,
        2_000_000,
        1_000_000,
        500,
    )
    price = Prices().of("gpt-4o-mini")
    assert price is not None
    assert first.realtime_cost == pytest.approx(2 * price.input + price.output)
    assert first.cost == pytest.approx(price.input + price.output / 2)
    assert second.cost == pytest.approx(0.07 + 0.03)
    assert second.realtime_cost == pytest.approx(0.16 + 0.08)
    assert usage.cost == pytest.approx((first.cost or 0) + (second.cost or 0))
    assert usage.saved == pytest.approx((usage.realtime_cost or 0) - (usage.cost or 0))
    assert usage.cached_tokens == 500


def test_one_unknown_price_makes_the_sum_unknown_until_it_is_given() -> None:
    counts = {**COUNTS, Bought("http://127.0.0.1/v1/", "mine", "24h"): Tokens(1, 1_000_000, 1_000_000)}
    usage = Usage.of(counts)
    assert [line.cost is None for line in usage.lines] == [False, False, True]
    assert usage.cost is usage.saved is usage.realtime_cost is None
    given = Usage.of(counts, Prices({"mine": (1, 2)}))
    assert given.lines[2].cost == given.lines[2].realtime_cost == 3
    assert given.cost == pytest.approx(3 + (Usage.of(COUNTS).cost or 0))


def test_a_window_without_a_price_leaves_the_realtime_price() -> None:
    usage = Usage.of({Bought(OPENAI, "gpt-4o-mini", "12h"): Tokens(1, 10, 10)})
    assert usage.cost is usage.saved is None
    assert usage.realtime_cost is not None


def test_cached_tokens_are_read_from_both_kinds_of_answers() -> None:
    meter = Meter()
    count = meter.counter(OPENAI, "24h")
    chat = b'{"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}}'
    response = b'{"usage":{"input_tokens":9,"output_tokens":2,"input_tokens_details":{"cached_tokens":3}}}'
    count("c", [chat, response])
    count("c", [b"null"])
    (line,) = Usage.of(meter.counts).lines
    assert (line.requests, line.prompt_tokens, line.completion_tokens, line.cached_tokens) == (3, 18, 4, 7)
