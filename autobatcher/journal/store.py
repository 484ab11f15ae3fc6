"""What a journal must do, whatever it keeps things in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import msgspec

from autobatcher.core.outcomes import Answer


class JournalledRequest(msgspec.Struct, frozen=True, gc=False):
    """A request that is about to be uploaded.

    Attributes:
        key: 16 bytes that stand for the base URL, the endpoint and the canonical body: equal for equal requests.
        n: from 0, which of the equal requests it is.
        custom_id: its name in the batch file; unique in a journal.
        body: JSON text, UTF-8, on one line.
    """

    key: bytes
    n: int
    custom_id: str
    body: bytes


@dataclass(frozen=True)
class OpenBatch:
    """A batch that was begun and has not ended.

    Attributes:
        number: the journal's own.
        endpoint, model: as given to `begin`.
        file_id: of the input file; None if its upload was not seen to end.
        batch_id: the server's; None if the creation was not seen to end.
        created_at: when the creation was noted, in Unix seconds; None if it was not.
        size: of its file, in bytes.
        requests: those that are in this batch, in no later one, and have no answer: by their place in the file, from
            0, the custom_id, key and n.
    """

    number: int
    endpoint: str
    model: str
    file_id: str | None
    batch_id: str | None
    created_at: float | None
    size: int
    requests: Mapping[int, tuple[str, bytes, int]] = field(repr=False)


@runtime_checkable
class Journal(Protocol):
    """A store for one logical run.

    Each method is one transaction: when it returns, its effect is safe from a crash of the process, and that of all but
    `answered` from a loss of power; `ended` makes the answers before it safe from that, too. When it raises, it had none.
    Methods are called from event loops, and should take milliseconds; a program that has loops in several threads calls
    them from each of these.

    Raises:
        JournalError: from every method, when the store fails (a full disk, say); only the calls that are affected
            get it.
    """

    def has_answers(self) -> bool:
        """Whether there is any answer."""

    def answer(self, key: bytes, n: int) -> Answer | None:
        """The answer to the n-th request of this key, if it is there."""

    def begin(
        self, base_url: str, endpoint: str, model: str, requests: Iterable[JournalledRequest], size: int
    ) -> int:
        """Note a batch, its requests in the order of their lines, and the bytes of its file, before the upload.

        Returns the batch's number.

        Requests that are known (by key and n) are in this batch from now on.
        """

    def uploaded(self, number: int, file_id: str) -> None:
        """Note the input file of a batch, before the batch is created."""

    def created(self, number: int, batch_id: str) -> None:
        """Note the server's id of a batch."""

    def answered(self, answers: Iterable[tuple[bytes, int, Answer]]) -> None:
        """Note answers to requests by key and n, before their callers get them. One that is there stays."""

    def ended(self, number: int) -> None:
        """Note that nothing more is to be expected of a batch."""

    def open_batches(self, base_url: str) -> list[OpenBatch]:
        """The batches at a server that were begun and have not ended."""

    def close(self) -> None:
        """Let go of the store."""
