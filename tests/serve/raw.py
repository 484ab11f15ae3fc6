"""A caller as the network sees it: bytes sent, bytes received."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import Self

from tests.serve.conftest import SOON

KEY = "sk-of-a-caller"


def request_bytes(path: str, body: Any, **headers: str) -> bytes:
    """A POST; an encoded body is sent as it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {
        "host": "127.0.0.1",
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **headers,
    }
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode() + b"\r\n" + content


class Raw:
    """A connection."""

    def __init__(self, base_url: str, *, receive_buffer: int | None = None) -> None:
        url = urlsplit(base_url)
        self.path = url.path
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(SOON)
        self.socket.connect((url.hostname, url.port))
        self.received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, path: str, body: Any, **headers: str) -> None:
        self.socket.sendall(request_bytes(f"{self.path}/{path}", body, **headers))

    def until(self, text: bytes, times: int = 1) -> bytes:
        """All that has come, once this is among it so often."""
        while self.received.count(text) < times:
            part = self.socket.recv(65536)
            assert part, f"the connection ended after {self.received!r}"
            self.received += part
        return self.received

    def all(self) -> bytes:
        """All that comes until the connection ends."""
        while part := self.socket.recv(65536):
            self.received += part
        return self.received


def json_of(response: bytes) -> Any:
    """The body of a response that was sent in chunks, or whole."""
    head, _, body = response.partition(b"\r\n\r\n")
    if b"chunked" not in head.lower():
        return json.loads(body)
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return json.loads(whole)
