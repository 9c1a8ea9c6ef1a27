"""Reads of several replicas: who is asked first, when the next one is asked too, and what becomes of who was slower."""

import pytest
import trio

from agentfs.chunks.hedging import HEDGED_SHARE, HEDGES_MAX, LAST_RESORT_SECONDS, VERY_LATE_SECONDS
from agentfs.chunks.latency import LATE_FLOOR_SECONDS, LATE_UNKNOWN_SECONDS, STALE_SECONDS
from agentfs.chunks.replica_lane import silence_seconds
from agentfs.chunks.replicated import Replicated
from agentfs.model.errors import Denied, NotFound, Unavailable
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.faulty_replicas import BODY, KEY, ONE, Faulty, Replicas, last_errors, settled

FAR_SECONDS = 0.01


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


async def measure(store: Replicated, replicas: Replicas, reads: int = 20) -> None:
    """Put the segment, and let everybody be measured: the first is nearest, at 5 ms, the others are at 10 ms."""
    await store.put(KEY, BODY)
    replicas.one.get_seconds, replicas.two.get_seconds, replicas.three.get_seconds = 0.005, FAR_SECONDS, FAR_SECONDS
    for _ in range(reads):
        await store.get(KEY, 0, 50)
    assert (replicas.one.gets, replicas.two.gets, replicas.three.gets) == (reads - 2, 1, 1)


async def seconds_of_a_read(store: Replicated) -> float:
    """How long the next read takes."""
    began = trio.current_time()
    assert await store.get(KEY, 0, 50) == BODY[:50]
    return trio.current_time() - began


