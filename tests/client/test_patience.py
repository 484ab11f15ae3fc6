"""What the client does not take at its word, and where its patience with it ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import anyio
import openai
import pytest

from autobatcher import BatchFailedError, ClientClosedError, RequestFailedError
from autobatcher._http import httpx
from tests.client.scripted import (
    DAY,
    HOUR,
    Action,
    Call,
    Fate,
    Job,
    Pieces,
    Script,
    Server,
    always,
    answered,
    answers,
    ask,
    at,
    changes,
    each,
    gathered,
    in_turn,
    loses,
    outcomes,
    page,
    problem,
    refused,
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


def of(part: str, action: Action) -> Script:
    """For the calls about what has this in its id."""
    return lambda call: action if part in call.name else usual


# --- result files ------------------------------------------------------------------------------------------------

NO_FILE: dict[str, Action] = {
    "page": page(),
    "error": answers(200, {"error": {"message": "Try again later."}}),
    "500": answers(500),
    "404": answers(404),
}


@pytest.mark.parametrize("action", NO_FILE.values(), ids=NO_FILE.keys())
async def test_what_is_there_in_place_of_a_result_file_is_waited_out(action: Action) -> None:
    server = Server(content=until(800, action))
    async with running(server) as client:
        assert await outcomes(client, *"abc") == [*"abc"]
    assert server.bought == dict.fromkeys("abc", 1)


async def test_a_page_in_place_of_one_file_is_waited_out_though_the_other_is_there() -> None:
    write = each({"b": refused(400)})
    server = Server(Fate(write=write), content=lambda call: until(800, of("output", page())(call))(call))
    async with running(server) as client:
        a, b = await outcomes(client, *"ab")
    assert a == "a"
    assert isinstance(b, openai.BadRequestError)
    assert len(server.jobs) == 1


async def test_what_always_stands_in_place_of_result_files_is_not_bought_for_ever() -> None:
    server = Server(content=always(page()))
    async with running(server) as client:
        results = await outcomes(client, *"abc")
    assert all(isinstance(result, BatchFailedError) for result in results)
    assert len(server.jobs) == 6


@pytest.mark.parametrize("action", [answers(500), loses(httpx.ReadError)], ids=["500", "lost"])
@pytest.mark.parametrize("part", ["output", "errors"])
async def test_a_file_that_cannot_be_read_keeps_nobody_from_the_other(part: str, action: Action) -> None:
    server = Server(
        Fate(write=each({"b": refused(400)})), content=lambda call: until(HOUR, of(part, action)(call))(call)
    )
    times: dict[str, float] = {}
    async with running(server) as client:

        async def when(text: str) -> None:
            try:
                await ask(client, text)
            finally:
                times[text] = anyio.current_time()

        await gathered(when("a"), when("b"))
    late, early = ("a", "b") if part == "output" else ("b", "a")
    assert times[early] < 30
    assert HOUR <= times[late] <= HOUR + 600
    assert len(server.jobs) == 1


# --- creations ---------------------------------------------------------------------------------------------------


async def test_creations_that_nobody_understands_end_with_an_error() -> None:
    server = Server(create=always(page()))
    async with running(server) as client:
        started = anyio.current_time()
        a, b = await outcomes(client, *"ab")
        took = anyio.current_time() - started
    assert isinstance(a, openai.OpenAIError)
    assert type(b) is type(a)
    assert took < HOUR
    assert len(server.of("create")) == 5


async def test_creations_that_fail_for_a_day_are_not_repeated_without_pause() -> None:
    server = Server(create=always(answers(501)))
    async with running(server) as client:
        results = await outcomes(client, *"ab")
    assert all(isinstance(result, openai.InternalServerError) for result in results)
    assert len(server.of("create")) < DAY / 300
    assert len(server.of("list")) < 10 * len(server.of("create"))


def without_pages(batches: Any) -> Any:
    return {"object": "list", "data": batches["data"]}


async def test_a_list_of_a_server_that_knows_no_pages() -> None:
    async def whole(server: Server, call: Call) -> httpx.Response:
        bare = httpx.Request("GET", call.request.url.copy_with(query=None))
        return await changes(without_pages)(server, Call("list", call.number, call.at, bare))

    server = Server(Fate(after=HOUR), create=in_turn(loses(httpx.ReadError)), list=always(whole))
    server.foreign = ["another"]
    async with running(server) as client:
        assert await outcomes(client, *"ab") == [*"ab"]
    assert len(server.jobs) == 1


# --- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", range(2, 7))
async def test_a_key_that_cannot_be_had_for_a_moment(fails_at: int) -> None:
    asked = itertools.count(1)

    async def key() -> str:
        if next(asked) == fails_at:
            raise RuntimeError("the vault is sealed")
        return "k"

    server = Server(Fate(after=60))
    async with running(server, api_key=key) as client:
        assert await outcomes(client, *"ab") == [*"ab"]
    assert next(asked) > fails_at
    assert len(server.jobs) == 1


async def test_a_key_that_can_never_be_had_is_what_callers_are_told() -> None:
    asked = itertools.count()

    async def key() -> str:
        if next(asked):
            raise RuntimeError("the vault is sealed")
        return "k"

    async with running(Server(), api_key=key) as client:
        errors = await outcomes(client, *"ab")
        assert anyio.current_time() < HOUR
    assert [str(error) for error in errors] == ["the vault is sealed"] * 2
    assert errors[0] is not errors[1]


# --- statuses ----------------------------------------------------------------------------------------------------

SPELLINGS: dict[str, Callable[[str], str]] = {"upper": str.upper, "title": str.title}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS.keys())
async def test_a_status_may_be_spelt_in_any_case(spelling: Callable[[str], str]) -> None:
    def change(batch: dict[str, Any], _age: float) -> dict[str, Any]:
        return {**batch, "status": spelling(batch["status"])}

    fates = {
        1: Fate(after=60, status="failed", problems=[problem("bad", 1)], change=change),
        2: Fate(after=60, write=each({"c": lambda _: None}), status="expired", change=change),
        3: Fate(after=60, change=change),
    }
    server = Server(lambda number, _job: fates[number])
    async with running(server) as client:
        a, b, c = await outcomes(client, *"abc")
    assert isinstance(a, RequestFailedError)
    assert (b, c) == ("b", "c")
    assert server.sizes == [3, 2, 1]


async def test_canceled_is_cancelled() -> None:
    def change(batch: dict[str, Any], _age: float) -> dict[str, Any]:
        return {**batch, "status": batch["status"].replace("cancelled", "canceled")}

    server = Server(Fate(after=60, status="cancelled", write=each({"b": lambda _: None}), change=change))
    async with running(server) as client:
        a, b = await outcomes(client, *"ab")
    assert a == "a"
    assert isinstance(b, BatchFailedError)
    assert len(server.jobs) == 1


# --- lines that are named one at a time --------------------------------------------------------------------------


async def test_a_server_that_names_one_line_at_a_time_is_given_time() -> None:
    def fate(_number: int, job: Job) -> Fate:
        bad = next((n for n, text in enumerate(job.texts, 1) if text.startswith("bad")), None)
        if bad is None:
            return Fate()
        return Fate(status="failed", problems=[problem("bad", bad)])

    server = Server(fate)
    texts = [f"bad {n}" for n in range(12)] + ["good"]
    async with running(server) as client:
        results = await outcomes(client, *texts)
    assert results[-1] == "good"
    assert all(isinstance(result, RequestFailedError) for result in results[:-1])
    assert server.sizes == list(range(13, 0, -1))
    pauses = [later - earlier for earlier, later in itertools.pairwise(server.times("create"))]
    assert pauses[0] < 10
    assert min(pauses[-2:]) > 300


# --- polls, and closing while they hang --------------------------------------------------------------------------


async def test_an_answer_to_a_poll_that_trickles_in_is_given_up() -> None:
    async def trickles(_server: Server, _call: Call) -> httpx.Response:
        return httpx.Response(200, stream=Pieces(itertools.repeat(b" "), pause=20))

    server = Server(retrieve=in_turn(trickles))
    async with running(server) as client:
        assert await outcomes(client, *"ab") == [*"ab"]
        assert anyio.current_time() < 120

    server = Server(retrieve=always(trickles))
    async with running(server, patience_seconds=HOUR) as client:
        (error,) = await outcomes(client, "a")
    assert isinstance(error, openai.APITimeoutError)


@pytest.mark.parametrize("step", ["retrieve", "content"])
async def test_closing_cancels_at_once_what_hangs(step: str) -> None:
    server = Server(Fate(after=DAY), partial=True, **at(step, always(waits(HOUR))))
    async with running(server, cancel_active_batches_on_close=True, timeout=DAY) as client:

        async def close() -> None:
            await anyio.sleep(100)
            await client.close()
            assert anyio.current_time() - 100 < 5

        *errors, _ = await gathered(ask(client, "a"), ask(client, "b", "other"), close())
    assert all(isinstance(error, ClientClosedError) for error in errors)
    assert [job.cancelled for job in server.jobs] == [True, True]


async def test_copies_are_closed_at_one_time(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(Fate(after=DAY), cancel=always(waits(DAY)))
    async with running(server, cancel_active_batches_on_close=True, timeout=DAY) as client:
        copies = [client.copy(default_headers={"x-of": f"{n}"}) for n in range(4)]
        took = 0.0

        async def close() -> None:
            nonlocal took
            await anyio.sleep(100)
            await client.close()
            took = anyio.current_time() - 100

        await gathered(*(ask(copy, "a") for copy in copies), close())
    assert took <= 31
    told = [
        record.getMessage() for record in caplog.records if "could not be cancelled" in record.getMessage()
    ]
    assert sorted(message.split(":")[0] for message in told) == [f"batch batch-{n}" for n in range(1, 5)]


async def test_it_is_told_when_there_may_be_a_batch_that_nobody_found(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(create=always(unseen(loses(httpx.ReadError))), list=always(answers(403)))
    async with running(server) as client:
        (error,) = await outcomes(client, "a")
    assert isinstance(error, openai.APIConnectionError)
    assert "uncertain: there may be one of file-1" in caplog.text


async def test_the_usual_goes_as_usual() -> None:
    """The scripts of this module are what makes the difference."""
    server = Server(Fate(after=60, write=answered))
    async with running(server) as client:
        assert await outcomes(client, *"abc") == [*"abc"]
    assert len(server.calls) < 30
