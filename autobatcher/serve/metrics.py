"""What Prometheus is told."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from autobatcher.events import (
    BatchProgressed,
    BatchSettled,
    BatchSubmitted,
    Event,
    RealtimeCalled,
    RequestsOverdue,
    RequestsResent,
)

if TYPE_CHECKING:
    from autobatcher.usage import Usage

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 43_200, 86_400)
"""Seconds waited, up to a day."""

_FAILED = 400


class Metrics(Collector):
    """Counts, and tells what it has counted.

    Args:
        waiting: says how many callers wait.
        usage: says what the answers used.
    """

    def __init__(self, waiting: Callable[[], int], usage: Callable[[], Usage]) -> None:
        self._waiting = waiting
        self._usage = usage
        self._answered: Counter[str] = Counter()
        self._failed: Counter[tuple[str, int]] = Counter()
        self._refused: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._passed: Counter[int] = Counter()
        self._waits: dict[str, list[int]] = {}
        self._waited: Counter[str] = Counter()
        self._batches: dict[str, tuple[str, int]] = {}
        self._settled: Counter[str] = Counter()
        self._resent = 0
        self._overdue = 0
        self._realtime: Counter[str] = Counter()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    # What happens.

    def replied(self, path: str, status: int, seconds: float) -> None:
        """A request for a path below the base URL has its reply, that long after it came."""
        if status < _FAILED:
            self._answered[path] += 1
        else:
            self._failed[path, status] += 1
        counts = self._waits.setdefault(path, [0] * (len(BUCKETS) + 1))
        counts[bisect_left(BUCKETS, seconds)] += 1
        self._waited[path] += seconds  # type: ignore[assignment] # a sum, not a count

    def refused(self, reason: str) -> None:
        """A request was sent away."""
        self._refused[reason] += 1

    def left(self, path: str) -> None:
        """A caller has hung up."""
        self._left[path] += 1

    def passed(self, status: int) -> None:
        """A request was passed on and has this status."""
        self._passed[status] += 1

    def note(self, event: Event) -> None:
        """Something happened to a batch."""
        match event:
            case BatchSubmitted(batch_id, requests=requests):
                self._batches[batch_id] = ("submitted", requests)
            case BatchProgressed(batch_id, status=status, total=total):
                _, requests = self._batches.get(batch_id, ("", total))
                self._batches[batch_id] = (status, requests)
            case BatchSettled(batch_id, status=status):
                self._batches.pop(batch_id or "", None)
                self._settled[status if batch_id is not None else "not submitted"] += 1
            case RequestsResent(requests=requests):
                self._resent += requests
            case RequestsOverdue(requests=requests):
                self._overdue += requests
            case RealtimeCalled(reason=reason):
                self._realtime[reason] += 1
            case _:
                pass

    # What is told.

    def text(self) -> bytes:
        """All of it, in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All of it."""
        yield GaugeMetricFamily(
            "autobatcher_waiting_requests", "Callers that wait for an answer.", value=self._waiting()
        )
        in_batches = sum(requests for _, requests in self._batches.values())
        yield GaugeMetricFamily(
            "autobatcher_batched_requests", "Requests in batches at the upstream.", value=in_batches
        )
        batches = GaugeMetricFamily(
            "autobatcher_batches", "Batches under way, by the upstream's word.", labels=["state"]
        )
        for state, number in Counter(state for state, _ in self._batches.values()).items():
            batches.add_metric([state], number)
        yield batches
        yield self._counter(
            "autobatcher_batches_settled", "Batches that came to their end.", ["state"], self._settled
        )
        yield CounterMetricFamily(
            "autobatcher_requests_resent", "Requests that went into another batch.", value=self._resent
        )
        yield CounterMetricFamily(
            "autobatcher_requests_overdue",
            "Requests without an answer by their deadline.",
            value=self._overdue,
        )
        yield self._counter(
            "autobatcher_realtime_calls", "Realtime calls of batched requests.", ["reason"], self._realtime
        )
        yield self._counter(
            "autobatcher_requests_answered", "Batched requests with an answer.", ["endpoint"], self._answered
        )
        failed = CounterMetricFamily(
            "autobatcher_requests_failed", "Batched requests with an error.", labels=["endpoint", "status"]
        )
        for (endpoint, status), number in self._failed.items():
            failed.add_metric([endpoint, str(status)], number)
        yield failed
        yield self._counter(
            "autobatcher_requests_refused", "Requests sent away, by reason.", ["reason"], self._refused
        )
        yield self._counter(
            "autobatcher_callers_left", "Callers that hung up while they waited.", ["endpoint"], self._left
        )
        passed = CounterMetricFamily(
            "autobatcher_requests_passed", "Requests passed on to the upstream.", labels=["status"]
        )
        for status, number in self._passed.items():
            passed.add_metric([str(status)], number)
        yield passed
        yield self._waits_told()
        yield self._tokens_told()

    @staticmethod
    def _counter(name: str, text: str, labels: list[str], counts: Counter[str]) -> Metric:
        family = CounterMetricFamily(name, text, labels=labels)
        for label, number in counts.items():
            family.add_metric([label], number)
        return family

    def _waits_told(self) -> Metric:
        family = HistogramMetricFamily(
            "autobatcher_wait_seconds", "From a batched request to its reply.", labels=["endpoint"]
        )
        for endpoint, counts in self._waits.items():
            sums, so_far = [], 0
            for bound, number in zip((*map(float, BUCKETS), "+Inf"), counts, strict=True):
                so_far += number
                sums.append((str(bound), float(so_far)))
            family.add_metric([endpoint], sums, sum_value=self._waited[endpoint])
        return family

    def _tokens_told(self) -> Metric:
        family = CounterMetricFamily(
            "autobatcher_tokens",
            "Tokens that answers used, as they say, by model and by how they were bought.",
            labels=["model", "kind", "bought"],
        )
        sums: Counter[tuple[str, str, str]] = Counter()
        for line in self._usage().lines:
            bought = "realtime" if line.completion_window is None else "batch"
            sums[line.model, "prompt", bought] += line.prompt_tokens
            sums[line.model, "completion", bought] += line.completion_tokens
        for labels, number in sums.items():
            family.add_metric(list(labels), number)
        return family
