"""The `autobatcher` command; needs the extras (`pip install "autobatcher[all]"`)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
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

_USAGE, _INTERRUPTED = 2, 130
"""As in `common`, which needs an extra."""

ANYTHING = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of a command that says what is missing, whatever it is given."""

_EXTRAS = frozenset({"typer", "rich", "starlette", "uvicorn", "python_multipart", "prometheus_client"})


def build_app(only: str | None = None) -> Typer:
    """The Typer application with every command, or with the only one that is asked for.

    Args:
        only: its name; what is no command's name stands for all of them, as for the help.
    """
    import typer  # noqa: PLC0415 -- an extra; main() says so if it is missing

    from autobatcher.cli.common import EXIT_CODES  # noqa: PLC0415 -- as above

    names = [only] if only in COMMANDS else list(COMMANDS)

    app = typer.Typer(
        name="autobatcher",
        help="From files to answers through the Batch API of any OpenAI-compatible server.\n\n"
        "Example: autobatcher run --help",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_group)
    for name in names:
        module, attribute = COMMANDS[name].split(":")
        try:
            command = getattr(import_module(f"autobatcher.cli.{module}"), attribute)
        except ModuleNotFoundError as error:  # it may need another extra than those that are there
            if not _is_of_an_extra(error):
                raise
            app.command(name, context_settings=ANYTHING)(_that_says(error))
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, epilog=EXIT_CODES)(command)
    return app


def _group() -> None:
    """Nothing; Typer makes a single command the whole application if that has no callback."""


def _is_of_an_extra(error: ModuleNotFoundError) -> bool:
    return _top(error) in _EXTRAS


def _top(error: ModuleNotFoundError) -> str:
    return (error.name or "").split(".")[0]


def _that_says(error: ModuleNotFoundError) -> Callable[[], None]:
    def missing() -> None:
        _end(_top(error))

    missing.__doc__ = f"Needs {_top(error)}, which is not installed."
    return missing


def _end(missing: str) -> NoReturn:
    print(f'autobatcher: {missing} is not installed: pip install "autobatcher[all]"', file=sys.stderr)
    sys.exit(_USAGE)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the same as Ctrl-C
    try:
        if find_spec("uvicorn") is None:  # an extra that commands need later than their imports
            _end("uvicorn")
        from autobatcher.cli.common import drop_unwritten  # noqa: PLC0415 -- needs an extra, too

        app = build_app(sys.argv[1] if len(sys.argv) > 1 else None)
    except ModuleNotFoundError as error:
        if not _is_of_an_extra(error):
            raise
        _end(_top(error))
    except KeyboardInterrupt:  # what is imported takes a second or more
        sys.exit(_INTERRUPTED)
    try:
        app()
    finally:
        drop_unwritten()
