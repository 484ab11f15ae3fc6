"""What a job consists of: requests that are read from a file, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class InputError(ValueError):
    """A file that is to be worked on is not what it should be; the message names the file, and the line where it can."""


class Item(NamedTuple):
    """A request of a job.

    Attributes:
        custom_id: its name in the file; of tabular input, "row-1" and so on.
        url: such as "/v1/chat/completions".
        body: JSON text, UTF-8; an object.
    """

    custom_id: str
    url: str
    body: bytes


class Source(Protocol):
    """A file of requests, or of rows that requests are made from; it can be read several times."""

    @property
    def path(self) -> Path:
        """The file or folder."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def columns(self) -> Sequence[str] | None:
        """The names of the columns of tabular input; None if the file is a batch file."""

    def items(self, moved: Callable[[int], object] = ...) -> Iterator[Item]:
        """The requests, in order; `moved` is called now and then with how many bytes have been read.

        Raises:
            InputError: a line is not what it should be.
        """

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """Of tabular input the rows, as many as there are items, in the same order."""
