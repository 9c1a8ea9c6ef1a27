"""An actor: one machine whose mount is killed and started again, with two processes that use files through it."""

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import trio

from agentfs.journal.contract import Journal
from agentfs.model.changes import AnyChange, InlineRun, Make, Rmdir, Unlink, Write
from agentfs.model.errors import AgentfsError, Fenced
from agentfs.model.ids import ROOT_INO, Ino, SessionId
from agentfs.model.replica import Replica
from agentfs.state.checksum import checksum
from agentfs.workspace.settings import Settings
from agentfs.workspace.storage import Opened
from agentfs.workspace.workspace import Workspace, open_workspace
from tests.simulation.arena import Arena
from tests.simulation.evidence import Counter, Evidence
from tests.simulation.faults import FaultyJournal, FaultyStore, Outage, Weather
from tests.simulation.freezer import MACHINE
from tests.simulation.gathering import Gathering
from tests.simulation.invariants.acknowledged import SLOT, large_of, slot_of
from tests.simulation.locker import Locker
from tests.simulation.quiet import be_quiet
from tests.simulation.runtime import VirtualRuntime

FILE: Final = stat.S_IFREG | 0o644
DIRECTORY: Final = stat.S_IFDIR | 0o755
NAMES: Final = (b"a", b"b", b"c", b"d")
PROCESSES: Final = 3


