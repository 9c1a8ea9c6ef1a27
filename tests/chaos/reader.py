"""One reader: reads files that have one right content, all of them or a part, and compares.

Content is close-to-open, so what was acknowledged before `open` must be there. New names are pushed to other mounts (see
docs/consistency.md): there they may be late by a moment.
"""

import os
import random
import time
from pathlib import Path
from typing import Final

from tests.chaos.ledger import Fact, Ledger

PART_SHARE: Final = 0.5
"""Of its reads, those of a part of a file."""

PART_SIZES: Final = (1, 4096, 200_000)

WHOLE: Final = slice(0, None)


class Reader:
    """One thread's reading: files that have one right content, all of it or a part."""

    def __init__(self, ledger: Ledger, root: Path, source: random.Random, *, name_lag_seconds: float) -> None:
        self._ledger = ledger
        self._root = root
        self._name_lag_seconds = name_lag_seconds
        self._source = source

    def step(self) -> str | None:
        """One read: what was wrong about it, "" if nothing was, None if that cannot be said.

        Raises OSError if it is refused.
        """
        picked = self._ledger.pick(self._source)
        if picked is None:
            return None
        path, fact = picked
        wanted, part = fact.outcomes[0], WHOLE
        assert wanted is not None
        if self._source.random() < PART_SHARE:
            start = self._source.randrange(len(wanted) + 1)
            part = slice(start, start + self._source.choice(PART_SIZES))
        try:
            self._wait_for_name(path, fact)
            found = read(self._root / path, part)
        except OSError:
            if self._ledger.fact(path) is fact:
                raise
            return None
        if self._ledger.fact(path) is not fact:
            return None  # It was changed meanwhile: what is right depends on who came first.
        return "" if found == wanted[part] else f"{path} {part}: {unlike(Fact((wanted[part],)), found)}"

    def _wait_for_name(self, path: str, fact: Fact) -> None:
        late_at = time.monotonic() + self._name_lag_seconds
        while time.monotonic() < late_at and self._ledger.fact(path) is fact and not (self._root / path).exists():
            time.sleep(0.01)


def content(path: Path) -> bytes | None:
    """What a file holds; None if it is not there."""
    try:
        return read(path)
    except FileNotFoundError:
        return None


def read(path: Path, part: slice = WHOLE) -> bytes:
    """A part of a file, asked of the mount and not of the pages that the kernel keeps."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        at, end = part.start, os.fstat(descriptor).st_size if part.stop is None else part.stop
        found = bytearray()
        while piece := os.pread(descriptor, end - at, at):
            found += piece
            at += len(piece)
        return bytes(found)
    finally:
        os.close(descriptor)


def unlike(fact: Fact, found: bytes | None) -> str:
    """How what was found differs from all that would have been right."""
    if found is None:
        return "it is not there"
    wanted = [outcome for outcome in fact.outcomes if outcome is not None]
    for outcome in wanted:
        if len(outcome) == len(found):
            at = next(index for index, (one, other) in enumerate(zip(outcome, found, strict=True)) if one != other)
            return f"other bytes from {at} of {len(found)}: {found[at : at + 16]!r} for {outcome[at : at + 16]!r}"
    return f"{len(found)} bytes, should be {[len(outcome) for outcome in wanted]}"
