"""Scrub: what replicas hold and what State says are compared, and made the same; what is only under way is left alone."""

from pathlib import Path
from random import Random

import pytest

from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import Segment, SegmentBuilder
from agentfs.model.changes import AddReplica, AddSegment, ChunkRun, RemoveReplica, Truncate, Write
from agentfs.model.errors import Unavailable
from agentfs.model.ids import ReplicaId, SessionId, first_ino
from agentfs.state.checksum import checksum
from agentfs.state.queries import missing
from agentfs.workspace.scrub import BATCH, ScrubReport, scrub
from tests.simulation.entries import lacks_anything, make
from tests.simulation.faults import Fault
from tests.simulation.parts import Parts, World, make_world, open_parts
from tests.simulation.virtual_time import in_virtual_time

ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)
F = first_ino(SessionId(2))


@pytest.fixture
def world() -> World:
    """Two replicas, and a file that is made by a session which is not running."""
    world = make_world(2)
    world.foreign(2, make(F, b"f"))
    return world


async def stored(world: World, count: int, *, placed: tuple[ReplicaId, ...] = (ONE, TWO)) -> list[Segment]:
    """Segments that the file uses: in both replicas, and known to be in some."""
    segments = []
    for number in range(count):
        builder = SegmentBuilder()
        chunk = builder.add(Random(number).randbytes(100))
        segment = builder.finish()
        segments.append(segment)
        for replica in (ONE, TWO):
            await world.stores[replica].put(segment.key, segment.body)
        added = AddSegment(segment.name, len(segment.body), list(placed))
        world.foreign(2, added, Write(F, [ChunkRun(number * 100, segment.name, chunk)], False, 9))
    return segments


async def run(parts: Parts, *, deep: bool = False, repair: bool = True) -> dict[ReplicaId, ScrubReport]:
    """Scrub, and look at the progress that is told of."""
    told: list[tuple[int, int]] = []
    reports = await scrub(
        parts.committer,
        parts.replicas,
        parts.runtime,
        deep=deep,
        repair=repair,
        report=lambda done, total: told.append((done, total)),
    )
    assert all(done <= total for done, total in told)
    assert told == sorted(told)
    return reports


def objects(world: World, replica: ReplicaId) -> dict[str, bytes]:
    store = world.stores[replica]
    assert isinstance(store, MemoryStore)
    return store._objects


def assert_whole(world: World, segments: list[Segment], *replicas: ReplicaId) -> None:
    for replica in replicas:
        assert {segment.key: segment.body for segment in segments}.items() <= objects(world, replica).items()


@in_virtual_time
async def test_what_is_as_state_says_is_left_as_it_is(world: World, tmp_path: Path) -> None:
    await stored(world, 5)
    async with open_parts(world, tmp_path / "1") as parts:
        entries = len(world.log.payloads)
        for deep in (False, True):
            reports = await run(parts, deep=deep)
            assert reports == {ONE: ScrubReport(listed=5), TWO: ScrubReport(listed=5)}
            assert all(report.clean for report in reports.values())
        assert len(world.log.payloads) == entries


@in_virtual_time
async def test_what_is_missing_is_copied_from_another_replica(world: World, tmp_path: Path) -> None:
    segments = await stored(world, BATCH * 2 + 5)
    for segment in segments[::3]:
        await world.stores[TWO].delete(segment.key)
    async with open_parts(world, tmp_path / "1") as parts:
        reports = await run(parts)
        lost = len(segments[::3])
        assert reports[TWO] == ScrubReport(listed=len(segments) - lost, missing=lost, repaired=lost)
        assert reports[TWO].clean
        assert reports[ONE] == ScrubReport(listed=len(segments))
        assert_whole(world, segments, ONE, TWO)
        assert not lacks_anything(parts.tables)


@in_virtual_time
async def test_the_last_and_the_only_one_that_are_missing(world: World, tmp_path: Path) -> None:
    segments = await stored(world, 1)
    await world.stores[ONE].delete(segments[0].key)
    async with open_parts(world, tmp_path / "1") as parts:
        assert (await run(parts))[ONE] == ScrubReport(listed=0, missing=1, repaired=1)
        assert_whole(world, segments, ONE)


@in_virtual_time
async def test_without_repair_nothing_is_changed(world: World, tmp_path: Path) -> None:
    segments = await stored(world, 3)
    await world.stores[TWO].delete(segments[0].key)
    objects(world, TWO)[segments[1].key] += b"x"
    async with open_parts(world, tmp_path / "1") as parts:
        before = checksum(parts.tables)
        report = (await run(parts, repair=False))[TWO]
        assert report == ScrubReport(listed=2, missing=1, wrong_size=1, unrepaired=2)
        assert not report.clean
        assert checksum(parts.tables) == before
        assert segments[0].key not in objects(world, TWO)


@pytest.mark.parametrize("cut", [-1, 1], ids=["shorter", "longer"])
def test_an_object_of_another_size_is_replaced(world: World, tmp_path: Path, cut: int) -> None:
    @in_virtual_time
    async def test() -> None:
        segments = await stored(world, 3)
        wrong = objects(world, TWO)
        wrong[segments[1].key] = segments[1].body[:-1] if cut < 0 else segments[1].body + b"x"
        async with open_parts(world, tmp_path / "1") as parts:
            assert (await run(parts))[TWO] == ScrubReport(listed=3, wrong_size=1, repaired=1)
            assert_whole(world, segments, TWO)
            assert not lacks_anything(parts.tables)

    test()


