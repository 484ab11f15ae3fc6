"""Where a contestant's CPU time goes: the stack is looked at each millisecond of it; garbage collection is clocked."""

from __future__ import annotations

import gc
import signal
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

INTERVAL = 0.001

ROOT = Path(__file__).parents[2]

COLLECTOR = "garbage collector"
THREADS = "other threads"
LOOP = "event loop and HTTP client, outside of all of these"


class Sampler:
    """A context manager; `seconds` then has the CPU time of each of the contestant's functions.

    What a function calls of other packages is its own. A sample counts as much as the main thread's CPU time since the
    last one, without the garbage collector's and this class's.
    """

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._own = f"{ROOT}/"
        self._foreign = (f"{ROOT}/benchmarks/.venvs/", __file__)
        self._began: float | None = None

    def __enter__(self) -> None:
        gc.callbacks.append(self._collected)
        signal.signal(signal.SIGPROF, self._sampled)
        self._process, self._thread = time.process_time(), time.thread_time()
        self._last = self._thread
        signal.setitimer(signal.ITIMER_PROF, INTERVAL, INTERVAL)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.seconds[THREADS] = time.process_time() - self._process - (time.thread_time() - self._thread)
        gc.callbacks.remove(self._collected)

    def _collected(self, phase: str, _: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        elif self._began is not None:
            now = time.thread_time()
            self.seconds[COLLECTOR] += now - self._began
            self._last += now - self._began
            self._began = None

    def _sampled(self, _: int, frame: FrameType | None) -> None:
        if self._began is None:  # a signal that came while garbage was collected is handled at its end
            now = time.thread_time()
            self.seconds[self._function(frame)] += now - self._last
            self._last = time.thread_time()

    def _function(self, frame: FrameType | None) -> str:
        """The innermost function of the contestant or of what all contestants share."""
        while frame is not None:
            code = frame.f_code
            if code.co_filename.startswith(self._own) and not code.co_filename.startswith(self._foreign):
                if code.co_name in {"main", "_measured"}:  # the harness, under which all runs
                    break
                path = code.co_filename.removeprefix(self._own)
                return f"{path}: {getattr(code, 'co_qualname', code.co_name)}"
            frame = frame.f_back
        return LOOP
