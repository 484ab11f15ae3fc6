"""`python -m benchmarks`: run the contestants in turns, and print what they cost."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks import environments, provenance, report, runs

IMPORTS = ("autobatcher", "openai")
OTHERS = ("million", "import")
"""Measures that are not runs of contestants in turns."""

UNFINISHED = "unfinished.json"
QUICK_SIZES = [200]


def main() -> None:
    arguments = _parser().parse_args()
    asked = arguments.sizes or (QUICK_SIZES if arguments.quick else None)
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    chosen = set(arguments.only or ())
    measures = {*runs.MEASURES, *OTHERS}
    full = not (arguments.quick or arguments.sizes or arguments.rounds or chosen)
    out = arguments.out or (environments.HERE / "results" if full else None)
    results: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "commit": provenance.commit(),
        "machine": provenance.machine(),
        "rounds": rounds,
        "packages": {},
        "titles": {key: contestant.title for key, contestant in runs.CONTESTANTS.items()},
        "imports": {name: [] for name in IMPORTS},
        "runs": [],
        "million": None,
    }
    for key in runs.CONTESTANTS:  # nothing is installed while something is measured
        if _wanted(key, runs.CONTESTANTS, chosen):
            environments.python_of(runs.CONTESTANTS[key].program)
    with runs.server() as url:
        for name, measure in runs.MEASURES.items():
            if _wanted(name, measures, chosen):
                keys = [key for key in measure.contestants if _wanted(key, runs.CONTESTANTS, chosen)]
                for turn in measure.turns(asked or measure.sizes, keys):
                    _measure(url, name, turn, results)
                    _save(out, results)
        if full or "million" in chosen:
            results["million"] = _told(runs.run(url, "create", "this", runs.MILLION))
    if _wanted("import", measures, chosen):
        _measure_imports(3 if arguments.quick else 4 * rounds, results)
    text = report.tables(results)
    print(text)
    if out is not None:
        _write(out.resolve(), results, text)


def _parser() -> argparse.ArgumentParser:
    names = [*runs.CONTESTANTS, *runs.MEASURES, *OTHERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="everything once, with few calls; asserts no times"
    )
    parser.add_argument("--sizes", type=_numbers, help="numbers of calls; each measure has its own")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument(
        "--only",
        type=_names(names),
        help=f"contestants and measures, of {', '.join(names)}",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="a directory for the results; default benchmarks/results, if all is run that there is, else none",
    )
    return parser


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _names(known: list[str]) -> Any:
    def names(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
        return text.split(",")

    return names


def _wanted(name: str, among: Collection[str], chosen: set[str]) -> bool:
    """Whether a contestant or a measure was asked for; none of its kind asked for means all of them."""
    return name in chosen or chosen.isdisjoint(among)


def _measure(url: str, name: str, turn: list[tuple[str, int]], results: dict[str, Any]) -> None:
    """All rounds of one turn of a measure; each round begins with another contestant."""
    for number in range(results["rounds"]):
        first = number % len(turn)
        for key, calls in turn[first:] + turn[:first]:
            run = _told(runs.run(url, name, key, calls))
            results["packages"][key] = run.pop("packages")
            results["runs"].append({"round": number, **run})


def _measure_imports(times: int, results: dict[str, Any]) -> None:
    for _ in range(times):
        for module in IMPORTS:
            results["imports"][module].append(runs.import_seconds(module))


def _told(run: dict[str, Any]) -> dict[str, Any]:
    told = f"{run['measure']} {run['calls']:,} {run['contestant']}: {run['cpu_us']:.1f} µs, {run['memory_kb']:.1f} KB"
    print(f"{told}, stall {run['stall_ms']:.0f} ms, {run['total_s']:.1f} s", file=sys.stderr)
    return run


def _save(directory: Path | None, results: dict[str, Any]) -> None:
    """Write down what there is so far, beside the results of an earlier run."""
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / UNFINISHED).write_text(_as_json(results))


def _write(directory: Path, results: dict[str, Any], text: str) -> None:
    """Write all files, when all of them can be written."""
    _save(directory, results)
    with tempfile.TemporaryDirectory(dir=directory) as made:
        target = Path(made)
        (target / "results.json").write_text(_as_json(results))
        (target / "tables.md").write_text(text)
        _draw(target)
        for path in list(target.iterdir()):
            path.replace(directory / path.name)
    (directory / UNFINISHED).unlink()


def _as_json(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=1) + "\n"


def _draw(directory: Path) -> None:
    files = [str(directory / name) for name in ("results.json", "chart.png")]
    command = [environments.python_of("chart"), "chart.py", *files]
    subprocess.run(command, cwd=environments.HERE, env=environments.clean(), check=True)


if __name__ == "__main__":
    main()
