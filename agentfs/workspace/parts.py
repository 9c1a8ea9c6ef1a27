"""The parts of a mounted workspace, put together: who is told of what, and which tasks run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from agentfs.chunks.contract import ChunkStore
from agentfs.journal.contract import Journal
from agentfs.model.entry import Entry
from agentfs.model.ids import first_ino
from agentfs.runtime import Runtime
from agentfs.state.apply import Outcome
from agentfs.state.rows import Undo
from agentfs.state.tables import Tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.core import Core
from agentfs.workspace.follower import Follower
from agentfs.workspace.handles import Handles
from agentfs.workspace.heartbeat import Heartbeat
from agentfs.workspace.judge import Judge
from agentfs.workspace.kernel import Kernel
from agentfs.workspace.locks import Locks
from agentfs.workspace.membership import Membership
from agentfs.workspace.reader import Reader
from agentfs.workspace.seat import Seat
from agentfs.workspace.session import Identity, Registration
from agentfs.workspace.staging import Staging
from agentfs.workspace.writeback import Replicas, Writeback


@dataclass(frozen=True, slots=True)
class Parts:
    """What makes a mount one of several."""

    heartbeat: Heartbeat
    judge: Judge
    locks: Locks


@asynccontextmanager
async def open_parts(
    *,
    tables: Tables,
    journal: Journal,
    registration: Registration,
    identity: Identity,
    seat: Seat,
    chunks: ChunkStore,
    replicas: Replicas,
    kernel: Kernel,
    staleness_seconds: float,
    runtime: Runtime,
) -> AsyncIterator[tuple[Core, Parts]]:
    """Everything between a registered session and its operations, with its tasks running; not drained on leaving."""
    staging = Staging(seat.staging_path, runtime.boottime)
    committer = Committer(journal, tables, registration.session, runtime)
    committer.on_submit = staging.log_submitted
    committer.on_withdraw = staging.log_withdrawn
    writeback = Writeback(staging, committer, replicas, runtime)
    follower = Follower(journal, committer, runtime, staleness_seconds=staleness_seconds)
    heartbeat = Heartbeat(journal, committer, runtime, ttl_seconds=identity.ttl_seconds, sent=registration.sent)
    judge = Judge(journal, committer, runtime, interval_seconds=heartbeat.interval_seconds)
    judge.counts_from = heartbeat.steady_since
    core = Core(
        tables=tables,
        committer=committer,
        follower=follower,
        staging=staging,
        writeback=writeback,
        reader=Reader(tables, staging, chunks),
        handles=Handles(),
        runtime=runtime,
        read_only=False,
        wait_for_close=True,
        next_ino=first_ino(registration.session),
    )
    try:
        async with trio.open_nursery() as nursery:
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
                identity=identity,
                runtime=runtime,
            )
            _connect(core, locks, heartbeat, membership, kernel)
            for task in (committer.run, writeback.run, follower.run, heartbeat.run, heartbeat.watch, judge.run, membership.run):
                nursery.start_soon(task)
            yield core, Parts(heartbeat, judge, locks)
            nursery.cancel_scope.cancel()
    finally:
        replicas.on_straggler = None
        staging.close()


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
