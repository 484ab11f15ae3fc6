"""Files that nobody but their owner may read: they hold prompts and answers."""

from __future__ import annotations

import os
from contextlib import suppress

MODE = 0o600


def make_private(path: str | os.PathLike[str]) -> None:
    """Make an empty file, unless there is one, before SQLite would, which makes those beside it with the same mode.

    What is wrong with the path is for SQLite to tell.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, MODE))
