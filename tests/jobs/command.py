"""The command, in a process of its own or in this one, and what it is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from autobatcher.cli import build_app
from autobatcher.local import Serving

CHAT = "/v1/chat/completions"

LIMITED = """
import resource, runpy, sys

size = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
runpy.run_module("autobatcher", run_name="__main__")
"""
"""The command, with a limit for the size of its files."""


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def environment(server: Serving | str, key: str) -> dict[str, str]:
    url = server if isinstance(server, str) else server.base_url
    return {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": key}


def process(
    server: Serving | str,
    *arguments: object,
    key: str = "k",
    file_size: int | None = None,
    stdout: str | None = None,
) -> Ran:
    """Run the command as a process of its own.

    Args:
        server: or its base URL.
        arguments: of the command.
        key: for the server.
        file_size: the most bytes that a file of the process can have, as on a disk that is full then.
        stdout: a device that it goes to; "closed": nobody reads it.
    """
    given = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "DOUBLEWORD_"))
    }
    start = ["-m", "autobatcher"] if file_size is None else ["-c", LIMITED, str(file_size)]
    command = [sys.executable, *start, *map(str, arguments)]
    env = {**given, **environment(server, key)}
    if stdout == "closed":
        ours, theirs = os.pipe()
        os.close(ours)
    else:
        theirs = subprocess.PIPE if stdout is None else os.open(stdout, os.O_WRONLY)
    ran = subprocess.run(
        command,
        stdout=theirs,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
        env=env,
    )
    if theirs != subprocess.PIPE:
        os.close(theirs)
    said = Ran(ran.returncode, (ran.stdout or b"").decode(), ran.stderr.decode())
    assert "Traceback" not in said.err
    return said


def autobatcher(server: Serving | str, *arguments: object, key: str = "k", **env: str) -> Ran:
    """Run the command in this process, which takes a hundredth of the time."""
    ran = CliRunner().invoke(build_app(), list(map(str, arguments)), env={**environment(server, key), **env})
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return Ran(ran.exit_code, ran.stdout, ran.stderr)


def line(name: str, text: str = "Say it.", url: str = CHAT) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}).encode() + b"\n"


def batch_file(folder: Path, lines: Iterable[bytes], name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"".join(lines))
    return path
