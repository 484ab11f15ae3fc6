"""Calls that let go of their arguments before they wait: that they do, and that nobody can tell otherwise."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import functools
import gc
import importlib.util
import inspect
import json
import types
import uuid
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import openai
import orjson
import pydantic
import pytest
from openai._base_client import AsyncAPIClient
from openai.resources import AsyncEmbeddings
from openai.resources.chat import AsyncCompletions
from openai.resources.responses import AsyncResponses
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from autobatcher import BatchOpenAI
from autobatcher._http import httpx
from autobatcher.hooks import is_sdks
from autobatcher.promise import Promise
from autobatcher.runtime.spool import LARGE

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


class Weather(pydantic.BaseModel):
    city: str


USER: Any = [{"role": "user", "content": "hi"}]
ANSWERS: dict[str, Any] = {
    "/v1/chat/completions": {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": '{"city":"Brno"}', "refusal": None},
            }
        ],
    },
    "/v1/embeddings": {
        "object": "list",
        "model": "m",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    },
    "/v1/responses": {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "m",
        "output": [
            {
                "type": "message",
                "id": "msg",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": '{"city":"Brno"}', "annotations": []}],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    },
}


class Server:
    """Answers each request with its own text where that can be told, in batches and at once."""

    def __init__(self) -> None:
        self.files: dict[str, list[dict[str, Any]]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.realtime: list[dict[str, Any]] = []
        self.done = True

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        content = await request.aread()
        match request.method, request.url.path.split("/")[2:]:
            case "POST", ["files"]:
                found = [
                    json.loads(line) for line in content.split(b"\n") if line.startswith(b'{"custom_id"')
                ]
                self.bodies += [line["body"] for line in found]
                file_id = f"file-{len(self.files)}"
                self.files[file_id] = found
                return httpx.Response(200, json={"id": file_id, "object": "file"})
            case "POST", ["batches"]:
                return httpx.Response(200, json=self.batch(json.loads(content)["input_file_id"]))
            case "GET", ["batches", file_id]:
                return httpx.Response(200, json=self.batch(file_id))
            case "GET", ["files", file_id, "content"]:
                return httpx.Response(200, content=b"".join(self.lines(file_id)))
            case "GET", ["models"]:
                return httpx.Response(200, json={"object": "list", "data": []})
            case "POST", _:
                self.realtime.append(json.loads(content))
                return httpx.Response(200, json=self.answer(request.url.path, json.loads(content)))
        raise AssertionError(request)

    def batch(self, file_id: str) -> dict[str, Any]:
        status = "completed" if self.done else "in_progress"
        return {
            "id": file_id,
            "object": "batch",
            "status": status,
            "output_file_id": file_id if self.done else None,
        }

    def lines(self, file_id: str) -> Iterator[bytes]:
        for line in self.files[file_id]:
            response = {"status_code": 200, "request_id": "q", "body": self.answer(line["url"], line["body"])}
            yield json.dumps({"custom_id": line["custom_id"], "response": response}).encode() + b"\n"

    @staticmethod
    def answer(url: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = {**ANSWERS[url], "model": body.get("model", "")}
        # With it, an answer is none that the SDK's type describes.
        return {**answer, "asked": body["user"]} if "user" in body else answer


@asynccontextmanager
async def serving(
    cls: Callable[..., BatchOpenAI] = BatchOpenAI, **options: Any
) -> AsyncIterator[tuple[BatchOpenAI, Server]]:
    server = Server()
    async with cls(
        api_key="k",
        base_url="http://server.test/v1",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=httpx.MockTransport(server)),
        **options,
    ) as client:
        # The SDK looks up the platform in a thread before its first call, which takes real time, not virtual.
        await client.models.list()
        yield client, server


# Each makes one call; the arguments come on top.
METHODS: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "chat": lambda client, **more: client.chat.completions.create(**{"model": "m", "messages": USER, **more}),
    "chat parse": lambda client, **more: client.chat.completions.parse(
        **{"model": "m", "messages": USER, "response_format": Weather, **more}
    ),
    "embeddings": lambda client, **more: client.embeddings.create(**{"model": "m", "input": ["a"], **more}),
    "response": lambda client, **more: client.responses.create(**{"model": "m", "input": USER, **more}),
    "response parse": lambda client, **more: client.responses.parse(
        **{"model": "m", "input": USER, "text_format": Weather, **more}
    ),
}
ANSWER_TYPES: dict[str, type] = {
    "chat": ChatCompletion,
    "chat parse": ChatCompletion,
    "embeddings": CreateEmbeddingResponse,
    "response": Response,
    "response parse": Response,
}
CONTENT = {
    "chat": "messages",
    "chat parse": "messages",
    "embeddings": "input",
    "response": "input",
    "response parse": "input",
}


# --- bodies ----------------------------------------------------------------------------------------------------


class Once:
    """An iterable that can be gone through only once."""

    def __init__(self, items: list[Any]) -> None:
        self._items = iter(items)

    def __iter__(self) -> Iterator[Any]:
        return self._items


ARGUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "user": lambda: {"user": "u"},
    "omitted": lambda: {"user": openai.omit, "dimensions": openai.omit},
    "extra body": lambda: {"extra_body": {"vendor": {"a": [1, None]}, "model": "other"}},
    "extra headers": lambda: {"extra_headers": {"x-a": "b"}, "extra_query": {"q": "1"}, "timeout": 5},
    "unicode": lambda: {"user": "Žďár\u2028🦙"},
}
CONTENTS: dict[str, Callable[[], Any]] = {
    "list": lambda: [{"role": "user", "content": "a"}],
    "tuple": lambda: ({"role": "user", "content": "a"},),
    "generator": lambda: (item for item in [{"role": "user", "content": "a"}]),
    "once": lambda: Once([{"role": "user", "content": "a"}]),
    "parts": lambda: [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
    "empty": list,
}


def drop(arguments: dict[str, Any], name: str) -> dict[str, Any]:
    return arguments if name == "embeddings" else {k: v for k, v in arguments.items() if k != "dimensions"}


async def bodies_of(make: Callable[[Any], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body of the realtime call, and of the line."""
    async with serving() as (client, server):
        realtime = openai.AsyncOpenAI(
            api_key="k",
            base_url="http://server.test/v1",
            http_client=httpx.AsyncClient(transport=httpx.MockTransport(server)),
        )
        (_, refused), (_, refused_too) = (
            await outcome(lambda: make(realtime)),
            await outcome(lambda: make(client)),
        )
        assert (type(refused), str(refused)) == (type(refused_too), str(refused_too))
        if refused is not None:  # versions of the SDK differ in what they take
            assert server.realtime == server.bodies == []
            return {}, {}
        (first,), (second,) = server.realtime, server.bodies
        first.pop("stream", None)
        return first, second


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ARGUMENTS)
async def test_bodies_are_those_of_realtime_calls_whatever_the_arguments(name: str, kind: str) -> None:
    realtime, batched = await bodies_of(lambda client: METHODS[name](client, **drop(ARGUMENTS[kind](), name)))
    assert batched == realtime  # as JSON objects, whose names have no order


