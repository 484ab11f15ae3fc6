"""What needs inside access to the server: in process, in virtual time unless a socket is involved."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from autobatcher._http import httpx
from autobatcher.local import LocalBatchAPI, LocalConfig, serve_in_thread
from autobatcher.local.answers import ATTEMPTS
from autobatcher.local.batches import window_seconds
from autobatcher.local.validation import LineTooLongError, split_lines
from autobatcher.local.wire import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from starlette.types import Receive, Scope, Send

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
DAY = 24 * 3600
START = 1_700_000_000


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


def configured(**options: Any) -> LocalConfig:
    return LocalConfig(clock=lambda: START + anyio.current_time(), **options)


def jsonl(ids: Iterable[Any], **changes: Any) -> bytes:
    lines = []
    for name in ids:
        body = {"model": "m", "messages": [{"role": "user", "content": f"Say {name}."}], **changes}
        request = {"custom_id": f"{name}", "method": "POST", "url": CHAT, "body": body}
        lines.append(json.dumps(request).encode() + b"\n")
    return b"".join(lines)


async def upload(client: Any, content: bytes, **fields: Any) -> Any:
    return await client.post(
        "files", files={"file": ("f.jsonl", content)}, data={"purpose": "batch", **fields}
    )


async def create(client: Any, content: bytes, **options: Any) -> dict[str, Any]:
    file_id = (await upload(client, content)).json()["id"]
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **options}
    answer = await client.post("batches", json=body)
    assert answer.status_code == 200, answer.text
    batch: dict[str, Any] = answer.json()
    return batch


async def retrieve(client: Any, batch: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"batches/{batch['id']}")).json()
    return found


async def wait(client: Any, batch: dict[str, Any], *, every: float = 0.1) -> dict[str, Any]:
    while not any(batch[f"{status}_at"] for status in ("completed", "failed", "expired", "cancelled")):
        await anyio.sleep(every)
        batch = await retrieve(client, batch)
    return batch


async def read(client: Any, file_id: str | None) -> list[dict[str, Any]]:
    content = (await client.get(f"files/{file_id}/content")).content
    return [json.loads(line) for line in content.split(b"\n") if line]


async def test_unanswered_lines_expire_with_the_window() -> None:
    config = configured(latency_seconds=DAY / 3 + 1, concurrency=1)  # time for two of the three
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        batch = await wait(client, await create(client, jsonl(range(3))), every=600)
        assert batch["status"] == "expired"
        assert batch["expired_at"] == batch["expires_at"] == batch["created_at"] + DAY
        assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        assert [line["custom_id"] for line in await read(client, batch["output_file_id"])] == ["0", "1"]
        (line,) = await read(client, batch["error_file_id"])
        assert line["custom_id"] == "2"
        assert line["response"] is None
        assert line["error"]["code"] == "batch_expired"
        assert api.executed == {"0": 1, "1": 1}


async def test_counts_move() -> None:
    config = configured(latency_seconds=1, concurrency=10)
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        batch = await create(client, jsonl(range(30)))
        seen = []
        for _ in range(3):
            await anyio.sleep(1.1)
            batch = await retrieve(client, batch)
            seen.append((batch["status"], batch["request_counts"]["completed"]))
        assert seen == [("in_progress", 10), ("in_progress", 20), ("completed", 30)]


async def test_concurrency_is_shared_by_all_batches() -> None:
    config = configured(latency_seconds=1, concurrency=10)
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        first, second = await create(client, jsonl(range(10))), await create(client, jsonl(range(10)))
        await anyio.sleep(1.5)
        assert sum(api.executed.values()) == 10
        for batch in (first, second):
            assert (await wait(client, batch))["status"] == "completed"


@pytest.mark.parametrize("latency", [0.0, 1.0])
async def test_a_restart_goes_on_where_it_was(tmp_path: Path, latency: float) -> None:
    config = configured(db=tmp_path / "state.db", latency_seconds=latency, concurrency=7)
    ids = [f"{n}" for n in range(700)]
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        batch = await create(client, jsonl(ids))
        await anyio.sleep(latency * 20)
        while not api.executed:  # without latency no time passes
            await anyio.lowlevel.checkpoint()
    first = api.executed
    assert 0 < len(first) < 700
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        batch = await wait(client, batch)
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": 700, "completed": 700, "failed": 0}
        assert sorted(line["custom_id"] for line in await read(client, batch["output_file_id"])) == sorted(
            ids
        )
        assert first + api.executed == dict.fromkeys(ids, 1)


async def test_a_restart_after_the_window_expires_the_batch(tmp_path: Path) -> None:
    config = configured(db=tmp_path / "state.db", latency_seconds=60, concurrency=1)
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        batch = await create(client, jsonl(range(3)), completion_window="90s")
        await anyio.sleep(70)
    await anyio.sleep(3600)
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        batch = await wait(client, batch)
        assert batch["status"] == "expired"
        assert len(await read(client, batch["output_file_id"])) == 1
        assert len(await read(client, batch["error_file_id"])) == 2
        assert not api.executed


async def test_cancelling_stops_the_lines_under_way() -> None:
    config = configured(latency_seconds=10, concurrency=2)
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        batch = await create(client, jsonl(range(10)))
        await anyio.sleep(25)
        answer = await client.post(f"batches/{batch['id']}/cancel")
        assert answer.json()["status"] == "cancelling"
        batch = await wait(client, batch)
        assert batch["status"] == "cancelled"
        assert batch["request_counts"] == {"total": 10, "completed": 4, "failed": 0}
        assert len(await read(client, batch["output_file_id"])) == 4
        assert batch["error_file_id"] is None
        assert (await client.post(f"batches/{batch['id']}/cancel")).status_code == 409


async def test_cancelling_before_anything_was_done() -> None:
    async with LocalBatchAPI(configured()) as api, api.http_client() as client:
        batch = await create(client, jsonl(range(5000)))
        await client.post(f"batches/{batch['id']}/cancel")
        batch = await wait(client, batch)
        assert batch["status"] == "cancelled"
        assert sum(api.executed.values()) == batch["request_counts"]["completed"]


async def test_an_input_may_be_deleted_while_it_is_worked_on() -> None:
    async with LocalBatchAPI(configured(latency_seconds=1)) as api, api.http_client() as client:
        batch = await create(client, jsonl(range(100)))
        await anyio.sleep(0.5)
        assert (await client.delete(f"files/{batch['input_file_id']}")).json()["deleted"]
        assert (await client.get(f"files/{batch['input_file_id']}")).status_code == 404
        batch = await wait(client, batch)
        assert batch["request_counts"]["completed"] == 100
        assert list(api.store.chunks(batch["input_file_id"])) == []


async def test_result_files_can_be_deleted() -> None:
    async with LocalBatchAPI(configured()) as api, api.http_client() as client:
        batch = await wait(client, await create(client, jsonl(range(3))))
        assert (await client.delete(f"files/{batch['output_file_id']}")).status_code == 200
        assert (await client.get(f"files/{batch['output_file_id']}/content")).status_code == 404
        assert api.store.count_results(batch["id"], is_error=False) == 0


async def test_files_expire() -> None:
    async with LocalBatchAPI(configured()) as api, api.http_client() as client:
        fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
        file = (await upload(client, b"{}", **fields)).json()
        assert file["expires_at"] == file["created_at"] + 3600
        assert (await client.get(f"files/{file['id']}")).status_code == 200
        await anyio.sleep(3600)
        assert (await client.get(f"files/{file['id']}")).status_code == 404
        assert (await client.get("files")).json()["data"] == []


async def test_result_files_expire() -> None:
    async with LocalBatchAPI(configured()) as api, api.http_client() as client:
        after = {"anchor": "created_at", "seconds": 3600}
        batch = await wait(client, await create(client, jsonl(range(3)), output_expires_after=after))
        assert len(await read(client, batch["output_file_id"])) == 3
        await anyio.sleep(3601)
        assert (await client.get(f"files/{batch['output_file_id']}")).status_code == 404


@pytest.mark.parametrize(
    ("options", "content", "code"),
    [
        ({"max_file_lines": 2}, jsonl(range(3)), "too_many_tasks"),
        ({"max_file_bytes": 100}, jsonl(range(3)), "file_too_large"),
        ({"max_line_bytes": 200}, jsonl(["a" * 300]), "line_too_large"),
        ({"max_line_bytes": 200}, jsonl(["a" * 300]).rstrip(), "line_too_large"),
    ],
)
async def test_limits_of_a_batch_input(options: dict[str, Any], content: bytes, code: str) -> None:
    async with LocalBatchAPI(configured(**options)) as api, api.http_client() as client:
        batch = await wait(client, await create(client, content))
        assert batch["status"] == "failed"
        assert batch["errors"]["data"][-1]["code"] == code
        assert not api.executed


async def test_limits_of_bodies() -> None:
    config = configured(max_upload_bytes=1000, max_line_bytes=1000)
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        assert (await upload(client, b"x" * 1000)).status_code == 200
        answer = await upload(client, b"x" * 1001)
        assert answer.status_code == 413
        assert answer.json()["error"]["message"]
        assert (await client.post("batches", content=b" " * 1001)).status_code == 413
        assert (await client.post("chat/completions", content=b" " * 1001)).status_code == 413


async def test_malformed_uploads() -> None:
    multipart = {"content-type": "multipart/form-data; boundary=x"}
    async with LocalBatchAPI(configured()) as api, api.http_client() as client:
        for headers, content in [
            ({"content-type": "application/json"}, b"{}"),
            ({"content-type": "multipart/form-data"}, b""),
            ({"content-type": f"multipart/form-data; boundary={'x' * 300}"}, b""),
            (multipart, b"nonsense"),
            (multipart, b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ncut off'),
            (multipart, b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'),
        ]:
            answer = await client.post("files", headers=headers, content=content)
            assert answer.status_code == 400, (headers, content)
            assert answer.json()["error"]["type"] == "invalid_request_error"
        assert (await client.get("files")).json()["data"] == []


async def test_bad_json_bodies() -> None:
    async with LocalBatchAPI(configured()) as api, api.http_client() as client:
        for content in (b"", b"{", b"[]", b"[" * 100_000, b'{"a": NaN}', b"\xff"):
            assert (await client.post("batches", content=content)).status_code == 400


async def test_the_key() -> None:
    async with LocalBatchAPI(configured(api_key="secret")) as api, api.http_client() as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            answer = await client.get("models", headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["x-request-id"].startswith("req_")
        answer = await client.get("models", headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200
        assert answer.headers["x-request-id"].startswith("req_")
    assert "secret" not in repr(api.config)


async def test_realtime_calls_are_counted_and_take_their_time() -> None:
    async with LocalBatchAPI(configured(latency_seconds=5)) as api, api.http_client() as client:
        before = anyio.current_time()
        answer = await client.post("chat/completions", json=json.loads(jsonl("a"))["body"])
        assert answer.json()["object"] == "chat.completion"
        assert anyio.current_time() - before >= 5
        answer = await client.post("embeddings", json={"model": "m", "input": "text"})
        assert answer.json()["data"][0]["object"] == "embedding"
        assert (await client.post("responses", json={"model": "m", "input": "text"})).status_code == 200
        assert sum(api.realtime_calls.values()) == 3


async def test_streams() -> None:
    async with LocalBatchAPI(configured()) as api, api.http_client() as client:
        body = {**json.loads(jsonl("a"))["body"], "stream": True}
        answer = await client.post("chat/completions", json=body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.content.startswith(b"data: {")
        assert answer.content.endswith(b"data: [DONE]\n\n")
        answer = await client.post("chat/completions", json={"model": "m", "stream": True})
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/json"


async def test_partial_results() -> None:
    config = configured(latency_seconds=1, concurrency=2, partial_results=True)
    async with LocalBatchAPI(config) as api, api.http_client() as client:
        batch = await create(client, jsonl(range(4)) + jsonl(["last"], model="another"))
        await anyio.sleep(1.5)
        batch = await retrieve(client, batch)
        url = f"files/{batch['output_file_id']}/content"
        answer = await client.get(url)
        assert answer.headers["x-incomplete"] == "true"
        assert answer.headers["x-last-line"] == "2"
        batch = await wait(client, batch)
        answer = await client.get(url, params={"skip": "2"})
        assert answer.headers["x-incomplete"] == "false"
        assert answer.headers["x-last-line"] == "5"
        assert sorted(json.loads(line)["custom_id"] for line in answer.content.splitlines()) == [
            "2",
            "3",
            "last",
        ]
        assert (await client.get(url, params={"skip": "9"})).content == b""
        assert (await client.get(url, params={"skip": "-1"})).status_code == 400
        assert await read(client, batch["error_file_id"]) == []


async def test_what_goes_wrong_inside_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match="mine"):
        async with LocalBatchAPI(configured()):
            raise ValueError("mine")


async def test_an_unentered_server_says_so() -> None:
    api = LocalBatchAPI()
    with pytest.raises(RuntimeError, match="not running"):
        _ = api.store
    async with api:
        with pytest.raises(RuntimeError, match="running already"):
            await api.__aenter__()


class Flaky:
    """An upstream that answers with given statuses, one after another, then with success."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        status = self.statuses.pop(0) if self.statuses else 200
        await send({"type": "http.response.start", "status": status, "headers": [(b"retry-after", b"3")]})
        await send({"type": "http.response.body", "body": b'{"object": "chat.completion"}'})


