"""The edge cache: what it spares the store behind it, what it never serves, and that a disk's troubles are its own."""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import pytest
import structlog
import trio
import trio.testing

from agentfs.chunks.cached import open_cached
from agentfs.chunks.contract import Check
from agentfs.chunks.edge import EdgeCache, open_edge_cache
from agentfs.chunks.edge_files import EdgeFiles, KeptFile
from agentfs.chunks.edge_keeper import PAUSE_SECONDS, QUEUE_BYTES
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.segment import segment_key
from agentfs.model.errors import Corrupt, Invalid, NotFound, Unavailable
from agentfs.model.extents import digest_of
from agentfs.runtime import SystemRuntime
from tests.mount.small_disk import fill, small_disk
from tests.simulation.runtime import VirtualRuntime

BOUND_SECONDS = 60
MIB = 1 << 20
MAX_BYTES = 64 * MIB


@pytest.fixture(autouse=True)
async def bound() -> AsyncIterator[None]:
    with trio.fail_after(BOUND_SECONDS):
        yield


class Counting(MemoryStore):
    """Counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gets: list[tuple[str, int, int | None]] = []
        self.asked = 0

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        self.asked += 1
        self.gets.append((key, start, length))
        return await super().get(key, start, length, check=check)

    async def put(self, key: str, body: bytes) -> None:
        self.asked += 1
        await super().put(key, body)


def segment(number: int, size_bytes: int = 100_000) -> tuple[str, bytes]:
    """The key and the bytes of a segment."""
    body = Random(number).randbytes(size_bytes)
    return segment_key(digest_of(body)), body


KEY, BODY = segment(0)


@pytest.fixture
async def store() -> Counting:
    store = Counting()
    await store.put(KEY, BODY)
    store.asked = 0
    return store


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "chunks"


Open = Callable[[], AbstractAsyncContextManager[EdgeCache]]


@pytest.fixture
def open_edge(store: Counting, directory: Path) -> Open:
    """Opens a further cache on the same directory, as another mount does."""
    return lambda: open_edge_cache(store, directory, max_bytes=MAX_BYTES, runtime=SystemRuntime())


@pytest.fixture
async def edge(open_edge: Open) -> AsyncIterator[EdgeCache]:
    async with open_edge() as edge:
        yield edge


def right(start: int, length: int | None = None) -> Check:
    return lambda body: body == BODY[start : None if length is None else start + length]


def refuse(body: bytes) -> bool:
    return False


def kept(directory: Path) -> list[KeptFile]:
    return [one for shard in EdgeFiles(directory).scan() for one in shard]


READS: list[tuple[str, Callable[[EdgeCache], Awaitable[bytes]], bytes]] = [
    ("small part", lambda edge: edge.get(KEY, 10, 100, check=right(10, 100)), BODY[10:110]),
    ("large part", lambda edge: edge.get(KEY, 10, 90_000, check=right(10, 90_000)), BODY[10:90_010]),
    ("whole, checked", lambda edge: edge.get(KEY, check=right(0)), BODY),
    ("whole", lambda edge: edge.get(KEY), BODY),
]


@pytest.fixture(params=READS, ids=[name for name, _, _ in READS])
def read(request: pytest.FixtureRequest) -> tuple[Callable[[EdgeCache], Awaitable[bytes]], bytes]:
    return request.param[1], request.param[2]


Read = tuple[Callable[[EdgeCache], Awaitable[bytes]], bytes]


# ---- what is kept


async def test_the_second_read_is_from_the_disk(store: Counting, edge: EdgeCache, read: Read) -> None:
    get, expected = read
    for _ in range(3):
        assert await get(edge) == expected
        await edge.settle()
    assert len(store.gets) == 1


async def test_what_one_mount_read_another_has(store: Counting, open_edge: Open, edge: EdgeCache, read: Read) -> None:
    get, expected = read
    await get(edge)
    await edge.settle()
    async with open_edge() as other:
        assert await get(other) == expected
    assert len(store.gets) == 1


async def test_what_was_read_is_there_after_the_cache_was_closed(store: Counting, open_edge: Open, read: Read) -> None:
    get, expected = read
    for _ in range(2):
        async with open_edge() as edge:
            assert await get(edge) == expected
    assert len(store.gets) == 1


async def test_a_segment_that_is_kept_whole_answers_every_range(store: Counting, edge: EdgeCache) -> None:
    await edge.get(KEY)
    await edge.settle()
    for start, length in ((0, 10), (99_000, 1000), (5, None), (0, 100_000), (100_000, 0)):
        end = None if length is None else start + length
        assert await edge.get(KEY, start, length) == BODY[start:end]
        assert await edge.get(KEY, start, length, check=right(start, length)) == BODY[start:end]
    assert len(store.gets) == 1


async def test_what_was_put_here_is_kept(store: Counting, edge: EdgeCache) -> None:
    key, body = segment(1)
    await edge.put(key, body)
    await edge.settle()
    assert await edge.get(key) == body
    assert await edge.get(key, 5, 5, check=lambda part: part == body[5:10]) == body[5:10]
    assert store.gets == []


async def test_what_the_store_does_not_take_is_not_kept(store: Counting, edge: EdgeCache, directory: Path) -> None:
    async def refuse(key: str, body: bytes) -> None:
        raise Unavailable("away")

    store.put = refuse  # type: ignore[method-assign]
    key, body = segment(1)
    with pytest.raises(Unavailable, match="away"):
        await edge.put(key, body)
    await edge.settle()
    assert kept(directory) == []
    with pytest.raises(NotFound):
        await edge.get(key)


async def test_a_part_that_nobody_checked_is_not_kept(store: Counting, edge: EdgeCache, directory: Path) -> None:
    for _ in range(2):
        assert await edge.get(KEY, 5, 5) == BODY[5:10]
        await edge.settle()
    assert len(store.gets) == 2
    assert kept(directory) == []


async def test_a_segment_that_is_not_what_its_name_says_is_not_kept(store: Counting, edge: EdgeCache, directory: Path) -> None:
    key, _ = segment(1)
    await store.put(key, b"something else")
    for _ in range(2):
        assert await edge.get(key) == b"something else"
        await edge.settle()
    assert kept(directory) == []


async def test_an_object_that_its_name_says_nothing_of_passes_through(
    store: Counting, edge: EdgeCache, directory: Path
) -> None:
    await edge.put("agentfs-replica.json", b"first")
    for _ in range(2):
        assert await edge.get("agentfs-replica.json", check=lambda body: True) == b"first"
        await edge.settle()
    assert not edge.holds("agentfs-replica.json")
    assert len(store.gets) == 2
    assert kept(directory) == []


async def test_the_memory_in_front_knows_what_is_on_the_disk(store: Counting, edge: EdgeCache) -> None:
    async with open_cached(edge, max_bytes=0) as memory:
        assert not memory.holds(KEY, 5, 5)
        await memory.get(KEY)
        await memory.settle()
        assert memory.used_bytes == 0
        assert memory.holds(KEY, 5, 5)
        assert await memory.get(KEY, 5, 5, check=right(5, 5)) == BODY[5:10]
    assert len(store.gets) == 1


async def test_what_is_held(edge: EdgeCache) -> None:
    assert not edge.holds(KEY)
    await edge.get(KEY, 5, 5, check=right(5, 5))
    await edge.settle()
    assert edge.holds(KEY, 5, 5)
    assert not edge.holds(KEY, 5, 4)
    assert not edge.holds(KEY)
    await edge.get(KEY)
    await edge.settle()
    assert edge.holds(KEY)
    assert edge.holds(KEY, 5, 4)
    assert not edge.holds(KEY, 5, 100_000)


async def test_a_deleted_object_is_forgotten(store: Counting, edge: EdgeCache, directory: Path) -> None:
    other, body = segment(1)
    await edge.put(other, body)
    await edge.get(KEY, 5, 5, check=right(5, 5))
    await edge.get(KEY)
    await edge.delete(KEY)
    await edge.settle()
    with pytest.raises(NotFound):
        await edge.get(KEY)
    with pytest.raises(NotFound):
        await edge.get(KEY, 5, 5)
    assert len(kept(directory)) == 1
    assert await edge.get(other) == body


async def test_the_numbers_say_what_it_did(edge: EdgeCache, directory: Path) -> None:
    for _ in range(3):
        await edge.get(KEY)
        await edge.settle()
    status = edge.status
    assert (status.hits, status.misses) == (2, 1)
    assert (status.hit_bytes, status.fetched_bytes) == (200_000, 100_000)
    assert status.used_bytes == edge.used_bytes == 25 * 4096
    assert status.max_bytes == edge.max_bytes == MAX_BYTES
    assert (status.directory, status.trouble) == (str(directory), "")


# ---- what is wrong on the disk


@pytest.mark.parametrize("length", [50_000, 100_032, 200_000])
async def test_wrong_bytes_on_the_disk_are_fetched_again(
    store: Counting, edge: EdgeCache, directory: Path, read: Read, length: int
) -> None:
    get, expected = read
    await get(edge)
    await edge.settle()
    for file in kept(directory):
        Path(file.path).write_bytes(Random(length).randbytes(length))
    assert await get(edge) == expected
    await edge.settle()
    assert await get(edge) == expected
    assert len(store.gets) == 2


async def test_what_a_check_refuses_is_asked_of_the_store(store: Counting, edge: EdgeCache, read: Read) -> None:
    get, expected = read
    await get(edge)
    await edge.settle()
    with pytest.raises(Corrupt):
        await edge.get(KEY, check=refuse)
    assert await get(edge) == expected


async def test_the_directory_may_vanish_at_any_moment(store: Counting, edge: EdgeCache, directory: Path, read: Read) -> None:
    get, expected = read
    for round_number in range(1, 4):
        assert await get(edge) == expected
        await edge.settle()
        assert await get(edge) == expected
        assert len(store.gets) == round_number
        shutil.rmtree(directory)


# ---- when the disk refuses


async def test_without_a_directory_reads_go_on_and_later_are_kept(
    store: Counting, tmp_path: Path, autojump_clock: trio.testing.MockClock, read: Read
) -> None:
    get, expected = read
    in_the_way = tmp_path / "cache"
    in_the_way.write_text("no directory")
    with structlog.testing.capture_logs() as logs:
        async with open_edge_cache(
            store, in_the_way / "chunks", max_bytes=MAX_BYTES, runtime=VirtualRuntime(Random(1))
        ) as edge:
            for _ in range(3):
                assert await get(edge) == expected
                await trio.sleep(PAUSE_SECONDS + 1)
            assert edge.status.trouble == "Not a directory"
            assert not edge.holds(KEY)
            in_the_way.unlink()
            await trio.sleep(PAUSE_SECONDS + 1)
            for _ in range(2):
                assert await get(edge) == expected
                await edge.settle()
            assert edge.status.trouble == ""
            assert len(store.gets) == 4
    assert [entry["event"] for entry in logs] == ["cache_keeps_nothing", "cache_keeps_again"]


async def test_a_full_disk_costs_a_reader_nothing(store: Counting, tmp_path: Path, read: Read) -> None:
    get, expected = read
    with small_disk(tmp_path / "disk", size_mib=10) as disk:
        fill(disk / "others")
        async with open_edge_cache(store, disk / "chunks", max_bytes=MAX_BYTES, runtime=SystemRuntime()) as edge:
            for _ in range(2):
                assert await get(edge) == expected
                await edge.settle()
            assert edge.status.trouble == "No space left on device"
        assert kept(disk / "chunks") == []


async def test_what_was_used_least_makes_way_on_a_full_disk(store: Counting, tmp_path: Path) -> None:
    segments = [segment(number, 4 * MIB) for number in range(30)]
    with small_disk(tmp_path / "disk", size_mib=40) as disk:
        async with open_edge_cache(store, disk / "chunks", max_bytes=MAX_BYTES, runtime=SystemRuntime()) as edge:
            for key, body in segments:
                await edge.put(key, body)
                await edge.settle()
            assert edge.status.trouble == ""
            assert edge.holds(segments[-1][0])
            assert not edge.holds(segments[0][0])
            assert len(kept(disk / "chunks")) >= 6


async def test_an_idle_cache_makes_way_for_others(
    store: Counting, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with small_disk(tmp_path / "disk", size_mib=80) as disk:
        runtime = VirtualRuntime(Random(1))
        async with open_edge_cache(store, disk / "chunks", max_bytes=MAX_BYTES, runtime=runtime) as edge:
            for number in range(10):
                await edge.put(*segment(number, 4 * MIB))
            await edge.settle()
            fill(disk / "others", leave_kib=100)
            before = len(kept(disk / "chunks"))
            await trio.sleep(15)
            assert len(kept(disk / "chunks")) < before


# ---- bounds


async def test_the_bound_is_held_and_the_last_used_stay(store: Counting, edge: EdgeCache, directory: Path) -> None:
    favourite, _ = segment(1000, 4 * MIB)
    await edge.put(*segment(1000, 4 * MIB))
    await edge.settle()
    for number in range(40):
        await edge.put(*segment(number, 4 * MIB))
        await edge.settle()
        assert sum(file.size_bytes for file in kept(directory)) <= MAX_BYTES
        for file in kept(directory):
            # As if each had been put a while after the one before.
            os.utime(file.path, ns=(file.used_ns - 61 * 10**9, file.used_ns - 61 * 10**9))
        await edge.get(favourite)
    assert edge.holds(favourite)
    assert edge.holds(segment(39, 4 * MIB)[0])
    assert not edge.holds(segment(0, 4 * MIB)[0])
    assert sum(file.size_bytes for file in kept(directory)) > MAX_BYTES // 2


class SlowDisk(SystemRuntime):
    """Threads do nothing until the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()

    async def in_thread(self, function: Callable[..., object], *args: object) -> object:  # type: ignore[override]
        await self.gate.wait()
        return await super().in_thread(function, *args)


