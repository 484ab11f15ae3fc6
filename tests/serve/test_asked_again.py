"""Callers that lose their connection and ask again get what they asked for, and it is bought once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

import autobatcher
from autobatcher.local import Serving as Upstream
from autobatcher.serve import Serving
from tests.serve.conftest import QUICK, SOON, Held, chat, metrics, proxy, until

KEY = "sk-of-a-caller"
HEADERS = {"authorization": f"Bearer {KEY}"}
LEFT = 'autobatcher_callers_left_total{endpoint="chat/completions"}'


class Caller:
    """Asks in a thread of its own, and can hang up."""

    def __init__(self, base_url: str, prompt: str, **headers: str) -> None:
        url = urlsplit(base_url)
        self._connection = HTTPConnection(url.hostname or "", url.port, timeout=SOON)
        self._connection.connect()
        body = json.dumps(chat(prompt))
        self._connection.request("POST", f"{url.path}/chat/completions", body, HEADERS | headers)
        self._response: tuple[int, dict[str, str], Any] | None = None
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    def _wait(self) -> None:
        try:
            with closing(self._connection):
                response = self._connection.getresponse()
                headers = {name.lower(): value for name, value in response.getheaders()}
                self._response = response.status, headers, json.loads(response.read())
        except (HTTPException, OSError) as error:
            self.error = error

    def hang_up(self) -> None:
        self._connection.sock.shutdown(socket.SHUT_RDWR)
        self.ended()

    def ended(self) -> None:
        self._thread.join()

    def result(self) -> tuple[int, dict[str, str], Any]:
        """The status, the headers and the body."""
        self.ended()
        assert self._response is not None, self.error
        return self._response

    def id(self) -> str:
        """That of the answer."""
        status, _, body = self.result()
        assert status == 200, body
        return str(body["id"])


@contextmanager
def hung_up(serving: Serving, held: Held, prompt: str, **headers: str) -> Iterator[None]:
    """A caller has asked this, and hung up when it was on its way."""
    caller = Caller(serving.base_url, prompt, **headers)
    held.asked(prompt)
    before = metrics(serving).get(LEFT, 0)
    caller.hang_up()
    until(lambda: metrics(serving).get(LEFT, 0) > before, "the proxy has noticed")
    yield


def test_one_who_hangs_up_and_asks_again_attaches(held: Held) -> None:
    with proxy(held) as serving, hung_up(serving, held, "again"):
        again = Caller(serving.base_url, "again")
        held.answer()
        assert again.id()
    assert held.model.asked["again"] == 1


def test_an_answer_that_nobody_was_there_for_waits(held: Held) -> None:
    with proxy(held) as serving, hung_up(serving, held, "waits"):
        held.answer()
        settled = 'autobatcher_batches_settled_total{state="completed"}'
        until(lambda: metrics(serving).get(settled), "the batch is over")
        assert Caller(serving.base_url, "waits").id()
        assert held.model.asked["waits"] == 1
        assert Caller(serving.base_url, "waits").id()  # and that was that
        assert held.model.asked["waits"] == 2


def test_the_sdks_own_retries_attach(held: Held) -> None:
    with (
        proxy(held) as serving,
        openai.OpenAI(base_url=serving.base_url, api_key=KEY, timeout=1.0, max_retries=8) as client,
    ):

        def answer() -> None:
            until(lambda: metrics(serving).get(LEFT, 0) >= 2, "it has tried again, twice")
            held.answer()

        answering = threading.Thread(target=answer)
        answering.start()
        assert client.chat.completions.create(**chat("retried")).choices
        answering.join()
    assert held.model.asked["retried"] == 1


def test_equal_requests_at_the_same_time_are_as_many(held: Held) -> None:
    with proxy(held) as serving:
        callers = [Caller(serving.base_url, "both") for _ in range(2)]
        held.asked("both", 2)
        held.answer()
        assert all(caller.id() for caller in callers)
    assert held.model.asked["both"] == 2


def test_a_retry_waits_for_its_earlier_attempt_to_be_found_gone(held: Held) -> None:
    with proxy(held) as serving:
        first = Caller(serving.base_url, "half open", **{"x-stainless-retry-count": "0"})
        held.asked("half open")
        retry = Caller(serving.base_url, "half open", **{"x-stainless-retry-count": "1"})
        until(lambda: metrics(serving)["autobatcher_waiting_requests"] == 2, "both wait")
        first.hang_up()
        until(lambda: metrics(serving).get(LEFT), "the proxy has noticed")
        held.answer()
        assert retry.id()
    assert held.model.asked["half open"] == 1


def test_an_idempotency_key_names_a_request(held: Held) -> None:
    key = {"idempotency-key": "the one"}
    with proxy(held) as serving:
        first, second = (Caller(serving.base_url, "named", **key) for _ in range(2))
        until(lambda: metrics(serving)["autobatcher_waiting_requests"] == 2, "both wait")
        status, _, other = Caller(serving.base_url, "another", **key).result()
        assert status == 400
        assert other["error"]["code"] == "idempotency_key_reused"
        held.answer()
        assert first.id() == second.id()
        assert Caller(serving.base_url, "named", **key).id() == first.id()  # and whenever it asks
        assert held.model.asked["named"] == 1
        assert Caller(serving.base_url, "named", **{"idempotency-key": "two"}).id()
        assert held.model.asked["named"] == 2
        assert held.model.asked["another"] == 0


def test_an_idempotency_key_outlives_connections(held: Held) -> None:
    key = {"idempotency-key": "the one"}
    with proxy(held) as serving, hung_up(serving, held, "named", **key):
        again = Caller(serving.base_url, "named", **key)
        held.answer()
        assert again.id()
    assert held.model.asked["named"] == 1


def test_the_keys_of_two_callers_are_not_one(held: Held) -> None:
    held.answer()
    with proxy(held) as serving:
        for caller in ("a", "b"):
            headers = {"authorization": f"Bearer sk-{caller}", "idempotency-key": "same"}
            assert Caller(serving.base_url, f"of {caller}", **headers).id()


def test_an_idempotency_key_has_a_length(held: Held) -> None:
    with proxy(held) as serving:
        assert Caller(serving.base_url, "x", **{"idempotency-key": "k" * 256}).result()[0] == 400


def test_a_proxy_that_stops_sends_callers_away_and_another_goes_on(held: Held, tmp_path: Path) -> None:
    journal = tmp_path / "proxy.db"
    with proxy(held, journal=journal) as serving:
        caller = Caller(serving.base_url, "goes on")
        held.asked("goes on")
    status, headers, body = caller.result()
    assert status == 503
    assert 0 < int(headers["retry-after"]) <= 60
    assert body["error"]["code"] == "stopping"
    with proxy(held, journal=journal) as serving:
        again = Caller(serving.base_url, "goes on")
        held.answer()
        assert again.id()
        assert held.model.asked["goes on"] == 1
    with proxy(held, journal=journal) as serving:  # what was delivered is not given to whoever asks the same
        assert Caller(serving.base_url, "goes on").id()
        assert held.model.asked["goes on"] == 2


def test_stopping_delivers_what_comes_in_time(held: Held) -> None:
    with proxy(held, grace_seconds=SOON) as serving:
        caller = Caller(serving.base_url, "in time")
        held.asked("in time")
        threading.Timer(0.5, held.answer).start()
    assert caller.id()


@contextmanager
def command(
    upstream: Held | Upstream | str, journal: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`autobatcher serve` as a process of its own, and its base URL."""
    base_url = upstream if isinstance(upstream, str) else upstream.base_url
    arguments = [sys.executable, "-m", "autobatcher", "serve", "--base-url", base_url, "--port", "0"]
    arguments += ["--journal", str(journal), "--grace", "0.2", "--api-key", KEY]
    arguments += ["--batch-window-seconds", str(QUICK["batch_window_seconds"])]
    arguments += ["--poll-interval-seconds", str(QUICK["poll_interval_seconds"]), *options]
    here = str(Path(autobatcher.__file__).parent.parent)
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": here}
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        assert said.startswith("base_url="), said + process.stderr.read()
        reading = threading.Thread(
            target=process.stderr.read
        )  # or it would stand still, once the pipe is full
        reading.start()
        yield process, said.removeprefix("base_url=").split()[0]
    finally:
        process.kill()
        process.wait()
        reading.join()
        process.stderr.close()


