"""What a number of runs came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.world import Run


@dataclass
class Figures:
    """Sums over runs."""

    worlds: int = 0
    failed: int = 0
    requests: int = 0
    batches: int = 0
    calls: int = 0
    seconds: float = 0.0
    runs: int = 0
    replayed: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)

    def add(self, done: Run) -> None:
        """Take in a run."""
        ledger = done.ledger
        self.worlds += 1
        self.failed += bool(done.violations)
        self.requests += len(done.plan.callers)
        self.batches += len(ledger.batches)
        self.calls += len(ledger.calls)
        self.runs += len(ledger.stopped) + 1
        self.replayed += sum(
            record.result == "answer" and record.at == record.asked_at for record in ledger.callers.values()
        )
        self.seconds += ledger.ended_at
        self.faults += ledger.faults
        for record in ledger.callers.values():
            self.results[record.result or "nothing"] += 1
            if record.error is not None:
                self.results[f"error: {type(record.error).__name__}"] += 1

    def table(self, real_seconds: float) -> str:
        """As text."""
        rows = [
            ("worlds", f"{self.worlds:,}"),
            ("failed", f"{self.failed:,}"),
            ("runs of the program", f"{self.runs:,}"),
            ("requests", f"{self.requests:,}"),
            *((f"  {result}", f"{count:,}") for result, count in sorted(self.results.items())),
            ("  of these from the journal", f"{self.replayed:,}"),
            ("batches", f"{self.batches:,}"),
            ("HTTP calls", f"{self.calls:,}"),
            ("virtual hours", f"{self.seconds / 3600:,.0f}"),
            ("real seconds", f"{real_seconds:,.1f}"),
            ("faults", f"{self.faults.total():,}"),
            *((f"  {name}", f"{count:,}") for name, count in sorted(self.faults.items())),
        ]
        return "\n".join(f"{name:<34}{value:>12}" for name, value in rows)
