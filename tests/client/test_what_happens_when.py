"""What the client does about each thing that can go wrong in the life of a batch."""

from __future__ import annotations

import dataclasses
import email.utils
import itertools
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import openai
import pydantic
import pytest

from autobatcher import AutobatcherError, BatchError, BatchFailedError, BatchOpenAI, ClientClosedError
from autobatcher._http import httpx
from tests.client.scripted import (
    BASE_URL,
    DAY,
    HOUR,
    Action,
    Call,
    Fate,
    Job,
    Line,
    Server,
    always,
    answered,
    answers,
    ask,
    at,
    at_first,
    breaks,
    changes,
    completion,
    each,
    erred,
    gathered,
    in_turn,
    loses,
    nothing,
    outcomes,
    page,
    problem,
    refused,
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


def cases(actions: dict[str, Any], name: str = "action") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(name, list(actions.values()), ids=list(actions))


NOBODY_KNOWS: dict[str, Action] = {
    "lost": loses(httpx.ReadError),
    "cut": loses(httpx.RemoteProtocolError),
    "timeout": loses(httpx.ReadTimeout),
    "500": answers(500),
    "502": page(502),
    "504": answers(504),
}
"""After these the call may have had its effect."""

DID_NOTHING: dict[str, Action] = {"429": answers(429), "503": answers(503)}

PASSING: dict[str, Action] = {
    "no-connection": loses(httpx.ConnectError),
    "no-connection-in-time": loses(httpx.ConnectTimeout),
    "408": answers(408),
    "409": answers(409),
    **NOBODY_KNOWS,
    **DID_NOTHING,
}

REFUSED = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    413: openai.APIStatusError,
    422: openai.UnprocessableEntityError,
}


def same_for_each(errors: list[Any], kind: type[Exception], code: str | None = None) -> None:
    """Each caller has an exception of its own, and all say the same."""
    assert [type(error) for error in errors] == [kind] * len(errors)
    assert len({id(error) for error in errors}) == len(errors)
    assert len({str(error) for error in errors}) == 1
    if code is not None:
        assert {error.code for error in errors} == {code}


