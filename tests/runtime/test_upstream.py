"""The calls for batches, and what the core is told of their failures."""

from __future__ import annotations

import email.utils
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autobatcher._http import httpx
from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.outcomes import BatchProblem, Trouble
from autobatcher.core.window import Request
from autobatcher.runtime import upstream as module
from autobatcher.runtime.upstream import (
    MAX_NAME,
    MAX_TEXT,
    MORE_LINES,
    OddAnswerError,
    Piece,
    Upstream,
    UpstreamError,
    translated,
)

pytestmark = pytest.mark.anyio

Handler = Callable[[httpx.Request], httpx.Response]

BATCH = {"id": "b1", "object": "batch", "status": "in_progress", "input_file_id": "file-in"}


def upstream(handler: Handler, **options: Any) -> Upstream:
    client = openai.AsyncOpenAI(
        api_key="k",
        base_url="http://server.test/v1",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=httpx.MockTransport(handler)),
    )
    return Upstream(client, options.get("window", "24h"), options.get("metadata"))


def answering(content: object = None, status: int = 200, **headers: str) -> Handler:
    """A server that says the same to everything."""
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    kept = {"content-type": "application/json", **{key.replace("_", "-"): headers[key] for key in headers}}
    return lambda _: httpx.Response(status, headers=kept, content=raw)


def batch_of(*lines: bytes) -> Batch:
    requests = [
        Request(str(number), "/v1/embeddings", "m", line, len(line)) for number, line in enumerate(lines)
    ]
    return Batch.of(
        "/v1/embeddings",
        "m",
        {request.custom_id: request for request in requests},
        closed_at=0.0,
        not_before=0.0,
    )


async def read_all(up: Upstream, skip: int = 0) -> list[Piece]:
    return [piece async for piece in up.read_lines("f", skip, 10)]


CALLS: dict[str, Callable[[Upstream], Any]] = {
    "upload": lambda up: up.upload(batch_of(b"{}\n").requests),
    "create": lambda up: up.create(batch_of(b"{}\n"), "file-in"),
    "look up": lambda up: up.look_up("file-in"),
    "poll": lambda up: up.poll("b1"),
    "cancel": lambda up: up.cancel("b1"),
    "fetch": read_all,
}


async def trouble_of(call: str, handler: Handler) -> Trouble | None:
    try:
        await CALLS[call](upstream(handler))
    except UpstreamError as error:
        told = error
    else:
        return None
    assert told.failure.reason == str(told)
    assert told.__cause__ is told.failure.cause
    return told.failure.trouble


# --- what a failure means --------------------------------------------------------------------------------------

STATUSES = {
    **dict.fromkeys([400, 401, 402, 403, 413, 422, 451], Trouble.REFUSED),
    404: Trouble.NOT_FOUND,
    **dict.fromkeys([429, 503], Trouble.BUSY),
    **dict.fromkeys([408, 409, 500, 502, 504, 520, 529, 599], Trouble.PASSING),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("status", "trouble"), STATUSES.items())
async def test_statuses(call: str, status: int, trouble: Trouble) -> None:
    found = await trouble_of(call, answering({"error": {"message": "no"}}, status))
    if call == "cancel" and status == 409:  # it has ended already
        assert found is None
    else:
        assert found is trouble


@pytest.mark.parametrize(
    ("said", "status"),
    [("cancelling", "cancelling"), ("Canceled", "cancelled"), (None, "cancelling"), (7, "cancelling")],
)
async def test_what_a_cancellation_comes_to(said: object, status: str) -> None:
    assert await upstream(answering(BATCH | {"status": said})).cancel("b1") == status


@pytest.mark.parametrize(
    ("message", "trouble"),
    [
        ("No such File object: file-1", Trouble.NOT_FOUND),
        ("no such file", Trouble.NOT_FOUND),
        ("The file 'file-1' was not found", Trouble.NOT_FOUND),
        ("Input file does not exist.", Trouble.NOT_FOUND),
        ("File file-1 is not ready yet", Trouble.NOT_FOUND),
        ("The model is not found", Trouble.REFUSED),
        ("x" * MAX_TEXT + " no such file", Trouble.REFUSED),
        ("", Trouble.REFUSED),
    ],
)
async def test_a_400_that_tells_of_a_missing_file(message: str, trouble: Trouble) -> None:
    assert await trouble_of("create", answering({"error": {"message": message}}, 400)) is trouble


