"""The companion against a real kernel: what its handlers are told of locks, and what programs see of its answers."""

import errno
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.place import mounts_under
from tests.mount.processes import finish, start

WHOLE = {"first": 0, "last": 2**63 - 1}
WAIT_SECONDS = 20

LOCKER = """
import errno, fcntl, os, signal, struct, sys
signal.signal(signal.SIGUSR1, lambda *_: (_ for _ in ()).throw(InterruptedError(errno.EINTR, "a signal")))
def record(cmd, kind, first=0, length=0, pid=0):
    return struct.unpack("hhqqi4x", fcntl.fcntl(a, cmd, struct.pack("hhqqi4x", kind, 0, first, length, pid)))
a = os.open(sys.argv[1], os.O_RDWR)
try:
    {}
except OSError as error:
    print(errno.errorcode.get(error.errno, error.errno))
sys.stdin.read()
"""


class Filesystem:
    """A mounted `locking_filesystem`, its events and its commands."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.directory = directory
        self.path = directory / "file"
        command = [sys.executable, "-m", "tests.mount.locking_filesystem", directory, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._text = b""

    def next(self, what: str) -> dict[str, Any]:
        """The next event, which must be of this kind."""
        assert self.process.stdout is not None
        while b"\n" not in self._text:
            ready, _, _ = select.select([self.process.stdout], [], [], WAIT_SECONDS)
            data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            assert data, f"no {what} within {WAIT_SECONDS} s; {self.process.poll()=}"
            self._text += data
        line, self._text = self._text.split(b"\n", 1)
        event: dict[str, Any] = json.loads(line)
        assert event.pop("what") == what, event
        return event

    def tell(self, *words: object) -> str | None:
        """Make a call in the filesystem; what it says is wrong with it."""
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()
        error: str | None = self.next("answered")["error"]
        return error

    def program(self, *statements: str) -> subprocess.Popen[str]:
        """Start a process that has the file open as `a`; it prints the name of an errno it gets, and stays until `finish`."""
        return start(LOCKER.format("\n    ".join(statements)), self.path)

    def leave(self) -> None:
        """Have it unmount."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def end(self) -> str:
        """Unmount; what it printed as errors."""
        _, errors = self.process.communicate(timeout=WAIT_SECONDS)
        return errors.decode()

    def discard(self) -> None:
        """Whatever happened, leave no process and no mount; it must have ended by itself."""
        try:
            self.process.communicate(timeout=WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            # It prints where it is, in the time between the signals.
            self.process.send_signal(signal.SIGUSR1)
            select.select([self.process.stderr], [], [], WAIT_SECONDS)
            self.process.kill()
            _, errors = self.process.communicate()
            pytest.fail(f"the filesystem did not end by itself: {errors.decode()}")
        finally:
            for mountpoint in mounts_under(self.directory):
                subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=True)


@pytest.fixture
def filesystem(tmp_path: Path) -> Iterator[Filesystem]:
    """The filesystem with the companion in effect."""
    found = Filesystem(tmp_path, "first")
    assert found.next("ready")["in_effect"]
    yield found
    found.discard()


def test_flock_names_the_open_file_as_owner_until_its_release(filesystem: Filesystem) -> None:
    locker = filesystem.program("fcntl.flock(a, fcntl.LOCK_EX)", "fcntl.flock(a, fcntl.LOCK_UN)", "os.close(a)")
    taken = filesystem.next("lock")
    token, owner = taken.pop("token"), taken.pop("owner")
    asked = {"ino": 2, "handle": 1, "flock": True, "pid": locker.pid, **WHOLE}
    assert taken == {**asked, "kind": fcntl.F_WRLCK, "wait": True}
    assert locker.poll() is None
    assert filesystem.tell("answer", token, 0) is None
    dropped = filesystem.next("lock")
    assert filesystem.tell("answer", dropped.pop("token"), 0) is None
    assert dropped == {**asked, "kind": fcntl.F_UNLCK, "wait": False, "owner": owner}
    assert filesystem.next("flush")["owner"] != owner
    assert filesystem.next("release") == {"handle": 1, "owner": owner}
    assert finish(locker) == ""


