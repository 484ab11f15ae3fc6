"""What all commands have in common: their help, JSON, places, servers that are not what they should be, and Ctrl-C."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer

from autobatcher.cli import build_app
from autobatcher.local import LocalConfig, Serving, serve_in_thread
from tests.jobs.command import Ran, autobatcher, batch_file, line, process


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serve_in_thread(LocalConfig()) as serving:
        yield serving


@pytest.fixture
def ended(server: Serving, tmp_path: Path) -> Any:
    """A batch with an answer and an error, as the server has it."""
    path = batch_file(tmp_path, [line("a"), line("b", "[[error:400]]")])
    name = autobatcher(server, "submit", path).out.strip()
    autobatcher(server, "watch", name, "--poll-interval", "0.05")
    (batch,) = autobatcher(server, "status", name, "--json").objects
    return batch


def commands(of: Any = None, *names: str) -> Iterator[tuple[str, ...]]:
    """The names of all commands, and of groups of them."""
    of = typer.main.get_command(build_app()) if of is None else of
    yield names
    for name, command in getattr(of, "commands", {}).items():
        yield from commands(command, *names, name)


@pytest.mark.parametrize("names", list(commands()), ids=" ".join)
def test_the_help_of_each_command_has_an_example_and_exit_codes(names: tuple[str, ...]) -> None:
    ran = autobatcher("", *names, "--help", COLUMNS="200", TERMINAL_WIDTH="200")
    assert ran.code == 0
    _, _, example = ran.out.partition("Example: ")
    assert " ".join(("autobatcher", *names)) in example.splitlines()[0]
    for code in ("0 ", "1 ", "2 usage", "3 server", "4 disk", "130 interrupted"):
        assert code in " ".join(ran.out[ran.out.index("Exit codes:") :].split())


def started(before: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process in which this is done before."""
    program = f"import os, signal, sys\n{before}\nfrom autobatcher.cli import main\nmain()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("missing", ["prometheus_client", "uvicorn", "typer"])
def test_a_command_whose_extra_is_missing_says_so_whatever_it_is_given(missing: str) -> None:
    ran = started(f"sys.modules[{missing!r}] = None", "serve", "there", "--port", "8080", "--no-such")
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert ran.stderr == f'autobatcher: {missing} is not installed: pip install "autobatcher[all]"\n'


def test_the_other_commands_go_without_the_extra() -> None:
    ran = started("sys.modules['prometheus_client'] = None", "list", "--help")
    assert ran.returncode == 0, ran.stderr


SIGNALLED = """
class Finder:
    def find_spec(self, name, *_):
        if name == "autobatcher.cli.{module}":
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, Finder())
"""
"""Sends the process a signal when it begins to import a module."""


