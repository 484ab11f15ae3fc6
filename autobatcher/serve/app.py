"""The proxy as an object, and its routes."""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import openai
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from autobatcher.client import BatchOpenAI
from autobatcher.core.endpoints import batched_path
from autobatcher.serve.answering import Answering
from autobatcher.serve.callers import Clients, Door, Identity, passed_on
from autobatcher.serve.deliveries import Deliveries
from autobatcher.serve.metrics import CONTENT_TYPE, Metrics
from autobatcher.serve.passthrough import Passthrough, no_cookies
from autobatcher.serve.replies import JSON, Refused, Reply, error_reply
from autobatcher.serve.sending import Sending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from autobatcher.serve.config import ServeConfig

PREFIX = b"/v1/"
"""What callers' base URL ends in, whatever the upstream's does."""


class Proxy:
    """A proxy in this process; `app` is the ASGI application, whose lifespan is the proxy's.

    Args:
        config: the settings.

    Raises:
        JournalError: the journal cannot be used.
        ValueError: a batch option makes no sense; the message says what is allowed.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        journal = config.journal
        if journal is None:
            # A caller that comes again finds its request by the journal, so there is always one.
            self._temporary = tempfile.TemporaryDirectory(prefix="autobatcher-serve-")
            journal = Path(self._temporary.name) / "journal.db"
        try:
            self._client = BatchOpenAI(
                base_url=config.base_url,
                api_key=config.api_key or "none: each caller's own is passed on",
                http_client=openai.DefaultAsyncHttpxClient(cookies=no_cookies()),
                **{**config.options, "journal": journal, "on_event": self._note},
            )
            self._deliveries = Deliveries(f"{os.fspath(journal)}.served")
        except BaseException:
            self._remove()
            raise
        self._own: Identity | None = None
        if config.api_key is not None:
            self._own = Identity.of(config.api_key, self._client.organization, self._client.project)
        clients = Clients(self._client)
        self._clients = clients
        self._metrics = Metrics(lambda: self._answering.waiting, lambda: self._client.usage)
        self._answering = Answering(config, clients, self._identify, self._metrics, self._deliveries)
        self._passing = Passthrough(str(self._client.base_url), self._own)
        self._door = Door(config)
        self._dismissal: asyncio.TimerHandle | None = None
        self.app = Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._tell_metrics, methods=["GET"]),
                Route("/v1/{path:path}", _Below(self._call)),
            ],
            exception_handlers={HTTPException: _not_found, Exception: _failed},
            lifespan=self._lifespan,
        )
        self.app.router.redirect_slashes = False

    def _note(self, event: object) -> None:
        self._metrics.note(event)  # type: ignore[arg-type] # an event

    def _identify(self, headers: Headers) -> Identity:
        return passed_on(headers) if self._own is None else self._own

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(self._remove)
            stack.callback(self._deliveries.close)
            stack.push_async_callback(self._client.close)
            stack.push_async_callback(self._passing.close)
            if self._own is not None:
                # What an earlier run has left at the upstream goes on at once, whether anybody asks for it or not.
                client = self._clients.of(self._own)
                client._collectors.driver(client._collector)  # noqa: SLF001 -- this package's own client
            yield
            if self._dismissal is not None:
                self._dismissal.cancel()

    def _remove(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def drain(self) -> None:
        """Take no more requests; those who still wait when the grace is over are sent away."""
        if self._dismissal is None:
            self._answering.stop()
            self._dismissal = asyncio.get_running_loop().call_later(
                self.config.grace_seconds, self._answering.dismiss
            )

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Whatever is asked below /v1."""
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        try:
            self._door.check(Headers(scope=scope))
            _check_path(scope, raw)
        except Refused as refused:
            self._metrics.refused(refused.reason)
            await Sending(send).whole(refused.reply)
            return
        below = raw.removeprefix(PREFIX)
        path = batched_path(scope["method"], below.decode("latin-1"))
        if path is not None:
            await self._answering(path, scope, receive, send)
            return
        try:
            self._metrics.passed(await self._passing(below, scope, receive, send))
        except ClientDisconnect:
            return

    async def _health(self, _request: Request) -> Response:
        status = "stopping" if self._dismissal is not None else "ok"
        body = msgspec.json.encode({"status": status})
        return Response(body, 200 if status == "ok" else 503, media_type=JSON)

    async def _tell_metrics(self, request: Request) -> Response:
        try:
            self._door.check(request.headers, reader=True)
        except Refused as refused:
            return _response(refused.reply)
        return Response(self._metrics.text(), headers={"content-type": CONTENT_TYPE})


class _Below:
    """An ASGI application; Starlette would take a method for a handler of its own kind."""

    def __init__(self, call: object) -> None:
        self._call = call

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._call(scope, receive, send)  # type: ignore[operator] # of the same signature


def _response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, reply.headers, media_type=reply.content_type)


def _check_path(scope: Scope, raw: bytes) -> None:
    """Refuse a way out of what is below the upstream's base URL."""
    if not raw.startswith(PREFIX) or {".", ".."} & set(scope["path"].split("/")):
        raise Refused(_invalid_url(scope["method"], scope["path"]), "not found")


def _invalid_url(method: str, path: str) -> Reply:
    message = f"Invalid URL ({method} {path}): this proxy answers below /v1, which ends the base URL of its callers."
    return error_reply(404, message)


async def _not_found(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):  # Starlette's signature is wider than its promise
        raise error
    if error.status_code == 404:  # noqa: PLR2004 -- HTTP's
        return _response(_invalid_url(request.method, request.url.path))
    return _response(error_reply(error.status_code, error.detail, headers=dict(error.headers or {})))


async def _failed(_request: Request, _error: Exception) -> Response:
    return _response(error_reply(500, "The proxy had an error; its log says which."))
