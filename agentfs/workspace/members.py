"""The members: keeps the stores that a mount uses to the replicas that State has, as they come and go."""

import math
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Final, Protocol

import structlog
import trio

from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.model.errors import AgentfsError, Denied
from agentfs.model.ids import ReplicaId
from agentfs.model.replica import Replica
from agentfs.runtime import Runtime
from agentfs.state.tables import Tables

RETRY_SECONDS: Final = 30.0
"""How long until a store that could not be opened is tried again."""

_log = structlog.get_logger()


class Stores(Protocol):
    """The stores in use, by replica."""

    @property
    def stores(self) -> Mapping[ReplicaId, ChunkStore]:
        """Those in use now."""
        ...

    def add(self, replica: ReplicaId, store: ChunkStore) -> None:
        """Use one more, which is theirs to close from now on."""
        ...

    async def remove(self, replica: ReplicaId) -> None:
        """Use one no more, and close it."""
        ...


class Members:
    """The members of one workspace for one mount. `run` is its task; `changed` is for `Tables.on_replicas`.

    State may show a replica that comes or goes before that is in the journal, and take it back. Until then puts go to a store
    more or less, which does no harm: what counts as placed is decided when the entry that says so is applied.
    """

    def __init__(self, tables: Tables, replicas: Stores, open_store: Callable[[Replica], ChunkStore], runtime: Runtime) -> None:
        self._tables = tables
        self._replicas = replicas
        self._open_store = open_store
        self._runtime = runtime
        self._late: dict[ReplicaId, _Late] = {}
        self._changed = trio.Event()
        # Called after a store came or went.
        self.on_changed: Callable[[], None] = lambda: None

    def changed(self) -> None:
        """State's replicas are others than before, perhaps."""
        self._changed.set()

    async def run(self) -> None:
        """Follow State until cancelled."""
        while True:
            self._changed = trio.Event()
            opened_all = await self._adjust()
            with trio.move_on_after(math.inf if opened_all else RETRY_SECONDS):
                await self._changed.wait()

    async def _adjust(self) -> bool:
        """Open and close what is to be; False if a store could not be opened."""
        members, used = self._tables.members, set(self._replicas.stores)
        for number, replica in members.items():
            if number not in used:
                self._add(replica)
        self._late = {number: late for number, late in self._late.items() if number in members}
        opened = [self._open(members[number], late) for number, late in self._late.items()]
        self._late = {number: late for number, late in self._late.items() if late.store is None}
        for number in used - members.keys():
            await self._replicas.remove(number)
            _log.info("replica_removed", replica=number)
        if used != members.keys() or any(opened):
            self.on_changed()
        return not self._late

    def _add(self, replica: Replica) -> None:
        late = self._late[replica.replica] = _Late()
        self._replicas.add(replica.replica, late)

    def _open(self, replica: Replica, late: "_Late") -> bool:
        try:
            late.store = self._open_store(replica)
        except AgentfsError as error:
            late.reason = f"it cannot be opened: {error}"
            _log.warning("replica_not_opened", replica=replica.replica, url=replica.url, reason=str(error))
        else:
            _log.info("replica_added", replica=replica.replica, url=replica.url)
        return late.store is not None


class _Late:
    """A store that may be opened later only: until then the replica is one that fails, not one that does not count."""

    def __init__(self) -> None:
        self.store: ChunkStore | None = None
        self.reason = ""

    async def put(self, key: str, body: bytes) -> None:
        await (await self._opened()).put(key, body)

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        return await (await self._opened()).get(key, start, length, check=check)

    async def size(self, key: str) -> int:
        return await (await self._opened()).size(key)

    async def list(self, prefix: str) -> AsyncGenerator[ObjectInfo, None]:
        listing = (await self._opened()).list(prefix)
        try:
            async for info in listing:
                yield info
        finally:
            if isinstance(listing, AsyncGenerator):
                await listing.aclose()

    async def delete(self, key: str) -> None:
        await (await self._opened()).delete(key)

    async def capacity(self) -> Capacity | None:
        return await (await self._opened()).capacity()

    async def aclose(self) -> None:
        if self.store is not None:
            await self.store.aclose()

    async def _opened(self) -> ChunkStore:
        if self.store is None:
            await trio.lowlevel.checkpoint()
            raise Denied(self.reason)
        return self.store
