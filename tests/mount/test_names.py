"""Names: creating, linking, renaming, removing and listing them."""

import errno
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.errnos import fails
from tests.mount.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, Directory, renameat2
from tests.mount.processes import ALICE, BOB, GROUP, finish, needs_root, run_as, shell, start

EVERY_BYTE = bytes(byte for byte in range(1, 256) if byte != ord("/"))


def test_create(here: Path) -> None:
    (here / "f").touch()
    assert os.listdir(here) == ["f"]
    status = (here / "f").stat()
    assert stat.S_ISREG(status.st_mode)
    assert (status.st_size, status.st_nlink) == (0, 1)


def test_exclusive_create(here: Path) -> None:
    os.close(os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with fails(errno.EEXIST):
        os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_exclusive_create_does_not_follow(here: Path) -> None:
    os.symlink("target", here / "s")
    with fails(errno.EEXIST):
        os.open(here / "s", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert os.listdir(here) == ["s"]


def test_only_one_of_several_processes_creates(here: Path) -> None:
    script = """if 1:
        import os, sys
        won = 0
        sys.stdin.readline()
        for number in range(100):
            try:
                os.close(os.open(f"f{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                won += 1
            except FileExistsError:
                pass
        print(won)
        """
    processes = [start(script, cwd=here) for _ in range(3)]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    assert sum(int(finish(process)) for process in processes) == 100


def test_create_below_missing_or_file(here: Path) -> None:
    (here / "f").touch()
    for make in (lambda path: path.touch(), os.mkdir, lambda path: os.symlink("x", path), os.mkfifo):
        with fails(errno.ENOENT):
            make(here / "missing" / "x")
        with fails(errno.ENOTDIR):
            make(here / "f" / "x")


def test_mkdir_of_existing(here: Path) -> None:
    os.mkdir(here / "d")
    (here / "f").touch()
    for name in ("d", "f"):
        with fails(errno.EEXIST):
            os.mkdir(here / name)


def test_rmdir(here: Path) -> None:
    os.makedirs(here / "d" / "e")
    (here / "f").touch()
    with fails(errno.ENOTEMPTY):
        os.rmdir(here / "d")
    with fails(errno.ENOTDIR):
        os.rmdir(here / "f")
    with fails(errno.ENOENT):
        os.rmdir(here / "missing")
    with fails(errno.EINVAL):
        os.rmdir(f"{here}/d/.")
    os.rmdir(here / "d" / "e")
    os.rmdir(here / "d")
    assert os.listdir(here) == ["f"]


def test_unlink(here: Path) -> None:
    os.mkdir(here / "d")
    (here / "f").touch()
    with fails(errno.EISDIR):
        os.unlink(here / "d")
    with fails(errno.ENOENT):
        os.unlink(here / "missing")
    os.unlink(here / "f")
    with fails(errno.ENOENT):
        os.unlink(here / "f")
    with fails(errno.ENOENT):
        os.stat(here / "f")


def test_work_in_a_removed_directory(here: Path) -> None:
    os.mkdir(here / "d")
    descriptor = os.open(here / "d", os.O_RDONLY)
    os.rmdir(here / "d")
    with fails(errno.ENOENT):
        os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    assert os.fstat(descriptor).st_nlink == 0
    os.close(descriptor)


def test_names_of_every_byte(here: Path) -> None:
    names = {EVERY_BYTE + b"a", b"a" * 255, "ü".encode() * 127, b"\xff\xfe", b"a\nb", b" ", b"...", b"-", b"\\"}
    for name in names:
        descriptor = os.open(os.fsencode(here) + b"/" + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(descriptor, name)
        os.close(descriptor)
    assert set(os.listdir(os.fsencode(here))) == names
    for name in names:
        with open(os.fsencode(here) + b"/" + name, "rb") as file:
            assert file.read() == name
        os.unlink(os.fsencode(here) + b"/" + name)
    assert os.listdir(here) == []


def test_name_too_long(here: Path) -> None:
    (here / "f").touch()
    long = here / ("a" * 256)
    attempts = (
        lambda: long.touch(),
        lambda: os.mkdir(long),
        lambda: os.stat(long),
        lambda: os.unlink(long),
        lambda: os.rmdir(long),
        lambda: os.rename(here / "f", long),
        lambda: os.link(here / "f", long),
        lambda: os.symlink("x", long),
        lambda: os.mkfifo(long),
    )
    for attempt in attempts:
        with fails(errno.ENAMETOOLONG):
            attempt()


def test_rename(here: Path) -> None:
    os.makedirs(here / "d")
    (here / "f").write_bytes(b"body")
    before = (here / "f").stat().st_ino
    os.rename(here / "f", here / "d" / "g")
    assert os.listdir(here) == ["d"]
    assert (here / "d" / "g").read_bytes() == b"body"
    assert (here / "d" / "g").stat().st_ino == before
    with fails(errno.ENOENT):
        os.rename(here / "f", here / "h")


def test_rename_over_file(here: Path) -> None:
    (here / "old").write_bytes(b"old")
    (here / "new").write_bytes(b"new")
    os.rename(here / "new", here / "old")
    assert os.listdir(here) == ["old"]
    assert (here / "old").read_bytes() == b"new"


def test_rename_over_directories(here: Path) -> None:
    os.makedirs(here / "full" / "x")
    os.makedirs(here / "empty")
    os.makedirs(here / "d" / "inside")
    (here / "f").touch()
    with fails(errno.ENOTEMPTY):
        os.rename(here / "d", here / "full")
    with fails(errno.EISDIR):
        os.rename(here / "f", here / "empty")
    with fails(errno.ENOTDIR):
        os.rename(here / "d", here / "f")
    with fails(errno.ENOTEMPTY):
        os.rename(here / "full" / "x", here / "full")
    os.rename(here / "d", here / "empty")
    assert os.listdir(here / "empty") == ["inside"]


def test_rename_into_itself(here: Path) -> None:
    os.makedirs(here / "d" / "e")
    for target in ("d/x", "d/e/x"):
        with fails(errno.EINVAL):
            os.rename(here / "d", here / target)
    os.rename(here / "d", here / "d")
    assert os.listdir(here / "d") == ["e"]


def test_rename_between_links_of_one_file(here: Path) -> None:
    (here / "a").touch()
    os.link(here / "a", here / "b")
    os.rename(here / "a", here / "b")
    assert sorted(os.listdir(here)) == ["a", "b"]


def test_rename_of_a_directory_moves_dotdot(here: Path) -> None:
    os.makedirs(here / "a" / "d")
    os.mkdir(here / "b")
    os.rename(here / "a" / "d", here / "b" / "d")
    assert os.path.samestat(os.stat(here / "b" / "d" / ".."), os.stat(here / "b"))
    assert [os.stat(here / name).st_nlink for name in ("a", "b")] == [2, 3]


def test_rename_noreplace(here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    with fails(errno.EEXIST):
        renameat2(here / "a", here / "b", RENAME_NOREPLACE)
    renameat2(here / "a", here / "c", RENAME_NOREPLACE)
    assert {name: (here / name).read_bytes() for name in os.listdir(here)} == {"b": b"b", "c": b"a"}


def test_rename_exchange(here: Path) -> None:
    os.makedirs(here / "x" / "d" / "inside")
    os.makedirs(here / "y")
    (here / "y" / "f").write_bytes(b"body")
    renameat2(here / "x" / "d", here / "y" / "f", RENAME_EXCHANGE)
    assert (here / "x" / "d").read_bytes() == b"body"
    assert os.listdir(here / "y" / "f") == ["inside"]
    assert [os.stat(here / name).st_nlink for name in ("x", "y")] == [2, 3]
    with fails(errno.ENOENT):
        renameat2(here / "x" / "d", here / "missing", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(here / "y" / "f", here / "y" / "f" / "inside", RENAME_EXCHANGE)


def test_rename_over_an_open_file(here: Path) -> None:
    (here / "old").write_bytes(b"old")
    (here / "new").write_bytes(b"new")
    with open(here / "old", "rb") as reader:
        os.rename(here / "new", here / "old")
        assert reader.read() == b"old"
        assert os.fstat(reader.fileno()).st_nlink == 0


def test_hard_links(here: Path) -> None:
    os.mkdir(here / "d")
    (here / "a").write_bytes(b"1")
    os.link(here / "a", here / "d" / "b")
    one, two = os.stat(here / "a"), os.stat(here / "d" / "b")
    assert os.path.samestat(one, two)
    assert (one.st_nlink, two.st_nlink) == (2, 2)
    (here / "a").write_bytes(b"22")
    assert (here / "d" / "b").read_bytes() == b"22"
    os.unlink(here / "a")
    assert os.stat(here / "d" / "b").st_nlink == 1
    assert (here / "d" / "b").read_bytes() == b"22"


def test_hard_link_errors(here: Path) -> None:
    os.mkdir(here / "d")
    (here / "f").touch()
    with fails(errno.EEXIST):
        os.link(here / "f", here / "d")
    with fails(errno.EPERM):
        os.link(here / "d", here / "e")
    with fails(errno.ENOENT):
        os.link(here / "missing", here / "e")


def test_symbolic_links(here: Path) -> None:
    os.symlink("d/f", here / "s")
    assert os.readlink(here / "s") == "d/f"
    assert os.lstat(here / "s").st_size == 3
    assert stat.S_IMODE(os.lstat(here / "s").st_mode) == 0o777
    with fails(errno.ENOENT):
        os.stat(here / "s")
    os.mkdir(here / "d")
    (here / "d" / "f").write_bytes(b"through")
    assert (here / "s").read_bytes() == b"through"
    (here / "f").touch()
    with fails(errno.EINVAL):
        os.readlink(here / "f")
    with fails(errno.EEXIST):
        os.symlink("x", here / "s")


def test_symbolic_link_loops(here: Path) -> None:
    os.symlink("b", here / "a")
    os.symlink("a", here / "b")
    with fails(errno.ELOOP):
        os.stat(here / "a")
    (here / "f").touch()
    os.symlink("f", here / "s")
    with fails(errno.ELOOP):
        os.open(here / "s", os.O_RDONLY | os.O_NOFOLLOW)


def test_symbolic_link_targets(here: Path) -> None:
    longest = os.fsdecode((EVERY_BYTE * 17)[:4000])
    os.symlink(longest, here / "long")
    assert os.readlink(here / "long") == longest
    with fails(errno.ENAMETOOLONG):
        os.symlink("a" * 4096, here / "longer")


def test_fifo_between_processes(here: Path) -> None:
    os.mkfifo(here / "p", 0o600)
    assert stat.S_ISFIFO(os.stat(here / "p").st_mode)
    writer = start("open('p', 'w').write('through the pipe')", cwd=here)
    assert (here / "p").read_text() == "through the pipe"
    finish(writer)


def test_socket_between_processes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        server.listen()
        assert stat.S_ISSOCK(os.stat("s").st_mode)
        client = start("import socket; s = socket.socket(socket.AF_UNIX); s.connect('s'); s.sendall(b'hello')", cwd=here)
        connection, _ = server.accept()
        with connection:
            assert connection.makefile("rb").read() == b"hello"
        finish(client)
    os.unlink("s")


def test_device_node(here: Path) -> None:
    needs_root()
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    status = os.stat(here / "null")
    assert stat.S_ISCHR(status.st_mode)
    assert status.st_rdev == os.makedev(1, 3)


def test_sticky_directory(here: Path) -> None:
    needs_root()
    os.mkdir(here / "tmp")
    os.chmod(here / "tmp", 0o1777)
    assert run_as(ALICE, here / "tmp", lambda: Path("f").touch()) == 0
    assert run_as(BOB, here / "tmp", lambda: os.unlink("f")) == errno.EPERM
    assert run_as(BOB, here / "tmp", lambda: os.rename("f", "g")) == errno.EPERM
    assert run_as(ALICE, here / "tmp", lambda: os.unlink("f")) == 0


def test_setgid_directory(here: Path) -> None:
    needs_root()
    os.mkdir(here / "d")
    os.chown(here / "d", 0, GROUP)
    os.chmod(here / "d", 0o2777)
    (here / "d" / "f").touch()
    os.mkdir(here / "d" / "sub")
    os.symlink("x", here / "d" / "s")
    assert {os.lstat(here / "d" / name).st_gid for name in ("f", "sub", "s")} == {GROUP}
    assert os.stat(here / "d" / "sub").st_mode & stat.S_ISGID
    assert not os.stat(here / "d" / "f").st_mode & stat.S_ISGID
    assert run_as(ALICE, here / "d", lambda: Path("g").touch()) == 0
    status = os.stat(here / "d" / "g")
    assert (status.st_uid, status.st_gid) == (ALICE, GROUP)


def test_owner_of_what_is_created(here: Path) -> None:
    needs_root()
    os.chmod(here, 0o777)
    assert run_as(ALICE, here, lambda: os.mkdir("d"), gid=GROUP) == 0
    status = os.stat(here / "d")
    assert (status.st_uid, status.st_gid) == (ALICE, GROUP)


def test_missing_name_is_seen_once_another_process_creates_it(here: Path) -> None:
    for number in range(10):
        name = here / f"f{number}"
        assert not name.exists()
        shell("sh", "-c", f"echo {number} > {name.name}", cwd=here)
        assert name.read_text() == f"{number}\n"
        os.unlink(name)
        assert not name.exists()


def test_directory_link_count(here: Path) -> None:
    assert os.stat(here).st_nlink == 2
    for name in "abc":
        os.mkdir(here / name)
    (here / "f").touch()
    assert os.stat(here).st_nlink == 5
    os.rmdir(here / "a")
    assert os.stat(here).st_nlink == 4


def test_listing_shows_dot_and_dotdot(here: Path) -> None:
    (here / "f").touch()
    assert shell("ls", "-a", here).split() == [".", "..", "f"]


def test_listing_has_types_and_inodes(here: Path) -> None:
    os.mkdir(here / "d")
    (here / "f").touch()
    os.symlink("f", here / "s")
    os.mkfifo(here / "p")
    with os.scandir(here) as entries:
        seen = {entry.name: (entry.is_dir(), entry.is_file(follow_symlinks=False), entry.is_symlink()) for entry in entries}
    assert seen == {"d": (True, False, False), "f": (False, True, False), "s": (False, False, True), "p": (False, False, False)}
    with os.scandir(here) as entries:
        assert all(entry.inode() == os.lstat(entry.path).st_ino for entry in entries)


def test_listing_is_stable_while_names_come_and_go(here: Path) -> None:
    """POSIX readdir: what is there all the time is seen exactly once; what comes or goes may be seen or not."""
    lasting = {f"lasting-{number:05}" for number in range(3000)}
    going = [f"going-{number:05}" for number in range(1000)]
    for name in [*lasting, *going]:
        os.mknod(here / name)
    seen: list[str] = []
    with os.scandir(here) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count % 4 == 0 and going:
                os.unlink(here / going.pop())
                os.mknod(here / f"coming-{count:05}")
            assert count < 20_000, "the listing does not end"
    assert len(seen) == len(set(seen))
    assert lasting <= set(seen)


def test_listing_is_stable_while_another_process_works(here: Path) -> None:
    lasting = {f"lasting-{number:05}" for number in range(2000)}
    for name in lasting:
        os.mknod(here / name)
    script = """if 1:
        import os, select, sys
        number = 0
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0)[0]:
            os.mknod(f"other-{number}")
            if number >= 50:
                os.unlink(f"other-{number - 50}")
            number += 1
        """
    other = start(script, cwd=here)
    assert other.stdout
    other.stdout.readline()
    try:
        for _ in range(10):
            seen = os.listdir(here)
            assert len(seen) == len(set(seen))
            assert lasting <= set(seen)
    finally:
        finish(other)


def test_removing_while_listing(here: Path) -> None:
    for number in range(2500):
        os.mknod(here / f"f{number}")
    with os.scandir(here) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(here) == []


def test_seek_in_a_listing(here: Path) -> None:
    for number in range(2000):
        os.mknod(here / f"f{number}")
    directory = Directory(here)
    first = directory.take(700)
    place = directory.tell()
    rest = list(directory)
    assert len(first) + len(rest) == 2002
    assert {*first, *rest} == {b".", b".."} | {f"f{number}".encode() for number in range(2000)}
    directory.seek(place)
    assert list(directory) == rest
    directory.seek(0)
    os.mknod(here / "late")
    assert b"late" in list(directory)
    directory.close()


def test_a_listing_read_in_part_continues(here: Path) -> None:
    names = {f"f{number}" for number in range(1500)}
    for name in names:
        os.mknod(here / name)
    with os.scandir(here) as one, os.scandir(here) as two:
        seen = [next(one).name for _ in range(600)]
        assert {entry.name for entry in two} == names
        seen += [entry.name for entry in one]
    assert sorted(seen) == sorted(names)


def test_deep_paths(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    for _ in range(60):
        os.mkdir("d" * 100)
        os.chdir("d" * 100)
    Path("f").write_text("deep")
    monkeypatch.chdir(here)
    assert "deep" in subprocess.run(["grep", "-r", "deep", "."], cwd=here, capture_output=True, text=True, check=True).stdout
    shell("rm", "-r", here / ("d" * 100))


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_many_names(mounted: Place, count: int) -> None:
    directory = mounted.path / "many"
    os.mkdir(directory)
    descriptor = os.open(directory, os.O_RDONLY)
    expected = {f"name-{number:06}" for number in range(count)}
    for name in expected:
        os.mknod(name, dir_fd=descriptor)
    os.close(descriptor)
    seen = os.listdir(directory)
    assert len(seen) == count
    assert set(seen) == expected
    assert int(shell("sh", "-c", "ls -f | wc -l", cwd=directory)) == count + 2
    if mounted.is_mount:
        mounted.remount()
        assert set(os.listdir(directory)) == expected
