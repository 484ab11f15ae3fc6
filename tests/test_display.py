"""What the display shows: its numbers by a clock set by hand, its lines, its table at several sizes."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from rich.console import Console

import autobatcher
from autobatcher.display import Display, columns, picture
from autobatcher.display_state import (
    Frame,
    Overall,
    Problem,
    Row,
    Settled,
    State,
    bytes_text,
    rate_text,
    seconds_text,
)
from autobatcher.events import (
    BatchNotCancelled,
    BatchProgressed,
    BatchSettled,
    BatchSubmitted,
    CallRetried,
    Event,
    LinesIgnored,
    RequestsResent,
)
from autobatcher.jobs.running import Progress
from autobatcher.local import LocalConfig, serve_in_thread

CHAT = "/v1/chat/completions"
LONG = "batch_" + "0123456789abcdef" * 2
OTHER = "batch_" + "fedcba9876543210" * 2


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> State:
    return State(clock)


def submitted(batch_id: str = LONG, requests: int = 100) -> BatchSubmitted:
    return BatchSubmitted(batch_id, CHAT, "m", requests, 12_345)


def progressed(
    completed: int, failed: int = 0, total: int = 100, batch_id: str = LONG, status: str = "in_progress"
) -> BatchProgressed:
    return BatchProgressed(batch_id, CHAT, "m", status, completed, failed, total)


def settled(
    answered: int, failed: int = 0, resent: int = 0, batch_id: str | None = LONG, status: str = "completed"
) -> BatchSettled:
    return BatchSettled(batch_id, CHAT, "m", status, answered, failed, resent, 61.0)


def test_nothing_is_under_way_before_the_first_and_after_the_last_batch(state: State) -> None:
    assert not state.active
    state.take(submitted())
    assert state.active
    state.take(settled(99, 1))
    assert not state.active
    assert state.frame().settled == Settled(1, 99, 1, 0)
    assert state.frame().rows == []


def test_a_batch_has_a_rate_once_its_count_has_grown_for_a_while(state: State, clock: Clock) -> None:
    state.take(submitted())
    clock.now += 60
    state.take(progressed(0))
    (row,) = state.frame().rows
    assert (row.rate, row.left, row.age, row.status) == (None, None, 60.0, "in_progress")
    clock.now += 10
    state.take(progressed(18, 2))
    (row,) = state.frame().rows
    assert (row.completed, row.failed, row.total) == (18, 2, 100)
    assert row.rate == pytest.approx(2.0)  # the minute before it began does not count
    assert row.left == pytest.approx(40.0)


def test_what_is_left_shrinks_between_reports_and_is_unknown_when_it_is_overdue(
    state: State, clock: Clock
) -> None:
    state.take(submitted())
    clock.now += 10
    state.take(progressed(50))
    clock.now += 4
    assert state.frame().rows[0].left == pytest.approx(6.0)
    clock.now += 7
    assert state.frame().rows[0].left is None
    assert state.frame().rows[0].rate == pytest.approx(5.0)
    clock.now += 300
    assert state.frame().rows[0].rate is None


def test_a_rate_is_of_the_last_minutes(state: State, clock: Clock) -> None:
    state.take(submitted(requests=100_000))
    done = 0
    for _ in range(600):
        clock.now += 1
        done += 1
        state.take(progressed(done, total=100_000))
    for _ in range(400):
        clock.now += 1
        done += 10
        state.take(progressed(done, total=100_000))
    assert state.frame().rows[0].rate == pytest.approx(10.0)


def test_a_rate_is_known_where_polls_are_further_apart_than_the_last_minutes(
    state: State, clock: Clock
) -> None:
    state.take(submitted(requests=10_000))
    for done in (600, 1200, 1800):
        clock.now += 600
        state.take(progressed(done, total=10_000))
    assert state.frame().rows[0].rate == pytest.approx(1.0)


def test_requests_that_are_to_be_sent_again_do_not_slow_the_rest(state: State, clock: Clock) -> None:
    state.take(submitted("a"))
    state.take(submitted("b"))
    clock.now += 10
    state.take(progressed(50, batch_id="a"))
    state.take(progressed(50, batch_id="b"))
    assert state.overall.rate == pytest.approx(10.0)
    state.take(settled(30, resent=70, batch_id="a", status="expired"))
    assert state.overall.done == 80
    assert state.overall.rate == pytest.approx(10.0)
    assert state.overall.left == pytest.approx(5.0)


def test_a_batch_of_an_earlier_run_comes_with_its_first_report(state: State, clock: Clock) -> None:
    state.take(progressed(50))
    clock.now += 10
    state.take(progressed(60))
    (row,) = state.frame().rows
    assert (row.completed, row.total, row.age) == (60, 100, 10.0)
    assert row.rate == pytest.approx(1.0)  # what was done before is not of these seconds


def test_a_server_without_counts_has_those_that_were_sent(state: State) -> None:
    state.take(submitted(requests=7))
    state.take(progressed(0, total=0))
    assert state.frame().rows[0].total == 7


def test_rows_begin_with_what_was_last_heard_of(state: State) -> None:
    for name in "abc":
        state.take(submitted(name))
    state.take(progressed(1, batch_id="b"))
    assert [row.id for row in state.frame().rows] == ["b", "c", "a"]


def test_all_is_the_sum_of_the_batches(state: State) -> None:
    state.take(submitted("a"))
    state.take(submitted("b"))
    state.take(progressed(10, 5, batch_id="b"))
    state.take(settled(70, 10, 20, batch_id="a"))
    overall = state.overall
    assert (overall.answered, overall.failed, overall.done, overall.total) == (70, 10, 95, 180)
    assert not overall.packing


def test_a_runs_own_numbers_stand_in_their_place(state: State, clock: Clock) -> None:
    assert state.note(Progress(0, 1000, 0, complete=False, answered=0, failed=0))
    clock.now += 10
    state.note(Progress(400, 1000, 40, complete=False, answered=3, failed=0))
    overall = state.overall
    assert (overall.packing, overall.read, overall.size, overall.total) == (True, 400, 1000, 40)
    assert overall.rate == pytest.approx(40.0)
    assert overall.left == pytest.approx(15.0)
    assert state.active
    state.note(Progress(1000, 1000, 100, complete=True, answered=90, failed=9))
    assert (state.overall.packing, state.overall.done, state.active) == (False, 99, True)
    state.note(Progress(1000, 1000, 100, complete=True, answered=90, failed=10))
    assert not state.active
    assert not state.note(Progress(1000, 1000, 100, complete=True, answered=90, failed=10))


def test_requests_that_the_server_is_through_with_are_done_before_their_answers_come(state: State) -> None:
    state.note(Progress(1000, 1000, 100, complete=True, answered=0, failed=0))
    state.take(submitted())
    state.take(progressed(30))
    assert (state.overall.done, state.overall.answered) == (30, 0)


def test_problems_are_told_with_their_time_and_only_the_last_are_kept(state: State, clock: Clock) -> None:
    state.take(CallRetried(None, "upload", "503 busy", 5.0))
    state.take(CallRetried(LONG, "create", "no answer", 0.0))
    state.take(RequestsResent(LONG, 1234, "their lines hold errors that may pass"))
    state.take(LinesIgnored(LONG, 2, "malformed"))
    state.take(BatchNotCancelled(LONG))
    texts = [problem.text for problem in state.frame().problems]
    assert texts == [
        "batch -: upload failed (503 busy); next try in 5 s",
        f"{LONG}: create failed (no answer); looking whether it was done",
        f"{LONG}: 1,234 requests sent again: their lines hold errors that may pass",
        f"{LONG}: 2 result lines ignored: malformed",
        f"{LONG}: could not be cancelled, and may go on at the server",
    ]
    clock.now += 1
    state.take(BatchNotCancelled(None))
    assert state.frame().problems[-1] == Problem(
        1001.0, "batch -: could not be cancelled, and may go on at the server"
    )
    assert len(state.frame().problems) == 5


def test_control_characters_of_a_server_reach_no_terminal(state: State) -> None:
    state.take(BatchProgressed("b\x1b[2J", CHAT, "m\r", "in\nprogress", 1, 0, 2))
    state.take(CallRetried("b\x07", "poll", "\x1b[31m", 1.0))
    frame = state.frame()
    assert (frame.rows[0].id, frame.rows[0].model, frame.rows[0].status) == ("b?[2J", "m?", "in?progress")
    assert "\x1b" not in frame.problems[0].text


def test_durations_rates_and_sizes_are_short() -> None:
    durations = [None, 0.2, 59.4, 60, 3599, 3600, 86_399, 86_400, 200_000]
    assert [seconds_text(seconds) for seconds in durations] == [
        *("-", "0s", "59s", "1m 00s", "59m 59s", "1h 00m", "23h 59m", "1d 00h", "2d 07h"),
    ]
    rates = [None, 1234.5, 99.94, 1, 0.5, 0.001]
    assert [rate_text(rate) for rate in rates] == ["-", "1,234/s", "99.9/s", "1.0/s", "30.0/min", "3.6/h"]
    sizes = [0, 999, 1000, 1_250_000, 2e9]
    assert [bytes_text(size) for size in sizes] == ["0 B", "999 B", "1.0 kB", "1.2 MB", "2.0 GB"]


# Lines, where there is no terminal.


def lines_of(stream: io.StringIO) -> list[str]:
    """Without the time of day with which each begins."""
    found = stream.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in found)
    return [line[9:] for line in found]


def test_where_there_is_no_terminal_events_are_lines(clock: Clock) -> None:
    stream = io.StringIO()
    display = Display(Console(file=stream, width=40), clock=clock)
    display.show(submitted())
    for done in range(1, 61):  # a minute of polls
        clock.now += 1
        display.show(progressed(done))
    display.show(RequestsResent(LONG, 1, "their lines hold errors that may pass"))
    display.show(settled(97, 2, 1))
    display.close()
    display.show(submitted())
    assert lines_of(stream) == [
        f"{LONG} submitted: 100 requests, m, 12.3 kB",
        f"{LONG} in_progress: 30 of 100 done, 0 failed, 1.0/s, 1m 10s left",
        "30 of 100 done: 0 answered, 0 failed, 1.0/s, 1m 10s left",
        f"{LONG} in_progress: 60 of 100 done, 0 failed, 1.0/s, 40s left",
        "60 of 100 done: 0 answered, 0 failed, 1.0/s, 40s left",
        f"{LONG}: 1 request sent again: their lines hold errors that may pass",
        f"{LONG} completed: 97 answered, 2 failed, 1 sent again, after 1m 00s",
        "99 requests: 97 answered, 2 failed",
    ]
    assert stream.getvalue().isascii()
    assert "\x1b" not in stream.getvalue()


def test_a_runs_numbers_are_a_line_now_and_then_and_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    display = Display(Console(file=stream), clock=clock)
    for read in range(0, 101, 10):
        display.overall(Progress(read, 100, read, complete=False, answered=0, failed=0))
        clock.now += 4
    display.overall(Progress(100, 100, 100, complete=True, answered=99, failed=1))
    display.close()
    assert lines_of(stream) == [
        "80 B of 100 B read, 80 requests, 0 answered, 0 failed, 8s left",
        "100 requests: 99 answered, 1 failed",
    ]


def test_a_run_that_is_broken_off_says_how_far_it_was(clock: Clock) -> None:
    stream = io.StringIO()
    display = Display(Console(file=stream), clock=clock)
    display.overall(Progress(100, 100, 100, complete=True, answered=9, failed=1))
    display.close()
    display.close()
    assert lines_of(stream) == ["10 of 100 done: 9 answered, 1 failed, -, - left"]


def test_a_display_that_has_heard_nothing_says_nothing() -> None:
    stream = io.StringIO()
    Display(Console(file=stream)).close()
    assert stream.getvalue() == ""


class Narrow(io.TextIOWrapper):
    """Takes no character beyond ASCII."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", errors="strict")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_stream_that_is_closed_or_cannot_have_it_ends_the_display_only(*, terminal: bool) -> None:
    closed = io.StringIO()
    strange = Narrow()
    displays = [Display(Console(file=stream, force_terminal=terminal)) for stream in (closed, strange)]
    closed.close()
    for display in displays:
        display.show(BatchSubmitted("bätch", CHAT, "mödel", 1, 1))
        display.show(progressed(1, batch_id="bätch"))
        display.show(settled(1, batch_id="bätch"))
        display.overall(Progress(0, 1, 1, complete=False, answered=0, failed=0))
        display.close()


