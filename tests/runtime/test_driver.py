"""The runtime between an engine and a server that the test plays."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from autobatcher.core.admission import Admission
from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.engine import Engine
from autobatcher.core.outcomes import Answer, BatchProblem, LineFailed, Outcome
from autobatcher.core.retry import PollSchedule
from autobatcher.core.window import Limits, Request
from autobatcher.events import Event
from autobatcher.runtime.driver import TRANSFERS, Driver
from autobatcher.runtime.record import Notes
from autobatcher.runtime.upstream import Piece

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


class Server:
    """In place of `Upstream`."""

    def __init__(self) -> None:
        self.files: dict[str, list[str]] = {}
        self.gate = anyio.Event()
        self.uploading = 0
        self.most = 0
        self.refused: dict[str, int] = {}
        """The line, from 1, that fails the batch of a model."""
        self.models: dict[str, str] = {}

    async def upload(self, requests: Sequence[Request]) -> str:
        names = [request.custom_id for request in requests]
        self.uploading += 1
        self.most = max(self.most, self.uploading)
        await self.gate.wait()
        self.uploading -= 1
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = names
        self.models[file_id] = requests[0].model
        return file_id

    async def create(self, _: Batch, file_id: str) -> Snapshot:
        return Snapshot(file_id, "validating")

    async def poll(self, batch_id: str) -> Snapshot:
        line = self.refused.pop(self.models[batch_id], None)
        if line is not None:
            return Snapshot(batch_id, "failed", problems=(BatchProblem("bad", "no", line),))
        return Snapshot(batch_id, "completed", batch_id)

    async def read_lines(self, file_id: str, *_: int) -> AsyncIterator[Piece]:
        lines = [
            json.dumps({"custom_id": name, "response": {"status_code": 200, "body": name}}).encode()
            for name in self.files[file_id]
        ]
        yield Piece(lines, len(lines), resumes=False)


class Callers:
    def __init__(self, driver: Driver, tasks: anyio.abc.TaskGroup) -> None:
        self.driver, self.tasks = driver, tasks
        self.outcomes: dict[str, Outcome] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    def ask(self, name: str, model: str = "m") -> None:
        self.tasks.start_soon(self._ask, name, model)

    async def _ask(self, name: str, model: str) -> None:
        with anyio.CancelScope() as self.scopes[name]:
            request = self.driver.submit(Request(name, "/v1/x", model, b"x", 1))
            try:
                self.outcomes[name] = await request.reply.wait()
            except BaseException:
                self.driver.leave(request)
                raise

    def leave(self, name: str) -> None:
        self.scopes[name].cancel()


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Callers]:
    events: list[Event] = []

    async def release() -> None:
        await anyio.lowlevel.checkpoint()

    engine = Engine(Limits(), PollSchedule(5.0), Admission())
    driver = Driver(
        engine,
        server,  # type: ignore[arg-type] # plays the upstream
        publish=events.append,
        count=lambda *_: None,
        count_realtime=lambda *_: None,
        max_realtime_calls=1,
        release=release,
        notes=Notes(),
    )
    async with anyio.create_task_group() as tasks:
        yield Callers(driver, tasks)
    driver.stop()
    await driver.stopped()
    assert driver.idle


async def test_so_many_uploads_go_on_at_a_time() -> None:
    server = Server()
    async with running(server) as callers:
        for number in range(TRANSFERS + 3):
            callers.ask(f"r{number}", model=f"m{number}")
        await anyio.sleep(10)
        assert server.uploading == TRANSFERS
        server.gate.set()
    assert server.most == TRANSFERS
    assert callers.outcomes == {
        f"r{number}": Answer(200, None, f'"r{number}"'.encode()) for number in range(TRANSFERS + 3)
    }


async def test_a_caller_that_leaves_while_its_upload_waits_its_turn_shifts_nobodys_line() -> None:
    server = Server()
    server.refused["last"] = 2
    async with running(server) as callers:
        for number in range(TRANSFERS):
            callers.ask(f"r{number}", model=f"m{number}")
        await anyio.sleep(5)
        for name in ("leaves", "stays", "refused"):
            callers.ask(name, model="last")
            await anyio.sleep(0.1)
        await anyio.sleep(5)
        assert server.uploading == TRANSFERS
        callers.leave("leaves")
        await anyio.sleep(5)
        server.gate.set()
    # whatever the file holds, the second line is its second line
    assert server.files["file-4"][1] in ("stays", "refused")
    (named,) = (name for name, outcome in callers.outcomes.items() if isinstance(outcome, LineFailed))
    assert named == server.files["file-4"][1]
    others = {"stays", "refused"} - {named}
    assert {callers.outcomes[name] for name in others} == {
        Answer(200, None, f'"{name}"'.encode()) for name in others
    }
