"""When to look again."""

from __future__ import annotations

from dataclasses import dataclass

MAX_POLL_INTERVAL = 600.0
"""Seconds. With a first interval of 5 s, growing to 2% of the batch's age, this makes 386 polls in 24 hours."""

POLL_GROWTH = 0.02


@dataclass(frozen=True)
class PollSchedule:
    """Polls are `first` seconds apart at the start, then 2% of the batch's age, at most 10 minutes.

    A `first` above 10 minutes stays what it is.
    """

    first: float = 5.0

    def interval(self, age: float) -> float:
        """Seconds from a poll of a batch of this age (seconds) to the next."""
        return max(self.first, min(age * POLL_GROWTH, MAX_POLL_INTERVAL))
