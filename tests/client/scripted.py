"""A Batch API that follows a script: a test says what happens at the n-th call of a kind, and how batches fare.

It is an HTTP transport, keeps what it has been given, and notes every call with its time, so that it runs in
virtual time, where hours cost nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import openai

from autobatcher import BatchOpenAI
from autobatcher._http import httpx

BASE_URL = "http://local/v1"

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(eq=False)
class Call:
    """One HTTP call: the `number`-th of its kind, from 1.

    Kinds are upload, create, list, retrieve, content, cancel, models, and other; `name` is the id in its path.
    """

    kind: str
    number: int
    at: float
    request: httpx.Request
    name: str = ""
    status: int | str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.request.content)


@dataclass(frozen=True)
class Line:
    """A request as its file has it; `seen` counts the batches, this one included, that its text was in."""

    custom_id: str
    body: Any
    seen: int

    @property
    def text(self) -> str:
        return text_in(self.body)


def text_in(body: Any) -> str:
    said = body.get("input") or body["messages"][0]["content"]
    return str(said if isinstance(said, str) else said[0])


# What stands in the results. A writer makes one line of a result file for a request, or several, or none.

Writer = Callable[[Line], "bytes | None"]


def completion(text: str, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **more}


def replied(custom_id: str, body: Any, status: Any = 200) -> bytes:
    response = {"status_code": status, "request_id": f"req-{custom_id}", "body": body}
    return json.dumps({"id": "l", "custom_id": custom_id, "response": response, "error": None}).encode()


def answered(line: Line) -> bytes:
    return replied(line.custom_id, completion(line.text))


def refused(status: int, code: str = "a_code", message: str = "a message") -> Writer:
    error = {"message": message, "type": "a_type", "param": None, "code": code}
    return lambda line: replied(line.custom_id, {"error": error}, status)


def erred(code: str | None, message: str = "a message") -> Writer:
    error = {"code": code, "message": message}
    return lambda line: json.dumps({"custom_id": line.custom_id, "response": None, "error": error}).encode()


def nothing(_line: Line) -> None:
    return None


def each(writers: dict[str, Writer], others: Writer = answered) -> Writer:
    """By the text of the request."""
    return lambda line: writers.get(line.text, others)(line)


def at_first(writer: Writer, times: int = 1, then: Writer = answered) -> Writer:
    """For a request that was in so many batches and no more."""
    return lambda line: (writer if line.seen <= times else then)(line)


@dataclass(frozen=True)
class Fate:
    """How a batch fares.

    Attributes:
        after: seconds until it ends; before that it is `early`.
        status: how it ends.
        problems: the errors that are listed for it as a whole.
        write: makes the lines of its results.
        view: what of the lines of a result file is there at an age, on a server that shows them before the end.
        change: makes of the batch's JSON what is sent.
    """

    after: float = 0.0
    status: str = "completed"
    problems: Sequence[Any] = ()
    write: Writer = answered
    early: str = "in_progress"
    view: Callable[[list[bytes], float], list[bytes]] = lambda _lines, _age: []
    change: Callable[[dict[str, Any], float], dict[str, Any]] = lambda batch, _age: batch


def problem(code: str | None, line: int | None = None, message: str = "a message") -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": line}


@dataclass(eq=False)
class Job:
    """A batch at the server."""

    id: str
    file_id: str
    lines: list[Line]
    created: float
    fate: Fate
    asked: dict[str, Any]
    cancelled: bool = False
    results: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def texts(self) -> list[str]:
        return [line.text for line in self.lines]

    @property
    def output_id(self) -> str:
        return f"output-of-{self.id}"

    @property
    def error_id(self) -> str:
        return f"errors-of-{self.id}"


def _is_error(result: bytes) -> bool:
    try:
        loaded = json.loads(result)
        return loaded["response"] is None or loaded["response"]["status_code"] >= 400
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


# What may happen at a call.

Action = Callable[["Server", Call], Awaitable[httpx.Response]]
Script = Callable[[Call], Action]


async def usual(server: Server, call: Call) -> httpx.Response:
    return server.usual(call)


def answers(
    status: int, body: Any = None, headers: dict[str, str] | None = None, *, text: str | None = None
) -> Action:
    """This answer, and no effect."""

    async def act(_server: Server, _call: Call) -> httpx.Response:
        if text is not None:
            return httpx.Response(status, text=text, headers=headers)
        error = {"message": f"status {status}", "type": "t", "param": None, "code": f"code_{status}"}
        return httpx.Response(status, json={"error": error} if body is None else body, headers=headers)

    return act


def page(status: int = 200) -> Action:
    """A proxy's page."""
    return answers(status, text="<html>please log in</html>", headers={"content-type": "text/html"})


