"""The vote on one put: which replicas have the object, which cannot take it, and whether enough have it or still may."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import trio

from agentfs.chunks.replica_failures import bare
from agentfs.chunks.replica_lane import Lane, silence_seconds
from agentfs.model.errors import AgentfsError, Unavailable
from agentfs.model.ids import ReplicaId

AGAIN_SECONDS: Final = 1.0
"""After how long, give or take half, a replica that could not take a put for a passing reason is asked again."""

AGAIN_MAX_SECONDS: Final = 10.0
"""The longest wait that a replica may ask for."""


class Ballot:
    """Decided once `needed` of `lanes` have the object, or so many refused it for good that no longer so many can.

    Who could not take it for a passing reason, which is Unavailable, is asked again until the vote is decided or the caller
    leaves. Who is being asked then is a straggler: it goes on behind the caller.
    """

    def __init__(self, needed: int, lanes: Sequence[Lane]) -> None:
        self.decided = trio.Event()
        self.acknowledged: list[ReplicaId] = []
        self.failures: dict[Lane, AgentfsError] = {}
        self._needed = needed
        self._lanes = lanes
        self._asked: set[Lane] = set()
        self._waiting: set[trio.CancelScope] = set()
        self._left = self._left_with_success = False

    @property
    def reached(self) -> bool:
        """Whether enough replicas have the object."""
        return len(self.acknowledged) >= self._needed

    def give_up(self, seconds: float) -> None:
        """Count those that said nothing, for so long, as failed."""
        for lane in self._asked - self.failures.keys():
            self.failures[lane] = Unavailable(f"no answer in {seconds:g} s")

    def leave(self) -> None:
        """The caller waits no more."""
        self._left, self._left_with_success = True, self.reached
        for lane in self._asked:
            lane.stragglers += 1
        for scope in self._waiting:
            scope.cancel()

    async def ask(self, lane: Lane, key: str, body: bytes, on_straggler: Callable[[], None]) -> None:
        """Ask one replica to take the object; `on_straggler` is called if it does so after the caller left with a success."""
        while True:
            error = lane.refusal()
            if error is None:
                error = await self._put(lane, key, body)
            else:
                self._count(lane, error)
            if not isinstance(error, Unavailable) or not await self._may_ask_again(lane, error):
                break
        if error is None and self._left_with_success:
            on_straggler()

    async def _put(self, lane: Lane, key: str, body: bytes) -> AgentfsError | None:
        error: AgentfsError | None = Unavailable("the store was closed before it answered")
        self._asked.add(lane)
        lane.putting[key] += 1
        try:
            seconds = silence_seconds(len(body))
            await lane.ask("put", key, lambda store: store.put(key, body), seconds=seconds, latencies=lane.puts)
            error = None
        except AgentfsError as failure:
            error = failure
        finally:
            # Also when cancelled, because who waits for the vote may not be.
            lane.putting[key] -= 1
            lane.putting += Counter()
            self._asked.discard(lane)
            if self._left:
                lane.straggler_done(acknowledged=error is None)
            self._count(lane, error)
        return error

    async def _may_ask_again(self, lane: Lane, error: Unavailable) -> bool:
        """Wait until the replica may be asked again; False if that is not worth it any more."""
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            if self._left or self.decided.is_set():
                scope.cancel()
            try:
                pause = max(AGAIN_SECONDS * (0.5 + lane.runtime.jitter()), error.retry_after_seconds or 0.0)
                await lane.runtime.sleep(min(pause, AGAIN_MAX_SECONDS))
                await lane.wait_until_taking()
            finally:
                self._waiting.discard(scope)
        return not scope.cancelled_caught

    def _count(self, lane: Lane, error: AgentfsError | None) -> None:
        """Count one replica's vote: that it has the object, or why not."""
        if error is None:
            self.acknowledged.append(lane.replica)
            self.failures.pop(lane, None)
        else:
            self.failures[lane] = bare(error)
        refused = sum(not isinstance(why, Unavailable) for why in self.failures.values())
        if self.reached or len(self._lanes) - refused < self._needed:
            self.decided.set()
