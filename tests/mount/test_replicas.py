"""Replicas of a mounted workspace, in directories and on real S3 servers: added, removed, lost, wrong, out of reach."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mount.errnos import fails
from tests.mount.place import NAME, Mount, mounts_under, wait_until
from tests.regions import MakeRegions, Region

BODY = os.urandom(300_000)
"""Too big to travel in the journal, and like nothing else."""


def replicas(place: Mount, verb: str, *arguments: str | Path, code: int = 0) -> list[dict[str, Any]]:
    """Run a verb of `agentfs replicas`; what it says, one record a line."""
    where = ("--root", place.cli.root, "--cache-dir", place.cache, "--json")
    done = place.cli.run("replicas", verb, *arguments, *where)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def refused(place: Mount, verb: str, *arguments: str | Path, words: str) -> None:
    """The command fails with one line that has those words."""
    done = place.cli.run("replicas", verb, *arguments, "--root", place.cli.root, "--cache-dir", place.cache)
    assert done.returncode not in (0, 70), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert words in done.stderr, done.stderr


def state_of(place: Mount, replica: int) -> dict[str, Any]:
    """What the mount says of one replica."""
    return next(each for each in place.status()["replicas"] if each["replica"] == replica)


def wait_filled(place: Mount, count: int) -> None:
    """Return once so many replicas are up and lack nothing."""
    wait_until(
        lambda: [each["missing_segments"] for each in place.status()["replicas"] if each["state"] == "up"] == [0] * count,
        f"{count} replicas to be up and complete",
        seconds=180,
    )


def segments(directory: Path) -> dict[str, Path]:
    """The segments in a replica's directory, by name."""
    return {path.name: path for path in directory.rglob("*.seg")}


@pytest.fixture
def on_directories(unmounted: Mount) -> tuple[Mount, list[Path]]:
    """A workspace on three directories that survives the loss of one; not mounted yet."""
    directories = [unmounted.base / f"replica-{number}" for number in (1, 2, 3)]
    options = [word for directory in directories for word in ("--replica", str(directory))]
    unmounted.create(*options, "--replication", "quorum")
    return unmounted, directories


# ---- coming and going


def test_a_replica_is_added_to_a_live_workspace(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "before").write_bytes(BODY)
    third = unmounted.base / "third"
    *progress, filled = replicas(unmounted, "add", third, NAME)
    assert progress[0] == {"event": "added", "replica": 3, "url": third.as_uri()}
    assert (filled["event"], filled["replica"]) == ("filled", 3)
    assert os.getxattr(unmounted.path / "before", "user.agentfs.replicas") == b"3/3"
    (unmounted.path / "after").write_bytes(BODY[::-1])
    assert os.getxattr(unmounted.path / "after", "user.agentfs.replicas") == b"3/3"
    assert len(segments(third)) == 2
    unmounted.remount()
    assert [each["url"] for each in unmounted.status()["replicas"]][2] == third.as_uri()
    assert unmounted.fsck().returncode == 0


def test_a_mount_fills_what_nobody_waits_for(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "f").write_bytes(BODY)
    assert [each["event"] for each in replicas(unmounted, "add", unmounted.base / "third", unmounted.path, "--no-wait")] == [
        "added"
    ]
    wait_filled(unmounted, 3)
    assert len(segments(unmounted.base / "third")) == 1


def test_a_workspace_that_is_mounted_nowhere_gets_a_replica_too(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "f").write_bytes(BODY)
    unmounted.umount()
    replicas(unmounted, "add", unmounted.base / "third", NAME)
    assert [each["missing_segments"] for each in replicas(unmounted, "list", NAME)] == [0, 0, 0]
    assert len(segments(unmounted.base / "third")) == 1


def test_a_removed_replica_is_written_no_more(on_directories: tuple[Mount, list[Path]]) -> None:
    place, (first, second, _) = on_directories
    place.mount()
    (place.path / "f").write_bytes(BODY)
    wait_filled(place, 3)
    assert replicas(place, "remove", "1", NAME) == [{"event": "removed", "replica": 1, "url": first.as_uri()}]
    wait_until(lambda: len(place.status()["replicas"]) == 2, "the mount to hear of it")
    (place.path / "g").write_bytes(BODY[::-1])
    assert (len(segments(first)), len(segments(second))) == (1, 2)
    assert (place.path / "f").read_bytes() == BODY
    place.remount()
    assert [each["replica"] for each in place.status()["replicas"]] == [2, 3]


