"""Several mounts of one workspace: what one closed another reads, races have one winner, names and open files follow."""

import collections
import errno
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount import shared_work
from tests.mount.conftest import LABELS, Place
from tests.mount.errnos import fails
from tests.mount.lockers import Locker, mapped
from tests.mount.place import Mount, wait_until
from tests.mount.processes import shell
from tests.mount.test_tools import clean_environment, git

SOON_SECONDS = 5
"""Within this a change arrives at other mounts; the kernel alone would keep what it knows for longer."""

Mounts = Callable[..., list[Place]]
Hire = Callable[..., Locker]


def soon(condition: Callable[[], bool], what: str) -> None:
    """Return once a change has arrived."""
    wait_until(condition, what, seconds=SOON_SECONDS)


@pytest.fixture
def pair(shared_mounts: list[Place], request: pytest.FixtureRequest) -> list[Path]:
    """An empty directory, as two mounts see it."""
    name = re.sub(r"\W+", "_", request.node.name)[:100]
    os.mkdir(shared_mounts[0].path / name)
    paths = [place.path / name for place in shared_mounts[:2]]
    soon(paths[1].is_dir, "the directory to appear")
    return paths


def both_ways(pair: list[Path], rounds: int) -> Iterator[tuple[int, Path, Path]]:
    """Numbers, and the two places in turns."""
    for number in range(rounds):
        here, there = pair if number % 2 else pair[::-1]
        yield number, here, there


def same_everywhere(places: list[Place]) -> None:
    """Return once the mounts have applied the same entries."""
    mounts = [place for place in places if isinstance(place, Mount)]
    soon(lambda: len({mount.position() for mount in mounts}) <= 1, "all mounts to be at the same position")


# ---- close, then open


@pytest.mark.parametrize("size", [30, 100_000])
def test_what_one_closed_the_other_reads(pair: list[Path], size: int) -> None:
    for path in (pair[0] / "f", pair[1] / "f"):
        path.write_bytes(b"first")
    for number, here, there in both_ways(pair, 200 if size < 1000 else 40):
        content = f"round {number} ".encode().ljust(size + number % 7, b".")
        (here / "f").write_bytes(content)
        with open(there / "f", "rb") as file:
            assert os.fstat(file.fileno()).st_size == len(content), f"round {number}"
            assert file.read() == content, f"round {number}"


def test_what_one_changed_in_place_the_other_reads(pair: list[Path]) -> None:
    expected = bytearray(200 * 100)
    (pair[0] / "f").write_bytes(expected)
    for number, here, there in both_ways(pair, 200):
        with open(here / "f", "r+b") as file:
            file.seek(number * 100)
            file.write(b"%100d" % number)
        expected[number * 100 : (number + 1) * 100] = b"%100d" % number
        assert (there / "f").read_bytes() == expected, f"round {number}"


def test_what_one_appended_the_other_reads(pair: list[Path]) -> None:
    expected = b""
    (pair[0] / "f").write_bytes(b"")
    for number, here, there in both_ways(pair, 200):
        with open(here / "f", "ab") as file:
            file.write(b"line %d\n" % number)
        expected += b"line %d\n" % number
        assert (there / "f").read_bytes() == expected, f"round {number}"


def test_what_one_cut_the_other_reads(pair: list[Path]) -> None:
    (pair[0] / "f").write_bytes(b"x" * 10_000)
    for number, here, there in both_ways(pair, 100):
        with open(here / "f", "r+b") as file:
            file.truncate(10_000 - 100 * number)
        assert len((there / "f").read_bytes()) == 10_000 - 100 * number
    # truncate(2) has no close that could wait.
    os.truncate(pair[0] / "f", 1)
    soon(lambda: (pair[1] / "f").read_bytes() == b"x", "the cut to arrive")


def test_what_one_replaced_the_other_reads_whole(pair: list[Path]) -> None:
    """A name is pushed, so that the old file may be met for a moment, but never a part of one."""
    (pair[0] / "f").write_bytes(b"0" * 50_000)
    soon((pair[1] / "f").exists, "the file to appear")
    for number, here, there in both_ways(pair, 200):
        old, new = (there / "f").read_bytes(), b"%d " % number * 10_000
        (here / "new").write_bytes(new)
        os.rename(here / "new", here / "f")
        seen: list[bytes] = []
        soon(
            lambda there=there, new=new, seen=seen: (seen.append((there / "f").read_bytes()), seen[-1] == new)[1],
            "the new file",
        )
        assert set(seen) <= {old, new}, f"round {number}"


# ---- names and attributes are pushed


