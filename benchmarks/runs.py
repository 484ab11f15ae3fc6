"""Who does what, and how one of them is run."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks import environments

POLL = 0.5
"""Seconds between polls, of every contestant that polls."""

MILLION = 1_000_000

SIZES = (1_000, 10_000, 50_000)
SLOW = (2_000, 50_000)
"""Of calls that take most of their time in the SDK; more of them would only be waited for."""

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Contestant:
    """A program in `contestants/`, which is also the name of its environment.

    Attributes:
        title: what tables call it.
        program: the module.
        options: fields of its settings.
        most: calls that are enough of it, whatever they are.
    """

    title: str
    program: str
    options: tuple[tuple[str, Any], ...] = ()
    most: int = MILLION


CONTESTANTS = {
    "this": Contestant("this project", "this_project"),
    "journal": Contestant("this project, with journal", "this_project", (("journal", True),)),
    "published": Contestant("autobatcher 0.12.0", "published"),
    "inspect": Contestant("inspect-ai", "inspect_batcher"),
    "realtime": Contestant("AsyncOpenAI, realtime", "realtime", most=5_000),
    "floor": Contestant("floor", "floor"),
}


@dataclass(frozen=True)
class Measure:
    """A kind of work.

    Attributes:
        title: what a table of it is called.
        contestants: who can do it.
        sizes: how many calls to make, if nobody asks for other numbers.
        most: calls that are enough of a contestant, where that is not what is enough of it elsewhere.
        options: fields of the contestants' settings.
    """

    title: str
    contestants: tuple[str, ...]
    sizes: tuple[int, ...] = SIZES
    most: Mapping[str, int] = field(default_factory=dict)
    options: tuple[tuple[str, Any], ...] = ()

    def turns(self, asked: Iterable[int], keys: Iterable[str]) -> list[list[tuple[str, int]]]:
        """Who makes how many calls: for each size, the greatest first, what is measured in turns.

        Whoever has enough of fewer calls makes these beside the others' greatest number, once.
        """
        turns, made = [], set()
        for size in sorted(set(asked), reverse=True):
            most = {key: self.most.get(key, CONTESTANTS[key].most) for key in keys}
            turn = [(key, min(size, most[key])) for key in keys]
            turns.append([kind for kind in turn if kind not in made])
            made.update(turn)
        return [turn for turn in turns if turn]


MEASURES = {
    "create": Measure("create(), 0.5 KB", tuple(CONTESTANTS)),
    "parse": Measure(
        "parse()",
        ("this", "realtime", "floor"),
        sizes=SLOW,
        most={"realtime": 2_000},
        options=(("measure", "parse"),),
    ),
    "raw": Measure(
        "with_raw_response.create()",
        ("this", "realtime"),
        sizes=SLOW,
        most={"realtime": 2_000},
        options=(("measure", "raw"),),
    ),
    "embeddings": Measure(
        "embeddings of 1,536 floats",
        ("this", "journal", "published", "realtime", "floor"),
        sizes=SLOW,
        most=dict.fromkeys(("journal", "published", "realtime", "floor"), 2_000),
        options=(("measure", "embeddings"),),
    ),
    "large": Measure(
        "create(), bodies of 100 KB",
        tuple(CONTESTANTS),
        sizes=(1_000,),
        most=dict.fromkeys(CONTESTANTS, 1_000),
        options=(("size", 100_000),),
    ),
    "partial": Measure(
        "create(), results that show one by one during 4 s",
        ("this", "published"),
        sizes=(10_000,),
        options=(("spread", 4.0),),
    ),
}


class WrongAnswersError(Exception):
    """A contestant's answers are not all there, or not all right."""


@contextmanager
def server() -> Iterator[str]:
    """The URL of a new server."""
    command = [environments.python_of("server"), "-m", "server"]
    process = subprocess.Popen(
        command,
        cwd=environments.HERE,
        env=environments.clean(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait()


def perform(
    url: str, measure: str, key: str, calls: int, **options: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Let a contestant make its calls; what it and the server say of them.

    Raises:
        WrongAnswersError: an answer is missing or wrong, or the server was asked for more or fewer.
        subprocess.CalledProcessError: the contestant failed.
    """
    contestant = CONTESTANTS[key]
    settings = {"url": url, "calls": calls, "poll": POLL}
    settings |= dict(MEASURES[measure].options) | dict(contestant.options) | options
    done = subprocess.run(
        [
            environments.python_of(contestant.program),
            "-m",
            f"contestants.{contestant.program}",
            json.dumps(settings),
        ],
        cwd=environments.HERE,
        env=environments.clean(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seen = json.loads(done.stdout.splitlines()[-1])
    with _DIRECT.open(f"{url}/bench/stats") as response:
        stats = json.load(response)
    if not seen["right"] == stats["answered"] == calls:
        raise WrongAnswersError(
            f"{contestant.title}: of {calls} answers {seen['right']} are right; the server made {stats['answered']}"
        )
    return seen, stats


def run(url: str, measure: str, key: str, calls: int) -> dict[str, Any]:
    """Let a contestant make its calls; what the table is made of."""
    seen, stats = perform(url, measure, key, calls)
    return {
        "measure": measure,
        "contestant": key,
        "calls": calls,
        "cpu_us": seen["cpu"] / calls * 1e6,
        "memory_kb": seen["memory"] / calls / 1e3,
        "peak_mb": (seen["idle"] + seen["memory"]) / 1e6,
        "stall_ms": seen["stall"] * 1e3,
        "total_s": seen["last"] - seen["started"],
        "wait_s": seen["last"] - stats["last_result"],
        "first_wait_s": seen["first"] - stats["first_result"],
        "http_calls": stats["calls"],
        "sent_kb": stats["bytes_in"] / calls / 1e3,
        "received_kb": stats["bytes_out"] / calls / 1e3,
        "most_downloads": stats["downloads"],
        "packages": seen["packages"],
    }


_IMPORT = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"


def import_seconds(module: str) -> float:
    """CPU time of an import in a new process of this project's environment."""
    command = [environments.python_of("this_project"), "-c", _IMPORT.format(module)]
    output = subprocess.run(
        command,
        env=environments.clean(),
        cwd=environments.HERE,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(output.stdout)