ODD_BODIES: dict[str, bytes] = {
    "page": b"<html>all is well</html>",
    "empty": b"",
    "null": b"null",
    "number": b"7",
    "list": b"[]",
    "list of lists": b"[[[]]]",
    "text": b'"batch"',
    "no id": b'{"object":"batch","status":"completed"}',
    "id null": b'{"id":null,"status":"completed"}',
    "id a number": b'{"id":7,"status":"completed"}',
    "id empty": b'{"id":"","status":"completed"}',
    "id too long": b'{"id":"' + b"x" * (MAX_NAME + 1) + b'","status":"completed"}',
    "cut": b'{"id":"b1","status":"comp',
    "no utf-8": b'{"id":"b\xff\xfe","status":"completed"}',
    "utf-16": b"\xff\xfe{",
    "nested": b'{"id":' + b"[" * 100_000,
    "long number": b'{"id":' + b"9" * 5_000 + b"}",
}


@pytest.mark.parametrize("call", ["upload", "create", "look up", "poll"])
@pytest.mark.parametrize("body", ODD_BODIES.values(), ids=ODD_BODIES.keys())
@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
async def test_an_answer_that_is_none(call: str, body: bytes, content_type: str) -> None:
    handler = answering(body, content_type=content_type)
    assert await trouble_of(call, handler) is Trouble.ODD


@pytest.mark.parametrize("call", ["create", "poll"])
@pytest.mark.parametrize("status", [None, "", 7, [], {}, "x" * (MAX_NAME + 1)])
async def test_a_batch_without_a_status_is_no_answer(call: str, status: object) -> None:
    assert await trouble_of(call, answering({**BATCH, "status": status})) is Trouble.ODD


async def test_a_poll_that_tells_of_another_batch_is_no_answer() -> None:
    assert await trouble_of("poll", answering({**BATCH, "id": "b2"})) is Trouble.ODD


class Broken(httpx.AsyncByteStream):
    def __init__(self, error: Exception, content: bytes) -> None:
        self.error, self.content = error, content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content
        raise self.error


LOST = [httpx.ReadError("x"), httpx.ReadTimeout("x"), httpx.WriteError("x"), httpx.RemoteProtocolError("x")]
UNSENT = [httpx.ConnectError("x"), httpx.ConnectTimeout("x"), httpx.PoolTimeout("x")]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [*LOST, *UNSENT], ids=lambda error: type(error).__name__)
async def test_a_connection_that_is_lost_may_have_had_its_effect_and_one_that_never_was_has_not(
    call: str, error: Exception
) -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise error

    assert await trouble_of(call, handler) is (Trouble.BUSY if error in UNSENT else Trouble.PASSING)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
async def test_an_answer_that_breaks_off(call: str, error: Exception) -> None:
    content = b'{"id":"b1",'
    found = await trouble_of(call, lambda _: httpx.Response(200, stream=Broken(error, content)))
    assert found is Trouble.PASSING


@pytest.mark.parametrize("call", CALLS)
async def test_an_answer_that_does_not_decode(call: str) -> None:
    handler = answering(b"no gzip", content_encoding="gzip")
    assert await trouble_of(call, handler) in (Trouble.PASSING, Trouble.ODD)


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (OddAnswerError("x"), Trouble.ODD),
        (json.JSONDecodeError("x", "y", 0), Trouble.ODD),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"), Trouble.ODD),
        (OSError(5, "the line cannot be read from disk"), Trouble.ODD),
        (openai.OpenAIError("no key"), Trouble.REFUSED),
        (RuntimeError("of a callable that is to give the key"), Trouble.ODD),
    ],
)
async def test_other_errors(error: Exception, trouble: Trouble) -> None:
    failure = translated(error).failure
    assert (failure.trouble, failure.cause, failure.reason) == (trouble, error, type(error).__name__)
    assert failure.retry_after is None


