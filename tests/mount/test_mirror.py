"""The journal's mirror in the replicas of a real mount: what close() waits for, what a kill leaves, and what status says."""

import errno
import fcntl
import os
import random
from pathlib import Path
from typing import Any

import pytest

from agentfs.journal.mirror import decode_mirrored, parse_mirror_key
from agentfs.journal.sqlite import open_sqlite_journal
from agentfs.model.ids import Position
from agentfs.runtime import SystemRuntime
from tests.mount.errnos import fails
from tests.mount.place import NAME, Mount, wait_until
from tests.regions import MakeRegions


async def entries_of(journal: Path) -> dict[int, bytes]:
    """Every entry of a workspace's journal, by position."""
    found: dict[int, bytes] = {}
    async with open_sqlite_journal(journal, runtime=SystemRuntime()) as opened:
        while records := await opened.read(Position(max(found, default=0))):
            found.update({record.position: record.payload for record in records})
    return found


def mirrored_in(replica: Path) -> dict[int, bytes]:
    """Every entry that a replica holds, by position; what its objects' names say is in them."""
    found: dict[int, bytes] = {}
    for path in (replica / "mirror").iterdir():
        span = parse_mirror_key(f"mirror/{path.name}")
        if span is not None:
            records = decode_mirrored(path.read_bytes())
            assert (records[0].position, span[1] <= records[-1].position) == (span[0], True), path
            found.update({record.position: record.payload for record in records})
    return found


def state_of(place: Mount, replica: int) -> dict[str, Any]:
    """What the mount says of one replica."""
    return next(each for each in place.status()["replicas"] if each["replica"] == replica)


@pytest.fixture
def on_two(unmounted: Mount) -> tuple[Mount, list[Path]]:
    """A workspace on two directories that waits for both; not mounted yet."""
    directories = [unmounted.base / f"replica-{number}" for number in (1, 2)]
    options = [word for directory in directories for word in ("--replica", str(directory))]
    unmounted.create(*options, "--replication", "sync")
    return unmounted, directories


async def test_what_close_promised_is_in_each_replica_after_a_kill(on_two: tuple[Mount, list[Path]]) -> None:
    place, directories = on_two
    place.mount()
    source = random.Random(7)
    for number in range(40):
        (place.path / f"d{number}").mkdir()
        (place.path / f"d{number}" / "f").write_bytes(source.randbytes(source.choice((1, 300, 20_000))))
        if number % 7 == 0:
            (place.path / f"d{number}").rename(place.path / f"e{number}")
    place.kill9(remount=False)
    journal = await entries_of(place.journal)
    assert len(journal) > 80
    for directory in directories:
        assert mirrored_in(directory) == journal
        assert len(list((directory / "mirror").iterdir())) < 10, "objects grow beside the journal"


async def test_each_mount_mirrors_what_it_waits_for(on_two: tuple[Mount, list[Path]]) -> None:
    place, directories = on_two
    place.mount()
    other = place.beside("other")
    other.mount()
    for number in range(20):
        (place.path / f"a{number}").write_bytes(b"a")
        (other.path / f"b{number}").write_bytes(b"b")
        os.rename(other.path / f"a{number}", other.path / f"c{number}")
    place.kill9(remount=False)
    other.kill9(remount=False)
    other.discard()
    journal = await entries_of(place.journal)
    for directory in directories:
        assert mirrored_in(directory) == journal


async def test_a_clean_unmount_leaves_a_whole_mirror(unmounted: Mount) -> None:
    unmounted.create("--durability", "fsync")
    unmounted.mount()
    for number in range(30):
        (unmounted.path / f"f{number}").write_bytes(b"x" * number)
    unmounted.umount()
    journal = await entries_of(unmounted.journal)
    assert [mirrored_in(unmounted.replica(number)) == journal for number in (1, 2)] == [True, True]


async def test_what_nobody_waits_for_is_mirrored_soon(unmounted: Mount) -> None:
    unmounted.create("--durability", "fsync")
    unmounted.mount()
    (unmounted.path / "f").write_bytes(b"x")
    wait_until(lambda: unmounted.status()["pending_transactions"] == 0, "the file to be committed")
    wait_until(lambda: state_of(unmounted, 2)["mirror_lag"] == 0, "the mirror to follow")
    assert state_of(unmounted, 2)["mirrored"] == unmounted.status()["position"]
    unmounted.kill9(remount=False)
    journal = await entries_of(unmounted.journal)
    assert mirrored_in(unmounted.replica(2)) == journal


