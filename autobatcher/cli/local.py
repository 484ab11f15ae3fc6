"""`autobatcher local`: serve the embedded Batch API."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autobatcher.local.config import LocalConfig
from autobatcher.local.serving import serve

if TYPE_CHECKING:
    from autobatcher.local.serving import Serving

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def local(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    db: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="SQLite file that survives a restart (default: in memory)."),
    ] = None,
    upstream: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible server that answers, such as http://127.0.0.1:11434/v1 (default: a built-in"
            " model). Its key comes from AUTOBATCHER_UPSTREAM_API_KEY or OPENAI_API_KEY."
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="AUTOBATCHER_LOCAL_API_KEY", show_envvar=True, help="Key that clients must send."
        ),
    ] = None,
    azure: Annotated[
        bool,
        typer.Option("--azure", help="Pose as Azure OpenAI: for AsyncAzureOpenAI and the like."),
    ] = False,
    partial_results: Annotated[
        bool,
        typer.Option("--partial-results", help="Serve results before a batch ends; several models per file."),
    ] = False,
    latency: Annotated[
        float, typer.Option(min=0, help="Seconds the built-in model takes for an answer.")
    ] = 0.0,
    concurrency: Annotated[int, typer.Option(min=1, help="Most lines under way at once.")] = 64,
) -> None:
    """Serve a Batch API for development, tests and self-hosted models, until Ctrl-C.

    Example: autobatcher local --port 8000 --upstream http://127.0.0.1:11434/v1
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the server has its own way with it
    key = os.environ.get("AUTOBATCHER_UPSTREAM_API_KEY") or os.environ.get("OPENAI_API_KEY")
    try:
        config = LocalConfig(
            db=db,
            upstream=upstream,
            upstream_key=key if upstream else None,
            concurrency=concurrency,
            latency_seconds=latency,
            partial_results=partial_results,
            api_key=api_key,
            azure=azure,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if host not in _LOOPBACK and api_key is None:
        print("Warning: open to the network without --api-key.", file=sys.stderr)

    def on_start(serving: Serving) -> None:
        where = f"azure_endpoint={serving.origin}" if azure else serving.base_url
        print(f"Batch API at {where} (Ctrl+C stops it)", file=sys.stderr, flush=True)

    try:
        serve(config, host=host, port=port, on_start=on_start)
    except OSError as error:
        sys.exit(f"autobatcher: cannot listen on {host}:{port}: {error.strerror or error}")
    except RuntimeError as error:
        sys.exit(f"autobatcher: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
