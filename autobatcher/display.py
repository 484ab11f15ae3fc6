"""How the batches come along, on stderr: a table where that is a terminal, else lines."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autobatcher.display_state import (
    Frame,
    Overall,
    Problem,
    Row,
    Settled,
    State,
    bytes_text,
    counted,
    named,
    printable,
    problem_text,
    rate_text,
    seconds_text,
)
from autobatcher.events import BatchProgressed, BatchSettled, BatchSubmitted, Event, RealtimeCalled

if TYPE_CHECKING:
    from autobatcher.jobs.running import Progress

REFRESH_SECONDS = 0.25
IDLE_REFRESH_SECONDS = 1.0
"""How often it is drawn again when nothing is heard: ages grow, and what is left shrinks."""

LINE_SECONDS = 30.0
"""The least time between two lines about the progress of the same batch, or of all."""

PROBLEMS = 3
PROBLEM_LINES = 6
"""As many of the last problems are shown, in as many lines."""

STOP_SECONDS = 2.0
"""How long a program waits for its terminal to take the last picture; it may have been stopped with Ctrl-S."""

BAR = 40
LEAST_BAR = 6
LEAST_MODEL = 8
GAP = 2


class Display:
    """Shows events, and a run's own numbers, until it is closed.

    On a terminal it is a table that is drawn anew, at most four times a second, by a thread of its own; while nothing
    is under way there is neither thread nor table, but a line that says what has come about. What the program prints
    meanwhile by sys.stdout and sys.stderr stands above the table. Elsewhere it is lines. In a forked child it is
    nothing; and a table that shares the terminal with another one, of another display, waits and says lines.

    All methods may be called in any thread. None of them raises: a display that cannot be drawn ends.

    Args:
        console: where; by default sys.stderr. One that is no terminal gets lines.
        clock: seconds, from any beginning.
    """

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._state = State(clock)
        self._state_lock = threading.RLock()  # may be taken by a finalizer in the midst of anything
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._over = False
        self._screen: _Screen | None = None
        self._since = clock()
        self._given = console
        self._console = _own_console() if console is None else console
        self._table = _is_terminal(self._console)
        self._lines = _Lines(clock, self._write)

    def show(self, event: Event) -> None:
        """Take an event in."""
        if self._foreign:
            return
        with self._lock:
            if not self._ended():
                try:
                    with self._state_lock:
                        row = self._state.row(event.batch_id or "")
                        self._state.take(event)
                    self._tell(event, row)
                except Exception:  # noqa: BLE001 -- no program is to end because it is watched
                    self._end()

    def overall(self, progress: Progress) -> None:
        """Take a run's own numbers in; they stand in place of those of its batches."""
        if self._foreign:
            return
        with self._lock:
            if not self._ended():
                try:
                    with self._state_lock:
                        new = self._state.note(progress)
                    if new:
                        self._tell(None, None)
                except Exception:  # noqa: BLE001 -- as above
                    self._end()

    def close(self, *, cut_short: bool = False) -> None:
        """Say how it ended, and leave the terminal as it was; what comes later is not shown.

        Args:
            cut_short: whether the program says itself how it ended, where there is no table.
        """
        if self._foreign or not self._lock.acquire(timeout=STOP_SECONDS):
            return
        try:
            if self._ended():
                return
            self._over = True
            if self._screen is not None:
                self._leave()
            elif not self._table and not cut_short:
                self._lines.last(self._state)
        except Exception:  # noqa: BLE001 -- as above
            self._end()
        finally:
            self._lock.release()

    def _ended(self) -> bool:
        if self._screen is not None and self._screen.broken:
            self._end()
        return self._over

    @property
    def _foreign(self) -> bool:
        """Whether this is a forked child, in which no thread draws, and locks may be held for ever."""
        return os.getpid() != self._pid

    def _end(self) -> None:
        self._over = True
        screen, self._screen = self._screen, None
        if screen is not None:
            screen.leave(None)

    def _tell(self, event: Event | None, row: Row | None) -> None:
        active = self._state.active
        if self._table and self._screen is None and active and _TERMINAL.acquire(blocking=False):
            self._since = self._clock()
            screen = _Screen(self._console, self._frame, self._picture, _TERMINAL.release)
            try:
                screen.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                _TERMINAL.release()
                raise
            self._screen = screen
        if self._screen is None:
            self._lines.tell(event, row, self._state)
        elif active:
            self._screen.changed.set()
        else:
            self._leave()

    def _leave(self) -> None:
        screen, self._screen = self._screen, None
        if screen is not None:
            frame = self._frame()
            problems = [problem for problem in frame.problems if problem.at >= self._since]
            screen.leave(Frame(frame.overall, frame.rows, frame.settled, problems))
            if screen.broken:
                self._over = True

    def _frame(self) -> Frame:
        with self._state_lock:
            return self._state.frame()

    def _picture(self, frame: Frame) -> RenderableType:
        return picture(frame, *self._console.size, time_of=self._time_of)

    def _time_of(self, problem: Problem) -> str:
        return _time_text(time.time() - (self._clock() - problem.at))

    def _write(self, line: str) -> None:
        stream = sys.stderr if self._given is None else self._given.file
        stream.write(f"{_time_text(time.time())} {line}\n")
        stream.flush()


