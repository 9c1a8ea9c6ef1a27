"""Filling: replicas get the segments that they lack, State learns of it, and what cannot be done now is left for later."""

from pathlib import Path
from random import Random

import pytest
import trio

from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import Segment, SegmentBuilder
from agentfs.model.changes import AddReplica, AddSegment, ChunkRun, Misplaced, RemoveReplica, Write
from agentfs.model.errors import NoSpace, Unavailable
from agentfs.model.ids import ReplicaId, SessionId, first_ino
from agentfs.state.queries import missing
from agentfs.workspace.filling import BATCH, LOST_SECONDS, RETRY_SECONDS, RIPE_SECONDS, Filling
from tests.simulation.entries import lacks_anything, make
from tests.simulation.faults import Fault, Script
from tests.simulation.parts import Parts, World, make_world, open_parts, replayed
from tests.simulation.virtual_time import in_virtual_time

ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)
F = first_ino(SessionId(2))


@pytest.fixture
def world() -> World:
    """Two replicas, and a file that is made by a session which is not running."""
    world = make_world(2)
    world.foreign(2, make(F, b"f"))
    return world


def segment(number: int) -> Segment:
    """A segment of one small chunk."""
    builder = SegmentBuilder()
    builder.add(Random(number).randbytes(100))
    return builder.finish()


async def stored(world: World, numbers: range, *replicas: ReplicaId) -> list[Segment]:
    """Segments that the file uses, in some of the replicas."""
    segments = [segment(number) for number in numbers]
    for number, each in zip(numbers, segments, strict=True):
        for replica in replicas:
            await world.stores[replica].put(each.key, each.body)
        chunk = SegmentBuilder().add(Random(number).randbytes(100))
        run = ChunkRun(number * 100, each.name, chunk)
        world.foreign(2, AddSegment(each.name, len(each.body), list(replicas), 5), Write(F, [run], False, 9))
    return segments


def keys(world: World, replica: ReplicaId) -> set[str]:
    store = world.stores[replica]
    assert isinstance(store, MemoryStore)
    return set(store._objects)


async def fill(parts: Parts, filling: Filling) -> int:
    """Go on until there is no more to do now; how many pieces that took."""
    pieces = 1
    while await filling.run_once():
        pieces += 1
    await parts.committer.sync()
    return pieces


@in_virtual_time
async def test_what_a_replica_lacks_it_is_given(world: World, tmp_path: Path) -> None:
    segments = await stored(world, range(BATCH + 3), ONE)
    async with open_parts(world, tmp_path / "1") as parts:
        assert missing(parts.tables, TWO).segments == BATCH + 3
        entries = len(world.log.payloads)
        assert await fill(parts, Filling(parts.committer, parts.replicas, parts.runtime)) == 2
        assert keys(world, TWO) == keys(world, ONE) == {each.key for each in segments}
        assert len(world.log.payloads) == entries + 2, "a batch is one transaction"
    tables = replayed(world.log)
    assert not lacks_anything(tables)
    tables.close()


@in_virtual_time
async def test_a_replica_that_is_added_is_given_everything(world: World, tmp_path: Path) -> None:
    segments = await stored(world, range(5), ONE, TWO)
    world.foreign(2, AddReplica(THREE, "memory:3"))
    world.stores[THREE], world.store_scripts[THREE] = MemoryStore(), Script()
    async with open_parts(world, tmp_path / "1") as parts:
        await fill(parts, Filling(parts.committer, parts.replicas, parts.runtime))
        assert keys(world, THREE) == {each.key for each in segments}
        assert not lacks_anything(parts.tables)


