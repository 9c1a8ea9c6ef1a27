"""Writeback: what a commit sends, when a replica or the journal fails, and when other sessions commit."""

from collections import deque
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest
import structlog
import trio

from agentfs.chunks.cached import open_cached
from agentfs.model.changes import AddSegment, ChunkRun, Fence, InlineRun, Unlink, Write
from agentfs.model.errors import AgentfsError, NoSpace, ReadOnly, TooLarge, Unavailable
from agentfs.model.extents import CHUNK_MAX, INLINE_MAX, SEGMENT_MAX
from agentfs.model.ids import ROOT_INO, Ino, ReplicaId
from agentfs.state.checksum import checksum
from agentfs.workspace.reader import Reader
from agentfs.workspace.writeback import AGE_SECONDS, CROWD, FILES_MAX, REMAINDER_MAX
from tests.simulation.entries import make, text
from tests.simulation.faults import Fault, Script
from tests.simulation.parts import Parts, World, entries_of, make_world, open_parts, replayed
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

F, G = Ino(2 << 32), Ino((2 << 32) + 1)
BIG = Random(0).randbytes(REMAINDER_MAX + 1)


@pytest.fixture
def world() -> World:
    """A workspace with two empty files that session B made."""
    return two_files(make_world())


@pytest.fixture
def world_of_three() -> World:
    """The same with three replicas."""
    return two_files(make_world(3))


def two_files(world: World) -> World:
    world.foreign(2, make(F, b"f"), make(G, b"g"))
    return world


async def committed_body(world: World, ino: Ino) -> bytes:
    """A file as a mount on another host would read it: from the journal and the replicas alone."""
    tables = replayed(world.log)
    runtime = VirtualRuntime(Random(0))
    async with open_cached(world.stores[ReplicaId(1)], max_bytes=1 << 20) as chunks, trio.open_nursery() as nursery:
        body = await Reader(tables, Nothing(), chunks, runtime, nursery).read(ino, 0, 1 << 40)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    tables.close()
    return body


class Nothing:
    """Staging with nothing in it."""

    files: ClassVar[dict[Ino, object]] = {}


async def fail_journal(parts: Parts, world: World, ino: Ino) -> None:
    """Commit a file while the journal refuses."""
    world.journal_script.add("append", Fault(refused=NoSpace("the journal is full")))
    with pytest.raises(NoSpace):
        await parts.writeback.commit(ino)


# ---- what is sent


@in_virtual_time
async def test_a_small_file_travels_in_the_entry(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, b"x" * INLINE_MAX)
        await parts.writeback.commit(F)
        (write,) = entries_of(world.log)[-1].transactions[0].changes
        assert isinstance(write, Write)
        assert isinstance(write.runs[0], InlineRun)
        assert parts.staging.files == {}
        assert await committed_body(world, F) == b"x" * INLINE_MAX


@in_virtual_time
async def test_segments_are_in_the_replicas_before_their_entry(world: World, tmp_path: Path) -> None:
    gate = trio.Event()
    world.store_scripts[ReplicaId(2)].add("put", Fault(before=gate))
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        parts.write(F, 0, BIG)
        nursery.start_soon(parts.writeback.commit, F)
        await trio.sleep(5)
        before = len(world.log.payloads)
        gate.set()
        await trio.sleep(5)
        assert len(world.log.payloads) == before + 1
        changes = entries_of(world.log)[-1].transactions[0].changes
        added = [change for change in changes if isinstance(change, AddSegment)]
        assert [change.replicas for change in added] == [[1, 2]]
        assert await committed_body(world, F) == BIG


@in_virtual_time
async def test_a_large_file_is_chunks_in_segments(world: World, tmp_path: Path) -> None:
    body = Random(1).randbytes(SEGMENT_MAX + CHUNK_MAX + 5)
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, body)
        await parts.writeback.commit(F)
        changes = entries_of(world.log)[-1].transactions[0].changes
        assert [type(change) for change in changes] == [AddSegment, AddSegment, Write]
        write = changes[-1]
        assert isinstance(write, Write)
        assert all(isinstance(run, ChunkRun) and run.length <= CHUNK_MAX for run in write.runs)
        assert await committed_body(world, F) == body


