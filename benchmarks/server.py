"""The Batch API and the realtime endpoints that all contestants call: as little as they need, as cheap as it gets.

A batch's answers go straight from the uploaded file into the output file, in a thread, while the delay runs. The
server checks that each prompt is one of the benchmark's, unharmed; the callers check the answers.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import base64
import json
import math
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import orjson
from contestants import work

PIECE = 2**18

_COMPLETION = b"""{"id":"chatcmpl-%d","object":"chat.completion","created":1750000000,"model":"bench-1","choices":\
[{"index":0,"message":{"role":"assistant","content":%b,"refusal":null,"annotations":[]},"logprobs":null,\
"finish_reason":"stop"}],"usage":{"prompt_tokens":110,"completion_tokens":50,"total_tokens":160,\
"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,\
"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"service_tier":"default",\
"system_fingerprint":"fp_bench"}"""

_EMBEDDING = b"""{"object":"list","data":[{"object":"embedding","index":0,"embedding":%b}],"model":"bench-1",\
"usage":{"prompt_tokens":110,"total_tokens":110}}"""

_LINE = b"""{"id":"batch_req_%d","custom_id":%b,"response":{"status_code":200,"request_id":"req_%d","body":%b},\
"error":null}
"""


def answer(path: str, body: Mapping[str, Any]) -> bytes:
    """The JSON text of the right answer.

    Raises:
        ValueError: the prompt is not as it was made.
    """
    if path == "/v1/embeddings":
        number = work.number_of(body["input"])
        first = work.head(number)
        if body.get("encoding_format") == "base64":
            return _EMBEDDING % b'"%b%b"' % (base64.b64encode(first), work.REST_AS_BASE64)
        return _EMBEDDING % b"[%b,%b]" % (orjson.dumps(first.tolist())[1:-1], work.REST_AS_TEXT)
    number = work.number_of(body["messages"][-1]["content"])
    return _COMPLETION % (number, orjson.dumps(work.reply(number)))


@dataclass
class Stats:
    """What happened since the last reset; times as of `time.time`."""

    calls: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    answered: int = 0
    batches: int = 0
    first_result: float = math.inf
    last_result: float = 0.0


@dataclass
class Batch:
    """A batch; its results show all at once after `delay` seconds, or one by one during `spread` more."""

    id: str
    endpoint: str
    source: Path
    delay: float
    spread: float
    created: float = field(default_factory=time.time)
    begins: float = math.inf
    """When the first result shows."""
    ends: array.array[int] = field(default_factory=lambda: array.array("Q", [0]))
    """Where the lines of the output end, after a zero."""
    served: list[tuple[int, int]] = field(default_factory=list)
    """The first line of each download, and the one after its last."""
    failure: str = ""

    @property
    def output(self) -> Path:
        return self.source.with_suffix(".out")

    def make_output(self) -> None:
        """Answer every line of the upload. Its multipart envelope is still around it: no line of that has a brace."""
        with self.source.open("rb") as lines, self.output.open("wb") as output:
            for line in lines:
                if line.startswith(b"{"):
                    number = len(self.ends)
                    asked = orjson.loads(line)
                    body = answer(asked["url"], asked["body"])
                    text = _LINE % (number, orjson.dumps(asked["custom_id"]), number, body)
                    self.ends.append(self.ends[-1] + output.write(text))

    def shown(self, now: float) -> int:
        """How many results can be downloaded."""
        lines = len(self.ends) - 1
        if now < self.begins:
            return 0
        if now >= self.begins + self.spread:
            return lines
        return min(lines, 1 + int(lines * (now - self.begins) / self.spread))

    def most_downloads(self) -> int:
        """How often the line was sent that was sent most often; it is the first of some download."""
        return max(
            (sum(first <= line < end for first, end in self.served) for line, _ in self.served), default=0
        )

    def description(self) -> dict[str, Any]:
        """As in the API."""
        now = time.time()
        shown, done = self.shown(now), now >= self.begins + self.spread
        status = "completed" if done else "in_progress"
        errors = None
        if self.failure:
            status = "failed"
            errors = {"object": "list", "data": [{"code": "invalid_line", "message": self.failure}]}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "input_file_id": self.source.name,
            "output_file_id": self.output.name if done or (self.spread and shown) else None,
            "completion_window": "24h",
            "created_at": int(self.created),
            "status": status,
            "errors": errors,
            "request_counts": {"total": len(self.ends) - 1, "completed": shown, "failed": 0},
        }


class Call(NamedTuple):
    """An HTTP request; `body` has to be read to its end before the next one on the connection."""

    method: str
    path: str
    query: dict[str, str]
    body: AsyncIterator[bytes]

    async def json(self) -> Any:
        return orjson.loads(b"".join([piece async for piece in self.body]) or b"{}")


class Server:
    """All of the server's state."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stats = Stats()
        self.batches: dict[str, Batch] = {}
        self.delay, self.spread = 0.0, 0.0
        self.released = asyncio.Event()
        self.files = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until the client closes it."""
        try:
            while True:
                call = await self.read(reader)
                try:
                    await self.serve(call, writer)
                except (KeyError, ValueError) as error:
                    problem = {"error": {"message": repr(error), "type": "invalid_request_error"}}
                    self.send(writer, orjson.dumps(problem), HTTPStatus.BAD_REQUEST)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def read(self, reader: asyncio.StreamReader) -> Call:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *fields = head.decode("latin-1").rstrip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {}
        for line in fields:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        url = urlsplit(target)
        if not url.path.startswith("/bench/"):
            self.stats.calls += 1
            self.stats.bytes_in += len(head)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()} if url.query else {}
        return Call(method, url.path, query, self.body(reader, headers))

    async def body(self, reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        if headers.get("transfer-encoding") == "chunked":
            while length := int(await reader.readline(), 16):
                yield await self.counted(reader, length)
                await reader.readline()
            await reader.readline()
            return
        left = int(headers.get("content-length", "0"))
        while left:
            length = min(left, PIECE)
            yield await self.counted(reader, length)
            left -= length

    async def counted(self, reader: asyncio.StreamReader, length: int) -> bytes:
        self.stats.bytes_in += length
        return await reader.readexactly(length)

    def send(
        self, writer: asyncio.StreamWriter, body: bytes, status: HTTPStatus = HTTPStatus.OK, more: int = 0
    ) -> None:
        """Send an answer, of which `more` bytes follow."""
        head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/json\r\n"
        text = f"{head}content-length: {len(body) + more}\r\n\r\n".encode() + body
        self.stats.bytes_out += len(text) + more
        writer.write(text)

    async def serve(self, call: Call, writer: asyncio.StreamWriter) -> None:
        match call.method, call.path.strip("/").split("/"):
            case "POST", ["v1", "chat", "completions"] | ["v1", "embeddings"]:
                self.send(writer, answer(call.path, await call.json()))
                self.note(1, time.time(), time.time())
            case "POST", ["v1", "files"]:
                self.send(writer, orjson.dumps(await self.upload(call)))
            case "POST", ["v1", "batches"]:
                self.send(writer, orjson.dumps(self.create(await call.json())))
            case "GET", ["v1", "batches"]:
                listed = [batch.description() for batch in self.batches.values()]
                self.send(writer, orjson.dumps({"object": "list", "data": listed, "has_more": False}))
            case "GET", ["v1", "batches", batch_id]:
                self.send(writer, orjson.dumps(self.batches[batch_id].description()))
            case "GET", ["v1", "files", name, "content"]:
                await self.download(name, int(call.query.get("skip", call.query.get("offset", 0))), writer)
            case "POST", ["bench", "reset"]:
                self.reset(**await call.json())
                self.send(writer, b"{}")
            case "POST", ["bench", "release"]:
                await call.json()
                self.released.set()
                self.send(writer, b"{}")
            case "GET", ["bench", "stats"]:
                downloads = max((batch.most_downloads() for batch in self.batches.values()), default=0)
                self.send(writer, json.dumps({**vars(self.stats), "downloads": downloads}).encode())
            case _:
                await call.json()
                self.send(writer, b'{"error":{"message":"no such path"}}', HTTPStatus.NOT_FOUND)

    def note(self, answered: int, first: float, last: float) -> None:
        self.stats.answered += answered
        self.stats.first_result = min(self.stats.first_result, first)
        self.stats.last_result = max(self.stats.last_result, last)

    def reset(self, delay: float, spread: float) -> None:
        """Begin anew, when nothing is under way: no batch shows results before the release."""
        for path in self.directory.iterdir():
            path.unlink()
        self.batches.clear()
        self.stats = Stats()
        self.released.clear()
        self.delay, self.spread = delay, spread

    async def upload(self, call: Call) -> dict[str, Any]:
        self.files += 1
        path = self.directory / f"file-{self.files}"
        size = 0
        with path.open("wb") as file:
            async for piece in call.body:
                size += file.write(piece)
        return {
            "id": path.name,
            "object": "file",
            "bytes": size,
            "created_at": int(time.time()),
            "filename": "batch.jsonl",
            "purpose": "batch",
            "status": "processed",
        }

    def create(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        name = asked["input_file_id"]
        batch = Batch(f"batch_{name}", asked["endpoint"], self.directory / name, self.delay, self.spread)
        self.batches[batch.id] = batch
        self.stats.batches += 1
        task = asyncio.create_task(self.run(batch))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return batch.description()

    async def run(self, batch: Batch) -> None:
        try:
            await asyncio.to_thread(batch.make_output)
        except (KeyError, TypeError, ValueError) as error:
            batch.failure = repr(error)
            return
        await self.released.wait()
        batch.begins = max(batch.created + batch.delay, time.time())
        self.note(len(batch.ends) - 1, batch.begins, batch.begins + batch.spread)

    async def download(self, name: str, skip: int, writer: asyncio.StreamWriter) -> None:
        batch = self.batches[f"batch_{name.removesuffix('.out')}"]
        shown = batch.shown(time.time())
        skip = min(skip, shown)
        start, end = batch.ends[skip], batch.ends[shown]
        head = "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
        if batch.spread:
            incomplete = str(shown < len(batch.ends) - 1).lower()
            head += f"x-incomplete: {incomplete}\r\nx-last-line: {shown}\r\n"
        head += f"content-length: {end - start}\r\n\r\n"
        writer.write(head.encode())
        self.stats.bytes_out += len(head) + end - start
        await writer.drain()
        if end > start:
            batch.served.append((skip, shown))
            with batch.output.open("rb") as file:
                await asyncio.get_running_loop().sendfile(writer.transport, file, start, end - start)


async def main(port: int) -> None:
    directory = Path(tempfile.mkdtemp(prefix="autobatcher-bench-"))
    try:
        server = Server(directory)
        listener = await asyncio.start_server(
            server.connection, "127.0.0.1", port, limit=2 * PIECE, backlog=4096
        )
        print(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone, or closes it
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, default=0)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    asyncio.run(main(arguments.parse_args().port))
