"""The commands around a mount: what they print, what they refuse, and that a refusal leaves nothing half-done."""

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.errnos import fails
from tests.mount.place import COMMAND, NAME, WAIT_SECONDS, Cli, Mount, mounts_under, wait_until
from tests.mount.processes import needs_root, shell

NOBODY = 65534


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The command failed with one clear line that has those words."""
    assert done.returncode not in (0, 70), done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr, done.stderr


def try_mount(place: Mount, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `agentfs mount`, which should be refused."""
    return place.cli.run("mount", *arguments, "--root", place.cli.root, "--cache-dir", place.cache)


def everything_below(directory: Path) -> list[str]:
    """The names of all files below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_mount_of_an_unknown_workspace(unmounted: Mount) -> None:
    refused(try_mount(unmounted, "nowhere", unmounted.path), "nowhere")
    assert not unmounted.cli.root.exists() or everything_below(unmounted.cli.root) == []
    assert mounts_under(unmounted.path) == []


@pytest.mark.parametrize("kind", ["missing", "file", "full", "link to nothing"])
def test_mount_on_a_bad_mountpoint(unmounted: Mount, kind: str) -> None:
    unmounted.create()
    target = unmounted.base / "target"
    if kind == "file":
        target.touch()
    elif kind == "full":
        target.mkdir()
        (target / "precious").touch()
    elif kind == "link to nothing":
        target.symlink_to("nothing")
    refused(try_mount(unmounted, NAME, target), "nothing" if kind == "link to nothing" else "target")
    assert mounts_under(unmounted.base) == []
    assert kind != "full" or os.listdir(target) == ["precious"]


def test_mount_twice(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "f").write_bytes(b"x")
    refused(try_mount(unmounted, NAME, unmounted.path), str(unmounted.path))
    assert (unmounted.path / "f").read_bytes() == b"x"
    assert len(mounts_under(unmounted.path)) == 1


def test_create_twice(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "f").write_bytes(b"x")
    before = everything_below(unmounted.cli.root)
    refused(unmounted.cli.run("create", NAME, "--root", unmounted.cli.root), NAME)
    assert [name for name in everything_below(unmounted.cli.root) if name not in before] == []
    assert (unmounted.path / "f").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", "a b", "a\nb", "-x", ".hidden", "x" * 300, "ü", "a\x1bb"])
def test_create_with_a_bad_name(unmounted: Mount, name: str) -> None:
    before = everything_below(unmounted.base)
    refused(unmounted.cli.run("create", "--root", unmounted.cli.root, "--", name))
    assert [path for path in everything_below(unmounted.base) if path not in before and path != "root"] == []


def test_create_where_nothing_can_be_written(unmounted: Mount) -> None:
    (unmounted.base / "file").touch()
    refused(unmounted.cli.run("create", NAME, "--root", unmounted.base / "file"), "file")


def test_create_with_a_replica_of_another_workspace(unmounted: Mount) -> None:
    replica = unmounted.base / "replica"
    unmounted.create("--replica", str(replica))
    before = everything_below(replica)
    refused(unmounted.cli.run("create", "second", "--root", unmounted.cli.root, "--replica", replica), "replica")
    assert everything_below(replica) == before
    refused(try_mount(unmounted, "second", unmounted.path))
    unmounted.mount()


def test_create_with_the_same_replica_twice(unmounted: Mount) -> None:
    replica = unmounted.base / "replica"
    refused(unmounted.cli.run("create", NAME, "--root", unmounted.cli.root, "--replica", replica, "--replica", replica))
    refused(try_mount(unmounted, NAME, unmounted.path))


def test_mount_with_replicas_swapped_for_anothers(unmounted: Mount) -> None:
    first, second = unmounted.base / "first", unmounted.base / "second"
    unmounted.create("--replica", str(first))
    unmounted.cli.check("create", "other", "--root", unmounted.cli.root, "--replica", second)
    shutil.rmtree(first)
    shutil.copytree(second, first)
    refused(try_mount(unmounted, NAME, unmounted.path), "first")


@pytest.mark.parametrize("command", ["mount", "fsck"])
@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "newer", "missing"])
@pytest.mark.parametrize("which", ["workspace.toml", "journal.sqlite"])
def test_unreadable_parts(unmounted: Mount, which: str, damage: str, command: str) -> None:
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "f").write_bytes(b"x" * 10_000)
    unmounted.umount()
    path = unmounted.cli.root / NAME / which
    spoil(path, damage)
    shutil.rmtree(unmounted.cache)
    unmounted.cache.mkdir()
    if command == "mount":
        refused(try_mount(unmounted, NAME, unmounted.path))
    else:
        done = unmounted.fsck()
        assert done.returncode not in (0, 70), done
        assert "Traceback" not in done.stderr
    assert mounts_under(unmounted.path) == []


def spoil(path: Path, damage: str) -> None:
    """Make a part of a workspace unreadable."""
    if damage == "garbage":
        path.write_bytes(b"\x00\xff garbage " * 1000)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    elif damage == "missing":
        path.unlink()
    elif path.suffix == ".toml":
        path.write_text(path.read_text().replace("format = 3", "format = 99"))
    else:
        make_newer(path)


def make_newer(path: Path) -> None:
    """Raise the format number of every entry in a journal: the byte behind the magic."""
    with sqlite3.connect(path) as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        changed = 0
        for table in tables:
            for column in [row[1] for row in database.execute(f"PRAGMA table_info({table})")]:
                newer = f"CAST(substr({column}, 1, 3) || x'63' || substr({column}, 5) AS BLOB)"
                condition = f"typeof({column}) = 'blob' AND substr({column}, 1, 3) = x'414645'"
                changed += database.execute(f"UPDATE {table} SET {column} = {newer} WHERE {condition}").rowcount
    database.close()
    assert changed, "no entries were found"


@pytest.mark.parametrize(
    "arguments",
    [
        ("mount", NAME),
        ("mount", NAME, "a", "b"),
        ("mount", NAME, ".", "--durability", "never"),
        ("mount", NAME, ".", "-o", "nonsense=1"),
        ("mount", NAME, ".", "-o", "uid=abc"),
        ("mount", NAME, ".", "-o", "umask=999"),
        ("mount", NAME, ".", "-o", "lease_ttl=0.5"),
        ("mount", NAME, ".", "--lease-ttl", "3601"),
        ("mount", NAME, ".", "--staleness", "soon"),
        ("mount", NAME, ".", "--nonsense"),
        ("create",),
        ("mount", NAME, ".", "--timeout", "0"),
        ("mount", NAME, ".", "--cache-size", "1K"),
        ("mount", NAME, ".", "-o", "unreachable=never"),
        ("create", "x", "--replication", "some"),
        ("create", "x", "--write-quorum", "1"),
        ("create", "x", "--replication", "quorum", "--write-quorum", "3"),
        ("create", "x", "--replica", "s3://key:secret@bucket/x"),
        ("create", "x", "--replica", "https://example.com/x"),
        ("create", "x", "--replica", "s3://bucket/a", "--replica", "s3://bucket/a/b"),
        ("replicas", "list", "nowhere"),
        ("replicas", "add"),
        ("replicas", "remove", "one"),
        ("replicas", "scrub", "nowhere"),
        ("status", "/nonexistent"),
        ("status", "/"),
        ("locks", "/nonexistent"),
        ("locks", "/"),
        ("locks", "break"),
        ("locks", "break", "/etc/passwd"),
        ("log", "/nonexistent"),
        ("log", "/etc/passwd"),
        ("umount", "/nonexistent"),
        ("fsck", "nowhere"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_bad_arguments(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    if os.environ.get("AGENTFS_TEST_DIR"):
        pytest.skip("AGENTFS_TEST_DIR is a plain directory: no commands")
    refused(Cli(tmp_path).run(*arguments))
    assert mounts_under(tmp_path) == []


COMMANDS = (
    *("", "create", "mount", "umount", "unmount", "status", "replicas", "warm", "cache"),
    *("locks", "log", "events", "doctor", "fsck"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(tmp_path: Path, command: str) -> None:
    if os.environ.get("AGENTFS_TEST_DIR"):
        pytest.skip("AGENTFS_TEST_DIR is a plain directory: no commands")
    shown = Cli(tmp_path).check(*([command] if command else []), "--help")
    assert shown.startswith("Usage: agentfs")


def test_umount_of_what_is_not_mounted(unmounted: Mount) -> None:
    refused(unmounted.cli.run("umount", unmounted.path), str(unmounted.path))


def test_unmount_is_umount(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    unmounted.cli.check("unmount", unmounted.path, "--timeout", "60")
    unmounted.wait_gone()
    assert mounts_under(unmounted.path) == []


def test_umount_of_a_busy_mount_says_so(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    with open(unmounted.path / "f", "wb") as file:
        file.write(b"x")
        done = unmounted.cli.run("umount", unmounted.path, "--timeout", "5")
        refused(done, str(unmounted.path))
        file.write(b"y")
    assert (unmounted.path / "f").read_bytes() == b"xy"


def test_umount_of_a_dead_mount(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    unmounted.kill9(remount=False)
    unmounted.cli.run("umount", unmounted.path)
    assert mounts_under(unmounted.path) == []


def listed(place: Mount) -> list[tuple[str, int]]:
    """What `agentfs mount` says of the mounts of this test; the machine may have others."""
    rows = [json.loads(line) for line in place.cli.check("mount", "--json").splitlines()]
    return [(row["mountpoint"], row["pid"]) for row in rows if row["mountpoint"].startswith(str(place.base))]


def test_bare_mount_lists(unmounted: Mount) -> None:
    unmounted.create()
    assert listed(unmounted) == []
    unmounted.mount()
    assert listed(unmounted) == [(str(unmounted.path), unmounted.pid)]
    assert str(unmounted.path) in unmounted.cli.check("mount")


def test_the_list_does_not_hang_on_a_daemon_that_is_stopped(unmounted: Mount) -> None:
    """Nor for a user who cannot see the mount's record, and so not ask its daemon."""
    unmounted.create()
    unmounted.mount()
    stranger = Cli(unmounted.base / "stranger")
    os.kill(unmounted.pid, signal.SIGSTOP)
    try:
        rows = [json.loads(line) for line in stranger.check("mount", "--json", timeout=WAIT_SECONDS).splitlines()]
    finally:
        os.kill(unmounted.pid, signal.SIGCONT)
    assert [row["state"] for row in rows if row["mountpoint"] == str(unmounted.path)] == ["up"]


