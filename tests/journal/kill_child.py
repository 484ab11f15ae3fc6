"""The program that is killed: asks its questions through a client with a journal, and writes the answers at the end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from autobatcher import BatchOpenAI
from autobatcher.core import engine
from autobatcher.journal import SqliteJournal


def questions(count: int) -> list[tuple[str, str]]:
    """Model and prompt of each call; every sixth prompt is asked twice."""
    return [(f"m{n % 3}", f"<{n - 3 if n % 6 == 3 else n}>") for n in range(count)]


class Doomed(SqliteJournal):
    """A journal that takes its process with it so many seconds after a commit of what it was told has begun.

    It says first whether the commit is over by then.

    Args:
        count: the commit, from 1.
    """

    def __init__(self, path: str, count: int, seconds: float) -> None:
        super().__init__(path)
        self._left = count
        self._seconds = seconds
        self._writes = False
        self._db.set_trace_callback(self._begins)

    def _begins(self, statement: str) -> None:
        if statement == "COMMIT" and self._writes:
            self._left -= 1
            if self._left == 0:
                threading.Thread(target=self._die).start()  # which runs as soon as SQLite is at work
        self._writes = statement == "BEGIN IMMEDIATE" or (self._writes and statement != "COMMIT")

    def _die(self) -> None:
        time.sleep(self._seconds)
        os.write(1, b" (within)" if self._db.in_transaction else b" (just after)")
        os.kill(os.getpid(), signal.SIGKILL)


async def main(base_url: str, journal: str | SqliteJournal, count: int) -> list[str]:
    """Run to the end; the answers."""

    async def ask(model: str, prompt: str) -> str:
        answer = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}]
        )
        return f"{answer.id} {answer.choices[0].message.content}"

    async with BatchOpenAI(
        api_key="k",
        base_url=base_url,
        journal=journal,
        batch_size=7,
        batch_window_seconds=0.02,
        poll_interval_seconds=0.02,
    ) as client:
        return await asyncio.gather(*(ask(*question) for question in questions(count)))


if __name__ == "__main__":
    vars(engine)["LOOK_UP_SECONDS"] = 1.0  # the server's list does not lag, and 200 kills are to be over soon
    given = sys.argv[2] if len(sys.argv) == 5 else Doomed(sys.argv[2], int(sys.argv[5]), float(sys.argv[6]))
    answers = asyncio.run(main(sys.argv[1], given, int(sys.argv[4])))
    partial = Path(f"{sys.argv[3]}.part")
    partial.write_text(json.dumps(answers), "utf-8")
    partial.rename(sys.argv[3])
