"""Content: bytes written are bytes read, whichever system call writes or reads them."""

import errno
import hashlib
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.errnos import fails, may_fail
from tests.mount.libc import syncfs
from tests.mount.processes import finish, shell, start

GIB = 1 << 30
KIB = 1 << 10
MIB = 1 << 20

pytestmark = pytest.mark.over_s3


def opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """A descriptor of `path`."""
    return os.open(path, flags, 0o644)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 32 * KIB, 32 * KIB + 1, MIB - 1, MIB, MIB + 1, 9 * MIB + 7])
def test_write_and_read(here: Path, size: int) -> None:
    body = random.Random(size).randbytes(size)
    (here / "f").write_bytes(body)
    assert (here / "f").stat().st_size == size
    assert (here / "f").read_bytes() == body


def test_compressible_content(here: Path) -> None:
    body = b"line of text\n" * 300_000
    (here / "f").write_bytes(body)
    assert (here / "f").read_bytes() == body


def test_content_after_remount(mounted: Place) -> None:
    source = random.Random(7)
    bodies = {f"f{number}": source.randbytes(source.choice([0, 10, 5000, 40_000, 300_000, 3_000_000])) for number in range(25)}
    for name, body in bodies.items():
        (mounted.path / name).write_bytes(body)
    mounted.remount()
    assert {name: (mounted.path / name).read_bytes() for name in os.listdir(mounted.path)} == bodies


def test_overwrite_in_the_middle(here: Path) -> None:
    body = bytearray(random.Random(1).randbytes(3 * MIB))
    (here / "f").write_bytes(body)
    source = random.Random(2)
    for _ in range(60):
        offset, part = source.randrange(len(body)), source.randbytes(source.randrange(1, 70_000))
        descriptor = opened(here / "f", os.O_WRONLY)
        assert os.pwrite(descriptor, part, offset) == len(part)
        os.close(descriptor)
        body[offset : offset + len(part)] = part
    assert (here / "f").read_bytes() == body


def test_own_writes_are_read_before_close(here: Path) -> None:
    writer, reader = opened(here / "f"), opened(here / "f", os.O_RDONLY)
    for number in range(50):
        os.write(writer, b"%08d" % number)
        assert os.pread(reader, 8, number * 8) == b"%08d" % number
        assert os.fstat(reader).st_size == os.stat(here / "f").st_size == (number + 1) * 8
    os.close(writer)
    os.close(reader)


def test_pread_and_pwrite(here: Path) -> None:
    descriptor = opened(here / "f")
    assert os.pwrite(descriptor, b"world", 6) == 5
    assert os.pwrite(descriptor, b"hello ", 0) == 6
    assert os.pread(descriptor, 100, 0) == b"hello world"
    assert os.pread(descriptor, 100, 11) == b""
    assert os.pread(descriptor, 3, 4) == b"o w"
    assert os.lseek(descriptor, 0, os.SEEK_CUR) == 0
    assert os.preadv(descriptor, [one := bytearray(3), two := bytearray(4)], 1) == 7
    assert (one, two) == (b"ell", b"o wo")
    os.close(descriptor)


def test_truncate(here: Path) -> None:
    (here / "f").write_bytes(b"0123456789" * 10_000)
    os.truncate(here / "f", 5)
    assert (here / "f").read_bytes() == b"01234"
    os.truncate(here / "f", 100_000)
    assert (here / "f").read_bytes() == b"01234" + bytes(99_995)
    descriptor = opened(here / "f")
    os.ftruncate(descriptor, 3)
    os.pwrite(descriptor, b"x", 6)
    assert os.pread(descriptor, 10, 0) == b"012\0\0\0x"
    os.ftruncate(descriptor, 0)
    assert os.fstat(descriptor).st_size == 0
    os.close(descriptor)
    assert (here / "f").read_bytes() == b""


def test_truncate_errors(here: Path) -> None:
    (here / "f").touch()
    os.mkdir(here / "d")
    with fails(errno.EISDIR):
        os.truncate(here / "d", 0)
    with fails(errno.ENOENT):
        os.truncate(here / "missing", 0)
    with fails(errno.EINVAL):
        os.truncate(here / "f", -1)
    descriptor = opened(here / "f", os.O_RDONLY)
    with fails(errno.EINVAL):
        os.ftruncate(descriptor, 1)
    os.close(descriptor)


def test_truncate_with_dirty_bytes(here: Path) -> None:
    descriptor = opened(here / "f")
    os.write(descriptor, b"a" * 50_000)
    os.ftruncate(descriptor, 20_000)
    os.pwrite(descriptor, b"b" * 10, 30_000)
    assert os.pread(descriptor, 40_000, 0) == b"a" * 20_000 + bytes(10_000) + b"b" * 10
    os.close(descriptor)
    assert (here / "f").read_bytes() == b"a" * 20_000 + bytes(10_000) + b"b" * 10