def apart(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


# --- upload -----------------------------------------------------------------------------------------------------


@cases(PASSING)
async def test_an_upload_that_fails_in_passing_is_tried_again(action: Action) -> None:
    server = Server(upload=in_turn(action, action))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
        assert anyio.current_time() < 60
    assert len(server.of("upload")) == 3  # nobody else tries again on top of it
    assert server.sizes == [2]


@cases({"page": page(), "empty": answers(200, {}), "cut": answers(200, text="{")})
async def test_an_odd_answer_to_an_upload_is_tried_again(action: Action) -> None:
    server = Server(upload=in_turn(action, action))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
    assert server.sizes == [2]


async def test_odd_answers_to_uploads_end_their_own_batch_and_no_other() -> None:
    server = Server(upload=lambda call: page() if b'"model":"mad"' in call.request.content else usual)
    async with running(server) as client:
        *errors, fine = await gathered(
            ask(client, "a", "mad"), ask(client, "b", "mad"), ask(client, "fine", "sane")
        )
        assert anyio.current_time() < HOUR
    assert fine == "fine"
    same_for_each(errors, type(errors[0]))
    assert isinstance(errors[0], AutobatcherError)
    assert 3 <= len(server.of("upload")) - 1 <= 10


async def test_uploads_that_fail_are_spread_and_come_less_and_less_often() -> None:
    gaps = []
    for _ in range(2):
        server = Server(upload=until(anyio.current_time() + 4 * HOUR, answers(503)))
        async with running(server) as client:
            assert await ask(client, "a") == "a"
        gaps.append(apart(server.times("upload")))
    for each_gap in gaps:
        assert len(each_gap) < 200
        assert each_gap[0] <= 5
        assert max(each_gap[:-1]) > 20 * each_gap[0]
        assert max(each_gap) <= 600
    assert gaps[0] != gaps[1]  # jitter


@cases(
    {
        "seconds": lambda: {"retry-after": "700"},
        "milliseconds": lambda: {"retry-after-ms": "700000"},
        "date": lambda: {"retry-after": email.utils.formatdate(time.time() + 705, usegmt=True)},
    },
    "headers",
)
@pytest.mark.parametrize("status", [429, 503, 500])
async def test_no_upload_before_the_time_that_retry_after_gives(
    headers: Callable[[], dict[str, str]], status: int
) -> None:
    server = Server(upload=in_turn(answers(status, headers=headers())))
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    (gap,) = apart(server.times("upload"))
    assert 700 <= gap < 1100


@pytest.mark.parametrize(
    "value", ["1e9", "inf", "nan", "-5", "soon", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"]
)
async def test_a_retry_after_that_makes_no_sense_stops_nobody(value: str) -> None:
    server = Server(upload=in_turn(answers(429, headers={"retry-after": value})))
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    (gap,) = apart(server.times("upload"))
    assert 0 < gap <= HOUR


async def test_uploads_are_tried_for_hours() -> None:
    server = Server(upload=until(20 * HOUR, loses()))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]


@cases(
    {
        "503": (answers(503), openai.InternalServerError),
        "429": (answers(429, headers={"retry-after": "100"}), openai.RateLimitError),
        "lost": (loses(), openai.APIConnectionError),
        "timeout": (loses(httpx.ReadTimeout), openai.APITimeoutError),
    },
    "case",
)
async def test_an_upload_is_given_up_when_patience_is_at_its_end(
    case: tuple[Action, type[Exception]],
) -> None:
    server = Server(upload=always(case[0]))
    async with running(server, patience_seconds=HOUR) as client:
        same_for_each(await outcomes(client, "a", "b", "c"), case[1])
        assert HOUR <= anyio.current_time() <= HOUR + 700
    assert not server.of("create")
    assert len(server.of("upload")) < 60


@pytest.mark.parametrize("status", REFUSED)
async def test_an_upload_that_is_refused_is_the_same_error_for_each_caller_in_the_file(status: int) -> None:
    server = Server(upload=in_turn(answers(status, headers={"x-request-id": "req-7"})))
    async with running(server) as client:
        errors = await outcomes(client, "a", "b", "c")
        assert await ask(client, "later") == "later"
    same_for_each(errors, REFUSED[status], f"code_{status}")
    for error in errors:
        assert error.status_code == status
        assert error.body == {
            "message": f"status {status}",
            "type": "t",
            "param": None,
            "code": f"code_{status}",
        }
        assert error.request_id == "req-7"
    assert len(server.of("upload")) == 2


async def test_an_upload_that_fails_holds_up_nobody_else() -> None:
    server = Server(upload=in_turn(answers(500, headers={"retry-after": "1000"})))
    async with running(server) as client:

        async def late() -> float:
            await anyio.sleep(5)
            await ask(client, "late", "another")
            return anyio.current_time()

        first, then = await gathered(ask(client, "early"), late())
    assert first == "early"
    assert then < 30


async def test_an_upload_whose_answer_was_lost_buys_nothing_twice() -> None:
    server = Server(upload=in_turn(unseen(loses(httpx.ReadError))))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
    assert len(server.files) == 2
    assert server.sizes == [2]


# --- create -----------------------------------------------------------------------------------------------------


@cases(DID_NOTHING)
async def test_a_creation_that_did_nothing_is_tried_again(action: Action) -> None:
    server = Server(create=in_turn(action, action, action))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
    assert len(server.of("create")) == 4
    assert len(server.of("upload")) == 1
    assert not server.of("list")  # nothing is in doubt
    assert server.sizes == [2]


@pytest.mark.parametrize("status", [429, 503])
async def test_new_calls_and_other_batches_go_on_while_a_creation_waits(status: int) -> None:
    def script(call: Call) -> Action:
        of_a = server.files[call.json["input_file_id"]][0]["body"]["model"] == "a"
        return answers(status, headers={"retry-after": "300"}) if of_a and call.at < 5 * HOUR else usual

    server = Server(Fate(after=60), create=script)
    async with running(server) as client:

        async def at(seconds: float, model: str) -> float:
            await anyio.sleep(seconds)
            assert await ask(client, f"{seconds}", model) == f"{seconds}"
            return anyio.current_time() - seconds

        held, *others = await gathered(at(0, "a"), at(0, "b"), at(100, "b"), at(2000, "c"))
    assert all(0 < waited < 100 for waited in others)
    assert 5 * HOUR < held < 5 * HOUR + 700


async def test_no_creation_before_the_time_that_retry_after_gives() -> None:
    server = Server(create=in_turn(answers(503, headers={"retry-after": "900"})))
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    (gap,) = apart(server.times("create"))
    assert 900 <= gap < 1400


@cases(
    {"429": (answers(429), openai.RateLimitError), "503": (answers(503), openai.InternalServerError)}, "case"
)
async def test_a_creation_is_given_up_when_patience_is_at_its_end(
    case: tuple[Action, type[Exception]],
) -> None:
    server = Server(create=always(case[0]))
    async with running(server, patience_seconds=HOUR) as client:
        same_for_each(await outcomes(client, "a", "b"), case[1])
        assert HOUR <= anyio.current_time() <= HOUR + 700
    assert len(server.of("upload")) == 1


@pytest.mark.parametrize("status", REFUSED)
async def test_a_creation_that_is_refused_is_the_same_error_for_each_caller(status: int) -> None:
    server = Server(create=in_turn(answers(status)))
    async with running(server) as client:
        errors = await outcomes(client, "a", "b")
        assert await ask(client, "later") == "later"
    same_for_each(errors, REFUSED[status], f"code_{status}")
    assert len(server.of("create")) == 2
    assert not server.of("list")


@cases({**NOBODY_KNOWS, "page": page(), "empty": answers(200, {})})
async def test_a_batch_whose_creation_was_not_answered_is_found_and_adopted(action: Action) -> None:
    server = Server(Fate(after=100), create=in_turn(unseen(action)))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
        assert anyio.current_time() < 200
    assert len(server.of("create")) == 1
    assert len(server.of("upload")) == 1
    assert server.sizes == [2]


@pytest.mark.parametrize("foreign", [0, 99, 100, 250])
async def test_a_batch_is_found_on_whichever_page_of_the_list_it_is(foreign: int) -> None:
    server = Server(create=in_turn(unseen(loses(httpx.ReadTimeout))))
    server.foreign = [f"foreign-{n}" for n in range(foreign)]
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    assert len(server.of("create")) == 1
    assert len(server.of("list")) == foreign // 100 + 1
    assert server.sizes == [1]


async def test_a_batch_that_the_list_shows_late_is_adopted() -> None:
    server = Server(create=in_turn(unseen(loses(httpx.ReadError))))
    server.list_lag = 60
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    assert len(server.of("create")) == 1
    assert server.sizes == [1]


@cases(NOBODY_KNOWS)
async def test_a_creation_is_sent_again_when_its_batch_is_certainly_not_there(action: Action) -> None:
    server = Server(create=in_turn(action))
    server.foreign = [f"foreign-{n}" for n in range(101)]
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
    (gap,) = apart(server.times("create"))
    assert 60 < gap < 600  # the request may have been on its way for a while
    assert len(server.of("list")) >= 6
    assert len(server.of("upload")) == 1
    assert server.sizes == [2]


async def test_a_creation_that_is_lost_again_and_again_makes_one_batch() -> None:
    lost = loses(httpx.ReadError)
    server = Server(create=in_turn(lost, answers(503), lost, unseen(lost)))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
    assert len(server.of("create")) == 4
    assert server.sizes == [2]


@cases(
    {**PASSING, "page": page(), "no-data": answers(200, {"data": 3}), "no-ids": answers(200, {"data": [{}]})}
)
async def test_a_look_up_that_fails_is_tried_again(action: Action) -> None:
    server = Server(create=in_turn(unseen(loses(httpx.ReadError))), list=in_turn(action, action, action))
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    assert len(server.of("create")) == 1
    assert len(server.of("list")) == 4
    assert server.sizes == [1]


async def test_a_look_up_that_fails_in_the_middle_of_the_list_proves_nothing() -> None:
    server = Server(create=in_turn(unseen(loses(httpx.ReadError))), list=in_turn(usual, answers(500)))
    server.foreign = [f"foreign-{n}" for n in range(150)]
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    assert len(server.of("create")) == 1
    assert server.sizes == [1]


async def test_looks_go_on_for_hours_while_the_list_does_not_answer() -> None:
    server = Server(create=in_turn(unseen(loses(httpx.ReadError))), list=until(10 * HOUR, answers(503)))
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    assert len(server.of("list")) < 300
    assert server.sizes == [1]


@cases(
    {
        "lost": (loses(httpx.ReadError), openai.APIConnectionError),
        "500": (answers(500), openai.InternalServerError),
    },
    "case",
)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
async def test_a_look_up_that_is_refused_raises_what_the_creation_raised(
    case: tuple[Action, type[Exception]], status: int
) -> None:
    server = Server(create=in_turn(case[0]), list=always(answers(status)))
    async with running(server) as client:
        same_for_each(await outcomes(client, "a", "b"), case[1])
    assert len(server.of("create")) == 1  # nobody knows, so nobody buys again


async def test_a_list_that_goes_round_in_a_circle_is_not_read_for_ever() -> None:
    server = Server(
        create=in_turn(loses(httpx.ReadError)),
        list=always(answers(200, {"data": [{"id": "same", "input_file_id": "x"}], "has_more": True})),
    )
    async with running(server) as client:
        same_for_each(await outcomes(client, "a", "b"), openai.APIConnectionError)
    assert len(server.of("list")) <= 100


NO_FILE = {
    "404": answers(404),
    "400": answers(400, {"error": {"message": "No such File object: file-1", "code": None}}),
    "not-ready": answers(
        400, {"error": {"message": "The file file-1 is not ready yet", "code": "invalid_file"}}
    ),
}


@cases(NO_FILE)
async def test_a_file_that_is_not_there_yet_is_waited_for(action: Action) -> None:
    server = Server(create=in_turn(action, action, action))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
        assert anyio.current_time() < 60
    assert len(server.of("create")) == 4
    assert len(server.of("upload")) == 1


@cases(NO_FILE)
async def test_a_file_that_never_is_there_is_not_waited_for_long(action: Action) -> None:
    server = Server(create=always(action))
    async with running(server) as client:
        errors = await outcomes(client, "a", "b")
        assert anyio.current_time() < 600
    same_for_each(errors, type(errors[0]))
    assert isinstance(errors[0], (openai.NotFoundError, openai.BadRequestError))
    assert 3 <= len(server.of("create")) <= 10


# --- poll -------------------------------------------------------------------------------------------------------

ODD: dict[str, Action] = {
    "page": page(),
    "empty": answers(200, {}),
    "list": answers(200, []),
    "cut": answers(200, text="{", headers={"content-type": "application/json"}),
    "no-status": changes(lambda batch: {**batch, "status": None}),
    "odd-id": changes(lambda batch: {**batch, "id": 7}),
    "another": changes(lambda batch: {**batch, "id": "batch-of-somebody"}),
}


@cases({**PASSING, **ODD, "404": answers(404), "401": answers(401), "403": answers(403)})
async def test_a_poll_that_fails_is_made_again(action: Action) -> None:
    server = Server(retrieve=in_turn(usual, *[action] * 8), fate=Fate(after=30))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
    assert len(server.of("create")) == 1
    assert len(server.of("retrieve")) == 10


@cases({"lost": loses(), "503": answers(503), "page": page()})
async def test_polls_go_on_for_hours_while_they_fail(action: Action) -> None:
    server = Server(retrieve=until(20 * HOUR, action))
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
    assert len(server.of("create")) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 410])