async def test_sync_says_eio_while_a_replica_is_gone_and_goes_on_when_it_is_back(on_two: tuple[Mount, list[Path]]) -> None:
    place, (first, second) = on_two
    place.mount("--timeout", "2")
    (place.path / "before").write_bytes(b"1")
    wait_until(lambda: state_of(place, 2)["mirror_lag"] == 0, "the mount to know what the replicas hold")
    second.rename(place.base / "away")
    with fails(errno.EIO):
        (place.path / "small").write_bytes(b"2")
    with fails(errno.EIO):
        (place.path / "directory").mkdir()
    # It is in the journal, and stays: nothing is taken back.
    wait_until((place.path / "directory").is_dir, "the kernel to hear that there is a directory")
    assert (place.path / "small").read_bytes() == b"2"
    wait_until(lambda: bool(state_of(place, 2)["mirror_lag"]), "the lag to show")
    assert state_of(place, 2)["mirror_lag_seconds"] > 0
    assert "lacks" in place.cli.check("status", place.path)
    (place.base / "away").rename(second)
    descriptor = os.open(place.path / "small", os.O_RDWR)
    try:
        wait_until(lambda: state_of(place, 2)["state"] == "up", "the replica to be up")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    wait_until(lambda: [state_of(place, each)["mirror_lag"] for each in (1, 2)] == [0, 0], "the lag to be gone", seconds=120)
    place.umount()
    journal = await entries_of(place.journal)
    assert [mirrored_in(directory) == journal for directory in (first, second)] == [True, True]


async def test_a_mount_and_its_locks_need_no_replica(on_two: tuple[Mount, list[Path]]) -> None:
    place, (_, second) = on_two
    place.mount("--timeout", "2")
    (place.path / "f").write_bytes(b"1")
    second.rename(place.base / "away")
    place.kill9()
    other = place.beside("other")
    other.mount("--timeout", "2")
    for path in (place.path / "f", other.path / "f", place.path / "f"):
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.flock(file, fcntl.LOCK_UN)
    (place.base / "away").rename(second)
    other.umount()


async def test_unmounting_says_what_too_few_replicas_have(on_two: tuple[Mount, list[Path]]) -> None:
    place, (first, second) = on_two
    place.mount("--timeout", "1")
    (place.path / "before").write_bytes(b"1")
    second.rename(place.base / "away")
    with fails(errno.EIO):
        (place.path / "small").write_bytes(b"2")
    done = place.cli.run("umount", place.path)
    assert done.returncode not in (0, 70), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "too few replicas have" in done.stderr, done.stderr
    (place.base / "away").rename(second)
    wait_until(lambda: place.cli.run("umount", place.path).returncode == 0, "the replica to be found again", seconds=120)
    place.wait_gone()
    journal = await entries_of(place.journal)
    assert [mirrored_in(directory) == journal for directory in (first, second)] == [True, True]


async def test_quorum_closes_without_the_third_and_fills_it_later(unmounted: Mount) -> None:
    directories = [unmounted.base / f"replica-{number}" for number in (1, 2, 3)]
    options = [word for directory in directories for word in ("--replica", str(directory))]
    unmounted.create(*options, "--replication", "quorum")
    unmounted.mount()
    (unmounted.path / "before").write_bytes(b"1")
    directories[2].rename(unmounted.base / "away")
    for number in range(5):
        (unmounted.path / f"f{number}").write_bytes(b"2")
    (unmounted.base / "away").rename(directories[2])
    lags = lambda: [state_of(unmounted, each)["mirror_lag"] for each in (1, 2, 3)]  # noqa: E731
    wait_until(lambda: lags() == [0, 0, 0], "the third to be filled", seconds=120)
    unmounted.kill9(remount=False)
    journal = await entries_of(unmounted.journal)
    for directory in directories:
        assert mirrored_in(directory) == journal


async def test_in_s3_a_close_is_a_put_for_each_replica(regions: MakeRegions, unmounted: Mount) -> None:
    servers = regions(2)
    unmounted.cli.environment.update(servers[0].environment)
    urls = [server.url(unmounted.base.name) for server in servers]
    unmounted.create(*(word for url in urls for word in ("--replica", url)), "--replication", "sync")
    unmounted.mount()
    wait_until(lambda: state_of(unmounted, 1)["mirror_lag"] == 0, "the mount to know what the replicas hold")
    before = state_of(unmounted, 1)["requests"]["put"]
    for number in range(10):
        (unmounted.path / f"f{number}").write_bytes(b"x")
    assert state_of(unmounted, 1)["requests"]["put"] - before == 10
    assert state_of(unmounted, 1)["mirrored"] == unmounted.status()["position"]


def test_over_a_journal_in_s3_the_mirror_follows(regions: MakeRegions, unmounted: Mount) -> None:
    (server,) = regions(1)
    unmounted.cli.environment.update(server.environment)
    url = server.url(unmounted.base.name)
    unmounted.cli.check("create", NAME, "--root", unmounted.cli.root, "--journal", url)
    unmounted.mount()
    before = state_of(unmounted, 1)["requests"]["put"]
    for number in range(10):
        (unmounted.path / f"f{number}").write_bytes(b"x")
    wait_until(lambda: state_of(unmounted, 1)["mirrored"] == unmounted.status()["position"], "the mirror to follow")
    assert state_of(unmounted, 1)["requests"]["put"] - before < 10, "nobody waits for it, so that many entries share an object"
