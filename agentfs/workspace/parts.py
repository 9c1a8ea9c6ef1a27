"""The parts of a mounted workspace, put together: who is told of what, and which tasks run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from agentfs.journal.contract import Journal
from agentfs.model.entry import Entry
from agentfs.model.ids import ReplicaId, first_ino
from agentfs.runtime import Runtime
from agentfs.state.apply import Outcome
from agentfs.state.rows import Undo
from agentfs.state.tables import Tables
from agentfs.workspace.checkpoints import Checkpoints
from agentfs.workspace.collecting import Collecting
from agentfs.workspace.committer import Committer
from agentfs.workspace.compaction import Compaction
from agentfs.workspace.core import Core
from agentfs.workspace.filling import Filling
from agentfs.workspace.folding import Folding
from agentfs.workspace.follower import Follower
from agentfs.workspace.handles import Handles
from agentfs.workspace.heartbeat import Heartbeat
from agentfs.workspace.judge import Judge
from agentfs.workspace.kernel import Kernel
from agentfs.workspace.locks import Locks
from agentfs.workspace.members import Members
from agentfs.workspace.membership import Membership
from agentfs.workspace.mirror import Mirror
from agentfs.workspace.mirror_filling import MirrorFilling
from agentfs.workspace.packer import open_packer
from agentfs.workspace.reader import Reader
from agentfs.workspace.seat import Seat
from agentfs.workspace.session import Registration
from agentfs.workspace.settings import Settings
from agentfs.workspace.staging import Staging
from agentfs.workspace.storage import Storage
from agentfs.workspace.trimming import JournalTrimming, Trimming
from agentfs.workspace.upkeep import Chore, Upkeep
from agentfs.workspace.writeback import Writeback


@dataclass(frozen=True, slots=True)
class Parts:
    """What makes a mount one of several."""

    heartbeat: Heartbeat
    judge: Judge
    locks: Locks
    mirror: Mirror


@asynccontextmanager
async def open_parts(
    *,
    tables: Tables,
    journal: Journal,
    registration: Registration,
    settings: Settings,
    seat: Seat,
    storage: Storage,
    kernel: Kernel,
    runtime: Runtime,
    journal_replicated: bool = False,
) -> AsyncIterator[tuple[Core, Parts]]:
    """Everything between a registered session and its operations, with its tasks running; not drained on leaving."""
    staging = Staging(seat.staging_path, runtime.boottime)
    committer = Committer(journal, tables, registration.session, runtime)
    committer.on_submit = staging.log_submitted
    committer.on_withdraw = staging.log_withdrawn
    follower = Follower(journal, committer, runtime, staleness_seconds=settings.staleness_seconds)
    heartbeat = Heartbeat(journal, committer, runtime, ttl_seconds=settings.lease_ttl_seconds, sent=registration.sent)
    judge = Judge(journal, committer, runtime, interval_seconds=heartbeat.interval_seconds)
    judge.counts_from = heartbeat.steady_since
    try:
        async with (
            open_packer(storage.sink, storage.replicas, committer, runtime) as packer,
            trio.open_nursery() as nursery,
        ):
            writeback = Writeback(staging, committer, packer, runtime)
            writeback.read_only_when_unreachable = settings.unreachable == "erofs"
            core = Core(
                tables=tables,
                committer=committer,
                follower=follower,
                staging=staging,
                writeback=writeback,
                reader=Reader(tables, staging, storage.chunks, runtime, nursery),
                handles=Handles(),
                runtime=runtime,
                read_only=settings.read_only,
                wait_for_close=settings.durability == "close",
                next_ino=first_ino(registration.session),
            )
            locks = Locks(
                committer=committer,
                writeback=writeback,
                follower=follower,
                heartbeat=heartbeat,
                kernel=kernel,
                runtime=runtime,
                nursery=nursery,
                on_lost=core.handles.lose,
            )
            membership = Membership(
                core,
                locks=locks,
                heartbeat=heartbeat,
                kernel=kernel,
                journal=journal,
                seat=seat,
                identity=settings.identity,
                runtime=runtime,
            )
            mirror = _make_mirror(core, storage, settings, journal, waits=not journal_replicated)
            mirror_filling = MirrorFilling(mirror, journal, storage.replicas, runtime)
            members = Members(tables, storage.replicas, storage.stores.open, runtime)
            filling = Filling(committer, storage.replicas, runtime)
            checkpoints = Checkpoints(committer, journal, storage.replicas, seat.state_path, runtime)
            trimming = Trimming(storage.replicas, lambda: checkpoints.newest, runtime)
            checkpoints.on_found = trimming.found
            journal_trimming = JournalTrimming(journal, tables, runtime, checkpoints.trimmed)
            checkpoints.on_older = journal_trimming.want
            moving = (Folding(committer, packer, runtime), Compaction(committer, packer, storage.chunks, runtime))
            collecting = Collecting(committer, storage.chunks, runtime, mirrored=lambda: mirror.position)
            chores: list[Chore] = [filling, mirror_filling, *moving, checkpoints, trimming, collecting]
            upkeep = Upkeep(committer, chores, runtime, lapsed=lambda: heartbeat.lapsed)
            _connect(core, locks, heartbeat, membership, kernel)
            _connect_upkeep(core, storage, members, filling, trimming, upkeep)
            _connect_mirror(storage, mirror, mirror_filling, upkeep)
            if settings.identity.upkeep:
                nursery.start_soon(mirror.run)
            own = (committer.run, writeback.run, follower.run, heartbeat.run, heartbeat.watch)
            for task in (*own, judge.run, membership.run, members.run, upkeep.run, journal_trimming.run):
                nursery.start_soon(task)
            yield core, Parts(heartbeat, judge, locks, mirror)
            nursery.cancel_scope.cancel()
    finally:
        staging.close()


def _connect_upkeep(
    core: Core, storage: Storage, members: Members, filling: Filling, trimming: Trimming, upkeep: Upkeep
) -> None:
    """Who is told of replicas that come, go, and come back."""

    def returned(replica: ReplicaId) -> None:
        filling.returned(replica)
        trimming.returned(replica)
        upkeep.wake()

    def changed() -> None:
        trimming.found()
        upkeep.wake()

    core.tables.on_replicas = members.changed
    members.on_changed = changed
    storage.replicas.on_returned = returned


def _make_mirror(core: Core, storage: Storage, settings: Settings, journal: Journal, *, waits: bool) -> Mirror:
    """The mirror; that of a mount which may have no right to put anything into the replicas waits for nothing."""
    waits = waits and settings.identity.upkeep
    timeout = settings.put_timeout_seconds
    mirror = Mirror(journal, storage.replicas, core.tables.position, core.runtime, waits=waits, timeout_seconds=timeout)
    mirror.read_only_when_unreachable = settings.unreachable == "erofs"

    def grow(old: str | None, new: str, body: bytes) -> list[ReplicaId] | None:
        members = list(storage.replicas.stores)
        return members if storage.stores.grow(members, old, new, body) else None

    mirror.grow = grow
    core.committer.mirror = mirror
    core.committer.promises = core.wait_for_close
    return mirror


def _connect_mirror(storage: Storage, mirror: Mirror, filling: MirrorFilling, upkeep: Upkeep) -> None:
    """The mirror, too, is told of replicas that come back and of puts that come late."""
    segment_straggled, segments_returned = storage.replicas.on_straggler, storage.replicas.on_returned

    def straggled(key: str, replica: ReplicaId) -> None:
        mirror.straggled(key, replica)
        if segment_straggled is not None:
            segment_straggled(key, replica)

    def returned(replica: ReplicaId) -> None:
        filling.returned(replica)
        mirror.wake()
        segments_returned(replica)

    mirror.elected = lambda: upkeep.elected
    storage.replicas.on_straggler, storage.replicas.on_returned = straggled, returned


def _connect(core: Core, locks: Locks, heartbeat: Heartbeat, membership: Membership, kernel: Kernel) -> None:
    """Who is told of what."""
    committer = core.committer
    committer.on_touched = kernel.changed
    committer.on_progress = locks.progressed
    committer.on_lost = membership.lost
    committer.on_refused = membership.refused
    heartbeat.on_lapse = locks.lapsed
    core.tables.before_erase = core.erasing
    core.must_confirm = locks.must_confirm
    core.is_locked = locks.is_locked

    async def confirm(number: int) -> None:
        await heartbeat.confirm()
        core.handles.get(number)

    core.confirm = confirm

    def foreign(entry: Entry, outcomes: list[Outcome], undo: Undo) -> None:
        locks.observe(entry)
        core.on_foreign(entry, outcomes, undo)

    committer.on_foreign = foreign
