"""Batched requests over HTTP: from the request to an answer that may take hours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from autobatcher import sse
from autobatcher.serve.bodies import Asked, Reading, asked
from autobatcher.serve.callers import ORGANIZATION, PROJECT
from autobatcher.serve.replies import (
    JSON,
    NO_MORE,
    Refused,
    Reply,
    error_reply,
    in_stream,
    reply_for,
    reply_to,
    stopping,
)
from autobatcher.serve.sending import Sending
from autobatcher.serve.waiting import Connection, Exchange, Exchanges

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from autobatcher.client import Batching
    from autobatcher.core.outcomes import Answer
    from autobatcher.serve.callers import Clients, Identity
    from autobatcher.serve.config import ServeConfig
    from autobatcher.serve.deliveries import Deliveries
    from autobatcher.serve.metrics import Metrics

STREAM = "text/event-stream; charset=utf-8"

COMMENTS = 15.0
"""Seconds between comments in a stream that waits; what stands between the two may hang up after 30 or 60."""

BUSY = 30
"""Seconds after which one who was sent away may try again."""

LINGER = 60.0
"""Seconds beyond the window for which a request waits for its caller to come again, before it is left to its batch."""

MAX_IDEMPOTENCY_KEY = 255


class _Wanted(NamedTuple):
    """What is known of a request while it waits.

    Attributes:
        path: below the base URL.
        stream: whether the answer is to come as a stream.
        streaming: the fields of the body that say how.
        at: when it came.
    """

    path: str
    stream: bool
    streaming: Mapping[str, Any]
    at: float


class Answering:
    """Answers batched requests.

    Args:
        config: the limits.
        clients: who asks the upstream.
        identify: says for whom.
        metrics: counts.
        deliveries: tells equal requests apart.
    """

    def __init__(
        self,
        config: ServeConfig,
        clients: Clients,
        identify: Callable[[Headers], Identity],
        metrics: Metrics,
        deliveries: Deliveries,
    ) -> None:
        self._config = config
        self._clients = clients
        self._identify = identify
        self._metrics = metrics
        self._reading = Reading(config.max_body_bytes)
        self._exchanges = Exchanges(deliveries, clients.window_seconds + LINGER)
        self._connections: set[Connection] = set()
        self._stopping = False
        self.waiting = 0

    def stop(self) -> None:
        """Take no more."""
        self._stopping = True

    def dismiss(self) -> None:
        """Send everybody away who still waits."""
        for connection in self._connections:
            connection.dismiss()

    async def __call__(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request for this path below the base URL."""
        try:
            with self._place():
                exchange, wanted = await self._accepted(path, scope, receive)
                await self._serve(exchange, wanted, receive, send)
        except Refused as refused:
            self._metrics.refused(refused.reason)
            await Sending(send).whole(refused.reply)
        except ClientDisconnect:
            self._metrics.left(path)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """A place among those who wait, from the first byte of a body on.

        Raises:
            Refused: there is none (429), or the proxy stops (503).
        """
        if self._stopping:
            raise Refused(stopping(), "stopping")
        if self.waiting >= self._config.max_waiting:
            message = f"{self.waiting:,} callers wait already, the most that --max-waiting lets in."
            headers = {"retry-after": str(BUSY)}
            reply = error_reply(429, message, kind="requests", code="too_many_waiting", headers=headers)
            raise Refused(reply, "too many waiting")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def _accepted(self, path: str, scope: Scope, receive: Receive) -> tuple[Exchange, _Wanted]:
        """The exchange that a request begins or joins; nothing else of its body is kept here while it waits."""
        headers = Headers(scope=scope)
        identity = self._identify(headers)
        idempotency = headers.get("idempotency-key") or None
        if idempotency is not None and len(idempotency) > MAX_IDEMPOTENCY_KEY:
            message = f"An idempotency key has at most {MAX_IDEMPOTENCY_KEY} characters."
            raise Refused(error_reply(400, message, code="idempotency_key_too_long"), "idempotency")
        made = asked(path, await self._reading.body(headers, receive))
        if self._stopping:
            raise Refused(stopping(), "stopping")
        client = self._clients.of(identity)
        exchange = self._exchanges.join(
            made,
            partial(_ask, client, made, _extra(headers)),
            scope=identity.digest,
            attempt=_attempt(headers),
            idempotency=idempotency,
        )
        return exchange, _Wanted(path, made.stream, made.streaming, asyncio.get_running_loop().time())

    async def _serve(self, exchange: Exchange, wanted: _Wanted, receive: Receive, send: Send) -> None:
        """Wait for the answer, and give it to the caller, if that is still there."""
        connection = Connection()
        exchange.connections.add(connection)
        self._connections.add(connection)
        watching = asyncio.create_task(connection.watch(receive))
        sending = Sending(send)
        try:
            await self._wait(exchange, connection, sending, stream=wanted.stream)
            await asyncio.sleep(0)  # one that has hung up just now is known to have
            if not connection.gone:
                await self._give(exchange, connection, sending, wanted)
        finally:
            watching.cancel()
            self._connections.discard(connection)
            exchange.leave(connection)
            if connection.gone and not sending.ended:
                self._metrics.left(wanted.path)

    async def _wait(
        self, exchange: Exchange, connection: Connection, sending: Sending, *, stream: bool
    ) -> None:
        """Wait until there is something to say, and meanwhile keep the connection alive."""
        every = self._config.keep_alive_seconds
        if stream:
            every = every or COMMENTS
        while not (exchange.done or connection.gone or connection.dismissed):
            if not await connection.woken(every):
                if not sending.begun:
                    await sending.begin(200, STREAM if stream else JSON)
                await sending.more(b": waiting\n\n" if stream else b" ")

    async def _give(
        self, exchange: Exchange, connection: Connection, sending: Sending, wanted: _Wanted
    ) -> None:
        """Send what came of it."""
        if exchange.done:
            reply = _reply(exchange, wanted)
            self._metrics.replied(wanted.path, reply.status, asyncio.get_running_loop().time() - wanted.at)
        else:
            reply = stopping()
            self._metrics.refused("stopping")
            if sending.begun and not wanted.stream:
                return  # the connection is cut: SDKs ask again after half of a body, and not after an error in it
        if not sending.begun:
            await sending.begin(reply.status, reply.content_type, reply.headers, len(reply.body))
            await sending.more(reply.body)
        elif wanted.stream and reply.content_type != STREAM:
            await sending.more(in_stream(reply))
        else:
            await sending.more(reply.body)
        await sending.taken()
        if not connection.gone:
            exchange.delivered = exchange.delivered or exchange.done
            await sending.end()


