"""The test twin of docs/semantics.md: every numbered statement there has a test here that carries its number."""

import ctypes
import errno
import fcntl
import mmap
import os
import random
import re
import sqlite3
import stat
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agentfs.model.changes import (
    AddSegment,
    AnyChange,
    ChunkRun,
    Drop,
    InlineRun,
    Link,
    Make,
    RemoveXattr,
    Rename,
    Rmdir,
    SetAttr,
    SetXattr,
    Truncate,
    Unlink,
    Write,
)
from agentfs.model.codec import decode_entry
from agentfs.model.entry import Transaction
from agentfs.model.ids import Ino
from agentfs.workspace.writeback import AGE_SECONDS
from tests.mount.conftest import plain_directory
from tests.mount.errnos import fails, may_fail
from tests.mount.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, Directory, renameat2, syncfs
from tests.mount.lockers import Locker, again, setlk
from tests.mount.place import NAME, REPOSITORY, Mount, wait_until
from tests.mount.processes import ALICE, finish, needs_root, run_as, shell, start
from tests.mount.small_disk import fill, small_disk
from tests.mount.watching import watching

pytestmark = pytest.mark.skipif(plain_directory() is not None, reason="these statements are about agentfs")

MIB = 1 << 20
DEAD = (errno.ENOTCONN, errno.EIO, errno.ECONNABORTED)
"""What a system call says whose daemon is gone."""

RENAME_WHITEOUT = 4
F_OFD_SETLK = 37
FICLONE = 0x40049409
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE = 1, 2


def test_the_document_and_this_file_have_the_same_numbers() -> None:
    """A statement without a test, or a test of no statement, must not be."""
    stated = re.findall(r"^- \*\*S(\d+)\*\*", (REPOSITORY / "docs" / "semantics.md").read_text(), re.MULTILINE)
    tested = re.findall(r"^def test_s(\d+)_", Path(__file__).read_text(), re.MULTILINE)
    assert len(stated) == len(set(stated)), "a number is given twice"
    assert {int(number) for number in stated} == {int(number) for number in tested}


# ---- what the journal holds


def transactions(mount: Mount) -> list[Transaction]:
    """Every transaction in the journal, in order, read behind the daemon's back."""
    journal = sqlite3.connect(f"file:{mount.cli.root / NAME / 'journal.sqlite'}?mode=ro", uri=True)
    try:
        payloads = [row[0] for row in journal.execute("SELECT payload FROM entries ORDER BY position")]
    finally:
        journal.close()
    return [transaction for payload in payloads for transaction in decode_entry(payload).transactions]


def changes(mount: Mount) -> list[AnyChange]:
    """Every change in the journal, in order."""
    return [change for transaction in transactions(mount) for change in transaction.changes]


def changes_of(mount: Mount, ino: int) -> list[AnyChange]:
    """The changes that name an inode."""
    return [change for change in changes(mount) if getattr(change, "ino", None) == ino]


def written(mount: Mount, ino: int) -> bytes:
    """The bytes of a small file as the journal has them: inline runs laid over each other, cuts applied."""
    body = bytearray()
    for change in changes_of(mount, ino):
        if isinstance(change, Truncate):
            body[:] = body[: change.size].ljust(change.size, b"\0")
        if isinstance(change, Write):
            base = len(body) if change.append else 0
            for run in change.runs:
                assert isinstance(run, InlineRun)
                body[:] = body.ljust(base + run.offset, b"\0")
                body[base + run.offset : base + run.offset + run.length] = run.data
    return bytes(body)


def quickly(action: Callable[[int], None]) -> None:
    """Do `action`, again with the next number if it took so long that the daemon may have committed in the background."""
    for number in range(50):
        began = time.monotonic()
        action(number)
        if time.monotonic() - began < AGE_SECONDS * 0.8:
            return
    pytest.fail("this machine never did a handful of system calls within a second")


def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """A descriptor."""
    return os.open(path, flags, 0o644)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def ino_of(path: Path) -> int:
    """The inode's number."""
    return os.lstat(path).st_ino


# ---- content


def test_s1_what_is_written_is_seen_at_once(here: Path) -> None:
    descriptor = opened(here / "f")
    os.write(descriptor, b"not closed")
    script = "import os, sys; print(open(sys.argv[1]).read(), os.stat(sys.argv[1]).st_size)"
    assert finish(start(script, here / "f")) == "not closed 10\n"
    os.close(descriptor)


def test_s2_close_commits(shared_mount: Mount, here: Path) -> None:
    (here / "small").write_bytes(b"in the entry")
    assert written(shared_mount, ino_of(here / "small")) == b"in the entry"
    (here / "big").write_bytes(random.Random(2).randbytes(3 * MIB))
    (write,) = [change for change in changes_of(shared_mount, ino_of(here / "big")) if isinstance(change, Write)]
    assert sum(run.length for run in write.runs) == 3 * MIB
    for run in write.runs:
        assert isinstance(run, ChunkRun)
        key = f"segments/{run.segment.hex()[:2]}/{run.segment.hex()}.seg"
        for replica in (1, 2):
            assert (shared_mount.replica(replica) / key).is_file()


def test_s3_each_close_of_a_copy_of_the_descriptor_commits(shared_mount: Mount, here: Path) -> None:
    descriptor = opened(here / "f")
    os.write(descriptor, b"one ")
    os.close(os.dup(descriptor))
    assert written(shared_mount, ino_of(here / "f")) == b"one "
    os.write(descriptor, b"two")
    subprocess.run(["true"], check=True)
    assert written(shared_mount, ino_of(here / "f")) == b"one two"
    os.close(descriptor)


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_s4_fsync_commits_the_file_and_all_before_it(shared_mount: Mount, here: Path, sync: Callable[[int], None]) -> None:
    (here / "other").touch()
    descriptor = opened(here / "f")
    os.write(descriptor, b"synced")
    os.chmod(here / "other", 0o600)
    sync(descriptor)
    assert written(shared_mount, ino_of(here / "f")) == b"synced"
    assert any(
        isinstance(change, SetAttr) and change.mode == 0o600 for change in changes_of(shared_mount, ino_of(here / "other"))
    )
    os.close(descriptor)


