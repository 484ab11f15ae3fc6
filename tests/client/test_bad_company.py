"""What others do (other batches, other callers, other lines, slow servers) holds nobody up and takes nothing away."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import openai
import pytest

from autobatcher import BatchOpenAI, ClientClosedError
from autobatcher._http import httpx
from autobatcher.core.engine import Engine
from autobatcher.core.outcomes import Answer
from tests.client.scripted import (
    DAY,
    HOUR,
    Action,
    Call,
    Fate,
    Job,
    Pieces,
    Server,
    always,
    answers,
    ask,
    changes,
    completion,
    each,
    gathered,
    in_turn,
    loses,
    outcomes,
    problem,
    replied,
    running,
    unseen,
    until,
    usual,
    waits,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


async def timed(call: Awaitable[Any]) -> tuple[Any, float]:
    """What came of a call, and how long it took."""
    start = anyio.current_time()
    (result,) = await gathered(call)
    return result, anyio.current_time() - start


# --- other lines -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [10**400, 2**63, -1, "many", 1e300, None])
async def test_a_usage_that_is_none_takes_no_answer_away(tokens: Any) -> None:
    def write(line: Any) -> bytes:
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": 1}
        return replied(line.custom_id, completion(line.text, usage=usage))

    server = Server(Fate(write=each({"b": write})))
    async with running(server, max_enqueued_tokens=10_000) as client:
        a, _, c = await outcomes(client, *"abc")
    assert (a, c) == ("a", "c")
    assert len(server.jobs) == 1


async def test_a_defect_over_one_line_loses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put there by hand: what is known of no line cannot be had by one."""
    true = Engine._settle

    def settle(self: Engine, batch: Any, request: Any, outcome: Any) -> Any:
        if b'"content":"b"' in request.line:
            raise ZeroDivisionError
        return true(self, batch, request, outcome)

    monkeypatch.setattr(Engine, "_settle", settle)
    async with running(Server()) as client:
        a, b, c = await outcomes(client, *"abc")
    assert (a, c) == ("a", "c")
    assert isinstance(b, ZeroDivisionError)


# --- other batches -----------------------------------------------------------------------------------------------

STRANGERS: dict[str, Any] = {
    "of a blob": {"id": "blob", "object": "batch", "status": "completed", "input_file_id": None},
    "without file": {"id": "blob"},
    "without id": {"input_file_id": "file-x"},
    "null": None,
    "text": "batch",
    "empty": {},
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS.keys())
async def test_an_entry_of_another_kind_in_the_list_keeps_no_batch_from_being_found(stranger: Any) -> None:
    def beside(batches: dict[str, Any]) -> dict[str, Any]:
        return {**batches, "data": [stranger, *batches["data"]]}

    server = Server(create=in_turn(unseen(loses(httpx.ReadError))), list=always(changes(beside)))
    async with running(server) as client:
        assert await outcomes(client, *"ab") == [*"ab"]
    assert len(server.jobs) == 1


async def test_a_batch_is_made_again_beside_one_of_a_blob() -> None:
    def beside(batches: dict[str, Any]) -> dict[str, Any]:
        return {**batches, "data": [STRANGERS["of a blob"], *batches["data"]]}

    server = Server(create=in_turn(loses(httpx.ReadError)), list=always(changes(beside)))
    async with running(server) as client:
        assert await outcomes(client, *"ab") == [*"ab"]
    assert len(server.jobs) == 1


def text_of(server: Server, call: Call) -> str:
    line = server.files[call.json["input_file_id"]][0]
    return str(line["body"]["messages"][0]["content"])


async def test_a_batch_whose_creation_fails_holds_no_other_up_after_a_full_queue() -> None:
    async def create(server: Server, call: Call) -> httpx.Response:
        return await (answers(503) if text_of(server, call) == "stuck" else usual)(server, call)

    full = Fate(after=5, status="failed", problems=[problem("token_limit_exceeded")])
    server = Server(lambda number, _job: full if number == 1 else Fate(after=20), create=always(create))
    async with running(server, batch_size=1) as client:
        assert await ask(client, "first") == "first"

        async def later() -> tuple[Any, float]:
            await anyio.sleep(5)
            return await timed(ask(client, "later"))

        stuck, (later_, took) = await gathered(ask(client, "stuck"), later())
    assert isinstance(stuck, openai.InternalServerError)
    assert later_ == "later"
    assert took < 10 * 60


