"""Kill a program with SIGKILL at random moments, run it again until it ends, and count what the server executed.

    python -m tests.journal.kill --kills 200 --seed 1

The server is the embedded one, over HTTP on loopback. A kill comes after a random time, or when the server has got, or
has answered, a call of some kind, plus up to a few milliseconds, which is when the client writes its journal; or up to a
millisecond after SQLite has begun to commit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from autobatcher.local import LocalBatchAPI, LocalConfig
from tests.journal.kill_child import questions

CALLS = 60
KINDS = ("upload", "create", "poll", "download")
LATEST = 60.0
"""Seconds for one life of the program; it needs less than one when it is left alone, and 1 more to look something up."""


@dataclass(frozen=True)
class Server:
    """The embedded server, and what sees its calls."""

    api: LocalBatchAPI
    trap: Trap
    base_url: str


@contextmanager
def serving(config: LocalConfig) -> Iterator[Server]:
    """The embedded server in a thread, behind a trap."""
    api = LocalBatchAPI(config)
    trap = Trap(api.app)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(trap, http="h11", ws="none", log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield Server(api, trap, f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        finally:
            server.should_exit = True
            thread.join()


def kind_of(scope: Any) -> str:
    """Of an HTTP request."""
    parts = scope["path"].strip("/").split("/")[1:]
    match [scope["method"], *parts]:
        case ["POST", "files"]:
            return "upload"
        case ["POST", "batches"]:
            return "create"
        case ["GET", "batches", _]:
            return "poll"
        case ["GET", "files", _, "content"]:
            return "download"
    return "other"


class Trap:
    """ASGI middleware around the server: springs at the n-th call of a kind, before or after it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._kind, self._left, self._after = "", 0, False
        self.sprung = threading.Event()

    def set(self, kind: str, count: int, *, after: bool) -> None:
        """Wait for this call."""
        self.sprung.clear()
        self._kind, self._left, self._after = kind, count, after

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve, and watch."""
        hit = False
        if scope["type"] == "http" and kind_of(scope) == self._kind:
            self._left -= 1
            hit = self._left == 0
        if hit and not self._after:
            self.sprung.set()
        await self._app(scope, receive, send)
        if hit and self._after:
            self.sprung.set()


@dataclass
class Figures:
    """What was done."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    executed: int = 0


def one_run(server: Server, folder: Path, dice: random.Random, kills: int, figures: Figures) -> int:
    """Run the program to its end on a fresh journal, with up to so many kills; how many there were."""
    figures.runs += 1
    before = Counter(server.api.executed)
    journal, results = folder / f"{figures.runs}.db", folder / f"{figures.runs}.json"
    done = 0
    while not results.exists():
        command = [sys.executable, "-m", "tests.journal.kill_child", server.base_url, journal, results, CALLS]
        where = dice.choice(("time", "commit", *KINDS)) if done < kills else "never"
        if where == "commit":
            command += [dice.randint(1, 12), dice.uniform(0, 0.001)]
        with subprocess.Popen(
            [*map(str, command)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
        ) as child:
            where += wait(child, where, server, dice)
            if where.startswith(("time", *KINDS)):
                child.kill()
            said, _ = child.communicate(timeout=LATEST)
        if child.returncode == -signal.SIGKILL:
            done += 1
            figures.kills[where + said] += 1
        elif child.returncode:
            raise AssertionError(f"the program ended with {child.returncode}")
    check(results, Counter(server.api.executed) - before)
    figures.executed += CALLS
    return done


def wait(child: subprocess.Popen[str], where: str, server: Server, dice: random.Random) -> str:
    """Wait for the moment of a kill, if it is not the program's own; what there is to say of it."""
    if where == "time":
        time.sleep(dice.uniform(0.1, 2.5))
    if where not in KINDS:
        return ""
    after = dice.random() < 0.5
    server.trap.set(where, dice.randint(1, 4), after=after)
    while not server.trap.sprung.wait(0.05) and child.poll() is None:
        pass
    time.sleep(dice.choice((0, dice.uniform(0, 0.01))))
    return " (after)" if after else " (before)"


def check(results: Path, executed: Counter[str]) -> None:
    """Everybody has the right answer, and each request was bought once."""
    answers = json.loads(results.read_text("utf-8"))
    for (_, prompt), answer in zip(questions(CALLS), answers, strict=True):
        assert prompt in answer, f"{prompt} got {answer}"
    assert sum(executed.values()) == CALLS, f"{sum(executed.values())} requests executed in place of {CALLS}"
    assert set(executed.values()) == {1}


def kill(kills: int, seed: int) -> Figures:
    """Kill programs so many times."""
    dice, figures = random.Random(seed), Figures()
    while (left := kills - figures.kills.total()) > 0:
        partial = bool(figures.runs % 2)
        config = LocalConfig(latency_seconds=0.05, partial_results=partial)
        with serving(config) as server, tempfile.TemporaryDirectory() as folder:
            for _ in range(5):
                left -= one_run(server, Path(folder), dice, min(left, 8), figures)
                if left <= 0:
                    break
    return figures


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    started = time.perf_counter()
    figures = kill(given.kills, given.seed)
    seconds = time.perf_counter() - started
    lines = [f"{figures.runs} runs of {CALLS} calls, {figures.kills.total()} kills, {seconds:.0f} s"]
    lines += [f"  {where:<20}{count:>5}" for where, count in sorted(figures.kills.items())]
    lines.append(f"{figures.executed} requests, each executed once and answered rightly")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