@in_virtual_time
async def test_truncating_and_writing_in_every_order(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        for steps, expected in [
            (["w0:0123456789", "t4"], b"0123"),
            (["t2", "t6"], b"01\0\0\0\0"),
            (["t0", "w3:abc"], b"\0\0\0abc"),
            (["w1:xy", "t2", "w4:z", "t8"], b"\0x\0\0z\0\0\0"),
            (["t0"], b""),
            (["t5"], b"\0" * 5),
        ]:
            for step in steps:
                if step.startswith("t"):
                    parts.truncate(F, int(step[1:]))
                else:
                    offset, data = step[1:].split(":")
                    parts.write(F, int(offset), data.encode())
            assert await parts.body(F) == expected, steps
            await parts.writeback.commit(F)
            assert await parts.body(F) == expected, steps
            assert await committed_body(world, F) == expected, steps


@in_virtual_time
async def test_writes_during_a_commit_go_with_the_next(world: World, tmp_path: Path) -> None:
    gate = trio.Event()
    world.store_scripts[ReplicaId(1)].add("put", Fault(before=gate))
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        parts.write(F, 0, BIG)
        nursery.start_soon(parts.writeback.commit, F)
        await trio.sleep(1)
        parts.write(F, 0, b"later")
        expected = b"later" + BIG[5:]
        assert await parts.body(F) == expected
        gate.set()
        await trio.sleep(1)
        assert await committed_body(world, F) == BIG
        await parts.writeback.commit(F)
        assert await committed_body(world, F) == await parts.body(F) == expected


@in_virtual_time
async def test_what_is_old_is_committed_without_being_asked(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        parts.write(F, 0, b"old")
        await trio.sleep(0.5)
        assert await committed_body(world, F) == b""
        await trio.sleep(1)
        assert await committed_body(world, F) == b"old"
        nursery.cancel_scope.cancel()


# ---- what fails


@in_virtual_time
async def test_a_replica_that_fails_keeps_it_staged_for_the_next_commit(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, BIG)
        world.store_scripts[ReplicaId(2)].add("put", Fault(refused=NoSpace("full")))
        with pytest.raises(NoSpace):
            await parts.writeback.commit(F)
        assert await committed_body(world, F) == b""
        assert await parts.body(F) == BIG
        await parts.writeback.commit(F)
        assert await committed_body(world, F) == BIG


@in_virtual_time
async def test_a_journal_that_fails_keeps_it_staged_for_the_next_commit(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, b"kept")
        await fail_journal(parts, world, F)
        assert await parts.body(F) == b"kept"
        await parts.writeback.commit(F)
        assert await committed_body(world, F) == b"kept"


@in_virtual_time
async def test_a_newer_write_is_not_overtaken_by_an_older_one_that_failed(world: World, tmp_path: Path) -> None:
    """The second commit's put is under way when the first is refused; whatever is sent when, the newer bytes stay on top."""
    gate, journal = trio.Event(), trio.Event()
    world.store_scripts[ReplicaId(1)].add("put", Fault(before=gate))
    world.journal_script.add("append", Fault(before=journal, refused=NoSpace("full")))
    newer = BIG[::-1]
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:

        async def first() -> None:
            with pytest.raises(NoSpace):
                await parts.writeback.commit(F)

        parts.write(F, 0, b"older")
        nursery.start_soon(first)
        await trio.sleep(1)
        parts.write(F, 0, newer)
        nursery.start_soon(parts.writeback.commit, F)
        await trio.sleep(1)
        journal.set()
        await trio.sleep(1)
        gate.set()
        await trio.sleep(1)
        assert await parts.body(F) == newer
        await parts.writeback.commit(F)
        assert await parts.body(F) == newer
        assert await committed_body(world, F) == newer


@in_virtual_time
async def test_an_append_that_was_given_up_is_not_made_twice(world: World, tmp_path: Path) -> None:
    """The entry is in the journal, and its answer was lost for longer than the committer waits."""
    lost = [Fault(lost=Unavailable("lost")), *[Fault(refused=Unavailable("refused"))] * 200]
    world.journal_script.add("append", *lost)
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, b"once", append=True)
        with pytest.raises(Unavailable):
            await parts.writeback.commit(F)
        world.journal_script.lines.clear()
        await parts.writeback.commit(F)
        assert await committed_body(world, F) == b"once"


@in_virtual_time
async def test_a_write_that_finds_no_space_leaves_nothing_to_commit(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        before = len(world.log.payloads)
        with pytest.raises(TooLarge):
            parts.write(F, (1 << 63) - 2, b"x")
        await parts.writeback.commit(F)
        await parts.committer.sync()
        assert len(world.log.payloads) == before


@in_virtual_time
async def test_a_file_that_is_gone_is_not_committed(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, b"lost with it")
        parts.committer.submit([Unlink(ROOT_INO, b"f", F, False, 30)])
        # As on a local disk: a file without a name can be closed, and what was written to it goes with it.
        await parts.writeback.commit(F)
        assert parts.staging.files == {}
        parts.write(G, 0, b"an orphan's")
        parts.committer.submit([Unlink(ROOT_INO, b"g", G, True, 30)])
        await parts.writeback.commit(G)
        assert await parts.body(G) == b"an orphan's"
        await parts.committer.sync()
        assert not any(isinstance(change, Write) for entry in entries_of(world.log) for change in entry.transactions[0].changes)


@in_virtual_time
async def test_a_file_removed_while_its_commit_is_under_way_is_forgotten_once(world: World, tmp_path: Path) -> None:
    journal = trio.Event()
    world.journal_script.add("append", Fault(before=journal))
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        parts.write(F, 0, b"removed")
        nursery.start_soon(parts.writeback.commit, F)
        await trio.sleep(1)
        parts.committer.submit([Unlink(ROOT_INO, b"f", F, False, 30)])
        parts.staging.discard(F)
        journal.set()
        await trio.sleep(1)
        parts.write(G, 0, b"one")
        parts.committer.submit([make((1 << 32), b"h")])
        parts.write(Ino(1 << 32), 0, b"two")
        assert (await parts.body(G), await parts.body(Ino(1 << 32))) == (b"one", b"two")


# ---- many files


@in_virtual_time
async def test_files_that_are_old_go_together(world: World, tmp_path: Path) -> None:
    inos = many_files(world, 150)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        for ino in inos:
            parts.write(ino, 0, Random(ino).randbytes(INLINE_MAX + 1))
        nursery.start_soon(parts.writeback.run)
        await trio.sleep(3)
        assert parts.staging.files == {}
        assert await objects_in(world) == 1, "150 files of 32 KiB are 4.7 MiB"
        assert await committed_body(world, inos[77]) == Random(inos[77]).randbytes(INLINE_MAX + 1)
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_what_trickles_in_goes_inline_and_costs_no_puts(world: World, tmp_path: Path) -> None:
    """A segment for each second would be a put then, and a get whenever all is read again."""
    inos = many_files(world, 60)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        for ino in inos:
            parts.write(ino, 0, Random(ino).randbytes(100_000))
            await trio.sleep(0.2)
        await trio.sleep(2 * AGE_SECONDS)
        assert parts.staging.files == {}
        assert await objects_in(world) == 0
        for ino in inos[::7]:
            assert await committed_body(world, ino) == Random(ino).randbytes(100_000)
        lengths = [row[0] for row in parts.tables.db.execute("SELECT length FROM extents")]
        assert max(lengths) <= INLINE_MAX, "folding takes pieces of that size"
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_what_the_replicas_refused_does_not_go_inline_instead(world: World, tmp_path: Path) -> None:
    world.store_scripts[ReplicaId(1)].add("put", *[Fault(refused=NoSpace("full"))] * 1000)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        parts.write(F, 0, BIG[:100_000])
        with pytest.raises(NoSpace):
            await parts.writeback.commit(F)
        await trio.sleep(100)
        assert await committed_body(world, F) == b""
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_a_stream_of_files_fills_its_segments_and_is_bounded(world: World, tmp_path: Path) -> None:
    inos = many_files(world, 1200)
    world.store_scripts[ReplicaId(1)].add("put", *[Fault(before=0.05)] * 1200)
    most = 0
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        for ino in inos:
            parts.write(ino, 0, Random(ino).randbytes(50_000))
            await parts.writeback.bound(ino)
            await trio.sleep(0.0005)
            most = max(most, len(parts.staging.files))
        await trio.sleep(3)
        assert parts.staging.files == {}
        assert CROWD <= most <= FILES_MAX
        full = len(inos) * 50_000 / SEGMENT_MAX
        assert full <= await objects_in(world) <= 1.3 * full + 1
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_what_waits_for_the_journal_takes_no_others_along(world: World, tmp_path: Path) -> None:
    """It is old and not committed, but its commit is under way: the others still gather for a segment of their own."""
    world.journal_script.add("append", Fault(before=10.0))
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        parts.write(F, 0, BIG)
        await trio.sleep(3)
        assert await objects_in(world) == 1
        parts.write(G, 0, BIG[::-1])
        await trio.sleep(0.9)
        assert await objects_in(world) == 1
        await trio.sleep(0.5)
        assert await objects_in(world) == 2
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_small_files_that_are_many_do_not_wait_to_fill_a_segment(world: World, tmp_path: Path) -> None:
    inos = many_files(world, FILES_MAX)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        for ino in inos:
            parts.write(ino, 0, b"small")
            await parts.writeback.bound(ino)
        await trio.sleep(0.5)
        assert parts.staging.files == {}
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_files_without_a_name_are_in_nobodys_way(world: World, tmp_path: Path) -> None:
    """They are never committed, so nobody waits for that, and they take no others along."""
    nameless, (last, *_) = many_files(world, FILES_MAX + 50), many_files(world, 1, 5000)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        await parts.committer.catch_up()
        nursery.start_soon(parts.writeback.run)
        for ino in nameless:
            parts.committer.submit([Unlink(ROOT_INO, b"%d" % ino, ino, True, 30)])
            parts.write(ino, 0, b"temporary")
        parts.write(last, 0, b"named")
        await parts.writeback.bound(last)
        await trio.sleep(5)
        assert sorted(parts.staging.files) == nameless
        began = len(entries_of(world.log))
        parts.write(last, 0, b"again")
        await trio.sleep(0.5)
        assert len(entries_of(world.log)) == began, "it is not old yet"
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_of_many_files_each_is_reported(world: World, tmp_path: Path) -> None:
    reports: dict[Ino, AgentfsError | None] = {}
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, BIG)
        parts.write(G, 0, b"small")
        world.store_scripts[ReplicaId(2)].add("put", Fault(refused=NoSpace("full")))
        await parts.writeback.commit_all([F, G], reports.__setitem__)
        assert isinstance(reports[F], NoSpace)
        assert reports[G] is None
        assert await committed_body(world, G) == b"small"


def many_files(world: World, count: int, first: int = 100) -> list[Ino]:
    """Empty files that session B made."""
    inos = [Ino((2 << 32) + first + number) for number in range(count)]
    world.foreign(2, *[make(ino, b"%d" % ino) for ino in inos])
    return inos


async def objects_in(world: World) -> int:
    """How many segments the first replica holds."""
    return len([info async for info in world.stores[ReplicaId(1)].list("segments/")])


# ---- replicas that cannot be reached


@in_virtual_time
async def test_what_could_not_be_put_goes_out_when_the_replicas_return(world: World, tmp_path: Path) -> None:
    down = silence(world)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        parts.write(F, 0, BIG)
        with pytest.raises(Unavailable):
            await parts.writeback.commit(F)
        await trio.sleep(600)
        assert await parts.body(F) == BIG
        assert await committed_body(world, F) == b""
        down.clear()
        await trio.sleep(90)
        assert parts.staging.files == {}
        assert await committed_body(world, F) == BIG
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_an_outage_does_not_pile_up_layers(world: World, tmp_path: Path) -> None:
    down = silence(world)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        expected = b""
        for number in range(20):
            expected += Random(number).randbytes(len(BIG))
            parts.write(F, number * len(BIG), Random(number).randbytes(len(BIG)))
            await trio.sleep(70)
        assert len(parts.staging.files[F].layers) <= 2, "each holds a descriptor"
        down.clear()
        await trio.sleep(100)
        assert parts.staging.files == {}
        assert await committed_body(world, F) == expected
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_small_files_are_committed_though_no_replica_can_be_reached(world: World, tmp_path: Path) -> None:
    silence(world)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        parts.write(F, 0, BIG)
        await trio.sleep(20)
        parts.write(G, 0, b"small")
        await trio.sleep(2)
        assert await committed_body(world, G) == b"small"
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_an_outage_is_logged_now_and_then_and_the_replicas_are_left_in_peace(world: World, tmp_path: Path) -> None:
    inos = many_files(world, 100)
    silence(world)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        for ino in inos:
            parts.write(ino, 0, Random(ino).randbytes(INLINE_MAX + 1))
        with structlog.testing.capture_logs() as lines:
            await trio.sleep(600)
        ours = [line for line in lines if line["event"] == "writeback_failed"]
        assert 5 <= len(ours) <= 25, "a try takes half a minute, and so does a pause"
        assert len(parts.staging.files) == 100
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_a_disk_that_is_full_is_not_tried_all_the_time(world: World, tmp_path: Path) -> None:
    refused = [Fault(refused=NoSpace("full"))] * 1000
    world.store_scripts[ReplicaId(1)].add("put", *refused)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        parts.write(F, 0, BIG)
        await trio.sleep(300)
        tried = 1000 - len(world.store_scripts[ReplicaId(1)].lines["put"])
        assert 5 <= tried <= 20
        world.store_scripts[ReplicaId(1)].lines.clear()
        await trio.sleep(31)
        assert parts.staging.files == {}
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_writers_may_be_told_that_it_is_read_only_meanwhile(world: World, tmp_path: Path) -> None:
    down = silence(world)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        parts.writeback.read_only_when_unreachable = True
        assert not parts.writeback.refuses_writes()
        parts.write(F, 0, BIG)
        with pytest.raises(ReadOnly):
            await parts.writeback.commit(F)
        assert parts.writeback.refuses_writes()
        down.clear()
        await trio.sleep(90)
        assert not parts.writeback.refuses_writes()
        assert await committed_body(world, F) == BIG
        nursery.cancel_scope.cancel()


@in_virtual_time
async def test_a_full_replica_is_no_reason_to_be_read_only(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.writeback.read_only_when_unreachable = True
        parts.write(F, 0, BIG)
        world.store_scripts[ReplicaId(2)].add("put", Fault(refused=NoSpace("full")))
        with pytest.raises(NoSpace):
            await parts.writeback.commit(F)


@in_virtual_time
async def test_a_writer_of_too_many_files_is_told_when_none_can_be_committed(world: World, tmp_path: Path) -> None:
    inos = many_files(world, FILES_MAX + 1)
    silence(world)
    async with open_parts(world, tmp_path / "1") as parts, trio.open_nursery() as nursery:
        nursery.start_soon(parts.writeback.run)
        began = trio.current_time()
        for ino in inos[: FILES_MAX + 1]:
            parts.write(ino, 0, BIG[: INLINE_MAX + 1])
        with pytest.raises(Unavailable):
            await parts.writeback.bound(inos[FILES_MAX])
        assert len(parts.staging.files) == FILES_MAX + 1
        assert trio.current_time() - began <= 40
        nursery.cancel_scope.cancel()


def silence(world: World) -> dict[str, deque[Fault]]:
    """Have no replica answer puts, nor signs of life, until what this returns is cleared."""
    nothing = Script()
    for number in world.store_scripts:
        world.store_scripts[number] = nothing
    for verb in ("put", "get"):
        nothing.add(verb, *[Fault(before=40.0, refused=Unavailable("silent"))] * 5000)
    return nothing.lines


# ---- other sessions


@in_virtual_time
async def test_appends_of_two_sessions_are_both_kept(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, b"mine", append=True)
        world.foreign(2, text(F, 0, b"theirs", append=True))
        await parts.writeback.commit(F)
        assert await committed_body(world, F) == b"theirsmine"


@in_virtual_time
async def test_appends_are_both_kept_when_the_other_is_known_before_the_commit(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, b"mine", append=True)
        world.foreign(2, text(F, 0, b"theirs", append=True))
        await parts.committer.catch_up()
        await parts.writeback.commit(F)
        assert await committed_body(world, F) == b"theirsmine"


@in_virtual_time
async def test_appends_in_two_layers_follow_each_other_behind_a_foreign_one(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, b"one", append=True)
        await fail_journal(parts, world, F)
        parts.write(F, 0, b"two", append=True)
        world.foreign(2, text(F, 0, b"theirs", append=True))
        await parts.committer.catch_up()
        await parts.writeback.commit(F)
        assert await committed_body(world, F) == b"theirsonetwo"


@in_virtual_time
async def test_a_write_does_not_cut_off_what_another_session_appended(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, b"mine")
        world.foreign(2, text(F, 0, b"theirs is longer"))
        await parts.committer.catch_up()
        await parts.writeback.commit(F)
        assert await committed_body(world, F) == b"miners is longer"


@in_virtual_time
async def test_a_fenced_session_commits_nothing_and_keeps_it_staged(world: World, tmp_path: Path) -> None:
    async with open_parts(world, tmp_path / "1") as parts:
        parts.write(F, 0, b"too late")
        world.foreign(2, Fence(parts.committer.session))
        outcomes = list[type[AgentfsError]]()

        async def commit() -> None:
            try:
                await parts.writeback.commit(F)
            except AgentfsError as error:
                outcomes.append(type(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            await trio.sleep(100)
            assert outcomes == [], "it waits for the next session"
            parts.committer.refuse_pending(Unavailable("no session can be had"))
        assert outcomes == [Unavailable]
        assert await committed_body(world, F) == b""
        assert parts.staging.files[F].dirty_bytes == len(b"too late")


# ---- stragglers


@in_virtual_time
async def test_a_straggler_is_recorded(world_of_three: World, tmp_path: Path) -> None:
    world_of_three.store_scripts[ReplicaId(3)].add("put", Fault(before=20.0))
    async with open_parts(world_of_three, tmp_path / "1", replication="quorum") as parts:
        parts.write(F, 0, BIG)
        await parts.writeback.commit(F)
        assert parts.tables.db.execute("SELECT replica FROM placed ORDER BY replica").fetchall() == [(1,), (2,)]
        await trio.sleep(21)
        assert parts.tables.db.execute("SELECT replica FROM placed ORDER BY replica").fetchall() == [(1,), (2,), (3,)]
        await parts.committer.sync()
        assert checksum(replayed(world_of_three.log)) == checksum(parts.tables)


@in_virtual_time
async def test_a_straggler_that_comes_before_its_segment_is_named_is_recorded(world_of_three: World, tmp_path: Path) -> None:
    """Two segments: the first one's straggler arrives while the second is being put, before the entry that names both."""
    for number, seconds in ((1, 20.0), (2, 20.0), (3, 0.0)):
        late = 10.0 if number == 3 else 0.0
        world_of_three.store_scripts[ReplicaId(number)].add("put", Fault(before=late), Fault(before=seconds))
    async with open_parts(world_of_three, tmp_path / "1", replication="quorum") as parts:
        parts.write(F, 0, Random(2).randbytes(SEGMENT_MAX + CHUNK_MAX))
        await parts.writeback.commit(F)
        await trio.sleep(100)
        await parts.committer.sync()
        placed = parts.tables.db.execute("SELECT segment, replica FROM placed").fetchall()
        assert len(placed) == 6, "three replicas hold two segments"


@in_virtual_time
async def test_a_straggler_of_a_fenced_session_ends_nothing(world_of_three: World, tmp_path: Path) -> None:
    world_of_three.store_scripts[ReplicaId(3)].add("put", Fault(before=20.0))
    async with open_parts(world_of_three, tmp_path / "1", replication="quorum") as parts:
        parts.write(F, 0, BIG)
        await parts.writeback.commit(F)
        world_of_three.foreign(2, Fence(parts.committer.session))
        await parts.committer.catch_up()
        await trio.sleep(100)
        assert await parts.body(F) == BIG
