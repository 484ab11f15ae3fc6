"""The tables that are committed are those of the results that are committed."""

import json
import pathlib

from benchmarks import report

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks/results/results.json").read_text())


def test_the_readme_has_the_results() -> None:
    page = (ROOT / "README.md").read_text()

    assert f"{report.START}{report.readme(RESULTS)}{report.END}" in page


def test_the_tables_have_the_results() -> None:
    assert (ROOT / "benchmarks/results/tables.md").read_text() == report.tables(RESULTS)
