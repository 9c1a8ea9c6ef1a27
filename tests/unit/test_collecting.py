"""Collecting: what is deleted from the replicas, when, what never is, and what becomes of who comes late with one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trio

from agentfs.chunks.cached import open_cached
from agentfs.chunks.segment import Segment, SegmentBuilder
from agentfs.model.changes import AddSegment, AnyChange, ChunkRun, Collect, Deleted, Found, Unlink, Unneeded, Write
from agentfs.model.codec import decode_entry, encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import Corrupt, Unavailable
from agentfs.model.extents import INLINE_MAX
from agentfs.model.ids import ROOT_INO, Ino, Position, ReplicaId, SegmentId
from agentfs.state.checksum import checksum
from agentfs.workspace.collecting import GRACE_SECONDS, LOOK_SECONDS, SETTLE_SECONDS, Collecting
from agentfs.workspace.fsck_rules import check_rules
from tests.simulation.entries import make, text
from tests.simulation.faults import Fault
from tests.simulation.parts import Parts, World, make_world, open_parts, replayed
from tests.simulation.virtual_time import in_virtual_time

F = Ino(2 << 32)
ONE, TWO = ReplicaId(1), ReplicaId(2)
HISTORY = 1000
BIG = Random(1).randbytes(INLINE_MAX + 1)


@dataclass
class Chore:
    """A session that collects."""

    parts: Parts
    collecting: Collecting
    mirrored: Position

    async def look(self) -> None:
        """Do what can be done now; a look's rest passes before."""
        await trio.sleep(LOOK_SECONDS)
        while await self.collecting.run_once():
            pass
        await self.parts.committer.sync()

    async def wait(self, seconds: float) -> None:
        """Look again and again for so long."""
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            await self.look()


@asynccontextmanager
async def open_chore(world: World, directory: Path) -> AsyncIterator[Chore]:
    async with open_parts(world, directory) as parts, open_cached(parts.replicas, max_bytes=1 << 20) as chunks:
        await parts.committer.catch_up()
        collecting = Collecting(parts.committer, chunks, parts.runtime, mirrored=lambda: chore.mirrored)
        chore = Chore(parts, collecting, Position(1 << 40))
        yield chore


def make_world_that_forgets(history_seconds: int = HISTORY) -> World:
    """A workspace that keeps history for so long, with an empty file."""
    world = make_world()
    first = decode_entry(world.log.payloads[0])
    (found,) = first.transactions[0].changes
    assert isinstance(found, Found)
    fields = {name: getattr(found, name) for name in found.__struct_fields__} | {"history_seconds": history_seconds}
    transaction = Transaction(first.transactions[0].number, [Found(**fields)])
    world.log.payloads[0] = encode_entry(Entry(first.session, first.time_ns, [transaction]))
    world.foreign(2, make(F, b"f"))
    return world


@pytest.fixture
def world() -> World:
    return make_world_that_forgets()


def segment_of(data: bytes) -> tuple[Segment, ChunkRun]:
    """A segment of one chunk, and the run that puts it at a file's beginning."""
    builder = SegmentBuilder()
    chunk = builder.add(data)
    segment = builder.finish()
    return segment, ChunkRun(0, segment.name, chunk)


async def put(world: World, data: bytes) -> tuple[Segment, list[AnyChange]]:
    """Put a segment, as an earlier program did; the changes that make it the content of the file."""
    segment, run = segment_of(data)
    for store in world.stores.values():
        await store.put(segment.key, segment.body)
    return segment, [AddSegment(segment.name, len(segment.body), [ONE, TWO], 5), Write(F, [run], False, 9)]


async def objects(world: World) -> list[set[str]]:
    """The keys in each replica."""
    return [{info.key async for info in store.list("")} for store in world.stores.values()]


async def write(parts: Parts, data: bytes) -> None:
    parts.write(F, 0, data)
    await parts.writeback.commit(F)


@in_virtual_time
async def test_what_no_file_needs_is_deleted_when_the_history_is_over(world: World, tmp_path: Path) -> None:
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes)
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.wait(3 * HISTORY + GRACE_SECONDS)
        assert await objects(world) == [{segment.key}] * 2
        await write(chore.parts, BIG[::-1])
        before = await objects(world)
        await chore.wait(HISTORY + GRACE_SECONDS - LOOK_SECONDS)
        assert await objects(world) == before, "a version that is kept needs it"
        await chore.wait(SETTLE_SECONDS + 3 * LOOK_SECONDS)
        assert [segment.key in keys for keys in await objects(world)] == [False, False]
        assert await chore.parts.body(F) == BIG[::-1]
        assert chore.parts.tables.db.execute("SELECT count(*) FROM collected").fetchone() == (0,)
        assert check_rules(chore.parts.tables) == []
        assert checksum(replayed(world.log)) == checksum(chore.parts.tables)


