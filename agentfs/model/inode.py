"""An inode: a file's identity and attributes, as State holds them."""

import stat

import msgspec

from agentfs.model.ids import Ino, Position, SessionId

NAME_MAX = 255
"""Bytes in a name, as in `limits.h`."""

XATTR_SIZE_MAX = 65536
"""Bytes in an extended attribute's value, as in `linux/limits.h`."""

SYMLINK_MAX = 4095
"""Bytes in a symbolic link's target: PATH_MAX less the final NUL."""

FILE_SIZE_MAX = (1 << 63) - 1
"""Bytes in a file: what `off_t` counts."""

LINK_MAX = (1 << 31) - 1
"""Names of one inode: what `nlink_t` surely holds on every platform."""


class Inode(msgspec.Struct, frozen=True):
    """One row of State's `inodes`; the order of the fields is the order of the columns.

    Times are nanoseconds since the epoch. `allocated` is the bytes that extents cover, which holes do not count in.
    `version` is the file's own counter of committed content changes; `commit` the position of its last change of any
    kind and `writer` the session that made it. `parent` is set for directories alone (they have one name), `xattrs` is
    how many extended attributes there are, so that most look-ups of one need no query.
    """

    ino: Ino
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    allocated: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    version: int
    commit: Position
    writer: SessionId
    parent: Ino
    xattrs: int
    target: bytes

    @property
    def is_dir(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file."""
        return stat.S_ISREG(self.mode)


class Dentry(msgspec.Struct, frozen=True):
    """A name in a directory; `cookie` is its place in the directory's listing, growing with time, never reused."""

    parent: Ino
    name: bytes
    ino: Ino
    cookie: int


class FileVersion(msgspec.Struct, frozen=True):
    """One committed content change of a file: what `agentfs log` prints."""

    ino: Ino
    version: int
    position: Position
    time_ns: int
    size: int
    session: SessionId
