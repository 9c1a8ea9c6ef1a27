"""Folding: what is moved into segments, what is left alone, and that no reader notices."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import trio

from agentfs.model.changes import Fold, Unlink, Write
from agentfs.model.errors import NoSpace
from agentfs.model.extents import FOLD_MIN, INLINE_MAX, SEGMENT_MAX
from agentfs.model.ids import ROOT_INO, Ino, ReplicaId
from agentfs.state.checksum import checksum
from agentfs.workspace.folding import COLD_SECONDS, INLINE_ALLOWED, STEP_EXTENTS, Folding
from agentfs.workspace.packer import open_packer
from tests.simulation.entries import make, text
from tests.simulation.faults import Fault
from tests.simulation.parts import Parts, World, entries_of, make_world, open_parts, replayed
from tests.simulation.virtual_time import in_virtual_time

FIRST = 2 << 32


@dataclass
class Chore:
    """A session that folds."""

    parts: Parts
    folding: Folding

    @property
    def inline(self) -> int:
        """Bytes of inline bodies in State."""
        return self.parts.tables.counters["inline"]

    async def all(self) -> int:
        """Fold until there is no more to do; how often that was."""
        times = 1
        while await self.folding.run_once():
            times += 1
        return times


@asynccontextmanager
async def open_chore(world: World, directory: Path) -> AsyncIterator[Chore]:
    async with (
        open_parts(world, directory) as parts,
        open_packer(parts.replicas, parts.replicas, parts.committer, parts.runtime) as packer,
    ):
        await parts.committer.catch_up()
        yield Chore(parts, Folding(parts.committer, packer, parts.runtime))


@pytest.fixture
def world() -> World:
    return make_world()


def fill(world: World, count: int, size: int, first: int = FIRST) -> list[Ino]:
    """Files of `size` bytes that another session wrote long ago."""
    inos = [Ino(first + number) for number in range(count)]
    world.foreign(2, *[make(ino, b"%d" % ino) for ino in inos], *[text(ino, 0, body(ino, size)) for ino in inos])
    return inos


def body(ino: int, size: int) -> bytes:
    return Random(ino).randbytes(size)


def inline_inos(chore: Chore) -> set[int]:
    return {row[0] for row in chore.parts.tables.db.execute("SELECT ino FROM extents WHERE segment = 0")}


def folded_inos(chore: Chore) -> set[int]:
    return {row[0] for row in chore.parts.tables.db.execute("SELECT ino FROM extents WHERE segment != 0")}


@in_virtual_time
async def test_little_is_left_alone(world: World, tmp_path: Path) -> None:
    fill(world, 100, 10_000)
    async with open_chore(world, tmp_path / "1") as chore:
        assert not await chore.folding.run_once()
        assert folded_inos(chore) == set()


@in_virtual_time
async def test_the_oldest_files_are_moved_until_little_is_left(world: World, tmp_path: Path) -> None:
    inos = fill(world, 1000, 20_000)
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.all()
        assert chore.inline <= INLINE_ALLOWED
        folded = folded_inos(chore)
        assert folded == set(inos[: len(folded)])
        for ino in inos[::37]:
            assert await chore.parts.body(ino) == body(ino, 20_000)
        await chore.parts.committer.sync()
        assert checksum(replayed(world.log)) == checksum(chore.parts.tables)
        full = len(folded) * 20_000 / SEGMENT_MAX
        objects = [info async for info in world.stores[ReplicaId(1)].list("segments/")]
        assert len(objects) <= full + 1


@in_virtual_time
async def test_nothing_but_the_place_of_the_bytes_changes(world: World, tmp_path: Path) -> None:
    (ino, *_) = fill(world, 600, 10_000)
    async with open_chore(world, tmp_path / "1") as chore:
        tables = chore.parts.tables
        before = tables.inode(ino), tables.versions(ino)
        await chore.all()
        assert ino in folded_inos(chore)
        assert (tables.inode(ino), tables.versions(ino)) == before


@in_virtual_time
async def test_a_transaction_is_bounded(world: World, tmp_path: Path) -> None:
    fill(world, 6000, 1000)
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.all()
        assert chore.inline <= INLINE_ALLOWED
        folds = [
            [change for change in transaction.changes if isinstance(change, Fold)]
            for entry in entries_of(world.log)
            for transaction in entry.transactions
        ]
        assert 0 < max(sum(len(fold.runs) for fold in each) for each in folds) <= STEP_EXTENTS


@in_virtual_time
async def test_a_file_that_was_just_written_is_left_alone(world: World, tmp_path: Path) -> None:
    inos = fill(world, 600, 10_000)
    async with open_chore(world, tmp_path / "1") as chore:
        for ino in inos[:5]:
            chore.parts.write(ino, 0, b"hot", append=True)
            await chore.parts.writeback.commit(ino)
        await chore.all()
        assert not folded_inos(chore) & set(inos[:5])
        await trio.sleep(COLD_SECONDS + 1)
        fill(world, 500, 10_000, FIRST + 10_000)
        await chore.parts.committer.catch_up()
        await chore.all()
        assert set(inos[:5]) <= folded_inos(chore)
        assert await chore.parts.body(inos[0]) == body(inos[0], 10_000) + b"hot"


@in_virtual_time
async def test_when_all_is_hot_nothing_is_done_and_it_is_not_asked_for_again(world: World, tmp_path: Path) -> None:
    inos = fill(world, 200, INLINE_MAX)
    async with open_chore(world, tmp_path / "1") as chore:
        for ino in inos:
            chore.parts.write(ino, 0, b"!")
        await chore.parts.writeback.commit_all(inos, lambda ino, error: None)
        assert chore.inline > INLINE_ALLOWED
        assert not await chore.folding.run_once()
        assert folded_inos(chore) == set()


@in_virtual_time
async def test_tiny_bodies_stay(world: World, tmp_path: Path) -> None:
    tiny = fill(world, 3000, FOLD_MIN - 1)
    larger = fill(world, 600, 10_000, FIRST + 5000)
    async with open_chore(world, tmp_path / "1") as chore:
        await chore.all()
        assert set(tiny) <= inline_inos(chore)
        assert folded_inos(chore) <= set(larger)


@in_virtual_time
async def test_little_that_is_cold_waits_for_more(world: World, tmp_path: Path) -> None:
    """Otherwise every look would make a small segment."""
    inos = fill(world, 600, 10_000)
    async with open_chore(world, tmp_path / "1") as chore:
        hot = inos[:500]
        for ino in hot:
            chore.parts.write(ino, 0, b"!")
        await chore.parts.writeback.commit_all(hot, lambda ino, error: None)
        assert not await chore.folding.run_once()
        await trio.sleep(COLD_SECONDS + 1)
        await chore.all()
        assert chore.inline <= INLINE_ALLOWED


@in_virtual_time
async def test_a_file_that_changes_meanwhile_keeps_the_change(world: World, tmp_path: Path) -> None:
    inos = fill(world, 600, 10_000)
    gate = trio.Event()
    world.store_scripts[ReplicaId(1)].add("put", Fault(before=gate))
    async with open_chore(world, tmp_path / "1") as chore, trio.open_nursery() as nursery:
        nursery.start_soon(chore.all)
        await trio.sleep(1)
        world.foreign(2, text(inos[0], 0, b"changed"), Unlink(ROOT_INO, b"%d" % inos[1], inos[1], False, 40))
        chore.parts.write(inos[2], 5, b"staged")
        gate.set()
        await trio.sleep(5)
        await chore.parts.committer.catch_up()
        assert await chore.parts.body(inos[0]) == b"changed" + body(inos[0], 10_000)[7:]
        assert chore.parts.tables.inode(inos[1]) is None
        before = body(inos[2], 10_000)
        assert await chore.parts.body(inos[2]) == before[:5] + b"staged" + before[11:]
        await chore.parts.writeback.commit(inos[2])
        assert await chore.parts.body(inos[2]) == before[:5] + b"staged" + before[11:]
        assert checksum(replayed(world.log)) == checksum(chore.parts.tables)


@in_virtual_time
async def test_a_put_that_fails_is_told_and_done_another_time(world: World, tmp_path: Path) -> None:
    inos = fill(world, 600, 10_000)
    world.store_scripts[ReplicaId(1)].add("put", Fault(refused=NoSpace("full")))
    async with open_chore(world, tmp_path / "1") as chore:
        with pytest.raises(NoSpace):
            await chore.folding.run_once()
        assert folded_inos(chore) == set()
        await chore.all()
        assert chore.inline <= INLINE_ALLOWED
        assert await chore.parts.body(inos[0]) == body(inos[0], 10_000)


@in_virtual_time
async def test_two_who_fold_do_no_harm(world: World, tmp_path: Path) -> None:
    inos = fill(world, 800, 10_000)
    async with (
        open_chore(world, tmp_path / "1") as one,
        open_chore(world, tmp_path / "2") as other,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(one.all)
        nursery.start_soon(other.all)
        await trio.sleep(10)
        await one.parts.committer.catch_up()
        for ino in inos[::31]:
            assert await one.parts.body(ino) == body(ino, 10_000)
        assert one.inline <= INLINE_ALLOWED


@in_virtual_time
async def test_a_file_of_many_inline_pieces_keeps_its_order(world: World, tmp_path: Path) -> None:
    fill(world, 600, 10_000)
    ino = Ino(FIRST - 1)
    pieces = [Write(ino, [run], False, 30) for at in range(40) for run in text(ino, at * 20_000, body(at, 3000)).runs]
    world.foreign(2, make(ino, b"holes"), *pieces)
    async with open_chore(world, tmp_path / "1") as chore:
        before = await chore.parts.body(ino)
        await chore.all()
        assert ino in folded_inos(chore)
        assert ino not in inline_inos(chore)
        assert await chore.parts.body(ino) == before
