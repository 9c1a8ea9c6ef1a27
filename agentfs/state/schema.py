"""State's SQLite schema, column by column (docs/format.md explains it in prose)."""

SCHEMA_VERSION = 4
"""Grows with every change of the tables or of what `apply` writes; a State file of another version is rebuilt."""

TABLES = """
-- Single numbers: position (the last entry applied), cookie, session, segment (the last one given out), inodes, bytes, inline
-- (totals; inline: bytes of inline extents), collected (the last entry that collected segments).
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

-- The workspace's identity and settings: the first change of the journal, encoded as there.
CREATE TABLE workspace (one INTEGER PRIMARY KEY CHECK (one = 1), found BLOB NOT NULL);

-- One row an inode; the columns are the fields of model.inode.Inode, in order.
CREATE TABLE inodes (
    ino INTEGER PRIMARY KEY,
    mode INTEGER NOT NULL,
    nlink INTEGER NOT NULL,      -- directories: 2 + subdirectories; 0: an orphan, kept for an open handle
    uid INTEGER NOT NULL,
    gid INTEGER NOT NULL,
    rdev INTEGER NOT NULL,
    size INTEGER NOT NULL,       -- bytes
    allocated INTEGER NOT NULL,  -- bytes that extents cover
    atime_ns INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    version INTEGER NOT NULL,    -- committed content changes so far
    "commit" INTEGER NOT NULL,   -- position of the last change of any kind
    writer INTEGER NOT NULL,     -- session of that change
    parent INTEGER NOT NULL,     -- directories: where the one name is; else 0
    xattrs INTEGER NOT NULL,     -- how many extended attributes
    target BLOB NOT NULL         -- symbolic links: where to
);

-- Names. The cookie orders a directory's listing by when the name was made, so that a listing is stable under change.
CREATE TABLE dentries (
    parent INTEGER NOT NULL,
    name BLOB NOT NULL,
    ino INTEGER NOT NULL,
    cookie INTEGER NOT NULL,
    PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE UNIQUE INDEX listing ON dentries (parent, cookie);
CREATE INDEX names ON dentries (ino, cookie);

-- Runs of file bytes. Inline when segment is 0 (data holds them); else a part of a chunk: see model.extents.
CREATE TABLE extents (
    ino INTEGER NOT NULL,
    "offset" INTEGER NOT NULL,
    length INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    start INTEGER NOT NULL,      -- the chunk's place in the segment
    stored INTEGER NOT NULL,     -- its bytes there
    raw INTEGER NOT NULL,        -- its bytes decoded
    digest BLOB NOT NULL,        -- hash of the decoded bytes
    skip INTEGER NOT NULL,       -- where in the decoded chunk this extent begins
    data BLOB NOT NULL
);
CREATE UNIQUE INDEX runs ON extents (ino, "offset");
CREATE INDEX foldable ON extents (ino, "offset") WHERE segment = 0 AND length >= 256;  -- model.extents.FOLD_MIN

CREATE TABLE xattrs (
    ino INTEGER NOT NULL,
    name BLOB NOT NULL,
    value BLOB NOT NULL,
    PRIMARY KEY (ino, name)
) WITHOUT ROWID;

-- Committed content changes, newest last: what `agentfs log` prints.
CREATE TABLE versions (
    ino INTEGER NOT NULL,
    version INTEGER NOT NULL,
    position INTEGER NOT NULL,
    time_ns INTEGER NOT NULL,
    size INTEGER NOT NULL,
    session INTEGER NOT NULL,
    PRIMARY KEY (ino, version)
) WITHOUT ROWID;

-- Every session there ever was; the columns are the fields of model.session.Session, in order.
CREATE TABLE sessions (
    session INTEGER PRIMARY KEY,
    token BLOB NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    label TEXT NOT NULL,
    opened_ns INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    standing INTEGER NOT NULL,
    ttl_ms INTEGER NOT NULL,     -- how long its heartbeat may stand still before others may fence it
    upkeep INTEGER NOT NULL      -- 1: it can do the workspace's chores
);

-- Every recovery of the workspace from its replicas: where the journal's line begins that it made, and the name of that line.
CREATE TABLE recoveries (position INTEGER PRIMARY KEY, incarnation TEXT NOT NULL);

-- Leases on locks: for each inode and space (0 flock, 1 fcntl) with any, a model.lease.Leases as MessagePack.
CREATE TABLE leases (ino INTEGER NOT NULL, space INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (ino, space)) WITHOUT ROWID;

-- Inodes without a name that a session still has open.
CREATE TABLE orphans (ino INTEGER PRIMARY KEY, session INTEGER NOT NULL);

CREATE TABLE segments (
    segment INTEGER PRIMARY KEY,
    name BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    time_ns INTEGER NOT NULL,    -- when whoever made it known said that it was; 0: unknown
    uses INTEGER NOT NULL,       -- how many extents are in it
    live INTEGER NOT NULL,       -- bytes of it that these need, by their share of its chunks
    unneeded_ns INTEGER NOT NULL -- when a session said that no file needs it any more; 0: none has, or one does
);
-- Those that are small, or of which files need less than half; SQLite does not see that an OR is the same in an index.
CREATE INDEX compactable ON segments (segment) WHERE uses > 0 AND min(size - 1048576, live * 2 - size) < 0;
CREATE INDEX unneeded ON segments (unneeded_ns) WHERE uses = 0;

-- Segments that are known no more, and that replicas may hold still.
CREATE TABLE collected (name BLOB PRIMARY KEY, position INTEGER NOT NULL) WITHOUT ROWID;

-- Every replica there ever was; the columns are the fields of model.replica.Replica, in order.
CREATE TABLE replicas (replica INTEGER PRIMARY KEY, url TEXT NOT NULL, standing INTEGER NOT NULL);

-- Which members are known to hold a segment.
CREATE TABLE placed (segment INTEGER NOT NULL, replica INTEGER NOT NULL, PRIMARY KEY (segment, replica)) WITHOUT ROWID;

-- What each member has to be given: the segments in use that `placed` does not say it holds. It follows from the other tables.
-- It is kept beside them because it is asked for every second, is mostly empty, and had to be looked for in all segments.
CREATE TABLE lacking (
    replica INTEGER NOT NULL,
    segment INTEGER NOT NULL,
    size INTEGER NOT NULL,       -- the segment's bytes
    PRIMARY KEY (replica, segment)
) WITHOUT ROWID;
"""

CONTENT = {
    "counters": "name",
    "workspace": "one",
    "inodes": "ino",
    "dentries": "parent, name",
    "extents": 'ino, "offset"',
    "xattrs": "ino, name",
    "versions": "ino, version",
    "sessions": "session",
    "recoveries": "position",
    "leases": "ino, space",
    "orphans": "ino",
    "segments": "segment",
    "replicas": "replica",
    "collected": "name",
    "placed": "segment, replica",
    "lacking": "replica, segment",
}
"""Every table with the order of its rows, as the checksum reads them."""
