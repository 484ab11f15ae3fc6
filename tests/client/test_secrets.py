"""Keys and prompts stay where they belong, and nothing that a server sends is trusted."""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any

import anyio
import openai
import pytest

from autobatcher import AutobatcherError
from autobatcher._http import httpx
from autobatcher.core.batch import Batch
from autobatcher.core.engine import Engine
from autobatcher.core.jsonl import encode_line
from autobatcher.core.messages import Create, Fetch, LinesRead, Settle, Upload
from autobatcher.core.outcomes import Closed
from autobatcher.core.window import Limits, Request, Window
from autobatcher.options import BatchOptions
from tests.client.scripted import (
    HOUR,
    Fate,
    Line,
    Server,
    always,
    answered,
    answers,
    ask,
    at_first,
    changes,
    completion,
    each,
    erred,
    gathered,
    in_turn,
    loses,
    nothing,
    page,
    problem,
    refused,
    replied,
    running,
    unseen,
)

pytestmark = pytest.mark.anyio

KEY = "sk-the-secret-key"
PROMPT = "the private prompt"
HEADER = "the secret header"
ANSWER = "the private answer"
SECRETS = (KEY, PROMPT, HEADER, ANSWER)


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


def tells(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def said(line: Line) -> bytes:
    return replied(line.custom_id, completion(ANSWER))


FAILURES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "upload-refused": {"upload": always(answers(401))},
    "upload-lost": {"upload": always(loses())},
    "upload-fails": {"upload": always(answers(500))},
    "upload-odd": {"upload": always(page())},
    "create-refused": {"create": always(answers(400))},
    "create-busy": {"create": always(answers(429))},
    "create-lost": {"create": in_turn(unseen(loses(httpx.ReadError)), loses(httpx.ReadTimeout))},
    "list-refused": {"create": always(loses(httpx.ReadError)), "list": always(answers(403))},
    "poll-fails": {"retrieve": always(answers(500))},
    "poll-gone": {"retrieve": always(answers(404))},
    "poll-odd": {"retrieve": always(page())},
    "download-fails": {"content": always(answers(500))},
    "download-gone": {"content": always(answers(404))},
    "failed": {"fate": Fate(status="failed", problems=[problem("model_not_found")])},
    "failed-queue": {"fate": Fate(status="failed", problems=[problem("token_limit_exceeded")])},
    "failed-server": {"fate": Fate(status="failed", problems=[problem("server_error")])},
    "failed-lines": {"fate": Fate(status="failed", problems=[problem("bad", 1), problem("bad", 2)])},
    "expired": {"fate": Fate(status="expired", write=nothing)},
    "cancelled": {"fate": Fate(status="cancelled", write=nothing)},
    "line-refused": {"fate": Fate(write=refused(400))},
    "line-busy": {"fate": Fate(write=refused(429))},
    "line-error": {"fate": Fate(write=erred("code"))},
    "line-cut": {"fate": Fate(write=lambda line: said(line)[:-5])},
    "line-deep": {"fate": Fate(write=lambda line: said(line)[:-1] + b',"x":' + b"[" * 100_000)},
    "line-unknown": {"fate": Fate(write=lambda line: replied(PROMPT, completion(ANSWER)))},
    "line-status": {"fate": Fate(write=lambda line: replied(line.custom_id, completion(ANSWER), 0))},
    "line-doubled": {"fate": Fate(write=lambda line: said(line) + b"\n" + said(line))},
    "closed": {"fate": Fate(after=10**9)},
}


