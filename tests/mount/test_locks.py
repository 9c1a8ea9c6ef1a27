"""flock(2) and fcntl(2) locks, between processes of one mount and of several: as Linux does it on a local filesystem."""

import errno
import fcntl
import os
import signal
import tempfile
from collections.abc import Callable
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.errnos import fails
from tests.mount.lockers import (
    KINDS,
    Locker,
    catch,
    end_child,
    getlk,
    in_child,
    lingering_child,
    raw_flock,
    raw_setlkw,
    setlk,
)
from tests.mount.place import Mount, wait_until


class Team:
    """Processes on as many mounts as there are `places`, by turns, and an empty directory that they share."""

    def __init__(self, places: list[Place], hire: Callable[..., Locker]) -> None:
        self.places = places
        self._hire = hire
        self._name = Path(tempfile.mkdtemp(dir=places[0].path)).name

    def directory(self, index: int = 0) -> Path:
        """The directory as the process of that number sees it."""
        return self.places[index % len(self.places)].path / self._name

    def file(self, content: bytes = b"", name: str = "f") -> None:
        """Make a file that every place sees."""
        (self.directory() / name).write_bytes(content)
        for index in range(len(self.places)):
            wait_until((self.directory(index) / name).exists, f"{name} to appear at {self.directory(index)}")

    def open(self, index: int, name: str = "f", flags: int = os.O_RDWR) -> Locker:
        """A process of that number which has the file open."""
        return self._hire(self.directory(index) / name, flags)

    def members(self, count: int, content: bytes = b"") -> list[Locker]:
        """So many processes with one new file open."""
        self.file(content)
        return [self.open(index) for index in range(count)]

    def queued(self, index: int) -> None:
        """Return once the first mount knows that the process of that number waits, if it is on another."""
        here, there = self.places[0], self.places[index % len(self.places)]
        if isinstance(here, Mount) and isinstance(there, Mount) and here is not there:
            wait_until(lambda: there.label in waiting(here, self._name), f"a process of {there.label} to wait")


def waiting(mount: Mount, directory: str) -> list[str]:
    """The mounts that wait for a lock on a file in `directory`."""
    return [row["holder"] for row in mount.locks() if row["state"] == "waiting" and f"{directory}/" in row["path"]]


@pytest.fixture(params=[1, 2, 3], ids=["one mount", "two mounts", "three mounts"])
def team(request: pytest.FixtureRequest, shared_mounts: list[Place], hire: Callable[..., Locker]) -> Team:
    """Processes on one, two or three mounts."""
    return Team(shared_mounts[: request.param], hire)


@pytest.fixture
def alone(shared_mounts: list[Place], hire: Callable[..., Locker]) -> Team:
    """Processes on one mount."""
    return Team(shared_mounts[:1], hire)


