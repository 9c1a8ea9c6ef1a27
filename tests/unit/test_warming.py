"""Warming: afterwards everything is read without a replica; what is near costs nothing; what could not be had is named."""

import os
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import trio

from agentfs.model.errors import NotFound, Unavailable
from agentfs.model.ids import ROOT_INO, Ino
from agentfs.workspace.warming import FAILED_MAX, PARALLEL, Warming, WarmProgress
from agentfs.workspace.workspace import Workspace
from tests.simulation.mounts import make_shared, open_mount
from tests.simulation.virtual_time import in_virtual_time
from tests.unit.reading import MIB, FarStore, Library, open_reading


@asynccontextmanager
async def a_tree(directory: Path, bodies: Mapping[bytes, bytes]) -> AsyncIterator[tuple[Workspace, FarStore]]:
    """A fresh mount of a workspace with these files, each in a directory of its own; another mount wrote them."""
    shared, store = make_shared(), FarStore()
    shared.store = store
    async with open_mount(shared, directory, 1) as writing:
        for name, body in bodies.items():
            await write(writing.workspace, name, body)
    store.asked.clear()
    async with open_mount(shared, directory, 2) as mount:
        yield mount.workspace, store


async def write(workspace: Workspace, path: bytes, body: bytes) -> None:
    """Make a file, with the directory that it is in."""
    parent = ROOT_INO
    *above, name = path.split(b"/")
    for directory in above:
        parent = (await workspace.names.make(parent, directory, stat.S_IFDIR | 0o755, uid=0, gid=0, wait=True)).ino
    ino = (await workspace.names.make(parent, name, stat.S_IFREG | 0o644, uid=0, gid=0, wait=True)).ino
    handle = (await workspace.files.open(ino, os.O_RDWR)).number
    for start in range(0, len(body), MIB):
        await workspace.files.write(handle, start, body[start : start + MIB])
    await workspace.files.flush(handle)
    workspace.files.release(handle)


def at(workspace: Workspace, path: bytes) -> Ino:
    """The file at a path."""
    ino = ROOT_INO
    for name in path.split(b"/"):
        ino = workspace.names.look_up(ino, name).ino
    return ino


async def content(workspace: Workspace, path: bytes, size: int) -> bytes:
    """A file, read from its first byte to its last."""
    handle = (await workspace.files.open(at(workspace, path), os.O_RDONLY)).number
    try:
        return b"".join([await workspace.files.read(handle, start, MIB) for start in range(0, size, MIB)])
    finally:
        workspace.files.release(handle)


async def cached(workspace: Workspace, path: bytes) -> str:
    """What the attribute says."""
    return (await workspace.attributes.get_xattr(at(workspace, path), b"user.agentfs.cached")).decode()


def a_body(number: int, size: int) -> bytes:
    return Random(number).randbytes(size)


TREE = {
    b"inline": b"x" * 100,
    b"a/big": a_body(1, 12 * MIB + 7),
    b"b/middle": a_body(2, 100_000),
    b"c/d/also": a_body(3, 200_000),
    b"empty": b"",
}


@in_virtual_time
async def test_what_was_warmed_is_read_without_a_replica(tmp_path: Path) -> None:
    async with a_tree(tmp_path, TREE) as (workspace, store):
        steps: list[WarmProgress] = []
        assert await workspace.warming.warm(b"", steps.append) == []
        last = steps[-1]
        # `file` and `other` are there from the start.
        assert (last.files_done, last.files_total, last.failed) == (7, 7, 0)
        assert last.bytes_done == last.bytes_total > sum(map(len, TREE.values())) - 100
        assert [step.bytes_done for step in steps] == sorted(step.bytes_done for step in steps)
        store.asked.clear()
        store.error = Unavailable("gone")
        for path, body in TREE.items():
            assert await content(workspace, path, len(body)) == body
        assert store.asked == []


@in_virtual_time
async def test_a_second_time_everything_is_here(tmp_path: Path) -> None:
    async with a_tree(tmp_path, TREE) as (workspace, store):
        await workspace.warming.warm(b"", lambda _: None)
        store.asked.clear()
        steps: list[WarmProgress] = []
        assert await workspace.warming.warm(b"", steps.append) == []
        assert (steps[-1].files_done, steps[-1].bytes_total) == (7, 0)
        assert store.asked == []


@in_virtual_time
async def test_only_what_lies_at_the_path_is_fetched(tmp_path: Path) -> None:
    async with a_tree(tmp_path, TREE) as (workspace, store):
        steps: list[WarmProgress] = []
        await workspace.warming.warm(b"b", steps.append)
        assert steps[-1].files_total == 1
        await workspace.warming.warm(b"a/big", steps.append)
        assert steps[-1].files_total == 1
        store.error = Unavailable("gone")
        assert await content(workspace, b"a/big", 12 * MIB + 7) == TREE[b"a/big"]
        with pytest.raises(Unavailable):
            await content(workspace, b"c/d/also", 1)
        with pytest.raises(NotFound):
            await workspace.warming.warm(b"missing", steps.append)


@in_virtual_time
async def test_segments_are_fetched_side_by_side_and_each_as_one(tmp_path: Path) -> None:
    bodies = {b"f%d" % number: a_body(number, 2 * MIB) for number in range(20)}
    async with a_tree(tmp_path, bodies) as (workspace, store):
        store.seconds = 1.0
        began = trio.current_time()
        await workspace.warming.warm(b"", lambda _: None)
        assert trio.current_time() - began < 20 / PARALLEL + 1
        assert store.most_running == PARALLEL
        assert {asked.length for asked in store.asked} == {None}


