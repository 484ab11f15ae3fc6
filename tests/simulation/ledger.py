"""What happened in a world, as the server and the wire saw it; the verdict is read from here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

Trouble = Literal["passing", "busy", "refused", "missing", "odd", "data"]
"""How a fault is to be taken. "data": the call succeeds, and what it brings is not what it should be."""

ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


class NoAnswerError(Exception):
    """What a call returned is no answer: the SDK takes some pages for one."""


@dataclass(frozen=True)
class Seen:
    """What the client was shown of a call's failure; `name` is the kind in the figures."""

    name: str
    trouble: Trouble
    status: int = 0
    retry_after: float = 0.0
    """Seconds for which a server sensibly asked to be left alone."""


@dataclass
class HttpCall:
    """One call of the client.

    Attributes:
        number, kind, start: its place in the run.
        file_id, batch_id: what it names; for an upload, the file that it made.
        ids: the requests that it matters to, by the ledger's names.
        end: when the client had the end of it; infinite when it was cut off by the client.
        seen: the fault, if there was one.
        terminal: whether a poll showed the batch as ended.
        status: of the answer, for the trace.
        model: of an upload's lines.
        request_id: of a realtime call that the server has answered.
    """

    number: int
    kind: str
    start: float
    file_id: str = ""
    batch_id: str = ""
    ids: tuple[str, ...] = ()
    end: float = float("inf")
    seen: Seen | None = None
    terminal: bool = False
    status: str = ""
    model: str = ""
    request_id: str = ""


@dataclass
class InputFile:
    """An upload that reached the server."""

    ids: tuple[str, ...]
    at: float
    model: str


@dataclass
class ServerBatch:
    """A batch that was made at the server.

    Attributes:
        fate: what the plan has in store for it, such as "runs", "fails: lines".
        code: of the error that it fails with.
        named: the lines that this error names.
        hidden: whether its output file is never shown.
        spoiled: lines that nobody will ever read, and how.
        delivered: the lines that the client has read whole: name, status (0: an error object) and error code.
        delivered_at: when the download of the first such line was over.
        bought: the lines that were executed successfully and stand in a result file.
        status, ended_at: the server's last word, and when its task was over; filled in at the end.
        terminal_looks: how many polls have shown its end.
        cancel_calls: how often the client asked to cancel it.
    """

    id: str
    file_id: str
    ids: tuple[str, ...]
    model: str
    at: float
    fate: str = "runs"
    code: str = ""
    named: frozenset[str] = frozenset()
    hidden: bool = False
    spoiled: dict[str, str] = field(default_factory=dict)
    delivered: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    delivered_at: dict[str, float] = field(default_factory=dict)
    bought: frozenset[str] = frozenset()
    status: str = ""
    ended_at: float = float("inf")
    terminal_looks: int = 0
    cancel_calls: int = 0


@dataclass
class CallerRecord:
    """What one caller saw; `result` is "answer", "left", "error" or, if it never got anything, empty.

    Attributes:
        custom_id: the ledger's name for its request, once that was uploaded.
        asked_at, at: when it made its call, and when that ended.
        request_id: of its answer.
        run: the number of the run of the program that it belongs to.
    """

    number: int
    custom_id: str = ""
    result: str = ""
    asked_at: float = float("inf")
    at: float = float("inf")
    answer: object = None
    error: BaseException | None = None
    request_id: str | None = None
    run: int = 0


@dataclass
class StoppedRun:
    """A run of the program that was stopped dead: when it began and ended, and what its callers had by then."""

    started_at: float
    ended_at: float
    callers: dict[int, CallerRecord]


