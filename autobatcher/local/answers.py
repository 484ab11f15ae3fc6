"""Where answers come from: the built-in model, or an upstream server."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import anyio
from starlette.responses import JSONResponse, StreamingResponse

from autobatcher._http import httpx
from autobatcher.local.model import answer
from autobatcher.local.wire import decode
from autobatcher.wire import error_body

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from autobatcher.local.config import LocalConfig

logger = logging.getLogger(__name__)

ATTEMPTS = 5
_BACKOFF = 0.5
_CLOSE_SECONDS = 5.0
_LONGEST_BACKOFF = 30.0
_RETRIED = frozenset({408, 409, 429})


class Answer(NamedTuple):
    """What became of a request: a status with a body, or no response and an error (code, message)."""

    status: int
    body: Any
    error: tuple[str, str] | None = None


class Source(Protocol):
    """Answers one request."""

    async def __call__(self, endpoint: str, body: dict[str, Any]) -> Answer:
        """Answer it, however long that takes."""
        ...


def answer_now(endpoint: str, body: dict[str, Any], *, now: int) -> Answer:
    """The built-in model's answer; a fault in it costs one line, not the batch."""
    try:
        return Answer(*answer(endpoint, body, now=now))
    except Exception:
        logger.exception("the built-in model failed")
        return Answer(500, error_body(500, "The built-in model failed."))


class BuiltIn:
    """The built-in model, with its latency."""

    def __init__(self, config: LocalConfig) -> None:
        self._config = config

    async def __call__(self, endpoint: str, body: dict[str, Any]) -> Answer:
        """Wait for as long as configured, then answer."""
        await anyio.sleep(self._config.latency_seconds)
        return answer_now(endpoint, body, now=int(self._config.clock()))


class Upstream:
    """An OpenAI-compatible server; owns the HTTP client until `aclose`."""

    def __init__(self, config: LocalConfig, transport: httpx.AsyncBaseTransport | None = None) -> None:
        key = config.upstream_key
        self._client = httpx.AsyncClient(
            base_url=(config.upstream or "").rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(600.0, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=config.concurrency),
            transport=transport,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            await self._client.aclose()

    async def __call__(self, endpoint: str, body: dict[str, Any]) -> Answer:
        """POST one line; connection errors, 408, 409, 429 and 5xx are tried again with backoff."""
        path = endpoint.removeprefix("/v1/")
        for attempt in range(1, ATTEMPTS + 1):
            wait = min(_BACKOFF * 2 ** (attempt - 1), _LONGEST_BACKOFF)
            try:
                response = await self._client.post(path, json=body)
            except httpx.HTTPError as error:
                result = Answer(0, None, ("upstream_unreachable", f"{type(error).__name__}: {error}"))
            else:
                result = _read(response)
                if not _is_retried(response.status_code):
                    return result
                wait = max(wait, _retry_after(response))
            if attempt < ATTEMPTS:
                await anyio.sleep(wait)
        return result

    async def get(self, path: str) -> Answer:
        """GET a JSON document, once."""
        try:
            return _read(await self._client.get(path))
        except httpx.HTTPError as error:
            return _bad_gateway(error)

    def passing(self, endpoint: str, body: dict[str, Any]) -> PassedThrough:
        """The upstream's own response to a realtime call, streamed."""
        return PassedThrough(self._client, endpoint.removeprefix("/v1/"), body)


class PassedThrough:
    """An ASGI response that relays the upstream's; not retried, for the caller's client does that."""

    def __init__(self, client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
        self._client = client
        self._path = path
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Relay; a 502 if the upstream cannot be reached."""
        started = False
        try:
            async with self._client.stream("POST", self._path, json=self._body) as upstream:
                names = ("content-type", "retry-after")
                headers = {name: upstream.headers[name] for name in names if name in upstream.headers}
                async with aclosing(upstream.aiter_bytes()) as content:
                    started = True
                    await StreamingResponse(content, upstream.status_code, headers)(scope, receive, send)
        except httpx.HTTPError as error:
            if started:  # the client sees the broken connection
                raise
            status, body, _ = _bad_gateway(error)
            await JSONResponse(body, status)(scope, receive, send)


def _bad_gateway(error: Exception) -> Answer:
    return Answer(502, error_body(502, f"The upstream cannot be reached: {type(error).__name__}: {error}"))


def _read(response: httpx.Response) -> Answer:
    try:
        body = decode(response.content)
    except ValueError:
        body = None
    if isinstance(body, dict):
        return Answer(response.status_code, body)
    status = response.status_code if response.is_error else 502
    return Answer(status, error_body(status, "The upstream's answer is not a JSON object."))


def _is_retried(status: int) -> bool:
    return status in _RETRIED or status >= 500  # noqa: PLR2004 -- HTTP's class of server errors


def _retry_after(response: httpx.Response) -> float:
    try:
        seconds = float(response.headers.get("retry-after", "0"))
    except ValueError:  # a date
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_BACKOFF)
