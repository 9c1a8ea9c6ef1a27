"""Processes that lock, one call at a time, as the test tells them; and the calls they make that Python has no function for.

A test never sleeps to let a process come so far: `do` returns when the call has, and `blocks` when the kernel says that the
process sits in it.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import pickle
import platform
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]
ANSWER_SECONDS = 60.0
"""How long a call that should end may take: a bound, not an expectation."""

KINDS = ("flock", "fcntl")

_LOCK_CALLS = {"x86_64": ("73", "72"), "aarch64": ("32", "25")}[platform.machine()]
"""The numbers of flock(2) and fcntl(2)."""

_FLOCK = struct.Struct("hhqqi4x")
_libc = ctypes.CDLL(None, use_errno=True)


class Held(NamedTuple):
    """The lock that F_GETLK found in the way. `length` 0: to the end of the file."""

    kind: int
    first: int
    length: int
    pid: int


# ---- what a locker does: functions that are named to it, and run there


def setlk(
    descriptor: int, kind: int, first: int = 0, length: int = 0, whence: int = os.SEEK_SET, command: int = fcntl.F_SETLK
) -> None:
    """fcntl(2) with a struct flock; `command` is F_SETLK, F_SETLKW or one of those for open file descriptions."""
    fcntl.fcntl(descriptor, command, _FLOCK.pack(kind, whence, first, length, 0))


def getlk(descriptor: int, kind: int, first: int = 0, length: int = 0) -> Held | None:
    """What is in the way of such a lock."""
    answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, _FLOCK.pack(kind, os.SEEK_SET, first, length, 0))
    found, _, start, size, pid = _FLOCK.unpack(answer)
    return None if found == fcntl.F_UNLCK else Held(found, start, size, pid)


def raw_flock(descriptor: int, operation: int) -> None:
    """flock(2) as it is: Python's own calls it again after EINTR."""
    _checked(_libc.flock(descriptor, operation))


def raw_setlkw(descriptor: int, kind: int) -> None:
    """F_SETLKW of the whole file, as it is: Python's own calls it again after EINTR."""
    _checked(_libc.fcntl(descriptor, fcntl.F_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)))


def catch(number: int, *, restart: bool) -> None:
    """Handle a signal by doing nothing; a call that it interrupts fails with EINTR, or is begun again by the kernel."""
    signal.signal(number, lambda *_: None)
    signal.siginterrupt(number, not restart)


def in_child(function: Callable[..., object], *arguments: object) -> int:
    """Call a function in a forked child, which ends then; the errno it failed with, 0 if it did not."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            function(*arguments)
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def lingering_child() -> int:
    """Fork a child that keeps every descriptor open until `end_child`."""
    child = os.fork()
    if child == 0:
        signal.pause()
    return child


def end_child(child: int) -> None:
    """Kill a child and wait until it is gone."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def mapped(descriptor: int, length: int) -> bytes:
    """The first bytes of a file, read through a mapping that stays until the process ends."""
    if descriptor not in _maps:
        _maps[descriptor] = mmap.mmap(descriptor, length, prot=mmap.PROT_READ)
    return _maps[descriptor][:length]


_maps: dict[int, mmap.mmap] = {}


def count(path: str, kind: str, rounds: int) -> None:
    """Add one to the number in a file, `rounds` times, each time under a lock; the file stays open and is never synced."""
    descriptor = os.open(path, os.O_RDWR)
    for _ in range(rounds):
        _add_one(descriptor, kind)
    os.close(descriptor)


def count_until_error(path: str, kind: str, rounds: int) -> int:
    """The same until something fails: how often it was unlocked without an error, so that nothing of it may be lost."""
    done = 0
    try:
        descriptor = os.open(path, os.O_RDWR)
        for _ in range(rounds):
            _add_one(descriptor, kind)
            done += 1
    except OSError:
        pass
    return done


def count_beside(lock: str, path: str, kind: str, rounds: int) -> None:
    """The same with a lock file: the number's file is opened, read, written and closed under the lock."""
    descriptor = os.open(lock, os.O_RDWR)
    for _ in range(rounds):
        _whole(descriptor, kind, fcntl.LOCK_EX)
        with open(path) as file:
            number = int(file.read())
        with open(path, "w") as file:
            file.write(str(number + 1))
        _whole(descriptor, kind, fcntl.LOCK_UN)
    os.close(descriptor)


def take(descriptor: int, kind: str) -> None:
    """Lock a file exclusively, at once or not at all."""
    _whole(descriptor, kind, fcntl.LOCK_EX | fcntl.LOCK_NB)


def again(descriptor: int, kind: str, rounds: int) -> None:
    """Lock and unlock."""
    for _ in range(rounds):
        _whole(descriptor, kind, fcntl.LOCK_EX)
        _whole(descriptor, kind, fcntl.LOCK_UN)


