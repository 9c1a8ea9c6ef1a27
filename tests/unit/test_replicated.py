"""Replication: how many replicas a put waits for, what a get does when some are wrong, and what is mended behind."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from agentfs.chunks import replicated as module
from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.replicated import STRAGGLERS_MAX, Replicated, open_replicated
from agentfs.chunks.segment import SegmentBuilder
from agentfs.model.errors import AgentfsError, Corrupt, Denied, Invalid, NoSpace, NotFound, Unavailable
from agentfs.model.ids import ReplicaId
from agentfs.runtime import SystemRuntime

BOUND_SECONDS = 60
ONE, TWO, THREE = ReplicaId(1), ReplicaId(2), ReplicaId(3)


@pytest.fixture(autouse=True)
async def bound() -> AsyncIterator[None]:
    with trio.fail_after(BOUND_SECONDS):
        yield


class Clock(SystemRuntime):
    """Time that passes only when a store says how long it took."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 1000.0

    def boottime(self) -> float:
        return self.seconds


class Faulty(MemoryStore):
    """A store that fails, or waits, or takes its time, as it is told."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.error: AgentfsError | None = None
        self.gate: trio.Event | None = None
        self.get_seconds = 0.0
        self.gets = 0
        self.puts = 0
        self.closed = False

    async def put(self, key: str, body: bytes) -> None:
        self.puts += 1
        if self.gate is not None:
            await self.gate.wait()
        self._maybe_fail()
        await super().put(key, body)

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        self.gets += 1
        self.clock.seconds += self.get_seconds
        self._maybe_fail()
        return await super().get(key, start, length, check=check)

    async def size(self, key: str) -> int:
        self._maybe_fail()
        return await super().size(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self._maybe_fail()
        async for info in super().list(prefix):
            yield info

    async def delete(self, key: str) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self._maybe_fail()
        await super().delete(key)

    async def capacity(self) -> Capacity | None:
        self._maybe_fail()
        return await super().capacity()

    async def aclose(self) -> None:
        self.closed = True

    def damage(self, key: str) -> None:
        body = self._objects[key]
        self._objects[key] = bytes([body[0] ^ 1]) + body[1:]

    def holds(self, key: str) -> bytes | None:
        return self._objects.get(key)

    def _maybe_fail(self) -> None:
        if self.error is not None:
            raise self.error


class Set:
    """Three faulty replicas, and the store over them once it is open."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.one, self.two, self.three = (Faulty(self.clock) for _ in range(3))
        self.stores: dict[ReplicaId, ChunkStore] = {ONE: self.one, TWO: self.two, THREE: self.three}

    def open(self, replication: str = "quorum") -> Any:
        return open_replicated(self.stores, replication=replication, runtime=self.clock)


@pytest.fixture
def replicas() -> Set:
    return Set()


def a_segment() -> tuple[str, bytes]:
    builder = SegmentBuilder()
    builder.add(b"what a file holds " * 100)
    segment = builder.finish()
    return segment.key, segment.body


KEY, BODY = a_segment()


def right(body: bytes) -> bool:
    return body == BODY


async def settled() -> None:
    """Until every task waits for something."""
    await trio.testing.wait_all_tasks_blocked()


# ---- put


async def test_sync_waits_for_all(replicas: Set) -> None:
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
async def test_a_put_returns_when_enough_have_it_and_the_rest_follows(replicas: Set, replication: str, slow: int) -> None:
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


async def test_the_end_waits_for_stragglers_and_closes_the_replicas(replicas: Set) -> None:
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


async def test_placed_forgets(replicas: Set) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        assert store.placed(KEY) == [ONE, TWO, THREE]
        assert store.placed(KEY) == []
        assert store.placed("never/put") == []


