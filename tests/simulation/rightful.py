"""Which errors a caller may see: those that follow from what went wrong for its request, and no others.

The bounds are floors that stand for what the package promises ("bounded", "for a while", "patiently"), written down
here a second time and somewhat below its own constants, so that a defect in those does not excuse itself.
"""

from __future__ import annotations

import openai

from autobatcher import BatchFailedError, ClientClosedError, DeadlineError, RequestFailedError
from tests.simulation.deadlines import caller_of, deadline_is_rightful, realtime_error_is_rightful
from tests.simulation.ledger import CallerRecord, HttpCall, Ledger, ServerBatch
from tests.simulation.plan import TRANSIENT, Plan

LOOKS = 4
"""How often a client looks at an ended batch at least, before it takes a line for missing."""

LOSSES = 4
"""How often a request is sent at least, before the batches' losing it may be its caller's affair."""

REPEATS = 4
"""How often a call is made at least that is answered by nonsense, or by "no such file" right after the upload."""

LOST_SECONDS = 600.0
"""For how long a server says at least that it does not know a batch, before that is believed."""

EXPIRED = "batch_expired"


def unreadable(batch: ServerBatch, custom_id: str) -> bool:
    """Whether the plan kept a line of an ended batch from the client, for good or for longer than it has to look."""
    return custom_id not in batch.delivered and (
        custom_id in batch.spoiled or batch.hidden or batch.terminal_looks >= LOOKS
    )


def transient(batch: ServerBatch, custom_id: str) -> bool:
    """Whether the client has read a failure in this line that may pass."""
    return batch.delivered.get(custom_id, (0, None))[0] in TRANSIENT


def lost(batch: ServerBatch, custom_id: str) -> bool:
    """Whether this batch ended without an answer to the request, through no fault of either."""
    if batch.fate == "fails: passing":
        return batch.status == "failed"
    if batch.delivered.get(custom_id) == (0, EXPIRED):
        return True
    return batch.status in ("completed", "expired") and unreadable(batch, custom_id)


def reason_to_go_on(batch: ServerBatch, custom_id: str) -> bool:
    """Whether there was a reason to send the request again after this batch."""
    if batch.status == "failed" and batch.terminal_looks:
        return batch.fate in ("fails: queue", "fails: passing") or (
            batch.fate == "fails: lines" and custom_id not in batch.named
        )
    return transient(batch, custom_id) or lost(batch, custom_id)


def rightful(plan: Plan, ledger: Ledger, caller: CallerRecord) -> bool:
    """Whether the error is one that this caller may see."""
    error = caller.error
    batches = ledger.batches_of(caller.custom_id)
    match error:
        case ClientClosedError():
            return caller.at >= ledger.closed_from
        case DeadlineError():
            return deadline_is_rightful(plan, ledger, error, caller)
    if calls := ledger.realtime_calls(caller):  # then nothing of its batch is of interest but an answer
        return realtime_error_is_rightful(plan, error, caller, calls)
    match error:
        case RequestFailedError():
            return _request_failed(plan, error, caller, batches)
        case BatchFailedError():
            return _batch_failed(plan, ledger, error, caller, batches)
        case openai.APIStatusError(status_code=status) if _line_failed(plan, status, caller, batches):
            return True
    return call_failed(plan, ledger, caller)


def _is_left(plan: Plan, caller: CallerRecord, times: int) -> bool:
    """Whether a request that was lost so often, for the last time since its batch expired, is not sent again."""
    wanted = caller_of(plan, caller).on_expired
    return wanted == "raise" or (wanted == "resubmit" and times >= LOSSES)


def _request_failed(
    plan: Plan, error: RequestFailedError, caller: CallerRecord, batches: list[ServerBatch]
) -> bool:
    custom_id = caller.custom_id
    for batch in batches:
        if batch.id != error.batch_id:
            continue
        if custom_id in batch.named:
            return bool(error.code == batch.code)
        times = sum(lost(batch, custom_id) for batch in batches)
        if error.code == EXPIRED and not _is_left(plan, caller, times):
            return False
        return batch.delivered.get(custom_id) == (0, error.code)
    return False


