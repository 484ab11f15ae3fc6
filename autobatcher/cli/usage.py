"""What was used and what it cost, as text and as JSON; and the prices that the command line gives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from autobatcher.cli.common import USAGE, fail, say, shown
from autobatcher.display_state import counted, printable
from autobatcher.prices import Prices, parse_override
from autobatcher.usage import Usage, UsageLine

UNKNOWN = "unknown"

GivenPrices = Annotated[
    list[str] | None,
    typer.Option(
        "--price",
        metavar="MODEL=IN,OUT",
        help="The price of a model, in USD per million tokens of input and output: what is paid, for every completion"
        " window and in real time. Can be given for several models.",
    ),
]


def prices_of(given: list[str] | None) -> Prices:
    """Prices with those that the command line gives; the process ends with `USAGE` if one is none."""
    try:
        return Prices(dict(parse_override(text) for text in given or ()))
    except ValueError as error:
        fail(f"--price: {error}", USAGE)


def say_unused(given: list[str] | None, models: Iterable[str]) -> None:
    """Say which prices that the command line gives are of models that are not among these, as where one is misspelt."""
    found = dict.fromkeys(models)
    for name in dict.fromkeys(parse_override(text)[0] for text in given or ()):
        if name not in found:
            there = ", ".join(model or "(no model)" for model in found)
            models_are = f"; the models are {there}" if there else ""
            say(printable(f"--price {name}: stands for nothing here{models_are}"))


def money(dollars: float | None) -> str:
    """A sum for people: in cents, and smaller ones in hundredths of a cent."""
    if dollars is None:
        return UNKNOWN
    if 0 < dollars < 0.00005:  # noqa: PLR2004 -- half of the smallest sum that is shown
        return "<$0.0001"
    return f"${dollars:,.2f}" if dollars >= 1 or not dollars else f"${dollars:.4f}"


def bought(window: str | None) -> str:
    """How something was bought."""
    return "realtime" if window is None else window


def usage_lines(usage: Usage) -> list[str]:
    """For people: a line for each model, and one for the sum; with what was saved, and what is unknown."""
    lines = [_line(line) for line in usage.lines]
    if len(lines) > 1:
        lines.append(f"total: {_tokens(usage)}: {money(usage.cost)}{_saved(usage)}")
    return lines


def _line(line: UsageLine) -> str:
    said = f"{line.model} ({bought(line.completion_window)}): {_tokens(line)}: "
    if line.cost is None:
        return (
            f"{said}cost unknown, for no price is known for it at {shown(line.base_url)} (--price gives one)"
        )
    return f"{said}{money(line.cost)}{_saved(line)}"


def earlier_lines(usage: Usage) -> list[str]:
    """A line for what was bought by earlier runs, if there is some: in which window is not known, and so no cost."""
    return [f"of earlier runs, at what they paid: {_tokens(usage)}"] if usage.requests else []


def _tokens(used: Usage | UsageLine) -> str:
    cached = f" ({used.cached_tokens:,} cached)" if used.cached_tokens else ""
    output = counted(used.completion_tokens, "output token")
    return f"{counted(used.requests, 'answer')}, {used.prompt_tokens:,} prompt{cached} + {output}"


def _saved(used: Usage | UsageLine) -> str:
    cost, realtime = used.cost, used.realtime_cost
    if cost is None or realtime is None or realtime <= cost:
        return ""
    return f", saved {money(realtime - cost)} ({(realtime - cost) / realtime:.0%}) against realtime"


def tokens_json(used: Usage | UsageLine) -> dict[str, Any]:
    """How many answers there are, and their tokens."""
    return {
        "requests": used.requests,
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "cached_tokens": used.cached_tokens,
    }


def usage_json(usage: Usage) -> dict[str, Any]:
    """The sums, and the same by model in "lines"; costs in USD, null where they are unknown."""
    return {
        **_sums(usage),
        "saved": usage.saved,
        "lines": [
            {
                "model": line.model,
                "base_url": shown(line.base_url),
                "completion_window": line.completion_window,
                **_sums(line),
            }
            for line in usage.lines
        ],
    }


def _sums(used: Usage | UsageLine) -> dict[str, Any]:
    return {**tokens_json(used), "cost": used.cost, "realtime_cost": used.realtime_cost}
