"""The batch workflow on files: what the command line does, as functions."""

from autobatcher.jobs.batches import (
    Changed,
    Standing,
    UncertainError,
    cancel,
    list_batches,
    standing,
    status,
    submit,
    watch,
)
from autobatcher.jobs.checking import Problem, validate
from autobatcher.jobs.downloads import (
    Counts,
    NotEndedError,
    RetriedError,
    UnreadError,
    remaining,
    results,
    retry,
)
from autobatcher.jobs.estimating import Estimate, EstimateLine, estimate
from autobatcher.jobs.files import delete_file, get_file, list_files
from autobatcher.jobs.items import InputError, Item
from autobatcher.jobs.packing import prepare
from autobatcher.jobs.running import Finished, Progress, run
from autobatcher.jobs.sources import open_source
from autobatcher.jobs.template import Template

__all__ = [
    "Changed",
    "Counts",
    "Estimate",
    "EstimateLine",
    "Finished",
    "InputError",
    "Item",
    "NotEndedError",
    "Problem",
    "Progress",
    "RetriedError",
    "Standing",
    "Template",
    "UncertainError",
    "UnreadError",
    "cancel",
    "delete_file",
    "estimate",
    "get_file",
    "list_batches",
    "list_files",
    "open_source",
    "prepare",
    "remaining",
    "results",
    "retry",
    "run",
    "standing",
    "status",
    "submit",
    "validate",
    "watch",
]
