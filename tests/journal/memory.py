"""The smallest store that is a journal: it shows what one's own has to do, and that a client needs no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from autobatcher.core.outcomes import Answer
from autobatcher.journal import JournalledRequest, OpenBatch


@dataclass
class _Batch:
    base_url: str
    endpoint: str
    model: str
    size: int
    file_id: str | None = None
    batch_id: str | None = None
    created_at: float | None = None
    ended: bool = False
    requests: dict[int, tuple[str, bytes, int]] = field(default_factory=dict)


class MemoryJournal:
    """A journal that lasts as long as its process; a program is "run again" by another client that gets it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: dict[int, _Batch] = {}
        self._places: dict[tuple[bytes, int], tuple[int, int]] = {}
        self._answers: dict[tuple[bytes, int], Answer] = {}

    def has_answers(self) -> bool:
        return bool(self._answers)

    def answer(self, key: bytes, n: int) -> Answer | None:
        return self._answers.get((key, n))

    def begin(
        self, base_url: str, endpoint: str, model: str, requests: Iterable[JournalledRequest], size: int
    ) -> int:
        with self._lock:
            number = len(self._batches) + 1
            batch = self._batches[number] = _Batch(base_url, endpoint, model, size)
            for position, request in enumerate(requests):
                name = request.key, request.n
                if name in self._places:
                    before, place = self._places[name]
                    del self._batches[before].requests[place]
                self._places[name] = number, position
                batch.requests[position] = (request.custom_id, request.key, request.n)
        return number

    def uploaded(self, number: int, file_id: str) -> None:
        self._batches[number].file_id = file_id

    def created(self, number: int, batch_id: str) -> None:
        batch = self._batches[number]
        batch.batch_id, batch.created_at = batch_id, time.time()

    def answered(self, answers: Iterable[tuple[bytes, int, Answer]]) -> None:
        new = {(key, n): answer for key, n, answer in answers}
        with self._lock:
            self._answers = {**new, **self._answers}

    def ended(self, number: int) -> None:
        self._batches[number].ended = True

    def open_batches(self, base_url: str) -> list[OpenBatch]:
        with self._lock:
            return [
                OpenBatch(
                    number,
                    batch.endpoint,
                    batch.model,
                    batch.file_id,
                    batch.batch_id,
                    batch.created_at,
                    batch.size,
                    {place: it for place, it in batch.requests.items() if it[1:] not in self._answers},
                )
                for number, batch in self._batches.items()
                if batch.base_url == base_url and not batch.ended
            ]

    def close(self) -> None:
        return
