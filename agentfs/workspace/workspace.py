"""A mounted workspace: opened from a journal, replicas and a cache directory, used in inode terms, drained and closed."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from agentfs.chunks.contract import Capacity
from agentfs.journal.contract import Journal
from agentfs.model.entry import Entry
from agentfs.model.errors import AgentfsError, Busy, IsDirectory
from agentfs.model.ids import Ino, SessionId
from agentfs.model.session import OPEN
from agentfs.runtime import Runtime
from agentfs.state.apply import Outcome
from agentfs.state.rows import Undo
from agentfs.state.tables import Tables
from agentfs.workspace.attributes import Attributes
from agentfs.workspace.beginning import identify, read_beginning
from agentfs.workspace.core import Core
from agentfs.workspace.fetching import fetch_state
from agentfs.workspace.files import Files
from agentfs.workspace.kernel import Kernel, NoKernel
from agentfs.workspace.lock_list import LockList
from agentfs.workspace.names import Names
from agentfs.workspace.parts import Parts, open_parts
from agentfs.workspace.paths import path_of, resolve
from agentfs.workspace.reader import DECODED_MAX
from agentfs.workspace.recovery import recover
from agentfs.workspace.remote_changes import RemoteChange, directory_path, remote_changes
from agentfs.workspace.replay import open_state, remove_state
from agentfs.workspace.replica_set import ReplicaSet
from agentfs.workspace.seat import Seat, open_seat, recovery_folders
from agentfs.workspace.session import close_session, open_session
from agentfs.workspace.settings import Settings
from agentfs.workspace.status import CacheStatus, EdgeCacheStatus, LockRow, SessionStatus, WorkspaceStatus
from agentfs.workspace.storage import OpenStore, Storage, open_storage
from agentfs.workspace.warming import Warming

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """How far draining is. Bytes saved so far of those that were unsaved when it began."""

    saved_bytes: int
    total_bytes: int
    dirty_files: int
    pending_transactions: int


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One committed content change of a file. `writer` is a session's label or host:pid."""

    version: int
    time_ns: int
    size: int
    writer: str
    position: int


