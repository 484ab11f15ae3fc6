"""`autobatcher run`, as people start it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest

from autobatcher.local import LocalConfig, Serving, serve_in_thread
from tests.jobs.command import Ran, autobatcher

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "DOUBLEWORD_"))},
    "OPENAI_API_KEY": "k-secret",
    "COLUMNS": "100",
}
PATIENCE = 120.0


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve_in_thread(LocalConfig()) as serving:
        yield serving


def command(server: Serving | str, *arguments: str | Path) -> list[str]:
    url = server if isinstance(server, str) else server.base_url
    return [
        *(sys.executable, "-m", "autobatcher", "run", "--poll-interval", "0.05", "--base-url", url),
        *map(str, arguments),
    ]


def run(server: Serving | str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(server, *arguments),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert "k-secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def table(path: Path, *texts: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(texts))
    return path


def batch_file(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            body = {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}]}
            line = {"custom_id": f"c-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_table_of_500_rows_becomes_one_with_answers(server: Serving, tmp_path: Path) -> None:
    path = table(tmp_path / "texts.csv", *(f'text {number}, said "so"\n' for number in range(500)))
    out = tmp_path / "answers.csv"
    done = run(server, path, "-o", out, "--model", "m", "--prompt", "Summarise: {text}")
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    *_, sum_line, usage_line = done.stderr.splitlines()
    assert sum_line.startswith("500 requests: 500 answered, 0 failed")
    assert usage_line.startswith("m (24h): 500 answers, ")
    answered = rows(out)
    assert [row["id"] for row in answered] == [str(number) for number in range(500)]
    for number, row in enumerate(answered):
        assert f'Summarise: text {number}, said "so"' in row["answer"]
        assert not row["error"]


def test_what_failed_is_said_and_asked_again_by_the_next_run(server: Serving, tmp_path: Path) -> None:
    path = table(tmp_path / "texts.csv", "good", "[[error:400]]", "[[refuse]]")
    out = tmp_path / "answers.csv"
    ask = ("-o", out, "--model", "m", "--prompt", "{text}")
    done = run(server, path, *ask, "--json")
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert (told["requests"], told["answered"], told["failed"]) == (3, 2, 1)
    assert rows(out)[1]["error"].startswith("400: ")
    assert not rows(out)[1]["answer"]
    assert rows(out)[2]["error"].startswith("refused: ")
    again = run(server, path, *ask)
    assert again.returncode == 2
    assert "answers.csv" in again.stderr
    table(path, "good", "better", "[[refuse]]")
    mended = run(server, path, *ask, "--overwrite")
    assert mended.returncode == 0, mended.stderr
    assert "better" in rows(out)[1]["answer"]


@pytest.mark.parametrize(
    ("endpoint", "limit", "reason"),
    [
        ("/v1/chat/completions", "max_tokens=30", "length"),
        ("/v1/responses", "max_output_tokens=30", "max_output_tokens"),
    ],
)
def test_what_is_refused_or_cut_off_is_answered_and_said(
    server: Serving, tmp_path: Path, endpoint: str, limit: str, reason: str
) -> None:
    path = table(tmp_path / "texts.csv", "a", "[[refuse]]", "[[filter]] b", "word " * 100)
    ask = ("--model", "m", "--prompt", "{text}", "--endpoint", endpoint, "--set", limit)
    done = run(server, path, "-o", tmp_path / "out.csv", *ask, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [told[name] for name in ("requests", "answered", "failed", "refused", "cut_off")] == [
        4,
        4,
        0,
        1,
        2,
    ]
    assert "4 requests: 4 answered (1 refused, 2 cut off), 0 failed; " in done.stderr
    errors = [row["error"] for row in rows(tmp_path / "out.csv")]
    assert errors[0] == ""
    assert errors[1].startswith("refused: ")
    assert errors[2:] == ["cut off: content_filter", f"cut off: {reason}"]
    assert "word" in rows(tmp_path / "out.csv")[3]["answer"]
    again = run(server, path, "-o", tmp_path / "out.csv", *ask, "--overwrite")
    assert "4 answered (1 refused, 2 cut off), 0 failed" in again.stderr


def test_a_batch_file_becomes_the_lines_of_an_output_file(server: Serving, tmp_path: Path) -> None:
    path = batch_file(tmp_path / "in.jsonl", 20)
    done = run(server, path, "-o", tmp_path / "out.jsonl", "--batch-size", "7", "--metadata", "job=x")
    assert done.returncode == 0, done.stderr
    assert [line["custom_id"] for line in lines(tmp_path / "out.jsonl")] == [f"c-{n}" for n in range(20)]


@pytest.mark.parametrize("name", ["out.csv", "out.TSV", "out.parquet"])
def test_lines_are_not_named_as_tables(server: Serving, tmp_path: Path, name: str) -> None:
    lines_of = batch_file(tmp_path / "in.jsonl", 1)
    rows_of = table(tmp_path / "texts.csv", "a")
    for path, *more in ((lines_of,), (rows_of, "--model", "m", "--prompt", "{text}", "--full")):
        done = autobatcher(server, "run", path, "-o", tmp_path / name, *more)
        assert done.code == 2, done.err
        assert f"{name}: " in done.err
        assert ".jsonl" in done.err
    assert {file.name for file in tmp_path.iterdir()} == {"in.jsonl", "texts.csv"}


def test_what_earlier_runs_bought_has_no_price_of_this_run(server: Serving, tmp_path: Path) -> None:
    path = table(tmp_path / "texts.csv", "a", "b", "c")
    ask = ("-o", tmp_path / "out.csv", "--model", "m", "--prompt", "{text}", "--price", "m=1,1", "--json")
    first = run(server, path, *ask)
    assert first.returncode == 0, first.stderr
    table(path, "a", "b", "c", "d")
    done = run(server, path, *ask, "--overwrite", "--window", "1h")
    assert done.returncode == 0, done.stderr
    told, before = json.loads(done.stdout), json.loads(first.stdout)
    assert [(line["completion_window"], line["requests"]) for line in told["usage"]["lines"]] == [("1h", 1)]
    assert "m (1h): 1 answer, " in done.stderr
    assert "stands for nothing" not in first.stderr + done.stderr
    misspelt = run(server, path, *ask, "--overwrite", "--price", "n=1,1")
    assert misspelt.stderr.splitlines()[-1] == "--price n: stands for nothing here; the models are m"
    assert told["answered"] == 4
    assert before["earlier"]["requests"] == 0
    assert told["earlier"] == {name: before["usage"][name] for name in told["earlier"]}
    assert "of earlier runs, at what they paid: 3 answers, " in done.stderr


def test_a_batch_of_an_earlier_run_is_not_of_this_one(tmp_path: Path) -> None:
    path = batch_file(tmp_path / "in.jsonl", 20)
    with serve_in_thread(LocalConfig(latency_seconds=0.5, concurrency=4)) as server:
        process = subprocess.Popen(
            command(server, path, "-o", tmp_path / "out.jsonl"), env=ENVIRONMENT, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + PATIENCE
        while not bought(server):
            assert time.monotonic() < end
            time.sleep(0.05)
        process.kill()
        process.wait(PATIENCE)
        done = run(server, path, "-o", tmp_path / "out.jsonl", "--window", "1h", "--json")
        assert bought(server) == 20
    told = json.loads(done.stdout)
    assert (told["usage"]["requests"], told["earlier"]["requests"]) == (0, 20)


@pytest.mark.parametrize(
    ("name", "content"),
    [("in.csv", b""), ("in.csv", b"text\n"), ("in.jsonl", b""), ("in.jsonl", b"\n"), ("in.txt", b"\n\n")],
)
def test_an_input_without_requests_is_usage_everywhere(
    server: Serving, tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    ask = ("--model", "m", "--prompt", "{text}")
    for ran in (
        run(server, path, "-o", tmp_path / "out.csv", *ask),
        autobatcher(server, "prepare", path, "-o", tmp_path / "batches", *ask),
        autobatcher(server, "estimate", path, *ask),
        autobatcher(server, "submit", path),
    ):
        code, said = (ran.code, ran.err) if isinstance(ran, Ran) else (ran.returncode, ran.stderr)
        assert code == 2, said
        assert name in said
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "out.csv.partial").exists()


def test_files_of_the_names_of_temporary_ones_stay(server: Serving, tmp_path: Path) -> None:
    path = table(tmp_path / "texts.csv", "a")
    ask = ("-o", tmp_path / "out.csv", "--model", "m", "--prompt", "{text}")
    mine = tmp_path / "out.csv.ordered"
    mine.write_text("mine")
    partial = tmp_path / "out.csv.partial"
    for content in ("mine", '{"id": "batch_req_x", "custom_id": "a"}\n'):
        partial.write_text(content)
        done = run(server, path, *ask, "--overwrite")
        assert done.returncode == 2
        assert "out.csv.partial" in done.stderr
        assert partial.read_text() == content
    partial.unlink()
    assert run(server, path, *ask).returncode == 0
    assert mine.read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir() if not file.name.endswith(".lock")} == {
        "texts.csv",
        "out.csv",
        "out.csv.ordered",
        "out.csv.journal",
    }


def test_parquet_from_end_to_end(server: Serving, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    parquet.write_table(pa.table({"n": [1, None, 3], "text": ["a", "b", None]}), path)
    done = run(server, path, "-o", out, "--model", "m", "--prompt", "{n}: {text}!")
    assert done.returncode == 0, done.stderr
    found = parquet.read_table(out)
    assert found.schema.field("n").type == pa.int64()
    assert found.column("n").to_pylist() == [1, None, 3]
    for answer, asked in zip(found.column("answer").to_pylist(), ("1: a!", ": b!", "3: !"), strict=True):
        assert asked in answer


def test_a_row_of_20_mb(server: Serving, tmp_path: Path) -> None:
    path = table(tmp_path / "texts.csv", "small", "x" * 20_000_000)
    done = run(server, path, "-o", tmp_path / "out.jsonl", "--model", "m", "--prompt", "{id}", "--full")
    assert done.returncode == 0, done.stderr
    done = run(server, path, "-o", tmp_path / "all.csv", "--model", "m", "--prompt", "[[refuse]]{text}")
    assert done.returncode == 1, done.stderr
    csv.field_size_limit(2**30)
    assert [len(row["text"]) for row in rows(tmp_path / "all.csv")] == [5, 20_000_000]


def test_tools_and_schemas_go_from_file_to_result(server: Serving, tmp_path: Path) -> None:
    path = table(tmp_path / "in.csv", "Oslo", "Lima")
    schema = tmp_path / "schema.json"
    schema.write_text(
        json.dumps(
            {
                "title": "city",
                "type": "object",
                "properties": {"name": {"type": "string"}, "people": {"type": "integer"}},
                "required": ["name", "people"],
                "additionalProperties": False,
            }
        ),
        "utf-8",
    )
    common = ("--model", "m", "--prompt", "Tell me of {text}", "--set", "temperature=0.2")
    done = run(server, path, "-o", tmp_path / "cities.csv", *common, "--schema", schema)
    assert done.returncode == 0, done.stderr
    for row in rows(tmp_path / "cities.csv"):
        assert set(json.loads(row["answer"])) == {"name", "people"}
    tools = tmp_path / "tools.json"
    function = {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    tools.write_text(json.dumps([{"type": "function", "function": function}]), "utf-8")
    done = run(server, path, "-o", tmp_path / "calls.jsonl", *common, "--tools", tools, "--full")
    assert done.returncode == 0, done.stderr
    for line in lines(tmp_path / "calls.jsonl"):
        (call,) = line["response"]["body"]["choices"][0]["message"]["tool_calls"]
        assert "city" in json.loads(call["function"]["arguments"])
    done = run(server, path, "-o", tmp_path / "calls.csv", *common, "--tools", tools)
    assert json.loads(rows(tmp_path / "calls.csv")[0]["answer"])[0]["name"] == "get_weather"


@pytest.mark.parametrize(
    ("endpoint", "answered"),
    [
        ("/v1/responses", lambda text: "say a" in text),
        ("/v1/embeddings", lambda text: len(json.loads(text)) > 10),
    ],
)
def test_other_endpoints(server: Serving, tmp_path: Path, endpoint: str, answered: Any) -> None:
    path = table(tmp_path / "in.csv", "a", "b")
    ask = ("--model", "m", "--prompt", "say {text}", "--endpoint", endpoint)
    done = run(server, path, "-o", tmp_path / "out.csv", *ask)
    assert done.returncode == 0, done.stderr
    assert answered(rows(tmp_path / "out.csv")[0]["answer"])


def test_errors_of_the_user_and_of_the_server(tmp_path: Path) -> None:
    path = table(tmp_path / "in.csv", "a")
    out = tmp_path / "out.csv"
    ask = ("-o", out, "--model", "m", "--prompt", "{text}")
    with serve_in_thread(LocalConfig(api_key="another")) as strict:
        refused = run(strict, path, *ask)
    assert refused.returncode == 3
    assert "401" in refused.stderr
    nobody = run("http://127.0.0.1:9/v1", path, *ask)
    assert nobody.returncode == 3
    assert "http://127.0.0.1:9/v1/batches" in nobody.stderr
    assert "k-secret" not in run("http://u:k-secret@127.0.0.1:9/v1", path, *ask).stderr
    for wrong in (
        (path, "-o", out),
        (path, "-o", out, "--model", "m", "--prompt", "{nothing}"),
        (tmp_path / "missing.csv", *ask),
        (path, "-o", path, "--model", "m", "--prompt", "{text}", "--overwrite"),
        (path, *ask, "--metadata", "novalue"),
        (path, *ask, "--base-url", "127.0.0.1:9/v1"),
        (path, *ask, "--base-url", "http://"),
        (path, *ask, "--base-url", "http://127.0.0.1:99999/v1"),
        (path, *ask, "--base-url", "http://127.0.0.1:9/v1?key=k-secret"),
        (path, *ask, "--api-key", "k-secret\nx"),
        (path, "-o", "-", "--model", "m", "--prompt", "{text}"),
    ):
        done = run("http://127.0.0.1:9/v1", *wrong)
        assert done.returncode == 2, (wrong, done.stderr)
    assert not out.exists()


def test_a_bad_line_far_down_is_told_and_what_was_read_before_has_not_failed(
    server: Serving, tmp_path: Path
) -> None:
    path = batch_file(tmp_path / "in.jsonl", 500)
    with path.open("a", encoding="utf-8") as file:
        file.write("bad line\n")
    done = run(server, path, "-o", tmp_path / "out.jsonl", "--batch-size", "100")
    assert (done.returncode, done.stdout) == (2, "")
    said = [line for line in done.stderr.splitlines() if " submitted: " not in line]
    assert said[0].startswith(f"autobatcher: {path}:501: not JSON")
    assert said[1] == f"autobatcher validate {path} shows all problems"
    assert all("batches under way" in line for line in said[2:]), done.stderr
    assert len(said) <= 3


def test_a_bad_line_leaves_batches_under_way_and_the_mended_file_goes_on_with_them(tmp_path: Path) -> None:
    path, out = batch_file(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write("bad line\n")
    ask = (path, "-o", out, "--batch-size", "10", "--in-flight", "40")
    with serve_in_thread(LocalConfig(latency_seconds=0.4, concurrency=2)) as server:
        done = run(server, *ask)
        assert done.returncode == 2, done.stderr
        kept = re.fullmatch(
            r"(\d+) answers? in the journal and (\d) batch(?:es)? under way at the server; the same command goes on"
            " from there",
            done.stderr.splitlines()[-1],
        )
        assert kept, done.stderr
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:40]))
        assert run(server, *ask).returncode == 0
        assert bought(server) == 40
    assert len(lines(out)) == 40


IN_THE_BACKGROUND = ("sh", "-c", 'trap "" INT; exec "$@"', "sh")
"""As a shell without job control starts programs. It is one that does: code of this process that ran in a child, between
fork and exec, could wait for ever for what another thread had at that moment."""


@pytest.mark.parametrize(
    ("number", "before"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ()), (signal.SIGTERM, IN_THE_BACKGROUND)],
    ids=["SIGINT", "SIGTERM", "SIGTERM in the background"],
)
def test_an_interrupted_run_says_how_to_go_on_and_the_same_command_does(
    tmp_path: Path, number: signal.Signals, before: tuple[str, ...]
) -> None:
    path = batch_file(tmp_path / "in.jsonl", 300)
    out = tmp_path / "out.jsonl"
    with serve_in_thread(LocalConfig(latency_seconds=0.05, concurrency=4)) as server:
        process = subprocess.Popen(
            [*before, *command(server, path, "-o", out, "--batch-size", "50")],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(tmp_path / "out.jsonl.partial", 50)
        process.send_signal(number)
        _, told = process.communicate(timeout=PATIENCE)
        assert process.returncode == 130, told
        assert "the same command goes on" in told
        kept = len(lines(tmp_path / "out.jsonl.partial"))
        assert f"interrupted: {kept} answered of 300 that were read" in told
        assert not re.search("[1-9] failed", told)
        assert "Traceback" not in told
        assert not out.exists()
        done = run(server, path, "-o", out, "--batch-size", "50")
        assert done.returncode == 0, done.stderr
        assert bought(server) == 300
    assert [line["custom_id"] for line in lines(out)] == [f"c-{n}" for n in range(300)]


def test_20000_lines_killed_twice_are_bought_once(tmp_path: Path) -> None:
    path = batch_file(tmp_path / "in.jsonl", 20_000)
    out = tmp_path / "out.jsonl"
    with serve_in_thread(LocalConfig(latency_seconds=0.01)) as server:
        for least in (3_000, 9_000):
            process = subprocess.Popen(
                command(server, path, "-o", out, "--batch-size", "1000"),
                env=ENVIRONMENT,
                stderr=subprocess.DEVNULL,
            )
            wait_for(tmp_path / "out.jsonl.partial", least)
            process.kill()
            process.wait(PATIENCE)
            assert not out.exists()
        done = run(server, path, "-o", out, "--batch-size", "1000")
        assert done.returncode == 0, done.stderr
        assert bought(server) == 20_000
    for number, line in enumerate(lines(out)):
        assert line["custom_id"] == f"c-{number}"
        assert f"question {number}." in line["response"]["body"]["choices"][0]["message"]["content"]


def wait_for(path: Path, least: int) -> None:
    """Until the file has so many lines."""
    end = time.monotonic() + PATIENCE
    while not path.exists() or path.read_bytes().count(b"\n") < least:
        assert time.monotonic() < end
        time.sleep(0.05)


def bought(server: Serving) -> int:
    """How many requests the server was given in batches."""

    async def count() -> int:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="k") as client:
            batches = [batch async for batch in client.batches.list()]
        return sum(batch.request_counts.total for batch in batches if batch.request_counts)

    return anyio.run(count)


def test_a_terminal_shows_the_batches(tmp_path: Path) -> None:
    pytest.importorskip("termios", reason="there are no pseudo-terminals here")
    from tests.terminal import Terminal  # noqa: PLC0415 -- as above

    path = batch_file(tmp_path / "in.jsonl", 120)
    out = tmp_path / "out.jsonl"
    with serve_in_thread(LocalConfig(latency_seconds=0.1, concurrency=4)) as server:
        started = ["env", "OPENAI_API_KEY=k", *command(server, path, "-o", str(out), "--batch-size", "40")]
        with Terminal(started, 80, 24) as terminal:
            terminal.until(lambda: len(set(re.findall(r"batch_[0-9a-f]{32}", terminal.text))) == 3)
            terminal.until(lambda: 0 < terminal.done < 120)
            terminal.until(lambda: "of 120 done" in terminal.text)
            assert terminal.until_over() == 0
            assert "120 requests: 120 answered, 0 failed" in terminal.text
            assert not terminal.screen.cursor.hidden
