"""The batch workflow on files: what the command line does, as functions."""
