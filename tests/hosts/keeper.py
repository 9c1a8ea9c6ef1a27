"""Leaves nothing of a network behind: a process that waits for the tests' end, however they end, and removes what is left.

It is given the beginning of the names of the network's namespaces, and the directory that the hosts' files are in.
"""

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

NAMESPACES: Final = Path("/run/netns")
"""Where ip(8) keeps the namespaces that have names."""

GONE_SECONDS: Final = 60
"""How long killed processes may take to be gone: a bound, not an expectation."""

MNT_FORCE, MNT_DETACH = 1, 2
"""umount(2): all requests fail from now on; and the mount goes even while it is used."""

_libc = ctypes.CDLL(None, use_errno=True)


def processes_in(namespace: Path) -> set[int]:
    """The processes whose network that is, also those of which only some threads have not ended yet."""
    wanted = namespace.stat()
    found = set()
    for thread in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        # Threads end while one looks, and some are not anybody's to look at.
        with contextlib.suppress(OSError):
            if os.path.samestat((thread / "ns/net").stat(), wanted):
                found.add(int(thread.parts[2]))
    return found


def kill_all_in(namespace: Path, directory: Path) -> None:
    """End a host: every process there, those that are started meanwhile too, and what they had mounted below `directory`."""
    deadline = time.monotonic() + GONE_SECONDS
    while running := processes_in(namespace):
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        unmount_all(directory)
        assert time.monotonic() < deadline, f"processes {running} cannot be killed"
        time.sleep(0.005)
    unmount_all(directory)


def mounts_left(directory: Path) -> list[str]:
    """The agentfs mountpoints below `directory`, the newest first."""
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [row[4] for row in rows if row[row.index("-") + 1].startswith("fuse.agentfs")]
    return [point for point in reversed(points) if Path(point).is_relative_to(directory)]


def unmount_all(directory: Path) -> None:
    """End the mounts of killed daemons, as a host's kernel does when it ends itself.

    While a daemon's thread is telling the kernel what to forget, and the guard was killed with the daemon, nothing else would:
    it waits for who works in that directory, and that one for the daemon, and neither can be killed.
    """
    for point in mounts_left(directory):
        failed = _libc.umount2(os.fsencode(point), MNT_FORCE | MNT_DETACH)
        # EINVAL: it went by itself meanwhile.
        if failed and ctypes.get_errno() != errno.EINVAL:
            raise OSError(ctypes.get_errno(), f"cannot unmount {point}")


def remove(prefix: str, directory: Path) -> None:
    """End everything that runs in the namespaces whose names begin with `prefix`, and remove them: their links go with them."""
    namespaces = sorted(NAMESPACES.glob(f"{prefix}-*"))
    for namespace in namespaces:
        kill_all_in(namespace, directory)
    for namespace in namespaces:
        subprocess.run(["ip", "netns", "delete", namespace.name], check=False)


if __name__ == "__main__":
    sys.stdin.read()
    remove(sys.argv[1], Path(sys.argv[2]))
