"""Request bodies as streams."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from autobatcher.local.wire import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

_DISCARDED = 64_000_000


@asynccontextmanager
async def body_of(request: Request) -> AsyncIterator[AsyncIterator[bytes]]:
    """The parts of a body.

    After an ApiError the rest is read and discarded, up to a limit: a client that is still sending does not
    see the answer when the connection is closed under it.
    """
    async with aclosing(request.stream()) as parts:
        try:
            yield parts
        except ApiError:
            left = _DISCARDED
            async for part in parts:
                left -= len(part)
                if left < 0:
                    break
            raise
