"""A writer that goes on after errors, and keeps a record, outside the workspace, of what was acknowledged to it.

`python -m tests.hosts.writer DIRECTORY RECORD SEED` writes until SIGTERM, or until the mount is gone. The record is one that
`tests.mount.acknowledged.lost` judges, with a line for each operation that failed: `failed ERRNO SECONDS`.
"""

import errno
import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Final

SIZES: Final = (0, 1, 100, 5_000, 40_000, 200_000)
"""Bytes of a body: inline, and in segments."""

GONE: Final = (errno.ENOTCONN, errno.ECONNABORTED)
"""What a mount answers whose daemon ended."""

REST_SECONDS: Final = 0.05
"""A rest after a failure, which the next attempt may share."""


class Writer:
    """Makes, replaces and appends, with names that no writer of another seed uses."""

    def __init__(self, directory: str, record: str, seed: int) -> None:
        self._directory = directory
        self._seed = seed
        self._source = random.Random(seed)
        self._number = 0
        self._made: list[str] = []
        self._record = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.ends = False

    def run(self) -> None:
        """Write until told to end, or until nobody answers any more."""
        while not self.ends:
            operation = self._source.choice([self._make, self._make, self._replace, self._append, self._append, self._mkdir])
            begun = time.monotonic()
            try:
                operation()
            except OSError as error:
                self._note("failed", error.errno, f"{time.monotonic() - begun:.3f}")
                if error.errno in GONE:
                    return
                time.sleep(REST_SECONDS)

    def _make(self) -> None:
        body, name = self._body(), f"f{self._seed}-{self._next()}"
        words = (name, hashlib.sha256(body).hexdigest(), len(body))
        self._note("begin", "new", *words)
        self._put(name, body, os.O_EXCL)
        self._note("done", "file", *words)
        self._made.append(name)

    def _replace(self) -> None:
        if not self._made:
            return
        body, name = self._body(), self._source.choice(self._made)
        words = (name, hashlib.sha256(body).hexdigest(), len(body))
        aside = f"aside{self._seed}"
        self._put(aside, body, os.O_TRUNC)
        self._note("begin", "file", *words)
        os.rename(f"{self._directory}/{aside}", f"{self._directory}/{name}")
        self._note("done", "file", *words)

    def _append(self) -> None:
        line = f"line{self._seed}-{self._next()} {'x' * self._source.randrange(1, 300)}"
        self._note("begin", "line", line)
        self._put("log", f"{line}\n".encode(), os.O_APPEND)
        self._note("done", "line", line)

    def _mkdir(self) -> None:
        name = f"d{self._seed}-{self._next()}"
        self._note("begin", "dir", name)
        os.mkdir(f"{self._directory}/{name}")
        self._note("done", "dir", name)

    def _put(self, name: str, body: bytes, flags: int) -> None:
        descriptor = os.open(f"{self._directory}/{name}", os.O_WRONLY | os.O_CREAT | flags, 0o644)
        try:
            view = memoryview(body)
            while view:
                view = view[os.write(descriptor, view) :]
            if self._source.random() < 0.3:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _body(self) -> bytes:
        return self._source.randbytes(self._source.choice(SIZES))

    def _next(self) -> int:
        """A number that was never used: what an operation that failed has left must not meet a later one."""
        self._number += 1
        return self._number

    def _note(self, *words: object) -> None:
        os.write(self._record, (" ".join(map(str, words)) + "\n").encode())


class Record:
    """What a writer's record says, to the test, while the writer writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._acknowledged = 0
        self._failures: list[tuple[int, float]] = []

    def acknowledged(self) -> int:
        """How many operations were acknowledged so far."""
        self._read_on()
        return self._acknowledged

    def failures(self) -> list[tuple[int, float]]:
        """The errno of each operation that failed so far, and the seconds that it took."""
        self._read_on()
        return self._failures

    def _read_on(self) -> None:
        """Take notice of what was written since: it is asked for often, and becomes long."""
        if not self.path.exists():
            return
        with self.path.open("rb") as record:
            record.seek(self._read)
            lines, _, _ = record.read().rpartition(b"\n")
        self._read += len(lines) + 1 if lines else 0
        for line in lines.decode().splitlines():
            kind, *rest = line.split(" ")
            self._acknowledged += kind == "done"
            if kind == "failed":
                self._failures.append((int(rest[0]), float(rest[1])))


def main(directory: str, record: str, seed: str) -> None:
    """Write until SIGTERM."""
    writer = Writer(directory, record, int(seed))

    def end(*_: object) -> None:
        writer.ends = True

    signal.signal(signal.SIGTERM, end)
    writer.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
