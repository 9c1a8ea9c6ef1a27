"""State's rows about where segments are: the replicas, the segments, who holds which, and what each member lacks."""

import sqlite3
from collections.abc import Callable, Iterable

import msgspec

from agentfs.model.errors import Corrupt
from agentfs.model.ids import Position, ReplicaId, SegmentId
from agentfs.model.replica import MEMBER, Replica
from agentfs.state.rows import Rows


class PlacementRows(Rows):
    """The row verbs for replicas and segments. Each leaves `lacking` true to the other tables, also where it takes back."""

    def __init__(self, db: sqlite3.Connection) -> None:
        super().__init__(db)
        self.replicas: dict[ReplicaId, Replica] = {row[0]: Replica(*row) for row in db.execute("SELECT * FROM replicas")}
        # Called after a replica came or went, also while that is speculative and where it is taken back: whoever is told
        # looks at `members` later.
        self.on_replicas: Callable[[], None] = lambda: None

    # ---- replicas

    @property
    def members(self) -> dict[ReplicaId, Replica]:
        """The replicas that are members."""
        return {number: replica for number, replica in self.replicas.items() if replica.standing == MEMBER}

    def put_replica(self, replica: Replica) -> None:
        """Insert or replace a replica."""
        self._undo.append((self._set_replica, (replica.replica, self.replicas.get(replica.replica))))
        self._set_replica(replica.replica, replica)

    def _set_replica(self, number: ReplicaId, replica: Replica | None) -> None:
        self.db.execute("DELETE FROM lacking WHERE replica = ?", (number,))
        if replica is None:
            del self.replicas[number]
            self.db.execute("DELETE FROM replicas WHERE replica = ?", (number,))
        else:
            self.replicas[number] = replica
            self.db.execute("INSERT OR REPLACE INTO replicas VALUES (?, ?, ?)", msgspec.structs.astuple(replica))
            if replica.standing == MEMBER:
                self._lack_everything(number)
        self.on_replicas()

    def _lack_everything(self, number: ReplicaId) -> None:
        held = "EXISTS (SELECT 1 FROM placed WHERE segment = s.segment AND replica = ?1)"
        query = f"INSERT INTO lacking SELECT ?1, segment, size FROM segments s WHERE uses > 0 AND NOT {held}"
        self.db.execute(query, (number,))

    # ---- segments

    def segment_id(self, name: bytes) -> SegmentId | None:
        """The number of a segment that is known by its name, or None."""
        row = self.db.execute("SELECT segment FROM segments WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def segment_name(self, segment: SegmentId) -> bytes:
        """The name of a segment that an extent points to.

        Raises Corrupt where it was collected: then the extent is of a file that State has no more.
        """
        row = self.db.execute("SELECT name FROM segments WHERE segment = ?", (segment,)).fetchone()
        if row is None:
            raise Corrupt("the file was removed elsewhere, and what it held is gone by now")
        return bytes(row[0])

    def segment_size(self, segment: SegmentId) -> int:
        """The bytes of a segment that an extent points to."""
        size: int = self.db.execute("SELECT size FROM segments WHERE segment = ?", (segment,)).fetchone()[0]
        return size

    def put_segment(self, name: bytes, size: int, time_ns: int) -> SegmentId:
        """Make a segment known, in which there are no extents yet."""
        segment = SegmentId(self.count("segment", 1))
        self._undo.append((self.db.execute, ("DELETE FROM segments WHERE segment = ?", (segment,))))
        self.db.execute("INSERT INTO segments VALUES (?, ?, ?, ?, 0, 0, 0)", (segment, name, size, time_ns))
        return segment

    def _use(self, segment: SegmentId, by: int, live: int) -> None:
        """There are `by` more extents in a segment, which need `live` more of its bytes.

        For its first, and without its last, what replicas lack is different.
        """
        query = "UPDATE segments SET uses = uses + ?, live = live + ? WHERE segment = ? RETURNING uses"
        found = self.db.execute(query, (by, live, segment)).fetchall()
        # Only tests put extents in segments that are not known.
        uses = found[0][0] if found else 0
        if by > 0 and uses == by:
            held = set(self.replicas_with(segment))
            self._lack(segment, (number for number in self.members if number not in held))
        elif by < 0 and uses == 0:
            self.db.executemany("DELETE FROM lacking WHERE replica = ? AND segment = ?", ((n, segment) for n in self.members))

    def _lack(self, segment: SegmentId, replicas: Iterable[ReplicaId]) -> None:
        query = "INSERT INTO lacking SELECT ?, segment, size FROM segments WHERE segment = ? AND uses > 0"
        self.db.executemany(query, ((number, segment) for number in replicas))

    # ---- what no file needs

    def waits_since(self, segment: SegmentId) -> int | None:
        """When a segment that no file needs was said to be unneeded; 0: it was not; None: a file needs it."""
        uses, time_ns = self.db.execute("SELECT uses, unneeded_ns FROM segments WHERE segment = ?", (segment,)).fetchone()
        return None if uses else time_ns

    def note_unneeded(self, segment: SegmentId, time_ns: int) -> None:
        """Record since when no file needs a segment; 0: one does, or may."""
        query = "SELECT unneeded_ns FROM segments WHERE segment = ?"
        (before,) = self.db.execute(query, (segment,)).fetchone()
        if before != time_ns:
            self._undo.append((self._set_unneeded, (segment, before)))
            self._set_unneeded(segment, time_ns)

    def _set_unneeded(self, segment: SegmentId, time_ns: int) -> None:
        self.db.execute("UPDATE segments SET unneeded_ns = ? WHERE segment = ?", (time_ns, segment))

    def collect(self, segment: SegmentId, position: Position) -> None:
        """Forget a segment in which there are no extents; what of it is in replicas still, `collected` says."""
        for replica in self.replicas_with(segment):
            self.displace(segment, replica)
        row = self.db.execute("DELETE FROM segments WHERE segment = ? RETURNING *", (segment,)).fetchall()[0]
        self._undo.append((self.db.execute, ("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?, ?)", row)))
        name = row[1]
        self._undo.append((self.db.execute, ("DELETE FROM collected WHERE name = ?", (name,))))
        self.db.execute("INSERT INTO collected VALUES (?, ?)", (name, position))
        self.count("collected", position - self.counters["collected"])

    def is_collected(self, name: bytes) -> bool:
        """Whether replicas may hold a segment still that was collected."""
        return self.db.execute("SELECT 1 FROM collected WHERE name = ?", (name,)).fetchone() is not None

    def may_be_collected(self, name: bytes, since: Position) -> bool:
        """Whether a segment that was begun when State was at `since` is not known, and may be one that was collected."""
        return self.segment_id(name) is None and (since < self.counters["collected"] or self.is_collected(name))

    def forget_collected(self, name: bytes) -> None:
        """No replica holds a collected segment any more."""
        rows = self.db.execute("DELETE FROM collected WHERE name = ? RETURNING *", (name,)).fetchall()
        self._undo.append((self.db.executemany, ("INSERT INTO collected VALUES (?, ?)", rows)))

    # ---- who holds which

    def replicas_with(self, segment: SegmentId) -> list[ReplicaId]:
        """The members that are known to hold a segment."""
        return [row[0] for row in self.db.execute("SELECT replica FROM placed WHERE segment = ? ORDER BY replica", (segment,))]

    def holders(self, name: bytes) -> list[ReplicaId]:
        """The members that are known to hold a segment, by its name; none for one that is not known."""
        segment = self.segment_id(name)
        return self.replicas_with(segment) if segment is not None else []

    def place(self, segment: SegmentId, replica: ReplicaId) -> None:
        """Record that a member holds a segment, if that is not known."""
        if self._place(segment, replica):
            self._undo.append((self._displace, (segment, replica)))

    def displace(self, segment: SegmentId, replica: ReplicaId) -> None:
        """Record that a replica does not hold a segment, if it is known to."""
        if self._displace(segment, replica):
            self._undo.append((self._place, (segment, replica)))

    def displace_all(self, replica: ReplicaId) -> None:
        """Forget what a replica holds that is no member any more. Slow: it looks through all that is placed."""
        assert replica not in self.members, "what a member does not hold it lacks"
        rows = self.db.execute("DELETE FROM placed WHERE replica = ? RETURNING segment, replica", (replica,)).fetchall()
        self._undo.append((self.db.executemany, ("INSERT INTO placed VALUES (?, ?)", rows)))

    def _place(self, segment: SegmentId, replica: ReplicaId) -> bool:
        if not self.db.execute("INSERT OR IGNORE INTO placed VALUES (?, ?)", (segment, replica)).rowcount:
            return False
        self.db.execute("DELETE FROM lacking WHERE replica = ? AND segment = ?", (replica, segment))
        return True

    def _displace(self, segment: SegmentId, replica: ReplicaId) -> bool:
        if not self.db.execute("DELETE FROM placed WHERE segment = ? AND replica = ?", (segment, replica)).rowcount:
            return False
        self._lack(segment, (replica,))
        return True
