"""The engine with a clock in place of a runtime; tests get the class by a fixture, as they cannot import it."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import pytest

from autobatcher.core.admission import Admission
from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.engine import Engine
from autobatcher.core.lifecycle import Step
from autobatcher.core.messages import (
    Call,
    Cancel,
    Create,
    Created,
    Effect,
    Ended,
    Failed,
    Fetch,
    Fetched,
    Late,
    LinesRead,
    LookUp,
    Poll,
    Polled,
    Publish,
    Report,
    Settle,
    Upload,
    Uploaded,
)
from autobatcher.core.outcomes import Answer, Failure, Outcome, Trouble
from autobatcher.core.retry import PollSchedule
from autobatcher.core.window import Limits, Request
from autobatcher.events import Event

C = TypeVar("C", bound=Call)

ENDPOINT = "/v1/chat/completions"


class Rig:
    """An engine, its clock, and all that it said so far; answers are given by the test."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        first: float = 5.0,
        admission: Admission | None = None,
        patience: float = 86_400.0,
        spread: float = 0.0,
    ) -> None:
        self.engine = Engine(
            limits or Limits(), PollSchedule(first), admission or Admission(), patience, lambda: spread
        )
        self.now = 0.0
        self.calls: list[Call] = []
        self.settled: dict[str, Outcome] = {}
        self.events: list[Event] = []
        self.ended: list[Batch] = []
        self.late: list[bytes] = []
        self.requests: dict[str, Request] = {}

    # Callers.

    def ask(self, *names: str, model: str = "m", size: int = 10, **fields: Any) -> None:
        for name in names:
            request = self.requests[name] = Request(name, ENDPOINT, model, b"", size, **fields)
            self.engine.accept(request, self.now)

    def leave(self, *names: str) -> None:
        for name in names:
            self.apply(self.engine.abandon(self.requests[name], self.now))

    # The runtime.

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Settle(request, outcome):
                    assert request.custom_id not in self.settled, "a request is settled twice"
                    self.settled[request.custom_id] = outcome
                case Late(_, body):
                    self.late.append(body)
                case Publish(event):
                    self.events.append(event)
                case Ended(batch):
                    self.ended.append(batch)
                case call:
                    if isinstance(call, Upload):
                        call.batch.lines()  # the file is made at once
                    self.calls.append(call)

    def wake(self, seconds: float = 0.0) -> list[Call]:
        """Let time pass; the calls that are due."""
        self.now += seconds
        self.apply(self.engine.wake(self.now))
        wakeup = self.engine.next_wakeup()
        assert wakeup is None or wakeup > self.now, "the engine has not done what was due"
        calls, self.calls = self.calls, []
        for call in calls:
            if isinstance(call, Upload):
                assert call.batch.lines() != ()  # its turn comes at once
        return calls

    def next_calls(self) -> list[Call]:
        """Let time pass until calls are due."""
        while not (calls := self.wake()):
            wakeup = self.engine.next_wakeup()
            assert wakeup is not None, "the engine waits for nothing"
            self.now = wakeup
        return calls

    def next(self, kind: type[C]) -> C:
        """Let time pass until one call is due, which is of this kind."""
        (call,) = self.next_calls()
        assert isinstance(call, kind), call
        return call

    def report(self, report: Report) -> None:
        self.apply(self.engine.handle(report, self.now))

    def fail(
        self, call: Call, trouble: Trouble, retry_after: float | None = None, cause: object = "cause"
    ) -> None:
        self.report(Failed(call.batch, Failure(trouble, cause, trouble.value, retry_after)))

    # The straight line.

    def to(self, step: Step, *names: str, status: str = "in_progress", **fields: Any) -> Call:
        """Lead a batch of these requests to a step; the step's call, which is under way."""
        self.ask(*names, **fields)
        call: Call = self.next(Upload)
        batch = call.batch
        if step is Step.UPLOAD:
            return call
        self.report(Uploaded(batch, "file-in"))
        call = self.next(Create)
        if step is Step.CREATE:
            return call
        if step is Step.LOOK_UP:
            self.fail(call, Trouble.PASSING, cause="doubt")
            return self.next(LookUp)
        self.report(Created(batch, Snapshot("b1", "validating")))
        call = self.next(Poll)
        if step is Step.POLL:
            return call
        if step is Step.FETCH:
            self.report(Polled(batch, Snapshot("b1", "completed", "out", "err")))
            return self.next(Fetch)
        assert step is Step.CANCEL, step
        self.report(Polled(batch, Snapshot("b1", status)))
        self.leave(*names)
        return self.next(Cancel)

    def polled(self, batch: Batch, snapshot: Snapshot) -> None:
        """Poll when it is due, and report this."""
        assert self.next(Poll).batch is batch
        self.report(Polled(batch, snapshot))

    def read(self, batch: Batch, *lines: bytes, file_id: str = "out", resumes: bool = False) -> None:
        """Report these lines, which follow those that were read before."""
        last = batch.read.get(file_id, 0) + len(lines)
        self.report(LinesRead(batch, file_id, lines, last, resumes))

    def fetched(self, batch: Batch, *lines: bytes, file_id: str = "out", resumes: bool = False) -> None:
        """Fetch when it is due, and report that this is all there is."""
        assert self.next(Fetch).batch is batch
        self.read(batch, *lines, file_id=file_id, resumes=resumes)
        self.report(Fetched(batch))

    def refetched(self, batch: Batch, times: int, *lines: bytes) -> None:
        """So many times the same lines, after as many polls."""
        for _ in range(times):
            assert batch.snapshot is not None
            self.polled(batch, batch.snapshot)
            self.fetched(batch, *lines)

    # What was said.

    def said(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @staticmethod
    def line(name: str, status: int = 200, **body: Any) -> bytes:
        response = {"status_code": status, "request_id": f"req-{name}", "body": {"for": name, **body}}
        return json.dumps({"custom_id": name, "response": response, "error": None}).encode()

    @staticmethod
    def answer(name: str, status: int = 200) -> Answer:
        return Answer(status, f"req-{name}", json.dumps({"for": name}).encode())

    @staticmethod
    def failed_line(name: str, code: str | None = "c", message: str = "no") -> bytes:
        return json.dumps(
            {"custom_id": name, "response": None, "error": {"code": code, "message": message}}
        ).encode()


@pytest.fixture(scope="session")
def rigs() -> type[Rig]:
    return Rig


@pytest.fixture
def rig() -> Rig:
    return Rig()