class Workspace:
    """One mount's workspace. `names`, `files`, `attributes` and `warming` are its operations."""

    def __init__(
        self,
        core: Core,
        parts: Parts,
        storage: Storage,
        cache: Path,
    ) -> None:
        found = core.tables.found
        assert found is not None, "State was replayed"
        self._core = core
        self._heartbeat = parts.heartbeat
        self._judge = parts.judge
        self.locks = parts.locks
        self.mirror = parts.mirror
        self._lock_list = LockList(core.tables, parts.locks, lambda: core.committer.session, self.ttl_of, core.runtime)
        self._found = found
        self._storage = storage
        self._cache = cache
        self.names = Names(core)
        self.files = Files(core)
        self.replicas = ReplicaSet(core, storage)
        self.attributes = Attributes(core, self._lock_list.holders)
        self.warming = Warming(core, storage.chunks)

    def announce_xattr(self, name: bytes, announce: Callable[[], None]) -> bool:
        """Whether any file has that extended attribute; if not, `announce` is called once one may have."""
        tables = self._core.tables

        def look(each: bytes) -> None:
            if each == name:
                announce()

        tables.on_xattr = look
        return tables.has_xattr_named(name)

    def watch(
        self, knows: Callable[[Ino], bool], take: Callable[[list[RemoteChange]], None], pause: Callable[[], Awaitable[None]]
    ) -> None:
        """Have `take` called with what other mounts did in the directories that `knows` answers for, once it is applied.

        `pause` is called when this mount is drained, which is what comes before unmounting.
        """
        self._core.pause_replay = pause
        tables = self._core.tables

        def foreign(entry: Entry, outcomes: list[Outcome], undo: Undo) -> None:
            changes = remote_changes(tables, entry, outcomes, undo, knows)
            if changes:
                take(changes)

        self._core.on_foreign = foreign

    def directory_path(self, ino: Ino) -> bytes | None:
        """A directory's path below the root, empty for the root; None when it is gone."""
        return directory_path(self._core.tables, ino)

    @property
    def remaining_seconds(self) -> float:
        """How long what the kernel is told can be relied on without another word from here. A hot path."""
        return self._heartbeat.remaining_seconds

    def forget(self, inos: list[Ino]) -> None:
        """The kernel knows these inodes no longer."""
        for ino in inos:
            self._core.ghosts.pop(ino, None)

    def is_committing(self) -> bool:
        """Whether something waits for the journal. A hot path."""
        return self._core.committer.pending > 0

    async def capacity(self) -> Capacity | None:
        """What the replicas can hold: that of the smallest one."""
        return await self._storage.replicas.capacity()

    @property
    def inode_count(self) -> int:
        """Files, directories and all else in the tree."""
        return self._core.tables.counters["inodes"]

    @property
    def stored_bytes(self) -> int:
        """Bytes of file content that State knows."""
        return self._core.tables.counters["bytes"]

    def history(self, path: bytes) -> list[VersionRecord]:
        """The versions of the file at `path` inside the workspace, oldest first. Raises NotFound, IsDirectory."""
        tables = self._core.tables
        inode = resolve(tables, path)
        if inode.is_dir:
            raise IsDirectory(f"{path.decode(errors='replace')}: a directory has no versions; name a file")
        return [
            VersionRecord(each.version, each.time_ns, each.size, tables.sessions[each.session].writer, each.position)
            for each in tables.versions(inode.ino)
        ]

    async def drain(self, report: Callable[[DrainProgress], None] | None = None) -> list[str]:
        """Commit everything that is staged or pending; return what could not be, a path and a reason each."""
        core = self._core
        total = self._unsaved_bytes()
        failed = []

        def done(ino: Ino, error: AgentfsError | None) -> None:
            if error is not None:
                failed.append(f"{path_of(core.tables, ino)}: {error}")
            if report is not None:
                left = self._unsaved_bytes()
                report(DrainProgress(max(0, total - left), total, len(self._unsaved()), core.committer.pending))

        await core.writeback.commit_all(self._unsaved(), done)
        try:
            await core.committer.sync()
        except AgentfsError as error:
            where = "are not in the journal" if core.committer.pending else "too few replicas have"
            failed.append(f"changes that {where}: {error}")
        await core.pause_replay()
        return failed

    @property
    def is_saved(self) -> bool:
        """Whether nothing is staged or pending, but for files without a name."""
        return not self._unsaved() and not self._core.committer.pending

    def status(self) -> WorkspaceStatus:
        """What `agentfs status` shows."""
        core = self._core
        tables, unsaved = core.tables, self._unsaved()
        return WorkspaceStatus(
            name=self._found.name,
            workspace=self._found.workspace,
            durability="close" if core.wait_for_close else "fsync",
            replication=self._found.replication,
            write_quorum=self._found.write_quorum,
            reachable=self._storage.replicas.reachable,
            position=tables.position,
            pending_transactions=core.committer.pending,
            dirty_bytes=self._unsaved_bytes(),
            dirty_files=len(unsaved),
            oldest_unsaved_seconds=round(core.staging.oldest_seconds(unsaved), 3),
            files=self.inode_count,
            stored_bytes=self.stored_bytes,
            inline_bytes=tables.counters["inline"],
            sessions=self._sessions(),
            replicas=self.replicas.states(),
            cache=self._cache_status(),
            recovered=recovery_folders(self._cache),
            lease_ttl_seconds=self._heartbeat.ttl_seconds,
            leases=sum(any(g.session == core.committer.session for g in each.grants) for each in tables.leases.values()),
        )

    def list_locks(self) -> list[LockRow]:
        """Every lock and lease that this mount knows of, and who waits for one."""
        return self._lock_list.rows()

    async def break_locks(self, path: bytes) -> list[str]:
        """Fence the other sessions that have leases on the file at `path`; return who they were.

        Their locks end, and what they have not saved of the files that they had leases on goes to their recovery folders.
        Raises NotFound, and Busy when processes of this mount hold it: they are for whoever may end them.
        """
        core = self._core
        await core.follower.reach_tail(exact=True)
        ino = resolve(core.tables, path).ino
        for (each, _), locks in self.locks.held():
            if each == ino:
                pids = ", ".join(str(lock.pid) for lock in locks)
                raise Busy(f"{path.decode(errors='replace')}: held on this mount, by process {pids}")
        grants = [grant for (each, _), leases in core.tables.leases.items() if each == ino for grant in leases.grants]
        others = sorted({grant.session for grant in grants} - {core.committer.session})
        for session in others:
            await core.committer.fence(session)
        return [core.tables.sessions[session].writer for session in others]

    def ttl_of(self, session: SessionId) -> float | None:
        """How long a session may stay silent before it is judged dead; None where that is not known yet."""
        if session == self._core.committer.session:
            return self._heartbeat.remaining_seconds
        return self._judge.remaining_seconds(session)

    def _unsaved(self) -> list[Ino]:
        """Files with changes to commit: not those without a name."""
        tables = self._core.tables
        return [ino for ino in self._core.staging.files if (inode := tables.inode(ino)) is not None and inode.nlink]

    def _unsaved_bytes(self) -> int:
        return sum(self._core.staging.files[ino].dirty_bytes for ino in self._unsaved())

    def _sessions(self) -> list[SessionStatus]:
        return [
            SessionStatus(
                session=each.session,
                host=each.host,
                pid=each.pid,
                label=each.label,
                opened_ns=each.opened_ns,
                this=each.session == self._core.committer.session,
                ttl_seconds=self.ttl_of(each.session),
            )
            for each in self._core.tables.sessions.values()
            if each.standing == OPEN
        ]

    def _cache_status(self) -> CacheStatus:
        core, storage = self._core, self._storage
        return CacheStatus(
            memory_bytes=core.reader.decoded_bytes + storage.chunks.used_bytes,
            memory_max_bytes=DECODED_MAX + storage.chunks.max_bytes,
            staging_bytes=core.staging.disk_bytes,
            edge=None if storage.edge is None else EdgeCacheStatus(**storage.edge.status._asdict()),
        )