@in_virtual_time
async def test_a_workspace_that_keeps_all_history_collects_nothing(tmp_path: Path) -> None:
    world = make_world_that_forgets(0)
    _, changes = await put(world, BIG)
    world.foreign(2, *changes, Unlink(ROOT_INO, b"f", F, False, 30))
    async with open_chore(world, tmp_path / "1") as chore:
        entries = len(world.log.payloads)
        await chore.wait(100 * LOOK_SECONDS)
        assert len(world.log.payloads) == entries
        assert [len(keys) for keys in await objects(world)] == [1, 1]


@in_virtual_time
async def test_what_is_needed_again_waits_anew(world: World, tmp_path: Path) -> None:
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes, text(F, 0, BIG[::-1]))
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.wait(HISTORY)
        world.foreign(2, *changes)
        await chore.parts.committer.catch_up()
        await chore.wait(HISTORY)
        world.foreign(2, text(F, 0, BIG[::-1]))
        await chore.parts.committer.catch_up()
        await chore.wait(GRACE_SECONDS)
        assert segment.key in (await objects(world))[0]
        await chore.wait(HISTORY + SETTLE_SECONDS + 3 * LOOK_SECONDS)
        assert segment.key not in (await objects(world))[0]


@in_virtual_time
async def test_a_mount_that_just_came_does_not_collect_yet(world: World, tmp_path: Path) -> None:
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes, text(F, 0, BIG[::-1]), Unneeded([segment.name], 1))
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.look()
        assert segment.key in (await objects(world))[0]
        await chore.wait(SETTLE_SECONDS + LOOK_SECONDS)
        assert segment.key not in (await objects(world))[0]


@in_virtual_time
async def test_nothing_is_deleted_before_the_replicas_know_that_it_is_collected(world: World, tmp_path: Path) -> None:
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes, text(F, 0, BIG[::-1]), Unneeded([segment.name], 1))
    async with open_chore(world, tmp_path / "1") as chore:
        chore.mirrored = chore.parts.tables.position
        await chore.wait(SETTLE_SECONDS + 5 * LOOK_SECONDS)
        assert chore.parts.tables.is_collected(segment.name)
        assert segment.key in (await objects(world))[0]
        chore.mirrored = chore.parts.tables.position
        await chore.wait(2 * LOOK_SECONDS)
        assert segment.key not in (await objects(world))[0]


@in_virtual_time
async def test_a_replica_that_is_away_is_told_when_it_is_back(world: World, tmp_path: Path) -> None:
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes, text(F, 0, BIG[::-1]), Unneeded([segment.name], 1))
    world.store_scripts[TWO].add("delete", *[Fault(refused=Unavailable("away"))] * 3)
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.wait(SETTLE_SECONDS + LOOK_SECONDS)
        assert [segment.key in keys for keys in await objects(world)] == [False, True]
        assert chore.parts.tables.is_collected(segment.name)
        await chore.wait(10 * LOOK_SECONDS)
        assert [segment.key in keys for keys in await objects(world)] == [False, False]
        assert not chore.parts.tables.is_collected(segment.name)


@in_virtual_time
async def test_the_same_bytes_written_again_are_never_what_is_deleted(world: World, tmp_path: Path) -> None:
    """However late the deletion is: here one replica is asked for it long after the bytes were written again."""
    world.store_scripts[TWO].add("delete", *[Fault(refused=Unavailable("away"))] * 20)
    async with open_chore(world, tmp_path / "1") as chore:
        await write(chore.parts, BIG)
        (old,) = (await objects(world))[0]
        await write(chore.parts, b"x" * len(BIG))
        await chore.wait(HISTORY + GRACE_SECONDS + SETTLE_SECONDS + 5 * LOOK_SECONDS)
        assert [old in keys for keys in await objects(world)] == [False, True]
        await write(chore.parts, BIG)
        await chore.wait(60 * LOOK_SECONDS)
        assert [old in keys for keys in await objects(world)] == [False, False]
        assert await chore.parts.body(F) == BIG
        for store in world.stores.values():
            for row in chore.parts.tables.db.execute("SELECT name FROM segments WHERE uses"):
                assert await store.size(f"segments/{row[0].hex()[:2]}/{row[0].hex()}.seg")


