"""What the processes of test_many_mounts.py do, several on each mount: races, records, counters behind other people's locks."""

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path


def create(path: str) -> None:
    """Create a file that must not exist."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def link(path: str) -> None:
    """Give the file `source` beside it another name, which must not exist."""
    os.link(os.path.join(os.path.dirname(path), "source"), path)


def symlink(path: str) -> None:
    """Make a symbolic link, whose name must not exist."""
    os.symlink("source", path)


def append(path: str, writer: str, records: int, *, reopen: bool) -> None:
    """Append records of different lengths, with or without closing the file after each."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(records):
        record = f"{writer} {number} {'x' * (number * 37 % 150)} end\n".encode()
        assert os.write(descriptor, record) == len(record)
        if reopen:
            os.close(descriptor)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.close(descriptor)


def write_pieces(path: str, first: int, step: int, pieces: int, size: int) -> None:
    """Write every `step`th piece of a file, from the `first`, and close it after each."""
    for number in range(first, pieces, step):
        descriptor = os.open(path, os.O_WRONLY)
        assert os.pwrite(descriptor, bytes([number % 256]) * size, number * size) == size
        os.close(descriptor)


def rename_about(directory: str, seed: int, rounds: int, names: int) -> int:
    """Rename files to free and taken names in no order; how many renames found their file."""
    source, done = random.Random(seed), 0
    for _ in range(rounds):
        old, new = source.sample(range(names), 2)
        try:
            os.rename(os.path.join(directory, str(old)), os.path.join(directory, str(new)))
            done += 1
        except FileNotFoundError:
            pass
    return done


def count_in_database(path: str, rounds: int) -> None:
    """Add one to the counter in an SQLite database, and a row for it."""
    database = sqlite3.connect(path, timeout=120, isolation_level=None)
    for _ in range(rounds):
        database.execute("BEGIN IMMEDIATE")
        (value,) = database.execute("SELECT value FROM counter").fetchone()
        database.execute("UPDATE counter SET value = ?", (value + 1,))
        database.execute("INSERT INTO log VALUES (?, randomblob(500))", (value + 1,))
        database.execute("COMMIT")
    database.close()


def count_with_filelock(path: str, rounds: int) -> None:
    """Add one to the number in a file, under a lock of the package filelock."""
    import filelock

    _count(path, rounds, lambda: filelock.FileLock(f"{path}.lock"))


def count_with_soft_filelock(path: str, rounds: int) -> None:
    """The same under its lock that is a file which only one can create."""
    import filelock

    _count(path, rounds, lambda: filelock.SoftFileLock(f"{path}.lock", poll_interval=0.002))


def count_with_portalocker(path: str, rounds: int) -> None:
    """The same under a lock of the package portalocker, on the file itself."""
    import portalocker

    for _ in range(rounds):
        with portalocker.Lock(path, "r+", flags=portalocker.LockFlags.EXCLUSIVE) as file:
            number = int(file.read())
            file.seek(0)
            file.write(str(number + 1))
            # portalocker unlocks before it closes.
            file.flush()


def _count(path: str, rounds: int, lock: Callable[[], object]) -> None:
    for _ in range(rounds):
        with lock():
            Path(path).write_text(str(int(Path(path).read_text()) + 1))
