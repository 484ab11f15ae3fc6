"""How much the client puts on a server at a time, and that what has to wait holds up nothing else."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from tests.client.scripted import (
    HOUR,
    Action,
    Call,
    Fate,
    Job,
    Line,
    Server,
    always,
    answers,
    ask,
    completion,
    gathered,
    in_turn,
    nothing,
    outcomes,
    problem,
    replied,
    running,
    unseen,
    usual,
    waits,
)

pytestmark = pytest.mark.anyio

TOKENS = 1000
TEXT = "x" * 4 * TOKENS
"""About so many tokens, by the estimate from bytes."""


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


# --- batches at a time ------------------------------------------------------------------------------------------


class Watched(Server):
    """Notes the most batches and requests of a model that were at the server at a time."""

    together = 0
    requests = 0

    def usual(self, call: Call) -> Any:
        response = super().usual(call)
        if call.kind == "create":
            self.together = max(self.together, len(self.active))
            latest = self.jobs[-1].lines[0].body["model"]
            of_model = [job for job in self.active if job.lines[0].body["model"] == latest]
            self.requests = max(self.requests, sum(len(job.lines) for job in of_model))
        return response


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_no_more_batches_at_the_server_than_max_active_batches(most: int) -> None:
    server = Watched(Fate(after=1000))
    async with running(server, max_active_batches=most) as client:
        texts = [f"<{n}>" for n in range(7)]
        assert await gathered(*(ask(client, text, model=text) for text in texts)) == texts
        rounds = -(-7 // most)
        assert 1000 * rounds <= anyio.current_time() <= 1100 * rounds
    assert server.together == most
    served = [text for job in server.jobs for text in job.texts]
    assert sorted(served) == texts
    if most == 1:
        assert served == texts  # first come, first served


async def test_any_number_of_batches_by_default() -> None:
    server = Watched(Fate(after=1000))
    async with running(server) as client:
        await gathered(*(ask(client, "a", model=f"{n}") for n in range(12)))
    assert server.together == 12


async def test_room_is_made_however_a_batch_ends() -> None:
    fates = [
        Fate(100, "failed", [problem("model_not_found")]),
        Fate(100, "expired"),
        Fate(100, "cancelled", write=nothing),
        Fate(HOUR),
        Fate(100),
    ]

    def script(call: Call) -> Action:
        return answers(400) if call.number == 1 else usual

    server = Watched(lambda number, _: fates[number - 1], create=script)
    async with running(server, max_active_batches=1) as client:

        async def leaves() -> None:
            with anyio.move_on_after(HOUR):
                await ask(client, "4", model="4")

        results = await gathered(
            *(ask(client, str(n), model=str(n)) for n in range(4)), leaves(), ask(client, "5", model="5")
        )
    assert [type(result).__name__ for result in results] == [
        "BadRequestError",
        "BatchFailedError",
        "str",
        "BatchFailedError",
        "NoneType",
        "str",
    ]
    assert server.together == 1


async def test_a_creation_in_doubt_takes_up_its_place() -> None:
    def script(call: Call) -> Action:
        return unseen(answers(500)) if call.number == 1 else usual

    server = Watched(Fate(after=1000), create=script, list=in_turn(*[answers(503)] * 5))
    async with running(server, max_active_batches=1) as client:
        assert await gathered(ask(client, "a", model="a"), ask(client, "b", model="b")) == ["a", "b"]
    assert server.together == 1
    assert server.sizes == [1, 1]


# --- tokens at a time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requests", [2, 5])
async def test_no_more_tokens_at_the_server_than_max_enqueued_tokens(requests: int) -> None:
    server = Watched(Fate(after=1000))
    async with running(server, max_enqueued_tokens=int(TOKENS * (requests + 0.9))) as client:
        texts = [f"{n} {TEXT}" for n in range(20)]
        assert await outcomes(client, *texts) == texts
    assert server.requests == requests
    assert server.sizes == [requests] * (20 // requests)


async def test_small_batches_share_the_tokens() -> None:
    server = Watched(Fate(after=1000))
    async with running(server, max_enqueued_tokens=int(TOKENS * 3.9), batch_size=1) as client:
        texts = [f"{n} {TEXT}" for n in range(9)]
        assert await outcomes(client, *texts) == texts
    assert server.requests == server.together == 3
    assert server.sizes == [1] * 9


async def test_each_model_has_its_own_tokens() -> None:
    server = Watched(Fate(after=1000))
    async with running(server, max_enqueued_tokens=int(TOKENS * 1.9)) as client:
        await gathered(*(ask(client, f"{n} {TEXT}", model=f"{n}") for n in range(5)))
        assert anyio.current_time() < 1500
    assert server.together == 5


async def test_a_single_request_with_more_tokens_goes_alone() -> None:
    server = Watched(Fate(after=1000))
    async with running(server, max_enqueued_tokens=TOKENS * 2) as client:
        texts = ["first", f"large {TEXT * 10}", "last"]
        assert await outcomes(client, *texts) == texts
    assert server.together == 1
    assert sorted(server.sizes) in ([1, 1, 1], [1, 2])
    assert [f"large {TEXT * 10}"] in [job.texts for job in server.jobs]


@pytest.mark.parametrize(("factor", "expected"), [(0.25, range(8, 17)), (4, range(1, 3))])
async def test_estimates_are_corrected_by_what_answers_say_of_their_prompts(
    factor: float, expected: range
) -> None:
    def write(line: Line) -> bytes:
        size = len(json.dumps(line.body))
        usage = {"prompt_tokens": int(size / 4 * factor), "completion_tokens": 1, "total_tokens": 1}
        return replied(line.custom_id, completion(line.text, usage=usage))

    server = Watched(Fate(after=1000, write=write))
    async with running(server, max_enqueued_tokens=int(TOKENS * 4.9)) as client:
        texts = [f"{n} {TEXT}" for n in range(32)]
        assert await outcomes(client, *texts[:16]) == texts[:16]
        first = server.sizes[0]
        before = len(server.jobs)
        assert await outcomes(client, *texts[16:]) == texts[16:]
    assert first == 4
    assert server.sizes[before] in expected


async def test_usage_that_makes_no_sense_does_no_harm() -> None:
    odd: list[Any] = [
        None,
        7,
        "much",
        {},
        {"prompt_tokens": "7"},
        {"prompt_tokens": -(10**30)},
        {"prompt_tokens": 1e300},
    ]

    def write(line: Line) -> bytes:
        return replied(line.custom_id, completion(line.text, usage=odd[int(line.text.split()[0]) % len(odd)]))

    server = Watched(Fate(after=10, write=write))
    async with running(server, max_enqueued_tokens=int(TOKENS * 4.9)) as client:
        for start in (0, 20):
            texts = [f"{start + n} {TEXT}" for n in range(20)]
            assert await outcomes(client, *texts) == texts


# --- transfers at a time ----------------------------------------------------------------------------------------


async def test_at_most_four_uploads_at_a_time() -> None:
    server = Server(upload=always(waits(100)))
    async with running(server) as client:
        texts = [f"<{n}>" for n in range(12)]
        assert await gathered(*(ask(client, text, model=text) for text in texts)) == texts
        assert 300 <= anyio.current_time() < 350
    assert server.most["upload"] == 4


@pytest.mark.parametrize("partial", [False, True])
async def test_at_most_four_downloads_at_a_time(*, partial: bool) -> None:
    server = Server(content=always(waits(100)), partial=partial)
    async with running(server) as client:
        texts = [f"<{n}>" for n in range(12)]
        assert await gathered(*(ask(client, text, model=text) for text in texts)) == texts
    assert server.most["content"] == 4


async def test_new_calls_go_on_while_uploads_hang() -> None:
    server = Server(upload=in_turn(*[waits(5 * HOUR)] * 3))
    async with running(server, timeout=6 * HOUR) as client:

        async def later(text: str) -> float:
            await anyio.sleep(100)
            assert await ask(client, text, model=text) == text
            return anyio.current_time()

        *hung, one, two = await gathered(
            *(ask(client, str(n), model=str(n)) for n in range(3)), later("one"), later("two")
        )
    assert hung == ["0", "1", "2"]
    assert one < 150
    assert two < 150


async def test_batches_that_are_made_go_on_and_realtime_calls_too_while_all_uploads_hang() -> None:
    server = Server(Fate(after=500), upload=lambda call: waits(HOUR) if call.number > 1 else usual)
    async with running(server, timeout=2 * HOUR) as client:

        async def hung(n: int) -> str:
            await anyio.sleep(20)
            return await ask(client, str(n), model=str(n))

        async def made() -> float:
            assert await ask(client, "made") == "made"
            return anyio.current_time()

        async def realtime() -> float:
            await anyio.sleep(100)
            await client.models.list()
            return anyio.current_time()

        *_, first, listed = await gathered(*(hung(n) for n in range(6)), made(), realtime())
    assert 500 <= first < 550
    assert listed == 100
    assert server.most["upload"] == 4


async def test_uploads_that_wait_to_be_tried_again_take_up_no_place() -> None:
    refusing = answers(503, headers={"retry-after": "2000"})
    server = Server(upload=in_turn(*[refusing] * 8))
    async with running(server) as client:

        async def later() -> float:
            await anyio.sleep(100)
            assert await ask(client, "later", model="later") == "later"
            return anyio.current_time()

        *_, then = await gathered(*(ask(client, str(n), model=str(n)) for n in range(8)), later())
    assert then < 150


async def test_an_upload_that_hangs_is_given_up_after_the_timeout_and_made_again() -> None:
    server = Server(upload=in_turn(*[waits(10 * HOUR)] * 8))
    async with running(server, timeout=60) as client:
        texts = [f"<{n}>" for n in range(8)]
        assert await gathered(*(ask(client, text, model=text) for text in texts)) == texts
        assert anyio.current_time() < 300
    assert server.most["upload"] == 4


async def test_many_batches_of_one_request() -> None:
    def fate(number: int, _: Job) -> Fate:
        return Fate(after=number % 7 * 10)

    server = Server(fate)
    async with running(server, batch_size=1) as client:
        texts = [f"<{n}>" for n in range(100)]
        assert await outcomes(client, *texts) == texts
    assert server.sizes == [1] * 100
    assert server.most["upload"] <= 4
    assert server.most["content"] <= 4
