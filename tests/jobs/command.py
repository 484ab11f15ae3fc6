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


def process(server: Serving | str, *arguments: object, key: str = "k") -> Ran:
    """Run the command as a process of its own."""
    given = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "DOUBLEWORD_"))
    }
    ran = subprocess.run(
        [sys.executable, "-m", "autobatcher", *map(str, arguments)],
        capture_output=True,
        check=False,
        timeout=60,
        env={**given, **environment(server, key)},
    )
    said = Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())
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
