"""Every chunk store keeps `agentfs.chunks.contract`; and what only a directory can show: disks, permissions, leftovers."""

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from agentfs.chunks.cached import open_cached
from agentfs.chunks.contract import Capacity, Check, ChunkStore, ObjectInfo
from agentfs.chunks.directory import DirectoryStore
from agentfs.chunks.memory import MemoryStore
from agentfs.chunks.replicated import open_replicated
from agentfs.chunks.retrying import Retrying
from agentfs.chunks.s3 import S3Store
from agentfs.model.errors import AgentfsError, Corrupt, Denied, Invalid, NoSpace, NotFound, Unavailable
from agentfs.model.ids import ReplicaId
from agentfs.runtime import SystemRuntime
from agentfs.s3 import parse_s3_url
from tests.mount.small_disk import small_disk
from tests.regions import MakeRegions

T = TypeVar("T")

BOUND_SECONDS = 60
"""After how long a test that hangs fails. Nothing is expected to take that long."""

KEY = "segments/ab/abcdef.seg"


@pytest.fixture(autouse=True)
async def bound() -> AsyncIterator[None]:
    with trio.fail_after(BOUND_SECONDS):
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "replica"
    root.mkdir()
    return root


@pytest.fixture
def directory(root: Path) -> DirectoryStore:
    return DirectoryStore(root, runtime=SystemRuntime())


@asynccontextmanager
async def closing(store: ChunkStore) -> AsyncIterator[ChunkStore]:
    """A store that needs nothing but to be closed."""
    yield store
    await store.aclose()


@pytest.fixture
def s3(regions: MakeRegions) -> S3Store:
    [region] = regions(1)
    return S3Store(parse_s3_url(region.url("a/prefix")), runtime=SystemRuntime())


@pytest.fixture(params=["memory", "directory", "s3", "cached", "replicated", "retrying", "retrying s3"])
def opening(request: pytest.FixtureRequest) -> AbstractAsyncContextManager[ChunkStore]:
    """How a store of the suite is opened. Fixtures are asked for by name, so that servers start only where they are used."""
    runtime = SystemRuntime()

    def fixture(name: str) -> ChunkStore:
        store: ChunkStore = request.getfixturevalue(name)
        return store

    openings: dict[str, Callable[[], AbstractAsyncContextManager[ChunkStore]]] = {
        "memory": lambda: closing(MemoryStore()),
        "directory": lambda: closing(fixture("directory")),
        "s3": lambda: closing(fixture("s3")),
        "cached": lambda: open_cached(MemoryStore(), max_bytes=1 << 20),
        "replicated": lambda: open_replicated(
            {ReplicaId(1): MemoryStore(), ReplicaId(2): fixture("directory")}, replication="sync", runtime=runtime
        ),
        "retrying": lambda: closing(Retrying(Moody(MemoryStore()), runtime=Hurried())),
        "retrying s3": lambda: closing(Retrying(fixture("s3"), runtime=runtime)),
    }
    return openings[request.param]()


@pytest.fixture
async def store(opening: AbstractAsyncContextManager[ChunkStore]) -> AsyncIterator[ChunkStore]:
    async with opening as store:
        yield store


class Hurried(SystemRuntime):
    """The real runtime, in which nobody waits."""

    async def sleep(self, seconds: float) -> None:
        await trio.lowlevel.checkpoint()


