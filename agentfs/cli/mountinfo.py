"""What the kernel has mounted, read from /proc/self/mountinfo (proc_pid_mountinfo(5))."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FUSE_TYPE: Final = "fuse.agentfs"

_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of mountinfo. `owner` is the user id that a FUSE mount belongs to, None elsewhere."""

    mountpoint: Path
    type: str
    source: str
    options: str
    owner: int | None

    @property
    def ours(self) -> bool:
        """Whether this is a workspace."""
        return self.type == FUSE_TYPE


def parse_mountinfo(text: bytes) -> list[Mounted]:
    """The mounts in `text`, in the kernel's order: of two on one directory, the later hides the earlier."""
    return [_mounted(line) for line in text.splitlines() if line]


def _mounted(line: bytes) -> Mounted:
    head, _, tail = line.partition(b" - ")
    fields = head.split(b" ")
    kind, source, super_options = [*tail.split(b" "), b"", b""][:3]
    owner = re.search(rb"(?:^|,)user_id=(\d+)", super_options)
    return Mounted(
        mountpoint=Path(_plain(fields[4])),
        type=_plain(kind),
        source=_plain(source),
        options=_plain(fields[5]),
        owner=int(owner[1]) if owner else None,
    )


def _plain(field: bytes) -> str:
    """The kernel writes space, tab, newline and backslash as octal."""
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes((int(match[1], 8),)), field))


def all_mounts() -> list[Mounted]:
    """Everything this process can see mounted."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def our_mounts() -> list[Mounted]:
    """The workspaces that are mounted."""
    return [mounted for mounted in all_mounts() if mounted.ours]


def canonical(directory: Path) -> Path:
    """The directory's path as mountinfo would write it.

    A mountpoint itself is not looked at, which would fail or hang where the daemon is gone or stopped.
    """
    whole = Path(os.path.abspath(directory))
    plain = Path(os.path.realpath(whole.parent)) / whole.name
    return plain if mount_at(plain) is not None else Path(os.path.realpath(directory))


def mount_at(mountpoint: Path, mounts: list[Mounted] | None = None) -> Mounted | None:
    """What is mounted on exactly this directory (a canonical path), the topmost."""
    candidates = all_mounts() if mounts is None else mounts
    return next((mounted for mounted in reversed(candidates) if mounted.mountpoint == mountpoint), None)


def mount_holding(path: Path, mounts: list[Mounted] | None = None) -> Mounted | None:
    """The mount that a canonical path lies in."""
    candidates = all_mounts() if mounts is None else mounts
    for directory in (path, *path.parents):
        if found := mount_at(directory, candidates):
            return found
    return None
