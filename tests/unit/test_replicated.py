"""Replication: how many replicas a put waits for, what a get does when some are wrong, and what is mended behind."""

import pytest
import structlog
import trio

from agentfs.chunks import replicated as module
from agentfs.chunks.contract import Capacity, ChunkStore
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.replica_lane import STRAGGLERS_MAX
from agentfs.chunks.replicated import Replicated, open_replicated
from agentfs.model.errors import AgentfsError, Corrupt, Denied, Invalid, NoSpace, NotFound, Unavailable
from agentfs.model.ids import ReplicaId
from agentfs.runtime import SystemRuntime
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.faulty_replicas import BODY, KEY, ONE, THREE, TWO, Replicas, last_errors, right, settled


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


# ---- put


@in_virtual_time
async def test_sync_waits_for_all(replicas: Replicas) -> None:
    replicas.three.gate = trio.Event()
    async with replicas.open("sync") as store, trio.open_nursery() as nursery:
        done = trio.Event()

        async def put() -> None:
            await store.put(KEY, BODY)
            done.set()

        nursery.start_soon(put)
        await settled()
        assert not done.is_set()
        replicas.three.gate.set()
        await done.wait()
        assert store.placed(KEY) == [ONE, TWO, THREE]


@pytest.mark.parametrize(("replication", "slow"), [("quorum", 1), ("async", 2)])
@in_virtual_time
async def test_a_put_returns_when_enough_have_it_and_the_rest_follows(replicas: Replicas, replication: str, slow: int) -> None:
    gate = trio.Event()
    for each in [replicas.three, replicas.two][:slow]:
        each.gate = gate
    late: list[tuple[str, ReplicaId]] = []
    async with replicas.open(replication) as store:
        store.on_straggler = lambda key, replica: late.append((key, replica))
        await store.put(KEY, BODY)
        assert store.placed(KEY) == [ONE, TWO, THREE][: 3 - slow]
        assert late == []
        gate.set()
        await settled()
        assert sorted(late) == [(KEY, replica) for replica in [ONE, TWO, THREE][3 - slow :]]
        assert replicas.three.holds(KEY) == BODY


@in_virtual_time
async def test_the_end_waits_for_stragglers_and_closes_the_replicas(replicas: Replicas) -> None:
    replicas.three.gate = gate = trio.Event()
    ended = trio.Event()

    async def run() -> None:
        async with replicas.open() as store:
            await store.put(KEY, BODY)
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await settled()
        assert not ended.is_set()
        assert not replicas.three.closed
        gate.set()
        await ended.wait()
    assert replicas.three.holds(KEY) == BODY
    assert replicas.three.closed


@in_virtual_time
async def test_placed_forgets(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        assert store.placed(KEY) == [ONE, TWO, THREE]
        assert store.placed(KEY) == []
        assert store.placed("never/put") == []


@in_virtual_time
async def test_the_record_of_placements_is_bounded(replicas: Replicas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLACEMENTS_MAX", 2)
    async with replicas.open("sync") as store:
        for key in ("a", "b", "c"):
            await store.put(key, b"x")
        assert [bool(store.placed(key)) for key in ("a", "b", "c")] == [False, True, True]


@in_virtual_time
async def test_a_replica_that_is_down_does_not_stop_a_quorum(replicas: Replicas) -> None:
    replicas.two.error = Unavailable("no route to it")
    with structlog.testing.capture_logs() as logs:
        async with replicas.open() as store:
            await store.put(KEY, BODY)
            await settled()
            assert store.placed(KEY) == [ONE, THREE]
            assert last_errors(store) == {TWO: "no route to it"}
            replicas.two.error = None
            await store.put("other", b"x")
            await settled()
            assert last_errors(store) == {}
    assert [(log["key"], log["replica"], log["reason"]) for log in logs] == [(KEY, TWO, "no route to it")]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([Unavailable("away"), NoSpace("full"), Denied("forbidden")], NoSpace),
        ([Unavailable("away"), Denied("forbidden"), Unavailable("away")], Denied),
        ([Unavailable("away"), Unavailable("away"), Unavailable("lost")], Unavailable),
    ],
)
@in_virtual_time
async def test_a_put_that_no_replica_takes_says_the_most_telling_reason(
    replicas: Replicas, errors: list[AgentfsError], expected: type[AgentfsError]
) -> None:
    for each, error in zip((replicas.one, replicas.two, replicas.three), errors, strict=True):
        each.error = error
    async with replicas.open("async") as store:
        with pytest.raises(AgentfsError) as caught:
            await store.put(KEY, BODY)
        assert store.placed(KEY) == []
    assert type(caught.value) is expected
    for part in (KEY, *(f"replica {number}: {error}" for number, error in enumerate(errors, start=1))):
        assert part in str(caught.value)


@in_virtual_time
async def test_a_put_fails_as_soon_as_too_few_are_left(replicas: Replicas) -> None:
    replicas.one.error = NoSpace("full")
    replicas.two.error = NoSpace("full")
    replicas.three.gate = trio.Event()
    async with replicas.open("quorum") as store:
        with pytest.raises(NoSpace):
            await store.put(KEY, BODY)
        replicas.three.gate.set()


