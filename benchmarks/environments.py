"""The virtual environments: one for each contestant, made when they are first needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
VENVS = HERE / ".venvs"
PROJECT = HERE.parent

_SDK = "openai>=3,<4"

REQUIREMENTS = {
    "server": ["orjson"],
    "this_project": [_SDK, "-e", str(PROJECT)],
    "proxy": [_SDK, "-e", f"{PROJECT}[all]"],
    "published": ["autobatcher==0.12.0", "openai>=2,<3"],
    "inspect_batcher": ["inspect-ai==0.3.285", _SDK],  # it is used through modules that are its own business
    "realtime": [_SDK],
    "floor": [_SDK, "orjson", "msgspec"],
    "chart": ["matplotlib"],
}


def python_of(name: str) -> str:
    """The interpreter of an environment, which is made if it is not there, or was made for other requirements."""
    requirements = REQUIREMENTS[name]
    key = list(requirements)
    if "-e" in requirements:
        key.append((PROJECT / "pyproject.toml").read_text())  # which requires more
    directory = VENVS / name
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    made = directory / "made.json"
    if made.exists() and json.loads(made.read_text()) == key:
        return str(python)
    print(f"making the environment of {name}", file=sys.stderr)
    uv = shutil.which("uv")
    if uv:
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, directory], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *requirements], check=True)
    else:
        venv.create(directory, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
    made.write_text(json.dumps(key))
    return str(python)


_FOREIGN = ("PYTHON", "OPENAI_", "AUTOBATCHER_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def clean() -> dict[str, str]:
    """The environment variables of the processes: none that change what is imported, and how the server is called."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(_FOREIGN)}
