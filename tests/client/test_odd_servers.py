"""Servers that answer the Files and Batches calls with what nobody asked for, and copies of a client."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import anyio
import openai
import pytest

from autobatcher import BatchOpenAI
from autobatcher._http import httpx

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


Odd = Callable[[httpx.Request, int], httpx.Response | None]


class Server:
    """A Batch API that completes at once; `odd` may answer the n-th call of a kind in its place."""

    def __init__(self, odd: Odd = lambda _request, _count: None) -> None:
        self.odd = odd
        self.files: list[list[dict[str, Any]]] = []
        self.batches: list[str] = []
        self.calls: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(request)
        alike = [
            call for call in self.calls if call.method == request.method and call.url.path == request.url.path
        ]
        answer = self.odd(request, len(alike))
        if answer is not None:
            return answer
        parts = request.url.path.strip("/").split("/")[1:]
        if parts == ["files"]:
            lines = [
                json.loads(line) for line in request.content.split(b"\n") if line.startswith(b'{"custom_id')
            ]
            self.files.append(lines)
            name = f"file-{len(self.files) - 1}"
            file = {
                "id": name,
                "object": "file",
                "bytes": 1,
                "created_at": 1,
                "filename": "x",
                "purpose": "batch",
            }
            return httpx.Response(200, json=file)
        if parts == ["batches"] and request.method == "GET":
            listed = [_batch(number) for number in reversed(self.batches)]
            return httpx.Response(200, json={"object": "list", "data": listed, "has_more": False})
        if parts == ["batches"]:
            self.batches.append(json.loads(request.content)["input_file_id"][5:])
            return httpx.Response(200, json=_batch(self.batches[-1]))
        if parts[0] == "batches":
            return httpx.Response(200, json=_batch(parts[1][6:]))
        lines = self.files[int(parts[1][5:])]
        return httpx.Response(200, content=b"\n".join(json.dumps(_answered(line)).encode() for line in lines))


def _batch(number: str) -> dict[str, Any]:
    file_id = f"file-{number}"
    batch = {"id": f"batch-{number}", "object": "batch", "status": "completed", "input_file_id": file_id}
    more = {"endpoint": "x", "completion_window": "24h", "created_at": 1, "output_file_id": file_id}
    return {**batch, **more}


def _answered(line: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": line["body"]["messages"][0]["content"]}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return {"custom_id": line["custom_id"], "response": {"status_code": 200, "request_id": "r", "body": body}}


def client_of(server: Server, **options: Any) -> BatchOpenAI:
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(server))
    settings = {"api_key": "k", "base_url": "http://local/v1", "batch_window_seconds": 0.01, "max_retries": 0}
    client = BatchOpenAI(**{**settings, "poll_interval_seconds": 0.01, "http_client": http_client, **options})
    client._platform = "Unknown"  # else the SDK looks it up in a thread, which takes real time
    return client


async def ask(client: openai.AsyncOpenAI, text: str, model: str = "m") -> str:
    answer = await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return str(answer.choices[0].message.content)


def page(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, text="<html>please log in</html>", headers={"content-type": "text/html"})


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
@pytest.mark.parametrize("answer", [page, lambda _: httpx.Response(200, json={})], ids=["page", "empty"])
async def test_an_odd_answer_is_looked_past_and_buys_nothing_twice(
    path: str, method: str, answer: Callable[[httpx.Request], httpx.Response]
) -> None:
    """To an upload, and to a creation (and then to the look at the list of batches that follows it)."""

    def odd(request: httpx.Request, count: int) -> httpx.Response | None:
        if request.url.path != path or count > 1 or (request.method, method) == ("GET", "POST"):
            return None
        if request.method == "POST" and path == "/v1/batches":  # it has had its effect
            server.batches.append(json.loads(request.content)["input_file_id"][5:])
        return answer(request)

    server = Server(odd)
    results: dict[str, str] = {}

    async def note(client: BatchOpenAI, model: str) -> None:
        results[model] = await ask(client, model, model)

    async with client_of(server) as client, anyio.create_task_group() as tasks:
        with anyio.fail_after(20):
            for model in "abc":
                tasks.start_soon(note, client, model)
            while len(results) < 3:  # noqa: ASYNC110 -- until all three have ended
                await anyio.sleep(0.01)
    assert results == {model: model for model in "abc"}
    assert len(server.batches) == len(set(server.batches)) == 3


@pytest.mark.parametrize(
    "answer",
    [
        page,
        lambda _: httpx.Response(200, json={}),
        lambda _: httpx.Response(200, content=b"{", headers={"content-type": "application/json"}),
    ],
    ids=["page", "empty", "cut"],
)
async def test_an_odd_poll_abandons_no_batch(answer: Callable[[httpx.Request], httpx.Response]) -> None:
    server = Server(
        lambda request, count: (
            answer(request) if request.url.path == "/v1/batches/batch-0" and count <= 2 else None
        )
    )
    async with client_of(server) as client:
        with anyio.fail_after(20):
            assert await ask(client, "hello") == "hello"


async def test_a_key_that_comes_from_a_callable() -> None:
    server, asked = Server(), 0

    async def key() -> str:
        nonlocal asked
        asked += 1
        return f"key-{asked}"

    async with client_of(server, api_key=key) as client:
        assert await ask(client, "one") == "one"
        copies = [client.with_options(timeout=9) for _ in range(3)]
        texts: list[str] = []

        async def note(copy: BatchOpenAI, text: str) -> None:
            texts.append(await ask(copy, text))

        async with anyio.create_task_group() as tasks:
            for number, copy in enumerate(copies):
                tasks.start_soon(note, copy, str(number))
    assert sorted(texts) == ["0", "1", "2"]
    assert len(server.files) == 2
    assert all(call.headers["authorization"].startswith("Bearer key-") for call in server.calls)


async def test_a_key_callable_that_fails_raises_its_own_error() -> None:
    class OddError(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(first + second)

    asked = 0

    async def key() -> str:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise OddError("a", "b")
        return "first"

    async with client_of(Server(), api_key=key) as client:
        with pytest.raises(OddError, match="ab"):
            await ask(client, "x")


async def test_a_copy_with_other_headers_is_another_sender() -> None:
    server = Server()
    async with client_of(server) as client:
        copy = client.with_options(default_headers={"x-tenant": "other"}, batch_window_seconds=0.02)
        assert await ask(copy, "hello") == "hello"
        assert {call.headers.get("x-tenant") for call in server.calls} == {"other"}
        await copy.close()
        assert await ask(client, "again") == "again"
        assert server.calls[-1].headers.get("x-tenant") is None


async def test_a_copy_with_an_http_client_of_its_own_uses_it() -> None:
    server, other = Server(), Server()
    async with client_of(server) as client:
        async with client.with_options(
            http_client=httpx.AsyncClient(transport=httpx.MockTransport(other))
        ) as copy:
            assert await ask(copy, "hello") == "hello"
        assert not server.calls
        assert other.calls
        assert await ask(client, "again") == "again"
