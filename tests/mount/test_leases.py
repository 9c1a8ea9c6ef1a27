"""Locks across mounts: what a holder sees, dead and frozen holders, a silent journal, and what users are told."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN
from pathlib import Path

import pytest

from tests.mount.conftest import LABELS, Place
from tests.mount.errnos import fails
from tests.mount.lockers import (
    KINDS,
    Locker,
    again,
    catch,
    count,
    count_beside,
    count_until_error,
    lock_under_signals,
    mapped,
    take,
)
from tests.mount.place import Mount, wait_until

TTL_SECONDS = 2.0
TTL = ("--lease-ttl", f"{TTL_SECONDS:g}")
DEAD_SECONDS = TTL_SECONDS * 1.25 + 2
"""Within this a dead mount's locks are others': its TTL, one beat, and time for a busy machine to notice."""

NO_JOURNAL_SECONDS = 30
"""Within this a lock is refused when the journal does not answer."""

Mounts = Callable[..., list[Place]]
Hire = Callable[..., Locker]


def shared(places: list[Place], content: bytes = b"", name: str = "f") -> list[Path]:
    """The paths, in each place, of a new file that all of them see."""
    with open(places[0].path / name, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    paths = [place.path / name for place in places]
    for path in paths:
        wait_until(path.exists, f"{path} to appear")
    return paths


def recovery_folders(mount: Mount) -> list[Path]:
    """The recovery folders that `agentfs status` names."""
    return [Path(folder) for folder in mount.status()["recovered"]]


def is_set_aside(mount: Mount, content: bytes) -> bool:
    """Whether the bytes are in a recovery folder of the mount."""
    files = [path for folder in recovery_folders(mount) for path in folder.rglob("*") if path.is_file()]
    return any(content in path.read_bytes() for path in files)


def silent(seconds: float) -> None:
    """Return when so much time has passed: how long a mount is silent is what the test is about."""
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() > begun + seconds, "time to pass")


# ---- lock, read, write, unlock


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("count_mounts", "processes"), [(1, 4), (2, 2), (2, 3), (3, 1)])
def test_a_counter(mounts: Mounts, hire: Hire, count_mounts: int, processes: int, kind: str) -> None:
    places = mounts(count_mounts)
    paths = shared(places, b"0")
    workers = [hire(path) for path in paths for _ in range(processes)]
    for worker in workers:
        worker.begin(count, str(worker.path), kind, 200)
    for worker in workers:
        worker.end(100)
    assert {int(path.read_bytes()) for path in paths} == {200 * len(workers)}


def test_a_counter_where_close_does_not_wait(mounts: Mounts, hire: Hire) -> None:
    paths = shared(mounts(2, "--durability", "fsync"), b"0")
    workers = [hire(path) for path in paths for _ in range(2)]
    for worker in workers:
        worker.begin(count, str(worker.path), "flock", 100)
    for worker in workers:
        worker.end(100)
    assert {int(path.read_bytes()) for path in paths} == {400}


@pytest.mark.parametrize("fault", ["killed", "frozen"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_counter_when_a_mount_fails(mounts: Mounts, hire: Hire, kind: str, fault: str) -> None:
    """What was unlocked without an error is counted; of each process that met an error, at most what it was just doing."""
    failing, staying = mounts(2, *TTL)
    failing.needs("fail")
    paths = shared([failing, staying], b"0")
    workers = [hire(path) for path in paths for _ in range(2)]
    for worker in workers:
        worker.begin(count_until_error, str(worker.path), kind, 400)
    wait_until(lambda: int(paths[1].read_bytes()) > 100, "them to be well under way")
    if fault == "killed":
        failing.kill9(remount=False)
        done = [worker.end(120) for worker in workers]
    else:
        with failing.frozen():
            stayed = [worker.end(120) for worker in workers[2:]]
        done = [*(worker.end(120) for worker in workers[:2]), *stayed]
    assert done[2:] == [400, 400]
    errors = sum(each < 400 for each in done)
    assert sum(done) <= int(paths[1].read_bytes()) <= sum(done) + errors, f"{done}"


@pytest.mark.parametrize("kind", KINDS)
def test_processes_killed_in_a_crowd_leave_nothing(mounts: Mounts, hire: Hire, kind: str) -> None:
    paths = shared(mounts(2), b"0")
    for _ in range(5):
        workers = [hire(path) for path in paths for _ in range(3)]
        before = int(paths[0].read_bytes())
        for worker in workers:
            worker.begin(count, str(worker.path), kind, 40)
        wait_until(lambda before=before: int(paths[0].read_bytes()) > before + 10, "them to be under way")
        for victim in (workers[0], workers[3]):
            victim.kill()
        for worker in workers:
            if worker not in (workers[0], workers[3]):
                worker.end(60)
    assert not any(hire(path).is_refused(kind) for path in paths)


def test_signals_in_a_crowd_leave_nothing(mounts: Mounts, hire: Hire) -> None:
    """Whoever is told EINTR has no lock, however close the signal came to the grant."""
    paths = shared(mounts(2))
    target, *others = [hire(path) for path in (paths[0], paths[0], paths[1])]
    target.do(catch, signal.SIGUSR1, restart=False)
    target.begin(lock_under_signals, str(paths[0]), 300)
    for other in others:
        other.begin(again, other.descriptor, "flock", 300)
    for _ in range(20_000):
        if target.has_ended(0.003):
            break
        target.signal(signal.SIGUSR1)
    target.end(0)
    for other in others:
        other.end()


@pytest.mark.parametrize("kind", KINDS)
def test_a_counter_under_a_lock_file(mounts: Mounts, hire: Hire, kind: str) -> None:
    places = mounts(2)
    locks, paths = shared(places, name="lock"), shared(places, b"0")
    workers = [hire(path) for path in locks for _ in range(2)]
    for worker in workers:
        worker.begin(count_beside, str(worker.path), str(worker.path.with_name("f")), kind, 100)
    for worker in workers:
        worker.end(100)
    assert {int(path.read_bytes()) for path in paths} == {400}


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_shows_what_the_last_holder_wrote(mounts: Mounts, hire: Hire, kind: str) -> None:
    """Also to a process that read the file before, keeps it open, and mapped it."""
    first = b"first".ljust(8192, b".")
    one, two = (hire(path) for path in shared(mounts(2), first))
    for process in (one, two):
        assert process.read() == first
        assert process.do(mapped, process.descriptor, 8192) == first
    for number in range(40):
        writer, reader = (one, two) if number % 2 else (two, one)
        writer.take(kind)
        content = f"round {number} ".encode() * 100
        writer.write(content, number * 50)
        writer.write(content, 8192 + number * 4000)
        expected = writer.read()
        writer.give(kind)
        reader.take(kind)
        assert reader.read() == expected
        assert reader.do(mapped, reader.descriptor, 8192) == expected[:8192]
        assert reader.do(os.fstat, reader.descriptor).st_size == len(expected)
        assert os.stat(reader.path).st_size == len(expected)
        reader.give(kind)


def test_a_shared_lock_shows_it_too(mounts: Mounts, hire: Hire) -> None:
    one, two, three = (hire(path) for path in shared(mounts(3), b"old"))
    assert (two.read(), three.read()) == (b"old", b"old")
    one.flock(LOCK_EX)
    one.do(os.ftruncate, one.descriptor, 0)
    one.write(b"n")
    for reader in (two, three):
        reader.begin(fcntl.flock, reader.descriptor, LOCK_SH)
        reader.blocks()
    one.flock(LOCK_UN)
    for reader in (two, three):
        reader.end()
        assert reader.read() == b"n"


def test_a_range_shows_what_was_written_under_it(mounts: Mounts, hire: Hire) -> None:
    """Two mounts write to their own half of a file, and then read the other's."""
    one, two = (hire(path) for path in shared(mounts(2), bytes(2000)))
    for number in range(1, 20):
        one.lock(F_WRLCK, 0, 1000)
        two.lock(F_WRLCK, 1000, 1000)
        one.write(bytes([number]) * 1000, 0)
        two.write(bytes([100 + number]) * 1000, 1000)
        one.lock(F_UNLCK)
        two.lock(F_UNLCK)
        for reader in (one, two):
            reader.lock(F_RDLCK)
            assert reader.read() == bytes([number]) * 1000 + bytes([100 + number]) * 1000
            reader.lock(F_UNLCK)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_lock_names_are_as_the_last_holder_left_them(mounts: Mounts, hire: Hire, kind: str) -> None:
    places = mounts(2)
    processes = [hire(path) for path in shared(places)]
    for number in range(40):
        (here, there), (writer, reader) = (places, processes) if number % 2 else (places[::-1], processes[::-1])
        assert not (there.path / f"new{number}").exists()
        writer.take(kind)
        (here.path / f"new{number}").write_text("content")
        if number:
            os.unlink(here.path / f"old{number - 1}")
        os.rename(here.path / f"new{number}", here.path / f"old{number}")
        os.chmod(here.path / f"old{number}", 0o600)
        writer.give(kind)
        reader.take(kind)
        assert sorted(os.listdir(there.path)) == ["f", f"old{number}"]
        assert not (there.path / f"new{number}").exists()
        assert not (there.path / f"old{number - 1}").exists()
        assert (there.path / f"old{number}").stat().st_mode & 0o777 == 0o600
        assert (there.path / f"old{number}").read_text() == "content"
        reader.give(kind)


