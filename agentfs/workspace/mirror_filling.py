"""Filling the mirror: finds what each replica lacks of the journal's entries, and gives it that."""

import math
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from typing import Final, Protocol

import structlog
import trio

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.replica_lane import ReplicaHealth
from agentfs.journal.contract import Journal
from agentfs.journal.mirror import MIRROR_PREFIX, MIRRORED_MIN, encode_mirrored, mirror_key, parse_mirror_key
from agentfs.model.errors import AgentfsError, Stale, Unavailable
from agentfs.model.ids import Position, ReplicaId
from agentfs.runtime import Runtime
from agentfs.workspace.fetching import list_checkpoints
from agentfs.workspace.mirror import OBJECT_BYTES, Mirror, trimmed_until
from agentfs.workspace.mirror_holdings import Run

RIPE_SECONDS: Final = 10.0
"""How long an entry must have been known before a replica is given it: the puts of others may be under way."""

RETRY_SECONDS: Final = 30.0
"""How long a replica that could not be looked at, or given something, is left alone, unless it is known to be back before."""

LOOK_AGAIN_SECONDS: Final = 600.0
"""After how long a replica is looked at again, if anything was appended meanwhile: it may have lost something."""

LOOK_SECONDS: Final = 60.0
"""How long a replica may take to list what it holds."""

_log = structlog.get_logger()


class Replicas(Protocol):
    """What filling wants of the replicas."""

    @property
    def stores(self) -> Mapping[ReplicaId, ChunkStore]:
        """Those in use."""
        ...

    @property
    def needed(self) -> int:
        """How many replicas a put waits for."""
        ...

    def health(self) -> Mapping[ReplicaId, ReplicaHealth]:
        """How each does."""
        ...

    async def put_into(self, key: str, body: bytes, replica: ReplicaId) -> None:
        """Have one replica keep an object. Raises what it refuses it for."""
        ...


class MirrorFilling:
    """A chore: looks what a replica holds when it has to, and gives it what is missing, a piece at a time."""

    def __init__(self, mirror: Mirror, journal: Journal, replicas: Replicas, runtime: Runtime) -> None:
        self._mirror = mirror
        self._journal = journal
        self._replicas = replicas
        self._runtime = runtime
        self._looked: dict[ReplicaId, _Look] = {}
        self._missing: dict[ReplicaId, list[Run]] = {}
        self._resting: dict[ReplicaId, float] = {}
        # When the tail was looked at, and where it was. What was there at the start is old enough.
        self._tails: deque[tuple[float, Position]] = deque([(-math.inf, mirror.tail)])

    def returned(self, replica: ReplicaId) -> None:
        """A replica that was away answers again: nobody knows what it holds now."""
        self._resting.pop(replica, None)
        self._looked.pop(replica, None)
        self._missing.pop(replica, None)
        self._mirror.holdings.forget(replica)

    async def run_once(self) -> bool:
        """Give each replica a piece of what it lacks; return whether there is more. Raises what the journal does."""
        ripe = self._ripe()
        more = False
        members = list(self._replicas.stores)
        self._mirror.holdings.keep(members)
        for replica in members:
            resting = self._resting.get(replica, -math.inf) > self._runtime.boottime()
            if not resting and self._replicas.health()[replica].state == "up":
                more = await self._tend(replica, ripe) or more
        self._count(members)
        return more

    def _ripe(self) -> Position:
        """The last of the entries that are old enough."""
        now = self._runtime.boottime()
        if now - self._tails[-1][0] >= RIPE_SECONDS / 4:
            self._tails.append((now, self._mirror.tail))
        while len(self._tails) > 1 and self._tails[1][0] <= now - RIPE_SECONDS:
            self._tails.popleft()
        return self._tails[0][1]

    async def _tend(self, replica: ReplicaId, ripe: Position) -> bool:
        """Find out what a replica lacks, or give it a piece of that; whether there is more to be given."""
        try:
            if self._missing.get(replica):
                await self._give(replica, self._missing[replica])
            elif self._must_look(replica, ripe):
                await self._look(replica)
                self._missing[replica] = self._mirror.holdings.gaps(replica, ripe)
        except AgentfsError as error:
            _log.warning("mirror_not_filled", replica=replica, reason=str(error))
            self._resting[replica] = self._runtime.boottime() + RETRY_SECONDS
            self._missing.pop(replica, None)
            return False
        return bool(self._missing.get(replica))

    def _must_look(self, replica: ReplicaId, ripe: Position) -> bool:
        """Whether a replica may lack something: by a look of one's own, for others put entries too, and do not say where."""
        look = self._looked.get(replica)
        if look is None or self._mirror.holdings.position(replica) is None:
            return True
        old = self._runtime.boottime() - look.at >= LOOK_AGAIN_SECONDS and self._mirror.tail > look.tail
        return old or bool(self._mirror.holdings.gaps(replica, ripe))

    async def _look(self, replica: ReplicaId) -> None:
        """List what a replica holds."""
        holdings, store = self._mirror.holdings, self._replicas.stores[replica]
        self._looked[replica] = _Look(self._runtime.boottime(), self._mirror.tail)
        holdings.begin(replica)
        runs: list[Run] = []
        try:
            with trio.fail_after(LOOK_SECONDS):
                checkpoints = sorted(await list_checkpoints(store))
                listing = store.list(MIRROR_PREFIX)
                try:
                    async for info in listing:
                        run = parse_mirror_key(info.key)
                        if run is not None and info.size >= MIRRORED_MIN:
                            runs.append(run)
                finally:
                    if isinstance(listing, AsyncGenerator):
                        await listing.aclose()
        except trio.TooSlowError:
            raise Unavailable(f"it did not list its objects in {LOOK_SECONDS:g} s") from None
        # What the older of the two checkpoints that a replica keeps stands in for, trimming takes away.
        base = checkpoints[-2:][0].position if checkpoints else Position(0)
        holdings.found(replica, runs, base=base)

    async def _give(self, replica: ReplicaId, missing: list[Run]) -> None:
        """Give a replica the first piece of what it lacks."""
        first, last = missing[0]
        try:
            records = await self._journal.read(Position(first - 1), limit_bytes=OBJECT_BYTES)
        except Stale:
            # Trimmed: who rebuilds the workspace from this replica needs a checkpoint, which it is given by another chore.
            done = min(last, await trimmed_until(self._journal, Position(first - 1), await self._journal.tail()))
            self._mirror.holdings.skip(replica, done)
        else:
            piece = [record for record in records if record.position <= last]
            run = first, done = piece[0].position, piece[-1].position
            await self._replicas.put_into(mirror_key(*run), encode_mirrored(piece), replica)
            self._mirror.holdings.given(replica, run)
        missing[:1] = [(Position(done + 1), last)] if done < last else []

    def _count(self, members: list[ReplicaId]) -> None:
        """What was found may show that the mirror is further than anybody knew."""
        positions = [self._mirror.holdings.position(replica) for replica in members]
        known = sorted((position for position in positions if position is not None), reverse=True)
        if len(known) >= self._replicas.needed:
            self._mirror.enough_hold(known[self._replicas.needed - 1])


class _Look:
    """When a replica was looked at, and the journal's tail then."""

    def __init__(self, at: float, tail: Position) -> None:
        self.at = at
        self.tail = tail
