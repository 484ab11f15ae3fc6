"""Files read line by line, and what is wrong with a line that cannot be read."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from autobatcher.jobs.items import InputError

BOM = b"\xef\xbb\xbf"

TOLD_BYTES = 2**20
"""After so many more bytes have been read, it is told."""


def nobody(_read: int) -> None:
    """Tell nobody how many bytes have been read."""


def numbered_lines(path: Path, moved: Callable[[int], object] = nobody) -> Iterator[tuple[int, bytes]]:
    r"""The lines of a file with their numbers, from 1, with what ends them: only b"\n" does.

    A byte order mark at the start is left out. `moved` is called with the bytes read so far, about once for `TOLD_BYTES`
    and at the end.
    """
    with path.open("rb") as file:
        read = told = 0
        for number, line in enumerate(file, 1):
            read += len(line)
            yield number, line.removeprefix(BOM) if number == 1 else line
            if read - told >= TOLD_BYTES:
                told = read
                moved(read)
        moved(read)


def text_of(line: bytes, path: Path, number: int) -> str:
    """A line's text.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{number}: {not_utf8(error)}") from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """Which byte of a line is none of UTF-8."""
    return f"not UTF-8: byte {error.start + 1:,} of the line is 0x{error.object[error.start]:02x}"


def fault(data: bytes, error: Exception) -> str:
    """Why a JSON text is refused by a strict reader, in words; `error` is what that raised."""
    try:
        loaded = json.loads(data, parse_constant=_refuse_constant)
    except json.JSONDecodeError as found:
        return f"not JSON: {found.msg} at character {found.pos + 1:,}"
    except RecursionError:
        return "not JSON that can be read: nested too deeply"
    except UnicodeDecodeError as found:
        return not_utf8(found)
    except ValueError as found:  # a constant, or a number with more digits than Python converts
        return f"not JSON: {found}"
    try:
        json.dumps(loaded, ensure_ascii=False).encode()
    except UnicodeEncodeError as found:
        return f"not text: half of a surrogate pair (\\u{ord(found.object[found.start]):04x}) in a string"
    except RecursionError:
        return "not JSON that can be read: nested too deeply"
    return f"not JSON: {error}"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


class FirstLines:
    """On which line each custom_id stood first.

    Kept are a hash of 8 bytes and a number of 8 bytes for each, in a table of which a third to two thirds are free: some
    24 to 48 bytes a line, and half as much again while it grows. Two of a million different custom_ids are taken for
    the same with a probability of 3 in 100 million.
    """

    def __init__(self) -> None:
        self._count = 0
        self._make(1024)

    def _make(self, slots: int) -> None:
        self._hashes = array("Q", bytes(8 * slots))
        self._lines = array("Q", bytes(8 * slots))

    def add(self, custom_id: str, line: int) -> int | None:
        """The line, from 1, on which this custom_id was before; None if there was none, and now there is."""
        hashed = hash(custom_id) & 0xFFFF_FFFF_FFFF_FFFF
        at = self._find(hashed)
        if found := self._lines[at]:
            return found
        self._hashes[at], self._lines[at] = hashed, line
        self._count += 1
        if self._count * 3 > len(self._lines) * 2:
            self._grow()
        return None

    def _find(self, hashed: int) -> int:
        hashes, lines = self._hashes, self._lines
        mask = len(lines) - 1
        at = hashed & mask
        while lines[at] and hashes[at] != hashed:
            at = (at + 1) & mask
        return at

    def _grow(self) -> None:
        old = zip(self._hashes, self._lines, strict=True)
        self._make(2 * len(self._lines))
        for hashed, line in old:
            if line:
                at = self._find(hashed)
                self._hashes[at], self._lines[at] = hashed, line