async def test_a_reason_holds_nothing_of_a_request() -> None:
    failure = translated(ValueError("secret prompt")).failure
    assert "secret" not in failure.reason
    with pytest.raises(UpstreamError) as caught:
        await upstream(answering({"error": {"message": "secret prompt"}}, 400)).poll("b1")
    assert caught.value.failure.reason == "status 400"


# --- Retry-After -----------------------------------------------------------------------------------------------


async def retry_after(**headers: str) -> float | None:
    with pytest.raises(UpstreamError) as caught:
        await upstream(answering({}, 429, **headers)).poll("b1")
    return caught.value.failure.retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("1e9", 1e9),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("1e999", None),
        ("soon", None),
        ("", None),
        ("7 s", None),
        ("Mon, 30 Feb 2026 00:00:00 GMT", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),  # long ago
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
        ("Wed, 21 Oct 2015", None),
    ],
)
async def test_retry_after(text: str, seconds: float | None) -> None:
    assert await retry_after(retry_after=text) == seconds


@pytest.mark.parametrize("zone", ["GMT", "+0000", "-0000"])
async def test_retry_after_as_a_date(zone: str) -> None:
    date = email.utils.formatdate(time.time() + 1_000, usegmt=True).replace("GMT", zone)
    seconds = await retry_after(retry_after=date)
    assert seconds is not None
    assert 990 < seconds <= 1_000


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1500", 1.5), ("0", 0.0), ("-5", 100.0), ("nan", 100.0), ("inf", 100.0), ("x", 100.0)],
)
async def test_retry_after_ms_goes_before_if_it_makes_sense(text: str, seconds: float) -> None:
    assert await retry_after(retry_after_ms=text, retry_after="100") == seconds


async def test_without_the_header_nothing_is_asked() -> None:
    assert await retry_after() is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(st.characters(codec="ascii"), max_size=40)
    | st.from_regex(
        re.compile(r"(Mon, )?\d{1,2} [A-Z][a-z]{2} \d{1,5}( [\d:+-]{0,12})?", re.ASCII), fullmatch=True
    )
)
@example("Mon, 01 Jan 0001 00:00:00 -0000")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example(" ")
@example("1 Jan 2026 99:99:99 +9999999999")
def test_any_header_is_a_number_of_seconds_or_nothing(text: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        seconds = module._retry_after(httpx.Headers({name: text}))
        assert seconds is None or 0 <= seconds < float("inf")


# --- uploads and creations -------------------------------------------------------------------------------------


async def test_an_upload_is_one_file_of_all_lines_and_says_how_long_it_is() -> None:
    seen: list[httpx.Request] = []

    async def keep(request: httpx.Request) -> httpx.Response:
        await request.aread()
        seen.append(request)
        return httpx.Response(200, json={"id": "file-in", "object": "file"})

    client = openai.AsyncOpenAI(
        api_key="k",
        base_url="http://server.test/v1",
        http_client=httpx.AsyncClient(transport=httpx.MockTransport(keep)),
    )
    batch = batch_of(b'{"a":1}\n', b'{"b":2}\n')
    assert await Upstream(client, "24h", None).upload(batch.requests) == "file-in"
    (request,) = seen
    assert (request.method, request.url.path) == ("POST", "/v1/files")
    assert b'\r\n\r\n{"a":1}\n{"b":2}\n\r\n--' in request.content
    assert b'name="purpose"\r\n\r\nbatch\r\n' in request.content
    assert b'filename="batch.jsonl"' in request.content
    assert int(request.headers["content-length"]) == len(request.content)
    assert "transfer-encoding" not in request.headers


@pytest.mark.parametrize("metadata", [None, {}, {"a": "b"}])
async def test_a_creation_says_what_the_options_say(metadata: dict[str, str] | None) -> None:
    bodies: list[Any] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json=BATCH)

    made = await upstream(handler, window="1h", metadata=metadata).create(batch_of(b"{}\n"), "file-in")
    assert made == Snapshot("b1", "in_progress")
    expected: dict[str, object] = {
        "input_file_id": "file-in",
        "endpoint": "/v1/embeddings",
        "completion_window": "1h",
    }
    assert bodies == [expected if metadata is None else {**expected, "metadata": metadata}]


