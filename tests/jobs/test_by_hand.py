"""The batch workflow by hand, as the command, on the embedded server."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autobatcher.local import LocalConfig, Serving, serve_in_thread
from tests.jobs.command import Ran, autobatcher, batch_file, environment, line, process

NOBODY = "http://127.0.0.1:9/v1"
"""Where no server listens."""


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve_in_thread(LocalConfig()) as serving:
        yield serving


@pytest.fixture
def slow() -> Iterator[Serving]:
    """A server on which a second line is answered only after the tests are over."""
    with serve_in_thread(LocalConfig(latency_seconds=600)) as serving:
        yield serving


def submitted(server: Serving, folder: Path, *lines: bytes, name: str = "in.jsonl") -> str:
    ran = autobatcher(server, "submit", batch_file(folder, lines, name))
    assert ran.code == 0, ran.err
    return ran.out.strip()


def ended(server: Serving, *ids: str) -> Ran:
    return autobatcher(server, "watch", "--poll-interval", "0.05", *ids)


def test_from_a_file_to_results_and_on_to_a_clean_server(tmp_path: Path) -> None:
    with serve_in_thread(LocalConfig()) as server:
        path = batch_file(tmp_path, [line("a"), line("b", "[[error:429]]"), line("c")])
        made = process(server, "submit", path, "--metadata", "job=test", "--metadata", "x=a=b")
        assert made.code == 0
        name = made.out.strip()
        assert re.fullmatch(r"batch_\w+", name)
        assert "uploaded as file-" in made.err

        watched = process(server, "watch", name, "--poll-interval", "0.05")
        assert (watched.code, watched.out) == (1, "")
        assert f"{name}: completed 2/1/3" in watched.err

        got = process(server, "results", name, "-o", tmp_path / "out.jsonl")
        assert (got.code, got.out) == (1, "")
        assert "2 answered, 1 failed, 0 without a result" in got.err
        assert [found["custom_id"] for found in read(tmp_path / "out.jsonl")] == ["a", "c"]
        (failed,) = read(tmp_path / "out.errors.jsonl")
        assert failed["custom_id"] == "b"
        assert failed["response"]["status_code"] == 429
        assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl", "out.errors.jsonl"}

        (batch,) = process(server, "list", "--json").objects
        assert batch["id"] == name
        assert batch["metadata"] == {"job": "test", "x": "a=b"}
        assert batch["completion_window"] == "24h"
        cancelled = process(server, "cancel", name)
        assert cancelled.code == 0
        assert "completed" in cancelled.out

        again = process(server, "retry", name)
        assert again.code == 0, again.err
        other = again.out.strip()
        assert ended(server, other).code == 1
        (batch,) = process(server, "status", other, "--json").objects
        assert batch["metadata"] == {"job": "test", "x": "a=b", "retry_of": name}
        assert batch["request_counts"] == {"total": 1, "completed": 0, "failed": 1}

        files = {found["id"] for found in process(server, "files", "list", "--json").objects}
        assert len(files) == 5
        content = process(server, "files", "get", batch["input_file_id"])
        assert content.code == 0
        assert content.out.encode() == line("b", "[[error:429]]")
        assert process(server, "files", "delete", *files).code == 0
        assert autobatcher(server, "files", "list", "--json").out == ""


def test_all_answered_is_0(server: Serving, tmp_path: Path) -> None:
    name = submitted(server, tmp_path, line("a"))
    watched = autobatcher(server, "watch", name, "--json", "--poll-interval", "0.05")
    assert watched.code == 0
    assert watched.objects[-1]["status"] == "completed"
    got = autobatcher(server, "results", name)
    assert got.code == 0
    assert [found["custom_id"] for found in got.objects] == ["a"]
    done = autobatcher(server, "retry", name)
    assert (done.code, done.out) == (0, "")
    assert "nothing to retry" in done.err
    assert autobatcher(server, "results", name, "-o", tmp_path / "out.jsonl").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_each_file_becomes_a_batch(server: Serving, tmp_path: Path) -> None:
    files = [batch_file(tmp_path, [line("a")], name) for name in ("a.jsonl", "b.jsonl")]
    made = autobatcher(server, "submit", *files, "--window", "1h", "--json")
    assert made.code == 0
    assert [batch["completion_window"] for batch in made.objects] == ["1h", "1h"]
    names = [batch["id"] for batch in made.objects]
    assert len(set(names)) == 2
    assert ended(server, *names, names[0]).code == 0
    assert [found["id"] for found in autobatcher(server, "status", *names, "--json").objects] == names


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no requests"),
        (b"\n \n", "no requests"),
        (b"text,label\n", "line 1 is no request"),
        (b'\n{"messages": []}\n', "line 2 is no request"),
        (b"\xff\xfe\x00\n", "line 1 is no request"),
    ],
)
def test_what_is_no_batch_file_is_not_submitted(
    server: Serving, tmp_path: Path, content: bytes, said: str
) -> None:
    good = batch_file(tmp_path, [line("a")], "good.jsonl")
    before = autobatcher(server, "files", "list", "--json").objects
    ran = autobatcher(server, "submit", good, batch_file(tmp_path, [content], "bad.jsonl"))
    assert (ran.code, ran.out) == (2, "")
    assert "bad.jsonl" in ran.err
    assert said in ran.err
    assert autobatcher(server, "files", "list", "--json").objects == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metadata", "x"], "key=value"),
        (["--metadata", "=x"], "key=value"),
        (["--metadata", "a=1", "--metadata", "a=2"], "twice"),
        (["--metadata", f"{'k' * 65}=x"], "64 characters"),
        (["--metadata", f"k={'v' * 513}"], "512 characters"),
        ([option for n in range(17) for option in ("--metadata", f"k{n}=x")], "16 pairs"),
        (["--window", " "], "window must not be empty"),
    ],
)
def test_options_that_no_server_takes_are_usage(
    server: Serving, tmp_path: Path, options: list[str], said: str
) -> None:
    ran = autobatcher(server, "submit", batch_file(tmp_path, [line("a")]), *options)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


def test_a_file_that_is_not_there_or_given_twice_is_usage(server: Serving, tmp_path: Path) -> None:
    assert autobatcher(server, "submit", tmp_path / "none.jsonl").code == 2
    path = batch_file(tmp_path, [line("a")])
    ran = autobatcher(server, "submit", path, path)
    assert (ran.code, ran.out) == (2, "")
    assert "twice" in ran.err


COMMANDS = [
    ["list"],
    ["status", "batch_x"],
    ["watch", "batch_x"],
    ["results", "batch_x"],
    ["cancel", "batch_x"],
    ["retry", "batch_x"],
    ["files", "list"],
    ["files", "get", "file-x"],
    ["files", "delete", "file-x"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_server_that_does_not_know_the_key_or_the_id_is_3(server: Serving, command: list[str]) -> None:
    with serve_in_thread(LocalConfig(api_key="right")) as closed:
        ran = autobatcher(closed, *command, key="sk-wrong-key")
    assert (ran.code, ran.out) == (3, "")
    assert "401" in ran.err
    assert "sk-wrong-key" not in ran.err
    if "list" not in command:
        ran = autobatcher(server, *command)
        assert (ran.code, ran.out) == (3, "")
        assert "404" in ran.err


def test_a_server_that_is_not_there_is_3(tmp_path: Path) -> None:
    path = batch_file(tmp_path, [line("a")])
    for command in (["submit", path], ["watch", "batch_x"], ["files", "list"]):
        ran = autobatcher(NOBODY, *command)
        assert (ran.code, ran.out) == (3, "")
        assert "onnect" in ran.err


@pytest.mark.parametrize("name", ["", " ", "../files", "a\nb"])
def test_what_is_no_id_is_usage(server: Serving, name: str) -> None:
    for command in ("status", "watch", "results", "cancel", "retry"):
        assert autobatcher(server, command, name).code == 2


def test_a_url_that_is_none_is_usage() -> None:
    ran = autobatcher("http://127.0.0.1:port/v1", "list")
    assert ran.code == 2
    assert "address" in ran.err


def test_one_id_that_is_unknown_does_not_keep_the_others_from_being_cancelled(
    slow: Serving, tmp_path: Path
) -> None:
    name = submitted(slow, tmp_path, line("a"))
    ran = autobatcher(slow, "cancel", "batch_unknown", name)
    assert ran.code == 3
    assert "batch_unknown" in ran.err
    assert name in ran.out
    assert ended(slow, name).code == 1
    left = autobatcher(slow, "retry", name, "--dry-run")
    assert (left.code, left.out) == (0, "")
    assert "1 request to send again (0 failed, 1 without a result); 0 answered" in left.err
    lines = autobatcher(slow, "retry", name, "-o", "-")
    assert lines.out.encode() == line("a")
    assert autobatcher(slow, "retry", name, "-o", tmp_path / "left.jsonl").code == 0
    assert (tmp_path / "left.jsonl").read_bytes() == line("a")
    assert autobatcher(slow, "retry", name, "-o", tmp_path / "left.jsonl").code == 2
    assert len(autobatcher(slow, "list", "--json").objects) == 1


def test_a_batch_that_goes_on_is_not_retried_and_has_no_results(slow: Serving, tmp_path: Path) -> None:
    name = submitted(slow, tmp_path, line("a"))
    ran = autobatcher(slow, "retry", name)
    assert (ran.code, ran.out) == (2, "")
    assert name in ran.err
    got = autobatcher(slow, "results", name, "-o", tmp_path / "out.jsonl")
    assert (got.code, got.out) == (1, "")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_retry_is_made_once(server: Serving, tmp_path: Path) -> None:
    name = submitted(server, tmp_path, line("a", "[[error:500]]"), line("b"))
    assert ended(server, name).code == 1
    first = autobatcher(server, "retry", name, "--metadata", "n=1", "--window", "1h", "--json")
    (batch,) = first.objects
    assert batch["metadata"] == {"n": "1", "retry_of": name}
    assert batch["completion_window"] == "1h"
    second = autobatcher(server, "retry", name)
    assert (second.code, second.out) == (2, "")
    assert batch["id"] in second.err
    assert "--again" in second.err
    assert autobatcher(server, "retry", name, "--again").code == 0


def test_an_expired_batch_is_retried_with_what_it_left(tmp_path: Path) -> None:
    with serve_in_thread(LocalConfig(latency_seconds=0.7, concurrency=1)) as server:
        path = batch_file(tmp_path, [line(f"r-{n}") for n in range(4)])
        name = autobatcher(server, "submit", path, "--window", "2s").out.strip()
        watched = ended(server, name)
        assert watched.code == 1
        assert "expired" in watched.err
        got = autobatcher(server, "results", name)
        assert got.code == 1
        done = {found["custom_id"] for found in got.objects if found["error"] is None}
        assert 1 <= len(done) < 4
        left = autobatcher(server, "retry", name, "-o", "-").objects
        assert [found["custom_id"] for found in left] == [
            n for n in (f"r-{n}" for n in range(4)) if n not in done
        ]
        other = autobatcher(server, "retry", name, "--window", "24h").out.strip()
        assert ended(server, other).code == 0


def test_a_failed_batch_says_why_and_is_sent_whole(server: Serving, tmp_path: Path) -> None:
    name = submitted(server, tmp_path, line("a"), line("a"))
    watched = ended(server, name)
    assert watched.code == 1
    assert "line 2" in watched.err
    assert "line 2" in autobatcher(server, "status", name).err
    got = autobatcher(server, "results", name, "-o", tmp_path / "out.jsonl")
    assert got.code == 1
    assert "line 2" in got.err
    assert "2 requests to send again" in autobatcher(server, "retry", name, "--dry-run").err


def test_partial_results_come_before_the_end(tmp_path: Path) -> None:
    config = LocalConfig(partial_results=True, latency_seconds=1.0, concurrency=1)
    with serve_in_thread(config) as server:
        name = submitted(server, tmp_path, *(line(f"r-{n}") for n in range(30)))
        for _ in range(10):
            got = autobatcher(server, "results", name)
            if got.out:
                break
        assert got.code == 1
        assert 1 <= len(got.objects) < 30
        assert "without a result" in got.err
        autobatcher(server, "cancel", name)
        assert ended(server, name).code == 1
        final = autobatcher(server, "results", name, "-o", tmp_path / "out.jsonl")
        assert final.code == 1
        answered = read(tmp_path / "out.jsonl")
        assert len(answered) >= len(got.objects)
        assert not (tmp_path / "out.errors.jsonl").exists()
        left = autobatcher(server, "retry", name, "-o", "-").objects
        assert len(left) == 30 - len(answered)


def test_nothing_is_overwritten_unasked(server: Serving, tmp_path: Path) -> None:
    name = submitted(server, tmp_path, line("a"))
    assert ended(server, name).code == 0
    out, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    for there in (out, errors):
        there.write_text("mine")
        ran = autobatcher(server, "results", name, "-o", out)
        assert ran.code == 2
        assert str(there) in ran.err
        assert there.read_text() == "mine"
        there.unlink()
    out.write_text("mine")
    errors.write_text("of another batch")
    assert autobatcher(server, "results", name, "-o", out, "--overwrite").code == 0
    assert len(read(out)) == 1
    assert not errors.exists()
    assert autobatcher(server, "results", name, "-o", tmp_path / "none" / "out.jsonl").code == 2
    assert (
        autobatcher(
            server, "results", name, "-o", tmp_path / "b.jsonl", "--errors", tmp_path / "b.jsonl"
        ).code
        == 2
    )
    (batch,) = autobatcher(server, "status", name, "--json").objects
    assert autobatcher(server, "files", "get", batch["input_file_id"], "-o", out).code == 2
    got = autobatcher(server, "files", "get", batch["input_file_id"], "-o", tmp_path / "got")
    assert got.code == 0
    assert (tmp_path / "got").read_bytes() == line("a")


@pytest.mark.parametrize("columns", ["30", "200"])
def test_tables_have_whole_ids(server: Serving, tmp_path: Path, columns: str) -> None:
    name = submitted(server, tmp_path, line("a"))
    (batch,) = autobatcher(server, "status", name, "--json").objects
    for command in (["list"], ["status", name]):
        ran = autobatcher(server, *command, COLUMNS=columns)
        assert ran.code == 0
        assert name in ran.out
        assert batch["input_file_id"] in ran.out
    ran = autobatcher(server, "files", "list", COLUMNS=columns)
    assert batch["input_file_id"] in ran.out


def test_lists_are_as_long_as_asked(server: Serving, tmp_path: Path) -> None:
    names = [submitted(server, tmp_path, line("a")) for _ in range(3)]
    listed = [found["id"] for found in autobatcher(server, "list", "--limit", 2, "--json").objects]
    assert len(listed) == 2
    every = [found["id"] for found in autobatcher(server, "list", "--all", "--json").objects]
    assert set(names) <= set(every)
    assert every[:2] == listed
    assert autobatcher(server, "list", "--limit", 0).code == 2
    assert len(autobatcher(server, "files", "list", "--limit", 1, "--json").objects) == 1
    purposes = {
        found["purpose"]
        for found in autobatcher(server, "files", "list", "--purpose", "batch", "--json").objects
    }
    assert purposes == {"batch"}


def test_files_are_deleted_each_by_itself(server: Serving, tmp_path: Path) -> None:
    name = submitted(server, tmp_path, line("a"))
    (batch,) = autobatcher(server, "status", name, "--json").objects
    ran = autobatcher(server, "files", "delete", "file-unknown", batch["input_file_id"], "--json")
    assert ran.code == 3
    assert [found["id"] for found in ran.objects] == [batch["input_file_id"]]


class Losing(http.server.ThreadingHTTPServer):
    """A proxy that drops the connection once the server has made its first batch."""

    daemon_threads = True

    def __init__(self, to: Serving) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        self.to = to
        self.lost = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Passing(http.server.BaseHTTPRequestHandler):
    def _pass(self) -> None:
        proxy = self.server
        assert isinstance(proxy, Losing)
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        connection = http.client.HTTPConnection(proxy.to.origin.removeprefix("http://"))
        with contextlib.closing(connection):
            kept = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            connection.request(self.command, self.path, sent, kept)
            answer = connection.getresponse()
            content = answer.read()
        if self.command == "POST" and self.path == "/v1/batches" and not proxy.lost:
            proxy.lost += 1
            return  # and so the connection is closed
        self.send_response(answer.status)
        self.send_header("content-type", answer.headers["content-type"])
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _pass  # noqa: N815 -- the names that the base class looks for

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        pass


def test_a_lost_answer_to_a_creation_makes_one_batch(tmp_path: Path) -> None:
    with serve_in_thread(LocalConfig()) as server, Losing(server) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        made = process(proxy.base_url, "submit", batch_file(tmp_path, [line("a")]))
        proxy.shutdown()
        thread.join()
        assert proxy.lost == 1
        assert made.code == 0, made.err
        assert "create: " in made.err
        (batch,) = autobatcher(server, "list", "--json").objects
        assert made.out == f"{batch['id']}\n"


def on_terminal(server: Serving, *arguments: object, columns: int) -> tuple[int, str]:
    """Run the command with stdout and stderr on a terminal; what that was sent."""
    ours, theirs = os.openpty()
    env = {**os.environ, **environment(server, "k"), "COLUMNS": str(columns), "TERM": "xterm"}
    command = [sys.executable, "-m", "autobatcher", *map(str, arguments)]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=env) as child:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # which is how Linux tells the end
            while piece := os.read(ours, 65536):
                seen += piece
        os.close(ours)
    return child.returncode, seen.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such terminals")
def test_a_narrow_terminal_shows_fewer_columns_and_whole_ids(server: Serving, tmp_path: Path) -> None:
    name = submitted(server, tmp_path, line("a"))
    code, seen = on_terminal(server, "watch", name, "--poll-interval", "0.05", columns=70)
    assert code == 0
    assert name in seen
    assert "completed" in seen
    assert "endpoint" not in seen
    code, seen = on_terminal(server, "list", "--limit", 1, columns=30)
    assert code == 0
    assert name in seen
    assert "created" not in seen
