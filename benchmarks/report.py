"""From runs to tables: medians, the spread, ratios pair by pair.

`python -m benchmarks.report` makes the tables of the main README and of `benchmarks/results/` from the results anew.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import described
from benchmarks.runs import CONTESTANTS, MEASURES, MILLION, POLL

Run = dict[str, Any]

_COLUMNS = {
    "CPU, µs/request": ("cpu_us", 1),
    "memory, KB/request": ("memory_kb", 1),
    "worst stall, ms": ("stall_ms", 0),
    "last result to last caller, s": ("wait_s", 2),
    "sent, KB/request": ("sent_kb", 2),
    "received, KB/request": ("received_kb", 2),
    "HTTP calls": ("http_calls", 0),
}

LEAST_KB = 4_000
"""Memory of all calls of a run of which ratios are shown: less is a matter of pages, not of calls."""

ANSWERED_AT_ONCE = "realtime"
"""Whose memory is not that of so many waiting calls."""

_RATIOS = {"CPU": "cpu_us", "memory": "memory_kb"}


def tables(results: dict[str, Any]) -> str:
    """All of them, as Markdown."""
    runs: list[Run] = results["runs"]
    parts = [_machine(results), _goals(results)]
    for measure in MEASURES:
        for size in _sizes(runs, measure):
            parts.append(f"### {MEASURES[measure].title}, {size:,} calls")
            parts.append(_values(runs, measure, size))
            if ratios := _ratios(runs, measure, size):
                parts.append(ratios)
    if results["million"]:
        parts.append(f"### {MILLION:,} calls, once")
        parts.append(_values([results["million"]], "create", MILLION))
    return "\n\n".join(part for part in parts if part) + "\n"


_SHORT = {
    "CPU, µs a call": ("cpu_us", 0),
    "memory, KB a call": ("memory_kb", 1),
    "worst stall, ms": ("stall_ms", 0),
}

_MULTIPLE = "this project's CPU, as a multiple"

START, END = "<!-- results -->\n", "<!-- end of results -->\n"


def readme(results: dict[str, Any]) -> str:
    """What the main README says of the results, as Markdown."""
    runs: list[Run] = results["runs"]
    machine, size = results["machine"], _largest(runs, "create")
    others = [row for measure in ("parse", "raw", "embeddings") for row in _short(runs, measure)]
    return f"""{table([f"create(), {size:,} calls of 0.5 KB", *_SHORT, _MULTIPLE], _short(runs, "create"))}

{table(["other calls", *_SHORT, _MULTIPLE], others)}

Medians of {results["rounds"]} interleaved rounds, with the least and the most where they differ, by
`{results["command"]}` on {machine["cores"]} cores ({machine["cpu"]}, {machine["system"]}, Python {machine["python"]}) at commit
{results["commit"] or "unknown"}; multiples are taken
pair by pair. floor is the least that any client must do, without repeats and errors. Of realtime calls fewer are made,
and the memory is that of those under way.

What was to be reached, and what was, by the medians (of partial results by the most); the journal's multiple is here that
of the calls with one:

{_goals(results)}
"""


def _short(runs: list[Run], measure: str) -> list[list[str]]:
    """Rows of the main README: the contestants at the greatest number of calls."""
    size, rows = _largest(runs, measure), []
    for key in MEASURES[measure].contestants:
        if found := _of(runs, measure, size, key):
            ratios = [] if key == "this" else _ratio(pairs_of(runs, measure, size, key), "cpu_us")
            name = _name(found, size)
            if measure != "create":
                name = f"{MEASURES[measure].title}, {size:,} calls: {name}"
            rows.append([name, *_cells(found, _SHORT), _multiple(ratios)])
    return rows


def _cells(found: Sequence[Run], columns: dict[str, tuple[str, int]]) -> list[str]:
    return [spread([run[name] for run in found], digits) for name, digits in columns.values()]


def _sizes(runs: list[Run], measure: str) -> list[int]:
    """The numbers of calls of which there is a table: this project's, if it is among the contestants."""
    made = [run for run in runs if run["measure"] == measure]
    return sorted(
        {run["calls"] for run in made if run["contestant"] == "this"} or {run["calls"] for run in made}
    )


def _machine(results: dict[str, Any]) -> str:
    packages = "\n".join(
        f"- {CONTESTANTS[key].title}: {', '.join(f'{name} {version}' for name, version in found.items())}"
        for key, found in results["packages"].items()
    )
    return f"""{described(results["machine"])}; commit {results["commit"] or "unknown"}. `{results["command"]}`, {results["rounds"]} rounds; medians, with the least and the most \
in parentheses.

{packages}"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(
    values: Sequence[float], digits: int, first: Callable[[Sequence[float]], float] = statistics.median
) -> str:
    """The median (or what is to come first), and the least and the most if they differ in what is shown of them."""
    if not values:
        return "-"
    middle, least, most = (f"{value:,.{digits}f}" for value in (first(values), min(values), max(values)))
    return middle if least == most else f"{middle} ({least} to {most})"


def _multiple(ratios: Sequence[float]) -> str:
    few = bool(ratios) and statistics.median(ratios) * 10 < 1  # of two digits, one would be a zero
    return spread(ratios, 3 if few else 2)


def _of(runs: Iterable[Run], measure: str, size: int, contestant: str) -> list[Run]:
    """A contestant's runs with so many calls, or the most that it makes; in the order of the rounds."""
    made = [run for run in runs if run["measure"] == measure and run["contestant"] == contestant]
    calls = max((run["calls"] for run in made if run["calls"] <= size), default=0)
    return [run for run in made if run["calls"] == calls]


