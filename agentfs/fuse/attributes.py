"""Inodes as the kernel wants them."""

from dataclasses import dataclass

import pyfuse3

from agentfs.model.inode import Inode

BLOCK_SIZE = 4096
DIRECTORY_SIZE = 4096
"""What a directory shows as its size, as ext4 does for a small one."""

TIMEOUT_SECONDS = 60.0
"""How long the kernel may answer from its own caches; every change of this mount passes through it and is seen at once."""


@dataclass(frozen=True, slots=True)
class Presentation:
    """How a mount shows owners and permissions: `uid=`, `gid=`, `umask=`; None shows what is stored."""

    uid: int | None = None
    gid: int | None = None
    umask: int | None = None

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
        entry.entry_timeout = entry.attr_timeout = TIMEOUT_SECONDS
        return entry


def no_entry() -> pyfuse3.EntryAttributes:
    """The answer that a name is not there, which the kernel remembers."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = TIMEOUT_SECONDS
    return entry
