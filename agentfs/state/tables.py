"""State's rows: verbs that change one row and remember how to take it back, over an SQLite file.

The file holds exactly a committed position: changes gather in one open SQLite transaction, and `save` commits it only when
nothing is speculative. Inodes and sessions, which change often and are read by key alone, are written behind.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NewType

import msgspec
from cachetools import LRUCache

from agentfs.model.changes import Found
from agentfs.model.errors import Invalid
from agentfs.model.extents import Chunk, Extent
from agentfs.model.ids import Ino, Position, ReplicaId, SegmentId, SessionId
from agentfs.model.inode import Dentry, FileVersion, Inode
from agentfs.model.session import Session
from agentfs.state.schema import SCHEMA_VERSION, TABLES

Undo = list[tuple[Callable[..., object], tuple[Any, ...]]]
"""Calls that take row changes back, to be made in reverse."""

Mark = NewType("Mark", int)

SAVE_ROOM = 8 << 20
"""Bytes free on disk below which nothing is saved: more than one save ever writes."""

_INODES_CACHED = 32768
_NAMES_CACHED = 32768
_COUNTERS = ("position", "cookie", "session", "segment", "inodes", "bytes")
_EXTENT_COLUMNS = 'ino, "offset", length, segment, start, stored, raw, digest, skip, data'
_NO_CHUNK = Chunk(0, 0, 0, b"")


class Tables:
    """The row verbs. One thread owns it; nothing here waits."""

    def __init__(self, db: sqlite3.Connection, directory: Path | None) -> None:
        self.db = db
        self._directory = directory
        self._undo: Undo = []
        self._inodes: LRUCache[Ino, Inode] = LRUCache(_INODES_CACHED)
        self._inodes_behind: dict[Ino, Inode | None] = {}
        self._names: LRUCache[tuple[Ino, bytes], Dentry | None] = LRUCache(_NAMES_CACHED)
        self._sessions_behind: set[SessionId] = set()
        self.counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self.counters.update(db.execute("SELECT name, value FROM counters"))
        self.sessions: dict[SessionId, Session] = {row[0]: Session(*row) for row in db.execute("SELECT * FROM sessions")}
        self.orphans: dict[Ino, SessionId] = dict(db.execute("SELECT ino, session FROM orphans"))
        row = db.execute("SELECT found FROM workspace").fetchone()
        self.found: Found | None = msgspec.msgpack.decode(row[0], type=Found) if row else None
        db.execute("BEGIN")

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

    # ---- inodes

    def inode(self, ino: Ino) -> Inode | None:
        """The inode, or None. A hot path: one dictionary look-up where it was met before."""
        if ino in self._inodes_behind:
            return self._inodes_behind[ino]
        found = self._inodes.get(ino)
        if found is None:
            row = self.db.execute("SELECT * FROM inodes WHERE ino = ?", (ino,)).fetchone()
            if row is not None:
                found = self._inodes[ino] = Inode(*row)
        return found

    def put_inode(self, inode: Inode) -> None:
        """Insert or replace an inode."""
        old = self.inode(inode.ino)
        self._undo.append((self._set_inode, (inode.ino, old)))
        if old is None:
            self.count("inodes", 1)
            self.count("bytes", inode.allocated)
        elif old.allocated != inode.allocated:
            self.count("bytes", inode.allocated - old.allocated)
        self._inodes_behind[inode.ino] = inode

    def remove_inode(self, ino: Ino) -> None:
        """Remove an inode that is there."""
        old = self.inode(ino)
        assert old is not None, "only an inode that is there can be removed"
        self._undo.append((self._set_inode, (ino, old)))
        self.count("inodes", -1)
        self.count("bytes", -old.allocated)
        self._set_inode(ino, None)

    def _set_inode(self, ino: Ino, inode: Inode | None) -> None:
        self._inodes_behind[ino] = inode
        self._inodes.pop(ino, None)

    # ---- names

    def dentry(self, parent: Ino, name: bytes) -> Dentry | None:
        """The name in that directory, or None. A hot path."""
        key = (parent, name)
        try:
            return self._names[key]
        except KeyError:
            row = self.db.execute("SELECT * FROM dentries WHERE parent = ? AND name = ?", key).fetchone()
            found = self._names[key] = Dentry(*row) if row else None
            return found

    def put_dentry(self, parent: Ino, name: bytes, ino: Ino) -> None:
        """Add a name, which must not be there, at the end of the directory's listing."""
        dentry = Dentry(parent, name, ino, self.count("cookie", 1))
        self._undo.append((self._erase_dentry, (parent, name)))
        self._insert_dentry(dentry)

    def remove_dentry(self, dentry: Dentry) -> None:
        """Remove a name that is there."""
        self._undo.append((self._insert_dentry, (dentry,)))
        self._erase_dentry(dentry.parent, dentry.name)

    def _insert_dentry(self, dentry: Dentry) -> None:
        row = (dentry.parent, dentry.name, dentry.ino, dentry.cookie)
        self.db.execute("INSERT INTO dentries VALUES (?, ?, ?, ?)", row)
        self._names[dentry.parent, dentry.name] = dentry

    def _erase_dentry(self, parent: Ino, name: bytes) -> None:
        self.db.execute("DELETE FROM dentries WHERE parent = ? AND name = ?", (parent, name))
        self._names[parent, name] = None

    def listing(self, parent: Ino, after: int, limit: int) -> list[Dentry]:
        """Up to `limit` names behind the cookie `after`, in the order of cookies."""
        query = "SELECT * FROM dentries WHERE parent = ? AND cookie > ? ORDER BY cookie LIMIT ?"
        return [Dentry(*row) for row in self.db.execute(query, (parent, after, limit))]

    def is_empty(self, parent: Ino) -> bool:
        """Whether a directory has no entries."""
        return self.db.execute("SELECT 1 FROM dentries WHERE parent = ? LIMIT 1", (parent,)).fetchone() is None

    # ---- extents

    def extents(self, ino: Ino, start: int, end: int) -> list[Extent]:
        """The extents that touch `[start, end)` of a file, in file order."""
        query = (
            f'SELECT {_EXTENT_COLUMNS} FROM extents WHERE ino = ?1 AND "offset" < ?3 AND "offset" >= '
            'coalesce((SELECT max("offset") FROM extents WHERE ino = ?1 AND "offset" <= ?2), 0) ORDER BY "offset"'
        )
        found = [_extent(row) for row in self.db.execute(query, (ino, start, end))]
        if found and found[0].end <= start:
            del found[0]
        return found

    def put_extent(self, extent: Extent) -> None:
        """Add an extent where the file has none."""
        self._undo.append((self._erase_extent, (extent.ino, extent.offset)))
        self._insert_extent(extent)

    def remove_extent(self, extent: Extent) -> None:
        """Remove an extent that is there."""
        self._undo.append((self._insert_extent, (extent,)))
        self._erase_extent(extent.ino, extent.offset)

    def _insert_extent(self, extent: Extent) -> None:
        chunk = extent.chunk or _NO_CHUNK
        row = (extent.ino, extent.offset, extent.length, extent.segment)
        row_chunk = (chunk.start, chunk.stored, chunk.raw, chunk.digest, extent.skip, extent.data)
        self.db.execute(f"INSERT INTO extents ({_EXTENT_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?)", row + row_chunk)

    def _erase_extent(self, ino: Ino, offset: int) -> None:
        self.db.execute('DELETE FROM extents WHERE ino = ? AND "offset" = ?', (ino, offset))

    # ---- extended attributes

    def xattr(self, ino: Ino, name: bytes) -> bytes | None:
        """An extended attribute's value, or None."""
        row = self.db.execute("SELECT value FROM xattrs WHERE ino = ? AND name = ?", (ino, name)).fetchone()
        return row[0] if row else None

    def xattr_names(self, ino: Ino) -> list[bytes]:
        """The names of an inode's extended attributes."""
        return [row[0] for row in self.db.execute("SELECT name FROM xattrs WHERE ino = ? ORDER BY name", (ino,))]

    def put_xattr(self, ino: Ino, name: bytes, value: bytes | None) -> None:
        """Set an extended attribute, or remove it (None)."""
        self._undo.append((self._set_xattr, (ino, name, self.xattr(ino, name))))
        self._set_xattr(ino, name, value)

    def _set_xattr(self, ino: Ino, name: bytes, value: bytes | None) -> None:
        if value is None:
            self.db.execute("DELETE FROM xattrs WHERE ino = ? AND name = ?", (ino, name))
        else:
            self.db.execute("INSERT OR REPLACE INTO xattrs VALUES (?, ?, ?)", (ino, name, value))

    # ---- versions

    def versions(self, ino: Ino) -> list[FileVersion]:
        """A file's committed content changes, oldest first."""
        return [FileVersion(*row) for row in self.db.execute("SELECT * FROM versions WHERE ino = ? ORDER BY version", (ino,))]

    def put_version(self, version: FileVersion) -> None:
        """Record a committed content change."""
        self._undo.append((self._erase_version, (version.ino, version.version)))
        self._insert_version(version)

    def remove_versions(self, ino: Ino) -> None:
        """Forget a file's versions."""
        for version in self.versions(ino):
            self._undo.append((self._insert_version, (version,)))
        self.db.execute("DELETE FROM versions WHERE ino = ?", (ino,))

    def _insert_version(self, version: FileVersion) -> None:
        self.db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?)", msgspec.structs.astuple(version))

    def _erase_version(self, ino: Ino, version: int) -> None:
        self.db.execute("DELETE FROM versions WHERE ino = ? AND version = ?", (ino, version))

    # ---- sessions and orphans

    def put_session(self, session: Session) -> None:
        """Insert or replace a session."""
        self._undo.append((self._set_session, (session.session, self.sessions.get(session.session))))
        self._set_session(session.session, session)

    def _set_session(self, number: SessionId, session: Session | None) -> None:
        self._sessions_behind.add(number)
        if session is None:
            del self.sessions[number]
        else:
            self.sessions[number] = session

    def put_orphan(self, ino: Ino, session: SessionId | None) -> None:
        """Record whose orphan an inode is, or that it is nobody's any more (None)."""
        self._undo.append((self._set_orphan, (ino, self.orphans.get(ino))))
        self._set_orphan(ino, session)

    def _set_orphan(self, ino: Ino, session: SessionId | None) -> None:
        if session is None:
            self.orphans.pop(ino, None)
            self.db.execute("DELETE FROM orphans WHERE ino = ?", (ino,))
        else:
            self.orphans[ino] = session
            self.db.execute("INSERT OR REPLACE INTO orphans VALUES (?, ?)", (ino, session))

    # ---- segments

    def segment_id(self, name: bytes) -> SegmentId | None:
        """The number of a segment that is known by its name, or None."""
        row = self.db.execute("SELECT segment FROM segments WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def segment_name(self, segment: SegmentId) -> bytes:
        """The name of a segment that an extent points to."""
        return bytes(self.db.execute("SELECT name FROM segments WHERE segment = ?", (segment,)).fetchone()[0])

    def put_segment(self, name: bytes, size: int) -> SegmentId:
        """Make a segment known."""
        segment = SegmentId(self.count("segment", 1))
        self._undo.append((self.db.execute, ("DELETE FROM segments WHERE segment = ?", (segment,))))
        self.db.execute("INSERT INTO segments VALUES (?, ?, ?)", (segment, name, size))
        return segment

    def place(self, segment: SegmentId, replica: ReplicaId) -> None:
        """Record that a replica holds a segment."""
        inserted = self.db.execute("INSERT OR IGNORE INTO placed VALUES (?, ?)", (segment, replica)).rowcount
        if inserted:
            self._undo.append((self.db.execute, ("DELETE FROM placed WHERE segment = ? AND replica = ?", (segment, replica))))

    # ---- the workspace, and the file

    def put_found(self, found: Found) -> None:
        """Record the workspace's identity and settings."""
        self._undo.append((self._set_found, (None,)))
        self._set_found(found)

    def _set_found(self, found: Found | None) -> None:
        self.found = found
        self.db.execute("DELETE FROM workspace")
        if found is not None:
            self.db.execute("INSERT INTO workspace VALUES (1, ?)", (msgspec.msgpack.encode(found),))

    def flush(self) -> None:
        """Write what is written behind, so that queries over whole tables see it."""
        gone = [(ino,) for ino, inode in self._inodes_behind.items() if inode is None]
        self.db.executemany("DELETE FROM inodes WHERE ino = ?", gone)
        kept = [inode for inode in self._inodes_behind.values() if inode is not None]
        rows = map(msgspec.structs.astuple, kept)
        self.db.executemany("INSERT OR REPLACE INTO inodes VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", rows)
        for inode in kept:
            self._inodes[inode.ino] = inode
        self._inodes_behind.clear()
        for number in self._sessions_behind:
            session = self.sessions.get(number)
            if session is None:
                self.db.execute("DELETE FROM sessions WHERE session = ?", (number,))
            else:
                row = msgspec.structs.astuple(session)
                self.db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._sessions_behind.clear()
        self.db.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?)", self.counters.items())

    @property
    def behind(self) -> int:
        """How many inodes are written behind: a bound on what `flush` has to do."""
        return len(self._inodes_behind)

    def save(self) -> bool:
        """Make the file hold the position reached. Nothing speculative may be in the tables.

        False, and nothing done, when its disk has too little room: SQLite would roll back all that is not saved.
        """
        assert not self._undo, "what is speculative must not be saved"
        if self._directory is not None and not has_room(self._directory, SAVE_ROOM):
            return False
        self.flush()
        self.db.execute("COMMIT")
        self.db.execute("BEGIN")
        return True

    def close(self) -> None:
        """Give the file back as of the last `save`."""
        self.db.execute("ROLLBACK")
        self.db.close()


