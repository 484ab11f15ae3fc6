"""What a job will use and cost, and `autobatcher estimate`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
import tiktoken
import tiktoken.registry
from typer.testing import CliRunner, Result

from autobatcher import BatchOpenAI, jobs
from autobatcher.cli import build_app
from autobatcher.cli.usage import money, usage_json, usage_lines
from autobatcher.jobs.estimating import BYTES, TIKTOKEN, Count, EstimateLine, estimate
from autobatcher.jobs.items import InputError, Item
from autobatcher.jobs.running import run
from autobatcher.local import LocalConfig, serve_in_thread
from autobatcher.prices import Prices
from autobatcher.usage import Bought, Tokens, Usage

CHAT, EMBEDDINGS, RESPONSES = "/v1/chat/completions", "/v1/embeddings", "/v1/responses"
NOWHERE = "http://127.0.0.1:9"
OPENAI = "https://api.openai.com/v1/"
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy")

# A token for each byte, so that what is counted can be seen.
BYTEWISE = tiktoken.Encoding(
    "bytewise",
    pat_str=r"[\s\S]",
    mergeable_ranks={bytes([byte]): byte for byte in range(256)},
    special_tokens={},
)


def bytewise(model: str) -> Count | None:
    return (lambda text: len(BYTEWISE.encode_ordinary(text))) if model.startswith("known") else None


class Made:
    """Requests that are made as they are read."""

    path = Path("in.jsonl")
    size = 0
    columns = None

    def __init__(self, make: Callable[[], Iterator[tuple[str, Any]]]) -> None:
        self._make = make

    def items(self, moved: Callable[[int], object] = lambda _: None) -> Iterator[Item]:
        for number, (url, body) in enumerate(self._make()):
            moved(number)
            yield Item(f"row-{number}", url, body if isinstance(body, bytes) else orjson.dumps(body))

    def rows(self) -> Iterator[Mapping[str, Any]]:
        return iter(())


def one(url: str, *bodies: Any, **options: Any) -> EstimateLine:
    found = estimate(Made(lambda: ((url, body) for body in bodies)), count=bytewise, **options)
    (line,) = found.lines
    return line


def chat(*messages: Any, model: str = "known", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": messages, **fields}


USER = {"role": "user", "content": "abc"}


def test_messages_are_counted_as_documented() -> None:
    assert one(CHAT, chat(USER)).prompt_tokens == 3 + len("userabc") + 3
    named = {**USER, "name": "me"}
    assert one(CHAT, chat(USER, named)).prompt_tokens == 3 + 7 + 3 + 1 + 9 + 3
    parts = {"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "ü"}]}
    assert one(CHAT, chat(parts)).prompt_tokens == 3 + len("userab") + 2 + 3
    assert one(CHAT, chat(USER), chat(USER)).prompt_tokens == 2 * 13


def test_what_is_no_text_is_said_not_to_be_counted() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    line = one(CHAT, chat({"role": "user", "content": [{"type": "text", "text": "abc"}, image]}), chat(USER))
    assert line.prompt_tokens == 2 * 13
    assert line.uncounted == ("image_url",)
    item = {"role": "user", "content": [{"type": "input_text", "text": "abc"}, {"type": "input_image"}]}
    body = {"model": "known", "input": [item, {"type": "reasoning"}], "previous_response_id": "r"}
    assert one(RESPONSES, body).uncounted == ("input_image", "previous_response_id", "reasoning")


def test_tools_and_schemas_are_counted_as_json() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    line = one(CHAT, chat(USER, tools=tools))
    assert line.prompt_tokens == 13 + len(orjson.dumps(tools))
    assert line.as_json == ("tools",)
    schema = {"name": "s", "schema": {"type": "object"}}
    format_ = {"type": "json_schema", "json_schema": schema}
    assert one(CHAT, chat(USER, response_format=format_)).prompt_tokens == 13 + len(orjson.dumps(schema))
    assert one(CHAT, chat(USER, response_format={"type": "json_object"})).as_json == ()
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert one(CHAT, chat(called)).prompt_tokens == 3 + len("assistantf{}") + 3


@pytest.mark.parametrize(
    ("given", "tokens"),
    [("abc", 3), (["abc", "de"], 5), ([1, 2, 3, 4], 4), ([[1, 2], [3]], 3), ([], 0), (None, 0)],
)
def test_inputs_of_embeddings_may_be_texts_or_tokens(given: Any, tokens: int) -> None:
    line = one(EMBEDDINGS, {"model": "known", "input": given}, output_tokens=100)
    assert (line.prompt_tokens, line.output_tokens, line.limited) == (tokens, 0, False)


def test_inputs_of_responses_may_be_a_text_or_items() -> None:
    assert one(RESPONSES, {"model": "known", "input": "abc"}).prompt_tokens == 3 + 3 + 3
    body = {"model": "known", "instructions": "xy", "input": [{"role": "user", "content": "abc"}]}
    assert one(RESPONSES, body).prompt_tokens == (3 + 2) + (3 + 7) + 3
    called = {"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}
    output = {"type": "function_call_output", "call_id": "c", "output": "ok"}
    line = one(RESPONSES, {"model": "known", "input": [called, output]})
    assert (line.prompt_tokens, line.uncounted) == (3 + 3 + 3 + 2 + 3, ())


def test_special_tokens_in_a_text_are_text() -> None:
    assert one(EMBEDDINGS, {"model": "known", "input": "<|endoftext|>"}).prompt_tokens == 13


def test_without_a_tokenizer_four_bytes_are_a_token_and_this_is_said() -> None:
    line = one(EMBEDDINGS, {"model": "other", "input": ["abcde", "ü" * 4, "🎈"]})
    assert (line.prompt_tokens, line.exact, line.method) == (2 + 2 + 1, False, BYTES)
    assert one(EMBEDDINGS, {"model": "known", "input": "a"}).method == TIKTOKEN


def test_output_is_the_limit_of_the_bodies_and_unknown_if_one_has_none() -> None:
    both = one(CHAT, chat(USER, max_tokens=10), chat(USER, max_completion_tokens=5, n=3))
    assert (both.output_tokens, both.limited) == (25, True)
    some = one(CHAT, chat(USER, max_tokens=10), chat(USER))
    assert (some.output_tokens, some.limited) == (None, False)
    assert one(RESPONSES, {"model": "known", "input": "a", "max_output_tokens": 7}).output_tokens == 7
    assert one(CHAT, chat(USER, max_tokens="many")).output_tokens is None


def test_expected_output_is_taken_where_no_limit_is_lower() -> None:
    line = one(CHAT, chat(USER), chat(USER, max_tokens=10), chat(USER, max_tokens=999, n=2), output_tokens=50)
    assert (line.output_tokens, line.limited) == (50 + 10 + 100, True)
    assert one(CHAT, chat(USER), output_tokens=50).limited is False


def test_models_and_endpoints_have_a_line_each() -> None:
    bodies = [
        (CHAT, chat(USER, max_tokens=1)),
        (EMBEDDINGS, {"model": "known-2", "input": "a"}),
        (CHAT, chat(USER, model="other", max_tokens=1)),
        (CHAT, chat(USER, max_tokens=1)),
    ]
    found = estimate(Made(lambda: iter(bodies)), count=bytewise, prices=Prices({"known": (1, 2)}))
    assert [(line.endpoint, line.model, line.requests) for line in found.lines] == [
        (CHAT, "known", 2),
        (EMBEDDINGS, "known-2", 1),
        (CHAT, "other", 1),
    ]
    assert (found.requests, found.output_tokens) == (4, 3)
    assert found.cost() is None
    assert found.lines[0].cost("24h") == pytest.approx((26 * 1 + 2 * 2) / 1e6)


def test_cost_is_by_window() -> None:
    model = "Qwen/Qwen3-VL-30B-A3B-Instruct-FP8"
    url = "https://api.doubleword.ai/v1"
    bodies = [(CHAT, chat(USER, model=model, max_tokens=1000))] * 10
    (line,) = estimate(Made(lambda: iter(bodies)), count=lambda _: lambda _: 500_000, base_url=url).lines
    prompt, output = line.prompt_tokens / 1e6, 0.01
    assert line.cost() == pytest.approx(prompt * 0.16 + output * 0.80)
    assert line.cost("1h") == pytest.approx(prompt * 0.07 + output * 0.30)
    assert line.cost("24h") == pytest.approx(prompt * 0.05 + output * 0.20)
    assert line.cost("12h") is None


def test_memory_is_flat() -> None:
    text = "x" * 20_000

    def many() -> Iterator[tuple[str, Any]]:
        for number in range(2_000):
            yield EMBEDDINGS, {"model": "other", "input": f"{number} {text}"}

    tracemalloc.start()
    try:
        (line,) = estimate(Made(many), count=lambda _: None).lines
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert line.requests == 2_000
    assert peak < 2_000_000


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"'])
def test_a_bad_body_is_said_by_its_name(body: bytes) -> None:
    with pytest.raises(InputError, match=r"in\.jsonl: row-1: the body is no JSON"):
        estimate(Made(lambda: iter([(CHAT, chat(USER)), (CHAT, body)])), count=bytewise)


@pytest.mark.parametrize(
    "body",
    [
        {"model": 5, "messages": "no list"},
        {"messages": [None, "x", {"role": 1, "content": [5, {"type": None}], "tool_calls": {}}]},
        {"model": "known", "messages": None, "tools": 7, "response_format": "x", "n": "x"},
    ],
)
def test_odd_bodies_are_counted_as_far_as_they_go(body: Any) -> None:
    for url in (CHAT, EMBEDDINGS, RESPONSES, "/v1/completions", "/v1/moderations"):
        assert one(url, body).requests == 1


def test_a_vocabulary_that_cannot_be_fetched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    for name in PROXIES:
        monkeypatch.setenv(name, NOWHERE)
    bodies = [(CHAT, chat(USER, model="o1")), (CHAT, chat(USER, model="gpt-3.5-turbo")), (CHAT, chat(USER))]
    found = estimate(Made(lambda: iter(bodies)))
    assert [line.method for line in found.lines] == [BYTES] * 3
    (problem,) = found.problems
    assert "o200k_base could not be fetched" in problem


def test_models_that_tiktoken_knows_are_counted_with_their_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "o200k_base", BYTEWISE)  # which it would have fetched
    models = ("gpt-4o-mini", "somewhere/gpt-5", "ft:gpt-4o:mine", "mistral-small")
    found = estimate(Made(lambda: ((CHAT, chat(USER, model=model)) for model in models)))
    assert [(line.method, line.prompt_tokens) for line in found.lines] == [(TIKTOKEN, 13)] * 3 + [(BYTES, 8)]
    assert found.problems == ()


def test_a_text_of_a_million_blanks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    bpe = tiktoken.Encoding(
        "bpe",
        pat_str=r"\s+(?!\S)|\s+|\S+",
        mergeable_ranks={**{bytes([byte]): byte for byte in range(256)}, b"  ": 256},
        special_tokens={},
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", bpe)
    body = {"model": "text-embedding-3-small", "input": " " * 1_000_000 + "x"}
    (line,) = estimate(Made(lambda: iter([(EMBEDDINGS, body)]))).lines
    assert line.exact
    assert 500_000 <= line.prompt_tokens < 500_020


# --- the command -----------------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str | None]:
    """What lets no request leave the machine, and nothing of a developer's own in."""
    kept: dict[str, str | None] = {
        name: None for name in os.environ if name.startswith(("OPENAI_", "DOUBLEWORD_", "COLUMNS"))
    }
    kept.update(dict.fromkeys(PROXIES, NOWHERE), TIKTOKEN_CACHE_DIR="", PYTHONIOENCODING="utf-8")
    return {**kept, **more}


