"""What will happen in a world, drawn from its seed: who calls when, how the server behaves, and what the weather is.

Worlds differ more than runs of one world would: some are without any fault, so that the strict rules apply to them,
some have bad hours, in some a part of the server is down for hours, in some callers have deadlines. From `calm_at` on nothing new goes wrong, so that
every world comes to its end.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

HOUR = 3600.0

TRANSIENT = (408, 409, 429, 500, 502, 503, 504)
PERMANENT = (400, 403, 404, 413, 422)


@dataclass(frozen=True)
class LineFault:
    """What the model answers to a request instead of an answer: a status, or (0) an error object with a code."""

    status: int
    code: str | None = None

    @property
    def transient(self) -> bool:
        """Whether the client is to send the request again."""
        return self.status in TRANSIENT


@dataclass(frozen=True)
class CallerPlan:
    """One caller: when it comes, what it asks, when it loses patience, and how the model fails on it at first.

    `deadline` (in seconds), `on_deadline` and `on_expired` are its options; those that differ from the client's it has
    from a copy of its own.
    """

    number: int
    at: float
    endpoint: str
    model: str
    leaves_after: float | None = None
    padding: int = 0
    line_faults: tuple[LineFault, ...] = ()
    deadline: float | None = None
    on_deadline: str = "raise"
    on_expired: str = "resubmit"

    @property
    def prompt(self) -> str:
        """Unlike any other's."""
        return f"prompt-{self.number}-" + "x" * self.padding

    @property
    def waiting(self) -> dict[str, Any]:
        """Its options of a client, by their names there."""
        return {
            "deadline_seconds": self.deadline,
            "on_deadline": self.on_deadline,
            "on_expired": self.on_expired,
        }


@dataclass(frozen=True)
class Storm:
    """Hours in which calls fail more often; `kinds`: only these."""

    start: float
    end: float
    rate: float
    kinds: frozenset[str]


@dataclass(frozen=True)
class BatchFate:
    """What becomes of a batch at the server.

    Attributes:
        kind: "runs", "is cancelled", "vanishes", or "fails: " and why.
        code: of the error that it fails with.
        after: seconds until that.
        latency: seconds that its slowest line takes.
        unknown_for: seconds for which polls are told that there is no such batch.
        output_looks: how often its end is seen without result files; infinite: always.
    """

    kind: str = "runs"
    code: str = ""
    after: float = 0.0
    latency: float = 0.0
    unknown_for: float = 0.0
    output_looks: float = 0


CALL_KINDS = ("upload", "create", "list", "poll", "content", "cancel")
"""Calls for batches; beside them there are those "in real time"."""

REALTIME = "realtime"

_FAILURES = (
    ("fails: lines", "invalid_request"),
    ("fails: lines", "missing_required_parameter"),
    ("fails: queue", "token_limit_exceeded"),
    ("fails: queue", "batch_queue_limit_exceeded"),
    ("fails: passing", "server_error"),
    ("fails: passing", "internal_error"),
    ("fails: otherwise", "model_not_found"),
    ("fails: otherwise", "account_deactivated"),
)

FATES = {"fails": 8, "cancelled": 3, "unknown": 3, "output": 5, "vanishes": 0.3, "expires": 5}
"""How often a batch with a fate of its own has which."""


NOTES = ("begin", "uploaded", "created", "answered", "ended")
"""What is written into a journal."""


@dataclass(frozen=True)
class Stop:
    """How a run of the program is stopped dead.

    Attributes:
        after: seconds from the start of the run, at most.
        note: what is being written into the journal at the moment, if it is that.
        count: how often that was written or about to be.
        done: whether it is written yet.
        pause: seconds until the program is run again.
    """

    after: float
    note: str = ""
    count: int = 1
    done: bool = False
    pause: float = 0.0


