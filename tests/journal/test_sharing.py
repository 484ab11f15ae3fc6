"""Who shares what: callers that leave and come back, copies, other clients, and a store that is the user's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest

from autobatcher import BatchOpenAI, ClientClosedError
from autobatcher._http import httpx
from autobatcher.journal import SqliteJournal
from tests.journal.memory import MemoryJournal
from tests.journal.stage import TEXTS, Wire, ask, ask_all, client_of, executed, serving, stop_at

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")]

ASKED = 20.0
"""Seconds after which whoever leaves has left: the window is closed, and what a test slows down is under way."""


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


async def leave(client: BatchOpenAI, text: str) -> None:
    """Ask, and be gone before there is an answer."""
    with anyio.move_on_after(ASKED) as scope:
        await ask(client, text)
    assert scope.cancelled_caught


# Callers that leave during an upload.


@pytest.mark.parametrize("upload_seconds", [30, 120], ids=["after the upload", "during the upload"])
async def test_who_leaves_an_upload_that_others_need_is_in_it(path: Path, upload_seconds: float) -> None:
    async with serving(latency_seconds=300) as api:
        client, wire = client_of(api, path)
        wire.seconds["upload"] = upload_seconds
        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client, "<stays>")
            await leave(client, "<goes>")
            await anyio.sleep(40 - ASKED)
            assert "<goes>" in await ask(client, "<goes>")
        assert executed(api) == 2
        assert wire.calls["create"] == 1


async def test_who_leaves_an_upload_and_comes_back_during_it_alone(path: Path) -> None:
    async with serving() as api:
        client, wire = client_of(api, path)
        wire.seconds["upload"] = 60
        async with client:
            await leave(client, "<one>")
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1
        assert wire.calls["upload"] == wire.calls["create"] == 1


async def test_nothing_is_made_of_a_file_whose_callers_have_all_left(path: Path) -> None:
    async with serving() as api:
        client, wire = client_of(api, path)
        wire.seconds["upload"] = 60
        async with client:
            await leave(client, "<one>")
            await anyio.sleep(3600)
            assert not wire.calls["create"]
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1
        assert wire.calls["upload"] == 2


async def test_an_upload_that_is_made_again_is_without_those_that_left(path: Path) -> None:
    async with serving() as api:
        client, wire = client_of(api, path)
        wire.seconds["upload"] = 60
        wire.answers["upload"] = httpx.Response(500)
        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client, "<stays>")
            await leave(client, "<goes>")
            await anyio.sleep(60)
            del wire.answers["upload"]
        assert wire.calls["upload"] == 2
        assert executed(api) == 1
        async with client_of(api, path)[0] as client:
            assert "<goes>" in await ask(client, "<goes>")
        assert executed(api) == 2


# Copies, and other clients.


@asynccontextmanager
async def other_of(how: str, client: BatchOpenAI, api: Any, path: Path) -> AsyncIterator[BatchOpenAI]:
    """Another user of the same journal."""
    if how == "copy":
        yield client.with_options(batch_size=7)
        return
    async with client_of(api, path, batch_size=7)[0] as other:
        yield other


both = pytest.mark.parametrize("how", ["copy", "client"])


@both
async def test_another_finds_what_the_first_has_at_the_server(path: Path, how: str) -> None:
    async with serving(latency_seconds=60) as api:
        client, wire = client_of(api, path)
        async with client:
            await leave(client, "<one>")
            async with other_of(how, client, api, path) as other:
                assert "<one>" in await ask(other, "<one>")
        assert executed(api) == 1
        assert wire.calls["create"] == 1


@both
async def test_another_finds_what_an_earlier_run_has_at_the_server(path: Path, how: str) -> None:
    async with serving(latency_seconds=300) as api:
        async with client_of(api, path)[0] as client:
            await leave(client, "<one>")
        client, wire = client_of(api, path)
        async with client:
            await leave(client, "<two>")  # from here on the first follows all that there was
            async with other_of(how, client, api, path) as other:
                assert "<one>" in await ask(other, "<one>")
            assert "<two>" in await ask(client, "<two>")
        assert executed(api) == 2
        assert wire.calls["create"] == 1


@both
async def test_who_leaves_another_comes_back_to_either(path: Path, how: str) -> None:
    async with serving(latency_seconds=200) as api:
        client, _ = client_of(api, path)
        async with client:
            await leave(client, "<one>")
            async with other_of(how, client, api, path) as other:
                await leave(other, "<one>")
                await leave(client, "<one>")
                await leave(other, "<one>")
                assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1


async def test_who_follows_a_client_that_is_closed_goes_on_alone(path: Path) -> None:
    async with serving(latency_seconds=600) as api:
        client, _ = client_of(api, path)
        other, wire = client_of(api, path)
        async with other:
            await leave(client, "<one>")
            async with anyio.create_task_group() as tasks:

                async def follow() -> None:
                    assert "<one>" in await ask(other, "<one>")

                tasks.start_soon(follow)
                await anyio.sleep(60)
                await client.close()
        assert executed(api) == 1
        assert not wire.calls["create"]


async def test_closing_reaches_those_who_follow_another_client(path: Path) -> None:
    async with serving(latency_seconds=600) as api:
        client, _ = client_of(api, path)
        other, _ = client_of(api, path)

        async def follow() -> None:
            with pytest.raises(ClientClosedError), anyio.fail_after(300):
                await ask(other, "<one>")

        async with client:
            await leave(client, "<one>")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await anyio.sleep(60)
                await other.close()
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1


@pytest.mark.parametrize("whose", ["an earlier run's", "its own"])
async def test_closing_cancels_nothing_that_another_waits_for(path: Path, whose: str) -> None:
    async with serving(latency_seconds=600, concurrency=1) as api:
        if whose == "an earlier run's":
            await stop_at(*client_of(api, path), "poll", "after")
        client, _ = client_of(api, path, cancel_active_batches_on_close=True)
        other, wire = client_of(api, path)
        async with other:
            if whose == "its own":
                with anyio.move_on_after(ASKED):
                    await ask_all(client, TEXTS)
            else:
                await leave(client, "<first>")  # so that it follows the batch, which another asks for
            results: list[str | Exception] = []

            async def follow() -> None:
                results.extend(await ask_all(other, TEXTS))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow)
                await anyio.sleep(60)
                await client.close()
            statuses = [batch.status async for batch in other.batches.list()]
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert not wire.calls["create"]
        assert "completed" in statuses


@pytest.mark.parametrize("asked", [False, True])
async def test_closing_cancels_of_an_earlier_run_what_only_its_own_callers_asked_for(
    path: Path, *, asked: bool
) -> None:
    async with serving(latency_seconds=600) as api:
        await stop_at(*client_of(api, path), "poll", "after")
        client, _ = client_of(api, path, cancel_active_batches_on_close=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_all, client, TEXTS[:1] if asked else ["<first>"])
            await anyio.sleep(ASKED)
            await client.close()
        async with client_of(api, path)[0] as client:
            statuses = [batch.status async for batch in client.batches.list()]
            assert ("in_progress" in statuses) is not asked
            assert "<one>" in await ask(client, "<one>")


# A batch that was given up.


def missing() -> httpx.Response:
    return httpx.Response(404, json={"error": {"message": "No such batch.", "type": "x", "code": None}})


async def give_up(client: BatchOpenAI, wire: Wire, trouble: httpx.Response, error: type[Exception]) -> None:
    """Lose patience with a batch that goes on at the server."""
    wire.answers["poll"] = trouble
    with pytest.raises(error):
        await ask(client, "<one>")
    del wire.answers["poll"]


@pytest.mark.parametrize("how", ["itself", "copy", "client"])
@pytest.mark.parametrize("trouble", ["404", "500"])
async def test_a_retry_finds_the_batch_that_was_given_up(path: Path, trouble: str, how: str) -> None:
    async with serving(latency_seconds=10) as api:
        client, wire = client_of(api, path, patience_seconds=3600)
        async with client:
            if trouble == "404":
                await give_up(client, wire, missing(), openai.NotFoundError)
            else:
                await give_up(client, wire, httpx.Response(500), openai.InternalServerError)
            if how == "itself":
                assert "<one>" in await ask(client, "<one>")
            else:
                async with other_of(how, client, api, path) as other:
                    assert "<one>" in await ask(other, "<one>")
        assert executed(api) == 1
        assert wire.calls["create"] == 1


async def test_a_look_up_that_was_given_up_is_made_again_by_a_retry(path: Path) -> None:
    async with serving(latency_seconds=10) as api:
        client, wire = client_of(api, path)

        def lose() -> None:
            raise httpx.ReadError("the connection is lost")

        wire.after["create"] = lose
        wire.answers["list"] = httpx.Response(403)
        async with client:
            with pytest.raises(openai.APIError):
                await ask(client, "<one>")
            del wire.after["create"], wire.answers["list"]
            assert "<one>" in await ask(client, "<one>")
        assert executed(api) == 1
        assert wire.calls["create"] == 1


# A store that is given.


async def test_a_file_that_is_given_open_is_its_givers_to_close(path: Path) -> None:
    journal = SqliteJournal(path)
    async with serving() as api:
        async with client_of(api, journal)[0] as client:
            first = await ask(client, "<one>")
        assert journal.has_answers()  # which a closed one cannot say
        client, wire = client_of(api, journal)
        async with client:
            assert await ask(client, "<one>") == first
        assert not wire.calls
    journal.close()
    SqliteJournal(path).close()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", ["upload", "create", "poll", "download"])
async def test_a_store_of_ones_own_takes_a_program_up_again(stage: str, when: str) -> None:
    journal = MemoryJournal()
    async with serving(latency_seconds=60) as api:
        await stop_at(*client_of(api, journal), stage, when)
        async with client_of(api, journal)[0] as client:
            results = await ask_all(client, TEXTS)
        assert all(text in str(result) for text, result in zip(TEXTS, results, strict=True))
        assert executed(api) == len(TEXTS)
        client, wire = client_of(api, journal)
        async with client:
            assert await ask_all(client, TEXTS) == results
        assert not wire.calls