@pytest.mark.parametrize(
    ("statuses", "calls", "status"),
    [((), 1, 200), ((429, 503), 3, 200), ((400,), 1, 400), ((500,) * 9, ATTEMPTS, 500)],
)
async def test_upstream_retries(statuses: tuple[int, ...], calls: int, status: int) -> None:
    upstream = Flaky(*statuses)
    config = configured(upstream="http://upstream/v1")
    transport = httpx.ASGITransport(app=upstream)
    async with LocalBatchAPI(config, upstream_transport=transport) as api, api.http_client() as client:
        batch = await wait(client, await create(client, jsonl(["a"])))
        (line,) = await read(client, batch["output_file_id"] or batch["error_file_id"])
        assert line["response"]["status_code"] == status
    assert upstream.calls == calls


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_upstream_over_a_socket(anyio_backend: str) -> None:
    with serve_in_thread(LocalConfig(api_key="up")) as serving:
        config = LocalConfig(upstream=serving.base_url, upstream_key="up")
        async with LocalBatchAPI(config) as api, api.http_client() as client:
            bad = {"custom_id": "bad", "method": "POST", "url": CHAT, "body": {"model": "m"}}
            content = jsonl(range(200)) + json.dumps(bad).encode()
            batch = await wait(client, await create(client, content))
            assert batch["request_counts"] == {"total": 201, "completed": 200, "failed": 1}
            (line,) = await read(client, batch["error_file_id"])
            assert line["response"]["status_code"] == 400
            body = json.loads(jsonl("a"))["body"]
            direct = await client.post("chat/completions", json=body)
            assert direct.json()["object"] == "chat.completion"
            streamed = await client.post("chat/completions", json={**body, "stream": True})
            assert streamed.headers["content-type"].startswith("text/event-stream")
            assert streamed.content.endswith(b"data: [DONE]\n\n")
            assert (await client.post("chat/completions", json={"model": "m"})).status_code == 400
            assert (await client.get("models")).json()["data"]
            assert "x-request-id" in direct.headers
        assert serving.api.realtime_calls[CHAT] == 204