async def test_the_record_of_placements_is_bounded(replicas: Set, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLACEMENTS_MAX", 2)
    async with replicas.open("sync") as store:
        for key in ("a", "b", "c"):
            await store.put(key, b"x")
        assert [bool(store.placed(key)) for key in ("a", "b", "c")] == [False, True, True]


async def test_a_replica_that_is_down_does_not_stop_a_quorum(replicas: Set) -> None:
    replicas.two.error = Unavailable("no route to it")
    with structlog.testing.capture_logs() as logs:
        async with replicas.open() as store:
            await store.put(KEY, BODY)
            await settled()
            assert store.placed(KEY) == [ONE, THREE]
            assert store.last_errors() == {TWO: "no route to it"}
            replicas.two.error = None
            await store.put("other", b"x")
            await settled()
            assert store.last_errors() == {}
    assert [(log["key"], log["replica"], log["reason"]) for log in logs] == [(KEY, TWO, "no route to it")]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([Unavailable("away"), NoSpace("full"), Denied("forbidden")], NoSpace),
        ([Unavailable("away"), Denied("forbidden"), Unavailable("away")], Denied),
        ([Unavailable("away"), Unavailable("away"), Unavailable("lost")], Unavailable),
    ],
)
async def test_a_put_that_no_replica_takes_says_the_most_telling_reason(
    replicas: Set, errors: list[AgentfsError], expected: type[AgentfsError]
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


async def test_a_put_fails_as_soon_as_too_few_are_left(replicas: Set) -> None:
    replicas.one.error = NoSpace("full")
    replicas.two.error = NoSpace("full")
    replicas.three.gate = trio.Event()
    async with replicas.open("quorum") as store:
        with pytest.raises(NoSpace):
            await store.put(KEY, BODY)
        replicas.three.gate.set()


async def test_a_failed_put_reports_no_stragglers(replicas: Set) -> None:
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


async def test_a_cancelled_put_goes_on_behind(replicas: Set) -> None:
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


async def test_a_replica_that_hangs_holds_a_bounded_number_of_objects(
    replicas: Set, autojump_clock: trio.testing.MockClock
) -> None:
    replicas.three.gate = trio.Event()
    async with replicas.open() as store:
        for number in range(STRAGGLERS_MAX + 20):
            await store.put(f"key/{number}", b"x")
        assert replicas.three.puts == STRAGGLERS_MAX
        assert "outstanding" in store.last_errors()[THREE]
        # It costs patience once, not with every put: the clock is virtual and began at 0.
        assert trio.current_time() == pytest.approx(module.PATIENCE_SECONDS)
        replicas.three.gate.set()
        await settled()
        await store.put("after", b"x")
        await settled()
        assert replicas.three.holds("after") == b"x"
        assert store.last_errors() == {}


async def test_a_slow_replica_slows_its_writers_and_loses_nothing(replicas: Set) -> None:
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


async def test_the_nearest_is_asked(replicas: Set) -> None:
    replicas.one.get_seconds, replicas.two.get_seconds, replicas.three.get_seconds = 0.3, 0.1, 0.2
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
        assert (replicas.one.gets, replicas.two.gets, replicas.three.gets) == (1, 7, 5)


@pytest.mark.parametrize("error", [Unavailable("away"), Denied("forbidden"), Corrupt("wrong"), NotFound("none")])
async def test_a_get_fails_over_whatever_the_reason(replicas: Set, error: AgentfsError) -> None:
    async with replicas.open("sync") as store:
        await store.put("plain", BODY)
        replicas.one.error = error
        with structlog.testing.capture_logs() as logs:
            assert await store.get("plain") == BODY
        assert [(log["key"], log["replica"], log["reason"]) for log in logs] == [("plain", ONE, str(error))]


async def test_a_replica_that_did_not_answer_is_asked_last_for_a_while(replicas: Set) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one.error = Unavailable("away")
        for _ in range(5):
            await store.get(KEY)
        assert replicas.one.gets == 1
        replicas.one.error = None
        replicas.clock.seconds += module.AVOID_SECONDS
        await store.get(KEY)
        assert replicas.one.gets == 2
        assert store.last_errors() == {}


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([NotFound("none"), NotFound("none"), NotFound("none")], NotFound),
        ([NotFound("none"), Unavailable("away"), NotFound("none")], Unavailable),
        ([NotFound("none"), Unavailable("away"), Corrupt("wrong")], Corrupt),
        ([Denied("no"), Denied("no"), Denied("no")], Unavailable),
    ],
)
async def test_what_every_replica_failing_means(
    replicas: Set, errors: list[AgentfsError], expected: type[AgentfsError]
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
async def test_a_wrong_copy_is_read_elsewhere_and_repaired(replicas: Set, fault: str) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        if fault == "damaged":
            replicas.one.damage(KEY)
        else:
            replicas.one._objects.clear()
        with structlog.testing.capture_logs() as logs:
            assert await store.get(KEY, check=right) == BODY
            await settled()
        assert replicas.one.holds(KEY) == BODY
        assert [log["event"] for log in logs] == ["replica failed", "replica repaired"]


async def test_a_part_that_is_right_does_not_spread_damage_elsewhere_in_the_object(replicas: Set) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        for each in (replicas.two, replicas.three):
            each.damage(KEY)
        replicas.one._objects.clear()
        assert await store.get(KEY, 10, 5) == BODY[10:15]
        await settled()
        assert replicas.one.holds(KEY) is None
        assert store.last_errors().keys() == {TWO}


async def test_objects_that_are_not_segments_are_not_repaired(replicas: Set) -> None:
    async with replicas.open("sync") as store:
        await store.put("journal/01", b"entry")
        replicas.one._objects.clear()
        assert await store.get("journal/01") == b"entry"
        await settled()
        assert replicas.one.holds("journal/01") is None


async def test_many_readers_cause_one_repair(replicas: Set) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one._objects.clear()
        before = replicas.one.puts
        replicas.one.gate = trio.Event()
        for _ in range(5):
            # Nobody was measured, since no time passes, so that the first is asked each time.
            assert await store.get(KEY) == BODY
        replicas.one.gate.set()
        await settled()
        assert replicas.one.puts == before + 1
        assert replicas.one.holds(KEY) == BODY


async def test_a_repair_that_fails_is_reported_and_tried_again_by_the_next_reader(replicas: Set) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one.error = NotFound("none")
        replicas.two.error = Unavailable("away")
        await store.get(KEY)
        replicas.one.error = NoSpace("full")
        await settled()
        assert store.last_errors()[ONE] == "full"
        replicas.one.error = None
        replicas.one._objects.clear()
        await store.get(KEY)
        await settled()
        assert replicas.one.holds(KEY) == BODY
        assert ONE not in store.last_errors()


async def test_the_end_does_not_wait_for_repairs(replicas: Set) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one._objects.clear()
        replicas.one.gate = trio.Event()
        await store.get(KEY)
        await settled()
    assert replicas.one.holds(KEY) is None
    assert replicas.one.closed


# ---- the rest


async def test_a_listing_is_of_all_replicas_together(replicas: Set) -> None:
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


async def test_a_delete_tries_every_replica_and_waits_for_all(replicas: Set) -> None:
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


async def test_size_comes_from_whoever_has_it(replicas: Set) -> None:
    async with replicas.open() as store:
        await replicas.three.put(KEY, BODY)
        replicas.one.error = Unavailable("away")
        assert await store.size(KEY) == len(BODY)


async def test_the_replicas_own_stores(replicas: Set) -> None:
    async with replicas.open() as store:
        assert store.stores == replicas.stores


async def test_an_error_in_the_block_comes_out_as_it_is(replicas: Set) -> None:
    async def use(store: Replicated) -> None:
        await store.get(KEY)

    with pytest.raises(NotFound):
        async with replicas.open() as store:
            await use(store)
    assert replicas.one.closed


@pytest.mark.parametrize("replication", ["", "two", "SYNC"])
async def test_an_unknown_replication_is_invalid(replicas: Set, replication: str) -> None:
    with pytest.raises(Invalid, match="sync, quorum or async"):
        async with replicas.open(replication):
            pass


async def test_no_replicas_are_invalid() -> None:
    with pytest.raises(Invalid):
        async with open_replicated({}, replication="sync", runtime=SystemRuntime()):
            pass
