"""The stack of stores: which replicas a mount can do without, and when it has a cache on disk."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from agentfs.chunks.memory import MemoryStore
from agentfs.model.changes import AddReplica, RemoveReplica
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Denied, Unavailable
from agentfs.model.ids import NO_SESSION, Position, ReplicaId, TxnNumber
from agentfs.model.replica import Replica
from agentfs.state.apply import apply_entry
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.settings import Settings
from agentfs.workspace.storage import CHECK_SECONDS, Opened, Storage, open_storage
from tests.simulation.entries import founding, put
from tests.simulation.runtime import VirtualRuntime

REFUSES = Denied("no right to it")
AWAY = Unavailable("no route to it")


async def never() -> None:
    await trio.sleep_forever()


def state(replication: str) -> Tables:
    tables = open_tables(None)
    put(tables, founding(3, replication=replication))
    return tables


def failing(error: AgentfsError) -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        raise error

    return check


@asynccontextmanager
async def opened(
    tmp_path: Path,
    replication: str,
    *errors: AgentfsError | Callable[[], Awaitable[None]] | None,
    far: bool = False,
    **settings: object,
) -> AsyncIterator[Storage]:
    """Storage over three replicas; each has an error that its check raises, or a check, or nothing."""

    def open_store(replica: Replica) -> Opened:
        found = errors[replica.replica - 1] if errors else None
        check = failing(found) if isinstance(found, AgentfsError) else found
        return Opened(MemoryStore(), far=far, check=check)

    chosen = Settings(host="h", pid=1, **settings)  # type: ignore[arg-type]
    async with open_storage(state(replication), open_store, chosen, tmp_path, VirtualRuntime(Random(1))) as storage:
        yield storage


@pytest.mark.parametrize(
    ("replication", "refusing", "starts"),
    [("sync", 0, True), ("sync", 1, False), ("quorum", 1, True), ("quorum", 2, False), ("async", 2, True), ("async", 3, False)],
)
async def test_a_mount_needs_as_many_replicas_as_a_write(tmp_path: Path, replication: str, refusing: int, starts: bool) -> None:
    errors = [REFUSES] * refusing + [None] * (3 - refusing)
    if starts:
        async with opened(tmp_path, replication, *errors) as storage:
            await storage.sink.put("segments/x", b"x") if replication != "sync" or not refusing else None
        return
    with pytest.raises(Denied, match="too few replicas can be used: replica 1: no right to it"):
        async with opened(tmp_path, replication, *errors):
            pass


async def test_a_replica_that_is_away_is_no_reason_to_refuse(tmp_path: Path) -> None:
    async with opened(tmp_path, "sync", AWAY, AWAY, AWAY):
        pass


async def test_reading_needs_one(tmp_path: Path) -> None:
    async with opened(tmp_path, "sync", REFUSES, REFUSES, None, read_only=True):
        pass
    with pytest.raises(Denied):
        async with opened(tmp_path, "async", REFUSES, REFUSES, REFUSES, read_only=True):
            pass


async def test_who_mends_replicas_needs_none(tmp_path: Path) -> None:
    async with opened(tmp_path, "sync", REFUSES, REFUSES, REFUSES, needs_quorum=False):
        pass


async def test_nobody_waits_for_a_replica_that_says_nothing(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    before = trio.current_time()
    async with opened(tmp_path, "sync", never, None, None):
        assert trio.current_time() - before == pytest.approx(CHECK_SECONDS, abs=0.01)


async def test_offline_asks_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path, "sync", REFUSES, never, AWAY, offline=True) as storage:
        with pytest.raises(Unavailable):
            await storage.chunks.get("segments/x")


async def test_far_replicas_have_a_cache_on_disk(tmp_path: Path) -> None:
    async with opened(tmp_path, "sync", far=True) as storage:
        assert storage.edge is not None
        assert storage.sink is storage.edge
    async with opened(tmp_path, "sync") as storage:
        assert storage.edge is None
        assert storage.sink is storage.replicas
    async with opened(tmp_path, "sync", edge_max_bytes=64 << 20) as storage:
        assert storage.edge is not None
        assert storage.edge.max_bytes == 64 << 20


async def test_removed_replicas_are_not_opened(tmp_path: Path) -> None:
    tables = state("quorum")
    changes = [RemoveReplica(ReplicaId(1)), AddReplica(ReplicaId(7), "memory:7")]
    apply_entry(tables, Entry(NO_SESSION, 1, [Transaction(TxnNumber(1), list(changes))]), Position(tables.position + 1))
    tables.settle()
    asked: list[ReplicaId] = []

    def open_store(replica: Replica) -> Opened:
        asked.append(replica.replica)
        return Opened(MemoryStore())

    async with open_storage(tables, open_store, Settings(host="h", pid=1), tmp_path, VirtualRuntime(Random(1))) as storage:
        assert sorted(storage.replicas.stores) == sorted(asked) == [2, 3, 7]
