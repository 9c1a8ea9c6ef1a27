"""The compiled companion to pyfuse3: file locks, lock owners, and answers that need no Python.

pyfuse3 has no flock, setlk and getlk, and its flush and release drop the owner of the locks. `companion.c` adds them; it takes
effect only if it is loaded before pyfuse3, with global symbols, which importing this module does. Nothing else may import
`_companion`, and whoever imports pyfuse3 imports `agentfs.fuse` first. How it works, and which request arrives when, is in
docs/decisions/0009-compiled-companion.md.

The handlers are called synchronously while libfuse decodes a request, in the event loop's thread and outside of any task: they
must not block, and cannot await. Each request has a token, which is answered exactly once, from a handler or at any time later.
"""

import os
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from agentfs.model.errors import Unavailable

assert "pyfuse3" not in sys.modules, "agentfs.fuse must be imported before pyfuse3, or its companion has no effect"

_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
try:
    from agentfs.fuse import _companion
except ImportError as error:
    raise Unavailable(f"the compiled companion to pyfuse3 cannot be loaded: {error}") from error
finally:
    sys.setdlopenflags(_flags)


class LockRequest(NamedTuple):
    """One flock(2) or fcntl(2) lock request, as the kernel sent it.

    `owner` is the kernel's opaque number for who owns the lock: a process (its table of descriptors) for fcntl, an open file
    for flock and for locks of open file descriptions. `kind` is `fcntl.F_RDLCK`, `F_WRLCK` or `F_UNLCK`, for flock too.
    `first` and `last` are byte offsets, both inclusive; to the end of the file is 2**63 - 1, and flock is always 0 to that.
    `pid` is the process as the daemon's pid namespace numbers it, 0 if it is not in there; for flock and for unlocking it is
    the id of the thread. `wait` is never set for unlocking.
    """

    token: int
    ino: int
    handle: int
    owner: int
    flock: bool
    kind: int
    first: int
    last: int
    pid: int
    wait: bool


class LockHandlers(Protocol):
    """Who decides about locks. An error that a handler raises is printed, and the request answered with EIO."""

    def lock(self, request: LockRequest) -> None:
        """Take, change or release a lock; `answer` says how it went. Only a `wait` request may be kept from it for long."""

    def test(self, request: LockRequest) -> None:
        """F_GETLK: `answer_test` says which lock is in the way, if any, or `answer` with an error."""

    def interrupted(self, token: int) -> None:
        """A `wait` request is to end, because of a signal: `answer` it soon, with EINTR or with what it has got meanwhile.

        Called at most once for a request, after `lock` has had it, and never after it was answered. A process that was killed
        cannot end before the answer either.
        """


def install(handlers: LockHandlers) -> None:
    """Have these handlers asked, from now on. Before `pyfuse3.init`; without any, locks are refused with ENOLCK."""
    _companion.install(_taking_request(handlers.lock), _taking_request(handlers.test), handlers.interrupted)


def _taking_request(handle: Callable[[LockRequest], None]) -> Callable[..., None]:
    return lambda *fields: handle(LockRequest(*fields))


def answer(token: int, error: int) -> None:
    """Answer with an errno, or 0: the lock is granted, changed or released. The token is used up.

    AssertionError for a token that is not open, for EINTR without an interrupt (the program would see an errno that does not
    exist), and for 0 to a test. Nothing happens, once, if the session is gone that the token came from.
    """
    _companion.answer(token, error)


def answer_test(token: int, kind: int, first: int, last: int, pid: int) -> None:
    """Answer F_GETLK with the lock that is in the way; `kind` F_UNLCK says that none is. The token is used up.

    `pid` is a process in the daemon's pid namespace; 0 for one on another machine, because any other number would be taken
    for a process here. AssertionError for a token that is not an open test's.
    """
    _companion.answer_test(token, kind, first, last, pid)


def flush_owner() -> int:
    """The owner whose fcntl locks end with the FLUSH whose handler just begins to run.

    Right only before the handler's first await: pyfuse3 runs a handler that far straight after libfuse has decoded its request,
    and before it reads another one. Closing any descriptor of a file sends FLUSH, also where no lock was ever taken.
    """
    return _companion.flush_owner()


def release_owner() -> int | None:
    """The owner whose flock ends with the RELEASE whose handler just begins to run, None if it took none; as `flush_owner`."""
    return _companion.release_owner()


def is_in_effect() -> bool:
    """Whether the kernel sends this process's mount its locks. Known once the mount has answered its first request."""
    return _companion.is_in_effect()


def answer_absent(names: Iterable[bytes]) -> None:
    """From now on, answer GETXATTR of exactly these names with ENODATA, without entering Python, for whatever inode.

    At most 8 names of at most 255 bytes, else ValueError. They replace those of an earlier call.
    """
    _companion.answer_absent(*names)