def test_open_with_truncate(here: Path) -> None:
    (here / "f").write_bytes(b"before" * 20_000)
    os.close(opened(here / "f", os.O_WRONLY | os.O_TRUNC))
    assert (here / "f").read_bytes() == b""
    (here / "f").write_bytes(b"after")
    assert (here / "f").read_bytes() == b"after"


def test_holes(here: Path) -> None:
    descriptor = opened(here / "f")
    os.pwrite(descriptor, b"end", 10 * MIB)
    os.pwrite(descriptor, b"middle", 5 * MIB)
    os.close(descriptor)
    status = (here / "f").stat()
    assert status.st_size == 10 * MIB + 3
    assert status.st_blocks * 512 <= MIB
    body = (here / "f").read_bytes()
    assert body == bytes(5 * MIB) + b"middle" + bytes(5 * MIB - 6) + b"end"


def test_seek_to_data_and_hole(here: Path) -> None:
    (here / "f").write_bytes(b"x" * 5000)
    descriptor = opened(here / "f", os.O_RDONLY)
    assert os.lseek(descriptor, 100, os.SEEK_DATA) == 100
    assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 5000
    with fails(errno.ENXIO):
        os.lseek(descriptor, 5000, os.SEEK_DATA)
    os.close(descriptor)


def test_offsets_beyond_four_gib(mounted: Place) -> None:
    path = mounted.path / "f"
    descriptor = opened(path)
    os.pwrite(descriptor, b"begin", 0)
    os.pwrite(descriptor, b"across four GiB", 4 * GIB - 5)
    os.pwrite(descriptor, b"end", 5 * GIB - 3)
    os.close(descriptor)
    for round_number in range(2):
        descriptor = opened(path, os.O_RDONLY)
        assert os.fstat(descriptor).st_size == 5 * GIB
        assert os.fstat(descriptor).st_blocks * 512 <= MIB
        assert os.pread(descriptor, 8, 0) == b"begin\0\0\0"
        assert os.pread(descriptor, 17, 4 * GIB - 6) == b"\0across four GiB\0"
        assert os.pread(descriptor, 100, 5 * GIB - 5) == b"\0\0end"
        assert os.pread(descriptor, MIB, 2 * GIB) == bytes(MIB)
        os.close(descriptor)
        if round_number == 0 and mounted.is_mount:
            mounted.remount()


def test_open_errors(here: Path) -> None:
    os.mkdir(here / "d")
    (here / "f").touch()
    with fails(errno.EISDIR):
        os.open(here / "d", os.O_WRONLY)
    with fails(errno.ENOTDIR):
        os.open(here / "f", os.O_RDONLY | os.O_DIRECTORY)
    with fails(errno.ENOENT):
        os.open(here / "missing", os.O_RDONLY)
    descriptor = opened(here / "f", os.O_RDONLY)
    with fails(errno.EBADF):
        os.write(descriptor, b"x")
    os.close(descriptor)
    descriptor = opened(here / "f", os.O_WRONLY)
    with fails(errno.EBADF):
        os.read(descriptor, 1)
    os.close(descriptor)


def test_append(here: Path) -> None:
    (here / "f").write_bytes(b"start ")
    descriptor = opened(here / "f", os.O_RDWR | os.O_APPEND)
    os.write(descriptor, b"one ")
    with open(here / "f", "ab") as other:
        other.write(b"two ")
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, b"three")
    os.close(descriptor)
    assert (here / "f").read_bytes() == b"start one two three"


def test_appends_of_several_processes_lose_nothing(here: Path) -> None:
    script = """if 1:
        import os, sys
        for number in range(150):
            if number % 10 == 0:
                descriptor = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(descriptor, f"{sys.argv[1]} {number} {'x' * (number * 7 % 300)}\\n".encode())
            if number % 10 == 9:
                os.close(descriptor)
        """
    for process in [start(script, name, cwd=here) for name in "abcd"]:
        finish(process)
    lines = [line.split(" ") for line in (here / "log").read_text().splitlines()]
    assert len(lines) == 600
    for name in "abcd":
        own = [(int(number), len(text)) for writer, number, text in lines if writer == name]
        assert own == [(number, number * 7 % 300) for number in range(150)]