def test_a_removed_replica_comes_back_with_what_it_has(on_directories: tuple[Mount, list[Path]]) -> None:
    place, (first, *_) = on_directories
    place.mount()
    (place.path / "f").write_bytes(BODY)
    wait_filled(place, 3)
    replicas(place, "remove", "1", NAME)
    assert replicas(place, "add", first, NAME)[0]["replica"] == 4
    assert replicas(place, "scrub", NAME)[-1]["clean"]
    place.remount()
    assert {each["state"] for each in place.status()["replicas"]} == {"up"}


def test_what_only_one_replica_holds_is_not_removed_by_mistake(unmounted: Mount) -> None:
    first, second = unmounted.base / "first", unmounted.base / "second"
    unmounted.create("--replica", str(first), "--replica", str(second), "--replication", "async")
    second.rename(unmounted.base / "away")
    unmounted.mount()
    (unmounted.path / "f").write_bytes(BODY)
    refused(unmounted, "remove", "1", NAME, words="replica 1 alone holds 1 segment that files need")
    assert len(unmounted.status()["replicas"]) == 2
    replicas(unmounted, "remove", "1", NAME, "--force")
    assert [each["replica"] for each in replicas(unmounted, "list", NAME, code=6)] == [2]


@pytest.mark.parametrize("kind", ["full", "another's", "its own", "inside", "unknown"])
def test_a_place_that_cannot_be_a_replica(unmounted: Mount, kind: str) -> None:
    unmounted.create()
    unmounted.mount()
    target = unmounted.base / "target"
    if kind == "full":
        target.mkdir()
        (target / "photo").touch()
    elif kind == "another's":
        unmounted.cli.check("create", "other", "--root", unmounted.cli.root, "--replica", target)
    own = unmounted.cli.root / NAME / "replicas/1"
    places = {"its own": str(own), "inside": str(own / "deeper"), "unknown": "ftp://host/x"}
    words = {"full": "not empty", "another's": "replica 1 of workspace other", "unknown": "ftp"}
    before = sorted(unmounted.base.glob("target/**/*"))
    refused(unmounted, "add", places.get(kind, str(target)), NAME, words=words.get(kind, "overlap"))
    assert sorted(unmounted.base.glob("target/**/*")) == before
    assert len(unmounted.status()["replicas"]) == 2


def test_removing_what_there_is_not(unmounted: Mount) -> None:
    unmounted.create("--replica", str(unmounted.base / "only"))
    refused(unmounted, "remove", "7", NAME, words="no replica 7")
    refused(unmounted, "remove", "1", NAME, words="last replica")


# ---- scrubbing


def test_scrub_repairs_what_is_lost_and_what_is_wrong(on_directories: tuple[Mount, list[Path]]) -> None:
    place, (first, second, third) = on_directories
    place.mount()
    for number in range(4):
        (place.path / str(number)).write_bytes(os.urandom(100_000))
    wait_filled(place, 3)
    lost, wrong = sorted(segments(second).values())[:2]
    healthy = segments(first)[wrong.name].read_bytes()
    lost.unlink()
    wrong.write_bytes(healthy[:-1] + bytes([healthy[-1] ^ 1]))
    (third / "segments/00").mkdir(exist_ok=True)
    (third / "segments/00" / f"{'0' * 64}.seg").write_bytes(b"left by a crash")

    quick = {each["replica"]: each for each in replicas(place, "scrub", NAME) if each["event"] == "scrubbed"}
    assert (quick[2]["missing"], quick[2]["corrupt"], quick[2]["repaired"]) == (1, 0, 1)
    assert quick[3]["unknown"] == 1
    deep = {each["replica"]: each for each in replicas(place, "scrub", "--deep", NAME) if each["event"] == "scrubbed"}
    assert (deep[2]["missing"], deep[2]["corrupt"], deep[2]["repaired"]) == (0, 1, 1)
    assert segments(second)[wrong.name].read_bytes() == healthy
    assert segments(second).keys() == segments(first).keys()
    clean = [each for each in replicas(place, "scrub", "--deep", NAME) if each["event"] == "scrubbed"]
    assert all(each["clean"] and not each["repaired"] for each in clean)


def test_scrub_says_what_it_cannot_repair(unmounted: Mount) -> None:
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "f").write_bytes(BODY)
    for each in segments(unmounted.cli.root).values():
        assert each.exists()
    for path in unmounted.cli.root.rglob("*.seg"):
        path.unlink()
    scrubbed = [each for each in replicas(unmounted, "scrub", NAME, code=7) if each["event"] == "scrubbed"]
    assert [(each["missing"], each["unrepaired"]) for each in scrubbed] == [(1, 1), (1, 1)]


