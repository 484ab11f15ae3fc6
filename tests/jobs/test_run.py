"""From a file of requests to a file of results, on the embedded server."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import openai
import orjson
import pytest

from autobatcher import BatchOpenAI
from autobatcher.events import BatchProgressed, BatchSettled, BatchSubmitted, Event
from autobatcher.jobs.items import InputError, Item
from autobatcher.jobs.outputs import shortcoming, told, write_table
from autobatcher.jobs.running import TURN_SECONDS, Progress, run
from autobatcher.jobs.sources import open_source
from autobatcher.jobs.template import Template
from autobatcher.local import LocalConfig, Serving, serve_in_thread
from autobatcher.usage import Tokens

pytestmark = pytest.mark.anyio


class Listed:
    """Requests, or rows and the requests made from them, that are at hand."""

    def __init__(
        self, path: Path, items: Sequence[Item], rows: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        self.path = path
        path.touch()
        self._items, self._rows = items, rows or ()
        self.columns = None if rows is None else list(rows[0])
        self.size = sum(len(item.body) for item in items)

    def items(self, moved: Callable[[int], object] = lambda _: None) -> Iterator[Item]:
        moved(0)
        return iter(self._items)

    def rows(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._rows)


def ask(number: int, text: str | None = None, model: str = "m") -> Item:
    content = f"question {number}" if text is None else text
    body = orjson.dumps({"model": model, "messages": [{"role": "user", "content": content}]})
    return Item(f"row-{number}", "/v1/chat/completions", body)


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve_in_thread(LocalConfig()) as serving:
        yield serving


def client_for(server: Serving, **options: Any) -> BatchOpenAI:
    return BatchOpenAI(
        **{"api_key": "k", "base_url": server.base_url, "poll_interval_seconds": 0.02, **options}
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def batches(client: BatchOpenAI) -> int:
    return len([batch async for batch in client.batches.list()])


async def test_lines_come_back_in_the_order_of_the_input_and_nothing_else_is_left(
    server: Serving, tmp_path: Path
) -> None:
    source = Listed(tmp_path / "in.jsonl", [ask(number) for number in range(250)])
    progress: list[Progress] = []
    async with client_for(server) as client:
        before = await batches(client)
        done = await run(client, source, tmp_path / "out.jsonl", batch_size=100, on_progress=progress.append)
        assert await batches(client) == before + 3
    assert (done.requests, done.answered, done.failed) == (250, 250, 0)
    lines = read(tmp_path / "out.jsonl")
    assert [line["custom_id"] for line in lines] == [f"row-{number}" for number in range(250)]
    for number, line in enumerate(lines):
        assert f"question {number}" in line["response"]["body"]["choices"][0]["message"]["content"]
    assert {name for name in names(tmp_path) if not name.endswith(".lock")} == {
        "in.jsonl",
        "out.jsonl",
        "out.jsonl.journal",
    }
    assert progress[-1] == Progress(source.size, source.size, 250, complete=True, answered=250, failed=0)
    (tokens,) = done.used.values()
    used = [line["response"]["body"]["usage"] for line in lines]
    assert tokens == Tokens(
        250, sum(use["prompt_tokens"] for use in used), sum(use["completion_tokens"] for use in used), 0
    )


async def test_a_second_run_buys_only_what_the_first_did_not_get(server: Serving, tmp_path: Path) -> None:
    first = [ask(number) for number in range(30)]
    out = tmp_path / "out.jsonl"
    async with client_for(server) as client:
        await run(client, Listed(tmp_path / "in", first), out)
    async with client_for(server) as client:
        before = await batches(client)
        with pytest.raises(FileExistsError):
            await run(client, Listed(tmp_path / "in", first), out)
        await run(client, Listed(tmp_path / "in", first), out, overwrite=True)
        assert await batches(client) == before
        done = await run(client, Listed(tmp_path / "in", [*first, ask(77)]), out, overwrite=True)
        found = [batch async for batch in client.batches.list()]
        assert len(found) == before + 1
        assert max(found, key=lambda batch: batch.created_at).request_counts.total == 1  # type: ignore[union-attr] # there are
    assert done.answered == 31
    assert len(read(out)) == 31


async def test_answers_that_are_there_need_no_server(server: Serving, tmp_path: Path) -> None:
    source = Listed(tmp_path / "in", [ask(number) for number in range(10)])
    journal = tmp_path / "run.db"
    nobody = "http://127.0.0.1:9/v1/"
    async with client_for(server, journal=journal) as client:
        await run(client, source, tmp_path / "a.jsonl")
        url = str(client.base_url)
    assert not (tmp_path / "a.jsonl.journal").exists()
    async with BatchOpenAI(api_key="k", base_url=url, journal=journal) as client:
        await run(client, source, tmp_path / "b.jsonl")
    assert read(tmp_path / "a.jsonl") == read(tmp_path / "b.jsonl")
    async with BatchOpenAI(api_key="k", base_url=nobody, journal=journal, max_retries=0) as client:
        with pytest.raises(openai.APIConnectionError):
            await run(client, source, tmp_path / "c.jsonl")
    assert not (tmp_path / "c.jsonl").exists()


async def test_equal_rows_get_an_answer_each(server: Serving, tmp_path: Path) -> None:
    source = Listed(tmp_path / "in", [ask(number, "the same") for number in range(5)])
    async with client_for(server) as client:
        done = await run(client, source, tmp_path / "out.jsonl")
    assert done.answered == 5
    assert [line["custom_id"] for line in read(tmp_path / "out.jsonl")] == [f"row-{n}" for n in range(5)]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
async def test_a_table_gets_two_columns(server: Serving, tmp_path: Path, ending: str) -> None:
    rows: list[dict[str, Any]] = [{"name": 'a,\n"b"', "size": 1}, {"name": "ü", "size": None}]
    source = Listed(tmp_path / "in", [ask(0, "Tell!"), ask(1, model="")], rows)
    out = tmp_path / f"out.{ending}"
    async with client_for(server) as client:
        done = await run(client, source, out)
    assert (done.answered, done.failed) == (1, 1)
    table = tabled(out)
    assert [list(row) for row in table] == [["name", "size", "answer", "error"]] * 2
    assert [row["name"] for row in table] == [row["name"] for row in rows]
    assert "Tell!" in table[0]["answer"]
    assert not table[0]["error"]
    assert not table[1]["answer"]
    assert "model" in table[1]["error"]


async def test_columns_of_the_same_names_stay(server: Serving, tmp_path: Path) -> None:
    source = Listed(tmp_path / "in", [ask(0)], [{"answer": "gold", "error": "e", "answer_2": "x"}])
    async with client_for(server) as client:
        await run(client, source, tmp_path / "out.csv")
    (row,) = tabled(tmp_path / "out.csv")
    assert list(row) == ["answer", "error", "answer_2", "answer_3", "error_3"]
    assert (row["answer"], row["error"], row["answer_2"]) == ("gold", "e", "x")
    assert "question 0" in row["answer_3"]


async def test_input_that_changes_meanwhile_is_no_table_of_results(server: Serving, tmp_path: Path) -> None:
    source = Listed(tmp_path / "in", [ask(0)], [{"a": 1}])
    async with client_for(
        server, on_event=lambda _: source.path.write_bytes(source.path.read_bytes() + b"x")
    ) as client:
        with pytest.raises(InputError, match="was changed meanwhile"):
            await run(client, source, tmp_path / "out.csv")
        await run(client.with_options(on_event=None), source, tmp_path / "out.csv")


async def test_each_file_of_a_folder_is_looked_at_for_changes(server: Serving, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    file = folder / "deep" / "a.txt"
    file.write_text("one")
    changed = file.stat().st_mtime_ns + 1
    source = open_source(folder, Template("m", "{file}"))
    async with client_for(server, on_event=lambda _: os.utime(file, ns=(changed, changed))) as client:
        with pytest.raises(InputError, match="was changed meanwhile"):
            await run(client, source, tmp_path / "out.csv")
        await run(client.with_options(on_event=None), source, tmp_path / "out.csv")


class Slow(Listed):
    """Each of its requests takes longer to read than may be read without a pause; `at` has others' turns before each."""

    turns = 0

    def items(self, moved: Callable[[int], object] = lambda _: None) -> Iterator[Item]:
        self.at = []
        for item in super().items(moved):
            self.at.append(self.turns)
            time.sleep(2 * TURN_SECONDS)
            yield item

    async def count(self) -> None:
        while True:
            self.turns += 1
            await anyio.lowlevel.checkpoint()


