"""Requests on their way, and connections, without HTTP."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from autobatcher.core.outcomes import Answer
from autobatcher.serve.bodies import Asked
from autobatcher.serve.deliveries import Deliveries
from autobatcher.serve.serving import _listening, room
from autobatcher.serve.waiting import DEAD, Connection, Exchange, Exchanges

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

    async def ask(name: str) -> Answer:
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
