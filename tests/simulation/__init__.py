"""A deterministic simulator: the client on the embedded server, in virtual time, under faults drawn from a seed.

One seed is one world; `python -m tests.simulation --help` tells how worlds are run. `plan` draws what happens in a
world, and `world` puts it together; `faults` and `transport` do to HTTP calls what the plan has for them, `server` to
batches, `results` to the lines of result files, `stops` to runs of the program that has a journal. In some worlds
callers have deadlines, or want no second batch: what they are asked for in real time goes over the same wire. `ledger`
notes all that was done; `verdict`, with `rightful` for the callers' errors and `deadlines` for how long they waited,
says what was wrong with it; `mutants` are defects that it has to find.
"""
