"""What goes into the engine, and what comes out: the runtime's reports, and the effects it is to have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from autobatcher.core.batch import Batch, Snapshot
from autobatcher.core.outcomes import Failure, Outcome
from autobatcher.core.window import Request
from autobatcher.events import Event

# What the runtime reports.


@dataclass(frozen=True)
class Uploaded:
    """The input file is at the server."""

    batch: Batch
    file_id: str


@dataclass(frozen=True)
class Created:
    """The batch exists."""

    batch: Batch
    snapshot: Snapshot


@dataclass(frozen=True)
class LookedUp:
    """All of the server's batches were listed; `snapshot` is the one that was made from this batch's file, if any."""

    batch: Batch
    snapshot: Snapshot | None


@dataclass(frozen=True)
class Polled:
    """The server was asked how the batch stands."""

    batch: Batch
    snapshot: Snapshot


@dataclass(frozen=True)
class LinesRead:
    """Whole lines of a result file, without their newlines.

    `last` is the number, from 1, of the last of them in the file; `resumes` tells whether the server can send a
    file from a line on.
    """

    batch: Batch
    file_id: str
    lines: Sequence[bytes] = field(repr=False)
    last: int
    resumes: bool = False


@dataclass(frozen=True)
class Fetched:
    """The result files were read to their present end."""

    batch: Batch


@dataclass(frozen=True)
class Cancelled:
    """The server was told to cancel the batch."""

    batch: Batch


@dataclass(frozen=True)
class Failed:
    """The call under way failed."""

    batch: Batch
    failure: Failure


Report = Uploaded | Created | LookedUp | Polled | LinesRead | Fetched | Cancelled | Failed


# What the runtime is to do.


@dataclass(frozen=True)
class Upload:
    """Upload the batch's `lines` as a file, if there are any left by then."""

    batch: Batch


@dataclass(frozen=True)
class Create:
    """Create the batch from its file, in one try."""

    batch: Batch
    file_id: str


@dataclass(frozen=True)
class LookUp:
    """List the server's batches until one turns up that was made from this file, or to the end."""

    batch: Batch
    file_id: str


@dataclass(frozen=True)
class Poll:
    """Ask how the batch stands."""

    batch: Batch
    batch_id: str


@dataclass(frozen=True)
class Fetch:
    """Read these result files, each from after this many lines on."""

    batch: Batch
    files: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Cancel:
    """Tell the server to cancel the batch."""

    batch: Batch
    batch_id: str


class Settle(NamedTuple):
    """Answer one caller."""

    request: Request
    outcome: Outcome


@dataclass(frozen=True)
class Publish:
    """Tell those who watch."""

    event: Event


@dataclass(frozen=True)
class Ended:
    """Nothing more is to be expected of this batch at the server, now or in a later run."""

    batch: Batch


Call = Upload | Create | LookUp | Poll | Fetch | Cancel
Effect = Call | Settle | Publish | Ended
