"""What all contestants share: the same tasks, the same checks, the same clocks. Nothing but the standard library."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import importlib.metadata
import json
import math
import resource
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from contestants import sampling, work

WARM_UP = 16
"""Calls that are made before the clocks run: what is imported and set up at first use is no cost of a request."""

SLICE = 100
"""Tasks that are made at a time. All of them at once would hold up the event loop whatever the client does."""

BEAT = 0.005
"""Seconds between heartbeats."""

MOST_LINES = 50_000
"""Of one batch, as OpenAI has it."""

PACKAGES = ("autobatcher", "inspect-ai", "openai", "httpx", "httpx2", "msgspec", "orjson", "pydantic")


@dataclass(frozen=True)
class Settings:
    """What a contestant is asked to do.

    Attributes:
        url: of the server.
        measure: which calls to make: create, parse, raw, embeddings.
        calls: how many, all at the same time.
        size: of a prompt, in characters.
        poll: seconds between polls.
        delay, spread: of the server: when results show after a batch was made, and over how long a time.
        journal: whether this project's client keeps one.
        profile: whether to sample where the time goes, which takes some itself.
    """

    url: str
    measure: str = "create"
    calls: int = 1000
    size: int = 380
    poll: float = 0.5
    delay: float = 0.75
    spread: float = 0.0
    journal: bool = False
    profile: bool = False

    @property
    def batch_size(self) -> int:
        """So that the last call closes the last batch, and nobody waits for a window's end."""
        return min(self.calls, MOST_LINES)


Ask = Callable[[int], Awaitable[Any]]
Opened = Callable[[Settings], AbstractAsyncContextManager[Ask]]


class Callers:
    """The tasks that each make one call and check its answer."""

    def __init__(self, settings: Settings, ask: Ask) -> None:
        self._ask = ask
        self._is_right: Callable[[Any, int], bool] = CHECKS[settings.measure]
        self._calls = settings.calls
        self._release = partial(_post, f"{settings.url}/bench/release")
        self.right = 0
        self.first = math.inf
        self.last = 0.0

    async def _call(self, number: int) -> None:
        answer = await self._ask(number)
        self.last = time.time()
        self.first = min(self.first, self.last)
        self.right += self._is_right(answer, number)

    async def run(self) -> None:
        """Make all calls; no batch shows results before that, so that all of them wait at the same time."""
        tasks: list[asyncio.Task[None]] = []
        for start in range(0, self._calls, SLICE):
            numbers = range(start, min(start + SLICE, self._calls))
            tasks.extend(asyncio.create_task(self._call(number)) for number in numbers)
            await asyncio.sleep(0)
        await asyncio.to_thread(self._release)
        for task in tasks:
            await task


def _is_completion(answer: Any, number: int) -> bool:
    right: bool = answer.choices[0].message.content == work.reply(number)
    return right


def _is_parsed(answer: Any, number: int) -> bool:
    right: bool = answer.choices[0].message.parsed.number == number
    return right


def _is_raw(answer: Any, number: int) -> bool:
    return _is_completion(answer.parse(), number)


def _is_embedding(answer: Any, number: int) -> bool:
    """Every hundredth is compared whole; the others where they differ: comparing takes a third of the floor's time."""
    vector = answer.data[0].embedding
    head = work.head(number).tolist()
    right: bool = len(vector) == work.DIMENSIONS and vector[: len(head)] == head
    return right and (number % 100 != 0 or vector[len(head) :] == work.REST)


CHECKS = {"create": _is_completion, "parse": _is_parsed, "raw": _is_raw, "embeddings": _is_embedding}


class Heartbeat:
    """Finds the longest time for which the event loop did nothing else."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.worst = 0.0
        self._due = self._loop.time()
        self._beat()

    def _beat(self) -> None:
        self._look()
        self._due = self._loop.time() + BEAT
        self._handle = self._loop.call_at(self._due, self._beat)

    def _look(self) -> None:
        self.worst = max(self.worst, self._loop.time() - self._due)

    def stop(self) -> None:
        self._look()
        self._handle.cancel()


class Memory:
    """The peak of resident memory over what there is now."""

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(
            AttributeError
        ):  # glibc alone has it; what is free already would hide what is taken
            ctypes.CDLL(None).malloc_trim(0)
        with contextlib.suppress(OSError):  # where the peak cannot be reset, it is that since the start
            Path("/proc/self/clear_refs").write_text("5")
        self.idle = _status("VmRSS")

    def peak(self) -> int:
        """In bytes."""
        return _status("VmHWM") - self.idle


def _status(name: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # no Linux: only the peak is to be had, whose growth is then too little
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _post(url: str, **fields: float) -> None:
    request = urllib.request.Request(url, json.dumps(fields).encode(), method="POST")
    with urllib.request.urlopen(request) as response:
        response.read()


async def _measured(settings: Settings, opened: Opened) -> dict[str, Any]:
    warm_up = replace(settings, calls=min(WARM_UP, settings.calls), poll=0.05)
    _post(f"{settings.url}/bench/reset", delay=0.0, spread=0.0)
    async with opened(warm_up) as ask:
        await Callers(warm_up, ask).run()
    async with opened(settings) as ask:
        callers = Callers(settings, ask)
        _post(f"{settings.url}/bench/reset", delay=settings.delay, spread=settings.spread)
        memory = Memory()
        heartbeat = Heartbeat()
        started, cpu = time.time(), time.process_time()
        sampler = sampling.Sampler()
        with sampler if settings.profile else contextlib.nullcontext():
            await callers.run()
        cpu = time.process_time() - cpu
        heartbeat.stop()
        peak = memory.peak()
    return {
        "right": callers.right,
        "cpu": cpu,
        "idle": memory.idle,
        "memory": peak,
        "stall": heartbeat.worst,
        "started": started,
        "first": callers.first,
        "last": callers.last,
        "profile": sampler.seconds,
    }


def _versions() -> dict[str, str]:
    """Of what is installed and matters."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def main(opened: Opened) -> None:
    """Run a contestant, whose `opened` gives what makes call number n; print its measures as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=json.loads, help="the fields of Settings, as a JSON object")
    given = parser.parse_args().settings
    settings = Settings(
        **{field.name: given[field.name] for field in fields(Settings) if field.name in given}
    )
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    measures = asyncio.run(_measured(settings, opened))
    measures["packages"] = _versions()
    print(json.dumps(measures))
