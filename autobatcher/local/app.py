"""The HTTP side: routes, and errors in OpenAI's shape."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from autobatcher import sse
from autobatcher.local.answers import answer_now
from autobatcher.local.batches import cancel_batch, new_batch, output_lifetime
from autobatcher.local.bodies import body_of
from autobatcher.local.model import MODELS
from autobatcher.local.store import TERMINAL
from autobatcher.local.uploads import receive_upload
from autobatcher.local.wire import ApiError, decode, encode, new_id
from autobatcher.wire import error_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from autobatcher.local.config import LocalConfig
    from autobatcher.local.dialects import Dialect
    from autobatcher.local.server import LocalBatchAPI
    from autobatcher.local.uploads import Upload

_PURPOSES = frozenset({"assistants", "batch", "fine-tune", "vision", "user_data", "evals"})
_MAX_PAGE = 100
_MAX_DIGITS = 16  # such numbers, and their sums with times, are integers for SQLite
_DEFAULT_PAGE = 20
_MAX_FILES_PAGE = 10_000  # the default too: https://platform.openai.com/docs/api-reference/files/list


class Json(JSONResponse):
    """JSON, encoded fast."""

    def render(self, content: Any) -> bytes:
        """Encode the body."""
        return encode(content)


class Guard:
    """Middleware: an x-request-id on every response, and what every request must have, such as the key."""

    def __init__(self, app: ASGIApp, config: LocalConfig) -> None:
        self._app = app
        self._key = config.api_key
        self._dialect = config.dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer 401 or 404."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = new_id("req_")
            await send(message)

        app = self._app
        if self._key is not None and not self._dialect.knows(self._key, Headers(scope=scope)):
            app = Json(self._dialect.denied, 401)
        elif not self._dialect.finds(QueryParams(scope["query_string"])):
            app = Json(self._dialect.not_found, 404)
        await app(scope, receive, send_with_id)


async def _api_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):  # Starlette's signature is wider than its promise
        raise error
    return Json(error.body, error.status)


async def _http_error(dialect: Dialect, request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if dialect.not_found is not None:
        return Json(dialect.not_found, 404)
    message = f"Invalid URL ({request.method} {request.url.path})"
    return Json(error_body(error.status_code, message), error.status_code, headers=error.headers)


async def _server_error(_request: Request, _error: Exception) -> Response:
    body = error_body(500, "The server had an error.")
    return Json(body, 500, headers={"x-request-id": new_id("req_")})  # this one does not pass the guard


async def _disconnected(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody is there to read it


async def _json_object(request: Request, limit: int) -> dict[str, Any]:
    data = bytearray()
    async with body_of(request) as chunks:
        async for chunk in chunks:
            data += chunk
            if len(data) > limit:
                raise ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
    try:
        body = decode(bytes(data))
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "We could not parse the JSON body of your request.")
    return body


def _limit(request: Request, default: int, largest: int) -> int:
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not (text.isdecimal() and text.isascii() and len(text) < _MAX_DIGITS and 1 <= int(text) <= largest):
        raise ApiError(400, f"'limit' must be an integer from 1 to {largest}.", param="limit")
    return int(text)


def _page(objects: list[dict[str, Any]] | None, limit: int) -> Response:
    if objects is None:
        raise ApiError(400, "'after' is no object of this list.", param="after")
    data = objects[:limit]
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return Json(
        {
            "object": "list",
            "data": data,
            "first_id": ends[0],
            "last_id": ends[1],
            "has_more": len(objects) > limit,
        }
    )


def _purpose(upload: Upload) -> str:
    if upload.purpose not in _PURPOSES:
        raise ApiError(400, f"'purpose' must be one of {', '.join(sorted(_PURPOSES))}.", param="purpose")
    return upload.purpose


def _lifetime(upload: Upload) -> int | None:
    text = upload.lifetime
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS):
        raise ApiError(400, "'expires_after[seconds]' must be an integer.", param="expires_after")
    return int(text)


class _Routes:
    """The handlers of one server."""

    def __init__(self, api: LocalBatchAPI) -> None:
        self._api = api
        self._config = api.config
        self._dialect = api.config.dialect

    def _now(self) -> int:
        return int(self._config.clock())

    # Files

    def _file(self, request: Request) -> dict[str, Any]:
        file_id = request.path_params["file_id"]
        found = self._api.store.file(file_id, self._now())
        if found is None:
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return found

    async def create_file(self, request: Request) -> Response:
        store = self._api.store
        upload = await receive_upload(request, store, limit=self._config.max_upload_bytes)
        try:
            purpose, lifetime = _purpose(upload), _lifetime(upload)
        except ApiError:
            store.drop_chunks(upload.file_id)
            raise
        store.add_file(
            upload.file_id,
            purpose=purpose,
            filename=upload.filename,
            size=upload.size,
            now=self._now(),
            lifetime=lifetime,
        )
        file = store.file(upload.file_id, self._now()) or {}
        return Json({**file, **self._dialect.new_file}, self._dialect.created)

    async def list_files(self, request: Request) -> Response:
        query = request.query_params
        limit = _limit(request, _MAX_FILES_PAGE, _MAX_FILES_PAGE)
        if query.get("order", "desc") not in {"asc", "desc"}:
            raise ApiError(400, "'order' must be 'asc' or 'desc'.", param="order")
        found = self._api.store.files(
            now=self._now(),
            after=query.get("after"),
            limit=limit,
            purpose=query.get("purpose"),
            newest_first=query.get("order") != "asc",
        )
        return _page(found, limit)

    async def retrieve_file(self, request: Request) -> Response:
        return Json(self._file(request))

    async def delete_file(self, request: Request) -> Response:
        file_id = self._file(request)["id"]
        self._api.store.delete_file(file_id)
        return Json({"id": file_id, "object": "file", "deleted": True})

    async def file_content(self, request: Request) -> Response:
        file_id, store = self._file(request)["id"], self._api.store
        found = store.result_file(file_id)
        if found is None:
            return StreamingResponse(_each(store.chunks(file_id)), media_type="application/octet-stream")
        batch_id, is_error = found
        skip, stop = 0, store.count_results(batch_id, is_error=is_error)
        headers = {}
        if self._config.partial_results:
            text = request.query_params.get("skip", "0")
            if not (text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS):
                raise ApiError(400, "'skip' must be an integer, 0 or more.", param="skip")
            skip = int(text)
            batch = store.batch(batch_id) or {}
            incomplete = "false" if batch.get("status") in TERMINAL else "true"
            headers = {"X-Incomplete": incomplete, "X-Last-Line": str(max(skip, stop))}
        lines = store.results(batch_id, is_error=is_error, skip=skip, stop=stop)
        return StreamingResponse(_each(lines), headers=headers, media_type="application/octet-stream")

    # Batches

    def _batch(self, request: Request) -> dict[str, Any]:
        batch_id = request.path_params["batch_id"]
        found = self._api.store.batch(batch_id)
        if found is None:
            raise ApiError(404, f"No batch found with id '{batch_id}'.", param="batch_id")
        return found

    async def create_batch(self, request: Request) -> Response:
        body = await _json_object(request, self._config.max_line_bytes)
        now = self._now()
        batch = new_batch(body, self._api.store, self._dialect, now=now)
        lifetime = output_lifetime(body)
        self._api.store.add_batch(batch, output_expires_after=lifetime)
        self._api.start(batch["id"])
        return Json(batch, self._dialect.created)

    async def list_batches(self, request: Request) -> Response:
        limit = _limit(request, _DEFAULT_PAGE, _MAX_PAGE)
        return _page(self._api.store.batches(after=request.query_params.get("after"), limit=limit), limit)

    async def retrieve_batch(self, request: Request) -> Response:
        return Json(self._batch(request))

    async def cancel_batch(self, request: Request) -> Response:
        batch = cancel_batch(self._batch(request), self._api.store, now=self._now())
        self._api.cancel(batch["id"])
        return Json(batch)

    # Models and realtime endpoints

    async def list_models(self, _request: Request) -> Response:
        if self._api.upstream is not None:
            status, body, _ = await self._api.upstream.get("models")
            return Json(body, status)
        return Json({"object": "list", "data": [_model(name) for name in MODELS]})

    async def retrieve_model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if self._api.upstream is not None:
            status, body, _ = await self._api.upstream.get(f"models/{name}")
            return Json(body, status)
        if name not in MODELS:
            raise ApiError(404, f"The model '{name}' does not exist", param="model", code="model_not_found")
        return Json(_model(name))

    async def realtime(self, operation: str, request: Request) -> Any:
        body = await _json_object(request, self._config.max_line_bytes)
        if "deployment" in request.path_params:
            body["model"] = request.path_params["deployment"]
        self._api.realtime_calls[operation] += 1
        if self._api.upstream is not None:
            return self._api.upstream.passing(operation, body)
        await anyio.sleep(self._config.latency_seconds)
        status, answered, _ = answer_now(operation, body, now=self._now())
        if status < 400 and body.get("stream") is True:  # noqa: PLR2004 -- HTTP's errors
            return StreamingResponse(
                _each(sse.encode(operation, answered, body)), media_type="text/event-stream"
            )
        return Json(answered, status)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "autobatcher"}


async def _each(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    """An async iterator, for Starlette runs others in a thread."""
    for part in parts:
        yield part


def build_app(api: LocalBatchAPI) -> Starlette:
    """The ASGI application of a server."""
    routes, dialect = _Routes(api), api.config.dialect
    table: list[tuple[str, str, Any]] = [
        ("POST", "/files", routes.create_file),
        ("GET", "/files", routes.list_files),
        ("GET", "/files/{file_id}", routes.retrieve_file),
        ("DELETE", "/files/{file_id}", routes.delete_file),
        ("GET", "/files/{file_id}/content", routes.file_content),
        ("POST", "/batches", routes.create_batch),
        ("GET", "/batches", routes.list_batches),
        ("GET", "/batches/{batch_id}", routes.retrieve_batch),
        ("POST", "/batches/{batch_id}/cancel", routes.cancel_batch),
        ("GET", "/models", routes.list_models),
        ("GET", "/models/{model:path}", routes.retrieve_model),
        *(
            ("POST", path, partial(routes.realtime, operation))
            for path, operation in dialect.realtime.items()
        ),
    ]
    return Starlette(
        routes=[Route(dialect.prefix + path, handler, methods=[method]) for method, path, handler in table],
        middleware=[Middleware(Guard, config=api.config)],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: partial(_http_error, dialect),
            ClientDisconnect: _disconnected,
            Exception: _server_error,
        },
        lifespan=api.lifespan,
    )