def test_a_read_only_mount_takes_part(mounts: Mounts, hire: Hire) -> None:
    (writable,) = mounts(1)
    writable.needs("mount read-only")
    (path,) = shared([writable], b"old")
    readonly = writable.beside(LABELS[1])
    try:
        readonly.mount("-o", "ro,allow_other" if os.geteuid() == 0 else "ro")
        writer, reader = hire(path), hire(readonly.path / "f", os.O_RDONLY)
        writer.flock(LOCK_EX)
        writer.write(b"new")
        reader.begin(fcntl.flock, reader.descriptor, LOCK_SH)
        reader.blocks()
        writer.flock(LOCK_UN)
        reader.end()
        assert reader.read() == b"new"
        assert writer.is_refused("flock")
        reader.flock(LOCK_UN)
        reader.lock(F_RDLCK)
        assert writer.is_refused("fcntl")
        reader.lock(F_UNLCK)
        assert not writer.is_refused("fcntl")
        reader.kill()
    finally:
        readonly.discard()


# ---- what repeat locking costs


@pytest.mark.parametrize("kind", KINDS)
def test_locking_again_needs_no_journal(mounts: Mounts, hire: Hire, kind: str) -> None:
    places = mounts(2)
    here, there = places
    here.needs("ask for a position")
    one, other = hire(shared(places)[0]), hire(here.path / "f")
    far = hire(there.path / "f")
    for _ in range(2):
        one.take(kind)
        one.give(kind)
        before = here.position()
        for process in (one, other):
            process.do(again, process.descriptor, kind, 100)
        assert here.position() == before
        far.take(kind)
        far.give(kind)
        assert there.position() > before


