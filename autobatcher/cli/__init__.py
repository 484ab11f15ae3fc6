"""The `autobatcher` command; needs the extras (`pip install "autobatcher[all]"`)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from typer import Typer

COMMANDS = {
    "run": "run:run",
    "prepare": "prepare:prepare",
    "validate": "validate:validate",
    "submit": "batches:submit",
    "list": "batches:list_",
    "status": "batches:status",
    "watch": "batches:watch",
    "results": "batches:results",
    "cancel": "batches:cancel",
    "retry": "batches:retry",
    "files": "files:files",
    "serve": "serve:serve",
    "local": "local:local",
    "demo": "demo:demo",
    "estimate": "estimate:estimate",
    "journal": "journal:journal",
}
"""In the order in which the help lists them: the module here, and the function (or Typer application) in it."""

_EXTRAS = frozenset({"typer", "rich", "starlette", "uvicorn", "python_multipart", "prometheus_client"})


def build_app() -> Typer:
    """The Typer application with every command."""
    import typer  # noqa: PLC0415 -- an extra; main() says so if it is missing

    from autobatcher.cli.common import EXIT_CODES  # noqa: PLC0415 -- as above

    app = typer.Typer(
        name="autobatcher",
        help="From files to answers through the Batch API of any OpenAI-compatible server.\n\n"
        "Example: autobatcher run --help",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    for name, place in COMMANDS.items():
        module, attribute = place.split(":")
        try:
            command = getattr(import_module(f"autobatcher.cli.{module}"), attribute)
        except ModuleNotFoundError as error:  # it may need another extra than those that are there
            if not _is_of_an_extra(error):
                raise
            command = _that_says(error)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, epilog=EXIT_CODES)(command)
    return app


def _is_of_an_extra(error: ModuleNotFoundError) -> bool:
    return (error.name or "").split(".")[0] in _EXTRAS


def _that_says(error: ModuleNotFoundError) -> Callable[[], None]:
    def missing() -> None:
        _end(error)

    missing.__doc__ = f"Needs {error.name}, which is not installed."
    return missing


def _end(error: ModuleNotFoundError) -> NoReturn:
    sys.exit(f'autobatcher: {error.name} is not installed: pip install "autobatcher[all]"')


def main() -> None:
    """Run the command line."""
    try:
        import uvicorn  # noqa: F401, PLC0415 -- an extra that commands need later than their imports

        from autobatcher.cli.common import drop_unwritten  # noqa: PLC0415 -- needs an extra, too

        app = build_app()
    except ModuleNotFoundError as error:
        if not _is_of_an_extra(error):
            raise
        _end(error)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C
    try:
        app()
    finally:
        drop_unwritten()
