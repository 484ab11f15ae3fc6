"""Decisions only: no clock, randomness, I/O, event loop or SDK is known in here."""
