"""All that is not batched goes on to the upstream, and its answer back, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from autobatcher._http import httpx
from autobatcher.serve.callers import ORGANIZATION, PROJECT, SERVE_KEY
from autobatcher.serve.replies import error_reply
from autobatcher.serve.sending import Sending

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from autobatcher.serve.callers import Identity

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
"""Of this connection and not of the request (source: RFC 9110, section 7.6.1)."""

_NOT_SENT = frozenset({b"host", b"expect", SERVE_KEY.encode()})

_IDENTIFYING = frozenset({b"authorization", ORGANIZATION.encode(), PROJECT.encode()})

TIMEOUT = httpx.Timeout(600.0, connect=10.0)
"""As the SDK has it."""


def no_cookies() -> CookieJar:
    """A jar that keeps nothing: what the upstream sets for one caller is not to go out with another's requests."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


class Passthrough:
    """Passes requests on.

    Args:
        base_url: of the upstream.
        identity: under which all are passed on; None: each under its own.
    """

    def __init__(self, base_url: str, identity: Identity | None) -> None:
        self._base_url = base_url.rstrip("/")
        self._identity = _headers_of(identity) if identity is not None else None
        self._client = httpx.AsyncClient(
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            cookies=no_cookies(),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __call__(self, path: bytes, scope: Scope, receive: Receive, send: Send) -> int:
        """Pass a request on to this path below the base URL, as it was written; returns the status."""
        sending = Sending(send)
        body = _Body(scope, receive)
        query = scope["query_string"]
        url = f"{self._base_url}/{path.decode('latin-1')}" + (f"?{query.decode('latin-1')}" if query else "")
        request = httpx.Request(
            scope["method"],
            url,
            headers=self._sent(scope["headers"]),
            content=body.parts() if body.expected else None,
            extensions={"timeout": TIMEOUT.as_dict()},
        )
        forwarding = asyncio.ensure_future(self._forward(request, sending))
        watching = asyncio.ensure_future(body.hung_up())
        try:
            await asyncio.wait({forwarding, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not forwarding.done():
                raise ClientDisconnect
            return forwarding.result()
        finally:
            for task in (forwarding, watching):
                task.cancel()
            await asyncio.gather(forwarding, watching, return_exceptions=True)

    async def _forward(self, request: httpx.Request, sending: Sending) -> int:
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TimeoutException:
            reply = error_reply(504, "The upstream did not answer in time.", code="timeout")
            await sending.whole(reply)
            return reply.status
        except httpx.HTTPError:  # a failing connection, for whatever reason
            reply = error_reply(502, "The upstream cannot be reached.", code="upstream_unreachable")
            await sending.whole(reply)
            return reply.status
        async with aclosing(response):
            await sending.begin_raw(response.status_code, _passed(response.headers.raw))
            try:
                async for part in response.aiter_raw():
                    await sending.more(part)
            except httpx.HTTPError:
                return 502  # half of a body cannot be taken back: the connection is cut
        await sending.end()
        return response.status_code

    def _sent(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        left_out = _NOT_SENT if self._identity is None else _NOT_SENT | _IDENTIFYING
        kept = [(name, value) for name, value in _passed(headers) if name.lower() not in left_out]
        return kept + (self._identity or [])


def _headers_of(identity: Identity) -> list[tuple[bytes, bytes]]:
    fields = (
        ("authorization", f"Bearer {identity.key}"),
        (ORGANIZATION, identity.organization),
        (PROJECT, identity.project),
    )
    return [(name.encode(), value.encode("latin-1")) for name, value in fields if value is not None]


def _passed(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without those of the connection, and those that it names as such."""
    headers = list(headers)
    named = {
        name.strip().lower()
        for key, value in headers
        if key.lower() == b"connection"
        for name in value.split(b",")
    }
    return [(key, value) for key, value in headers if key.lower() not in _HOP_BY_HOP | named]


class _Body:
    """The body of a request, and what comes after it: nothing, until the caller hangs up."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        self.expected = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._receive = receive
        self._read = asyncio.Event()
        if not self.expected:
            self._read.set()

    async def parts(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message: Any = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            if message["body"]:
                yield message["body"]
            more = message.get("more_body", False)
        self._read.set()

    async def hung_up(self) -> None:
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
