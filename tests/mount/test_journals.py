"""Workspaces whose journal hosts share: mounted by name where they were made, and elsewhere by the journal's URL alone."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mount.conftest import plain_directory
from tests.mount.errnos import fails
from tests.mount.lockers import Locker
from tests.mount.place import NAME, REPOSITORY, Mount, mounts_under, wait_until
from tests.mount.processes import needs_root
from tests.postgres_server import shared_server

BIG = os.urandom(300_000)
"""Too big to travel in the journal."""


class Shared:
    """A workspace in a journal that hosts share. `first` is the host that made it; the others know `url` and nothing else."""

    def __init__(self, base: Path, journal: str, replicas: list[str]) -> None:
        self._base = base
        self._hosts: list[Mount] = []
        self._stack = ExitStack()
        self.first = self._host()
        options = [word for replica in replicas for word in ("--replica", replica)]
        made = self.first.cli.check("create", NAME, "--root", self.first.cli.root, "--journal", journal, *options, "--json")
        self.url = str(json.loads(made)["journal"])

    def elsewhere(self) -> Mount:
        """A mount, not mounted yet, on what is as good as another host."""
        host = self._host()
        host.source = self.url
        return host

    def discard(self) -> None:
        """Leave nothing behind."""
        self._stack.close()

    def _host(self) -> Mount:
        base = self._base / f"host-{len(self._hosts)}"
        base.mkdir()
        host = Mount(base, label=base.name)
        # Commands that have no --root find the workspace by name all the same.
        host.cli.environment["AGENTFS_ROOT"] = str(host.cli.root)
        self._stack.callback(host.discard)
        self._hosts.append(host)
        return host


@pytest.fixture(params=["postgres", "s3"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A workspace of the test's own, mounted nowhere."""
    if plain_directory():
        pytest.skip("AGENTFS_TEST_DIR is a plain directory: it has no journal")
    # The path of a socket is to be in it, and must be short.
    place = tmp_path_factory.mktemp("j")
    if request.param == "s3":
        [region] = request.getfixturevalue("regions")(1)
        made = Shared(place, region.url("agents/demo"), [])
    else:
        server = shared_server()
        made = Shared(place, server.url(server.new_database()), [str(place / "disk-1"), str(place / "disk-2")])
    yield made
    made.discard()


def wait_for(path: Path, content: bytes) -> None:
    """Return once a file that another mount writes has this content here."""
    wait_until(lambda: path.exists() and path.read_bytes() == content, f"{path} to be what was written elsewhere")


def test_two_hosts_work_on_one_tree(shared: Shared) -> None:
    a, b = shared.first, shared.elsewhere()
    a.mount()
    (a.path / "small").write_bytes(b"small")
    (a.path / "big").write_bytes(BIG)
    b.mount()
    # Whoever mounts sees all that was closed before.
    assert sorted(os.listdir(b.path)) == ["big", "small"]
    assert ((b.path / "small").read_bytes(), (b.path / "big").read_bytes()) == (b"small", BIG)
    (b.path / "answer").write_bytes(BIG[::-1])
    wait_for(a.path / "answer", BIG[::-1])
    with (b.path / "small").open("ab") as file:
        file.write(b" and more")
    wait_for(a.path / "small", b"small and more")
    assert {row["label"] for row in a.status()["sessions"]} == {"host-0", "host-1"}


def test_a_lock_holds_across_hosts(shared: Shared) -> None:
    a, b = shared.first, shared.elsewhere()
    a.mount("--lease-ttl", "3")
    (a.path / "f").write_bytes(b"")
    b.mount("--lease-ttl", "3")
    holder, other = Locker(a.path / "f"), Locker(b.path / "f")
    try:
        holder.take("flock")
        holder.write(b"written under the lock")
        assert other.is_refused("flock")
        other.want("flock")
        other.blocks()
        holder.give("flock")
        other.end()
        assert other.read() == b"written under the lock"
        # A host that is gone holds its locks no longer than its lease lasts.
        other.write(b"changed under the lock")
        other.give("flock")
        holder.take("flock")
        a.kill9(remount=False)
        other.want("flock")
        other.end()
        assert (b.path / "f").read_bytes() == b"changed under the lock"
    finally:
        for each in (holder, other):
            each.kill()


