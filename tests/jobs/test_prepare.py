"""Batch files from a source, and `autobatcher prepare`."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autobatcher.jobs import InputError, Template, open_source, prepare, validate
from autobatcher.jobs.template import EMBEDDINGS
from autobatcher.local import LocalConfig, serve_in_thread

CHAT = "/v1/chat/completions"


def line(custom_id: str, body: str = '{"model":"m"}', url: str = CHAT) -> str:
    return f'{{"custom_id":{json.dumps(custom_id)},"method":"POST","url":"{url}","body":{body}}}\n'


def batch_file(folder: Path, *lines: str, name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_bytes("".join(lines).encode())
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(each) for each in path.read_bytes().splitlines()]


def ids(paths: Sequence[Path]) -> list[list[str]]:
    return [[request["custom_id"] for request in read(path)] for path in paths]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_become_lines(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("text\nhi\nho\n", "utf-8")
    moves: list[int] = []
    (file,) = prepare(
        open_source(path, Template("m", "Say {text}")), tmp_path / "to" / "there", on_read=moves.append
    )
    assert file == tmp_path / "to" / "there" / "texts-0001.jsonl"
    assert read(file) == [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": "m", "messages": [{"role": "user", "content": f"Say {text}"}]},
        }
        for number, text in ((1, "hi"), (2, "ho"))
    ]
    assert moves[-1] == path.stat().st_size
    assert names(file.parent) == ["texts-0001.jsonl"]


def test_a_file_has_one_endpoint_and_one_model_and_is_full_before_the_next(tmp_path: Path) -> None:
    path = batch_file(
        tmp_path,
        line("a1"),
        line("b1", '{"model":"n"}'),
        line("c1", url="/v1/responses"),
        line("a2"),
        line("b2", '{"model":"n"}'),
        line("a3"),
        line("c2", url="/v1/responses"),
    )
    files = prepare(open_source(path), tmp_path, max_requests=2)
    assert [file.name for file in files] == [f"in-000{number}.jsonl" for number in (1, 2, 3, 4)]
    assert ids(files) == [["a1", "a2"], ["b1", "b2"], ["c1", "c2"], ["a3"]]


def test_a_file_has_no_more_bytes_than_it_may(tmp_path: Path) -> None:
    path = batch_file(tmp_path, *(line(f"a{number}") for number in range(7)))
    size = len(line("a0"))
    files = prepare(open_source(path), tmp_path, max_bytes=3 * size)
    assert [file.stat().st_size for file in files] == [3 * size, 3 * size, size]
    with pytest.raises(InputError, match=r"in\.jsonl: a0: the request is \d+ bytes .* holds 10$"):
        prepare(open_source(path), tmp_path / "x", max_bytes=10)
    assert not (tmp_path / "x").exists()


def test_inputs_of_embeddings_count(tmp_path: Path) -> None:
    body = '{"model":"m","input":["x","y"]}'
    path = batch_file(tmp_path, *(line(f"a{number}", body, EMBEDDINGS) for number in range(4)))
    assert len(prepare(open_source(path), tmp_path, max_requests=5)) == 2
    with pytest.raises(InputError, match="a0: the request has 2 inputs; a batch file holds 1"):
        prepare(open_source(path), tmp_path / "x", max_requests=1)


def test_nothing_but_a_line_s_end_ends_it_and_a_body_stays_as_it_is(tmp_path: Path) -> None:
    body = '{"model":"m" ,\r "t":"\u2028\u0085\u2029", "n":123456789012345678901234567890, "x":1.50}'
    path = batch_file(tmp_path, line('q"\u2028\\\n', body))
    (file,) = prepare(open_source(path), tmp_path)
    (only,) = file.read_bytes().decode().splitlines()
    assert json.loads(only)["custom_id"] == 'q"\u2028\\\n'
    assert json.loads(only)["body"] == json.loads(body)
    assert '"x":1.50' in only


def test_nothing_is_overwritten_unasked_and_nothing_old_is_left_when_asked(tmp_path: Path) -> None:
    path = batch_file(tmp_path, *(line(f"a{number}") for number in range(3)))
    other = batch_file(tmp_path, "mine", name="in-2024.jsonl")
    prepare(open_source(path), tmp_path, max_requests=1)
    before = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    with pytest.raises(FileExistsError) as caught:
        prepare(open_source(path), tmp_path)
    assert caught.value.filename == str(tmp_path / "in-0001.jsonl")
    assert [file.read_bytes() for file in sorted(tmp_path.iterdir())] == before
    (file,) = prepare(open_source(path), tmp_path, overwrite=True)
    assert ids([file]) == [["a0", "a1", "a2"]]
    assert names(tmp_path) == ["in-0001.jsonl", other.name, "in.jsonl"]


def test_a_source_that_turns_out_faulty_leaves_nothing_behind(tmp_path: Path) -> None:
    path = batch_file(tmp_path, line("a"), line("a"))
    with pytest.raises(InputError, match=r"in\.jsonl:2: "):
        prepare(open_source(path), tmp_path / "to" / "deep")
    assert names(tmp_path) == ["in.jsonl"]
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full" / "mine").touch()
    for name, left in (("empty", []), ("full", ["mine"])):
        with pytest.raises(InputError, match=r"in\.jsonl:2: "):
            prepare(open_source(path), tmp_path / name)
        assert names(tmp_path / name) == left
    with pytest.raises(InputError, match="has no requests"):
        prepare(open_source(batch_file(tmp_path, "text\n", name="x.csv"), Template("m", "{text}")), tmp_path)


def test_a_folder_gives_its_whole_name_and_takes_no_files_among_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "notes.old"
    folder.mkdir()
    (folder / "a.txt").write_text("hi", "utf-8")
    source = open_source(folder, Template("m", "{text}"))
    assert [file.name for file in prepare(source, tmp_path)] == ["notes.old-0001.jsonl"]
    with pytest.raises(InputError, match="is in the input"):
        prepare(source, folder / "to")
    assert names(folder) == ["a.txt"]


def test_a_thousand_models_are_no_trouble(tmp_path: Path) -> None:
    lines = [line(f"a{number}", f'{{"model":"m{number % 1_500}"}}') for number in range(3_000)]
    files = prepare(open_source(batch_file(tmp_path, *lines)), tmp_path / "to")
    assert len(files) == 1_500
    assert ids(files[:2]) == [["a0", "a1500"], ["a1", "a1501"]]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("ab\u2028é"), st.text(st.characters(codec="utf-8"))), min_size=1
    ),
    st.integers(1, 4),
)
def test_what_is_prepared_is_valid_and_whole(tmp_path: Path, bodies: list[Any], most: int) -> None:
    lines = [
        line(f"row-{number}", json.dumps({"model": f"m{number % 2}", **body}, ensure_ascii=False))
        for number, body in enumerate(bodies)
    ]
    files = prepare(
        open_source(batch_file(tmp_path, *lines)), tmp_path / "to", max_requests=most, overwrite=True
    )
    assert names(tmp_path / "to") == [file.name for file in files]
    assert [problem for file in files for problem in validate(file, max_requests=most)] == []
    found = {request["custom_id"]: request["body"] for file in files for request in read(file)}
    assert found == {
        f"row-{number}": {"model": f"m{number % 2}", **body} for number, body in enumerate(bodies)
    }


def test_a_server_takes_what_is_prepared(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(f'{{"text":"é\\u2028 {number}"}}\n' for number in range(50)), "utf-8")
    with serve_in_thread(LocalConfig(max_file_lines=20)) as serving:
        client = openai.OpenAI(api_key="k", base_url=serving.base_url)
        for file in prepare(open_source(path, Template("m", "{text}")), tmp_path, max_requests=20):
            with file.open("rb") as opened:
                uploaded = client.files.create(file=opened, purpose="batch")
            batch = client.batches.create(
                input_file_id=uploaded.id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
            deadline = time.monotonic() + 30
            while batch.status not in {"completed", "failed"} and time.monotonic() < deadline:
                time.sleep(0.02)
                batch = client.batches.retrieve(batch.id)
            assert batch.status == "completed"
            assert batch.request_counts is not None
            assert batch.request_counts.completed == batch.request_counts.total > 0
        client.close()


# --- the command -----------------------------------------------------------------------------------------------


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autobatcher", "prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def test_the_command_makes_files_with_every_option(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,picture\nhi,a.png\n", "utf-8")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "prompt.txt").write_text("Say {text}\n", "utf-8")
    (tmp_path / "schema.json").write_text('{"title":"t"}', "utf-8")
    (tmp_path / "tools.json").write_text('{"name":"look"}', "utf-8")
    options = "--model m --prompt @prompt.txt --system @@{text} --schema schema.json --tools tools.json"
    options += " --image picture --set temperature=0.2 --set user=me -o to"
    done = command("texts.csv", *options.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "to/texts-0001.jsonl\n")
    file = tmp_path / "to/texts-0001.jsonl"
    assert done.stderr == f"1 batch file, {file.stat().st_size:,} bytes\n"
    (request,) = read(file)
    assert request["body"]["messages"][0] == {"role": "system", "content": "@hi"}
    assert request["body"]["messages"][1]["content"][0] == {"type": "text", "text": "Say hi"}
    assert request["body"]["temperature"] == 0.2
    assert request["body"]["user"] == "me"
    assert request["body"]["tools"] == [{"type": "function", "function": {"name": "look"}}]
    assert request["body"]["response_format"]["json_schema"]["name"] == "t"
    again = command("texts.csv", "--model", "m", "--prompt", "{text}", "-o", "to", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (2, "")
    assert "to/texts-0001.jsonl: is there already" in again.stderr
    more = ["--kind", "text", "--endpoint", EMBEDDINGS, "--overwrite", "--json", "--max-requests", "1"]
    over = command("texts.csv", "--model", "m", "--prompt", "{text}", "-o", "to", *more, cwd=tmp_path)
    assert [json.loads(each)["file"] for each in over.stdout.splitlines()] == [
        "to/texts-0001.jsonl",
        "to/texts-0002.jsonl",
    ]
    assert read(file)[0]["body"] == {"model": "m", "input": "text,picture"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["texts.csv", "--set", "a=1"], "--set makes requests of a table, which takes --model and --prompt"),
        (
            ["texts.csv", "--model", "m", "--prompt", "{x}"],
            "texts.csv: there is no column 'x'; there is 'text'",
        ),
        (["texts.csv", "--model", "m", "--prompt", "@none"], "none: No such file or directory"),
        (["bad.jsonl"], "bad.jsonl:2: not JSON"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "texts.csv").write_text("text\nhi\n", "utf-8")
    batch_file(tmp_path, line("a"), "{", name="bad.jsonl")
    done = command(*arguments, "-o", "to", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert names(tmp_path) == ["bad.jsonl", "texts.csv"]


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("word " * 1_000 + "\n", "utf-8")
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "autobatcher",
            "prepare",
            str(path),
            "--model",
            "m",
            "--prompt",
            "{text}",
            "-o",
            ".",
        ],
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    screen = b""
    while True:
        try:
            part = os.read(ours, 10_000)
        except OSError:  # its other end was closed
            break
        if not part:
            break
        screen += part
    out, _ = done.communicate()
    os.close(ours)
    assert (done.returncode, out) == (0, b"in-0001.jsonl\n")
    assert b"reading" in screen
    assert b"1 batch file" in screen
