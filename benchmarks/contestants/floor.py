"""The least that any client must do: no retries, no errors, no limits; the work itself, with the quickest tools.

It makes lines in the callers' tasks, uploads, polls, streams the results to their futures, and validates each answer
in its caller's task.
"""

from __future__ import annotations

import array
import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
import orjson
from contestants import harness, work
from contestants.sdk import Answer, messages
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ParsedChatCompletion

_PIECE = 100
"""Lines that go up in one write."""

_OPENING = b"""--bench\r
Content-Disposition: form-data; name="purpose"\r
\r
batch\r
--bench\r
Content-Disposition: form-data; name="file"; filename="batch.jsonl"\r
\r
"""
_CLOSING = b"\r\n--bench--\r\n"

_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "Answer", "strict": True, "schema": Answer.model_json_schema()},
}


class Response(msgspec.Struct):
    body: msgspec.Raw


class Result(msgspec.Struct):
    custom_id: str
    response: Response


class Floor:
    def __init__(self, http: httpx2.AsyncClient, settings: harness.Settings, path: str) -> None:
        self._http = http
        self._settings = settings
        self._path = path.encode()
        self._lines: list[bytes] = []
        self._futures: list[asyncio.Future[bytes] | None] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._decoder = msgspec.json.Decoder(Result)

    async def ask(self, fields: dict[str, Any], validated: Callable[[bytes], Any]) -> Any:
        body = orjson.dumps(fields)
        del fields
        future = self._add(body)
        del body
        return validated(await future)

    def _add(self, body: bytes) -> asyncio.Future[bytes]:
        future = asyncio.get_running_loop().create_future()
        custom_id = len(self._futures)
        self._lines.append(
            b'{"custom_id":"%d","method":"POST","url":"%b","body":%b}\n' % (custom_id, self._path, body)
        )
        self._futures.append(future)
        if len(self._lines) == self._settings.batch_size:
            self._tasks.append(asyncio.create_task(self._batch(self._lines, self._futures)))
            self._lines, self._futures = [], []
        return future

    async def _batch(self, lines: list[bytes], futures: list[asyncio.Future[bytes] | None]) -> None:
        file = await self._post(
            "files",
            _multipart(lines),
            {
                "content-type": "multipart/form-data; boundary=bench",
                "content-length": str(sum(map(len, lines)) + len(_OPENING) + len(_CLOSING)),
            },
        )
        lines.clear()
        asked = {
            "input_file_id": file["id"],
            "endpoint": self._path.decode(),
            "completion_window": "24h",
        }
        batch = await self._post("batches", orjson.dumps(asked), {"content-type": "application/json"})
        while batch["status"] != "completed":
            await asyncio.sleep(self._settings.poll)
            batch = orjson.loads((await self._http.get(f"batches/{batch['id']}")).content)
        rest = b""
        async with self._http.stream("GET", f"files/{batch['output_file_id']}/content") as response:
            async for piece in response.aiter_raw():
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole:
                    result = self._decoder.decode(line)
                    place = int(result.custom_id)
                    future, futures[place] = futures[place], None  # an answer is its caller's from then on
                    if future is not None:
                        future.set_result(bytes(result.response.body))

    async def _post(self, path: str, content: Any, headers: dict[str, str]) -> Any:
        response = await self._http.post(path, content=content, headers=headers)
        return orjson.loads(response.raise_for_status().content)


async def _multipart(lines: list[bytes]) -> AsyncIterator[bytes]:
    yield _OPENING
    for start in range(0, len(lines), _PIECE):
        yield b"".join(lines[start : start + _PIECE])
    yield _CLOSING


def _parsed(body: bytes) -> ParsedChatCompletion[Answer]:
    completion = ParsedChatCompletion[Answer].model_validate_json(body)
    message = completion.choices[0].message
    message.parsed = Answer.model_validate_json(message.content or "")
    return completion


def _embedding(body: bytes) -> CreateEmbeddingResponse:
    fields = orjson.loads(body)
    for item in fields["data"]:
        item["embedding"] = array.array("f", base64.b64decode(item["embedding"])).tolist()
    return CreateEmbeddingResponse.model_validate(fields)


def _ask_of(http: httpx2.AsyncClient, settings: harness.Settings) -> harness.Ask:
    size = settings.size
    if settings.measure == "embeddings":
        ask = Floor(http, settings, "/v1/embeddings").ask
        return lambda n: ask(
            {"model": work.MODEL, "input": work.prompt(n, size), "encoding_format": "base64"}, _embedding
        )
    ask = Floor(http, settings, "/v1/chat/completions").ask
    if settings.measure == "parse":
        return lambda n: ask(
            {"model": work.MODEL, "messages": messages(n, size), "response_format": _FORMAT}, _parsed
        )
    validated = ChatCompletion.model_validate_json
    return lambda n: ask({"model": work.MODEL, "messages": messages(n, size)}, validated)


@asynccontextmanager
async def opened(settings: harness.Settings) -> AsyncIterator[harness.Ask]:
    async with httpx2.AsyncClient(base_url=f"{settings.url}/v1/", timeout=600.0) as http:
        yield _ask_of(http, settings)


if __name__ == "__main__":
    harness.main(opened)
