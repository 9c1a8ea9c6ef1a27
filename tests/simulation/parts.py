"""The parts of one session, put together over a journal in memory without a mount, so that a test can reach each of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from agentfs.chunks.cached import open_cached
from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.replicated import Replicated, open_replicated
from agentfs.journal.memory import MemoryJournal, MemoryLog
from agentfs.model.changes import AnyChange
from agentfs.model.codec import decode_entry, encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.ids import Ino, Position, ReplicaId, SessionId, TxnNumber
from agentfs.runtime import Runtime
from agentfs.state.apply import apply_entry
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.committer import Committer
from agentfs.workspace.packer import open_packer
from agentfs.workspace.reader import Reader
from agentfs.workspace.staging import Staging
from agentfs.workspace.writeback import Writeback
from tests.simulation.entries import founding, opening
from tests.simulation.faults import FaultyJournal, FaultyStore, Script
from tests.simulation.runtime import VirtualRuntime


@dataclass
class World:
    """What sessions share: the log, the replicas' objects, and the faults that a test lines up for the journal and for each."""

    log: MemoryLog = field(default_factory=MemoryLog)
    stores: dict[ReplicaId, ChunkStore] = field(default_factory=dict)
    journal_script: Script = field(default_factory=Script)
    store_scripts: dict[ReplicaId, Script] = field(default_factory=dict)

    def foreign(self, session: int, *changes: AnyChange) -> None:
        """Append an entry of a session that is not running here."""
        tables = replayed(self.log)
        number = TxnNumber(tables.sessions[SessionId(session)].seen + 1)
        entry = Entry(SessionId(session), 3, [Transaction(number, list(changes))])
        tables.close()
        self.log.payloads.append(encode_entry(entry))


def make_world(replicas: int = 2) -> World:
    """A founded workspace with two open sessions, 1 and 2."""
    world = World()
    world.log.payloads.extend(encode_entry(entry) for entry in (founding(replicas), opening(b"A"), opening(b"B")))
    for number in range(1, replicas + 1):
        replica = ReplicaId(number)
        world.store_scripts[replica] = Script()
        world.stores[replica] = MemoryStore()
    return world


def entries_of(log: MemoryLog) -> list[Entry]:
    """Every entry, from position 1 on."""
    return [decode_entry(payload) for payload in log.payloads]


def replayed(log: MemoryLog) -> Tables:
    """A fresh replay of the whole log."""
    tables = open_tables(None)
    for number, entry in enumerate(entries_of(log), 1):
        apply_entry(tables, entry, Position(number))
        tables.settle()
    return tables


@dataclass(frozen=True, slots=True)
class Parts:
    """One running session."""

    tables: Tables
    committer: Committer
    staging: Staging
    writeback: Writeback
    reader: Reader
    replicas: Replicated
    runtime: Runtime

    def write(self, ino: Ino, offset: int, data: bytes, *, append: bool = False) -> None:
        """Stage a write."""
        self.staging.write(ino, offset, data, size=self.size(ino), now_ns=self.runtime.now_ns(), append=append)

    def truncate(self, ino: Ino, size: int) -> None:
        """Stage a truncation."""
        self.staging.truncate(ino, size, size=self.size(ino), now_ns=self.runtime.now_ns())

    def size(self, ino: Ino) -> int:
        """The size that stat(2) shows."""
        file, inode = self.staging.files.get(ino), self.tables.inode(ino)
        return file.size if file else inode.size if inode else 0

    async def body(self, ino: Ino) -> bytes:
        """All of a file, as a process of this mount reads it."""
        return await self.reader.read(ino, 0, 1 << 40)


@asynccontextmanager
async def open_parts(
    world: World, directory: Path, *, session: int = 1, replication: str = "sync", run: bool = True
) -> AsyncIterator[Parts]:
    """A session that is registered already, with its committer running unless `run` says otherwise."""
    directory.mkdir(exist_ok=True)
    runtime = VirtualRuntime(Random(session))
    journal = FaultyJournal(MemoryJournal(world.log), world.journal_script)
    stores: dict[ReplicaId, ChunkStore] = {
        replica: FaultyStore(store, world.store_scripts[replica]) for replica, store in world.stores.items()
    }
    tables, staging = replayed(world.log), Staging(directory, runtime.boottime)
    committer = Committer(journal, tables, SessionId(session), runtime)
    committer.on_submit, committer.on_withdraw = staging.log_submitted, staging.log_withdrawn
    tables.before_erase = staging.discard
    async with (
        open_replicated(stores, replication=replication, runtime=runtime) as replicas,
        open_cached(replicas, max_bytes=1 << 20) as chunks,
        open_packer(replicas, replicas, committer, runtime) as packer,
        trio.open_nursery() as nursery,
    ):
        if run:
            nursery.start_soon(committer.run)
        writeback = Writeback(staging, committer, packer, runtime)
        reader = Reader(tables, staging, chunks, runtime, nursery)
        yield Parts(tables, committer, staging, writeback, reader, replicas, runtime)
        nursery.cancel_scope.cancel()
    staging.close()
    tables.close()