async def test_a_batch_that_cannot_be_seen_for_ten_minutes_is_not_abandoned(status: int) -> None:
    server = Server(retrieve=until(600, answers(status)))
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    assert server.sizes == [1]


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_batch_that_cannot_be_seen_any_more_is_given_up_in_the_end(status: int) -> None:
    kind = {401: openai.AuthenticationError, 403: openai.PermissionDeniedError, 404: openai.NotFoundError}[
        status
    ]
    server = Server(Fate(after=DAY), retrieve=lambda call: answers(status) if call.number > 3 else usual)
    async with running(server) as client:
        same_for_each(await outcomes(client, "a", "b"), kind, f"code_{status}")
        assert 900 <= anyio.current_time() < 2 * HOUR
    assert server.sizes == [2]  # never sent again: it may be paid for


async def test_other_failures_between_polls_do_not_count_as_the_same() -> None:
    """A batch is lost when the server says so on end, not when it says so now and then among other trouble."""

    def script(call: Call) -> Action:
        if call.at > 6 * HOUR:
            return usual
        return answers(404) if call.number % 2 else answers(503)

    server = Server(retrieve=script)
    async with running(server) as client:
        assert await ask(client, "a") == "a"


async def test_polls_are_given_up_when_patience_is_at_its_end() -> None:
    server = Server(retrieve=always(answers(503)))
    async with running(server, patience_seconds=HOUR) as client:
        same_for_each(await outcomes(client, "a", "b"), openai.InternalServerError)
        assert HOUR <= anyio.current_time() <= HOUR + 700
    assert len(server.of("create")) == 1


async def test_a_poll_that_is_never_answered_is_made_again() -> None:
    server = Server(retrieve=in_turn(waits(DAY), waits(DAY)))
    async with running(server, timeout=30) as client:
        assert await ask(client, "a") == "a"
        assert anyio.current_time() < 200
    assert server.sizes == [1]


async def test_a_status_that_nobody_knows_means_to_poll_on() -> None:
    server = Server(Fate(after=HOUR, early="reticulating"))
    async with running(server) as client:
        assert await ask(client, "a") == "a"
        assert HOUR <= anyio.current_time() < 1.1 * HOUR


# --- a batch fails ----------------------------------------------------------------------------------------------


def fails_once(*problems: Any, after: float = 0.0) -> Callable[[int, Job], Fate]:
    return lambda number, _: Fate(after, "failed", problems) if number == 1 else Fate()


async def test_only_the_callers_of_lines_that_are_named_get_the_error() -> None:
    named = (problem("invalid_x", 2, "x must be y"), problem("invalid_z", 4), problem("again", 2, "again"))
    server = Server(fails_once(*named))
    async with running(server) as client:
        results = await outcomes(client, *"abcde")
    assert [results[n] for n in (0, 2, 4)] == ["a", "c", "e"]
    for result, code, message in (
        (results[1], "invalid_x", "x must be y"),
        (results[3], "invalid_z", "a message"),
    ):
        assert isinstance(result, openai.APIError)
        assert result.code == code
        assert message in str(result)
    assert [job.texts for job in server.jobs] == [list("abcde"), list("ace")]


async def test_all_lines_are_named() -> None:
    server = Server(fails_once(*(problem("bad", line, f"of {line}") for line in (1, 2, 3))))
    async with running(server) as client:
        results = await outcomes(client, *"abc")
    assert [result.code for result in results] == ["bad"] * 3
    assert [f"of {n}" in str(result) for n, result in enumerate(results, 1)] == [True] * 3
    assert len(server.jobs) == 1


@pytest.mark.parametrize("line", [0, -1, 4, 10**30, "two", 1.5, None, [], {"a": 1}])
async def test_a_line_that_there_is_not_names_nobody(line: Any) -> None:
    server = Server(Fate(status="failed", problems=[{**problem("bad"), "line": line}]))
    async with running(server) as client:
        same_for_each(await outcomes(client, *"abc"), BatchFailedError, "bad")
    assert len(server.jobs) == 1


@pytest.mark.parametrize("count", [3, 40])
async def test_lines_that_are_named_one_after_the_other(count: int) -> None:
    """Each batch fails for its first bad line; the good ones are answered in the end, once."""

    def fate(_: int, job: Job) -> Fate:
        bad = next((n for n, text in enumerate(job.texts, 1) if text.startswith("bad")), None)
        return Fate() if bad is None else Fate(status="failed", problems=[problem("bad", bad)])

    server = Server(fate)
    texts = [f"{'bad' if n % 2 else 'good'} {n}" for n in range(count)]
    async with running(server) as client:
        results = await outcomes(client, *texts)
    for text, result in zip(texts, results, strict=True):
        assert result == text if text.startswith("good") else result.code == "bad"
    assert set(server.bought.values()) == {1}


