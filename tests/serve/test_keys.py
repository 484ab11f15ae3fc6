"""Whose key goes where, and what different keys share: nothing."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import openai
import pytest
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from autobatcher._http import httpx
from autobatcher.local import LocalBatchAPI, LocalConfig, serve_in_thread
from autobatcher.serve import Serving
from autobatcher.serve.callers import MOST_CLIENTS
from tests.serve.conftest import SOON, Held, chat, metrics, proxy, until
from tests.serve.test_asked_again import Caller
from tests.serve.test_passthrough import running

OWN = "sk-the-proxys-own"
SERVE = "the-serve-key"
A, B = "sk-caller-a", "sk-caller-b"


def ask(serving: Serving, prompt: str, **headers: str) -> httpx.Response:
    return httpx.post(f"{serving.base_url}/chat/completions", json=chat(prompt), headers=headers, timeout=20)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_without_a_key_of_its_own_each_callers_is_passed_on() -> None:
    with serve_in_thread(LocalConfig(api_key=A)) as upstream, proxy(upstream) as serving:
        assert ask(serving, "x", **bearer(A)).status_code == 200
        assert ask(serving, "x", **bearer(B)).status_code == 401
        assert httpx.get(f"{serving.base_url}/models", headers=bearer(A)).status_code == 200
        assert httpx.get(f"{serving.base_url}/models", headers=bearer(B)).status_code == 401
        for headers in ({}, {"authorization": "Basic abc"}):
            refused = ask(serving, "x", **headers)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"


def test_its_own_key_replaces_what_callers_send() -> None:
    with serve_in_thread(LocalConfig(api_key=OWN)) as upstream, proxy(upstream, api_key=OWN) as serving:
        for headers in ({}, bearer(B)):
            assert ask(serving, "x", **headers).status_code == 200
            assert httpx.get(f"{serving.base_url}/models", headers=headers, timeout=SOON).status_code == 200


def test_the_serve_key_with_a_key_of_its_own() -> None:
    with (
        serve_in_thread(LocalConfig(api_key=OWN)) as upstream,
        proxy(upstream, api_key=OWN, serve_key=SERVE) as serving,
    ):
        for headers in ({}, bearer(OWN), {"x-serve-key": OWN}):
            assert ask(serving, "x", **headers).status_code == 401
            assert httpx.get(f"{serving.base_url}/models", headers=headers, timeout=SOON).status_code == 401
            assert httpx.get(f"{serving.origin}/metrics", headers=headers, timeout=SOON).status_code == 401
        for headers in (bearer(SERVE), {"x-serve-key": SERVE}):
            assert ask(serving, "x", **headers).status_code == 200
            assert httpx.get(f"{serving.base_url}/models", headers=headers, timeout=SOON).status_code == 200
            assert httpx.get(f"{serving.origin}/metrics", headers=headers, timeout=SOON).status_code == 200
        assert httpx.get(f"{serving.origin}/health").status_code == 200
        with openai.OpenAI(base_url=serving.base_url, api_key=SERVE) as client:  # what an SDK's user would do
            assert client.chat.completions.create(**chat("x")).choices


def test_the_serve_key_with_keys_passed_on() -> None:
    with serve_in_thread(LocalConfig(api_key=A)) as upstream, proxy(upstream, serve_key=SERVE) as serving:
        assert ask(serving, "x", **bearer(A)).status_code == 401
        assert ask(serving, "x", **bearer(SERVE)).status_code == 401
        assert ask(serving, "x", **bearer(A), **{"x-serve-key": SERVE}).status_code == 200


def test_different_keys_share_no_batch(held: Held) -> None:
    held.answer()
    with proxy(held, options={"batch_window_seconds": 0.5}) as serving:
        clients = [openai.OpenAI(base_url=serving.base_url, api_key=key) for key in (A, B)]
        threads = [
            threading.Thread(target=client.chat.completions.create, kwargs=chat("same")) for client in clients
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        batches = list(clients[0].batches.list())
        for client in clients:
            client.close()
    assert [batch.request_counts and batch.request_counts.total for batch in batches] == [1, 1]
    assert held.model.asked["same"] == 2


@pytest.mark.parametrize("restarted", [False, True])
def test_different_keys_share_no_answer(held: Held, tmp_path: Path, restarted: bool) -> None:  # noqa: FBT001 -- a parameter
    """What one has left, waiting or answered, is not the other's."""
    journal = tmp_path / "proxy.db"
    with proxy(held, journal=journal) as serving:
        first = Caller(serving.base_url, "same", **bearer(A))
        held.asked("same")
        if not restarted:
            first.hang_up()
            until(lambda: metrics(serving)["autobatcher_waiting_requests"] == 0, "it is gone")
            other = Caller(serving.base_url, "same", **bearer(B))
            held.asked("same", 2)
            held.answer()
            assert other.id()
            assert Caller(serving.base_url, "same", **bearer(A)).id()
    if restarted:
        first.ended()
        held.answer()
        with proxy(held, journal=journal) as serving:
            assert Caller(serving.base_url, "same", **bearer(B)).id()
            assert held.model.asked["same"] == 2
            assert Caller(serving.base_url, "same", **bearer(A)).id()
    assert held.model.asked["same"] == 2


