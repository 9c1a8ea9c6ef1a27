"""The one tree of errors; a class of its own only where a caller acts differently.

`fuse/errno.py` turns each into an errno and `cli/main.py` into an exit code; a test asserts that both cover every class.
"""


class AgentfsError(Exception):
    """Whatever agentfs refuses or could not do; the message is one line that a user can act on."""


class NotFound(AgentfsError):
    """No such name, inode, object, workspace."""


class Exists(AgentfsError):
    """The name is taken."""


class NotDirectory(AgentfsError):
    """A directory was needed."""


class IsDirectory(AgentfsError):
    """A directory stands where a file was needed."""


class NotEmpty(AgentfsError):
    """The directory to remove or to replace has entries."""


class NameTooLong(AgentfsError):
    """A name of more than 255 bytes."""


class TooLarge(AgentfsError):
    """A file offset or an attribute beyond what the format can hold (EFBIG)."""


class ValueTooLarge(AgentfsError):
    """An extended attribute's value of more than 64 KiB (E2BIG)."""


class TooManyLinks(AgentfsError):
    """The inode has as many names as it may (EMLINK)."""


class NoAttribute(AgentfsError):
    """No such extended attribute (ENODATA)."""


class NotSupported(AgentfsError):
    """What this filesystem does not offer (EOPNOTSUPP)."""


class NotPermitted(AgentfsError):
    """Never allowed, whoever asks (EPERM)."""


class ReadOnly(AgentfsError):
    """The mount, or the workspace, takes no writes (EROFS)."""


class Invalid(AgentfsError):
    """The arguments make no sense (EINVAL), or a file that should be ours is not readable as such."""


class BadHandle(AgentfsError):
    """The handle is not open, or not for this (EBADF)."""


class Stale(AgentfsError):
    """The inode is gone (ESTALE)."""


class NoSpace(AgentfsError):
    """A disk that must hold the bytes is full, or a quota is (ENOSPC)."""


class Unavailable(AgentfsError):
    """A journal or a replica did not answer in time; asking again may succeed (EIO).

    `retry_after_seconds`: how long it asked to be left alone; None if it said nothing.
    """

    retry_after_seconds: float | None = None


class Collected(AgentfsError):
    """A segment was collected while it was on its way into use: its bytes have to be put once more (EIO)."""


class Corrupt(AgentfsError):
    """Bytes are not what their hash says, or not what the format says (EIO)."""


class Denied(AgentfsError):
    """The operating system or a store refuses, and will again: permission, or a bucket that does not exist (EACCES)."""


class Fenced(AgentfsError):
    """The session was declared dead; nothing it sends commits any more (EIO)."""


class Busy(AgentfsError):
    """Something else holds it: a mountpoint in use, a cache directory locked (EBUSY)."""


class NoLocks(AgentfsError):
    """No lock can be had: too many there are, or the journal did not answer in time (ENOLCK)."""


class LeaseHeld(AgentfsError):
    """Another process holds a lock that is in the way, and this one does not want to wait (EAGAIN)."""


class Deadlock(AgentfsError):
    """Waiting for the lock would be for a process that waits for this one (EDEADLK)."""
