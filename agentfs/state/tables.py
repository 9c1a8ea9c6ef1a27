"""State's rows: verbs that change one row and remember how to take it back, over an SQLite file.

The file holds exactly a committed position: changes gather in one open SQLite transaction, and `save` commits it only when
nothing is speculative. Inodes, sessions and leases, which change often and are read by key alone, are written behind.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from cachetools import LRUCache
from msgspec.structs import replace

from agentfs.model.changes import Found
from agentfs.model.errors import Invalid
from agentfs.model.ids import Ino, Position, SessionId
from agentfs.model.inode import Dentry, Inode
from agentfs.model.lease import Leases
from agentfs.model.session import OPEN, Session
from agentfs.state.content_rows import ContentRows
from agentfs.state.rows import Mark as Mark
from agentfs.state.rows import Undo as Undo
from agentfs.state.schema import SCHEMA_VERSION, TABLES

LeaseKey = tuple[Ino, int]
"""A file and a space of locks."""

SAVE_ROOM = 8 << 20
"""Bytes free on disk below which nothing is saved: more than one save ever writes."""

_INODES_CACHED = 32768
_NAMES_CACHED = 32768


class Tables(ContentRows):
    """The row verbs. One thread owns it; nothing here waits."""

    def __init__(self, db: sqlite3.Connection, directory: Path | None) -> None:
        super().__init__(db)
        self._directory = directory
        self._inodes: LRUCache[Ino, Inode] = LRUCache(_INODES_CACHED)
        self._inodes_behind: dict[Ino, Inode | None] = {}
        self._names: LRUCache[tuple[Ino, bytes], Dentry | None] = LRUCache(_NAMES_CACHED)
        self._sessions_behind: set[SessionId] = set()
        self.sessions: dict[SessionId, Session] = {row[0]: _session(row) for row in db.execute("SELECT * FROM sessions")}
        self._open_sessions = {number for number, session in self.sessions.items() if session.standing == OPEN}
        # The position at which each line of the journal begins that a recovery made, and the line's name; in order.
        query = "SELECT position, incarnation FROM recoveries ORDER BY position"
        self.recoveries: dict[Position, str] = dict(db.execute(query))
        self.orphans: dict[Ino, SessionId] = dict(db.execute("SELECT ino, session FROM orphans"))
        self.leases: dict[LeaseKey, Leases] = {(row[0], row[1]): _leases(row[2]) for row in db.execute("SELECT * FROM leases")}
        self._leases_behind: set[LeaseKey] = set()
        # What the lock manager has not looked at since it changed, or was taken back: it drains this.
        self.touched_leases: set[LeaseKey] = set()
        # Called with the name of each extended attribute that is set.
        self.on_xattr: Callable[[bytes], None] = lambda name: None
        # Called by the rules before an inode's rows go, also while that is speculative: for who must keep its bytes readable.
        self.before_erase: Callable[[Ino], None] = lambda ino: None
        # Called by `save` while no transaction is open and the file and its WAL hold exactly what was saved.
        self.on_saved: Callable[[], None] = lambda: None
        row = db.execute("SELECT found FROM workspace").fetchone()
        self.found: Found | None = msgspec.msgpack.decode(row[0], type=Found) if row else None
        db.execute("BEGIN")

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
            self.on_xattr(name)

    def has_xattr_named(self, name: bytes) -> bool:
        """Whether any inode has an extended attribute of that name. Slow: attributes are found by inode."""
        return self.db.execute("SELECT 1 FROM xattrs WHERE name = ? LIMIT 1", (name,)).fetchone() is not None

    # ---- sessions and orphans

    def put_session(self, session: Session) -> None:
        """Insert or replace a session."""
        self._undo.append((self._set_session, (session.session, self.sessions.get(session.session))))
        self._set_session(session.session, session)

    def has_company(self, session: SessionId) -> bool:
        """Whether any other session is open. A hot path."""
        return bool(self._open_sessions - {session})

    def keeper(self) -> SessionId | None:
        """Who does the workspace's chores: the open session with the lowest number of those that can."""
        return min((number for number in self._open_sessions if self.sessions[number].upkeep), default=None)

    def _set_session(self, number: SessionId, session: Session | None) -> None:
        self._sessions_behind.add(number)
        self._open_sessions.discard(number)
        if session is None:
            del self.sessions[number]
        else:
            self.sessions[number] = session
            if session.standing == OPEN:
                self._open_sessions.add(number)

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

    # ---- leases

    def put_leases(self, ino: Ino, space: int, leases: Leases | None) -> None:
        """Replace everything about the leases on one file in one space; None where nothing is left."""
        assert leases is None or leases.grants or leases.queue, "nothing is None"
        key = (ino, space)
        self._undo.append((self._set_leases, (key, self.leases.get(key))))
        self._set_leases(key, leases)

    def _set_leases(self, key: LeaseKey, leases: Leases | None) -> None:
        self.touched_leases.add(key)
        self._leases_behind.add(key)
        if leases is None:
            self.leases.pop(key, None)
        else:
            self.leases[key] = leases

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

    @property
    def incarnation(self) -> str:
        """The name of the journal's line that this State is of; "" for the first one."""
        return next(reversed(self.recoveries.values()), "")

    def put_recovery(self, incarnation: str, position: Position) -> None:
        """Record that another line begins at a position behind all others."""
        self._undo.append((self._erase_recovery, (position,)))
        self.recoveries[position] = incarnation
        self.db.execute("INSERT INTO recoveries VALUES (?, ?)", (position, incarnation))

    def _erase_recovery(self, position: Position) -> None:
        del self.recoveries[position]
        self.db.execute("DELETE FROM recoveries WHERE position = ?", (position,))

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
        self._flush_sessions()
        self._flush_leases()
        self.db.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?)", self.counters.items())

    def _flush_sessions(self) -> None:
        for number in self._sessions_behind:
            session = self.sessions.get(number)
            if session is None:
                self.db.execute("DELETE FROM sessions WHERE session = ?", (number,))
            else:
                row = msgspec.structs.astuple(session)
                self.db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._sessions_behind.clear()

    def _flush_leases(self) -> None:
        for key in self._leases_behind:
            leases = self.leases.get(key)
            if leases is None:
                self.db.execute("DELETE FROM leases WHERE ino = ? AND space = ?", key)
            else:
                self.db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (*key, msgspec.msgpack.encode(leases)))
        self._leases_behind.clear()

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
        self.on_saved()
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


def _session(row: tuple[Any, ...]) -> Session:
    return replace(Session(*row), upkeep=bool(row[-1]))


def _leases(body: bytes) -> Leases:
    return msgspec.msgpack.decode(body, type=Leases)


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
