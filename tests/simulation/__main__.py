"""Runs worlds and prints figures; a world that fails prints what was wrong and how to run it again."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.figures import Figures
from tests.simulation.world import Run, simulate

BACKENDS = ("asyncio", "trio")


def main() -> int:
    """The exit status: 1 if a world failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many worlds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="one world, with all its HTTP calls")
    parser.add_argument("--backend", choices=(*BACKENDS, "both"), default="both")
    parser.add_argument("--stops", action="store_true", help="with a journal, and runs that are stopped dead")
    given = parser.parse_args()
    backends = BACKENDS if given.backend == "both" else (given.backend,)
    seeds = range(given.first, given.first + given.seeds) if given.seed is None else [given.seed]
    started = time.perf_counter()
    figures = Figures()
    for backend in backends:
        for seed in seeds:
            done = simulate(seed, backend, stops=given.stops)
            figures.add(done)
            if given.seed is not None:
                _say("\n".join(done.ledger.trace))
            if done.violations:
                _complain(done)
    _say(figures.table(time.perf_counter() - started))
    return 1 if figures.failed else 0


def _complain(done: Run) -> None:
    _say(f"\nseed {done.seed} on {done.backend}:")
    for violation in done.violations:
        _say(f"  - {violation}")
    _say(f"  {done.command}\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