# ---- dead holders


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_mount_loses_its_locks(mounts: Mounts, hire: Hire, kind: str) -> None:
    dying, alive, other = mounts(3, *TTL)
    paths = shared([dying, alive, other], b"before")
    dying.needs("kill")
    holder, waiter, last = (hire(path) for path in paths)
    holder.take(kind)
    holder.write(b"unsaved")
    for process in (waiter, last):
        process.want(kind)
        process.blocks()
    dying.kill9(remount=False)
    waiter.end(DEAD_SECONDS)
    assert waiter.read() == b"before"
    waiter.write(b"after!")
    waiter.give(kind)
    last.end(5)
    assert last.read() == b"after!"
    last.give(kind)
    dying.mount_again()
    assert (dying.path / "f").read_bytes() == b"after!"
    assert is_set_aside(dying, b"unsaved")


def test_a_mount_that_is_unmounted_gives_its_locks_up(mounts: Mounts, hire: Hire) -> None:
    leaving, staying = mounts(2)
    one, two = (hire(path) for path in shared([leaving, staying]))
    leaving.needs("unmount")
    one.flock(LOCK_EX)
    one.flock(LOCK_UN)
    one.close()
    leaving.umount()
    two.flock(LOCK_EX | LOCK_NB)


# ---- frozen holders


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["write", "fsync", "close"])
def test_a_frozen_holder_wakes_up_to_an_error(mounts: Mounts, hire: Hire, kind: str, call: str) -> None:
    frozen, other = mounts(2, *TTL)
    paths = shared([frozen, other], b"before")
    frozen.needs("freeze")
    holder, waiter = (hire(path) for path in paths)
    session = frozen.session()
    holder.take(kind)
    holder.write(b"written by the frozen mount")
    waiter.want(kind)
    waiter.blocks()
    with frozen.frozen():
        waiter.end(DEAD_SECONDS)
        assert waiter.read() == b"before"
        waiter.write(b"after!")
        waiter.give(kind)
    with fails(errno.EIO):
        match call:
            case "write":
                holder.write(b"too late")
            case "fsync":
                holder.do(os.fsync, holder.descriptor)
            case _:
                holder.close()
    with contextlib.suppress(OSError):
        holder.close()
    wait_until(lambda: frozen.session() > session, "the mount to register again")
    assert is_set_aside(frozen, b"written by the frozen mount")
    assert not is_set_aside(other, b"")
    anew = hire(frozen.path / "f")
    anew.take(kind)
    assert anew.read() == b"after!"
    anew.write(b"anew..")
    anew.give(kind)
    waiter.take(kind)
    assert waiter.read() == b"anew.."
    assert {path.read_bytes() for path in paths} == {b"anew.."}
    versions = [row["writer"] for row in other.versions(other.path / "f")]
    assert len(versions) == 3, f"only what was acknowledged is in the history: {versions}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_holder_that_had_only_read_cannot_write(mounts: Mounts, hire: Hire, kind: str) -> None:
    """What it read is old by now: writing what follows from it would undo the other's work."""
    frozen, other = mounts(2, *TTL)
    paths = shared([frozen, other], b"before")
    frozen.needs("freeze")
    holder, waiter = (hire(path) for path in paths)
    holder.take(kind)
    assert holder.read() == b"before"
    with frozen.frozen():
        waiter.want(kind)
        waiter.end(DEAD_SECONDS)
        waiter.write(b"after!")
        waiter.give(kind)
    with fails(errno.EIO):
        holder.write(b"too late")
        holder.do(os.fsync, holder.descriptor)
    holder.kill()
    assert {path.read_bytes() for path in paths} == {b"after!"}
    assert hire(paths[0]).is_refused(kind) is False