async def test_a_slow_disk_holds_no_reader_up_and_what_waits_is_bounded(store: Counting, directory: Path) -> None:
    runtime = SlowDisk()
    segments = [segment(number, 4 * MIB) for number in range(40)]
    for key, body in segments:
        await store.put(key, body)
    async with open_edge_cache(store, directory, max_bytes=512 * MIB, runtime=runtime) as edge:
        for key, body in segments:
            assert await edge.get(key) == body
        assert kept(directory) == []
        runtime.gate.set()
        await edge.settle()
        assert sum(file.size_bytes for file in kept(directory)) == QUEUE_BYTES
        assert edge.holds(segments[0][0])


async def test_who_waits_for_the_disk_is_told_also_when_what_waits_is_dropped(store: Counting, directory: Path) -> None:
    runtime = SlowDisk()
    async with open_edge_cache(store, directory, max_bytes=MAX_BYTES, runtime=runtime) as edge, trio.open_nursery() as nursery:
        await edge.get(KEY)
        nursery.start_soon(edge.settle)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(edge.delete, KEY)
        await trio.testing.wait_all_tasks_blocked()
        await edge.put(*segment(1))
        runtime.gate.set()


async def test_too_small_a_bound_is_refused(store: Counting, directory: Path) -> None:
    with pytest.raises(Invalid, match="at least 64 MiB"):
        async with open_edge_cache(store, directory, max_bytes=MAX_BYTES - 1, runtime=SystemRuntime()):
            raise AssertionError


