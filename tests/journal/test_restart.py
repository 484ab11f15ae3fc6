"""The same program run again on the same journal: virtual time, and the embedded server in process."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest

from autobatcher import BatchFailedError, ClientClosedError, JournalError, RequestFailedError
from autobatcher._http import httpx
from autobatcher.core.outcomes import Answer
from autobatcher.journal import OpenBatch
from autobatcher.runtime.driver import AT_ONCE
from tests.journal.memory import MemoryJournal
from tests.journal.stage import TEXTS, ask, ask_all, client_of, executed, serving, stop_at, table

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")]


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", ["upload", "create", "poll", "download"])
async def test_whatever_was_under_way_goes_on(path: Path, stage: str, when: str, *, partial: bool) -> None:
    async with serving(latency_seconds=60, partial_results=partial) as api:
        await stop_at(*client_of(api, path), stage, when)
        client, _ = client_of(api, path)
        async with client:
            results = await ask_all(client, TEXTS)
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert executed(api) == len(TEXTS)


async def test_what_waited_in_its_window_is_sent_by_the_next_run(path: Path) -> None:
    async with serving() as api:
        client, wire = client_of(api, path, batch_window_seconds=60)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_all, client, TEXTS)
            await anyio.sleep(1)
            await client.close()
        assert not wire.calls
        client, _ = client_of(api, path)
        async with client:
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1


async def test_results_that_arrived_while_nobody_was_there(path: Path) -> None:
    async with serving(latency_seconds=60) as api:
        await stop_at(*client_of(api, path), "create", "after")
        await anyio.sleep(3600)
        assert executed(api) == len(TEXTS)
        client, wire = client_of(api, path)
        async with client:
            assert "<two>" in await ask(client, "<two>")
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == len(TEXTS)
        assert not wire.calls["upload"]


async def test_a_server_that_is_restarted_with_its_database(path: Path, tmp_path: Path) -> None:
    db = tmp_path / "server.db"
    async with serving(db=db, latency_seconds=60) as api:
        client, wire = client_of(api, path)
        await stop_at(client, wire, "poll", "before")
        before = executed(api)
    async with serving(db=db, latency_seconds=60) as api:
        client, wire = client_of(api, path)
        async with client:
            results = await ask_all(client, TEXTS)
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert not wire.calls["upload"]
        assert before + executed(api) == len(TEXTS)


async def test_finished_answers_need_no_network(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            first = await ask_all(client, TEXTS)
        client, wire = client_of(api, path)
        async with client:
            assert await ask_all(client, [*reversed(TEXTS)]) == [*reversed(first)]
        assert not wire.calls


async def test_others_have_their_turn_between_finished_answers(path: Path) -> None:
    texts = [f"<{number}>" for number in range(3 * AT_ONCE)]
    async with serving() as api:
        async with client_of(api, path)[0] as client:
            await ask_all(client, texts)
        turns = 0

        async def take_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async with client_of(api, path)[0] as client, anyio.create_task_group() as tasks:
            tasks.start_soon(take_turns)
            for text in texts:
                assert text in await ask(client, text)
            assert turns >= 2  # trio takes tasks in any order
            tasks.cancel_scope.cancel()


async def test_a_lost_creation_is_looked_up_by_the_next_run(path: Path) -> None:
    async with serving(latency_seconds=60) as api:
        client, wire = client_of(api, path)

        wire.answers["list"] = httpx.Response(500)
        await stop_at(client, wire, "create", "after", lost=True)
        client, wire = client_of(api, path)
        async with client:
            results = await ask_all(client, TEXTS)
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert wire.calls["list"]
        assert not wire.calls["create"]
        assert executed(api) == len(TEXTS)


async def test_a_list_that_lags_after_a_crash_makes_no_second_batch(path: Path) -> None:
    async with serving(latency_seconds=60) as api:
        client, wire = client_of(api, path)
        wire.answers["list"] = httpx.Response(500)
        await stop_at(client, wire, "create", "after", lost=True)
        client, wire = client_of(api, path)
        wire.answers["list"] = httpx.Response(200, json={"object": "list", "data": [], "has_more": False})
        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(ask_all, client, TEXTS)
            await anyio.sleep(100)
            del wire.answers["list"]
        assert wire.calls["list"] > 2
        assert not wire.calls["create"]
        assert executed(api) == len(TEXTS)


async def test_a_batch_that_the_server_no_longer_knows_is_sent_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="autobatcher")
    async with serving(latency_seconds=60) as old:
        await stop_at(*client_of(old, path), "poll", "after")
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            results = await ask_all(client, TEXTS)
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert executed(api) == len(TEXTS)
    assert "3 requests are sent again" in caplog.text
    assert "no longer knows" in caplog.text


async def test_what_is_sent_again_counts_its_tokens(path: Path) -> None:
    texts = [f"<{number}>" + 1000 * " abc" for number in range(6)]  # some 1000 tokens each
    async with serving(latency_seconds=60) as old, client_of(old, path)[0] as client:
        with anyio.move_on_after(30):
            await ask_all(client, texts)
    async with serving(latency_seconds=60) as api:
        client, wire = client_of(api, path, max_enqueued_tokens=2500)
        async with client:
            results = await ask_all(client, texts)
        assert all(text in str(result) for text, result in zip(texts, results, strict=True))
        assert executed(api) == len(texts)
        assert wire.calls["create"] == 3


async def test_a_batch_of_an_earlier_run_counts_its_tokens(path: Path) -> None:
    texts = [f"<{number}>" + 1000 * " abc" for number in range(2)]  # some 1000 tokens each
    async with serving(latency_seconds=3600) as api:
        client, _ = client_of(api, path)
        async with client:
            with anyio.move_on_after(30):
                await ask_all(client, texts)
        client, wire = client_of(api, path, max_enqueued_tokens=2500)
        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client, texts[0])
            tasks.start_soon(ask, client, "<another>" + 1000 * " abc")
            await anyio.sleep(1800)
            assert not wire.calls["upload"]
        assert wire.calls["upload"] == 1


async def test_lines_that_a_batch_fails_for_are_their_callers_after_a_restart_too(path: Path) -> None:
    async with serving() as api:
        client, wire = client_of(api, path)
        await stop_at(client, wire, "create", "after")
        lines = table(path, "SELECT body FROM requests ORDER BY position")  # trio starts tasks in any order
        client, wire = client_of(api, path)
        (batch,) = [batch async for batch in client.batches.list()]
        failed = batch.model_dump() | {
            "status": "failed",
            "output_file_id": None,
            "errors": {"data": [{"code": "bad", "message": "no", "line": 2}]},
        }
        wire.answers["poll"] = httpx.Response(200, json=failed)
        async with client, anyio.create_task_group() as tasks:
            results: list[str | Exception] = []

            async def note() -> None:
                results.extend(await ask_all(client, TEXTS))

            tasks.start_soon(note)
            while not wire.calls["upload"]:  # noqa: ASYNC110 -- virtual time
                await anyio.sleep(1)
            del wire.answers["poll"]
        for text, result in zip(TEXTS, results, strict=True):
            assert isinstance(result, RequestFailedError) if text in lines[1][0] else text in str(result)


async def test_an_answer_with_nan_is_the_same_in_each_run(path: Path) -> None:
    async with serving() as api:
        client, wire = client_of(api, path)
        await stop_at(client, wire, "create", "after")
        ids = [custom_id for (custom_id,) in table(path, "SELECT custom_id FROM requests")]
        line = '{"custom_id":"%s","response":{"status_code":200,"request_id":"r","body":{"id":"i","x":[NaN,-Infinity]}}}\n'
        said = []
        for _ in range(2):
            client, wire = client_of(api, path)
            wire.answers["download"] = httpx.Response(200, text="".join(line % name for name in ids))
            async with client:
                answer = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": TEXTS[0]}]
                )
            said.append(str(answer.to_dict()))
        assert said[0] == said[1]
        assert "'x': [nan, -inf]" in said[0]
        assert not wire.calls
    assert len(table(path, "SELECT body FROM answers")) == len(TEXTS)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ('"<html>502</html>"', False),
        ("null", False),
        ("[]", False),
        (' {"error": {"message": "overloaded"}}', False),
        ('{"id":"i","error":{"message":"it took too long"}}', True),
        (' {"error":null,"id":"i"}', True),
    ],
)
async def test_what_is_no_answer_is_none_whatever_its_status(path: Path, body: str, *, kept: bool) -> None:
    async with serving() as api:
        client, wire = client_of(api, path)
        await stop_at(client, wire, "create", "after")
        ids = [custom_id for (custom_id,) in table(path, "SELECT custom_id FROM requests")]
        line = '{"custom_id":"%s","response":{"status_code":200,"request_id":"r","body":%s}}\n'
        client, wire = client_of(api, path)
        wire.answers["download"] = httpx.Response(200, text="".join(line % (name, body) for name in ids))
        async with client:
            await ask_all(client, TEXTS)
        assert wire.calls["download"]
        client, wire = client_of(api, path)
        async with client:
            again = await ask_all(client, TEXTS)
    assert [text in str(result) for text, result in zip(TEXTS, again, strict=True)] == [not kept] * len(TEXTS)
    assert bool(wire.calls["create"]) is not kept


async def test_who_leaves_finds_the_answer_at_the_next_call(path: Path) -> None:
    async with serving(latency_seconds=60) as api:
        client, wire = client_of(api, path)
        async with client:
            with anyio.move_on_after(30):
                await ask(client, "<one>")
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1
        assert wire.calls["create"] == 1


async def test_samples_of_one_prompt_stay_as_many(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            await ask_all(client, ["<same>"] * 4)
        assert executed(api) == 4
        client, wire = client_of(api, path)
        async with client:
            await ask_all(client, ["<same>"] * 4)
            assert not wire.calls
            await ask(client, "<same>")
        assert executed(api) == 5


async def test_a_failed_call_gives_its_number_back(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path, max_retries=0)
        async with client:
            for _ in range(2):
                with pytest.raises(openai.BadRequestError):
                    await ask(client, "[[error:400]]")
        async with client_of(api, path)[0] as client:
            with pytest.raises(openai.BadRequestError):
                await ask(client, "[[error:400]]")
        assert executed(api) == 3
    rows = json.loads(json.dumps(table(path, "SELECT DISTINCT n FROM requests")))
    assert rows == [[0]]


async def test_what_makes_requests_equal(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            await client.post(
                "/chat/completions",
                cast_to=object,
                body={"model": "m", "messages": [{"role": "user", "content": "x"}]},
            )
        client, wire = client_of(api, path, batch_size=7, default_headers={"x-tenant": "other"})
        async with client:
            body: Any = {"messages": [{"content": "x", "role": "user"}], "model": "m"}
            await client.chat.completions.create(**body, extra_headers={"x-other": "1"}, timeout=3)
            assert not wire.calls
            await client.chat.completions.create(**body, temperature=1)
        assert executed(api) == 2
        async with client_of(api, path, base_url="http://other/v1")[0] as other:
            await other.chat.completions.create(**body)
        assert executed(api) == 3


async def test_every_kind_of_call_comes_back(path: Path) -> None:
    async with serving() as api:
        said: list[list[Any]] = []
        for _ in range(2):
            client, wire = client_of(api, path)
            async with client:
                vector = await client.embeddings.create(model="e", input="x")
                response = await client.responses.create(model="r", input="x")
                raw = await client.chat.completions.with_raw_response.create(
                    model="m", messages=[{"role": "user", "content": "x"}]
                )
                stream = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "y"}], stream=True
                )
                chunks = [chunk.model_dump() async for chunk in stream]
            said.append([vector.data[0].embedding, response.output_text, raw.request_id, chunks])
        assert said[0] == said[1]
        assert not wire.calls
        assert executed(api) == 4


async def test_copies_use_it_and_the_unbatched_client_does_not(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        async with client:
            await ask(client.with_options(timeout=9), "<one>")
            await ask(client.unbatched, "<one>")
            await ask(client.with_options(journal=None), "<one>")
        assert executed(api) == 2
        assert sum(api.realtime_calls.values()) == 1
        client, wire = client_of(api, path)
        async with client:
            await ask(client, "<one>")
        assert not wire.calls


async def test_closing_may_cancel_and_then_the_next_run_sends_again(path: Path) -> None:
    async with serving(latency_seconds=600) as api:
        client, wire = client_of(api, path, cancel_active_batches_on_close=True)
        await stop_at(client, wire, "poll", "after")
        client, _ = client_of(api, path)
        async with client:
            assert "<one>" in await ask(client, "<one>")
            statuses = [batch.status async for batch in client.batches.list()]
        assert sorted(statuses) == ["cancelled", "completed"]


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("settled", [False, True])
async def test_what_closing_cancelled_is_no_error_of_the_next_run(
    path: Path, *, settled: bool, partial: bool
) -> None:
    async with serving(latency_seconds=60, concurrency=1, partial_results=partial) as api:
        client, wire = client_of(api, path, cancel_active_batches_on_close=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_all, client, TEXTS)
            await anyio.sleep(100)
            if not settled:  # the server has it, and the program ends without knowing
                (batch,) = [batch async for batch in client.batches.list()]
                wire.seconds["other"] = 0
                await client.batches.cancel(batch.id)
                wire.seconds["other"] = 300
            await client.close()
        bought = executed(api)
        assert 0 < bought < len(TEXTS)
        client, _ = client_of(api, path)
        async with client:
            results = await ask_all(client, TEXTS)
            statuses = [batch.status async for batch in client.batches.list()]
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert sorted(statuses) == ["cancelled", "completed"]
        assert executed(api) == len(TEXTS)


async def test_what_somebody_cancels_during_a_later_run_is_an_error_of_that(path: Path) -> None:
    async with serving(latency_seconds=60, concurrency=1) as api:
        await stop_at(*client_of(api, path), "poll", "after")
        client, _ = client_of(api, path)
        async with client, anyio.create_task_group() as tasks:
            results: list[str | Exception] = []

            async def note() -> None:
                results.extend(await ask_all(client, TEXTS))

            tasks.start_soon(note)
            await anyio.sleep(30)
            (batch,) = [batch async for batch in client.batches.list()]
            await client.batches.cancel(batch.id)
        assert any(isinstance(result, BatchFailedError) for result in results)
        assert executed(api) <= 1 + sum(isinstance(result, str) for result in results)


async def test_a_closed_client_uses_it_no_more(path: Path) -> None:
    async with serving() as api:
        client, _ = client_of(api, path)
        await client.close()
        with pytest.raises(ClientClosedError):
            await ask(client, "<one>")


async def test_an_upload_that_is_tried_again_is_written_down_once(path: Path) -> None:
    async with serving() as api:
        client, wire = client_of(api, path)
        wire.answers["upload"] = httpx.Response(503)

        async def mend() -> None:
            await anyio.sleep(600)
            del wire.answers["upload"]

        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(mend)
            assert "<one>" in await ask(client, "<one>")
        assert wire.calls["upload"] > 5
    assert table(path, "SELECT count(*) FROM requests") == [(1,)]
    assert table(path, "SELECT count(*) FROM batches") == [(1,)]


async def test_a_store_that_breaks_leaves_nobody_waiting() -> None:
    class Broken(MemoryJournal):
        def answered(self, answers: Iterable[tuple[bytes, int, Answer]]) -> None:
            raise ZeroDivisionError

    async with serving() as api:
        client, _ = client_of(api, Broken())
        async with client:
            with anyio.fail_after(3600):
                results = await ask_all(client, TEXTS)
    assert all(isinstance(result, ZeroDivisionError) for result in results)


async def test_a_restore_that_fails_is_tried_again_by_the_next_call() -> None:
    class Moody(MemoryJournal):
        fails = 0

        def open_batches(self, base_url: str) -> list[OpenBatch]:
            if self.fails:
                self.fails -= 1
                raise JournalError("not now")
            return super().open_batches(base_url)

    journal = Moody()
    async with serving(latency_seconds=60) as api:
        client, wire = client_of(api, journal)
        await stop_at(client, wire, "poll", "before")
        client, _ = client_of(api, journal)
        async with client:
            journal.fails = 1
            with pytest.raises(JournalError):
                await ask(client, TEXTS[0])
            assert all(
                text in str(result) for text, result in zip(TEXTS, await ask_all(client, TEXTS), strict=True)
            )
        assert executed(api) == len(TEXTS)
