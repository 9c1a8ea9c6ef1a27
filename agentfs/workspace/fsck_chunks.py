"""Chunks: whether every segment that a file needs is in each replica that should hold it, whole and right."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

import trio

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.segment import segment_key, segment_name
from agentfs.model.changes import Found
from agentfs.model.errors import AgentfsError, NotFound
from agentfs.model.extents import Chunk
from agentfs.model.ids import Ino, ReplicaId, SegmentId
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.damage import damage
from agentfs.workspace.findings import FINDINGS_MAX, Finding, Kind, names_of
from agentfs.workspace.paths import printable

Report = Callable[[int, int], None]
"""Told how much is done, of how much."""

COPIES_MAX: Final = 2
"""Copies of a segment in memory at once: 16 MiB."""

_ANYWHERE: Final = ReplicaId(0)


async def check_chunks(
    tables: Tables,
    found: Found,
    stores: Mapping[ReplicaId, ChunkStore],
    *,
    complete: bool,
    runtime: Runtime,
    report: Report,
) -> list[Finding]:
    """What is wrong with the replicas, seen from a State of one's own in memory: it gets an index.

    `complete` says that the State is that of the journal's tail: otherwise objects that it does not know mean nothing.
    """
    tables.flush()
    tables.db.execute("CREATE INDEX IF NOT EXISTS extents_by_segment ON extents (segment, start)")
    check = _ChunkCheck(tables, found, stores, runtime, report)
    for replica in tables.members:
        await check.look_through(replica, complete=complete)
    await check.read_all()
    check.count_laggards()
    return check.findings()


class _ChunkCheck:
    """The replicas of one workspace while they are being checked; `answering` are those that could be listed."""

    def __init__(
        self, tables: Tables, found: Found, stores: Mapping[ReplicaId, ChunkStore], runtime: Runtime, report: Report
    ) -> None:
        self._tables = tables
        self._found = found
        self._stores = stores
        self._runtime = runtime
        self._report = report
        self._titles = {number: f"replica {number} at {replica.url}" for number, replica in tables.members.items()}
        self._answering: set[ReplicaId] = set()
        self._slots = trio.CapacityLimiter(COPIES_MAX)
        self._listed: list[Finding] = []
        self._faults: dict[ReplicaId, int] = {}
        self._done_bytes = 0
        self._total_bytes = 0

    def findings(self) -> list[Finding]:
        """All that was found; what was not listed one by one is counted."""
        more = {replica: count - FINDINGS_MAX for replica, count in self._faults.items() if count > FINDINGS_MAX}
        counted = [
            Finding("damaged", f"{self._titles.get(replica, 'all replicas')}: {count} more faults of segments")
            for replica, count in more.items()
        ]
        return [*self._listed, *counted]

    # ---- each replica as a whole

    async def look_through(self, replica: ReplicaId, *, complete: bool) -> None:
        """List what a replica holds: whether it answers, and what no entry knows."""
        title = self._titles[replica]
        store = self._stores.get(replica)
        if store is None:
            self._listed.append(Finding("replica", f"{title}: cannot be checked, it cannot be opened or is not ours"))
            return
        count = size = 0
        try:
            async for info in store.list("segments/"):
                known = self._known_size(info.key)
                if known is None:
                    count, size = count + 1, size + info.size
                elif info.size > known:
                    self._fault("damaged", replica, f"{info.key} has {info.size} bytes instead of {known}")
        except AgentfsError as error:
            self._listed.append(Finding("replica", f"{title}: cannot be listed: {error}"))
            return
        self._answering.add(replica)
        if count and complete:
            what = f"{count} objects of {size} bytes" if count > 1 else f"an object of {size} bytes"
            why = f"that no entry up to position {self._tables.position} names: left by a crash, or being written now"
            self._listed.append(Finding("unknown", f"{title}: {what} {why}", "note"))

    def _known_size(self, key: str) -> int | None:
        row = self._tables.db.execute("SELECT size FROM segments WHERE name = ?", (segment_name(key),)).fetchone()
        return row[0] if row else None

    # ---- each segment

    async def read_all(self) -> None:
        """Read every copy of every segment that files need, one segment after the other."""
        if not self._answering:
            return
        db = self._tables.db
        held = dict(
            db.execute(
                "SELECT replica, sum(size) FROM placed JOIN segments USING (segment)"
                " WHERE segment IN (SELECT segment FROM extents) GROUP BY replica"
            )
        )
        self._total_bytes = sum(size for replica, size in held.items() if replica in self._answering)
        query = "SELECT segment, name, size FROM segments WHERE segment IN (SELECT segment FROM extents) ORDER BY segment"
        for segment, name, size in db.execute(query):
            await self._read_copies(segment, name, size)

    async def _read_copies(self, segment: SegmentId, name: bytes, size: int) -> None:
        db = self._tables.db
        placed = {row[0] for row in db.execute("SELECT replica FROM placed WHERE segment = ?", (segment,))}
        self._count_votes(segment, name, placed)
        query = "SELECT DISTINCT start, stored, raw, digest FROM extents WHERE segment = ? ORDER BY start"
        used = [Chunk(*row) for row in db.execute(query, (segment,))]
        copies: list[_Copy] = []
        async with trio.open_nursery() as nursery:
            for replica in placed & self._answering:
                nursery.start_soon(self._read_copy, replica, segment, name, size, used, copies)
        for copy in sorted(copies, key=lambda copy: copy.replica):
            if copy.kind is not None:
                self._fault(copy.kind, copy.replica, f"{segment_key(name)} {copy.message}")
        if not any(copy.readable for copy in copies):
            whose = self._users(segment)
            self._fault("lost", _ANYWHERE, f"no replica that answers holds {segment_key(name)} in a readable form: {whose}")

    async def _read_copy(
        self, replica: ReplicaId, segment: SegmentId, name: bytes, size: int, used: list[Chunk], copies: list["_Copy"]
    ) -> None:
        """Read one copy whole, and add what came of it to `copies`."""
        async with self._slots:
            try:
                body = await self._stores[replica].get(segment_key(name), 0, size)
            except NotFound:
                copies.append(_Copy(replica, False, "missing", f"is missing: {self._users(segment)}"))
            except AgentfsError as error:
                copies.append(_Copy(replica, False, "damaged", f"cannot be read: {error}: {self._users(segment)}"))
            else:
                reason, wrong = await self._runtime.in_thread(damage, body, name, used)
                message = f"is damaged: {reason}: {self._harm(segment, wrong)}"
                copies.append(_Copy(replica, not wrong, "damaged" if reason else None, message))
        self._done_bytes += size
        self._report(self._done_bytes, self._total_bytes)

    def _count_votes(self, segment: SegmentId, name: bytes, placed: set[ReplicaId]) -> None:
        """Whether State says that as many replicas hold a segment as had to when it was put; `count_laggards` sees to sync."""
        total = len(self._titles)
        majority = min(self._found.write_quorum or total // 2 + 1, total)
        needed = {"sync": 0, "quorum": majority}.get(self._found.replication, 1)
        if len(placed) < needed:
            lacking = ", ".join(str(replica) for replica in self._titles if replica not in placed)
            rule = f"{self._found.replication} replication needs {needed} of {total}"
            message = f"{segment_key(name)} is not known to be in replica {lacking}, and {rule}: {self._users(segment)}"
            self._fault("missing", _ANYWHERE, message)

    def count_laggards(self) -> None:
        """Say how much each replica has to catch up on. With sync replication that is a fault, also where it just came."""
        is_fault = self._found.replication == "sync"
        why = "and sync replication needs all: a mount gives them to it" if is_fault else "which the next mount gives it"
        query = (
            "SELECT count(*), coalesce(sum(size), 0) FROM segments s WHERE segment IN (SELECT segment FROM extents)"
            " AND NOT EXISTS (SELECT 1 FROM placed WHERE segment = s.segment AND replica = ?)"
        )
        for replica, title in self._titles.items():
            count, size = self._tables.db.execute(query, (replica,)).fetchone()
            if count:
                message = f"{title}: lacks {count} segments of {size} bytes, {why}"
                self._listed.append(Finding("missing", message, "fault" if is_fault else "note"))

    # ---- what is said

    def _fault(self, kind: Kind, replica: ReplicaId, message: str) -> None:
        self._faults[replica] = self._faults.get(replica, 0) + 1
        if self._faults[replica] <= FINDINGS_MAX:
            title = f"{self._titles[replica]}: " if replica in self._titles else ""
            self._listed.append(Finding(kind, printable(f"{title}{message}")))

    def _users(self, segment: SegmentId) -> str:
        rows = self._tables.db.execute("SELECT ino FROM extents WHERE segment = ? ORDER BY start", (segment,))
        return f"needed by {names_of(self._tables, (Ino(row[0]) for row in rows))}"

    def _harm(self, segment: SegmentId, wrong: Iterable[Chunk]) -> str:
        query = 'SELECT ino, "offset", "offset" + length FROM extents WHERE segment = ? AND start = ? AND digest = ?'
        rows = [row for chunk in wrong for row in self._tables.db.execute(query, (segment, chunk.start, chunk.digest))]
        if not rows:
            return "every chunk in use is right"
        _, start, end = rows[0]
        return f"bytes {start} to {end} of {names_of(self._tables, (Ino(row[0]) for row in rows))}"


class _Copy(NamedTuple):
    """What came of reading a segment in one replica: `readable` if every chunk in use is right, `kind` None if all is."""

    replica: ReplicaId
    readable: bool
    kind: Kind | None
    message: str
