"""The promises: what was acknowledged survives, what is broken says so, and nothing else suffers."""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from tests.mount.acknowledged import Writer, lost
from tests.mount.conftest import Place
from tests.mount.errnos import fails, may_fail
from tests.mount.libc import RENAME_EXCHANGE, renameat2
from tests.mount.place import Mount, mounts_under, wait_until
from tests.mount.small_disk import fill, small_disk

MIB = 1 << 20


def write_through(path: Path, body: bytes) -> None:
    """Write and fsync, but do not count on close."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, body)
    os.fsync(descriptor)
    os.close(descriptor)


# Each makes something in the directory and returns when it was acknowledged; then the daemon is killed at once.


def close_of_a_file(top: Path) -> None:
    (top / "f").write_bytes(b"closed")


def close_of_a_big_file(top: Path) -> None:
    (top / "f").write_bytes(random.Random(1).randbytes(5 * MIB))


def overwrite(top: Path) -> None:
    (top / "f").write_bytes(b"1" * 100_000)
    with open(top / "f", "rb+") as file:
        file.seek(50_000)
        file.write(b"2" * 10)


def mkdir(top: Path) -> None:
    os.makedirs(top / "a" / "b")


def rename(top: Path) -> None:
    (top / "old").write_bytes(b"old")
    (top / "new").write_bytes(b"new")
    os.rename(top / "new", top / "old")


def exchange(top: Path) -> None:
    (top / "a").write_bytes(b"a")
    os.mkdir(top / "b")
    renameat2(top / "a", top / "b", RENAME_EXCHANGE)


def link(top: Path) -> None:
    (top / "f").write_bytes(b"linked")
    os.link(top / "f", top / "g")


def symlink(top: Path) -> None:
    os.symlink("somewhere", top / "s")


def rmdir(top: Path) -> None:
    os.mkdir(top / "d")
    os.rmdir(top / "d")


def exclusive_create(top: Path) -> None:
    os.close(os.open(top / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def truncated_by_open(top: Path) -> None:
    (top / "f").write_bytes(b"long" * 10_000)
    os.close(os.open(top / "f", os.O_WRONLY | os.O_TRUNC))


def attributes_before_fsync(top: Path) -> None:
    with open(top / "f", "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        os.setxattr(file.fileno(), "user.x", b"1")
        os.utime(file.fileno(), ns=(1, 2))
        os.fsync(file.fileno())


ACKNOWLEDGED = [
    close_of_a_file,
    close_of_a_big_file,
    overwrite,
    mkdir,
    rename,
    exchange,
    link,
    symlink,
    rmdir,
    exclusive_create,
    truncated_by_open,
    attributes_before_fsync,
]


def picture(top: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Names, modes, link counts, times and content below a directory."""
    seen = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        body = b"" if path.is_dir() else os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes()
        seen[str(path.relative_to(top))] = (status.st_mode, status.st_nlink, status.st_mtime_ns, body)
    return seen


@pytest.mark.over_s3
def test_acknowledged_operations_survive_kill(mounted: Place) -> None:
    for action in ACKNOWLEDGED:
        top = mounted.path / action.__name__
        os.mkdir(top)
        action(top)
        before = picture(top)
        mounted.kill9()
        assert picture(top) == before, action.__name__


