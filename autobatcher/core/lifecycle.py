"""The steps of a batch, with the one table of legal moves."""

from __future__ import annotations

import enum


class Step(enum.Enum):
    """What a batch is at; its `due` says when the step's call goes out, and is None while that is under way."""

    QUEUED = "queued"
    """Closed; nothing is at the server. It waits for its time, or for room (then `due` is None)."""
    UPLOAD = "upload"
    CREATE = "create"
    LOOK_UP = "look up"
    """Whether the creation, whose answer was lost, made a batch."""
    POLL = "poll"
    FETCH = "fetch"
    CANCEL = "cancel"
    """All callers have left."""
    SETTLED = "settled"


_S = Step

MOVES: dict[Step, frozenset[Step]] = {
    _S.QUEUED: frozenset({_S.UPLOAD, _S.SETTLED}),
    _S.UPLOAD: frozenset({_S.CREATE, _S.SETTLED}),
    _S.CREATE: frozenset({_S.LOOK_UP, _S.POLL, _S.SETTLED}),
    _S.LOOK_UP: frozenset({_S.CREATE, _S.POLL, _S.SETTLED}),
    _S.POLL: frozenset({_S.FETCH, _S.CANCEL, _S.SETTLED}),
    _S.FETCH: frozenset({_S.POLL, _S.CANCEL, _S.SETTLED}),
    _S.CANCEL: frozenset({_S.SETTLED}),
    _S.SETTLED: frozenset(),
}

TERMINAL_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})
"""The server's statuses after which a batch no longer changes; any other, known or not, means: poll on.

Source: https://platform.openai.com/docs/api-reference/batch/object
"""

CANCELLED_STATUSES = frozenset({"cancelling", "cancelled"})

UNVALIDATED_STATUSES = frozenset({"validating", "pending", "queued", "scheduling"})
"""Statuses in which a server may yet refuse the batch as a whole, such as for a full queue.

Source: as above for the first; the others were seen at other servers.
"""