@in_virtual_time
async def test_a_segment_whose_puts_may_be_under_way_is_left_alone_for_a_while(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        filling = Filling(parts.committer, parts.replicas, parts.runtime)
        await stored(world, range(3), ONE)
        await parts.committer.catch_up()
        for _ in range(10):
            await fill(parts, filling)
            assert keys(world, TWO) == set()
            await trio.sleep(RIPE_SECONDS / 11)
        await trio.sleep(RIPE_SECONDS)
        await fill(parts, filling)
        assert keys(world, TWO) == keys(world, ONE)


@in_virtual_time
async def test_a_replica_that_is_down_is_left_alone_until_it_returns(world: World, tmp_path: Path) -> None:
    await stored(world, range(20), ONE)
    world.store_scripts[TWO].add("put", *[Fault(refused=Unavailable("away"))] * 200)
    async with open_parts(world, tmp_path / "1") as parts:
        filling = Filling(parts.committer, parts.replicas, parts.runtime)
        await fill(parts, filling)
        left = len(world.store_scripts[TWO].lines["put"])
        assert left >= 190, "it is not asked for all of them in vain"
        await fill(parts, filling)
        assert len(world.store_scripts[TWO].lines["put"]) == left
        world.store_scripts[TWO].lines.clear()
        # Its breaker lets it be asked again by then.
        await trio.sleep(RETRY_SECONDS * 3)
        filling.returned(TWO)
        await fill(parts, filling)
        assert keys(world, TWO) == keys(world, ONE)


@in_virtual_time
async def test_a_replica_that_is_full_does_not_hold_up_the_others(world: World, tmp_path: Path) -> None:
    world.foreign(2, AddReplica(THREE, "memory:3"))
    world.stores[THREE], world.store_scripts[THREE] = MemoryStore(), Script()
    segments = await stored(world, range(20), ONE)
    world.store_scripts[TWO].add("put", *[Fault(refused=NoSpace("full"))] * 200)
    async with open_parts(world, tmp_path / "1") as parts:
        await fill(parts, Filling(parts.committer, parts.replicas, parts.runtime))
        assert keys(world, THREE) == {each.key for each in segments}
        assert missing(parts.tables, THREE).segments == 0
        assert missing(parts.tables, TWO).segments == 20


@in_virtual_time
async def test_a_segment_that_nobody_has_holds_nothing_up_and_is_tried_again_later(world: World, tmp_path: Path) -> None:
    lost = (await stored(world, range(1), ONE))[0]
    await world.stores[ONE].delete(lost.key)
    segments = await stored(world, range(1, BATCH + 10), ONE)
    async with open_parts(world, tmp_path / "1") as parts:
        filling = Filling(parts.committer, parts.replicas, parts.runtime)
        await fill(parts, filling)
        assert keys(world, TWO) == {each.key for each in segments}
        assert missing(parts.tables, TWO).segments == 1
        await world.stores[ONE].put(lost.key, lost.body)
        await fill(parts, filling)
        assert lost.key not in keys(world, TWO)
        await trio.sleep(LOST_SECONDS)
        await fill(parts, filling)
        assert lost.key in keys(world, TWO)
        assert not lacks_anything(parts.tables)


@in_virtual_time
async def test_damage_does_not_spread(world: World, tmp_path: Path) -> None:
    wrong = (await stored(world, range(1)))[0]
    world.stores[ONE]._objects[wrong.key] = bytes(len(wrong.body))  # type: ignore[attr-defined]
    async with open_parts(world, tmp_path / "1") as parts:
        await fill(parts, Filling(parts.committer, parts.replicas, parts.runtime))
        assert keys(world, TWO) == set()
        assert missing(parts.tables, TWO).segments == 1


@in_virtual_time
async def test_what_was_copied_while_the_journal_was_silent_is_not_copied_again(world: World, tmp_path: Path) -> None:
    await stored(world, range(3), ONE)
    async with open_parts(world, tmp_path / "1") as parts:
        filling = Filling(parts.committer, parts.replicas, parts.runtime)
        silent = Fault(refused=Unavailable("nobody answers"))
        world.journal_script.add("append", *[silent] * 100)
        with pytest.raises(Unavailable):
            await filling.run_once()
        world.journal_script.lines.clear()
        world.store_scripts[TWO].add("put", *[Fault(refused=NoSpace("full"))] * 10)
        await fill(parts, filling)
        assert not lacks_anything(parts.tables)
        assert len(world.store_scripts[TWO].lines["put"]) == 10


@in_virtual_time
async def test_what_is_found_misplaced_is_given_again(world: World, tmp_path: Path) -> None:
    gone = (await stored(world, range(1), ONE, TWO))[0]
    await world.stores[TWO].delete(gone.key)
    world.foreign(2, Misplaced(gone.name, TWO))
    async with open_parts(world, tmp_path / "1") as parts:
        await fill(parts, Filling(parts.committer, parts.replicas, parts.runtime))
        assert keys(world, TWO) == {gone.key}
        assert parts.tables.holders(gone.name) == [ONE, TWO]


@in_virtual_time
async def test_who_is_removed_meanwhile_is_given_nothing(world: World, tmp_path: Path) -> None:
    await stored(world, range(3), ONE)
    world.foreign(2, RemoveReplica(TWO))
    async with open_parts(world, tmp_path / "1") as parts:
        await fill(parts, Filling(parts.committer, parts.replicas, parts.runtime))
        assert keys(world, TWO) == set()
