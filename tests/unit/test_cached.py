"""The memory cache: what it keeps, for how long, and that tasks asking for the same share one read."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from agentfs.chunks.cached import Cached, open_cached
from agentfs.chunks.contract import Check
from agentfs.chunks.memory import MemoryStore
from agentfs.model.errors import Corrupt, NotFound, Unavailable

BOUND_SECONDS = 60
MAX_BYTES = 100_000


@pytest.fixture(autouse=True)
async def bound() -> AsyncIterator[None]:
    with trio.fail_after(BOUND_SECONDS):
        yield


class Counting(MemoryStore):
    """Counts reads, and holds them up while the gate is shut."""

    def __init__(self) -> None:
        super().__init__()
        self.gets = 0
        self.abandoned = 0
        self.gate: trio.Event | None = None
        self.down = False

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        self.gets += 1
        if self.gate is not None:
            try:
                await self.gate.wait()
            except trio.Cancelled:
                self.abandoned += 1
                raise
        if self.down:
            raise Unavailable("away")
        return await super().get(key, start, length, check=check)


@pytest.fixture
async def store() -> Counting:
    store = Counting()
    for number in range(20):
        await store.put(f"key/{number}", bytes([number]) * 10_000)
    return store


@pytest.fixture
async def cached(store: Counting) -> AsyncIterator[Cached]:
    async with open_cached(store, max_bytes=MAX_BYTES) as cached:
        yield cached


def accept(body: bytes) -> bool:
    return True


def refuse(body: bytes) -> bool:
    return False


async def test_the_second_read_costs_nothing(store: Counting, cached: Cached) -> None:
    first = await cached.get("key/1", 5, 10, check=accept)
    assert await cached.get("key/1", 5, 10, check=accept) == first
    assert await cached.get("key/1", 5, 10) == first
    assert store.gets == 1


async def test_another_range_is_another_result(store: Counting, cached: Cached) -> None:
    await store.put("digits", b"0123456789")
    assert await cached.get("digits", 0, 5) == b"01234"
    assert await cached.get("digits", 1, 5) == b"12345"
    assert await cached.get("digits", 1) == b"123456789"
    assert store.gets == 3


async def test_memory_is_bounded_and_the_least_recently_used_goes(store: Counting, cached: Cached) -> None:
    for number in range(20):
        await cached.get(f"key/{number}")
        await cached.get("key/0")
        assert cached.used_bytes <= cached.max_bytes == MAX_BYTES
    assert store.gets == 20
    await cached.get("key/19")
    assert store.gets == 20
    await cached.get("key/1")
    assert store.gets == 21


async def test_a_great_many_small_results_are_bounded_too(store: Counting, cached: Cached) -> None:
    for start in range(2000):
        await cached.get("key/1", start, 1)
    assert cached.used_bytes <= MAX_BYTES
    assert len(cached._kept) < 1000


async def test_a_big_result_is_not_kept(store: Counting, cached: Cached) -> None:
    await store.put("big", bytes(MAX_BYTES // 4))
    await cached.get("key/1")
    used = cached.used_bytes
    assert used > 0
    for _ in range(2):
        await cached.get("big")
    assert store.gets == 3
    assert cached.used_bytes == used


async def test_what_a_check_refuses_is_not_kept(store: Counting, cached: Cached) -> None:
    with pytest.raises(Corrupt):
        await cached.get("key/1", check=refuse)
    assert cached.used_bytes == 0
    await cached.get("key/1")
    with pytest.raises(Corrupt):
        await cached.get("key/1", check=refuse)
    assert cached.used_bytes == 0


async def test_bytes_kept_unchecked_are_checked_once_when_asked(store: Counting, cached: Cached) -> None:
    checks: list[int] = []

    def count(body: bytes) -> bool:
        checks.append(len(body))
        return True

    await cached.get("key/1")
    await cached.get("key/1", check=count)
    await cached.get("key/1", check=count)
    assert store.gets == 1
    assert checks == [10_000]


async def test_readers_at_once_share_one_read(store: Counting, cached: Cached) -> None:
    store.gate = trio.Event()
    results: list[bytes] = []

    async def read() -> None:
        results.append(await cached.get("key/1", check=accept))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert results == [b"\x01" * 10_000] * 5
    assert store.gets == 1


async def test_a_big_result_is_shared_too(store: Counting, cached: Cached) -> None:
    await store.put("big", bytes(MAX_BYTES))
    store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(cached.get, "big")
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert store.gets == 1


async def test_who_checks_does_not_rely_on_who_does_not(store: Counting, cached: Cached) -> None:
    store.gate = trio.Event()
    refused: list[bool] = []

    async def read_checked() -> None:
        with pytest.raises(Corrupt):
            await cached.get("key/1", check=refuse)
        refused.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cached.get, "key/1")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read_checked)
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert refused == [True]


async def test_a_failure_is_shared_and_forgotten(store: Counting, cached: Cached) -> None:
    store.gate = trio.Event()
    store.down = True
    failures: list[str] = []

    async def read() -> None:
        with pytest.raises(Unavailable) as caught:
            await cached.get("key/1")
        failures.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert failures == ["away"] * 3
    assert store.gets == 1
    store.down = False
    assert await cached.get("key/1") == b"\x01" * 10_000


async def test_a_reader_that_is_cancelled_leaves_the_read_to_the_others(store: Counting, cached: Cached) -> None:
    store.gate = trio.Event()
    results: list[bytes] = []
    first = trio.CancelScope()
    left = trio.Event()

    async def read_cancelled() -> None:
        with first:
            await cached.get("key/1")
        left.set()

    async def read() -> None:
        results.append(await cached.get("key/1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_cancelled)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await left.wait()
        assert store.abandoned == 0
        store.gate.set()
    assert results == [b"\x01" * 10_000] * 3
    assert store.gets == 1


async def test_when_the_last_reader_is_cancelled_so_is_the_read(store: Counting, cached: Cached) -> None:
    store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cached.get, "key/1")
        nursery.start_soon(cached.get, "key/1")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert (store.gets, store.abandoned) == (1, 1)
    store.gate = None
    assert await cached.get("key/1") == b"\x01" * 10_000


async def test_who_comes_right_after_the_last_was_cancelled_gets_a_read_of_its_own(store: Counting, cached: Cached) -> None:
    store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cached.get, "key/1")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    store.gate = None
    assert await cached.get("key/1") == b"\x01" * 10_000
    assert (store.gets, store.abandoned) == (2, 1)


async def test_reads_under_way_end_with_the_cache(store: Counting) -> None:
    store.gate = trio.Event()
    async with open_cached(store, max_bytes=MAX_BYTES) as cached:
        with trio.move_on_after(0):
            await cached.get("key/1")
    assert store.abandoned == 1


async def test_a_failure_of_its_user_passes_the_cache_as_it_is(store: Counting) -> None:
    with pytest.raises(NotFound, match="the user's own"):
        async with open_cached(store, max_bytes=MAX_BYTES):
            raise NotFound("the user's own")


async def test_an_object_that_is_kept_whole_answers_every_range(store: Counting, cached: Cached) -> None:
    await store.put("digits", b"0123456789")
    assert await cached.get("digits", check=accept) == b"0123456789"
    for start, length in ((0, 3), (3, 4), (7, None), (0, 10), (10, 0)):
        assert await cached.get("digits", start, length) == b"0123456789"[start : None if length is None else start + length]
    assert store.gets == 1
    with pytest.raises(Corrupt):
        await cached.get("digits", 5, 6)


async def test_a_part_of_what_was_confirmed_whole_is_not_checked_again(store: Counting, cached: Cached) -> None:
    await cached.get("key/1", check=accept)
    assert await cached.get("key/1", 5, 5, check=refuse) == b"\x01" * 5
    assert store.gets == 1


async def test_a_part_of_what_was_read_unchecked_is_checked(store: Counting, cached: Cached) -> None:
    await cached.get("key/1")
    assert await cached.get("key/1", 5, 5, check=accept) == b"\x01" * 5
    assert store.gets == 1
    with pytest.raises(Corrupt):
        await cached.get("key/1", 5, 5, check=refuse)
    assert not cached.holds("key/1", 5, 5)


async def test_who_wants_a_part_of_what_is_being_read_whole_waits_for_that(store: Counting, cached: Cached) -> None:
    await store.put("digits", b"0123456789")
    store.gate = trio.Event()
    results: dict[tuple[int, int | None], bytes] = {}

    async def read(start: int, length: int | None) -> None:
        results[start, length] = await cached.get("digits", start, length, check=accept)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 0, None)
        await trio.testing.wait_all_tasks_blocked()
        for start, length in ((0, 2), (2, 5), (9, 1)):
            nursery.start_soon(read, start, length)
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert results == {(0, None): b"0123456789", (0, 2): b"01", (2, 5): b"23456", (9, 1): b"9"}
    assert store.gets == 1


async def test_a_part_is_read_by_itself_where_the_whole_turns_out_wrong(store: Counting, cached: Cached) -> None:
    store.gate = trio.Event()
    results: list[bytes] = []

    async def read_whole() -> None:
        with pytest.raises(Corrupt):
            await cached.get("key/1", check=refuse)

    async def read_part() -> None:
        results.append(await cached.get("key/1", 5, 5, check=accept))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_whole)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(read_part)
        await trio.testing.wait_all_tasks_blocked()
        store.gate.set()
    assert results == [b"\x01" * 5]


async def test_what_is_held(store: Counting, cached: Cached) -> None:
    assert not cached.holds("key/1")
    await cached.get("key/1", 5, 5)
    assert cached.holds("key/1", 5, 5)
    assert not cached.holds("key/1", 5, 4)
    await cached.get("key/1")
    assert cached.holds("key/1", 5, 4)
    assert cached.holds("key/1")
    assert not cached.holds("key/1", 5, 10_000)
    assert not cached.holds("key/2")


async def test_what_the_cache_behind_holds_is_held(store: Counting) -> None:
    async with open_cached(store, max_bytes=MAX_BYTES) as behind, open_cached(behind, max_bytes=0) as cached:
        await cached.get("key/1")
        assert cached.used_bytes == 0
        assert cached.holds("key/1", 3, 4)
        assert not cached.holds("key/2", 3, 4)


async def test_a_deleted_object_is_forgotten(store: Counting, cached: Cached) -> None:
    await cached.get("key/1")
    await cached.get("key/1", 3, 4)
    await cached.get("key/2")
    await cached.delete("key/1")
    for start, length in ((0, None), (3, 4)):
        with pytest.raises(NotFound):
            await cached.get("key/1", start, length)
    gets = store.gets
    await cached.get("key/2")
    assert store.gets == gets


async def test_no_memory_at_all_still_reads(store: Counting) -> None:
    async with open_cached(store, max_bytes=0) as cached:
        for _ in range(2):
            assert await cached.get("key/3") == b"\x03" * 10_000
        assert cached.used_bytes == 0
