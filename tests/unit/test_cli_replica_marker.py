"""Making a place a replica: it is marked, checked, and put back as it was if that fails. Here over a store in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest
import trio

from agentfs.chunks.contract import Check, ObjectInfo
from agentfs.chunks.memory import MemoryStore
from agentfs.cli.replica_marker import (
    MARKER_FORMAT,
    MARKER_KEY,
    Marked,
    PreparedReplica,
    ReplicaMarker,
    check_marker,
    read_marker,
)
from agentfs.cli.replica_place import Place
from agentfs.model.errors import AgentfsError, Corrupt, Denied, Exists, Invalid, NotFound, Unavailable

OURS = ReplicaMarker(format=MARKER_FORMAT, workspace="w-1", name="demo", replica=2)
OTHERS = ReplicaMarker(format=MARKER_FORMAT, workspace="w-2", name="other", replica=1)


def place(store: MemoryStore | None = None) -> Place:
    return Place(MemoryStore() if store is None else store, "s3://bucket/a", None)


async def objects(place: Place) -> dict[str, bytes]:
    return {info.key: await place.store.get(info.key) async for info in place.store.list("")}


async def test_an_empty_place_is_marked_and_unmarked() -> None:
    there = place()
    replica = PreparedReplica(there)
    await replica.prepare(OURS)
    assert await read_marker(there) == OURS
    await check_marker(there, workspace="w-1", replica=2)
    await replica.undo()
    assert await objects(there) == {}


async def test_another_workspaces_replica_is_refused_and_left_alone() -> None:
    there = place()
    await PreparedReplica(there).prepare(OTHERS)
    replica = PreparedReplica(there)
    with pytest.raises(Exists, match=r"s3://bucket/a holds replica 1 of workspace other \(w-2\)"):
        await replica.prepare(OURS)
    await replica.undo()
    assert await read_marker(there) == OTHERS


async def test_a_place_with_anything_in_it_is_refused_and_left_alone() -> None:
    there = place()
    await there.store.put("photo", b"x")
    replica = PreparedReplica(there)
    with pytest.raises(Exists, match="not empty"):
        await replica.prepare(OURS)
    await replica.undo()
    assert await objects(there) == {"photo": b"x"}


async def test_a_removed_replica_can_come_back_under_another_number() -> None:
    there = place()
    await PreparedReplica(there).prepare(OURS)
    await there.store.put("segments/x", b"kept")
    third = msgspec.structs.replace(OURS, replica=3)
    with pytest.raises(Exists):
        await PreparedReplica(there).prepare(third)
    replica = PreparedReplica(there)
    await replica.prepare(third, retired=frozenset({1, 2}))
    assert await read_marker(there) == third
    await replica.undo()
    assert await read_marker(there) == OURS
    assert await there.store.get("segments/x") == b"kept"


class ReadOnlyStore(MemoryStore):
    """Answers, and takes nothing."""

    async def put(self, key: str, body: bytes) -> None:
        raise Denied("bucket: writing is denied")

    async def delete(self, key: str) -> None:
        raise Denied("bucket: deleting is denied")


async def test_a_place_that_takes_nothing_says_why() -> None:
    replica = PreparedReplica(place(ReadOnlyStore()))
    with pytest.raises(Denied, match="denied"):
        await replica.prepare(OURS)
    await replica.undo()


class ForgetfulStore(MemoryStore):
    """Somebody else's marker is there as soon as ours was put."""

    async def put(self, key: str, body: bytes) -> None:
        await super().put(key, msgspec.json.encode(OTHERS))