@dataclass
class Plan:
    """One world.

    Attributes:
        callers: in the order of their numbers.
        options: of the client.
        partial_results: whether the server shows results before the end.
        calm_at: from when on nothing new goes wrong.
        rate: how likely each call fails before that; `storms` raise it for a time.
        refusals: whether servers refuse calls now and then, without a reason.
        call_seconds: how long a call takes at most that does not fail.
        page: batches on a page of the server's list.
        queue_limit: lines of a model that the server takes into its queue.
        fate_rate: how likely a batch has a fate of its own.
        fates: how often it is which of them.
        line_rate: how likely a result line is spoiled.
        slowest: seconds that an ordinary batch takes at most.
        jumps: when the clock leaps, and by how much.
        close_at: when the client is closed, whoever waits; None: when nobody does.
        copies: whether some calls are made through a copy of the client, which has batches of its own.
        stops: the ends of all runs of the program but the last; None: it has no journal, and is run once.
    """

    seed: int
    callers: list[CallerPlan] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    partial_results: bool = False
    calm_at: float = 0.0
    rate: float = 0.0
    storms: list[Storm] = field(default_factory=list)
    refusals: bool = False
    call_seconds: float = 0.5
    page: int = 100
    queue_limit: int | None = None
    fate_rate: float = 0.0
    fates: Mapping[str, float] = field(default_factory=lambda: FATES)
    line_rate: float = 0.0
    slowest: float = 10.0
    jumps: list[tuple[float, float]] = field(default_factory=list)
    close_at: float | None = None
    copies: bool = False
    stops: list[Stop] | None = None

    def __post_init__(self) -> None:
        self._fates = random.Random(f"{self.seed}/fates")

    def rate_at(self, kind: str, now: float) -> float:
        """How likely a call is to fail now."""
        if now >= self.calm_at:
            return 0.0
        storms = [s.rate for s in self.storms if s.start <= now < s.end and kind in s.kinds]
        return max([self.rate, *storms])

    def fate(self, now: float) -> BatchFate:
        """What becomes of a batch that is made now; draws."""
        rng = self._fates
        latency = rng.choice((0.0, rng.uniform(0, 30), rng.uniform(0, self.slowest)))
        if now >= self.calm_at or rng.random() >= self.fate_rate:
            return BatchFate(latency=min(latency, 600.0) if now >= self.calm_at else latency)
        match rng.choices([*self.fates], [*self.fates.values()])[0]:
            case "fails":
                kind, code = rng.choice(_FAILURES)
                return BatchFate(kind, code, after=rng.choice((0.0, rng.uniform(0, 300))))
            case "cancelled":
                return BatchFate("is cancelled", after=rng.uniform(0, latency + 60), latency=latency)
            case "unknown":
                return BatchFate(latency=latency, unknown_for=rng.uniform(1, 250))
            case "output":
                looks = rng.choice((1, 2, 3, float("inf")))
                return BatchFate(latency=latency, output_looks=looks)
            case "vanishes":
                return BatchFate("vanishes", latency=latency)
        return BatchFate("runs", latency=rng.uniform(0.3, 4) * window_seconds(self.options))


def window_seconds(options: dict[str, Any]) -> float:
    """The completion window in seconds."""
    text = str(options.get("completion_window", "24h"))
    return float(text[:-1]) * {"m": 60, "h": 3600}[text[-1]]


def draw(seed: int, *, stops: bool = False) -> Plan:
    """The world of a seed, with a journal and stops or without."""
    rng = random.Random(f"{seed}/plan")
    plan = Plan(seed)
    _draw_options(plan, rng)
    _draw_weather(plan, rng)
    _draw_callers(plan, rng)
    if rng.random() < 0.2:
        plan.jumps = sorted(
            (rng.uniform(0, 2 * HOUR), rng.choice((60.0, HOUR, 9 * HOUR))) for _ in range(rng.randint(1, 2))
        )
    if rng.random() < 0.12:
        plan.close_at = rng.choice((rng.uniform(0, 60), rng.uniform(0, 2 * HOUR)))
    late = random.Random(f"{seed}/deadlines")
    if late.random() < 0.35:
        draw_deadlines(plan, late)
    if stops:
        plan.close_at = None
        _draw_stops(plan, random.Random(f"{seed}/stops"))
    return plan


def _draw_stops(plan: Plan, rng: random.Random) -> None:
    plan.stops = []
    plan.copies = rng.random() < 0.3
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        pause = rng.choice((1.0, rng.uniform(0, 300), rng.uniform(0, 4 * HOUR)))
        if (
            rng.random() < 0.6
        ):  # the moments that matter most, and that a time of the clock would hardly ever meet
            note, count = rng.choices(NOTES, (1, 1, 3, 3, 1))[0], rng.choice((1, 1, 2, 5))
            stop = Stop(6 * HOUR, note, count, done=rng.random() < 0.5, pause=pause)
        else:
            after = rng.choice((rng.uniform(0, 10), rng.uniform(0, 300), rng.uniform(0, 2 * HOUR)))
            stop = Stop(after, pause=pause)
        plan.stops.append(stop)


def draw_deadlines(plan: Plan, rng: random.Random) -> None:
    """Callers that do not wait for ever: some by the client's options, some by their own."""
    of_client = _draw_waiting(rng)
    of_their_own = rng.choice((0.0, 0.5, 1.0))
    plan.callers = [
        replace(caller, **(_draw_waiting(rng) if rng.random() < of_their_own else of_client))
        for caller in plan.callers
    ]
    plan.options |= CallerPlan(-1, 0.0, "", "", **of_client).waiting
    plan.options["max_realtime_calls"] = rng.choice((1, 2, 100))
    if rng.random() < 0.5:
        start = rng.choice((0.0, rng.uniform(0, HOUR)))
        rate = rng.uniform(0.3, 0.9)
        plan.storms.append(Storm(start, start + rng.uniform(300, 2 * HOUR), rate, frozenset({REALTIME})))
    if rng.random() < 0.3:
        plan.fate_rate, plan.fates = max(plan.fate_rate, 0.5), {**FATES, "expires": 30}


