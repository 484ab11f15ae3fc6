"""One program for each contestant; each runs in its own process and virtual environment.

They run with `benchmarks/` as their directory, so that `import autobatcher` finds what is installed there, and not
this checkout.
"""
