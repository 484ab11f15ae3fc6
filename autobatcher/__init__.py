"""Drop-in `AsyncOpenAI` whose calls travel through the Batch API.

Change the import, keep the code::

    from autobatcher import AsyncOpenAI
"""

from autobatcher._version import __version__
from autobatcher.client import AsyncOpenAI, BatchAzureOpenAI, BatchOpenAI
from autobatcher.errors import (
    AutobatcherError,
    BatchError,
    BatchFailedError,
    BatchProblem,
    ClientClosedError,
    DeadlineError,
    JournalError,
    RequestFailedError,
    RequestTooLargeError,
)
from autobatcher.journal import Journal

__all__ = [
    "AsyncOpenAI",
    "AutobatcherError",
    "BatchAzureOpenAI",
    "BatchError",
    "BatchFailedError",
    "BatchOpenAI",
    "BatchProblem",
    "ClientClosedError",
    "DeadlineError",
    "Journal",
    "JournalError",
    "RequestFailedError",
    "RequestTooLargeError",
    "__version__",
]