def lock_under_signals(path: str, rounds: int) -> int:
    """Lock and unlock while signals come; how often one ended the wait. No lock may be there after that, so another is had."""
    catch(signal.SIGUSR1, restart=False)
    descriptor, other = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    interrupted = 0
    for _ in range(rounds):
        try:
            raw_flock(descriptor, fcntl.LOCK_EX)
        except InterruptedError:
            interrupted += 1
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            fcntl.flock(other, fcntl.LOCK_EX)
            fcntl.flock(other, fcntl.LOCK_UN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        else:
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    return interrupted


def _add_one(descriptor: int, kind: str) -> None:
    _whole(descriptor, kind, fcntl.LOCK_EX)
    number = int(os.pread(descriptor, 100, 0))
    assert os.pwrite(descriptor, b"%d" % (number + 1), 0)
    _whole(descriptor, kind, fcntl.LOCK_UN)


def _whole(descriptor: int, kind: str, operation: int) -> None:
    if kind == "flock":
        fcntl.flock(descriptor, operation)
    else:
        fcntl.lockf(descriptor, operation)


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


# ---- the process


class Locker:
    """A process with the file at `path` open as `descriptor`. Errors of its calls are raised here."""

    def __init__(self, path: Path, flags: int = os.O_RDWR) -> None:
        program = "from tests.mount.lockers import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.path = path
        self.pid = self._process.pid
        self.descriptor = int(self.do(os.open, str(path), flags))

    def do(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Have a function called, and wait for its end."""
        self.begin(function, *arguments, **named)
        return self.end()

    def begin(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        """Have a function called, which may take until something else is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(pickle.dumps((function, arguments, named)))
        self._process.stdin.flush()

    def end(self, seconds: float = ANSWER_SECONDS) -> Any:
        """The result of what was begun."""
        assert self._process.stdout is not None
        assert self.has_ended(seconds), f"process {self.pid} has been at it for {seconds} s"
        result, error = pickle.load(self._process.stdout)
        if error is not None:
            raise error
        return result

    def has_ended(self, seconds: float = 0) -> bool:
        """Whether what was begun has ended, or does so in time."""
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def is_in_lock_call(self) -> bool:
        """Whether the process sleeps in flock(2) or fcntl(2)."""
        return Path(f"/proc/{self.pid}/syscall").read_text().split()[0] in _LOCK_CALLS

    def blocks(self) -> None:
        """Return once the lock that was begun for is waited for.

        The daemon takes requests in order, so it knows of the lock when it has answered what was asked later.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self.is_in_lock_call():
            assert not self.has_ended(), f"process {self.pid} does not wait: {self.end()}"
            assert time.monotonic() < deadline, f"process {self.pid} does not come to its lock"
        for _ in range(2):
            os.statvfs(self.path.parent)
        assert not self.has_ended(), f"process {self.pid} does not wait: {self.end()}"

    def flock(self, operation: int) -> None:
        """flock(2) on the process's file."""
        self.do(fcntl.flock, self.descriptor, operation)

    def lock(self, kind: int, first: int = 0, length: int = 0) -> None:
        """F_SETLK on the process's file."""
        self.do(setlk, self.descriptor, kind, first, length)

    def getlk(self, kind: int, first: int = 0, length: int = 0) -> Held | None:
        """F_GETLK on the process's file."""
        return self.do(getlk, self.descriptor, kind, first, length)

    def take(self, kind: str) -> None:
        """Lock the process's file exclusively, at once or not at all; `kind` is flock or fcntl."""
        self.do(take, self.descriptor, kind)

    def want(self, kind: str) -> None:
        """Begin to wait for an exclusive lock on the process's file."""
        self.begin(_whole, self.descriptor, kind, fcntl.LOCK_EX)

    def give(self, kind: str) -> None:
        """Unlock the process's file."""
        self.do(_whole, self.descriptor, kind, fcntl.LOCK_UN)

    def is_refused(self, kind: str) -> bool:
        """Whether another holds a lock on the process's file. The process has none afterwards."""
        try:
            self.take(kind)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return True
        self.give(kind)
        return False

    def read(self) -> bytes:
        """All of the process's file."""
        return bytes(self.do(os.pread, self.descriptor, 1 << 20, 0))

    def write(self, content: bytes, offset: int = 0) -> None:
        """Write to the process's file."""
        assert self.do(os.pwrite, self.descriptor, content, offset) == len(content)

    def close(self) -> None:
        """Close the process's file."""
        self.do(os.close, self.descriptor)

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process; returns when it is gone."""
        self._process.kill()
        self._process.communicate(timeout=ANSWER_SECONDS)


def serve() -> None:
    """Do what comes down the standard input, until it ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            function, arguments, named = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = (function(*arguments, **named), None)
        except Exception as error:
            # Whatever it is: it is raised where the test is.
            answer = (None, error)
        answers.write(pickle.dumps(answer))
        answers.flush()
