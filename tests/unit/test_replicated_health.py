"""Replicas that fail for a while: they are left alone, probed, and taken back; and filled with what they lack."""

import pytest
import structlog
import trio

from agentfs.chunks.breaker import FAILURES_MAX
from agentfs.model.errors import AgentfsError, Corrupt, Denied, Invalid, NoSpace, NotFound, Unavailable
from agentfs.model.ids import ReplicaId
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.faulty_replicas import BODY, KEY, ONE, THREE, TWO, Replicas, a_segment, last_errors, settled

AWAY = Unavailable("away")


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


# ---- down, and up again


@in_virtual_time
async def test_a_replica_that_keeps_failing_is_left_alone(replicas: Replicas) -> None:
    async with replicas.open() as store:
        replicas.two.error = AWAY
        for number in range(10):
            await store.put(f"key/{number}", b"x")
            await settled()
        assert replicas.two.puts == FAILURES_MAX
        health = store.health()[TWO]
        assert (health.state, health.last_error) == ("down", "away")
        assert last_errors(store) == {TWO: "away"}


@in_virtual_time
async def test_a_replica_that_is_down_is_read_last(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one.error = AWAY
        for _ in range(10):
            assert await store.get(KEY) == BODY
        assert replicas.one.gets == FAILURES_MAX
        # Nobody else has it.
        replicas.one.error = None
        replicas.two.lose()
        replicas.three.lose()
        assert await store.get(KEY) == BODY
        assert store.health()[ONE].state == "up"
        # Nobody needs to ask any more.
        await trio.sleep(60)
        assert replicas.one.sizes == 0


@in_virtual_time
async def test_a_replica_that_returns_is_noticed_without_traffic(replicas: Replicas) -> None:
    returned: list[tuple[float, ReplicaId]] = []
    async with replicas.open() as store:
        store.on_returned = lambda replica: returned.append((trio.current_time(), replica))
        replicas.two.error = AWAY
        for number in range(FAILURES_MAX):
            await store.put(f"key/{number}", b"x")
            await settled()
        await trio.sleep(10)
        assert returned == []
        health = store.health()[TWO]
        assert health.state == "down"
        assert health.down_seconds == pytest.approx(10)
        replicas.two.error = None
        await trio.sleep(10)
        assert [replica for _, replica in returned] == [TWO]
        assert store.health()[TWO].state == "up"
        assert last_errors(store) == {}
        await store.put(KEY, BODY)
        await settled()
        assert replicas.two.holds(KEY) == BODY


@in_virtual_time
async def test_probes_become_rare(replicas: Replicas) -> None:
    async with replicas.open() as store:
        replicas.two.error = Denied("forbidden")
        await store.put(KEY, BODY)
        await trio.sleep(3600)
        # 1, 2, 4 … 32 seconds, and then every minute.
        assert 55 <= replicas.two.sizes <= 85
        assert replicas.two.puts == 1


@in_virtual_time
async def test_a_probe_of_a_frozen_replica_is_bounded_and_seen(replicas: Replicas) -> None:
    async with replicas.open() as store:
        replicas.two.error = Denied("forbidden")
        await store.put(KEY, BODY)
        await settled()
        replicas.two.freeze()
        await trio.sleep(2)
        assert store.health()[TWO].state == "probing"
        await trio.sleep(10)
        assert store.health()[TWO].state == "down"
        assert store.health()[TWO].last_error == "no answer in 10 s"


@in_virtual_time
async def test_a_replica_that_answers_but_takes_no_puts_is_tried_ever_less(replicas: Replicas) -> None:
    async with replicas.open() as store:
        replicas.two.put_error = Denied("forbidden")
        returned: list[ReplicaId] = []
        store.on_returned = returned.append
        for number in range(600):
            await store.put(f"key/{number}", b"x")
            await trio.sleep(1)
        assert replicas.two.puts == len(returned) + 1
        assert replicas.two.puts <= 20
        assert last_errors(store) == {TWO: "forbidden"}


@in_virtual_time
async def test_what_is_down_is_said_once(replicas: Replicas) -> None:
    replicas.two.error = AWAY
    with structlog.testing.capture_logs() as logs:
        async with replicas.open() as store:
            for number in range(100):
                await store.put(f"key/{number}", b"x")
                await trio.sleep(1)
            replicas.two.error = None
            await trio.sleep(100)
    assert [log["event"] for log in logs] == ["replica failed"] * FAILURES_MAX + ["replica down", "replica returned"]


@in_virtual_time
async def test_when_all_are_down_reads_still_ask_and_so_find_them_back(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        for each in replicas.all:
            each.error = AWAY
        for _ in range(FAILURES_MAX + 1):
            with pytest.raises(Unavailable, match=r"replica 1: away; replica 2: away; replica 3: away"):
                await store.get(KEY)
        assert {health.state for health in store.health().values()} == {"down"}
        for each in replicas.all:
            each.error = None
        assert await store.get(KEY) == BODY


@pytest.mark.parametrize("error", [NotFound("none"), Corrupt("wrong")])
@in_virtual_time
async def test_what_an_object_is_like_says_nothing_about_its_replica(replicas: Replicas, error: AgentfsError) -> None:
    async with replicas.open("sync") as store:
        await store.put("plain", BODY)
        replicas.one.error = error
        for _ in range(10):
            await store.get("plain")
        assert store.health()[ONE].state == "up"


@in_virtual_time
async def test_only_failures_in_a_row_count(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put("plain", BODY)
        for error in [AWAY, AWAY, NotFound("none"), AWAY, AWAY, Corrupt("wrong"), AWAY, AWAY]:
            replicas.one.error = error
            await store.get("plain")
        assert store.health()[ONE].state == "up"


@in_virtual_time
async def test_a_replica_that_is_down_does_not_delay_what_asks_all(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.two.error = Denied("forbidden")
        with pytest.raises(Denied):
            await store.delete(KEY)
        replicas.two.freeze()
        assert await store.capacity() is None
        assert [info.key async for info in store.list("")] == []
        with pytest.raises(Denied, match="replica 2: forbidden"):
            await store.delete(KEY)
        assert trio.current_time() == 0.0


@in_virtual_time
async def test_a_frozen_replica_delays_what_asks_all_only_so_long(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.two.freeze()
        assert await store.capacity() is None
        assert trio.current_time() == pytest.approx(5)
        with pytest.raises(Unavailable, match="replica 2: no answer in 30 s"):
            await store.delete(KEY)
        assert trio.current_time() == pytest.approx(35)
        assert [info.key async for info in store.list("")] == []
        assert trio.current_time() == pytest.approx(65)


# ---- health


@in_virtual_time
async def test_latency_is_the_median_of_small_reads_or_else_of_puts(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        assert store.health()[ONE].latency_seconds is None
        replicas.one.put_seconds = 0.2
        await store.put(KEY, BODY)
        assert store.health()[ONE].latency_seconds == pytest.approx(0.2)
        for seconds in (0.01, 0.03, 0.015):
            replicas.one.get_seconds = seconds
            replicas.two.get_seconds = replicas.three.get_seconds = 0.1
            for _ in range(3):
                await store.get(KEY, 0, 10)
        assert store.health()[ONE].latency_seconds == pytest.approx(0.015)


# ---- filling


@in_virtual_time
async def test_a_replica_is_given_what_it_lacks(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.two.lose()
        await store.fill(KEY, TWO)
        assert replicas.two.holds(KEY) == BODY


@in_virtual_time
async def test_a_copy_comes_only_from_who_has_it_right(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.one.damage(KEY)
        replicas.two.lose()
        await store.fill(KEY, TWO)
        assert replicas.two.holds(KEY) == BODY
        replicas.three.damage(KEY)
        replicas.two.lose()
        with pytest.raises(Corrupt):
            await store.fill(KEY, TWO)
        assert replicas.two.holds(KEY) is None


@in_virtual_time
async def test_a_wrong_copy_is_replaced_when_asked(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.put(KEY, BODY)
        replicas.two.damage(KEY)
        await store.fill(KEY, TWO)
        assert replicas.two.holds(KEY) != BODY
        await store.fill(KEY, TWO, replace=True)
        assert replicas.two.holds(KEY) == BODY


@in_virtual_time
async def test_a_fill_says_what_went_wrong(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        with pytest.raises(NotFound):
            await store.fill(KEY, TWO)
        with pytest.raises(Invalid):
            await store.fill("not/a/segment", TWO)
        with pytest.raises(Unavailable):
            await store.fill(KEY, ReplicaId(9))
        await store.put(KEY, BODY)
        replicas.two.put_error = NoSpace("full")
        with pytest.raises(NoSpace):
            await store.fill(KEY, TWO)
        replicas.two.put_error = Denied("forbidden")
        for _ in range(2):
            with pytest.raises(Denied, match="forbidden"):
                await store.fill(KEY, TWO)
        # The second time it was down already.
        assert replicas.two.puts == 3
        assert replicas.three.gets + replicas.one.gets == 4


@in_virtual_time
async def test_a_repair_is_told_to_who_keeps_the_book(replicas: Replicas) -> None:
    told: list[tuple[str, ReplicaId]] = []
    other, body = a_segment(b"other")
    async with replicas.open("sync") as store:
        store.on_straggler = lambda key, replica: told.append((key, replica))
        await store.put(KEY, BODY)
        await store.put(other, body)
        replicas.one._objects.pop(KEY)
        replicas.one.damage(other)
        assert await store.get(KEY) == BODY
        assert await store.get(other, check=lambda read: read == body) == body
        await settled()
        assert told == [(KEY, ONE), (other, ONE)]
        assert (replicas.one.holds(KEY), replicas.one.holds(other)) == (BODY, body)


@in_virtual_time
async def test_only_one_replica_has_nobody_to_be_filled_from(replicas: Replicas) -> None:
    async with replicas.open("sync") as store:
        await store.remove(TWO)
        await store.remove(THREE)
        await store.put(KEY, BODY)
        with pytest.raises(NotFound, match="no replica to ask"):
            await store.fill(KEY, ONE)