# ---- places that are not what they were


def test_a_replica_that_lost_everything_is_down_and_the_others_serve(on_directories: tuple[Mount, list[Path]]) -> None:
    place, (first, *_) = on_directories
    place.mount()
    (place.path / "f").write_bytes(BODY)
    wait_filled(place, 3)
    place.umount()
    shutil.rmtree(first)
    first.mkdir()
    place.mount()
    assert (place.path / "f").read_bytes() == BODY
    (place.path / "g").write_bytes(BODY)
    state = state_of(place, 1)
    assert state["state"] != "up"
    assert "not marked as replica 1" in state["last_error"]
    assert list(first.iterdir()) == []
    replicas(place, "remove", "1", NAME)
    replicas(place, "add", first, NAME)
    wait_filled(place, 3)


def test_a_mount_that_could_write_nothing_is_refused(unmounted: Mount) -> None:
    first, second = unmounted.base / "first", unmounted.base / "second"
    unmounted.create("--replica", str(first), "--replica", str(second))
    (second / "agentfs-replica.json").unlink()
    done = unmounted.cli.run("mount", NAME, unmounted.path, "--root", unmounted.cli.root, "--cache-dir", unmounted.cache)
    assert done.returncode == 5, done
    assert "replica 2" in done.stderr
    assert mounts_under(unmounted.path) == []
    unmounted.mount("-o", "ro")


def test_a_replica_is_found_where_the_file_says(unmounted: Mount) -> None:
    """Another host may have the same directory under another path: workspace.toml says so there."""
    unmounted.create("--replica", str(unmounted.base / "first"))
    (unmounted.base / "first").rename(unmounted.base / "elsewhere")
    file = unmounted.cli.root / NAME / "workspace.toml"
    file.write_text(file.read_text().replace("/first", "/elsewhere"))
    unmounted.mount()
    (unmounted.path / "f").write_bytes(BODY)
    assert len(segments(unmounted.base / "elsewhere")) == 1
    assert not (unmounted.base / "first").exists()


# ---- on S3


@pytest.fixture
def on_s3(regions: MakeRegions, unmounted: Mount) -> Callable[..., tuple[Mount, list[Region]]]:
    """Makes a workspace on three S3 servers that survives the loss of one; not mounted yet."""

    def make(*options: str) -> tuple[Mount, list[Region]]:
        servers = regions(3)
        unmounted.cli.environment.update(servers[0].environment)
        places = [word for server in servers for word in ("--replica", server.url("w"))]
        unmounted.create(*places, "--replication", "quorum", *options)
        return unmounted, servers

    return make