@pytest.mark.parametrize("call", CALLS)
async def test_each_call_goes_out_once(call: str) -> None:
    paths: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.path)
        return httpx.Response(500, json={})

    assert await trouble_of(call, handler) is Trouble.PASSING
    assert len(paths) == 1


# --- snapshots -------------------------------------------------------------------------------------------------


async def polled(**fields: object) -> Snapshot:
    return await upstream(answering({**BATCH, **fields})).poll("b1")


@pytest.mark.parametrize("name", ["output_file_id", "error_file_id"])
@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("f", "f"),
        ("x" * MAX_NAME, "x" * MAX_NAME),
        ("x" * (MAX_NAME + 1), None),
        (None, None),
        (7, None),
        ([], None),
        ({}, None),
        (True, None),
    ],
)
async def test_a_file_id_is_a_short_text_or_none(name: str, value: object, kept: str | None) -> None:
    snapshot = await polled(**{name: value})
    assert getattr(snapshot, name) == kept
    assert snapshot.file_ids == ((kept,) if kept else ())


async def test_the_problems_of_a_batch() -> None:
    errors = {
        "object": "list",
        "data": [
            {"code": "c", "message": "m", "line": 3, "param": "p"},
            {},
            {"code": None, "message": None, "line": None},
            {"code": 7, "message": ["x"], "line": "3", "param": {"a": 1}},
            {"line": True},
            {"line": 2.5},
            {"line": -(10**30)},
            {"code": "x" * 10_000, "message": "y" * 10_000, "param": "z" * 10_000},
        ],
    }
    first, empty, nulls, typed, boolean, half, huge, long = (
        await polled(status="failed", errors=errors)
    ).problems
    assert first == BatchProblem("c", "m", 3, "p")
    assert empty == nulls == BatchProblem(None, None)
    assert half.line is None
    assert all(type(item.line) in (int, type(None)) for item in (typed, boolean))  # as the SDK converts them
    assert (typed.code, typed.message) == ("7", "['x']")
    assert huge.line == -(10**30)
    assert [len(text or "") for text in (long.code, long.message, long.param)] == [
        MAX_NAME,
        MAX_TEXT,
        MAX_NAME,
    ]


@pytest.mark.parametrize("errors", [None, {}, [], "x", 7, {"data": None}, {"data": {}}, {"data": "x"}])
async def test_problems_of_another_form_are_none(errors: object) -> None:
    assert (await polled(errors=errors)).problems == ()


@pytest.mark.parametrize("item", [None, 7, "x", [], True])
async def test_a_problem_of_another_form_says_nothing(item: object) -> None:
    assert (await polled(errors={"data": [item]})).problems == (BatchProblem(None, None),)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    [
        "id",
        "status",
        "input_file_id",
        "output_file_id",
        "error_file_id",
        "errors",
        "data",
        "has_more",
        "object",
    ]
)
alike = st.dictionaries(names, json_values | st.just("b1") | st.just("file-in"), max_size=9)
odd_json = json_values | alike | st.fixed_dictionaries({"data": st.lists(json_values | alike, max_size=3)})


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["upload", "create", "look up", "poll"]), odd_json)
def test_any_json_is_an_answer_or_an_odd_one(call: str, value: object) -> None:
    import anyio  # noqa: PLC0415 -- only this test runs a loop of its own

    assert anyio.run(trouble_of, call, answering(value)) in (None, Trouble.ODD)


# --- look-ups --------------------------------------------------------------------------------------------------


