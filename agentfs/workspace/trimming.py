"""Trimming: what checkpoints make needless goes: entries of the journal, objects of its mirror, and older checkpoints."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Final, Protocol

import structlog
import trio

from agentfs.chunks.contract import Check, ChunkStore
from agentfs.journal.contract import Journal
from agentfs.journal.mirror import MIRROR_PREFIX, parse_mirror_key
from agentfs.model.codec import decode_entry
from agentfs.model.errors import AgentfsError, Stale
from agentfs.model.ids import Position, ReplicaId
from agentfs.runtime import Runtime
from agentfs.state.checkpoint import CHECKPOINTS, CheckpointKey
from agentfs.state.tables import Tables
from agentfs.workspace.fetching import list_checkpoints

KEPT: Final = 2
"""Checkpoints that a replica keeps: should the newest be damaged, the one before it and the mirror behind that are as good."""

DELETE_MAX: Final = 256
"""Objects deleted from one replica at a time, before the other chores have their turn."""

PATIENCE_SECONDS: Final = 60.0
"""How long one replica may take for that: a checkpoint may have to be copied to it."""

RETRY_SECONDS: Final = 30.0
"""How long a replica that could not be tidied is left alone."""

_log = structlog.get_logger()


async def trim_journal(journal: Journal, first: Position, before: Position, *, history_seconds: int, now_ns: int) -> Position:
    """Forget the entries in front of `before` that are older than `history_seconds` (0: none is); the first one that is left.

    `first` is the first one that is there, as far as is known. Entries are taken to be in the order of their times.
    """
    if not history_seconds:
        return first
    oldest_ns = now_ns - history_seconds * 10**9
    low, high = first, before
    # Most of the times the very first entry is young enough, and that is all there is to ask.
    middle = low
    while low < high:
        if await _is_older(journal, middle, oldest_ns):
            low = Position(middle + 1)
        else:
            high = middle
        middle = Position((low + high) // 2)
    if low > first:
        await journal.trim(low)
    return low


async def _is_older(journal: Journal, position: Position, time_ns: int) -> bool:
    try:
        records = await journal.read(Position(position - 1), limit_bytes=1)
    except Stale:
        return True
    return bool(records) and decode_entry(records[0].payload).time_ns < time_ns


class JournalTrimming:
    """Trims the journal once there is another checkpoint. `run` is its task: an engine may take minutes for it.

    `trimmed` is told the first entry that is left.
    """

    def __init__(
        self, journal: Journal, tables: Tables, runtime: Runtime, trimmed: Callable[[Position], Awaitable[None]]
    ) -> None:
        self._journal = journal
        self._tables = tables
        self._runtime = runtime
        self._trimmed = trimmed
        self._wanted: tuple[Position, Position] | None = None
        self._woken = trio.Event()

    def want(self, first: Position, before: Position) -> None:
        """What is in front of `before` is not needed; `first` is the first entry that is there."""
        self._wanted = first, before
        self._woken.set()

    async def run(self) -> None:
        """Trim whenever it is wanted, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            await self.run_once()

    async def run_once(self) -> None:
        """Trim if it is wanted. What the journal refuses is left for the next time."""
        wanted, self._wanted = self._wanted, None
        found = self._tables.found
        if wanted is None or found is None:
            return
        now_ns = self._runtime.now_ns()
        try:
            first = await trim_journal(self._journal, *wanted, history_seconds=found.history_seconds, now_ns=now_ns)
            if first != wanted[0]:
                await self._trimmed(first)
                _log.info("journal_trimmed", first=first)
        except AgentfsError as error:
            _log.warning("journal_not_trimmed", reason=str(error))


class Replicas(Protocol):
    """What trimming wants of the replicas."""

    @property
    def stores(self) -> Mapping[ReplicaId, ChunkStore]:
        """Those in use."""
        ...

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        """An object from any replica that has it right."""
        ...


class Trimming:
    """A chore: tidies each replica once there is another checkpoint, and once it is back. `newest` is asked for that."""

    def __init__(self, replicas: Replicas, newest: Callable[[], CheckpointKey | None], runtime: Runtime) -> None:
        self._replicas = replicas
        self._newest = newest
        self._runtime = runtime
        # The replicas that there is something to do in, perhaps, and since or from when on.
        self._untidy: dict[ReplicaId, float] = {}

    def found(self) -> None:
        """There is another checkpoint."""
        self._untidy = dict.fromkeys(self._replicas.stores, 0.0)

    def returned(self, replica: ReplicaId) -> None:
        """A replica is there, or there again: it may lack the newest checkpoint."""
        self._untidy[replica] = 0.0

    async def run_once(self) -> bool:
        """Tidy the replicas that are due, up to DELETE_MAX objects in each; whether there is more to do at once."""
        newest = self._newest()
        if newest is None:
            return False
        more = False
        for replica, due in list(self._untidy.items()):
            store = self._replicas.stores.get(replica)
            if store is None:
                del self._untidy[replica]
            elif due <= self._runtime.boottime():
                more = await self._tidy(replica, store, newest) or more
        return more

    async def _tidy(self, replica: ReplicaId, store: ChunkStore, newest: CheckpointKey) -> bool:
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                more = await tidy(store, newest, lambda key: self._replicas.get(key.key, check=key.check))
        except (AgentfsError, trio.TooSlowError) as error:
            _log.warning("replica_not_tidied", replica=replica, reason=str(error) or "it takes too long")
            self._untidy[replica] = self._runtime.boottime() + RETRY_SECONDS
            return False
        if not more:
            del self._untidy[replica]
        return more


async def tidy(store: ChunkStore, newest: CheckpointKey, fetch: Callable[[CheckpointKey], Awaitable[bytes]]) -> bool:
    """Give a replica the newest checkpoint if it lacks it, and delete what it does not need; whether there is more to delete.

    It must be able to rebuild the workspace alone. So what counts is what it holds itself: the mirror in front of the older one
    of its checkpoints goes. Raises what the store does, and what `fetch` does.
    """
    held = [key for key in await list_checkpoints(store) if key.position <= newest.position]
    if newest not in held:
        await store.put(newest.key, await fetch(newest))
        held.append(newest)
    held.sort()
    needless = [key.key for key in held[:-KEPT]]
    if len(held) >= KEPT:
        needless += await _mirrored_before(held[-KEPT].position, store, DELETE_MAX)
    for key in needless[:DELETE_MAX]:
        await store.delete(key)
    return len(needless) >= DELETE_MAX


async def forget_copies(store: ChunkStore) -> None:
    """Delete what a place has of a journal: it was a replica once, and may hold entries of a line that was lost since."""
    for prefix in (MIRROR_PREFIX, CHECKPOINTS):
        for key in [info.key async for info in store.list(prefix)]:
            await store.delete(key)


async def _mirrored_before(position: Position, store: ChunkStore, limit: int) -> list[str]:
    """Up to `limit` objects of the mirror that hold nothing but entries in front of a position."""
    found: list[str] = []
    listing = store.list(MIRROR_PREFIX)
    try:
        async for info in listing:
            span = parse_mirror_key(info.key)
            if span is not None and span[1] < position:
                found.append(info.key)
            # Keys are in the order of first positions.
            if len(found) >= limit or (span is not None and span[0] >= position):
                break
    finally:
        if isinstance(listing, AsyncGenerator):
            await listing.aclose()
    return found
