"""What a client and its copies share: one driver for each event loop they are used in."""

from __future__ import annotations

import functools
import itertools
import random
import secrets
import threading
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio

from autobatcher.core.admission import Admission
from autobatcher.core.engine import Engine
from autobatcher.core.jsonl import encode_line
from autobatcher.core.retry import PollSchedule
from autobatcher.core.window import Limits, Request, Terms
from autobatcher.events import Event
from autobatcher.logs import left_out, log_event, log_failing_callback, log_left_out
from autobatcher.runtime.driver import Driver
from autobatcher.runtime.numbers import Keys
from autobatcher.runtime.record import (
    Notes,
    Record,
    RecordedNotes,
    close_record,
    drop_record,
    open_record,
)
from autobatcher.runtime.spawn import call_soon_in, current_loop, is_dead
from autobatcher.runtime.spool import LARGE, Spool
from autobatcher.runtime.upstream import Upstream
from autobatcher.usage import Meter

if TYPE_CHECKING:
    from autobatcher.client import Batching
    from autobatcher.display import Display
    from autobatcher.options import BatchOptions
    from autobatcher.runtime.pool import HttpPool


_ANY = Terms()


class Collectors:
    """The collectors of a client and its copies: one for each identity under which, and way in which, they send.

    Args:
        meter: counts what the answers used; by default one of their own.
    """

    def __init__(self, meter: Meter | None = None) -> None:
        self._known: list[tuple[object, Collector]] = []
        self._spool = Spool()
        self._records: list[tuple[object, Record]] = []
        self._finalizers: list[weakref.finalize[[Record], Collectors]] = []
        self._told = False
        self._shown: Shown | None = None
        self.meter = meter or Meter()
        self.closed = False

    def one(
        self,
        identity: object,
        options: BatchOptions,
        pool: HttpPool,
        sender: Callable[..., Batching],
    ) -> Collector:
        """The collector for an identity; `sender` makes the client that a new one works with."""
        for known, collector in self._known:
            if known == identity:
                return collector
        # Copies come and go, some for a single call; what they leave behind goes when the next one comes.
        self._known = [(known, collector) for known, collector in self._known if not collector.retire()]
        collector = Collector(
            sender,
            options,
            pool,
            spool=self._spool,
            record=self.record(options),
            meter=self.meter,
            show=self._show() if options.progress else None,
        )
        collector.closed = self.closed
        self._known.append((identity, collector))
        return collector

    def _show(self) -> Callable[[Event], object]:
        if self._shown is None:
            self._shown = Shown()
            weakref.finalize(self, self._shown.close)  # also at exit
        return self._shown.show

    def driver(self, collector: Collector) -> Driver | None:
        """What submits a collector's requests in this event loop; None when all is closed.

        A call may have been made before its collector was retired, and be awaited only now: then that is back.
        """
        if collector.retired:
            collector.retired, collector.closed = False, self.closed
            self._known.append((object(), collector))
        return collector.driver()

    def record(self, options: BatchOptions) -> Record | None:
        """The open journal of these options.

        Raises:
            JournalError: it cannot be opened.
        """
        if options.journal is None:
            return None
        for journal, record in self._records:
            if journal == options.journal:
                return record
        record = open_record(options.journal)
        self._records.append((options.journal, record))
        self._finalizers.append(weakref.finalize(self, drop_record, record))
        return record

    def note_left_out(self, headers: Any, query: Mapping[str, object]) -> None:
        """Say once in the log that what a call gives with its HTTP request has no place in a line."""
        if not self._told and (names := left_out(headers, query)):
            self._told = True
            log_left_out(names)

    async def close(self) -> None:
        """Give every waiting caller an error and end all tasks; those of other loops end by themselves."""
        self.closed = True
        stopped = [driver for _, collector in self._known for driver in collector.close()]
        with anyio.CancelScope(shield=True):
            for driver in stopped:
                await driver.stopped()
        if self._shown is not None:
            self._shown.close()
        for (_, record), finalizer in zip(self._records, self._finalizers, strict=True):
            if finalizer.detach() is not None:
                close_record(record)


class Shown:
    """The display of a client and its copies, from the first event on."""

    def __init__(self) -> None:
        self._display: Display | None = None
        self._lock = threading.Lock()

    def show(self, event: Event) -> None:
        """Show an event, in whatever thread it came."""
        display = self._display
        if display is None:
            from autobatcher.display import Display  # noqa: PLC0415 -- needs an extra, of which the options told

            with self._lock:
                display = self._display = self._display or Display()
        display.show(event)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._display is not None:
            self._display.close()


