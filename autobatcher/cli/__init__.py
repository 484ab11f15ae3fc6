"""The `autobatcher` command; needs the extras (`pip install "autobatcher[all]"`)."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer import Typer

COMMANDS = ("local", "demo", "journal")
"""Each is the function of that name in the module of that name, here."""

_EXTRAS = frozenset({"typer", "rich", "starlette", "uvicorn", "python_multipart"})


def build_app() -> Typer:
    """The Typer application with every command."""
    import typer  # noqa: PLC0415 -- an extra; main() says so if it is missing

    app = typer.Typer(
        name="autobatcher",
        help="Tools around the Batch API.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def group() -> None:
        """Keep the name of a command necessary when there is only one."""

    for name in COMMANDS:
        module = import_module(f"autobatcher.cli.{name}")
        app.command(name)(getattr(module, name))
    return app


def main() -> None:
    """Run the command line."""
    try:
        import uvicorn  # noqa: F401, PLC0415 -- an extra that commands need later than their imports

        app = build_app()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRAS:
            raise
        sys.exit(f'autobatcher: {error.name} is not installed: pip install "autobatcher[all]"')
    app()