def test_one_of_three_regions_may_go_and_come_back(on_s3: Callable[..., tuple[Mount, list[Region]]]) -> None:
    place, (first, *_) = on_s3()
    place.mount()
    (place.path / "before").write_bytes(BODY)
    first.stop("gateway")
    (place.path / "during").write_bytes(BODY[::-1])
    assert (place.path / "before").read_bytes() == BODY
    wait_until(lambda: state_of(place, 1)["last_error"] != "", "the mount to see it")
    state = state_of(place, 1)
    assert (state["missing_segments"], state["missing_bytes"] > len(BODY) // 2) == (1, True)
    assert state["lag_seconds"] > 0
    first.start()
    wait_filled(place, 3)
    assert all(each["clean"] for each in replicas(place, "scrub", "--deep", NAME) if each["event"] == "scrubbed")


def test_a_cold_host_reads_what_another_wrote(on_s3: Callable[..., tuple[Mount, list[Region]]]) -> None:
    place, _ = on_s3()
    place.mount()
    for number in range(20):
        (place.path / str(number)).write_bytes(os.urandom(100_000))
    bodies = {path.name: path.read_bytes() for path in place.path.iterdir()}
    place.umount()
    place.cli.check("cache", "clear", "--cache-dir", place.cache)
    place.mount()
    assert {path.name: path.read_bytes() for path in place.path.iterdir()} == bodies
    status = place.status()
    assert status["cache"]["edge"]["misses"] > 0
    asked = sum(each["requests"]["get"] for each in status["replicas"])
    assert 20 <= asked < 40  # One for each file, three for the markers, and some twice where the machine is busy.
    assert sum(each["requests"]["bytes_in"] for each in status["replicas"]) >= 20 * 100_000
    assert "GET" in place.cli.check("status", place.path)


def test_offline_serves_what_is_here_and_refuses_the_rest(on_s3: Callable[..., tuple[Mount, list[Region]]]) -> None:
    place, servers = on_s3()
    place.mount()
    (place.path / "here").write_bytes(BODY)
    (place.path / "far").write_bytes(BODY[::-1])
    place.umount()
    place.cli.check("cache", "clear", "--cache-dir", place.cache)
    place.mount()
    assert (place.path / "here").read_bytes() == BODY
    place.umount()
    for server in servers:
        server.stop("gateway")
    place.mount("-o", "offline")
    assert sorted(os.listdir(place.path)) == ["far", "here"]
    assert (place.path / "here").read_bytes() == BODY
    with fails(errno.EIO):
        (place.path / "far").read_bytes()
    with fails(errno.EROFS):
        (place.path / "new").touch()
    states = place.status()["replicas"]
    assert {each["state"] for each in states} == {"unasked"}
    assert all(count == 0 for each in states for count in each["requests"].values())


@pytest.mark.parametrize(("option", "first", "later"), [("eio", errno.EIO, errno.EIO), ("erofs", errno.EROFS, errno.EROFS)])
def test_a_write_that_too_few_replicas_take_fails_and_goes_out_later(
    on_s3: Callable[..., tuple[Mount, list[Region]]], option: str, first: int, later: int
) -> None:
    place, servers = on_s3()
    place.mount("-o", f"unreachable={option}", "--timeout", "2")
    for server in servers[:2]:
        server.stop("gateway")
    with fails(first):
        (place.path / "f").write_bytes(BODY)
    assert not place.status()["reachable"]
    with fails(later):
        (place.path / "g").write_bytes(BODY[::-1])
    for server in servers[:2]:
        server.start()
    wait_until(lambda: place.status()["dirty_bytes"] == 0, "what was written to go out", seconds=180)
    place.remount()
    assert (place.path / "f").read_bytes() == BODY


def keys_in(region: Region) -> list[str]:
    """What is in the test's bucket."""
    return [each["Key"] for each in region.client.list_objects_v2(Bucket=region.bucket).get("Contents", [])]


def test_creating_where_it_cannot_be_leaves_nothing(regions: MakeRegions, unmounted: Mount) -> None:
    one, two = regions(2)
    unmounted.cli.environment.update(one.environment)

    def create(*urls: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = dict(unmounted.cli.environment)
        unmounted.cli.environment.update(environment)
        try:
            options = [word for url in urls for word in ("--replica", url)]
            return unmounted.cli.run("create", NAME, "--root", unmounted.cli.root, *options)
        finally:
            unmounted.cli.environment = kept

    no_bucket = one.url("w").replace(one.bucket, "no-such-bucket")
    closed = one.url("w").replace(one.endpoint, "http://127.0.0.1:1")
    for done, code, words in (
        (create(one.url("w"), no_bucket), 5, "no-such-bucket"),
        (create(one.url("w"), two.url("w"), AWS_SECRET_ACCESS_KEY="wrong"), 5, "secret key is wrong"),
        (create(one.url("w"), closed), 6, "127.0.0.1:1"),
        (create(one.url("w"), one.url("w/deeper")), 2, "overlap"),
        (create(one.url("w"), f"s3://key:hush@{one.bucket}/w"), 2, "AWS_ACCESS_KEY_ID"),
    ):
        assert done.returncode == code, done
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert words in done.stderr
        assert "hush" not in done.stdout + done.stderr
        assert keys_in(one) == keys_in(two) == []
        assert not unmounted.cli.root.exists() or list(unmounted.cli.root.iterdir()) == []
    unmounted.cli.check("create", NAME, "--root", unmounted.cli.root, "--replica", one.url("w"))
    again = unmounted.cli.run("create", "other", "--root", unmounted.cli.root, "--replica", one.url("w"))
    assert (again.returncode, "replica 1 of workspace w" in again.stderr) == (4, True)


def test_a_directory_and_s3_side_by_side(regions: MakeRegions, unmounted: Mount) -> None:
    [one] = regions(1)
    unmounted.cli.environment.update(one.environment)
    unmounted.create()
    unmounted.mount()
    (unmounted.path / "f").write_bytes(BODY)
    replicas(unmounted, "add", one.url("w"), NAME)
    assert os.getxattr(unmounted.path / "f", "user.agentfs.replicas") == b"3/3"
    assert len([key for key in keys_in(one) if key.endswith(".seg")]) == 1
    replicas(unmounted, "remove", "1", NAME)
    replicas(unmounted, "remove", "2", NAME)
    unmounted.remount()
    assert (unmounted.path / "f").read_bytes() == BODY
    assert state_of(unmounted, 3)["requests"]["get"] > 0
