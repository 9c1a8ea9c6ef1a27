"""A journal in one SQLite file that the processes of one host share: the embedded default."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final, TypeVar

import trio

from agentfs.journal import sqlite_file, sqlite_tables
from agentfs.journal.contract import FIRST, Record, check_pointer
from agentfs.journal.sqlite_bells import Bell, hang_bell, ring_bells
from agentfs.journal.sqlite_turn import Turn, open_turn
from agentfs.journal.sqlite_waiters import Waiters
from agentfs.model.errors import AgentfsError, Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import Runtime

IN_PLACE_SECONDS: Final = 500e-6
"""How long a small read or write may take, on the average of the last ones, to be made in the event loop itself."""

IN_PLACE_BYTES: Final = 64 << 10
"""What a small read or write carries at most."""

IN_PLACE_ENTRIES: Final = 16
"""How many entries a small read returns at most."""

_SPEED_WEIGHT: Final = 0.2
"""What the last read or write counts in the average."""

_NAME_BYTES: Final = 16
"""Randomness in the name of a bell."""

T = TypeVar("T")


def create_sqlite_journal(path: Path, *, first: Position = FIRST) -> None:
    """Make an empty journal at `path`, whose first entry will be at `first`, and nothing if that fails.

    Raises Exists for anything that stands there, NotFound without its directory, Denied, NoSpace, Unavailable.
    """
    sqlite_file.claim(path)
    try:
        with sqlite_file.translated(path), closing(sqlite_file.connect(path)) as db:
            sqlite_file.configure(db, path)
            meta = f"INSERT INTO meta VALUES ('format', {sqlite_tables.FORMAT}), ('first', {first});"
            db.executescript(f"BEGIN IMMEDIATE; {sqlite_tables.TABLES} {meta} COMMIT;")
    except BaseException:
        for part in ("", "-wal", "-shm"):
            Path(f"{path}{part}").unlink(missing_ok=True)
        raise


@asynccontextmanager
async def open_sqlite_journal(path: Path, *, runtime: Runtime) -> "AsyncIterator[SqliteJournal]":
    """The journal at `path`, closed on leaving.

    Raises NotFound, Denied, Invalid for a file that is not a journal or is in a newer format, Corrupt, Unavailable.
    """
    path = path.resolve()
    writer, reader = await runtime.in_thread(sqlite_file.open_both, path)
    try:
        turn = open_turn(path, runtime)
    except BaseException:
        writer.close()
        reader.close()
        raise
    journal = SqliteJournal(path, writer, reader, turn, runtime)
    try:
        yield journal
    finally:
        await journal.aclose()


class SqliteJournal:
    """The contract of `Journal` on an SQLite file in WAL mode with full synchronisation.

    One connection writes and another reads, so that reading never waits for a disk to synchronise. Whoever appends *rings* the
    bells of the others once its transaction can be seen, and wakes its own waiters itself: who is alone rings nothing and is
    woken by nothing. Watching SQLite's own writes would not do: it shows a commit to readers only after the last of them, in
    shared memory, of which inotify says nothing, so that a waiter could look too early and then never again.

    While they take little time on average, small reads and writes are made in the event loop: a thread costs more than they do.
    A connection is used by a thread only under its lock, and by the loop only while that is free, without an await in between.
    """

    def __init__(
        self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection, turn: Turn, runtime: Runtime
    ) -> None:
        self._path = path
        self._runtime = runtime
        self._turn = turn
        self._writer = writer
        self._writes = _Pace(runtime)
        self._writer_lock = trio.Lock()
        self._reader = reader
        self._reads = _Pace(runtime)
        self._reader_lock = trio.Lock()
        self._bell: Bell | None = None
        self._bell_lock = trio.Lock()
        self._waiters = Waiters()
        self._closed = False

    async def append(self, payload: bytes) -> Position:
        try:
            position = await self._write(lambda db: sqlite_tables.append(db, payload), size=len(payload), ring=True)
        except AgentfsError:
            # The entry may be in the journal all the same.
            self._waiters.wake_all()
            raise
        self._waiters.wake_passed(position)
        return position

    async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[Record]:
        await trio.lowlevel.checkpoint()
        if self._may_read_at_once() and self._read_now(lambda db: _is_little(db, after)):
            return self._read_now(lambda db: sqlite_tables.entries(db, after, limit_bytes))
        return await self._read_in_thread(lambda db: sqlite_tables.entries(db, after, limit_bytes))

    async def tail(self) -> Position:
        """As the contract has it. Must be fast: each `open` of a file asks. It may return without letting other tasks run."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._read(sqlite_tables.tail)

    def tail_at_once(self) -> Position | None:
        if not self._may_read_at_once():
            return None
        try:
            return self._read_now(sqlite_tables.tail)
        except AgentfsError:
            return None

    async def wait(self, after: Position) -> None:
        """As the contract has it. Raises Denied or NoSpace, too, where no file for the bell can be made beside the journal."""
        await trio.lowlevel.checkpoint()
        with self._waiters.joined(after) as waiter:
            while True:
                waiter.prepare()
                # Taken before the look: what is appended after the look rings it.
                bell = self._bell
                if await self.tail() > after:
                    return
                if bell is None or bell.lost:
                    await self._hang_bell(bell)
                else:
                    await self._waiters.sleep(waiter, bell)

    async def beat(self, session: int) -> None:
        await self._write(lambda db: sqlite_tables.beat(db, session))

    async def beats(self) -> dict[int, int]:
        await trio.lowlevel.checkpoint()
        return await self._read(sqlite_tables.beats)

    async def forget_beat(self, session: int) -> None:
        await self._write(lambda db: sqlite_tables.forget_beat(db, session))

    async def trim(self, before: Position) -> None:
        # In steps, so that appends need not wait for all of it.
        while await self._write(lambda db: sqlite_tables.trim_some(db, before), size=IN_PLACE_BYTES + 1):
            pass

    async def pointer(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return await self._read(sqlite_tables.pointer)

    async def point(self, position: Position, text: bytes) -> None:
        check_pointer(text)
        await self._write(lambda db: sqlite_tables.point(db, position, text), size=len(text))

    async def aclose(self) -> None:
        self._closed = True
        self._waiters.wake_all()
        with trio.CancelScope(shield=True):
            async with self._bell_lock, self._writer_lock, self._reader_lock:
                await self._runtime.in_thread(self._release)

    async def _write(self, function: Callable[[sqlite3.Connection], T], *, size: int = 0, ring: bool = False) -> T:
        async with self._writer_lock:
            self._refuse_when_closed()
            # Two threads waking each other cost more than a fast disk's synchronisation; a slow one must not hold up the loop.
            if size <= IN_PLACE_BYTES and self._writes.are_fast and self._turn.take_soon():
                try:
                    if self._begin_at_once():
                        return self._finish(function, ring)
                finally:
                    self._turn.end()
            return await self._runtime.in_thread(self._take_turn, function, ring)

    def _begin_at_once(self) -> bool:
        """Begin a transaction if nobody is in one, out of turn; errors of any other kind are left to the next attempt."""
        try:
            self._writer.execute("PRAGMA busy_timeout = 0")
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            return False
        return True

    def _take_turn(self, function: Callable[[sqlite3.Connection], T], ring: bool) -> T:
        self._turn.take()
        try:
            with sqlite_file.translated(self._path):
                self._writer.execute(f"PRAGMA busy_timeout = {round(sqlite_file.BUSY_SECONDS * 1000)}")
                self._writer.execute("BEGIN IMMEDIATE")
            return self._finish(function, ring)
        finally:
            self._turn.end()

    def _finish(self, function: Callable[[sqlite3.Connection], T], ring: bool) -> T:
        """Finish the transaction that was begun, and tell the processes that wait."""
        begun = self._runtime.boottime()
        with sqlite_file.translated(self._path), sqlite_tables.finished(self._writer):
            result = function(self._writer)
        self._writes.count_since(begun)
        if ring:
            # The loop may replace the bell meanwhile; to ring one's own does no harm.
            own = self._bell
            ring_bells(self._path, but=None if own is None else own.name)
        return result

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """The result of a query that is small whatever the journal holds."""
        if self._may_read_at_once():
            return self._read_now(function)
        return await self._read_in_thread(function)

    async def _read_in_thread(self, function: Callable[[sqlite3.Connection], T]) -> T:
        async with self._reader_lock:
            self._refuse_when_closed()
            return await self._runtime.in_thread(self._read_now, function)

    def _may_read_at_once(self) -> bool:
        return not self._closed and not self._reader_lock.locked() and self._reads.are_fast

    def _read_now(self, function: Callable[[sqlite3.Connection], T]) -> T:
        begun = self._runtime.boottime()
        with sqlite_file.translated(self._path):
            result = function(self._reader)
        self._reads.count_since(begun)
        return result

    async def _hang_bell(self, missing: Bell | None) -> None:
        """Replace a bell that is missing or lost, unless another task just did."""
        async with self._bell_lock:
            self._refuse_when_closed()
            if self._bell is missing:
                self._take_down_bell()
                self._bell = await self._runtime.in_thread(lambda: hang_bell(self._path, new_name=self._new_name))

    def _take_down_bell(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            # Whoever listens lets go of it first.
            self._waiters.wake_all()
            bell.take_down()

    def _new_name(self) -> str:
        return self._runtime.random_bytes(_NAME_BYTES).hex()

    def _release(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.take_down()
        self._reader.close()
        self._writer.close()
        self._turn.close()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Unavailable(f"the journal {self._path} is closed")


class _Pace:
    """How fast a connection lately was. The first use counts as slow: nobody knows the disk yet."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._average_seconds = IN_PLACE_SECONDS

    @property
    def are_fast(self) -> bool:
        return self._average_seconds < IN_PLACE_SECONDS

    def count_since(self, begun: float) -> None:
        """Count something that began at `begun` on the runtime's boottime and ended now."""
        taken_seconds = self._runtime.boottime() - begun
        self._average_seconds += (taken_seconds - self._average_seconds) * _SPEED_WEIGHT


def _is_little(db: sqlite3.Connection, after: Position) -> bool:
    return sqlite_tables.is_little(db, after, entries_max=IN_PLACE_ENTRIES, bytes_max=IN_PLACE_BYTES)
