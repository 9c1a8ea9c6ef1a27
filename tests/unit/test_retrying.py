"""What is asked again, how often and after how long, on a clock that jumps."""

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from random import Random

import pytest
import trio

from agentfs.chunks.contract import Check, ObjectInfo
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.retrying import ATTEMPTS_MAX, DEADLINE_SECONDS, DELAY_MAX_SECONDS, FIRST_DELAY_SECONDS, Retrying
from agentfs.model.errors import AgentfsError, Corrupt, Denied, NoSpace, NotFound, Unavailable
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

KEYS = [f"segments/{number:02}" for number in range(20)]


class Scripted(MemoryStore):
    """A store whose requests fail with the given errors, one after the other, each after `seconds`; then they succeed."""

    def __init__(self, errors: Iterable[AgentfsError] = (), *, seconds: float = 0.0) -> None:
        super().__init__()
        self._errors = list(errors)
        self._seconds = seconds
        self.asked_at: list[float] = []

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        self.asked_at.append(trio.current_time())
        await trio.sleep(self._seconds)
        if self._errors:
            raise self._errors.pop(0)
        return await super().get(key, start, length, check=check)

    @property
    def delays(self) -> list[float]:
        """Seconds between the requests."""
        return [after - before for before, after in zip(self.asked_at, self.asked_at[1:], strict=False)]


class Breaking(MemoryStore):
    """A store whose listings break: the n-th after `lengths[n]` objects; then they are whole."""

    def __init__(self, lengths: Iterable[int]) -> None:
        super().__init__()
        self._lengths = list(lengths)
        self.listings = 0
        self.open = 0

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self.listings += 1
        infos = [info async for info in super().list(prefix)]
        length = self._lengths.pop(0) if self._lengths else len(infos)
        self.open += 1
        try:
            for info in infos[:length]:
                yield info
            if length < len(infos):
                raise Unavailable("broken off")
        finally:
            self.open -= 1


def retrying(store: MemoryStore, seed: int = 0) -> Retrying:
    return Retrying(store, runtime=VirtualRuntime(Random(seed)))


def busy(seconds: float | None) -> Unavailable:
    error = Unavailable("slow down")
    error.retry_after_seconds = seconds
    return error


async def filled(store: MemoryStore) -> None:
    for key in KEYS:
        await store.put(key, b"x")


@in_virtual_time
async def test_what_is_unavailable_for_a_while_is_got() -> None:
    store = Scripted([Unavailable("first"), Unavailable("second")])
    await filled(store)
    assert await retrying(store).get(KEYS[0]) == b"x"
    assert len(store.asked_at) == 3


@pytest.mark.parametrize("seed", range(10))
@in_virtual_time
async def test_the_delays_grow_and_the_last_error_is_told(seed: int) -> None:
    store = Scripted(Unavailable(f"number {number}") for number in range(100))
    with pytest.raises(Unavailable, match=f"number {ATTEMPTS_MAX - 1}"):
        await retrying(store, seed).get(KEYS[0])
    assert len(store.asked_at) == ATTEMPTS_MAX
    for number, delay in enumerate(store.delays):
        middle = min(FIRST_DELAY_SECONDS * 2**number, DELAY_MAX_SECONDS)
        assert 0.5 * middle <= delay <= 1.5 * middle


@in_virtual_time
async def test_two_clients_do_not_come_back_together() -> None:
    stores = [Scripted([Unavailable("down")] * 4) for _ in range(2)]
    for seed, store in enumerate(stores):
        await filled(store)
        await retrying(store, seed).get(KEYS[0])
    assert stores[0].delays != stores[1].delays


@in_virtual_time
async def test_no_attempt_begins_after_the_deadline() -> None:
    store = Scripted([Unavailable("silence")] * 100, seconds=3.0)
    with pytest.raises(Unavailable):
        await retrying(store).get(KEYS[0])
    assert store.asked_at[-1] - store.asked_at[0] < DEADLINE_SECONDS
    assert len(store.asked_at) == 3


@pytest.mark.parametrize("kind", [Denied, NotFound, Corrupt, NoSpace])
@in_virtual_time
async def test_what_would_fail_again_is_not_asked_again(kind: type[AgentfsError]) -> None:
    store = Scripted([kind("no")])
    with pytest.raises(kind, match="no"):
        await retrying(store).get(KEYS[0])
    assert len(store.asked_at) == 1


@in_virtual_time
async def test_a_store_is_left_alone_for_as_long_as_it_asks() -> None:
    store = Scripted([busy(4.0), busy(None)])
    await filled(store)
    await retrying(store).get(KEYS[0])
    assert store.delays[0] == 4.0
    assert store.delays[1] < 1.0


@in_virtual_time
async def test_a_store_that_asks_for_more_than_there_is_time_for_is_given_up_at_once() -> None:
    store = Scripted([busy(60.0)])
    started = trio.current_time()
    with pytest.raises(Unavailable) as caught:
        await retrying(store).get(KEYS[0])
    assert trio.current_time() == started
    assert caught.value.retry_after_seconds == 60.0


@in_virtual_time
async def test_a_cancelled_caller_leaves_between_attempts() -> None:
    store = Scripted([busy(7.0)])
    started = trio.current_time()
    with trio.move_on_after(1.0) as scope:
        await retrying(store).get(KEYS[0])
    assert scope.cancelled_caught
    assert trio.current_time() == started + 1.0


@in_virtual_time
async def test_a_listing_that_breaks_off_yields_everything_once() -> None:
    store = Breaking([0, 5, 5, 3, 12])
    await filled(store)
    assert [info.key async for info in retrying(store).list("segments/")] == KEYS
    assert store.listings == 6


@in_virtual_time
async def test_a_listing_may_break_often_as_long_as_it_comes_further() -> None:
    store = Breaking(range(1, 20))
    await filled(store)
    assert [info.key async for info in retrying(store).list("segments/")] == KEYS
    assert store.listings == 20


@in_virtual_time
async def test_a_listing_that_comes_no_further_is_given_up() -> None:
    store = Breaking([5] * 100)
    await filled(store)
    listing = retrying(store).list("segments/")
    assert [(await anext(listing)).key for _ in range(5)] == KEYS[:5]
    with pytest.raises(Unavailable, match="broken off"):
        await anext(listing)
    assert store.listings == ATTEMPTS_MAX


@in_virtual_time
async def test_a_caller_may_stop_in_the_middle_of_a_listing() -> None:
    store = Breaking([])
    await filled(store)
    listing = retrying(store).list("segments/")
    async with aclosing(listing):  # type: ignore[type-var]
        assert (await anext(listing)).key == KEYS[0]
        assert store.open == 1
    assert store.open == 0
