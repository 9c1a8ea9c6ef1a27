"""Attributes: modes, owners, times, space, extended attributes, and who may do what."""

import contextlib
import errno
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.errnos import fails
from tests.mount.libc import UTIME_NOW, UTIME_OMIT, getxattr_into, listxattr_into, utimensat
from tests.mount.place import Mount, wait_until
from tests.mount.processes import ALICE, BOB, GROUP, needs_root, run_as, shell

SECOND = 10**9


def mode_of(path: Path) -> int:
    """The permission bits of a path."""
    return stat.S_IMODE(os.stat(path).st_mode)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    """Run with that umask."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0, 0o400, 0o640, 0o777, 0o1777, 0o2755, 0o4711, 0o7777])
def test_chmod(here: Path, mode: int) -> None:
    needs_root()
    (here / "f").touch()
    os.mkdir(here / "d")
    for name in ("f", "d"):
        os.chmod(here / name, mode)
        assert mode_of(here / name) == mode
        assert stat.S_IFMT(os.stat(here / name).st_mode) == (stat.S_IFREG if name == "f" else stat.S_IFDIR)


def test_umask(here: Path) -> None:
    with umask(0o027):
        os.close(os.open(here / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(here / "d", 0o777)
        os.mkfifo(here / "p", 0o622)
    assert [mode_of(here / name) for name in "fdp"] == [0o640, 0o750, 0o600]


def test_chown(here: Path) -> None:
    needs_root()
    (here / "f").touch()
    os.chown(here / "f", ALICE, GROUP)
    assert (os.stat(here / "f").st_uid, os.stat(here / "f").st_gid) == (ALICE, GROUP)
    os.chown(here / "f", -1, BOB)
    assert (os.stat(here / "f").st_uid, os.stat(here / "f").st_gid) == (ALICE, BOB)
    os.chown(here / "f", BOB, -1)
    assert (os.stat(here / "f").st_uid, os.stat(here / "f").st_gid) == (BOB, BOB)
    os.symlink("f", here / "s")
    os.lchown(here / "s", ALICE, GROUP)
    assert os.lstat(here / "s").st_uid == ALICE
    assert os.stat(here / "f").st_uid == BOB


def owned(here: Path, mode: int, *, uid: int = ALICE, gid: int = ALICE) -> Path:
    """A file `f` of another user with one byte and that mode."""
    needs_root()
    os.chmod(here, 0o777)
    (here / "f").write_bytes(b"x")
    os.chown(here / "f", uid, gid)
    os.chmod(here / "f", mode)
    assert mode_of(here / "f") == mode
    return here / "f"


def append_as(uid: int, here: Path) -> int:
    """Append a byte to `f` as that user; the errno."""

    def append() -> None:
        descriptor = os.open("f", os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, b"y")
        os.close(descriptor)

    return run_as(uid, here, append)


def test_write_clears_suid_and_sgid(here: Path) -> None:
    path = owned(here, 0o6777)
    assert append_as(BOB, here) == 0
    assert mode_of(path) == 0o777
    assert path.read_bytes() == b"xy"


def test_write_of_root_keeps_suid(here: Path) -> None:
    path = owned(here, 0o6777)
    with open(path, "ab") as file:
        file.write(b"y")
    assert mode_of(path) == 0o6777


def test_truncate_clears_suid_and_sgid(here: Path) -> None:
    path = owned(here, 0o6777)
    assert run_as(BOB, here, lambda: os.truncate("f", 0)) == 0
    assert mode_of(path) == 0o777


def test_chown_clears_suid_and_sgid(here: Path) -> None:
    path = owned(here, 0o6755)
    assert run_as(ALICE, here, lambda: os.chown("f", -1, GROUP), groups=(GROUP,)) == 0
    assert mode_of(path) == 0o755
    os.chmod(path, 0o6755)
    os.chown(path, BOB, BOB)
    assert mode_of(path) == 0o755


def test_chmod_outside_ones_group_clears_sgid(here: Path) -> None:
    path = owned(here, 0o755, gid=GROUP)
    assert run_as(ALICE, here, lambda: os.chmod("f", 0o2755)) == 0
    assert mode_of(path) == 0o755
    assert run_as(ALICE, here, lambda: os.chmod("f", 0o2755), groups=(GROUP,)) == 0
    assert mode_of(path) == 0o2755


def test_only_the_owner_changes_attributes(here: Path) -> None:
    owned(here, 0o666)
    assert run_as(BOB, here, lambda: os.chmod("f", 0o777)) == errno.EPERM
    assert run_as(BOB, here, lambda: os.chown("f", BOB, BOB)) == errno.EPERM
    assert run_as(ALICE, here, lambda: os.chown("f", BOB, -1)) == errno.EPERM
    assert run_as(ALICE, here, lambda: os.chown("f", -1, BOB)) == errno.EPERM
    assert run_as(BOB, here, lambda: os.utime("f", (1, 1))) == errno.EPERM
    assert run_as(BOB, here, lambda: os.utime("f")) == 0
    assert run_as(ALICE, here, lambda: os.utime("f", (1, 1))) == 0


def test_permissions_of_files(here: Path) -> None:
    path = owned(here, 0o640, gid=GROUP)
    assert run_as(BOB, here, path_opener(os.O_RDONLY)) == errno.EACCES
    assert run_as(BOB, here, path_opener(os.O_RDONLY), groups=(GROUP,)) == 0
    assert run_as(BOB, here, path_opener(os.O_WRONLY), groups=(GROUP,)) == errno.EACCES
    assert run_as(ALICE, here, path_opener(os.O_RDWR)) == 0
    assert run_as(ALICE, here, lambda: os.execv("f", ["f"])) == errno.EACCES
    os.chmod(path, 0)
    assert run_as(ALICE, here, path_opener(os.O_RDONLY)) == errno.EACCES
    assert run_as(BOB, here, lambda: os.truncate("f", 0)) == errno.EACCES


def path_opener(flags: int) -> Callable[[], int]:
    """An action that opens `f`."""
    return lambda: os.open("f", flags)


def test_permissions_of_directories(here: Path) -> None:
    needs_root()
    os.mkdir(here / "d")
    (here / "d" / "f").write_bytes(b"x")
    os.chmod(here, 0o755)
    os.chmod(here / "d", 0o711)
    assert run_as(BOB, here, lambda: os.listdir("d")) == errno.EACCES
    assert run_as(BOB, here, lambda: os.stat("d/f")) == 0
    os.chmod(here / "d", 0o744)
    assert run_as(BOB, here, lambda: os.listdir("d")) == 0
    assert run_as(BOB, here, lambda: os.stat("d/f")) == errno.EACCES
    os.chmod(here / "d", 0o755)
    refused: tuple[Callable[[], object], ...] = (
        lambda: os.mkdir("d/x"),
        lambda: os.open("d/x", os.O_CREAT | os.O_WRONLY),
        lambda: os.unlink("d/f"),
        lambda: os.rename("d/f", "d/g"),
        lambda: os.symlink("x", "d/s"),
        lambda: os.link("d/f", "d/g"),
        lambda: os.rmdir("d"),
    )
    for number, action in enumerate(refused):
        assert run_as(BOB, here, action) in (errno.EACCES, errno.EPERM), number


def test_access_takes_effect_at_once(here: Path) -> None:
    path = owned(here, 0o600)
    for _ in range(5):
        assert run_as(BOB, here, path_opener(os.O_RDONLY)) == errno.EACCES
        os.chmod(path, 0o604)
        assert run_as(BOB, here, path_opener(os.O_RDONLY)) == 0
        os.chmod(path, 0o600)


def test_nanosecond_times(here: Path) -> None:
    (here / "f").touch()
    atime, mtime = 1_500_000_000_123_456_789, 1_600_000_000_987_654_321
    os.utime(here / "f", ns=(atime, mtime))
    status = os.stat(here / "f")
    assert (status.st_atime_ns, status.st_mtime_ns) == (atime, mtime)


@pytest.mark.parametrize("seconds", [0, 1, 2**31 + 5, 2**32 + 5])
def test_times_far_away(here: Path, seconds: int) -> None:
    os.mkdir(here / "d")
    os.utime(here / "d", ns=(seconds * SECOND + 1, seconds * SECOND + 2))
    assert os.stat(here / "d").st_mtime_ns == seconds * SECOND + 2


def test_times_before_the_epoch(here: Path) -> None:
    (here / "f").touch()
    os.utime(here / "f", ns=(-1_500_000_000, -500_000_000))
    status = os.stat(here / "f")
    assert (status.st_atime_ns, status.st_mtime_ns) == (-1_500_000_000, -500_000_000)


def test_utime_now_and_omit(here: Path) -> None:
    path = here / "f"
    path.touch()
    utimensat(path, (5, 6), (7, 8))
    utimensat(path, (0, UTIME_OMIT), (9, 10))
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (5 * SECOND + 6, 9 * SECOND + 10)
    utimensat(path, (11, 12), (0, UTIME_OMIT))
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (11 * SECOND + 12, 9 * SECOND + 10)
    before = time.time_ns() - SECOND
    utimensat(path, (0, UTIME_OMIT), (0, UTIME_NOW))
    assert os.stat(path).st_atime_ns == 11 * SECOND + 12
    assert before < os.stat(path).st_mtime_ns <= time.time_ns() + SECOND
    utimensat(path, (0, UTIME_NOW), (0, UTIME_OMIT))
    assert os.stat(path).st_atime_ns > before


def test_times_of_symbolic_links(here: Path) -> None:
    (here / "f").touch()
    os.symlink("f", here / "s")
    os.utime(here / "s", ns=(1, 2), follow_symlinks=False)
    assert os.lstat(here / "s").st_mtime_ns == 2
    assert os.stat(here / "f").st_mtime_ns != 2


def write(path: Path) -> None:
    """Write to an existing file without cutting it."""
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, b"new")
    os.close(descriptor)


def refuses(action: Callable[[Path], object], path: Path) -> None:
    """Do what must fail."""
    with fails(errno.EEXIST, errno.ENOENT):
        action(path)


TIMES: list[tuple[str, Callable[[Path, Path], object], str, str]] = [
    # What is done in directory `d` with file `f`; which times of the file change then, and which of the directory.
    ("read", lambda d, f: f.read_bytes(), "", ""),
    ("stat", lambda d, f: f.stat(), "", ""),
    ("open for writing", lambda d, f: os.close(os.open(f, os.O_WRONLY)), "", ""),
    ("write", lambda d, f: write(f), "mc", ""),
    ("truncate", lambda d, f: os.truncate(f, 1), "mc", ""),
    ("extend", lambda d, f: os.truncate(f, 100), "mc", ""),
    ("open with O_TRUNC", lambda d, f: os.close(os.open(f, os.O_WRONLY | os.O_TRUNC)), "mc", ""),
    ("chmod", lambda d, f: os.chmod(f, 0o600), "c", ""),
    ("chown", lambda d, f: os.chown(f, os.getuid(), os.getgid()), "c", ""),
    ("utime", lambda d, f: os.utime(f, ns=(5, os.stat(f).st_mtime_ns)), "c", ""),
    ("setxattr", lambda d, f: os.setxattr(f, "user.new", b"1"), "c", ""),
    ("removexattr", lambda d, f: os.removexattr(f, "user.old"), "c", ""),
    ("link", lambda d, f: os.link(f, d / "g"), "c", "mc"),
    ("unlink of one name", lambda d, f: os.unlink(d / "other"), "c", "mc"),
    ("rename", lambda d, f: os.rename(d / "other", d / "g"), "c", "mc"),
    ("create", lambda d, f: (d / "g").touch(), "", "mc"),
    ("symlink", lambda d, f: os.symlink("x", d / "g"), "", "mc"),
    ("mkfifo", lambda d, f: os.mkfifo(d / "g"), "", "mc"),
    ("mkdir", lambda d, f: os.mkdir(d / "g"), "", "mc"),
    ("rmdir", lambda d, f: os.rmdir(d / "sub"), "", "mc"),
    ("work in a directory below", lambda d, f: (d / "sub" / "x").touch(), "", ""),
    ("failing create", lambda d, f: refuses(os.mkdir, f), "", ""),
    ("failing unlink", lambda d, f: refuses(os.unlink, d / "none"), "", ""),
]


def clock_passed(scratch: Path, moment_ns: int) -> bool:
    """Whether the filesystem gives times later than `moment_ns`."""
    os.utime(scratch)
    return os.stat(scratch).st_ctime_ns > moment_ns


@pytest.mark.parametrize(("action", "of_file", "of_parent"), [row[1:] for row in TIMES], ids=[row[0] for row in TIMES])
def test_which_times_change(here: Path, action: Callable[[Path, Path], object], of_file: str, of_parent: str) -> None:
    directory, file = here / "d", here / "d" / "f"
    os.makedirs(directory / "sub")
    file.write_bytes(b"content")
    os.setxattr(file, "user.old", b"1")
    os.link(file, directory / "other")
    (here / "scratch").touch()
    before_file, before_parent = os.stat(file), os.stat(directory)
    moment = max(before_file.st_ctime_ns, before_parent.st_ctime_ns)
    wait_until(lambda: clock_passed(here / "scratch", moment), "the filesystem's clock")
    action(directory, file)
    assert changed(before_file, os.stat(file)) == of_file
    assert changed(before_parent, os.stat(directory)) == of_parent


def changed(before: os.stat_result, after: os.stat_result) -> str:
    """`m` if the mtime moved on, `c` if the ctime did."""
    assert after.st_mtime_ns >= before.st_mtime_ns
    assert after.st_ctime_ns >= before.st_ctime_ns
    mtime = "m" if after.st_mtime_ns > before.st_mtime_ns else ""
    return mtime + ("c" if after.st_ctime_ns > before.st_ctime_ns else "")


def test_times_are_now(here: Path) -> None:
    before = time.time_ns() - SECOND
    (here / "f").write_bytes(b"x")
    status = os.stat(here / "f")
    for moment in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns):
        assert before < moment < time.time_ns() + SECOND


def test_set_mtime_survives_close_of_a_written_file(here: Path) -> None:
    """What tar, rsync and cp -p do: write, set the times, close."""
    with open(here / "f", "wb") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.utime(file.fileno(), ns=(SECOND, 2 * SECOND + 3))
    assert os.stat(here / "f").st_mtime_ns == 2 * SECOND + 3
    assert (here / "f").read_bytes() == b"x" * 100_000
    assert os.stat(here / "f").st_mtime_ns == 2 * SECOND + 3


def test_attributes_after_remount(mounted: Place) -> None:
    path = mounted.path / "f"
    path.write_bytes(b"x")
    os.setxattr(path, "user.mine", b"value")
    os.chmod(path, 0o2751)
    os.utime(path, ns=(123_456_789_123, 987_654_321_987))
    before = os.stat(path)
    mounted.remount()
    after = os.stat(path)
    for field in (
        "st_ino",
        "st_mode",
        "st_nlink",
        "st_uid",
        "st_gid",
        "st_size",
        "st_blocks",
        "st_atime_ns",
        "st_mtime_ns",
        "st_ctime_ns",
    ):
        assert getattr(after, field) == getattr(before, field), field
    assert os.getxattr(path, "user.mine") == b"value"


def test_statvfs(here: Path) -> None:
    space = os.statvfs(here)
    assert space.f_namemax == 255
    assert space.f_frsize > 0
    assert space.f_blocks >= space.f_bfree >= space.f_bavail > 0
    assert space.f_files >= space.f_ffree
    assert len(shell("df", "-P", here).splitlines()) == 2


def test_blocks_are_in_units_of_512_bytes(here: Path) -> None:
    (here / "f").write_bytes(os.urandom(2 << 20))
    assert 2 << 20 <= os.stat(here / "f").st_blocks * 512 <= 3 << 20
    assert 2048 <= int(shell("du", "-k", here / "f").split()[0]) <= 3072


# Extended attributes.


def own_xattrs(path: Path) -> set[str]:
    """The attributes that are not the filesystem's own."""
    return {name for name in os.listxattr(path) if name.startswith("user.") and not name.startswith("user.agentfs.")}


