"""What survives the process: requests, the batches that hold them, and their answers."""

from typing import TYPE_CHECKING, Any

from autobatcher.journal.store import Journal, JournalledRequest, OpenBatch

if TYPE_CHECKING:
    from autobatcher.journal.sqlite import SqliteJournal

__all__ = ["Journal", "JournalledRequest", "OpenBatch", "SqliteJournal"]


def __getattr__(name: str) -> Any:
    if name != "SqliteJournal":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autobatcher.journal.sqlite import SqliteJournal  # noqa: PLC0415 -- most programs have no journal

    return SqliteJournal
