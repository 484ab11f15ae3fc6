"""`autobatcher serve`: an OpenAI-compatible proxy whose callers share batches."""

from __future__ import annotations

import enum
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autobatcher.cli.common import (
    SERVER,
    USAGE,
    BaseUrl,
    MaxActiveBatches,
    MaxEnqueuedTokens,
    Window,
    check_url,
    fail,
    say,
    server_of,
    told,
)
from autobatcher.core.window import MAX_LINES
from autobatcher.serve.config import LOOPBACK, MAX_BODY, MAX_WAITING, ServeConfig

if TYPE_CHECKING:
    from autobatcher.serve.serving import Serving


class OnDeadline(str, enum.Enum):
    """What a caller gets at its deadline."""

    RAISE = "raise"
    REALTIME = "realtime"


class OnExpired(str, enum.Enum):
    """What becomes of a request whose batch expires."""

    RESUBMIT = "resubmit"
    REALTIME = "realtime"
    RAISE = "raise"


def serve(
    *,
    base_url: BaseUrl = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="AUTOBATCHER_UPSTREAM_API_KEY",
            show_envvar=True,
            help="The key for it, for all callers (default: each caller's own header Authorization is passed on; what"
            " is of different keys shares nothing). Other users of this machine can see what is on a command line.",
        ),
    ] = None,
    serve_key: Annotated[
        str | None,
        typer.Option(
            "--serve-key",
            metavar="KEY",
            envvar="AUTOBATCHER_SERVE_KEY",
            show_envvar=True,
            help="What callers must send: in the header X-Serve-Key, or with --api-key as their API key. Without one"
            " only programs on this machine may call.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; another than loopback needs --serve-key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="The port; 0 takes a free one.")
    ] = 8080,
    journal: Annotated[
        Path | None,
        typer.Option(
            "--journal",
            metavar="FILE",
            dir_okay=False,
            help="Keep requests and answers here: started again, the proxy goes on where it was.",
        ),
    ] = None,
    keep_alive: Annotated[
        float | None,
        typer.Option(
            "--keep-alive",
            metavar="SECONDS",
            min=0.1,
            help="Send callers that wait this long, and as often, white space, which JSON allows, so that nothing on"
            " the way hangs up. The price: the status is 200 by then, also of what turns out an error. Streams get"
            " comments this often, by default every 15 s.",
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0,
            help="When told to stop, deliver what comes within this time, and send the others away with 503.",
        ),
    ] = 5.0,
    max_body: Annotated[
        int, typer.Option("--max-body", metavar="BYTES", min=1, help="The largest body of a batched request.")
    ] = MAX_BODY,
    max_waiting: Annotated[
        int | None,
        typer.Option(
            "--max-waiting",
            min=1,
            help=f"The most callers that wait at a time; one more gets 429 (default: {MAX_WAITING:,}, or as many as the"
            " system's limit of open files allows).",
        ),
    ] = None,
    window: Window = "24h",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_LINES, help="Requests that close a batch at once.")
    ] = 1000,
    batch_window: Annotated[
        float,
        typer.Option(
            "--batch-window-seconds",
            min=0,
            help="How long a batch stays open for more after its first request.",
        ),
    ] = 1.0,
    poll_interval: Annotated[
        float,
        typer.Option("--poll-interval-seconds", min=0.01, help="Seconds between polls of a young batch."),
    ] = 5.0,
    max_active_batches: MaxActiveBatches = None,
    max_enqueued_tokens: MaxEnqueuedTokens = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline-seconds",
            min=0.01,
            help="How long a caller waits at most (default: as long as it takes).",
        ),
    ] = None,
    on_deadline: Annotated[
        OnDeadline,
        typer.Option(
            "--on-deadline", help="What it gets then: the error 504, or the answer of a realtime call."
        ),
    ] = OnDeadline.RAISE,
    on_expired: Annotated[
        OnExpired,
        typer.Option(
            "--on-expired",
            help="What becomes of a request whose batch expires: it goes into another, into a realtime call, or its"
            " caller gets the error.",
        ),
    ] = OnExpired.RESUBMIT,
    max_realtime_calls: Annotated[
        int,
        typer.Option("--max-realtime-calls", min=1, help="The most of these realtime calls at a time."),
    ] = 100,
    patience: Annotated[
        float,
        typer.Option(
            "--patience-seconds",
            min=0.01,
            help="For how long the calls for a batch, such as its upload, may fail on end, as while the server is down,"
            " before its callers get the error.",
        ),
    ] = 86_400.0,
    max_retries: Annotated[
        int,
        typer.Option(
            "--max-retries",
            min=0,
            help="How often a request goes into another batch when its answer is an error that may pass, such as 429.",
        ),
    ] = 2,
) -> None:
    """Serve an OpenAI-compatible API whose callers share batches, whatever their language and process.

    Chat completions, embeddings and responses go into batches, and each caller waits for its own answer, as a stream if
    it asks for one; everything else is passed on to the server. SIGTERM and Ctrl-C stop it in order. /health and
    /metrics say how it is doing.

    After SIGTERM the exit code is 0; it is 3, too, if the address cannot be listened on.

    Example: autobatcher serve --journal proxy.db --port 8080
    """
    from autobatcher.serve.serving import room  # noqa: PLC0415 -- needs uvicorn, of which main() tells
    from autobatcher.serve.serving import serve as serve_proxy  # noqa: PLC0415 -- as above

    if host not in LOOPBACK and not serve_key:
        fail(
            f"--host {host} lets others in: give --serve-key (or AUTOBATCHER_SERVE_KEY), too, which they then send",
            USAGE,
        )
    url = server_of(base_url)
    if url is not None:
        check_url(url)
    options: dict[str, Any] = {
        "completion_window": window,
        "batch_size": batch_size,
        "batch_window_seconds": batch_window,
        "poll_interval_seconds": poll_interval,
        "max_active_batches": max_active_batches,
        "max_enqueued_tokens": max_enqueued_tokens,
        "deadline_seconds": deadline,
        "on_deadline": on_deadline.value,
        "on_expired": on_expired.value,
        "max_realtime_calls": max_realtime_calls,
        "patience_seconds": patience,
        "max_retries": max_retries,
    }
    possible = room(max_waiting or MAX_WAITING)
    if max_waiting is not None and possible < max_waiting:
        say(f"autobatcher: the system's limit of open files allows {possible:,} waiting callers at most")
    try:
        config = ServeConfig(
            base_url=url,
            api_key=api_key,
            serve_key=serve_key,
            journal=journal,
            keep_alive_seconds=keep_alive,
            max_body_bytes=max_body,
            max_waiting=possible if max_waiting is None else max_waiting,
            grace_seconds=grace,
            options=options,
        )
    except ValueError as error:
        fail(str(error), USAGE)

    def on_start(serving: Serving) -> None:
        print(f"base_url={serving.base_url} (Ctrl+C stops it)", file=sys.stderr, flush=True)

    with _log_on_stderr(), told("start it again"):
        try:
            serve_proxy(config, host=host, port=port, on_start=on_start)
        except RuntimeError as error:
            fail(str(error), SERVER)


@contextmanager
def _log_on_stderr() -> Iterator[None]:
    """What happens to batches, a line each, meanwhile."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("autobatcher")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(os.environ.get("AUTOBATCHER_LOG", "INFO").upper())
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
