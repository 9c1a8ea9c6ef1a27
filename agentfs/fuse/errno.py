"""The one place that turns errors into errno."""

import errno

from agentfs.model import errors

ERRNO: dict[type[errors.AgentfsError], int] = {
    errors.AgentfsError: errno.EIO,
    errors.NotFound: errno.ENOENT,
    errors.Exists: errno.EEXIST,
    errors.NotDirectory: errno.ENOTDIR,
    errors.IsDirectory: errno.EISDIR,
    errors.NotEmpty: errno.ENOTEMPTY,
    errors.NameTooLong: errno.ENAMETOOLONG,
    errors.TooLarge: errno.EFBIG,
    errors.ValueTooLarge: errno.E2BIG,
    errors.TooManyLinks: errno.EMLINK,
    errors.NoAttribute: errno.ENODATA,
    errors.NotSupported: errno.EOPNOTSUPP,
    errors.NotPermitted: errno.EPERM,
    errors.ReadOnly: errno.EROFS,
    errors.Invalid: errno.EINVAL,
    errors.BadHandle: errno.EBADF,
    errors.Stale: errno.ESTALE,
    errors.NoSpace: errno.ENOSPC,
    errors.Unavailable: errno.EIO,
    errors.Collected: errno.EIO,
    errors.Corrupt: errno.EIO,
    errors.Denied: errno.EACCES,
    errors.Fenced: errno.EIO,
    errors.Busy: errno.EBUSY,
    errors.NoLocks: errno.ENOLCK,
    errors.LeaseHeld: errno.EAGAIN,
    errors.Deadlock: errno.EDEADLK,
}
"""Every class of the tree, so that a new one cannot be forgotten (tests/unit/test_errno.py)."""


def errno_of(error: errors.AgentfsError) -> int:
    """The errno that a system call fails with."""
    return ERRNO[type(error)]
