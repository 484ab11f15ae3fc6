"""By when whoever waits wants to hear something."""

from __future__ import annotations

from collections import OrderedDict

from autobatcher.core.window import Request


class Deadlines:
    """The deadlines of requests under way, whose patience is limited.

    Requests of the same patience are due in the order in which they came, so that there is nothing to sort; the few
    that come a second time are kept apart.
    """

    def __init__(self) -> None:
        self._times: dict[float | None, OrderedDict[Request, float]] = {}
        self._again: dict[Request, float] = {}

    def add(self, request: Request, *, again: bool) -> None:
        """One that was accepted: just now, or before."""
        patience, accepted_at = request.patience, request.accepted_at
        if patience is None or accepted_at is None:
            raise AssertionError("a request that has no deadline, or that nobody has accepted")
        if again:
            self._again[request] = accepted_at + patience
        else:
            self._times.setdefault(patience, OrderedDict())[request] = accepted_at + patience

    def remove(self, request: Request) -> None:
        """Nobody waits any more; of no effect when it was due."""
        self._again.pop(request, None)
        times = self._times.get(request.patience)
        if times is not None and times.pop(request, None) is not None and not times:
            del self._times[request.patience]

    @property
    def next(self) -> float | None:
        """When the next one is due; None if there is none."""
        first = [next(iter(times.values())) for times in self._times.values()]
        return min([*first, *self._again.values()], default=None)

    def due(self, now: float) -> list[Request]:
        """Those whose time has come; they are no longer here."""
        found = [request for request, at in self._again.items() if at <= now]
        for times in self._times.values():
            for request, at in times.items():
                if at > now:
                    break
                found.append(request)
        for request in found:
            self.remove(request)
        return found
