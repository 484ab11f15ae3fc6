"""What happens to calls whose answers are not there in time, and to those whose batches expire."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import openai
import pydantic
import pytest

from autobatcher import BatchFailedError, BatchOpenAI, DeadlineError, RequestFailedError
from autobatcher._http import httpx
from autobatcher.events import Event, RealtimeCalled, RequestsOverdue
from tests.client.scripted import (
    DAY,
    HOUR,
    Action,
    Call,
    Fate,
    Job,
    Server,
    always,
    answers,
    ask,
    completion,
    each,
    erred,
    gathered,
    in_turn,
    loses,
    nothing,
    outcomes,
    refused,
    running,
    text_in,
    waits,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


def at_once(server: Server, call: Call) -> httpx.Response:
    del server
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    answer = completion(f"now {text_in(call.json)}", usage=usage)
    return httpx.Response(200, json=answer, headers={"x-request-id": f"req-{call.number}"})


async def realtime(server: Server, call: Call) -> httpx.Response:
    return at_once(server, call)


def slow(seconds: float) -> Action:
    return waits(seconds, realtime)


def server_of(fate: Fate | Callable[[int, Job], Fate], **scripts: Any) -> Server:
    return Server(fate, **{"other": always(realtime), **scripts})


# --- raising ------------------------------------------------------------------------------------------------------


async def test_a_deadline_names_the_batch_and_the_age() -> None:
    server = server_of(Fate(after=HOUR))
    async with running(server, deadline_seconds=600) as client:
        started = anyio.current_time()
        with pytest.raises(openai.APITimeoutError) as raised:
            await ask(client, "a")
        assert anyio.current_time() - started == 600
    error = raised.value
    assert isinstance(error, DeadlineError)
    assert (error.batch_id, error.age) == ("batch-1", 600)
    assert str(error) == "no answer within 600.0 s, which is the deadline; it is in batch batch-1"
    short = DeadlineError(error.request, batch_id=None, age=0.0123)
    assert str(short) == "no answer within 0.012 s, which is the deadline; it was in no batch yet"
    assert error.request.url.path == "/v1/chat/completions"


async def test_the_clock_runs_in_the_window_too() -> None:
    server = server_of(Fate())
    async with running(server, deadline_seconds=5, batch_window_seconds=60) as client:
        with pytest.raises(DeadlineError, match="it was in no batch yet") as raised:
            await ask(client, "a")
        assert raised.value.batch_id is None
    assert not server.of("upload")


async def test_a_batch_of_which_all_are_late_is_cancelled_and_one_that_others_wait_for_is_not() -> None:
    server = server_of(Fate(after=HOUR))
    async with running(server) as client:
        hasty = client.with_options(deadline_seconds=600)
        late, patient = await gathered(ask(hasty, "a"), ask(client, "b"))
        assert isinstance(late, DeadlineError)
        assert patient == "b"
        assert not server.of("cancel")
        assert len(server.jobs) == 1
        with pytest.raises(DeadlineError):
            await ask(hasty, "c")
        await server.arrival("cancel")
    assert [call.name for call in server.of("cancel")] == ["batch-2"]


async def test_each_call_has_its_own_deadline_and_all_share_a_batch() -> None:
    server = server_of(Fate(after=HOUR))
    times: dict[float, float] = {}
    async with running(server, batch_size=1000) as client:

        async def late(seconds: float) -> None:
            with pytest.raises(DeadlineError):
                await ask(client.with_options(deadline_seconds=seconds), f"{seconds}")
            times[seconds] = anyio.current_time() - started

        started = anyio.current_time()
        patient, *_ = await gathered(
            ask(client.with_options(deadline_seconds=2 * HOUR), "z"),
            *(late(seconds) for seconds in (300.0, 20.0, 300.5, 100.0)),
        )
    assert times == {seconds: seconds for seconds in (300.0, 20.0, 300.5, 100.0)}
    assert patient == "z"
    assert len(server.jobs) == 1


async def test_an_answer_after_the_deadline_goes_into_the_journal(tmp_path: Path) -> None:
    journal = tmp_path / "run.db"
    server = server_of(Fate(after=HOUR))
    async with running(server, journal=journal, deadline_seconds=600) as client:
        with pytest.raises(DeadlineError):
            await ask(client, "a")
        await anyio.sleep(2 * HOUR)
        assert await ask(client, "a") == "a"
    async with running(server, journal=journal) as client:
        assert await ask(client, "a") == "a"
    assert len(server.jobs) == 1
    assert not server.of("cancel")


async def test_a_caller_that_comes_back_before_the_answer_joins_its_request(tmp_path: Path) -> None:
    server = server_of(Fate(after=HOUR))
    async with running(server, journal=tmp_path / "run.db", deadline_seconds=1500) as client:
        for _ in range(2):
            with pytest.raises(DeadlineError):
                await ask(client, "a")
        assert await ask(client, "a") == "a"
    assert server.bought == {"a": 1}


async def test_an_answer_in_time_is_given_and_nothing_is_left_of_the_deadline() -> None:
    events: list[Event] = []
    server = server_of(Fate(after=60))
    async with running(server, deadline_seconds=600, on_event=events.append) as client:
        assert await outcomes(client, *"abc") == [*"abc"]
        await anyio.sleep(HOUR)
    assert not [event for event in events if isinstance(event, RequestsOverdue)]


async def test_an_error_of_the_request_is_raised_as_without_a_deadline() -> None:
    server = server_of(Fate(write=refused(400)))
    async with running(server, deadline_seconds=600) as client:
        with pytest.raises(openai.BadRequestError):
            await ask(client, "a")


async def test_a_caller_may_leave_before_its_deadline() -> None:
    server = server_of(Fate(after=HOUR))
    async with running(server, deadline_seconds=600, on_deadline="realtime") as client:
        with anyio.move_on_after(60) as scope:
            await ask(client, "a")
        assert scope.cancelled_caught
        await anyio.sleep(HOUR)
    assert not server.of("other")


# --- in real time -------------------------------------------------------------------------------------------------


async def test_what_is_late_is_asked_in_real_time_and_its_batch_cancelled() -> None:
    events: list[Event] = []
    server = server_of(Fate(after=DAY))
    async with running(
        server, deadline_seconds=600, on_deadline="realtime", on_event=events.append
    ) as client:
        started = anyio.current_time()
        assert await outcomes(client, *"abc") == ["now a", "now b", "now c"]
        assert anyio.current_time() - started == 600
        await server.arrival("cancel")
        lines = {line.completion_window: line for line in client.usage.lines}
    assert lines.keys() == {None}
    assert (lines[None].requests, lines[None].prompt_tokens, lines[None].completion_tokens) == (3, 6, 9)
    assert [event for event in events if isinstance(event, RequestsOverdue)] == [
        RequestsOverdue("batch-1", "/v1/chat/completions", "m", 3)
    ]
    called = [event for event in events if isinstance(event, RealtimeCalled)]
    assert [(e.batch_id, e.reason, e.answered) for e in called] == [("batch-1", "deadline", True)] * 3
    assert {call.name for call in server.of("other")} == {"/v1/chat/completions"}
    assert all(call.request.headers["authorization"] == "Bearer k" for call in server.of("other"))


async def test_usage_has_what_was_bought_for_those_who_had_left_or_were_answered_in_real_time() -> None:
    server = server_of(Fate(after=HOUR))
    async with running(server) as client:
        hasty = client.with_options(deadline_seconds=600)
        error, now, _ = await gathered(
            outcomes(hasty, "a"), ask(hasty.with_options(on_deadline="realtime"), "b"), ask(client, "c")
        )
        assert isinstance(error[0], DeadlineError)
        assert now == "now b"
        assert {line.completion_window: line.requests for line in client.usage.lines} == {"24h": 3, None: 1}
    assert server.sizes == [3]


async def test_usage_tells_batch_from_realtime() -> None:
    server = server_of(lambda number, _job: Fate(after=0 if number == 1 else DAY))
    async with running(server, deadline_seconds=600, on_deadline="realtime") as client:
        assert await ask(client, "a") == "a"
        assert await ask(client, "b") == "now b"
        assert {line.completion_window: line.requests for line in client.usage.lines} == {"24h": 1, None: 1}


async def test_the_batch_wins_if_it_answers_while_the_call_is_under_way() -> None:
    events: list[Event] = []
    server = server_of(Fate(after=610), other=always(slow(HOUR)))
    async with running(
        server, deadline_seconds=600, on_deadline="realtime", on_event=events.append, timeout=2 * HOUR
    ) as client:
        assert await ask(client, "a") == "a"
        assert anyio.current_time() < HOUR
        assert {line.completion_window for line in client.usage.lines} == {"24h"}
    assert [event.answered for event in events if isinstance(event, RealtimeCalled)] == [False]


@pytest.mark.parametrize("write", [refused(400), erred("odd"), nothing], ids=["400", "error", "missing"])
async def test_a_batch_that_fails_while_the_call_is_under_way_ends_nothing(write: Any) -> None:
    server = server_of(Fate(after=610, write=write), other=always(slow(3 * HOUR)))
    async with running(server, deadline_seconds=600, on_deadline="realtime", timeout=DAY) as client:
        assert await ask(client, "a") == "now a"


async def test_an_error_of_the_call_is_the_callers_after_the_sdks_retries() -> None:
    server = server_of(Fate(after=DAY), other=always(answers(500)))
    async with running(server, deadline_seconds=600, on_deadline="realtime", max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await ask(client, "a")
        await server.arrival("cancel")
    assert raised.value.status_code == 500
    assert server.count["other"] == 3


async def test_calls_that_fail_for_a_time_are_made_again() -> None:
    server = server_of(Fate(after=DAY), other=in_turn(answers(503), loses(httpx.ReadError), then=realtime))
    async with running(server, deadline_seconds=600, on_deadline="realtime") as client:
        assert await ask(client, "a") == "now a"


async def test_so_many_calls_are_under_way_at_a_time() -> None:
    server = server_of(Fate(after=DAY), other=always(slow(10)))
    async with running(server, deadline_seconds=600, on_deadline="realtime", max_realtime_calls=4) as client:
        started = anyio.current_time()
        texts = [f"{number}" for number in range(20)]
        assert await outcomes(client, *texts) == [f"now {text}" for text in texts]
        assert anyio.current_time() - started == 600 + 5 * 10
    assert server.most["other"] == 4


async def test_what_goes_out_is_what_the_caller_asked() -> None:
    server = server_of(Fate(after=DAY))
    async with running(server, deadline_seconds=600, on_deadline="realtime") as client:
        await ask(
            client,
            "ä\u2028",
            temperature=0.5,
            extra_body={"more": {"x": [1, None]}},
            extra_headers={"X-Mine": "yes"},
        )
    (call,) = server.of("other")
    assert call.json == {
        "model": "m",
        "messages": [{"role": "user", "content": "ä\u2028"}],
        "temperature": 0.5,
        "more": {"x": [1, None]},
    }
    assert call.request.headers["x-mine"] == "yes"


class Point(pydantic.BaseModel):
    x: int


# The SDK stops reading a stream at its "[DONE]", and leaves its generators to trio.
@pytest.mark.filterwarnings("ignore:Async generator '(openai|httpx2?)\\.:ResourceWarning")
async def test_all_ways_of_asking_have_their_results() -> None:
    async def answer(_server: Server, call: Call) -> httpx.Response:
        assert "stream" not in call.json
        return httpx.Response(200, json=completion('{"x": 7}'), headers={"x-request-id": "req-1"})

    server = Server(Fate(after=DAY), other=always(answer))
    messages: Any = [{"role": "user", "content": "a"}]
    async with running(server, deadline_seconds=600, on_deadline="realtime") as client:
        chat = client.chat.completions
        parsed = await chat.parse(model="m", messages=messages, response_format=Point)
        assert parsed.choices[0].message.parsed == Point(x=7)
        raw = await chat.with_raw_response.create(model="m", messages=messages)
        assert raw.headers["x-request-id"] == "req-1"
        assert raw.parse().choices[0].message.content == '{"x": 7}'
        plain = await chat.create(model="m", messages=messages)
        assert plain._request_id == "req-1"
        said = ""
        async with await chat.create(model="m", messages=messages, stream=True) as stream:
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
        assert said == '{"x": 7}'
        async with chat.with_streaming_response.create(model="m", messages=messages) as response:
            assert json.loads(await response.text())["choices"][0]["message"]["content"] == '{"x": 7}'


async def test_what_was_asked_in_real_time_is_in_the_journal_and_bought_once(tmp_path: Path) -> None:
    server = server_of(Fate(after=DAY))
    options: dict[str, Any] = {
        "journal": tmp_path / "run.db",
        "deadline_seconds": 600,
        "on_deadline": "realtime",
    }
    async with running(server, **options) as client:
        assert await ask(client, "a") == "now a"
        await server.arrival("cancel")
    async with running(server, **options) as client:
        assert await ask(client, "a") == "now a"
        assert await ask(client, "b") == "now b"
    assert server.count["other"] == 2
    assert len(server.jobs) == 2


async def test_equal_requests_whose_batch_is_yet_to_be_sent_are_in_the_journal_each_for_itself(
    tmp_path: Path,
) -> None:
    async def pretty(server: Server, call: Call) -> httpx.Response:
        answer = json.dumps(at_once(server, call).json() | {"id": f"id-{call.number}"}, indent=1)
        return httpx.Response(200, text=answer, headers={"content-type": "application/json"})

    server = server_of(Fate(), other=always(pretty))
    options: dict[str, Any] = {
        "journal": tmp_path / "run.db",
        "batch_window_seconds": HOUR,
        "deadline_seconds": 600,
        "on_deadline": "realtime",
    }
    messages: Any = [{"role": "user", "content": "a"}]
    runs = []
    for _ in range(2):
        found: set[str] = set()
        async with running(server, **options) as client, anyio.create_task_group() as tasks:

            async def call(client: Any = client, found: set[str] = found) -> None:
                answer = await client.chat.completions.create(model="m", messages=messages)
                assert answer.choices[0].message.content == "now a"
                found.add(answer.id)

            for _ in range(3):
                tasks.start_soon(call)
        runs.append(found)
    assert runs[0] == runs[1]
    assert len(runs[0]) == server.count["other"] == 3
    assert not server.jobs


async def test_closing_ends_those_that_wait_for_their_call() -> None:
    server = server_of(Fate(after=DAY), other=always(slow(HOUR)))
    found: list[Any] = []
    async with running(server, deadline_seconds=600, on_deadline="realtime", timeout=DAY) as client:

        async def call() -> None:
            found.extend(await outcomes(client, "a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await server.arrival("other")
            await client.close()
    assert [type(error).__name__ for error in found] == ["ClientClosedError"]


async def test_closing_ends_the_wait_for_a_call_after_the_batch_has_failed() -> None:
    server = server_of(Fate(after=610, write=refused(400)), other=always(slow(HOUR)))
    found: list[Any] = []
    async with running(server, deadline_seconds=600, on_deadline="realtime", timeout=DAY) as client:

        async def call() -> None:
            found.extend(await outcomes(client, "a"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.sleep(1200)
            await client.close()
        assert anyio.current_time() < HOUR
    assert [type(error).__name__ for error in found] == ["ClientClosedError"]


NO_ANSWERS = {
    "a page": {"text": "<html>", "headers": {"content-type": "text/html"}},
    "cut short": {"content": b'{"id": "chat', "headers": {"content-type": "application/json"}},
    "an error": {"json": {"error": {"message": "Not now."}}},
}


@pytest.mark.parametrize("page", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
async def test_what_is_no_answer_is_not_kept_and_that_of_the_batch_is(page: Any, tmp_path: Path) -> None:
    async def odd(_server: Server, _call: Call) -> httpx.Response:
        return httpx.Response(200, **page)

    server = Server(Fate(after=HOUR), other=in_turn(odd, then=realtime))
    options: dict[str, Any] = {
        "journal": tmp_path / "run.db",
        "deadline_seconds": 600,
        "on_deadline": "realtime",
    }
    async with running(server, **options) as client:
        with pytest.raises((AttributeError, TypeError)):  # of a caller that takes the page for an answer
            await ask(client, "a")
        await anyio.sleep(2 * HOUR)
        assert await ask(client, "a") == "a"
    async with running(server, **options) as client:
        assert await ask(client, "a") == "a"
    assert len(server.jobs) == 1
    assert server.count["other"] == 1


# --- expired batches ----------------------------------------------------------------------------------------------

EXPIRES: dict[str, Fate] = {
    "told": Fate(after=HOUR, status="expired", write=each({"a": erred("batch_expired")})),
    "untold": Fate(after=HOUR, status="expired", write=each({"a": nothing})),
}


@pytest.mark.parametrize("fate", EXPIRES.values(), ids=EXPIRES.keys())
async def test_an_expired_request_goes_into_another_batch(fate: Fate) -> None:
    server = server_of(lambda number, _job: fate if number == 1 else Fate())
    async with running(server) as client:
        assert await outcomes(client, *"ab") == [*"ab"]
    assert server.sizes == [2, 1]


@pytest.mark.parametrize("fate", EXPIRES.values(), ids=EXPIRES.keys())
async def test_an_expired_request_is_asked_in_real_time_if_that_is_wanted(fate: Fate, tmp_path: Path) -> None:
    events: list[Event] = []
    server = server_of(fate)
    options: dict[str, Any] = {"on_expired": "realtime", "journal": tmp_path / "run.db"}
    async with running(server, **options, on_event=events.append) as client:
        assert await outcomes(client, *"ab") == ["now a", "b"]
        assert {line.completion_window: line.requests for line in client.usage.lines} == {"24h": 1, None: 1}
    called = [event for event in events if isinstance(event, RealtimeCalled)]
    assert [(e.batch_id, e.reason, e.answered) for e in called] == [("batch-1", "expired", True)]
    async with running(server, **options) as client:
        assert await outcomes(client, *"ab") == ["now a", "b"]
    assert server.sizes == [2]
    assert server.count["other"] == 1


async def test_a_realtime_answer_takes_no_other_requests_place_in_the_journal(tmp_path: Path) -> None:
    expires = Fate(after=HOUR, status="expired", write=nothing)
    server = server_of(lambda number, _job: Fate(after=5 * HOUR) if number == 1 else expires)
    options: dict[str, Any] = {"on_expired": "realtime", "journal": tmp_path / "run.db"}
    async with running(server, **options) as client:

        async def leave() -> None:
            with anyio.move_on_after(600):
                await ask(client, "a")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
            await server.arrival("create")
            assert await ask(client, "a") == "now a"
        await anyio.sleep(6 * HOUR)
        assert await ask(client, "a") == "a"
    async with running(server, **options) as client:
        assert sorted(await outcomes(client, *"aa")) == ["a", "now a"]
    assert server.sizes == [1, 1]
    assert server.count["other"] == 1


@pytest.mark.parametrize("fate", EXPIRES.values(), ids=EXPIRES.keys())
async def test_an_expired_request_raises_if_that_is_wanted(fate: Fate) -> None:
    server = server_of(fate)
    async with running(server, on_expired="raise") as client:
        a, b = await outcomes(client, *"ab")
    assert isinstance(a, (RequestFailedError, BatchFailedError))
    assert a.batch_id == "batch-1"
    assert b == "b"
    assert server.sizes == [2]


async def test_each_call_has_its_own_way_with_an_expired_batch() -> None:
    expires = Fate(after=HOUR, status="expired", write=nothing)
    server = server_of(lambda number, _job: expires if number == 1 else Fate())
    async with running(server) as client:
        again, now, error = await gathered(
            ask(client, "a"),
            ask(client.with_options(on_expired="realtime"), "b"),
            ask(client.with_options(on_expired="raise"), "c"),
        )
    assert (again, now) == ("a", "now b")
    assert isinstance(error, BatchFailedError)
    assert server.sizes == [3, 1]


async def test_a_failing_call_for_an_expired_request_is_the_callers() -> None:
    server = server_of(EXPIRES["untold"], other=always(answers(402)))
    async with running(server, on_expired="realtime") as client:
        a, b = await outcomes(client, *"ab")
    assert isinstance(a, openai.APIStatusError)
    assert a.status_code == 402
    assert b == "b"


async def expired(client: BatchOpenAI, server: Server, found: list[Any]) -> None:
    """Ask what is then asked in real time, and wait for that call."""

    async def call() -> None:
        found.extend(await outcomes(client, "a"))
        found.append(anyio.current_time())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await server.arrival("other")
        if client._options.deadline_seconds is None:
            await client.close()


async def test_closing_ends_the_wait_for_the_call_of_an_expired_request() -> None:
    server = server_of(EXPIRES["told"], other=always(slow(DAY)))
    found: list[Any] = []
    async with running(server, on_expired="realtime", timeout=DAY) as client:
        await expired(client, server, found)
    error, at = found
    assert type(error).__name__ == "ClientClosedError"
    assert at < 2 * HOUR


async def test_a_deadline_ends_the_wait_for_the_call_of_an_expired_request() -> None:
    server = server_of(EXPIRES["told"], other=always(slow(DAY)))
    found: list[Any] = []
    async with running(server, on_expired="realtime", deadline_seconds=2 * HOUR, timeout=DAY) as client:
        started = anyio.current_time()
        await expired(client, server, found)
    error, at = found
    assert isinstance(error, DeadlineError)
    assert (error.batch_id, error.age) == ("batch-1", 2 * HOUR)
    assert at - started == 2 * HOUR


# --- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline_seconds": 0}, "deadline_seconds must be more than 0 seconds"),
        ({"deadline_seconds": float("inf")}, "deadline_seconds must be more than 0 seconds and finite"),
        ({"on_deadline": "wait"}, "on_deadline must be one of 'raise', 'realtime', not 'wait'"),
        ({"on_expired": "never"}, "on_expired must be one of 'resubmit', 'realtime', 'raise', not 'never'"),
        ({"max_realtime_calls": 0}, "max_realtime_calls must be 1 or more"),
    ],
)
async def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchOpenAI(api_key="k", **options)
    async with BatchOpenAI(api_key="k") as client:
        with pytest.raises(ValueError, match=message):
            client.with_options(**options)


async def test_a_raw_exchange_hurries_only_for_who_is_there(tmp_path: Path) -> None:
    server = server_of(Fate(after=HOUR))
    fields = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    options: dict[str, Any] = {"journal": tmp_path / "run.db", "deadline_seconds": 600}
    async with running(server, on_deadline="realtime", **options) as client:

        async def exchange(*, hurries: bool) -> Any:
            body = json.dumps(fields).encode()
            return await client._exchange(
                "chat/completions", body, fields, idempotency="x", hurries=lambda: hurries
            )

        for _ in range(2):
            with pytest.raises(DeadlineError):
                await exchange(hurries=False)
        assert not server.of("other")
        await anyio.sleep(HOUR)
        answer = await exchange(hurries=True)  # the batch's, which the journal has
        assert text_in_answer(answer.body) == "a"
        assert await exchange(hurries=True) == answer
    assert not server.of("other")
    assert server.bought == {"a": 1}


def text_in_answer(body: bytes) -> Any:
    return json.loads(body)["choices"][0]["message"]["content"]