@pytest.mark.parametrize("name", [name for name in METHODS if name != "embeddings"])
@pytest.mark.parametrize("kind", CONTENTS)
async def test_bodies_are_those_of_realtime_calls_whatever_the_messages(name: str, kind: str) -> None:
    realtime, batched = await bodies_of(
        lambda client: METHODS[name](client, **{CONTENT[name]: CONTENTS[kind]()})
    )
    assert batched == realtime


@pytest.mark.parametrize("name", METHODS)
async def test_answers_are_of_the_sdks_types(name: str) -> None:
    async with serving() as (client, server):
        answer: Any = await METHODS[name](client, user="me")
        assert isinstance(answer, ANSWER_TYPES[name])
        assert (getattr(answer, "_request_id", None), getattr(answer, "asked", None)) == ("q", "me")
        assert server.realtime == []


# --- arguments are let go --------------------------------------------------------------------------------------


class Text(str):
    """Text that can be watched."""

    __slots__ = ("__weakref__",)


class Items(list[Any]):
    """A list that can be watched."""


class Field(dict[str, Any]):
    """A dict that can be watched."""


def watched(name: str) -> tuple[dict[str, Any], list[weakref.ref[Any]]]:
    """Arguments, and references to what is in them."""
    text, extra = Text("hello"), Field(vendor=Text("v"))
    content: Any = Items([text])
    if name != "embeddings":
        content = Items([Field(role="user", content=text)])
    refs: list[weakref.ref[Any]] = [weakref.ref(item) for item in (text, extra, extra["vendor"], content)]
    return {CONTENT[name]: content, "extra_body": extra}, refs


