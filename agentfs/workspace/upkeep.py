"""Upkeep: the workspace's chores, which one mount does for all of them.

It falls to the open session with the lowest number of those that can (State says which): every mount derives the same, so
nobody asks anybody. Two may take it on at once while one of them does not know yet that it was judged dead; so a chore must be
harmless when it is done twice.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog
import trio

from agentfs.model.errors import AgentfsError
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer

INTERVAL_SECONDS: Final = 5.0
"""How long the chores rest when there is nothing to do; to see that costs next to nothing."""

RETRY_SECONDS: Final = 1.0
RETRY_MAX_SECONDS: Final = 60.0
"""How long a chore that failed rests: twice as long after each failure."""

_log = structlog.get_logger()


class Chore(Protocol):
    """Something that has to be done now and then, by one mount."""

    async def run_once(self) -> bool:
        """Do a piece of it, bounded; return whether there is more to do at once. Raises AgentfsError."""
        ...


class Upkeep:
    """One mount's part in the chores. `run` is its task. `lapsed`: whether the session may have been judged dead."""

    def __init__(
        self, committer: Committer, chores: Sequence[Chore], runtime: Runtime, *, lapsed: Callable[[], bool] = lambda: False
    ) -> None:
        self._committer = committer
        self._turns = [_Turn(chore, runtime) for chore in chores]
        self._lapsed = lapsed
        self._woken = trio.Event()

    @property
    def elected(self) -> bool:
        """Whether the chores are this mount's, as far as it can tell."""
        committer = self._committer
        return not committer.lost and not self._lapsed() and committer.tables.keeper() == committer.session

    def wake(self) -> None:
        """There may be something to do now, also for a chore that failed a while ago."""
        for turn in self._turns:
            turn.forgive()
        self._woken.set()

    async def run(self) -> None:
        """Do the chores, one at a time and in turn, until cancelled."""
        while True:
            self._woken = trio.Event()
            while await self._round():
                pass
            with trio.move_on_after(min(turn.rest_seconds for turn in self._turns)):
                await self._woken.wait()

    async def _round(self) -> bool:
        more = False
        for turn in self._turns:
            if self.elected and turn.is_due:
                more = await turn.take() or more
        return more


class _Turn:
    """A chore, and when it is due again after it failed."""

    def __init__(self, chore: Chore, runtime: Runtime) -> None:
        self._chore = chore
        self._runtime = runtime
        self._pause = RETRY_SECONDS
        self._not_before = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it may be done now."""
        return self._runtime.boottime() >= self._not_before

    @property
    def rest_seconds(self) -> float:
        """How long until it should be looked at again."""
        return max(0.0, self._not_before - self._runtime.boottime()) or INTERVAL_SECONDS

    def forgive(self) -> None:
        """It may succeed now."""
        self._pause, self._not_before = RETRY_SECONDS, 0.0

    async def take(self) -> bool:
        """Do a piece of it; whether there is more to do at once."""
        try:
            more = await self._chore.run_once()
        except AgentfsError as error:
            pause = self._pause * (0.5 + self._runtime.jitter())
            _log.warning("chore_failed", chore=type(self._chore).__name__, reason=str(error), retry_seconds=round(pause, 1))
            self._not_before = self._runtime.boottime() + pause
            self._pause = min(self._pause * 2, RETRY_MAX_SECONDS)
            return False
        self.forgive()
        return more
