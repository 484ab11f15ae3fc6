"""A pseudo-terminal, and an emulator that shows what is written there."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from types import TracebackType

import pyte
from typing_extensions import Self

PATIENCE = 60.0
COUNTS = re.compile(r"(\d+)/(\d+)/(\d+)")


class Terminal:
    """A program in a pseudo-terminal of its own."""

    def __init__(self, command: list[str], width: int, height: int) -> None:
        self.screen = pyte.Screen(width, height)
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**environment, "TERM": "xterm-256color", "NO_COLOR": "1"},
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    @property
    def done(self) -> int:
        """Requests that the batches under way are through with."""
        return sum(int(count) for count, _, _ in COUNTS.findall(self.text))

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def read(self) -> bool:
        """Let the emulator have what the program writes next; False at its end."""
        ready, _, _ = select.select([self._master], [], [], 0.1)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # as Linux says that nobody has the other end any more
            return False
        self._stream.feed(data)
        return bool(data)

    def until(self, seen: Callable[[], bool]) -> None:
        """Read until the screen shows it."""
        end = time.monotonic() + PATIENCE
        while not seen():
            assert time.monotonic() < end, self.text
            if not self.read():
                assert seen(), self.text

    def until_over(self) -> int:
        """Read to the end; returns the program's exit code."""
        end = time.monotonic() + PATIENCE
        while self.read():
            assert time.monotonic() < end, self.text
        return self.process.wait(PATIENCE)
