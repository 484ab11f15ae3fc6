"""Fill a journal with answers, and run the program whose answers they are: how many a second, and how much memory.

    python -m tests.journal.replay --answers 1000000

Both are done in processes of their own. The second has no network: nothing listens where its client is sent to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from autobatcher import BatchOpenAI
from autobatcher.core.outcomes import Answer
from autobatcher.journal import JournalledRequest, SqliteJournal
from autobatcher.runtime.numbers import Keys

URL = "http://127.0.0.1:9/v1/"
BATCH = 50_000
GROUP = 300
"""Answers that come together, as in 256 KB of a result file."""

TOGETHER = 10_000
"""Calls at a time."""


def fields(number: int) -> dict[str, Any]:
    """A call of about 0.5 KB."""
    return {"model": "m", "messages": [{"role": "user", "content": f"<{number}> {'x' * 380}"}]}


def answer(number: int) -> bytes:
    """Its answer, of about 0.6 KB."""
    message = {"role": "assistant", "content": f"<{number}> {'y' * 330}", "refusal": None}
    return orjson.dumps(
        {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 1_750_000_000,
            "model": "m",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 90, "total_tokens": 190},
        }
    )


def fill(path: Path, answers: int) -> None:
    """A journal as a run leaves it that has come to its end."""
    journal, keys = SqliteJournal(path), Keys(URL)
    for first in range(0, answers, BATCH):
        requests = [
            JournalledRequest(keys.of("/v1/chat/completions", body), 0, f"c-{number}", body)
            for number in range(first, min(first + BATCH, answers))
            for body in (orjson.dumps(fields(number)),)
        ]
        batch = journal.begin(
            URL, "/v1/chat/completions", "m", requests, sum(len(request.body) for request in requests)
        )
        for start in range(0, len(requests), GROUP):
            journal.answered(
                (request.key, 0, Answer(200, "r", answer(first + number)))
                for number, request in enumerate(requests[start : start + GROUP], start)
            )
        journal.ended(batch)
    journal.close()


async def replay(path: Path, answers: int) -> dict[str, float]:
    """Make the calls; seconds, answers that were right, and peaks of memory in MB after a tenth and at the end."""

    async def ask(client: BatchOpenAI, number: int) -> bool:
        found = await client.chat.completions.create(**fields(number))
        return (found.choices[0].message.content or "").startswith(f"<{number}> ")

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    right, early = 0, 0.0
    started = time.perf_counter()
    async with BatchOpenAI(api_key="k", base_url=URL, journal=path) as client:
        first_call, used = time.perf_counter(), time.process_time()
        for first in range(0, answers, TOGETHER):
            numbers = range(first, min(first + TOGETHER, answers))
            right += sum(await asyncio.gather(*(ask(client, number) for number in numbers)))
            if not early and numbers.stop >= answers // 10:
                early = peak()
    ended = time.perf_counter()
    return {
        "right": right,
        "seconds": ended - first_call,
        "opening": first_call - started,
        "cpu": time.process_time() - used,
        "early_mb": early,
        "peak_mb": peak(),
    }


def measured(answers: int) -> dict[str, float]:
    """Fill a journal of so many answers and replay it, in two processes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run.db"
        for step in ("fill", "replay"):
            command = [sys.executable, "-m", "tests.journal.replay", step, str(path), str(answers)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        seen: dict[str, float] = json.loads(done.stdout)
        return seen


def lines(answers: int, seen: dict[str, float]) -> Iterator[str]:
    """What was seen, for people."""
    yield f"{answers:,} answers, {seen['right']:,.0f} of them right"
    yield f"{answers / seen['seconds']:,.0f} a second ({answers / seen['cpu']:,.0f} for each second of CPU)"
    yield f"{seen['opening']:.1f} s to open the journal before that"
    yield f"memory at most {seen['early_mb']:,.0f} MB after a tenth of them, {seen['peak_mb']:,.0f} MB at the end"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["fill", path, answers]:
            fill(Path(path), int(answers))
        case ["replay", path, answers]:
            print(json.dumps(asyncio.run(replay(Path(path), int(answers)))))  # noqa: T201 -- for the parent
        case _:
            parser = argparse.ArgumentParser(
                description=__doc__, formatter_class=argparse.RawTextHelpFormatter
            )
            parser.add_argument("--answers", type=int, default=1_000_000)
            asked = parser.parse_args().answers
            for line in lines(asked, measured(asked)):
                print(line)  # noqa: T201 -- that is the command