async def test_a_batch_that_is_too_large_is_split_though_others_are_in_the_queue() -> None:
    def fate(_number: int, job: Job) -> Fate:
        if len(job.lines) <= 5:
            return Fate(after=600)
        full = [problem("token_limit_exceeded")]
        return Fate(after=10, status="failed", problems=full, early="validating")

    server = Server(fate)
    texts = [f"large {n}" for n in range(10)]
    async with running(server, batch_size=10) as client, anyio.create_task_group() as tasks:

        async def traffic() -> None:
            for n in itertools.count():
                tasks.start_soon(ask, client, f"small {n}")
                await anyio.sleep(120)

        tasks.start_soon(traffic)
        await anyio.sleep(30)
        with anyio.fail_after(DAY):
            assert await outcomes(client, *texts) == texts
        tasks.cancel_scope.cancel()
    assert sum(len(job.lines) > 5 for job in server.jobs) < 10


async def test_a_request_that_no_queue_can_hold_ends_though_others_go_on() -> None:
    def fate(_number: int, job: Job) -> Fate:
        if job.texts != ["huge"]:
            return Fate(after=600)
        full = [problem("token_limit_exceeded")]
        return Fate(after=10, status="failed", problems=full, early="validating")

    server = Server(fate)
    async with (
        running(server, batch_size=1, poll_interval_seconds=60) as client,
        anyio.create_task_group() as tasks,
    ):

        async def traffic() -> None:
            for n in itertools.count():
                tasks.start_soon(ask, client, f"small {n}")
                await anyio.sleep(500)

        tasks.start_soon(traffic)
        await anyio.sleep(30)
        with anyio.fail_after(2 * DAY), pytest.raises(openai.APIError, match="token_limit_exceeded"):
            await ask(client, "huge")
        tasks.cancel_scope.cancel()


# --- callers who leave -------------------------------------------------------------------------------------------