def loses(error: type[httpx.TransportError] = httpx.ConnectError) -> Action:
    """The call never arrives."""

    async def act(_server: Server, call: Call) -> httpx.Response:
        raise error("lost", request=call.request)

    return act


def unseen(then: Action) -> Action:
    """The call has its effect, which its answer does not show."""

    async def act(server: Server, call: Call) -> httpx.Response:
        server.usual(call)
        return await then(server, call)

    return act


def waits(seconds: float, then: Action = usual) -> Action:
    """The answer takes its time, if the client has it."""

    async def act(server: Server, call: Call) -> httpx.Response:
        patience = call.request.extensions.get("timeout", {}).get("read")
        if patience is not None and patience < seconds:
            await anyio.sleep(patience)
            raise httpx.ReadTimeout("timed out", request=call.request)
        await anyio.sleep(seconds)
        return await then(server, call)

    return act


def changes(change: Callable[[Any], Any]) -> Action:
    """The usual answer, changed."""

    async def act(server: Server, call: Call) -> httpx.Response:
        return _json(200, change(json.loads(server.usual(call).content)))

    return act


def breaks(lines: int, more: int = 0, *, cleanly: bool = False) -> Action:
    """A download that breaks off after so many lines and bytes; `cleanly`: as if that were all."""

    async def act(server: Server, call: Call) -> httpx.Response:
        whole = server.results(call)
        part = b"".join(line + b"\n" for line in whole[:lines])
        if lines < len(whole):
            part += whole[lines][:more]
        error = None if cleanly else httpx.ReadError("broken off", request=call.request)
        return httpx.Response(200, headers=server.headers(call), stream=Pieces([part], error=error))

    return act


def _json(status: int, value: Any) -> httpx.Response:
    """As ASCII, since httpx encodes no half of a surrogate pair."""
    headers = {"content-type": "application/json"}
    return httpx.Response(status, content=json.dumps(value).encode(), headers=headers)


def _no(status: int, message: str) -> httpx.Response:
    return _json(status, {"error": {"message": message, "type": "t", "param": None, "code": None}})


class Pieces(httpx.AsyncByteStream):
    """A body in pieces, each after a pause."""

    def __init__(
        self, pieces: Iterable[bytes], *, pause: float = 0.0, error: Exception | None = None
    ) -> None:
        self._pieces, self._pause, self._error = iter(pieces), pause, error

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        await anyio.sleep(self._pause)
        for piece in self._pieces:
            return piece
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration


def in_turn(*actions: Action, then: Action = usual) -> Script:
    """One for each call of the kind."""
    return lambda call: actions[call.number - 1] if call.number <= len(actions) else then


def always(action: Action) -> Script:
    return lambda _call: action


def at(kind: str, script: Script) -> dict[str, Any]:
    """A script for a kind of call that is not known by name."""
    return {kind: script}


def until(seconds: float, action: Action, then: Action = usual) -> Script:
    """Up to a time of the clock."""
    return lambda call: action if call.at < seconds else then


