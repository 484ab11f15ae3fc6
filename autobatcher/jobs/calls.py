"""Calls for a batch by hand: what fails is tried again by the engine's rules, and what ends it is told as it is."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import openai

from autobatcher.core.batch import Stumbles
from autobatcher.core.engine import Engine
from autobatcher.core.lifecycle import Step
from autobatcher.core.outcomes import Failure, Trouble
from autobatcher.core.retry import CALLS, LATER, MAX_RETRY_AFTER, MAX_SPENT, ODD_ANSWERS
from autobatcher.errors import AutobatcherError
from autobatcher.events import CallRetried
from autobatcher.jobs.items import InputError
from autobatcher.runtime.upstream import PAGE, OddAnswerError, translated

PATIENCE = 86_400.0
"""Seconds for which a call may fail on end, in ways that may pass: the client's `patience_seconds`."""

OnRetry = Callable[[CallRetried], object]
"""Called before the pause after a failure that may pass."""


def silent(_: object) -> None:
    """Tell nobody."""


class Tries:
    """Failures in a row of one call.

    Args:
        step: which call it is.
        patience: seconds for which it may fail on end.
        on_retry: is told of each failure after which it is tried again.
        batch_id: the batch that the call is about, if there is one.
    """

    def __init__(self, step: Step, patience: float, on_retry: OnRetry, batch_id: str | None = None) -> None:
        self._step, self._patience, self._on_retry, self._batch_id = step, patience, on_retry, batch_id
        self._stumbles: Stumbles | None = None

    def succeeded(self) -> None:
        """The next failure is the first."""
        self._stumbles = None

    def note(self, failure: Failure) -> bool:
        """Count a failure; whether the call may be made again."""
        now = anyio.current_time()
        if self._stumbles is None:
            self._stumbles = Stumbles(now, failure.trouble)
        stumbles = self._stumbles
        stumbles.add(failure.trouble, now, min(MAX_SPENT, self._patience / 2))
        if self._step is Step.CREATE and failure.trouble is Trouble.ODD and stumbles.alike >= ODD_ANSWERS:
            return False
        may = Engine._may_go_on(self._step, failure.trouble, stumbles)  # noqa: SLF001 -- this package's own rules
        return may and stumbles.spent <= self._patience

    def delay(self, failure: Failure, *, least: float = 0.0, most: float = MAX_RETRY_AFTER) -> float:
        """Seconds to the next try after a failure that was noted; it is planned from here on."""
        stumbles = self._stumbles
        if stumbles is None:
            return least
        spread = random.random()  # noqa: S311 -- so that clients that failed together do not come back so
        asked = min((failure.retry_after or 0.0) * (1 + spread * LATER), MAX_RETRY_AFTER)
        left = max(self._patience - stumbles.spent, 0.0)
        delay = max(CALLS.delay(stumbles.count, spread), min(asked, left))
        stumbles.planned = max(min(delay, most), least)
        return stumbles.planned

    async def pause(self, failure: Failure, *, least: float = 0.0, most: float = MAX_RETRY_AFTER) -> None:
        """Tell of a failure that was noted, and wait for the next try."""
        delay = self.delay(failure, least=least, most=most)
        self._on_retry(CallRetried(self._batch_id, self._step.value, failure.reason, delay))
        await anyio.sleep(delay)

    async def again(self, failure: Failure) -> None:
        """Note a failure and wait for the next try.

        Raises:
            openai.OpenAIError: there is none; what the call failed with.
        """
        if not self.note(failure):
            raise error_of(failure)
        await self.pause(failure)


def error_of(failure: Failure) -> openai.OpenAIError:
    """What a failed call ends with."""
    if isinstance(failure.cause, openai.OpenAIError):
        return failure.cause
    if failure.trouble is Trouble.PASSING:
        return AutobatcherError(f"the server's answer broke off ({failure.reason})")
    return OddAnswerError(f"the server's answer could not be understood ({failure.reason})")


@contextmanager
def understood() -> Iterator[None]:
    """What the SDK raises over an answer of an unexpected form becomes an error that says so.

    Raises:
        openai.OpenAIError: whatever fails.
    """
    try:
        yield
    except openai.OpenAIError:
        raise
    except Exception as error:  # noqa: BLE001 -- the SDK's, over anything that a server may send
        raise error_of(translated(error).failure) from None


async def reach(client: openai.AsyncOpenAI) -> None:
    """Make sure that there is a server that knows the key: later on, what fails is tried again for a long time.

    Raises:
        openai.APIConnectionError: there is none.
        openai.AuthenticationError, openai.PermissionDeniedError: it does not know the key.
    """
    try:
        with understood():
            await client.batches.list(limit=1)
    except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError):
        raise
    except openai.OpenAIError:
        return  # it may be busy, or list no batches


async def paged(list_page: Callable[..., Awaitable[Any]], limit: int | None) -> AsyncGenerator[Any, None]:
    """The objects of a list of the server's, page by page.

    Args:
        list_page: gives a page, by `after` and `limit`.
        limit: the most objects; None: all.

    Raises:
        openai.OpenAIError: the server cannot be reached, refuses, or answers with what is no list.
    """
    after: str | openai.Omit = openai.omit
    seen: set[str] = set()
    count = 0
    while limit is None or count < limit:
        with understood():
            page = await list_page(after=after, limit=PAGE if limit is None else min(PAGE, limit - count))
        items = getattr(page, "data", None)
        if not isinstance(items, list):
            raise OddAnswerError("the server's answer to a list has no data")
        names = [name_of(item) for item in items]
        if any(name in seen for name in names):
            return  # the server knows no pages: this was the whole list once more
        for item in items if limit is None else items[: limit - count]:
            count += 1
            yield item
        last = names[-1] if names else None
        if last is None or getattr(page, "has_more", None) is False:
            return
        seen.update(name for name in names if name)
        after = last


def name_of(item: object) -> str | None:
    """The id of an object of the server's, if it has one."""
    name = getattr(item, "id", None)
    return name if isinstance(name, str) and name else None


def checked_id(name: str, what: str) -> str:
    """An id that is one.

    Raises:
        InputError: it is not.
    """
    name = name.strip()
    if not name or not name.isprintable() or "/" in name:
        raise InputError(f"{name!r} is no {what}'s id")
    return name
