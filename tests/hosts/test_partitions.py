"""A host is cut off from the journal, or from the replicas: what it says then, and that it goes on when that is over."""

import errno
import fcntl
import os

from tests.hosts.host import Host
from tests.hosts.network import PRIVILEGES
from tests.hosts.world import FREE_SECONDS, NOTICE_SECONDS, PROGRESS_SECONDS, TIMEOUT_SECONDS, TTL_SECONDS, WRITES, World
from tests.mount.errnos import fails
from tests.mount.lockers import Locker
from tests.mount.place import wait_until

pytestmark = PRIVILEGES

ENOLCK_SECONDS = TTL_SECONDS + NOTICE_SECONDS
"""Within this a lock is refused when the journal does not answer (S58)."""

EIO_SECONDS = TIMEOUT_SECONDS + NOTICE_SECONDS
"""Within this `fsync` and `close` fail when too few replicas answer."""

CONTENT = bytes(range(256)) * 1200
"""What does not travel in the journal: replicas must take it."""


def hire_for(host: Host, name: str, content: bytes) -> Locker:
    """A process there with a new file open, whose content is saved."""
    (host.mountpoint / name).write_bytes(content)
    return host.hire(host.mountpoint / name)


def test_cut_off_from_the_journal(world: World) -> None:
    a, b = world.a, world.b
    world.mount()
    known, held, free, unsaved = (hire_for(a, name, CONTENT) for name in ("known", "held", "free", "unsaved"))
    held.flock(fcntl.LOCK_EX)
    waiter = world.hire_beside(b, held.path)
    waiter.want("flock")
    waiter.blocks()
    assert known.do(os.pread, known.descriptor, len(CONTENT), 0) == CONTENT
    session = a.session()
    writing = world.write(a)
    writing.progress(WRITES)

    a.cut("journal")
    before = writing.record.acknowledged()
    # What a program reads of a file that it has open, nobody asks the journal for; and what it writes there is staged.
    assert known.do(os.pread, known.descriptor, len(CONTENT), 0) == CONTENT
    unsaved.write(b"staged")
    with fails(errno.ENOLCK):
        free.want("flock")
        free.end(ENOLCK_SECONDS)
    waiter.end(FREE_SECONDS)
    waiter.write(b"theirs")
    waiter.give("flock")
    with fails(errno.EIO):
        held.write(b"ours")
    assert known.do(os.pread, known.descriptor, len(CONTENT), 0) == CONTENT
    # One may have been acknowledged while the test looked.
    assert writing.record.acknowledged() <= before + 1

    a.heal("journal")
    writing.progress(WRITES)
    writing.stop()
    assert {number for number, _ in writing.record.failures()} <= {errno.EIO}
    assert a.session() != session
    with fails(errno.EIO):
        held.write(b"ours")
    wait_until(lambda: locks(free), "locks to be granted", seconds=PROGRESS_SECONDS)
    unsaved.do(os.fsync, unsaved.descriptor)
    for host in (a, b):
        world.assert_nothing_lost(host)
        assert (host.mountpoint / "unsaved").read_bytes() == b"staged" + CONTENT[6:]
        assert (host.mountpoint / "held").read_bytes() == b"theirs" + CONTENT[6:]


def locks(process: Locker) -> bool:
    """Whether the process can lock its file, by now."""
    try:
        process.take("flock")
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EAGAIN):
            raise
        return False
    process.give("flock")
    return True


def test_cut_off_from_the_replicas(world: World) -> None:
    a, b = world.a, world.b
    world.mount()
    known, unsaved = hire_for(a, "known", CONTENT), hire_for(a, "unsaved", CONTENT)
    writing = world.write(a)
    writing.progress(WRITES)

    a.cut("s3")
    assert known.path.read_bytes() == CONTENT
    (a.mountpoint / "small").write_bytes(b"the journal holds it")
    unsaved.write(CONTENT[::-1])
    unsaved.begin(os.fsync, unsaved.descriptor)
    with fails(errno.EIO):
        unsaved.end(EIO_SECONDS)
    known.take("flock")
    known.give("flock")
    (b.mountpoint / "large").write_bytes(CONTENT)
    assert (b.mountpoint / "small").read_bytes() == b"the journal holds it"

    a.heal("s3")
    writing.progress(WRITES)
    writing.stop()
    assert {number for number, _ in writing.record.failures()} <= {errno.EIO}
    # It goes out by itself: nobody asked again.
    there = b.mountpoint / "unsaved"
    wait_until(lambda: there.read_bytes() == CONTENT[::-1], "what was staged to be saved", seconds=PROGRESS_SECONDS)
    assert (a.mountpoint / "large").read_bytes() == CONTENT
    for host in (a, b):
        world.assert_nothing_lost(host)
