"""Salvage: from any replicas, whatever is damaged in them, State comes back up to the last entry without a gap."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from agentfs.chunks.memory import MemoryStore
from agentfs.journal.contract import Record
from agentfs.journal.mirror import encode_mirrored, mirror_key
from agentfs.model.codec import encode_entry
from agentfs.model.errors import Unavailable
from agentfs.model.ids import Position, SessionId, first_ino
from agentfs.state.checkpoint import CheckpointKey, hold_file
from agentfs.state.checksum import checksum
from agentfs.state.tables import open_tables
from agentfs.workspace.checkpoints import pack
from agentfs.workspace.salvage import Salvage
from tests.simulation.entries import make, opening
from tests.simulation.faults import Fault, FaultyStore, Script
from tests.simulation.parts import World, make_world, replayed
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

ENTRIES = 12


@pytest.fixture
def world() -> World:
    """A workspace of some entries."""
    world = make_world()
    for number in range(ENTRIES - 3):
        world.foreign(1, make(first_ino(SessionId(1)) + number, b"f%d" % number))
    return world


def records(world: World, first: int, last: int) -> list[Record]:
    return [Record(Position(n), world.log.payloads[n - 1]) for n in range(first, last + 1)]


async def mirror(world: World, store: MemoryStore, first: int, last: int) -> str:
    key = mirror_key(Position(first), Position(last))
    await store.put(key, encode_mirrored(records(world, first, last)))
    return key


async def checkpoint(world: World, store: MemoryStore, position: int, directory: Path) -> CheckpointKey:
    """A checkpoint as of a position."""
    path = directory / f"as-of-{position}.sqlite"
    tables = open_tables(path)
    short = World(log=type(world.log)())
    short.log.payloads = world.log.payloads[:position]
    source = replayed(short.log)
    source.flush()
    source.db.execute("COMMIT")
    tables.close()
    path.unlink()
    source.db.execute("VACUUM INTO ?", (str(path),))
    source.db.execute("BEGIN")
    source.close()
    again = open_tables(path)
    assert hold_file(again, again.save) == position
    key, body = await pack(path, Position(position), VirtualRuntime(Random(1)))
    again.close()
    await store.put(key.key, body)
    return key


@asynccontextmanager
async def salvaged(directory: Path, *stores: MemoryStore | FaultyStore) -> AsyncIterator[tuple[Salvage, list[Position]]]:
    """What comes of these replicas, and the positions of the entries that were read."""
    places = {f"replica {number}": store for number, store in enumerate(stores, start=1)}
    salvage = Salvage("w-0123", places, directory / "state.sqlite", VirtualRuntime(Random(1)))
    try:
        await salvage.begin()
        yield salvage, [record.position async for record in salvage.entries()]
    finally:
        salvage.close()


def as_of(world: World, position: int) -> str:
    short = World(log=type(world.log)())
    short.log.payloads = world.log.payloads[:position]
    tables = replayed(short.log)
    found = checksum(tables)
    tables.close()
    return found


@in_virtual_time
async def test_the_mirror_alone_is_enough(world: World, tmp_path: Path) -> None:
    store = MemoryStore()
    for first, last in ((1, 4), (5, 5), (6, ENTRIES)):
        await mirror(world, store, first, last)
    async with salvaged(tmp_path, store) as (salvage, read):
        assert read == list(range(1, ENTRIES + 1))
        assert checksum(salvage.tables) == as_of(world, ENTRIES)
        assert (salvage.damage, salvage.end, salvage.time_ns) == ([], ENTRIES, 3)


@in_virtual_time
async def test_objects_may_overlap_and_repeat(world: World, tmp_path: Path) -> None:
    store = MemoryStore()
    for first, last in ((1, 4), (1, 2), (2, 7), (3, 3), (6, 9), (8, ENTRIES)):
        await mirror(world, store, first, last)
    async with salvaged(tmp_path, store) as (salvage, _):
        assert checksum(salvage.tables) == as_of(world, ENTRIES)


@in_virtual_time
async def test_it_goes_on_from_the_newest_checkpoint(world: World, tmp_path: Path) -> None:
    store = MemoryStore()
    for position in (5, 8):
        await checkpoint(world, store, position, tmp_path)
    await mirror(world, store, 6, ENTRIES)
    async with salvaged(tmp_path, store) as (salvage, read):
        assert read == list(range(9, ENTRIES + 1))
        assert checksum(salvage.tables) == as_of(world, ENTRIES)


@in_virtual_time
async def test_a_damaged_newest_checkpoint_gives_way_to_the_older(world: World, tmp_path: Path) -> None:
    store = MemoryStore()
    await checkpoint(world, store, 5, tmp_path)
    newest = await checkpoint(world, store, 8, tmp_path)
    store._objects[newest.key] = store._objects[newest.key][:-1] + b"x"
    await mirror(world, store, 6, ENTRIES)
    async with salvaged(tmp_path, store) as (salvage, read):
        assert read == list(range(6, ENTRIES + 1))
        assert checksum(salvage.tables) == as_of(world, ENTRIES)
        assert len(salvage.damage) == 1
        assert "checkpoint at position 8 in replica 1" in salvage.damage[0]


@in_virtual_time
async def test_a_gap_is_the_end(world: World, tmp_path: Path) -> None:
    store = MemoryStore()
    await mirror(world, store, 1, 6)
    await mirror(world, store, 8, ENTRIES)
    async with salvaged(tmp_path, store) as (salvage, read):
        assert read == list(range(1, 7))
        assert checksum(salvage.tables) == as_of(world, 6)
        assert (salvage.position, salvage.end) == (6, ENTRIES)


@in_virtual_time
async def test_what_one_replica_lacks_another_has(world: World, tmp_path: Path) -> None:
    one, two = MemoryStore(), MemoryStore()
    await mirror(world, one, 1, 6)
    await mirror(world, one, 8, ENTRIES)
    await mirror(world, two, 5, 7)
    async with salvaged(tmp_path, one, two) as (salvage, _):
        assert checksum(salvage.tables) == as_of(world, ENTRIES)


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty", "not an entry", "gone"])
@in_virtual_time
async def test_a_damaged_object_is_told_and_passed_over(world: World, tmp_path: Path, harm: str) -> None:
    store = MemoryStore()
    await mirror(world, store, 1, 6)
    key = await mirror(world, store, 7, 9)
    await mirror(world, store, 10, ENTRIES)
    body = store._objects[key]
    store._objects[key] = {
        "flipped": body[:20] + bytes([body[20] ^ 1]) + body[21:],
        "cut": body[:-3],
        "empty": b"",
        "not an entry": encode_mirrored([Record(Position(n), b"garbage") for n in (7, 8, 9)]),
        "gone": body,
    }[harm]
    source: MemoryStore | FaultyStore = store
    if harm == "gone":
        script = Script()
        script.add("get", Fault(), Fault(refused=Unavailable("gone")))
        source = FaultyStore(store, script)
    async with salvaged(tmp_path, source) as (salvage, read):
        assert read == list(range(1, 7))
        assert checksum(salvage.tables) == as_of(world, 6)
        assert len(salvage.damage) == 1
        assert "replica 1" in salvage.damage[0]
        assert "7" in salvage.damage[0]


@in_virtual_time
async def test_a_damaged_object_is_replaced_by_another_replicas(world: World, tmp_path: Path) -> None:
    one, two = MemoryStore(), MemoryStore()
    for store in (one, two):
        await mirror(world, store, 1, 6)
        key = await mirror(world, store, 7, ENTRIES)
    one._objects[key] = b"AFM1 and then nothing of use"
    async with salvaged(tmp_path, one, two) as (salvage, _):
        assert checksum(salvage.tables) == as_of(world, ENTRIES)
        assert len(salvage.damage) == 1


@in_virtual_time
async def test_more_than_the_key_says_does_not_count(world: World, tmp_path: Path) -> None:
    """Whoever wrote it was killed before anybody was told of it; and after a recovery it would be of a lost line."""
    store = MemoryStore()
    await store.put(mirror_key(Position(1), Position(6)), encode_mirrored(records(world, 1, 8)))
    async with salvaged(tmp_path, store) as (_, read):
        assert read == list(range(1, 7))


@in_virtual_time
async def test_another_workspaces_journal_is_not_taken(world: World, tmp_path: Path) -> None:
    store = MemoryStore()
    world.log.payloads[0] = encode_entry(opening(b"not a founding"))
    await mirror(world, store, 1, ENTRIES)
    async with salvaged(tmp_path, store) as (salvage, read):
        assert read == []
        assert "entry 1 in replica 1" in salvage.damage[0]


@in_virtual_time
async def test_an_empty_replica_gives_nothing(tmp_path: Path) -> None:
    async with salvaged(tmp_path, MemoryStore()) as (salvage, read):
        assert (read, salvage.end, salvage.tables.found) == ([], 0, None)