def alive(refs: Iterable[weakref.ref[Any]]) -> list[Any]:
    gc.collect()
    return [ref() for ref in refs if ref() is not None]


@pytest.mark.parametrize("name", METHODS)
async def test_nothing_of_the_arguments_is_kept_while_the_call_waits(name: str) -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        server.done = False
        answers: list[Any] = []
        refs: list[weakref.ref[Any]] = []

        async def ask() -> None:
            arguments, found = watched(name)
            refs.extend(found)
            call = METHODS[name](client, **arguments)
            del arguments
            answers.append(await call)

        tasks.start_soon(ask)
        await anyio.sleep(0.5)  # in the window
        assert alive(refs) == []
        await anyio.sleep(60)  # at the server
        assert alive(refs) == []
        assert answers == []
        server.done = True
        await anyio.sleep(600)
        assert isinstance(answers[0], ANSWER_TYPES[name])
        assert len(server.bodies) == 1
        assert server.bodies[0]["vendor"] == "v"


async def test_a_chat_call_takes_its_arguments_as_they_are_at_the_call() -> None:
    async with serving() as (client, server):
        ways: list[dict[str, Any]] = [{}, {"extra_body": {}}]
        for more in ways:
            messages = [{"role": "user", "content": "first"}]
            call = METHODS["chat"](client, messages=messages, **more)
            messages[0]["content"] = "second"
            await call
        assert [body["messages"][0]["content"] for body in server.bodies] == ["first", "first"]


async def test_a_chat_call_lets_go_of_its_arguments_before_it_is_awaited() -> None:
    async with serving() as (client, _):
        arguments, refs = watched("chat")
        call = METHODS["chat"](client, **arguments)
        del arguments
        assert alive(refs) == []
        assert isinstance(await call, ChatCompletion)


@pytest.mark.parametrize("name", METHODS)
async def test_what_is_changed_after_the_call_began_to_wait_is_not_sent(name: str) -> None:
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        content: list[Any] = ["first"] if name == "embeddings" else [{"role": "user", "content": "first"}]
        tasks.start_soon(functools.partial(METHODS[name], client, **{CONTENT[name]: content}))
        await anyio.sleep(0.1)
        content[0] = "second"
        await anyio.sleep(60)
        assert "second" not in json.dumps(server.bodies)
        assert "first" in json.dumps(server.bodies)


# --- nothing happens too early or too late ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("name", METHODS)
async def test_a_call_that_is_never_awaited_sends_nothing(name: str) -> None:
    async with serving() as (client, server):
        call = METHODS[name](client)
        await anyio.sleep(60)
        del call
        gc.collect()
        await anyio.sleep(60)
        assert server.files == {}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("name", METHODS)
async def test_a_call_is_a_coroutine(name: str) -> None:
    async with serving() as (client, _):
        realtime = openai.AsyncOpenAI(api_key="k", base_url="http://server.test/v1")
        first, second = METHODS[name](realtime), METHODS[name](client)
        assert inspect.iscoroutine(first)
        assert inspect.iscoroutine(second)
        for call in (first, second):
            call.close()


