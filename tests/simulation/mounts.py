"""Whole mounts of one workspace without a kernel, each with a connection to the journal that a test can cut."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from agentfs.chunks.memory import MemoryStore
from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.model.changes import Fence
from agentfs.model.codec import decode_entry, encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.ids import NO_SESSION, Ino, Position, SessionId, TxnNumber
from agentfs.model.lease import FLOCK, WHOLE, Leases, Run
from agentfs.state.apply import apply_entry
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.line import Waiter
from agentfs.workspace.lock_table import Lock
from agentfs.workspace.session import close_session
from agentfs.workspace.settings import Settings
from agentfs.workspace.storage import Opened
from agentfs.workspace.workspace import Workspace, open_workspace
from tests.simulation.entries import founding, make, opening
from tests.simulation.faults import Cable, FaultyJournal
from tests.simulation.runtime import VirtualRuntime

FILE = Ino(1 << 32)
OTHER = Ino((1 << 32) + 1)
"""Two empty files, `file` and `other`."""


@dataclass
class Shared:
    """What mounts of one workspace share: a log and a replica."""

    log: MemoryLog = field(default_factory=MemoryLog)
    store: MemoryStore = field(default_factory=MemoryStore)

    def tables(self) -> Tables:
        """State at the journal's tail."""
        tables = open_tables(None)
        for number, entry in enumerate(self.entries(), 1):
            apply_entry(tables, entry, Position(number))
            tables.settle()
        return tables

    def entries(self) -> list[Entry]:
        """Every entry, from position 1 on."""
        return [decode_entry(payload) for payload in self.log.payloads]

    def leases(self, ino: Ino = FILE, space: int = FLOCK) -> Leases:
        """What is granted of a file at the journal's tail, and what waits."""
        tables = self.tables()
        found = tables.leases.get((ino, space), Leases())
        tables.close()
        return found

    async def fence(self, session: SessionId) -> None:
        """Somebody takes a session for dead."""
        fence = Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), [Fence(session)])])
        await MemoryJournal(self.log).append(encode_entry(fence))

    async def body(self, ino: Ino = FILE) -> bytes:
        """A small file's bytes at the journal's tail."""
        tables = self.tables()
        inode = tables.inode(ino)
        assert inode is not None
        body = bytearray(inode.size)
        for extent in tables.extents(ino, 0, inode.size):
            body[extent.offset : extent.end] = extent.data
        tables.close()
        return bytes(body)


def make_shared() -> Shared:
    """A founded workspace with `file` and `other` in it, whose maker has left."""
    shared = Shared()
    made = Transaction(TxnNumber(1), [make(FILE, b"file"), make(OTHER, b"other"), Fence(SessionId(1))])
    for entry in (founding(1), opening(b"maker"), Entry(SessionId(1), 1, [made])):
        shared.log.payloads.append(encode_entry(entry))
    return shared


@dataclass
class Mount:
    """A mount, its connection, and what its processes do; `owner` stands for one open file of one process."""

    workspace: Workspace
    cable: Cable
    journal: FaultyJournal

    @property
    def session(self) -> SessionId:
        """The number under which it is known."""
        return self.workspace._core.committer.session

    def begin(self, owner: int, run: Run = WHOLE, *, ino: Ino = FILE, space: int = FLOCK, wait: bool = True) -> Waiter:
        """Ask for a lock; `finish` waits for it."""
        return self.workspace.locks.begin(ino, space, Lock(owner, run, 100 + owner, owner), wait=wait)

    async def lock(self, owner: int, run: Run = WHOLE, *, ino: Ino = FILE, space: int = FLOCK, wait: bool = True) -> None:
        """Take a lock."""
        await self.workspace.locks.finish(self.begin(owner, run, ino=ino, space=space, wait=wait))

    def unlock(self, owner: int, *, ino: Ino = FILE, space: int = FLOCK) -> None:
        """Let go of all that an owner has."""
        self.workspace.locks.unlock(ino, space, owner)

    async def open(self, ino: Ino = FILE) -> int:
        """Open a file for reading and writing; the handle's number."""
        return (await self.workspace.files.open(ino, os.O_RDWR)).number

    async def read(self, ino: Ino = FILE) -> bytes:
        """open, read, close."""
        number = await self.open(ino)
        try:
            return await self.workspace.files.read(number, 0, 1 << 20)
        finally:
            self.workspace.files.release(number)

    async def leave(self) -> bool:
        """Say goodbye and stay: what the last moments of a mount are like."""
        return await close_session(self.workspace._core.committer, self.journal)


@asynccontextmanager
async def open_mount(shared: Shared, cache: Path, number: int = 1, *, ttl_seconds: float = 10.0) -> AsyncIterator[Mount]:
    """A mount with a cache directory of its own, unless two are given the same `number`."""
    cable = Cable()
    journal = FaultyJournal(MemoryJournal(shared.log), cable)
    runtime = VirtualRuntime(Random(number), skew_ns=number * 10**12)
    async with open_workspace(
        journal=journal,
        open_store=lambda replica: Opened(shared.store),
        cache_dir=cache / str(number),
        settings=Settings(host=f"host{number}", pid=number, lease_ttl_seconds=ttl_seconds),
        runtime=runtime,
    ) as workspace:
        yield Mount(workspace, cable, journal)
