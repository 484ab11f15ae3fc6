"""A deterministic simulator: the client on the embedded server, in virtual time, under faults drawn from a seed.

One seed is one world; `python -m tests.simulation --help` tells how worlds are run. `plan` draws what happens in a
world, and `world` puts it together; `faults` and `transport` do to HTTP calls what the plan has for them, `server` to
batches, `results` to the lines of result files, `stops` to runs of the program that has a journal. `ledger` notes all that was done; `verdict`, with `rightful` for the
callers' errors, says what was wrong with it; `mutants` are defects that it has to find.
"""
