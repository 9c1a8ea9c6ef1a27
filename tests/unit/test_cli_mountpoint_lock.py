"""Of two daemons on one mountpoint, the later waits for the end of the earlier, and leaves nothing of its lock behind."""

from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing

from agentfs.cli.mountinfo import Mounted
from agentfs.cli.mountpoint_lock import CLOSING_SECONDS, lock_mountpoint
from agentfs.model.errors import Busy
from tests.simulation.runtime import VirtualRuntime

MOUNTPOINT = Path("/mnt/demo")


@pytest.fixture(autouse=True)
def runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "agentfs"


def in_kernel(monkeypatch: pytest.MonkeyPatch, *mountpoints: Path) -> None:
    """What passes for the kernel's list of mounts."""
    mounts = [Mounted(mountpoint, "fuse.agentfs", "demo", "rw", 0) for mountpoint in mountpoints]
    monkeypatch.setattr("agentfs.cli.mountinfo.all_mounts", lambda: mounts)


async def test_a_mount_waits_for_the_daemon_that_still_saves(
    runtime_directory: Path, autojump_clock: trio.testing.MockClock
) -> None:
    runtime, events = VirtualRuntime(Random(0)), []

    async def mount(name: str, seconds: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with lock_mountpoint(MOUNTPOINT, runtime=runtime):
            events.append(f"{name} begins")
            task_status.started()
            await trio.sleep(seconds)
            events.append(f"{name} ends")

    async with trio.open_nursery() as nursery:
        await nursery.start(mount, "first", CLOSING_SECONDS - 1)
        await nursery.start(mount, "second", 1)
    assert events == ["first begins", "first ends", "second begins", "second ends"]
    assert list(runtime_directory.iterdir()) == []


async def test_a_daemon_that_does_not_end_is_waited_for_in_vain(autojump_clock: trio.testing.MockClock) -> None:
    runtime = VirtualRuntime(Random(0))
    async with lock_mountpoint(MOUNTPOINT, runtime=runtime):
        with pytest.raises(Busy, match=r"/mnt/demo.*still at work"):
            async with lock_mountpoint(MOUNTPOINT, runtime=runtime):
                raise AssertionError("it is held")
        async with lock_mountpoint(Path("/mnt/other"), runtime=runtime):
            pass


@pytest.mark.parametrize("held", [True, False])
async def test_what_is_mounted_is_not_waited_for(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = VirtualRuntime(Random(0))
    if held:
        async with lock_mountpoint(MOUNTPOINT, runtime=runtime):
            in_kernel(monkeypatch, MOUNTPOINT)
            await assert_mounted_already(runtime)
    else:
        in_kernel(monkeypatch, MOUNTPOINT)
        await assert_mounted_already(runtime)


async def assert_mounted_already(runtime: VirtualRuntime) -> None:
    with pytest.raises(Busy, match="demo mounted already"):
        async with lock_mountpoint(MOUNTPOINT, runtime=runtime):
            raise AssertionError("it is mounted")
