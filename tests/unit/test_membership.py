"""Membership: what becomes of a mount whose session was declared dead, or is used by a copy of it."""

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from agentfs.journal.memory import MemoryJournal
from agentfs.model.changes import Fence
from agentfs.model.codec import encode_entry
from agentfs.model.entry import Entry, Transaction
from agentfs.model.errors import AgentfsError, Fenced
from agentfs.model.ids import ROOT_INO, SessionId, TxnNumber, first_ino
from agentfs.model.session import FENCED, OPEN
from agentfs.state.checksum import checksum
from tests.simulation.entries import make
from tests.simulation.locker import is_set_aside
from tests.simulation.mounts import FILE, OTHER, Mount, Shared, make_shared, open_mount
from tests.simulation.virtual_time import in_virtual_time

DIRECTORY = 0o040755


@pytest.fixture
def shared() -> Shared:
    return make_shared()


def open_sessions(shared: Shared) -> list[SessionId]:
    """Those that have not ended, at the journal's tail."""
    tables = shared.tables()
    found = [number for number, each in tables.sessions.items() if each.standing == OPEN]
    tables.close()
    return found


def folders(mount: Mount) -> list[Path]:
    """Its recovery folders."""
    return [Path(each) for each in mount.workspace.status().recovered]


async def write(mount: Mount, data: bytes, ino: int = FILE, flags: int = 0) -> int:
    """Open and write; the handle's number."""
    handle = await mount.workspace.files.open(ino, os.O_RDWR | flags)  # type: ignore[arg-type]
    await mount.workspace.files.write(handle.number, 0, data)
    return handle.number


async def fenced_and_back(mount: Mount, shared: Shared) -> None:
    """Its session is declared dead; return when it has another one."""
    before = mount.session
    await shared.fence(before)
    with trio.fail_after(10):
        while mount.session == before:
            await trio.sleep(0.01)


# ---- fenced


