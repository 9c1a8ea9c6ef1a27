"""Collecting: segments that no file needs any more are deleted from the replicas, once no kept version needs them either.

Three entries, each after the one before has done its part: `Unneeded` starts the wait of a segment that no extent is in;
`Collect`, when the history window and GRACE_SECONDS are over, makes it unknown, unless a transaction has named it meanwhile;
`Deleted` says that no replica holds it any more. What is put after a `Collect` never has the name of what that collected (the
packer sees to it), and what was put before and is named after it is refused (`apply` sees to it): so however late a deletion
is, no file needs what it deletes (decision 25).
"""

from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from agentfs.chunks.segment import segment_key
from agentfs.model.changes import Collect, Deleted, Unneeded
from agentfs.model.errors import AgentfsError
from agentfs.model.ids import Position
from agentfs.model.session import OPEN
from agentfs.runtime import Runtime
from agentfs.state.queries import collected, unneeded, waiting_since
from agentfs.workspace.committer import Committer

GRACE_SECONDS: Final = 3600.0
"""How long a segment waits besides the history window: a mount that has it open may not have heard that it is unneeded."""

SETTLE_SECONDS: Final = 120.0
"""How long a mount knows that a segment's wait is over before it collects it; no less than twice any session's TTL.

By then sessions that died with something to send are judged, and readers have heard, whatever the hosts' clocks say.
"""

LOOK_SECONDS: Final = 60.0
"""How often it looks; what failed is tried again then."""

BATCH: Final = 256
"""Segments in one transaction."""

DUE_MAX: Final = 4096
"""Segments whose wait is over that are remembered."""

DELETES_MAX: Final = 8
"""Deletions at once."""

_log = structlog.get_logger()


class Store(Protocol):
    """Where segments are: the caches and the replicas behind them."""

    async def delete(self, key: str) -> None:
        """Forget an object, everywhere; an unknown key is ignored. Raises why one may still be somewhere."""
        ...


class Collecting:
    """A chore of upkeep; two mounts that both do it do no harm. `mirrored`: up to which entry the replicas hold the journal."""

    def __init__(self, committer: Committer, store: Store, runtime: Runtime, *, mirrored: Callable[[], Position]) -> None:
        self._committer = committer
        self._store = store
        self._runtime = runtime
        self._mirrored = mirrored
        self._due: dict[bytes, float] = {}
        self._not_before = 0.0
        self._after = b""

    async def run_once(self) -> bool:
        """Take up to BATCH segments a step further; whether there is more to do at once. Raises what the journal refuses."""
        now = self._runtime.boottime()
        found = self._committer.tables.found
        if found is None or not found.history_seconds or now < self._not_before:
            return False
        more = await self._note_unneeded()
        more = await self._collect(found.history_seconds + GRACE_SECONDS) or more
        more = await self._delete() or more
        if not more:
            self._not_before = now + LOOK_SECONDS
        return more

    async def _note_unneeded(self) -> bool:
        names = unneeded(self._committer.tables, BATCH)
        if names:
            await self._committer.commit([Unneeded(names, self._runtime.now_ns())])
        return len(names) == BATCH

    async def _collect(self, wait_seconds: float) -> bool:
        until_ns = self._runtime.now_ns() - round(wait_seconds * 10**9)
        names = waiting_since(self._committer.tables, until_ns, DUE_MAX)
        now = self._runtime.boottime()
        self._due = {name: self._due.get(name, now) for name in names}
        # Whoever was silent for twice its TTL is judged by now.
        ttls = (each.ttl_ms / 1000 for each in self._committer.tables.sessions.values() if each.standing == OPEN)
        settle_seconds = max(SETTLE_SECONDS, *(2 * ttl for ttl in ttls))
        ripe = [name for name, since in self._due.items() if now - since >= settle_seconds]
        if ripe:
            await self._committer.commit([Collect(ripe[:BATCH], until_ns)])
        return len(ripe) > BATCH

    async def _delete(self) -> bool:
        """Delete what is collected, and nothing before the replicas know of it: a workspace is rebuilt from what they know."""
        found = collected(self._committer.tables, self._after, BATCH)
        self._after = found[-1][0] if len(found) == BATCH else b""
        deleted: list[bytes] = []
        failures: list[AgentfsError] = []
        slots = trio.CapacityLimiter(DELETES_MAX)

        async def delete(name: bytes) -> None:
            async with slots:
                # A replica that is away is not asked for all of them in vain, nor are the others each time.
                if failures:
                    return
                try:
                    await self._store.delete(segment_key(name))
                except AgentfsError as error:
                    failures.append(error)
                else:
                    deleted.append(name)

        async with trio.open_nursery() as nursery:
            for name, position in found:
                if position <= self._mirrored():
                    nursery.start_soon(delete, name)
        if deleted:
            await self._committer.commit([Deleted(sorted(deleted))])
        if failures:
            _log.warning("segments_not_deleted", collected=len(found), deleted=len(deleted), reason=str(failures[0]))
        return bool(self._after) and not failures