@in_virtual_time
async def test_a_transaction_that_comes_late_with_a_collected_segment_is_made_anew(world: World, tmp_path: Path) -> None:
    """Its append is under way while another mount collects what it names: its bytes are put once more, and it succeeds."""
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes, text(F, 0, BIG[::-1]), Unneeded([segment.name], 1))
    gate = trio.Event()
    world.journal_script.add("append", Fault(before=gate))
    async with open_chore(world, tmp_path / "1") as chore, trio.open_nursery() as nursery:
        nursery.start_soon(write, chore.parts, BIG)
        await trio.sleep(1)
        world.foreign(2, Collect([segment.name], 1))
        for store in world.stores.values():
            await store.delete(segment.key)
        gate.set()
        await trio.sleep(5)
        assert chore.parts.staging.files == {}
        assert await chore.parts.body(F) == BIG
        assert segment.key not in (await objects(world))[0]
        assert checksum(replayed(world.log)) == checksum(chore.parts.tables)


@in_virtual_time
async def test_a_transaction_that_comes_first_keeps_its_segment(world: World, tmp_path: Path) -> None:
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes, text(F, 0, BIG[::-1]), Unneeded([segment.name], 1))
    gate = trio.Event()
    world.journal_script.add("append", Fault(before=gate))
    async with open_chore(world, tmp_path / "1") as chore, trio.open_nursery() as nursery:
        nursery.start_soon(chore.wait, SETTLE_SECONDS + 2 * LOOK_SECONDS)
        await trio.sleep(SETTLE_SECONDS + 3 * LOOK_SECONDS)
        world.foreign(2, *changes)
        gate.set()
        await trio.sleep(5)
        await chore.wait(5 * LOOK_SECONDS)
        assert segment.key in (await objects(world))[0]
        assert await chore.parts.body(F) == BIG


@in_virtual_time
async def test_what_was_put_before_is_not_taken_afterwards(world: World) -> None:
    """Whoever it is that names it: the file stays as it is, and nothing is said to be where it is not."""
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes, text(F, 0, BIG[::-1]), Unneeded([segment.name], 1), Collect([segment.name], 1))
    tables = replayed(world.log)
    before = tables.extents(F, 0, 1 << 40)
    world.foreign(2, *changes)
    other, _ = segment_of(b"another")
    world.foreign(2, AddSegment(other.name, 7, [ONE], 5, since=Position(tables.position - 1)))
    world.foreign(2, AddSegment(other.name, 7, [ONE], 5, since=tables.position))
    late = replayed(world.log)
    assert late.extents(F, 0, 1 << 40) == before
    assert late.segment_id(segment.name) is None
    assert late.segment_id(other.name) is not None
    # The same name with a later beginning: an old program, or one that lies. It is being deleted still.
    world.foreign(2, AddSegment(segment.name, 7, [ONE], 5, since=late.position))
    assert replayed(world.log).segment_id(segment.name) is None


@in_virtual_time
async def test_the_rules_ignore_what_is_not_so(world: World) -> None:
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes)
    world.foreign(2, Unneeded([segment.name, b"unknown"], 7), Collect([segment.name, b"unknown"], 100), Deleted([b"unknown"]))
    tables = replayed(world.log)
    assert tables.segment_id(segment.name) is not None, "a file needs it"
    assert tables.counters["collected"] == 0
    world.foreign(2, text(F, 0, BIG[::-1]), Collect([segment.name], 100))
    assert replayed(world.log).segment_id(segment.name) is not None, "nobody said so before"
    world.foreign(2, Unneeded([segment.name], 7), Unneeded([segment.name], 9), Collect([segment.name], 6))
    assert replayed(world.log).segment_id(segment.name) is not None, "it has not waited for so long"
    world.foreign(2, Collect([segment.name], 7), Deleted([segment.name]))
    last = replayed(world.log)
    assert last.segment_id(segment.name) is None
    assert not last.is_collected(segment.name)
    assert check_rules(last) == []


@in_virtual_time
async def test_collecting_is_taken_back_without_a_trace(world: World) -> None:
    segment, changes = await put(world, BIG)
    world.foreign(2, *changes, text(F, 0, BIG[::-1]))
    tables = replayed(world.log)
    number = tables.segment_id(segment.name)
    assert number is not None
    before = checksum(tables)
    mark = tables.mark()
    tables.note_unneeded(number, 7)
    tables.collect(number, Position(99))
    tables.forget_collected(segment.name)
    assert checksum(tables) != before
    tables.revert(mark)
    assert checksum(tables) == before


@in_virtual_time
async def test_a_file_that_is_open_and_gone_fails_cleanly_when_its_bytes_are_collected(world: World) -> None:
    tables = replayed(world.log)
    with pytest.raises(Corrupt):
        tables.segment_name(SegmentId(999))
