"""What happened to a batch, as frozen values; the log is written from them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchSubmitted:
    """A batch exists at the server; `size` is its input file's size in bytes."""

    batch_id: str
    endpoint: str
    model: str
    requests: int
    size: int


@dataclass(frozen=True)
class BatchSettled:
    """Nobody waits for this batch any more.

    `batch_id` is None when no batch was made (the upload failed, say); `status` is the server's last word or
    "not submitted". `answered` counts the calls that got a successful answer, `failed` all others, `duration` the
    seconds from the closing of the window.
    """

    batch_id: str | None
    endpoint: str
    model: str
    status: str
    answered: int
    failed: int
    duration: float


Event = BatchSubmitted | BatchSettled