def _ask(
    client: Batching, made: Asked, headers: Mapping[str, str], name: str, hurries: Callable[[], bool]
) -> Coroutine[Any, Any, Answer]:
    return client._exchange(  # noqa: SLF001 -- this package's own client
        made.path, made.body, made.fields, headers=headers, idempotency=name, hurries=hurries
    )


def _extra(headers: Headers) -> dict[str, str]:
    """What a realtime call is to have of the caller's headers."""
    return {
        name: value
        for name, value in headers.items()
        if name.startswith("openai-") and name not in (ORGANIZATION, PROJECT)
    }


def _attempt(headers: Headers) -> int:
    """How often the caller's SDK has asked before."""
    count = headers.get("x-stainless-retry-count", "")
    return int(count) if count.isdecimal() and len(count) < 5 else 0  # noqa: PLR2004 -- more is no count


def _reply(exchange: Exchange, wanted: _Wanted) -> Reply:
    try:
        reply = reply_to(exchange.answer())
    except asyncio.CancelledError:  # by the end of the event loop
        return stopping()
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is this caller's
        return reply_for(error)
    if not (wanted.stream and reply.is_success):
        return reply
    try:
        events = sse.encode(wanted.path, json.loads(reply.body), wanted.streaming)
    except (ValueError, RecursionError):
        return error_reply(502, "The answer has no form that could be streamed.", headers=NO_MORE)
    return Reply(reply.status, b"".join(events), reply.headers, STREAM)