def test_s5_with_durability_fsync_close_is_followed_by_the_commit(unmounted: Mount) -> None:
    unmounted.create("--durability", "fsync")
    unmounted.mount()
    (unmounted.path / "f").write_bytes(b"closed")
    ino = ino_of(unmounted.path / "f")
    wait_until(lambda: written(unmounted, ino) == b"closed", "the commit of a closed file")
    with open(unmounted.path / "f", "ab") as file:
        file.write(b" synced")
        file.flush()
        os.fsync(file.fileno())
        assert written(unmounted, ino) == b"closed synced"


def test_s6_a_file_held_open_is_committed_in_the_background(shared_mount: Mount, here: Path) -> None:
    descriptor = opened(here / "f")
    os.write(descriptor, b"still open")
    wait_until(lambda: written(shared_mount, ino_of(here / "f")) == b"still open", "the commit of an open file")
    os.close(descriptor)


def test_s7_truncate_write_close_is_one_transaction(shared_mount: Mount, here: Path) -> None:
    ino = 0

    def save(number: int) -> None:
        nonlocal ino
        (here / f"f{number}").write_bytes(b"old content")
        ino = ino_of(here / f"f{number}")
        descriptor = opened(here / f"f{number}", os.O_WRONLY | os.O_TRUNC)
        os.write(descriptor, b"new ")
        os.write(descriptor, b"words")
        os.close(descriptor)

    quickly(save)
    parts = [
        each.changes for each in transactions(shared_mount) if any(getattr(part, "ino", 0) == ino for part in each.changes)
    ]
    assert [[type(part) for part in part_list] for part_list in parts] == [[Make], [Write], [Truncate, Write]]
    assert written(shared_mount, ino) == b"new words"


def test_s8_what_was_staged_survives_the_daemon(mounted: Mount) -> None:
    (mounted.path / "doomed").touch()
    (mounted.path / "other").touch()
    body = random.Random(8).randbytes(MIB)
    descriptor = opened(mounted.path / "f")
    os.write(descriptor, body)
    os.unlink(mounted.path / "doomed")
    os.chmod(mounted.path / "other", 0o604)
    mounted.kill9()
    with may_fail(*DEAD):
        os.close(descriptor)
    assert sorted(os.listdir(mounted.path)) == ["f", "other"]
    assert (mounted.path / "f").read_bytes() == body
    assert stat.S_IMODE(os.stat(mounted.path / "other").st_mode) == 0o604


def test_s9_appends_never_overwrite_each_other(here: Path) -> None:
    script = """if 1:
        import os, sys
        descriptor = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in range(100):
            os.write(descriptor, f"{sys.argv[1]}{number}\\n".encode())
        """
    for process in [start(script, name, cwd=here) for name in "abc"]:
        finish(process)
    assert sorted((here / "log").read_text().split()) == sorted(f"{name}{number}" for name in "abc" for number in range(100))


def test_s10_holes(here: Path) -> None:
    descriptor = opened(here / "f")
    os.pwrite(descriptor, b"end", 8 * MIB)
    os.fsync(descriptor)
    assert os.fstat(descriptor).st_blocks == 1
    assert os.pread(descriptor, 100, 4 * MIB) == bytes(100)
    assert os.lseek(descriptor, 0, os.SEEK_DATA) == 0
    assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 8 * MIB + 3
    with fails(errno.ENXIO):
        os.lseek(descriptor, 8 * MIB + 3, os.SEEK_DATA)
    os.close(descriptor)