async def test_who_comes_second_leaves_the_first_alone() -> None:
    there = place(ForgetfulStore())
    replica = PreparedReplica(there)
    with pytest.raises(Exists, match="at the same time, by replica 1 of workspace other"):
        await replica.prepare(OURS)
    await replica.undo()
    assert await read_marker(there) == OTHERS


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "not readable"),
        (b"\xff", "not readable"),
        (msgspec.json.encode(msgspec.structs.replace(OURS, format=99)), "upgrade"),
        (msgspec.json.encode(OTHERS), "holds replica 1 of workspace other"),
        (None, "not marked"),
    ],
)
async def test_a_marker_that_is_not_ours_is_refused_naming_the_place(body: bytes | None, words: str) -> None:
    there = place()
    if body is not None:
        await there.store.put(MARKER_KEY, body)
    with pytest.raises(Invalid, match=f"s3://bucket/a.*{words}"):
        await check_marker(there, workspace="w-1", replica=2)


class BrokenStore(MemoryStore):
    """Fails as it is told."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        raise self._error

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        raise self._error
        yield  # type: ignore[unreachable]


@pytest.mark.parametrize("error", [Unavailable("no route"), Denied("forbidden"), Corrupt("short")])
async def test_a_store_that_fails_is_not_taken_for_an_empty_place(error: Exception) -> None:
    with pytest.raises(type(error)):
        await PreparedReplica(place(BrokenStore(error))).prepare(OURS)


# ---- a replica's store behind its marker


class CountingStore(MemoryStore):
    """Counts what it is asked; `error` is what it fails with."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.error: AgentfsError | None = None

    async def get(self, key: str, start: int = 0, length: int | None = None, *, check: Check | None = None) -> bytes:
        self.asked.append(key)
        if self.error is not None:
            raise self.error
        return await super().get(key, start, length, check=check)


async def marked(store: CountingStore) -> Marked:
    await store.put(MARKER_KEY, msgspec.json.encode(OURS))
    return Marked(place(store), workspace="w-1", replica=2)


async def test_the_marker_is_looked_at_once_before_anything_else() -> None:
    store = CountingStore()
    ours = await marked(store)
    await ours.put("segments/x", b"x")
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ours.get, "segments/x")
    await ours.check()
    assert store.asked == [MARKER_KEY, "segments/x", "segments/x", "segments/x"]


@pytest.mark.parametrize("operation", ["put", "get", "size", "list", "delete", "capacity"])
async def test_a_place_that_is_not_ours_is_asked_for_nothing(operation: str) -> None:
    store = CountingStore()
    ours = await marked(store)
    await store.delete(MARKER_KEY)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "put": lambda: ours.put("segments/x", b"x"),
        "get": lambda: ours.get("segments/x"),
        "size": lambda: ours.size("segments/x"),
        "list": lambda: anext(ours.list("segments/")),
        "delete": lambda: ours.delete("segments/x"),
        "capacity": ours.capacity,
    }
    with pytest.raises(Denied, match="not marked as replica 2"):
        await calls[operation]()
    assert store.asked == [MARKER_KEY]
    assert [info async for info in store.list("")] == []


async def test_a_place_that_becomes_ours_is_used_then() -> None:
    store = CountingStore()
    ours = await marked(store)
    await store.delete(MARKER_KEY)
    with pytest.raises(Denied):
        await ours.put("segments/x", b"x")
    await store.put(MARKER_KEY, msgspec.json.encode(OURS))
    await ours.put("segments/x", b"x")
    assert await store.get("segments/x") == b"x"


@pytest.mark.parametrize("error", [Unavailable("the disk is gone"), Denied("there is no such bucket"), NotFound("no object")])
async def test_a_place_that_may_have_changed_is_looked_at_again(error: AgentfsError) -> None:
    store = CountingStore()
    ours = await marked(store)
    await ours.put("segments/x", b"x")
    store.error = error
    with pytest.raises(type(error)):
        await ours.get("segments/x")
    store.error = None
    await store.delete(MARKER_KEY)
    await store.put(MARKER_KEY, msgspec.json.encode(OTHERS))
    with pytest.raises(Denied, match="replica 1 of workspace other"):
        await ours.put("segments/y", b"y")
