"""Callers that wait long are told that the connection lives."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from typing import Any

import openai
import pytest

from tests.serve.conftest import Held, chat, proxy
from tests.serve.raw import KEY, Raw, json_of

OFTEN = 0.1


def test_json_begins_with_white_space(held: Held) -> None:
    with proxy(held, keep_alive_seconds=OFTEN) as serving, Raw(serving.base_url) as caller:
        caller.ask("chat/completions", chat("hello"))
        head, _, spaces = caller.until(b"1\r\n \r\n", 3).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"application/json" in head
        assert spaces.replace(b"1\r\n \r\n", b"") == b""
        held.answer()
        answer = json_of(caller.until(b"\r\n0\r\n\r\n"))
        assert answer["choices"][0]["message"]["content"] == "You said: hello."


def test_sdks_read_json_after_white_space(held: Held) -> None:
    with (
        proxy(held, keep_alive_seconds=OFTEN) as serving,
        openai.OpenAI(base_url=serving.base_url, api_key=KEY, timeout=5 * OFTEN, max_retries=0) as client,
    ):
        threading.Timer(10 * OFTEN, held.answer).start()
        assert client.chat.completions.create(**chat("hello")).choices[0].message.content
    assert held.model.asked["hello"] == 1


def test_an_error_after_white_space_is_a_body(held: Held) -> None:
    with proxy(held, keep_alive_seconds=OFTEN) as serving, Raw(serving.base_url) as caller:
        caller.ask("chat/completions", chat("[[error:400]]"))
        caller.until(b"1\r\n \r\n")
        held.answer()
        response = caller.until(b"\r\n0\r\n\r\n")
        assert response.startswith(b"HTTP/1.1 200")
        assert json_of(response)["error"]["type"]


def test_without_the_option_nothing_is_sent_before_the_answer(held: Held) -> None:
    with proxy(held) as serving, Raw(serving.base_url) as caller:
        caller.ask("chat/completions", chat("[[error:400]]"))
        held.asked("[[error:400]]")
        held.answer()
        assert caller.until(b"\r\n\r\n").startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_streams_have_comments(held: Held, path: str) -> None:
    body = chat("hello") if path == "chat/completions" else {"model": "local-chat", "input": "hello"}
    with proxy(held, keep_alive_seconds=OFTEN) as serving, Raw(serving.base_url) as caller:
        caller.ask(path, {**body, "stream": True})
        head = caller.until(b": waiting\n\n", 2)
        assert b"text/event-stream" in head
        held.answer()
        stream = caller.until(b"\r\n0\r\n\r\n")
        assert (b"data: [DONE]" if path == "chat/completions" else b"event: response.completed") in stream


def test_sdks_read_streams_with_comments(held: Held) -> None:
    with (
        proxy(held, keep_alive_seconds=OFTEN) as serving,
        openai.OpenAI(base_url=serving.base_url, api_key=KEY, max_retries=0) as client,
    ):
        stream = client.chat.completions.create(**chat("hello"), stream=True)  # which has begun
        held.answer()
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "You said: hello."


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_sdks_raise_the_error_of_a_stream_that_has_begun(held: Held, path: str) -> None:
    with (
        proxy(held, keep_alive_seconds=OFTEN) as serving,
        openai.OpenAI(base_url=serving.base_url, api_key=KEY, max_retries=0) as client,
    ):
        stream: Any
        if path == "responses":
            stream = client.responses.create(model="local-chat", input="[[error:400]]", stream=True)
        else:
            stream = client.chat.completions.create(**chat("[[error:400]]"), stream=True)
        held.answer()
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.body
        assert json.dumps(caught.value.body)


def test_a_response_that_has_begun_is_cut_when_the_proxy_stops(held: Held) -> None:
    with ExitStack() as stack:
        stopping = stack.enter_context(ExitStack())
        serving = stopping.enter_context(proxy(held, keep_alive_seconds=OFTEN))
        caller = stack.enter_context(Raw(serving.base_url))
        caller.ask("chat/completions", chat("hello"))
        caller.until(b"1\r\n \r\n")
        stopping.close()
        assert not caller.all().endswith(
            b"0\r\n\r\n"
        )  # so the connection is lost to the caller, who asks again


def test_a_stream_that_has_begun_ends_with_an_error_when_the_proxy_stops(held: Held) -> None:
    with ExitStack() as stack:
        stopping = stack.enter_context(ExitStack())
        serving = stopping.enter_context(proxy(held, keep_alive_seconds=OFTEN))
        caller = stack.enter_context(Raw(serving.base_url))
        caller.ask("chat/completions", chat("hello", stream=True))
        caller.until(b": waiting")
        stopping.close()
        assert b'"code":"stopping"' in caller.all()