class List:
    """A server's list of batches, newest first, in pages."""

    def __init__(self, batches: list[dict[str, Any]], page: int, **extra: Any) -> None:
        self.batches, self.page, self.extra = batches, page, extra
        self.asked: list[dict[str, str]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        asked = dict(request.url.params)
        self.asked.append(asked)
        ids = [batch["id"] for batch in self.batches]
        start = ids.index(asked["after"]) + 1 if "after" in asked else 0
        data = self.batches[start : start + self.page]
        body = {"object": "list", "data": data, "has_more": start + self.page < len(ids), **self.extra}
        return httpx.Response(200, json={key: value for key, value in body.items() if value is not ...})


def listed(count: int) -> list[dict[str, Any]]:
    return [{**BATCH, "id": f"b{number}", "input_file_id": f"f{number}"} for number in range(count)]


@pytest.mark.parametrize("more", [None, ...], ids=["has_more null", "no has_more"])
@pytest.mark.parametrize("wanted", [0, 1, 2, 4, 6, None])
async def test_a_batch_is_found_on_whatever_page_it_is(wanted: int | None, more: object) -> None:
    server = List(listed(7), 2, **({} if more is None else {"has_more": more}))
    found = await upstream(server).look_up("nowhere" if wanted is None else f"f{wanted}")
    if wanted is None:
        assert found is None
        assert len(server.asked) >= 4
    else:
        assert found == Snapshot(f"b{wanted}", "in_progress")
        assert len(server.asked) == wanted // 2 + 1
    assert server.asked[0] == {"limit": "100"}
    assert [asked.get("after") for asked in server.asked[1:4]] == ["b1", "b3", "b5"][: len(server.asked) - 1]


async def test_an_empty_list_ends_whatever_it_says_of_more() -> None:
    for more in (True, False, None, ...):
        assert await upstream(List([], 2, has_more=more)).look_up("f") is None


async def test_has_more_false_ends_a_list() -> None:
    server = List(listed(7), 2, has_more=False)
    assert await upstream(server).look_up("f6") is None
    assert len(server.asked) == 1


async def test_a_list_that_goes_round_in_a_circle_is_odd() -> None:
    page = {"object": "list", "data": listed(2), "has_more": True}
    assert await trouble_of("look up", answering(page)) is Trouble.ODD


async def test_a_list_without_end_is_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAGES", 5)
    asked: Iterator[int] = iter(range(100))

    def endless(_: httpx.Request) -> httpx.Response:
        number = next(asked)
        return httpx.Response(
            200, json={"data": [{**BATCH, "id": f"b{number}", "input_file_id": "f"}], "has_more": True}
        )

    assert await trouble_of("look up", endless) is Trouble.ODD
    assert next(asked) == 5


@pytest.mark.parametrize(
    "body",
    [
        {"data": None},
        {"data": {}},
        {"data": "x"},
        {"object": "list"},
        {"data": [None]},
        {"data": ["b1"]},
        {"data": [{"id": "b1"}]},
        {"data": [{**BATCH, "input_file_id": 7}]},
        {"data": [{**BATCH, "id": None}]},
        {"data": [{**BATCH, "input_file_id": "other", "id": None}], "has_more": True},
    ],
)
async def test_a_list_that_leaves_it_open_whether_the_batch_is_there_is_odd(body: object) -> None:
    """For "not there" means that it is made, and paid for, once more."""
    assert await trouble_of("look up", answering(body)) is Trouble.ODD


async def test_a_batch_of_stored_blobs_is_not_ours() -> None:
    body = {"data": [{**BATCH, "input_file_id": None, "input_blob": "https://x/y"}], "has_more": False}
    assert await upstream(answering(body)).look_up("f") is None


async def test_a_found_batch_counts_whatever_comes_after_it() -> None:
    page = {"data": [BATCH, None, {"id": 7}]}
    assert await upstream(answering(page)).look_up("file-in") == Snapshot("b1", "in_progress")


# --- files -----------------------------------------------------------------------------------------------------


def chunked(content: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(cut, len(content)) for cut in cuts} | {0, len(content)})
    return [content[start:end] for start, end in itertools.pairwise(places)]


contents = st.lists(
    st.binary(max_size=12) | st.sampled_from([b"", b"\r", b" ", b"\x85", b"\xe2\x80\xa8", b"{}"]), max_size=8
).map(b"\n".join)


