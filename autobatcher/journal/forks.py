"""A forked child has copies of its parent's connections to SQLite, and may neither use nor close them.

Source: https://www.sqlite.org/howtocorrupt.html, "Carrying an open database connection across a fork()".
"""

from __future__ import annotations

import os
import weakref

from autobatcher.errors import JournalError

_process = os.getpid()
"""This one; asking for it at each call of a client would show."""


def check_process(pid: int, what: object = "the journal") -> None:
    """Refuse what another process has opened.

    Raises:
        JournalError: this is not that process.
    """
    if _process != pid:
        raise JournalError(
            f"{what}: in use by process {pid}, of which this one is a fork: a journal that was open at a fork cannot be"
            " used in the child"
        )


_open: weakref.WeakSet[object] = weakref.WeakSet()


def keep_in_children(connected: object) -> None:
    """Have the child of a fork never let go of this object, so that nothing closes the connections that it has."""
    _open.add(connected)


def _keep() -> None:
    global _process  # noqa: PLW0603 -- the one moment at which it changes
    _process = os.getpid()
    import ctypes  # noqa: PLC0415 -- few programs fork

    for connected in _open:
        ctypes.pythonapi.Py_IncRef(
            ctypes.py_object(connected)
        )  # a reference from Python ends with the interpreter


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep)
