"""Runs batches: validating → in_progress → finalizing → completed, and the ways off that path."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from autobatcher.local.answers import Answer, Source, answer_now
from autobatcher.local.store import TERMINAL, Result, Store
from autobatcher.local.validation import LineTooLongError, Validator, split_lines
from autobatcher.local.wire import decode, encode, new_id

if TYPE_CHECKING:
    from collections.abc import Iterator

    from autobatcher.local.config import LocalConfig

logger = logging.getLogger(__name__)

GROUP = 500
"""Most result lines in one transaction."""
_FLUSH_SECONDS = 0.05
_LINES_PER_TURN = 50


class Worker:
    """Answers the lines of all batches; one task for each batch.

    Args:
        store: Where everything is kept.
        config: The server's settings.
        source: Answers lines that take time; None: the built-in model, at once.
    """

    def __init__(self, store: Store, config: LocalConfig, source: Source | None) -> None:
        self.executed: Counter[str] = Counter()
        self._store = store
        self._config = config
        self._source = source
        self._limiter = anyio.CapacityLimiter(config.concurrency)
        self._scopes: dict[str, anyio.CancelScope] = {}

    def _now(self) -> int:
        return int(self._config.clock())

    def cancel(self, batch_id: str) -> None:
        """Stop answering; the store has the batch as cancelling already."""
        if scope := self._scopes.get(batch_id):
            scope.cancel()

    async def run(self, batch_id: str) -> None:
        """Take a batch from wherever it is to its end."""
        try:
            await self._run(batch_id)
        except Exception:
            logger.exception("batch %s failed", batch_id)
            self._fail(batch_id, [_error("server_error", "The server failed on this batch.")])

    async def _run(self, batch_id: str) -> None:
        batch = self._store.batch(batch_id)
        if batch is None or batch["status"] in TERMINAL:
            return
        if batch["status"] != "cancelling":
            with anyio.CancelScope() as scope:
                self._scopes[batch_id] = scope
                if self._config.dialect.expires:
                    left = max(batch["expires_at"] - self._config.clock(), 0)
                    scope.deadline = anyio.current_time() + left
                try:
                    if batch["status"] == "validating" and not await self._validate(batch):
                        return
                    await self._answer_lines(batch)
                finally:
                    del self._scopes[batch_id]
            status = (self._store.batch(batch_id) or batch)["status"]
            if not scope.cancelled_caught and status != "cancelling":
                await self._finish(batch_id, "completed")
                return
            if status != "cancelling":
                await self._expire(batch)
                return
        await self._finish(batch_id, "cancelled")

    async def _validate(self, batch: dict[str, Any]) -> bool:
        """Check the input; False, and the batch has failed, if anything is wrong with it."""
        await anyio.lowlevel.checkpoint()  # let the answer to the creation go out as validating
        config = self._config
        validator = Validator(batch["endpoint"], config)
        input_file = self._store.file(batch["input_file_id"], self._now())
        if input_file is not None and input_file["bytes"] > config.max_file_bytes:
            validator.fail("file_too_large", f"The batch input is larger than {config.max_file_bytes} bytes.")
        else:
            try:
                for number, line in self._lines(batch):
                    validator.add(number, line)
                    if validator.finished:
                        break
                    if number % _LINES_PER_TURN == 0:
                        await anyio.lowlevel.checkpoint()
            except LineTooLongError as error:
                message = f"The line is longer than {config.max_line_bytes} bytes."
                validator.fail("line_too_large", message, line=error.line_number)
            validator.finish()
        if validator.errors:
            self._fail(batch["id"], validator.errors)
            return False
        counts = {"total": validator.total, "completed": 0, "failed": 0}
        changes = {"status": "in_progress", "in_progress_at": self._now(), "request_counts": counts}
        self._store.update(batch["id"], **changes, model=validator.model)
        await anyio.lowlevel.checkpoint()
        return True

    def _fail(self, batch_id: str, errors: list[dict[str, Any]]) -> None:
        changes = {"status": "failed", "failed_at": self._now(), "errors": {"object": "list", "data": errors}}
        self._store.update(batch_id, **changes)

    def _lines(self, batch: dict[str, Any]) -> Iterator[tuple[int, bytes]]:
        return split_lines(self._store.chunks(batch["input_file_id"]), self._config.max_line_bytes)

    def _unanswered(self, batch: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        done = self._store.answered(batch["id"])
        return ((number, decode(line)) for number, line in self._lines(batch) if number not in done)

    async def _answer_lines(self, batch: dict[str, Any]) -> None:
        if self._config.partial_results:
            self._store.add_result_files(batch["id"], now=self._now(), even_if_empty=True)
        results = _Results(self._store, batch["id"])
        await anyio.lowlevel.checkpoint()  # after a restart the window may be over already
        try:
            if self._source is None:
                await self._answer_at_once(batch, results)
            else:
                await self._answer_concurrently(batch, results, self._source)
        finally:
            results.flush()

    async def _answer_at_once(self, batch: dict[str, Any], results: _Results) -> None:
        for count, (number, request) in enumerate(self._unanswered(batch), 1):
            operation = self._config.dialect.batched[request["url"]]
            self._keep(results, number, request, answer_now(operation, request["body"], now=self._now()))
            if count % _LINES_PER_TURN == 0:
                await anyio.lowlevel.checkpoint()

    async def _answer_concurrently(self, batch: dict[str, Any], results: _Results, source: Source) -> None:
        lines = self._unanswered(batch)

        async def answer_next_lines() -> None:
            while True:
                async with self._limiter:
                    item = next(lines, None)
                    if item is None:
                        return
                    number, request = item
                    operation = self._config.dialect.batched[request["url"]]
                    self._keep(results, number, request, await source(operation, request["body"]))

        async def flush_regularly() -> None:
            while True:
                await results.filled.wait()
                await anyio.sleep(_FLUSH_SECONDS)
                results.flush()

        async with anyio.create_task_group() as flushing:
            flushing.start_soon(flush_regularly)
            async with anyio.create_task_group() as answering:
                for _ in range(min(self._config.concurrency, batch["request_counts"]["total"] or GROUP)):
                    answering.start_soon(answer_next_lines)
            flushing.cancel_scope.cancel()

    def _keep(self, results: _Results, number: int, request: dict[str, Any], answer: Answer) -> None:
        self.executed[request["custom_id"]] += 1
        results.add(number, request["custom_id"], answer)

    async def _expire(self, batch: dict[str, Any]) -> None:
        """Put the unanswered lines into the error file; in turns, for there may be many."""
        results = _Results(self._store, batch["id"])
        message = "This request could not be executed before the completion window expired."
        if (self._store.batch(batch["id"]) or batch)["status"] != "validating":
            for count, (number, request) in enumerate(self._unanswered(batch), 1):
                results.add(number, request["custom_id"], Answer(0, None, ("batch_expired", message)))
                if count % GROUP == 0:
                    await anyio.lowlevel.checkpoint()
        results.flush()
        await self._finish(batch["id"], "expired")

    async def _finish(self, batch_id: str, status: str) -> None:
        if status == "completed":
            self._store.update(batch_id, status="finalizing", finalizing_at=self._now())
            await anyio.lowlevel.checkpoint()
        both = self._config.partial_results or self._config.dialect.empty_result_files
        self._store.add_result_files(batch_id, now=self._now(), even_if_empty=both)
        self._store.update(batch_id, **{"status": status, f"{status}_at": self._now()})


class _Results:
    """Result lines of one batch on their way to the store, in groups."""

    def __init__(self, store: Store, batch_id: str) -> None:
        self._store = store
        self._batch_id = batch_id
        self._group: list[Result] = []
        self.filled = anyio.Event()

    def add(self, number: int, custom_id: str, answer: Answer) -> None:
        self._group.append(_result(number, custom_id, answer))
        self.filled.set()
        if len(self._group) >= GROUP:
            self.flush()

    def flush(self) -> None:
        if self._group:
            group, self._group, self.filled = self._group, [], anyio.Event()
            self._store.add_results(self._batch_id, group)


def _result(number: int, custom_id: str, answer: Answer) -> Result:
    line: dict[str, Any] = {
        "id": new_id("batch_req_"),
        "custom_id": custom_id,
        "response": None,
        "error": None,
    }
    if answer.error is None:
        line["response"] = {"status_code": answer.status, "request_id": new_id("req_"), "body": answer.body}
    else:
        line["error"] = {"code": answer.error[0], "message": answer.error[1]}
    is_error = answer.error is not None or answer.status >= 400  # noqa: PLR2004 -- HTTP's errors
    return Result(number, custom_id, is_error, encode(line))


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "line": None, "message": message, "param": None}
