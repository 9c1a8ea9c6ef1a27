"""The benchmark: how long things take in a mount, and beside it, in turn, in one run; scripts/bench runs it."""
