"""Serving over sockets, with uvicorn: what the embedded server and the proxy have in common."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import uvicorn

BACKLOG = 2048


def listen(host: str, port: int) -> tuple[socket.socket, str]:
    """A socket that listens, and its address as an origin, such as `http://127.0.0.1:8000`; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    name = f"[{host}]" if ":" in host else host
    return listener, f"http://{name}:{listener.getsockname()[1]}"


def settings(app: Any, *, stop_seconds: float, **others: Any) -> uvicorn.Config:
    """How an application is served; once told to stop, what is under way has that long. `others`: of `uvicorn.Config`."""
    import uvicorn  # noqa: PLC0415 -- in process the embedded server does without

    return uvicorn.Config(
        app,
        **{"http": "h11", **others},
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="warning",
        access_log=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=stop_seconds,  # type: ignore[arg-type] # which is waited for, whole or not
    )


def run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until interrupted.

    Raises:
        RuntimeError: it did not start.
    """
    server.run(sockets=[listener])
    if not server.started:
        raise RuntimeError("The server did not start; its log says why.")


@contextmanager
def running_in_thread(server: uvicorn.Server, listener: socket.socket, name: str) -> Iterator[None]:
    """Serve from a thread of its own while the context lasts.

    Raises:
        RuntimeError: it did not start.
    """
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name=name, daemon=True)
    thread.start()
    try:
        while thread.is_alive() and not server.started:  # uvicorn has no other sign of having started
            time.sleep(0.005)
        if not server.started:
            raise RuntimeError("The server did not start; its log says why.")
        yield
    finally:
        server.should_exit = True
        thread.join()
