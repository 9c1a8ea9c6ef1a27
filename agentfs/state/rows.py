"""What all of State's row verbs stand on: the SQLite file's connection, how changes are taken back, and the counters."""

import sqlite3
from collections.abc import Callable
from typing import Any, NewType

from agentfs.model.ids import Position

Undo = list[tuple[Callable[..., object], tuple[Any, ...]]]
"""Calls that take row changes back, to be made in reverse."""

Mark = NewType("Mark", int)

_COUNTERS = ("position", "cookie", "session", "segment", "inodes", "bytes", "inline", "collected")


class Rows:
    """A verb that changes a row adds to the undo list how to take that back."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._undo: Undo = []
        self.counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self.counters.update(db.execute("SELECT name, value FROM counters"))

    # ---- taking back

    def mark(self) -> Mark:
        """A place to `revert` to."""
        return Mark(len(self._undo))

    def revert(self, mark: Mark) -> None:
        """Take back every row change made since `mark`."""
        self.take_back(self.cut(mark))

    def cut(self, mark: Mark) -> Undo:
        """Hand out how to take back what was done since `mark`; from now on that is the caller's business."""
        undo = self._undo[mark:]
        del self._undo[mark:]
        return undo

    def take_back(self, undo: Undo) -> None:
        """Make the calls of `undo`, last change first. They are not recorded again."""
        for call, arguments in reversed(undo):
            call(*arguments)

    def settle(self) -> None:
        """Forget how to take back: what was done is committed."""
        self._undo.clear()

    # ---- counters

    @property
    def position(self) -> Position:
        """The last entry whose effects are all here."""
        return Position(self.counters["position"])

    def count(self, name: str, by: int) -> int:
        """Add to a counter and return its new value."""
        old = self.counters[name]
        self._undo.append((self.counters.__setitem__, (name, old)))
        self.counters[name] = old + by
        return old + by
