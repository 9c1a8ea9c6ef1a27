"""Scrub: compares each replica with State by listing it, and puts right what is not so."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import structlog
import trio

from agentfs.chunks.contract import ChunkStore, ObjectInfo
from agentfs.chunks.segment import segment_key
from agentfs.model.changes import AnyChange, Misplaced, Placed
from agentfs.model.errors import AgentfsError, Corrupt, NotFound
from agentfs.model.ids import ReplicaId
from agentfs.runtime import Runtime
from agentfs.workspace.committer import Committer
from agentfs.workspace.damage import damage
from agentfs.workspace.filling import Replicas
from agentfs.workspace.fsck_chunks import Report

LOOKS_MAX: Final = 4
"""Segments being looked at or copied at once: 32 MiB of memory."""

BATCH: Final = 64
"""Changes in one transaction."""

_PAGE: Final = 1000

_log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class ScrubReport:
    """What one replica turned out to hold: counts of objects.

    - `listed`: all of them; `unknown` of these, with `unknown_bytes`, are named by no entry: left by a crash, or being written.
    - `missing`, `wrong_size`, `corrupt`: segments that State said it holds and that were not there, or not so.
    - `found`: right ones that State did not know of.
    - `repaired`, `unrepaired`: what came of those that were not right.
    - `error`: why something could not be looked at; "" if all was.
    """

    listed: int = 0
    missing: int = 0
    wrong_size: int = 0
    corrupt: int = 0
    found: int = 0
    repaired: int = 0
    unrepaired: int = 0
    unknown: int = 0
    unknown_bytes: int = 0
    error: str = ""

    @property
    def clean(self) -> bool:
        """Whether it is as State says by now."""
        return not self.unrepaired and not self.error


async def scrub(
    committer: Committer, replicas: Replicas, runtime: Runtime, *, deep: bool = False, repair: bool = True, report: Report
) -> dict[ReplicaId, ScrubReport]:
    """Scrub the members one after the other; with `deep` every object is read and its hash compared with its name.

    Without `repair` nothing is changed. `report` is told how many bytes of segments were compared, of how many. Raises what the
    journal refuses; what is wrong with a replica is in its report.
    """
    reports = {}
    work = _Scrub(committer, replicas, runtime, deep=deep, repair=repair, report=report)
    for replica in sorted(committer.tables.members):
        store = replicas.stores.get(replica)
        if store is None:
            reports[replica] = ScrubReport(error="its store is not open")
        else:
            reports[replica] = ScrubReport()
            await work.compare(_Place(replica, store, reports[replica]))
    return reports


class _Place(NamedTuple):
    """A replica that is being scrubbed."""

    replica: ReplicaId
    store: ChunkStore
    result: ScrubReport


class _Known(NamedTuple):
    """A segment that State knows: `needed` by files, and `placed` in the replica."""

    name: bytes
    size: int
    needed: bool
    placed: bool

    @property
    def key(self) -> str:
        """Under which it is kept."""
        return segment_key(self.name)


class _Scrub:
    """The work on every replica; it holds no more than a page of State's names and a page of a listing."""

    def __init__(
        self, committer: Committer, replicas: Replicas, runtime: Runtime, *, deep: bool, repair: bool, report: Report
    ) -> None:
        self._committer = committer
        self._replicas = replicas
        self._runtime = runtime
        self._deep = deep
        self._repair = repair
        self._report = report
        self._slots = trio.CapacityLimiter(LOOKS_MAX)
        # For the journal, in order: what a segment is misplaced by before what it is placed by.
        self._changes: list[AnyChange] = []
        self._done_bytes = 0
        (each,) = committer.tables.db.execute("SELECT coalesce(sum(size), 0) FROM segments").fetchone()
        self._total_bytes: int = each * len(committer.tables.members)

    async def compare(self, place: _Place) -> None:
        """Go through what a replica lists and what State knows, side by side in the order of keys."""
        known = self._known(place.replica)
        ahead = next(known, None)
        looks: list[_Look] = []
        async with aclosing(_listed(place)) as listing:
            async for info in listing:
                while ahead is not None and ahead.key < info.key:
                    looks.append(_Look(ahead, None))
                    ahead = next(known, None)
                if ahead is not None and ahead.key == info.key:
                    looks.append(_Look(ahead, info.size))
                    ahead = next(known, None)
                else:
                    place.result.unknown += 1
                    place.result.unknown_bytes += info.size
                if len(looks) >= BATCH:
                    await self._look_at(place, looks)
                    looks = []
        if not place.result.error:
            # Otherwise nobody knows whether the rest is there.
            looks += (_Look(each, None) for each in chain([ahead] if ahead else [], known))
        for at in range(0, len(looks), BATCH):
            await self._look_at(place, looks[at : at + BATCH])

    def _known(self, replica: ReplicaId) -> Iterator[_Known]:
        """The segments that State knows, in the order of names: page by page, for State goes on meanwhile."""
        query = (
            "SELECT name, size, uses > 0, EXISTS (SELECT 1 FROM placed WHERE segment = s.segment AND replica = ?)"
            " FROM segments s WHERE name > ? ORDER BY name LIMIT ?"
        )
        after = b""
        while page := self._committer.tables.db.execute(query, (replica, after, _PAGE)).fetchall():
            yield from (_Known(name, size, bool(needed), bool(placed)) for name, size, needed, placed in page)
            after = page[-1][0]

    async def _look_at(self, place: _Place, looks: Sequence["_Look"]) -> None:
        """Look at some segments, several at once, and say in the journal what came of it."""
        async with trio.open_nursery() as nursery:
            for look in looks:
                nursery.start_soon(self._look_at_one, place, look)
        self._done_bytes += sum(look.known.size for look in looks)
        self._report(self._done_bytes, self._total_bytes)
        if self._changes:
            await self._committer.commit(self._changes)
            self._changes = []

    async def _look_at_one(self, place: _Place, look: "_Look") -> None:
        async with self._slots:
            try:
                await self._compare_one(place, look)
            except AgentfsError as error:
                place.result.error = str(error)

    async def _compare_one(self, place: _Place, look: "_Look") -> None:
        known, size = look
        if size != known.size and (known.placed or known.needed or size is not None):
            # What was put, or copied there, since it was listed is no fault.
            size = await _size(place.store, known.key)
        if size is None:
            # Also what State knows to be lacking: the replica is not whole before it is there.
            if known.placed or known.needed:
                place.result.missing += known.needed
                await self._give_anew(place, known)
        elif size != known.size:
            place.result.wrong_size += known.needed
            await self._give_anew(place, known)
        elif self._deep or not known.placed:
            await self._read(place, known)

    async def _read(self, place: _Place, known: _Known) -> None:
        try:
            body = await place.store.get(known.key)
            reason, _ = await self._runtime.in_thread(damage, body, known.name)
        except Corrupt as error:
            reason = str(error)
        if not reason:
            if not known.placed:
                place.result.found += known.needed
                self._say(Placed(known.name, place.replica))
            return
        _log.warning("segment_corrupt", segment=known.name.hex(), replica=place.replica, reason=reason)
        place.result.corrupt += known.needed
        if known.needed:
            # State is left as it is where this fails: parts of the object may be right, and nobody has a better one.
            await self._repair_one(place, known)

    async def _give_anew(self, place: _Place, known: _Known) -> None:
        """What State says is there, and is not: State learns it, and what files need is copied there."""
        if known.placed:
            self._say(Misplaced(known.name, place.replica))
        if known.needed:
            await self._repair_one(place, known)

    async def _repair_one(self, place: _Place, known: _Known) -> None:
        if not self._repair:
            place.result.unrepaired += 1
            return
        try:
            await self._replicas.fill(known.key, place.replica, replace=True)
        except AgentfsError as error:
            _log.error("segment_not_repaired", segment=known.name.hex(), replica=place.replica, reason=str(error))
            place.result.unrepaired += 1
        else:
            place.result.repaired += 1
            self._say(Placed(known.name, place.replica))

    def _say(self, change: AnyChange) -> None:
        if self._repair:
            self._changes.append(change)


class _Look(NamedTuple):
    """A segment and the size that it was listed with, None where it was not."""

    known: _Known
    size: int | None


async def _listed(place: _Place) -> AsyncGenerator[ObjectInfo, None]:
    """What a replica lists; where that fails, the report says so."""
    listing = place.store.list("segments/")
    try:
        async for info in listing:
            place.result.listed += 1
            yield info
    except AgentfsError as error:
        place.result.error = f"it cannot be listed: {error}"
    finally:
        if isinstance(listing, AsyncGenerator):
            await listing.aclose()


async def _size(store: ChunkStore, key: str) -> int | None:
    try:
        return await store.size(key)
    except NotFound:
        return None
