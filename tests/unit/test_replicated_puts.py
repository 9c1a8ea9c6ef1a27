"""Puts that cannot reach their quorum: what they wait for, for how long, and what they say in the end."""

import gc
import sys
from collections.abc import Callable

import pytest
import trio

from agentfs.chunks.breaker import FAILURES_MAX
from agentfs.chunks.replica_lane import STRAGGLERS_MAX, silence_seconds
from agentfs.chunks.replicated import PATIENCE_SECONDS, Replicated
from agentfs.model.errors import AgentfsError, Denied, Invalid, NoSpace, Unavailable
from agentfs.model.ids import ReplicaId
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.faulty_replicas import BODY, KEY, ONE, THREE, TWO, Faulty, Replicas, last_errors, settled

AWAY = Unavailable("away")


@pytest.fixture
def replicas() -> Replicas:
    return Replicas()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something, looking ten times a virtual second."""
    with trio.fail_after(1000):
        while not condition():
            await trio.sleep(0.1)


# ---- how many


@pytest.mark.parametrize(("write_quorum", "returns"), [(1, True), (2, True), (3, False), (0, True)])
@in_virtual_time
async def test_a_write_quorum_is_waited_for(replicas: Replicas, write_quorum: int, returns: bool) -> None:
    gate = replicas.three.freeze()
    async with replicas.open(write_quorum=write_quorum) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.put, KEY, BODY)
        await settled()
        assert bool(store.placed(KEY)) is returns
        gate.set()


@in_virtual_time
async def test_a_write_quorum_of_one_returns_with_the_first(replicas: Replicas) -> None:
    gate = replicas.three.freeze()
    replicas.two.gate = gate
    async with replicas.open(write_quorum=1) as store:
        await store.put(KEY, BODY)
        assert store.placed(KEY) == [ONE]
        gate.set()


@in_virtual_time
async def test_a_negative_write_quorum_is_invalid(replicas: Replicas) -> None:
    with pytest.raises(Invalid, match="write quorum"):
        async with replicas.open(write_quorum=-1):
            pass


@in_virtual_time
async def test_a_frozen_replica_does_not_hold_a_quorum(replicas: Replicas) -> None:
    replicas.three.freeze()
    async with replicas.open(timeout_seconds=1.0) as store:
        await store.put(KEY, BODY)
        assert trio.current_time() == 0.0


# ---- waiting


@pytest.mark.parametrize("replication", ["quorum", "sync"])
@in_virtual_time
async def test_a_put_waits_for_replicas_that_return_in_time(replicas: Replicas, replication: str) -> None:
    for each in (replicas.two, replicas.three):
        each.error = AWAY
    async with replicas.open(replication) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.put, KEY, BODY)
        await trio.sleep(12)
        assert store.placed(KEY) == []
        for each in (replicas.two, replicas.three):
            each.error = None
        await until(lambda: bool(store.placed(KEY)))
        assert trio.current_time() < 30
        assert store.reachable


@in_virtual_time
async def test_a_put_that_waits_asks_seldom(replicas: Replicas) -> None:
    replicas.three.error = AWAY
    async with replicas.open("sync") as store:
        with pytest.raises(Unavailable):
            await store.put(KEY, BODY)
    assert replicas.three.puts == 3
    assert replicas.three.sizes <= 6


@in_virtual_time
async def test_a_put_gives_up_in_time_and_says_why(replicas: Replicas) -> None:
    replicas.two.error = AWAY
    replicas.three.freeze()
    async with replicas.open(timeout_seconds=7.0) as store:
        with pytest.raises(Unavailable) as caught:
            await store.put(KEY, BODY)
        assert trio.current_time() == pytest.approx(7.0)
        assert store.placed(KEY) == []
    assert str(caught.value) == f"put of {KEY} failed: replica 2: away; replica 3: no answer in 7 s"


@in_virtual_time
async def test_a_replica_that_cannot_be_interrupted_holds_nobody_beyond_the_timeout(replicas: Replicas) -> None:
    gate = replicas.three.freeze()
    replicas.three.stubborn = True
    async with replicas.open("sync") as store:
        with pytest.raises(Unavailable, match="replica 3: no answer in 30 s"):
            await store.put(KEY, BODY)
        assert trio.current_time() == pytest.approx(30.0)
        gate.set()


@pytest.mark.parametrize(
    ("error", "replication", "faulty", "expected"),
    [
        (Denied("forbidden"), "quorum", 2, Denied),
        (NoSpace("full"), "quorum", 2, NoSpace),
        (Denied("forbidden"), "sync", 1, Denied),
        (NoSpace("full"), "async", 3, NoSpace),
    ],
)
@in_virtual_time
async def test_a_put_that_is_refused_for_good_by_too_many_fails_at_once(
    replicas: Replicas, error: AgentfsError, replication: str, faulty: int, expected: type[AgentfsError]
) -> None:
    for each in replicas.all[:faulty]:
        each.error = error
    async with replicas.open(replication) as store:
        with pytest.raises(expected, match=f"replica 1: {error}"):
            await store.put(KEY, BODY)
        assert trio.current_time() == 0.0


@in_virtual_time
async def test_a_put_waits_while_those_that_may_return_suffice(replicas: Replicas) -> None:
    replicas.one.error = Denied("forbidden")
    replicas.two.error = AWAY
    async with replicas.open() as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.put, KEY, BODY)
        await trio.sleep(5)
        replicas.two.error = None
        await until(lambda: store.placed(KEY) == [TWO, THREE])


@in_virtual_time
async def test_a_wish_to_be_left_alone_is_respected(replicas: Replicas) -> None:
    error = Unavailable("slow down")
    error.retry_after_seconds = 6.0
    replicas.three.error = error
    async with replicas.open("sync") as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.put, KEY, BODY)
        await trio.sleep(5.9)
        assert replicas.three.puts == 1
        replicas.three.error = None
        await until(lambda: bool(store.placed(KEY)))
        assert trio.current_time() < 7


@in_virtual_time
async def test_failures_that_are_remembered_do_not_keep_the_bytes_of_the_put(replicas: Replicas) -> None:
    body = bytes(1 << 20)
    replicas.two.error = NoSpace("full")
    replicas.three.error = AWAY
    async with replicas.open("async") as store:
        before = sys.getrefcount(body)
        replicas.one.put_error = AWAY
        with trio.move_on_after(1):
            await store.put(KEY, body)
        await settled()
        gc.collect()
        assert sys.getrefcount(body) == before
        assert last_errors(store) == {ONE: "away", TWO: "full", THREE: "away"}


# ---- reachable


@in_virtual_time
async def test_reachable_until_a_put_failed_and_again_when_one_did_not(replicas: Replicas) -> None:
    async with replicas.open() as store:
        for each in (replicas.two, replicas.three):
            each.put_error = AWAY
        assert store.reachable
        with pytest.raises(Unavailable):
            await store.put(KEY, BODY)
        assert not store.reachable
        for each in (replicas.two, replicas.three):
            each.put_error = None
        await store.put(KEY, BODY)
        assert store.reachable


@pytest.mark.parametrize("how", ["away", "frozen", "denied"])
@in_virtual_time
async def test_reachable_again_when_enough_are_back_although_nobody_writes(replicas: Replicas, how: str) -> None:
    def set_right(each: Faulty, gate: trio.Event | None) -> None:
        each.error = each.gate = each.get_gate = None
        if gate is not None:
            gate.set()

    async with replicas.open() as store:
        gates = [each.freeze() if how == "frozen" else None for each in (replicas.two, replicas.three)]
        for each in (replicas.two, replicas.three):
            each.error = {"away": AWAY, "denied": Denied("forbidden"), "frozen": None}[how]
        with pytest.raises(AgentfsError):
            await store.put(KEY, BODY)
        await trio.sleep(30)
        assert not store.reachable
        set_right(replicas.three, gates[1])
        await until(lambda: store.reachable)
        set_right(replicas.two, gates[0])


@in_virtual_time
async def test_a_full_replica_is_said_to_be_full_whoever_else_is_down(replicas: Replicas) -> None:
    replicas.one.put_error = NoSpace("full")
    replicas.three.error = AWAY
    async with replicas.open("sync") as store:
        for _ in range(FAILURES_MAX):
            with pytest.raises(Unavailable):
                await store.delete(KEY)
        assert store.health()[THREE].state == "down"
        with pytest.raises(NoSpace) as caught:
            await store.put(KEY, BODY)
        assert str(caught.value) == f"put of {KEY} failed: replica 1: full; replica 3: away"
        assert store.reachable


@in_virtual_time
async def test_what_is_wrong_with_the_put_itself_makes_nobody_unreachable(replicas: Replicas) -> None:
    for each in replicas.all:
        each.put_error = Invalid("no such key can be")
    async with replicas.open() as store:
        with pytest.raises(Invalid):
            await store.put("A", BODY)
        assert store.reachable


@in_virtual_time
async def test_a_full_replica_is_reachable(replicas: Replicas) -> None:
    replicas.one.put_error = NoSpace("full")
    async with replicas.open("sync") as store:
        with pytest.raises(NoSpace):
            await store.put(KEY, BODY)
        assert store.reachable
        assert store.health()[ONE].state == "up"
        assert store.health()[ONE].last_error == "full"


# ---- stragglers


@in_virtual_time
async def test_a_silent_straggler_is_given_up(replicas: Replicas) -> None:
    replicas.three.freeze()
    async with replicas.open() as store:
        await store.put(KEY, BODY)
        assert store.health()[THREE].outstanding == 1
        await trio.sleep(silence_seconds(len(BODY)) + 0.1)
        assert store.health()[THREE].outstanding == 0
        assert "no answer" in store.health()[THREE].last_error
        assert replicas.three.interrupted == 1


@in_virtual_time
async def test_a_straggler_that_fails_is_not_asked_again(replicas: Replicas) -> None:
    gate = replicas.three.freeze()
    async with replicas.open() as store:
        await store.put(KEY, BODY)
        replicas.three.error = AWAY
        gate.set()
        await trio.sleep(20)
        assert replicas.three.puts == 1


@in_virtual_time
async def test_a_replica_that_is_down_costs_no_patience(replicas: Replicas) -> None:
    async with replicas.open() as store:
        replicas.three.gate = trio.Event()
        for number in range(STRAGGLERS_MAX):
            await store.put(f"key/{number}", b"x")
        for each in replicas.all:
            each.error = Denied("forbidden")
        with pytest.raises(Unavailable):
            await store.get(KEY)
        began = trio.current_time()
        with pytest.raises(Denied):
            await store.put(KEY, BODY)
        assert trio.current_time() == began
        replicas.three.gate.set()


@in_virtual_time
async def test_the_end_waits_for_a_frozen_straggler_only_so_long(replicas: Replicas) -> None:
    replicas.three.freeze()
    async with replicas.open(timeout_seconds=10.0) as store:
        await store.put(KEY, BODY)
    assert trio.current_time() == pytest.approx(10.0)
    assert replicas.three.closed


@in_virtual_time
async def test_a_missing_straggler_is_no_reason_for_a_repair(replicas: Replicas) -> None:
    gate = trio.Event()
    replicas.one.gate = gate
    async with replicas.open() as store:
        await store.put(KEY, BODY)
        before = replicas.one.puts
        assert await store.get(KEY) == BODY
        assert replicas.one.gets == 1
        gate.set()
        await settled()
        assert replicas.one.puts == before


@in_virtual_time
async def test_a_replica_that_was_too_slow_is_said_to_be_back(replicas: Replicas) -> None:
    gate = trio.Event()
    replicas.three.gate = gate
    returned: list[ReplicaId] = []
    async with replicas.open() as store:
        store.on_returned = returned.append
        for number in range(10):
            await store.put(f"key/{number}", b"x")
        assert trio.current_time() == pytest.approx(PATIENCE_SECONDS)
        assert returned == []
        gate.set()
        await settled()
        assert returned == [THREE]


@in_virtual_time
async def test_a_frozen_replica_costs_patience_once_and_is_not_back_before_it_answers(replicas: Replicas) -> None:
    gate = replicas.three.freeze()
    returned: list[ReplicaId] = []
    waited = 0.0
    async with replicas.open() as store:
        store.on_returned = returned.append
        for number in range(300):
            began = trio.current_time()
            await store.put(f"key/{number}", b"x")
            waited += trio.current_time() - began
            await trio.sleep(1)
        assert waited == pytest.approx(PATIENCE_SECONDS)
        assert replicas.three.puts == STRAGGLERS_MAX
        assert store.health()[THREE].state != "up"
        assert returned == []
        gate.set()
        await until(lambda: returned == [THREE])


@in_virtual_time
async def test_a_replica_that_is_back_takes_puts_although_old_ones_still_hang(replicas: Replicas) -> None:
    gate = replicas.three.gate = trio.Event()
    returned: list[ReplicaId] = []
    async with replicas.open() as store:
        store.on_returned = returned.append
        for number in range(STRAGGLERS_MAX):
            await store.put(f"key/{number}", b"x")
        await store.put(KEY, BODY)
        replicas.three.error = Denied("forbidden")
        for each in (replicas.one, replicas.two):
            each.get_seconds = 9.0
        await store.get(KEY)
        replicas.three.error = replicas.three.gate = None
        await until(lambda: returned == [THREE])
        assert store.health()[THREE].outstanding == STRAGGLERS_MAX
        await store.fill(KEY, THREE)
        assert replicas.three.holds(KEY) == BODY
        gate.set()


@in_virtual_time
async def test_a_cancelled_put_leaves_nothing_behind(replicas: Replicas) -> None:
    replicas.two.error = replicas.three.error = AWAY
    async with replicas.open() as store:
        with trio.move_on_after(2):
            await store.put(KEY, BODY)
        replicas.two.error = replicas.three.error = None
        await trio.sleep(60)
        # It went on with what it had begun, and asked nobody again.
        assert replicas.one.holds(KEY) == BODY
        assert replicas.two.holds(KEY) is None
        assert [health.outstanding for health in store.health().values()] == [0, 0, 0]
        assert store.reachable


# ---- replicas that come and go


async def put_beginning_with(store: Replicated, nursery: trio.Nursery, done: trio.Event) -> None:
    async def put() -> None:
        await store.put(KEY, BODY)
        done.set()

    nursery.start_soon(put)
    await settled()


@in_virtual_time
async def test_an_added_replica_gets_what_is_put_from_then_on(replicas: Replicas) -> None:
    four, added = ReplicaId(4), Faulty()
    gate = replicas.three.freeze()
    done = trio.Event()
    async with replicas.open("sync") as store, trio.open_nursery() as nursery:
        await put_beginning_with(store, nursery, done)
        store.add(four, added)
        gate.set()
        await done.wait()
        assert store.placed(KEY) == [ONE, TWO, THREE]
        await store.put("after", b"x")
        assert store.placed("after") == [ONE, TWO, THREE, four]
        with pytest.raises(Invalid):
            store.add(four, added)
    assert added.closed


@in_virtual_time
async def test_a_put_ends_by_the_rules_it_began_with(replicas: Replicas) -> None:
    gate = replicas.three.freeze()
    done = trio.Event()
    async with replicas.open("sync") as store, trio.open_nursery() as nursery:
        await put_beginning_with(store, nursery, done)
        nursery.start_soon(store.remove, THREE)
        await settled()
        assert not done.is_set()
        assert not replicas.three.closed
        await store.put("after", b"x")
        assert store.placed("after") == [ONE, TWO]
        gate.set()
        await done.wait()
        await settled()
        assert store.placed(KEY) == [ONE, TWO, THREE]
        assert replicas.three.closed
        assert store.stores.keys() == {ONE, TWO}


@in_virtual_time
async def test_removing_a_frozen_replica_takes_so_long_and_no_longer(replicas: Replicas) -> None:
    replicas.three.freeze()
    async with replicas.open(timeout_seconds=20.0) as store:
        await store.put(KEY, BODY)
        await store.remove(THREE)
        assert trio.current_time() == pytest.approx(20.0)
        assert replicas.three.closed


@in_virtual_time
async def test_the_last_replica_and_an_unknown_one_are_not_removed(replicas: Replicas) -> None:
    async with replicas.open() as store:
        with pytest.raises(Invalid):
            await store.remove(ReplicaId(9))
        await store.remove(ONE)
        await store.remove(TWO)
        with pytest.raises(Invalid):
            await store.remove(THREE)
        await store.put(KEY, BODY)
        assert store.placed(KEY) == [THREE]


@in_virtual_time
async def test_removing_what_is_missing_makes_the_rest_reachable(replicas: Replicas) -> None:
    replicas.three.error = AWAY
    async with replicas.open("sync") as store:
        with pytest.raises(Unavailable):
            await store.put(KEY, BODY)
        assert not store.reachable
        await store.remove(THREE)
        assert store.reachable


@in_virtual_time
async def test_a_replication_can_be_set(replicas: Replicas) -> None:
    gate = replicas.three.freeze()
    async with replicas.open("sync") as store:
        store.set_replication("quorum", 0)
        await store.put(KEY, BODY)
        assert store.placed(KEY) == [ONE, TWO]
        with pytest.raises(Invalid):
            store.set_replication("most", 0)
        gate.set()


@in_virtual_time
async def test_a_write_quorum_is_never_more_than_there_are(replicas: Replicas) -> None:
    async with replicas.open(write_quorum=3) as store:
        await store.remove(THREE)
        await store.put(KEY, BODY)
        assert store.placed(KEY) == [ONE, TWO]