def test_a_call_made_outside_of_a_loop_can_be_run_in_one() -> None:
    for name, make in METHODS.items():
        server = Server()
        client = BatchOpenAI(
            api_key="k",
            base_url="http://server.test/v1",
            http_client=httpx.AsyncClient(transport=httpx.MockTransport(server)),
            batch_window_seconds=0,
            poll_interval_seconds=0.001,
        )

        async def run(call: Awaitable[Any], client: BatchOpenAI = client) -> Any:
            async with client:
                return await call

        assert isinstance(asyncio.run(run(make(client))), ANSWER_TYPES[name])


async def outcome(make: Callable[[], Any]) -> tuple[str, BaseException | None]:
    """Where a call raises, and what."""
    try:
        call = make()
    except Exception as error:  # noqa: BLE001 -- to be compared
        return "at the call", error
    try:
        await call
    except Exception as error:  # noqa: BLE001 -- to be compared
        return "at the await", error
    return "nowhere", None


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int


WRONG: dict[str, dict[str, Any]] = {
    "no such argument": {"no_such_argument": 1},
    "not to be encoded": {"user": object()},
    "an enum member": {"user": Colour.RED},
    "an enum member, further in": {"tools": [{"type": "function", "function": {"name": (Colour.RED,)}}]},
    "a UUID": {"user": uuid.UUID(int=1)},
    "encoded already": {"user": orjson.Fragment(b"{}")},
    "a dataclass": {"user": Point(1)},
    "a time": {"user": dt.time(1)},
    "not a number": {"user": float("nan")},
    "not to be encoded, in the extra body": {"extra_body": {"a": {1, 2}}},
    "a wrong timeout": {"timeout": object()},
    "a wrong header": {"extra_headers": {"x": object()}},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["content left out", "positional", *WRONG])
async def test_wrong_arguments_raise_where_the_sdk_raises(name: str, kind: str) -> None:
    def make(client: Any) -> Any:
        if kind in WRONG:
            return METHODS[name](client, **WRONG[kind])
        resource, method = {
            "chat": (client.chat.completions, "create"),
            "chat parse": (client.chat.completions, "parse"),
            "embeddings": (client.embeddings, "create"),
            "response": (client.responses, "create"),
            "response parse": (client.responses, "parse"),
        }[name]
        call = getattr(resource, method)
        return call("m") if kind == "positional" else call(model="m")

    async with serving() as (client, server):
        realtime = openai.AsyncOpenAI(
            api_key="k",
            base_url="http://server.test/v1",
            max_retries=0,
            http_client=httpx.AsyncClient(transport=httpx.MockTransport(server)),
        )
        expected, got = await outcome(lambda: make(realtime)), await outcome(lambda: make(client))
    if kind in ("a wrong timeout", "a wrong header"):  # of which a line has nothing; none may hang
        assert got[0] in ("nowhere", expected[0])
        return
    if name == "chat":  # which is no coroutine function, in the SDK neither
        assert got[0] == expected[0]
    assert (type(got[1]), str(got[1])) == (type(expected[1]), str(expected[1]))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("more", [{}, {"extra_body": {"vendor": 1}}], ids=["plain", "extra body"])
async def test_a_full_disk_is_told_where_a_failing_connection_is(name: str, more: dict[str, Any]) -> None:
    resource = pytest.importorskip("resource")
    large = [{"role": "user", "content": "x" * LARGE}] if name != "embeddings" else ["x" * LARGE]
    async with serving() as (client, server):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # no file may grow
        try:
            where, error = await outcome(lambda: METHODS[name](client, **{CONTENT[name]: large}, **more))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (where, type(error)) == ("at the await", OSError)
        assert isinstance(await METHODS[name](client, **{CONTENT[name]: large}, **more), ANSWER_TYPES[name])
        assert len(server.bodies) == 1


# --- somebody listens on the way -------------------------------------------------------------------------------


