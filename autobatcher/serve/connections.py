"""Connections of callers: none stays that asks for nothing, and there are no more than the system has room for."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

try:
    import resource
except ImportError:  # on Windows, which has no such limit
    resource = None  # type: ignore[assignment] # as the next line knows

SILENT = 60.0
"""Seconds after which a connection is closed that has not sent the head of a request, or of another one."""

OWN_FILES = 100
"""Open files that are left for the journal and for connections to the upstream."""


class CallersProtocol(H11Protocol):
    """A connection.

    uvicorn waits for ever for a first request, and accepts connections until the system has no more open files, whereupon
    it can neither answer /health nor reach the upstream.
    """

    _silence: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """It begins; when there are too many, that which has been idle for longest ends."""
        super().connection_made(transport)
        self._listen()
        most = _most()
        if most is not None and len(self.connections) > most:
            idle = [
                other for other in self.connections if isinstance(other, CallersProtocol) and other.is_idle
            ]
            longest = min(idle, key=CallersProtocol.idle_until)
            self.connections.discard(longest)  # at once: others may come before it is told that it has ended
            longest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        if self._silence is not None:
            self._silence.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Another request may come."""
        self._listen()
        super().on_response_complete()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr] # it begins as None

    def idle_until(self) -> float:
        """When it is closed unless a request comes."""
        return 0.0 if self._silence is None else self._silence.when()

    def _listen(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
        self._silence = self.loop.call_later(SILENT, self._silent)

    def _silent(self) -> None:
        if self.is_idle:
            self.transport.close()


def _most() -> int | None:
    """How many there may be by the system's limit of open files."""
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else max(1, soft - OWN_FILES)
