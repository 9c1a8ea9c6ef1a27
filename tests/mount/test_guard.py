"""A daemon that is killed while one of its threads waits for it inside the kernel: its mount must not hang for ever."""

import errno
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import plain_directory
from tests.mount.errnos import fails
from tests.mount.place import REPOSITORY, WAIT_SECONDS, mounts_under

pytestmark = pytest.mark.skipif(plain_directory() is not None, reason="this is about a daemon")

DAEMON = """if 1:
    import os, sys
    from pathlib import Path
    import agentfs.fuse
    import pyfuse3, trio
    from agentfs.fuse.device import leave_device
    from agentfs.fuse.guard import Guard
    from agentfs.runtime import SystemRuntime

    class Silent(pyfuse3.Operations):
        async def getattr(self, inode, ctx):
            entry = pyfuse3.EntryAttributes()
            entry.st_ino, entry.st_mode, entry.st_nlink = inode, 0o040755, 2
            return entry

        async def lookup(self, parent, name, ctx):
            print("asked", flush=True)
            await trio.sleep_forever()

    async def main():
        pyfuse3.init(Silent(), sys.argv[1], {"fsname=silent", "subtype=agentfs"})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            name = sys.argv[1] + "/name"
            if sys.argv[2] == "guarded":
                guard = Guard(Path(sys.argv[1]), (await trio.to_thread.run_sync(os.stat, sys.argv[1])).st_dev)
                await trio.to_thread.run_sync(os.stat, name)
            await SystemRuntime().in_new_thread(lambda: (leave_device(), os.stat(name)))

    trio.run(main)
    """


@pytest.mark.parametrize("how", ["guarded", "without the device"])
def test_a_killed_daemon_does_not_hang_in_its_own_mount(tmp_path: Path, how: str) -> None:
    """Because its guard ends the connection, or, should that be killed too, because the thread has not the device open."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    daemon = subprocess.Popen([sys.executable, "-c", DAEMON, mountpoint, how], cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"asked\n"
        ended = os.pidfd_open(daemon.pid)
        daemon.send_signal(signal.SIGKILL)
        assert select.select([ended], [], [], WAIT_SECONDS)[0], "the daemon cannot be killed"
        os.close(ended)
        assert mounts_under(tmp_path), "processes must not go on in the directory below"
        with fails(errno.ENOTCONN):
            os.stat(mountpoint / "name")
    finally:
        subprocess.run(["umount", "-f", mountpoint], check=False, capture_output=True)
        subprocess.run(["umount", "-l", mountpoint], check=False, capture_output=True)
        daemon.wait(WAIT_SECONDS)
        daemon.stdout.close()