QUEUE_CODES = ["token_limit_exceeded", "batch_limit_exceeded", "rate_limit_exceeded"]


@pytest.mark.parametrize("code", QUEUE_CODES)
async def test_a_full_queue_is_waited_for_until_an_earlier_batch_has_finished(code: str) -> None:
    def fate(number: int, _: Job) -> Fate:
        others = [job for job in server.active if job is not server.jobs[-1]]
        return Fate(status="failed", problems=[problem(code)]) if others else Fate(after=number * 5000)

    server = Server(fate)
    async with running(server) as client:

        async def later() -> str:
            await anyio.sleep(30)
            return await ask(client, "second")

        assert await gathered(ask(client, "first"), later()) == ["first", "second"]
    assert len(server.jobs) <= 5  # it does not knock all the time
    assert 5000 <= server.jobs[-1].created <= 5000 * 1.02 + 70
    assert set(server.bought.values()) == {1}


async def test_a_full_queue_holds_up_no_other_model() -> None:
    def fate(_: int, job: Job) -> Fate:
        if job.lines[0].body["model"] == "a" and anyio.current_time() < 5 * HOUR:
            return Fate(status="failed", problems=[problem("token_limit_exceeded")])
        return Fate()

    server = Server(fate)
    async with running(server) as client:

        async def at(model: str) -> float:
            await anyio.sleep(10)
            assert await ask(client, model, model) == model
            return anyio.current_time()

        first, second = await gathered(at("a"), at("b"))
    assert first > 5 * HOUR
    assert second < 60


async def test_a_full_queue_of_others_is_tried_less_and_less_often() -> None:
    def fate(*_: Any) -> Fate:
        full = anyio.current_time() < 6 * HOUR
        return Fate(status="failed", problems=[problem("token_limit_exceeded")]) if full else Fate()

    server = Server(fate)
    async with running(server) as client:
        assert await ask(client, "a") == "a"
    gaps = apart([job.created for job in server.jobs])
    assert 5 <= len(gaps) <= 30
    assert gaps[0] >= 20
    assert max(gaps) > 5 * gaps[0]
    assert max(gaps) <= 1.2 * HOUR


async def test_a_batch_that_alone_is_over_the_limit_is_split() -> None:
    def fate(_: int, job: Job) -> Fate:
        if len(job.lines) > 2 or server.active[:-1]:
            return Fate(status="failed", problems=[problem("token_limit_exceeded")])
        return Fate(after=60)

    server = Server(fate)
    texts = [f"<{n}>" for n in range(9)]
    async with running(server) as client:
        assert await outcomes(client, *texts) == texts
        assert anyio.current_time() < DAY
    assert set(server.bought.values()) == {1}
    assert len(server.jobs) < 40


@cases(
    {
        "while-validating": Fate(10, early="validating"),
        "while-in-progress": Fate(10, early="in_progress"),
        "at-once": Fate(),
    },
    "fate",
)
async def test_a_queue_that_is_never_free_is_given_up_when_patience_is_at_its_end(fate: Fate) -> None:
    full = [problem("token_limit_exceeded", message="too many")]
    server = Server(dataclasses.replace(fate, status="failed", problems=full))
    async with running(server, patience_seconds=6 * HOUR) as client:
        with anyio.fail_after(12 * HOUR):
            errors = await outcomes(client, "a", "b")
        assert 6 * HOUR <= anyio.current_time() <= 9 * HOUR
    for error in errors:
        assert isinstance(error, BatchFailedError)
        assert error.code == "token_limit_exceeded"
        assert "too many" in str(error)
    assert len(server.jobs) < 60


@pytest.mark.parametrize("code", ["server_error", "internal_error", "overloaded"])
async def test_a_batch_that_failed_for_a_passing_server_error_is_sent_again(code: str) -> None:
    server = Server(
        lambda number, _: Fate(status="failed", problems=[problem(code)]) if number <= 3 else Fate()
    )
    async with running(server) as client:
        assert await outcomes(client, "a", "b") == ["a", "b"]
    assert server.sizes == [2, 2, 2, 2]


async def test_a_server_error_that_does_not_pass_is_raised_in_the_end() -> None:
    server = Server(Fate(status="failed", problems=[problem("server_error", message="oh dear")]))
    async with running(server) as client:
        errors = await outcomes(client, "a", "b")
    assert [(type(error), error.code, "oh dear" in str(error)) for error in errors] == [
        (BatchFailedError, "server_error", True)
    ] * 2
    assert 3 <= len(server.jobs) <= 10


@pytest.mark.parametrize("line", [None, 1])
@pytest.mark.parametrize("code", ["model_not_found", "invalid_model", "file_too_large"])
async def test_a_batch_that_failed_otherwise_is_an_api_error_for_each_caller(
    code: str, line: int | None
) -> None:
    server = Server(Fate(status="failed", problems=[problem(code, line, "there is no m")]))
    async with running(server) as client:
        errors = await outcomes(client, "a", "b", "c")
    same_for_each(errors, BatchFailedError, code)
    for error in errors:
        assert isinstance(error, BatchFailedError)
        assert "there is no m" in str(error)
        assert error.body == {"code": code, "message": "there is no m", "param": None}
        assert error.batch_id == "batch-1"
        assert error.status == "failed"
    assert len(server.jobs) == 1


@pytest.mark.parametrize(
    "problems", [[], None, "text", [None, 3, "text", {}], [{"code": 7, "message": ["a"]}]]
)
async def test_a_batch_that_failed_without_saying_why(problems: Any) -> None:
    def change(batch: dict[str, Any], _: float) -> dict[str, Any]:
        return {**batch, "errors": problems if not isinstance(problems, list) else {"data": problems}}

    server = Server(Fate(status="failed", change=change))
    async with running(server) as client:
        same_for_each(await outcomes(client, "a", "b"), BatchFailedError)
    assert len(server.jobs) == 1


# --- a batch ends early -----------------------------------------------------------------------------------------


@cases({"missing": nothing, "in-the-error-file": erred("batch_expired", "it took too long")}, "rest")
async def test_what_an_expired_batch_has_answered_is_kept_and_the_rest_is_sent_again(rest: Any) -> None:
    ends = each({"a": answered, "b": at_first(rest), "c": answered, "d": at_first(rest)})
    server = Server(lambda number, _: Fate(DAY, "expired" if number == 1 else "completed", write=ends))
    async with running(server) as client:

        async def when(text: str) -> float:
            assert await ask(client, text) == text
            return anyio.current_time()

        a, b, c, d = await gathered(*(when(text) for text in "abcd"))
    assert DAY < a == c < 1.05 * DAY
    assert 2 * DAY < b == d < 2.1 * DAY
    assert [sorted(job.texts) for job in server.jobs] == [list("abcd"), list("bd")]
    assert set(server.bought.values()) == {1}


