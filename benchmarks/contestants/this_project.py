"""This checkout's client."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from contestants import harness
from contestants.sdk import ask_of

from autobatcher import AsyncOpenAI


@asynccontextmanager
async def opened(settings: harness.Settings) -> AsyncIterator[harness.Ask]:
    with tempfile.TemporaryDirectory(prefix="autobatcher-bench-") as directory:
        async with AsyncOpenAI(
            api_key="bench",
            base_url=f"{settings.url}/v1",
            batch_size=settings.batch_size,
            batch_window_seconds=60.0,
            poll_interval_seconds=settings.poll,
            journal=str(Path(directory) / "run.db") if settings.journal else None,
        ) as client:
            yield ask_of(client, settings)


if __name__ == "__main__":
    harness.main(opened)