def has_room(directory: Path, wanted: int) -> bool:
    """Whether a disk has `wanted` bytes free, or on a small disk a sixteenth of it."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize >= min(wanted, disk.f_blocks * disk.f_frsize // 16)


def _extent(row: tuple[Any, ...]) -> Extent:
    ino, offset, length, segment, start, stored, raw, digest, skip, data = row
    chunk = Chunk(start, stored, raw, digest) if segment else None
    return Extent(ino, offset, length, data, segment, chunk, skip)


def open_tables(path: Path | None) -> Tables:
    """The tables in the file at `path`, made if missing; in memory without a path (tests, simulations, fsck).

    Raises Invalid for a file that is not an intact State of this version: the caller removes it and replays the journal.
    """
    db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        # A State is rebuilt from the journal after a power cut, so it needs no fsync; against kill -9 the WAL is enough.
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = -16384")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            db.execute("BEGIN")
            for statement in _statements(TABLES):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        elif version != SCHEMA_VERSION:
            raise Invalid(f"{path}: a State of version {version}, this program keeps version {SCHEMA_VERSION}")
        return Tables(db, path.parent if path else None)
    except (sqlite3.DatabaseError, msgspec.DecodeError) as error:
        db.close()
        raise Invalid(f"{path}: not an intact State file: {error}") from error
    except Invalid:
        db.close()
        raise


def _statements(script: str) -> Iterator[str]:
    lines = [line.split("--")[0] for line in script.splitlines()]
    return (statement for statement in "\n".join(lines).split(";") if statement.strip())