_TERMINAL = threading.Lock()
"""Held by the one table that is on the terminal."""


def _own_console() -> Console:
    # Neither is a notebook a terminal, nor a file that is to have colours. What programs print is not to be marked up.
    return Console(
        stderr=True,
        force_jupyter=False,
        force_terminal=None if _is_tty(sys.stderr) else False,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _is_tty(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):  # it is closed
        return False


def _is_terminal(console: Console) -> bool:
    return console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter


def _time_text(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


class _Above(FileProxy):
    """Stands for a stream of the program's while there is a table: what is written there comes above the table.

    Programs may keep it for longer; then it passes everything on.
    """

    def __init__(self, console: Console, stream: IO[str], drawing: threading.RLock) -> None:
        super().__init__(console, stream)
        self._drawing = drawing
        self._pid = os.getpid()
        self.active = True

    def _there(self) -> bool:
        return self.active and os.getpid() == self._pid

    @property
    def encoding(self) -> Any:  # type: ignore[override]  # which typeshed has as an attribute, and the next
        """The stream's, as is what follows."""
        return getattr(self.rich_proxied_file, "encoding", None)

    @property
    def errors(self) -> Any:  # type: ignore[override]  # as above
        return getattr(self.rich_proxied_file, "errors", None)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if not self._there():
            return self.rich_proxied_file.write(text)
        with self._drawing:
            super().write(text)
        return len(text)

    def flush(self) -> None:
        if self._there():
            with self._drawing:
                super().flush()
        else:
            self.rich_proxied_file.flush()


class _Screen:
    """A table on the terminal, drawn by a thread, from the first event to when nothing is under way.

    Args:
        console: where.
        frame: what is to be seen now.
        draw: makes it a picture.
        on_end: called when the terminal is left.
    """

    def __init__(
        self,
        console: Console,
        frame: Callable[[], Frame],
        draw: Callable[[Frame], RenderableType],
        on_end: Callable[[], object],
    ) -> None:
        self._thread = threading.Thread(target=self._run, name="autobatcher-display", daemon=True)
        self._console = console
        self._frame = frame
        self._draw = draw
        self._on_end = on_end
        self._last: Frame | None = None
        self._leaving = threading.Event()
        self._proxies: dict[str, _Above] = {}
        # Without it, rich draws by where the cursor was before another thread drew.
        self._drawing = threading.RLock()
        self.changed = threading.Event()
        self.broken = False

    def start(self) -> None:
        """Begin to draw.

        Raises:
            RuntimeError: there can be no more threads.
        """
        self._thread.start()

    def _run(self) -> None:
        live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        try:
            with self._drawing:
                live.start()
                self._redirect()
            while not self._leaving.is_set():
                self.changed.clear()
                self._refresh(live, self._frame())
                if not self._leaving.wait(REFRESH_SECONDS):
                    self.changed.wait(IDLE_REFRESH_SECONDS - REFRESH_SECONDS)
        except Exception:  # noqa: BLE001 -- a terminal that is gone, say; the display notices
            self.broken = True
        try:
            with self._drawing:
                self._finish(live)
        except Exception:  # noqa: BLE001 -- as above
            self.broken = True
        finally:
            self._restore()
            self._on_end()

    def _refresh(self, live: Live, frame: Frame) -> None:
        drawn = self._draw(frame)
        with self._drawing:
            live.update(drawn, refresh=True)

    def _finish(self, live: Live) -> None:
        try:
            for proxy in self._proxies.values():
                FileProxy.flush(proxy)
            if self._last is not None:
                live.update(self._draw(self._last))
        finally:
            live.stop()

    def leave(self, last: Frame | None) -> None:
        """Draw this as the last picture, and give the terminal back before the program goes on."""
        self._last = last
        self._leaving.set()
        self.changed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(STOP_SECONDS)

    def _redirect(self) -> None:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if not isinstance(stream, FileProxy) and _is_tty(stream):
                self._proxies[name] = _Above(self._console, stream, self._drawing)
                setattr(sys, name, cast("Any", self._proxies[name]))

    def _restore(self) -> None:
        for name, proxy in self._proxies.items():
            proxy.active = False
            if getattr(sys, name) is proxy:  # else the program has put something of its own there
                setattr(sys, name, proxy.rich_proxied_file)


class _Lines:
    """Says events as lines, and of progress only now and then.

    Args:
        clock: seconds.
        write: takes a line.
    """

    def __init__(self, clock: Callable[[], float], write: Callable[[str], object]) -> None:
        self._clock = clock
        self._write = write
        self._told: dict[str, float] = {}
        self._told_overall = clock()
        self._last = ""

    def tell(self, event: Event | None, before: Row | None, state: State) -> None:
        """Say what there is to say after an event, or after a run's numbers (None)."""
        now = self._clock()
        match event:
            case None:
                pass
            case BatchSubmitted():
                self._told[event.batch_id] = now
                self._write(
                    f"{named(event.batch_id)} submitted: {counted(event.requests, 'request')}, {printable(event.model)},"
                    f" {bytes_text(event.size)}"
                )
            case BatchProgressed():
                if now - self._told.get(event.batch_id, -LINE_SECONDS) >= LINE_SECONDS:
                    self._told[event.batch_id] = now
                    row = state.row(event.batch_id)
                    if row is not None:
                        self._write(row_text(row))
            case BatchSettled():
                self._told.pop(event.batch_id or "", None)
                self._write(settled_batch_text(event, before))
            case RealtimeCalled():
                pass  # of which there may be thousands
            case _:
                self._write(problem_text(event))
        if not state.active and event is None:
            self.last(state)
        elif now - self._told_overall >= LINE_SECONDS:
            self._told_overall = now
            self._say(state)

    def last(self, state: State) -> None:
        """Say how all is, unless that has been said."""
        if state.overall.total or state.settled.batches:
            self._say(state)

    def _say(self, state: State) -> None:
        text = overall_text(state.overall)
        if text != self._last:
            self._last = text
            self._write(text)


def row_text(row: Row) -> str:
    """A batch under way, as a line."""
    return (
        f"{named(row.id)} {row.status}: {row.completed:,} of {row.total:,} done, {row.failed:,} failed,"
        f" {rate_text(row.rate)}, {seconds_text(row.left)} left"
    )


def settled_batch_text(event: BatchSettled, row: Row | None) -> str:
    """A batch that is over, as a line."""
    age = event.duration if row is None else row.age
    return (
        f"{named(event.batch_id)} {event.status}: {event.answered:,} answered, {event.failed:,} failed,"
        f" {event.resent:,} sent again, after {seconds_text(age)}"
    )


def overall_text(overall: Overall) -> str:
    """How far all is, as a line."""
    ended = f"{overall.answered:,} answered, {overall.failed:,} failed"
    if overall.packing:
        return (
            f"{bytes_text(overall.read)} of {bytes_text(overall.size)} read, {counted(overall.total, 'request')},"
            f" {ended}, {seconds_text(overall.left)} left"
        )
    if overall.done >= overall.total:
        return f"{counted(overall.total, 'request')}: {ended}"
    return (
        f"{overall.done:,} of {overall.total:,} done: {ended},"
        f" {rate_text(overall.rate)}, {seconds_text(overall.left)} left"
    )


def settled_text(settled: Settled) -> str:
    """What has come about, as a line."""
    name = "batch" if settled.batches == 1 else "batches"
    realtime = f", {settled.realtime:,} answered in real time" if settled.realtime else ""
    return (
        f"{settled.batches:,} {name} settled: {settled.answered:,} answered, {settled.failed:,} failed,"
        f" {settled.resent:,} sent again{realtime}"
    )


class Column(NamedTuple):
    """A column of the table of batches: its head, and its cells from the first row on."""

    head: str
    cells: list[str]
    width: int
    right: bool = True


_ORDER = ("batch", "model", "status", "done/failed/total", "rate", "left", "age")
_WANTED = ("batch", "done/failed/total", "status", "left", "age", "rate", "model")
"""In the order in which they stand, and in which they are given room."""


def columns(rows: list[Row], width: int) -> list[Column]:
    """The columns that fit into so many cells. The ids are always whole; models may be cut, others are left out."""
    cells = {
        "batch": [row.id for row in rows],
        "model": [row.model for row in rows],
        "status": [row.status for row in rows],
        "done/failed/total": [f"{row.completed:,}/{row.failed:,}/{row.total:,}" for row in rows],
        "rate": [rate_text(row.rate) for row in rows],
        "left": [seconds_text(row.left) for row in rows],
        "age": [seconds_text(row.age) for row in rows],
    }
    taken: dict[str, Column] = {}
    room = width + GAP
    for name in _WANTED:
        least = max(cell_len(text) for text in (name, *cells[name]))
        if name == "model" and room - GAP >= LEAST_MODEL:
            least = min(least, room - GAP)
        if least + GAP <= room or name == "batch":
            taken[name] = Column(name, cells[name], least, right=name not in ("batch", "model", "status"))
            room -= least + GAP
    return [taken[name] for name in _ORDER if name in taken]


def picture(frame: Frame, width: int, height: int, *, time_of: Callable[[Problem], str]) -> RenderableType:
    """A frame as it looks on a terminal of so many columns and lines; it leaves the last line free."""
    room = height - 2  # the first for all, and the one that is free
    parts: list[RenderableType] = []
    if frame.rows or not frame.settled.batches or frame.overall.size:
        parts.append(_overall(frame.overall, width))
    below: list[RenderableType] = []
    if frame.settled.batches:
        below.append(_line(settled_text(frame.settled), "green"))
    spare = room - len(below) - min(len(frame.rows), 2) - 1
    said = [f"{time_of(problem)} {problem.text}" for problem in frame.problems[-PROBLEMS:]]
    below += [_line(line, "yellow") for line in _last_lines(said, width, min(spare, PROBLEM_LINES))]
    room -= len(below)
    if frame.rows and room > 1:
        parts += _batches(frame.rows, width, room - 1)
    return Group(*parts, *below)


def _last_lines(texts: list[str], width: int, most: int) -> list[str]:
    """As many of the last texts, wrapped, as fit into so many lines."""
    lines: list[str] = []
    for text in reversed(texts):
        wrapped = textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)
        if len(wrapped) + len(lines) > most:
            break
        lines[:0] = wrapped
    return lines


def _line(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _overall(overall: Overall, width: int) -> RenderableType:
    text = overall_text(overall)
    done, total = (overall.read, overall.size) if overall.packing else (overall.done, overall.total)
    bar = min(width - cell_len(text) - GAP, BAR)
    if bar < LEAST_BAR or not total:
        return _line(text, "bold")
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(width=bar, no_wrap=True)
    grid.add_column(no_wrap=True, overflow="ellipsis")
    grid.add_row(ProgressBar(total, min(done, total), width=bar), Text(text, style="bold"))
    return grid


def _batches(rows: list[Row], width: int, most: int) -> list[RenderableType]:
    shown = rows if len(rows) <= most else rows[: max(most - 1, 0)]
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for column in columns(shown, width) if shown else ():
        table.add_column(
            Text(column.head),
            width=column.width,
            justify="right" if column.right else "left",
            no_wrap=column.head != "batch",
            overflow="fold" if column.head == "batch" else "ellipsis",
        )
    columns_ = columns(shown, width) if shown else []
    for cells in zip(*(column.cells for column in columns_), strict=True):
        table.add_row(*(Text(cell) for cell in cells))
    parts: list[RenderableType] = [table] if shown else []
    if len(shown) < len(rows):
        parts.append(_line(f"... and {len(rows) - len(shown):,} more", "dim"))
    return parts
