"""Compaction: what is moved into full segments, what is left alone, what that reads, and that no reader notices."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trio

from agentfs.chunks.cached import open_cached
from agentfs.chunks.segment import SegmentBuilder, segment_key
from agentfs.model.changes import AddSegment, AnyChange, ChunkRun, Fold, Unlink, Write
from agentfs.model.errors import NoSpace, Unavailable
from agentfs.model.extents import CHUNK_MAX, SEGMENT_MAX, Chunk
from agentfs.model.ids import ROOT_INO, Ino, ReplicaId
from agentfs.state.checksum import checksum
from agentfs.state.queries import compactable
from agentfs.workspace.compaction import DEAD_BYTES, REST_SECONDS, SEGMENTS_MIN, Compaction
from agentfs.workspace.folding import COLD_SECONDS, STEP_EXTENTS
from agentfs.workspace.fsck_rules import check_rules
from agentfs.workspace.packer import open_packer
from tests.simulation.entries import make, text
from tests.simulation.faults import Fault
from tests.simulation.parts import Parts, World, entries_of, make_world, open_parts, replayed
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.faulty_replicas import Faulty

FIRST = 2 << 32
ONE, TWO = ReplicaId(1), ReplicaId(2)


@dataclass
class Chore:
    """A session that compacts."""

    parts: Parts
    compaction: Compaction

    async def all(self) -> int:
        """Compact until there is no more to do; how often that was."""
        times = 1
        while await self.compaction.run_once():
            times += 1
        return times

    def segments_of(self, inos: Sequence[Ino]) -> set[int]:
        """The segments that files are in."""
        rows = self.parts.tables.db.execute("SELECT ino, segment FROM extents WHERE segment != 0").fetchall()
        return {segment for ino, segment in rows if ino in set(inos)}


@asynccontextmanager
async def open_chore(world: World, directory: Path) -> AsyncIterator[Chore]:
    async with (
        open_parts(world, directory) as parts,
        open_cached(parts.replicas, max_bytes=64 << 20) as chunks,
        open_packer(parts.replicas, parts.replicas, parts.committer, parts.runtime) as packer,
    ):
        await parts.committer.catch_up()
        yield Chore(parts, Compaction(parts.committer, packer, chunks, parts.runtime))


@pytest.fixture
def world() -> World:
    return make_world()


def body(ino: int, size: int) -> bytes:
    return Random(ino).randbytes(size)


async def files(world: World, count: int, size: int, *, first: int = FIRST, together: int = 1) -> list[Ino]:
    """Files that another session wrote long ago, `together` of them into each segment."""
    inos = [Ino(first + number) for number in range(count)]
    changes: list[AnyChange] = [make(ino, b"%d" % ino) for ino in inos]
    for at in range(0, count, together):
        builder, writes = SegmentBuilder(), []
        for ino in inos[at : at + together]:
            cuts = [body(ino, size)[low : low + CHUNK_MAX] for low in range(0, size, CHUNK_MAX)]
            writes.append((ino, [(low * CHUNK_MAX, builder.add(cut)) for low, cut in enumerate(cuts)]))
        segment = builder.finish()
        for store in world.stores.values():
            await store.put(segment.key, segment.body)
        runs = [Write(ino, [ChunkRun(low, segment.name, chunk) for low, chunk in chunks], False, 9) for ino, chunks in writes]
        changes += [AddSegment(segment.name, len(segment.body), [ONE, TWO], 5), *runs]
    world.foreign(2, *changes)
    return inos


@in_virtual_time
async def test_files_that_were_closed_one_by_one_are_brought_together(world: World, tmp_path: Path) -> None:
    inos = await files(world, 60, 50_000)
    async with open_chore(world, tmp_path / "1") as chore:
        tables = chore.parts.tables
        before = [(tables.inode(ino), tables.versions(ino)) for ino in inos]
        assert len(chore.segments_of(inos)) == 60
        await chore.all()
        assert len(chore.segments_of(inos)) == 1, "3 MB"
        for ino in inos:
            assert await chore.parts.body(ino) == body(ino, 50_000)
        assert [(tables.inode(ino), tables.versions(ino)) for ino in inos] == before
        await chore.parts.committer.sync()
        assert checksum(replayed(world.log)) == checksum(tables)
        assert check_rules(tables) == []


@in_virtual_time
async def test_what_was_made_together_lies_together(world: World, tmp_path: Path) -> None:
    inos = await files(world, 400, 60_000)
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.all()
        full = 400 * 60_000 / SEGMENT_MAX
        assert len(chore.segments_of(inos)) <= full * 8 / 7 + 1
        for at in range(0, 400, 50):
            assert len(chore.segments_of(inos[at : at + 50])) <= 2


@in_virtual_time
async def test_few_segments_are_left_alone(world: World, tmp_path: Path) -> None:
    await files(world, SEGMENTS_MIN - 1, 50_000)
    async with open_chore(world, tmp_path / "1") as chore:
        entries = len(world.log.payloads)
        assert not await chore.compaction.run_once()
        assert len(world.log.payloads) == entries


@in_virtual_time
async def test_full_segments_are_left_alone(world: World, tmp_path: Path) -> None:
    inos = await files(world, 20 * SEGMENTS_MIN, 70_000, together=20)
    async with open_chore(world, tmp_path / "1") as chore:
        before = chore.segments_of(inos)
        assert not await chore.compaction.run_once()
        assert chore.segments_of(inos) == before


@in_virtual_time
async def test_what_is_written_is_left_alone_until_it_is_cold(world: World, tmp_path: Path) -> None:
    inos = await files(world, 40, 50_000)
    async with open_chore(world, tmp_path / "1") as chore:
        for ino in inos[:30]:
            chore.parts.write(ino, 50_000, b"hot", append=True)
        await chore.parts.writeback.commit_all(inos[:30], lambda ino, error: None)
        await chore.all()
        assert len(chore.segments_of(inos[:30])) == 30
        assert len(chore.segments_of(inos[30:])) == 1
        await trio.sleep(COLD_SECONDS + REST_SECONDS)
        await chore.all()
        assert len(chore.segments_of(inos[:30])) == 1
        assert await chore.parts.body(inos[0]) == body(inos[0], 50_000) + b"hot"


@in_virtual_time
async def test_when_all_is_hot_it_rests(world: World, tmp_path: Path) -> None:
    inos = await files(world, 40, 50_000)
    async with open_chore(world, tmp_path / "1") as chore:
        for ino in inos:
            chore.parts.write(ino, 0, b"!")
        await chore.parts.writeback.commit_all(inos, lambda ino, error: None)
        assert not await chore.compaction.run_once()
        assert len(chore.segments_of(inos)) == 40


@in_virtual_time
async def test_what_files_do_not_need_any_more_is_not_moved(world: World, tmp_path: Path) -> None:
    """Chunks that were partly overwritten are cut to the part that is needed, and segments that are mostly dead are left."""
    size = 7 * CHUNK_MAX
    inos = await files(world, 3, size)
    kept = {}
    for ino in inos:
        world.foreign(
            2, text(ino, 5_000, b"x"), Write(ino, [ChunkRun(5_000, *await chunk_of(world, b"y" * CHUNK_MAX))], False, 9)
        )
        expected = bytearray(body(ino, size))
        expected[5_000 : 5_000 + CHUNK_MAX] = b"y" * CHUNK_MAX
        for low in range(1, 6):
            world.foreign(2, Write(ino, [ChunkRun(low * CHUNK_MAX, *await chunk_of(world, b"z" * CHUNK_MAX))], False, 9))
            expected[low * CHUNK_MAX : (low + 1) * CHUNK_MAX] = b"z" * CHUNK_MAX
        world.foreign(2, Write(ino, [ChunkRun(6 * CHUNK_MAX + 700, *await chunk_of(world, b"q" * 1_000_000))], False, 9))
        expected[6 * CHUNK_MAX + 700 : 6 * CHUNK_MAX + 700 + 1_000_000] = b"q" * 1_000_000
        kept[ino] = bytes(expected)
    async with open_chore(world, tmp_path / "1") as chore:
        tables = chore.parts.tables
        for ino in inos:
            assert await chore.parts.body(ino) == kept[ino]
        await chore.all()
        for ino in inos:
            assert await chore.parts.body(ino) == kept[ino]
        dead = sum(each.size - each.live for each in compactable(tables))
        assert dead < DEAD_BYTES, "it was twenty million"
        assert check_rules(tables) == []
        entries = len(world.log.payloads)
        await trio.sleep(REST_SECONDS + 1)
        await chore.all()
        assert len(world.log.payloads) == entries, "what was moved once is not moved again and again"
        await chore.parts.committer.sync()
        assert checksum(replayed(world.log)) == checksum(tables)


async def chunk_of(world: World, raw: bytes) -> tuple[bytes, Chunk]:
    """A chunk in a segment of its own, which is known."""
    builder = SegmentBuilder()
    chunk = builder.add(raw)
    segment = builder.finish()
    for store in world.stores.values():
        await store.put(segment.key, segment.body)
    world.foreign(2, AddSegment(segment.name, len(segment.body), [ONE, TWO], 5))
    return segment.name, chunk


@in_virtual_time
async def test_of_a_sparse_segment_little_more_is_read_than_is_needed(world: World, tmp_path: Path) -> None:
    inos = await files(world, 36, 200_000, together=36)
    (name,) = {bytes(row[0]) for row in replayed(world.log).db.execute("SELECT name FROM segments")}
    more = await files(world, 20, 50_000, first=FIRST + 1000)
    for ino in inos[1:-1]:
        world.foreign(2, Unlink(ROOT_INO, b"%d" % ino, ino, False, 40))
    watched = {number: Watched() for number in world.stores}
    for number, store in world.stores.items():
        async for info in store.list("segments/"):
            await watched[number].put(info.key, await store.get(info.key))
    world.stores = {**watched}
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.all()
        assert len(chore.segments_of([inos[0], inos[-1], *more])) == 1
        ours = [length for store in watched.values() for key, length in store.read if key == segment_key(name)]
        assert len(ours) == 2
        assert sum(length or SEGMENT_MAX for length in ours) < 2 * 210_000
        for ino in (inos[0], inos[-1]):
            assert await chore.parts.body(ino) == body(ino, 200_000)


class Watched(Faulty):
    """A store that writes down what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[str, int | None]] = []

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: object = None) -> bytes:
        self.read.append((key, length))
        return await super().get(key, start, length, check=check)  # type: ignore[arg-type]


