"""The mirror: what is waited for, what shares an object, what a failure says, and where it begins."""

import pytest
import trio

from agentfs.journal.memory import MemoryLog
from agentfs.journal.mirror import mirror_key
from agentfs.model.codec import encode_entry
from agentfs.model.errors import AgentfsError, Denied, NoSpace, ReadOnly, Unavailable
from agentfs.model.ids import Position, ReplicaId
from agentfs.workspace.mirror import AT_ONCE_SECONDS, DISTRUST_SECONDS, GATHER_SECONDS, OBJECT_BYTES, RETRY_MAX_SECONDS
from agentfs.workspace.mirror_backlog import BACKLOG_ENTRIES
from tests.simulation.faults import Fault
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.faulty_replicas import settled
from tests.unit.mirroring import an_entry, held, is_whole, keys, mirroring


def log_of(count: int, *, mirrored: int = 0) -> MemoryLog:
    """A journal whose last entry says how far the mirror was."""
    log = MemoryLog()
    log.payloads.extend(encode_entry(an_entry(number)) for number in range(1, count))
    log.payloads.append(encode_entry(an_entry(count, mirrored=mirrored)))
    return log


# ---- waiting


@in_virtual_time
async def test_who_waits_hears_of_it_when_the_replicas_hold_everything_up_to_there() -> None:
    async with mirroring(log_of(3)) as made:
        began = trio.current_time()
        await made.mirror.reach(made.append())
        assert trio.current_time() == began
        assert made.mirror.position == 4
        assert all(is_whole(store, made.log) for store in made.replicas.all)


@in_virtual_time
async def test_quorum_goes_on_without_one_replica() -> None:
    async with mirroring(log_of(1), "quorum") as made:
        made.replicas.three.error = Unavailable("gone")
        await made.mirror.reach(made.append())
        assert [is_whole(store, made.log) for store in made.replicas.all] == [True, True, False]


@in_virtual_time
async def test_sync_waits_for_the_dead_until_the_time_is_up_and_a_later_wait_succeeds() -> None:
    async with mirroring(log_of(1), timeout=10) as made:
        made.replicas.three.error = Unavailable("gone")
        position, began = made.append(), trio.current_time()
        with pytest.raises(Unavailable, match="in the journal, and not in enough replicas"):
            await made.mirror.reach(position)
        assert trio.current_time() - began == pytest.approx(10, abs=0.1)
        made.replicas.three.error = None
        await made.mirror.reach(position)
        assert all(is_whole(store, made.log) for store in made.replicas.all)


@in_virtual_time
async def test_a_full_replica_says_so_at_once_to_everybody() -> None:
    async with mirroring(log_of(1)) as made:
        made.replicas.three.put_error = NoSpace("full")
        failures: list[AgentfsError] = []

        async def wait() -> None:
            try:
                await made.mirror.reach(made.append())
            except AgentfsError as error:
                failures.append(error)

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
        assert [type(failure) for failure in failures] == [NoSpace] * 3
        assert trio.current_time() - began < 5


@pytest.mark.parametrize("erofs", [False, True])
def test_that_a_replica_may_not_be_written_to_is_no_permission_of_the_files(erofs: bool) -> None:
    @in_virtual_time
    async def main() -> None:
        async with mirroring(log_of(1)) as made:
            made.mirror.read_only_when_unreachable = erofs
            made.replicas.three.put_error = Denied("no")
            with pytest.raises(ReadOnly if erofs else Unavailable):
                await made.mirror.reach(made.append())

    main()


@in_virtual_time
async def test_nobody_waits_over_a_journal_that_is_replicated_itself() -> None:
    async with mirroring(log_of(1), waits=False) as made:
        [store.freeze() for store in made.replicas.all]
        await made.mirror.reach(made.append())
        assert made.mirror.position == 0


# ---- sharing


@in_virtual_time
async def test_what_comes_while_an_object_is_under_way_shares_the_next() -> None:
    async with mirroring(log_of(1, mirrored=1)) as made:
        gate = made.replicas.one.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.mirror.reach, made.append())
            await settled()
            for _ in range(20):
                nursery.start_soon(made.mirror.reach, made.append())
            await settled()
            gate.set()
        assert keys(made.replicas.one) == ["2-2", "3-22"]
        assert made.replicas.one.puts == 2


