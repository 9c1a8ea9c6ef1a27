"""What a mount reads and writes through: chunk stores, stacked over the stores of the workspace's replicas."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog
import trio

from agentfs.chunks.cached import Cached, open_cached
from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.replicated import Replicated, open_replicated
from agentfs.model.errors import AgentfsError, Denied, Unavailable
from agentfs.model.ids import ReplicaId
from agentfs.model.replica import Replica
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables
from agentfs.workspace.settings import Settings

if TYPE_CHECKING:
    from agentfs.chunks.edge import EdgeCache
    from agentfs.chunks.s3 import Requests

MEMORY_MAX: Final = 64 << 20
"""Bytes of chunks, as stored, in memory."""

CHECK_SECONDS: Final = 3.0
"""How long a mount waits for its replicas to say that they are the right ones; one that does not is taken to be."""

_log = structlog.get_logger()


class Opened(NamedTuple):
    """A replica's store.

    `far`: worth a cache on disk. `check` raises why it cannot be used. `requests`: what it was asked so far, where that is
    counted. `grow` adds bytes to an object, or to nothing, and gives it another key, at once and as safe as the journal is; it
    says whether it did. That is there where the replica may lie beside the journal.
    """

    store: ChunkStore
    far: bool = False
    check: Callable[[], Awaitable[None]] | None = None
    requests: "Callable[[], Requests] | None" = None
    grow: Callable[[str | None, str, bytes], bool] | None = None


OpenStore = Callable[[Replica], Opened]
"""Opens the store of a replica; nothing is asked of it yet."""


class Stores:
    """The stores of the members, as they are opened one by one."""

    def __init__(self, open_store: OpenStore) -> None:
        self._open_store = open_store
        self._opened: dict[ReplicaId, Opened] = {}

    def open(self, replica: Replica) -> ChunkStore:
        """Open the store of a replica. Raises what it cannot be opened for."""
        opened = self._opened[replica.replica] = self._open_store(replica)
        return opened.store

    @property
    def any_far(self) -> bool:
        """Whether a cache on disk is worth its while."""
        return any(each.far for each in self._opened.values())

    async def check(self, needed: int) -> None:
        """Raise Denied if so many refuse to be used that fewer than `needed` are left.

        One that does not answer is a replica that is down: the replication mode says what works without it.
        """
        refusals: dict[ReplicaId, str] = {}

        async def look(replica: ReplicaId, check: Callable[[], Awaitable[None]]) -> None:
            try:
                await check()
            except Unavailable as error:
                _log.warning("replica_down", replica=replica, reason=str(error))
            except AgentfsError as error:
                _log.error("replica_refuses", replica=replica, reason=str(error))
                refusals[replica] = str(error)

        with trio.move_on_after(CHECK_SECONDS):
            async with trio.open_nursery() as nursery:
                for replica, opened in self._opened.items():
                    if opened.check is not None:
                        nursery.start_soon(look, replica, opened.check)
        if len(self._opened) - len(refusals) < needed:
            reasons = "; ".join(f"replica {replica}: {reason}" for replica, reason in sorted(refusals.items()))
            raise Denied(f"too few replicas can be used: {reasons}")

    def grow(self, replicas: Iterable[ReplicaId], old: str | None, new: str, body: bytes) -> bool:
        """Let an object grow in all of these replicas, at once; whether that was done in every one. A hot path."""
        opened = [self._opened.get(replica) for replica in replicas]
        return all(each is not None and each.grow is not None and each.grow(old, new, body) for each in opened)

    def requests(self, replica: ReplicaId) -> "Requests | None":
        """What a replica's store was asked so far; None where that is not counted."""
        opened = self._opened.get(replica)
        return opened.requests() if opened is not None and opened.requests is not None else None


class Storage(NamedTuple):
    """The stack: `chunks` is what is read through, `edge` the cache on disk below it if there is one, then the replicas.

    `offline`: these are asked for nothing.
    """

    chunks: Cached
    edge: "EdgeCache | None"
    replicas: Replicated
    stores: Stores
    offline: bool

    @property
    def sink(self) -> ChunkStore:
        """What segments are put into: through the cache on disk, which keeps them."""
        return self.edge or self.replicas


@asynccontextmanager
async def open_storage(
    tables: Tables, open_store: OpenStore, settings: Settings, cache_dir: Path, runtime: Runtime
) -> AsyncIterator[Storage]:
    """The stack over the replicas that State has as members; closed on leaving. Raises what a store cannot be opened for."""
    found = tables.found
    assert found is not None, "State was replayed"
    stores = Stores(open_store)
    members = {number: stores.open(replica) for number, replica in tables.members.items()}
    async with AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(
            open_replicated(
                members,
                replication=found.replication,
                write_quorum=found.write_quorum,
                timeout_seconds=settings.put_timeout_seconds,
                hedging=settings.hedging,
                runtime=runtime,
            )
        )
        if not settings.offline:
            await stores.check(_needed(settings, replicas))
        edge = None
        if settings.offline or settings.edge_max_bytes is not None or stores.any_far:
            from agentfs.chunks.edge import open_edge_cache
            from agentfs.chunks.edge_bound import default_max_bytes
            from agentfs.chunks.edge_files import EDGE_DIRECTORY

            directory = cache_dir / EDGE_DIRECTORY
            max_bytes = settings.edge_max_bytes or default_max_bytes(directory)
            edge = await stack.enter_async_context(
                open_edge_cache(replicas, directory, max_bytes=max_bytes, runtime=runtime, offline=settings.offline)
            )
        chunks = await stack.enter_async_context(open_cached(edge or replicas, max_bytes=MEMORY_MAX))
        yield Storage(chunks, edge, replicas, stores, settings.offline)


def _needed(settings: Settings, replicas: Replicated) -> int:
    """How many replicas a mount cannot do without."""
    if not settings.needs_quorum:
        return 0
    return 1 if settings.read_only else replicas.needed
