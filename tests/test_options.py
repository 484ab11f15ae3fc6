"""Batch options that make no sense are refused with words that help."""

from __future__ import annotations

from typing import Any

import pytest

import autobatcher

NAN, INF = float("nan"), float("inf")


def construct(**options: Any) -> autobatcher.BatchOpenAI:
    return autobatcher.BatchOpenAI(api_key="k", base_url="http://127.0.0.1:9/v1", **options)


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be 1 or more, not 0"),
        ({"batch_size": -3}, ValueError, "batch_size must be 1 or more, not -3"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be an int, not 1.5"),
        ({"batch_size": "10"}, TypeError, "batch_size must be an int, not '10'"),
        ({"batch_size": True}, TypeError, "batch_size must be an int, not True"),
        ({"batch_size": None}, TypeError, "batch_size must be an int, not None"),
        ({"batch_window_seconds": -0.1}, ValueError, "batch_window_seconds must be 0 or more seconds"),
        ({"batch_window_seconds": NAN}, ValueError, "batch_window_seconds must be .* finite, not nan"),
        ({"batch_window_seconds": INF}, ValueError, "batch_window_seconds must be .* finite, not inf"),
        ({"batch_window_seconds": "1"}, TypeError, "batch_window_seconds must be a number of seconds"),
        ({"batch_window_seconds": False}, TypeError, "batch_window_seconds must be a number of seconds"),
        ({"batch_window_seconds": None}, TypeError, "batch_window_seconds must be a number of seconds"),
        ({"poll_interval_seconds": 0}, ValueError, "poll_interval_seconds must be more than 0 seconds"),
        ({"poll_interval_seconds": -1}, ValueError, "poll_interval_seconds must be more than 0 seconds"),
        ({"poll_interval_seconds": NAN}, ValueError, "poll_interval_seconds must be .* finite, not nan"),
        ({"poll_interval_seconds": INF}, ValueError, "poll_interval_seconds must be .* finite, not inf"),
        ({"poll_interval_seconds": "5"}, TypeError, "poll_interval_seconds must be a number of seconds"),
        ({"poll_interval_seconds": True}, TypeError, "poll_interval_seconds must be a number of seconds"),
        ({"completion_window": ""}, ValueError, "completion_window must not be empty"),
        ({"completion_window": " "}, ValueError, "completion_window must not be empty"),
        ({"completion_window": 24}, TypeError, "completion_window must be a str such as '24h', not 24"),
        ({"completion_window": None}, TypeError, "completion_window must be a str such as '24h', not None"),
        ({"batch_metadata": [("a", "b")]}, TypeError, "batch_metadata must be a mapping of str to str"),
        ({"batch_metadata": "a"}, TypeError, "batch_metadata must be a mapping of str to str"),
        ({"batch_metadata": {"a": 1}}, TypeError, "batch_metadata takes only str, not 'a': 1"),
        ({"batch_metadata": {1: "a"}}, TypeError, "batch_metadata takes only str, not 1: 'a'"),
        ({"batch_metadata": {"a": None}}, TypeError, "batch_metadata takes only str, not 'a': None"),
        (
            {"batch_metadata": {str(i): "" for i in range(17)}},
            ValueError,
            "batch_metadata takes at most 16 pairs, not 17",
        ),
        ({"batch_metadata": {"k" * 65: "v"}}, ValueError, "keys have at most 64 characters, not 65"),
        ({"batch_metadata": {"k": "v" * 513}}, ValueError, "values have at most 512 characters, not 513"),
        ({"patience_seconds": 0}, ValueError, "patience_seconds must be more than 0 seconds"),
        ({"patience_seconds": -1.0}, ValueError, "patience_seconds must be more than 0 seconds"),
        ({"patience_seconds": INF}, ValueError, "patience_seconds must be .* finite, not inf"),
        ({"patience_seconds": NAN}, ValueError, "patience_seconds must be .* finite, not nan"),
        ({"patience_seconds": "1"}, TypeError, "patience_seconds must be a number of seconds, not '1'"),
        ({"patience_seconds": None}, TypeError, "patience_seconds must be a number of seconds, not None"),
        ({"patience_seconds": True}, TypeError, "patience_seconds must be a number of seconds, not True"),
        *(
            ({name: value}, error, f"{name} must be {said}")
            for name in ("max_active_batches", "max_enqueued_tokens")
            for value, error, said in [
                (0, ValueError, "1 or more, not 0"),
                (-5, ValueError, "1 or more, not -5"),
                (1.5, TypeError, "an int, not 1.5"),
                ("1", TypeError, "an int, not '1'"),
                (True, TypeError, "an int, not True"),
                (INF, TypeError, "an int, not inf"),
            ]
        ),
        *(
            (
                {"cancel_active_batches_on_close": value},
                TypeError,
                f"cancel_active_batches_on_close must be a bool, not {value!r}",
            )
            for value in (None, 1, 0, "yes")
        ),
        *(
            ({"progress": value}, TypeError, f"progress must be a bool, not {value!r}")
            for value in (None, 1, "yes")
        ),
    ],
)
def test_a_senseless_value_is_refused(bad: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        construct(**bad)


@pytest.mark.parametrize(
    "good",
    [
        {},
        {"batch_size": 1},
        {"batch_size": 10**6},
        {"batch_window_seconds": 0},
        {"batch_window_seconds": 3600},
        {"poll_interval_seconds": 0.001},
        {"completion_window": "1h"},
        {"batch_metadata": None},
        {"batch_metadata": {}},
        {"batch_metadata": {f"{i:064}": "v" * 512 for i in range(16)}},
        {"patience_seconds": 0.001},
        {"patience_seconds": 10**9},
        {"max_active_batches": None, "max_enqueued_tokens": None},
        {"max_active_batches": 1, "max_enqueued_tokens": 1},
        {"max_active_batches": 10**9, "max_enqueued_tokens": 10**12},
        {"cancel_active_batches_on_close": True},
        {"cancel_active_batches_on_close": False},
        {"progress": True},
        {"progress": False},
    ],
)
def test_a_value_at_the_edge_of_sense_is_taken(good: dict[str, Any]) -> None:
    assert not construct(**good).is_closed()


def test_a_copy_is_checked_too() -> None:
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        construct().copy(_extra_kwargs={"batch_size": 0})