def test_status(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount("--label", "tester")
    (unmounted.path / "f").write_bytes(b"x" * 50_000)
    status = unmounted.status()
    assert (status["name"], status["durability"], status["replication"]) == (NAME, "close", "sync")
    assert status["dirty_bytes"] == 0
    assert status["position"] > 0
    assert [(session["pid"], session["label"], session["this"]) for session in status["sessions"]] == [
        (unmounted.pid, "tester", True)
    ]
    assert [(replica["state"], replica["missing_segments"]) for replica in status["replicas"]] == [("up", 0), ("up", 0)]
    assert NAME in unmounted.cli.check("status", unmounted.path)
    # Other mounts of this machine are in it, and one of them may just be dead.
    assert NAME in unmounted.cli.run("status").stdout


def test_log(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount("--label", "tester")
    path = unmounted.path / "f"
    for size in (1, 20, 40_000):
        path.write_bytes(b"x" * size)
    versions = unmounted.versions(path)
    for row in versions:
        assert {"version", "time_ns", "size_bytes", "writer", "position"} <= set(row)
    numbers = sorted(row["version"] for row in versions)
    assert numbers == sorted(set(numbers))
    newest = max(versions, key=lambda row: row["version"])
    assert (newest["size_bytes"], newest["writer"]) == (40_000, "tester")
    assert {1, 20, 40_000} <= {row["size_bytes"] for row in versions}
    assert newest["version"] == int(os.getxattr(path, "user.agentfs.version"))
    assert newest["position"] == int(os.getxattr(path, "user.agentfs.commit"))
    assert "tester" in unmounted.cli.check("log", path)


def test_plain_umount(unmounted: Mount) -> None:
    needs_root()
    unmounted.create("--durability", "fsync")
    unmounted.mount()
    (unmounted.path / "f").write_bytes(b"x" * 100_000)
    shell("umount", unmounted.path)
    unmounted.wait_gone()
    unmounted.mount()
    assert (unmounted.path / "f").read_bytes() == b"x" * 100_000


def test_terminated_daemon_unmounts(unmounted: Mount) -> None:
    unmounted.create("--durability", "fsync")
    unmounted.mount()
    (unmounted.path / "f").write_bytes(b"x" * 100_000)
    os.kill(unmounted.pid, 15)
    unmounted.wait_gone()
    assert mounts_under(unmounted.path) == []
    unmounted.mount()
    assert (unmounted.path / "f").read_bytes() == b"x" * 100_000


def test_foreground(unmounted: Mount) -> None:
    unmounted.create()
    command = [*COMMAND, "mount", NAME, str(unmounted.path), "-f", "--json"]
    where = ["--root", str(unmounted.cli.root), "--cache-dir", str(unmounted.cache)]
    process = subprocess.Popen([*command, *where], env=unmounted.cli.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert json.loads(process.stdout.readline())["pid"] == process.pid
        (unmounted.path / "f").write_bytes(b"x")
        unmounted.cli.check("umount", unmounted.path)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()


def test_read_only(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "f").write_bytes(b"x")
    unmounted.umount()
    unmounted.mount("-o", "ro")
    assert (unmounted.path / "f").read_bytes() == b"x"
    attempts = (
        lambda: (unmounted.path / "f").write_bytes(b"y"),
        lambda: (unmounted.path / "g").touch(),
        lambda: os.unlink(unmounted.path / "f"),
        lambda: os.mkdir(unmounted.path / "d"),
        lambda: os.chmod(unmounted.path / "f", 0o600),
        lambda: os.setxattr(unmounted.path / "f", "user.x", b"1"),
        lambda: os.rename(unmounted.path / "f", unmounted.path / "g"),
    )
    for attempt in attempts:
        with fails(errno.EROFS):
            attempt()


def test_owner_and_umask_options(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount("-o", "uid=61001,gid=61003,umask=027")
    (unmounted.path / "f").touch()
    os.mkdir(unmounted.path / "d")
    status = os.stat(unmounted.path / "f")
    assert (status.st_uid, status.st_gid) == (61001, 61003)
    assert status.st_mode & 0o027 == 0
    assert os.stat(unmounted.path / "d").st_mode & 0o777 == 0o750


def test_mount_by_path(unmounted: Mount) -> None:
    unmounted.create()
    answer = json.loads(
        unmounted.cli.check("mount", unmounted.cli.root / NAME, unmounted.path, "--cache-dir", unmounted.cache, "--json")
    )
    assert answer["mountpoint"] == str(unmounted.path)
    unmounted.cli.check("umount", unmounted.path)


def test_mount_shows_in_the_kernels_list(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    row = next(line for line in lines if line[1] == str(unmounted.path))
    assert row[2] == "fuse.agentfs"
    assert NAME in row[0]


def test_mount_with_mount_8(unmounted: Mount) -> None:
    needs_root()
    if not shutil.which("mount.agentfs", path="/sbin:/usr/sbin"):
        pytest.skip("mount.agentfs is not installed in /sbin")
    unmounted.create()
    workspace = unmounted.cli.root / NAME
    done = subprocess.run(
        ["mount", "-t", "agentfs", "-o", "rw,noatime", workspace, unmounted.path],
        env=unmounted.cli.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    try:
        (unmounted.path / "f").write_bytes(b"x")
        assert len(mounts_under(unmounted.path)) == 1
    finally:
        shell("umount", unmounted.path)


def as_nobody() -> tuple[str, ...]:
    """The command prefix that makes an ordinary user of a process."""
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")
    plain = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    if subprocess.run([*plain, sys.executable, "-c", "import agentfs"], capture_output=True, check=False).returncode:
        pytest.skip("the Python interpreter or the package is where an ordinary user cannot read it")
    return plain


def test_an_ordinary_user_mounts(unmounted: Mount) -> None:
    needs_root()
    if not shutil.which("fusermount3"):
        pytest.skip("fusermount3 is not installed")
    prefix = as_nobody()
    for parent in unmounted.base.parents[:3]:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o711)
    shell("chown", "-R", str(NOBODY), unmounted.base)
    where = ("--root", unmounted.cli.root)
    made = unmounted.cli.run("create", NAME, *where, prefix=prefix)
    assert made.returncode == 0, made.stderr
    done = unmounted.cli.run("mount", NAME, unmounted.path, *where, "--cache-dir", unmounted.cache, "--json", prefix=prefix)
    if done.returncode and "/dev/fuse" in done.stderr:
        pytest.skip(f"this machine does not let ordinary users mount: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    try:
        script = f"cd {unmounted.path} && echo mine > f && test $(cat f) = mine && mkdir d && stat -c %u f"
        assert shell(*prefix, "sh", "-c", script).strip() == str(NOBODY)
        with fails(errno.EACCES):
            os.listdir(unmounted.path)
    finally:
        gone = unmounted.cli.run("umount", unmounted.path, prefix=prefix)
    assert gone.returncode == 0, gone.stderr
    assert mounts_under(unmounted.path) == []


def test_a_workspace_is_mounted_twice_with_one_cache_directory(unmounted: Mount) -> None:
    """Each mount is a session of its own; one that is killed is not in the way of the other, nor of the next."""
    unmounted.create()
    unmounted.mount()
    other = unmounted.base / "other"
    other.mkdir()
    where = ("--root", unmounted.cli.root, "--cache-dir", unmounted.cache)
    pid = json.loads(unmounted.cli.check("mount", NAME, other, *where, "--json"))["pid"]
    try:
        sessions = {row["pid"]: row["this"] for row in json.loads(unmounted.cli.check("status", other, "--json"))["sessions"]}
        assert sessions == {unmounted.pid: False, pid: True}
        (unmounted.path / "f").write_bytes(b"one")
        (other / "g").write_bytes(b"other")
        unmounted.kill9()
        assert (unmounted.path / "f").read_bytes() == b"one"
        assert (unmounted.path / "g").read_bytes() == b"other"
    finally:
        unmounted.cli.check("umount", other)
    assert mounts_under(unmounted.base) == [str(unmounted.path)]


def test_mounting_right_after_umount_8(unmounted: Mount) -> None:
    """The daemon of the mount before still saves, and must not take the new mount away when it ends."""
    needs_root()
    unmounted.create("--durability", "fsync")
    unmounted.mount()
    with silent_journal(unmounted):
        (unmounted.path / "f").write_bytes(b"saved late")
        shell("umount", unmounted.path)
        os.kill(unmounted.pid, signal.SIGSTOP)
    where = ("--root", str(unmounted.cli.root), "--cache-dir", str(unmounted.cache))
    command = [*COMMAND, "mount", NAME, str(unmounted.path), *where]
    with subprocess.Popen(command, env=unmounted.cli.environment, stdout=subprocess.DEVNULL) as mounting:
        wait_until(
            lambda: "waiting for the daemon" in unmounted.log_tail() or mounting.poll() is not None,
            "the second daemon",
        )
        os.kill(unmounted.pid, signal.SIGCONT)
        unmounted.wait_gone()
        assert mounting.wait(timeout=WAIT_SECONDS) == 0
    try:
        assert (unmounted.path / "f").read_bytes() == b"saved late"
        assert unmounted.status()["name"] == NAME
    finally:
        unmounted.cli.check("umount", unmounted.path)
    assert mounts_under(unmounted.path) == []


@contextmanager
def silent_journal(place: Mount) -> Iterator[None]:
    """Nothing can be appended to the workspace's journal meanwhile."""
    database = sqlite3.connect(place.cli.root / NAME / "journal.sqlite", isolation_level=None)
    try:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")
    finally:
        database.close()


def test_everything_works_below_a_path_with_odd_characters(unmounted: Mount) -> None:
    odd = unmounted.base / "a b,c\\d'ü"
    odd.mkdir()
    unmounted.create()
    unmounted.path = odd
    unmounted.mount()
    (odd / "f").write_bytes(b"x")
    assert (odd / "f").read_bytes() == b"x"
    unmounted.remount()
    assert (odd / "f").read_bytes() == b"x"


def test_a_new_workspace_is_empty(mounted: Place) -> None:
    assert os.listdir(mounted.path) == []
