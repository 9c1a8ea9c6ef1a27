"""A workspace over three S3 regions, the mounts of it, and what can be done to a region and seen of it."""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.chaos.proxy import Proxy
from tests.mount.place import NAME, Mount, wait_until
from tests.regions import Region

PREFIX: Final = "w"
"""Where in each region's bucket the workspace is."""

OPTIONS: Final = ("--timeout", "15", "--cache-size", "64M", "--lease-ttl", "5")

LOOK_SECONDS: Final = 0.5

SCRUB_SECONDS: Final = 1800.0
"""A bound for reading all that was ever written, in a long run."""

EQUAL_SECONDS: Final = 120.0
"""How long until replicas that answer again lack nothing: upkeep looks every 5 s, and lets what is young ripen for 10 s."""


class World:
    """Mount `near` is written through; `far` has its own cache directory, and a new one whenever it is renewed."""

    def __init__(self, base: Path, regions: list[Region]) -> None:
        self.regions = regions
        self.near = Mount(base, label="near")
        self.far = self.near.beside("far")
        self._caches = 0

    def create(self, replication: str, *, urls: list[str] | None = None) -> None:
        """Make the workspace, with a replica in each region."""
        urls = urls or [region.url(PREFIX) for region in self.regions]
        self.near.create(*(option for url in urls for option in ("--replica", url)), "--replication", replication)

    def url_by(self, proxy: Proxy, number: int) -> str:
        """The place in a region's bucket, by a proxy's way."""
        region = self.regions[number - 1]
        return region.url(PREFIX).replace(region.endpoint, proxy.endpoint)

    def fresh_cache(self, mount: Mount) -> None:
        """Let the mount begin with an empty cache when it is mounted next, as on a new host."""
        self._caches += 1
        mount.cache = mount.base / f"cache-{self._caches}"
        mount.cache.mkdir()

    def renew(self, mount: Mount) -> None:
        """Mount it anew with an empty cache."""
        if mount.mounted:
            mount.umount()
        self.fresh_cache(mount)
        mount.mount(*OPTIONS)

    # ---- what a mount says

    def _look(self, mount: Mount) -> dict[str, Any]:
        """What `agentfs status` says: asked for again and again, but not so often that it takes all of a core."""
        time.sleep(LOOK_SECONDS)
        return mount.status()

    def wait_for_replica(self, number: int, what: str, holds: Callable[[dict[str, Any]], bool], *, seconds: float = 60) -> None:
        """Return once `agentfs status` says of a replica what is waited for."""
        last: dict[str, Any] = {}

        def look() -> bool:
            last.clear()
            last.update(next(row for row in self._look(self.near)["replicas"] if row["replica"] == number))
            return holds(last)

        try:
            wait_until(look, f"replica {number}: {what}", seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; status says {last}") from error

    def wait_until_saved(self, mount: Mount | None = None) -> None:
        """Return once nothing that was written waits in the mount."""
        mount = mount or self.near
        wait_until(lambda: not self._look(mount)["dirty_bytes"], f"{mount.label} to have saved everything")

    def wait_until_equal(self) -> None:
        """Return once all that was written is in every replica, by what the mount knows."""
        last: dict[str, Any] = {}

        def equal() -> bool:
            last.clear()
            last.update(self._look(self.near))
            nothing_left = not last["dirty_bytes"] and not last["pending_transactions"]
            return nothing_left and all(row["state"] == "up" and not row["missing_segments"] for row in last["replicas"])

        try:
            wait_until(equal, "the replicas to be up and to lack nothing", seconds=EQUAL_SECONDS)
        except AssertionError as error:
            raise AssertionError(f"{error}; {last['dirty_bytes']} bytes unsaved, replicas {last['replicas']}") from error

    # ---- checks

    def scrub(self) -> dict[int, dict[str, Any]]:
        """Read and compare everything, and repair; the report of each replica. What is not repaired fails the test."""
        command = ("replicas", "scrub", NAME, "--root", self.near.cli.root, "--deep", "--json")
        lines = self.near.cli.check(*command, timeout=SCRUB_SECONDS).splitlines()
        return {each["replica"]: each for each in map(json.loads, lines) if each["event"] == "scrubbed"}

    def assert_clean(self) -> None:
        """Every byte in every replica is right, and so is everything else."""
        for number, report in self.scrub().items():
            wrong = {kind: report[kind] for kind in ("missing", "wrong_size", "corrupt", "found", "unrepaired") if report[kind]}
            assert not wrong, f"replica {number}: {wrong}"
        checked = self.near.fsck()
        assert checked.returncode == 0, checked.stdout + checked.stderr

    # ---- objects

    def segments(self, number: int) -> list[str]:
        """The keys of the segments in a region's bucket, oldest first."""
        region = self.regions[number - 1]
        pages = region.client.get_paginator("list_objects_v2").paginate(Bucket=region.bucket, Prefix=f"{PREFIX}/segments/")
        rows = [row for page in pages for row in page.get("Contents", [])]
        return [row["Key"] for row in sorted(rows, key=lambda row: row["LastModified"])]

    def spoil(self, number: int, key: str, how: str) -> None:
        """Make an object wrong: "bytes" of the right length, "half" of it, or "gone"."""
        region = self.regions[number - 1]
        if how == "gone":
            region.client.delete_object(Bucket=region.bucket, Key=key)
            return
        body = region.client.get_object(Bucket=region.bucket, Key=key)["Body"].read()
        wrong = bytes(byte ^ 0x55 for byte in body) if how == "bytes" else body[: len(body) // 2]
        region.client.put_object(Bucket=region.bucket, Key=key, Body=wrong)

    def spoil_some(self, number: int, source: random.Random, count: int) -> dict[str, str]:
        """Make some of the newest objects of a replica wrong, which are most likely still in use, in all ways; how, by key."""
        keys = self.segments(number)[-4 * count :]
        chosen = source.sample(keys, min(count, len(keys)))
        spoilt = {key: ("bytes", "half", "gone")[index % 3] for index, key in enumerate(chosen)}
        for key, how in spoilt.items():
            self.spoil(number, key, how)
        return spoilt


@contextmanager
def opened(base: Path, regions: list[Region]) -> Iterator[World]:
    """A world, of which nothing is left afterwards."""
    world = World(base, regions)
    try:
        yield world
    finally:
        world.far.discard()
        world.near.discard()