def test_names_appear_move_and_go(pair: list[Path]) -> None:
    for number, here, there in both_ways(pair, 50):
        assert not (there / "f").exists()
        assert os.listdir(there) == []
        (here / "f").write_text(str(number))
        soon((there / "f").exists, "the name to appear")
        assert (os.listdir(there), (there / "f").read_text()) == (["f"], str(number))
        os.rename(here / "f", here / "g")
        soon((there / "g").exists, "the name to move")
        soon(lambda there=there: not (there / "f").exists(), "the old name to go")
        assert os.listdir(there) == ["g"]
        os.unlink(here / "g")
        soon(lambda there=there: not (there / "g").exists(), "the name to go")
        assert os.listdir(there) == []


def test_strict_names_are_exact(mounts: Mounts) -> None:
    """With `-o strict` nothing needs to arrive: every lookup asks."""
    places = mounts(2, "-o", "strict,allow_other" if os.geteuid() == 0 else "strict")
    for number, here, there in both_ways([place.path for place in places], 100):
        assert not (there / "f").exists(), f"round {number}"
        (here / "f").write_text(str(number))
        assert (there / "f").read_text() == str(number)
        os.rename(here / "f", here / "g")
        assert ((there / "f").exists(), (there / "g").exists()) == (False, True), f"round {number}"
        (here / "new").write_text("new")
        os.rename(here / "new", here / "g")
        assert (there / "g").read_text() == "new"
        assert not (there / "new").exists()
        # A removal does not wait for the journal; what waits comes behind it.
        os.unlink(here / "g")
        os.mkdir(here / "d")
        assert os.listdir(there) == ["d"]
        os.rmdir(there / "d")
        assert os.listdir(here) == [], f"round {number}"


def test_directories_and_links_appear_and_go(pair: list[Path]) -> None:
    one, two = pair
    assert not (two / "d" / "e").exists()
    os.makedirs(one / "d" / "e")
    soon((two / "d" / "e").is_dir, "the directories to appear")
    (two / "d" / "e" / "f").write_text("content")
    soon((one / "d" / "e" / "f").exists, "the file to appear")
    with fails(errno.ENOTEMPTY):
        os.rmdir(one / "d" / "e")
    os.symlink("d/e/f", one / "symbolic")
    os.link(one / "d" / "e" / "f", one / "hard")
    soon((two / "hard").exists, "the link to appear")
    soon((two / "symbolic").is_symlink, "the symbolic link to appear")
    assert (two / "symbolic").read_text() == "content"
    soon(lambda: (two / "d" / "e" / "f").stat().st_nlink == 2, "the count of links to rise")
    os.rename(two / "d", two / "moved")
    soon((one / "moved" / "e" / "f").exists, "the directory to move")
    soon(lambda: not (one / "d").exists(), "the directory to move away")
    shell("rm", "-r", one / "moved")
    soon(lambda: sorted(os.listdir(two)) == ["hard", "symbolic"], "the directory to go")
    soon(lambda: (two / "hard").stat().st_nlink == 1, "the count of links to sink")


def test_attributes_arrive(pair: list[Path]) -> None:
    one, two = (path / "f" for path in pair)
    one.write_text("content")
    soon(two.exists, "the file to appear")
    two.stat()
    os.chmod(one, 0o640)
    soon(lambda: two.stat().st_mode & 0o777 == 0o640, "the mode")
    os.utime(one, ns=(1, 2))
    soon(lambda: two.stat().st_mtime_ns == 2, "the time stamp")
    with fails(errno.ENODATA):
        os.getxattr(two, "user.word")
    os.setxattr(one, "user.word", b"value")
    soon(lambda: "user.word" in os.listxattr(two), "the extended attribute")
    assert os.getxattr(two, "user.word") == b"value"
    one.write_text("longer content")
    soon(lambda: two.stat().st_size == 14, "the size")


# ---- open files


def test_an_open_file_follows(pair: list[Path], hire: Hire) -> None:
    """Read, mapped and asked for its size, without being opened again."""
    (pair[0] / "f").write_bytes(b"0".ljust(8192))
    soon((pair[1] / "f").exists, "the file to appear")
    reader = hire(pair[1] / "f", os.O_RDONLY)
    assert reader.do(mapped, reader.descriptor, 8192) == reader.read() == b"0".ljust(8192)
    for number in range(1, 30):
        content = b"%d" % number * 2000
        with open(pair[0] / "f", "r+b") as file:
            file.write(content)
        soon(lambda content=content: reader.read().startswith(content), f"change {number} to be read")
        soon(
            lambda content=content: reader.do(mapped, reader.descriptor, 8192).startswith(content[:8192]),
            f"change {number} to be seen in the mapping",
        )
        with open(pair[0] / "f", "ab") as file:
            file.write(b"tail")
        size = (pair[0] / "f").stat().st_size
        soon(lambda size=size: reader.do(os.fstat, reader.descriptor).st_size == size, "the size to grow")
        assert reader.read().endswith(b"tail")


