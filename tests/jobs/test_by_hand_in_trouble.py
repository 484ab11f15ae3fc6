"""What the functions of the workflow by hand do about servers and networks that fail, in virtual time."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import openai
import pytest

from autobatcher import AutobatcherError
from autobatcher._http import httpx
from autobatcher.events import CallRetried
from autobatcher.jobs.batches import (
    Changed,
    UncertainError,
    Update,
    cancel,
    list_batches,
    standing,
    status,
    submit,
    watch,
)
from autobatcher.jobs.downloads import Remaining, UnreadError, remaining, results, retry
from autobatcher.jobs.files import delete_file, get_file, list_files
from autobatcher.local import LocalBatchAPI, LocalConfig
from tests.client.scripted import (
    DAY,
    HOUR,
    Action,
    Fate,
    Pieces,
    Script,
    Server,
    always,
    answers,
    breaks,
    changes,
    each,
    in_turn,
    loses,
    page,
    refused,
    running,
    unseen,
    until,
    usual,
)

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


@pytest.fixture
def anyio_backend(virtual_backend: Any) -> Any:
    return virtual_backend


def line(name: str, text: str = "Say it.", url: str = CHAT) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return json.dumps({"custom_id": name, "method": "POST", "url": url, "body": body}).encode() + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(line(f"r-{n}", f"text {n}") for n in range(5)))
    return path


def names(content: bytes) -> list[str]:
    return [json.loads(found)["custom_id"] for found in content.splitlines()]


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


LOST: Mapping[str, Action] = {
    "connection": loses(httpx.ReadError),
    "timeout": loses(httpx.ReadTimeout),
    "502": answers(502),
    "409": answers(409),
    "page": page(),
    "no id": answers(200, {"object": "batch"}),
    "no object": answers(200, [1]),
}


@pytest.mark.parametrize("how", LOST)
async def test_a_lost_answer_to_a_creation_makes_one_batch(path: Path, how: str) -> None:
    server = Server(create=in_turn(unseen(LOST[how])))
    server.list_lag = 60
    retried: list[CallRetried] = []
    async with running(server) as client:
        batch = await submit(client, path, on_retry=retried.append)
    assert batch.id == "batch-1"
    assert server.sizes == [5]
    assert server.count["create"] == 1
    assert {update.step for update in retried} == {"create"}


async def test_a_creation_that_was_lost_is_made_again_when_two_minutes_of_looks_find_none(path: Path) -> None:
    server = Server(create=in_turn(answers(502), loses(httpx.ReadError)))
    async with running(server) as client:
        batch = await submit(client, path)
    assert batch.id == "batch-1"
    first, second, third = server.times("create")
    assert 120 <= second - first <= 180
    assert 120 <= third - second <= 180


async def test_a_creation_of_which_nobody_can_tell_is_not_repeated(path: Path) -> None:
    server = Server(create=in_turn(unseen(answers(502))), list=in_turn(usual, then=answers(404)))
    async with running(server) as client:
        with pytest.raises(UncertainError, match="file-1") as caught:
            await submit(client, path)
    assert caught.value.file_id == "file-1"
    assert server.count["create"] == 1


async def test_a_creation_that_a_busy_server_refuses_needs_no_look(path: Path) -> None:
    server = Server(create=in_turn(answers(429, headers={"retry-after": "100"}), loses(httpx.ConnectError)))
    async with running(server) as client:
        await submit(client, path)
    first, second, _ = server.times("create")
    assert 100 <= second - first <= 111
    assert server.count["list"] == 1


async def test_a_file_that_shows_up_late_is_waited_for_and_a_clear_no_is_not(path: Path) -> None:
    late = Server(create=in_turn(answers(404), answers(404)))
    async with running(late) as client:
        await submit(client, path)
    never = Server(create=always(answers(404)))
    async with running(never) as client:
        with pytest.raises(openai.NotFoundError):
            await submit(client, path)
    assert never.count["create"] == 6
    no = Server(create=always(answers(400)))
    async with running(no) as client:
        with pytest.raises(openai.BadRequestError):
            await submit(client, path)
    assert no.count["create"] == 1


async def test_an_upload_is_made_again_from_the_files_start(path: Path) -> None:
    server = Server(upload=in_turn(answers(503), loses(httpx.WriteError), page()))
    uploaded: list[str] = []
    read: list[int] = []
    async with running(server) as client:
        await submit(client, path, on_uploaded=uploaded.append, on_read=read.append)
    assert server.sizes == [5]
    assert uploaded == ["file-1"]
    assert max(read) == sum(len(line(f"r-{n}", f"text {n}")) for n in range(5))


async def test_what_fails_for_too_long_is_given_up(path: Path) -> None:
    server = Server(upload=always(answers(503)))
    async with running(server) as client:
        with pytest.raises(openai.InternalServerError):
            await submit(client, path, patience=HOUR)
        assert 0.8 * HOUR <= anyio.current_time() <= 1.2 * HOUR
    odd = Server(upload=always(page()))
    async with running(odd) as client:
        with pytest.raises(AutobatcherError):
            await submit(client, path)
    assert odd.count["upload"] == 5


@pytest.mark.parametrize("how", [loses(httpx.ConnectError), answers(401), answers(403)])
async def test_a_server_that_is_not_there_or_refuses_the_key_gets_no_file(path: Path, how: Action) -> None:
    server = Server(list=always(how))
    async with running(server) as client:
        with pytest.raises(openai.APIError):
            await submit(client, path)
    assert not server.count["upload"]


async def test_a_watch_outlives_failures_and_tells_of_changes_alone(path: Path) -> None:
    def change(batch: dict[str, Any], age: float) -> dict[str, Any]:
        done = min(int(age // HOUR), 4)
        return {**batch, "request_counts": {"completed": done, "failed": 0, "total": 4}}

    server = Server(Fate(after=4 * HOUR, change=change))
    server.scripts["retrieve"] = lambda call: answers(502) if 30 * 60 < call.at < 2 * HOUR else usual
    updates: list[Update] = []
    async with running(server) as client:
        made = await submit(client, path)
        (batch,) = await watch(client, [made.id, made.id], updates.append)
    assert standing(batch).all_answered
    told = [update.standing for update in updates if isinstance(update, Changed)]
    assert [(stands.status, stands.completed) for stands in told] == [
        ("in_progress", 0),
        ("in_progress", 2),
        ("in_progress", 3),
        ("completed", 4),
    ]
    retried = [update for update in updates if isinstance(update, CallRetried)]
    assert {(update.step, update.reason.split(",")[0]) for update in retried} == {("poll", "status 502")}
    assert server.count["retrieve"] < 400


async def test_a_watch_gives_up_a_batch_that_is_lost_and_follows_the_others_to_their_ends(path: Path) -> None:
    server = Server(Fate(after=2 * HOUR))
    server.scripts["retrieve"] = lambda call: (
        answers(404) if call.name == "batch-1" and call.at > 600 else usual
    )
    updates: list[Update] = []
    async with running(server) as client:
        ids = [(await submit(client, path)).id for _ in range(2)]
        with pytest.raises(openai.NotFoundError):
            await watch(client, ids, updates.append)
    ends = [update.standing.id for update in updates if isinstance(update, Changed) and update.standing.ended]
    assert ends == ["batch-2"]


async def test_a_watch_of_an_unknown_batch_ends_at_once_and_of_a_busy_server_does_not(path: Path) -> None:
    server = Server(Fate(after=60), retrieve=until(300, answers(503)))
    async with running(server) as client:
        name = (await submit(client, path)).id
        (batch,) = await watch(client, [name])
        assert batch.status == "completed"
        before = anyio.current_time()
        with pytest.raises(openai.NotFoundError):
            await watch(client, [name, "batch-9"])
        assert anyio.current_time() - before < 30


async def test_what_the_callback_raises_ends_the_watch(path: Path) -> None:
    async with running(Server(Fate(after=60))) as client:
        name = (await submit(client, path)).id

        def broken(_: Update) -> None:
            raise BrokenPipeError

        with pytest.raises(BrokenPipeError):
            await watch(client, [name], broken)


ODD: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"request_counts": None}, ("completed", None, None, None)),
    ({"request_counts": {"completed": "x", "failed": -1, "total": 5}}, ("completed", None, None, 5)),
    ({"request_counts": [1]}, ("completed", None, None, None)),
    ({"status": "Canceled"}, ("cancelled", None, None, None)),
    ({"status": "paused"}, ("paused", None, None, None)),
    ({"created_at": None, "endpoint": 3, "input_file_id": None}, ("completed", None, None, None)),
    ({"errors": "none", "output_file_id": ""}, ("completed", None, None, None)),
]


@pytest.mark.parametrize(("fields", "stands"), ODD)
async def test_a_batch_with_odd_fields_stands_somehow(
    path: Path, fields: dict[str, Any], stands: tuple[Any, ...]
) -> None:
    server = Server(Fate(change=lambda batch, _: {**batch, **fields}))
    async with running(server) as client:
        name = (await submit(client, path)).id
        found = standing(await status(client, name))
        listed = [standing(batch) async for batch in list_batches(client)]
    assert (found.status, found.completed, found.failed, found.total) == stands
    assert listed == [found]


@pytest.mark.parametrize("how", [page(), answers(200, [1]), answers(200, {}), answers(200, {"id": 1})])
async def test_an_answer_that_is_none_is_said_to_be_none(path: Path, how: Action, tmp_path: Path) -> None:
    server = Server(retrieve=always(how), list=always(how), cancel=always(how))
    async with running(server) as client:
        for call in (
            status(client, "b"),
            cancel(client, "b"),
            watch(client, ["b"]),
            results(client, "b", tmp_path / "o"),
            retry(client, "b"),
        ):
            with pytest.raises(openai.OpenAIError):
                await call
        with pytest.raises(openai.OpenAIError):
            [batch async for batch in list_batches(client)]
    assert not (tmp_path / "o").exists()


async def test_a_list_ends_though_the_server_knows_no_pages(path: Path) -> None:
    def whole(found: Any) -> Any:
        return {"object": "list", "data": found["data"]}

    server = Server()
    async with running(server) as client:
        for _ in range(3):
            await submit(client, path)
        usual_list = [batch.id async for batch in list_batches(client, None)]
        server.scripts["list"] = always(changes(whole))
        with_no_more: list[str] = [batch.id async for batch in list_batches(client, 2)]

        async def all_again(server: Server, _call: Any) -> httpx.Response:
            data = [server.describe(job) for job in reversed(server.jobs)]
            return httpx.Response(200, json={"object": "list", "data": data})

        server.scripts["list"] = always(all_again)
        circle = [batch.id async for batch in list_batches(client, None)]
    assert usual_list == circle == ["batch-3", "batch-2", "batch-1"]
    assert with_no_more == ["batch-3", "batch-2"]


DOWNLOADS = [
    ("begins anew", [breaks(2)]),
    ("begins anew", [breaks(3, 10), answers(503), breaks(0, 4)]),
    ("begins anew", [breaks(3, 10, cleanly=True)]),
    ("resumes", [breaks(2, 5)]),
    ("resumes", [breaks(3, 10, cleanly=True), breaks(1)]),
    ("resumes", [breaks(2), answers(400)]),
]


@pytest.mark.parametrize(("server", "actions"), DOWNLOADS)
async def test_a_download_that_breaks_off_is_made_whole(
    path: Path, tmp_path: Path, server: str, actions: list[Action]
) -> None:
    scripted = Server(resumes=server == "resumes", content=in_turn(*actions))
    async with running(scripted) as client:
        batch = await submit(client, path)
        counts = await results(client, batch.id, tmp_path / "out.jsonl")
    assert names((tmp_path / "out.jsonl").read_bytes()) == [f"r-{n}" for n in range(5)]
    assert (tmp_path / "out.jsonl").read_bytes().endswith(b"\n")
    assert (counts.answered, counts.failed, counts.malformed, counts.missing) == (5, 0, 0, None)
    assert left_in(tmp_path) == {"in.jsonl", "out.jsonl"}


async def test_a_server_that_stops_resuming_gives_no_line_twice(path: Path, tmp_path: Path) -> None:
    server = Server(resumes=True, content=in_turn(breaks(2)))
    async with running(server) as client:
        batch = await submit(client, path)

        def forget(call: Any) -> Action:
            if call.number > 1:
                server.resumes = False
            return breaks(2) if call.number == 1 else usual

        server.scripts["content"] = forget
        await results(client, batch.id, tmp_path / "out.jsonl")
    assert names((tmp_path / "out.jsonl").read_bytes()) == [f"r-{n}" for n in range(5)]


async def test_a_download_that_is_refused_leaves_nothing(path: Path, tmp_path: Path) -> None:
    server = Server(content=always(answers(404)))
    async with running(server) as client:
        batch = await submit(client, path)
        with pytest.raises(openai.NotFoundError):
            await results(client, batch.id, tmp_path / "out.jsonl")
        server.scripts["content"] = always(breaks(2))
        with pytest.raises(AutobatcherError, match="broke off"):
            await results(client, batch.id, tmp_path / "out.jsonl", patience=DAY / 4)
    assert left_in(tmp_path) == {"in.jsonl"}


async def test_files_that_lag_behind_their_batch_are_read_again(path: Path, tmp_path: Path) -> None:
    counts = {"completed": 5, "failed": 0, "total": 5}
    server = Server(
        Fate(change=lambda batch, _: {**batch, "request_counts": counts}),
        content=in_turn(breaks(2, cleanly=True), breaks(3, cleanly=True)),
    )
    async with running(server) as client:
        batch = await submit(client, path)
        found = await results(client, batch.id, tmp_path / "out.jsonl")
        assert found.all_answered
        assert len(names((tmp_path / "out.jsonl").read_bytes())) == 5
        server.scripts["content"] = always(breaks(2, cleanly=True))
        short = await results(client, batch.id, tmp_path / "out.jsonl", overwrite=True)
        assert (short.answered, short.missing, short.all_answered) == (2, 3, False)


def shows_inputs(path: Path) -> Script:
    """Downloads of files that are no results give this one."""
    shown = answers(200, text=path.read_text("utf-8"))
    return lambda call: shown if call.name.startswith("file-") else usual


def late(path: Path, fields: dict[str, Any], seconds: float) -> Server:
    """A server on which an ended batch has other fields at first."""
    counts = {"completed": 5, "failed": 0, "total": 5}

    def change(batch: dict[str, Any], age: float) -> dict[str, Any]:
        return {**batch, "request_counts": counts, **(fields if age < seconds else {})}

    return Server(Fate(change=change), content=shows_inputs(path))


@pytest.mark.parametrize(
    "fields", [{"output_file_id": None}, {"output_file_id": None, "request_counts": None}]
)
async def test_a_file_whose_id_comes_late_is_not_bought_again(
    path: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    async with running(late(path, fields, 60)) as client:
        batch = await submit(client, path)
        assert await retry(client, batch.id) is None
    async with running(late(path, fields, 60)) as client:
        batch = await submit(client, path)
        assert (await results(client, batch.id, tmp_path / "out.jsonl")).all_answered


@pytest.mark.parametrize(
    "fields", [{"output_file_id": None}, {"output_file_id": None, "request_counts": None}]
)
async def test_answers_that_stay_away_are_not_bought_again_unasked(
    path: Path, fields: dict[str, Any]
) -> None:
    server = late(path, fields, DAY)
    async with running(server) as client:
        batch = await submit(client, path)
        with pytest.raises(UnreadError, match=batch.id) as caught:
            await retry(client, batch.id)
        assert caught.value.unread in (1, 5)
        with pytest.raises(UnreadError):
            await remaining(client, batch.id)
        assert server.sizes == [5]
        assert await retry(client, batch.id, again=True) is not None
        assert server.sizes == [5, 5]


@pytest.mark.parametrize("counts", [(5, 2, 5), (3, 2, 5), (3, 2, None), (0, 0, 0)])
async def test_failed_requests_among_the_completed_ones_are_not_waited_for(
    path: Path, counts: tuple[int, int, int | None]
) -> None:
    given = dict(zip(("completed", "failed", "total"), counts, strict=True))
    server = Server(
        Fate(
            write=each({"text 0": refused(400), "text 1": refused(500)}),
            change=lambda batch, _: {**batch, "request_counts": given},
        ),
        content=shows_inputs(path),
    )
    async with running(server) as client:
        batch = await submit(client, path)
        left = await remaining(client, batch.id)
    assert (left.failed, left.missing, left.answered) == (2, 0, 3)
    assert server.count["retrieve"] == 1


async def test_a_last_line_without_an_end_counts_if_it_is_whole(path: Path, tmp_path: Path) -> None:
    async def unended(server: Server, call: Any) -> httpx.Response:
        return httpx.Response(200, stream=Pieces([b"\n".join(server.results(call))]))

    server = Server(content=always(unended))
    async with running(server) as client:
        batch = await submit(client, path)
        await results(client, batch.id, tmp_path / "out.jsonl")
    assert len(names((tmp_path / "out.jsonl").read_bytes())) == 5
    assert server.count["content"] == 1


async def test_lines_that_are_no_results_are_kept_and_counted(path: Path, tmp_path: Path) -> None:
    server = Server(content=always(page()))
    async with running(server) as client:
        batch = await submit(client, path)
        counts = await results(client, batch.id, tmp_path / "out.jsonl")
    assert (counts.answered, counts.malformed, counts.all_answered) == (0, 1, False)
    assert b"log in" in (tmp_path / "out.jsonl").read_bytes()


async def test_cancelling_what_is_about_to_end_is_no_error(path: Path) -> None:
    server = Server(Fate(after=60), cancel=always(answers(409)))
    async with running(server) as client:
        batch = await submit(client, path)
        assert (await cancel(client, batch.id)).status == "in_progress"
        await anyio.sleep(60)
        assert (await cancel(client, batch.id)).status == "completed"
    assert server.count["cancel"] >= 1


# On the embedded server, in process.


class Cutting(httpx.AsyncBaseTransport):
    """Passes calls on, and breaks off the first download of each file."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self._seen: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        if request.url.path.endswith("/content") and request.url.path not in self._seen:
            self._seen.add(request.url.path)
            whole = await response.aread()
            error = httpx.ReadError("broken off", request=request)
            return httpx.Response(200, stream=Pieces([whole[: len(whole) // 2]], error=error))
        return response


async def test_a_retry_takes_the_failed_and_the_missing_though_downloads_break_off(tmp_path: Path) -> None:
    config = LocalConfig(latency_seconds=3600, concurrency=2, clock=lambda: 1e9 + anyio.current_time())
    path = tmp_path / "in.jsonl"
    texts = ["one", "[[error:500]]", "three", "[[error:400]]", "five", "six"]
    path.write_bytes(b"".join(line(f"r-{n}", text) for n, text in enumerate(texts)))
    async with LocalBatchAPI(config) as api:
        transport = Cutting(httpx.ASGITransport(app=api.app))
        http_client = httpx.AsyncClient(base_url="http://local/v1", transport=transport)
        async with openai.AsyncOpenAI(
            api_key="k", base_url="http://local/v1", http_client=http_client
        ) as client:
            await client.models.list()  # which takes real time for the first call
            batch = await submit(client, path, metadata={"a": "b"})
            await anyio.sleep(2.5 * 3600)
            await cancel(client, batch.id)
            (ended,) = await watch(client, [batch.id])
            assert ended.status == "cancelled"
            lines = io.BytesIO()
            left = await remaining(client, batch.id, lines)
            assert isinstance(left, Remaining)
            assert (left.failed, left.missing, left.answered) == (2, 2, 2)
            assert names(lines.getvalue()) == ["r-1", "r-3", "r-4", "r-5"]
            assert lines.getvalue() == b"".join(
                path.read_bytes().splitlines(keepends=True)[n] for n in (1, 3, 4, 5)
            )
            other = await retry(client, batch.id)
            assert other is not None
            assert other.metadata == {"a": "b", "retry_of": batch.id}
            content = io.BytesIO()
            assert await get_file(client, other.input_file_id, content) == len(lines.getvalue())
            assert content.getvalue() == lines.getvalue()
            (ended,) = await watch(client, [other.id])
            assert standing(ended).failed == 2
            assert len([file async for file in list_files(client, "batch")]) == 2


async def test_azure_has_empty_files_and_other_urls(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(line("a", url="/chat/completions"))
    config = LocalConfig(azure=True, clock=lambda: 1e9 + anyio.current_time())
    async with (
        LocalBatchAPI(config) as api,
        openai.AsyncAzureOpenAI(
            api_key="k",
            azure_endpoint="http://local",
            api_version="2024-10-21",
            http_client=api.http_client(),
        ) as client,
    ):
        await client.models.list()
        batch = await submit(client, path)
        assert batch.endpoint == "/chat/completions"
        assert standing(batch).output_file_id is None
        (ended,) = await watch(client, [batch.id])
        assert ended.error_file_id
        counts = await results(
            client, batch.id, tmp_path / "out.jsonl", errors_to=tmp_path / "out.errors.jsonl"
        )
        assert counts.all_answered
        assert not (tmp_path / "out.errors.jsonl").exists()
        assert await retry(client, batch.id) is None


async def test_a_retry_of_a_retry_names_its_own(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(line("a", "[[error:429]]"))
    config = LocalConfig(clock=lambda: 1e9 + anyio.current_time())
    async with (
        LocalBatchAPI(config) as api,
        openai.AsyncOpenAI(api_key="k", base_url="http://local/v1", http_client=api.http_client()) as client,
    ):
        await client.models.list()
        batch = await submit(client, path)
        for _ in range(3):
            await watch(client, [batch.id])
            other = await retry(client, batch.id)
            assert other is not None
            assert other.metadata == {"retry_of": batch.id}
            batch = other


@pytest.mark.parametrize(
    ("status_code", "means_none"),
    [(404, True), (405, True), (501, True), (400, False), (403, False), (500, False)],
)
async def test_only_some_answers_mean_that_there_is_no_list_of_batches(
    path: Path, status_code: int, *, means_none: bool
) -> None:
    server = Server(Fate(write=each({"text 0": refused(400)})), content=shows_inputs(path))
    async with running(server) as client:
        batch = await submit(client, path)
        server.scripts["list"] = always(answers(status_code))
        if means_none:
            assert await retry(client, batch.id) is not None
        else:
            with pytest.raises(openai.APIStatusError):
                await retry(client, batch.id)
    assert server.sizes == ([5, 1] if means_none else [5])


@pytest.mark.parametrize(
    ("how", "error"),
    [
        (answers(200, {"id": "file-1", "object": "file", "deleted": False}), "not deleted file-1"),
        (page(), "could not be understood"),
        (answers(404), "404"),
    ],
)
async def test_what_is_not_deleted_is_not_said_to_be(how: Action, error: str) -> None:
    async with running(Server(other=always(how))) as client:
        with pytest.raises(openai.OpenAIError, match=error):
            await delete_file(client, "file-1")


async def test_a_server_that_does_not_say_whether_a_file_is_deleted_is_believed() -> None:
    async with running(Server(other=always(answers(200, {"id": "file-1"})))) as client:
        assert (await delete_file(client, "file-1")).id == "file-1"
