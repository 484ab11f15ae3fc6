"""Requests on their way, and connections, without HTTP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import openai
import pytest

from autobatcher._http import httpx
from autobatcher.core.outcomes import Answer
from autobatcher.serve.bodies import Asked
from autobatcher.serve.deliveries import Deliveries
from autobatcher.serve.replies import Refused
from autobatcher.serve.serving import _listening, room
from autobatcher.serve.waiting import DEAD, MOST_NAMED, Connection, Exchange, Exchanges

pytestmark = pytest.mark.anyio

ANSWER = Answer(200, None, b"{}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def answered() -> Answer:
    return ANSWER


async def never() -> Answer:
    await asyncio.Event().wait()
    return ANSWER


async def test_the_last_leaves_just_when_the_answer_comes() -> None:
    ends: list[bool] = []
    exchange, connection = Exchange(0), Connection()
    exchange.connections.add(connection)
    exchange.start(answered(), lambda: ends.append(exchange.settled))
    await asyncio.sleep(0)
    assert exchange.done
    exchange.leave(connection)
    for _ in range(3):
        await asyncio.sleep(0)
    assert ends == [False]  # nobody has it: the next one does


async def test_an_answer_that_one_of_several_has_is_delivered() -> None:
    ends: list[bool] = []
    exchange, first, second = Exchange(0), Connection(), Connection()
    exchange.connections |= {first, second}
    exchange.start(answered(), lambda: ends.append(exchange.settled))
    assert await first.woken(None)
    assert await second.woken(None)
    exchange.delivered = True
    exchange.leave(first)
    assert ends == []
    exchange.leave(second)
    assert ends == [True]


async def test_a_request_is_let_go_when_the_last_one_leaves() -> None:
    ends: list[bool] = []
    exchange, first, second = Exchange(0), Connection(), Connection()
    exchange.connections |= {first, second}
    exchange.start(never(), lambda: ends.append(exchange.settled))
    await asyncio.sleep(0)
    exchange.leave(first)
    await asyncio.sleep(0)
    assert not exchange.done
    exchange.leave(second)
    await exchange.over(10)
    assert ends == [False]


@pytest.mark.parametrize("idempotency", [None, "k"])
async def test_who_asks_again_before_there_is_a_batch_gets_the_same_request(
    idempotency: str | None, tmp_path: Path
) -> None:
    calls: list[str] = []
    answer = asyncio.Event()

    async def ask(name: str, hurries: Callable[[], bool]) -> Answer:
        calls.append(name)
        await answer.wait()
        return ANSWER

    exchanges = Exchanges(Deliveries(tmp_path / "served"), linger=60.0)
    asked = Asked("chat/completions", b"{}", {}, stream=False, streaming={}, digest=b"digest")
    found: list[Exchange] = []
    for _ in range(3):
        connection = Connection()
        exchange = exchanges.join(asked, ask, scope="s", attempt=0, idempotency=idempotency)
        exchange.connections.add(connection)
        await asyncio.sleep(0)
        exchange.leave(connection)
        found.append(exchange)
    assert found[0] is found[1] is found[2]
    assert len(calls) == 1
    again = exchanges.join(asked, ask, scope="s", attempt=0, idempotency=idempotency)
    again.connections.add(connection)
    if idempotency is None:  # one that waits while another does is another request
        other = exchanges.join(asked, ask, scope="s", attempt=0, idempotency=None)
        assert other is not again
    answer.set()
    assert await connection.woken(10)
    assert again.answer() is ANSWER


class Asking:
    """Calls that wait until they are answered, each with its name."""

    def __init__(self, tmp_path: Path, linger: float = 60.0) -> None:
        self.exchanges = Exchanges(Deliveries(tmp_path / "served"), linger=linger)
        self.calls: list[str] = []
        self.hurries: list[Callable[[], bool]] = []
        self.answers: list[asyncio.Future[Answer]] = []

    async def ask(self, name: str, hurries: Callable[[], bool]) -> Answer:
        self.calls.append(name)
        self.hurries.append(hurries)
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    def join(
        self, attempt: int = 0, idempotency: str | None = None, digest: bytes = b"digest"
    ) -> tuple[Exchange, Connection]:
        asked = Asked("chat/completions", b"{}", {}, stream=False, streaming={}, digest=digest)
        exchange = self.exchanges.join(asked, self.ask, scope="s", attempt=attempt, idempotency=idempotency)
        connection = Connection()
        exchange.connections.add(connection)
        return exchange, connection


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_retry_has_the_request_of_its_earlier_attempt_as_soon_as_that_is_found_dead(
    tmp_path: Path,
) -> None:
    asking = Asking(tmp_path)
    first, connection = asking.join()
    await turns()
    retry, _ = asking.join(attempt=1)
    await turns()
    assert len(asking.calls) == 1
    first.leave(connection)
    await turns()
    assert asking.calls[0] == asking.calls[1]
    asking.answers[1].set_result(ANSWER)
    await turns()
    assert retry.answer() is ANSWER


async def test_who_comes_just_when_a_request_is_let_go_gets_the_same(tmp_path: Path) -> None:
    asking = Asking(tmp_path, linger=0.0)
    first, connection = asking.join()
    await turns()
    first.leave(connection)
    first._let_go()
    asking.join()
    await turns()
    assert asking.calls[0] == asking.calls[1]


@pytest.mark.parametrize(
    "error", [TimeoutError(), openai.APIConnectionError(request=httpx.Request("GET", "http://a"))]
)
async def test_after_an_error_that_may_not_be_the_last_word_the_same_request_goes_on(
    error: Exception, tmp_path: Path
) -> None:
    asking = Asking(tmp_path)
    exchange, connection = asking.join()
    await turns()
    asking.answers[0].set_exception(error)
    assert await connection.woken(10)
    exchange.delivered = True
    exchange.leave(connection)
    asking.join()
    await turns()
    assert asking.calls[0] == asking.calls[1]


async def test_nobody_hurries_for_who_has_left(tmp_path: Path) -> None:
    asking = Asking(tmp_path)
    exchange, connection = asking.join()
    await turns()
    assert asking.hurries[0]()
    exchange.leave(connection)
    assert not asking.hurries[0]()


async def test_idempotency_keys_are_forgotten_one_by_one_while_others_wait(
    tmp_path: Path,
) -> None:
    asking = Asking(tmp_path)
    asking.join(idempotency="waits")
    await turns()
    for number in range(MOST_NAMED + 10):
        exchange, connection = asking.join(idempotency=f"key {number}", digest=f"{number}".encode())
        await asyncio.sleep(0)
        asking.answers[-1].set_result(ANSWER)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        exchange.leave(connection)
    with pytest.raises(Refused):
        asking.join(idempotency=f"key {MOST_NAMED}", digest=b"another")
    asking.join(idempotency="key 0", digest=b"another")  # which is forgotten
    with pytest.raises(Refused):
        asking.join(idempotency="waits", digest=b"another")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no such option")
def test_the_system_looks_for_dead_connections() -> None:
    with (
        _listening("127.0.0.1", 0) as (listener, _),
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == DEAD * 1000
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) < DEAD


def test_there_is_room_for_some() -> None:
    assert room(10) == 10
    assert 1 <= room(10**9) <= 10**9