@in_virtual_time
async def test_wrong_bytes_of_the_right_size_are_found_by_reading_them(world: World, tmp_path: Path) -> None:
    segments = await stored(world, 5)
    objects(world, TWO)[segments[1].key] = bytes(len(segments[1].body))
    async with open_parts(world, tmp_path / "1") as parts:
        assert (await run(parts))[TWO] == ScrubReport(listed=5)
        assert (await run(parts, deep=True))[TWO] == ScrubReport(listed=5, corrupt=1, repaired=1)
        assert_whole(world, segments, ONE, TWO)
        assert (await run(parts, deep=True))[TWO] == ScrubReport(listed=5)


@in_virtual_time
async def test_what_nobody_has_right_stays_as_it_is_and_is_said(world: World, tmp_path: Path) -> None:
    (segment,) = await stored(world, 1)
    for replica in (ONE, TWO):
        objects(world, replica)[segment.key] = bytes(len(segment.body))
    async with open_parts(world, tmp_path / "1") as parts:
        reports = await run(parts, deep=True)
        assert reports[ONE] == reports[TWO] == ScrubReport(listed=1, corrupt=1, unrepaired=1)
        assert segment.key in objects(world, ONE)
        assert parts.tables.holders(segment.name) == [ONE, TWO]


@in_virtual_time
async def test_what_nobody_has_at_all_is_known_to_be_missing(world: World, tmp_path: Path) -> None:
    (segment,) = await stored(world, 1)
    for replica in (ONE, TWO):
        await world.stores[replica].delete(segment.key)
    async with open_parts(world, tmp_path / "1") as parts:
        reports = await run(parts)
        assert reports[ONE] == ScrubReport(missing=1, unrepaired=1)
        assert parts.tables.holders(segment.name) == []
        assert missing(parts.tables, ONE).segments == 1
        # A file that cannot be read is not all right because it was said once.
        assert not (await run(parts))[ONE].clean


@in_virtual_time
async def test_what_state_did_not_know_is_there_is_placed_if_it_is_right(world: World, tmp_path: Path) -> None:
    segments = await stored(world, 3, placed=(ONE,))
    objects(world, TWO)[segments[2].key] = bytes(len(segments[2].body))
    async with open_parts(world, tmp_path / "1") as parts:
        assert (await run(parts))[TWO] == ScrubReport(listed=3, found=2, corrupt=1, repaired=1)
        assert not lacks_anything(parts.tables)
        assert_whole(world, segments, TWO)


@in_virtual_time
async def test_what_a_replica_is_known_to_lack_is_copied_too(world: World, tmp_path: Path) -> None:
    (segment,) = await stored(world, 1, placed=(ONE,))
    await world.stores[TWO].delete(segment.key)
    async with open_parts(world, tmp_path / "1") as parts:
        assert (await run(parts))[TWO] == ScrubReport(missing=1, repaired=1)
        assert_whole(world, [segment], TWO)


@in_virtual_time
async def test_objects_that_no_entry_names_are_counted_and_kept(world: World, tmp_path: Path) -> None:
    await stored(world, 2)
    for key in ("segments/00/first", "segments/ff/last", "segments/stray"):
        await world.stores[ONE].put(key, b"123")
    await world.stores[ONE].put("elsewhere", b"123")
    async with open_parts(world, tmp_path / "1") as parts:
        report = (await run(parts, deep=True))[ONE]
        assert report == ScrubReport(listed=5, unknown=3, unknown_bytes=9)
        assert report.clean
        assert "segments/stray" in objects(world, ONE)


@in_virtual_time
async def test_what_no_file_needs_is_no_fault(world: World, tmp_path: Path) -> None:
    segments = await stored(world, 4)
    world.foreign(2, Truncate(F, 0, 9))
    await world.stores[TWO].delete(segments[0].key)
    objects(world, TWO)[segments[1].key] = b"short"
    objects(world, TWO)[segments[2].key] = bytes(len(segments[2].body))
    async with open_parts(world, tmp_path / "1") as parts:
        report = (await run(parts, deep=True))[TWO]
        assert report == ScrubReport(listed=3)
        assert parts.tables.holders(segments[0].name) == [ONE]


@in_virtual_time
async def test_a_replica_that_cannot_be_listed_is_not_taken_to_be_empty(world: World, tmp_path: Path) -> None:
    await stored(world, 4)
    world.store_scripts[TWO].add("list", Fault(refused=Unavailable("away")))
    async with open_parts(world, tmp_path / "1") as parts:
        reports = await run(parts)
        assert "away" in reports[TWO].error
        assert not reports[TWO].clean
        assert reports[TWO].missing == 0
        assert reports[ONE].clean
        assert not lacks_anything(parts.tables)


@in_virtual_time
async def test_what_cannot_be_looked_at_is_said(world: World, tmp_path: Path) -> None:
    await stored(world, 4)
    world.store_scripts[TWO].add("get", Fault(refused=Unavailable("away")))
    async with open_parts(world, tmp_path / "1") as parts:
        report = (await run(parts, deep=True))[TWO]
        assert "away" in report.error
        assert report.corrupt == 0


@in_virtual_time
async def test_who_came_is_scrubbed_and_who_left_is_not(world: World, tmp_path: Path) -> None:
    await stored(world, 2)
    world.foreign(2, AddReplica(THREE, "memory:3"), RemoveReplica(ONE))
    async with open_parts(world, tmp_path / "1") as parts:
        reports = await run(parts)
        assert list(reports) == [TWO, THREE]
        assert "not open" in reports[THREE].error


@in_virtual_time
async def test_a_journal_that_does_not_answer_is_told(world: World, tmp_path: Path) -> None:
    segments = await stored(world, 2)
    await world.stores[TWO].delete(segments[0].key)
    async with open_parts(world, tmp_path / "1") as parts:
        world.journal_script.add("append", *[Fault(refused=Unavailable("nobody answers"))] * 100)
        with pytest.raises(Unavailable):
            await run(parts)