def _draw_waiting(rng: random.Random) -> dict[str, Any]:
    seconds = (
        rng.uniform(0.5, 5),
        rng.uniform(5, 120),
        rng.uniform(5, 0.2 * HOUR),
        rng.uniform(60, 2 * HOUR),
    )
    return {
        "deadline": None if rng.random() < 0.15 else rng.choice(seconds),
        "on_deadline": rng.choice(("raise", "realtime", "realtime")),
        "on_expired": rng.choice(("resubmit", "realtime", "raise")),
    }


def _draw_options(plan: Plan, rng: random.Random) -> None:
    plan.options = {
        "batch_size": rng.choice((1, 3, 8, 1000, 1000)),
        "batch_window_seconds": rng.choice((0, 1, 1, 5, 60)),
        "poll_interval_seconds": rng.choice((2, 5, 5, 5, 30)),
        "completion_window": rng.choices(("10m", "1h", "6h", "24h"), (4, 8, 3, 1))[0],
        "patience_seconds": rng.choices((86_400.0, 7200.0, 900.0), (6, 1, 1))[0],
        "max_retries": rng.choice((0, 1, 2, 2, 3)),
        "max_active_batches": rng.choice((None, None, 1, 2)),
        "max_enqueued_tokens": rng.choice((None, None, None, 60, 300)),
        "cancel_active_batches_on_close": rng.random() < 0.5,
    }
    plan.partial_results = rng.random() < 0.3
    plan.page = rng.choice((100, 100, 2))
    plan.call_seconds = rng.choice((0.1, 0.5, 0.5, 20.0))
    if rng.random() < 0.15:
        plan.queue_limit = rng.randint(1, 6)
    plan.slowest = rng.choices((5.0, 300.0, 0.5 * HOUR, 5 * HOUR), (3, 5, 3, 1))[0]
    plan.slowest = min(plan.slowest, 0.9 * window_seconds(plan.options))


def _draw_weather(plan: Plan, rng: random.Random) -> None:
    plan.calm_at = rng.uniform(0.5 * HOUR, 4 * HOUR)
    plan.refusals = rng.random() < 0.15
    weather = rng.choices(("none", "quiet", "breezy", "stormy", "outage"), (12, 13, 35, 25, 15))[0]
    if weather == "none":
        return
    plan.fate_rate = rng.choice((0.0, 0.15, 0.15, 0.5))
    plan.line_rate = rng.choice((0.0, 0.0, 0.05, 0.3))
    if weather == "quiet":
        return
    plan.rate = rng.uniform(0.03, 0.15)
    if weather == "breezy":
        return
    everything = frozenset({*CALL_KINDS, REALTIME})
    for _ in range(rng.randint(1, 2)):
        start = rng.uniform(0, 0.5 * HOUR)
        end = start + rng.uniform(300, 2 * HOUR)
        if weather == "stormy":
            plan.storms.append(Storm(start, end, rng.uniform(0.3, 0.7), everything))
        else:
            some = frozenset(rng.sample(CALL_KINDS, rng.randint(1, 3)))
            plan.storms.append(Storm(start, end, 1.0, some))


def _draw_callers(plan: Plan, rng: random.Random) -> None:
    endpoints = rng.choice((("chat",), ("chat",), ("chat", "embeddings", "responses")))
    models = rng.choice((("m",), ("m",), ("m", "n")))
    leaving = rng.choice((0.0, 0.0, 0.1, 0.4))
    line_rate = rng.choice((0.0, 0.1, 0.4)) if plan.rate or plan.fate_rate else 0.0
    number = 0
    for _ in range(rng.randint(1, 4)):
        start = rng.choice((0.0, rng.uniform(0, 60), rng.uniform(0, 1.5 * HOUR)))
        spread = rng.choice((0.0, 1.0, 30.0))
        all_leave = rng.uniform(0, 0.3 * HOUR) if rng.random() < 0.2 else None
        for _ in range(rng.choice((1, 3, rng.randint(2, 12)))):
            leaves = all_leave
            if leaves is None and rng.random() < leaving:
                leaves = rng.choice((rng.uniform(0, 5), rng.uniform(0, 0.5 * HOUR)))
            plan.callers.append(
                CallerPlan(
                    number,
                    start + rng.uniform(0, spread),
                    rng.choice(endpoints),
                    rng.choice(models),
                    leaves,
                    rng.choice((0, 0, 200)),
                    _draw_line_faults(rng) if rng.random() < line_rate else (),
                )
            )
            number += 1


def _draw_line_faults(rng: random.Random) -> tuple[LineFault, ...]:
    if rng.random() < 0.25:
        return (LineFault(rng.choice(PERMANENT)),) * 50
    if rng.random() < 0.2:
        return (LineFault(0, rng.choice(("content_policy", None))),) * 50
    return tuple(LineFault(rng.choice(TRANSIENT)) for _ in range(rng.randint(1, 5)))
