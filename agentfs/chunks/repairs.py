"""Repairs: what readers found wrong or missing in a replica is put right behind them, one object after the other."""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import structlog
import trio

from agentfs.chunks.replica_lane import Lane
from agentfs.model.errors import AgentfsError

REPAIRS_MAX: Final = 64
"""Repairs waiting for their turn; a further one is left to the next reader."""

_log = structlog.get_logger()


class Repair(NamedTuple):
    """An object that a replica lacks, or has wrong: then `replace` says so."""

    key: str
    lane: Lane
    replace: bool


class Repairs:
    """A bounded queue of repairs, each done with `fill`, which raises why it could not."""

    def __init__(self, fill: Callable[[Repair], Awaitable[None]]) -> None:
        self._fill = fill
        self._known: set[tuple[str, Lane]] = set()
        self._scope = trio.CancelScope()
        self._in, self._out = trio.open_memory_channel[Repair](REPAIRS_MAX)

    def ask(self, repair: Repair) -> None:
        """Have it done some time, once, however many readers ask."""
        place = repair.key, repair.lane
        if place in self._known:
            return
        try:
            self._in.send_nowait(repair)
        except trio.WouldBlock:
            _log.warning("repair put off", key=repair.key, replica=repair.lane.replica, waiting=REPAIRS_MAX)
        else:
            self._known.add(place)

    async def run(self) -> None:
        """Do them, until `stop`."""
        with self._scope:
            async for repair in self._out:
                await self._do(repair)

    def stop(self) -> None:
        """Do no more, and leave the one that is under way."""
        self._scope.cancel()

    async def _do(self, repair: Repair) -> None:
        try:
            await self._fill(repair)
        except AgentfsError as error:
            _log.warning("repair failed", key=repair.key, replica=repair.lane.replica, reason=str(error))
        else:
            _log.info("replica repaired", key=repair.key, replica=repair.lane.replica)
        finally:
            self._known.discard((repair.key, repair.lane))
