"""What was wrong with a run: each invariant as one function that yields sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

from autobatcher import ClientClosedError, DeadlineError
from autobatcher.local.answers import answer_now
from tests.simulation.deadlines import (
    CHECKS,
    answered_before,
    answered_in_real_time,
    deadline_is_rightful,
    gone,
    withdrawn,
)
from tests.simulation.ledger import ENDED, CallerRecord, HttpCall, Ledger, ServerBatch
from tests.simulation.plan import CallerPlan, Plan
from tests.simulation.rightful import call_failed, lost, reason_to_go_on, rightful, transient, unreadable

NEVER = float("inf")

MOST_LOSSES = 10
"""Times that a request may be lost by batches and sent again; "bounded", as a number that is not the package's."""

SLACK = 120.0
"""Seconds within which a batch that nobody waits for is cancelled, when no call for it fails any more."""

CLOSING = 30.0
"""Seconds that closing has for the cancellations."""

ROUGHLY = 4
"""By how much an estimate of tokens from bytes may be wrong where short and long prompts are mixed."""


def violations(plan: Plan, ledger: Ledger) -> list[str]:
    """All that is wrong, as sentences; empty if all is well."""
    if ledger.stuck:
        waiting = [number for number, record in ledger.callers.items() if not record.result]
        return [f"the world came to no end; callers that still wait: {waiting}", *ledger.complaints]
    found = list(ledger.complaints)
    for check in _CHECKS:
        found += check(plan, ledger)
    return found


def _everybody_is_settled(plan: Plan, ledger: Ledger) -> Iterator[str]:
    for run in ledger.stopped:
        for caller in plan.callers:
            had = run.callers[caller.number]
            if had.result == "answer" and had.answer != _expected(caller):
                yield f"caller {caller.number} got the answer {had.answer!r} before the program was stopped"
            error = had.error
            if isinstance(error, DeadlineError) and not deadline_is_rightful(plan, ledger, error, had):
                yield f"caller {caller.number} got {error!r} before the program was stopped"
    for caller in plan.callers:
        record = ledger.callers.get(caller.number)
        if record is None or not record.result:
            yield f"caller {caller.number} was never settled"
        elif record.result == "answer" and record.answer != _expected(caller):
            yield f"caller {caller.number} got the answer {record.answer!r}"
        elif record.result == "error" and not rightful(plan, ledger, record):
            yield f"caller {caller.number} got an error that nothing explains: {record.error!r}"


def _expected(caller: CallerPlan) -> Any:
    if caller.endpoint == "embeddings":
        return _embedding(caller.model, caller.prompt)
    return f"You said: {caller.prompt}."


@lru_cache(maxsize=10_000)
def _embedding(model: str, text: str) -> Any:
    answer = answer_now("/v1/embeddings", {"model": model, "input": text, "dimensions": 4}, now=0)
    return answer.body["data"][0]["embedding"]


