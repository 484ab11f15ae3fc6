"""What any Batch API owes its clients, over real HTTP with the plain SDK.

Set AUTOBATCHER_CONTRACT_BASE_URL (and OPENAI_API_KEY, AUTOBATCHER_CONTRACT_MODEL) to ask another server.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

import openai
import pytest
from openai import OpenAI

from autobatcher.local import LocalConfig, serve_in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openai.types import Batch

BASE_URL = os.environ.get("AUTOBATCHER_CONTRACT_BASE_URL")
MODEL = os.environ.get("AUTOBATCHER_CONTRACT_MODEL", "local-model")
PATIENCE = 24 * 3600 if BASE_URL else 30
TERMINAL = {"completed", "failed", "expired", "cancelled"}
CHAT: Final = "/v1/chat/completions"


def connect(config: LocalConfig) -> Iterator[OpenAI]:
    if BASE_URL is not None:
        with OpenAI(base_url=BASE_URL, api_key=os.environ.get("OPENAI_API_KEY", "none")) as client:
            yield client
        return
    with (
        serve_in_thread(config) as serving,
        OpenAI(base_url=serving.base_url, api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[OpenAI]:
    yield from connect(LocalConfig())


@pytest.fixture
def slow_client() -> Iterator[OpenAI]:
    yield from connect(LocalConfig(latency_seconds=0.02, concurrency=2))


@pytest.fixture
def partial_client() -> Iterator[OpenAI]:
    if BASE_URL is not None:
        pytest.skip("whether another server has partial results is not known")
    yield from connect(LocalConfig(latency_seconds=0.02, concurrency=2, partial_results=True))


def line(name: str, /, **changes: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"Say {name}."}]}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body, **changes}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def create(client: OpenAI, content: bytes, **options: Any) -> Batch:
    uploaded = client.files.create(file=("input.jsonl", content), purpose="batch")
    options = {"endpoint": CHAT, "completion_window": "24h", **options}
    return client.batches.create(input_file_id=uploaded.id, **options)


def wait(client: OpenAI, batch: Batch, statuses: set[str] = TERMINAL) -> Batch:
    deadline = time.monotonic() + PATIENCE
    while batch.status not in statuses:
        assert time.monotonic() < deadline, batch
        assert batch.status not in TERMINAL, batch
        time.sleep(10 if BASE_URL else 0.01)
        batch = client.batches.retrieve(batch.id)
    return batch


def read(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    content = client.files.content(file_id).read()
    assert not content or content.endswith(b"\n")
    return [json.loads(part) for part in content.split(b"\n") if part]


def test_a_file_is_kept_as_it_was_sent(client: OpenAI) -> None:
    content = "{}\n  \u2028\r\n".encode() + bytes(range(256))
    uploaded = client.files.create(file=("näme.jsonl", content), purpose="batch")
    assert uploaded.object == "file"
    assert uploaded.purpose == "batch"
    assert uploaded.bytes == len(content)
    assert client.files.retrieve(uploaded.id).id == uploaded.id
    assert client.files.content(uploaded.id).read() == content
    deleted = client.files.delete(uploaded.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (uploaded.id, "file", True)
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(uploaded.id)
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError):
        client.files.content(uploaded.id)


def test_every_line_is_answered_under_its_own_id(client: OpenAI) -> None:
    ids = [f"line-{n}" for n in range(30)]
    created = create(client, jsonl(*map(line, ids)), metadata={"purpose": "contract"})
    assert created.object == "batch"
    assert created.status == "validating"
    assert created.endpoint == CHAT
    assert created.completion_window == "24h"
    assert created.metadata == {"purpose": "contract"}
    assert created.expires_at == created.created_at + 24 * 3600
    batch = wait(client, created)
    assert batch.status == "completed"
    assert batch.metadata == {"purpose": "contract"}
    assert batch.errors is None
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 30, "completed": 30, "failed": 0}
    assert batch.in_progress_at
    assert batch.finalizing_at
    assert batch.completed_at
    assert not batch.error_file_id
    lines = read(client, batch.output_file_id)
    assert sorted(line["custom_id"] for line in lines) == sorted(ids)
    assert len({line["id"] for line in lines}) == 30
    for result in lines:
        assert result["error"] is None
        assert result["response"]["status_code"] == 200
        assert result["response"]["request_id"]
        assert result["response"]["body"]["object"] == "chat.completion"
    assert batch.output_file_id is not None
    output = client.files.retrieve(batch.output_file_id)
    assert output.purpose == "batch_output"
    assert output.bytes == len(client.files.content(output.id).read())


def test_a_line_without_a_newline_and_blank_lines(client: OpenAI) -> None:
    content = b"\n" + jsonl(line("a")) + b"\r\n\n" + jsonl(line("b")).rstrip()
    batch = wait(client, create(client, content))
    assert batch.status == "completed"
    assert {result["custom_id"] for result in read(client, batch.output_file_id)} == {"a", "b"}


def test_bad_bodies_become_error_lines(client: OpenAI) -> None:
    bad = line("bad", body={"model": MODEL, "messages": "no list"})
    batch = wait(client, create(client, jsonl(line("good"), bad)))
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 2, "completed": 1, "failed": 1}
    assert [result["custom_id"] for result in read(client, batch.output_file_id)] == ["good"]
    (error,) = read(client, batch.error_file_id)
    assert error["custom_id"] == "bad"
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["message"]


def test_no_output_file_when_every_line_failed(client: OpenAI) -> None:
    bad = line("bad", body={"model": MODEL, "messages": "no list"})
    batch = wait(client, create(client, jsonl(bad)))
    assert batch.status == "completed"
    assert batch.output_file_id is None
    assert len(read(client, batch.error_file_id)) == 1


INVALID = [
    pytest.param(b"", {"empty_file"}, None, id="empty"),
    pytest.param(b"\n\n", {"empty_file"}, None, id="blank"),
    pytest.param(jsonl(line("a")) + b"{oops\n", {"invalid_json_line"}, 2, id="json"),
    pytest.param(b"[1]\n", {"invalid_json_line"}, 1, id="not-an-object"),
    pytest.param(b"[" * 100_000 + b"\n", {"invalid_json_line"}, 1, id="deep"),
    pytest.param(jsonl(line("a"), line("a")), {"duplicate_custom_id"}, 2, id="duplicate"),
    pytest.param(jsonl(line("a", url="/v1/embeddings")), {"invalid_url", "mismatched_url"}, 1, id="url"),
    pytest.param(jsonl(line("a", method="GET")), {"invalid_method"}, 1, id="method"),
    pytest.param(
        jsonl(line("a"), line("b", body={"model": "other", "messages": []})),
        {"mismatched_model"},
        2,
        id="models",
    ),
    pytest.param(
        jsonl({"method": "POST", "url": CHAT, "body": {}}), {"missing_required_parameter"}, 1, id="no-id"
    ),
    pytest.param(jsonl(line("a", custom_id=7)), {"invalid_custom_id"}, 1, id="id-is-a-number"),
    pytest.param(jsonl(line("a", body=None)), {"missing_required_parameter"}, 1, id="no-body"),
    pytest.param(jsonl(line("a", body=[])), {"invalid_request"}, 1, id="body-is-a-list"),
    pytest.param(jsonl(line("a", body={})), {"missing_required_parameter"}, 1, id="no-model"),
    pytest.param(b"\n" * 3 + b"nope", {"invalid_json_line"}, 4, id="line-numbers-count-blank-lines"),
]


@pytest.mark.parametrize(("content", "codes", "number"), INVALID)
def test_validation_happens_after_creation(
    client: OpenAI, content: bytes, codes: set[str], number: int | None
) -> None:
    batch = wait(client, create(client, content))
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.output_file_id is None
    assert batch.error_file_id is None
    assert batch.errors is not None
    assert batch.errors.object == "list"
    assert batch.errors.data
    error = batch.errors.data[0]
    assert error.code in codes
    assert error.line == number
    assert error.message


def test_cancelling_keeps_the_answered_lines(slow_client: OpenAI) -> None:
    client = slow_client
    batch = create(client, jsonl(*(line(f"{n}") for n in range(500))))
    while not (batch.request_counts and batch.request_counts.completed):
        batch = wait(client, client.batches.retrieve(batch.id), {"in_progress"})
    cancelling = client.batches.cancel(batch.id)
    assert cancelling.status in {"cancelling", "cancelled"}
    assert cancelling.cancelling_at
    batch = wait(client, cancelling)
    assert batch.status == "cancelled"
    assert batch.cancelled_at
    assert batch.request_counts is not None
    assert 0 < batch.request_counts.completed < 500
    assert len(read(client, batch.output_file_id)) == batch.request_counts.completed


def test_a_finished_batch_cannot_be_cancelled(client: OpenAI) -> None:
    batch = wait(client, create(client, jsonl(line("a"))))
    with pytest.raises((openai.ConflictError, openai.BadRequestError)):
        client.batches.cancel(batch.id)
    assert client.batches.retrieve(batch.id).status == "completed"


def test_batches_are_listed_newest_first_in_pages(client: OpenAI) -> None:
    ids = [create(client, jsonl(line("a"))).id for _ in range(5)]
    page = client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == [ids[4], ids[3]]
    assert page.has_more
    page = client.batches.list(limit=2, after=ids[3])
    assert [batch.id for batch in page.data] == [ids[2], ids[1]]
    listed = []
    for batch in client.batches.list(limit=3):
        listed.append(batch.id)
        if batch.id == ids[0]:
            break
    assert listed == ids[::-1]


def test_files_are_listed_in_pages(client: OpenAI) -> None:
    ids = [client.files.create(file=("f.jsonl", b"{}"), purpose="batch").id for _ in range(3)]
    page = client.files.list(limit=2, purpose="batch")
    assert [file.id for file in page.data] == [ids[2], ids[1]]
    assert page.has_more
    assert client.files.list(limit=1, after=ids[1]).data[0].id == ids[0]


@pytest.mark.parametrize("limit", [0, 101, -1])
def test_limits_out_of_range(client: OpenAI, limit: int) -> None:
    with pytest.raises(openai.BadRequestError):
        client.batches.list(limit=limit)


def test_unknown_objects(client: OpenAI) -> None:
    calls: list[Any] = [client.batches.retrieve, client.batches.cancel]
    for call in calls:
        with pytest.raises(openai.NotFoundError) as caught:
            call("batch_unknown")
        assert isinstance(caught.value.body, dict)
        assert {"message", "type", "param", "code"} <= caught.value.body.keys()
        assert caught.value.request_id
    calls = [client.files.retrieve, client.files.delete, client.files.content]
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call("file-unknown")
    with pytest.raises(openai.NotFoundError):
        client.get("/unknown", cast_to=object)


BAD_CREATIONS: list[dict[str, Any]] = [
    {"input_file_id": "file-unknown"},
    {"endpoint": "/v1/nothing"},
    {"completion_window": "soon"},
    {"completion_window": "0h"},
    {"metadata": {f"{n}": "" for n in range(17)}},
    {"metadata": {"k" * 65: ""}},
    {"metadata": {"k": "v" * 513}},
    {"metadata": {"k": 1}},
    {"metadata": "text"},
]


@pytest.mark.parametrize("changes", BAD_CREATIONS, ids=lambda changes: json.dumps(changes)[:40])
def test_bad_creations(client: OpenAI, changes: dict[str, Any]) -> None:
    uploaded = client.files.create(file=("f.jsonl", jsonl(line("a"))), purpose="batch")
    arguments: dict[str, Any] = {
        "input_file_id": uploaded.id,
        "endpoint": CHAT,
        "completion_window": "24h",
        **changes,
    }
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.batches.create(**arguments)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["message"]


def test_the_largest_metadata(client: OpenAI) -> None:
    metadata = {f"{n:064}": "v" * 512 for n in range(16)}
    assert create(client, jsonl(line("a")), metadata=metadata).metadata == metadata


def test_an_input_of_another_purpose(client: OpenAI) -> None:
    uploaded = client.files.create(file=("f.jsonl", jsonl(line("a"))), purpose="user_data")
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id=uploaded.id, endpoint=CHAT, completion_window="24h")


def test_an_unknown_purpose(client: OpenAI) -> None:
    purpose: Any = "nonsense"
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("f.jsonl", b"{}"), purpose=purpose)


def test_partial_results_can_be_read_before_the_end(partial_client: OpenAI) -> None:
    client = partial_client
    two_models = [
        line(f"{n}", body={**line(f"{n}")["body"], "model": f"{MODEL}-{n % 2}"}) for n in range(100)
    ]
    batch = create(client, jsonl(*two_models), completion_window="1h")
    while not (batch.request_counts and batch.request_counts.completed >= 4):
        batch = wait(client, client.batches.retrieve(batch.id), {"in_progress"})
    assert batch.output_file_id
    assert batch.error_file_id
    seen: list[bytes] = []
    incomplete = True
    while incomplete:
        answer = client.files.with_raw_response.content(
            batch.output_file_id, extra_query={"skip": str(len(seen))}
        )
        seen += answer.content.splitlines()
        assert answer.headers["x-last-line"] == str(len(seen))
        incomplete = answer.headers["x-incomplete"] == "true"
        time.sleep(0.02)
    batch = wait(client, batch)
    assert batch.status == "completed"
    assert sorted(json.loads(part)["custom_id"] for part in seen) == sorted(f"{n}" for n in range(100))
    assert batch.output_file_id
    assert client.files.content(batch.output_file_id).read() == b"\n".join(seen) + b"\n"
    assert read(client, batch.error_file_id) == []


def test_realtime_endpoints(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hello"}]
    completion = client.chat.completions.create(model=MODEL, messages=messages)
    assert completion.choices[0].message.content
    with client.chat.completions.create(model=MODEL, messages=messages, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == completion.choices[0].message.content
    with pytest.raises(openai.BadRequestError):
        client.post(CHAT.removeprefix("/v1"), body={"model": MODEL}, cast_to=object)


def test_models(client: OpenAI) -> None:
    first = next(iter(client.models.list()))
    assert client.models.retrieve(first.id).id == first.id
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such-model")
