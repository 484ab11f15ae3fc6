"""Many callers of several processes, all of whom wait at the same time.

`python -m benchmarks.proxy` does it with thousands, and says what they cost.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from autobatcher.local import LocalConfig, serve_in_thread
from tests.cluster.parts import PROC, batches, bought, environment, proxy

PROCESSES = 4
EACH = 300
CALLERS = PROCESSES * EACH
PATIENCE = 120.0
MOST = 100_000
"""Bytes of the proxy's memory that a waiting call may take."""

PROGRAM = Path(__file__).with_name("callers.py")


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    status = (PROC / str(pid) / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


@pytest.mark.skipif(not PROC.exists(), reason="reads memory from /proc")
def test_all_that_wait_are_answered_rightly_and_take_little_memory(tmp_path: Path) -> None:
    # The batch closes when the last of them is there, and the server takes its time for it: so all wait at once.
    with (
        serve_in_thread(LocalConfig(latency_seconds=0.1)) as server,
        proxy(
            server.base_url,
            journal=tmp_path / "calls.db",
            batch_size=CALLERS,
            batch_window_seconds=PATIENCE,
            poll_interval_seconds=0.1,
        ) as served,
    ):
        idle = resident(served.pid)
        callers = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), served.url, str(first), str(EACH)],
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for first in range(0, CALLERS, EACH)
        ]
        deadline = time.monotonic() + PATIENCE
        while not bought(server) and time.monotonic() < deadline:
            time.sleep(0.01)
        waiting = resident(served.pid)
        assert 0 < bought(server) < CALLERS
        printed = [caller.communicate(timeout=PATIENCE)[0] for caller in callers]
        assert printed == [f"{EACH}\n"] * PROCESSES
        assert bought(server) == CALLERS
        assert batches(server) == [CALLERS]
        assert not server.api.realtime_calls
    cost = (waiting - idle) / CALLERS
    print(f"{cost / 1000:.1f} KB for a call that waits")  # noqa: T201 -- with -s
    assert cost < MOST
