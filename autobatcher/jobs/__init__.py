"""The batch workflow on files: what the command line does, as functions."""

from autobatcher.jobs.checking import Problem, validate
from autobatcher.jobs.items import InputError, Item
from autobatcher.jobs.packing import prepare
from autobatcher.jobs.running import Finished, Progress, run
from autobatcher.jobs.sources import open_source
from autobatcher.jobs.template import Template

__all__ = [
    "Finished",
    "InputError",
    "Item",
    "Problem",
    "Progress",
    "Template",
    "open_source",
    "prepare",
    "run",
    "validate",
]