class Moody:
    """A store that fails at every second request of a task, before or after it did what was asked, and amid listings."""

    def __init__(self, store: ChunkStore) -> None:
        self._store = store
        self._asked = 0
        self._asked_by: dict[trio.lowlevel.Task, int] = {}

    async def put(self, key: str, body: bytes) -> None:
        await self._either(lambda: self._store.put(key, body))

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        return await self._either(lambda: self._store.get(key, start, length, check=check))

    async def size(self, key: str) -> int:
        return await self._either(lambda: self._store.size(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        self._asked += 1
        left = self._asked
        async with aclosing(self._store.list(prefix)) as listing:  # type: ignore[type-var]
            async for info in listing:
                if not left:
                    raise Unavailable("not in the mood")
                yield info
                left -= 1

    async def delete(self, key: str) -> None:
        await self._either(lambda: self._store.delete(key))

    async def capacity(self) -> Capacity | None:
        return await self._either(self._store.capacity)

    async def aclose(self) -> None:
        await self._store.aclose()

    async def _either(self, ask: Callable[[], Awaitable[T]]) -> T:
        # Counted for each task: among many at once one could be unlucky every time.
        task = trio.lowlevel.current_task()
        asked = self._asked_by[task] = self._asked_by.get(task, 0) + 1
        self._asked += 1
        if asked % 4 == 1:
            raise Unavailable("not in the mood")
        answer = await ask()
        if asked % 4 == 3:
            raise Unavailable("the answer was lost")
        return answer


async def listed(store: ChunkStore, prefix: str) -> list[ObjectInfo]:
    return [info async for info in store.list(prefix)]


async def test_what_was_put_is_got(store: ChunkStore) -> None:
    body = os.urandom(300_000)
    await store.put(KEY, body)
    assert await store.get(KEY) == body
    assert await store.size(KEY) == len(body)


async def test_an_empty_object_is_an_object(store: ChunkStore) -> None:
    await store.put(KEY, b"")
    assert await store.get(KEY) == b""
    assert await store.size(KEY) == 0
    assert await listed(store, "") == [ObjectInfo(KEY, 0)]


@pytest.mark.parametrize(("start", "length"), [(0, 3), (3, 4), (7, None), (0, 0), (10, None), (10, 0), (0, 10), (4, 6)])
async def test_a_range(store: ChunkStore, start: int, length: int | None) -> None:
    body = b"0123456789"
    await store.put(KEY, body)
    assert await store.get(KEY, start, length) == body[start : None if length is None else start + length]


@pytest.mark.parametrize(("start", "length"), [(0, 11), (5, 6), (11, None), (11, 0), (1 << 40, 1)])
async def test_a_range_beyond_the_end_is_corrupt(store: ChunkStore, start: int, length: int | None) -> None:
    await store.put(KEY, b"0123456789")
    with pytest.raises(Corrupt):
        await store.get(KEY, start, length)


async def test_check_sees_the_bytes_asked_for_and_decides(store: ChunkStore) -> None:
    await store.put(KEY, b"0123456789")
    seen: list[bytes] = []

    def accept(body: bytes) -> bool:
        seen.append(body)
        return True

    assert await store.get(KEY, 2, 3, check=accept) == b"234"
    assert set(seen) == {b"234"}
    with pytest.raises(Corrupt):
        await store.get(KEY, 3, 3, check=lambda body: False)


async def test_bytes_got_without_a_check_do_not_pass_a_later_one(store: ChunkStore) -> None:
    await store.put(KEY, b"0123456789")
    await store.get(KEY)
    with pytest.raises(Corrupt):
        await store.get(KEY, check=lambda body: False)


async def test_putting_again_is_harmless(store: ChunkStore) -> None:
    await store.put(KEY, b"same")
    await store.put(KEY, b"same")
    assert await store.get(KEY) == b"same"
    assert await listed(store, "") == [ObjectInfo(KEY, 4)]


async def test_many_puts_at_once_of_one_key_and_of_others(store: ChunkStore) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(24):
            nursery.start_soon(store.put, f"segments/{number % 3}/{number % 6}.seg", bytes([number % 6]) * 1000)
    for number in range(6):
        assert await store.get(f"segments/{number % 3}/{number}.seg") == bytes([number]) * 1000
    assert len(await listed(store, "")) == 6


@pytest.mark.parametrize("key", [KEY, "segments", "segments/ab", "segments/ab/other.seg/below"])
async def test_an_unknown_key_is_not_found(store: ChunkStore, key: str) -> None:
    await store.put("segments/ab/other.seg", b"x")
    with pytest.raises(NotFound):
        await store.get(key)
    with pytest.raises(NotFound):
        await store.size(key)


async def test_a_deleted_object_is_gone_and_can_be_put_again(store: ChunkStore) -> None:
    await store.put(KEY, b"first")
    await store.get(KEY)
    await store.delete(KEY)
    with pytest.raises(NotFound):
        await store.get(KEY)
    assert await listed(store, "") == []
    await store.delete(KEY)
    await store.put(KEY, b"again")
    assert await store.get(KEY) == b"again"


async def test_an_unknown_key_is_deleted_without_complaint(store: ChunkStore) -> None:
    await store.delete(KEY)


async def test_a_listing_is_in_the_order_of_keys(store: ChunkStore) -> None:
    keys = ["a.b", "a/b", "a-b/c", "a0", "b/1", "b/10", "b/2/x", "b/2.x", "journal/00", "journal/01", "z"]
    for key in reversed(keys):
        await store.put(key, key.encode())
    assert await listed(store, "") == [ObjectInfo(key, len(key)) for key in sorted(keys)]


@pytest.mark.parametrize("prefix", ["b/", "b", "b/2", "b/2/", "b/2/x", "journal/0", "nothing/", "b/2/xy", "a"])
async def test_a_listing_holds_exactly_what_starts_with_the_prefix(store: ChunkStore, prefix: str) -> None:
    keys = ["a0", "b/1", "b/2/x", "b/2.x", "bb", "journal/00", "journal/01"]
    for key in keys:
        await store.put(key, b"x")
    assert await listed(store, prefix) == [ObjectInfo(key, 1) for key in sorted(keys) if key.startswith(prefix)]


async def test_a_listing_may_be_of_thousands(store: ChunkStore) -> None:
    keys = [f"k{number % 7}/{number:04}" for number in range(300)]
    for key in keys:
        await store.put(key, b"")
    assert [info.key for info in await listed(store, "")] == sorted(keys)


async def test_capacity_makes_sense(store: ChunkStore) -> None:
    capacity = await store.capacity()
    assert capacity is None or 0 <= capacity.free <= capacity.total


# ---- what only a directory can show


async def test_a_directory_survives_its_store(root: Path, directory: DirectoryStore) -> None:
    await directory.put(KEY, b"body")
    assert (root / KEY).read_bytes() == b"body"
    assert await DirectoryStore(root, runtime=SystemRuntime()).get(KEY) == b"body"


async def test_capacity_is_what_the_disk_has(root: Path, directory: DirectoryStore) -> None:
    capacity = await directory.capacity()
    numbers = os.statvfs(root)
    assert capacity is not None
    assert capacity.total == numbers.f_blocks * numbers.f_frsize


async def test_what_a_killed_writer_left_is_not_listed(root: Path, directory: DirectoryStore) -> None:
    await directory.put(KEY, b"body")
    (root / KEY).with_name(".tmp-0123456789abcdef").write_bytes(b"half")
    (root / ".tmp-0123456789abcdef").write_bytes(b"half")
    assert await listed(directory, "") == [ObjectInfo(KEY, 4)]


async def test_an_object_of_another_size_is_replaced(root: Path, directory: DirectoryStore) -> None:
    await directory.put(KEY, b"body")
    (root / KEY).write_bytes(b"bo")
    await directory.put(KEY, b"body")
    assert await directory.get(KEY) == b"body"


async def test_a_subdirectory_that_was_removed_is_made_again(root: Path, directory: DirectoryStore) -> None:
    await directory.put(KEY, b"body")
    (root / KEY).unlink()
    (root / KEY).parent.rmdir()
    (root / KEY).parent.parent.rmdir()
    await directory.put(KEY, b"body")
    assert await directory.get(KEY) == b"body"


async def test_a_missing_root_is_unavailable_and_is_not_made(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "absent", runtime=SystemRuntime())
    with pytest.raises(Unavailable, match=r"replica directory .*absent is missing"):
        await store.put(KEY, b"body")
    with pytest.raises(Unavailable, match="is missing"):
        await store.get(KEY)
    with pytest.raises(Unavailable, match="is missing"):
        await store.size(KEY)
    with pytest.raises(Unavailable, match="is missing"):
        await store.delete(KEY)
    with pytest.raises(Unavailable, match="is missing"):
        await store.capacity()
    with pytest.raises(Unavailable, match="is missing"):
        await listed(store, "")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("key", ["../x", "a/../b", "/etc/x", "a//b", "", "a/", ".", "A", "a/.tmp-x", "a" * 201, "a\n"])
async def test_a_key_outside_the_contract_is_refused(directory: DirectoryStore, key: str) -> None:
    with pytest.raises(Invalid):
        await directory.put(key, b"x")


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EACCES, Denied),
        (errno.EPERM, Denied),
        (errno.EROFS, Denied),
        (errno.EIO, Unavailable),
        (errno.ESTALE, Unavailable),
    ],
)
async def test_a_failed_put_says_why_and_leaves_nothing(
    root: Path, directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[AgentfsError]
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    await directory.put("segments/ab/before.seg", b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(expected) as caught:
            await directory.put(KEY, b"body")
    assert str(root / KEY) in str(caught.value)
    assert os.strerror(number) in str(caught.value)
    assert [path.name for path in (root / KEY).parent.iterdir()] == ["before.seg"]
    await directory.put(KEY, b"body")
    assert await directory.get(KEY) == b"body"


async def test_a_full_disk_takes_nothing_and_keeps_what_it_has(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_mib=1) as disk:
        store = DirectoryStore(disk, runtime=SystemRuntime())
        await store.put(KEY, b"body")
        with pytest.raises(NoSpace):
            await store.put("segments/ab/big.seg", bytes(4 << 20))
        assert await listed(store, "") == [ObjectInfo(KEY, 4)]
        assert [path.name for path in (disk / KEY).parent.iterdir()] == [Path(KEY).name]
        await store.put("segments/ab/small.seg", bytes(1 << 19))
        assert await store.get(KEY) == b"body"


async def test_a_new_file_and_its_new_directories_reach_the_disk(
    root: Path, directory: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    await directory.put(KEY, b"body")
    segments, inner = root / "segments", root / "segments" / "ab"
    assert synced[:2] == [str(root), str(segments)]
    assert Path(synced[2]).name.startswith(".tmp-")
    assert synced[3:] == [str(inner)]
