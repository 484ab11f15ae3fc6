"""Tests of the journal; `python -m tests.journal.kill` kills a program as often as it is told."""