def sees_answers(seen: list[Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper as tracers have them: it looks at the answer."""

    async def traced(*args: Any, **kwargs: Any) -> Any:
        answer = await call(*args, **kwargs)
        assert not isinstance(answer, (Promise, types.CoroutineType))
        seen.append(answer)
        return answer

    return traced


class Wrapper:
    """What wrapt makes: an object that is called in place of the function."""

    def __init__(self, wrapped: Any, seen: list[Any]) -> None:
        self.__wrapped__ = wrapped
        self._seen = seen

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return sees_answers(self._seen, self.__wrapped__)(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)


class UnhashableWrapper(Wrapper):
    __hash__ = None  # type: ignore[assignment] # as of classes that define equality

    def __eq__(self, other: object) -> bool:
        return self is other


SDK_METHODS: dict[str, tuple[type, str]] = {
    "chat": (AsyncCompletions, "create"),
    "chat parse": (AsyncCompletions, "parse"),
    "embeddings": (AsyncEmbeddings, "create"),
    "response": (AsyncResponses, "create"),
    "response parse": (AsyncResponses, "parse"),
}


def plain(wrapped: Any, seen: list[Any]) -> Any:
    return sees_answers(seen, wrapped)


def with_wraps(wrapped: Any, seen: list[Any]) -> Any:
    return functools.wraps(wrapped)(sees_answers(seen, wrapped))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "wrap", [plain, with_wraps, Wrapper, UnhashableWrapper], ids=["plain", "wraps", "wrapt", "unhashable"]
)
async def test_a_wrapper_on_the_sdks_class_sees_the_answer(
    monkeypatch: pytest.MonkeyPatch, name: str, wrap: Callable[[Any, list[Any]], Any]
) -> None:
    seen: list[Any] = []
    async with serving() as (client, server):
        cls, method = SDK_METHODS[name]
        monkeypatch.setattr(cls, method, wrap(getattr(cls, method), seen))
        answer = await METHODS[name](client)
        assert isinstance(answer, ANSWER_TYPES[name])
        assert seen == [answer]
        assert server.realtime == []
        monkeypatch.undo()
        assert isinstance(await METHODS[name](client), ANSWER_TYPES[name])
        assert len(seen) == 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("method", ["request", "post"])
@pytest.mark.parametrize("early", [True, False])
async def test_a_wrapper_on_the_client_sees_the_answer(name: str, method: str, *, early: bool) -> None:
    seen: list[Any] = []
    async with serving() as (client, server):
        if not early:  # the resources exist already, and hold the method as it was
            await METHODS[name](client)
        client.__dict__[method] = sees_answers(seen, getattr(client, method))
        answer = await METHODS[name](client)
        assert isinstance(answer, ANSWER_TYPES[name])
        if early or method == "request":
            assert len(seen) == 1
        assert server.realtime == []


@pytest.mark.parametrize("name", METHODS)
async def test_a_wrapper_on_a_resources_post_sees_the_answer(name: str) -> None:
    seen: list[Any] = []
    async with serving() as (client, _):
        for resource in (client.chat.completions, client.embeddings, client.responses):
            resource._post = sees_answers(seen, resource._post)
        answer = await METHODS[name](client)
        assert isinstance(answer, ANSWER_TYPES[name])
        assert len(seen) == 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("method", ["request", "post"])
async def test_a_wrapper_on_the_clients_class_sees_the_answer(
    monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(BatchOpenAI, method, sees_answers(seen, getattr(BatchOpenAI, method)))
    async with serving() as (client, _):
        answer = await METHODS[name](client)
        assert isinstance(answer, ANSWER_TYPES[name])
        assert any(item is answer or isinstance(item, ANSWER_TYPES[name]) for item in seen)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("method", ["request", "post"])
async def test_a_subclass_sees_the_answer(name: str, method: str) -> None:
    seen: list[Any] = []

    class Requesting(BatchOpenAI):
        async def request(self, *args: Any, **kwargs: Any) -> Any:
            answer = await super().request(*args, **kwargs)
            seen.append(answer)
            return answer

    class Posting(BatchOpenAI):
        async def post(self, *args: Any, **kwargs: Any) -> Any:
            answer = await super().post(*args, **kwargs)
            seen.append(answer)
            return answer

    async with serving(Requesting if method == "request" else Posting) as (client, _):
        answer = await METHODS[name](client)
        assert isinstance(answer, ANSWER_TYPES[name])
        assert any(isinstance(item, ANSWER_TYPES[name]) for item in seen)
        assert not any(isinstance(item, Promise) for item in seen)


@pytest.mark.parametrize("name", METHODS)
async def test_a_wrapper_of_our_own_method_sees_the_answer(name: str) -> None:
    seen: list[Any] = []
    async with serving() as (client, _):
        resource, method = {
            "chat": (client.chat.completions, "create"),
            "chat parse": (client.chat.completions, "parse"),
            "embeddings": (client.embeddings, "create"),
            "response": (client.responses, "create"),
            "response parse": (client.responses, "parse"),
        }[name]
        setattr(resource, method, sees_answers(seen, getattr(resource, method)))
        assert seen == [await METHODS[name](client)]


def test_code_of_a_package_whose_name_begins_like_the_sdks_is_not_the_sdks() -> None:
    folder = Path(openai.__file__).parent
    for path, ours in [
        (folder / "resources" / "x.py", True),
        (folder.with_name("openai_tracer") / "x.py", False),
        (folder.with_name("openai.py"), False),
        (folder.with_name("other") / "x.py", False),
    ]:
        space: dict[str, Any] = {}
        exec(compile("async def create(): ...", str(path), "exec"), space)
        assert is_sdks(space["create"]) is ours, path


# --- somebody listens further in -------------------------------------------------------------------------------


def checked(result: Any) -> Any:
    """What a method returned; a coroutine is to come to an answer."""

    async def answer() -> Any:
        found = await result
        assert not isinstance(found, (Promise, types.CoroutineType))
        return found

    return answer() if inspect.iscoroutine(result) else result


def counts_calls(seen: list[Any], call: Callable[..., Any]) -> Callable[..., Any]:
    """A wrapper of a method, async or not: it notes the calls."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        seen.append((*args, *kwargs.values()))
        return checked(call(*args, **kwargs))

    return counted


class Disguised:
    """A wrapper that passes itself off as what it wraps, as wrapt's do; it notes the calls."""

    def __init__(self, seen: list[Any], wrapped: Any) -> None:
        self._seen, self._wrapped = seen, wrapped

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._seen.append((*args, *kwargs.values()))
        return checked(self._wrapped(*args, **kwargs))

    def __get__(self, instance: Any, owner: Any) -> Disguised:
        return Disguised(self._seen, self._wrapped.__get__(instance, owner))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __eq__(self, other: object) -> bool:
        return bool(self._wrapped == other)

    def __hash__(self) -> int:
        return hash(self._wrapped)


def with_wrapt(seen: list[Any], call: Callable[..., Any]) -> Any:
    """The same, as a wrapper that passes itself off as what it wraps."""
    wrapt: Any = importlib.import_module("wrapt")

    def counted(wrapped: Any, _instance: Any, args: Any, kwargs: Any) -> Any:
        seen.append((*args, *kwargs.values()))
        return checked(wrapped(*args, **kwargs))

    return wrapt.FunctionWrapper(call, counted)


def of_a_call(seen: list[Any]) -> int:
    """How many of them are of a caller's call, and not of one for its batch."""
    return sum(
        any(str(getattr(value, "url", value)).endswith(tuple(PATHS.values())) for value in values)
        for values in seen
    )


PATHS = {
    "chat": "/chat/completions",
    "chat parse": "/chat/completions",
    "embeddings": "/embeddings",
    "response": "/responses",
    "response parse": "/responses",
}
INNER = [
    "_maybe_override_cast_to",
    "_build_request",
    "_build_headers",
    "_prepare_url",
    "_process_response",
    "_process_response_data",
]
HAS_WRAPT = importlib.util.find_spec("wrapt") is not None
needs_wrapt = pytest.mark.skipif(not HAS_WRAPT, reason="wrapt is not installed")
WATCHES = pytest.mark.parametrize(
    "watch",
    [
        pytest.param(counts_calls, id="plain"),
        pytest.param(Disguised, id="disguised"),
        pytest.param(with_wrapt, id="wrapt", marks=needs_wrapt),
    ],
)


def realtime_client(server: Server, cls: type[openai.AsyncOpenAI] = openai.AsyncOpenAI) -> openai.AsyncOpenAI:
    transport = httpx.MockTransport(server)
    return cls(
        api_key="k", base_url="http://server.test/v1", http_client=httpx.AsyncClient(transport=transport)
    )


@WATCHES
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("inner", INNER)
async def test_wrappers_of_inner_methods_see_what_they_see_of_a_realtime_call(
    monkeypatch: pytest.MonkeyPatch, name: str, inner: str, watch: Callable[[list[Any], Any], Any]
) -> None:
    async with serving() as (client, server):
        realtime = realtime_client(server)
        found = {}
        for kind, asked in [("realtime", realtime), ("batched", client)]:
            on_class: list[Any] = []
            with monkeypatch.context() as patch:
                patch.setattr(AsyncAPIClient, inner, watch(on_class, getattr(AsyncAPIClient, inner)))
                await METHODS[name](asked)
            on_instance: list[Any] = []
            setattr(asked, inner, watch(on_instance, getattr(asked, inner)))
            await METHODS[name](asked)
            delattr(asked, inner)
            found[kind] = of_a_call(on_class), of_a_call(on_instance)
        assert found["batched"] == found["realtime"] == (1, 1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("inner", INNER)
async def test_subclasses_of_the_client_are_asked_as_for_a_realtime_call(name: str, inner: str) -> None:
    seen: list[Any] = []

    class Realtime(openai.AsyncOpenAI):
        pass

    class Batched(BatchOpenAI):
        pass

    for cls in (Realtime, Batched):
        setattr(cls, inner, counts_calls(seen, getattr(cls, inner)))
    async with serving(Batched) as (client, server):
        for asked in (realtime_client(server, Realtime), client):
            seen.clear()
            assert isinstance(await METHODS[name](asked), ANSWER_TYPES[name])
            assert of_a_call(seen) == 1


@pytest.mark.parametrize("name", METHODS)
async def test_what_a_subclass_adds_to_the_body_is_sent(name: str) -> None:
    class Adding(BatchOpenAI):
        def _build_request(self, options: Any, **kwargs: Any) -> Any:
            if options.url in PATHS.values():
                options.json_data = {**options.json_data, "user": "added"}
            return super()._build_request(options, **kwargs)

    async with serving(Adding) as (client, server):
        answer: Any = await METHODS[name](client)
        assert answer.asked == "added"
        assert [body["user"] for body in server.bodies] == ["added"]


@WATCHES
@pytest.mark.parametrize("name", METHODS)
async def test_a_wrapper_that_comes_while_a_call_waits_sees_the_answer(
    monkeypatch: pytest.MonkeyPatch, name: str, watch: Callable[[list[Any], Any], Any]
) -> None:
    seen: list[Any] = []
    async with serving() as (client, server), anyio.create_task_group() as tasks:
        server.done = False
        tasks.start_soon(METHODS[name], client)
        await anyio.sleep(60)
        wrapper = watch(seen, AsyncAPIClient._process_response)
        monkeypatch.setattr(AsyncAPIClient, "_process_response", wrapper)
        server.done = True
        await anyio.sleep(600)
        assert of_a_call(seen) == 1


@WATCHES
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("method", ["request", "post", "_post"])
async def test_wrappers_on_the_way_get_the_answer_and_no_promise(
    monkeypatch: pytest.MonkeyPatch, name: str, method: str, watch: Callable[[list[Any], Any], Any]
) -> None:
    """Whatever they pass themselves off as."""
    seen: list[Any] = []
    async with serving() as (client, _):
        if method == "_post":
            for resource in (client.chat.completions, client.embeddings, client.responses):
                resource._post = watch(seen, resource._post)
        else:
            monkeypatch.setattr(BatchOpenAI, method, watch(seen, getattr(BatchOpenAI, method)))
        assert isinstance(await METHODS[name](client), ANSWER_TYPES[name])
        assert of_a_call(seen) == 1


# --- several at a time, and other ways -------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
async def test_calls_at_the_same_time_get_their_own_answers(name: str) -> None:
    async with serving() as (client, server):
        answers: dict[str, Any] = {}

        async def ask(user: str) -> None:
            answers[user] = await METHODS[name](client, user=user)

        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(ask, str(number))
        assert len(server.files) == 1
        assert {user: answer.asked for user, answer in answers.items()} == {
            str(number): str(number) for number in range(30)
        }


async def test_calls_of_all_kinds_that_were_begun_before_any_was_awaited() -> None:
    async with serving() as (client, _):
        calls = [
            (name, METHODS[name](client, user=f"{name} {n}"), f"{name} {n}")
            for n in range(3)
            for name in METHODS
        ]
        answers: dict[str, Any] = {}

        async def wait(call: Any, user: str) -> None:
            answers[user] = await call

        async with anyio.create_task_group() as tasks:
            for _, call, user in reversed(calls):
                tasks.start_soon(wait, call, user)
        for name, _, user in calls:
            assert isinstance(answers[user], ANSWER_TYPES[name])
            assert answers[user].asked == user


@pytest.mark.parametrize("name", METHODS)
async def test_an_unbatched_client_calls_at_once(name: str) -> None:
    async with serving() as (client, server):
        assert isinstance(await METHODS[name](client.unbatched), ANSWER_TYPES[name])
        assert isinstance(await METHODS[name](client.unbatched.copy(timeout=5)), ANSWER_TYPES[name])
        assert (len(server.realtime), server.files) == (2, {})


@pytest.mark.parametrize("name", METHODS)
async def test_a_call_within_another_call_is_its_own(name: str) -> None:
    """The arguments of one make another, at once or in a batch: neither takes the other's way."""
    async with serving() as (client, server):

        def content() -> Iterator[Any]:
            inner = METHODS["embeddings"](client, user="inner")
            inner.close()
            yield "x" if name == "embeddings" else {"role": "user", "content": "x"}

        iterable = content() if name == "chat" else list(content())
        answer = await METHODS[name](client, **{CONTENT[name]: iterable})
        assert isinstance(answer, ANSWER_TYPES[name])
        assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("resource", "name"), [("chat", "chat"), ("embeddings", "embeddings"), ("responses", "response")]
)
async def test_raw_and_streaming_responses(resource: str, name: str) -> None:
    async with serving() as (client, server):
        found: Any = client.chat.completions if resource == "chat" else getattr(client, resource)
        arguments: dict[str, Any] = {"model": "m", CONTENT[name]: USER if name != "embeddings" else ["a"]}
        raw = await found.with_raw_response.create(**arguments)
        assert raw.status_code == 200
        assert isinstance(raw.parse(), ANSWER_TYPES[name])
        async with found.with_streaming_response.create(**arguments) as response:
            assert isinstance(await response.parse(), ANSWER_TYPES[name])
        assert server.realtime == []


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.parametrize("name", ["chat", "response"])
async def test_streams(name: str) -> None:
    async with serving() as (client, server):
        stream: Any = await METHODS[name](client, stream=True)
        items = [item async for item in stream]
        assert len(items) > 1
        assert server.realtime == []


@pytest.mark.parametrize("name", METHODS)
async def test_the_methods_look_like_the_sdks(name: str) -> None:
    cls, method = SDK_METHODS[name]
    async with serving() as (client, _):
        resources: dict[type, Any] = {
            AsyncCompletions: client.chat.completions,
            AsyncEmbeddings: client.embeddings,
            AsyncResponses: client.responses,
        }
        resource = resources[cls]
    ours, sdks = getattr(type(resource), method), getattr(cls, method)
    assert ours is not sdks
    assert inspect.signature(ours) == inspect.signature(sdks)
    assert inspect.iscoroutinefunction(ours) == inspect.iscoroutinefunction(sdks)
    assert (ours.__name__, ours.__qualname__, ours.__module__, ours.__doc__) == (
        sdks.__name__,
        sdks.__qualname__,
        sdks.__module__,
        sdks.__doc__,
    )