def command(
    *arguments: object, stdout: int = subprocess.PIPE, **more: str
) -> subprocess.CompletedProcess[str]:
    changed = {**os.environ, **environment(**more)}
    return subprocess.run(
        [sys.executable, "-m", "autobatcher", "estimate", *map(str, arguments)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        encoding="utf-8",
        env={name: value for name, value in changed.items() if value is not None},
    )


def invoked(*arguments: object, **more: str) -> Result:
    return CliRunner().invoke(build_app(), ["estimate", *map(str, arguments)], env=environment(**more))


def batch_file(path: Path, *bodies: dict[str, Any], url: str = CHAT) -> Path:
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": url, "body": body} for n, body in enumerate(bodies)
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return batch_file(tmp_path / "in.jsonl", *[chat(USER, model="gpt-4o-mini", max_tokens=1000)] * 1000)


def test_the_command_shows_a_table_and_says_what_its_numbers_are(path: Path) -> None:
    done = command(path)
    assert done.returncode == 0, done.stderr
    titles, row = done.stdout.splitlines()
    assert " ".join(titles.split()) == "model endpoint requests prompt tokens output tokens realtime 24h 1h"
    assert row.split()[:5] == ["gpt-4o-mini", CHAT, "1,000", "~8,000", "<=1,000,000"]
    assert row.split()[5:] == ["$0.6012", "$0.3006", "unknown"]
    said = done.stderr
    assert "Traceback" not in said
    assert "could not be fetched" in said
    assert "prompt tokens are estimated, 4 bytes a token: gpt-4o-mini\n" in said
    assert "no price is known at OpenAI for 1h (--price gives one): gpt-4o-mini\n" in said
    assert "prices: genai-prices " in said
    assert "https://developers.openai.com/api/docs/guides/batch (2026-" in said


def test_the_command_prints_json_lines(path: Path) -> None:
    done = command(path, "--json", "--price", "gpt-4o-mini=1,2", "--output-tokens", "10")
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert (line["model"], line["endpoint"], line["requests"]) == ("gpt-4o-mini", CHAT, 1000)
    assert (line["output_tokens"], line["output_tokens_are_limits"]) == (10_000, False)
    assert line["counted_by"] == BYTES
    assert line["cost"].keys() == {"realtime", "24h", "1h"}
    for cost in line["cost"].values():
        assert cost == pytest.approx((line["prompt_tokens"] + 2 * 10_000) / 1e6)
    assert line["prices"]["1h"] == {"input": 1, "output": 2, "source": "given", "date": None}
    assert "given with --price, for every window" in done.stderr
    assert "stands for nothing" not in done.stderr


def test_a_price_of_a_model_that_is_not_there_is_said(path: Path) -> None:
    done = invoked(path, "--price", "gpt-4o-mimi=1,2")
    assert done.exit_code == 0, done.stderr
    assert "--price gpt-4o-mimi: stands for nothing here; the models are gpt-4o-mini\n" in done.stderr


def test_the_prices_are_those_of_the_server_that_would_be_used(tmp_path: Path) -> None:
    model = "Qwen/Qwen3-VL-235B-A22B-Instruct-FP8"
    path = batch_file(tmp_path / "in.jsonl", chat(USER, model=model, max_tokens=1_000_000))
    given = invoked(path, "--json", "--base-url", "https://api.doubleword.ai/v1")
    by_key = invoked(path, "--json", DOUBLEWORD_API_KEY="secret")
    by_address = invoked(path, "--json", OPENAI_BASE_URL="https://api.doubleword.ai/v1", OPENAI_API_KEY="k")
    assert given.stdout == by_key.stdout == by_address.stdout
    assert "secret" not in by_key.stdout + by_key.stderr
    cost = json.loads(given.stdout)["cost"]
    assert (round(cost["realtime"], 3), round(cost["1h"], 3), round(cost["24h"], 3)) == (1.2, 0.55, 0.4)
    other = invoked(path, "--base-url", "http://127.0.0.1:9/v1")
    assert other.stdout.splitlines()[-1].split()[-3:] == ["unknown"] * 3
    assert "no price is known at http://127.0.0.1:9/v1 for realtime, 24h, 1h" in other.stderr


def test_what_may_be_secret_in_an_address_is_not_shown(path: Path) -> None:
    done = invoked(path, "--base-url", "http://me:secret@127.0.0.1:9/v1?key=secret")
    assert "at http://127.0.0.1:9/v1 for" in done.stderr
    assert "secret" not in done.output
    usage = Usage.of({Bought("http://me:secret@127.0.0.1/v1/", "m", "24h"): Tokens(1, 1, 1)})
    assert "secret" not in str(usage_lines(usage)) + str(usage_json(usage))


def test_unknown_output_makes_unknown_costs(tmp_path: Path) -> None:
    path = batch_file(tmp_path / "in.jsonl", chat(USER, model="gpt-4o-mini"), chat(USER, model="x"))
    done = invoked(path)
    *_, total = done.stdout.splitlines()
    assert total.split()[0] == "total"
    assert total.split()[-4:] == ["unknown"] * 4
    assert "(--output-tokens says how many to expect): gpt-4o-mini, x\n" in done.stderr


def test_numbers_are_whole_on_a_narrow_terminal(path: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    try:
        done = command(path, stdout=theirs, COLUMNS="60", TERM="xterm")
        shown = re.sub(r"\x1b\[[0-9;]*m", "", os.read(ours, 100_000).decode())
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0
    assert all(len(line) <= 60 for line in shown.splitlines())
    for number in ("1,000", "~8,000", "<=1,000,000", "$0.6012", "$0.3006", "unknown"):
        assert f" {number}" in shown


def test_names_are_whole_in_a_pipe_and_not_taken_for_markup(tmp_path: Path) -> None:
    model = "[red]" + "long" * 40
    done = invoked(batch_file(tmp_path / "in.jsonl", chat(USER, model=model)))
    assert model in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--price", "x"], "--price: 'x' is no MODEL=IN,OUT"),
        (["--output-tokens", "-1"], "--output-tokens"),
    ],
)
def test_wrong_options_are_said(path: Path, arguments: list[str], said: str) -> None:
    done = invoked(path, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize("line", ["{", "[]", '{"custom_id":"a"}', '{"url":5,"body":{}}'])
def test_a_wrong_line_is_said_by_its_number(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n\n{line}")
    done = invoked(path)
    assert done.exit_code == 2
    assert f"{path}:1002" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_the_command_does_is_a_function_as_of_the_others() -> None:
    assert jobs.estimate is estimate
    assert {"run", "prepare", "validate", "submit", "status", "watch", "results", "cancel", "retry"} <= set(
        jobs.__all__
    )


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    done = command(tmp_path / "none.jsonl")
    assert done.returncode == 2
    assert "none.jsonl: No such file" in done.stderr


# --- what `run` and `results` say at the end --------------------------------------------------------------------------

COUNTS = {
    Bought(OPENAI, "gpt-4o-mini", "24h"): Tokens(1000, 20_000_000, 10_000_000, 0),
    Bought("http://127.0.0.1/v1/", "mine", "24h"): Tokens(1, 1_000, 500, 100),
}


def test_the_usage_of_a_run_is_told_with_what_was_saved() -> None:
    first, second, total = usage_lines(Usage.of(COUNTS))
    assert first == (
        "gpt-4o-mini (24h): 1,000 answers, 20,000,000 prompt + 10,000,000 output tokens: $4.50, saved $4.50 (50%)"
        " against realtime"
    )
    assert "1 answer, 1,000 prompt (100 cached) + 500 output tokens: cost unknown" in second
    assert "no price is known for it at http://127.0.0.1/v1/" in second
    assert total.endswith("output tokens: unknown")
    *_, total = usage_lines(Usage.of(COUNTS, Prices({"mine": (1, 2)})))
    assert total.endswith("$4.50, saved $4.50 (50%) against realtime")
    assert usage_lines(Usage.of({})) == []


@pytest.mark.anyio
async def test_a_run_is_counted_with_its_client(tmp_path: Path) -> None:
    source = Made(lambda: ((CHAT, chat(USER, model=model)) for model in ("m", "m", "other")))
    with serve_in_thread(LocalConfig()) as server:
        url = server.base_url
        async with BatchOpenAI(api_key="k", base_url=url, poll_interval_seconds=0.02) as client:
            done = await run(client, source, tmp_path / "out.jsonl")
            assert Usage.of(done.used) == client.usage
            assert client.usage.requests == 3
            await run(client, source, tmp_path / "again.jsonl")
            assert client.usage.requests == 6
        async with BatchOpenAI(api_key="k", base_url=url) as client:
            again = await run(client, source, tmp_path / "out.jsonl", overwrite=True)
            assert (again.used, again.earlier) == ({}, done.used)
            assert client.usage.requests == 0


def test_the_usage_of_a_run_as_json() -> None:
    found = json.loads(json.dumps(usage_json(Usage.of(COUNTS))))
    assert found["cost"] is None
    assert found["saved"] is None
    assert found["prompt_tokens"] == 20_001_000
    assert found["lines"][0]["cost"] == pytest.approx(4.5)
    assert found["lines"][0]["realtime_cost"] == pytest.approx(9)
    assert found["lines"][0]["completion_window"] == "24h"


@pytest.mark.parametrize(
    ("dollars", "text"),
    [
        (None, "unknown"),
        (0, "$0.00"),
        (0.00001, "<$0.0001"),
        (0.0123456, "$0.0123"),
        (1.239, "$1.24"),
        (12345, "$12,345.00"),
    ],
)
def test_money(dollars: float | None, text: str) -> None:
    assert money(dollars) == text