def is_in_the_way(asker: Locker, holder: Locker, asked: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    """F_GETLK says what kind of lock is where, and whose; a process of another mount may be on another host, and pid 0."""
    found = asker.getlk(*asked)
    assert found is not None
    assert (found.kind, found.first, found.length) == expected
    assert found.pid in ({holder.pid} if holder.path == asker.path else {holder.pid, 0})


# ---- both kinds


@pytest.mark.parametrize("kind", KINDS)
def test_one_at_a_time(team: Team, kind: str) -> None:
    one, two, three = team.members(3)
    for first, second, third in [(one, two, three), (two, three, one), (three, one, two)]:
        first.take(kind)
        assert second.is_refused(kind)
        assert third.is_refused(kind)
        first.give(kind)
        assert not second.is_refused(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_waiter_gets_the_lock_when_it_is_released(team: Team, kind: str) -> None:
    one, two = team.members(2)
    for holder, waiter in [(one, two), (two, one)] * 10:
        holder.take(kind)
        waiter.want(kind)
        waiter.blocks()
        holder.give(kind)
        waiter.end()
        assert holder.is_refused(kind)
        waiter.give(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_waiters_come_first_come_first_served(team: Team, kind: str) -> None:
    holder, *waiters = team.members(6)
    holder.take(kind)
    for number, waiter in enumerate(waiters, start=1):
        waiter.want(kind)
        waiter.blocks()
        team.queued(number)
    order: list[Locker] = []
    for _ in waiters:
        (order[-1] if order else holder).give(kind)
        wait_until(lambda: any(w.has_ended() for w in waiters if w not in order), "a waiter to get the lock")
        (granted,) = [w for w in waiters if w not in order and w.has_ended()]
        granted.end()
        order.append(granted)
    groups = len(team.places)
    for place in range(groups):
        mine = [waiter for index, waiter in enumerate(waiters, start=1) if index % groups == place]
        assert [waiter for waiter in order if waiter in mine] == mine, "not first come first served within a mount"
    remote_firsts = [waiters[index - 1] for index in range(1, groups)]
    assert [waiter for waiter in order if waiter in remote_firsts] == remote_firsts, "not in turn between mounts"


@pytest.mark.parametrize("kind", KINDS)
def test_a_busy_mount_does_not_starve_the_others(shared_mounts: list[Place], hire: Callable[..., Locker], kind: str) -> None:
    """Two processes of one mount always have the next request in before the last is released."""
    team = Team(shared_mounts[:2], hire)
    team.file()
    holder, other, far = team.open(0), team.open(0), team.open(1)
    holder.take(kind)
    far.want(kind)
    far.blocks()
    for _ in range(200):
        other.want(kind)
        other.blocks()
        holder.give(kind)
        wait_until(lambda other=other: other.has_ended() or far.has_ended(), "the next to get the lock")
        if far.has_ended():
            break
        other.end()
        holder, other = other, holder
    else:
        pytest.fail("the other mount's waiter was passed over 200 times")
    far.end()
    far.give(kind)
    other.end()


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_ends_the_wait(team: Team, kind: str) -> None:
    holder, waiter, last = team.members(3)
    holder.take(kind)
    waiter.do(catch, signal.SIGUSR1, restart=False)
    waiter.begin(*((raw_flock, waiter.descriptor, LOCK_EX) if kind == "flock" else (raw_setlkw, waiter.descriptor, F_WRLCK)))
    waiter.blocks()
    last.want(kind)
    last.blocks()
    waiter.signal(signal.SIGUSR1)
    with fails(errno.EINTR):
        waiter.end()
    holder.give(kind)
    last.end()
    assert waiter.is_refused(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_that_restarts_calls_does_not_end_the_wait(team: Team, kind: str) -> None:
    holder, waiter = team.members(2)
    holder.take(kind)
    waiter.do(catch, signal.SIGUSR1, restart=True)
    waiter.begin(*((raw_flock, waiter.descriptor, LOCK_EX) if kind == "flock" else (raw_setlkw, waiter.descriptor, F_WRLCK)))
    for _ in range(5):
        waiter.blocks()
        waiter.signal(signal.SIGUSR1)
    waiter.blocks()
    holder.give(kind)
    waiter.end()
    assert holder.is_refused(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_waiter_that_is_killed_leaves_no_ghost(team: Team, kind: str) -> None:
    holder, waiter, last = team.members(3)
    holder.take(kind)
    waiter.want(kind)
    waiter.blocks()
    last.want(kind)
    last.blocks()
    waiter.kill()
    holder.give(kind)
    last.end()
    last.give(kind)
    assert not holder.is_refused(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_holder_that_is_killed_releases_at_once(team: Team, kind: str) -> None:
    holder, waiter = team.members(2)
    holder.take(kind)
    waiter.want(kind)
    waiter.blocks()
    holder.kill()
    waiter.end(5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_is_on_the_file_and_not_on_its_name(team: Team, kind: str) -> None:
    (holder,) = team.members(1)
    holder.take(kind)
    os.rename(team.directory() / "f", team.directory() / "g")
    os.link(team.directory() / "g", team.directory() / "h")
    (team.directory() / "f").write_bytes(b"")
    for name, refused in [("f", False), ("g", True), ("h", True)]:
        wait_until(
            lambda name=name: (
                (team.directory(1) / name).exists()
                and (team.directory(1) / name).stat().st_ino == (team.directory() / name).stat().st_ino
            ),
            f"{name} to appear",
        )
        assert team.open(1, name).is_refused(kind) == refused, name
    os.unlink(team.directory() / "g")
    os.unlink(team.directory() / "h")
    assert holder.write(b"still here") is None
    holder.give(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_removed_file_can_be_locked(team: Team, kind: str) -> None:
    one, two = team.members(2)
    os.unlink(team.directory() / "f")
    wait_until(lambda: not (team.directory(1) / "f").exists(), "the file to go")
    one.take(kind)
    assert two.is_refused(kind)
    two.want(kind)
    two.blocks()
    one.give(kind)
    two.end()


def test_the_kinds_do_not_see_each_other(team: Team) -> None:
    one, two = team.members(2)
    one.take("flock")
    two.take("fcntl")
    assert two.is_refused("flock")
    assert one.is_refused("fcntl")
    one.give("flock")
    assert not two.is_refused("flock")
    assert one.is_refused("fcntl")


# ---- flock


def test_flock_shared_and_exclusive(team: Team) -> None:
    one, two, three = team.members(3)
    one.flock(LOCK_SH | LOCK_NB)
    two.flock(LOCK_SH | LOCK_NB)
    with fails(errno.EAGAIN):
        three.flock(LOCK_EX | LOCK_NB)
    one.flock(LOCK_UN)
    with fails(errno.EAGAIN):
        three.flock(LOCK_EX | LOCK_NB)
    two.flock(LOCK_UN)
    three.flock(LOCK_EX | LOCK_NB)
    with fails(errno.EAGAIN):
        one.flock(LOCK_SH | LOCK_NB)


def test_flock_shared_holders_on_every_mount_again_and_again(team: Team) -> None:
    members = team.members(4)
    for _ in range(10):
        for member in members:
            member.flock(LOCK_SH | LOCK_NB)
        for member in members:
            member.flock(LOCK_UN)
        members[-1].flock(LOCK_EX | LOCK_NB)
        members[-1].flock(LOCK_UN)


def test_flock_upgrade_and_downgrade(team: Team) -> None:
    one, two = team.members(2)
    one.flock(LOCK_SH | LOCK_NB)
    one.flock(LOCK_EX | LOCK_NB)
    with fails(errno.EAGAIN):
        two.flock(LOCK_SH | LOCK_NB)
    one.flock(LOCK_SH | LOCK_NB)
    two.flock(LOCK_SH | LOCK_NB)
    with fails(errno.EAGAIN):
        two.flock(LOCK_EX | LOCK_NB)
    # A conversion releases the old lock first; where it then fails, that lock is lost (flock(2)).
    one.flock(LOCK_EX | LOCK_NB)
    with fails(errno.EAGAIN):
        two.flock(LOCK_SH | LOCK_NB)


def test_flock_two_that_upgrade_do_not_wait_for_each_other(team: Team) -> None:
    one, two = team.members(2)
    one.flock(LOCK_SH)
    two.flock(LOCK_SH)
    one.begin(fcntl.flock, one.descriptor, LOCK_EX)
    one.blocks()
    two.begin(fcntl.flock, two.descriptor, LOCK_EX)
    wait_until(lambda: one.has_ended() or two.has_ended(), "one of them to get the lock")
    first, second = (one, two) if one.has_ended() else (two, one)
    first.end()
    assert not second.has_ended()
    first.flock(LOCK_UN)
    second.end()


def test_flock_a_downgrade_lets_waiting_readers_in(team: Team) -> None:
    one, two, three = team.members(3)
    one.flock(LOCK_EX)
    for waiter in (two, three):
        waiter.begin(fcntl.flock, waiter.descriptor, LOCK_SH)
        waiter.blocks()
    one.flock(LOCK_SH)
    two.end()
    three.end()
    with fails(errno.EAGAIN):
        one.flock(LOCK_EX | LOCK_NB)


def test_flock_is_shared_with_a_forked_child_and_a_duplicate(team: Team) -> None:
    one, two = team.members(2)
    one.flock(LOCK_EX)
    child = one.do(lingering_child)
    duplicate = one.do(os.dup, one.descriptor)
    assert one.do(in_child, fcntl.flock, duplicate, LOCK_EX | LOCK_NB) == 0
    one.close()
    assert two.is_refused("flock")
    one.do(os.close, duplicate)
    assert two.is_refused("flock")
    two.begin(fcntl.flock, two.descriptor, LOCK_EX)
    two.blocks()
    one.do(end_child, child)
    two.end()


def test_flock_unlocked_by_a_forked_child_is_unlocked(team: Team) -> None:
    one, two = team.members(2)
    one.flock(LOCK_EX)
    assert one.do(in_child, fcntl.flock, one.descriptor, LOCK_UN) == 0
    assert not two.is_refused("flock")


def test_flock_belongs_to_the_open_file(team: Team) -> None:
    (one,) = team.members(1)
    other = one.do(os.open, str(one.path), os.O_RDONLY)
    one.flock(LOCK_EX)
    with fails(errno.EAGAIN):
        one.do(fcntl.flock, other, LOCK_SH | LOCK_NB)
    one.do(os.close, other)
    assert team.open(1).is_refused("flock")
    one.flock(LOCK_UN)
    reader = team.open(1, flags=os.O_RDONLY)
    reader.flock(LOCK_EX | LOCK_NB)
    assert one.is_refused("flock")


def test_flock_of_a_directory(alone: Team) -> None:
    """FUSE does not carry it: it holds within a mount only."""
    alone.file()
    one, two = (alone.open(index, ".", os.O_RDONLY) for index in range(2))
    one.flock(LOCK_EX | LOCK_NB)
    assert two.is_refused("flock")
    one.flock(LOCK_UN)
    assert not two.is_refused("flock")


def test_an_exclusive_waiter_is_not_passed_by_readers(shared_mounts: list[Place], hire: Callable[..., Locker]) -> None:
    shared_mounts[0].needs("queue")
    team = Team(shared_mounts, hire)
    reader, writer, late = team.members(3)
    reader.flock(LOCK_SH)
    writer.begin(fcntl.flock, writer.descriptor, LOCK_EX)
    writer.blocks()
    team.queued(1)
    late.begin(fcntl.flock, late.descriptor, LOCK_SH)
    late.blocks()
    reader.flock(LOCK_UN)
    writer.end()
    assert not late.has_ended()
    writer.flock(LOCK_UN)
    late.end()


# ---- fcntl


def test_fcntl_names_the_holder(team: Team) -> None:
    one, two = team.members(2)
    assert two.getlk(F_WRLCK) is None
    one.lock(F_WRLCK, 100, 50)
    is_in_the_way(two, one, (F_WRLCK, 0, 0), (F_WRLCK, 100, 50))
    is_in_the_way(two, one, (F_RDLCK, 149, 1), (F_WRLCK, 100, 50))
    assert two.getlk(F_WRLCK, 150, 10) is None
    assert two.getlk(F_WRLCK, 0, 100) is None
    assert one.getlk(F_WRLCK) is None
    one.lock(F_UNLCK)
    one.lock(F_RDLCK, 10)
    is_in_the_way(two, one, (F_WRLCK, 0, 0), (F_RDLCK, 10, 0))
    assert two.getlk(F_RDLCK) is None
    one.lock(F_UNLCK)
    assert two.getlk(F_WRLCK) is None


def test_fcntl_ranges_are_split_and_merged(team: Team) -> None:
    one, two = team.members(2)
    one.lock(F_WRLCK, 0, 50)
    one.lock(F_WRLCK, 50, 50)
    is_in_the_way(two, one, (F_WRLCK, 0, 0), (F_WRLCK, 0, 100))
    one.lock(F_UNLCK, 40, 20)
    two.lock(F_WRLCK, 40, 20)
    for first, length in [(39, 1), (0, 40), (60, 40), (0, 0)]:
        with fails(errno.EAGAIN, errno.EACCES):
            two.lock(F_WRLCK, first, length)
    is_in_the_way(one, two, (F_WRLCK, 0, 0), (F_WRLCK, 40, 20))
    one.lock(F_RDLCK, 10, 10)
    two.lock(F_RDLCK, 10, 10)
    with fails(errno.EAGAIN, errno.EACCES):
        two.lock(F_RDLCK, 9, 2)
    with fails(errno.EAGAIN, errno.EACCES):
        one.lock(F_WRLCK, 10, 10)
    two.lock(F_UNLCK)
    one.lock(F_WRLCK)
    is_in_the_way(two, one, (F_RDLCK, 0, 0), (F_WRLCK, 0, 0))


def test_fcntl_many_ranges(team: Team) -> None:
    one, two, three = team.members(3)
    for number in range(40):
        one.lock(F_WRLCK, number * 10, 5)
        two.lock(F_WRLCK, number * 10 + 5, 5)
    for number in range(0, 40, 7):
        is_in_the_way(three, one, (F_WRLCK, number * 10, 1), (F_WRLCK, number * 10, 5))
        is_in_the_way(three, two, (F_WRLCK, number * 10 + 9, 1), (F_WRLCK, number * 10 + 5, 5))
    one.lock(F_UNLCK)
    with fails(errno.EAGAIN, errno.EACCES):
        three.lock(F_WRLCK, 0, 10)
    two.lock(F_UNLCK)
    three.lock(F_WRLCK, 0, 400)


def test_fcntl_to_the_end_and_beyond(team: Team) -> None:
    one, two = team.members(2)
    one.lock(F_WRLCK, 50, 0)
    two.lock(F_WRLCK, 0, 50)
    with fails(errno.EAGAIN, errno.EACCES):
        two.lock(F_WRLCK, 1 << 40, 1)
    one.lock(F_UNLCK, 1 << 30, 0)
    two.lock(F_WRLCK, 1 << 40, 1)
    is_in_the_way(two, one, (F_WRLCK, 60, 1), (F_WRLCK, 50, (1 << 30) - 50))


def test_fcntl_backwards_and_from_the_place_and_the_end(team: Team) -> None:
    one, two = team.members(2, bytes(1000))
    one.lock(F_WRLCK, 100, -50)
    is_in_the_way(two, one, (F_WRLCK, 0, 0), (F_WRLCK, 50, 50))
    one.lock(F_UNLCK)
    one.do(os.lseek, one.descriptor, 100, os.SEEK_SET)
    one.do(setlk, one.descriptor, F_WRLCK, 10, 10, os.SEEK_CUR)
    is_in_the_way(two, one, (F_WRLCK, 0, 0), (F_WRLCK, 110, 10))
    one.lock(F_UNLCK)
    two.do(setlk, two.descriptor, F_WRLCK, -10, 10, os.SEEK_END)
    is_in_the_way(one, two, (F_WRLCK, 0, 0), (F_WRLCK, 990, 10))
    with fails(errno.EINVAL):
        one.lock(F_WRLCK, 10, -20)


def test_fcntl_asks_for_the_right_mode_of_opening(team: Team) -> None:
    team.file()
    reader, writer = team.open(0, flags=os.O_RDONLY), team.open(1, flags=os.O_WRONLY)
    with fails(errno.EBADF):
        reader.lock(F_WRLCK)
    with fails(errno.EBADF):
        writer.lock(F_RDLCK)
    reader.lock(F_RDLCK)
    with fails(errno.EAGAIN, errno.EACCES):
        writer.lock(F_WRLCK)


def test_fcntl_any_close_by_the_process_releases(team: Team) -> None:
    one, two = team.members(2)
    other = one.do(os.open, str(one.path), os.O_RDONLY)
    one.lock(F_WRLCK)
    assert two.is_refused("fcntl")
    one.do(os.close, other)
    two.lock(F_WRLCK)
    assert one.is_refused("fcntl")


def test_fcntl_is_not_inherited_by_a_forked_child(team: Team) -> None:
    one, two = team.members(2)
    one.lock(F_WRLCK)
    child = one.do(lingering_child)
    assert one.do(in_child, setlk, one.descriptor, F_WRLCK) in (errno.EAGAIN, errno.EACCES)
    assert one.do(in_child, os.close, one.descriptor) == 0
    assert two.is_refused("fcntl")
    one.close()
    assert not two.is_refused("fcntl")
    one.do(end_child, child)


def test_fcntl_disjoint_ranges_do_not_wait_for_each_other(team: Team) -> None:
    members = team.members(3)
    for _ in range(20):
        for index, member in enumerate(members):
            member.do(setlk, member.descriptor, F_WRLCK, 10 * index, 10, command=fcntl.F_SETLKW)
        for index, member in enumerate(members):
            with fails(errno.EAGAIN, errno.EACCES):
                members[index - 1].lock(F_RDLCK, 10 * index, 1)
            member.lock(F_UNLCK, 10 * index, 5)
            members[index - 1].lock(F_WRLCK, 10 * index, 5)
            members[index - 1].lock(F_UNLCK, 10 * index, 5)
        for member in members:
            member.lock(F_UNLCK)


def test_fcntl_a_waiter_gets_its_range_when_all_of_it_is_free(team: Team) -> None:
    one, two, three = team.members(3)
    one.lock(F_WRLCK, 0, 10)
    two.lock(F_WRLCK, 10, 10)
    three.begin(setlk, three.descriptor, F_WRLCK, 5, 10, command=fcntl.F_SETLKW)
    three.blocks()
    one.lock(F_UNLCK, 5, 5)
    is_in_the_way(one, two, (F_WRLCK, 10, 1), (F_WRLCK, 10, 10))
    three.blocks()
    two.lock(F_UNLCK, 10, 5)
    three.end()
    # Of several locks in the way any may be named (fcntl(2)), and on several mounts whoever answers first is: so one at a time.
    is_in_the_way(two, one, (F_WRLCK, 0, 5), (F_WRLCK, 0, 5))
    is_in_the_way(one, three, (F_WRLCK, 5, 10), (F_WRLCK, 5, 10))


def test_fcntl_deadlock_is_found(alone: Team) -> None:
    one, two = alone.members(2)
    one.lock(F_WRLCK, 0, 1)
    two.lock(F_WRLCK, 1, 1)
    one.begin(setlk, one.descriptor, F_WRLCK, 1, 1, command=fcntl.F_SETLKW)
    one.blocks()
    with fails(errno.EDEADLK):
        two.do(setlk, two.descriptor, F_WRLCK, 0, 1, command=fcntl.F_SETLKW)
    two.lock(F_UNLCK)
    one.end()


def test_fcntl_deadlock_of_three_over_two_files_is_found(alone: Team) -> None:
    one, two, three = alone.members(3)
    alone.file(name="g")
    second = {process: process.do(os.open, str(alone.directory() / "g"), os.O_RDWR) for process in (one, two, three)}
    one.lock(F_WRLCK, 0, 1)
    two.lock(F_WRLCK, 1, 1)
    three.do(setlk, second[three], F_WRLCK)
    one.begin(setlk, one.descriptor, F_WRLCK, 1, 1, command=fcntl.F_SETLKW)
    one.blocks()
    two.begin(setlk, second[two], F_WRLCK, command=fcntl.F_SETLKW)
    two.blocks()
    with fails(errno.EDEADLK):
        three.do(setlk, three.descriptor, F_WRLCK, 0, 1, command=fcntl.F_SETLKW)
    three.kill()
    two.end()
    two.lock(F_UNLCK)
    one.end()


def test_locks_of_open_file_descriptions_exclude_and_are_released_by_hand(team: Team) -> None:
    one, two = team.members(2)
    one.do(setlk, one.descriptor, F_WRLCK, command=fcntl.F_OFD_SETLK)
    with fails(errno.EAGAIN, errno.EACCES):
        two.do(setlk, two.descriptor, F_WRLCK, command=fcntl.F_OFD_SETLK)
    assert two.is_refused("fcntl")
    assert two.do(getlk, two.descriptor, F_WRLCK) is not None
    one.do(setlk, one.descriptor, F_UNLCK, command=fcntl.F_OFD_SETLK)
    two.do(setlk, two.descriptor, F_WRLCK, command=fcntl.F_OFD_SETLK)


def test_locks_of_open_file_descriptions_belong_to_the_open_file(team: Team) -> None:
    one, two = team.members(2)
    other = one.do(os.open, str(one.path), os.O_RDWR)
    one.do(setlk, one.descriptor, F_WRLCK, command=fcntl.F_OFD_SETLK)
    with fails(errno.EAGAIN, errno.EACCES):
        one.do(setlk, other, F_WRLCK, command=fcntl.F_OFD_SETLK)
    child = one.do(lingering_child)
    one.do(os.close, other)
    one.close()
    assert two.is_refused("fcntl")
    two.want("fcntl")
    two.blocks()
    one.do(end_child, child)
    two.end()
