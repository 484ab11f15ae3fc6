"""Many callers, and a server that is stopped in the middle."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autobatcher import BatchOpenAI
from autobatcher.local import LocalConfig, serve_in_thread


def test_twenty_thousand_concurrent_calls_complete() -> None:
    async def work(base_url: str) -> None:
        async with BatchOpenAI(
            api_key="k",
            base_url=base_url,
            batch_size=5000,
            batch_window_seconds=0.5,
            poll_interval_seconds=0.2,
        ) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="m", messages=[{"role": "user", "content": f"<{n}>"}]
                    )
                    for n in range(20_000)
                )
            )
            for n, answer in enumerate(answers):
                assert f"<{n}>" in str(answer.choices[0].message.content)
            assert len([batch async for batch in client.batches.list()]) == 4

    with serve_in_thread(LocalConfig()) as server:
        asyncio.run(work(server.base_url))


@pytest.mark.parametrize("partial", [False, True], ids=["openai-like", "partial-results"])
def test_stopping_the_server_in_the_middle_of_a_batch_loses_nothing(tmp_path: Path, *, partial: bool) -> None:
    def start(port: int) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "autobatcher", "local", "--db", str(tmp_path / "batches.db")]
        command += ["--port", str(port), "--latency", "0.2", "--concurrency", "4"]
        command += ["--partial-results"] if partial else []
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        line = server.stderr.readline()
        return server, next(word for word in line.split() if word.startswith("http://"))

    def stop(server: subprocess.Popen[str], how: int) -> None:
        server.send_signal(how)
        server.wait(timeout=30)
        assert server.stderr is not None
        server.stderr.close()

    async def work() -> list[Any]:
        server, base_url = start(0)
        try:
            async with BatchOpenAI(
                api_key="k",
                base_url=base_url,
                batch_window_seconds=0.1,
                poll_interval_seconds=0.1,
                max_retries=8,
            ) as client:
                calls = asyncio.gather(
                    *(
                        client.chat.completions.create(
                            model="m", messages=[{"role": "user", "content": f"<{n}>"}]
                        )
                        for n in range(40)
                    )
                )
                await asyncio.sleep(1)
                done = [batch.request_counts async for batch in client.batches.list()]
                assert done[0] is not None
                assert done[0].completed < 40, "the batch must be under way when the server dies"
                stop(server, signal.SIGKILL)
                server, again = start(int(base_url.split(":")[2].split("/")[0]))
                assert again == base_url
                return list(await calls)
        finally:
            stop(server, signal.SIGTERM)

    for n, answer in enumerate(asyncio.run(work())):
        assert f"<{n}>" in answer.choices[0].message.content
