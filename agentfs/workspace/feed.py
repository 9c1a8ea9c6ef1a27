"""The change feed: the events of a workspace behind a place in its journal, read by a process that mounts nothing."""

import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentfs.journal.contract import Journal, Record
from agentfs.model.codec import decode_entry
from agentfs.model.errors import Corrupt, Invalid, NoSpace, Stale
from agentfs.model.ids import Position
from agentfs.state.apply import apply_entry
from agentfs.state.checkpoint import CheckpointKey
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.beginning import Beginning, read_beginning
from agentfs.workspace.events import Event, events_of
from agentfs.workspace.fetching import FetchChosen

READ_BYTES: Final = 1 << 20
"""What one read of the journal brings at most, and so how many events are in memory at once; one entry may be longer."""

BEHIND_MAX: Final = 8192
"""Inodes written behind before they are written: a bound on memory."""

ALL: Final = sys.maxsize
"""The index of a place behind all events of its position."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in the feed: behind the event of that index of the entry at that position. Places are ordered."""

    position: Position
    index: int = ALL


BEGINNING: Final = Place(Position(0))

Report = Callable[[int, int], None]
"""Told how many entries of how many were passed over."""


@asynccontextmanager
async def open_feed(journal: Journal, after: Place | None, fetch: FetchChosen | None = None) -> "AsyncIterator[Feed]":
    """The feed behind `after`, or behind the journal's end as it is now.

    With `fetch` it begins with a checkpoint, where there is one that is old enough; what was trimmed is left out of BEGINNING.
    Raises Invalid for a place that the journal has not reached, NoSpace, and what the journal raises.
    """
    tail = await journal.tail()
    start = Place(tail) if after is None else after
    if start.position > tail:
        raise Invalid(f"position {start.position} is not reached yet: the journal ends at {tail}")
    beginning = await read_beginning(journal)
    tables = await _open_private_tables(beginning, start, fetch)
    try:
        yield Feed(tables, journal, start, tail, None if beginning is None else beginning.position)
    finally:
        tables.close()


class Feed:
    """Reads the journal from its beginning or a checkpoint, which it takes to know paths, over a State of its own.

    `open_feed` makes it. `kept` is a position from which on the feed can be read though entries were trimmed.

    Every method raises Stale when entries that it needs were trimmed away, Corrupt for a damaged journal, and NoSpace where
    the directory for temporary files is full.
    """

    def __init__(self, tables: Tables, journal: Journal, after: Place, tail: Position, kept: Position | None) -> None:
        self._tables = tables
        self._journal = journal
        self._after = after
        self._kept = kept
        self.tail = tail

    @property
    def position(self) -> Position:
        """The last entry whose events were returned, or passed over."""
        return self._tables.position

    async def pass_over(self, report: Report) -> None:
        """Replay the entries that no event is wanted of. `read` would do it, too, but more slowly and without a word."""
        last = Position(self._after.position - (self._after.index < ALL))
        while self.position < last:
            for record in await self._records():
                if record.position <= last:
                    with _on_disk():
                        apply_entry(self._tables, decode_entry(record.payload), record.position)
                        self._settle()
            report(self.position, last)

    async def read(self) -> list[Event]:
        """The events of the next entries, as many as one read brings; none at the journal's end, but not only there."""
        found: list[Event] = []
        for record in await self._records():
            with _on_disk():
                events = events_of(self._tables, decode_entry(record.payload), record.position)
                self._settle()
            found += [event for event in events if Place(event.position, event.index) > self._after]
        return found

    async def wait(self) -> None:
        """Return once there is more to read."""
        await self._journal.wait(self.position)

    async def _records(self) -> list[Record]:
        try:
            records = await self._journal.read(self.position, limit_bytes=READ_BYTES)
        except Stale as error:
            begin = "" if self._kept is None else f"; it can begin behind position {self._kept}"
            raise Stale(f"the feed needs entries that are not kept any more: {error}{begin}") from error
        if records and records[0].position != self.position + 1:
            raise Corrupt(f"the journal has a gap: entry {records[0].position} follows {self.position}")
        return records

    def _settle(self) -> None:
        self._tables.settle()
        self._tables.touched_leases.clear()
        if self._tables.behind > BEHIND_MAX:
            self._tables.flush()


async def _open_private_tables(beginning: Beginning | None, start: Place, fetch: FetchChosen | None) -> Tables:
    """An empty State, or one that is in front of `start`, in a file that is nameless, so that nothing is left of it.

    It is never saved: SQLite keeps one transaction open, which goes to disk beyond the size of its cache.
    """

    trimmed = beginning is not None and beginning.first > 1

    def in_front(found: list[CheckpointKey]) -> list[CheckpointKey]:
        last = start.position - (start.index < ALL)
        return [key for key in reversed(found) if key.position <= last]

    def oldest(found: list[CheckpointKey]) -> list[CheckpointKey]:
        return [key for key in found if beginning is not None and key.position >= beginning.first - 1]

    with tempfile.TemporaryDirectory(prefix="agentfs-events-") as directory, _on_disk():
        path, tables = Path(directory) / "state.sqlite", None
        if beginning is not None and fetch is not None and (start.position or trimmed):
            tables = await fetch(path, beginning, in_front if start.position else oldest)
        return tables or open_tables(path)


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        where = tempfile.gettempdir()
        raise NoSpace(f"{where}: the feed's State cannot be kept there ({error}): make room, or set TMPDIR") from error