def test_flock_that_does_not_wait_is_told_of_the_answer(filesystem: Filesystem) -> None:
    locker = filesystem.program("fcntl.flock(a, fcntl.LOCK_SH | fcntl.LOCK_NB)")
    asked = filesystem.next("lock")
    assert (asked["kind"], asked["wait"]) == (fcntl.F_RDLCK, False)
    assert filesystem.tell("answer", asked["token"], errno.EWOULDBLOCK) is None
    assert finish(locker) == "EAGAIN\n"


def test_the_flush_of_any_descriptor_names_the_owner_of_record_locks(filesystem: Filesystem) -> None:
    locker = filesystem.program(
        "b = os.open(sys.argv[1], os.O_RDWR)", "fcntl.lockf(a, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10)", "os.close(b)"
    )
    asked = filesystem.next("lock")
    token, owner = asked.pop("token"), asked.pop("owner")
    range_asked = {"flock": False, "kind": fcntl.F_WRLCK, "first": 10, "last": 14, "wait": False}
    assert asked == {"ino": 2, "handle": 1, "pid": locker.pid, **range_asked}
    assert filesystem.tell("answer", token, 0) is None
    assert filesystem.next("flush") == {"handle": 2, "owner": owner}
    assert filesystem.next("release") == {"handle": 2, "owner": None}
    assert finish(locker) == ""
    assert filesystem.next("flush") == {"handle": 1, "owner": owner}
    assert filesystem.next("release") == {"handle": 1, "owner": None}


def test_a_lock_of_an_open_file_description_has_the_owner_of_its_flock_and_only_a_release(filesystem: Filesystem) -> None:
    locker = filesystem.program(
        "record(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 3, 4)", "os.close(os.dup(a))", "fcntl.flock(a, fcntl.LOCK_SH)"
    )
    described = filesystem.next("lock")
    assert (described["flock"], described["first"], described["last"]) == (False, 3, 6)
    filesystem.tell("answer", described["token"], 0)
    flush = filesystem.next("flush")
    flocked = filesystem.next("lock")
    filesystem.tell("answer", flocked["token"], 0)
    assert flush["owner"] != described["owner"] == flocked["owner"]
    assert finish(locker) == ""
    assert filesystem.next("flush") == flush
    assert filesystem.next("release") == {"handle": 1, "owner": described["owner"]}


@pytest.mark.parametrize(
    ("here", "shown"), [(True, "holder"), (False, "0")], ids=["a process of this machine", "one of another machine"]
)
def test_getlk_names_the_holder(filesystem: Filesystem, here: bool, shown: str) -> None:
    locker = filesystem.program("print(*record(fcntl.F_GETLK, fcntl.F_WRLCK, 2, 0))")
    asked = filesystem.next("test")
    assert (asked["kind"], asked["first"], asked["last"]) == (fcntl.F_WRLCK, 2, 2**63 - 1)
    pid = os.getpid() if here else 0
    assert filesystem.tell("answer_test", asked["token"], fcntl.F_RDLCK, 5, 9, pid) is None
    assert finish(locker) == f"{fcntl.F_RDLCK} {os.SEEK_SET} 5 5 {pid if shown == 'holder' else shown}\n"


def test_getlk_of_a_free_range(filesystem: Filesystem) -> None:
    locker = filesystem.program("print(record(fcntl.F_GETLK, fcntl.F_WRLCK)[0] == fcntl.F_UNLCK)")
    filesystem.tell("answer_test", filesystem.next("test")["token"], fcntl.F_UNLCK, 0, 0, 0)
    assert finish(locker) == "True\n"


@pytest.mark.parametrize("call", ["fcntl.flock(a, fcntl.LOCK_EX)", "fcntl.lockf(a, fcntl.LOCK_EX)"])
def test_a_signal_interrupts_a_waiting_request(filesystem: Filesystem, call: str) -> None:
    locker = filesystem.program(call)
    token = filesystem.next("lock")["token"]
    locker.send_signal(signal.SIGUSR1)
    assert filesystem.next("interrupted") == {"token": token}
    assert filesystem.tell("answer", token, errno.EINTR) is None
    assert finish(locker) == "EINTR\n"


