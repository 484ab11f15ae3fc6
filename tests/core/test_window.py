"""When a window is full, and what fits into one file."""

from __future__ import annotations

import pytest

from autobatcher.core.engine import Batch, Effect, Engine, Rearm, Upload
from autobatcher.core.window import Limits, OversizedError, Request, Window, check_fits_any


def make(custom_id: str, *, size: int = 10, weight: int = 1, model: str = "m") -> Request:
    return Request(custom_id, "/v1/embeddings", model, b"x" * size, reply=None, weight=weight)


def uploads(effects: list[Effect]) -> list[Batch]:
    return [effect.batch for effect in effects if isinstance(effect, Upload)]


def test_the_last_request_of_a_full_window_closes_it() -> None:
    engine = Engine(Limits(requests=3))
    assert uploads(engine.accept(make("a"), 0.0)) == []
    assert uploads(engine.accept(make("b"), 0.0)) == []
    (batch,) = uploads(engine.accept(make("c"), 0.5))
    assert list(batch.requests) == ["a", "b", "c"]
    assert batch.closed_at == 0.5
    assert engine.windows == {}


@pytest.mark.parametrize(
    ("limits", "size", "weight"),
    [
        pytest.param(Limits(size=20), 10, 1, id="bytes"),
        pytest.param(Limits(weight=8), 10, 4, id="weight"),
    ],
)
def test_a_window_that_is_filled_to_its_limit_closes_at_once(limits: Limits, size: int, weight: int) -> None:
    engine = Engine(limits)
    assert uploads(engine.accept(make("a", size=size, weight=weight), 0.0)) == []
    (batch,) = uploads(engine.accept(make("b", size=size, weight=weight), 0.0))
    assert list(batch.requests) == ["a", "b"]
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
        assert uploads(engine.accept(make(custom_id, size=size, weight=weight), 0.0)) == []
    effects = engine.accept(make("c", size=size, weight=weight), 0.5)
    (batch,) = uploads(effects)
    assert list(batch.requests) == ["a", "b"]
    assert any(isinstance(effect, Rearm) for effect in effects)
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
    (batch,) = uploads(Engine(limits).accept(request_, 0.0))
    assert list(batch.requests) == ["a"]


def test_endpoints_and_models_have_windows_of_their_own() -> None:
    engine = Engine(Limits(requests=2))
    chat = Request("c", "/v1/chat/completions", "m", b"x", reply=None)
    for request in (make("a"), make("b", model="other"), chat):
        assert uploads(engine.accept(request, 0.0)) == []
    assert len(engine.windows) == 3
    (batch,) = uploads(engine.accept(make("d"), 0.0))
    assert (batch.endpoint, batch.model, list(batch.requests)) == ("/v1/embeddings", "m", ["a", "d"])


def test_a_window_closes_its_seconds_after_its_first_request() -> None:
    engine = Engine(Limits(seconds=2.0))
    engine.accept(make("a"), 10.0)
    engine.accept(make("b"), 11.9)
    assert engine.next_wakeup() == 12.0
    assert engine.wake(11.99) == []
    (batch,) = uploads(engine.wake(12.0))
    assert list(batch.requests) == ["a", "b"]
    assert engine.next_wakeup() is None


def test_discarding_gives_the_room_back_once() -> None:
    window = Window(Limits(requests=2, size=25), closes_at=1.0)
    first, second = make("a", size=10, weight=3), make("b", size=15, weight=4)
    window.add(first)
    window.add(second)
    assert window.full
    assert not window.fits(make("c"))
    for _ in range(2):
        window.discard(second)
        assert not window.full
        assert window.fits(make("c"))
        assert (window.size, window.weight, list(window.requests)) == (10, 3, ["a"])