@in_virtual_time
async def test_one_object_for_each_that_comes_alone() -> None:
    async with mirroring(log_of(1, mirrored=1)) as made:
        for _ in range(3):
            await made.mirror.reach(made.append())
        assert keys(made.replicas.two) == ["2-2", "3-3", "4-4"]


@in_virtual_time
async def test_what_others_appended_goes_along_and_what_they_mirrored_does_not() -> None:
    async with mirroring(log_of(4, mirrored=3)) as made:
        await made.mirror.reach(made.append())
        assert keys(made.replicas.one) == ["4-5"]
        made.append(3)
        made.append(mirrored=8)
        await made.mirror.reach(made.append())
        assert keys(made.replicas.one) == ["4-5", "9-10"]


@in_virtual_time
async def test_somebody_elses_word_ends_the_wait() -> None:
    async with mirroring(log_of(1)) as made:
        [store.freeze() for store in made.replicas.all]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.mirror.reach, made.append())
            await settled()
            made.append(mirrored=2)
        assert made.mirror.position == 2


@in_virtual_time
async def test_a_large_backlog_goes_in_pieces_and_is_read_from_the_journal() -> None:
    async with mirroring(log_of(1)) as made:
        await made.mirror.reach(made.append(BACKLOG_ENTRIES + 10))
        assert is_whole(made.replicas.one, made.log)
        made.replicas.one.lose()
        last = made.append(3, size=OBJECT_BYTES * 4)
        await made.mirror.reach(last)
        assert len(keys(made.replicas.one)) >= 1
        assert set(held(made.replicas.one)) == set(range(last - 2, last + 1))


@in_virtual_time
async def test_an_object_that_could_not_be_put_is_tried_again_as_it_was() -> None:
    async with mirroring(log_of(1, mirrored=1), timeout=5) as made:
        made.replicas.three.error = Unavailable("gone")
        for _ in range(3):
            with pytest.raises(Unavailable):
                await made.mirror.reach(made.append())
        assert keys(made.replicas.one) == ["2-2"]
        made.replicas.three.error = None
        await made.mirror.reach(made.append())
        assert keys(made.replicas.one) == ["2-2", "3-5"] == keys(made.replicas.three)


# ---- behind


@in_virtual_time
async def test_what_nobody_waits_for_is_put_by_the_keeper_soon_and_together() -> None:
    async with mirroring(log_of(2, mirrored=2)) as made:
        made.append(5)
        await trio.sleep(3 * GATHER_SECONDS)
        assert keys(made.replicas.one) == []
        made.keeper = True
        await trio.sleep(GATHER_SECONDS + 0.01)
        assert keys(made.replicas.one) == ["3-7"]
        await trio.sleep(10 * GATHER_SECONDS)
        assert made.replicas.one.puts == 1


@in_virtual_time
async def test_what_comes_while_something_nobody_waits_for_is_put_gathers_for_the_next_time() -> None:
    async with mirroring(log_of(3, mirrored=3), waits=False) as made:
        made.keeper = True
        for store in made.replicas.all:
            store.put_seconds = 0.1
        for _ in range(200):
            made.append()
            await trio.sleep(0.05)
        await trio.sleep(2 * GATHER_SECONDS)
        assert set(range(4, 204)) == set(held(made.replicas.one))
        assert made.replicas.one.puts <= 200 * 0.05 / GATHER_SECONDS + 1


@in_virtual_time
async def test_what_nobody_waits_for_is_not_asked_of_the_dead_again_and_again() -> None:
    async with mirroring(log_of(1), timeout=5) as made:
        made.keeper = True
        made.replicas.three.error = Unavailable("gone")
        made.append()
        await trio.sleep(20)
        puts = made.replicas.one.puts
        await trio.sleep(100 * RETRY_MAX_SECONDS)
        assert made.replicas.one.puts == puts
        made.replicated.on_returned = lambda replica: made.mirror.wake()
        made.replicas.three.error = None
        await trio.sleep(120)
        assert is_whole(made.replicas.three, made.log)


@in_virtual_time
async def test_at_the_end_nothing_is_left() -> None:
    async with mirroring(log_of(2), waits=False) as made:
        assert not made.mirror.is_finisher
        made.keeper = True
        assert made.mirror.is_finisher
        made.append(3)
        made.keeper = False
        await made.mirror.finish()
        assert is_whole(made.replicas.two, made.log)


# ---- beginning