@in_virtual_time
async def test_a_mount_that_was_declared_dead_comes_back_by_itself(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount:
        before = mount.session
        await fenced_and_back(mount, shared)
        assert open_sessions(shared) == [mount.session]
        assert shared.tables().sessions[before].standing == FENCED
        await mount.workspace.names.make(ROOT_INO, b"after", DIRECTORY, uid=0, gid=0, wait=True)
        assert shared.tables().dentry(ROOT_INO, b"after") is not None


@in_virtual_time
async def test_what_was_written_under_a_lost_lock_is_kept_apart_and_its_writer_is_told(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount:
        await mount.lock(1)
        handle = await write(mount, b"stale")
        await fenced_and_back(mount, shared)
        with pytest.raises(Fenced):
            await mount.workspace.files.flush(handle)
        with pytest.raises(Fenced):
            await mount.workspace.files.write(handle, 0, b"more")
        await trio.sleep(5)
        assert await shared.body() == b""
        (folder,) = folders(mount)
        assert is_set_aside(folder, FILE, 0, b"stale")


@in_virtual_time
async def test_what_was_written_without_a_lock_goes_out_under_the_next_session(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount:
        await mount.lock(1)
        handle = await write(mount, b"not locked", OTHER)
        await fenced_and_back(mount, shared)
        await mount.workspace.files.flush(handle)
        assert await shared.body(OTHER) == b"not locked"
        assert folders(mount) == []


@in_virtual_time
async def test_what_was_pending_goes_out_under_the_next_session(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount, trio.open_nursery() as nursery:
        gate = mount.cable.held["append"] = trio.Event()
        names = mount.workspace.names
        nursery.start_soon(lambda: names.make(ROOT_INO, b"pending", DIRECTORY, uid=0, gid=0, wait=True))
        await trio.sleep(1)
        await shared.fence(mount.session)
        await trio.sleep(1)
        mount.cable.held.clear()
        gate.set()
        await trio.sleep(5)
        assert shared.tables().dentry(ROOT_INO, b"pending") is not None


@in_virtual_time
async def test_locks_are_gone_with_the_session_and_can_be_taken_again(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount, open_mount(shared, tmp_path, 2) as other:
        await mount.lock(1)
        await fenced_and_back(mount, shared)
        assert mount.workspace.locks.held() == []
        with trio.fail_after(5):
            await other.lock(1)
        other.unlock(1)
        with trio.fail_after(5):
            await mount.lock(1)


@in_virtual_time
async def test_who_waits_for_a_lock_waits_on_under_the_next_session(shared: Shared, tmp_path: Path) -> None:
    granted = []
    async with (
        open_mount(shared, tmp_path) as mount,
        open_mount(shared, tmp_path, 2) as holder,
        trio.open_nursery() as nursery,
    ):

        async def wait() -> None:
            await mount.lock(1)
            granted.append(mount.session)

        await holder.lock(1)
        nursery.start_soon(wait)
        await trio.sleep(1)
        await fenced_and_back(mount, shared)
        await trio.sleep(1)
        assert granted == []
        holder.unlock(1)
        await trio.sleep(1)
        assert granted == [mount.session]


@in_virtual_time
async def test_a_mount_that_was_cut_off_for_long_finds_out_and_comes_back(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount, open_mount(shared, tmp_path, 2) as other:
        await mount.lock(1)
        handle = await write(mount, b"stale")
        before = mount.session
        mount.cable.cut = True
        await trio.sleep(60)
        with trio.fail_after(5):
            await other.lock(1)
        with pytest.raises(AgentfsError):
            await mount.workspace.files.write(handle, 0, b"dead")
        mount.cable.cut = False
        await trio.sleep(20)
        assert mount.session != before
        with pytest.raises(Fenced):
            await mount.workspace.files.flush(handle)
        assert await shared.body() == b""
        assert len(folders(mount)) == 1


# ---- killed, left


@in_virtual_time
async def test_a_kill_after_coming_back_commits_nothing_twice(shared: Shared, tmp_path: Path) -> None:
    with trio.CancelScope() as life:
        async with open_mount(shared, tmp_path) as mount:
            first = await write(mount, b"once,", OTHER, os.O_APPEND)
            # Something is always pending, so that the log is not emptied.
            gate = trio.Event()
            await mount.workspace.files.flush(first)
            mount.cable.held["append"] = gate
            await write(mount, b"later,", OTHER, os.O_APPEND)
            await trio.sleep(2)
            await shared.fence(mount.session)
            await trio.sleep(1)
            mount.cable.held.clear()
            gate.set()
            await trio.sleep(0.01)
            life.cancel()
            await trio.sleep(1)
    async with open_mount(shared, tmp_path):
        await trio.sleep(2)
    body = await shared.body(OTHER)
    assert (body.count(b"once,"), body.count(b"later,")) == (1, 1)


@in_virtual_time
async def test_leaving_in_good_order_leaves_no_session_behind(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as other, open_mount(shared, tmp_path, 2) as mount:
        gate = mount.cable.held["forget_beat"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.leave)
            await trio.sleep(1)
            # Between the goodbye and the end of the mount others go on.
            await other.workspace.names.make(ROOT_INO, b"meanwhile", DIRECTORY, uid=0, gid=0, wait=True)
            await trio.sleep(1)
            gate.set()
        assert open_sessions(shared) == [other.session]
        mount.workspace._core.committer.abandon()


# ---- copied


@in_virtual_time
async def test_a_copy_of_the_session_makes_the_mount_take_another(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount:
        before = mount.session
        number = TxnNumber(shared.tables().sessions[before].seen + 1)
        ino = mount.workspace._core.next_ino
        copys = Entry(before, 3, [Transaction(number, [make(ino, b"copy's")])])
        shared.log.payloads.append(encode_entry(copys))
        made = await mount.workspace.names.make(ROOT_INO, b"mine", DIRECTORY, uid=0, gid=0, wait=True)
        assert mount.session != before
        tables = shared.tables()
        mine, theirs = tables.dentry(ROOT_INO, b"mine"), tables.dentry(ROOT_INO, b"copy's")
        assert mine is not None
        assert theirs is not None
        assert (theirs.ino, mine.ino) == (ino, made.ino)


@in_virtual_time
async def test_what_is_made_while_there_is_no_session_gets_a_number_of_the_next(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount, trio.open_nursery() as nursery:
        before = mount.session
        gate = mount.cable.held["append"] = trio.Event()
        await shared.fence(before)
        with trio.fail_after(10):
            while not mount.workspace._core.committer.lost:
                await trio.sleep(0.01)
        for name, wait in ((b"waits", True), (b"does not", False)):
            make_it = partial(mount.workspace.names.make, ROOT_INO, name, DIRECTORY, uid=0, gid=0, wait=wait)
            nursery.start_soon(make_it)
        await trio.sleep(0.1)
        mount.cable.held.clear()
        gate.set()
        await trio.sleep(5)
        tables = shared.tables()
        for name in (b"waits", b"does not"):
            made = tables.dentry(ROOT_INO, name)
            assert made is not None
            assert made.ino >= first_ino(mount.session)


@in_virtual_time
async def test_what_is_under_way_when_a_copy_turns_up_takes_effect_once(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount, trio.open_nursery() as nursery:
        before, names = mount.session, mount.workspace.names
        number = TxnNumber(shared.tables().sessions[before].seen + 1)
        gate = mount.cable.held["append"] = trio.Event()
        nursery.start_soon(lambda: names.make(ROOT_INO, b"first", DIRECTORY, uid=0, gid=0, wait=True))
        handle = await write(mount, b"once", OTHER, os.O_APPEND)
        nursery.start_soon(mount.workspace.files.flush, handle)
        await trio.sleep(0.5)
        # It is in the network, and will arrive when the mount has another session.
        mount.cable.held.clear()
        copys = Entry(before, 3, [Transaction(number, [make(mount.workspace._core.next_ino + 1000, b"copy's")])])
        await MemoryJournal(shared.log).append(encode_entry(copys))
        await trio.sleep(5)
        gate.set()
        await trio.sleep(5)
        assert mount.session != before
        assert await shared.body(OTHER) == b"once"
        assert checksum(mount.workspace._core.tables) == checksum(shared.tables())


@in_virtual_time
async def test_a_verdict_on_another_session_changes_nothing(shared: Shared, tmp_path: Path) -> None:
    async with open_mount(shared, tmp_path) as mount, open_mount(shared, tmp_path, 2) as other:
        await mount.lock(1)
        before = mount.session
        await mount.workspace._core.committer.commit([Fence(other.session, 1)])
        await trio.sleep(1)
        assert (mount.session, len(mount.workspace.locks.held())) == (before, 1)
