"""The wire between the client and the embedded server, which does to each HTTP call what the plan has for it."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import anyio
from anyio.abc import TaskGroup

from autobatcher._http import httpx
from tests.simulation.faults import HTML, Fault, draw_fault, missing
from tests.simulation.ledger import HttpCall, InputFile, Ledger, Seen
from tests.simulation.plan import Plan, Storm
from tests.simulation.results import Download, ResultFiles
from tests.simulation.server import TERMINAL, ScriptedServer, prompt_number

_LINE = re.compile(rb'"custom_id":"([^"]+)"[^\n]*')
_MODEL = re.compile(rb'"model":"([^"]+)"')
_NO_ANSWER = 600.0
"""Seconds that a client without a timeout of its own waits at most here; the SDK's default is as long."""

_FILE_LAG = 10.0
"""Seconds for which a new file may not be found. A client that asks for less than that is too hasty."""

_BLOBS = 0.2
"""How many pages begin with a batch of another kind."""

_OF_A_BLOB = {"id": "batch_blob", "object": "batch", "status": "completed", "input_file_id": None}

_LIST_LAG = 50.0
"""Seconds for which a new batch may be missing in lists."""

_LISTED = 100.0
"""Seconds after which a batch is in lists that is made at all, counted from the call; a client looks for 120."""

_LAG_RATE = 0.3


def _kind(method: str, path: str) -> tuple[str, str]:
    """The kind of a call, and the id in its path."""
    match method, *path.removeprefix("/v1/").split("/"):
        case "POST", "files":
            return "upload", ""
        case "POST", "batches":
            return "create", ""
        case "GET", "batches":
            return "list", ""
        case "GET", "batches", batch_id:
            return "poll", batch_id
        case "POST", "batches", batch_id, "cancel":
            return "cancel", batch_id
        case "GET", "files", file_id, "content":
            return "content", file_id
        case ("POST", "chat", "completions") | ("POST", "embeddings" | "responses"):
            return "realtime", ""
    raise AssertionError(f"the client has no business with {method} {path}")


def _json(status: int, body: Any) -> httpx.Response:
    return httpx.Response(status, json=body)