def _what_was_answered_stays(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """Whoever had an answer in a run that was stopped has it in each later one, at once, and nothing is sent for it."""
    runs = [run.callers for run in ledger.stopped] + [ledger.callers]
    for before, (run, callers) in zip(runs, enumerate(runs[1:], start=1), strict=False):
        for number, record in callers.items():
            earlier = before[number]
            if earlier.result != "answer" or not record.result:
                continue
            if record.result == "error" or (record.result == "answer" and record.answer != earlier.answer):
                yield f"caller {number} had its answer, and not in run {run + 1} any more"
            elif record.result == "answer" and record.request_id != earlier.request_id:
                yield f"caller {number} had its answer, and got another one in run {run + 1}"
            elif record.at != record.asked_at:
                yield f"caller {number} had its answer, and waited for it in run {run + 1}"
    for stopped in ledger.stopped:
        had = {record.custom_id for record in stopped.callers.values() if record.result == "answer"}
        for call in ledger.calls:
            if call.kind == "upload" and call.start > stopped.ended_at and not had.isdisjoint(call.ids):
                yield f"what had its answer was uploaded again after {stopped.ended_at:.0f} s (call {call.number})"


def _failures_are_not_remembered(plan: Plan, ledger: Ledger) -> Iterator[str]:
    for record in ledger.callers.values():
        if (
            record.result != "error"
            or record.asked_at < ledger.started_at
            or isinstance(record.error, ClientClosedError | DeadlineError)
        ):
            continue
        if not any(call.start >= ledger.started_at and record.custom_id in call.ids for call in ledger.calls):
            yield f"caller {record.number} got {record.error!r}, for which nothing was asked in this run"


def _no_answer_is_lost(plan: Plan, ledger: Ledger) -> Iterator[str]:
    for record in ledger.callers.values():
        if record.result != "error":
            continue
        if gone(ledger, record):  # then what its batch has bought may well come later
            if (batch := answered_before(ledger, record, record.at)) is not None:
                yield f"caller {record.number} got {record.error!r}, though {ledger.short(batch.id)} had answered"
            continue
        for batch in ledger.batches_of(record.custom_id):
            if record.custom_id not in batch.bought:
                continue
            told = batch.delivered.get(record.custom_id)
            readable = not unreadable(batch, record.custom_id) and batch.terminal_looks
            unread = isinstance(record.error, ClientClosedError) or call_failed(plan, ledger, record)
            kept = plan.stops is not None and unread  # by a look that came too late for this call
            if (told is not None and not kept) or (readable and not unread):
                name = ledger.short(batch.id)
                yield f"caller {record.number} got {record.error!r}, though {name} holds its answer"


def _nothing_is_bought_twice(plan: Plan, ledger: Ledger) -> Iterator[str]:
    for record in ledger.callers.values():
        bought = [b for b in ledger.batches_of(record.custom_id) if record.custom_id in b.bought]
        for batch in bought[:-1]:
            if batch.fate == "vanishes" and ledger.stopped:
                continue  # what the server has forgotten of an earlier run is sent again
            if not unreadable(batch, record.custom_id):
                name = ledger.short(batch.id)
                yield f"caller {record.number}'s request was bought again, though {name} holds its answer"


def _nothing_is_sent_again_without_a_reason(plan: Plan, ledger: Ledger) -> Iterator[str]:
    by_file = {batch.file_id: batch for batch in ledger.batches.values()}
    for record in ledger.callers.values():
        uploads = [
            call
            for call in ledger.calls
            if call.kind == "upload" and call.seen is None and record.custom_id in call.ids
        ]
        for upload, later in pairwise(uploads):
            if ledger.stopped_within(upload.start, later.start):
                continue  # whether anything is bought twice is another question
            batch = by_file.get(upload.file_id)
            if batch is None:
                yield f"caller {record.number}'s request was uploaded again without a batch from the first upload"
            elif not reason_to_go_on(batch, record.custom_id):
                name = ledger.short(batch.id)
                yield f"caller {record.number}'s request was sent again after {name} without a reason"


def _retries_are_bounded(plan: Plan, ledger: Ledger) -> Iterator[str]:
    runs = len(ledger.stopped) + 1
    most = int(plan.options["max_retries"])
    for record in ledger.callers.values():
        batches = ledger.batches_of(record.custom_id)
        if (tries := sum(transient(batch, record.custom_id) for batch in batches)) > (most + 1) * runs:
            yield f"caller {record.number}'s request was tried {tries} times, and {most} retries are allowed"
        if (times := sum(lost(batch, record.custom_id) for batch in batches)) > MOST_LOSSES * runs:
            yield f"caller {record.number}'s request was sent again after {times} losses"


def _each_file_has_one_batch(plan: Plan, ledger: Ledger) -> Iterator[str]:
    for file_id, count in Counter(batch.file_id for batch in ledger.batches.values()).items():
        if count > 1:
            yield f"{count} batches were made of {ledger.short(file_id)}"


def _limits_are_kept(plan: Plan, ledger: Ledger) -> Iterator[str]:
    # They are each sender's own; and what runs that were stopped have left goes on with whoever comes first.
    each = 2 + len(ledger.stopped) if plan.copies else 1
    most = plan.options["max_active_batches"]
    if most is not None and ledger.most_active > most * each:
        yield f"{ledger.most_active} batches were active at a time, and {most} are allowed"
    tokens = plan.options["max_enqueued_tokens"]
    if tokens is not None and ledger.most_tokens > ROUGHLY * tokens * each:
        yield f"{ledger.most_tokens} tokens were enqueued at a time, and {tokens} are allowed"
    size = plan.options["batch_size"]
    for call in ledger.calls:
        if call.kind == "upload" and len(call.ids) > size:
            yield f"a file of {len(call.ids)} requests was uploaded, and {size} are allowed"


def _polls_come_in_time(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """Never later than the larger of 60 s and 2% of the batch's age, whatever the server says."""
    for batch, calls in _by_batch(ledger):
        for before, after in pairwise(calls):
            if (
                after.kind != "poll"
                or before.end == NEVER
                or before.kind not in ("create", "poll", "content")
            ):
                continue
            if before.kind == "create" and before.seen is not None:
                continue  # that there is a batch was found out later
            if any(before.start <= at <= after.start for at, _ in ledger.jumps):
                continue
            if ledger.stopped_within(before.start, after.start):
                continue
            if plan.stops is not None and before.seen is not None:
                continue  # it may have been given up, and taken up again with the next call that was made
            gap, most = after.start - before.end, max(60.0, 0.02 * (before.end - batch.at))
            if gap > most + 1:
                yield f"{ledger.short(batch.id)} was polled after {gap:.0f} s, not {most:.0f} s (call {after.number})"


def _by_batch(ledger: Ledger) -> Iterator[tuple[ServerBatch, list[HttpCall]]]:
    found: dict[str, list[HttpCall]] = {batch_id: [] for batch_id in ledger.batches}
    for call in ledger.calls:
        if call.batch_id in found:
            found[call.batch_id].append(call)
    for batch_id, calls in found.items():
        yield ledger.batches[batch_id], calls


MOST_PAUSE = 3_900.0
"""Seconds between two tries of a call: an hour, which is as long as a Retry-After is obeyed, and some for the call."""


def _retry_after_is_honoured(plan: Plan, ledger: Ledger) -> Iterator[str]:
    last: dict[tuple[str, ...], HttpCall] = {}
    since: dict[tuple[str, ...], float] = {}
    patience = float(plan.options["patience_seconds"])
    for call in ledger.calls:
        if call.kind not in ("upload", "create"):
            continue
        keys = [(call.kind, custom_id) for custom_id in call.ids]
        for before in {id(last[key]): last[key] for key in keys if key in last}.values():
            seen = before.seen
            if seen is not None and (call.kind == "upload" or seen.trouble == "busy"):
                gap = call.start - before.end
                # When patience ends, the last try comes; and a program that was stopped remembers none of this.
                ends = min(since[key] for key in keys if key in since) + patience
                stopped = ledger.stopped_within(before.start, call.start)
                if gap < seen.retry_after - 0.001 and call.start < ends - 1 and not stopped:
                    yield f"{call.kind} came {gap:.0f} s after a Retry-After of {seen.retry_after:.0f} s"
                leapt = sum(seconds for at, seconds in ledger.jumps if before.end <= at <= call.start)
                if gap - leapt > MOST_PAUSE and not stopped:
                    yield f"{call.kind} came only {gap:.0f} s after one that failed"
        last.update(dict.fromkeys(keys, call))
        for key in keys:
            since.setdefault(key, call.end)
            if call.seen is None:
                del since[key]


def _calls_are_bounded(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """Polls by the schedule for the batch's age, plus one for each look after its end and for each failed download."""
    first = float(plan.options["poll_interval_seconds"])
    stops = len(ledger.stopped)
    for batch, calls in _by_batch(ledger):
        polls = [call for call in calls if call.kind == "poll"]
        contents = [call for call in calls if call.kind == "content"]
        if not polls:
            continue
        failed = sum(call.seen is not None for call in contents)
        most = _scheduled(first, polls[-1].start - batch.at) + batch.terminal_looks + failed + stops
        if len(polls) > most:
            yield f"{ledger.short(batch.id)} was polled {len(polls)} times; {most} would do"
        if len(contents) > 2 * len(polls):
            yield f"{ledger.short(batch.id)} was read {len(contents)} times at {len(polls)} polls"
    kinds = Counter(call.kind for call in ledger.calls)
    failed_calls = Counter(call.kind for call in ledger.calls if call.seen is not None or call.end == NEVER)
    unmade = stops * len(ledger.files)  # of which nobody knows in the end whether there is a batch
    pages = -(-len(ledger.batches) // plan.page) + 1
    for kind, most in (
        ("create", len(ledger.files) + failed_calls["create"]),
        ("list", 12 * pages * (failed_calls["create"] + unmade) + failed_calls["list"] * pages),
        ("cancel", len(ledger.batches) + failed_calls["cancel"]),
    ):
        if kinds[kind] > most:
            yield f"{kinds[kind]} calls of the kind {kind} were made; {most} would do"


def _scheduled(first: float, age: float) -> int:
    """How many polls a batch of this age has had at most: a first one, then one every 2% of its age, to 10 minutes."""
    at, count = first, 2
    while at < age:
        at += max(first, min(0.02 * at, 600.0)) * 0.999
        count += 1
    return count


def _deserted_batches_are_cancelled(plan: Plan, ledger: Ledger) -> Iterator[str]:
    over = gone if plan.stops is None else withdrawn  # with a journal, answers that are yet to come are kept
    for batch in ledger.batches.values():
        callers = [record for record in ledger.callers.values() if record.custom_id in batch.ids]
        if any(ledger.batches_of(record.custom_id)[-1] is not batch for record in callers):
            continue
        if len(callers) < len(batch.ids) or not all(over(ledger, record) for record in callers):
            continue
        failed = [
            call
            for call in ledger.calls
            if call.seen is not None and call.kind != "realtime" and set(call.ids) & set(batch.ids)
        ]
        ends = [call.end for call in failed] + [at + seconds for at, seconds in ledger.jumps]
        since = max([batch.at, *ends, *(record.at for record in callers)])
        until = min(batch.ended_at, ledger.closed_from)
        refused = any(call.kind in ("cancel", "list", "create") and call.seen is not None for call in failed)
        told = [call.status for call in ledger.calls if call.kind == "poll" and call.batch_id == batch.id]
        ended = bool(told) and f"{told[-1]}".lower() in ENDED  # as the server said, in odd letters
        done = ended or batch.status in ("cancelled", "cancelling") or batch.cancel_calls
        # Closing waits for what was to be cancelled before.
        at_close = since < ledger.closed_from < batch.ended_at and plan.call_seconds <= 1
        if not done and not refused and (until > since + SLACK or at_close):
            yield f"{ledger.short(batch.id)} was not cancelled, though all its callers had left by {since:.0f} s"


def _no_batch_is_cancelled_that_somebody_waits_for(plan: Plan, ledger: Ledger) -> Iterator[str]:
    for call in ledger.calls:
        if call.kind != "cancel":
            continue
        if call.start > ledger.closed_from and not plan.options["cancel_active_batches_on_close"]:
            yield f"{ledger.short(call.batch_id)} was cancelled by closing, which was not asked for"
        for record in ledger.callers.values():
            waits = record.result in ("answer", "error") and record.at > call.start + 1
            if _was_answered_in_real_time(ledger, record, call.start):
                continue  # in an earlier run, of which the journal knows
            if waits and record.custom_id in call.ids:
                last = ledger.batches_of(record.custom_id)[-1]
                read = last.delivered_at.get(record.custom_id, float("inf"))  # maybe by an earlier run
                if last.id == call.batch_id and read > call.start:
                    yield f"{ledger.short(call.batch_id)} was cancelled while caller {record.number} waited"


def _was_answered_in_real_time(ledger: Ledger, record: CallerRecord, before: float) -> bool:
    earlier = (run.callers[record.number] for run in ledger.stopped)
    return any(other.at <= before and answered_in_real_time(ledger, other) is not None for other in earlier)


def _closing_settles(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """Whoever waits when the client is closed knows it at once."""
    for record in ledger.callers.values():
        start = max(record.asked_at, ledger.closed_from)
        leapt = sum(seconds for at, seconds in ledger.jumps if start <= at <= record.at)
        if record.result and record.at - leapt > start + 1:
            yield f"caller {record.number} waited until {record.at:.0f} s, and the client was closed at {start:.0f} s"


def _closing_cancels(plan: Plan, ledger: Ledger) -> Iterator[str]:
    """What was at the server when the client was closed is cancelled if that was asked for, in calm weather."""
    if plan.close_at is None or not plan.options["cancel_active_batches_on_close"]:
        return
    start = ledger.closed_from
    if plan.call_seconds > 1 or any(
        call.seen is not None
        and call.kind != "realtime"
        and call.end > start - 700
        and call.start < start + CLOSING
        for call in ledger.calls
    ):
        return
    for batch in ledger.batches.values():
        lives_on = batch.status not in ENDED | {"cancelling"} or batch.ended_at > start + CLOSING
        if batch.at < start + CLOSING and lives_on and not batch.cancel_calls:
            yield f"{ledger.short(batch.id)} goes on, though closing was to cancel it"


_CHECKS: tuple[Callable[[Plan, Ledger], Iterator[str]], ...] = (
    _everybody_is_settled,
    _what_was_answered_stays,
    _failures_are_not_remembered,
    _no_answer_is_lost,
    _nothing_is_bought_twice,
    _nothing_is_sent_again_without_a_reason,
    _retries_are_bounded,
    _each_file_has_one_batch,
    _limits_are_kept,
    _polls_come_in_time,
    _retry_after_is_honoured,
    _calls_are_bounded,
    _deserted_batches_are_cancelled,
    _no_batch_is_cancelled_that_somebody_waits_for,
    _closing_settles,
    _closing_cancels,
    *CHECKS,
)
