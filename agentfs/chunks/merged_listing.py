"""The objects that any of several replicas holds, in one listing."""

from collections.abc import AsyncIterator, Sequence

import trio

from agentfs.chunks.contract import ObjectInfo
from agentfs.chunks.replica_failures import read_failure
from agentfs.chunks.replica_lane import SILENCE_SECONDS, Lane
from agentfs.model.errors import AgentfsError, Unavailable
from agentfs.model.ids import ReplicaId


async def merged_listing(lanes: Sequence[Lane], prefix: str) -> AsyncIterator[ObjectInfo]:
    """As `ChunkStore.list`. A replica that is down or fails is left out; raises Unavailable if all are."""
    failures: dict[ReplicaId, AgentfsError] = {
        lane.replica: lane.breaker.error for lane in lanes if lane.breaker.error is not None
    }
    listings = {lane: lane.store.list(prefix) for lane in lanes if lane.replica not in failures}
    heads: dict[Lane, ObjectInfo] = {}
    behind = set(listings)
    while True:
        for lane in sorted(behind, key=lambda lane: lane.replica):
            await _advance(lane, listings[lane], heads, failures)
        if not heads:
            break
        first = min(heads.values())
        yield first
        behind = {lane for lane, info in heads.items() if info.key == first.key}
    if len(failures) == len(lanes):
        raise read_failure(f"list of {prefix!r}", failures)


async def _advance(
    lane: Lane,
    listing: AsyncIterator[ObjectInfo],
    heads: dict[Lane, ObjectInfo],
    failures: dict[ReplicaId, AgentfsError],
) -> None:
    """Bring in the next object of one replica; none if it was the last, or if the replica fails."""
    heads.pop(lane, None)
    turn = lane.breaker.turn
    error: AgentfsError | None = Unavailable(f"no answer in {SILENCE_SECONDS:g} s")
    try:
        with trio.move_on_after(SILENCE_SECONDS):
            heads[lane] = await anext(listing)
            error = None
    except StopAsyncIteration:
        lane.succeeded("list", turn)
        error = None
    except AgentfsError as failure:
        error = failure
    if error is not None:
        failures[lane.replica] = error
        lane.failed("list", "", error, turn)
