"""The program that is killed: asks its questions through a client with a journal, and writes the answers at the end."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from autobatcher import BatchOpenAI
from autobatcher.core import engine


def questions(count: int) -> list[tuple[str, str]]:
    """Model and prompt of each call; every sixth prompt is asked twice."""
    return [(f"m{n % 3}", f"<{n - 3 if n % 6 == 3 else n}>") for n in range(count)]


async def main(base_url: str, journal: str, count: int) -> list[str]:
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
    vars(engine)["LOOK_UP_SECONDS"] = 5.0  # the server's list does not lag, and 200 kills are to be over soon
    answers = asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[4])))
    partial = Path(f"{sys.argv[3]}.part")
    partial.write_text(json.dumps(answers), "utf-8")
    partial.rename(sys.argv[3])