@in_virtual_time
async def test_a_journal_that_nobody_mirrored_is_mirrored_from_its_beginning() -> None:
    async with mirroring(log_of(300)) as made:
        await made.mirror.reach(made.append())
        assert is_whole(made.replicas.one, made.log)


@in_virtual_time
async def test_word_of_the_mirror_is_found_far_back() -> None:
    log = log_of(500, mirrored=490)
    log.payloads.extend(encode_entry(an_entry(number)) for number in range(501, 601))
    async with mirroring(log) as made:
        await made.mirror.reach(made.append())
        assert keys(made.replicas.one) == ["491-601"]


@in_virtual_time
async def test_a_trimmed_journal_is_mirrored_from_where_it_begins() -> None:
    log = MemoryLog(Position(37))
    log.payloads.extend(encode_entry(an_entry(number)) for number in range(37, 100))
    async with mirroring(log) as made:
        await made.mirror.reach(made.append())
        assert keys(made.replicas.one) == ["37-100"]


@in_virtual_time
async def test_a_mirror_that_is_behind_the_trim_goes_on_behind_it() -> None:
    log = log_of(200, mirrored=20)
    async with mirroring(log) as made:
        await settled()
        assert made.mirror.position == 20
        log.first = Position(81)
        del log.payloads[:80]
        await made.mirror.reach(made.append())
        assert keys(made.replicas.one) == ["81-201"]


@in_virtual_time
async def test_it_begins_when_the_journal_answers_again() -> None:
    async with mirroring(log_of(5, mirrored=5), run=False) as made:
        made.script.add("read", Fault(refused=Unavailable("away")), Fault(refused=Unavailable("away")))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.mirror.run)
            await made.mirror.reach(made.append())
            nursery.cancel_scope.cancel()
        assert keys(made.replicas.one) == ["6-6"]


# ---- at once


class Grown:
    """Replicas beside the journal, which take everything at once as long as they are `willing`."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.willing = True
        self.seconds = 0.0

    def grow(self, old: str | None, new: str, body: bytes) -> list[ReplicaId] | None:
        if not self.willing:
            return None
        self.objects[new] = (self.objects.pop(old) if old else b"") + body
        return [ReplicaId(1)]


@in_virtual_time
async def test_replicas_beside_the_journal_take_it_at_once_and_let_one_object_grow() -> None:
    async with mirroring(log_of(3, mirrored=3)) as made:
        beside = Grown()
        made.mirror.grow = beside.grow
        await made.mirror.reach(made.append())
        await settled()
        for _ in range(5):
            last = made.append()
            with trio.CancelScope() as scope:
                scope.cancel()
                await made.mirror.reach(last)
        assert (list(beside.objects), made.replicas.one.puts) == ([mirror_key(Position(4), Position(9))], 0)
        made.append(mirrored=10)
        await made.mirror.reach(made.append())
        assert list(beside.objects)[1:] == [mirror_key(Position(11), Position(11))]


@in_virtual_time
async def test_where_one_refuses_all_are_asked_the_long_way() -> None:
    async with mirroring(log_of(3, mirrored=3)) as made:
        beside = Grown()
        made.mirror.grow = beside.grow
        await made.mirror.reach(made.append())
        beside.willing = False
        await made.mirror.reach(made.append())
        beside.willing = True
        await made.mirror.reach(made.append())
        assert keys(made.replicas.three) == ["5-5"]
        assert list(beside.objects) == [mirror_key(Position(4), Position(4)), mirror_key(Position(6), Position(6))]


@in_virtual_time
async def test_a_slow_disk_is_left_to_threads_for_a_while() -> None:
    async with mirroring(log_of(1, mirrored=1)) as made:
        times = iter(number * 3 * AT_ONCE_SECONDS for number in range(10_000))
        beside, boottime = Grown(), made.replicas.runtime.boottime
        made.mirror.grow = beside.grow
        await made.mirror.reach(made.append())
        made.replicas.runtime.boottime = lambda: boottime() + next(times)  # type: ignore[method-assign]
        for _ in range(30):
            await made.mirror.reach(made.append())
        made.replicas.runtime.boottime = boottime  # type: ignore[method-assign]
        slow = len(keys(made.replicas.one))
        assert slow > 0
        await trio.sleep(DISTRUST_SECONDS + 100)
        await made.mirror.reach(made.append())
        assert len(keys(made.replicas.one)) == slow
