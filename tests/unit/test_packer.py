"""The packer: what goes together into a segment, what becomes of those that share one, and who is told where it is."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from random import Random
from typing import TypeVar, TypeVarTuple

import pytest
import trio

from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.replicated import Replicated, open_replicated
from agentfs.chunks.segment import decode_chunk, segment_key
from agentfs.journal.memory import MemoryJournal
from agentfs.model.changes import Placed
from agentfs.model.errors import AgentfsError, Denied, NoSpace, Unavailable
from agentfs.model.extents import CHUNK_MAX, INLINE_MAX, SEGMENT_MAX
from agentfs.model.ids import ReplicaId, SessionId
from agentfs.state.tables import Tables
from agentfs.workspace import packer as packing
from agentfs.workspace.committer import Committer
from agentfs.workspace.packer import PUTS_MAX, ChunkAt, Packer, Piece, open_packer
from tests.simulation.faults import Fault, FaultyStore
from tests.simulation.parts import World, entries_of, make_world, replayed
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

T = TypeVar("T")
Args = TypeVarTuple("Args")

ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)
SMALL = INLINE_MAX + 1


class SlowThreads(VirtualRuntime):
    """A runtime whose threads take `seconds`, and, as threads do, go on when their caller is cancelled."""

    def __init__(self, seconds: float) -> None:
        super().__init__(Random(1))
        self.seconds = seconds

    async def in_thread(self, function: Callable[[*Args], T], *args: *Args) -> T:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            await trio.sleep(self.seconds)
        return function(*args)


class Counting(MemoryStore):
    """A store whose puts take `seconds`; it counts how many there were, and how many at once."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.bodies: list[int] = []
        self.now = self.most = 0

    async def put(self, key: str, body: bytes) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(self.seconds)
            await super().put(key, body)
        finally:
            self.now -= 1
        self.bodies.append(len(body))


@dataclass
class Packing:
    """A packer over a world, with what a test looks at."""

    packer: Packer
    committer: Committer
    tables: Tables
    replicas: Replicated
    placed: dict[int, list[ChunkAt]] = field(default_factory=dict)
    failed: dict[int, AgentfsError] = field(default_factory=dict)

    async def place(self, number: int, pieces: list[Piece]) -> None:
        """Place pieces as caller `number`, and remember what came of it."""
        try:
            self.placed[number] = await self.packer.place(pieces)
        except AgentfsError as error:
            self.failed[number] = error

    async def read(self, number: int) -> bytes:
        """The bytes of everything that caller `number` placed, from the replicas."""
        return b"".join([await self._chunk(found) for found in self.placed[number]])

    async def _chunk(self, found: ChunkAt) -> bytes:
        chunk = found.chunk
        stored = await self.replicas.get(segment_key(found.placement.name), chunk.start, chunk.stored)
        return decode_chunk(stored, chunk)

    def segments_of(self, number: int) -> list[bytes]:
        """The names of the segments that hold what a caller placed, each once, in order."""
        return list(dict.fromkeys(found.placement.name for found in self.placed[number]))


@asynccontextmanager
async def open_packing(
    world: World, *, replication: str = "sync", runtime: VirtualRuntime | None = None
) -> AsyncIterator[Packing]:
    runtime = runtime or VirtualRuntime(Random(1))
    tables = replayed(world.log)
    committer = Committer(MemoryJournal(world.log), tables, SessionId(1), runtime)
    stores: dict[ReplicaId, ChunkStore] = {
        number: FaultyStore(store, world.store_scripts[number]) for number, store in world.stores.items()
    }
    async with open_replicated(stores, replication=replication, runtime=runtime) as replicas, trio.open_nursery() as nursery:
        nursery.start_soon(committer.run)
        async with open_packer(replicas, replicas, committer, runtime) as packer:
            yield Packing(packer, committer, tables, replicas)
        nursery.cancel_scope.cancel()
    tables.close()


@pytest.fixture
def world() -> World:
    return make_world()


@pytest.fixture
def counting() -> Iterator[Counting]:
    return Counting()


def noise(seed: int, length: int = SMALL) -> bytes:
    return Random(seed).randbytes(length)


