"""HTTP clients, one for each event loop: a connection belongs to the loop that opened it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autobatcher.runtime.spawn import current_loop, is_dead

if TYPE_CHECKING:
    from autobatcher._http import httpx


class HttpPool:
    """The HTTP client for the running loop.

    Args:
        first: the client that exists already; the first loop that asks gets it.
        make: makes another one; None says that `first` was given by the user, who then has it in every loop.
    """

    def __init__(self, first: httpx.AsyncClient, make: Callable[[], httpx.AsyncClient] | None) -> None:
        self._latest = first
        self._make = make
        self._by_loop: dict[Any, httpx.AsyncClient] = {}
        self._closed = False

    def current(self) -> httpx.AsyncClient:
        """The client to use now."""
        loop = None if self._make is None or self._closed else current_loop()
        if loop is None or self._make is None:
            return self._latest
        client = self._by_loop.get(loop)
        if client is None:
            # A client that was never used in a loop is free to be used in this one.
            fresh = not self._by_loop and not self._latest.is_closed
            self._by_loop = {key: value for key, value in self._by_loop.items() if not is_dead(key)}
            self._latest = client = self._by_loop[loop] = self._latest if fresh else self._make()
        return client

    async def release(self, loop: Any) -> None:
        """Close the connections of a loop that is about to end."""
        client = self._by_loop.pop(loop, None)
        if client is not None:
            await client.aclose()

    async def close(self) -> None:
        """Close this loop's client; from now on `current` opens no other."""
        self._closed = True
        client = self._by_loop.pop(current_loop(), None)
        if client is None and self._latest not in self._by_loop.values():
            client = self._latest
        if client is not None:
            await client.aclose()