@cases({"missing": nothing, "in-the-error-file": erred("batch_expired", "it took too long")}, "rest")
async def test_a_request_that_always_expires_is_raised_in_the_end(rest: Any) -> None:
    server = Server(Fate(HOUR, "expired", write=rest))
    async with running(server) as client:
        errors = await outcomes(client, "a", "b")
    for error in errors:
        assert isinstance(error, BatchError)
        assert "expired" in f"{error} {error.code}"
        assert error.batch_id == server.jobs[-1].id
    assert 2 <= len(server.jobs) <= 10


@cases({"missing": nothing, "in-the-error-file": erred("batch_cancelled", "cancelled by somebody")}, "rest")
async def test_what_a_cancelled_batch_has_answered_is_kept_and_the_rest_raises(rest: Any) -> None:
    server = Server(Fate(HOUR, "cancelled", write=each({"b": rest, "d": rest})))
    async with running(server) as client:
        a, b, c, d = await outcomes(client, *"abcd")
    assert (a, c) == ("a", "c")
    for error in (b, d):
        assert isinstance(error, BatchError)
        assert "cancelled" in str(error)
    assert len(server.jobs) == 1


# --- results that are late --------------------------------------------------------------------------------------


async def test_a_batch_without_an_output_file_has_its_errors_read() -> None:
    server = Server(Fate(write=refused(400)))
    async with running(server) as client:
        same_for_each(await outcomes(client, "a", "b"), openai.BadRequestError, "a_code")
    assert server.describe(server.jobs[0])["output_file_id"] is None
    assert [call.name for call in server.of("content")] == [server.jobs[0].error_id]
    assert len(server.jobs) == 1


@pytest.mark.parametrize("value", [None, "", 7, ["output-of-batch-1"], {"id": "output-of-batch-1"}])
@pytest.mark.parametrize("seconds", [12, 120])
async def test_an_output_file_that_is_late_is_waited_for(value: Any, seconds: float) -> None:
    def change(batch: dict[str, Any], age: float) -> dict[str, Any]:
        return {**batch, "output_file_id": value} if age < seconds else batch

    server = Server(Fate(change=change, write=each({"b": refused(404)})))
    async with running(server) as client:
        a, b, c = await outcomes(client, *"abc")
    assert (a, c) == ("a", "c")
    assert isinstance(b, openai.NotFoundError)
    assert len(server.jobs) == 1


async def test_lines_that_are_late_are_waited_for() -> None:
    """The batch is completed before its file is complete."""
    server = Server(content=in_turn(breaks(1, cleanly=True), breaks(2, 20, cleanly=True)))
    async with running(server) as client:
        assert await outcomes(client, *"abc") == ["a", "b", "c"]
    assert len(server.jobs) == 1


async def test_an_output_file_that_never_comes_is_not_waited_for_for_ever() -> None:
    server = Server(Fate(change=lambda batch, _: {**batch, "output_file_id": None}))
    async with running(server) as client:
        errors = await outcomes(client, "a", "b")
        assert anyio.current_time() < DAY
    for error in errors:
        assert isinstance(error, BatchFailedError)
        assert error.status == "completed"
    assert len(server.jobs) <= 10


# --- download ---------------------------------------------------------------------------------------------------


@cases({**PASSING, "404": answers(404), "403": answers(403), "page": page(), "empty": answers(200, text="")})
@pytest.mark.parametrize("partial", [False, True])
async def test_a_download_that_fails_is_made_again(action: Action, *, partial: bool) -> None:
    server = Server(content=in_turn(*[action] * 5), partial=partial)
    async with running(server) as client:
        assert await outcomes(client, *"abc") == ["a", "b", "c"]
    assert len(server.jobs) == 1


async def test_downloads_go_on_for_hours_while_they_fail() -> None:
    server = Server(content=until(20 * HOUR, answers(500)))
    async with running(server) as client:
        assert await outcomes(client, *"abc") == ["a", "b", "c"]
    assert len(server.jobs) == 1


async def test_downloads_are_given_up_when_patience_is_at_its_end() -> None:
    server = Server(content=always(answers(500)))
    async with running(server, patience_seconds=HOUR) as client:
        same_for_each(await outcomes(client, "a", "b"), openai.InternalServerError)
        assert HOUR <= anyio.current_time() <= HOUR + 700
    assert len(server.jobs) == 1


@pytest.mark.parametrize("resumes", [True, False])
@pytest.mark.parametrize("cleanly", [False, True])
async def test_a_download_that_breaks_off_goes_on_until_all_is_read(*, resumes: bool, cleanly: bool) -> None:
    server = Server(
        content=in_turn(*(breaks(3, more, cleanly=cleanly) for more in (0, 1, 30))),
        partial=True,
        resumes=resumes,
    )
    texts = [f"<{n}>" for n in range(12)]
    async with running(server) as client:
        assert await outcomes(client, *texts) == texts
    assert len(server.jobs) == 1


async def test_a_download_that_breaks_off_resumes_at_its_line() -> None:
    turns = iter((breaks(3), breaks(4, 25), breaks(0, 7), usual, usual))
    server = Server(content=lambda call: next(turns) if "output" in call.name else usual, partial=True)
    texts = [f"<{n}>" for n in range(12)]
    async with running(server) as client:
        assert await outcomes(client, *texts) == texts
    asked = [
        call.request.url.params.get("skip", "0") for call in server.of("content") if "output" in call.name
    ]
    assert asked[:4] == ["0", "3", "7", "7"]
    assert len(server.jobs) == 1


async def test_callers_whose_lines_came_before_a_download_broke_off_have_their_answers() -> None:
    server = Server(content=in_turn(breaks(2), then=waits(100)))
    async with running(server) as client:

        async def when(text: str) -> float:
            assert await ask(client, text) == text
            return anyio.current_time()

        a, b, c = await gathered(*(when(text) for text in "abc"))
    assert a == b < 30
    assert c > 100


async def test_a_download_that_always_breaks_off_at_the_same_place_is_given_up() -> None:
    server = Server(content=always(breaks(2, 10)))
    async with running(server, patience_seconds=HOUR) as client:
        a, b, c = await outcomes(client, *"abc")
    assert (a, b) == ("a", "b")
    assert isinstance(c, (openai.APIConnectionError, httpx.TransportError))
    assert len(server.jobs) == 1


# --- errors in lines --------------------------------------------------------------------------------------------

KINDS: dict[int, Any] = {
    **REFUSED,
    404: openai.NotFoundError,
    408: openai.APIStatusError,
    409: openai.ConflictError,
    429: openai.RateLimitError,
    500: openai.InternalServerError,
    503: openai.InternalServerError,
    599: openai.InternalServerError,
}
MAY_PASS = [408, 409, 429, 500, 503, 599]


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("status", MAY_PASS)
async def test_an_error_that_may_pass_is_sent_again_up_to_max_retries(status: int, retries: int) -> None:
    server = Server(Fate(write=each({"bad": refused(status), "mends": at_first(refused(status), retries)})))
    async with running(server, max_retries=retries) as client:
        good, bad, mends = await outcomes(client, "good", "bad", "mends")
    assert (good, mends) == ("good", "mends")
    assert type(bad) is KINDS[status]
    assert bad.status_code == status
    assert bad.code == "a_code"
    assert bad.request_id
    assert [job.texts.count("bad") for job in server.jobs] == [1] * (retries + 1)
    assert [job.texts.count("good") for job in server.jobs] == [1] + [0] * retries