class Server(httpx.AsyncBaseTransport):
    """The Batch API.

    Attributes:
        scripts: for each kind of call, what happens; what is not there goes as usual.
        fate: of a batch, by the job, whose number (from 1) is its place in `jobs`.
        partial: whether batches name their files from the start, and files show what there is.
        resumes: whether `skip` is honoured, and files say whether they are complete.
        list_lag: seconds after which a batch shows up in the list.
        calls, count: all that there were, and how many of each kind.
        served: how often each line of a result file was downloaded.
        under_way, most: how many calls of a kind are, and were at most, under way.
    """

    def __init__(
        self,
        fate: Fate | Callable[[int, Job], Fate] = Fate(),
        *,
        partial: bool = False,
        resumes: bool | None = None,
        **scripts: Script,
    ) -> None:
        self.scripts = scripts
        self.fate = fate
        self.partial = partial
        self.resumes = partial if resumes is None else resumes
        self.list_lag = 0.0
        self.files: dict[str, list[dict[str, Any]]] = {}
        self.jobs: list[Job] = []
        self.foreign: list[str] = []
        self.calls: list[Call] = []
        self.count: Counter[str] = Counter()
        self.under_way: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.served: Counter[bytes] = Counter()
        self._seen: Counter[str] = Counter()
        self._arrivals: dict[tuple[str, int], anyio.Event] = {}

    # What tests ask for.

    def of(self, kind: str) -> list[Call]:
        return [call for call in self.calls if call.kind == kind]

    def times(self, kind: str) -> list[float]:
        return [call.at for call in self.of(kind)]

    async def arrival(self, kind: str, number: int = 1) -> None:
        """Wait for the n-th call of a kind."""
        if self.count[kind] < number:
            await self._arrivals.setdefault((kind, number), anyio.Event()).wait()

    @property
    def bought(self) -> Counter[str]:
        """How often each text was answered."""
        return Counter(
            line.text
            for job in self.jobs
            if job.fate.status != "failed"
            for line in job.lines
            if any(line.custom_id.encode() in result for result in job.results[job.output_id])
        )

    @property
    def sizes(self) -> list[int]:
        return [len(job.lines) for job in self.jobs]

    def check(self) -> None:
        """What must hold whatever happened."""
        made = Counter(job.file_id for job in self.jobs)
        assert all(count == 1 for count in made.values()), "two batches of one file"

    # The transport.

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        kind, name = _kind(request)
        self.count[kind] += 1
        call = Call(kind, self.count[kind], anyio.current_time(), request, name)
        self.calls.append(call)
        if event := self._arrivals.get((kind, call.number)):
            event.set()
        script = self.scripts.get(kind)
        self.under_way[kind] += 1
        self.most[kind] = max(self.most[kind], self.under_way[kind])
        try:
            response = await (usual if script is None else script(call))(self, call)
        except httpx.TransportError as error:
            call.status = type(error).__name__
            raise
        finally:
            self.under_way[kind] -= 1
        call.status = response.status_code
        response.request = request
        return response

    def usual(self, call: Call) -> httpx.Response:
        """Have the effect of a call and make its answer."""
        match call.kind:
            case "models":
                return _json(200, {"object": "list", "data": []})
            case "upload":
                return self._upload(call)
            case "create":
                return self._create(call)
            case "list":
                return self._list(call)
            case "content":
                return self._content(call)
        job = next((job for job in self.jobs if job.id == call.name), None)
        if job is None:
            return _no(404, "No such batch")
        if call.kind == "cancel":
            if self.status(job) in ("completed", "failed", "expired", "cancelled"):
                return _no(409, "It has ended")
            job.cancelled = True
        return _json(200, self.describe(job))

    def _upload(self, call: Call) -> httpx.Response:
        lines = call.request.content.split(b"\n")
        file_id = f"file-{len(self.files) + 1}"
        self.files[file_id] = [json.loads(line) for line in lines if line.startswith(b'{"custom_id')]
        file = {"id": file_id, "object": "file", "bytes": 1, "created_at": 1, "filename": "x"}
        return _json(200, {**file, "purpose": "batch", "status": "processed"})

    def _create(self, call: Call) -> httpx.Response:
        file_id = call.json["input_file_id"]
        if file_id not in self.files:
            return _no(400, f"No such File object: {file_id}")
        lines = []
        for asked in self.files[file_id]:
            text = text_in(asked["body"])
            self._seen[text] += 1
            lines.append(Line(asked["custom_id"], asked["body"], self._seen[text]))
        job = Job(f"batch-{len(self.jobs) + 1}", file_id, lines, anyio.current_time(), Fate(), call.json)
        self.jobs.append(job)
        job.fate = self.fate if isinstance(self.fate, Fate) else self.fate(len(self.jobs), job)
        job.results = {job.output_id: [], job.error_id: []}
        for line in job.lines:
            for result in (job.fate.write(line) or b"").split(b"\n"):
                if result:
                    job.results[job.error_id if _is_error(result) else job.output_id].append(result)
        return _json(200, self.describe(job))

    def _list(self, call: Call) -> httpx.Response:
        now = anyio.current_time()
        ours = [self.describe(job) for job in self.jobs if now >= job.created + self.list_lag]
        others = [{**_BATCH, "id": name, "input_file_id": f"file-of-{name}"} for name in self.foreign]
        found = [*others, *reversed(ours)]  # the newest first
        after, limit = call.request.url.params.get("after"), int(call.request.url.params.get("limit", 20))
        if after is not None:
            names = [batch["id"] for batch in found]
            if after not in names:
                return _no(400, "'after' is no batch of this list")
            found = found[names.index(after) + 1 :]
        data, more = found[:limit], len(found) > limit
        ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
        return _json(200, {"object": "list", "data": data, "has_more": more, **ends})

    @property
    def active(self) -> list[Job]:
        return [job for job in self.jobs if self.status(job) == job.fate.early]

    def status(self, job: Job) -> str:
        if job.cancelled:
            return "cancelled"
        return job.fate.status if self._age(job) >= job.fate.after else job.fate.early

    def _age(self, job: Job) -> float:
        return anyio.current_time() - job.created

    def describe(self, job: Job) -> dict[str, Any]:
        status = self.status(job)
        batch = {**_BATCH, "id": job.id, "input_file_id": job.file_id, "status": status}
        if status == "failed":
            batch["errors"] = {"object": "list", "data": list(job.fate.problems)}
        elif self.partial or status in ("completed", "expired", "cancelled"):
            names = {"output_file_id": job.output_id, "error_file_id": job.error_id}
            batch.update({key: name for key, name in names.items() if self.partial or job.results[name]})
        return job.fate.change(batch, self._age(job))

    def _owner(self, file_id: str) -> Job | None:
        return next((job for job in self.jobs if file_id in job.results), None)

    def results(self, call: Call) -> list[bytes]:
        """The lines that a download gives, `skip` honoured."""
        job = self._owner(call.name)
        assert job is not None
        lines = job.results[call.name]
        if self.status(job) == job.fate.early:
            lines = job.fate.view(lines, self._age(job))
        skip = int(call.request.url.params.get("skip", 0)) if self.resumes else 0
        return lines[skip:]

    def headers(self, call: Call) -> dict[str, str]:
        job = self._owner(call.name)
        if job is None or not self.resumes:
            return {}
        return {"x-incomplete": str(self.status(job) == job.fate.early).lower()}

    def _content(self, call: Call) -> httpx.Response:
        if self._owner(call.name) is None:
            return _no(404, "No such file")
        lines = self.results(call)
        self.served.update(lines)
        content = b"".join(line + b"\n" for line in lines)
        return httpx.Response(200, content=content, headers=self.headers(call))


