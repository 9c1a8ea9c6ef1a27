"""Placements: which replicas hold the segments of this session, as far as the journal has to be told.

Who names a segment says which replicas hold it by then. A straggler that comes before that is said with it; one that comes
later is recorded in a transaction of its own, together with all that come within GATHER_SECONDS.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

import structlog
import trio

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.segment import Segment, segment_name
from agentfs.model.changes import AddSegment, Placed
from agentfs.model.errors import AgentfsError
from agentfs.model.ids import Position, ReplicaId
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer

GATHER_SECONDS = 0.25
"""How long a straggler waits for others to be recorded with it."""

RECENT_MAX = 1024
"""Segments whose stragglers are remembered for whoever names them next."""

STRAGGLERS_MAX = 4096
"""Stragglers that wait to be recorded. One more is not: then the segment is put there once again when the replica is filled."""

_log = structlog.get_logger()


class Replicas(ChunkStore, Protocol):
    """A chunk store over several replicas that says where an object is."""

    on_straggler: Callable[[str, ReplicaId], None] | None

    @property
    def reachable(self) -> bool:
        """Whether the last put reached as many replicas as it has to."""
        ...

    def placed(self, key: str) -> list[ReplicaId]:
        """The replicas that hold a key that was put."""
        ...


class Placement:
    """A segment that enough replicas hold: its name, size in bytes, when it was put, and the replicas that hold it so far.

    `since`: the last entry that was applied before it was begun.
    """

    __slots__ = ("name", "replicas", "since", "size", "time_ns")

    def __init__(self, name: bytes, size: int, time_ns: int, since: Position) -> None:
        self.name = name
        self.size = size
        self.time_ns = time_ns
        self.since = since
        self.replicas: set[ReplicaId] = set()

    def naming(self) -> AddSegment:
        """The change that makes the segment known: every transaction with chunks in it begins with this."""
        return AddSegment(self.name, self.size, sorted(self.replicas), self.time_ns, self.since)


class Beginning(NamedTuple):
    """The last entry applied before a segment is built, and the last one that collected anything: its epoch.

    The same bytes make another segment, of another name, in each epoch: so what is deleted is never what was put later.
    """

    since: Position
    epoch: Position


class Placements:
    """Puts segments, and keeps account of who holds them. `run` is its task."""

    def __init__(self, store: ChunkStore, replicas: Replicas, committer: Committer, runtime: Runtime) -> None:
        self._store = store
        self._replicas = replicas
        self._committer = committer
        self._runtime = runtime
        self._recent: OrderedDict[bytes, Placement] = OrderedDict()
        self._stragglers: dict[Placed, None] = {}
        self._came = trio.Event()

    def begin(self) -> Beginning:
        """What has to be known before a segment is built."""
        tables = self._committer.tables
        return Beginning(tables.position, Position(tables.counters["collected"]))

    async def put(self, segment: Segment, since: Position) -> Placement:
        """Put a segment, also one that State knows: who writes the same bytes again may be mending a damaged file.

        `since`: the position as of its beginning. Raises as the contract of stores says.
        """
        name = segment.name
        await self._store.put(segment.key, segment.body)
        holders = self._replicas.placed(segment.key)
        # Another may have put the same bytes meanwhile: then what it was told of the replicas is known to both.
        placement = self._recent.get(name) or Placement(name, len(segment.body), self._runtime.now_ns(), since)
        placement.replicas.update(holders)
        self._recent[name] = placement
        self._recent.move_to_end(name)
        if len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)
        return placement

    def straggler(self, key: str, replica: ReplicaId) -> None:
        """A replica holds an object now that it did not acknowledge in time."""
        name = segment_name(key)
        if name is None:
            return
        if placement := self._recent.get(name):
            placement.replicas.add(replica)
        # Where State does not know the segment, the transaction that names it is still to come and will say this too.
        if self._committer.tables.segment_id(name) is not None and len(self._stragglers) < STRAGGLERS_MAX:
            self._stragglers[Placed(name, replica)] = None
            self._came.set()

    async def run(self) -> None:
        """Record stragglers, many in one transaction, until cancelled."""
        while True:
            await self._came.wait()
            await self._runtime.sleep(GATHER_SECONDS)
            try:
                await self._committer.registered()
                self._record()
            except AgentfsError as error:
                _log.warning("placements_not_recorded", count=len(self._stragglers), reason=str(error))
            self._stragglers.clear()
            self._came = trio.Event()

    def _record(self) -> None:
        news = [each for each in self._stragglers if each.replica not in self._committer.tables.holders(each.name)]
        if news:
            self._committer.submit([*news])