def _batch_failed(
    plan: Plan, ledger: Ledger, error: BatchFailedError, caller: CallerRecord, batches: list[ServerBatch]
) -> bool:
    batch = next((batch for batch in batches if batch.id == error.batch_id), None)
    if batch is None or batch.status != error.status:
        return False
    if batch.status == "cancelled":
        return batch.fate == "is cancelled"
    if batch.fate == "fails: otherwise":
        return bool(error.code == batch.code)
    if batch.fate == "fails: queue":
        since = min(other.at for other in ledger.batches.values() if other.fate == "fails: queue")
        return caller.at - since >= float(plan.options["patience_seconds"])
    times = sum(lost(other, caller.custom_id) for other in batches)
    return _is_left(plan, caller, times) if batch.status == "expired" else times >= LOSSES


def _line_failed(plan: Plan, status: int, caller: CallerRecord, batches: list[ServerBatch]) -> bool:
    """Whether the last line for this request says so, and may not be tried again."""
    told = [batch for batch in batches if caller.custom_id in batch.delivered]
    if not told or told[-1].delivered[caller.custom_id][0] != status:
        return False
    tries = sum(transient(batch, caller.custom_id) for batch in told)
    return status not in TRANSIENT or tries > int(plan.options["max_retries"])


def call_failed(plan: Plan, ledger: Ledger, caller: CallerRecord) -> bool:
    """Whether the last call for its batch failed in a way, or for a time, that ends it."""
    history = [call for call in ledger.history(caller.custom_id) if call.end <= caller.at]
    while history and history[-1].kind == "list" and not _failed(history[-1]):
        history.pop()  # it found nothing, and so left a creation in doubt
    if not history or not _failed(history[-1]):
        return False
    last = history[-1]
    if last.kind == "list":
        creations = _chain(history, next((call for call in reversed(history) if call.kind == "create"), last))
        return _ends(plan, _chain(history, last), caller) or _too_long(plan, creations)
    return _ends(plan, _chain(history, last), caller)


def _failed(call: HttpCall) -> bool:
    return call.seen is not None and call.seen.trouble != "data"


def _chain(history: list[HttpCall], last: HttpCall) -> list[HttpCall]:
    """The failures in a row of one kind of call, the last one first.

    The result files of a batch are read one after the other: what counts as one try is all between two polls. And a
    look-up reads page after page: one that is read ends no row.
    """
    found: list[HttpCall] = []
    read = failed = False
    for call in reversed(history):
        if call.kind == "poll" and last.kind == "content":
            if read and not failed:
                break
            read = failed = False
        if call.kind != last.kind:
            continue
        read = True
        if _failed(call):
            failed = True
            found.append(call)
        elif last.kind not in ("content", "list"):
            break
    return found


def _too_long(plan: Plan, chain: list[HttpCall]) -> bool:
    return bool(chain) and chain[0].end - chain[-1].end >= float(plan.options["patience_seconds"])


def _ends(plan: Plan, chain: list[HttpCall], caller: CallerRecord) -> bool:
    last = chain[0]
    if last.seen is None:
        return False
    waits = last.kind in ("poll", "content")  # for what was paid for
    if last.seen.trouble == "refused" and not waits:
        return last.kind == "list" or getattr(caller.error, "status_code", None) == last.seen.status
    if _too_long(plan, chain):
        return True
    alike = _alike(chain)
    if waits:
        return len(alike) >= REPEATS and last.end - alike[-1].end >= LOST_SECONDS
    return len(alike) >= REPEATS and last.seen.trouble in ("odd", "missing")


def _alike(chain: list[HttpCall]) -> list[HttpCall]:
    """The last calls that failed in the same way."""
    found: list[HttpCall] = []
    for call in chain:
        if call.seen is None or chain[0].seen is None or call.seen.trouble != chain[0].seen.trouble:
            break
        found.append(call)
    return found
