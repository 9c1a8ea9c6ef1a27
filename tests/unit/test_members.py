"""Members: the stores in use follow the replicas that State has, whatever comes, goes, or cannot be opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pytest
import trio
import trio.testing

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.memory import MemoryStore
from agentfs.model.changes import AddReplica, RemoveReplica
from agentfs.model.errors import Denied
from agentfs.model.ids import ReplicaId, SessionId
from agentfs.model.replica import Replica
from agentfs.state.tables import Tables, open_tables
from agentfs.workspace.members import RETRY_SECONDS, Members
from tests.simulation.entries import founding, opening, put, send
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

A = SessionId(1)
ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)


@dataclass
class Used:
    """The stores in use, as `Replicated` keeps them."""

    stores: dict[ReplicaId, ChunkStore] = field(default_factory=dict)

    def add(self, replica: ReplicaId, store: ChunkStore) -> None:
        assert replica not in self.stores
        self.stores[replica] = store

    async def remove(self, replica: ReplicaId) -> None:
        assert len(self.stores) > 1, "the last one cannot go"
        store = self.stores.pop(replica)
        await store.aclose()


@dataclass
class Running:
    """Members at work: what is opened, what cannot be, and how often a change was told of."""

    tables: Tables
    used: Used
    closed_to: set[ReplicaId] = field(default_factory=set)
    told: int = 0

    def open(self, replica: Replica) -> ChunkStore:
        if replica.replica in self.closed_to:
            raise Denied("no permission")
        return MemoryStore()

    def tell(self) -> None:
        self.told += 1


@asynccontextmanager
async def running() -> AsyncIterator[Running]:
    tables = open_tables(None)
    for entry in (founding(2), opening(b"A")):
        put(tables, entry)
    world = Running(tables, Used({ONE: MemoryStore(), TWO: MemoryStore()}))
    members = Members(tables, world.used, world.open, VirtualRuntime(Random(1)))
    members.on_changed = world.tell
    tables.on_replicas = members.changed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(members.run)
        await trio.testing.wait_all_tasks_blocked()
        yield world
        nursery.cancel_scope.cancel()
    tables.close()


@in_virtual_time
async def test_stores_come_and_go_with_their_replicas() -> None:
    async with running() as world:
        assert world.told == 0
        send(world.tables, A, AddReplica(THREE, "memory:3"))
        await trio.sleep(1)
        assert list(world.used.stores) == [ONE, TWO, THREE]
        send(world.tables, A, RemoveReplica(ONE))
        await trio.sleep(1)
        assert list(world.used.stores) == [TWO, THREE]
        assert world.told == 2


@in_virtual_time
async def test_what_is_taken_back_at_once_is_not_seen() -> None:
    async with running() as world:
        mark = world.tables.mark()
        world.tables.put_replica(Replica(THREE, "memory:3"))
        world.tables.revert(mark)
        await trio.sleep(1)
        assert list(world.used.stores) == [ONE, TWO]


@in_virtual_time
async def test_a_store_that_cannot_be_opened_is_tried_again() -> None:
    async with running() as world:
        world.closed_to.add(THREE)
        send(world.tables, A, AddReplica(THREE, "memory:3"))
        await trio.sleep(1)
        # It counts as a replica that fails, or a write would be said to be in all replicas while it is not in this one.
        with pytest.raises(Denied, match="no permission"):
            await world.used.stores[THREE].put("key", b"body")
        world.closed_to.clear()
        await trio.sleep(RETRY_SECONDS)
        await world.used.stores[THREE].put("key", b"body")


@in_virtual_time
async def test_all_that_can_be_opened_may_go() -> None:
    async with running() as world:
        world.closed_to.add(THREE)
        send(world.tables, A, AddReplica(THREE, "memory:3"))
        send(world.tables, A, RemoveReplica(ONE), RemoveReplica(TWO))
        await trio.sleep(1)
        assert list(world.used.stores) == [THREE]
        world.closed_to.clear()
        await trio.sleep(RETRY_SECONDS)
        await world.used.stores[THREE].put("key", b"body")
