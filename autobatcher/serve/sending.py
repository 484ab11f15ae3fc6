"""Responses in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from email.utils import formatdate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Send

    from autobatcher.serve.replies import Reply


class Sending:
    """One response.

    Attributes:
        begun: whether its status is sent.
        ended: whether all of it is.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.ended = False

    async def begin(
        self,
        status: int,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """Send the status and the headers; `length`: of the body, if that is known."""
        fields = [("date", formatdate(usegmt=True)), ("content-type", content_type), *(headers or {}).items()]
        if length is not None:
            fields.append(("content-length", str(length)))
        await self.begin_raw(
            status, ((name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in fields)
        )

    async def begin_raw(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """The same with headers as they are."""
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    async def more(self, body: bytes) -> None:
        """Send a part of the body, once the other side has taken most of what was sent before."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def taken(self) -> None:
        """Wait until most of what was sent is taken, or the connection has turned out to be dead.

        Of what is taken at once it waits for nothing: whoever has it all may hang up, and that is no lost answer.
        """
        await self.more(b"")

    async def end(self) -> None:
        """That was all."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, reply: Reply) -> None:
        """Send a whole response."""
        await self.begin(reply.status, reply.content_type, reply.headers, len(reply.body))
        await self.more(reply.body)
        await self.end()
