"""What a journal's SQLite file holds, and each of the contract's operations as statements on it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Final, TypeVar

from agentfs.journal.contract import Record
from agentfs.model.errors import Corrupt, Stale
from agentfs.model.ids import Position

T = TypeVar("T", int, bytes)

FORMAT: Final = 1
"""The newest format of the file that this program reads and the one it writes."""

TABLES: Final = """
CREATE TABLE entries (position INTEGER PRIMARY KEY, payload BLOB NOT NULL);
CREATE TABLE beats (session INTEGER PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value);
"""
"""Under `meta`: `format`; `first`, the position of the journal's first entry, which is 1 where it is not said; and, once there
is a pointer, `pointer` and the position that it is for, `pointed`."""

_TRIM_STEP: Final = 1000


def append(db: sqlite3.Connection, payload: bytes) -> Position:
    """Put `payload` behind the last entry."""
    position = Position(tail(db) + 1)
    db.execute("INSERT INTO entries VALUES (?, ?)", (position, payload))
    return position


def entries(db: sqlite3.Connection, after: Position, limit_bytes: int) -> list[Record]:
    """What `Journal.read` returns. Raises Stale, and Corrupt where a position is missing."""
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
    if not records and after < (start := _before_first(db)):
        raise _gap(after, start + 1)
    return records


def is_little(db: sqlite3.Connection, after: Position, *, entries_max: int, bytes_max: int) -> bool:
    """Whether all that follows `after` is no more than so many entries with so many bytes. Payloads are not read for it."""
    query = "SELECT LENGTH(payload) FROM entries WHERE position > ? ORDER BY position LIMIT ?"
    sizes = [size for (size,) in db.execute(query, (after, entries_max + 1)).fetchall()]
    return len(sizes) <= entries_max and sum(sizes) <= bytes_max


def _gap(after: Position, first: int) -> Stale:
    return Stale(f"the journal was trimmed up to position {first - 1}, asked for what follows {after}")


def tail(db: sqlite3.Connection) -> Position:
    """The last entry's position, or the one in front of the first if there is none."""
    ((position,),) = db.execute("SELECT MAX(position) FROM entries").fetchall()
    return _before_first(db) if position is None else Position(position)


def _before_first(db: sqlite3.Connection) -> Position:
    return Position(_meta(db, "first", 1) - 1)


def _meta(db: sqlite3.Connection, key: str, missing: T) -> T:
    rows = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchall()
    if not rows:
        return missing
    ((value,),) = rows
    if not isinstance(value, type(missing)):
        raise Corrupt(f"the journal's {key} is not one")
    return value


def pointer(db: sqlite3.Connection) -> bytes:
    """The pointer, b"" if there is none."""
    return _meta(db, "pointer", b"")


def point(db: sqlite3.Connection, position: Position, text: bytes) -> None:
    """Replace the pointer unless it is for a later position."""
    if position >= _meta(db, "pointed", 0):
        db.execute("INSERT OR REPLACE INTO meta VALUES ('pointed', ?), ('pointer', ?)", (position, text))


def beats(db: sqlite3.Connection) -> dict[int, int]:
    """The heartbeat count of every session."""
    return dict(db.execute("SELECT session, count FROM beats").fetchall())


def beat(db: sqlite3.Connection, session: int) -> None:
    """Count a session's heartbeat up by one."""
    db.execute("INSERT INTO beats VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1", (session,))


def forget_beat(db: sqlite3.Connection, session: int) -> None:
    """Remove a session's heartbeat."""
    db.execute("DELETE FROM beats WHERE session = ?", (session,))


def trim_some(db: sqlite3.Connection, before: Position) -> bool:
    """Forget a bounded number of the oldest entries in front of `before`; whether there were any."""
    ((first, last),) = db.execute("SELECT MIN(position), MAX(position) FROM entries").fetchall()
    if first is None:
        return False
    end = min(before, last, first + _TRIM_STEP)
    return db.execute("DELETE FROM entries WHERE position < ?", (end,)).rowcount > 0


@contextmanager
def finished(db: sqlite3.Connection) -> Iterator[None]:
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
