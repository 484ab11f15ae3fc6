"""What happened to a batch, as frozen values; the log is written from them."""

from __future__ import annotations

import msgspec


class BatchSubmitted(msgspec.Struct, frozen=True):
    """A batch exists at the server; `size` is its input file's size in bytes."""

    batch_id: str
    endpoint: str
    model: str
    requests: int
    size: int


class BatchProgressed(msgspec.Struct, frozen=True):
    """The server says of a batch something that it has not said before; asked at each poll.

    `status` is the server's word in small letters; `completed`, `failed` and `total` are its counts of requests, 0
    where it gives none.
    """

    batch_id: str
    endpoint: str
    model: str
    status: str
    completed: int
    failed: int
    total: int


class BatchSettled(msgspec.Struct, frozen=True):
    """Nobody waits for this batch any more.

    `batch_id` is None when no batch was made (the upload failed, say); `status` is the server's last word,
    "not submitted", or that it is uncertain whether a batch was made. `answered` counts the calls that got a successful answer, `failed` those that got an error,
    `resent` the requests that went on into other batches, `duration` the seconds from the closing of the window.
    """

    batch_id: str | None
    endpoint: str
    model: str
    status: str
    answered: int
    failed: int
    resent: int
    duration: float


class RequestsResent(msgspec.Struct, frozen=True):
    """Requests of this batch go out again in another one; `reason` is a few words."""

    batch_id: str | None
    requests: int
    reason: str


class RequestsOverdue(msgspec.Struct, frozen=True):
    """These requests of a batch, or of none yet (`batch_id` None), have no answer by their callers' deadlines."""

    batch_id: str | None
    endpoint: str
    model: str
    requests: int


class RealtimeCalled(msgspec.Struct, frozen=True):
    """A request went out as a realtime call, and this came of it.

    `reason` is "deadline" or "expired"; `batch_id` is the batch that it was in, if any; `answered` tells whether the
    call got a successful answer before the batch did, `duration` are its seconds, those in which it waited for its
    turn included.
    """

    batch_id: str | None
    endpoint: str
    model: str
    reason: str
    answered: bool
    duration: float


class CallRetried(msgspec.Struct, frozen=True):
    """A call for a batch failed and will be made again.

    `step` is "upload", "create", "look up", "poll", "fetch" or "cancel"; `batch_id` is None before there is a batch;
    `reason` is a few words; `delay` are the seconds until then. After a creation whose answer was lost, the server's
    batches are looked through first.
    """

    batch_id: str | None
    step: str
    reason: str
    delay: float


class LinesIgnored(msgspec.Struct, frozen=True):
    """Lines of a result file were of no use to anybody; `reason` says why."""

    batch_id: str | None
    lines: int
    reason: str


class BatchNotCancelled(msgspec.Struct, frozen=True):
    """A batch that nobody waits for may go on at the server, and cost money: its cancellation did not come about."""

    batch_id: str | None


Event = (
    BatchSubmitted
    | BatchProgressed
    | BatchSettled
    | RequestsResent
    | RequestsOverdue
    | RealtimeCalled
    | CallRetried
    | LinesIgnored
    | BatchNotCancelled
)