@in_virtual_time
async def test_a_file_that_changes_meanwhile_keeps_the_change(world: World, tmp_path: Path) -> None:
    inos = await files(world, 40, 50_000)
    gate = trio.Event()
    world.store_scripts[ONE].add("put", Fault(before=gate))
    async with open_chore(world, tmp_path / "1") as chore, trio.open_nursery() as nursery:
        nursery.start_soon(chore.all)
        await trio.sleep(1)
        world.foreign(2, text(inos[0], 7, b"changed"), Unlink(ROOT_INO, b"%d" % inos[1], inos[1], False, 40))
        chore.parts.write(inos[2], 5, b"staged")
        gate.set()
        await trio.sleep(5)
        await chore.parts.committer.catch_up()
        before = body(inos[0], 50_000)
        assert await chore.parts.body(inos[0]) == before[:7] + b"changed" + before[14:]
        assert chore.parts.tables.inode(inos[1]) is None
        before = body(inos[2], 50_000)
        assert await chore.parts.body(inos[2]) == before[:5] + b"staged" + before[11:]
        assert checksum(replayed(world.log)) == checksum(chore.parts.tables)


@in_virtual_time
async def test_a_segment_that_nobody_has_holds_nothing_up(world: World, tmp_path: Path) -> None:
    inos = await files(world, 40, 50_000)
    (name,) = replayed(world.log).db.execute("SELECT name FROM segments WHERE segment = 3").fetchone()
    for store in world.stores.values():
        await store.delete(segment_key(name))
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.all()
        assert len(chore.segments_of(inos)) == 2
        assert await chore.parts.body(inos[5]) == body(inos[5], 50_000)


