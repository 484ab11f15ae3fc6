"""Limits with clear answers, and callers that are slow or gone: they cost nobody else."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from autobatcher._http import httpx
from autobatcher.local import Serving as Upstream
from autobatcher.serve import ServeConfig, Serving, serve_in_thread
from autobatcher.serve.bodies import Reading, asked
from autobatcher.serve.connections import CallersProtocol
from autobatcher.serve.replies import Refused
from autobatcher.serve.serving import serve
from autobatcher.serving import settings
from tests.serve.conftest import SOON, Held, chat, in_virtual_time, metrics, proxy, until
from tests.serve.raw import KEY, Raw, json_of
from tests.serve.test_asked_again import Caller, command

HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def serving(upstream: Upstream) -> Iterator[Serving]:
    with proxy(upstream, max_body_bytes=10_000) as serving:
        yield serving


NOT_SENT = [
    (b"", None),
    (b"no json", None),
    (b"[]", None),
    (b'"text"', None),
    (b"null", None),
    (b"\xff\xfe", None),
    (b'{"model": "m", "messages": [NaN]}', None),
    (b'{"model": "m", "temperature": 1e999}', None),
    (b'{"model": "m", "stop": "\\ud800"}', None),
    (b"[" * 5000 + b"]" * 5000, None),
    (b'{"model": "m", "input": ' + b"[" * 4500 + b"]" * 4500 + b"}", None),
    (b"{}", "model"),
    (b'{"model": 1}', "model"),
    (b'{"model": ""}', "model"),
    (b'{"model": null}', "model"),
    (b'{"model": "m", "stream": "yes"}', "stream"),
]


@pytest.mark.parametrize("path", ["chat/completions", "embeddings", "responses"])
def test_what_is_no_request_is_refused(serving: Serving, upstream: Upstream, path: str) -> None:
    with httpx.Client() as client:
        for body, param in NOT_SENT:
            response = client.post(f"{serving.base_url}/{path}", content=body, headers=HEADERS, timeout=SOON)
            assert response.status_code == 400, body
            error = response.json()["error"]
            assert error.keys() == {"message", "type", "param", "code"}
            assert (error["type"], error["param"]) == ("invalid_request_error", param), body
    assert not upstream.api.executed
    refused = metrics(serving)['autobatcher_requests_refused_total{reason="bad request"}']
    assert refused == len(NOT_SENT)


def test_numbers_go_on_as_they_are() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"metadata":[99999999999999999999999,1.0,-0.0]}'
    made = asked("chat/completions", body)
    assert made.body == body
    streamed = asked("chat/completions", body[:-1] + b',"stream":true}')
    assert streamed.body == body


def test_white_space_and_line_breaks_of_json_are_no_matter(serving: Serving) -> None:
    body = json.dumps(chat("hello \u2028 \x85 there"), indent=4, ensure_ascii=False).encode()
    response = httpx.post(f"{serving.base_url}/chat/completions", content=body, headers=HEADERS, timeout=SOON)
    assert response.json()["choices"][0]["message"]["content"] == "You said: hello \u2028 \x85 there."


def test_bodies_are_limited_by_what_they_say_and_by_what_comes(serving: Serving) -> None:
    def parts() -> Iterator[bytes]:
        yield from (b" " * 1000 for _ in range(100))

    for content in (b" " * 100_000, parts()):  # with its length, and in chunks
        response = httpx.post(
            f"{serving.base_url}/chat/completions", content=content, headers=HEADERS, timeout=SOON
        )
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"
    with openai.OpenAI(base_url=serving.base_url, api_key=KEY) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(**chat("x" * 2_000_000))
        assert caught.value.status_code == 413
        assert client.chat.completions.create(**chat("x" * 5000)).choices


def test_one_that_asks_first_does_not_send_what_is_too_large(serving: Serving) -> None:
    with Raw(serving.base_url) as caller:
        caller.ask("chat/completions", b"", **{"content-length": "1000000", "expect": "100-continue"})
        assert caller.until(b"\r\n\r\n").startswith(b"HTTP/1.1 413")


def test_too_many_callers_are_told_to_come_back(held: Held) -> None:
    with proxy(held, max_waiting=2) as serving:
        callers = [Caller(serving.base_url, f"caller {number}") for number in range(2)]
        until(lambda: metrics(serving)["autobatcher_waiting_requests"] == 2, "two wait")
        response = httpx.post(
            f"{serving.base_url}/chat/completions", json=chat("more"), headers=HEADERS, timeout=SOON
        )
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert response.json()["error"]["code"] == "too_many_waiting"
        assert "x-should-retry" not in response.headers  # SDKs try again
        files = httpx.get(f"{serving.base_url}/files", headers=HEADERS, timeout=SOON)
        assert files.status_code == 200  # what is passed through does not wait
        held.answer()
        assert all(caller.id() for caller in callers)
        assert Caller(serving.base_url, "more").id()


def test_one_who_sends_slowly_or_half_a_body_holds_up_nobody(held: Held) -> None:
    held.answer()
    with proxy(held) as serving, Raw(serving.base_url) as slow, Raw(serving.base_url) as half:
        half.ask("chat/completions", b'{"model": ', **{"content-length": "1000"})
        body = json.dumps(chat("slow")).encode()
        slow.ask("chat/completions", body[:10], **{"content-length": str(len(body))})
        assert Caller(serving.base_url, "quick").id()
        half.socket.close()
        slow.socket.sendall(body[10:])
        answer = json_of(slow.until(b"You said: slow."))
        assert answer["choices"]
        until(lambda: metrics(serving)["autobatcher_waiting_requests"] == 0, "none is left")


def test_a_body_that_trickles_is_refused_in_the_end() -> None:
    async def trickle() -> dict[str, Any]:
        await asyncio.sleep(59)
        return {"type": "http.request", "body": b" ", "more_body": True}

    more = [True] * 9 + [False]

    async def steadily() -> dict[str, Any]:
        await asyncio.sleep(50)
        return {"type": "http.request", "body": b" " * 1_000_000, "more_body": more.pop(0)}

    async def main() -> None:
        reading = Reading(10_000_000)
        with pytest.raises(Refused) as caught:
            await reading.body(Headers(), trickle)
        assert caught.value.reply.status == 408
        assert len(await reading.body(Headers(), steadily)) == 10_000_000

    in_virtual_time(main())


def test_a_connection_that_asks_for_nothing_is_closed() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await asyncio.sleep(3600)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def ended(sent: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        config = settings(app, stop_seconds=1)
        config.load()
        ours, callers = socket.socketpair()
        with callers:
            callers.settimeout(0)
            await loop.connect_accepted_socket(lambda: CallersProtocol(config, ServerState(), {}), ours)
            received = b""
            await loop.sock_sendall(callers, sent)
            with suppress(ConnectionResetError):
                while part := await loop.sock_recv(callers, 65536):
                    received += part
        return received

    async def main() -> None:
        time = asyncio.get_running_loop().time
        assert not await ended(b"")
        assert not await ended(b"GET / HTTP/1.1\r\nhost: ")
        assert time() < 3600
        request = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
        assert (await ended(request)).startswith(
            b"HTTP/1.1 204"
        )  # it waits for its answer as long as it takes
        before = time()
        assert (await ended(request + b"GET ")).startswith(b"HTTP/1.1 204")
        assert time() - before < 3700

    in_virtual_time(main())


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit of open files")
def test_connections_that_ask_for_nothing_do_not_use_up_the_open_files(held: Held, tmp_path: Path) -> None:
    import resource  # noqa: PLC0415 -- not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))  # which the command inherits
            _, base_url = stack.enter_context(command(held, tmp_path / "proxy.db", "--max-waiting", "50"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        caller = Caller(base_url, "one who waits")
        held.asked("one who waits")
        idle = [stack.enter_context(Raw(base_url)) for _ in range(320)]
        origin = base_url.removesuffix("/v1")
        assert httpx.get(f"{origin}/health", timeout=SOON).status_code == 200
        held.answer()
        assert caller.id()
        assert Caller(base_url, "one more").id()
        assert len(idle) == 320


def test_one_who_does_not_read_holds_up_nobody(held: Held) -> None:
    large = "x" * 3_000_000
    with proxy(held) as serving, Raw(serving.base_url, receive_buffer=4096) as slow:
        slow.ask("chat/completions", chat(large))
        held.asked(large)
        held.answer()
        assert Caller(serving.base_url, "quick").id()
        assert json_of(slow.until(b'"system_fingerprint"'))["choices"][0]["message"]["content"] == (
            f"You said: {large}."
        )


def test_an_answer_that_is_not_taken_whole_waits_for_the_next(held: Held) -> None:
    large = "x" * 8_000_000
    with proxy(held) as serving, Raw(serving.base_url, receive_buffer=4096) as caller:
        caller.ask("chat/completions", chat(large))
        held.asked(large)
        held.answer()
        caller.until(b"HTTP/1.1 200")
        caller.socket.close()
        left = 'autobatcher_callers_left_total{endpoint="chat/completions"}'
        until(lambda: metrics(serving).get(left), "the proxy has noticed")
        assert Caller(serving.base_url, large).id()
    assert held.model.asked[large] == 1


def test_callers_that_vanish_leave_nothing_behind(held: Held) -> None:
    with proxy(held) as serving:
        callers = [Caller(serving.base_url, f"gone {number}") for number in range(20)]
        until(lambda: len(held.model.asked) == 20, "all are asked")
        for caller in callers:
            caller.hang_up()
        until(lambda: metrics(serving)["autobatcher_waiting_requests"] == 0, "none is left")
        held.answer()
        until(lambda: metrics(serving)["autobatcher_batched_requests"] == 0, "the batches are over")
        answering = serving.proxy._answering
        assert not answering._connections
        assert not answering._exchanges._open
        assert not answering._exchanges._deliveries._names


def test_a_download_whose_caller_goes_away_is_let_go(upstream: Upstream) -> None:
    content = b'{"a":1}\n' * 2_000_000
    with proxy(upstream) as serving, openai.OpenAI(base_url=serving.base_url, api_key=KEY) as client:
        file = client.files.create(file=("a.jsonl", content), purpose="batch")
        with client.files.with_streaming_response.content(file.id) as response:
            next(response.iter_bytes())
        assert client.models.list().data


def test_a_deadline_is_a_timeout_that_sdks_do_not_try_again(held: Held) -> None:
    with (
        proxy(held, options={"deadline_seconds": 0.5}) as serving,
        openai.OpenAI(base_url=serving.base_url, api_key=KEY) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**chat("late"))
        assert caught.value.status_code == 504
        assert caught.value.response.headers["x-should-retry"] == "false"
        held.answer()
        assert client.chat.completions.create(**chat("late")).choices  # it went on, and this one has it
    assert held.model.asked["late"] == 1


def test_a_deadline_may_lead_to_a_realtime_call(held: Held) -> None:
    options = {"deadline_seconds": 0.5, "on_deadline": "realtime"}
    with proxy(held, options=options) as serving:
        caller = Caller(serving.base_url, "late")
        held.asked("late", 2)  # in the batch, and at once
        held.answer()
        assert caller.id()
        found = metrics(serving)
    assert found["autobatcher_requests_overdue_total"] == 1
    assert found['autobatcher_realtime_calls_total{reason="deadline"}'] == 1


def test_health_and_metrics_shadow_nothing(serving: Serving, upstream: Upstream) -> None:
    for name in ("health", "metrics"):
        assert httpx.get(f"{serving.origin}/{name}").status_code == 200
        passed = httpx.get(f"{serving.base_url}/{name}", headers=HEADERS, timeout=SOON)
        assert passed.status_code == 404
        assert passed.headers["x-request-id"]  # of the upstream


def test_metrics_count_what_happens(held: Held) -> None:
    with proxy(held) as serving:
        callers = [Caller(serving.base_url, f"hello {number}") for number in range(3)]
        until(lambda: sum(held.model.asked.values()) == 3, "all are asked")
        until(lambda: metrics(serving)["autobatcher_batched_requests"] == 3, "the batches are known")
        found = metrics(serving)
        assert found["autobatcher_waiting_requests"] == 3
        assert sum(n for name, n in found.items() if name.startswith("autobatcher_batches{")) >= 1
        held.answer()
        assert all(caller.id() for caller in callers)
        until(lambda: metrics(serving)["autobatcher_batched_requests"] == 0, "the batches are over")
        found = metrics(serving)
        chats = 'endpoint="chat/completions"'
        assert found[f"autobatcher_requests_answered_total{{{chats}}}"] == 3
        assert found[f'autobatcher_wait_seconds_bucket{{{chats},le="86400.0"}}'] == 3
        assert found[f"autobatcher_wait_seconds_count{{{chats}}}"] == 3
        tokens = 'autobatcher_tokens_total{bought="batch",kind="completion",model="local-chat"}'
        assert found[tokens] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"max_body_bytes": 0},
        {"max_waiting": 0},
        {"grace_seconds": -1},
        {"grace_seconds": float("inf")},
        {"keep_alive_seconds": 0},
        {"api_key": ""},
        {"serve_key": " x"},
        {"serve_key": "ключ"},
    ],
)
def test_a_config_that_makes_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ServeConfig(**options)


def test_from_python_too_others_are_let_in_only_with_a_key() -> None:
    with pytest.raises(ValueError, match="serve_key"), serve_in_thread(ServeConfig(), host="0.0.0.0"):
        pass  # pragma: no cover
    with pytest.raises(ValueError, match="serve_key"):
        serve(ServeConfig(), host="::", port=0, on_start=print)


def test_equal_requests_by_the_hundred(held: Held) -> None:
    held.answer()
    with proxy(held) as serving, openai.OpenAI(base_url=serving.base_url, api_key=KEY) as client:
        ids: list[str] = []
        threads = [
            threading.Thread(target=lambda: ids.append(client.chat.completions.create(**chat("same")).id))
            for _ in range(60)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(ids) == 60
    assert held.model.asked["same"] == 60