def test_tail_follows_the_other_mount(pair: list[Path]) -> None:
    (pair[0] / "log").write_bytes(b"line 0\n")
    soon((pair[1] / "log").exists, "the file to appear")
    command = ["tail", "---disable-inotify", "-s", "0.01", "-n", "+1", "-f", str(pair[1] / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        try:
            for number in range(50):
                assert tail.stdout.readline() == f"line {number}\n"
                with open(pair[0] / "log", "a") as file:
                    file.write(f"line {number + 1}\n")
        finally:
            tail.kill()


@pytest.mark.parametrize("how", ["removed", "replaced"])
@pytest.mark.parametrize("size", [100, 3_000_000])
def test_an_open_file_stays_readable_when_it_is_gone_elsewhere(pair: list[Path], hire: Hire, how: str, size: int) -> None:
    one, two = (path / "f" for path in pair)
    content = os.urandom(size)
    one.write_bytes(content)
    soon(two.exists, "the file to appear")
    reader = hire(two)
    if how == "removed":
        os.unlink(one)
        soon(lambda: not two.exists(), "the file to go")
    else:
        (pair[0] / "new").write_bytes(b"new")
        os.rename(pair[0] / "new", one)
        soon(lambda: two.read_bytes() == b"new", "the file to be replaced")
    read = b"".join(reader.do(os.pread, reader.descriptor, 1 << 20, offset) for offset in range(0, size, 1 << 20))
    assert read == content
    soon(lambda: reader.do(os.fstat, reader.descriptor).st_nlink == 0, "the count of links to sink")
    reader.close()
    assert os.listdir(pair[1]) == (["f"] if how == "replaced" else [])


def test_an_open_file_can_be_written_when_it_is_gone_elsewhere(pair: list[Path], hire: Hire) -> None:
    one, two = (path / "f" for path in pair)
    one.write_bytes(b"content")
    soon(two.exists, "the file to appear")
    writer = hire(two)
    os.unlink(one)
    soon(lambda: not two.exists(), "the file to go")
    writer.write(b"C", 0)
    writer.do(os.fsync, writer.descriptor)
    writer.do(os.ftruncate, writer.descriptor, 4)
    assert writer.read() == b"Cont"
    writer.close()
    assert [os.listdir(path) for path in pair] == [[], []]


def test_a_removed_file_stays_readable_through_restarts_of_the_remover(mounts: Mounts, hire: Hire) -> None:
    here, there = mounts(2)
    content = os.urandom(500_000)
    (here.path / "f").write_bytes(content)
    soon((there.path / "f").exists, "the file to appear")
    reader = hire(there.path / "f", os.O_RDONLY)
    os.unlink(here.path / "f")
    here.remount()
    assert reader.read() == content
    reader.close()
    assert [os.listdir(place.path) for place in (here, there)] == [[], []]


# ---- decisions are exact


@pytest.mark.parametrize(
    ("race", "rounds"), [(shared_work.create, 1000), (os.mkdir, 200), (shared_work.link, 200), (shared_work.symlink, 200)]
)
def test_a_race_has_one_winner(pair: list[Path], hire: Hire, race: Callable[[str], None], rounds: int) -> None:
    (pair[0] / "source").write_bytes(b"")
    soon((pair[1] / "source").exists, "the file to appear")
    racers = [hire(path / "source") for path in pair]
    wins: collections.Counter[int] = collections.Counter()
    for number in range(rounds):
        for racer in racers if number % 2 else racers[::-1]:
            racer.begin(race, str(racer.path.with_name(f"n{number}")))
        winners = [racer.pid for racer in racers if won(racer)]
        assert len(winners) == 1, f"{len(winners)} winners in round {number}"
        wins.update(winners)
    assert len(wins) == 2, f"one mount won every round: {wins}"
    for path in pair:
        soon(lambda path=path: len(os.listdir(path)) == rounds + 1, "all names to be listed")


def won(racer: Locker) -> bool:
    """Whether the racer made the name; the others must be told that it exists."""
    try:
        racer.end()
    except FileExistsError:
        return False
    return True


def test_a_directory_that_is_filled_elsewhere_is_not_removed(pair: list[Path], hire: Hire) -> None:
    (pair[0] / "f").write_bytes(b"")
    soon((pair[1] / "f").exists, "the file to appear")
    remover, creator = (hire(path / "f") for path in pair)
    for number in range(100):
        os.mkdir(pair[0] / f"d{number}")
        soon((pair[1] / f"d{number}").is_dir, "the directory to appear")
        remover.begin(os.rmdir, str(pair[0] / f"d{number}"))
        creator.begin(shared_work.create, str(pair[1] / f"d{number}" / "f"))
        outcomes = [outcome(remover), outcome(creator)]
        assert outcomes in (["", "FileNotFoundError"], ["OSError", ""]), f"round {number}: {outcomes}"
        soon(lambda number=number: len({(path / f"d{number}").exists() for path in pair}) == 1, "both to agree")


def outcome(process: Locker) -> str:
    """What the process's call raised."""
    try:
        process.end()
    except OSError as error:
        return type(error).__name__
    return ""


def test_a_storm_of_renames(pair: list[Path], hire: Hire, shared_mounts: list[Place]) -> None:
    for number in range(20):
        (pair[0] / str(number)).write_text(f"file {number}")
    soon(lambda: len(os.listdir(pair[1])) == 20, "the files to appear")
    stormers = [hire(path / "0") for path in (*pair, pair[0])]
    for seed, stormer in enumerate(stormers):
        stormer.begin(shared_work.rename_about, str(stormer.path.parent), seed, 300, 20)
    assert all(stormer.end() > 0 for stormer in stormers)
    same_everywhere(shared_mounts)
    views = [{path.name: path.read_text() for path in directory.iterdir()} for directory in pair]
    assert views[0] == views[1]
    assert len(set(views[0].values())) == len(views[0]) > 0, "a file is under two names"


# ---- writers without locks


@pytest.mark.parametrize(("records", "reopen"), [(5000, False), (300, True)], ids=["kept open", "closed each time"])
def test_records_appended_on_two_mounts_are_whole(pair: list[Path], hire: Hire, records: int, reopen: bool) -> None:
    (pair[0] / "log").write_bytes(b"")
    soon((pair[1] / "log").exists, "the file to appear")
    writers = [hire(path / "log") for path in pair]
    for name, writer in zip("ab", writers, strict=True):
        writer.begin(shared_work.append, str(writer.path), name, records, reopen=reopen)
    for writer in writers:
        writer.end(120)
    lines = (pair[0] / "log").read_text().splitlines()
    assert (pair[1] / "log").read_text().splitlines() == lines
    seen: dict[str, list[int]] = {"a": [], "b": []}
    for line in lines:
        match = re.fullmatch(r"([ab]) (\d+) (x*) end", line)
        assert match, f"a torn record: {line!r}"
        number = int(match[2])
        assert len(match[3]) == number * 37 % 150
        seen[match[1]].append(number)
    assert seen == {"a": list(range(records)), "b": list(range(records))}


def test_pieces_written_on_two_mounts_are_all_there(pair: list[Path], hire: Hire) -> None:
    pieces, size = 200, 4000
    (pair[0] / "f").write_bytes(b"")
    soon((pair[1] / "f").exists, "the file to appear")
    writers = [hire(path / "f") for path in pair]
    for index, writer in enumerate(writers):
        writer.begin(shared_work.write_pieces, str(writer.path), index, 2, pieces, size)
    for writer in writers:
        writer.end()
    expected = b"".join(bytes([number % 256]) * size for number in range(pieces))
    for path in pair:
        assert (path / "f").read_bytes() == expected


def test_an_overwritten_version_is_in_the_history(mounts: Mounts) -> None:
    one, two = mounts(2)
    one.needs("ask for the history")
    with open(one.path / "f", "w") as first:
        first.write("first")
        first.flush()
        soon((two.path / "f").exists, "the file to appear")
        (two.path / "f").write_text("second, longer")
    rows = two.versions(two.path / "f")
    assert {row["writer"] for row in rows} == set(LABELS[:2])
    assert (one.path / "f").read_text() == (two.path / "f").read_text() == "first" + "second, longer"[5:]


# ---- tools


@pytest.mark.parametrize(
    "work",
    [shared_work.count_with_filelock, shared_work.count_with_soft_filelock, shared_work.count_with_portalocker],
)
def test_lock_packages(pair: list[Path], hire: Hire, work: Callable[[str, int], None]) -> None:
    (pair[0] / "counter").write_text("0")
    soon((pair[1] / "counter").exists, "the file to appear")
    workers = [hire(path / "counter") for path in pair for _ in range(2)]
    for worker in workers:
        worker.begin(work, str(worker.path), 50)
    for worker in workers:
        worker.end(120)
    assert [(path / "counter").read_text() for path in pair] == ["200", "200"]


def test_flock_in_shell_scripts(pair: list[Path]) -> None:
    """The number is written to another file, which is closed before the lock is released."""
    (pair[0] / "counter").write_text("0")
    soon((pair[1] / "counter").exists, "the file to appear")
    step = "echo $(($(cat counter) + 1)) > counter"
    loop = f"for i in $(seq 40); do flock lock sh -c '{step}' || exit 1; done"
    scripts = [subprocess.Popen(["sh", "-c", loop], cwd=path) for path in pair for _ in range(2)]
    assert [script.wait(timeout=120) for script in scripts] == [0] * 4
    assert [(path / "counter").read_text() for path in pair] == ["160\n"] * 2


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist"])
def test_sqlite(pair: list[Path], hire: Hire, mode: str) -> None:
    database = sqlite3.connect(pair[0] / "db")
    assert database.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
    with database:
        database.execute("CREATE TABLE counter (value INTEGER)")
        database.execute("CREATE TABLE log (value INTEGER PRIMARY KEY, body BLOB)")
        database.execute("INSERT INTO counter VALUES (0)")
    database.close()
    soon((pair[1] / "db").exists, "the database to appear")
    workers = [hire(path / "db") for path in pair for _ in range(2)]
    for worker in workers:
        worker.begin(shared_work.count_in_database, str(worker.path), 25)
    for worker in workers:
        worker.end(200)
    for path in pair:
        database = sqlite3.connect(path / "db", timeout=60)
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT value, (SELECT count(*) FROM log) FROM counter").fetchone() == (100, 100)
        database.close()


@pytest.mark.slow
def test_git_used_alternately(pair: list[Path], shared_mounts: list[Place]) -> None:
    git(pair[0], "init", "-q", "-b", "main", ".")
    for number, here, _ in both_ways(pair, 12):
        same_everywhere(shared_mounts)
        assert git(here, "status", "--porcelain") == ""
        (here / f"file{number % 5}").write_text(f"content {number}")
        git(here, "add", "-A")
        git(here, "commit", "-q", "-m", f"commit {number}")
        if number % 4 == 3:
            git(here, "checkout", "-q", "-b", f"branch{number}", "HEAD~1")
            git(here, "checkout", "-q", "main")
        if number == 7:
            git(here, "gc", "-q")
    same_everywhere(shared_mounts)
    for path in pair:
        git(path, "fsck", "--full", "--strict")
        assert git(path, "status", "--porcelain") == ""
        assert git(path, "log", "--format=%s").splitlines() == [f"commit {number}" for number in range(11, -1, -1)]


def test_git_lets_one_of_two_commit_at_a_time(pair: list[Path]) -> None:
    """`index.lock` and the locks of references are files that only one can create."""
    git(pair[0], "init", "-q", "-b", "main", ".")
    git(pair[0], "commit", "-q", "--allow-empty", "-m", "first")
    soon((pair[1] / ".git" / "HEAD").exists, "the repository to appear")
    loop = "for i in $(seq 20); do until git -c gc.auto=0 commit -q --allow-empty -m $0$i 2>/dev/null; do :; done; done"
    scripts = [
        subprocess.Popen(["sh", "-c", loop, name], cwd=path, env=clean_environment())
        for name, path in zip("ab", pair, strict=True)
    ]
    assert [script.wait(timeout=120) for script in scripts] == [0, 0]
    subjects = git(pair[0], "log", "--format=%s").split()
    assert sorted(subjects) == sorted(["first", *(f"{name}{number}" for name in "ab" for number in range(1, 21))])
    git(pair[1], "fsck", "--full", "--strict")


def test_everything_is_consistent_when_three_mounts_are_done(mounts: Mounts, hire: Hire) -> None:
    """Each mount unpacks a tree of its own and changes the others'; the check of the workspace finds nothing."""
    places = mounts(3)
    first = places[0]
    first.needs("check")
    (first.path / "f").write_bytes(b"")
    for place in places:
        soon((place.path / "f").exists, "the file to appear")
    writers = [hire(place.path / "f") for place in places]
    for number, writer in enumerate(writers):
        writer.begin(shared_work.append, str(writer.path), str(number), 500, reopen=False)
    for writer in writers:
        writer.end()
        writer.close()
    contents = {(place.path / "f").read_bytes() for place in places}
    assert [content.count(b"end\n") for content in contents] == [1500]
    for place in places:
        place.umount()
    checked = first.fsck()
    assert checked.returncode == 0, checked.stdout + checked.stderr
    first.mount_again()
    assert {(first.path / "f").read_bytes()} == contents
