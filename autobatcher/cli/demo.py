"""`autobatcher demo`: the client at work on the embedded server, with every answer checked."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from autobatcher import BatchOpenAI
from autobatcher._http import httpx
from autobatcher.local import LocalConfig, serve_in_thread

WEATHER_TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class City(BaseModel):
    """What the structured requests ask for."""

    name: str
    population: int


CITY_FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "city", "schema": City.model_json_schema(), "strict": True},
}


@dataclass
class Tally:
    """What the callers got."""

    samples: dict[str, tuple[str, str]] = field(default_factory=dict)
    tokens: int = 0
    answered: int = 0
    wrong: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, question: str, answer: str, tokens: int, *, right: bool) -> None:
        """Count one answer; the first of each kind is shown at the end."""
        self.answered += 1
        self.tokens += tokens
        self.samples.setdefault(kind, (question, answer))
        if not right:
            self.wrong[kind] += 1


Ask = Callable[[BatchOpenAI, int, Tally], Awaitable[None]]


async def ask_chat(client: BatchOpenAI, number: int, tally: Tally) -> None:
    """A plain question."""
    question = f"What is special about the number {number}?"
    answer = await client.chat.completions.create(
        model="local-chat", messages=[{"role": "user", "content": question}]
    )
    text = answer.choices[0].message.content or ""
    tally.note(
        "chat", question, text, answer.usage.total_tokens if answer.usage else 0, right=question in text
    )


async def ask_tool(client: BatchOpenAI, number: int, tally: Tally) -> None:
    """A question with a tool, the tool's result, and the final answer: two calls, one after the other."""
    question = f"How is the weather in city {number}?"
    messages: list[Any] = [{"role": "user", "content": question}]
    call = await client.chat.completions.create(model="local-chat", messages=messages, tools=[WEATHER_TOOL])
    message = call.choices[0].message
    tool_call: Any = message.tool_calls[0] if message.tool_calls else None
    tokens = call.usage.total_tokens if call.usage else 0
    if tool_call is None or "city" not in json.loads(tool_call.function.arguments):
        tally.note("tools", question, str(message.content), tokens, right=False)
        return
    result = f"sunny, {number} degrees"
    messages += [message, {"role": "tool", "tool_call_id": tool_call.id, "content": result}]
    answer = await client.chat.completions.create(model="local-chat", messages=messages, tools=[WEATHER_TOOL])
    text = answer.choices[0].message.content or ""
    tokens += answer.usage.total_tokens if answer.usage else 0
    tally.note("tools", f"{question} → {tool_call.function.name}(…)", text, tokens, right=result in text)


async def ask_structured(client: BatchOpenAI, number: int, tally: Tally) -> None:
    """A question whose answer follows a JSON schema."""
    question = f"Name a city with about {number} thousand people."
    answer = await client.chat.completions.create(
        model="local-chat", messages=[{"role": "user", "content": question}], response_format=CITY_FORMAT
    )
    text = answer.choices[0].message.content or ""
    try:
        City.model_validate_json(text)
    except ValueError:
        right = False
    else:
        right = True
    tally.note("structured", question, text, answer.usage.total_tokens if answer.usage else 0, right=right)


async def ask_embedding(client: BatchOpenAI, number: int, tally: Tally) -> None:
    """A vector for a text."""
    text = f"text number {number}"
    answer = await client.embeddings.create(model="local-embedding", input=text)
    vector = answer.data[0].embedding
    shown = f"[{', '.join(f'{value:.3f}' for value in vector[:3])}, …] ({len(vector)} values)"
    length = sum(value * value for value in vector)
    right = len(answer.data) == 1 and abs(length - 1) < 1e-3  # noqa: PLR2004 -- a unit vector, as floats go
    tally.note("embeddings", text, shown, answer.usage.total_tokens, right=right)


KINDS: tuple[Ask, ...] = (
    ask_chat,
    ask_chat,
    ask_chat,
    ask_chat,
    ask_chat,
    ask_chat,
    ask_tool,
    ask_structured,
)


async def run_demo(
    base_url: str, requests: int, embeddings: int, console: Console
) -> tuple[Tally, list[Any], Counter[str], float]:
    """All calls at once; returns the tally, the server's batches, the HTTP calls by kind, and the seconds taken."""
    tally, http_calls = Tally(), Counter[str]()

    async def count(request: httpx.Request) -> None:
        http_calls[f"{request.method} /{request.url.path.split('/')[2]}"] += 1

    http_client = httpx.AsyncClient(event_hooks={"request": [count]}, timeout=60, trust_env=False)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    async with BatchOpenAI(
        base_url=base_url,
        api_key="local",
        http_client=http_client,
        batch_window_seconds=0.2,
        poll_interval_seconds=0.1,
        batch_metadata={"job": "demo"},
    ) as client:
        started = time.perf_counter()
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("answers", total=requests + embeddings)

            async def ask(kind: Ask, number: int) -> None:
                await kind(client, number, tally)
                progress.advance(task)

            await asyncio.gather(
                *(ask(KINDS[number % len(KINDS)], number) for number in range(requests)),
                *(ask(ask_embedding, number) for number in range(embeddings)),
            )
        seconds = time.perf_counter() - started
        counted = Counter(http_calls)
        batches = [batch async for batch in client.batches.list()]
    return tally, batches, counted, seconds


def demo(
    requests: int = typer.Option(1000, min=1, help="Concurrent chat requests."),
    embeddings: int = typer.Option(100, min=0, help="Concurrent embedding requests."),
) -> None:
    """Send 1,000 concurrent calls through batches on an embedded server, and check every answer.

    Exits with 1 unless every caller got its own answer.

    Example: autobatcher demo --requests 200
    """
    console = Console()
    with serve_in_thread(LocalConfig()) as server:
        console.print(f"An embedded Batch API listens at {server.base_url}; no account, no network.")
        tally, batches, http_calls, seconds = asyncio.run(
            run_demo(server.base_url, requests, embeddings, console)
        )
    facts = Table(show_header=False)
    sent = sum(batch.request_counts.total for batch in batches if batch.request_counts)
    facts.add_row("batches", str(len(batches)))
    facts.add_row("requests", f"{sent:,} (for {requests + embeddings:,} callers; a tool loop makes two)")
    facts.add_row("tokens", f"{tally.tokens:,}")
    facts.add_row("time", f"{seconds:.1f} s")
    calls = ", ".join(f"{name}: {count}" for name, count in sorted(http_calls.items()))
    facts.add_row("HTTP calls", f"{http_calls.total()} ({calls})")
    console.print(facts)
    pairs = Table("kind", "question", "answer")
    for kind, (question, answer) in sorted(tally.samples.items()):
        pairs.add_row(kind, question, answer)
    console.print(pairs)
    realtime = sum(
        count for name, count in http_calls.items() if name.split("/")[1] not in ("files", "batches")
    )
    if tally.answered != requests + embeddings or tally.wrong or realtime:
        console.print(
            f"[red]answered {tally.answered}, wrong: {dict(tally.wrong)}, sent realtime: {realtime}[/red]"
        )
        raise typer.Exit(1)
    console.print(f"[green]every one of {tally.answered:,} callers got its own answer[/green]")
