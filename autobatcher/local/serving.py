"""Serving over sockets, with uvicorn."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autobatcher.local.server import LocalBatchAPI

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import uvicorn

    from autobatcher.local.config import LocalConfig

_BACKLOG = 2048
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


def _listen(host: str, port: int) -> tuple[socket.socket, str]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    name = f"[{host}]" if ":" in host else host
    return listener, f"http://{name}:{listener.getsockname()[1]}"


def _server(api: LocalBatchAPI) -> uvicorn.Server:
    import uvicorn  # noqa: PLC0415 -- in process the server does without

    return uvicorn.Server(
        uvicorn.Config(
            api.app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_level="warning",
            access_log=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
    )


def serve(config: LocalConfig, *, host: str, port: int, on_start: Callable[[Serving], None]) -> None:
    """Serve until interrupted; `on_start` is called once the address is bound."""
    listener, origin = _listen(host, port)
    with listener:
        api = LocalBatchAPI(config)
        server = _server(api)
        on_start(Serving(origin, api))
        server.run(sockets=[listener])
        if not server.started:
            raise RuntimeError("The server did not start; its log says why.")


@contextmanager
def serve_in_thread(config: LocalConfig, host: str = "127.0.0.1", port: int = 0) -> Iterator[Serving]:
    """Serve from a thread of its own while the context lasts; port 0 takes a free one."""
    listener, origin = _listen(host, port)
    with listener:
        api = LocalBatchAPI(config)
        server = _server(api)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="autobatcher-local", daemon=True
        )
        thread.start()
        try:
            while thread.is_alive() and not server.started:  # uvicorn has no other sign of having started
                time.sleep(0.005)
            if not server.started:
                raise RuntimeError("The server did not start; its log says why.")
            yield Serving(origin, api)
        finally:
            server.should_exit = True
            thread.join()