@given(contents, st.lists(st.integers(0, 60), max_size=10))
def test_lines_are_what_stands_between_newlines_however_it_is_cut(content: bytes, cuts: list[int]) -> None:
    splitter = module._Splitter()
    lines = [line for chunk in chunked(content, cuts) for line in splitter.feed(chunk)]
    *whole, rest = content.split(b"\n")
    assert lines == whole
    assert splitter.rest() == rest.strip()


def test_a_line_beyond_measure_is_cut_short_and_the_next_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_RESULT_LINE", 10)
    splitter = module._Splitter()
    lines = [line for _ in range(1_000) for line in splitter.feed(b"xxxx")]
    assert lines == []
    first, second = splitter.feed(b"\nab\ncd")
    assert len(first) <= 10 + 4
    assert (second, splitter.rest()) == (b"ab", b"cd")


class Pieces(httpx.AsyncByteStream):
    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


@pytest.mark.parametrize("incomplete", [None, "true", "false"])
@pytest.mark.parametrize("skip", [0, 2])
async def test_positions_are_those_of_the_file(skip: int, incomplete: str | None) -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.query.decode())
        headers = {} if incomplete is None else {"X-Incomplete": incomplete}
        return httpx.Response(200, headers=headers, stream=Pieces([b"a\n\nb", b"b\n", b"c", b"c"]))

    pieces = await read_all(upstream(handler), skip)
    assert asked == [f"skip={skip}" if skip else ""]
    resumes = incomplete is not None
    first = skip if resumes else 0  # what does not say that it can skip has not
    assert pieces == [
        Piece([b"a", b"bb"], first + 3, resumes),
        Piece([b"cc"], first + 3, resumes),  # it may be cut short: its newline was not seen
    ]


async def test_a_large_file_comes_in_pieces() -> None:
    line = b"x" * 1023
    chunks = [(line + b"\n") * 100] * 13
    up = upstream(lambda _: httpx.Response(200, stream=Pieces(chunks)))
    assert await read_all(up) == [
        Piece([line] * count, last, resumes=False) for count, last in ((600, 600), (600, 1200), (100, 1300))
    ]


@pytest.mark.parametrize("incomplete", [True, False])
async def test_a_file_that_breaks_off_has_given_its_whole_lines(*, incomplete: bool) -> None:
    headers = {"X-Incomplete": "true"} if incomplete else {}
    stream = Broken(httpx.ReadError("x"), b"a\nb\nhalf of a li")
    up = upstream(lambda _: httpx.Response(200, headers=headers, stream=stream))
    lines: list[bytes] = []

    async def read() -> None:
        async for piece in up.read_lines("f", 0, 10):
            lines.extend(piece.lines)

    with pytest.raises(UpstreamError) as caught:
        await read()
    assert lines == [b"a", b"b"]
    assert caught.value.failure.trouble is Trouble.PASSING


async def test_an_empty_file_has_no_lines() -> None:
    assert await read_all(upstream(answering(b""))) == []
    assert await read_all(upstream(answering(b" \r\n"))) in ([], [Piece([], 1, resumes=False)])


async def test_a_page_in_place_of_a_file_is_lines_like_any_other() -> None:
    (piece,) = await read_all(upstream(answering(b"<html>")))
    assert piece.lines == [b"<html>"]


class Endless(httpx.AsyncByteStream):
    """The same lines, for ever."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield b"{}\n" * 10_000


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # the SDK's, under trio
async def test_a_file_without_an_end_is_given_up() -> None:
    up = upstream(lambda _: httpx.Response(200, stream=Endless()))
    count = 0
    with pytest.raises(UpstreamError, match="OddAnswerError") as caught:  # noqa: PT012 -- it is raised in between
        async for piece in up.read_lines("f", 0, 10):
            count += len(piece.lines)
    assert caught.value.failure.trouble is Trouble.ODD
    assert MORE_LINES <= count <= 2 * MORE_LINES


async def test_a_poll_waits_for_its_answer_half_a_minute_at_most() -> None:
    waits: list[object] = []

    def note(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        return httpx.Response(200, json={**BATCH, "id": "b1"})

    up = upstream(note)
    await up.poll("b1")
    up.client.timeout = 5.0
    await up.poll("b1")
    assert waits == [30.0, 5.0]
