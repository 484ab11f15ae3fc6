"""Records docs/progress.svg: some thousand requests on the embedded server, with several batches under way.

Run it at the top of the repository: `python docs/record_progress.py`. It takes about a quarter of a minute, and needs
the extras "local" and "cli". The ids and the rates are others each time; the rest is the same.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from pathlib import Path

import anyio
import openai
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from autobatcher import BatchOpenAI
from autobatcher.display import picture
from autobatcher.display_state import Frame, Problem, State
from autobatcher.events import Event
from autobatcher.local import LocalConfig, serve_in_thread

PLACE = Path(__file__).with_name("progress.svg")
WIDTH, HEIGHT = 112, 20

BATCHES = (240, 480, 700, 800, 950, 1000)
"""Requests of each."""

PAUSE_SECONDS = 0.4
"""Between the beginnings of two batches."""

ENOUGH = 1900
"""When so many requests are done, the picture is taken."""

FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
TEMPLATE = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", FONTS
)
"""As rich draws it, with the fonts of the machine in place of those that it would load."""


class Recording:
    """Takes events until it is time for the picture."""

    def __init__(self) -> None:
        self.state = State(time.monotonic)
        self.frame: Frame | None = None
        self.enough = anyio.Event()

    def take(self, event: Event) -> None:
        """An event; the frame is taken when there is enough to be seen."""
        self.state.take(event)
        frame = self.state.frame()
        if self.frame is None and frame.overall.done >= ENOUGH and frame.settled.batches:
            self.frame = frame
            self.enough.set()


async def ask(client: BatchOpenAI, number: int) -> None:
    """A question; of some the server says that they are no good, or that it is busy."""
    mark = {100: " [[error:400]]", 200: " [[error:429]]"}.get(number, "")
    with_text = [{"role": "user", "content": f"What is special about the number {number}?{mark}"}]
    try:
        await client.chat.completions.create(model="local-chat", messages=with_text)  # type: ignore[arg-type] # plain dicts do
    except openai.APIStatusError:
        if not mark:
            raise


async def record(base_url: str) -> Frame:
    """Run the requests until the picture is taken."""
    recording = Recording()
    async with (
        BatchOpenAI(
            api_key="local",
            base_url=base_url,
            batch_window_seconds=0.2,
            poll_interval_seconds=0.3,
            on_event=recording.take,
        ) as client,
        anyio.create_task_group() as tasks,
    ):
        for requests in BATCHES:
            for number in range(requests):
                tasks.start_soon(ask, client, number)
            await anyio.sleep(PAUSE_SECONDS)
        await recording.enough.wait()
        tasks.cancel_scope.cancel()
    assert recording.frame is not None  # noqa: S101 -- it has waited for that
    return recording.frame


def main() -> None:
    """Write the picture."""
    logging.getLogger("autobatcher").addHandler(logging.NullHandler())
    with serve_in_thread(LocalConfig(latency_seconds=0.25, concurrency=64)) as server:
        frame = anyio.run(record, server.base_url)
    console = Console(record=True, width=WIDTH, height=HEIGHT, file=io.StringIO(), force_terminal=True)

    def time_of(problem: Problem) -> str:
        return time.strftime("%H:%M:%S", time.localtime(time.time() - time.monotonic() + problem.at))

    console.print(picture(frame, WIDTH, HEIGHT, time_of=time_of))
    svg = console.export_svg(title="autobatcher", code_format=TEMPLATE, unique_id="progress")
    PLACE.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    sys.stdout.write(f"{PLACE}: {PLACE.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
