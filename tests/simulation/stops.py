"""Runs of a program that stop dead: from one moment on nothing of what they do has any effect.

What a run leaves behind is its journal's files as they are at that moment, half-written logs included: they are copied,
and the next run has the copy. The code of the run that is over may run on, to be cleared away: whatever it writes goes
to files that nobody reads, and its calls reach no server.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anyio

from autobatcher import BatchOpenAI
from autobatcher._http import httpx
from autobatcher.core.retry import is_success
from autobatcher.journal import SqliteJournal
from tests.simulation.ledger import Ledger, StoppedRun
from tests.simulation.plan import NOTES, Stop
from tests.simulation.server import prompt_number
from tests.simulation.transport import FaultyTransport


class WatchedJournal(SqliteJournal):
    """The built-in journal; `passing` is told what is about to be written, and what is."""

    def __init__(self, path: Path, passing: Callable[[str, bool], None]) -> None:
        super().__init__(path)
        self._passing = passing


def _watched(name: str) -> Any:
    true = getattr(SqliteJournal, name)

    def method(self: WatchedJournal, *args: Any) -> Any:
        self._passing(name, False)  # noqa: FBT003 -- a callback's argument
        result = true(self, *args)
        self._passing(name, True)  # noqa: FBT003 -- as above
        return result

    return method


for _name in NOTES:
    setattr(WatchedJournal, _name, _watched(_name))


class MortalRun:
    """One run of the program.

    Args:
        folder: where the journals are, one folder for each run.
        number: of the run.
        stop: how it ends; None: well.
        transport: to the server.
        ledger: of the world.

    Attributes:
        journal, line: for its client.
        over: set when it is dead.
    """

    def __init__(
        self, folder: Path, number: int, stop: Stop | None, transport: FaultyTransport, ledger: Ledger
    ) -> None:
        self._files, self._next = folder / str(number), folder / str(number + 1)
        self._files.mkdir(exist_ok=True)
        self._transport = transport
        self._ledger = ledger
        self._left = 0 if stop is None else stop.count
        self.stop = stop
        self.over = anyio.Event()
        self.line = _Line(transport, self.over)
        self.journal = WatchedJournal(self._files / "run.db", self._passing)
        if ledger.stopped:
            self.check()

    def _passing(self, name: str, done: bool) -> None:  # noqa: FBT001 -- a callback's argument
        stop = self.stop
        if stop is not None and (name, done) == (stop.note, stop.done):
            self._left -= 1
            if not self._left:
                self._ledger.faults[f"stop: {'after' if done else 'before'} {name}"] += 1
                self.die()

    def die(self) -> None:
        """From now on nothing of it has any effect."""
        if self.over.is_set():
            return
        self.over.set()
        self._next.mkdir()
        for ending in ("", "-wal"):
            if (file := self._files / f"run.db{ending}").exists():
                shutil.copy(file, self._next)
        self._transport.cut_off()
        now, ledger = anyio.current_time(), self._ledger
        ledger.faults["stop"] += 1
        ledger.note(now, "the program is stopped dead")
        ledger.stopped.append(StoppedRun(ledger.started_at, now, ledger.callers))
        ledger.new_callers(ledger.callers)

    async def bury(self, client: BatchOpenAI) -> None:
        """Clear away what is left of it."""
        await client.close()
        self.journal.close()

    def check(self) -> None:
        """Complain if anything had its effect before it was written down."""
        ledger, db = self._ledger, self.journal._db
        requests = _names(db.execute("SELECT body FROM requests"))
        answered = _names(db.execute("SELECT requests.body FROM requests JOIN answers USING (key, n)"))
        kept = {value for (value,) in db.execute("SELECT request_id FROM answers")}
        answered |= {call.ids[0] for call in ledger.calls if call.request_id in kept}
        files, ids = (
            {value for (value,) in db.execute(f"SELECT {column} FROM batches") if value}
            for column in ("file_id", "batch_id")
        )
        early: list[str] = []
        for call in ledger.calls:
            match call.kind:
                case "upload":
                    early += [f"{name} was uploaded" for name in call.ids if name not in requests]
                case "create" if call.file_id not in files:
                    early.append(f"{ledger.short(call.file_id)} was used")
                case "poll" if call.batch_id not in ids:
                    early.append(f"{ledger.short(call.batch_id)} was polled")
        for callers in (*(run.callers for run in ledger.stopped), ledger.callers):
            for record in callers.values():
                if record.result == "answer" and record.custom_id not in answered:
                    early.append(f"caller {record.number} got its answer")
        ledger.complaints += [f"{what} before that was in the journal" for what in dict.fromkeys(early)]
        self._forget_but(answered)

    def _forget_but(self, answered: set[str]) -> None:
        """What was read and not written down has to be read again."""
        for batch in self._ledger.batches.values():
            for name, (status, _) in [*batch.delivered.items()]:
                if is_success(status) and name not in answered:
                    del batch.delivered[name]
                    batch.delivered_at.pop(name, None)


def _names(bodies: Iterable[tuple[bytes]]) -> set[str]:
    return {f"request-{prompt_number(str(body))}" for (body,) in bodies}


class _Line(httpx.AsyncBaseTransport):
    """A run's way to the server, which ends with the run."""

    def __init__(self, inner: FaultyTransport, over: anyio.Event) -> None:
        self._inner = inner
        self._over = over

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One call."""
        if self._over.is_set():
            await anyio.sleep_forever()
        return await self._inner.handle_async_request(request)