class Actor:
    """Runs `steps` operations, through as many mounts as that takes; ends with a mount that leaves in good order."""

    def __init__(
        self,
        number: int,
        evidence: Evidence,
        journal: Journal,
        directory: Path,
        gathering: Gathering,
        *,
        steps: int,
    ) -> None:
        self.number = number
        self.workspace: Workspace | None = None
        self._evidence = evidence
        self._journal = journal
        self._home = directory
        self._gathering = gathering
        self._steps = steps
        self._random = Random(f"{evidence.seed}-{number}")
        self._runtime = VirtualRuntime(Random(f"{evidence.seed}-{number}-runtime"), skew_ns=number * 10**12)
        self._life = trio.CancelScope()
        self._lives = 0
        self._caches = 0
        self._weather = Weather(
            Random(f"{evidence.seed}-{number}-weather"),
            refuse=0.05,
            lose=0.05,
            kill=0.01,
            slow=0.3,
            killer=self.kill,
        )
        while self._random.random() < 0.5:
            start = self._random.uniform(0, 100)
            patience_seconds = self._random.choice((0.1, 10.0))
            self._weather.outages.append(Outage(start, start + self._random.uniform(5, 50), patience_seconds))
        self._names = 0

    @property
    def session(self) -> SessionId | None:
        """The session of its mount, None while there is none."""
        return self.workspace._core.committer.session if self.workspace is not None else None

    @property
    def is_safe(self) -> bool:
        """Whether its session cannot be dead, by its own clock."""
        return self.workspace is not None and not self.workspace._heartbeat.lapsed

    def kill(self) -> None:
        """kill -9: nothing that the mount would still have done happens."""
        self._life.cancel()

    async def run(self) -> None:
        """Mount, work, be killed, until every step is made; then mount once more without faults and leave in good order."""
        MACHINE.set(self.number)
        while self._steps > 0:
            self._life = trio.CancelScope()
            with self._life:
                try:
                    async with self._mounted() as workspace:
                        await self._work(workspace)
                except* AgentfsError:
                    # The journal or the replicas did not answer while it mounted or left: it is started again.
                    await trio.sleep(1)
            self.workspace = None
            self._evidence.crashes += self._life.cancelled_caught
            # Some go on elsewhere: what was staged and not acknowledged is gone, and nobody says goodbye for the dead session.
            self._caches += self._life.cancelled_caught and self._random.random() < 0.25
        self._weather.calm()
        self._life = trio.CancelScope()
        async with AsyncExitStack() as mounted:
            workspace = await self._mount_at_last(mounted)
            await be_quiet(workspace, self.number, self._evidence, self._gathering, self._random)
            assert await workspace.drain() == []

    async def _mount_at_last(self, mounted: AsyncExitStack) -> Workspace:
        """Mount, when the replicas let it: what was left here has to go to them first."""
        while True:
            try:
                return await mounted.enter_async_context(self._mounted())
            except* AgentfsError:
                await trio.sleep(1)

    @asynccontextmanager
    async def _mounted(self) -> AsyncIterator[Workspace]:
        journal = FaultyJournal(self._journal, self._weather)
        async with open_workspace(
            journal=journal,
            open_store=self._open_store,
            cache_dir=self._home / str(self._caches),
            settings=Settings(host=f"host{self.number}", pid=1),
            runtime=self._runtime,
        ) as workspace:
            self._lives += 1
            self.workspace = workspace
            self._locker = Locker(self.number, self._evidence, workspace, self._random)
            self._arena = Arena(self.number, self._evidence, workspace, self._random)
            yield workspace
            self.workspace = None

    def _open_store(self, replica: Replica) -> Opened:
        store, cable = self._evidence.stores[replica.replica], self._evidence.cables[replica.replica]

        def grow(old: str | None, new: str, body: bytes) -> bool:
            faults = (self._weather.next("grow"), cable.next("grow"))
            if any(fault.refused is not None for fault in faults):
                return False
            return store.grow(old, new, body) and not any(fault.lost is not None for fault in faults)

        return Opened(FaultyStore(FaultyStore(store, cable), self._weather), grow=grow if self._evidence.beside else None)

    async def _work(self, workspace: Workspace) -> None:
        async with trio.open_nursery() as nursery:
            done = [trio.Event() for _ in range(PROCESSES)]
            for event in done:
                nursery.start_soon(self._process, workspace, event)
            nursery.start_soon(self._killed_some_time)
            for event in done:
                await event.wait()
            nursery.cancel_scope.cancel()

    async def _killed_some_time(self) -> None:
        await trio.sleep(self._random.expovariate(1 / 15))
        self.kill()

    # ---- a process

    async def _process(self, workspace: Workspace, done: trio.Event) -> None:
        while self._steps > 0:
            self._steps -= 1
            await trio.sleep(self._random.choice((0.0, 0.01, 0.3, 1.0)))
            operation = self._random.choice(self._operations())
            self._evidence.operations += 1
            try:
                await operation(workspace)
            except Fenced:
                self.kill()
                await trio.lowlevel.checkpoint()
            except AgentfsError:
                # Whoever asked got an errno: nothing was promised.
                continue
        done.set()

    def _operations(self) -> list[Callable[[Workspace], Awaitable[None]]]:
        shared = [self._make, self._write, self._truncate, self._remove, self._rename, self._link, self._attributes]
        mine = [
            self._append_record,
            self._append_record,
            self._write_slot,
            self._write_large,
            self._make_mine,
            self._remove_mine,
        ]
        locks = [self._add_one, self._add_one, self._add_one, self._try_lock, self._give_up, self._look_under_lock]
        arena = [self._use_arena] * 4
        return [*shared, self._write, *mine, *locks, *arena, self._look, self._glance, self._read_ledger, self._read_large]

    async def _add_one(self, workspace: Workspace) -> None:
        await self._locker.add_one(self._locker.some_place())

    async def _try_lock(self, workspace: Workspace) -> None:
        await self._locker.add_one(self._locker.some_place(), wait=False)

    async def _give_up(self, workspace: Workspace) -> None:
        """A signal comes for a process that waits for a lock."""
        await self._locker.add_one(self._locker.some_place(), patience_seconds=self._random.uniform(0, 2))

    async def _look_under_lock(self, workspace: Workspace) -> None:
        await self._locker.look(self._locker.some_place())

    async def _use_arena(self, workspace: Workspace) -> None:
        await self._arena.act()

    async def _look(self, workspace: Workspace) -> None:
        """Take in what others did, and note what State is where nothing is pending."""
        await workspace._core.follower.reach_tail()
        await self._glance(workspace)

    async def _glance(self, workspace: Workspace) -> None:
        """Note what the follower has made of State so far."""
        committer = workspace._core.committer
        if not committer.pending:
            tables = committer.tables
            self._evidence.states.append((tables.position, checksum(tables), committer.session))

    # ---- what nobody else touches, or only in ways that must not disturb: what was acknowledged is checked at the end

    async def _append_record(self, workspace: Workspace) -> None:
        records = self._evidence.records
        record = b"%d-%d-%s" % (self.number, len(records), b"x" * self._random.choice((0, 30, 300)))
        records[record] = False
        await self._written(workspace, self._evidence.ledger, record + b"\n", flags=os.O_APPEND)
        records[record] = True
        self._evidence.acknowledged += 1
        self._evidence.promised(f"record {record!r}", partial(_appends, self._evidence.ledger, record))

    async def _write_slot(self, workspace: Workspace) -> None:
        counter = self._evidence.counters[self.number]
        await self._count(workspace, self._evidence.slots, counter, slot_of, offset=self.number * SLOT)

    async def _write_large(self, workspace: Workspace) -> None:
        counter = self._evidence.large_counters[self.number]
        await self._count(workspace, self._evidence.large[self.number], counter, large_of)

    async def _count(
        self, workspace: Workspace, ino: Ino, counter: Counter, body: Callable[[int], bytes], *, offset: int = 0
    ) -> None:
        counter.written += 1
        number = counter.written
        await self._written(workspace, ino, body(number), offset=offset)
        counter.acknowledged = max(counter.acknowledged, number)
        self._evidence.acknowledged += 1

    async def _read_ledger(self, workspace: Workspace) -> None:
        mine = b"%d-" % self.number
        safe = [record for record, done in self._evidence.records.items() if done and record.startswith(mine)]
        lines = (await self._read(workspace, self._evidence.ledger)).splitlines()
        missing = [record for record in safe if lines.count(record) != 1]
        self._evidence.misread += [f"actor {self.number} does not see its record {record!r} once" for record in missing]

    async def _read_large(self, workspace: Workspace) -> None:
        counter = self._evidence.large_counters[self.number]
        least = counter.acknowledged
        body = await self._read(workspace, self._evidence.large[self.number])
        if body not in [large_of(number) if number else b"" for number in range(least, counter.written + 1)]:
            found = f"{body[:20]!r}… ({len(body)} bytes)"
            self._evidence.misread.append(f"actor {self.number} reads {found} and had {least} acknowledged")

    async def _read(self, workspace: Workspace, ino: Ino) -> bytes:
        handle = await workspace.files.open(ino, os.O_RDONLY)
        try:
            return await workspace.files.read(handle.number, 0, 1 << 30)
        finally:
            workspace.files.release(handle.number)

    async def _make_mine(self, workspace: Workspace) -> None:
        self._names += 1
        name = b"mine-%d-%d" % (self.number, self._names)
        mode = self._random.choice((FILE, DIRECTORY))
        await workspace.names.make(ROOT_INO, name, mode, uid=0, gid=0, wait=True)
        self._evidence.made.add(name)
        self._evidence.acknowledged += 1
        if mode == DIRECTORY:
            self._evidence.promised(
                f"{name.decode()} was made", lambda change: isinstance(change, Make) and change.name == name
            )

    async def _remove_mine(self, workspace: Workspace) -> None:
        mine = sorted(name for name in self._evidence.made if name.startswith(b"mine-%d-" % self.number))
        if not mine:
            return
        name = self._random.choice(mine)
        is_dir = workspace.names.look_up(ROOT_INO, name).is_dir
        self._evidence.made.discard(name)
        if is_dir:
            await workspace.names.rmdir(ROOT_INO, name)
        else:
            await workspace.names.unlink(ROOT_INO, name)
            await workspace.files.sync_directory()
        self._evidence.removed.add(name)
        self._evidence.acknowledged += 1
        removal = Unlink | Rmdir
        self._evidence.promised(f"{name.decode()} went", lambda change: isinstance(change, removal) and change.name == name)

    async def _written(self, workspace: Workspace, ino: Ino, data: bytes, *, flags: int = 0, offset: int = 0) -> None:
        """open, write, close or fsync: returns once it is acknowledged."""
        files = workspace.files
        handle = await files.open(ino, os.O_WRONLY | flags)
        try:
            await files.write(handle.number, offset, data)
            await self._random.choice((files.flush, files.sync))(handle.number)
        finally:
            files.release(handle.number)

    # ---- what everybody does to the same few names

    def _directory(self, workspace: Workspace) -> Ino:
        """The root, or a directory under one of the shared names."""
        name = self._random.choice(NAMES)
        dentry = workspace._core.tables.dentry(ROOT_INO, name)
        if dentry is not None and self._random.random() < 0.6 and workspace.attributes.get(dentry.ino).is_dir:
            return dentry.ino
        return ROOT_INO

    def _name(self) -> bytes:
        return self._random.choice(NAMES)

    async def _make(self, workspace: Workspace) -> None:
        parent, name, mode = self._directory(workspace), self._name(), self._random.choice((FILE, FILE, DIRECTORY))
        wait = mode == DIRECTORY or self._random.random() < 0.3
        inode = await workspace.names.make(parent, name, mode, uid=0, gid=0, wait=wait)
        if inode.is_file:
            await self._written(workspace, inode.ino, b"new")

    async def _write(self, workspace: Workspace) -> None:
        inode = workspace.names.look_up(self._directory(workspace), self._name())
        data = self._random.randbytes(self._random.choice((1, 20, 300, 300, 5000, 40_000)))
        flags = self._random.choice((0, 0, os.O_APPEND, os.O_TRUNC))
        files = workspace.files
        handle = await files.open(inode.ino, os.O_WRONLY | flags)
        try:
            await files.write(handle.number, self._random.randint(0, 100), data)
            await trio.sleep(self._random.choice((0.0, 0.5)))
            if self._random.random() < 0.7:
                await files.flush(handle.number)
            await files.read(handle.number, 0, 1000)
        finally:
            files.release(handle.number)

    async def _truncate(self, workspace: Workspace) -> None:
        inode = workspace.names.look_up(self._directory(workspace), self._name())
        workspace.files.truncate(inode.ino, self._random.randint(0, 200))

    async def _remove(self, workspace: Workspace) -> None:
        parent, name = self._directory(workspace), self._name()
        if workspace.names.look_up(parent, name).is_dir:
            await workspace.names.rmdir(parent, name)
        else:
            await workspace.names.unlink(parent, name)

    async def _rename(self, workspace: Workspace) -> None:
        parent, new_parent = self._directory(workspace), self._directory(workspace)
        await workspace.names.rename(parent, self._name(), new_parent, self._name(), self._random.choice((0, 0, 1, 2)))

    async def _link(self, workspace: Workspace) -> None:
        inode = workspace.names.look_up(self._directory(workspace), self._name())
        await workspace.names.link(inode.ino, self._directory(workspace), self._name())

    async def _attributes(self, workspace: Workspace) -> None:
        inode = workspace.names.look_up(self._directory(workspace), self._name())
        attributes = workspace.attributes
        match self._random.randrange(4):
            case 0:
                await attributes.set(inode.ino, mode=self._random.choice((0o600, 0o755)))
            case 1:
                await attributes.set(inode.ino, mtime_ns=self._random.randint(1, 10**9))
            case 2:
                await attributes.set_xattr(inode.ino, b"user." + self._name(), self._random.randbytes(10))
            case _:
                await attributes.remove_xattr(inode.ino, b"user." + self._name())


def _appends(ino: Ino, record: bytes, change: AnyChange) -> bool:
    """Whether a change puts a record into a file, wherever."""
    runs = change.runs if isinstance(change, Write) and change.ino == ino else []
    return any(isinstance(run, InlineRun) and record + b"\n" in run.data for run in runs)
