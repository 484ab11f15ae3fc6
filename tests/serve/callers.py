"""A process of callers: `callers.py URL FIRST COUNT` makes COUNT calls at once and prints how many answers are right."""

from __future__ import annotations

import asyncio
import sys

from openai import AsyncOpenAI


async def main(url: str, first: int, count: int) -> int:
    async with AsyncOpenAI(base_url=url, api_key="-", timeout=600, max_retries=2) as client:

        async def is_right(number: int) -> bool:
            answer = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": f"caller {number}"}]
            )
            return answer.choices[0].message.content == f"You said: caller {number}."

        return sum(await asyncio.gather(*map(is_right, range(first, first + count))))


if __name__ == "__main__":
    print(asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201 -- for whoever started it