def test_handlers_may_answer_before_they_return(filesystem: Filesystem) -> None:
    # See locking_filesystem for what it does with these bytes.
    locker = filesystem.program("fcntl.lockf(a, fcntl.LOCK_EX, 1, 14)", "fcntl.lockf(a, fcntl.LOCK_EX, 1, 15)")
    granted, kept = filesystem.next("lock"), filesystem.next("lock")
    locker.send_signal(signal.SIGUSR1)
    assert filesystem.next("interrupted") == {"token": kept["token"]}
    assert finish(locker) == "EINTR\n"
    filesystem.next("flush"), filesystem.next("release")
    for token in (granted["token"], kept["token"]):
        assert filesystem.tell("answer", token, 0) == f"token {token} is not open"


def test_a_killed_waiter_ends_with_its_answer(filesystem: Filesystem) -> None:
    locker = filesystem.program("fcntl.flock(a, fcntl.LOCK_EX)")
    token = filesystem.next("lock")["token"]
    locker.kill()
    assert filesystem.next("interrupted") == {"token": token}
    assert filesystem.tell("answer", token, errno.EINTR) is None
    assert locker.wait(WAIT_SECONDS) == -9
    locker.communicate()


def test_a_token_is_answered_once_as_what_it_is(filesystem: Filesystem) -> None:
    locker = filesystem.program("fcntl.flock(a, fcntl.LOCK_EX)")
    token = filesystem.next("lock")["token"]
    assert filesystem.tell("answer_test", token, fcntl.F_UNLCK, 0, 0, 0) == f"token {token} is not that of a test"
    assert filesystem.tell("answer", token, errno.ENOLCK) is None
    assert filesystem.tell("answer", token, 0) == f"token {token} is not open"
    assert finish(locker) == "ENOLCK\n"


def test_eintr_without_an_interrupt_is_a_bug(filesystem: Filesystem) -> None:
    locker = filesystem.program("fcntl.flock(a, fcntl.LOCK_EX)")
    token = filesystem.next("lock")["token"]
    assert filesystem.tell("answer", token, errno.EINTR) == f"EINTR for token {token}, which was not interrupted"
    assert finish(locker) == "EIO\n"


def test_an_error_in_a_handler_is_printed_and_becomes_eio(filesystem: Filesystem) -> None:
    locker = filesystem.program("fcntl.lockf(a, fcntl.LOCK_EX, 1, 13)")
    token = filesystem.next("lock")["token"]
    assert finish(locker) == "EIO\n"
    filesystem.next("flush"), filesystem.next("release")
    assert filesystem.tell("answer", token, 0) == f"token {token} is not open"
    assert "the handler of lock raised, as the test wants" in filesystem.end()


def test_absent_attributes_do_not_reach_python(filesystem: Filesystem) -> None:
    with pytest.raises(OSError, match="No data available") as caught:
        os.getxattr(filesystem.path, "user.absent")
    assert caught.value.errno == errno.ENODATA
    assert os.getxattr(filesystem.path, "user.other") == b"value"
    assert filesystem.next("getxattr") == {"name": "user.other"}


def test_unmounting_under_a_waiter_frees_it_and_its_token(tmp_path: Path) -> None:
    # The arguments after the mode are tokens that the filesystem answers once its session is gone: nothing may happen.
    filesystem = Filesystem(tmp_path, "first", 1)
    try:
        filesystem.next("ready")
        locker = filesystem.program("fcntl.flock(a, fcntl.LOCK_EX)")
        assert filesystem.next("lock")["token"] == 1
        filesystem.leave()
        assert filesystem.next("ended") == {"in_effect": False}
        assert filesystem.process.wait(WAIT_SECONDS) == 0
        assert finish(locker) in ("ENOTCONN\n", "ECONNABORTED\n")
    finally:
        filesystem.discard()


def test_loaded_after_pyfuse3_it_is_not_in_effect(tmp_path: Path) -> None:
    filesystem = Filesystem(tmp_path, "late")
    try:
        assert not filesystem.next("ready")["in_effect"]
        # The kernel decides alone: what agentfs must never be mounted with.
        assert finish(filesystem.program("fcntl.flock(a, fcntl.LOCK_EX)")) == ""
    finally:
        filesystem.discard()
