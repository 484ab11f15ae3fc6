"""`python -m autobatcher` is the command `autobatcher`."""

from autobatcher.cli import main

main()
