"""Measurements against named peers and against the machine's own limit, in one run; `tools/bench.py` is the command."""
