"""How much may be at the server at a time: limits that the user knows, and full queues that the server reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from autobatcher.core.batch import Batch
from autobatcher.core.lifecycle import UNVALIDATED_STATUSES, Step
from autobatcher.core.retry import QUEUE

BYTES_PER_TOKEN = 4.0
"""Of English text, roughly; what a model's answers say of its prompts takes its place.

Source: https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them
"""

UNDECIDED = UNVALIDATED_STATUSES | {"failed"}
"""Statuses in which a batch is no sign that the server's queue has room; of the last, the reason is yet to be judged."""

_PRIOR_BYTES = 4000.0
"""How much text the first guess counts for, beside what was measured."""


class Gate(msgspec.Struct):
    """A model whose queue was full: from then on one batch at a time tries it, until a server takes it in.

    Attributes:
        since: when the first refusal came after a batch of ours had last been through the queue.
        tries: how many have come.
        until: before that nothing is sent.
    """

    since: float
    tries: int = 0
    until: float = 0.0


class Admission(msgspec.Struct):
    """Which queued batches may be sent.

    Args:
        max_batches: at the server at a time; None: any number.
        max_tokens: estimated prompt tokens of one model at the server at a time, unless a single batch has more;
            None: any number.
    """

    max_batches: int | None = None
    max_tokens: int | None = None
    gates: dict[str, Gate] = msgspec.field(default_factory=dict)
    _measured: dict[str, list[float]] = msgspec.field(default_factory=dict)

    def estimate(self, model: str, size: int) -> float:
        """The prompt tokens of so many bytes; 0 if nobody counts them."""
        if self.max_tokens is None:
            return 0.0
        size_seen, tokens_seen = self._measured.get(model, (0.0, 0.0))
        return size * (tokens_seen + _PRIOR_BYTES / BYTES_PER_TOKEN) / (size_seen + _PRIOR_BYTES)

    def measure(self, model: str, size: int, tokens: int) -> None:
        """Take in what an answer says of its prompt."""
        seen = self._measured.setdefault(model, [0.0, 0.0])
        seen[0] += size
        seen[1] += tokens

    def choose(self, batches: Iterable[Batch], now: float) -> list[Batch]:
        """The queued batches to send now; the others' `due` is set: a time, or None for want of room."""
        queued: list[Batch] = []
        active = 0
        tokens: Counter[str] = Counter()
        unvalidated: set[str] = set()
        for batch in batches:
            if batch.step is Step.QUEUED:
                queued.append(batch)
                continue
            active += 1
            tokens[batch.model] += batch.tokens  # type: ignore[assignment] # counters count anything
            if batch.snapshot is not None:
                undecided = batch.snapshot.status in UNDECIDED
            else:  # not one whose calls fail, which may go on for hours
                undecided = batch.due is None or batch.due <= now
            if undecided:
                unvalidated.add(batch.model)
        chosen: list[Batch] = []
        held: set[str] = set()
        for batch in queued:
            model, gate = batch.model, self.gates.get(batch.model)
            ready = batch.not_before if gate is None else max(batch.not_before, gate.until)
            if ready > now:
                batch.due = ready
                continue
            batch.due = None
            if (
                model in held
                or (self.max_batches is not None and active >= self.max_batches)
                or (gate is not None and model in unvalidated)
                or (
                    self.max_tokens is not None
                    and tokens[model]
                    and tokens[model] + batch.tokens > self.max_tokens
                )
            ):
                held.add(model)  # a smaller one that came later does not overtake
                continue
            chosen.append(batch)
            active += 1
            tokens[model] += batch.tokens  # type: ignore[assignment] # as above
            unvalidated.add(model)
        return chosen

    def queue_full(self, model: str, now: float, spread: float, *, alone: bool) -> Gate:
        """The server's queue for a model is full; `alone`: and no other batch of ours is in it."""
        gate = self.gates.setdefault(model, Gate(since=now))
        if not gate.tries:
            gate.since = now
        gate.tries += 1
        gate.until = now + (QUEUE.delay(gate.tries, spread) if alone else QUEUE.most)
        return gate

    def ended(self, model: str, now: float) -> None:
        """A batch of this model that the server had taken in has ended, so that there is room again."""
        if (gate := self.gates.get(model)) is not None:
            gate.tries, gate.until = 0, min(gate.until, now)