def test_files_that_were_not_locked_survive_the_loss_of_a_session(mounts: Mounts, hire: Hire) -> None:
    frozen, other = mounts(2, *TTL)
    paths, beside = shared([frozen, other]), shared([frozen, other], b"old", "beside")
    frozen.needs("freeze")
    holder, waiter, writer = hire(paths[0]), hire(paths[1]), hire(beside[0])
    session = frozen.session()
    holder.flock(LOCK_EX)
    writer.write(b"new")
    waiter.want("flock")
    waiter.blocks()
    with frozen.frozen():
        waiter.end(DEAD_SECONDS)
    writer.write(b"NEW")
    writer.do(os.fsync, writer.descriptor)
    writer.close()
    wait_until(lambda: frozen.session() > session, "the mount to register again")
    assert beside[1].read_bytes() == b"NEW"
    (frozen.path / "another").write_text("content")
    assert (other.path / "another").read_text() == "content"


def test_a_frozen_mount_that_nobody_missed_goes_on(mounts: Mounts, hire: Hire) -> None:
    (frozen,) = mounts(1, *TTL)
    (path,) = shared([frozen])
    frozen.needs("freeze")
    holder, second = hire(path), hire(path)
    session = frozen.session()
    holder.flock(LOCK_EX)
    with frozen.frozen():
        silent(TTL_SECONDS * 2)
    holder.write(b"content")
    holder.do(os.fsync, holder.descriptor)
    with fails(errno.EAGAIN):
        second.flock(LOCK_EX | LOCK_NB)
    holder.close()
    second.flock(LOCK_EX)
    assert frozen.session() == session
    assert path.read_bytes() == b"content"


