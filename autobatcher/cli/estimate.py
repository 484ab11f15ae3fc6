"""`autobatcher estimate`: tokens and cost of a file of requests, before it is sent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from autobatcher.cli.common import AsJson, print_json, say, server_of, shown, told
from autobatcher.cli.inputs import (
    Endpoint,
    Images,
    Input,
    Kind,
    Model,
    Prompt,
    Schema,
    Settings,
    System,
    Tools,
    source_of,
)
from autobatcher.cli.tables import put_rich
from autobatcher.cli.usage import UNKNOWN, GivenPrices, bought, money, prices_of, say_unused
from autobatcher.jobs.estimating import WINDOWS, Estimate, EstimateLine
from autobatcher.jobs.estimating import estimate as estimated
from autobatcher.jobs.template import CHAT
from autobatcher.prices import OVERRIDDEN, Price

_WIDE = 10_000
"""Columns, where nobody looks at their number."""


def estimate(
    path: Input,
    *,
    model: Model = None,
    prompt: Prompt = None,
    system: System = None,
    schema: Schema = None,
    tools: Tools = None,
    images: Images = None,
    settings: Settings = None,
    endpoint: Endpoint = CHAT,
    kind: Kind = None,
    price: GivenPrices = None,
    output_tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Tokens that an answer is expected to have (default: the limits in the bodies, if they have some).",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="The server whose prices are taken (default: as for the other commands). Nothing is sent there.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate requests, tokens and cost of a file by model: in real time, and in batches by completion window.

    Tokens are counted with tiktoken, which fetches its vocabularies when it first needs them, and otherwise estimated.
    What is unknown is said to be unknown.

    Example: autobatcher estimate requests.jsonl --output-tokens 300
    """
    prices = prices_of(price)
    with told():
        source = source_of(
            path,
            model=model,
            prompt=prompt,
            system=system,
            schema=schema,
            tools=tools,
            images=images,
            settings=settings,
            endpoint=endpoint,
            kind=kind,
        )
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task("Counting", total=source.size)
            found = estimated(
                source,
                prices=prices,
                base_url=server_of(base_url),
                output_tokens=output_tokens,
                moved=lambda read: bar.update(task, completed=read),
            )
        if as_json:
            for line in found.lines:
                print_json(_fields(line))
        else:
            _show(found)
    for note in _notes(found):
        say(note)
    say_unused(price, (line.model for line in found.lines))


def _show(found: Estimate) -> None:
    rows = [_row(line, line.model, line.endpoint) for line in found.lines]
    if len(rows) > 1:
        rows.append(_row(found, "total", ""))
    titles = ["model", "endpoint", "requests", "prompt tokens", "output tokens", *map(bought, WINDOWS)]
    names = 2
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    widths = [max(map(len, cells)) for cells in zip(titles, *rows, strict=True)]
    if sum(widths) + 2 * len(widths) > console.width:
        titles = ["model\nendpoint", *(title.replace(" ", "\n") for title in titles[names:])]
        rows = [(f"{model}\n{endpoint}".strip(), *cells) for model, endpoint, *cells in rows]
        names = 1
    table = Table(*titles, box=None, pad_edge=False)
    for column in table.columns[:names]:
        column.overflow = "fold"
    for column in table.columns[names:]:  # numbers are whole, however narrow the screen
        column.justify, column.no_wrap = "right", True
    for column, cells in zip(table.columns[names:], list(zip(*rows, strict=True))[names:], strict=False):
        column.min_width = max(map(len, cells))
    for row in rows:
        table.add_row(*map(Text, row))
    put_rich(console, table)


def _row(of: EstimateLine | Estimate, model: str, endpoint: str) -> tuple[str, ...]:
    return (
        model,
        endpoint,
        f"{of.requests:,}",
        f"{'' if of.exact else '~'}{of.prompt_tokens:,}",
        UNKNOWN if of.output_tokens is None else f"{'<=' if of.limited else ''}{of.output_tokens:,}",
        *(money(of.cost(window)) for window in WINDOWS),
    )


def _notes(found: Estimate) -> Iterator[str]:
    """What is to be known of the numbers."""
    about: dict[str, list[str]] = {}
    for line in found.lines:
        for note in _notes_of(line):
            about.setdefault(note, []).append(line.model or "(no model)")
    yield from found.problems
    yield from (f"{note}: {', '.join(dict.fromkeys(models))}" for note, models in about.items())
    prices = (line.price(window) for line in found.lines for window in WINDOWS)
    yield from (f"prices: {source}" for source in dict.fromkeys(_told(price) for price in prices if price))


def _notes_of(line: EstimateLine) -> Iterator[str]:
    if not line.exact:
        yield f"prompt tokens are estimated, {line.method}"
    if line.uncounted:
        yield f"without the tokens of {', '.join(line.uncounted)}"
    if line.as_json:
        yield f"counted as JSON text, {', '.join(line.as_json)}"
    if line.output_tokens is None:
        yield "output tokens are unknown, for not all bodies limit them (--output-tokens says how many to expect)"
    if line.limited:
        yield "output tokens are limits of the bodies; answers may have fewer, and cost less"
    without = [bought(window) for window in WINDOWS if line.price(window) is None]
    if without:
        server = "OpenAI" if line.base_url is None else shown(line.base_url)
        yield f"no price is known at {server} for {', '.join(without)} (--price gives one)"


def _told(price: Price) -> str:
    if price.source == OVERRIDDEN:
        return "given with --price, for every window"
    return price.source if price.date is None else f"{price.source} ({price.date})"


def _fields(line: EstimateLine) -> dict[str, Any]:
    prices = {bought(window): line.price(window) for window in WINDOWS}
    return {
        "model": line.model,
        "endpoint": line.endpoint,
        "requests": line.requests,
        "prompt_tokens": line.prompt_tokens,
        "counted_by": line.method,
        "not_counted": line.uncounted,
        "counted_as_json": line.as_json,
        "output_tokens": line.output_tokens,
        "output_tokens_are_limits": line.limited,
        "cost": {bought(window): line.cost(window) for window in WINDOWS},
        "prices": {name: price and price._asdict() for name, price in prices.items()},
    }
