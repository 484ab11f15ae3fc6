"""What is passed on is passed as it is, in both directions and while it comes."""

from __future__ import annotations

import gzip
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from autobatcher._http import httpx
from autobatcher.serve import Serving
from autobatcher.serving import listen, running_in_thread, settings
from tests.serve.conftest import SOON, proxy, until
from tests.serve.raw import KEY, Raw

HEADERS = {"authorization": f"Bearer {KEY}"}


class Echo:
    """An upstream that tells what it gets, and sends what it is told to."""

    def __init__(self) -> None:
        self.parts: queue.Queue[bytes] = queue.Queue()
        self.go_on = threading.Event()
        self.gone = threading.Event()
        self.url = ""
        self.app = Starlette(
            routes=[
                Route("/api/v4/headers", self._headers, methods=["GET", "POST", "DELETE"]),
                Route("/api/v4/upload", self._upload, methods=["POST"]),
                Route("/api/v4/download", self._download),
                Route("/api/v4/zipped", self._zipped),
                Route("/api/v4/slow", self._slow),
                Route("/api/v4/moved", self._moved),
            ]
        )

    async def _headers(self, request: Request) -> Response:
        told = {
            "headers": [[name.decode(), value.decode()] for name, value in request.headers.raw],
            "body": (await request.body()).decode(),
            "query": request.url.query,
        }
        headers = {
            "x-request-id": "req_of_the_upstream",
            "openai-processing-ms": "7",
            "connection": "close, x-hop",
            "x-hop": "of this connection",
            "keep-alive": "timeout=5",
            "server": "of the upstream",
            "date": "Mon, 01 Jan 2024 00:00:00 GMT",
        }
        return JSONResponse(told, 418, headers)

    async def _upload(self, request: Request) -> Response:
        size = 0
        async for part in request.stream():
            size += len(part)
            self.parts.put(part)
        return JSONResponse({"size": size})

    async def _download(self, _request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first,"
            await anyio.to_thread.run_sync(self.go_on.wait)
            yield b"second"

        return StreamingResponse(parts(), media_type="text/csv")

    async def _zipped(self, _request: Request) -> Response:
        return Response(gzip.compress(b"unzipped"), headers={"content-encoding": "gzip"})

    async def _slow(self, request: Request) -> Response:
        self.go_on.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        raise ClientDisconnect

    async def _moved(self, _request: Request) -> Response:
        return Response(status_code=307, headers={"location": "/elsewhere"})


@contextmanager
def running(app: Any) -> Iterator[str]:
    listener, origin = listen("127.0.0.1", 0)
    config = settings(app, stop_seconds=1, date_header=False, server_header=False)
    with listener, running_in_thread(uvicorn.Server(config), listener, "upstream"):
        yield origin


@pytest.fixture
def echo() -> Iterator[Echo]:
    upstream = Echo()
    with running(upstream.app) as origin:
        upstream.url = f"{origin}/api/v4"
        yield upstream
        upstream.go_on.set()


@pytest.fixture
def serving(echo: Echo) -> Iterator[Serving]:
    with proxy(echo.url) as serving:
        yield serving


def told(response: httpx.Response) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in response.json()["headers"]:
        found.setdefault(name, []).append(value)
    return found


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_headers_status_query_and_body(serving: Serving, method: str) -> None:
    sent = {
        **HEADERS,
        "user-agent": "of the caller",
        "openai-project": "p",
        "x-own": "1",
        "x-serve-key": "of no matter here",
        "connection": "keep-alive, x-named",
        "x-named": "of this connection",
        "te": "trailers",
        "accept-encoding": "identity",
    }
    body = b"text" if method == "POST" else None
    response = httpx.request(
        method, f"{serving.base_url}/headers?a=b%20c&d", headers=sent, content=body, timeout=SOON
    )
    assert response.status_code == 418
    assert response.headers["x-request-id"] == "req_of_the_upstream"
    assert response.headers["openai-processing-ms"] == "7"
    assert not {"x-hop", "keep-alive"} & set(response.headers)
    assert response.headers.get_list("server") == ["of the upstream"]
    assert response.headers.get_list("date") == ["Mon, 01 Jan 2024 00:00:00 GMT"]
    assert response.json()["query"] == "a=b%20c&d"
    assert response.json()["body"] == ("text" if method == "POST" else "")
    headers = told(response)
    for name in ("authorization", "user-agent", "openai-project", "x-own", "accept-encoding"):
        assert headers[name] == [sent[name]]
    assert not {"x-serve-key", "x-named", "te"} & set(headers)
    assert headers["host"] == [httpx.URL(serving.proxy.config.base_url or "").netloc.decode()]
    assert headers.get("content-length") == (["4"] if method == "POST" else None)


def test_a_key_of_its_own_comes_with_nothing_of_the_callers_identity(echo: Echo) -> None:
    with proxy(echo.url, api_key="sk-own") as serving:
        sent = {**HEADERS, "openai-project": "p", "openai-organization": "o"}
        headers = told(httpx.get(f"{serving.base_url}/headers", headers=sent, timeout=SOON))
    assert headers["authorization"] == ["Bearer sk-own"]
    assert not {"openai-project", "openai-organization"} & set(headers)


def test_what_is_sent_up_arrives_while_it_comes(serving: Serving, echo: Echo) -> None:
    with Raw(serving.base_url) as caller:
        caller.ask("upload", b"first,", **{"content-length": "12"})
        assert echo.parts.get(timeout=SOON) == b"first,"
        caller.socket.sendall(b"second")
        assert echo.parts.get(timeout=SOON) == b"second"
        caller.until(b'{"size":12}')


def test_chunks_are_sent_up_as_chunks(serving: Serving, echo: Echo) -> None:
    def parts() -> Iterator[bytes]:
        yield b"first,"
        yield b"second"

    response = httpx.post(f"{serving.base_url}/upload", content=parts(), headers=HEADERS, timeout=SOON)
    assert response.json() == {"size": 12}


def test_what_comes_down_arrives_while_it_comes(serving: Serving, echo: Echo) -> None:
    with httpx.stream("GET", f"{serving.base_url}/download", headers=HEADERS, timeout=SOON) as response:
        parts = response.iter_raw()
        assert next(parts) == b"first,"
        echo.go_on.set()
        assert b"".join(parts) == b"second"


def test_what_is_compressed_stays_so(serving: Serving) -> None:
    response = httpx.get(f"{serving.base_url}/zipped", headers=HEADERS, timeout=SOON)
    assert response.headers["content-encoding"] == "gzip"
    assert response.content == b"unzipped"


def test_redirections_are_the_callers_affair(serving: Serving) -> None:
    response = httpx.get(f"{serving.base_url}/moved", headers=HEADERS, timeout=SOON)
    assert (response.status_code, response.headers["location"]) == (307, "/elsewhere")


def test_a_caller_that_hangs_up_takes_its_call_along(serving: Serving, echo: Echo) -> None:
    with Raw(serving.base_url) as caller:
        head = f"GET {caller.path}/slow HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n\r\n"
        caller.socket.sendall(head.encode())
        assert echo.go_on.wait(SOON)
    assert echo.gone.wait(SOON)


def test_an_upload_that_is_cut_off(serving: Serving, echo: Echo) -> None:
    with Raw(serving.base_url) as caller:
        caller.ask("upload", b"first,", **{"content-length": "12"})
        assert echo.parts.get(timeout=SOON) == b"first,"
    until(lambda: httpx.get(f"{serving.origin}/health").status_code == 200, "it goes on")
    assert httpx.post(f"{serving.base_url}/upload", content=b"x", headers=HEADERS, timeout=SOON).json() == {
        "size": 1
    }


def test_a_download_that_is_cut_off_is_cut_off(echo: Echo) -> None:
    """By an upstream that ends in the middle of a body."""
    import socket  # noqa: PLC0415 -- of no use elsewhere

    with ExitStack() as stack:
        upstream = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def answer() -> None:
            connection, _ = upstream.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it")

        answering = threading.Thread(target=answer)
        answering.start()
        stack.callback(answering.join)
        serving = stack.enter_context(proxy(f"http://127.0.0.1:{upstream.getsockname()[1]}/v1"))
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{serving.base_url}/files/x/content", headers=HEADERS, timeout=SOON)