async def test_lines_without_an_upstream_become_errors() -> None:
    def refuse(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("nobody there")

    config = configured(upstream="http://upstream/v1")
    transport = httpx.MockTransport(refuse)
    async with LocalBatchAPI(config, upstream_transport=transport) as api, api.http_client() as client:
        batch = await wait(client, await create(client, jsonl(["a"])))
        (line,) = await read(client, batch["error_file_id"])
        assert line["response"] is None
        assert line["error"]["code"] == "upstream_unreachable"


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_an_upstream_that_is_not_there(anyio_backend: str) -> None:
    with serve_in_thread(LocalConfig()) as serving:
        gone = serving.base_url
    async with LocalBatchAPI(LocalConfig(upstream=gone)) as api, api.http_client() as client:
        answer = await client.post("chat/completions", json={"model": "m", "messages": []})
        assert answer.status_code == 502
        assert answer.json()["error"]["type"] == "server_error"
        assert (await client.get("models")).status_code == 502


@pytest.mark.parametrize(
    ("window", "seconds"), [("24h", DAY), ("1h", 3600), ("7d", 7 * DAY), ("30m", 1800), ("90s", 90)]
)
def test_windows(window: str, seconds: int) -> None:
    assert window_seconds(window) == seconds


@pytest.mark.parametrize("window", ["", "24", "h", "0h", "-1h", "1 h", "1w", "1h\n", 24, None])
def test_nonsense_windows(window: Any) -> None:
    with pytest.raises(ApiError):
        window_seconds(window)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_lines_do_not_depend_on_how_the_content_is_cut(size: int) -> None:
    content = b"\na\xe2\x80\xa8b\r\n \n\nlast"
    chunks = [content[n : n + size] for n in range(0, len(content), size)]
    assert list(split_lines(chunks, 10)) == [(2, b"a\xe2\x80\xa8b\r"), (5, b"last")]
    with pytest.raises(LineTooLongError):
        list(split_lines(chunks, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"latency_seconds": -1},
        {"latency_seconds": float("nan")},
        {"upstream": "host"},
        {"api_key": ""},
    ],
)
def test_settings_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        LocalConfig(**options)
