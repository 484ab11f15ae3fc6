"""What the commands have in common: the server and its key, exit codes, and errors as people read them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import urlsplit, urlunsplit

import anyio
import openai
import typer

from autobatcher.errors import AutobatcherError, JournalError
from autobatcher.jobs.items import InputError

T = TypeVar("T")

SOME_FAILED = 1
USAGE = 2
SERVER = 3
INTERRUPTED = 130

EXIT_CODES = "Exit codes: 0 all answered, 1 some failed, 2 usage, 3 server or network."

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
        _check_url(base_url)
    theirs = base_url is not None and base_url.rstrip("/") == DOUBLEWORD
    key = api_key or (theirs and os.environ.get("DOUBLEWORD_API_KEY")) or os.environ.get("OPENAI_API_KEY")
    key = (key or "").strip()
    if not key:
        fail("no key: give --api-key, or set OPENAI_API_KEY (or DOUBLEWORD_API_KEY)", USAGE)
    if not (key.isascii() and key.isprintable()):
        fail("the key has characters in it that no key can have, such as a line break", USAGE)
    return {"api_key": key} if base_url is None else {"api_key": key, "base_url": base_url}


def _check_url(base_url: str) -> None:
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
        print(json.dumps(fields, ensure_ascii=False))
    except UnicodeEncodeError:  # half of a surrogate pair, or a terminal that does not know the character
        print(json.dumps(fields))


@contextmanager
def told() -> Iterator[None]:
    """Errors of the user, of the server and of the network end the command with a line and the exit code for it."""
    try:
        yield
    except (InputError, JournalError, FileExistsError, FileNotFoundError) as error:
        fail(_text(error), USAGE)
    except openai.APIStatusError as error:
        fail(f"the server answered {error.status_code}: {error.message}", SERVER)
    except openai.APIConnectionError as error:  # whose cause may quote the key
        cause = error.__cause__
        why = "" if cause is None else f" ({type(cause).__name__})"
        fail(f"{shown(str(error.request.url))}: {error.message}{why}", SERVER)
    except (openai.OpenAIError, AutobatcherError) as error:
        fail(str(error), SERVER)
    except OSError as error:
        fail(_text(error), USAGE)


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def run_async(function: Callable[[], Awaitable[T]], *, interrupted: Callable[[], object] = lambda: None) -> T:
    """Run a coroutine function to its end; Ctrl-C ends the command with `INTERRUPTED`, after that is told."""
    with told():
        try:
            return anyio.run(function)
        except KeyboardInterrupt:
            interrupted()
            raise typer.Exit(INTERRUPTED) from None
