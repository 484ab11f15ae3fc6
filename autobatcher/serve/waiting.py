"""Requests that are on their way, and the connections that wait for them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from autobatcher.core.outcomes import Answer
from autobatcher.errors import BatchError
from autobatcher.serve.replies import Refused, error_reply

if TYPE_CHECKING:
    from starlette.types import Receive

    from autobatcher.serve.bodies import Asked
    from autobatcher.serve.deliveries import Deliveries

DEAD = 60.0
"""Seconds after which a connection that has gone without a word is found dead (`autobatcher.serve.serving` sees to it)."""

PATIENCE = DEAD + 15.0
"""For how long a retry waits for the connection of its earlier attempt to be found dead."""

MOST_NAMED = 10_000
"""Idempotency keys of finished requests that are remembered, to refuse them for another body."""

Ask = Callable[[str, Callable[[], bool]], Coroutine[Any, Any, Answer]]
"""Asks the client; the same text means the same request, and the function tells whether anybody waits."""


class Connection:
    """A caller that waits.

    Attributes:
        gone: whether it has hung up.
        dismissed: whether the proxy stops.
    """

    def __init__(self) -> None:
        self.gone = False
        self.dismissed = False
        self._woken = asyncio.Event()

    async def watch(self, receive: Receive) -> None:
        """Note when it hangs up."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._woken.set()

    def wake(self) -> None:
        """Something has changed."""
        self._woken.set()

    def dismiss(self) -> None:
        """It is to be sent away."""
        self.dismissed = True
        self._woken.set()

    async def woken(self, seconds: float | None) -> bool:
        """Wait until something changes; False after that many seconds."""
        try:
            await asyncio.wait_for(self._woken.wait(), seconds)
        except asyncio.TimeoutError:
            return False
        self._woken.clear()
        return True


class Exchange:
    """One request on its way.

    Args:
        attempt: how often its SDK has asked before.
        linger: seconds for which it goes on when nobody waits any more.

    Attributes:
        heir: a later attempt, which waits for the end of this one.
        connections: those who wait for the answer.
        delivered: whether one of them has it.
    """

    def __init__(self, attempt: int, linger: float = 0.0) -> None:
        self.attempt = attempt
        self._linger = linger
        self._letting_go: asyncio.TimerHandle | None = None
        self._let = False
        self.heir: Exchange | None = None
        self.delivered = False
        self.connections: set[Connection] = set()
        self._over = asyncio.Event()
        self._task: asyncio.Task[Answer]
        self._finish: Callable[[], object]

    def start(self, coroutine: Coroutine[Any, Any, Answer], finish: Callable[[], object]) -> None:
        """Begin; `finish` is called when nobody waits any more, and the request has come to its end or is let go."""
        self._finish = finish
        self._task = asyncio.create_task(coroutine)
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Answer]) -> None:
        if not task.cancelled():
            task.exception()  # it is told to those who wait, if there are any
        for connection in self.connections:
            connection.wake()
        if not self.connections:
            self._end()

    def _end(self) -> None:
        if not self._over.is_set():  # both the last to leave and the end itself may come first
            self._over.set()
            self._finish()

    @property
    def done(self) -> bool:
        """Whether it has come to something."""
        return self._task.done()

    def answer(self) -> Answer:
        """What it has come to.

        Raises:
            Exception: of the client.
        """
        return self._task.result()

    @property
    def settled(self) -> bool:
        """Whether nothing is left for a later caller: a connection has the answer, or there is none to come.

        After other errors, such as of a realtime call, or of polls, the batch may answer yet.
        """
        if self._task.cancelled():
            return False
        error = self._task.exception()
        return (
            self.delivered if error is None else isinstance(error, (BatchError, ValueError, RecursionError))
        )

    async def over(self, seconds: float) -> None:
        """Wait for its end, but no longer than that."""
        try:
            await asyncio.wait_for(self._over.wait(), seconds)
        except asyncio.TimeoutError:
            return

    def leave(self, connection: Connection) -> None:
        """That one waits no more; when nobody has for a while, the client is told so, which keeps what is in a batch.

        For as long its window may be open, in which the client drops what nobody waits for: so callers whose timeouts are
        shorter than the window would never get into a batch, however often they ask again.
        """
        self.connections.discard(connection)
        if self.connections:
            return
        if self.done:
            self._end()
        elif self.heir is not None and not self.heir.done:
            self._let_go()
        else:
            self._letting_go = asyncio.get_running_loop().call_later(self._linger, self._let_go)

    def _let_go(self) -> None:
        self._letting_go, self._let = None, True
        self._task.cancel()

    def precedes(self, other: Exchange) -> bool:
        """Whether another one is to wait for its end: as it is let go, or may be an earlier attempt.

        Its connection may be dead, which is not known yet.
        """
        return self.heir is None and (self._let or self.attempt < other.attempt)

    def adopted(self) -> bool:
        """Whether nobody waits for it, and it goes on: then it is for the one that asks now."""
        if self._letting_go is None or self.connections or self.done:
            return False
        self._letting_go.cancel()
        self._letting_go = None
        return True


