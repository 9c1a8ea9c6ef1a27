"""What mounting needs of this machine and of the mountpoint, checked before anything is started; `doctor` asks the same."""

import os
import shutil
from pathlib import Path
from typing import Final

from agentfs.cli.amounts import path_text
from agentfs.cli.mountinfo import Mounted, mount_at
from agentfs.cli.unmounting import clear_if_dead
from agentfs.model.errors import Busy, Denied, Invalid, NotDirectory, NotEmpty, NotFound, Unavailable

FUSE_DEVICE: Final = Path("/dev/fuse")
FUSE_CONFIG: Final = Path("/etc/fuse.conf")


def check_machine(*, allow_other: bool) -> None:
    """Whether this user can mount at all. Raises the first of what is missing, with its mend."""
    check_fuse_device()
    if os.geteuid() != 0:
        find_fusermount()
        if allow_other and not allows_other():
            raise Denied(f"allow_other needs the line `user_allow_other` in {FUSE_CONFIG}: ask root to add it, or leave it out")


def check_fuse_device(device: Path = FUSE_DEVICE) -> None:
    """Whether the kernel's FUSE device is there and opens."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise NotFound(
            f"no {device}: run `modprobe fuse` as root, or start the container with `--device /dev/fuse --cap-add SYS_ADMIN`",
        ) from None
    except PermissionError:
        raise Denied(
            f"{device} may not be opened: `chmod 666 {device}` as root, or allow the device in the container"
        ) from None
    except OSError as error:
        raise Unavailable(f"{device} does not open ({error.strerror}): run `modprobe fuse` as root") from error


def find_fusermount() -> Path:
    """The program that mounts for ordinary users. Raises NotFound."""
    found = shutil.which("fusermount3") or shutil.which("fusermount3", path="/usr/local/bin:/usr/bin:/bin")
    if found is None:
        raise NotFound("fusermount3 is missing: install the package fuse3, or mount as root")
    return Path(found)


def allows_other(config: Path = FUSE_CONFIG) -> bool:
    """Whether ordinary users may pass allow_other (fuse.conf: a line of its own)."""
    try:
        lines = config.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def check_mountpoint(mountpoint: Path) -> bool:
    """Whether `mountpoint`, a canonical path, can be mounted on; a mount whose daemon is gone is cleared away first.

    True if there was such a mount. Raises Busy, NotFound, NotDirectory, NotEmpty, Denied, Invalid.
    """
    cleared = False
    while (mounted := mount_at(mountpoint)) and mounted.ours:
        if not clear_if_dead(mounted):
            raise mounted_already(mounted)
        cleared = True
    _check_directory(mountpoint)
    return cleared


def mounted_already(mounted: Mounted) -> Busy:
    """The error for a mountpoint that has a workspace."""
    shown = path_text(mounted.mountpoint)
    return Busy(f"{shown} has workspace {mounted.source} mounted already: `agentfs umount {shown}` ends that")


def _check_directory(mountpoint: Path) -> None:
    shown = path_text(mountpoint)
    if mountpoint == Path("/"):
        raise Invalid("/ cannot be a mountpoint: name an empty directory")
    try:
        names = os.listdir(mountpoint)
    except FileNotFoundError:
        raise NotFound(f"mountpoint {shown} does not exist: `mkdir -p {shown}` makes it") from None
    except NotADirectoryError:
        raise NotDirectory(f"mountpoint {shown} is not a directory") from None
    except PermissionError:
        raise Denied(f"mountpoint {shown} may not be read: choose a directory of your own") from None
    if names:
        raise NotEmpty(
            f"mountpoint {shown} is not empty ({path_text(os.fsencode(sorted(names)[0]))}): choose an empty directory"
        )
    if os.geteuid() != 0 and not os.access(mountpoint, os.W_OK):
        raise Denied(f"mountpoint {shown} is not yours to write: choose a directory of your own, or mount as root")
