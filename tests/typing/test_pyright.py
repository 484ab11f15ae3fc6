"""What mypy checks of `test_usage.py`, pyright checks as well."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("basedpyright") is None, reason="basedpyright is not installed"
    ),
    pytest.mark.skipif(
        int(openai.__version__.split(".")[0]) < 3, reason="the signatures are written out as of openai 3"
    ),
]


def check(project: Path) -> dict[str, Any]:
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "basedpyright", "--outputjson"),
            *("--pythonpath", sys.executable, "--project", str(project)),
        ],
        capture_output=True,
        check=False,
        cwd=project.parent,
        text=True,
        timeout=300,
    )
    report: dict[str, Any] = json.loads(finished.stdout)
    return report


def test_pyright_finds_the_usage_right() -> None:
    report = check(HERE / "pyrightconfig.json")
    assert report["summary"]["filesAnalyzed"] == 1
    errors = [item for item in report["generalDiagnostics"] if item["severity"] == "error"]
    assert [(item["range"]["start"]["line"] + 1, item["message"]) for item in errors] == []


def test_pyright_finds_what_is_wrong(tmp_path: Path) -> None:
    """The check would fail if it should: without the comments, each wrong line is an error."""
    usage = (HERE / "test_usage.py").read_text(encoding="utf-8")
    wrong = [number for number, line in enumerate(usage.splitlines(), start=1) if "# type: ignore[" in line]
    (tmp_path / "test_usage.py").write_text(usage.replace("# type: ignore[", "# was ["), encoding="utf-8")
    config = tmp_path / "pyrightconfig.json"
    config.write_text((HERE / "pyrightconfig.json").read_text(encoding="utf-8"), encoding="utf-8")
    errors = [item for item in check(config)["generalDiagnostics"] if item["severity"] == "error"]
    assert sorted({item["range"]["start"]["line"] + 1 for item in errors}) == wrong
    assert len(wrong) > 10
