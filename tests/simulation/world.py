"""One world: the real client on the scripted server, from the first caller to the last open file."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import openai
import trio

from autobatcher import BatchOpenAI
from autobatcher._http import httpx
from autobatcher.journal import Journal
from autobatcher.runtime import driver
from tests.simulation.clocks import HangsError, Jump, run, seeded_globals, wall_clock
from tests.simulation.ledger import Ledger, NoAnswerError
from tests.simulation.plan import HOUR, CallerPlan, Plan, draw
from tests.simulation.server import ScriptedServer, server_time
from tests.simulation.stops import MortalRun
from tests.simulation.transport import FaultyTransport
from tests.simulation.verdict import violations

KEY = "sk-simulated-secret"

LAST_DAY = 60 * 24 * HOUR
"""By now every world is over: calm comes within hours, and what a batch can lose is bounded."""

SILENCE = 1.5 * HOUR
"""How long a world goes on when all callers have what they came for, for what they left behind to be ended."""

_MEMORY = "/dev/shm"
"""Where there are files that no disk has to be waited for: a program that is stopped here loses none of what it wrote."""

_PLATFORM = openai._base_client.get_platform()


@dataclass(frozen=True)
class Run:
    """A world that is over."""

    seed: int
    backend: str
    plan: Plan
    ledger: Ledger
    violations: list[str]
    seconds: float

    @property
    def command(self) -> str:
        """What runs it again."""
        stops = "" if self.plan.stops is None else " --stops"
        return f"python -m tests.simulation --seed {self.seed} --backend {self.backend}{stops}"


def simulate(
    seed: int, backend: str, *, stops: bool = False, change: Callable[[Plan], object] = lambda _plan: None
) -> Run:
    """Run the world of a seed, and judge it.

    Args:
        seed: what the world is drawn from.
        backend: "asyncio" or "trio".
        stops: whether it has a journal, and runs of the program are stopped dead.
        change: alters its plan; then the command of the run is that of another world.
    """
    started = time.perf_counter()
    seeded_globals(seed)
    plan, ledger = draw(seed, stops=stops), Ledger()
    change(plan)
    files = _open_files()
    with _listening(ledger), _counted_replies(ledger):
        try:
            run(backend, seed, _World(plan, ledger).live)
        except HangsError as error:
            ledger.complaints.append(str(error))
    if _open_files() > files:
        gc.collect()
        if (left := _open_files() - files) > 0:
            ledger.complaints.append(f"{left} files or sockets are left open")
    found = violations(plan, ledger)
    return Run(seed, backend, plan, ledger, found, time.perf_counter() - started)


class _World:
    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self._plan = plan
        self._ledger = ledger
        self._left_to_go = 0
        self._all_gone = anyio.Event()

    async def live(self, jump: Jump) -> None:
        tasks = _tasks()
        with anyio.move_on_after(LAST_DAY) as whole:
            async with anyio.create_task_group() as group:
                for at, seconds in self._plan.jumps:
                    group.start_soon(self._leap, jump, at, seconds)
                async with ScriptedServer(self._plan, self._ledger) as api:
                    with wall_clock(server_time):
                        await self._with_client(api, group)
                    self._take_stock(api)
                group.cancel_scope.cancel()
        self._ledger.stuck = whole.cancelled_caught
        self._ledger.ended_at = anyio.current_time()
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        if (left := _tasks() - tasks) > 0 and not whole.cancelled_caught:
            self._ledger.complaints.append(f"{left} tasks are left running")

    async def _leap(self, jump: Jump, at: float, seconds: float) -> None:
        await anyio.sleep(at)
        now = anyio.current_time()
        self._ledger.jumps.append((now, seconds))
        self._ledger.faults["clock: leaps"] += 1
        self._ledger.note(now, f"the clock leaps {seconds:.0f} s")
        jump(seconds)

    async def _with_client(self, api: ScriptedServer, group: anyio.abc.TaskGroup) -> None:
        transport = FaultyTransport(self._plan, self._ledger, api, group)
        if self._plan.stops is None:
            await self._last_run(self._client(transport), group)
            return
        memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="autobatcher-simulation-", dir=memory) as folder:
            async with anyio.create_task_group() as remains:
                for number, stop in enumerate(self._plan.stops):
                    mortal = MortalRun(Path(folder), number, stop, transport, self._ledger)
                    await self._stopped_run(mortal, remains)
                    await anyio.sleep(stop.pause)
            last = MortalRun(Path(folder), len(self._plan.stops), None, transport, self._ledger)
            await self._last_run(self._client(last.line, last.journal), group)
            last.check()
            last.journal.close()

    def _client(self, transport: httpx.AsyncBaseTransport, journal: Journal | None = None) -> BatchOpenAI:
        client = BatchOpenAI(
            api_key=KEY,
            base_url="http://local/v1",
            http_client=httpx.AsyncClient(transport=transport),
            journal=journal,
            **self._plan.options,
        )
        client._platform = _PLATFORM  # else the SDK looks it up in a thread, which takes real time
        return client

    def _begin_run(self) -> None:
        self._ledger.started_at = anyio.current_time()
        self._ledger.new_callers(caller.number for caller in self._plan.callers)
        self._left_to_go = len(self._plan.callers)
        self._all_gone = anyio.Event()

    async def _stopped_run(self, mortal: MortalRun, remains: anyio.abc.TaskGroup) -> None:
        """A run of the program to its sudden end."""
        self._begin_run()
        client = self._client(mortal.line, mortal.journal)
        async with anyio.create_task_group() as callers:
            for caller in self._plan.callers:
                callers.start_soon(self._call, client, caller)
            with anyio.move_on_after(mortal.stop.after if mortal.stop else None):
                async with anyio.create_task_group() as either:
                    for event in (mortal.over, self._all_gone):
                        either.start_soon(_first_of, event, either)
            mortal.die()
            callers.cancel_scope.cancel()
        remains.start_soon(mortal.bury, client)

    async def _last_run(self, client: BatchOpenAI, group: anyio.abc.TaskGroup) -> None:
        self._begin_run()
        for caller in self._plan.callers:
            group.start_soon(self._call, client, caller)
        if self._plan.close_at is not None:
            with anyio.move_on_after(self._plan.close_at):
                await self._all_gone.wait()
        else:
            await self._all_gone.wait()
            await anyio.sleep(SILENCE)
        await self._close(client)
        if self._left_to_go:
            await self._all_gone.wait()
        await anyio.sleep(60)  # for what the server was told last

    async def _close(self, client: BatchOpenAI) -> None:
        self._ledger.closed_from = anyio.current_time()
        self._ledger.note(self._ledger.closed_from, "the client is closed")
        await client.close()
        self._ledger.note(anyio.current_time(), "closing is over")

    async def _call(self, client: BatchOpenAI, plan: CallerPlan) -> None:
        record = self._ledger.callers[plan.number]
        if self._plan.copies and (plan.number + len(self._ledger.stopped)) % 2:
            client = client.with_options(batch_metadata={"copy": "yes"})
        own = {name: value for name, value in plan.waiting.items() if value != getattr(client._options, name)}
        if own:
            client = client.with_options(**own)
        await anyio.sleep(plan.at)
        record.asked_at = anyio.current_time()
        scope = anyio.CancelScope()
        if plan.leaves_after is not None:
            scope.deadline = anyio.current_time() + plan.leaves_after
        result, answer, request_id, error = "left", None, None, None
        try:
            with scope:
                answer, request_id = await ask(client, plan)
                result = "answer"
        except Exception as raised:  # noqa: BLE001 -- the verdict says which are rightful
            result, error = "error", raised
        if self._ledger.callers[plan.number] is not record:
            return  # the program is dead
        record.result, record.answer, record.error = result, answer, error
        record.request_id = request_id
        record.at = anyio.current_time()
        what = type(record.error).__name__ if record.error else ""
        self._ledger.note(record.at, f"caller {plan.number}: {record.result} {what}")
        self._left_to_go -= 1
        if not self._left_to_go:
            self._all_gone.set()

    def _take_stock(self, api: ScriptedServer) -> None:
        """Note how the server's batches stand, and what was bought in them."""
        for record in self._ledger.batches.values():
            record.status = api.status(record.id)
            record.bought = frozenset(
                self._ledger.names[line.split(b'"custom_id":"')[1].split(b'"')[0].decode()]
                for page in api.store.results(record.id, is_error=False, skip=0, stop=10**6)
                for line in page.splitlines()
            )


