"""What goes into the engine, and what comes out: the runtime's reports, and the effects it is to have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.outcomes import Failure, Outcome
from autobatcher.core.window import Request
from autobatcher.events import Event

# What the runtime reports.


class Uploaded(msgspec.Struct, frozen=True):
    """The input file is at the server."""

    batch: Batch
    file_id: str


class Created(msgspec.Struct, frozen=True):
    """The batch exists."""

    batch: Batch
    snapshot: Snapshot


class LookedUp(msgspec.Struct, frozen=True):
    """All of the server's batches were listed; `snapshot` is the one that was made from this batch's file, if any."""

    batch: Batch
    snapshot: Snapshot | None


class Polled(msgspec.Struct, frozen=True):
    """The server was asked how the batch stands."""

    batch: Batch
    snapshot: Snapshot


class LinesRead(msgspec.Struct, frozen=True):
    """Whole lines of a result file, without their newlines.

    `last` is the number, from 1, of the last of them in the file; `resumes` tells whether the server can send a
    file from a line on.
    """

    batch: Batch
    file_id: str
    lines: Sequence[bytes]
    last: int
    resumes: bool = False

    def __repr__(self) -> str:
        """Without the lines, which hold answers."""
        return f"LinesRead({self.batch.id!r}, {self.file_id!r}, {len(self.lines)} lines to {self.last})"


class Fetched(msgspec.Struct, frozen=True):
    """The result files were read to their present end."""

    batch: Batch


class Cancelled(msgspec.Struct, frozen=True):
    """The server was told to cancel the batch; `status`: what it made of that, None: the batch had ended before."""

    batch: Batch
    status: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """The call under way failed."""

    batch: Batch
    failure: Failure


Report = Uploaded | Created | LookedUp | Polled | LinesRead | Fetched | Cancelled | Failed


# What the runtime is to do.


class Upload(msgspec.Struct, frozen=True):
    """Upload the batch's `lines` as a file, if there are any left by then."""

    batch: Batch


class Create(msgspec.Struct, frozen=True):
    """Create the batch from its file, in one try."""

    batch: Batch
    file_id: str


class LookUp(msgspec.Struct, frozen=True):
    """List the server's batches until one turns up that was made from this file, or to the end."""

    batch: Batch
    file_id: str


class Poll(msgspec.Struct, frozen=True):
    """Ask how the batch stands."""

    batch: Batch
    batch_id: str


class Fetch(msgspec.Struct, frozen=True):
    """Read these result files, each from after this many lines on."""

    batch: Batch
    files: tuple[tuple[str, int], ...]


class Cancel(msgspec.Struct, frozen=True):
    """Tell the server to cancel the batch."""

    batch: Batch
    batch_id: str


class Settle(NamedTuple):
    """Answer one caller."""

    request: Request
    outcome: Outcome


class Late(NamedTuple):
    """Count an answer that was bought, and for which nobody waits any more."""

    model: str
    body: bytes


class Publish(msgspec.Struct, frozen=True):
    """Tell those who watch."""

    event: Event


class Ended(msgspec.Struct, frozen=True):
    """Nothing more is to be expected of this batch at the server, now or in a later run."""

    batch: Batch


Call = Upload | Create | LookUp | Poll | Fetch | Cancel
Effect = Call | Settle | Late | Publish | Ended
