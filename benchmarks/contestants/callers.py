"""A process of callers with the SDK's own client, all of whose calls wait at the same time; no connection is shared."""

from __future__ import annotations

import asyncio
import json
import resource
import sys

import httpx2
from contestants import harness, work
from contestants.sdk import messages
from openai import AsyncOpenAI, DefaultAsyncHttpxClient


async def main(url: str, first: int, calls: int, size: int) -> int:
    """How many of the answers are right."""
    http_client = DefaultAsyncHttpxClient(limits=httpx2.Limits())
    async with AsyncOpenAI(
        api_key="bench", base_url=url, timeout=600.0, max_retries=0, http_client=http_client
    ) as client:

        async def is_right(number: int) -> bool:
            answer = await client.chat.completions.create(model=work.MODEL, messages=messages(number, size))
            return harness.CHECKS["create"](answer, number)

        tasks = []
        for start in range(first, first + calls, harness.SLICE):
            numbers = range(start, min(start + harness.SLICE, first + calls))
            tasks.extend(asyncio.create_task(is_right(number)) for number in numbers)
            await asyncio.sleep(0)
        return sum([await task for task in tasks])


if __name__ == "__main__":
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(asyncio.run(main(**json.loads(sys.argv[1]))))
