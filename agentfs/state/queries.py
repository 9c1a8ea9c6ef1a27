"""Questions to State that more than one of its readers asks, or that look at a whole table."""

from typing import NamedTuple

from agentfs.model.extents import FOLD_MIN, Chunk, Extent
from agentfs.model.ids import Ino, Position, ReplicaId, SegmentId, SessionId
from agentfs.state.tables import LeaseKey, Tables

COMPACTABLE_MAX = 16384
"""Segments of one answer: some ten milliseconds."""


def a_name_of(tables: Tables, ino: Ino) -> tuple[Ino, bytes] | None:
    """One of an inode's names, as (directory, name), or None."""
    row = tables.db.execute("SELECT parent, name FROM dentries WHERE ino = ? LIMIT 1", (ino,)).fetchone()
    return (Ino(row[0]), bytes(row[1])) if row else None


def least_replicas(tables: Tables, ino: Ino) -> int | None:
    """How many replicas hold the segment of a file that the fewest hold; None for a file without segments."""
    query = (
        "SELECT min((SELECT count(*) FROM placed WHERE placed.segment = used.segment)) FROM "
        "(SELECT DISTINCT segment FROM extents WHERE ino = ? AND segment != 0) AS used"
    )
    least: int | None = tables.db.execute(query, (ino,)).fetchone()[0]
    return least


class Missing(NamedTuple):
    """What a member lacks of the segments that files need. `since_ns`: how old the oldest is; None where that is not known."""

    segments: int
    bytes: int
    since_ns: int | None


def missing(tables: Tables, replica: ReplicaId) -> Missing:
    """What a member has to be given. Cheap while that is little: some milliseconds for a hundred thousand segments."""
    db = tables.db
    count, size = db.execute("SELECT count(*), coalesce(sum(size), 0) FROM lacking WHERE replica = ?", (replica,)).fetchone()
    # Numbers are given in the journal's order.
    query = "SELECT time_ns FROM lacking JOIN segments USING (segment) WHERE replica = ? ORDER BY segment LIMIT 1"
    oldest = db.execute(query, (replica,)).fetchone()
    return Missing(count, size, oldest[0] or None if oldest else None)


class Lacking(NamedTuple):
    """A segment that files need and that a member lacks."""

    segment: SegmentId
    name: bytes
    size: int


def lacking(tables: Tables, replica: ReplicaId, after: SegmentId, limit: int) -> list[Lacking]:
    """Up to `limit` of what a member has to be given, in the order of numbers, from behind the number `after`. Cheap."""
    query = (
        "SELECT segment, name, lacking.size FROM lacking JOIN segments USING (segment)"
        " WHERE replica = ? AND segment > ? ORDER BY segment LIMIT ?"
    )
    return [Lacking(*row) for row in tables.db.execute(query, (replica, after, limit))]


def foldable(tables: Tables, after: tuple[Ino, int], limit: int) -> list[Extent]:
    """Up to `limit` inline extents of at least FOLD_MIN bytes, by inode and offset, from behind `after`. Cheap."""
    # With parameters instead of these numbers the index would not be used.
    query = (
        'SELECT ino, "offset", length, data FROM extents'
        f' WHERE segment = 0 AND length >= {FOLD_MIN} AND (ino, "offset") > (?, ?) ORDER BY ino, "offset" LIMIT ?'
    )
    rows = tables.db.execute(query, (*after, limit))
    return [Extent(ino, offset, length, data, SegmentId(0), None, 0) for ino, offset, length, data in rows]


class Compactable(NamedTuple):
    """A segment that is small, or of which files need less than half: its `live` bytes of `size`."""

    segment: SegmentId
    name: bytes
    size: int
    live: int


def compactable(tables: Tables) -> list[Compactable]:
    """The segments that are worth being moved together: the oldest COMPACTABLE_MAX of them. Cheap while there are few."""
    # With parameters instead of these numbers the index would not be used.
    query = (
        "SELECT segment, name, size, live FROM segments INDEXED BY compactable"
        f" WHERE uses > 0 AND min(size - 1048576, live * 2 - size) < 0 ORDER BY segment LIMIT {COMPACTABLE_MAX}"
    )
    return [Compactable(*row) for row in tables.db.execute(query)]


def chunked(tables: Tables, after: tuple[Ino, int], limit: int) -> list[Extent]:
    """Up to `limit` extents by inode and offset, from behind `after`, without the bytes of inline ones."""
    query = (
        'SELECT ino, "offset", length, segment, start, stored, raw, digest, skip FROM extents'
        ' WHERE (ino, "offset") > (?, ?) ORDER BY ino, "offset" LIMIT ?'
    )
    rows = tables.db.execute(query, (*after, limit))
    return [
        Extent(ino, offset, length, b"", segment, Chunk(*chunk) if segment else None, skip)
        for ino, offset, length, segment, *chunk, skip in rows
    ]


def unneeded(tables: Tables, limit: int) -> list[bytes]:
    """Up to `limit` names of segments that no file needs, and that nobody said so of. Cheap."""
    query = "SELECT name FROM segments INDEXED BY unneeded WHERE uses = 0 AND unneeded_ns = 0 LIMIT ?"
    return [row[0] for row in tables.db.execute(query, (limit,))]


def waiting_since(tables: Tables, until_ns: int, limit: int) -> list[bytes]:
    """Up to `limit` names of segments that have waited to be collected since `until_ns` or longer. Cheap."""
    query = "SELECT name FROM segments INDEXED BY unneeded WHERE uses = 0 AND unneeded_ns BETWEEN 1 AND ? LIMIT ?"
    return [row[0] for row in tables.db.execute(query, (until_ns, limit))]


def collected(tables: Tables, after: bytes, limit: int) -> list[tuple[bytes, Position]]:
    """Up to `limit` segments that replicas may hold though they were collected, by name, and by which entry. Cheap."""
    query = "SELECT name, position FROM collected WHERE name > ? ORDER BY name LIMIT ?"
    return tables.db.execute(query, (after, limit)).fetchall()


def held_only_by(tables: Tables, replica: ReplicaId) -> int:
    """How many of the segments that files need no other replica is known to hold. Slow: it looks at all that are placed."""
    query = (
        "SELECT count(*) FROM placed p JOIN segments USING (segment) WHERE p.replica = ?1 AND uses > 0"
        " AND NOT EXISTS (SELECT 1 FROM placed WHERE segment = p.segment AND replica != ?1)"
    )
    count: int = tables.db.execute(query, (replica,)).fetchone()[0]
    return count


def held_by_none(tables: Tables) -> int:
    """How many of the segments that files need no member is known to hold. Slow: it looks at all segments."""
    query = "SELECT count(*) FROM segments s WHERE uses > 0 AND NOT EXISTS (SELECT 1 FROM placed WHERE segment = s.segment)"
    count: int = tables.db.execute(query).fetchone()[0]
    return count


def leased(tables: Tables, session: SessionId) -> list[LeaseKey]:
    """Where a session holds a lease or asks for one, in order. Slow: it looks at every lease there is."""
    return sorted(
        key
        for key, leases in tables.leases.items()
        if any(grant.session == session for grant in leases.grants) or any(each.session == session for each in leases.queue)
    )