def own(error: BaseException) -> bool:
    return type(error).__module__.startswith("autobatcher")


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
async def test_no_key_and_no_prompt_in_logs_and_errors(
    failure: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="autobatcher")
    server = Server(**{"fate": Fate(write=said), **failure})
    options = {"api_key": KEY, "default_headers": {"x-secret": HEADER}, "batch_metadata": {"k": "v"}}
    async with running(server, patience_seconds=HOUR, **options) as client:

        async def close() -> None:
            await anyio.sleep(20 * HOUR)
            await client.close()

        async def leave() -> None:
            with anyio.move_on_after(0.5):
                await ask(client, PROMPT)

        *results, _, _ = await gathered(ask(client, PROMPT), ask(client, f"{PROMPT} 2"), close(), leave())
        with pytest.raises(openai.OpenAIError) as late:
            await ask(client, PROMPT)
    assert any(PROMPT in call.request.content.decode() for call in server.of("upload"))
    ours = [record for record in caplog.records if record.name.startswith("autobatcher")]
    assert ours
    for record in ours:
        told = f"{record.getMessage()} {record.args!r} {record.exc_info!r} {record.exc_text!r}"
        assert not tells(told)
    assert not tells(caplog.text)
    for error in [*results, late.value]:
        if isinstance(error, BaseException):
            seen: BaseException | None = error
            while seen is not None:
                assert not tells(f"{seen} {seen!r} {seen.args!r}")
                seen = seen.__cause__ or seen.__context__
            assert not tells("".join(traceback.format_exception(error)))
            if own(error):
                shown = {key: value for key, value in vars(error).items() if key != "request"}
                assert not tells(repr(shown))


async def test_no_key_and_no_prompt_when_a_defect_ends_everything(caplog: pytest.LogCaptureFixture) -> None:
    """A transport that raises what no transport may raise stands in for a defect."""
    caplog.set_level(logging.DEBUG, logger="autobatcher")

    async def defect(_server: Server, _call: Any) -> httpx.Response:
        raise LookupError("oh")

    server = Server(upload=always(defect))
    async with running(server, api_key=KEY) as client:
        (error,) = await gathered(ask(client, PROMPT))
    assert isinstance(error, Exception)
    assert not tells(f"{error} {error!r}")
    assert not tells(caplog.text)


async def test_a_key_that_is_a_callable_is_not_told_either(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="autobatcher")

    async def key() -> str:
        return KEY

    server = Server(create=always(answers(400)))
    async with running(server, api_key=key) as client:
        (error,) = await gathered(ask(client, PROMPT))
        assert any(KEY in call.request.headers["authorization"] for call in server.calls)
    assert isinstance(error, openai.BadRequestError)
    assert not tells(f"{error} {error!r} {caplog.text}")


def test_no_key_and_no_prompt_in_what_the_parts_show_of_themselves() -> None:
    line = encode_line("id", "/v1/chat/completions", json.dumps({"messages": PROMPT}).encode())
    requests = [
        Request(f"id-{n}", "/v1/chat/completions", "m", line, len(line), reply=PROMPT) for n in range(2)
    ]
    engine = Engine(Limits(seconds=0))
    engine.accept(requests[0], 0.0)
    (window,) = engine.windows.values()
    shown: list[object] = [*requests, window, engine]
    shown += engine.wake(0.0)
    (batch,) = engine.batches.values()
    shown += [batch, engine, Upload(batch), Create(batch, "file"), Fetch(batch, (("file", 0),))]
    shown += [LinesRead(batch, "file", [line], 1), Settle(requests[1], Closed(None))]
    shown += [BatchOptions(batch_metadata={"k": "v"})]
    assert isinstance(window, Window)
    assert isinstance(batch, Batch)
    for thing in shown:
        assert not tells(repr(thing))
        assert not tells(str(thing))


async def test_no_key_and_no_prompt_in_what_a_client_shows_of_itself() -> None:
    async with running(Server(), api_key=KEY, default_headers={"x-secret": HEADER}) as client:
        copy = client.with_options(max_retries=1)
        assert await ask(copy, PROMPT) == PROMPT
        for thing in (client, copy, client._options, client._collectors, client._collector, client.chat):
            assert not tells(f"{thing!r} {thing}")


async def test_the_request_that_is_shown_with_an_answer_has_no_key() -> None:
    async with running(Server(Fate(write=refused(400))), api_key=KEY) as client:
        (error,) = await gathered(ask(client, PROMPT))
    assert isinstance(error, openai.BadRequestError)
    assert KEY not in str(error.request.headers.raw)
    assert KEY not in str(error.response.request.headers.raw)


# --- large and odd things from a server -------------------------------------------------------------------------

HUGE = "x" * 10**7


