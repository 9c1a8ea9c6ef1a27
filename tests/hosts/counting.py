"""Processes that add one to a number in a file, each time under a lock, and record outside the workspace what was acknowledged.

`python -m tests.hosts.counting FILE RECORD ROUNDS` ends after so many rounds, or with the first error.
"""

import fcntl
import os
import sys
from pathlib import Path


def count(path: str, record: str, rounds: int) -> None:
    """Add one, `rounds` times; a round counts when the lock was given back without an error."""
    descriptor = os.open(path, os.O_RDWR)
    notes = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for _ in range(rounds):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        number = int(os.pread(descriptor, 100, 0))
        assert os.pwrite(descriptor, b"%d" % (number + 1), 0)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.write(notes, b"+")


def counted(record: Path) -> int:
    """How many rounds were acknowledged so far."""
    return record.stat().st_size if record.exists() else 0


if __name__ == "__main__":
    count(sys.argv[1], sys.argv[2], int(sys.argv[3]))
