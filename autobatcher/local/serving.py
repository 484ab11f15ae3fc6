"""Serving over sockets, with uvicorn."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autobatcher.local.server import LocalBatchAPI
from autobatcher.serving import listen, run, running_in_thread, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import uvicorn

    from autobatcher.local.config import LocalConfig

_STOP_SECONDS = 5


@dataclass(frozen=True)
class Serving:
    """A server that listens.

    Attributes:
        origin: Its address without a path, such as `http://127.0.0.1:8000`: the `azure_endpoint` in Azure mode.
        api: The server.
    """

    origin: str
    api: LocalBatchAPI

    @property
    def base_url(self) -> str:
        """The URL that all paths are below, which is what the SDK wants."""
        return self.origin + self.api.config.dialect.prefix


def _server(api: LocalBatchAPI) -> uvicorn.Server:
    import uvicorn  # noqa: PLC0415 -- in process the server does without

    return uvicorn.Server(settings(api.app, stop_seconds=_STOP_SECONDS))


def serve(config: LocalConfig, *, host: str, port: int, on_start: Callable[[Serving], None]) -> None:
    """Serve until interrupted; `on_start` is called once the address is bound."""
    listener, origin = listen(host, port)
    with listener:
        api = LocalBatchAPI(config)
        server = _server(api)
        on_start(Serving(origin, api))
        run(server, listener)


@contextmanager
def serve_in_thread(config: LocalConfig, host: str = "127.0.0.1", port: int = 0) -> Iterator[Serving]:
    """Serve from a thread of its own while the context lasts; port 0 takes a free one."""
    listener, origin = listen(host, port)
    with listener:
        api = LocalBatchAPI(config)
        with running_in_thread(_server(api), listener, "autobatcher-local"):
            yield Serving(origin, api)
