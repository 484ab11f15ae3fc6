"""How often batches are looked at, and answers that are there before their batch has ended."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from autobatcher import BatchOpenAI
from autobatcher._http import httpx
from autobatcher.local import LocalBatchAPI, LocalConfig
from tests.client.scripted import (
    BASE_URL,
    DAY,
    HOUR,
    Action,
    Call,
    Fate,
    Server,
    always,
    answers,
    ask,
    at,
    at_first,
    breaks,
    each,
    gathered,
    in_turn,
    loses,
    outcomes,
    page,
    refused,
    running,
    usual,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


async def timed(call: Awaitable[str]) -> tuple[str, float]:
    """The answer, and when it came."""
    return await call, anyio.current_time()


def every(seconds: float) -> Callable[[list[bytes], float], list[bytes]]:
    """One more line is there each time so many seconds have passed."""
    return lambda lines, age: lines[: int(age // seconds)]


def skips(server: Server) -> list[int]:
    return [
        int(call.request.url.params.get("skip", 0)) for call in server.of("content") if "output" in call.name
    ]


# --- polls ------------------------------------------------------------------------------------------------------


def latest(server: Server) -> float:
    """By how many seconds a poll came later than it may; not above 0 if none did."""
    created = server.jobs[0].created
    times = [created, *server.times("retrieve")]
    return max(
        later - earlier - max(60.0, 0.02 * (later - created)) for earlier, later in itertools.pairwise(times)
    )


async def test_at_most_400_polls_in_24_hours_and_never_late() -> None:
    server = Server(Fate(after=DAY))
    async with running(server) as client:
        _, ended = await timed(ask(client, "a"))
    assert DAY <= ended <= DAY * 1.02
    assert 200 <= len(server.of("retrieve")) <= 400
    assert latest(server) <= 0


async def test_polls_are_quick_at_the_start() -> None:
    server = Server(Fate(after=60))
    async with running(server) as client:
        _, ended = await timed(ask(client, "a"))
    times = server.times("retrieve")
    assert times[0] - server.jobs[0].created <= 5
    assert len([time for time in times if time - server.jobs[0].created <= 60]) >= 8
    assert ended - server.jobs[0].created <= 66


@pytest.mark.parametrize("seconds", [0.5, 30, 120])
async def test_the_first_polls_come_at_the_interval_that_was_asked_for(seconds: float) -> None:
    server = Server(Fate(after=seconds * 3.5))
    async with running(server, poll_interval_seconds=seconds) as client:
        await ask(client, "a")
    created = server.jobs[0].created
    assert [round((time - created) / seconds, 3) for time in server.times("retrieve")] == [1, 2, 3, 4]


FAILING: dict[str, Action] = {
    "429-for-ever": answers(429, headers={"retry-after": "1e9"}),
    "503-for-a-day": answers(503, headers={"retry-after": "86400"}),
    "500-milliseconds": answers(500, headers={"retry-after-ms": "1e12"}),
    "404": answers(404, headers={"retry-after": "1e9"}),
    "lost": loses(),
    "page": page(),
}


@pytest.mark.parametrize("action", FAILING.values(), ids=FAILING.keys())
async def test_polls_that_fail_are_neither_late_nor_too_many(action: Action) -> None:
    def script(call: Call) -> Action:
        return action if call.number % 3 else usual

    server = Server(Fate(after=DAY), retrieve=script)
    async with running(server) as client:
        _, ended = await timed(ask(client, "a"))
    assert ended <= DAY * 1.05
    assert len(server.of("retrieve")) <= 400
    assert latest(server) <= 0.001


@pytest.mark.parametrize("kind", ["retrieve", "content"])
async def test_a_server_that_asks_for_too_much_time_is_asked_again_all_the_same(kind: str) -> None:
    def script(call: Call) -> Action:
        return answers(429, headers={"retry-after": "1e9"}) if call.at < 5 * HOUR else usual

    server = Server(**at(kind, script))
    async with running(server) as client:
        _, ended = await timed(ask(client, "a"))
    assert 5 * HOUR <= ended <= 5 * HOUR * 1.03
    assert latest(server) <= 0.001


# --- partial results --------------------------------------------------------------------------------------------


async def test_each_caller_has_its_answer_at_the_next_poll_after_it_exists() -> None:
    server = Server(Fate(after=1050, view=every(100)), partial=True)
    texts = [f"<{n}>" for n in range(10)]
    async with running(server) as client:
        results = await gathered(*(timed(ask(client, text)) for text in texts))
    created, polls = server.jobs[0].created, server.times("retrieve")
    for n, (text, when) in enumerate(results):
        assert text == texts[n]
        assert when == min(poll for poll in polls if poll >= created + (n + 1) * 100)
    assert len(server.jobs) == 1


async def test_only_new_lines_are_fetched_and_each_line_at_most_twice() -> None:
    server = Server(Fate(after=DAY, view=every(2000), write=each({"<7>": refused(400)})), partial=True)
    texts = [f"<{n}>" for n in range(40)]
    async with running(server) as client:
        results = await outcomes(client, *texts)
    assert [result for result in results if isinstance(result, str)] == [
        text for text in texts if text != "<7>"
    ]
    assert max(server.served.values()) <= 2
    asked = skips(server)
    assert asked[:-1] == sorted(asked[:-1])
    assert len(set(asked)) >= 20


async def test_a_last_full_read_finds_the_lines_that_appeared_out_of_order() -> None:
    """Lines that turn up before those that were read already are not seen by who asks for new ones only."""

    def view(lines: list[bytes], age: float) -> list[bytes]:
        shown = [*lines[1::2], *lines[::2]][: int(age // 100)]
        return [line for line in lines if line in shown]

    server = Server(Fate(after=1050, view=view), partial=True)
    texts = [f"<{n}>" for n in range(10)]
    async with running(server) as client:
        results = await gathered(*(timed(ask(client, text)) for text in texts))
    assert [text for text, _ in results] == texts
    assert len(server.jobs) == 1
    assert skips(server)[-1] == 0
    end = min(time for time in server.times("retrieve") if time >= server.jobs[0].created + 1050)
    assert max(when for _, when in results) == end
    early = [text for text, when in results if when < 1000]
    assert set(texts[1::2]) <= set(early) < set(texts)


async def test_a_line_that_was_read_half_is_read_again() -> None:
    def view(lines: list[bytes], age: float) -> list[bytes]:
        whole, half = divmod(int(age // 50), 2)
        return [*lines[:whole], lines[whole][:30]] if half and whole < len(lines) else lines[:whole]

    server = Server(Fate(after=1050, view=view), partial=True)
    texts = [f"<{n}>" for n in range(10)]
    async with running(server) as client:
        assert await outcomes(client, *texts) == texts
    assert len(server.jobs) == 1


async def test_lines_are_downloaded_twice_at_most_from_a_server_that_cannot_skip() -> None:
    server = Server(Fate(after=HOUR, view=every(60)), partial=True, resumes=False)
    texts = [f"<{n}>" for n in range(30)]
    async with running(server) as client:
        assert await outcomes(client, *texts) == texts
    assert max(server.served.values()) <= 2
    assert len(server.jobs) == 1


async def test_a_server_that_says_it_can_skip_and_does_not_gives_each_its_own_answer() -> None:
    class Liar(Server):
        def headers(self, call: Call) -> dict[str, str]:
            return {"x-incomplete": "true"}

    server = Liar(Fate(after=1050, view=every(100)), partial=True, resumes=False)
    texts = [f"<{n}>" for n in range(10)]
    async with running(server) as client:
        assert await outcomes(client, *texts) == texts
    assert len(server.jobs) == 1


async def test_a_server_that_refuses_to_skip_is_read_from_the_start() -> None:
    def script(call: Call) -> Action:
        return answers(400) if call.request.url.params.get("skip") else usual

    server = Server(Fate(after=1050, view=every(100)), partial=True, content=script)
    texts = [f"<{n}>" for n in range(10)]
    async with running(server) as client:
        assert await outcomes(client, *texts) == texts
    assert len(server.jobs) == 1


async def test_errors_come_early_too_and_go_out_again_before_their_batch_has_ended() -> None:
    writer = each({"bad": refused(422), "again": at_first(refused(503))})
    server = Server(
        lambda number, _: Fate(after=DAY if number == 1 else 60, view=lambda lines, _: lines, write=writer),
        partial=True,
    )
    async with running(server) as client:
        (good, bad, again) = await gathered(*(timed(ask(client, text)) for text in ("good", "bad", "again")))
        assert anyio.current_time() < HOUR
    assert good[0] == "good"
    assert type(bad).__name__ == "UnprocessableEntityError"
    assert again[0] == "again"
    assert [job.texts for job in server.jobs] == [["good", "bad", "again"], ["again"]]
    assert not server.of("cancel")  # all have been answered: it is let run


@pytest.mark.parametrize("status", ["expired", "cancelled"])
async def test_what_was_answered_early_stays_answered_when_the_batch_ends_early(status: str) -> None:
    ends = each({"<9>": at_first(lambda _line: None)})
    server = Server(
        lambda number, _: Fate(1050, status if number == 1 else "completed", write=ends, view=every(100)),
        partial=True,
    )
    texts = [f"<{n}>" for n in range(10)]
    async with running(server) as client:
        results = await outcomes(client, *texts)
    assert results[:9] == texts[:9]
    if status == "expired":
        assert results[9] == "<9>"
        assert server.sizes == [10, 1]
    else:
        assert "cancelled" in str(results[9])
        assert server.sizes == [10]


@pytest.mark.parametrize("resumes", [True, False])
async def test_early_downloads_that_break_off_lose_nothing(*, resumes: bool) -> None:
    turns = itertools.cycle((breaks(1, 20), usual))

    def script(call: Call) -> Action:
        return next(turns) if "output" in call.name else usual

    server = Server(Fate(after=1050, view=every(100)), partial=True, resumes=resumes, content=script)
    texts = [f"<{n}>" for n in range(10)]
    async with running(server) as client:
        assert await outcomes(client, *texts) == texts
    assert len(server.jobs) == 1


async def test_early_downloads_that_fail_do_not_keep_the_end_from_being_seen() -> None:
    server = Server(Fate(after=HOUR, view=every(60)), partial=True, content=always(answers(500)))
    async with running(server) as client:

        async def mend() -> None:
            await anyio.sleep(2 * HOUR)
            server.scripts["content"] = in_turn()

        *results, _ = await gathered(ask(client, "a"), ask(client, "b"), mend())
    assert results == ["a", "b"]
    assert len(server.jobs) == 1


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_answers_of_the_embedded_server_come_as_they_are_made(concurrency: int) -> None:
    config = LocalConfig(
        clock=lambda: 1_700_000_000 + anyio.current_time(),
        partial_results=True,
        latency_seconds=600,
        concurrency=concurrency,
    )
    polls: list[float] = []
    fetched = 0

    async def note(response: httpx.Response) -> None:
        nonlocal fetched
        path = response.request.url.path
        if path.startswith("/v1/batches/"):
            polls.append(anyio.current_time())
        if path.endswith("/content"):
            await response.aread()
            fetched += response.content.count(b"\n")

    async with LocalBatchAPI(config) as api:
        http_client = api.http_client()
        http_client.event_hooks = {"response": [note]}
        async with BatchOpenAI(api_key="k", base_url=BASE_URL, http_client=http_client) as client:
            await client.models.list()
            results = await gathered(*(timed(ask(client, f"<{n}>")) for n in range(9)))
    for n, (text, _) in enumerate(results):
        assert f"<{n}>" in text
    times = sorted(when for _, when in results)
    for n, when in enumerate(times):
        exists = 600 * (n // concurrency + 1)
        later = [poll for poll in polls if poll >= exists]
        assert when in later[:2]  # it is there a moment after the window and the upload
    assert len(set(times)) == 9 / concurrency
    assert fetched <= 2 * 9
    assert sum(api.executed.values()) == 9


async def test_the_last_read_disturbs_nobody_who_was_answered_early() -> None:
    """The final file says something else than the early one did: the first answer stands."""
    server = Server(Fate(after=1050, view=every(100)), partial=True)

    async def lie(server: Server, call: Call) -> httpx.Response:
        response = server.usual(call)
        return httpx.Response(200, content=response.content.replace(b"<", b"!"), headers=response.headers)

    server.scripts["content"] = lambda call: lie if call.at > 1050 else usual
    async with running(server) as client:
        assert await outcomes(client, *(f"<{n}>" for n in range(10))) == [f"<{n}>" for n in range(10)]