@in_virtual_time
async def test_what_cannot_be_read_or_put_now_is_told_and_done_another_time(world: World, tmp_path: Path) -> None:
    inos = await files(world, 40, 50_000)
    world.store_scripts[ONE].add("get", *[Fault(refused=Unavailable("away"))] * 100)
    world.store_scripts[TWO].add("get", *[Fault(refused=Unavailable("away"))] * 100)
    world.store_scripts[ONE].add("put", Fault(refused=NoSpace("full")))
    async with open_chore(world, tmp_path / "1") as chore:
        with pytest.raises(Unavailable):
            await chore.compaction.run_once()
        for script in world.store_scripts.values():
            script.lines.pop("get", None)
        await trio.sleep(100)
        with pytest.raises(NoSpace):
            await chore.compaction.run_once()
        assert len(chore.segments_of(inos)) == 40
        await chore.all()
        assert len(chore.segments_of(inos)) == 1


@in_virtual_time
async def test_a_transaction_is_bounded(world: World, tmp_path: Path) -> None:
    await files(world, 600, 2_000)
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.all()
        folds = [
            sum(len(change.runs) for change in transaction.changes if isinstance(change, Fold))
            for entry in entries_of(world.log)
            for transaction in entry.transactions
        ]
        assert 0 < max(folds) <= STEP_EXTENTS


@in_virtual_time
async def test_two_who_compact_do_no_harm(world: World, tmp_path: Path) -> None:
    inos = await files(world, 80, 50_000)
    async with (
        open_chore(world, tmp_path / "1") as one,
        open_chore(world, tmp_path / "2") as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(one.all)
        nursery.start_soon(other.all)
        await trio.sleep(10)
        await one.parts.committer.catch_up()
        for ino in inos[::7]:
            assert await one.parts.body(ino) == body(ino, 50_000)
        assert len(one.segments_of(inos)) <= 2