@pytest.mark.over_s3
def test_fsync_survives_kill_with_durability_fsync(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount("--durability", "fsync")
    for number, size in enumerate((10, 100_000, 3 * MIB)):
        body = random.Random(size).randbytes(size)
        write_through(unmounted.path / f"f{number}", body)
        unmounted.kill9()
        assert (unmounted.path / f"f{number}").read_bytes() == body


@pytest.mark.over_s3
def test_unmount_drains_with_durability_fsync(unmounted: Mount) -> None:
    unmounted.create("--durability", "fsync")
    unmounted.mount()
    bodies = {f"f{number}": random.Random(number).randbytes(number * 1000) for number in range(100)}
    for name, body in bodies.items():
        (unmounted.path / name).write_bytes(body)
    unmounted.remount()
    assert {name: (unmounted.path / name).read_bytes() for name in os.listdir(unmounted.path)} == bodies


@pytest.mark.over_s3
def test_kill_at_any_moment_loses_nothing_acknowledged(mounted: Place, tmp_path: Path) -> None:
    mounted.needs("kill")
    seed = int(os.environ.get("AGENTFS_KILL_SEED", str(random.SystemRandom().randrange(10**6))))
    rounds = int(os.environ.get("AGENTFS_KILL_ROUNDS", "5"))
    print(f"AGENTFS_KILL_SEED={seed} AGENTFS_KILL_ROUNDS={rounds}")
    source = random.Random(seed)
    for number in range(rounds):
        top = mounted.path / f"round-{number}"
        os.mkdir(top)
        writer = Writer(top, tmp_path / f"record-{number}", source.randrange(10**6))
        goal = source.randrange(1, 60)
        try:
            wait_until(
                lambda goal=goal, writer=writer: writer.acknowledged() >= goal or not writer.running(), f"{goal} operations"
            )
            assert writer.running(), f"the writer failed before anything was killed: {writer.finish()}"
            mounted.kill9(remount=False)
            assert writer.finish() in {str(errno.ENOTCONN), str(errno.EIO), str(errno.ECONNABORTED), str(errno.EINTR)}
        finally:
            writer.stop()
        mounted.mount_again()
        assert lost(top, writer.record) == [], f"round {number} of seed {seed}"
    for number in range(rounds):
        assert lost(mounted.path / f"round-{number}", tmp_path / f"record-{number}") == []
    mounted.umount()
    checked = mounted.fsck()
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_mount_over_a_dead_mountpoint(mounted: Place) -> None:
    (mounted.path / "f").write_bytes(b"here")
    mounted.kill9(remount=False)
    with fails(errno.ENOTCONN):
        os.listdir(mounted.path)
    mounted.mount_again()
    assert (mounted.path / "f").read_bytes() == b"here"
    assert len(mounts_under(mounted.path)) == 1


@pytest.mark.over_s3
def test_staged_bytes_are_recovered(mounted: Place) -> None:
    body = random.Random(9).randbytes(2 * MIB)
    (mounted.path / "f").write_bytes(b"before")
    mounted.needs("recover")
    descriptor = os.open(mounted.path / "f", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, body)
    mounted.kill9()
    with fails(errno.ENOTCONN, errno.EIO, errno.ECONNABORTED):
        os.close(descriptor)
    found = [path for path in mounted.path.rglob("*") if path.is_file() and path.read_bytes() == body]
    assert found, f"nothing below {mounted.path} holds what was written: {list(mounted.path.rglob('*'))}"


def test_who_had_a_file_open_gets_an_error_not_silence(mounted: Place) -> None:
    mounted.needs("kill")
    descriptor = os.open(mounted.path / "f", os.O_WRONLY | os.O_CREAT)
    mounted.kill9()
    with fails(errno.ENOTCONN, errno.EIO, errno.ECONNABORTED):
        os.write(descriptor, b"x")
    with fails(errno.ENOTCONN, errno.EIO, errno.ECONNABORTED):
        os.fsync(descriptor)
    with fails(errno.ENOTCONN, errno.EIO, errno.ECONNABORTED):
        os.close(descriptor)


# Full disks.


def write_until_full(path: Path, size_mib: int) -> None:
    """Write random bytes that do not fit; whichever call says so must say ENOSPC or EDQUOT."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        with fails(errno.ENOSPC, errno.EDQUOT):
            for number in range(size_mib):
                os.write(descriptor, random.Random(number).randbytes(MIB))
            os.fsync(descriptor)
    finally:
        with may_fail(errno.ENOSPC, errno.EDQUOT):
            os.close(descriptor)


def test_full_cache_disk(unmounted: Mount) -> None:
    unmounted.create()
    with small_disk(unmounted.cache, size_mib=24):
        unmounted.mount()
        (unmounted.path / "before").write_bytes(b"safe" * 10_000)
        write_until_full(unmounted.path / "big", 60)
        assert (unmounted.path / "before").read_bytes() == b"safe" * 10_000
        os.unlink(unmounted.path / "big")
        wait_until(lambda: can_write(unmounted.path / "after", b"works"), "room after the big file was removed")
        unmounted.remount()
        assert (unmounted.path / "before").read_bytes() == b"safe" * 10_000
        assert (unmounted.path / "after").read_bytes() == b"works"
        unmounted.umount()
    assert unmounted.fsck().returncode == 0


def can_write(path: Path, body: bytes) -> bool:
    """Write a file; whether there was room."""
    with may_fail(errno.ENOSPC, errno.EDQUOT):
        path.write_bytes(body)
        return True
    return False


def test_full_replica(unmounted: Mount) -> None:
    with small_disk(unmounted.base / "small", size_mib=24) as small:
        unmounted.create(
            "--replica", str(unmounted.base / "large"), "--replica", str(small / "replica"), "--replication", "sync"
        )
        unmounted.mount()
        (unmounted.path / "before").write_bytes(b"safe" * 10_000)
        fill(small / "ballast", leave_kib=2048)
        write_until_full(unmounted.path / "big", 30)
        assert (unmounted.path / "before").read_bytes() == b"safe" * 10_000
        os.unlink(unmounted.path / "big")
        os.unlink(small / "ballast")
        body = random.Random(1).randbytes(3 * MIB)
        wait_until(lambda: can_write(unmounted.path / "after", body), "room after the ballast was removed")
        unmounted.remount()
        assert sorted(os.listdir(unmounted.path)) == ["after", "before"]
        assert (unmounted.path / "after").read_bytes() == body
        unmounted.umount()
        checked = unmounted.fsck()
        assert checked.returncode == 0, checked.stdout + checked.stderr


# Damage. The file `victim` is of bytes that do not compress, so that they can be found in the replicas' files.

BODY = random.Random(11).randbytes(3 * MIB)
SPOT = MIB + MIB // 2
"""The offset whose bytes are damaged."""


@pytest.fixture
def stored(unmounted: Mount) -> Mount:
    """An unmounted workspace of two replicas that holds `d/victim` and other files; the next mount finds an empty cache."""
    replicas = (unmounted.base / "one", unmounted.base / "two")
    unmounted.create("--replica", str(replicas[0]), "--replica", str(replicas[1]), "--replication", "sync")
    unmounted.mount()
    os.mkdir(unmounted.path / "d")
    (unmounted.path / "d" / "victim").write_bytes(BODY)
    (unmounted.path / "other").write_bytes(BODY[::-1])
    unmounted.umount()
    unmounted.cache = unmounted.base / "fresh-cache"
    unmounted.cache.mkdir()
    return unmounted


def holder(replica: Path) -> tuple[Path, int]:
    """The file of a replica that holds the victim's bytes at SPOT, and where in it they are."""
    for path in replica.rglob("*"):
        if path.is_file() and (place := path.read_bytes().find(BODY[SPOT : SPOT + 64])) >= 0:
            return path, place
    raise AssertionError(f"no file below {replica} holds the bytes")


def damage(replica: Path) -> Path:
    """Overwrite the bytes at SPOT; the damaged segment."""
    path, place = holder(replica)
    path.chmod(0o600)
    with open(path, "rb+") as file:
        file.seek(place)
        file.write(bytes(64))
    return path


def test_a_damaged_replica_is_not_noticed_by_readers(stored: Mount) -> None:
    damage(stored.base / "one")
    stored.mount()
    assert (stored.path / "d" / "victim").read_bytes() == BODY
    stored.remount()
    damage(stored.base / "two")
    assert (stored.path / "other").read_bytes() == BODY[::-1]


def test_damage_in_every_replica_is_an_error_on_that_range_only(stored: Mount) -> None:
    segment = damage(stored.base / "one")
    damage(stored.base / "two")
    stored.mount()
    descriptor = os.open(stored.path / "d" / "victim", os.O_RDONLY)
    with fails(errno.EIO):
        os.pread(descriptor, 4096, SPOT)
    assert os.pread(descriptor, 4096, 0) == BODY[:4096]
    assert os.pread(descriptor, 4096, len(BODY) - 4096) == BODY[-4096:]
    os.close(descriptor)
    assert (stored.path / "other").read_bytes() == BODY[::-1]
    said = [line for line in stored.log_tail(1000).splitlines() if segment.stem[:16] in line]
    assert any("victim" in line and "replica" in line for line in said), stored.log_tail()


def test_a_missing_segment_is_read_from_the_other_replica(stored: Mount) -> None:
    os.unlink(holder(stored.base / "one")[0])
    stored.mount()
    assert (stored.path / "d" / "victim").read_bytes() == BODY


def test_a_segment_missing_in_every_replica_is_an_error(stored: Mount) -> None:
    for name in ("one", "two"):
        os.unlink(holder(stored.base / name)[0])
    stored.mount()
    with open(stored.path / "d" / "victim", "rb") as file, fails(errno.EIO):
        os.pread(file.fileno(), 4096, SPOT)
    assert sorted(os.listdir(stored.path)) == ["d", "other"]
    (stored.path / "d" / "new").write_bytes(b"the rest works")
    assert (stored.path / "d" / "new").read_bytes() == b"the rest works"


def test_a_lost_replica_directory(stored: Mount) -> None:
    shutil.rmtree(stored.base / "one")
    done = stored.cli.run("mount", "w", stored.path, "--root", stored.cli.root, "--cache-dir", stored.cache, "--json")
    if done.returncode:
        assert len(done.stderr.splitlines()) == 1
        assert "one" in done.stderr
        return
    stored.cli.check("umount", stored.path)


@pytest.mark.parametrize("which", [("one",), ("two",), ("one", "two")], ids="-".join)
@pytest.mark.parametrize("missing", [False, True], ids=["damaged", "missing"])
def test_fsck_names_what_is_wrong(stored: Mount, which: tuple[str, ...], missing: bool) -> None:
    clean = stored.fsck()
    assert clean.returncode == 0, clean.stdout + clean.stderr
    for name in which:
        segment = holder(stored.base / name)[0]
        if missing:
            os.unlink(segment)
        else:
            damage(stored.base / name)
    checked = stored.fsck()
    assert checked.returncode not in (0, 70), checked.stdout + checked.stderr
    assert segment.stem[:16] in checked.stdout
    assert "Traceback" not in checked.stderr
