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

PANELS = (
    ("cpu_us", "client CPU per request, µs (log scale)", "log", "{:,.0f}"),
    ("memory_kb", "peak memory over idle per waiting request, KB", "linear", "{:,.1f}"),
)
ANSWERED_AT_ONCE = "realtime"
"""Whose memory is not that of so many waiting requests."""


def main(source: Path, target: Path) -> None:
    results = json.loads(source.read_text())
    runs = [run for run in results["runs"] if run["measure"] == "create"]
    sizes = sorted({run["calls"] for run in runs if run["contestant"] == "this"})
    keys = [key for key in results["titles"] if any(run["contestant"] == key for run in runs)]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(12, 4.2), layout="constrained")
    width = 0.8 / max(1, len(keys))
    for axis, (column, title, scale, form) in zip(axes, PANELS, strict=True):
        for place, key in enumerate(keys):
            if column == "memory_kb" and key == ANSWERED_AT_ONCE:
                continue
            values = [_values(runs, key, size, column) for size in sizes]
            middles = [statistics.median(found) for found in values]
            errors = [
                [middle - min(found) for middle, found in zip(middles, values, strict=True)],
                [max(found) - middle for middle, found in zip(middles, values, strict=True)],
            ]
            at = [n + (place - (len(keys) - 1) / 2) * width for n in range(len(sizes))]
            bars = axis.bar(at, middles, width, yerr=errors, label=results["titles"][key], color=f"C{place}")
            axis.bar_label(bars, fmt=form, fontsize=6, padding=2)
        axis.set_yscale(scale)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(sizes)), [f"{size:,} calls" for size in sizes])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(target, dpi=130)


def _values(runs: list[dict[str, Any]], key: str, size: int, column: str) -> list[float]:
    """Of a contestant's runs with so many calls, or the most that it makes."""
    made = [run for run in runs if run["contestant"] == key]
    calls = max((run["calls"] for run in made if run["calls"] <= size), default=0)
    return [max(run[column], 0.01) for run in made if run["calls"] == calls] or [float("nan")]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
