"""Serving the proxy over sockets, with uvicorn."""

from __future__ import annotations

import logging
import signal
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from autobatcher.serve.app import Proxy
from autobatcher.serve.config import LOOPBACK
from autobatcher.serve.connections import CallersProtocol
from autobatcher.serve.waiting import DEAD
from autobatcher.serving import listen, run, running_in_thread, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from autobatcher.serve.config import ServeConfig

_AFTER_GRACE = 5.0
"""Seconds that callers have to take the last that is sent to them."""

_OTHER_FILES = 200
"""Files and connections that are not callers': to the upstream, the journal, the libraries."""


@dataclass(frozen=True)
class Serving:
    """A proxy that listens.

    Attributes:
        origin: its address without a path, such as `http://127.0.0.1:8080`.
        proxy: the proxy.
    """

    origin: str
    proxy: Proxy

    @property
    def base_url(self) -> str:
        """The base URL of its callers."""
        return f"{self.origin}/v1"


class _Server(uvicorn.Server):
    """A server that lets its callers go before it ends."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(
            settings(
                proxy.app,
                stop_seconds=proxy.config.grace_seconds + _AFTER_GRACE,
                http=CallersProtocol,
                date_header=False,  # what is passed on has the upstream's, and all else its own
                server_header=False,
            )
        )
        self._proxy = proxy

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, and wait for those who are here."""
        self._proxy.drain()
        await super().shutdown(sockets)


def _find_dead(listener: socket.socket) -> None:
    """Have the system find connections that are dead, though nobody has said so; those that are accepted inherit it.

    A caller may wait for hours without a word, and its network may be gone, or whatever has kept the connection.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": 30,
        "TCP_KEEPALIVE": 30,  # the same on macOS
        "TCP_KEEPINTVL": 10,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": int(DEAD * 1000),  # also of one that takes nothing of what is sent
    }
    for name, value in options.items():
        option = getattr(socket, name, None)
        if option is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def room(callers: int) -> int:
    """How many callers there can be, of this many: each is an open file to the system, whose limit is raised."""
    try:
        import resource  # noqa: PLC0415 -- not on Windows
    except ImportError:
        return callers
    wanted = callers + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return callers
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):
        most = soft
    return max(1, most - _OTHER_FILES)


class _Expected(logging.Filter):
    """Leaves out what uvicorn says of a response that was cut on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is told."""
        return "without completing response" not in record.getMessage()


def serve(config: ServeConfig, *, host: str, port: int, on_start: Callable[[Serving], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; `on_start` is called once the address is bound.

    Raises:
        JournalError: the journal cannot be used.
        RuntimeError: the address cannot be listened on, or it did not start.
        ValueError: another host than loopback, and no `serve_key`.
        KeyboardInterrupt: it was ended so.
    """
    _check_host(config, host)
    with _listening(host, port) as (listener, origin):
        proxy = Proxy(config)
        server = _Server(proxy)
        logging.getLogger("uvicorn.error").addFilter(_Expected())
        # uvicorn ends in order and then raises the signal once more, which would end the process. Before it listens to
        # signals itself, this one makes it end, too.
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        on_start(Serving(origin, proxy))
        run(server, listener)


@contextmanager
def serve_in_thread(config: ServeConfig, host: str = "127.0.0.1", port: int = 0) -> Iterator[Serving]:
    """Serve from a thread of its own while the context lasts; port 0 takes a free one.

    Raises:
        JournalError: the journal cannot be used.
        RuntimeError: the address cannot be listened on, or it did not start.
        ValueError: another host than loopback, and no `serve_key`.
    """
    _check_host(config, host)
    with _listening(host, port) as (listener, origin):
        proxy = Proxy(config)
        server = _Server(proxy)
        logging.getLogger("uvicorn.error").addFilter(_Expected())
        with running_in_thread(server, listener, "autobatcher-serve"):
            yield Serving(origin, proxy)


def _check_host(config: ServeConfig, host: str) -> None:
    if host not in LOOPBACK and config.serve_key is None:
        raise ValueError(f"the host {host} lets others in: that needs a serve_key, which they then send")


@contextmanager
def _listening(host: str, port: int) -> Iterator[tuple[socket.socket, str]]:
    try:
        listener, origin = listen(host, port)
    except OSError as error:
        raise RuntimeError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    with listener:
        _find_dead(listener)
        yield listener, origin
