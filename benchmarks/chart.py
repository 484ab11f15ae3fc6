"""Draws the chart; runs in the environment that has matplotlib. Arguments: the results' JSON, the PNG to write."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

ANSWERED_AT_ONCE = "realtime"
"""Whose memory is not that of so many waiting calls."""

LEAST_KB = 4_000
"""Memory of all calls of a run that is drawn: less is a matter of pages, not of calls."""


class Chart:
    """Bars for each contestant at each number of calls of `create()`."""

    def __init__(self, results: dict[str, Any]) -> None:
        self._titles = results["titles"]
        self._runs = [run for run in results["runs"] if run["measure"] == "create"]
        self.sizes = sorted({run["calls"] for run in self._runs if run["contestant"] == "this"})
        self.keys = [key for key in self._titles if any(run["contestant"] == key for run in self._runs)]

    def values(self, key: str, size: int, column: str) -> list[float]:
        """Of a contestant's runs with so many calls, or the most that it makes."""
        made = [run for run in self._runs if run["contestant"] == key]
        calls = max((run["calls"] for run in made if run["calls"] <= size), default=0)
        return [max(run[column], 0.01) for run in made if run["calls"] == calls] or [float("nan")]

    def draw(self, axis: Axes, column: str, form: str, keys: list[str], sizes: list[int]) -> None:
        width = 0.8 / max(1, len(keys))
        for place, key in enumerate(keys):
            values = [self.values(key, size, column) for size in sizes]
            middles = [statistics.median(found) for found in values]
            errors = [
                [middle - min(found) for middle, found in zip(middles, values, strict=True)],
                [max(found) - middle for middle, found in zip(middles, values, strict=True)],
            ]
            at = [n + (place - (len(keys) - 1) / 2) * width for n in range(len(sizes))]
            color = f"C{list(self._titles).index(key)}"
            bars = axis.bar(at, middles, width, yerr=errors, label=self._label(key), color=color)
            axis.bar_label(bars, fmt=form, fontsize=6, padding=2)
        axis.set_xticks(range(len(sizes)), [f"{size:,} calls" for size in sizes])
        axis.spines[["top", "right"]].set_visible(False)

    def _label(self, key: str) -> str:
        most = max(run["calls"] for run in self._runs if run["contestant"] == key)
        return self._titles[key] + (f" (up to {most:,} calls)" if most < max(self.sizes, default=0) else "")

    def with_memory(self) -> tuple[list[str], list[int]]:
        """The contestants and numbers of calls whose memory says something."""
        keys = [key for key in self.keys if key != ANSWERED_AT_ONCE]
        sizes = [
            size
            for size in self.sizes
            if all(size * statistics.median(self.values(key, size, "memory_kb")) >= LEAST_KB for key in keys)
        ]
        return keys, sizes


def main(source: Path, target: Path) -> None:
    results = json.loads(source.read_text())
    chart = Chart(results)
    figure, (cpu, memory) = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    cpu.set_yscale("log")
    cpu.set_title("client CPU per request, µs (log scale)", fontsize=10)
    chart.draw(cpu, "cpu_us", "{:,.0f}", chart.keys, chart.sizes)
    memory.set_title("peak memory over idle per waiting request, KB", fontsize=10)
    chart.draw(memory, "memory_kb", "{:,.1f}", *chart.with_memory())
    figure.legend(
        *cpu.get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=7, frameon=False
    )
    machine = results["machine"]
    figure.supxlabel(
        f"create(), 0.5 KB; medians of {results['rounds']} rounds, with the least and the most\n"
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; {machine['system']}; "
        f"Python {machine['python']}; commit {results['commit'] or 'unknown'}; {results['command']}",
        fontsize=7,
    )
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