def test_disjoint_writers_of_one_file(here: Path) -> None:
    (here / "f").write_bytes(bytes(400_000))
    script = """if 1:
        import os, sys
        name = sys.argv[1]
        descriptor = os.open("f", os.O_WRONLY)
        for number in range(int(sys.argv[2]), 400, 4):
            os.pwrite(descriptor, name.encode() * 1000, number * 1000)
        os.close(descriptor)
        """
    for process in [start(script, name, index, cwd=here) for index, name in enumerate("abcd")]:
        finish(process)
    assert (here / "f").read_bytes() == b"".join(name * 1000 for name in [b"a", b"b", b"c", b"d"] * 100)


def test_shared_mapping(here: Path) -> None:
    (here / "f").write_bytes(b"-" * 20_000)
    descriptor = opened(here / "f")
    with mmap.mmap(descriptor, 20_000) as mapped:
        assert mapped[:3] == b"---"
        mapped[5000:5005] = b"hello"
        assert os.pread(descriptor, 5, 5000) == b"hello"
        mapped.flush()
        assert finish(start("print(open('f').read()[5000:5005])", cwd=here)) == "hello\n"
        finish(start("f = open('f', 'r+'); f.seek(9000); f.write('there'); f.close()", cwd=here))
        assert mapped[9000:9005] == b"there"
    os.close(descriptor)
    assert (here / "f").read_bytes() == b"-" * 5000 + b"hello" + b"-" * 3995 + b"there" + b"-" * 10_995


def test_mapping_written_without_msync(mounted: Place) -> None:
    path = mounted.path / "f"
    path.write_bytes(bytes(100_000))
    descriptor = opened(path)
    with mmap.mmap(descriptor, 100_000) as mapped:
        mapped[70_000:70_004] = b"here"
    os.close(descriptor)
    assert path.read_bytes()[70_000:70_004] == b"here"
    mounted.remount()
    assert path.read_bytes() == bytes(70_000) + b"here" + bytes(29_996)


def test_mapping_shared_by_processes(here: Path) -> None:
    (here / "f").write_bytes(bytes(8192))
    script = """if 1:
        import mmap, sys
        file = open("f", "r+b")
        mapped = mmap.mmap(file.fileno(), 8192)
        print("mapped", flush=True)
        sys.stdin.readline()
        print(mapped[4096:4100].decode(), flush=True)
        mapped[0:5] = b"reply"
        """
    other = start(script, cwd=here)
    assert other.stdout
    other.stdout.readline()
    with open(here / "f", "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[4096:4100] = b"ping"
        output, _ = other.communicate("\n", timeout=60)
        assert output == "ping\n"
        assert mapped[0:5] == b"reply"


def test_private_mapping_changes_nothing(here: Path) -> None:
    (here / "f").write_bytes(b"original")
    with open(here / "f", "r+b") as file, mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_COPY) as mapped:
        mapped[:8] = b"changed!"
        assert (here / "f").read_bytes() == b"original"


def test_mapped_program_runs(here: Path) -> None:
    """A program is mapped by the kernel as it runs."""
    shell("cp", "/bin/echo", here / "echo")
    assert shell(here / "echo", "it runs") == "it runs\n"


def test_unlinked_but_open(here: Path) -> None:
    descriptor = opened(here / "f")
    os.write(descriptor, b"a" * 100_000)
    os.unlink(here / "f")
    assert os.listdir(here) == []
    assert os.fstat(descriptor).st_nlink == 0
    os.pwrite(descriptor, b"b" * 10, 99_995)
    os.fsync(descriptor)
    assert os.pread(descriptor, 20, 99_990) == b"a" * 5 + b"b" * 10
    os.ftruncate(descriptor, 3)
    assert os.pread(descriptor, 20, 0) == b"aaa"
    os.fchmod(descriptor, 0o600)
    (here / "f").write_bytes(b"another file of that name")
    assert os.pread(descriptor, 20, 0) == b"aaa"
    os.close(descriptor)
    assert (here / "f").read_bytes() == b"another file of that name"


def test_unlinked_content_is_read_by_who_has_it_open(here: Path) -> None:
    body = random.Random(3).randbytes(2 * MIB)
    (here / "f").write_bytes(body)
    with open(here / "f", "rb") as reader:
        os.unlink(here / "f")
        assert reader.read() == body


def test_read_only_descriptor_survives_mode_zero(here: Path) -> None:
    (here / "f").write_bytes(b"x")
    with open(here / "f", "rb") as reader:
        os.chmod(here / "f", 0)
        assert reader.read() == b"x"


def test_copy_file_range(here: Path) -> None:
    body = random.Random(4).randbytes(300_000)
    (here / "a").write_bytes(body)
    source, target = opened(here / "a", os.O_RDONLY), opened(here / "b")
    copied = 0
    while copied < len(body):
        step = os.copy_file_range(source, target, len(body) - copied)
        assert step > 0
        copied += step
    os.close(source)
    os.close(target)
    assert (here / "b").read_bytes() == body