def pieces_of(body: bytes) -> list[Piece]:
    """Pieces as a commit cuts them."""
    cuts = [body[start : start + CHUNK_MAX] for start in range(0, len(body), CHUNK_MAX)]
    return [Piece(len(cut), partial(bytes, cut)) for cut in cuts]


def unreadable() -> bytes:
    raise NoSpace("the disk is full of holes")


def only(world: World, store: ChunkStore) -> None:
    """Make `store` the only replica that is asked."""
    world.stores = {ONE: store}


# ---- what goes together


@in_virtual_time
async def test_what_was_placed_is_in_every_replica(world: World) -> None:
    body = noise(1, 3 * CHUNK_MAX + 5)
    async with open_packing(world) as packing:
        await packing.place(1, pieces_of(body))
        assert await packing.read(1) == body
        (name,) = packing.segments_of(1)
        for store in world.stores.values():
            assert await store.size(segment_key(name)) == packing.placed[1][0].placement.size


@in_virtual_time
async def test_nothing_to_place_is_placed_at_once(world: World) -> None:
    async with open_packing(world) as packing:
        assert await packing.packer.place([]) == []


@in_virtual_time
async def test_one_piece_alone_does_not_wait_for_company(world: World) -> None:
    async with open_packing(world) as packing:
        began = trio.current_time()
        await packing.place(1, pieces_of(noise(1)))
        assert trio.current_time() == began


@in_virtual_time
async def test_pieces_that_come_while_segments_are_put_go_together(world: World, counting: Counting) -> None:
    only(world, counting)
    counting.seconds = 1.0
    async with open_packing(world) as packing, trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(packing.place, number, pieces_of(noise(number)))
            await trio.sleep(0.01)
        await trio.sleep(5)
        assert len(packing.placed) == 200
        # One each of the first, then all that came within the second that they took, and so on.
        assert len(counting.bodies) <= 3 * PUTS_MAX
        assert counting.most <= PUTS_MAX
        for number in range(200):
            assert await packing.read(number) == noise(number)


@in_virtual_time
async def test_many_files_at_once_fill_their_segments(world: World, counting: Counting) -> None:
    only(world, counting)
    counting.seconds = 0.02
    async with open_packing(world) as packing, trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(packing.place, number, pieces_of(noise(number)))
        await trio.sleep(5)
        assert len(packing.placed) == 1000
        full = 1000 * SMALL / SEGMENT_MAX
        assert full <= len(counting.bodies) <= full + 2


@in_virtual_time
async def test_a_large_file_fills_segments_of_its_own_in_order(world: World) -> None:
    body = noise(1, 20 * CHUNK_MAX)
    async with open_packing(world) as packing:
        await packing.place(1, pieces_of(body))
        assert await packing.read(1) == body
        # Seven whole pieces fit into one; who builds beside another may leave one more that is not full.
        assert len(packing.segments_of(1)) in (3, 4)
        names = [found.placement.name for found in packing.placed[1]]
        changes = sum(name != following for name, following in pairwise(names))
        assert changes == len(packing.segments_of(1)) - 1, "each segment holds a run of the file"


@in_virtual_time
async def test_the_same_bytes_are_in_a_segment_once(world: World) -> None:
    async with open_packing(world) as packing:
        await packing.place(1, pieces_of(noise(1)) * 50)
        assert packing.placed[1][0].placement.size < 2 * SMALL
        assert await packing.read(1) == noise(1) * 50