@dataclass
class Ledger:
    """All of one world."""

    calls: list[HttpCall] = field(default_factory=list)
    files: dict[str, InputFile] = field(default_factory=dict)
    batches: dict[str, ServerBatch] = field(default_factory=dict)
    callers: dict[int, CallerRecord] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    jumps: list[tuple[float, float]] = field(default_factory=list)
    stopped: list[StoppedRun] = field(default_factory=list)
    started_at: float = 0.0
    """When the run began that goes on."""
    most_active: int = 0
    most_tokens: int = 0
    """Of the prompts of one model in active batches, at the most."""
    closed_from: float = float("inf")
    ended_at: float = 0.0
    stuck: bool = False
    complaints: list[str] = field(default_factory=list)
    """Violations that were seen on the way."""
    trace: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    """What a request is called here, by custom_id: it may have several, in runs that do not know of each other."""
    _names: dict[str, str] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)

    def new_callers(self, numbers: Iterable[int]) -> None:
        """The program makes its calls from the start; what is known of the requests stays known."""
        before = self.callers
        self.callers = {
            number: CallerRecord(
                number, before[number].custom_id if number in before else "", run=len(self.stopped)
            )
            for number in numbers
        }

    def stopped_within(self, start: float, end: float) -> bool:
        """Whether a run of the program was stopped dead in this time."""
        return any(start <= run.ended_at <= end for run in self.stopped)

    def short(self, name: str) -> str:
        """A stable name for an id that is random: `batch-3` is the third that turned up."""
        if not name:
            return ""
        if name not in self._names:
            kind = name.replace("_", "-").partition("-")[0]
            self._counts[kind] += 1
            self._names[name] = f"{kind}-{self._counts[kind]}"
        return self._names[name]

    def note(self, now: float, what: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{now:12.2f}  {what}")

    def begin(self, kind: str, now: float, **about: str) -> HttpCall:
        """A call has come."""
        call = HttpCall(len(self.calls) + 1, kind, now, **about)  # type: ignore[arg-type] # its string fields only
        self.calls.append(call)
        return call

    def end(self, call: HttpCall, now: float, seen: Seen | None) -> None:
        """The client has what there is of this call."""
        call.end, call.seen = now, seen
        about = self.short(call.batch_id or call.file_id)
        fault = "" if seen is None else f"  ! {seen.name}"
        self.note(call.start, f"{call.kind:8} {about:10} {call.status:12} until {now:.2f}{fault}")
        if seen is not None:
            self.faults[seen.name] += 1

    def input_file(self, call: HttpCall) -> str:
        """The input file that a call is about, directly or by its batch; empty for a list."""
        record = self.batches.get(call.batch_id)
        return call.file_id if record is None else record.file_id

    def history(self, custom_id: str) -> list[HttpCall]:
        """The finished calls that matter to a request: of the batch that it is in at the time."""
        found: list[HttpCall] = []
        current = ""
        for call in self.calls:
            if custom_id not in call.ids or call.end == float("inf") or call.kind == "realtime":
                continue
            if call.kind == "upload":
                current = call.file_id
            if call.kind in ("upload", "list") or self.input_file(call) == current:
                found.append(call)
        return found

    def realtime_calls(self, record: CallerRecord) -> list[HttpCall]:
        """The HTTP calls that were made for a caller in real time, in its run of the program."""
        until = self.stopped[record.run].ended_at if record.run < len(self.stopped) else float("inf")
        return [
            call
            for call in self.calls
            if call.kind == "realtime"
            and record.custom_id in call.ids
            and record.asked_at <= call.start
            and call.start <= until
        ]

    def runs(self) -> list[dict[int, CallerRecord]]:
        """The callers of each run of the program, in order."""
        return [*(run.callers for run in self.stopped), self.callers]

    def active(self, status: Callable[[str], str]) -> list[ServerBatch]:
        """The batches that go on at the server, by their present status, and that callers wait for."""
        last: dict[str, str] = {}
        for batch in self.batches.values():
            last.update(dict.fromkeys(batch.ids, batch.id))
        waiting = {record.custom_id for record in self.callers.values() if not record.result}
        held = {batch_id for custom_id, batch_id in last.items() if custom_id in waiting}
        return [b for b in self.batches.values() if b.id in held and status(b.id) not in ENDED]

    def batches_of(self, custom_id: str) -> list[ServerBatch]:
        """The batches that a request was in, in order."""
        return [batch for batch in self.batches.values() if custom_id in batch.ids]