def by_sigterm(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(SOON) == 0


def by_sigkill(process: subprocess.Popen[Any]) -> None:
    process.kill()
    assert process.wait(SOON) == -signal.SIGKILL


@pytest.mark.parametrize("end", [by_sigterm, by_sigkill])
def test_a_process_that_ends_and_is_started_again(
    held: Held, tmp_path: Path, end: Callable[[subprocess.Popen[Any]], None]
) -> None:
    journal = tmp_path / "proxy.db"
    with command(held, journal) as (process, base_url):
        caller = Caller(base_url, "goes on")
        held.asked("goes on")
        end(process)
    if end is by_sigterm:
        assert caller.result()[0] == 503
    else:
        caller.ended()
        assert caller.error is not None
    with command(held, journal) as (process, base_url):
        again = Caller(base_url, "goes on")
        held.answer()
        assert again.id()
        by_sigterm(process)
    assert held.model.asked["goes on"] == 1


def test_options_of_the_client(tmp_path: Path, upstream: Upstream) -> None:
    options = ("--max-retries", "0", "--max-realtime-calls", "1", "--patience-seconds", "0.5")
    with command(upstream, tmp_path / "proxy.db", *options) as (_, base_url):
        assert Caller(base_url, "[[error:429]]").result()[0] == 429
        assert sum(upstream.api.executed.values()) == 1
    with socket.create_server(("127.0.0.1", 0)) as listener:
        down = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with command(down, tmp_path / "down.db", *options) as (_, base_url):
        assert Caller(base_url, "x").result()[0] == 502


def test_ctrl_c(held: Held, tmp_path: Path) -> None:
    with command(held, tmp_path / "proxy.db") as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON) == 130


def test_an_sdk_waits_through_a_restart(held: Held, tmp_path: Path) -> None:
    journal = tmp_path / "proxy.db"
    answers: list[Any] = []

    def ask(base_url: str) -> None:
        with openai.OpenAI(base_url=base_url, api_key="of no matter", max_retries=10) as client:
            answers.append(client.chat.completions.create(**chat("through")))

    with command(held, journal) as (process, base_url):
        asking = threading.Thread(target=ask, args=(base_url,))
        asking.start()
        held.asked("through")
        by_sigkill(process)
    port = base_url.removesuffix("/v1").rpartition(":")[2]
    with command(held, journal, "--port", port) as (process, _):
        held.answer()
        asking.join()
        by_sigterm(process)
    assert answers[0].choices[0].message.content == "You said: through."
    assert held.model.asked["through"] == 1
