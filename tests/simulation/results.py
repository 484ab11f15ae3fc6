"""What a result file looks like on the wire: lines lost, garbled, doubled or late; downloads that stop too early."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import anyio

from autobatcher._http import httpx
from tests.simulation.ledger import Ledger, ServerBatch

_FATES = {
    "missing": 2.0,
    "malformed": 2.0,
    "status 0": 1.0,
    "late": 4.0,
    "malformed at first": 2.0,
    "doubled": 4.0,
    "beside a stranger": 3.0,
}
FOR_GOOD = frozenset({"missing", "malformed", "status 0"})

MOST_LOOKS = 3
"""How often a file is read without the lines that come late."""

_STRANGERS = (
    b'{"custom_id": "nobody", "response": {"status_code": 200, "body": {}}, "error": null}',
    b'{"custom_id": "", "response": null, "error": {"code": null, "message": "for nobody"}}',
    b'{"custom_id": 7, "response": {"status_code": 200, "body": {}}}',
)


@dataclass(frozen=True)
class ResultLine:
    """A line as it is sent; `tells`: the name, status and error code of what the client is to take from it."""

    data: bytes
    tells: tuple[str, int, str | None] | None


@dataclass
class _File:
    fates: dict[str, tuple[str, int]] = field(default_factory=dict)
    reads: int = 0


class ResultFiles:
    """All result files, each with the fates of its lines; a line's fate is drawn when it first is in the file."""

    def __init__(self, seed: int, ledger: Ledger) -> None:
        self._rng = random.Random(f"{seed}/lines")
        self._ledger = ledger
        self._files: dict[str, _File] = {}

    def lines(self, file_id: str, record: ServerBatch, data: bytes, rate: float) -> list[ResultLine]:
        """The true lines of a file, as they are sent this time."""
        file = self._files.setdefault(file_id, _File())
        sent: list[ResultLine] = []
        for line in data.splitlines():
            told = self._tells(line)
            custom_id = told[0]
            if custom_id not in file.fates:
                file.fates[custom_id] = self._draw(record, custom_id, rate)
            sent += self._sent(line, told, *file.fates[custom_id], file.reads)
        return sent

    def _tells(self, line: bytes) -> tuple[str, int, str | None]:
        loaded = json.loads(line)
        response, error = loaded["response"], loaded["error"]
        return (
            self._ledger.names[loaded["custom_id"]],
            0 if response is None else response["status_code"],
            None if error is None else error["code"],
        )

    def read(self, file_id: str) -> None:
        """The file was read to its end after the end of its batch."""
        self._files[file_id].reads += 1

    def _draw(self, record: ServerBatch, custom_id: str, rate: float) -> tuple[str, int]:
        if self._rng.random() >= rate:
            return "", 0
        fate = self._rng.choices(list(_FATES), list(_FATES.values()))[0]
        if fate in FOR_GOOD:
            record.spoiled[custom_id] = fate
        self._ledger.faults[f"line: {fate}"] += 1
        return fate, self._rng.randint(1, MOST_LOOKS)

    def _sent(
        self, line: bytes, told: tuple[str, int, str | None], fate: str, looks: int, reads: int
    ) -> list[ResultLine]:
        good = ResultLine(line, told)
        match fate:
            case "missing":
                return []
            case "late":
                return [good] if reads >= looks else []
            case "malformed":
                return [ResultLine(_garbled(line, looks), None)]
            case "malformed at first":
                return [good if reads >= looks else ResultLine(_garbled(line, looks), None)]
            case "status 0":
                return [ResultLine(_without_status(line), None)]
            case "doubled":
                return [good, ResultLine(_contradicting(line), None)]
            case "beside a stranger":
                return [ResultLine(_STRANGERS[looks % len(_STRANGERS)], None), good]
        return [good]


def _garbled(line: bytes, way: int) -> bytes:
    custom_id = json.loads(line)["custom_id"]
    ways = (line[: len(line) // 2], b"\xff\xfe\x00" + line, b"null", b"[]")
    hollow = json.dumps({"custom_id": custom_id, "response": None, "error": None}).encode()
    odd = json.dumps({"custom_id": custom_id, "response": "200", "error": []}).encode()
    return (*ways, hollow, odd)[(way * 5 + len(line)) % 6]


def _without_status(line: bytes) -> bytes:
    loaded = json.loads(line)
    loaded["response"], loaded["error"] = {"status_code": 0, "request_id": "", "body": None}, None
    return json.dumps(loaded).encode()


def _contradicting(line: bytes) -> bytes:
    loaded = json.loads(line)
    loaded["response"] = {
        "status_code": 418,
        "request_id": "second",
        "body": {"error": {"message": "second"}},
    }
    loaded["error"] = None
    return json.dumps(loaded).encode()


class Download(httpx.AsyncByteStream):
    """The body of a result file, in pieces; it notes which lines the client has taken whole.

    Args:
        lines: what is sent.
        record: the batch they belong to.
        stop: the number of bytes after which it ends; None: all.
        broken: whether that end is an error.
        pause: seconds between pieces.
        ended: called when the client has all of it or lets go; with whether it was read to a clean end.
    """

    def __init__(
        self,
        lines: list[ResultLine],
        record: ServerBatch,
        *,
        stop: int | None,
        broken: bool,
        pause: float,
        ended: Callable[[bool], None],
    ) -> None:
        self._lines = lines
        self._record = record
        self._new: list[str] = []
        data = b"".join(line.data + b"\n" for line in lines)
        self._data = data if stop is None else data[:stop]
        self._broken = broken
        self._pause = pause
        self._ended: Callable[[bool], None] | None = ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """A third at a time, so that lines are cut; a line counts as read when more is asked for."""
        size = max(1, -(-len(self._data) // 3))
        for start in range(0, len(self._data), size):
            await anyio.sleep(self._pause)
            yield self._data[start : start + size]
            self._note(start + size, last=False)
        if self._broken:
            self._over(clean=False)
            raise httpx.ReadError("the connection was lost")
        self._note(len(self._data), last=True)
        self._over(clean=True)

    def _note(self, until: int, *, last: bool) -> None:
        at = 0
        for line in self._lines:
            at += len(line.data) + 1
            if at - last <= min(until, len(self._data)) and line.tells is not None:
                custom_id, status, code = line.tells
                if custom_id not in self._record.delivered:
                    self._new.append(custom_id)
                    self._record.delivered[custom_id] = (status, code)

    def _over(self, *, clean: bool) -> None:
        """There is no more: by now the client has done with what it has read."""
        self._record.delivered_at.update(dict.fromkeys(self._new, anyio.current_time()))
        self._end(clean=clean)

    def _end(self, *, clean: bool) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(clean)

    async def aclose(self) -> None:
        """The client lets go."""
        self._end(clean=False)