def test_s11_truncate(shared_mount: Mount, here: Path) -> None:
    (here / "f").write_bytes(b"0123456789")
    os.truncate(here / "f", 4)
    os.truncate(here / "f", 6)
    assert written(shared_mount, ino_of(here / "f")) == b"0123\0\0"
    assert (here / "f").read_bytes() == b"0123\0\0"
    before = os.stat(here / "f")
    os.truncate(here / "f", 6)
    assert (os.stat(here / "f").st_mtime_ns, os.stat(here / "f").st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_s12_copy_file_range_copies_and_reflinks_are_refused(here: Path) -> None:
    body = random.Random(12).randbytes(200_000)
    (here / "a").write_bytes(body)
    source, target = opened(here / "a", os.O_RDONLY), opened(here / "b")
    with fails(errno.EOPNOTSUPP):
        fcntl.ioctl(target, FICLONE, source)
    while os.copy_file_range(source, target, len(body)):
        pass
    os.close(source)
    os.close(target)
    assert (here / "b").read_bytes() == body


def test_s13_fallocate_is_refused_and_posix_fallocate_falls_back(here: Path) -> None:
    (here / "f").write_bytes(b"data")
    descriptor = opened(here / "f")
    for mode in (0, FALLOC_KEEP_SIZE, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE):
        with fails(errno.EOPNOTSUPP):
            fallocate(descriptor, mode, 0, 4096)
    os.posix_fallocate(descriptor, 0, 10_000)
    os.close(descriptor)
    assert (here / "f").read_bytes() == b"data" + bytes(9996)


def test_s14_no_unnamed_temporary_files(here: Path) -> None:
    with fails(errno.EOPNOTSUPP):
        os.open(here, os.O_TMPFILE | os.O_RDWR, 0o600)


def test_s15_shared_mappings(shared_mount: Mount, here: Path) -> None:
    (here / "f").write_bytes(bytes(8192))
    descriptor = opened(here / "f")
    mapped = mmap.mmap(descriptor, 8192)
    mapped[4096:4100] = b"seen"
    assert finish(start("import sys; print(open(sys.argv[1]).read()[4096:4100])", here / "f")) == "seen\n"
    with open(here / "f", "rb+") as other:
        other.seek(10)
        other.write(b"too")
    assert mapped[10:13] == b"too"
    mapped.flush()
    os.close(descriptor)
    assert written(shared_mount, ino_of(here / "f"))[4096:4100] == b"seen"
    mapped[5000:5004] = b"last"
    mapped.close()
    wait_until(lambda: written(shared_mount, ino_of(here / "f"))[5000:5004] == b"last", "the commit of an unmapped page")


def test_s16_direct_io(here: Path) -> None:
    (here / "f").write_bytes(b"-" * 8192)
    buffered, direct = opened(here / "f"), opened(here / "f", os.O_RDWR | os.O_DIRECT)
    assert os.pread(buffered, 3, 100) == b"---"
    assert os.pwrite(direct, b"odd", 101) == 3
    assert os.pread(buffered, 5, 100) == b"-odd-"
    os.pwrite(buffered, b"even", 200)
    assert os.pread(direct, 6, 199) == b"-even-"
    os.close(buffered)
    os.close(direct)


def test_s17_a_removed_file_lives_until_its_last_close_and_is_never_committed(shared_mount: Mount, here: Path) -> None:
    descriptor = opened(here / "f")
    ino = ino_of(here / "f")
    os.unlink(here / "f")
    os.write(descriptor, b"unnamed")
    os.fsync(descriptor)
    assert os.pread(descriptor, 10, 0) == b"unnamed"
    assert os.fstat(descriptor).st_nlink == 0
    assert not any(isinstance(change, Write) for change in changes_of(shared_mount, ino))
    os.close(descriptor)
    wait_until(lambda: Drop(Ino(ino)) in changes(shared_mount), "the end of a removed file")
    assert not any(isinstance(change, Write) for change in changes_of(shared_mount, ino))


def test_s18_largest_file(here: Path) -> None:
    descriptor = opened(here / "f")
    largest = (1 << 63) - 1
    os.ftruncate(descriptor, largest)
    assert os.fstat(descriptor).st_size == largest
    assert os.pread(descriptor, 10, largest - 10) == bytes(10)
    os.ftruncate(descriptor, 3)
    size = 3
    # Whether the cache directory's filesystem can hold such an offset is its own affair.
    with may_fail(errno.EFBIG):
        size = (1 << 60) + os.pwrite(descriptor, b"x", 1 << 60)
    assert os.fstat(descriptor).st_size == size
    os.close(descriptor)


def test_s19_sync_and_syncfs_promise_nothing(unmounted: Mount) -> None:
    unmounted.create("--durability", "fsync")
    unmounted.mount()

    committed = b"?"

    def write_and_sync(number: int) -> None:
        nonlocal committed
        descriptor = opened(unmounted.path / f"f{number}")
        os.write(descriptor, b"x")
        syncfs(descriptor)
        os.sync()
        committed = written(unmounted, os.fstat(descriptor).st_ino)
        os.close(descriptor)

    quickly(write_and_sync)
    assert committed == b""


# ---- names


def test_s20_these_are_in_the_journal_when_they_return(shared_mount: Mount, here: Path) -> None:
    up = ino_of(here)
    os.mkdir(here / "d")
    made = {change.name for change in changes(shared_mount) if isinstance(change, Make) and change.parent == up}
    assert made == {b"d"}
    os.symlink("x", here / "s")
    os.mkfifo(here / "p")
    os.close(os.open(here / "e", os.O_CREAT | os.O_EXCL | os.O_RDONLY))
    made = {change.name for change in changes(shared_mount) if isinstance(change, Make) and change.parent == up}
    assert made == {b"d", b"s", b"p", b"e"}
    os.link(here / "e", here / "l")
    assert any(isinstance(change, Link) and change.name == b"l" for change in changes_of(shared_mount, ino_of(here / "e")))
    os.rename(here / "l", here / "r")
    assert any(
        isinstance(change, Rename) and (change.parent, change.new_name) == (up, b"r") for change in changes(shared_mount)
    )
    os.rmdir(here / "d")
    assert any(isinstance(change, Rmdir) and (change.parent, change.name) == (up, b"d") for change in changes(shared_mount))


def test_s21_these_follow_by_themselves(shared_mount: Mount, here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"x")
    (here / "doomed").touch()
    ino, doomed, up = ino_of(path), ino_of(here / "doomed"), ino_of(here)

    def follows(kind: type[AnyChange], number: int) -> None:
        wait_until(lambda: any(isinstance(change, kind) for change in changes_of(shared_mount, number)), f"the {kind.__name__}")

    os.unlink(here / "doomed")
    follows(Unlink, doomed)
    os.setxattr(path, "user.x", b"1")
    follows(SetXattr, ino)
    os.removexattr(path, "user.x")
    follows(RemoveXattr, ino)
    os.chmod(path, 0o600)
    os.chown(path, os.getuid(), os.getgid())
    os.utime(path, ns=(1, 2))

    def attributes_set() -> set[str]:
        made = [change for change in changes_of(shared_mount, ino) if isinstance(change, SetAttr)]
        return {field for change in made for field in ("mode", "uid", "atime_ns") if getattr(change, field) is not None}

    wait_until(lambda: attributes_set() == {"mode", "uid", "atime_ns"}, "chmod, chown and utimensat")
    descriptor = os.open(here / "plain", os.O_CREAT | os.O_RDWR, 0o644)
    wait_until(
        lambda: any(
            isinstance(change, Make) and (change.parent, change.name) == (up, b"plain") for change in changes(shared_mount)
        ),
        "the plain create",
    )
    os.close(descriptor)


def test_s22_fsync_of_a_directory_commits_all_before_it(shared_mount: Mount, here: Path) -> None:
    (here / "f").touch()
    ino = ino_of(here / "f")
    directory = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    os.unlink(here / "f")
    os.fsync(directory)
    assert any(isinstance(change, Unlink) for change in changes_of(shared_mount, ino))
    os.close(directory)


def test_s23_the_journal_keeps_the_order_of_calls(shared_mount: Mount, here: Path) -> None:
    (here / "f").write_bytes(b"x")
    ino = ino_of(here / "f")
    os.chmod(here / "f", 0o600)
    os.link(here / "f", here / "g")
    os.setxattr(here / "f", "user.x", b"1")
    os.unlink(here / "g")
    os.rename(here / "f", here / "h")
    os.mkdir(here / "last")
    kinds = [type(change) for change in changes_of(shared_mount, ino)]
    assert kinds == [Make, Write, SetAttr, Link, SetXattr, Unlink]
    assert [type(change) for change in changes(shared_mount)][-2:] == [Rename, Make]


def test_s24_names_are_bytes(here: Path) -> None:
    odd = {
        bytes(set(range(1, 256)) - {ord("/")}),
        b"a" * 255,
        b"\xff\xfe",
        "é".encode(),
        "e\u0301".encode(),
        b"A",
        b"a",
        b"a\nb",
    }
    for name in odd:
        os.mkdir(os.fsencode(here) + b"/" + name)
    assert set(os.listdir(os.fsencode(here))) == odd
    with fails(errno.ENAMETOOLONG):
        os.mkdir(here / ("a" * 256))


def test_s25_rename(here: Path) -> None:
    for name in ("a", "b", "c"):
        (here / name).write_bytes(name.encode())
    os.makedirs(here / "d" / "full")
    os.mkdir(here / "e")
    os.rename(here / "a", here / "b")
    assert (here / "b").read_bytes() == b"a"
    with fails(errno.EEXIST):
        renameat2(here / "b", here / "c", RENAME_NOREPLACE)
    renameat2(here / "b", here / "d", RENAME_EXCHANGE)
    assert (here / "d").read_bytes() == b"a"
    assert os.listdir(here / "b") == ["full"]
    for flags in (RENAME_WHITEOUT, RENAME_NOREPLACE | RENAME_EXCHANGE):
        with fails(errno.EINVAL):
            renameat2(here / "c", here / "x", flags)
    with fails(errno.ENOTEMPTY):
        os.rename(here / "e", here / "b")
    with fails(errno.EINVAL):
        os.rename(here / "b", here / "b" / "full" / "x")


def test_s26_listing_is_stable(here: Path) -> None:
    stays = {b"stays%d" % number for number in range(1500)}
    for name in stays:
        os.mknod(os.fsencode(here) + b"/" + name)
    for number in range(500):
        (here / f"goes{number}").touch()
    stream = Directory(here)
    seen = stream.take(700)
    for number in range(500):
        os.unlink(here / f"goes{number}")
        (here / f"comes{number}").touch()
    seen += list(stream)
    stream.close()
    listed = [name for name in seen if name in stays]
    assert len(listed) == len(set(listed)) == len(stays)


def test_s27_symbolic_links(here: Path) -> None:
    os.symlink("x" * 4095, here / "long")
    assert os.readlink(here / "long") == "x" * 4095
    with fails(errno.ENAMETOOLONG):
        os.symlink("x" * 4096, here / "longer")
    with fails(errno.ENOENT):
        os.symlink("", here / "empty")


def test_s28_links_and_special_files(here: Path) -> None:
    os.mkdir(here / "d")
    (here / "f").write_bytes(b"x")
    os.link(here / "f", here / "g")
    assert os.path.samestat(os.stat(here / "f"), os.stat(here / "g"))
    assert os.stat(here / "f").st_nlink == 2
    with fails(errno.EPERM):
        os.link(here / "d", here / "e")
    with fails(errno.EISDIR):
        os.unlink(here / "d")
    os.mkfifo(here / "p")
    assert stat.S_ISFIFO(os.stat(here / "p").st_mode)


def test_s29_a_removed_directory_stays_answerable(here: Path) -> None:
    os.mkdir(here / "d")
    script = """if 1:
        import os, sys
        print("in", flush=True)
        sys.stdin.readline()
        print(os.stat(".").st_nlink, os.listdir("."))
        try:
            os.mkdir("x")
        except FileNotFoundError:
            print("refused")
        """
    process = start(script, cwd=here / "d")
    assert process.stdout
    assert process.stdout.readline() == "in\n"
    os.rmdir(here / "d")
    output, _ = process.communicate("\n", timeout=60)
    assert output == "0 []\nrefused\n"


# ---- attributes


def test_s30_the_kernel_checks_permissions(here: Path) -> None:
    needs_root()
    os.chmod(here, 0o755)
    (here / "f").write_bytes(b"x")
    os.chmod(here / "f", 0o600)
    assert run_as(ALICE, here, lambda: os.open("f", os.O_RDONLY)) == errno.EACCES
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with fails(errno.EACCES):
        os.open(here / "null", os.O_RDONLY)


def test_s31_reading_leaves_the_access_time(here: Path) -> None:
    (here / "f").write_bytes(b"x")
    os.utime(here / "f", ns=(1, 2))
    (here / "f").read_bytes()
    os.listdir(here)
    assert os.stat(here / "f").st_atime_ns == 1


def test_s32_a_time_set_on_unsaved_bytes_stays(here: Path) -> None:
    descriptor = opened(here / "f")
    os.write(descriptor, b"x")
    os.utime(descriptor, ns=(5, 7))
    os.close(descriptor)
    assert os.stat(here / "f").st_mtime_ns == 7
    (here / "f").write_bytes(b"later")
    assert os.stat(here / "f").st_mtime_ns > 7


def test_s33_directories(here: Path) -> None:
    os.makedirs(here / "d" / "e")
    for number in range(300):
        (here / "d" / f"a rather long name {number}").touch()
    status = os.stat(here / "d")
    assert (status.st_size, status.st_nlink, status.st_blocks) == (4096, 3, 0)


def test_s34_blocks_are_exact_once_committed(here: Path) -> None:
    descriptor = opened(here / "f")
    os.ftruncate(descriptor, MIB)
    os.pwrite(descriptor, b"x" * 10_240, 0)
    os.fsync(descriptor)
    assert os.fstat(descriptor).st_blocks == 20
    os.pwrite(descriptor, b"y" * 10_240, 0)
    assert 20 <= os.fstat(descriptor).st_blocks <= 40
    os.fsync(descriptor)
    assert os.fstat(descriptor).st_blocks == 20
    os.close(descriptor)


def test_s35_inode_numbers(mounted: Mount) -> None:
    (mounted.path / "f").touch()
    (mounted.path / "gone").touch()
    ino, gone = ino_of(mounted.path / "f"), ino_of(mounted.path / "gone")
    assert ino_of(mounted.path) == 1
    assert ino >= 1 << 32
    os.unlink(mounted.path / "gone")
    mounted.remount()
    assert ino_of(mounted.path / "f") == ino
    (mounted.path / "new").touch()
    assert ino_of(mounted.path / "new") not in (ino, gone)


def test_s36_space_is_that_of_the_smallest_replica(shared_mount: Mount) -> None:
    space = os.statvfs(shared_mount.path)
    disk = os.statvfs(shared_mount.replica(1))
    assert space.f_blocks * space.f_frsize == disk.f_blocks * disk.f_frsize // 4096 * 4096
    assert (space.f_namemax, space.f_ffree) == (255, 1 << 32)


def test_s37_writing_clears_suid(here: Path) -> None:
    needs_root()
    os.chmod(here, 0o777)
    (here / "f").write_bytes(b"x")
    os.chmod(here / "f", 0o6777)

    def append() -> None:
        descriptor = os.open("f", os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, b"y")
        os.close(descriptor)

    assert run_as(ALICE, here, append) == 0
    assert stat.S_IMODE(os.stat(here / "f").st_mode) == 0o777
    os.chmod(here / "f", 0o6755)
    os.chown(here / "f", ALICE, -1)
    assert stat.S_IMODE(os.stat(here / "f").st_mode) == 0o755


def test_s38_extended_attributes(here: Path) -> None:
    path = here / "f"
    path.touch()
    for name in ("user.x", "trusted.x", "security.x") if os.geteuid() == 0 else ("user.x",):
        os.setxattr(path, name, b"value")
        assert os.getxattr(path, name) == b"value"
    with fails(errno.EEXIST):
        os.setxattr(path, "user.x", b"1", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(path, "user.y", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.big", b"x" * 65536)
    with fails(errno.E2BIG):
        os.setxattr(path, "user.big", b"x" * 65537)
    os.setxattr(path, "user." + "n" * 250, b"1")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(path, "other.x", b"1")


def test_s39_no_access_control_lists(here: Path) -> None:
    (here / "f").touch()
    entries = struct.pack("<IHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 0x20, 4, 0xFFFFFFFF)
    with fails(errno.EOPNOTSUPP):
        os.setxattr(here / "f", "system.posix_acl_access", entries)


def test_s40_own_attributes_are_listed_and_read_only(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"x")
    os.setxattr(path, "user.mine", b"1")
    own = {f"user.agentfs.{name}" for name in ("version", "commit", "writer", "digest", "replicas", "cached")}
    assert set(os.listxattr(path)) == own | {"user.mine"}
    assert set(os.listxattr(here)) == {"user.agentfs.commit", "user.agentfs.writer"}
    for name in (*own, "user.agentfs.new"):
        with fails(errno.EPERM):
            os.setxattr(path, name, b"1")
        with fails(errno.EPERM):
            os.removexattr(path, name)
    shell("cp", "-a", path, here / "copy")
    assert os.getxattr(here / "copy", "user.mine") == b"1"
    refused = subprocess.run(["cp", "--preserve=xattr", path, here / "loud"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "user.agentfs.version" in refused.stderr
    assert os.getxattr(here / "loud", "user.mine") == b"1"


def test_s40_cached_counts_what_needs_no_replica(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"x" * 1000)
    os.truncate(path, 4096)
    assert os.getxattr(path, "user.agentfs.cached") == b"4096/4096"


def test_s40_rsync_needs_a_filter(here: Path) -> None:
    (here / "f").write_bytes(b"x")
    os.setxattr(here / "f", "user.mine", b"1")
    loud = subprocess.run(["rsync", "-aX", here / "f", here / "loud"], capture_output=True, text=True, check=False)
    assert loud.returncode == 23
    shell("rsync", "-aX", "--filter=-x user.agentfs.*", here / "f", here / "quiet")
    assert os.getxattr(here / "quiet", "user.mine") == b"1"


def test_s41_version_and_commit(shared_mount: Mount, here: Path) -> None:
    path = here / "f"

    def said(name: str) -> str:
        return os.getxattr(path, f"user.agentfs.{name}").decode()

    path.write_bytes(b"one")
    version, commit = int(said("version")), int(said("commit"))
    with open(path, "ab") as file:
        file.write(b" two")
    assert int(said("version")) == version + 1
    assert int(said("commit")) > commit
    commit = int(said("commit"))
    os.chmod(path, 0o600)
    os.rename(path, here / "g")
    path = here / "g"
    assert int(said("version")) == version + 1
    assert int(said("commit")) > commit
    assert int(os.getxattr(shared_mount.path, "user.agentfs.position")) >= int(said("commit"))


# ---- locks


LOCKING = """if 1:
    import fcntl, struct, sys
    file = open(sys.argv[2], "r+")
    first, length = int(sys.argv[3]), int(sys.argv[4])
    try:
        match sys.argv[1]:
            case "flock":
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            case "fcntl":
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, first)
            case "ofd":
                fcntl.fcntl(file, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        print("granted")
    except OSError:
        print("refused")
    """


def asked(kind: str, path: Path, first: int = 0, length: int = 0) -> str:
    """Whether another process gets an exclusive lock of that kind."""
    return finish(start(LOCKING, kind, path, first, length)).strip()


def outcome(locker: Locker) -> int:
    """The errno with which what a process was told ended, 0 if it did not fail."""
    try:
        locker.end()
    except OSError as error:
        return error.errno or -1
    return 0


def waiting(mount: Mount, path: str) -> int:
    """How many requests wait for a file's locks in the journal."""
    return sum(row["path"] == path and row["state"] == "waiting" for row in mount.locks())


def test_s50_flock(here: Path) -> None:
    (here / "f").write_bytes(b"x")
    with open(here / "f", "r+") as file, open(here / "f", "r+") as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert [asked(kind, here / "f") for kind in ("flock", "fcntl")] == ["refused", "granted"]
        fcntl.flock(file, fcntl.LOCK_SH)
        fcntl.flock(other, fcntl.LOCK_SH)
        with fails(errno.EAGAIN):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copy = os.dup(other.fileno())
        other.close()
        assert asked("flock", here / "f") == "refused"
        os.close(copy)
    assert asked("flock", here / "f") == "granted"


def test_s51_fcntl(here: Path) -> None:
    (here / "f").write_bytes(b"0123456789")
    with open(here / "f", "r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10)
        fcntl.lockf(file, fcntl.LOCK_UN, 2, 4)
        assert [asked(kind, here / "f", 4, 2) for kind in ("flock", "fcntl")] == ["granted", "granted"]
        assert [asked("fcntl", here / "f", start, 1) for start in (3, 6)] == ["refused", "refused"]
        (here / "f").open().close()
        assert asked("fcntl", here / "f") == "granted"


def test_s52_open_file_description_locks(shared_mounts: list[Mount]) -> None:
    a, b, *_ = shared_mounts
    (a.path / "s52").write_bytes(b"x")
    with open(a.path / "s52", "r+") as file:
        fcntl.fcntl(file, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        for place in (a, b):
            assert [asked(kind, place.path / "s52") for kind in ("ofd", "fcntl", "flock")] == ["refused", "refused", "granted"]
        (a.path / "s52").open().close()
        assert asked("ofd", b.path / "s52") == "refused"
    assert [asked(kind, b.path / "s52") for kind in ("ofd", "fcntl")] == ["granted", "granted"]


def test_s53_first_come_first_served(shared_mounts: list[Mount], hire: Callable[[Path], Locker]) -> None:
    (shared_mounts[0].path / "s53").write_bytes(b"x")
    holder, *waiters = [hire(place.path / "s53") for place in (*shared_mounts, *shared_mounts)]
    holder.take("flock")
    for number, waiter in enumerate(waiters, 1):
        waiter.want("flock")
        waiter.blocks()
        wait_until(lambda number=number: waiting(shared_mounts[0], "s53") == number, "the request to be in the queue")
    holder.give("flock")
    for waiter in waiters:
        waiter.end()
        waiter.give("flock")


def test_s54_a_deadlock_in_a_mount(here: Path, hire: Callable[[Path], Locker]) -> None:
    (here / "f").write_bytes(b"xx")
    one, other = hire(here / "f"), hire(here / "f")
    one.lock(fcntl.F_WRLCK, 0, 1)
    other.lock(fcntl.F_WRLCK, 1, 1)
    one.begin(setlk, one.descriptor, fcntl.F_WRLCK, 1, 1, command=fcntl.F_SETLKW)
    one.blocks()
    with fails(errno.EDEADLK):
        other.do(setlk, other.descriptor, fcntl.F_WRLCK, 0, 1, command=fcntl.F_SETLKW)
    other.close()
    one.end()


def test_s55_lock_sees_everything_and_unlock_commits(shared_mounts: list[Mount]) -> None:
    a, b, *_ = shared_mounts
    (a.path / "s55").write_bytes(b"0")
    with open(a.path / "s55", "r+b", buffering=0) as here, open(b.path / "s55", "r+b", buffering=0) as there:
        for number in range(20):
            for file, place in ((here, a), (there, b)):
                fcntl.flock(file, fcntl.LOCK_EX)
                assert os.pread(file.fileno(), 100, 0) == b"x" * (2 * number + (place is b)) + b"0"
                assert not number or (place.path / f"s55-{number - 1}").exists()
                os.pwrite(file.fileno(), b"x" * (2 * number + (place is b) + 1) + b"0", 0)
                if place is a:
                    (a.path / f"s55-{number}").mkdir()
                fcntl.flock(file, fcntl.LOCK_UN)


def test_s56_a_dead_holder(mounts: Callable[..., list[Mount]], hire: Callable[[Path], Locker]) -> None:
    a, b = mounts(2, "--lease-ttl", "1")
    (a.path / "f").write_bytes(b"x")
    holder, waiter = hire(a.path / "f"), hire(b.path / "f")
    holder.take("flock")
    waiter.want("flock")
    holder.kill()
    waiter.end()
    waiter.give("flock")
    holder = hire(a.path / "f")
    holder.take("flock")
    waiter.want("flock")
    a.kill9(remount=False)
    waiter.end()


def test_s57_a_frozen_holder(mounts: Callable[..., list[Mount]], hire: Callable[[Path], Locker]) -> None:
    a, b = mounts(2, "--lease-ttl", "1")
    (a.path / "f").write_bytes(b"safe")
    holder, other = hire(a.path / "f"), hire(b.path / "f")
    holder.take("flock")
    holder.write(b"late")
    with a.frozen():
        other.want("flock")
        other.end()
    with fails(errno.EIO):
        holder.write(b"more")
    with fails(errno.EIO):
        holder.close()
    assert other.read() == b"safe"
    other.give("flock")
    assert (a.path / "f").read_bytes() == b"safe"
    (a.path / "f").write_bytes(b"next")
    assert (b.path / "f").read_bytes() == b"next"
    (folder,) = a.status()["recovered"]
    assert [path.read_bytes() for path in Path(folder).iterdir() if path.name != "contents.json"] == [b"late"]


def test_s58_no_journal_no_locks(mounts: Callable[..., list[Mount]], hire: Callable[[Path], Locker]) -> None:
    (a,) = mounts(1, "--lease-ttl", "1")
    (a.path / "f").write_bytes(b"x")
    locker = hire(a.path / "f")
    journal = sqlite3.connect(a.journal, isolation_level=None)
    try:
        journal.execute("BEGIN EXCLUSIVE")
        with fails(errno.ENOLCK):
            locker.take("flock")
    finally:
        journal.close()
    wait_until(lambda: not locker.is_refused("flock"), "locks to work again")


def test_s59_repeated_locks_are_local_and_holders_are_named(shared_mounts: list[Mount], hire: Callable[[Path], Locker]) -> None:
    a, b, *_ = shared_mounts
    (a.path / "s59").write_bytes(b"x")
    locker = hire(a.path / "s59")
    locker.take("fcntl")
    assert os.getxattr(b.path / "s59", "user.agentfs.lock").decode() == f"fcntl exclusive {a.label}"
    locker.give("fcntl")
    before = a.position()
    locker.do(again, locker.descriptor, "fcntl", 100)
    assert a.position() == before


# ---- several mounts


def test_s70_the_next_open_reads_what_was_closed(shared_mounts: list[Mount]) -> None:
    a, b, *_ = shared_mounts
    (a.path / "s70").write_bytes(b"first")
    with open(b.path / "s70", "rb", buffering=0) as held:
        mapped = mmap.mmap(held.fileno(), 5, prot=mmap.PROT_READ)
        assert mapped[:] == b"first"
        for number in range(20):
            body = b"%05d" % number
            (a.path / "s70").write_bytes(body)
            assert (b.path / "s70").read_bytes() == body
            (a.path / "s70-new").write_bytes(body * 2)
            os.replace(a.path / "s70-new", a.path / "s70-over")
            assert (b.path / "s70-over").read_bytes() == body * 2
        wait_until(lambda: os.pread(held.fileno(), 9, 0) == b"00019", "the open file to show the last content")
        assert mapped[:] == b"00019"
        mapped.close()


def test_s71_one_wins(shared_mounts: list[Mount], hire: Callable[[Path], Locker]) -> None:
    (shared_mounts[0].path / "s71").write_bytes(b"x")
    racers = [(hire(place.path / "s71"), place) for place in shared_mounts]
    for number in range(30):
        for racer, place in racers:
            racer.begin(os.mkdir, str(place.path / f"s71-{number}"))
        assert sorted(outcome(racer) for racer, _ in racers) == [0, errno.EEXIST, errno.EEXIST]


def test_s72_names_are_pushed(mounts: Callable[..., list[Mount]]) -> None:
    a, b = mounts(2, "-o", "strict")
    for number in range(10):
        assert not (b.path / f"f{number}").exists()
        (a.path / f"f{number}").mkdir()
        assert (b.path / f"f{number}").exists()
        (a.path / f"f{number}").rmdir()
        assert not (b.path / f"f{number}").exists()


def test_s73_a_file_removed_elsewhere_stays_readable(shared_mounts: list[Mount]) -> None:
    a, b, *_ = shared_mounts
    body = random.Random(73).randbytes(100_000)
    (a.path / "s73").write_bytes(body)
    with open(b.path / "s73", "r+b", buffering=0) as held:
        (a.path / "s73").unlink()
        wait_until(lambda: not (b.path / "s73").exists(), "the removal to arrive")
        assert os.pread(held.fileno(), 200_000, 0) == body
        os.pwrite(held.fileno(), b"mine", 0)
        os.fsync(held.fileno())
        assert os.pread(held.fileno(), 8, 0) == b"mine" + body[4:8]
    assert not (a.path / "s73").exists()


def test_s74_appends_of_several_mounts(shared_mounts: list[Mount]) -> None:
    a, b, *_ = shared_mounts
    (a.path / "s74").write_bytes(b"")
    files = [os.open(place.path / "s74", os.O_WRONLY | os.O_APPEND) for place in (a, b)]
    for number in range(50):
        for descriptor, name in zip(files, b"ab", strict=True):
            os.write(descriptor, b"%c%09d\n" % (name, number))
        for descriptor in files:
            os.fsync(descriptor)
    for descriptor in files:
        os.close(descriptor)
    records = (b.path / "s74").read_bytes().splitlines()
    assert sorted(records) == sorted(b"%c%09d" % (name, number) for number in range(50) for name in b"ab")


def test_s75_watchers_see_what_other_mounts_do(shared_mounts: list[Mount]) -> None:
    a, b, *_ = shared_mounts
    (a.path / "s75").mkdir()
    wait_until((b.path / "s75").is_dir, "the directory to appear")
    with watching(here=b.path / "s75") as watcher:
        before = b.position()
        (a.path / "s75" / "f").write_bytes(b"x")
        (a.path / "s75" / "f").chmod(0o600)
        (a.path / "s75" / "f").rename(a.path / "s75" / "g")
        (a.path / "s75" / "g").unlink()
        (a.path / "s75" / "end").mkdir()
        told = [event.kind for event in watcher.settled("end")]
        sent = a.position() - before
        assert b.position() - before == sent
    assert told == ["create", "modify", "close_write", "attrib", "moved_from", "moved_to", "delete"]


# ---- errors


def test_s60_a_full_cache_disk(unmounted: Mount) -> None:
    unmounted.create()
    with small_disk(unmounted.cache, size_mib=16):
        unmounted.mount()
        (unmounted.path / "before").write_bytes(b"safe")
        fill(unmounted.cache / "ballast", leave_kib=256)
        descriptor = opened(unmounted.path / "f")
        with fails(errno.ENOSPC):
            for _ in range(100):
                os.write(descriptor, b"x" * 65_536)
        size = os.fstat(descriptor).st_size
        assert os.pread(descriptor, size + 1, 0) == b"x" * size
        assert (unmounted.path / "before").read_bytes() == b"safe"
        os.unlink(unmounted.cache / "ballast")
        assert os.write(descriptor, b"y") == 1
        os.close(descriptor)
        assert (unmounted.path / "f").read_bytes() == b"x" * size + b"y"
        unmounted.umount()


def test_s61_a_full_replica_fails_close_and_the_bytes_stay(unmounted: Mount) -> None:
    body = random.Random(61).randbytes(3 * MIB)
    with small_disk(unmounted.base / "small", size_mib=16) as small:
        unmounted.create("--replica", str(unmounted.base / "large"), "--replica", str(small / "r"), "--replication", "sync")
        unmounted.mount()
        fill(small / "ballast", leave_kib=512)
        descriptor = opened(unmounted.path / "f")
        os.write(descriptor, body)
        with fails(errno.ENOSPC):
            os.fsync(descriptor)
        with fails(errno.ENOSPC):
            os.close(descriptor)
        assert (unmounted.path / "f").read_bytes() == body
        assert unmounted.status()["dirty_files"] == 1
        os.unlink(small / "ballast")
        wait_until(lambda: unmounted.status()["dirty_files"] == 0, "the commit once there is room")
        unmounted.remount()
        assert (unmounted.path / "f").read_bytes() == body
        unmounted.umount()


def damaged(mount: Mount, path: Path, replicas: tuple[int, ...], which: slice) -> tuple[int, list[Path]]:
    """Unmount and overwrite bytes in some of a file's chunks; the offset of the first, and the damaged segments."""
    ino = ino_of(path)
    mount.umount()
    (write,) = [change for change in changes_of(mount, ino) if isinstance(change, Write)]
    segments = []
    for run in write.runs[which]:
        assert isinstance(run, ChunkRun)
        assert any(isinstance(change, AddSegment) and change.name == run.segment for change in changes(mount))
        key = f"segments/{run.segment.hex()[:2]}/{run.segment.hex()}.seg"
        for replica in replicas:
            segments.append(mount.replica(replica) / key)
            with open(segments[-1], "rb+") as file:
                file.seek(run.chunk.start + 1000)
                file.write(bytes(64))
    mount.mount_again()
    return write.runs[which][0].offset, segments


def test_s62_damage_everywhere_is_an_error_on_that_chunk_only(mounted: Mount) -> None:
    body = random.Random(62).randbytes(3 * MIB)
    (mounted.path / "f").write_bytes(body)
    offset, _ = damaged(mounted, mounted.path / "f", (1, 2), slice(1, 2))
    descriptor = opened(mounted.path / "f", os.O_RDONLY | os.O_DIRECT)
    with fails(errno.EIO):
        os.pread(descriptor, 4096, offset)
    assert os.pread(descriptor, 4096, offset - 4096) == body[offset - 4096 : offset]
    assert os.pread(descriptor, 4096, offset + MIB) == body[offset + MIB : offset + MIB + 4096]
    os.close(descriptor)
    log = mounted.log.read_text()
    assert '"path": "f"' in log or '"path":"f"' in log


def test_s63_damage_in_one_replica_is_read_around_and_repaired(mounted: Mount) -> None:
    body = random.Random(63).randbytes(3 * MIB)
    (mounted.path / "f").write_bytes(body)
    _, (segment, *_) = damaged(mounted, mounted.path / "f", (1,), slice(None))
    twin = Path(str(segment).replace("/replicas/1/", "/replicas/2/"))
    assert segment.read_bytes() != twin.read_bytes()
    assert (mounted.path / "f").read_bytes() == body
    wait_until(lambda: segment.is_file() and segment.read_bytes() == twin.read_bytes(), "the repair")


def test_s64_a_descriptor_does_not_outlive_its_daemon(mounted: Mount) -> None:
    descriptor = opened(mounted.path / "f")
    mounted.kill9()
    for call in (lambda: os.write(descriptor, b"x"), lambda: os.fsync(descriptor), lambda: os.pread(descriptor, 1, 0)):
        with fails(*DEAD):
            call()
    with fails(*DEAD):
        os.close(descriptor)
    (mounted.path / "f").write_bytes(b"a new descriptor works")


def test_s65_a_read_only_mount(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "f").write_bytes(b"x")
    unmounted.umount()
    unmounted.mount("-o", "ro")
    assert (unmounted.path / "f").read_bytes() == b"x"
    for call in (
        lambda: os.open(unmounted.path / "f", os.O_WRONLY),
        lambda: os.mkdir(unmounted.path / "d"),
        lambda: os.chmod(unmounted.path / "f", 0),
        lambda: os.unlink(unmounted.path / "f"),
        lambda: os.setxattr(unmounted.path / "f", "user.x", b"1"),
    ):
        with fails(errno.EROFS):
            call()