def test_copy_to_and_from_elsewhere(here: Path, tmp_path: Path) -> None:
    body = random.Random(5).randbytes(2 * MIB + 5)
    (tmp_path / "local").write_bytes(body)
    shell("cp", tmp_path / "local", here / "a")
    shell("cp", "--reflink=auto", here / "a", here / "b")
    shell("cp", "--sparse=always", here / "b", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == body


def test_sendfile(here: Path) -> None:
    body = random.Random(6).randbytes(200_000)
    (here / "a").write_bytes(body)
    source, target = opened(here / "a", os.O_RDONLY), opened(here / "b")
    sent = 0
    while step := os.sendfile(target, source, sent, len(body)):
        sent += step
    os.close(source)
    os.close(target)
    assert (here / "b").read_bytes() == body


def test_fallocate(here: Path) -> None:
    (here / "f").write_bytes(b"data")
    descriptor = opened(here / "f")
    os.posix_fallocate(descriptor, 0, 100_000)
    assert os.fstat(descriptor).st_size == 100_000
    assert os.pread(descriptor, 6, 0) == b"data\0\0"
    os.close(descriptor)


def opened_directly(path: Path) -> int:
    """A descriptor that goes around the page cache; skips where there is none."""
    with may_fail(errno.EINVAL):
        return opened(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    pytest.skip("no O_DIRECT here")


def test_direct_io(here: Path) -> None:
    descriptor = opened_directly(here / "f")
    with mmap.mmap(-1, 8192) as aligned:
        aligned[:] = random.Random(8).randbytes(8192)
        assert os.pwrite(descriptor, aligned, 4096) == 8192
        with open(here / "f", "rb") as buffered:
            assert buffered.read() == bytes(4096) + aligned[:]
        with mmap.mmap(-1, 8192) as back:
            assert os.preadv(descriptor, [back], 4096) == 8192
            assert back[:] == aligned[:]
    os.close(descriptor)


def test_direct_and_buffered_agree(here: Path) -> None:
    (here / "f").write_bytes(b"-" * 16_384)
    buffered = opened(here / "f")
    assert os.pread(buffered, 4, 4096) == b"----"
    direct = opened_directly(here / "f")
    with mmap.mmap(-1, 4096) as aligned:
        aligned[:] = b"d" * 4096
        os.pwrite(direct, aligned, 4096)
    assert os.pread(buffered, 4, 4096) == b"dddd"
    os.close(direct)
    os.close(buffered)


def test_sync_calls(here: Path) -> None:
    descriptor = opened(here / "f")
    for call in (os.fsync, os.fdatasync, syncfs):
        os.write(descriptor, b"x")
        call(descriptor)
    os.close(descriptor)
    directory = opened(here, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    syncfs(directory)
    os.close(directory)
    assert (here / "f").read_bytes() == b"xxx"


def test_synchronous_writes(here: Path) -> None:
    descriptor = opened(here / "f", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    os.write(descriptor, b"x" * 10_000)
    os.close(descriptor)
    assert (here / "f").stat().st_size == 10_000


def test_duplicated_and_inherited_descriptors(here: Path) -> None:
    descriptor = opened(here / "f")
    copy = os.dup(descriptor)
    os.write(descriptor, b"one ")
    os.close(descriptor)
    os.write(copy, b"two ")
    os.set_inheritable(copy, True)
    shell("sh", "-c", f"true; exec 3>>{here}/f; echo three >&3")
    os.close(copy)
    assert (here / "f").read_bytes() == b"one two three\n"


def test_many_small_writes(here: Path) -> None:
    digest = hashlib.sha256()
    with open(here / "f", "wb", buffering=0) as file:
        for number in range(5000):
            part = b"%d," % number
            file.write(part)
            digest.update(part)
    assert hashlib.sha256((here / "f").read_bytes()).digest() == digest.digest()


def test_many_files_open_at_once(here: Path) -> None:
    descriptors = [opened(here / f"f{number}") for number in range(400)]
    for number, descriptor in enumerate(descriptors):
        os.write(descriptor, b"%d" % number)
    for descriptor in descriptors:
        os.close(descriptor)
    assert all((here / f"f{number}").read_bytes() == b"%d" % number for number in range(400))


def test_readers_see_whole_appends_grow(here: Path) -> None:
    """What `tail -f` does: an open reader sees what other processes append later."""
    (here / "f").write_bytes(b"")
    with open(here / "f", "rb", buffering=0) as reader:
        assert reader.read() == b""
        for number in range(20):
            shell("sh", "-c", f"echo line {number} >> f", cwd=here)
            assert reader.read() == b"line %d\n" % number