def test_xattrs(here: Path) -> None:
    (here / "f").touch()
    os.mkdir(here / "d")
    for path in (here / "f", here / "d"):
        assert own_xattrs(path) == set()
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.bytes", bytes(range(256)))
        assert own_xattrs(path) == {"user.one", "user.empty", "user.bytes"}
        assert os.getxattr(path, "user.bytes") == bytes(range(256))
        assert os.getxattr(path, "user.empty") == b""
        os.setxattr(path, "user.one", b"changed")
        assert os.getxattr(path, "user.one") == b"changed"
        os.removexattr(path, "user.one")
        assert own_xattrs(path) == {"user.empty", "user.bytes"}
        with fails(errno.ENODATA):
            os.getxattr(path, "user.one")
        with fails(errno.ENODATA):
            os.removexattr(path, "user.one")


def test_xattr_flags(here: Path) -> None:
    (here / "f").touch()
    with fails(errno.ENODATA):
        os.setxattr(here / "f", "user.x", b"1", os.XATTR_REPLACE)
    os.setxattr(here / "f", "user.x", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(here / "f", "user.x", b"2", os.XATTR_CREATE)
    os.setxattr(here / "f", "user.x", b"3", os.XATTR_REPLACE)
    assert os.getxattr(here / "f", "user.x") == b"3"


def test_xattr_sizes(here: Path) -> None:
    (here / "f").touch()
    value = os.urandom(64 << 10)
    try:
        os.setxattr(here / "f", "user.big", value)
    except OSError as error:
        if error.errno == errno.ENOSPC and os.environ.get("AGENTFS_TEST_DIR"):
            pytest.skip("this local filesystem has no room for 64 KiB: use tmpfs")
        raise
    assert os.getxattr(here / "f", "user.big") == value
    with fails(errno.E2BIG):
        os.setxattr(here / "f", "user.bigger", value + b"x")
    with fails(errno.ERANGE):
        os.setxattr(here / "f", "user." + "n" * 251, b"")
    os.setxattr(here / "f", "user." + "n" * 250, b"long name")
    assert "user." + "n" * 250 in own_xattrs(here / "f")


def test_xattr_buffers(here: Path) -> None:
    (here / "f").touch()
    os.setxattr(here / "f", "user.x", b"12345")
    assert getxattr_into(here / "f", "user.x", 0) == 5
    assert getxattr_into(here / "f", "user.x", 5) == 5
    with fails(errno.ERANGE):
        getxattr_into(here / "f", "user.x", 4)
    size = listxattr_into(here / "f", 0)
    assert listxattr_into(here / "f", size) == size
    with fails(errno.ERANGE):
        listxattr_into(here / "f", size - 1)


def test_xattr_permissions(here: Path) -> None:
    owned(here, 0o644)
    assert run_as(ALICE, here, lambda: os.setxattr("f", "user.x", b"1")) == 0
    assert run_as(BOB, here, lambda: os.setxattr("f", "user.x", b"2")) == errno.EACCES
    assert run_as(BOB, here, lambda: os.getxattr("f", "user.x")) == 0
    os.symlink("f", here / "s")
    with fails(errno.EPERM):
        os.setxattr(here / "s", "user.x", b"1", follow_symlinks=False)


def test_xattrs_go_with_the_file(here: Path) -> None:
    (here / "f").touch()
    os.setxattr(here / "f", "user.x", b"1")
    os.rename(here / "f", here / "g")
    os.link(here / "g", here / "h")
    assert os.getxattr(here / "h", "user.x") == b"1"
    (here / "f").touch()
    assert own_xattrs(here / "f") == set()


# What agentfs says of a file.


def said(path: Path, name: str) -> str:
    """The value of one of agentfs's own attributes."""
    return os.getxattr(path, f"user.agentfs.{name}").decode()


def test_version_counts_content_changes(mounted: Place) -> None:
    mounted.needs("ask for versions")
    path = mounted.path / "f"
    path.write_bytes(b"one")
    version, commit = int(said(path, "version")), int(said(path, "commit"))
    for number in range(1, 4):
        write(path)
        assert int(said(path, "version")) == version + number
        assert int(said(path, "commit")) > commit
        commit = int(said(path, "commit"))
    path.read_bytes()
    os.chmod(path, 0o600)
    assert int(said(path, "version")) == version + 3
    os.truncate(path, 1)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    assert int(said(path, "version")) == version + 4
    mounted.remount()
    assert int(said(path, "version")) == version + 4


def test_digest_is_of_the_content(mounted: Place) -> None:
    mounted.needs("ask for digests")
    path = mounted.path / "f"
    for body in (b"", b"small", os.urandom(50_000), os.urandom(3 << 20)):
        path.write_bytes(body)
        assert said(path, "digest") == f"sha256:{hashlib.sha256(body).hexdigest()}"
    os.truncate(path, 10 << 20)
    body = body + bytes((10 << 20) - len(body))
    assert said(path, "digest") == f"sha256:{hashlib.sha256(body).hexdigest()}"


def test_cached_says_how_much_is_here(mounted: Place) -> None:
    mounted.needs("ask what is cached")
    small, big = mounted.path / "small", mounted.path / "big"
    small.write_bytes(b"x" * 100)
    body = os.urandom(5 << 20)
    big.write_bytes(body)
    mounted.remount()
    assert said(small, "cached") == "100/100"
    assert said(big, "cached") == f"0/{5 << 20}"
    with open(big, "rb") as file:
        assert file.read(1) == body[:1]
    assert said(big, "cached") == f"{1 << 20}/{5 << 20}"
    assert big.read_bytes() == body
    assert said(big, "cached") == f"{5 << 20}/{5 << 20}"


def test_replicas_and_writer(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount("--label", "agent seven")
    path = unmounted.path / "f"
    path.write_bytes(os.urandom(100_000))
    assert said(path, "replicas") == "2/2"
    assert said(path, "writer") == "agent seven"


def test_writer_without_label(mounted: Place) -> None:
    mounted.needs("ask for the writer")
    (mounted.path / "f").write_bytes(b"x")
    assert said(mounted.path / "f", "writer") == f"{os.uname().nodename}:{mounted.pid}"


def test_root_names_the_workspace(mounted: Place) -> None:
    mounted.needs("ask for the workspace")
    status = mounted.status()
    assert said(mounted.path, "workspace") in (status["name"], status["workspace"])
    position = int(said(mounted.path, "position"))
    os.mkdir(mounted.path / "d")
    assert int(said(mounted.path, "position")) > position


def test_attributes_of_agentfs_are_read_only(mounted: Place) -> None:
    mounted.needs("guard")
    (mounted.path / "f").write_bytes(b"x")
    for path, names in (
        (mounted.path / "f", ("version", "commit", "writer", "digest", "replicas", "cached", "new")),
        (mounted.path, ("position",)),
    ):
        for name in names:
            with fails(errno.EPERM):
                os.setxattr(path, f"user.agentfs.{name}", b"1")
            with fails(errno.EPERM):
                os.removexattr(path, f"user.agentfs.{name}")


def test_getfattr_shows_them(mounted: Place) -> None:
    mounted.needs("show")
    path = mounted.path / "f"
    path.write_bytes(b"x" * 40_000)
    os.setxattr(path, "user.mine", b"yes")
    shown = shell("getfattr", "-d", "--absolute-names", path)
    for name in ("version", "commit", "writer", "digest", "replicas", "cached"):
        assert f'user.agentfs.{name}="' in shown
    assert 'user.mine="yes"' in shown
    root = shell("getfattr", "-d", "--absolute-names", mounted.path)
    assert 'user.agentfs.workspace="' in root
    assert 'user.agentfs.position="' in root


def test_a_file_capability_is_seen_when_it_is_set_while_mounted(here: Path) -> None:
    """As long as nobody has one, the kernel's question is answered without a look; from the first one on it is looked at."""
    needs_root()
    capability = struct.pack("<IIIII", 0x02000000 | 1, 1 << 10, 0, 0, 0)
    (here / "f").write_bytes(b"x")
    with fails(errno.ENODATA):
        os.getxattr(here / "f", "security.capability")
    os.setxattr(here / "f", "security.capability", capability)
    assert os.getxattr(here / "f", "security.capability") == capability
    with open(here / "f", "ab") as file:
        file.write(b"a write takes the capability away")
    with fails(errno.ENODATA):
        os.getxattr(here / "f", "security.capability")
