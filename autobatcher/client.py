"""The drop-in client: an `openai.AsyncOpenAI` whose calls share batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import openai

from autobatcher.answers import to_result
from autobatcher.collector import Collector
from autobatcher.core.endpoints import batched_path, line_url, weight
from autobatcher.core.window import OversizedError
from autobatcher.errors import RequestTooLargeError
from autobatcher.options import BatchOptions
from autobatcher.runtime.pool import HttpPool

if TYPE_CHECKING:
    from openai._models import FinalRequestOptions
    from typing_extensions import Self

    from autobatcher._http import httpx


class BatchOpenAI(openai.AsyncOpenAI):
    """An `openai.AsyncOpenAI` whose chat completions, embeddings and responses travel in batches.

    Takes every argument and environment variable of `openai.AsyncOpenAI`, with its meaning; `timeout` and
    `max_retries` are those of the single HTTP calls. Calls that are made within one window and name the same
    endpoint and model become one batch; each caller gets the object, or the exception, of its realtime call. All
    other methods (models, files, batches, images, ...) are the SDK's own.

    Works with asyncio and trio, with and without `async with`, and in one event loop after another.

    Args:
        batch_size: requests that close a window at once; default 1000.
        batch_window_seconds: how long a window stays open after its first request; default 1 s.
        poll_interval_seconds: time between polls of a young batch, default 5 s; grows to 2% of the batch's age, at
            most 10 minutes.
        completion_window: the server's time for a batch, default "24h"; any value the server takes.
        batch_metadata: attached to every batch: up to 16 pairs of str.
        **kwargs: the arguments of `openai.AsyncOpenAI`.

    Raises:
        ValueError: a batch option makes no sense; the message says what is allowed.
        TypeError: a batch option is of a wrong type.
        openai.OpenAIError: as from `openai.AsyncOpenAI`, such as for a missing API key.
    """

    _pool: HttpPool
    _collector: Collector

    def __init__(
        self,
        *,
        batch_size: int = 1000,
        batch_window_seconds: float = 1.0,
        poll_interval_seconds: float = 5.0,
        completion_window: str = "24h",
        batch_metadata: Mapping[str, str] | None = None,
        _parent: BatchOpenAI | None = None,
        **kwargs: Any,
    ) -> None:
        options = BatchOptions(
            batch_size, batch_window_seconds, poll_interval_seconds, completion_window, batch_metadata
        )
        super().__init__(**kwargs)
        http_client = self.__dict__.pop("_client")
        if _parent is not None:
            self._platform = _parent._platform  # noqa: SLF001 -- else each copy looks it up again, in a thread
        self._owns_pool = False
        if _parent is not None and http_client is _parent._client:  # noqa: SLF001 -- of the same class
            self._pool = _parent._pool  # noqa: SLF001
        elif kwargs.get("http_client") is not None:
            self._owns_pool = True
            self._pool = HttpPool(http_client, make=None)
        else:
            self._owns_pool = True
            self._pool = HttpPool(
                http_client, lambda: type(http_client)(base_url=self.base_url, timeout=self.timeout)
            )
        self._options = options
        self._shares_collector = _parent is not None and self._reaches_the_same(_parent)
        if _parent is not None and self._shares_collector:
            self._collector = _parent._collector  # noqa: SLF001
        else:
            self._collector = Collector(self, options, self._pool if self._owns_pool else None)
            if _parent is not None and not self._owns_pool:
                _parent._collector.adopt(self._collector)  # noqa: SLF001

    # The SDK keeps its HTTP client in `_client` and reads it at every call. A client of its own making belongs to
    # the event loop that first used it; this property gives each loop one.
    @property
    def _client(self) -> httpx.AsyncClient:
        pool: HttpPool | None = self.__dict__.get("_pool")
        client: httpx.AsyncClient = self.__dict__["_client"] if pool is None else pool.current()
        return client

    @_client.setter
    def _client(self, client: httpx.AsyncClient) -> None:
        self.__dict__["_client"] = client
        if "_pool" in self.__dict__:  # replaced by hand
            self._pool = HttpPool(self.__dict__.pop("_client"), make=None)

    def copy(self, **kwargs: Any) -> Self:
        """A client with some options changed, as in the SDK; the batch options can be changed as well.

        The copy's calls share batches with this client's unless they would reach another server, go out under
        another identity, with other default headers, or by other batch options. Closing the copy does not close
        this client.
        """
        options = self._options
        extra = {
            "batch_size": options.batch_size,
            "batch_window_seconds": options.batch_window_seconds,
            "poll_interval_seconds": options.poll_interval_seconds,
            "completion_window": options.completion_window,
            "batch_metadata": options.batch_metadata,
            "_parent": self,
            **(kwargs.pop("_extra_kwargs", None) or {}),
        }
        extra.update({name: kwargs.pop(name) for name in list(kwargs) if name in extra})
        return super().copy(**kwargs, _extra_kwargs=extra)

    with_options = copy

    def is_closed(self) -> bool:
        """Whether `close` was called, here or on the HTTP client."""
        return self._collector.closed or super().is_closed()

    async def close(self) -> None:
        """Give every caller that still waits a `ClientClosedError`, then close the HTTP client.

        Batches that are at the server go on there. A copy that shares its parent's batches closes nothing.
        """
        if self._shares_collector:
            return
        await self._collector.close()
        if self._owns_pool:
            await self._pool.close()

    async def request(
        self,
        cast_to: Any,
        options: FinalRequestOptions,
        *,
        stream: bool = False,
        stream_cls: Any = None,
    ) -> Any:
        """Every call of the SDK ends here: those that a batch can carry join one, all others go out at once.

        Raises:
            openai.APIStatusError: what the realtime call would have raised for this request.
            openai.APIError: the batch, or a call for it, failed.
            RequestTooLargeError: the request fits into no batch file.
            ClientClosedError: the client was closed before the answer came.
            TypeError: the body cannot be encoded, or is none that a batch can carry.
        """
        path = batched_path(options.method, options.url)
        if path is None:
            return await super().request(cast_to, options, stream=stream, stream_cls=stream_cls)
        if stream:
            raise TypeError("a batched call cannot stream: leave stream=True out")
        cast_to = self._maybe_override_cast_to(cast_to, options)
        if not self.api_key:  # a callable one that was never asked: the request could not be built without it
            await self._refresh_api_key()
        request = self._build_request(options)
        fields = _fields(options)
        try:
            outcome = await self._collector.submit(
                line_url(self.base_url.path, path),
                str(fields.get("model", "")),
                request.content,
                weight(path, fields),
            )
        except OversizedError as error:
            raise RequestTooLargeError(str(error)) from None
        return await to_result(self, outcome, request=request, cast_to=cast_to, options=options)

    def _reaches_the_same(self, other: BatchOpenAI) -> bool:
        return self._pool is other._pool and self._identity() == other._identity()

    def _identity(self) -> tuple[Any, ...]:
        return (
            self.base_url,
            self._api_key_provider or self.api_key,
            self.organization,
            self.project,
            self._custom_headers,
            self._custom_query,
            self._options,
        )


def _fields(options: FinalRequestOptions) -> Mapping[str, Any]:
    """The fields of the body, as `_build_request` merges them."""
    body = options.json_data
    if (
        getattr(options, "content", None) is not None
        or options.files
        or not isinstance(body, (Mapping, type(None)))
    ):
        raise TypeError("a batched call takes a JSON object as its body, not files or raw content")
    return {**(body or {}), **(options.extra_json or {})}


AsyncOpenAI = BatchOpenAI
