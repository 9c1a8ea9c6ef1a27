"""The follower: applies other sessions' entries as they come, and says when State has reached the journal's tail."""

import structlog
import trio

from agentfs.journal.contract import Journal
from agentfs.model.errors import Denied, NoSpace, Unavailable
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer
from agentfs.workspace.pace import Pace

PAUSE_SECONDS = 0.1
PAUSE_MAX_SECONDS = 2.0
"""How long the follower waits after a failure of the journal before it asks again, at first and at most."""

BURST = 32
LOOKS_PER_SECOND = 30.0
"""How often the follower applies what others appended: at once so many times, and then so many times a second.

In a storm each look takes many entries then. Whoever needs to see everything looks on its own (`reach_tail`).
"""

_log = structlog.get_logger()


class Follower:
    """Follows the journal for one committer. `run` is its task."""

    def __init__(self, journal: Journal, committer: Committer, runtime: Runtime, *, staleness_seconds: float = 0.0) -> None:
        self._journal = journal
        self._committer = committer
        self._runtime = runtime
        self._staleness_seconds = staleness_seconds
        self._looking = trio.Lock()
        self._begun = 0
        self._done = 0
        self._looked = -1.0
        self._pace = Pace(runtime, burst=BURST, per_second=LOOKS_PER_SECOND)

    async def run(self) -> None:
        """Apply what others append, until cancelled."""
        pause = PAUSE_SECONDS
        while True:
            try:
                await self._journal.wait(self._committer.tables.position)
                pause_before = self._pace.count()
                if pause_before:
                    await self._runtime.sleep(pause_before)
                await self._catch_up()
                pause = PAUSE_SECONDS
            except (Unavailable, NoSpace, Denied) as error:
                _log.warning("not_following", reason=str(error), retry_seconds=pause)
                await self._runtime.sleep(pause)
                pause = min(2 * pause, PAUSE_MAX_SECONDS)

    def is_at_tail(self) -> bool:
        """Whether State has everything that is in the journal now, if that can be told without waiting. A hot path."""
        tail = self._journal.tail_at_once()
        return tail is not None and tail <= self._committer.tables.position

    def is_known_behind(self) -> bool:
        """Whether the journal has more than State, as far as that can be told without waiting. A hot path."""
        tail = self._journal.tail_at_once()
        return tail is not None and tail > self._committer.tables.position

    async def reach_tail(self, *, exact: bool = False) -> None:
        """Return once State has everything that was in the journal when this was called.

        Unless it must be `exact`, what was so `staleness_seconds` ago will do. Callers that come while the journal is being
        asked share the next look: the one under way may have begun too early for them. A hot path. Raises Unavailable.
        """
        if not exact and self._staleness_seconds and self._runtime.boottime() < self._looked + self._staleness_seconds:
            return
        begun = self._begun
        try:
            self._looking.acquire_nowait()
        except trio.WouldBlock:
            await self._looking.acquire()
        try:
            if self._done > begun:
                # Somebody before us in the line began a look after we came, and saw.
                return
            self._begun = number = self._begun + 1
            looked = self._runtime.boottime()
            await self._catch_up()
            self._done, self._looked = number, looked
        finally:
            self._looking.release()

    async def _catch_up(self) -> None:
        tail = await self._journal.tail()
        if tail > self._committer.tables.position:
            await self._committer.catch_up(tail)