def test_a_frozen_waiter_does_not_hold_up_the_queue(mounts: Mounts, hire: Hire) -> None:
    holding, frozen, other = places = mounts(3, *TTL)
    one, two, three = (hire(path) for path in shared(places))
    frozen.needs("freeze")
    one.flock(LOCK_EX)
    for index, waiter in ((1, two), (2, three)):
        waiter.want("flock")
        waiter.blocks()
        wait_until(lambda index=index: LABELS[index] in waiters(holding), f"{LABELS[index]} to wait")
    with frozen.frozen():
        one.flock(LOCK_UN)
        three.end(DEAD_SECONDS)
    three.flock(LOCK_UN)
    two.kill()
    assert other.status()["recovered"] == []
    anew = hire(frozen.path / "f")
    wait_until(lambda: works(anew, "flock"), "the frozen mount to lock again")


def waiters(mount: Mount) -> list[str]:
    """The mounts that wait for a lock, in the order of `agentfs locks`."""
    return [row["holder"] for row in mount.locks() if row["state"] == "waiting"]


def test_frozen_again_and_again(mounts: Mounts, hire: Hire) -> None:
    """Two mounts in turn take the lock from the other, which is frozen with something unsaved."""
    places = mounts(2, *TTL)
    paths = shared(places, b"0")
    places[0].needs("freeze")
    for number in range(4):
        here, there = places if number % 2 else places[::-1]
        holder, waiter = hire(here.path / "f"), hire(there.path / "f")
        holder.flock(LOCK_EX)
        holder.write(b"lost %d" % number)
        with here.frozen():
            waiter.want("flock")
            waiter.end(DEAD_SECONDS)
            waiter.do(os.ftruncate, waiter.descriptor, 0)
            waiter.write(b"kept %d" % number)
            waiter.close()
        with fails(errno.EIO):
            holder.close()
        assert {path.read_bytes() for path in paths} == {b"kept %d" % number}
    assert [len(recovery_folders(place)) for place in places] == [2, 2]


# ---- a silent journal


@contextlib.contextmanager
def silent_journal(mount: Mount) -> Iterator[None]:
    """Let nobody append to the journal or beat while the block runs."""
    connection = sqlite3.connect(mount.journal, timeout=30, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wait", [False, True], ids=["at once", "waiting"])
def test_without_the_journal_a_lock_is_refused(mounts: Mounts, hire: Hire, kind: str, wait: bool) -> None:
    """Also one whose lease the mount had: it may be another's by now."""
    here, there = mounts(2, *TTL)
    paths, known = shared([here, there]), shared([here, there], name="known")
    here.needs("cut off")
    one, again_one, far = hire(paths[0]), hire(known[0]), hire(paths[1])
    again_one.take(kind)
    again_one.give(kind)
    with silent_journal(here):
        begun = time.monotonic()
        for process in (one, far):
            process.want(kind) if wait else process.begin(take, process.descriptor, kind)
        for process in (one, far):
            with fails(errno.ENOLCK):
                process.end(NO_JOURNAL_SECONDS)
        wait_until(lambda: time.monotonic() > begun + TTL_SECONDS * 1.5, "the session to lapse")
        again_one.want(kind) if wait else again_one.begin(take, again_one.descriptor, kind)
        with fails(errno.ENOLCK):
            again_one.end(NO_JOURNAL_SECONDS)
    for process in (one, again_one, far):
        wait_until(lambda process=process: works(process, kind), "locks to work again")
    paths[0].write_bytes(b"content")
    assert paths[1].read_bytes() == b"content"


def works(process: Locker, kind: str) -> bool:
    """Whether the process can lock and unlock its file."""
    try:
        process.take(kind)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EIO):
            raise
        return False
    process.give(kind)
    return True


def test_a_waiter_is_refused_when_the_journal_falls_silent(mounts: Mounts, hire: Hire) -> None:
    here, there = mounts(2, *TTL)
    one, two = (hire(path) for path in shared([here, there]))
    here.needs("cut off")
    one.flock(LOCK_EX)
    two.want("flock")
    two.blocks()
    wait_until(lambda: LABELS[1] in waiters(here), "the second mount to wait")
    with silent_journal(here), fails(errno.ENOLCK):
        two.end(NO_JOURNAL_SECONDS)
    wait_until(lambda: waiters(here) == [], "the request to be withdrawn")
    one.close()
    wait_until(lambda: works(two, "flock"), "locks to work again")


# ---- what users are told


