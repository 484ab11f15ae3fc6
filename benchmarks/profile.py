"""`python -m benchmarks.profile`: where the CPU time of create() goes, here and in the floor, in µs a call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median

from benchmarks import environments, provenance, runs
from benchmarks.contestants.sampling import INTERVAL
from benchmarks.report import spread, table

CONTESTANTS = ("this", "floor")
LEAST = 0.2
"""Microseconds a call of a function that has a row of its own."""

Profile = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", choices=runs.MEASURES, default="create")
    arguments = parser.parse_args()
    contestants = [key for key in CONTESTANTS if key in runs.MEASURES[arguments.measure].contestants]
    for key in contestants:
        environments.python_of(runs.CONTESTANTS[key].program)
    profiles: dict[str, list[Profile]] = {key: [] for key in contestants}
    with runs.server() as url:
        for _ in range(arguments.rounds):
            for key, made in profiles.items():
                seen, _stats = runs.perform(url, arguments.measure, key, arguments.calls, profile=True)
                made.append({name: spent / arguments.calls * 1e6 for name, spent in seen["profile"].items()})
    command = " ".join(["python -m benchmarks.profile", *sys.argv[1:]])
    print(f"""{provenance.described(provenance.machine())}; commit {provenance.commit() or "unknown"}. `{command}`

CPU time of {arguments.calls:,} concurrent calls of {runs.MEASURES[arguments.measure].title}, µs a call: medians of \
{arguments.rounds} interleaved rounds, with the least and the most where they differ. The stack is looked at every \
{INTERVAL * 1000:g} ms of CPU time at most; what a function calls of other packages, C code included, is its own. The \
garbage collector is clocked by its callbacks.""")
    for key, made in profiles.items():
        print(f"\n## {runs.CONTESTANTS[key].title}\n\n{_by_module(made)}\n\n{_by_function(made)}")


def _by_module(profiles: Sequence[Profile]) -> str:
    modules: list[Profile] = []
    for profile in profiles:
        modules.append({"all": sum(profile.values())})
        for name, spent in profile.items():
            module = name.partition(": ")[0]
            modules[-1][module] = modules[-1].get(module, 0.0) + spent
    return _rows("module", modules)


def _by_function(profiles: Sequence[Profile]) -> str:
    return _rows(
        "function", [{name: spent for name, spent in made.items() if ": " in name} for made in profiles]
    )


def _rows(head: str, profiles: Sequence[Profile]) -> str:
    """The greatest first."""
    names = sorted({name for profile in profiles for name in profile})
    values = {name: [profile.get(name, 0.0) for profile in profiles] for name in names}
    names.sort(key=lambda name: -median(values[name]))
    rows = [[name, spread(values[name], 1)] for name in names if median(values[name]) >= LEAST]
    return table([head, "µs a call"], rows)


if __name__ == "__main__":
    main()
