"""What the programs of other processes are run with: a proxy of its own process, and the documentation's snippets."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai

from autobatcher.local import Serving

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "cluster.md")
FOREIGN = ("OPENAI_", "AUTOBATCHER_", "RAY_")
KEY = "let-me-in"
"""The serve key of those proxies that have one."""

ADDRESS = re.compile(r"base_url=(\S+)")


def snippet(name: str) -> str:
    """The documentation's code block below the comment `<!-- cluster: NAME -->`, as it stands."""
    pattern = rf"^<!-- cluster: {name} -->\n```\w+\n(?P<code>.*?)^```$"
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = re.search(pattern, pages, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no page has a snippet {name}"
    return found["code"]


def environment(**more: str) -> dict[str, str]:
    """This process's variables, less those that say how servers are called."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)} | more


@dataclass(frozen=True)
class Proxy:
    """A running `autobatcher serve`.

    Attributes:
        url: what the SDK takes as its base URL.
        pid: of its process.
    """

    url: str
    pid: int

    @property
    def variables(self) -> dict[str, str]:
        """What the SDKs find it by, and that it lets them in by."""
        return {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": KEY}

    def count(self, name: str) -> float:
        """A count of its /metrics, over all labels; 0 where there is none yet."""
        url = f"{self.url.removesuffix('/v1')}/metrics"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if re.match(rf"{name}[ {{]", line))


@contextmanager
def proxy(upstream: str, **options: object) -> Iterator[Proxy]:
    """`autobatcher serve` in front of a server, as a process; `options` are its options, by their names."""
    command = [
        sys.executable,
        "-m",
        "autobatcher",
        "serve",
        "--base-url",
        upstream,
        "--api-key",
        "k",
        "--port",
        "0",
    ]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said: list[str] = []
        found = None
        for line in process.stdout:
            said.append(line)
            if found := ADDRESS.search(line):
                break
        assert found is not None, "".join(said)
        reading = threading.Thread(target=said.extend, args=(process.stdout,))
        reading.start()  # a pipe that nobody reads would hold the process up
        try:
            yield Proxy(found[1], process.pid)
            assert process.poll() is None, "".join(said)
        finally:
            process.terminate()
            process.wait()
            reading.join()
            sys.stdout.write("".join(said))  # pytest shows it with a failure


def batches(server: Serving) -> list[int]:
    """How many requests each batch has that the embedded server got."""
    with openai.OpenAI(api_key="k", base_url=server.base_url) as client:
        return [
            batch.request_counts.total for batch in client.batches.list(limit=100) if batch.request_counts
        ]


def bought(server: Serving) -> int:
    """How many lines of batches the embedded server answered, each of them once."""
    executed = server.api.executed
    assert set(executed.values()) <= {1}
    return executed.total()


PROC = Path("/proc")


def busiest(root: int) -> int:
    """Of the processes that descend from one, whichever has the most open files: connections, while calls wait."""
    parents = {}
    for path in PROC.glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parents[int(path.parent.name)] = int(
                re.findall(r"^PPid:\s(\d+)$", path.read_text(), re.MULTILINE)[0]
            )
    family = {root}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return max(family - {root}, key=open_files)


def open_files(pid: int) -> int:
    try:
        return sum(1 for _ in (PROC / str(pid) / "fd").iterdir())
    except OSError:
        return 0
