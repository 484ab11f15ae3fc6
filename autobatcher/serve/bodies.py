"""The bodies of batched requests: read with limits, and checked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect

from autobatcher.serve.replies import Refused, bad_request, error_reply

if TYPE_CHECKING:
    from starlette.datastructures import Headers
    from starlette.types import Receive

STALLED = 60.0
"""Seconds in which a caller that sends a body must send some of it."""

SLOWEST = 1_000_000
"""Bytes that must have come in each such time, and one more such time for all: a body that trickles ends, too."""

AT_ONCE = 32
"""Bodies of the largest size that may be in memory, half read, together."""

_DISCARDED = 64_000_000
_DISCARDING = 10.0


class Asked(msgspec.Struct):
    """A batched request.

    Attributes:
        path: below the base URL, such as "chat/completions".
        body: JSON text without the fields that say how to stream.
        fields: what it decodes to.
        stream: whether the answer is to come as a stream.
        streaming: those fields.
        digest: the same for equal bodies to the same path.
    """

    path: str
    body: bytes
    fields: Mapping[str, Any]
    stream: bool
    streaming: Mapping[str, Any]
    digest: bytes

    def __repr__(self) -> str:
        """Without the body, which is nobody's to see."""
        return f"Asked({self.path!r}, {len(self.body)} bytes)"


class Reading:
    """Reads bodies.

    Args:
        largest: bytes of one; they are counted while it comes.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._room = AT_ONCE * largest

    async def body(self, headers: Headers, receive: Receive) -> bytes:
        """A whole body.

        Raises:
            Refused: it is too large (413), comes too slowly (408), or there are too many (429).
            ClientDisconnect: there is nobody any more.
        """
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._largest:
            if "expect" not in headers:  # else it waits for a word before it sends
                await _discard(receive, more=True)
            raise self._too_large
        data = bytearray()
        now = asyncio.get_running_loop().time
        began = now()
        try:
            while True:
                left = began + STALLED * (1 + len(data) / SLOWEST) - now()
                message = await _next(receive, min(STALLED, left))
                chunk = message.get("body", b"")
                self._room -= len(chunk)
                data += chunk
                more = message.get("more_body", False)
                if len(data) > self._largest:
                    await _discard(receive, more=more)
                    raise self._too_large
                if self._room < 0:
                    await _discard(receive, more=more)
                    raise Refused(
                        error_reply(
                            429,
                            "Too many large requests are arriving together.",
                            kind="requests",
                            code="too_many_bodies",
                            headers={"retry-after": "5"},
                        ),
                        "too many bodies",
                    )
                if not more:
                    return bytes(data)
        finally:
            self._room += len(data)

    @property
    def _too_large(self) -> Refused:
        message = f"The body is larger than {self._largest:,} bytes, which --max-body sets."
        return Refused(error_reply(413, message, code="request_too_large"), "too large")


async def _next(receive: Receive, seconds: float) -> Any:
    try:
        message = await asyncio.wait_for(receive(), seconds)
    except asyncio.TimeoutError:
        said = f"Nothing of the body came for {STALLED:.0f} s, or less than {SLOWEST:,} bytes in each {STALLED:.0f} s."
        raise Refused(error_reply(408, said, code="body_timeout"), "too slow") from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


async def _discard(receive: Receive, *, more: bool) -> None:
    """Read on for a while: a client that is still sending does not see the answer if the connection is closed."""

    async def read() -> None:
        left, comes = _DISCARDED, more
        while comes and left > 0:
            message = await receive()
            left -= len(message.get("body", b""))
            comes = message.get("more_body", False)

    try:
        await asyncio.wait_for(read(), _DISCARDING)
    except asyncio.TimeoutError:
        return


_STREAMING = ("stream", "stream_options")


def asked(path: str, data: bytes) -> Asked:
    """The request that a body makes.

    Raises:
        Refused: it makes none (400).
    """
    try:
        fields, streaming, body = _decoded(data)
    except RecursionError:
        raise bad_request("The JSON body is nested too deeply.") from None
    except (ValueError, OverflowError):
        raise bad_request("We could not parse the JSON body of your request.") from None
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("you must provide a model parameter", param="model")
    stream = streaming.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise bad_request("'stream' must be a boolean.", param="stream")
    digest = hashlib.blake2b(path.encode() + b"\0" + body, digest_size=16).digest()
    return Asked(path, body, fields, bool(stream) and path != "embeddings", streaming, digest)


def _decoded(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The fields, those that say how to stream apart, and the others as JSON on one line.

    What the journal could not compare is no JSON here: halves of surrogate pairs, NaN, numbers beyond all types.
    """
    fields = msgspec.json.decode(data)
    if not isinstance(fields, dict):
        raise ValueError("no object")  # noqa: TRY004 -- of JSON
    streaming = {name: fields.pop(name) for name in _STREAMING if name in fields}
    return fields, streaming, msgspec.json.encode(fields)
