"""When a window is full, and what fits into one file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatcher.core.batch import Batch
from autobatcher.core.engine import Engine
from autobatcher.core.messages import Upload
from autobatcher.core.window import (
    MAX_BYTES,
    MAX_LINES,
    Limits,
    OversizedError,
    Request,
    Window,
    check_fits_any,
)


def make(
    custom_id: str, *, size: int = 10, weight: int = 1, model: str = "m", tokens: float = 0.0
) -> Request:
    return Request(custom_id, "/v1/embeddings", model, b"", size, weight=weight, tokens=tokens)


def uploads(engine: Engine, now: float) -> list[Batch]:
    """The batches that are sent now."""
    return [call.batch for call in engine.wake(now) if isinstance(call, Upload)]


def test_the_last_request_of_a_full_window_closes_it() -> None:
    engine = Engine(Limits(requests=3))
    for custom_id in "ab":
        engine.accept(make(custom_id), 0.0)
        assert uploads(engine, 0.0) == []
    engine.accept(make("c"), 0.5)
    assert engine.windows == {}
    assert engine.next_wakeup() == 0.5
    (batch,) = uploads(engine, 0.5)
    assert [request.custom_id for request in batch.requests] == ["a", "b", "c"]
    assert batch.closed_at == 0.5


@pytest.mark.parametrize(
    ("limits", "size", "weight"),
    [
        pytest.param(Limits(size=20), 10, 1, id="bytes"),
        pytest.param(Limits(weight=8), 10, 4, id="weight"),
    ],
)
def test_a_window_that_is_filled_to_its_limit_closes_at_once(limits: Limits, size: int, weight: int) -> None:
    engine = Engine(limits)
    engine.accept(make("a", size=size, weight=weight), 0.0)
    assert uploads(engine, 0.0) == []
    engine.accept(make("b", size=size, weight=weight), 0.0)
    (batch,) = uploads(engine, 0.0)
    assert list(batch.entries) == ["a", "b"]
    assert batch.size == 20


@pytest.mark.parametrize(
    ("limits", "size", "weight"),
    [
        pytest.param(Limits(size=25), 10, 1, id="bytes"),
        pytest.param(Limits(weight=10), 10, 4, id="weight"),
    ],
)
def test_the_request_that_crosses_a_limit_opens_the_next_window(
    limits: Limits, size: int, weight: int
) -> None:
    engine = Engine(limits)
    for custom_id in ("a", "b"):
        engine.accept(make(custom_id, size=size, weight=weight), 0.0)
        assert uploads(engine, 0.0) == []
    engine.accept(make("c", size=size, weight=weight), 0.5)
    (batch,) = uploads(engine, 0.5)
    assert list(batch.entries) == ["a", "b"]
    (window,) = engine.windows.values()
    assert list(window.requests) == ["c"]
    assert (window.size, window.weight) == (size, weight)
    assert engine.next_wakeup() == 1.5


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        pytest.param(make("big", size=1_001), ["1,001 bytes", "1,000"], id="bytes"),
        pytest.param(make("big", weight=2_001), ["2,001 inputs", "2,000"], id="weight"),
    ],
)
def test_a_request_too_large_for_any_file_is_refused_and_leaves_the_window_alone(
    request_: Request, said: list[str]
) -> None:
    engine = Engine(Limits(size=1_000, weight=2_000))
    with pytest.raises(OversizedError) as alone:
        engine.accept(request_, 0.0)
    assert engine.windows == {}
    assert request_.place is None
    engine.accept(make("a"), 0.0)
    with pytest.raises(OversizedError):
        engine.accept(request_, 0.0)
    (window,) = engine.windows.values()
    assert list(window.requests) == ["a"]
    for words in said:
        assert words in str(alone.value)


@pytest.mark.parametrize(
    "request_",
    [pytest.param(make("a", size=1_000), id="bytes"), pytest.param(make("a", weight=50), id="weight")],
)
def test_a_request_of_exactly_the_limit_fits(request_: Request) -> None:
    limits = Limits(size=1_000, weight=50)
    check_fits_any(request_, limits)
    engine = Engine(limits)
    engine.accept(request_, 0.0)
    (batch,) = uploads(engine, 0.0)
    assert list(batch.entries) == ["a"]


def test_the_limits_are_openais() -> None:
    assert (Limits().weight, Limits().size, Limits().tokens) == (MAX_LINES, MAX_BYTES, None)
    assert (MAX_LINES, MAX_BYTES) == (50_000, 200_000_000)


def test_endpoints_and_models_have_windows_of_their_own() -> None:
    engine = Engine(Limits(requests=2))
    chat = Request("c", "/v1/chat/completions", "m", b"", 1)
    for request in (make("a"), make("b", model="other"), chat):
        engine.accept(request, 0.0)
        assert uploads(engine, 0.0) == []
    assert len(engine.windows) == 3
    engine.accept(make("d"), 0.0)
    (batch,) = uploads(engine, 0.0)
    assert (batch.endpoint, batch.model, list(batch.entries)) == ("/v1/embeddings", "m", ["a", "d"])


def test_a_window_closes_its_seconds_after_its_first_request() -> None:
    engine = Engine(Limits(seconds=2.0))
    engine.accept(make("a"), 10.0)
    engine.accept(make("b"), 11.9)
    assert engine.next_wakeup() == 12.0
    assert engine.wake(11.99) == []
    (batch,) = uploads(engine, 12.0)
    assert list(batch.entries) == ["a", "b"]
    assert engine.next_wakeup() is None


def test_discarding_gives_the_room_back_once() -> None:
    window = Window(Limits(requests=2, size=25), closes_at=1.0)
    first, second = make("a", size=10, weight=3), make("b", size=15, weight=4, tokens=7.0)
    window.add(first)
    window.add(second)
    assert (first.place, second.place) == (window, window)
    assert window.full
    assert not window.fits(make("c"))
    for _ in range(2):
        window.discard(second)
        assert second.place is None
        assert not window.full
        assert window.fits(make("c"))
        assert (window.size, window.weight, window.tokens, list(window.requests)) == (10, 3, 0.0, ["a"])


def test_a_window_holds_so_many_tokens_or_a_single_request_that_has_more() -> None:
    limits = Limits(tokens=100.0)
    window = Window(limits, closes_at=1.0)
    huge = make("a", tokens=1_000.0)
    assert window.fits(huge)
    window.add(huge)
    assert window.full
    assert not window.fits(make("b", tokens=0.1))

    window = Window(limits, closes_at=1.0)
    window.add(make("a", tokens=60.0))
    assert not window.full
    assert window.fits(make("b", tokens=40.0))
    assert not window.fits(make("b", tokens=40.1))
    window.add(make("b", tokens=40.0))
    assert window.full


sizes = st.lists(
    st.tuples(st.integers(1, 50), st.integers(1, 5), st.floats(0, 30), st.sampled_from("mn")), max_size=30
)


@given(requests=sizes, lines=st.integers(1, 6), size=st.integers(50, 100), weight=st.integers(5, 12))
def test_no_file_holds_more_than_it_may(
    requests: list[tuple[int, int, float, str]], lines: int, size: int, weight: int
) -> None:
    engine = Engine(Limits(requests=lines, size=size, weight=weight, tokens=40.0))
    engine.admission.max_tokens = 40
    engine.admission.measure("m", 10**9, 10**9)  # a byte is a token
    for number, (bytes_, lines_, _, model) in enumerate(requests):
        engine.accept(make(str(number), size=bytes_, weight=lines_, model=model), 0.0)
    engine.wake(1.0)
    batches = list(engine.batches.values())  # whether or not there is room for them at the server
    found = sorted(int(name) for batch in batches for name in batch.entries)
    assert found == list(range(len(requests)))
    for batch in batches:
        inside = list(batch.requests)
        assert len(inside) <= lines
        assert batch.size == sum(request.size for request in inside) <= size
        assert sum(request.weight for request in inside) <= weight
        assert sum(request.tokens for request in inside) <= 40.01 or len(inside) == 1
        assert {request.model for request in inside} == {batch.model}
        numbers = [int(request.custom_id) for request in inside]
        assert numbers == sorted(numbers)