def _name(found: Sequence[Run], size: int) -> str:
    """What a table of `size` calls calls a contestant."""
    title, calls = CONTESTANTS[found[0]["contestant"]].title, found[0]["calls"]
    return title if calls == size else f"{title} ({calls:,} calls)"


def _values(runs: list[Run], measure: str, size: int) -> str:
    every = [_of(runs, measure, size, key) for key in MEASURES[measure].contestants]
    rows = [[_name(found, size), *_cells(found, _COLUMNS)] for found in every if found]
    return table([" ", *_COLUMNS], rows)


def _ratios(runs: list[Run], measure: str, size: int) -> str:
    rows = []
    for key in MEASURES[measure].contestants:
        pairs = pairs_of(runs, measure, size, key)
        if pairs and key != "this":
            cells = [_multiple(_ratio(pairs, name)) for name in _RATIOS.values()]
            rows.append([_name([theirs for _, theirs in pairs], size), *cells])
    return table(["this project, as a multiple of", *_RATIOS], rows) if rows else ""


def pairs_of(runs: list[Run], measure: str, size: int, other: str) -> list[tuple[Run, Run]]:
    """This project's run and another contestant's, of each round."""
    ours, theirs = _of(runs, measure, size, "this"), _of(runs, measure, size, other)
    return list(zip(ours, theirs, strict=True)) if ours and theirs else []


def _ratio(pairs: Iterable[tuple[Run, Run]], name: str) -> list[float]:
    """Of each pair; none of memory where the other's is too little to be measured, or not that of all calls."""
    if name == "memory_kb":
        pairs = [
            (ours, theirs)
            for ours, theirs in pairs
            if theirs["contestant"] != ANSWERED_AT_ONCE and theirs[name] * theirs["calls"] >= LEAST_KB
        ]
    return [ours[name] / theirs[name] for ours, theirs in pairs]


def _goals(results: dict[str, Any]) -> str:
    """What was to be reached, and what was."""
    runs: list[Run] = results["runs"]
    rows: list[Sequence[str]] = []

    def goal(
        title: str,
        values: Sequence[float],
        most: float,
        digits: int = 2,
        judged_by: Callable[[Sequence[float]], float] = statistics.median,
    ) -> None:
        if values:
            value = judged_by(values)
            while value > most >= round(value, digits):  # it is to be seen that it is more
                digits += 1
            met = "yes" if value <= most else "no"
            rows.append([title, f"≤ {most:,g}", spread(values, digits, judged_by), met])

    def ratio(measure: str, other: str, name: str, most: float) -> None:
        size = _largest(runs, measure)
        if pairs := pairs_of(runs, measure, size, other):
            what = next(title for title, column in _RATIOS.items() if column == name)
            whose = _name([theirs for _, theirs in pairs], size)
            goal(
                f"{what}, {MEASURES[measure].title}, {size:,} calls: multiple of that of {whose}",
                _ratio(pairs, name),
                most,
            )

    ratio("create", "published", "cpu_us", 0.45)
    ratio("create", "floor", "cpu_us", 1.15)
    for measure in ("parse", "raw", "embeddings"):
        ratio(measure, "realtime", "cpu_us", 0.25)
    ratio("create", "published", "memory_kb", 0.50)
    ratio("create", "floor", "memory_kb", 1.15)
    size = _largest(runs, "create")
    kept = [b["cpu_us"] / a["cpu_us"] for a, b in pairs_of(runs, "create", size, "journal")]
    goal(f"CPU, create(), 0.5 KB, {size:,} calls with journal: multiple of that without", kept, 1.15)
    stalls = [a["stall_ms"] - b["stall_ms"] for a, b in pairs_of(runs, "create", size, "floor")]
    goal(f"worst stall, {size:,} calls: more than floor's by, ms", stalls, 25, 0)
    if million := results["million"]:
        at_most = _of(runs, "create", size, "this")
        goal("peak memory of 1,000,000 calls, GB", [million["peak_mb"] / 1e3], 24)
        for what, name, most in (("CPU", "cpu_us", 1.2), ("memory", "memory_kb", 1.0)):
            before = [run[name] for run in at_most]
            values = [million[name] / statistics.median(before)] if before else []
            goal(f"{what} per request of 1,000,000 calls: multiple of that at {size:,}", values, most)
    imports = results["imports"]
    goal("import: multiple of `import openai`", [a / b for a, b in zip(*imports.values(), strict=True)], 1.1)
    partial = _of(runs, "partial", _largest(runs, "partial"), "this")
    goal(
        "partial results: first answer there to first caller, s; the most of all rounds",
        [run["first_wait_s"] for run in partial],
        POLL,
        judged_by=max,
    )
    downloads = [run["most_downloads"] for run in partial]
    goal(
        "partial results: downloads of the line downloaded most often; the most of all rounds",
        downloads,
        2,
        0,
        judged_by=max,
    )
    return table(["goal", "to reach", "reached", "met"], rows) if rows else ""


def _largest(runs: list[Run], measure: str) -> int:
    """The most calls that this project made of a kind."""
    return max(
        (run["calls"] for run in runs if (run["measure"], run["contestant"]) == (measure, "this")), default=0
    )


def main(root: Path) -> None:
    """Make the tables in `root` anew."""
    directory, page = root / "benchmarks/results", root / "README.md"
    results = json.loads((directory / "results.json").read_text())
    (directory / "tables.md").write_text(tables(results))
    before, rest = page.read_text().split(START)
    after = rest.split(END)[1]
    page.write_text(f"{before}{START}{readme(results)}{END}{after}")


if __name__ == "__main__":
    main(Path(__file__).parents[1])
