"""What callers get: answers, errors, streams, and what is passed through."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator

import anyio
import openai
import pytest

from autobatcher._http import httpx
from autobatcher.core.outcomes import Answer
from autobatcher.local import LocalConfig, serve_in_thread
from autobatcher.local import Serving as Upstream
from autobatcher.serve import Serving
from autobatcher.serve.replies import reply_to
from tests.serve.conftest import SOON, chat, metrics, proxy

pytestmark = pytest.mark.anyio

KEY = "sk-of-a-caller"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def serving(upstream: Upstream) -> Iterator[Serving]:
    with proxy(upstream) as serving:
        yield serving


@pytest.fixture
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=serving.base_url, api_key=KEY, max_retries=0) as client:
        yield client


def test_chat_embeddings_and_responses_go_through_batches(client: openai.OpenAI, upstream: Upstream) -> None:
    answer = client.chat.completions.create(**chat("hello"))
    assert answer.choices[0].message.content == "You said: hello."
    assert len(client.embeddings.create(model="local-embedding", input=["a", "b"]).data) == 2
    assert client.responses.create(model="local-chat", input="hello").output_text == "You said: hello."
    assert len(upstream.api.executed) == 3
    assert not upstream.api.realtime_calls


def test_the_raw_response_has_the_servers_request_id(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**chat("hello"))
    assert raw.request_id
    assert raw.request_id.startswith("req_")
    assert raw.http_response.headers["content-type"] == "application/json"
    assert len(raw.http_response.headers.get_list("date")) == 1


async def test_callers_share_a_batch(serving: Serving, upstream: Upstream) -> None:
    async with openai.AsyncOpenAI(base_url=serving.base_url, api_key=KEY) as client:
        answers: dict[int, str | None] = {}

        async def ask(number: int) -> None:
            answer = await client.chat.completions.create(**chat(f"number {number}"))
            answers[number] = answer.choices[0].message.content

        async with anyio.create_task_group() as tasks:
            for number in range(40):
                tasks.start_soon(ask, number)
        assert answers == {number: f"You said: number {number}." for number in range(40)}
        batches = [batch async for batch in client.batches.list()]  # which is passed through
    assert len(batches) < 10
    assert len(upstream.api.executed) == 40


def test_streams_of_chat(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        **chat("hello"), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "You said: hello."
    assert chunks[-1].usage is not None
    with client.chat.completions.stream(**chat("hello")) as helped:
        assert helped.get_final_completion().choices[0].message.content == "You said: hello."


def test_streams_of_responses(client: openai.OpenAI) -> None:
    kinds = [event.type for event in client.responses.create(model="local-chat", input="hello", stream=True)]
    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds
    assert kinds[-1] == "response.completed"


@pytest.mark.parametrize("status", [100, 204, 205, 304, 600])
def test_a_status_that_no_answer_can_have_is_an_error(status: int) -> None:
    reply = reply_to(Answer(status, None, b'{"id": "a"}'))
    assert reply.status == 502
    assert str(status) in json.loads(reply.body)["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_a_request_are_the_servers(client: openai.OpenAI, stream: bool) -> None:  # noqa: FBT001 -- a parameter
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**chat("[[error:400]]"), stream=stream)
    assert caught.value.body
    assert caught.value.request_id
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_an_error_that_may_pass_was_retried_in_batches_and_is_not_retried_over_http(
    serving: Serving, upstream: Upstream
) -> None:
    with (
        openai.OpenAI(base_url=serving.base_url, api_key=KEY, max_retries=3) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.chat.completions.create(**chat("[[error:429]]"))
    assert sum(upstream.api.executed.values()) == 3  # at first, and in two more batches
    assert (
        metrics(serving)['autobatcher_requests_failed_total{endpoint="chat/completions",status="429"}'] == 1
    )


def test_all_else_is_passed_through(client: openai.OpenAI, upstream: Upstream) -> None:
    assert {model.id for model in client.models.list()} == {"local-chat", "local-embedding"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat("by hand")}
    content = json.dumps(line).encode() + b"\n"
    file = client.files.create(file=("a.jsonl", content), purpose="batch")
    assert client.files.content(file.id).read() == content
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert batch.id
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve("file-none")
    assert caught.value.request_id
    assert client.files.delete(file.id).deleted
    assert not upstream.api.realtime_calls


def test_large_files_pass_through_beyond_the_limit_of_bodies(upstream: Upstream) -> None:
    content = b'{"a":1}\n' * 500_000
    with proxy(upstream, max_body_bytes=1000) as serving:
        client = openai.OpenAI(base_url=serving.base_url, api_key=KEY)
        with client:
            file = client.files.create(file=("a.jsonl", content), purpose="batch")
            assert file.bytes == len(content)
            assert client.files.content(file.id).read() == content


def test_paths_keep_their_escapes_and_queries(serving: Serving, upstream: Upstream) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    for path in ("models/a%2Fb", "files?limit=1&purpose=batch", "nothing"):
        passed = httpx.get(f"{serving.base_url}/{path}", headers=headers, timeout=SOON)
        direct = httpx.get(f"{upstream.base_url}/{path}", headers=headers, timeout=SOON)
        assert (passed.status_code, passed.json()) == (direct.status_code, direct.json())


def test_only_what_is_below_v1_reaches_the_upstream(serving: Serving) -> None:
    for path in ("/", "/v1", "/models", "/v1/../secret", "/v1/%2e%2e/secret"):
        with httpx.Client() as client:
            request = client.build_request("GET", serving.origin)
            request.url = httpx.URL(serving.origin).copy_with(raw_path=path.encode())
            response = client.send(request)
        assert response.status_code == 404
        assert response.json()["error"]["type"] == "invalid_request_error"
    assert httpx.post(f"{serving.origin}/health").status_code == 405


def test_an_upstream_that_is_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with (
        proxy(nobody, options={"patience_seconds": 0.2}) as serving,
        openai.OpenAI(base_url=serving.base_url, api_key=KEY, max_retries=2) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**chat("hello"))
        assert caught.value.status_code == 502
        assert caught.value.code == "upstream_unreachable"
        with pytest.raises(openai.InternalServerError) as caught:
            client.with_options(max_retries=0).models.list()
        assert caught.value.status_code == 502


def test_a_key_that_the_upstream_does_not_know() -> None:
    with (
        serve_in_thread(LocalConfig(api_key="the-right-one")) as upstream,
        proxy(upstream) as serving,
        openai.OpenAI(base_url=serving.base_url, api_key=KEY) as client,
    ):
        with pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(**chat("hello"))
        assert caught.value.body
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        right = client.with_options(api_key="the-right-one")
        assert right.chat.completions.create(**chat("hello")).choices[0].message.content


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(serving: Serving) -> None:
    command = ["curl", "-sS", "-N", f"{serving.base_url}/chat/completions", "-d", "@-"]
    command += ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    plain = subprocess.run(
        command, input=json.dumps(chat("hello")), capture_output=True, text=True, check=True
    )
    assert json.loads(plain.stdout)["choices"][0]["message"]["content"] == "You said: hello."
    streamed = subprocess.run(
        command, input=json.dumps(chat("hello", stream=True)), capture_output=True, text=True, check=True
    )
    assert streamed.stdout.startswith("data: {")
    assert streamed.stdout.endswith("data: [DONE]\n\n")
