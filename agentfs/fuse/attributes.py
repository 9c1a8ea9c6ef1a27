"""Inodes as the kernel wants them."""

from collections.abc import Callable
from dataclasses import dataclass

import pyfuse3

from agentfs.model.inode import Inode

BLOCK_SIZE = 4096
DIRECTORY_SIZE = 4096
"""What a directory shows as its size, as ext4 does for a small one."""

TIMEOUT_SECONDS = 60.0
"""How long the kernel may answer from its own caches at most; what changes is invalidated at once."""


@dataclass(frozen=True, slots=True)
class Presentation:
    """How a mount shows owners and permissions: `uid=`, `gid=`, `umask=`; None shows what is stored.

    `trusted_seconds` says how long the kernel may rely on what it is told now: no longer than others must wait before they
    declare this mount dead, so that a frozen daemon does not serve old names for ever. `strict`: names are always asked for.
    """

    uid: int | None = None
    gid: int | None = None
    umask: int | None = None
    trusted_seconds: Callable[[], float] = lambda: TIMEOUT_SECONDS
    strict: bool = False

    def entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """The kernel's view of an inode. A hot path."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode.ino
        entry.st_mode = inode.mode if self.umask is None else inode.mode & ~self.umask
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid if self.uid is None else self.uid
        entry.st_gid = inode.gid if self.gid is None else self.gid
        entry.st_rdev = inode.rdev
        entry.st_size = DIRECTORY_SIZE if inode.is_dir else inode.size
        entry.st_blksize = BLOCK_SIZE
        entry.st_blocks = (inode.allocated + 511) // 512
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        timeout = min(TIMEOUT_SECONDS, self.trusted_seconds())
        entry.attr_timeout = timeout
        entry.entry_timeout = 0.0 if self.strict else timeout
        return entry

    def no_entry(self) -> pyfuse3.EntryAttributes:
        """The answer that a name is not there, which the kernel remembers."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = 0.0 if self.strict else min(TIMEOUT_SECONDS, self.trusted_seconds())
        return entry
