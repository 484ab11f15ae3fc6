"""`python -m benchmarks.proxy`: what calls cost a proxy that has thousands of callers waiting at the same time."""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import environments, provenance, runs

WARM_UP = 16
SPARE_FILES = 200
"""Open files of the proxy beside its callers' connections, and then some."""

PATIENCE = 600.0
LOOK = 0.1
ADDRESS = re.compile(r"base_url=(\S+)")

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Process:
    """What the system knows of a process."""

    def __init__(self, pid: int) -> None:
        self._proc = Path("/proc") / str(pid)

    def status(self, name: str) -> int:
        """A field of its status that is in kB, in bytes."""
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

    def forget_peak(self) -> None:
        (self._proc / "clear_refs").write_text("5")

    def cpu(self) -> float:
        """Seconds, of all threads, in itself and in the kernel."""
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def files(self) -> int:
        return sum(1 for _ in (self._proc / "fd").iterdir())


def main() -> None:
    arguments = _parser().parse_args()
    _allow_files(arguments.callers + SPARE_FILES)
    for name in ("server", "proxy"):
        environments.python_of(name)  # nothing is installed while something is measured
    machine = provenance.machine()
    print(f"{provenance.described(machine)}; commit {provenance.commit()}")
    print(f"{arguments.callers:,} callers of {arguments.processes} processes, {arguments.rounds} rounds")
    for journal in (False, True):
        measured = []
        for _ in range(arguments.rounds):
            with runs.server() as url:
                measured.append(_measured(url, arguments, journal=journal))
        print(f"\n{'with journal' if journal else 'without journal'}:")
        for name in measured[0]:
            values = [measure[name] for measure in measured]
            print(f"  {name}: {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxy", description=__doc__)
    parser.add_argument("--callers", type=int, default=5_000, help="calls that wait (default 5,000)")
    parser.add_argument("--processes", type=int, default=4, help="processes that make them (default 4)")
    parser.add_argument("--size", type=int, default=380, help="characters of a prompt (default 380)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    return parser


def _allow_files(needed: int) -> None:
    """Raise the limit of open files, which the proxy inherits, to what this user may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        sys.exit(f"{needed:,} open files are needed, and {most:,} allowed: see `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _measured(url: str, arguments: argparse.Namespace, *, journal: bool) -> dict[str, float]:
    callers, processes = arguments.callers, arguments.processes
    with _proxy(f"{url}/v1", journal=journal) as (proxy_url, pid):
        _post(f"{url}/bench/reset", delay=0.0, spread=0.0)
        _post(f"{url}/bench/release")
        _expect(_calls(proxy_url, callers, WARM_UP, arguments.size), WARM_UP)
        _post(
            f"{url}/bench/reset", delay=0.0, spread=0.0
        )  # from here on no batch shows results before the release
        proxy = Process(pid)
        proxy.forget_peak()
        idle, files, cpu, started = proxy.status("VmRSS"), proxy.files(), proxy.cpu(), time.monotonic()
        each = [len(range(number, callers, processes)) for number in range(processes)]
        running = [
            _calls(proxy_url, sum(each[:number]), each[number], arguments.size) for number in range(processes)
        ]
        _wait_for(url, callers)
        there = time.monotonic()
        waiting, peak, connections = proxy.status("VmRSS"), proxy.status("VmHWM"), proxy.files() - files
        way_in, released = proxy.cpu() - cpu, time.monotonic()
        _post(f"{url}/bench/release")
        for process, calls in zip(running, each, strict=True):
            _expect(process, calls)
        ended, whole, most = time.monotonic(), proxy.cpu() - cpu, proxy.status("VmHWM")
        stats = _get(f"{url}/bench/stats")
    if connections < callers:
        sys.exit(f"only {connections:,} of {callers:,} callers were connected at the same time")
    if stats["answered"] != callers:
        sys.exit(f"{stats['answered']:,} answers were bought for {callers:,} calls")
    return {
        "memory of a call that waits, KB": (waiting - idle) / callers / 1e3,
        "peak until all wait, KB a call": (peak - idle) / callers / 1e3,
        "peak until all are answered, KB a call": (most - idle) / callers / 1e3,
        "idle, MB": idle / 1e6,
        "CPU until all wait, µs a call": way_in / callers * 1e6,
        "CPU in all, µs a call": whole / callers * 1e6,
        "batches": stats["batches"],
        "until all wait, s": there - started,
        "from the release to the last answer, s": ended - released,
    }


@contextmanager
def _proxy(upstream: str, *, journal: bool) -> Iterator[tuple[str, int]]:
    """Its URL and process id."""
    with tempfile.TemporaryDirectory(prefix="autobatcher-bench-") as folder:
        command = [environments.python_of("proxy"), "-m", "autobatcher", "serve", "--base-url", upstream]
        command += ["--api-key", "bench", "--port", "0", "--poll-interval-seconds", str(runs.POLL)]
        if journal:
            command += ["--journal", str(Path(folder) / "calls.db")]
        with subprocess.Popen(
            command, env=environments.clean(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            said = []
            found = None
            for line in process.stdout:
                said.append(line)
                if found := ADDRESS.search(line):
                    break
            if found is None:
                sys.exit("".join(said))
            threading.Thread(target=process.stdout.read).start()  # a pipe that nobody reads holds it up
            try:
                yield found[1], process.pid
            finally:
                process.terminate()
                process.wait()


def _calls(url: str, first: int, calls: int, size: int) -> subprocess.Popen[str]:
    settings = json.dumps({"url": url, "first": first, "calls": calls, "size": size})
    command = [environments.python_of("proxy"), "-m", "contestants.callers", settings]
    return subprocess.Popen(
        command, cwd=environments.HERE, env=environments.clean(), stdout=subprocess.PIPE, text=True
    )


def _expect(process: subprocess.Popen[str], calls: int) -> None:
    with process:
        printed, _ = process.communicate(timeout=PATIENCE)
    if process.returncode or int(printed) != calls:
        sys.exit(f"of {calls:,} answers {printed.strip() or 'none'} are right")


def _wait_for(url: str, callers: int) -> None:
    """Until the server has the lines of all of them."""
    deadline = time.monotonic() + PATIENCE
    while sum(batch["request_counts"]["total"] for batch in _get(f"{url}/v1/batches")["data"]) < callers:
        if time.monotonic() > deadline:
            sys.exit("the calls did not reach the server")
        time.sleep(LOOK)


def _get(url: str) -> Any:
    with _DIRECT.open(url) as response:
        return json.load(response)


def _post(url: str, **fields: float) -> None:
    with _DIRECT.open(urllib.request.Request(url, json.dumps(fields).encode(), method="POST")) as response:
        response.read()


if __name__ == "__main__":
    main()
