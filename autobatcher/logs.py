"""The log lines: ids, counts and durations, never a key or a prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from autobatcher.events import (
    BatchNotCancelled,
    BatchProgressed,
    BatchSettled,
    BatchSubmitted,
    CallRetried,
    Event,
    LinesIgnored,
    RealtimeCalled,
    RequestsOverdue,
    RequestsResent,
)

_log = logging.getLogger("autobatcher")

_UNTOLD = ("user-agent", "x-stainless-", "accept", "content-type")
"""What the SDK, and frameworks by habit, say of themselves: an answer does not depend on these headers."""


def left_out(headers: Mapping[str, object] | None, query: Mapping[str, object]) -> list[str]:
    """The names of the headers and query parameters of a call that somebody may miss in a batch."""
    told = [name for name in headers or () if not name.lower().startswith(_UNTOLD)]
    return [f"header {name}" for name in told] + [f"query parameter {name}" for name in query]


def log_left_out(names: Iterable[str]) -> None:
    """One line at WARNING; names only, for values may be secrets."""
    _log.warning(
        "%s: not sent, since a batch file has no place for the headers and the query of a single call; this is said"
        " once (give the client default_headers or default_query, or use client.unbatched)",
        ", ".join(names),
    )


def log_failing_callback() -> None:
    """One line at ERROR, with the exception that is being handled."""
    _log.exception("on_event failed")


def log_event(event: Event) -> None:
    """One line: at INFO for what goes as planned, at WARNING for what does not."""
    match event:
        case BatchSubmitted():
            _log.info(
                "batch %s submitted: %s %s, %d requests, %d bytes",
                event.batch_id,
                event.endpoint,
                event.model,
                event.requests,
                event.size,
            )
        case BatchSettled():
            _log.log(
                logging.WARNING if event.failed else logging.INFO,
                "batch %s settled (%s): %s %s, %d answered, %d failed, %d sent again, %.1f s",
                event.batch_id or "-",
                event.status,
                event.endpoint,
                event.model,
                event.answered,
                event.failed,
                event.resent,
                event.duration,
            )
        case RequestsResent():
            _log.warning(
                "batch %s: %d requests are sent again: %s",
                event.batch_id or "-",
                event.requests,
                event.reason,
            )
        case RequestsOverdue():
            _log.warning(
                "batch %s: %d requests have no answer by their deadline",
                event.batch_id or "-",
                event.requests,
            )
        case RealtimeCalled():
            _log.debug(
                "batch %s: a request went out in real time (%s) and was %s, %.1f s",
                event.batch_id or "-",
                event.reason,
                "answered" if event.answered else "not answered",
                event.duration,
            )
        case CallRetried(batch_id, step, reason, delay):
            then = f"next try in {delay:.0f} s" if delay else "looking whether it was done all the same"
            _log.warning("batch %s: %s failed (%s); %s", batch_id or "-", step, reason, then)
        case BatchProgressed():
            _log.debug(
                "batch %s %s: %d of %d completed, %d failed",
                event.batch_id,
                event.status,
                event.completed,
                event.total,
                event.failed,
            )
        case BatchNotCancelled():
            _log.warning(
                "batch %s: it could not be cancelled, and may go on at the server", event.batch_id or "-"
            )
        case LinesIgnored():
            _log.warning(
                "batch %s: %d result lines ignored: %s", event.batch_id or "-", event.lines, event.reason
            )
