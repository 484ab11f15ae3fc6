"""What the commands have in common: the server and its key, exit codes, and errors as people read them."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn, TypeVar
from urllib.parse import urlsplit, urlunsplit

import anyio
import openai
import typer

from autobatcher.display_state import printable
from autobatcher.errors import JournalError
from autobatcher.jobs.disk import naming
from autobatcher.jobs.items import InputError

T = TypeVar("T")

SOME_FAILED = 1
USAGE = 2
SERVER = 3
DISK = 4
INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 all went well, 1 something failed (a request, a check), 2 usage, 3 server or network, 4 disk,"
    " 130 interrupted."
)
"""Of all commands."""

STDOUT = "-"
"""In place of a file's name."""

NOT_FOUND = 404

SAID = 500
"""Characters of what a server says is wrong that are told."""

DOUBLEWORD = "https://api.doubleword.ai/v1"

BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="The server, such as https://api.openai.com/v1 (default: OPENAI_BASE_URL; Doubleword's address if only"
        " DOUBLEWORD_API_KEY is set; else OpenAI).",
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        help="Its key (default: OPENAI_API_KEY; for Doubleword's address DOUBLEWORD_API_KEY). Other users of this"
        " machine can see what is on a command line.",
    ),
]
Window = Annotated[
    str,
    typer.Option("--window", metavar="TIME", help="The completion window: 24h, 1h, what the server takes."),
]
MaxActiveBatches = Annotated[
    int | None,
    typer.Option("--max-active-batches", min=1, help="The most batches at the server at a time."),
]
MaxEnqueuedTokens = Annotated[
    int | None,
    typer.Option("--max-enqueued-tokens", min=1, help="The most prompt tokens of a model there at a time."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]


def server_of(base_url: str | None) -> str | None:
    """The server that the options and the environment name; None: OpenAI."""
    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
    if base_url is None and os.environ.get("DOUBLEWORD_API_KEY") and not os.environ.get("OPENAI_API_KEY"):
        return DOUBLEWORD
    return base_url


def connection(base_url: str | None, api_key: str | None) -> dict[str, str]:
    """The arguments `base_url` and `api_key` of a client; the process ends with `USAGE` if there is no key."""
    base_url = server_of(base_url) if not api_key else base_url or os.environ.get("OPENAI_BASE_URL") or None
    if base_url is not None:
        check_url(base_url)
    theirs = base_url is not None and base_url.rstrip("/") == DOUBLEWORD
    key = api_key or (theirs and os.environ.get("DOUBLEWORD_API_KEY")) or os.environ.get("OPENAI_API_KEY")
    key = (key or "").strip()
    if not key:
        fail("no key: give --api-key, or set OPENAI_API_KEY (or DOUBLEWORD_API_KEY)", USAGE)
    if not (key.isascii() and key.isprintable()):
        fail("the key has characters in it that no key can have, such as a line break", USAGE)
    return {"api_key": key} if base_url is None else {"api_key": key, "base_url": base_url}


def check_url(base_url: str) -> None:
    """End with `USAGE` if this is no address of a server."""
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        _ = parts.port  # which may be none
    except ValueError:
        usable = False
    if not usable:
        fail(
            "the server's address must be like https://api.openai.com/v1: http or https, a host, no query",
            USAGE,
        )


def shown(base_url: str) -> str:
    """A server's address without what may be secret in it: a name and password before the host, and the query."""
    parts = urlsplit(base_url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def say(text: str) -> None:
    """A line for people, who look at stderr."""
    print(text, file=sys.stderr)


def fail(text: str, code: int) -> NoReturn:
    """End with a line on stderr."""
    say(f"autobatcher: {text}")
    raise typer.Exit(code)


def print_json(fields: Mapping[str, Any]) -> None:
    """One object on a line of stdout."""
    try:
        put(json.dumps(fields, ensure_ascii=False))
    except UnicodeEncodeError:  # half of a surrogate pair, or a terminal that does not know the character
        put(json.dumps(fields))


def put(text: object) -> None:
    """A line on stdout."""
    with naming("<stdout>"):
        print(text, flush=True)


def drop_unwritten() -> None:
    """Give up what stdout could not take, which has been told: Python would try once more, and say so in its own way."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout_or(path: Path) -> Path | IO[bytes]:
    """Where to write what is to go there."""
    return sys.stdout.buffer if str(path) == STDOUT else path


@contextmanager
def told(then: str = "run the same command again") -> Iterator[None]:
    """Errors of the user, of the server, the network and the disk end the command with a line and the exit code for it.

    Args:
        then: what is to be done when the disk is as it should be.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except FileExistsError as error:
        fail(f"{_text(error)}; --overwrite replaces it", USAGE)
    except (InputError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        fail(_text(error), USAGE)
    except openai.APIStatusError as error:
        said = printable(" ".join(error.message.split()))[:SAID]  # it may be the page of a proxy
        fail(f"the server answered {error.status_code}: {said}{_hint(error)}", SERVER)
    except openai.APIConnectionError as error:  # whose cause may quote the key
        cause = error.__cause__
        why = "" if cause is None else f" ({type(cause).__name__})"
        fail(f"{shown(str(error.request.url))}: {error.message}{why}", SERVER)
    except BrokenPipeError:  # who has read stdout has enough, which typer knows
        raise
    except (openai.OpenAIError, OSError) as error:
        cause = error.__cause__ if isinstance(error, JournalError) else error
        if isinstance(cause, (OSError, sqlite3.OperationalError)):
            fail(f"{_text(error)}; {_remedy(cause)}, and {then}", DISK)
        fail(str(error), USAGE if isinstance(error, JournalError) else SERVER)


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


_FULL = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


def _remedy(error: OSError | sqlite3.Error) -> str:
    full = error.errno in _FULL if isinstance(error, OSError) else "full" in str(error)
    return "make room there" if full else "see that it can be read and written"


def _hint(error: openai.APIStatusError) -> str:
    """Why the server may know nothing of what it was asked for."""
    url = shown(str(error.request.url))
    if error.status_code != NOT_FOUND or re.search(r"/v\d", urlsplit(url).path):
        return ""
    return f" (there is no /v1 in {url}, which most servers want at the end of --base-url)"


def run_async(
    function: Callable[[], Awaitable[T]],
    *,
    then: str = "run the same command again",
    interrupted: Callable[[], object] = lambda: None,
) -> T:
    """Run a coroutine function to its end; `interrupted` is called when Ctrl-C ends it, `then` is as for `told`."""
    with told(then):
        try:
            return anyio.run(_terminable, function)
        except (KeyboardInterrupt, asyncio.CancelledError):
            interrupted()
            raise KeyboardInterrupt from None


async def _terminable(function: Callable[[], Awaitable[T]]) -> T:
    """Run a coroutine function, which SIGTERM cancels: as Ctrl-C does, and also where that is ignored."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is None or threading.current_thread() is not threading.main_thread():
        return await function()
    cancel = task.cancel
    before = signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(cancel))
    try:
        return await function()
    finally:
        signal.signal(signal.SIGTERM, before)
