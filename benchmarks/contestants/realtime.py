"""The SDK's own client: one HTTP request for each call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from contestants import harness
from contestants.sdk import ask_of
from openai import AsyncOpenAI


@asynccontextmanager
async def opened(settings: harness.Settings) -> AsyncIterator[harness.Ask]:
    async with AsyncOpenAI(api_key="bench", base_url=f"{settings.url}/v1") as client:
        yield ask_of(client, settings)


if __name__ == "__main__":
    harness.main(opened)