async def test_with_options_says_how_often_a_request_is_sent_again() -> None:
    server = Server(Fate(write=refused(429)))
    async with running(server) as client:
        copies = [client.with_options(max_retries=retries) for retries in (0, 1, 2)]
        errors = await gathered(*(ask(copy, f"<{n}>") for n, copy in enumerate([*copies, client])))
    assert [type(error) for error in errors] == [openai.RateLimitError] * 4
    seen = [sum(job.texts.count(f"<{n}>") for job in server.jobs) for n in range(4)]
    assert seen == [1, 2, 3, 3]  # the SDK's own default is 2
    assert server.sizes[0] == 4  # they share batches all the same


async def test_what_is_sent_again_waits_a_little_and_shares_batches() -> None:
    server = Server(Fate(write=at_first(refused(503), 2)))
    async with running(server) as client:
        texts = [f"<{n}>" for n in range(20)]
        assert await outcomes(client, *texts) == texts
    assert server.sizes == [20, 20, 20]
    assert all(gap > 5 for gap in apart([job.created for job in server.jobs]))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_another_error_is_raised_at_once(status: int) -> None:
    server = Server(Fate(write=each({"bad": refused(status, "a_code", "no, thank you")})))
    async with running(server) as client:
        good, bad = await outcomes(client, "good", "bad")
    assert good == "good"
    assert type(bad) is KINDS[status]
    assert (bad.status_code, bad.code) == (status, "a_code")
    assert "no, thank you" in str(bad)
    assert len(server.jobs) == 1


@pytest.mark.parametrize("code", ["some_code", None, "server_error"])
async def test_an_error_object_in_place_of_a_response_is_raised_at_once(code: str | None) -> None:
    server = Server(Fate(write=each({"bad": erred(code, "no, thank you")})))
    async with running(server) as client:
        good, bad = await outcomes(client, "good", "bad")
    assert good == "good"
    assert isinstance(bad, openai.APIError)
    assert bad.code == code
    assert "no, thank you" in str(bad)
    assert bad.body == {"code": code, "message": "no, thank you"}
    assert len(server.jobs) == 1


# --- lines that are none ----------------------------------------------------------------------------------------


def _line(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Line], bytes]:
    return lambda line: json.dumps(change(json.loads(answered(line)))).encode()


NO_ANSWERS: dict[str, Any] = {
    "missing": nothing,
    "cut": lambda line: answered(line)[:-9],
    "no-json": lambda _: b"<html>",
    "no-utf-8": lambda line: answered(line).replace(b"chat", b"\xff\xfe"),
    "null": lambda _: b"null",
    "number": lambda _: b"3",
    "list": lambda line: b"[" + answered(line) + b"]",
    "deep": lambda _: b"[" * 100_000,
    "no-custom-id": _line(lambda line: {**line, "custom_id": None}),
    "odd-custom-id": _line(lambda line: {**line, "custom_id": 7}),
    "no-response": _line(lambda line: {**line, "response": None}),
    "odd-response": _line(lambda line: {**line, "response": "fine"}),
    "status-0": lambda line: replied(line.custom_id, completion(line.text), 0),
    "status--1": lambda line: replied(line.custom_id, completion(line.text), -1),
    "status-700": lambda line: replied(line.custom_id, completion(line.text), 700),
    "status-1e30": lambda line: replied(line.custom_id, completion(line.text), 10**30),
    "status-text": lambda line: replied(line.custom_id, completion(line.text), "ok"),
    "status-null": lambda line: replied(line.custom_id, completion(line.text), None),
}


@cases(NO_ANSWERS, "odd")
async def test_a_line_that_answers_nobody_is_sent_again_and_disturbs_no_other(odd: Any) -> None:
    server = Server(Fate(write=each({"b": at_first(odd)})))
    async with running(server) as client:
        assert await outcomes(client, *"abc") == ["a", "b", "c"]
        assert anyio.current_time() < HOUR
    assert [sorted(job.texts) for job in server.jobs] == [["a", "b", "c"], ["b"]]


@cases(NO_ANSWERS, "odd")
async def test_a_line_that_never_answers_anybody_is_raised_in_the_end(odd: Any) -> None:
    server = Server(Fate(write=each({"b": odd})))
    async with running(server) as client:
        a, b, c = await outcomes(client, *"abc")
    assert (a, c) == ("a", "c")
    assert isinstance(b, BatchFailedError)
    assert b.status == "completed"
    assert server.sizes[0] == 3
    assert 2 <= len(server.jobs) <= 10
    assert set(server.sizes[1:]) == {1}


async def test_the_first_of_two_lines_wins() -> None:
    def double(line: Line) -> bytes:
        second = replied(line.custom_id, completion("another"))
        return answered(line) + b"\n" + second + b"\n" + refused(400)(line)  # type: ignore[operator] # it writes

    server = Server(Fate(write=each({"b": double})))
    async with running(server) as client:
        assert await outcomes(client, *"abc") == ["a", "b", "c"]
    assert len(server.jobs) == 1


async def test_lines_of_unknown_ids_are_logged_and_help_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="autobatcher")

    def strange(line: Line) -> bytes:
        return replied("somebody", completion("for somebody")) + b"\n" + answered(line)

    server = Server(Fate(write=each({"b": strange})))
    async with running(server) as client:
        assert await outcomes(client, *"abc") == ["a", "b", "c"]
    assert "unknown custom_id" in caplog.text
    assert "batch-1" in caplog.text
    assert len(server.jobs) == 1


async def test_blank_lines_and_other_line_breaks_are_of_no_matter() -> None:
    def blank(line: Line) -> bytes:
        return b"  \r\n" + answered(line).replace(b'"stop"', '"stop\u2028\x85"'.encode()) + b"\r\n \n"

    server = Server(Fate(write=blank))
    async with running(server) as client:
        assert await outcomes(client, *"abc") == ["a", "b", "c"]
    assert len(server.jobs) == 1


# --- answers that are none --------------------------------------------------------------------------------------

BODIES: dict[str, Any] = {
    "page": "<html>please log in</html>",
    "empty-object": {},
    "list": [1, 2],
    "null": None,
    "number": 3,
    "no-choices": {"id": "c", "object": "chat.completion", "choices": None},
    "odd-choices": {"id": 3, "choices": [{"message": "text"}], "usage": "much"},
    "error": {"error": {"message": "m", "code": "c"}},
    "odd-error": {"error": "text"},
    "an-embedding": {"object": "list", "data": [], "model": "e"},
}


