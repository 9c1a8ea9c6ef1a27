"""One thing at a time happens to the replicas of a real mount: what programs notice, what `agentfs` says, and how it ends."""

import contextlib
import errno
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.proxy import Proxy
from tests.chaos.reader import read
from tests.chaos.world import OPTIONS, World, opened
from tests.mount.place import NAME, wait_until
from tests.mount.small_disk import fill, small_disk

TIMEOUT_SECONDS = 15.0
"""The `--timeout` of the mounts: longer than anybody has to wait here."""

SLOW_SECONDS = 3.0

IMPATIENT_SECONDS = 10.0
"""With a `--timeout` of 3 s."""

SIZES = (200_000, 3_000_000, 100_000)
"""Bytes of files that lie in segments, not in the journal."""


class Files:
    """Files with known contents on the near mount."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._source = random.Random(1)
        self.contents: dict[str, bytes] = {}

    def write(self, count: int = 3) -> float:
        """Write some more; how long the slowest took."""
        slowest = 0.0
        for _ in range(count):
            name = f"f{len(self.contents)}"
            body = self._source.randbytes(SIZES[len(self.contents) % len(SIZES)])
            before = time.monotonic()
            (self._world.near.path / name).write_bytes(body)
            slowest = max(slowest, time.monotonic() - before)
            self.contents[name] = body
        return slowest

    def assert_right(self, path: Path) -> float:
        """Read all of them through a mount; how long the slowest took."""
        slowest = 0.0
        for name, body in self.contents.items():
            before = time.monotonic()
            assert read(path / name) == body, name
            slowest = max(slowest, time.monotonic() - before)
        return slowest


@pytest.fixture
def files(world: World) -> Files:
    """Those of `world`."""
    return Files(world)


def write_refused(path: Path, body: bytes) -> tuple[int, float]:
    """Write a file that is not taken: the errno, and after how long it came."""
    before = time.monotonic()
    try:
        path.write_bytes(body)
    except OSError as error:
        return error.errno or 0, time.monotonic() - before
    raise AssertionError(f"{path} was taken")


def listed(world: World) -> tuple[int, dict[int, dict[str, str]]]:
    """What `agentfs replicas list` says, and its exit code."""
    done = world.near.cli.run("replicas", "list", NAME, "--root", world.near.cli.root, "--json")
    return done.returncode, {row["replica"]: row for row in map(json.loads, done.stdout.splitlines())}


# ---- a replica that refuses


def is_refusal(error: str) -> bool:
    """Whether it says why; to a HEAD request the server does not say so much."""
    return "access denied" in error or "the user is suspended" in error


def test_access_is_denied_and_given_back(world: World, files: Files) -> None:
    world.create("quorum")
    world.near.mount(*OPTIONS)
    files.write()
    world.regions[1].deny()
    files.write()
    world.wait_for_replica(2, "down", lambda row: row["state"] != "up" and is_refusal(row["last_error"]))
    code, rows = listed(world)
    assert code == 6
    assert [number for number, row in rows.items() if row["error"]] == [2]
    assert is_refusal(rows[2]["error"])

    world.regions[0].deny()
    number, seconds = write_refused(world.near.path / "refused", bytes(200_000))
    assert number == errno.EIO
    assert seconds < TIMEOUT_SECONDS / 2, "nobody waits for a permission to come back"
    files.assert_right(world.near.path)

    for region in world.regions[:2]:
        region.allow()
    world.wait_until_saved()
    for number in (1, 2):
        world.wait_for_replica(number, "up again", lambda row: row["state"] == "up")
    world.renew(world.far)
    files.assert_right(world.far.path)
    assert read(world.far.path / "refused") == bytes(200_000), "what was staged went out"


@pytest.mark.long
def test_a_bucket_is_gone_and_its_replica_is_made_anew(world: World, files: Files) -> None:
    world.create("quorum")
    world.near.mount(*OPTIONS)
    files.write()
    region = world.regions[1]
    region.restore()
    files.write()
    world.wait_for_replica(2, "down", lambda row: row["state"] != "up" and "no such bucket" in row["last_error"])
    files.assert_right(world.near.path)
    region.make_bucket()
    world.wait_for_replica(2, "to be known as empty", lambda row: "not marked" in row["last_error"], seconds=90)
    place = (NAME, "--root", world.near.cli.root)
    world.near.cli.check("replicas", "remove", "2", *place)
    world.near.cli.check("replicas", "add", region.url("w"), *place)
    world.wait_until_equal()
    assert {row["replica"] for row in world.near.status()["replicas"]} == {1, 3, 4}
    world.assert_clean()
    world.renew(world.far)
    files.assert_right(world.far.path)


@pytest.mark.long
def test_a_full_replica(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("full")
    with small_disk(base / "small", size_mib=24) as small, opened(base, []) as world:
        world.create("quorum", urls=[str(base / "one"), str(small / "replica"), str(base / "three")])
        world.near.mount(*OPTIONS)
        files = Files(world)
        files.write()
        fill(small / "ballast")
        files.write()
        world.wait_for_replica(2, "full", lambda row: "o space" in row["last_error"])
        files.assert_right(world.near.path)
        (small / "ballast").unlink()
        world.wait_until_equal()
        world.assert_clean()


# ---- a replica that is wrong


def test_wrong_objects_are_found_read_from_elsewhere_and_repaired(world: World, files: Files) -> None:
    world.create("sync")
    world.near.mount(*OPTIONS)
    files.write(9)
    keys = world.segments(2)
    for key, how in zip(keys, ("bytes", "half", "gone"), strict=False):
        world.spoil(2, key, how)
    report = world.scrub()[2]
    assert (report["corrupt"], report["wrong_size"], report["missing"], report["repaired"]) == (1, 1, 1, 3)

    for number in (1, 2):
        assert len(world.spoil_some(number, random.Random(number), len(keys))) == len(keys)
    world.renew(world.far)
    files.assert_right(world.far.path)
    reports = world.scrub()
    assert all(report["clean"] for report in reports.values())
    assert [len(world.segments(number)) for number in (1, 2, 3)] == [len(keys)] * 3
    world.assert_clean()


# ---- a replica that is slow, or silent


@pytest.fixture
def slow(world: World) -> Iterator[Proxy]:
    """The way to the second region."""
    proxy = Proxy(world.regions[1].endpoint)
    world.create("quorum", urls=[world.regions[0].url("w"), world.url_by(proxy, 2), world.regions[2].url("w")])
    try:
        yield proxy
    finally:
        world.far.discard()
        world.near.discard()
        proxy.close()


def test_a_replica_that_is_slow_or_silent_holds_nobody(world: World, files: Files, slow: Proxy) -> None:
    world.near.mount(*OPTIONS)
    files.write()
    slow.delay_seconds = SLOW_SECONDS
    assert files.write() < SLOW_SECONDS, "a majority answered long before"
    world.renew(world.far)
    assert files.assert_right(world.far.path) < SLOW_SECONDS
    slow.delay_seconds = 0.0
    with slow.silent():
        assert files.write() < TIMEOUT_SECONDS / 2
        world.renew(world.far)
        assert files.assert_right(world.far.path) < TIMEOUT_SECONDS / 2
        code, rows = listed(world)
        assert code == 6
        assert "no answer" in rows[2]["error"]
    world.wait_for_replica(2, "up", lambda row: row["state"] == "up")


# ---- writes that find too few


@pytest.mark.long
def test_sync_writes_fail_in_time_and_go_out_later(world: World, files: Files) -> None:
    """On one mount with EIO, on the other as if the filesystem were read-only."""
    world.create("sync")
    impatient = ("--timeout", "3", *OPTIONS[2:])
    world.near.mount(*impatient)
    world.far.mount(*impatient, "-o", "unreachable=erofs")
    files.write()
    world.regions[1].kill("gateway")
    body = bytes(range(256)) * 4000
    number, seconds = write_refused(world.near.path / "late", body)
    assert number == errno.EIO
    assert seconds < IMPATIENT_SECONDS
    status = world.near.status()
    assert not status["reachable"]
    assert status["dirty_bytes"] == len(body)
    files.assert_right(world.near.path)
    number, seconds = write_refused(world.near.path / "small", b"a body that travels in the journal")
    assert number == errno.EIO
    assert seconds < IMPATIENT_SECONDS
    assert read(world.far.path / "small") == b"a body that travels in the journal"

    assert write_refused(world.far.path / "first", body)[0] == errno.EROFS
    number, seconds = write_refused(world.far.path / "second", body)
    assert number == errno.EROFS
    assert seconds < 1, "the second is not waited for"

    world.regions[1].start()
    wait_until(lambda: taken(world.far.path / "third", body), "writes to be taken again")
    for mount in (world.near, world.far):
        world.wait_until_saved(mount)
    assert world.near.status()["reachable"]
    assert read(world.far.path / "late") == read(world.near.path / "first") == body
    world.assert_clean()


def taken(path: Path, body: bytes) -> bool:
    """Write a file; whether it could be."""
    with contextlib.suppress(OSError):
        path.write_bytes(body)
        return True
    return False
