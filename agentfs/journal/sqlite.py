"""A journal in one SQLite file that the processes of one host share: the embedded default."""

import errno
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

import trio
from watchdog.events import FileClosedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers.inotify import InotifyObserver

from agentfs.journal.contract import Record
from agentfs.model.errors import AgentfsError, Corrupt, Denied, Exists, Invalid, NoSpace, NotFound, Stale, Unavailable
from agentfs.model.ids import Position
from agentfs.runtime import Runtime

FORMAT: Final = 1
"""The newest format of the file that this program reads and the one it writes."""

IN_PLACE_SECONDS: Final = 500e-6
"""How long a small write may take, on the average of the last ones, to be made in the event loop itself."""

IN_PLACE_BYTES: Final = 64 << 10
"""What a small write carries at most."""

_SPEED_WEIGHT: Final = 0.2
"""What the last write counts in the average."""

BUSY_SECONDS: Final = 10.0
"""How long an append waits for other processes' appends before it gives up."""

TABLES: Final = """
CREATE TABLE entries (position INTEGER PRIMARY KEY, payload BLOB NOT NULL);
CREATE TABLE beats (session INTEGER PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value);
"""

_WAL_MAX_BYTES: Final = 64 << 20
_TRIM_STEP: Final = 1000
_PROBE_BYTES: Final = 256 << 10

T = TypeVar("T")


def create_sqlite_journal(path: Path) -> None:
    """Make an empty journal at `path`, and nothing if that fails.

    Raises Exists for anything that stands there, NotFound without its directory, Denied, NoSpace, Unavailable.
    """
    _claim(path)
    try:
        with _translated(path), closing(_connect(path)) as db:
            _configure(db, path)
            db.executescript(f"BEGIN IMMEDIATE; {TABLES} INSERT INTO meta VALUES ('format', {FORMAT}); COMMIT;")
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
    writer, reader = await runtime.in_thread(_open_both, path)
    journal = SqliteJournal(path, writer, reader, runtime)
    try:
        yield journal
    finally:
        await journal.aclose()


