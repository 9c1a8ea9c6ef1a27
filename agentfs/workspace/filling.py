"""Filling: gives each replica the segments that it lacks by State, and says so in the journal."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import structlog
import trio
from cachetools import TTLCache

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.segment import segment_key
from agentfs.model.changes import AnyChange, Placed
from agentfs.model.errors import AgentfsError, Corrupt, NotFound
from agentfs.model.ids import ReplicaId, SegmentId
from agentfs.runtime import Runtime
from agentfs.state.queries import Lacking, lacking
from agentfs.workspace.committer import Committer

FILLS_MAX: Final = 4
"""Segments being copied at once: 32 MiB of memory."""

BATCH: Final = 64
"""Segments that a replica is given before that goes to the journal, and the next replica has its turn."""

RIPE_SECONDS: Final = 10.0
"""How long a segment has to be known before it is copied: the puts of whoever wrote it may still be under way."""

RETRY_SECONDS: Final = 30.0
"""How long a replica that could not be given something is left alone, unless it is known to be back before."""

LOST_SECONDS: Final = 600.0
"""How long a segment that nobody could give is left alone."""

_LOST_MAX: Final = 4096

_log = structlog.get_logger()


class Replicas(Protocol):
    """What filling wants of the replicas."""

    @property
    def stores(self) -> Mapping[ReplicaId, ChunkStore]:
        """Those in use."""
        ...

    async def fill(self, key: str, replica: ReplicaId, *, replace: bool = False) -> None:
        """Copy one object to a replica, from any other that has it whole.

        Raises NotFound or Corrupt where nobody has, and what the replica refuses it for.
        """
        ...


class Filling:
    """A chore: the segments that are lacking, oldest first. How much is left State says (`queries.missing`)."""

    def __init__(self, committer: Committer, replicas: Replicas, runtime: Runtime) -> None:
        self._committer = committer
        self._replicas = replicas
        self._runtime = runtime
        self._slots = trio.CapacityLimiter(FILLS_MAX)
        # Copied, and not in the journal yet.
        self._unrecorded: list[AnyChange] = []
        self._resting: dict[ReplicaId, float] = {}
        self._lost: TTLCache[bytes, None] = TTLCache(_LOST_MAX, LOST_SECONDS, timer=runtime.boottime)
        # When a look was taken, and the last segment that was known then. What was known at the start is old enough.
        self._looks: deque[tuple[float, SegmentId]] = deque([(-math.inf, self._last_segment)])

    def returned(self, replica: ReplicaId) -> None:
        """A replica that was away answers again."""
        self._resting.pop(replica, None)

    async def run_once(self) -> bool:
        """Give each replica up to BATCH segments; return whether there are more. Raises what the journal refuses."""
        ripe = self._look()
        await self._record()
        more = False
        for replica in sorted(self._replicas.stores):
            more = await self._fill(replica, ripe) or more
            await self._record()
        return more

    @property
    def _last_segment(self) -> SegmentId:
        return SegmentId(self._committer.tables.counters["segment"])

    def _look(self) -> SegmentId:
        """The last of the segments that are old enough."""
        now = self._runtime.boottime()
        if now - self._looks[-1][0] >= RIPE_SECONDS / 4:
            self._looks.append((now, self._last_segment))
        while len(self._looks) > 1 and self._looks[1][0] <= now - RIPE_SECONDS:
            self._looks.popleft()
        return self._looks[0][1]

    async def _fill(self, replica: ReplicaId, ripe: SegmentId) -> bool:
        """Give a replica a batch; whether there is more that it could be given at once."""
        if self._resting.get(replica, -math.inf) > self._runtime.boottime():
            return False
        wanted = self._wanted(replica, ripe)
        refusals: list[AgentfsError] = []
        async with trio.open_nursery() as nursery:
            for each in wanted:
                nursery.start_soon(self._fill_one, each, replica, refusals)
        if refusals:
            _log.warning("replica_not_filled", replica=replica, reason=str(refusals[0]))
            self._resting[replica] = self._runtime.boottime() + RETRY_SECONDS
        return len(wanted) == BATCH and not refusals

    def _wanted(self, replica: ReplicaId, ripe: SegmentId) -> Sequence[Lacking]:
        wanted: list[Lacking] = []
        after = SegmentId(0)
        while len(wanted) < BATCH:
            page = lacking(self._committer.tables, replica, after, BATCH)
            wanted += [each for each in page if each.segment <= ripe and each.name not in self._lost]
            if len(page) < BATCH or page[-1].segment > ripe:
                break
            after = page[-1].segment
        return wanted[:BATCH]

    async def _fill_one(self, lacked: Lacking, replica: ReplicaId, refusals: list[AgentfsError]) -> None:
        async with self._slots:
            if refusals:
                return
            try:
                await self._replicas.fill(segment_key(lacked.name), replica)
            except (NotFound, Corrupt) as error:
                _log.error("segment_lost", segment=lacked.name.hex(), replica=replica, reason=str(error))
                self._lost[lacked.name] = None
            except AgentfsError as error:
                refusals.append(error)
            else:
                self._unrecorded.append(Placed(lacked.name, replica))

    async def _record(self) -> None:
        """Say in the journal what was copied; what it does not take now is kept for the next time."""
        if self._unrecorded:
            count = len(self._unrecorded)
            await self._committer.commit(self._unrecorded[:count])
            del self._unrecorded[:count]
