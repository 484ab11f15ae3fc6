"""The embedded server with a script: batches that fail, expire, or are cancelled, and a model that fails at first."""

from __future__ import annotations

import re
from collections import Counter
from contextvars import ContextVar
from typing import Any

import anyio
from typing_extensions import Self

from autobatcher.local import LocalBatchAPI, LocalConfig
from autobatcher.local.answers import Answer, answer_now
from autobatcher.wire import error_body
from tests.simulation.ledger import InputFile, Ledger, ServerBatch
from tests.simulation.plan import BatchFate, Plan

EPOCH = 1_700_000_000
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})

_PROMPT = re.compile(r"prompt-(\d+)-")
_batch: ContextVar[ServerBatch] = ContextVar("batch")
"""The batch whose task this is; the lines' tasks inherit it."""


def server_time() -> float:
    """Unix time at the server."""
    return EPOCH + anyio.current_time()


def prompt_number(text: str) -> int:
    """Which caller's prompt stands in a text."""
    found = _PROMPT.search(text)
    if found is None:
        raise ValueError("no prompt of a caller")
    return int(found[1])


class ScriptedServer(LocalBatchAPI):
    """Executes batches as the plan says, and notes in the ledger what it executed."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        super().__init__(LocalConfig(partial_results=plan.partial_results, clock=server_time))
        self._plan = plan
        self._ledger = ledger
        self._tries: Counter[int] = Counter()
        self.fates: dict[str, BatchFate] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self._worker is None:
            raise RuntimeError("an entered server has its worker")
        self._worker._source = self._answer
        return self

    def start(self, batch_id: str) -> None:
        """Take a new batch, and see what becomes of it."""
        if self._tasks is None:
            raise RuntimeError("an entered server has its tasks")
        now = anyio.current_time()
        file_id = (self.store.batch(batch_id) or {})["input_file_id"]
        file = self._ledger.files.get(file_id, InputFile((), now, ""))
        record = ServerBatch(batch_id, file_id, file.ids, file.model, now)
        fate = self._plan.fate(now)
        if self._over_the_limit(record):
            fate = BatchFate("fails: queue", "token_limit_exceeded")
        record.fate, record.code = fate.kind, fate.code
        record.hidden = fate.output_looks == float("inf")
        self._ledger.batches[batch_id] = record
        self.fates[batch_id] = fate
        self._measure()
        name = self._ledger.short(batch_id)
        self._ledger.note(now, f"the server makes {name} of {self._ledger.short(file_id)}: {fate}")
        for what, happens in (
            (fate.kind, fate.kind != "runs"),
            ("unknown for a while", fate.unknown_for),
            ("files late", 0 < fate.output_looks < float("inf")),
            ("output file never shown", fate.output_looks == float("inf")),
        ):
            if happens:
                self._ledger.faults[f"batch: {what}"] += 1
        self._tasks.start_soon(self._live, record, fate)

    def _measure(self) -> None:
        active, ledger = self._ledger.active(self.status), self._ledger
        ledger.most_active = max(ledger.most_active, len(active))
        tokens: Counter[str] = Counter()
        lengths = {r.custom_id: len(self._plan.callers[n].prompt) for n, r in ledger.callers.items()}
        for batch in active:
            tokens[batch.model] += sum(lengths[custom_id] // 4 for custom_id in batch.ids)
        ledger.most_tokens = max(ledger.most_tokens, *tokens.values(), 0)

    def _over_the_limit(self, record: ServerBatch) -> bool:
        if self._plan.queue_limit is None:
            return False
        queued = sum(
            len(other.ids)
            for other in self._ledger.batches.values()
            if other.model == record.model and self.status(other.id) not in TERMINAL
        )
        return queued + len(record.ids) > self._plan.queue_limit

    def status(self, batch_id: str) -> str:
        """The status that a batch has now."""
        return str((self.store.batch(batch_id) or {}).get("status"))

    async def _live(self, record: ServerBatch, fate: BatchFate) -> None:
        _batch.set(record)
        if self._worker is None:
            raise RuntimeError("an entered server has its worker")
        if fate.kind.startswith("fails"):
            await anyio.sleep(fate.after)
            self._fail(record)
        elif fate.kind == "is cancelled":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._worker.run, record.id)
                await anyio.sleep(fate.after)
                if self.status(record.id) in ("validating", "in_progress"):
                    self.store.update(record.id, status="cancelling")
                    self.cancel(record.id)
        else:
            await self._worker.run(record.id)
        if self.status(record.id) == "expired":
            self._ledger.faults["batch: expires"] += 1
        record.ended_at = anyio.current_time()

    def _fail(self, record: ServerBatch) -> None:
        if self.status(record.id) == "cancelling":
            self.store.update(record.id, status="cancelled")
            return
        problems: list[dict[str, Any]] = [
            {"code": record.code, "message": f"It is {record.code}.", "line": None, "param": None}
        ]
        if record.fate == "fails: lines":
            # Of the first line always, so that there is one; a list may name a line twice, or one that is not there.
            lines = [n for n in range(1, len(record.ids) + 1) if n == 1 or n % 3 == 0]
            record.named = frozenset(record.ids[n - 1] for n in lines)
            problems = [{**problems[0], "line": n} for n in [*lines, 1, 0, 10_000]]
        self.store.update(record.id, status="failed", errors={"object": "list", "data": problems})

    async def _answer(self, endpoint: str, body: dict[str, Any]) -> Answer:
        """The model: later or sooner, and at first with the failures that the caller's plan has."""
        number = prompt_number(str(body))
        fate = self.fates[_batch.get().id]
        share = ((number * 7919) % 100 + 1) / 100
        await anyio.sleep(fate.latency * share)
        faults = self._plan.callers[number].line_faults
        tries = self._tries[number]
        self._tries[number] += 1
        if tries < len(faults):
            fault = faults[tries]
            self._ledger.faults[f"line: {fault.status or 'error object'}"] += 1
            if fault.status:
                return Answer(fault.status, error_body(fault.status, "The model failed."))
            return Answer(0, None, (fault.code, "The request was not executed."))  # type: ignore[arg-type] # null codes occur
        return answer_now(endpoint, body, now=0)
