"""The log lines: ids, counts and durations, never a key or a prompt."""

from __future__ import annotations

import logging

from autobatcher.events import BatchSettled, BatchSubmitted, Event

_log = logging.getLogger("autobatcher")


def log_event(event: Event) -> None:
    """One line at INFO for each batch submitted and settled."""
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
            _log.info(
                "batch %s settled (%s): %s %s, %d answered, %d failed, %.1f s",
                event.batch_id or "-",
                event.status,
                event.endpoint,
                event.model,
                event.answered,
                event.failed,
                event.duration,
            )