@pytest.mark.skipif(sys.platform == "win32", reason="signals end processes there")
@pytest.mark.parametrize("module", ["common", "batches"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_command_that_is_interrupted_while_it_starts_is_130(name: str, module: str) -> None:
    ran = started(SIGNALLED.format(module=module, signal=name), "list", "--help")
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


def test_only_the_module_of_the_command_is_imported() -> None:
    program = "import sys; sys.argv[1:] = ['list', '--help']; from autobatcher.cli import main\n"
    program += "try: main()\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    modules = ran.stderr.split()
    assert "autobatcher.cli.batches" in modules
    assert not {"autobatcher.cli.serve", "autobatcher.cli.run", "uvicorn"} & set(modules)


def test_json_is_an_object_a_line_and_nothing_else(server: Serving, tmp_path: Path, ended: Any) -> None:
    path = batch_file(tmp_path, [line("a"), b"\n"], "more.jsonl")
    name, file = ended["id"], ended["input_file_id"]
    journal = tmp_path / "out.jsonl.journal"
    for command, count in {
        ("submit", path): 1,
        ("list", "--limit", 1): 1,
        ("status", name, name): 2,
        ("cancel", name): 1,
        ("watch", name): 1,
        ("retry", name): 1,
        ("files", "list", "--limit", 2): 2,
        ("files", "delete", file): 1,
        ("prepare", path, "-o", tmp_path / "batches"): 1,
        ("validate", path): 1,
        ("estimate", path): 1,
        ("run", path, "-o", tmp_path / "out.jsonl", "--poll-interval", "0.05"): 1,
        ("journal", journal): 1,
    }.items():
        ran = autobatcher(server, *command, "--json")
        assert ran.code in (0, 1), (command, ran.err)
        assert len(ran.objects) == count, (command, ran.out)
        assert all(isinstance(found, dict) for found in ran.objects)


def test_a_dash_is_stdout_where_one_file_is_written(server: Serving, tmp_path: Path, ended: Any) -> None:
    out = tmp_path / "out.jsonl"
    both = autobatcher(server, "results", ended["id"])
    assert [found["custom_id"] for found in both.objects] == ["a", "b"]
    assert autobatcher(server, "results", ended["id"], "--errors", "-").out == both.out
    got = autobatcher(server, "results", ended["id"], "-o", out, "--errors", "-", "--price", "n=1,1")
    assert "--price n: stands for nothing here; the models are m\n" in got.err
    assert [found["custom_id"] for found in got.objects] == ["b"]
    assert f"written: {out}" in got.err
    assert "written: -" not in got.err
    refused = autobatcher(server, "prepare", tmp_path / "in.jsonl", "-o", "-")
    assert (refused.code, refused.out) == (2, "")
    assert "folder" in refused.err
    assert not list(Path().glob("-*"))


def test_what_is_there_is_said_with_the_option_that_replaces_it(
    server: Serving, tmp_path: Path, ended: Any
) -> None:
    there = tmp_path / "there.jsonl"
    there.write_text("mine")
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches" / "in-0001.jsonl").write_text("mine")
    name = ended["id"]
    for command in (
        ("results", name, "-o", there),
        ("results", name, "-o", tmp_path / "x.jsonl", "--errors", there),
        ("retry", name, "-o", there),
        ("files", "get", ended["input_file_id"], "-o", there),
        ("run", tmp_path / "in.jsonl", "-o", there),
        ("prepare", tmp_path / "in.jsonl", "-o", tmp_path / "batches"),
    ):
        ran = autobatcher(server, *command)
        assert ran.code == 2, command
        assert "is there already" in ran.err
        assert "--overwrite" in ran.err
        assert there.read_text() == "mine"
    ran = autobatcher(server, "prepare", tmp_path / "in.jsonl", "-o", there)
    assert ran.code == 2
    assert "is no folder" in ran.err


def test_an_address_without_v1_is_said_to_lack_it(server: Serving, tmp_path: Path) -> None:
    path = batch_file(tmp_path, [line("a")])
    for command in (
        ("list",),
        ("submit", path),
        ("files", "list"),
        ("run", path, "-o", tmp_path / "out.jsonl"),
    ):
        ran = autobatcher(server.origin, *command)
        assert ran.code == 3, (command, ran.err)
        assert "no /v1 in" in ran.err, command
    assert "no /v1" not in autobatcher(server, "status", "batch_x").err


def test_numbers_of_one_are_not_plural(server: Serving, tmp_path: Path) -> None:
    path = batch_file(tmp_path, [line("a")])
    done = autobatcher(server, "run", path, "-o", tmp_path / "out.jsonl", "--poll-interval", "0.05")
    said = [done.err]
    name = autobatcher(server, "submit", path).out.strip()
    autobatcher(server, "watch", name, "--poll-interval", "0.05")
    said.append(autobatcher(server, "results", name).err)
    said.append(autobatcher(server, "retry", name, "--dry-run").err)
    said.append(autobatcher(server, "validate", path).err)
    said.append(autobatcher(server, "prepare", path, "-o", tmp_path / "batches").err)
    for text in said:
        for word in text.replace(",", "").split(" 1 ")[1:]:
            assert not word.split()[0].endswith("s"), text
    assert "1 request: 1 answered" in done.err
    assert "1 answer, " in done.err


def test_what_cannot_be_retried_is_named_by_its_line(server: Serving, tmp_path: Path) -> None:
    path = batch_file(tmp_path, [line("a"), line("b"), line("c"), b"[1]\n"])
    name = autobatcher(server, "submit", path).out.strip()
    autobatcher(server, "watch", name, "--poll-interval", "0.05")
    ran = autobatcher(server, "retry", name)
    assert ran.code == 2, ran.err
    assert ": line 4 is no request (" in ran.err


def test_files_are_listed_got_and_deleted(server: Serving, tmp_path: Path, ended: Any) -> None:
    name = ended["input_file_id"]
    listed = autobatcher(server, "files", "list", "--purpose", "batch")
    assert listed.code == 0
    assert name in listed.out
    got = autobatcher(server, "files", "get", name, "-o", tmp_path / "got.jsonl")
    assert (got.code, got.out) == (0, "")
    content = (tmp_path / "in.jsonl").read_bytes()
    assert (tmp_path / "got.jsonl").read_bytes() == content
    assert f"{len(content):,} bytes" in got.err
    assert autobatcher(server, "files", "get", name).out.encode() == content
    deleted = autobatcher(server, "files", "delete", name)
    assert (deleted.code, deleted.out) == (0, "")
    assert f"deleted: {name}" in deleted.err
    for command in (["get", name, "-o", tmp_path / "again.jsonl"], ["delete", name]):
        gone = autobatcher(server, "files", *command)
        assert (gone.code, gone.out) == (3, "")
        assert "404" in gone.err
    assert not (tmp_path / "again.jsonl").exists()
    assert autobatcher(server, "files", "get", "a/b").code == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no such files")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_preparation_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    path, to = tmp_path / "in.txt", tmp_path / "batches"
    os.mkfifo(path)
    command = ["prepare", path, "-o", to, "--model", "m", "--prompt", "{text}"]
    started = subprocess.Popen(
        [sys.executable, "-m", "autobatcher", *map(str, command)], stderr=subprocess.PIPE, text=True
    )
    with path.open("wb"):  # which waits until it is read, by then with nothing in it
        assert list(to.iterdir())
        started.send_signal(number)
        _, said = started.communicate(timeout=60)
    assert started.returncode == 130, said
    assert "Traceback" not in said
    assert not to.exists()


# Servers that are not what they should be.

Answer = Callable[[str, str], Any]
"""By method and path, what is sent as JSON; bytes are the text of an error."""

UNKNOWN = b'{"error": {"message": "unknown"}}'


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A server's base URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            found = answer(self.command, self.path.partition("?")[0])
            content = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(404 if isinstance(found, bytes) else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _answer  # noqa: N815 -- the names that the base class looks for

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.daemon_threads = True
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}/v1"
        served.shutdown()
        thread.join()


def test_a_long_error_of_the_server_is_told_in_a_line() -> None:
    with answering(
        lambda _method, _path: b'{"error": {"message": "no\\u001b[2J %b"}}' % (b"x" * 100_000)
    ) as url:
        ran = autobatcher(url, "list")
    assert ran.code == 3
    assert ran.err.startswith("autobatcher: the server answered 404: ")
    assert "x" * 300 in ran.err
    assert ran.err.removesuffix("\n").isprintable()
    assert len(ran.err) < 1_000


def test_a_file_that_the_server_has_not_deleted_is_3() -> None:
    def answer(method: str, path: str) -> Any:
        name = path.rpartition("/")[2]
        return {"id": name, "object": "file", "deleted": name != "file-1"} if method == "DELETE" else UNKNOWN

    with answering(answer) as url:
        ran = autobatcher(url, "files", "delete", "file-1", "file-2", "--json")
    assert ran.code == 3
    assert [found["id"] for found in ran.objects] == ["file-2"]
    assert "not deleted file-1" in ran.err


class Hurried(asyncio.SelectorEventLoop):
    """An event loop on whose clock a minute takes 0.3 s."""

    FASTER = 200

    def __init__(self) -> None:
        super().__init__()
        select = self._selector.select  # type: ignore[attr-defined] # of the base class
        self._selector.select = lambda timeout=None: select(  # type: ignore[attr-defined]
            None if timeout is None else timeout / self.FASTER
        )

    def time(self) -> float:
        return super().time() * self.FASTER


def test_answers_that_stay_away_are_3_and_again_buys_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio.events, "new_event_loop", Hurried)  # minutes of looking
    batch = {
        "id": "batch_1",
        "object": "batch",
        "status": "completed",
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-1",
        "completion_window": "24h",
        "request_counts": {"total": 2, "completed": 2, "failed": 0},
    }

    def answer(method: str, path: str) -> Any:
        if (method, path) == ("GET", "/v1/batches"):
            return {"object": "list", "data": [batch], "has_more": False}
        if path == "/v1/files/file-1/content":
            return json.loads(line("a"))
        return {"/v1/batches/batch_1": batch}.get(path, UNKNOWN)

    with answering(answer) as url:
        for options in ([], ["--dry-run"], ["-o", tmp_path / "left.jsonl"]):
            ran = autobatcher(url, "retry", "batch_1", *options)
            assert (ran.code, ran.out) == (3, ""), ran.err
            assert "2 more answered" in ran.err
            assert "--again" in ran.err
        assert not (tmp_path / "left.jsonl").exists()
        again = autobatcher(url, "retry", "batch_1", "-o", "-", "--again")
    assert again.code == 0
    assert [found["custom_id"] for found in again.objects] == ["a"]


def test_a_reader_that_has_enough_is_no_error_of_the_disk(server: Serving, ended: Any) -> None:
    ran: Ran = process(server, "results", ended["id"], stdout="closed")
    assert ran.code == 1
    assert "disk" not in ran.err
    assert "stdout" not in ran.err
