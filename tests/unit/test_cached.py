"""The memory cache: what it keeps, for how long, and that tasks asking for the same share one read."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from agentfs.chunks.cached import Cached
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
        self.gate: trio.Event | None = None
        self.down = False

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        self.gets += 1
        if self.gate is not None:
            await self.gate.wait()
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
def cached(store: Counting) -> Cached:
    return Cached(store, max_bytes=MAX_BYTES)


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


async def test_when_the_reader_is_cancelled_one_that_waits_takes_over(store: Counting, cached: Cached) -> None:
    store.gate = trio.Event()
    results: list[bytes] = []
    first = trio.CancelScope()

    async def read_cancelled() -> None:
        with first:
            await cached.get("key/1")

    async def read() -> None:
        results.append(await cached.get("key/1"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_cancelled)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        assert store.gets == 1
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert store.gets == 2
        store.gate.set()
    assert results == [b"\x01" * 10_000] * 3
    assert store.gets == 2


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
    cached = Cached(store, max_bytes=0)
    for _ in range(2):
        assert await cached.get("key/3") == b"\x03" * 10_000
    assert cached.used_bytes == 0
