"""Reading: holes, chunks, staged bytes on top, and what the memory of decoded chunks must not mix up."""

from pathlib import Path
from random import Random

import pytest
import trio

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
from tests.unit.reading import MIB, Asked, Library, open_reading

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


@in_virtual_time
async def test_segments_that_get_other_numbers_while_a_read_waits_are_not_mixed_up(world: World, tmp_path: Path) -> None:
    pieces = [Random(number).randbytes(INLINE_MAX + 1) for number in range(3)]
    arrives = trio.Event()
    async with open_parts(world, tmp_path / "1", run=False) as parts:
        for offset, piece in enumerate(pieces[:2]):
            parts.committer.submit(await stored(world, F, offset * len(piece), piece))
        for script in world.store_scripts.values():
            script.add("get", Fault(before=arrives), Fault(before=arrives))
        bodies: list[bytes] = []

        async def read() -> None:
            bodies.append(await parts.body(F))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            world.foreign(2, *await stored(world, G, 0, pieces[2]))
            await parts.committer.catch_up(Position(len(world.log.payloads)))
            arrives.set()
        assert bodies == [pieces[0] + pieces[1]]


# ---- what reading costs


@in_virtual_time
async def test_small_files_bring_their_segment(tmp_path: Path) -> None:
    library = Library()
    bodies = await library.small_files(30)
    async with open_reading(library, tmp_path) as reading:
        await reading.all_of(bodies)
        assert len(reading.store.asked) == 1


@in_virtual_time
async def test_small_files_that_are_read_at_once_bring_their_segment_once(tmp_path: Path) -> None:
    library = Library()
    bodies = await library.small_files(30)
    library.store.seconds = 0.1
    async with open_reading(library, tmp_path) as reading:
        async with trio.open_nursery() as nursery:
            for ino, body in bodies.items():
                nursery.start_soon(reading.all_of, {ino: body})
        assert len(reading.store.asked) == 1


@in_virtual_time
async def test_a_small_file_is_read_though_its_segment_is_damaged_elsewhere(tmp_path: Path) -> None:
    library = Library()
    bodies = await library.small_files(3)
    first, *others = bodies
    async with open_reading(library, tmp_path) as reading:
        (info,) = [info async for info in library.store.list("segments/")]
        body = bytearray(await library.store.get(info.key))
        body[10] ^= 1
        await library.store.delete(info.key)
        await library.store.put(info.key, bytes(body))
        await reading.all_of({ino: bodies[ino] for ino in others})
        with pytest.raises(Corrupt):
            await reading.reader.read(first, 0, 1)


@in_virtual_time
async def test_a_segment_that_does_not_stay_is_not_brought_for_each_of_its_files(tmp_path: Path) -> None:
    library = Library()
    groups = [await library.small_files(60, name=b"group%d-" % number) for number in range(5)]
    order = [(ino, body) for together in zip(*(group.items() for group in groups), strict=True) for ino, body in together]
    sizes = {info.key: info.size async for info in library.store.list("segments/")}
    async with open_reading(library, tmp_path, memory_bytes=4 * max(sizes.values()) + 4096) as reading:
        await reading.all_of(dict(order))
        read = sum(sizes[asked.key] if asked.length is None else asked.length for asked in reading.store.asked)
        assert read < 0.3 * len(order) * max(sizes.values())