def test_cookies_of_the_upstream_go_out_with_nobodys_requests() -> None:
    api = LocalBatchAPI(LocalConfig())
    sent: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """The embedded server, with cookies that tell callers apart, as load balancers set them."""

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"set-cookie", b"who=a; Path=/")]}
            await send(message)

        if scope["type"] == "http":
            sent.extend(Headers(scope=scope).getlist("cookie"))
        await api.app(scope, receive, with_cookie)

    with running(app) as origin, proxy(f"{origin}/v1") as serving:
        for key in (A, B, A):
            assert ask(serving, "x", **bearer(key)).status_code == 200
            passed = httpx.get(f"{serving.base_url}/models", headers=bearer(key), timeout=SOON)
            assert passed.headers["set-cookie"] == "who=a; Path=/"
        assert not sent
        own = {**bearer(A), "cookie": "mine=1"}
        assert httpx.get(f"{serving.base_url}/models", headers=own, timeout=SOON).status_code == 200
    assert sent == ["mine=1"]


def test_organization_and_project_are_part_of_who_asks(held: Held) -> None:
    held.answer()
    with proxy(held, options={"batch_window_seconds": 0.3}) as serving:
        threads = [
            threading.Thread(
                target=ask,
                args=(serving, "same"),
                kwargs={**bearer(A), "openai-project": project},
            )
            for project in ("one", "two")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with openai.OpenAI(base_url=serving.base_url, api_key=A) as client:
            assert len(list(client.batches.list())) == 2


def test_pending_batches_go_on_at_the_start_if_the_key_is_the_proxys(held: Held, tmp_path: Path) -> None:
    journal = tmp_path / "proxy.db"
    with proxy(held, journal=journal, api_key=OWN) as serving:
        caller = Caller(serving.base_url, "left")
        held.asked("left")
    caller.ended()
    held.answer()
    with proxy(held, journal=journal, api_key=OWN) as serving:
        settled = 'autobatcher_batches_settled_total{state="completed"}'
        until(lambda: metrics(serving).get(settled), "nobody asked, and it is over")


def test_no_key_is_written_down(held: Held, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held.answer()
    journal = tmp_path / "proxy.db"
    with caplog.at_level(logging.DEBUG), proxy(held, journal=journal, serve_key=SERVE) as serving:
        assert ask(serving, "x", **bearer(A), **{"x-serve-key": SERVE}).status_code == 200
        written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        told = httpx.get(f"{serving.origin}/metrics", headers={"x-serve-key": SERVE}).text
    for key in (A, SERVE):
        assert key.encode() not in written
        assert key not in told
        assert key not in "".join(
            record.getMessage() for record in caplog.records if record.name.startswith("autobatcher")
        )
    assert SERVE not in repr(serving.proxy.config)


def test_invented_keys_take_no_lasting_memory() -> None:
    with serve_in_thread(LocalConfig(api_key=A)) as upstream, proxy(upstream) as serving:
        clients = serving.proxy._clients
        with httpx.Client(timeout=20) as client:
            for number in range(20):
                response = client.post(
                    f"{serving.base_url}/chat/completions",
                    json=chat("x"),
                    headers=bearer(f"sk-invented-{number}"),
                )
                assert response.status_code == 401
        assert ask(serving, "x", **bearer(A)).status_code == 200
        assert len(clients._known) <= MOST_CLIENTS
        assert len(serving.proxy._client._collectors._known) < 5


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://a.page"}, 403),
        ({"host": "rebound.example"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:80"}, 200),
    ],
)
def test_web_pages_may_not_call_a_proxy_without_a_key(
    held: Held, headers: dict[str, str], status: int
) -> None:
    held.answer()
    with proxy(held, api_key=OWN) as serving:
        assert ask(serving, "x", **headers).status_code == status
        passed = httpx.get(f"{serving.base_url}/batches", headers=headers, timeout=SOON)
        assert passed.status_code == status
