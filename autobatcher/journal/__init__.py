"""What survives the process: requests, the batches that hold them, and their answers."""

from autobatcher.journal.sqlite import SqliteJournal
from autobatcher.journal.store import Journal, JournalledRequest, OpenBatch

__all__ = ["Journal", "JournalledRequest", "OpenBatch", "SqliteJournal"]
