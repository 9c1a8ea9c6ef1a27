"""Says what is wrong in a mount by writers' records.

`python -m tests.hosts.judge DIRECTORY RECORD…` prints a line for each fault. It takes a lock first, after which a mount shows
all that was done before anywhere (S55). Run it when nobody writes.
"""

import fcntl
import os
import sys
from collections import Counter
from pathlib import Path

from tests.mount.acknowledged import lost

LOCK = ".judge"


def faults(directory: Path, records: list[Path]) -> list[str]:
    """What was acknowledged and is not there, and lines that are there twice."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        found = [f"{record.name}: {fault}" for record in records if record.exists() for fault in lost(directory, record)]
        log = directory / "log"
        lines = Counter(log.read_text().splitlines() if log.exists() else [])
        return found + [f"{count} times: {line[:40]}" for line, count in lines.items() if count > 1]
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    for fault in faults(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]]):
        print(fault)
