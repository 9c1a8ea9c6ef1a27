"""The guard: a small process that aborts the mount's FUSE connection when the daemon is killed.

The kernel does that itself when the last descriptor of the device is closed. But a thread of the daemon that is inside the
kernel and waits for the daemon (a change that is replayed, an invalidation behind a directory that somebody works in) cannot be
killed, keeps the device open, and so would wait for ever, and with it everybody who uses the mount. The guard shares nothing
with the daemon, is told of the end of its main thread (PR_SET_PDEATHSIG), and needs the daemon for nothing.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_PROGRAM: Final = """
import ctypes, os, signal, sys
mountpoint, daemon = os.fsencode(sys.argv[1]), int(sys.argv[2])
device = os.fsencode(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
libc.prctl(1, signal.SIGUSR1)
sys.stdout.write("ready")
sys.stdout.flush()
if os.getppid() == daemon:
    signal.sigwait({signal.SIGUSR1})
lines = [line.split() for line in open("/proc/self/mountinfo", "rb")]
if any(line[2] == device and line[line.index(b"-") + 1] == b"fuse.agentfs" for line in lines):
    try:
        with open(f"/sys/fs/fuse/connections/{device.split(b':')[1].decode()}/abort", "wb") as abort:
            abort.write(b"1")
    except OSError:
        # The control filesystem is not mounted here. A forced unmount begins with aborting the connection; it must go no
        # further, lest processes go on in the directory below: with a descriptor of it open, the mount is busy.
        held = os.open(mountpoint, os.O_PATH)
        libc.umount2(mountpoint, 1)
"""
"""Arguments: mountpoint, the daemon's process id, the mount's device as MAJOR:MINOR."""


class Guard:
    """The guard of one mount. Started and stopped by the thread that must not die before the mount is gone."""

    def __init__(self, mountpoint: Path, device: int) -> None:
        number = f"{os.major(device)}:{os.minor(device)}"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM, os.fspath(mountpoint), str(os.getpid()), number],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # A signal from the terminal is for the daemon, which ends in good order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._process.stdout.read(len("ready"))
        self._process.stdout.close()

    def dismiss(self) -> None:
        """The mount is about to go in good order."""
        self._process.kill()
        self._process.wait()