def test_what_was_acknowledged_is_there_on_a_host_that_never_saw_it(shared: Shared) -> None:
    a, b = shared.first, shared.elsewhere()
    a.mount()
    (a.path / "d").mkdir()
    for number in range(5):
        (a.path / "d" / str(number)).write_bytes(b"%d" % number)
    (a.path / "big").write_bytes(BIG)
    unsaved = os.open(a.path / "unsaved", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(unsaved, b"not closed")
    a.kill9(remount=False)
    with fails(errno.ENOTCONN):
        os.close(unsaved)
    b.mount()
    assert [(b.path / "d" / str(number)).read_bytes() for number in range(5)] == [b"%d" % number for number in range(5)]
    assert (b.path / "big").read_bytes() == BIG
    # The first host goes on, too, with what it had staged.
    a.mount()
    (b.path / "after").write_bytes(b"after")
    wait_for(a.path / "after", b"after")
    wait_for(b.path / "unsaved", b"not closed")
    for host in (a, b):
        host.umount()
    assert "no fault found" in b.cli.check("fsck", shared.url, "--cache-dir", b.cache)


@pytest.mark.parametrize("shared", ["postgres"], indirect=True)
def test_commands_find_it_by_directory_url_and_name(shared: Shared) -> None:
    a, b = shared.first, shared.elsewhere()
    a.mount()
    b.mount()
    (a.path / "f").write_bytes(BIG)
    wait_for(b.path / "f", BIG)
    # The hosts of this test see each other's mounts, but not what is said of them in each other's runtime directories.
    for host, source in ((a, NAME), (b, shared.url)):
        assert json.loads(host.cli.check("status", source, "--json"))["mountpoint"] == str(host.path)
        assert host.cli.check("locks", source, "--json") == ""
    for host, source in ((a, NAME), (b, shared.url), (b, b.path)):
        assert '"path":"f"' in host.cli.check("events", source, "--json")
        assert len(host.cli.check("replicas", "list", source, "--cache-dir", host.cache, "--json").splitlines()) == 2
        assert "no fault found" in host.cli.check("fsck", source, "--cache-dir", host.cache)
    assert [version["version"] for version in b.versions(b.path / "f")] == [1]
    assert "1 files are here" in b.cli.check("warm", b.path / "f")
    b.cli.check("umount", shared.url)
    b.wait_gone()
    a.cli.check("umount", NAME)
    a.wait_gone()
    assert not mounts_under(a.base.parent)


@pytest.mark.parametrize("shared", ["s3"], indirect=True)
def test_the_environment_or_a_file_says_what_is_long(shared: Shared) -> None:
    """As in a container: what is the same for all pods in variables, the rest in a file."""
    host = shared.elsewhere()
    (host.base / "options.toml").write_text(f'label = "from the file"\ncache-dir = "{host.cache}"\noptions = ["ro"]\n')
    host.cli.environment |= {
        "AGENTFS_JOURNAL": shared.url,
        "AGENTFS_LABEL": "from the environment",
        "AGENTFS_LEASE_TTL": "5",
        "AGENTFS_CONFIG": str(host.base / "options.toml"),
    }
    for options, reads_only in (((), True), (("-o", "rw"), False)):
        host.cli.check("mount", host.path, *options)
        try:
            status = host.status()
            [session] = [row for row in status["sessions"] if row["this"]]
            assert (session["label"], status["lease_ttl_seconds"]) == ("from the file", 5.0)
            if reads_only:
                with fails(errno.EROFS):
                    (host.path / "f").touch()
            else:
                (host.path / "f").touch()
            assert list(host.cache.iterdir())
        finally:
            host.cli.check("umount", host.path)
    done = host.cli.run("mount", "--journal", shared.url, NAME, host.path)
    assert (done.returncode, "not both" in done.stderr) == (2, True)


@pytest.mark.parametrize("shared", ["s3"], indirect=True)
def test_a_mount_that_cannot_be_says_why_in_one_line(shared: Shared) -> None:
    """The daemon found out, the command says it; nothing stays behind."""
    host = shared.elsewhere()
    gone = shared.url.replace("agents/demo", "agents/other")
    unreachable = "postgresql://postgres@127.0.0.1:1/db?workspace=w"
    for url, code, words in ((gone, 3, "there is no journal"), (unreachable, 6, "cannot be reached")):
        done = host.cli.run("mount", url, host.path, "--cache-dir", host.cache)
        assert done.returncode == code, done
        assert len(done.stderr.splitlines()) == 1
        assert words in done.stderr
        assert not mounts_under(host.base)


@pytest.mark.parametrize("shared", ["s3"], indirect=True)
def test_fstab_names_the_url(shared: Shared) -> None:
    needs_root()
    if not shutil.which("mount.agentfs", path="/sbin:/usr/sbin"):
        pytest.skip("mount.agentfs is not installed in /sbin")
    host = shared.elsewhere()
    fstab = host.base / "fstab"
    fstab.write_text(f"{shared.url} {host.path} agentfs rw,noatime,_netdev,cache_dir={host.cache} 0 0\n")
    environment = {**host.cli.environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["mount", "--fstab", fstab, host.path], env=environment, capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    try:
        (host.path / "f").write_bytes(b"x")
        assert host.status()["name"] == NAME
    finally:
        host.cli.check("umount", host.path)