class SqliteJournal:
    """The contract of `Journal` on an SQLite file in WAL mode with full synchronisation.

    One connection writes and another reads, so that reading never waits for a disk to synchronise. Whoever writes *rings*
    once its transaction can be seen: it opens and closes the WAL file for writing, without a change, and inotify tells
    every process that waits. Watching the writes themselves would not do: SQLite shows a commit to readers only after the
    last of them, in shared memory, of which inotify says nothing, so that a waiter could look too early and then never again.
    """

    def __init__(self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection, runtime: Runtime) -> None:
        self._path = path
        self._wal = Path(f"{path}-wal")
        self._runtime = runtime
        self._writer = writer
        self._write_seconds = IN_PLACE_SECONDS
        self._writer_lock = trio.Lock()
        self._reader = reader
        self._reader_lock = trio.Lock()
        self._observer: InotifyObserver | None = None
        self._observer_lock = trio.Lock()
        self._news = trio.Event()
        self._closed = False

    async def append(self, payload: bytes) -> Position:
        position = await self._write(lambda db: _append(db, payload), size=len(payload))
        self._wake()
        return position

    async def read(self, after: Position, *, limit_bytes: int = 4 << 20) -> list[Record]:
        return await self._read(lambda db: _records(db, after, limit_bytes))

    async def tail(self) -> Position:
        return await self._read(_tail)

    async def wait(self, after: Position) -> None:
        await self._watch()
        while True:
            # Taken before the look: what is appended after the look sets it.
            news = self._news
            if await self.tail() > after:
                return
            await news.wait()

    async def beat(self, session: int) -> None:
        await self._write(lambda db: _beat(db, session))

    async def beats(self) -> dict[int, int]:
        return await self._read(lambda db: dict(db.execute("SELECT session, count FROM beats").fetchall()))

    async def forget_beat(self, session: int) -> None:
        await self._write(lambda db: _forget_beat(db, session))

    async def trim(self, before: Position) -> None:
        # In steps, so that appends need not wait for all of it.
        while await self._write(lambda db: _trim_some(db, before), size=IN_PLACE_BYTES + 1):
            pass

    async def aclose(self) -> None:
        self._closed = True
        self._wake()
        with trio.CancelScope(shield=True):
            async with self._observer_lock, self._writer_lock, self._reader_lock:
                await self._runtime.in_thread(self._release)

    async def _write(self, function: Callable[[sqlite3.Connection], T], *, size: int = 0) -> T:
        async with self._writer_lock:
            self._refuse_when_closed()
            # Two threads waking each other cost more than a fast disk's synchronisation; a slow one must not hold up the loop.
            if size <= IN_PLACE_BYTES and self._write_seconds < IN_PLACE_SECONDS and self._begin_at_once():
                return self._write_and_ring(function)
            return await self._runtime.in_thread(self._begin_and_write, function)

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        async with self._reader_lock:
            self._refuse_when_closed()
            return await self._runtime.in_thread(self._read_now, function)

    def _begin_at_once(self) -> bool:
        """Begin a transaction if no other process is in one; errors of any other kind are left to the next attempt."""
        try:
            self._writer.execute("PRAGMA busy_timeout = 0")
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            return False
        return True

    def _begin_and_write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with _translated(self._path):
            self._writer.execute(f"PRAGMA busy_timeout = {round(BUSY_SECONDS * 1000)}")
            self._writer.execute("BEGIN IMMEDIATE")
        return self._write_and_ring(function)

    def _write_and_ring(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Finish the transaction that was begun, and tell every process."""
        begun = self._runtime.boottime()
        with _translated(self._path), _finished(self._writer):
            result = function(self._writer)
        taken = self._runtime.boottime() - begun
        self._write_seconds += (taken - self._write_seconds) * _SPEED_WEIGHT
        try:
            os.close(os.open(self._wal, os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            # Committed, but others may not hear of it: whoever sends it again rings again.
            raise Unavailable(f"cannot announce a change of the journal {self._path}: {error.strerror}") from error
        return result

    def _read_now(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with _translated(self._path):
            return function(self._reader)

    async def _watch(self) -> None:
        async with self._observer_lock:
            self._refuse_when_closed()
            if self._observer is None:
                ears = _Ears(self._path, trio.lowlevel.current_trio_token(), self._wake)
                self._observer = await self._runtime.in_thread(_start_observer, self._path, ears)

    def _release(self) -> None:
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()
        self._reader.close()
        self._writer.close()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise Unavailable(f"the journal {self._path} is closed")


class _Ears(FileSystemEventHandler):
    """Hears, in the observer's thread, that a process closed the database or its WAL file after writing."""

    def __init__(self, path: Path, token: trio.lowlevel.TrioToken, wake: Callable[[], None]) -> None:
        self._names = {path.name, f"{path.name}-wal"}
        self._token = token
        self._wake = wake

    def on_closed(self, event: FileSystemEvent) -> None:
        if os.path.basename(os.fsdecode(event.src_path)) in self._names:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake, idempotent=True)


def _start_observer(path: Path, ears: _Ears) -> InotifyObserver:
    """An observer of the journal's directory that is already listening."""
    observer = InotifyObserver()
    try:
        observer.schedule(ears, str(path.parent), event_filter=[FileClosedEvent])
        observer.start()
    except OSError as error:
        raise Unavailable(f"cannot watch {path.parent} for changes (inotify): {error.strerror}") from error
    return observer


def _append(db: sqlite3.Connection, payload: bytes) -> Position:
    position = Position(_tail(db) + 1)
    db.execute("INSERT INTO entries VALUES (?, ?)", (position, payload))
    return position


def _records(db: sqlite3.Connection, after: Position, limit_bytes: int) -> list[Record]:
    records: list[Record] = []
    size = 0
    # The cursor is closed when enough is read: an open one would keep the WAL file from being reused.
    with closing(db.execute("SELECT position, payload FROM entries WHERE position > ? ORDER BY position", (after,))) as rows:
        for position, payload in rows:
            size += len(payload)
            if records and size > limit_bytes:
                break
            expected = after + len(records) + 1
            if position != expected:
                raise _gap(after, position) if not records else Corrupt(f"the journal lacks position {expected}")
            records.append(Record(Position(position), payload))
    return records


def _gap(after: Position, first: int) -> Stale:
    return Stale(f"the journal was trimmed up to position {first - 1}, asked for what follows {after}")


def _tail(db: sqlite3.Connection) -> Position:
    ((position,),) = db.execute("SELECT MAX(position) FROM entries").fetchall()
    return Position(position or 0)


def _beat(db: sqlite3.Connection, session: int) -> None:
    db.execute("INSERT INTO beats VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1", (session,))