@asynccontextmanager
async def open_workspace(
    *,
    journal: Journal,
    open_store: OpenStore,
    cache_dir: Path,
    settings: Settings,
    runtime: Runtime,
    kernel: Kernel | None = None,
    journal_replicated: bool = False,
) -> AsyncIterator[Workspace]:
    """Bring State up to the journal's tail, recover what a killed mount left, register a session, and serve.

    `open_store` opens the replicas that State names. On the way out everything is drained; what could not be stays staged for
    the next mount. `kernel` is told what other mounts change. `journal_replicated`: the journal itself outlives any machine, so
    that nobody waits for its mirror in the replicas.
    """
    opening = open_seat_and_state(
        journal,
        cache_dir,
        open_store=None if settings.offline else open_store,
        runtime=runtime,
        recovers=not settings.offline,
    )
    async with opening as (seat, tables):
        async with open_storage(tables, open_store, settings, cache_dir, runtime) as storage:
            await recover(seat, tables, journal, storage.replicas, runtime)
            registration = await open_session(tables, journal, runtime, settings.identity)
            seat.take(registration.session)
            serving = open_parts(
                tables=tables,
                journal=journal,
                registration=registration,
                settings=settings,
                seat=seat,
                storage=storage,
                kernel=kernel or NoKernel(),
                runtime=runtime,
                journal_replicated=journal_replicated,
            )
            async with serving as (core, parts):
                workspace = Workspace(core, parts, storage, seat.path.parent)
                yield workspace
                left = await _leave(workspace, core, journal)
        if not left:
            seat.clear()


@asynccontextmanager
async def open_seat_and_state(
    journal: Journal, cache_dir: Path, *, open_store: OpenStore | None, runtime: Runtime, recovers: bool
) -> AsyncIterator[tuple[Seat, Tables]]:
    """A free seat, and State at the journal's tail in it; without `recovers` a seat that nothing was left in.

    Where a seat has no State that can be gone on with, it begins with a checkpoint, from the stores that `open_store` opens;
    without it, or if none can be had, with the journal's first entry. Raises Busy, Denied and NoSpace for the cache directory,
    Invalid and Corrupt for the journal, and Unavailable where there is neither.
    """
    beginning = await read_beginning(journal)
    identity = await identify(journal, beginning)

    async def fetch(path: Path) -> Tables | None:
        if beginning is None or open_store is None:
            return None
        return await fetch_state(path, beginning, open_store, runtime)

    with open_seat(cache_dir / identity.workspace, recovers=recovers) as seat:
        if not seat.same_boot():
            # A State is written without fsync: after a power cut it need not be whole, and the journal has all of it.
            remove_state(seat.state_path)
        tables = await open_state(seat.state_path, journal, beginning, fetch)
        seat.incarnation = tables.incarnation
        try:
            yield seat, tables
        finally:
            tables.close()


async def _leave(workspace: Workspace, core: Core, journal: Journal) -> bool:
    """Drain and say goodbye; whether something stays staged for the next mount."""
    failed = await workspace.drain()
    for line in failed:
        _log.error("not_drained", what=line)
    finishes = workspace.mirror.is_finisher
    # What is in the journal, and in too few replicas, is not staged any more: nobody could send it again.
    closed = workspace.is_saved and await close_session(core.committer, journal)
    if closed and finishes and not failed:
        try:
            await workspace.mirror.finish()
        except AgentfsError as error:
            _log.warning("mirror_not_finished", reason=str(error))
    core.committer.save()
    return not closed