LARGE: dict[str, Fate] = {
    "message": Fate(status="failed", problems=[problem("a_code", message=HUGE)]),
    "messages": Fate(status="failed", problems=[problem("a_code", message=HUGE[: 10**6])] * 20),
    "code": Fate(status="failed", problems=[problem(HUGE)]),
    "problems": Fate(1, "failed", [problem("a_code", n + 10) for n in range(100_000)]),
    "message-of-a-line": Fate(write=erred("a_code", HUGE)),
    "code-of-a-line": Fate(write=erred(HUGE)),
    "named-line": Fate(status="failed", problems=[problem("a_code", 1, HUGE)]),
    "status": Fate(status="failed", change=lambda batch, _: {**batch, "x": HUGE}),
}


@pytest.mark.parametrize("fate", LARGE.values(), ids=LARGE.keys())
async def test_what_a_server_says_is_told_in_measure(fate: Fate, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="autobatcher")
    server = Server(lambda _, job: fate if "bad" in job.texts else Fate())
    async with running(server) as client:
        bad, good = await gathered(ask(client, "bad"), ask(client, "good", model="another"))
    assert good == "good"
    assert isinstance(bad, AutobatcherError)
    assert isinstance(bad, openai.APIError)
    assert 0 < len(str(bad)) < 100_000
    assert len(repr(bad)) < 100_000
    assert len(caplog.text) < 100_000


NAMES: dict[str, Any] = {
    "list": ["output-of-batch-1"],
    "object": {"id": "output-of-batch-1"},
    "number": 7,
    "true": True,
    "huge": HUGE,
    "empty": "",
    "slashes": "../../models",
    "query": "x?skip=3#y",
    "control": "a\r\nx-header: y\x00",
    "surrogate": "\ud800",
    "latin": "ü",
    "wide": "日本",
}


@pytest.mark.parametrize("value", NAMES.values(), ids=NAMES.keys())
@pytest.mark.parametrize(
    "name", ["output_file_id", "error_file_id", "id", "status", "errors", "input_file_id"]
)
async def test_fields_of_odd_types_harm_nobody_else(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="autobatcher")

    def change(batch: dict[str, Any], age: float) -> dict[str, Any]:
        return {**batch, name: value} if age < 1000 else batch

    server = Server(lambda _, job: Fate(change=change) if "odd" in job.texts else Fate())
    async with running(server, patience_seconds=HOUR) as client:
        odd, good = await gathered(ask(client, "odd"), ask(client, "good", model="another"))
        later = await ask(client, "later")
        assert anyio.current_time() < 2 * 24 * HOUR
    assert (good, later) == ("good", "later")
    assert odd == "odd" or (isinstance(odd, Exception) and len(str(odd)) < 100_000)
    assert len(caplog.text) < 10**6


@pytest.mark.parametrize("value", NAMES.values(), ids=NAMES.keys())
async def test_an_odd_id_of_a_file_harms_nobody_else(value: Any) -> None:
    server = Server(upload=in_turn(changes(lambda file: {**file, "id": value})))
    async with running(server, patience_seconds=HOUR) as client:
        odd, good = await gathered(ask(client, "odd"), ask(client, "good", model="another"))
        assert await ask(client, "later") == "later"
    answers = {"odd", "good"} & {odd, good}
    assert answers
    # Some of these could be ids: then the server refuses the batch of the file that it called so.
    assert all(isinstance(result, openai.BadRequestError) for result in {odd, good} - answers)
    assert server.bought == dict.fromkeys((*answers, "later"), 1)


@pytest.mark.parametrize("value", NAMES.values(), ids=NAMES.keys())
async def test_an_odd_request_id_harms_nobody(value: Any) -> None:
    def write(line: Line) -> bytes:
        reply = json.loads(answered(line))
        reply["response"]["request_id"] = value
        return json.dumps(reply).encode()

    server = Server(Fate(write=each({"odd": at_first(write)})))
    async with running(server) as client:
        odd, good = await gathered(ask(client, "odd"), ask(client, "good"))
    assert good == "good"
    assert odd == "odd"
    assert server.bought == {"odd": 1, "good": 1}


@pytest.mark.parametrize("size", [10**5, 3 * 10**7])
async def test_a_huge_line_of_nobody_harms_nobody(size: int) -> None:
    server = Server(Fate(write=lambda line: b"x" * size + b"\n" + answered(line)))
    async with running(server) as client:
        assert await gathered(ask(client, "a"), ask(client, "b")) == ["a", "b"]
