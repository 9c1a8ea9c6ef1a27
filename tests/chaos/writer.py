"""One writer: makes, replaces, overwrites, appends to, moves and removes files, and tells the ledger."""

import itertools
import os
import random
from pathlib import Path
from typing import Final

from tests.chaos.ledger import Ledger

FILES_MAX: Final = 24
"""Files of one writer; then it removes one for each that it makes."""

NEW_SHARE: Final = 0.3
"""Of its operations, those that make a file."""

SIZES: Final = (100, 3_000, 30_000, 30_000, 100_000, 100_000, 300_000, 4_000_000)
"""Bytes, less up to half, of what is written: inline, in a segment with others, and in several chunks of one's own."""

ONE_REQUEST: Final = 100_000
"""Bytes that the kernel sends in one request, so that a reader sees all or nothing of them."""


class Writer:
    """One thread's writing; no other changes its files."""

    def __init__(self, ledger: Ledger, root: Path, name: str, source: random.Random) -> None:
        self._ledger = ledger
        self._root = root
        self._name = name
        self._source = source
        self._numbers = itertools.count()
        self._aside = f"{name}/aside"

    def step(self) -> None:
        """One operation, which was acknowledged when it returns; raises OSError if it is refused."""
        mine = [path for path in self._ledger.paths() if path.startswith(f"{self._name}/")]
        known = [(path, fact.outcomes[0]) for path in mine if (fact := self._ledger.fact(path)) and fact.settled]
        if len(mine) >= FILES_MAX:
            self._remove(self._source.choice(mine))
            return
        path, before = self._source.choice(known) if known else ("", None)
        if before is None or self._source.random() < NEW_SHARE:
            self._make()
        else:
            self._source.choice([self._replace, self._overwrite, self._append, self._move])(path, before)

    def _make(self) -> None:
        path, body = self._new_name(), self._body()
        self._ledger.begin(path, body, whole=False)
        self._put(path, body, os.O_CREAT | os.O_EXCL)
        self._ledger.done(path, body)

    def _replace(self, path: str, _: bytes) -> None:
        body = self._body()
        self._put(self._aside, body, os.O_CREAT | os.O_TRUNC)
        self._ledger.begin(path, body)
        os.rename(self._root / self._aside, self._root / path)
        self._ledger.done(path, body)

    def _overwrite(self, path: str, before: bytes) -> None:
        piece, at = self._body(), self._source.randrange(len(before) + 1)
        after = before[:at] + piece + before[at + len(piece) :]
        self._ledger.begin(path, after, whole=False)
        descriptor = os.open(self._root / path, os.O_WRONLY)
        try:
            _write_all(descriptor, piece, at)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._ledger.done(path, after)

    def _append(self, path: str, before: bytes) -> None:
        body = self._body()[:ONE_REQUEST]
        after = before + body
        self._ledger.begin(path, after)
        self._put(path, body, os.O_APPEND)
        self._ledger.done(path, after)

    def _move(self, path: str, before: bytes) -> None:
        to = self._new_name()
        self._ledger.begin(to, before)
        self._ledger.begin(path, None)
        os.rename(self._root / path, self._root / to)
        self._ledger.done(to, before)
        self._ledger.forget(path)

    def _remove(self, path: str) -> None:
        self._ledger.begin(path, None)
        (self._root / path).unlink(missing_ok=True)
        self._ledger.forget(path)

    def _put(self, path: str, body: bytes, flags: int) -> None:
        descriptor = os.open(self._root / path, os.O_WRONLY | flags, 0o644)
        try:
            _write_all(descriptor, body, 0)
        finally:
            os.close(descriptor)

    def _body(self) -> bytes:
        size = self._source.choice(SIZES)
        return self._source.randbytes(self._source.randint(size // 2, size))

    def _new_name(self) -> str:
        return f"{self._name}/f{next(self._numbers)}"


def _write_all(descriptor: int, body: bytes, at: int) -> None:
    written = 0
    while written < len(body):
        written += os.pwrite(descriptor, body[written:], at + written)
