"""Ray Data on a cluster of its own through one proxy: the documentation's program, as it stands.

Ray comes with the extra `ray`. Where it is missing these tests are skipped; where AUTOBATCHER_REQUIRE_RAY is 1, as in
CI, that is an error.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from autobatcher.local import LocalConfig, serve_in_thread
from tests.cluster.parts import KEY, Proxy, batches, bought, busiest, environment, proxy, snippet

if importlib.util.find_spec("ray") is None and os.environ.get("AUTOBATCHER_REQUIRE_RAY") != "1":
    pytest.skip("not installed: ray, of the extra `ray`", allow_module_level=True)

ROWS = 10_000
WORKERS = 4
MOST_BATCHES = 15
BATCH_SIZE = 1_000
PATIENCE = 600.0

ANSWERED, LEFT = "autobatcher_requests_answered_total", "autobatcher_callers_left_total"

TEXTS = {str(number): f"text {number * number}" for number in range(ROWS)}

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
"""Ray tells nobody that it is used, has a loopback address, as on those systems, does not warn of a default that is to
change, and ends when it is told to."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster of one node.

    Attributes:
        address: what programs find it by.
        pid: of the process that all of its processes descend from.
    """

    address: str
    pid: int


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A head node with a core for each worker, on loopback alone."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        # The folder has sockets in it, whose paths must not be long: it is none of pytest's.
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
            "--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={WORKERS}",
            f"--temp-dir={folder}", "--object-store-memory=200000000",
        ]  # fmt: skip
        with subprocess.Popen(
            command, env=environment(**QUIET), stdout=subprocess.DEVNULL, start_new_session=True
        ) as process:
            try:
                yield Cluster(f"127.0.0.1:{port}", process.pid)
            finally:
                process.terminate()
                process.wait()


@contextmanager
def running(folder: Path, cluster: Cluster, served: Proxy) -> Iterator[subprocess.Popen[str]]:
    """The program, started in a folder that has the rows."""
    with (folder / "texts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "text"), *TEXTS.items()])
    (folder / "program.py").write_text(snippet("ray"), encoding="utf-8")
    env = environment(RAY_ADDRESS=cluster.address, **served.variables, **QUIET)
    with subprocess.Popen([sys.executable, "program.py"], cwd=folder, env=env, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_rows_of_all_workers_share_batches_and_a_killed_workers_rows_are_bought_once(tmp_path: Path) -> None:
    # Ten seconds for all of them, who have their answers one by one.
    config = LocalConfig(latency_seconds=0.1, concurrency=100, partial_results=True)
    with (
        serve_in_thread(config) as server,
        proxy(
            server.base_url,
            serve_key=KEY,
            journal=tmp_path / "calls.db",
            batch_size=BATCH_SIZE,
            batch_window_seconds=60,
            poll_interval_seconds=0.1,
        ) as served,
        cluster() as ray,
        running(tmp_path, ray, served) as program,
    ):
        deadline = time.monotonic() + PATIENCE
        while served.count(ANSWERED) < ROWS // 4 and program.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert bought(server) < ROWS
        os.kill(busiest(ray.pid), signal.SIGKILL)
        assert program.wait(PATIENCE) == 0
        answers = {}
        for path in (tmp_path / "answers").glob("*.csv"):
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    assert row["id"] not in answers
                    answers[row["id"]] = (row["text"], row["answer"])
        assert answers == {number: (text, f"You said: {text}.") for number, text in TEXTS.items()}
        assert bought(server) == ROWS
        assert (
            served.count(ANSWERED) >= ROWS
        )  # the dead worker may have had answers, which were given once more
        assert served.count(LEFT) > 0  # and waited for others
        assert len(batches(server)) <= MOST_BATCHES
        assert not server.api.realtime_calls