def _forget_beat(db: sqlite3.Connection, session: int) -> None:
    db.execute("DELETE FROM beats WHERE session = ?", (session,))


def _trim_some(db: sqlite3.Connection, before: Position) -> bool:
    """Forget a bounded number of the oldest entries in front of `before`; whether there were any."""
    ((first, last),) = db.execute("SELECT MIN(position), MAX(position) FROM entries").fetchall()
    if first is None:
        return False
    end = min(before, last, first + _TRIM_STEP)
    return db.execute("DELETE FROM entries WHERE position < ?", (end,)).rowcount > 0


@contextmanager
def _finished(db: sqlite3.Connection) -> Iterator[None]:
    """All of the transaction that was begun or nothing; whatever fails, the connection can begin another."""
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # Some errors have rolled back already, and an error of the rollback would hide the first one.
        with suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


def _claim(path: Path) -> None:
    """Create `path` as an empty file."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
    except FileExistsError as error:
        raise Exists(f"{path} already exists") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"there is no directory {path.parent} for the journal") from error
    except PermissionError as error:
        raise Denied(f"no permission to create {path}") from error
    except OSError as error:
        raise Unavailable(f"cannot create {path}: {error.strerror}") from error


def _open_both(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """A connection for writing and one for reading, to a file that is known to be a journal."""
    if not path.exists():
        raise NotFound(f"there is no journal at {path}")
    if not path.is_file():
        raise Invalid(f"{path} is not a journal: it is not a file")
    if not os.access(path, os.R_OK | os.W_OK):
        raise Denied(f"no permission to read and write the journal {path}")
    writer = _open(path)
    try:
        return writer, _open(path)
    except BaseException:
        writer.close()
        raise


def _open(path: Path) -> sqlite3.Connection:
    with _translated(path):
        db = _connect(path)
        try:
            _check_format(db, path)
            _configure(db, path)
        except BaseException:
            db.close()
            raise
        return db


def _connect(path: Path) -> sqlite3.Connection:
    """A connection to an existing file, in which transactions are explicit."""
    uri = f"file:{quote(os.fsencode(path.absolute()))}?mode=rw"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _configure(db: sqlite3.Connection, path: Path) -> None:
    """Let reading go on beside writing, and a commit survive a power cut."""
    ((mode,),) = db.execute("PRAGMA journal_mode = WAL").fetchall()
    if mode != "wal":
        raise Invalid(f"the filesystem of {path} cannot hold a journal that processes share: use one on a local disk")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA journal_size_limit = {_WAL_MAX_BYTES}")


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    try:
        rows = db.execute("SELECT value FROM meta WHERE key = 'format'").fetchall()
    except sqlite3.DatabaseError as error:
        # Of another kind of file SQLite says NOTADB, of another kind of database ERROR: no such table or column.
        if _primary_code(error) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise Invalid(f"{path} is not an agentfs journal: {error}") from error
        raise
    if len(rows) != 1 or not isinstance(rows[0][0], int):
        raise Invalid(f"{path} is not an agentfs journal: it states no format")
    if rows[0][0] > FORMAT:
        raise Invalid(f"the journal {path} is in format {rows[0][0]}, this program reads up to {FORMAT}: upgrade agentfs")


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into the contract's."""
    try:
        yield
    except sqlite3.Error as error:
        translated = _translate(error, path)
        if translated is None:
            raise
        raise translated from error


def _translate(error: sqlite3.Error, path: Path) -> AgentfsError | None:
    """The error to raise instead; None for what only a bug in this program can cause."""
    match _primary_code(error):
        case sqlite3.SQLITE_FULL:
            return NoSpace(f"no space left for the journal {path}")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if _disk_is_full(path):
            # SQLite says FULL when a write finds no space, but not when its shared memory or a quota does.
            return NoSpace(f"no space left for the journal {path}")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return Corrupt(f"the journal {path} is damaged: {error}")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"the journal {path} is busy: {error}")
    if isinstance(error, sqlite3.OperationalError):
        return Unavailable(f"the journal {path} does not answer: {error}")
    return None


def _primary_code(error: sqlite3.Error) -> int:
    # The low byte is the kind, the rest its details. Errors of Python's own module have no code.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _disk_is_full(path: Path) -> bool:
    """Whether a small file beside `path` finds no room: the only question that also covers quotas and reserved blocks."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return False
