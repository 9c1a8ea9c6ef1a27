"""Tools that nobody changed for us: tar, git, SQLite, pip, rsync, editors."""

import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.packages import django, six
from tests.mount.processes import finish, needs_root, shell, start


def lives(place: Place) -> list[Callable[[], None]]:
    """What a mount must survive before the same check is made again; a plain directory has only the one life."""
    return [place.remount, place.kill9] if place.is_mount else []


@pytest.fixture(scope="module")
def archive() -> Path:
    """A source archive of some thousand files."""
    return django()


@pytest.fixture(scope="module")
def local(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the archive holds, on a local disk."""
    return unpack(archive, tmp_path_factory.mktemp("local"))


def unpack(archive: Path, directory: Path, *options: str) -> Path:
    """Unpack with tar; the archive's top directory."""
    shell("tar", "xzf", archive, "-C", directory, *options)
    (top,) = directory.iterdir()
    return top


def clean_environment(**more: str) -> dict[str, str]:
    """An environment without the user's own settings of git and pip's user directories."""
    names = {
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }
    return {**os.environ, **names, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", **more}


def git(directory: Path, *arguments: str | Path) -> str:
    """Run git, without the housekeeping that it would do on its own and in the background."""
    return shell(
        "git", "-c", "gc.auto=0", "-c", "maintenance.auto=false", *arguments, cwd=directory, environment=clean_environment()
    )


@pytest.mark.slow
def test_an_archive_of_thousands_of_files(mounted: Place, archive: Path, local: Path) -> None:
    top = unpack(archive, mounted.path)
    shell("diff", "-r", local, top)
    assert attributes(top) == attributes(local)
    for again in lives(mounted):
        again()
        shell("diff", "-r", local, top)
        assert attributes(top) == attributes(local)
    shell("rm", "-r", top)
    assert os.listdir(mounted.path) == []


def attributes(top: Path) -> list[str]:
    """Type, mode, size, owner, time and name of all below a directory; sizes of directories are each filesystem's own."""
    files = shell("find", ".", "!", "-type", "d", "-printf", "%y %m %s %U %G %T@ %p\n", cwd=top)
    return sorted(files.splitlines() + shell("find", ".", "-type", "d", "-printf", "d %m %U %G %n %p\n", cwd=top).splitlines())


@pytest.mark.parametrize(
    "part",
    [
        pytest.param((), id="everything", marks=pytest.mark.long),
        pytest.param(("--wildcards", "*/README.rst", "*/django/db/*"), id="part", marks=pytest.mark.over_s3),
    ],
)
def test_git(mounted: Place, archive: Path, part: tuple[str, ...]) -> None:
    top = unpack(archive, mounted.path, "--no-same-owner", *part)
    git(top, "init", "-q", "-b", "main")
    git(top, "add", "-A")
    git(top, "commit", "-q", "-m", "everything")
    (top / "README.rst").write_text("changed\n")
    assert git(top, "status", "--porcelain") == " M README.rst\n"
    git(top, "commit", "-q", "-a", "-m", "a change")
    git(top, "checkout", "-q", "-b", "branch", "HEAD~1")
    git(top, "mv", "README.rst", "README")
    git(top, "commit", "-q", "-m", "a move")
    git(top, "checkout", "-q", "main")
    git(top, "stash", "list")
    check_repository(top)
    git(mounted.path, "clone", "-q", top, mounted.path / "clone")
    git(top, "gc", "-q")
    for again in lives(mounted):
        again()
        check_repository(top)
        check_repository(mounted.path / "clone")
    git(mounted.path / "clone", "pull", "-q")


def check_repository(top: Path) -> None:
    """The repository is whole and the working tree is what was committed."""
    git(top, "fsck", "--full", "--strict")
    assert git(top, "status", "--porcelain") == ""
    assert git(top, "log", "--format=%s") == "a change\neverything\n"


COUNT = """if 1:
    import sqlite3, sys
    database = sqlite3.connect("counter.db", timeout=120, isolation_level=None)
    database.execute("PRAGMA busy_timeout = 120000")
    for number in range(int(sys.argv[1])):
        database.execute("BEGIN IMMEDIATE")
        (value,) = database.execute("SELECT value FROM counter").fetchone()
        database.execute("UPDATE counter SET value = ?", (value + 1,))
        database.execute("INSERT INTO log VALUES (?, randomblob(500))", (value + 1,))
        database.execute("COMMIT")
    database.close()
    """


@pytest.mark.parametrize("mode", [pytest.param("delete", marks=pytest.mark.over_s3), "truncate", "persist", "wal"])
def test_sqlite_with_several_processes(mounted: Place, mode: str) -> None:
    path = mounted.path / "counter.db"
    database = sqlite3.connect(path)
    assert database.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
    with database:
        database.execute("CREATE TABLE counter (value INTEGER)")
        database.execute("CREATE TABLE log (value INTEGER PRIMARY KEY, body BLOB)")
        database.execute("INSERT INTO counter VALUES (0)")
    database.close()
    expected = 0
    for again in [lambda: None, *lives(mounted)]:
        again()
        assert counted(path) == expected
        for process in [start(COUNT, 20, cwd=mounted.path) for _ in range(4)]:
            finish(process)
        expected += 80
        assert counted(path) == expected
    for again in lives(mounted):
        again()
        assert counted(path) == expected


def counted(path: Path) -> int:
    """The counter of a database that is whole."""
    database = sqlite3.connect(path, timeout=60)
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (value,) = database.execute("SELECT value FROM counter").fetchone()
        assert database.execute("SELECT count(*), coalesce(max(value), 0) FROM log").fetchone() == (value, value)
        return int(value)
    finally:
        database.close()


def test_sqlite_rolls_back_what_a_killed_process_left(mounted: Place) -> None:
    script = """if 1:
        import os, signal, sqlite3
        database = sqlite3.connect("db", isolation_level=None)
        database.execute("PRAGMA cache_size = 5")
        database.execute("CREATE TABLE t (body BLOB)")
        database.execute("INSERT INTO t VALUES ('kept')")
        database.execute("BEGIN")
        for _ in range(300):
            database.execute("INSERT INTO t VALUES (randomblob(4000))")
        os.kill(os.getpid(), signal.SIGKILL)
        """
    process = start(script, cwd=mounted.path)
    process.communicate(timeout=120)
    assert process.returncode == -9
    database = sqlite3.connect(mounted.path / "db")
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("SELECT * FROM t").fetchall() == [("kept",)]
    database.close()


@pytest.mark.slow
def test_virtualenv_and_pip(mounted: Place) -> None:
    wheel = six()
    environment = clean_environment(PIP_NO_CACHE_DIR="1", PYTHONNOUSERSITE="1")
    place = mounted.path / "venv"
    shell(sys.executable, "-m", "venv", place)
    shell(place / "bin" / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel, environment=environment)
    use = (place / "bin" / "python", "-c", "import six; print(six.__file__, six.ensure_text(b'works'))")
    assert shell(*use, environment=environment).endswith("six.py works\n")
    for again in lives(mounted):
        again()
        assert shell(*use, environment=environment).startswith(str(place))
    shell(place / "bin" / "python", "-m", "pip", "uninstall", "-y", "six", environment=environment)
    shell(place / "bin" / "python", "-m", "pip", "check", environment=environment)


def test_rsync_transfers_nothing_twice(mounted: Place, local: Path) -> None:
    if not shutil.which("rsync"):
        pytest.skip("rsync is not installed")
    command = ("rsync", "-a", "--checksum", "--itemize-changes", f"{local}/django/", f"{mounted.path}/copy/")
    assert len(shell(*command).splitlines()) > 100
    assert shell(*command) == ""
    for again in lives(mounted):
        again()
        assert shell(*command) == ""
    victim = next(path for path in (mounted.path / "copy").rglob("*.py") if path.stat().st_size > 100)
    victim.write_bytes(b"x" * victim.stat().st_size)
    assert len(shell(*command).splitlines()) == 1
    shell("diff", "-r", local / "django", mounted.path / "copy")


SAVE = """if 1:
    import hashlib, os, random
    for number in range(150):
        body = random.Random(number).randbytes(random.Random(number).choice([10, 5_000, 60_000])).hex()
        with open(".document.tmp", "w") as file:
            file.write(hashlib.sha256(body.encode()).hexdigest() + " " + body)
            file.flush()
            os.fsync(file.fileno())
        os.rename(".document.tmp", "document")
    """

READ = """if 1:
    import hashlib, os, sys, select
    seen = set()
    while not select.select([sys.stdin], [], [], 0)[0]:
        with open("document") as file:
            digest, body = file.read().split(" ")
        assert hashlib.sha256(body.encode()).hexdigest() == digest, "a partial file was seen"
        seen.add(digest)
    print(len(seen))
    """


def test_atomic_saves_are_never_seen_in_part(mounted: Place) -> None:
    finish(start(SAVE.replace("150", "1"), cwd=mounted.path))
    readers = [start(READ, cwd=mounted.path) for _ in range(2)]
    finish(start(SAVE, cwd=mounted.path))
    assert all(int(finish(reader)) >= 1 for reader in readers)
    assert os.listdir(mounted.path) == ["document"]


def test_editors_save_in_place(mounted: Place) -> None:
    """sed -i writes a temporary file and renames it; vi and many others keep a backup by renaming first."""
    path = mounted.path / "document"
    path.write_text("one\ntwo\n")
    for number in range(20):
        shell("sed", "-i", f"s/^two.*/two {number}/", path)
        assert path.read_text() == f"one\ntwo {number}\n"
    os.rename(path, mounted.path / "document~")
    path.write_text("new\n")
    os.unlink(mounted.path / "document~")
    assert os.listdir(mounted.path) == ["document"]


def test_copies(mounted: Place, local: Path, tmp_path: Path) -> None:
    source = local / "django" / "contrib"
    shell("cp", "-a", source, mounted.path / "one")
    assert attributes(mounted.path / "one") == attributes(source)
    shell("cp", "-a", mounted.path / "one", mounted.path / "two")
    shell("cp", "-a", mounted.path / "two", tmp_path / "back")
    for again in [lambda: None, *lives(mounted)]:
        again()
        shell("diff", "-r", source, mounted.path / "two")
        assert attributes(mounted.path / "two") == attributes(source)
    assert attributes(tmp_path / "back") == attributes(source)


def test_moves_across_filesystems(mounted: Place, local: Path, tmp_path: Path) -> None:
    shell("cp", "-a", local / "django" / "forms", tmp_path / "forms")
    shell("mv", tmp_path / "forms", mounted.path / "forms")
    assert not (tmp_path / "forms").exists()
    assert attributes(mounted.path / "forms") == attributes(local / "django" / "forms")
    shell("mv", mounted.path / "forms", tmp_path / "back")
    shell("diff", "-r", local / "django" / "forms", tmp_path / "back")
    assert os.listdir(mounted.path) == []


def test_find_grep_and_du(mounted: Place, local: Path) -> None:
    source = local / "django" / "db"
    shell("cp", "-a", source, mounted.path / "db")
    for command in (
        ("find", ".", "-name", "*.py", "-size", "+4k"),
        ("find", ".", "-type", "d", "-empty"),
        ("grep", "-rlE", "def (save|delete)", "."),
        ("grep", "-rc", "import", "."),
    ):
        assert sorted(shell(*command, cwd=mounted.path / "db").splitlines()) == sorted(shell(*command, cwd=source).splitlines())
    total = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    assert total <= int(shell("du", "-s", "-B1", mounted.path / "db").split()[0]) <= 4 * total


def test_tar_finds_no_difference(mounted: Place, local: Path) -> None:
    source = local / "django" / "conf"
    shell("cp", "-a", source, mounted.path / "conf")
    shell("sh", "-c", f"tar cf - -C {mounted.path} conf | tar df - -C {source.parent}")
    shell("sh", "-c", f"tar cf - -C {source.parent} conf | tar df - -C {mounted.path}")


def test_special_files_in_an_archive(mounted: Place, tmp_path: Path) -> None:
    needs_root()
    source = tmp_path / "source"
    source.mkdir()
    (source / "f").write_bytes(b"x" * 1000)
    os.link(source / "f", source / "hard link")
    os.symlink("f", source / "symbolic link")
    os.mkfifo(source / "pipe")
    os.chmod(source / "f", 0o4750)
    os.chown(source / "f", 61001, 61003)
    with open(source / "sparse", "wb") as file:
        file.truncate(5 << 20)
    shell("sh", "-c", f"tar cSf - --format=posix -C {tmp_path} source | tar xpSf - -C {mounted.path}")
    assert attributes(mounted.path / "source") == attributes(source)
    assert os.path.samefile(mounted.path / "source" / "f", mounted.path / "source" / "hard link")
    assert os.stat(mounted.path / "source" / "sparse").st_blocks * 512 < 1 << 20


def test_compiler(mounted: Place) -> None:
    if not shutil.which("cc"):
        pytest.skip("no C compiler is installed")
    (mounted.path / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n')
    shell("cc", "-o", "hello", "hello.c", cwd=mounted.path)
    assert shell(mounted.path / "hello") == "hello\n"


def test_python_modules_and_their_caches(mounted: Place) -> None:
    (mounted.path / "module.py").write_text("VALUE = 1\n")
    command = (sys.executable, "-c", "import module; print(module.VALUE)")
    environment = clean_environment(PYTHONPATH=str(mounted.path), PYTHONDONTWRITEBYTECODE="")
    assert shell(*command, environment=environment) == "1\n"
    assert re.match(r"module\.cpython-.*\.pyc", os.listdir(mounted.path / "__pycache__")[0])
    assert shell(*command, environment=environment) == "1\n"


def test_flock_between_processes(mounted: Place) -> None:
    """`flock(1)` around a read, a change and a write."""
    (mounted.path / "counter").write_text("0")
    loop = (
        "for i in 1 2 3 4 5 6 7 8 9 10; do flock lock sh -c 'echo $(($(cat counter) + 1)) > next && cat next > counter'; done"
    )
    for process in [
        start(f"import subprocess; subprocess.run(['sh', '-c', {loop!r}], check=True)", cwd=mounted.path) for _ in range(3)
    ]:
        finish(process)
    assert (mounted.path / "counter").read_text().strip() == "30"