@cases(BODIES, "body")
@pytest.mark.parametrize("status", [200, 400, 422])
async def test_an_odd_answer_is_what_the_sdk_makes_of_it(body: Any, status: int) -> None:
    as_page = isinstance(body, str)
    content = body.encode() if as_page else json.dumps(body).encode()
    headers = {"content-type": "text/html" if as_page else "application/json"}

    def realtime(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=content, headers=headers)

    async def asked(client: openai.AsyncOpenAI) -> Any:
        return await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a"}])

    def described(outcome: Any) -> Any:
        if isinstance(outcome, openai.APIStatusError):
            return type(outcome), outcome.status_code, outcome.body, outcome.message
        if isinstance(outcome, Exception):
            return type(outcome), str(outcome)
        if isinstance(outcome, pydantic.BaseModel):
            return type(outcome), outcome.model_dump(warnings=False)
        return type(outcome), outcome

    server = Server(Fate(write=lambda line: replied(line.custom_id, body, status)))
    http_client = httpx.AsyncClient(transport=httpx.MockTransport(realtime))
    # Before the virtual clock has anything to jump to: the SDK's first call takes real time.
    async with openai.AsyncOpenAI(
        api_key="k", base_url=BASE_URL, http_client=http_client, max_retries=0
    ) as sdk:
        (theirs,) = await gathered(asked(sdk))
    async with running(server) as client:
        (ours,) = await gathered(asked(client))
    assert described(ours) == described(theirs)


# --- callers leave ----------------------------------------------------------------------------------------------


async def leaving(client: BatchOpenAI, seconds: float, *texts: str) -> None:
    """Calls whose callers leave at a time of the clock."""
    with anyio.move_on_after(seconds - anyio.current_time()):
        await outcomes(client, *texts)
        raise AssertionError("they were answered before")


async def test_a_request_whose_caller_leaves_while_its_window_is_open_is_not_sent() -> None:
    server = Server()
    async with running(server, batch_window_seconds=10) as client:
        stayed, _ = await gathered(ask(client, "stays"), leaving(client, 5, "leaves", "too"))
        assert stayed == "stays"
    assert [line["body"]["messages"][0]["content"] for line in server.files["file-1"]] == ["stays"]


async def test_nothing_is_sent_when_all_callers_leave_while_the_window_is_open() -> None:
    server = Server()
    async with running(server, batch_window_seconds=10) as client:
        await leaving(client, 5, "a", "b")
        await anyio.sleep(1000)
        assert not server.of("upload")
        assert await ask(client, "c") == "c"
    assert server.sizes == [1]


async def test_a_request_whose_caller_leaves_while_it_waits_its_turn_is_not_sent() -> None:
    server = Server(Fate(after=HOUR))
    async with running(server, max_active_batches=1) as client:

        async def later(seconds: float, text: str) -> str:
            await anyio.sleep(seconds)
            return await ask(client, text)

        async def left(seconds: float, *texts: str) -> None:
            await anyio.sleep(seconds)
            await leaving(client, 1000, *texts)

        results = await gathered(
            ask(client, "first"),
            later(100, "stays"),
            left(100, "leaves", "too"),
            left(200, "all", "of these"),
        )
    assert results[:2] == ["first", "stays"]
    assert [job.texts for job in server.jobs] == [["first"], ["stays"]]
    assert [len(lines) for lines in server.files.values()] == [1, 1]


async def test_no_batch_is_made_when_all_callers_leave_during_the_upload() -> None:
    server = Server(upload=in_turn(waits(100)))
    async with running(server) as client:
        await leaving(client, 50, "a", "b")
        await anyio.sleep(1000)
        assert not server.of("create")
        assert await ask(client, "c") == "c"
    assert server.sizes == [1]


async def test_no_upload_is_tried_again_for_callers_that_have_left() -> None:
    server = Server(upload=until(1000, answers(503)))
    async with running(server) as client:
        stayed, *_ = await gathered(
            ask(client, "stays"), leaving(client, 500, "leaves"), leaving(client, 500, "too")
        )
        assert stayed == "stays"
        (lines,) = server.files.values()
        assert len(lines) == 1
        uploads = len(server.of("upload"))
        server.scripts["upload"] = always(answers(503))
        await leaving(client, anyio.current_time() + 500, "a", "b")
        tried = len(server.of("upload"))
        assert tried > uploads
        await anyio.sleep(DAY)
        assert len(server.of("upload")) <= tried + 1
    assert server.bought == {"stays": 1}


async def test_those_that_stay_are_answered_when_others_leave_during_the_upload() -> None:
    server = Server(upload=in_turn(waits(100)))
    async with running(server) as client:
        stayed, _ = await gathered(ask(client, "stays"), leaving(client, 50, "a", "b"))
        assert stayed == "stays"
        assert not server.of("cancel")
    assert len(server.jobs) == 1


@cases(
    {
        "answered": waits(100),
        "lost-after": waits(100, unseen(loses(httpx.ReadError))),
        "500-after": waits(100, unseen(answers(500))),
    }
)
async def test_a_batch_is_cancelled_when_all_callers_leave_during_its_creation(action: Action) -> None:
    server = Server(Fate(after=DAY), create=in_turn(action))
    async with running(server) as client:
        await leaving(client, 50, "a", "b")
        with anyio.fail_after(1000):
            await server.arrival("cancel")
        assert server.of("cancel")[0].name == "batch-1"
        assert await ask(client, "c") == "c"
    assert [job.cancelled for job in server.jobs] == [True, False]


async def test_a_creation_that_was_lost_is_not_sent_again_when_all_callers_have_left() -> None:
    server = Server(create=in_turn(waits(100, loses(httpx.ReadError))))
    async with running(server) as client:
        await leaving(client, 50, "a", "b")
        await anyio.sleep(DAY)
        assert len(server.of("create")) == 1
        assert len(server.of("list")) < 30
        assert not server.of("cancel")


async def test_a_batch_is_cancelled_when_all_its_callers_have_left() -> None:
    server = Server(Fate(after=DAY))
    async with running(server) as client:
        await gathered(leaving(client, 1000, "a"), leaving(client, 2000, "b"))
        with anyio.fail_after(1000):
            await server.arrival("cancel")
        polls = len(server.of("retrieve"))
        await anyio.sleep(2 * DAY)
        assert len(server.of("retrieve")) <= polls + 1
    (cancel,) = server.of("cancel")
    assert cancel.name == "batch-1"
    assert 2000 <= cancel.at < 3000
    assert server.jobs[0].cancelled


async def test_a_batch_goes_on_while_one_caller_is_left() -> None:
    server = Server(Fate(after=DAY))
    async with running(server) as client:
        stayed, _ = await gathered(ask(client, "stays"), leaving(client, 1000, "a", "b"))
        assert stayed == "stays"
    assert not server.of("cancel")