class Here:
    """A follower of a journal that stands still."""

    async def reach_tail(self) -> None:
        await trio.lowlevel.checkpoint()


@in_virtual_time
async def test_of_a_segment_of_which_little_is_wanted_only_that_is_fetched(tmp_path: Path) -> None:
    library = Library()
    bodies = await library.small_files(30)
    async with open_reading(library, tmp_path) as reading:
        core = SimpleNamespace(tables=reading.tables, follower=Here())
        warming = Warming(core, reading.chunks)  # type: ignore[arg-type]
        steps: list[WarmProgress] = []
        for number in range(3):
            await warming.warm(b"small%d" % number, steps.append)
            assert steps[-1].bytes_done == steps[-1].bytes_total == 5001
        assert [asked.length for asked in reading.store.asked] == [5001] * 3
        await warming.warm(b"", steps.append)
        assert [asked.length for asked in reading.store.asked] == [5001] * 3 + [None]
        reading.store.error = Unavailable("gone")
        await reading.all_of(bodies)


@in_virtual_time
async def test_a_segment_that_is_damaged_costs_only_the_files_that_are(tmp_path: Path) -> None:
    library = Library()
    bodies = await library.small_files(5)
    async with open_reading(library, tmp_path) as reading:
        (info,) = [info async for info in library.store.list("segments/")]
        body = bytearray(await library.store.get(info.key))
        body[10] ^= 1
        await library.store.delete(info.key)
        await library.store.put(info.key, bytes(body))
        core = SimpleNamespace(tables=reading.tables, follower=Here())
        failed = await Warming(core, reading.chunks).warm(b"", lambda _: None)  # type: ignore[arg-type]
        assert [line.partition(":")[0] for line in failed] == ["small0"]
        reading.store.error = Unavailable("gone")
        await reading.all_of(dict(list(bodies.items())[1:]))


@in_virtual_time
async def test_what_cannot_be_fetched_is_named_and_the_rest_is_fetched(tmp_path: Path) -> None:
    async with a_tree(tmp_path, TREE) as (workspace, store):
        await workspace.warming.warm(b"b", lambda _: None)
        store.error = Unavailable("nobody answers")
        steps: list[WarmProgress] = []
        failed = await workspace.warming.warm(b"", steps.append)
        assert sorted(line.partition(":")[0] for line in failed) == ["a/big", "c/d/also"]
        assert all("nobody answers" in line for line in failed)
        assert (steps[-1].files_done, steps[-1].files_total, steps[-1].failed) == (5, 7, 2)


@in_virtual_time
async def test_a_great_many_failures_are_counted(tmp_path: Path) -> None:
    async with a_tree(tmp_path, {}) as (workspace, store):
        for number in range(FAILED_MAX + 5):
            await write(workspace, b"f%03d" % number, a_body(number, 40_000))
        workspace._storage.chunks._kept.clear()
        store.error = Unavailable("nobody answers")
        failed = await workspace.warming.warm(b"", lambda _: None)
        assert len(failed) == FAILED_MAX + 1
        assert failed[-1] == "and 5 more files"


@in_virtual_time
async def test_who_is_cancelled_leaves_nothing_running(tmp_path: Path) -> None:
    async with a_tree(tmp_path, TREE) as (workspace, store):
        store.seconds = 100.0
        with trio.move_on_after(1):
            await workspace.warming.warm(b"", lambda _: None)
        await trio.testing.wait_all_tasks_blocked()
        assert store.running == 0


@in_virtual_time
async def test_how_much_is_here_is_told(tmp_path: Path) -> None:
    async with a_tree(tmp_path, TREE) as (workspace, _):
        size = 12 * MIB + 7
        assert await cached(workspace, b"inline") == "100/100"
        assert await cached(workspace, b"empty") == "0/0"
        assert await cached(workspace, b"b/middle") == "0/100000"
        assert await cached(workspace, b"a/big") == f"0/{size}"
        handle = (await workspace.files.open(at(workspace, b"a/big"), os.O_RDWR)).number
        await workspace.files.read(handle, 3 * MIB + 5, 1)
        assert await cached(workspace, b"a/big") == f"{MIB}/{size}"
        # What is staged is here: over chunks that are far, over one that is near, and behind the end.
        await workspace.files.write(handle, 0, b"y" * 1000)
        await workspace.files.write(handle, 3 * MIB, b"y" * 1000)
        await workspace.files.write(handle, size, b"y" * 1000)
        assert await cached(workspace, b"a/big") == f"{MIB + 2000}/{size + 1000}"
        workspace.files.truncate(at(workspace, b"a/big"), 4 * MIB)
        assert await cached(workspace, b"a/big") == f"{MIB + 1000}/{4 * MIB}"
        workspace.files.truncate(at(workspace, b"a/big"), 100 * MIB)
        assert await cached(workspace, b"a/big") == f"{97 * MIB + 1000}/{100 * MIB}"
        await workspace.warming.warm(b"b/middle", lambda _: None)
        assert await cached(workspace, b"b/middle") == "100000/100000"
        workspace.files.release(handle)
