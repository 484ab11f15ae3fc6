"""The package autobatcher 0.12.0, in its batch mode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from contestants import harness
from contestants.sdk import ask_of
from loguru import logger

from autobatcher import AsyncOpenAI


@asynccontextmanager
async def opened(settings: harness.Settings) -> AsyncIterator[harness.Ask]:
    logger.remove()
    options: Any = {"batch_window_seconds": 60.0, "completion_window": "24h"}
    client = AsyncOpenAI(
        api_key="bench",
        base_url=f"{settings.url}/v1",
        batch_size=settings.batch_size,
        poll_interval_seconds=settings.poll,
        **options,
    )
    yield ask_of(client, settings)
    await client.close()


if __name__ == "__main__":
    harness.main(opened)