class FaultyTransport(httpx.AsyncBaseTransport):
    """See the module.

    Args:
        plan, ledger, api: of the world.
        tasks: for what the server does when nobody waits for it any more.
    """

    def __init__(self, plan: Plan, ledger: Ledger, api: ScriptedServer, tasks: TaskGroup) -> None:
        self._plan = plan
        self._ledger = ledger
        self._api = api
        self._tasks = tasks
        self._inner = httpx.ASGITransport(app=api.app)
        self._rng = random.Random(f"{plan.seed}/calls")
        self._results = ResultFiles(plan.seed, ledger)
        self._doubt: dict[str, tuple[str, ...]] = {}
        self._found_from: dict[str, float] = {}
        self._listed_from: dict[str, float] = {}
        self._on_their_way: dict[int, tuple[httpx.Request, HttpCall]] = {}
        self._cut_off: set[int] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One call, from the client's side."""
        kind, name = _kind(request.method, request.url.path)
        call = self._ledger.begin(kind, anyio.current_time())
        body = await request.aread()
        self._identify(call, name, body)
        fault = None
        try:
            await self._under_way(request, call)
            fault = self._fault(call)
            response = await self._with(fault, request, call)
        except httpx.TransportError:
            self._ended(call, None if fault is None else fault.seen)
            raise
        except anyio.get_cancelled_exc_class():  # the client's patience with it is over, such as after a leap
            self._ended(call, Seen(f"{kind}: given up by the client", "passing"))
            raise
        if kind != "content" or not isinstance(response.stream, Download):
            self._ended(call, None if fault is None else fault.seen)
        return response

    def cut_off(self) -> None:
        """The program is gone: it sees nothing of its calls any more, and some of them reach the server all the same."""
        self._cut_off.update(call.number for call in self._ledger.calls if call.end == float("inf"))
        for request, call in self._on_their_way.values():
            if call.kind in ("upload", "create", "cancel") and self._rng.random() < 0.5:
                self._tasks.start_soon(self._later, self._rng.uniform(0, 10), request, call)
        known = {call.batch_id for call in self._ledger.calls if call.kind == "poll"}
        made = {batch.file_id for batch in self._ledger.batches.values() if batch.id in known}
        self._doubt.update(
            (file_id, file.ids) for file_id, file in self._ledger.files.items() if file_id not in made
        )

    async def _under_way(self, request: httpx.Request, call: HttpCall) -> None:
        """Until the call arrives at the server; for ever, if its program is stopped meanwhile."""
        self._on_their_way[call.number] = request, call
        try:
            await anyio.sleep(self._rng.uniform(0.01, self._plan.call_seconds))
        finally:
            self._on_their_way.pop(call.number, None)
        if call.number in self._cut_off:
            await anyio.sleep_forever()

    def _identify(self, call: HttpCall, name: str, body: bytes) -> None:
        match call.kind:
            case "upload":
                for line in _LINE.finditer(body):
                    number = prompt_number(line[0].decode())
                    name = self._ledger.names[line[1].decode()] = f"request-{number}"
                    self._ledger.callers[number].custom_id = name
                    call.ids += (name,)
                found = _MODEL.search(body)
                call.model = "" if found is None else found[1].decode()
            case "create":
                call.file_id = json.loads(body)["input_file_id"]
                call.ids = self._ledger.files[call.file_id].ids
            case "list":
                call.ids = tuple(custom_id for ids in self._doubt.values() for custom_id in ids)
            case "realtime":
                number = prompt_number(body.decode())
                self._ledger.callers[number].custom_id = f"request-{number}"
                call.ids = (f"request-{number}",)
            case "poll" | "cancel":
                call.batch_id = name
                record = self._ledger.batches[name]
                call.ids = record.ids
                self._doubt.pop(record.file_id, None)
                record.cancel_calls += call.kind == "cancel"
            case "content":
                call.file_id = name
                call.batch_id = (self._api.store.result_file(name) or ("", False))[0]
                call.ids = self._ledger.batches[call.batch_id].ids

    def _fault(self, call: HttpCall) -> Fault | None:
        """What goes wrong with this call: what lasts for a time, or the weather."""
        now, plan = anyio.current_time(), self._plan
        if call.kind == "create" and now < self._found_from.get(call.file_id, 0.0):
            return missing("create", "create: no such file yet")
        if call.kind in ("poll", "cancel"):
            record, fate = self._ledger.batches[call.batch_id], self._api.fates[call.batch_id]
            if fate.kind == "vanishes" or now < record.at + fate.unknown_for:
                return missing("poll", f"{call.kind}: no such batch")
        if self._rng.random() >= plan.rate_at(call.kind, now):
            return None
        harsh = any(_harsh(storm, now, call.kind) for storm in plan.storms)
        return draw_fault(call.kind, self._rng, refusals=plan.refusals, harsh=harsh)

    async def _with(self, fault: Fault | None, request: httpx.Request, call: HttpCall) -> httpx.Response:
        if fault is None:
            return await self._do(request, call, None)
        does = fault.done and (
            call.kind != "content" or fault.change
        )  # else reading has no effect at the server
        response = await self._do(request, call, fault) if does else None
        if fault.late is not None:
            self._tasks.start_soon(self._later, fault.late, request, call)
        if fault.wait:
            read = (request.extensions.get("timeout") or {}).get("read")
            await anyio.sleep(min(_NO_ANSWER if read is None else read, fault.wait))
        if fault.error is not None:
            if response is not None:
                await response.aclose()
            raise fault.error(fault.seen.name, request=request)
        if fault.body is not None:
            if response is not None:
                await response.aclose()
            call.status = str(fault.seen.status)
            return httpx.Response(fault.seen.status, headers=fault.headers, content=fault.body)
        if response is None:
            raise AssertionError(f"{fault} says neither what the client sees nor that the server acts")
        return response

    async def _later(self, seconds: float, request: httpx.Request, call: HttpCall) -> None:
        await anyio.sleep(seconds)
        await self._do(request, call, None)

    async def _do(self, request: httpx.Request, call: HttpCall, fault: Fault | None) -> httpx.Response:
        """Have the server do it."""
        change = "" if fault is None else fault.change
        match call.kind:
            case "list":
                return await self._list(request, call)
            case "content":
                return await self._content(request, call, change)
        response = await self._inner.handle_async_request(request)
        loaded = json.loads(await response.aread())
        call.status = f"{response.status_code}"
        now = anyio.current_time()
        if call.kind == "realtime":
            call.request_id = response.headers["x-request-id"]
            headers = {"x-request-id": call.request_id}
            return httpx.Response(response.status_code, headers=headers, json=loaded)
        rate = self._plan.rate_at(call.kind, now)
        if call.kind == "create" and self._plan.stops is not None:
            rate = max(rate, _LAG_RATE)  # which only matters to those who have to look for their batch
        lags = self._rng.random() < rate
        if call.kind == "upload" and response.is_success:
            call.file_id = loaded["id"]
            self._ledger.files[call.file_id] = InputFile(call.ids, now, call.model)
            if lags:
                self._found_from[call.file_id] = now + self._rng.uniform(1, _FILE_LAG)
        if call.kind == "create" and response.is_success:
            call.batch_id = loaded["id"]
            if lags:
                listed = now + self._rng.uniform(1, _LIST_LAG)
                self._listed_from[call.batch_id] = min(listed, call.start + _LISTED)
        if call.kind == "poll" and response.is_success and (fault is None or change):
            return self._polled(call, loaded, change)
        return _json(response.status_code, loaded)

    def _polled(self, call: HttpCall, batch: dict[str, Any], change: str) -> httpx.Response:
        record, fate = self._ledger.batches[call.batch_id], self._api.fates[call.batch_id]
        ended = batch["status"] in TERMINAL
        if ended and record.terminal_looks < fate.output_looks:
            batch["output_file_id"] = None
            if fate.output_looks < float("inf"):
                batch["error_file_id"] = None
        match change:
            case "unknown status":
                batch["status"] = self._rng.choice(("warming_up", "queued", "paused", "Completed", "done"))
            case "odd file ids":
                odd: Any = self._rng.choice(([batch["output_file_id"]], {"id": "file-1"}, 7, "", True))
                batch["output_file_id"] = odd
            case "another batch":
                batch["id"] = "batch_of_somebody_else"
        if batch["status"] in TERMINAL and change != "another batch":
            record.terminal_looks += 1
            call.terminal = True
        call.status = f"{batch['status']}"
        return _json(200, batch)

    async def _list(self, request: httpx.Request, call: HttpCall) -> httpx.Response:
        """The pages of this server are as small as the plan wants them, and new batches can be missing."""
        now = anyio.current_time()
        listed = self._api.store.batches(after=None, limit=10_000) or []
        listed = [batch for batch in listed if now >= self._listed_from.get(batch["id"], 0.0)]
        after = request.url.params.get("after")
        start = next((n + 1 for n, batch in enumerate(listed) if batch["id"] == after), 0)
        page = listed[start : start + self._plan.page]
        call.status = f"200, {len(page)}"
        if self._rng.random() < _BLOBS:
            page = [_OF_A_BLOB, *page]
        return _json(200, {"object": "list", "data": page, "has_more": len(listed) > start + self._plan.page})

    async def _content(self, request: httpx.Request, call: HttpCall, change: str) -> httpx.Response:
        plain = request.url.copy_with(query=None)
        whole = httpx.Request("GET", plain, headers={"host": plain.host})
        response = await self._inner.handle_async_request(whole)
        data = await response.aread()
        record = self._ledger.batches[call.batch_id]
        rate = self._plan.line_rate if record.at < self._plan.calm_at else 0.0
        lines = self._results.lines(call.file_id, record, data, rate)
        headers = {name: response.headers[name] for name in ("x-incomplete",) if name in response.headers}
        if headers:
            lines = lines[int(request.url.params.get("skip", 0)) :]
        if change == "html page":
            return httpx.Response(200, headers={"content-type": "text/html"}, content=HTML)
        size = sum(len(line.data) + 1 for line in lines)
        stop = self._rng.randint(0, size) if change else None
        seen = Seen(f"content: {change}", "passing" if change == "breaks off" else "data") if change else None
        final = self._api.status(call.batch_id) in TERMINAL
        call.status = f"200, {len(lines)} lines"

        def ended(clean: bool) -> None:  # noqa: FBT001 -- the one argument of a callback
            if clean and final:
                self._results.read(call.file_id)
            self._ended(call, seen)

        stream = Download(
            lines,
            record,
            stop=stop,
            broken=change == "breaks off",
            pause=self._rng.uniform(0, self._plan.call_seconds / 4),
            ended=ended,
        )
        return httpx.Response(200, headers=headers, stream=stream)

    def _ended(self, call: HttpCall, seen: Seen | None) -> None:
        if call.number in self._cut_off:
            return
        self._ledger.end(call, anyio.current_time(), seen)
        if call.kind == "create":
            if seen is None:
                self._doubt.pop(call.file_id, None)
            elif seen.trouble in ("passing", "odd"):
                self._doubt[call.file_id] = call.ids


def _harsh(storm: Storm, now: float, kind: str) -> bool:
    return storm.rate == 1.0 and storm.start <= now < storm.end and kind in storm.kinds
