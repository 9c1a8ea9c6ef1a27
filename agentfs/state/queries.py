"""Questions to State that more than one of its readers asks, or that look at a whole table."""

from typing import NamedTuple

from agentfs.model.extents import FOLD_MIN, Extent
from agentfs.model.ids import Ino, ReplicaId, SegmentId, SessionId
from agentfs.state.tables import LeaseKey, Tables


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


def held_only_by(tables: Tables, replica: ReplicaId) -> int:
    """How many of the segments that files need no other replica is known to hold. Slow: it looks at all that are placed."""
    query = (
        "SELECT count(*) FROM placed p JOIN segments USING (segment) WHERE p.replica = ?1 AND uses > 0"
        " AND NOT EXISTS (SELECT 1 FROM placed WHERE segment = p.segment AND replica != ?1)"
    )
    count: int = tables.db.execute(query, (replica,)).fetchone()[0]
    return count


def leased(tables: Tables, session: SessionId) -> list[LeaseKey]:
    """Where a session holds a lease or asks for one, in order. Slow: it looks at every lease there is."""
    return sorted(
        key
        for key, leases in tables.leases.items()
        if any(grant.session == session for grant in leases.grants) or any(each.session == session for each in leases.queue)
    )
