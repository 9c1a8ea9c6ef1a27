"""How few requests many files cost: put into a real S3 server, brought together behind the writer, read on a cold host."""

import os
import subprocess
from collections.abc import Callable

import pytest

from agentfs.workspace.compaction import SEGMENTS_MIN
from tests.mount.place import Mount, wait_until
from tests.regions import MakeRegions, Region

FILES = 120
SIZES = (1_000, 20_000, 45_000, 70_000)
"""Two go inline at first, two are too large for that."""

PACKED_SECONDS = 120
"""The chores look every 5 s at what has not changed for 10 s; the machine may be busy."""


@pytest.fixture
def on_s3(regions: MakeRegions, unmounted: Mount) -> Callable[..., tuple[Mount, Region]]:
    """Makes a workspace on one S3 server, and mounts it."""

    def make(*options: str) -> tuple[Mount, Region]:
        (server,) = regions(1)
        unmounted.cli.environment.update(server.environment)
        unmounted.create("--replica", server.url("w"), *options)
        unmounted.mount()
        return unmounted, server

    return make


def fill(place: Mount) -> dict[str, bytes]:
    """Write files one after the other, as who unpacks an archive does."""
    bodies = {f"{number:03}": os.urandom(SIZES[number % len(SIZES)]) for number in range(FILES)}
    for name, body in bodies.items():
        (place.path / name).write_bytes(body)
    return bodies


def segments(region: Region) -> dict[str, int]:
    """The sizes of the segments in a region, by key."""
    pages = region.client.get_paginator("list_objects_v2").paginate(Bucket=region.bucket, Prefix="w/segments/")
    return {each["Key"]: each["Size"] for page in pages for each in page.get("Contents", [])}


def together(region: Region) -> int:
    """Bytes in the segments that hold more than one of the files."""
    return sum(size for size in segments(region).values() if size > 2 * max(SIZES))


def gets_of_a_cold_host(place: Mount, bodies: dict[str, bytes]) -> int:
    """Read every file on a host that has nothing; how many GETs that took, those of mounting included."""
    place.umount()
    place.cli.check("cache", "clear", "--cache-dir", place.cache)
    place.mount()
    subprocess.run(["grep", "-rc", "needle", place.path], check=False, stdout=subprocess.DEVNULL)
    assert {path.name: path.read_bytes() for path in place.path.iterdir()} == bodies
    return int(place.status()["replicas"][0]["requests"]["get"])


def test_files_that_were_closed_one_by_one_are_read_together(on_s3: Callable[..., tuple[Mount, Region]]) -> None:
    place, region = on_s3()
    bodies = fill(place)
    apart = len(segments(region))
    assert apart >= FILES // 2, "each that is too large to go inline was put when it was closed"
    large = sum(len(body) for body in bodies.values() if len(body) > 40_000)
    wait_until(lambda: together(region) >= large - SEGMENTS_MIN * max(SIZES), "compaction", seconds=PACKED_SECONDS)
    assert place.fsck().returncode == 0
    assert gets_of_a_cold_host(place, bodies) <= FILES // 4
    assert len(segments(region)) > apart, "what is not needed any more is kept as long as the history"
    assert place.fsck().returncode == 0


def test_files_that_nobody_waits_for_are_few_puts_from_the_start(on_s3: Callable[..., tuple[Mount, Region]]) -> None:
    place, region = on_s3("--durability", "fsync")
    bodies = fill(place)
    os.sync()
    wait_until(lambda: place.status()["dirty_files"] == 0, "everything to be committed")
    assert len(segments(region)) <= 12, "120 files, 60 of them too large to go inline"
    assert gets_of_a_cold_host(place, bodies) <= FILES // 6