async def test_a_failure_of_its_user_passes_the_cache_as_it_is(open_edge: Open) -> None:
    with pytest.raises(NotFound, match="the user's own"):
        async with open_edge():
            raise NotFound("the user's own")


# ---- offline


async def test_offline_what_is_kept_is_served_and_the_rest_is_unavailable_at_once(
    store: Counting, open_edge: Open, directory: Path
) -> None:
    async with open_edge() as edge:
        await edge.get(KEY)
    store.asked = 0
    missing, body = segment(1)
    async with open_edge_cache(store, directory, max_bytes=MAX_BYTES, runtime=SystemRuntime(), offline=True) as edge:
        assert await edge.get(KEY) == BODY
        assert await edge.get(KEY, 5, 5, check=right(5, 5)) == BODY[5:10]
        operations: list[Callable[[], Awaitable[object]]] = [
            lambda: edge.get(missing),
            lambda: edge.get(missing, 1, 2),
            lambda: edge.get("agentfs-replica.json"),
            lambda: edge.put(missing, body),
            lambda: edge.size(KEY),
            lambda: edge.delete(missing),
            lambda: edge.capacity(),
            lambda: anext(aiter(edge.list(""))),
        ]
        for operation in operations:
            with pytest.raises(Unavailable, match="offline"):
                await operation()
    assert store.asked == 0


async def test_offline_a_wrong_file_is_not_served_either(store: Counting, open_edge: Open, directory: Path) -> None:
    async with open_edge() as edge:
        await edge.get(KEY)
    [file] = kept(directory)
    Path(file.path).write_bytes(bytes(100_000))
    async with open_edge_cache(store, directory, max_bytes=MAX_BYTES, runtime=SystemRuntime(), offline=True) as edge:
        with pytest.raises(Unavailable):
            await edge.get(KEY, 5, 5, check=right(5, 5))