class _Named(msgspec.Struct, eq=False):
    """A request with an idempotency key, on its way."""

    digest: bytes
    exchange: Exchange


class Exchanges:
    """All requests that are on their way.

    Args:
        deliveries: tells equal requests apart.
        linger: seconds for which a request goes on that nobody waits for, and that is in no batch yet.
    """

    def __init__(self, deliveries: Deliveries, linger: float = 0.0) -> None:
        self._deliveries = deliveries
        self._linger = linger
        self._open: dict[bytes, list[Exchange]] = {}
        self._named: dict[bytes, _Named] = {}
        self._past: dict[bytes, bytes] = {}

    def join(self, asked: Asked, ask: Ask, *, scope: str, attempt: int, idempotency: str | None) -> Exchange:
        """The exchange for a request: that of an earlier caller who left, or has the same idempotency key, or a new one.

        Args:
            asked: the request.
            ask: makes the call.
            scope: whose it is.
            attempt: how often the caller's SDK has asked before.
            idempotency: the key.

        Raises:
            Refused: the idempotency key was that of another request.
        """
        if idempotency is not None:
            return self._named_one(asked, ask, scope, idempotency)
        name = _digest(scope, asked.digest)
        for left in self._open.get(name, ()):
            if left.adopted():
                return left
        exchange = Exchange(attempt, self._linger)
        earlier = self._earlier(name, exchange)
        equal = self._open.setdefault(name, [])
        equal.append(exchange)
        number: list[int] = []

        async def numbered() -> Answer:
            if earlier is not None:
                await earlier.over(PATIENCE)
            number.append(self._deliveries.take(name))
            return await ask(f"{name.hex()}/{number[0]}", lambda: bool(exchange.connections))

        def finish() -> None:
            equal.remove(exchange)
            if not equal:
                self._open.pop(name, None)
            if number and exchange.settled:
                self._deliveries.delivered(name, number[0])
            elif number:
                self._deliveries.given_back(name, number[0])

        exchange.start(numbered(), finish)
        return exchange

    def _earlier(self, name: bytes, heir: Exchange) -> Exchange | None:
        """What leaves its request to this one."""
        for exchange in self._open.get(name, ()):
            if exchange.precedes(heir):
                exchange.heir = heir
                return exchange
        return None

    def _named_one(self, asked: Asked, ask: Ask, scope: str, idempotency: str) -> Exchange:
        key = _digest(scope, idempotency.encode())
        named = self._named.get(key)
        known = self._past.get(key, asked.digest) if named is None else named.digest
        if known != asked.digest:
            message = "This idempotency key was used with another request."
            reply = error_reply(400, message, kind="idempotency_error", code="idempotency_key_reused")
            raise Refused(reply, "idempotency")
        earlier = None if named is None else named.exchange
        if earlier is not None and (earlier.connections or earlier.adopted()):
            return earlier
        exchange = Exchange(0, self._linger)
        self._named[key] = _Named(asked.digest, exchange)
        self._past.pop(key, None)

        async def after() -> Answer:
            if earlier is not None:  # which is let go, and about to end
                await earlier.over(PATIENCE)
            return await ask(f"key:{idempotency}", lambda: bool(exchange.connections))

        exchange.start(after(), lambda: self._named_is_over(key, exchange))
        return exchange

    def _named_is_over(self, key: bytes, exchange: Exchange) -> None:
        named = self._named.get(key)
        if named is not None and named.exchange is exchange:
            del self._named[key]
            self._past[key] = named.digest
            if len(self._past) > MOST_NAMED:
                del self._past[next(iter(self._past))]


def _digest(scope: str, what: bytes) -> bytes:
    return hashlib.blake2b(scope.encode() + b"\0" + what, digest_size=16).digest()
