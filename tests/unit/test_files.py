"""Opening files that are replaced at the same moment."""

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from agentfs.journal.memory import MemoryJournal
from agentfs.model.errors import NotFound, Stale
from agentfs.model.ids import ROOT_INO, Ino
from agentfs.workspace.settings import Settings
from agentfs.workspace.storage import Opened
from agentfs.workspace.workspace import Workspace, open_workspace
from tests.simulation.parts import World, make_world
from tests.simulation.runtime import VirtualRuntime
from tests.simulation.virtual_time import in_virtual_time

FILE = stat.S_IFREG | 0o644


@pytest.fixture
def world() -> World:
    return make_world(1)


@asynccontextmanager
async def opened(world: World, cache: Path, host: str) -> AsyncIterator[Workspace]:
    """A mount of its own, without a kernel."""
    async with open_workspace(
        journal=MemoryJournal(world.log),
        open_store=lambda replica: Opened(world.stores[replica.replica]),
        cache_dir=cache / host,
        settings=Settings(host=host, pid=1),
        runtime=VirtualRuntime(Random(host)),
    ) as workspace:
        yield workspace


async def written(workspace: Workspace, name: bytes, content: bytes) -> Ino:
    ino = (await workspace.names.make(ROOT_INO, name, FILE, uid=0, gid=0, wait=True)).ino
    handle = await workspace.files.open(ino, os.O_WRONLY)
    await workspace.files.write(handle.number, 0, content)
    await workspace.files.flush(handle.number)
    workspace.files.release(handle.number)
    return ino


@in_virtual_time
async def test_who_had_looked_a_name_up_opens_what_a_rename_here_replaced_since(world: World, tmp_path: Path) -> None:
    async with opened(world, tmp_path, "a") as workspace:
        old, new = await written(workspace, b"document", b"old"), await written(workspace, b"draft", b"new")
        await workspace.names.rename(ROOT_INO, b"draft", ROOT_INO, b"document", 0)
        handle = await workspace.files.open(old, os.O_RDONLY)
        assert await workspace.files.read(handle.number, 0, 10) == b"old"
        workspace.files.release(handle.number)
        assert workspace.names.look_up(ROOT_INO, b"document").ino == new


@in_virtual_time
async def test_what_was_removed_has_to_be_looked_up_again(world: World, tmp_path: Path) -> None:
    async with opened(world, tmp_path, "a") as workspace:
        old = await written(workspace, b"document", b"old")
        await workspace.names.unlink(ROOT_INO, b"document")
        with pytest.raises(Stale):
            await workspace.files.open(old, os.O_RDONLY)
        with pytest.raises(NotFound):
            workspace.names.look_up(ROOT_INO, b"document")


@in_virtual_time
async def test_what_another_mount_replaced_has_to_be_looked_up_again(world: World, tmp_path: Path) -> None:
    async with opened(world, tmp_path, "a") as workspace, opened(world, tmp_path, "b") as other:
        old = await written(workspace, b"document", b"old")
        await written(other, b"draft", b"new")
        await other.names.rename(ROOT_INO, b"draft", ROOT_INO, b"document", 0)
        with pytest.raises(Stale):
            await workspace.files.open(old, os.O_RDONLY)


@in_virtual_time
async def test_what_survived_a_rename_here_is_not_opened_as_it_was_then(world: World, tmp_path: Path) -> None:
    async with opened(world, tmp_path, "a") as workspace, opened(world, tmp_path, "b") as other:
        old = await written(workspace, b"document", b"old")
        await written(workspace, b"draft", b"new")
        exchange = 2
        await workspace.names.rename(ROOT_INO, b"draft", ROOT_INO, b"document", exchange)
        await other.names.unlink(ROOT_INO, b"draft")
        await other.drain()
        with pytest.raises(Stale):
            await workspace.files.open(old, os.O_RDONLY)
