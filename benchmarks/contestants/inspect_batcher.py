"""The batch collector of inspect-ai, over the SDK's client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from contestants import harness, work
from contestants.sdk import messages
from inspect_ai.model import BatchConfig, GenerateConfig
from inspect_ai.model._providers._openai_batch import OpenAIBatcher
from inspect_ai.model._providers.util import batch_log
from inspect_ai.model._retry import batch_admin_retry_config
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion


@asynccontextmanager
async def opened(settings: harness.Settings) -> AsyncIterator[harness.Ask]:
    batch_log.set_batch_log_callback(lambda _: None)
    batch_log.set_batch_status_callback(lambda _: None)
    async with AsyncOpenAI(api_key="bench", base_url=f"{settings.url}/v1") as client:
        batcher: Any = OpenAIBatcher(
            client,
            BatchConfig(size=settings.batch_size, send_delay=60.0, tick=settings.poll),
            batch_admin_retry_config(work.MODEL, GenerateConfig(max_retries=0), lambda _: False),
            ChatCompletion,
        )
        size = settings.size
        yield lambda n: batcher.generate_for_request({"model": work.MODEL, "messages": messages(n, size)})


if __name__ == "__main__":
    harness.main(opened)
