"""The options that say how rows become requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from autobatcher.jobs.items import InputError, Source
from autobatcher.jobs.sources import KINDS, open_source
from autobatcher.jobs.template import CHAT, ENDPOINTS, Template

Input = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="A batch file; or with --model and --prompt a table: CSV, TSV, JSONL, Parquet, text (a row a line) or a"
        " folder (a row a file).",
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="For tables: the model of all requests.")
]
Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        metavar="TEXT",
        help='For tables: what is asked, with columns in braces, such as "Summarise: {text}"; {{ and }} are braces.'
        " @FILE reads it from a file; @@ starts it with an @.",
    ),
]
System = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="For tables: the system's text, likewise."),
]
Schema = Annotated[
    Path | None,
    typer.Option("--schema", metavar="FILE", help="A JSON Schema that the answers are to have."),
]
Tools = Annotated[
    Path | None,
    typer.Option("--tools", metavar="FILE", help="JSON: OpenAI's tools, or functions."),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="COLUMN",
        help="A column with the path (from the input's folder) or URL of an image. Can be given several times.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A further field of the requests, such as temperature=0.2 or reasoning.effort=low. Can be given several"
        " times.",
    ),
]
Endpoint = Annotated[
    str,
    typer.Option("--endpoint", metavar="URL", help=f"For tables: one of {', '.join(ENDPOINTS)}."),
]
Kind = Annotated[
    str | None,
    typer.Option(
        "--kind",
        metavar="KIND",
        help=f"What INPUT is, if its name does not say it: {', '.join(KINDS)}.",
    ),
]


def source_of(
    path: Path,
    *,
    model: str | None = None,
    prompt: str | None = None,
    system: str | None = None,
    schema: Path | None = None,
    tools: Path | None = None,
    images: list[str] | None = None,
    settings: list[str] | None = None,
    endpoint: str = CHAT,
    kind: str | None = None,
) -> Source:
    """The source that the options mean.

    Raises:
        InputError: they do not go together, or not with the input.
        OSError: a file cannot be read.
    """
    further: dict[str, Any] = {
        "--system": system,
        "--schema": schema,
        "--tools": tools,
        "--image": images,
        "--set": settings,
    }
    given = [name for name, value in {"--model": model, "--prompt": prompt, **further}.items() if value]
    if endpoint != CHAT:
        given.append("--endpoint")
    if not given:
        return open_source(path, kind=kind)
    if model is None or prompt is None:
        raise InputError(f"{given[0]} makes requests of a table, which takes --model and --prompt")
    template = Template(
        model,
        _read(prompt),
        system=None if system is None else _read(system),
        schema=schema,
        tools=tools,
        images=images or (),
        settings=settings or (),
        endpoint=endpoint,
    )
    return open_source(path, template, kind=kind)


def _read(text: str) -> str:
    """The text, or that of the file which it names after an @."""
    if not text.startswith("@"):
        return text
    if text.startswith("@@"):
        return text[1:]
    path = Path(text[1:])
    try:
        return path.read_text("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8") from None
