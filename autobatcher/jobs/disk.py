"""Files that are written: which places are free, and errors of the disk that name the file they are about."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def free_place(path: Path, *, overwrite: bool) -> None:
    """Make sure that a file may be written.

    Raises:
        FileExistsError: it is there.
        OSError: its folder is not.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not overwrite and path.exists():
        raise FileExistsError(errno.EEXIST, "is there already, and overwrite was not asked for", str(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path.parent))


def name_file(error: OSError, path: str | os.PathLike[str], *stand_ins: Path) -> None:
    """Say in an error which file it is about, if it names none, as those of writes, or one that stands for it."""
    if error.errno is not None and error.filename in (None, *map(str, stand_ins)):
        error.filename, error.filename2 = os.fspath(path), None


@contextmanager
def naming(path: str | os.PathLike[str], *stand_ins: Path) -> Iterator[None]:
    """What `name_file` does, for all errors that are raised meanwhile."""
    try:
        yield
    except OSError as error:
        name_file(error, path, *stand_ins)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside the file's that nothing has; what is written there takes its place at the end, unless an error ends it."""
    temporary = path.with_name(f".autobatcher-{secrets.token_hex(8)}")
    try:
        with naming(path, temporary):
            yield temporary
            if temporary.exists():
                temporary.replace(path)
    finally:
        with suppress(OSError):  # an error before it says more
            temporary.unlink(missing_ok=True)
