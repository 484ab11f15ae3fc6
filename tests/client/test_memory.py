"""Large requests that wait, in a process of their own: they are on disk, not in memory, and no file is held whole."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

MEGABYTE = 10**6
MOST = 400 * MEGABYTE

SCRIPT = r"""
import asyncio, json, re, resource, sys
import anyio
from autobatcher import BatchOpenAI
from autobatcher._http import httpx

backend, requests, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
CUSTOM_ID = re.compile(rb'\{"custom_id":"([^"]{1,100})"')
OVERLAP = 200
facts = {"largest_piece": 0, "bytes": 0, "files": 0, "answers": 0}
files = {}


def answer(custom_id):
    message = {"role": "assistant", "content": custom_id}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return json.dumps({"custom_id": custom_id, "response": response}).encode() + b"\n"


class Transport(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        parts = request.url.path.strip("/").split("/")[1:]
        if parts == ["files"]:
            file_id = f"file-{len(files)}"
            found = files[file_id] = []
            rest = b""
            async for piece in request.stream:
                facts["largest_piece"] = max(facts["largest_piece"], len(piece))
                facts["bytes"] += len(piece)
                text = rest + piece
                end = 0
                for match in CUSTOM_ID.finditer(text):
                    found.append(match[1].decode())
                    end = match.end()
                rest = text[max(end, len(text) - OVERLAP):]
            facts["files"] += 1
            return httpx.Response(200, json={"id": file_id, "object": "file"})
        if parts[0] == "models":
            return httpx.Response(200, json={"object": "list", "data": []})
        if parts[0] == "files":
            return httpx.Response(200, content=b"".join(map(answer, files[parts[1]])))
        file_id = json.loads(await request.aread())["input_file_id"] if parts == ["batches"] else parts[1]
        status = "in_progress"
        if parts != ["batches"] and sum(map(len, files.values())) == requests:  # all wait until all are there
            status = "completed"
        batch = {"id": file_id, "object": "batch", "status": status, "input_file_id": file_id}
        return httpx.Response(200, json={**batch, "output_file_id": file_id if status == "completed" else None})


def message(n):
    return [{"role": "user", "content": f"{n:08}" * (size // 8)}]


async def main():
    client = BatchOpenAI(
        api_key="k",
        base_url="http://local/v1",
        http_client=httpx.AsyncClient(transport=Transport()),
        poll_interval_seconds=0.2,
    )
    async with client:
        if backend == "asyncio":
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="m", messages=message(n)) for n in range(requests))
            )
            facts["answers"] = len({answer.choices[0].message.content for answer in answers})
        else:
            said = set()

            async def one(n):
                answer = await client.chat.completions.create(model="m", messages=message(n))
                said.add(answer.choices[0].message.content)

            async with anyio.create_task_group() as tasks:
                for n in range(requests):
                    tasks.start_soon(one, n)
            facts["answers"] = len(said)


def peak():
    # What getrusage says of a process may be its parent's, from before it was another program.
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


anyio.run(main, backend=backend)
print(json.dumps({**facts, "peak": peak()}))
"""


def run(backend: str, requests: int, size: int) -> Any:
    command = [sys.executable, "-c", SCRIPT, backend, str(requests), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(("backend", "requests"), [("asyncio", 2_000), ("trio", 700)])
def test_waiting_requests_of_a_megabyte_stay_below_400_megabytes(backend: str, requests: int) -> None:
    facts = run(backend, requests, MEGABYTE)
    assert facts["answers"] == requests
    assert facts["bytes"] > requests * MEGABYTE  # each was sent as it was
    assert facts["files"] >= requests // 200
    assert facts["peak"] < MOST, f"{facts['peak'] / MEGABYTE:.0f} MB"
    assert facts["largest_piece"] <= MEGABYTE, "an upload is to go out piece by piece"
    print(f"{facts['peak'] / MEGABYTE:.0f} MB, pieces of {facts['largest_piece']} bytes")  # noqa: T201 -- with -s