@in_virtual_time
async def test_a_failed_put_reports_no_stragglers(replicas: Replicas) -> None:
    replicas.one.error = Unavailable("away")
    replicas.three.gate = trio.Event()
    late: list[ReplicaId] = []
    async with replicas.open("sync") as store:
        store.on_straggler = lambda key, replica: late.append(replica)
        with pytest.raises(Unavailable):
            await store.put(KEY, BODY)
        replicas.three.gate.set()
        await settled()
        assert late == []
        assert store.placed(KEY) == []


@in_virtual_time
async def test_a_cancelled_put_goes_on_behind(replicas: Replicas) -> None:
    replicas.one.gate = trio.Event()
    async with replicas.open("sync") as store:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.put, KEY, BODY)
                await settled()
                scope.cancel()
        replicas.one.gate.set()
        await settled()
        assert replicas.one.holds(KEY) == BODY


@in_virtual_time
async def test_a_replica_that_hangs_holds_a_bounded_number_of_objects(replicas: Replicas) -> None:
    replicas.three.gate = trio.Event()
    async with replicas.open() as store:
        for number in range(STRAGGLERS_MAX + 20):
            await store.put(f"key/{number}", b"x")
        assert replicas.three.puts == STRAGGLERS_MAX
        assert "outstanding" in last_errors(store)[THREE]
        # It costs patience once, not with every put: the clock is virtual and began at 0.
        assert trio.current_time() == pytest.approx(module.PATIENCE_SECONDS)
        replicas.three.gate.set()
        await settled()
        await store.put("after", b"x")
        await settled()
        assert replicas.three.holds("after") == b"x"
        assert last_errors(store) == {}


@in_virtual_time
async def test_a_slow_replica_slows_its_writers_and_loses_nothing(replicas: Replicas) -> None:
    replicas.three.gate = trio.Event()
    async with replicas.open() as store, trio.open_nursery() as nursery:
        for number in range(STRAGGLERS_MAX):
            await store.put(f"key/{number}", b"x")
        nursery.start_soon(store.put, "next", b"x")
        await settled()
        assert replicas.one.holds("next") is None
        replicas.three.gate.set()
        await settled()
        assert replicas.one.holds("next") == replicas.three.holds("next") == b"x"


# ---- get


@in_virtual_time
async def test_the_nearest_is_asked(replicas: Replicas) -> None:
    replicas.one.get_seconds, replicas.two.get_seconds, replicas.three.get_seconds = 0.03, 0.01, 0.02
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        for _ in range(3):
            await store.get(KEY)
        assert (replicas.one.gets, replicas.two.gets, replicas.three.gets) == (1, 1, 1)
        for _ in range(5):
            await store.get(KEY)
        assert (replicas.one.gets, replicas.two.gets, replicas.three.gets) == (1, 6, 1)
        replicas.two.get_seconds = 5.0
        for _ in range(5):
            await store.get(KEY)
        # The one late answer was hedged.
        assert (replicas.one.gets, replicas.two.gets, replicas.three.gets) == (1, 7, 6)


@pytest.mark.parametrize("error", [Unavailable("away"), Denied("forbidden"), Corrupt("wrong"), NotFound("none")])
@in_virtual_time
async def test_a_get_fails_over_whatever_the_reason(replicas: Replicas, error: AgentfsError) -> None:
    async with replicas.open("sync") as store:
        await store.put("plain", BODY)
        replicas.one.error = error
        with structlog.testing.capture_logs() as logs:
            assert await store.get("plain") == BODY
        failed = [log for log in logs if log["event"] == "replica failed"]
        assert [(log["key"], log["replica"], log["reason"]) for log in failed] == [("plain", ONE, str(error))]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([NotFound("none"), NotFound("none"), NotFound("none")], NotFound),
        ([NotFound("none"), Unavailable("away"), NotFound("none")], Unavailable),
        ([NotFound("none"), Unavailable("away"), Corrupt("wrong")], Corrupt),
        ([Denied("no"), Denied("no"), Denied("no")], Unavailable),
    ],
)
@in_virtual_time
async def test_what_every_replica_failing_means(
    replicas: Replicas, errors: list[AgentfsError], expected: type[AgentfsError]
) -> None:
    for each, error in zip((replicas.one, replicas.two, replicas.three), errors, strict=True):
        each.error = error
    async with replicas.open() as store:
        with pytest.raises(expected) as caught:
            await store.get(KEY)
    assert type(caught.value) is expected
    for part in (KEY, *(f"replica {number}: {error}" for number, error in enumerate(errors, start=1))):
        assert part in str(caught.value)


# ---- repair


@pytest.mark.parametrize("fault", ["missing", "damaged"])
@in_virtual_time
async def test_a_wrong_copy_is_read_elsewhere_and_repaired(replicas: Replicas, fault: str) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        if fault == "damaged":
            replicas.one.damage(KEY)
        else:
            replicas.one.lose()
        with structlog.testing.capture_logs() as logs:
            assert await store.get(KEY, check=right) == BODY
            await settled()
        assert replicas.one.holds(KEY) == BODY
        assert [log["event"] for log in logs] == ["replica failed", "replica repaired"]