def rows_of(mount: Mount, path: str) -> list[dict[str, object]]:
    """What `agentfs locks` says of a file."""
    return [row for row in mount.locks() if str(row["path"]).strip("/") == path]


def test_locks_are_listed(mounts: Mounts, hire: Hire) -> None:
    here, there = mounts(2)
    one, two = (hire(path) for path in shared([here, there]))
    here.needs("list")
    assert here.cli.check("locks", here.path).strip() == "no locks"
    one.flock(LOCK_EX)
    two.want("flock")
    two.blocks()
    wait_until(lambda: len(rows_of(here, "f")) == 2, "the waiter to be listed")
    held, waiting = sorted(rows_of(here, "f"), key=lambda row: str(row["state"]))
    assert (held["state"], held["pid"], held["holder"]) == ("held", one.pid, LABELS[0])
    assert (held["space"], held["mode"], held["first"], held["last"]) == ("flock", "exclusive", 0, None)
    assert (waiting["state"], waiting["holder"], waiting["mode"]) == ("waiting", LABELS[1], "exclusive")
    assert 0 <= float(str(held["age_seconds"])) < 60
    (leased,) = [row for row in rows_of(there, "f") if row["state"] == "leased"]
    assert leased["holder"] == LABELS[0]
    wait_until(lambda: all(row["ttl_seconds"] is not None for row in rows_of(there, "f")), "heartbeats to be looked at")
    assert all(0 < float(str(row["ttl_seconds"])) <= 10 for row in rows_of(there, "f"))
    table = here.cli.check("locks", here.path)
    for word in ("f", "held", "waiting", LABELS[1], str(one.pid)):
        assert word in table.split()
    one.flock(LOCK_UN)
    two.end()
    two.flock(LOCK_UN)
    assert [(row["state"], row["pid"]) for row in rows_of(there, "f")] == [("idle", None)]


def test_ranges_are_listed(mounts: Mounts, hire: Hire) -> None:
    here, there = mounts(2)
    one, two = (hire(path) for path in shared([here, there]))
    here.needs("list")
    one.lock(F_WRLCK, 0, 10)
    two.lock(F_RDLCK, 100)
    (held,) = [row for row in rows_of(here, "f") if row["state"] == "held"]
    assert (held["space"], held["mode"], held["first"], held["last"], held["pid"]) == ("fcntl", "exclusive", 0, 9, one.pid)
    (held,) = [row for row in rows_of(there, "f") if row["state"] == "held"]
    assert (held["space"], held["mode"], held["first"], held["last"], held["pid"]) == ("fcntl", "shared", 100, None, two.pid)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_names_the_holder(mounts: Mounts, hire: Hire, kind: str) -> None:
    here, there = mounts(2)
    here.needs("ask for attributes")
    paths = shared([here, there])
    one = hire(paths[0])
    one.take(kind)
    for path in paths:
        assert LABELS[0] in os.getxattr(path, "user.agentfs.lock").decode()
    assert str(one.pid) in os.getxattr(paths[0], "user.agentfs.lock").decode()


def test_locks_are_broken(mounts: Mounts, hire: Hire) -> None:
    here, there = mounts(2)
    paths = shared([here, there], b"before")
    here.needs("break")
    holder, waiter = (hire(path) for path in paths)
    session = here.session()
    holder.flock(LOCK_EX)
    holder.write(b"unsaved")
    waiter.want("flock")
    waiter.blocks()
    refused = there.cli.run("locks", "break", paths[1])
    assert (refused.returncode != 0, refused.stdout, refused.stderr.count("\n")) == (True, "", 1)
    assert not waiter.has_ended()
    own = here.cli.run("locks", "break", "--yes", paths[0])
    assert own.returncode != 0
    assert str(holder.pid) in own.stderr
    answer = json.loads(there.cli.check("locks", "break", "--yes", "--json", paths[1]))
    assert answer["fenced"] == [LABELS[0]]
    waiter.end(5)
    assert waiter.read() == b"before"
    with fails(errno.EIO):
        holder.close()
    wait_until(lambda: here.session() > session, "the mount to register again")
    assert is_set_aside(here, b"unsaved")
    waiter.give("flock")
    anew = hire(paths[0])
    anew.flock(LOCK_EX | LOCK_NB)
    assert anew.read() == b"before"
