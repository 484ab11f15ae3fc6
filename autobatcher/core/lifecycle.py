"""The states of a batch, with the one table of legal moves."""

from __future__ import annotations

import enum


class BatchState(enum.Enum):
    """Where a batch stands on its way from a closed window to settled callers."""

    UPLOADING = "uploading"
    CREATING = "creating"
    WAITING = "waiting"
    POLLING = "polling"
    FETCHING = "fetching"
    SETTLED = "settled"


_S = BatchState

MOVES: dict[BatchState, frozenset[BatchState]] = {
    _S.UPLOADING: frozenset({_S.CREATING, _S.SETTLED}),
    _S.CREATING: frozenset({_S.WAITING, _S.SETTLED}),
    _S.WAITING: frozenset({_S.POLLING}),
    _S.POLLING: frozenset({_S.WAITING, _S.FETCHING, _S.SETTLED}),
    _S.FETCHING: frozenset({_S.WAITING, _S.SETTLED}),
    _S.SETTLED: frozenset(),
}

TERMINAL_STATUSES = frozenset({"completed", "failed", "expired", "cancelled"})
"""The server's statuses after which a batch no longer changes; any other, known or not, means: poll on.

Source: https://platform.openai.com/docs/api-reference/batch/object
"""
