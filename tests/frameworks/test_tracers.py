"""Tracers, which put themselves between the caller and the client: logfire, langfuse, langsmith.

Each does so in another place: on the client (`request`), on the SDK's classes, and on the client's resources. What
they record of a call that travelled in a batch is what they record of a realtime one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import langfuse
import langsmith
import logfire
import openai
import pytest
import wrapt
from langfuse._client.resource_manager import LangfuseResourceManager
from langsmith.run_helpers import tracing_context
from logfire.testing import TestExporter
from openai._resource import AsyncAPIResource, SyncAPIResource
from openai.types.chat import ChatCompletion
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel

from autobatcher import BatchOpenAI

with warnings.catch_warnings():  # the package warns of one of its modules, which it imports itself
    warnings.simplefilter("ignore", DeprecationWarning)
    from langsmith.wrappers import wrap_openai

pytestmark = [
    pytest.mark.anyio,
    # The SDK stops reading a stream at its "[DONE]" and leaves its generators to trio, of whomever the stream comes.
    pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2?)\\.:ResourceWarning"),
]

SEVERAL = 5
both_backends = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])


class City(BaseModel):
    name: str


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def chat(client: openai.AsyncOpenAI, text: str, **more: Any) -> Any:
    return client.chat.completions.create(model="m", messages=said(text), **more)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("LANGFUSE_", "LOGFIRE_", "OTEL_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
async def gathering(client: BatchOpenAI) -> BatchOpenAI:
    """Sends a batch when it has `SEVERAL` calls, not before."""
    return client.with_options(batch_size=SEVERAL, batch_window_seconds=60)


async def several(client: BatchOpenAI) -> None:
    """Concurrent calls, each of which gets its own answer; all of them in one batch."""
    answers: dict[int, str | None] = {}

    async def ask(number: int) -> None:
        answers[number] = (await chat(client, f"question {number}")).choices[0].message.content

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number in range(SEVERAL):
                tasks.start_soon(ask, number)
    assert answers == {number: f"You said: question {number}." for number in range(SEVERAL)}
    counts = [batch.request_counts async for batch in client.batches.list()]
    assert [count.total for count in counts if count] == [SEVERAL]


async def text_of(stream: Any) -> str:
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


# --- logfire ----------------------------------------------------------------------------------------------------

Spans = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def tracer() -> Iterator[tuple[logfire.Logfire, Spans]]:
    """A logfire of this test alone, and the attributes of what it recorded of calls to models."""
    exporter = TestExporter()
    local = logfire.configure(
        local=True,
        send_to_logfire=False,
        console=False,
        metrics=False,
        inspect_arguments=False,
        additional_span_processors=[SimpleSpanProcessor(exporter)],
    )

    def spans() -> list[dict[str, Any]]:
        recorded = [span["attributes"] for span in exporter.exported_spans_as_dict()]
        return [attributes for attributes in recorded if "gen_ai.operation.name" in attributes]

    yield local, spans
    local.shutdown()


@both_backends
async def test_logfire_records_call_and_answer(
    client: BatchOpenAI, tracer: tuple[logfire.Logfire, Spans]
) -> None:
    local, spans = tracer
    own = client.request
    with local.instrument_openai(client):
        assert client.request != own
        answer = await chat(client, "hello", temperature=0.5)
    assert client.request == own
    (span,) = spans()
    assert span["gen_ai.request.model"] == "m"
    assert span["gen_ai.request.temperature"] == 0.5
    assert json.loads(span["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "hello"}]}
    ]
    assert json.loads(span["gen_ai.output.messages"]) == [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": "You said: hello."}],
            "finish_reason": "stop",
        }
    ]
    assert span["gen_ai.response.id"] == answer.id
    assert span["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert span["gen_ai.usage.output_tokens"] == answer.usage.completion_tokens


@both_backends
async def test_logfire_records_a_stream(client: BatchOpenAI, tracer: tuple[logfire.Logfire, Spans]) -> None:
    local, spans = tracer
    with local.instrument_openai(client):
        stream = await chat(client, "hello", stream=True, stream_options={"include_usage": True})
        assert isinstance(stream, openai.AsyncStream)
        assert await text_of(stream) == "You said: hello."
    call, streamed = spans()
    assert "gen_ai.output.messages" not in call
    assert streamed["logfire.msg"].startswith("streaming response from 'm'")
    (message,) = json.loads(streamed["gen_ai.output.messages"])
    assert message["parts"] == [{"type": "text", "content": "You said: hello."}]
    assert streamed["gen_ai.usage.output_tokens"] > 0


async def test_logfire_records_embeddings_and_responses(
    client: BatchOpenAI, tracer: tuple[logfire.Logfire, Spans]
) -> None:
    local, spans = tracer
    with local.instrument_openai(client):
        vectors = await client.embeddings.create(model="e", input=["a", "b"])
        response = await client.responses.create(model="r", input="hello")
    embedding, responding = spans()
    assert embedding["gen_ai.operation.name"] == "embeddings"
    assert embedding["gen_ai.request.model"] == "e"
    assert embedding["gen_ai.usage.input_tokens"] == vectors.usage.prompt_tokens
    assert responding["gen_ai.response.id"] == response.id
    (message,) = json.loads(responding["gen_ai.output.messages"])
    assert message["parts"] == [{"type": "text", "content": "You said: hello."}]


async def test_logfire_records_an_error(client: BatchOpenAI, tracer: tuple[logfire.Logfire, Spans]) -> None:
    local, spans = tracer
    with local.instrument_openai(client), pytest.raises(openai.RateLimitError):
        await chat(client, "[[error:429]]")
    (span,) = spans()
    assert span["logfire.level_num"] >= 17  # an error's
    assert "gen_ai.response.id" not in span


@both_backends
async def test_logfire_leaves_calls_their_batch(
    gathering: BatchOpenAI, tracer: tuple[logfire.Logfire, Spans]
) -> None:
    local, spans = tracer
    with local.instrument_openai(gathering):
        await several(gathering)
    recorded = {span["gen_ai.input.messages"]: span["gen_ai.output.messages"] for span in spans()}
    assert len(recorded) == SEVERAL
    for given, answered in recorded.items():
        question = json.loads(given)[0]["parts"][0]["content"]
        assert json.loads(answered)[0]["parts"][0]["content"] == f"You said: {question}."


# --- langfuse ---------------------------------------------------------------------------------------------------

INPUT, OUTPUT = "langfuse.observation.input", "langfuse.observation.output"
USAGE, NAMED = "langfuse.observation.usage_details", "langfuse.observation.model.name"
KIND = "langfuse.observation.type"


def sdk_classes() -> list[type]:
    """Whatever of the SDK langfuse may lay hands on."""
    found: list[type] = [openai.Stream, openai.AsyncStream, openai.OpenAI, openai.AsyncOpenAI]
    return found + SyncAPIResource.__subclasses__() + AsyncAPIResource.__subclasses__()


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """The SDK as langfuse patches it, on import, and the attributes of what it recorded."""
    for name in ("chat.completions", "completions", "embeddings", "responses"):
        importlib.import_module(f"openai.resources.{name}")  # some SDKs wait for the first use
    before = {kind: dict(vars(kind)) for kind in sdk_classes()}
    monkeypatch.delitem(sys.modules, "langfuse.openai", raising=False)
    importlib.import_module("langfuse.openai")
    exporter = InMemorySpanExporter()
    tracing = langfuse.Langfuse(
        public_key="public",
        secret_key="secret",
        base_url="http://127.0.0.1:9",
        tracer_provider=TracerProvider(),
        span_exporter=exporter,
    )

    def spans() -> list[dict[str, Any]]:
        tracing.flush()
        return [dict(span.attributes or {}) for span in exporter.get_finished_spans()]

    yield spans
    LangfuseResourceManager.reset()
    patched = set()
    for kind, attributes in before.items():
        for name, value in attributes.items():
            if vars(kind)[name] is not value:
                setattr(kind, name, value)
                patched.add((kind, name))
    assert (openai.resources.chat.AsyncCompletions, "create") in patched
    assert not [
        kind
        for kind in sdk_classes()
        if any(isinstance(value, wrapt.FunctionWrapper) for value in vars(kind).values())
    ]


@both_backends
async def test_langfuse_records_call_and_answer(client: BatchOpenAI, observed: Spans) -> None:
    answer = await chat(client, "hello", temperature=0.5)
    (span,) = observed()
    assert span[KIND] == "generation"
    assert span[NAMED] == "m"
    assert json.loads(span[INPUT]) == said("hello")
    assert json.loads(span[OUTPUT]) == {"role": "assistant", "content": "You said: hello."}
    assert json.loads(span[USAGE])["total_tokens"] == answer.usage.total_tokens
    assert json.loads(span["langfuse.observation.model.parameters"])["temperature"] == 0.5


@both_backends
async def test_langfuse_records_a_stream(client: BatchOpenAI, observed: Spans) -> None:
    stream = await chat(client, "hello", stream=True, stream_options={"include_usage": True})
    assert await text_of(stream) == "You said: hello."
    (span,) = observed()
    assert span[OUTPUT] == "You said: hello."
    assert json.loads(span[INPUT]) == said("hello")
    assert json.loads(span[USAGE])["completion_tokens"] > 0
    assert "langfuse.observation.completion_start_time" in span


async def test_langfuse_records_the_other_forms(client: BatchOpenAI, observed: Spans) -> None:
    raw = await client.chat.completions.with_raw_response.create(model="m", messages=said("raw"))
    assert isinstance(raw.parse(), ChatCompletion)
    parsed = await client.chat.completions.parse(model="m", messages=said("Oslo"), response_format=City)
    assert parsed.choices[0].message.parsed == City(name="Oslo")
    await client.embeddings.create(model="e", input="x")
    await client.responses.create(model="r", input="hello")
    recorded = observed()
    assert [span[KIND] for span in recorded] == ["generation", "generation", "embedding", "generation"]
    assert [span[NAMED] for span in recorded] == ["m", "m", "e", "r"]
    assert "You said: raw." in recorded[0][OUTPUT]
    assert "Oslo" in recorded[1][OUTPUT]
    assert json.loads(recorded[2][OUTPUT]) == {"dimensions": 256, "count": 1}
    assert "You said: hello." in recorded[3][OUTPUT]


async def test_langfuse_records_an_error(client: BatchOpenAI, observed: Spans) -> None:
    with pytest.raises(openai.BadRequestError):
        await chat(client, "[[error:400]]")
    (span,) = observed()
    assert span["langfuse.observation.level"] == "ERROR"
    assert "400" in span["langfuse.observation.status_message"]


@both_backends
async def test_langfuse_leaves_calls_their_batch(gathering: BatchOpenAI, observed: Spans) -> None:
    await several(gathering)
    recorded = {
        json.loads(span[INPUT])[0]["content"]: json.loads(span[OUTPUT])["content"] for span in observed()
    }
    questions = [f"question {number}" for number in range(SEVERAL)]
    assert recorded == {question: f"You said: {question}." for question in questions}


# --- langsmith: on asyncio only ---------------------------------------------------------------------------------


class Runs:
    """What the service was told, by run.

    Attributes:
        service: langsmith's client for it.
    """

    service: langsmith.Client

    def __init__(self) -> None:
        self._told: dict[str, dict[str, Any]] = {}

    def tell(self, run: dict[str, Any]) -> None:
        known = self._told.setdefault(run["id"], {})
        known.update({key: value for key, value in run.items() if value not in (None, {}, [])})

    @property
    def all(self) -> list[dict[str, Any]]:
        return list(self._told.values())

    def recording(self) -> AbstractContextManager[None]:
        return tracing_context(enabled=True, client=self.service)


@pytest.fixture
def runs() -> Iterator[Runs]:
    """Runs as they reach langsmith's service, which a server on loopback stands for."""
    runs = Runs()

    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            runs.tell(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(202)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_PATCH = do_POST  # noqa: N815 -- what http.server looks for

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        runs.service = langsmith.Client(
            api_url=f"http://127.0.0.1:{server.server_port}", api_key="k", auto_batch_tracing=False, info={}
        )
        yield runs
        runs.service.session.close()
        server.shutdown()
        thread.join()


async def test_langsmith_records_call_and_answer(client: BatchOpenAI, runs: Runs) -> None:
    assert wrap_openai(client) is client
    with runs.recording():
        answer = await chat(client, "hello", temperature=0.5)
    (run,) = runs.all
    assert run["run_type"] == "llm"
    assert run["inputs"] == {"messages": said("hello"), "model": "m", "temperature": 0.5}
    assert run["outputs"]["id"] == answer.id
    assert run["outputs"]["choices"][0]["message"]["content"] == "You said: hello."
    assert run["outputs"]["usage_metadata"]["total_tokens"] == answer.usage.total_tokens
    assert run["extra"]["metadata"]["ls_model_name"] == "m"
    assert run["end_time"] >= run["start_time"]


async def test_langsmith_records_parse(client: BatchOpenAI, runs: Runs) -> None:
    wrap_openai(client)
    with runs.recording():
        answer = await client.chat.completions.parse(model="m", messages=said("Oslo"), response_format=City)
    assert answer.choices[0].message.parsed == City(name="Oslo")
    (run,) = runs.all
    assert run["inputs"]["messages"] == said("Oslo")
    assert '"parsed": {"name": "Oslo"}' in json.dumps(run["outputs"])


async def test_langsmith_records_streams_and_responses(client: BatchOpenAI, runs: Runs) -> None:
    wrap_openai(client)
    with runs.recording():
        stream = await chat(client, "hello", stream=True, stream_options={"include_usage": True})
        assert await text_of(stream) == "You said: hello."
        response = await client.responses.create(model="r", input="hello")
    streamed, responded = runs.all
    assert streamed["outputs"]["choices"][0]["message"]["content"] == "You said: hello."
    assert streamed["outputs"]["usage_metadata"]["output_tokens"] > 0
    assert responded["inputs"] == {"model": "r", "input": "hello"}
    assert responded["outputs"]["id"] == response.id


async def test_langsmith_records_an_error(client: BatchOpenAI, runs: Runs) -> None:
    wrap_openai(client)
    with runs.recording(), pytest.raises(openai.RateLimitError):
        await chat(client, "[[error:429]]")
    (run,) = runs.all
    assert "RateLimitError" in run["error"]
    assert run["inputs"]["messages"] == said("[[error:429]]")


async def test_langsmith_leaves_calls_their_batch(gathering: BatchOpenAI, runs: Runs) -> None:
    wrap_openai(gathering)
    with runs.recording():
        await several(gathering)
    recorded = {
        run["inputs"]["messages"][0]["content"]: run["outputs"]["choices"][0]["message"]["content"]
        for run in runs.all
    }
    questions = [f"question {number}" for number in range(SEVERAL)]
    assert recorded == {question: f"You said: {question}." for question in questions}