async def test_requests_that_are_slow_to_read_leave_the_event_loop_its_turns(
    server: Serving, tmp_path: Path
) -> None:
    source = Slow(tmp_path / "in", [ask(number) for number in range(20)])
    async with client_for(server) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(source.count)
        done = await run(client, source, tmp_path / "out.jsonl")
        tasks.cancel_scope.cancel()
    assert done.answered == 20
    # Trio has tasks take their turns in any order: one may have two in a row.
    assert all(later > earlier for earlier, later in zip(source.at, source.at[2:], strict=False))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_tables_take_whatever_rows_have(tmp_path: Path, ending: str) -> None:
    rows: list[dict[str, Any]] = [
        {"v": 1},
        {"v": 0.5},
        {"v": "x"},
        {"v": 2**70},
        {"v": None},
        {"v": "\ud83d"},
    ]
    path = tmp_path / f"out.{ending}"
    write_table(path, path.suffix, ["v"], rows)
    found = [row["v"] for row in tabled(path)]
    if ending == "jsonl":
        assert found == [1, 0.5, "x", 2**70, None, "?"]
    else:
        assert found == ["1", "0.5", "x", str(2**70), None if ending == "parquet" else "", "?"]


def test_answers_of_odd_forms_are_told_as_they_are() -> None:
    def line(body: Any) -> bytes:
        return orjson.dumps({"response": {"status_code": 200, "body": body}, "error": None})

    assert told(line({"choices": [{"message": "x"}]})) == ('{"choices": [{"message": "x"}]}', None)
    cut = {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
    assert told(line(cut)) == (None, "cut off: length")
    nothing = {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}
    assert told(line(nothing)) == (None, "no text (finish_reason stop)")
    for body in ({"choices": "length"}, {"choices": [{"message": "length"}]}, ["length"], "incomplete", b"{"):
        assert shortcoming(body if isinstance(body, bytes) else orjson.dumps(body)) is None


SAID = {"content": "So far"}
CUT_SHORT: list[tuple[Any, str | None, str | None]] = [
    ({"choices": [{"message": SAID, "finish_reason": "stop"}]}, "So far", None),
    ({"choices": [{"message": {"content": 'a "length"'}, "finish_reason": "stop"}]}, 'a "length"', None),
    ({"choices": [{"message": SAID, "finish_reason": "length"}]}, "So far", "cut off: length"),
    (
        {"choices": [{"message": SAID, "finish_reason": "content_filter"}]},
        "So far",
        "cut off: content_filter",
    ),
    ({"choices": [{"message": {"content": None, "refusal": "No."}}]}, None, "refused: No."),
    ({"choices": [{"message": {**SAID, "refusal": None}}]}, "So far", None),
    *(
        (
            {
                "status": status,
                "incomplete_details": details,
                "output": [{"type": "message", "content": [{"type": "output_text", "text": "So far"}]}],
            },
            "So far",
            error,
        )
        for status, details, error in (
            ("completed", None, None),
            ("incomplete", {"reason": "max_output_tokens"}, "cut off: max_output_tokens"),
            ("incomplete", None, "cut off: incomplete"),
        )
    ),
    (
        {
            "status": "completed",
            "output": [{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}],
        },
        None,
        "refused: No.",
    ),
]


@pytest.mark.parametrize(("body", "answer", "error"), CUT_SHORT)
def test_answers_that_are_refused_or_cut_off_are_told_so(
    body: Any, answer: str | None, error: str | None
) -> None:
    assert told(orjson.dumps({"response": {"status_code": 200, "body": body}, "error": None})) == (
        answer,
        error,
    )
    for content in (orjson.dumps(body), json.dumps(body, indent=1).encode()):
        assert shortcoming(content) == (None if error is None else error.partition(": ")[0])


def tabled(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return read(path)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    parquet = pytest.importorskip("pyarrow.parquet")
    found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return found


async def test_no_more_is_under_way_than_asked_for(server: Serving, tmp_path: Path) -> None:
    source = Listed(tmp_path / "in", [ask(number) for number in range(100)])
    events: list[Event] = []
    async with client_for(server, on_event=events.append) as client:
        await run(client, source, tmp_path / "out.jsonl", in_flight=10)
    under_way = most = 0
    for event in events:
        if isinstance(event, BatchSubmitted):
            under_way += event.requests
        elif isinstance(event, BatchSettled):
            under_way -= event.answered
        most = max(most, under_way)
    assert 0 < most <= 10
    assert {event.status for event in events if isinstance(event, BatchProgressed)} >= {"completed"}


async def test_a_server_that_refuses_the_key_is_said_at_once(tmp_path: Path) -> None:
    source = Listed(tmp_path / "in", [ask(0)])
    with serve_in_thread(LocalConfig(api_key="secret")) as server:
        async with client_for(server) as client:
            with pytest.raises(openai.AuthenticationError):
                await run(client, source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


async def test_a_bad_body_is_said_by_its_name(server: Serving, tmp_path: Path) -> None:
    for body in (b"{", b"[]"):
        source = Listed(tmp_path / "in", [ask(0), Item("x-1", "/v1/chat/completions", body)])
        async with client_for(server) as client:
            with pytest.raises(InputError, match=r"in: x-1: the body is no JSON"):
                await run(client, source, tmp_path / "out.jsonl")


async def test_a_run_that_is_cancelled_goes_on_at_the_server_and_in_the_next_run(
    server: Serving, tmp_path: Path
) -> None:
    source = Listed(tmp_path / "in", [ask(number) for number in range(10)])
    with serve_in_thread(LocalConfig(latency_seconds=1)) as slow:
        async with client_for(slow) as client:
            events: list[Event] = []
            with anyio.CancelScope() as scope:

                def stop(event: Event) -> None:
                    events.append(event)
                    scope.cancel()

                cancelled = client.with_options(on_event=stop)
                await run(cancelled, source, tmp_path / "out.jsonl")
            assert isinstance(events[0], BatchSubmitted)
            done = await run(client, source, tmp_path / "out.jsonl")
            assert done.answered == 10
            assert await batches(client) == 1
