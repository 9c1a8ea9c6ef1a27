"""Recovery: what a killed mount left is committed once, or set aside, also when recovery itself is killed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from agentfs.chunks.cached import open_cached
from agentfs.chunks.contract import ChunkStore
from agentfs.chunks.replicated import open_replicated
from agentfs.chunks.segment import segment_name
from agentfs.journal.memory import MemoryJournal
from agentfs.model.changes import AddSegment, Collect, Deleted, Fence, Unlink, Unneeded
from agentfs.model.entry import Transaction
from agentfs.model.errors import NoSpace, Unavailable
from agentfs.model.extents import INLINE_MAX
from agentfs.model.ids import ROOT_INO, Ino, ReplicaId, SessionId, TxnNumber, first_ino
from agentfs.model.session import CLOSED, FENCED, OPEN
from agentfs.state.checksum import checksum
from agentfs.workspace.left_over import LeftOver
from agentfs.workspace.reader import Reader
from agentfs.workspace.recovery import recover
from agentfs.workspace.seat import Owner, Seat, boot_id, open_seat
from agentfs.workspace.session import close_session
from agentfs.workspace.staging import Staging
from agentfs.workspace.staging_log import Cut, Forgotten, Frozen, Staged, StagingRecord, Submitted, Withdrawn
from tests.simulation.entries import make, text
from tests.simulation.faults import Fault, FaultyJournal, FaultyStore, Script
from tests.simulation.parts import Parts, World, make_world, open_parts, replayed
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

A = SessionId(1)
F, G = Ino(2 << 32), Ino((2 << 32) + 1)
MINE = first_ino(A)


# ---- what a log says


def left_over(*records: StagingRecord) -> LeftOver:
    left = LeftOver()
    for record in records:
        left.take(record)
    left.finish()
    return left


def staged(left: LeftOver, ino: Ino = F) -> list[tuple[dict[int, list[tuple[int, int]]], int | None, bool]]:
    return [
        ({slot: list(ranges) for slot, ranges in file.slots.items()}, file.cut, file.append) for file in left.files.get(ino, [])
    ]


def write_of(number: int, ino: Ino = F) -> Submitted:
    return Submitted(Transaction(TxnNumber(number), [text(ino, 0, b"x")]))


def test_what_was_staged_is_left() -> None:
    left = left_over(Staged(F, 0, 0, 10, False), Staged(F, 0, 5, 10, False), Staged(G, 1, 7, 1, True), Cut(F, 12))
    assert staged(left) == [({0: [(0, 12)]}, 12, False)]
    assert staged(left, G) == [({1: [(7, 8)]}, None, True)]


def test_what_was_submitted_covers_what_was_frozen() -> None:
    left = left_over(Staged(F, 0, 0, 10, False), Frozen(F), Staged(F, 1, 3, 1, False), write_of(1))
    assert staged(left) == [({1: [(3, 4)]}, None, False)]
    assert list(left.submitted) == [1]


def test_what_was_frozen_and_not_submitted_is_left_below_what_came_later() -> None:
    left = left_over(Staged(F, 0, 0, 10, False), Frozen(F), Staged(F, 1, 3, 1, False))
    assert [list(slots) for slots, _, _ in staged(left)] == [[0], [1]]


def test_what_was_withdrawn_is_left_again() -> None:
    left = left_over(Staged(F, 0, 0, 10, False), Frozen(F), write_of(1), Withdrawn(TxnNumber(1)))
    assert staged(left) == [({0: [(0, 10)]}, None, False)]
    assert left.submitted == {}


def test_what_was_withdrawn_is_left_below_what_was_frozen_later() -> None:
    first, second = Staged(F, 0, 0, 10, False), Staged(F, 1, 3, 1, False)
    left = left_over(first, Frozen(F), write_of(1), second, Frozen(F), Withdrawn(TxnNumber(1)))
    assert [list(slots) for slots, _, _ in staged(left)] == [[0], [1]]


def test_what_was_forgotten_is_not_left() -> None:
    left = left_over(Staged(F, 0, 0, 10, False), Frozen(F), write_of(1), Forgotten(F), Staged(G, 0, 0, 1, False))
    assert staged(left) == []
    assert staged(left, G) == [({0: [(0, 1)]}, None, False)]


# ---- the whole of it


@pytest.fixture
def world() -> World:
    """A workspace with two files of ten bytes that session B made."""
    world = make_world()
    world.foreign(2, make(F, b"f"), make(G, b"g"), text(F, 0, b"0123456789"), text(G, 0, b"0123456789"))
    return world


@asynccontextmanager
async def killed_at_the_end(world: World, cache: Path, *, run: bool = True) -> AsyncIterator[Parts]:
    """Session A in the first seat; when the block ends it is gone without a word."""
    with open_seat(cache) as seat:
        seat.take(A)
        async with open_parts(world, seat.staging_path, run=run) as parts:
            yield parts


async def recovered(
    world: World, cache: Path, *, script: Script | None = None, replication: str = "sync", incarnation: str = ""
) -> None:
    """What the next mount does first."""
    runtime = VirtualRuntime(Random(9))
    with open_seat(cache) as seat:
        seat.incarnation = incarnation
        tables = replayed(world.log)
        journal = FaultyJournal(MemoryJournal(world.log), script or Script())
        stores: dict[ReplicaId, ChunkStore] = {
            replica: FaultyStore(store, world.store_scripts[replica]) for replica, store in world.stores.items()
        }
        async with open_replicated(stores, replication=replication, runtime=runtime) as replicas:
            await recover(seat, tables, journal, replicas, runtime)
        assert checksum(tables) == checksum(replayed(world.log))
        assert seat.owner() is None
        assert list(seat.staging_path.iterdir()) == []
        tables.close()


async def body(world: World, cache: Path, ino: Ino) -> bytes:
    """A file as another host reads it."""
    tables = replayed(world.log)
    cache.joinpath("elsewhere").mkdir(exist_ok=True)
    staging = Staging(cache / "elsewhere", lambda: 0.0)
    async with open_cached(world.stores[ReplicaId(1)], max_bytes=1 << 20) as chunks, trio.open_nursery() as nursery:
        read = await Reader(tables, staging, chunks, VirtualRuntime(Random(0)), nursery).read(ino, 0, 1 << 40)
        nursery.cancel_scope.cancel()
    staging.close()
    tables.close()
    return read


def standing(world: World) -> int:
    tables = replayed(world.log)
    found = tables.sessions[A].standing
    tables.close()
    return found


@in_virtual_time
async def test_nothing_left_is_no_work(world: World, tmp_path: Path) -> None:
    before = len(world.log.payloads)
    await recovered(world, tmp_path)
    assert len(world.log.payloads) == before


@in_virtual_time
async def test_staged_bytes_small_and_large_are_committed(world: World, tmp_path: Path) -> None:
    big = Random(1).randbytes(INLINE_MAX + 1)
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 4, b"xy")
        parts.write(F, 12, b"!")
        parts.write(G, 10, big)
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == b"0123xy6789\0\0!"
    assert await body(world, tmp_path, G) == b"0123456789" + big
    assert standing(world) == CLOSED


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("t", 4)], b"0123"),
        ([("t", 12)], b"0123456789\0\0"),
        ([("t", 4), ("t", 6)], b"0123\0\0"),
        ([("t", 0), ("w", 2, b"ab")], b"\0\0ab"),
        ([("w", 8, b"abcd"), ("t", 10)], b"01234567ab"),
        ([("w", 8, b"abcd"), ("t", 9), ("t", 12)], b"01234567a\0\0\0"),
        ([("t", 0)], b""),
        ([("a", b"+"), ("a", b"+")], b"0123456789++"),
        ([("w", 0, b"a"), ("f",), ("w", 1, b"b"), ("t", 5), ("w", 7, b"c")], b"ab234\0\0c"),
        ([("w", 0, b"aaaa"), ("f",), ("t", 2), ("f",), ("w", 3, b"b")], b"aa\0b"),
        ([("w", 0, b"aaaa"), ("f",), ("t", 2), ("t", 8)], b"aa\0\0\0\0\0\0"),
    ],
)
@in_virtual_time
async def test_truncations_and_writes_are_recovered_as_they_were_seen(
    world: World, tmp_path: Path, steps: list[tuple[object, ...]], expected: bytes
) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        for step in steps:
            match step:
                case ("t", int(size)):
                    parts.truncate(F, size)
                case ("w", int(offset), bytes(data)):
                    parts.write(F, offset, data)
                case ("a", bytes(data)):
                    parts.write(F, 0, data, append=True)
                case _:
                    parts.staging.freeze(parts.staging.files[F])
        assert await parts.body(F) == expected
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == expected


@in_virtual_time
async def test_what_was_submitted_and_not_sent_is_sent(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path, run=False) as parts:
        parts.committer.submit([make(MINE, b"mine")])
        parts.committer.submit([text(MINE, 0, b"body")])
        parts.committer.submit([Unlink(ROOT_INO, b"g", G, False, 30)])
        parts.write(MINE, 4, b" and more")
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, MINE) == b"body and more"
    assert replayed(world.log).inode(G) is None


@in_virtual_time
async def test_what_is_in_the_journal_already_is_not_made_twice(world: World, tmp_path: Path) -> None:
    world.journal_script.add("append", Fault(behind=trio.Event()))
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"once", append=True)
        with trio.move_on_after(5):
            await parts.writeback.commit(F)
        assert len(world.log.payloads) == 5, "it is in the journal, and the answer never came"
        parts.write(F, 0, b"twice", append=True)
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == b"0123456789oncetwice"


@in_virtual_time
async def test_appends_land_behind_what_others_appended_meanwhile(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"mine", append=True)
    world.foreign(2, text(F, 0, b"theirs", append=True))
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == b"0123456789theirsmine"


@in_virtual_time
async def test_a_write_does_not_cut_off_what_others_appended_meanwhile(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"mine")
    world.foreign(2, text(F, 0, b"theirs", append=True))
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == b"mine456789theirs"


@in_virtual_time
async def test_what_was_withdrawn_is_not_sent_as_it_was(world: World, tmp_path: Path) -> None:
    world.journal_script.add("append", Fault(refused=NoSpace("full")))
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"kept", append=True)
        parts.committer.submit([make(MINE, b"gone")])
        with pytest.raises(NoSpace):
            await parts.writeback.commit(F)
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == b"0123456789kept"
    assert replayed(world.log).dentry(ROOT_INO, b"gone") is None


@in_virtual_time
async def test_what_names_a_segment_that_was_collected_is_put_anew_and_keeps_its_order(world: World, tmp_path: Path) -> None:
    """Its put was before the collection, and its entry would come behind it: the journal would refuse it."""
    large = Random(3).randbytes(INLINE_MAX + 1)
    world.journal_script.add("append", Fault(before=trio.Event()))
    async with killed_at_the_end(world, tmp_path) as parts:
        for data in (large, b"newer"):
            parts.write(F, 0, data)
            with trio.move_on_after(5):
                await parts.writeback.commit(F)
        parts.write(G, 0, b"other")
        with trio.move_on_after(5):
            await parts.writeback.commit(G)
    (info,) = [info async for info in world.stores[ReplicaId(1)].list("segments/")]
    name = segment_name(info.key)
    assert name is not None
    world.foreign(2, AddSegment(name, info.size, [], 1), Unneeded([name], 1), Collect([name], 1), Deleted([name]))
    for store in world.stores.values():
        await store.delete(info.key)
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == b"newer" + large[5:]
    assert await body(world, tmp_path, G) == b"other56789"


@pytest.mark.parametrize("landed", [True, False])
@in_virtual_time
async def test_an_append_that_was_given_up_is_made_once_whether_it_landed_or_not(
    world: World, tmp_path: Path, landed: bool
) -> None:
    unreachable = Fault(refused=Unavailable("nobody answers"))
    first = Fault(lost=Unavailable("lost")) if landed else unreachable
    world.journal_script.add("append", first, *[unreachable] * 300)
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"once", append=True)
        with pytest.raises(Unavailable):
            await parts.writeback.commit(F)
        world.journal_script.lines.clear()
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == b"0123456789once"


@in_virtual_time
async def test_what_was_staged_of_a_removed_file_goes(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"lost with it")
        parts.write(G, 0, b"an orphan's")
        await parts.committer.commit([Unlink(ROOT_INO, b"g", G, True, 30)])
    world.foreign(2, Unlink(ROOT_INO, b"f", F, False, 30))
    await recovered(world, tmp_path)
    tables = replayed(world.log)
    assert (tables.inode(F), tables.inode(G)) == (None, None)


@pytest.mark.parametrize("answered", [0, 1, 2])
@in_virtual_time
async def test_a_recovery_that_is_killed_is_gone_on_with(world: World, tmp_path: Path, answered: int) -> None:
    """It appends what was submitted, then what was staged, then its goodbye; each is in the journal when the kill comes."""
    async with killed_at_the_end(world, tmp_path, run=False) as parts:
        parts.committer.submit([text(G, 0, b"submitted", append=True)])
        parts.write(F, 0, b"staged", append=True)
    script = Script()
    script.add("append", *[Fault()] * answered, Fault(behind=trio.Event()))
    with trio.move_on_after(5) as scope:
        await recovered(world, tmp_path, script=script)
    assert scope.cancelled_caught
    assert await set_aside(world, tmp_path) == [], "all of it is in the journal"
    assert await body(world, tmp_path, G) == b"0123456789submitted"
    assert await body(world, tmp_path, F) == b"0123456789staged"


@in_virtual_time
async def test_a_kill_right_after_the_goodbye_leaves_nothing_to_recover(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        assert await close_session(parts.committer, MemoryJournal(world.log))
    assert await set_aside(world, tmp_path) == []


@in_virtual_time
async def test_a_straggler_during_recovery_leaves_nothing_speculative_in_state(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, Random(1).randbytes(INLINE_MAX + 1))
    world.store_scripts[ReplicaId(2)].add("put", Fault(before=0.5))
    script = Script()
    script.add("append", Fault(before=1.0))
    await recovered(world, tmp_path, script=script, replication="async")
    assert standing(world) == CLOSED


@in_virtual_time
async def test_a_recovery_behind_a_torn_record_sends_nothing_twice_either(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"staged", append=True)
        log = parts.staging.directory / "log"
    with log.open("ab") as file:
        file.write(b"\x40\x00\x00\x00torn")
    script = Script()
    script.add("append", Fault(behind=trio.Event()))
    with trio.move_on_after(5):
        await recovered(world, tmp_path, script=script)
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == b"0123456789staged"


@in_virtual_time
async def test_a_journal_that_does_not_answer_leaves_everything_for_the_next_mount(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"staged")
    script = Script()
    script.add("append", *[Fault(refused=Unavailable("down"))] * 300)
    with pytest.raises(Unavailable):
        await recovered(world, tmp_path, script=script)
    await recovered(world, tmp_path)
    assert await body(world, tmp_path, F) == b"staged6789"


async def set_aside(world: World, cache: Path) -> list[Path]:
    await recovered(world, cache)
    return sorted(cache.glob("recovered-*"))


@in_virtual_time
async def test_what_a_fenced_session_left_is_set_aside(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"too late")
    world.foreign(2, Fence(A))
    (folder,) = await set_aside(world, tmp_path)
    assert {path.name for path in folder.iterdir()} == {"log", "slot-0"}
    assert (folder / "slot-0").read_bytes() == b"too late"
    assert await body(world, tmp_path, F) == b"0123456789"
    assert standing(world) == FENCED


@in_virtual_time
async def test_what_was_staged_before_a_power_cut_is_set_aside_and_the_session_ends(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"perhaps torn")
    restarted(tmp_path)
    assert len(await set_aside(world, tmp_path)) == 1
    assert await body(world, tmp_path, F) == b"0123456789"
    assert standing(world) == CLOSED


@in_virtual_time
async def test_what_was_staged_on_a_line_that_was_lost_is_set_aside(world: World, tmp_path: Path) -> None:
    """On the line that there is now the session's number is another one's, which is open: it must get nothing of that."""
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"staged")
    before = len(world.log.payloads)
    await recovered(world, tmp_path, incarnation="line")
    (folder,) = sorted(tmp_path.glob("recovered-*"))
    assert b"staged" in (folder / "slot-0").read_bytes()
    assert len(world.log.payloads) == before, "not even its goodbye is sent"
    assert standing(world) == OPEN


@in_virtual_time
async def test_nothing_is_set_aside_where_nothing_was_left(world: World, tmp_path: Path) -> None:
    async with killed_at_the_end(world, tmp_path):
        pass
    world.foreign(2, Fence(A))
    assert await set_aside(world, tmp_path) == []


@in_virtual_time
async def test_setting_aside_twice_keeps_both(world: World, tmp_path: Path) -> None:
    for _ in range(2):
        async with killed_at_the_end(world, tmp_path) as parts:
            parts.write(F, 0, b"too late")
        restarted(tmp_path)
        await recovered(world, tmp_path)
    assert len(sorted(tmp_path.glob("recovered-*"))) == 2


def restarted(cache: Path) -> None:
    """As if the machine had been started again since: the owner file names another boot."""
    with open_seat(cache) as seat:
        owner = seat.owner()
        assert owner is not None
        assert owner.boot == boot_id()
        seat._owner_path.write_text(f'{{"session": {owner.session}, "boot": "another"}}')
        assert Seat(seat.path).owner() == Owner(owner.session, "another")


@in_virtual_time
async def test_a_recovery_of_a_session_that_is_fenced_meanwhile_ends(world: World, tmp_path: Path) -> None:
    """Its mount has been dead for a while, and others judge it just as it comes back."""
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"staged")
    script = Script()
    script.add("append", Fault(before=2.0))
    async with trio.open_nursery() as nursery:

        async def judge() -> None:
            await trio.sleep(1)
            world.foreign(2, Fence(A))

        nursery.start_soon(judge)
        with trio.fail_after(60):
            await recovered(world, tmp_path, script=script)
    assert await body(world, tmp_path, F) == b"0123456789"
    assert len(list(tmp_path.glob("recovered-*"))) == 1


@in_virtual_time
async def test_a_session_that_is_fenced_when_all_of_it_has_arrived_is_recovered(world: World, tmp_path: Path) -> None:
    """Only its goodbye comes too late, and nobody needs that any more."""
    async with killed_at_the_end(world, tmp_path) as parts:
        parts.write(F, 0, b"staged")
    script = Script()
    script.add("append", Fault(), Fault(before=2.0))
    async with trio.open_nursery() as nursery:

        async def judge() -> None:
            await trio.sleep(1)
            world.foreign(2, Fence(A))

        nursery.start_soon(judge)
        await recovered(world, tmp_path, script=script)
    assert await body(world, tmp_path, F) == b"staged6789"
    assert list(tmp_path.glob("recovered-*")) == []
    assert standing(world) == FENCED
