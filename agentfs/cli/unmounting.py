"""How a mount is taken down: through fusermount3 as an ordinary user, through umount(8) as root."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agentfs.cli.liveness import is_dead
from agentfs.cli.mountinfo import Mounted, mount_at
from agentfs.cli.records import remove_record
from agentfs.model.errors import AgentfsError, Busy, Denied, NotFound


def unmount(mountpoint: Path, *, lazily: bool = False) -> None:
    """Take the mount off the tree. `lazily` detaches it at once although processes still use it.

    Raises Busy naming those processes, Denied, NotFound without fusermount3.
    """
    command = _root_command(lazily) if os.geteuid() == 0 else _user_command(lazily)
    try:
        done = subprocess.run(
            [*command, "--", os.fspath(mountpoint)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError:
        raise NotFound(f"{command[0]} is missing: install the package fuse3") from None
    if done.returncode and mount_at(mountpoint) is not None:
        raise _failure(mountpoint, done.stderr)


def _root_command(lazily: bool) -> list[str]:
    return ["umount", "-l"] if lazily else ["umount"]


def _user_command(lazily: bool) -> list[str]:
    return ["fusermount3", "-u", "-z"] if lazily else ["fusermount3", "-u"]


def _failure(mountpoint: Path, complaint: str) -> AgentfsError:
    if "busy" in complaint:
        users = ", ".join(using(mountpoint)) or "a process that this user cannot see"
        return Busy(f"{mountpoint} is in use by {users}: end what uses it, or detach it with --force")
    line = " ".join(complaint.split())
    return Denied(f"{mountpoint} could not be unmounted: {line}")


def clear_if_dead(mounted: Mounted) -> bool:
    """Detach a mount whose daemon is gone, and forget its record. False, and nothing done, if it is served."""
    if not (mounted.ours and is_dead(mounted)):
        return False
    unmount(mounted.mountpoint, lazily=True)
    remove_record(mounted.mountpoint, owner=os.geteuid() if mounted.owner is None else mounted.owner)
    return True


def using(mountpoint: Path) -> list[str]:
    """The processes with a directory or file open below `mountpoint`, as `name (pid)`: as far as /proc shows them."""
    prefix = os.fspath(mountpoint)
    return [
        f"{_command_name(process)} ({process.name})"
        for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name))
        if any(target == prefix or target.startswith(prefix + "/") for target in _targets(process))
    ]


def _targets(process: Path) -> Iterator[str]:
    links = [process / "cwd", process / "root", process / "exe"]
    with contextlib.suppress(OSError):  # The process ended, or belongs to somebody else.
        links += (process / "fd").iterdir()
    for link in links:
        try:
            yield os.readlink(link)
        except OSError:
            continue


def _command_name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "?"