_BATCH: dict[str, Any] = {
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "completion_window": "24h",
    "created_at": 1,
    "status": "completed",
    "errors": None,
    "output_file_id": None,
    "error_file_id": None,
}


def _kind(request: httpx.Request) -> tuple[str, str]:
    match [request.method, *request.url.path.strip("/").split("/")[1:]]:
        case ["POST", "files"]:
            return "upload", ""
        case ["POST", "batches"]:
            return "create", ""
        case ["GET", "batches"]:
            return "list", ""
        case ["GET", "batches", name]:
            return "retrieve", name
        case ["GET", "files", name, "content"]:
            return "content", name
        case ["POST", "batches", name, "cancel"]:
            return "cancel", name
        case ["GET", "models"]:
            return "models", ""
    return "other", request.url.path


@asynccontextmanager
async def running(server: Server, **options: Any) -> AsyncIterator[BatchOpenAI]:
    settings = {"api_key": "k", "base_url": BASE_URL, "http_client": httpx.AsyncClient(transport=server)}
    async with BatchOpenAI(**{**settings, **options}) as client:
        # The SDK looks up the platform in a thread before its first call, which takes real time, not virtual.
        await client.models.list()
        with anyio.fail_after(10**7):  # of the virtual clock
            yield client
    server.check()


async def ask(client: openai.AsyncOpenAI, text: str, model: str = "m", **more: Any) -> str:
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], **more
    )
    return str(answer.choices[0].message.content)


async def gathered(*calls: Awaitable[Any]) -> list[Any]:
    """What becomes of each: its value, or its exception. They start in this order."""
    results: list[Any] = [None] * len(calls)

    async def run(index: int, call: Awaitable[Any]) -> None:
        try:
            results[index] = await call
        except Exception as error:  # noqa: BLE001 -- returned to the test
            results[index] = error

    async with anyio.create_task_group() as tasks:
        for index, call in enumerate(calls):
            tasks.start_soon(run, index, call)
            await anyio.lowlevel.checkpoint()  # trio starts in any order those that are to start together
    return results


async def outcomes(client: openai.AsyncOpenAI, *texts: str, model: str = "m") -> list[Any]:
    """What becomes of such calls that are made together."""
    return await gathered(*(ask(client, text, model) for text in texts))
