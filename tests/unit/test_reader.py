"""Reading: holes, chunks, staged bytes on top, and what the memory of decoded chunks must not mix up."""

from pathlib import Path
from random import Random

import pytest

from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import Segment, SegmentBuilder
from agentfs.model.changes import AddSegment, AnyChange, ChunkRun, Truncate, Write
from agentfs.model.errors import Corrupt, Unavailable
from agentfs.model.extents import CHUNK_MAX, INLINE_MAX, Chunk
from agentfs.model.ids import Ino, Position, ReplicaId
from agentfs.workspace.reader import DECODED_MAX
from tests.simulation.entries import make, text
from tests.simulation.faults import Fault
from tests.simulation.parts import World, make_world, open_parts
from tests.simulation.virtual_time import in_virtual_time

F, G = Ino(2 << 32), Ino((2 << 32) + 1)


@pytest.fixture
def world() -> World:
    world = make_world()
    world.foreign(2, make(F, b"f"), make(G, b"g"))
    return world


def segment_of(raw: bytes) -> tuple[Segment, Chunk]:
    """A segment of one chunk."""
    builder = SegmentBuilder()
    chunk = builder.add(raw)
    return builder.finish(), chunk


async def stored(world: World, ino: Ino, offset: int, raw: bytes) -> list[AnyChange]:
    """What a session on another host sends once a chunk is in the replicas."""
    segment, chunk = segment_of(raw)
    for store in world.stores.values():
        await store.put(segment.key, segment.body)
    run = ChunkRun(offset, segment.name, chunk)
    return [AddSegment(segment.name, len(segment.body), [ReplicaId(1), ReplicaId(2)]), Write(ino, [run], False, 30)]


@in_virtual_time
async def test_holes_are_zeros_and_the_end_is_the_end(world: World, tmp_path: Path) -> None:
    world.foreign(2, text(F, 4, b"abcd"), Truncate(F, 12, 30))
    async with open_parts(world, tmp_path / "1") as parts:
        assert await parts.body(F) == b"\0\0\0\0abcd\0\0\0\0"
        for offset, length, expected in [(0, 4, b"\0" * 4), (4, 4, b"abcd"), (6, 4, b"cd\0\0"), (11, 9, b"\0"), (12, 1, b"")]:
            assert await parts.reader.read(F, offset, length) == expected
        assert await parts.body(G) == b""


@in_virtual_time
async def test_parts_of_chunks_and_inline_bytes_between(world: World, tmp_path: Path) -> None:
    raw = Random(3).randbytes(1000)
    world.foreign(2, *await stored(world, F, 10, raw))
    world.foreign(2, text(F, 300, b"inline"))
    expected = b"\0" * 10 + raw[:290] + b"inline" + raw[296:]
    async with open_parts(world, tmp_path / "1") as parts:
        assert await parts.body(F) == expected
        random = Random(4)
        for _ in range(50):
            start = random.randint(0, 1020)
            length = random.randint(1, 400)
            assert await parts.reader.read(F, start, length) == expected[start : start + length]


@in_virtual_time
async def test_staged_bytes_lie_over_what_is_committed(world: World, tmp_path: Path) -> None:
    raw = Random(3).randbytes(1000)
    world.foreign(2, *await stored(world, F, 0, raw))
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 500, b"staged")
        assert await parts.body(F) == raw[:500] + b"staged" + raw[506:]
        parts.truncate(F, 503)
        assert await parts.body(F) == raw[:500] + b"sta"
        parts.truncate(F, 600)
        assert await parts.body(F) == raw[:500] + b"sta" + b"\0" * 97
        parts.write(F, 650, b"end")
        assert await parts.reader.read(F, 590, 100) == b"\0" * 60 + b"end"


@in_virtual_time
async def test_a_damaged_chunk_is_read_from_another_replica(world: World, tmp_path: Path) -> None:
    raw = Random(3).randbytes(1000)
    world.foreign(2, *await stored(world, F, 0, raw))
    segment, _ = segment_of(raw)
    await world.stores[ReplicaId(1)].delete(segment.key)
    await world.stores[ReplicaId(1)].put(segment.key, bytes(len(segment.body)))
    async with open_parts(world, tmp_path / "1") as parts:
        assert await parts.body(F) == raw


@in_virtual_time
async def test_a_chunk_that_no_replica_has_right_is_an_error_on_its_range_only(world: World, tmp_path: Path) -> None:
    raw = Random(3).randbytes(1000)
    world.foreign(2, *await stored(world, F, 0, raw))
    world.foreign(2, text(F, 1000, b"inline"))
    segment, _ = segment_of(raw)
    for replica in list(world.stores):
        world.stores[replica] = MemoryStore()
        await world.stores[replica].put(segment.key, bytes(len(segment.body)))
    async with open_parts(world, tmp_path / "1") as parts:
        with pytest.raises(Corrupt):
            await parts.body(F)
        assert await parts.reader.read(F, 1000, 6) == b"inline"


@in_virtual_time
async def test_replicas_that_do_not_answer_are_asked_again_by_the_next_read(world: World, tmp_path: Path) -> None:
    raw = Random(3).randbytes(1000)
    world.foreign(2, *await stored(world, F, 0, raw))
    for script in world.store_scripts.values():
        script.add("get", Fault(refused=Unavailable("down")))
    async with open_parts(world, tmp_path / "1") as parts:
        with pytest.raises(Unavailable):
            await parts.body(F)
        assert await parts.body(F) == raw


@in_virtual_time
async def test_memory_of_decoded_chunks_is_bounded(world: World, tmp_path: Path) -> None:
    random = Random(5)
    for number in range(DECODED_MAX // CHUNK_MAX + 3):
        world.foreign(2, *await stored(world, F, number * CHUNK_MAX, random.randbytes(32) * (CHUNK_MAX // 32)))
    async with open_parts(world, tmp_path / "1") as parts:
        size = parts.size(F)
        for offset in range(0, size, CHUNK_MAX):
            await parts.reader.read(F, offset, CHUNK_MAX)
        assert 0 < parts.reader.decoded_bytes <= DECODED_MAX


@in_virtual_time
async def test_a_chunk_read_before_a_rebase_is_not_taken_for_another_after_it(world: World, tmp_path: Path) -> None:
    """State numbers segments in the journal's order: number 1 while pending is number 2 when another came first."""
    mine, theirs = Random(6).randbytes(INLINE_MAX + 1), Random(7).randbytes(INLINE_MAX + 1)
    async with open_parts(world, tmp_path / "1", run=False) as parts:
        changes = await stored(world, F, 0, mine)
        parts.committer.submit(changes)
        assert await parts.body(F) == mine
        world.foreign(2, *await stored(world, G, 0, theirs))
        await parts.committer.catch_up(Position(len(world.log.payloads)))
        assert await parts.body(G) == theirs
        assert await parts.body(F) == mine
