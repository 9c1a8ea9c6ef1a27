"""How a failure becomes one line and an exit code: the only place that maps `model/errors.py` to exit codes."""

import errno
from typing import Final

from agentfs.model import errors
from agentfs.model.errors import AgentfsError

GENERAL: Final = 1
USAGE: Final = 2
MISSING: Final = 3
TAKEN: Final = 4
FORBIDDEN: Final = 5
UNAVAILABLE: Final = 6
DAMAGED: Final = 7
FULL: Final = 8
BUG: Final = 70
INTERRUPTED: Final = 130

MEANINGS: Final[dict[int, str]] = {
    0: "done",
    GENERAL: "it failed, or a check did not pass",
    USAGE: "the arguments or a file of ours make no sense",
    MISSING: "no such workspace, mount or file",
    TAKEN: "it exists already, or something uses it",
    FORBIDDEN: "the operating system or the mount forbids it",
    UNAVAILABLE: "a daemon, journal or replica does not answer, or bytes are not saved yet",
    DAMAGED: "bytes are not what they should be",
    FULL: "a disk is full",
    BUG: "a fault in agentfs itself; the log has the traceback",
    INTERRUPTED: "interrupted",
}

EXIT_CODES: Final[dict[type[AgentfsError], int]] = {
    AgentfsError: GENERAL,
    errors.NotSupported: GENERAL,
    errors.Invalid: USAGE,
    errors.BadHandle: USAGE,
    errors.NameTooLong: USAGE,
    errors.TooLarge: USAGE,
    errors.ValueTooLarge: USAGE,
    errors.TooManyLinks: USAGE,
    errors.NotDirectory: USAGE,
    errors.IsDirectory: USAGE,
    errors.NotFound: MISSING,
    errors.NoAttribute: MISSING,
    errors.Stale: MISSING,
    errors.Exists: TAKEN,
    errors.NotEmpty: TAKEN,
    errors.Busy: TAKEN,
    errors.LeaseHeld: TAKEN,
    errors.Deadlock: TAKEN,
    errors.Denied: FORBIDDEN,
    errors.NotPermitted: FORBIDDEN,
    errors.ReadOnly: FORBIDDEN,
    errors.Unavailable: UNAVAILABLE,
    errors.Collected: UNAVAILABLE,
    errors.Fenced: UNAVAILABLE,
    errors.NoLocks: UNAVAILABLE,
    errors.Corrupt: DAMAGED,
    errors.NoSpace: FULL,
}

_OF_ERRNO: Final[dict[int, type[AgentfsError]]] = {
    errno.ENOENT: errors.NotFound,
    errno.EEXIST: errors.Exists,
    errno.ENOTEMPTY: errors.NotEmpty,
    errno.EBUSY: errors.Busy,
    errno.ENOTDIR: errors.NotDirectory,
    errno.EISDIR: errors.IsDirectory,
    errno.ENAMETOOLONG: errors.NameTooLong,
    errno.EACCES: errors.Denied,
    errno.EPERM: errors.Denied,
    errno.EROFS: errors.ReadOnly,
    errno.ENOSPC: errors.NoSpace,
    errno.EDQUOT: errors.NoSpace,
    errno.ENOTCONN: errors.Unavailable,
    errno.EIO: errors.Unavailable,
}


def exit_code_of(error: AgentfsError) -> int:
    """The exit code that tells a script what kind of failure this was."""
    return EXIT_CODES[type(error)]


def line_of(error: AgentfsError) -> str:
    """The error's message on one line, whatever it was made of."""
    return " ".join(str(error).split()) or type(error).__name__


def from_os_error(error: OSError) -> AgentfsError:
    """The same failure in our own tree, naming the file that the operating system complained of."""
    kind = _OF_ERRNO.get(error.errno or 0, AgentfsError)
    reason = error.strerror or str(error)
    return kind(f"{error.filename}: {reason}" if error.filename else reason)


def operating_error(error: BaseException) -> AgentfsError | None:
    """What went wrong, if it is something a user can act on; None if it is a bug.

    A nursery wraps what its children raised: a group counts when every error in it is an operating error.
    """
    if isinstance(error, AgentfsError):
        return error
    if isinstance(error, OSError):
        return from_os_error(error)
    if isinstance(error, BaseExceptionGroup):
        parts = [operating_error(part) for part in error.exceptions]
        return None if None in parts else parts[0]
    return None