@in_virtual_time
async def test_a_late_answer_is_hedged_and_the_loser_is_taken_back(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        replicas.one.get_seconds = 9.0
        assert await seconds_of_a_read(store) == pytest.approx(LATE_FLOOR_SECONDS + FAR_SECONDS)
        await settled()
        assert replicas.one.interrupted == 1
        assert last_errors(store) == {}


@in_virtual_time
async def test_late_is_what_the_replica_itself_was_seldom(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        replicas.two.get_seconds = replicas.three.get_seconds = 0.2
        for number in range(200):
            replicas.one.get_seconds = 0.101 + number % 20 / 1000
            await store.get(KEY, 0, 50)
        before = replicas.two.gets + replicas.three.gets
        replicas.one.get_seconds = 9.0
        assert await seconds_of_a_read(store) == pytest.approx(0.120 + 0.2)
        assert replicas.two.gets + replicas.three.gets == before + 1


@in_virtual_time
async def test_the_first_answers_of_all_are_waited_for_a_quarter_of_a_second(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one.freeze()
        assert await seconds_of_a_read(store) == pytest.approx(LATE_UNKNOWN_SECONDS)


@in_virtual_time
async def test_without_hedging_a_slow_answer_is_waited_for(replicas: Replicas) -> None:
    async with replicas.open("sync", hedging=False) as store:
        await measure(store, replicas)
        replicas.one.get_seconds = 9.0
        assert await seconds_of_a_read(store) == pytest.approx(9.0)
        assert replicas.two.gets + replicas.three.gets == 2


@in_virtual_time
async def test_what_is_slow_everywhere_is_not_asked_twice_as_much(replicas: Replicas) -> None:
    reads = 300
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        before = sum(each.gets for each in replicas.all)
        for each in replicas.all:
            # Every answer is later than all before it.
            each.get_seconds = 0.5
        for _ in range(reads):
            for each in replicas.all:
                each.get_seconds *= 1.004
            await store.get(KEY, 0, 50)
        asked = sum(each.gets for each in replicas.all) - before
        assert asked <= reads * (1 + HEDGED_SHARE) + HEDGES_MAX


@pytest.mark.parametrize("stubborn", [False, True])
@in_virtual_time
async def test_a_replica_that_falls_silent_costs_one_short_wait(replicas: Replicas, stubborn: bool) -> None:
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        replicas.one.stubborn = stubborn
        gate = replicas.one.freeze()
        seconds = [await seconds_of_a_read(store) for _ in range(50)]
        gate.set()
        assert max(seconds) < 0.05
        assert sum(each > FAR_SECONDS * 1.01 for each in seconds) <= 3
        assert replicas.one.gets <= 18 + 3


@in_virtual_time
async def test_very_late_answers_are_hedged_whatever_it_costs(replicas: Replicas) -> None:
    seconds: list[float] = []
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        replicas.one.freeze()

        async def read() -> None:
            seconds.append(await seconds_of_a_read(store))

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(read)
    quick = [each for each in seconds if each < VERY_LATE_SECONDS]
    assert len(quick) == HEDGES_MAX
    assert max(seconds) == pytest.approx(VERY_LATE_SECONDS + FAR_SECONDS)


@in_virtual_time
async def test_nobody_hedges_to_a_replica_that_is_down_before_silence_is_likely(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        for each in (replicas.two, replicas.three):
            each.error = Denied("forbidden")
        with pytest.raises(Denied):
            await store.put("other", b"x")
        replicas.one.get_seconds = 1.5
        assert await seconds_of_a_read(store) == pytest.approx(1.5)
        assert replicas.two.gets + replicas.three.gets == 2


@in_virtual_time
async def test_a_replica_that_became_near_again_is_found(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        replicas.one.get_seconds = 5.0
        for _ in range(20):
            await store.get(KEY, 0, 50)
        replicas.one.get_seconds = 0.005
        before = replicas.one.gets
        for _ in range(20):
            await store.get(KEY, 0, 50)
        assert replicas.one.gets == before
        await trio.sleep(STALE_SECONDS)
        for _ in range(20):
            await store.get(KEY, 0, 50)
        assert replicas.one.gets >= before + 17


@in_virtual_time
async def test_looking_whether_a_far_replica_is_nearer_costs_little(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        replicas.two.get_seconds = replicas.three.get_seconds = 3.0
        for _ in range(100):
            await trio.sleep(STALE_SECONDS / 10)
            assert await seconds_of_a_read(store) <= LATE_FLOOR_SECONDS + 0.005 + 1e-6
        assert 10 <= replicas.two.gets + replicas.three.gets <= 24


@in_virtual_time
async def test_near_for_small_reads_may_be_far_for_large_ones(replicas: Replicas) -> None:
    class Narrow(Faulty):
        """Answers soon, and sends slowly."""

        async def get(self, key: str, start: int = 0, length: int | None = None, *, check: object = None) -> bytes:
            self.get_seconds = 0.001 + (0.2 if length is None else 0.0)
            return await super().get(key, start, length)

    narrow = replicas.one = Narrow()
    replicas.stores[ONE] = narrow
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.two.get_seconds = replicas.three.get_seconds = 0.015
        for _ in range(10):
            await store.get(KEY, 0, 10)
            await store.get(KEY)
        before = narrow.gets, replicas.two.gets + replicas.three.gets
        for _ in range(10):
            await store.get(KEY, 0, 10)
        assert (narrow.gets, replicas.two.gets + replicas.three.gets) == (before[0] + 10, before[1])
        for _ in range(10):
            await store.get(KEY)
        assert (narrow.gets, replicas.two.gets + replicas.three.gets) == (before[0] + 10, before[1] + 10)


@in_virtual_time
async def test_when_nobody_answers_a_read_ends(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        for each in replicas.all:
            each.freeze()
        with pytest.raises(Unavailable, match=r"replica 1: no answer in .*; replica 2: no answer"):
            await store.get(KEY, 0, 50)
        first = trio.current_time()
        assert first < silence_seconds(50) + 2 * VERY_LATE_SECONDS + 1
        # By now they are down, and get less time, though more than none.
        for _ in range(3):
            with pytest.raises(Unavailable):
                await store.get(KEY, 0, 50)
        began = trio.current_time()
        with pytest.raises(Unavailable):
            await store.get(KEY, 0, 50)
        assert trio.current_time() - began < LAST_RESORT_SECONDS + 2 * VERY_LATE_SECONDS + 1


@in_virtual_time
async def test_an_object_that_nobody_has_is_not_found_at_once(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        began = trio.current_time()
        with pytest.raises(NotFound):
            await store.get("nothing", 0, 50)
        assert trio.current_time() - began < 0.1


@in_virtual_time
async def test_a_read_that_is_cancelled_asks_nobody_any_more(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await measure(store, replicas)
        for each in replicas.all:
            each.freeze()
        with trio.move_on_after(1.0):
            await store.get(KEY, 0, 50)
        await settled()
        assert [each.interrupted for each in replicas.all] == [1, 1, 1]
        assert {health.state for health in store.health().values()} == {"up"}


@in_virtual_time
async def test_a_cancelled_read_does_not_wait_for_a_thread(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        gates = [each.freeze() for each in replicas.all]
        for each in replicas.all:
            each.stubborn = True
        began = trio.current_time()
        with trio.move_on_after(1.0):
            await store.get(KEY)
        assert trio.current_time() - began == pytest.approx(1.0)
        for gate in gates:
            gate.set()