@in_virtual_time
async def test_the_queue_is_bounded(world: World, counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    only(world, counting)
    counting.seconds = 1.0
    monkeypatch.setattr(packing, "QUEUE_MAX", 10)
    async with open_packing(world) as packed, trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(packed.place, number, pieces_of(noise(number)))
        await trio.sleep(1000)
        assert len(packed.placed) == 100
        assert len(counting.bodies) >= 10, "ten at a time were there to be taken"


# ---- what fails


@in_virtual_time
async def test_a_put_that_fails_fails_for_everyone_in_it_and_for_nobody_else(world: World) -> None:
    gate = trio.Event()
    faults = [Fault(before=gate)] * PUTS_MAX
    world.store_scripts[ONE].add("put", *faults, Fault(refused=NoSpace("the store is full")))
    async with open_packing(world) as packing, trio.open_nursery() as nursery:
        for number in range(PUTS_MAX + 5):
            nursery.start_soon(packing.place, number, pieces_of(noise(number)))
            await trio.sleep(0.1)
        gate.set()
        await trio.sleep(1)
        assert sorted(packing.placed) == list(range(PUTS_MAX))
        assert sorted(packing.failed) == list(range(PUTS_MAX, PUTS_MAX + 5))
        assert {type(error) for error in packing.failed.values()} == {NoSpace}
        await packing.place(100, pieces_of(noise(100)))
        assert await packing.read(100) == noise(100)


@in_virtual_time
async def test_a_piece_that_cannot_be_read_fails_for_its_caller_alone(world: World) -> None:
    async with open_packing(world) as packing, trio.open_nursery() as nursery:
        nursery.start_soon(packing.place, 1, pieces_of(noise(1)))
        nursery.start_soon(packing.place, 2, [*pieces_of(noise(2)), Piece(10, unreadable)])
        nursery.start_soon(packing.place, 3, [Piece(10, partial(bytes, b"short"))])
        nursery.start_soon(packing.place, 4, pieces_of(noise(4)))
        await trio.sleep(1)
        assert await packing.read(1) == noise(1)
        assert await packing.read(4) == noise(4)
        assert sorted(packing.failed) == [2, 3]
        assert isinstance(packing.failed[2], NoSpace)


@in_virtual_time
async def test_who_waited_through_a_put_that_was_given_up_waits_no_longer(world: World, counting: Counting) -> None:
    """Four puts are under way for half a minute before they are given up; what came after the first began is not failed yet."""
    world.store_scripts[ONE].add("put", *[Fault(before=40.0, refused=Unavailable("silent"))] * PUTS_MAX)
    async with open_packing(world) as packing, trio.open_nursery() as nursery:
        for number in range(PUTS_MAX):
            nursery.start_soon(packing.place, number, pieces_of(noise(number)))
            await trio.sleep(1)
        nursery.start_soon(packing.place, 10, pieces_of(noise(10)))
        await trio.sleep(200)
        assert sorted(packing.failed) == list(range(PUTS_MAX))
        assert await packing.read(10) == noise(10), "it came after every put that failed had begun, so it had its own turn"


@in_virtual_time
async def test_a_queue_is_not_failed_one_segment_after_the_other(world: World) -> None:
    silent = Fault(before=30.0, refused=Denied("no"))
    world.store_scripts[ONE].add("put", *[silent] * PUTS_MAX, *[Fault(before=30.0, refused=Unavailable("silent"))] * 100)
    async with open_packing(world) as packing, trio.open_nursery() as nursery:
        for number in range(30):
            nursery.start_soon(packing.place, number, pieces_of(noise(number, 7 * CHUNK_MAX)))
        await trio.sleep(30 + 30 + 40)
        assert len(packing.failed) == 30, "who was there when the second four puts began is told when they are given up"


@in_virtual_time
async def test_a_caller_that_is_cancelled_breaks_nobody(world: World) -> None:
    gate = trio.Event()
    world.store_scripts[ONE].add("put", *[Fault(before=gate)] * 20)
    async with open_packing(world) as packing, trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def cancelled() -> None:
            with scope:
                await packing.place(0, pieces_of(noise(0, 30 * CHUNK_MAX)))

        nursery.start_soon(packing.place, 1, pieces_of(noise(1)))
        nursery.start_soon(cancelled)
        nursery.start_soon(packing.place, 2, pieces_of(noise(2)))
        await trio.sleep(1)
        scope.cancel()
        await trio.sleep(1)
        nursery.start_soon(packing.place, 3, pieces_of(noise(3)))
        gate.set()
        await trio.sleep(1)
        assert sorted(packing.placed) == [1, 2, 3]
        for number in (1, 2, 3):
            assert await packing.read(number) == noise(number)


@in_virtual_time
async def test_no_piece_is_read_once_its_caller_has_left(world: World) -> None:
    """The staging file may be given to another file by then."""
    left = False
    reads = 0

    def read() -> bytes:
        nonlocal reads
        assert not left, "read after its caller had left"
        reads += 1
        return noise(0)

    async with open_packing(world, runtime=SlowThreads(1.0)) as packing, trio.open_nursery() as nursery:

        async def cancelled(after: float) -> None:
            nonlocal left
            with trio.move_on_after(after):
                await packing.place(0, [Piece(SMALL, read)] * 2000)
            left = True

        nursery.start_soon(cancelled, 0.5)
        nursery.start_soon(packing.place, 1, pieces_of(noise(1)))
        await trio.sleep(20)
        assert 0 < reads < 2000
        assert await packing.read(1) == noise(1)


@in_virtual_time
async def test_who_waits_when_it_is_closed_is_told(world: World) -> None:
    world.store_scripts[ONE].add("put", Fault(before=100.0))
    outcomes = list[type[AgentfsError]]()
    async with trio.open_nursery() as nursery:
        async with open_packing(world) as packing:

            async def place() -> None:
                with pytest.raises(Unavailable):
                    await packing.packer.place(pieces_of(noise(1)))
                outcomes.append(Unavailable)

            nursery.start_soon(place)
            await trio.sleep(1)
        await trio.sleep(1)
        assert outcomes == [Unavailable]


# ---- who holds what


@in_virtual_time
async def test_writing_the_same_again_mends_what_was_lost(world: World) -> None:
    async with open_packing(world) as packing:
        await packing.place(1, pieces_of(noise(1)))
        await packing.committer.commit([packing.placed[1][0].placement.naming()])
        for store in world.stores.values():
            await store.delete(segment_key(packing.segments_of(1)[0]))
        await packing.place(2, pieces_of(noise(1)))
        assert packing.segments_of(2) == packing.segments_of(1)
        assert await packing.read(1) == noise(1)


@in_virtual_time
async def test_what_a_member_lacks_is_put_there_by_the_next(world: World) -> None:
    async with open_packing(world, replication="async") as packing:
        world.store_scripts[TWO].add("put", Fault(refused=NoSpace("full")))
        await packing.place(1, pieces_of(noise(1)))
        assert packing.placed[1][0].placement.naming().replicas == [ONE]
        await packing.committer.commit([packing.placed[1][0].placement.naming()])
        await packing.place(2, pieces_of(noise(1)))
        await trio.sleep(1)
        assert packing.segments_of(2) == packing.segments_of(1)
        await packing.committer.commit([packing.placed[2][0].placement.naming()])
        assert packing.tables.holders(packing.segments_of(1)[0]) == [ONE, TWO]


@in_virtual_time
async def test_every_transaction_that_names_a_segment_says_the_same(world: World) -> None:
    """The first may never be committed, so the second must not leave out who holds the segment."""
    async with open_packing(world) as packing, trio.open_nursery() as nursery:
        nursery.start_soon(packing.place, 1, pieces_of(noise(1)))
        nursery.start_soon(packing.place, 2, pieces_of(noise(2)))
        await trio.sleep(1)
        assert packing.segments_of(1) == packing.segments_of(2)
        first, second = (packing.placed[number][0].placement.naming() for number in (1, 2))
        assert first == second
        assert first.replicas == [ONE, TWO]


@in_virtual_time
async def test_a_straggler_that_comes_before_the_name_is_said_with_it(world: World) -> None:
    world.store_scripts[TWO].add("put", Fault(before=10.0))
    async with open_packing(world, replication="async") as packing:
        await packing.place(1, pieces_of(noise(1)))
        assert packing.placed[1][0].placement.naming().replicas == [ONE]
        await trio.sleep(20)
        assert packing.placed[1][0].placement.naming().replicas == [ONE, TWO]
        assert len(entries_of(world.log)) == 3, "there was nothing to record"


@in_virtual_time
async def test_stragglers_are_recorded_many_at_once(world: World) -> None:
    world.store_scripts[TWO].add("put", *[Fault(before=10.0)] * 300)
    async with open_packing(world, replication="async") as packing:
        for number in range(8):
            await packing.place(number, pieces_of(noise(number)))
            await packing.committer.commit([packing.placed[number][0].placement.naming()])
        before = len(entries_of(world.log))
        await trio.sleep(20)
        recorded = entries_of(world.log)[before:]
        assert len(recorded) == 1
        (transaction,) = recorded[0].transactions
        assert [type(change) for change in transaction.changes] == [Placed] * 8
        names = [packing.segments_of(number)[0] for number in range(8)]
        assert all(packing.tables.holders(name) == [ONE, TWO] for name in names)