@in_virtual_time
async def test_a_part_that_is_right_does_not_spread_damage_elsewhere_in_the_object(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        for each in (replicas.two, replicas.three):
            each.damage(KEY)
        replicas.one.lose()
        assert await store.get(KEY, 10, 5) == BODY[10:15]
        await settled()
        assert replicas.one.holds(KEY) is None
        assert last_errors(store).keys() == {TWO, THREE}


@in_virtual_time
async def test_objects_that_are_not_segments_are_not_repaired(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put("journal/01", b"entry")
        replicas.one.lose()
        assert await store.get("journal/01") == b"entry"
        await settled()
        assert replicas.one.holds("journal/01") is None


@in_virtual_time
async def test_many_readers_cause_one_repair(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one.lose()
        before = replicas.one.puts
        replicas.one.gate = trio.Event()
        for _ in range(5):
            # Nobody was measured, since no time passes, so that the first is asked each time.
            assert await store.get(KEY) == BODY
        replicas.one.gate.set()
        await settled()
        assert replicas.one.puts == before + 1
        assert replicas.one.holds(KEY) == BODY


@in_virtual_time
async def test_a_repair_that_fails_is_reported_and_tried_again_by_the_next_reader(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one.error = NotFound("none")
        replicas.two.error = Unavailable("away")
        await store.get(KEY)
        replicas.one.error = NoSpace("full")
        await settled()
        assert last_errors(store)[ONE] == "full"
        replicas.one.error = None
        replicas.one.lose()
        await store.get(KEY)
        await settled()
        assert replicas.one.holds(KEY) == BODY
        assert ONE not in last_errors(store)


@in_virtual_time
async def test_the_end_does_not_wait_for_repairs(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one.lose()
        replicas.one.gate = trio.Event()
        await store.get(KEY)
        await settled()
    assert replicas.one.holds(KEY) is None
    assert replicas.one.closed


# ---- the rest


@in_virtual_time
async def test_a_listing_is_of_all_replicas_together(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await replicas.one.put("a", b"1")
        await replicas.two.put("b", b"2")
        await replicas.three.put("a", b"1")
        await replicas.three.put("c", b"3")
        assert [info.key async for info in store.list("")] == ["a", "b", "c"]
        replicas.two.error = Unavailable("away")
        assert [info.key async for info in store.list("")] == ["a", "c"]
        replicas.one.error = replicas.three.error = Unavailable("away")
        with pytest.raises(Unavailable):
            [info async for info in store.list("")]


@in_virtual_time
async def test_a_delete_tries_every_replica_and_waits_for_all(replicas: Replicas) -> None:
    async with replicas.open("sync") as store, trio.open_nursery() as nursery:
        await store.put(KEY, BODY)
        replicas.one.error = Unavailable("away")
        replicas.three.gate = trio.Event()
        failed = trio.Event()

        async def delete() -> None:
            with pytest.raises(Unavailable, match="replica 1"):
                await store.delete(KEY)
            failed.set()

        nursery.start_soon(delete)
        await settled()
        assert not failed.is_set()
        replicas.three.gate.set()
        await failed.wait()
        assert [each.holds(KEY) for each in (replicas.one, replicas.two, replicas.three)] == [BODY, None, None]


@in_virtual_time
async def test_capacity_is_that_of_the_smallest() -> None:
    class Sized(MemoryStore):
        def __init__(self, free: int | None) -> None:
            super().__init__()
            self.free = free

        async def capacity(self) -> Capacity | None:
            return None if self.free is None else Capacity(100, self.free)

    stores: dict[ReplicaId, ChunkStore] = {ONE: Sized(50), TWO: Sized(20), THREE: Sized(None)}
    async with open_replicated(stores, replication="sync", runtime=SystemRuntime()) as store:
        assert await store.capacity() == Capacity(100, 20)


@in_virtual_time
async def test_size_comes_from_whoever_has_it(replicas: Replicas) -> None:
    async with replicas.open() as store:
        await replicas.three.put(KEY, BODY)
        replicas.one.error = Unavailable("away")
        assert await store.size(KEY) == len(BODY)


@in_virtual_time
async def test_the_replicas_own_stores(replicas: Replicas) -> None:
    async with replicas.open() as store:
        assert store.stores == replicas.stores


@in_virtual_time
async def test_an_error_in_the_block_comes_out_as_it_is(replicas: Replicas) -> None:
    async def use(store: Replicated) -> None:
        await store.get(KEY)

    with pytest.raises(NotFound):
        async with replicas.open() as store:
            await use(store)
    assert replicas.one.closed


@pytest.mark.parametrize("replication", ["", "two", "SYNC"])
@in_virtual_time
async def test_an_unknown_replication_is_invalid(replicas: Replicas, replication: str) -> None:
    with pytest.raises(Invalid, match="sync, quorum or async"):
        async with replicas.open(replication):
            pass


@in_virtual_time
async def test_no_replicas_are_invalid() -> None:
    with pytest.raises(Invalid):
        async with open_replicated({}, replication="sync", runtime=SystemRuntime()):
            pass