class Collector:
    """Gathers calls into batches, in whatever event loop they come from.

    Args:
        sender: makes clients, with attributes as given, for the Files and Batches calls.
        options: when windows close, and what batches are created with.
        pool: gives up a loop's connections when the loop ends.
        spool: keeps large lines.
        record: the journal, if there is one.
        meter: counts what the answers used.
        show: takes the events, if they are to be seen.
    """

    def __init__(
        self,
        sender: Callable[..., Batching],
        options: BatchOptions,
        pool: HttpPool,
        *,
        spool: Spool,
        record: Record | None,
        meter: Meter,
        show: Callable[[Event], object] | None = None,
    ) -> None:
        metadata = None if options.batch_metadata is None else dict(options.batch_metadata)
        client = sender(max_retries=0)
        self._upstream = Upstream(client, options.completion_window, metadata)
        self._line_url = functools.cache(client._line_url)  # noqa: SLF001 -- this package's own client
        self._options = options
        self._pool = pool
        self._spool = spool
        self._record = record
        self._show = show
        base_url = str(self._upstream.client.base_url)
        self._origin = f"{base_url}#{client._scope}" if client._scope else base_url  # noqa: SLF001 -- as above
        self._keys = Keys(self._origin)
        self._count = meter.counter(base_url, options.completion_window)
        self._count_realtime = meter.counter(base_url, None)
        self._ids = (f"{prefix}-{n}" for prefix in (secrets.token_hex(6),) for n in itertools.count())
        self._drivers: dict[Any, Driver] = {}
        self.retired = False
        self.closed = False

    def entry(
        self,
        path: str,
        model: str,
        body: bytes,
        terms: Terms = _ANY,
        *,
        weight: int,
        retries: int,
        fields: Mapping[str, Any] | None = None,
        idempotency: str | None = None,
        on_disk: bool = False,
    ) -> Request:
        """A request that is ready to be submitted.

        Args:
            path: below the base URL, such as "chat/completions".
            model: requests of different models go into different files.
            body: the request's JSON text, UTF-8.
            terms: its caller's.
            weight: what it counts towards the lines of a file.
            retries: how often it may go into another batch after an answer that may pass.
            fields: what the body was encoded from, if that is at hand.
            idempotency: tells it from equal requests in the journal, where it is the same as any other with this one.
            on_disk: whether it waits there, however small it is.

        Raises:
            OSError: it is to wait on disk, and that is full.
        """
        endpoint = self._line_url(path)
        custom_id = next(self._ids)
        line = encode_line(custom_id, endpoint, body)
        return Request(
            custom_id,
            endpoint,
            model,
            self._spool.keep(line, 0 if on_disk else LARGE),
            len(line),
            weight=weight,
            retries_left=retries,
            resubmits=terms.resubmits,
            patience=terms.patience,
            key=b"" if self._record is None else self._keys.of(endpoint, body, fields, idempotency),
            n=-1 if idempotency is None else 0,
            named=idempotency is not None,
        )

    def _engine(self) -> Engine:
        options = self._options
        return Engine(
            Limits(
                requests=options.batch_size,
                seconds=options.batch_window_seconds,
                tokens=options.max_enqueued_tokens,
            ),
            PollSchedule(options.poll_interval_seconds),
            Admission(options.max_active_batches, options.max_enqueued_tokens),
            options.patience_seconds,
            random.random,
            keeps=self._record is not None,
        )

    def _notes(self, loop: Any) -> Notes:
        if self._record is None:
            return Notes()
        return RecordedNotes(self._record, self._origin, loop, self._spool.keep)

    def _publish(self, event: Event) -> None:
        log_event(event)
        if self._show is not None:
            self._show(event)
        if self._options.on_event is not None:
            try:
                self._options.on_event(event)
            except Exception:  # noqa: BLE001 -- the user's, which is to end nobody's call
                log_failing_callback()

    def retire(self) -> bool:
        """End the tasks, if nothing is waiting or under way; whether they are ended."""
        if not all(is_dead(loop) or driver.idle for loop, driver in self._drivers.items()):
            return False
        self._forget_dead()
        for loop, driver in self._drivers.items():
            if loop is current_loop():
                driver.retire()
            else:
                call_soon_in(loop, driver.retire)
        self._drivers = {}
        self.retired = True
        return True

    def _forget_dead(self) -> None:
        """Drop the drivers of event loops that are over."""
        for loop in [loop for loop in self._drivers if is_dead(loop)]:
            self._drivers.pop(loop).forget()

    def driver(self) -> Driver | None:
        """What submits requests in this event loop; None when all is closed.

        Raises:
            JournalError: this is a forked child of the process that opened the journal.
        """
        if self.closed:
            return None
        loop = current_loop()
        driver = self._drivers.get(loop)
        if driver is None:  # as in a forked child, where every event loop is another one
            if self._record is not None:
                self._record.check()
            self._forget_dead()
            driver = self._drivers[loop] = Driver(
                self._engine(),
                self._upstream,
                publish=self._publish,
                count=self._count,
                count_realtime=self._count_realtime,
                max_realtime_calls=self._options.max_realtime_calls,
                release=functools.partial(self._release, loop),
                notes=self._notes(loop),
            )
        return driver

    def close(self) -> list[Driver]:
        """Take no more, and tell all drivers to stop; those of this event loop are returned, to be waited for."""
        self.closed = True
        cancel = self._options.cancel_active_batches_on_close
        here = current_loop()
        for loop, driver in self._drivers.items():
            if loop is here:
                driver.stop(cancel_batches=cancel)
            else:
                call_soon_in(loop, functools.partial(driver.stop, cancel_batches=cancel))
        return [driver for loop, driver in self._drivers.items() if loop is here]

    async def _release(self, loop: Any) -> None:
        self._drivers.pop(loop, None)
        await self._pool.release(loop)