async def test_a_batch_is_cancelled_when_those_who_are_left_leave_and_others_were_answered() -> None:
    server = Server(Fate(after=DAY, view=lambda lines, age: lines[: int(age > 100)]), partial=True)
    async with running(server) as client:
        first, _ = await gathered(ask(client, "answered"), leaving(client, 5000, "leaves"))
        assert first == "answered"
        with anyio.fail_after(1000):
            await server.arrival("cancel")
    assert server.jobs[0].cancelled


@pytest.mark.parametrize("kind", ["retrieve", "content"])
async def test_a_batch_is_cancelled_when_all_callers_leave_during_a_poll_or_a_download(kind: str) -> None:
    server = Server(Fate(after=DAY), partial=True, **at(kind, in_turn(waits(300))))
    async with running(server) as client:
        await leaving(client, 100, "a", "b")
        with anyio.fail_after(1000):
            await server.arrival("cancel")
    assert server.jobs[0].cancelled


@cases(PASSING)
async def test_a_cancellation_that_fails_is_tried_again(action: Action) -> None:
    server = Server(Fate(after=DAY), cancel=in_turn(action))
    async with running(server) as client:
        await leaving(client, 100, "a")
        await anyio.sleep(1000)
    assert server.jobs[0].cancelled == (action is not PASSING["409"])  # it says that the batch has ended


@cases({"503": answers(503), "404": answers(404), "page": page(), "403": answers(403), "lost": loses()})
async def test_a_cancellation_is_not_tried_for_ever(action: Action) -> None:
    server = Server(Fate(after=DAY), cancel=always(action))
    async with running(server) as client:
        await leaving(client, 100, "a")
        await anyio.sleep(2 * DAY)
        tried = len(server.of("cancel"))
        assert tried <= DAY / 200
        await anyio.sleep(8 * DAY)
        assert len(server.of("cancel")) == tried
        assert await ask(client, "b") == "b"


async def test_a_caller_that_leaves_does_not_disturb_a_batch_that_has_ended() -> None:
    server = Server(content=in_turn(waits(100)))
    async with running(server) as client:
        await leaving(client, 60, "a", "b")
        await anyio.sleep(1000)
        assert not server.of("cancel")
        assert await ask(client, "c") == "c"


async def test_a_time_limit_of_the_caller_holds_at_every_step() -> None:
    for kind in ("upload", "create", "retrieve", "content"):
        server = Server(**at(kind, always(waits(500))))
        async with running(server) as client:
            started = anyio.current_time()
            with pytest.raises(TimeoutError), anyio.fail_after(100):
                await ask(client, "a")
            assert anyio.current_time() == started + 100


# --- the client is closed ---------------------------------------------------------------------------------------


async def closing(server: Server, at: float, **options: Any) -> tuple[list[Any], float]:
    """What callers get when the client is closed at a time of the clock, and how long closing took."""
    took = 0.0
    async with running(server, **options) as client:

        async def close() -> None:
            nonlocal took
            await anyio.sleep(at)
            started = anyio.current_time()
            await client.close()
            took = anyio.current_time() - started

        *results, _ = await gathered(ask(client, "a"), ask(client, "b"), close())
        with pytest.raises(ClientClosedError):
            await ask(client, "late")
        before = len(server.calls)
        await anyio.sleep(DAY)
        assert len(server.calls) == before  # nothing of it is left behind
    return results, took


@pytest.mark.parametrize("step", ["window", "upload", "create", "retrieve", "content"])
async def test_closing_settles_every_caller_and_leaves_batches_at_the_server(step: str) -> None:
    server = Server(**at(step, always(waits(1000))))
    options = {"batch_window_seconds": 500} if step == "window" else {}
    errors, took = await closing(server, 100, **options)
    same_for_each(errors, ClientClosedError)
    assert took == 0
    assert not server.of("cancel")
    if step in ("retrieve", "content"):
        assert {error.batch_id for error in errors} == {"batch-1"}
        assert "batch-1" in str(errors[0])


async def test_closing_settles_those_who_wait_to_be_sent_again() -> None:
    server = Server(upload=always(answers(503, headers={"retry-after": "1000"})))
    errors, _ = await closing(server, 100)
    same_for_each(errors, ClientClosedError)


async def test_closing_cancels_batches_when_it_is_to() -> None:
    server = Server(Fate(after=DAY))
    errors, took = await closing(server, 100, cancel_active_batches_on_close=True)
    same_for_each(errors, ClientClosedError)
    assert [call.name for call in server.of("cancel")] == ["batch-1"]
    assert server.jobs[0].cancelled
    assert took < 30


@cases(
    {
        "answered": waits(110),
        "lost-after": waits(110, unseen(loses(httpx.ReadError))),
        "500-after": waits(110, unseen(answers(500))),
    }
)
async def test_closing_cancels_what_is_being_created_when_it_is_to(action: Action) -> None:
    server = Server(Fate(after=DAY), create=in_turn(action))
    errors, took = await closing(server, 100, cancel_active_batches_on_close=True)
    same_for_each(errors, ClientClosedError)
    assert [job.cancelled for job in server.jobs] == [True]
    assert took <= 40


async def test_closing_cancels_what_is_being_looked_for_when_it_is_to() -> None:
    server = Server(
        Fate(after=DAY), create=in_turn(unseen(loses(httpx.ReadError))), list=until(105, answers(503))
    )
    errors, took = await closing(server, 100, cancel_active_batches_on_close=True)
    same_for_each(errors, ClientClosedError)
    assert [job.cancelled for job in server.jobs] == [True]
    assert took <= 40


@pytest.mark.parametrize("step", ["retrieve", "content", "cancel"])
async def test_closing_takes_half_a_minute_at_most(step: str) -> None:
    server = Server(Fate(after=DAY), partial=True, **at(step, always(waits(10_000))))
    errors, took = await closing(server, 100, cancel_active_batches_on_close=True, timeout=DAY)
    same_for_each(errors, ClientClosedError)
    assert took <= 30


async def test_closing_with_nothing_at_the_server_has_nothing_to_cancel() -> None:
    for options in ({"batch_window_seconds": 500}, {}):
        server = Server(upload=always(waits(1000)))
        errors, took = await closing(server, 100, cancel_active_batches_on_close=True, **options)
        same_for_each(errors, ClientClosedError)
        assert took == 0
        assert not server.of("create")


async def test_callers_learn_of_the_closing_at_once_though_cancelling_takes_its_time() -> None:
    server = Server(Fate(after=DAY), cancel=always(waits(20)))
    settled: list[float] = []
    async with running(server, cancel_active_batches_on_close=True) as client:

        async def caller() -> None:
            with pytest.raises(ClientClosedError):
                await ask(client, "a")
            settled.append(anyio.current_time())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
            await anyio.sleep(100)
            started = anyio.current_time()
            await client.close()
            ended = anyio.current_time()
    assert settled == [started]
    assert ended - started >= 20
