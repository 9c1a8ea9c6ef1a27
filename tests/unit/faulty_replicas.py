"""Replicas that fail, wait, take their time and lie as they are told, in virtual time."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from random import Random

import trio
import trio.testing

from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.replica_failures import bare
from agentfs.chunks.replicated import Replicated, open_replicated
from agentfs.chunks.segment import SegmentBuilder
from agentfs.model.errors import AgentfsError
from agentfs.model.ids import ReplicaId
from tests.simulation.runtime import VirtualRuntime

ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)


class Faulty(MemoryStore):
    """A store that fails with `error`, or `put_error`, waits for `gate` before it changes anything and for `get_gate` before
    it answers, and takes `get_seconds` and `put_seconds`. A `stubborn` one is not interrupted, like a thread in a system call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error: AgentfsError | None = None
        self.put_error: AgentfsError | None = None
        self.gate: trio.Event | None = None
        self.get_gate: trio.Event | None = None
        self.get_seconds = self.put_seconds = 0.0
        self.stubborn = False
        self.gets = self.puts = self.sizes = self.interrupted = 0
        self.closed = False

    async def put(self, key: str, body: bytes) -> None:
        self.puts += 1
        await self._wait(self.gate, self.put_seconds)
        if self.put_error is not None:
            raise bare(self.put_error)
        await super().put(key, body)

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        self.gets += 1
        await self._wait(self.get_gate, self.get_seconds)
        return await super().get(key, start, length, check=check)

    async def size(self, key: str) -> int:
        self.sizes += 1
        await self._wait(self.get_gate, 0.0)
        return await super().size(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self._wait(self.get_gate, 0.0)
        async for info in super().list(prefix):
            yield info

    async def delete(self, key: str) -> None:
        await self._wait(self.gate, 0.0)
        await super().delete(key)

    async def capacity(self) -> Capacity | None:
        await self._wait(self.get_gate, 0.0)
        return await super().capacity()

    async def aclose(self) -> None:
        self.closed = True

    def damage(self, key: str) -> None:
        """Turn a bit of an object."""
        body = self._objects[key]
        self._objects[key] = bytes([body[0] ^ 1]) + body[1:]

    def lose(self) -> None:
        """Forget every object."""
        self._objects.clear()

    def holds(self, key: str) -> bytes | None:
        """The object as it is."""
        return self._objects.get(key)

    def freeze(self) -> trio.Event:
        """Answer nothing until the event is set."""
        self.gate = self.get_gate = trio.Event()
        return self.gate

    async def _wait(self, gate: trio.Event | None, seconds: float) -> None:
        try:
            with trio.CancelScope(shield=self.stubborn):
                if gate is not None:
                    await gate.wait()
                await trio.sleep(seconds)
        except trio.Cancelled:
            self.interrupted += 1
            raise
        if self.error is not None:
            raise bare(self.error)


class Replicas:
    """Three faulty replicas, and the store over them once it is open."""

    def __init__(self) -> None:
        self.runtime = VirtualRuntime(Random(1))
        self.one, self.two, self.three = Faulty(), Faulty(), Faulty()
        self.stores: dict[ReplicaId, ChunkStore] = {ONE: self.one, TWO: self.two, THREE: self.three}

    @property
    def all(self) -> tuple[Faulty, Faulty, Faulty]:
        """The three."""
        return self.one, self.two, self.three

    def open(
        self, replication: str = "quorum", *, write_quorum: int = 0, timeout_seconds: float = 30.0, hedging: bool = True
    ) -> AbstractAsyncContextManager[Replicated]:
        """The store over them."""
        return open_replicated(
            self.stores,
            replication=replication,
            write_quorum=write_quorum,
            timeout_seconds=timeout_seconds,
            hedging=hedging,
            runtime=self.runtime,
        )


def a_segment(content: bytes = b"what a file holds ") -> tuple[str, bytes]:
    """The key and the bytes of a segment."""
    builder = SegmentBuilder()
    builder.add(content * 100)
    segment = builder.finish()
    return segment.key, segment.body


KEY, BODY = a_segment()


def right(body: bytes) -> bool:
    """Whether these are the bytes of the segment."""
    return body == BODY


def last_errors(store: Replicated) -> dict[ReplicaId, str]:
    """What is wrong with each replica that has something wrong."""
    return {replica: health.last_error for replica, health in store.health().items() if health.last_error}


async def settled() -> None:
    """Until every task waits for something."""
    await trio.testing.wait_all_tasks_blocked()
