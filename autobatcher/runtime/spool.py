"""Large lines wait on disk: a batch of images may wait for hours, and is read once, when it is uploaded."""

from __future__ import annotations

import io
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence

LARGE = 32 * 1024
"""Bytes from which on a line goes to disk; a smaller one costs less in memory than its caller does."""

SEGMENT = 256 * 2**20
"""Bytes after which another file is begun; each file goes when the last of its lines is let go."""


class _Segment:
    """One anonymous temporary file, gone with the last reference to it."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0, prefix="autobatcher-")  # noqa: SIM115 -- closed below
        self._lock = threading.Lock()  # loops in several threads share a client
        self.size = 0
        weakref.finalize(self, self._file.close)

    def append(self, line: bytes) -> int:
        with self._lock:
            start = self._file.seek(self.size)
            rest = memoryview(line)
            while rest:
                rest = rest[self._file.write(rest) :]
            self.size += len(line)
            return start

    def read(self, start: int, length: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            pieces = []
            while length and (piece := self._file.read(length)):
                pieces.append(piece)
                length -= len(piece)
            return b"".join(pieces)


class SpooledLine:
    """A line on disk."""

    __slots__ = ("_length", "_segment", "_start")

    def __init__(self, segment: _Segment, start: int, length: int) -> None:
        self._segment, self._start, self._length = segment, start, length

    def __len__(self) -> int:
        """In bytes."""
        return self._length

    def read(self) -> bytes:
        """The line."""
        return self._segment.read(self._start, self._length)


Line = bytes | SpooledLine


class Spool:
    """Where lines are kept until they are let go."""

    def __init__(self) -> None:
        self._segment: weakref.ref[_Segment] | None = None
        self._lock = threading.Lock()

    def keep(self, line: bytes, least: int = LARGE) -> Line:
        """The line, or a stand-in for one of at least so many bytes.

        Raises:
            OSError: the disk is full; nothing else is affected.
        """
        if len(line) < least:
            return line
        with self._lock:
            segment = None if self._segment is None else self._segment()
            if segment is None or segment.size + len(line) > SEGMENT:
                segment = _Segment()
                self._segment = weakref.ref(segment)
        return SpooledLine(segment, segment.append(line), len(line))


def whole(line: Line) -> bytes:
    """The bytes of a line."""
    return line if isinstance(line, bytes) else line.read()


TOGETHER = 100
"""Small lines that are joined before they are read: one by one each would cost as much as it does to make."""


def _pieces(lines: Sequence[Line]) -> Iterator[bytes]:
    for start in range(0, len(lines), TOGETHER):
        some = lines[start : start + TOGETHER]
        small = [line for line in some if isinstance(line, bytes)]
        if len(small) == len(some):
            yield b"".join(small)
        else:  # one large line after the other
            yield from map(whole, some)


class LinesFile(io.RawIOBase):
    """The lines as one file that is read once, piece by piece; it holds no more than one large line in memory.

    Args:
        lines: what it consists of.
        moves: called whenever a piece is read.
    """

    def __init__(self, lines: Sequence[Line], moves: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._moves = moves
        self._lines = lines
        self._size = sum(map(len, lines))
        self._pieces = _pieces(lines)
        self._piece = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """To the start and the end, by which its size is found."""
        return True

    def tell(self) -> int:
        """In bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """To the start or the end."""
        if (offset, whence) == (0, io.SEEK_END):
            self._pieces, self._piece, self._position = iter(()), memoryview(b""), self._size
        elif (offset, whence) == (0, io.SEEK_SET):
            self._pieces, self._piece, self._position = _pieces(self._lines), memoryview(b""), 0
        elif (offset, whence) != (self._position, io.SEEK_SET):
            raise io.UnsupportedOperation("only to the start or the end")
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # narrower than any writable buffer
        """Fill the buffer as far as there are lines."""
        self._moves()
        filled = 0
        while filled < len(buffer):
            if not self._piece:
                self._piece = memoryview(next(self._pieces, b""))
                if not self._piece:
                    break
            count = min(len(buffer) - filled, len(self._piece))
            buffer[filled : filled + count] = self._piece[:count]
            self._piece = self._piece[count:]
            filled += count
        self._position += filled
        return filled