async def leave_at(client: BatchOpenAI, seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await outcomes(client, *"abc")


@pytest.mark.parametrize("cancel", [usual, waits(2)], ids=["at once", "slowly"])
async def test_what_all_have_left_is_cancelled_though_the_client_is_closed_at_once(cancel: Action) -> None:
    server = Server(Fate(after=HOUR), cancel=always(cancel))
    async with running(server) as client:
        await leave_at(client, 100)
    assert [job.cancelled for job in server.jobs] == [True]


async def test_what_all_left_during_its_creation_is_cancelled_though_the_client_is_closed_at_once() -> None:
    server = Server(Fate(after=HOUR), create=always(waits(10)))
    async with running(server) as client:
        await leave_at(client, 5)
    assert [job.cancelled for job in server.jobs] == [True]


async def test_closing_leaves_batches_that_somebody_waited_for_though_one_has_left() -> None:
    server = Server(Fate(after=HOUR))
    async with running(server) as client:

        async def close() -> None:
            await anyio.sleep(100)
            await client.close()

        error, _, _ = await gathered(ask(client, "a"), leave_at(client, 50), close())
    assert isinstance(error, ClientClosedError)
    assert not server.of("cancel")


@pytest.mark.parametrize("action", [answers(503), answers(404), answers(500)], ids=["503", "404", "500"])
async def test_a_cancellation_outlives_an_outage(action: Action) -> None:
    server = Server(Fate(after=DAY), cancel=until(400, action))
    async with running(server) as client:
        await leave_at(client, 100)
        await anyio.sleep(2 * HOUR)
    assert [job.cancelled for job in server.jobs] == [True]
    assert len(server.of("cancel")) < 20


async def test_it_is_told_that_a_batch_could_not_be_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(Fate(after=DAY), cancel=always(answers(403)))
    async with running(server) as client:
        await leave_at(client, 100)
        await anyio.sleep(2 * HOUR)
    (told,) = [record for record in caplog.records if "could not be cancelled" in record.getMessage()]
    assert "batch-1" in told.getMessage()
    assert told.levelno == logging.WARNING


async def test_closing_while_a_batch_is_created_says_that_there_may_be_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(Fate(after=HOUR), create=always(waits(20)))
    async with running(server) as client:

        async def close() -> None:
            await anyio.sleep(10)
            await client.close()

        error, _ = await gathered(ask(client, "a"), close())
    assert isinstance(error, ClientClosedError)
    assert "there may be a batch of file file-1" in str(error)
    assert "uncertain: there may be one of file-1" in caplog.text


# --- slow servers ------------------------------------------------------------------------------------------------


def endless(piece: bytes) -> Action:
    """An answer of which a byte comes each minute."""

    async def act(server: Server, call: Call) -> httpx.Response:
        headers = {"content-type": "application/json", **server.headers(call)}
        return httpx.Response(200, stream=Pieces(itertools.repeat(piece), pause=60), headers=headers)

    return act


@pytest.mark.parametrize("kind", ["upload", "create", "list", "content", "cancel"])
async def test_an_answer_that_trickles_in_is_given_up(kind: str) -> None:
    scripts: dict[str, Any] = {kind: in_turn(endless(b"\n"))}
    if kind == "list":
        scripts["create"] = in_turn(unseen(loses(httpx.ReadError)))
    server = Server(Fate(after=DAY if kind == "cancel" else 0.0), **scripts)
    async with running(server) as client:
        if kind == "cancel":
            await leave_at(client, 100)
            await anyio.sleep(HOUR)
            assert server.jobs[0].cancelled
        else:
            with anyio.fail_after(HOUR):
                assert await outcomes(client, *"abc") == [*"abc"]
            assert len(server.jobs) == 1


async def test_downloads_that_trickle_hold_no_other_up_for_long() -> None:
    server = Server(content=lambda call: usual if "batch-5" in call.name else endless(b"\n"))
    async with running(server, batch_size=1) as client, anyio.create_task_group() as tasks:
        for text in "abcd":
            tasks.start_soon(ask, client, text)
            await anyio.sleep(0.1)
        with anyio.fail_after(HOUR):
            assert await ask(client, "e") == "e"
        tasks.cancel_scope.cancel()


async def test_a_slow_download_that_goes_on_is_no_trickle() -> None:
    async def slow(server: Server, call: Call) -> httpx.Response:
        pieces: Iterator[bytes] = iter([line + b"\n" for line in server.results(call)])
        return httpx.Response(200, stream=Pieces(pieces, pause=400), headers=server.headers(call))

    server = Server(content=always(slow))
    async with running(server) as client:
        assert await outcomes(client, *"abcdefgh") == [*"abcdefgh"]
    assert len(server.of("content")) == 1


# --- patience, and what can never succeed ------------------------------------------------------------------------


async def test_a_short_patience_is_kept_whatever_the_server_asks_for() -> None:
    server = Server(upload=always(answers(429, headers={"retry-after": "3600"})))
    async with running(server, patience_seconds=60) as client:
        error, took = await timed(ask(client, "a"))
    assert isinstance(error, openai.RateLimitError)
    assert took <= 70


async def test_a_retry_after_within_the_patience_is_waited_for() -> None:
    server = Server(upload=in_turn(answers(429, headers={"retry-after": "50"})))
    async with running(server, patience_seconds=60) as client:
        result, took = await timed(ask(client, "a"))
    assert result == "a"
    assert took >= 50


UNSENT: dict[str, Callable[[], Any]] = {
    "no such scheme": lambda: httpx.UnsupportedProtocol("no scheme"),
    "no such header": lambda: httpx.LocalProtocolError("Illegal header value"),
}


@pytest.mark.parametrize("error", UNSENT.values(), ids=UNSENT.keys())
async def test_what_can_never_be_sent_is_told_at_once(error: Callable[[], Any]) -> None:
    async def act(_server: Server, _call: Call) -> httpx.Response:
        raise error()

    async with running(Server(upload=always(act))) as client:
        result, took = await timed(ask(client, "a"))
    assert isinstance(result, openai.APIConnectionError)
    assert took < 60


async def test_the_log_says_what_a_connection_failed_of(caplog: pytest.LogCaptureFixture) -> None:
    async def act(_server: Server, call: Call) -> httpx.Response:
        try:
            raise ConnectionRefusedError("a secret")
        except OSError as error:
            raise httpx.ConnectError("a secret", request=call.request) from error

    async with running(Server(upload=in_turn(act))) as client:
        assert await ask(client, "a") == "a"
    assert "upload failed (APIConnectionError, ConnectionRefusedError)" in caplog.text
    assert "secret" not in caplog.text


async def test_answers_show_no_text() -> None:

    assert "secret" not in repr(Answer(200, "req", json.dumps("secret").encode()))
