"""The workspace's replicas, as one mount sees them: how they do, and how they come and go."""

import dataclasses

from agentfs.model.changes import AddReplica, RemoveReplica
from agentfs.model.ids import ReplicaId
from agentfs.state.queries import Missing, held_only_by, missing
from agentfs.workspace.core import Core
from agentfs.workspace.fsck_chunks import Report
from agentfs.workspace.scrub import ScrubReport, scrub
from agentfs.workspace.status import ReplicaStatus, RequestCounts
from agentfs.workspace.storage import Storage


class ReplicaSet:
    """The replicas of a mounted workspace."""

    def __init__(self, core: Core, storage: Storage) -> None:
        self._core = core
        self._storage = storage

    @property
    def urls(self) -> dict[ReplicaId, str]:
        """Where the members are, as State says."""
        return {number: replica.url for number, replica in self._core.tables.members.items()}

    @property
    def retired(self) -> frozenset[int]:
        """The numbers of replicas that were removed: none of them is given again."""
        return frozenset(self._core.tables.replicas.keys() - self._core.tables.members.keys())

    def states(self) -> list[ReplicaStatus]:
        """Every member, by number. Cheap: nothing is asked of a replica."""
        return [self._state(number, url) for number, url in sorted(self.urls.items())]

    def missing(self, replica: ReplicaId) -> Missing:
        """What a member has to be given yet."""
        return missing(self._core.tables, replica)

    async def held_only_by(self, replica: ReplicaId) -> int:
        """How many segments that files need would be lost with a replica, as of now. Raises Unavailable."""
        await self._core.follower.reach_tail(exact=True)
        return held_only_by(self._core.tables, replica)

    async def next_number(self) -> ReplicaId:
        """The number for a new replica. Raises Unavailable."""
        await self._core.follower.reach_tail(exact=True)
        return ReplicaId(max(self._core.tables.replicas) + 1)

    async def add(self, replica: ReplicaId, url: str) -> None:
        """Make a replica a member; it is given what it lacks in the background.

        Raises Exists if the number or the URL is taken, Invalid if there can be no more.
        """
        await self._core.committer.commit([AddReplica(replica, url)])

    async def remove(self, replica: ReplicaId, *, force: bool) -> None:
        """A replica is no member any more; what it holds stays where it is, and counts no longer.

        Raises NotFound, Invalid for one that writes cannot do without, and without `force` for the only holder of a segment.
        """
        await self._core.committer.commit([RemoveReplica(replica, force)])

    async def scrub(self, *, deep: bool, report: Report) -> dict[ReplicaId, ScrubReport]:
        """Compare what the members hold with what State says, and repair what is not so; with `deep` by reading all of it.

        `report` is told how many bytes of segments were compared, of how many. Raises what the journal refuses.
        """
        core = self._core
        await core.follower.reach_tail(exact=True)
        return await scrub(core.committer, self._storage.replicas, core.runtime, deep=deep, report=report)

    def _state(self, number: ReplicaId, url: str) -> ReplicaStatus:
        lacks, health = self.missing(number), self._storage.replicas.health().get(number)
        requests = self._storage.stores.requests(number)
        mirror = self._core.committer.mirror
        mirrored = None if mirror is None else mirror.holdings.position(number)
        mirror_lag = None if mirror is None or mirrored is None else mirror.lag_seconds(mirrored)
        lag_ns = None if lacks.since_ns is None else max(0, self._core.runtime.now_ns() - lacks.since_ns)
        return ReplicaStatus(
            replica=number,
            url=url,
            state="unasked" if self._storage.offline else "down" if health is None else health.state,
            latency_seconds=None if health is None else health.latency_seconds,
            down_seconds=None if health is None or health.down_seconds is None else round(health.down_seconds, 3),
            missing_segments=lacks.segments,
            missing_bytes=lacks.bytes,
            lag_seconds=None if lag_ns is None else round(lag_ns / 1e9, 3),
            outstanding=0 if health is None else health.outstanding,
            last_error="it cannot be opened here: the log says why" if health is None else health.last_error,
            requests=None if requests is None else RequestCounts(**dataclasses.asdict(requests)),
            mirrored=mirrored,
            mirror_lag=None if mirrored is None else max(0, self._core.tables.position - mirrored),
            mirror_lag_seconds=None if mirror_lag is None else round(mirror_lag, 3),
        )
