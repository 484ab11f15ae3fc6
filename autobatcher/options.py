"""The batch options of a client, checked."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, cast

from autobatcher.core.window import Terms
from autobatcher.events import Event
from autobatcher.journal import Journal

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
"""What servers take (source: https://platform.openai.com/docs/api-reference/batch/create, `metadata`)."""


@dataclass(frozen=True)
class BatchOptions:
    """How a client batches.

    Attributes:
        batch_size: requests that close a window at once; at least 1. A file never holds more than 50,000.
        batch_window_seconds: how long a window stays open after its first request; 0 gathers only the calls that
            are made before the event loop turns.
        poll_interval_seconds: the time between polls of a young batch; from then on 2% of its age, at most 10
            minutes. More than 0.
        completion_window: within what time the batch is to be completed, as the server spells it: "24h", "1h".
        batch_metadata: attached to each batch; at most 16 pairs, keys up to 64, values up to 512 characters.

        patience_seconds: for how long the calls for a batch (its upload, say) may fail on end, in ways that may pass,
            before its callers get the error. More than 0.
        max_active_batches: batches of this client at the server at a time, at least 1; None: any number.
        max_enqueued_tokens: prompt tokens of one model in this client's batches at the server at a time, at least 1;
            estimated from the requests' bytes, corrected by what the answers say. A single request that has more
            goes alone. None: any number.
        cancel_active_batches_on_close: whether closing the client cancels its batches at the server.
        deadline_seconds: for how long a caller waits for its answer at most, from when its request was accepted. More
            than 0; None: for as long as it takes.
        on_deadline: what happens then: "raise" gives the caller a `DeadlineError`, "realtime" makes a realtime call,
            and the first answer is the caller's.
        on_expired: what becomes of a request whose batch expires: "resubmit" puts it into another batch, "realtime"
            makes a realtime call, "raise" gives its caller the error.
        max_realtime_calls: realtime calls at a time that deadlines and expired batches lead to, at least 1.
        journal: where requests, batches and answers are kept for a later run: the path of a file, or a store of
            one's own; None: nowhere.
        on_event: called with each of `autobatcher.events` in the event loop that the batch belongs to; it should take
            no time. What it raises is logged.
        progress: whether stderr shows how the batches come along: as a table where it is a terminal, else as lines.
            Needs the extra "cli".

    Raises:
        ValueError: a value that makes no sense; the message says what is allowed.
        TypeError: a value of another type.
        ImportError: `progress` without rich.
    """

    batch_size: int = 1000
    batch_window_seconds: float = 1.0
    poll_interval_seconds: float = 5.0
    completion_window: str = "24h"
    batch_metadata: Mapping[str, str] | None = None
    patience_seconds: float = 86_400.0
    max_active_batches: int | None = None
    max_enqueued_tokens: int | None = None
    cancel_active_batches_on_close: bool = False
    deadline_seconds: float | None = None
    on_deadline: Literal["raise", "realtime"] = "raise"
    on_expired: Literal["resubmit", "realtime", "raise"] = "resubmit"
    max_realtime_calls: int = 100
    journal: str | os.PathLike[str] | Journal | None = None
    on_event: Callable[[Event], object] | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        _check_count("batch_size", self.batch_size)
        _check_seconds("batch_window_seconds", self.batch_window_seconds, least="0 or more")
        _check_seconds("poll_interval_seconds", self.poll_interval_seconds, least="more than 0")
        if not isinstance(self.completion_window, str):
            raise TypeError(f"completion_window must be a str such as '24h', not {self.completion_window!r}")
        if not self.completion_window.strip():
            raise ValueError("completion_window must not be empty: '24h', or what else the server takes")
        if self.batch_metadata is not None:
            _check_metadata(self.batch_metadata)
        _check_seconds("patience_seconds", self.patience_seconds, least="more than 0")
        for name in ("max_active_batches", "max_enqueued_tokens"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name in ("cancel_active_batches_on_close", "progress"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, not {getattr(self, name)!r}")
        self._check_waiting()
        if self.on_event is not None and not callable(self.on_event):
            raise TypeError(f"on_event must be callable, not {self.on_event!r}")
        _check_journal(self.journal)
        if self.progress and find_spec("rich") is None:
            raise ImportError('progress=True needs rich: pip install "autobatcher[cli]"', name="rich")

    def _check_waiting(self) -> None:
        if self.deadline_seconds is not None:
            _check_seconds("deadline_seconds", self.deadline_seconds, least="more than 0")
        _check_choice("on_deadline", self.on_deadline, ("raise", "realtime"))
        _check_choice("on_expired", self.on_expired, ("resubmit", "realtime", "raise"))
        _check_count("max_realtime_calls", self.max_realtime_calls)

    @property
    def terms(self) -> Terms:
        """What a request has to know of these options."""
        return Terms(resubmits=self.on_expired == "resubmit", patience=self.deadline_seconds)

    @property
    def shared(self) -> BatchOptions:
        """What clients have in common whose calls share batches: without what each of them does for its own callers."""
        changed = any(getattr(self, name) != default for name, default in _OF_EACH_CALL.items())
        return replace(self, **_OF_EACH_CALL) if changed else self


_OF_EACH_CALL: dict[str, Any] = {
    name: BatchOptions.__dataclass_fields__[name].default
    for name in ("deadline_seconds", "on_deadline", "on_expired")
}


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _check_journal(journal: object) -> None:
    if not isinstance(journal, (str, os.PathLike, Journal, type(None))):
        raise TypeError(f"journal must be a path or a Journal, not {journal!r}")
    if journal == "":
        raise ValueError("journal must not be empty: the path of a file")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, not {value!r}")


def _check_seconds(name: str, value: object, *, least: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not math.isfinite(value) or value < 0 or (value == 0 and least == "more than 0"):
        raise ValueError(f"{name} must be {least} seconds and finite, not {value!r}")


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if not isinstance(cast("object", metadata), Mapping):
        raise TypeError(f"batch_metadata must be a mapping of str to str, not {metadata!r}")
    if len(metadata) > MAX_METADATA_PAIRS:
        raise ValueError(f"batch_metadata takes at most {MAX_METADATA_PAIRS} pairs, not {len(metadata)}")
    for key, value in metadata.items():
        if not all(isinstance(text, str) for text in (key, value)):
            raise TypeError(f"batch_metadata takes only str, not {key!r}: {value!r}")
        if len(key) > MAX_METADATA_KEY:
            raise ValueError(
                f"batch_metadata: keys have at most {MAX_METADATA_KEY} characters, not {len(key)}"
            )
        if len(value) > MAX_METADATA_VALUE:
            raise ValueError(
                f"batch_metadata: values have at most {MAX_METADATA_VALUE} characters, not {len(value)}"
            )