@in_virtual_time
async def test_the_first_byte_of_a_big_file_is_one_chunk(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(20)
    async with open_reading(library, tmp_path) as reading:
        assert await reading.reader.read(ino, 0, 1) == body[:1]
        await trio.sleep(60)
        ((_, _, length),) = reading.store.asked
        assert length is not None
        assert length <= MIB + 1


@in_virtual_time
async def test_requests_for_one_chunk_at_once_cause_one_fetch(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(1)
    library.store.seconds = 0.1
    async with open_reading(library, tmp_path, memory_bytes=0) as reading:

        async def read(offset: int) -> None:
            assert await reading.reader.read(ino, offset, 1 << 17) == body[offset : offset + (1 << 17)]

        async with trio.open_nursery() as nursery:
            for offset in range(0, MIB, 1 << 17):
                nursery.start_soon(read, offset)
        assert len(reading.store.asked) == 1


@in_virtual_time
async def test_a_fetch_is_cancelled_with_the_last_who_wants_it(tmp_path: Path) -> None:
    library = Library()
    ino, body = await library.big_file(1)
    library.store.seconds = 10
    async with open_reading(library, tmp_path) as reading:

        async def read(scope: trio.CancelScope) -> None:
            with scope:
                await reading.reader.read(ino, 0, 1)

        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope(), trio.CancelScope()]
            for scope in scopes:
                nursery.start_soon(read, scope)
            await trio.sleep(1)
            scopes[0].cancel()
            await trio.sleep(1)
            assert reading.store.cancelled == 0
            scopes[1].cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert reading.store.cancelled == 1
        assert await reading.reader.read(ino, 0, 1) == body[:1]


@in_virtual_time
async def test_the_same_bytes_in_another_segment_do_not_share_its_fate(tmp_path: Path) -> None:
    library = Library()
    lost, kept = library.names(b"lost", b"kept")
    body = Random(1).randbytes(50_000)
    key = await library.write([(lost, 0, body)])
    await library.write([(kept, 0, body), (kept, 50_000, b"more")])
    await library.store.delete(key)
    library.store.seconds = 0.1
    async with open_reading(library, tmp_path) as reading, trio.open_nursery() as nursery:

        async def read_lost() -> None:
            with pytest.raises(Corrupt):
                await reading.reader.read(lost, 0, 1)

        nursery.start_soon(read_lost)
        await trio.sleep(0.05)
        assert await reading.reader.read(kept, 0, 1) == body[:1]


@in_virtual_time
async def test_the_chunks_of_one_read_are_fetched_side_by_side(tmp_path: Path) -> None:
    library = Library()
    (ino,) = library.names(b"f")
    body = Random(1).randbytes(40 * 10_000)
    for start in range(0, len(body), 10_000):
        await library.write([(ino, start, body[start : start + 10_000])])
    library.store.seconds = 1.0
    async with open_reading(library, tmp_path) as reading:
        began = trio.current_time()
        assert await reading.reader.read(ino, 0, 100_000) == body[:100_000]
        assert trio.current_time() - began < 1.5
        assert len(reading.store.asked) == 10


@in_virtual_time
async def test_a_big_file_that_was_written_bit_by_bit_brings_its_segment(tmp_path: Path) -> None:
    library = Library()
    (ino,) = library.names(b"f")
    body = Random(1).randbytes(100 * 10_000)
    await library.write((ino, start, body[start : start + 10_000]) for start in range(0, len(body), 10_000))
    async with open_reading(library, tmp_path) as reading:
        for start in range(0, len(body), 1 << 17):
            assert await reading.reader.read(ino, start, 1 << 17) == body[start : start + (1 << 17)]
        assert len(reading.store.asked) == 1


@in_virtual_time
async def test_without_replicas_what_is_near_is_read_and_the_rest_fails_at_once(tmp_path: Path) -> None:
    library = Library()
    near, far = await library.small_files(10), await library.small_files(10, name=b"far")
    big, body = await library.big_file(2)
    async with open_reading(library, tmp_path) as reading:
        await reading.reader.read(next(iter(near)), 0, 1)
        await reading.reader.read(big, 0, 1)
        reading.store.error = Unavailable("offline")
        began = trio.current_time()
        await reading.all_of(near)
        assert await reading.reader.read(big, 5, 10) == body[5:15]
        for ino, offset in ((next(iter(far)), 0), (big, MIB)):
            with pytest.raises(Unavailable):
                await reading.reader.read(ino, offset, 1)
        assert trio.current_time() == began


@in_virtual_time
async def test_a_range_that_is_held_is_not_asked_for_with_its_segment(tmp_path: Path) -> None:
    library = Library()
    bodies = await library.small_files(3)
    async with open_reading(library, tmp_path) as reading:
        await reading.reader.read(next(iter(bodies)), 0, 1)
        ((key, start, length),) = reading.store.asked
        assert (start, length) == (0, None)
        await reading.all_of(bodies)
        assert reading.store.asked == [Asked(key, 0, None)]
