"""Whether nobody waited too long: deadlines, the realtime calls that follow from them, and what these may take.

How long a caller may wait in real time is reckoned from the ledger's calls: from its deadline on each moment has to be
one of its own calls, of a pause between two of them, or one in which as many others' as may be were under way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise

import openai

from autobatcher import DeadlineError
from autobatcher.core.retry import is_success
from tests.simulation.ledger import CallerRecord, HttpCall, Ledger, NoAnswerError, ServerBatch
from tests.simulation.plan import CallerPlan, Plan

AT_ONCE = 1e-3
"""Seconds within which two moments are one: virtual clocks add up floats."""

PAUSE = 8.0
"""Seconds at most that the SDK waits before it repeats a call, unless a server asks for more, up to two minutes."""

LONGEST_PAUSE = 120.0


def caller_of(plan: Plan, record: CallerRecord) -> CallerPlan:
    """What was planned for a caller."""
    return plan.callers[record.number]


def due(plan: Plan, ledger: Ledger, record: CallerRecord) -> float:
    """When a caller's deadline comes; infinite without one. A clock that leaps over it is there where it lands."""
    seconds = caller_of(plan, record).deadline
    if seconds is None:
        return float("inf")
    at = record.asked_at + seconds
    for leap, length in sorted(ledger.jumps):
        if leap <= at < leap + length:
            at = leap + length
    return at


def answered_in_real_time(ledger: Ledger, record: CallerRecord) -> HttpCall | None:
    """The realtime call whose answer a caller got, in this run or in one before."""
    if record.result != "answer" or record.request_id is None:
        return None
    return next((call for call in ledger.calls if call.request_id == record.request_id), None)


def withdrawn(ledger: Ledger, record: CallerRecord) -> bool:
    """Whether a caller was answered in real time in this run, so that its batch is of no use to it any more."""
    call = answered_in_real_time(ledger, record)
    return call is not None and call.start >= record.asked_at


def gone(ledger: Ledger, record: CallerRecord) -> bool:
    """Whether a caller's batch is of no use to it any more, for whatever reason but the batch."""
    if record.result == "left" or isinstance(record.error, DeadlineError) or withdrawn(ledger, record):
        return True
    return record.result == "error" and bool(ledger.realtime_calls(record))


def answered_before(ledger: Ledger, record: CallerRecord, at: float) -> ServerBatch | None:
    """The batch whose answer the client had read before, if there is one."""
    for batch in ledger.batches_of(record.custom_id):
        told = batch.delivered.get(record.custom_id)
        if told is None or not is_success(told[0]):
            continue
        if batch.delivered_at.get(record.custom_id, float("inf")) < at - AT_ONCE:
            return batch
    return None


# Errors.


def deadline_is_rightful(plan: Plan, ledger: Ledger, error: DeadlineError, record: CallerRecord) -> bool:
    """Whether the error came to one that wants it, at the moment, and names the batch."""
    if caller_of(plan, record).on_deadline != "raise":
        return False
    if abs(record.at - due(plan, ledger, record)) > AT_ONCE:
        return False
    told = record.asked_at + error.age  # the clock may leap once more before the caller sees it
    if not any(abs(told - at) <= AT_ONCE for at in (record.at, *(at for at, _ in ledger.jumps))):
        return False
    batches = [batch for batch in ledger.batches_of(record.custom_id) if batch.at <= record.at]
    if error.batch_id is not None:
        return bool(batches) and error.batch_id == batches[-1].id
    return not (batches and _is_known(ledger, batches[-1], record))


def _is_known(ledger: Ledger, batch: ServerBatch, record: CallerRecord) -> bool:
    """Whether the client must have known that a request is in this batch, and had no reason to take it out."""
    from tests.simulation.rightful import reason_to_go_on  # noqa: PLC0415 -- which asks here for others' errors

    if batch.fate == "vanishes" or reason_to_go_on(batch, record.custom_id):
        return False
    for call in ledger.calls:
        if not record.asked_at <= call.start <= record.at:  # a batch of an earlier run may have ended before
            continue
        if call.kind == "upload" and call.start > batch.at and record.custom_id in call.ids:
            return False
        if call.kind in ("poll", "content") and call.batch_id == batch.id and call.start < record.at:
            return True
        if call.kind == "create" and call.file_id == batch.file_id and call.seen is None:
            return call.end < record.at
    return False