def test_a_program_without_stderr_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    display = Display()
    display.show(submitted())
    display.close()


# The table.


def rendered(frame: Frame, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(picture(frame, width, height, time_of=lambda problem: f"at {problem.at:.0f}"))
    return [line.rstrip() for line in capture.get().splitlines()]


def row(batch_id: str = LONG, **fields: Any) -> Row:
    values: dict[str, Any] = {
        "model": "Qwen/Qwen3-VL-235B-A22B-Instruct-FP8",
        "status": "in_progress",
        "completed": 1200,
        "failed": 3,
        "total": 50_000,
        "rate": 12.3,
        "left": 3970.0,
        "age": 98.0,
    }
    return Row(batch_id, **{**values, **fields})


def frame_of(rows: list[Row], *, problems: int = 0) -> Frame:
    overall = Overall(
        packing=False,
        read=0,
        size=0,
        answered=1990,
        failed=10,
        done=3203,
        total=52_000,
        rate=20.0,
        left=2440.0,
    )
    told = [Problem(float(number), f"problem {number}") for number in range(problems)]
    return Frame(overall, rows, Settled(2, 1990, 10, 4), told)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_ids_are_whole_at_any_width_and_no_line_is_longer(width: int) -> None:
    lines = rendered(frame_of([row(), row(OTHER)], problems=1), width, 24)
    assert LONG in "\n".join(lines)
    assert OTHER in "\n".join(lines)
    assert max(map(len, lines)) <= width


def test_columns_give_way_in_order() -> None:
    heads = {
        width: [column.head for column in columns([row()], width)] for width in (38, 60, 70, 80, 90, 100, 140)
    }
    counts = "done/failed/total"
    assert heads == {
        38: ["batch"],
        60: ["batch", counts],
        70: ["batch", "status", counts],
        80: ["batch", "status", counts, "left"],
        90: ["batch", "status", counts, "left", "age"],
        100: ["batch", "status", counts, "rate", "left", "age"],
        140: ["batch", "model", "status", counts, "rate", "left", "age"],
    }


def test_all_stands_at_120_columns() -> None:
    lines = rendered(
        frame_of([row(model="gpt-5-mini"), row(OTHER, rate=None, left=None)], problems=2), 120, 24
    )
    assert lines[0].endswith("3,203 of 52,000 done: 1,990 answered, 10 failed, 20.0/s, 40m 40s left")
    assert lines[1].split() == ["batch", "model", "status", "done/failed/total", "rate", "left", "age"]
    assert lines[2].split()[0] == LONG
    assert lines[2].endswith("in_progress     1,200/3/50,000  12.3/s  1h 06m  1m 38s")
    assert lines[3].endswith("in_progress     1,200/3/50,000       -       -  1m 38s")
    assert lines[4] == "2 batches settled: 1,990 answered, 10 failed, 4 sent again"
    assert lines[5:] == ["at 0 problem 0", "at 1 problem 1"]


def test_a_problem_is_told_whole_in_as_many_lines_as_it_needs() -> None:
    told = [
        Problem(
            1.0, f"{LONG}: poll failed (500 Internal Server Error: the server had an error); next try in 5 s"
        ),
        Problem(2.0, "batch -: upload failed (no connection); next try in 5 s"),
    ]
    frame = Frame(frame_of([row()]).overall, [row()], Settled(), told)
    assert rendered(frame, 80, 24)[-3:] == [
        f"at 1 {LONG}: poll failed (500 Internal Server",
        "  Error: the server had an error); next try in 5 s",
        "at 2 batch -: upload failed (no connection); next try in 5 s",
    ]
    assert rendered(frame, 80, 7)[-1] == "at 2 batch -: upload failed (no connection); next try in 5 s"


@pytest.mark.parametrize("height", [5, 8, 10, 24, 40])
def test_there_are_never_more_lines_than_the_terminal_has(height: int) -> None:
    rows = [row(f"batch_{number:032}") for number in range(50)]
    lines = rendered(frame_of(rows, problems=5), 80, height)
    assert len(lines) <= height - 1
    shown = sum(line.startswith("batch_") for line in lines)
    assert f"... and {50 - shown} more" in lines


def test_one_batch_more_than_there_is_room_for_is_not_hidden_by_saying_so() -> None:
    rows = [row(f"batch_{number:032}") for number in range(20)]
    assert not any("more" in line for line in rendered(frame_of(rows), 80, 24))


def test_while_the_input_is_read_the_bytes_are_shown() -> None:
    overall = Overall(
        packing=True,
        read=10**9,
        size=2 * 10**9,
        answered=0,
        failed=0,
        done=0,
        total=5000,
        rate=1e8,
        left=10.0,
    )
    (line,) = rendered(Frame(overall, [], Settled(), []), 120, 24)
    assert line.endswith("1.0 GB of 2.0 GB read, 5,000 requests, 0 answered, 0 failed, 10s left")
    assert line.count("━") + line.count("╺") + line.count("╸") >= 20


def test_when_all_is_over_one_line_stays() -> None:
    assert rendered(frame_of([]), 80, 24) == ["2 batches settled: 1,990 answered, 10 failed, 4 sent again"]


def test_many_threads_may_show_at_once() -> None:
    stream = io.StringIO()
    display = Display(Console(file=stream, force_terminal=True, width=120, height=30))

    def work(worker: int) -> None:
        for number in range(50):
            batch_id = f"batch_{worker}_{number}"
            display.show(submitted(batch_id, 1))
            display.show(progressed(1, total=1, batch_id=batch_id))
            display.show(settled(1, batch_id=batch_id))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    display.close()
    assert "400 batches settled: 400 answered, 0 failed, 0 sent again" in stream.getvalue()
    assert not any(thread.name == "autobatcher-display" for thread in threading.enumerate())


def test_a_second_table_on_the_terminal_says_lines_meanwhile() -> None:
    streams = io.StringIO(), io.StringIO()
    first, second = (Display(Console(file=stream, force_terminal=True, width=100)) for stream in streams)
    first.show(submitted())
    second.show(submitted(OTHER))
    second.show(settled(100, batch_id=OTHER))
    first.close()
    assert "\x1b" in streams[0].getvalue()
    assert len(lines_of(streams[1])) == 2


# The option.


async def ask(client: autobatcher.BatchOpenAI, text: str) -> None:
    await client.chat.completions.create(model="local-chat", messages=[{"role": "user", "content": text}])


@pytest.mark.anyio
async def test_a_client_and_its_copies_have_one_display(
    anyio_backend: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    with serve_in_thread(LocalConfig()) as server:
        async with autobatcher.BatchOpenAI(
            api_key="k",
            base_url=server.base_url,
            progress=True,
            on_event=events.append,
            batch_window_seconds=0,
            poll_interval_seconds=0.05,
        ) as client:
            await ask(client, "one")
            await ask(client.with_options(default_headers={"x-team": "a"}), "two")
            silent = client.with_options(progress=False)
            await ask(silent, "three")
            await ask(silent.with_options(progress=True), "four")
    said = lines_of(io.StringIO(capsys.readouterr().err))
    ids = [event.batch_id for event in events if isinstance(event, BatchSubmitted)]
    assert len(ids) == 4
    for number, batch_id in enumerate(ids):
        of_it = [line for line in said if line.startswith(f"{batch_id} ")]
        if number == 2:
            assert of_it == []
        else:
            assert "submitted: 1 request, local-chat" in of_it[0]
            assert "completed: 1 answered, 0 failed, 0 sent again" in of_it[-1]
    assert said[-1] == "3 requests: 3 answered, 0 failed"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_has_no_display_and_its_prints_go_where_they_should() -> None:
    program = (
        "import io, os, sys\n"
        "from rich.console import Console\n"
        "from autobatcher.display import Display\n"
        "from autobatcher.events import BatchSubmitted\n"
        "display = Display(Console(file=io.StringIO(), force_terminal=True))\n"
        "display.show(BatchSubmitted('b', 'e', 'm', 1, 1))\n"
        "with display._lock, display._state_lock:\n"
        "    child = os.fork()\n"
        "if not child:\n"
        "    display.show(BatchSubmitted('c', 'e', 'm', 1, 1)); display.close()\n"
        "    print('child'); sys.stdout.flush(); os._exit(0)\n"
        "os.waitpid(child, 0); display.close(); print('parent')\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.splitlines(), done.stderr) == (["child", "parent"], "")


def test_without_rich_the_constructor_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['rich'] = None\n"
        "from autobatcher import BatchOpenAI\n"
        "client = BatchOpenAI(api_key='k')\n"
        "for make in (BatchOpenAI, client.with_options):\n"
        "    try: make(**({'api_key': 'k'} if make is BatchOpenAI else {}), progress=True)\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ['progress=True needs rich: pip install "autobatcher[cli]"'] * 2, (
        done.stderr
    )
