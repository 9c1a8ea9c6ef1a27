"""Questions to State that more than one of its readers asks, or that look at a whole table."""

from agentfs.model.ids import Ino, ReplicaId, SessionId
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


def segment_count(tables: Tables) -> int:
    """How many segments State knows."""
    count: int = tables.db.execute("SELECT count(*) FROM segments").fetchone()[0]
    return count


def placements(tables: Tables) -> dict[ReplicaId, int]:
    """How many segments each replica is known to hold."""
    return dict(tables.db.execute("SELECT replica, count(*) FROM placed GROUP BY replica"))


def leased(tables: Tables, session: SessionId) -> list[LeaseKey]:
    """Where a session holds a lease or asks for one, in order. Slow: it looks at every lease there is."""
    return sorted(
        key
        for key, leases in tables.leases.items()
        if any(grant.session == session for grant in leases.grants) or any(each.session == session for each in leases.queue)
    )