def realtime_error_is_rightful(
    plan: Plan, error: BaseException | None, record: CallerRecord, calls: list[HttpCall]
) -> bool:
    """Whether the last of the realtime calls failed like that."""
    last = calls[-1]
    if last.seen is None or abs(last.end - record.at) > AT_ONCE:
        return False
    match error:
        case NoAnswerError() | json.JSONDecodeError():  # what the SDK makes of such pages
            return last.seen.trouble == "odd"
        case openai.APIStatusError(status_code=status):
            return last.seen.status == status and last.seen.trouble in ("passing", "busy", "refused")
        case openai.APIConnectionError():
            whole = len(calls) == int(plan.options["max_retries"]) + 1
            return last.seen.status == 0 and last.seen.trouble == "passing" and whole
    return False


# Checks.


def nobody_waits_too_long(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """At a deadline whoever wants the error has it; for others a realtime call is under way as soon as may be."""
    for record, end in _records(ledger):
        at = due(plan, ledger, record)
        if end <= at + AT_ONCE:
            continue
        caller = caller_of(plan, record)
        if caller.on_deadline == "raise":
            yield f"caller {record.number} waited until {end:.2f} s, and its deadline was {at:.2f} s"
        elif idle := next(_idle(plan, ledger, record, at, end), None):
            start, stop = idle
            yield f"caller {record.number} was late, and for it nothing was done from {start:.2f} s to {stop:.2f} s"


def _records(ledger: Ledger) -> Iterator[tuple[CallerRecord, float]]:
    """All callers of all runs, with the time when their waiting was over."""
    for number, callers in enumerate(ledger.runs()):
        over = ledger.stopped[number].ended_at if number < len(ledger.stopped) else ledger.ended_at
        for record in callers.values():
            yield record, record.at if record.result else over


def _idle(
    plan: Plan, ledger: Ledger, record: CallerRecord, at: float, end: float
) -> Iterator[tuple[float, float]]:
    """When nothing was done for a caller after its deadline, without an excuse."""
    before: HttpCall | None = None
    for call in ledger.realtime_calls(record):
        if call.start > at + AT_ONCE and not _excused(plan, ledger, record, before, (at, call.start)):
            yield at, call.start
        at, before = max(at, call.end), call
    if end > at + AT_ONCE and not _excused(plan, ledger, record, before, (at, end)):
        yield at, end


def _excused(
    plan: Plan, ledger: Ledger, record: CallerRecord, before: HttpCall | None, idle: tuple[float, float]
) -> bool:
    """Whether it is a pause after a call that failed, or as many others' calls as may be were under way."""
    start, end = idle
    if before is not None:
        if before.seen is None or before.seen.trouble not in ("passing", "busy"):
            return False
        asked = before.seen.retry_after
        most = max(PAUSE, asked if asked <= LONGEST_PAUSE else 0.0)
        leapt = sum(seconds for at, seconds in ledger.jumps if start <= at <= end)
        return end - start - leapt <= most + AT_ONCE
    spans = [
        (calls[0].start, over)
        for other, over in _records(ledger)
        if _beside(plan, record, other) and other is not record and (calls := ledger.realtime_calls(other))
    ]
    most_calls = plan.options.get("max_realtime_calls", 100)
    moments = sorted({start, end, *(moment for span in spans for moment in span if start < moment < end)})
    for early, late in pairwise(moments):
        if sum(since <= early and late <= until for since, until in spans) < most_calls:
            return False
    return True


def _beside(plan: Plan, record: CallerRecord, other: CallerRecord) -> bool:
    """Whether the calls of two callers share a limit: those of a client and of its copies that batch as it does."""
    same = not plan.copies or (record.number + other.number) % 2 == 0
    return record.run == other.run and same


def realtime_calls_are_limited(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """So many at a time, of each client that has batches of its own."""
    most = plan.options.get("max_realtime_calls", 100)
    moments: dict[tuple[int, int], list[tuple[float, int]]] = {}
    for record, over in _records(ledger):
        each = (record.run, record.number % 2 if plan.copies else 0)
        for call in ledger.realtime_calls(record):
            moments.setdefault(each, []).extend(((call.start, 1), (min(call.end, over), -1)))
    for some in moments.values():
        under_way = 0
        for at, change in sorted(some):
            under_way += change
            if under_way > most:
                yield f"{under_way} realtime calls were under way at {at:.2f} s, and {most} are allowed"
                break


def realtime_calls_have_a_reason(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """A deadline, or a batch that has expired, of one who wants that; and no answer until then."""
    had: set[int] = set()
    for callers in ledger.runs():
        for record in callers.values():
            calls = ledger.realtime_calls(record)
            if calls and record.number in had:
                yield f"caller {record.number} had its answer, and was asked again for in real time"
            if calls and not _has_a_reason(plan, ledger, record, calls[0].start):
                yield f"caller {record.number} was asked for in real time at {calls[0].start:.2f} s without a reason"
            for call in calls:
                if (batch := answered_before(ledger, record, call.start)) is not None:
                    name = ledger.short(batch.id)
                    yield f"caller {record.number} was asked for in real time, though {name} had answered"
            for before in calls[:-1]:
                if before.seen is None or before.seen.trouble not in ("passing", "busy"):
                    yield f"caller {record.number} was asked for in real time again after call {before.number}"
            if len(calls) > int(plan.options["max_retries"]) + 1:
                yield f"caller {record.number} was asked for in real time {len(calls)} times"
        had |= {number for number, record in callers.items() if record.result == "answer"}


def _has_a_reason(plan: Plan, ledger: Ledger, record: CallerRecord, at: float) -> bool:
    caller = caller_of(plan, record)
    if caller.on_deadline == "realtime" and at >= due(plan, ledger, record) - AT_ONCE:
        return True
    expired = [
        batch
        for batch in ledger.batches_of(record.custom_id)
        if batch.status == "expired" and batch.ended_at <= at
    ]
    return caller.on_expired == "realtime" and bool(expired)


def the_first_answer_wins(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """Be it that of the realtime call or that of the batch."""
    for record, _ in _records(ledger):
        if record.result != "answer":
            continue
        call = answered_in_real_time(ledger, record)
        if call is not None and (batch := answered_before(ledger, record, call.end)) is not None:
            yield f"caller {record.number} got the answer of a realtime call, though {ledger.short(batch.id)} had answered"
        for other in ledger.realtime_calls(record):
            good = other.request_id and (other.seen is None or other.seen.trouble == "data")
            if good and other.end < record.at - AT_ONCE:
                yield f"caller {record.number} had an answer at {other.end:.2f} s, and got one at {record.at:.2f} s"


def expired_requests_go_where_they_are_wanted(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """Into another batch only if that is wanted."""
    for record, over in _records(ledger):
        if caller_of(plan, record).on_expired == "resubmit":
            continue
        for batch in ledger.batches_of(record.custom_id):
            told = batch.delivered.get(record.custom_id, (0, None))[0]
            if batch.status != "expired" or told or batch.ended_at < record.asked_at:
                continue
            for call in ledger.calls:
                if (
                    call.kind == "upload"
                    and batch.ended_at < call.start <= over
                    and record.custom_id in call.ids
                ):
                    name = ledger.short(batch.id)
                    yield f"caller {record.number}'s request was sent again after {name}, which was not wanted"


def what_is_kept_goes_on(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """With a journal, a batch is cancelled only when all of its requests have been answered in real time."""
    if plan.stops is None:
        return
    for call in ledger.calls:
        if call.kind != "cancel" or call.start >= ledger.closed_from:
            continue
        batch = ledger.batches[call.batch_id]
        answered = {
            record.custom_id
            for callers in ledger.runs()
            for record in callers.values()
            if answered_in_real_time(ledger, record) is not None and record.at <= call.start
        }
        missing = [name for name in batch.ids if name not in answered and name not in batch.delivered]
        if missing:
            yield f"{ledger.short(batch.id)} was cancelled, and the answers to {missing} would have been kept"


CHECKS = (
    nobody_waits_too_long,
    realtime_calls_are_limited,
    realtime_calls_have_a_reason,
    the_first_answer_wins,
    expired_requests_go_where_they_are_wanted,
    what_is_kept_goes_on,
)