async def _first_of(event: anyio.Event, tasks: anyio.abc.TaskGroup) -> None:
    await event.wait()
    tasks.cancel_scope.cancel()


async def ask(client: BatchOpenAI, plan: CallerPlan) -> tuple[object, str | None]:
    """One caller's question: what is compared of its answer, and the id that the server gave it."""
    answer: Any = await _asked(client, plan)
    try:
        match plan.endpoint:
            case "chat":
                said = answer.choices[0].message.content
            case "embeddings":
                said = answer.data[0].embedding
            case _:
                said = answer.output_text
    except (AttributeError, TypeError, IndexError):
        raise NoAnswerError(repr(answer)) from None
    return said, answer._request_id


async def _asked(client: BatchOpenAI, plan: CallerPlan) -> object:
    if plan.endpoint == "chat":
        return await client.chat.completions.create(
            model=plan.model, messages=[{"role": "user", "content": plan.prompt}]
        )
    if plan.endpoint == "embeddings":
        return await client.embeddings.create(
            model=plan.model, input=plan.prompt, dimensions=4, encoding_format="float"
        )
    return await client.responses.create(model=plan.model, input=plan.prompt)


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return int(trio.lowlevel.current_statistics().tasks_living)


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- many times faster, and it runs for each world


class _Listener(logging.Handler):
    """Takes what the package logs: errors there are defects, and secrets have no place in it."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(logging.WARNING)
        self._ledger = ledger

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        if record.levelno >= logging.ERROR:
            self._ledger.complaints.append(f"logged as an error: {text}")
        if "prompt-" in text or KEY in text:
            self._ledger.complaints.append(f"a secret in the log: {text}")


@contextmanager
def _listening(ledger: Ledger) -> Iterator[None]:
    listener = _Listener(ledger)
    loggers = [logging.getLogger(name) for name in ("autobatcher", "asyncio")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(listener)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(listener)
            logger.propagate = propagate


@contextmanager
def _counted_replies(ledger: Ledger) -> Iterator[None]:
    """Watch that nobody is answered twice: a second answer to one that has its first would go unnoticed."""
    module: Any = driver
    choose = module.replies

    def counted() -> Any:
        make = choose()
        return lambda: _CountedReply(make(), ledger)

    module.replies = counted
    try:
        yield
    finally:
        module.replies = choose


class _CountedReply:
    def __init__(self, reply: Any, ledger: Ledger) -> None:
        self._reply = reply
        self._ledger = ledger
        self._times = 0

    def set(self, value: Any) -> None:
        self._times += 1
        if self._times > 1:
            self._ledger.complaints.append("a caller was answered twice")
        self._reply.set(value)

    async def wait(self) -> Any:
        return await self._reply.wait()
